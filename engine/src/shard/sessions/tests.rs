//! Sessions without a world: the facts that each fact leaves. The bench plays a relay that does at
//! once what it is asked, and the local control plane.

mod cores;
mod kept;
mod plane;
mod shown;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ringway_proto::fault::Fault;
use ringway_proto::id::RequestIds;
use uuid::Uuid;

use super::super::facts::{
    Answer, Ask, AskTicket, Caller, Lost, MovedHop, Question, Tally, Wanted, key_numbered,
};
use super::super::turn::Draining;
use super::super::turn::rig::{NODE, OTHER_NODE, Rig};
use super::attachment::Kin;
use super::*;
use crate::config::{Config, Dial, HonourId, Park, Scope, Secret};
use crate::control::port::{Call, Denied, Plane};
use crate::message::{CoreMessage, Find, Found, Leave, MemberState, Resumed, Vouched};
use crate::metrics::{CloseReason, ResumeOutcome, SpareOutcome};
use crate::net::{Detached, End};

const FUNCTION: &str = "11111111-1111-4111-8111-111111111111";
const VERSION: &str = "22222222-2222-4222-8222-222222222222";

struct Bench {
    rig: Rig,
    sessions: Sessions,
    policy: Arc<Policy>,
    /// Whether the control plane answers at once.
    plane: bool,
    /// The protocol that parked tunnels speak; none if they are used up.
    keeps: Option<Speaks>,
    tally: Tally,
    /// All that was left, by name.
    names: Vec<String>,
    /// The facts that were left for others.
    out: Vec<Fact>,
}

impl Bench {
    fn new() -> Self {
        Self::with(0, 1, Config::dev())
    }

    fn with(core: u16, cores: u16, config: Config) -> Self {
        let policy = Arc::new(Policy::new(&config.tenants, &config.functions));
        let rig = Rig::with(core, cores, config);
        let sessions = Sessions::new(&rig.settings, policy.clone());
        Self {
            rig,
            sessions,
            policy,
            plane: true,
            keeps: Some(Speaks::Http2),
            tally: Tally::default(),
            names: Vec::new(),
            out: Vec::new(),
        }
    }

