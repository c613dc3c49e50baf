//! Work on one side, polling workers on the other, and the rules by which they meet
//! (design 4.3).
//!
//! New work waits in the order it came, per function version. A reconnect waits for a poll that
//! lists its request id. A poll gets one answer: work, or nothing after [`POLL_WAIT`].

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use ringway_proto::id::Node;
use ringway_proto::time::Time;

use super::super::work::{FunctionVersion, Ticket, Work, WorkKind};
use super::poll::PollRequest;
use crate::conn::ConnId;

/// How long a poll waits for work.
pub const POLL_WAIT: Duration = Duration::from_secs(30);

/// How long work waits for its worker to dial back if the answer that carried it may be lost. Then
/// the work is queued again. Two workers may have it by then, but its token lets only one of them
/// in.
const DOUBT: Duration = Duration::from_secs(5);

/// A poll: the connection it came by. A connection has at most one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PollId {
    /// Node of the connection.
    pub node: Node,
    /// Core of the connection.
    pub core: u16,
    /// The connection.
    pub conn: ConnId,
    /// Changes each time the connection gives up waiting, so that a late answer is recognised and
    /// dropped.
    pub round: u64,
}

/// The answer to a poll.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PollAnswer {
    /// 204.
    Nothing,
    /// 200 with [`Work::to_json`].
    Work(Box<Work>),
}

/// A function version's queue has no room for more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueFull;

/// The limit of waiting polls is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooManyPolls;

/// How much may wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DispatchLimits {
    /// Most work items of a function version that clients wait for. Spares may wait too, as long as
    /// both together are no more than this.
    pub queue: usize,
    /// Polls in all.
    pub polls: usize,
}

/// A work item in its line.
#[derive(Debug)]
struct Queued {
    work: Box<Work>,
    /// Since when the item waits; see [`Dispatch::lose_patience`].
    since: Time,
}

type Map<K, V> = HashMap<K, V, foldhash::fast::RandomState>;

/// Work items by the number under which they were submitted, which is their order.
type Line = BTreeMap<u64, Queued>;

/// One function version.
#[derive(Debug, Default)]
struct Queue {
    new: Line,
    reconnect: Line,
    spare: Line,
    /// Waiting polls by serial number, oldest first: all of them here, and below those with a free
    /// slot.
    polls: BTreeMap<u64, PollId>,
    with_slots: BTreeMap<u64, PollId>,
    /// When a worker with more than one free slot last asked for work. Such a worker has room for
    /// more, and will ask again.
    roomy: Option<Time>,
}

#[derive(Debug)]
struct Waiting {
    serial: u64,
    until: Time,
    key: FunctionVersion,
    request: PollRequest,
}

/// An answer that its connection has not taken yet.
#[derive(Debug)]
struct Offer {
    order: u64,
    /// Since when the work waits.
    since: Time,
    /// None if the work was withdrawn after the answer had been handed out.
    work: Option<Box<Work>>,
    /// The answer is still in `answers`: no core has seen it.
    unseen: bool,
}

#[derive(Clone, Debug)]
enum WorkState {
    Queued { order: u64 },
    Offered(PollId),
    Doubted { until: Time, order: u64 },
}

/// Queues of work and waiting polls.
#[derive(Debug)]
pub struct Dispatch {
    limits: DispatchLimits,
    queues: Map<FunctionVersion, Queue>,
    /// Where each work item is, until it is delivered or withdrawn.
    places: Map<Ticket, (FunctionVersion, WorkKind, WorkState)>,
    waiting: Map<PollId, Waiting>,
    offers: Map<PollId, Offer>,
    /// Work whose answer may be lost, by the time when it is queued again and by its order. The
    /// attachment of each item still waits.
    doubted: BTreeMap<(Time, u64), Queued>,
    expiry: BTreeMap<(Time, u64), PollId>,
    answers: Vec<(PollId, PollAnswer)>,
    /// Function versions whose work was queued again.
    again: Vec<FunctionVersion>,
    /// Numbers both work and polls, in the order they came.
    next: u64,
}

impl Dispatch {
    /// Empty queues.
    #[must_use]
    pub fn new(limits: DispatchLimits) -> Self {
        Self {
            limits,
            queues: Map::default(),
            places: Map::default(),
            waiting: Map::default(),
            offers: Map::default(),
            doubted: BTreeMap::new(),
            expiry: BTreeMap::new(),
            answers: Vec::new(),
            again: Vec::new(),
            next: 0,
        }
    }

