//! The relay without a world: the facts that it leaves for sessions, and the bytes that it writes.
//! Only what it says to itself is done at once, as the loop does.

mod ends;
mod tunnels;

use std::collections::VecDeque;
use std::sync::Arc;

use ringway_proto::fault::Fault;
use ringway_proto::fields::{Field, Fields};
use ringway_proto::h2::{Conn as H2, ErrorCode, Event, HeadKind, Limits, Role, StreamKey};
use ringway_proto::id::Node;
use ringway_proto::time::Time;
use uuid::Uuid;

use super::super::cause::Manners;
use super::super::facts::{Caller, Fact, ForSessions, NewTunnel, Terms, Wanted};
use super::super::turn::rig::{NODE, OTHER_NODE, Rig};
use super::*;
use crate::config::{Config, HonourId, Park};
use crate::control::port::Call;
use crate::message::Speaks;

const A: Key = Key { slot: 0, generation: 1 };
const B: Key = Key { slot: 1, generation: 1 };
const C: Key = Key { slot: 2, generation: 1 };

const KEPT: Park = Park::Always;
const LOST: Park = Park::Never;

/// A route's session.
fn session(key: Key) -> Uuid {
    Uuid::from_u128(0x5e55_0000 + u128::from(key.slot))
}

fn terms(park: Park) -> Terms {
    Terms { parks: Manners::kept(park, false), spares: false }
}

fn peer() -> SocketAddr {
    "192.0.2.7:1234".parse().unwrap()
}

/// The other end of an HTTP/2 connection.
struct Peer {
    conn: ConnId,
    h2: H2,
    fields: Fields,
    block: Vec<u8>,
    /// Of the last request that came in.
    key: Option<StreamKey>,
    /// The last head that came in.
    head: Vec<(String, String)>,
}

impl Peer {
    fn new(conn: ConnId, role: Role, now: Time) -> Self {
        let h2 = H2::new(role, Limits::default(), now);
        let (fields, block) = (Fields::new(), Vec::new());
        Self { conn, h2, fields, block, key: None, head: Vec::new() }
    }

    /// A field of the last head.
    fn value(&self, name: &str) -> Option<&str> {
        let field = self.head.iter().find(|(known, _)| known == name);
        field.map(|(_, value)| value.as_str())
    }

    /// Reads bytes: what they were, in short, and what is to be said to them.
    fn read(&mut self, bytes: &[u8]) -> (Vec<String>, Vec<u8>) {
        let (mut pos, mut seen, mut out) = (0, Vec::new(), Vec::new());
        loop {
            let event = self.h2.next(bytes, &mut pos, &mut self.fields, &mut out, Time::ZERO);
            let (text, end) = match event.expect("the relay keeps the rules") {
                Event::More => return (seen, out),
                Event::Head { key, kind, end_stream, list, repeated } => {
                    if let Some(list) = list.filter(|_| repeated) {
                        assert!(self.h2.recall(list, &mut self.fields));
                    }
                    (self.head(key, kind), end_stream)
                }
                Event::Data { key, start, len, end_stream, .. } => {
                    self.h2.drained(key, len, false, &mut out);
                    let text = String::from_utf8_lossy(&bytes[start..start + len]);
                    (format!("{} data {text}", key.id()), end_stream)
                }
                Event::Reset { key, code, .. } => (format!("{} reset {code:?}", key.id()), false),
                Event::Goaway { code, .. } => (format!("goaway {code:?}"), false),
                _ => continue,
            };
            seen.push(if end { text + " end" } else { text });
        }
    }

    fn head(&mut self, key: StreamKey, kind: HeadKind) -> String {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        self.head = self.fields.iter().map(|f| (text(f.name), text(f.value))).collect();
        if kind == HeadKind::Request {
            self.key = Some(key);
        }
        let first = self.value(":path").or(self.value(":status")).unwrap_or("trailers");
        match self.value("grpc-status") {
            Some(code) => format!("{} {first} grpc {code}", key.id()),
            None => format!("{} {first}", key.id()),
        }
    }
}

struct Bench {
    rig: Rig,
    relay: Relay,
    told: Vec<ForSessions>,
}

fn bench_with(config: Config) -> Bench {
    let rig = Rig::with(0, 1, config);
    let relay = Relay::new(&rig.settings);
    Bench { rig, relay, told: Vec::new() }
}

