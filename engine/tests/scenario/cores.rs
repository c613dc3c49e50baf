//! Several cores: clients, polls and CONNECTs land anywhere, and it is one gateway.

use std::time::Duration;

use ringway::net::{End, Listener};
use ringway_proto::h2::{ErrorCode, StreamKey};

use crate::machine::{Machine, Tunnel};
use crate::peer::{Peer, poll_request, read_work, undated};
use crate::world::{FUNCTION, VERSION};

/// A client's end is its tunnel's.
pub(crate) const UNKEPT: &str = "[session]\npark = \"never\"\n";
const OTHER: &str = "33333333-3333-4333-8333-333333333333";

/// Versions of one more function: some have another dispatch home than the first.
fn more_versions() -> String {
    let version = |n: u32| {
        format!(
            "[[function]]\nid = \"{OTHER}\"\nversion = \"44444444-4444-4444-8444-44444444444{n}\"\n\
             tenants = [\"dev\"]\nworker_keys = [\"dev-worker-key\"]\n"
        )
    };
    (0..8).map(version).collect()
}

/// A client on a core, its request sent and all mail delivered.
pub(crate) fn client(m: &mut Machine, core: u16, more: &[(&str, &str)]) -> (Peer, StreamKey) {
    let mut client = Peer::client(m.at(core));
    let call = client.request(m.at(core), more, true);
    m.deliver();
    (client, call)
}

/// The tunnel answers its `n`th request, and the client has the answer.
pub(crate) fn serve(m: &mut Machine, tunnel: &mut Tunnel, n: usize) {
    m.deliver();
    tunnel.peer.sync(m.at(tunnel.core));
    let key = tunnel.peer.key(n);
    tunnel.peer.head(m.at(tunnel.core), key, &[(":status", "200"), ("grpc-status", "0")], true);
}

/// A session of a client on `core`, whose first call was answered, and its id.
pub(crate) fn attached(m: &mut Machine, core: u16) -> (Peer, Tunnel, String) {
    let (mut client, _) = client(m, core, &[]);
    let work = m.poll(core, &[]).expect("work");
    let mut tunnel = m.dial(core, &work);
    serve(m, &mut tunnel, 0);
    client.sync(m.at(core));
    let id = client.field(0, "nvcf-reqid").expect("an id").to_owned();
    (client, tunnel, id)
}

/// The core where work and polls of the first function meet.
pub(crate) fn dispatch_home(m: &mut Machine) -> u16 {
    let mut probe = Peer::client(m.at(0));
    probe.request(m.at(0), &[], true);
    let home = (1..m.cores()).find(|to| m.on_its_way(0, *to) == ["Submit"]).unwrap_or(0);
    m.at(0).end(probe.conn, End::Fin);
    m.deliver();
    home
}

/// Some core that is none of these.
pub(crate) fn none_of(m: &Machine, cores: &[u16]) -> u16 {
    (0..m.cores()).find(|core| !cores.contains(core)).expect("one more core")
}

pub(crate) fn grpc(m: &mut Machine, core: u16, client: &mut Peer, n: usize) -> (String, String) {
    client.sync(m.at(core));
    let field = |name| client.field(n, name).unwrap_or_default().replace("%20", " ");
    (field("grpc-status"), field("grpc-message"))
}

pub(crate) fn leave(m: &mut Machine, core: u16, client: &Peer) {
    m.at(core).end(client.conn, End::Fin);
    m.deliver();
}

fn accepted(m: &mut Machine) -> u64 {
    (0..m.cores()).map(|core| m.at(core).shard.metrics().connects[7]).sum()
}

