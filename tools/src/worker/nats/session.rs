//! One session, from its work to its end (contract 4.6).

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_nats::Subscriber;
use async_nats::jetstream::{self, AckKind};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use prost::Message;
use ringway_work::{Connection, Http1, Secret, short};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{MissedTickBehavior, interval, sleep};
use uuid::Uuid;

use super::super::connect::Refusal;
use super::crew::{Crew, told};
use super::handoff::Opened;
use super::record::Record;
use crate::pb::nvcf::WorkerInvokeFunctionRequest;
use crate::pb::nvcf::connection_config::Config;

/// How often the message is said to be in work, and how often that may fail in a row.
const PROGRESS: Duration = Duration::from_secs(10);
const MAX_FAILURES: u32 = 10;
/// Most tunnels of a session, with those that are being opened.
const MAX_TUNNELS: usize = 256;

/// What a worker is asked to do (contract 6.2).
#[derive(Debug)]
pub(super) struct Work {
    id: Uuid,
    nca: String,
    connections: Vec<Connection>,
    asked_at: Option<SystemTime>,
}

impl Work {
    pub(super) fn read(bytes: &[u8]) -> Result<Self, String> {
        let work = WorkerInvokeFunctionRequest::decode(bytes).map_err(|error| error.to_string())?;
        let id = Uuid::parse_str(&work.request_id).map_err(|error| error.to_string())?;
        let configs = work.stateful_config.map(|config| config.connection_configs);
        let connections = configs.unwrap_or_default().into_iter().map(|one| Connection {
            http1: match one.config {
                Some(Config::Http1Config(http1)) => Some(Http1 {
                    proxy_uri: http1.proxy_uri,
                    proxy_authorization_token: Secret::received(http1.proxy_authorization_token),
                }),
                // HTTP/3 is not spoken here.
                Some(Config::Http3Config(_)) | None => None,
            },
        });
        let asked_at = work.request_time.and_then(|at| SystemTime::try_from(at).ok());
        Ok(Self { id, nca: work.nca_id, connections: connections.collect(), asked_at })
    }

    /// How long ago it was asked for, by the gateway's clock.
    pub(super) fn claim(&self) -> Option<Duration> {
        self.asked_at.and_then(|at| SystemTime::now().duration_since(at).ok())
    }
}

/// A session that came through JetStream: its message stays there until the session's end, and is
/// acknowledged whatever became of it.
pub(super) async fn pulled(
    crew: Arc<Crew>,
    work: Result<Work, String>,
    claim: Option<Duration>,
    message: jetstream::Message,
    slot: OwnedSemaphorePermit,
) {
    match work {
        Ok(work) => {
            tracing::debug!(session = short(work.id), claim_us = micros(claim), "session claimed");
            let record = Record::keep(&crew, work.id, work.nca.clone());
            tokio::select! {
                () = in_progress(&message) => {
                    let session = short(work.id);
                    tracing::warn!(session, "ended: its progress cannot be reported to NATS");
                }
                () = told(crew.cut.clone()) => {}
                () = tunnels(&crew, &work, None) => {}
            }
            record.remove().await;
            tracing::debug!(session = short(work.id), "session ended");
        }
        Err(why) => tracing::warn!(why, "work that cannot be read"),
    }
    if let Err(error) = message.ack().await {
        tracing::warn!(%error, "work could not be acknowledged");
    }
    drop(slot);
}

/// A session that came by a request, and was accepted. It outlives its last tunnel by `window`.
pub(super) async fn requested(
    crew: Arc<Crew>,
    work: Work,
    window: Duration,
    slot: OwnedSemaphorePermit,
) {
    let session = short(work.id);
    tracing::debug!(session, claim_us = micros(work.claim()), "session claimed");
    let record = Record::keep(&crew, work.id, work.nca.clone());
    tokio::select! {
        () = told(crew.cut.clone()) => {}
        () = tunnels(&crew, &work, Some(window)) => {}
    }
    record.remove().await;
    tracing::debug!(session, "session ended");
    drop(slot);
}

fn micros(time: Option<Duration>) -> Option<u64> {
    time.and_then(|time| u64::try_from(time.as_micros()).ok())
}

/// Keeps the message from being given to another; returns if that fails too often in a row. As
/// with NVIDIA's library it fails once the connection is given up, and not while it is being
/// made again.
async fn in_progress(message: &jetstream::Message) {
    let mut ticks = interval(PROGRESS);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // The first one is at once.
    ticks.tick().await;
    let mut failures = 0;
    while failures < MAX_FAILURES {
        ticks.tick().await;
        match message.ack_with(AckKind::Progress).await {
            Ok(()) => failures = 0,
            Err(error) => {
                failures += 1;
                tracing::debug!(%error, failures, "work not said to be in progress");
            }
        }
    }
}

