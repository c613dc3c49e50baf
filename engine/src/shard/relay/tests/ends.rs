//! Ends of clients, tunnels and routes, and the facts that they leave for sessions.

use super::super::super::facts::{Lost, Parted, Tally};
use super::*;

/// The key of an entry that is gone, in a slot that another one has.
const STALE: Key = Key { slot: 0, generation: 9 };

#[test]
fn a_client_that_is_gone_tells_what_is_kept_and_what_was_busy() {
    let mut bench = bench();
    let (mut client, mut kept) = bench.routed(A, LOST);
    let more = [("function-id", "b")];
    bench.open(B, Some(client.conn), KEPT);
    bench.ask(&mut client, &more, true);
    bench.serve(B, true);
    bench.open(C, Some(client.conn), LOST);
    let mut lost = bench.worker(C);
    bench.say(ForRelay::Terms { key: A, terms: terms(KEPT) });
    bench.told();
    bench.sees(&mut lost);
    bench.end(client.conn, End::Reset);
    let told = bench.told();
    let [ForSessions::Abandoned { key: B }, ForSessions::ClientGone { conn, how, routes }] =
        &told[..]
    else {
        panic!("{told:?}");
    };
    assert!(matches!(how, Gone::Ended(End::Reset)));
    let parted = |key, busy, kept| Parted { key, busy, kept };
    // B has no tunnel that could be kept.
    assert_eq!(
        routes[..],
        [parted(A, true, true), parted(B, true, false), parted(C, false, false)]
    );
    assert_eq!((*conn, bench.exchanges(), bench.relay.clients()), (client.conn, 0, 0));
    assert_eq!(bench.sees(&mut kept), ["1 reset Cancel"]);
    assert_eq!(bench.sees(&mut lost), [""; 0]);
    assert_eq!(bench.relay.tunnels(), 2, "what is not kept is for sessions to close");
}

#[test]
fn a_closed_route_says_what_it_carried() {
    let mut bench = bench();
    let (mut client, mut worker) = bench.routed(A, LOST);
    bench.answer(&mut worker, "hi!", true);
    let key = bench.ask(&mut client, &[], false);
    bench.body(&mut client, key, "hello", true);
    assert_eq!(bench.sees(&mut worker), ["3 /f", "3 data hello end"]);
    bench.answer(&mut worker, "well", true);
    let id = session(A).to_string();
    assert_eq!(bench.sees(&mut client), ["1 200", "1 data hi! end", "3 200", "3 data well end"]);
    assert_eq!(client.value("nvcf-reqid"), Some(&id[..]));
    assert_eq!(client.value("set-cookie"), None, "only a tunnel's first answer has it");
    bench.say(ForRelay::Close { key: A, cause: Cause::DELETED, fault: None });
    let told = bench.told();
    let [ForSessions::Closed { key: A, cause, tally }] = &told[..] else { panic!("{told:?}") };
    let carried = Tally { streams: 0, bytes_up: 5, bytes_down: 7, answered: true, tunnel: true };
    assert_eq!((cause.detail, *tally), (Cause::DELETED.detail, carried));
    assert!(!bench.rig.net.is_open(worker.conn) && bench.rig.net.is_open(client.conn));
    assert_eq!((bench.carried(A), bench.relay.tunnels()), (None, 0));
    bench.ask(&mut client, &[], true);
    bench.placed();
}

#[test]
fn what_runs_still_counts_with_what_has_ended() {
    let mut bench = bench();
    let (mut client, mut worker) = bench.routed(A, LOST);
    bench.answer(&mut worker, "hi!", true);
    let key = bench.ask(&mut client, &[], false);
    bench.body(&mut client, key, "hello", false);
    bench.sees(&mut worker);
    bench.say(ForRelay::Close { key: A, cause: Cause::DELETED, fault: None });
    let told = bench.told();
    let [ForSessions::Closed { key: A, tally, .. }] = &told[..] else { panic!("{told:?}") };
    assert_eq!((tally.streams, tally.bytes_up, tally.bytes_down), (1, 5, 3));
}

#[test]
fn who_waits_for_a_route_that_is_closed_is_told_why() {
    let overloaded = || Some(Box::new(Fault::Overloaded));
    for (fault, code) in [(None, 4), (overloaded(), 8)] {
        let mut bench = bench();
        let mut client = bench.client();
        bench.open(A, Some(client.conn), LOST);
        bench.ask(&mut client, &[], true);
        bench.serve(A, true);
        bench.say(ForRelay::Close { key: A, cause: Cause::NO_WORKER, fault });
        assert_eq!(bench.sees(&mut client), [format!("1 200 grpc {code} end")]);
        let told = bench.told();
        let [ForSessions::Closed { key: A, tally, .. }] = &told[..] else { panic!("{told:?}") };
        assert_eq!((*tally, bench.exchanges()), (Tally::default(), 0));
    }
}

