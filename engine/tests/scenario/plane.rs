//! A control plane that takes time stands behind the shard: what it is asked, and what its answers
//! do that come late, in another order, or not at all.

use std::sync::Arc;
use std::time::Duration;

use ringway::control::local::Policy;
use ringway::control::port::{Answer, Ask, AskTicket, Denied, Plane, Question};
use ringway::message::{ControlMessage, ShardMessage};
use ringway::metrics::{AskOutcome, Limit};
use ringway::net::{Core as _, End};
use ringway_proto::h2::ErrorCode;

use crate::peer::{Peer, Seen, poll};
use crate::world::{CoreSetup, FUNCTION, VERSION, World};

const SECOND_KEY: (&str, &str) = ("authorization", "Bearer dev-key-2");

/// A world behind which a slow plane stands, and the plane's side of it.
struct Behind {
    world: World,
    policy: Policy,
    /// Rules by which no client may call anything.
    keyless: Arc<Policy>,
}

impl Behind {
    fn new() -> Self {
        Self::with("", 0)
    }

    fn with(more: &str, life: u32) -> Self {
        Self::changed(more, life, |_| {})
    }

    fn changed(more: &str, life: u32, change: impl FnOnce(&mut ringway::config::Config)) -> Self {
        let mut policies = None;
        let setup = CoreSetup {
            core: 0,
            cores: 1,
            life,
            unanswered: 0,
            plane: Plane::Remote,
            dispatch: Plane::Local,
        };
        let world = World::on(setup, more, |config| {
            change(config);
            let keyless = Arc::new(Policy::new(&[], &config.functions));
            policies = Some((Policy::new(&config.tenants, &config.functions), keyless));
        });
        let (policy, keyless) = policies.expect("they were read");
        Self { world, policy, keyless }
    }

    fn take(&mut self) -> Vec<Ask> {
        let mut asks = Vec::new();
        self.world.shard.take_asks(&mut asks);
        asks
    }

    /// The questions that were asked since the last time, by their credentials; nothing was
    /// withdrawn.
    fn asked(&mut self) -> Vec<(AskTicket, String)> {
        let question = |ask: Ask| match ask.what {
            Question::Authorise(call) => {
                (ask.ticket, String::from_utf8_lossy(call.credential()).into_owned())
            }
            other => panic!("{:?}: {other:?}", ask.ticket),
        };
        self.take().into_iter().map(question).collect()
    }

    /// The one question that was asked.
    fn ask(&mut self) -> AskTicket {
        match &self.asked()[..] {
            [(ticket, _)] => *ticket,
            asked => panic!("not one question: {asked:?}"),
        }
    }

    /// The tickets that were withdrawn since the last time; nothing was asked.
    fn withdrawn(&mut self) -> Vec<AskTicket> {
        let asks = self.take();
        assert!(asks.iter().all(|ask| matches!(ask.what, Question::Withdraw)), "{asks:?}");
        asks.into_iter().map(|ask| ask.ticket).collect()
    }

    fn answer(&mut self, ticket: AskTicket, answer: Answer) {
        self.world.shard.answered(&mut self.world.net, ticket, answer);
        self.world.settle();
    }

    fn grant(&mut self, ticket: AskTicket) {
        let granted = self.policy.authorise(b"dev-key", FUNCTION.as_bytes(), VERSION.as_bytes(), 0);
        self.answer(ticket, Answer::Granted(granted.expect("the key is good")));
    }

    /// Asked, answered, refused, withdrawn, expired, late.
    fn counts(&self) -> [u64; AskOutcome::COUNT] {
        self.world.shard.metrics().asks
    }

    fn code(&mut self, client: &mut Peer, n: usize) -> Option<String> {
        client.sync(&mut self.world);
        client.field(n, "grpc-status").map(ToOwned::to_owned)
    }

    fn no_session(&mut self) {
        assert!(poll(&mut self.world, &[]).is_none(), "a worker is asked for nobody");
        assert_eq!(self.world.shard.metrics().tokens_issued, 0);
    }
}

fn paths(peer: &Peer) -> Vec<String> {
    (0..peer.heads().len()).map(|n| peer.field(n, ":path").unwrap_or_default().into()).collect()
}

