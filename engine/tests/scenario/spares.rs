//! Spare tunnels, which take the place of others: a WebSocket uses its own up, and so does a client
//! that is lost in the middle of an HTTP/1 exchange.

use std::time::Duration;

use ringway::message::ShardMessage;
use ringway::metrics::SpareOutcome::{self, Asked, Came, Failed, Parked, Unused};
use ringway::net::{ConnId, Core, End, Listener, Output};
use ringway_proto::h2::{Limits, Role};

use crate::http1::{Rig, get, request, text};
use crate::http1_upgrade::{ACCEPTED, UPGRADE, websocket};
use crate::peer::{Peer, Work, poll};
use crate::timeline::timeline;
use crate::world::{SETTLES, World};

pub(crate) const ENDS: [End; 4] = [End::Fin, End::Reset, End::Timeout, End::Failed];

/// How long the other side of a stream of bytes may show why one has ended it.
pub(crate) const LAST_WORD: Duration = Duration::from_millis(50);

pub(crate) fn outcomes<const N: usize>(world: &World, of: [SpareOutcome; N]) -> [u64; N] {
    of.map(|outcome| world.shard.metrics().spares[outcome.index()])
}

/// Nothing is left, and every tunnel that there was has ended once.
pub(crate) fn all_is_over(world: &mut World) {
    world.settle();
    assert!(world.shard.is_empty(), "{:?}", world.shard);
    assert_eq!(world.net.pool.chunks_live(), 0);
    let metrics = world.shard.metrics();
    let closed: u64 = metrics.worker_connections_closed.iter().sum();
    assert_eq!(metrics.worker_connections_opened, closed);
    assert_eq!(metrics.close_codes.iter().sum::<u64>(), closed);
    let [asked, parked, replaced, unused, failed] =
        outcomes(world, [Asked, Parked, SpareOutcome::Replaced, Unused, Failed]);
    assert_eq!(asked, parked + replaced + unused + failed, "each comes to one end");
}

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

/// The worker dials back for what it was asked.
pub(crate) fn connect(world: &mut World, work: &Work) -> ConnId {
    assert_eq!(work.kind, "reconnect");
    let conn = world.connect(Listener::Worker);
    world.send(conn, work.connect().as_bytes());
    conn
}

/// The worker is asked for a spare, and it comes: nothing is said on it.
pub(crate) fn spare(world: &mut World, id: &str) -> ConnId {
    let work = poll(world, &[id]).expect("a spare is asked for");
    let conn = connect(world, &work);
    assert_eq!(text(&world.take(conn)), "HTTP/1.1 200 OK\r\n\r\n");
    conn
}

/// The spare has come a moment ago: the used-up tunnel stays until the worker counts it.
pub(crate) fn settles(world: &mut World, used: ConnId, spare: ConnId) {
    assert!(!world.is_closed(used), "its worker may not count the spare yet");
    world.pass(SETTLES);
    assert!(world.is_closed(used) && !world.is_closed(spare));
}

pub(crate) fn is_paused(world: &World, conn: ConnId) -> bool {
    world.net.output(conn).is_some_and(Output::is_paused)
}

/// An open WebSocket.
pub(crate) fn opened(world: World) -> Rig {
    opened_by(world, "")
}

/// An open WebSocket whose request had these fields more.
pub(crate) fn opened_by(world: World, more: &str) -> Rig {
    let mut rig = Rig::of(world);
    rig.ask(&request("GET /ws HTTP/1.1", &format!("{UPGRADE}{more}"), ""));
    rig.attach();
    rig.at_worker();
    assert!(poll(&mut rig.world, &[&rig.id]).is_none(), "not before the 101");
    rig.answer(ACCEPTED);
    assert!(rig.at_client().starts_with("HTTP/1.1 101 "));
    rig
}

