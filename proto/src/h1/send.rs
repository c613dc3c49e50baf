//! The sending half: heads, chunk framing and trailers.
//!
//! Heads are always written anew, never passed on as bytes. The fields about this hop (framing,
//! `connection`, `host`) are written from what is known here, and dropped from what the caller
//! gives. The caller knows which fields end at the other hop.

use super::conn::Conn;
use super::head::{Version, options, read_length};
use super::target::can_be_sent;
use super::write::{put_field, put_status_line};
use super::writing::{Writing, may_be_trailer, passes};
use super::{Fault, Role};
use crate::Sink;
use crate::decimal::{DIGITS_MAX, decimal};
use crate::fields::{Field, Fields, Token, value_is_valid};

/// What has to stand on the wire before a payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkHead {
    bytes: [u8; Self::MAX],
    len: u8,
}

impl ChunkHead {
    /// CRLF, 16 digits, CRLF.
    pub const MAX: usize = 20;
    const NONE: Self = Self { bytes: [0; Self::MAX], len: 0 };

    fn new(behind_chunk: bool, size: usize) -> Self {
        let mut head = Self::NONE;
        if behind_chunk {
            head.push(b'\r');
            head.push(b'\n');
        }
        let digits = (usize::BITS - size.leading_zeros()).div_ceil(4);
        for at in (0..digits).rev() {
            head.push(b"0123456789abcdef"[size >> (4 * at) & 15]);
        }
        head.push(b'\r');
        head.push(b'\n');
        head
    }

    fn push(&mut self, octet: u8) {
        self.bytes[self.len as usize] = octet;
        self.len += 1;
    }

    /// The bytes; none if the payload needs no framing.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len as usize]
    }
}

/// What a list says that is not passed on as it is.
#[derive(Default)]
struct Outline<'a> {
    method: &'a [u8],
    path: &'a [u8],
    status: &'a [u8],
    authority: Option<&'a [u8]>,
    host: Option<&'a [u8]>,
    length: Option<u64>,
    upgrade: bool,
    te: bool,
}

impl<'a> Outline<'a> {
    fn of(fields: impl Iterator<Item = Field<'a>>) -> Self {
        let mut outline = Self::default();
        for field in fields {
            match field.token {
                Token::Method => outline.method = field.value,
                Token::Path => outline.path = field.value,
                Token::Status => outline.status = field.value,
                Token::Authority => outline.authority = outline.authority.or(Some(field.value)),
                Token::Host => outline.host = outline.host.or(Some(field.value)),
                Token::ContentLength => outline.read_length(field.value),
                Token::Upgrade => outline.upgrade |= passes(&field),
                // RFC 9110 §10.1.4: a list; of what it names only this passes (CL-28).
                Token::Te => outline.te |= is_te_trailers(field.value),
                _ => {}
            }
        }
        outline
    }

    fn read_length(&mut self, value: &[u8]) {
        let number = options(value).next().and_then(|number| read_length(number).ok());
        self.length = self.length.or(number);
    }
}

/// Whether a `te` field says that trailers are read; of its list nothing else passes.
#[must_use]
pub fn is_te_trailers(value: &[u8]) -> bool {
    options(value).any(|coding| coding.eq_ignore_ascii_case(b"trailers"))
}

