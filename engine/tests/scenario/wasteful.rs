//! Clients that cost more than they should, honest ones that look like them, and what becomes of
//! their sessions.

use std::time::Duration;

use ringway::net::End;
use ringway_proto::h2::ErrorCode;

use crate::parking::{answer, attached, back};
use crate::peer::{Peer, Seen, poll};
use crate::world::World;

/// The code of the last GOAWAY that came.
fn told_off(client: &Peer) -> Option<ErrorCode> {
    client.seen.iter().rev().find_map(|seen| match seen {
        Seen::Goaway { code, .. } => Some(*code),
        _ => None,
    })
}

/// HEADERS and RST_STREAM back to back, again and again; how many were taken.
fn rapid(world: &mut World, client: &mut Peer, more: &[(&str, &str)], end: bool) -> usize {
    for n in 0..8_000 {
        if world.is_closed(client.conn) {
            return n;
        }
        let key = client.request(world, more, end);
        client.reset(world, key, ErrorCode::Cancel);
        if n % 50 == 0 {
            client.sync(world);
            client.forget_keys();
        }
    }
    8_000
}

#[test]
fn three_thousand_calls_that_are_cancelled_together_cost_nobody_anything() {
    let mut world = World::new();
    let (mut client, mut worker, id) = attached(&mut world);
    client.request(&mut world, &[], false);
    let keys: Vec<_> = (0..3_000).map(|_| client.request(&mut world, &[], false)).collect();
    worker.sync(&mut world);
    world.pass(Duration::from_millis(100));
    for key in keys {
        client.reset(&mut world, key, ErrorCode::Cancel);
    }
    worker.sync(&mut world);
    let resets = worker.seen.iter().filter(|seen| matches!(seen, Seen::Reset { .. })).count();
    assert_eq!(resets, 3_000);
    client.sync(&mut world);
    assert_eq!(told_off(&client), None);
    // The unrelated call goes on, and so does the session.
    answer(&mut world, &mut worker, 1);
    client.sync(&mut world);
    assert_eq!(client.field(1, "nvcf-reqid"), Some(&*id));
}

#[test]
fn calls_that_nobody_came_to_serve_are_no_flood_of_their_clients() {
    let mut world = World::new();
    let mut client = Peer::client(&mut world);
    let keys: Vec<_> = (0..3_000).map(|_| client.request(&mut world, &[], false)).collect();
    world.pass(Duration::from_secs(30));
    client.sync(&mut world);
    assert_eq!(client.field(2_999, "grpc-status"), Some("4"));
    // As gRPC's libraries do with what they had not ended.
    for key in keys {
        client.reset(&mut world, key, ErrorCode::NoError);
    }
    client.sync(&mut world);
    assert_eq!(told_off(&client), None);
    assert!(!world.is_closed(client.conn));
}

#[test]
fn every_answer_of_ours_is_charged_with_the_reset_behind_it() {
    let nobody = "dc72d8f7-1bdb-8000-8d24-000bdc6bb9cd";
    let long = "x".repeat(70_000);
    let kinds: [(&str, &[(&str, &str)]); 11] = [
        ("E1", &[("authorization", "")]),
        ("E2", &[("function-id", "")]),
        ("E3, the key", &[("authorization", "Bearer nobody")]),
        ("E3, the function", &[("function-id", "99999999-1111-4111-8111-111111111111")]),
        ("E7", &[("nvcf-reqid", nobody)]),
        ("a bad id", &[("nvcf-reqid", "no id")]),
        ("plain", &[("content-type", "text/plain"), ("authorization", "")]),
        ("/health", &[(":path", "/health"), (":method", "GET"), ("content-type", "")]),
        ("/info", &[(":path", "/info"), (":method", "GET"), ("content-type", "")]),
        (
            "a preflight",
            &[
                (":method", "OPTIONS"),
                ("origin", "https://a.example"),
                ("access-control-request-method", "POST"),
                ("content-type", ""),
            ],
        ),
        ("a head too large", &[("x-long", &long)]),
    ];
    for (kind, more) in kinds {
        for end in [true, false] {
            // Nothing else is counted but the resets: heads over L2 take a megabyte a dozen.
            let few = if kind == "a head too large" { "[limits]\nglitch_burst = 20" } else { "" };
            let mut world = World::with(few);
            let mut client = Peer::client(&mut world);
            let taken = rapid(&mut world, &mut client, more, end);
            assert!(taken < 1_100, "{kind} {end}: {taken}");
            client.sync(&mut world);
            assert!(told_off(&client).is_some(), "{kind} {end}");
        }
    }
}

