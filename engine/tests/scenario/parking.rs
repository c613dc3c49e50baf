//! Tunnels that outlive their clients, on one core.

use std::time::Duration;

use ringway::message::{ControlMessage, ShardMessage, Snapshot};
use ringway::metrics::{CloseReason, ResumeOutcome, ResumeWay};
use ringway::net::{End, Listener};
use ringway_proto::h2::ErrorCode;

use crate::http1::{Rig, request};
use crate::peer::{Peer, Seen, poll};
use crate::world::{SETTLES, World};

const STREAMING: &str = "kind = \"streaming\"";

/// A client with a session whose worker has answered the first call.
pub(crate) fn attached(world: &mut World) -> (Peer, Peer, String) {
    let mut client = Peer::client(world);
    client.request(world, &[], true);
    let mut worker = Peer::worker(world);
    answer(world, &mut worker, 0);
    client.sync(world);
    let id = client.field(0, "nvcf-reqid").expect("an id").to_owned();
    (client, worker, id)
}

/// The worker answers its `n`th request.
pub(crate) fn answer(world: &mut World, worker: &mut Peer, n: usize) {
    worker.sync(world);
    let key = worker.key(n);
    worker.head(world, key, &[(":status", "200"), ("grpc-status", "0")], true);
}

/// A client that comes back, with the answer to its call.
pub(crate) fn back(world: &mut World, worker: &mut Peer, id: &str, n: usize) -> Peer {
    let mut client = Peer::client(world);
    client.request(world, &[("nvcf-reqid", id)], true);
    answer(world, worker, n);
    client.sync(world);
    assert_eq!(client.field(0, ":status"), Some("200"));
    client
}

/// The answer that a client gets at once when it names the session.
fn asked(world: &mut World, more: &[(&str, &str)]) -> String {
    let mut client = Peer::client(world);
    client.request(world, more, true);
    client.sync(world);
    let code = client.field(0, "grpc-status").unwrap_or_default().to_owned();
    world.end(client.conn, End::Fin);
    code
}

fn closed_by(world: &World, reason: CloseReason) -> u64 {
    world.shard.metrics().worker_connections_closed[reason.index()]
}

