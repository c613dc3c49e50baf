//! The endpoint's HTTP/1.1 side: what a path asks for is answered, and a WebSocket echoes or
//! streams. Neighbours: [`crate::web`] asks, [`Server`] chooses between this and HTTP/2.

use std::collections::VecDeque;

use crate::drive::Machine;
use crate::endpoint::{Endpoint, FILL, OUT_LIMIT};
use crate::fault::Fault;
use crate::http1::{Known, Request, Wish};
use crate::websocket::{self, Frames};
use crate::wire::PREFACE;

/// What a connection does.
#[derive(Debug, Default)]
enum Doing {
    #[default]
    Heads,
    /// The rest of a request's body, and what is to be answered.
    Body { left: u64, answer: u64 },
    /// Each message is answered by one of so many octets.
    Echo(Frames, u64),
    /// Messages of so many octets without end.
    Stream(u64),
}

/// One HTTP/1.1 connection's server side.
#[derive(Debug, Default)]
pub struct Site {
    known: Known,
    doing: Doing,
    out: Vec<u8>,
    /// Octets of an answer's body that are to be sent.
    left: u64,
    /// Sizes of the answers behind it.
    next: VecDeque<u64>,
}

impl Machine for Site {
    fn received(&mut self, bytes: &[u8]) -> Result<usize, Fault> {
        let mut at = 0;
        while let Some(taken) = self.take(&bytes[at..])? {
            at += taken;
        }
        self.refill();
        Ok(at)
    }

    fn refill(&mut self) {
        while self.out.len() < OUT_LIMIT {
            let piece = self.left.min(FILL.len() as u64);
            self.out.extend_from_slice(&FILL[..piece as usize]);
            self.left -= piece;
            if self.left == 0 {
                let Some(size) = self.next.pop_front() else { break };
                self.begin(size);
            }
        }
        if let Doing::Stream(size) = self.doing {
            while self.out.len() < OUT_LIMIT {
                websocket::put_message(&mut self.out, size as usize, false);
            }
        }
    }

    fn output(&mut self) -> &mut Vec<u8> {
        &mut self.out
    }
}

impl Site {
    /// Takes the next part of a request; `None` when more octets are needed.
    fn take(&mut self, bytes: &[u8]) -> Result<Option<usize>, Fault> {
        match &mut self.doing {
            Doing::Heads => {
                let Some((size, request)) = self.known.request(bytes).map_err(Fault::Http)? else {
                    return Ok(None);
                };
                self.asked(request)?;
                Ok(Some(size))
            }
            Doing::Body { left, answer } => {
                let piece = (bytes.len() as u64).min(*left);
                *left -= piece;
                if *left == 0 {
                    let answer = *answer;
                    self.doing = Doing::Heads;
                    self.answer(answer);
                    return Ok(Some(piece as usize));
                }
                Ok((piece > 0).then_some(piece as usize))
            }
            Doing::Echo(..) | Doing::Stream(_) if bytes.is_empty() => Ok(None),
            // A client that listens has nothing to say but its farewell.
            Doing::Stream(_) => Ok(Some(bytes.len())),
            Doing::Echo(frames, size) => {
                // The client decides how much it sends.
                let (ends, size) = (frames.ends(bytes, 0)?, *size);
                for _ in 0..ends.whole {
                    websocket::put_message(&mut self.out, size as usize, false);
                }
                Ok(Some(bytes.len()))
            }
        }
    }

    fn asked(&mut self, Request { answer, length, wish }: Request) -> Result<(), Fault> {
        match wish {
            Wish::Echo | Wish::Stream if self.left > 0 => {
                return Err(Fault::Http("an upgrade before the answer to what came before it"));
            }
            Wish::Answer if length > 0 => self.doing = Doing::Body { left: length, answer },
            Wish::Answer => self.answer(answer),
            Wish::Echo | Wish::Stream => {
                let head = format!(
                    "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n\
                     Upgrade: websocket\r\nSec-WebSocket-Accept: {}\r\n\r\n",
                    websocket::ACCEPT
                );
                self.out.extend_from_slice(head.as_bytes());
                self.doing = match wish {
                    Wish::Echo => Doing::Echo(Frames::default(), answer),
                    _ => Doing::Stream(answer),
                };
            }
        }
        Ok(())
    }

