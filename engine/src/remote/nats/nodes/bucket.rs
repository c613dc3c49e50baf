//! The bucket that the records of a region's gateways lie in.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use async_nats::jetstream::kv::{self, Operation, Store};
use async_nats::jetstream::stream::StorageType;
use async_nats::jetstream::{ErrorCode, context};
use bytes::Bytes;
use ringway_proto::id::Node;
use tokio::sync::watch;

use super::super::link::{Link, placement};
use super::super::rights::{Right, Rights};
use super::super::withdraw::{Trouble, within};
use super::claims::{Ask, Heard};
use super::record::{Addresses, MOST_RECORD, Pace};
use crate::keys::Keys;

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
    pub(super) fn addresses(&self) -> Addresses {
        let [relay, admin] = [self.relay, self.admin].map(|port| self.reached(port?));
        Addresses { relay, admin }
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

impl Bucket {
    pub(super) fn new(place: NodeConfig) -> Self {
        Self { place, store: tokio::sync::Mutex::default() }
    }

    /// Asks the bucket for what is to be done about the own record.
    pub(super) async fn ask(&self, ask: &Ask) -> Heard {
        let heard = match ask {
            Ask::Put { node, over: None, bytes } => self.create(*node, bytes).await,
            Ask::Put { node, over: Some(revision), bytes } => {
                self.update(*node, bytes, *revision).await
            }
            Ask::Read(node) => self.read(*node).await.map(Heard::Found),
            Ask::Delete { node, revision } => self.delete(*node, *revision).await,
        };
        heard.unwrap_or_else(Heard::Failed)
    }

    async fn create(&self, node: Node, bytes: &Bytes) -> Result<Heard, Trouble> {
        let key = &node.to_string();
        let create = |store: Store| async move {
            match store.create(key, bytes.clone()).await {
                Ok(revision) => Ok(Heard::Done(revision)),
                Err(error) if error.kind() == kv::CreateErrorKind::AlreadyExists => {
                    Ok(Heard::Refused)
                }
                Err(error) => Err(failed(&error)),
            }
        };
        self.with(create).await
    }

    async fn update(&self, node: Node, bytes: &Bytes, revision: u64) -> Result<Heard, Trouble> {
        let key = &node.to_string();
        let update = |store: Store| async move {
            match store.update(key, bytes.clone(), revision).await {
                Ok(revision) => Ok(Heard::Done(revision)),
                Err(error) if error.kind() == kv::UpdateErrorKind::WrongLastRevision => {
                    Ok(Heard::Refused)
                }
                Err(error) => Err(failed(&error)),
            }
        };
        self.with(update).await
    }

    /// What is there under a node's key, with its revision.
    pub(super) async fn read(&self, node: Node) -> Result<Option<(Bytes, u64)>, Trouble> {
        let key = &node.to_string();
        let read =
            |store: Store| async move { store.entry(key).await.map_err(|error| failed(&error)) };
        let there = self.with(read).await?.filter(|entry| entry.operation == Operation::Put);
        Ok(there.map(|entry| (entry.value, entry.revision)))
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

    async fn delete(&self, node: Node, revision: u64) -> Result<Heard, Trouble> {
        let key = &node.to_string();
        let delete = |store: Store| async move {
            match store.delete_expect_revision(key, Some(revision)).await {
                Ok(()) => Ok(Heard::Done(revision)),
                // The library does not tell another revision apart from other failures. A look at the
                // record shows which it was.
                Err(_) => Ok(Heard::Refused),
            }
        };
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
}

fn failed(error: &impl std::error::Error) -> Trouble {
    Trouble::Failed(error.to_string())
}
