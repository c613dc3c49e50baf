//! Heads and trailers at their limits and beyond, and what the core's memory has to do with them.

use std::time::Duration;

use ringway::message::{ControlMessage, ShardMessage};
use ringway::metrics::Limit;
use ringway::net::{End, Listener};
use ringway_proto::fields::Field;
use ringway_proto::h2::{ErrorCode, HeadKind};

use super::peer::{Peer, Seen};
use super::world::{FUNCTION, VERSION, World};

/// The fields of a call.
const REQUEST: [(&str, &str); 7] = [
    (":method", "POST"),
    (":scheme", "http"),
    (":path", "/ringway.echo.v1.Echo/Unary"),
    (":authority", "gateway"),
    ("authorization", "Bearer dev-key"),
    ("function-id", FUNCTION),
    ("function-version-id", VERSION),
];

/// A value of 50 000 octets.
fn long() -> String {
    "v".repeat(50_000)
}

/// So many fields, each with a name of its own.
fn fields(count: usize, value: &str) -> Vec<(&'static str, &str)> {
    (0..count).map(|n| (&*format!("x-{n}").leak(), value)).collect()
}

/// Fields that with a head's other ones are below 256 KiB, of five long values.
fn large(value: &str) -> Vec<(&'static str, &str)> {
    fields(5, value)
}

fn used(world: &mut World) -> u64 {
    used_of(world, Limit::CoreBuffer)
}

fn used_of(world: &mut World, limit: Limit) -> u64 {
    world.deliver(ShardMessage::Snapshot { ticket: 1 });
    let Some(ControlMessage::Snapshot { snapshot, .. }) = world.messages().pop() else {
        panic!("no answer");
    };
    snapshot.metrics.limit_used[limit.index()]
}

fn head_of(peer: &Peer, stream: u32) -> Option<usize> {
    peer.seen.iter().find_map(|seen| match seen {
        Seen::Head { stream: id, fields, kind, .. }
            if *id == stream && *kind != HeadKind::Trailers =>
        {
            Some(fields.len())
        }
        _ => None,
    })
}

fn resets(peer: &Peer) -> Vec<(u32, ErrorCode)> {
    let reset = |seen: &Seen| match seen {
        Seen::Reset { stream, code } => Some((*stream, *code)),
        _ => None,
    };
    peer.seen.iter().filter_map(reset).collect()
}

#[test]
fn large_heads_and_trailers_pass_both_ways() {
    let mut world = World::new();
    let value = long();
    let mut client = Peer::client(&mut world);
    let key = client.request(&mut world, &large(&value), false);
    client.request(&mut world, &fields(1000, "y"), true);
    assert!(used(&mut world) > 250_000, "what waits is counted");
    let mut worker = Peer::worker(&mut world);
    worker.sync(&mut world);
    assert_eq!(used(&mut world), 0, "what was sent is not");
    client.head(&mut world, key, &large(&value), true);
    worker.sync(&mut world);
    let first = worker.key(0);
    let head = [&[(":status", "200")][..], &large(&value)].concat();
    worker.head(&mut world, first, &head, false);
    worker.head(&mut world, first, &large(&value), true);
    let second = worker.key(1);
    let many = [&[(":status", "200")][..], &fields(1000, "y")].concat();
    worker.head(&mut world, second, &many, true);
    client.sync(&mut world);
    assert_eq!(worker.heads().len(), 3, "two heads and trailers");
    assert_eq!(client.heads().len(), 3, "two heads and trailers");
    assert_eq!((head_of(&client, 1), head_of(&client, 3)), (Some(8), Some(1002)));
    assert_eq!(used(&mut world), 0);
    world.end(client.conn, End::Fin);
    assert!(world.shard.is_empty(), "{:?}", world.shard);
}

#[test]
fn a_workers_head_or_trailers_over_a_limit_cost_their_exchange_alone() {
    let mut world = World::new();
    let mut client = Peer::client(&mut world);
    for _ in 0..4 {
        client.request(&mut world, &[], true);
    }
    let mut worker = Peer::worker(&mut world);
    worker.sync(&mut world);
    let many = fields(1100, "y");
    let head = [&[(":status", "200")][..], &many].concat();
    for (n, end) in [(0, true), (1, false)] {
        let key = worker.key(n);
        worker.head(&mut world, key, &head, end);
    }
    let key = worker.key(2);
    worker.head(&mut world, key, &[(":status", "200")], false);
    worker.head(&mut world, key, &many, true);
    let key = worker.key(3);
    worker.head(&mut world, key, &[(":status", "200")], true);
    client.sync(&mut world);
    worker.sync(&mut world);
    for n in 0..2 {
        assert_eq!(client.field(n, "grpc-status"), Some("8"), "{:?}", client.seen);
        assert_eq!(client.field(n, "grpc-message"), Some("response headers are too large"));
    }
    assert_eq!(resets(&client), [(5, ErrorCode::InternalError)], "its head had gone");
    assert_eq!(client.field(3, ":status"), Some("200"), "another call on the same tunnel");
    // The stream that has ended needs no reset.
    assert_eq!(resets(&worker), [(3, ErrorCode::Cancel)]);
    assert!(!worker.seen.iter().any(|seen| matches!(seen, Seen::Goaway { .. })));
    world.end(client.conn, End::Fin);
    assert!(world.shard.is_empty(), "{:?}", world.shard);
}

