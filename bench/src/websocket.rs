//! WebSocket frames as the generator and the endpoint need them (RFC 6455 §5).
//!
//! Every message is one frame. The client's mask is zero, which the protocol allows and which
//! leaves the payload as it is: what a proxy does with it is the same.

use crate::endpoint::FILL;
use crate::fault::Fault;

/// `Sec-WebSocket-Key` of every client, and the answer to it: those of RFC 6455 §1.3.
pub const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
/// `Sec-WebSocket-Accept` for [`KEY`].
pub const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";
/// A binary message in one frame.
const BINARY: u8 = 0x82;
/// The bit beside the length that says there is a mask.
const MASKED: u8 = 0x80;
/// Longest frame head: two octets, eight of length, four of mask.
const HEAD: usize = 14;

/// Appends a frame's head and all of its payload.
pub fn put_message(out: &mut Vec<u8>, length: usize, masked: bool) {
    let bit = if masked { MASKED } else { 0 };
    out.push(BINARY);
    match (length, u16::try_from(length)) {
        (0..=125, _) => out.push(bit | length as u8),
        (_, Ok(short)) => {
            out.push(bit | 126);
            out.extend_from_slice(&short.to_be_bytes());
        }
        (_, Err(_)) => {
            out.push(bit | 127);
            out.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
    if masked {
        out.extend_from_slice(&[0; 4]);
    }
    let mut left = length;
    while left > 0 {
        let piece = left.min(FILL.len());
        out.extend_from_slice(&FILL[..piece]);
        left -= piece;
    }
}

/// Finds the ends of messages in a stream of frames.
#[derive(Debug, Default)]
pub struct Frames {
    head: [u8; HEAD],
    have: usize,
    /// Payload octets of the frame that are still to come, once its head is whole.
    left: Option<u64>,
}

/// What a piece of the stream brought.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Ends {
    /// Messages that ended.
    pub whole: usize,
    /// Messages that had another length than was wanted.
    pub odd: usize,
}

impl Frames {
    /// Counts the messages that end in the next `bytes`, of which each is to be `wanted` long.
    ///
    /// # Errors
    /// A frame is no whole binary message.
    pub fn ends(&mut self, mut bytes: &[u8], wanted: u64) -> Result<Ends, Fault> {
        let mut ends = Ends::default();
        while !bytes.is_empty() {
            let Some(left) = &mut self.left else {
                self.head[self.have] = bytes[0];
                self.have += 1;
                bytes = &bytes[1..];
                self.left = self.length()?;
                if let Some(length) = self.left {
                    ends.odd += usize::from(length != wanted);
                    self.finish(&mut ends);
                }
                continue;
            };
            let piece = bytes.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
            *left -= piece as u64;
            bytes = &bytes[piece..];
            self.finish(&mut ends);
        }
        Ok(ends)
    }

    fn finish(&mut self, ends: &mut Ends) {
        if self.left == Some(0) {
            (self.have, self.left) = (0, None);
            ends.whole += 1;
        }
    }

    /// The payload's length, once the head says it.
    fn length(&self) -> Result<Option<u64>, Fault> {
        if self.head[0] != BINARY {
            return Err(Fault::Http("a WebSocket frame that is no whole binary message"));
        }
        if self.have < 2 {
            return Ok(None);
        }
        let (mask, short) = (if self.head[1] & MASKED == 0 { 0 } else { 4 }, self.head[1] & 0x7f);
        let extended = match short {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        if self.have < 2 + extended + mask {
            return Ok(None);
        }
        let long = self.head[2..2 + extended].iter().fold(0, |n, b| n << 8 | u64::from(*b));
        Ok(Some(if extended == 0 { u64::from(short) } else { long }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What two messages come to, given in pieces of `step`.
    fn two(length: usize, masked: bool, step: usize) -> Ends {
        let mut bytes = vec![];
        put_message(&mut bytes, length, masked);
        put_message(&mut bytes, length, masked);
        let (mut frames, mut sum) = (Frames::default(), Ends::default());
        for piece in bytes.chunks(step) {
            let ends = frames.ends(piece, length as u64).unwrap();
            sum.whole += ends.whole;
            sum.odd += ends.odd;
        }
        sum
    }

    #[test]
    fn messages_of_every_length_end_at_every_split() {
        for length in [0, 5, 125, 126, 65_535, 65_536] {
            for step in [1, 3, 7, 1000, 1 << 20] {
                for masked in [false, true] {
                    assert_eq!(two(length, masked, step), Ends { whole: 2, odd: 0 }, "{length}");
                }
            }
        }
    }

    #[test]
    fn another_length_is_seen_and_what_is_no_message_is_a_fault() {
        let mut bytes = vec![];
        put_message(&mut bytes, 9, false);
        assert_eq!(Frames::default().ends(&bytes, 10), Ok(Ends { whole: 1, odd: 1 }));
        // A close frame.
        assert!(Frames::default().ends(&[0x88, 0], 0).is_err());
    }
}
