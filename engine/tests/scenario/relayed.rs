//! Two gateways of a cluster: what comes to the wrong one goes to the other, whole.

use std::time::Duration;

use ringway::config::Secret;
use ringway::control::port::Plane;
use ringway::keys::Keys;
use ringway::metrics::{RelayCause, RelayOutcome, TakenCause, TakenOutcome};
use ringway::net::{ConnId, End, Listener};
use ringway_proto::h2::Limits;
use ringway_proto::id::Node;
use ringway_proto::prelude::VERSION as VERSION_OF_PRELUDES;
use ringway_proto::prelude::{CHALLENGE_LENGTH, MAGIC, Matter, Opening, Prelude, Verdict};

use crate::peer::{Peer, Seen, Work, poll};
use crate::world::{CoreSetup, FUNCTION, VERSION, World};

const SECRET: &str = "what the gateways have in common";
const PATIENCE: Duration = Duration::from_millis(500);

/// A connection between two worlds: which world and connection made it, and which took it.
type Link = [(usize, ConnId); 2];

/// Two worlds, and what the network does between them.
struct Two {
    nodes: [World; 2],
    links: Vec<Link>,
    /// Nobody listens there any more.
    gone: bool,
    /// Bytes sent there do not arrive.
    deaf: bool,
    /// Whether the first node says preludes of a version that the second one does not know.
    newer: bool,
}

fn node(at: usize, incarnation: u16) -> Node {
    Node::new(at as u16 + 1, incarnation).expect("a node")
}

fn world(at: usize, incarnation: u16, more: &str) -> World {
    let (plane, dispatch) = (Plane::Local, Plane::Local);
    let setup = CoreSetup { core: 0, cores: 1, life: 0, unanswered: 64 * 1024, plane, dispatch };
    let secrets = vec![Secret::from(SECRET)];
    let keys = Keys::of(&secrets);
    let other = 1 - at;
    World::settled(
        setup,
        more,
        |config| {
            config.cluster.secrets = secrets;
            config.cluster.node = Some(at as u16 + 1);
            let address = format!("127.0.0.1:{}", 7001 + other).parse().expect("an address");
            config.cluster.nodes = vec![(other as u16 + 1, address)];
        },
        |settings| {
            settings.node = node(at, incarnation);
            settings.keys = keys;
            settings.seed = [5 + at as u8; 32];
            settings.secret = [at as u8; 16];
        },
    )
}

impl Two {
    fn new() -> Self {
        Self::with("")
    }

    fn with(more: &str) -> Self {
        let nodes = [world(0, 7, more), world(1, 8, more)];
        Self { nodes, links: Vec::new(), gone: false, deaf: false, newer: false }
    }

    /// What a node that may be of a newer version says for these octets.
    fn as_said(&self, mut bytes: Vec<u8>) -> Vec<u8> {
        if self.newer && bytes.starts_with(MAGIC) {
            bytes[4] = VERSION_OF_PRELUDES + 1;
        }
        bytes
    }

    /// Carries everything between them until nothing is left.
    fn pump(&mut self) {
        while self.dial() | self.carry() {}
    }

    fn dial(&mut self) -> bool {
        let mut dialled = false;
        for at in 0..2 {
            while let Some((_, address)) = self.nodes[at].dials.front().copied() {
                dialled = true;
                if self.gone {
                    self.nodes[at].dialled(Err(111));
                    continue;
                }
                let other = usize::from(address.port()) - 7001;
                let there = self.nodes[other].connect(Listener::Cluster);
                let (here, _) = self.nodes[at].dialled(Ok(()));
                self.links.push([(at, here), (other, there)]);
            }
        }
        dialled
    }

