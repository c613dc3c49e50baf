//! Tunnels that take no more streams: another one takes their place, and the client notices
//! nothing.

use std::time::Duration;

use ringway::metrics::{
    CloseReason,
    SpareOutcome::{Asked, Came, Failed, Parked, Replaced, Unused},
};
use ringway::net::{End, Listener};
use ringway_proto::h2::{ErrorCode, Limits, Role};

use crate::peer::{Peer, Seen, poll};
use crate::spares::{ENDS, all_is_over, answer, attached, connect, outcomes};
use crate::world::World;

/// So long a tunnel without a stream lasts beside the one that has taken its place: its worker ends the
/// session with the last tunnel that it knows of.
const SETTLES: Duration = Duration::from_secs(1);

/// The worker is asked for a tunnel in the place of another one, and dials back. It knows that it was
/// let in when this returns.
fn instead(world: &mut World, id: &str) -> Peer {
    let work = poll(world, &[id]).expect("another tunnel is asked for");
    let conn = connect(world, &work);
    let answer = world.take(conn);
    let accepted = b"HTTP/1.1 200 OK\r\n\r\n";
    assert!(answer.starts_with(accepted), "{}", String::from_utf8_lossy(&answer));
    let mut peer = Peer::over(conn, Role::Server, Limits::default(), world);
    peer.start(world);
    peer.read(world, &answer[accepted.len()..]);
    world.pass(SETTLES);
    peer
}

/// A client with a session whose id it does not send, with one answered call and one that runs.
fn running(world: &mut World) -> (Peer, Peer, String) {
    let (mut client, mut worker, id) = attached(world);
    client.request(world, &[], false);
    worker.sync(world);
    (client, worker, id)
}

fn no_reset(client: &Peer) {
    assert!(
        !client.seen.iter().any(|seen| matches!(seen, Seen::Reset { .. } | Seen::Goaway { .. }))
    );
}

#[test]
fn a_goaway_on_a_tunnel_in_use_is_not_noticed_by_its_client() {
    let mut world = World::new();
    let (mut client, mut old, id) = running(&mut world);
    old.goaway(&mut world, u32::MAX >> 1);
    client.request(&mut world, &[], true);
    client.sync(&mut world);
    assert_eq!(client.heads().len(), 1, "the call waits");
    let mut new = instead(&mut world, &id);
    // Old streams end on the old tunnel, new ones are on the new one.
    answer(&mut world, &mut new, 0);
    client.sync(&mut world);
    assert_eq!(client.field(1, "nvcf-reqid"), Some(&*id));
    assert_eq!(client.field(1, "set-cookie"), None, "once for each attachment");
    assert!(!world.is_closed(old.conn));
    let call = client.key(1);
    client.data(&mut world, call, b"the rest", true);
    old.sync(&mut world);
    assert_eq!(old.body(3), (b"the rest".to_vec(), true));
    answer(&mut world, &mut old, 1);
    client.sync(&mut world);
    assert_eq!(client.field(2, "nvcf-reqid"), Some(&*id));
    assert!(world.is_closed(old.conn) && !world.is_closed(new.conn));
    no_reset(&client);
    client.request(&mut world, &[], true);
    answer(&mut world, &mut new, 1);
    client.sync(&mut world);
    assert_eq!(client.heads().len(), 4);
    assert_eq!(outcomes(&world, [Asked, Came, Replaced]), [1, 1, 1]);
    let closed = world.shard.metrics().worker_connections_closed;
    assert_eq!(closed[CloseReason::WorkerClosed.index()], 1);
    world.end(client.conn, End::Fin);
    all_is_over(&mut world);
}

#[test]
fn what_runs_on_a_replaced_tunnel_ends_with_its_client() {
    for end in ENDS {
        for kept in ["never", "auto"] {
            let mut world = World::new();
            let (client, mut old, id) = running(&mut world);
            old.goaway(&mut world, u32::MAX >> 1);
            let new = instead(&mut world, &id);
            if kept == "never" {
                // The client breaks the rules: nothing is kept for it.
                world.send(client.conn, &[0, 0, 1, 0, 0, 0, 0, 0, 0, 1]);
            } else {
                world.end(client.conn, end);
            }
            old.sync(&mut world);
            let cancelled = Seen::Reset { stream: 3, code: ErrorCode::Cancel };
            assert!(old.seen.contains(&cancelled) || kept == "never", "{:?}", old.seen);
            assert!(world.is_closed(old.conn));
            assert_eq!(world.is_closed(new.conn), kept == "never");
            world.pass(Duration::from_secs(31));
            all_is_over(&mut world);
        }
    }
}