fn bench() -> Bench {
    bench_with(Config::dev())
}

impl Bench {
    // ---- the loop ----

    /// Does what the relay says to itself, the consequences of one before the next.
    fn settle(&mut self) {
        let mut open = VecDeque::from(self.rig.facts());
        while let Some(fact) = open.pop_front() {
            match fact {
                Fact::Relay(fact) => {
                    self.relay.on(&mut self.rig.turn(), fact);
                    self.rig.facts().into_iter().rev().for_each(|fact| open.push_front(fact));
                }
                Fact::Sessions(fact) => self.told.push(fact),
                other => panic!("{other:?} is none of the relay's to say"),
            }
        }
    }

    fn give(&mut self, conn: ConnId, bytes: &[u8]) {
        let mut queue = VecDeque::new();
        self.rig.net.stash_bytes(bytes, &mut queue);
        for segment in queue {
            let (mut pos, mut step) = (0, Step::More);
            while step == Step::More {
                step = self.relay.received(&mut self.rig.turn(), conn, segment, &mut pos);
                self.settle();
            }
            // The bytes that were read may have ended their connection.
            assert!(step == Step::Done || !self.rig.net.is_open(conn), "whose is {conn:?}?");
            self.rig.net.pool.release(segment);
        }
    }

    fn take(&mut self, conn: ConnId) -> Vec<u8> {
        let output = self.rig.net.output(conn).unwrap();
        let bytes = output.queue().iter().flat_map(|part| self.rig.net.pool.bytes(*part));
        let bytes: Vec<u8> = bytes.copied().collect();
        self.rig.net.sent(conn, bytes.len());
        self.relay.written(&mut self.rig.turn(), conn);
        self.settle();
        bytes
    }

    fn end(&mut self, conn: ConnId, end: End) {
        self.relay.ended(&mut self.rig.turn(), conn, end);
        self.settle();
    }

    /// A fact of the sessions'.
    fn say(&mut self, fact: ForRelay) {
        self.relay.on(&mut self.rig.turn(), fact);
        self.settle();
    }

    // ---- what came of it ----

    /// The facts that were left for sessions since the last call.
    fn told(&mut self) -> Vec<ForSessions> {
        std::mem::take(&mut self.told)
    }

    /// The only fact that was left for sessions: a request wants a route.
    fn placed(&mut self) -> (Key, Caller, Box<Wanted>) {
        let mut told = self.told();
        assert_eq!(told.len(), 1, "{told:?}");
        match told.remove(0) {
            ForSessions::Place { exchange, from, wanted } => (exchange, *from, wanted),
            other => panic!("{other:?} is no question where a request goes"),
        }
    }

    /// The frames that a peer was sent since the last call. What its codec answers goes back to the
    /// relay.
    fn sees(&mut self, peer: &mut Peer) -> Vec<String> {
        let bytes = self.take(peer.conn);
        let (seen, answers) = peer.read(&bytes);
        if self.rig.net.is_open(peer.conn) {
            self.give(peer.conn, &answers);
        }
        seen
    }

    /// Streams that run by a route, and the body bytes in both directions.
    fn carried(&self, key: Key) -> Option<(u32, u64, u64)> {
        let facts = self.relay.facts(key)?;
        Some((facts.streams, facts.bytes_up, facts.bytes_down))
    }

    fn exchanges(&self) -> usize {
        self.relay.reader.traffic.streams.exchanges.len()
    }

    // ---- peers ----

    fn accept(&mut self) -> ConnId {
        let conn = self.rig.net.open();
        self.relay.accepted(&mut self.rig.turn(), conn, peer());
        conn
    }

    /// A client that speaks HTTP/2.
    fn client(&mut self) -> Peer {
        let conn = self.accept();
        let mut client = Peer::new(conn, Role::Client, self.rig.net.now);
        let mut hello = Vec::new();
        client.h2.start(&mut hello);
        self.give(conn, &hello);
        assert_eq!(self.sees(&mut client), [""; 0]);
        client
    }

    fn attach(&mut self, key: Key) -> ConnId {
        self.attach_via(key, None)
    }

    /// Like `attach`, with a tunnel that another gateway has brought.
    fn attach_via(&mut self, key: Key, via: Option<Node>) -> ConnId {
        let conn = self.rig.net.open();
        let opened = self.rig.net.now;
        let (timer, tail) = (None, Vec::new());
        let new = NewTunnel { key, conn, peer: peer(), opened, timer, via, tail };
        self.say(ForRelay::Attach(Box::new(new)));
        conn
    }

