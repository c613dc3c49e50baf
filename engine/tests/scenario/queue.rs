//! Work travels by a control plane that takes time. These tests look at the questions that it gets,
//! and at the effect of its answers on the clients that wait.

use std::sync::Arc;
use std::time::Duration;

use ringway::control::local::{Work as Queued, WorkKind};
use ringway::control::port::{
    Answer, Ask, AskTicket, Grant, Kind, Owner, Plane, Progress, Question, Registration,
};
use ringway::message::ShardMessage;
use ringway::net::End;
use ringway_proto::h2::ErrorCode;

use crate::peer::{Peer, Seen, Work};
use crate::world::{CoreSetup, FUNCTION, VERSION, World};

/// A world whose authorisations and work both go to planes that take time.
struct Far {
    world: World,
    owner: Arc<Owner>,
}

impl Far {
    fn new(more: &str) -> Self {
        Self::of(more, Kind::default())
    }

    fn of(more: &str, kind: Kind) -> Self {
        let setup = CoreSetup {
            core: 0,
            cores: 1,
            life: 0,
            unanswered: 0,
            plane: Plane::Remote,
            dispatch: Plane::Remote,
        };
        let [tenant, function, version, subject] =
            ["dev", FUNCTION, VERSION, "somebody"].map(Arc::from);
        let owner = Arc::new(Owner { tenant, function, version, subject, kind });
        Self { world: World::on(setup, more, |_| {}), owner }
    }

    fn asks(&mut self) -> Vec<Ask> {
        let mut asks = Vec::new();
        self.world.shard.take_asks(&mut asks);
        asks
    }

    /// The one thing that was asked since the last time.
    fn ask(&mut self) -> Ask {
        let mut asks = self.asks();
        let ask = asks.pop().expect("something is asked");
        assert!(asks.is_empty(), "{asks:?} and {ask:?}");
        ask
    }

    fn answer(&mut self, ticket: AskTicket, answer: Answer) {
        self.world.shard.answered(&mut self.world.net, ticket, answer);
        self.world.settle();
    }

    /// A client's first request, granted: the work that it causes, or what is asked instead.
    fn request(&mut self, client: &mut Peer, fields: &[(&str, &str)]) -> Ask {
        client.request(&mut self.world, fields, true);
        let ask = self.ask();
        assert!(matches!(ask.what, Question::Authorise(_)), "{ask:?}");
        let owner = self.owner.clone();
        self.answer(ask.ticket, Answer::Granted(Grant { owner }));
        self.ask()
    }

    fn submitted(ask: Ask) -> (AskTicket, Box<Queued>) {
        match ask.what {
            Question::Submit(work) => (ask.ticket, work),
            other => panic!("no work: {other:?}"),
        }
    }

    /// A client whose request has reached a worker.
    fn attached(&mut self) -> (Peer, Peer, Box<Queued>) {
        let mut client = Peer::client(&mut self.world);
        let (ticket, work) = Self::submitted(self.request(&mut client, &[]));
        self.answer(ticket, Answer::Queued);
        let worker = Peer::dial_back(&mut self.world, &as_told(&work));
        assert_eq!((self.ask().ticket, worker.heads().len()), (ticket, 1));
        (client, worker, work)
    }

    fn status(&mut self, client: &mut Peer) -> (Option<String>, String) {
        client.sync(&mut self.world);
        let message = client.field(0, "grpc-message").unwrap_or_default().replace("%20", " ");
        (client.field(0, "grpc-status").map(ToOwned::to_owned), message)
    }

    fn ends_empty(mut self, client: &Peer) {
        self.world.end(client.conn, End::Fin);
        self.asks();
        self.world.pass(Duration::from_secs(40));
        assert!(self.world.shard.is_empty());
    }
}

/// The work as its worker sees it.
fn as_told(work: &Queued) -> Work {
    Work {
        kind: String::new(),
        request_id: work.request_id.to_string(),
        tenant: work.owner.tenant.to_string(),
        token: String::from_utf8_lossy(&work.token).into_owned(),
    }
}