#[test]
fn client_poll_and_connect_may_be_on_any_cores() {
    for case in 0..27 {
        let (a, b, c) = (case % 3, case / 3 % 3, case / 9);
        let mut m = Machine::new(3);
        let (mut client, _) = client(&mut m, a, &[]);
        let work = m.poll(b, &[]).expect("work");
        assert_eq!(work.kind, "new");
        assert!(m.poll(b, &[]).is_none(), "there is one work item");
        let mut tunnel = m.dial(c, &work);
        assert_eq!(tunnel.core, a, "the tunnel is on its client's core");
        serve(&mut m, &mut tunnel, 0);
        client.sync(m.at(a));
        assert_eq!(client.field(0, ":status"), Some("200"));
        let moves: Vec<u64> = (0..3).map(|at| m.at(at).adopted).collect();
        assert_eq!(moves.iter().sum::<u64>(), u64::from(a != c));
        assert_eq!(moves[usize::from(a)], u64::from(a != c));
        leave(&mut m, a, &client);
        assert!(m.at(a).is_closed(tunnel.peer.conn));
        m.assert_empty();
    }
}

#[test]
fn a_call_costs_no_message() {
    let mut m = Machine::new(3);
    let home = dispatch_home(&mut m);
    let core = none_of(&m, &[home]);
    let (mut client, mut tunnel, _) = attached(&mut m, core);
    let before = m.sent;
    for n in 1..50 {
        client.request(m.at(core), &[], true);
        serve(&mut m, &mut tunnel, n);
        client.sync(m.at(core));
    }
    m.pass(Duration::from_secs(20));
    assert_eq!(client.heads().len(), 50);
    assert_eq!(m.sent, before, "messages in steady state");
    leave(&mut m, core, &client);
    m.assert_empty();
}

#[test]
fn a_token_raced_from_two_cores_is_taken_once() {
    for first in [1, 2] {
        let mut m = Machine::new(3);
        let (client, _) = client(&mut m, 0, &[]);
        let work = m.poll(1, &[]).expect("work");
        let sockets = [m.knock(1, &work), m.knock(2, &work), m.knock(0, &work)];
        m.deliver_next(first, 0);
        let answers = sockets.map(|socket| m.answer(socket).map(|_| 200).unwrap_or_else(|no| no));
        // The one that came to its home at once was first.
        assert_eq!(answers, [403, 403, 200]);
        let socket = m.knock(2, &work);
        assert_eq!(m.answer(socket).err(), Some(403), "a replay");
        assert_eq!(accepted(&mut m), 1);
        leave(&mut m, 0, &client);
        m.assert_empty();
    }
    let mut m = Machine::new(3);
    let (client, _) = client(&mut m, 0, &[]);
    let work = m.poll(0, &[]).expect("work");
    let (one, two) = (m.knock(1, &work), m.knock(2, &work));
    assert!(m.deliver_next(2, 0));
    assert_eq!(m.answer(one).err(), Some(403));
    assert!(m.answer(two).is_ok(), "the first at the token's home");
    leave(&mut m, 0, &client);
    m.assert_empty();
}

#[test]
fn what_came_behind_a_connect_moves_along() {
    let mut m = Machine::new(2);
    let (mut client, _) = client(&mut m, 0, &[]);
    let work = m.poll(0, &[]).expect("work");
    // A worker that speaks first: its SETTINGS come in pieces, the last while the socket is held.
    m.at(1).hold = true;
    let conn = m.at(1).connect(Listener::Worker);
    let mut bytes = work.connect().into_bytes();
    let settings = [0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 9];
    bytes.extend_from_slice(&settings[..4]);
    m.at(1).send(conn, &bytes);
    m.at(1).send(conn, &settings[4..11]);
    m.at(1).send(conn, &settings[11..]);
    m.at(1).hand_over();
    m.deliver();
    let tunnels = m.sessions();
    assert_eq!((tunnels.len(), tunnels[0].state, tunnels[0].core), (1, "active", 0));
    // No error of the connection: all fifteen octets arrived, in order and once.
    m.pass(Duration::from_secs(1));
    assert_eq!(m.sessions()[0].state, "active");
    client.sync(m.at(0));
    assert!(client.heads().is_empty());
    leave(&mut m, 0, &client);
    m.assert_empty();
}

