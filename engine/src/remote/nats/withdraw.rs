//! Looks into the request streams of a region, and takes out what no worker has (design 3.23,
//! contract NT-11).
//!
//! Work is *taken* if its sequence is at or below what the workers' consumer has been delivered, or
//! if a worker has registered its session. Between the look and the purge a worker may take it all
//! the same: it dials in, is told 403, and is free.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::context::RequestErrorKind;
use async_nats::jetstream::response::Response;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use uuid::Uuid;

use super::link::{API_LIMIT, Link};
use super::rights::{Right, Rights};
use crate::control::port::Progress;

/// Works that are being withdrawn at once (contract NT-11).
pub(super) const MOST_PURGES: usize = 32;
/// A stream's consumer is looked at once in this time at most: 20 times a second.
pub(super) const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Streams whose last look is remembered; those that are over are forgotten first.
const MOST_LOOKED_AT: usize = 1024;

/// One piece of work in a request stream.
#[derive(Clone, Debug)]
pub(super) struct Queued {
    pub(super) version: Arc<str>,
    pub(super) id: Uuid,
    /// Where the message is in the stream, if its publisher was told.
    pub(super) sequence: Option<u64>,
}

/// What has become of work that was to be withdrawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// The work is out of the stream.
    Purged,
    /// A worker has it.
    Taken,
    /// The work is not in the stream.
    Absent,
}

/// Why nothing is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    /// No server is there, or it went away meanwhile.
    Down,
    /// The account may not.
    Denied,
    /// JetStream refuses.
    Refused(ErrorCode, String),
    /// Anything else.
    Failed(String),
}

impl std::fmt::Display for Trouble {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Down => f.write_str("NATS is not there"),
            Self::Denied => f.write_str("the NATS account lacks the right"),
            Self::Refused(_, why) | Self::Failed(why) => f.write_str(why),
        }
    }
}

/// How far a stream was delivered.
#[derive(Clone, Copy, Debug)]
pub(super) struct Look {
    /// The highest sequence that a worker was given; 0: none was.
    pub(super) delivered: u64,
}

/// The last look at a stream, if it told anything, and when it began.
type LastLook = Arc<tokio::sync::Mutex<Option<(Instant, Option<u64>)>>>;

/// The request streams of one region. A cheap handle.
#[derive(Clone, Debug)]
pub(super) struct Streams {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    link: Link,
    region: Arc<str>,
    rights: Arc<Rights>,
    looks: Mutex<HashMap<Arc<str>, LastLook>>,
    purges: Arc<Semaphore>,
}

impl Streams {
    pub(super) fn new(link: Link, region: Arc<str>, rights: Arc<Rights>) -> Self {
        let purges = Arc::new(Semaphore::new(MOST_PURGES));
        Self { inner: Arc::new(Inner { link, region, rights, looks: Mutex::default(), purges }) }
    }

    /// The connection.
    pub(super) fn link(&self) -> &Link {
        &self.inner.link
    }

    /// Waits until one more may be withdrawn.
    pub(super) async fn permit(&self) -> OwnedSemaphorePermit {
        let permit = self.inner.purges.clone().acquire_owned().await;
        permit.expect("nobody closes the semaphore")
    }

    fn stream(&self, version: &str) -> String {
        format!("rq_{}_{version}", self.inner.region)
    }

    fn subject(&self, version: &str, id: Uuid) -> String {
        format!("rq.{}.{version}.{}", self.inner.region, id.as_hyphenated())
    }

    /// What of a version's stream was delivered at `since` or later. One request serves all who
    /// wait for it.
    ///
    /// # Errors
    /// Says why that cannot be found out.
    pub(super) async fn look(&self, version: &Arc<str>, since: Instant) -> Result<Look, Trouble> {
        let slot = self.last_look(version);
        let mut last = slot.lock().await;
        if let Some((asked, told)) = *last {
            if asked >= since
                && asked.elapsed() < LOOK_EVERY
                && let Some(delivered) = told
            {
                return Ok(Look { delivered });
            }
            tokio::time::sleep_until(asked + LOOK_EVERY).await;
        }
        let asked = Instant::now();
        *last = Some((asked, None));
        let delivered = self.delivered(version).await?;
        *last = Some((asked, Some(delivered)));
        Ok(Look { delivered })
    }

    fn last_look(&self, version: &Arc<str>) -> LastLook {
        let mut looks = self.inner.looks.lock().unwrap_or_else(PoisonError::into_inner);
        if looks.len() >= MOST_LOOKED_AT {
            // A look that somebody waits for, or a recent one, still bounds the next look.
            looks.retain(|_, slot| {
                let young = slot.try_lock().map_or(true, |last| {
                    last.is_some_and(|(asked, _)| asked.elapsed() < LOOK_EVERY)
                });
                young || Arc::strong_count(slot) > 1
            });
        }
        looks.entry(version.clone()).or_default().clone()
    }

