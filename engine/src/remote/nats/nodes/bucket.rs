//! The bucket that the records of a region's gateways lie in.

use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::kv::{self, Operation, Store};
use async_nats::jetstream::stream::StorageType;
use async_nats::jetstream::{ErrorCode, context};
use bytes::Bytes;
use ringway_proto::id::Node;
use serde::{Deserialize, Serialize};

use super::super::link::{Link, placement};
use super::super::rights::{Right, Rights};
use super::super::withdraw::{Trouble, within};

/// What a record says is laid out so; another layout gets another number.
const LAYOUT: u32 = 1;
/// Longest record that is read, octets.
const MOST_RECORD: usize = 4096;

/// How long things take. Another pace than the default is for tests.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct Pace {
    /// How long a record lives that is not refreshed.
    pub(in super::super) ttl: Duration,
    /// A record is refreshed this often.
    pub(in super::super) refresh: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self { ttl: Duration::from_secs(15), refresh: Duration::from_secs(5) }
    }
}

impl Pace {
    /// After this a missing record is one of a dead node.
    pub(in super::super) fn dead_after(self) -> Duration {
        2 * self.ttl
    }
}

/// What a gateway says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in super::super) struct Record {
    /// [`LAYOUT`].
    version: u32,
    /// Where its workers dial in: an address of this one process.
    pub(in super::super) worker: String,
    /// Where other gateways bring it connections that are its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in super::super) relay: Option<String>,
    /// Drawn at random: tells whose record it is of two who have drawn the same pair.
    run: u64,
}

impl Record {
    /// The one of a gateway that is entered so.
    pub(super) fn of(place: &Place, run: u64) -> Self {
        let (worker, relay) = (place.worker.clone(), place.relay.clone());
        Self { version: LAYOUT, worker, relay, run }
    }

    /// Whether it is this very gateway's.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        self.run == other.run
    }
}

/// What a node is entered with.
#[derive(Clone, Debug)]
pub(in super::super) struct Place {
    pub(in super::super) link: Link,
    pub(in super::super) rights: Arc<Rights>,
    pub(in super::super) region: Arc<str>,
    /// The tag of the servers on which the bucket is to lie, if it is to be made; empty: any.
    pub(in super::super) placement: String,
    /// Where workers dial in to *this* process: another process that says the same is taken for
    /// dead. A name that several gateways share will not do.
    pub(in super::super) worker: String,
    pub(in super::super) relay: Option<String>,
    pub(in super::super) pace: Pace,
}

/// The bucket.
#[derive(Debug)]
pub(super) struct Bucket {
    pub(super) place: Place,
    store: tokio::sync::Mutex<Option<Store>>,
}

pub(super) enum Entered {
    /// With this revision.
    At(u64),
    /// By somebody else.
    Taken,
}

pub(super) enum Found {
    Record(Record),
    Unreadable,
    Nothing,
}

impl Bucket {
    pub(super) fn new(place: Place) -> Self {
        Self { place, store: tokio::sync::Mutex::default() }
    }

    pub(super) async fn create(&self, node: Node, record: &Record) -> Result<Entered, Trouble> {
        let (key, value) = (&key(node), &bytes(record));
        let create = |store: Store| async move {
            match store.create(key, value.clone()).await {
                Ok(revision) => Ok(Entered::At(revision)),
                Err(error) if error.kind() == kv::CreateErrorKind::AlreadyExists => {
                    Ok(Entered::Taken)
                }
                Err(error) => Err(failed(&error)),
            }
        };
        self.with(create).await
    }

    /// None: there is no record of that revision.
    pub(super) async fn update(
        &self,
        node: Node,
        record: &Record,
        revision: u64,
    ) -> Result<Option<u64>, Trouble> {
        let (key, value) = (&key(node), &bytes(record));
        let update = |store: Store| async move {
            match store.update(key, value.clone(), revision).await {
                Ok(revision) => Ok(Some(revision)),
                Err(error) if error.kind() == kv::UpdateErrorKind::WrongLastRevision => Ok(None),
                Err(error) => Err(failed(&error)),
            }
        };
        self.with(update).await
    }

    pub(super) async fn read(&self, node: Node) -> Result<Found, Trouble> {
        Ok(self.read_with_revision(node).await?.map_or(Found::Nothing, |(found, _)| found))
    }

    pub(super) async fn read_with_revision(
        &self,
        node: Node,
    ) -> Result<Option<(Found, u64)>, Trouble> {
        let key = &key(node);
        let read =
            |store: Store| async move { store.entry(key).await.map_err(|error| failed(&error)) };
        let Some(entry) = self.with(read).await? else { return Ok(None) };
        let found = match entry.operation {
            Operation::Put => parse(&entry.value).map_or_else(
                || {
                    tracing::warn!(key, "the record of a gateway cannot be read");
                    Found::Unreadable
                },
                Found::Record,
            ),
            Operation::Delete | Operation::Purge => Found::Nothing,
        };
        Ok(Some((found, entry.revision)))
    }

