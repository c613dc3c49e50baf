//! One HTTP/2 connection's rules, for both roles, without I/O (RFC 9113).
//!
//! [`Conn`] is fed with received bytes and answers, one [`Event`] at a time, with what the relay
//! must know. What is the connection's own business (SETTINGS, PING, credit, padding, faults of one
//! stream) it does itself, into the [`Sink`](crate::Sink) it is given. Payload of DATA is never
//! copied: events point into the caller's input.
//!
//! Not here: what a request means ([`crate::fields`] and routing), and when a connection is closed.
//! A [`ConnFault`] asks for GOAWAY and a close; the engine does both.
//!
//! Neighbours in the walk: the shard calls [`Conn::next`] with what its reactor received, relays
//! what comes out through the other hop's [`Conn::head`] and [`Conn::data_head`], and says with
//! [`Conn::drained`] what the other hop took.

use std::fmt;
use std::time::Duration;

use crate::hpack::{FLOOD_FACTOR, HeaderLimits};

mod batch;
mod block;
mod budget;
mod carried;
mod conn;
mod control;
mod deadline;
pub mod frame;
mod head;
mod memo;
mod receive;
mod send;
mod settings;
mod state;
mod stream;
mod window;

pub use batch::{Plain, follows, may_be_plain};
pub use carried::{Carried, NotRestored, Told};
pub use conn::{Conn, NO_TAG};
pub use frame::ErrorCode;
pub(crate) use head::is_host;
pub use memo::ListId;
pub use send::{Blocked, SMALL_SEND};
pub use stream::StreamKey;

/// Which side of the connection we are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Towards a client: the peer opens streams.
    Server,
    /// Towards a worker: we open streams.
    Client,
}

/// How much of everything a peer gets. Numbers as in the limit table; see [`LimitId`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// L1: streams the peer may have open, and streams we open at most.
    pub max_concurrent_streams: u32,
    /// L2: decoded size and fields of one head.
    pub headers: HeaderLimits,
    /// L3: octets of one header block on the wire; a longer one ends the connection.
    pub block_bytes: u32,
    /// L3: CONTINUATION frames of one header block; more cost the message, [`FLOOD_FACTOR`] times
    /// as many the connection.
    pub continuations: u8,
    /// L3: empty fragments of one header block that goes on.
    pub empty_fragments: u8,
    /// L5: glitches a connection may commit at once.
    pub glitch_burst: u32,
    /// L5: glitches forgiven each second.
    pub glitch_refill: u32,
    /// L6: answers the peer has not drained before reading stops.
    pub answers: u32,
    /// L7: DATA frames in a row that carry nothing and end nothing.
    pub empty_data: u32,
    /// L9: window of a new stream.
    ///
    /// **Units**: octets, as the two below.
    pub stream_window: u32,
    /// L9: what a stream's window may grow to.
    pub stream_window_max: u32,
    /// L9: window of the connection.
    pub connection_window: u32,
    /// L10: a client's preface and first SETTINGS. A server may take its time.
    pub first_settings: Duration,
    /// L10: a header block, from its first octet to its last.
    pub header_block: Duration,
    /// 1xx heads before a response.
    pub informational: u8,
    /// The highest id that a stream of ours may have: the connection is to be replaced in good time.
    pub last_own_id: u32,
    /// Streams we reset whose late frames are ignored; more after a mass reset, for a while.
    pub remembered_resets: u32,
}

impl Limits {
    /// L3: CONTINUATION frames of one header block at which the connection ends.
    pub(crate) fn most_continuations(&self) -> u16 {
        u16::from(self.continuations) * FLOOD_FACTOR as u16
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_concurrent_streams: 10_000,
            headers: HeaderLimits::default(),
            block_bytes: 1024 * 1024,
            // A list of 256 KiB in frames of 16 KiB, and one to spare.
            continuations: 17,
            empty_fragments: 1,
            glitch_burst: 1000,
            glitch_refill: 33,
            answers: 64,
            empty_data: 10,
            stream_window: 64 * 1024,
            stream_window_max: 2 * 1024 * 1024,
            connection_window: 16 * 1024 * 1024,
            first_settings: Duration::from_secs(10),
            header_block: Duration::from_secs(10),
            informational: 8,
            last_own_id: 1 << 30,
            remembered_resets: 100,
        }
    }
}

