//! One strict HTTP/1 request head parser (RFC 9112; design 6).
//!
//! What two parsers could read differently is refused: no folded lines, no bare CR or LF, no
//! space before a colon, no doubtful body length. The request line becomes `:method` and `:path`,
//! names are lower-cased, so that `route.rs` reads HTTP/1 and HTTP/2 heads alike.

use crate::fields::{Field, Fields, Token};
use std::ops::Range;

/// How large a head may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadLimits {
    /// Bytes from the first to the end of the empty line.
    pub max_bytes: usize,
    /// Field lines.
    pub max_fields: usize,
}

impl HeadLimits {
    /// For worker connections (limit L10).
    pub const WORKER: Self = Self { max_bytes: 16 * 1024, max_fields: 256 };
    /// For client connections and what passes on tunnels (limits L2, L3).
    pub const CLIENT: Self = Self { max_bytes: 256 * 1024, max_fields: 1024 };
}

/// What the request line says the sender speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Version {
    Http10,
    Http11,
}

/// How a request's body is framed (RFC 9112 §6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body {
    /// Neither field: there is no body.
    None,
    /// `Content-Length`, which may be zero.
    Length(u64),
    /// `Transfer-Encoding: chunked`.
    Chunked,
}

impl Body {
    /// Whether no byte of body follows the head.
    #[must_use]
    pub fn is_empty(self) -> bool {
        matches!(self, Self::None | Self::Length(0))
    }
}

/// A whole request head; method, target and fields are in the [`Fields`] it was parsed into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestHead {
    /// Bytes of input it took, the empty line included. The body begins there.
    pub head_len: usize,
    /// What the sender speaks.
    pub version: Version,
    /// What follows the head.
    pub body: Body,
}

impl RequestHead {
    /// The method, from the list this head was parsed into.
    #[must_use]
    pub fn method<'a>(&self, fields: &'a Fields) -> &'a [u8] {
        fields.first(Token::Method).unwrap_or_default()
    }

    /// The request target in the form it was sent, from the list this head was parsed into.
    #[must_use]
    pub fn target<'a>(&self, fields: &'a Fields) -> &'a [u8] {
        fields.first(Token::Path).unwrap_or_default()
    }

    /// Whether the sender waits for `100 Continue` before it sends the body (RFC 9110 §10.1.1).
    #[must_use]
    pub fn expects_continue(&self, fields: &Fields) -> bool {
        let expect = fields.first(Token::Expect).unwrap_or_default();
        self.version == Version::Http11 && expect.eq_ignore_ascii_case(b"100-continue")
    }
}

/// What is wrong with a head. The connection is closed behind the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadFault {
    /// 400: not a request, or one that could be read in two ways.
    Malformed(&'static str),
    /// 408: it did not come in time. The caller has the clock.
    Timeout,
    /// 431: over [`HeadLimits::max_bytes`].
    TooLarge,
    /// 431: over [`HeadLimits::max_fields`].
    TooManyFields,
    /// 501: a transfer coding other than `chunked`.
    UnknownCoding,
    /// 505: no version of HTTP/1.
    UnknownVersion,
}

impl HeadFault {
    /// The status it is answered with.
    #[must_use]
    pub fn status(self) -> u16 {
        match self {
            Self::Malformed(_) => 400,
            Self::Timeout => 408,
            Self::TooLarge | Self::TooManyFields => 431,
            Self::UnknownCoding => 501,
            Self::UnknownVersion => 505,
        }
    }

    /// The text it is answered with; nothing of it is the peer's.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Self::Malformed(text) => text,
            Self::Timeout => "request head did not come in time",
            Self::TooLarge => "head is too large",
            Self::TooManyFields => "head has too many fields",
            Self::UnknownCoding => "transfer coding is not supported",
            Self::UnknownVersion => "HTTP version is not supported",
        }
    }
}

impl std::fmt::Display for HeadFault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.text())
    }
}

impl std::error::Error for HeadFault {}

/// Reads a request head from the start of `input`; `None` if it is not whole yet.
///
/// `fields` is cleared, and filled only by a whole head. Called again with more bytes it starts
/// over; [`Scan`] does not.
///
/// # Errors
/// The first fault in reading order, as early as it can be known.
pub fn parse_request(
    input: &[u8],
    fields: &mut Fields,
    limits: &HeadLimits,
) -> Result<Option<RequestHead>, HeadFault> {
    Scan::default().parse_request(input, fields, limits)
}

/// How far the search for a head's end went, kept while the head trickles in: whatever the cuts,
/// each byte is searched once and parsed once.
#[derive(Clone, Copy, Debug, Default)]
pub struct Scan {
    searched: usize,
    line: usize,
    start: usize,
    lines: usize,
}

