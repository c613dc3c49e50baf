//! The name of this gateway among the others: a record in a key-value bucket that all gateways of a
//! region share (design 3.22).
//!
//! A node is a pair of a number and an incarnation. The pair is drawn at random and entered with
//! `create`, so that no two gateways have the same one. A record is there for as long as it is
//! refreshed. Nobody watches records: one is read when an id names its node. A node is called
//! *dead* only for one of two reasons. Its record names this very process's address, which nobody
//! else can have now; or its record was missing for two times to live while ours was there all the
//! time.

mod bucket;

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ringway_proto::id::{NODE_LIMIT, Node};
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::withdraw::Trouble;
use crate::keys::Keys;
pub use bucket::Relay;
use bucket::{Bucket, Entered, Found};
pub(super) use bucket::{NodeConfig, Pace, Record, read as read_record};

/// Pairs drawn before it is given up that one is free: of 2^28, the first one nearly always is.
const MOST_DRAWS: usize = 16;
/// How long a record that was read is believed.
const BELIEVED_FOR: Duration = Duration::from_secs(5);
/// The wait before a record is entered again, after the connection was lost meanwhile.
const SOON: Duration = Duration::from_millis(50);
/// Nodes of which something is remembered, of each kind.
const MOST_KNOWN: usize = 4096;
/// Nodes whose missing records are looked for at each refresh.
const MOST_MISSED: usize = 64;

/// Whether a node is alive, as far as that is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Liveness {
    /// The node is alive; this is its record.
    Live(Record),
    /// The node is dead: nothing will ever come of what it began.
    Dead,
    /// Not known: the node may be alive or dead.
    Unknown,
}

/// This gateway as one among the others. A cheap handle.
#[derive(Clone, Debug)]
pub(super) struct Nodes {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    bucket: Bucket,
    me: Node,
    record: Record,
    presence: Mutex<Presence>,
    /// Whether our record is in the bucket.
    here: watch::Sender<bool>,
    known: Mutex<Known>,
    /// How many gateways there are, as far as is known.
    alive: AtomicU64,
    refreshing: Mutex<Option<AbortHandle>>,
}

/// Our own record.
#[derive(Debug, Default)]
struct Presence {
    revision: Option<u64>,
    /// Since when our record has been there all the time.
    since: Option<Instant>,
    /// When our record was refreshed last.
    last: Option<Instant>,
    /// The trouble that is in the log already.
    told: Option<String>,
}

/// Records of others.
#[derive(Debug, Default)]
struct Known {
    believed: HashMap<Node, (Instant, Liveness)>,
    missed: HashMap<Node, Missed>,
    dead: HashSet<Node>,
}

/// A record that is not there.
#[derive(Clone, Copy, Debug)]
struct Missed {
    since: Instant,
    /// When the record was looked for last.
    last: Instant,
}

impl Nodes {
    /// Draws a pair that nobody has and enters it. If that does not come about within `limit`, for
    /// instance because NATS is away, the pair that was drawn last is kept and entered later.
    ///
    /// # Errors
    /// The kernel gives no random numbers.
    pub(super) async fn enter(
        place: NodeConfig,
        limit: Duration,
    ) -> Result<Self, getrandom::Error> {
        let record = Record::of(&place, u64::from_be_bytes(random()?));
        let bucket = Bucket::new(place);
        let mut me = draw()?;
        let entering = async {
            for _ in 0..MOST_DRAWS {
                bucket.place.link.up().await;
                match bucket.create(me, &record).await {
                    Ok(Entered::At(revision)) => return Ok(Some(revision)),
                    Ok(Entered::Taken) => me = draw()?,
                    Err(Trouble::Down) => tokio::time::sleep(SOON).await,
                    Err(trouble) => {
                        bucket.tell(&mut None, &trouble);
                        break;
                    }
                }
            }
            Ok::<_, getrandom::Error>(None)
        };
        let revision = match tokio::time::timeout(limit, entering).await {
            Ok(entered) => entered?,
            Err(_too_late) => None,
        };
        let inner = Inner {
            bucket,
            me,
            record,
            presence: Mutex::default(),
            here: watch::Sender::new(false),
            known: Mutex::default(),
            alive: AtomicU64::new(0),
            refreshing: Mutex::default(),
        };
        let nodes = Self { inner: Arc::new(inner) };
        if let Some(revision) = revision {
            nodes.is_here(revision, false);
        }
        let task = tokio::spawn(nodes.clone().refresh()).abort_handle();
        *nodes.inner.refreshing.lock().unwrap_or_else(PoisonError::into_inner) = Some(task);
        Ok(nodes)
    }

    /// This gateway's pair.
    pub(super) fn me(&self) -> Node {
        self.inner.me
    }

    /// How many gateways there were at the last refresh, this one included; 0: nobody knows.
    pub(super) fn alive(&self) -> u64 {
        self.inner.alive.load(Ordering::Relaxed)
    }

