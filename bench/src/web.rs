//! The HTTP/1.1 and WebSocket client of the load generator: one connection with one request on its
//! way, or with messages to and fro after an upgrade.
//!
//! Neighbours: [`crate::site`] answers, [`crate::websocket`] has the frames, [`crate::caller`] is
//! the same for HTTP/2. A head that repeats is compared with the last one and not read again.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Instant;

use crate::caller::Work;
use crate::drive::Machine;
use crate::endpoint::{FILL, OUT_LIMIT};
use crate::fault::Fault;
use crate::fields::CallFields;
use crate::http1::{self, Known};
use crate::tally::{Phase, Tally};
use crate::websocket::{self, Frames};

/// Wrong answers after which a connection gives up.
const FAILURE_LIMIT: u32 = 100;

/// What a connection does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Talk {
    /// `GET`, answered with so many octets.
    Get,
    /// `POST` of so many octets.
    Post,
    /// A WebSocket on which each message is answered by one.
    PingPong,
    /// A WebSocket on which messages come without end.
    Stream,
}

impl Talk {
    /// Whether it begins with an upgrade.
    fn upgrades(self) -> bool {
        matches!(self, Self::PingPong | Self::Stream)
    }

    /// Whether the client's messages count as payload.
    pub fn sends(self) -> bool {
        matches!(self, Self::Post | Self::PingPong)
    }
}

/// Where in an answer the connection is.
#[derive(Debug)]
enum Part {
    Head,
    Body { left: u64, right: bool },
    Frames(Frames),
}

/// One connection's client side.
pub struct Web {
    talk: Talk,
    work: Work,
    /// The request's head, the same each time.
    request: Vec<u8>,
    out: Vec<u8>,
    /// Octets of the request's body that are to be sent.
    left: u64,
    part: Part,
    known: Known,
    /// Whether the owner gives the starts.
    paced: bool,
    /// When the requests or messages on their way were due, the oldest first; of requests that
    /// wait for the connection too.
    due: VecDeque<Instant>,
    answered: bool,
    failed: u32,
    tally: Rc<RefCell<Tally>>,
}

impl Machine for Web {
    fn received(&mut self, bytes: &[u8]) -> Result<usize, Fault> {
        let now = Instant::now();
        let mut at = 0;
        while let Some(taken) = self.take(&bytes[at..], now)? {
            at += taken;
        }
        self.refill();
        Ok(at)
    }

    fn refill(&mut self) {
        while self.left > 0 && self.out.len() < OUT_LIMIT {
            let piece = self.left.min(FILL.len() as u64);
            self.out.extend_from_slice(&FILL[..piece as usize]);
            self.left -= piece;
        }
    }

    fn output(&mut self) -> &mut Vec<u8> {
        &mut self.out
    }

    fn over(&self) -> bool {
        self.tally.borrow().stage.phase() == Phase::Over
    }
}

impl Web {
    /// A connection whose first request is in its output already.
    pub fn new(
        fields: &CallFields,
        (work, talk): (Work, Talk),
        paced: bool,
        tally: Rc<RefCell<Tally>>,
    ) -> Self {
        let mut web = Self {
            talk,
            work,
            request: request(fields, work, talk),
            out: vec![],
            left: 0,
            part: Part::Head,
            known: Known::default(),
            paced,
            due: VecDeque::new(),
            answered: false,
            failed: 0,
            tally,
        };
        web.ask(Instant::now());
        web
    }

    /// A request or message that is due at `due`; it waits for the answers before it.
    pub fn begin(&mut self, due: Instant) {
        if !self.talk.upgrades() {
            let idle = self.due.is_empty();
            self.due.push_back(due);
            if idle {
                self.send();
            }
        } else if matches!(self.part, Part::Frames(_)) {
            self.ping(due);
        }
        self.refill();
    }

    /// Requests and messages without an answer.
    pub fn open_calls(&self) -> u64 {
        self.due.len() as u64
    }

    fn ask(&mut self, now: Instant) {
        self.due.push_back(now);
        self.send();
        self.refill();
    }

    fn send(&mut self) {
        self.out.extend_from_slice(&self.request);
        self.left = if self.talk == Talk::Post { u64::from(self.work.message) } else { 0 };
    }

    fn ping(&mut self, due: Instant) {
        self.due.push_back(due);
        websocket::put_message(&mut self.out, self.work.message as usize, true);
    }

