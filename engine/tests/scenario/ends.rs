//! Draining, slow peers, and what is left when all have gone.

use std::time::Duration;

use ringway::message::{ControlMessage, ShardMessage};
use ringway::metrics::Limit;
use ringway::net::{Core, End};
use ringway_proto::h2::ErrorCode;

use crate::peer::{Peer, Seen, poll};
use crate::world::World;

#[test]
fn a_drain_warns_lets_streams_finish_and_then_ends() {
    let mut world = World::new();
    let mut client = Peer::client(&mut world);
    client.request(&mut world, &[], true);
    let mut worker = Peer::worker(&mut world);
    worker.sync(&mut world);
    let idle = Peer::client(&mut world);
    world.deliver(ShardMessage::Drain { max: Duration::from_secs(60) });
    client.sync(&mut world);
    let first = Seen::Goaway { last: 0x7fff_ffff, code: ErrorCode::NoError };
    assert!(client.seen.contains(&first), "{:?}", client.seen);
    // The PING between the two was answered by `sync`: the final GOAWAY names the last stream.
    client.sync(&mut world);
    let second = Seen::Goaway { last: 1, code: ErrorCode::NoError };
    assert!(client.seen.contains(&second), "{:?}", client.seen);
    // A client that does not answer the PING gets the final GOAWAY after a second.
    assert!(!world.is_closed(idle.conn));
    world.pass(Duration::from_millis(1_100));
    assert!(world.is_closed(idle.conn) && !world.is_closed(client.conn));
    assert!(!world.shard.finished());
    let key = worker.key(0);
    worker.head(&mut world, key, &[(":status", "200")], true);
    client.sync(&mut world);
    assert_eq!(client.field(0, ":status"), Some("200"));
    assert!(world.is_closed(client.conn) && world.is_closed(worker.conn));
    assert!(world.shard.finished() && world.shard.is_empty());
}

#[test]
fn a_drain_ends_what_does_not_finish() {
    let mut world = World::new();
    let mut client = Peer::client(&mut world);
    client.request(&mut world, &[], true);
    let mut worker = Peer::worker(&mut world);
    worker.sync(&mut world);
    world.deliver(ShardMessage::Drain { max: Duration::from_secs(5) });
    client.sync(&mut world);
    world.pass(Duration::from_secs(4));
    assert!(!world.shard.finished());
    world.pass(Duration::from_secs(2));
    assert!(world.is_closed(client.conn) && world.is_closed(worker.conn));
    assert!(world.shard.finished() && world.shard.is_empty());
}

#[test]
fn a_snapshot_tells_of_the_session() {
    let mut world = World::new();
    let mut client = Peer::client(&mut world);
    client.request(&mut world, &[], true);
    world.deliver(ShardMessage::Snapshot { ticket: 7 });
    let Some(ControlMessage::Snapshot { ticket: 7, snapshot, .. }) = world.messages().pop() else {
        panic!("no answer");
    };
    assert_eq!(snapshot.metrics.worker_connections_active, 1);
    let rows = world.sessions();
    assert_eq!(rows.len(), 1);
    assert_eq!((rows[0].state, &*rows[0].tenant), ("waiting", "dev"));
    world.end(client.conn, End::Fin);
    world.deliver(ShardMessage::Snapshot { ticket: 8 });
    let Some(ControlMessage::Snapshot { snapshot, .. }) = world.messages().pop() else {
        panic!("no answer");
    };
    assert_eq!(world.sessions()[0].close_reason, Some("client_closed"));
    assert_eq!(snapshot.metrics.worker_connections_closed[0], 1);
}

#[test]
fn a_client_that_does_not_read_holds_little_and_gets_all_in_the_end() {
    let mut world = World::new();
    let mut client = Peer::client(&mut world);
    client.request(&mut world, &[], true);
    let mut worker = Peer::worker(&mut world);
    worker.sync(&mut world);
    world.block(client.conn, true);
    let key = worker.key(0);
    worker.head(&mut world, key, &[(":status", "200")], false);
    let mut sent = 0;
    let part: Vec<u8> = (0..10_000_u32).map(|i| (i % 251) as u8).collect();
    // As long as there is credit at all.
    loop {
        worker.sync(&mut world);
        let room = worker.h2.data_room(key).min(part.len());
        if room == 0 {
            break;
        }
        worker.data(&mut world, key, &part[..room], false);
        sent += room;
        assert!(sent < 4_000_000, "credit without end for bytes that go nowhere");
    }
    assert!(world.net.queued(client.conn) < 300_000);
    world.block(client.conn, false);
    for _ in 0..20 {
        client.sync(&mut world);
        worker.sync(&mut world);
    }
    worker.data(&mut world, key, b"end", true);
    client.sync(&mut world);
    let (body, ended) = client.body(1);
    assert_eq!((body.len(), ended), (sent + 3, true));
}

#[test]
fn short_receive_memory_is_relieved_by_copies_that_are_counted() {
    let mut world = World::new();
    let mut client = Peer::client(&mut world);
    let call = client.request(&mut world, &[], false);
    let mut worker = Peer::worker_with(&mut world, |limits| limits.stream_window = 6_000);
    worker.sync(&mut world);
    // The worker reads nothing more. Bytes beyond its window wait where they were received.
    world.block(worker.conn, true);
    client.data(&mut world, call, &[3; 40_000], false);
    let free_before = world.net.pool.ring_free();
    world.relieve();
    assert!(world.net.pool.ring_free() > free_before);
    assert!(world.net.copied_out >= 20_000, "{}", world.net.copied_out);
    world.block(worker.conn, false);
    for _ in 0..20 {
        worker.sync(&mut world);
    }
    assert!(worker.body(1).0 == [3; 40_000]);
}

