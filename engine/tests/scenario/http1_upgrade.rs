//! Upgrades by raw bytes: WebSockets, and `Upgrade: h2c`.

use std::time::Duration;

use ringway::net::{ConnId, End};
use ringway_proto::fields::Fields;
use ringway_proto::h2::{Conn, Event, Limits, Role};

use crate::http1::{Rig, get, request, text};
use crate::peer::Peer;
use crate::world::World;

pub(crate) const UPGRADE: &str = "Connection: Upgrade\r\nUpgrade: websocket\r\n\
                       Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n";

pub(crate) const ACCEPTED: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n\
                        Upgrade: websocket\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

pub(crate) fn websocket(path: &str) -> String {
    request(&format!("GET {path} HTTP/1.1"), UPGRADE, "")
}

fn opened() -> Rig {
    let mut rig = Rig::unkept();
    rig.ask(&websocket("/ws"));
    rig.attach();
    rig.at_worker();
    rig.answer(ACCEPTED);
    assert!(rig.at_client().starts_with("HTTP/1.1 101 "));
    rig
}

/// CL-47, CL-36, CL-37.
#[test]
fn a_websocket_is_bytes_both_ways() {
    for cut in [1, 7, usize::MAX] {
        let mut rig = Rig::unkept();
        rig.world.cut = cut;
        // Bytes behind the request wait for the 101.
        rig.ask(&format!("{}early", websocket("/ws")));
        rig.attach();
        let said = rig.at_worker();
        for line in ["connection: upgrade", "upgrade: websocket", "sec-websocket-version: 13"] {
            assert!(said.contains(&format!("\r\n{line}\r\n")), "{line}: {said}");
        }
        assert!(!said.contains("early"), "raw bytes before the 101: {said}");
        rig.answer(&format!("{ACCEPTED}first"));
        let said = rig.at_client();
        let id = rig.id.clone();
        let (head, body) = said.split_once("\r\n\r\n").expect("a head");
        assert!(head.starts_with("HTTP/1.1 101 Switching Protocols\r\n"), "{head}");
        for line in [
            "connection: upgrade".to_owned(),
            "upgrade: websocket".into(),
            "sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=".into(),
            format!("nvcf-reqid: {id}"),
            format!("set-cookie: nvcf-request-id={id}"),
        ] {
            assert!(head.split("\r\n").any(|have| have == line), "{line}: {head}");
        }
        assert!(!head.contains("transfer-encoding") && !head.contains("content-length"), "{head}");
        assert_eq!((body, &*rig.at_worker()), ("first", "early"));
        let large = "frame".repeat(if cut < 100 { 200 } else { 20_000 });
        rig.ask(&large);
        rig.ask("GET / HTTP/1.1\r\n\r\n");
        assert_eq!(rig.at_worker(), large.clone() + "GET / HTTP/1.1\r\n\r\n");
        rig.answer(&large);
        assert_eq!(rig.at_client(), large);
        // Open streams have no idle timer.
        rig.world.pass(Duration::from_secs(7200));
        rig.answer("still");
        assert_eq!(rig.at_client(), "still");
        rig.end();
    }
}

/// CL-47: what was sent before an end arrives, whoever ends; both connections are over then.
#[test]
fn the_end_of_one_side_is_the_end_of_both_behind_what_was_sent() {
    for end in [End::Fin, End::Reset] {
        let mut rig = opened();
        rig.answer("close frame");
        let tunnel = rig.tunnel.expect("a tunnel");
        rig.world.end(tunnel, end);
        assert_eq!(rig.at_client(), "close frame");
        assert!(rig.world.is_closed(rig.client) && rig.tunnel_is_closed());
        count(&rig, "101");
        rig.nothing_is_left();
        let mut rig = opened();
        rig.ask("close frame");
        rig.world.end(rig.client, end);
        assert_eq!(rig.at_worker(), "close frame");
        assert!(rig.tunnel_is_closed());
        count(&rig, "101");
        rig.nothing_is_left();
    }
}

fn count(rig: &Rig, status: &str) {
    let mut metrics = String::new();
    rig.world.shard.metrics().render(&mut metrics);
    let counted = metrics.lines().any(|line| {
        line.contains(&format!("\"{status}\"")) && line.contains("\"1.1\"") && line.ends_with(" 1")
    });
    assert!(counted, "{metrics}");
}