/// The client repeats a head that was encoded for the old tunnel.
#[test]
fn calls_that_repeat_are_encoded_anew_for_the_new_tunnel() {
    let mut world = World::new();
    let (mut client, mut old, id) = attached(&mut world);
    for n in 1..6 {
        client.request(&mut world, &[("x-own", "kept in a table")], true);
        answer(&mut world, &mut old, n);
        client.sync(&mut world);
    }
    old.goaway(&mut world, u32::MAX >> 1);
    let mut new = instead(&mut world, &id);
    assert!(world.is_closed(old.conn), "nothing ran on it");
    for n in 0..5 {
        client.request(&mut world, &[("x-own", "kept in a table")], true);
        answer(&mut world, &mut new, n);
        client.sync(&mut world);
        assert_eq!(new.field(n, "x-own"), Some("kept in a table"));
        assert_eq!(new.field(n, "nvcf-reqid"), Some(&*id));
        assert_eq!(client.field(6 + n, ":status"), Some("200"));
    }
    world.end(client.conn, End::Fin);
    all_is_over(&mut world);
}

#[test]
fn streams_above_a_goaways_last_one_are_refused_as_ever() {
    let mut world = World::new();
    let (mut client, mut old, id) = running(&mut world);
    client.request(&mut world, &[], false);
    old.sync(&mut world);
    // As servers do it: everything first, then what was the last.
    old.goaway(&mut world, u32::MAX >> 1);
    old.goaway(&mut world, 3);
    client.sync(&mut world);
    let refused = Seen::Reset { stream: 5, code: ErrorCode::RefusedStream };
    assert_eq!(client.seen.last(), Some(&refused));
    assert_eq!(outcomes(&world, [Asked]), [1], "once");
    let mut new = instead(&mut world, &id);
    client.request(&mut world, &[], true);
    answer(&mut world, &mut new, 0);
    answer(&mut world, &mut old, 1);
    assert!(world.is_closed(old.conn));
    // A word after its end finds nobody.
    world.end(client.conn, End::Fin);
    all_is_over(&mut world);
}

#[test]
fn a_goaway_between_the_replacement_and_the_last_stream_changes_nothing() {
    let mut world = World::new();
    let (mut client, mut old, id) = running(&mut world);
    old.goaway(&mut world, u32::MAX >> 1);
    let mut new = instead(&mut world, &id);
    client.request(&mut world, &[], true);
    answer(&mut world, &mut new, 0);
    old.goaway(&mut world, 3);
    assert!(poll(&mut world, &[&id]).is_none());
    answer(&mut world, &mut old, 1);
    assert!(world.is_closed(old.conn) && !world.is_closed(new.conn));
    world.end(client.conn, End::Fin);
    all_is_over(&mut world);
}

#[test]
fn a_tunnel_is_replaced_any_number_of_times() {
    let mut world = World::new();
    let (mut client, mut tunnel, id) = attached(&mut world);
    let mut old = Vec::new();
    for round in 0..5 {
        // One stream stays on each.
        client.request(&mut world, &[], false);
        tunnel.sync(&mut world);
        tunnel.goaway(&mut world, u32::MAX >> 1);
        let new = instead(&mut world, &id);
        old.push((std::mem::replace(&mut tunnel, new), usize::from(round == 0)));
    }
    assert!(old.iter().all(|(old, _)| !world.is_closed(old.conn)));
    for (old, n) in &mut old {
        answer(&mut world, old, *n);
        client.sync(&mut world);
    }
    client.request(&mut world, &[], true);
    answer(&mut world, &mut tunnel, 0);
    client.sync(&mut world);
    assert_eq!(client.heads().len(), 7);
    world.end(client.conn, End::Reset);
    assert!(!world.is_closed(tunnel.conn));
    world.pass(Duration::from_secs(31));
    all_is_over(&mut world);
}

