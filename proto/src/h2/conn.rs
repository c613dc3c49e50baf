//! The state of one connection, and what its owner asks of it apart from bytes.
//!
//! Receiving is in [`super::receive`], [`super::block`] and [`super::control`], sending in
//! [`super::send`], what has to happen in time in [`super::deadline`].

use std::sync::Arc;

use super::budget::{Budget, HONEST_LIFE};
use super::frame::{self, HEAD_BYTES, MAGIC, MIN_MAX_FRAME, setting};
use super::memo::{ListId, Memo};
use super::settings::PeerSettings;
use super::state::{Block, Deadlines, Reading};
use super::stream::{Absent, Content, Stream, StreamKey, Table};
use super::window::{DEFAULT_WINDOW, ReceiveWindow, SendWindow};
use super::{ConnFault, LimitId, Limits, OpenError, Role};
use crate::Sink;
use crate::fields::Fields;
use crate::hpack::{Decoder, Encoder, TABLE_SIZE};
use crate::time::Time;

/// The tag of a stream that was given none.
pub const NO_TAG: u32 = u32::MAX;

/// One HTTP/2 connection, without its socket.
pub struct Conn {
    pub(super) role: Role,
    /// Shared: a connection that rests is small.
    pub(super) limits: Arc<Limits>,
    /// The instant of the latest call that gave one.
    pub(super) now: Time,
    pub(super) reading: Reading,
    /// The part of a frame head that came before the rest of it.
    pub(super) head: [u8; HEAD_BYTES],
    pub(super) head_len: u8,
    /// The fragments of the header block in progress, then the part of a frame's payload that came
    /// before the rest of it. Empty most of the time.
    pub(super) held: Vec<u8>,
    pub(super) block: Option<Block>,
    pub(super) decoder: Decoder,
    pub(super) encoder: Encoder,
    pub(super) memo: Memo,
    pub(super) table: Table,
    /// Both ends of this stream have closed; it lives until the event that says so is dealt with.
    pub(super) closing: Option<StreamKey>,
    /// Highest id a stream was opened with.
    pub(super) highest: u32,
    pub(super) send_window: SendWindow,
    pub(super) receive_window: ReceiveWindow,
    pub(super) peer: PeerSettings,
    pub(super) budget: Budget,
    /// Answers written since the caller's output was last empty.
    pub(super) answers: u32,
    /// PINGs of ours that are not answered.
    pub(super) pings: u8,
    pub(super) peer_goaway: Option<u32>,
    pub(super) peer_settings_seen: bool,
    pub(super) settings_acknowledged: bool,
    /// HEADERS or DATA came since the caller last took note of it.
    pub(super) heard: bool,
    /// An event of this kind is due: SETTINGS have widened all windows.
    pub(super) windows_grew: bool,
    pub(super) refuse_new: bool,
    /// The caller has said something on it: a head, a reset, a GOAWAY, a PING.
    pub(super) spoken: bool,
    hold_credit: bool,
    /// Boxed: few connections have one.
    pub(super) fault: Option<Box<ConnFault>>,
    pub(super) deadlines: Deadlines,
}

/// What an id on a frame names.
pub(super) enum Target {
    /// An open stream.
    Open(StreamKey),
    /// A stream we reset or never took: the frame was sent before the peer knew.
    Late,
    /// A stream that was not opened yet.
    Idle,
    /// A stream that is closed, as the peer knows.
    Closed,
}

impl Conn {
    /// A connection of which nothing was read or written yet; it owns no heap memory.
    #[must_use]
    pub fn new(role: Role, limits: impl Into<Arc<Limits>>, now: Time) -> Self {
        let limits = limits.into();
        let first_settings = (role == Role::Server).then(|| now + limits.first_settings);
        let deadlines = Deadlines::new(first_settings);
        Self {
            role,
            limits,
            now,
            reading: match role {
                Role::Server => Reading::Magic(0),
                Role::Client => Reading::Head,
            },
            head: [0; HEAD_BYTES],
            head_len: 0,
            held: Vec::new(),
            block: None,
            decoder: Decoder::new(TABLE_SIZE),
            encoder: Encoder::new(),
            memo: Memo::default(),
            table: Table::default(),
            closing: None,
            highest: 0,
            send_window: SendWindow::new(DEFAULT_WINDOW),
            receive_window: ReceiveWindow::new(DEFAULT_WINDOW, DEFAULT_WINDOW, now),
            peer: PeerSettings::default(),
            budget: Budget::new(now),
            answers: 0,
            pings: 0,
            peer_goaway: None,
            peer_settings_seen: false,
            settings_acknowledged: false,
            heard: false,
            windows_grew: false,
            refuse_new: false,
            spoken: false,
            hold_credit: false,
            fault: None,
            deadlines,
        }
    }