/// Empty lines that are forgiven before a request line (RFC 9112 §2.2 asks for one).
pub(super) const EMPTY_LINES_MAX: usize = 4;

/// What is said to more of them.
pub(super) const EMPTY_LINES: HeadFault =
    HeadFault::Malformed("empty lines before the request line");

const TEXT: u8 = 0;
const LINE_END: u8 = 1;
const FORBIDDEN: u8 = 2;

/// Octets of a head: control octets but HTAB are refused wherever they are (RFC 9110 §5.5), so that
/// TLS on this port is recognised at its first byte.
const KIND: [u8; 256] = {
    let mut table = [TEXT; 256];
    let mut i = 0;
    while i < 32 {
        table[i] = FORBIDDEN;
        i += 1;
    }
    table[b'\t' as usize] = TEXT;
    table[b'\r' as usize] = LINE_END;
    table[b'\n' as usize] = FORBIDDEN;
    table[127] = FORBIDDEN;
    table
};

impl Scan {
    /// As [`parse_request`], for the same `input` grown at its end since the last call. Ready for
    /// the next head once one is read.
    ///
    /// # Errors
    /// As [`parse_request`].
    pub fn parse_request(
        &mut self,
        input: &[u8],
        fields: &mut Fields,
        limits: &HeadLimits,
    ) -> Result<Option<RequestHead>, HeadFault> {
        fields.clear();
        let Some(range) = self.find_head(input, limits)? else {
            return Ok(None);
        };
        let head_len = range.end;
        let mut lines = Lines(&input[range]);
        let line = RequestLine::read(lines.next().unwrap_or_default())?;
        fields.push(Field { token: Token::Method, ..Field::new(b":method", line.method) });
        fields.push(Field { token: Token::Path, ..Field::new(b":path", line.target) });
        for line in lines {
            read_field_line(line, fields)?;
        }
        let body = read_framing(fields, line.version)?;
        Ok(Some(RequestHead { head_len, version: line.version, body }))
    }

    /// For a trailer section: field lines alone, perhaps none.
    pub(super) fn of_trailers() -> Self {
        Self { lines: 1, ..Self::default() }
    }

    /// Where the head begins and ends, the empty line included; ready for the next one then.
    pub(super) fn find_head(
        &mut self,
        input: &[u8],
        limits: &HeadLimits,
    ) -> Result<Option<Range<usize>>, HeadFault> {
        let end = self.find_end(input, limits)?;
        Ok(end.map(|end| std::mem::take(self).start..end))
    }

    /// Where the head ends, behind its empty line.
    fn find_end(&mut self, input: &[u8], limits: &HeadLimits) -> Result<Option<usize>, HeadFault> {
        let within = &input[..input.len().min(limits.max_bytes)];
        while let Some(&octet) = within.get(self.searched) {
            match KIND[octet as usize] {
                TEXT => self.searched += 1,
                LINE_END => {
                    let Some(&next) = within.get(self.searched + 1) else { break };
                    if next != b'\n' {
                        return Err(HeadFault::Malformed("bare CR in head"));
                    }
                    if self.end_line(limits)? {
                        return Ok(Some(self.searched));
                    }
                }
                _ if octet == b'\n' => {
                    return Err(HeadFault::Malformed("bare LF in head"));
                }
                _ => return Err(HeadFault::Malformed("control octet in head")),
            }
        }
        if within.len() == limits.max_bytes { Err(HeadFault::TooLarge) } else { Ok(None) }
    }

    /// Steps over a line's CRLF; whether it was the head's last.
    fn end_line(&mut self, limits: &HeadLimits) -> Result<bool, HeadFault> {
        let empty = self.line == self.searched;
        self.searched += 2;
        self.line = self.searched;
        if !empty {
            self.lines += 1;
            // The request line is one of them.
            return if self.lines > limits.max_fields + 1 {
                Err(HeadFault::TooManyFields)
            } else {
                Ok(false)
            };
        }
        if self.lines > 0 {
            return Ok(true);
        }
        // RFC 9112 §2.2: empty lines before the request line are a relic of old clients.
        if self.start >= 2 * EMPTY_LINES_MAX {
            return Err(EMPTY_LINES);
        }
        self.start = self.searched;
        Ok(false)
    }
}

/// The lines of a head of which [`Scan`] has seen that every CR is a CRLF's.
pub(super) struct Lines<'a>(pub(super) &'a [u8]);

impl<'a> Iterator for Lines<'a> {
    type Item = &'a [u8];

    /// The next line without its CRLF; `None` at the empty line.
    fn next(&mut self) -> Option<&'a [u8]> {
        let end = self.0.iter().position(|&b| b == b'\r').filter(|&end| end > 0)?;
        let line = &self.0[..end];
        self.0 = &self.0[end + 2..];
        Some(line)
    }
}

