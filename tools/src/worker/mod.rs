//! A worker: asks gateways for work, dials back for each session, and joins what comes through
//! that tunnel to a server of yours.
//!
//! The worker speaks the gateway's local dispatch (`POST /v1/work`) and the wire contract's CONNECT
//! (contract 4), and moves bytes: what goes through a tunnel is between the gateway and the server.
//! One thread does it all, on io_uring, or on epoll where that is refused.
//!
//! [`poll`] asks, [`connect`] dials back, [`tunnel`] joins; the sessions are kept here. With
//! [`nats`] in place of [`poll`] it takes its work as NVIDIA's workers do.

mod bell;
mod connect;
#[expect(unsafe_code, reason = "socket options of the runtime's sockets")]
mod cut;
mod manager;
pub mod nats;
mod net;
mod poll;
mod stop;
mod tunnel;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use monoio::time::timeout;
use ringway_work::{Kind, Sender, Work, short};
use uuid::Uuid;

use bell::Bell;
use connect::Refusal;
pub use net::{Io, io_here};
pub use ringway_work::{Endpoint, EndpointFault, Secret};
use stop::Stop;
use tunnel::{Buffers, Ended};

/// Most sessions of a worker: a gateway takes no longer lists (`limits.poll_ids`).
pub const MAX_SLOTS: usize = 4096;
/// What its requests are called by.
const SENDER: Sender = Sender(concat!("ringway-worker/", env!("CARGO_PKG_VERSION")));
/// How long a session that came while all slots were taken waits for one. Two gateways can have
/// a session each for the last slot; the token of the later one is good for 30 s (contract WK-7).
const SLOT_WAIT: Duration = Duration::from_secs(25);

/// Who the worker is and what it does.
#[derive(Clone, Debug)]
pub struct Options {
    /// Worker listeners, each polled for itself.
    pub gateways: Vec<Endpoint>,
    /// Worker key.
    pub key: Secret,
    /// The function it serves.
    pub function: Uuid,
    /// The version it serves.
    pub version: Uuid,
    /// The server that tunnels are joined to.
    pub target: Endpoint,
    /// Most sessions at once.
    pub slots: usize,
    /// How long sessions may go on once the worker stops.
    pub drain_max: Duration,
    /// What moves the bytes.
    pub io: Io,
}

/// Why a worker ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The worker was told to stop.
    Stopped,
    /// A gateway does not take its key.
    Refused,
}

/// Works until a signal, or until a gateway refuses the key; then the sessions may end.
///
/// # Errors
/// When neither io_uring nor epoll can be used, or no signal can be listened to.
pub fn run(options: Options) -> io::Result<Outcome> {
    let (mut runtime, ring) = net::runtime(options.io)?;
    runtime.block_on(async move {
        let worker = Rc::new(Worker::new(options));
        let io = if ring { "io_uring" } else { "epoll" };
        tracing::info!(
            slots = worker.options.slots,
            target = worker.options.target.authority,
            io,
            commit = ringway_cli::COMMIT,
            "ringway-worker {}",
            ringway_cli::VERSION
        );
        stop::listen(&worker.stop)?;
        monoio::spawn(look_at_target(worker.options.target.clone()));
        for gateway in &worker.gateways {
            poll::start(&worker, gateway);
        }
        let told = worker.clone();
        monoio::spawn(manager::beat(move || Some(told.status())));
        Ok(worker.until_over().await)
    })
}

/// One of the gateways polled.
#[derive(Debug)]
struct Gateway {
    endpoint: Endpoint,
    index: usize,
    /// Counts the changes of the list of its sessions.
    list: Cell<u64>,
    /// How many connections may ask for new sessions.
    width: Cell<usize>,
    /// Polls that may bring a session, and those of them that a newer one has taken the place of.
    promised: Cell<usize>,
    recalled: Cell<usize>,
    /// The last that was heard of it is that polling failed.
    failed: Cell<bool>,
    /// Tasks that poll it still.
    polling: Cell<usize>,
}

impl Gateway {
    fn new(index: usize, endpoint: &Endpoint) -> Self {
        Self {
            endpoint: endpoint.clone(),
            index,
            list: Cell::new(0),
            width: Cell::new(1),
            promised: Cell::new(0),
            recalled: Cell::new(0),
            failed: Cell::new(false),
            polling: Cell::new(0),
        }
    }

    /// Sessions that open polls may bring.
    fn promised(&self) -> usize {
        self.promised.get() - self.recalled.get()
    }