    /// Gives work to a waiting poll, or queues it. Work that was submitted before is not taken
    /// twice.
    ///
    /// # Errors
    /// The function version's queue is full.
    pub fn submit(&mut self, work: Work, now: Time) -> Result<(), QueueFull> {
        if self.places.contains_key(&work.ticket) {
            return Ok(());
        }
        let key = work.key();
        let queue = self.queues.entry(key.clone()).or_default();
        let taker = queue.taker(&work, &self.waiting, &self.offers);
        if taker.is_none() && queue.before(work.kind) >= self.limits.queue {
            self.tidy(&key);
            return Err(QueueFull);
        }
        let order = self.number();
        self.place(key, order, Queued { work: Box::new(work), since: now }, taker);
        Ok(())
    }

    /// Whether new work of a function version has waited for `patience`, and no worker with room
    /// for more has asked meanwhile. If so, its wait is counted anew, because making room takes
    /// time too.
    pub fn lose_patience(&mut self, key: &FunctionVersion, patience: Duration, now: Time) -> bool {
        let Some(queue) = self.queues.get_mut(key) else { return false };
        // Thousands of sessions that begin at once wait longer than that for a worker which takes
        // them one by one. No slot is missing then, so no parked session has to give one up.
        if queue.roomy.is_some_and(|asked| now < asked + patience) {
            return false;
        }
        let waits = queue.new.values_mut().find(|queued| queued.since + patience <= now);
        waits.map(|queued| queued.since = now).is_some()
    }

    /// Since when the oldest new work of a function version waits without a worker with room for
    /// more having asked.
    #[must_use]
    pub fn waits_since(&self, key: &FunctionVersion) -> Option<Time> {
        let queue = self.queues.get(key)?;
        let since = queue.new.values().map(|queued| queued.since).min()?;
        Some(queue.roomy.map_or(since, |asked| asked.max(since)))
    }

    /// No attachment waits for this work any more. If a worker has it already, its token is refused
    /// when that worker dials back.
    pub fn withdraw(&mut self, ticket: Ticket) {
        match self.places.remove(&ticket) {
            Some((key, kind, WorkState::Queued { order })) => {
                if let Some(queue) = self.queues.get_mut(&key) {
                    queue.line(kind).remove(&order);
                }
                self.tidy(&key);
            }
            Some((_, _, WorkState::Offered(poll))) => self.withdraw_offer(poll),
            Some((_, _, WorkState::Doubted { until, order })) => {
                self.doubted.remove(&(until, order));
            }
            None => {}
        }
    }

    /// As [`Self::withdraw`], but only if no worker has been told of the work yet. True if that was
    /// so.
    #[must_use]
    pub fn recall(&mut self, ticket: Ticket) -> bool {
        let queued = matches!(self.places.get(&ticket), Some((_, _, WorkState::Queued { .. })));
        if queued {
            self.withdraw(ticket);
        }
        queued
    }

    fn withdraw_offer(&mut self, poll: PollId) {
        match self.offers.get_mut(&poll) {
            Some(offer) if !offer.unseen => offer.work = None,
            Some(_) => {
                self.offers.remove(&poll);
                let mut answers = self.answers.iter_mut();
                // A connection has one offer at most.
                let of = |(to, answer): &&mut (PollId, PollAnswer)| {
                    *to == poll && matches!(answer, PollAnswer::Work(_))
                };
                if let Some((_, answer)) = answers.find(of) {
                    *answer = PollAnswer::Nothing;
                }
                self.feed(poll);
            }
            None => {}
        }
    }

    /// A worker asks for work. A poll that still waits on the same connection is answered with
    /// nothing first.
    ///
    /// # Errors
    /// The limit of waiting polls is reached; the poll was not taken.
    pub fn poll(
        &mut self,
        poll: PollId,
        request: PollRequest,
        now: Time,
    ) -> Result<(), TooManyPolls> {
        if self.forget_poll(poll).is_some() {
            self.answers.push((poll, PollAnswer::Nothing));
        }
        if self.waiting.len() >= self.limits.polls {
            return Err(TooManyPolls);
        }
        let key = (request.function_id.clone(), request.function_version_id.clone());
        let serial = self.number();
        let queue = self.queues.entry(key.clone()).or_default();
        queue.polls.insert(serial, poll);
        if request.slots > 0 {
            queue.with_slots.insert(serial, poll);
        }
        if request.slots > 1 {
            queue.roomy = Some(now);
        }
        let until = now + POLL_WAIT;
        self.expiry.insert((until, serial), poll);
        self.waiting.insert(poll, Waiting { serial, until, key, request });
        self.feed(poll);
        Ok(())
    }

