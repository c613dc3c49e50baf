//! The Huffman code of RFC 7541 Appendix B: strict to read, bounded in time and memory.
//!
//! The code is canonical (sorted by length, then by symbol), so only the lengths are written down;
//! codes and decoding tables are computed from them at build time.

/// The symbol that no string may contain (RFC 7541 §5.2).
const EOS: u16 = 256;
/// Bits of the longest code.
const LONGEST: usize = 30;
/// Bits looked up at once: enough for two of the usual characters.
const WINDOW: u32 = 12;

/// Length in bits of each symbol's code.
#[rustfmt::skip]
const LENGTHS: [u8; 257] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28,
    28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 28,
    6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6,
    5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10,
    13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7,
    7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6,
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5,
    6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28,
    20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23,
    24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24,
    22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23,
    21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25,
    19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27,
    20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23,
    26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26,
    30,
];

/// The canonical code, from [`LENGTHS`].
struct Canon {
    /// Code of each symbol, in its low bits.
    code: [u32; 257],
    /// Symbols in the order of their codes.
    sorted: [u16; 257],
    /// First code of each length.
    first: [u32; LONGEST + 1],
    /// Place in `sorted` of the first symbol of each length.
    offset: [u16; LONGEST + 1],
    /// One more than the last code of each length, moved to the top of 32 bits.
    end: [u64; LONGEST + 1],
}

static CANON: Canon = canon();

const fn canon() -> Canon {
    let mut all = Canon {
        code: [0; 257],
        sorted: [0; 257],
        first: [0; LONGEST + 1],
        offset: [0; LONGEST + 1],
        end: [0; LONGEST + 1],
    };
    let (mut next, mut rank, mut length) = (0u32, 0usize, 1usize);
    while length <= LONGEST {
        next <<= 1;
        all.first[length] = next;
        all.offset[length] = rank as u16;
        let mut symbol = 0;
        while symbol < 257 {
            if LENGTHS[symbol] as usize == length {
                all.code[symbol] = next;
                all.sorted[rank] = symbol as u16;
                next += 1;
                rank += 1;
            }
            symbol += 1;
        }
        all.end[length] = (next as u64) << (32 - length);
        length += 1;
    }
    all
}

/// What the next [`WINDOW`] bits of a string say: up to two symbols.
#[derive(Clone, Copy)]
#[repr(align(4))]
struct Step {
    symbols: [u8; 2],
    /// Bits of the first symbol, of all symbols; zero when the code is longer than the window.
    bits: [u8; 2],
}

impl Step {
    const NONE: Self = Self { symbols: [0; 2], bits: [0; 2] };

    const fn is_none(self) -> bool {
        self.bits[0] == 0
    }

    const fn count(self) -> usize {
        1 + (self.bits[1] > self.bits[0]) as usize
    }
}

static STEPS: [Step; 1 << WINDOW] = steps();

const fn steps() -> [Step; 1 << WINDOW] {
    let mut table = [Step::NONE; 1 << WINDOW];
    let canon = canon();
    let mut symbol = 0;
    while symbol < 256 {
        let length = LENGTHS[symbol] as u32;
        if length <= WINDOW {
            let low = (canon.code[symbol] << (WINDOW - length)) as usize;
            let mut at = low;
            while at < low + (1 << (WINDOW - length)) {
                table[at] = Step { symbols: [symbol as u8, 0], bits: [length as u8, length as u8] };
                at += 1;
            }
        }
        symbol += 1;
    }
    let singles = table;
    let mut at = 0;
    while at < 1 << WINDOW {
        let used = singles[at].bits[0] as u32;
        let second = singles[(at << used) & ((1 << WINDOW) - 1)];
        let both = used + second.bits[0] as u32;
        if used > 0 && !second.is_none() && both <= WINDOW {
            table[at].symbols[1] = second.symbols[0];
            table[at].bits[1] = both as u8;
        }
        at += 1;
    }
    table
}

/// The string is not Huffman code: more than 7 bits of padding, padding that is not the start of
/// EOS, or EOS itself (RFC 7541 §5.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadCode;

/// Bits not yet decoded, at the top of `word`.
struct Bits<'a> {
    word: u64,
    have: u32,
    rest: &'a [u8],
}

impl Bits<'_> {
    /// Fills the word: at least 56 bits, or all there are.
    #[inline]
    fn refill(&mut self) {
        if let Some(chunk) = self.rest.first_chunk::<8>() {
            // Bits past `have` are those of the octets still in `rest`: or-ing them again is harmless.
            self.word |= u64::from_be_bytes(*chunk) >> self.have;
            let taken = (63 - self.have) / 8;
            self.rest = &self.rest[taken as usize..];
            self.have += taken * 8;
            return;
        }
        while self.have <= 56 {
            let Some((&octet, rest)) = self.rest.split_first() else { return };
            self.word |= u64::from(octet) << (56 - self.have);
            self.have += 8;
            self.rest = rest;
        }
    }

    #[inline]
    fn drop(&mut self, bits: u8) {
        self.word <<= bits;
        self.have -= u32::from(bits);
    }

    /// The word with ones after the last bit: what padding must look like.
    fn padded(&self) -> u64 {
        self.word | u64::MAX.checked_shr(self.have).unwrap_or(0)
    }

    /// Takes a symbol whose code is longer than the window.
    #[cold]
    fn long_symbol(&mut self) -> Result<u8, BadCode> {
        let top = self.padded() >> 32;
        let length = (WINDOW as usize + 1..LONGEST)
            .find(|&length| top < CANON.end[length])
            .unwrap_or(LONGEST);
        // Padding is at most 7 bits, so a code cut off here is an error, never padding.
        if length as u32 > self.have {
            return Err(BadCode);
        }
        let place = (top >> (32 - length)) as u32 - CANON.first[length];
        let symbol = CANON.sorted[CANON.offset[length] as usize + place as usize];
        self.drop(length as u8);
        if symbol == EOS { Err(BadCode) } else { Ok(symbol as u8) }
    }
}

