//! The lean HTTP/2 client of the load generator: one connection with a fixed number of calls
//! always open (a closed loop).
//!
//! On the wire it is a warm grpc-go client ([`crate::fields`]); every answer is verified: status,
//! gRPC status, length and end. An answer that completes a call starts the next one at once, and
//! all that a read brought leaves in one write. Neighbours: [`crate::load`] above,
//! [`crate::drive`] for the socket.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Instant;

use crate::drive::Machine;
use crate::endpoint::{FILL, OUT_LIMIT, PREFIX, STREAM_ORDER, STREAMED};
use crate::fault::Fault;
use crate::fields::{Blocks, CallFields};
use crate::flow::{self, Allowance, CONNECTION_WINDOW, Credit, STREAM_WINDOW, grown};
use crate::tally::{Phase, Tally};
use crate::verify::{Said, Verifier};
use crate::wire::{self, Event, FrameReader, MAX_31, flag, kind};

/// Failed calls after which a connection gives up.
const FAILURE_LIMIT: u32 = 100;
/// The part of a new connection's call until its answer begins.
const FIRST_BYTE: &str = "first-byte";
/// RST_STREAM code CANCEL.
const CANCEL: u32 = 8;

/// What each call sends and expects.
#[derive(Debug, Clone, Copy)]
pub struct Work {
    /// Payload bytes of the request message, at least four (they say how much to answer; eight,
    /// if also how often).
    pub message: u32,
    /// Payload bytes of each message of the answer.
    pub answer: u32,
}

impl Work {
    /// The first bytes of a request whose answer is `messages` long: gRPC's prefix and the order.
    fn order(self, messages: Option<u32>) -> Vec<u8> {
        let answer = self.answer | if messages.is_some() { STREAMED } else { 0 };
        let words = [Some(self.message), Some(answer), messages];
        let words = words.into_iter().flatten().flat_map(u32::to_be_bytes);
        std::iter::once(0).chain(words).collect()
    }
}

/// When calls begin.
#[derive(Debug)]
pub enum Pace {
    /// The end of one begins the next: as many as streams are always open.
    Closed,
    /// After a first one they begin when [`Caller::begin`] says so; those that find no stream free
    /// wait here, each with the instant at which it should have begun.
    Given(VecDeque<Instant>),
    /// One call, begun at this instant; then the connection ends.
    Once(Instant),
}

/// A call that has ended, for who wants to judge it himself ([`Caller::reporting`]).
#[derive(Debug, Clone, Copy)]
pub struct Answered {
    /// When its head was ready to be sent.
    pub began: Instant,
    /// When the first octet of its answer was there.
    pub first: Instant,
    /// When its answer had ended.
    pub ended: Instant,
    /// Whether it was the answer that was asked for.
    pub right: bool,
    /// What it said.
    pub said: Said,
}

/// What was wrong with a call, first cause wins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wrong {
    Status,
    Grpc,
    Length,
    Reset,
}

/// One of the calls always open.
#[derive(Debug)]
struct Slot {
    id: u32,
    began: Instant,
    /// When its answer began.
    first: Option<Instant>,
    sent: u64,
    left: u64,
    window: i64,
    credit: Credit,
    got: u64,
    headed: bool,
    said: Said,
    wrong: Option<Wrong>,
}

/// One connection's client side.
pub struct Caller {
    reader: FrameReader,
    out: Vec<u8>,
    fields: Rc<CallFields>,
    work: Work,
    /// Messages of an answer, of calls that are answered by a stream.
    messages: Option<u32>,
    /// What every request begins with.
    order: Vec<u8>,
    streams: usize,
    blocks: Option<Blocks>,
    opened: bool,
    next_id: u32,
    slots: Vec<Slot>,
    /// Slots with a request body to send.
    queue: VecDeque<usize>,
    credit: Credit,
    allowance: Allowance,
    verifier: Verifier,
    answered: bool,
    failed: u32,
    pace: Pace,
    /// Slots without a call.
    resting: Vec<usize>,
    /// The only call has ended.
    done: bool,
    /// The connection stays when its only call has ended.
    stays: bool,
    /// Whether ended calls are reported to the owner instead of the tally.
    reporting: bool,
    report: Option<Answered>,
    tally: Rc<RefCell<Tally>>,
}