    fn call(&mut self, what: impl FnOnce(&mut Sessions, &mut Turn<'_>)) {
        what(&mut self.sessions, &mut self.rig.turn());
        for fact in self.rig.facts() {
            self.route(fact);
        }
    }

    fn on(&mut self, fact: ForSessions) {
        self.call(|sessions, turn| sessions.on(turn, fact));
    }

    fn route(&mut self, fact: Fact) {
        self.names.push(name(&fact));
        match fact {
            Fact::Send { to, message } if to == self.rig.settings.core => self.on(heard(message)),
            Fact::Ask(Ask { ticket, what: Question::Authorise(call), .. }) if self.plane => {
                let said = (call.credential(), call.function(), call.version());
                let answer = match self.policy.authorise(said.0, said.1, said.2, 0) {
                    Ok(grant) => Answer::Granted(grant),
                    Err(denied) => Answer::Denied(denied),
                };
                self.on(ForSessions::Answered { ticket, answer });
            }
            Fact::Relay(ForRelay::Close { key, cause, .. }) => {
                self.out.push(fact);
                self.on(ForSessions::Closed { key, cause, tally: self.tally });
            }
            Fact::Relay(ForRelay::Park { key, .. }) => {
                self.on(match self.keeps {
                    Some(speaks) => ForSessions::Parked { key, speaks },
                    None => ForSessions::UsedUp { key },
                });
            }
            fact => self.out.push(fact),
        }
    }

    /// The outcomes of questions, in the order of the labels.
    fn asks(&self) -> [u64; AskOutcome::COUNT] {
        self.rig.metrics.asks
    }

    /// The names since the last time.
    fn said(&mut self) -> Vec<String> {
        std::mem::take(&mut self.names)
    }

    fn has(&self, name: &str) -> bool {
        self.names.iter().any(|other| other == name)
    }

    fn place(&mut self, conn: u32, exchange: u32, wanted: Wanted) {
        let (from, wanted) = (Box::new(caller(conn)), Box::new(wanted));
        self.on(ForSessions::Place { exchange: key(exchange), from, wanted });
    }

    /// The attachment by which the last request goes.
    fn served(&self) -> Key {
        let served = self.out.iter().rev().find_map(|fact| match fact {
            Fact::Relay(ForRelay::Serve { key, .. }) => Some(*key),
            _ => None,
        });
        served.expect("a request was served")
    }

    /// Why the last request was refused.
    fn refused(&self) -> Fault {
        let refused = self.out.iter().rev().find_map(|fact| match fact {
            Fact::Relay(ForRelay::Refuse { fault, .. }) => Some((**fault).clone()),
            _ => None,
        });
        refused.expect("a request was refused")
    }

    fn closed(&self, wanted: Key) -> Option<Cause> {
        self.out.iter().rev().find_map(|fact| match fact {
            Fact::Relay(ForRelay::Close { key, cause, .. }) if *key == wanted => Some(*cause),
            _ => None,
        })
    }

    /// The work that was queued for an attachment.
    fn work(&self, key: Key) -> Work {
        let number = number_of(key);
        let work = self.out.iter().rev().find_map(|fact| match fact {
            Fact::Workers(ForWorkers::Submit(work)) if work.ticket.number == number => {
                Some((**work).clone())
            }
            _ => None,
        });
        work.expect("its work was queued")
    }

    fn launch(&mut self) {
        while self.sessions.has_deferred() {
            self.call(|sessions, turn| sessions.launch(turn));
        }
    }

    /// A worker dials back for an attachment.
    fn attach(&mut self, key: Key, unspoken: bool) {
        self.launch();
        let Work { token, request_id, .. } = self.work(key);
        let text = token.to_vec();
        self.on(ForSessions::Token { conn: conn(90), text, id: request_id });
        assert!(self.has("Admit"), "{:?}", self.names);
        self.on(ForSessions::Attached { key, unspoken });
    }

    /// A session with its tunnel, of one client.
    fn open(&mut self, conn: u32) -> (Key, Uuid) {
        self.place(conn, conn, wanted(None));
        let key = self.served();
        self.attach(key, false);
        (key, self.work(key).request_id)
    }

    fn gone(&mut self, conn_number: u32, kept: &[Key]) {
        let routes = kept.iter().map(|key| Parted { key: *key, busy: false, kept: true }).collect();
        let how = Gone::Ended(End::Reset);
        self.on(ForSessions::ClientGone { conn: conn(conn_number), how, routes });
    }

    fn later(&mut self, by: Duration) {
        self.rig.net.now += by;
    }

    fn outcomes(&self) -> Vec<SpareOutcome> {
        let outcome = |edge: &Edge| match edge {
            Edge::Spare { outcome, .. } => Some(*outcome),
            _ => None,
        };
        self.rig.left.edges.iter().filter_map(outcome).collect()
    }

    fn resumes(&self) -> Vec<ResumeWay> {
        let way = |edge: &Edge| match edge {
            Edge::Resumed { way, .. } => Some(*way),
            _ => None,
        };
        self.rig.left.edges.iter().filter_map(way).collect()
    }

    /// The spare that was asked for last.
    fn spare(&self) -> Key {
        let spare = self
            .sessions
            .roster
            .attachments
            .iter()
            .find_map(|(key, of)| matches!(of.kin, Kin::StandsInFor(_)).then_some(key));
        spare.expect("a spare was asked for")
    }
}

fn head(of: &impl std::fmt::Debug) -> String {
    let text = format!("{of:?}");
    text.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default().into()
}

fn name(fact: &Fact) -> String {
    match fact {
        Fact::Relay(fact) => head(fact),
        Fact::Sessions(fact) => head(fact),
        Fact::Workers(fact) => head(fact),
        Fact::Send { to, message } => format!("{} {to}", head(message)),
        Fact::Ask(ask) => head(&ask.what),
        Fact::Dial { .. } => "Dial".into(),
        Fact::Undial { .. } => "Undial".into(),
        Fact::Renewed { .. } => "Renewed".into(),
        other => head(other),
    }
}

/// The fact that a message becomes on the core that hears it.
fn heard(message: CoreMessage) -> ForSessions {
    match message {
        CoreMessage::Find(find) => ForSessions::Find(find),
        CoreMessage::Found(found) => ForSessions::Found(found),
        CoreMessage::Vouch(vouch) => ForSessions::Vouch(vouch),
        CoreMessage::Vouched(vouched) => ForSessions::Vouched(vouched),
        CoreMessage::Join(join) => ForSessions::Join(join),
        CoreMessage::MemberState(id, ticket, member_state) => {
            ForSessions::MemberState(id, ticket, member_state)
        }
        CoreMessage::Leave(leave) => ForSessions::Leave(leave),
        CoreMessage::EndSurplus(ticket) => ForSessions::EndSurplus(ticket),
        CoreMessage::Claim { parked, to } => ForSessions::Claim { parked, to },
        CoreMessage::Resumed(resumed) => ForSessions::Resumed { resumed, room: true },
        message => panic!("not said by sessions: {message:?}"),
    }
}

fn to_strings(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).into()).collect()
}

