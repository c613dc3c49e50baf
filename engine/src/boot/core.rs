//! One data core: its thread, its reactor with its shard, and what happens when a shard panics.

use std::net::TcpListener;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc as std_mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ringway_stdio::Trouble;
use tokio::sync::mpsc;

use super::runtime::{CoreParts, CoreRuntime};
use super::{Files, MORE_FILES, MORE_THREADS, REPORT};
use crate::admin::Changes;
use crate::config::{self, Config};
use crate::control::port::Ask;
use crate::mailbox::{self, Mailbox, Sender};
use crate::message::{ControlMessage, ShardMessage};
use crate::metrics::Backend;
use crate::net::Listener;
use crate::reactor::{BusyPoll, KeepAlive, Options, Reactor};
use crate::shard::{Shard, ShardSettings};
use crate::transport::Entrances;

/// A core that panics more often than this within [`PANIC_WINDOW`] stays down, because its fault is
/// not that of one connection.
const MAX_PANICS: usize = 10;
const PANIC_WINDOW: Duration = Duration::from_secs(60);

/// What a core is started with.
#[derive(Debug)]
pub(super) struct CoreConfig {
    pub(super) settings: ShardSettings,
    /// Holds the present policy.
    pub(super) changes: Arc<Changes>,
    /// The core's own listeners, at least one of each kind, or copies of those that cores share.
    pub(super) sockets: Vec<(Listener, TcpListener)>,
    /// Which of the listeners were handed down to this process.
    pub(super) inherited: Vec<Listener>,
    /// Several cores accept clients from one queue.
    pub(super) shares: bool,
    pub(super) messages: mpsc::Sender<ControlMessage>,
    /// The way of questions to a remote control plane.
    pub(super) asks: Option<mpsc::Sender<Vec<Ask>>>,
    /// The mailboxes of all cores, with this one's.
    pub(super) cores: Arc<[Sender<ShardMessage>]>,
    /// The process's [`Time::ZERO`](ringway_proto::time::Time::ZERO).
    pub(super) origin: Instant,
    /// The CPU that the core is pinned to.
    pub(super) cpu: Option<usize>,
    /// What the listeners demand of connections.
    pub(super) entrances: Entrances,
    /// Whether io_uring or epoll drives the core.
    pub(super) backend: Backend,
    /// How many sockets the core may have.
    pub(super) files: Files,
}

/// The cores' mailboxes, by their numbers: every core can send to every other.
pub(super) type Mailboxes = (Arc<[Sender<ShardMessage>]>, Vec<Inbox>);

/// Makes the mailboxes; `room` is how many messages fit into each.
///
/// # Errors
/// When the process is out of descriptors.
pub(super) fn mailboxes(count: usize, room: usize) -> Result<Mailboxes, Trouble> {
    let made: Result<Vec<_>, _> = (0..count).map(|_| mailbox::mailbox(room)).collect();
    let made = made.map_err(|error| Trouble::new("a core has no mailbox", error, MORE_FILES))?;
    let (senders, inboxes): (Vec<_>, Vec<_>) = made.into_iter().unzip();
    Ok((senders.into(), inboxes))
}

/// Starts a core's thread and waits until it is ready to accept.
///
/// # Errors
/// What the host lacks or forbids, and the fix.
pub(super) fn start(core_config: CoreConfig, inbox: Inbox) -> Result<JoinHandle<()>, Trouble> {
    let (ready, is_ready) = std_mpsc::channel();
    let name = format!("ringway-core-{}", core_config.settings.core);
    let thread = std::thread::Builder::new()
        .name(name)
        .spawn(move || core_config.run(inbox, ready))
        .map_err(|error| Trouble::new("a core has no thread", error, MORE_THREADS))?;
    match is_ready.recv() {
        Ok(Ok(())) => Ok(thread),
        Ok(Err(why)) => Err(why),
        Err(_) => Err(Trouble::new("a core cannot be started", "its thread ended at once", REPORT)),
    }
}

/// Where a core finds its messages.
pub(super) type Inbox = Mailbox<ShardMessage>;

