//! What a response's header blocks say, without decoding the same block twice.
//!
//! A block that consists only of indexed and non-inserting representations leaves the dynamic
//! table as it is, so as long as no other block changes the table, equal bytes mean equal fields:
//! the second sight of a block costs a comparison. That keeps every answer of a run fully
//! verified at the price of none.

use std::fmt;

use crate::fault::Fault;

/// Blocks remembered at once; a warm peer uses two.
const REMEMBERED: usize = 8;

/// The fields that decide whether a call succeeded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Said {
    /// `:status`, absent in trailers.
    pub status: Option<u16>,
    /// `grpc-status`, absent in heads that are not trailers-only.
    pub grpc: Option<u32>,
}

impl fmt::Display for Said {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = |n: Option<u32>| n.map_or_else(|| "absent".to_owned(), |n| n.to_string());
        let (status, grpc) = (number(self.status.map(u32::from)), number(self.grpc));
        write!(f, "with :status {status}, grpc-status {grpc}")
    }
}

/// The decoder of one connection with its memory.
pub struct Verifier {
    decoder: fluke_hpack::Decoder<'static>,
    known: Vec<(Vec<u8>, Said)>,
    /// The last session id seen.
    session: Option<String>,
    /// Blocks that went through the decoder.
    pub decoded: u64,
}

impl Default for Verifier {
    fn default() -> Self {
        Self { decoder: fluke_hpack::Decoder::new(), known: vec![], session: None, decoded: 0 }
    }
}

impl Verifier {
    /// The session id (`nvcf-reqid`) that the peer named last.
    pub fn session(&self) -> Option<&str> {
        self.session.as_deref()
    }

    /// Reads a header block; blocks must be given in the order they arrived.
    pub fn read(&mut self, block: &[u8]) -> Result<Said, Fault> {
        if let Some((_, said)) = self.known.iter().find(|(bytes, _)| bytes == block) {
            return Ok(*said);
        }
        self.decoded += 1;
        let keeps = keeps_table(block).ok_or(Fault::Compression)?;
        let mut said = Said::default();
        let session = &mut self.session;
        let outcome = self.decoder.decode_with_cb(block, |name, value| {
            let number = || std::str::from_utf8(&value).ok()?.parse::<u32>().ok();
            match &name[..] {
                b":status" => said.status = number().and_then(|n| u16::try_from(n).ok()),
                b"grpc-status" => said.grpc = number(),
                // A block that names another one has other bytes, so it is seen here.
                b"nvcf-reqid" => *session = String::from_utf8(value.into_owned()).ok(),
                _ => {}
            }
        });
        outcome.map_err(|_| Fault::Compression)?;
        if !keeps {
            self.known.clear();
        } else if self.known.len() < REMEMBERED {
            self.known.push((block.to_vec(), said));
        }
        Ok(said)
    }
}

/// Whether decoding `block` leaves the dynamic table as it was; `None` if it is cut short.
fn keeps_table(mut block: &[u8]) -> Option<bool> {
    let mut keeps = true;
    while let Some(&byte) = block.first() {
        // RFC 7541 §6.1 to §6.3.
        let (prefix, strings) = match byte {
            0x80..=0xff => (7, false),
            0x40..=0x7f => (6, true),
            0x20..=0x3f => (5, false),
            0x00..=0x1f => (4, true),
        };
        keeps &= !(0x20..=0x7f).contains(&byte);
        let index = integer(&mut block, prefix)?;
        if strings {
            let count = if index == 0 { 2 } else { 1 };
            for _ in 0..count {
                let len = integer(&mut block, 7)?;
                block = block.get(len..)?;
            }
        }
    }
    Some(keeps)
}

/// RFC 7541 §5.1; five continuation octets are more than any honest length needs.
fn integer(block: &mut &[u8], prefix: u32) -> Option<usize> {
    let most = (1usize << prefix) - 1;
    let mut value = usize::from(*block.first()?) & most;
    *block = &block[1..];
    if value < most {
        return Some(value);
    }
    for shift in [0, 7, 14, 21, 28] {
        let byte = usize::from(*block.first()?);
        *block = &block[1..];
        value += (byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ok(status: Option<u16>, grpc: Option<u32>) -> Result<Said, Fault> {
        Ok(Said { status, grpc })
    }

    #[test]
    fn a_repeated_block_is_decoded_once_and_a_changed_table_forgets_it() {
        let mut verifier = Verifier::default();
        let mut encoder = fluke_hpack::Encoder::new();
        let trailers = |code: &'static [u8]| [(&b"grpc-status"[..], code)];
        let first = encoder.encode(trailers(b"0"));
        assert_eq!(verifier.read(&first), ok(None, Some(0)));
        let again = encoder.encode(trailers(b"0"));
        assert_eq!(again, [0xbe]);
        for _ in 0..5 {
            assert_eq!(verifier.read(&again), ok(None, Some(0)));
        }
        assert_eq!(verifier.decoded, 2);
        // Another insertion moves the entries: the same byte now means something else.
        assert_eq!(verifier.read(&[0x7e, 2, b'1', b'4']), ok(None, Some(14)));
        assert_eq!(verifier.read(&[0xbe]), ok(None, Some(14)));
        assert_eq!(verifier.read(&[0xbf]), ok(None, Some(0)));
    }

    #[test]
    fn non_inserting_literals_and_huffman_are_read_and_remembered() {
        let mut verifier = Verifier::default();
        let block = [&[0x88, 0x0f, 0x10, 16][..], b"application/grpc"].concat();
        assert_eq!(verifier.read(&block), ok(Some(200), None));
        assert_eq!(verifier.read(&block), ok(Some(200), None));
        // `:status: 302` as a Huffman literal without indexing, RFC 7541 C.6.1's value.
        assert_eq!(verifier.read(&[0x08, 0x82, 0x64, 0x02]), ok(Some(302), None));
        assert_eq!(verifier.decoded, 2);
    }

    #[test]
    fn broken_blocks_are_faults() {
        for block in [&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01][..], &[0x00, 5, b'a'], &[0xbe]] {
            assert_eq!(Verifier::default().read(block), Err(Fault::Compression), "{block:?}");
        }
    }
}