#[test]
fn a_connection_that_moves_may_bring_no_more_than_its_limit_and_may_end() {
    let mut m = Machine::new(2);
    let (client, _) = client(&mut m, 0, &[]);
    let work = m.poll(0, &[]).expect("work");
    m.at(1).hold = true;
    let talks = m.at(1).connect(Listener::Worker);
    m.at(1).send(talks, work.connect().as_bytes());
    m.at(1).send(talks, &[0; 70_000]);
    assert!(m.at(1).is_closed(talks));
    assert!(m.at(1).take(talks).starts_with(b"HTTP/1.1 400 "));
    for (n, end) in [End::Fin, End::Reset].into_iter().enumerate() {
        let goes = m.at(1).connect(Listener::Worker);
        m.at(1).send(goes, work.connect().as_bytes());
        m.at(1).end(goes, end);
        m.at(1).hand_over();
        m.deliver();
        assert_eq!(m.at(1).shard.metrics().connects[8], n as u64 + 2, "counted as not taken over");
    }
    m.at(1).hold = false;
    // The token is as good as ever.
    let tunnel = m.dial(1, &work);
    assert_eq!(tunnel.core, 0);
    leave(&mut m, 0, &client);
    m.assert_empty();
}

#[test]
fn a_session_is_found_from_every_core() {
    for home in 0..3 {
        for core in 0..3 {
            let mut m = Machine::with(3, UNKEPT);
            let (first, worker, id) = attached(&mut m, home);
            let cookie = format!("nvcf-request-id={id}");
            let mut second = Peer::client(m.at(core));
            for _ in 0..5 {
                let more = [("cookie", &*cookie), ("function-version-id", "")];
                second.request(m.at(core), &more, true);
            }
            if core != home {
                assert_eq!(m.on_its_way(core, home), ["Find"], "one question for all");
            }
            m.deliver();
            let poll = (core + 1) % 3;
            assert!(m.poll(poll, &[]).is_none(), "only a poll that lists the id gets it");
            let work = m.poll(poll, &[&id]).expect("reconnect work");
            assert_eq!((&*work.kind, &work.request_id), ("reconnect", &id));
            let mut tunnel = m.dial(poll, &work);
            assert_eq!(tunnel.core, core);
            serve(&mut m, &mut tunnel, 0);
            second.sync(m.at(core));
            assert_eq!(tunnel.peer.heads().len(), 5);
            assert_eq!(second.field(0, "nvcf-reqid"), Some(&*id));
            assert_eq!(second.field(0, "set-cookie"), Some(&*cookie));
            // One row while it lives, and one after it.
            assert_eq!(m.sessions().len(), 1);
            leave(&mut m, home, &first);
            assert!(m.at(home).is_closed(worker.peer.conn));
            assert!(!m.at(core).is_closed(tunnel.peer.conn));
            let rows = m.sessions();
            assert_eq!((rows.len(), rows[0].state, rows[0].core), (1, "active", core));
            leave(&mut m, core, &second);
            let rows = m.sessions();
            assert_eq!((rows.len(), rows[0].close_reason), (1, Some("client_closed")));
            m.assert_empty();
        }
    }
}