    /// The poll's connection is closed. If an answer did not get through, its work is queued again
    /// in its old place.
    pub fn gone(&mut self, poll: PollId) {
        self.forget_poll(poll);
        self.answers.retain(|(to, _)| *to != poll);
        if let Some(Offer { order, since, work: Some(work), .. }) = self.offers.remove(&poll) {
            self.place_again(order, Queued { work, since });
        }
    }

    fn place_again(&mut self, order: u64, queued: Queued) {
        let key = queued.work.key();
        let queue = self.queues.entry(key.clone()).or_default();
        let taker = queue.taker(&queued.work, &self.waiting, &self.offers);
        if taker.is_none() && !self.again.contains(&key) {
            self.again.push(key.clone());
        }
        self.place(key, order, queued, taker);
    }

    /// A function version whose work waits again after it had been handed out. The caller, who
    /// makes room for waiting work, cannot know of it otherwise.
    pub fn take_queued_again(&mut self) -> Option<FunctionVersion> {
        self.again.pop()
    }

    /// The answer handed out for the connection was sent, and whether it has arrived will not be
    /// known. Its work is queued again after `DOUBT`. Before that the work is withdrawn if its
    /// worker has dialled back or if no attachment waits any more.
    pub fn doubted(&mut self, poll: PollId, now: Time) {
        if self.offers.get(&poll).is_none_or(|offer| offer.unseen) {
            return;
        }
        if let Some(Offer { order, since, work: Some(work), .. }) = self.offers.remove(&poll) {
            let until = now + DOUBT;
            if let Some((_, _, place)) = self.places.get_mut(&work.ticket) {
                *place = WorkState::Doubted { until, order };
            }
            self.doubted.insert((until, order), Queued { work, since });
        }
        self.feed(poll);
    }

    /// All answers handed out for the connection have arrived.
    pub fn delivered(&mut self, poll: PollId) {
        let Some(offer) = self.offers.get(&poll).filter(|offer| !offer.unseen) else { return };
        if let Some(work) = &offer.work {
            self.places.remove(&work.ticket);
        }
        self.offers.remove(&poll);
        self.feed(poll);
    }

    /// A core has begun anew: its polls are gone, and no attachment waits for its work any more.
    pub fn forget_core(&mut self, core: u16) {
        let tickets = self.places.keys().filter(|ticket| ticket.core == core);
        let mut tickets: Vec<Ticket> = tickets.copied().collect();
        // Sorted, because the tables have no order and every run should do the same.
        tickets.sort_unstable();
        for ticket in tickets {
            self.withdraw(ticket);
        }
        let polls = self.waiting.keys().chain(self.offers.keys());
        let mut polls: Vec<PollId> = polls.filter(|poll| poll.core == core).copied().collect();
        polls.sort_unstable_by_key(|poll| (poll.round, poll.conn.slot));
        for poll in polls {
            self.gone(poll);
        }
    }

    /// Answers the polls that have waited long enough, and queues work again that was in doubt for
    /// long enough.
    pub fn turn(&mut self, now: Time) {
        while let Some(doubted) = self.doubted.first_entry()
            && doubted.key().0 <= now
        {
            let ((_, order), queued) = doubted.remove_entry();
            self.place_again(order, queued);
        }
        while let Some((&(until, _), &poll)) = self.expiry.first_key_value()
            && until <= now
        {
            self.forget_poll(poll);
            self.answers.push((poll, PollAnswer::Nothing));
        }
    }

    /// When [`Self::turn`] has something to do.
    #[must_use]
    pub fn deadline(&self) -> Option<Time> {
        let expiry = self.expiry.first_key_value().map(|((until, _), _)| *until);
        if self.doubted.is_empty() {
            return expiry;
        }
        let doubted = self.doubted.first_key_value().map(|((until, _), _)| *until);
        expiry.into_iter().chain(doubted).min()
    }

    /// The answers since the last call, in the order they are to be sent.
    pub fn take_answers(&mut self, into: &mut Vec<(PollId, PollAnswer)>) {
        for (poll, answer) in &self.answers {
            if matches!(answer, PollAnswer::Work(_))
                && let Some(offer) = self.offers.get_mut(poll)
            {
                offer.unseen = false;
            }
        }
        into.append(&mut self.answers);
    }

    /// Polls that wait.
    #[must_use]
    pub fn polls(&self) -> usize {
        self.waiting.len()
    }

