//! Header blocks: their fragments, their decoding, and what the head they hold does to a stream.
//!
//! Every block is decoded, wanted or not: the decoder's table belongs to the connection, and a
//! skipped block would garble all that follow.

use super::conn::{Conn, Target};
use super::frame::{ErrorCode, FrameHead, MAX_31, flag};
use super::receive::{Read, Step, Turn};
use super::state::Block;
use super::stream::{Content, StreamKey};
use super::{ConnFault, Event, HeadKind, LimitId, Role, head};
use crate::Sink;
use crate::fields::Token;
use crate::hpack::{HpackError, Verdict};

impl Conn {
    /// What a HEADERS frame's head alone tells.
    pub(super) fn check_headers(&self, frame: FrameHead) -> Result<(), ConnFault> {
        if frame.stream.is_multiple_of(2) {
            return Err(ConnFault::protocol("HEADERS on a stream id that is not the client's"));
        }
        let extra = if frame.has(flag::PADDED) { 1 } else { 0 }
            + if frame.has(flag::PRIORITY) { 5 } else { 0 };
        if frame.len < extra {
            return Err(ConnFault::frame_size("HEADERS too short for its flags"));
        }
        match self.target(frame.stream) {
            Target::Closed => Err(self.closed_fault()),
            Target::Idle if self.role == Role::Client => {
                Err(ConnFault::protocol("a response to no request"))
            }
            _ => self.check_block(frame.len, 0, 0),
        }
    }

    /// HEADERS on a stream that is no longer there, and not by our reset.
    fn closed_fault(&self) -> ConnFault {
        // RFC 9113 §5.1.1: an id that was passed over was never opened; opening it now is out of
        // order. If none was passed over, this one was open once.
        let passed_over =
            self.role == Role::Server && self.budget.streams != u64::from(self.highest / 2 + 1);
        let code = if passed_over { ErrorCode::ProtocolError } else { ErrorCode::StreamClosed };
        ConnFault::new(code, "HEADERS on a closed stream")
    }

    /// What a CONTINUATION frame's head alone tells; it belongs to the block, that was checked.
    pub(super) fn check_continuation(&mut self, frame: FrameHead) -> Result<(), ConnFault> {
        let Some(block) = &mut self.block else {
            return Err(ConnFault::protocol("CONTINUATION without HEADERS"));
        };
        block.continuations = block.continuations.saturating_add(1);
        if frame.len == 0 && !frame.has(flag::END_HEADERS) {
            block.empty = block.empty.saturating_add(1);
        }
        let block = *block;
        self.check_block(block.len as u32 + frame.len, block.continuations, block.empty)
    }

    /// L3: CONTINUATION floods (CVE-2024-27316 and its kin).
    fn check_block(&self, octets: u32, continuations: u16, empty: u8) -> Result<(), ConnFault> {
        let reason = if octets > self.limits.block_bytes {
            "header block too large"
        } else if continuations > self.limits.most_continuations() {
            "too many CONTINUATION frames"
        } else if empty > self.limits.empty_fragments {
            "too many empty fragments"
        } else {
            return Ok(());
        };
        Err(ConnFault::limit(LimitId::L3, ErrorCode::EnhanceYourCalm, reason))
    }

    /// A HEADERS frame, whole.
    pub(super) fn headers(
        &mut self,
        frame: FrameHead,
        payload: &[u8],
        turn: &mut Turn<'_, '_, impl Sink>,
    ) -> Read {
        self.heard = true;
        let (mut fragment, mut padding) = (payload, 0);
        if frame.has(flag::PADDED)
            && let [length, rest @ ..] = fragment
        {
            (padding, fragment) = (usize::from(*length), rest);
        }
        let mut self_dependent = false;
        if frame.has(flag::PRIORITY)
            && let Some((dependency, rest)) = fragment.split_first_chunk::<4>()
        {
            self_dependent = u32::from_be_bytes(*dependency) & MAX_31 == frame.stream;
            fragment = rest.get(1..).unwrap_or_default();
        }
        let Some(len) = fragment.len().checked_sub(padding) else {
            return Err(ConnFault::protocol("padding longer than its frame"));
        };
        let fragment = &fragment[..len];
        let block = Block {
            stream: frame.stream,
            len,
            end_stream: frame.has(flag::END_STREAM),
            self_dependent,
            continuations: 0,
            empty: u8::from(fragment.is_empty()),
        };
        if frame.has(flag::END_HEADERS) {
            return self.complete(block, fragment, turn);
        }
        self.held.extend_from_slice(fragment);
        self.block = Some(block);
        Ok(Step::On)
    }

