//! Peers that vanish without a word: PINGs towards clients, and who is not asked.

use std::time::Duration;

use ringway::metrics::{CloseCode, CloseReason};
use ringway::net::{End, Listener, Output};
use ringway_proto::h2::{ErrorCode, StreamKey};

use crate::peer::Peer;
use crate::world::World;

const PINGS: &str =
    "[session]\npark = \"never\"\n[keepalive]\nclient_ping = \"20s\"\nclient_ping_timeout = \"5s\"";

/// A client with a stream that stays open.
fn streaming(world: &mut World) -> (Peer, Peer) {
    let mut client = Peer::client(world);
    client.request(world, &[], false);
    let mut worker = Peer::worker(world);
    worker.sync(world);
    let key = worker.key(0);
    worker.head(world, key, &[(":status", "200")], false);
    client.sync(world);
    (client, worker)
}

fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

/// A client that takes no bytes and has more in its output than may wait there, so that neither it
/// nor the worker is read any further; its calls.
fn blocked(world: &mut World) -> (Peer, Vec<StreamKey>, Peer) {
    let mut client = Peer::client(world);
    let calls: Vec<_> = (0..40).map(|_| client.request(world, &[], false)).collect();
    let mut worker = Peer::worker(world);
    worker.sync(world);
    world.block(client.conn, true);
    for n in 0..calls.len() {
        let (key, value) = (worker.key(n), n.to_string().repeat(20_000));
        worker.head(world, key, &[(":status", "200"), ("x-large", &value)], false);
    }
    (client, calls, worker)
}

/// The worker stays awake, whatever the client does.
fn pass_with(world: &mut World, worker: &mut Peer, count: u64) {
    for _ in 0..count {
        world.pass(seconds(1));
        worker.sync(world);
    }
}

#[test]
fn a_client_that_answers_pings_stays() {
    let mut world = World::with(PINGS);
    let (mut client, mut worker) = streaming(&mut world);
    for _ in 0..100 {
        pass_with(&mut world, &mut worker, 2);
        client.sync(&mut world);
    }
    assert!(!world.is_closed(client.conn) && !world.is_closed(worker.conn));
}

#[test]
fn a_client_that_answers_no_ping_is_gone_and_so_is_its_tunnel() {
    let mut world = World::with(PINGS);
    let (client, mut worker) = streaming(&mut world);
    pass_with(&mut world, &mut worker, 24);
    assert!(!world.is_closed(client.conn));
    pass_with(&mut world, &mut worker, 2);
    assert!(world.is_closed(client.conn) && world.is_closed(worker.conn));
    let metrics = world.shard.metrics();
    assert_eq!(metrics.worker_connections_closed[CloseReason::ClientClosed.index()], 1);
    assert_eq!(metrics.close_codes[CloseCode::Timeout.index()], 1);
    assert!(world.shard.is_empty());
}

#[test]
fn a_client_that_answers_no_ping_is_lost_and_its_tunnel_kept() {
    let pings = PINGS.replace("never", "auto");
    let mut world = World::with(&pings);
    let (client, mut worker) = streaming(&mut world);
    pass_with(&mut world, &mut worker, 26);
    assert!(world.is_closed(client.conn) && !world.is_closed(worker.conn));
}

#[test]
fn a_client_without_a_stream_is_asked_too() {
    let mut world = World::with(PINGS);
    let client = Peer::client(&mut world);
    world.pass(seconds(24));
    assert!(!world.is_closed(client.conn));
    world.pass(seconds(2));
    assert!(world.is_closed(client.conn) && world.shard.is_empty());
}

#[test]
fn whatever_a_client_says_is_an_answer() {
    let mut world = World::with(PINGS);
    let (mut client, mut worker) = streaming(&mut world);
    pass_with(&mut world, &mut worker, 24);
    // Not the PING's acknowledgement, and the very last moment for it.
    let key = client.key(0);
    client.reset(&mut world, key, ErrorCode::Cancel);
    pass_with(&mut world, &mut worker, 19);
    assert!(!world.is_closed(client.conn));
    pass_with(&mut world, &mut worker, 7);
    assert!(world.is_closed(client.conn), "it is asked anew and says nothing");
}