    /// Writes our side of the preface: magic (client), SETTINGS, and the connection's window.
    pub fn start(&mut self, out: &mut impl Sink) {
        let limits = &self.limits;
        let list = u32::try_from(limits.headers.max_size).unwrap_or(u32::MAX);
        let role = match self.role {
            Role::Server => (setting::MAX_CONCURRENT_STREAMS, limits.max_concurrent_streams),
            Role::Client => (setting::ENABLE_PUSH, 0),
        };
        if self.role == Role::Client {
            out.put(MAGIC);
        }
        // Table and frame size are the RFC's first values and need no telling.
        let parameters = [
            role,
            (setting::INITIAL_WINDOW_SIZE, limits.stream_window),
            (setting::MAX_HEADER_LIST_SIZE, list),
        ];
        frame::put_settings(out, &parameters);
        // The RFC has no way to begin with less than the default.
        let window = limits.connection_window.max(DEFAULT_WINDOW);
        self.receive_window = ReceiveWindow::new(window, window, self.now);
        if window > DEFAULT_WINDOW {
            frame::put_window_update(out, 0, window - DEFAULT_WINDOW);
        }
    }

    /// Begins with stream 1 as an HTTP/1.1 `Upgrade: h2c` left it (CL-48): the request has been
    /// read to its end, its `HTTP2-Settings` are in `settings`. The peer's magic and SETTINGS
    /// still come.
    ///
    /// # Errors
    /// If the settings are not a SETTINGS payload the peer may send.
    pub fn upgraded(&mut self, settings: &[u8], head: bool) -> Result<StreamKey, ConnFault> {
        debug_assert!(self.role == Role::Server && self.highest == 0, "before the first frame");
        if !settings.len().is_multiple_of(6) {
            return Err(ConnFault::frame_size("HTTP2-Settings are no SETTINGS payload"));
        }
        let encoder = &mut self.encoder;
        self.peer = self.peer.updated(settings, self.role, |size| encoder.set_max_table(size))?;
        let key = self.insert(1, Content::Unknown);
        // The answer to the upgrade went out before.
        self.spoken = true;
        if let Some(stream) = self.table.get_mut(key) {
            stream.remote_open = false;
            stream.remote_head = true;
            stream.head_request = head;
        }
        Ok(key)
    }

    // ---- streams ----

    /// Opens a stream (client role). Its head is to be sent before another one is opened, because
    /// ids must rise on the wire.
    ///
    /// # Errors
    /// If there cannot be one more now, or never again.
    pub fn open(&mut self) -> Result<StreamKey, OpenError> {
        if self.role == Role::Server || self.peer_goaway.is_some() || self.refuse_new {
            return Err(OpenError::Goaway);
        }
        let id = if self.highest == 0 { 1 } else { self.highest + 2 };
        if id > self.limits.last_own_id {
            return Err(OpenError::Exhausted);
        }
        let most = self.peer.max_streams.min(self.limits.max_concurrent_streams);
        if self.streams() >= most as usize {
            return Err(OpenError::Full);
        }
        Ok(self.insert(id, Content::Unknown))
    }

    /// Whether [`Self::open`] would succeed.
    #[must_use]
    pub fn can_open(&self) -> bool {
        let most = self.peer.max_streams.min(self.limits.max_concurrent_streams);
        self.role == Role::Client
            && self.peer_goaway.is_none()
            && !self.refuse_new
            && !self.is_exhausted()
            && self.streams() < most as usize
    }

    /// Whether our stream ids have run out: no stream can be opened on this connection any more.
    #[must_use]
    pub fn is_exhausted(&self) -> bool {
        self.role == Role::Client && self.highest.saturating_add(2) > self.limits.last_own_id
    }

    pub(super) fn insert(&mut self, id: u32, content: Content) -> StreamKey {
        self.highest = id;
        self.budget.streams += 1;
        // RFC 9113 §6.5.3: until the peer acknowledged our SETTINGS it may not know of a smaller
        // window than the default.
        let size = self.limits.stream_window;
        let known = if self.settings_acknowledged { size } else { size.max(DEFAULT_WINDOW) };
        self.table.insert(Stream {
            id,
            tag: NO_TAG,
            send: SendWindow::new(self.peer.initial_window),
            receive: ReceiveWindow::new(known, size, self.now),
            content,
            informational: 0,
            local_open: true,
            remote_open: true,
            local_head: false,
            remote_head: false,
            head_request: false,
            ours: false,
            opened: self.now,
        })
    }

