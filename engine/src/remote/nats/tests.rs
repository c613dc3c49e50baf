//! The plane against a real NATS server.

mod connection;
mod resumption;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::stream::{Config, DiscardPolicy, RetentionPolicy, StorageType};
use futures_util::StreamExt;
use prost::Message as _;
use ringway_proto::id::Node;
use ringway_stdio::Trouble;
use tokio::time::{Instant, timeout};
use uuid::Uuid;

use super::super::pb::connection_config::Config as Way;
use super::super::pb::{StatefulSessionTracking, WorkerInvokeFunctionRequest};
use super::testing::{Server, until};
use super::{Nats, Own, Secrets, State, Versions};
use crate::config::{Nats as Settings, Remote};
use crate::control::local::{Ticket, Work, WorkKind};
use crate::control::port::{Answer, AskTicket, Kind, Owner, Topic};

const REGION: &str = "r-1";
const VERSION: &str = "5a1c7f0e-0000-4000-8000-00000000000a";
const URI: &str = "http://[::1]:10086/v1/proxy";
/// Longer than anything here takes that comes at all.
const SOON: Duration = Duration::from_secs(10);
/// Shorter than any pause or limit of the plane.
const AT_ONCE: Duration = Duration::from_millis(200);

fn remote(urls: &[String]) -> Remote {
    Remote {
        authority: None,
        nats: Settings {
            urls: urls.to_vec(),
            nkey: None,
            credentials: None,
            user: None,
            token: None,
            ca: None,
            client_pair: None,
            placement: String::new(),
            callout: false,
        },
        region: REGION.into(),
        proxy_uri: URI.into(),
        direct_uri: None,
        secrets: None::<PathBuf>,
        red_after: Duration::from_secs(10),
    }
}

/// As if no other gateway had been where it is.
async fn begin(settings: &Remote, secrets: Secrets) -> Result<Nats, Trouble> {
    let own = Own { worker: fresh().to_string(), versions: Versions::default(), cluster: None };
    Nats::start(settings, secrets, own, Duration::ZERO).await
}

/// A plane at a server that is there, and a connection of the test's own.
async fn plane(server: &Server) -> (Nats, async_nats::Client) {
    let nats = begin(&remote(&[server.url()]), Secrets::default()).await.unwrap();
    up(&nats).await;
    (nats, async_nats::connect(server.url()).await.unwrap())
}

async fn up(nats: &Nats) {
    let mut health = nats.health();
    let up = health.wait_for(|state| matches!(state, State::Up { .. }));
    timeout(SOON, up).await.expect("it connects").unwrap();
}

/// Waits until there is no connection: why.
async fn down(nats: &Nats, word: &str) -> Arc<str> {
    let mut health = nats.health();
    let down =
        health.wait_for(|state| matches!(state, State::Down { why, .. } if why.contains(word)));
    let state = timeout(SOON, down).await.expect("it says why not").unwrap();
    let State::Down { why, .. } = &*state else { unreachable!("it was waited for") };
    why.clone()
}

/// An id that was never there.
fn fresh() -> Uuid {
    Uuid::from_u64_pair(getrandom::u64().unwrap(), getrandom::u64().unwrap())
}

fn ticket(number: u64) -> AskTicket {
    AskTicket { core: 0, life: 1, about: Topic::Tunnel, number }
}

fn work(kind: WorkKind, id: Uuid) -> Work {
    let mut owner = Owner::new("nca".into(), "function".into(), VERSION.into());
    owner.subject = "somebody".into();
    let ticket = Ticket { node: Node::new(1, 1).unwrap(), core: 0, number: 1 };
    Work { ticket, kind, request_id: id, owner: Arc::new(owner), token: [b'T'; 64] }
}