#[test]
fn what_is_refused_for_its_rate_is_charged_and_says_when_to_come_back() {
    for end in [true, false] {
        let mut world = World::with("[limits]\ndispatch_burst = 3\ndispatch_rate = 1");
        let mut client = Peer::client(&mut world);
        for (n, style) in ["application/grpc", "text/plain"].into_iter().enumerate() {
            for _ in 0..4 {
                // Taken back only when a worker was asked: the next one is another session.
                let key = client.request(&mut world, &[("content-type", style)], end);
                client.reset(&mut world, key, ErrorCode::Cancel);
            }
            client.request(&mut world, &[("content-type", style)], true);
            client.sync(&mut world);
            let last = client.heads().len() - 1;
            let told = [":status", "grpc-status", "retry-after"]
                .map(|name| client.field(last, name).map(str::to_owned));
            let wanted = match n {
                0 => [Some("200".into()), Some("8".into()), Some("1".into())],
                _ => [Some("429".into()), None, Some("1".into())],
            };
            assert_eq!(told, wanted);
        }
        let taken = rapid(&mut world, &mut client, &[], end);
        assert!(taken < 1_100, "{end}: {taken}");
        client.sync(&mut world);
        assert!(told_off(&client).is_some());
    }
}

#[test]
fn a_client_that_is_told_off_finds_its_session_again() {
    let mut world = World::new();
    let (mut client, mut worker, id) = attached(&mut world);
    let taken = rapid(&mut world, &mut client, &[], true);
    assert!(taken < 1_100, "{taken}");
    assert!(world.is_closed(client.conn));
    assert!(!world.is_closed(worker.conn));
    worker.sync(&mut world);
    worker.forget_keys();
    let client = back(&mut world, &mut worker, &id, 0);
    assert_eq!(client.field(0, "nvcf-reqid"), Some(&*id));
}

#[test]
fn so_does_one_that_leaves_at_the_first_warning() {
    // Slowly enough for the GOAWAY at three quarters; the client answers it and leaves.
    for obeys in [true, false] {
        let mut world = World::new();
        let (mut client, mut worker, id) = attached(&mut world);
        while told_off(&client).is_none() {
            let key = client.request(&mut world, &[], true);
            client.reset(&mut world, key, ErrorCode::Cancel);
            if obeys {
                // Without the PING's answer, which would bring the final GOAWAY.
                let bytes = world.take(client.conn);
                if !bytes.is_empty() {
                    break;
                }
            } else {
                client.sync(&mut world);
            }
        }
        if obeys {
            client.goaway(&mut world, 0);
            world.end(client.conn, End::Fin);
        }
        world.pass(Duration::from_secs(2));
        assert!(world.is_closed(client.conn) && !world.is_closed(worker.conn), "{obeys}");
        worker.sync(&mut world);
        worker.forget_keys();
        back(&mut world, &mut worker, &id, 0);
    }
}

#[test]
fn one_that_breaks_the_protocol_takes_its_session_along() {
    let mut world = World::new();
    let (client, worker, _) = attached(&mut world);
    // DATA on stream 0.
    world.send(client.conn, b"\0\0\x01\0\0\0\0\0\0x");
    assert!(world.is_closed(client.conn) && world.is_closed(worker.conn));
    assert!(world.shard.is_empty());
}

// ---- sessions: what is charged ----

