mod connects;

use std::collections::VecDeque;
use std::time::Duration;

use ringway_proto::h1::connect::ConnectResult;
use uuid::Uuid;

use super::worker_conn::MOVED_BYTES;
use super::*;
use crate::config::{Config, Function};
use crate::control::local::{PollRequest, Ticket, Work, WorkKind};
use crate::control::port::Owner;
use crate::message::Parks;
use crate::metrics::Limit;
use crate::shard::facts::{Admitted, Edge, Fact, ForRelay, ForSessions, NewTunnel};
use crate::shard::table::Key;
use crate::shard::timer::Due;
use crate::shard::turn::rig::{NODE, Rig};
use crate::timeline::Event;

const F: &str = "11111111-1111-4111-8111-111111111111";
/// Longer than a head may take, and one second shorter than a connection may be idle.
const HANDSHAKE_OVER: Duration = Duration::from_secs(59);

/// A version whose dispatch home is `core`, of two cores.
fn version_at(rig: &Rig, core: u16) -> String {
    let versions = (0..64).map(|number| Uuid::from_u128(number).to_string());
    let mut fitting = versions.filter(|version| rig.settings.dispatch_home(F, version) == core);
    fitting.next().unwrap()
}

struct Bench {
    rig: Rig,
    workers: Workers,
    /// The version that is served. Its dispatch home is this core, or the other one.
    version: String,
}

fn peer() -> SocketAddr {
    "192.0.2.7:1234".parse().unwrap()
}

fn ticket(core: u16, number: u64) -> Ticket {
    Ticket { node: NODE, core, number }
}

fn bench_with(home: u16, config: Config) -> Bench {
    let rig = Rig::with(0, 2, config);
    let version = version_at(&rig, home);
    let function = Function {
        id: F.parse().unwrap(),
        version: version.parse().unwrap(),
        tenants: vec!["t".into()],
        worker_keys: vec!["key".into()],
        streaming: false,
        dial: None,
    };
    let policy = Arc::new(Policy::new(&[], &[function]));
    let workers = Workers::new(&rig.settings, policy);
    Bench { rig, workers, version }
}

/// Core 0 of 2. The work that workers ask for has the dispatch home `home`.
fn bench(home: u16) -> Bench {
    bench_with(home, Config::dev())
}

impl Bench {
    fn accept(&mut self) -> ConnId {
        let conn = self.rig.net.open();
        self.workers.accepted(&mut self.rig.turn(), conn, peer());
        conn
    }

    /// Bytes of the worker.
    fn say(&mut self, conn: ConnId, bytes: &[u8]) {
        let mut queue = VecDeque::new();
        self.rig.net.stash_bytes(bytes, &mut queue);
        for segment in queue {
            self.workers.received(&mut self.rig.turn(), conn, segment);
            self.rig.net.pool.release(segment);
        }
    }

    /// What the worker was sent since the last call.
    fn heard(&mut self, conn: ConnId) -> String {
        let output = self.rig.net.output(conn).unwrap();
        let bytes = output.queue().iter().flat_map(|part| self.rig.net.pool.bytes(*part));
        let text = String::from_utf8(bytes.copied().collect()).unwrap();
        self.rig.net.sent(conn, text.len());
        text
    }

    /// The statuses of the answers that the worker was sent since the last call.
    fn statuses(&mut self, conn: ConnId) -> Vec<u16> {
        let text = self.heard(conn);
        text.split("HTTP/1.1 ").skip(1).map(|answer| answer[..3].parse().unwrap()).collect()
    }

    fn on(&mut self, fact: ForWorkers) {
        self.workers.on(&mut self.rig.turn(), fact);
    }

    /// The facts left. Messages of this core to itself are delivered in between, as the loop does.
    fn settle(&mut self) -> Vec<Fact> {
        let mut others = Vec::new();
        let mut open: VecDeque<Fact> = self.rig.facts().into();
        while let Some(fact) = open.pop_front() {
            let fact = match fact {
                Fact::Send { to: 0, message } => match to_itself(message) {
                    Ok(fact) => Fact::Workers(fact),
                    Err(message) => Fact::Send { to: 0, message },
                },
                other => other,
            };
            match fact {
                Fact::Workers(fact) => {
                    self.on(fact);
                    for fact in self.rig.facts().into_iter().rev() {
                        open.push_front(fact);
                    }
                }
                other => others.push(other),
            }
        }
        others
    }