    /// Takes the next part of an answer; `None` when more octets are needed.
    fn take(&mut self, bytes: &[u8], now: Instant) -> Result<Option<usize>, Fault> {
        match &mut self.part {
            Part::Head => {
                let Some((size, head)) = self.known.response(bytes).map_err(Fault::Http)? else {
                    return Ok(None);
                };
                self.headed(head.status, head.length, now)?;
                Ok(Some(size))
            }
            Part::Body { left, right } => {
                let piece = (bytes.len() as u64).min(*left);
                *left -= piece;
                if *left > 0 {
                    return Ok((piece > 0).then_some(piece as usize));
                }
                let right = *right;
                self.part = Part::Head;
                self.ended(right, now)?;
                Ok(Some(piece as usize))
            }
            Part::Frames(_) if bytes.is_empty() => Ok(None),
            Part::Frames(frames) => {
                let ends = frames.ends(bytes, u64::from(self.work.answer))?;
                self.arrived(ends.whole, ends.odd, now);
                Ok(Some(bytes.len()))
            }
        }
    }

    fn headed(&mut self, status: u16, length: Option<u64>, now: Instant) -> Result<(), Fault> {
        if self.talk.upgrades() {
            if status != 101 {
                return Err(Fault::Refused(status));
            }
            self.due.clear();
            self.part = Part::Frames(Frames::default());
            // The first message begins by itself, so that the connection is known to live.
            if self.talk == Talk::PingPong {
                self.ping(now);
            }
            return Ok(());
        }
        let right = status == 200 && length == Some(u64::from(self.work.answer));
        if status != 200 {
            self.tally.borrow_mut().failures.status += 1;
        } else if !right {
            self.tally.borrow_mut().failures.length += 1;
        }
        let left = length.ok_or(Fault::Http("an answer without Content-Length"))?;
        self.part = Part::Body { left, right };
        Ok(())
    }

    /// An answer has ended: counts it and sends the next request.
    fn ended(&mut self, right: bool, now: Instant) -> Result<(), Fault> {
        let due = self.due.pop_front().ok_or(Fault::Http("an answer that nobody asked for"))?;
        // What is left of a request that was answered early belongs to the connection still.
        if right {
            self.tally.borrow_mut().completed(due, now);
            self.lives();
        } else {
            self.failed += 1;
            if self.failed >= FAILURE_LIMIT {
                return Err(Fault::Http("too many calls failed"));
            }
        }
        if self.left > 0 {
            return Err(Fault::Http("an answer came before the request's end"));
        }
        if !self.paced {
            self.due.push_back(now);
        }
        if !self.due.is_empty() {
            self.send();
        }
        Ok(())
    }

    /// Messages have come whole.
    fn arrived(&mut self, whole: usize, odd: usize, now: Instant) {
        if whole == 0 {
            return;
        }
        self.lives();
        let mut tally = self.tally.borrow_mut();
        tally.failures.length += odd as u64;
        if self.talk == Talk::Stream {
            tally.units(whole as u64);
            return;
        }
        for _ in 0..whole {
            match self.due.pop_front() {
                Some(due) => tally.completed(due, now),
                // More came back than went out.
                None => tally.failures.length += 1,
            }
        }
        drop(tally);
        for _ in 0..if self.paced { 0 } else { whole } {
            self.ping(now);
        }
    }

    fn lives(&mut self) {
        if !std::mem::replace(&mut self.answered, true) {
            self.tally.borrow().stage.connection_lives();
        }
    }
}

/// The head of every request. Its path says how large the answer has to be.
fn request(fields: &CallFields, work: Work, talk: Talk) -> Vec<u8> {
    let CallFields { authority, key, function, version, .. } = fields;
    let answer = work.answer;
    let (line, more) = match talk {
        Talk::Get => (format!("GET /{answer}"), String::new()),
        Talk::Post => (format!("POST /{answer}"), format!("Content-Length: {}\r\n", work.message)),
        Talk::PingPong => (format!("GET /{answer}/{}", http1::ECHO), upgrade()),
        Talk::Stream => (format!("GET /{answer}/{}", http1::STREAM), upgrade()),
    };
    format!(
        "{line} HTTP/1.1\r\nHost: {authority}\r\nUser-Agent: ringway-bench\r\nAccept: */*\r\n\
         Authorization: Bearer {key}\r\nFunction-Id: {function}\r\n\
         Function-Version-Id: {version}\r\n{more}\r\n"
    )
    .into_bytes()
}

fn upgrade() -> String {
    format!(
        "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: {}\r\n",
        websocket::KEY
    )
}