#[test]
fn work_says_whose_it_is_and_a_worker_that_comes_settles_it() {
    let mut far = Far::new("");
    let mut client = Peer::client(&mut far.world);
    let ask = far.request(&mut client, &[]);
    assert_eq!(ask.deadline, far.world.net.now + Duration::from_secs(30));
    let (ticket, work) = Far::submitted(ask);
    assert_eq!((work.kind, &work.owner), (WorkKind::New, &far.owner));
    // A worker may be quicker than the acknowledgement.
    let worker = Peer::dial_back(&mut far.world, &as_told(&work));
    assert_eq!(worker.heads().len(), 1);
    let settled = far.ask();
    assert_eq!(settled.ticket, ticket);
    assert!(matches!(settled.what, Question::Settled), "{settled:?}");
    far.answer(ticket, Answer::Queued);
    client.sync(&mut far.world);
    assert!(client.heads().is_empty());
    far.ends_empty(&client);
}

#[test]
fn work_that_is_not_queued_is_told_to_all_who_wait_for_it() {
    let unqueued = Answer::Unqueued("no such stream".into());
    let full = "failed to publish function invocation request to nats";
    for (answer, code, text) in [
        (unqueued, "13", full),
        (Answer::Limited, "8", "exceeded rate limit"),
        (Answer::Unheard, "4", "failed to establish link to worker"),
        (Answer::Full, "8", ""),
    ] {
        let mut far = Far::new("");
        let mut client = Peer::client(&mut far.world);
        let (ticket, _) = Far::submitted(far.request(&mut client, &[]));
        client.request(&mut far.world, &[], true);
        assert!(far.asks().is_empty(), "the second one waits for the same worker");
        far.answer(ticket, answer.clone());
        let (status, message) = far.status(&mut client);
        assert_eq!((status.as_deref(), client.heads().len()), (Some(code), 2), "{answer:?}");
        assert!(message.contains(text), "{answer:?}: {message}");
        // Refused work is in no stream, so it need not be taken back. The shard may still say once
        // that nobody waits for it.
        let said = far.asks();
        let withdrawn = |ask: &Ask| ask.ticket == ticket && matches!(ask.what, Question::Withdraw);
        assert!(said.len() <= 1 && said.iter().all(withdrawn), "{said:?}");
        // The next request is a session of its own, authorised anew.
        client.request(&mut far.world, &[], true);
        assert!(matches!(far.ask().what, Question::Authorise(_)), "{answer:?}");
        far.ends_empty(&client);
    }
}

#[test]
fn a_client_that_leaves_takes_its_work_back_and_its_token_is_void() {
    let mut far = Far::new("");
    let mut client = Peer::client(&mut far.world);
    let (ticket, work) = Far::submitted(far.request(&mut client, &[]));
    far.answer(ticket, Answer::Queued);
    far.world.end(client.conn, End::Reset);
    let withdrawn = far.ask();
    assert_eq!(withdrawn.ticket, ticket);
    assert!(matches!(withdrawn.what, Question::Withdraw), "{withdrawn:?}");
    let conn = far.world.connect(ringway::net::Listener::Worker);
    far.world.send(conn, as_told(&work).connect().as_bytes());
    let answer = String::from_utf8(far.world.take(conn)).unwrap();
    assert!(answer.starts_with("HTTP/1.1 403 "), "{answer}");
    assert!(far.world.shard.is_empty());
}

/// Nobody is to yield to what waits, so that nothing is asked for that meanwhile.
const PATIENT: &str = "[session]\npark_yield = \"1h\"\n";

