use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

use super::*;
use crate::config::Config;
use crate::control::local::{PollAnswer, PollId, PollRequest, SessionFacts, Ticket, Work};
use crate::control::port::Owner;
use crate::message::{
    Find, Found, Join, Leave, MemberState, MovedTunnel, Parks, Speaks, Vouch, Vouched,
};
use crate::net::{ConnId, Detached};
use crate::shard::turn::rig::{NODE, OTHER_NODE, Rig};

const T: Ticket = Ticket { node: NODE, core: 1, number: 7 };
const POLL: PollId =
    PollId { node: NODE, core: 1, conn: ConnId { slot: 1, generation: 2 }, round: 3 };

fn facts() -> SessionFacts {
    let owner = Owner::new("t".into(), "f".into(), "v".into());
    SessionFacts { owner: Arc::new(owner), opened: Time(1) }
}

fn submit(kind: WorkKind) -> CoreMessage {
    CoreMessage::Submit(Box::new(Work {
        ticket: T,
        kind,
        request_id: Uuid::nil(),
        owner: facts().owner,
        token: [0; 64],
    }))
}

fn detached() -> Detached {
    Detached::of_nobody()
}

fn peer() -> std::net::SocketAddr {
    "192.0.2.7:1234".parse().unwrap()
}

fn connect() -> CoreMessage {
    let (detached, input, peer) = (detached(), Vec::new(), peer());
    CoreMessage::Connect(Box::new(MovedConnect {
        detached,
        input,
        peer,
        opened: Time(1),
        from: 0,
        via: None,
    }))
}

fn poll() -> CoreMessage {
    CoreMessage::Poll(
        POLL,
        Box::new(PollRequest {
            function_id: "f".into(),
            function_version_id: "v".into(),
            slots: 1,
            request_ids: Vec::new(),
        }),
    )
}

fn find() -> CoreMessage {
    CoreMessage::Find(Box::new(Find {
        id: Uuid::nil(),
        ticket: T,
        function: Box::from(*b"f"),
        version: Box::from(*b"v"),
        tenant: "t".into(),
        speaks: Speaks::Http1,
    }))
}

fn vouch() -> CoreMessage {
    CoreMessage::Vouch(Box::new(Vouch {
        id: Uuid::nil(),
        ticket: T,
        function: Box::from(*b"f"),
        version: Box::from(*b"v"),
        seal: NonZeroU64::MIN,
        speaks: Speaks::Http1,
    }))
}

/// A tunnel on its way.
fn tunnel() -> CoreMessage {
    CoreMessage::Resumed(Box::new(Resumed {
        ticket: T,
        tunnel: Some(MovedTunnel {
            detached: detached(),
            hop: Box::new(()),
            session: Uuid::nil(),
            facts: facts(),
            opened: Time(1),
            client_address: peer(),
            from: 0,
        }),
    }))
}

/// One of each message.
fn every_message() -> Vec<CoreMessage> {
    let id = Uuid::nil();
    vec![
        connect(),
        submit(WorkKind::New),
        submit(WorkKind::Spare),
        CoreMessage::Withdraw(T),
        CoreMessage::Recall(T),
        CoreMessage::Recalled(T),
        poll(),
        CoreMessage::Delivered(POLL),
        CoreMessage::Doubted(POLL),
        CoreMessage::Gone(POLL),
        CoreMessage::Answer(POLL, PollAnswer::Nothing),
        CoreMessage::TooManyPolls(POLL),
        CoreMessage::QueueFull(T),
        find(),
        CoreMessage::Found(Box::new(Found { ticket: T, outcome: Ok(facts()) })),
        vouch(),
        CoreMessage::Vouched(Box::new(Vouched { ticket: T, owner: None })),
        CoreMessage::Join(Box::new(Join {
            id,
            ticket: T,
            facts: facts(),
            member_state: MemberState::Open,
        })),
        CoreMessage::MemberState(id, T, MemberState::Spare),
        CoreMessage::EndSurplus(T),
        CoreMessage::Claim { parked: T, to: T },
        CoreMessage::not_resumed(T),
        tunnel(),
        CoreMessage::Parks(Box::new(Parks {
            ticket: T,
            function: "f".into(),
            version: "v".into(),
        })),
        CoreMessage::Unparks(T),
        CoreMessage::Yield(T),
        CoreMessage::Leave(Box::new(Leave { id, ticket: T, row: None })),
        CoreMessage::Void { core: 2 },
        CoreMessage::Idle { core: 2 },
    ]
}

