//! Received bytes to events: framing, and DATA. Header blocks are in [`super::block`], the other
//! frames in [`super::control`].

use super::conn::{Conn, Target};
use super::frame::{self, ErrorCode, FrameHead, HEAD_BYTES, Kind, MAGIC, flag};
use super::state::{DataFrame, Reading};
use super::stream::{Content, StreamKey};
use super::{ConnFault, Event, Role};
use crate::Sink;
use crate::fields::Fields;
use crate::time::Time;

/// Capacity that [`Conn::held`] keeps between frames.
const HELD_KEPT: usize = 512;

/// The caller's side of one [`Conn::next`].
pub(super) struct Turn<'a, 'b, S> {
    input: &'a [u8],
    pos: &'b mut usize,
    pub(super) fields: &'b mut Fields,
    pub(super) out: &'b mut S,
}

impl<'a, S> Turn<'a, '_, S> {
    fn rest(&self) -> &'a [u8] {
        &self.input[*self.pos..]
    }

    fn take(&mut self, most: usize) -> &'a [u8] {
        let rest = self.rest();
        let taken = &rest[..most.min(rest.len())];
        *self.pos += taken.len();
        taken
    }
}

/// What a step of reading came to.
pub(super) enum Step {
    /// No event: go on.
    On,
    /// Something to tell.
    Tell(Event),
    /// Nothing more to be done with this input.
    Starved,
}

pub(super) type Read = Result<Step, ConnFault>;

impl Conn {
    /// Reads from `input[*pos..]` up to the next thing the relay must know; [`Event::More`] says
    /// that all of it was used. Call it with the same input and position until then.
    ///
    /// Answers that the protocol asks for are written to `out`. After a head, `fields` holds it.
    ///
    /// # Errors
    /// The connection has to end; every later call says the same.
    pub fn next(
        &mut self,
        input: &[u8],
        pos: &mut usize,
        fields: &mut Fields,
        out: &mut impl Sink,
        now: Time,
    ) -> Result<Event, ConnFault> {
        if let Some(fault) = &self.fault {
            return Err(**fault);
        }
        self.now = self.now.max(now);
        if let Some(key) = self.closing.take() {
            self.remove_ended(key);
        }
        let result = self.advance(&mut Turn { input, pos, fields, out });
        if let Err(fault) = result {
            self.fault = Some(Box::new(fault));
        }
        result
    }

    fn advance(&mut self, turn: &mut Turn<'_, '_, impl Sink>) -> Result<Event, ConnFault> {
        loop {
            if std::mem::take(&mut self.windows_grew) {
                return Ok(Event::Window(None));
            }
            let step = match self.reading {
                Reading::Head => self.read_head(turn)?,
                Reading::Data(data) => self.read_data(data, turn),
                Reading::Payload(head) => self.read_payload(head, turn)?,
                Reading::PadLength(data) => self.read_pad_length(data, turn)?,
                Reading::Skip(left) => self.skip(left, turn),
                Reading::Magic(seen) => self.read_magic(seen, turn)?,
            };
            match step {
                Step::On => {}
                Step::Tell(event) => return Ok(event),
                Step::Starved => {
                    self.watch_block();
                    return Ok(Event::More);
                }
            }
        }
    }

    /// Whatever part of a header block came, or of another frame that is kept until it is whole,
    /// the rest has to come in time (L10).
    fn watch_block(&mut self) {
        if self.in_block() || !self.held.is_empty() {
            self.deadlines.block_waits_until(self.now + self.limits.header_block);
        }
    }

    /// Whether a header block has begun and is not whole.
    pub(super) fn in_block(&self) -> bool {
        let in_headers =
            matches!(self.reading, Reading::Payload(head) if head.kind == Kind::Headers);
        self.block.is_some() || in_headers
    }

    fn read_magic(&mut self, seen: u8, turn: &mut Turn<'_, '_, impl Sink>) -> Read {
        let expected = &MAGIC[seen as usize..];
        let got = turn.take(expected.len());
        if got != &expected[..got.len()] {
            return Err(ConnFault::protocol("not the HTTP/2 preface"));
        }
        if got.len() < expected.len() {
            self.reading = Reading::Magic(seen + got.len() as u8);
            return Ok(Step::Starved);
        }
        self.reading = Reading::Head;
        Ok(Step::On)
    }