fn key(slot: u32) -> Key {
    Key { slot, generation: 1000 + slot }
}

fn conn(slot: u32) -> ConnId {
    ConnId { slot, generation: 1 }
}

fn caller(slot: u32) -> Caller {
    let peer = SocketAddr::from(([10, 0, 0, 1], slot as u16));
    let opened = Time(1_000_000);
    Caller { conn: conn(slot), peer, opened, speaks: Speaks::Http2, brought: false }
}

fn by(credential: &str, id: Option<Uuid>) -> Wanted {
    calling(credential, VERSION, id)
}

fn calling(credential: &str, version: &str, id: Option<Uuid>) -> Wanted {
    let call = Call::new(credential.as_bytes(), FUNCTION.as_bytes(), version.as_bytes());
    Wanted { call: Arc::new(call), id, window: None }
}

fn wanted(id: Option<Uuid>) -> Wanted {
    by("dev-key", id)
}

/// A configuration with some settings changed.
fn set(change: impl FnOnce(&mut Config)) -> Config {
    let mut config = Config::dev();
    change(&mut config);
    config
}

// ---- the control plane ----

#[test]
fn a_request_is_asked_for_once_and_opens_a_session() {
    let mut bench = Bench::new();
    bench.place(1, 1, wanted(None));
    assert_eq!(bench.said(), ["Authorise", "Open", "Serve", "Join 0"]);
    let key = bench.served();
    let learned = matches!(
        bench.out.last(),
        Some(Fact::Relay(ForRelay::Serve { wanted, unnamed: true, .. })) if wanted.id.is_none()
    );
    assert!(learned);
    bench.place(1, 2, wanted(None));
    assert_eq!((bench.said(), bench.served()), (vec!["Serve".into()], key));
    bench.launch();
    assert_eq!(bench.said(), ["Submit"]);
    assert_eq!(bench.rig.metrics.tokens_issued, 1);
    assert_eq!(bench.sessions.gauges().pending, 1);
}

#[test]
fn other_rules_hold_for_all_but_the_session_there_is() {
    let mut bench = Bench::new();
    let (key, id) = bench.open(1);
    bench.said();
    let nobody = Arc::new(Policy::new(&[], &[]));
    bench.policy = nobody.clone();
    bench.call(|sessions, turn| sessions.replace_policy(turn, nobody));
    assert_eq!(bench.said(), ["Unlearn"]);
    bench.place(1, 2, wanted(None));
    bench.place(1, 3, wanted(Some(id)));
    assert_eq!((bench.said(), bench.served()), (vec!["Serve".into(); 2], key));
    bench.place(1, 4, wanted(Some(Uuid::from_u128(1))));
    assert_eq!(bench.said(), ["Authorise", "Refuse"]);
}

#[test]
fn terms_that_change_are_told() {
    let mut bench = Bench::new();
    let (key, _) = bench.open(1);
    bench.said();
    let config = set(|config| config.functions[0].streaming = true);
    let policy = Arc::new(Policy::new(&config.tenants, &config.functions));
    bench.call(|sessions, turn| sessions.replace_policy(turn, policy));
    assert_eq!(bench.said(), ["Terms", "Unlearn"]);
    let told = bench.out.iter().any(|fact| {
        let silent = super::super::cause::Manner::Silent;
        matches!(fact, Fact::Relay(ForRelay::Terms { key: of, terms })
            if *of == key && terms.parks.contains(silent))
    });
    assert!(told);
}

// ---- workers ----