#[test]
fn what_names_another_node_is_void() {
    let named = |message: &CoreMessage| {
        !matches!(
            message,
            CoreMessage::Connect(_) | CoreMessage::Void { .. } | CoreMessage::Idle { .. }
        )
    };
    let mut here = Cores::new(NODE);
    let mut there = Cores::new(OTHER_NODE);
    for (message, same) in every_message().into_iter().zip(every_message()) {
        let name = format!("{message:?}");
        let void = named(&message);
        assert_eq!(there.heard(message).is_none(), void || name.starts_with("Idle"), "{name}");
        assert_eq!(here.heard(same).is_none(), name.starts_with("Idle"), "{name}");
    }
    let other = Ticket { node: OTHER_NODE, ..T };
    for (parked, to) in [(T, other), (other, T), (other, other)] {
        assert!(here.heard(CoreMessage::Claim { parked, to }).is_none());
    }
}

#[test]
fn what_is_said_between_cores_is_no_larger_for_its_node() {
    assert_eq!((size_of::<Ticket>(), size_of::<PollId>()), (16, 24));
    assert!(size_of::<PollAnswer>() <= 8, "{}", size_of::<PollAnswer>());
    assert!(size_of::<CoreMessage>() <= 48, "{}", size_of::<CoreMessage>());
}

struct Bench {
    rig: Rig,
    cores: Cores,
    /// How many attachments the core has.
    attachments: usize,
}

/// Core 0 of 3, whose outbox has room for `outbox` messages.
fn bench_with(outbox: usize) -> Bench {
    let mut config = Config::dev();
    config.limits.outbox = outbox;
    Bench { rig: Rig::with(0, 3, config), cores: Cores::new(NODE), attachments: 0 }
}

fn bench() -> Bench {
    bench_with(100)
}

impl Bench {
    fn send(&mut self, to: u16, message: CoreMessage) -> Option<Heard> {
        self.cores.send(&mut self.rig.turn(), self.attachments, to, message)
    }

    fn undelivered(&mut self, to: u16, message: CoreMessage) {
        self.cores.undelivered(&mut self.rig.turn(), self.attachments, to, message);
    }

    fn messages(&mut self) -> Vec<(u16, CoreMessage)> {
        let mut messages = Vec::new();
        self.cores.take_messages(&mut messages);
        messages
    }

    /// The messages for other cores by their names.
    fn said(&mut self) -> Vec<(u16, String)> {
        let name = |message: &CoreMessage| {
            let text = format!("{message:?}");
            text.split(['(', ' ']).next().unwrap().to_string()
        };
        self.messages().iter().map(|(to, message)| (*to, name(message))).collect()
    }

    fn retry(&mut self) -> Vec<u16> {
        let overrun = self.cores.overrun(&self.rig.turn());
        self.cores.retry(&self.rig.turn());
        overrun
    }

    fn later(&mut self) {
        self.rig.net.now += Duration::from_millis(1);
    }

    /// Core 1 has no room: a message for it waits.
    fn block(&mut self) {
        self.undelivered(1, CoreMessage::Withdraw(T));
    }

    fn limit(&self, limit: Limit) -> u64 {
        self.rig.metrics.limit_hits[limit.index()]
    }
}

fn names(messages: &[(u16, &str)]) -> Vec<(u16, String)> {
    messages.iter().map(|(to, name)| (*to, (*name).into())).collect()
}

#[test]
fn a_message_means_the_same_to_oneself_as_to_another_core() {
    let (mut one, mut many, mut other) = (bench(), bench(), bench());
    let to_itself: Vec<Option<Heard>> =
        every_message().into_iter().map(|message| one.send(0, message)).collect();
    for message in every_message() {
        assert!(many.send(1, message).is_none());
    }
    let posted = many.messages();
    assert!(posted.iter().all(|(to, _)| *to == 1));
    let to_another: Vec<Option<Heard>> =
        posted.into_iter().map(|(_, message)| other.cores.heard(message)).collect();
    assert_eq!(format!("{to_itself:?}"), format!("{to_another:?}"));
    assert_eq!(to_itself.len(), every_message().len());
    // A message to its own core is no mail. What the others said the core knows in any case.
    assert!(one.messages().is_empty() && one.cores.is_empty() && one.rig.facts().is_empty());
    assert_eq!((&one.cores.idle, &other.cores.idle), (&vec![2], &vec![2]));
}

