//! Several cores in trouble: no room for a message, a core that begins anew, a drain.

use std::time::Duration;

use ringway::message::ShardMessage;
use ringway::metrics::Limit;
use ringway::net::{Core, End, Listener};

use crate::cores::{
    UNKEPT, attached, client, dispatch_home, grpc, leave, leave_quietly, none_of, serve,
};
use crate::machine::Machine;
use crate::peer::{Peer, Work, poll_request, read_work, undated};
use crate::world::SETTLES;

#[test]
fn what_finds_no_room_is_refused_at_once() {
    let mut m = Machine::new(2);
    let home = dispatch_home(&mut m);
    let core = none_of(&m, &[home]);
    let (first, tunnel, id) = attached(&mut m, home);
    let (waits, _) = client(&mut m, home, &[]);
    let work = m.poll(home, &[]).expect("work");
    m.full = vec![home];
    // Twice: when its own message comes back, and when others wait before it already.
    for round in 0..2 {
        let (mut new, _) = client(&mut m, core, &[]);
        assert_eq!(grpc(&mut m, core, &mut new, 0).0, "14", "round {round}");
        let (mut back, _) = client(&mut m, core, &[("nvcf-reqid", &id)]);
        assert_eq!(grpc(&mut m, core, &mut back, 0).0, "14", "round {round}");
        assert_eq!(back.field(0, "set-cookie"), None, "its session is not forgotten");
        let poller = m.poller(core, &[]);
        m.collect();
        assert!(m.at(core).take(poller).starts_with(b"HTTP/1.1 503 "));
        m.at(core).end(poller, End::Fin);
        let socket = m.knock(core, &work);
        assert_eq!(m.answer(socket).err(), Some(503), "a worker tries again");
        leave(&mut m, core, &new);
        leave(&mut m, core, &back);
    }
    assert!(m.at(core).shard.metrics().limit_hits[Limit::Mailbox.index()] >= 4);
    m.full.clear();
    m.pass(Duration::from_millis(10));
    // Nothing of it has harmed the session or the token.
    let socket = m.dial(core, &work);
    assert_eq!(socket.core, home);
    let (back, _) = client(&mut m, core, &[("nvcf-reqid", &id)]);
    assert!(m.poll(core, &[&id]).is_some());
    for (core, client) in [(core, &back), (home, &first), (home, &waits)] {
        leave(&mut m, core, client);
    }
    assert!(m.at(home).is_closed(tunnel.peer.conn));
    m.assert_empty();
}

#[test]
fn what_must_not_be_lost_waits_for_room_in_its_order() {
    let mut m = Machine::with(2, UNKEPT);
    let home = dispatch_home(&mut m);
    let core = none_of(&m, &[home]);
    let (first, _, id) = attached(&mut m, home);
    let (back, _) = client(&mut m, core, &[("nvcf-reqid", &id)]);
    let work = m.poll(core, &[&id]).expect("reconnect work");
    let (gone, _) = client(&mut m, core, &[]);
    let poller = m.poller(core, &[]);
    m.deliver();
    assert!(read_work(&m.at(core).take(poller)).is_some());
    let waiting = m.poller(core, &[]);
    m.deliver();
    m.full = vec![home];
    let tunnel = m.dial(core, &work);
    leave_quietly(&mut m, core, &gone);
    m.at(core).end(poller, End::Reset);
    m.at(core).end(waiting, End::Reset);
    m.pass(Duration::from_millis(50));
    leave_quietly(&mut m, core, &back);
    assert!(m.at(core).is_closed(tunnel.peer.conn));
    assert!(!m.at(core).shard.is_empty(), "it has something to say");
    let before = m.sent;
    m.full.clear();
    m.pass(Duration::from_millis(5));
    assert!(m.sent - before >= 6, "{}", m.sent - before);
    assert!(m.at(core).shard.is_empty());
    assert!(m.poll(home, &[]).is_none());
    // The other way round: answers wait too.
    m.full = vec![core];
    let poller = m.at(core).connect(Listener::Worker);
    m.at(core).send(poller, poll_request(&[]).as_bytes());
    let (wants, _) = client(&mut m, home, &[]);
    assert!(m.at(core).take(poller).is_empty());
    m.full.clear();
    m.pass(Duration::from_millis(5));
    assert!(read_work(&m.at(core).take(poller)).is_some());
    m.at(core).end(poller, End::Fin);
    for client in [&wants, &first] {
        leave(&mut m, home, client);
    }
    m.assert_empty();
}