#[test]
fn large_heads_that_wait_are_bounded_by_the_cores_memory() {
    let mut world = World::with(
        "[limits]\ncore_buffer = \"1MiB\"\nconnection_buffer = \"1MiB\"\nstream_window_max = \"256KiB\"",
    );
    let value = long();
    let mut clients: Vec<_> = (0..6).map(|_| Peer::client(&mut world)).collect();
    for client in &mut clients {
        client.request(&mut world, &large(&value), true);
        client.sync(&mut world);
    }
    // Four are 1 001 700 octets: the fifth has no room.
    let refused: Vec<_> = clients.iter().map(|client| client.field(0, "grpc-status")).collect();
    assert_eq!(refused, [None, None, None, None, Some("8"), Some("8")]);
    let told = clients[5].field(0, "grpc-message");
    assert_eq!(told, Some("gateway holds as much as it may, try again later"));
    // A small head is let in, and the connection of one that was not lives on.
    clients[5].request(&mut world, &[], true);
    clients[5].sync(&mut world);
    assert_eq!(clients[5].heads().len(), 1);
    assert!(used(&mut world) <= 1 << 20);
    for client in &clients {
        world.end(client.conn, End::Fin);
    }
    assert!(world.shard.is_empty(), "{:?}", world.shard);
}

#[test]
fn heads_that_never_become_whole_are_bounded_by_the_cores_memory() {
    let mut world = World::with(
        "[limits]\ncore_buffer = \"1MiB\"\nconnection_buffer = \"1MiB\"\nstream_window_max = \"256KiB\"",
    );
    let piece = |kind: u8, flags: u8| {
        let mut frame = vec![0, 0x40, 0, kind, flags, 0, 0, 0, 1];
        frame.resize(9 + 0x4000, 0);
        frame
    };
    let mut clients: Vec<_> = (0..4).map(|_| Peer::client(&mut world)).collect();
    for client in &clients {
        world.send(client.conn, &piece(1, 1));
        for _ in 0..17 {
            world.send(client.conn, &piece(9, 0));
        }
    }
    // Three have sent 288 KiB of a block each; a fourth one has no room for as much.
    let last = clients.pop().expect("four");
    assert!(world.is_closed(last.conn));
    assert!(clients.iter().all(|client| !world.is_closed(client.conn)));
    // HTTP/1 alike.
    let conn = world.connect(Listener::Client);
    world.send(conn, b"GET / HTTP/1.1\r\nX: ");
    for _ in 0..15 {
        world.send(conn, &[b'x'; 16 * 1024]);
    }
    let said = world.take(conn);
    assert!(said.starts_with(b"HTTP/1.1 431 "), "{}", String::from_utf8_lossy(&said));
    // Whole heads are not in their way.
    let mut client = Peer::client(&mut world);
    let key = client.request(&mut world, &[], true);
    client.sync(&mut world);
    assert!(client.heads().is_empty(), "it waits for a worker");
    client.reset(&mut world, key, ErrorCode::Cancel);
    clients.push(client);
    for client in clients {
        world.end(client.conn, End::Fin);
    }
    assert!(world.shard.is_empty(), "{:?}", world.shard);
}

#[test]
fn one_connections_heads_that_wait_never_cost_another_connection() {
    for size in [200_000, 15_000] {
        let mut world = World::with(
            "[limits]\ncore_buffer = \"1MiB\"\nconnection_buffer = \"512KiB\"\nstream_window_max = \"256KiB\"",
        );
        let value = "v".repeat(3_500);
        let bomb = fields(size / 3_536, &value);
        let mut client = Peer::client(&mut world);
        let keys: Vec<_> = (0..100).map(|_| client.request(&mut world, &bomb, true)).collect();
        client.sync(&mut world);
        let refused = client.heads().len();
        assert!(refused > 0 && refused < 99, "{refused} of {size}");
        for n in 0..refused {
            assert_eq!(client.field(n, "grpc-status"), Some("8"));
        }
        assert!(used(&mut world) <= 512 << 10, "{}", used(&mut world));
        assert_eq!(used_of(&mut world, Limit::ConnectionBuffer), used(&mut world));
        // Another one is not concerned, with heads large and small.
        let mut other = Peer::client(&mut world);
        other.request(&mut world, &[], true);
        other.request(&mut world, &large(&long()), true);
        other.sync(&mut world);
        assert!(other.heads().is_empty(), "{:?}", other.seen);
        // A head that has gone leaves its room to others, whichever way it goes.
        client.reset(&mut world, keys[0], ErrorCode::Cancel);
        client.request(&mut world, &bomb, true);
        client.sync(&mut world);
        assert_eq!(client.heads().len(), refused, "it waits");
        let mut worker = Peer::worker(&mut world);
        worker.sync(&mut world);
        assert_eq!(worker.heads().len(), 100 - refused);
        world.end(other.conn, End::Fin);
        assert_eq!(used_of(&mut world, Limit::ConnectionBuffer), 0);
        assert_eq!(used(&mut world), 0);
        world.end(client.conn, End::Fin);
        assert_eq!(used(&mut world), 0);
    }
}