    /// A poll is sent that may bring a session, or none.
    fn promise(&self, session: bool) {
        self.promised.set(self.promised.get() + usize::from(session));
    }

    /// The slot of an open poll is taken back: it is answered with nothing, mostly.
    fn recall(&self) {
        self.recalled.set(self.recalled.get() + 1);
    }

    /// A poll was answered, or will not be.
    fn answered(&self, session: bool, recalled: bool) {
        self.promised.set(self.promised.get() - usize::from(session));
        self.recalled.set(self.recalled.get() - usize::from(session && recalled));
    }

    /// One more connection may ask; whether that is one more.
    fn widen(&self, slots: usize) -> bool {
        let wider = (self.width.get() + 1).min(slots).min(poll::MAX_WIDTH);
        self.width.replace(wider) < wider
    }

    /// One connection less is enough.
    fn narrow(&self) {
        self.width.set((self.width.get() - 1).max(1));
    }
}

/// A session: an id of one gateway.
type SessionKey = (usize, Uuid);

#[derive(Debug)]
struct Worker {
    options: Options,
    gateways: Vec<Rc<Gateway>>,
    /// The sessions held, with their tunnels: each takes a slot.
    sessions: RefCell<HashMap<SessionKey, usize>>,
    /// New sessions that wait for a slot.
    waiting: Cell<usize>,
    /// The sessions have changed.
    changed: Bell,
    /// A slot is free, or one that was promised is not promised any more.
    freed: Bell,
    /// The worker stops.
    stop: Rc<Stop>,
    outcome: Cell<Outcome>,
    buffers: Buffers,
}

impl Worker {
    fn new(options: Options) -> Self {
        let gateway = |(index, endpoint)| Rc::new(Gateway::new(index, endpoint));
        Self {
            gateways: options.gateways.iter().enumerate().map(gateway).collect(),
            options,
            sessions: RefCell::default(),
            waiting: Cell::new(0),
            changed: Bell::default(),
            freed: Bell::default(),
            stop: Rc::default(),
            outcome: Cell::new(Outcome::Stopped),
            buffers: Buffers::default(),
        }
    }

    fn stopping(&self) -> bool {
        self.stop.is_asked()
    }

    /// Takes no more work; the sessions held may go on.
    fn stop(&self) {
        self.stop.ask();
    }

    /// Stops because a gateway does not take the key.
    fn give_up(&self) {
        self.outcome.set(Outcome::Refused);
        self.stop();
    }

    /// Waits until the worker has stopped and its sessions are over, or have had their time.
    async fn until_over(&self) -> Outcome {
        self.stop.asked().await;
        let held = self.sessions.borrow().len();
        tracing::info!(sessions = held, "no more work is taken");
        manager::stopping(self.options.drain_max);
        let over = timeout(self.options.drain_max, async {
            while !self.is_over() {
                self.changed.after(self.changed.rings()).await;
            }
        });
        if over.await.is_err() {
            let left = self.sessions.borrow().len();
            tracing::warn!(sessions = left, "sessions are cut off: their time is over");
        }
        self.outcome.get()
    }

    /// How it goes, for a service manager.
    fn status(&self) -> String {
        let (held, slots) = (self.sessions.borrow().len(), self.options.slots);
        let sessions = if held == 1 { "1 session".into() } else { format!("{held} sessions") };
        if self.stopping() {
            return format!("draining: {sessions} left");
        }
        let silent = self.gateways.iter().filter(|gateway| gateway.failed.get());
        match (silent.count(), self.gateways.len()) {
            (0, _) => format!("serving {sessions} of {slots} at most"),
            (silent, all) => format!("{silent} of {all} gateways cannot be polled, {sessions}"),
        }
    }

    fn is_over(&self) -> bool {
        let left = self.gateways.iter().all(|gateway| gateway.polling.get() == 0);
        left && self.sessions.borrow().is_empty() && self.waiting.get() == 0
    }

    /// Slots that new sessions can have.
    fn free(&self) -> usize {
        let taken = self.sessions.borrow().len() + self.waiting.get();
        self.options.slots.saturating_sub(taken)
    }

    fn holds_any(&self, gateway: &Gateway) -> bool {
        self.sessions.borrow().keys().any(|(index, _)| *index == gateway.index)
    }

    /// The ids of a gateway's sessions.
    fn held(&self, gateway: &Gateway) -> Vec<Uuid> {
        let sessions = self.sessions.borrow();
        let own = sessions.keys().filter(|(index, _)| *index == gateway.index);
        own.map(|(_, id)| *id).collect()
    }

