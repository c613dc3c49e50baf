//! A worker with many slots. It asks for work, dials back and serves. It ends a session with its
//! last tunnel, as NVIDIA's worker does.
//!
//! A few connections ask for new sessions. One more connection offers no slot; it lists the
//! sessions held, and so receives their reconnects. The list is long and changes with every
//! session, so it is sent at most every [`LIST_PAUSE`].

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ringway_work::{Endpoint, Kind, Secret, Work};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep, sleep_until};
use uuid::Uuid;

use super::poll::{Answered, Identity, PollConnection};
use super::tunnel::{self, Refusal, Serve};

/// Connections that ask for new sessions.
const POLLERS: usize = 4;
/// All connections on which the worker polls.
pub(crate) const POLLS: usize = POLLERS + 1;
/// Least time between two lists of sessions held.
const LIST_PAUSE: Duration = Duration::from_millis(20);
/// Pauses after a poll that failed.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LAST_PAUSE: Duration = Duration::from_secs(2);

/// What the worker needs to run.
#[derive(Clone, Debug)]
pub struct WorkerOptions {
    /// The gateway's worker listener.
    pub gateway: SocketAddr,
    /// Worker key.
    pub key: String,
    /// The function it serves.
    pub function: Uuid,
    /// The version it serves.
    pub version: Uuid,
    /// Most sessions at once.
    pub slots: usize,
    /// What it serves.
    pub serve: Serve,
}

/// A running worker.
#[derive(Debug)]
pub struct Worker {
    identity: Identity,
    serve: Serve,
    slots: Arc<Semaphore>,
    sessions: Mutex<HashMap<Uuid, Held>>,
    /// The list of sessions has changed.
    changed: Notify,
}

/// What a connection asks for.
#[derive(Clone, Copy, Debug)]
enum Polls {
    New,
    Reconnects,
}

/// A session this worker holds, and with it one of its slots.
#[derive(Debug)]
struct Held {
    tunnels: usize,
    _slot: OwnedSemaphorePermit,
}

impl Worker {
    /// Works until the future is dropped. It never returns.
    pub async fn run(options: WorkerOptions) {
        let worker = Arc::new(Self {
            identity: Identity {
                gateway: Endpoint::from(options.gateway),
                key: Secret::received(options.key),
                function: options.function,
                version: options.version,
            },
            serve: options.serve,
            slots: Arc::new(Semaphore::new(options.slots)),
            sessions: Mutex::default(),
            changed: Notify::new(),
        });
        for _ in 0..POLLERS {
            tokio::spawn(worker.clone().again(Polls::New));
        }
        worker.again(Polls::Reconnects).await;
    }

    /// Polls for ever. The pause grows while polls fail at once.
    async fn again(self: Arc<Self>, polls: Polls) {
        let mut pause = FIRST_PAUSE;
        loop {
            let started = Instant::now();
            let ended = match polls {
                Polls::New => self.take_new().await,
                Polls::Reconnects => self.take_reconnects().await,
            };
            if let Err(error) = ended {
                tracing::debug!(%error, "the demo worker's poll failed");
            }
            pause = if started.elapsed() > LAST_PAUSE { FIRST_PAUSE } else { pause * 2 };
            pause = pause.min(LAST_PAUSE);
            sleep(pause).await;
        }
    }

    /// Asks for new sessions on one connection, one slot at a time.
    async fn take_new(self: &Arc<Self>) -> io::Result<()> {
        let mut connection = PollConnection::open(&self.identity).await?;
        loop {
            let slots = self.slots.clone();
            let slot = slots.acquire_owned().await.map_err(io::Error::other)?;
            let asked = Instant::now();
            connection.ask(&self.identity, 1, &[]).await?;
            match accepted(connection.answer().await?)? {
                Some(work) => self.begin(work, slot),
                // Some gateways do not let polls wait. They must not be asked in a tight loop.
                None if asked.elapsed() < LIST_PAUSE => sleep(LIST_PAUSE).await,
                None => {}
            }
        }
    }

