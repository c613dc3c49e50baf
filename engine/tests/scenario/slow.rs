//! Clients that read slowly: what waits for them, and what is left for others.

use std::time::Duration;

use ringway::message::{ControlMessage, ShardMessage};
use ringway::metrics::Limit;
use ringway::net::End;
use ringway_proto::h2::StreamKey;

use super::peer::Peer;
use super::world::World;

/// Octets of a frame: few enough to be copied, so that no receive block waits.
const FRAME: usize = 4000;
/// Octets that come from a connection in a turn.
const RECEIVE: usize = 64 * 1024;
/// A window that has grown once.
const TWO_WINDOWS: usize = 128 * 1024;

fn held(world: &mut World) -> usize {
    world.deliver(ShardMessage::Snapshot { ticket: 1 });
    let Some(ControlMessage::Snapshot { snapshot, .. }) = world.messages().pop() else {
        panic!("no answer");
    };
    snapshot.metrics.limit_used[Limit::CoreBuffer.index()] as usize
}

/// A client whose windows are no hindrance, its worker, and the stream of an answer without end.
fn download(world: &mut World) -> (Peer, Peer, StreamKey) {
    let mut client = Peer::client_with(world, |limits| {
        limits.stream_window = 8 << 20;
        limits.connection_window = 8 << 20;
    });
    client.request(world, &[], true);
    let mut worker = Peer::worker(world);
    worker.sync(world);
    let key = worker.key(0);
    worker.head(world, key, &[(":status", "200")], false);
    client.sync(world);
    (client, worker, key)
}

/// Sends what the worker's window allows, at most a receive's worth; how much that was.
fn fill(world: &mut World, worker: &mut Peer, key: StreamKey) -> usize {
    let mut sent = 0;
    worker.sync(world);
    while sent < RECEIVE
        && let n @ 1.. = worker.h2.data_room(key).min(FRAME)
    {
        let mut out = worker.h2.data_head(key, n, false).to_vec();
        out.resize(out.len() + n, 7);
        world.send(worker.conn, &out);
        sent += n;
        worker.sync(world);
    }
    sent
}

#[test]
fn clients_that_take_nothing_hold_a_window_each_and_leave_the_core_to_others() {
    const READERS: usize = 60;
    let mut world = World::with(
        "[limits]\ncore_buffer = \"8MiB\"\nconnection_buffer = \"4MiB\"\nstream_window_max = \"2MiB\"",
    );
    let mut readers: Vec<_> = (0..READERS).map(|_| download(&mut world)).collect();
    readers.iter().for_each(|(client, ..)| world.block(client.conn, true));
    let mut sent = [0; READERS];
    // Each round a turn of its own: what was not taken since the one before lags.
    for _ in 0..40 {
        world.pass(Duration::from_millis(1));
        for (number, (_, worker, key)) in readers.iter_mut().enumerate() {
            sent[number] += fill(&mut world, worker, *key);
        }
    }
    let (_, worker, key) = &mut readers[0];
    assert_eq!(fill(&mut world, worker, *key), 0, "its window is used up");
    let waits = held(&mut world);
    assert!((READERS * FRAME..=READERS * TWO_WINDOWS).contains(&waits), "{waits} octets wait");
    let mut other = Peer::client(&mut world);
    other.request(&mut world, &[], true);
    other.sync(&mut world);
    assert_eq!(other.field(0, "grpc-status"), None, "others are not refused");
    world.end(other.conn, End::Fin);
    // The slow clients read on: nothing is lost, and nothing is kept.
    readers.iter().for_each(|(client, ..)| world.block(client.conn, false));
    for _ in 0..40 {
        world.pass(Duration::from_millis(1));
        readers.iter_mut().for_each(|(client, ..)| client.sync(&mut world));
    }
    for ((client, ..), sent) in readers.iter().zip(sent) {
        assert_eq!(client.body(1).0.len(), sent);
    }
    assert_eq!(held(&mut world), 0);
}

#[test]
fn a_window_grows_for_a_client_that_keeps_up() {
    let mut world = World::new();
    let (mut client, mut worker, key) = download(&mut world);
    for _ in 0..20 {
        world.pass(Duration::from_millis(1));
        fill(&mut world, &mut worker, key);
        client.sync(&mut world);
    }
    worker.sync(&mut world);
    let mut room = 0;
    while let n @ 1.. = worker.h2.data_room(key) {
        worker.h2.data_head(key, n, false);
        room += n;
    }
    assert!(room >= 4 * TWO_WINDOWS, "{room} octets");
}