/// Bytes that wait because their receiver is slow are delivered too.
#[test]
fn an_end_does_not_overtake_what_waits() {
    let mut rig = opened();
    rig.world.block(rig.client, true);
    let mut sent = 0;
    for _ in 0..20 {
        rig.answer(&"d".repeat(30_000));
        sent += 30_000;
    }
    let tunnel = rig.tunnel.expect("a tunnel");
    // The world closes at once what is to be flushed: look before.
    let queued = rig.world.net.queued(rig.client);
    assert!(queued < sent, "some of it waits in the exchange: {queued}");
    rig.world.block(rig.client, false);
    rig.world.end(tunnel, End::Fin);
    assert_eq!(rig.at_client().len(), sent);
    rig.nothing_is_left();
}

#[test]
fn a_worker_may_decline_an_upgrade() {
    let mut rig = Rig::unkept();
    rig.ask(&format!("{}{}", websocket("/ws"), get("/next")));
    rig.attach();
    rig.at_worker();
    rig.answer("HTTP/1.1 403 Forbidden\r\nUpgrade: websocket\r\ncontent-length: 2\r\n\r\nno");
    let said = rig.at_client();
    assert!(said.starts_with("HTTP/1.1 403 ") && said.ends_with("\r\n\r\nno"), "{said}");
    assert!(rig.at_worker().starts_with("GET /next "), "an ordinary connection still");
    rig.end();
}

/// CL-47: another protocol than was asked for.
#[test]
fn a_mismatching_101_is_502() {
    for answer in [
        ACCEPTED.replace("websocket", "other"),
        ACCEPTED.replace("Upgrade: websocket\r\n", ""),
        ACCEPTED.replace("Connection: Upgrade\r\n", ""),
        ACCEPTED.replace("Upgrade: websocket", "Upgrade: h2c"),
    ] {
        let mut rig = Rig::unkept();
        rig.ask(&websocket("/ws"));
        rig.attach();
        rig.at_worker();
        rig.answer(&format!("{answer}raw"));
        let said = rig.at_client();
        assert!(said.starts_with("HTTP/1.1 502 ") && !said.contains("raw"), "{answer}: {said}");
        assert!(rig.tunnel_is_closed());
        rig.end();
    }
}

/// CL-1: credentials in `Sec-WebSocket-Protocol`, which goes to the worker as it is.
#[test]
fn protocols_carry_credentials() {
    let mut rig = Rig::unkept();
    let protocols = format!(
        "Sec-WebSocket-Protocol: chat, authorization.dev-key, function-id.{}",
        crate::world::FUNCTION
    );
    rig.ask(&format!("GET /ws HTTP/1.1\r\nHost: g\r\n{UPGRADE}{protocols}\r\n\r\n"));
    rig.attach();
    assert!(rig.at_worker().contains("\r\nsec-websocket-protocol: chat, authorization.dev-key,"));
    rig.answer(&ACCEPTED.replace("\r\n\r\n", "\r\nSec-WebSocket-Protocol: chat\r\n\r\n"));
    assert!(rig.at_client().contains("\r\nsec-websocket-protocol: chat\r\n"));
    rig.end();
    let mut rig = Rig::unkept();
    rig.ask(&format!(
        "GET /ws HTTP/1.1\r\nHost: g\r\n{UPGRADE}Sec-WebSocket-Protocol: authorization.bad, \
         function-id.{}\r\n\r\n",
        crate::world::FUNCTION
    ));
    assert!(rig.at_client().starts_with("HTTP/1.1 401 "));
    rig.end();
}

#[test]
fn early_bytes_are_bounded_by_not_reading() {
    let mut rig = Rig::unkept();
    rig.ask(&websocket("/ws"));
    rig.attach();
    for _ in 0..10 {
        rig.ask(&"x".repeat(30_000));
    }
    assert!(rig.world.net.output(rig.client).is_some_and(|output| output.is_paused()));
    // A reactor that went on all the same is not ours.
    for _ in 0..40 {
        rig.ask(&"x".repeat(30_000));
    }
    assert!(rig.world.is_closed(rig.client));
    rig.nothing_is_left();
}

const H2C: &str = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n\
                   HTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n";

