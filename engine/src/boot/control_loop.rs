//! The control thread's life: the admin port, the cores' messages, signals, and the drain.

use std::future::Future;
use std::net::TcpListener;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::Duration;

use ringway_proto::id::Node;
use ringway_stdio::Trouble;
use tokio::runtime::Runtime;
use tokio::signal::unix::{self, SignalKind};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};

use super::manager;
use super::reload::Reloader;
use super::tell::tell;
use super::{Addresses, BootError, Files, Inbox, MORE_FILES, REPORT};
use crate::admin::{Admin, DrainLimits, Phase, Scraper, StillOpen};
use crate::config::Config;
use crate::mailbox::Sender;
use crate::message::{ControlMessage, ShardMessage};
use crate::metrics::Backend;
use crate::remote::{Health, Remote};

/// How long a core may take to end after the drain's limit has passed.
const END_SLACK: Duration = Duration::from_secs(5);
/// The pause before the log first says what the drain waits for, and the pause after each such
/// line.
const WAITS_PAUSE: Duration = Duration::from_secs(1);
const WAITS_EVERY: Duration = Duration::from_secs(4);
/// Signals that come this soon after the first one count as the same signal.
const SIGNAL_PAUSE: Duration = Duration::from_millis(50);

/// A signal that ends the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// Ctrl-C.
    Interrupt,
    /// `kill`.
    Terminate,
}

impl Signal {
    /// The exit code when it comes a second time: 128 and the signal's number.
    #[must_use]
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Interrupt => 130,
            Self::Terminate => 143,
        }
    }
}

/// A gateway whose cores run.
pub(super) struct ControlLoop {
    /// The runtime of the control thread, which is this one.
    pub(super) runtime: Runtime,
    /// The control plane elsewhere, if there is one.
    pub(super) remote: Option<Remote>,
    /// Which node this is.
    pub(super) node: Node,
    pub(super) config: Arc<Config>,
    /// What drives the cores.
    pub(super) backend: Backend,
    pub(super) files: Files,
    pub(super) addresses: Addresses,
    pub(super) cores: Arc<[Sender<ShardMessage>]>,
    pub(super) threads: Vec<JoinHandle<()>>,
    pub(super) inbox: Inbox,
    pub(super) admin: TcpListener,
    pub(super) reloader: Reloader,
}

impl ControlLoop {
    /// Runs until the drain is over; `ready` is called once everything answers.
    pub(super) fn run(
        self,
        ready: impl FnOnce() -> Result<(), BootError>,
    ) -> Result<(), BootError> {
        let cores = self.cores.to_vec();
        let settled = (self.config, self.backend, (self.remote.clone(), self.node));
        let services = ((self.admin, self.files.admin), self.reloader);
        let control = async {
            let ended = control(settled, cores, self.inbox, services, ready).await;
            if let (Ok(()), Some(remote)) = (&ended, self.remote) {
                remote.end().await;
            }
            ended
        };
        crate::reactor::take_long_turns();
        let ended = self.runtime.block_on(control);
        if ended.is_ok() {
            for thread in self.threads {
                // A core that panicked has logged that already.
                let _ = thread.join();
            }
            tracing::info!(client = %self.addresses.client, "ended");
        }
        ended
    }
}

/// SIGINT, SIGTERM and SIGHUP, as they come.
fn signals() -> Result<[unix::Signal; 3], BootError> {
    let heard = |kind| {
        let deaf = |error| BootError::os("signals cannot be listened to", error, MORE_FILES);
        unix::signal(kind).map_err(deaf)
    };
    let all = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
    let [interrupt, terminate, hangup] = all.map(heard);
    let heard = [interrupt?, terminate?, hangup?];
    ringway_stdio::listen_for_hangup();
    Ok(heard)
}

/// The admin port's socket, for this thread.
fn served(listener: TcpListener) -> Result<tokio::net::TcpListener, BootError> {
    let nonblocking = listener.set_nonblocking(true);
    nonblocking
        .and_then(|()| tokio::net::TcpListener::from_std(listener))
        .map_err(|error| BootError::os("the admin port cannot be served", error, MORE_FILES))
}

fn all_ended() -> BootError {
    let why = "every core has ended; the log says of what";
    BootError::os("nothing can be served any more", why, REPORT)
}