#[test]
fn a_late_answer_serves_all_who_wait_in_order_with_their_bodies() {
    let mut behind = Behind::new();
    let mut client = Peer::client(&mut behind.world);
    let mut keys = Vec::new();
    for n in 0..10 {
        let path = format!("/call/{n}");
        let key = client.request(&mut behind.world, &[(":path", &path)], false);
        let body = vec![n; 1000 * usize::from(n) + 1];
        client.data(&mut behind.world, key, &body, true);
        keys.push((key, path, body));
    }
    let ticket = behind.ask();
    behind.world.pass(Duration::from_secs(20));
    assert!(client.heads().is_empty() && behind.take().is_empty());
    behind.grant(ticket);
    let worker = Peer::worker(&mut behind.world);
    assert_eq!(paths(&worker), keys.iter().map(|(_, path, _)| path.clone()).collect::<Vec<_>>());
    let streams = worker.heads().into_iter().map(|seen| match seen {
        Seen::Head { stream, .. } => *stream,
        other => panic!("no head: {other:?}"),
    });
    for (stream, (_, path, body)) in streams.zip(&keys) {
        assert!(worker.body(stream) == (body.clone(), true), "{path}");
    }
    assert_eq!(behind.counts(), [1, 1, 0, 0, 0, 0]);
    // The gateway remembers what was granted.
    client.request(&mut behind.world, &[], true);
    assert!(behind.take().is_empty());
    behind.world.end(client.conn, End::Reset);
}

#[test]
fn answers_in_another_order_serve_whom_they_are_for() {
    let mut behind = Behind::with("[session]\nscope = \"credential\"", 0);
    let mut client = Peer::client(&mut behind.world);
    client.request(&mut behind.world, &[(":path", "/first")], true);
    client.request(&mut behind.world, &[(":path", "/second"), SECOND_KEY], true);
    let asked = behind.asked();
    behind.grant(asked[1].0);
    assert_eq!(paths(&Peer::worker(&mut behind.world)), ["/second"]);
    behind.grant(asked[0].0);
    assert_eq!(paths(&Peer::worker(&mut behind.world)), ["/first"]);
}

#[test]
fn ten_requests_ask_once_and_two_credentials_twice() {
    let mut behind = Behind::new();
    let mut client = Peer::client(&mut behind.world);
    for n in 0..10 {
        let key = [("authorization", "Bearer dev-key"), SECOND_KEY][n % 2];
        client.request(&mut behind.world, &[key], true);
    }
    let asked = behind.asked();
    let keys: Vec<&str> = asked.iter().map(|(_, key)| &key[..]).collect();
    assert_eq!(keys, ["dev-key", "dev-key-2"]);
    // Each has the answer to its own.
    let text = "not this one".into();
    behind.answer(asked[1].0, Answer::Denied(Denied { code: 7, text }));
    client.sync(&mut behind.world);
    assert_eq!(client.heads().len(), 5);
    for n in 0..5 {
        assert_eq!(behind.code(&mut client, n).as_deref(), Some("7"));
    }
    behind.grant(asked[0].0);
    let worker = Peer::worker(&mut behind.world);
    assert_eq!(worker.heads().len(), 5);
    assert_eq!(worker.field(0, "authorization"), Some("Bearer dev-key"));
    // A credential that was denied is asked about again, even if there is a session by now.
    client.request(&mut behind.world, &[SECOND_KEY], true);
    assert_eq!(behind.asked()[0].1, "dev-key-2");
    // Another connection is another question.
    let mut other = Peer::client(&mut behind.world);
    other.request(&mut behind.world, &[], true);
    assert_eq!(behind.asked().len(), 1);
    assert_eq!(behind.counts(), [4, 1, 1, 0, 0, 0]);
}

#[test]
fn a_client_that_leaves_takes_its_question_back() {
    let mut behind = Behind::new();
    let mut client = Peer::client(&mut behind.world);
    client.request(&mut behind.world, &[], true);
    let ticket = behind.ask();
    behind.world.end(client.conn, End::Reset);
    assert_eq!(behind.withdrawn(), [ticket]);
    assert!(behind.world.shard.is_empty());
    behind.grant(ticket);
    assert!(behind.world.shard.is_empty());
    behind.no_session();
    // A question that the control plane has not seen need not be taken back.
    let mut client = Peer::client(&mut behind.world);
    client.request(&mut behind.world, &[], true);
    behind.world.end(client.conn, End::Fin);
    assert!(behind.take().is_empty() && behind.world.shard.is_empty());
    assert_eq!(behind.counts(), [2, 0, 0, 2, 0, 1]);
}

#[test]
fn a_request_that_is_taken_back_fails_no_other_and_asks_no_worker() {
    for leaves in [0..1, 1..2, 0..3] {
        let mut behind = Behind::new();
        let mut client = Peer::client(&mut behind.world);
        let keys: Vec<_> = (0..4).map(|_| client.request(&mut behind.world, &[], true)).collect();
        let ticket = behind.ask();
        for key in &keys[leaves.clone()] {
            client.reset(&mut behind.world, *key, ErrorCode::Cancel);
        }
        behind.grant(ticket);
        let worker = Peer::worker(&mut behind.world);
        assert_eq!(worker.heads().len(), keys.len() - leaves.len(), "{leaves:?}");
        client.sync(&mut behind.world);
        assert!(client.heads().is_empty(), "{leaves:?}: {:?}", client.seen);
        assert_eq!(behind.world.shard.metrics().tokens_issued, 1);
    }
    let mut behind = Behind::with("[session]\npark = \"never\"", 0);
    let mut client = Peer::client(&mut behind.world);
    let key = client.request(&mut behind.world, &[], true);
    let ticket = behind.ask();
    client.reset(&mut behind.world, key, ErrorCode::Cancel);
    behind.grant(ticket);
    behind.no_session();
    behind.world.end(client.conn, End::Fin);
    assert!(behind.world.shard.is_empty());
}

