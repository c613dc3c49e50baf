//! One data core: its thread, its reactor with its shard, and what happens when a shard panics.

use std::net::{SocketAddr, TcpListener};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc as std_mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ringway_proto::time::Time;
use tokio::sync::mpsc;

use crate::border::{Border, ConnId, Core, End, Listener};
use crate::config::{self, Config};
use crate::control::local::Policy;
use crate::metrics::{Backend, Limit};
use crate::pool::Segment;
use crate::post::{ControlPost, ShardPost};
use crate::reactor::{BusyPoll, KeepAlive, Options, Reactor};
use crate::ring::{self, Mailbox, Sender};
use crate::shard::{Shard, ShardSettings};

/// A core that panics more often than this within [`PANIC_WINDOW`] stays down: its fault is not one
/// connection's.
const MAX_PANICS: usize = 10;
const PANIC_WINDOW: Duration = Duration::from_secs(60);

/// What a core is started with.
#[derive(Debug)]
pub(super) struct Seat {
    pub(super) settings: ShardSettings,
    pub(super) policy: Arc<Policy>,
    pub(super) client: TcpListener,
    pub(super) worker: TcpListener,
    pub(super) posts: mpsc::Sender<ControlPost>,
    /// The process's [`Time::ZERO`].
    pub(super) origin: Instant,
    /// The CPU it is pinned to.
    pub(super) cpu: Option<usize>,
    /// What drives it.
    pub(super) backend: Backend,
}

/// A started core.
#[derive(Debug)]
pub(super) struct Started {
    pub(super) mailbox: Sender<ShardPost>,
    pub(super) thread: JoinHandle<()>,
}

/// Starts a core's thread and waits until it is ready to accept.
///
/// # Errors
/// What the host lacks or forbids, and the fix.
pub(super) fn start(seat: Seat) -> Result<Started, String> {
    let (mailbox, inbox) = mailbox(&seat)?;
    let (ready, is_ready) = std_mpsc::channel();
    let name = format!("ringway-core-{}", seat.settings.core);
    let thread = std::thread::Builder::new()
        .name(name)
        .spawn(move || seat.run(inbox, ready))
        .map_err(|error| format!("no thread for a core: {error}"))?;
    match is_ready.recv() {
        Ok(Ok(())) => Ok(Started { mailbox, thread }),
        Ok(Err(why)) => Err(why),
        Err(_) => Err("a core's thread ended before it was ready".into()),
    }
}

type Inbox = Mailbox<ShardPost>;

fn mailbox(seat: &Seat) -> Result<(Sender<ShardPost>, Inbox), String> {
    ring::mailbox(seat.settings.config.limits.mailbox)
        .map_err(|error| format!("no mailbox for a core: {error}; raise `ulimit -n`"))
}

impl Seat {
    /// The core's life: one reactor after the other, a new one only after a panic.
    fn run(mut self, inbox: Inbox, ready: std_mpsc::Sender<Result<(), String>>) {
        let core = self.settings.core;
        let mut panics: Vec<Instant> = Vec::new();
        let mut inbox = Some(inbox);
        let mut ready = Some(ready);
        while let Some(own) = inbox.take() {
            // Nothing of ours is used after the panic but what the next reactor is made from: ring,
            // payload memory and sockets are closed while the panic unwinds.
            let life = catch_unwind(AssertUnwindSafe(|| self.live(own, &mut ready)));
            match life {
                Ok(Ok(())) => break,
                Ok(Err(why)) => {
                    tracing::error!(shard = core, why, "a core cannot be started again");
                    break;
                }
                Err(_) => {
                    panics.retain(|at| at.elapsed() < PANIC_WINDOW);
                    panics.push(Instant::now());
                    tracing::error!(
                        shard = core,
                        recent = panics.len(),
                        "a core panicked: its connections were closed"
                    );
                    if panics.len() > MAX_PANICS {
                        break;
                    }
                    inbox = self.begin_again();
                }
            }
        }
        // It waits for room: this message must not be lost. If nobody listens, all ends anyway.
        let _ = self.posts.blocking_send(ControlPost::Drained { core });
    }

    /// A new generation and a new mailbox after a panic.
    fn begin_again(&mut self) -> Option<Inbox> {
        // Ids of the dead shard find nobody in the new one.
        self.settings.generation = self.settings.generation.wrapping_add(1 << 20);
        for byte in &mut self.settings.seed {
            *byte = byte.wrapping_add(0x9d);
        }
        let (mailbox, inbox) = match mailbox(self) {
            Ok(both) => both,
            Err(why) => {
                tracing::error!(shard = self.settings.core, why, "a core cannot be started again");
                return None;
            }
        };
        let core = self.settings.core;
        self.posts.blocking_send(ControlPost::Restarted { core, mailbox }).ok()?;
        Some(inbox)
    }

