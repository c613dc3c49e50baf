//! What the caller sends: heads, frame heads of DATA, resets, GOAWAY, PING.

use super::Role;
use super::conn::Conn;
use super::frame::{self, ErrorCode, FrameHead, HEAD_BYTES, Kind, flag};
use super::stream::StreamKey;
use crate::Sink;
use crate::fields::{Field, Token};

/// A frame kind nobody has defined: peers drop it unread (RFC 9113 §5.5).
const IGNORED_KIND: Kind = Kind::Unknown(0xfb);

/// Why nothing can be sent on a stream right now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blocked {
    /// The stream's own window is used up.
    Stream,
    /// The connection's window is used up.
    Connection,
    /// The stream is gone, or we have ended it.
    Ended,
}

/// Octets below which a part of bulk is not worth a frame.
pub const SMALL_SEND: usize = 1024;

/// What waits is bulk from here on.
const BULK: usize = 4 * SMALL_SEND;

impl Conn {
    /// Sends a head or trailers: HEADERS and, as one unit, the CONTINUATIONs the peer's frame size
    /// makes necessary. Nothing is sent on a stream that we ended or that is gone.
    ///
    /// `scratch` is any reused buffer; it holds the block behind [`HEAD_BYTES`] octets afterwards.
    /// Returned is the table's generation if the block can be sent again with [`Self::replay`].
    pub fn head<'a>(
        &mut self,
        key: StreamKey,
        fields: impl Iterator<Item = Field<'a>>,
        end_stream: bool,
        scratch: &mut Vec<u8>,
        out: &mut impl Sink,
    ) -> Option<u64> {
        let stream = self.table.get_mut(key).filter(|stream| stream.local_open)?;
        scratch.clear();
        scratch.extend_from_slice(&[0; HEAD_BYTES]);
        let generation = self.encoder.generation();
        self.encoder.begin(scratch);
        let resized = scratch.len() > HEAD_BYTES;
        let mut informational = false;
        for field in fields {
            match field.token {
                Token::Status => informational = field.value.starts_with(b"1"),
                Token::Method => stream.head_request = field.value == b"HEAD",
                _ => {}
            }
            self.encoder.field(field, scratch);
        }
        stream.local_head |= !informational;
        let end = if end_stream { flag::END_STREAM } else { 0 };
        put_block(key.id(), end, self.peer.max_frame as usize, scratch, out);
        self.budget.head_sent();
        self.spoken = true;
        if end_stream {
            self.local_ended(key);
        }
        let same = !resized && !informational && generation == self.encoder.generation();
        same.then_some(generation)
    }

    /// Sends a block that [`Self::head`] made earlier for an equal list, if the table has not
    /// changed since. If it has, nothing is sent and the answer is `false`. The caller says what a
    /// request's method was with [`Self::set_head_request`].
    pub fn replay(
        &mut self,
        key: StreamKey,
        (block, generation): (&[u8], u64),
        end_stream: bool,
        scratch: &mut Vec<u8>,
        out: &mut impl Sink,
    ) -> bool {
        if generation != self.encoder.generation() {
            return false;
        }
        let Some(stream) = self.table.get_mut(key).filter(|stream| stream.local_open) else {
            return false;
        };
        stream.local_head = true;
        scratch.clear();
        scratch.extend_from_slice(&[0; HEAD_BYTES]);
        self.encoder.begin(scratch);
        scratch.extend_from_slice(block);
        let end = if end_stream { flag::END_STREAM } else { 0 };
        put_block(key.id(), end, self.peer.max_frame as usize, scratch, out);
        self.budget.head_sent();
        self.spoken = true;
        if end_stream {
            self.local_ended(key);
        }
        true
    }

    /// How many octets of payload may be sent on the stream now, in one frame.
    #[must_use]
    #[inline]
    pub fn data_room(&self, key: StreamKey) -> usize {
        match self.table.get(key) {
            Some(stream) if stream.local_open => {
                stream.send.room().min(self.send_window.room()).min(self.peer.max_frame as usize)
            }
            _ => 0,
        }
    }

    /// How much of a piece, of `waiting` octets in all, is worth a frame now.
    ///
    /// A peer that gives back what it got frame by frame would be kept at tiny frames for ever by
    /// a sender that uses up each small part of a window (the silly window of RFC 9293 §3.8.6.2.1).
    /// So without `small_sends` none is sent of bulk, unless the window can never be more. A caller
    /// allows them first and from time to time: the peer may wait for just that part (contract
    /// CL-38).
    ///
    /// # Errors
    /// What has to grow first.
    pub fn sendable(
        &self,
        key: StreamKey,
        piece: usize,
        waiting: usize,
        small_sends: bool,
    ) -> Result<usize, Blocked> {
        let stream = self.table.get(key).filter(|stream| stream.local_open);
        let Some(stream) = stream else { return Err(Blocked::Ended) };
        let worth = if waiting >= BULK && !small_sends { SMALL_SEND } else { 1 };
        let enough = |room: usize, whole: u32| room >= worth.min(whole as usize / 2).max(1);
        let (own, shared) = (stream.send.room(), self.send_window.room());
        if !enough(own, self.peer.initial_window) {
            return Err(Blocked::Stream);
        }
        if !enough(shared, super::window::DEFAULT_WINDOW) {
            return Err(Blocked::Connection);
        }
        Ok(piece.min(own).min(shared).min(self.peer.max_frame as usize))
    }

    /// What keeps [`Self::data_room`] at 0, if something does.
    #[must_use]
    pub fn blocked(&self, key: StreamKey) -> Option<Blocked> {
        match self.table.get(key) {
            Some(stream) if stream.local_open => {
                if stream.send.room() == 0 {
                    Some(Blocked::Stream)
                } else {
                    (self.send_window.room() == 0).then_some(Blocked::Connection)
                }
            }
            _ => Some(Blocked::Ended),
        }
    }

    /// The head of a DATA frame; the caller sends it and then `len` octets of payload, at most
    /// [`Self::data_room`]. A frame without payload may always be sent.
    ///
    /// On a stream that is gone the head is one that makes the peer drop the payload unread.
    #[inline]
    pub fn data_head(&mut self, key: StreamKey, len: usize, end_stream: bool) -> [u8; HEAD_BYTES] {
        let Some(stream) = self.table.get_mut(key).filter(|stream| stream.local_open) else {
            debug_assert!(false, "DATA on a stream that we ended or that is gone");
            let len = len as u32;
            return FrameHead { len, kind: IGNORED_KIND, flags: 0, stream: 0 }.bytes();
        };
        debug_assert!(len <= self.peer.max_frame as usize, "larger than the peer takes");
        debug_assert!(len == 0 || len <= stream.send.room(), "over the stream's window");
        debug_assert!(len == 0 || len <= self.send_window.room(), "over the connection's window");
        stream.send.charge(len);
        self.send_window.charge(len);
        self.budget.data_sent(len);
        let flags = if end_stream { flag::END_STREAM } else { 0 };
        if end_stream {
            self.local_ended(key);
        }
        FrameHead { len: len as u32, kind: Kind::Data, flags, stream: key.id() }.bytes()
    }

    /// Resets a stream, for a reason of the relay's: not the peer's fault. Late frames on it are
    /// ignored.
    pub fn reset(&mut self, key: StreamKey, code: ErrorCode, out: &mut impl Sink) {
        let closed = self.closing == Some(key);
        if closed {
            self.closing = None;
        }
        let Some(stream) = self.remove_reset(key) else { return };
        self.spoken = true;
        if stream.ours && !closed {
            // The stream was answered at once, and its request goes on all the same.
            self.budget.note(&self.limits, self.now);
        }
        // A stream of ours without a head is still idle to the peer (RFC 9113 §6.4), and a closed
        // one needs no reset.
        if !closed && (self.role == Role::Server || stream.local_head) {
            frame::put_reset(out, stream.id, code);
        }
    }

    /// Sends GOAWAY. `last_stream` is [`Self::highest_peer_stream`], or 2^31-1 as a first warning.
    pub fn goaway(&mut self, last_stream: u32, code: ErrorCode, debug: &[u8], out: &mut impl Sink) {
        self.spoken = true;
        frame::put_goaway(out, last_stream, code, debug);
    }

    /// Sends a PING; [`super::Event::Pong`] will bring the payload back.
    pub fn ping(&mut self, payload: [u8; 8], out: &mut impl Sink) {
        self.spoken = true;
        self.pings = self.pings.saturating_add(1);
        frame::put_ping(out, payload, false);
    }

    fn local_ended(&mut self, key: StreamKey) {
        let Some(stream) = self.table.get_mut(key) else { return };
        stream.local_open = false;
        if !stream.remote_open {
            self.remove_ended(key);
        }
    }
}

/// Writes the block that lies behind [`HEAD_BYTES`] free octets in `scratch`.
fn put_block(stream: u32, end: u8, max_frame: usize, scratch: &mut [u8], out: &mut impl Sink) {
    let block = scratch.len() - HEAD_BYTES;
    let first = block.min(max_frame);
    let done = if first == block { flag::END_HEADERS } else { 0 };
    let head = FrameHead { len: first as u32, kind: Kind::Headers, flags: end | done, stream };
    scratch[..HEAD_BYTES].copy_from_slice(&head.bytes());
    let (frame, rest) = scratch.split_at(HEAD_BYTES + first);
    out.put(frame);
    let parts = rest.len().div_ceil(max_frame);
    for (n, part) in rest.chunks(max_frame).enumerate() {
        let flags = if n + 1 == parts { flag::END_HEADERS } else { 0 };
        let (len, kind) = (part.len() as u32, Kind::Continuation);
        out.put(&FrameHead { len, kind, flags, stream }.bytes());
        out.put(part);
    }
}
