//! DATA frames in a row: many in one receive, of one stream and of several.

use ringway::metrics::CopyWhy;
use ringway_proto::h2::frame::{FrameHead, HEAD_BYTES, Kind};
use ringway_proto::h2::{Limits, StreamKey};

use crate::peer::Peer;
use crate::world::World;

/// A client with `streams` calls under way and their worker, which has answered with heads.
fn under_way(streams: usize, change: impl FnOnce(&mut Limits)) -> (World, Peer, Peer) {
    let mut world = World::new();
    let mut client = Peer::client_with(&mut world, change);
    for _ in 0..streams {
        client.request(&mut world, &[], false);
    }
    let mut worker = Peer::worker(&mut world);
    worker.sync(&mut world);
    for n in 0..streams {
        let key = worker.key(n);
        worker.head(&mut world, key, &[(":status", "200")], false);
    }
    client.sync(&mut world);
    worker.sync(&mut world);
    (world, client, worker)
}

/// One DATA frame behind others.
fn put(peer: &mut Peer, key: StreamKey, bytes: &[u8], out: &mut Vec<u8>) {
    assert!(peer.h2.data_room(key) >= bytes.len(), "the script keeps to the windows");
    out.extend_from_slice(&peer.h2.data_head(key, bytes.len(), false));
    out.extend_from_slice(bytes);
}

/// Stream and length of the DATA frames in what a peer was sent.
fn frames(mut bytes: &[u8]) -> Vec<(u32, u32)> {
    let mut frames = Vec::new();
    while let Some(head) = bytes.first_chunk::<HEAD_BYTES>() {
        let head = FrameHead::parse(*head);
        if head.kind == Kind::Data {
            frames.push((head.stream, head.len));
        }
        bytes = &bytes[HEAD_BYTES + head.len as usize..];
    }
    assert!(bytes.is_empty(), "whole frames only");
    frames
}

#[test]
fn small_frames_that_come_together_leave_as_one() {
    let (mut world, client, mut worker) = under_way(2, |_| {});
    let (one, two) = (worker.key(0), worker.key(1));
    let mut out = Vec::new();
    for _ in 0..100 {
        put(&mut worker, one, b"12345", &mut out);
    }
    put(&mut worker, one, &[1; 257], &mut out);
    put(&mut worker, two, b"1", &mut out);
    put(&mut worker, two, &[2; 256], &mut out);
    put(&mut worker, one, b"6", &mut out);
    world.send(worker.conn, &out);
    let expected = [(1, 500), (1, 257), (3, 257), (1, 1)];
    assert_eq!(frames(&world.take(client.conn)), expected);
    // Frames that are large together are sent from where they were received.
    let copied = world.shard.metrics().payload_copied[CopyWhy::SmallFrame.index()];
    let relayed = world.shard.metrics().payload_relayed;
    out.clear();
    (0..20).for_each(|_| put(&mut worker, two, &[3; 1000], &mut out));
    world.send(worker.conn, &out);
    assert_eq!(frames(&world.take(client.conn)), [(3, 1000); 20]);
    assert_eq!(world.shard.metrics().payload_copied[CopyWhy::SmallFrame.index()], copied);
    assert_eq!(world.shard.metrics().payload_relayed, relayed + 20_000);
}

#[test]
fn the_last_frame_ends_the_stream_behind_the_others() {
    let (mut world, mut client, mut worker) = under_way(1, |_| {});
    let key = worker.key(0);
    let mut out = Vec::new();
    put(&mut worker, key, b"abc", &mut out);
    put(&mut worker, key, b"def", &mut out);
    out.extend_from_slice(&worker.h2.data_head(key, 3, true));
    out.extend_from_slice(b"ghi");
    world.send(worker.conn, &out);
    client.sync(&mut world);
    assert_eq!(client.body(1), (b"abcdefghi".to_vec(), true));
}

#[test]
fn any_mix_arrives_whole_and_in_order_both_ways() {
    let lens = [1, 5, 256, 257, 5, 5, 1029, 5000, 3, 16_384, 255, 2];
    for (cut, window) in [(usize::MAX, 65_536), (usize::MAX, 3000), (4096, 65_536), (97, 700)] {
        let (mut world, mut client, mut worker) = under_way(3, |l| l.stream_window = window);
        world.cut = cut;
        let keys = [0, 1, 2].map(|n| (client.key(n), worker.key(n)));
        let mut sent = [const { Vec::new() }; 3];
        let mut dice = 7_usize;
        for _ in 0..40 {
            let (mut up, mut down) = (Vec::new(), Vec::new());
            for _ in 0..12 {
                dice = dice.wrapping_mul(1_664_525).wrapping_add(1_013_904_223) % (1 << 32);
                let (n, len) = ((dice >> 20) % 3, lens[(dice >> 24) % lens.len()]);
                let (ours, theirs) = keys[n];
                let room = client.h2.data_room(ours).min(worker.h2.data_room(theirs));
                let bytes: Vec<u8> = (0..len.min(room)).map(|i| (dice + i) as u8).collect();
                if !bytes.is_empty() {
                    put(&mut client, ours, &bytes, &mut up);
                    put(&mut worker, theirs, &bytes, &mut down);
                    sent[n].extend(bytes);
                }
            }
            world.send(client.conn, &up);
            world.send(worker.conn, &down);
            for _ in 0..4 {
                client.sync(&mut world);
                worker.sync(&mut world);
            }
        }
        for _ in 0..100 {
            client.sync(&mut world);
            worker.sync(&mut world);
        }
        for (n, sent) in sent.iter().enumerate() {
            let stream = keys[n].0.id();
            assert!(sent.len() > 5000, "{} octets of stream {stream}", sent.len());
            assert!(client.body(stream).0 == *sent, "down, cut at {cut}, window {window}");
            assert!(worker.body(stream).0 == *sent, "up, cut at {cut}, window {window}");
        }
    }
}
