//! The state of one connection, and its receiving half. Sending is in [`super::send`].

use super::body::{BodyReader, Part};
use super::head::{
    Body, EMPTY_LINES, EMPTY_LINES_MAX, HeadFault, HeadLimits, Scan, Version, connection_names,
    list_names, read_trailers,
};
use super::response::{ResponseBody, read_response};
use super::target::read_request;
use super::upgrade::{Asked, asks_upgrade};
use super::writing::{Writing, may_be_trailer};
use super::{Event, Fault, HeadKind, Limits, Role};
use crate::fields::{Fields, Token};

/// One HTTP/1 connection, without its socket.
///
/// One exchange at a time: as a server it reads the next request only when the response is sent
/// and [`Conn::next_message`] was called; as a client it reads nothing but the response to the
/// request that [`Conn::request`] wrote.
///
/// ```text
/// reading:  Head -> Body -> [Trailers] -> Ended -> Head
///             \---------------------------^   `--> Raw      (raw)
/// ```
///
/// `Expect: 100-continue` is nobody's business here: it is passed on with the request's other
/// fields, and the worker's 100 comes back as a [`HeadKind::Informational`] head.
#[derive(Debug)]
pub struct Conn {
    pub(super) role: Role,
    limits: Limits,
    reading: Reading,
    scan: Scan,
    /// Empty lines skipped since the last request.
    empty_lines: usize,
    /// The part of a head or trailer section that came before the rest of it.
    held: Vec<u8>,
    pub(super) writing: Writing,
    /// The version of the peer's latest head.
    pub(super) version: Version,
    /// The exchange's method is HEAD.
    pub(super) is_head: bool,
    /// The client waits for a 100 before it sends its body, and none was sent.
    pub(super) awaits_continue: bool,
    /// Another exchange may follow.
    pub(super) keep_alive: bool,
    informational: u8,
    /// The protocols that our request asked for.
    pub(super) asked: Asked,
    fault: Option<Fault>,
}

#[derive(Clone, Copy, Debug)]
enum Reading {
    Head,
    Body(BodyReader),
    UntilClose,
    Trailers,
    /// The peer's message has ended, or none was asked for.
    Ended,
    /// Both hops are byte streams.
    Raw,
}

impl Conn {
    /// A connection of which nothing was read or written yet; it owns no heap memory.
    #[must_use]
    pub fn new(role: Role, limits: Limits) -> Self {
        Self {
            role,
            limits,
            reading: match role {
                Role::Server => Reading::Head,
                Role::Client => Reading::Ended,
            },
            scan: Scan::default(),
            empty_lines: 0,
            held: Vec::new(),
            writing: Writing::Idle,
            version: Version::Http11,
            is_head: false,
            awaits_continue: false,
            keep_alive: true,
            informational: 0,
            asked: Asked::default(),
            fault: None,
        }
    }

    // ---- receiving ----

    /// Reads on in `input` from `pos`, up to the next event. `fields` holds a head or trailers
    /// only if the event says so.
    ///
    /// Of the input nothing is needed again but what [`Event::Data`] points to: a head that came in
    /// part is kept here, up to its limit.
    ///
    /// # Errors
    /// The peer's fault, and the same one ever after, because its next bytes cannot be understood.
    pub fn next(
        &mut self,
        input: &[u8],
        pos: &mut usize,
        fields: &mut Fields,
    ) -> Result<Event, Fault> {
        if let Some(fault) = self.fault {
            return Err(fault);
        }
        let read = self.read(input, pos, fields);
        self.fault = read.err();
        read
    }

