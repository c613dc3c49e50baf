//! Silence towards functions' servers: gRPC's rule against too many PINGs, kept by a server that
//! counts as they do, and peers that vanish or are slow to begin.

use std::time::Duration;

use ringway::metrics::{CloseCode, CloseReason};
use ringway::net::{End, Listener};
use ringway_proto::h2::Limits;
use ringway_proto::time::Time;

use crate::http1::{Rig, get};
use crate::parking::{attached, back};
use crate::peer::{Peer, poll};
use crate::world::World;

const HOUR: u64 = 3_600;
const MINUTES_6: u64 = 360;
const OK: [(&str, &str); 1] = [(":status", "200")];

/// A PING is early sooner than this after the last one; the second without a stream.
const BETWEEN: [Duration; 2] = [Duration::from_secs(300), Duration::from_secs(2 * HOUR)];

/// Early PINGs that are borne; one more and grpc-go, C++ and Java close.
const STRIKES: usize = 2;

/// A server that counts early PINGs.
struct Guard {
    peer: Peer,
    last: Option<Time>,
    strikes: usize,
    /// When each PING came.
    pings: Vec<Time>,
    /// Whether the server's frames cross the PING on its way.
    crosses: bool,
}

impl Guard {
    fn new(peer: Peer) -> Self {
        Self { peer, last: None, strikes: 0, pings: Vec::new(), crosses: false }
    }

    fn look(&mut self, world: &mut World) {
        let bytes = world.take(self.peer.conn);
        let asked = bytes.windows(8).any(|window| window == b"alive?!?");
        if asked && self.crosses {
            self.says(world);
        }
        if asked {
            self.pinged(world.net.now);
        }
        self.peer.read(world, &bytes);
    }

    fn pinged(&mut self, now: Time) {
        let between = BETWEEN[usize::from(self.peer.h2.streams() == 0)];
        self.strikes += usize::from(self.last.is_some_and(|last| now < last + between));
        self.last = Some(now);
        self.pings.push(now);
        assert!(self.strikes <= STRIKES, "too_many_pings: {:?}", self.pings);
    }

    /// HEADERS or DATA forgive.
    fn forgives(&mut self) {
        (self.last, self.strikes) = (None, 0);
    }

    fn begins(&mut self, world: &mut World, n: usize) {
        let key = self.peer.key(n);
        self.peer.head(world, key, &OK, false);
        self.forgives();
    }

    fn says(&mut self, world: &mut World) {
        let key = self.peer.key(0);
        self.peer.data(world, key, b"\0\0\0\0\x01x", false);
        self.forgives();
    }

    /// Time passes, and it answers what comes.
    fn pass(&mut self, world: &mut World, count: u64) {
        for _ in 0..count {
            world.pass(seconds(1));
            self.look(world);
        }
        assert!(!world.is_closed(self.peer.conn), "the tunnel is gone");
    }

    /// The longest time between two PINGs.
    fn longest(&self) -> Duration {
        let gaps = self.pings.windows(2).map(|pair| pair[1].since(pair[0]));
        gaps.max().unwrap_or_default()
    }
}

fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

/// A client with a stream that its server has taken and says nothing on.
fn streaming(world: &mut World) -> (Peer, Guard, String) {
    let mut client = Peer::client(world);
    client.request(world, &[], false);
    let mut guard = Guard::new(Peer::worker(world));
    guard.look(world);
    guard.begins(world, 0);
    client.sync(world);
    let id = client.field(0, "nvcf-reqid").expect("an id").to_owned();
    (client, guard, id)
}

/// A client that comes back to the session and opens a stream.
fn returns(world: &mut World, guard: &mut Guard, id: &str) -> Peer {
    let mut client = Peer::client(world);
    client.request(world, &[("nvcf-reqid", id)], false);
    guard.look(world);
    client
}

#[test]
fn an_hour_of_silence_is_no_offence() {
    // However often an operator wants to ask.
    for more in ["", "[keepalive]\ntunnel_ping = \"1s\""] {
        let mut world = World::with(more);
        let (client, mut guard, _) = streaming(&mut world);
        guard.pass(&mut world, HOUR);
        assert_eq!(guard.strikes, 0);
        assert!(guard.longest() + seconds(15) < seconds(MINUTES_6), "{:?}", guard.pings);
        assert!(guard.pings.len() >= 10 && !world.is_closed(client.conn));
    }
}

