//! The owner of a session that this gateway does not know, and the stream in which workers register
//! them (contract 6.3 to 6.5, NT-3, NT-7).

use std::sync::Arc;
use std::time::Duration;

use async_nats::StatusCode;
use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::stream::{
    Config, DirectGetErrorKind, DiscardPolicy, RawMessageErrorKind, RetentionPolicy, StorageType,
    Stream,
};
use bytes::Bytes;
use prost::Message;
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};
use uuid::Uuid;

use super::super::pb::StatefulSessionTracking;
use super::link::{API_LIMIT, Link, State, placement};
use super::made::{REPLICAS, Wanted};
use super::pace::Pace;
use crate::control::port::Registration;

/// Octets of a record, and of each of its fields: identifiers all of them.
const LONGEST_RECORD: usize = 4096;
const LONGEST_FIELD: usize = 256;
/// How the stream is made (contract NT-3).
const MOST_RECORDS: i64 = 100_000;
const RECORD_AGE: Duration = Duration::from_secs(3600);
/// The stream is not asked for more often than this, however many lookups miss it.
const ENSURE_PAUSE: Duration = Duration::from_secs(1);
/// When it is tried again to make sure of the stream, while a server is there.
const ENSURE_AGAIN: Duration = Duration::from_secs(10);

/// Looks for records.
#[derive(Clone, Debug)]
pub(super) struct Lookups(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    link: Link,
    region: Arc<str>,
    stream: String,
    placement: String,
    /// When it was last tried to make sure of the stream; held meanwhile.
    ensured: Mutex<Option<Tried>>,
    failed: Pace,
}

/// An attempt to make sure of the stream.
#[derive(Clone, Copy, Debug)]
struct Tried {
    at: Instant,
    /// The connection.
    epoch: Option<u64>,
    there: bool,
}

/// What a look into the stream came to.
enum Look {
    Record(Bytes),
    NoRecord,
    NoStream,
}

impl Lookups {
    pub(super) fn new(link: Link, region: Arc<str>, placement: &str) -> Self {
        Self(Arc::new(Shared {
            link,
            stream: format!("stateful_session_lookup_{region}"),
            region,
            placement: placement.into(),
            ensured: Mutex::default(),
            failed: Pace::default(),
        }))
    }

    /// What a worker has registered of a session; none if no worker has. Ends within two
    /// [`API_LIMIT`]s, the second one only if the stream is missing.
    pub(super) async fn find(&self, id: Uuid) -> Result<Option<Registration>, String> {
        let shared = &self.0;
        if !shared.link.is_up() {
            return Err(format!("NATS is not there: {}", shared.link.why_down()));
        }
        let look = match timeout(API_LIMIT, shared.look(id)).await {
            Ok(look) => look,
            Err(_) => Err("the registrations were not answered within 5 s".into()),
        };
        let record = match look {
            Ok(Look::Record(record)) => match registration(&record) {
                Ok(registration) => Ok(Some(registration)),
                Err(why) => Err(format!("its record in {} is unusable: {why}", shared.stream)),
            },
            Ok(Look::NoRecord) => Ok(None),
            Ok(Look::NoStream) => {
                // Nothing is registered then; whether the stream can be made does not change it.
                self.ensure().await;
                Ok(None)
            }
            Err(why) => Err(why),
        };
        if let Err(why) = &record
            && let Some(left_out) = shared.failed.line()
        {
            tracing::warn!(request_id = %id, why, left_out, "a registration could not be looked up");
        }
        record
    }

    /// Makes sure of the stream whenever a server is there anew, until the link ends.
    pub(super) async fn keep(self) {
        let mut state = self.0.link.state.clone();
        loop {
            let up = matches!(*state.borrow_and_update(), State::Up { .. });
            if up && !self.ensure().await {
                // Once more after a while, but at once with another connection.
                let _ = timeout(ENSURE_AGAIN, state.changed()).await;
                if state.has_changed().is_err() {
                    return;
                }
                continue;
            }
            if state.changed().await.is_err() {
                return;
            }
        }
    }

    /// Makes the stream if there is none. Whether there is one now.
    async fn ensure(&self) -> bool {
        let shared = &self.0;
        let epoch = shared.link.epoch();
        let mut ensured = shared.ensured.lock().await;
        if let Some(tried) = *ensured
            && tried.epoch == epoch
            && tried.at.elapsed() < ENSURE_PAUSE
        {
            return tried.there;
        }
        let done = match timeout(API_LIMIT, shared.ensure()).await {
            Ok(done) => done,
            Err(_) => Err("JetStream did not answer within 5 s".into()),
        };
        let there = done.is_ok();
        *ensured = Some(Tried { at: Instant::now(), epoch, there });
        drop(ensured);
        if let Err(why) = done
            && let Some(left_out) = shared.failed.line()
        {
            let stream = &shared.stream;
            tracing::warn!(
                stream,
                why,
                left_out,
                "the stream of registrations is not there and cannot be made: workers cannot \
                 register sessions, and none can be resumed"
            );
        }
        there
    }
}