#[test]
fn an_outbox_at_its_limit_is_a_new_beginning() {
    let mut m = Machine::with(2, "[limits]\noutbox = 64\n");
    let home = dispatch_home(&mut m);
    let core = none_of(&m, &[home]);
    let (first, _, id) = attached(&mut m, home);
    let (mut back, _) = client(&mut m, core, &[("nvcf-reqid", &id)]);
    let work = m.poll(core, &[&id]).expect("reconnect work");
    let mut tunnel = m.dial(core, &work);
    serve(&mut m, &mut tunnel, 0);
    let many: Vec<Peer> = (0..200).map(|_| client(&mut m, core, &[]).0).collect();
    let poller = m.poller(core, &[&id]);
    m.deliver();
    m.at(core).take(poller);
    m.at(core).send(poller, poll_request(&[]).replace("\"slots\":1", "\"slots\":0").as_bytes());
    m.deliver();
    m.full = vec![home];
    for client in &many {
        leave_quietly(&mut m, core, client);
    }
    assert!(m.at(core).shard.metrics().limit_hits[Limit::Outbox.index()] > 0);
    assert_eq!(undated(&m.at(core).take(poller)), b"HTTP/1.1 204 No Content\r\n\r\n");
    m.full.clear();
    m.pass(Duration::from_millis(5));
    assert!(m.poll(home, &[]).is_none(), "of all that work nothing is wanted any more");
    // The session that lives goes on, and its home knows of it.
    back.request(m.at(core), &[], true);
    serve(&mut m, &mut tunnel, 1);
    back.sync(m.at(core));
    assert_eq!(back.heads().len(), 2);
    leave(&mut m, home, &first);
    let (again, _) = client(&mut m, home, &[("nvcf-reqid", &id)]);
    assert!(m.poll(core, &[&id]).is_some(), "found by its last attachment");
    leave(&mut m, home, &again);
    leave(&mut m, core, &back);
    m.at(core).end(poller, End::Fin);
    m.deliver();
    m.assert_empty();
}

#[test]
fn the_dispatch_home_may_begin_anew() {
    let mut m = Machine::new(3);
    let home = dispatch_home(&mut m);
    let core = none_of(&m, &[home]);
    let other = none_of(&m, &[home, core]);
    let (mut first, _) = client(&mut m, core, &[]);
    // One work item is queued, one is with a worker that has not dialled yet.
    let known = m.poll(other, &[]).expect("work");
    let (mut second, _) = client(&mut m, core, &[]);
    let poller = m.poller(other, &["00000000-0000-4000-8000-000000000000"]);
    m.deliver();
    let given = read_work(&m.at(other).take(poller)).expect("work");
    let idle = m.poller(other, &[]);
    m.deliver();
    m.restart(home);
    m.deliver();
    assert_eq!(undated(&m.at(other).take(idle)), b"HTTP/1.1 204 No Content\r\n\r\n");
    // Both are there again, with the same tokens; a worker that has its own may use it.
    let tunnel = m.dial(other, &known);
    assert_eq!(tunnel.core, core);
    let again = m.poll(other, &[]).expect("the work that nobody has dialled for");
    assert_eq!(again.token, given.token);
    m.dial(home, &again);
    let socket = m.knock(other, &given);
    assert_eq!(m.answer(socket).err(), Some(403), "and once only");
    assert!(m.poll(home, &[]).is_none());
    for client in [&mut first, &mut second] {
        client.sync(m.at(core));
        assert!(client.heads().is_empty());
        leave(&mut m, core, client);
    }
    m.at(other).end(poller, End::Fin);
    m.at(other).end(idle, End::Fin);
    m.deliver();
    m.assert_empty();
}

