//! Sessions: who gets which, how they are come back to, how they end.

use std::time::Duration;

use ringway::net::{End, Listener};
use ringway_proto::h2::ErrorCode;

use crate::peer::{Peer, Work, poll, poll_request, read_work, undated};
use crate::world::World;

const OTHER_FUNCTION: &str = "33333333-3333-4333-8333-333333333333";
const SECOND_FUNCTION: &str = r#"
    [[function]]
    id = "33333333-3333-4333-8333-333333333333"
    version = "44444444-4444-4444-8444-444444444444"
    tenants = ["dev"]
    worker_keys = ["dev-worker-key"]
"#;

fn status(client: &Peer, n: usize) -> (Option<&str>, Option<&str>) {
    (client.field(n, "grpc-status"), client.field(n, "grpc-message"))
}

/// A client with a session whose worker has answered the first call.
fn attached(world: &mut World) -> (Peer, Peer, String) {
    let mut client = Peer::client(world);
    client.request(world, &[], true);
    let mut worker = Peer::worker(world);
    worker.sync(world);
    let key = worker.key(0);
    worker.head(world, key, &[(":status", "200"), ("grpc-status", "0")], true);
    client.sync(world);
    let id = client.field(0, "nvcf-reqid").expect("an id").to_owned();
    (client, worker, id)
}

#[test]
fn many_streams_wait_for_one_dispatch() {
    let mut world = World::new();
    let mut client = Peer::client(&mut world);
    for _ in 0..100 {
        client.request(&mut world, &[], true);
    }
    let mut worker = Peer::worker(&mut world);
    assert!(poll(&mut world, &[]).is_none(), "one connection, one key, one work item");
    worker.sync(&mut world);
    assert_eq!(worker.heads().len(), 100);
}

#[test]
fn what_is_missing_or_not_allowed_is_said_in_the_contracts_words() {
    let mut world = World::with(SECOND_FUNCTION);
    let mut client = Peer::client(&mut world);
    type Case<'a> = (&'a [(&'a str, &'a str)], &'a str, &'a str);
    let cases: [Case<'_>; 6] = [
        (&[("authorization", "")], "16", "no authorization was passed in the metadata"),
        (&[("function-id", "")], "3", "no function-id was passed in the metadata"),
        (&[("authorization", "Bearer nobody")], "16", "failed to open stateful work request"),
        (&[("function-id", "nothing")], "5", "failed to open stateful work request"),
        (
            &[
                ("authorization", "Bearer other-key"),
                ("function-id", OTHER_FUNCTION),
                ("function-version-id", ""),
            ],
            "7",
            "failed to open stateful work request",
        ),
        (
            &[("nvcf-reqid", "6f9619ff-8b86-4011-b42d-00c04fc964ff")],
            "5",
            "no existing session found",
        ),
    ];
    for (n, (fields, code, text)) in cases.into_iter().enumerate() {
        client.request(&mut world, fields, true);
        client.sync(&mut world);
        let (status, message) = status(&client, n);
        assert_eq!(status, Some(code), "{fields:?}: {message:?}");
        assert!(message.unwrap_or_default().replace("%20", " ").contains(text), "{message:?}");
    }
    assert_eq!(client.field(5, "set-cookie"), Some("nvcf-request-id=; Max-Age=0"));
    assert_eq!(client.field(4, "set-cookie"), None);
}

#[test]
fn no_worker_in_time_is_said_to_all_who_wait_and_the_next_starts_over() {
    let mut world = World::new();
    let mut client = Peer::client(&mut world);
    client.request(&mut world, &[], true);
    client.request(&mut world, &[("content-type", "text/plain")], true);
    world.pass(Duration::from_millis(29_900));
    client.sync(&mut world);
    assert!(client.heads().is_empty());
    world.pass(Duration::from_millis(200));
    client.sync(&mut world);
    assert_eq!(client.field(0, "grpc-status"), Some("4"));
    assert_eq!(client.field(1, ":status"), Some("504"));
    let body = String::from_utf8(client.body(3).0).expect("text");
    assert!(body.contains("failed to establish link to worker"), "{body}");
    assert!(poll(&mut world, &[]).is_none(), "the work was withdrawn");
    client.request(&mut world, &[], true);
    assert!(poll(&mut world, &[]).is_some());
}