#[test]
fn who_waits_too_long_for_a_worker_is_told_how_far_its_work_came_and_that_is_taken_back() {
    let link = "failed to establish link to worker";
    for (answer, text) in [
        (Some(Answer::Stands(Progress::Queued)), ": queued 30 s, no worker took it"),
        (
            Some(Answer::Stands(Progress::Taken)),
            ": a worker took it, but no callback came within 30 s",
        ),
        (Some(Answer::Stands(Progress::Unknown)), ""),
        (Some(Answer::Full), ""),
        // A plane that does not know it soon is not waited for.
        (None, ""),
    ] {
        let mut far = Far::new(PATIENT);
        let mut client = Peer::client(&mut far.world);
        let (ticket, _) = Far::submitted(far.request(&mut client, &[]));
        far.answer(ticket, Answer::Queued);
        far.world.pass(Duration::from_secs(30));
        let asked = far.ask();
        assert!(asked.ticket == ticket && matches!(asked.what, Question::Progress { .. }));
        client.sync(&mut far.world);
        assert!(client.heads().is_empty(), "it has not been said yet");
        match answer {
            Some(answer) => far.answer(ticket, answer),
            None => far.world.pass(Duration::from_millis(250)),
        }
        let (status, message) = far.status(&mut client);
        assert_eq!((status.as_deref(), message), (Some("4"), format!("{link}{text}")));
        let withdrawn = far.ask();
        assert!(withdrawn.ticket == ticket && matches!(withdrawn.what, Question::Withdraw));
        far.ends_empty(&client);
    }
}

#[test]
fn a_worker_that_comes_behind_the_wait_is_welcome_until_its_end_is_told() {
    let mut far = Far::new(PATIENT);
    let mut client = Peer::client(&mut far.world);
    let (ticket, work) = Far::submitted(far.request(&mut client, &[]));
    far.answer(ticket, Answer::Queued);
    far.world.pass(Duration::from_secs(30));
    assert!(matches!(far.ask().what, Question::Progress { .. }));
    let worker = Peer::dial_back(&mut far.world, &as_told(&work));
    assert_eq!(worker.heads().len(), 1);
    assert!(matches!(far.ask().what, Question::Settled));
    far.answer(ticket, Answer::Stands(Progress::Taken));
    far.world.pass(Duration::from_millis(250));
    client.sync(&mut far.world);
    assert!(client.heads().is_empty(), "it is served");
    far.ends_empty(&client);
}

#[test]
fn an_id_that_is_not_known_here_is_looked_up_and_its_worker_asked() {
    let mut far = Far::new("");
    let mut client = Peer::client(&mut far.world);
    let id = "99999999-9999-4999-8999-999999999999";
    let ask = far.request(&mut client, &[("nvcf-reqid", id)]);
    let Question::Lookup(wanted) = ask.what else { panic!("{ask:?}") };
    assert_eq!(wanted.to_string(), id);
    let [function, version, tenant] = [FUNCTION, VERSION, "dev"].map(Arc::from);
    let registered = Registration { function, version, tenant };
    far.answer(ask.ticket, Answer::Registered(Box::new(registered)));
    let (ticket, work) = Far::submitted(far.ask());
    assert_eq!((work.kind, work.request_id.to_string()), (WorkKind::Reconnect, id.to_owned()));
    far.answer(ticket, Answer::Queued);
    let worker = Peer::dial_back(&mut far.world, &as_told(&work));
    assert_eq!(worker.field(0, "nvcf-reqid"), Some(id));
    far.asks();
    far.ends_empty(&client);
}

