//! Cores as they run in the process: real reactors, real sockets, no control thread.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ringway_proto::id::Node;
use tokio::sync::mpsc;

use super::Files;
use super::core::{CoreConfig, mailboxes, start};
use crate::admin::Changes;
use crate::config::Config;
use crate::control::local::Policy;
use crate::control::port::Plane;
use crate::mailbox::Sender;
use crate::message::{ControlMessage, ShardMessage};
use crate::metrics::{Backend, Limit, ShardMetrics};
use crate::net::Listener;
use crate::shard::ShardSettings;
use crate::transport::Entrances;

/// The cores that have to panic at the next message: the gateway's name and the core's number.
static PANICS: Mutex<Vec<(u32, usize)>> = Mutex::new(Vec::new());
static NAMES: AtomicU32 = AtomicU32::new(1);

pub(super) fn panic_if_asked(name: u32, core: usize) {
    let mut panics = PANICS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(at) = panics.iter().position(|who| *who == (name, core)) {
        panics.swap_remove(at);
        drop(panics);
        panic!("the test asked for it");
    }
}

struct Cores {
    name: u32,
    senders: Arc<[Sender<ShardMessage>]>,
    changes: Arc<Changes>,
    threads: Vec<JoinHandle<()>>,
    told: mpsc::Receiver<ControlMessage>,
    /// Each core's own client port.
    clients: Vec<SocketAddr>,
    tickets: u64,
}

impl Cores {
    /// Each core has a client port of its own: so a test chooses who accepts.
    fn start(count: usize) -> Self {
        let config = Arc::new(Config::dev());
        let name = NAMES.fetch_add(1, Ordering::Relaxed);
        let (messages, told) = mpsc::channel(64);
        let (senders, inboxes) = mailboxes(count, config.limits.mailbox).unwrap();
        let (mut threads, mut clients) = (Vec::new(), Vec::new());
        let origin = Instant::now();
        let policy = Arc::new(Policy::new(&config.tenants, &config.functions));
        let changes = Arc::new(Changes::new(policy));
        for (core, inbox) in inboxes.into_iter().enumerate() {
            let client = TcpListener::bind("127.0.0.1:0").unwrap();
            let worker = TcpListener::bind("127.0.0.1:0").unwrap();
            clients.push(client.local_addr().unwrap());
            let settings = ShardSettings {
                config: config.clone(),
                plane: Plane::Local,
                dispatch: Plane::Local,
                core: core as u16,
                cores: count as u16,
                node: Node::new(0, name as u16).unwrap(),
                secret: [1; 16],
                keys: None,
                seed: [core as u8; 32],
                generation: 0,
                unanswered: 0,
                advertise: "http://127.0.0.1:1".into(),
                unix_micros_at_zero: 0,
                version: "test",
                commit: "test",
            };
            let (messages, cores, changes) = (messages.clone(), senders.clone(), changes.clone());
            let (entrances, backend) = (Entrances::default(), Backend::Ring);
            let cpu = None;
            let core_config = CoreConfig {
                settings,
                changes,
                sockets: vec![(Listener::Client, client), (Listener::Worker, worker)],
                inherited: Vec::new(),
                shares: false,
                messages,
                asks: None,
                cores,
                origin,
                cpu,
                entrances,
                backend,
                files: Files::share(&config.limits, count, u64::MAX, None),
            };
            threads.push(start(core_config, inbox).unwrap());
        }
        Self { name, senders, changes, threads, told, clients, tickets: 0 }
    }

    /// A connection on which a request was answered.
    fn ask(&self, core: usize) -> TcpStream {
        let mut stream = TcpStream::connect(self.clients[core]).unwrap();
        assert!(answers(&mut stream));
        stream
    }

    fn metrics(&mut self, core: usize) -> ShardMetrics {
        self.tickets += 1;
        let wanted = self.tickets;
        self.senders[core].send(ShardMessage::Snapshot { ticket: wanted }).unwrap();
        match self.told.blocking_recv() {
            Some(ControlMessage::Snapshot { ticket, core: by, snapshot }) => {
                assert_eq!((ticket, usize::from(by)), (wanted, core));
                snapshot.metrics
            }
            other => panic!("no snapshot: {other:?}"),
        }
    }

    fn open(&mut self, core: usize) -> u64 {
        self.metrics(core).active_connections
    }