    /// The peer has closed its side: [`Event::End`] if that ends a body or a raw stream,
    /// [`Event::More`] if nothing was open.
    ///
    /// # Errors
    /// If it was within a message, or before the response.
    pub fn eof(&mut self) -> Result<Event, Fault> {
        if let Some(fault) = self.fault {
            return Err(fault);
        }
        self.keep_alive = false;
        match self.reading {
            Reading::UntilClose | Reading::Raw => {
                self.reading = Reading::Ended;
                Ok(Event::End)
            }
            Reading::Ended => Ok(Event::More),
            Reading::Head if self.role == Role::Server && self.held.is_empty() => Ok(Event::More),
            Reading::Head | Reading::Body(_) | Reading::Trailers => {
                self.fault = Some(Fault::Truncated);
                Err(Fault::Truncated)
            }
        }
    }

    fn read(&mut self, input: &[u8], pos: &mut usize, fields: &mut Fields) -> Result<Event, Fault> {
        let here = &input[*pos..];
        match self.reading {
            Reading::Ended if self.role == Role::Server || here.is_empty() => Ok(Event::More),
            // After a 101 these are the stream's, once it is one.
            Reading::Ended if self.writing == Writing::Raw => Ok(Event::More),
            Reading::Ended => Err(Fault::Unasked),
            Reading::Head => {
                let here = self.skip_empty_lines(here, pos)?;
                self.section(here, pos, |conn, head| conn.head(head, fields))
            }
            Reading::Trailers => {
                self.section(here, pos, |conn, trailers| conn.trailers(trailers, fields))
            }
            Reading::Body(body) => self.body(body, here, pos, fields),
            Reading::UntilClose | Reading::Raw if here.is_empty() => Ok(Event::More),
            Reading::UntilClose | Reading::Raw => {
                let start = std::mem::replace(pos, input.len());
                Ok(Event::Data { start, len: here.len(), end_stream: false })
            }
        }
    }