impl Machine for Caller {
    fn received(&mut self, bytes: &[u8]) -> Result<usize, Fault> {
        let now = Instant::now();
        let mut at = 0;
        // Taken out so that an event borrowing from it can change everything else.
        let mut reader = std::mem::take(&mut self.reader);
        while let Some(event) = reader.next(bytes, &mut at)? {
            self.on(event, now)?;
        }
        self.reader = reader;
        self.refill();
        Ok(at)
    }

    fn refill(&mut self) {
        while self.out.len() < OUT_LIMIT && !self.allowance.exhausted() {
            let Some(place) = self.queue.pop_front() else { break };
            self.send_some(place);
        }
    }

    fn output(&mut self) -> &mut Vec<u8> {
        &mut self.out
    }

    fn over(&self) -> bool {
        (self.done && !self.stays) || self.tally.borrow().stage.phase() == Phase::Over
    }
}

impl Caller {
    /// A connection that has not spoken yet; its preface is already in the output.
    pub fn new(
        fields: Rc<CallFields>,
        work: Work,
        streams: usize,
        tally: Rc<RefCell<Tally>>,
    ) -> Self {
        assert!(work.message >= 4, "the first four payload bytes say what to answer");
        Self {
            reader: FrameReader::default(),
            out: flow::greeting(),
            fields,
            work,
            messages: None,
            order: work.order(None),
            streams,
            blocks: None,
            opened: false,
            next_id: 1,
            slots: Vec::with_capacity(streams),
            queue: VecDeque::new(),
            credit: Credit::default(),
            allowance: Allowance::default(),
            verifier: Verifier::default(),
            answered: false,
            failed: 0,
            pace: Pace::Closed,
            resting: Vec::new(),
            done: false,
            stays: false,
            reporting: false,
            report: None,
            tally,
        }
    }

    /// The same plan with another pace.
    #[must_use]
    pub fn paced(mut self, pace: Pace) -> Self {
        self.pace = pace;
        self
    }

    /// The same plan with so many messages in each answer; each message is a unit.
    #[must_use]
    pub fn streamed(mut self, messages: u32) -> Self {
        assert!(self.work.message as usize >= STREAM_ORDER - PREFIX, "room for the whole order");
        // No message at all would be the order of a ping-pong.
        self.messages = Some(messages.max(1));
        self.order = self.work.order(self.messages);
        self
    }

    /// The same caller, which stays when its only call has ended.
    #[must_use]
    pub fn staying(mut self) -> Self {
        self.stays = true;
        self
    }

    /// Its first answer is not told to the stage: `yes`, another connection's was.
    #[must_use]
    pub fn unannounced(mut self, yes: bool) -> Self {
        self.answered = yes;
        self
    }

    /// Calls that end are kept for [`Caller::take_answer`], one at a time, and not counted.
    #[must_use]
    pub fn reporting(mut self) -> Self {
        self.reporting = true;
        self
    }

    /// The call that has ended since the last look, of a caller that reports.
    pub fn take_answer(&mut self) -> Option<Answered> {
        self.report.take()
    }

    /// The session that the answers are from, once one has said so.
    pub fn session(&self) -> Option<&str> {
        self.verifier.session()
    }

    /// Begins a call that should have begun at `due`, or keeps it until a stream is free.
    pub fn begin(&mut self, due: Instant) -> Result<(), Fault> {
        match (self.resting.pop(), &mut self.pace) {
            (Some(place), _) => self.start(place, due),
            (None, Pace::Given(waiting)) => {
                waiting.push_back(due);
                Ok(())
            }
            (None, _) => Ok(()),
        }
    }

    /// Calls that are open.
    pub fn open_calls(&self) -> u64 {
        self.slots.iter().filter(|slot| slot.id != 0).count() as u64
    }

    /// Whether it ended as it should: with its only call answered.
    pub fn is_done(&self) -> bool {
        self.done
    }

    /// Header blocks that had to be decoded, for the generator's own account.
    pub fn decoded_blocks(&self) -> u64 {
        self.verifier.decoded
    }

