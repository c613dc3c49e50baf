//! Spares between cores: their CONNECTs land anywhere, and so do the clients that come back.

use std::time::Duration;

use ringway::metrics::{ResumeOutcome, ResumeWay, SpareOutcome};
use ringway::net::{ConnId, End, Listener};
use ringway_proto::h2::{Limits, Role};

use crate::cores::{attached, client, dispatch_home, leave_quietly, none_of, serve};
use crate::http1::{request, text};
use crate::http1_upgrade::{ACCEPTED, websocket};
use crate::machine::{Machine, Socket, Tunnel};
use crate::peer::{Peer, Work};
use crate::world::SETTLES;

const ACCEPTED_CONNECT: &str = "HTTP/1.1 200 OK\r\n\r\n";

/// The bytes sent on a worker's connection, on whatever core the connection is.
fn take(m: &mut Machine, socket: Socket) -> String {
    m.deliver();
    let (core, conn) = m.find(socket).expect("the connection is somewhere");
    text(&m.at(core).take(conn))
}

fn send(m: &mut Machine, socket: Socket, bytes: &str) {
    let (core, conn) = m.find(socket).expect("the connection is somewhere");
    m.at(core).send(conn, bytes.as_bytes());
    m.deliver();
}

fn is_closed(m: &mut Machine, socket: Socket) -> bool {
    m.deliver();
    m.find(socket).is_none_or(|(core, conn)| m.at(core).is_closed(conn))
}

fn ask(m: &mut Machine, core: u16, head: &str) -> ConnId {
    let conn = m.at(core).connect(Listener::Client);
    m.at(core).send(conn, head.as_bytes());
    m.deliver();
    conn
}

fn naming(id: &str) -> String {
    request("GET /back HTTP/1.1", &format!("nvcf-reqid: {id}\r\n"), "")
}

/// An open WebSocket of a client on `core`, and the session's id.
fn opened(m: &mut Machine, core: u16) -> (ConnId, Socket, String) {
    let client = ask(m, core, &websocket("/ws"));
    let work = m.poll(core, &[]).expect("work");
    let tunnel = m.knock(core, &work);
    assert!(take(m, tunnel).starts_with(ACCEPTED_CONNECT));
    send(m, tunnel, ACCEPTED);
    assert!(text(&m.at(core).take(client)).starts_with("HTTP/1.1 101 "));
    (client, tunnel, work.request_id)
}

/// The worker is asked, by whatever core it polls, and dials back to another.
fn spare(m: &mut Machine, polls: u16, dials: u16, id: &str) -> Socket {
    let work = m.poll(polls, &[id]).expect("a spare is asked for");
    assert_eq!(work.kind, "reconnect");
    let socket = m.knock(dials, &work);
    assert_eq!(take(m, socket), ACCEPTED_CONNECT);
    socket
}

/// The spare has come a moment ago: the used-up tunnel stays until the worker counts it.
fn settles(m: &mut Machine, used: Socket, spare: Socket) {
    assert!(!is_closed(m, used), "its worker may not count the spare yet");
    m.pass(SETTLES);
    assert!(is_closed(m, used) && !is_closed(m, spare));
}

/// The client is served by this tunnel.
fn served(m: &mut Machine, core: u16, client: ConnId, tunnel: Socket, id: &str) {
    let said = take(m, tunnel);
    assert!(said.starts_with("GET /back HTTP/1.1\r\n"), "{said}");
    assert!(said.contains(&format!("nvcf-reqid: {id}\r\n")), "{said}");
    assert_eq!(m.find(tunnel).map(|found| found.0), Some(core), "it is on its client's core");
    send(m, tunnel, "HTTP/1.1 204 No Content\r\n\r\n");
    assert!(text(&m.at(core).take(client)).starts_with("HTTP/1.1 204 "));
}

fn lose(m: &mut Machine, core: u16, client: ConnId) {
    m.at(core).end(client, End::Reset);
    m.deliver();
}

fn spares(m: &mut Machine, outcome: SpareOutcome) -> u64 {
    (0..m.cores()).map(|core| m.at(core).shard.metrics().spares[outcome.index()]).sum()
}

