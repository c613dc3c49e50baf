//! Frames of the connection and of stream control: PRIORITY, RST_STREAM, SETTINGS, PING, GOAWAY,
//! WINDOW_UPDATE. Sizes were checked when the frame's head was read.

use super::budget::{HONEST_LIFE, LARGE_CREDIT, TINY_WINDOW};
use super::conn::{Conn, Target};
use super::frame::{self, ErrorCode, FrameHead, MIN_MAX_FRAME, flag};
use super::receive::{Read, Step, Turn, word};
use super::state::Reading;
use super::window::DEFAULT_WINDOW;
use super::{ConnFault, Event, Role};
use crate::Sink;

impl Conn {
    pub(super) fn begin_priority(
        &mut self,
        head: FrameHead,
        turn: &mut Turn<'_, '_, impl Sink>,
    ) -> Read {
        if head.stream == 0 {
            return Err(ConnFault::protocol("PRIORITY on stream 0"));
        }
        self.budget.glitch(&self.limits, self.now)?;
        if head.len == 5 {
            self.reading = Reading::Payload(head);
            return Ok(Step::On);
        }
        // RFC 9113 §6.3: a fault of the stream, where there is one.
        let Target::Open(key) = self.target(head.stream) else {
            return Err(ConnFault::frame_size("PRIORITY of a wrong size"));
        };
        self.reading = Reading::Skip(head.len);
        self.stream_fault(key, ErrorCode::FrameSizeError, turn)
    }

    /// Priorities mean nothing to us, but a stream cannot depend on itself (RFC 7540 §5.3.1).
    pub(super) fn priority(
        &mut self,
        head: FrameHead,
        payload: &[u8],
        turn: &mut Turn<'_, '_, impl Sink>,
    ) -> Read {
        if word(payload) & frame::MAX_31 != head.stream {
            return Ok(Step::On);
        }
        match self.target(head.stream) {
            Target::Open(key) => self.stream_fault(key, ErrorCode::ProtocolError, turn),
            Target::Idle => Err(ConnFault::protocol("a stream depends on itself")),
            Target::Late | Target::Closed => Ok(Step::On),
        }
    }

    pub(super) fn rst_stream(&mut self, head: FrameHead, code: ErrorCode) -> Read {
        let key = match self.target(head.stream) {
            Target::Open(key) => key,
            Target::Closed if self.table.forget_ours(head.stream) => {
                // Our answer had ended it already.
                self.budget.glitch(&self.limits, self.now)?;
                return Ok(Step::On);
            }
            Target::Late | Target::Idle | Target::Closed => return Ok(Step::On),
        };
        let Some(stream) = self.table.get_mut(key) else { return Ok(Step::On) };
        let ours = std::mem::take(&mut stream.ours);
        let Some(stream) = self.table.remove(key, false) else { return Ok(Step::On) };
        // CVE-2023-44487: a request that is taken back at once cost us more than it cost the peer.
        // An answer that had begun has cost the peer's function as much, unless it was our own.
        let young = !stream.local_head && self.now.since(stream.opened) < HONEST_LIFE;
        if self.role == Role::Server && (young || ours) {
            self.budget.glitch(&self.limits, self.now)?;
        }
        Ok(Step::Tell(Event::Reset { key, tag: stream.tag, code, ours: false }))
    }

    pub(super) fn settings_ack(&mut self) -> Read {
        if self.settings_acknowledged {
            self.budget.glitch(&self.limits, self.now)?;
            return Ok(Step::On);
        }
        self.settings_acknowledged = true;
        let window = self.limits.stream_window;
        let delta = i64::from(window) - i64::from(window.max(DEFAULT_WINDOW));
        if delta != 0 {
            self.table.iter_mut().for_each(|stream| stream.receive.shift(delta));
        }
        Ok(Step::On)
    }