#[test]
fn refused_waiters_leave_their_route_where_it_is() {
    let mut bench = bench();
    let mut client = bench.client();
    bench.open(A, Some(client.conn), LOST);
    bench.ask(&mut client, &[], true);
    bench.serve(A, true);
    bench.say(ForRelay::RefuseWaiters { key: A, fault: Box::new(Fault::WorkQueueFull) });
    assert_eq!(bench.sees(&mut client), ["1 200 grpc 8 end"]);
    assert!(matches!(bench.told()[..], [ForSessions::Abandoned { key: A }]));
    bench.ask(&mut client, &[], true);
    assert!(bench.told().is_empty(), "what was learned holds");
    let mut worker = bench.worker(A);
    assert_eq!(bench.sees(&mut worker), ["1 /f end"]);
}

/// The only end of a tunnel that was left for sessions.
fn lost(bench: &mut Bench) -> Lost {
    let told = bench.told();
    let [ForSessions::Lost(lost)] = &told[..] else { panic!("{told:?}") };
    *lost
}

#[test]
fn a_lost_tunnel_answers_or_resets_its_streams() {
    let mut bench = bench();
    let (mut client, mut worker) = bench.routed(A, LOST);
    bench.ask(&mut client, &[], true);
    assert_eq!(bench.sees(&mut worker), ["3 /f end"]);
    bench.answer(&mut worker, "half", false);
    bench.end(worker.conn, End::Reset);
    let lost = lost(&mut bench);
    assert_eq!((lost.key, lost.going, lost.last), (A, false, false));
    assert_eq!(lost.cause.detail, Cause::ended(End::Reset).detail);
    let mut seen = bench.sees(&mut client);
    seen.sort();
    assert_eq!(seen, ["1 502 grpc 14 end", "3 200", "3 data half", "3 reset InternalError"]);
    assert_eq!((bench.exchanges(), bench.carried(A)), (0, Some((0, 0, 4))));
    bench.end(worker.conn, End::Fin);
    assert!(bench.told().is_empty(), "it is lost once");
    // The route is still there, and a request that comes now waits for its next tunnel.
    bench.ask(&mut client, &[], true);
    assert!(bench.told().is_empty());
    let mut next = bench.worker(A);
    assert_eq!(bench.sees(&mut next), ["1 /f end"]);
}

#[test]
fn a_goaway_is_said_once_and_refuses_what_is_above_it() {
    let mut bench = bench();
    let (mut client, mut worker) = bench.routed(A, LOST);
    let first = worker.key.unwrap();
    bench.ask(&mut client, &[], true);
    assert_eq!(bench.sees(&mut worker), ["3 /f end"]);
    bench.goaway(&mut worker, 1);
    bench.goaway(&mut worker, 1);
    assert!(matches!(bench.told()[..], [ForSessions::Spent { key: A, goaway: true }]));
    assert_eq!(bench.sees(&mut client), ["3 reset RefusedStream"]);
    worker.key = Some(first);
    bench.answer(&mut worker, "done", false);
    assert!(bench.told().is_empty(), "what is below it runs on");
    bench.body(&mut worker, first, "!", true);
    assert_eq!(bench.sees(&mut client), ["1 200", "1 data done", "1 data ! end"]);
    let lost = lost(&mut bench);
    assert_eq!((lost.key, lost.cause.detail, lost.going), (A, Cause::GOAWAY.detail, true));
}

#[test]
fn a_going_tunnel_that_nothing_replaces_ends_when_it_has_no_stream() {
    for runs in [false, true] {
        let mut bench = bench();
        let (_client, mut worker) = bench.routed(A, LOST);
        let key = worker.key.unwrap();
        bench.answer(&mut worker, "half", !runs);
        bench.goaway(&mut worker, 1);
        assert!(matches!(bench.told()[..], [ForSessions::Spent { key: A, goaway: true }]));
        bench.say(ForRelay::Replaced { key: A, yes: true });
        assert!(bench.told().is_empty());
        bench.say(ForRelay::Replaced { key: A, yes: false });
        if runs {
            assert!(bench.told().is_empty());
            bench.body(&mut worker, key, "", true);
        }
        let lost = lost(&mut bench);
        assert_eq!((lost.key, lost.cause.detail, lost.going), (A, Cause::GOAWAY.detail, true));
        assert!(!bench.rig.net.is_open(worker.conn));
    }
}