    /// Lets a core panic, and waits until it is back.
    fn panic(&mut self, core: usize) {
        PANICS.lock().unwrap_or_else(PoisonError::into_inner).push((self.name, core));
        self.senders[core].send(ShardMessage::Snapshot { ticket: 0 }).unwrap();
        match self.told.blocking_recv() {
            Some(ControlMessage::Restarted { core: back }) => assert_eq!(usize::from(back), core),
            other => panic!("the core did not begin again: {other:?}"),
        }
    }

    fn stop(self) {
        for sender in &*self.senders {
            sender.send(ShardMessage::Stop).unwrap();
        }
        self.all_end();
    }

    fn all_end(mut self) {
        for _ in 0..self.threads.len() {
            assert!(matches!(self.told.blocking_recv(), Some(ControlMessage::Drained { .. })));
        }
        self.threads.into_iter().for_each(|thread| thread.join().unwrap());
        for client in self.clients {
            assert!(TcpStream::connect(client).is_err(), "the port is free again");
        }
        for sender in &*self.senders {
            assert!(sender.send(ShardMessage::Stop).is_err(), "nobody receives any more");
        }
    }
}

/// Whether `GET /info` is answered on the connection.
fn answers(stream: &mut TcpStream) -> bool {
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    // A connection that the other end has closed may take these bytes and answer with a reset, or
    // refuse them.
    let asked = stream.write_all(b"GET /info HTTP/1.1\r\nHost: x\r\n\r\n");
    let mut answer = [0; 2048];
    asked.is_ok() && stream.read(&mut answer).is_ok_and(|n| n > 0 && answer[0] == b'H')
}