/// A session's bytes as `/sessions` shows them.
fn bytes(world: &mut World) -> (u64, u64) {
    let rows = world.sessions();
    assert_eq!(rows.len(), 1, "{rows:?}");
    (rows[0].bytes_in, rows[0].bytes_out)
}

/// The bytes that a tunnel carried still count when the tunnel is gone.
#[test]
fn the_bytes_of_a_session_go_on_when_its_tunnel_is_replaced() {
    const SAID: usize = 1_000;
    const ANSWERED: usize = 3_000;
    let mut world = World::new();
    let (mut client, mut tunnel, id) = attached(&mut world);
    for round in 1..=3 {
        let call = client.request(&mut world, &[], false);
        client.data(&mut world, call, &[7; SAID], true);
        tunnel.sync(&mut world);
        // The first tunnel has answered a call before.
        let call = tunnel.key(usize::from(round == 1));
        tunnel.head(&mut world, call, &[(":status", "200")], false);
        tunnel.data(&mut world, call, &[8; ANSWERED], true);
        client.sync(&mut world);
        let carried = (round * SAID as u64, round * ANSWERED as u64);
        assert_eq!(bytes(&mut world), carried);
        tunnel.goaway(&mut world, u32::MAX >> 1);
        assert_eq!(bytes(&mut world), carried, "another tunnel is waited for");
        tunnel = instead(&mut world, &id);
        assert_eq!(bytes(&mut world), carried, "and is there");
    }
    world.end(client.conn, End::Fin);
    world.pass(Duration::from_secs(31));
    assert_eq!(world.sessions()[0].state, "closed");
    assert_eq!(bytes(&mut world), (3 * SAID as u64, 3 * ANSWERED as u64), "after its end too");
    all_is_over(&mut world);
}

#[test]
fn who_waits_for_a_replacement_that_does_not_come_is_placed_anew() {
    let mut world = World::new();
    let (mut client, mut old, id) = running(&mut world);
    old.goaway(&mut world, u32::MAX >> 1);
    client.request(&mut world, &[], true);
    world.pass(Duration::from_millis(4_900));
    assert!(poll(&mut world, &[]).is_none(), "not yet");
    world.pass(Duration::from_millis(200));
    let fresh = poll(&mut world, &[]).expect("a new session");
    assert!(fresh.kind == "new" && fresh.request_id != id);
    let mut worker = Peer::dial_back(&mut world, &fresh);
    answer(&mut world, &mut worker, 0);
    client.sync(&mut world);
    assert_eq!(client.field(1, "nvcf-reqid"), Some(&*fresh.request_id));
    answer(&mut world, &mut old, 1);
    client.sync(&mut world);
    assert_eq!(client.field(2, "nvcf-reqid"), Some(&*id));
    assert!(world.is_closed(old.conn));
    assert_eq!(outcomes(&world, [Asked, Failed]), [1, 1]);
    world.end(client.conn, End::Fin);
    all_is_over(&mut world);
}

#[test]
fn who_waits_when_the_old_tunnel_dies_first_is_placed_anew() {
    for end in ENDS {
        let mut world = World::new();
        let (mut client, mut old, id) = running(&mut world);
        old.goaway(&mut world, u32::MAX >> 1);
        client.request(&mut world, &[], true);
        let work = poll(&mut world, &[&id]).expect("another tunnel is asked for");
        world.end(old.conn, end);
        let fresh = poll(&mut world, &[]).expect("a new session");
        assert!(fresh.kind == "new" && fresh.request_id != id);
        let late = connect(&mut world, &work);
        assert!(world.take(late).starts_with(b"HTTP/1.1 403 "));
        let mut worker = Peer::dial_back(&mut world, &fresh);
        answer(&mut world, &mut worker, 0);
        client.sync(&mut world);
        // The one that ran is lost with its tunnel.
        assert_eq!(client.field(1, "grpc-status"), Some("14"));
        assert_eq!(client.field(2, "nvcf-reqid"), Some(&*fresh.request_id));
        assert_eq!(outcomes(&world, [Asked, Unused]), [1, 1]);
        // Its request has not ended: what the client has now is kept for a while.
        world.end(client.conn, End::Fin);
        world.pass(Duration::from_secs(31));
        all_is_over(&mut world);
    }
}