    pub(super) fn settings(&mut self, payload: &[u8], turn: &mut Turn<'_, '_, impl Sink>) -> Read {
        let mut old = self.peer;
        if self.peer_settings_seen {
            self.budget.glitch(&self.limits, self.now)?;
        } else {
            self.peer_settings_seen = true;
            self.deadlines.first_settings_came();
            old.max_streams = u32::MAX;
        }
        let encoder = &mut self.encoder;
        self.peer = old.updated(payload, self.role, |size| encoder.set_max_table(size))?;
        let delta = i64::from(self.peer.initial_window) - i64::from(old.initial_window);
        if delta != 0 {
            // RFC 9113 §6.9.2: open streams too; they may go below zero, but not over 2^31-1.
            for stream in self.table.iter_mut() {
                if stream.send.shift(delta).is_err() {
                    let reason = "INITIAL_WINDOW_SIZE lifts a window over 2^31-1";
                    return Err(ConnFault::new(ErrorCode::FlowControlError, reason));
                }
            }
        }
        self.windows_grew = delta > 0 && self.table.len() > 0;
        self.answers = self.answers.saturating_add(1);
        frame::put_settings_ack(turn.out);
        Ok(Step::Tell(Event::Settings))
    }

    pub(super) fn pinged(
        &mut self,
        head: FrameHead,
        payload: &[u8],
        turn: &mut Turn<'_, '_, impl Sink>,
    ) -> Read {
        let mut octets = [0; 8];
        octets.copy_from_slice(payload);
        if !head.has(flag::ACK) {
            self.budget.ping(&self.limits, self.now)?;
            self.answers = self.answers.saturating_add(1);
            frame::put_ping(turn.out, octets, true);
            return Ok(Step::On);
        }
        match self.pings.checked_sub(1) {
            Some(pings) => {
                self.pings = pings;
                Ok(Step::Tell(Event::Pong(octets)))
            }
            None => {
                self.budget.glitch(&self.limits, self.now)?;
                Ok(Step::On)
            }
        }
    }

    pub(super) fn goaway_received(&mut self, payload: &[u8]) -> Step {
        let (last, code) = (word(payload) & frame::MAX_31, ErrorCode::of(word(&payload[4..])));
        // RFC 9113 §6.8: later ones can only take back, not promise more.
        let last = self.peer_goaway.map_or(last, |before| before.min(last));
        self.peer_goaway = Some(last);
        Step::Tell(Event::Goaway { last, code })
    }

    pub(super) fn window_update(
        &mut self,
        stream: u32,
        increment: u32,
        turn: &mut Turn<'_, '_, impl Sink>,
    ) -> Read {
        self.budget.window_update()?;
        let increment = i64::from(increment & frame::MAX_31);
        if stream == 0 {
            if increment == 0 {
                return Err(ConnFault::protocol("a WINDOW_UPDATE of nothing"));
            }
            let before = self.send_window.room();
            if self.send_window.shift(increment).is_err() {
                let reason = "WINDOW_UPDATE lifts the connection's window over 2^31-1";
                return Err(ConnFault::new(ErrorCode::FlowControlError, reason));
            }
            self.credited(increment, self.send_window.get())?;
            // Nobody waits for a window that has room for a frame: spares the caller a look at all
            // its streams.
            let news = before < MIN_MAX_FRAME as usize;
            return Ok(if news { Step::Tell(Event::Window(None)) } else { Step::On });
        }
        let Target::Open(key) = self.target(stream) else { return Ok(Step::On) };
        let Some(stream) = self.table.get_mut(key) else { return Ok(Step::On) };
        if increment == 0 {
            return self.stream_fault(key, ErrorCode::ProtocolError, turn);
        }
        if stream.send.shift(increment).is_err() {
            return self.stream_fault(key, ErrorCode::FlowControlError, turn);
        }
        let (window, sends) = (stream.send.get(), stream.local_open);
        self.credited(increment, window)?;
        Ok(if sends { Step::Tell(Event::Window(Some(key))) } else { Step::On })
    }

    fn credited(&mut self, increment: i64, window: i64) -> Result<(), ConnFault> {
        // Into a window that stays shut it makes us send nothing: after its SETTINGS have taken much
        // of the windows away, an honest peer gives credit for what was on its way.
        if (1..TINY_WINDOW).contains(&window) {
            return self.budget.dribble(&self.limits, self.now);
        }
        if increment >= LARGE_CREDIT {
            self.budget.large_credit();
        }
        Ok(())
    }
}
