//! The record of a session, with which gateways find it (contract 6.3 and 6.4).

use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::Context;
use prost::Message;
use ringway_work::short;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use uuid::Uuid;

use super::crew::Crew;
use crate::pb::nvcf::StatefulSessionTracking;

/// How often it is written again.
const AGAIN: Duration = Duration::from_secs(20 * 60);
/// Between attempts that fail; they go on for ever.
const PAUSE: Duration = Duration::from_secs(1);
/// How long its removal may take.
const REMOVAL: Duration = Duration::from_secs(5);

/// A session's record.
pub(super) struct Record {
    crew: Arc<Crew>,
    id: Uuid,
    over: oneshot::Sender<()>,
    writing: JoinHandle<()>,
}

impl Record {
    /// Writes it, and writes it again.
    pub(super) fn keep(crew: &Arc<Crew>, id: Uuid, nca: String) -> Self {
        let (over, end) = oneshot::channel();
        let record = StatefulSessionTracking {
            function_id: crew.options.function.to_string(),
            function_version_id: crew.options.version.to_string(),
            invoker_nca_id: nca,
        };
        let subject = subject(crew, id);
        let writing = tokio::spawn(write(
            crew.jetstream.clone(),
            (subject, record.encode_to_vec()),
            short(id),
            end,
        ));
        Self { crew: crew.clone(), id, over, writing }
    }

    /// Removes it. What is on its way is waited for, else it would arrive behind the removal.
    pub(super) async fn remove(self) {
        // The task may have ended by a panic.
        let _ = self.over.send(());
        let subject = subject(&self.crew, self.id);
        let stream = format!("stateful_session_lookup_{}", self.crew.options.region);
        let removed = timeout(REMOVAL, async {
            let _ = self.writing.await;
            let stream = self.crew.jetstream.get_stream_no_info(&stream).await;
            let stream = stream.map_err(|error| error.to_string())?;
            stream.purge().filter(subject).await.map_err(|error| error.to_string())
        });
        let why = match removed.await {
            Ok(Ok(_)) => return,
            Ok(Err(why)) => why,
            Err(_) => "it took too long".to_owned(),
        };
        tracing::warn!(session = short(self.id), why, "the session's record was not removed");
    }
}

fn subject(crew: &Crew, id: Uuid) -> String {
    format!("stateful_session.lookup.{}.{}.{id}", crew.options.region, crew.options.version)
}

async fn write(
    jetstream: Context,
    (subject, record): (String, Vec<u8>),
    session: String,
    mut end: oneshot::Receiver<()>,
) {
    let mut told = false;
    loop {
        let written = async {
            let acknowledged = jetstream.publish(subject.clone(), record.clone().into()).await?;
            acknowledged.await
        };
        let pause = match written.await {
            Ok(_) => {
                tracing::debug!(session, "registered");
                AGAIN
            }
            Err(error) => {
                if !std::mem::replace(&mut told, true) {
                    tracing::warn!(session, %error, "not registered; trying again");
                }
                PAUSE
            }
        };
        tokio::select! {
            _ = &mut end => return,
            () = sleep(pause) => {}
        }
    }
}
