//! CONNECTs, and what a dispatch home is told.

use super::*;

#[test]
fn a_connection_whose_token_is_good_becomes_a_tunnel_with_all_that_came_behind() {
    let mut bench = bench(0);
    let conn = bench.connect(b"one");
    let facts = bench.settle();
    let [Fact::Sessions(ForSessions::Token { text, id, .. })] = &facts[..] else {
        panic!("{facts:?}")
    };
    assert_eq!((&text[..], *id), (&b"tok"[..], Uuid::from_u128(5)));
    assert_eq!(bench.heard(conn), "");
    bench.say(conn, b"two");
    bench.on(admit(conn));
    let tunnel = attached(bench.settle());
    assert_eq!((tunnel.conn, tunnel.peer, tunnel.key.slot), (conn, peer(), 3));
    assert_eq!((&tunnel.tail[..], tunnel.opened), (&b"onetwo"[..], bench.rig.net.now));
    assert_eq!(bench.heard(conn), "HTTP/1.1 200 OK\r\n\r\n");
    let edges = bench.edges();
    assert!(matches!(
        edges[..],
        [
            Edge::Connect { result: ConnectResult::Accepted, age: Some(_), .. },
            Edge::Note { event: Event::Connected { .. }, .. }
        ]
    ));
    assert!(!bench.workers.holds(conn) && bench.workers.is_empty());
    // The second time there is no such connection.
    bench.on(admit(conn));
    assert!(bench.settle().is_empty());
}

#[test]
fn a_connection_whose_token_is_no_good_is_told_so_and_ends() {
    let mut bench = bench(0);
    let conn = bench.connect(b"");
    let result = ConnectResult::TokenExpired;
    bench.on(ForWorkers::Reject { conn, result, age: None });
    assert_eq!(bench.statuses(conn), [403]);
    assert!(bench.closed(conn));
    assert_eq!(connect_results(&bench.edges()), [result]);
}

#[test]
fn what_a_connect_lacks_is_found_before_its_token_is_asked_about() {
    let mut bench = bench(0);
    let conn = bench.accept();
    bench.say(conn, b"GET /v1/proxy HTTP/1.1\r\nhost: g\r\n\r\n");
    assert_eq!(bench.statuses(conn), [401]);
    assert!(bench.settle().is_empty() && bench.closed(conn));
    assert_eq!(connect_results(&bench.edges()), [ConnectResult::MissingAuth]);
}

#[test]
fn a_connect_ends_the_polls_of_its_connection() {
    let mut bench = bench(1);
    let conn = bench.accept();
    bench.say(conn, &bench.poll());
    bench.say(conn, &connect_head());
    assert_eq!(bench.statuses(conn), [204]);
    assert_eq!(bench.messages(), names(&[(1, "Poll"), (1, "Gone")]));
}

#[test]
fn a_connection_goes_to_its_tokens_core_with_what_was_read() {
    let mut bench = bench(0);
    let conn = bench.connect(b"one");
    bench.settle();
    bench.on(ForWorkers::SendHome { conn, core: 1 });
    assert!(bench.rig.net.output(conn).unwrap().is_detaching());
    bench.say(conn, b"two");
    bench.workers.detached(&mut bench.rig.turn(), conn, detached());
    let facts = bench.settle();
    let [Fact::Send { to: 1, message: CoreMessage::Connect(moved) }] = &facts[..] else {
        panic!("{facts:?}")
    };
    assert_eq!(moved.input, [&connect_head()[..], b"onetwo"].concat());
    assert_eq!((moved.peer, moved.from), (peer(), 0));
    assert!(bench.workers.is_empty() && bench.edges().is_empty());
}

#[test]
fn a_connection_that_ends_or_says_too_much_while_it_moves_is_taken_over_by_nobody() {
    let mut bench = bench(0);
    let conn = bench.connect(b"");
    bench.on(ForWorkers::SendHome { conn, core: 1 });
    bench.workers.ended(&mut bench.rig.turn(), conn, End::Reset);
    assert_eq!(connect_results(&bench.edges()), [ConnectResult::HijackFailed]);
    let conn = bench.connect(b"");
    bench.on(ForWorkers::SendHome { conn, core: 1 });
    bench.say(conn, &vec![b'x'; MOVED_BYTES]);
    assert_eq!(bench.statuses(conn), [400]);
    assert_eq!(connect_results(&bench.edges()), [ConnectResult::HijackFailed]);
    assert!(bench.closed(conn));
}

