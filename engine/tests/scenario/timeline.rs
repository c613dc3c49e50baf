//! The timelines: what is kept of a session, by which core, and what it comes to in words.

use std::time::Duration;

use ringway::message::{ControlMessage, ShardMessage};
use ringway::metrics::Limit;
use ringway::net::End;
use ringway::timeline::{Event, IdBegin, Part, Party, Timeline};
use ringway_proto::fields::Field;
use ringway_proto::h2::ErrorCode;

use crate::cores::{attached, client, dispatch_home, leave, none_of, serve};
use crate::machine::Machine;
use crate::parking;
use crate::peer::{Peer, poll};
use crate::world::{FUNCTION, World};

fn parts(world: &mut World, id: &str) -> Vec<Part> {
    world.messages();
    let wanted = IdBegin::parse(id).expect("an id");
    world.deliver(ShardMessage::Timeline { ticket: 5, wanted });
    match world.messages().pop() {
        Some(ControlMessage::Timeline { ticket: 5, parts }) => parts,
        other => panic!("{other:?}"),
    }
}

pub(crate) fn timeline(world: &mut World, id: &str) -> Timeline {
    Timeline::of(&parts(world, id))
}

/// The whole life, as the admin port puts it together.
fn of_all(m: &mut Machine, id: &str) -> Timeline {
    let all: Vec<Part> = (0..m.cores()).flat_map(|core| parts(m.at(core), id)).collect();
    Timeline::of(&all)
}

fn names(timeline: &Timeline) -> Vec<&'static str> {
    timeline.events.iter().map(|(_, entry)| entry.event.name()).collect()
}

const BEGIN: [&str; 7] =
    ["accepted", "authorised", "asked", "handed_out", "connected", "request_sent", "answer_begun"];

#[test]
fn a_life_has_its_edges_in_order_and_they_stay_for_a_while() {
    let mut world = World::new();
    let mut client = Peer::client(&mut world);
    world.pass(Duration::from_millis(500));
    client.request(&mut world, &[], true);
    world.pass(Duration::from_millis(10));
    let work = poll(&mut world, &[]).expect("work");
    world.pass(Duration::from_millis(2));
    let mut worker = Peer::dial_back(&mut world, &work);
    world.pass(Duration::from_millis(30));
    parking::answer(&mut world, &mut worker, 0);
    client.sync(&mut world);
    let id = work.request_id;
    let told = timeline(&mut world, &id);
    assert_eq!(names(&told), BEGIN);
    let line = "runs on core 0: the worker came after 12 ms, the first byte 30 ms later";
    assert_eq!(told.verdict(false), line);
    let events = told.to_json();
    assert_eq!(events[0]["client"], "127.0.0.1:40001");
    assert_eq!(events[4]["tokenAgeMs"], 12.0);
    assert_eq!((&events[1]["afterMs"], &events[6]["afterMs"]), (&500.0.into(), &542.0.into()));
    // The world began a second after its origin, which is a second after 1970.
    assert_eq!(events[0]["at"], "1970-01-01T00:00:02.000000Z");
    world.pass(Duration::from_secs(4));
    world.end(worker.conn, End::Reset);
    let told = timeline(&mut world, &id[..8]);
    assert_eq!(names(&told)[7..], ["closed"]);
    let line = "ended by the worker: connection reset, 4 s after the first byte";
    assert_eq!(told.verdict(true), line);
    world.end(client.conn, End::Fin);
    assert!(world.shard.is_empty(), "what is recorded is in nobody's way");
    world.pass(Duration::from_secs(290));
    assert_eq!(timeline(&mut world, &id).events.len(), 8);
    world.pass(Duration::from_secs(20));
    assert!(parts(&mut world, &id).is_empty(), "its time is over");
}

#[test]
fn calls_leave_no_events() {
    let mut world = World::new();
    let (mut client, mut worker, id) = parking::attached(&mut world);
    for n in 1..200 {
        let stream = client.request(&mut world, &[], false);
        client.data(&mut world, stream, &[7; 20_000], true);
        parking::answer(&mut world, &mut worker, n);
        client.sync(&mut world);
    }
    assert_eq!(client.heads().len(), 200);
    assert_eq!(names(&timeline(&mut world, &id)), BEGIN);
}