#[test]
fn what_reached_the_new_shard_before_its_word_came_is_not_left_there() {
    let mut m = Machine::new(2);
    let home = dispatch_home(&mut m);
    let core = none_of(&m, &[home]);
    m.begin_anew(home);
    let (waits, _) = client(&mut m, core, &[]);
    // The new shard has its work. The word that nobody waits any more finds no room.
    m.full.push(home);
    leave(&mut m, core, &waits);
    m.collect();
    m.tell_restart(home);
    m.full.clear();
    m.pass(Duration::from_millis(10));
    assert!(m.poll(core, &[]).is_none(), "nobody waits for this work");
    m.assert_empty();
}

#[test]
fn a_sessions_home_may_begin_anew() {
    let mut m = Machine::new(3);
    let (_first, _worker, id) = attached(&mut m, 0);
    let (mut back, _) = client(&mut m, 1, &[("nvcf-reqid", &id)]);
    let work = m.poll(1, &[&id]).expect("reconnect work");
    let mut tunnel = m.dial(1, &work);
    serve(&mut m, &mut tunnel, 0);
    // A question is on its way when the core goes.
    let mut asker = Peer::client(m.at(2));
    asker.request(m.at(2), &[("nvcf-reqid", &id)], true);
    assert_eq!(m.on_its_way(2, 0), ["Find"]);
    m.restart(0);
    m.deliver();
    assert_eq!(grpc(&mut m, 2, &mut asker, 0).0, "14", "to be tried again");
    assert!(!m.at(1).is_closed(tunnel.peer.conn), "another core's tunnel did not notice");
    asker.request(m.at(2), &[("nvcf-reqid", &id)], true);
    m.deliver();
    let work = m.poll(0, &[&id]).expect("the session is known again");
    let more = m.dial(0, &work);
    assert_eq!(more.core, 2);
    assert_eq!(m.sessions().len(), 1);
    leave(&mut m, 2, &asker);
    m.pass(SETTLES);
    // The core that asked may begin anew too. Then the home has one attachment less.
    m.restart(1);
    m.deliver();
    let rows = m.sessions();
    assert_eq!((rows.len(), rows[0].state, rows[0].core), (1, "closed", 1));
    let (mut late, _) = client(&mut m, 2, &[("nvcf-reqid", &id)]);
    assert_eq!(grpc(&mut m, 2, &mut late, 0).0, "5", "the last tunnel went with its core");
    leave(&mut m, 2, &late);
    back.seen.clear();
    m.assert_empty();
}

#[test]
fn a_question_nobody_answers_ends_with_the_wait_limit() {
    let mut m = Machine::new(2);
    let (first, _tunnel, id) = attached(&mut m, 0);
    let mut asker = Peer::client(m.at(1));
    asker.request(m.at(1), &[("nvcf-reqid", &id)], true);
    let poller = m.poller(1, &[]);
    m.collect();
    // The other core does not get to its mail.
    m.at(1).pass(Duration::from_millis(29_900));
    assert_eq!(grpc(&mut m, 1, &mut asker, 0).0, "");
    m.at(1).pass(Duration::from_millis(200));
    assert_eq!(grpc(&mut m, 1, &mut asker, 0).0, "4");
    m.at(1).pass(Duration::from_secs(10));
    let stuck = m.at(1).take(poller);
    m.at(0).pass(Duration::from_secs(41));
    m.deliver();
    // Here or there, its poll was answered within the time a worker may expect.
    let late = m.at(1).take(poller);
    assert_eq!(undated(&[stuck, late].concat()), b"HTTP/1.1 204 No Content\r\n\r\n");
    m.at(1).end(poller, End::Fin);
    leave(&mut m, 1, &asker);
    leave(&mut m, 0, &first);
    m.assert_empty();
}

