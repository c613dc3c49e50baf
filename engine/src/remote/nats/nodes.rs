//! The name of this gateway among the others: a record in a key-value bucket that all gateways of a
//! region share (design 3.22).
//!
//! A node is a pair of a number and an incarnation. The pair is drawn at random and entered with
//! `create`, so that no two gateways have the same one. A record is there for as long as it is
//! refreshed. Nobody watches records: one is read when an id names its node. A node is called
//! *dead* only for one of two reasons. Its record names this very process's address, which nobody
//! else can have now; or its record was missing for two times to live while ours was there all the
//! time.
//!
//! What is decided about all this is in `claims` and `known`, which ask nobody. This file and `bucket`
//! ask NATS.

mod bucket;
mod claims;
mod known;
mod record;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ringway_proto::id::{NODE_LIMIT, Node};
use ringway_proto::time::Time;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::withdraw::Trouble;
use crate::keys::Keys;
use bucket::Bucket;
pub(super) use bucket::NodeConfig;
pub use bucket::Relay;
use claims::{Claims, Heard, Next, Told};
pub(super) use known::Liveness;
pub(super) use record::{Pace, Record, read as read_record};

/// The wait before a record is entered again, after the connection was lost meanwhile.
const SOON: Duration = Duration::from_millis(50);

/// This gateway as one among the others. A cheap handle.
#[derive(Clone, Debug)]
pub(super) struct Nodes {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    bucket: Bucket,
    me: Node,
    /// What is decided; never held while NATS is asked.
    claims: Mutex<Claims>,
    /// The origin of the time that `claims` is given.
    began: Instant,
    /// Whether our record was entered.
    here: watch::Sender<bool>,
    /// How many gateways there are, as far as is known.
    alive: AtomicU64,
    refreshing: Mutex<Option<AbortHandle>>,
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
        let began = Instant::now();
        let record = Record::of(place.worker.clone(), u64::from_be_bytes(random()?));
        let keys = place.keys.as_ref().map(|keys| keys.borrow().clone());
        let mut claims = Claims::new(draw()?, record, keys, place.pace);
        let bucket = Bucket::new(place);
        let entering = enter(&mut claims, &bucket, began);
        if let Ok(entered) = tokio::time::timeout(limit, entering).await {
            entered?;
        }
        claims.settle();
        let inner = Inner {
            bucket,
            me: claims.me(),
            claims: Mutex::new(claims),
            began,
            here: watch::Sender::new(false),
            alive: AtomicU64::new(0),
            refreshing: Mutex::default(),
        };
        let nodes = Self { inner: Arc::new(inner) };
        nodes.tell();
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
        self.inner.bucket.place.addresses().relay
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
        let known = self.claims().known(node, self.now());
        match known {
            Some(liveness) => liveness,
            None => self.look_for(node).await,
        }
    }

    /// Takes our record away, for a gateway that ends, in at most `limit`.
    pub(super) async fn leave(&self, limit: Duration) {
        let task = self.inner.refreshing.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(task) = task {
            task.abort();
        }
        self.inner.here.send_replace(false);
        let connection = self.inner.bucket.place.link.epoch();
        self.claims().leave(connection);
        // A record that stays in spite of that expires by itself.
        let _in_time = tokio::time::timeout(limit, self.claim(connection)).await;
    }

    /// Ends a gateway as SIGKILL does: its record stays as it is.
    #[cfg(test)]
    pub(super) fn kill(&self) {
        if let Some(task) = self.inner.refreshing.lock().unwrap().take() {
            task.abort();
        }
    }

    /// The number of our record's stay in the bucket; none if the record may be gone by now.
    #[cfg(test)]
    fn spell(&self) -> Option<u64> {
        self.claims().spell(self.now())
    }

    /// What is decided, with the keys that there are now.
    fn claims(&self) -> MutexGuard<'_, Claims> {
        let mut claims = self.inner.claims.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(keys) = &self.inner.bucket.place.keys {
            claims.replace(Some(keys.borrow().clone()));
        }
        claims
    }

    fn now(&self) -> Time {
        Time::ZERO + self.inner.began.elapsed()
    }

    /// Reads a node's record.
    async fn look_for(&self, node: Node) -> Liveness {
        let look = self.claims().look(node, self.now());
        let found = self.inner.bucket.read(node).await;
        let found = found.map(|found| found.map(|(bytes, _revision)| bytes));
        let liveness = self.claims().looked(look, found, self.now());
        self.tell();
        liveness
    }

    /// Refreshes our record, and looks for those that were missed, until [`Nodes::leave`].
    async fn refresh(self) {
        let mut state = self.inner.bucket.place.link.state.clone();
        let mut keys = self.inner.bucket.place.keys.clone();
        loop {
            self.inner.bucket.place.link.up().await;
            state.mark_unchanged();
            let connection = self.inner.bucket.place.link.epoch();
            self.claims().due(connection);
            self.claim(connection).await;
            let alive = self.inner.bucket.count().await.unwrap_or_default();
            self.inner.alive.store(alive, Ordering::Relaxed);
            let missed = self.claims().missed();
            for node in missed {
                self.look_for(node).await;
            }
            tokio::select! {
                () = tokio::time::sleep(self.pace().refresh) => {}
                // Our record is signed anew at once, and what others have signed is read anew.
                () = replaced(&mut keys) => {}
                changed = state.changed() => if changed.is_err() {
                    // The gateway has given NATS up.
                    return;
                },
            }
        }
    }

    /// Does what is to be done about our record now, by this connection. Behind another one there may
    /// be a bucket whose revisions begin anew, so nothing that was read before counts there.
    async fn claim(&self, connection: Option<u64>) {
        let bucket = &self.inner.bucket;
        loop {
            let next = self.claims().next(&bucket.place.addresses());
            let Next::Ask(ask) = next else { return };
            let same = bucket.place.link.epoch() == connection;
            let heard = if same { bucket.ask(&ask).await } else { Heard::Failed(Trouble::Down) };
            self.claims().heard(heard, self.now());
            self.tell();
        }
    }

    /// Tells the log, and who waits until we are entered.
    fn tell(&self) {
        let (told, entered) = {
            let mut claims = self.claims();
            (claims.told(), claims.was_entered())
        };
        if entered {
            self.inner.here.send_if_modified(|here| !std::mem::replace(here, true));
        }
        for told in told {
            match told {
                Told::Unreadable(node, why) => {
                    let node = node.to_string();
                    tracing::warn!(node, why, "the record of a gateway cannot be read");
                }
                Told::Trouble(error) => {
                    tracing::warn!(error, "this gateway's record cannot be entered");
                }
                Told::Taken => tracing::error!(
                    number = self.inner.me.number(),
                    incarnation = self.inner.me.incarnation(),
                    "this gateway's name among the others was taken while NATS was away: \
                     start one of the two again"
                ),
            }
        }
    }
}

/// Enters a pair that nobody has.
async fn enter(
    claims: &mut Claims,
    bucket: &Bucket,
    began: Instant,
) -> Result<(), getrandom::Error> {
    loop {
        // Whenever this is given up, the pair is none that is known to be taken.
        if claims.next(&bucket.place.addresses()) == Next::Draw {
            claims.drawn(draw()?);
        }
        bucket.place.link.up().await;
        match claims.next(&bucket.place.addresses()) {
            Next::Ask(ask) => {
                let heard = bucket.ask(&ask).await;
                claims.heard(heard, Time::ZERO + began.elapsed());
            }
            Next::Pause => {
                tokio::time::sleep(SOON).await;
                claims.again();
            }
            Next::Draw | Next::Rest => return Ok(()),
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