    fn carry(&mut self) -> bool {
        let mut carried = false;
        if self.deaf {
            return false;
        }
        for link in self.links.clone() {
            for [(from, conn), (to, other)] in [link, [link[1], link[0]]] {
                let bytes = self.nodes[from].take(conn);
                let bytes = self.as_said(bytes);
                if !bytes.is_empty() {
                    carried = true;
                    self.nodes[to].send(other, &bytes);
                }
                if self.nodes[from].is_closed(conn) && self.links.contains(&link) {
                    carried = true;
                    self.links.retain(|other| *other != link);
                    self.end(from, conn, (to, other));
                }
            }
        }
        carried
    }

    /// A connection of one node has ended: the other node's side of it ends alike.
    fn end(&mut self, from: usize, conn: ConnId, (to, other): (usize, ConnId)) {
        let end = if self.nodes[from].is_reset(conn) { End::Reset } else { End::Fin };
        self.nodes[to].end(other, end);
    }

    fn relays(&self, at: usize, cause: RelayCause, outcome: RelayOutcome) -> u64 {
        self.nodes[at].shard.metrics().relays.of(cause, outcome)
    }

    fn taken(&self, at: usize, cause: TakenCause, outcome: TakenOutcome) -> u64 {
        self.nodes[at].shard.metrics().relays.taken(cause, outcome)
    }

    /// Everything has ended.
    #[track_caller]
    fn assert_empty(&mut self) {
        self.pump();
        for at in 0..2 {
            assert!(self.nodes[at].shard.is_empty(), "node {at}: {:?}", self.nodes[at].shard);
        }
        assert!(self.links.is_empty());
    }

    /// A client of the second node has asked for its first session; the work.
    fn asked(&mut self) -> (Peer, Work) {
        let mut client = Peer::client(&mut self.nodes[1]);
        client.request(&mut self.nodes[1], &[], false);
        let work = poll(&mut self.nodes[1], &[]).expect("work");
        (client, work)
    }

    /// A worker dials back at the first node; its connection, and what it is answered.
    fn knock(&mut self, work: &Work) -> (ConnId, Vec<u8>) {
        let conn = self.nodes[0].connect(Listener::Worker);
        self.nodes[0].send(conn, work.connect().as_bytes());
        self.pump();
        let answer = self.nodes[0].take(conn);
        (conn, answer)
    }

    /// A session of the second node whose tunnel is parked there: its worker, and its id.
    fn parked(&mut self) -> (Peer, String) {
        let (client, work) = self.asked();
        let mut worker = Peer::dial_back(&mut self.nodes[1], &work);
        worker.sync(&mut self.nodes[1]);
        assert_eq!(worker.heads().len(), 1);
        self.nodes[1].end(client.conn, End::Reset);
        worker.sync(&mut self.nodes[1]);
        (worker, work.request_id)
    }
}

fn status(answer: &[u8]) -> String {
    String::from_utf8_lossy(answer).chars().take(12).collect()
}

#[test]
fn a_callback_at_the_wrong_node_is_its_owners_tunnel() {
    for end in [End::Fin, End::Reset] {
        let mut two = Two::with("[session]\npark = \"never\"");
        let (mut client, work) = two.asked();
        let (conn, answer) = two.knock(&work);
        let mut worker = Peer::accepted(&mut two.nodes[0], conn, &answer, Limits::default());
        two.pump();
        worker.sync(&mut two.nodes[0]);
        assert_eq!(worker.field(0, "nvcf-reqid"), Some(&*work.request_id));
        let key = client.key(0);
        client.data(&mut two.nodes[1], key, b"hello", true);
        two.pump();
        worker.sync(&mut two.nodes[0]);
        assert_eq!(worker.body(1), (b"hello".to_vec(), true));
        // A large answer is passed on piece by piece.
        let key = worker.key(0);
        worker.head(&mut two.nodes[0], key, &[(":status", "200")], false);
        let mut out = worker.h2.data_head(key, 16_000, true).to_vec();
        out.extend(vec![b'x'; 16_000]);
        two.nodes[0].send(conn, &out);
        two.pump();
        client.sync(&mut two.nodes[1]);
        assert_eq!(client.body(1).0.len(), 16_000);
        assert_eq!(two.relays(0, RelayCause::Callback, RelayOutcome::Relayed), 1);
        assert_eq!(two.taken(1, TakenCause::Callback, TakenOutcome::Taken), 1);
        // The tunnel's end is the worker's, and of the same kind.
        two.nodes[1].end(client.conn, end);
        two.pump();
        assert!(two.nodes[0].is_closed(conn) && !two.nodes[0].is_reset(conn), "{end:?}");
        two.assert_empty();
    }
}

