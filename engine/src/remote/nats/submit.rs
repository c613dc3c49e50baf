//! Work for a new session goes into its function version's stream, and the stream says so
//! (contract NT-1, NT-2).

use std::sync::Arc;
use std::time::Duration;

use async_nats::client::PublishErrorKind;
use async_nats::{Message, StatusCode};
use bytes::Bytes;
use serde::Deserialize;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::link::Link;
use super::pace::Pace;
use super::replies::Replies;
use super::requests::Requests;
use super::rights::Rights;

/// How long an acknowledgement may take, all attempts together.
const ACK_LIMIT: Duration = Duration::from_secs(5);
/// Further attempts if no stream takes the subject, and the pause before each.
const MORE_ATTEMPTS: u32 = 2;
const ATTEMPT_PAUSE: Duration = Duration::from_millis(250);
/// Publishes whose acknowledgement is out at once. None waits for another one.
const MOST_PUBLISHES: usize = 16_384;
/// The error code of all limits of a stream, and the description of the one that says that the
/// message is in the stream already (contract NT-2).
const STREAM_LIMIT: u64 = 10_077;
const THERE_ALREADY: &str = "maximum messages per subject exceeded";

/// Publishes with acknowledgement.
#[derive(Clone, Debug)]
pub(super) struct Publisher {
    link: Link,
    replies: Replies,
    rights: Arc<Rights>,
    /// Makes a stream that is missing, where that is for this gateway to do.
    requests: Option<Requests>,
    room: Arc<Semaphore>,
    told: Arc<Pace>,
}

/// Where a message goes: the stream, and the version whose queue that is.
#[derive(Clone, Copy)]
pub(super) struct To<'a> {
    pub(super) stream: &'a str,
    pub(super) version: &'a str,
}

/// What became of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Published {
    /// The message is in the stream; its sequence, if that is known.
    There(Option<u64>),
    /// The message is not there, for this reason.
    Not(String),
    /// Whether the message is there is not known, for this reason.
    Unknown(String),
}

/// Why no answer comes.
enum Unasked {
    /// The client library refuses the message, for this reason.
    Refused(String),
    /// The client library sends nothing any more.
    Closed,
}

/// What a stream answers.
#[derive(Deserialize)]
struct Ack {
    #[serde(default)]
    stream: String,
    #[serde(default, rename = "seq")]
    sequence: u64,
    error: Option<Fault>,
}

#[derive(Deserialize)]
struct Fault {
    #[serde(default)]
    code: u64,
    #[serde(default)]
    err_code: u64,
    #[serde(default)]
    description: String,
}

impl Publisher {
    pub(super) fn new(
        link: Link,
        replies: Replies,
        (rights, requests): (Arc<Rights>, Option<Requests>),
    ) -> Self {
        let room = Arc::new(Semaphore::new(MOST_PUBLISHES));
        Self { link, replies, rights, requests, room, told: Arc::default() }
    }

    /// Publishes a message whose subject is its own, so that it cannot be in the stream twice.
    pub(super) async fn publish(&self, to: To<'_>, subject: &str, payload: Bytes) -> Published {
        let Ok(_room) = self.room.try_acquire() else {
            return Published::Not(format!("{MOST_PUBLISHES} publishes wait for their answers"));
        };
        let published = self.attempts(to, subject, payload).await;
        if let Published::Not(why) | Published::Unknown(why) = &published
            && let Some(left_out) = self.told.line()
        {
            tracing::warn!(subject, why, left_out, "work was not published");
        }
        published
    }

    async fn attempts(
        &self,
        To { stream, version }: To<'_>,
        subject: &str,
        payload: Bytes,
    ) -> Published {
        let end = Instant::now() + ACK_LIMIT;
        let mut more = MORE_ATTEMPTS;
        // Whether one was lost on the way: it may have arrived.
        let mut lost = false;
        let mut violations = self.rights.violations();
        loop {
            let Some(epoch) = self.link.epoch() else {
                let why = format!("NATS is not there: {}", self.link.why_down());
                if !lost {
                    return Published::Not(why);
                }
                // What is published again is either new or refused as being there already.
                if timeout_at(end, self.link.up()).await.is_err() {
                    return Published::Unknown(why);
                }
                continue;
            };
            let begun = Instant::now();
            let answer = tokio::select! {
                answer = timeout_at(end, self.ask(subject, payload.clone())) => match answer {
                    Ok(answer) => answer,
                    Err(_) => return Published::Unknown("no answer came within 5 s".into()),
                },
                () = violations.about(subject) => Err(Unasked::Refused(
                    "Permissions Violation: the NATS account may not publish to that subject; \
                     allow it to publish to rq.>".into(),
                )),
                () = self.link.lost(epoch) => {
                    lost = true;
                    continue;
                }
            };
            let why = match answer {
                Ok(answer) if answer.status != Some(StatusCode::NO_RESPONDERS) => {
                    return self.read(stream, subject, &answer);
                }
                Ok(_) if more > 0 => {
                    more -= 1;
                    if let Some(requests) = &self.requests {
                        // Whether the stream could be made shows in the next attempt.
                        let _there = timeout_at(end, requests.missing(version)).await;
                    }
                    sleep_until((begun + ATTEMPT_PAUSE).min(end)).await;
                    continue;
                }
                Ok(_) => format!("there is no stream {stream}"),
                Err(Unasked::Refused(why)) => why,
                Err(Unasked::Closed) => {
                    return Published::Unknown("the connection to NATS was closed".into());
                }
            };
            return if lost { Published::Unknown(why) } else { Published::Not(why) };
        }
    }

    async fn ask(&self, subject: &str, payload: Bytes) -> Result<Message, Unasked> {
        match self.replies.request(subject.to_owned(), payload).await {
            Ok(waiting) => waiting.reply().await.ok_or(Unasked::Closed),
            Err(error) if error.kind() == PublishErrorKind::Send => Err(Unasked::Closed),
            Err(error) => Err(Unasked::Refused(error.to_string())),
        }
    }

    fn read(&self, stream: &str, subject: &str, answer: &Message) -> Published {
        let ack: Ack = match serde_json::from_slice(&answer.payload) {
            Ok(ack) => ack,
            Err(error) => {
                return Published::Unknown(format!("the answer is no acknowledgement: {error}"));
            }
        };
        if let Some(Fault { code, err_code, description }) = ack.error {
            if err_code == STREAM_LIMIT && description == THERE_ALREADY {
                return Published::There(None);
            }
            return Published::Not(format!("{description} (code {code}, error code {err_code})"));
        }
        if ack.sequence == 0 {
            return Published::Unknown("the acknowledgement has no sequence".into());
        }
        if ack.stream != stream
            && let Some(left_out) = self.told.line()
        {
            let other = ack.stream;
            tracing::warn!(subject, other, stream, left_out, "another stream took the work");
        }
        Published::There(Some(ack.sequence))
    }
}
