//! What gateways that are dead have left in the request streams: nobody waits for it, so it goes,
//! unless a worker has it (design 3.23).
//!
//! Request ids say who made them. A stream's subjects end in them, so one listing of it tells what
//! there is of whom.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use ringway_proto::id::{Node, RequestIds, parse_request_id};
use tokio::sync::oneshot;
use tokio::time::Instant;
use uuid::Uuid;

use super::nodes::{Liveness, Nodes};
use super::tally::{Trigger, WithdrawMeters};
use super::withdraw::{Fate, MOST_PURGES, Queued, Streams, Trouble};

/// A stream is listed once in this time at most.
const LIST_EVERY: Duration = Duration::from_secs(10);
/// Streams that are listed at a start, and whose last listing is remembered.
const MOST_STREAMS: usize = 4096;
/// Subjects of one stream that are read: as many as it may hold messages (contract NT-1).
const MOST_SUBJECTS: usize = 100_000;
/// Makers of ids that are asked after for one listing.
const MOST_MAKERS: usize = 1024;
/// How often all streams are gone through after a start, while there are makers of whom it is not
/// known whether they live.
const MOST_ROUNDS: usize = 4;

/// Cleans up after gateways that are dead. A cheap handle.
#[derive(Clone, Debug)]
pub(super) struct Predecessors {
    streams: Streams,
    nodes: Nodes,
    meters: Arc<WithdrawMeters>,
    /// When each stream was listed last.
    listed: Arc<Mutex<HashMap<Arc<str>, Instant>>>,
}

/// What came of going through streams.
#[derive(Debug, Default)]
struct Swept {
    /// Pieces of work that were taken out.
    purged: usize,
    /// Pieces of work that a worker has.
    taken: usize,
    /// Makers of whom nothing is known, and streams that could not be gone through.
    undecided: usize,
    /// The latest error.
    trouble: Option<Trouble>,
}

impl Swept {
    /// Something could not be found out: it is tried again, unless the account may not.
    fn failed(trouble: Trouble) -> Self {
        let undecided = usize::from(trouble != Trouble::Denied);
        Self { undecided, trouble: Some(trouble), ..Self::default() }
    }

    /// Logs what came of it, in two lines at most.
    fn tell(&self) {
        let Self { purged, taken, undecided, trouble } = self;
        if *purged > 0 {
            tracing::info!(purged, taken, "withdrew queued work of gateways that are dead");
        }
        // What a missing right costs, and that NATS is away, is said where it is noticed.
        if let Some(trouble @ (Trouble::Refused(..) | Trouble::Failed(_))) = trouble {
            let error = trouble.to_string();
            tracing::warn!(error, undecided, "not all queued work of dead gateways could be found");
        }
    }
}

impl std::ops::AddAssign for Swept {
    fn add_assign(&mut self, other: Self) {
        self.purged += other.purged;
        self.taken += other.taken;
        self.undecided += other.undecided;
        self.trouble = other.trouble.or_else(|| self.trouble.take());
    }
}

impl Predecessors {
    pub(super) fn new(streams: Streams, nodes: Nodes, meters: Arc<WithdrawMeters>) -> Self {
        Self { streams, nodes, meters, listed: Arc::default() }
    }

    /// Goes through all streams once, and waits for that for at most `limit`. What is not done by
    /// then, or cannot be decided yet, goes on by itself; also if NATS is away now.
    pub(super) async fn at_start(&self, limit: Duration) {
        let (done, first) = oneshot::channel();
        tokio::spawn(self.clone().rounds(done));
        // Either end of the wait is fine.
        let _in_time = tokio::time::timeout(limit, first).await;
    }

    async fn rounds(self, done: oneshot::Sender<()>) {
        let mut first = Some(done);
        for _ in 0..MOST_ROUNDS {
            self.streams.link().up().await;
            self.nodes.here().await;
            let swept = self.sweep().await;
            swept.tell();
            if let Some(done) = first.take() {
                // The start of the gateway may have stopped waiting.
                let _nobody = done.send(());
            }
            if swept.undecided == 0 {
                return;
            }
            let pace = self.nodes.pace();
            tokio::time::sleep(pace.dead_after() + pace.refresh).await;
        }
    }