    pub(super) async fn delete(&self, node: Node) -> Result<(), Trouble> {
        let key = &key(node);
        let delete =
            |store: Store| async move { store.delete(key).await.map_err(|error| failed(&error)) };
        self.with(delete).await
    }

    /// Does something with the bucket, which is opened or made if need be. One that was lost with
    /// NATS's memory is made again and it is tried once more.
    async fn with<T, F>(&self, what: impl Fn(Store) -> F) -> Result<T, Trouble>
    where
        F: Future<Output = Result<T, Trouble>>,
    {
        let (store, opened) = self.store().await?;
        let done = self.within(what(store)).await;
        if opened || !matches!(done, Err(Trouble::Failed(_) | Trouble::Refused(..))) {
            return done;
        }
        *self.store.lock().await = None;
        let (store, _) = self.store().await?;
        self.within(what(store)).await
    }

    async fn within<T>(
        &self,
        answer: impl Future<Output = Result<T, Trouble>>,
    ) -> Result<T, Trouble> {
        within(&self.place.link, Some((&self.place.rights, Right::Nodes)), answer).await
    }

    /// The bucket, and whether it was opened only now.
    async fn store(&self) -> Result<(Store, bool), Trouble> {
        let mut kept = self.store.lock().await;
        if let Some(store) = &*kept {
            return Ok((store.clone(), false));
        }
        let store = self.within(self.open()).await?;
        *kept = Some(store.clone());
        Ok((store, true))
    }

    async fn open(&self) -> Result<Store, Trouble> {
        let jetstream = &self.place.link.jetstream;
        let name = format!("ringway_nodes_{}", self.place.region);
        let store = match jetstream.get_key_value(&name).await {
            Ok(store) => store,
            // What cannot be opened is made, or the attempt says what is wrong.
            Err(_) => match self.make(&name, 3).await {
                Err(Trouble::Refused(ErrorCode::STREAM_REPLICAS_NOT_SUPPORTED, _)) => {
                    tracing::warn!(
                        bucket = name,
                        "NATS is a single server: the gateways' records have one replica"
                    );
                    self.make(&name, 1).await?
                }
                made => made?,
            },
        };
        let config = &store.stream.cached_info().config;
        if config.max_age != self.place.pace.ttl {
            return Err(Trouble::Failed(format!(
                "the bucket {name} keeps records for {:?} instead of {:?}: delete it, and a gateway \
                 makes it anew",
                config.max_age, self.place.pace.ttl
            )));
        }
        Ok(store)
    }

    async fn make(&self, name: &str, num_replicas: usize) -> Result<Store, Trouble> {
        let config = kv::Config {
            bucket: name.into(),
            description: "Gateways of this region, each by its own record".into(),
            max_value_size: MOST_RECORD as i32,
            history: 1,
            max_age: self.place.pace.ttl,
            storage: StorageType::Memory,
            num_replicas,
            placement: placement(&self.place.placement),
            ..kv::Config::default()
        };
        self.place.link.jetstream.create_key_value(config).await.map_err(|error| {
            match std::error::Error::source(&error)
                .and_then(|source| source.downcast_ref::<context::CreateStreamError>())
                .map(context::CreateStreamError::kind)
            {
                Some(context::CreateStreamErrorKind::JetStream(refused)) => {
                    Trouble::Refused(refused.error_code(), format!("bucket {name}: {refused}"))
                }
                _ => Trouble::Failed(format!("bucket {name}: {error}")),
            }
        })
    }

    /// Logs what is wrong, once.
    pub(super) fn tell(&self, told: &mut Option<String>, trouble: &Trouble) {
        let text = trouble.to_string();
        // A missing right is logged with what it costs, where it is noticed.
        if *trouble != Trouble::Denied && told.as_ref() != Some(&text) {
            tracing::warn!(error = text, "this gateway's record cannot be entered");
            *told = Some(text);
        }
    }
}

fn failed(error: &impl std::error::Error) -> Trouble {
    Trouble::Failed(error.to_string())
}

fn key(node: Node) -> String {
    format!("{:03x}-{:04x}", node.number(), node.incarnation())
}

fn bytes(record: &Record) -> Bytes {
    serde_json::to_vec(record).expect("texts and numbers can be written").into()
}

/// A record, if it is one and of the layout that is known here.
fn parse(value: &[u8]) -> Option<Record> {
    if value.len() > MOST_RECORD {
        return None;
    }
    serde_json::from_slice(value).ok().filter(|record: &Record| record.version == LAYOUT)
}
