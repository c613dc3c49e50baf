//! Parked tunnels and clients that come back on whatever core.

use std::time::Duration;

use ringway::message::ShardMessage;
use ringway::metrics::{CloseReason, Limit, ResumeOutcome, ResumeWay};
use ringway::net::End;
use ringway_proto::h2::ErrorCode;

use crate::cores::{attached, client, dispatch_home, grpc, leave, leave_quietly, none_of, serve};
use crate::machine::{Machine, Tunnel};
use crate::peer::{Peer, Seen};
use crate::world::SETTLES;

/// A session of home `home` whose only tunnel is on `core`, used by the client that is returned.
fn session(m: &mut Machine, home: u16, core: u16) -> (Peer, Tunnel, String) {
    let (first, tunnel, id) = attached(m, home);
    if core == home {
        return (first, tunnel, id);
    }
    let (mut second, _) = client(m, core, &[("nvcf-reqid", &id)]);
    let work = m.poll(core, &[&id]).expect("one more tunnel");
    let mut tunnel = m.dial(core, &work);
    serve(m, &mut tunnel, 0);
    second.sync(m.at(core));
    leave(m, home, &first);
    (second, tunnel, id)
}

/// As [`session`], and the client is lost.
fn parked(m: &mut Machine, home: u16, core: u16) -> (Tunnel, String) {
    let (client, tunnel, id) = session(m, home, core);
    lose(m, core, &client);
    assert!(!m.at(core).is_closed(tunnel.peer.conn));
    (tunnel, id)
}

fn lose(m: &mut Machine, core: u16, client: &Peer) {
    m.at(core).end(client.conn, End::Reset);
    m.deliver();
}

/// The tunnel goes on where its socket is now.
fn follow(m: &mut Machine, tunnel: &mut Tunnel, socket: u64) {
    let there = (0..m.cores()).find_map(|core| Some((core, m.at(core).conn_of(socket)?)));
    let (core, conn) = there.expect("the tunnel is somewhere");
    assert!(!m.at(core).is_closed(conn), "the tunnel was closed");
    tunnel.core = core;
    tunnel.peer.conn = conn;
}

/// A client comes back on `core` and is served by the same tunnel.
fn come_back(m: &mut Machine, core: u16, tunnel: &mut Tunnel, id: &str) -> Peer {
    let socket = m.at(tunnel.core).socket(tunnel.peer.conn);
    let (mut client, _) = client(m, core, &[("nvcf-reqid", id)]);
    follow(m, tunnel, socket);
    assert_eq!(tunnel.core, core, "the tunnel is on its client's core");
    tunnel.peer.sync(m.at(core));
    let n = tunnel.peer.heads().len() - 1;
    serve(m, tunnel, n);
    client.sync(m.at(core));
    assert_eq!(client.field(0, ":status"), Some("200"));
    assert_eq!(client.field(0, "nvcf-reqid"), Some(id));
    client
}

fn resumes(m: &mut Machine, way: ResumeWay, outcome: ResumeOutcome) -> u64 {
    (0..m.cores()).map(|core| m.at(core).shard.metrics().resumes.of(way, outcome)).sum()
}

#[test]
fn a_client_comes_back_on_any_core_wherever_home_and_tunnel_are() {
    for case in 0..27 {
        let (home, at, to) = (case % 3, case / 3 % 3, case / 9);
        let mut m = Machine::new(3);
        let (mut tunnel, id) = parked(&mut m, home, at);
        let shown = m.sessions();
        assert_eq!((shown.len(), shown[0].state, shown[0].core), (1, "parked", at));
        let before = m.at(to).adopted;
        let tokens: u64 = (0..3).map(|core| m.at(core).shard.metrics().tokens_issued).sum();
        let client = come_back(&mut m, to, &mut tunnel, &id);
        assert_eq!(m.at(to).adopted - before, u64::from(at != to), "it moves once");
        let after: u64 = (0..3).map(|core| m.at(core).shard.metrics().tokens_issued).sum();
        assert_eq!(after, tokens, "no worker was asked");
        let shown = m.sessions();
        assert_eq!((shown.len(), shown[0].state, shown[0].core), (1, "active", to));
        // And again, from there.
        lose(&mut m, to, &client);
        let mut client = come_back(&mut m, at, &mut tunnel, &id);
        assert_eq!(resumes(&mut m, ResumeWay::Memory, ResumeOutcome::Ok), 2);
        // The tunnel works as before. Requests without an id use it too.
        for n in 1..4 {
            client.request(m.at(at), &[], true);
            let last = tunnel.peer.heads().len();
            serve(&mut m, &mut tunnel, last);
            client.sync(m.at(at));
            assert_eq!(client.heads().len(), n + 1);
        }
        leave(&mut m, at, &client);
        assert!(m.at(at).is_closed(tunnel.peer.conn));
        m.assert_empty();
    }
}

