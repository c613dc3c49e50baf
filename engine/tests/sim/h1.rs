//! HTTP/1.1 as the far ends speak it, written from RFC 9112 alone. It shares no code with the
//! gateway, and panics at whatever the gateway may not send.

use super::h2::List;
use super::seed::Seed;

/// An event in what the gateway sent.
#[derive(Debug)]
pub(crate) enum Seen {
    /// The start line, and the fields with names in lower case. `end` means that no body follows.
    Head {
        first: String,
        fields: List,
        end: bool,
    },
    Data(Vec<u8>),
    /// The body has ended, with these trailers.
    End(Option<List>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    Head,
    Length(usize),
    ChunkSize,
    Chunk(usize),
    ChunkEnd,
    Trailers,
    /// After a 101 every byte belongs to another protocol.
    Raw,
}

/// Reads one direction of a connection strictly, message by message.
pub(crate) struct Reader {
    name: usize,
    /// The reader is a server's: it reads requests. Any other reads responses.
    server: bool,
    input: Vec<u8>,
    at: At,
}

impl Reader {
    pub(crate) fn new(name: usize, server: bool) -> Self {
        Self { name, server, input: Vec::new(), at: At::Head }
    }

    pub(crate) fn feed(&mut self, bytes: &[u8]) {
        self.input.extend_from_slice(bytes);
    }

    pub(crate) fn raw(&mut self) {
        self.at = At::Raw;
    }

    fn expect(&self, fine: bool, what: &str) {
        assert!(fine, "to peer {} the gateway {what}", self.name);
    }

    fn line(&mut self) -> Option<String> {
        let end = self.input.windows(2).position(|window| window == b"\r\n")?;
        let line: Vec<u8> = self.input.drain(..end + 2).take(end).collect();
        self.expect(!line.iter().any(|octet| matches!(octet, b'\r' | b'\n' | 0)), "broke a line");
        Some(String::from_utf8(line).expect("these peers send ASCII only"))
    }

    /// The next event. `bodiless` means that a response answers a HEAD, and so has no body.
    pub(crate) fn next(&mut self, bodiless: bool) -> Option<Seen> {
        match self.at {
            At::Head => {
                let head = self.section()?;
                let (first, lines) = head.split_first().expect("a head has a line");
                let fields = fields(lines);
                self.at = self.framing(first, &fields, bodiless);
                let end = self.at == At::Head;
                Some(Seen::Head { first: first.clone(), fields, end })
            }
            At::Length(0) => {
                self.at = At::Head;
                Some(Seen::End(None))
            }
            At::Length(left) => self.part(left).map(|bytes| {
                self.at = At::Length(left - bytes.len());
                Seen::Data(bytes)
            }),
            At::ChunkSize => {
                let line = self.line()?;
                let size = usize::from_str_radix(&line, 16);
                self.expect(size.is_ok(), "sent a bad chunk size");
                let size = size.unwrap_or(0);
                self.at = if size == 0 { At::Trailers } else { At::Chunk(size) };
                self.next(bodiless)
            }
            At::Chunk(left) => self.part(left).map(|bytes| {
                let rest = left - bytes.len();
                self.at = if rest == 0 { At::ChunkEnd } else { At::Chunk(rest) };
                Seen::Data(bytes)
            }),
            At::ChunkEnd => {
                let line = self.line()?;
                self.expect(line.is_empty(), "sent a longer chunk than it said");
                self.at = At::ChunkSize;
                self.next(bodiless)
            }
            At::Trailers => {
                let lines = if self.input.starts_with(b"\r\n") {
                    self.input.drain(..2);
                    Vec::new()
                } else {
                    self.section()?
                };
                self.at = At::Head;
                let trailers = fields(&lines);
                Some(Seen::End((!trailers.is_empty()).then_some(trailers)))
            }
            At::Raw => self.part(usize::MAX).map(Seen::Data),
        }
    }

    /// The lines up to the empty one, if all of them have arrived.
    fn section(&mut self) -> Option<Vec<String>> {
        self.input.windows(4).position(|window| window == b"\r\n\r\n")?;
        let mut lines = Vec::new();
        while let Some(line) = self.line().filter(|line| !line.is_empty()) {
            lines.push(line);
        }
        self.expect(!lines.is_empty(), "sent an empty line before a message");
        Some(lines)
    }

    fn part(&mut self, most: usize) -> Option<Vec<u8>> {
        let n = most.min(self.input.len());
        (n > 0).then(|| self.input.drain(..n).collect())
    }