#[test]
fn a_drain_ends_when_the_last_core_has_no_client() {
    let mut m = Machine::new(3);
    let home = dispatch_home(&mut m);
    let core = none_of(&m, &[home]);
    let (mut waits, _) = client(&mut m, core, &[]);
    for at in 0..3 {
        m.at(at).deliver(ShardMessage::Drain { max: Duration::from_secs(60) });
    }
    m.deliver();
    m.pass(Duration::from_secs(3));
    assert!((0..3).all(|at| !m.at(at).shard.finished()), "one client waits for its worker");
    // All that it needs of other cores is there still.
    let other = none_of(&m, &[home, core]);
    let work: Work = m.poll(other, &[]).expect("work");
    let mut tunnel = m.dial(other, &work);
    waits.sync(m.at(core));
    serve(&mut m, &mut tunnel, 0);
    waits.sync(m.at(core));
    assert_eq!(waits.field(0, ":status"), Some("200"));
    waits.sync(m.at(core));
    m.pass(Duration::from_secs(2));
    for at in 0..3 {
        assert!(m.at(at).shard.finished() && m.at(at).shard.is_empty(), "core {at}");
    }
}

#[test]
fn a_drain_does_not_wait_for_a_core_beyond_its_limit() {
    let mut m = Machine::new(2);
    m.at(0).deliver(ShardMessage::Drain { max: Duration::from_secs(5) });
    m.deliver();
    m.pass(Duration::from_secs(4));
    assert!(!m.at(0).shard.finished(), "the other has not said that it is idle");
    m.pass(Duration::from_secs(2));
    assert!(m.at(0).shard.finished() && m.at(0).shard.is_empty());
}

#[test]
fn an_answer_to_a_poll_that_was_given_up_is_not_the_next_polls() {
    let mut m = Machine::new(2);
    let home = dispatch_home(&mut m);
    let core = none_of(&m, &[home]);
    let poller = m.poller(core, &[]);
    m.deliver();
    let mut wants = Peer::client(m.at(home));
    wants.request(m.at(home), &[], true);
    assert_eq!(m.on_its_way(home, core), ["Answer"]);
    // Another request ends the poll, and then there is a new one.
    m.at(core).send(poller, b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n");
    m.at(core).send(poller, poll_request(&[]).as_bytes());
    m.at(core).take(poller);
    assert!(m.deliver_next(home, core));
    assert!(m.at(core).take(poller).is_empty(), "it was for the poll before");
    m.deliver();
    assert!(read_work(&m.at(core).take(poller)).is_some(), "the work came again, once");
    m.at(core).end(poller, End::Fin);
    leave(&mut m, home, &wants);
    m.assert_empty();
}

#[test]
fn what_comes_later_does_not_overtake_what_waits() {
    let mut m = Machine::with(2, UNKEPT);
    let home = dispatch_home(&mut m);
    let core = none_of(&m, &[home]);
    let (first, _, id) = attached(&mut m, home);
    let (back, _) = client(&mut m, core, &[("nvcf-reqid", &id)]);
    let work = m.poll(core, &[&id]).expect("reconnect work");
    m.full = vec![home];
    m.dial(core, &work);
    m.full.clear();
    leave_quietly(&mut m, core, &back);
    assert!(m.on_its_way(core, home).is_empty(), "its time to be tried again has not come");
    m.at(core).pass(Duration::from_millis(2));
    assert_eq!(m.on_its_way(core, home), ["Withdraw", "MemberState", "Leave"]);
    leave(&mut m, home, &first);
    m.assert_empty();
}