#[test]
fn what_an_id_may_not_open_is_said_as_on_one_core() {
    let mut m = Machine::with(2, &more_versions());
    let (client, _tunnel, id) = attached(&mut m, 0);
    let unknown = id.replace(&id[..8], "00000000");
    let ones = "44444444-4444-4444-8444-444444444440";
    type Case<'a> = (&'a str, &'a [(&'a str, &'a str)], &'a str, &'a str);
    let cases: [Case<'_>; 5] = [
        (&unknown, &[], "5", "no existing session found"),
        (
            &id,
            &[("function-id", OTHER), ("function-version-id", ones)],
            "13",
            "function ID mismatch",
        ),
        (&id, &[("authorization", "Bearer other-key")], "13", "invoker NCA ID mismatch"),
        // Another mint's id is nobody's to ask for.
        ("6f9619ff-8b86-4011-b42d-00c04fc964ff", &[], "5", "no existing session found"),
        (&id, &[], "", ""),
    ];
    let mut asker = Peer::client(m.at(1));
    for (n, (id, more, code, text)) in cases.into_iter().enumerate() {
        let mut fields = vec![("nvcf-reqid", id)];
        fields.extend_from_slice(more);
        asker.request(m.at(1), &fields, true);
        m.deliver();
        let (status, message) = grpc(&mut m, 1, &mut asker, n);
        assert_eq!(status, code, "{n}: {message}");
        assert!(message.contains(text), "{n}: {message}");
        if code == "13" {
            assert!(message.contains(id) && asker.field(n, "set-cookie").is_none());
        }
    }
    assert_eq!(asker.field(0, "set-cookie"), Some("nvcf-request-id=; Max-Age=0"));
    leave(&mut m, 1, &asker);
    leave(&mut m, 0, &client);
    m.assert_empty();
}

#[test]
fn another_version_is_told_apart_on_another_core() {
    let extra = format!(
        "[[function]]\nid = \"{FUNCTION}\"\nversion = \"55555555-5555-4555-8555-555555555555\"\n\
         tenants = [\"dev\"]\nworker_keys = [\"dev-worker-key\"]\n"
    );
    let mut m = Machine::with(2, &extra);
    let (first, _tunnel, id) = attached(&mut m, 0);
    let version = ("function-version-id", "55555555-5555-4555-8555-555555555555");
    let (mut asker, _) = client(&mut m, 1, &[("nvcf-reqid", &id), version]);
    let (status, message) = grpc(&mut m, 1, &mut asker, 0);
    assert_eq!(status, "13");
    assert!(message.contains("function version ID mismatch"), "{message}");
    leave(&mut m, 1, &asker);
    leave(&mut m, 0, &first);
    m.assert_empty();
}

#[test]
fn users_of_one_connection_who_name_one_session_get_what_each_may() {
    let mut m = Machine::new(2);
    let (first, _tunnel, id) = attached(&mut m, 0);
    let mut pooled = Peer::client(m.at(1));
    let named = ("nvcf-reqid", &*id);
    pooled.request(m.at(1), &[named], true);
    pooled.request(m.at(1), &[named, ("authorization", "Bearer other-key")], true);
    pooled.request(m.at(1), &[named, ("function-version-id", "")], true);
    assert_eq!(m.on_its_way(1, 0).len(), 3, "three questions: none answers for another");
    m.deliver();
    let (status, message) = grpc(&mut m, 1, &mut pooled, 0);
    assert!(status == "13" && message.contains("NCA ID mismatch"), "{message}");
    // The two of the owner share one attachment.
    let work = m.poll(0, &[&id]).expect("reconnect work");
    assert!(m.poll(0, &[&id]).is_none());
    let mut tunnel = m.dial(0, &work);
    serve(&mut m, &mut tunnel, 0);
    assert_eq!(tunnel.peer.heads().len(), 2);
    // And so do later ones, without a question; the other tenant still gets nothing of it.
    let before = m.sent;
    pooled.request(m.at(1), &[named, ("authorization", "Bearer dev-key-2")], true);
    pooled.request(m.at(1), &[named, ("authorization", "Bearer other-key")], true);
    tunnel.peer.sync(m.at(1));
    assert_eq!(tunnel.peer.heads().len(), 3);
    assert_eq!(m.sent, before);
    let (status, _) = grpc(&mut m, 1, &mut pooled, 2);
    assert_eq!(status, "13");
    leave(&mut m, 0, &first);
    leave(&mut m, 1, &pooled);
    m.assert_empty();
}

