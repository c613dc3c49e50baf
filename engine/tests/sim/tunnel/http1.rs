//! The tunnel of an HTTP/1.1 client, with one request at a time. An answer has a length, comes in
//! chunks, or lasts until the connection closes. A 101 is followed by bytes of another protocol.

use super::{H2, State, Tunnel};
use crate::body::{self, Way};
use crate::h1::{self, Framing, Reader, is_of_hop, put_head};
use crate::h2::List;
use crate::judge::field;
use crate::peer::{Act, Stage};
use crate::serve::{Ending, Serve, answer_head};

/// Bytes of a body sent at once, at most.
const PIECE: usize = 20_000;

/// The protocol that the gateway speaks on a tunnel. Its first bytes show which.
pub(super) enum Spoken {
    Unknown(Vec<u8>),
    Http2,
    Http1(Box<Http1>),
}

pub(super) struct Http1 {
    reader: Reader,
    out: Vec<u8>,
    /// The number of the current request, used like a stream id.
    turn: u32,
    framing: Framing,
    /// The worker has said that no request may follow.
    close: bool,
    /// After a 101: the exchange whose bytes go both ways.
    raw: Option<usize>,
}

impl Spoken {
    pub(super) fn new(stage: &Stage<'_>) -> Self {
        if stage.plan.http1 == 0 { Self::Http2 } else { Self::Unknown(Vec::new()) }
    }

    /// Bytes for the gateway.
    pub(super) fn take_out(&mut self, h2: &mut H2) -> Vec<u8> {
        match self {
            Self::Unknown(_) => Vec::new(),
            Self::Http2 => std::mem::take(&mut h2.out),
            Self::Http1(http1) => std::mem::take(&mut http1.out),
        }
    }

    /// Takes bytes, and returns all that came once the protocol is known.
    fn tell(&mut self, name: usize, bytes: Vec<u8>) -> Vec<u8> {
        let Self::Unknown(first) = self else { return bytes };
        first.extend_from_slice(&bytes);
        if first.len() < 3 {
            return Vec::new();
        }
        let first = std::mem::take(first);
        *self = if first.starts_with(b"PRI") { Self::Http2 } else { Self::http1(name) };
        first
    }

    fn http1(name: usize) -> Self {
        Self::Http1(Box::new(Http1 {
            reader: Reader::new(name, true),
            out: Vec::new(),
            turn: 0,
            framing: Framing::None,
            close: false,
            raw: None,
        }))
    }
}

impl Tunnel {
    /// Reads what the gateway sent on the open tunnel.
    pub(super) fn read(&mut self, bytes: Vec<u8>, stage: &mut Stage<'_>) {
        let bytes = self.spoken.tell(self.number, bytes);
        match &mut self.spoken {
            Spoken::Unknown(_) => {}
            Spoken::Http2 => {
                let mut seen = Vec::new();
                self.h2.read(&bytes, &mut seen);
                for seen in seen {
                    self.saw(seen, stage);
                }
            }
            Spoken::Http1(http1) => {
                http1.reader.feed(&bytes);
                while let Spoken::Http1(http1) = &mut self.spoken
                    && let Some(seen) = http1.reader.next(false)
                {
                    self.saw_http1(seen, stage);
                }
            }
        }
    }

    fn saw_http1(&mut self, seen: h1::Seen, stage: &mut Stage<'_>) {
        let Spoken::Http1(http1) = &mut self.spoken else { return };
        let (stream, raw) = (http1.turn, http1.raw);
        match seen {
            h1::Seen::Head { first, fields, end } => self.request(&first, fields, end, stage),
            h1::Seen::Data(bytes) => {
                stage.ledger.relayed += bytes.len();
                match raw {
                    Some(number) => {
                        let half = &mut stage.ledger.exchanges[number].up;
                        half.arrived(number, Way::Up, &bytes);
                    }
                    None => self.data(stream, bytes, false, stage),
                }
            }
            h1::Seen::End(trailers) => {
                let Some(serve) = self.serves.get(&stream) else { return };
                let half = &mut stage.ledger.exchanges[serve.exchange].up;
                half.finished(serve.exchange, Way::Up, trailers);
            }
        }
    }