    fn on(&mut self, event: Event<'_>, now: Instant) -> Result<(), Fault> {
        match event {
            Event::Data { stream, bytes, flow, end } => {
                self.credit.received(flow, CONNECTION_WINDOW, 0, &mut self.out);
                let Some(place) = self.place(stream) else { return Ok(()) };
                let slot = &mut self.slots[place];
                slot.first.get_or_insert(now);
                slot.got += bytes.len() as u64;
                if end {
                    // An answer without trailers has no gRPC status.
                    slot.blame(Wrong::Grpc);
                    return self.finish(place, now);
                }
                slot.credit.received(flow, STREAM_WINDOW, stream, &mut self.out);
            }
            Event::Headers { stream, block, end } => {
                // Read whatever its stream is: the decoder must see every block.
                let said = self.verifier.read(block)?;
                let Some(place) = self.place(stream) else { return Ok(()) };
                let slot = &mut self.slots[place];
                slot.first.get_or_insert(now);
                let answers = u64::from(self.messages.unwrap_or(1));
                slot.read(said, end, answers * (u64::from(self.work.answer) + PREFIX as u64));
                if end {
                    return self.finish(place, now);
                }
            }
            Event::Settings(payload) => return self.settings(payload, now),
            Event::Ping(opaque) => {
                wire::put_head(&mut self.out, 8, kind::PING, flag::ACK, 0);
                self.out.extend_from_slice(&opaque);
            }
            Event::Reset { stream, .. } => {
                let Some(place) = self.place(stream) else { return Ok(()) };
                self.slots[place].blame(Wrong::Reset);
                // The stream is closed on both sides: nothing is left to cancel.
                self.slots[place].left = 0;
                return self.finish(place, now);
            }
            Event::Window { stream: 0, grow } => self.allowance.grow(grow)?,
            Event::Window { stream, grow } => {
                if let Some(place) = self.place(stream) {
                    let slot = &mut self.slots[place];
                    slot.window = grown(slot.window, grow)?;
                    self.queue_if_ready(place);
                }
            }
            Event::Goaway(code) => return Err(Fault::Goaway(code)),
            Event::Nothing => {}
        }
        Ok(())
    }

    fn place(&self, id: u32) -> Option<usize> {
        self.slots.iter().position(|s| s.id == id)
    }

    fn settings(&mut self, payload: &[u8], now: Instant) -> Result<(), Fault> {
        let table = self.allowance.table;
        let delta = self.allowance.settings(payload)?;
        if self.opened && self.allowance.table != table {
            return Err(Fault::TableResized);
        }
        wire::put_head(&mut self.out, 0, kind::SETTINGS, flag::ACK, 0);
        for place in 0..self.slots.len() {
            self.slots[place].window += delta;
            self.queue_if_ready(place);
        }
        if !self.opened {
            // Like grpc-go, which calls a connection ready once the server's SETTINGS are there.
            self.opened = true;
            self.blocks = Some(Blocks::request(&self.fields, self.allowance.table));
            let streams = self.streams.min(self.allowance.streams as usize);
            match self.pace {
                Pace::Closed => {
                    for place in 0..streams {
                        self.start(place, now)?;
                    }
                }
                Pace::Given(_) => {
                    self.start(0, now)?;
                    // Slots come into being in order.
                    self.resting.extend((1..streams).rev());
                }
                Pace::Once(begun) => self.start(0, begun)?,
            }
        }
        Ok(())
    }

    /// Opens a new call in slot `place`.
    fn start(&mut self, place: usize, now: Instant) -> Result<(), Fault> {
        let id = self.next_id;
        if id > MAX_31 {
            return Err(Fault::StreamIds);
        }
        self.next_id += 2;
        let slot = Slot {
            id,
            began: now,
            first: None,
            sent: 0,
            left: u64::from(self.work.message) + PREFIX as u64,
            window: self.allowance.initial(),
            credit: Credit::default(),
            got: 0,
            headed: false,
            said: Said::default(),
            wrong: None,
        };
        if place < self.slots.len() {
            self.slots[place] = slot;
        } else {
            self.slots.push(slot);
            debug_assert_eq!(self.slots.len(), place + 1, "slots come into being in order");
        }
        let Some(blocks) = &self.blocks else { return Ok(()) };
        let block = if id == 1 { &blocks.first } else { &blocks.later };
        wire::put_head(&mut self.out, block.len(), kind::HEADERS, flag::END_HEADERS, id);
        self.out.extend_from_slice(block);
        if self.out.len() < OUT_LIMIT {
            self.send_some(place);
        } else {
            self.queue.push_back(place);
        }
        Ok(())
    }

