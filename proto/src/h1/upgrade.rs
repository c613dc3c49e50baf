//! Which requests ask for another protocol, and which 101 answers them (contract 3.12, 3.13).

use super::head::{connection_names, list_names, options};
use crate::fields::{Fields, Token};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

/// Whether the message names a protocol to change to, and its `Connection` says so as well.
///
/// Not if `h2c` is among them: that one is answered here ([`h2c_settings`]) or not at all, for a
/// worker that took it would have us relay requests that nobody looked at.
#[must_use]
pub fn asks_upgrade(fields: &Fields) -> bool {
    protocols(fields).next().is_some()
        && connection_names(fields, b"upgrade")
        && !list_names(fields, Token::Upgrade, b"h2c")
}

/// The answer to a request with [`h2c_settings`]; HTTP/2 begins behind it.
pub const H2C_ACCEPTED: &[u8] =
    b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n";

/// The SETTINGS payload of a request that wants to go on in HTTP/2 (CL-48, RFC 7540 §3.2);
/// `None` if it does not, or asks wrongly: then it is an ordinary request.
/// So is every request of HTTP/1.0, whatever it asks ([`Conn::version`](super::Conn::version)).
#[must_use]
pub fn h2c_settings(fields: &Fields) -> Option<Vec<u8>> {
    let named = connection_names(fields, b"upgrade")
        && connection_names(fields, b"http2-settings")
        && list_names(fields, Token::Upgrade, b"h2c");
    if !named {
        return None;
    }
    let mut settings = fields.iter().filter(|field| field.token == Token::Http2Settings);
    let (Some(settings), None) = (settings.next(), settings.next()) else { return None };
    let payload = URL_SAFE_NO_PAD.decode(settings.value).ok()?;
    payload.len().is_multiple_of(6).then_some(payload)
}

/// Whether bytes of a WebSocket's client end with a Close of status 1001, "going away", without a
/// reason (RFC 6455 5.5.1 and 7.4.1): the eight octets that a browser sends when its page is left.
/// Only the last octets are looked at, so other payload can look alike, once in 2^32.
#[must_use]
pub fn ends_going_away(bytes: &[u8]) -> bool {
    const GOING_AWAY: u16 = 1001;
    let Some([0x88, 0x82, m0, m1, _, _, p0, p1]) = bytes.last_chunk() else { return false };
    u16::from_be_bytes([m0 ^ p0, m1 ^ p1]) == GOING_AWAY
}

/// The protocols a request asks for, to be held against the answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Asked(Vec<u8>);

impl Asked {
    pub(super) fn clear(&mut self) {
        self.0 = Vec::new();
    }

    pub(super) fn add(&mut self, list: &[u8]) {
        for protocol in options(list).filter(|protocol| !protocol.is_empty()) {
            self.0.extend_from_slice(protocol);
            self.0.push(b',');
        }
    }

    /// Whether a 101 with these fields changes to one of them. It must name exactly one, or both
    /// sides might go on differently.
    pub(super) fn is_answered_by(&self, fields: &Fields) -> bool {
        let mut chosen = protocols(fields);
        let (Some(chosen), None) = (chosen.next(), chosen.next()) else { return false };
        connection_names(fields, b"upgrade")
            && options(&self.0).any(|asked| asked.eq_ignore_ascii_case(chosen))
    }
}

fn protocols(fields: &Fields) -> impl Iterator<Item = &[u8]> {
    fields
        .iter()
        .filter(|field| field.token == Token::Upgrade)
        .flat_map(|field| options(field.value))
        .filter(|protocol| !protocol.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As a browser masks it: status `status`, then `reason`.
    fn close(status: u16, reason: &[u8]) -> Vec<u8> {
        let mask = [0x1f, 0xa0, 0x33, 0x04];
        let payload = status.to_be_bytes().into_iter().chain(reason.iter().copied());
        let masked = payload.zip(mask.into_iter().cycle()).map(|(octet, mask)| octet ^ mask);
        let head = [0x88, 0x80 | (2 + reason.len() as u8)];
        head.into_iter().chain(mask).chain(masked).collect()
    }

    #[test]
    fn a_close_of_a_page_that_is_left_is_told_from_others() {
        assert!(ends_going_away(&close(1001, b"")));
        assert!(ends_going_away(&[&b"what went before"[..], &close(1001, b"")].concat()));
        for other in [close(1000, b""), close(1001, b"x"), close(3001, b""), Vec::new()] {
            assert!(!ends_going_away(&other), "{other:?}");
        }
        let whole = close(1001, b"");
        assert!(!ends_going_away(&[&whole[..], b"."].concat()));
        for cut in 0..whole.len() {
            assert!(!ends_going_away(&whole[..cut]) && !ends_going_away(&whole[cut + 1..]));
        }
    }
}