impl Shared {
    async fn look(&self, id: Uuid) -> Result<Look, String> {
        let stream = self.link.jetstream.get_stream_no_info(&self.stream).await;
        let stream = stream.map_err(|error| error.to_string())?;
        let subject = format!("stateful_session.lookup.{}.*.{id}", self.region);
        match stream.direct_get_last_for_subject(subject.as_str()).await {
            Ok(message) => return Ok(Look::Record(message.payload)),
            Err(error) => match error.kind() {
                // A replica that is behind may say so (contract NT-7).
                DirectGetErrorKind::NotFound => {}
                // The stream has no direct access, or is not there.
                DirectGetErrorKind::ErrorResponse(StatusCode::NO_RESPONDERS, _) => {}
                _ => return Err(error.to_string()),
            },
        }
        Self::ask_leader(&stream, &subject).await
    }

    async fn ask_leader(stream: &Stream<()>, subject: &str) -> Result<Look, String> {
        let error = match stream.raw_message_builder().last_by_subject(subject).send().await {
            Ok(message) => return Ok(Look::Record(message.payload)),
            Err(error) => error,
        };
        match error.kind() {
            RawMessageErrorKind::NoMessageFound => Ok(Look::NoRecord),
            RawMessageErrorKind::JetStream(answer)
                if answer.error_code() == ErrorCode::STREAM_NOT_FOUND =>
            {
                Ok(Look::NoStream)
            }
            _ => Err(error.to_string()),
        }
    }

    async fn ensure(&self) -> Result<(), String> {
        let wanted = wanted(&self.region, &self.placement);
        let stream = wanted.ensure(&self.link.jetstream).await?;
        wanted.compare(&stream.cached_info().config);
        Ok(())
    }
}

/// The stream of registrations, as it is made.
pub(super) fn wanted(region: &str, tag: &str) -> Wanted {
    let config = Config {
        name: format!("stateful_session_lookup_{region}"),
        subjects: vec![format!("stateful_session.lookup.{region}.>")],
        retention: RetentionPolicy::Limits,
        max_messages: MOST_RECORDS,
        discard: DiscardPolicy::New,
        max_age: RECORD_AGE,
        max_messages_per_subject: 1,
        storage: StorageType::Memory,
        num_replicas: REPLICAS,
        placement: placement(tag),
        allow_direct: true,
        ..Config::default()
    };
    let single = "no session can be resumed after that server has ended";
    Wanted { config, what: "the stream of registrations", single }
}

/// Reads a record, or says what is wrong with it.
fn registration(record: &[u8]) -> Result<Registration, String> {
    if record.len() > LONGEST_RECORD {
        return Err(format!("it has {} bytes", record.len()));
    }
    let read = StatefulSessionTracking::decode(record).map_err(|error| error.to_string())?;
    let field = |name: &str, value: String| match value.len() {
        0 => Err(format!("it has no {name}")),
        1..=LONGEST_FIELD => Ok(Arc::from(value)),
        length => Err(format!("its {name} has {length} bytes")),
    };
    Ok(Registration {
        function: field("functionId", read.function_id)?,
        version: field("functionVersionId", read.function_version_id)?,
        tenant: field("invokerNcaId", read.invoker_nca_id)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(function: &str, version: &str, tenant: &str) -> Vec<u8> {
        StatefulSessionTracking {
            function_id: function.into(),
            function_version_id: version.into(),
            invoker_nca_id: tenant.into(),
        }
        .encode_to_vec()
    }

    #[test]
    fn a_record_is_read_whole_or_not_at_all() {
        let read = registration(&record("f", "v", "t")).unwrap();
        assert_eq!((&*read.function, &*read.version, &*read.tenant), ("f", "v", "t"));
        let long = "x".repeat(LONGEST_FIELD + 1);
        for (bad, what) in [
            (record("", "v", "t"), "functionId"),
            (record("f", "", "t"), "functionVersionId"),
            (record("f", "v", ""), "invokerNcaId"),
            (record("f", &long, "t"), "257 bytes"),
            (record(&"x".repeat(LONGEST_RECORD), "v", "t"), "bytes"),
            (b"\x0a\x01\xff\x12\x01v\x1a\x01t".to_vec(), "UTF-8"),
            (b"\x0a\x7fshort".to_vec(), "buffer underflow"),
            (b"\x08\x01".to_vec(), "wire type"),
        ] {
            let why = registration(&bad).unwrap_err();
            assert!(why.contains(what), "{why} lacks {what}");
        }
    }
}
