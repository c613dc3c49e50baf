//! As much HTTP/1.1 as is needed here: a worker's response to a poll or to `CONNECT`, and the heads
//! that [`crate::web`] and [`crate::site`] send each other.

/// Largest response head or body accepted.
pub const LIMIT: usize = 64 * 1024;

/// A response whose head is complete.
#[derive(Debug, PartialEq, Eq)]
pub struct Response {
    /// Status code.
    pub status: u16,
    /// The body, without its framing.
    pub body: Vec<u8>,
    /// Bytes of the input that belong to the response.
    pub taken: usize,
    /// Whether the connection closes after it.
    pub close: bool,
}

/// Parses a response with its body; `Ok(None)` when more bytes are needed.
///
/// **Errors**: the text says what is wrong; the connection is of no further use.
pub fn response(bytes: &[u8]) -> Result<Option<Response>, &'static str> {
    let Some((status, lines, start)) = head(bytes)? else { return Ok(None) };
    let (mut length, mut chunked, mut close) = (0, false, false);
    for (name, value) in lines {
        match name.to_ascii_lowercase().as_str() {
            "content-length" => {
                length = value.parse::<usize>().map_err(|_| "bad content-length")?
            }
            "transfer-encoding" => chunked = value.eq_ignore_ascii_case("chunked"),
            "connection" => close = value.eq_ignore_ascii_case("close"),
            _ => {}
        }
    }
    if length > LIMIT {
        return Err("the body is too long");
    }
    let rest = &bytes[start..];
    let (body, size) = if status == 204 || status == 304 {
        (vec![], 0)
    } else if chunked {
        let Some(parsed) = dechunk(rest)? else { return Ok(None) };
        parsed
    } else if rest.len() < length {
        return Ok(None);
    } else {
        (rest[..length].to_vec(), length)
    };
    Ok(Some(Response { status, body, taken: start + size, close }))
}

/// Status of a `CONNECT`'s answer and where the tunnel's bytes start: a 200 has no body, whatever
/// its fields say (RFC 9110 §9.3.6).
pub fn connected(bytes: &[u8]) -> Result<Option<(u16, usize)>, &'static str> {
    Ok(head(bytes)?.map(|(status, _, start)| (status, start)))
}

/// What a path says after the size: a WebSocket that echoes, or one that streams.
pub const ECHO: &str = "echo";
/// See [`ECHO`].
pub const STREAM: &str = "stream";

/// What a request is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    /// An answer of so many octets.
    Answer,
    /// A WebSocket that answers each message.
    Echo,
    /// A WebSocket on which messages come without end.
    Stream,
}

/// A request's head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// Octets of the answer, or of each message.
    pub answer: u64,
    /// Octets of its body.
    pub length: u64,
    /// What is to be done.
    pub wish: Wish,
}

/// The head of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    /// Status code.
    pub status: u16,
    /// Octets of its body, if it says so.
    pub length: Option<u64>,
}

/// The last head of a connection, with what it said: one that is the same is not read again.
#[derive(Debug, Default)]
pub struct Known {
    head: Vec<u8>,
    request: Option<Request>,
    answer: Option<Answer>,
}

impl Known {
    /// A request and its head's size; `Ok(None)` when more bytes are needed.
    pub fn request(&mut self, bytes: &[u8]) -> Result<Option<(usize, Request)>, &'static str> {
        if let Some(request) = self.request.filter(|_| bytes.starts_with(&self.head)) {
            return Ok(Some((self.head.len(), request)));
        }
        let Some((line, fields, size)) = lines(bytes)? else { return Ok(None) };
        let request = asked(line, &fields)?;
        self.request = Some(request);
        self.head = bytes[..size].to_vec();
        Ok(Some((size, request)))
    }

    /// An answer's head and its size; `Ok(None)` when more bytes are needed.
    pub fn response(&mut self, bytes: &[u8]) -> Result<Option<(usize, Answer)>, &'static str> {
        if let Some(answer) = self.answer.filter(|_| bytes.starts_with(&self.head)) {
            return Ok(Some((self.head.len(), answer)));
        }
        let Some((status, fields, size)) = head(bytes)? else { return Ok(None) };
        let length = number(&fields, "content-length")?;
        let answer = Answer { status, length };
        self.answer = Some(answer);
        self.head = bytes[..size].to_vec();
        Ok(Some((size, answer)))
    }
}

/// What a request line and its fields ask for.
fn asked(line: &str, fields: &[(&str, &str)]) -> Result<Request, &'static str> {
    let path = line.strip_suffix(" HTTP/1.1").and_then(|line| line.split_once(" /"));
    let (_, path) = path.ok_or("not an HTTP/1.1 request")?;
    let (size, rest) = path.split_once('/').unwrap_or((path, ""));
    let answer = size.parse().map_err(|_| "a path that says no size")?;
    let length = number(fields, "content-length")?.unwrap_or(0);
    let upgrades = fields.iter().any(|(name, value)| {
        name.eq_ignore_ascii_case("sec-websocket-key") && *value == crate::websocket::KEY
    });
    let wish = match rest {
        "" => Wish::Answer,
        ECHO if upgrades => Wish::Echo,
        STREAM if upgrades => Wish::Stream,
        _ => return Err("a path that asks for nothing there is"),
    };
    Ok(Request { answer, length, wish })
}