    /// A CONTINUATION frame, whole; its fragment is at the end of the held ones.
    pub(super) fn continuation(
        &mut self,
        frame: FrameHead,
        turn: &mut Turn<'_, '_, impl Sink>,
    ) -> Read {
        let Some(block) = &mut self.block else { return Ok(Step::On) };
        block.len = self.held.len();
        if !frame.has(flag::END_HEADERS) {
            return Ok(Step::On);
        }
        let block = *block;
        self.block = None;
        let fragments = std::mem::take(&mut self.held);
        let step = self.complete(block, &fragments, turn);
        self.give_back(fragments);
        step
    }

    fn complete(&mut self, block: Block, bytes: &[u8], turn: &mut Turn<'_, '_, impl Sink>) -> Read {
        self.deadlines.block_complete();
        let target = self.target(block.stream);
        let many_frames = block.continuations > u16::from(self.limits.continuations);
        if !block.self_dependent
            && !many_frames
            && let Some(step) = self.repeated(&target, block, bytes)
        {
            return Ok(step);
        }
        let before = self.decoder.generation();
        let mut verdict =
            self.decoder.decode(bytes, turn.fields, &self.limits.headers).map_err(undecodable)?;
        if many_frames {
            verdict = Verdict::TooLarge;
        }
        let mut step = match target {
            Target::Open(key) => self.next_section(key, block, verdict, turn),
            Target::Idle => self.request(block, verdict, turn),
            Target::Late if block.stream > self.highest => {
                // Opened behind the final GOAWAY: decoded all the same.
                self.budget.behind_goaway(&self.limits, self.now)?;
                Ok(Step::On)
            }
            Target::Late | Target::Closed => Ok(Step::On),
        }?;
        if let Step::Tell(Event::Head { key, kind, list, .. }) = &mut step
            && self.is_plain(*key, *kind)
        {
            let generations = (before, self.decoder.generation());
            *list = self.memo.note(bytes, generations, *kind, turn.fields);
        }
        Ok(step)
    }

    /// Whether nothing but the list decided that this head is in order: then an equal one is too.
    fn is_plain(&self, key: StreamKey, kind: HeadKind) -> bool {
        let Some(stream) = self.table.get(key) else { return false };
        match kind {
            HeadKind::Request | HeadKind::Trailers => stream.content == Content::Unknown,
            HeadKind::Response => stream.content == Content::Unknown && !stream.head_request,
            HeadKind::Informational => false,
        }
    }

    /// A block that is known: what decoding and checking it would come to.
    fn repeated(&mut self, target: &Target, block: Block, bytes: &[u8]) -> Option<Step> {
        let end_stream = block.end_stream;
        let generation = self.decoder.generation();
        let (key, kind, list) = match *target {
            Target::Idle => {
                let kind = HeadKind::Request;
                let list = self.memo.find(bytes, generation, kind)?;
                if self.table.len() >= self.limits.max_concurrent_streams as usize {
                    return None;
                }
                let head = self.memo.list(list)?.first(Token::Method) == Some(b"HEAD");
                (self.accept(block.stream, Content::Unknown, head, end_stream), kind, list)
            }
            Target::Open(key) => {
                let stream = self.table.get_mut(key)?;
                let plain = stream.content == Content::Unknown && !stream.head_request;
                let kind = match stream.remote_head {
                    true if end_stream => HeadKind::Trailers,
                    true => return None,
                    false => HeadKind::Response,
                };
                if !plain || !stream.remote_open {
                    return None;
                }
                let list = self.memo.find(bytes, generation, kind)?;
                stream.remote_head = true;
                if end_stream {
                    self.remote_ended(key);
                }
                (key, kind, list)
            }
            Target::Late | Target::Closed => return None,
        };
        let list = Some(list);
        Some(Step::Tell(Event::Head { key, kind, end_stream, list, repeated: true }))
    }