    /// How the body behind this head is framed (RFC 9112 §6.3).
    fn framing(&self, first: &str, fields: &List, bodiless: bool) -> At {
        let values = |name: &str| -> Vec<String> {
            let named = fields.iter().filter(|(known, _)| known == name.as_bytes());
            named.map(|(_, value)| String::from_utf8_lossy(value).into_owned()).collect()
        };
        let (lengths, codings) = (values("content-length"), values("transfer-encoding"));
        let one_framing = lengths.len() + codings.len() <= 1;
        self.expect(one_framing, "framed a message twice");
        if let Some(coding) = codings.first() {
            self.expect(coding == "chunked", "used an unknown coding");
        }
        let length = lengths.first().map(|length| length.parse().expect("a length"));
        if self.server {
            self.expect(first.ends_with(" HTTP/1.1"), "sent no request line");
            self.expect(values("host").len() == 1, "sent a request without one host");
        } else {
            self.expect(first.starts_with("HTTP/1.1 "), "sent no status line");
            let status = first.get(9..12).unwrap_or_default();
            if bodiless || status.starts_with('1') || ["204", "304"].contains(&status) {
                return At::Head;
            }
            let framed = length.is_some() || !codings.is_empty();
            self.expect(framed, "sent an answer of no known length");
        }
        match length {
            _ if !codings.is_empty() => At::ChunkSize,
            Some(0) | None => At::Head,
            Some(length) => At::Length(length),
        }
    }
}

fn fields(lines: &[String]) -> List {
    let field = |line: &String| {
        let (name, value) = line.split_once(':').expect("a field has a colon");
        (name.to_ascii_lowercase().into_bytes(), value.trim_matches([' ', '\t']).into())
    };
    lines.iter().map(field).collect()
}

/// Whether a field is about one connection only, so that the gateway does not relay it.
pub(crate) fn is_of_hop(name: &[u8]) -> bool {
    [&b"connection"[..], b"content-length", b"transfer-encoding", b"upgrade", b"te", b"host"]
        .contains(&name)
}

/// Appends a head: its first line, the fields without pseudo-fields, then the lines of `more`.
pub(crate) fn put_head(out: &mut Vec<u8>, first: &str, fields: &List, more: &[String]) {
    out.extend_from_slice(first.as_bytes());
    for (name, value) in fields.iter().filter(|(name, _)| !name.starts_with(b":")) {
        out.extend_from_slice(b"\r\n");
        out.extend_from_slice(name);
        out.extend_from_slice(b": ");
        out.extend_from_slice(value);
    }
    for line in more {
        out.extend_from_slice(b"\r\n");
        out.extend_from_slice(line.as_bytes());
    }
    out.extend_from_slice(b"\r\n\r\n");
}

/// How a body is framed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Framing {
    None,
    Length,
    Chunked,
    UntilClose,
}

impl Framing {
    /// The field that announces this framing for a body of `length` bytes.
    pub(crate) fn field(self, length: usize) -> Option<String> {
        match self {
            Self::None | Self::UntilClose => None,
            Self::Length => Some(format!("Content-Length: {length}")),
            Self::Chunked => Some("Transfer-Encoding: chunked".into()),
        }
    }

    /// Appends a piece of a body, in one chunk or several.
    pub(crate) fn put(self, out: &mut Vec<u8>, bytes: &[u8], seed: &mut Seed) {
        if self != Self::Chunked {
            return out.extend_from_slice(bytes);
        }
        let most = if seed.chance(20) { seed.range(1, 50) * 100 } else { usize::MAX };
        for chunk in bytes.chunks(most) {
            let extension = if seed.chance(5) { ";a=b" } else { "" };
            out.extend_from_slice(format!("{:x}{extension}\r\n", chunk.len()).as_bytes());
            out.extend_from_slice(chunk);
            out.extend_from_slice(b"\r\n");
        }
    }

    pub(crate) fn end(self, out: &mut Vec<u8>, trailers: Option<&List>) {
        if self == Self::Chunked {
            put_head(out, "0", trailers.unwrap_or(&Vec::new()), &[]);
        }
    }
}

/// Garbage: lines that look like HTTP/1, and some that do not. A `server` sends responses.
pub(crate) fn garbage(server: bool, seed: &mut Seed) -> Vec<u8> {
    const LINES: [&str; 16] = [
        "Transfer-Encoding: chunked\r\n",
        "Content-Length: 5\r\n",
        "Content-Length: 5, 6\r\n",
        "Transfer-Encoding: gzip, chunked\r\n",
        "Connection: close\r\n",
        "Connection: Upgrade\r\nUpgrade: sim\r\n",
        "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n",
        "X: y\r\n z\r\n",
        "X : y\r\n",
        "Expect: 100-continue\r\n",
        "\r\n",
        "\r\n5\r\nhello\r\n0\r\n\r\n",
        "\r\nhello",
        "ffffffffffffffffff\r\n",
        "\n",
        "\0",
    ];
    let mut out = Vec::new();
    for _ in 0..seed.range(1, 4) {
        let first = match (server, seed.below(5)) {
            (true, 0) => {
                "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: sim\r\n"
            }
            (true, 1) => "HTTP/1.1 100 Continue\r\n\r\n",
            (true, 2) => "HTTP/1.0 204 No Content\r\n",
            (true, _) => "HTTP/1.1 200 OK\r\n",
            (false, 0) => "GET / HTTP/1.0\r\n",
            (false, 1) => "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            (false, 2) => "GET http://else/ HTTP/1.1\r\nHost: a\r\nHost: b\r\n",
            (false, _) => {
                "POST / HTTP/1.1\r\nHost: gateway\r\nAuthorization: Bearer dev-key\r\nx-sim: mad\r\n\
                 Function-Id: 11111111-1111-4111-8111-111111111111\r\n"
            }
        };
        out.extend_from_slice(first.as_bytes());
        for _ in 0..seed.below(5) {
            let line: &str = seed.pick(&LINES);
            out.extend_from_slice(line.as_bytes());
        }
        if seed.chance(60) {
            out.extend_from_slice(b"\r\n");
        }
    }
    if seed.chance(10) {
        out.extend((0..seed.range(1, 200)).map(|_| seed.next() as u8));
    }
    out
}