#[test]
fn every_message_but_idle_is_for_somebody() {
    let mut bench = bench();
    let heard: Vec<String> = every_message()
        .into_iter()
        .filter_map(|message| bench.cores.heard(message))
        .map(|heard| format!("{heard:?}"))
        .collect();
    let to = |whom: &str| heard.iter().filter(|heard| heard.starts_with(whom)).count();
    assert_eq!((to("Fact(Workers("), to("Fact(Sessions(")), (12, 12));
    assert_eq!((to("Connect("), to("Resumed("), to("Void")), (1, 2, 1));
    assert_eq!(heard.len(), 28);
}

#[test]
fn what_must_not_be_lost_waits_in_order_with_everything_later_behind_it() {
    let mut bench = bench();
    assert!(bench.send(1, CoreMessage::Withdraw(T)).is_none());
    assert!(bench.send(1, CoreMessage::Recall(T)).is_none());
    for (to, message) in bench.messages() {
        bench.undelivered(to, message);
    }
    assert!(bench.cores.mail_waits(1) && !bench.cores.mail_waits(2));
    assert!(bench.send(1, CoreMessage::EndSurplus(T)).is_none());
    assert!(bench.send(2, CoreMessage::Yield(T)).is_none());
    assert_eq!(bench.said(), names(&[(2, "Yield")]));
    assert_eq!((bench.cores.len(), bench.cores.is_empty()), (3, false));
    let due = bench.rig.net.now + Duration::from_millis(1);
    assert_eq!(bench.cores.deadline(), Some(due));
    bench.retry();
    assert_eq!(bench.said(), [], "it is too early");
    bench.later();
    bench.retry();
    assert_eq!(bench.said(), names(&[(1, "Withdraw"), (1, "Recall"), (1, "EndSurplus")]));
    assert!(bench.cores.is_empty() && bench.cores.deadline().is_none());
}

#[test]
fn what_may_be_refused_is_while_other_mail_waits() {
    let mut bench = bench();
    bench.block();
    for message in [connect(), poll(), find(), submit(WorkKind::New), submit(WorkKind::Reconnect)] {
        assert!(bench.send(1, message).is_none());
    }
    let facts = bench.rig.facts();
    let full = |fault: &Fault| matches!(fault, Fault::MailboxFull);
    assert!(matches!(
        &facts[..],
        [
            Fact::Workers(ForWorkers::TurnAway(_)),
            Fact::Workers(ForWorkers::PollRefused(POLL)),
            Fact::Sessions(ForSessions::NotFound(_)),
            Fact::Sessions(ForSessions::NotSubmitted { ticket: T, fault: one }),
            Fact::Sessions(ForSessions::NotSubmitted { ticket: T, fault: two }),
        ] if full(one) && full(two)
    ));
    assert_eq!((bench.limit(Limit::Mailbox), bench.cores.len()), (5, 1));
    assert!(bench.messages().is_empty());
}

#[test]
fn what_comes_back_is_refused_the_same_way() {
    let (mut back, mut early) = (bench(), bench());
    early.block();
    for message in [connect(), poll(), find(), submit(WorkKind::New)] {
        back.undelivered(1, message);
    }
    for message in [connect(), poll(), find(), submit(WorkKind::New)] {
        assert!(early.send(1, message).is_none());
    }
    let (back_facts, early_facts) = (back.rig.facts(), early.rig.facts());
    assert_eq!(format!("{back_facts:?}"), format!("{early_facts:?}"));
    assert_eq!((back_facts.len(), back.cores.is_empty()), (4, true));
}

#[test]
fn a_spares_work_waits_instead() {
    let mut bench = bench();
    bench.undelivered(1, submit(WorkKind::Spare));
    assert!(bench.send(1, submit(WorkKind::Spare)).is_none());
    assert!(bench.rig.facts().is_empty());
    bench.later();
    bench.retry();
    assert_eq!(bench.said(), names(&[(1, "Submit"), (1, "Submit")]));
}

