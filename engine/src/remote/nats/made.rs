//! Streams that the gateway makes where nobody else has: made with three replicas, or with one on a
//! server that is alone; what is there already is used as it is (contract NT-3).

use async_nats::jetstream::context::{CreateStreamErrorKind, GetStreamErrorKind};
use async_nats::jetstream::stream::{Config, Stream};
use async_nats::jetstream::{Context, ErrorCode};

/// How many servers have a copy, where there are as many.
pub(super) const REPLICAS: usize = 3;

/// A stream as it is made.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    pub(super) config: Config,
    /// What the stream or bucket is, for people.
    pub(super) what: &'static str,
    /// What it means that the stream or bucket is on one server only.
    pub(super) single: &'static str,
}

impl Wanted {
    /// Opens the stream, or makes it.
    ///
    /// # Errors
    /// Why it is not there and cannot be made.
    pub(super) async fn ensure(&self, jetstream: &Context) -> Result<Stream, String> {
        let (what, stream) = (self.what, &self.config.name);
        if let Some(stream) = open(jetstream, stream).await? {
            return Ok(stream);
        }
        let first = match jetstream.create_stream(self.config.clone()).await {
            Ok(made) => {
                tracing::info!(stream, "{what} was made");
                return Ok(made);
            }
            Err(first) => first,
        };
        let CreateStreamErrorKind::JetStream(answer) = first.kind() else {
            return Err(first.to_string());
        };
        match answer.error_code() {
            // Another gateway was faster.
            ErrorCode::STREAM_NAME_EXIST => {
                open(jetstream, stream).await?.ok_or_else(|| first.to_string())
            }
            ErrorCode::STREAM_REPLICAS_NOT_SUPPORTED => self.make_single(jetstream).await,
            _ => Err(first.to_string()),
        }
    }

    /// Makes the stream on a server that is alone.
    async fn make_single(&self, jetstream: &Context) -> Result<Stream, String> {
        let single = Config { num_replicas: 1, ..self.config.clone() };
        let made = jetstream.create_stream(single).await.map_err(|error| error.to_string())?;
        let Self { config, what, single } = self;
        tracing::warn!(
            stream = config.name,
            "the NATS server is alone and refuses 3 replicas: {what} has one, and {single}"
        );
        Ok(made)
    }

    /// Says in the log what of the stream is other than it would be made.
    pub(super) fn compare(&self, found: &Config) {
        let others = differences(&self.config, found);
        if !others.is_empty() {
            let what = self.what;
            tracing::warn!(
                stream = self.config.name,
                differs = others.join(", "),
                "{what} has other settings than this gateway would give it"
            );
        }
    }
}

/// A stream, if it is there.
///
/// # Errors
/// Why that cannot be told.
pub(super) async fn open(jetstream: &Context, name: &str) -> Result<Option<Stream>, String> {
    match jetstream.get_stream(name).await {
        Ok(found) => Ok(Some(found)),
        Err(error) => match error.kind() {
            GetStreamErrorKind::JetStream(answer)
                if answer.error_code() == ErrorCode::STREAM_NOT_FOUND =>
            {
                Ok(None)
            }
            _ => Err(error.to_string()),
        },
    }
}

/// What of a stream's settings is other than wanted, and matters.
pub(super) fn differences(wanted: &Config, found: &Config) -> Vec<String> {
    let mut others = Vec::new();
    let mut compare = |name: &str, wanted: String, found: String| {
        if wanted != found {
            others.push(format!("{name} {found}, not {wanted}"));
        }
    };
    let shown = |value: &dyn std::fmt::Debug| format!("{value:?}");
    compare("subjects", shown(&wanted.subjects), shown(&found.subjects));
    compare("retention", shown(&wanted.retention), shown(&found.retention));
    compare("max_msgs", shown(&wanted.max_messages), shown(&found.max_messages));
    compare("discard", shown(&wanted.discard), shown(&found.discard));
    let per_subject = (wanted.discard_new_per_subject, found.discard_new_per_subject);
    compare("discard_new_per_subject", shown(&per_subject.0), shown(&per_subject.1));
    compare("max_age", shown(&wanted.max_age), shown(&found.max_age));
    let per_subject = (wanted.max_messages_per_subject, found.max_messages_per_subject);
    compare("max_msgs_per_subject", shown(&per_subject.0), shown(&per_subject.1));
    compare("storage", shown(&wanted.storage), shown(&found.storage));
    compare("num_replicas", shown(&wanted.num_replicas), shown(&found.num_replicas));
    compare("allow_direct", shown(&wanted.allow_direct), shown(&found.allow_direct));
    others
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_matters_of_a_streams_settings_is_compared() {
        let wanted = Config { name: "s".into(), num_replicas: 3, ..Config::default() };
        assert!(differences(&wanted, &wanted).is_empty());
        let found = Config { max_messages_per_subject: 5, num_replicas: 1, ..wanted.clone() };
        let others = differences(&wanted, &found);
        assert_eq!(others, ["max_msgs_per_subject 5, not 0", "num_replicas 1, not 3"]);
    }
}