    fn skip(&mut self, left: u32, turn: &mut Turn<'_, '_, impl Sink>) -> Step {
        let left = left - turn.take(left as usize).len() as u32;
        if left > 0 {
            self.reading = Reading::Skip(left);
            return Step::Starved;
        }
        self.reading = Reading::Head;
        Step::On
    }

    fn read_head(&mut self, turn: &mut Turn<'_, '_, impl Sink>) -> Read {
        if self.head_len == 0
            && let Some(bytes) = turn.rest().first_chunk::<HEAD_BYTES>()
        {
            *turn.pos += HEAD_BYTES;
            return self.begin(FrameHead::parse(*bytes), true, turn);
        }
        let have = self.head_len as usize;
        let part = turn.take(HEAD_BYTES - have);
        self.head[have..have + part.len()].copy_from_slice(part);
        if have + part.len() < HEAD_BYTES {
            self.head_len += part.len() as u8;
            return Ok(Step::Starved);
        }
        self.head_len = 0;
        self.begin(FrameHead::parse(self.head), false, turn)
    }

    /// A frame begins: everything that its head alone tells.
    fn begin(
        &mut self,
        head: FrameHead,
        in_place: bool,
        turn: &mut Turn<'_, '_, impl Sink>,
    ) -> Read {
        if head.len > self.max_frame() {
            // The octets `HTTP/`, where the length, kind and flags of a SETTINGS frame should be.
            let told = (head.len, head.kind, head.flags);
            let is_http1 = told == (0x48_5454, Kind::Unknown(b'P'), b'/');
            if is_http1 && self.role == Role::Client && !self.peer_settings_seen {
                return Err(ConnFault::SPEAKS_HTTP1);
            }
            return Err(ConnFault::frame_size("frame larger than we allowed"));
        }
        if let Some(block) = &self.block
            && (head.kind != Kind::Continuation || head.stream != block.stream)
        {
            return Err(ConnFault::protocol("a frame inside a header block"));
        }
        // RFC 9113 §3.4: SETTINGS first, and they cannot be an acknowledgement of ours.
        if !self.peer_settings_seen && (head.kind != Kind::Settings || head.has(flag::ACK)) {
            return Err(ConnFault::protocol("the first frame is not SETTINGS"));
        }
        match head.kind {
            Kind::Data => return self.begin_data(head, in_place, turn),
            Kind::Unknown(_) => {
                self.budget.glitch(&self.limits, self.now)?;
                self.reading = Reading::Skip(head.len);
                return Ok(Step::On);
            }
            Kind::Headers => self.check_headers(head)?,
            Kind::Continuation => self.check_continuation(head)?,
            Kind::Priority => return self.begin_priority(head, turn),
            Kind::RstStream => self.check_on_stream(head, 4)?,
            // RFC 9113 §6.6, §8.4: clients never push, and we told servers not to.
            Kind::PushPromise => return Err(ConnFault::protocol("PUSH_PROMISE")),
            Kind::WindowUpdate if head.stream == 0 => check_size(head.len == 4)?,
            Kind::WindowUpdate => self.check_on_stream(head, 4)?,
            Kind::Settings if head.has(flag::ACK) => check_connection(head, head.len == 0)?,
            Kind::Settings => check_connection(head, head.len.is_multiple_of(6))?,
            Kind::Ping => check_connection(head, head.len == 8)?,
            Kind::Goaway => check_connection(head, head.len >= 8)?,
        }
        self.reading = Reading::Payload(head);
        Ok(Step::On)
    }

    fn check_on_stream(&self, head: FrameHead, size: u32) -> Result<(), ConnFault> {
        check_size(head.len == size)?;
        if matches!(self.target(head.stream), Target::Idle) {
            return Err(ConnFault::protocol("a frame on an idle stream"));
        }
        Ok(())
    }