    /// A route's tunnel that speaks HTTP/2; what was sent on it at once is not read yet.
    fn worker(&mut self, key: Key) -> Peer {
        let conn = self.attach(key);
        self.server(conn)
    }

    /// The worker's end of a tunnel begins to speak.
    fn server(&mut self, conn: ConnId) -> Peer {
        let mut worker = Peer::new(conn, Role::Server, self.rig.net.now);
        let mut hello = Vec::new();
        worker.h2.start(&mut hello);
        self.give(conn, &hello);
        worker
    }

    fn open(&mut self, key: Key, client: Option<ConnId>, park: Park) {
        self.say(ForRelay::Open { key, session: session(key), client, terms: terms(park) });
    }

    // ---- messages ----

    fn ask(&mut self, client: &mut Peer, more: &[(&str, &str)], end: bool) -> StreamKey {
        let key = client.h2.open().unwrap();
        let mut fields = vec![
            (":method", "POST"),
            (":scheme", "https"),
            (":path", "/f"),
            (":authority", "gateway"),
            ("content-type", "application/grpc"),
            ("authorization", "Bearer secret"),
            ("function-id", "function"),
            ("function-version-id", "version"),
        ];
        for (name, value) in more {
            match fields.iter_mut().find(|(known, _)| known == name) {
                Some(known) => known.1 = value,
                None => fields.push((name, value)),
            }
        }
        self.head(client, key, &fields, end);
        key
    }

    fn head(&mut self, peer: &mut Peer, key: StreamKey, fields: &[(&str, &str)], end: bool) {
        let mut out = Vec::new();
        let fields = fields.iter().map(|(n, v)| Field::new(n.as_bytes(), v.as_bytes()));
        peer.h2.head(key, fields, end, &mut peer.block, &mut out);
        self.give(peer.conn, &out);
    }

    fn body(&mut self, peer: &mut Peer, key: StreamKey, bytes: &str, end: bool) {
        let mut out = peer.h2.data_head(key, bytes.len(), end).to_vec();
        out.extend_from_slice(bytes.as_bytes());
        self.give(peer.conn, &out);
    }

    /// The worker answers the last request that it has seen.
    fn answer(&mut self, worker: &mut Peer, bytes: &str, end: bool) {
        let key = worker.key.unwrap();
        self.head(worker, key, &[(":status", "200")], false);
        self.body(worker, key, bytes, end);
    }

    fn goaway(&mut self, worker: &mut Peer, last: u32) {
        let mut out = Vec::new();
        worker.h2.goaway(last, ErrorCode::NoError, b"", &mut out);
        self.give(worker.conn, &out);
    }

    /// The one request that wants a route goes by this one.
    fn serve(&mut self, key: Key, unnamed: bool) {
        let (exchange, _, wanted) = self.placed();
        self.say(ForRelay::Serve { exchange, key, wanted, unnamed });
    }

    /// A client and the tunnel of its route, with a request that the worker has and did not answer.
    fn routed(&mut self, key: Key, park: Park) -> (Peer, Peer) {
        let mut client = self.client();
        self.open(key, Some(client.conn), park);
        let id = session(key).to_string();
        self.ask(&mut client, &[("nvcf-reqid", &id)], true);
        self.serve(key, true);
        let mut worker = self.worker(key);
        assert_eq!(self.sees(&mut worker), ["1 /f end"]);
        assert_eq!(worker.value("nvcf-reqid"), Some(&id[..]));
        assert!(matches!(self.told()[..], [ForSessions::Attached { unspoken: false, .. }]));
        (client, worker)
    }
}

// ---- where requests go ----

#[test]
fn a_request_without_a_route_is_placed_once() {
    let mut bench = bench();
    let mut client = bench.client();
    let id = session(A).to_string();
    let key = bench.ask(&mut client, &[("nvcf-reqid", &id)], false);
    let text = format!("{:?}", bench.told);
    let (_, from, wanted) = bench.placed();
    assert_eq!((from.conn, from.peer, from.speaks), (client.conn, peer(), Speaks::Http2));
    let expected = Wanted {
        call: Arc::new(Call::new(b"secret", b"function", b"version")),
        id: Some(session(A)),
        window: None,
    };
    assert_eq!(*wanted, expected);
    assert!(text.contains(&id) && !text.contains("secret"), "{text}");
    let bytes = format!("{:?}", b"secret");
    assert!(!text.contains(bytes.trim_matches(['[', ']'])), "{text}");
    bench.body(&mut client, key, "more of it", true);
    assert!(bench.told().is_empty());
    assert_eq!(bench.sees(&mut client), [""; 0]);
}