#[test]
fn who_waits_too_long_is_told_and_a_later_grant_makes_no_session() {
    let mut behind = Behind::with("[session]\nwait = \"3s\"", 0);
    let mut client = Peer::client(&mut behind.world);
    client.request(&mut behind.world, &[], true);
    let asks = behind.take();
    assert_eq!(asks[0].deadline, behind.world.net.now + Duration::from_secs(3));
    let ticket = asks[0].ticket;
    behind.world.pass(Duration::from_millis(2999));
    assert!(client.heads().is_empty() && behind.take().is_empty());
    behind.world.pass(Duration::from_millis(1));
    assert_eq!(behind.code(&mut client, 0).as_deref(), Some("14"));
    let message = client.field(0, "grpc-message").unwrap_or_default().replace("%20", " ");
    let text = "the authorisation service did not answer in time";
    assert_eq!(message, format!("failed to open stateful work request: {text}"));
    // By this the grant is given back, whenever it comes.
    assert_eq!(behind.withdrawn(), [ticket]);
    behind.grant(ticket);
    assert!(behind.take().is_empty());
    behind.no_session();
    assert_eq!(behind.counts(), [1, 0, 0, 0, 1, 1]);
    // The next request is asked about anew.
    client.request(&mut behind.world, &[], true);
    let ticket = behind.ask();
    behind.grant(ticket);
    assert_eq!(Peer::worker(&mut behind.world).heads().len(), 1);
}

#[test]
fn refusals_and_a_full_plane_are_said_and_not_remembered() {
    let mut behind = Behind::new();
    let mut client = Peer::client(&mut behind.world);
    let denied = Denied { code: 5, text: "no such thing".into() };
    for (n, (answer, code)) in
        [(Answer::Denied(denied), "5"), (Answer::Full, "8")].into_iter().enumerate()
    {
        client.request(&mut behind.world, &[], true);
        let ticket = behind.ask();
        behind.answer(ticket, answer.clone());
        assert_eq!(behind.code(&mut client, n).as_deref(), Some(code));
        // Said twice it counts once.
        behind.answer(ticket, answer);
    }
    behind.no_session();
    assert_eq!(behind.counts(), [2, 0, 2, 0, 0, 2]);
    behind.world.end(client.conn, End::Fin);
    assert!(behind.take().is_empty() && behind.world.shard.is_empty());
}

#[test]
fn questions_that_wait_are_bounded_and_shown() {
    let mut behind = Behind::changed("", 0, |config| {
        (config.limits.asks, config.limits.asks_per_tenant) = (3, 2);
    });
    let keys = ["dev-key", "dev-key-2", "dev-key", "other-key", "nobodys-key"];
    let mut clients = Vec::new();
    for key in keys {
        let mut client = Peer::client(&mut behind.world);
        client.request(&mut behind.world, &[("authorization", &format!("Bearer {key}"))], true);
        client.sync(&mut behind.world);
        clients.push(client);
    }
    let told: Vec<Option<&str>> = clients.iter().map(|c| c.field(0, "grpc-status")).collect();
    assert_eq!(told, [None, None, Some("8"), None, Some("8")]);
    behind.world.deliver(ShardMessage::Snapshot { ticket: 1 });
    let messages = behind.world.messages();
    let Some(ControlMessage::Snapshot { snapshot, .. }) = messages.into_iter().next() else {
        panic!("no snapshot")
    };
    let mut text = String::new();
    snapshot.metrics.render(&mut text);
    for line in [
        "ringway_limit_used{limit=\"asks\"} 3",
        "ringway_limit_max{limit=\"asks\"} 3",
        "ringway_limit_hits_total{limit=\"asks\"} 1",
        "ringway_limit_used{limit=\"asks_per_tenant\"} 2",
        "ringway_limit_max{limit=\"asks_per_tenant\"} 2",
        "ringway_limit_hits_total{limit=\"asks_per_tenant\"} 1",
        "ringway_control_asks_total{outcome=\"asked\"} 3",
        "ringway_control_asks_total{outcome=\"late\"} 0",
    ] {
        assert!(text.lines().any(|other| other == line), "{line}");
    }
    // There is room again for one more.
    let asked = behind.asked();
    behind.grant(asked[0].0);
    let key = ("authorization", "Bearer nobodys-key");
    clients[4].request(&mut behind.world, &[key], true);
    assert_eq!(behind.asked().len(), 1);
    assert_eq!(behind.world.shard.metrics().limit_hits[Limit::Asks.index()], 1);
}