#[test]
fn a_connection_whose_tokens_core_has_no_room_is_turned_away() {
    let mut bench = bench(0);
    let conn = bench.connect(b"");
    bench.on(ForWorkers::NoWayHome { conn });
    assert_eq!(bench.statuses(conn), [503]);
    assert!(bench.closed(conn) && bench.edges().is_empty());
    assert_eq!(bench.limit(Limit::Mailbox), 1);
    // The same holds after the socket was detached.
    let before = bench.rig.net.connections();
    bench.on(ForWorkers::TurnAway(detached()));
    assert_eq!(bench.rig.net.connections(), before + 1);
    let conn = ConnId { slot: conn.slot + 1, generation: 0 };
    assert_eq!(bench.statuses(conn), [503]);
    assert!(bench.closed(conn));
}

#[test]
fn a_connection_that_came_from_another_core_is_served_as_if_it_had_come_here() {
    let mut bench = bench(0);
    let opened = Time(17);
    let input = [&connect_head()[..], b"tail"].concat();
    let moved =
        MovedConnect { detached: detached(), input, peer: peer(), opened, from: 1, via: None };
    bench.on(ForWorkers::Connect(Box::new(moved)));
    let facts = bench.settle();
    let [Fact::Sessions(ForSessions::Token { conn, .. })] = &facts[..] else { panic!("{facts:?}") };
    let conn = *conn;
    bench.on(admit(conn));
    let tunnel = attached(bench.settle());
    assert_eq!((&tunnel.tail[..], tunnel.opened), (&b"tail"[..], opened));
    let moved = |edge: &Edge| matches!(edge, Edge::Note { event: Event::Moved { from: 1 }, .. });
    assert!(bench.edges().iter().any(moved));
}

// ---- deadlines ----

#[test]
fn silent_connections_end() {
    let mut bench = bench(0);
    let (idle, half, fresh) = (bench.accept(), bench.accept(), bench.accept());
    bench.say(half, b"GET /health");
    assert!(bench.rig.timers.take(bench.rig.net.now).is_none());
    bench.later(HANDSHAKE_OVER);
    bench.say(fresh, b"GET /health HTTP/1.1\r\nhost: g\r\n\r\n");
    for conn in [idle, half, fresh] {
        bench.workers.look_at(&mut bench.rig.turn(), conn);
    }
    assert_eq!(bench.statuses(half), [408]);
    assert!(bench.closed(half) && bench.workers.holds(idle));
    assert_eq!(bench.limit(Limit::Handshake), 1);
    bench.later(Duration::from_secs(1));
    for conn in [idle, fresh] {
        bench.workers.look_at(&mut bench.rig.turn(), conn);
    }
    assert!(bench.closed(idle) && bench.workers.holds(fresh));
    // A connection that is looked at before its deadline is looked at again then.
    let idle_at = bench.rig.net.now + HANDSHAKE_OVER;
    while bench.rig.timers.take(Time(idle_at.0 - 1)).is_some() {}
    assert_eq!(bench.rig.timers.earliest(), Some(idle_at));
    assert_eq!(bench.rig.timers.take(idle_at), Some(Due::worker_conn(fresh)));
}

// ---- the dispatch home ----

#[test]
fn what_asks_a_dispatch_home_is_a_message_whatever_core_that_is() {
    for home in [0, 1] {
        let mut bench = bench(home);
        let of = OfVersion {
            ticket: ticket(0, 5),
            function: F.into(),
            version: bench.version.as_str().into(),
        };
        let (function, version) = (of.function.clone(), of.version.clone());
        let work = bench.work(0, 5);
        bench.on(ForWorkers::Submit(work));
        bench.on(ForWorkers::Recall(Box::new(of.clone())));
        bench.on(ForWorkers::Withdraw(Box::new(of.clone())));
        let parks = Parks { ticket: of.ticket, function, version };
        bench.on(ForWorkers::Parks(Box::new(parks)));
        bench.on(ForWorkers::Unparks(Box::new(of)));
        let said: Vec<(u16, String)> = bench
            .rig
            .facts()
            .iter()
            .map(|fact| match fact {
                Fact::Send { to, message } => (*to, name(message)),
                other => panic!("{other:?}"),
            })
            .collect();
        let expected = ["Submit", "Recall", "Withdraw", "Parks", "Unparks"];
        assert_eq!(said, names(&expected.map(|name| (home, name))));
    }
}