    fn request(&mut self, first: &str, mut fields: List, end: bool, stage: &mut Stage<'_>) {
        let Spoken::Http1(http1) = &mut self.spoken else { return };
        if let Some(serve) = self.serves.get(&http1.turn) {
            let exchange = &stage.ledger.exchanges[serve.exchange];
            let over = serve.ended && exchange.up.got_end;
            assert!(over, "exchange {}: the next request came before its end", serve.exchange);
        }
        assert!(!http1.close, "tunnel {}: a request behind our last answer", self.number);
        http1.turn += 1;
        let stream = http1.turn;
        let upgrades = field(&fields, "upgrade").is_some_and(|value| value == "sim");
        let named = field(&fields, "connection").is_some_and(|value| value.contains("upgrade"));
        let (method, rest) = first.split_once(' ').expect("a method");
        let (path, _) = rest.rsplit_once(' ').expect("a path");
        let host = field(&fields, "host").unwrap_or_default();
        let expects = field(&fields, "expect").is_some();
        fields.retain(|(name, _)| !is_of_hop(name));
        let pseudo = [(":method", method), (":path", path), (":authority", &host[..])];
        fields.splice(0..0, pseudo.map(|(name, value)| (name.into(), value.into())));
        if field(&fields, "x-sim").is_none_or(|name| name == "mad") {
            let of = self.client;
            let mad = of.map_or(!stage.ledger.mad.is_empty(), |of| stage.ledger.mad.contains(&of));
            return assert!(mad, "tunnel {}: a request of nobody's", self.number);
        }
        self.head(stream, fields, end, stage);
        let Some(serve) = self.serves.get(&stream) else { return };
        let exchange = &mut stage.ledger.exchanges[serve.exchange];
        let fine = exchange.upgrade == (upgrades && named) || exchange.up.spoiled;
        assert!(fine, "exchange {}: its wish for another protocol", serve.exchange);
        if expects && stage.seed.chance(70) {
            exchange.interim_sent += 1;
            http1_out(&mut self.spoken).extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
        }
    }

    // ---- answers ----

    /// Sends a 1xx head.
    pub(super) fn feed_interim(&mut self) {
        let fields = vec![(b"link".to_vec(), b"</x>".to_vec())];
        put_head(http1_out(&mut self.spoken), "HTTP/1.1 103 Early Hints", &fields, &[]);
    }

    /// Sends the head of an answer.
    pub(super) fn feed_head(&mut self, stream: u32, stage: &mut Stage<'_>) {
        let Spoken::Http1(http1) = &mut self.spoken else { return };
        let Some(serve) = self.serves.get_mut(&stream) else { return };
        serve.headed = true;
        let number = serve.exchange;
        let mut fields = answer_head(serve, &self.work.id, self.worker, stage);
        let told = fields.iter().any(|(name, _)| name == b"content-length");
        fields.retain(|(name, _)| name != b"content-length");
        let exchange = &mut stage.ledger.exchanges[number];
        let seed = &mut *stage.seed;
        if exchange.upgrade && seed.chance(70) {
            let wrong = seed.chance(8);
            let protocol = if wrong { "other" } else { "sim" };
            let more = [format!("Connection: Upgrade\r\nUpgrade: {protocol}")];
            fields[0].1 = b"101".to_vec();
            put_head(&mut http1.out, "HTTP/1.1 101 Switching Protocols", &fields, &more);
            exchange.excuse |= wrong;
            exchange.down.head = Some(fields);
            serve.ended = true;
            serve.size = stage.plan.size(seed);
            http1.close = true;
            stage.ledger.parking.tunnel_used_up(self.number);
            http1.raw = (!wrong).then_some(number);
            if !wrong {
                http1.reader.raw();
            }
            return;
        }
        http1.framing = match serve.ending {
            Ending::HeadOnly if exchange.method_head => Framing::None,
            Ending::Trailers => Framing::Chunked,
            _ if told => Framing::Length,
            Ending::HeadOnly => Framing::Length,
            Ending::Data if seed.chance(15) => Framing::UntilClose,
            Ending::Reset(_) if serve.size == 0 => Framing::Chunked,
            Ending::Data | Ending::Reset(_) => seed.pick(&[Framing::Length, Framing::Chunked]),
        };
        // RFC 9110 §9.3.2: an answer to HEAD may state the length that GET would bring.
        let like_get = exchange.method_head && seed.chance(50);
        let length = if like_get { seed.range(1, 9999) } else { serve.size };
        let framing = if like_get { Framing::Length } else { http1.framing };
        exchange.length = (framing == Framing::Length).then_some(length);
        let mut more: Vec<String> = framing.field(length).into_iter().collect();
        http1.close = http1.framing == Framing::UntilClose || seed.chance(6);
        if http1.close && (http1.framing != Framing::UntilClose || seed.chance(50)) {
            more.push("Connection: close".into());
        }
        put_head(&mut http1.out, "HTTP/1.1 200 OK", &fields, &more);
        exchange.down.head = Some(fields);
        let bare = http1.framing == Framing::Length && serve.size == 0;
        if bare || serve.ending == Ending::HeadOnly {
            self.end_answer(stream, None, stage);
        }
    }