#[test]
fn a_token_is_good_once_and_for_its_session() {
    let mut bench = Bench::with(0, 1, set(|config| config.limits.token_tries = 2));
    bench.place(1, 1, wanted(None));
    let key = bench.served();
    bench.launch();
    let Work { token, request_id: id, .. } = bench.work(key);
    let show = |bench: &mut Bench, id| {
        bench.said();
        bench.on(ForSessions::Token { conn: conn(9), text: token.to_vec(), id });
        bench.said()
    };
    assert_eq!(show(&mut bench, Uuid::from_u128(1)), ["Reject"]);
    assert_eq!(show(&mut bench, id), ["Served", "Admit"]);
    assert_eq!(show(&mut bench, id), ["Reject"]);
    bench.on(ForSessions::Attached { key, unspoken: false });
    assert_eq!(bench.said(), ["MemberState 0"]);
    assert!(matches!(bench.rig.left.edges.last(), Some(Edge::Registered(_))));

    bench.place(2, 2, wanted(None));
    let key = bench.served();
    bench.launch();
    let Work { token, .. } = bench.work(key);
    for _ in 0..2 {
        let text = token.to_vec();
        bench.on(ForSessions::Token { conn: conn(9), text, id: Uuid::from_u128(1) });
    }
    assert_eq!(bench.closed(key).map(|cause| cause.reason), Some(CloseReason::Deleted));
    assert_eq!(bench.sessions.gauges().pending, 0);
}

#[test]
fn a_token_of_another_core_is_sent_there() {
    let mut there = Bench::with(1, 2, Config::dev());
    there.place(1, 1, wanted(None));
    there.launch();
    let Work { token, request_id: id, .. } = there.work(there.served());
    let mut here = Bench::with(0, 2, Config::dev());
    here.on(ForSessions::Token { conn: conn(9), text: token.to_vec(), id });
    let sent = matches!(here.out[..], [Fact::Workers(ForWorkers::SendHome { core: 1, .. })]);
    assert!(sent, "{:?}", here.out);
}

#[test]
fn who_waits_too_long_is_given_up_and_what_nobody_waits_for_at_once() {
    let mut bench = Bench::new();
    bench.place(1, 1, wanted(None));
    let key = bench.served();
    bench.launch();
    bench.call(|sessions, turn| sessions.waited(turn, key));
    assert!(bench.closed(key).is_none(), "it has its time");
    bench.later(Duration::from_secs(30));
    bench.call(|sessions, turn| sessions.waited(turn, key));
    assert_eq!(bench.closed(key).map(|cause| cause.reason), Some(CloseReason::TtlExpired));
    bench.place(1, 2, wanted(None));
    let fresh = bench.served();
    assert_ne!(fresh, key, "its pin was let go");
    bench.said();
    bench.on(ForSessions::Abandoned { key: fresh });
    bench.launch();
    assert_eq!(bench.said(), ["Unlearn", "Close", "Leave 0"], "no worker was asked");
    assert_eq!(bench.sessions.gauges(), Gauges::default());
}

#[test]
fn what_somebody_else_wants_in_the_same_breath_is_not_given_up() {
    let mut bench = Bench::new();
    bench.place(1, 1, wanted(None));
    let key = bench.served();
    bench.on(ForSessions::Abandoned { key });
    bench.place(1, 2, wanted(None));
    bench.said();
    bench.launch();
    assert_eq!((bench.said(), bench.served()), (to_strings(&["Submit"]), key));
}

#[test]
fn what_a_function_ends_in_order_costs_its_client_no_dispatch() {
    let limited = set(|config| config.limits.dispatch_burst = 1);
    for (answered, refused) in [(true, false), (false, true)] {
        let mut bench = Bench::with(0, 1, limited.clone());
        bench.tally.answered = answered;
        let (key, _) = bench.open(1);
        let cause = Cause::ended(End::Fin);
        bench.on(ForSessions::Lost(Lost { key, cause, going: false, last: false }));
        bench.said();
        bench.place(1, 2, wanted(None));
        assert_eq!(bench.has("Refuse"), refused, "{:?}", bench.names);
    }
}

#[test]
fn no_more_sessions_wait_than_may() {
    let mut bench = Bench::with(0, 1, set(|config| config.limits.pending_sessions = 1));
    bench.place(1, 1, wanted(None));
    bench.place(2, 2, wanted(None));
    assert_eq!(bench.refused(), Fault::Overloaded);
    bench.rig.draining = Some(Draining::Open);
    bench.place(3, 3, wanted(None));
    assert_eq!(bench.refused(), Fault::Draining);
    let logged = bench.rig.left.edges.iter().filter(|edge| matches!(edge, Edge::Refused(_)));
    assert_eq!(logged.count(), 2);
}