/// The tunnels of a session, until the last one has ended, and for streaming functions the time
/// after that (contract 11).
async fn tunnels(crew: &Crew, work: &Work, window: Option<Duration>) {
    let Some(first) = open(crew, work.id, work.connections.clone()).await else { return };
    // Only now: a message for a session whose first tunnel is not there yet is lost (contract 4.6).
    let subject = format!("stateful_session.reconnect.{}", work.id);
    let mut messages = match crew.client.subscribe(subject).await {
        Ok(messages) => messages,
        Err(error) => {
            tracing::warn!(session = short(work.id), %error, "nobody can come back to it");
            let _ = first.ended.await;
            return;
        }
    };
    let mut window = window;
    let (mut open_ones, mut dialled) = (FuturesUnordered::new(), FuturesUnordered::new());
    open_ones.push(first.ended);
    let mut last_words = Box::pin(sleep(Duration::ZERO));
    loop {
        tokio::select! {
            Some(ended) = open_ones.next() => {
                if let (Some(now), Ok(Some(asked))) = (&mut window, ended) {
                    *now = asked;
                }
                let Some(window) = window.filter(|_| open_ones.is_empty()) else {
                    if open_ones.is_empty() { break } else { continue }
                };
                tracing::debug!(session = short(work.id), seconds = window.as_secs(), "waits");
                last_words = Box::pin(sleep(window));
            }
            Some(tunnel) = dialled.next() => {
                if let Some(Opened { ended, .. }) = tunnel {
                    open_ones.push(ended);
                }
            }
            message = messages.next() => {
                let Some(message) = message else { break };
                let room = open_ones.len() + dialled.len() < MAX_TUNNELS;
                if let Some(again) = called(crew, work.id, message, room).await {
                    dialled.push(open(crew, again.id, again.connections));
                }
            }
            () = &mut last_words, if open_ones.is_empty() => break,
        }
    }
    leave(messages, work.id).await;
}

/// A client has come back: what is to be dialled, if that can be read and is this session's.
async fn called(crew: &Crew, id: Uuid, message: async_nats::Message, room: bool) -> Option<Work> {
    let session = short(id);
    let again = match Work::read(&message.payload) {
        Ok(again) if again.id == id => again,
        Ok(_) => {
            tracing::warn!(session, "a reconnect message names another session: ignored");
            return None;
        }
        Err(why) => {
            tracing::warn!(session, why, "a reconnect message cannot be read: ignored");
            return None;
        }
    };
    if let Some(reply) = message.reply.filter(|_| crew.options.answers)
        && let Err(error) = crew.client.publish(reply, "".into()).await
    {
        tracing::warn!(session, %error, "a reconnect message was not answered");
    }
    if !room {
        tracing::warn!(session, most = MAX_TUNNELS, "too many reconnect messages: ignored");
        return None;
    }
    crew.times.called_back();
    tracing::debug!(session, "a client comes back");
    Some(again)
}

/// A tunnel; none if there is none to be had.
async fn open(crew: &Crew, id: Uuid, connections: Vec<Connection>) -> Option<Opened> {
    let session = short(id);
    match crew.asker.open(id, connections).await {
        Ok(opened) => {
            crew.times.dialled(opened.dial);
            tracing::debug!(session, dial_us = micros(Some(opened.dial)), "tunnel open");
            Some(opened)
        }
        // The client has left meanwhile: the token is gone with it.
        Err(Refusal::ForGood(why)) => {
            crew.times.refused();
            tracing::info!(session, why, "the gateway refused the tunnel");
            None
        }
        Err(Refusal::Failed(error)) => {
            crew.times.failed();
            tracing::warn!(session, %error, "could not dial back");
            None
        }
    }
}

async fn leave(mut messages: Subscriber, id: Uuid) {
    if let Err(error) = messages.unsubscribe().await {
        tracing::debug!(session = short(id), %error, "still listens");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pb::nvcf::connection_config::{Http1Config, Http3Config};
    use crate::pb::nvcf::{ConnectionConfig, StatefulConfig};

    fn config(uri: &str) -> ConnectionConfig {
        let http1 =
            Http1Config { proxy_uri: uri.into(), proxy_authorization_token: "hidden".into() };
        ConnectionConfig { config: Some(Config::Http1Config(http1)) }
    }

    #[test]
    fn work_is_read_with_its_addresses_in_their_order() {
        let http3 = Config::Http3Config(Http3Config::default());
        let work = WorkerInvokeFunctionRequest {
            request_id: "D3F7F247-e42f-4000-8001-c0009dcbb288".into(),
            nca_id: "nca".into(),
            stateful_config: Some(StatefulConfig {
                nvcf_region_of_invoker: "ncp".into(),
                connection_configs: vec![
                    config("http://a/"),
                    ConnectionConfig { config: Some(http3) },
                    ConnectionConfig { config: None },
                    config("http://b/"),
                ],
            }),
            ..WorkerInvokeFunctionRequest::default()
        };
        let read = Work::read(&work.encode_to_vec()).unwrap();
        assert_eq!(short(read.id), "d3f7f247");
        assert_eq!(read.nca, "nca");
        let uris: Vec<_> = read.connections.iter().map(|one| one.http1.as_ref()).collect();
        let uris: Vec<_> = uris.into_iter().map(|one| one.map(|one| &*one.proxy_uri)).collect();
        assert_eq!(uris, [Some("http://a/"), None, None, Some("http://b/")]);
        assert!(!format!("{read:?}").contains("hidden"));
    }

    #[test]
    fn what_is_no_work_is_told_apart() {
        assert!(Work::read(b"\xff\xff").is_err());
        let nameless = WorkerInvokeFunctionRequest::default();
        assert!(Work::read(&nameless.encode_to_vec()).is_err());
    }
}