    /// Reads the payload of a frame that is looked at whole, in the input if it lies there.
    fn read_payload(&mut self, head: FrameHead, turn: &mut Turn<'_, '_, impl Sink>) -> Read {
        let block = self.block.as_ref().map_or(0, |block| block.len);
        let have = self.held.len() - block;
        let need = head.len as usize - have;
        let part = turn.take(need);
        if part.len() < need {
            self.held.extend_from_slice(part);
            return Ok(Step::Starved);
        }
        self.reading = Reading::Head;
        if head.kind == Kind::Continuation {
            self.held.extend_from_slice(part);
            return self.continuation(head, turn);
        }
        if have == 0 {
            return self.whole(head, part, turn);
        }
        let mut payload = std::mem::take(&mut self.held);
        payload.extend_from_slice(part);
        let step = self.whole(head, &payload, turn);
        if self.block.is_none() {
            self.give_back(payload);
            self.deadlines.block_complete();
        }
        step
    }

    /// Keeps the memory of a buffer that is no longer needed, if it is little.
    pub(super) fn give_back(&mut self, mut buffer: Vec<u8>) {
        if buffer.capacity() <= HELD_KEPT {
            buffer.clear();
            self.held = buffer;
        }
    }

    fn whole(
        &mut self,
        head: FrameHead,
        payload: &[u8],
        turn: &mut Turn<'_, '_, impl Sink>,
    ) -> Read {
        match head.kind {
            Kind::Headers => self.headers(head, payload, turn),
            Kind::Priority => self.priority(head, payload, turn),
            Kind::RstStream => self.rst_stream(head, ErrorCode::of(word(payload))),
            Kind::Settings if head.has(flag::ACK) => self.settings_ack(),
            Kind::Settings => self.settings(payload, turn),
            Kind::Ping => self.pinged(head, payload, turn),
            Kind::Goaway => Ok(self.goaway_received(payload)),
            Kind::WindowUpdate => self.window_update(head.stream, word(payload), turn),
            // The others never get here: see `begin` and `read_payload`.
            Kind::Data | Kind::PushPromise | Kind::Continuation | Kind::Unknown(_) => Ok(Step::On),
        }
    }

    /// A fault of one stream: RST_STREAM, and the relay is told.
    pub(super) fn stream_fault(
        &mut self,
        key: StreamKey,
        code: ErrorCode,
        turn: &mut Turn<'_, '_, impl Sink>,
    ) -> Read {
        self.answer_reset(key.id(), code, turn)?;
        let Some(stream) = self.remove_reset(key) else { return Ok(Step::On) };
        Ok(Step::Tell(Event::Reset { key, tag: stream.tag, code, ours: true }))
    }

    /// Resets a stream for a fault of the peer's: one glitch (CVE-2025-8671), one answer.
    pub(super) fn answer_reset(
        &mut self,
        id: u32,
        code: ErrorCode,
        turn: &mut Turn<'_, '_, impl Sink>,
    ) -> Result<(), ConnFault> {
        self.budget.glitch(&self.limits, self.now)?;
        self.answers = self.answers.saturating_add(1);
        frame::put_reset(turn.out, id, code);
        Ok(())
    }

    // ---- DATA ----

    fn begin_data(
        &mut self,
        head: FrameHead,
        head_in_place: bool,
        turn: &mut Turn<'_, '_, impl Sink>,
    ) -> Read {
        if head.stream == 0 {
            return Err(ConnFault::protocol("DATA on stream 0"));
        }
        self.heard = true;
        let padded = head.has(flag::PADDED);
        check_size(!padded || head.len > 0)?;
        let target = self.target(head.stream);
        if matches!(target, Target::Idle) {
            return Err(ConnFault::protocol("DATA on an idle stream"));
        }
        // RFC 9113 §6.9: the connection's window is charged, and its credit given back, whatever
        // becomes of the frame.
        if !self.receive_window.charge(head.len) {
            return Err(ConnFault::new(
                ErrorCode::FlowControlError,
                "over the connection's window",
            ));
        }
        self.receive_window.owe(head.len as usize);
        self.pay_connection(turn.out);
        let Target::Open(key) = target else {
            self.reading = Reading::Skip(head.len);
            if matches!(target, Target::Closed) {
                self.answer_reset(head.stream, ErrorCode::StreamClosed, turn)?;
            }
            return Ok(Step::On);
        };
        let end_stream = head.has(flag::END_STREAM);
        let data = DataFrame { key, left: head.len, padding: 0, end_stream, head_in_place };
        let Some(stream) = self.table.get_mut(key) else { return Ok(Step::On) };
        let fault = if !stream.remote_open {
            ErrorCode::StreamClosed
        } else if !stream.remote_head {
            // RFC 9113 §8.1: a message begins with its head.
            ErrorCode::ProtocolError
        } else if !stream.receive.charge(head.len) {
            ErrorCode::FlowControlError
        } else if padded {
            self.reading = Reading::PadLength(data);
            return Ok(Step::On);
        } else {
            return self.admit(data, turn);
        };
        self.reading = Reading::Skip(head.len);
        self.stream_fault(key, fault, turn)
    }