    /// The stream's number on the wire.
    #[must_use]
    pub fn id(&self, key: StreamKey) -> u32 {
        key.id()
    }

    /// The caller's number for the stream; [`NO_TAG`] if none was set or the stream is gone.
    #[must_use]
    pub fn tag(&self, key: StreamKey) -> u32 {
        self.table.get(key).map_or(NO_TAG, |stream| stream.tag)
    }

    /// Sets the caller's number for the stream.
    pub fn set_tag(&mut self, key: StreamKey, tag: u32) {
        if let Some(stream) = self.table.get_mut(key) {
            stream.tag = tag;
        }
    }

    /// The stream's request is a HEAD, so that its response has no content. [`Self::head`] finds
    /// that out by itself.
    pub fn set_head_request(&mut self, key: StreamKey) {
        if let Some(stream) = self.table.get_mut(key) {
            stream.head_request = true;
        }
    }

    /// What is sent next on the stream is an answer of our own (server role), at `now`.
    ///
    /// If the stream is as young as one that a flood resets, its reset will be a glitch although a
    /// head went out before: otherwise whoever gets refused could go on for nothing (L5).
    pub fn answered_by_us(&mut self, key: StreamKey, now: Time) {
        if let Some(stream) = self.table.get_mut(key) {
            stream.ours = now.since(stream.opened) < HONEST_LIFE;
        }
    }

    /// Whether the stream is in the table.
    #[must_use]
    pub fn is_open(&self, key: StreamKey) -> bool {
        self.table.get(key).is_some()
    }

    /// Whether the peer may still send on the stream.
    #[must_use]
    pub fn receives(&self, key: StreamKey) -> bool {
        self.table.get(key).is_some_and(|stream| stream.remote_open)
    }

    /// Whether we may still send on the stream.
    #[must_use]
    pub fn sends(&self, key: StreamKey) -> bool {
        self.table.get(key).is_some_and(|stream| stream.local_open)
    }

    /// Open streams.
    #[must_use]
    pub fn streams(&self) -> usize {
        self.table.len() - usize::from(self.closing.is_some())
    }

    /// The open streams, in no order.
    pub fn keys(&self) -> impl Iterator<Item = StreamKey> {
        self.table.keys().filter(|key| self.closing != Some(*key))
    }

    /// Our streams that a GOAWAY with this last id leaves unanswered: safe to try elsewhere.
    pub fn keys_above(&self, last: u32) -> impl Iterator<Item = StreamKey> {
        self.keys().filter(move |key| key.id() > last)
    }

    /// The highest stream id the peer has used: what a final GOAWAY names.
    #[must_use]
    pub fn highest_peer_stream(&self) -> u32 {
        if self.role == Role::Server { self.highest } else { 0 }
    }

    /// Streams the peer lets us have open.
    #[must_use]
    pub fn peer_max_streams(&self) -> u32 {
        self.peer.max_streams
    }

    /// The largest field section the peer wants to see, as it counts (RFC 9113 §6.5.2).
    #[must_use]
    pub fn peer_max_header_list(&self) -> u32 {
        self.peer.max_header_list
    }

    /// The last stream id of the peer's GOAWAY, if one came.
    #[must_use]
    pub fn is_goaway_received(&self) -> Option<u32> {
        self.peer_goaway
    }

    /// After the final GOAWAY: streams the peer opens from now on are ignored (RFC 9113 §6.8), and
    /// we open none.
    pub fn refuse_new(&mut self, refuse: bool) {
        self.refuse_new = refuse;
    }

    /// Puts a list that this connection keeps into the caller's; false if it is kept no more.
    pub fn recall(&self, list: ListId, into: &mut Fields) -> bool {
        let kept = self.memo.list(list);
        if let Some(kept) = kept {
            into.copy_from(kept);
        }
        kept.is_some()
    }

    /// Changes whenever the encoder's table does: see [`Self::replay`].
    #[must_use]
    pub fn encoder_generation(&self) -> u64 {
        self.encoder.generation()
    }

    // ---- what the peer is about ----

    /// Whether HEADERS or DATA came, on whatever stream, since [`Self::forget_heard`]. gRPC's
    /// servers forgive the PINGs before them.
    #[must_use]
    pub fn has_heard(&self) -> bool {
        self.heard
    }

    /// What came until now has been taken note of.
    pub fn forget_heard(&mut self) {
        self.heard = false;
    }