/// Octets of a token (RFC 9110 §5.6.2).
const TOKEN_OCTET: [bool; 256] = {
    let mut table = [false; 256];
    let allowed = b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyz";
    let mut i = 0;
    while i < allowed.len() {
        table[allowed[i] as usize] = true;
        table[allowed[i].to_ascii_uppercase() as usize] = true;
        i += 1;
    }
    table
};

pub(super) fn is_token(text: &[u8]) -> bool {
    !text.is_empty() && text.iter().all(|&b| TOKEN_OCTET[b as usize])
}

/// A request line, cut up.
pub(super) struct RequestLine<'a> {
    pub(super) method: &'a [u8],
    pub(super) target: &'a [u8],
    pub(super) version: Version,
}

impl<'a> RequestLine<'a> {
    /// `method SP target SP version`, with exactly these two spaces (RFC 9112 §3).
    pub(super) fn read(line: &'a [u8]) -> Result<Self, HeadFault> {
        let mut parts = line.splitn(3, |&b| b == b' ');
        let (method, target) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        if !is_token(method) {
            return Err(HeadFault::Malformed("request method is not a token"));
        }
        if !target_is_valid(method, target) {
            return Err(HeadFault::Malformed("request target is malformed"));
        }
        let version = read_version(parts.next().unwrap_or_default())
            .unwrap_or(Err(HeadFault::Malformed("request line is malformed")))?;
        Ok(Self { method, target, version })
    }
}

/// `None` if it is no HTTP version at all. Of a later HTTP/1 no more is meant than of 1.1
/// (RFC 9110 §2.5).
pub(super) fn read_version(text: &[u8]) -> Option<Result<Version, HeadFault>> {
    match text {
        b"HTTP/1.0" => Some(Ok(Version::Http10)),
        [b'H', b'T', b'T', b'P', b'/', b'1', b'.', b'1'..=b'9'] => Some(Ok(Version::Http11)),
        [b'H', b'T', b'T', b'P', b'/', b'0'..=b'9', b'.', b'0'..=b'9'] => {
            Some(Err(HeadFault::UnknownVersion))
        }
        _ => None,
    }
}

/// The four forms of RFC 9112 §3.2; a CONNECT's may be any, for workers send origin-form (WK-1).
fn target_is_valid(method: &[u8], target: &[u8]) -> bool {
    // Octets over 127 are no URI's, but they are sent and passed on everywhere.
    if target.is_empty() || target.contains(&b'\t') {
        return false;
    }
    match target[0] {
        b'/' => true,
        b'*' => target.len() == 1 && method == b"OPTIONS",
        b'a'..=b'z' | b'A'..=b'Z' if method != b"CONNECT" => {
            target.windows(3).any(|window| window == b"://")
        }
        _ => method == b"CONNECT",
    }
}

/// Longest name that is lower-cased without an allocation: longer than any we have a rule for.
const SHORT_NAME: usize = 64;

pub(super) fn read_field_line(line: &[u8], fields: &mut Fields) -> Result<(), HeadFault> {
    if matches!(line[0], b' ' | b'\t') {
        // RFC 9112 §5.2
        return Err(HeadFault::Malformed("folded header line"));
    }
    let colon = line.iter().position(|&b| b == b':');
    let Some((name, value)) = colon.map(|colon| (&line[..colon], &line[colon + 1..])) else {
        return Err(HeadFault::Malformed("header line without a colon"));
    };
    if !is_token(name) {
        // RFC 9112 §5.1: white space between name and colon is one case of it.
        return Err(HeadFault::Malformed("header name is malformed"));
    }
    let mut short = [0; SHORT_NAME];
    let long;
    let lower = match short.get_mut(..name.len()) {
        Some(short) => {
            short.copy_from_slice(name);
            short.make_ascii_lowercase();
            &*short
        }
        None => {
            long = name.to_ascii_lowercase();
            &long
        }
    };
    fields.push(Field::new(lower, trim_blank(value)));
    Ok(())
}

/// Reads the field lines of a trailer section.
pub(super) fn read_trailers(section: &[u8], fields: &mut Fields) -> Result<(), HeadFault> {
    fields.clear();
    Lines(section).try_for_each(|line| read_field_line(line, fields))
}

/// Without optional white space at both ends (RFC 9110 §5.6.3).
pub(super) fn trim_blank(value: &[u8]) -> &[u8] {
    let is_text = |b: &u8| !matches!(b, b' ' | b'\t');
    let start = value.iter().position(is_text).unwrap_or(value.len());
    let end = value.iter().rposition(is_text).map_or(start, |last| last + 1);
    &value[start..end]
}