    /// Steps over empty lines before a request (RFC 9112 §2.2): nothing of it is here yet, so that
    /// they neither are kept nor have a deadline.
    fn skip_empty_lines<'a>(
        &mut self,
        mut here: &'a [u8],
        pos: &mut usize,
    ) -> Result<&'a [u8], HeadFault> {
        if self.role == Role::Client {
            return Ok(here);
        }
        if self.held == b"\r" && here.first() == Some(&b'\n') {
            self.held.clear();
            self.scan = Scan::default();
            self.empty_lines += 1;
            (here, *pos) = (&here[1..], *pos + 1);
        }
        while self.held.is_empty() && here.starts_with(b"\r\n") {
            self.empty_lines += 1;
            (here, *pos) = (&here[2..], *pos + 2);
        }
        if self.empty_lines > EMPTY_LINES_MAX { Err(EMPTY_LINES) } else { Ok(here) }
    }

    /// Collects a head or trailer section until it is whole, and reads it.
    fn section(
        &mut self,
        here: &[u8],
        pos: &mut usize,
        read: impl FnOnce(&mut Self, &[u8]) -> Result<Event, Fault>,
    ) -> Result<Event, Fault> {
        let limits = self.section_limits();
        if self.held.is_empty() {
            let Some(range) = self.scan.find_head(here, &limits)? else {
                self.held.extend_from_slice(here);
                *pos += here.len();
                return Ok(Event::More);
            };
            self.check_start(range.start)?;
            *pos += range.end;
            return read(self, &here[range]);
        }
        let before = self.held.len();
        let room = limits.max_bytes.saturating_sub(before);
        self.held.extend_from_slice(&here[..here.len().min(room)]);
        let Some(range) = self.scan.find_head(&self.held, &limits)? else {
            *pos += here.len();
            return Ok(Event::More);
        };
        self.check_start(range.start)?;
        *pos += range.end - before;
        // Most heads come whole: the memory is not kept for the next.
        let held = std::mem::take(&mut self.held);
        read(self, &held[range])
    }

    /// A relic of old clients is forgiven them, not workers.
    fn check_start(&self, start: usize) -> Result<(), HeadFault> {
        if start > 0 && self.role == Role::Client {
            return Err(HeadFault::Malformed("empty line before the status line"));
        }
        Ok(())
    }

    fn section_limits(&self) -> HeadLimits {
        match self.reading {
            Reading::Trailers => self.limits.trailers,
            _ => self.limits.head,
        }
    }

    fn head(&mut self, head: &[u8], fields: &mut Fields) -> Result<Event, Fault> {
        match self.role {
            Role::Server => self.request_head(head, fields),
            Role::Client => self.response_head(head, fields),
        }
    }

    fn request_head(&mut self, head: &[u8], fields: &mut Fields) -> Result<Event, Fault> {
        let request = read_request(head, fields)?;
        self.empty_lines = 0;
        let end_stream = request.body.is_empty();
        let is_11 = request.version == Version::Http11;
        self.version = request.version;
        self.is_head = request.is_head;
        self.keep_alive &= !connection_names(fields, b"close")
            && (is_11 || connection_names(fields, b"keep-alive"));
        // RFC 9110 §10.1.1: not from HTTP/1.0, and not without a body.
        self.awaits_continue =
            is_11 && !end_stream && list_names(fields, Token::Expect, b"100-continue");
        self.reading = body_state(request.body);
        // RFC 9110 §7.8: HTTP/1.0 has no upgrade.
        let upgrade = is_11 && asks_upgrade(fields);
        Ok(Event::Head { kind: HeadKind::Request, end_stream, upgrade })
    }

    fn response_head(&mut self, head: &[u8], fields: &mut Fields) -> Result<Event, Fault> {
        let response = read_response(head, self.is_head, fields)?;
        self.version = response.version;
        if response.status == 101 {
            // What we still send of the request would be the new protocol's first bytes.
            if !self.asked.is_answered_by(fields) || !self.writing.is_done() {
                return Err(Fault::WrongUpgrade);
            }
            self.reading = Reading::Ended;
            self.writing = Writing::Raw;
            self.keep_alive = false;
            return Ok(Event::Head { kind: HeadKind::Response, end_stream: false, upgrade: true });
        }
        if response.status < 200 {
            self.informational += 1;
            if self.informational > self.limits.informational {
                return Err(Fault::TooManyInformational);
            }
            let kind = HeadKind::Informational;
            return Ok(Event::Head { kind, end_stream: false, upgrade: false });
        }
        self.keep_alive &= response.keep_alive;
        self.reading = match response.body {
            ResponseBody::None => Reading::Ended,
            ResponseBody::Length(length) => body_state(Body::Length(length)),
            ResponseBody::Chunked => body_state(Body::Chunked),
            ResponseBody::UntilClose => Reading::UntilClose,
        };
        let end_stream = response.body == ResponseBody::None;
        Ok(Event::Head { kind: HeadKind::Response, end_stream, upgrade: false })
    }

    fn body(
        &mut self,
        mut body: BodyReader,
        here: &[u8],
        pos: &mut usize,
        fields: &mut Fields,
    ) -> Result<Event, Fault> {
        let part = body.read(here)?;
        self.reading = Reading::Body(body);
        match part {
            Part::More => {
                *pos += here.len();
                Ok(Event::More)
            }
            Part::Content { start, len } => {
                let start = *pos + start;
                *pos = start + len;
                self.awaits_continue = false;
                let end_stream = body.is_done();
                if end_stream {
                    self.reading = Reading::Ended;
                }
                Ok(Event::Data { start, len, end_stream })
            }
            Part::Trailers(read) => {
                *pos += read;
                self.scan = Scan::of_trailers();
                self.reading = Reading::Trailers;
                self.section(&here[read..], pos, |conn, lines| conn.trailers(lines, fields))
            }
            Part::End => {
                self.reading = Reading::Ended;
                Ok(Event::End)
            }
        }
    }

    fn trailers(&mut self, lines: &[u8], fields: &mut Fields) -> Result<Event, Fault> {
        read_trailers(lines, fields)?;
        fields.retain(|field| may_be_trailer(&field));
        self.reading = Reading::Ended;
        Ok(if fields.is_empty() { Event::End } else { Event::Trailers })
    }

    // ---- between messages ----

    /// The exchange is over: the next request may be read. Does nothing, and says so, while one of
    /// its messages is open, or if the connection has to be closed instead.
    pub fn next_message(&mut self) -> bool {
        let over = self.role == Role::Server
            && matches!(self.reading, Reading::Ended)
            && self.writing == Writing::Done
            && self.keeps_alive();
        if over {
            self.reading = Reading::Head;
            self.writing = Writing::Idle;
            self.awaits_continue = false;
        }
        over
    }

    /// A request has been written: the response to it may come.
    pub(super) fn expect_response(&mut self) {
        self.reading = Reading::Head;
        self.informational = 0;
    }

    /// Both hops are byte streams from now on: all input is [`Event::Data`], and nothing is written
    /// before a payload. To be called on both when the 101 has been written to the client.
    pub fn raw(&mut self) {
        self.reading = Reading::Raw;
        self.writing = Writing::Raw;
        self.keep_alive = false;
        self.asked.clear();
    }

    /// Whether [`Self::raw`] was called.
    #[must_use]
    pub fn is_raw(&self) -> bool {
        matches!(self.reading, Reading::Raw)
    }

    /// This exchange is to be the connection's last: its response, if not begun, says so.
    pub fn close_after(&mut self) {
        self.keep_alive = false;
    }

    /// Whether another exchange may follow this one, as far as is known.
    #[must_use]
    pub fn keeps_alive(&self) -> bool {
        self.keep_alive && self.fault.is_none()
    }

    /// Whether no message is open in either direction, and no part of one has been read.
    #[must_use]
    pub fn is_between(&self) -> bool {
        match (self.role, self.reading, self.writing) {
            (Role::Server, Reading::Head, Writing::Idle) => self.held.is_empty(),
            // A server owes the answer to what it has read.
            (Role::Client, Reading::Ended, Writing::Idle) => true,
            (_, Reading::Ended, Writing::Done) => true,
            _ => false,
        }
    }

    /// Whether the peer's message has ended, or none was asked for.
    #[must_use]
    pub fn has_read_all(&self) -> bool {
        matches!(self.reading, Reading::Ended)
    }

    /// Bytes of the message under way that are known to come; chunks are not known before.
    #[must_use]
    pub fn announced(&self) -> u64 {
        match &self.reading {
            Reading::Body(body) => body.announced(),
            _ => 0,
        }
    }

    /// Whether our message has ended.
    #[must_use]
    pub fn has_written_all(&self) -> bool {
        self.writing.is_done()
    }

    /// Bytes kept here: of a head that is not whole.
    #[must_use]
    pub fn held(&self) -> usize {
        self.held.len()
    }

    /// What the peer speaks, by its latest head.
    #[must_use]
    pub fn version(&self) -> Version {
        self.version
    }

    /// Whether the exchange's method is HEAD.
    #[must_use]
    pub fn request_method_is_head(&self) -> bool {
        self.is_head
    }

    /// Whether the client waits for a 100 before it sends its body: none was sent, and nothing of
    /// the body came.
    #[must_use]
    pub fn expects_continue(&self) -> bool {
        self.awaits_continue
    }

    /// Whether our message has begun and nothing but the connection's end can end it: a body until
    /// close, or a stream of bytes.
    #[must_use]
    pub fn is_open_ended(&self) -> bool {
        matches!(self.writing, Writing::UntilClose | Writing::Raw)
    }

    /// Whether the response under way ends when its sender closes.
    #[must_use]
    pub fn body_is_until_close(&self) -> bool {
        matches!(self.reading, Reading::UntilClose) || self.writing == Writing::UntilClose
    }
}

fn body_state(body: Body) -> Reading {
    if body.is_empty() { Reading::Ended } else { Reading::Body(BodyReader::new(body)) }
}