    /// The address where others reach this gateway, as far as it is known.
    pub(super) fn relay(&self) -> Option<SocketAddr> {
        self.inner.bucket.place.relay()
    }

    /// How long things take.
    pub(super) fn pace(&self) -> Pace {
        self.inner.bucket.place.pace
    }

    /// Waits until our record is in the bucket; for ever if the account may not use one.
    pub(super) async fn here(&self) {
        let mut here = self.inner.here.subscribe();
        // The sender is ours.
        let _never_gone = here.wait_for(|here| *here).await;
    }

    /// Whether a node is alive: at most one read of the bucket.
    pub(super) async fn liveness(&self, node: Node) -> Liveness {
        if node == self.inner.me {
            return Liveness::Live(self.inner.record.clone());
        }
        let believed = self.known().believed.get(&node).cloned();
        if let Some((read, liveness)) = believed
            && read.elapsed() < BELIEVED_FOR.min(self.pace().refresh)
        {
            return liveness;
        }
        let liveness = self.look_for(node).await;
        let mut known = self.known();
        if known.believed.len() >= MOST_KNOWN {
            known.believed.retain(|_, (read, _)| read.elapsed() < BELIEVED_FOR);
        }
        if known.believed.len() < MOST_KNOWN {
            known.believed.insert(node, (Instant::now(), liveness.clone()));
        }
        liveness
    }

    /// Takes our record away, for a gateway that ends, in at most `limit`.
    pub(super) async fn leave(&self, limit: Duration) {
        let task = self.inner.refreshing.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(task) = task {
            task.abort();
        }
        let held = self.presence().revision.take().is_some();
        self.inner.here.send_replace(false);
        if held {
            let gone = self.inner.bucket.delete(self.inner.me);
            // A record that stays in spite of that expires by itself.
            let _in_time = tokio::time::timeout(limit, gone).await;
        }
    }

    /// Ends a gateway as SIGKILL does: its record stays as it is.
    #[cfg(test)]
    pub(super) fn kill(&self) {
        if let Some(task) = self.inner.refreshing.lock().unwrap().take() {
            task.abort();
        }
    }

    fn presence(&self) -> MutexGuard<'_, Presence> {
        self.inner.presence.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.inner.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Since when our record has been there all the time; none if it may be gone by now.
    fn here_since(&self) -> Option<Instant> {
        let presence = self.presence();
        let fresh = presence.last.is_some_and(|last| last.elapsed() < self.pace().ttl);
        presence.since.filter(|_| fresh)
    }

    /// Reads a node's record and draws the conclusions.
    async fn look_for(&self, node: Node) -> Liveness {
        let asked = Instant::now();
        let found = self.inner.bucket.read(node).await;
        let here = self.here_since();
        let mut known = self.known();
        match found {
            Ok(Found::Record(record)) if record.worker != self.inner.record.worker => {
                known.missed.remove(&node);
                known.dead.remove(&node);
                Liveness::Live(record)
            }
            // A node whose record cannot be read may well live.
            Ok(Found::Unreadable) | Err(_) => Liveness::Unknown,
            // Without a record of our own, we may be the one who has no connection.
            Ok(Found::Record(_) | Found::Nothing) if here.is_none() => Liveness::Unknown,
            Ok(Found::Record(_)) => {
                known.bury(node);
                Liveness::Dead
            }
            Ok(Found::Nothing) if known.dead.contains(&node) => Liveness::Dead,
            Ok(Found::Nothing) => {
                let missed = known.miss(node, asked, self.pace().ttl);
                let long = missed.is_some_and(|missed| {
                    here.is_some_and(|here| here <= missed.since)
                        && missed.since.elapsed() >= self.pace().dead_after()
                });
                if !long {
                    return Liveness::Unknown;
                }
                known.bury(node);
                Liveness::Dead
            }
        }
    }

    /// Refreshes our record, and looks for those that were missed, until [`Nodes::leave`].
    async fn refresh(self) {
        let mut state = self.inner.bucket.place.link.state.clone();
        let mut keys = self.inner.bucket.place.keys.clone();
        loop {
            self.inner.bucket.place.link.up().await;
            state.mark_unchanged();
            self.refresh_once().await;
            let alive = self.inner.bucket.count().await.unwrap_or_default();
            self.inner.alive.store(alive, Ordering::Relaxed);
            let missed: Vec<Node> = self.known().missed.keys().copied().collect();
            for node in missed {
                self.look_for(node).await;
            }
            tokio::select! {
                () = tokio::time::sleep(self.pace().refresh) => {}
                // Our record is signed anew at once, and what others have signed is read anew.
                () = replaced(&mut keys) => self.known().believed.clear(),
                changed = state.changed() => if changed.is_err() {
                    // The gateway has given NATS up.
                    return;
                },
            }
        }
    }