async fn control(
    (config, backend, (remote, node)): (Arc<Config>, Backend, (Option<Remote>, Node)),
    cores: Vec<Sender<ShardMessage>>,
    mut inbox: Inbox,
    ((listener, room), reloader): ((TcpListener, usize), Reloader),
    ready: impl FnOnce() -> Result<(), BootError>,
) -> Result<(), BootError> {
    let [mut interrupt, mut terminate, hangup] = signals()?;
    let listener = served(listener)?;
    let (phase, phase_seen) = watch::channel(Phase::Starting);
    let (drain, mut drain_asked) = watch::channel(false);
    let running = cores.len();
    let admin = Arc::new(Admin {
        scraper: Scraper::new(cores),
        phase: phase_seen,
        drain,
        allow_remote: config.admin.allow_remote,
        hosts: config.admin.hosts.clone(),
        version: config.version.clone(),
        mode: config.control.mode,
        node,
        nodes: if config.cluster.relays() { 1 + config.cluster.nodes.len() as u64 } else { 0 },
        others: config.cluster.nodes.clone().into(),
        drain_limits: OnceLock::new(),
        backend,
        panics: AtomicU64::new(0),
        changes: reloader.changes(),
        remote,
        level: watch::Sender::new(None),
    });
    tokio::spawn(reloader.run(admin.clone(), hangup));
    let health = admin.remote.as_ref().map(Remote::health);
    health.map(|health| tokio::spawn(tell_health(admin.clone(), health)));
    tokio::spawn(crate::admin::serve(listener, admin.clone(), room));
    ready()?;
    phase.send_replace(Phase::Serving);
    manager::ready(running);
    tokio::spawn(manager::beat(admin.clone()));
    let ended = watch_cores(&mut inbox, &admin, running);
    tokio::pin!(ended);
    let mut next = async || {
        tokio::select! {
            _ = interrupt.recv() => Signal::Interrupt,
            _ = terminate.recv() => Signal::Terminate,
        }
    };
    tokio::select! {
        () = &mut ended => return Err(all_ended()),
        signal = next() => tracing::info!(?signal, "draining; a second signal ends at once"),
        _ = drain_asked.wait_for(|asked| *asked) => tracing::info!("draining, as asked"),
    }
    let limits = leave(&config, &admin, &phase);
    manager::stopping(config.drain.delay + config.drain.max + 2 * END_SLACK);
    let second = async {
        // Some senders (GNU timeout) signal the process and its group. That counts as one signal.
        sleep(SIGNAL_PAUSE).await;
        // It does not matter whether a signal came in this time.
        let _ = tokio::time::timeout(Duration::ZERO, next()).await;
        next().await
    };
    tokio::select! {
        ended = drained((&config, limits), &admin, ended) => ended,
        signal = second => Err(BootError {
            code: signal.exit_code(),
            trouble: Trouble::new(
                "the drain was cut short",
                "ended by a second signal, before it was over",
                "send one signal and wait, or lower drain.max",
            ),
        }),
    }
}

/// Begins the drain. Returns until when new clients are taken, and when the drain ends at the
/// latest.
fn leave(config: &Config, admin: &Admin, phase: &watch::Sender<Phase>) -> DrainLimits {
    let open_until = Instant::now() + config.drain.delay;
    let limits = DrainLimits { open_until, until: open_until + config.drain.max };
    let limits = *admin.drain_limits.get_or_init(|| limits);
    phase.send_replace(Phase::Draining);
    limits
}

/// Tells the cores what `/health` has to show of a remote control plane, whenever that changes.
async fn tell_health(admin: Arc<Admin>, mut health: watch::Receiver<Health>) {
    loop {
        let ills = health.borrow_and_update().told();
        tell(&admin, || ShardMessage::Health(ills.clone())).await;
        if health.changed().await.is_err() {
            return;
        }
    }
}

/// Tells the cores to drain, and waits for their end.
async fn drained(
    (config, limits): (&Config, DrainLimits),
    admin: &Admin,
    ended: impl Future<Output = ()>,
) -> Result<(), BootError> {
    tokio::pin!(ended);
    let max = config.drain.max;
    let drain = async {
        let delay = config.drain.delay;
        tracing::info!(
            delay_seconds = delay.as_secs_f64(),
            at_most_seconds = (delay + max).as_secs_f64(),
            "draining: new sessions are refused after the delay, and open streams may then take \
             drain.max"
        );
        tell(admin, || ShardMessage::Unready).await;
        sleep(delay).await;
        tell(admin, || ShardMessage::Drain { max }).await;
        sleep(max + END_SLACK).await;
        tracing::warn!("the drain's limit has passed; the cores are stopped");
        tell(admin, || ShardMessage::Stop).await;
        sleep_until(Instant::now() + END_SLACK).await;
    };
    let telling = async {
        sleep_until(limits.open_until).await;
        tell_what_is_waited_for(admin, limits.until).await
    };
    tokio::select! {
        () = &mut ended => Ok(()),
        never = telling => match never {},
        () = drain => {
            Err(BootError::os("the drain did not end", "a core did not end in time", REPORT))
        }
    }
}

/// Logs again and again what the drain waits for, and for how long at most.
async fn tell_what_is_waited_for(admin: &Admin, until: Instant) -> std::convert::Infallible {
    loop {
        // A gateway with nothing open ends within this time, and logs no such line.
        sleep(WAITS_PAUSE).await;
        let StillOpen { sessions, streams, relays, .. } = StillOpen::of(admin).await;
        let left = until.saturating_duration_since(Instant::now());
        tracing::info!(
            sessions,
            streams,
            relays,
            at_most_seconds = left.as_secs(),
            "draining: waits for open streams"
        );
        sleep(WAITS_EVERY).await;
    }
}

/// Handles the cores' messages until the last of them has ended.
async fn watch_cores(inbox: &mut Inbox, admin: &Admin, mut running: usize) {
    while let Some(message) = inbox.recv().await {
        match message {
            ControlMessage::Snapshot { ticket, snapshot, .. } => {
                admin.scraper.answered(ticket, snapshot);
            }
            ControlMessage::Rows { ticket, page } => admin.scraper.turned(ticket, *page),
            ControlMessage::Replaced { policy } => drop(policy),
            ControlMessage::Beat { ticket, clients } => admin.scraper.beaten(ticket, clients),
            ControlMessage::Timeline { ticket, parts } => admin.scraper.told(ticket, parts),
            ControlMessage::Restarted { core } => {
                admin.panics.fetch_add(1, Ordering::Relaxed);
                admin.scraper.restarted(core);
                if *admin.phase.borrow() == Phase::Draining {
                    // The new shard has not heard that it has to stop. If its mailbox is full, the
                    // final stop will reach it.
                    admin.scraper.tell_one(core, ShardMessage::Stop);
                }
            }
            ControlMessage::Drained { core } => {
                admin.scraper.ended(core);
                running -= 1;
                if running == 0 {
                    return;
                }
            }
        }
    }
}