/// Host and body framing, read so that nobody can read them otherwise (RFC 9112 §3.2, §6).
pub(super) fn read_framing(fields: &Fields, version: Version) -> Result<Body, HeadFault> {
    check_options(fields)?;
    let (mut hosts, mut lengths, mut codings) = (0, 0, 0);
    let (mut length, mut coding) = (None, None);
    for field in fields.iter() {
        match field.token {
            Token::Host => hosts += 1,
            Token::ContentLength => {
                lengths += 1;
                length = Some(read_length(field.value)?);
            }
            Token::TransferEncoding => {
                codings += 1;
                coding = Some(field.value);
            }
            Token::Connection => check_connection(field.value)?,
            _ => {}
        }
    }
    if lengths > 1 {
        return Err(HeadFault::Malformed("several Content-Length fields"));
    }
    if codings > 1 {
        return Err(HeadFault::Malformed("several Transfer-Encoding fields"));
    }
    if hosts > 1 || (hosts == 0 && version == Version::Http11) {
        return Err(HeadFault::Malformed("request needs one Host field"));
    }
    match (length, coding) {
        (None, None) => Ok(Body::None),
        (Some(length), None) => Ok(Body::Length(length)),
        (Some(_), Some(_)) => {
            Err(HeadFault::Malformed("both Content-Length and Transfer-Encoding"))
        }
        // RFC 9112 §6.1: chunked is not HTTP/1.0's; whoever sent it frames in another way.
        (None, Some(_)) if version == Version::Http10 => {
            Err(HeadFault::Malformed("Transfer-Encoding in HTTP/1.0"))
        }
        (None, Some(coding)) if coding.eq_ignore_ascii_case(b"chunked") => Ok(Body::Chunked),
        (None, Some(_)) => Err(HeadFault::UnknownCoding),
    }
}

/// Digits and nothing else: no sign, no list (RFC 9110 §8.6).
pub(super) fn read_length(value: &[u8]) -> Result<u64, HeadFault> {
    let number = value.iter().try_fold(0_u64, |number, digit| match digit {
        b'0'..=b'9' => number.checked_mul(10)?.checked_add(u64::from(digit - b'0')),
        _ => None,
    });
    number
        .filter(|_| !value.is_empty())
        .ok_or(HeadFault::Malformed("Content-Length is not a number"))
}

/// Most options of all `Connection` fields: each other field is compared with them.
const CONNECTION_OPTIONS_MAX: usize = 32;

pub(super) fn check_options(fields: &Fields) -> Result<(), HeadFault> {
    let connection = fields.iter().filter(|field| field.token == Token::Connection);
    if connection.flat_map(|field| options(field.value)).count() > CONNECTION_OPTIONS_MAX {
        return Err(HeadFault::Malformed("Connection has too many options"));
    }
    Ok(())
}

/// Refuses a `Connection` field that would take away what the next hop decides by
/// (design 6).
fn check_connection(value: &[u8]) -> Result<(), HeadFault> {
    const PROTECTED: [&[u8]; 6] = [
        b"authorization",
        b"content-length",
        b"cookie",
        b"function-id",
        b"function-version-id",
        b"host",
    ];
    let protected = |option: &[u8]| {
        PROTECTED.iter().any(|name| option.eq_ignore_ascii_case(name))
            || option.get(..5).is_some_and(|start| start.eq_ignore_ascii_case(b"nvcf-"))
    };
    if options(value).any(protected) {
        return Err(HeadFault::Malformed("Connection names a field that is not its to remove"));
    }
    Ok(())
}

pub(super) fn options(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|&b| b == b',').map(trim_blank)
}

/// Whether the connection can take another request after this one (RFC 9112 §9.3).
///
/// Never with HTTP/1.0: its keep-alive is an extension that nobody here needs.
#[must_use]
pub fn keeps_alive(version: Version, fields: &Fields) -> bool {
    version == Version::Http11 && !connection_names(fields, b"close")
}

/// Whether some `Connection` field has this option: a lower-case field name, which then ends at
/// this hop (RFC 9110 §7.6.1, CL-28), or `close`, `keep-alive`, `upgrade`.
#[must_use]
pub fn connection_names(fields: &Fields, option: &[u8]) -> bool {
    list_names(fields, Token::Connection, option)
}

/// Whether a field of this token, read as a list, has this member.
pub(super) fn list_names(fields: &Fields, token: Token, member: &[u8]) -> bool {
    let mut lists = fields.iter().filter(|field| field.token == token);
    lists.any(|field| options(field.value).any(|o| o.eq_ignore_ascii_case(member)))
}