#[test]
fn an_attachment_that_waits_for_its_tunnel_is_nobody_elses_on_its_connection() {
    let mut m = Machine::new(1);
    let (first, worker, id) = attached(&mut m, 0);
    let mut pooled = Peer::client(m.at(0));
    pooled.request(m.at(0), &[("nvcf-reqid", &id)], true);
    // The session's only tunnel goes; the second attachment waits for one still.
    m.at(0).end(worker.peer.conn, End::Fin);
    let stranger = [("nvcf-reqid", &*id), ("authorization", "Bearer other-key")];
    pooled.request(m.at(0), &stranger, true);
    let (status, message) = grpc(&mut m, 0, &mut pooled, 0);
    assert!(status == "13" && message.contains("NCA ID mismatch"), "{status} {message}");
    leave(&mut m, 0, &first);
    leave(&mut m, 0, &pooled);
    m.assert_empty();
}

#[test]
fn a_client_may_go_at_any_moment() {
    // How many messages have arrived when it goes: before, in the middle and after the answer.
    for end in [Some(End::Fin), Some(End::Reset), None] {
        for stage in 0..3 {
            let mut m = Machine::new(2);
            let (first, worker, id) = attached(&mut m, 0);
            let mut second = Peer::client(m.at(1));
            let call = second.request(m.at(1), &[("nvcf-reqid", &id)], true);
            if stage > 0 {
                assert!(m.deliver_next(1, 0));
                assert_eq!(m.on_its_way(0, 1), ["Found"]);
            }
            if stage > 1 {
                assert!(m.deliver_next(0, 1));
            }
            // Its session outlives the first client only if the second is known to be there.
            leave_quietly(&mut m, 0, &first);
            assert!(m.at(0).is_closed(worker.peer.conn));
            match end {
                Some(end) => m.at(1).end(second.conn, end),
                None => second.reset(m.at(1), call, ErrorCode::Cancel),
            }
            m.deliver();
            assert!(m.poll(1, &[&id]).is_none(), "stage {stage}: nobody waits for a tunnel");
            if end.is_none() {
                leave(&mut m, 1, &second);
            }
            m.assert_empty();
        }
    }
}

/// As [`leave`], with the mail left where it is.
pub(crate) fn leave_quietly(m: &mut Machine, core: u16, client: &Peer) {
    m.at(core).end(client.conn, End::Fin);
    m.collect();
}

#[test]
fn a_client_that_goes_while_its_worker_comes_leaves_nothing() {
    for moving in [false, true] {
        let mut m = Machine::new(3);
        let home = dispatch_home(&mut m);
        let core = none_of(&m, &[home]);
        let (client, _) = client(&mut m, core, &[]);
        let elsewhere = none_of(&m, &[core, home]);
        let poller = m.poller(elsewhere, &[]);
        if moving {
            m.deliver();
            let work = read_work(&m.at(elsewhere).take(poller)).expect("work");
            let socket = m.knock(elsewhere, &work);
            assert_eq!(m.on_its_way(elsewhere, core), ["Connect"]);
            leave_quietly(&mut m, core, &client);
            assert_eq!(m.answer(socket).err(), Some(403), "its token died with the client");
        } else {
            // The answer is on its way to the worker's core.
            assert!(m.deliver_next(elsewhere, home));
            assert_eq!(m.on_its_way(home, elsewhere), ["Answer"]);
            leave_quietly(&mut m, core, &client);
            m.deliver();
            let work = read_work(&m.at(elsewhere).take(poller)).expect("it is not called back");
            let socket = m.knock(elsewhere, &work);
            assert_eq!(m.answer(socket).err(), Some(403));
        }
        m.at(elsewhere).end(poller, End::Fin);
        assert!(m.poll(home, &[]).is_none(), "the work was withdrawn");
        m.assert_empty();
    }
}

