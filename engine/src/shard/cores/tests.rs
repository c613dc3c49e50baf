use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

use super::*;
use crate::config::Config;
use crate::control::local::{PollAnswer, PollId, PollRequest, SessionFacts, Ticket, Work};
use crate::control::port::Owner;
use crate::net::{ConnId, Detached};
use crate::post::{Find, Found, Join, Leave, MovedTunnel, Parks, Speaks, Stand, Vouch, Vouched};
use crate::shard::turn::rig::{NODE, OTHER_NODE, Rig};

const T: Ticket = Ticket { node: NODE, core: 1, number: 7 };
const POLL: PollId =
    PollId { node: NODE, core: 1, conn: ConnId { slot: 1, generation: 2 }, round: 3 };

fn facts() -> SessionFacts {
    let owner = Owner::new("t".into(), "f".into(), "v".into());
    SessionFacts { owner: Arc::new(owner), opened: Time(1) }
}

fn submit(kind: WorkKind) -> CorePost {
    CorePost::Submit(Box::new(Work {
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

fn connect() -> CorePost {
    let (detached, input, peer) = (detached(), Vec::new(), peer());
    CorePost::Connect(Box::new(MovedConnect {
        detached,
        input,
        peer,
        opened: Time(1),
        from: 0,
        via: None,
    }))
}

fn poll() -> CorePost {
    CorePost::Poll(
        POLL,
        Box::new(PollRequest {
            function_id: "f".into(),
            function_version_id: "v".into(),
            slots: 1,
            request_ids: Vec::new(),
        }),
    )
}

fn find() -> CorePost {
    CorePost::Find(Box::new(Find {
        id: Uuid::nil(),
        ticket: T,
        function: Box::from(*b"f"),
        version: Box::from(*b"v"),
        tenant: "t".into(),
        speaks: Speaks::Http1,
    }))
}

fn vouch() -> CorePost {
    CorePost::Vouch(Box::new(Vouch {
        id: Uuid::nil(),
        ticket: T,
        function: Box::from(*b"f"),
        version: Box::from(*b"v"),
        seal: NonZeroU64::MIN,
        speaks: Speaks::Http1,
    }))
}

/// A tunnel on its way.
fn tunnel() -> CorePost {
    CorePost::Resumed(Box::new(Resumed {
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
fn every_post() -> Vec<CorePost> {
    let id = Uuid::nil();
    vec![
        connect(),
        submit(WorkKind::New),
        submit(WorkKind::Spare),
        CorePost::Withdraw(T),
        CorePost::Recall(T),
        CorePost::Recalled(T),
        poll(),
        CorePost::Delivered(POLL),
        CorePost::Doubted(POLL),
        CorePost::Gone(POLL),
        CorePost::Answer(POLL, PollAnswer::Nothing),
        CorePost::TooManyPolls(POLL),
        CorePost::QueueFull(T),
        find(),
        CorePost::Found(Box::new(Found { ticket: T, outcome: Ok(facts()) })),
        vouch(),
        CorePost::Vouched(Box::new(Vouched { ticket: T, owner: None })),
        CorePost::Join(Box::new(Join { id, ticket: T, facts: facts(), stand: Stand::Open })),
        CorePost::Stand(id, T, Stand::Spare),
        CorePost::LetGo(T),
        CorePost::Claim { parked: T, to: T },
        CorePost::not_resumed(T),
        tunnel(),
        CorePost::Parks(Box::new(Parks { ticket: T, function: "f".into(), version: "v".into() })),
        CorePost::Unparks(T),
        CorePost::Yield(T),
        CorePost::Leave(Box::new(Leave { id, ticket: T, row: None })),
        CorePost::Void { core: 2 },
        CorePost::Idle { core: 2 },
    ]
}

#[test]
fn what_names_another_node_is_void() {
    let named = |post: &CorePost| {
        !matches!(post, CorePost::Connect(_) | CorePost::Void { .. } | CorePost::Idle { .. })
    };
    let mut here = Cores::new(NODE);
    let mut there = Cores::new(OTHER_NODE);
    for (post, same) in every_post().into_iter().zip(every_post()) {
        let name = format!("{post:?}");
        let void = named(&post);
        assert_eq!(there.heard(post).is_none(), void || name.starts_with("Idle"), "{name}");
        assert_eq!(here.heard(same).is_none(), name.starts_with("Idle"), "{name}");
    }
    let other = Ticket { node: OTHER_NODE, ..T };
    for (parked, to) in [(T, other), (other, T), (other, other)] {
        assert!(here.heard(CorePost::Claim { parked, to }).is_none());
    }
}

#[test]
fn what_is_said_between_cores_is_no_larger_for_its_node() {
    assert_eq!((size_of::<Ticket>(), size_of::<PollId>()), (16, 24));
    assert!(size_of::<PollAnswer>() <= 8, "{}", size_of::<PollAnswer>());
    assert!(size_of::<CorePost>() <= 48, "{}", size_of::<CorePost>());
}

struct Bench {
    rig: Rig,
    cores: Cores,
    /// As many attachments there are.
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
    fn send(&mut self, to: u16, post: CorePost) -> Option<Heard> {
        self.cores.send(&mut self.rig.turn(), self.attachments, to, post)
    }

    fn undelivered(&mut self, to: u16, post: CorePost) {
        self.cores.undelivered(&mut self.rig.turn(), self.attachments, to, post);
    }

    fn posts(&mut self) -> Vec<(u16, CorePost)> {
        let mut posts = Vec::new();
        self.cores.take_posts(&mut posts);
        posts
    }

    /// The messages for other cores by their names.
    fn said(&mut self) -> Vec<(u16, String)> {
        let name = |post: &CorePost| {
            let text = format!("{post:?}");
            text.split(['(', ' ']).next().unwrap().to_string()
        };
        self.posts().iter().map(|(to, post)| (*to, name(post))).collect()
    }

    fn retry(&mut self) -> Vec<u16> {
        let overrun = self.cores.overrun(&self.rig.turn());
        self.cores.retry(&self.rig.turn());
        overrun
    }

    fn later(&mut self) {
        self.rig.net.now += Duration::from_millis(1);
    }

    /// Core 1 has no room: a word for it waits.
    fn block(&mut self) {
        self.undelivered(1, CorePost::Withdraw(T));
    }

    fn limit(&self, limit: Limit) -> u64 {
        self.rig.metrics.limit_hits[limit.index()]
    }
}

fn names(posts: &[(u16, &str)]) -> Vec<(u16, String)> {
    posts.iter().map(|(to, name)| (*to, (*name).into())).collect()
}

#[test]
fn a_message_means_the_same_to_oneself_as_to_another_core() {
    let (mut one, mut many, mut other) = (bench(), bench(), bench());
    let to_itself: Vec<Option<Heard>> =
        every_post().into_iter().map(|post| one.send(0, post)).collect();
    for post in every_post() {
        assert!(many.send(1, post).is_none());
    }
    let posted = many.posts();
    assert!(posted.iter().all(|(to, _)| *to == 1));
    let to_another: Vec<Option<Heard>> =
        posted.into_iter().map(|(_, post)| other.cores.heard(post)).collect();
    assert_eq!(format!("{to_itself:?}"), format!("{to_another:?}"));
    assert_eq!(to_itself.len(), every_post().len());
    // What a core says to itself is no mail, and what it heard of others it knows either way.
    assert!(one.posts().is_empty() && one.cores.is_empty() && one.rig.facts().is_empty());
    assert_eq!((&one.cores.idle, &other.cores.idle), (&vec![2], &vec![2]));
}

#[test]
fn every_message_but_idle_is_for_somebody() {
    let mut bench = bench();
    let heard: Vec<String> = every_post()
        .into_iter()
        .filter_map(|post| bench.cores.heard(post))
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
    assert!(bench.send(1, CorePost::Withdraw(T)).is_none());
    assert!(bench.send(1, CorePost::Recall(T)).is_none());
    for (to, post) in bench.posts() {
        bench.undelivered(to, post);
    }
    assert!(bench.cores.mail_waits(1) && !bench.cores.mail_waits(2));
    assert!(bench.send(1, CorePost::LetGo(T)).is_none());
    assert!(bench.send(2, CorePost::Yield(T)).is_none());
    assert_eq!(bench.said(), names(&[(2, "Yield")]));
    assert_eq!((bench.cores.len(), bench.cores.is_empty()), (3, false));
    let due = bench.rig.net.now + Duration::from_millis(1);
    assert_eq!(bench.cores.deadline(), Some(due));
    bench.retry();
    assert_eq!(bench.said(), [], "it is too early");
    bench.later();
    bench.retry();
    assert_eq!(bench.said(), names(&[(1, "Withdraw"), (1, "Recall"), (1, "LetGo")]));
    assert!(bench.cores.is_empty() && bench.cores.deadline().is_none());
}

#[test]
fn what_may_be_refused_is_while_other_mail_waits() {
    let mut bench = bench();
    bench.block();
    for post in [connect(), poll(), find(), submit(WorkKind::New), submit(WorkKind::Reconnect)] {
        assert!(bench.send(1, post).is_none());
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
    assert!(bench.posts().is_empty());
}

#[test]
fn what_comes_back_is_refused_the_same_way() {
    let (mut back, mut early) = (bench(), bench());
    early.block();
    for post in [connect(), poll(), find(), submit(WorkKind::New)] {
        back.undelivered(1, post);
    }
    for post in [connect(), poll(), find(), submit(WorkKind::New)] {
        assert!(early.send(1, post).is_none());
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
    bench.undelivered(1, CorePost::Withdraw(T));
    bench.undelivered(1, CorePost::LetGo(T));
    bench.undelivered(1, tunnel());
    bench.undelivered(2, CorePost::Withdraw(T));
    assert_eq!(bench.limit(Limit::Outbox), 0);
    bench.undelivered(1, CorePost::Recall(T));
    assert_eq!((bench.limit(Limit::Outbox), bench.cores.len()), (1, 2));
    assert_eq!(bench.cores.deadline(), Some(Time::ZERO));
    // Until they begin anew nothing more is kept for it, and what asks is refused.
    bench.undelivered(1, CorePost::LetGo(T));
    assert!(bench.send(1, find()).is_none());
    assert!(matches!(bench.rig.facts()[..], [Fact::Sessions(ForSessions::NotFound(_))]));
    bench.later();
    let overrun = bench.cores.overrun(&bench.rig.turn());
    assert_eq!(overrun, [1]);
    // Work that is done again is refused as before: other mail waits.
    assert!(bench.send(1, submit(WorkKind::New)).is_none());
    assert!(bench.send(1, CorePost::Yield(T)).is_none());
    bench.cores.retry(&bench.rig.turn());
    let said = [(1, "Resumed"), (1, "Void"), (1, "Yield"), (2, "Withdraw")];
    assert_eq!(bench.said(), names(&said));
    assert!(bench.retry().is_empty());
}

#[test]
fn mail_for_a_core_that_began_anew_is_void_but_for_tunnels() {
    let mut bench = bench();
    for post in [tunnel(), CorePost::Withdraw(T)] {
        assert!(bench.send(1, post).is_none());
    }
    assert!(bench.send(2, CorePost::Withdraw(T)).is_none());
    assert!(bench.cores.restarted(&mut bench.rig.turn(), 0, 1));
    assert_eq!(bench.said(), names(&[(1, "Resumed"), (2, "Withdraw"), (1, "Void")]));
    // The same of what waits.
    bench.undelivered(1, CorePost::Withdraw(T));
    bench.undelivered(1, tunnel());
    assert!(bench.cores.restarted(&mut bench.rig.turn(), 0, 1));
    bench.later();
    bench.retry();
    assert_eq!(bench.said(), names(&[(1, "Resumed"), (1, "Void")]));
}

#[test]
fn a_core_hears_nothing_new_of_its_own_new_beginning() {
    let mut bench = bench();
    assert!(bench.send(1, CorePost::Withdraw(T)).is_none());
    assert!(!bench.cores.restarted(&mut bench.rig.turn(), 0, 0));
    assert_eq!(bench.said(), names(&[(1, "Withdraw")]));
}

#[test]
fn a_drain_is_over_when_all_are_idle_and_this_ones_word_is_out() {
    let mut bench = bench();
    for core in [1, 2, 1] {
        assert!(bench.cores.heard(CorePost::Idle { core }).is_none());
    }
    assert!(!bench.cores.all_are_idle(3, true), "nobody was told of this one");
    bench.cores.tell_idle(&mut bench.rig.turn(), 0);
    assert!(!bench.cores.all_are_idle(3, true), "its word is on its way");
    for (to, post) in bench.posts() {
        bench.undelivered(to, post);
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
        assert!(bench.cores.heard(CorePost::Idle { core }).is_none());
    }
    bench.cores.tell_idle(&mut bench.rig.turn(), 0);
    bench.posts();
    assert!(bench.cores.all_are_idle(3, true));
    assert!(bench.cores.restarted(&mut bench.rig.turn(), 0, 1));
    bench.cores.renew(&mut bench.rig.turn(), 0, 1);
    assert_eq!(bench.said(), names(&[(1, "Void"), (1, "Idle")]));
    assert!(!bench.cores.all_are_idle(3, true));
    assert!(bench.cores.heard(CorePost::Idle { core: 1 }).is_none());
    assert!(bench.cores.all_are_idle(3, true));
}
