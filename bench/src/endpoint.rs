//! The lean HTTP/2 server behind every proxy of a comparison.
//!
//! The endpoint never decodes a header block. A stream's first gRPC message tells it what to
//! answer: its first four payload bytes are the answer's payload size, big endian (as
//! `response_size` does in gRPC's own benchmark). With [`STREAMED`] set in it, four more bytes
//! follow: how many messages of that size to send, or 0 for one after each message received. So one
//! endpoint serves echoes, uploads, server streams and ping-pong. Everything a read brought is
//! answered in one write; [`crate::drive`] does both.

use std::collections::VecDeque;

use crate::drive::Machine;
use crate::fault::Fault;
use crate::fields::AnswerFields;
use crate::flow::{Allowance, CONNECTION_WINDOW, Credit, DEFAULT_WINDOW, STREAM_WINDOW, grown};
use crate::wire::{
    self, Event, FrameReader, HEAD, MAX_31, MAX_FRAME, PREFACE, flag, kind, setting,
};

/// gRPC's message prefix: a flag and a length.
pub const PREFIX: usize = 5;
/// The prefix and the four bytes that say how much to answer.
pub const ORDER: usize = PREFIX + 4;
/// The same with the four bytes that say how often.
pub const STREAM_ORDER: usize = ORDER + 4;
/// In an answer's size: more than one answer is wanted.
pub const STREAMED: u32 = 1 << 31;
/// In an order's count: messages until the stream is reset.
pub const ENDLESS: u32 = u32::MAX;
/// Bytes queued for writing before DATA waits for the socket.
pub const OUT_LIMIT: usize = 256 * 1024;
/// Payload of every message after the order.
pub static FILL: [u8; MAX_FRAME] = [0x61; MAX_FRAME];
/// Streams open at once; the worker of the real service sets no limit either.
const STREAM_LIMIT: usize = 65_536;

/// What a stream is doing.
#[derive(Debug)]
struct Stream {
    id: u32,
    window: i64,
    credit: Credit,
    order: [u8; STREAM_ORDER],
    have: usize,
    /// Where the request's messages end, of a ping-pong.
    pings: Option<Messages>,
    /// Answer bytes not yet sent, once the request has ended or said that it is a stream.
    answer: Option<Answer>,
    /// The request has ended.
    ended: bool,
}

/// Finds the ends of length-prefixed messages in a body.
#[derive(Debug, Default)]
pub struct Messages {
    prefix: [u8; PREFIX],
    have: usize,
    left: usize,
}

impl Messages {
    /// How many messages end in the next `bytes` of the body.
    pub fn ends(&mut self, mut bytes: &[u8]) -> usize {
        let mut ends = 0;
        while !bytes.is_empty() {
            if self.have < PREFIX {
                let n = bytes.len().min(PREFIX - self.have);
                self.prefix[self.have..self.have + n].copy_from_slice(&bytes[..n]);
                self.have += n;
                bytes = &bytes[n..];
                if self.have < PREFIX {
                    break;
                }
                let [_, a, b, c, d] = self.prefix;
                self.left = u32::from_be_bytes([a, b, c, d]) as usize;
            }
            let n = bytes.len().min(self.left);
            self.left -= n;
            bytes = &bytes[n..];
            if self.left == 0 {
                self.have = 0;
                ends += 1;
            }
        }
        ends
    }
}

#[derive(Debug)]
struct Answer {
    prefix: [u8; PREFIX],
    sent: u64,
    left: u64,
    /// Messages of the same size that follow this one.
    more: u64,
}

impl Answer {
    /// The message of `size` payload bytes, or no message.
    fn new(size: Option<u32>) -> Self {
        let l = size.unwrap_or(0).to_be_bytes();
        let left = size.map_or(0, |n| u64::from(n) + PREFIX as u64);
        Self { prefix: [0, l[0], l[1], l[2], l[3]], sent: 0, left, more: 0 }
    }

    /// So many messages of `size` payload bytes, and perhaps more later.
    fn stream(size: u32, count: u64) -> Self {
        let mut answer = Self { more: count, ..Self::new(Some(size)) };
        answer.left = 0;
        answer.next();
        answer
    }

    /// Begins the next message, if there is one.
    fn next(&mut self) {
        if self.left == 0 && self.more > 0 {
            let [_, a, b, c, d] = self.prefix;
            self.more -= 1;
            self.sent = 0;
            self.left = u64::from(u32::from_be_bytes([a, b, c, d])) + PREFIX as u64;
        }
    }

    /// Appends the next `n` bytes of the message.
    fn put(&mut self, out: &mut Vec<u8>, n: usize) {
        let from = self.sent.min(PREFIX as u64) as usize;
        let lead = n.min(PREFIX - from);
        out.extend_from_slice(&self.prefix[from..from + lead]);
        out.extend_from_slice(&FILL[..n - lead]);
        self.sent += n as u64;
        self.left -= n as u64;
    }
}

