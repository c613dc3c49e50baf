//! What NVIDIA's control plane makes in NATS before work can travel: the request stream and its
//! consumer (contract NT-1).

use std::time::Duration;

use async_nats::Client;
use async_nats::jetstream::consumer::{AckPolicy, pull};
use async_nats::jetstream::stream::{
    Config, DiscardPolicy, Placement, RetentionPolicy, StorageType,
};
use async_nats::jetstream::{self, Context};

/// How long a worker may leave a message without a word.
const ACK_WAIT: Duration = Duration::from_secs(30);
const MAX_ACK_PENDING: i64 = 100_000;
const DUPLICATES: Duration = Duration::from_secs(5);

/// What may differ from NVIDIA's.
#[derive(Clone, Debug)]
pub struct Shape {
    /// The region.
    pub region: String,
    /// The function's version.
    pub version: String,
    /// Most messages.
    pub messages: i64,
    /// Most bytes; -1: no limit.
    pub bytes: i64,
    /// Copies.
    pub replicas: usize,
    /// Tags of the servers that may have it, like `dc:ncp`.
    pub placement: Vec<String>,
}

/// Makes both; what is there already has to be the same.
///
/// # Errors
/// What the server says, among it that there are not so many servers with these tags.
pub async fn make(client: Client, shape: Shape) -> Result<(), async_nats::Error> {
    let context: Context = jetstream::new(client);
    let name = format!("rq_{}_{}", shape.region, shape.version);
    let placement =
        (!shape.placement.is_empty()).then_some(Placement { cluster: None, tags: shape.placement });
    let stream = Config {
        name: name.clone(),
        subjects: vec![format!("rq.{}.{}.*", shape.region, shape.version)],
        retention: RetentionPolicy::WorkQueue,
        discard: DiscardPolicy::New,
        discard_new_per_subject: true,
        max_messages_per_subject: 1,
        max_messages: shape.messages,
        max_bytes: shape.bytes,
        duplicate_window: DUPLICATES,
        storage: StorageType::Memory,
        num_replicas: shape.replicas,
        allow_direct: true,
        placement,
        ..Config::default()
    };
    let stream = context.create_stream(stream).await?;
    let workers = format!("{name}_workers");
    let consumer = pull::Config {
        durable_name: Some(workers),
        ack_policy: AckPolicy::Explicit,
        ack_wait: ACK_WAIT,
        max_ack_pending: MAX_ACK_PENDING,
        max_deliver: -1,
        ..pull::Config::default()
    };
    stream.create_consumer(consumer).await?;
    Ok(())
}