    /// One reactor, from its set-up to its end.
    fn live(
        &self,
        inbox: Inbox,
        ready: &mut Option<std_mpsc::Sender<Result<(), String>>>,
    ) -> Result<(), String> {
        let report = |result: Result<(), String>, ready: &mut Option<std_mpsc::Sender<_>>| {
            if let Some(ready) = ready.take() {
                // The starter waits for it.
                let _ = ready.send(result);
            }
        };
        match self.reactor(inbox) {
            Ok(reactor) => {
                report(Ok(()), ready);
                reactor.run();
                Ok(())
            }
            Err(why) => {
                report(Err(why.clone()), ready);
                Err(why)
            }
        }
    }

    fn reactor(&self, inbox: Inbox) -> Result<Reactor<Occupant>, String> {
        let copy = |socket: &TcpListener| {
            socket.try_clone().map_err(|error| format!("no descriptor for a listener: {error}"))
        };
        let listeners =
            vec![(Listener::Client, copy(&self.client)?), (Listener::Worker, copy(&self.worker)?)];
        let occupant = Occupant {
            shard: Shard::new(self.settings.clone(), self.policy.clone()),
            waiting: Vec::new(),
            posts: self.posts.clone(),
            mailbox: inbox.capacity(),
            backend: self.backend,
        };
        let config = &self.settings.config;
        let options = options(config, self.settings.core, self.cpu, self.backend);
        Reactor::new(options, listeners, inbox, self.origin, occupant)
            .map_err(|error| error.to_string())
    }
}

/// A reactor's options out of the configuration.
pub(super) fn options(config: &Config, core: u16, cpu: Option<usize>, backend: Backend) -> Options {
    let defaults = Options::default();
    let limits = &config.limits;
    Options {
        core,
        backend,
        pin: cpu,
        busy_poll: match config.cores.busy_poll {
            config::BusyPoll::Always => BusyPoll::Always,
            config::BusyPoll::For(Duration::ZERO) => BusyPoll::Never,
            config::BusyPoll::For(time) => BusyPoll::Micros(time.as_micros() as u64),
        },
        blocks: (config.cores.receive_memory / defaults.block_bytes).clamp(16, 1 << 15),
        connections: limits.client_connections + limits.worker_connections,
        keep_alive: KeepAlive {
            idle: config.keepalive.idle,
            interval: config.keepalive.interval,
            probes: config.keepalive.probes,
        },
        ..defaults
    }
}

/// The CPUs for so many cores, beginning with the one this thread runs on: several gateways on one
/// machine would otherwise all choose its first. None where there are not enough to choose from.
pub(super) fn cpus_for(count: usize) -> Option<Vec<usize>> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let list = text.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?;
    let cpus = cpus(list.trim());
    // With as many cores as CPUs there would be none of its own for the control thread either way.
    if cpus.len() < count.max(2) {
        return None;
    }
    let here = rustix::thread::sched_getcpu();
    let first = cpus.iter().position(|cpu| *cpu == here).unwrap_or(0);
    Some((first..first + count).map(|at| cpus[at % cpus.len()]).collect())
}

/// `0-3,8` as numbers.
fn cpus(list: &str) -> Vec<usize> {
    let mut cpus = Vec::new();
    for part in list.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        if let (Ok(first), Ok(last)) = (first.parse::<usize>(), last.parse::<usize>()) {
            cpus.extend(first..=last.min(first + 4096));
        }
    }
    cpus
}

/// A shard, and the way of its messages to the control thread.
#[derive(Debug)]
struct Occupant {
    shard: Shard,
    waiting: Vec<ControlPost>,
    posts: mpsc::Sender<ControlPost>,
    mailbox: usize,
    backend: Backend,
}

impl Occupant {
    /// Sends what the shard has to say. A full channel loses it: whoever asked has a deadline.
    fn send_posts(&mut self) {
        self.shard.take_posts(&mut self.waiting);
        for mut post in self.waiting.drain(..) {
            if let ControlPost::Snapshot { snapshot, .. } = &mut post {
                snapshot.metrics.io_backend[self.backend.index()] = 1;
                snapshot.metrics.limit_max[Limit::Mailbox.index()] = self.mailbox as u64;
            }
            // See above.
            let _ = self.posts.try_send(post);
        }
    }
}

impl Core for Occupant {
    type Post = ShardPost;

    fn accepted(
        &mut self,
        border: &mut Border,
        conn: ConnId,
        listener: Listener,
        peer: SocketAddr,
    ) {
        self.shard.accepted(border, conn, listener, peer);
    }