    async fn delivered(&self, version: &str) -> Result<u64, Trouble> {
        #[derive(Deserialize)]
        struct Consumer {
            delivered: Sequences,
        }
        #[derive(Deserialize)]
        struct Sequences {
            stream_seq: u64,
        }
        let stream = self.stream(version);
        let subject = format!("CONSUMER.INFO.{stream}.{stream}_workers");
        match self.ask::<Consumer>(Right::Look, &subject, &json!({})).await {
            Ok(consumer) => Ok(consumer.delivered.stream_seq),
            // Where no worker ever was, nothing is taken; nor where no stream is.
            Err(Trouble::Refused(
                ErrorCode::CONSUMER_NOT_FOUND | ErrorCode::STREAM_NOT_FOUND,
                _,
            )) => Ok(0),
            Err(trouble) => Err(trouble),
        }
    }

    /// Takes work out of its stream unless it is taken. `wanted` is asked last, when everything
    /// else has been found out: whether it is still to be withdrawn.
    ///
    /// # Errors
    /// Says why nothing was done.
    pub(super) async fn take_back(
        &self,
        work: &Queued,
        look: Look,
        wanted: impl Fn() -> bool,
    ) -> Result<Fate, Trouble> {
        let sequence = match work.sequence {
            Some(sequence) => sequence,
            None => match self.stored(work).await? {
                Some(sequence) => sequence,
                None => return Ok(Fate::Absent),
            },
        };
        if sequence <= look.delivered || self.is_registered(work.id).await? || !wanted() {
            return Ok(Fate::Taken);
        }
        self.purge(work).await
    }

    /// Whether a worker was given the work. What cannot be found out is not known, and costs nobody
    /// anything.
    pub(super) async fn progress(&self, work: &Queued) -> Progress {
        // A stream that was lost and made again does not know what its former one had.
        let stored = match work.sequence {
            Some(sequence) => Ok(Some(sequence)),
            None => self.stored(work).await,
        };
        let Ok(Some(sequence)) = stored else { return Progress::Unknown };
        match self.look(&work.version, Instant::now()).await {
            Ok(look) if sequence <= look.delivered => Progress::Taken,
            Ok(_) => Progress::Queued,
            Err(_) => Progress::Unknown,
        }
    }

    /// Where the work is in its stream, if it is. The leader is asked: another server may not have
    /// heard of it yet.
    async fn stored(&self, work: &Queued) -> Result<Option<u64>, Trouble> {
        #[derive(Deserialize)]
        struct Stored {
            message: Message,
        }
        #[derive(Deserialize)]
        struct Message {
            seq: u64,
        }
        let subject = format!("STREAM.MSG.GET.{}", self.stream(&work.version));
        let body = json!({ "last_by_subj": self.subject(&work.version, work.id) });
        match self.ask::<Stored>(Right::Look, &subject, &body).await {
            Ok(stored) => Ok(Some(stored.message.seq)),
            Err(Trouble::Refused(ErrorCode::NO_MESSAGE_FOUND | ErrorCode::STREAM_NOT_FOUND, _)) => {
                Ok(None)
            }
            Err(trouble) => Err(trouble),
        }
    }

    /// Whether a worker has registered the session (contract 6.5). A server that lags is good
    /// enough: who registers has been delivered the work, which the leader was asked about.
    async fn is_registered(&self, id: Uuid) -> Result<bool, Trouble> {
        let (region, id) = (&self.inner.region, id.as_hyphenated());
        let subject = format!(
            "$JS.API.DIRECT.GET.stateful_session_lookup_{region}.\
             stateful_session.lookup.{region}.*.{id}"
        );
        let request = self.inner.link.client.request(subject, "".into());
        match within(&self.inner.link, None, async { Ok(request.await) }).await? {
            // What is found has no status; what is not, 404.
            Ok(message) => Ok(message.status.is_none()),
            Err(error) if error.kind() == async_nats::RequestErrorKind::NoResponders => {
                // No such stream, or one without direct access, which ours has.
                Ok(false)
            }
            Err(error) => Err(Trouble::Failed(format!("looking for a registration: {error}"))),
        }
    }