#[test]
fn when_all_have_gone_nothing_is_left() {
    for end in [End::Fin, End::Reset, End::Timeout, End::Failed] {
        let mut world = World::new();
        let mut clients: Vec<Peer> = (0..10).map(|_| Peer::client(&mut world)).collect();
        for client in &mut clients {
            let call = client.request(&mut world, &[], false);
            client.data(&mut world, call, &[1; 50_000], false);
            client.request(&mut world, &[("content-type", "text/plain")], false);
        }
        let mut workers: Vec<Peer> = (0..7).map(|_| Peer::worker(&mut world)).collect();
        for worker in &mut workers {
            worker.sync(&mut world);
        }
        world.end(workers[0].conn, end);
        for client in &clients {
            world.end(client.conn, end);
        }
        assert!(poll(&mut world, &[]).is_none(), "work of clients that are gone");
        world.pass(Duration::from_secs(120));
        assert!(world.shard.is_empty(), "{end:?}: {:?}", world.shard);
        assert_eq!(world.net.pool.chunks_live(), 0);
        assert_eq!(world.net.connections(), 0);
    }
}

#[test]
fn streams_that_do_not_move_are_given_up_when_memory_is_short() {
    let mut world = World::with(
        "[limits]\ncore_buffer = \"1MiB\"\nconnection_buffer = \"1MiB\"\nstream_window_max = \"256KiB\"\nstalled_stream = \"2s\"",
    );
    let mut client = Peer::client(&mut world);
    for _ in 0..24 {
        client.request(&mut world, &[], true);
    }
    let mut worker = Peer::worker(&mut world);
    worker.sync(&mut world);
    world.block(client.conn, true);
    for n in 0..24 {
        let key = worker.key(n);
        worker.head(&mut world, key, &[(":status", "200")], false);
        for _ in 0..8 {
            worker.sync(&mut world);
            let room = worker.h2.data_room(key).min(8_000);
            worker.data(&mut world, key, &[n as u8; 8_000][..room], false);
        }
    }
    // Streams that wait are left alone for their time (L11).
    world.deliver(ShardMessage::Snapshot { ticket: 1 });
    let Some(ControlMessage::Snapshot { snapshot, .. }) = world.messages().pop() else {
        panic!("no answer");
    };
    let held = snapshot.metrics.limit_used[Limit::CoreBuffer.index()];
    assert!(held > 800_000, "{held}");
    worker.sync(&mut world);
    let resets = |worker: &Peer| {
        worker.seen.iter().filter(|s| matches!(s, Seen::Reset { .. })).cloned().collect::<Vec<_>>()
    };
    assert!(resets(&worker).is_empty());
    world.pass(Duration::from_secs(4));
    worker.sync(&mut world);
    let given_up = resets(&worker);
    assert!(given_up.len() > 10, "{given_up:?}");
    let cancelled = |s: &Seen| matches!(s, Seen::Reset { code: ErrorCode::Cancel, .. });
    assert!(given_up.iter().all(cancelled), "{given_up:?}");
}

#[test]
fn a_stream_that_is_gone_holds_up_nobody_elses_turn() {
    let mut world = World::new();
    let narrow = |limits: &mut ringway_proto::h2::Limits| limits.connection_window = 65_535;
    let fill = |world: &mut World, worker: &mut Peer, n: usize| {
        let key = worker.key(n);
        worker.head(world, key, &[(":status", "200")], false);
        worker.data(world, key, &[1; 60_000], false);
        worker.sync(world);
        worker.data(world, key, &[2; 30_000], false);
    };
    // The first stream waits for its client's connection window, the second for its turn.
    let mut client = Peer::client_with(&mut world, narrow);
    let first = client.request(&mut world, &[], true);
    client.request(&mut world, &[], true);
    let mut worker = Peer::worker(&mut world);
    worker.sync(&mut world);
    world.block(client.conn, true);
    fill(&mut world, &mut worker, 0);
    let key = worker.key(1);
    worker.head(&mut world, key, &[(":status", "200")], false);
    worker.data(&mut world, key, &[3; 5_000], true);
    client.reset(&mut world, first, ErrorCode::Cancel);
    // Another client's stream takes the place of the one that is gone, and waits too.
    let mut other = Peer::client_with(&mut world, narrow);
    other.request(&mut world, &[], true);
    let mut others = Peer::worker(&mut world);
    others.sync(&mut world);
    world.block(other.conn, true);
    fill(&mut world, &mut others, 0);
    world.block(client.conn, false);
    for _ in 0..5 {
        client.sync(&mut world);
    }
    let (body, ended) = client.body(3);
    assert_eq!((body.len(), ended), (5_000, true));
}

#[test]
fn trailers_over_the_limit_end_their_exchange_and_nothing_is_left() {
    let mut world = World::new();
    let mut client = Peer::client(&mut world);
    let (unanswered, answered) =
        (client.request(&mut world, &[], false), client.request(&mut world, &[], false));
    let mut worker = Peer::worker(&mut world);
    worker.sync(&mut world);
    let key = worker.key(1);
    worker.head(&mut world, key, &[(":status", "200")], false);
    let large = vec![("x-field", "value"); 1100];
    client.head(&mut world, unanswered, &large, true);
    client.head(&mut world, answered, &large, true);
    client.sync(&mut world);
    worker.sync(&mut world);
    assert_eq!(client.field(1, "grpc-status"), Some("8"), "{:?}", client.seen);
    let resets = |peer: &Peer| peer.seen.iter().filter(|s| matches!(s, Seen::Reset { .. })).count();
    assert_eq!((resets(&worker), resets(&client)), (2, 1));
    world.end(client.conn, End::Fin);
    assert!(world.shard.is_empty(), "{:?}", world.shard);
}
