//! How long a session of a streaming function is to wait for its client, as the client's request
//! says (contract 11).

use std::time::Duration;

use monoio::buf::IoBufMut;
use monoio::io::AsyncReadRent;

use super::super::connect::Tunnel;

/// The field.
const FIELD: &str = "X-NVCF-RECONNECT-WINDOW-SECS";
/// Longest that may be asked for (contract 11).
const MOST: Duration = Duration::from_secs(1800);
/// Longest head that is looked at, and most fields in it.
const MAX_HEAD: usize = 64 * 1024;
const MAX_FIELDS: usize = 128;
/// Read at once.
const READ: usize = 4 * 1024;

/// Reads the tunnel's first request as far as that needs; what was read comes first in what the
/// tunnel gives. Only HTTP/1.1 is looked at, which is what the streaming portal's clients speak.
pub(super) async fn look(tunnel: &mut Tunnel) -> Option<Duration> {
    loop {
        match asked(&tunnel.early) {
            Look::Seen(window) => return window,
            Look::More => {}
        }
        let mut bytes = std::mem::take(&mut tunnel.early);
        bytes.reserve(READ);
        let (from, to) = (bytes.len(), bytes.capacity());
        let (read, slice) = tunnel.stream.read(bytes.slice_mut(from..to)).await;
        tunnel.early = slice.into_inner();
        // Its end or loss is seen again by who reads next.
        if !matches!(read, Ok(1..)) {
            return None;
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Look {
    Seen(Option<Duration>),
    More,
}

fn asked(bytes: &[u8]) -> Look {
    let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
    let mut request = httparse::Request::new(&mut fields);
    match request.parse(bytes) {
        Ok(httparse::Status::Partial) if bytes.len() < MAX_HEAD => Look::More,
        Ok(httparse::Status::Complete(_)) => {
            let field = request.headers.iter().find(|field| field.name.eq_ignore_ascii_case(FIELD));
            let seconds =
                field.and_then(|field| std::str::from_utf8(field.value).ok()?.trim().parse().ok());
            Look::Seen(seconds.map(|seconds| Duration::from_secs(seconds).min(MOST)))
        }
        // HTTP/2 begins with what is no request of HTTP/1.1.
        _ => Look::Seen(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_is_what_the_first_head_says_and_at_most_half_an_hour() {
        let head = |value: &str| {
            format!(
                "GET /sign_in HTTP/1.1\r\nhost: x\r\nx-nvcf-Reconnect-window-secs: {value}\r\n\r\nbody"
            )
        };
        let seen = |text: &str| asked(text.as_bytes());
        assert_eq!(seen(&head("2")), Look::Seen(Some(Duration::from_secs(2))));
        assert_eq!(seen(&head("99999")), Look::Seen(Some(MOST)));
        for bad in ["", "-1", "x", "1.5"] {
            assert_eq!(seen(&head(bad)), Look::Seen(None), "{bad:?}");
        }
        assert_eq!(seen("GET / HTTP/1.1\r\nhost: x\r\n\r\n"), Look::Seen(None));
        assert_eq!(seen("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), Look::Seen(None));
        let whole = head("7");
        let end = whole.len() - "body".len();
        for cut in 0..end {
            assert_eq!(seen(&whole[..cut]), Look::More, "{cut}");
        }
        assert_eq!(asked(&[b'A'; MAX_HEAD]), Look::Seen(None));
    }
}
