//! HTTP/1 request bodies: a length, or chunks read as strictly as heads (RFC 9112 §6, §7.1).

use super::head::{Body, HeadFault};

/// Bytes of a chunk's size line or of a trailer line, and lines of a trailer section.
const LINE_MAX: usize = 256;
const TRAILERS_MAX: usize = 32;

/// What is left of a body while it comes in.
#[derive(Clone, Copy, Debug)]
pub struct BodyReader {
    state: State,
    trailers: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Bytes to come, then the end.
    Length(u64),
    /// A chunk's size line.
    Size,
    /// Bytes of a chunk to come, then its CRLF.
    Chunk(u64),
    /// The CRLF behind a chunk.
    ChunkEnd,
    /// Trailer lines, which are dropped.
    Trailers,
    Done,
}

/// What the start of the input is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part<'a> {
    /// Bytes of the body, and how much of the input is thereby read.
    Content(&'a [u8], usize),
    /// Framing only: so much of the input is read, go on behind it.
    Framing(usize),
    /// More input is needed; nothing of it is read.
    NeedMore,
    /// The body has ended before this input.
    End,
}

impl BodyReader {
    /// For a body framed as the head says.
    #[must_use]
    pub fn new(body: Body) -> Self {
        let state = match body {
            Body::None | Body::Length(0) => State::Done,
            Body::Length(length) => State::Length(length),
            Body::Chunked => State::Size,
        };
        Self { state, trailers: 0 }
    }

    /// Whether the body is whole.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// Reads one part from the start of `input`.
    ///
    /// # Errors
    /// The sender's framing is broken: what comes next on this connection cannot be told.
    pub fn read<'a>(&mut self, input: &'a [u8]) -> Result<Part<'a>, HeadFault> {
        match self.state {
            State::Done => Ok(Part::End),
            _ if input.is_empty() => Ok(Part::NeedMore),
            State::Length(left) => Ok(self.content(input, left, State::Length, State::Done)),
            State::Chunk(left) => Ok(self.content(input, left, State::Chunk, State::ChunkEnd)),
            State::ChunkEnd | State::Size | State::Trailers => self.line(input),
        }
    }

    fn content<'a>(
        &mut self,
        input: &'a [u8],
        left: u64,
        rest: impl FnOnce(u64) -> State,
        end: State,
    ) -> Part<'a> {
        let here = usize::try_from(left).unwrap_or(usize::MAX).min(input.len());
        let left = left - here as u64;
        self.state = if left == 0 { end } else { rest(left) };
        Part::Content(&input[..here], here)
    }

    fn line<'a>(&mut self, input: &[u8]) -> Result<Part<'a>, HeadFault> {
        let within = &input[..input.len().min(LINE_MAX)];
        let Some(feed) = within.iter().position(|&b| b == b'\n') else {
            return if within.len() == LINE_MAX {
                Err(HeadFault::Malformed("line of a chunked body is too long"))
            } else {
                Ok(Part::NeedMore)
            };
        };
        let Some((b'\r', line)) = within[..feed].split_last() else {
            return Err(HeadFault::Malformed("bare LF in chunked body"));
        };
        self.state = match self.state {
            State::ChunkEnd if line.is_empty() => State::Size,
            State::ChunkEnd => return Err(HeadFault::Malformed("chunk is longer than it said")),
            State::Size => match read_size(line)? {
                0 => State::Trailers,
                size => State::Chunk(size),
            },
            State::Trailers if line.is_empty() => State::Done,
            _ => {
                self.trailers += 1;
                if self.trailers > TRAILERS_MAX {
                    return Err(HeadFault::TooManyFields);
                }
                State::Trailers
            }
        };
        Ok(Part::Framing(feed + 1))
    }
}

/// Hexadecimal digits, then nothing or an extension, which nobody reads (RFC 9112 §7.1.1).
fn read_size(line: &[u8]) -> Result<u64, HeadFault> {
    const FAULT: HeadFault = HeadFault::Malformed("chunk size is malformed");
    let digits = line.split(|&b| b == b';').next().unwrap_or_default().trim_ascii_end();
    // 15 digits are under 2^60.
    if digits.is_empty() || digits.len() > 15 || line.contains(&b'\r') || line.contains(&0) {
        return Err(FAULT);
    }
    digits.iter().try_fold(0_u64, |size, &digit| {
        let digit = char::from(digit).to_digit(16).ok_or(FAULT)?;
        Ok(size << 4 | u64::from(digit))
    })
}