/// A client of HTTP/1 comes back and is served by this tunnel.
pub(crate) fn served_by(rig: &mut Rig, tunnel: ConnId) {
    let world = &mut rig.world;
    let client = world.connect(Listener::Client);
    let asked =
        request("GET /again HTTP/1.1", &format!("Cookie: nvcf-request-id={}\r\n", rig.id), "");
    world.send(client, asked.as_bytes());
    let said = text(&world.take(tunnel));
    assert!(said.starts_with("GET /again HTTP/1.1\r\n"), "{said}");
    assert!(said.contains(&format!("nvcf-reqid: {}\r\n", rig.id)), "{said}");
    world.send(tunnel, b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
    assert!(text(&world.take(client)).ends_with("\r\n\r\nok"));
    assert!(poll(world, &[&rig.id]).is_none(), "nobody is asked for it");
    (rig.client, rig.tunnel) = (client, Some(tunnel));
}

/// The client of an idle HTTP/1 connection leaves in order.
pub(crate) fn leave(rig: &mut Rig) {
    rig.world.end(rig.client, End::Fin);
    rig.world.pass(Duration::from_secs(31));
    all_is_over(&mut rig.world);
}

#[test]
fn a_websockets_client_comes_back_to_a_spare() {
    for end in ENDS {
        let mut rig = opened(World::new());
        let used = rig.tunnel.expect("a tunnel");
        let id = rig.id.clone();
        let spare = spare(&mut rig.world, &id);
        // The spare may stay unused for any time.
        rig.world.pass(Duration::from_secs(3_600));
        assert!(!rig.world.is_closed(spare) && rig.world.take(spare).is_empty());
        rig.ask("last");
        rig.world.end(rig.client, end);
        rig.world.pass(LAST_WORD);
        assert_eq!(rig.at_worker(), "last");
        assert!(rig.world.is_closed(used) && !rig.world.is_closed(spare), "{end:?}");
        rig.world.pass(Duration::from_secs(29));
        served_by(&mut rig, spare);
        assert_eq!(outcomes(&rig.world, [Asked, Came, Parked]), [1, 1, 1]);
        leave(&mut rig);
    }
}

#[test]
fn whoever_comes_back_may_speak_http2() {
    for early in [false, true] {
        let mut rig = opened(World::new());
        let id = rig.id.clone();
        let spare = spare(&mut rig.world, &id);
        let mut server = Peer::over(spare, Role::Server, Limits::default(), &rig.world);
        if early {
            // Some servers begin with their SETTINGS.
            server.start(&mut rig.world);
        }
        rig.world.end(rig.client, End::Reset);
        assert!(rig.world.take(spare).is_empty());
        let mut client = Peer::client(&mut rig.world);
        client.request(&mut rig.world, &[("nvcf-reqid", &id)], true);
        if !early {
            server.start(&mut rig.world);
        }
        server.sync(&mut rig.world);
        let key = server.key(0);
        server.head(&mut rig.world, key, &[(":status", "200")], true);
        client.sync(&mut rig.world);
        assert_eq!(client.field(0, "nvcf-reqid"), Some(&*id));
        rig.world.end(client.conn, End::Fin);
        all_is_over(&mut rig.world);
    }
}

#[test]
fn a_worker_that_says_too_much_unasked_is_cut() {
    let mut rig = opened(World::new());
    let id = rig.id.clone();
    let spare = spare(&mut rig.world, &id);
    for _ in 0..2 {
        rig.world.send(spare, &[7; 32 * 1024]);
    }
    assert!(!rig.world.is_closed(spare));
    rig.world.send(spare, &[7]);
    assert!(rig.world.is_closed(spare) && !rig.tunnel_is_closed());
    assert_eq!(outcomes(&rig.world, [Failed]), [1]);
    rig.answer("still open");
    assert_eq!(rig.at_client(), "still open");
    let tunnel = rig.tunnel.expect("a tunnel");
    rig.world.end(tunnel, End::Fin);
    all_is_over(&mut rig.world);
}

#[test]
fn nobody_asks_for_a_spare_that_may_not_be_kept() {
    let mut rig = opened(World::with("[session]\npark = \"never\""));
    assert!(poll(&mut rig.world, &[&rig.id]).is_none());
    rig.world.end(rig.client, End::Reset);
    assert!(rig.tunnel_is_closed());
    assert_eq!(outcomes(&rig.world, [Asked]), [0]);
    all_is_over(&mut rig.world);
}

#[test]
fn a_client_that_is_lost_after_its_spare_failed_has_another_try() {
    let mut rig = opened(World::new());
    let used = rig.tunnel.expect("a tunnel");
    rig.world.pass(Duration::from_secs(31));
    assert_eq!(outcomes(&rig.world, [Asked, Failed]), [1, 1]);
    assert!(poll(&mut rig.world, &[&rig.id]).is_none());
    rig.world.end(rig.client, End::Reset);
    assert!(!rig.world.is_closed(used));
    let id = rig.id.clone();
    let spare = spare(&mut rig.world, &id);
    settles(&mut rig.world, used, spare);
    served_by(&mut rig, spare);
    leave(&mut rig);
}

#[test]
fn a_spare_that_is_lost_is_asked_for_again_if_it_lasted() {
    for (lasted, again) in [(1, false), (60, true)] {
        let mut rig = opened(World::new());
        let id = rig.id.clone();
        let first = spare(&mut rig.world, &id);
        rig.world.pass(Duration::from_secs(lasted));
        rig.world.end(first, End::Fin);
        assert_eq!(outcomes(&rig.world, [Failed]), [1]);
        if again {
            let second = spare(&mut rig.world, &id);
            rig.world.end(rig.client, End::Reset);
            served_by(&mut rig, second);
            leave(&mut rig);
        } else {
            assert!(poll(&mut rig.world, &[&id]).is_none());
            let tunnel = rig.tunnel.expect("a tunnel");
            rig.world.end(tunnel, End::Fin);
            all_is_over(&mut rig.world);
        }
    }
}

/// A session without a tunnel is not called parked, and refuses no other its place.
#[test]
fn spares_that_do_not_come_are_in_nobodys_way() {
    const LIMITS: &str = "[limits]\npending_sessions = 2\npending_per_tenant = 1\nwork_queue = 1";
    let mut rig = opened(World::with(LIMITS));
    let used = rig.tunnel.expect("a tunnel");
    let work = poll(&mut rig.world, &[&rig.id]).expect("a spare is asked for");
    // The worker took the work and broke: the spare may come still.
    rig.world.end(used, End::Reset);
    let rows = rig.world.sessions();
    let states: Vec<&str> = rows.iter().map(|row| row.state).collect();
    assert_eq!(states, ["waiting"]);
    let asks = rig.world.connect(Listener::Client);
    rig.world.send(asks, get("/first").as_bytes());
    let new = poll(&mut rig.world, &[]).expect("a session of its own");
    assert_eq!(new.kind, "new");
    let tunnel = rig.world.connect(Listener::Worker);
    rig.world.send(tunnel, new.connect().as_bytes());
    assert!(text(&rig.world.take(tunnel)).contains("GET /first "));
    let spare = connect(&mut rig.world, &work);
    let rows = rig.world.sessions();
    let parked = rows.iter().find(|row| row.request_id.to_string() == rig.id);
    assert_eq!(parked.map(|row| row.state), Some("parked"));
    rig.world.end(spare, End::Reset);
    rig.world.end(tunnel, End::Reset);
    assert!(text(&rig.world.take(asks)).starts_with("HTTP/1.1 502 "));
    rig.world.end(asks, End::Fin);
    all_is_over(&mut rig.world);
    let rows = rig.world.sessions();
    assert!(rows.iter().all(|row| row.close_reason == Some("worker_closed")), "{rows:?}");
}

#[test]
fn queued_spares_leave_the_queue_its_room() {
    let mut rig = opened(World::with("[limits]\nwork_queue = 1"));
    let asks = rig.world.connect(Listener::Client);
    rig.world.send(asks, get("/first").as_bytes());
    assert!(rig.world.take(asks).is_empty(), "it is not refused");
    // Now the queue is full, for the next client and for the next spare.
    let next = rig.world.connect(Listener::Client);
    rig.world.send(next, get("/next").as_bytes());
    assert!(text(&rig.world.take(next)).starts_with("HTTP/1.1 429 "));
    let id = rig.id.clone();
    let spare = spare(&mut rig.world, &id);
    for conn in [asks, next, rig.client] {
        rig.world.end(conn, End::Reset);
    }
    served_by(&mut rig, spare);
    leave(&mut rig);
}

/// The session's end was known when the call ended. A spare that fails later adds nothing.
#[test]
fn a_session_remembers_its_calls_end_and_not_its_spares() {
    let mut rig = opened(World::new());
    let used = rig.tunnel.expect("a tunnel");
    rig.world.pass(Duration::from_secs(31));
    assert_eq!(outcomes(&rig.world, [Failed]), [1], "its worker never took it up");
    rig.world.pass(Duration::from_secs(1));
    rig.answer("bye");
    rig.world.end(used, End::Fin);
    rig.world.end(rig.client, End::Fin);
    let told = timeline(&mut rig.world, &rig.id);
    let line = "ended by the worker: it closed the tunnel, 32 s after the first byte";
    assert_eq!(told.verdict(true), line);
    all_is_over(&mut rig.world);
    // The worker breaks; its spare was on its way, and is given up half a minute later.
    let mut rig = opened(World::new());
    let used = rig.tunnel.expect("a tunnel");
    poll(&mut rig.world, &[&rig.id]).expect("a spare is asked for");
    rig.world.pass(Duration::from_secs(1));
    rig.world.end(used, End::Reset);
    rig.world.pass(Duration::from_secs(31));
    let told = timeline(&mut rig.world, &rig.id);
    let line = "ended by the worker: connection reset, 1 s after the first byte";
    assert_eq!(told.verdict(true), line);
    let [row] = &rig.world.sessions()[..] else { panic!("one session") };
    assert_eq!(row.close_reason, Some("worker_closed"));
    rig.world.end(rig.client, End::Fin);
    all_is_over(&mut rig.world);
}

#[test]
fn a_worker_that_dies_leaves_nothing() {
    // Either tunnel may be the first that is seen to end.
    for used_first in [false, true] {
        for lost in [false, true] {
            let mut rig = opened(World::new());
            let (used, id) = (rig.tunnel.expect("a tunnel"), rig.id.clone());
            let spare = spare(&mut rig.world, &id);
            if lost {
                rig.world.end(rig.client, End::Reset);
            }
            let ends = if used_first { [used, spare] } else { [spare, used] };
            for conn in ends {
                if !rig.world.is_closed(conn) {
                    rig.world.end(conn, End::Reset);
                }
            }
            all_is_over(&mut rig.world);
        }
    }
    // While a spare is on its way, and the client is lost.
    let mut rig = opened(World::new());
    let used = rig.tunnel.expect("a tunnel");
    rig.world.end(rig.client, End::Reset);
    rig.world.end(used, End::Reset);
    rig.world.pass(Duration::from_secs(31));
    all_is_over(&mut rig.world);
}

#[test]
fn a_spare_that_comes_when_all_is_over_is_turned_away() {
    let mut rig = opened(World::new());
    let work = poll(&mut rig.world, &[&rig.id]).expect("a spare is asked for");
    rig.world.end(rig.client, End::Reset);
    rig.world.pass(Duration::from_secs(31));
    all_is_over(&mut rig.world);
    let late = connect(&mut rig.world, &work);
    assert!(text(&rig.world.take(late)).starts_with("HTTP/1.1 403 "));
}

#[test]
fn a_parked_spare_waits_as_long_as_any_parked_tunnel() {
    let mut rig = opened(World::new());
    let id = rig.id.clone();
    let spare = spare(&mut rig.world, &id);
    rig.world.end(rig.client, End::Reset);
    rig.world.pass(Duration::from_millis(29_900));
    assert!(!rig.world.is_closed(spare));
    rig.world.pass(Duration::from_millis(200));
    assert!(rig.world.is_closed(spare));
    all_is_over(&mut rig.world);
    let late = rig.world.connect(Listener::Client);
    let asked = request("GET / HTTP/1.1", &format!("nvcf-reqid: {id}\r\n"), "");
    rig.world.send(late, asked.as_bytes());
    assert!(text(&rig.world.take(late)).starts_with("HTTP/1.1 404 "));
}

/// The old connection still looks alive: who returns gets a tunnel of its own, and the spare of
/// the old one is not needed when that is found dead.
#[test]
fn a_client_that_returns_before_it_is_missed_gets_one_more_tunnel() {
    let mut rig = opened(World::new());
    let (used, id) = (rig.tunnel.expect("a tunnel"), rig.id.clone());
    let spare = spare(&mut rig.world, &id);
    let mut client = Peer::client(&mut rig.world);
    client.request(&mut rig.world, &[("nvcf-reqid", &id)], true);
    let work = poll(&mut rig.world, &[&id]).expect("one more tunnel");
    let mut worker = Peer::dial_back(&mut rig.world, &work);
    answer(&mut rig.world, &mut worker, 0);
    client.sync(&mut rig.world);
    assert_eq!(client.field(0, "nvcf-reqid"), Some(&*id));
    assert!(!rig.world.is_closed(used) && !rig.world.is_closed(spare));
    rig.world.end(rig.client, End::Timeout);
    rig.world.pass(SETTLES);
    assert!(rig.world.is_closed(used) && rig.world.is_closed(spare));
    assert!(!rig.world.is_closed(worker.conn));
    rig.world.end(client.conn, End::Fin);
    all_is_over(&mut rig.world);
}

#[test]
fn two_clients_that_return_share_no_tunnel() {
    let mut rig = opened(World::new());
    let id = rig.id.clone();
    let spare = spare(&mut rig.world, &id);
    rig.world.end(rig.client, End::Reset);
    served_by(&mut rig, spare);
    let second = rig.world.connect(Listener::Client);
    let asked = request("GET /second HTTP/1.1", &format!("nvcf-reqid: {id}\r\n"), "");
    rig.world.send(second, asked.as_bytes());
    let work = poll(&mut rig.world, &[&id]).expect("a tunnel of its own");
    let tunnel = connect(&mut rig.world, &work);
    assert!(text(&rig.world.take(tunnel)).contains("GET /second "));
    rig.world.end(second, End::Reset);
    // In mid exchange: its tunnel waits for a spare, which is not needed, because the session
    // has another client.
    let unneeded = self::spare(&mut rig.world, &id);
    rig.world.pass(SETTLES);
    assert!(rig.world.is_closed(tunnel) && rig.world.is_closed(unneeded));
    leave(&mut rig);
}

#[test]
fn http1_in_mid_exchange_is_kept_by_a_spare() {
    // A request that is not all there, one that is not answered, an answer that is not all there.
    let beginnings: [(&str, &str); 3] = [
        ("POST /up HTTP/1.1", ""),
        ("GET /wait HTTP/1.1", ""),
        ("GET /down HTTP/1.1", "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\npart"),
    ];
    for (line, answer) in beginnings {
        for end in ENDS {
            let mut rig = Rig::of(World::new());
            let more = if line.starts_with("POST") { "content-length: 100\r\n" } else { "" };
            rig.ask(&request(line, more, ""));
            let used = rig.attach();
            rig.at_worker();
            rig.answer(answer);
            rig.at_client();
            assert!(poll(&mut rig.world, &[&rig.id]).is_none(), "not before it is needed");
            rig.world.end(rig.client, end);
            assert!(!rig.world.is_closed(used), "{line} {end:?}");
            let id = rig.id.clone();
            let spare = spare(&mut rig.world, &id);
            settles(&mut rig.world, used, spare);
            served_by(&mut rig, spare);
            leave(&mut rig);
        }
    }
}

#[test]
fn an_idle_http1_tunnel_needs_no_spare() {
    let mut rig = Rig::of(World::with("[session]\npark = \"unclean\""));
    rig.warm_up();
    let tunnel = rig.tunnel.expect("a tunnel");
    rig.world.end(rig.client, End::Reset);
    assert!(poll(&mut rig.world, &[&rig.id]).is_none());
    served_by(&mut rig, tunnel);
    assert_eq!(outcomes(&rig.world, [Asked]), [0]);
    leave(&mut rig);
}

#[test]
fn a_drain_ends_spares_and_what_waits_for_one() {
    // A WebSocket with its spare, and one whose client is lost before its spare has come.
    let mut rig = opened(World::new());
    let id = rig.id.clone();
    let there = spare(&mut rig.world, &id);
    let lost = rig.world.connect(Listener::Client);
    rig.world.send(lost, websocket("/ws").as_bytes());
    let work = poll(&mut rig.world, &[]).expect("work");
    let held = rig.world.connect(Listener::Worker);
    rig.world.send(held, work.connect().as_bytes());
    rig.world.send(held, ACCEPTED.as_bytes());
    rig.world.end(lost, End::Reset);
    assert!(!rig.world.is_closed(held));
    rig.world.deliver(ShardMessage::Drain { max: Duration::from_secs(60) });
    assert!(rig.world.is_closed(there) && rig.world.is_closed(held));
    assert!(!rig.tunnel_is_closed(), "it has a client");
    rig.answer("on and on");
    assert_eq!(rig.at_client(), "on and on");
    rig.world.end(rig.client, End::Reset);
    assert!(rig.tunnel_is_closed());
    assert!(rig.world.shard.finished());
    all_is_over(&mut rig.world);
}

#[test]
fn where_no_more_may_wait_there_is_no_spare() {
    let mut rig = opened(World::with("[limits]\npending_sessions = 1\npending_per_tenant = 1"));
    let id = rig.id.clone();
    let spare = spare(&mut rig.world, &id);
    // Somebody waits for a worker: the next WebSocket has to do without.
    let waits = rig.world.connect(Listener::Client);
    let lost = rig.world.connect(Listener::Client);
    rig.world.send(lost, websocket("/two").as_bytes());
    let work = poll(&mut rig.world, &[]).expect("work");
    let tunnel = rig.world.connect(Listener::Worker);
    rig.world.send(tunnel, work.connect().as_bytes());
    rig.world.send(waits, get("/wait").as_bytes());
    rig.world.send(tunnel, ACCEPTED.as_bytes());
    assert_eq!(outcomes(&rig.world, [Asked]), [1]);
    rig.world.end(lost, End::Reset);
    assert!(rig.world.is_closed(tunnel));
    rig.world.end(waits, End::Reset);
    rig.world.end(rig.client, End::Reset);
    served_by(&mut rig, spare);
    leave(&mut rig);
}
