//! A session's worker is asked for one more tunnel (design 3.5, contract 6.1 and NT-10).

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_nats::{Message, StatusCode};
use bytes::Bytes;
use futures_util::StreamExt;
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use super::link::Link;
use super::lookup::Lookups;
use crate::control::port::Answer;

/// How long "no responders" is not believed: NVIDIA's worker listens only after its first CONNECT.
const BELIEVED_AFTER: Duration = Duration::from_secs(5);
/// Pause from one attempt to the next.
const AGAIN: Duration = Duration::from_millis(250);
/// Where no answer comes at all within this, the worker has heard it: "no responders" is said at
/// once.
const SILENCE: Duration = Duration::from_millis(500);
/// For how long it is remembered that a session's worker did not listen: as long as its record may
/// live (contract 6.4).
const REMEMBERED: Duration = Duration::from_secs(3600);
/// Sessions of which that is remembered.
const MOST_REMEMBERED: usize = 50_000;

/// Asks workers for tunnels.
#[derive(Clone, Debug)]
pub(super) struct Reconnects {
    link: Link,
    lookups: Lookups,
    unheard: Arc<Mutex<Unheard>>,
}

/// Whether a worker heard the request.
enum Heard {
    Somebody,
    Nobody,
    /// Whether somebody hears is not known, for this reason.
    Lost(String),
}

impl Reconnects {
    pub(super) fn new(link: Link, lookups: Lookups) -> Self {
        Self { link, lookups, unheard: Arc::default() }
    }

    /// Asks a session's worker.
    pub(super) async fn ask(&self, id: Uuid, payload: Bytes) -> Answer {
        let subject = format!("stateful_session.reconnect.{id}");
        let end = Instant::now() + BELIEVED_AFTER;
        loop {
            match self.send(&subject, payload.clone()).await {
                Heard::Somebody => {
                    self.unheard().forget(id);
                    return Answer::Queued;
                }
                Heard::Nobody => {}
                Heard::Lost(why) => return Answer::Unqueued(why),
            }
            if Instant::now() + AGAIN > end {
                return self.nobody(id).await;
            }
            sleep(AGAIN).await;
        }
    }

    /// Nobody listens: the session is gone, or its worker is.
    async fn nobody(&self, id: Uuid) -> Answer {
        match self.lookups.find(id).await {
            Ok(None) => Answer::Unregistered,
            // A worker that crashed leaves its record: a client that kept its cookie for it would
            // come again for an hour.
            Ok(Some(_)) if self.unheard().note(id, Instant::now()) => Answer::Unregistered,
            Ok(Some(_)) => Answer::Unheard,
            Err(why) => Answer::Unqueued(why),
        }
    }

    fn unheard(&self) -> std::sync::MutexGuard<'_, Unheard> {
        self.unheard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn send(&self, subject: &str, payload: Bytes) -> Heard {
        let Some(epoch) = self.link.epoch() else {
            return Heard::Lost(format!("NATS is not there: {}", self.link.why_down()));
        };
        tokio::select! {
            answer = self.answer(subject, payload) => match answer {
                Ok(Some(message)) if message.status == Some(StatusCode::NO_RESPONDERS) => {
                    Heard::Nobody
                }
                // The worker's reply, or our own message behind it: the server would have said
                // before that one that nobody listens.
                Ok(Some(_)) => Heard::Somebody,
                Ok(None) => Heard::Lost("the connection to NATS was closed".into()),
                Err(why) => Heard::Lost(why),
            },
            () = sleep(SILENCE) => Heard::Somebody,
            // An answer would have come on the connection that is lost.
            () = self.link.lost(epoch) => Heard::Lost("NATS was lost meanwhile".into()),
        }
    }

    /// The first message that comes to the inbox of a request. NVIDIA's worker sends none, so
    /// another one is sent there at once by this gateway itself.
    async fn answer(&self, subject: &str, payload: Bytes) -> Result<Option<Message>, String> {
        let client = &self.link.client;
        let inbox = client.new_inbox();
        let mut inbox_messages =
            client.subscribe(inbox.clone()).await.map_err(|error| error.to_string())?;
        client
            .publish_with_reply(subject.to_owned(), inbox.clone(), payload)
            .await
            .map_err(|error| error.to_string())?;
        client.publish(inbox, Bytes::new()).await.map_err(|error| error.to_string())?;
        Ok(inbox_messages.next().await)
    }
}

/// Sessions that were registered, and whose worker did not listen.
#[derive(Debug, Default)]
struct Unheard {
    since: HashMap<Uuid, Instant>,
    /// The same sessions, the oldest first; some may have been forgotten meanwhile.
    order: VecDeque<(Instant, Uuid)>,
}

impl Unheard {
    /// Notes one. Whether it had been noted already.
    fn note(&mut self, id: Uuid, now: Instant) -> bool {
        while let Some((since, oldest)) = self.order.front().copied()
            && (now.duration_since(since) >= REMEMBERED || self.order.len() > MOST_REMEMBERED)
        {
            self.order.pop_front();
            if self.since.get(&oldest) == Some(&since) {
                self.since.remove(&oldest);
            }
        }
        if self.since.contains_key(&id) {
            return true;
        }
        self.since.insert(id, now);
        self.order.push_back((now, id));
        false
    }

    /// The worker was heard.
    fn forget(&mut self, id: Uuid) {
        self.since.remove(&id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_that_does_not_listen_is_remembered_for_an_hour() {
        let mut unheard = Unheard::default();
        let (id, now) = (Uuid::from_u128(1), Instant::now());
        assert!(!unheard.note(id, now));
        assert!(unheard.note(id, now + Duration::from_secs(3599)));
        assert!(!unheard.note(id, now + REMEMBERED));
        unheard.forget(id);
        assert!(!unheard.note(id, now + REMEMBERED + Duration::from_secs(1)));
        assert!(unheard.note(id, now + REMEMBERED + Duration::from_secs(2)));
    }

    #[test]
    fn no_more_are_remembered_than_may_be() {
        let mut unheard = Unheard::default();
        let now = Instant::now();
        for id in 0..2 * MOST_REMEMBERED as u128 {
            assert!(!unheard.note(Uuid::from_u128(id), now));
            unheard.forget(Uuid::from_u128(id / 2));
        }
        assert!(unheard.order.len() <= MOST_REMEMBERED + 1);
        assert!(unheard.since.len() <= MOST_REMEMBERED + 1);
    }
}