#[test]
fn coming_back_by_id_asks_the_worker_that_holds_it() {
    let mut world = World::new();
    let (_client, worker, id) = attached(&mut world);
    let mut second = Peer::client(&mut world);
    let cookie = format!("a=b; nvcf-request-id={id}");
    second.request(&mut world, &[("cookie", &cookie), ("function-version-id", "")], true);
    assert!(poll(&mut world, &[]).is_none(), "only a poll that lists the id gets it");
    let work = poll(&mut world, &[&id]).expect("reconnect work");
    assert_eq!((&*work.kind, &work.request_id), ("reconnect", &id));
    let mut tunnel = Peer::dial_back(&mut world, &work);
    tunnel.sync(&mut world);
    assert_eq!(tunnel.field(0, "nvcf-reqid"), Some(&*id));
    let key = tunnel.key(0);
    tunnel.head(&mut world, key, &[(":status", "200")], true);
    second.sync(&mut world);
    assert_eq!(second.field(0, "nvcf-reqid"), Some(&*id));
    assert_eq!(second.field(0, "set-cookie"), Some(&*format!("nvcf-request-id={id}")));
    // R9: each client has a tunnel of its own, and the session ends with the last of them.
    world.end(second.conn, End::Fin);
    assert!(world.is_closed(tunnel.conn) && !world.is_closed(worker.conn));
}

#[test]
fn another_function_version_or_tenant_is_refused_in_this_order() {
    let mut world = World::with(SECOND_FUNCTION);
    let (_client, _worker, id) = attached(&mut world);
    let mut other = Peer::client(&mut world);
    let named = ("nvcf-reqid", &*id);
    let key = ("authorization", "Bearer other-key");
    other.request(
        &mut world,
        &[named, ("function-id", OTHER_FUNCTION), ("function-version-id", "")],
        true,
    );
    other.request(&mut world, &[named, key], true);
    other.sync(&mut world);
    let text = |n: usize| other.field(n, "grpc-message").unwrap_or_default().replace("%20", " ");
    assert_eq!(other.field(0, "grpc-status"), Some("13"));
    assert!(text(0).contains(&format!("function ID mismatch for request id {id}")), "{}", text(0));
    assert_eq!(other.field(1, "grpc-status"), Some("13"));
    assert!(text(1).contains(&format!("NCA ID mismatch for request id {id}")), "{}", text(1));
    assert_eq!((other.field(0, "set-cookie"), other.field(1, "set-cookie")), (None, None));
}

#[test]
fn an_id_wins_over_the_pin_and_tenants_never_share() {
    let mut world = World::new();
    let (_first, _worker, id) = attached(&mut world);
    let (mut pooled, own, own_id) = attached(&mut world);
    // Another session, named on a pinned connection.
    pooled.request(&mut world, &[("nvcf-reqid", &id)], true);
    let work = poll(&mut world, &[&id]).expect("reconnect work");
    let mut tunnel = Peer::dial_back(&mut world, &work);
    tunnel.sync(&mut world);
    assert_eq!(tunnel.heads().len(), 1);
    // Its own session by name, and without one: the pin.
    pooled.request(&mut world, &[("nvcf-reqid", &own_id)], true);
    pooled.request(&mut world, &[], true);
    // Another key of the same tenant keeps the session; another tenant gets its own.
    pooled.request(&mut world, &[("authorization", "Bearer dev-key-2")], true);
    pooled.request(&mut world, &[("authorization", "Bearer other-key")], true);
    let mut own = own;
    own.sync(&mut world);
    assert_eq!(own.heads().len(), 4);
    let work = poll(&mut world, &[]).expect("the other tenant's own session");
    assert!(work.request_id != own_id && work.request_id != id);
}