fn until(what: &str, mut seen: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !seen() {
        assert!(begun.elapsed() < Duration::from_secs(60), "waited in vain for: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn after_a_panic_a_new_shard_serves_on_the_same_port_and_mailbox() {
    let mut cores = Cores::start(1);
    let mut old = cores.ask(0);
    cores.panic(0);
    assert!(!answers(&mut old), "the old connection has ended");
    cores.ask(0);
    assert_eq!(cores.metrics(0).io_backend[Backend::Ring.index()], 1);
    cores.stop();
}

/// The status of a call with the key of `ringway dev`, whose function no worker serves.
fn status_of_a_call(client: SocketAddr) -> String {
    let mut stream = TcpStream::connect(client).unwrap();
    let function = &Config::dev().functions[0].id;
    let head = format!(
        "GET /x HTTP/1.1\r\nHost: x\r\nauthorization: Bearer dev-key\r\nfunction-id: \
         {function}\r\nfunction-version-id: unknown\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).unwrap();
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).unwrap();
    String::from_utf8_lossy(&answer[9..]).into_owned()
}

#[test]
fn after_a_panic_a_key_that_was_revoked_is_good_nowhere() {
    let mut cores = Cores::start(1);
    assert_eq!(status_of_a_call(cores.clients[0]), "404", "the key is good, the version is not");
    // No core is told, just as a shard is not told that dies with the message in its mailbox.
    cores.changes.replace_policy(Arc::new(Policy::new(&[], &[])));
    assert_eq!(status_of_a_call(cores.clients[0]), "404");
    cores.panic(0);
    assert_eq!(status_of_a_call(cores.clients[0]), "401");
    cores.stop();
}

#[test]
fn a_burst_on_one_core_is_shared_by_all() {
    let mut cores = Cores::start(2);
    let mut streams: Vec<_> =
        (0..16).map(|_| TcpStream::connect(cores.clients[0]).unwrap()).collect();
    until("all accepted", || cores.open(0) + cores.open(1) == 16);
    assert!(streams.iter_mut().all(answers), "also those that were moved are served");
    let (open, moved) = ([cores.open(0), cores.open(1)], cores.metrics(1).core_moves);
    assert!(open[0].abs_diff(open[1]) <= 2, "{open:?}");
    assert_eq!((moved, cores.metrics(0).core_moves), (open[1], 0));
    let sent = cores.metrics(0).cross_core_messages;
    assert_eq!(sent, moved);
    // A connection that moved does not move again, and its end is counted on its new core.
    streams.drain(..8);
    until("half of them closed", || cores.open(0) + cores.open(1) == 8);
    assert!(streams.iter_mut().all(answers));
    cores.stop();
}

#[test]
fn short_connections_stay_where_they_came() {
    let mut cores = Cores::start(2);
    for _ in 0..100 {
        drop(cores.ask(0));
        until("it is closed", || cores.open(0) == 0);
    }
    assert_eq!(cores.metrics(1).core_moves, 0);
    cores.stop();
}

#[test]
fn a_panic_ends_one_cores_connections_and_no_others() {
    let mut cores = Cores::start(2);
    let mut streams: Vec<_> = (0..16).map(|nth| cores.ask(nth % 2)).collect();
    let lost = cores.open(0) as usize;
    assert!((4..=12).contains(&lost), "{lost} of 16 on the first core");
    cores.panic(0);
    let left = streams.iter_mut().filter_map(|stream| answers(stream).then_some(())).count();
    assert_eq!(left, 16 - lost);
    assert_eq!(cores.open(1) as usize, left);
    // The core is back and knows no connection. It takes its share and connections that others hand
    // over.
    let new: Vec<_> = (0..16).map(|_| cores.ask(1)).collect();
    assert!(cores.open(0) >= 8, "{} on the new core", cores.open(0));
    let gauges = cores.metrics(1);
    assert_eq!(gauges.limit_hits[Limit::Mailbox.index()], 0);
    assert!(gauges.limit_used[Limit::Mailbox.index()] <= 1);
    drop(new);
    cores.stop();
}

#[test]
fn a_core_that_drains_hands_nothing_over_and_is_handed_nothing() {
    let mut cores = Cores::start(2);
    cores.senders[0].send(ShardMessage::Unready).unwrap();
    let here: Vec<_> = (0..8).map(|_| cores.ask(0)).collect();
    assert_eq!((cores.open(0), cores.open(1)), (8, 0));
    let there: Vec<_> = (0..16).map(|_| cores.ask(1)).collect();
    assert_eq!((cores.open(0), cores.open(1)), (8, 16));
    drop((here, there));
    cores.stop();
}

#[test]
fn cores_drain_together() {
    let cores = Cores::start(2);
    let mut client = cores.ask(0);
    for sender in &*cores.senders {
        sender.send(ShardMessage::Drain { max: Duration::from_secs(30) }).unwrap();
    }
    // Keep-alive ends with the drain: this is a client that has asked nothing yet.
    assert!(!answers(&mut client));
    cores.all_end();

    let mut cores = Cores::start(2);
    let mut client = TcpStream::connect(cores.clients[0]).unwrap();
    until("it is accepted", || cores.open(0) == 1);
    for sender in &*cores.senders {
        sender.send(ShardMessage::Drain { max: Duration::from_secs(30) }).unwrap();
    }
    std::thread::sleep(Duration::from_millis(200));
    assert!(cores.threads.iter().all(|thread| !thread.is_finished()), "one has a client");
    assert!(answers(&mut client), "it is served to its end");
    drop(client);
    cores.all_end();
}

#[test]
fn who_waits_to_be_accepted_when_a_core_drains_is_served() {
    let mut cores = Cores::start(1);
    for _ in 0..20 {
        // The core has to drain while connections wait in its listener's queue.
        let held = cores.ask(0);
        let mut clients: Vec<_> =
            (0..20).map(|_| TcpStream::connect(cores.clients[0]).unwrap()).collect();
        cores.senders[0].send(ShardMessage::Drain { max: Duration::from_secs(30) }).unwrap();
        let served = clients.iter_mut().filter_map(|c| answers(c).then_some(())).count();
        assert_eq!(served, 20);
        drop((held, clients));
        cores.all_end();
        cores = Cores::start(1);
    }
    cores.stop();
}

#[test]
fn cores_that_panic_again_and_again_while_connections_move_lose_only_their_own() {
    let mut cores = Cores::start(3);
    for round in 0..9 {
        let mut streams: Vec<_> = (0..12).map(|_| cores.ask(round % 3)).collect();
        cores.panic((round + 1) % 3);
        let left = streams.iter_mut().filter_map(|stream| answers(stream).then_some(())).count();
        let open: u64 = (0..3).map(|core| cores.open(core)).sum();
        assert!(left >= 6 && open >= left as u64, "{left} left, {open} open");
    }
    cores.stop();
}
