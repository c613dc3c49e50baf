//! Tunnels that are kept for clients that come back, and tunnels that replace others.

use super::*;

#[test]
fn a_lost_client_comes_back_to_its_tunnel() {
    let mut bench = Bench::new();
    let (key, id) = bench.open(1);
    bench.said();
    bench.gone(1, &[key]);
    assert_eq!(bench.said(), ["Park", "Parks", "MemberState 0"]);
    assert_eq!(bench.sessions.gauges().parked, 1);
    bench.place(2, 2, by("other-key", Some(id)));
    assert_eq!(bench.refused(), Fault::TenantMismatch { request_id: id });
    bench.said();
    bench.place(2, 3, wanted(Some(id)));
    assert_eq!(bench.said(), ["Authorise", "Unpark", "Serve", "Unparks"]);
    assert_eq!((bench.served(), bench.resumes()), (key, vec![ResumeWay::Memory]));
    let again = Uuid::from_u128(7);
    bench.place(2, 4, wanted(Some(again)));
    assert_eq!(bench.refused(), Fault::SessionNotFound { request_id: again });
    assert_eq!(bench.rig.metrics.resumes.of(ResumeWay::None, ResumeOutcome::NotFound), 1);
}

#[test]
fn a_client_in_the_way_of_another_gets_one_more_tunnel() {
    let mut bench = Bench::new();
    let (key, id) = bench.open(1);
    bench.place(2, 2, wanted(Some(id)));
    let second = bench.served();
    assert_ne!(second, key);
    bench.launch();
    assert_eq!(bench.work(second).kind, WorkKind::Reconnect);
    bench.attach(second, false);
    assert_eq!(bench.resumes(), [ResumeWay::Reconnect]);
    // Only a session's last tunnel stays parked, once the other one has stood for a moment.
    bench.gone(1, &[key]);
    assert!(bench.closed(key).is_none());
    bench.later(Duration::from_secs(1));
    let due = std::iter::from_fn(|| bench.rig.timers.take(bench.rig.net.now));
    assert!(due.collect::<Vec<_>>().contains(&Due::Settled(second)));
    bench.call(|sessions, turn| sessions.settled(turn, second));
    assert_eq!(bench.closed(key).map(|cause| cause.detail), Some(Cause::SURPLUS.detail));
    bench.gone(2, &[second]);
    assert_eq!((bench.closed(second).is_none(), bench.sessions.gauges().parked), (true, 1));
}

#[test]
fn an_id_is_ignored_where_the_pin_has_a_session_if_that_is_wished() {
    let config = set(|config| config.session.honour_id = HonourId::Unpinned);
    let mut bench = Bench::with(0, 1, config);
    let (key, _) = bench.open(1);
    let other = Uuid::from_u128(7);
    bench.place(1, 2, wanted(Some(other)));
    assert_eq!(bench.served(), key);
    let learned = matches!(
        bench.out.last(),
        Some(Fact::Relay(ForRelay::Serve { wanted, .. })) if wanted.id == Some(other)
    );
    assert!(learned);
}

#[test]
fn the_oldest_one_goes_when_too_many_are_parked_and_only_that() {
    let mut bench = Bench::with(
        0,
        1,
        set(|config| {
            config.limits.parked_tunnels = 2;
            config.limits.parked_per_tenant = 2;
        }),
    );
    let keys: Vec<Key> = (1..=3).map(|number| bench.open(number).0).collect();
    for (number, key) in (1..).zip(&keys) {
        bench.gone(number, &[*key]);
    }
    let closed: Vec<bool> = keys.iter().map(|key| bench.closed(*key).is_some()).collect();
    assert_eq!((closed, bench.sessions.gauges().parked), (vec![true, false, false], 2));
    // One attachment yields to a new session. Then the core drains, which keeps none.
    let ticket = Ticket { node: NODE, core: 0, number: number_of(keys[1]) };
    bench.on(ForSessions::YieldWorker(ticket));
    assert_eq!(bench.rig.metrics.resumes.yields, 1);
    bench.rig.draining = Some(Draining::Open);
    bench.call(|sessions, turn| sessions.drain(turn));
    assert_eq!(bench.sessions.gauges(), Gauges::default());
    assert!(bench.sessions.is_empty());
}