#[test]
fn an_http1_request_is_placed_as_what_it_is() {
    let mut bench = bench();
    let conn = bench.accept();
    let head = "GET /f HTTP/1.1\r\nhost: g\r\nauthorization: Bearer secret\r\n";
    bench.give(conn, head.as_bytes());
    assert!(bench.told().is_empty(), "its head is not whole");
    bench.give(conn, b"function-id: function\r\n\r\n");
    let (exchange, from, wanted) = bench.placed();
    assert_eq!((from.speaks, wanted.call.version(), wanted.id), (Speaks::Http1, &b""[..], None));
    bench.open(A, Some(conn), LOST);
    bench.say(ForRelay::Serve { exchange, key: A, wanted, unnamed: true });
    let tunnel = bench.attach(A);
    let sent = String::from_utf8(bench.take(tunnel)).unwrap();
    let id = format!("\r\nnvcf-reqid: {}\r\n", session(A));
    assert!(sent.starts_with("GET /f HTTP/1.1\r\n") && sent.contains(&id), "{sent}");
    bench.give(tunnel, b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi");
    let sent = String::from_utf8(bench.take(conn)).unwrap();
    assert!(sent.starts_with("HTTP/1.1 200 OK\r\n") && sent.ends_with("\r\n\r\nhi"), "{sent}");
}

#[test]
fn what_asks_alike_goes_by_the_route_that_was_learned() {
    let mut bench = bench();
    let (mut client, mut worker) = bench.routed(A, LOST);
    bench.ask(&mut client, &[(":path", "/alike")], true);
    assert!(bench.told().is_empty());
    assert_eq!(bench.sees(&mut worker), ["3 /alike end"]);
    let others =
        [("authorization", "Bearer x"), ("function-id", "x"), ("function-version-id", "x")];
    for other in others {
        bench.ask(&mut client, &[other], true);
        bench.placed();
    }
    assert_eq!(bench.sees(&mut worker), [""; 0]);
    // No other connection knows what one connection has learned.
    let mut second = bench.client();
    bench.ask(&mut second, &[], true);
    assert_eq!(bench.placed().1.conn, second.conn);
}

#[test]
fn a_request_that_names_another_session_is_asked_about() {
    for (honour_id, goes_along) in [(HonourId::Always, false), (HonourId::Unpinned, true)] {
        let mut config = Config::dev();
        config.session.honour_id = honour_id;
        let mut bench = bench_with(config);
        let (mut client, mut worker) = bench.routed(A, LOST);
        let [own, other] = [A, B].map(|key| session(key).to_string());
        bench.ask(&mut client, &[("nvcf-reqid", &own)], true);
        assert!(bench.told().is_empty());
        assert_eq!(bench.sees(&mut worker), ["3 /f end"]);
        bench.ask(&mut client, &[("nvcf-reqid", &other)], true);
        if goes_along {
            assert!(bench.told().is_empty());
            assert_eq!(bench.sees(&mut worker), ["5 /f end"]);
        } else {
            assert_eq!(bench.placed().2.id, Some(session(B)));
        }
    }
}

#[test]
fn a_request_without_a_name_goes_only_where_that_was_said() {
    let mut bench = bench();
    let mut client = bench.client();
    bench.open(A, Some(client.conn), LOST);
    bench.open(B, Some(client.conn), LOST);
    let ids = [A, B].map(|key| session(key).to_string());
    bench.ask(&mut client, &[("nvcf-reqid", &ids[0])], true);
    bench.serve(A, false);
    bench.ask(&mut client, &[], true);
    bench.serve(B, true);
    assert!(bench.told().is_empty());
    bench.ask(&mut client, &[], true);
    assert!(bench.told().is_empty());
    let waiting = |key| bench.relay.reader.traffic.routes.get(key).unwrap().waiting;
    assert_eq!((waiting(A), waiting(B)), (1, 2));
}

#[test]
fn a_refused_request_is_answered_and_leaves_no_route() {
    let mut bench = bench();
    let mut client = bench.client();
    bench.ask(&mut client, &[], true);
    let (exchange, ..) = bench.placed();
    bench.say(ForRelay::Refuse { exchange, fault: Box::new(Fault::NoWorker) });
    assert_eq!(bench.sees(&mut client), ["1 200 grpc 4 end"]);
    assert_eq!(bench.exchanges(), 0);
    bench.say(ForRelay::Refuse { exchange, fault: Box::new(Fault::NoWorker) });
    assert_eq!(bench.sees(&mut client), [""; 0], "it is answered once");
    bench.ask(&mut client, &[], true);
    assert_ne!(bench.placed().0, exchange);
    bench.end(client.conn, End::Reset);
    assert!(bench.relay.is_empty() && bench.relay.holds_nothing());
}

#[test]
fn requests_wait_for_their_tunnel_and_go_out_in_order() {
    let mut bench = bench();
    let mut client = bench.client();
    bench.open(A, Some(client.conn), LOST);
    let first = bench.ask(&mut client, &[(":path", "/one")], false);
    bench.serve(A, true);
    bench.ask(&mut client, &[(":path", "/two")], true);
    bench.body(&mut client, first, "hello", true);
    assert!(bench.told().is_empty() && !bench.relay.holds_nothing());
    let mut worker = bench.worker(A);
    assert!(matches!(bench.told()[..], [ForSessions::Attached { key: A, unspoken: false }]));
    assert_eq!(bench.sees(&mut worker), ["1 /one", "1 data hello end", "3 /two end"]);
    assert!(bench.relay.holds_nothing());
    assert_eq!(bench.carried(A), Some((2, 5, 0)));
}

#[test]
fn who_waits_for_one_route_may_wait_for_another() {
    let mut bench = bench();
    let mut client = bench.client();
    bench.open(A, Some(client.conn), LOST);
    bench.open(B, Some(client.conn), LOST);
    bench.ask(&mut client, &[], true);
    bench.serve(A, true);
    bench.say(ForRelay::Merge { from: A, to: B });
    let mut unwanted = bench.worker(A);
    assert_eq!(bench.sees(&mut unwanted), [""; 0]);
    let mut worker = bench.worker(B);
    assert_eq!(bench.sees(&mut worker), ["1 /f end"]);
    assert_eq!(worker.value("nvcf-reqid"), Some(&session(B).to_string()[..]));
}

#[test]
fn waiters_that_are_placed_anew_are_asked_about_again() {
    let mut bench = bench();
    let mut client = bench.client();
    bench.open(A, Some(client.conn), LOST);
    bench.open(B, Some(client.conn), LOST);
    let key = bench.ask(&mut client, &[], false);
    let (exchange, _, wanted) = bench.placed();
    let again = wanted.clone();
    bench.say(ForRelay::Serve { exchange, key: A, wanted, unnamed: true });
    bench.body(&mut client, key, "hello", true);
    bench.say(ForRelay::PlaceAnew { key: A });
    let (same, _, wanted) = bench.placed();
    assert_eq!((same, &wanted), (exchange, &again));
    bench.say(ForRelay::Serve { exchange, key: B, wanted, unnamed: false });
    bench.ask(&mut client, &[], true);
    bench.placed();
    let mut worker = bench.worker(B);
    assert_eq!(bench.sees(&mut worker), ["1 /f", "1 data hello end"]);
}

#[test]
fn what_is_served_too_late_says_that_nobody_waits() {
    let mut bench = bench();
    let mut client = bench.client();
    bench.open(A, Some(client.conn), LOST);
    let asked = bench.ask(&mut client, &[], true);
    let (exchange, _, wanted) = bench.placed();
    let mut reset = Vec::new();
    client.h2.reset(asked, ErrorCode::Cancel, &mut reset);
    bench.give(client.conn, &reset);
    assert!(bench.told().is_empty() && bench.exchanges() == 0);
    let serve = |wanted| ForRelay::Serve { exchange, key: A, wanted, unnamed: true };
    bench.say(serve(wanted.clone()));
    assert!(matches!(bench.told()[..], [ForSessions::Abandoned { key: A }]));
    // The lost exchange has taught nothing. If somebody waits for the route, it leaves no fact.
    bench.ask(&mut client, &[], true);
    bench.serve(A, true);
    bench.say(serve(wanted));
    assert!(bench.told().is_empty());
}
