use std::net::SocketAddr;
use std::sync::Arc;

use ringway_proto::fault::Fault;

use super::super::turn::rig::Rig;
use super::*;
use crate::control::local::SessionFacts;
use crate::control::port::Owner;
use crate::log::{Named, Refused};
use crate::metrics::{ResumeOutcome, ResumeWay};
use crate::timeline::Ask;

const SESSION: Uuid = Uuid::from_u128(0x6370_809d << 96 | 1);
const SECOND: Duration = Duration::from_secs(1);

fn client() -> SocketAddr {
    "192.0.2.7:50000".parse().expect("an address")
}

/// A core's edges and who reads them.
struct Probe {
    rig: Rig,
    edges: Edges,
    lines: Lines,
}

impl Probe {
    fn new() -> Self {
        Self { rig: Rig::new(3, 4), edges: Edges::new(100), lines: Lines::default() }
    }

    fn now(&self) -> Time {
        self.rig.net.now
    }

    fn read(&mut self, edge: Edge) {
        let now = self.now();
        let (metrics, lines) = (&mut self.rig.metrics, &mut self.lines);
        self.edges.read(edge, &mut Readers { now, metrics, lines });
    }

    fn part(&self) -> Part {
        let wanted = IdBegin::parse("6370809d").expect("digits");
        let mut parts = self.edges.timeline(wanted, self.now(), &self.rig.settings);
        assert_eq!(parts.len(), 1);
        parts.remove(0)
    }

    fn noted(&self) -> Vec<Event> {
        self.part().entries.iter().map(|entry| entry.event).collect()
    }

    fn line(&mut self) -> Line {
        let mut lines: Vec<Line> = self.lines.drain().collect();
        assert_eq!(lines.len(), 1, "{lines:?}");
        lines.remove(0)
    }

    fn quiet(&self) -> bool {
        self.lines.is_empty()
    }
}

fn facts(tenant: &str) -> SessionFacts {
    let owner = Owner::new(tenant.into(), "f".into(), "v".into());
    SessionFacts { owner: Arc::new(owner), opened: Time(5) }
}

fn began(wish: Ask) -> Edge {
    Edge::Began { session: SESSION, facts: facts("t"), wish, client: None }
}

fn named() -> Named {
    Named { session: SESSION, function: "f".into(), version: "v".into(), counted_for: None }
}

fn closed(cause: Cause, spare: bool) -> Edge {
    Edge::Closed(Box::new(Ended { named: named(), cause, held_for: SECOND, spare }))
}