#[test]
fn an_end_of_a_worker_is_an_end_of_the_same_kind_at_the_owner() {
    for (end, reset) in [(End::Fin, false), (End::Reset, true), (End::Timeout, true)] {
        let mut two = Two::with("[session]\npark = \"never\"");
        let (mut client, work) = two.asked();
        let (conn, _) = two.knock(&work);
        let [_, (at, there)] = two.links[0];
        two.nodes[0].end(conn, end);
        two.pump();
        assert!(two.nodes[at].is_closed(there));
        client.sync(&mut two.nodes[1]);
        let told = client.field(0, "x-ringway-cause").map(str::to_owned);
        assert!(client.field(0, ":status").is_some(), "{reset} {told:?}");
        two.nodes[1].end(client.conn, End::Fin);
        two.assert_empty();
    }
}

#[test]
fn a_worker_whose_owner_is_not_there_tries_again_and_one_of_a_dead_owner_does_not() {
    let mut two = Two::new();
    let (client, work) = two.asked();
    two.gone = true;
    let (conn, answer) = two.knock(&work);
    assert_eq!(status(&answer), "HTTP/1.1 503");
    assert!(two.nodes[0].is_closed(conn));
    assert_eq!(two.relays(0, RelayCause::Callback, RelayOutcome::Unreachable), 1);
    // The node that was not reached is left alone for a second.
    two.gone = false;
    let (_, answer) = two.knock(&work);
    assert_eq!((status(&answer).as_str(), two.links.len()), ("HTTP/1.1 503", 0));
    two.nodes[0].pass(Duration::from_secs(1));
    // The other node is there and says nothing.
    two.deaf = true;
    let (conn, answer) = two.knock(&work);
    assert_eq!(answer, b"");
    two.nodes[0].pass(PATIENCE);
    assert_eq!(status(&two.nodes[0].take(conn)), "HTTP/1.1 503");
    assert_eq!(two.relays(0, RelayCause::Callback, RelayOutcome::Late), 1);
    two.deaf = false;
    two.pump();
    two.nodes[0].pass(Duration::from_secs(1));
    // Another run of its process is there: what the old one began is over.
    let mut later = world(1, 9, "");
    std::mem::swap(&mut two.nodes[1], &mut later);
    let (_, answer) = two.knock(&work);
    assert_eq!(status(&answer), "HTTP/1.1 403");
    assert_eq!(two.relays(0, RelayCause::Callback, RelayOutcome::Dead), 1);
    assert_eq!(two.taken(1, TakenCause::Callback, TakenOutcome::Elsewhere), 1);
    two.assert_empty();
    later.end(client.conn, End::Fin);
}

#[test]
fn a_token_that_nobody_has_made_is_refused_here() {
    let mut two = Two::new();
    let (client, mut work) = two.asked();
    let forged: String = work.token.chars().rev().collect();
    work.token = forged;
    let (conn, answer) = two.knock(&work);
    assert_eq!(status(&answer), "HTTP/1.1 403");
    assert!(two.nodes[0].is_closed(conn) && two.nodes[0].dials.is_empty());
    two.nodes[1].end(client.conn, End::Fin);
    two.assert_empty();
}