/// One connection's server side.
#[derive(Debug, Default)]
pub struct Endpoint {
    reader: FrameReader,
    greeted: bool,
    out: Vec<u8>,
    credit: Credit,
    allowance: Allowance,
    fields: AnswerFields,
    streams: Vec<Stream>,
    /// Streams with an answer to send and, when they were put here, a window to send it in.
    queue: VecDeque<u32>,
    /// Requests answered.
    pub answered: u64,
}

impl Machine for Endpoint {
    fn received(&mut self, bytes: &[u8]) -> Result<usize, Fault> {
        let mut at = 0;
        if !self.greeted {
            let n = bytes.len().min(PREFACE.len());
            if bytes[..n] != PREFACE[..n] {
                return Err(Fault::Preface);
            }
            if n < PREFACE.len() {
                return Ok(0);
            }
            at = n;
            self.greet();
        }
        // Taken out so that an event borrowing from it can change everything else.
        let mut reader = std::mem::take(&mut self.reader);
        while let Some(event) = reader.next(bytes, &mut at)? {
            self.on(event)?;
        }
        self.reader = reader;
        self.refill();
        Ok(at)
    }

    fn refill(&mut self) {
        while self.out.len() < OUT_LIMIT && !self.allowance.exhausted() {
            let Some(id) = self.queue.pop_front() else { break };
            self.send_some(id);
        }
    }

    fn output(&mut self) -> &mut Vec<u8> {
        &mut self.out
    }
}

impl Endpoint {
    /// Whether the client has said what it speaks.
    pub fn greeted(&self) -> bool {
        self.greeted
    }

    fn greet(&mut self) {
        self.greeted = true;
        let settings = [
            (setting::MAX_CONCURRENT_STREAMS, MAX_31),
            (setting::INITIAL_WINDOW_SIZE, STREAM_WINDOW),
        ];
        wire::put_settings(&mut self.out, &settings);
        wire::put_window(&mut self.out, 0, CONNECTION_WINDOW - DEFAULT_WINDOW);
    }

    fn on(&mut self, event: Event<'_>) -> Result<(), Fault> {
        match event {
            Event::Data { stream, bytes, flow, end } => self.data(stream, bytes, flow, end),
            Event::Headers { stream, end, .. } => return self.headers(stream, end),
            Event::Settings(payload) => {
                let table = self.allowance.table;
                let delta = self.allowance.settings(payload)?;
                if self.answered > 0 && self.allowance.table != table {
                    return Err(Fault::TableResized);
                }
                self.fields.table(self.allowance.table);
                for stream in &mut self.streams {
                    stream.window += delta;
                }
                self.queue_answers();
                wire::put_head(&mut self.out, 0, kind::SETTINGS, flag::ACK, 0);
            }
            Event::Ping(opaque) => {
                wire::put_head(&mut self.out, 8, kind::PING, flag::ACK, 0);
                self.out.extend_from_slice(&opaque);
            }
            Event::Reset { stream, .. } => self.streams.retain(|s| s.id != stream),
            Event::Window { stream: 0, grow } => self.allowance.grow(grow)?,
            Event::Window { stream, grow } => {
                if let Some(place) = self.place(stream) {
                    let s = &mut self.streams[place];
                    s.window = grown(s.window, grow)?;
                    self.queue_if_ready(place);
                }
            }
            // A client that goes away still gets its answers; it closes when it has them.
            Event::Goaway(_) | Event::Nothing => {}
        }
        Ok(())
    }

    /// The newest streams are the likeliest to be asked for.
    fn place(&self, id: u32) -> Option<usize> {
        self.streams.iter().rposition(|s| s.id == id)
    }

    fn headers(&mut self, id: u32, end: bool) -> Result<(), Fault> {
        if let Some(place) = self.place(id) {
            // Trailers of a request must end it.
            return if end { self.ended(place) } else { return Err(Fault::Sequence) };
        }
        if self.streams.len() >= STREAM_LIMIT {
            wire::put_head(&mut self.out, 4, kind::RST_STREAM, 0, id);
            // REFUSED_STREAM.
            self.out.extend_from_slice(&7u32.to_be_bytes());
            return Ok(());
        }
        self.streams.push(Stream {
            id,
            window: self.allowance.initial(),
            credit: Credit::default(),
            order: [0; STREAM_ORDER],
            have: 0,
            pings: None,
            answer: None,
            ended: false,
        });
        if end { self.ended(self.streams.len() - 1) } else { Ok(()) }
    }