    /// Sends some of the body of an answer.
    pub(super) fn feed_http1(&mut self, stream: u32, stage: &mut Stage<'_>) {
        let Spoken::Http1(http1) = &mut self.spoken else { return };
        let Some(serve) = self.serves.get(&stream) else { return };
        let exchange = &mut stage.ledger.exchanges[serve.exchange];
        let half = &mut exchange.down;
        // An answer that breaks off keeps its last byte back, or else it would be whole.
        let last = usize::from(matches!(serve.ending, Ending::Reset(_)));
        let most = (serve.size - half.sent).saturating_sub(last).min(PIECE);
        let n = if stage.seed.chance(40) { most } else { stage.seed.range(0, most) };
        let mut bytes = Vec::with_capacity(n);
        body::put(serve.exchange, Way::Down, half.sent, n, &mut bytes);
        http1.framing.put(&mut http1.out, &bytes, stage.seed);
        half.sent += n;
        if n > 0 {
            self.pace.hurry();
        }
        let rest = serve.size - half.sent;
        match serve.ending {
            Ending::Reset(_) if rest < 2 || stage.seed.chance(20) => {
                self.excuse_all(stage);
                let how = if stage.seed.chance(50) { Act::Reset } else { Act::Fin };
                self.leave(how, stage);
            }
            Ending::Reset(_) => {}
            // Now and then the end is left for a later tick.
            _ if rest > 0 => {}
            _ if n > 0 && http1.framing != Framing::Length && stage.seed.chance(15) => {}
            Ending::Trailers => {
                let mut trailers: List = vec![(b"grpc-status".to_vec(), b"0".to_vec())];
                trailers.push((b"x-down-trailer".to_vec(), serve.exchange.to_string().into()));
                self.end_answer(stream, Some(trailers), stage);
            }
            Ending::Data | Ending::HeadOnly => self.end_answer(stream, None, stage),
        }
    }

    fn end_answer(&mut self, stream: u32, trailers: Option<List>, stage: &mut Stage<'_>) {
        let Spoken::Http1(http1) = &mut self.spoken else { return };
        let Some(serve) = self.serves.get_mut(&stream) else { return };
        let exchange = &mut stage.ledger.exchanges[serve.exchange];
        http1.framing.end(&mut http1.out, trailers.as_ref());
        (exchange.down.ended, exchange.down.trailers) = (true, trailers);
        exchange.early |= !exchange.up.got_end;
        serve.ended = true;
        self.pace.hurry();
        if http1.close && (http1.framing == Framing::UntilClose || stage.seed.chance(50)) {
            self.leave(Act::Fin, stage);
        }
    }

    /// Sends some bytes after a 101. May end the tunnel when all are sent.
    pub(super) fn feed_raw(&mut self, stage: &mut Stage<'_>) {
        let Spoken::Http1(http1) = &mut self.spoken else { return };
        let Some(number) = http1.raw else { return };
        let size = self.serves.get(&http1.turn).map_or(0, |serve: &Serve| serve.size);
        let half = &mut stage.ledger.exchanges[number].down;
        let n = stage.seed.range(0, (size - half.sent).min(PIECE));
        body::put(number, Way::Down, half.sent, n, &mut http1.out);
        half.sent += n;
        if n > 0 {
            self.pace.hurry();
        }
        if half.sent == size && stage.seed.chance(5) {
            half.ended = true;
            self.leave(Act::Fin, stage);
        }
    }

    /// Garbage in the protocol of the tunnel.
    pub(super) fn nonsense(&self, stage: &mut Stage<'_>) -> Vec<u8> {
        match self.spoken {
            Spoken::Http1(_) => h1::garbage(true, stage.seed),
            _ => crate::h2::garbage(stage.seed),
        }
    }

    pub(super) fn speaks_http1(&self) -> bool {
        matches!(self.spoken, Spoken::Http1(_))
    }

    /// A FIN ends an answer that has no other end.
    pub(super) fn end_with_fin(&self, stage: &mut Stage<'_>) {
        if let Spoken::Http1(http1) = &self.spoken
            && http1.framing == Framing::UntilClose
            && let Some(serve) = self.serves.get(&http1.turn).filter(|serve| serve.headed)
        {
            let exchange = &mut stage.ledger.exchanges[serve.exchange];
            exchange.down.ended = true;
            exchange.early |= !exchange.up.got_end;
        }
    }

    /// The gateway has ended the tunnel after a 101. All bytes that the client sent must have come.
    pub(super) fn check_raw(&self, stage: &Stage<'_>) {
        if let Spoken::Http1(http1) = &self.spoken
            && let Some(number) = http1.raw
        {
            let exchange = &stage.ledger.exchanges[number];
            let half = &exchange.up;
            let slow = self.sluggish || stage.plan.stalls > 0;
            let bereft = stage.ledger.is_bereft(self.number);
            let anyway = slow || exchange.excuse || stage.ledger.draining || bereft;
            let whole = half.got == half.sent || !half.ended || half.spoiled;
            assert!(whole || anyway, "exchange {number}: bytes before its client's end are lost");
        }
    }

    /// The worker ends the tunnel after a 101 before its time, so the exchange may fail.
    pub(super) fn excuse_raw(&self, stage: &mut Stage<'_>) {
        if let Spoken::Http1(http1) = &self.spoken
            && let Some(number) = http1.raw
            && self.state == State::Open
        {
            stage.ledger.exchanges[number].excuse = true;
        }
    }
}

fn http1_out(spoken: &mut Spoken) -> &mut Vec<u8> {
    match spoken {
        Spoken::Http1(http1) => &mut http1.out,
        Spoken::Unknown(_) | Spoken::Http2 => panic!("an HTTP/1 answer on another tunnel"),
    }
}
