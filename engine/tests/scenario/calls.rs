//! Calls from end to end.

use ringway::metrics::CopyWhy;
use ringway::net::End;
use ringway_proto::h2::{ErrorCode, HeadKind};

use crate::peer::{Peer, Seen};
use crate::world::World;

fn grpc_ok(worker: &mut Peer, world: &mut World, n: usize, body: &[u8]) {
    let key = worker.key(n);
    let head = [(":status", "200"), ("content-type", "application/grpc")];
    worker.head(world, key, &head, false);
    worker.data(world, key, body, false);
    worker.head(world, key, &[("grpc-status", "0")], true);
}

#[test]
fn a_first_call_opens_a_session_and_comes_back() {
    let mut world = World::new();
    let mut client = Peer::client(&mut world);
    let call = client.request(&mut world, &[("nvcf-reqid", "nonsense")], false);
    client.data(&mut world, call, b"\0\0\0\0\x02hi", true);
    let mut worker = Peer::worker(&mut world);
    worker.sync(&mut world);
    let id = worker.field(0, "nvcf-reqid").expect("an id").to_owned();
    assert_eq!(worker.field(0, ":path"), Some("/ringway.echo.v1.Echo/Unary"));
    assert_eq!(worker.field(0, "authorization"), Some("Bearer dev-key"));
    assert_eq!(worker.field(0, "te"), Some("trailers"));
    assert_eq!(worker.body(1), (b"\0\0\0\0\x02hi".to_vec(), true));
    grpc_ok(&mut worker, &mut world, 0, b"\0\0\0\0\x03you");
    client.sync(&mut world);
    assert_eq!(client.field(0, "nvcf-reqid"), Some(&*id));
    assert_eq!(client.field(0, "set-cookie"), Some(&*format!("nvcf-request-id={id}")));
    assert_eq!(client.body(1).0, b"\0\0\0\0\x03you");
    assert_eq!(client.field(1, "grpc-status"), Some("0"));
    // The second call uses the pinned tunnel, and the cookie is not set again.
    client.request(&mut world, &[], true);
    worker.sync(&mut world);
    grpc_ok(&mut worker, &mut world, 1, b"again");
    client.sync(&mut world);
    assert_eq!(client.field(2, "nvcf-reqid"), Some(&*id));
    assert_eq!(client.field(2, "set-cookie"), None);
    world.end(client.conn, End::Fin);
    assert!(world.is_closed(worker.conn), "the client's tunnels close with it");
    assert!(world.shard.is_empty(), "{:?}", world.shard);
    assert_eq!(world.net.pool.chunks_live(), 0);
}

#[test]
fn a_call_works_however_its_bytes_are_cut() {
    for cut in [1, 2, 3, 7, 8, 9, 10, 100] {
        let mut world = World::new();
        world.cut = cut;
        let mut client = Peer::client(&mut world);
        let call = client.request(&mut world, &[], false);
        client.data(&mut world, call, &[7; 300], true);
        let mut worker = Peer::worker(&mut world);
        worker.sync(&mut world);
        assert!(worker.body(1) == (vec![7; 300], true), "cut at {cut}");
        grpc_ok(&mut worker, &mut world, 0, &[9; 5000]);
        client.sync(&mut world);
        assert!(client.body(1).0 == [9; 5000], "cut at {cut}");
        assert_eq!(client.field(1, "grpc-status"), Some("0"));
    }
}

#[test]
fn large_data_is_relayed_where_it_was_received() {
    let mut world = World::new();
    let mut client = Peer::client(&mut world);
    let call = client.request(&mut world, &[], false);
    let mut worker = Peer::worker(&mut world);
    worker.sync(&mut world);
    let body: Vec<u8> = (0..4_000_000_u32).map(|i| (i / 7) as u8).collect();
    for part in body.chunks(50_000) {
        client.data(&mut world, call, part, false);
        worker.sync(&mut world);
    }
    client.data(&mut world, call, b"", true);
    worker.sync(&mut world);
    let (got, ended) = worker.body(1);
    assert!(got == body && ended);
    let copied = world.shard.metrics().payload_copied;
    let large = copied[CopyWhy::Waiting.index()] + copied[CopyWhy::SlowPeer.index()];
    assert_eq!(large, 0, "no large frame was copied");
    assert!(copied[CopyWhy::SmallFrame.index()] < 400_000, "{copied:?}");
    assert!(world.shard.metrics().payload_relayed > 3_600_000);
}