pub(crate) fn snapshot(world: &mut World) -> Snapshot {
    world.deliver(ShardMessage::Snapshot { ticket: 1 });
    match world.messages().pop() {
        Some(ControlMessage::Snapshot { snapshot, .. }) => *snapshot,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_client_that_was_lost_finds_its_tunnel_again() {
    let mut world = World::new();
    let (client, mut worker, id) = attached(&mut world);
    let before = world.shard.metrics().clone();
    world.end(client.conn, End::Reset);
    assert!(!world.is_closed(worker.conn));
    let shown = snapshot(&mut world);
    let rows = world.sessions();
    assert_eq!((rows.len(), rows[0].state), (1, "parked"));
    assert_eq!(shown.metrics.resumes.parked, 1);
    world.pass(Duration::from_secs(20));
    let client = back(&mut world, &mut worker, &id, 1);
    assert_eq!(client.field(0, "nvcf-reqid"), Some(&*id));
    assert_eq!(client.field(0, "set-cookie"), Some(&*format!("nvcf-request-id={id}")));
    // No dispatch, no CONNECT.
    assert!(poll(&mut world, &[&id]).is_none());
    let now = world.shard.metrics();
    assert_eq!(now.tokens_issued, before.tokens_issued);
    assert_eq!(now.worker_connections_opened, before.worker_connections_opened);
    assert_eq!(now.resumes.of(ResumeWay::Memory, ResumeOutcome::Ok), 1);
    // The window would be over, but the tunnel is in use.
    world.pass(Duration::from_secs(20));
    assert!(!world.is_closed(worker.conn));
    let shown = snapshot(&mut world);
    let rows = world.sessions();
    assert_eq!((rows[0].state, shown.metrics.resumes.parked), ("active", 0));
    // A client that ends in order takes its worker along.
    world.end(client.conn, End::Fin);
    assert!(world.is_closed(worker.conn) && world.shard.is_empty());
}

#[test]
fn a_session_is_come_back_to_again_and_again() {
    let mut world = World::new();
    let (mut client, mut worker, id) = attached(&mut world);
    for n in 1..6 {
        // Calls that repeat go out as they went before, and so do their answers.
        for m in 0..3 {
            client.request(&mut world, &[("nvcf-reqid", &id)], true);
            answer(&mut world, &mut worker, (n - 1) * 5 + m + 1);
            client.sync(&mut world);
        }
        assert_eq!(client.heads().len(), 4);
        let reset = client.request(&mut world, &[], false);
        world.end(client.conn, End::Reset);
        worker.sync(&mut world);
        let seen = Seen::Reset { stream: worker.key(n * 5 - 1).id(), code: ErrorCode::Cancel };
        assert!(worker.seen.contains(&seen), "{reset:?} {:?}", worker.seen);
        client = back(&mut world, &mut worker, &id, n * 5);
    }
    assert_eq!(world.shard.metrics().tokens_issued, 1);
    world.end(client.conn, End::Fin);
    assert!(world.shard.is_empty());
}

/// An answer that was encoded for the lost client cannot be repeated to the next one. Their HPACK
/// tables differ, even if both have changed equally often.
#[test]
fn answers_that_repeat_are_written_anew_for_another_client() {
    // Answers of our own come first: they bring the tables to the same count by other fields.
    let plain = ("content-type", "text/plain");
    let own: [&[(&str, &str)]; 5] = [
        &[],
        &[("nvcf-reqid", "6f9619ff-8b86-4011-b42d-00c04fc964ff"), plain],
        &[("function-id", ""), plain],
        &[("authorization", ""), plain],
        &[("function-id", "")],
    ];
    for own in own {
        let mut world = World::new();
        let (mut client, mut worker, id) = attached(&mut world);
        let mut n = 1;
        let mut serve = |world: &mut World, client: &mut Peer, worker: &mut Peer, name, value| {
            client.request(world, &[("nvcf-reqid", &id)], true);
            worker.sync(world);
            let key = worker.key(n);
            worker.head(world, key, &[(":status", "200"), (name, value)], true);
            client.sync(world);
            n += 1;
            let last = client.heads().len() - 1;
            assert_eq!(client.field(last, name), Some(value), "call {n}, after {own:?}");
        };
        for _ in 0..4 {
            serve(&mut world, &mut client, &mut worker, "x-b", "two");
            serve(&mut world, &mut client, &mut worker, "x-a", "one");
        }
        world.end(client.conn, End::Reset);
        let mut client = Peer::client(&mut world);
        if !own.is_empty() {
            client.request(&mut world, own, true);
        }
        for _ in 0..4 {
            serve(&mut world, &mut client, &mut worker, "x-b", "two");
            serve(&mut world, &mut client, &mut worker, "x-a", "one");
        }
        world.end(client.conn, End::Fin);
        assert!(world.shard.is_empty());
    }
}

/// The kinds of functions and ends, and what is kept.
#[test]
fn a_tunnel_parks_after_the_ends_that_its_setting_says() {
    let unclean = "[session]\npark = \"unclean\"";
    let always = "[session]\npark = \"always\"";
    let never = "[session]\npark = \"never\"";
    #[derive(Clone, Copy, Debug)]
    enum How {
        Ended(End),
        Open(End),
        Goaway(End),
    }
    use How::{Ended, Goaway, Open};
    let cases = [
        ("", Ended(End::Reset), true),
        ("", Ended(End::Timeout), true),
        ("", Ended(End::Failed), true),
        ("", Ended(End::Fin), false),
        ("", Open(End::Fin), true),
        ("", Open(End::Reset), true),
        ("", Goaway(End::Fin), false),
        ("", Goaway(End::Reset), false),
        (STREAMING, Ended(End::Fin), true),
        (STREAMING, Goaway(End::Fin), false),
        (STREAMING, Goaway(End::Reset), false),
        (unclean, Ended(End::Fin), true),
        (unclean, Goaway(End::Fin), false),
        (always, Ended(End::Fin), true),
        (always, Goaway(End::Fin), true),
        (never, Ended(End::Reset), false),
        (never, Open(End::Fin), false),
    ];
    for (more, how, kept) in cases {
        let mut world = World::with(more);
        let (mut client, mut worker, id) = attached(&mut world);
        let end = match how {
            Ended(end) => end,
            Open(end) => {
                client.request(&mut world, &[], false);
                end
            }
            Goaway(end) => {
                client.goaway(&mut world, 0);
                end
            }
        };
        world.end(client.conn, end);
        assert_eq!(world.is_closed(worker.conn), !kept, "{more} {how:?}");
        assert_eq!(world.shard.is_empty(), !kept);
        if kept {
            worker.sync(&mut world);
            let n = worker.heads().len();
            let client = back(&mut world, &mut worker, &id, n);
            client_leaves(&mut world, client);
        }
        assert!(world.shard.is_empty(), "{more} {how:?}");
    }
}

/// In a way that no setting but "always" takes for a loss.
fn client_leaves(world: &mut World, mut client: Peer) {
    client.goaway(world, 0);
    world.end(client.conn, End::Fin);
    world.pass(Duration::from_secs(31));
}

#[test]
fn a_client_that_is_sent_away_leaves_nothing_behind() {
    // The client breaks HTTP/2.
    let mut world = World::with("[session]\npark = \"always\"");
    let (client, worker, _) = attached(&mut world);
    world.send(client.conn, &[0, 0, 1, 0, 0, 0, 0, 0, 0, 1]);
    assert!(world.is_closed(client.conn) && world.is_closed(worker.conn));
    assert!(world.shard.is_empty());
    // The gateway ends: nobody may come back.
    let mut world = World::new();
    let (client, worker, _) = attached(&mut world);
    world.end(client.conn, End::Reset);
    let (other, busy, _) = attached(&mut world);
    world.deliver(ShardMessage::Drain { max: Duration::from_secs(60) });
    assert!(world.is_closed(worker.conn) && !world.is_closed(busy.conn));
    world.end(other.conn, End::Reset);
    assert!(world.is_closed(busy.conn));
    world.pass(Duration::from_secs(1));
    assert!(world.shard.is_empty() && closed_by(&world, CloseReason::Shutdown) == 1);
}

#[test]
fn the_window_ends() {
    let mut world = World::new();
    let (client, mut worker, id) = attached(&mut world);
    world.end(client.conn, End::Reset);
    world.pass(Duration::from_millis(29_900));
    assert!(!world.is_closed(worker.conn));
    worker.sync(&mut world);
    world.pass(Duration::from_millis(200));
    assert!(world.is_closed(worker.conn) && world.shard.is_empty());
    assert_eq!(closed_by(&world, CloseReason::ClientClosed), 1);
    assert_eq!(asked(&mut world, &[("nvcf-reqid", &id)]), "5");
    let resumes = &world.shard.metrics().resumes;
    assert_eq!(resumes.of(ResumeWay::None, ResumeOutcome::NotFound), 1);
    assert_eq!(world.sessions()[0].close_reason, Some("client_closed"));
}

/// Input that came is dealt with before timers that are due.
#[test]
fn who_comes_in_the_turn_in_which_the_window_ends_is_in_time() {
    for late in [Duration::ZERO, Duration::from_millis(5)] {
        let mut world = World::new();
        let (client, mut worker, id) = attached(&mut world);
        let mut next = Peer::client(&mut world);
        world.end(client.conn, End::Reset);
        world.pass(Duration::from_millis(29_999));
        worker.sync(&mut world);
        world.net.now = world.net.now + Duration::from_millis(1) + late;
        next.request(&mut world, &[("nvcf-reqid", &id)], true);
        assert!(!world.is_closed(worker.conn));
        answer(&mut world, &mut worker, 1);
        next.sync(&mut world);
        assert_eq!(next.field(0, ":status"), Some("200"));
        world.end(next.conn, End::Fin);
        assert!(world.shard.is_empty());
    }
}

#[test]
fn of_two_who_come_at_once_one_gets_the_tunnel_and_the_other_one_more() {
    let mut world = World::new();
    let (client, mut worker, id) = attached(&mut world);
    world.end(client.conn, End::Reset);
    let mut both = [Peer::client(&mut world), Peer::client(&mut world)];
    for client in &mut both {
        client.request(&mut world, &[("nvcf-reqid", &id)], true);
    }
    let work = poll(&mut world, &[&id]).expect("the second one's");
    assert_eq!(work.kind, "reconnect");
    let mut second = Peer::dial_back(&mut world, &work);
    answer(&mut world, &mut worker, 1);
    answer(&mut world, &mut second, 0);
    for client in &mut both {
        client.sync(&mut world);
        assert_eq!(client.field(0, "nvcf-reqid"), Some(&*id));
    }
    let resumes = &world.shard.metrics().resumes;
    assert_eq!(resumes.of(ResumeWay::Memory, ResumeOutcome::Ok), 1);
    assert_eq!(resumes.of(ResumeWay::Reconnect, ResumeOutcome::Ok), 1);
    // Only the session's last tunnel parks.
    world.end(both[0].conn, End::Reset);
    world.pass(SETTLES);
    assert!(world.is_closed(worker.conn) && !world.is_closed(second.conn));
    world.end(both[1].conn, End::Reset);
    assert!(!world.is_closed(second.conn));
    let client = back(&mut world, &mut second, &id, 1);
    world.end(client.conn, End::Fin);
    assert!(world.shard.is_empty());
}

/// The cable was pulled: the old connection looks alive, and is found dead later.
#[test]
fn who_comes_back_before_the_loss_is_seen_gets_one_more_tunnel() {
    for before in [true, false] {
        let mut world = World::new();
        let (client, worker, id) = attached(&mut world);
        let mut next = Peer::client(&mut world);
        next.request(&mut world, &[("nvcf-reqid", &id)], true);
        let work = poll(&mut world, &[&id]).expect("one more tunnel");
        if before {
            // The tunnel parks while the other one is on its way. It closes when the other one has
            // been there for a moment. A worker ends a session with its last tunnel, and may see
            // the end of the first tunnel before it has counted the second.
            world.end(client.conn, End::Timeout);
            assert!(!world.is_closed(worker.conn));
        }
        let mut second = Peer::dial_back(&mut world, &work);
        world.pass(SETTLES / 2);
        assert!(!world.is_closed(worker.conn));
        world.pass(SETTLES / 2);
        assert_eq!(world.is_closed(worker.conn), before);
        answer(&mut world, &mut second, 0);
        next.sync(&mut world);
        assert_eq!(next.field(0, ":status"), Some("200"));
        if !before {
            world.end(client.conn, End::Timeout);
            world.pass(SETTLES);
            assert!(world.is_closed(worker.conn));
        }
        world.end(next.conn, End::Fin);
        assert!(world.is_closed(second.conn) && world.shard.is_empty());
    }
}

#[test]
fn a_worker_that_leaves_a_parked_tunnel_ends_the_session() {
    type Leave = fn(&mut World, &mut Peer);
    let ways: [Leave; 3] = [
        |world, worker| world.end(worker.conn, End::Fin),
        |world, worker| world.end(worker.conn, End::Reset),
        // The worker breaks HTTP/2.
        |world, worker| world.send(worker.conn, &[0, 0, 1, 0, 0, 0, 0, 0, 0, 1]),
    ];
    for leave in ways {
        let mut world = World::new();
        let (client, mut worker, id) = attached(&mut world);
        world.end(client.conn, End::Reset);
        leave(&mut world, &mut worker);
        assert!(world.shard.is_empty(), "{:?}", world.shard);
        assert_eq!(asked(&mut world, &[("nvcf-reqid", &id)]), "5");
        assert_eq!(closed_by(&world, CloseReason::WorkerClosed), 1);
    }
}

#[test]
fn a_parked_session_is_its_tenants_and_an_id_of_another_process_is_nobodys() {
    let mut world = World::new();
    let (client, mut worker, id) = attached(&mut world);
    world.end(client.conn, End::Reset);
    let named = ("nvcf-reqid", &*id);
    assert_eq!(asked(&mut world, &[named, ("authorization", "Bearer other-key")]), "13");
    assert_eq!(asked(&mut world, &[named, ("authorization", "Bearer nobody")]), "16");
    let earlier = format!("{}{}", if id.starts_with('0') { "1" } else { "0" }, &id[1..]);
    assert_eq!(asked(&mut world, &[("nvcf-reqid", &earlier)]), "5");
    assert!(!world.is_closed(worker.conn));
    let resumes = &world.shard.metrics().resumes;
    assert_eq!(resumes.of(ResumeWay::None, ResumeOutcome::Refused), 1);
    // Another key of its tenant.
    let mut client = Peer::client(&mut world);
    client.request(&mut world, &[named, ("authorization", "Bearer dev-key-2")], true);
    answer(&mut world, &mut worker, 1);
    client.sync(&mut world);
    assert_eq!(client.field(0, ":status"), Some("200"));
    world.end(client.conn, End::Fin);
    assert!(world.shard.is_empty());
}

#[test]
fn what_comes_late_on_cancelled_streams_is_read_and_credited() {
    let mut world = World::new();
    let (mut client, mut worker, id) = attached(&mut world);
    for _ in 0..20 {
        client.request(&mut world, &[], false);
    }
    worker.sync(&mut world);
    world.end(client.conn, End::Reset);
    // The worker has not heard yet: heads that fill its encoder's table, and more DATA than a
    // connection's window would hold if it were not given back.
    for n in 1..=20 {
        let (key, value) = (worker.key(n), format!("value-{n}"));
        worker.head(&mut world, key, &[(":status", "200"), ("x-late", &value)], false);
        for _ in 0..10 {
            worker.data(&mut world, key, &[7; 6000], false);
        }
    }
    worker.sync(&mut world);
    assert!(!world.is_closed(worker.conn));
    let client = {
        let mut client = Peer::client(&mut world);
        client.request(&mut world, &[("nvcf-reqid", &id)], true);
        worker.sync(&mut world);
        let key = worker.key(21);
        worker.head(&mut world, key, &[(":status", "200"), ("x-late", "value-20")], false);
        worker.data(&mut world, key, b"in time", true);
        client.sync(&mut world);
        client
    };
    assert_eq!(client.field(0, "x-late"), Some("value-20"));
    assert_eq!(client.body(1), (b"in time".to_vec(), true));
    world.end(client.conn, End::Fin);
    assert!(world.shard.is_empty());
    assert_eq!(world.net.pool.chunks_live(), 0);
}

#[test]
fn requests_that_waited_for_a_stream_go_with_their_client() {
    let mut world = World::new();
    let mut client = Peer::client(&mut world);
    client.request(&mut world, &[], true);
    let mut worker = Peer::worker_with(&mut world, |limits| limits.max_concurrent_streams = 1);
    worker.sync(&mut world);
    for _ in 0..5 {
        client.request(&mut world, &[], true);
    }
    world.end(client.conn, End::Reset);
    worker.sync(&mut world);
    assert_eq!(worker.heads().len(), 1, "nobody waits for them");
    let id = worker.field(0, "nvcf-reqid").expect("an id").to_owned();
    let client = back(&mut world, &mut worker, &id, 1);
    world.end(client.conn, End::Fin);
    assert!(world.shard.is_empty());
}

#[test]
fn a_parked_tunnel_is_kept_alive_and_a_silent_one_is_given_up() {
    let keep = "[session]\npark_window = \"1h\"\n[keepalive]\ntunnel_ping = \"10s\"";
    let mut world = World::with(keep);
    let (client, mut worker, id) = attached(&mut world);
    world.end(client.conn, End::Reset);
    // gRPC's servers allow these PINGs without a stream: see `quiet.rs`.
    for silent in [11, 305, 305] {
        world.pass(Duration::from_secs(silent));
        let asked = world.take(worker.conn);
        assert_eq!(asked.get(3), Some(&6), "a PING: {asked:?}");
        let mut pong = asked.clone();
        pong[4] = 1;
        world.send(worker.conn, &pong);
    }
    let client = back(&mut world, &mut worker, &id, 1);
    world.end(client.conn, End::Reset);
    world.pass(Duration::from_secs(26));
    assert!(world.is_closed(worker.conn) && world.shard.is_empty());
}

#[test]
fn as_many_park_as_may_and_the_oldest_goes() {
    let bounds = "[limits]\nparked_tunnels = 3\nparked_per_tenant = 2";
    let mut world = World::with(bounds);
    let park = |world: &mut World, key: &str| {
        let mut client = Peer::client(world);
        client.request(world, &[("authorization", key)], true);
        let mut worker = Peer::worker(world);
        answer(world, &mut worker, 0);
        world.end(client.conn, End::Reset);
        worker.conn
    };
    let (dev, other) = ("Bearer dev-key", "Bearer other-key");
    let first = [park(&mut world, dev), park(&mut world, other), park(&mut world, dev)];
    let third = park(&mut world, dev);
    let closed = |world: &World| first.map(|conn| world.is_closed(conn));
    assert_eq!(closed(&world), [true, false, false], "the tenant's oldest");
    let fourth = park(&mut world, other);
    assert_eq!(closed(&world), [true, true, false], "the core's oldest");
    assert!(!world.is_closed(third) && !world.is_closed(fourth));
    assert_eq!(closed_by(&world, CloseReason::CapacityReached), 2);
    world.pass(Duration::from_secs(31));
    assert!(world.shard.is_empty());
}

#[test]
fn a_parked_session_gives_way_to_a_new_one_that_has_waited() {
    let mut world = World::new();
    let (first, mut old, id) = attached(&mut world);
    world.end(first.conn, End::Reset);
    world.pass(Duration::from_secs(1));
    let (second, young, _) = attached(&mut world);
    world.end(second.conn, End::Reset);
    let mut waits = [Peer::client(&mut world), Peer::client(&mut world)];
    waits[0].request(&mut world, &[], true);
    world.pass(Duration::from_millis(1_500));
    waits[1].request(&mut world, &[], true);
    assert!(!world.is_closed(old.conn));
    world.pass(Duration::from_millis(600));
    assert!(world.is_closed(old.conn) && !world.is_closed(young.conn), "the oldest, and only it");
    old.sync(&mut world);
    assert_eq!(asked(&mut world, &[("nvcf-reqid", &id)]), "5");
    assert!(poll(&mut world, &[]).is_some(), "its worker takes the first one's work");
    // The second one waits on, and has its own time.
    world.pass(Duration::from_millis(1_300));
    assert!(!world.is_closed(young.conn));
    world.pass(Duration::from_millis(200));
    assert!(world.is_closed(young.conn));
    assert_eq!(world.shard.metrics().resumes.yields, 2);
    for client in waits {
        world.end(client.conn, End::Fin);
    }
    assert!(world.shard.is_empty());
}

#[test]
fn a_session_that_is_lost_while_others_wait_for_long_gives_way_at_once() {
    let mut world = World::new();
    let (client, worker, _) = attached(&mut world);
    let mut waits = Peer::client(&mut world);
    waits.request(&mut world, &[], true);
    world.pass(Duration::from_secs(5));
    world.end(client.conn, End::Reset);
    assert!(world.is_closed(worker.conn));
    assert_eq!(world.shard.metrics().resumes.yields, 1);
    world.end(waits.conn, End::Fin);
    assert!(world.shard.is_empty());
}

#[test]
fn nobody_gives_way_to_who_is_served() {
    let mut world = World::new();
    let (client, worker, _) = attached(&mut world);
    world.end(client.conn, End::Reset);
    let mut served = Peer::client(&mut world);
    served.request(&mut world, &[], true);
    world.pass(Duration::from_secs(1));
    let mut other = Peer::worker(&mut world);
    world.pass(Duration::from_secs(5));
    assert!(!world.is_closed(worker.conn));
    answer(&mut world, &mut other, 0);
    world.end(served.conn, End::Fin);
    world.pass(Duration::from_secs(30));
    assert!(world.shard.is_empty());
    assert_eq!(world.shard.metrics().resumes.yields, 0);
}

#[test]
fn an_operator_ends_a_session_in_any_state() {
    let end = |world: &mut World, id: &str| {
        world.deliver(ShardMessage::End { id: id.parse().expect("an id") });
    };
    let mut world = World::new();
    let (client, worker, id) = attached(&mut world);
    world.end(client.conn, End::Reset);
    end(&mut world, &id);
    assert!(world.is_closed(worker.conn) && world.shard.is_empty(), "parked");
    let (mut client, worker, id) = attached(&mut world);
    client.request(&mut world, &[], true);
    end(&mut world, &id);
    assert!(world.is_closed(worker.conn) && !world.is_closed(client.conn), "in use");
    client.sync(&mut world);
    assert_eq!(client.field(1, ":status"), Some("502"));
    let work = {
        client.request(&mut world, &[], true);
        poll(&mut world, &[]).expect("work")
    };
    end(&mut world, &work.request_id);
    client.sync(&mut world);
    assert_eq!(client.field(2, "grpc-status"), Some("5"), "waiting");
    assert_eq!(closed_by(&world, CloseReason::Deleted), 3);
    end(&mut world, &id);
    world.end(client.conn, End::Fin);
    assert!(world.shard.is_empty());
}

// ---- HTTP/1 ----

#[test]
fn an_idle_http1_tunnel_parks_as_it_is() {
    let mut rig = Rig::of(World::with(STREAMING));
    rig.warm_up();
    rig.world.end(rig.client, End::Fin);
    assert!(!rig.tunnel_is_closed());
    rig.client = rig.world.connect(Listener::Client);
    let named = format!("nvcf-reqid: {}\r\n", rig.id);
    rig.ask(&request("GET /again HTTP/1.1", &named, ""));
    assert!(rig.at_worker().starts_with("GET /again HTTP/1.1\r\n"));
    rig.answer("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
    let said = rig.at_client();
    assert!(said.contains("set-cookie: nvcf-request-id=") && said.ends_with("ok"), "{said}");
    // A client that says that this was all.
    rig.ask(&request("GET /last HTTP/1.1", "Connection: close\r\n", ""));
    rig.answer("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
    assert!(rig.tunnel_is_closed());
    rig.nothing_is_left();
}

/// The worker is asked for another tunnel. When that tunnel has come, the parked one closes.
#[test]
fn a_client_that_speaks_another_protocol_than_the_parked_tunnel_gets_its_own() {
    let mut rig = Rig::new();
    rig.warm_up();
    rig.world.end(rig.client, End::Reset);
    let mut client = Peer::client(&mut rig.world);
    client.request(&mut rig.world, &[("nvcf-reqid", &rig.id)], true);
    let work = poll(&mut rig.world, &[&rig.id]).expect("one more tunnel");
    assert!(!rig.tunnel_is_closed());
    let mut tunnel = Peer::dial_back(&mut rig.world, &work);
    answer(&mut rig.world, &mut tunnel, 0);
    client.sync(&mut rig.world);
    assert_eq!(client.field(0, ":status"), Some("200"));
    rig.world.pass(SETTLES);
    assert!(rig.tunnel_is_closed());
    rig.world.end(client.conn, End::Fin);
    rig.nothing_is_left();
}

#[test]
fn what_a_worker_says_on_a_parked_http1_tunnel_ends_it() {
    let mut rig = Rig::new();
    rig.warm_up();
    rig.world.end(rig.client, End::Reset);
    assert!(!rig.tunnel_is_closed());
    rig.answer("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n");
    assert!(rig.tunnel_is_closed());
    rig.nothing_is_left();
}