    /// One answer after the other.
    fn answer(&mut self, size: u64) {
        if self.left > 0 {
            self.next.push_back(size);
        } else {
            self.begin(size);
        }
    }

    fn begin(&mut self, size: u64) {
        let head = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: {size}\r\n\r\n"
        );
        self.out.extend_from_slice(head.as_bytes());
        self.left = size;
    }
}

/// The endpoint before and after it knows what its client speaks.
#[derive(Debug)]
pub enum Server {
    /// HTTP/2, which is what nearly everything here is.
    Two(Box<Endpoint>),
    /// HTTP/1.1.
    One(Box<Site>),
}

impl Default for Server {
    fn default() -> Self {
        Self::Two(Box::default())
    }
}

impl Machine for Server {
    fn received(&mut self, bytes: &[u8]) -> Result<usize, Fault> {
        if let Self::Two(endpoint) = self {
            let n = bytes.len().min(PREFACE.len());
            if endpoint.greeted() || bytes[..n] == PREFACE[..n] {
                return endpoint.received(bytes);
            }
            *self = Self::One(Box::default());
        }
        match self {
            Self::One(site) => site.received(bytes),
            Self::Two(endpoint) => endpoint.received(bytes),
        }
    }

    fn refill(&mut self) {
        match self {
            Self::One(site) => site.refill(),
            Self::Two(endpoint) => endpoint.refill(),
        }
    }

    fn output(&mut self) -> &mut Vec<u8> {
        match self {
            Self::One(site) => site.output(),
            Self::Two(endpoint) => endpoint.output(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All that is answered to `request`, given in pieces of `step`.
    fn answer(request: &[u8], step: usize) -> Vec<u8> {
        let (mut server, mut seen, mut rest) = (Server::default(), vec![], vec![]);
        for piece in request.chunks(step) {
            rest.extend_from_slice(piece);
            let used = server.received(&rest).unwrap();
            rest.drain(..used);
            loop {
                let out = std::mem::take(server.output());
                if out.is_empty() || seen.len() > 4 * OUT_LIMIT {
                    break;
                }
                seen.extend(out);
                server.refill();
            }
        }
        seen
    }

    #[test]
    fn a_path_is_answered_with_as_much_as_it_says_whatever_the_split() {
        let two =
            b"GET /7 HTTP/1.1\r\nHost: x\r\n\r\nPOST /3 HTTP/1.1\r\ncontent-length: 5\r\n\r\nhello";
        let whole = answer(two, two.len());
        let text = String::from_utf8(whole.clone()).unwrap();
        assert!(text.starts_with("HTTP/1.1 200 OK\r\n") && text.ends_with("\r\n\r\naaa"), "{text}");
        assert!(text.contains("Content-Length: 7\r\n\r\naaaaaaaHTTP/1.1 200"), "{text}");
        for step in 1..two.len() {
            assert_eq!(answer(two, step), whole, "split every {step} bytes");
        }
        // Larger than what may wait to be written.
        assert_eq!(answer(b"GET /700000 HTTP/1.1\r\n\r\n", 9).len() as u64 / 100_000, 7);
    }

    #[test]
    fn a_web_socket_echoes_or_streams() {
        let head =
            "HTTP/1.1\r\nUpgrade: websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
        let mut request = format!("GET /9/echo {head}").into_bytes();
        websocket::put_message(&mut request, 300, true);
        let seen = answer(&request, 11);
        assert!(seen.starts_with(b"HTTP/1.1 101 ") && seen.ends_with(b"\r\n\r\n\x82\x09aaaaaaaaa"));
        let seen = answer(format!("GET /1000/stream {head}").as_bytes(), 50);
        assert!(seen.len() > 2 * OUT_LIMIT, "{}", seen.len());
    }

    #[test]
    fn what_is_neither_protocol_is_a_fault() {
        assert!(Server::default().received(b"SSH-2.0-x\r\n\r\n").is_err());
        assert!(Server::default().received(b"GET /x HTTP/1.1\r\n\r\n").is_err());
    }
}
