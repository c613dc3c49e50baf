//! Tunnels that are kept, and that change hands.

use std::time::Duration;

use super::super::super::timer::SETTLES;
use super::*;

#[test]
fn a_parked_tunnel_carries_the_next_client() {
    let mut bench = bench();
    let (client, mut worker) = bench.routed(A, KEPT);
    bench.park(client, &mut worker);
    let mut client = bench.client();
    bench.say(ForRelay::Unpark { key: A, client: client.conn });
    bench.ask(&mut client, &[], true);
    bench.serve(A, true);
    assert_eq!(bench.sees(&mut worker), ["3 /f end"]);
    bench.answer(&mut worker, "back", true);
    assert_eq!(bench.sees(&mut client), ["1 200", "1 data back end"]);
    assert!(client.value("set-cookie").is_some(), "the new client is told its session");
}

#[test]
fn an_http1_tunnel_in_use_is_used_up_when_its_client_is_lost() {
    let mut bench = bench();
    let conn = bench.accept();
    let head = "GET /f HTTP/1.1\r\nhost: g\r\nauthorization: Bearer s\r\nfunction-id: f\r\n\r\n";
    bench.give(conn, head.as_bytes());
    bench.open(A, Some(conn), KEPT);
    bench.serve(A, true);
    bench.attach(A);
    bench.end(conn, End::Reset);
    let told = bench.told();
    assert!(matches!(told[..], [ForSessions::Attached { .. }, ForSessions::ClientGone { .. }]));
    bench.say(ForRelay::Park { key: A, until: bench.rig.net.now });
    assert!(matches!(bench.told()[..], [ForSessions::UsedUp { key: A }]));
}

impl Bench {
    /// The client of A is lost while its request runs, and the tunnel is kept.
    fn park(&mut self, client: Peer, worker: &mut Peer) {
        self.end(client.conn, End::Reset);
        assert!(matches!(self.told()[..], [ForSessions::ClientGone { .. }]));
        let until = self.rig.net.now + Duration::from_secs(60);
        self.say(ForRelay::Park { key: A, until });
        let told = self.told();
        assert!(matches!(told[..], [ForSessions::Parked { key: A, speaks: Speaks::Http2 }]));
        assert_eq!(self.sees(worker), ["1 reset Cancel"]);
    }

    /// A spare of A's session has its tunnel, on which nothing is said.
    fn spare(&mut self) -> ConnId {
        let (session, terms) = (session(A), terms(LOST));
        self.say(ForRelay::Open { key: B, session, client: None, terms });
        let conn = self.attach(B);
        assert!(matches!(self.told()[..], [ForSessions::Attached { key: B, unspoken: true }]));
        assert!(self.take(conn).is_empty());
        conn
    }
}

#[test]
fn a_parked_tunnel_becomes_that_of_another_route() {
    let mut bench = bench();
    let (client, mut worker) = bench.routed(A, KEPT);
    bench.park(client, &mut worker);
    let mut client = bench.client();
    bench.open(B, Some(client.conn), LOST);
    bench.ask(&mut client, &[], true);
    bench.serve(B, true);
    assert_eq!(bench.sees(&mut worker), [""; 0]);
    bench.say(ForRelay::Transfer { from: A, to: B });
    assert_eq!(bench.sees(&mut worker), ["3 /f end"]);
    assert_eq!((bench.carried(A), bench.carried(B)), (None, Some((1, 0, 0))));
    assert!(bench.told().is_empty());
}

#[test]
fn a_tunnel_for_a_route_that_is_gone_ends() {
    let mut bench = bench();
    let (client, mut worker) = bench.routed(A, KEPT);
    bench.park(client, &mut worker);
    bench.say(ForRelay::Transfer { from: A, to: B });
    assert_eq!(bench.relay.tunnels(), 0);
    assert!(!bench.rig.net.is_open(worker.conn));
}