    // ---- credit ----

    /// The other hop took `bytes` of this stream's payload; `backlog` says that more of it waits
    /// there.
    ///
    /// Credit goes back when half the window has been taken. The window doubles, up to its maximum,
    /// if the peer used up that half fast and nothing waits.
    pub fn drained(&mut self, key: StreamKey, bytes: usize, backlog: bool, out: &mut impl Sink) {
        let Some(stream) = self.table.get_mut(key) else { return };
        // Nothing more comes on it; what an upgrade from HTTP/1 brought never used the window.
        if !stream.remote_open {
            return;
        }
        stream.receive.owe(bytes);
        let max = (!backlog).then_some(self.limits.stream_window_max);
        if let Some(credit) = stream.receive.pay_and_grow(max, self.now) {
            frame::put_window_update(out, stream.id, credit);
        }
    }

    /// Keeps credit of this stream's window back, as far as the window has grown: its receiver is
    /// slow, and memory is short. What the peer knows of cannot be taken away (RFC 9113 §6.9.2), so
    /// it shrinks by and by, with what is drained.
    pub fn shrink_window(&mut self, key: StreamKey) {
        if let Some(stream) = self.table.get_mut(key) {
            stream.receive.shrink(self.limits.stream_window);
        }
    }

    /// While true, the connection's credit is not given back when bytes are read: too much of this
    /// connection is buffered (L9).
    pub fn hold_connection_credit(&mut self, hold: bool, out: &mut impl Sink) {
        self.hold_credit = hold;
        self.pay_connection(out);
    }

    pub(super) fn pay_connection(&mut self, out: &mut impl Sink) {
        if self.hold_credit {
            return;
        }
        if let Some(credit) = self.receive_window.pay() {
            frame::put_window_update(out, 0, credit);
        }
    }

    // ---- limits ----

    /// How many answers (acknowledgements, resets) wait in the caller's output: 0 once the peer
    /// has drained it. What is written later is counted on top (L6).
    pub fn set_answers_backlog(&mut self, waiting: u32) {
        self.answers = waiting;
    }

    /// Octets kept here of a header block, or of another frame, that is not whole yet.
    #[must_use]
    pub fn partial(&self) -> usize {
        self.held.len()
    }

    /// Whether reading should stop until the peer has drained our answers (L6).
    #[must_use]
    pub fn wants_pause(&self) -> bool {
        self.answers > self.limits.answers
    }

    /// Whether three quarters of the glitches are spent (L5): time for a GOAWAY without blame.
    #[must_use]
    pub fn glitches_high(&self) -> bool {
        self.budget.is_high(&self.limits)
    }

    /// The row of the limit table that the connection ended at, for the caller's counters.
    #[must_use]
    pub fn limit_hit(&self) -> Option<LimitId> {
        self.fault.as_deref().and_then(|fault| fault.limit)
    }

    // ---- between receiving and sending ----

    pub(super) fn target(&self, id: u32) -> Target {
        let even = id.is_multiple_of(2);
        let idle = even || id > self.highest;
        match self.table.find(id) {
            Ok(key) => Target::Open(key),
            Err(Absent::Reset) => Target::Late,
            // RFC 9113 §6.8: what we said we would not take.
            Err(Absent::Unknown) if idle && !even && self.ignores_new() => Target::Late,
            Err(Absent::Unknown) if idle => Target::Idle,
            Err(Absent::Unknown) => Target::Closed,
        }
    }

    pub(super) fn ignores_new(&self) -> bool {
        self.refuse_new && self.role == Role::Server
    }

    /// The largest payload we take: we never say anything but the RFC's first value.
    pub(super) fn max_frame(&self) -> u32 {
        MIN_MAX_FRAME
    }

    /// The peer has sent its END_STREAM. If we had sent ours, the stream is closed, but stays until
    /// the event that tells so has been dealt with.
    pub(super) fn remote_ended(&mut self, key: StreamKey) {
        let Some(stream) = self.table.get_mut(key) else { return };
        stream.remote_open = false;
        if !stream.local_open {
            self.closing = Some(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_ids_run_out_at_two_to_the_thirty() {
        let mut conn = Conn::new(Role::Client, Limits::default(), Time::ZERO);
        conn.highest = (1 << 30) - 3;
        assert!(conn.can_open() && !conn.is_exhausted());
        let key = conn.open().unwrap();
        assert_eq!(conn.id(key), (1 << 30) - 1);
        assert!(!conn.can_open() && conn.is_exhausted());
        assert_eq!(conn.open(), Err(OpenError::Exhausted));
    }
}