#[test]
fn what_a_lookup_says_decides_in_the_contracts_order() {
    let id = "99999999-9999-4999-8999-999999999999";
    let other = "33333333-3333-4333-8333-333333333333";
    let registered = |function: &str, version: &str, tenant: &str| {
        let [function, version, tenant] = [function, version, tenant].map(Arc::from);
        Answer::Registered(Box::new(Registration { function, version, tenant }))
    };
    for (answer, code, text) in [
        (Answer::Unregistered, "5", "no existing session found"),
        (registered(other, other, "x"), "13", "existing session function ID mismatch"),
        (registered(FUNCTION, other, "x"), "13", "existing session function version ID mismatch"),
        (registered(FUNCTION, VERSION, "x"), "13", "existing session invoker NCA ID mismatch"),
        (Answer::Failed("nats: no connection".into()), "13", "nats: no connection"),
    ] {
        let mut far = Far::new("");
        let mut client = Peer::client(&mut far.world);
        let ask = far.request(&mut client, &[("nvcf-reqid", id)]);
        assert!(matches!(ask.what, Question::Lookup(_)), "{ask:?}");
        far.answer(ask.ticket, answer.clone());
        let (status, message) = far.status(&mut client);
        assert_eq!(status.as_deref(), Some(code), "{answer:?}: {message}");
        assert!(message.contains(text), "{answer:?}: {message}");
        // Only E7 takes the cookie away (contract CL-6).
        let cleared = client.field(0, "set-cookie") == Some("nvcf-request-id=; Max-Age=0");
        assert_eq!(cleared, code == "5", "{answer:?}");
        assert!(far.asks().iter().all(|ask| !matches!(ask.what, Question::Submit(_))));
        far.ends_empty(&client);
    }
}

#[test]
fn a_registration_that_nobody_answers_for_is_told_at_once_and_the_cookie_goes_the_second_time() {
    let id = "99999999-9999-4999-8999-999999999999";
    for (answer, code) in [(Answer::Unheard, "4"), (Answer::Unregistered, "5")] {
        let mut far = Far::new("");
        let mut client = Peer::client(&mut far.world);
        let ask = far.request(&mut client, &[("nvcf-reqid", id)]);
        let [function, version, tenant] = [FUNCTION, VERSION, "dev"].map(Arc::from);
        let registered = Registration { function, version, tenant };
        far.answer(ask.ticket, Answer::Registered(Box::new(registered)));
        let (ticket, _) = Far::submitted(far.ask());
        far.answer(ticket, answer);
        let (status, message) = far.status(&mut client);
        assert_eq!(status.as_deref(), Some(code), "{message}");
        assert_eq!(client.field(0, "set-cookie").is_some(), code == "5");
        far.ends_empty(&client);
    }
}

#[test]
fn a_drain_sends_those_who_wait_elsewhere_and_takes_their_work_back() {
    let mut far = Far::new("");
    let mut client = Peer::client(&mut far.world);
    let (ticket, _) = Far::submitted(far.request(&mut client, &[]));
    far.answer(ticket, Answer::Queued);
    let mut undecided = Peer::client(&mut far.world);
    undecided.request(&mut far.world, &[], true);
    let question = far.ask().ticket;
    far.world.deliver(ShardMessage::Drain { max: Duration::from_secs(20) });
    client.sync(&mut far.world);
    let refused =
        |seen: &Seen| matches!(seen, Seen::Reset { code, .. } if *code == ErrorCode::RefusedStream);
    assert!(client.seen.iter().any(refused), "{:?}", client.seen);
    assert!(client.heads().is_empty());
    let asks = far.asks();
    assert!(asks.iter().any(|ask| ask.ticket == ticket), "{asks:?}");
    assert!(asks.iter().all(|ask| matches!(ask.what, Question::Withdraw)), "{asks:?}");
    // A client that is authorised only now gets no session here either.
    let owner = far.owner.clone();
    far.answer(question, Answer::Granted(Grant { owner }));
    undecided.sync(&mut far.world);
    assert!(undecided.seen.iter().any(refused), "{:?}", undecided.seen);
    assert!(far.asks().iter().all(|ask| !matches!(ask.what, Question::Submit(_))));
}

