//! The request streams of this gateway's own functions and their consumers (contract NT-1). Where
//! NVIDIA's control plane is, it makes them; in `nats` mode nobody else does.
//!
//! The streams are in the servers' memory. So they are checked whenever a server is reached anew,
//! and when work finds none. One whose function was taken out of the configuration stays: another
//! gateway may still serve it, and sessions hold its messages.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_nats::jetstream::consumer::{AckPolicy, pull};
use async_nats::jetstream::context::ConsumerInfoErrorKind;
use async_nats::jetstream::stream::{
    Config, ConsumerCreateStrictErrorKind, DiscardPolicy, RetentionPolicy, StorageType, Stream,
};
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use super::link::{Link, State, placement};
use super::made::{REPLICAS, Wanted};
use super::pace::Pace;
use super::rights::{Right, Rights};
use super::withdraw::{Trouble, within};
use crate::config::Function;

/// How the stream and its consumer are made (contract NT-1).
const MOST_MESSAGES: i64 = 100_000;
const DUPLICATES: Duration = Duration::from_secs(5);
const ACK_WAIT: Duration = Duration::from_secs(30);
const MOST_UNACKNOWLEDGED: i64 = 100_000;
/// A stream is not asked for more often than this, however much work misses it.
const ENSURE_PAUSE: Duration = Duration::from_secs(1);
/// When those that could not be had are tried again, while a server is there.
const ENSURE_AGAIN: Duration = Duration::from_secs(10);

/// Versions whose streams this gateway keeps.
pub(in crate::remote) type Versions = Arc<[Arc<str>]>;

/// The versions whose work is queued. Workers of the streaming kind are asked one by one, and servers
/// that are dialled are not asked at all.
pub(in crate::remote) fn queued(functions: &[Function]) -> Versions {
    let queued = functions.iter().filter(|function| !function.streaming && function.dial.is_none());
    queued.map(|function| function.version.to_string().into()).collect()
}

/// The streams of one region. A cheap handle.
#[derive(Clone, Debug)]
pub(super) struct Requests(Arc<Shared>);

/// The last try of one version; held while there is one.
type LastTry = Arc<tokio::sync::Mutex<Option<Tried>>>;

#[derive(Debug)]
struct Shared {
    link: Link,
    rights: Arc<Rights>,
    region: Arc<str>,
    placement: String,
    versions: watch::Sender<Versions>,
    /// When each was last tried, by its version; held while it is.
    tried: Mutex<HashMap<Arc<str>, LastTry>>,
    failed: Pace,
}

/// An attempt to make sure of a stream.
#[derive(Clone, Copy, Debug)]
struct Tried {
    at: Instant,
    /// The connection.
    epoch: u64,
    there: bool,
}

impl Requests {
    /// Keeps the streams of these versions from now on.
    pub(super) fn start(
        link: Link,
        rights: Arc<Rights>,
        region: Arc<str>,
        placement: &str,
        versions: Versions,
    ) -> Self {
        let requests = Self(Arc::new(Shared {
            link,
            rights,
            region,
            placement: placement.into(),
            versions: watch::Sender::new(versions),
            tried: Mutex::default(),
            failed: Pace::default(),
        }));
        tokio::spawn(requests.clone().keep());
        requests
    }

    /// The streams of these are kept from now on, and no others.
    pub(super) fn serve(&self, versions: Versions) {
        let shared = &self.0;
        let old = shared.versions.send_replace(versions.clone());
        let new: HashSet<&Arc<str>> = versions.iter().collect();
        for version in old.iter().filter(|version| !new.contains(version)) {
            let stream = shared.stream(version);
            tracing::info!(
                stream,
                "the request stream is not used here any more; once no gateway uses it and its \
                 sessions are over, `nats stream rm` removes it"
            );
        }
        let mut tried = shared.tried.lock().unwrap_or_else(PoisonError::into_inner);
        tried.retain(|version, _| new.contains(version));
    }

    /// Work of this version has found no stream. Whether there is one now.
    pub(super) async fn missing(&self, version: &str) -> bool {
        let version = self.0.versions.borrow().iter().find(|one| ***one == *version).cloned();
        match version {
            Some(version) => self.ensure(&version).await,
            None => false,
        }
    }