/// The state of the connection moves with the tunnel: HPACK tables of both directions, stream ids,
/// windows, bytes that wait to be sent, and frames that were read in part.
#[test]
fn a_tunnel_moves_with_all_that_is_unsent_and_half_read() {
    for cut in [0, 1, 9, 12, 40, 100] {
        let mut m = Machine::new(2);
        let (mut first, mut tunnel, id) = attached(&mut m, 0);
        let fields: Vec<(String, String)> =
            (0..20).map(|n| (format!("x-{n}"), format!("value-{n}"))).collect();
        let fields: Vec<(&str, &str)> = fields.iter().map(|(n, v)| (&**n, &**v)).collect();
        first.request(m.at(0), &fields, false);
        tunnel.peer.sync(m.at(0));
        // Nothing is taken of what goes to the worker: the CANCEL stays unsent.
        m.at(0).block(tunnel.peer.conn, true);
        lose(&mut m, 0, &first);
        m.at(0).hold = true;
        let (mut second, _) = client(&mut m, 1, &[("nvcf-reqid", &id), ("x-3", "value-3")]);
        m.deliver();
        // The tunnel is about to leave. The worker's answer to the cancelled stream comes in two
        // parts.
        let key = tunnel.peer.key(1);
        let bytes = late_answer(&mut tunnel.peer, key);
        let cut = cut.min(bytes.len());
        m.at(0).send(tunnel.peer.conn, &bytes[..cut]);
        let socket = m.at(0).socket(tunnel.peer.conn);
        m.at(0).hand_over();
        m.deliver();
        follow(&mut m, &mut tunnel, socket);
        assert_eq!(tunnel.core, 1);
        m.at(1).send(tunnel.peer.conn, &bytes[cut..]);
        tunnel.peer.sync(m.at(1));
        let cancelled = Seen::Reset { stream: key.id(), code: ErrorCode::Cancel };
        assert!(tunnel.peer.seen.contains(&cancelled), "{:?}", tunnel.peer.seen);
        assert_eq!(tunnel.peer.field(2, "x-3"), Some("value-3"));
        let key = tunnel.peer.key(2);
        tunnel.peer.head(m.at(1), key, &[(":status", "200"), ("x-late", "twice")], true);
        second.sync(m.at(1));
        assert_eq!(second.field(0, "x-late"), Some("twice"), "cut {cut}");
        leave(&mut m, 1, &second);
        m.assert_empty();
    }
}

/// A head that changes the encoder's table, and DATA, as bytes.
fn late_answer(peer: &mut Peer, key: ringway_proto::h2::StreamKey) -> Vec<u8> {
    use ringway_proto::fields::Field;
    let (mut block, mut out) = (Vec::new(), Vec::new());
    let fields = [Field::new(b":status", b"200"), Field::new(b"x-late", b"twice")];
    peer.h2.head(key, fields.into_iter(), false, &mut block, &mut out);
    let n = peer.h2.data_room(key).min(60);
    out.extend_from_slice(&peer.h2.data_head(key, n, true));
    out.extend(vec![7; n]);
    out
}

#[test]
fn of_two_cores_that_ask_at_once_one_gets_the_tunnel() {
    for first in [1, 2] {
        let mut m = Machine::new(3);
        let (mut tunnel, id) = parked(&mut m, 0, 0);
        let socket = m.at(0).socket(tunnel.peer.conn);
        let mut clients = Vec::new();
        for core in [1, 2] {
            let mut client = Peer::client(m.at(core));
            client.request(m.at(core), &[("nvcf-reqid", &id)], true);
            clients.push(client);
        }
        m.collect();
        assert!(m.deliver_next(first, 0));
        m.deliver();
        follow(&mut m, &mut tunnel, socket);
        assert_eq!(tunnel.core, first);
        let second = 3 - first;
        let work = m.poll(0, &[&id]).expect("the other one's");
        assert_eq!(work.kind, "reconnect");
        let mut other = m.dial(0, &work);
        assert_eq!(other.core, second);
        serve(&mut m, &mut tunnel, 1);
        serve(&mut m, &mut other, 0);
        for (at, client) in clients.iter_mut().enumerate() {
            client.sync(m.at(at as u16 + 1));
            assert_eq!(client.field(0, ":status"), Some("200"));
        }
        // Both are lost: the last one parks, whatever the home hears first.
        for (at, client) in clients.iter().enumerate() {
            m.at(at as u16 + 1).end(client.conn, End::Reset);
        }
        m.collect();
        assert!(m.deliver_next(first, 0));
        m.pass(SETTLES);
        assert!(m.at(first).is_closed(tunnel.peer.conn));
        assert!(!m.at(second).is_closed(other.peer.conn));
        let client = come_back(&mut m, 0, &mut other, &id);
        leave(&mut m, 0, &client);
        m.assert_empty();
    }
}