#[test]
fn nobody_came_and_who_left() {
    let mut world = World::new();
    let mut client = Peer::client(&mut world);
    client.request(&mut world, &[], true);
    let id = poll(&mut world, &[]).expect("work").request_id;
    world.pass(Duration::from_secs(31));
    let told = timeline(&mut world, &id);
    assert_eq!(told.verdict(true), "a worker took it, and did not dial back within 30 s");
    let mut world = World::new();
    let (client, _worker, id) = parking::attached(&mut world);
    world.pass(Duration::from_millis(3_100));
    world.end(client.conn, End::Fin);
    let told = timeline(&mut world, &id);
    assert_eq!(told.verdict(true), "ended by the client, 3.1 s after the first byte");
    assert_eq!(names(&told)[7..], ["client_ended", "closed"]);
}

#[test]
fn lost_kept_and_back() {
    let mut world = World::new();
    let (client, mut worker, id) = parking::attached(&mut world);
    world.end(client.conn, End::Reset);
    let told = timeline(&mut world, &id);
    assert_eq!(names(&told)[7..], ["client_ended", "parked"]);
    world.pass(Duration::from_millis(3_100));
    let client = parking::back(&mut world, &mut worker, &id, 1);
    assert_eq!(client.field(0, ":status"), Some("200"));
    let told = timeline(&mut world, &id);
    let line = told.verdict(false);
    assert!(line.starts_with("client reset its connection 00:00:0"), "{line}");
    assert!(line.ends_with(", back after 3.1 s on core 0, same worker"), "{line}");
    world.end(client.conn, End::Reset);
    world.pass(Duration::from_secs(31));
    let line = timeline(&mut world, &id).verdict(true);
    assert!(line.ends_with(" and did not come back within 30 s"), "{line}");
}

#[test]
fn a_life_on_several_cores_is_put_together() {
    let mut m = Machine::new(3);
    let home = dispatch_home(&mut m);
    let (own, other) = (none_of(&m, &[home]), home);
    let (mut first, call) = client(&mut m, own, &[]);
    m.pass(Duration::from_millis(1));
    let work = m.poll(other, &[]).expect("work");
    m.pass(Duration::from_millis(1));
    let mut tunnel = m.dial(other, &work);
    m.pass(Duration::from_millis(1));
    serve(&mut m, &mut tunnel, 0);
    first.sync(m.at(own));
    assert!(!first.h2.is_open(call));
    let id = work.request_id;
    let told = of_all(&mut m, &id);
    let mut wanted = BEGIN.to_vec();
    wanted.insert(4, "connect_moved");
    assert_eq!(names(&told), wanted);
    let cores: Vec<u16> = told.events.iter().map(|(core, _)| *core).collect();
    assert_eq!(cores[3], other, "the poll was there");
    assert!(cores.iter().enumerate().all(|(at, core)| at == 3 || *core == own));
    // Another client comes back to it on a third core, by a second tunnel.
    let third = none_of(&m, &[own, other]);
    let (second, _) = client(&mut m, third, &[("nvcf-reqid", &id)]);
    let work = m.poll(third, &[&id]).expect("reconnect work");
    let mut tunnel = m.dial(third, &work);
    serve(&mut m, &mut tunnel, 0);
    let told = of_all(&mut m, &id);
    let there: Vec<_> = told.events.iter().filter(|(core, _)| *core == third).collect();
    let there: Vec<_> = there.iter().map(|(_, entry)| entry.event).collect();
    assert!(there.iter().any(|event| matches!(event, Event::Found { home, .. } if *home == own)));
    assert!(there.iter().any(|event| event.name() == "connected"));
    leave(&mut m, third, &second);
    leave(&mut m, own, &first);
    let told = of_all(&mut m, &id);
    assert_eq!(names(&told).iter().filter(|name| **name == "closed").count(), 2);
    m.assert_empty();
}