#[test]
fn a_token_is_taken_once_and_only_with_its_id() {
    let mut world = World::new();
    let mut client = Peer::client(&mut world);
    client.request(&mut world, &[], true);
    let work = poll(&mut world, &[]).expect("work");
    let wrong = Work { request_id: "6f9619ff-8b86-4011-b42d-00c04fc964ff".into(), ..work.clone() };
    assert_eq!(dial(&mut world, &wrong), 403);
    let mut forged = work.clone();
    forged.token.replace_range(30..31, if &work.token[30..31] == "a" { "b" } else { "a" });
    assert_eq!(dial(&mut world, &forged), 403);
    let worker = Peer::dial_back(&mut world, &work);
    assert_eq!(dial(&mut world, &work), 403, "a replay");
    let connects = world.shard.metrics().connects;
    assert_eq!(connects, [0, 0, 0, 0, 1, 1, 1, 1, 0]);
    // The refused CONNECTs do not disturb the worker that was let in.
    assert!(!world.is_closed(worker.conn));
}

#[test]
fn five_wrong_ids_revoke_a_token() {
    let mut world = World::new();
    let mut client = Peer::client(&mut world);
    client.request(&mut world, &[], true);
    let work = poll(&mut world, &[]).expect("work");
    let wrong = Work { request_id: "6f9619ff-8b86-4011-b42d-00c04fc964ff".into(), ..work.clone() };
    for _ in 0..5 {
        assert_eq!(dial(&mut world, &wrong), 403);
    }
    assert_eq!(dial(&mut world, &work), 403);
    client.sync(&mut world);
    assert_eq!(client.field(0, "grpc-status"), Some("4"));
}

fn dial(world: &mut World, work: &Work) -> u16 {
    let conn = world.connect(Listener::Worker);
    world.send(conn, work.connect().as_bytes());
    let answer = world.take(conn);
    assert!(world.is_closed(conn) || answer.starts_with(b"HTTP/1.1 200"));
    std::str::from_utf8(&answer[9..12]).ok().and_then(|code| code.parse().ok()).unwrap_or(0)
}

#[test]
fn polls_wait_and_are_answered_in_order() {
    let mut world = World::new();
    let poller = world.connect(Listener::Worker);
    world.send(poller, poll_request(&[]).as_bytes());
    assert!(world.take(poller).is_empty());
    // A newer poll replaces the older.
    world.send(poller, poll_request(&[]).as_bytes());
    assert_eq!(undated(&world.take(poller)), b"HTTP/1.1 204 No Content\r\n\r\n");
    let mut client = Peer::client(&mut world);
    client.request(&mut world, &[], true);
    let answer = world.take(poller);
    assert_eq!(read_work(&answer).expect("work").kind, "new");
    world.send(poller, poll_request(&[]).as_bytes());
    world.pass(Duration::from_secs(29));
    assert!(world.take(poller).is_empty());
    world.pass(Duration::from_secs(2));
    assert_eq!(undated(&world.take(poller)), b"HTTP/1.1 204 No Content\r\n\r\n");
    assert!(!world.is_closed(poller));
}

#[test]
fn an_answer_that_did_not_arrive_is_given_to_another() {
    let mut world = World::new();
    let mut client = Peer::client(&mut world);
    let poller = world.connect(Listener::Worker);
    world.send(poller, poll_request(&[]).as_bytes());
    client.request(&mut world, &[], true);
    let lost = read_work(&world.take(poller)).expect("work");
    world.end(poller, End::Reset);
    let again = poll(&mut world, &[]).expect("the same work");
    assert_eq!(again.token, lost.token);
}

#[test]
fn an_idle_tunnel_closes_and_an_id_then_finds_nothing_once() {
    let mut world = World::new();
    let (mut client, worker, id) = attached(&mut world);
    world.pass(Duration::from_secs(29));
    assert!(!world.is_closed(worker.conn));
    world.pass(Duration::from_secs(2));
    assert!(world.is_closed(worker.conn) && !world.is_closed(client.conn));
    // CL-20: the next request starts over with its own id, and that session is gone.
    client.request(&mut world, &[("nvcf-reqid", &id)], true);
    client.sync(&mut world);
    assert_eq!(client.field(1, "grpc-status"), Some("5"));
    client.request(&mut world, &[], true);
    assert!(poll(&mut world, &[]).is_some());
}