/// Appends the string that `code` stands for to `out`.
///
/// # Errors
/// [`BadCode`]; `out` then ends with an unspecified part of the string.
pub fn decode(code: &[u8], out: &mut Vec<u8>) -> Result<(), BadCode> {
    let start = out.len();
    // No code is shorter than 5 bits; one octet more because symbols are stored in pairs.
    out.resize(start + code.len() * 8 / 5 + 2, 0);
    let text = &mut out[start..];
    let mut at = 0;
    let mut bits = Bits { word: 0, have: 0, rest: code };
    loop {
        bits.refill();
        if bits.have < WINDOW {
            break;
        }
        while bits.have >= WINDOW {
            let step = STEPS[(bits.word >> (64 - WINDOW)) as usize];
            if step.is_none() {
                bits.refill();
                text[at] = bits.long_symbol()?;
                at += 1;
                continue;
            }
            text[at] = step.symbols[0];
            text[at + 1] = step.symbols[1];
            at += step.count();
            bits.drop(step.bits[1]);
        }
    }
    loop {
        let padded = bits.padded();
        let step = STEPS[(padded >> (64 - WINDOW)) as usize];
        if step.is_none() || u32::from(step.bits[0]) > bits.have {
            // RFC 7541 §5.2: padding is the start of EOS, all ones, and shorter than an octet.
            if bits.have > 7 || padded != u64::MAX {
                return Err(BadCode);
            }
            break;
        }
        text[at] = step.symbols[0];
        at += 1;
        bits.drop(step.bits[0]);
    }
    out.truncate(start + at);
    Ok(())
}

/// Octets that [`encode`] makes of `text`.
#[must_use]
pub fn encoded_len(text: &[u8]) -> usize {
    text.iter().map(|&octet| LENGTHS[octet as usize] as usize).sum::<usize>().div_ceil(8)
}

/// Appends `text` as Huffman code to `out`.
pub fn encode(text: &[u8], out: &mut Vec<u8>) {
    let (mut word, mut have) = (0u64, 0u32);
    for &octet in text {
        let length = u32::from(LENGTHS[octet as usize]);
        word = word << length | u64::from(CANON.code[octet as usize]);
        have += length;
        if have >= 32 {
            have -= 32;
            out.extend_from_slice(&((word >> have) as u32).to_be_bytes());
        }
    }
    if have > 0 {
        let used = have.div_ceil(8);
        let last = (word << (32 - have)) as u32 | u32::MAX >> have;
        out.extend_from_slice(&last.to_be_bytes()[..used as usize]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(code: &[u8]) -> Result<Vec<u8>, BadCode> {
        let mut text = b"before".to_vec();
        decode(code, &mut text).map(|()| text.split_off(6))
    }

    #[test]
    fn codes_are_those_of_the_appendix() {
        for (symbol, code) in [(b'0', 0), (b'a', 3), (b' ', 0x14), (b'X', 0xfc), (b'!', 0x3f8)] {
            assert_eq!(CANON.code[symbol as usize], code, "{symbol}");
        }
        for (symbol, code) in [(0, 0x1ff8), (92, 0x7fff0), (249, 0xffffffe), (22, 0x3ffffffe)] {
            assert_eq!(CANON.code[symbol], code, "{symbol}");
        }
        assert_eq!(CANON.code[EOS as usize], 0x3fff_ffff);
    }

    #[test]
    fn every_octet_survives_at_every_bit_offset() {
        for octet in 0..=255u8 {
            for before in 0..17 {
                let mut text = vec![b'0'; before];
                text.extend_from_slice(&[octet, octet, b'z']);
                let mut code = Vec::new();
                encode(&text, &mut code);
                assert_eq!(code.len(), encoded_len(&text));
                assert_eq!(decoded(&code).as_deref(), Ok(&text[..]));
            }
        }
    }

    #[test]
    fn padding_is_ones_and_shorter_than_an_octet() {
        assert_eq!(decoded(b"").as_deref(), Ok(&b""[..]));
        assert_eq!(decoded(&[0b0001_1111]).as_deref(), Ok(&b"a"[..]));
        assert_eq!(decoded(&[0b0001_1110]), Err(BadCode), "a zero in the padding");
        assert_eq!(decoded(&[0xff]), Err(BadCode), "eight bits of padding");
        assert_eq!(decoded(&[0b0001_1111, 0xff]), Err(BadCode), "eleven bits of padding");
        // Seven bits of padding after a code of 8 + 5 + 28 bits would be 48: pick 5 + 28 = 33.
        assert_eq!(decoded(&[0x1f, 0xff, 0xff, 0xf1, 0x7f]).as_deref(), Ok(&[b'a', 2][..]));
    }

    #[test]
    fn end_of_string_inside_a_string_is_an_error() {
        assert_eq!(decoded(&[0xff, 0xff, 0xff, 0xff]), Err(BadCode));
        assert_eq!(decoded(&[0x1f, 0xff, 0xff, 0xff, 0xff]), Err(BadCode));
        assert_eq!(decoded(&[0xff, 0xff, 0xff, 0xfc, 0, 0, 0, 0, 0, 0]), Err(BadCode));
    }
}