#[test]
fn a_full_queue_is_said_to_the_core_that_asked() {
    let mut config = Config::dev();
    config.limits.work_queue = 1;
    let mut bench = bench_with(0, config);
    for number in [5, 6] {
        let work = bench.work(1, number);
        bench.on(ForWorkers::Submitted(work));
    }
    let facts = bench.settle();
    assert!(matches!(facts[..], [Fact::Send { to: 1, message: CoreMessage::QueueFull(of) }]
        if of == ticket(1, 6)));
    assert_eq!(bench.limit(Limit::WorkQueue), 1);
}

#[test]
fn only_work_that_no_worker_was_told_of_is_recalled() {
    let mut bench = bench(0);
    let work = bench.work(1, 5);
    bench.on(ForWorkers::Submitted(work));
    bench.on(ForWorkers::RecallAsked(ticket(1, 5)));
    assert_eq!(bench.messages(), names(&[(1, "Recalled")]));
    bench.on(ForWorkers::RecallAsked(ticket(1, 5)));
    assert_eq!(bench.messages(), []);
    let conn = bench.accept();
    bench.say(conn, &bench.poll());
    bench.settle();
    let work = bench.work(1, 6);
    bench.on(ForWorkers::Submitted(work));
    bench.on(ForWorkers::RecallAsked(ticket(1, 6)));
    assert_eq!(bench.messages(), []);
    assert_eq!(bench.statuses(conn), [200]);
}

#[test]
fn the_tunnel_that_was_parked_first_gives_way_to_new_work_that_has_waited() {
    let mut bench = bench(0);
    let (function, version): (Arc<str>, Arc<str>) = (F.into(), bench.version.as_str().into());
    for of in [ticket(1, 1), ticket(0, 2), ticket(1, 3)] {
        let parks = Parks { ticket: of, function: function.clone(), version: version.clone() };
        bench.on(ForWorkers::ParkedThere(Box::new(parks)));
    }
    bench.on(ForWorkers::UnparkedThere(ticket(0, 2)));
    let work = bench.work(0, 5);
    bench.on(ForWorkers::Submitted(work));
    assert!(bench.settle().is_empty());
    let patience = bench.rig.settings.config.session.park_yield;
    bench.workers.look_at_queues(&mut bench.rig.turn());
    assert!(bench.settle().is_empty(), "it is too early");
    bench.later(patience);
    assert_eq!(bench.rig.timers.take(bench.rig.net.now), Some(Due::Yield));
    bench.workers.look_at_queues(&mut bench.rig.turn());
    let facts = bench.settle();
    assert!(matches!(facts[..], [Fact::Send { to: 1, message: CoreMessage::Yield(of) }]
        if of == ticket(1, 1)));
    // The work waits again for a worker.
    assert_eq!(bench.rig.timers.earliest(), Some(bench.rig.net.now + patience));
}

#[test]
fn what_a_core_asked_for_is_forgotten_with_it() {
    let mut bench = bench(0);
    let work = bench.work(1, 5);
    bench.on(ForWorkers::Submitted(work));
    let request = PollRequest {
        function_id: F.into(),
        function_version_id: Uuid::nil().to_string().into(),
        slots: 1,
        request_ids: Vec::new(),
    };
    let there = PollId { node: NODE, core: 1, conn: ConnId { slot: 1, generation: 1 }, round: 1 };
    bench.on(ForWorkers::Polled(there, Box::new(request)));
    let (function, version) = (F.into(), "v".into());
    let parks = Parks { ticket: ticket(1, 1), function, version };
    bench.on(ForWorkers::ParkedThere(Box::new(parks)));
    assert_eq!((bench.workers.polls(), bench.workers.fullest()), (1, 1));
    bench.workers.forget_core(&mut bench.rig.turn(), 1);
    assert!(bench.settle().is_empty() && bench.workers.is_empty());
}

#[test]
fn a_peer_behind_a_balancer_is_the_one_that_is_named() {
    let mut bench = bench(0);
    let conn = bench.accept();
    let behind = "203.0.113.9:9".parse().unwrap();
    bench.workers.addressed(conn, behind);
    bench.say(conn, &connect_head());
    bench.on(admit(conn));
    assert_eq!(attached(bench.settle()).peer, behind);
}