fn resumed_by_spare(m: &mut Machine) -> u64 {
    let of = |m: &mut Machine, core| {
        m.at(core).shard.metrics().resumes.of(ResumeWay::Spare, ResumeOutcome::Ok)
    };
    (0..m.cores()).map(|core| of(m, core)).sum()
}

#[test]
fn a_spare_comes_from_anywhere_and_serves_anywhere() {
    for case in 0..27 {
        let (at, dials, to) = (case % 3, case / 3 % 3, case / 9);
        let mut m = Machine::new(3);
        let (client, used, id) = opened(&mut m, at);
        let spare = spare(&mut m, to, dials, &id);
        assert_eq!(m.find(spare).map(|found| found.0), Some(at), "it waits beside the other");
        lose(&mut m, at, client);
        settles(&mut m, used, spare);
        let client = ask(&mut m, to, &naming(&id));
        served(&mut m, to, client, spare, &id);
        assert_eq!(resumed_by_spare(&mut m), 1);
        m.at(to).end(client, End::Fin);
        m.deliver();
        m.assert_empty();
    }
}

#[test]
fn a_spare_that_moves_can_still_speak_either_protocol() {
    let mut m = Machine::new(2);
    let (client, _, id) = opened(&mut m, 0);
    let spare = spare(&mut m, 0, 1, &id);
    // As some servers do, before they are asked.
    let (core, conn) = m.find(spare).expect("it is somewhere");
    let mut server = Peer::over(conn, Role::Server, Limits::default(), m.at(core));
    server.start(m.at(core));
    lose(&mut m, 0, client);
    let (mut client, _) = self::client(&mut m, 1, &[("nvcf-reqid", &id)]);
    let (core, conn) = m.find(spare).expect("it is somewhere");
    server.conn = conn;
    let mut tunnel = Tunnel { core, peer: server };
    serve(&mut m, &mut tunnel, 0);
    client.sync(m.at(1));
    assert_eq!(client.field(0, "nvcf-reqid"), Some(&*id));
    leave_quietly(&mut m, 1, &client);
    m.assert_empty();
}

/// Each time its WebSocket is cut, on another core than where the session began.
#[test]
fn a_client_wanders_with_its_session() {
    let mut m = Machine::new(3);
    let (mut client, mut used, id) = opened(&mut m, 0);
    for step in 0..6 {
        let (from, to) = (step % 3, (step + 1) % 3);
        let next = spare(&mut m, to, (step + 2) % 3, &id);
        lose(&mut m, from, client);
        let head = websocket("/ws").replace("\r\n\r\n", &format!("\r\nnvcf-reqid: {id}\r\n\r\n"));
        client = ask(&mut m, to, &head);
        assert!(take(&mut m, next).starts_with("GET /ws HTTP/1.1\r\n"));
        send(&mut m, next, ACCEPTED);
        assert!(text(&m.at(to).take(client)).starts_with("HTTP/1.1 101 "));
        // The client did not wait for the used-up tunnel. That tunnel stays until the worker counts
        // the new one.
        settles(&mut m, used, next);
        used = next;
    }
    assert_eq!((resumed_by_spare(&mut m), spares(&mut m, SpareOutcome::Parked)), (6, 6));
    lose(&mut m, 0, client);
    m.assert_empty();
}

#[test]
fn a_client_that_is_lost_first_and_returns_elsewhere_waits_for_a_tunnel_of_its_own() {
    let mut m = Machine::new(3);
    let (client, used, id) = opened(&mut m, 0);
    let work = m.poll(1, &[&id]).expect("a spare is asked for");
    lose(&mut m, 0, client);
    assert!(!is_closed(&mut m, used));
    // Its spare has not come: the worker is asked for one more, as while the old one is alive.
    let client = ask(&mut m, 2, &naming(&id));
    let more = m.poll(1, &[&id]).expect("one more tunnel");
    assert!(work.token != more.token);
    let own = m.knock(0, &more);
    m.deliver();
    let said = take(&mut m, own);
    assert!(said.starts_with(&format!("{ACCEPTED_CONNECT}GET /back ")), "{said}");
    send(&mut m, own, "HTTP/1.1 204 No Content\r\n\r\n");
    assert!(text(&m.at(2).take(client)).starts_with("HTTP/1.1 204 "));
    // The spare comes all the same: the used tunnel goes, and so does what is one too many.
    let late = m.knock(1, &work);
    assert_eq!(take(&mut m, late), ACCEPTED_CONNECT);
    m.pass(SETTLES);
    assert!(is_closed(&mut m, used) && is_closed(&mut m, late) && !is_closed(&mut m, own));
    m.at(2).end(client, End::Fin);
    m.deliver();
    m.assert_empty();
}

