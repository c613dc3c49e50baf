//! Integers with a prefix of N bits (RFC 7541 §5.1).

use super::Malformation;

/// Octets an integer may have after its prefix: values stay below 2^28 + 256.
///
/// Nothing legitimate comes near: a header block is limited to 64 KiB long before.
const MAX_CONTINUATION: u32 = 4;

/// Reads the integer at the start of `input`, whose first octet gives it `prefix` bits; returns it
/// and what follows.
///
/// # Errors
/// [`Malformation::Truncated`], or [`Malformation::Integer`] for more octets than any honest
/// encoder uses.
#[inline]
pub(super) fn read(input: &[u8], prefix: u32) -> Result<(usize, &[u8]), Malformation> {
    let Some((&first, rest)) = input.split_first() else { return Err(Malformation::Truncated) };
    let mask = (1usize << prefix) - 1;
    let value = first as usize & mask;
    if value < mask { Ok((value, rest)) } else { read_rest(rest, value) }
}

#[cold]
fn read_rest(mut input: &[u8], mut value: usize) -> Result<(usize, &[u8]), Malformation> {
    for place in 0..MAX_CONTINUATION {
        let Some((&octet, rest)) = input.split_first() else { return Err(Malformation::Truncated) };
        input = rest;
        value += (octet as usize & 0x7f) << (7 * place);
        if octet & 0x80 == 0 {
            return Ok((value, input));
        }
    }
    Err(Malformation::Integer)
}

/// Appends `value` with a prefix of `prefix` bits, the other bits of the first octet as in `pattern`.
#[inline]
pub(super) fn write(value: usize, prefix: u32, pattern: u8, out: &mut Vec<u8>) {
    let mask = (1usize << prefix) - 1;
    if value < mask {
        out.push(pattern | value as u8);
        return;
    }
    out.push(pattern | mask as u8);
    let mut rest = value - mask;
    while rest >= 0x80 {
        out.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn both_ways(value: usize, prefix: u32, octets: &[u8]) {
        let mut out = Vec::new();
        write(value, prefix, 0, &mut out);
        assert_eq!(out, octets);
        assert_eq!(read(octets, prefix), Ok((value, &b""[..])));
    }

    #[test]
    fn appendix_c1() {
        both_ways(10, 5, &[0x0a]);
        both_ways(1337, 5, &[0x1f, 0x9a, 0x0a]);
        both_ways(42, 8, &[0x2a]);
    }

    #[test]
    fn edges_of_the_prefix() {
        both_ways(126, 7, &[0x7e]);
        both_ways(127, 7, &[0x7f, 0]);
        both_ways(254, 7, &[0x7f, 0x7f]);
        both_ways(255, 7, &[0x7f, 0x80, 1]);
        both_ways(15, 4, &[0x0f, 0]);
    }

    #[test]
    fn bits_before_the_prefix_are_kept_and_ignored() {
        let mut out = Vec::new();
        write(3, 5, 0x20, &mut out);
        assert_eq!(out, [0x23]);
        assert_eq!(read(&[0xe3, 9], 5), Ok((3, &[9][..])));
    }

    #[test]
    fn cut_or_endless_integers_are_errors() {
        for cut in 0..3 {
            let octets = [0x1f, 0x9a, 0x0a];
            assert_eq!(read(&octets[..cut], 5), Err(Malformation::Truncated));
        }
        let largest = [0x1f, 0xff, 0xff, 0xff, 0x7f];
        assert_eq!(read(&largest, 5), Ok(((1 << 28) - 1 + 31, &b""[..])));
        for last in [0x00, 0x01, 0x80, 0xff] {
            let octets = [0x1f, 0x80, 0x80, 0x80, 0x80, last];
            assert_eq!(read(&octets, 5), Err(Malformation::Integer));
        }
    }
}