#[test]
fn a_used_up_tunnel_is_held_until_its_spare_is_parked() {
    let mut bench = Bench::new();
    let (key, id) = bench.open(1);
    bench.keeps = None;
    bench.said();
    bench.gone(1, &[key]);
    assert_eq!(bench.said(), ["Park", "Open", "Join 0", "Replaced"]);
    let spare = bench.spare();
    bench.launch();
    assert_eq!(bench.work(spare).kind, WorkKind::Spare);
    assert!(bench.closed(key).is_none());
    bench.keeps = Some(Speaks::Any);
    bench.said();
    bench.attach(spare, true);
    // The worker counts the spare when it hears that the spare was let in. It ends the session with
    // the session's last tunnel.
    assert!(bench.closed(key).is_none(), "its worker may not have heard of the spare");
    assert_eq!(bench.sessions.gauges().parked, 1, "the spare is kept beside it");
    bench.later(SETTLES);
    let due = std::iter::from_fn(|| bench.rig.timers.take(bench.rig.net.now));
    assert!(due.collect::<Vec<_>>().contains(&Due::Settled(key)));
    bench.call(|sessions, turn| sessions.settled(turn, key));
    assert_eq!(bench.closed(key).map(|cause| cause.detail), Some(Cause::CLIENT_GONE.detail));
    assert_eq!(bench.outcomes(), [SpareOutcome::Asked, SpareOutcome::Came, SpareOutcome::Parked]);
    bench.place(2, 2, wanted(Some(id)));
    assert_eq!((bench.served(), bench.resumes()), (spare, vec![ResumeWay::Spare]));
}

#[test]
fn a_spare_that_no_worker_knows_ends_with_the_session() {
    let mut bench = Bench::new();
    let (key, _) = bench.open(1);
    bench.keeps = None;
    let how = Gone::Function(End::Fin);
    let routes = vec![Parted { key, busy: true, kept: true }];
    bench.on(ForSessions::ClientGone { conn: conn(1), how, routes });
    let spare = bench.spare();
    bench.launch();
    bench.said();
    // The function's side has ended the tunnel: its spare has a second.
    bench.later(Duration::from_secs(1));
    let due = std::iter::from_fn(|| bench.rig.timers.take(bench.rig.net.now));
    assert!(due.collect::<Vec<_>>().contains(&Due::Recall(spare)));
    bench.call(|sessions, turn| sessions.recall(turn, spare));
    assert_eq!(bench.said(), ["Recall"]);
    let ticket = Ticket { node: NODE, core: 0, number: number_of(spare) };
    bench.on(ForSessions::Recalled(ticket));
    assert_eq!(bench.closed(spare).map(|cause| cause.detail), Some(Cause::UNTAKEN.detail));
    let finished = Cause::ended(End::Fin);
    assert_eq!(bench.closed(key).map(|cause| cause.detail), Some(finished.detail));
    assert_eq!(bench.outcomes(), [SpareOutcome::Asked, SpareOutcome::Failed]);
    assert!(bench.sessions.is_empty());
}

// ---- tunnels that take no more streams ----

#[test]
fn a_spare_takes_the_place_of_a_tunnel_that_is_spent() {
    let mut bench = Bench::new();
    let (key, id) = bench.open(1);
    bench.said();
    bench.on(ForSessions::Spent { key, goaway: true });
    assert_eq!(bench.said(), ["Open", "Join 0", "Replaced"]);
    let spare = bench.spare();
    bench.attach(spare, true);
    let swapped = bench.out.iter().any(|fact| {
        matches!(fact, Fact::Relay(ForRelay::Swap { key: of, spare: by })
            if (*of, *by) == (key, spare))
    });
    assert!(swapped, "{:?}", bench.names);
    bench.place(1, 2, wanted(Some(id)));
    assert_eq!(bench.served(), key);
    let ended = Lost { key: spare, cause: Cause::GOAWAY, going: true, last: false };
    bench.on(ForSessions::Lost(ended));
    let outcomes = [SpareOutcome::Asked, SpareOutcome::Came, SpareOutcome::Replaced];
    assert_eq!((bench.outcomes(), bench.sessions.len()), (outcomes.to_vec(), 1));
}

