//! Work of JetStream: the worker asks for as many sessions as it has free slots, and never for
//! more, since who has a message has its session (contract NT-1).

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use async_nats::jetstream::consumer::Consumer;
use async_nats::jetstream::consumer::pull::{Batch, Config};
use async_nats::jetstream::{AckKind, Message};
use futures_util::{FutureExt, StreamExt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::sleep;

use super::crew::{Crew, told};
use super::session::{self, Work};

/// How long a pull waits for work.
const EXPIRES: Duration = Duration::from_secs(30);
/// Most pulls that are open at once: a consumer takes 512 of all workers together. When all are
/// open there is no work, and slots that come free are asked for once one has ended.
const MAX_PULLS: usize = 32;
/// Between pulls that fail, and between looks for a stream that is not there.
const PAUSE: Duration = Duration::from_millis(500);
/// A pull that ends sooner than this without work was refused.
const QUICK: Duration = Duration::from_millis(100);

/// Takes work until the worker stops.
pub(super) async fn serve(crew: &Arc<Crew>) {
    let Some(consumer) = consumer(crew).await else { return };
    let consumer = Arc::new(consumer);
    let pulls = Arc::new(Semaphore::new(MAX_PULLS));
    loop {
        let next = async {
            let pull = pulls.clone().acquire_owned().await.ok()?;
            let mut slots = crew.slots.clone().acquire_owned().await.ok()?;
            let more = u32::try_from(crew.slots.available_permits()).unwrap_or(u32::MAX);
            if let Ok(more) = crew.slots.clone().try_acquire_many_owned(more) {
                slots.merge(more);
            }
            Some((pull, slots))
        };
        tokio::select! {
            biased;
            () = told(crew.stopping.clone()) => return,
            next = next => {
                let Some((pull, slots)) = next else { return };
                tokio::spawn(one(crew.clone(), consumer.clone(), slots, pull));
            }
        }
    }
}

/// The consumer, once it is there; none if the worker stops before.
async fn consumer(crew: &Crew) -> Option<Consumer<Config>> {
    let stream = format!("rq_{}_{}", crew.options.region, crew.options.version);
    let name = format!("{stream}_workers");
    let mut told_so = false;
    loop {
        let looked = tokio::select! {
            () = told(crew.stopping.clone()) => return None,
            looked = crew.jetstream.get_consumer_from_stream(&name, &stream) => looked,
        };
        match looked {
            Ok(consumer) => {
                tracing::info!(stream, "taking work");
                return Some(consumer);
            }
            Err(error) if !told_so => {
                told_so = true;
                tracing::warn!(stream, %error, "no consumer to take work from; looking again");
            }
            Err(error) => tracing::debug!(stream, %error, "no consumer yet"),
        }
        sleep(PAUSE).await;
    }
}

/// One pull, with a slot for each session that it may bring.
async fn one(
    crew: Arc<Crew>,
    consumer: Arc<Consumer<Config>>,
    mut slots: OwnedSemaphorePermit,
    pull: OwnedSemaphorePermit,
) {
    let begun = Instant::now();
    let mut reached = crew.reached.clone();
    reached.mark_unchanged();
    let batch = consumer.batch().max_messages(slots.num_permits()).expires(EXPIRES).messages();
    let mut brought = 0;
    match batch.await {
        Ok(mut batch) => loop {
            let next = tokio::select! {
                biased;
                () = told(crew.stopping.clone()) => {
                    give_back(&mut batch).await;
                    return;
                }
                // What was asked of the server before is forgotten by it.
                _ = reached.changed() => break,
                next = batch.next() => next,
            };
            match next {
                Some(Ok(message)) => {
                    brought += 1;
                    let slot = slots.split(1).unwrap_or_else(|| unreachable!("one a message"));
                    begin(&crew, message, slot);
                }
                Some(Err(error)) => tracing::debug!(%error, "a pull was refused"),
                None => break,
            }
        },
        Err(error) => tracing::debug!(%error, "no pull"),
    }
    if brought == 0 && begun.elapsed() < QUICK {
        // Else a stream that is gone would be asked in a tight loop.
        sleep(PAUSE).await;
    }
    drop((slots, pull));
}

/// Begins a session.
fn begin(crew: &Arc<Crew>, message: Message, slot: OwnedSemaphorePermit) {
    let published = message.info().map(|info| info.published.unix_timestamp_nanos()).ok();
    let claim = published.and_then(|at| {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).ok()?;
        let at = Duration::from_nanos(u64::try_from(at).ok()?);
        // The server's clock may be ahead.
        Some(now.saturating_sub(at))
    });
    crew.times.claimed(claim);
    let work = Work::read(&message.payload);
    tokio::spawn(session::pulled(crew.clone(), work, claim, message, slot));
}

/// What has come and cannot be taken any more is for another worker at once. What comes later is
/// given out again when its time is over (contract NT-1).
async fn give_back(batch: &mut Batch) {
    while let Some(Some(Ok(message))) = batch.next().now_or_never() {
        if let Err(error) = message.ack_with(AckKind::Nak(None)).await {
            tracing::warn!(%error, "work could not be given back");
        }
    }
}