    async fn refresh_once(&self) {
        let Inner { bucket, me, record, .. } = &*self.inner;
        let revision = self.presence().revision;
        let refreshed = match revision {
            Some(revision) => bucket.update(*me, record, revision).await,
            None => bucket.create(*me, record).await.map(|entered| match entered {
                Entered::At(revision) => Some(revision),
                Entered::Taken => None,
            }),
        };
        match refreshed {
            Ok(Some(revision)) => return self.is_here(revision, true),
            Err(trouble @ (Trouble::Down | Trouble::Denied)) => return self.is_away(&trouble),
            // Servers do not all report another revision in the same way.
            Ok(None) | Err(Trouble::Failed(_) | Trouble::Refused(..)) => {}
        }
        // Our record is not there as it was: NATS came back without it, or an answer was lost.
        match bucket.read_with_revision(*me).await {
            Ok(Some((Found::Record(found), revision))) if found.is_same(record) => {
                self.is_here(revision, true);
            }
            // Ours was there, so who has written over it is no gateway of this cluster.
            Ok(Some((Found::Unreadable, over))) if revision.is_some() => {
                match bucket.update(*me, record, over).await {
                    Ok(Some(revision)) => self.is_here(revision, false),
                    // The record was written once more: the next refresh looks again.
                    Ok(None) => self.is_overwritten(),
                    Err(trouble) => self.is_away(&trouble),
                }
            }
            Ok(Some((Found::Record(_) | Found::Unreadable, _))) => self.is_taken(),
            Ok(Some((Found::Nothing, _)) | None) => match bucket.create(*me, record).await {
                Ok(Entered::At(revision)) => self.is_here(revision, false),
                Ok(Entered::Taken) => self.is_taken(),
                Err(trouble) => self.is_away(&trouble),
            },
            Err(trouble) => self.is_away(&trouble),
        }
    }

    /// Our record is there; `still`: as it was before.
    fn is_here(&self, revision: u64, still: bool) {
        let now = Instant::now();
        let mut presence = self.presence();
        // A record that was not refreshed for so long may have been gone meanwhile.
        let unbroken = still && presence.last.is_some_and(|last| now - last < self.pace().ttl);
        if !unbroken || presence.since.is_none() {
            presence.since = Some(now);
        }
        presence.last = Some(now);
        presence.revision = Some(revision);
        presence.told = None;
        drop(presence);
        self.inner.here.send_if_modified(|here| !std::mem::replace(here, true));
    }

    /// Somebody writes over our record faster than it is put back.
    fn is_overwritten(&self) {
        // The revision of our record stays, so that the record is put back and not given up.
        self.presence().since = None;
    }

    fn is_away(&self, trouble: &Trouble) {
        // With a server gone there is nothing to say that the connection does not say.
        if *trouble != Trouble::Down {
            self.inner.bucket.tell(&mut self.presence().told, trouble);
        }
    }

    /// Somebody else has drawn the same pair while we could not enter it. Ids of ours are out under
    /// it, so it is kept.
    fn is_taken(&self) {
        let mut presence = self.presence();
        presence.revision = None;
        presence.since = None;
        let text = "its pair is another gateway's";
        if presence.told.as_deref() != Some(text) {
            presence.told = Some(text.into());
            tracing::error!(
                number = self.inner.me.number(),
                incarnation = self.inner.me.incarnation(),
                "this gateway's name among the others was taken while NATS was away: \
                 start one of the two again"
            );
        }
    }
}

/// Waits for other keys; for ever if there are none.
async fn replaced(keys: &mut Option<watch::Receiver<Arc<Keys>>>) {
    if let Some(keys) = keys
        && keys.changed().await.is_ok()
    {
        return;
    }
    std::future::pending().await
}

impl Known {
    fn bury(&mut self, node: Node) {
        self.missed.remove(&node);
        if self.dead.len() >= MOST_KNOWN {
            // A node that is asked about again is found dead again.
            self.dead.clear();
        }
        self.dead.insert(node);
    }

    /// Notes that a record is not there. A record that nobody has looked for during `ttl` may have
    /// been there in between. None if no more can be missed.
    fn miss(&mut self, node: Node, now: Instant, ttl: Duration) -> Option<Missed> {
        let room = self.missed.len() < MOST_MISSED || self.missed.contains_key(&node);
        if !room {
            return None;
        }
        let missed = self.missed.entry(node).or_insert(Missed { since: now, last: now });
        if now.saturating_duration_since(missed.last) >= ttl {
            missed.since = now;
        }
        missed.last = missed.last.max(now);
        Some(*missed)
    }
}

fn random<const N: usize>() -> Result<[u8; N], getrandom::Error> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes)?;
    Ok(bytes)
}

fn draw() -> Result<Node, getrandom::Error> {
    let [a, b, c, d] = random()?;
    let number = u16::from_be_bytes([a, b]) % NODE_LIMIT;
    Ok(Node::new(number, u16::from_be_bytes([c, d])).expect("it is below the limit"))
}

#[cfg(test)]
mod tests;