/// A session of home 0, parked on core 1, whose worker has said GOAWAY there.
fn parked_and_going(m: &mut Machine) -> (Tunnel, Work, String) {
    let (first, _tunnel, id) = attached(m, 0);
    let (second, _) = client(m, 1, &[("nvcf-reqid", &id)]);
    let work = m.poll(1, &[&id]).expect("one more tunnel");
    let mut tunnel = m.dial(1, &work);
    serve(m, &mut tunnel, 0);
    leave_quietly(m, 0, &first);
    lose(m, 1, second.conn);
    tunnel.peer.sync(m.at(1));
    tunnel.peer.goaway(m.at(1), u32::MAX >> 1);
    m.deliver();
    let work = m.poll(0, &[&id]).expect("another tunnel is asked for");
    (tunnel, work, id)
}

#[test]
fn a_tunnel_that_is_being_replaced_is_replaced_where_it_goes() {
    let mut m = Machine::new(3);
    let (tunnel, work, id) = parked_and_going(&mut m);
    let socket = m.at(1).socket(tunnel.peer.conn);
    let (mut back, _) = client(&mut m, 2, &[("nvcf-reqid", &id)]);
    assert!(m.at(2).conn_of(socket).is_some(), "it went to its client");
    // The tunnel that the other core asked for is void. The client's core asks for a tunnel itself.
    let late = m.knock(1, &work);
    assert_eq!(m.answer(late).err(), Some(403));
    let again = m.poll(0, &[&id]).expect("another tunnel is asked for");
    let mut new = m.dial(0, &again);
    assert_eq!(new.core, 2);
    serve(&mut m, &mut new, 0);
    back.sync(m.at(2));
    assert_eq!(back.field(0, "nvcf-reqid"), Some(&*id));
    let old = m.at(2).conn_of(socket).expect("it was there");
    // By then its worker knows of the new one.
    m.pass(Duration::from_secs(1));
    assert!(m.at(2).is_closed(old));
    leave_quietly(&mut m, 2, &back);
    m.assert_empty();
}

#[test]
fn a_goaway_while_a_tunnel_moves_does_not_lose_it() {
    let mut m = Machine::new(3);
    let (first, mut tunnel, id) = attached(&mut m, 0);
    lose(&mut m, 0, first.conn);
    let socket = m.at(0).socket(tunnel.peer.conn);
    m.at(0).hold = true;
    let (mut back, _) = client(&mut m, 1, &[("nvcf-reqid", &id)]);
    tunnel.peer.goaway(m.at(0), u32::MAX >> 1);
    m.at(0).hand_over();
    m.deliver();
    assert!(m.at(1).conn_of(socket).is_some(), "it went to its client");
    let work = m.poll(2, &[&id]).expect("another tunnel is asked for");
    let mut new = m.dial(2, &work);
    serve(&mut m, &mut new, 0);
    back.sync(m.at(1));
    assert_eq!(back.field(0, "nvcf-reqid"), Some(&*id));
    m.pass(Duration::from_secs(1));
    leave_quietly(&mut m, 1, &back);
    m.assert_empty();
}