#[test]
fn a_client_that_is_lost_while_its_tunnel_is_replaced_comes_back_to_the_new_one() {
    for end in ENDS {
        let mut world = World::new();
        let (client, mut old, id) = running(&mut world);
        old.goaway(&mut world, u32::MAX >> 1);
        world.end(client.conn, end);
        old.sync(&mut world);
        let cancelled = Seen::Reset { stream: 3, code: ErrorCode::Cancel };
        assert!(old.seen.contains(&cancelled), "{:?}", old.seen);
        assert!(!world.is_closed(old.conn), "it is the session's last one");
        let work = poll(&mut world, &[&id]).expect("another tunnel is asked for");
        let conn = connect(&mut world, &work);
        assert!(!world.is_closed(old.conn), "its worker may not count the other one yet");
        assert_eq!(world.take(conn), b"HTTP/1.1 200 OK\r\n\r\n");
        world.pass(SETTLES);
        assert!(world.is_closed(old.conn));
        world.pass(Duration::from_secs(28));
        let mut back = Peer::client(&mut world);
        back.request(&mut world, &[("nvcf-reqid", &id)], true);
        let mut new = Peer::over(conn, Role::Server, Limits::default(), &world);
        new.start(&mut world);
        answer(&mut world, &mut new, 0);
        back.sync(&mut world);
        assert_eq!(back.field(0, "nvcf-reqid"), Some(&*id));
        assert_eq!(outcomes(&world, [Asked, Parked]), [1, 1]);
        world.end(back.conn, End::Fin);
        all_is_over(&mut world);
    }
}

#[test]
fn a_parked_tunnel_is_replaced_in_its_place() {
    let mut world = World::new();
    let (client, mut old, id) = attached(&mut world);
    world.end(client.conn, End::Reset);
    world.pass(Duration::from_secs(20));
    old.sync(&mut world);
    old.goaway(&mut world, u32::MAX >> 1);
    assert!(!world.is_closed(old.conn));
    let work = poll(&mut world, &[&id]).expect("another tunnel is asked for");
    let conn = connect(&mut world, &work);
    world.pass(SETTLES);
    assert!(world.is_closed(old.conn) && !world.is_closed(conn));
    assert_eq!(world.take(conn), b"HTTP/1.1 200 OK\r\n\r\n");
    // Now it serves clients of either protocol.
    let back = world.connect(Listener::Client);
    let asked = format!("nvcf-reqid: {id}\r\n");
    let asked = crate::http1::request("GET /back HTTP/1.1", &asked, "");
    world.send(back, asked.as_bytes());
    assert!(world.take(conn).starts_with(b"GET /back HTTP/1.1\r\n"));
    world.send(conn, b"HTTP/1.1 204 No Content\r\n\r\n");
    assert!(world.take(back).starts_with(b"HTTP/1.1 204 "));
    world.end(back, End::Fin);
    all_is_over(&mut world);
}

#[test]
fn the_window_of_a_parked_tunnel_does_not_begin_anew_with_another() {
    let mut world = World::new();
    let (client, mut old, id) = attached(&mut world);
    world.end(client.conn, End::Reset);
    world.pass(Duration::from_secs(20));
    old.sync(&mut world);
    old.goaway(&mut world, u32::MAX >> 1);
    let work = poll(&mut world, &[&id]).expect("another tunnel is asked for");
    let conn = connect(&mut world, &work);
    world.pass(Duration::from_millis(9_900));
    assert!(!world.is_closed(conn));
    world.pass(Duration::from_millis(200));
    assert!(world.is_closed(conn));
    all_is_over(&mut world);
}

#[test]
fn a_client_that_returns_to_a_tunnel_that_is_being_replaced_waits_for_the_new_one() {
    let mut world = World::new();
    let (client, mut old, id) = attached(&mut world);
    world.end(client.conn, End::Reset);
    old.goaway(&mut world, u32::MAX >> 1);
    let mut back = Peer::client(&mut world);
    back.request(&mut world, &[("nvcf-reqid", &id)], true);
    let mut new = instead(&mut world, &id);
    assert!(world.is_closed(old.conn));
    answer(&mut world, &mut new, 0);
    back.sync(&mut world);
    assert_eq!(back.field(0, "nvcf-reqid"), Some(&*id));
    assert!(poll(&mut world, &[&id]).is_none());
    world.end(back.conn, End::Fin);
    all_is_over(&mut world);
}

