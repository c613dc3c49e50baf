//! One relayed request with its response: a stream on the client hop, one on the worker hop, and
//! what waits in between for a window or for room in the other hop's output.

use std::collections::VecDeque;

use ringway_proto::fields::Fields;
use ringway_proto::h2::StreamKey;
use ringway_proto::route::KeptStyle;
use ringway_proto::time::Time;

use super::table::Key;
use crate::border::ConnId;
use crate::metrics::{Method, Version};
use crate::pool::{Pool, Segment};

/// A stream's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct At {
    pub(crate) conn: ConnId,
    pub(crate) key: StreamKey,
}

/// Which way bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// From the client to the worker.
    Up,
    /// From the worker to the client.
    Down,
}

/// One direction of an exchange.
#[derive(Debug, Default)]
pub(crate) struct Pipe {
    /// DATA that waits, each segment with a claim.
    pub(crate) queue: VecDeque<Segment>,
    pub(crate) queued: usize,
    /// Trailers that wait behind it.
    pub(crate) trailers: Option<Box<Fields>>,
    /// The sender ended the stream.
    pub(crate) ended: bool,
    /// END_STREAM was passed on.
    pub(crate) done: bool,
    /// It stands in the receiving hop's turn list.
    pub(crate) scheduled: bool,
    /// The last part sent was a crumb of a window.
    pub(crate) crumb: bool,
    /// A timer runs that allows the next crumb.
    pub(crate) crumb_waits: bool,
    /// Body bytes relayed.
    pub(crate) bytes: u64,
    /// When something last moved on, or began to wait.
    pub(crate) moved_at: Time,
}

impl Pipe {
    /// Whether something waits to be sent.
    pub(crate) fn waits(&self) -> bool {
        !self.done && (self.queued > 0 || self.ended)
    }

    /// Drops what waits; returns how many bytes that were.
    pub(crate) fn clear(&mut self, pool: &mut Pool) -> usize {
        self.queue.drain(..).for_each(|segment| pool.release(segment));
        self.trailers = None;
        std::mem::take(&mut self.queued)
    }
}

/// A request on its way.
#[derive(Debug)]
pub(crate) struct Exchange {
    pub(crate) client: At,
    /// The attachment that serves it; none for an answer of our own.
    pub(crate) attachment: Option<Key>,
    /// Its stream on the tunnel, once opened.
    pub(crate) worker: Option<At>,
    /// The request head while it waits for a tunnel or a stream.
    pub(crate) head: Option<Box<Fields>>,
    /// Size of that head and of trailers that wait, by the way they go, as it is counted against
    /// the core and the hop they came from.
    pub(crate) lists: [u32; 2],
    pub(crate) up: Pipe,
    pub(crate) down: Pipe,
    /// Status of the final response head, 0 before it.
    pub(crate) status: u16,
    /// How a fault is to be answered, should one come later.
    pub(crate) style: KeptStyle,
    pub(crate) method: Method,
    /// What the client speaks.
    pub(crate) version: Version,
    /// The request asks for another protocol.
    pub(crate) upgrade: bool,
    /// For the access log, if there is one.
    pub(crate) path: Option<Box<[u8]>>,
    pub(crate) began: Time,
    /// Request bytes thrown away after our own answer.
    pub(crate) discarded: usize,
    /// Who has ended the stream of bytes that this has become, while the other side is waited for.
    pub(crate) parting: Parting,
}

/// Who ended a stream of bytes first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Parting {
    /// Nobody yet.
    #[default]
    None,
    /// The function.
    Function,
    /// The client, when it had got so many bytes.
    Client(u64),
}

impl Exchange {
    pub(crate) fn new(client: At, attachment: Option<Key>, began: Time) -> Self {
        Self {
            client,
            attachment,
            worker: None,
            head: None,
            lists: [0; 2],
            up: Pipe::default(),
            down: Pipe::default(),
            status: 0,
            style: KeptStyle::default(),
            method: Method::Other,
            version: Version::H2,
            upgrade: false,
            path: None,
            began,
            discarded: 0,
            parting: Parting::None,
        }
    }

    pub(crate) fn pipe(&mut self, way: Way) -> &mut Pipe {
        match way {
            Way::Up => &mut self.up,
            Way::Down => &mut self.down,
        }
    }

    /// Whether the sender of one direction ended it.
    pub(crate) fn ended(&self, way: Way) -> bool {
        match way {
            Way::Up => self.up.ended,
            Way::Down => self.down.ended,
        }
    }

    /// Where the bytes of one direction come from.
    pub(crate) fn from(&self, way: Way) -> Option<At> {
        match way {
            Way::Up => Some(self.client),
            Way::Down => self.worker,
        }
    }

    /// Where the bytes of one direction go.
    pub(crate) fn to(&self, way: Way) -> Option<At> {
        match way {
            Way::Up => self.worker,
            Way::Down => Some(self.client),
        }
    }
}