#[test]
fn a_session_that_its_worker_ended_in_order_is_charged_for_the_next_one() {
    let mut world = World::with("[limits]\ndispatch_burst = 2\ndispatch_rate = 1");
    let mut client = Peer::client(&mut world);
    for n in 0..20 {
        client.request(&mut world, &[], true);
        let mut worker = Peer::worker(&mut world);
        answer(&mut world, &mut worker, 0);
        client.sync(&mut world);
        assert_eq!(client.field(n, ":status"), Some("200"), "{n}");
        assert_eq!(client.field(n, "grpc-status"), Some("0"), "{n}");
        world.end(worker.conn, End::Fin);
    }
    // One whose worker leaves without an answer is not.
    for n in 20..23 {
        client.request(&mut world, &[], true);
        let Some(work) = poll(&mut world, &[]) else { break };
        let worker = Peer::dial_back(&mut world, &work);
        world.end(worker.conn, End::Fin);
        client.sync(&mut world);
        assert_eq!(client.field(n, "grpc-status"), Some("14"), "{n}");
    }
    client.sync(&mut world);
    assert_eq!(client.field(22, "grpc-status"), Some("8"));
    assert_eq!(client.field(22, "retry-after"), Some("1"));
}

#[test]
fn coming_back_is_charged_only_in_vain() {
    let mut world = World::with("[limits]\ndispatch_burst = 2\ndispatch_rate = 1");
    let mut ids = Vec::new();
    let mut holders = Vec::new();
    for _ in 0..4 {
        let (client, worker, id) = attached(&mut world);
        holders.push((client, worker));
        ids.push(id);
    }
    // A pooled client takes all of them on; each has its tunnel still.
    let mut pool = Peer::client(&mut world);
    for (n, id) in ids.iter().enumerate() {
        pool.request(&mut world, &[("nvcf-reqid", id)], true);
        let work = poll(&mut world, &[id]).expect("work");
        assert_eq!((&*work.kind, &work.request_id), ("reconnect", id));
        let mut worker = Peer::dial_back(&mut world, &work);
        answer(&mut world, &mut worker, 0);
        pool.sync(&mut world);
        assert_eq!(pool.field(n, "grpc-status"), Some("0"));
    }
    // Another one asks and does not wait, again and again.
    let mut hasty = Peer::client(&mut world);
    for id in &ids[..2] {
        let key = hasty.request(&mut world, &[("nvcf-reqid", id)], true);
        world.pass(Duration::from_millis(1));
        hasty.reset(&mut world, key, ErrorCode::Cancel);
    }
    hasty.request(&mut world, &[("nvcf-reqid", &ids[2])], true);
    hasty.sync(&mut world);
    assert_eq!(hasty.field(0, "grpc-status"), Some("8"));
    assert_eq!(hasty.field(0, "retry-after"), Some("1"));
}

#[test]
fn a_dialled_function_asks_no_worker_and_is_charged_nothing() {
    let dial = "dial = \"127.0.0.1:50051\"\n[limits]\ndispatch_burst = 2\ndispatch_rate = 1";
    let mut world = World::with(dial);
    let mut client = Peer::client(&mut world);
    for n in 0..500 {
        client.request(&mut world, &[], true);
        if n % 3 == 0 {
            world.dialled(Err(111));
            client.sync(&mut world);
            assert_eq!(client.field(n, "grpc-status"), Some("14"), "{n}");
            continue;
        }
        let mut server = Peer::server(&mut world);
        answer(&mut world, &mut server, 0);
        client.sync(&mut world);
        assert_eq!(client.field(n, "grpc-status"), Some("0"), "{n}");
        world.end(server.conn, End::Fin);
    }
    assert!(world.dials.is_empty());
}

#[test]
fn as_many_dials_are_under_way_for_a_client_as_it_may_have_attachments() {
    let dial = "dial = \"127.0.0.1:50051\"\n[limits]\nattachments = 1";
    let mut world = World::with(dial);
    let mut client = Peer::client(&mut world);
    client.request(&mut world, &[], true);
    client.request(&mut world, &[], true);
    let other = [("authorization", "Bearer other-key")];
    client.request(&mut world, &other, true);
    client.sync(&mut world);
    assert_eq!(world.dials.len(), 1);
    assert_eq!(client.field(0, "grpc-status"), Some("8"));
    assert_eq!(client.field(0, "retry-after"), None, "it is no matter of time");
    // The next one may have it when that is over.
    world.dialled(Err(111));
    client.request(&mut world, &other, true);
    assert_eq!(world.dials.len(), 1);
}