#[test]
fn an_hour_with_a_message_now_and_then_is_no_offence() {
    let mut world = World::new();
    let (mut client, mut guard, _) = streaming(&mut world);
    for wait in (7..).step_by(13).take_while(|wait| *wait < 330) {
        guard.pass(&mut world, wait);
        guard.says(&mut world);
        client.sync(&mut world);
    }
    assert_eq!(guard.strikes, 0);
    // After new frames the next PING comes as soon as the first one did.
    let (before, now) = (guard.pings.len(), world.net.now);
    guard.pass(&mut world, 31);
    let asked = guard.pings.get(before).map(|at| at.since(now));
    assert_eq!(asked, Some(seconds(30)));
}

#[test]
fn a_message_that_crosses_a_ping_forgives_only_what_came_before() {
    let mut world = World::new();
    let (mut client, mut guard, _) = streaming(&mut world);
    guard.crosses = true;
    for _ in 0..HOUR {
        guard.pass(&mut world, 1);
        client.sync(&mut world);
    }
    assert_eq!(guard.strikes, 0);
    assert!(guard.pings.len() >= 10);
}

#[test]
fn a_parked_tunnel_is_asked_only_as_often_as_is_borne() {
    let mut world = World::with("[session]\npark_window = \"24h\"");
    let (client, mut guard, id) = streaming(&mut world);
    world.end(client.conn, End::Reset);
    guard.pass(&mut world, 5 * HOUR);
    assert_eq!(guard.strikes, STRIKES, "all that are borne were used");
    assert!(guard.pings[..3].windows(2).all(|two| two[1].since(two[0]) < seconds(MINUTES_6)));
    // Its strikes are used up: with a stream it is asked as any other, without one hardly ever.
    for _ in 0..10 {
        let client = returns(&mut world, &mut guard, &id);
        guard.pass(&mut world, 500);
        world.end(client.conn, End::Reset);
        guard.pass(&mut world, 500);
    }
    // And it is the tunnel that it was.
    let mut client = returns(&mut world, &mut guard, &id);
    guard.begins(&mut world, 11);
    client.sync(&mut world);
    assert_eq!(client.field(0, ":status"), Some("200"));
}

#[test]
fn clients_that_come_and_go_do_not_add_up_to_an_offence() {
    for stay in [20, 35, 100, 290, 310] {
        let mut world = World::with("[session]\npark_window = \"1h\"");
        let (client, mut guard, id) = streaming(&mut world);
        world.end(client.conn, End::Reset);
        for _ in 0..2 * HOUR / (2 * stay) {
            guard.pass(&mut world, stay);
            let client = returns(&mut world, &mut guard, &id);
            guard.pass(&mut world, stay);
            world.end(client.conn, End::Reset);
        }
    }
}

/// How long after its last answer a worker that says nothing more is given up.
fn noticed_after(world: &mut World, guard: &Guard) -> Option<u64> {
    (1..=MINUTES_6).find(|_| {
        world.pass(seconds(1));
        world.is_closed(guard.peer.conn)
    })
}

#[test]
fn a_server_that_vanishes_is_noticed_within_six_minutes() {
    for parked in [false, true] {
        for silence in [0, 29, 31, 100, 334, 336, 600] {
            let mut world = World::with("[session]\npark_window = \"24h\"");
            let (client, mut guard, _) = streaming(&mut world);
            if parked {
                world.end(client.conn, End::Reset);
            }
            guard.pass(&mut world, silence);
            let after = noticed_after(&mut world, &guard);
            assert!(after.is_some(), "parked: {parked}, {silence} s: {:?}", guard.pings);
            let codes = &world.shard.metrics().close_codes;
            assert_eq!(codes[CloseCode::Timeout.index()], 1);
        }
    }
}

#[test]
fn a_stream_on_a_tunnel_that_was_long_idle_is_asked_after_as_any() {
    let mut world = World::with("[session]\nidle = \"2h\"");
    let (mut client, worker, _) = attached(&mut world);
    let mut guard = Guard::new(worker);
    guard.pass(&mut world, HOUR);
    assert!(guard.pings.is_empty(), "nothing is open");
    client.request(&mut world, &[], true);
    assert!(noticed_after(&mut world, &guard).is_some_and(|after| after <= 46));
}

