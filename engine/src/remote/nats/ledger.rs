//! Published work whose worker has not come, so that it can be taken back when nobody waits for it
//! any more (design 3.23).
//!
//! Each piece of work is entered before it is given to the client library. It leaves when its
//! worker came, when it was refused, or when it was withdrawn. While NATS is away, withdrawals wait
//! here.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;
use uuid::Uuid;

use super::tally::{Skipped, Trigger, WithdrawMeters};
use super::withdraw::{Fate, Queued, Streams, Trouble};
use crate::control::port::{AskTicket, Progress};

/// Pieces of work that are published and not settled: as many as questions may be out.
pub(super) const MOST_UNSETTLED: usize = 65_536;
/// How often a withdrawal that fails is tried while a server is there.
const MOST_TRIES: u8 = 3;
/// When it is tried again.
const TRY_AGAIN: Duration = Duration::from_secs(1);
/// When a publish whose answer never came is looked for again that was not in the stream: it may
/// have been on its way.
const LOOK_AGAIN: Duration = Duration::from_secs(2);
/// When it is tried again after the connection was lost under it.
const AFTER_LOSS: Duration = Duration::from_millis(50);
/// Failures are logged once in this time, with how many there were.
const LOG_EVERY: Duration = Duration::from_secs(1);

/// The published work. A cheap handle.
#[derive(Clone, Debug)]
pub(super) struct Ledger {
    streams: Streams,
    meters: Arc<WithdrawMeters>,
    table: Arc<Mutex<Table>>,
    emptied: Arc<Notify>,
}

#[derive(Debug, Default)]
struct Table {
    entries: HashMap<AskTicket, Entry>,
    /// Work that waits to be withdrawn, by version. A task goes through each queue.
    queues: HashMap<Arc<str>, VecDeque<AskTicket>>,
    /// Whether the gateway ends: then no more work is entered.
    closing: bool,
    /// Failures since the last line about them.
    failures: usize,
    logged: Option<Instant>,
}

#[derive(Debug)]
struct Entry {
    version: Arc<str>,
    id: Uuid,
    stage: Stage,
    /// The connection on which it was published: another one may lead to a server that has lost it.
    epoch: Option<u64>,
    unwanted: Option<Unwanted>,
}

#[derive(Debug)]
enum Stage {
    /// The publish was not answered yet.
    Out,
    /// The work is in the stream, at this place if it is known.
    Stored(Option<u64>),
}

/// Nobody waits for it.
#[derive(Clone, Copy, Debug)]
struct Unwanted {
    trigger: Trigger,
    since: Instant,
    /// How often the withdrawal was tried in vain.
    tries: u8,
    /// Whether the work was not found once.
    absent: bool,
}