    /// Does a work item, or says why not.
    fn take(self: Rc<Self>, gateway: &Rc<Gateway>, work: Work) {
        let key = (gateway.index, work.request_id);
        let held = self.sessions.borrow().contains_key(&key);
        if held {
            // One more tunnel; also for new work that the gateway had to give out twice.
            self.join(gateway, key);
            monoio::spawn(self.session(gateway.clone(), work));
        } else if work.kind == Kind::Reconnect {
            // Contract 4.6: the session ended with its last tunnel; another worker's it is not.
            tracing::warn!(
                session = short(work.request_id),
                "a reconnect for a session that is not held"
            );
        } else if self.free() > 0 {
            self.join(gateway, key);
            monoio::spawn(self.session(gateway.clone(), work));
        } else {
            self.waiting.set(self.waiting.get() + 1);
            monoio::spawn(self.session_later(gateway.clone(), work));
        }
    }

    /// A session for which there was no slot, once there is one.
    async fn session_later(self: Rc<Self>, gateway: Rc<Gateway>, work: Work) {
        let freed = timeout(SLOT_WAIT, async {
            while self.sessions.borrow().len() >= self.options.slots {
                self.changed.after(self.changed.rings()).await;
            }
        });
        let freed = freed.await.is_ok();
        self.waiting.set(self.waiting.get() - 1);
        if freed {
            self.join(&gateway, (gateway.index, work.request_id));
            self.session(gateway, work).await;
        } else {
            tracing::warn!(session = short(work.request_id), "no slot came free for a session");
            self.changed.ring();
            self.freed.ring();
        }
    }

    /// Counts a tunnel.
    fn join(&self, gateway: &Gateway, key: SessionKey) {
        let mut sessions = self.sessions.borrow_mut();
        let tunnels = sessions.entry(key).or_default();
        *tunnels += 1;
        let begun = *tunnels == 1;
        drop(sessions);
        if begun {
            self.list_changed(gateway);
        }
    }

    /// Counts a tunnel off; with the last one the session ends (contract 4.6).
    fn part(&self, gateway: &Gateway, key: SessionKey) {
        let mut sessions = self.sessions.borrow_mut();
        let Some(tunnels) = sessions.get_mut(&key) else { return };
        *tunnels -= 1;
        if *tunnels > 0 {
            return;
        }
        sessions.remove(&key);
        drop(sessions);
        tracing::debug!(session = short(key.1), "session ended");
        self.list_changed(gateway);
        self.freed.ring();
    }

    fn list_changed(&self, gateway: &Gateway) {
        gateway.list.set(gateway.list.get() + 1);
        self.changed.ring();
    }

    /// One tunnel of a session, from the CONNECT to its end. It is counted already.
    async fn session(self: Rc<Self>, gateway: Rc<Gateway>, work: Work) {
        let id = work.request_id;
        let session = short(id);
        match connect::open(&work.connections, id).await {
            Ok(tunnel) => {
                tracing::debug!(session, kind = ?work.kind, "tunnel open");
                let ended = tunnel::bridge(tunnel, &self.options.target, &self.buffers).await;
                tell(&session, &self.options.target, ended);
            }
            // The client has left meanwhile: the token is gone with it.
            Err(Refusal::ForGood(why)) => {
                tracing::info!(session, why, "the gateway refused the tunnel")
            }
            Err(Refusal::Failed(error)) => tracing::warn!(session, %error, "could not dial back"),
        }
        self.part(&gateway, (gateway.index, id));
    }
}

/// Says at the start that nothing answers where the function's server should be.
async fn look_at_target(target: Endpoint) {
    match net::dial(&target).await {
        Ok(_) => tracing::debug!(target = target.authority, "the target answers"),
        Err(error) => tracing::warn!(
            target = target.authority,
            %error,
            "nothing answers at --target: start your server there; until then every call gets 502"
        ),
    }
}

/// Says how a tunnel ended.
fn tell(session: &str, target: &Endpoint, ended: Ended) {
    match ended {
        Ended::Unused => tracing::info!(session, "tunnel closed unused"),
        Ended::NoTarget(error) => {
            tracing::warn!(session, target = target.authority, %error, "the target does not answer");
        }
        Ended::Closed { by, bytes: (to_target, to_gateway), error } => {
            let error = error.map(|(side, error)| format!("{side:?}: {error}"));
            tracing::info!(session, ?by, to_target, to_gateway, error, "tunnel closed");
        }
    }
}