#[test]
fn who_asks_before_the_home_hears_of_the_loss_gets_one_more_tunnel() {
    let mut m = Machine::new(3);
    let (first, tunnel, id) = session(&mut m, 0, 1);
    m.at(1).end(first.conn, End::Reset);
    assert_eq!(m.on_its_way(1, 0).first().map(String::as_str), Some("MemberState"));
    let mut back = Peer::client(m.at(2));
    back.request(m.at(2), &[("nvcf-reqid", &id)], true);
    m.collect();
    assert!(m.deliver_next(2, 0));
    m.deliver();
    let work = m.poll(0, &[&id]).expect("one more tunnel");
    assert!(!m.at(1).is_closed(tunnel.peer.conn), "kept until that is there");
    let mut more = m.dial(0, &work);
    m.pass(SETTLES);
    assert!(m.at(1).is_closed(tunnel.peer.conn));
    serve(&mut m, &mut more, 0);
    back.sync(m.at(2));
    assert_eq!(back.field(0, ":status"), Some("200"));
    leave(&mut m, 2, &back);
    m.assert_empty();
}

#[test]
fn many_requests_of_one_client_ask_once() {
    for home in [0, 1, 2] {
        let mut m = Machine::new(3);
        let (mut tunnel, id) = parked(&mut m, home, 1);
        let socket = m.at(1).socket(tunnel.peer.conn);
        let mut back = Peer::client(m.at(2));
        for _ in 0..5 {
            back.request(m.at(2), &[("nvcf-reqid", &id)], true);
        }
        m.deliver();
        follow(&mut m, &mut tunnel, socket);
        tunnel.peer.sync(m.at(2));
        assert_eq!(tunnel.peer.heads().len(), 6);
        assert!(m.poll(0, &[&id]).is_none());
        leave(&mut m, 2, &back);
        m.pass(Duration::from_secs(31));
        m.assert_empty();
    }
}

/// How far the tunnel has come when its worker closes it, or its window ends, or its client is
/// lost again.
#[test]
fn anything_may_happen_while_a_tunnel_moves() {
    // The worker closes it.
    for end in [End::Fin, End::Reset] {
        let mut m = Machine::new(3);
        let (tunnel, id) = parked(&mut m, 0, 1);
        m.at(1).hold = true;
        let (mut back, _) = client(&mut m, 2, &[("nvcf-reqid", &id)]);
        m.at(1).end(tunnel.peer.conn, end);
        m.at(1).hand_over();
        m.deliver();
        assert_eq!(grpc(&mut m, 2, &mut back, 0).0, "5");
        assert_eq!(resumes(&mut m, ResumeWay::Memory, ResumeOutcome::Lost), 1);
        leave(&mut m, 2, &back);
        m.assert_empty();
    }
    // The worker has closed the tunnel by the time the order to give it away comes.
    let mut m = Machine::new(3);
    let (tunnel, id) = parked(&mut m, 0, 1);
    let mut back = Peer::client(m.at(2));
    back.request(m.at(2), &[("nvcf-reqid", &id)], true);
    m.collect();
    assert!(m.deliver_next(2, 0));
    m.at(1).end(tunnel.peer.conn, End::Fin);
    m.deliver();
    assert_eq!(grpc(&mut m, 2, &mut back, 0).0, "5");
    leave(&mut m, 2, &back);
    m.assert_empty();
    // The window ends: it was given away before.
    let mut m = Machine::new(3);
    let (mut tunnel, id) = parked(&mut m, 0, 1);
    let socket = m.at(1).socket(tunnel.peer.conn);
    m.pass(Duration::from_millis(29_990));
    m.at(1).hold = true;
    let (back, _) = client(&mut m, 2, &[("nvcf-reqid", &id)]);
    m.pass(Duration::from_millis(100));
    m.at(1).hand_over();
    m.deliver();
    follow(&mut m, &mut tunnel, socket);
    assert_eq!(tunnel.core, 2);
    leave(&mut m, 2, &back);
    m.pass(Duration::from_secs(31));
    m.assert_empty();
}