/// A request stream as the control plane makes it (contract NT-1), but for what is changed.
async fn request_stream(client: &async_nats::Client, change: impl FnOnce(&mut Config)) {
    let mut config = Config {
        name: format!("rq_{REGION}_{VERSION}"),
        subjects: vec![format!("rq.{REGION}.{VERSION}.*")],
        retention: RetentionPolicy::WorkQueue,
        discard: DiscardPolicy::New,
        discard_new_per_subject: true,
        max_messages_per_subject: 1,
        max_messages: 100_000,
        storage: StorageType::Memory,
        allow_direct: true,
        ..Config::default()
    };
    change(&mut config);
    async_nats::jetstream::new(client.clone()).create_stream(config).await.unwrap();
}

/// The value of a metric.
fn metric(nats: &Nats, name: &str) -> u64 {
    let mut out = String::new();
    nats.render(&mut out);
    let name = format!("nvcf_grpc_proxy_service_{name} ");
    let value = out.lines().find_map(|line| line.strip_prefix(&name));
    value.expect("it is told").parse().unwrap()
}

#[track_caller]
fn unqueued(answer: Answer, word: &str) {
    let Answer::Unqueued(why) = answer else { panic!("{answer:?} instead of a refusal") };
    assert!(why.contains(word), "{why} lacks {word}");
}

#[track_caller]
fn is_work(payload: &[u8], id: Uuid) {
    let read = WorkerInvokeFunctionRequest::decode(payload).unwrap();
    assert_eq!(read.request_id, id.to_string());
    assert_eq!((&*read.nca_id, &*read.subject), ("nca", "somebody"));
    let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs();
    let at = u64::try_from(read.request_time.unwrap().seconds).unwrap();
    assert!(now - at < 60, "{at} is not about {now}");
    let config = read.stateful_config.unwrap();
    assert_eq!(config.nvcf_region_of_invoker, REGION);
    assert_eq!(config.connection_configs.len(), 1);
    let Some(Way::Http1Config(way)) = &config.connection_configs[0].config else {
        panic!("it is another way: {config:?}")
    };
    assert_eq!((&*way.proxy_uri, &*way.proxy_authorization_token), (URI, &*"T".repeat(64)));
}

#[tokio::test]
async fn work_is_published_and_acknowledged() {
    let server = Server::start();
    let (nats, client) = plane(&server).await;
    request_stream(&client, |_| {}).await;
    let id = fresh();
    assert_eq!(nats.submit(ticket(1), &work(WorkKind::New, id)).await, Answer::Queued);
    let jetstream = async_nats::jetstream::new(client);
    let stream = jetstream.get_stream(format!("rq_{REGION}_{VERSION}")).await.unwrap();
    let stored = stream.get_raw_message(1).await.unwrap();
    assert_eq!(&*stored.subject, format!("rq.{REGION}.{VERSION}.{id}"));
    assert!(stored.headers.is_empty(), "there is no header block: {:?}", stored.headers);
    is_work(&stored.payload, id);
    // What is there already is not there twice, and is no failure.
    assert_eq!(nats.submit(ticket(2), &work(WorkKind::New, id)).await, Answer::Queued);
    assert!(metric(&nats, "nats_out_bytes") > stored.payload.len() as u64);
    assert!(metric(&nats, "nats_out_msgs") > 0 && metric(&nats, "nats_in_msgs") > 0);
}

#[tokio::test]
async fn a_full_stream_refuses_and_a_version_is_no_wildcard() {
    let server = Server::start();
    let (nats, client) = plane(&server).await;
    request_stream(&client, |config| config.max_messages = 3).await;
    let new = || work(WorkKind::New, fresh());
    for number in 1..=3 {
        assert_eq!(nats.submit(ticket(number), &new()).await, Answer::Queued);
    }
    unqueued(nats.submit(ticket(4), &new()).await, "maximum messages exceeded");

    let jetstream = async_nats::jetstream::new(client.clone());
    jetstream.delete_stream(format!("rq_{REGION}_{VERSION}")).await.unwrap();
    request_stream(&client, |config| config.max_bytes = 1024).await;
    let mut stored = 0;
    let refused = loop {
        match nats.submit(ticket(10 + stored), &new()).await {
            Answer::Queued => stored += 1,
            other => break other,
        }
    };
    assert!((1..=3).contains(&stored), "{stored} messages in 1 KiB");
    unqueued(refused, "maximum bytes exceeded");

    for version in ["*", "a.b", ""] {
        let mut bad = new();
        let owner = Owner::new("nca".into(), "function".into(), version.into());
        bad.owner = Arc::new(owner);
        unqueued(nats.submit(ticket(20), &bad).await, "part of a subject");
    }
}