#[test]
fn a_home_that_began_anew_learns_of_spares() {
    for lost_before in [false, true] {
        let mut m = Machine::new(3);
        // A session of home 0 that is used on core 1 only.
        let (first, _tunnel, id) = attached(&mut m, 0);
        let head = websocket("/ws").replace("\r\n\r\n", &format!("\r\nnvcf-reqid: {id}\r\n\r\n"));
        let client = ask(&mut m, 1, &head);
        let work = m.poll(2, &[&id]).expect("one more tunnel");
        let used = m.knock(1, &work);
        take(&mut m, used);
        send(&mut m, used, ACCEPTED);
        let spare = spare(&mut m, 2, 2, &id);
        leave_quietly(&mut m, 0, &first);
        if lost_before {
            lose(&mut m, 1, client);
        }
        m.restart(0);
        m.deliver();
        if !lost_before {
            lose(&mut m, 1, client);
        }
        settles(&mut m, used, spare);
        let back = ask(&mut m, 2, &naming(&id));
        served(&mut m, 2, back, spare, &id);
        m.at(2).end(back, End::Fin);
        m.assert_empty();
    }
}

#[test]
fn a_core_that_begins_anew_takes_its_spares_along() {
    let mut m = Machine::new(2);
    let (first, _tunnel, id) = attached(&mut m, 0);
    let head = websocket("/ws").replace("\r\n\r\n", &format!("\r\nnvcf-reqid: {id}\r\n\r\n"));
    ask(&mut m, 1, &head);
    let work = m.poll(0, &[&id]).expect("one more tunnel");
    let used = m.knock(1, &work);
    take(&mut m, used);
    send(&mut m, used, ACCEPTED);
    spare(&mut m, 0, 1, &id);
    leave_quietly(&mut m, 0, &first);
    m.restart(1);
    m.pass(Duration::from_secs(1));
    let back = ask(&mut m, 0, &naming(&id));
    assert!(text(&m.at(0).take(back)).starts_with("HTTP/1.1 404 "), "its tunnels are gone");
    m.at(0).end(back, End::Fin);
    m.assert_empty();
}

/// Nobody could be told to try again, and the session is lost with the tunnel that is used up.
#[test]
fn a_spare_is_asked_for_when_there_is_room_again() {
    for lost in [false, true] {
        let mut m = Machine::new(2);
        let home = dispatch_home(&mut m);
        let at = none_of(&m, &[home]);
        let client = ask(&mut m, at, &websocket("/ws"));
        let work = m.poll(at, &[]).expect("work");
        let (used, id) = (m.knock(at, &work), work.request_id);
        take(&mut m, used);
        m.full = vec![home];
        send(&mut m, used, ACCEPTED);
        if lost {
            lose(&mut m, at, client);
            assert!(!is_closed(&mut m, used), "it is the session's last one");
        }
        m.full.clear();
        m.pass(Duration::from_millis(2));
        let spare = spare(&mut m, home, at, &id);
        if !lost {
            lose(&mut m, at, client);
        }
        settles(&mut m, used, spare);
        let back = ask(&mut m, home, &naming(&id));
        served(&mut m, home, back, spare, &id);
        m.at(home).end(back, End::Fin);
        m.assert_empty();
    }
}

/// Wherever its work is queued: the worker is gone, and nobody would take it.
#[test]
fn a_queued_spare_goes_with_its_worker_from_any_core() {
    for at in 0..3 {
        let mut m = Machine::new(3);
        let (client, used, _) = opened(&mut m, at);
        let (core, conn) = m.find(used).expect("it is somewhere");
        m.at(core).end(conn, End::Reset);
        m.deliver();
        assert!(m.at(at).is_closed(client));
        m.assert_empty();
        assert_eq!(spares(&mut m, SpareOutcome::Failed), 1);
    }
}

#[test]
fn a_websocket_that_its_function_finished_leaves_nothing_on_any_core() {
    for (at, there) in [(0, false), (1, false), (2, false), (0, true), (1, true), (2, true)] {
        let mut m = Machine::new(3);
        let (client, used, id) = opened(&mut m, at);
        let spare = there.then(|| spare(&mut m, (at + 1) % 3, (at + 2) % 3, &id));
        let (core, conn) = m.find(used).expect("it is somewhere");
        m.at(core).end(conn, End::Fin);
        m.pass(Duration::from_millis(50));
        m.deliver();
        assert!(m.at(at).is_closed(client) && is_closed(&mut m, used));
        assert!(spare.is_none_or(|spare| is_closed(&mut m, spare)));
        m.assert_empty();
        assert_eq!(spares(&mut m, SpareOutcome::Unused), 1);
    }
}