#[test]
fn a_client_that_is_lost_while_its_tunnel_comes_finds_it_there_later() {
    // How many messages have arrived: the question, the order, the tunnel.
    for stage in 0..3 {
        for cancels in [false, true] {
            let mut m = Machine::new(4);
            let (mut tunnel, id) = parked(&mut m, 0, 1);
            let socket = m.at(1).socket(tunnel.peer.conn);
            let mut back = Peer::client(m.at(2));
            let call = back.request(m.at(2), &[("nvcf-reqid", &id)], true);
            m.collect();
            if stage > 0 {
                assert!(m.deliver_next(2, 0));
            }
            if stage > 1 {
                assert!(m.deliver_next(0, 1));
                assert!(m.on_its_way(1, 2).contains(&"Resumed".to_owned()));
            }
            if cancels {
                back.reset(m.at(2), call, ErrorCode::Cancel);
            }
            m.at(2).end(back.conn, End::Reset);
            m.deliver();
            follow(&mut m, &mut tunnel, socket);
            assert_eq!((tunnel.core, m.sessions()[0].state), (2, "parked"), "{stage} {cancels}");
            let client = come_back(&mut m, 3, &mut tunnel, &id);
            leave(&mut m, 3, &client);
            m.assert_empty();
        }
    }
}

/// The session is there all the time, for whoever comes while its tunnel is on its way to a client
/// that is lost again.
#[test]
fn who_comes_while_the_tunnel_is_on_its_way_to_nobody_is_not_told_that_it_is_gone() {
    let mut m = Machine::new(4);
    let (mut tunnel, id) = parked(&mut m, 0, 1);
    let socket = m.at(1).socket(tunnel.peer.conn);
    m.at(1).hold = true;
    let (back, _) = client(&mut m, 2, &[("nvcf-reqid", &id)]);
    lose(&mut m, 2, &back);
    let (mut other, _) = client(&mut m, 3, &[("nvcf-reqid", &id)]);
    assert_eq!(grpc(&mut m, 3, &mut other, 0).0, "", "it waits for one more tunnel");
    m.at(1).hand_over();
    m.deliver();
    follow(&mut m, &mut tunnel, socket);
    assert_eq!(tunnel.core, 2);
    let work = m.poll(0, &[&id]).expect("one more tunnel");
    let mut more = m.dial(0, &work);
    serve(&mut m, &mut more, 0);
    other.sync(m.at(3));
    assert_eq!(other.field(0, ":status"), Some("200"));
    m.pass(SETTLES);
    assert!(m.at(2).is_closed(tunnel.peer.conn), "the session has another one");
    leave(&mut m, 3, &other);
    m.assert_empty();
}

/// The request is taken back, the client stays and asks again.
#[test]
fn who_takes_a_request_back_and_asks_again_has_the_tunnel() {
    let mut m = Machine::new(3);
    let (mut tunnel, id) = parked(&mut m, 0, 1);
    let socket = m.at(1).socket(tunnel.peer.conn);
    let mut back = Peer::client(m.at(2));
    let call = back.request(m.at(2), &[("nvcf-reqid", &id)], true);
    back.reset(m.at(2), call, ErrorCode::Cancel);
    m.collect();
    assert!(m.deliver_next(2, 0));
    back.request(m.at(2), &[("nvcf-reqid", &id)], true);
    m.deliver();
    follow(&mut m, &mut tunnel, socket);
    serve(&mut m, &mut tunnel, 1);
    back.sync(m.at(2));
    assert_eq!(back.field(0, ":status"), Some("200"));
    leave(&mut m, 2, &back);
    m.assert_empty();
}