impl Ledger {
    pub(super) fn new(streams: Streams, meters: Arc<WithdrawMeters>) -> Self {
        Self { streams, meters, table: Arc::default(), emptied: Arc::default() }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Enters work before its publish is handed to the client library. False: there is no room, or
    /// the gateway ends; it must not be published then, for nobody could withdraw it.
    #[must_use]
    pub(super) fn publishing(&self, ticket: AskTicket, version: Arc<str>, id: Uuid) -> bool {
        let mut table = self.table();
        if table.closing || table.entries.len() >= MOST_UNSETTLED {
            return false;
        }
        let epoch = self.streams.link().epoch();
        let entry = Entry { version, id, stage: Stage::Out, epoch, unwanted: None };
        table.entries.insert(ticket, entry);
        self.meters.keeps(table.entries.len());
        true
    }

    /// The publish was answered, with where the work is in its stream. None: the answer never came,
    /// or said that it is there already.
    pub(super) fn published(&self, ticket: AskTicket, sequence: Option<u64>) {
        let mut table = self.table();
        let Some(entry) = table.entries.get_mut(&ticket) else { return };
        entry.stage = Stage::Stored(sequence);
        if entry.unwanted.is_some() {
            self.queue(&mut table, ticket);
        }
    }

    /// How far a piece of work has come, by what its stream says now.
    pub(super) async fn progress(&self, ticket: AskTicket) -> Progress {
        let entry = {
            let table = self.table();
            let entry = table.entries.get(&ticket);
            entry.map(|Entry { version, id, stage, epoch, .. }| match *stage {
                Stage::Out => None,
                Stage::Stored(sequence) => {
                    let sequence = sequence.filter(|_| *epoch == self.streams.link().epoch());
                    Some(Queued { version: version.clone(), id: *id, sequence })
                }
            })
        };
        match entry.flatten() {
            Some(work) => self.streams.progress(&work).await,
            None => Progress::Unknown,
        }
    }

    /// The publish failed for certain: nothing is in the stream.
    pub(super) fn refused(&self, ticket: AskTicket) {
        if self.forget(ticket).is_some_and(|entry| entry.unwanted.is_some()) {
            self.meters.skipped(Skipped::NothingPending, 1);
        }
    }

    /// The worker has come and has the work, which stays in the stream until the session's end.
    pub(super) fn settled(&self, ticket: AskTicket) {
        if self.forget(ticket).is_some_and(|entry| entry.unwanted.is_some()) {
            self.meters.skipped(Skipped::NothingPending, 1);
        }
    }

    /// Nobody waits for the work any more. It is taken back unless a worker has it; if its publish
    /// is not answered yet, after that answer.
    pub(super) fn withdraw(&self, ticket: AskTicket) {
        self.unwanted(&mut self.table(), ticket, Trigger::ClientDeparted);
    }

    /// Withdraws the work of this core's shards except the one of `life`.
    pub(super) fn forget_core(&self, core: u16, life: u32) {
        let mut table = self.table();
        let old = |ticket: &&AskTicket| ticket.core == core && ticket.life != life;
        let tickets: Vec<AskTicket> = table.entries.keys().filter(old).copied().collect();
        for ticket in tickets {
            self.unwanted(&mut table, ticket, Trigger::ClientDeparted);
        }
    }

    /// Withdraws everything, for a gateway that ends, in at most `limit`, also if NATS is away. From
    /// now on nothing is entered. Returns how many pieces were taken out of their streams meanwhile.
    pub(super) async fn withdraw_all(&self, limit: Duration) -> usize {
        let count = |trigger| self.meters.withdrawn(trigger);
        let all = || count(Trigger::Shutdown) + count(Trigger::ClientDeparted);
        let before = all();
        {
            let mut table = self.table();
            table.closing = true;
            let tickets: Vec<AskTicket> = table.entries.keys().copied().collect();
            if tickets.is_empty() {
                self.meters.skipped(Skipped::NothingPending, 1);
            }
            for ticket in tickets {
                self.unwanted(&mut table, ticket, Trigger::Shutdown);
            }
        }
        if tokio::time::timeout(limit, self.empty()).await.is_err() {
            let mut table = self.table();
            let left = table.entries.len();
            tracing::warn!(
                left,
                "queued work stays in NATS, which did not answer in time: the next gateway takes it \
                 back, at this worker address at once, elsewhere when this one's record has gone"
            );
            self.meters.skipped(Skipped::BudgetExhausted, left);
            table.entries.clear();
            table.queues.values_mut().for_each(VecDeque::clear);
            self.meters.keeps(0);
        }
        usize::try_from(all() - before).unwrap_or(usize::MAX)
    }

    /// Waits until nothing is left.
    async fn empty(&self) {
        loop {
            let emptied = self.emptied.notified();
            if self.table().entries.is_empty() {
                return;
            }
            emptied.await;
        }
    }

    fn unwanted(&self, table: &mut Table, ticket: AskTicket, trigger: Trigger) {
        let Some(entry) = table.entries.get_mut(&ticket) else { return };
        if entry.unwanted.is_some() {
            return;
        }
        let since = Instant::now();
        entry.unwanted = Some(Unwanted { trigger, since, tries: 0, absent: false });
        if let Stage::Stored(_) = entry.stage {
            self.queue(table, ticket);
        }
    }

    /// Puts a withdrawal into the queue of its stream.
    fn queue(&self, table: &mut Table, ticket: AskTicket) {
        let Some(entry) = table.entries.get(&ticket) else { return };
        let version = entry.version.clone();
        let queue = table.queues.entry(version.clone()).or_insert_with(|| {
            tokio::spawn(self.clone().work_off(version));
            VecDeque::new()
        });
        queue.push_back(ticket);
    }

    /// Puts the withdrawal into the queue again after a pause.
    fn queue_after(&self, ticket: AskTicket, pause: Duration) {
        let ledger = self.clone();
        tokio::spawn(async move {
            tokio::time::sleep(pause).await;
            ledger.queue(&mut ledger.table(), ticket);
        });
    }

    fn forget(&self, ticket: AskTicket) -> Option<Entry> {
        let mut table = self.table();
        let entry = table.entries.remove(&ticket);
        self.meters.keeps(table.entries.len());
        if table.entries.is_empty() {
            self.emptied.notify_waiters();
        }
        entry
    }

    /// Withdraws what waits in one stream, until nothing does.
    async fn work_off(self, version: Arc<str>) {
        loop {
            let permit = self.streams.permit().await;
            self.streams.link().up().await;
            let Some((ticket, work, since)) = self.next(&version) else { return };
            match self.streams.look(&version, since).await {
                Ok(look) => {
                    let ledger = self.clone();
                    tokio::spawn(async move {
                        let wanted = || ledger.table().entries.contains_key(&ticket);
                        let fate = ledger.streams.take_back(&work, look, wanted).await;
                        drop(permit);
                        ledger.ended(ticket, fate);
                    });
                }
                Err(trouble) => self.unseen(&version, ticket, trouble).await,
            }
        }
    }

    /// A stream could not be looked at: what waits in it has been tried in vain together.
    async fn unseen(&self, version: &Arc<str>, ticket: AskTicket, trouble: Trouble) {
        if trouble == Trouble::Down {
            if let Some(queue) = self.table().queues.get_mut(version) {
                queue.push_front(ticket);
            }
            // The connection's state may still be on its way to whoever waits for it.
            return tokio::time::sleep(AFTER_LOSS).await;
        }
        let rest = self.table().queues.get_mut(version).map(std::mem::take);
        for ticket in std::iter::once(ticket).chain(rest.into_iter().flatten()) {
            self.ended(ticket, Err(trouble.clone()));
        }
    }

    /// What waits longest in a stream; with nothing left, the stream's task ends.
    fn next(&self, version: &Arc<str>) -> Option<(AskTicket, Queued, Instant)> {
        let mut table = self.table();
        let Table { entries, queues, .. } = &mut *table;
        let queue = queues.get_mut(version)?;
        while let Some(ticket) = queue.pop_front() {
            // Work whose worker has come meanwhile is not in the table any more.
            let Some(Entry { version, id, stage: Stage::Stored(sequence), unwanted, .. }) =
                entries.get(&ticket)
            else {
                continue;
            };
            if let Some(unwanted) = unwanted {
                let work = Queued { version: version.clone(), id: *id, sequence: *sequence };
                return Some((ticket, work, unwanted.since));
            }
        }
        queues.remove(version);
        None
    }

    /// A withdrawal has ended so, or it is tried again.
    fn ended(&self, ticket: AskTicket, fate: Result<Fate, Trouble>) {
        let mut table = self.table();
        let Some(entry) = table.entries.get_mut(&ticket) else { return };
        let Some(unwanted) = &mut entry.unwanted else { return };
        let trigger = unwanted.trigger;
        match fate {
            Ok(Fate::Purged) => self.meters.purged(trigger),
            Ok(Fate::Absent) if matches!(entry.stage, Stage::Stored(None)) && !unwanted.absent => {
                unwanted.absent = true;
                return self.queue_after(ticket, LOOK_AGAIN);
            }
            Ok(Fate::Taken | Fate::Absent) => self.meters.skipped(Skipped::NothingPending, 1),
            Err(Trouble::Down) => return self.queue_after(ticket, AFTER_LOSS),
            Err(Trouble::Denied) => self.meters.skipped(Skipped::Unsupported, 1),
            Err(trouble @ (Trouble::Refused(..) | Trouble::Failed(_))) => {
                unwanted.tries += 1;
                if unwanted.tries < MOST_TRIES {
                    return self.queue_after(ticket, TRY_AGAIN);
                }
                self.meters.failed(trigger);
                table.tell(&trouble);
            }
        }
        drop(table);
        self.forget(ticket);
    }
}

impl Table {
    /// Logs that work stays queued for nobody.
    fn tell(&mut self, trouble: &Trouble) {
        self.failures += 1;
        if self.logged.is_none_or(|logged| logged.elapsed() >= LOG_EVERY) {
            self.logged = Some(Instant::now());
            let count = std::mem::take(&mut self.failures);
            tracing::warn!(error = %trouble, count, "queued work cannot be withdrawn");
        }
    }
}

#[cfg(test)]
mod tests;
