//! The protocol state of a hop, with the same methods for the relay whatever the protocol.
//!
//! The methods are matches, and no trait object is used: the HTTP/2 arm costs what the call itself
//! costs.

use ringway_proto::Sink;
use ringway_proto::fields::{Field, Fields};
use ringway_proto::h2::{self, Blocked, ConnFault, ErrorCode, ListId, OpenError, StreamKey};
use ringway_proto::time::Time;
use ringway_proto::trailer::may_trail;

use super::h1::H1;
use crate::message::Speaks;
use crate::metrics::HttpVersion;

/// The protocol state of one connection.
#[expect(clippy::large_enum_variant, reason = "a hop is boxed itself; HTTP/2's frames come often")]
pub(super) enum Link {
    H2(h2::Conn),
    H1(Box<H1>),
}

impl Link {
    // ---- streams ----

    pub(super) fn open(&mut self) -> Result<StreamKey, OpenError> {
        match self {
            Self::H2(h2) => h2.open(),
            Self::H1(h1) => h1.open(),
        }
    }

    /// Whether [`Self::open`] would succeed on an HTTP/2 connection; false for HTTP/1.
    pub(super) fn can_open(&self) -> bool {
        match self {
            Self::H2(h2) => h2.can_open(),
            Self::H1(_) => false,
        }
    }

    /// Whether the connection can carry more requests, and none is under way on it now.
    pub(super) fn is_reusable(&self) -> bool {
        match self {
            Self::H2(h2) => h2.streams() == 0 && (h2.can_open() || h2.peer_max_streams() == 0),
            Self::H1(h1) => h1.slot == h2::NO_TAG && h1.is_reusable(),
        }
    }

    /// The protocol that a tunnel's clients have to speak.
    pub(super) fn clients(&self) -> Speaks {
        match self {
            Self::H2(_) => Speaks::Http2,
            Self::H1(h1) if h1.unspoken.is_some() => Speaks::Any,
            Self::H1(_) => Speaks::Http1,
        }
    }

    /// Whether this is a tunnel on which nothing was said, so that it can speak either protocol.
    pub(super) fn is_unspoken(&self) -> bool {
        self.clients() == Speaks::Any
    }

    /// Whether no stream can be opened on the connection any more.
    pub(super) fn is_spent(&self) -> bool {
        match self {
            Self::H2(h2) => h2.is_goaway_received().is_some() || h2.is_exhausted(),
            Self::H1(_) => false,
        }
    }

    /// Whether no stream can be opened any more because the stream ids have run out.
    pub(super) fn is_exhausted(&self) -> bool {
        match self {
            Self::H2(h2) => h2.is_goaway_received().is_none() && h2.is_exhausted(),
            Self::H1(_) => false,
        }
    }

    /// Whether this is a client's connection on which, as far as is known here, nothing was said
    /// but what the protocol says by itself.
    pub(super) fn is_unanswered(&self) -> bool {
        match self {
            Self::H2(h2) => h2.is_unanswered(),
            Self::H1(h1) => h1.is_in_first_exchange(),
        }
    }

    /// The slot of the stream's exchange.
    pub(super) fn tag(&self, key: StreamKey) -> u32 {
        match self {
            Self::H2(h2) => h2.tag(key),
            Self::H1(h1) => h1.tag(key),
        }
    }

    pub(super) fn set_tag(&mut self, key: StreamKey, slot: u32) {
        match self {
            Self::H2(h2) => h2.set_tag(key, slot),
            Self::H1(h1) => h1.set_tag(key, slot),
        }
    }

    /// The slots of all open streams' exchanges.
    pub(super) fn tags(&self) -> Vec<u32> {
        match self {
            Self::H2(h2) => h2.keys().map(|key| h2.tag(key)).collect(),
            Self::H1(h1) => Some(h1.slot).filter(|slot| *slot != h2::NO_TAG).into_iter().collect(),
        }
    }

    /// Our streams that a GOAWAY with this last id leaves unanswered.
    pub(super) fn keys_above(&self, last: u32) -> Vec<StreamKey> {
        match self {
            Self::H2(h2) => h2.keys_above(last).collect(),
            Self::H1(_) => Vec::new(),
        }
    }

    /// Open streams.
    pub(super) fn streams(&self) -> usize {
        match self {
            Self::H2(h2) => h2.streams(),
            Self::H1(h1) => usize::from(h1.slot != h2::NO_TAG),
        }
    }

    // ---- heads ----

