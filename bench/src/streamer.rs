//! The client of streamed workloads: one connection with a fixed number of bidirectional streams
//! that stay open, each a server stream without end or a ping-pong of messages.
//!
//! Neighbours: [`crate::caller`] for calls that end, [`crate::endpoint`] for the other side.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Instant;

use crate::caller::Work;
use crate::drive::Machine;
use crate::endpoint::{ENDLESS, FILL, Messages, OUT_LIMIT, PREFIX, STREAM_ORDER, STREAMED};
use crate::fault::Fault;
use crate::fields::{Blocks, CallFields};
use crate::flow::{self, Allowance, CONNECTION_WINDOW, Credit, STREAM_WINDOW, grown};
use crate::load::SMALL;
use crate::tally::{Phase, Tally};
use crate::verify::Verifier;
use crate::wire::{self, Event, FrameReader, MAX_31, flag, kind};

/// Payload bytes of the message that orders a stream.
const ORDER_PAYLOAD: u32 = (STREAM_ORDER - PREFIX) as u32;

/// What each stream does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Talk {
    /// Messages come without end.
    Listen,
    /// A message goes out for each that came back; so many are on their way at once.
    PingPong {
        /// Messages on their way.
        in_flight: usize,
    },
    /// One message goes out when [`Streamer::begin`] says so, and is answered.
    Paced,
    /// The first stream listens; on the others messages go out when [`Streamer::begin`] says so,
    /// and are answered by as much.
    Shared,
}

#[derive(Debug)]
struct Stream {
    id: u32,
    /// Messages come on it without end.
    listens: bool,
    /// Bytes of messages to send, whole messages from `sent_of` on.
    left: u64,
    message: u64,
    window: i64,
    credit: Credit,
    messages: Messages,
    headed: bool,
    /// When the messages on their way were due.
    due: VecDeque<Instant>,
}

/// One connection's client side.
pub struct Streamer {
    reader: FrameReader,
    out: Vec<u8>,
    fields: Rc<CallFields>,
    work: Work,
    talk: Talk,
    count: usize,
    opened: bool,
    answered: bool,
    streams: Vec<Stream>,
    queue: VecDeque<usize>,
    credit: Credit,
    allowance: Allowance,
    verifier: Verifier,
    tally: Rc<RefCell<Tally>>,
}

impl Machine for Streamer {
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
        self.tally.borrow().stage.phase() == Phase::Over
    }
}

impl Streamer {
    /// A connection that has not spoken yet; its preface is already in the output.
    pub fn new(
        fields: Rc<CallFields>,
        (work, talk): (Work, Talk),
        count: usize,
        tally: Rc<RefCell<Tally>>,
    ) -> Self {
        Self {
            reader: FrameReader::default(),
            out: flow::greeting(),
            fields,
            work,
            talk,
            count,
            opened: false,
            answered: false,
            streams: Vec::with_capacity(count),
            queue: VecDeque::new(),
            credit: Credit::default(),
            allowance: Allowance::default(),
            verifier: Verifier::default(),
            tally,
        }
    }

    /// Streams that are open.
    pub fn open_streams(&self) -> u64 {
        self.streams.len() as u64
    }

    /// Sends a message on every stream, due at `due`.
    pub fn begin(&mut self, due: Instant) {
        for place in 0..self.streams.len() {
            if self.talk != Talk::Shared || place > 0 {
                self.ping(place, due);
            }
        }
        self.refill();
    }

    fn on(&mut self, event: Event<'_>, now: Instant) -> Result<(), Fault> {
        match event {
            Event::Data { stream, bytes, flow, end } => {
                self.credit.received(flow, CONNECTION_WINDOW, 0, &mut self.out);
                let Some(place) = self.place(stream) else { return Ok(()) };
                let slot = &mut self.streams[place];
                slot.credit.received(flow, STREAM_WINDOW, stream, &mut self.out);
                let ends = slot.messages.ends(bytes);
                self.arrived(place, ends, now);
                if end {
                    return Err(Fault::Sequence);
                }
            }
            Event::Headers { stream, block, end } => {
                let said = self.verifier.read(block)?;
                let Some(place) = self.place(stream) else { return Ok(()) };
                if end || said.status != Some(200) {
                    return Err(Fault::Hopeless(said));
                }
                self.streams[place].headed = true;
            }
            Event::Settings(payload) => return self.settings(payload, now),
            Event::Ping(opaque) => {
                wire::put_head(&mut self.out, 8, kind::PING, flag::ACK, 0);
                self.out.extend_from_slice(&opaque);
            }
            Event::Reset { code, .. } => return Err(Fault::Reset(code)),
            Event::Goaway(code) => return Err(Fault::Goaway(code)),
            Event::Window { stream: 0, grow } => self.allowance.grow(grow)?,
            Event::Window { stream, grow } => {
                if let Some(place) = self.place(stream) {
                    let slot = &mut self.streams[place];
                    slot.window = grown(slot.window, grow)?;
                    self.queue_if_ready(place);
                }
            }
            Event::Nothing => {}
        }
        Ok(())
    }