#[test]
fn an_http2_client_gets_its_parked_tunnel_on_the_other_node() {
    let mut two = Two::new();
    let (mut worker, id) = two.parked();
    let mut client = Peer::client(&mut two.nodes[0]);
    client.request(&mut two.nodes[0], &[("nvcf-reqid", &id)], false);
    two.pump();
    worker.sync(&mut two.nodes[1]);
    assert_eq!(worker.heads().len(), 2, "{:?}", worker.seen);
    assert_eq!(worker.field(1, "nvcf-reqid"), Some(&*id));
    let key = client.key(0);
    client.data(&mut two.nodes[0], key, b"again", true);
    two.pump();
    worker.sync(&mut two.nodes[1]);
    let key = worker.key(1);
    assert_eq!(worker.body(key.id()), (b"again".to_vec(), true));
    worker.head(&mut two.nodes[1], key, &[(":status", "200"), ("grpc-status", "0")], true);
    two.pump();
    client.sync(&mut two.nodes[0]);
    assert_eq!(client.field(0, "grpc-status"), Some("0"));
    assert_eq!(two.relays(0, RelayCause::Client, RelayOutcome::Relayed), 1);
    assert_eq!(two.taken(1, TakenCause::Client, TakenOutcome::Taken), 1);
    // Another user's call on the same connection is served there too, and counted once.
    for n in 1..3 {
        client.request(&mut two.nodes[0], &[("authorization", "Bearer other-key")], true);
        two.pump();
        assert_eq!(two.nodes[1].shard.metrics().relays.shared, 1, "{n}");
    }
    // The next call takes the same way, and the client's end is its own.
    client.request(&mut two.nodes[0], &[("nvcf-reqid", &id)], true);
    two.pump();
    worker.sync(&mut two.nodes[1]);
    assert_eq!(worker.heads().len(), 3);
    two.nodes[0].end(client.conn, End::Reset);
    two.pump();
    assert_eq!(two.nodes[1].shard.clients(), 0);
    two.nodes[1].pass(Duration::from_secs(60));
    two.nodes[1].end(worker.conn, End::Fin);
    two.assert_empty();
}

fn http1(id: &str, more: &str) -> String {
    format!(
        "POST /x HTTP/1.1\r\nHost: gateway\r\nAuthorization: Bearer dev-key\r\n\
         Function-Id: {FUNCTION}\r\nFunction-Version-Id: {VERSION}\r\n\
         nvcf-reqid: {id}\r\n{more}content-length: 0\r\n\r\n"
    )
}