#[test]
fn a_silent_worker_is_asked_and_then_given_up() {
    let mut world = World::new();
    let mut client = Peer::client(&mut world);
    client.request(&mut world, &[], true);
    let mut worker = Peer::worker(&mut world);
    worker.sync(&mut world);
    world.pass(Duration::from_secs(31));
    let asked = world.take(worker.conn);
    assert_eq!(asked.get(3), Some(&6), "a PING");
    world.pass(Duration::from_secs(16));
    assert!(world.is_closed(worker.conn));
    client.sync(&mut world);
    assert_eq!(client.field(0, ":status"), Some("502"));
}

#[test]
fn a_worker_that_allows_one_stream_serves_all_in_turn() {
    let mut world = World::new();
    let mut client = Peer::client(&mut world);
    for _ in 0..3 {
        client.request(&mut world, &[], true);
    }
    let mut worker = Peer::worker_with(&mut world, |limits| limits.max_concurrent_streams = 1);
    // Its SETTINGS reach us after the first heads: those above the limit are refused by it.
    worker.sync(&mut world);
    let before = worker.heads().len();
    assert!(before >= 1);
    let mut fresh = Peer::client(&mut world);
    fresh.request(&mut world, &[], true);
    let mut worker = Peer::worker_with(&mut world, |limits| limits.max_concurrent_streams = 1);
    worker.sync(&mut world);
    for n in 0..3 {
        fresh.request(&mut world, &[], true);
        worker.sync(&mut world);
        assert_eq!(worker.heads().len(), n + 1, "one at a time");
        let key = worker.key(n);
        worker.head(&mut world, key, &[(":status", "200")], true);
        worker.sync(&mut world);
    }
    fresh.sync(&mut world);
    assert_eq!(fresh.heads().len(), 3);
}

#[test]
fn a_workers_goaway_ends_old_streams_in_order_and_new_ones_get_a_new_session() {
    let mut world = World::with("[session]\npark = \"never\"");
    let mut client = Peer::client(&mut world);
    client.request(&mut world, &[], true);
    client.request(&mut world, &[], true);
    let mut worker = Peer::worker(&mut world);
    worker.sync(&mut world);
    worker.goaway(&mut world, 1);
    client.sync(&mut world);
    let refused = crate::peer::Seen::Reset { stream: 3, code: ErrorCode::RefusedStream };
    assert_eq!(client.seen.last(), Some(&refused));
    client.request(&mut world, &[], true);
    let fresh = poll(&mut world, &[]).expect("a new session at once");
    assert!(!world.is_closed(worker.conn));
    let key = worker.key(0);
    worker.head(&mut world, key, &[(":status", "200")], true);
    client.sync(&mut world);
    assert_eq!(client.field(0, ":status"), Some("200"));
    assert!(world.is_closed(worker.conn), "nothing runs on it any more");
    let mut worker = Peer::dial_back(&mut world, &fresh);
    worker.sync(&mut world);
    assert_eq!(worker.heads().len(), 1);
}

/// Calls that wait behind a GOAWAY and find no other session are refused; the running one goes on.
#[test]
fn a_workers_goaway_refuses_those_that_wait_if_there_can_be_no_other_session() {
    let mut world = World::with("[limits]\nattachments = 1\n[session]\npark = \"never\"");
    let mut client = Peer::client(&mut world);
    client.request(&mut world, &[], true);
    let mut worker = Peer::worker_with(&mut world, |limits| limits.max_concurrent_streams = 1);
    worker.sync(&mut world);
    for _ in 0..2 {
        client.request(&mut world, &[], true);
    }
    worker.sync(&mut world);
    assert_eq!(worker.heads().len(), 1, "one at a time");
    worker.goaway(&mut world, 1);
    client.sync(&mut world);
    assert_eq!(client.field(0, "grpc-status"), Some("8"));
    assert_eq!(client.field(1, "grpc-status"), Some("8"));
    let key = worker.key(0);
    worker.head(&mut world, key, &[(":status", "200")], true);
    client.sync(&mut world);
    assert_eq!(client.field(2, ":status"), Some("200"));
    assert!(world.is_closed(worker.conn), "nothing runs on it any more");
    world.end(client.conn, End::Fin);
    assert!(world.shard.is_empty(), "{:?}", world.shard);
}