#[test]
fn nobody_asks_a_client_if_that_is_not_wished() {
    let mut world = World::new();
    let (client, mut worker) = streaming(&mut world);
    pass_with(&mut world, &mut worker, 3_600);
    assert!(!world.is_closed(client.conn) && !world.is_closed(worker.conn));
    assert!(!sent_ping(&mut world, &client));
}

#[test]
fn a_client_of_http1_is_left_to_tcp() {
    let mut world = World::with(PINGS);
    let conn = world.connect(Listener::Client);
    world.send(conn, b"GET /health HTTP/1.1\r\nhost: gateway\r\n\r\n");
    assert!(world.take(conn).starts_with(b"HTTP/1.1 200"));
    world.pass(seconds(3_600));
    assert!(!world.is_closed(conn) && world.take(conn).is_empty());
}

#[test]
fn a_client_that_is_not_read_is_not_asked_until_it_is() {
    let mut world = World::with(PINGS);
    let (mut client, calls, mut worker) = blocked(&mut world);
    client.reset(&mut world, calls[0], ErrorCode::Cancel);
    assert!(is_paused(&world, &client));
    pass_with(&mut world, &mut worker, 120);
    assert!(!world.is_closed(client.conn), "it was closed for a silence of ours");
    world.block(client.conn, false);
    assert!(!is_paused(&world, &client));
    pass_with(&mut world, &mut worker, 19);
    assert!(!sent_ping(&mut world, &client), "its silence begins when it is read again");
    pass_with(&mut world, &mut worker, 2);
    assert!(sent_ping(&mut world, &client));
    pass_with(&mut world, &mut worker, 6);
    assert!(world.is_closed(client.conn));
}

#[test]
fn a_client_that_takes_our_answers_slowly_keeps_no_core() {
    let mut world = World::with("[limits]\nqueued_answers = 3");
    let (client, _, mut worker) = blocked(&mut world);
    let ping = [&[0, 0, 8, 6, 0, 0, 0, 0, 0][..], b"whatever"].concat();
    world.send(client.conn, &ping.repeat(8));
    assert!(is_paused(&world, &client));
    // The client takes some bytes, so it is not cut. Its turn ends each time it is looked at.
    for _ in 0..20 {
        world.pass(seconds(2));
        world.take_some(client.conn, 4096);
    }
    assert!(!world.is_closed(client.conn));
    // None at all: it is cut.
    pass_with(&mut world, &mut worker, 11);
    assert!(world.is_closed(client.conn));
}

fn is_paused(world: &World, peer: &Peer) -> bool {
    world.net.output(peer.conn).is_some_and(Output::is_paused)
}

/// Whether what the client was sent since the last look holds a PING.
fn sent_ping(world: &mut World, client: &Peer) -> bool {
    let bytes = world.take(client.conn);
    bytes.windows(8).any(|window| window == b"alive?!?")
}

#[test]
fn a_client_whose_tcp_gave_up_is_closed_for_a_timeout() {
    let mut world = World::with("[session]\npark = \"never\"");
    let (client, worker) = streaming(&mut world);
    world.end(client.conn, End::Timeout);
    assert!(world.is_closed(worker.conn));
    assert_eq!(world.shard.metrics().close_codes[CloseCode::Timeout.index()], 1);
    assert!(world.shard.is_empty());
}

#[test]
fn a_worker_that_is_not_read_is_not_taken_for_silent() {
    let mut world = World::new();
    let (client, _, worker) = blocked(&mut world);
    assert!(is_paused(&world, &worker));
    world.pass(seconds(120));
    assert!(!world.is_closed(worker.conn), "it was closed for a silence of ours");
    world.block(client.conn, false);
    assert!(!is_paused(&world, &worker));
    world.pass(seconds(44));
    assert!(!world.is_closed(worker.conn));
    world.pass(seconds(2));
    assert!(world.is_closed(worker.conn), "read again, it says nothing");
}