#[test]
fn requests_are_placed_anew_when_no_spare_comes_in_time() {
    let mut bench = Bench::new();
    let (key, id) = bench.open(1);
    bench.on(ForSessions::Spent { key, goaway: false });
    let spare = bench.spare();
    bench.launch();
    bench.said();
    bench.call(|sessions, turn| sessions.replace_overdue(turn, key));
    let said = ["Withdraw", "Close", "Leave 0", "PlaceAnew", "Replaced"];
    assert_eq!(
        (bench.said(), bench.outcomes().last()),
        (to_strings(&said), Some(&SpareOutcome::Failed))
    );
    assert!(bench.closed(spare).is_some());
    // A request without an id has a new session now, and one with an id another tunnel.
    bench.place(1, 2, wanted(None));
    assert_ne!(bench.served(), key);
    bench.place(1, 3, wanted(Some(id)));
    let another = bench.served();
    bench.launch();
    assert_eq!(
        (bench.work(another).kind, bench.work(another).request_id),
        (WorkKind::Reconnect, id)
    );
}

#[test]
fn a_tunnel_that_is_lost_before_its_spare_is_there_takes_that_along() {
    let mut bench = Bench::new();
    let (key, _) = bench.open(1);
    bench.on(ForSessions::Spent { key, goaway: true });
    let spare = bench.spare();
    bench.launch();
    bench.said();
    let cause = Cause::ended(End::Reset);
    bench.on(ForSessions::Lost(Lost { key, cause, going: true, last: false }));
    let said = ["Withdraw", "Close", "Leave 0", "PlaceAnew", "Close", "Leave 0"];
    assert_eq!(bench.said(), said);
    assert!(bench.closed(spare).is_some() && bench.closed(key).is_some());
    assert_eq!(bench.outcomes().last(), Some(&SpareOutcome::Unused));
}

#[test]
fn a_spare_that_is_there_outlives_its_parent() {
    for (cause, parked) in [(Cause::STALLED, 1), (Cause::DELETED, 0)] {
        let mut bench = Bench::new();
        bench.keeps = Some(Speaks::Any);
        let (key, _) = bench.open(1);
        bench.on(ForSessions::WantsSpare { key });
        let spare = bench.spare();
        bench.attach(spare, true);
        bench.on(ForSessions::Lost(Lost { key, cause, going: false, last: false }));
        assert_eq!(bench.sessions.gauges().parked, parked, "{}", cause.detail);
    }
}

#[test]
fn a_spare_that_has_lasted_is_asked_for_again() {
    for (seconds, again) in [(4, false), (5, true)] {
        let mut bench = Bench::new();
        let (key, _) = bench.open(1);
        bench.on(ForSessions::WantsSpare { key });
        let spare = bench.spare();
        bench.attach(spare, true);
        bench.later(Duration::from_secs(seconds));
        bench.said();
        let cause = Cause::ended(End::Fin);
        bench.on(ForSessions::Lost(Lost { key: spare, cause, going: false, last: false }));
        assert_eq!(bench.has("Open"), again, "{seconds} s: {:?}", bench.names);
        assert!(bench.has("Replaced"));
    }
}

#[test]
fn without_parking_there_is_no_spare() {
    let mut bench = Bench::with(0, 1, set(|config| config.session.park = Park::Never));
    let (key, _) = bench.open(1);
    bench.said();
    bench.on(ForSessions::Spent { key, goaway: true });
    assert_eq!(bench.said(), ["PlaceAnew", "Replaced"]);
}

#[test]
fn a_gateway_that_drains_does_not_call_another_ones_session_unknown() {
    let secrets = vec![Secret::from("that all of its gateways have")];
    let mut bench = Bench::with(0, 1, set(|config| config.cluster.secrets = secrets));
    let id = RequestIds::new(OTHER_NODE, 0).mint([7; 16]);
    let come_back = |bench: &mut Bench, conn| {
        let (from, wanted, node) = (caller(conn), Box::new(wanted(Some(id))), OTHER_NODE);
        let here = Elsewhere { exchange: key(conn), from, wanted, node };
        bench.on(ForSessions::PlaceHere(Box::new(here)));
        bench.refused()
    };
    assert_eq!(come_back(&mut bench, 1), Fault::SessionNotFound { request_id: id });
    bench.rig.draining = Some(Draining::Open);
    assert_eq!(come_back(&mut bench, 2), Fault::Draining);
}