#[test]
fn an_http1_client_goes_to_its_session_also_behind_answers_of_this_node() {
    for before in ["", "GET /health HTTP/1.1\r\nHost: gateway\r\n\r\n"] {
        let mut two = Two::new();
        let first = two.nodes[1].connect(Listener::Client);
        let call = http1("", "").replace("nvcf-reqid: \r\n", "");
        two.nodes[1].send(first, call.as_bytes());
        let work = poll(&mut two.nodes[1], &[]).expect("work");
        let tunnel = two.nodes[1].connect(Listener::Worker);
        two.nodes[1].send(tunnel, work.connect().as_bytes());
        assert!(two.nodes[1].take(tunnel).starts_with(b"HTTP/1.1 200 OK\r\n\r\nPOST /x"));
        two.nodes[1].send(tunnel, b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
        assert!(two.nodes[1].take(first).ends_with(b"ok"));
        two.nodes[1].end(first, End::Reset);
        let conn = two.nodes[0].connect(Listener::Client);
        if !before.is_empty() {
            two.nodes[0].send(conn, before.as_bytes());
            assert_eq!(status(&two.nodes[0].take(conn)), "HTTP/1.1 200");
        }
        two.nodes[0].send(conn, http1(&work.request_id, "").as_bytes());
        two.pump();
        let asked = two.nodes[1].take(tunnel);
        assert!(asked.starts_with(b"POST /x HTTP/1.1"), "{}", String::from_utf8_lossy(&asked));
        two.nodes[1].send(tunnel, b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nback");
        two.pump();
        assert!(two.nodes[0].take(conn).ends_with(b"back"));
        assert_eq!(two.relays(0, RelayCause::Client, RelayOutcome::Relayed), 1, "{before}");
        two.nodes[0].end(conn, End::Fin);
        two.pump();
        two.nodes[1].pass(Duration::from_secs(60));
        two.nodes[1].end(tunnel, End::Fin);
        two.assert_empty();
    }
}

#[test]
fn a_client_whose_owner_is_gone_is_answered_at_once() {
    let mut two = Two::new();
    let (worker, id) = two.parked();
    two.gone = true;
    for n in 0..2 {
        let mut client = Peer::client(&mut two.nodes[0]);
        client.request(&mut two.nodes[0], &[("nvcf-reqid", &id)], true);
        two.pump();
        client.sync(&mut two.nodes[0]);
        assert_eq!(client.field(0, "grpc-status"), Some("5"), "{n}: {:?}", client.seen);
        two.nodes[0].end(client.conn, End::Fin);
    }
    // An id of a node that nobody knows, and one of an earlier run of this process.
    let other = |number: u128| {
        let id = uuid::Uuid::parse_str(&id).expect("an id").as_u128();
        uuid::Uuid::from_u128(id & !(0xfff << 64) | number << 64).to_string()
    };
    for (number, outcome) in [(77, RelayOutcome::Unknown), (1, RelayOutcome::Dead)] {
        let mut client = Peer::client(&mut two.nodes[0]);
        client.request(&mut two.nodes[0], &[("nvcf-reqid", &other(number))], true);
        client.sync(&mut two.nodes[0]);
        assert_eq!(client.field(0, "grpc-status"), Some("5"));
        assert_eq!(two.relays(0, RelayCause::Client, outcome), 1);
        two.nodes[0].end(client.conn, End::Fin);
    }
    assert_eq!(two.relays(0, RelayCause::Client, RelayOutcome::Unreachable), 2);
    two.nodes[1].pass(Duration::from_secs(60));
    two.nodes[1].end(worker.conn, End::Fin);
    two.assert_empty();
}

/// The table in `docs/many-gateways.md`: what the owner cannot read costs the way through it, no more.
#[test]
fn an_owner_that_does_not_know_our_version_is_done_without() {
    let mut two = Two::new();
    two.newer = true;
    let (first, work) = two.asked();
    let (conn, answer) = two.knock(&work);
    assert_eq!(status(&answer), "HTTP/1.1 503");
    assert!(two.nodes[0].is_closed(conn));
    assert_eq!(two.relays(0, RelayCause::Callback, RelayOutcome::Refused), 1);
    assert_eq!(two.taken(1, TakenCause::None, TakenOutcome::Version), 1);
    // The same callback succeeds where the worker tries again, and the session parks there.
    let mut worker = Peer::dial_back(&mut two.nodes[1], &work);
    worker.sync(&mut two.nodes[1]);
    two.nodes[1].end(first.conn, End::Reset);
    worker.sync(&mut two.nodes[1]);
    // Its client is answered by the control path, at once.
    let mut client = Peer::client(&mut two.nodes[0]);
    client.request(&mut two.nodes[0], &[("nvcf-reqid", &work.request_id)], true);
    two.pump();
    client.sync(&mut two.nodes[0]);
    assert_eq!(client.field(0, "grpc-status"), Some("5"), "{:?}", client.seen);
    assert_eq!(two.relays(0, RelayCause::Client, RelayOutcome::Refused), 1);
    assert_eq!(two.taken(1, TakenCause::None, TakenOutcome::Version), 2);
    two.nodes[0].end(client.conn, End::Fin);
    two.nodes[1].pass(Duration::from_secs(60));
    two.nodes[1].end(worker.conn, End::Fin);
    two.assert_empty();
}

#[test]
fn a_client_that_leaves_before_it_is_taken_leaves_nothing() {
    for end in [End::Fin, End::Reset] {
        let mut two = Two::new();
        let (worker, id) = two.parked();
        two.deaf = true;
        let mut client = Peer::client(&mut two.nodes[0]);
        client.request(&mut two.nodes[0], &[("nvcf-reqid", &id)], true);
        two.pump();
        two.nodes[0].end(client.conn, end);
        two.nodes[0].pass(PATIENCE);
        assert!(two.nodes[0].shard.is_empty(), "{end:?}");
        two.deaf = false;
        two.pump();
        two.nodes[1].pass(Duration::from_secs(60));
        two.nodes[1].end(worker.conn, End::Fin);
        two.assert_empty();
    }
}

#[test]
fn who_cannot_prove_it_is_refused_and_costs_nothing() {
    let mut two = Two::new();
    let keys = Keys::of(&[Secret::from(SECRET)]).expect("one");
    let strange = Keys::of(&[Secret::from("another cluster's secret")]).expect("one");
    let opening = Opening { peer: "192.0.2.1:1".parse().expect("an address"), age: 0, received: 9 };
    let prelude = |to| Prelude { from: node(0, 7), to, matter: Matter::Callback(opening) };
    let good = prelude(node(1, 8)).to_bytes();
    let mut newer = good.clone();
    newer[4] += 1;
    let mut last: Option<Vec<u8>> = None;
    let cases: [(&str, &Keys, Vec<u8>, u8, TakenOutcome); 6] = [
        ("another secret", &strange, good.clone(), 2, TakenOutcome::Forged),
        ("another version", &keys, newer, 3, TakenOutcome::Version),
        ("nonsense", &keys, vec![b'x'; 100], 4, TakenOutcome::Garbled),
        (
            "too long",
            &keys,
            [&b"RWGY\x01\x01\xff\xff"[..], &[0; 90]].concat(),
            4,
            TakenOutcome::Garbled,
        ),
        ("another node", &keys, prelude(node(0, 8)).to_bytes(), 5, TakenOutcome::Elsewhere),
        ("an earlier run", &keys, prelude(node(1, 7)).to_bytes(), 7, TakenOutcome::Elsewhere),
    ];
    for (what, keys, bytes, verdict, outcome) in cases {
        let world = &mut two.nodes[1];
        let conn = world.connect(Listener::Cluster);
        let challenge: [u8; CHALLENGE_LENGTH] = world.take(conn).try_into().expect("a challenge");
        let mac = keys.sign_prelude(&challenge, &bytes);
        let count = |world: &World| {
            let relays = &world.shard.metrics().relays;
            TakenCause::ALL.iter().map(|cause| relays.taken(*cause, outcome)).sum::<u64>()
        };
        let before = count(world);
        world.send(conn, &[&bytes[..], &mac].concat());
        assert_eq!(world.take(conn), [verdict], "{what}");
        assert!(world.is_closed(conn) && count(world) == before + 1, "{what}");
    }
    // A good one is good once: for another challenge it is forged.
    for verdict in [Verdict::Taken, Verdict::Forged] {
        let world = &mut two.nodes[1];
        let conn = world.connect(Listener::Cluster);
        let challenge: [u8; CHALLENGE_LENGTH] = world.take(conn).try_into().expect("a challenge");
        let said =
            last.get_or_insert_with(|| [&good[..], &keys.sign_prelude(&challenge, &good)].concat());
        let said = said.clone();
        for octet in said {
            world.send(conn, &[octet]);
        }
        assert_eq!(world.take(conn), [verdict as u8]);
        world.end(conn, End::Fin);
    }
    // Cut off, or never said.
    let world = &mut two.nodes[1];
    let conn = world.connect(Listener::Cluster);
    world.take(conn);
    world.send(conn, &good[..good.len() - 1]);
    world.pass(PATIENCE);
    assert!(world.is_closed(conn));
    assert_eq!(world.shard.metrics().relays.taken(TakenCause::None, TakenOutcome::Late), 1);
    two.assert_empty();
}

#[test]
fn what_one_node_has_brought_goes_no_further() {
    let mut two = Two::new();
    let keys = Keys::of(&[Secret::from(SECRET)]).expect("one");
    // A client of the second node's, whose request names a session of the first.
    let (worker, id) = two.parked();
    let of_first = {
        let number = uuid::Uuid::parse_str(&id).expect("an id").as_u128();
        let number = number & !(0xfff << 64) & !(0xffff << 46);
        uuid::Uuid::from_u128(number | 1 << 64 | 7 << 46).to_string()
    };
    let call = http1(&of_first, "");
    let opening = Opening {
        peer: "192.0.2.1:1".parse().expect("an address"),
        age: 5,
        received: call.len() as u32,
    };
    let matter = Matter::Client(opening, None);
    let prelude = Prelude { from: node(0, 7), to: node(1, 8), matter }.to_bytes();
    let world = &mut two.nodes[1];
    let conn = world.connect(Listener::Cluster);
    let challenge: [u8; CHALLENGE_LENGTH] = world.take(conn).try_into().expect("a challenge");
    world.send(conn, &[&prelude[..], &keys.sign_prelude(&challenge, &prelude)].concat());
    assert_eq!(world.take(conn), [Verdict::Taken as u8]);
    world.send(conn, call.as_bytes());
    let answer = world.take(conn);
    assert_eq!(status(&answer), "HTTP/1.1 404", "{}", String::from_utf8_lossy(&answer));
    assert!(world.dials.is_empty());
    world.end(conn, End::Fin);
    world.pass(Duration::from_secs(60));
    world.end(worker.conn, End::Fin);
    two.assert_empty();
}

#[test]
fn a_node_that_leaves_has_what_it_brought_replaced() {
    let mut two = Two::new();
    let (mut client, work) = two.asked();
    let (conn, answer) = two.knock(&work);
    let mut worker = Peer::accepted(&mut two.nodes[0], conn, &answer, Limits::default());
    two.pump();
    worker.sync(&mut two.nodes[0]);
    two.nodes[0].deliver(ringway::message::ShardMessage::Drain { max: Duration::from_secs(60) });
    two.pump();
    assert_eq!(two.taken(1, TakenCause::Leave, TakenOutcome::Taken), 1);
    // The owner asks the worker for another tunnel, and what runs on the old one ends there.
    let again = poll(&mut two.nodes[1], &[&work.request_id]).expect("a reconnect");
    assert_eq!((&*again.kind, &again.request_id), ("reconnect", &work.request_id));
    let mut fresh = Peer::dial_back(&mut two.nodes[1], &again);
    let key = worker.key(0);
    worker.head(&mut two.nodes[0], key, &[(":status", "200"), ("grpc-status", "0")], true);
    two.pump();
    client.sync(&mut two.nodes[1]);
    assert_eq!(client.field(0, "grpc-status"), Some("0"));
    client.request(&mut two.nodes[1], &[], true);
    fresh.sync(&mut two.nodes[1]);
    assert!(fresh.seen.iter().any(|seen| matches!(seen, Seen::Head { .. })), "{:?}", fresh.seen);
    two.pump();
    assert!(!two.nodes[0].is_closed(conn), "the worker may not have heard of the new one");
    two.nodes[1].pass(Duration::from_secs(1));
    two.pump();
    assert!(two.nodes[0].is_closed(conn), "the old tunnel is not needed any more");
    two.nodes[1].end(client.conn, End::Fin);
    two.nodes[1].pass(Duration::from_secs(60));
    two.nodes[1].end(fresh.conn, End::Fin);
    two.assert_empty();
}