    /// The messages among the facts left.
    fn messages(&mut self) -> Vec<(u16, String)> {
        let messages = self.settle().into_iter().filter_map(|fact| match fact {
            Fact::Send { to, message } => Some((to, name(&message))),
            _ => None,
        });
        messages.collect()
    }

    fn edges(&mut self) -> Vec<Edge> {
        std::mem::take(&mut self.rig.left.edges)
    }

    fn poll(&self) -> Vec<u8> {
        let body = format!(r#"{{"functionId":"{F}","functionVersionId":"{}"}}"#, self.version);
        let head =
            "POST /v1/work HTTP/1.1\r\nhost: g\r\nauthorization: Bearer key\r\ncontent-length: ";
        format!("{head}{}\r\n\r\n{body}", body.len()).into()
    }

    fn work(&self, core: u16, number: u64) -> Box<Work> {
        Box::new(Work {
            ticket: ticket(core, number),
            kind: WorkKind::New,
            request_id: Uuid::from_u128(u128::from(number)),
            owner: Arc::new(Owner::new("t".into(), F.into(), self.version.as_str().into())),
            token: [b'x'; 64],
        })
    }

    /// The id of the last round of polls of a connection.
    fn poll_id(&self, conn: ConnId) -> PollId {
        PollId { node: NODE, core: 0, conn, round: self.workers.poll_state.rounds }
    }

    /// A worker's CONNECT that is not answered yet, with the bytes behind it.
    fn connect(&mut self, tail: &[u8]) -> ConnId {
        let conn = self.accept();
        self.say(conn, &[&connect_head(), tail].concat());
        conn
    }

    fn closed(&self, conn: ConnId) -> bool {
        let closing = self.rig.net.output(conn).unwrap().closing();
        closing == Some(Close::Flush) && !self.workers.holds(conn)
    }

    fn later(&mut self, time: Duration) {
        self.rig.net.now += time;
    }

    fn limit(&self, limit: Limit) -> u64 {
        self.rig.metrics.limit_hits[limit.index()]
    }
}

/// The fact in a message of this core to itself, if it is for the workers.
fn to_itself(message: CoreMessage) -> Result<ForWorkers, CoreMessage> {
    Ok(match message {
        CoreMessage::Submit(work) => ForWorkers::Submitted(work),
        CoreMessage::Withdraw(ticket) => ForWorkers::Withdrawn(ticket),
        CoreMessage::Recall(ticket) => ForWorkers::RecallAsked(ticket),
        CoreMessage::Poll(poll, request) => ForWorkers::Polled(poll, request),
        CoreMessage::Delivered(poll) => ForWorkers::Delivered(poll),
        CoreMessage::Doubted(poll) => ForWorkers::Doubted(poll),
        CoreMessage::Gone(poll) => ForWorkers::PollGone(poll),
        CoreMessage::Answer(poll, answer) => ForWorkers::PollAnswered(poll, answer),
        CoreMessage::TooManyPolls(poll) => ForWorkers::PollRefused(poll),
        CoreMessage::Parks(parks) => ForWorkers::ParkedThere(parks),
        CoreMessage::Unparks(ticket) => ForWorkers::UnparkedThere(ticket),
        other => return Err(other),
    })
}

fn name(message: &CoreMessage) -> String {
    let text = format!("{message:?}");
    text.split(['(', ' ']).next().unwrap().into()
}

fn names(messages: &[(u16, &str)]) -> Vec<(u16, String)> {
    messages.iter().map(|(to, name)| (*to, (*name).into())).collect()
}

fn connect_head() -> Vec<u8> {
    let id = Uuid::from_u128(5);
    format!("GET /v1/proxy HTTP/1.1\r\nhost: g\r\nauthorization: Bearer tok\r\nx-request-id: {id}\r\n\r\n")
        .into()
}

fn detached() -> Detached {
    Detached::of_nobody()
}

fn admit(conn: ConnId) -> ForWorkers {
    let key = Key { slot: 3, generation: 4 };
    let admitted = Admitted { key, age: Duration::from_secs(2), session: Uuid::from_u128(5) };
    ForWorkers::Admit { conn, admitted: Box::new(admitted) }
}

fn attached(facts: Vec<Fact>) -> NewTunnel {
    let tunnel = facts.into_iter().find_map(|fact| match fact {
        Fact::Relay(ForRelay::Attach(tunnel)) => Some(*tunnel),
        _ => None,
    });
    tunnel.unwrap()
}

fn connect_results(edges: &[Edge]) -> Vec<ConnectResult> {
    let results = edges.iter().filter_map(|edge| match edge {
        Edge::Connect { result, worker, .. } if *worker == peer() => Some(*result),
        _ => None,
    });
    results.collect()
}

// ---- polls ----

#[test]
fn a_poll_takes_the_work_that_waits() {
    let mut bench = bench(0);
    let work = bench.work(0, 5);
    bench.on(ForWorkers::Submit(work));
    assert!(bench.settle().is_empty());
    assert_eq!(bench.workers.fullest(), 1);
    let conn = bench.accept();
    bench.say(conn, &bench.poll());
    assert!(bench.settle().is_empty());
    let text = bench.heard(conn);
    assert!(text.starts_with("HTTP/1.1 200 OK") && text.contains(&Uuid::from_u128(5).to_string()));
    let noted = bench.edges();
    assert!(matches!(noted[..], [Edge::Note { session, event: Event::HandedOut, .. }]
        if session == Uuid::from_u128(5)));
}

#[test]
fn work_goes_to_the_poll_that_waits_and_the_next_one_says_that_it_arrived() {
    let mut bench = bench(0);
    let conn = bench.accept();
    bench.say(conn, &bench.poll());
    bench.settle();
    assert_eq!((bench.workers.polls(), bench.heard(conn)), (1, String::new()));
    let work = bench.work(0, 5);
    bench.on(ForWorkers::Submit(work));
    bench.settle();
    assert_eq!(bench.statuses(conn), [200]);
    bench.say(conn, &bench.poll());
    let said: Vec<String> = bench
        .rig
        .facts()
        .iter()
        .map(|fact| match fact {
            Fact::Send { to: 0, message } => name(message),
            other => format!("{other:?}"),
        })
        .collect();
    assert_eq!(said, ["Delivered", "Poll"]);
}

#[test]
fn a_poll_for_another_core_is_a_message_and_so_is_its_answer() {
    let mut bench = bench(1);
    let conn = bench.accept();
    bench.say(conn, &bench.poll());
    assert_eq!(bench.messages(), names(&[(1, "Poll")]));
    bench.on(ForWorkers::PollAnswered(bench.poll_id(conn), PollAnswer::Nothing));
    assert_eq!(bench.statuses(conn), [204]);
    // The same answer once more: no poll waits for it.
    bench.on(ForWorkers::PollAnswered(bench.poll_id(conn), PollAnswer::Nothing));
    assert_eq!(bench.statuses(conn), [0; 0]);
}

#[test]
fn another_request_replaces_a_poll_and_work_on_its_way_is_queued_again() {
    let mut bench = bench(1);
    let conn = bench.accept();
    bench.say(conn, &bench.poll());
    bench.say(conn, b"GET /health HTTP/1.1\r\nhost: g\r\n\r\n");
    assert_eq!(bench.statuses(conn), [204, 200]);
    assert_eq!(bench.messages(), names(&[(1, "Poll"), (1, "Gone")]));
    let work = PollAnswer::Work(bench.work(1, 5));
    bench.on(ForWorkers::PollAnswered(bench.poll_id(conn), work));
    assert_eq!(bench.messages(), names(&[(1, "Gone")]));
    assert_eq!(bench.heard(conn), "");
}

#[test]
fn work_that_crossed_a_newer_poll_is_in_doubt() {
    let mut bench = bench(1);
    let conn = bench.accept();
    bench.say(conn, &bench.poll());
    bench.say(conn, &bench.poll());
    assert_eq!(bench.messages(), names(&[(1, "Poll"), (1, "Poll")]));
    let work = PollAnswer::Work(bench.work(1, 5));
    bench.on(ForWorkers::PollAnswered(bench.poll_id(conn), work));
    assert_eq!(bench.messages(), names(&[(1, "Doubted")]));
    bench.on(ForWorkers::PollAnswered(bench.poll_id(conn), PollAnswer::Nothing));
    assert_eq!(bench.statuses(conn), [200, 204]);
}

#[test]
fn what_is_known_of_work_depends_on_how_the_connection_ends() {
    for (end, taken, word) in
        [(End::Fin, true, "Doubted"), (End::Fin, false, "Gone"), (End::Reset, true, "Gone")]
    {
        let mut bench = bench(1);
        let conn = bench.accept();
        bench.say(conn, &bench.poll());
        let work = PollAnswer::Work(bench.work(1, 5));
        bench.on(ForWorkers::PollAnswered(bench.poll_id(conn), work));
        bench.settle();
        if taken {
            bench.heard(conn);
        }
        bench.workers.ended(&mut bench.rig.turn(), conn, end);
        assert_eq!(bench.messages(), names(&[(1, word)]), "{end:?} {taken}");
        assert!(bench.workers.is_empty());
    }
}

#[test]
fn a_poll_that_waits_is_gone_with_its_connection() {
    let mut bench = bench(0);
    let conn = bench.accept();
    bench.say(conn, &bench.poll());
    bench.settle();
    bench.workers.end(&mut bench.rig.turn(), conn, Close::Now);
    bench.settle();
    assert_eq!((bench.workers.polls(), bench.workers.len()), (0, 0));
    assert!(bench.workers.is_empty());
}

#[test]
fn all_connections_can_end_one_after_the_other_while_work_waits_for_them() {
    let mut bench = bench(0);
    let conns: Vec<ConnId> = (0..3).map(|_| bench.accept()).collect();
    for conn in &conns {
        bench.say(*conn, &bench.poll());
    }
    bench.settle();
    let work = bench.work(0, 5);
    bench.on(ForWorkers::Submit(work));
    bench.settle();
    assert_eq!(bench.workers.ids(), conns);
    for conn in bench.workers.ids() {
        bench.workers.end(&mut bench.rig.turn(), conn, Close::Flush);
        bench.settle();
    }
    // Each connection was sent the work, and none had taken it.
    let statuses = conns.iter().flat_map(|conn| bench.statuses(*conn)).collect::<Vec<u16>>();
    assert_eq!(statuses, [200, 200, 200]);
    assert_eq!((bench.workers.fullest(), bench.workers.len()), (1, 0));
}

#[test]
fn a_connection_that_wants_to_end_does_so_with_its_polls_answer() {
    let mut bench = bench(0);
    let conn = bench.accept();
    let poll = String::from_utf8(bench.poll()).unwrap();
    bench.say(conn, poll.replace("\r\n\r\n", "\r\nconnection: close\r\n\r\n").as_bytes());
    bench.settle();
    assert!(bench.workers.holds(conn));
    let work = bench.work(0, 5);
    bench.on(ForWorkers::Submit(work));
    assert!(bench.settle().is_empty());
    assert_eq!(bench.statuses(conn), [200]);
    assert!(bench.closed(conn));
    // The work's delivery is in doubt: it is queued again if no worker dials back.
    assert_eq!(bench.workers.fullest(), 0);
    bench.later(Duration::from_secs(5));
    assert_eq!(bench.workers.deadline(), Some(bench.rig.net.now));
    bench.workers.turn(&mut bench.rig.turn());
    assert_eq!(bench.workers.fullest(), 1);
}

#[test]
fn what_comes_behind_a_poll_is_read_in_the_next_turn() {
    let mut bench = bench(0);
    let work = bench.work(0, 5);
    bench.on(ForWorkers::Submit(work));
    bench.settle();
    let conn = bench.accept();
    bench.say(conn, &[&bench.poll()[..], b"GET /health HTTP/1.1\r\nhost: g\r\n"].concat());
    bench.say(conn, b"\r\n");
    bench.settle();
    assert_eq!(bench.statuses(conn), [200], "the work, which waited");
    assert_eq!(bench.workers.deadline(), Some(Time::ZERO));
    bench.workers.turn(&mut bench.rig.turn());
    assert_eq!(bench.statuses(conn), [200], "the health");
    bench.settle();
    assert!(bench.workers.holds(conn) && bench.workers.deadline().is_none());
}

#[test]
fn polls_over_the_limit_are_refused_behind_the_ones_they_replace() {
    let mut config = Config::dev();
    config.limits.polls = 1;
    let mut bench = bench_with(0, config);
    let (one, two) = (bench.accept(), bench.accept());
    for conn in [one, two, two] {
        bench.say(conn, &bench.poll());
        bench.settle();
    }
    assert_eq!((bench.statuses(one), bench.statuses(two)), (vec![], vec![503, 503]));
    assert_eq!(bench.limit(Limit::Polls), 2);
    // Another core refuses the second poll of a connection: the first one is answered before it.
    let mut away = self::bench(1);
    let conn = away.accept();
    away.say(conn, &away.poll());
    away.say(conn, &away.poll());
    away.settle();
    away.on(ForWorkers::PollRefused(away.poll_id(conn)));
    assert_eq!(away.statuses(conn), [204, 503]);
    assert_eq!(away.messages(), names(&[(1, "Gone")]));
}

#[test]
fn a_poll_is_answered_with_nothing_when_its_home_is_silent_or_began_anew() {
    let mut bench = bench(1);
    let (one, two) = (bench.accept(), bench.accept());
    bench.say(one, &bench.poll());
    bench.later(Duration::from_secs(35));
    bench.workers.look_at(&mut bench.rig.turn(), one);
    assert_eq!(bench.statuses(one), [204]);
    bench.say(two, &bench.poll());
    bench.settle();
    bench.workers.renew(&mut bench.rig.turn(), 0);
    assert_eq!(bench.heard(two), "");
    bench.workers.renew(&mut bench.rig.turn(), 1);
    assert_eq!(bench.statuses(two), [204]);
    assert_eq!(bench.messages(), names(&[(1, "Gone")]));
}

#[test]
fn what_is_wrong_with_a_request_is_answered() {
    let key = "authorization: Bearer key\r\n";
    for (text, status, stays) in [
        ("POST /v1/work HTTP/1.1\r\nhost: g\r\ncontent-length: 2\r\n\r\n{}", 400, true),
        ("GET /v1/work HTTP/1.1\r\nhost: g\r\n\r\n", 405, true),
        ("GET /nothing HTTP/1.1\r\nhost: g\r\n\r\n", 404, true),
        ("GET /health HTTP/1.1\r\nhost: g\r\n\r\n", 200, true),
        ("GET /health HTTP/1.0\r\n\r\n", 200, false),
        ("POST /v1/work HTTP/1.1\r\nhost: g\r\ncontent-length: 99999999\r\n\r\n", 413, false),
        ("POST /v1/work HTTP/1.1\r\nhost: g\r\ntransfer-encoding: chunked\r\n\r\n", 413, false),
        ("nonsense\r\n\r\n", 400, false),
    ] {
        let mut bench = bench(0);
        let conn = bench.accept();
        bench.say(conn, text.as_bytes());
        assert_eq!((bench.statuses(conn), !bench.closed(conn)), (vec![status], stays), "{text}");
    }
    let mut bench = bench(0);
    let conn = bench.accept();
    let poll = String::from_utf8(bench.poll()).unwrap();
    bench.say(conn, poll.replace(key, "authorization: Bearer other\r\n").as_bytes());
    assert_eq!(bench.statuses(conn), [401]);
    // Under other rules it is a good key.
    bench.workers.replace_policy(Arc::new(Policy::default()));
    bench.say(conn, poll.as_bytes());
    assert_eq!(bench.statuses(conn), [401]);
}

#[test]
fn a_body_that_is_waited_for_is_asked_for_once() {
    let mut bench = bench(1);
    let conn = bench.accept();
    let poll = String::from_utf8(bench.poll()).unwrap();
    let poll = poll.replace("\r\n\r\n", "\r\nexpect: 100-continue\r\n\r\n");
    let (head, body) = poll.split_at(poll.find('{').unwrap());
    bench.say(conn, head.as_bytes());
    bench.say(conn, &body.as_bytes()[..1]);
    assert_eq!(bench.heard(conn), "HTTP/1.1 100 Continue\r\n\r\n");
    bench.say(conn, &body.as_bytes()[1..]);
    assert_eq!(bench.messages(), names(&[(1, "Poll")]));
}

// ---- CONNECT ----