    /// `ends` messages of a stream have come whole.
    fn arrived(&mut self, place: usize, ends: usize, now: Instant) {
        if ends == 0 {
            return;
        }
        let mut tally = self.tally.borrow_mut();
        let listens = self.streams[place].listens;
        if listens {
            tally.units(ends as u64);
        }
        if !self.answered {
            self.answered = true;
            tally.stage.connection_lives();
        }
        if listens {
            return;
        }
        for _ in 0..ends {
            match self.streams[place].due.pop_front() {
                Some(due) if self.talk == Talk::Shared => {
                    tally.part(SMALL, now.saturating_duration_since(due));
                }
                Some(due) => tally.completed(due, now),
                // More came back than went out.
                None => tally.failures.length += 1,
            }
        }
        drop(tally);
        if let Talk::PingPong { .. } = self.talk {
            for _ in 0..ends {
                self.ping(place, now);
            }
        }
    }

    fn place(&self, id: u32) -> Option<usize> {
        self.streams.iter().position(|s| s.id == id)
    }

    fn settings(&mut self, payload: &[u8], now: Instant) -> Result<(), Fault> {
        let table = self.allowance.table;
        let delta = self.allowance.settings(payload)?;
        if self.opened && self.allowance.table != table {
            return Err(Fault::TableResized);
        }
        wire::put_head(&mut self.out, 0, kind::SETTINGS, flag::ACK, 0);
        for place in 0..self.streams.len() {
            self.streams[place].window += delta;
            self.queue_if_ready(place);
        }
        if !self.opened {
            self.opened = true;
            let blocks = Blocks::request(&self.fields, self.allowance.table);
            for n in 0..self.count.min(self.allowance.streams as usize) {
                self.open(n, &blocks, now)?;
            }
        }
        Ok(())
    }

    /// Opens a stream with its order.
    fn open(&mut self, place: usize, blocks: &Blocks, now: Instant) -> Result<(), Fault> {
        let id = 1 + 2 * place as u32;
        if id > MAX_31 {
            return Err(Fault::StreamIds);
        }
        let block = if id == 1 { &blocks.first } else { &blocks.later };
        wire::put_head(&mut self.out, block.len(), kind::HEADERS, flag::END_HEADERS, id);
        self.out.extend_from_slice(block);
        let mut window = self.allowance.initial();
        let n = self.allowance.take(&mut window, STREAM_ORDER as u64);
        if n < STREAM_ORDER {
            return Err(Fault::Window);
        }
        let listens = match self.talk {
            Talk::Listen => true,
            Talk::Shared => place == 0,
            Talk::PingPong { .. } | Talk::Paced => false,
        };
        let count = if listens { ENDLESS } else { 0 };
        let small = self.talk == Talk::Shared && !listens;
        let answer = if small { self.work.message } else { self.work.answer };
        wire::put_head(&mut self.out, STREAM_ORDER, kind::DATA, 0, id);
        self.out.push(0);
        for word in [ORDER_PAYLOAD, answer | STREAMED, count] {
            self.out.extend_from_slice(&word.to_be_bytes());
        }
        self.streams.push(Stream {
            id,
            listens,
            left: 0,
            message: u64::from(self.work.message) + PREFIX as u64,
            window,
            credit: Credit::default(),
            messages: Messages::default(),
            headed: false,
            // The order is a message too, and is answered.
            due: VecDeque::from([now]),
        });
        if let Talk::PingPong { in_flight } = self.talk {
            for _ in 1..in_flight {
                self.ping(place, now);
            }
        }
        Ok(())
    }

    /// One more message on a stream.
    fn ping(&mut self, place: usize, due: Instant) {
        let stream = &mut self.streams[place];
        let resting = stream.left == 0;
        stream.left += stream.message;
        stream.due.push_back(due);
        if resting {
            self.queue.push_back(place);
        }
    }

    /// Sends the next DATA frame of a stream: no more than the rest of one message.
    fn send_some(&mut self, place: usize) {
        let stream = &mut self.streams[place];
        if stream.left == 0 {
            return;
        }
        let rest = (stream.left - 1) % stream.message + 1;
        let n = self.allowance.take(&mut stream.window, rest);
        if n == 0 {
            self.queue_if_ready(place);
            return;
        }
        wire::put_head(&mut self.out, n, kind::DATA, 0, stream.id);
        let done = (stream.message - rest) as usize;
        let [a, b, c, d] = ((stream.message - PREFIX as u64) as u32).to_be_bytes();
        let prefix = [0, a, b, c, d];
        let lead = n.min(PREFIX.saturating_sub(done));
        self.out.extend_from_slice(&prefix[done.min(PREFIX)..done.min(PREFIX) + lead]);
        self.out.extend_from_slice(&FILL[..n - lead]);
        stream.left -= n as u64;
        if stream.left > 0 {
            self.queue.push_back(place);
        }
    }

    fn queue_if_ready(&mut self, place: usize) {
        let stream = &self.streams[place];
        if stream.left > 0 && stream.window > 0 && !self.queue.contains(&place) {
            self.queue.push_back(place);
        }
    }
}