// ---- slow to begin ----

/// A tunnel whose worker has said nothing yet, with a request on it.
fn unbegun(world: &mut World) -> (Peer, Peer) {
    let mut client = Peer::client(world);
    client.request(world, &[], true);
    let work = poll(world, &[]).expect("work");
    let conn = world.connect(Listener::Worker);
    world.send(conn, work.connect().as_bytes());
    let server = ringway_proto::h2::Role::Server;
    (client, Peer::over(conn, server, Limits::default(), world))
}

#[test]
fn a_worker_may_be_slow_to_begin() {
    let mut world = World::with("[keepalive]\ntunnel_ping = \"1s\"\ntunnel_ping_timeout = \"1s\"");
    let (mut client, mut worker) = unbegun(&mut world);
    // Nothing is taken from it either.
    world.block(worker.conn, true);
    world.pass(seconds(44));
    world.block(worker.conn, false);
    let bytes = world.take(worker.conn);
    assert!(!bytes.windows(8).any(|window| window == b"alive?!?"), "it is asked by its request");
    let accepted = b"HTTP/1.1 200 OK\r\n\r\n".len();
    worker.start(&mut world);
    worker.read(&mut world, &bytes[accepted..]);
    let key = worker.key(0);
    worker.head(&mut world, key, &OK, true);
    client.sync(&mut world);
    assert_eq!(client.field(0, ":status"), Some("200"));
}

#[test]
fn a_worker_that_never_begins_is_given_up() {
    for (more, limit) in [("", 45), ("[keepalive]\ntunnel_start = \"7s\"", 7)] {
        let mut world = World::with(more);
        let (mut client, worker) = unbegun(&mut world);
        world.pass(seconds(limit - 1));
        assert!(!world.is_closed(worker.conn));
        world.pass(seconds(2));
        assert!(world.is_closed(worker.conn));
        client.sync(&mut world);
        assert_eq!(client.field(0, ":status"), Some("502"));
        let metrics = world.shard.metrics();
        assert_eq!(metrics.worker_connections_closed[CloseReason::WorkerClosed.index()], 1);
        assert_eq!(metrics.close_codes[CloseCode::Timeout.index()], 1);
    }
}

#[test]
fn a_worker_of_http1_owes_nothing_before_its_response() {
    let mut rig = Rig::unkept();
    rig.ask(&get("/"));
    let tunnel = rig.attach();
    rig.world.pass(seconds(HOUR));
    assert!(!rig.world.is_closed(tunnel));
    rig.answer("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
    assert!(rig.at_client().ends_with("ok"));
}

#[test]
fn settings_need_no_acknowledgement() {
    let mut world = World::new();
    let client = world.connect(Listener::Client);
    world.send(client, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0");
    let (mut other, mut worker) = unbegun(&mut world);
    worker.start(&mut world);
    for _ in 0..HOUR / 10 {
        world.pass(seconds(10));
        let bytes = world.take(worker.conn);
        if let Some(at) = bytes.windows(8).position(|window| window == b"alive?!?") {
            // PINGs are answered; SETTINGS are not.
            let pong = [&[0, 0, 8, 6, 1, 0, 0, 0, 0], &bytes[at..at + 8]].concat();
            world.send(worker.conn, &pong);
        }
    }
    assert!(!world.is_closed(client), "the client's");
    assert!(!world.is_closed(worker.conn), "the worker's");
    other.sync(&mut world);
    assert!(other.heads().is_empty());
}

#[test]
fn a_client_still_owes_its_first_settings() {
    let mut world = World::new();
    let client = world.connect(Listener::Client);
    world.send(client, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
    world.pass(seconds(9));
    assert!(!world.is_closed(client));
    world.pass(seconds(2));
    assert!(world.is_closed(client));
}

#[test]
fn a_tunnel_that_served_is_found_again() {
    // The guard's own books agree with what parking does to a tunnel.
    let mut world = World::with("[session]\npark_window = \"1h\"");
    let (client, mut guard, id) = streaming(&mut world);
    world.end(client.conn, End::Reset);
    guard.pass(&mut world, HOUR - 1);
    back(&mut world, &mut guard.peer, &id, 1);
}
