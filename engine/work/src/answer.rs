//! The answers of a gateway, as far as a worker reads them.

use std::fmt;

/// Longest head of an answer, and most fields in it.
const MAX_HEAD: usize = 16 * 1024;
const MAX_FIELDS: usize = 64;
/// Longest body of an answer to a poll.
const MAX_BODY: usize = 64 * 1024;
/// How much of an error's text is shown.
const MAX_TEXT: usize = 200;

/// The little of an answer's head that matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// The head of an answer that may be interim (1xx).
    pub status: u16,
    /// Bytes of the head, with its empty line.
    pub len: usize,
    /// Bytes of the body; `None` if it has another framing.
    pub body: Option<usize>,
    /// The connection ends behind this answer.
    pub last: bool,
}

/// An answer that is not to be understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AnswerFault {
    /// Anything but HTTP/1.1.
    NotHttp,
    /// More than 16 KiB, or than 64 fields.
    HeadTooLong,
    /// More than 64 KiB.
    BodyTooLong,
    /// Where the answer ends cannot be known, or is said in two ways.
    NoLength,
}

impl fmt::Display for AnswerFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotHttp => "the answer is not HTTP/1.1: is this the gateway's worker port?",
            Self::HeadTooLong => "the answer's head is too long",
            Self::BodyTooLong => "the answer's body is too long",
            Self::NoLength => "the answer has no content-length",
        })
    }
}

impl std::error::Error for AnswerFault {}

impl Head {
    /// The head at the start of `bytes`, once it is whole. Interim answers (1xx) are heads too.
    ///
    /// # Errors
    /// What is no head, or too long.
    pub fn parse(bytes: &[u8]) -> Result<Option<Self>, AnswerFault> {
        let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
        let mut response = httparse::Response::new(&mut fields);
        let parsed = response.parse(bytes).map_err(|error| match error {
            httparse::Error::TooManyHeaders => AnswerFault::HeadTooLong,
            _ => AnswerFault::NotHttp,
        })?;
        let httparse::Status::Complete(len) = parsed else {
            return if bytes.len() > MAX_HEAD { Err(AnswerFault::HeadTooLong) } else { Ok(None) };
        };
        let status = response.code.ok_or(AnswerFault::NotHttp)?;
        let mut head = Self { status, len, body: Some(0), last: response.version == Some(0) };
        let mut lengths = 0;
        for field in response.headers.iter() {
            let is = |name: &str| field.name.eq_ignore_ascii_case(name);
            let value = std::str::from_utf8(field.value).unwrap_or_default().trim();
            if is("transfer-encoding") {
                head.body = None;
            } else if is("content-length") && value.bytes().all(|byte| byte.is_ascii_digit()) {
                head.body =
                    head.body.and(Some(value.parse().map_err(|_| AnswerFault::BodyTooLong)?));
                lengths += 1;
            } else if is("content-length") {
                return Err(AnswerFault::NoLength);
            } else if is("connection") && value.eq_ignore_ascii_case("close") {
                head.last = true;
            }
        }
        if lengths > 1 || (lengths == 0 && !matches!(status, 100..200 | 204)) {
            head.body = None;
        }
        Ok(Some(head))
    }
}

/// One whole answer to a poll.
#[derive(Debug, PartialEq, Eq)]
pub struct PollResponse {
    /// Never an interim one.
    pub status: u16,
    /// Without its framing.
    pub body: Vec<u8>,
    /// The connection ends behind it.
    pub last: bool,
}

impl PollResponse {
    /// Takes the answer at the start of `bytes`, once it is whole; interim ones are left out.
    ///
    /// # Errors
    /// What is no answer, or none whose end is known.
    pub fn take(bytes: &mut Vec<u8>) -> Result<Option<Self>, AnswerFault> {
        while let Some(head) = Head::parse(bytes)? {
            if matches!(head.status, 100..200) {
                bytes.drain(..head.len);
                continue;
            }
            let body = head.body.ok_or(AnswerFault::NoLength)?;
            if body > MAX_BODY {
                return Err(AnswerFault::BodyTooLong);
            }
            if bytes.len() - head.len < body {
                return Ok(None);
            }
            let mut body: Vec<u8> = bytes.drain(..head.len + body).collect();
            body.drain(..head.len);
            return Ok(Some(Self { status: head.status, body, last: head.last }));
        }
        Ok(None)
    }
}

/// An error's body as it may stand in a log line.
#[must_use]
pub fn readable(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    text.trim().chars().take(MAX_TEXT).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_taken_once_it_is_whole() {
        let text = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabcHTTP";
        for end in 0..41 {
            let mut bytes = text[..end].to_vec();
            assert_eq!(PollResponse::take(&mut bytes), Ok(None), "{end}");
            assert_eq!(bytes, text[..end]);
        }
        let mut bytes = text.to_vec();
        let answer = PollResponse { status: 200, body: b"abc".to_vec(), last: false };
        assert_eq!(PollResponse::take(&mut bytes), Ok(Some(answer)));
        assert_eq!(bytes, b"HTTP");
    }

    #[test]
    fn interim_answers_are_passed_over_and_the_last_one_says_so() {
        let mut bytes = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No Content\r\n\
                          connection: Close\r\n\r\n"
            .to_vec();
        let answer = PollResponse { status: 204, body: Vec::new(), last: true };
        assert_eq!(PollResponse::take(&mut bytes), Ok(Some(answer)));
        assert!(bytes.is_empty());
        let head = Head::parse(b"HTTP/1.0 200 OK\r\n\r\n").unwrap().unwrap();
        assert!(head.last && head.body.is_none());
    }

    #[test]
    fn what_could_be_read_two_ways_is_refused() {
        use AnswerFault::{BodyTooLong, HeadTooLong, NoLength, NotHttp};
        for (text, fault) in [
            ("SSH-2.0-x\r\n\r\n", NotHttp),
            ("HTTP/1.1 x\r\n\r\n", NotHttp),
            ("HTTP/2 200 OK\r\n\r\n", NotHttp),
            ("HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n", NoLength),
            ("HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n", NoLength),
            (
                "HTTP/1.1 200 OK\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n",
                NoLength,
            ),
            ("HTTP/1.1 403 No\r\n\r\n", NoLength),
            ("HTTP/1.1 200 OK\r\ncontent-length: 65537\r\n\r\n", BodyTooLong),
            ("HTTP/1.1 200 OK\r\ncontent-length: 99999999999999999999999\r\n\r\n", BodyTooLong),
        ] {
            assert_eq!(PollResponse::take(&mut text.as_bytes().to_vec()), Err(fault), "{text:?}");
        }
        let mut long = b"HTTP/1.1 200 OK\r\nx: ".to_vec();
        long.resize(MAX_HEAD + 1, b'x');
        assert_eq!(Head::parse(&long), Err(HeadTooLong));
        let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "a: b\r\n".repeat(MAX_FIELDS + 1));
        assert_eq!(Head::parse(many.as_bytes()), Err(HeadTooLong));
    }

    #[test]
    fn an_errors_text_is_short_and_printable() {
        assert_eq!(readable(b"the key is\x1b[31m wrong\n"), "the key is [31m wrong");
        assert_eq!(readable(&[b'x'; 1000]).len(), MAX_TEXT);
    }
}
