//! What a hop speaks: one face for the relay, whatever the protocol.
//!
//! A match and no trait object: the HTTP/2 arm costs what the call itself costs.

use ringway_proto::Sink;
use ringway_proto::fields::{Field, Fields};
use ringway_proto::h2::frame::HEAD_BYTES;
use ringway_proto::h2::{self, Blocked, ConnFault, ErrorCode, ListId, OpenError, StreamKey};
use ringway_proto::time::Time;

/// The protocol state of one connection.
pub(crate) enum Link {
    H2(h2::Conn),
}

impl Link {
    // ---- streams ----

    pub(crate) fn open(&mut self) -> Result<StreamKey, OpenError> {
        match self {
            Self::H2(h2) => h2.open(),
        }
    }

    /// Whether [`Self::open`] would succeed.
    pub(crate) fn can_open(&self) -> bool {
        match self {
            Self::H2(h2) => h2.can_open(),
        }
    }

    /// The slot of the stream's exchange.
    pub(crate) fn tag(&self, key: StreamKey) -> u32 {
        match self {
            Self::H2(h2) => h2.tag(key),
        }
    }

    pub(crate) fn set_tag(&mut self, key: StreamKey, slot: u32) {
        match self {
            Self::H2(h2) => h2.set_tag(key, slot),
        }
    }

    /// The slots of all open streams' exchanges.
    pub(crate) fn tags(&self) -> Vec<u32> {
        match self {
            Self::H2(h2) => h2.keys().map(|key| h2.tag(key)).collect(),
        }
    }

    /// Our streams that a GOAWAY with this last id leaves unanswered.
    pub(crate) fn keys_above(&self, last: u32) -> Vec<StreamKey> {
        match self {
            Self::H2(h2) => h2.keys_above(last).collect(),
        }
    }

    /// Open streams.
    pub(crate) fn streams(&self) -> usize {
        match self {
            Self::H2(h2) => h2.streams(),
        }
    }

    // ---- heads ----

    /// Sends a head or trailers; see [`h2::Conn::head`].
    pub(crate) fn head<'a>(
        &mut self,
        key: StreamKey,
        fields: impl Iterator<Item = Field<'a>>,
        end: bool,
        scratch: &mut Vec<u8>,
        out: &mut impl Sink,
    ) -> Option<u64> {
        match self {
            Self::H2(h2) => h2.head(key, fields, end, scratch, out),
        }
    }

    /// Sends a head again as it was; see [`h2::Conn::replay`].
    pub(crate) fn replay(
        &mut self,
        key: StreamKey,
        block: (&[u8], u64),
        end: bool,
        scratch: &mut Vec<u8>,
        out: &mut impl Sink,
    ) -> bool {
        match self {
            Self::H2(h2) => h2.replay(key, block, end, scratch, out),
        }
    }

    /// What a head that is sent again must have been made under.
    pub(crate) fn encoder_generation(&self) -> u64 {
        match self {
            Self::H2(h2) => h2.encoder_generation(),
        }
    }

    pub(crate) fn recall(&self, list: ListId, into: &mut Fields) -> bool {
        match self {
            Self::H2(h2) => h2.recall(list, into),
        }
    }

    /// The stream's request is a HEAD.
    pub(crate) fn set_head_request(&mut self, key: StreamKey) {
        match self {
            Self::H2(h2) => h2.set_head_request(key),
        }
    }

    // ---- DATA ----

    /// How much may be sent on the stream now, in one frame.
    pub(crate) fn data_room(&self, key: StreamKey) -> usize {
        match self {
            Self::H2(h2) => h2.data_room(key),
        }
    }

    /// How much of a piece is worth a frame now; see [`h2::Conn::sendable`].
    pub(crate) fn sendable(
        &self,
        key: StreamKey,
        piece: usize,
        waiting: usize,
        crumbs: bool,
    ) -> Result<usize, Blocked> {
        match self {
            Self::H2(h2) => h2.sendable(key, piece, waiting, crumbs),
        }
    }

    /// What goes before a piece of payload.
    pub(crate) fn data_head(&mut self, key: StreamKey, len: usize, end: bool) -> [u8; HEAD_BYTES] {
        match self {
            Self::H2(h2) => h2.data_head(key, len, end),
        }
    }

    /// The other hop took payload of this stream: its sender may send more.
    pub(crate) fn drained(
        &mut self,
        key: StreamKey,
        len: usize,
        backlog: bool,
        out: &mut impl Sink,
    ) {
        match self {
            Self::H2(h2) => h2.drained(key, len, backlog, out),
        }
    }

    /// Whether windows may grow.
    pub(crate) fn allow_growth(&mut self, allowed: bool) {
        match self {
            Self::H2(h2) => h2.allow_growth(allowed),
        }
    }

    /// Too much of this connection is buffered, or no longer.
    pub(crate) fn hold_connection_credit(&mut self, hold: bool, out: &mut impl Sink) {
        match self {
            Self::H2(h2) => h2.hold_connection_credit(hold, out),
        }
    }

    // ---- the connection ----

    pub(crate) fn reset(&mut self, key: StreamKey, code: ErrorCode, out: &mut impl Sink) {
        match self {
            Self::H2(h2) => h2.reset(key, code, out),
        }
    }

    pub(crate) fn goaway(&mut self, last: u32, code: ErrorCode, text: &[u8], out: &mut impl Sink) {
        match self {
            Self::H2(h2) => h2.goaway(last, code, text, out),
        }
    }

    pub(crate) fn ping(&mut self, payload: [u8; 8], out: &mut impl Sink) {
        match self {
            Self::H2(h2) => h2.ping(payload, out),
        }
    }

    /// What a final GOAWAY names.
    pub(crate) fn highest_peer_stream(&self) -> u32 {
        match self {
            Self::H2(h2) => h2.highest_peer_stream(),
        }
    }

    pub(crate) fn refuse_new(&mut self, refuse: bool) {
        match self {
            Self::H2(h2) => h2.refuse_new(refuse),
        }
    }

    /// Answers that wait in the output, once they are fewer.
    pub(crate) fn set_answers_backlog(&mut self, waiting: u32) {
        match self {
            Self::H2(h2) => h2.set_answers_backlog(waiting),
        }
    }

    /// Reading should stop until the peer has taken our answers.
    pub(crate) fn wants_pause(&self) -> bool {
        match self {
            Self::H2(h2) => h2.wants_pause(),
        }
    }

    /// Most of the connection's suspicious frames are spent.
    pub(crate) fn glitches_high(&self) -> bool {
        match self {
            Self::H2(h2) => h2.glitches_high(),
        }
    }

    /// When [`Self::expired`] has to be asked.
    pub(crate) fn deadline(&self) -> Option<Time> {
        match self {
            Self::H2(h2) => h2.deadline(),
        }
    }

    pub(crate) fn expired(&mut self, now: Time) -> Result<(), ConnFault> {
        match self {
            Self::H2(h2) => h2.expired(now),
        }
    }
}