/// A client with one call on a worker that serves one at a time.
fn with_a_single_stream(world: &mut World) -> (Peer, Peer) {
    let mut client = Peer::client(world);
    client.request(world, &[], true);
    let mut worker = Peer::worker_with(world, |limits| limits.max_concurrent_streams = 1);
    worker.sync(world);
    (client, worker)
}

#[test]
fn those_who_wait_at_a_goaway_are_refused_when_nobody_else_may_come() {
    let mut world = World::new();
    let (mut client, mut worker) = with_a_single_stream(&mut world);
    client.request(&mut world, &[], true);
    client.request(&mut world, &[], true);
    world.deliver(ringway::message::ShardMessage::Drain { max: Duration::from_secs(60) });
    worker.goaway(&mut world, 1);
    client.sync(&mut world);
    assert_eq!((status(&client, 0).0, status(&client, 1).0), (Some("14"), Some("14")));
    let key = worker.key(0);
    worker.head(&mut world, key, &[(":status", "200")], true);
    client.sync(&mut world);
    assert_eq!(client.field(2, ":status"), Some("200"), "what runs is finished");
    world.pass(Duration::from_secs(2));
    assert!(world.shard.is_empty());
}

#[test]
fn those_who_wait_at_a_goaway_and_name_their_session_get_another_tunnel_of_it() {
    let mut world = World::with("[session]\npark = \"never\"");
    let (_other, _there, id) = attached(&mut world);
    let mut client = Peer::client(&mut world);
    client.request(&mut world, &[("nvcf-reqid", &id)], true);
    let work = poll(&mut world, &[&id]).expect("one more tunnel");
    let mut worker =
        Peer::dial_back_with(&mut world, &work, |limits| limits.max_concurrent_streams = 1);
    worker.sync(&mut world);
    client.request(&mut world, &[("nvcf-reqid", &id)], true);
    client.request(&mut world, &[], true);
    worker.goaway(&mut world, 1);
    let again = poll(&mut world, &[&id]).expect("and another one");
    assert_eq!((again.kind.as_str(), &again.request_id), ("reconnect", &id));
    // Whoever named none uses what the connection uses now.
    let mut fresh = Peer::dial_back(&mut world, &again);
    fresh.sync(&mut world);
    assert_eq!(fresh.heads().len(), 2);
    assert!(poll(&mut world, &[]).is_none(), "nobody asked for a new session");
}

#[test]
fn dispatches_of_one_connection_are_a_burst_and_then_a_rate() {
    let mut world = World::new();
    let mut client = Peer::client(&mut world);
    let give_up = |world: &mut World, client: &mut Peer| {
        let call = client.request(world, &[], true);
        client.reset(world, call, ErrorCode::Cancel);
    };
    for _ in 0..256 {
        give_up(&mut world, &mut client);
    }
    client.request(&mut world, &[], true);
    client.request(&mut world, &[("content-type", "text/plain")], true);
    client.sync(&mut world);
    assert_eq!(client.field(0, "grpc-status"), Some("8"));
    assert_eq!(client.field(1, ":status"), Some("429"));
    // 100 a second come back; another connection was never concerned.
    Peer::client(&mut world).request(&mut world, &[], true);
    assert!(poll(&mut world, &[]).is_some());
    world.pass(Duration::from_millis(100));
    client.request(&mut world, &[], true);
    assert!(poll(&mut world, &[]).is_some());
}