/// The rows of the limit table that one connection can run into.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LimitId {
    /// Concurrent streams.
    L1,
    /// Decoded header list.
    L2,
    /// Header block on the wire.
    L3,
    /// HPACK table.
    L4,
    /// Glitches.
    L5,
    /// Undrained answers.
    L6,
    /// Empty DATA.
    L7,
    /// WINDOW_UPDATE.
    L8,
    /// Buffered bytes: windows.
    L9,
    /// Time for preface, SETTINGS and header blocks.
    L10,
}

/// Why the whole connection has to end: the caller sends GOAWAY with this code, and closes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnFault {
    /// For the GOAWAY.
    pub code: ErrorCode,
    /// For people.
    pub reason: &'static str,
    /// The limit that was passed, if it was one.
    pub limit: Option<LimitId>,
}

impl ConnFault {
    /// The server answers our preface in HTTP/1: it speaks no HTTP/2 (RFC 9113 §3.3).
    pub const SPEAKS_HTTP1: Self = Self {
        code: ErrorCode::ProtocolError,
        reason: "the server answers HTTP/2 with HTTP/1",
        limit: None,
    };

    pub(crate) fn new(code: ErrorCode, reason: &'static str) -> Self {
        Self { code, reason, limit: None }
    }

    pub(crate) fn protocol(reason: &'static str) -> Self {
        Self::new(ErrorCode::ProtocolError, reason)
    }

    pub(crate) fn frame_size(reason: &'static str) -> Self {
        Self::new(ErrorCode::FrameSizeError, reason)
    }

    pub(crate) fn limit(limit: LimitId, code: ErrorCode, reason: &'static str) -> Self {
        Self { code, reason, limit: Some(limit) }
    }
}

impl fmt::Display for ConnFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.reason)
    }
}

impl std::error::Error for ConnFault {}

/// Why no stream can be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenError {
    /// As many streams are open as the peer (or L1) allows: wait.
    Full,
    /// This connection has used up its stream ids: open another.
    Exhausted,
    /// The peer sent GOAWAY, or we do not open any more: open another.
    Goaway,
}

/// Which part of a message a field section is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadKind {
    /// A request (server role).
    Request,
    /// A 1xx response; another head follows.
    Informational,
    /// A response.
    Response,
    /// What follows a body.
    Trailers,
}

/// What the relay must know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The input is used up.
    More,
    /// A field section that keeps the rules of RFC 9113 §8; it is in the caller's list, unless it
    /// is a repetition.
    Head {
        /// New for a [`HeadKind::Request`].
        key: StreamKey,
        /// What it is.
        kind: HeadKind,
        /// The peer sends nothing after it.
        end_stream: bool,
        /// Where the list may be found again: equal numbers mean equal lists.
        list: Option<ListId>,
        /// The head was seen before under this number and is not in the caller's list:
        /// [`Conn::recall`] puts it there.
        repeated: bool,
    },
    /// A field section over L2 or in too many frames (L3); the caller's list holds what fitted, and
    /// nothing was checked.
    /// A new stream has been opened for it.
    HeadTooLarge {
        /// The stream.
        key: StreamKey,
        /// The peer sends nothing after it.
        end_stream: bool,
    },
    /// A piece of a DATA frame's payload.
    Data {
        /// The stream.
        key: StreamKey,
        /// Where in the input it begins.
        start: usize,
        /// How long it is; 0 only with `end_stream`.
        len: usize,
        /// The nine octets before `start` are this frame's own head in this input, nothing of the
        /// frame was shown before and it has no padding: they may be overwritten with a new head.
        head_in_place: bool,
        /// The peer sends nothing after it.
        end_stream: bool,
    },
    /// A stream is gone, by the peer's RST_STREAM, or by ours for its fault (written already).
    Reset {
        /// Finds nothing any more.
        key: StreamKey,
        /// The caller's.
        tag: u32,
        /// Why.
        code: ErrorCode,
        /// Whether we reset it.
        ours: bool,
    },
    /// More may be sent on one stream, or on any.
    Window(Option<StreamKey>),
    /// The peer opens no more streams and answers none above `last`.
    Goaway {
        /// Of our streams, the last one it will answer.
        last: u32,
        /// Why.
        code: ErrorCode,
    },
    /// The peer's SETTINGS came and are in force.
    Settings,
    /// The answer to a PING of ours.
    Pong([u8; 8]),
}
