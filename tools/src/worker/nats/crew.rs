//! NATS' side of the worker: its connection, and what the sessions share.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::{self, Context};
use async_nats::{Client, ConnectOptions, Event, ServerAddr};
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;

use super::super::manager;
use super::handoff::Asker;
use super::times::Times;
use super::{Options, pull, requests};
use crate::nats::servers;

/// How long sessions that are cut off may take to say so to NATS.
const LAST_WORDS: Duration = Duration::from_secs(6);

/// What all sessions share.
pub(super) struct Crew {
    pub(super) options: Options,
    pub(super) client: Client,
    pub(super) jetstream: Context,
    pub(super) asker: Asker,
    /// A permit is a slot: held by an open pull that may bring a session, or by a session.
    pub(super) slots: Arc<Semaphore>,
    pub(super) times: Times,
    /// Counts how often NATS was reached.
    pub(super) reached: watch::Receiver<u64>,
    /// The worker takes no more work.
    pub(super) stopping: watch::Receiver<bool>,
    /// The sessions have had their time.
    pub(super) cut: watch::Receiver<bool>,
}

/// Runs on a thread of its own until the worker has stopped and its sessions are over.
pub(super) fn run(
    options: Options,
    asker: Asker,
    stopping: watch::Receiver<bool>,
) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(work(options, asker, stopping))
}

async fn work(options: Options, asker: Asker, stopping: watch::Receiver<bool>) -> io::Result<()> {
    let (count, reached) = watch::channel(0);
    let servers = servers(&options.url)?;
    let credentials = options.credentials.options(&servers).await?;
    let client = connect(credentials, servers, count).await?;
    let (cut_off, cut) = watch::channel(false);
    let slots = options.slots;
    let (report, drain_max) = (options.report, options.drain_max);
    let crew = Arc::new(Crew {
        jetstream: jetstream::new(client.clone()),
        client,
        asker,
        slots: Arc::new(Semaphore::new(slots)),
        times: Times::new(),
        reached,
        stopping,
        cut,
        options,
    });
    let reports = tokio::spawn(tell(crew.clone(), report));
    match &crew.options.streaming {
        Some(streaming) => requests::serve(&crew, streaming).await,
        None => pull::serve(&crew).await,
    }
    let held = slots - crew.slots.available_permits();
    tracing::info!(sessions = held, "no more work is taken");
    let all = u32::try_from(slots).unwrap_or(u32::MAX);
    let over = || crew.slots.acquire_many(all);
    if timeout(drain_max, over()).await.is_err() {
        let left = slots - crew.slots.available_permits();
        tracing::warn!(sessions = left, "sessions are cut off: their time is over");
        // The sessions listen as long as they live.
        let _ = cut_off.send(true);
        if timeout(LAST_WORDS, over()).await.is_err() {
            tracing::warn!("not every session's end was reported to NATS");
        }
    }
    if timeout(LAST_WORDS, crew.client.flush()).await.is_err() {
        tracing::warn!("the last messages did not reach NATS");
    }
    reports.abort();
    crew.times.tell();
    Ok(())
}

/// A connection that is there at once, whether the server is or not.
async fn connect(
    credentials: ConnectOptions,
    servers: Vec<ServerAddr>,
    count: watch::Sender<u64>,
) -> io::Result<Client> {
    let options = credentials.name("ringway-worker").retry_on_initial_connect().event_callback(
        move |event| {
            tell_event(&event);
            if matches!(event, Event::Connected) {
                count.send_modify(|count| *count += 1);
            }
            async {}
        },
    );
    options.connect(servers).await.map_err(io::Error::other)
}

fn tell_event(event: &Event) {
    match event {
        Event::Connected => {
            tracing::info!("connected to NATS");
            manager::ready("taking work from NATS");
        }
        Event::Disconnected => {
            tracing::warn!("NATS was lost; trying again");
            manager::status("NATS was lost; trying again");
        }
        Event::ServerError(error) => tracing::warn!(%error, "NATS reports an error"),
        Event::ClientError(error) => {
            tracing::warn!(%error, "cannot connect to NATS; trying again: check --nats");
            manager::ready("cannot connect to NATS; trying again");
        }
        Event::SlowConsumer(_) => tracing::warn!("messages of NATS were lost: too many at once"),
        Event::LameDuckMode | Event::Draining | Event::Closed => {
            tracing::info!(%event, "NATS event");
        }
    }
}

/// Says from time to time how long things took.
async fn tell(crew: Arc<Crew>, every: Option<Duration>) {
    let Some(every) = every else { return };
    loop {
        tokio::time::sleep(every).await;
        crew.times.tell();
    }
}

/// Returns once it is true.
pub(super) async fn told(mut flag: watch::Receiver<bool>) {
    // An error means that nobody is left who could set the flag: that counts as set.
    let _ = flag.wait_for(|told| *told).await;
}