#[test]
fn a_going_tunnel_that_is_replaced_stays_without_a_stream() {
    let mut bench = bench();
    let (_client, mut worker) = bench.routed(A, LOST);
    bench.say(ForRelay::Replaced { key: A, yes: true });
    bench.goaway(&mut worker, 1);
    bench.answer(&mut worker, "", true);
    assert!(matches!(bench.told()[..], [ForSessions::Spent { key: A, goaway: true }]));
    assert!(bench.rig.net.is_open(worker.conn));
    assert_eq!(bench.carried(A), Some((0, 0, 0)));
}

#[test]
fn a_late_fact_changes_nothing() {
    let mut bench = bench();
    let (mut client, mut worker) = bench.routed(A, KEPT);
    bench.sees(&mut worker);
    let gone = |conn| ConnId { generation: 9, ..conn };
    let (conn, tunnel) = (gone(client.conn), gone(worker.conn));
    let (key, fault) = (STALE, || Box::new(Fault::Overloaded));
    let (cause, until) = (Cause::DELETED, bench.rig.net.now);
    let late = [
        ForRelay::Terms { key, terms: terms(LOST) },
        ForRelay::Refuse { exchange: key, fault: fault() },
        ForRelay::RefuseWaiters { key, fault: fault() },
        ForRelay::Close { key, cause, fault: Some(fault()) },
        ForRelay::Unlearn { key },
        ForRelay::PlaceAnew { key },
        ForRelay::Merge { from: key, to: A },
        ForRelay::Park { key, until },
        ForRelay::Unpark { key, client: client.conn },
        ForRelay::Transfer { from: key, to: key },
        ForRelay::Detach { key },
        ForRelay::Swap { key, spare: A },
        ForRelay::Swap { key: A, spare: key },
        ForRelay::Replaced { key, yes: false },
        ForRelay::Over { exchange: key },
        ForRelay::ClientOver { conn, how: Gone::Done },
        ForRelay::ClientOver { conn: tunnel, how: Gone::Done },
        ForRelay::TunnelOver { conn: tunnel, cause, last: true },
        ForRelay::Wake { key },
        ForRelay::Stalled { exchange: key, up: true, took: std::time::Duration::ZERO },
    ];
    bench.rig.left.edges.clear();
    for fact in late {
        let text = format!("{fact:?}");
        bench.say(fact);
        let seen = (bench.sees(&mut client), bench.sees(&mut worker));
        assert!(bench.told().is_empty() && bench.rig.left.edges.is_empty(), "{text}");
        assert_eq!(seen, (Vec::new(), Vec::new()), "{text}");
        assert_eq!((bench.carried(A), bench.exchanges()), (Some((1, 0, 0)), 1), "{text}");
    }
    // The exchanges that there were before go on.
    bench.answer(&mut worker, "whole", true);
    assert_eq!(bench.sees(&mut client), ["1 200", "1 data whole end"]);
    bench.ask(&mut client, &[], true);
    assert_eq!(bench.sees(&mut worker), ["3 /f end"]);
    bench.end(client.conn, End::Reset);
    let told = bench.told();
    let [ForSessions::ClientGone { routes, .. }] = &told[..] else { panic!("{told:?}") };
    assert_eq!(routes[..], [Parted { key: A, busy: true, kept: true }], "its terms are its own");
}

#[test]
fn a_tunnel_that_comes_too_late_is_closed() {
    let mut bench = bench();
    let (mut client, mut worker) = bench.routed(A, LOST);
    for key in [STALE, B, A] {
        let conn = bench.attach(key);
        assert!(bench.told().is_empty() && !bench.rig.net.is_open(conn), "{key:?}");
    }
    bench.answer(&mut worker, "own", true);
    assert_eq!(bench.sees(&mut client), ["1 200", "1 data own end"], "A has kept its own");
}

#[test]
fn who_is_served_by_a_route_that_is_gone_is_told_so() {
    let mut bench = bench();
    let mut client = bench.client();
    bench.ask(&mut client, &[], true);
    bench.serve(STALE, true);
    assert_eq!(bench.sees(&mut client), ["1 502 grpc 14 end"]);
    assert!(bench.told().is_empty());
    bench.ask(&mut client, &[], true);
    bench.placed();
}