#[tokio::test]
async fn a_stream_that_is_missing_is_waited_for_a_little() {
    let server = Server::start();
    let (nats, client) = plane(&server).await;
    let begun = Instant::now();
    let answer = nats.submit(ticket(1), &work(WorkKind::New, fresh())).await;
    unqueued(answer, "there is no stream rq_r-1_");
    let took = begun.elapsed();
    assert!(took >= Duration::from_millis(500) && took < Duration::from_secs(3), "{took:?}");
    let made = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        request_stream(&client, |_| {}).await;
    };
    let asked = work(WorkKind::New, fresh());
    let (answer, ()) = tokio::join!(nats.submit(ticket(2), &asked), made);
    assert_eq!(answer, Answer::Queued);
}

#[tokio::test]
async fn publishes_do_not_wait_for_each_other() {
    const MANY: u64 = 500;
    let server = Server::start();
    let (nats, client) = plane(&server).await;
    request_stream(&client, |_| {}).await;
    // One whose stream is missing takes half a second; all others are through long before.
    let mut slow = work(WorkKind::New, fresh());
    slow.owner = Arc::new(Owner::new("nca".into(), "function".into(), "other".into()));
    let (begun, other) = (Instant::now(), nats.clone());
    let slow = tokio::spawn(async move {
        unqueued(other.submit(ticket(0), &slow).await, "no stream");
        begun.elapsed()
    });
    let works: Vec<Work> = (0..MANY).map(|_| work(WorkKind::New, fresh())).collect();
    let submits = works.iter().zip(1..).map(|(work, number)| nats.submit(ticket(number), work));
    let answers = futures_util::future::join_all(submits).await;
    let took = begun.elapsed();
    assert!(answers.iter().all(|answer| *answer == Answer::Queued), "{answers:?}");
    assert!(took < slow.await.unwrap(), "{MANY} took {took:?}");
}

#[tokio::test]
async fn a_streaming_function_is_asked_until_somebody_replies() {
    let server = Server::start();
    let (nats, client) = plane(&server).await;
    let streaming = |id| {
        let mut asked = work(WorkKind::New, id);
        let kind = Kind { streaming: true, ..Kind::default() };
        let owner = Owner::new("nca".into(), "function".into(), VERSION.into());
        asked.owner = Arc::new(Owner { kind, subject: "somebody".into(), ..owner });
        asked
    };
    let (heard, given_up, settled) = (fresh(), fresh(), fresh());
    let begun = Instant::now();
    for (number, id) in (1..).zip([heard, given_up, settled]) {
        assert_eq!(nats.submit(ticket(number), &streaming(id)).await, Answer::Queued);
    }
    assert!(begun.elapsed() < AT_ONCE, "nobody listens, and nobody waits for it");
    nats.withdraw(ticket(2));
    nats.settled(ticket(3));
    // Its workers come later.
    tokio::time::sleep(Duration::from_millis(300)).await;
    let mut asked = client.subscribe(format!("llsrq.default.{VERSION}.*")).await.unwrap();
    let first = timeout(SOON, asked.next()).await.expect("it is asked again").unwrap();
    assert_eq!(&*first.subject, format!("llsrq.default.{VERSION}.{heard}"));
    assert!(first.headers.is_none());
    is_work(&first.payload, heard);
    client.publish(first.reply.unwrap(), "anything".into()).await.unwrap();
    // The reply ends it, and the other two had been ended.
    let more = timeout(Duration::from_millis(4500), asked.next()).await;
    assert!(more.is_err(), "{more:?} came after the reply");
}