    fn read_pad_length(&mut self, data: DataFrame, turn: &mut Turn<'_, '_, impl Sink>) -> Read {
        let &[padding] = turn.take(1) else { return Ok(Step::Starved) };
        let Some(left) = (data.left - 1).checked_sub(u32::from(padding)) else {
            return Err(ConnFault::protocol("padding longer than its frame"));
        };
        // Nobody else will drain the padding (RFC 9113 §6.9.1 counts it).
        if let Some(stream) = self.table.get_mut(data.key) {
            stream.receive.owe(usize::from(padding) + 1);
        }
        self.drained(data.key, 0, true, turn.out);
        self.admit(DataFrame { left, padding, head_in_place: false, ..data }, turn)
    }

    /// The payload's length is known: counts it, and lets it pass.
    #[inline]
    fn admit(&mut self, data: DataFrame, turn: &mut Turn<'_, '_, impl Sink>) -> Read {
        let mut short_or_long = false;
        if let Some(stream) = self.table.get_mut(data.key)
            && let Content::Left(due) = stream.content
        {
            // RFC 9113 §8.1.1: not one octet more than promised, and at the end not one less.
            match due.checked_sub(u64::from(data.left)) {
                Some(due) if due == 0 || !data.end_stream => stream.content = Content::Left(due),
                _ => short_or_long = true,
            }
        }
        if short_or_long {
            self.reading = Reading::Skip(data.left + u32::from(data.padding));
            return self.stream_fault(data.key, ErrorCode::ProtocolError, turn);
        }
        if data.left == 0 && !data.end_stream {
            self.budget.empty_data(&self.limits, self.now)?;
            self.reading = Reading::Skip(u32::from(data.padding));
            return Ok(Step::On);
        }
        self.budget.data();
        Ok(self.read_data(data, turn))
    }

    /// The next piece of a payload. What lies whole in the input never becomes a state.
    #[inline]
    fn read_data(&mut self, data: DataFrame, turn: &mut Turn<'_, '_, impl Sink>) -> Step {
        let start = *turn.pos;
        let len = turn.take(data.left as usize).len();
        let left = data.left - len as u32;
        self.reading = match (left, data.padding) {
            (0, 0) => Reading::Head,
            (0, padding) => Reading::Skip(u32::from(padding)),
            _ => Reading::Data(DataFrame { left, head_in_place: false, ..data }),
        };
        if len == 0 && left > 0 {
            return Step::Starved;
        }
        let DataFrame { key, head_in_place, .. } = data;
        // The relay may have reset the stream since the last piece.
        if !self.receives(key) {
            return Step::On;
        }
        let end_stream = data.end_stream && left == 0;
        if end_stream {
            self.remote_ended(key);
        }
        Step::Tell(Event::Data { key, start, len, head_in_place, end_stream })
    }
}

fn check_size(fits: bool) -> Result<(), ConnFault> {
    if fits { Ok(()) } else { Err(ConnFault::frame_size("a frame of a wrong size")) }
}

fn check_connection(head: FrameHead, fits: bool) -> Result<(), ConnFault> {
    if head.stream != 0 {
        return Err(ConnFault::protocol("a frame of the connection on a stream"));
    }
    check_size(fits)
}

/// The first four octets of a payload whose size was checked.
pub(super) fn word(payload: &[u8]) -> u32 {
    payload.first_chunk().map_or(0, |octets| u32::from_be_bytes(*octets))
}