    async fn purge(&self, work: &Queued) -> Result<Fate, Trouble> {
        #[derive(Deserialize)]
        struct Purged {
            purged: u64,
        }
        let subject = format!("STREAM.PURGE.{}", self.stream(&work.version));
        let body = json!({ "filter": self.subject(&work.version, work.id) });
        match self.ask::<Purged>(Right::Purge, &subject, &body).await {
            Ok(Purged { purged: 0 }) | Err(Trouble::Refused(ErrorCode::STREAM_NOT_FOUND, _)) => {
                Ok(Fate::Absent)
            }
            Ok(_) => Ok(Fate::Purged),
            Err(trouble) => Err(trouble),
        }
    }

    /// The versions of the region's request streams, at most so many.
    ///
    /// # Errors
    /// Says why they cannot be listed.
    pub(super) async fn versions(&self, most: usize) -> Result<Vec<Arc<str>>, Trouble> {
        #[derive(Deserialize)]
        struct Page {
            total: usize,
            streams: Option<Vec<String>>,
        }
        let region = &self.inner.region;
        let prefix = format!("rq_{region}_");
        let mut versions = Vec::new();
        let mut offset = 0;
        loop {
            let body = json!({ "offset": offset, "subject": format!("rq.{region}.>") });
            let page: Page = self.ask(Right::List, "STREAM.NAMES", &body).await?;
            let names = page.streams.unwrap_or_default();
            offset += names.len();
            let found = names.iter().filter_map(|name| name.strip_prefix(&prefix));
            versions.extend(found.map(Arc::from));
            if names.is_empty() || offset >= page.total || versions.len() >= most {
                versions.truncate(most);
                return Ok(versions);
            }
        }
    }

    /// The last tokens of the subjects that a version's stream holds, at most so many.
    ///
    /// # Errors
    /// Says why they cannot be listed.
    pub(super) async fn held(&self, version: &str, most: usize) -> Result<Vec<String>, Trouble> {
        #[derive(Deserialize)]
        struct Page {
            #[serde(default)]
            total: usize,
            state: State,
        }
        #[derive(Deserialize)]
        struct State {
            subjects: Option<HashMap<String, u64>>,
        }
        let prefix = format!("rq.{}.{version}.", self.inner.region);
        let subject = format!("STREAM.INFO.{}", self.stream(version));
        let mut held = Vec::new();
        let mut offset = 0;
        loop {
            let body = json!({ "subjects_filter": format!("{prefix}*"), "offset": offset });
            let page = match self.ask::<Page>(Right::List, &subject, &body).await {
                Err(Trouble::Refused(ErrorCode::STREAM_NOT_FOUND, _)) => return Ok(held),
                page => page?,
            };
            let subjects = page.state.subjects.unwrap_or_default();
            offset += subjects.len();
            let last = subjects.keys().filter_map(|subject| subject.strip_prefix(&prefix));
            held.extend(last.map(String::from));
            if subjects.is_empty() || offset >= page.total || held.len() >= most {
                held.truncate(most);
                return Ok(held);
            }
        }
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        right: Right,
        subject: &str,
        body: &impl Serialize,
    ) -> Result<T, Trouble> {
        let Inner { link, rights, .. } = &*self.inner;
        let request = link.jetstream.request(subject.to_owned(), body);
        match within(link, Some((rights, right)), async { Ok(request.await) }).await? {
            Ok(Response::Ok(answer)) => Ok(answer),
            Ok(Response::Err { error }) => {
                Err(Trouble::Refused(error.error_code(), format!("{subject}: {error}")))
            }
            Err(error) if error.kind() == RequestErrorKind::NoResponders => Err(Trouble::Failed(
                format!("{subject}: nobody answers, JetStream is off or begins"),
            )),
            Err(error) => Err(Trouble::Failed(format!("{subject}: {error}"))),
        }
    }
}

/// Waits for what a server answers, for at most [`API_LIMIT`] and no longer than the connection
/// lasts and the account is known to lack no `right` for it.
///
/// # Errors
/// Says that there is no connection, before or now, no right, or no answer.
pub(super) async fn within<T>(
    link: &Link,
    needs: Option<(&Rights, Right)>,
    answer: impl Future<Output = Result<T, Trouble>>,
) -> Result<T, Trouble> {
    let Some(epoch) = link.epoch() else { return Err(Trouble::Down) };
    let denied = async {
        match needs {
            Some((rights, right)) => rights.missed(right).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        // What the account may not is not even asked.
        biased;
        () = denied => Err(Trouble::Denied),
        () = link.lost(epoch) => Err(Trouble::Down),
        answer = tokio::time::timeout(API_LIMIT, answer) => {
            // Whatever the answer is: who may not ask gets none.
            if let (Ok(_), Some((rights, right))) = (&answer, needs) {
                rights.used(right);
            }
            answer.unwrap_or_else(|_| {
                Err(Trouble::Failed(format!("no answer in {} s", API_LIMIT.as_secs())))
            })
        }
    }
}