    /// An id or a token of a dead gateway was met at a worker or a client of this version: its
    /// stream is gone through, if that has not just been done.
    pub(super) fn met_dead(&self, version: &str) {
        if !self.may_list(version) {
            return;
        }
        let (this, version) = (self.clone(), Arc::from(version));
        tokio::spawn(async move {
            // What could not be found out is found out when the next one is met.
            this.sweep_stream(&version).await.tell();
        });
    }

    /// Whether a stream's listing is due; it is noted then.
    fn may_list(&self, version: &str) -> bool {
        let now = Instant::now();
        let mut listed = self.listed.lock().unwrap_or_else(PoisonError::into_inner);
        if listed.get(version).is_some_and(|last| now - *last < LIST_EVERY) {
            return false;
        }
        if listed.len() >= MOST_STREAMS {
            listed.retain(|_, last| now - *last < LIST_EVERY);
        }
        if listed.len() >= MOST_STREAMS {
            return false;
        }
        listed.insert(version.into(), now);
        true
    }

    /// Goes through all streams.
    async fn sweep(&self) -> Swept {
        let mut all = Swept::default();
        let versions = match self.streams.versions(MOST_STREAMS).await {
            Ok(versions) => versions,
            Err(trouble) => return Swept::failed(trouble),
        };
        for version in versions {
            self.may_list(&version);
            all += self.sweep_stream(&version).await;
        }
        all
    }

    /// Goes through one stream.
    async fn sweep_stream(&self, version: &Arc<str>) -> Swept {
        let began = Instant::now();
        let held = match self.streams.held(version, MOST_SUBJECTS).await {
            Ok(held) => held,
            Err(trouble) => return Swept::failed(trouble),
        };
        let mut swept = Swept::default();
        let ids = self.of_dead(&held, &mut swept).await;
        let fates = futures_util::stream::iter(ids)
            .map(|id| self.take_back(version, id, began))
            .buffer_unordered(MOST_PURGES);
        let mut fates = std::pin::pin!(fates);
        while let Some(fate) = fates.next().await {
            match fate {
                Ok(Fate::Purged) => swept.purged += 1,
                Ok(Fate::Taken) => swept.taken += 1,
                Ok(Fate::Absent) => {}
                Err(trouble) => swept += Swept::failed(trouble),
            }
        }
        swept
    }

    /// The ids of these that dead gateways have made.
    async fn of_dead(&self, held: &[String], swept: &mut Swept) -> Vec<Uuid> {
        let mut by_maker: HashMap<Node, Vec<Uuid>> = HashMap::new();
        let mut left_out: HashSet<Node> = HashSet::new();
        for id in held.iter().filter_map(|text| parse_request_id(text.as_bytes())) {
            let Some(maker) = RequestIds::maker_of(id) else { continue };
            if by_maker.len() < MOST_MAKERS || by_maker.contains_key(&maker) {
                by_maker.entry(maker).or_default().push(id);
            } else {
                left_out.insert(maker);
            }
        }
        swept.undecided += left_out.len();
        let mut dead = Vec::new();
        for (maker, ids) in by_maker {
            match self.nodes.liveness(maker).await {
                Liveness::Live(_) => {}
                Liveness::Dead => dead.extend(ids),
                Liveness::Unknown => swept.undecided += 1,
            }
        }
        dead
    }

    async fn take_back(
        &self,
        version: &Arc<str>,
        id: Uuid,
        since: Instant,
    ) -> Result<Fate, Trouble> {
        let _permit = self.streams.permit().await;
        let work = Queued { version: version.clone(), id, sequence: None };
        let fate = match self.streams.look(version, since).await {
            Ok(look) => self.streams.take_back(&work, look, || true).await,
            Err(trouble) => Err(trouble),
        };
        match &fate {
            Ok(Fate::Purged) => self.meters.purged(Trigger::ClientDeparted),
            Ok(Fate::Taken | Fate::Absent) | Err(Trouble::Down | Trouble::Denied) => {}
            Err(Trouble::Refused(..) | Trouble::Failed(_)) => {
                self.meters.failed(Trigger::ClientDeparted);
            }
        }
        fate
    }
}

#[cfg(test)]
mod tests;