fn side(cause: Cause) -> Party {
    match close_event(cause) {
        Event::Closed { side, .. } => side,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_begin_is_noted_with_who_the_client_is_when_that_was() {
    let mut probe = Probe::new();
    let met = Met { client: client(), at: Time(10), authorised: Some(Time(20)) };
    probe.read(Edge::Began {
        session: SESSION,
        facts: facts("t"),
        wish: Ask::New,
        client: Some(met),
    });
    let part = probe.part();
    let client = client().into();
    let noted = [
        (Time(10), Event::Accepted { client }),
        (Time(20), Event::Authorised),
        (probe.now(), Event::Asked(Ask::New)),
    ];
    assert_eq!(part.entries, noted.map(|(at, event)| Entry { at, event }));
    assert_eq!(part.facts.map(|facts| facts.owner.tenant.to_string()), Some("t".into()));
    assert_eq!((part.core, part.now), (3, probe.now()));
    assert!(probe.quiet());
}

#[test]
fn a_note_is_for_the_timeline_alone_and_may_be_late() {
    let mut probe = Probe::new();
    probe.read(Edge::Note { session: SESSION, at: None, event: Event::Goaway });
    probe.read(Edge::Note { session: SESSION, at: Some(Time(7)), event: Event::Refused });
    let at: Vec<Time> = probe.part().entries.iter().map(|entry| entry.at).collect();
    assert_eq!(at, [probe.now(), Time(7)]);
    assert_eq!(probe.edges.records(), 2);
    assert!(probe.quiet());
}

#[test]
fn a_client_that_comes_back_is_counted_timed_and_noted() {
    let mut probe = Probe::new();
    let met = Met { client: client(), at: Time(10), authorised: None };
    let (way, took) = (ResumeWay::Memory, SECOND);
    probe.read(Edge::Resumed { session: SESSION, way, took, client: Some(met) });
    assert_eq!(probe.rig.metrics.resumes.of(way, ResumeOutcome::Ok), 1);
    let client = client().into();
    assert_eq!(probe.noted(), [Event::Accepted { client }, Event::Resumed { way, took }]);
}

#[test]
fn a_tunnel_that_arrives_says_whose_it_is_only_to_who_does_not_know() {
    let mut probe = Probe::new();
    let arrived = |tenant| Edge::Arrived { session: SESSION, facts: facts(tenant), from: 2 };
    probe.read(arrived("first"));
    probe.read(arrived("second"));
    assert_eq!(probe.part().facts.map(|of| of.owner.tenant.to_string()), Some("first".into()));
    assert_eq!(probe.noted(), [Event::TunnelMoved { from: 2 }; 2]);
}

#[test]
fn a_spare_is_counted_by_what_becomes_of_it() {
    let mut probe = Probe::new();
    for outcome in SpareOutcome::ALL {
        probe.read(Edge::Spare { session: SESSION, outcome: *outcome });
    }
    assert_eq!(probe.rig.metrics.spares, [1; SpareOutcome::COUNT]);
    let noted = [Event::SpareAsked, Event::SpareAttached, Event::Replaced];
    assert_eq!(probe.noted(), noted, "its failure is said by its attachment's end");
}

#[test]
fn pings_are_summed_up_for_a_session_that_is_known() {
    let mut probe = Probe::new();
    let pong = |seconds| Edge::Ponged { session: SESSION, took: seconds * SECOND };
    probe.read(pong(9));
    probe.read(began(Ask::New));
    probe.read(pong(1));
    probe.read(pong(3));
    let pings = probe.part().pings.expect("two");
    assert_eq!((pings.count, pings.least, pings.most), (2, SECOND.into(), (3 * SECOND).into()));
}

#[test]
fn a_connect_that_is_let_in_is_counted_and_not_logged() {
    let mut probe = Probe::new();
    let result = ConnectResult::Accepted;
    probe.read(Edge::Connect { result, age: Some(SECOND), worker: client() });
    assert_eq!(probe.rig.metrics.connects[result.index()], 1);
    assert_eq!(probe.rig.metrics.connect_token_age[result.index()].count(), 1);
    assert!(probe.quiet());
}

#[test]
fn a_connect_that_is_refused_is_logged_as_well() {
    let mut probe = Probe::new();
    let result = ConnectResult::TokenUnknown;
    probe.read(Edge::Connect { result, age: None, worker: client() });
    assert_eq!(probe.rig.metrics.connects[result.index()], 1);
    assert_eq!(probe.rig.metrics.connect_token_age[result.index()].count(), 0, "none is known");
    let line = probe.line();
    let told = matches!(line, Line::Rejected { result, age: None, worker }
        if result == "rejected_token_unknown" && worker == client());
    assert!(told, "{line:?}");
}

#[test]
fn an_end_is_counted_noted_and_logged() {
    let mut probe = Probe::new();
    probe.read(began(Ask::New));
    let cause = Cause::WINDOW;
    probe.read(closed(cause, false));
    let metrics = &probe.rig.metrics;
    assert_eq!(metrics.worker_connections_closed[cause.reason.index()], 1);
    assert_eq!(metrics.close_codes[cause.code.index()], 1);
    assert_eq!(metrics.worker_connection_seconds.count(), 1);
    assert_eq!(metrics.worker_connection_seconds.sum(), 1.0);
    let end = Event::Closed {
        side: Party::Client,
        reason: CloseReason::ClientClosed,
        code: CloseCode::None,
        timer: Timer::named("park_window"),
        detail: cause.detail,
    };
    assert_eq!(probe.noted(), [Event::Asked(Ask::New), end]);
    match probe.line() {
        Line::Closed(closed) => {
            assert_eq!((closed.named.session, closed.held_for), (SESSION, SECOND));
            assert_eq!((closed.reason, closed.code), (cause.reason, cause.code));
            assert_eq!((closed.timer, closed.detail), ("park_window", cause.detail));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_spare_that_never_came_is_no_end_of_its_session() {
    let mut probe = Probe::new();
    probe.read(began(Ask::Spare));
    probe.read(closed(Cause::NO_WORKER, true));
    let failed = Event::SpareFailed { detail: Cause::NO_WORKER.detail };
    assert_eq!(probe.noted(), [Event::Asked(Ask::Spare), failed]);
    assert_eq!(probe.rig.metrics.worker_connections_closed.iter().sum::<u64>(), 1);
    assert!(matches!(probe.line(), Line::Closed(_)));
}

#[test]
fn who_ended_it_is_told_from_what_the_transport_said() {
    assert_eq!(side(Cause::CLIENT_GONE), Party::Client);
    assert_eq!(side(Cause::GOAWAY), Party::Worker);
    assert_eq!(side(Cause::IDLE), Party::Gateway, "our timer, which is called the worker's");
    assert_eq!(side(Cause::SHUTDOWN), Party::Gateway);
}

#[test]
fn the_log_hears_of_who_is_let_in_and_of_who_is_not() {
    let mut probe = Probe::new();
    probe.read(Edge::Registered(named()));
    assert!(matches!(probe.line(), Line::Registered(named) if named.session == SESSION));
    let refused = Refused {
        fault: Fault::NoWorker,
        client: client(),
        function: b"f".as_slice().into(),
        version: Box::default(),
        tenant: "t".into(),
    };
    probe.read(Edge::Refused(Box::new(refused)));
    assert!(matches!(probe.line(), Line::OpenFailed(refused) if refused.client == client()));
    assert_eq!(probe.edges.records(), 0, "the flight recorder has its own edges for both");
}

#[test]
fn a_session_that_had_to_be_forgotten_early_is_a_limit_that_was_hit() {
    let mut probe = Probe::new();
    probe.edges = Edges::new(1);
    probe.read(began(Ask::New));
    assert_eq!(probe.rig.metrics.limit_hits[Limit::TraceRecords.index()], 0);
    let session = Uuid::from_u128(2);
    probe.read(Edge::Note { session, at: None, event: Event::Goaway });
    assert_eq!(probe.rig.metrics.limit_hits[Limit::TraceRecords.index()], 1);
    assert_eq!(probe.edges.records(), 1);
}

#[test]
fn a_recorder_that_is_off_keeps_nothing_and_the_others_read_on() {
    let mut probe = Probe::new();
    probe.edges = Edges::new(0);
    probe.read(began(Ask::New));
    probe.read(Edge::Ponged { session: SESSION, took: SECOND });
    probe.read(closed(Cause::IDLE, false));
    assert_eq!(probe.edges.records(), 0);
    let wanted = IdBegin::parse("6370809d").expect("digits");
    assert!(probe.edges.timeline(wanted, probe.now(), &probe.rig.settings).is_empty());
    assert_eq!(probe.rig.metrics.worker_connection_seconds.count(), 1);
    assert!(matches!(probe.line(), Line::Closed(_)));
}