impl CoreConfig {
    /// The core's life: one reactor after the other, a new one only after a panic.
    fn run(mut self, inbox: Inbox, ready: std_mpsc::Sender<Result<(), Trouble>>) {
        let core = self.settings.core;
        let mut panics: Vec<Instant> = Vec::new();
        let mut inbox = Some(inbox);
        let mut ready = Some(ready);
        while let Some(own) = inbox.take() {
            // After a panic only the parts are used from which the next reactor is made. Ring,
            // payload memory and sockets are closed while the panic unwinds.
            let anew = !panics.is_empty();
            let life = catch_unwind(AssertUnwindSafe(|| self.live(own, anew, &mut ready)));
            match life {
                Ok(Ok(())) => break,
                Ok(Err(why)) => {
                    tracing::error!(shard = core, %why, "a core cannot be started again");
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
        // Connections that were on their way here are closed.
        self.cores[usize::from(core)].shut();
        // The send waits for room, because this message must not be lost. If nobody listens,
        // everything ends anyway.
        let _ = self.messages.blocking_send(ControlMessage::Drained { core });
    }

    /// Prepares a new shard after a panic. The mailbox stays, so no sender has to learn of another
    /// one.
    fn begin_again(&mut self) -> Option<Inbox> {
        // Ids of the dead shard must name nothing in the new one.
        self.settings.generation = self.settings.generation.wrapping_add(1 << 20);
        for byte in &mut self.settings.seed {
            *byte = byte.wrapping_add(0x9d);
        }
        let core = self.settings.core;
        let own = &self.cores[usize::from(core)];
        // The load that the dead shard showed is not true any more.
        own.show(0);
        let inbox = own.reopen()?;
        self.messages.blocking_send(ControlMessage::Restarted { core }).ok()?;
        Some(inbox)
    }

    /// One reactor, from its set-up to its end.
    fn live(
        &self,
        inbox: Inbox,
        anew: bool,
        ready: &mut Option<std_mpsc::Sender<Result<(), Trouble>>>,
    ) -> Result<(), Trouble> {
        let report = |result: Result<(), Trouble>, ready: &mut Option<std_mpsc::Sender<_>>| {
            if let Some(ready) = ready.take() {
                // The thread that starts this core waits for the result.
                let _ = ready.send(result);
            }
        };
        match self.reactor(inbox, anew) {
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

    fn reactor(&self, inbox: Inbox, anew: bool) -> Result<Reactor<CoreRuntime>, Trouble> {
        let copy = |(listener, socket): &(Listener, TcpListener)| match socket.try_clone() {
            Ok(socket) => Ok((*listener, socket)),
            Err(error) => Err(Trouble::new("a core has no copy of a listener", error, MORE_FILES)),
        };
        let listeners = self.sockets.iter().map(copy).collect::<Result<_, _>>()?;
        let parts = CoreParts {
            own: usize::from(self.settings.core),
            cores: self.cores.clone(),
            mailbox: inbox.capacity(),
            anew,
            messages: self.messages.clone(),
            asks: self.asks.clone(),
            backend: self.backend,
            shares: self.shares,
        };
        let mut settings = self.settings.clone();
        settings.keys = self.changes.keys().or(settings.keys);
        let shard = Shard::new(settings, self.changes.policy());
        let runtime = CoreRuntime::new(shard, parts);
        #[cfg(test)]
        let runtime = runtime.named(u32::from(self.settings.node.incarnation()));
        let config = &self.settings.config;
        let options = options(config, self.settings.core, self.cpu, self.backend);
        let Files { client_sockets: clients, other_sockets: others, .. } = self.files;
        let options = Options {
            inherited: self.inherited.clone(),
            entrances: self.entrances.clone(),
            connections: clients + others,
            clients,
            others,
            workers: self.files.worker_sockets,
            ..options
        };
        Reactor::new(options, listeners, inbox, self.origin, runtime)
            .map_err(|error| error.trouble())
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
            config::BusyPoll::Auto => BusyPoll::Auto,
            config::BusyPoll::For(Duration::ZERO) => BusyPoll::Never,
            config::BusyPoll::For(time) => BusyPoll::Micros(time.as_micros() as u64),
        },
        blocks: (config.cores.receive_memory / defaults.block_bytes).clamp(16, 1 << 15),
        keep_alive: KeepAlive {
            idle: config.keepalive.idle,
            interval: config.keepalive.interval,
            probes: config.keepalive.probes,
            user_timeout: config.keepalive.user_timeout,
        },
        client_timeout: config.keepalive.client_timeout,
        entrance_time: limits.handshake,
        ..defaults
    }
}
