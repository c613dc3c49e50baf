//! HTTP/1 bodies: a length, or chunks read as strictly as heads (RFC 9112 §6, §7.1).
//!
//! Nothing is kept of what was read: a size line that comes in pieces is read in pieces.

use super::head::{Body, HeadFault};

/// Bytes of a chunk's size line.
pub const CHUNK_LINE_MAX: u16 = 256;

/// Bytes by which a body's chunk extensions may exceed its content. They mean nothing to anybody,
/// so a sender of more than that wants us to be busy (CVE-2023-39326).
pub const CHUNK_EXTENSION_EXCESS: u64 = 16 * 1024;

/// What is left of a body while it comes in.
#[derive(Clone, Copy, Debug)]
pub struct BodyReader {
    state: State,
    /// Bytes of the size line so far.
    line: u16,
    /// Bytes of extensions not yet paid for by content.
    excess: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Bytes to come, then the end.
    Length(u64),
    /// A chunk's size: what its digits say so far, and how many there were.
    Size(u64, u8),
    /// Behind the digits: blanks or an extension, which nobody reads.
    Extension(u64),
    /// The LF of a size line.
    SizeFeed(u64),
    /// Bytes of a chunk to come, then its CRLF.
    Chunk(u64),
    ChunkReturn,
    ChunkFeed,
    /// The last chunk was read; trailer lines, if any, and an empty one follow.
    Trailers,
    Done,
}

/// What the start of the input is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Bytes of the body, from `start` of the input; it is read up to their end.
    Content {
        /// Where they begin, behind framing.
        start: usize,
        /// How many; never 0.
        len: usize,
    },
    /// The whole input was framing, or it was empty.
    More,
    /// The last chunk was read with so many bytes of input: a trailer section follows.
    Trailers(usize),
    /// The body has ended before this input.
    End,
}

const SIZE: HeadFault = HeadFault::Malformed("chunk size is malformed");

impl BodyReader {
    /// For a body framed as the head says.
    #[must_use]
    pub fn new(body: Body) -> Self {
        let state = match body {
            Body::None | Body::Length(0) => State::Done,
            Body::Length(length) => State::Length(length),
            Body::Chunked => State::Size(0, 0),
        };
        Self { state, line: 0, excess: 0 }
    }

    /// Whether all content was read; of chunks, the trailer section may still come.
    #[must_use]
    pub fn is_done(&self) -> bool {
        matches!(self.state, State::Done | State::Trailers)
    }

    /// Bytes that are known to come.
    pub(super) fn announced(&self) -> u64 {
        match self.state {
            State::Length(left) | State::Chunk(left) => left,
            _ => 0,
        }
    }

    /// Reads one part from the start of `input`.
    ///
    /// # Errors
    /// The sender's framing is broken, so the next bytes of this connection cannot be understood.
    pub fn read(&mut self, input: &[u8]) -> Result<Part, HeadFault> {
        let mut at = 0;
        loop {
            match self.state {
                State::Done => return Ok(Part::End),
                State::Trailers => return Ok(Part::Trailers(at)),
                _ if at == input.len() => return Ok(Part::More),
                State::Length(left) => return Ok(self.content(at, input.len() - at, left)),
                State::Chunk(left) => {
                    let part = self.content(at, input.len() - at, left);
                    if let Part::Content { len, .. } = part {
                        self.excess = self.excess.saturating_sub(len as u64);
                    }
                    return Ok(part);
                }
                _ => self.octet(input[at])?,
            }
            at += 1;
        }
    }

    fn content(&mut self, start: usize, here: usize, left: u64) -> Part {
        let len = usize::try_from(left).unwrap_or(usize::MAX).min(here);
        let left = left - len as u64;
        self.state = match self.state {
            State::Length(_) if left == 0 => State::Done,
            State::Length(_) => State::Length(left),
            _ if left == 0 => State::ChunkReturn,
            _ => State::Chunk(left),
        };
        Part::Content { start, len }
    }

    /// One octet of framing: `size [blanks] [;extension] CRLF`, or the CRLF behind a chunk.
    fn octet(&mut self, octet: u8) -> Result<(), HeadFault> {
        self.state = match (self.state, octet) {
            (State::ChunkReturn, b'\r') => State::ChunkFeed,
            (State::ChunkFeed, b'\n') => State::Size(0, 0),
            (State::ChunkReturn | State::ChunkFeed, _) => {
                return Err(HeadFault::Malformed("chunk does not end where it said"));
            }
            (State::Size(..) | State::Extension(_), b'\n') => {
                return Err(HeadFault::Malformed("bare LF in chunked body"));
            }
            (State::Size(size, 1..) | State::Extension(size), b'\r') => State::SizeFeed(size),
            (State::Size(size, digits), _) => read_size(size, digits, octet)?,
            (State::Extension(size), b'\t' | b' '..=b'~' | 128..) => {
                self.excess += 1;
                State::Extension(size)
            }
            (State::SizeFeed(0), b'\n') => State::Trailers,
            (State::SizeFeed(size), b'\n') => State::Chunk(size),
            _ => return Err(SIZE),
        };
        match self.state {
            State::Size(_, 1..) | State::Extension(_) => self.line += 1,
            _ => self.line = 0,
        }
        if self.line > CHUNK_LINE_MAX || self.excess > CHUNK_EXTENSION_EXCESS {
            return Err(HeadFault::Malformed("too much chunk extension"));
        }
        Ok(())
    }
}

/// Hexadecimal digits, then nothing, blanks or an extension (RFC 9112 §7.1.1).
fn read_size(size: u64, digits: u8, octet: u8) -> Result<State, HeadFault> {
    match char::from(octet).to_digit(16) {
        // 15 digits are under 2^60.
        Some(digit) if digits < 15 => Ok(State::Size(size << 4 | u64::from(digit), digits + 1)),
        None if digits > 0 && matches!(octet, b';' | b' ' | b'\t') => Ok(State::Extension(size)),
        _ => Err(SIZE),
    }
}
