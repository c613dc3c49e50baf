//! The bucket that the records of a region's gateways lie in.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::kv::{self, Operation, Store};
use async_nats::jetstream::stream::StorageType;
use async_nats::jetstream::{ErrorCode, context};
use bytes::Bytes;
use ringway_proto::id::Node;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::super::link::{Link, placement};
use super::super::rights::{Right, Rights};
use super::super::withdraw::{Trouble, within};
use crate::keys::Keys;

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
    /// Where its admin port answers other gateways.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    admin: Option<String>,
    /// Drawn at random: tells whose record it is of two who have drawn the same pair.
    run: u64,
    /// Proves that it is of this cluster, where that has a secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    mac: Option<String>,
}

impl Record {
    /// The one of a gateway that is entered so.
    pub(super) fn of(place: &NodeConfig, run: u64) -> Self {
        let worker = place.worker.clone();
        Self { version: LAYOUT, worker, relay: None, admin: None, run, mac: None }
    }

    /// As it is written now.
    fn written(&self, key: &str, place: &NodeConfig) -> Self {
        let [relay, admin] = [place.relay(), place.admin()]
            .map(|address| address.map(|address| address.to_string()));
        let mut record = Self { relay, admin, mac: None, ..self.clone() };
        let keys = place.keys.as_ref().map(|keys| keys.borrow().clone());
        record.mac = keys.map(|keys| keys.sign_record(&record.signed(key)));
        record
    }

    /// What its MAC is of; `key` names its node.
    fn signed(&self, key: &str) -> String {
        let Self { version, worker, relay, admin, run, .. } = self;
        let relay = relay.as_deref().unwrap_or_default();
        let admin = admin.iter().map(|admin| format!("\n{admin}")).collect::<String>();
        format!("{version}\n{key}\n{worker}\n{relay}\n{run}{admin}")
    }

    /// Where the node takes connections that are its own.
    pub(in super::super) fn relay(&self) -> Option<SocketAddr> {
        reachable(self.relay.as_deref())
    }

    /// Where the node may be asked for its sessions. Not set without a secret that proves the
    /// record.
    pub(in super::super) fn admin(&self) -> Option<SocketAddr> {
        reachable(self.admin.as_deref().filter(|_| self.mac.is_some()))
    }

    /// Whether the record is this very gateway's.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        self.run == other.run
    }
}

/// An address that can be dialled.
fn reachable(text: Option<&str>) -> Option<SocketAddr> {
    let address: SocketAddr = text?.parse().ok()?;
    Some(address).filter(|address| !address.ip().is_unspecified() && address.port() > 0)
}

/// What a node is entered with.
#[derive(Clone, Debug)]
pub(in super::super) struct NodeConfig {
    pub(in super::super) link: Link,
    pub(in super::super) rights: Arc<Rights>,
    pub(in super::super) region: Arc<str>,
    /// The tag of the servers on which the bucket is to lie, if it is to be made; empty: any.
    pub(in super::super) placement: String,
    /// Where workers dial in to *this* process: another process that says the same is taken for
    /// dead. A name that several gateways share will not do.
    pub(in super::super) worker: String,
    /// Where others reach it, if it takes connections of theirs.
    pub(in super::super) relay: Option<Relay>,
    /// Where they ask it for its sessions, if its admin port is not for its own machine only.
    pub(in super::super) admin: Option<Relay>,
    /// What the gateways of the cluster know each other by, followed.
    pub(in super::super) keys: Option<watch::Receiver<Arc<Keys>>>,
    pub(in super::super) pace: Pace,
}

/// Where other gateways reach a port of this one.
#[derive(Clone, Copy, Debug)]
pub struct Relay {
    /// None: by the address that NATS sees it at.
    pub address: Option<IpAddr>,
    /// The port, as others reach it.
    pub port: u16,
}

impl NodeConfig {
    /// Where others reach this gateway, as far as that is known now.
    pub(in super::super) fn relay(&self) -> Option<SocketAddr> {
        self.reached(self.relay?)
    }

    /// Where they reach its admin port.
    fn admin(&self) -> Option<SocketAddr> {
        self.reached(self.admin?)
    }

    fn reached(&self, Relay { address, port }: Relay) -> Option<SocketAddr> {
        let seen = || self.link.client.server_info().client_ip.parse().ok();
        address.or_else(seen).map(|address| SocketAddr::new(address, port))
    }
}

/// The bucket.
#[derive(Debug)]
pub(super) struct Bucket {
    pub(super) place: NodeConfig,
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
    pub(super) fn new(place: NodeConfig) -> Self {
        Self { place, store: tokio::sync::Mutex::default() }
    }

    pub(super) async fn create(&self, node: Node, record: &Record) -> Result<Entered, Trouble> {
        let key = &key(node);
        let value = &bytes(&record.written(key, &self.place));
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
        let key = &key(node);
        let value = &bytes(&record.written(key, &self.place));
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
            Operation::Put => match self.parse(key, &entry.value) {
                Ok(record) => Found::Record(record),
                Err(why) => {
                    tracing::warn!(node = key, why, "the record of a gateway cannot be read");
                    Found::Unreadable
                }
            },
            Operation::Delete | Operation::Purge => Found::Nothing,
        };
        Ok(Some((found, entry.revision)))
    }

    /// A record, if it is one of the layout that is known here, and of this cluster.
    fn parse(&self, key: &str, value: &[u8]) -> Result<Record, &'static str> {
        read(self.place.keys.as_ref().map(|keys| keys.borrow()).as_deref(), (key, value))
    }

    /// How many records there are, those included that were taken away a moment ago.
    pub(super) async fn count(&self) -> Result<u64, Trouble> {
        let count = |store: Store| async move {
            store
                .stream
                .get_info()
                .await
                .map(|info| info.state.messages)
                .map_err(|error| failed(&error))
        };
        self.with(count).await
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
    node.to_string()
}

fn bytes(record: &Record) -> Bytes {
    serde_json::to_vec(record).expect("texts and numbers can be written").into()
}

/// A record of the layout that is known here; where there are keys, one that they prove.
pub(in super::super) fn read(
    keys: Option<&Arc<Keys>>,
    (key, value): (&str, &[u8]),
) -> Result<Record, &'static str> {
    let mut record = parse(value).ok_or("it is too long, of another version, or something else")?;
    let Some(keys) = keys else {
        record.mac = None;
        return Ok(record);
    };
    let mac = record.mac.as_deref().ok_or("it is not signed")?;
    let proved = keys.proves_record(&record.signed(key), mac);
    if proved { Ok(record) } else { Err("it is signed with another cluster's secret") }
}

/// A record, if it is one and of the layout that is known here.
fn parse(value: &[u8]) -> Option<Record> {
    if value.len() > MOST_RECORD {
        return None;
    }
    serde_json::from_slice(value).ok().filter(|record: &Record| record.version == LAYOUT)
}