#[test]
fn an_answer_that_finds_its_worker_gone_is_given_to_another() {
    let mut m = Machine::new(3);
    let home = dispatch_home(&mut m);
    let (one, two) = (none_of(&m, &[home]), none_of(&m, &[home, none_of(&m, &[home])]));
    let (first, _) = client(&mut m, two, &[]);
    let poller = m.poller(one, &[]);
    assert!(m.deliver_next(one, home));
    assert_eq!(m.on_its_way(home, one), ["Answer"]);
    m.at(one).end(poller, End::Reset);
    m.deliver();
    let work = m.poll(two, &[]).expect("the same work for another worker");
    // An answer that a connection took and that broke afterwards, too.
    let (second, _) = client(&mut m, two, &[]);
    let poller = m.poller(one, &[]);
    m.deliver();
    let lost = read_work(&m.at(one).take(poller)).expect("work");
    m.at(one).end(poller, End::Reset);
    m.deliver();
    assert_eq!(m.poll(one, &[]).expect("work").token, lost.token);
    assert_ne!(work.token, lost.token);
    leave(&mut m, two, &first);
    leave(&mut m, two, &second);
    m.assert_empty();
}

#[test]
fn polls_are_replaced_and_expire_across_cores() {
    let mut m = Machine::with(3, &more_versions());
    let home = dispatch_home(&mut m);
    let core = none_of(&m, &[home]);
    let poller = m.poller(core, &[]);
    m.deliver();
    m.at(core).send(poller, poll_request(&[]).as_bytes());
    m.deliver();
    assert_eq!(undated(&m.at(core).take(poller)), b"HTTP/1.1 204 No Content\r\n\r\n");
    m.pass(Duration::from_secs(29));
    assert!(m.at(core).take(poller).is_empty());
    m.pass(Duration::from_secs(2));
    assert_eq!(undated(&m.at(core).take(poller)), b"HTTP/1.1 204 No Content\r\n\r\n");
    // A poll for another function, wherever its home is, replaces the one before it.
    for n in 0..8 {
        m.at(core).send(poller, poll_request(&[]).as_bytes());
        m.deliver();
        let other = poll_request(&[])
            .replace(FUNCTION, OTHER)
            .replace(VERSION, &format!("44444444-4444-4444-8444-44444444444{n}"));
        m.at(core).send(poller, other.as_bytes());
        m.deliver();
        assert_eq!(undated(&m.at(core).take(poller)), b"HTTP/1.1 204 No Content\r\n\r\n", "{n}");
        let (client, _) = client(&mut m, core, &[]);
        assert!(m.at(core).take(poller).is_empty(), "nothing of the first function comes");
        leave(&mut m, core, &client);
        m.at(core).send(poller, b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n");
        let answers = m.at(core).take(poller);
        assert!(undated(&answers).starts_with(b"HTTP/1.1 204 No Content\r\n\r\nHTTP/1.1 200 "));
    }
    m.at(core).end(poller, End::Fin);
    m.deliver();
    m.assert_empty();
}

#[test]
fn full_queues_and_too_many_polls_are_told_across_cores() {
    let mut m = Machine::with(2, "[limits]\nwork_queue = 1\npolls = 1\n");
    let home = dispatch_home(&mut m);
    let core = none_of(&m, &[home]);
    let (first, _) = client(&mut m, core, &[]);
    let (mut second, _) = client(&mut m, core, &[]);
    let (status, message) = grpc(&mut m, core, &mut second, 0);
    assert!(status == "8" && message.contains("queue"), "{status} {message}");
    leave(&mut m, core, &first);
    let one = m.poller(core, &[]);
    let two = m.poller(core, &[]);
    m.deliver();
    assert!(m.at(core).take(one).is_empty());
    assert!(m.at(core).take(two).starts_with(b"HTTP/1.1 503 "));
    // The connection is as good as before.
    m.at(core).end(one, End::Fin);
    m.deliver();
    m.at(core).send(two, poll_request(&[]).as_bytes());
    let (third, _) = client(&mut m, core, &[]);
    assert!(read_work(&m.at(core).take(two)).is_some());
    for client in [&second, &third] {
        leave(&mut m, core, client);
    }
    m.at(core).end(two, End::Fin);
    m.deliver();
    m.assert_empty();
}