#[test]
fn small_parts_of_many_frames_end_nobody_but_those_who_sent_them() {
    let mut world = World::with(
        "[limits]\ncore_buffer = \"1MiB\"\nconnection_buffer = \"1MiB\"\nstream_window_max = \"256KiB\"",
    );
    let mut session = Peer::client(&mut world);
    session.request(&mut world, &[], true);
    let mut worker = Peer::worker(&mut world);
    worker.sync(&mut world);
    let mut innocent = Peer::client(&mut world);
    // All but one octet of a GOAWAY.
    let mut part = vec![0, 0x40, 0, 7, 0, 0, 0, 0, 0];
    part.resize(9 + 0x3fff, 0);
    let many: Vec<_> = (0..80).map(|_| Peer::client(&mut world).conn).collect();
    for conn in &many {
        world.send(*conn, &part);
    }
    // Large heads that span two receives, of a client and of a tunnel.
    let value = long();
    let mut block = Vec::new();
    let mut halves = |peer: &mut Peer, world: &mut World, key, fields: &[(&str, &str)]| {
        let (mut out, list) = (Vec::new(), fields.iter());
        let list = list.map(|(n, v)| Field::new(n.as_bytes(), v.as_bytes()));
        peer.h2.head(key, list, true, &mut block, &mut out);
        let middle = out.len() / 2;
        world.send(peer.conn, &out[..middle]);
        world.send(peer.conn, &out[middle..]);
    };
    let key = worker.key(0);
    let answer = [&[(":status", "200")][..], &large(&value)].concat();
    halves(&mut worker, &mut world, key, &answer);
    session.sync(&mut world);
    assert_eq!(session.field(0, ":status"), Some("200"), "{:?}", session.seen);
    let key = innocent.h2.open().expect("a stream");
    halves(&mut innocent, &mut world, key, &[&REQUEST[..], &large(&value)].concat());
    innocent.sync(&mut world);
    assert!(!world.is_closed(innocent.conn), "{:?}", innocent.seen);
    // Whoever leaves a frame in part has as long as for a header block.
    world.pass(Duration::from_secs(11));
    assert!(many.iter().all(|conn| world.is_closed(*conn)));
    assert!(!world.is_closed(innocent.conn) && !world.is_closed(session.conn));
    for conn in [innocent.conn, session.conn] {
        world.end(conn, End::Fin);
    }
}

/// A tunnel's head in two receives while clients' parts fill the core.
#[test]
fn a_tunnel_is_not_ended_for_the_parts_of_clients() {
    let mut world = World::with(
        "[limits]\ncore_buffer = \"1MiB\"\nconnection_buffer = \"1MiB\"\nstream_window_max = \"256KiB\"",
    );
    let mut session = Peer::client(&mut world);
    session.request(&mut world, &[], true);
    let mut worker = Peer::worker(&mut world);
    worker.sync(&mut world);
    let piece = |kind: u8, flags: u8| {
        let mut frame = vec![0, 0x40, 0, kind, flags, 0, 0, 0, 1];
        frame.resize(9 + 0x4000, 0);
        frame
    };
    for _ in 0..4 {
        let client = Peer::client(&mut world);
        world.send(client.conn, &piece(1, 1));
        for _ in 0..17 {
            world.send(client.conn, &piece(9, 0));
        }
    }
    let key = worker.key(0);
    let (mut block, mut out, value) = (Vec::new(), Vec::new(), long());
    let answer = [&[(":status", "200")][..], &large(&value)].concat();
    let list = answer.iter().map(|(n, v)| Field::new(n.as_bytes(), v.as_bytes()));
    worker.h2.head(key, list, true, &mut block, &mut out);
    for part in out.chunks(20_000) {
        world.send(worker.conn, part);
    }
    session.sync(&mut world);
    assert_eq!(session.field(0, ":status"), Some("200"), "{:?}", session.seen);
    assert!(!world.is_closed(worker.conn));
}