#[test]
fn an_outbox_that_is_full_ends_in_one_word_and_what_is_said_behind_it() {
    let mut bench = bench_with(3);
    bench.attachments = 1;
    bench.undelivered(1, CoreMessage::Withdraw(T));
    bench.undelivered(1, CoreMessage::EndSurplus(T));
    bench.undelivered(1, tunnel());
    bench.undelivered(2, CoreMessage::Withdraw(T));
    assert_eq!(bench.limit(Limit::Outbox), 0);
    bench.undelivered(1, CoreMessage::Recall(T));
    assert_eq!((bench.limit(Limit::Outbox), bench.cores.len()), (1, 2));
    assert_eq!(bench.cores.deadline(), Some(Time::ZERO));
    // Until both begin anew no message is kept for that core, and requests to it are refused.
    bench.undelivered(1, CoreMessage::EndSurplus(T));
    assert!(bench.send(1, find()).is_none());
    assert!(matches!(bench.rig.facts()[..], [Fact::Sessions(ForSessions::NotFound(_))]));
    bench.later();
    let overrun = bench.cores.overrun(&bench.rig.turn());
    assert_eq!(overrun, [1]);
    // Work that is done again is refused as before: other mail waits.
    assert!(bench.send(1, submit(WorkKind::New)).is_none());
    assert!(bench.send(1, CoreMessage::Yield(T)).is_none());
    bench.cores.retry(&bench.rig.turn());
    let said = [(1, "Resumed"), (1, "Void"), (1, "Yield"), (2, "Withdraw")];
    assert_eq!(bench.said(), names(&said));
    assert!(bench.retry().is_empty());
}

#[test]
fn mail_for_a_core_that_began_anew_is_void_but_for_tunnels() {
    let mut bench = bench();
    for message in [tunnel(), CoreMessage::Withdraw(T)] {
        assert!(bench.send(1, message).is_none());
    }
    assert!(bench.send(2, CoreMessage::Withdraw(T)).is_none());
    assert!(bench.cores.restarted(&mut bench.rig.turn(), 0, 1));
    assert_eq!(bench.said(), names(&[(1, "Resumed"), (2, "Withdraw"), (1, "Void")]));
    // The same for messages that wait.
    bench.undelivered(1, CoreMessage::Withdraw(T));
    bench.undelivered(1, tunnel());
    assert!(bench.cores.restarted(&mut bench.rig.turn(), 0, 1));
    bench.later();
    bench.retry();
    assert_eq!(bench.said(), names(&[(1, "Resumed"), (1, "Void")]));
}

#[test]
fn a_core_hears_nothing_new_of_its_own_new_beginning() {
    let mut bench = bench();
    assert!(bench.send(1, CoreMessage::Withdraw(T)).is_none());
    assert!(!bench.cores.restarted(&mut bench.rig.turn(), 0, 0));
    assert_eq!(bench.said(), names(&[(1, "Withdraw")]));
}

#[test]
fn a_drain_is_over_when_all_are_idle_and_this_ones_word_is_out() {
    let mut bench = bench();
    for core in [1, 2, 1] {
        assert!(bench.cores.heard(CoreMessage::Idle { core }).is_none());
    }
    assert!(!bench.cores.all_are_idle(3, true), "nobody was told of this one");
    bench.cores.tell_idle(&mut bench.rig.turn(), 0);
    assert!(!bench.cores.all_are_idle(3, true), "its word is on its way");
    for (to, message) in bench.messages() {
        bench.undelivered(to, message);
    }
    assert!(!bench.cores.all_are_idle(3, true), "its word waits");
    bench.later();
    bench.retry();
    assert_eq!(bench.said(), names(&[(1, "Idle"), (2, "Idle")]));
    assert!(bench.cores.all_are_idle(3, true) && !bench.cores.all_are_idle(3, false));
    bench.cores.tell_idle(&mut bench.rig.turn(), 0);
    assert_eq!(bench.said(), [], "it is said once");
}

#[test]
fn the_only_core_is_idle_with_its_last_client() {
    let bench = bench();
    assert!(bench.cores.all_are_idle(1, true) && !bench.cores.all_are_idle(1, false));
}

#[test]
fn a_core_that_began_anew_is_not_idle_and_is_told_again_that_this_one_is() {
    let mut bench = bench();
    bench.cores.renew(&mut bench.rig.turn(), 0, 1);
    assert_eq!(bench.said(), [], "this one is not idle");
    for core in [1, 2] {
        assert!(bench.cores.heard(CoreMessage::Idle { core }).is_none());
    }
    bench.cores.tell_idle(&mut bench.rig.turn(), 0);
    bench.messages();
    assert!(bench.cores.all_are_idle(3, true));
    assert!(bench.cores.restarted(&mut bench.rig.turn(), 0, 1));
    bench.cores.renew(&mut bench.rig.turn(), 0, 1);
    assert_eq!(bench.said(), names(&[(1, "Void"), (1, "Idle")]));
    assert!(!bench.cores.all_are_idle(3, true));
    assert!(bench.cores.heard(CoreMessage::Idle { core: 1 }).is_none());
    assert!(bench.cores.all_are_idle(3, true));
}