    /// Makes sure of all of them whenever a server is there anew or there are other ones, until the
    /// link ends.
    async fn keep(self) {
        let (mut state, mut versions) = (self.0.link.state.clone(), self.0.versions.subscribe());
        loop {
            let up = matches!(*state.borrow_and_update(), State::Up { .. });
            let wanted = versions.borrow_and_update().clone();
            let mut missing = false;
            for version in wanted.iter().filter(|_| up) {
                missing |= !self.ensure(version).await;
                if state.has_changed().unwrap_or(true) {
                    break;
                }
            }
            let changed = async {
                tokio::select! {
                    changed = state.changed() => changed.is_ok(),
                    changed = versions.changed() => changed.is_ok(),
                }
            };
            let goes_on = match missing {
                true => timeout(ENSURE_AGAIN, changed).await.unwrap_or(true),
                false => changed.await,
            };
            if !goes_on {
                return;
            }
        }
    }

    /// Makes the stream and its consumer if they are not there. Whether they are now.
    async fn ensure(&self, version: &Arc<str>) -> bool {
        let shared = &self.0;
        let Some(epoch) = shared.link.epoch() else { return false };
        let slot = {
            let mut tried = shared.tried.lock().unwrap_or_else(PoisonError::into_inner);
            tried.entry(version.clone()).or_default().clone()
        };
        let mut last = slot.lock().await;
        if let Some(tried) = *last
            && tried.epoch == epoch
            && tried.at.elapsed() < ENSURE_PAUSE
        {
            return tried.there;
        }
        let making = async { shared.ensure(version).await.map_err(Trouble::Failed) };
        let made = within(&shared.link, Some((&shared.rights, Right::Make)), making).await;
        *last = Some(Tried { at: Instant::now(), epoch, there: made.is_ok() });
        drop(last);
        if let Err(why) = &made
            && let Some(left_out) = shared.failed.line()
        {
            let stream = shared.stream(version);
            tracing::warn!(
                stream,
                why = %why,
                left_out,
                "the request stream is not there and cannot be made: the function cannot be called"
            );
        }
        made.is_ok()
    }
}

impl Shared {
    fn stream(&self, version: &str) -> String {
        format!("rq_{}_{version}", self.region)
    }

    async fn ensure(&self, version: &str) -> Result<(), String> {
        let wanted = wanted(&self.region, version, &self.placement);
        let stream = wanted.ensure(&self.link.jetstream).await?;
        wanted.compare(&stream.cached_info().config);
        ensure_consumer(&stream, &format!("{}_workers", wanted.config.name)).await
    }
}

/// A version's request stream, as it is made.
pub(super) fn wanted(region: &str, version: &str, tag: &str) -> Wanted {
    let config = Config {
        name: format!("rq_{region}_{version}"),
        subjects: vec![format!("rq.{region}.{version}.*")],
        retention: RetentionPolicy::WorkQueue,
        discard: DiscardPolicy::New,
        discard_new_per_subject: true,
        max_messages: MOST_MESSAGES,
        max_messages_per_subject: 1,
        duplicate_window: DUPLICATES,
        storage: StorageType::Memory,
        num_replicas: REPLICAS,
        placement: placement(tag),
        allow_direct: true,
        ..Config::default()
    };
    let single = "what is queued ends with that server";
    Wanted { config, what: "a request stream", single }
}

/// Makes the consumer that all workers of a version share, if there is none. One that is there is
/// used as it is.
async fn ensure_consumer(stream: &Stream, name: &str) -> Result<(), String> {
    let failed = |why: String| Err(format!("its consumer {name}: {why}"));
    match stream.consumer_info(name).await {
        Ok(_) => return Ok(()),
        Err(error) if error.kind() == ConsumerInfoErrorKind::NotFound => {}
        Err(error) => return failed(error.to_string()),
    }
    let wanted = pull::Config {
        durable_name: Some(name.to_owned()),
        ack_policy: AckPolicy::Explicit,
        ack_wait: ACK_WAIT,
        max_ack_pending: MOST_UNACKNOWLEDGED,
        max_deliver: -1,
        ..pull::Config::default()
    };
    match stream.create_consumer_strict(wanted).await {
        Ok(_) => Ok(()),
        // Another gateway was faster.
        Err(error) if error.kind() == ConsumerCreateStrictErrorKind::AlreadyExists => Ok(()),
        Err(error) => failed(error.to_string()),
    }
}