    /// Sends a head or trailers; see [`h2::Conn::head`].
    pub(super) fn head<'a>(
        &mut self,
        key: StreamKey,
        fields: impl Iterator<Item = Field<'a>> + Clone,
        end: bool,
        scratch: &mut Vec<u8>,
        out: &mut impl Sink,
    ) -> Option<u64> {
        match self {
            Self::H2(h2) => h2.head(key, fields, end, scratch, out),
            Self::H1(h1) => {
                h1.head(fields, end, out);
                None
            }
        }
    }

    /// An answer of ours comes next, and no more than `most` bytes of its request will be read. If
    /// the client of an HTTP/1 connection has announced more, the connection ends behind the
    /// answer, and the answer says so.
    pub(super) fn will_discard(&mut self, most: u64) {
        if let Self::H1(h1) = self
            && h1.codec.announced() > most
        {
            h1.codec.close_after();
        }
    }

    /// Sends a head again as it was; see [`h2::Conn::replay`].
    pub(super) fn replay(
        &mut self,
        key: StreamKey,
        block: (&[u8], u64),
        end: bool,
        scratch: &mut Vec<u8>,
        out: &mut impl Sink,
    ) -> bool {
        match self {
            Self::H2(h2) => h2.replay(key, block, end, scratch, out),
            Self::H1(_) => false,
        }
    }

    /// The state of the encoder. A kept head may be sent again only if it was made in this state.
    pub(super) fn encoder_generation(&self) -> u64 {
        match self {
            Self::H2(h2) => h2.encoder_generation(),
            Self::H1(_) => 0,
        }
    }

    pub(super) fn recall(&self, list: ListId, into: &mut Fields) -> bool {
        match self {
            Self::H2(h2) => h2.recall(list, into),
            Self::H1(_) => false,
        }
    }

    /// The next answer on the stream is our own; see [`h2::Conn::answered_by_us`].
    pub(super) fn answered_by_us(&mut self, key: StreamKey, now: Time) {
        match self {
            Self::H2(h2) => h2.answered_by_us(key, now),
            // HTTP/1 has no resets.
            Self::H1(_) => {}
        }
    }

    /// The stream's request is a HEAD.
    pub(super) fn set_head_request(&mut self, key: StreamKey) {
        match self {
            Self::H2(h2) => h2.set_head_request(key),
            Self::H1(_) => {}
        }
    }

    // ---- DATA ----

    /// Whether the peer takes the connection's end for the end of our message.
    pub(super) fn is_open_ended(&self) -> bool {
        match self {
            Self::H2(_) => false,
            Self::H1(h1) => h1.codec.is_open_ended(),
        }
    }

    /// How much may be sent on the stream now, in one frame.
    pub(super) fn data_room(&self, key: StreamKey) -> usize {
        match self {
            Self::H2(h2) => h2.data_room(key),
            Self::H1(_) => usize::MAX,
        }
    }

    /// How much of a piece is worth a frame now; see [`h2::Conn::sendable`].
    pub(super) fn sendable(
        &self,
        key: StreamKey,
        piece: usize,
        waiting: usize,
        small_sends: bool,
    ) -> Result<usize, Blocked> {
        match self {
            Self::H2(h2) => h2.sendable(key, piece, waiting, small_sends),
            Self::H1(_) => Ok(piece),
        }
    }

    /// Writes the framing before a piece of payload; [`Self::end_data`] writes that behind the last
    /// one. False if the body is longer than its head said: then nothing of the piece may be sent.
    pub(super) fn put_data(
        &mut self,
        key: StreamKey,
        len: usize,
        end: bool,
        out: &mut impl Sink,
    ) -> bool {
        match self {
            Self::H2(h2) => {
                out.put(&h2.data_head(key, len, end));
                true
            }
            Self::H1(h1) => h1.put_data(len, end, out),
        }
    }

    /// Writes the framing behind the last piece; false if the body is shorter than its head said.
    pub(super) fn end_data(&mut self, out: &mut impl Sink) -> bool {
        match self {
            // END_STREAM was in the frame's head.
            Self::H2(_) => true,
            Self::H1(h1) => h1.codec.finish(None, out).is_ok(),
        }
    }

    /// Sends trailers, without those that come too late; see [`Self::head`].
    pub(super) fn trailers(
        &mut self,
        key: StreamKey,
        fields: &Fields,
        scratch: &mut Vec<u8>,
        out: &mut impl Sink,
    ) -> Option<u64> {
        match self {
            Self::H2(h2) => {
                if !fields.iter().any(|field| may_trail(&field)) {
                    // No field is left that may be sent as a trailer: the message ends without
                    // trailers.
                    out.put(&h2.data_head(key, 0, true));
                    return None;
                }
                h2.head(key, fields.iter().filter(may_trail), true, scratch, out)
            }
            Self::H1(h1) => {
                // The body ended as announced, which the reader has seen, so that this cannot fail.
                let _ = h1.codec.finish(Some(fields), out);
                None
            }
        }
    }

    /// The other hop took payload of this stream: its sender may send more, and may be given a larger
    /// window if that `grows`.
    pub(super) fn drained(&mut self, key: StreamKey, len: usize, grows: bool, out: &mut impl Sink) {
        match self {
            Self::H2(h2) => h2.drained(key, len, !grows, out),
            Self::H1(_) => {}
        }
    }

    /// The stream gets no more credit than its window began with; see [`h2::Conn::shrink_window`].
    pub(super) fn shrink_window(&mut self, key: StreamKey) {
        if let Self::H2(h2) = self {
            h2.shrink_window(key);
        }
    }

    // ---- the connection ----

    /// The protocol version that exchanges are counted as, and whether the one under way asks for
    /// another protocol.
    pub(super) fn speaks(&self) -> (HttpVersion, bool) {
        match self {
            Self::H2(_) => (HttpVersion::H2, false),
            Self::H1(h1) => h1.speaks(),
        }
    }

    /// Whether the connection ends with the exchange under way.
    pub(super) fn ends_with_exchange(&self) -> bool {
        match self {
            Self::H2(_) => false,
            Self::H1(h1) => !h1.codec.keeps_alive(),
        }
    }

    pub(super) fn reset(&mut self, key: StreamKey, code: ErrorCode, out: &mut impl Sink) {
        match self {
            Self::H2(h2) => h2.reset(key, code, out),
            Self::H1(_) => {}
        }
    }

    pub(super) fn goaway(&mut self, last: u32, code: ErrorCode, text: &[u8], out: &mut impl Sink) {
        match self {
            Self::H2(h2) => h2.goaway(last, code, text, out),
            Self::H1(_) => {}
        }
    }

    pub(super) fn ping(&mut self, payload: [u8; 8], out: &mut impl Sink) {
        match self {
            Self::H2(h2) => h2.ping(payload, out),
            Self::H1(_) => {}
        }
    }

    /// The peer's highest stream id, which a final GOAWAY names.
    pub(super) fn highest_peer_stream(&self) -> u32 {
        match self {
            Self::H2(h2) => h2.highest_peer_stream(),
            Self::H1(_) => 0,
        }
    }

    pub(super) fn refuse_new(&mut self, refuse: bool) {
        match self {
            Self::H2(h2) => h2.refuse_new(refuse),
            Self::H1(_) => {}
        }
    }

    /// Sets how many answers wait in the output, once they are fewer.
    pub(super) fn set_answers_backlog(&mut self, waiting: u32) {
        match self {
            Self::H2(h2) => h2.set_answers_backlog(waiting),
            Self::H1(_) => {}
        }
    }

    /// Bytes kept here of what is not whole yet: a head, or another frame that is looked at whole.
    pub(super) fn partial(&self) -> usize {
        match self {
            Self::H2(h2) => h2.partial(),
            Self::H1(h1) => h1.codec.held(),
        }
    }

    /// Reading should stop until the peer has taken our answers.
    pub(super) fn wants_pause(&self) -> bool {
        match self {
            Self::H2(h2) => h2.wants_pause(),
            Self::H1(_) => false,
        }
    }

    /// Most of the connection's suspicious frames are spent.
    pub(super) fn glitches_high(&self) -> bool {
        match self {
            Self::H2(h2) => h2.glitches_high(),
            Self::H1(_) => false,
        }
    }

    /// When [`Self::expired`] has to be asked.
    pub(super) fn deadline(&self) -> Option<Time> {
        match self {
            Self::H2(h2) => h2.deadline(),
            Self::H1(_) => None,
        }
    }

    /// Whether HEADERS or DATA came; see [`h2::Conn::has_heard`].
    pub(super) fn has_heard(&self) -> bool {
        match self {
            Self::H2(h2) => h2.has_heard(),
            Self::H1(_) => false,
        }
    }

    pub(super) fn forget_heard(&mut self) {
        if let Self::H2(h2) = self {
            h2.forget_heard();
        }
    }

    /// The connection is read again. Nothing is overdue, because it may have come while nobody
    /// read.
    pub(super) fn read_again(&mut self, now: Time) {
        if let Self::H2(h2) = self {
            h2.read_again(now);
        }
    }

    pub(super) fn expired(&mut self, now: Time) -> Result<(), ConnFault> {
        match self {
            Self::H2(h2) => h2.expired(now),
            Self::H1(_) => Ok(()),
        }
    }
}
