//! Work of streaming functions: requests to a queue group, accepted by any reply (contract CP-12).

use std::sync::Arc;
use std::time::Duration;

use async_nats::Subscriber;
use futures_util::StreamExt;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::sleep;

use super::Streaming;
use super::crew::{Crew, told};
use super::session::{self, Work};

/// Between attempts to listen.
const PAUSE: Duration = Duration::from_millis(500);

/// Takes work until the worker stops.
pub(super) async fn serve(crew: &Arc<Crew>, streaming: &Streaming) {
    let subject = format!("llsrq.{}.{}.*", streaming.region, crew.options.version);
    let group = format!("llsrq_{}_{}_workers", streaming.region, crew.options.version);
    loop {
        let slot = tokio::select! {
            biased;
            () = told(crew.stopping.clone()) => return,
            slot = crew.slots.clone().acquire_owned() => slot,
        };
        let Ok(slot) = slot else { return };
        match crew.client.queue_subscribe(subject.clone(), group.clone()).await {
            Ok(requests) => listen(crew, requests, slot, streaming.window).await,
            Err(error) => {
                tracing::warn!(%error, "cannot listen for work; trying again");
                sleep(PAUSE).await;
            }
        }
    }
}

/// Takes work while there are slots for it. Then it does not listen any more, so that the server
/// gives the work to others, or says that there is nobody.
async fn listen(
    crew: &Arc<Crew>,
    mut requests: Subscriber,
    mut slot: OwnedSemaphorePermit,
    window: Duration,
) {
    loop {
        let request = tokio::select! {
            biased;
            () = told(crew.stopping.clone()) => None,
            request = requests.next() => request,
        };
        let Some(request) = request else { return };
        let Some(reply) = request.reply else {
            tracing::warn!("work that cannot be accepted: it has no reply subject");
            continue;
        };
        let work = match Work::read(&request.payload) {
            Ok(work) => work,
            Err(why) => {
                tracing::warn!(why, "work that cannot be read");
                continue;
            }
        };
        if let Err(error) = crew.client.publish(reply, "".into()).await {
            tracing::warn!(%error, "work could not be accepted");
            continue;
        }
        crew.times.claimed(work.claim());
        tokio::spawn(session::requested(crew.clone(), work, window, slot));
        let Ok(next) = crew.slots.clone().try_acquire_owned() else { return };
        slot = next;
    }
}