    fn data(&mut self, id: u32, bytes: &[u8], flow: u32, end: bool) {
        self.credit.received(flow, CONNECTION_WINDOW, 0, &mut self.out);
        let Some(place) = self.place(id) else { return };
        let stream = &mut self.streams[place];
        if !end {
            stream.credit.received(flow, STREAM_WINDOW, id, &mut self.out);
        }
        let mut rest = bytes;
        if stream.have < STREAM_ORDER && stream.answer.is_none() {
            let n = rest.len().min(STREAM_ORDER - stream.have);
            stream.order[stream.have..stream.have + n].copy_from_slice(&rest[..n]);
            stream.have += n;
            if stream.have == STREAM_ORDER && stream.is_streamed() {
                // What was kept of the first message counts towards its end.
                let order = stream.order;
                self.stream(place);
                self.pinged(place, &order);
                rest = &rest[n..];
            }
        }
        self.pinged(place, rest);
        if end {
            // Infallible: only trailers can end a stream wrongly.
            let _ = self.ended(place);
        }
    }

    /// The order of a stream is known: its answer begins.
    fn stream(&mut self, place: usize) {
        let stream = &mut self.streams[place];
        let o = &stream.order;
        let size = u32::from_be_bytes([o[5], o[6], o[7], o[8]]) & !STREAMED;
        let count = match u32::from_be_bytes([o[9], o[10], o[11], o[12]]) {
            0 => {
                stream.pings = Some(Messages::default());
                0
            }
            ENDLESS => u64::MAX,
            count => u64::from(count),
        };
        stream.answer = Some(Answer::stream(size, count));
        let id = stream.id;
        self.put_head(id);
        if count > 0 {
            self.queue.push_back(id);
        }
    }

    /// More of a ping-pong's messages: each that ends here is answered.
    fn pinged(&mut self, place: usize, bytes: &[u8]) {
        let stream = &mut self.streams[place];
        let (Some(pings), Some(answer)) = (&mut stream.pings, &mut stream.answer) else { return };
        let ends = pings.ends(bytes) as u64;
        if ends > 0 {
            let resting = answer.left == 0;
            answer.more += ends;
            answer.next();
            if resting {
                let id = stream.id;
                self.send_some(id);
            }
        }
    }

    /// The request is whole: answers at once what the windows allow.
    fn ended(&mut self, place: usize) -> Result<(), Fault> {
        let stream = &mut self.streams[place];
        if std::mem::replace(&mut stream.ended, true) {
            return Err(Fault::Sequence);
        }
        let id = stream.id;
        if let Some(answer) = &stream.answer {
            if answer.left == 0 {
                self.send_some(id);
            }
            return Ok(());
        }
        stream.answer = Some(Answer::new(stream.wanted()));
        self.put_head(id);
        if self.out.len() < OUT_LIMIT {
            self.send_some(id);
        } else {
            self.queue.push_back(id);
        }
        Ok(())
    }

    fn put_head(&mut self, id: u32) {
        let start = self.out.len();
        wire::put_head(&mut self.out, 0, kind::HEADERS, flag::END_HEADERS, id);
        self.fields.put_head(&mut self.out);
        self.patch_length(start);
    }

    fn patch_length(&mut self, start: usize) {
        // Both blocks of an answer are far shorter than 256 bytes.
        self.out[start + 2] = (self.out.len() - start - HEAD) as u8;
    }

    /// Sends the next frame of an answer, and the trailers when it was the last.
    fn send_some(&mut self, id: u32) {
        let Some(place) = self.place(id) else { return };
        let stream = &mut self.streams[place];
        let Some(answer) = &mut stream.answer else { return };
        if answer.left > 0 {
            let n = self.allowance.take(&mut stream.window, answer.left);
            if n == 0 {
                // Without a stream window WINDOW_UPDATE queues it again.
                self.queue_if_ready(place);
                return;
            }
            wire::put_head(&mut self.out, n, kind::DATA, 0, id);
            answer.put(&mut self.out, n);
            answer.next();
        }
        if answer.left > 0 {
            self.queue.push_back(id);
            return;
        }
        if !stream.ended {
            return;
        }
        let start = self.out.len();
        let end = flag::END_HEADERS | flag::END_STREAM;
        wire::put_head(&mut self.out, 0, kind::HEADERS, end, id);
        self.fields.put_trailers(&mut self.out);
        self.patch_length(start);
        self.streams.swap_remove(place);
        self.answered += 1;
    }

    fn queue_if_ready(&mut self, place: usize) {
        let s = &self.streams[place];
        if s.answer.is_some() && s.window > 0 && !self.queue.contains(&s.id) {
            self.queue.push_back(s.id);
        }
    }

    fn queue_answers(&mut self) {
        for place in 0..self.streams.len() {
            self.queue_if_ready(place);
        }
    }
}

impl Stream {
    /// The payload size asked for; a message too short to say gets an empty one.
    fn wanted(&self) -> Option<u32> {
        let o = &self.order;
        match self.have {
            0 => None,
            ORDER.. => Some(u32::from_be_bytes([o[5], o[6], o[7], o[8]])),
            _ => Some(0),
        }
    }

    fn is_streamed(&self) -> bool {
        self.order[PREFIX] & 0x80 != 0
    }
}