    fn dialled(&mut self, border: &mut Border, conn: ConnId, result: Result<(), i32>) {
        self.shard.dialled(border, conn, result);
    }

    fn received(&mut self, border: &mut Border, conn: ConnId, segment: Segment) {
        self.shard.received(border, conn, segment);
    }

    fn ended(&mut self, border: &mut Border, conn: ConnId, end: End) {
        self.shard.ended(border, conn, end);
    }

    fn written(&mut self, border: &mut Border, conn: ConnId, bytes: usize) {
        self.shard.written(border, conn, bytes);
    }

    fn posted(&mut self, border: &mut Border, post: ShardPost) {
        #[cfg(test)]
        tests::panic_if_asked();
        self.shard.posted(border, post);
        self.send_posts();
    }

    fn turn(&mut self, border: &mut Border) {
        self.shard.turn(border);
    }

    fn relieve(&mut self, border: &mut Border) {
        self.shard.relieve(border);
    }

    fn deadline(&self) -> Option<Time> {
        self.shard.deadline()
    }

    fn finished(&self) -> bool {
        self.shard.finished()
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpStream;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    static PANIC: AtomicBool = AtomicBool::new(false);

    pub(super) fn panic_if_asked() {
        assert!(!PANIC.swap(false, Ordering::SeqCst), "the test asked for it");
    }

    #[test]
    fn cpu_lists_are_read() {
        assert_eq!(cpus("0-2,5"), [0, 1, 2, 5]);
        assert_eq!(cpus("7"), [7]);
        assert!(cpus("").is_empty());
        assert_eq!(cpus("x-3,1"), [1]);
        assert_eq!(cpus_for(5000), None);
        if let Some(chosen) = cpus_for(2) {
            assert!(chosen.len() == 2 && chosen[0] != chosen[1]);
        }
    }

    fn seat(backend: Backend) -> (Seat, mpsc::Receiver<ControlPost>, SocketAddr) {
        let config = Arc::new(Config::dev());
        let client = TcpListener::bind("127.0.0.1:0").unwrap();
        let worker = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = client.local_addr().unwrap();
        let (posts, inbox) = mpsc::channel(16);
        let seat = Seat {
            settings: ShardSettings {
                config: config.clone(),
                core: 0,
                node: 0,
                incarnation: 1,
                secret: [1; 16],
                seed: [2; 32],
                generation: 0,
                advertise: "http://127.0.0.1:1".into(),
                unix_micros_at_zero: 0,
                version: "test",
                commit: "test",
            },
            policy: Arc::new(Policy::new(&config.tenants, &config.functions)),
            client,
            worker,
            posts,
            origin: Instant::now(),
            cpu: None,
            backend,
        };
        (seat, inbox, address)
    }

    /// The first byte of the answer to `GET /info`: the core serves.
    fn ask(address: SocketAddr) -> (TcpStream, u8) {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        stream.write_all(b"GET /info HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        let mut first = [0];
        stream.read_exact(&mut first).unwrap();
        (stream, first[0])
    }

    #[test]
    fn after_a_panic_a_new_shard_serves_on_the_same_port() {
        for backend in [Backend::Ring, Backend::Epoll] {
            serves_again_after_a_panic(backend);
        }
    }

    fn serves_again_after_a_panic(backend: Backend) {
        let (seat, mut inbox, address) = seat(backend);
        let started = start(seat).unwrap();
        let (mut old, first) = ask(address);
        assert_eq!(first, b'H');
        PANIC.store(true, Ordering::SeqCst);
        started.mailbox.send(ShardPost::Snapshot { ticket: 1 }).unwrap();
        let Some(ControlPost::Restarted { core: 0, mailbox }) = inbox.blocking_recv() else {
            panic!("the core did not begin again");
        };
        let mut rest = Vec::new();
        // FIN or RST: either way the old connection has ended.
        let _ = old.read_to_end(&mut rest);
        assert_eq!(ask(address).1, b'H');
        mailbox.send(ShardPost::Snapshot { ticket: 2 }).unwrap();
        let Some(ControlPost::Snapshot { ticket: 2, snapshot, .. }) = inbox.blocking_recv() else {
            panic!("the new core does not answer");
        };
        assert_eq!(snapshot.metrics.io_backend[backend.index()], 1);
        mailbox.send(ShardPost::Stop).unwrap();
        assert!(matches!(inbox.blocking_recv(), Some(ControlPost::Drained { core: 0 })));
        started.thread.join().unwrap();
        assert!(TcpStream::connect(address).is_err(), "the port is free again");
    }
}