    /// Sends the next DATA frame of a request.
    fn send_some(&mut self, place: usize) {
        let slot = &mut self.slots[place];
        if slot.left == 0 {
            return;
        }
        let n = self.allowance.take(&mut slot.window, slot.left);
        if n == 0 {
            // Without a stream window WINDOW_UPDATE queues it again.
            self.queue_if_ready(place);
            return;
        }
        let last = slot.left == n as u64;
        let flags = if last { flag::END_STREAM } else { 0 };
        wire::put_head(&mut self.out, n, kind::DATA, flags, slot.id);
        let length = self.order.len();
        let from = slot.sent.min(length as u64) as usize;
        let lead = n.min(length - from);
        self.out.extend_from_slice(&self.order[from..from + lead]);
        self.out.extend_from_slice(&FILL[..n - lead]);
        slot.sent += n as u64;
        slot.left -= n as u64;
        if !last {
            self.queue.push_back(place);
        }
    }

    fn queue_if_ready(&mut self, place: usize) {
        let slot = &self.slots[place];
        if slot.left > 0 && slot.window > 0 && !self.queue.contains(&place) {
            self.queue.push_back(place);
        }
    }

    /// The answer has ended: counts the call and starts the next.
    fn finish(&mut self, place: usize, now: Instant) -> Result<(), Fault> {
        let slot = &self.slots[place];
        if slot.left > 0 {
            wire::put_head(&mut self.out, 4, kind::RST_STREAM, 0, slot.id);
            self.out.extend_from_slice(&CANCEL.to_be_bytes());
            self.queue.retain(|&p| p != place);
        }
        if self.reporting {
            self.report = Some(Answered {
                began: slot.began,
                first: slot.first.unwrap_or(now),
                ended: now,
                right: slot.wrong.is_none(),
                said: slot.said,
            });
        } else {
            self.count(place, now)?;
        }
        match &mut self.pace {
            Pace::Closed => self.start(place, now),
            Pace::Given(waiting) => match waiting.pop_front() {
                Some(due) => self.start(place, due),
                None => {
                    self.slots[place].id = 0;
                    self.resting.push(place);
                    Ok(())
                }
            },
            Pace::Once(_) => {
                self.done = true;
                Ok(())
            }
        }
    }

    /// Counts a call that has ended.
    fn count(&mut self, place: usize, now: Instant) -> Result<(), Fault> {
        let slot = &self.slots[place];
        let mut tally = self.tally.borrow_mut();
        let failures = &mut tally.failures;
        match slot.wrong {
            None => {
                tally.completed_of(self.messages.unwrap_or(1), slot.began, now);
                if let (Pace::Once(begun), Some(first)) = (&self.pace, slot.first) {
                    tally.part(FIRST_BYTE, first.saturating_duration_since(*begun));
                }
                if !self.answered {
                    self.answered = true;
                    tally.stage.connection_lives();
                }
            }
            Some(Wrong::Status) => failures.status += 1,
            Some(Wrong::Grpc) => failures.grpc += 1,
            Some(Wrong::Length) => failures.length += 1,
            Some(Wrong::Reset) => failures.reset += 1,
        }
        drop(tally);
        if slot.wrong.is_some() {
            self.failed += 1;
            if self.failed >= FAILURE_LIMIT {
                return Err(Fault::Hopeless(slot.said));
            }
        }
        Ok(())
    }
}

impl Slot {
    fn blame(&mut self, wrong: Wrong) {
        self.wrong.get_or_insert(wrong);
    }

    /// A header block of the answer.
    fn read(&mut self, said: Said, end: bool, expected: u64) {
        self.said.status = said.status.or(self.said.status);
        self.said.grpc = said.grpc.or(self.said.grpc);
        if !self.headed {
            match said.status {
                // Interim answers (RFC 9110 §15.2) precede the head.
                Some(100..=199) if !end => return,
                Some(200) => {}
                _ => self.blame(Wrong::Status),
            }
            self.headed = true;
        }
        if end {
            if said.grpc != Some(0) {
                self.blame(Wrong::Grpc);
            }
            if self.got != expected {
                self.blame(Wrong::Length);
            }
        }
    }
}