#[test]
fn servers_are_dialled_one_after_the_other() {
    let addresses: Vec<SocketAddr> =
        (1..=2).map(|port| SocketAddr::from(([127, 0, 0, 1], port))).collect();
    let dial = Dial { server: "s:1".into(), addresses };
    let config = set(|config| config.functions[0].dial = Some(dial));
    let mut bench = Bench::with(0, 1, config);
    bench.place(1, 1, wanted(None));
    let key = bench.served();
    bench.said();
    bench.launch();
    assert_eq!(bench.said(), ["Dial"]);
    bench.on(ForSessions::Dialling { key, conn: conn(7) });
    assert_eq!(bench.sessions.dials(), 1);
    bench.call(|sessions, turn| sessions.dial_ended(turn, conn(7), Err(111)));
    assert_eq!((bench.said(), bench.sessions.dials()), (vec!["Dial".into()], 0));
    bench.on(ForSessions::Dialling { key, conn: conn(8) });
    bench.call(|sessions, turn| sessions.dial_ended(turn, conn(8), Ok(())));
    assert_eq!(bench.said(), ["Attach"]);
    bench.on(ForSessions::Attached { key, unspoken: false });
    bench.said();
    bench.on(ForSessions::WantsSpare { key });
    assert_eq!(bench.said(), ["Replaced"], "nobody there knows the session");

    for number in 2..=3 {
        bench.place(number, number, wanted(None));
        bench.launch();
        let key = bench.served();
        bench.said();
        match number {
            2 => bench.on(ForSessions::NotDialled { key }),
            _ => {
                bench.on(ForSessions::Dialling { key, conn: conn(9) });
                bench.gone(3, &[]);
            }
        }
        let expected: &[&str] =
            if number == 2 { &["Close", "Leave 0"] } else { &["Undial", "Close", "Leave 0"] };
        assert_eq!(bench.said(), expected);
        // Nobody wants it any more.
        bench.call(|sessions, turn| sessions.dial_ended(turn, conn(9), Ok(())));
        assert_eq!(bench.said(), ["Undial"]);
        bench.on(ForSessions::Dialling { key, conn: conn(9) });
        assert_eq!(bench.said(), ["Undial"]);
    }
}

// ---- what is shown ----

#[test]
fn rows_show_what_there_is_and_what_has_ended() {
    let mut bench = Bench::new();
    bench.tally = Tally { bytes_up: 3, bytes_down: 4, ..Tally::default() };
    let (key, id) = bench.open(1);
    bench.on(ForSessions::WantsSpare { key });
    bench.place(2, 2, wanted(None));
    let rows = |bench: &mut Bench| {
        let rows = shown::all_rows(bench).into_iter();
        rows.map(|(key, row)| (key.is_some(), row.state)).collect::<Vec<_>>()
    };
    assert_eq!(rows(&mut bench), [(true, "attached"), (true, "waiting")]);
    bench.gone(1, &[]);
    assert_eq!(rows(&mut bench), [(true, "waiting"), (false, "closed")]);
    let (_, row) = shown::all_rows(&mut bench).pop().expect("it is remembered");
    assert_eq!((row.request_id, row.bytes_in, row.bytes_out), (id, 3, 4));
}

#[test]
fn a_fact_of_nobody_leaves_nothing() {
    let mut bench = Bench::new();
    let (key, cause) = (key(77), Cause::STALLED);
    let ticket = Ticket { node: NODE, core: 0, number: number_of(key) };
    let found = Found { ticket, outcome: Err(Fault::NoWorker) };
    for fact in [
        ForSessions::Abandoned { key },
        ForSessions::Attached { key, unspoken: true },
        ForSessions::Parked { key, speaks: Speaks::Any },
        ForSessions::UsedUp { key },
        ForSessions::Spent { key, goaway: true },
        ForSessions::WantsSpare { key },
        ForSessions::LastChance { key },
        ForSessions::Lost(Lost { key, cause, going: true, last: true }),
        ForSessions::Closed { key, cause, tally: Tally::default() },
        ForSessions::NotDialled { key },
        ForSessions::Recalled(ticket),
        ForSessions::YieldWorker(ticket),
        ForSessions::EndSurplus(ticket),
        ForSessions::Found(Box::new(found)),
        ForSessions::NotSubmitted { ticket, fault: Box::new(Fault::WorkQueueFull) },
    ] {
        bench.on(fact);
        assert!(bench.said().is_empty() && bench.rig.left.edges.is_empty());
    }
    assert!(bench.sessions.is_empty());
}