#[test]
fn trailers_only_stays_one_frame() {
    let mut world = World::new();
    let mut client = Peer::client(&mut world);
    client.request(&mut world, &[], true);
    let mut worker = Peer::worker(&mut world);
    worker.sync(&mut world);
    let key = worker.key(0);
    let head = [(":status", "200"), ("content-type", "application/grpc"), ("grpc-status", "5")];
    worker.head(&mut world, key, &head, true);
    client.sync(&mut world);
    let Some(Seen::Head { kind, end, .. }) = client.heads().first().copied().cloned() else {
        panic!("{:?}", client.seen);
    };
    assert_eq!((kind, end), (HeadKind::Response, true));
    assert_eq!(client.heads().len(), 1);
}

#[test]
fn resets_cross_with_their_code() {
    for (code, becomes) in [
        (ErrorCode::Cancel, ErrorCode::Cancel),
        (ErrorCode::RefusedStream, ErrorCode::RefusedStream),
        (ErrorCode::EnhanceYourCalm, ErrorCode::EnhanceYourCalm),
        (ErrorCode::InternalError, ErrorCode::InternalError),
        (ErrorCode::ProtocolError, ErrorCode::InternalError),
        (ErrorCode::FlowControlError, ErrorCode::InternalError),
    ] {
        let mut world = World::new();
        let mut client = Peer::client(&mut world);
        let first = client.request(&mut world, &[], false);
        client.request(&mut world, &[], false);
        let mut worker = Peer::worker(&mut world);
        worker.sync(&mut world);
        client.reset(&mut world, first, code);
        worker.sync(&mut world);
        assert_eq!(worker.seen.last(), Some(&Seen::Reset { stream: 1, code: becomes }));
        let second = worker.key(1);
        worker.reset(&mut world, second, code);
        client.sync(&mut world);
        assert_eq!(client.seen.last(), Some(&Seen::Reset { stream: 3, code: becomes }));
    }
}

#[test]
fn a_client_that_gives_up_while_waiting_withdraws_its_work() {
    let mut world = World::new();
    let mut client = Peer::client(&mut world);
    let call = client.request(&mut world, &[], true);
    client.reset(&mut world, call, ErrorCode::Cancel);
    assert!(crate::peer::poll(&mut world, &[]).is_none(), "no work is left");
    world.end(client.conn, End::Reset);
    world.pass(std::time::Duration::from_secs(40));
    assert!(world.shard.is_empty(), "{:?}", world.shard);
}

#[test]
fn a_lost_tunnel_is_502_before_the_head_and_a_reset_after_it() {
    let mut world = World::new();
    let mut client = Peer::client(&mut world);
    client.request(&mut world, &[], true);
    client.request(&mut world, &[], true);
    client.request(&mut world, &[("content-type", "text/plain")], true);
    let mut worker = Peer::worker(&mut world);
    worker.sync(&mut world);
    let key = worker.key(0);
    worker.head(&mut world, key, &[(":status", "200")], false);
    worker.data(&mut world, key, b"part", false);
    world.end(worker.conn, End::Reset);
    client.sync(&mut world);
    let resets: Vec<_> = client.seen.iter().filter(|s| matches!(s, Seen::Reset { .. })).collect();
    assert_eq!(resets, [&Seen::Reset { stream: 1, code: ErrorCode::InternalError }]);
    assert_eq!(
        (client.field(1, ":status"), client.field(1, "grpc-status")),
        (Some("502"), Some("14"))
    );
    assert_eq!((client.field(2, ":status"), client.field(2, "grpc-status")), (Some("502"), None));
    // The next call gets a session of its own.
    client.request(&mut world, &[], true);
    let mut worker = Peer::worker(&mut world);
    worker.sync(&mut world);
    assert_eq!(worker.heads().len(), 1);
}