    /// Asks for reconnects of the sessions held.
    async fn take_reconnects(self: &Arc<Self>) -> io::Result<()> {
        let mut connection = PollConnection::open(&self.identity).await?;
        // A newer poll on a connection replaces the older one, which is answered with no work. So
        // one or two answers are still to come.
        let mut unanswered = 0_usize;
        let mut list_at = Some(Instant::now());
        // The first change after a pause is sent at once.
        let mut rests_until = Instant::now();
        loop {
            tokio::select! {
                answer = connection.answer() => {
                    unanswered = unanswered.saturating_sub(1);
                    if let Some(work) = accepted(answer?)? {
                        self.join(work);
                    }
                    if unanswered == 0 {
                        list_at = list_at.or(Some(rests_until));
                    }
                }
                () = self.changed.notified(), if list_at.is_none() => {
                    list_at = Some(rests_until);
                }
                () = sleep_until(list_at.unwrap_or_else(Instant::now)),
                    if list_at.is_some() && unanswered < 2 =>
                {
                    list_at = None;
                    rests_until = Instant::now() + LIST_PAUSE;
                    let ids: Vec<Uuid> = self.sessions().keys().copied().collect();
                    if !ids.is_empty() {
                        connection.ask(&self.identity, 0, &ids).await?;
                        unanswered += 1;
                    }
                }
            }
        }
    }

    /// Begins a new session.
    fn begin(self: &Arc<Self>, work: Box<Work>, slot: OwnedSemaphorePermit) {
        if work.kind != Kind::New {
            return;
        }
        // Work may be handed out twice. The second time it is one more tunnel of the session.
        let mut sessions = self.sessions();
        sessions
            .entry(work.request_id)
            .and_modify(|held| held.tunnels += 1)
            .or_insert(Held { tunnels: 1, _slot: slot });
        drop(sessions);
        self.changed.notify_one();
        tokio::spawn(self.clone().tunnel(work));
    }

    /// Opens one more tunnel of a session, if the session is still held.
    fn join(self: &Arc<Self>, work: Box<Work>) {
        let mut sessions = self.sessions();
        let Some(held) = sessions.get_mut(&work.request_id) else { return };
        held.tunnels += 1;
        drop(sessions);
        tokio::spawn(self.clone().tunnel(work));
    }

    async fn tunnel(self: Arc<Self>, work: Box<Work>) {
        let id = work.request_id;
        match tunnel::open(&work.connections, id).await {
            Ok(tunnel) => {
                if let Err(error) = tunnel.serve(&self.serve).await {
                    tracing::debug!(request_id = %id, %error, "the demo worker's tunnel ended");
                }
            }
            Err(Refusal::ForGood(status)) => {
                tracing::debug!(request_id = %id, status, "the demo worker's CONNECT was refused");
            }
            Err(Refusal::Failed(error)) => {
                tracing::warn!(request_id = %id, %error, "the demo worker could not dial back");
            }
        }
        let mut sessions = self.sessions();
        if let Some(held) = sessions.get_mut(&id) {
            held.tunnels -= 1;
            if held.tunnels == 0 {
                sessions.remove(&id);
                self.changed.notify_one();
            }
        }
    }

    fn sessions(&self) -> MutexGuard<'_, HashMap<Uuid, Held>> {
        // Nothing that holds the lock can panic half-way.
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The work of an answer; a refusal ends the connection.
fn accepted(answer: Answered) -> io::Result<Option<Box<Work>>> {
    match answer {
        Answered::Nothing => Ok(None),
        Answered::Work(work) => Ok(Some(work)),
        Answered::Refused(status, text) => {
            tracing::warn!(status, text, "the demo worker's poll was refused");
            Err(io::Error::other(format!("a poll was answered {status}: {text}")))
        }
    }
}