fn number(fields: &[(&str, &str)], wanted: &str) -> Result<Option<u64>, &'static str> {
    let field = fields.iter().find(|(name, _)| name.eq_ignore_ascii_case(wanted));
    field.map(|(_, value)| value.parse().map_err(|_| "bad content-length")).transpose()
}

type Lines<'a> = (&'a str, Vec<(&'a str, &'a str)>, usize);
type Head<'a> = (u16, Vec<(&'a str, &'a str)>, usize);

fn head(bytes: &[u8]) -> Result<Option<Head<'_>>, &'static str> {
    let Some((line, fields, end)) = lines(bytes)? else { return Ok(None) };
    let status = line
        .strip_prefix("HTTP/1.")
        .and_then(|line| line.get(2..5)?.parse().ok())
        .ok_or("not an HTTP/1 response")?;
    Ok(Some((status, fields, end)))
}

/// The first line of a head, its fields, and its size.
fn lines(bytes: &[u8]) -> Result<Option<Lines<'_>>, &'static str> {
    let Some(end) = bytes.windows(4).position(|w| w == b"\r\n\r\n") else {
        return if bytes.len() > LIMIT { Err("the head is too long") } else { Ok(None) };
    };
    let text = std::str::from_utf8(&bytes[..end]).map_err(|_| "the head is not text")?;
    let mut lines = text.split("\r\n");
    let first = lines.next().unwrap_or_default();
    let fields = lines.filter_map(|l| l.split_once(':')).map(|(n, v)| (n, v.trim())).collect();
    Ok(Some((first, fields, end + 4)))
}

/// RFC 9112 §7.1, without extensions' meaning and without trailers' meaning.
fn dechunk(bytes: &[u8]) -> Result<Option<(Vec<u8>, usize)>, &'static str> {
    let (mut body, mut at) = (vec![], 0);
    loop {
        let Some(eol) = bytes[at..].windows(2).position(|w| w == b"\r\n") else { return Ok(None) };
        let line = std::str::from_utf8(&bytes[at..at + eol]).map_err(|_| "bad chunk")?;
        let digits = line.split(';').next().unwrap_or_default().trim();
        let size = usize::from_str_radix(digits, 16).map_err(|_| "bad chunk size")?;
        at += eol + 2;
        if size > LIMIT || body.len() + size > LIMIT {
            return Err("the body is too long");
        }
        if bytes.len() < at + size + 2 {
            return Ok(None);
        }
        body.extend_from_slice(&bytes[at..at + size]);
        at += size + 2;
        if size == 0 {
            return Ok(Some((body, at)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_of_every_framing_are_cut_out_at_every_split() {
        let plain = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nx: y\r\n\r\nhello".as_slice();
        let chunked =
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n";
        for whole in [plain, chunked] {
            for cut in 0..whole.len() {
                assert_eq!(response(&whole[..cut]), Ok(None), "cut at {cut}");
            }
            let more = [whole, b"HTTP/1.1"].concat();
            let got = response(&more).unwrap().unwrap();
            assert_eq!((got.status, &got.body[..], got.taken), (200, &b"hello"[..], whole.len()));
        }
        let none = response(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n").unwrap();
        assert!(none.is_some_and(|r| r.status == 204 && r.close && r.body.is_empty()));
    }

    #[test]
    fn a_tunnel_starts_right_behind_the_head() {
        let answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nPRI * HTTP/2.0";
        let (status, start) = connected(answer).unwrap().unwrap();
        assert_eq!((status, &answer[start..start + 3]), (200, &b"PRI"[..]));
    }

    #[test]
    fn a_head_that_repeats_says_the_same_and_another_is_read() {
        let mut known = Known::default();
        let first = b"HTTP/1.1 200 OK\r\ncontent-length: 12\r\n\r\nbody".as_slice();
        let said = Answer { status: 200, length: Some(12) };
        for _ in 0..2 {
            assert_eq!(known.response(first), Ok(Some((first.len() - 4, said))));
        }
        let other = b"HTTP/1.1 404 Not Found\r\n\r\n";
        let said = Answer { status: 404, length: None };
        assert_eq!(known.response(other), Ok(Some((other.len(), said))));
        assert_eq!(known.response(&other[..9]), Ok(None));
        let get = b"GET /5 HTTP/1.1\r\nHost: h\r\n\r\n";
        let asked = Request { answer: 5, length: 0, wish: Wish::Answer };
        assert_eq!(Known::default().request(get), Ok(Some((get.len(), asked))));
        // An upgrade without the key that the accept is for.
        assert!(Known::default().request(b"GET /5/echo HTTP/1.1\r\n\r\n").is_err());
    }

    #[test]
    fn nonsense_is_an_error() {
        assert!(response(b"SSH-2.0-x\r\n\r\n").is_err());
        assert!(response(b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n").is_err());
        assert!(response(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxx\r\n").is_err());
    }
}
