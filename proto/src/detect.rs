//! What a client connection speaks, from its first bytes.

/// The client's connection preface (RFC 9113 §3.4).
pub const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What the first bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detected {
    /// The whole HTTP/2 preface is there.
    H2,
    /// Not the preface: HTTP/1, or something its head parser will refuse.
    H1,
    /// All bytes so far are the preface's, and some are missing.
    NeedMore,
}

/// Tells HTTP/2 by prior knowledge from HTTP/1 (RFC 9113 §3.3).
///
/// No HTTP/1 method begins with `PRI `, so the first or second byte decides for most requests.
#[must_use]
pub fn detect(first: &[u8]) -> Detected {
    if first.len() >= PREFACE.len() {
        if first.starts_with(PREFACE) { Detected::H2 } else { Detected::H1 }
    } else if PREFACE.starts_with(first) {
        Detected::NeedMore
    } else {
        Detected::H1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_preface_is_known_only_when_it_is_whole() {
        for length in 0..PREFACE.len() {
            assert_eq!(detect(&PREFACE[..length]), Detected::NeedMore, "{length}");
        }
        assert_eq!(detect(PREFACE), Detected::H2);
        assert_eq!(detect(&[&PREFACE[..], b"\0\0\0\x04"].concat()), Detected::H2);
    }

    #[test]
    fn one_byte_beside_the_preface_is_http_1() {
        for at in 0..PREFACE.len() {
            let mut first = *PREFACE;
            first[at] ^= 1;
            assert_eq!(detect(&first), Detected::H1, "{at}");
            assert_eq!(detect(&first[..=at]), Detected::H1, "{at}");
        }
        for request in [&b"GET / HTTP/1.1\r\n\r\n"[..], b"PO", b"PR\0", b"\x16\x03\x01"] {
            assert_eq!(detect(request), Detected::H1);
        }
    }
}