#[test]
fn the_core_of_a_parked_tunnel_begins_anew() {
    // Before anybody asks, and with the order on its way or dealt with.
    for stage in 0..3 {
        let mut m = Machine::new(3);
        let (_, id) = parked(&mut m, 0, 1);
        let mut back = Peer::client(m.at(2));
        if stage > 0 {
            m.at(1).hold = true;
            back.request(m.at(2), &[("nvcf-reqid", &id)], true);
            m.collect();
            assert!(m.deliver_next(2, 0));
        }
        if stage > 1 {
            assert!(m.deliver_next(0, 1));
        }
        m.restart(1);
        m.deliver();
        if stage == 0 {
            back.request(m.at(2), &[("nvcf-reqid", &id)], true);
            m.deliver();
        }
        assert_eq!(grpc(&mut m, 2, &mut back, 0).0, "5", "stage {stage}");
        leave(&mut m, 2, &back);
        m.assert_empty();
    }
}

#[test]
fn the_home_of_a_parked_session_begins_anew() {
    let mut m = Machine::new(3);
    let (mut tunnel, id) = parked(&mut m, 0, 1);
    m.restart(0);
    m.deliver();
    assert_eq!(m.sessions()[0].state, "parked");
    let client = come_back(&mut m, 2, &mut tunnel, &id);
    leave(&mut m, 2, &client);
    m.assert_empty();
    // With the question on its way, and with the order.
    for stage in 0..3 {
        let mut m = Machine::new(4);
        let (mut tunnel, id) = parked(&mut m, 0, 1);
        let socket = m.at(1).socket(tunnel.peer.conn);
        let mut back = Peer::client(m.at(2));
        back.request(m.at(2), &[("nvcf-reqid", &id)], true);
        m.collect();
        m.at(1).hold = true;
        if stage > 0 {
            assert!(m.deliver_next(2, 0));
        }
        if stage > 1 {
            assert!(m.deliver_next(0, 1));
        }
        m.restart(0);
        m.at(1).hold = false;
        m.at(1).hand_over();
        m.deliver();
        assert_eq!(grpc(&mut m, 2, &mut back, 0).0, "14", "stage {stage}: try again");
        follow(&mut m, &mut tunnel, socket);
        assert_eq!(tunnel.core, if stage > 0 { 2 } else { 1 });
        let client = come_back(&mut m, 3, &mut tunnel, &id);
        leave(&mut m, 3, &client);
        leave(&mut m, 2, &back);
        m.assert_empty();
    }
}

#[test]
fn the_core_to_which_a_tunnel_goes_begins_anew() {
    let mut m = Machine::new(4);
    let (mut tunnel, id) = parked(&mut m, 0, 1);
    let socket = m.at(1).socket(tunnel.peer.conn);
    m.at(1).hold = true;
    let (_, _) = client(&mut m, 2, &[("nvcf-reqid", &id)]);
    m.restart(2);
    m.at(1).hand_over();
    m.deliver();
    follow(&mut m, &mut tunnel, socket);
    assert_eq!((tunnel.core, m.sessions()[0].state), (2, "parked"));
    let client = come_back(&mut m, 3, &mut tunnel, &id);
    leave(&mut m, 3, &client);
    m.assert_empty();
}

#[test]
fn a_core_without_room_answers_that_one_should_try_again() {
    let mut m = Machine::new(3);
    let (mut tunnel, id) = parked(&mut m, 0, 1);
    m.full = vec![0];
    let (mut back, _) = client(&mut m, 2, &[("nvcf-reqid", &id)]);
    assert_eq!(grpc(&mut m, 2, &mut back, 0).0, "14");
    assert_eq!(back.field(0, "set-cookie"), None);
    m.full.clear();
    leave(&mut m, 2, &back);
    // Room for the question and none for the tunnel: it waits, and comes.
    let socket = m.at(1).socket(tunnel.peer.conn);
    let mut back = Peer::client(m.at(2));
    back.request(m.at(2), &[("nvcf-reqid", &id)], true);
    m.collect();
    m.full = vec![2];
    m.pass(Duration::from_millis(20));
    m.full.clear();
    m.pass(Duration::from_millis(5));
    follow(&mut m, &mut tunnel, socket);
    serve(&mut m, &mut tunnel, 1);
    back.sync(m.at(2));
    assert_eq!(back.field(0, ":status"), Some("200"));
    leave(&mut m, 2, &back);
    m.assert_empty();
}