#[test]
fn a_tunnel_that_follows_its_client_is_followed() {
    let mut m = Machine::new(2);
    let (first, mut tunnel, id) = attached(&mut m, 0);
    let socket = m.at(0).socket(tunnel.peer.conn);
    m.at(0).end(first.conn, End::Reset);
    m.deliver();
    m.pass(Duration::from_millis(3_100));
    let (mut second, _) = client(&mut m, 1, &[("nvcf-reqid", &id)]);
    tunnel.core = 1;
    tunnel.peer.conn = m.at(1).conn_of(socket).expect("the tunnel is on its client's core");
    serve(&mut m, &mut tunnel, 1);
    second.sync(m.at(1));
    assert_eq!(second.field(0, ":status"), Some("200"));
    let told = of_all(&mut m, &id);
    let line = told.verdict(false);
    assert!(line.starts_with("client reset its connection 00:00:0"), "{line}");
    assert!(line.ends_with(", back after 3.1 s on core 1, same worker"), "{line}");
    let since: Vec<(u16, &str)> =
        told.events[7..].iter().map(|(core, entry)| (*core, entry.event.name())).collect();
    let wanted = [
        (0, "client_ended"),
        (0, "parked"),
        (1, "accepted"),
        (1, "authorised"),
        (0, "tunnel_left"),
        (1, "tunnel_moved"),
        (1, "resumed"),
        (1, "answer_begun"),
    ];
    let mut since = since;
    // Of one instant, the cores' order is theirs.
    since[2..7].sort_unstable_by_key(|event| wanted.iter().position(|other| other == event));
    assert_eq!(since, wanted);
    let part = &parts(m.at(1), &id)[0];
    assert!(part.facts.is_some(), "it is known whose it is");
    leave(&mut m, 1, &second);
    m.assert_empty();
}

#[test]
fn a_parked_worker_that_gives_way_says_so() {
    let mut world = World::new();
    let (client, _worker, id) = parking::attached(&mut world);
    world.end(client.conn, End::Reset);
    world.pass(Duration::from_millis(1_000));
    let mut other = Peer::client(&mut world);
    other.request(&mut world, &[], true);
    world.pass(Duration::from_millis(2_000));
    let told = timeline(&mut world, &id);
    let line = told.verdict(true);
    assert!(line.ends_with("; gave way to a new session 3 s later"), "{line}");
    assert_eq!(names(&told)[7..], ["client_ended", "parked", "yielded", "closed"]);
    // An operator is another matter.
    let id = poll(&mut world, &[]).expect("work").request_id;
    world.deliver(ShardMessage::End { id: id.parse().expect("an id") });
    let line = timeline(&mut world, &id).verdict(true);
    let by_us = "ended by the gateway: an operator ended the session, before the first byte";
    assert_eq!(line, by_us);
}

#[test]
fn pings_are_counted_and_not_kept() {
    let mut world = World::new();
    let (mut client, mut worker, id) = parking::attached(&mut world);
    client.request(&mut world, &[], true);
    worker.sync(&mut world);
    // The second and later ones as seldom as gRPC's servers want it.
    for (silent, took) in [(30, 3), (305, 1), (305, 7), (305, 2)] {
        world.pass(Duration::from_secs(silent));
        world.pass(Duration::from_millis(took));
        worker.sync(&mut world);
    }
    let told = timeline(&mut world, &id);
    assert_eq!(names(&told), BEGIN);
    let shown = told.to_json().pop().expect("the latest event");
    assert_eq!((&shown["event"], &shown["count"]), (&"pings".into(), &4.into()));
    let times = [&shown["minMs"], &shown["lastMs"], &shown["maxMs"]];
    assert_eq!(times.map(|time| time.as_f64().unwrap_or_default()), [1.0, 2.0, 7.0]);
}

#[test]
fn a_peer_that_took_nothing_for_a_while_has_stalled() {
    let mut world = World::new();
    let mut client = Peer::client_with(&mut world, |limits| limits.stream_window = 20_000);
    let stream = client.request(&mut world, &[], true);
    let mut worker = Peer::worker(&mut world);
    worker.sync(&mut world);
    let key = worker.key(0);
    worker.head(&mut world, key, &[(":status", "200")], false);
    worker.data(&mut world, key, &[1; 50_000], false);
    let id = poll_id(&worker);
    world.pass(Duration::from_millis(900));
    client.sync(&mut world);
    assert_eq!(names(&timeline(&mut world, &id)), BEGIN, "less than a second is nothing");
    for _ in 0..5 {
        client.sync(&mut world);
    }
    worker.sync(&mut world);
    worker.data(&mut world, key, &[1; 40_000], false);
    world.pass(Duration::from_millis(4_200));
    for _ in 0..30 {
        client.sync(&mut world);
    }
    assert!(!client.body(stream.id()).0.is_empty());
    let told = timeline(&mut world, &id);
    let stalls: Vec<Event> = told.events[7..].iter().map(|(_, entry)| entry.event).collect();
    let [Event::Stalled { side: Party::Client, took }] = stalls[..] else {
        panic!("one stall: {stalls:?}");
    };
    assert_eq!(took, Duration::from_millis(4_200));
}