#[test]
fn a_parked_tunnel_goes_to_another_core() {
    let mut bench = bench();
    let (client, mut worker) = bench.routed(A, KEPT);
    bench.park(client, &mut worker);
    bench.say(ForRelay::Detach { key: A });
    let detached = Detached::of_nobody();
    bench.relay.detached(&mut bench.rig.turn(), worker.conn, detached);
    bench.settle();
    let mut told = bench.told();
    let Some(ForSessions::TunnelDetached { key: A, detached, hop }) = told.pop() else {
        panic!("{told:?}")
    };
    assert!(told.is_empty() && bench.relay.is_empty());

    let mut there = super::bench();
    let mut client = there.client();
    there.open(B, Some(client.conn), LOST);
    there.ask(&mut client, &[], true);
    there.serve(B, true);
    there.say(ForRelay::Adopt { key: B, detached, hop });
    worker.conn = there.relay.reader.traffic.routes.get(B).unwrap().tunnel.unwrap();
    assert_eq!(there.sees(&mut worker), ["3 /f end"]);
    there.answer(&mut worker, "here", true);
    assert_eq!(there.sees(&mut client), ["1 200", "1 data here end"]);
    assert!(there.told().is_empty());
}

#[test]
fn a_spare_takes_over_and_what_runs_ends_as_the_spares() {
    let mut bench = bench();
    let (mut client, mut old) = bench.routed(A, LOST);
    let key = old.key.unwrap();
    bench.answer(&mut old, "half", false);
    bench.goaway(&mut old, 1);
    assert!(matches!(bench.told()[..], [ForSessions::Spent { key: A, goaway: true }]));
    bench.say(ForRelay::Replaced { key: A, yes: true });
    let fresh = bench.spare();
    bench.ask(&mut client, &[], true);
    assert!(bench.told().is_empty() && bench.take(fresh).is_empty(), "it waits for the spare");
    assert_eq!(bench.carried(A), Some((1, 0, 4)));
    bench.say(ForRelay::Swap { key: A, spare: B });
    assert_eq!((bench.carried(A), bench.carried(B)), (Some((1, 0, 0)), Some((1, 0, 4))));
    let mut new = bench.server(fresh);
    assert_eq!(bench.sees(&mut new), ["1 /f end"]);
    bench.answer(&mut new, "new", true);
    bench.rig.net.now += SETTLES;
    bench.body(&mut old, key, "rest", true);
    let seen = ["1 200", "1 data half", "3 200", "3 data new end", "1 data rest end"];
    assert_eq!(bench.sees(&mut client), seen);
    let told = bench.told();
    let [ForSessions::Lost(lost)] = &told[..] else { panic!("{told:?}") };
    assert_eq!((lost.key, lost.cause.detail), (B, Cause::GOAWAY.detail));
    assert!(bench.rig.net.is_open(fresh) && !bench.rig.net.is_open(old.conn));
}

#[test]
fn what_a_gateway_that_leaves_has_brought_is_replaced_whenever_it_comes() {
    for before in [false, true] {
        let mut bench = bench();
        let client = bench.client();
        bench.open(A, Some(client.conn), LOST);
        let (leaves, other) = (NODE, OTHER_NODE);
        if before {
            bench.say(ForRelay::NodeLeaves { node: leaves });
        }
        bench.attach_via(A, Some(leaves));
        if !before {
            bench.say(ForRelay::NodeLeaves { node: leaves });
        }
        let told = bench.told();
        let spent = ForSessions::Spent { key: A, goaway: true };
        let [ForSessions::Attached { .. }, last] = &told[..] else { panic!("{told:?}") };
        assert_eq!(format!("{last:?}"), format!("{spent:?}"));
        let client = bench.client();
        bench.open(B, Some(client.conn), LOST);
        bench.attach_via(B, Some(other));
        assert!(matches!(bench.told()[..], [ForSessions::Attached { .. }]));
    }
}

#[test]
fn a_tunnel_ends_when_its_worker_knows_of_the_one_that_took_its_place() {
    for busy in [false, true] {
        let mut bench = bench();
        let (_client, mut old) = bench.routed(A, LOST);
        let key = old.key.unwrap();
        bench.answer(&mut old, "", !busy);
        bench.goaway(&mut old, 1);
        bench.told();
        let fresh = bench.spare();
        bench.say(ForRelay::Swap { key: A, spare: B });
        if busy {
            bench.body(&mut old, key, "", true);
        }
        assert!(bench.told().is_empty() && bench.rig.net.is_open(old.conn), "{busy}");
        bench.rig.net.now += SETTLES;
        bench.relay.look_at(&mut bench.rig.turn(), old.conn);
        bench.settle();
        let told = bench.told();
        assert!(matches!(&told[..], [ForSessions::Lost(lost)] if lost.key == B), "{told:?}");
        assert!(bench.rig.net.is_open(fresh) && !bench.rig.net.is_open(old.conn));
    }
}