/// Twenty requests of one client send as much as they may; and how much that is.
fn fill(world: &mut World) -> (Peer, usize) {
    let mut client = Peer::client(world);
    let mut sent = 0;
    for _ in 0..20 {
        let key = client.request(world, &[], false);
        client.sync(world);
        let body = vec![7; client.h2.data_room(key)];
        client.data(world, key, &body, false);
        client.sync(world);
        sent += body.len();
    }
    (client, sent)
}

#[test]
fn bodies_that_wait_for_an_answer_are_bounded_as_ever() {
    let more = "[limits]\nstream_window = \"16KiB\"\nstream_window_max = \"32KiB\"\n\
                connection_buffer = \"64KiB\"\ncore_buffer = \"1MiB\"";
    let mut behind = Behind::with(more, 0);
    let (mut client, sent) = fill(&mut behind.world);
    let (_, for_worker) = fill(&mut World::with(more));
    assert_eq!(sent, for_worker, "as much as waits for a worker");
    let ticket = behind.ask();
    behind.grant(ticket);
    let mut worker = Peer::worker(&mut behind.world);
    // Its own windows open as it reads.
    (0..4).for_each(|_| worker.sync(&mut behind.world));
    let length = |seen: &Seen| if let Seen::Data { bytes, .. } = seen { bytes.len() } else { 0 };
    let came: usize = worker.seen.iter().map(length).sum();
    assert_eq!((worker.heads().len(), came), (20, sent));
    // Bytes that have passed give the client credit for more.
    client.sync(&mut behind.world);
    let key = client.request(&mut behind.world, &[], false);
    assert!(client.h2.data_room(key) > 0);
}

#[test]
fn a_question_outlives_the_rules_it_was_asked_under() {
    let mut behind = Behind::new();
    let mut client = Peer::client(&mut behind.world);
    for path in ["/one", "/two"] {
        client.request(&mut behind.world, &[(":path", path)], true);
    }
    let ticket = behind.ask();
    let keyless = behind.keyless.clone();
    behind.world.deliver(ShardMessage::Policy(keyless));
    behind.grant(ticket);
    assert_eq!(paths(&Peer::worker(&mut behind.world)), ["/one", "/two"]);
    assert!(behind.take().is_empty());
    // Another client is asked about under the new ones.
    let mut other = Peer::client(&mut behind.world);
    other.request(&mut behind.world, &[], true);
    assert_eq!(behind.asked().len(), 1);
}

#[test]
fn a_shard_that_begins_anew_knows_no_former_ticket() {
    let mut former = Behind::with("", 0);
    let mut client = Peer::client(&mut former.world);
    client.request(&mut former.world, &[], true);
    let old = former.ask();
    drop(former);
    let mut behind = Behind::with("", 1);
    let mut client = Peer::client(&mut behind.world);
    client.request(&mut behind.world, &[], true);
    let ticket = behind.ask();
    assert_ne!(old, ticket);
    behind.grant(old);
    // As if it had asked as often in its former life.
    behind.grant(AskTicket { life: old.life, ..ticket });
    assert_eq!(behind.counts(), [1, 0, 0, 0, 0, 2]);
    behind.no_session();
    behind.grant(ticket);
    assert_eq!(Peer::worker(&mut behind.world).heads().len(), 1);
}

#[test]
fn an_answer_comes_by_the_mailbox_too() {
    let mut behind = Behind::new();
    let mut client = Peer::client(&mut behind.world);
    client.request(&mut behind.world, &[], true);
    let ticket = behind.ask();
    behind.world.deliver(ShardMessage::Answer { ticket, answer: Answer::Full });
    assert_eq!(behind.code(&mut client, 0).as_deref(), Some("8"));
    // So does the drain: nobody waits for an answer then.
    client.request(&mut behind.world, &[], true);
    let ticket = behind.ask();
    behind.world.deliver(ShardMessage::Drain { max: Duration::from_secs(1) });
    behind.world.pass(Duration::from_secs(2));
    assert_eq!(behind.withdrawn(), [ticket]);
    assert!(behind.world.shard.finished() && behind.world.shard.is_empty());
}

#[test]
fn the_local_plane_hands_nothing_out() {
    let mut world = World::new();
    let mut client = Peer::client(&mut world);
    client.request(&mut world, &[], true);
    client.request(&mut world, &[("authorization", "Bearer nobodys-key")], true);
    let mut asks = Vec::new();
    world.shard.take_asks(&mut asks);
    assert!(asks.is_empty());
    assert_eq!(world.shard.metrics().asks, [2, 1, 1, 0, 0, 0]);
}