#[test]
fn a_streaming_workers_tunnel_is_kept_no_longer_than_its_client_asked() {
    let streaming = Kind { streaming: true, ..Kind::default() };
    for (asked, kept) in [(None, 30), (Some("5"), 5), (Some("1800"), 30), (Some("soon"), 30)] {
        let mut far = Far::of("[session]\npark = \"always\"", streaming);
        let mut client = Peer::client(&mut far.world);
        let field = asked.map(|asked| ("x-nvcf-reconnect-window-secs", asked));
        let (ticket, work) = Far::submitted(far.request(&mut client, field.as_slice()));
        far.answer(ticket, Answer::Queued);
        let worker = Peer::dial_back(&mut far.world, &as_told(&work));
        // The worker reads it too.
        assert_eq!(worker.field(0, "x-nvcf-reconnect-window-secs"), asked);
        far.world.end(client.conn, End::Reset);
        far.world.pass(Duration::from_millis(kept * 1000 - 1));
        assert!(!far.world.is_closed(worker.conn), "{asked:?}");
        far.world.pass(Duration::from_millis(1));
        assert!(far.world.is_closed(worker.conn), "{asked:?}");
    }
}

#[test]
fn each_tunnel_is_authorised_and_a_live_one_serves_without() {
    let mut far = Far::new("");
    let (mut client, mut worker, _) = far.attached();
    for _ in 0..3 {
        client.request(&mut far.world, &[], true);
    }
    worker.sync(&mut far.world);
    assert_eq!((far.asks().len(), worker.heads().len()), (0, 4));
    far.world.end(worker.conn, End::Reset);
    far.asks();
    let (_, work) = Far::submitted(far.request(&mut client, &[]));
    assert_eq!(work.kind, WorkKind::New);
    far.ends_empty(&client);
}

#[test]
fn who_opened_a_session_is_not_asked_about_when_it_comes_back_to_its_tunnel() {
    let mut far = Far::new("");
    let (client, mut worker, work) = far.attached();
    far.world.end(client.conn, End::Reset);
    assert!(far.asks().is_empty() && !far.world.is_closed(worker.conn), "it is parked");
    let id = work.request_id.to_string();
    let named = ("nvcf-reqid", &id[..]);
    // Another credential is asked about, and so is the same one for another function.
    for field in [("authorization", "Bearer dev-key-2"), ("function-id", "f")] {
        let mut other = Peer::client(&mut far.world);
        other.request(&mut far.world, &[named, field], true);
        assert!(matches!(far.ask().what, Question::Authorise(_)), "{field:?}");
        far.world.end(other.conn, End::Reset);
        far.asks();
    }
    let mut client = Peer::client(&mut far.world);
    client.request(&mut far.world, &[named], true);
    worker.sync(&mut far.world);
    assert_eq!((far.asks().len(), worker.heads().len()), (0, 2));
    assert_eq!(worker.field(1, "nvcf-reqid"), Some(&id[..]));
    // A client is let in unasked only to this session.
    client.request(&mut far.world, &[], true);
    assert!(far.asks().is_empty());
    far.world.end(worker.conn, End::Reset);
    far.asks();
    client.request(&mut far.world, &[], true);
    assert!(matches!(far.ask().what, Question::Authorise(_)));
    far.ends_empty(&client);
}

#[test]
fn without_a_version_no_session_begins_and_one_that_there_is_is_found() {
    let mut far = Far::new("");
    let mut nowhere = (*far.owner).clone();
    nowhere.version = "".into();
    far.owner = Arc::new(nowhere);
    let mut client = Peer::client(&mut far.world);
    client.request(&mut far.world, &[], true);
    let ticket = far.ask().ticket;
    let owner = far.owner.clone();
    far.answer(ticket, Answer::Granted(Grant { owner }));
    let (status, message) = far.status(&mut client);
    assert_eq!(status.as_deref(), Some("13"), "{message}");
    assert!(message.ends_with("missing function versions from nvcf api response"), "{message}");
    let mut client = Peer::client(&mut far.world);
    let id = ("nvcf-reqid", "99999999-9999-4999-8999-999999999999");
    let ask = far.request(&mut client, &[id]);
    assert!(matches!(ask.what, Question::Lookup(_)), "{ask:?}");
}