impl Conn {
    /// Writes a request's head (client role); the exchange begins. `fields` has `:method`, `:path`
    /// and `:authority` or `host`.
    ///
    /// Framing is chosen here: none if `end_stream`, the `content-length` if there is one, else
    /// chunks. An `upgrade` field among `fields` makes it a request to change protocols.
    ///
    /// # Errors
    /// If method or path cannot stand in a request line; nothing has been written then.
    pub fn request<'a>(
        &mut self,
        fields: impl Iterator<Item = Field<'a>> + Clone,
        end_stream: bool,
        out: &mut impl Sink,
    ) -> Result<(), Fault> {
        debug_assert!(self.role == Role::Client && self.is_between(), "one exchange at a time");
        let outline = Outline::of(fields.clone());
        let authority = outline.authority.or(outline.host).unwrap_or_default();
        if !can_be_sent(outline.method, outline.path) || !value_is_valid(authority) {
            return Err(Fault::Unwritable);
        }
        for part in [outline.method, b" ", outline.path, b" HTTP/1.1\r\n"] {
            out.put(part);
        }
        // RFC 9112 §3.2: first, and also if the client had none.
        put_field(b"host", authority, out);
        self.asked.clear();
        for field in fields.filter(passes).filter(|field| field.token != Token::Host) {
            if field.token == Token::Upgrade {
                self.asked.add(field.value);
            }
            put_field(field.name, field.value, out);
        }
        if outline.te {
            put_field(b"te", b"trailers", out);
        }
        self.is_head = outline.method == b"HEAD";
        self.writing = match outline.length {
            Some(0) | None if end_stream => Writing::Done,
            Some(length) => Writing::Length(length),
            None => Writing::Chunked(false),
        };
        put_framing(self.writing, outline.length, out);
        put_connection(&outline, None, out);
        out.put(b"\r\n");
        self.expect_response();
        Ok(())
    }

    /// Writes a response's head (server role), final or 1xx. `fields` has `:status`.
    ///
    /// Framing is chosen here: none for what has no content (HEAD, 204, 304), the
    /// `content-length` if there is one, else chunks, or for an HTTP/1.0 client the end of the
    /// connection. A 1xx is not written to an HTTP/1.0 client, which knows none.
    ///
    /// # Errors
    /// If the status is none; nothing has been written then.
    pub fn response<'a>(
        &mut self,
        fields: impl Iterator<Item = Field<'a>> + Clone,
        end_stream: bool,
        out: &mut impl Sink,
    ) -> Result<(), Fault> {
        debug_assert!(self.role == Role::Server, "a client has no responses");
        let outline = Outline::of(fields.clone());
        let [b'1'..=b'9', b'0'..=b'9', b'0'..=b'9'] = outline.status else {
            return Err(Fault::Unwritable);
        };
        let status = outline.status.iter().fold(0, |sum, digit| sum * 10 + u16::from(digit - b'0'));
        if status < 200 {
            self.put_informational(status, &outline, fields, out);
            return Ok(());
        }
        self.writing = self.response_framing(status, &outline, end_stream);
        // RFC 9110 §10.1.1: it is not known whether the client will send its body now.
        if self.writing == Writing::UntilClose || self.awaits_continue {
            self.keep_alive = false;
        }
        put_status_line(status, out);
        for field in fields.filter(passes).filter(|field| field.token != Token::Upgrade) {
            put_field(field.name, field.value, out);
        }
        let length = match outline.length {
            _ if status == 204 => None,
            None if end_stream && self.writing == Writing::Done && !self.has_no_content(status) => {
                Some(0)
            }
            length => length,
        };
        put_framing(self.writing, length, out);
        let option = match (self.keep_alive, self.version) {
            (false, _) => Some(&b"close"[..]),
            (true, Version::Http10) => Some(&b"keep-alive"[..]),
            (true, Version::Http11) => None,
        };
        put_connection(&Outline::default(), option, out);
        out.put(b"\r\n");
        Ok(())
    }

    fn put_informational<'a>(
        &mut self,
        status: u16,
        outline: &Outline<'_>,
        fields: impl Iterator<Item = Field<'a>>,
        out: &mut impl Sink,
    ) {
        // RFC 9110 §15.2
        if self.version == Version::Http10 {
            return;
        }
        if status == 100 {
            self.awaits_continue = false;
        }
        put_status_line(status, out);
        let upgrades = |field: &Field<'_>| field.token != Token::Upgrade || status == 101;
        for field in fields.filter(passes).filter(upgrades) {
            put_field(field.name, field.value, out);
        }
        let upgrade = status == 101 && outline.upgrade;
        put_connection(&Outline { upgrade, ..Outline::default() }, None, out);
        out.put(b"\r\n");
    }

    fn has_no_content(&self, status: u16) -> bool {
        self.is_head || matches!(status, 204 | 304)
    }

    fn response_framing(&self, status: u16, outline: &Outline<'_>, end_stream: bool) -> Writing {
        match outline.length {
            _ if self.has_no_content(status) && end_stream => Writing::Done,
            _ if self.has_no_content(status) => Writing::Empty,
            Some(0) | None if end_stream => Writing::Done,
            Some(length) => Writing::Length(length),
            None if self.version == Version::Http11 => Writing::Chunked(false),
            None => Writing::UntilClose,
        }
    }

    /// What has to stand before a payload of `len` bytes; `end_stream` says that it is the last, so
    /// that a wrong length is known before the peer has it all. [`Self::finish`] is still to be
    /// called behind it.
    ///
    /// # Errors
    /// If the body is longer, or with `end_stream` shorter, than was announced: the payload must
    /// not be sent, and the connection has to be closed.
    pub fn data_head(&mut self, len: usize, end_stream: bool) -> Result<ChunkHead, Fault> {
        match self.writing {
            Writing::Length(left) => {
                let left = left.checked_sub(len as u64).ok_or(Fault::WrongLength)?;
                if end_stream && left > 0 {
                    return Err(Fault::WrongLength);
                }
                self.writing = Writing::Length(left);
                Ok(ChunkHead::NONE)
            }
            // An empty chunk would be the last.
            Writing::Chunked(_) if len == 0 => Ok(ChunkHead::NONE),
            Writing::Chunked(behind_chunk) => {
                self.writing = Writing::Chunked(true);
                Ok(ChunkHead::new(behind_chunk, len))
            }
            Writing::UntilClose | Writing::Raw => Ok(ChunkHead::NONE),
            Writing::Idle | Writing::Empty | Writing::Done if len == 0 => Ok(ChunkHead::NONE),
            Writing::Idle | Writing::Empty | Writing::Done => Err(Fault::WrongLength),
        }
    }

    /// Ends our message: the last chunk and the trailers, if it is chunked; else trailers are
    /// dropped, for there is no place for them. Does nothing if it has ended.
    ///
    /// # Errors
    /// If fewer bytes came than were announced: the connection has to be closed.
    pub fn finish(&mut self, trailers: Option<&Fields>, out: &mut impl Sink) -> Result<(), Fault> {
        match self.writing {
            Writing::Length(1..) => return Err(Fault::WrongLength),
            Writing::Chunked(behind_chunk) => {
                out.put(if behind_chunk { b"\r\n0\r\n" } else { b"0\r\n" });
                let trailers = trailers.into_iter().flat_map(Fields::iter);
                for field in trailers.filter(may_be_trailer) {
                    put_field(field.name, field.value, out);
                }
                out.put(b"\r\n");
            }
            Writing::Idle | Writing::Raw => return Ok(()),
            Writing::Empty | Writing::Length(0) | Writing::UntilClose | Writing::Done => {}
        }
        self.writing = Writing::Done;
        Ok(())
    }
}

fn put_framing(writing: Writing, length: Option<u64>, out: &mut impl Sink) {
    match (writing, length) {
        (Writing::Chunked(_), _) => put_field(b"transfer-encoding", b"chunked", out),
        (_, Some(length)) => {
            put_field(b"content-length", decimal(length, &mut [0; DIGITS_MAX]), out);
        }
        (_, None) => {}
    }
}

/// The one `connection` field, if there is anything to say in it.
fn put_connection(outline: &Outline<'_>, option: Option<&[u8]>, out: &mut impl Sink) {
    let te = outline.te.then_some(&b"te"[..]);
    let upgrade = outline.upgrade.then_some(&b"upgrade"[..]);
    let mut before = &b"connection: "[..];
    for option in [option, upgrade, te].into_iter().flatten() {
        out.put(before);
        out.put(option);
        before = b", ";
    }
    if before == b", " {
        out.put(b"\r\n");
    }
}