    /// Work items of the fullest queue.
    #[must_use]
    pub fn fullest(&self) -> usize {
        let len = |q: &Queue| q.before(WorkKind::New).max(q.spare.len());
        self.queues.values().map(len).max().unwrap_or(0)
    }

    /// Whether nothing waits and nothing is on its way.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.queues.is_empty()
            && self.offers.is_empty()
            && self.answers.is_empty()
            && self.doubted.is_empty()
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// Gives work to a poll that can take it, or puts it into its line.
    fn place(&mut self, key: FunctionVersion, order: u64, queued: Queued, taker: Option<PollId>) {
        let (ticket, kind) = (queued.work.ticket, queued.work.kind);
        if let Some(poll) = taker {
            self.forget_poll(poll);
            let Queued { work, since } = queued;
            self.answers.push((poll, PollAnswer::Work(work.clone())));
            self.offers.insert(poll, Offer { order, since, work: Some(work), unseen: true });
            self.places.insert(ticket, (key, kind, WorkState::Offered(poll)));
        } else {
            let queue = self.queues.entry(key.clone()).or_default();
            queue.line(kind).insert(order, queued);
            self.places.insert(ticket, (key, kind, WorkState::Queued { order }));
        }
    }

    /// Looks for queued work that a waiting poll can take.
    fn feed(&mut self, poll: PollId) {
        // One answer at a time on a connection: otherwise a worker that sends polls and reads
        // nothing could take a whole queue with it.
        if self.offers.contains_key(&poll) {
            return;
        }
        let Some(waiting) = self.waiting.get(&poll) else { return };
        let key = waiting.key.clone();
        let Some(queue) = self.queues.get_mut(&key) else { return };
        let Some((order, work)) = queue.next_for(&waiting.request) else { return };
        self.place(key, order, work, Some(poll));
    }

    /// Removes a waiting poll from all tables.
    fn forget_poll(&mut self, poll: PollId) -> Option<Waiting> {
        let waiting = self.waiting.remove(&poll)?;
        self.expiry.remove(&(waiting.until, waiting.serial));
        if let Some(queue) = self.queues.get_mut(&waiting.key) {
            queue.polls.remove(&waiting.serial);
            queue.with_slots.remove(&waiting.serial);
        }
        self.tidy(&waiting.key);
        Some(waiting)
    }

    /// Drops a queue that holds nothing.
    fn tidy(&mut self, key: &FunctionVersion) {
        let idle = |q: &Queue| q.before(WorkKind::Spare) == 0 && q.polls.is_empty();
        if self.queues.get(key).is_some_and(idle) {
            self.queues.remove(key);
        }
    }
}

impl Queue {
    fn line(&mut self, kind: WorkKind) -> &mut Line {
        match kind {
            WorkKind::New => &mut self.new,
            WorkKind::Reconnect => &mut self.reconnect,
            WorkKind::Spare => &mut self.spare,
        }
    }

    /// How many items count against the limit for one more of this kind. Spares may never be taken,
    /// so they do not count against work that clients wait for.
    fn before(&self, kind: WorkKind) -> usize {
        let asked = self.new.len() + self.reconnect.len();
        match kind {
            WorkKind::New | WorkKind::Reconnect => asked,
            WorkKind::Spare => asked + self.spare.len(),
        }
    }

    /// The poll that has waited longest and may take this work.
    fn taker(
        &self,
        work: &Work,
        waiting: &Map<PollId, Waiting>,
        offers: &Map<PollId, Offer>,
    ) -> Option<PollId> {
        let free = |poll: &&PollId| !offers.contains_key(*poll);
        match work.kind {
            WorkKind::New => self.with_slots.values().find(free).copied(),
            WorkKind::Reconnect | WorkKind::Spare => {
                let holds = |poll: &&PollId| {
                    waiting.get(*poll).is_some_and(|w| w.request.holds(&work.request_id))
                };
                self.polls.values().filter(free).find(holds).copied()
            }
        }
    }

    /// Takes out the work that this poll gets. A reconnect goes first, then a spare, because no
    /// other worker can do these.
    fn next_for(&mut self, request: &PollRequest) -> Option<(u64, Queued)> {
        for line in [&mut self.reconnect, &mut self.spare] {
            let mut held = line.iter();
            let held = held.find(|(_, queued)| request.holds(&queued.work.request_id));
            if let Some(order) = held.map(|(order, _)| *order) {
                return line.remove_entry(&order);
            }
        }
        if request.slots > 0 { self.new.pop_first() } else { None }
    }
}

#[cfg(test)]
mod tests;
