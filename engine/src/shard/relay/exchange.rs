//! One relayed request with its response: a stream on the client hop, one on the worker hop, and
//! what waits in between for a window or for room in the other hop's output.

use std::collections::VecDeque;

use ringway_proto::fault::Fault;
use ringway_proto::fields::Fields;
use ringway_proto::h2::StreamKey;
use ringway_proto::route::KeptStyle;
use ringway_proto::time::Time;

use super::super::table::Key;
use crate::metrics::{HttpVersion, Method};
use crate::net::ConnId;
use crate::pool::{Pool, Segment};

/// A stream's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct At {
    pub(super) conn: ConnId,
    pub(super) key: StreamKey,
}

/// The direction in which bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// From the client to the worker.
    Up,
    /// From the worker to the client.
    Down,
}

/// One direction of an exchange.
#[derive(Debug, Default)]
pub(super) struct Pipe {
    /// DATA that waits, each segment with a claim.
    pub(super) queue: VecDeque<Segment>,
    pub(super) queued: usize,
    /// Trailers that wait behind the DATA.
    pub(super) trailers: Option<Box<Fields>>,
    /// The sender ended the stream.
    pub(super) ended: bool,
    /// END_STREAM was passed on.
    pub(super) done: bool,
    /// The exchange is in the turn list of the hop that the pipe leads to.
    pub(super) scheduled: bool,
    /// The last part sent was a small part of a window.
    pub(super) small_send: bool,
    /// A timer runs that allows the next small send.
    pub(super) crumb_waits: bool,
    /// Body bytes relayed.
    pub(super) bytes: u64,
    /// When something last moved on, or began to wait.
    pub(super) moved_at: Time,
}

impl Pipe {
    /// Whether something waits to be sent.
    pub(super) fn waits(&self) -> bool {
        !self.done && (self.queued > 0 || self.ended)
    }

    /// Drops what waits; returns how many bytes that were.
    pub(super) fn clear(&mut self, pool: &mut Pool) -> usize {
        self.queue.drain(..).for_each(|segment| pool.release(segment));
        self.trailers = None;
        std::mem::take(&mut self.queued)
    }
}

/// Why a head cannot be relayed: what its client or its worker did wrong, whichever sent it.
#[derive(Clone, Copy)]
pub(super) struct Either<'a> {
    pub(super) of_client: &'a Fault,
    pub(super) of_worker: &'a Fault,
}

/// The fault of a head for which there was no room.
pub(super) const OVERLOADED: Either<'static> =
    Either { of_client: &Fault::Overloaded, of_worker: &Fault::Overloaded };

/// The party that serves a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Served {
    /// Not known yet: sessions are asked.
    Unplaced,
    /// The function, by this route.
    Route(Key),
    /// The gateway itself: the answer is our own.
    Ourselves,
}

/// A request on its way.
#[derive(Debug)]
pub(super) struct Exchange {
    pub(super) client: At,
    pub(super) served: Served,
    /// The exchange's stream on the tunnel, once opened.
    pub(super) worker: Option<At>,
    /// The request head while it waits for a tunnel or a stream.
    pub(super) head: Option<Box<Fields>>,
    /// Size of that head and of trailers that wait, for each direction. It is counted against the
    /// core and against the hop they came from.
    pub(super) lists: [u32; 2],
    pub(super) up: Pipe,
    pub(super) down: Pipe,
    /// Status of the final response head, 0 before it.
    pub(super) status: u16,
    /// How a fault is to be answered, should one come later.
    pub(super) style: KeptStyle,
    pub(super) method: Method,
    /// The protocol version that the client speaks.
    pub(super) version: HttpVersion,
    /// The request asks for another protocol.
    pub(super) upgrade: bool,
    /// For the access log, if there is one.
    pub(super) path: Option<Box<[u8]>>,
    pub(super) began: Time,
    /// Request bytes thrown away after our own answer.
    pub(super) discarded: usize,
    /// If the exchange has become a stream of bytes: the side that has ended it first, while the
    /// other side is waited for.
    pub(super) parting: Parting,
}

/// The side that ended a stream of bytes first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Parting {
    /// Neither side yet.
    #[default]
    None,
    /// The function.
    Function,
    /// The client, when it had got so many bytes.
    Client(u64),
}

impl Exchange {
    pub(super) fn new(client: At, served: Served, began: Time) -> Self {
        Self {
            client,
            served,
            worker: None,
            head: None,
            lists: [0; 2],
            up: Pipe::default(),
            down: Pipe::default(),
            status: 0,
            style: KeptStyle::default(),
            method: Method::Other,
            version: HttpVersion::H2,
            upgrade: false,
            path: None,
            began,
            discarded: 0,
            parting: Parting::None,
        }
    }

    /// The route that serves the exchange, if one does.
    pub(super) fn route(&self) -> Option<Key> {
        match self.served {
            Served::Route(key) => Some(key),
            Served::Unplaced | Served::Ourselves => None,
        }
    }

    /// Whether the bytes of one direction are thrown away: behind an answer of our own.
    pub(super) fn is_discarded(&self, way: Way) -> bool {
        self.served == Served::Ourselves && way == Way::Up
    }

    pub(super) fn pipe(&mut self, way: Way) -> &mut Pipe {
        match way {
            Way::Up => &mut self.up,
            Way::Down => &mut self.down,
        }
    }

    /// Whether the sender of one direction ended it.
    pub(super) fn ended(&self, way: Way) -> bool {
        match way {
            Way::Up => self.up.ended,
            Way::Down => self.down.ended,
        }
    }

    /// The stream that the bytes of one direction come from.
    pub(super) fn from(&self, way: Way) -> Option<At> {
        match way {
            Way::Up => Some(self.client),
            Way::Down => self.worker,
        }
    }

    /// The stream that the bytes of one direction go to.
    pub(super) fn to(&self, way: Way) -> Option<At> {
        match way {
            Way::Up => self.worker,
            Way::Down => Some(self.client),
        }
    }
}