    /// A client opens a stream.
    fn request(
        &mut self,
        block: Block,
        verdict: Verdict,
        turn: &mut Turn<'_, '_, impl Sink>,
    ) -> Read {
        let Block { stream: id, end_stream, .. } = block;
        if self.table.len() >= self.limits.max_concurrent_streams as usize {
            return self.refuse(id, turn);
        }
        if verdict == Verdict::TooLarge {
            let key = self.accept(id, Content::Unknown, false, end_stream);
            return Ok(Step::Tell(Event::HeadTooLarge { key, end_stream }));
        }
        match head::request(turn.fields, end_stream) {
            Ok(request) if !block.self_dependent => {
                let key = self.accept(id, request.content, request.head, end_stream);
                let kind = HeadKind::Request;
                Ok(Step::Tell(Event::Head { key, kind, end_stream, list: None, repeated: false }))
            }
            _ => {
                self.pass_over(id);
                self.answer_reset(id, ErrorCode::ProtocolError, turn)?;
                Ok(Step::On)
            }
        }
    }

    fn accept(&mut self, id: u32, content: Content, head: bool, end_stream: bool) -> StreamKey {
        let key = self.insert(id, content);
        if let Some(stream) = self.table.get_mut(key) {
            stream.remote_head = true;
            stream.remote_open = !end_stream;
            stream.head_request = head;
        }
        key
    }

    /// L1: a stream too many. The peer may not know of the limit before it has seen our SETTINGS.
    fn refuse(&mut self, id: u32, turn: &mut Turn<'_, '_, impl Sink>) -> Read {
        self.pass_over(id);
        if self.settings_acknowledged {
            self.answer_reset(id, ErrorCode::RefusedStream, turn)?;
        } else {
            self.budget.untold_stream(&self.limits, self.now)?;
            self.answers = self.answers.saturating_add(1);
            super::frame::put_reset(turn.out, id, ErrorCode::RefusedStream);
        }
        Ok(Step::On)
    }

    /// A stream was opened and is reset at once.
    fn pass_over(&mut self, id: u32) {
        self.highest = id;
        self.budget.streams += 1;
        self.table.push_reset(id);
        self.watch_resets();
    }

    /// A head or trailers on an open stream.
    fn next_section(
        &mut self,
        key: StreamKey,
        block: Block,
        verdict: Verdict,
        turn: &mut Turn<'_, '_, impl Sink>,
    ) -> Read {
        let end_stream = block.end_stream;
        let Some(stream) = self.table.get_mut(key) else { return Ok(Step::On) };
        if !stream.remote_open {
            return self.stream_fault(key, ErrorCode::StreamClosed, turn);
        }
        if block.self_dependent {
            return self.stream_fault(key, ErrorCode::ProtocolError, turn);
        }
        if verdict == Verdict::TooLarge {
            stream.remote_head = true;
            if end_stream {
                self.remote_ended(key);
            }
            return Ok(Step::Tell(Event::HeadTooLarge { key, end_stream }));
        }
        let kind = if stream.remote_head {
            // RFC 9113 §8.1: trailers end the message, and nothing of it may be missing.
            let complete = matches!(stream.content, Content::Unknown | Content::Left(0));
            (end_stream && complete && head::trailers(turn.fields).is_ok())
                .then_some(HeadKind::Trailers)
        } else {
            let response = head::response(turn.fields, end_stream, stream.head_request);
            response.ok().and_then(|response| {
                stream.remote_head = !response.informational;
                stream.content = response.content;
                stream.informational += u8::from(response.informational);
                match response.informational {
                    false => Some(HeadKind::Response),
                    true if stream.informational > self.limits.informational => None,
                    true => Some(HeadKind::Informational),
                }
            })
        };
        let Some(kind) = kind else {
            return self.stream_fault(key, ErrorCode::ProtocolError, turn);
        };
        if end_stream {
            self.remote_ended(key);
        }
        Ok(Step::Tell(Event::Head { key, kind, end_stream, list: None, repeated: false }))
    }
}

fn undecodable(error: HpackError) -> ConnFault {
    match error {
        HpackError::Malformed(_) => {
            ConnFault::new(ErrorCode::CompressionError, "header block is not HPACK")
        }
        HpackError::TableSize => ConnFault::limit(
            LimitId::L4,
            ErrorCode::CompressionError,
            "HPACK table larger than we allowed",
        ),
        HpackError::Flood => ConnFault::limit(
            LimitId::L2,
            ErrorCode::EnhanceYourCalm,
            "header list far beyond every limit",
        ),
    }
}