/// The client's half of a connection that has become HTTP/2.
struct Upgraded {
    h2: Conn,
    conn: ConnId,
    fields: Fields,
    status: String,
    body: Vec<u8>,
    ended: bool,
}

impl Upgraded {
    fn new(rig: &mut Rig, magic: bool) -> Self {
        let now = rig.world.net.now;
        let mut h2 = Conn::new(Role::Client, Limits::default(), now);
        let mut out = Vec::new();
        h2.start(&mut out);
        h2.open().expect("stream 1");
        if magic {
            rig.world.send(rig.client, &out);
        }
        let (fields, body) = (Fields::new(), Vec::new());
        Self { h2, conn: rig.client, fields, status: String::new(), body, ended: false }
    }

    fn read(&mut self, world: &mut World, bytes: &[u8]) {
        let (mut pos, mut out) = (0, Vec::new());
        loop {
            let now = world.net.now;
            match self.h2.next(bytes, &mut pos, &mut self.fields, &mut out, now) {
                Ok(Event::More) => break,
                Ok(Event::Head { end_stream, .. }) => {
                    let status = self.fields.first(ringway_proto::fields::Token::Status);
                    self.status = text(status.unwrap_or_default());
                    self.ended |= end_stream;
                }
                Ok(Event::Data { start, len, end_stream, .. }) => {
                    self.body.extend_from_slice(&bytes[start..start + len]);
                    self.ended |= end_stream;
                }
                Ok(_) => {}
                Err(fault) => panic!("{fault}"),
            }
        }
        world.send(self.conn, &out);
    }
}

/// CL-48: with the request as stream 1, also if it has a body.
#[test]
fn h2c_goes_on_in_http_2() {
    for (line, more, body) in [
        ("GET /p HTTP/1.1", "", ""),
        ("POST /p HTTP/1.1", "Content-Length: 5\r\n", "hello"),
        ("POST /p HTTP/1.1", "Transfer-Encoding: chunked\r\n", "5\r\nhello\r\n0\r\nX-T: 1\r\n\r\n"),
    ] {
        for cut in [1, usize::MAX] {
            let mut rig = Rig::unkept();
            rig.world.cut = cut;
            rig.ask(&request(line, &format!("{H2C}{more}"), body));
            let mut client = Upgraded::new(&mut rig, true);
            let said = rig.world.take(rig.client);
            let switching = b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\n\
                              upgrade: h2c\r\n\r\n";
            assert!(said.starts_with(switching), "{}", text(&said));
            client.read(&mut rig.world, &said[switching.len()..]);
            let mut worker = Peer::worker(&mut rig.world);
            worker.sync(&mut rig.world);
            assert_eq!(worker.field(0, ":path"), Some("/p"));
            assert_eq!(worker.field(0, ":scheme"), Some("http"));
            assert_eq!(worker.field(0, ":authority"), Some("gateway"));
            for gone in ["connection", "upgrade", "http2-settings", "host", "transfer-encoding"] {
                assert_eq!(worker.field(0, gone), None, "{gone}");
            }
            let sent = if body.is_empty() { &b""[..] } else { b"hello" };
            assert_eq!(worker.body(1).0, sent);
            let key = worker.key(0);
            worker.head(&mut rig.world, key, &[(":status", "200")], false);
            worker.data(&mut rig.world, key, b"answer", true);
            let said = rig.world.take(rig.client);
            client.read(&mut rig.world, &said);
            assert_eq!(
                (&*client.status, &*client.body, client.ended),
                ("200", &b"answer"[..], true)
            );
            rig.end();
        }
    }
}

#[test]
fn h2c_is_ignored_when_it_is_no_proper_wish() {
    for more in [
        H2C.replace("Upgrade, HTTP2-Settings", "Upgrade"),
        H2C.replace("AAMAAABkAAQAoAAAAAIAAAAA", "!"),
        format!("{H2C}HTTP2-Settings: AAMAAABk\r\n"),
    ] {
        let mut rig = Rig::unkept();
        rig.ask(&request("GET / HTTP/1.1", &more, ""));
        rig.attach();
        let said = rig.at_worker();
        assert!(said.starts_with("GET / HTTP/1.1\r\n") && !said.contains("h2c"), "{said}");
        rig.end();
    }
    // A connection with a session has HTTP/1 tunnels: it stays what it is.
    let mut rig = Rig::unkept();
    rig.warm_up();
    rig.ask(&request("GET / HTTP/1.1", H2C, ""));
    assert!(rig.at_worker().starts_with("GET / HTTP/1.1\r\n"));
    rig.end();
    // Settings that no peer may send.
    let mut rig = Rig::unkept();
    rig.ask(&request("GET / HTTP/1.1", &H2C.replace("AAMAAABkAAQAoAAAAAIAAAAA", "AAIAAAAF"), ""));
    assert!(rig.at_client().starts_with("HTTP/1.1 400 "));
    rig.nothing_is_left();
}

