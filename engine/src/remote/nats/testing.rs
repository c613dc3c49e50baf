//! A real NATS server for the tests of this folder, and a connection to it.

use std::collections::BTreeSet;
use std::io::Read;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::Event;
use async_nats::jetstream::{consumer, stream};
use futures_util::StreamExt;
use tokio::sync::watch;
use uuid::Uuid;

use super::link::{Link, State};
use super::nodes::{NodeConfig, Nodes, Pace};
use super::rights::Rights;

/// How long a server may take to begin.
const BEGINS_WITHIN: Duration = Duration::from_secs(20);
/// How long a test waits for something to become true.
const SOON: Duration = Duration::from_secs(10);

/// One server with JetStream, on a port of its own. It ends with the test.
pub(super) struct Server {
    child: Option<Child>,
    port: u16,
    folder: PathBuf,
}

impl Server {
    /// One on which everybody may do everything.
    pub(super) fn start() -> Self {
        Self::with("")
    }

    /// One whose configuration goes on with these lines.
    pub(super) fn with(lines: &str) -> Self {
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
        let port = free.local_addr().expect("it is bound").port();
        drop(free);
        let name = format!("ringway-nats-{}-{port}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&folder).expect("there is room for files");
        let config = format!(
            "listen: \"127.0.0.1:{port}\"\n\
             jetstream {{ store_dir: \"{}\" }}\n{lines}\n",
            folder.display()
        );
        std::fs::write(folder.join("nats.conf"), config).expect("there is room for files");
        let mut server = Self { child: None, port, folder };
        server.again();
        server
    }

    /// Where clients connect to.
    pub(super) fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// Kills it: what its memory held is gone.
    pub(super) fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().and_then(|()| child.wait()).expect("it is ours to end");
        }
    }

    /// Starts it after [`Server::stop`], on the same port.
    pub(super) fn again(&mut self) {
        let log = std::fs::File::create(self.folder.join("log")).expect("there is room for files");
        let child = Command::new(program())
            .arg("-c")
            .arg(self.folder.join("nats.conf"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("nats-server runs here: tools/install-test-tools.sh installs it");
        self.child = Some(child);
        let began = Instant::now();
        while !self.greets() {
            let log = std::fs::read_to_string(self.folder.join("log")).unwrap_or_default();
            assert!(began.elapsed() < BEGINS_WITHIN, "nats-server does not begin:\n{log}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn greets(&self) -> bool {
        let Ok(mut stream) = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)) else {
            return false;
        };
        let mut word = [0; 5];
        stream.read_exact(&mut word).is_ok() && &word == b"INFO "
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
        let _already_gone = std::fs::remove_dir_all(&self.folder);
    }
}

/// The pinned one where it is installed, else what the host has.
fn program() -> PathBuf {
    let pinned = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.tools/bin/nats-server");
    if pinned.exists() { pinned } else { "nats-server".into() }
}

/// A connection that is there before its server is, and hears what the server says against it.
pub(super) async fn link(url: &str, heard: impl Fn(&Event) + Send + Sync + 'static) -> Link {
    let why: Arc<str> = "not connected yet".into();
    let (said, state) = watch::channel(State::Down { since: tokio::time::Instant::now(), why });
    let said = Arc::new((said, std::sync::atomic::AtomicU64::new(0), heard));
    let server: async_nats::ServerAddr = url.parse().expect("the address can be read");
    let mut options = async_nats::ConnectOptions::new();
    if let (Some(user), Some(password)) = (server.username(), server.password()) {
        // The library overlooks what an address says of it.
        options = options.user_and_password(user.into(), password.into());
    }
    let options = options
        .retry_on_initial_connect()
        .reconnect_delay_callback(|_| Duration::from_millis(50))
        .event_callback(move |event| {
            let said = said.clone();
            async move {
                let (said, epochs, heard) = &*said;
                heard(&event);
                match event {
                    Event::Connected => {
                        let epoch = 1 + epochs.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                        said.send_replace(State::Up { epoch });
                    }
                    Event::Disconnected => {
                        let since = tokio::time::Instant::now();
                        said.send_replace(State::Down { since, why: "lost".into() });
                    }
                    _ => {}
                }
            }
        });
    let client = options.connect(server).await.expect("the address can be read");
    let jetstream = async_nats::jetstream::new(client.clone());
    Link { client, jetstream, state }
}

/// Waits until something is true.
pub(super) async fn until<F: Future<Output = bool>>(what: &str, mut test: impl FnMut() -> F) {
    let began = Instant::now();
    while !test().await {
        assert!(began.elapsed() < SOON, "not so in {SOON:?}: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A region of a server's: what NVIDIA's control plane and its workers would do there.
pub(super) struct Region {
    pub(super) link: Link,
    /// Its name.
    pub(super) name: Arc<str>,
}

impl Region {
    pub(super) fn new(link: Link) -> Self {
        Self { link, name: "here".into() }
    }

    fn stream_name(&self, version: &str) -> String {
        format!("rq_{}_{version}", self.name)
    }

    fn subject(&self, version: &str, id: Uuid) -> String {
        format!("rq.{}.{version}.{id}", self.name)
    }

    /// Makes a version's request stream (contract NT-1), kept in files: it outlives its server.
    pub(super) async fn request_stream(&self, version: &str) {
        self.link.up().await;
        let config = stream::Config {
            name: self.stream_name(version),
            subjects: vec![format!("rq.{}.{version}.>", self.name)],
            retention: stream::RetentionPolicy::WorkQueue,
            discard: stream::DiscardPolicy::New,
            discard_new_per_subject: true,
            max_messages_per_subject: 1,
            allow_direct: true,
            num_replicas: 1,
            ..stream::Config::default()
        };
        self.link.jetstream.create_stream(config).await.expect("it can be made");
    }

    /// Makes the stream of registrations (contract NT-3).
    pub(super) async fn lookup_stream(&self) {
        self.link.up().await;
        let config = stream::Config {
            name: format!("stateful_session_lookup_{}", self.name),
            subjects: vec![format!("stateful_session.lookup.{}.>", self.name)],
            max_messages_per_subject: 1,
            storage: stream::StorageType::Memory,
            allow_direct: true,
            num_replicas: 1,
            ..stream::Config::default()
        };
        self.link.jetstream.create_stream(config).await.expect("it can be made");
    }

    /// Queues work; its sequence.
    pub(super) async fn publish(&self, version: &str, id: Uuid) -> u64 {
        self.put(self.subject(version, id)).await
    }

    /// Registers a session as its worker does (contract 6.4).
    pub(super) async fn register(&self, version: &str, id: Uuid) {
        self.put(format!("stateful_session.lookup.{}.{version}.{id}", self.name)).await;
    }

    async fn put(&self, subject: String) -> u64 {
        let publish = self.link.jetstream.publish(subject, "work".into());
        publish.await.expect("it is sent").await.expect("there is such a stream").sequence
    }

    /// Takes so many pieces of work as workers do, and keeps them.
    pub(super) async fn take(&self, version: &str, count: usize) {
        let name = self.stream_name(version);
        let workers = format!("{name}_workers");
        let stream = self.link.jetstream.get_stream(name).await.expect("it is there");
        let config = consumer::pull::Config {
            durable_name: Some(workers.clone()),
            ack_policy: consumer::AckPolicy::Explicit,
            ..consumer::pull::Config::default()
        };
        let workers = stream.get_or_create_consumer(&workers, config).await.expect("it is made");
        let taken = workers.fetch().max_messages(count).messages().await.expect("it is asked");
        assert_eq!(taken.count().await, count, "as many pieces of work were queued");
    }

    /// What a version's stream holds.
    pub(super) async fn held(&self, version: &str) -> BTreeSet<Uuid> {
        let name = self.stream_name(version);
        let stream = self.link.jetstream.get_stream(name).await.expect("it is there");
        let subjects = stream.info_with_subjects(">").await.expect("it is there");
        let last = |subject: &str| Uuid::try_parse(subject.rsplit('.').next()?).ok();
        subjects
            .map(|subject| last(&subject.expect("it is listed").0).expect("it is an id"))
            .collect()
            .await
    }
}

/// How fast records live in tests.
pub(super) const PACE: Pace =
    Pace { ttl: Duration::from_secs(1), refresh: Duration::from_millis(250) };

/// A gateway's place in the bucket.
pub(super) fn place(link: &Link, worker: &str) -> NodeConfig {
    NodeConfig {
        link: link.clone(),
        rights: Arc::new(Rights::default()),
        region: "here".into(),
        placement: String::new(),
        worker: worker.into(),
        relay: None,
        admin: None,
        keys: None,
        pace: PACE,
    }
}

/// A gateway that has entered its record.
pub(super) async fn enter(link: &Link, worker: &str) -> Nodes {
    Nodes::enter(place(link, worker), SOON).await.expect("the kernel gives random numbers")
}
