//! Requests that change nothing, and what became of them.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_nats::{HeaderMap, Request, RequestErrorKind, StatusCode};
use bytes::Bytes;
use serde_json::Value;
use tokio::sync::Notify;

use super::super::link::Link;
use super::super::rights::refused;

/// How long an answer may take.
const LIMIT: Duration = Duration::from_secs(3);
/// Errors of a server that are remembered.
const MOST_HEARD: usize = 256;
/// A stream takes nothing with this that does not have the name which follows.
const EXPECTED_STREAM: &str = "Nats-Expected-Stream";
const NO_STREAM: &str = "ringway-doctor";

/// What the server has told against the connection.
#[derive(Clone, Debug, Default)]
pub(super) struct Heard(Arc<(Mutex<Vec<String>>, Notify)>);

/// What came of a request.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Said {
    /// The account may not publish there.
    Denied,
    /// The account may not hear answers.
    Deaf,
    /// Nobody listens there.
    Nobody,
    /// An answer; what is no JSON is null.
    Answer(Value),
    /// No answer.
    Silence(String),
}

impl Heard {
    pub(super) fn note(&self, text: &str) {
        let (errors, changed) = &*self.0;
        let mut errors = errors.lock().unwrap_or_else(PoisonError::into_inner);
        if errors.len() < MOST_HEARD {
            errors.push(text.to_owned());
        }
        drop(errors);
        changed.notify_waiters();
    }

    fn about(&self, subject: &str) -> Option<Said> {
        let errors = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        errors.iter().find_map(|text| match refused(text)? {
            named if named == subject => Some(Said::Denied),
            named if named.starts_with("_INBOX.") => Some(Said::Deaf),
            _ => None,
        })
    }

    async fn denied(&self, subject: &str) -> Said {
        loop {
            let changed = self.0.1.notified();
            if let Some(said) = self.about(subject) {
                return said;
            }
            changed.await;
        }
    }
}

/// Asks something of JetStream's API, or of whoever listens.
pub(super) async fn ask(link: &Link, heard: &Heard, subject: &str, body: &str) -> Said {
    request(link, heard, subject, Request::new().payload(Bytes::from(body.to_owned()))).await
}

/// Publishes what no stream takes.
pub(super) async fn publish(link: &Link, heard: &Heard, subject: &str) -> Said {
    let mut headers = HeaderMap::new();
    headers.insert(EXPECTED_STREAM, NO_STREAM);
    request(link, heard, subject, Request::new().headers(headers).payload(Bytes::new())).await
}

async fn request(link: &Link, heard: &Heard, subject: &str, request: Request) -> Said {
    let request = request.inbox(link.client.new_inbox()).timeout(Some(LIMIT));
    let answer = tokio::select! {
        answer = link.client.send_request(subject.to_owned(), request) => answer,
        said = heard.denied(subject) => return said,
    };
    match answer {
        Ok(message) if message.status == Some(StatusCode::NO_RESPONDERS) => Said::Nobody,
        Ok(message) => Said::Answer(serde_json::from_slice(&message.payload).unwrap_or_default()),
        Err(error) if error.kind() == RequestErrorKind::NoResponders => Said::Nobody,
        Err(error) => Said::Silence(error.to_string()),
    }
}