#[test]
fn the_body_of_an_h2c_request_has_a_limit() {
    let mut rig = Rig::of(World::with("[limits]\nh2c_body = \"64KiB\""));
    let more = format!("{H2C}Content-Length: 70000\r\nExpect: 100-continue\r\n");
    rig.ask(&request("POST / HTTP/1.1", &more, ""));
    assert_eq!(rig.at_client(), "HTTP/1.1 100 Continue\r\n\r\n");
    rig.ask(&"x".repeat(65_536));
    assert_eq!(rig.at_client(), "");
    rig.ask("x");
    let said = rig.at_client();
    assert!(said.starts_with("HTTP/1.1 413 Content Too Large\r\n"), "{said}");
    rig.end();
    // A client that leaves before its request is whole leaves nothing.
    let mut rig = Rig::unkept();
    rig.ask(&request("POST / HTTP/1.1", &more, "some"));
    rig.end();
}

/// Whatever comes from either side, in whatever pieces: no panic, and nothing is left.
#[test]
fn nonsense_leaves_nothing() {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for _ in 0..400 {
        let mut rig = Rig::unkept();
        rig.world.cut = [1, 3, 50, usize::MAX][random.below(4)];
        let asks = [
            websocket("/ws"),
            get("/"),
            request("POST / HTTP/1.1", "Content-Length: 5\r\n", "hello"),
            request("POST / HTTP/1.1", "Transfer-Encoding: chunked\r\n", "5\r\nhello\r\n0\r\n\r\n"),
            request("POST / HTTP/1.1", &format!("{H2C}Content-Length: 5\r\n"), "hello"),
            "HEAD /health HTTP/1.0\r\n\r\n".into(),
        ];
        let answers = [
            ACCEPTED,
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nab",
            "HTTP/1.1 200 OK\r\n\r\nuntil close",
            "HTTP/1.1 103 Early Hints\r\n\r\n",
        ];
        for _ in 0..random.below(12) {
            match random.below(8) {
                0..4 => {
                    let bytes = random.spoil(asks[random.0 as usize % asks.len()].as_bytes());
                    rig.world.send(rig.client, &bytes);
                }
                4 => {
                    if let Some(work) = crate::peer::poll(&mut rig.world, &[]) {
                        let conn = rig.world.connect(ringway::net::Listener::Worker);
                        rig.world.send(conn, work.connect().as_bytes());
                        rig.tunnel = Some(conn);
                    }
                }
                5 => rig.world.pass(Duration::from_secs(random.below(40) as u64)),
                _ => {
                    let bytes = random.spoil(answers[random.0 as usize % answers.len()].as_bytes());
                    if let Some(tunnel) = rig.tunnel {
                        rig.world.send(tunnel, &bytes);
                    }
                }
            }
        }
        if let Some(tunnel) = rig.tunnel.filter(|tunnel| !rig.world.is_closed(*tunnel)) {
            rig.world.end(tunnel, End::Fin);
        }
        if !rig.world.is_closed(rig.client) {
            rig.world.end(rig.client, End::Fin);
        }
        rig.nothing_is_left();
    }
}

/// A generator that needs nothing (xorshift).
struct Random(u64);

impl Random {
    fn below(&mut self, most: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % most
    }

    /// Mostly the same bytes; sometimes one is another, or some are missing.
    fn spoil(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut bytes = bytes.to_vec();
        match self.below(4) {
            0 => {
                let at = self.below(bytes.len());
                bytes[at] = self.below(256) as u8;
            }
            1 => bytes.truncate(self.below(bytes.len())),
            _ => {}
        }
        bytes
    }
}