#[test]
fn what_is_too_much_for_the_outbox_is_thrown_away_but_for_tunnels() {
    let mut m = Machine::with(3, "[limits]\noutbox = 64\n");
    let to = dispatch_home(&mut m);
    let at = none_of(&m, &[to]);
    let home = none_of(&m, &[to, at]);
    let (mut tunnel, id) = parked(&mut m, home, at);
    let socket = m.at(at).socket(tunnel.peer.conn);
    let many: Vec<Peer> = (0..200).map(|_| client(&mut m, at, &[]).0).collect();
    let mut back = Peer::client(m.at(to));
    back.request(m.at(to), &[("nvcf-reqid", &id)], true);
    m.collect();
    m.full = vec![to];
    m.deliver();
    for client in &many {
        leave_quietly(&mut m, at, client);
    }
    assert!(m.at(at).shard.metrics().limit_hits[Limit::Outbox.index()] > 0);
    m.full.clear();
    m.pass(Duration::from_millis(10));
    follow(&mut m, &mut tunnel, socket);
    assert_eq!(tunnel.core, to);
    serve(&mut m, &mut tunnel, 1);
    back.sync(m.at(to));
    assert_eq!(back.field(0, ":status"), Some("200"));
    leave(&mut m, to, &back);
    m.assert_empty();
}

#[test]
fn a_parked_session_gives_way_whatever_core_it_is_on() {
    for at in 0..3 {
        for waits_on in 0..3 {
            let mut m = Machine::new(3);
            let (tunnel, _) = parked(&mut m, (at + 1) % 3, at);
            let (waits, _) = client(&mut m, waits_on, &[]);
            m.pass(Duration::from_millis(1_900));
            assert!(!m.at(at).is_closed(tunnel.peer.conn));
            m.pass(Duration::from_millis(200));
            assert!(m.at(at).is_closed(tunnel.peer.conn), "{at} {waits_on}");
            assert!(m.poll(at, &[]).is_some());
            assert_eq!(m.at(at).shard.metrics().resumes.yields, 1);
            leave(&mut m, waits_on, &waits);
            m.assert_empty();
        }
    }
}

/// A session whose client came back does not yield. A dispatch home that began anew knows the other
/// sessions.
#[test]
fn the_dispatch_home_knows_what_is_parked_now() {
    let mut m = Machine::new(3);
    let home = dispatch_home(&mut m);
    let core = none_of(&m, &[home]);
    let session_home = none_of(&m, &[home, core]);
    let (mut tunnel, id) = parked(&mut m, session_home, core);
    let back = come_back(&mut m, core, &mut tunnel, &id);
    let (waits, _) = client(&mut m, core, &[]);
    m.pass(Duration::from_secs(5));
    assert!(!m.at(core).is_closed(tunnel.peer.conn), "it is in use");
    leave(&mut m, core, &waits);
    lose(&mut m, core, &back);
    m.restart(home);
    m.deliver();
    let (waits, _) = client(&mut m, core, &[]);
    m.pass(Duration::from_millis(2_100));
    assert!(m.at(core).is_closed(tunnel.peer.conn));
    leave(&mut m, core, &waits);
    m.assert_empty();
}

#[test]
fn an_operator_ends_a_session_on_all_cores() {
    let end = |m: &mut Machine, id: &str| {
        for core in 0..m.cores() {
            m.at(core).deliver(ShardMessage::End { id: id.parse().expect("an id") });
        }
        m.deliver();
    };
    let mut m = Machine::new(3);
    let (tunnel, id) = parked(&mut m, 0, 1);
    end(&mut m, &id);
    assert!(m.at(1).is_closed(tunnel.peer.conn));
    assert_eq!(m.sessions()[0].close_reason, Some(CloseReason::Deleted.label()));
    m.assert_empty();
    // While it moves: at the old core, and on the way to the new one.
    for stage in 0..2 {
        let mut m = Machine::new(3);
        let (tunnel, id) = parked(&mut m, 0, 1);
        let socket = m.at(1).socket(tunnel.peer.conn);
        m.at(1).hold = stage == 0;
        let mut back = Peer::client(m.at(2));
        back.request(m.at(2), &[("nvcf-reqid", &id)], true);
        m.collect();
        assert!(m.deliver_next(2, 0) && m.deliver_next(0, 1));
        end(&mut m, &id);
        m.at(1).hand_over();
        m.deliver();
        let open = (0..3)
            .any(|core| m.at(core).conn_of(socket).is_some_and(|conn| !m.at(core).is_closed(conn)));
        assert!(!open, "stage {stage}");
        assert_eq!(grpc(&mut m, 2, &mut back, 0).0, "5");
        leave(&mut m, 2, &back);
        m.assert_empty();
    }
}