#[test]
fn a_parked_tunnel_whose_worker_takes_its_leave_and_goes_is_gone() {
    for end in ENDS {
        let mut world = World::new();
        let (client, mut old, id) = attached(&mut world);
        world.end(client.conn, End::Reset);
        old.goaway(&mut world, u32::MAX >> 1);
        world.end(old.conn, end);
        let mut back = Peer::client(&mut world);
        back.request(&mut world, &[("nvcf-reqid", &id)], true);
        back.sync(&mut world);
        assert_eq!(back.field(0, "grpc-status"), Some("5"), "{end:?}");
        world.end(back.conn, End::Fin);
        world.pass(Duration::from_secs(31));
        all_is_over(&mut world);
    }
}

#[test]
fn stream_ids_that_run_out_are_not_noticed_by_the_client() {
    let mut world = World::new();
    world.shard.end_stream_ids_at(6);
    let (mut client, mut tunnel, id) = attached(&mut world);
    for n in 1..10 {
        client.request(&mut world, &[], true);
        if n % 3 == 0 {
            let new = instead(&mut world, &id);
            let old = std::mem::replace(&mut tunnel, new);
            assert!(world.is_closed(old.conn), "nothing ran on it");
        }
        answer(&mut world, &mut tunnel, n % 3);
        client.sync(&mut world);
        assert_eq!(client.field(n, "nvcf-reqid"), Some(&*id));
    }
    no_reset(&client);
    assert_eq!(outcomes(&world, [Asked, Replaced]), [3, 3]);
    world.end(client.conn, End::Fin);
    all_is_over(&mut world);
}

#[test]
fn a_lost_client_whose_tunnel_has_no_stream_ids_left_is_kept_by_another_tunnel() {
    let mut world = World::new();
    world.shard.end_stream_ids_at(2);
    let (client, old, id) = attached(&mut world);
    world.end(client.conn, End::Reset);
    assert!(!world.is_closed(old.conn));
    let work = poll(&mut world, &[&id]).expect("another tunnel is asked for");
    let conn = connect(&mut world, &work);
    world.pass(SETTLES);
    assert!(world.is_closed(old.conn) && !world.is_closed(conn));
    world.pass(Duration::from_secs(31));
    all_is_over(&mut world);
}

#[test]
fn without_parking_stream_ids_that_run_out_mean_a_new_session() {
    let mut world = World::with("[session]\npark = \"never\"");
    world.shard.end_stream_ids_at(2);
    let (mut client, old, id) = attached(&mut world);
    client.request(&mut world, &[], true);
    assert!(world.is_closed(old.conn), "nothing ran on it");
    let fresh = poll(&mut world, &[]).expect("a new session");
    assert!(fresh.kind == "new" && fresh.request_id != id);
    let mut worker = Peer::dial_back(&mut world, &fresh);
    answer(&mut world, &mut worker, 0);
    client.sync(&mut world);
    assert_eq!(client.field(1, "nvcf-reqid"), Some(&*fresh.request_id));
    world.end(client.conn, End::Fin);
    all_is_over(&mut world);
}

/// The worker may have acknowledged our SETTINGS: nobody reads the tunnel.
#[test]
fn a_tunnel_that_is_not_read_is_not_late() {
    let mut world = World::new();
    world.shard.end_stream_ids_at(2);
    let mut client = Peer::client(&mut world);
    client.request(&mut world, &[], true);
    let work = poll(&mut world, &[]).expect("work");
    let old = world.connect(Listener::Worker);
    world.send(old, work.connect().as_bytes());
    world.end(client.conn, End::Reset);
    world.pass(Duration::from_secs(11));
    assert!(!world.is_closed(old), "it is the session's last one");
    let again = poll(&mut world, &[&work.request_id]).expect("another tunnel is asked for");
    let conn = connect(&mut world, &again);
    world.pass(SETTLES);
    assert!(world.is_closed(old) && !world.is_closed(conn));
    world.pass(Duration::from_secs(31));
    all_is_over(&mut world);
}