/// The session that the worker's first request belongs to.
fn poll_id(worker: &Peer) -> String {
    worker.field(0, "nvcf-reqid").expect("an id").to_owned()
}

#[test]
fn a_worker_that_says_goaway_is_asked_for_another_tunnel() {
    let mut world = World::new();
    let (mut client, mut worker, id) = parking::attached(&mut world);
    client.request(&mut world, &[], true);
    worker.sync(&mut world);
    worker.goaway(&mut world, 3);
    let key = worker.key(1);
    worker.head(&mut world, key, &[(":status", "200")], true);
    let work = poll(&mut world, &[&id]).expect("another tunnel is wanted");
    let _spare = Peer::dial_back(&mut world, &work);
    // By then its worker knows of the new one.
    world.pass(Duration::from_secs(1));
    let wanted = [
        "answer_begun",
        "goaway",
        "spare_asked",
        "asked",
        "handed_out",
        "connected",
        "spare_attached",
        "replaced",
        "closed",
    ];
    assert_eq!(names(&timeline(&mut world, &id))[6..], wanted);
}

#[test]
fn what_was_taken_back_in_the_same_breath_is_not_recorded() {
    let mut world = World::new();
    let mut client = Peer::client(&mut world);
    let mut bytes = Vec::new();
    let key = client.h2.open().expect("a stream");
    let fields = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/"),
        (":authority", "gateway"),
        ("authorization", "Bearer dev-key"),
        ("function-id", FUNCTION),
    ];
    let fields = fields.iter().map(|(name, value)| Field::new(name.as_bytes(), value.as_bytes()));
    client.h2.head(key, fields, true, &mut Vec::new(), &mut bytes);
    client.h2.reset(key, ErrorCode::Cancel, &mut bytes);
    world.send(client.conn, &bytes);
    client.sync(&mut world);
    assert!(client.heads().is_empty() && poll(&mut world, &[]).is_none());
    world.deliver(ShardMessage::Snapshot { ticket: 1 });
    let Some(ControlMessage::Snapshot { snapshot, .. }) = world.messages().pop() else {
        panic!("no answer");
    };
    assert_eq!(snapshot.metrics.limit_used[Limit::TraceRecords.index()], 0);
}

#[test]
fn records_are_bounded_and_can_be_off() {
    let used = |world: &mut World| {
        world.deliver(ShardMessage::Snapshot { ticket: 1 });
        let Some(ControlMessage::Snapshot { snapshot, .. }) = world.messages().pop() else {
            panic!("no answer");
        };
        let metrics = snapshot.metrics;
        let at = Limit::TraceRecords.index();
        (metrics.limit_used[at], metrics.limit_max[at], metrics.limit_hits[at])
    };
    let mut off = World::with("[limits]\ntrace_records = 0\n");
    let (client, _worker, id) = parking::attached(&mut off);
    assert_eq!(used(&mut off), (0, 0, 0));
    assert!(parts(&mut off, &id).is_empty());
    off.end(client.conn, End::Fin);
    let mut small = World::with("[limits]\ntrace_records = 20\n");
    let mut ids = Vec::new();
    for _ in 0..10 {
        let (client, _worker, id) = parking::attached(&mut small);
        small.end(client.conn, End::Fin);
        ids.push(id);
    }
    let (records, most, hits) = used(&mut small);
    assert!(records <= 20 && most == 20 && hits > 0, "{records} {hits}");
    assert_eq!(timeline(&mut small, &ids[9]).events.len(), 9);
    assert!(parts(&mut small, &ids[0]).is_empty());
    assert!(small.shard.is_empty());
}

#[test]
fn a_restarted_core_has_forgotten_and_the_others_have_not() {
    let mut m = Machine::new(2);
    let (first, tunnel, id) = attached(&mut m, 0);
    let (_second, _) = client(&mut m, 1, &[("nvcf-reqid", &id)]);
    assert!(!of_all(&mut m, &id).events.is_empty());
    m.restart(0);
    m.deliver();
    let told = of_all(&mut m, &id);
    assert!(told.events.iter().all(|(core, _)| *core == 1), "{told:?}");
    drop((first, tunnel));
}
