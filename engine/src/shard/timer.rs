//! Deadlines, earliest first.
//!
//! An entry is not searched and removed when its connection or session ends. So at a high rate of
//! short sessions nearly all entries are void long before they are due. They must neither wake the
//! core nor fill its memory. Entries therefore wait by the [tick](TICK_BITS) in which they are due,
//! in no order:
//!
//! ```text
//! arm ──▶ later: tick 7 │ tick 8 │ … │ tick 236        what is gone leaves when a tick has
//!              │                                        twice as many as were left the last time
//!              ▼ the tick begins: what is gone leaves
//!         near: a heap ──▶ due
//! ```
//!
//! So a tick holds at most about twice as many entries as were alive when it was last looked
//! through. The core is woken once for the tick, and for each entry that is due in it. A moved
//! deadline is armed again only when the old one comes.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::time::Duration;

use ringway_proto::time::Time;

use super::table::Key;
use crate::net::ConnId;

/// The least time that a tunnel stays beside the one that replaces it. A worker ends a session with
/// its last tunnel (contract 4.6), and may see the old tunnel's end before it has counted the new
/// one.
pub(super) const SETTLES: Duration = Duration::from_secs(1);

/// What a timer is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Due {
    /// Look at a connection of the relay: handshake, PING, stall, idle.
    Hop { slot: u32, generation: u32 },
    /// Look at a worker's connection: handshake, idle, a poll that waits too long.
    WorkerConn { slot: u32, generation: u32 },
    /// An attachment has waited its time for its worker, or for another core.
    Wait(Key),
    /// Requests have waited their time for a tunnel in place of one that takes no more streams.
    Replace(Key),
    /// A worker that ended its tunnel has had its time to dial back for this spare.
    Recall(Key),
    /// A client's new tunnel has stayed long enough beside a parked one, or a used-up one beside its
    /// spare's.
    Settled(Key),
    /// New work has waited long at a control plane that knows no parked tunnels.
    Patience(Key),
    /// Another gateway has had its time to take a connection.
    Relay(Key),
    /// A connection that another gateway brings has had its time for the prelude.
    Arrival(Key),
    /// The control plane has had its time to answer.
    Ask(Key),
    /// One side of a byte stream has ended, and the other one has had its time to show why.
    Finish(Key),
    /// Bulk waits although a small part of its window is left.
    SmallSend(Key),
    /// A request was answered before its body has ended, and the body has had its time.
    Answered(Key),
    /// New work may have waited so long that a parked session yields.
    Yield,
    /// Memory is short: the shard looks for streams that do not move.
    Sweep,
    /// Addresses were kept out long enough.
    KeptOut,
    /// Gateways that were told that this one leaves have had their time to answer.
    Farewell,
    /// The drain's limit.
    Drain,
}

impl Due {
    pub(crate) fn hop(conn: ConnId) -> Self {
        Self::Hop { slot: conn.slot, generation: conn.generation }
    }

    pub(crate) fn worker_conn(conn: ConnId) -> Self {
        Self::WorkerConn { slot: conn.slot, generation: conn.generation }
    }
}

/// The length of a tick in microseconds, as a power of two: a quarter of a second. Shorter ticks
/// wake the core more often; in longer ones more is due at once.
const TICK_BITS: u32 = 18;

/// A tick is looked through for the first time at this many entries.
const FIRST_LOOK: usize = 32;

/// Most entries that a core takes out of a begun tick in one turn.
const TAKEN: usize = 1024;

/// Entries due in one tick, in no order.
#[derive(Debug)]
struct Tick {
    entries: Vec<(Time, Due)>,
    /// At this many entries the tick is looked through.
    look_at: usize,
}

impl Default for Tick {
    fn default() -> Self {
        Self { entries: Vec::new(), look_at: FIRST_LOOK }
    }
}

#[derive(Debug, Default)]
pub(crate) struct Timers {
    /// When there is something to do. Every turn asks for that, so it is stored and not searched.
    next: Option<Time>,
    /// The entries of ticks that have begun.
    near: BinaryHeap<Reverse<(Time, Due)>>,
    /// How many ticks have begun.
    begun: u64,
    /// By tick. A tick that has begun is here only until the core has taken its entries out.
    later: BTreeMap<u64, Tick>,
    /// Ticks that are to be looked through.
    crowded: Vec<u64>,
}

impl Timers {
    pub(crate) fn arm(&mut self, at: Time, due: Due) {
        let number = tick_of(at);
        let near = number < self.begun;
        let due_at = if near { at } else { Time(number << TICK_BITS) };
        self.next = Some(self.next.map_or(due_at, |next| next.min(due_at)));
        if near {
            return self.near.push(Reverse((at, due)));
        }
        let tick = self.later.entry(number).or_default();
        tick.entries.push((at, due));
        if tick.entries.len() == tick.look_at {
            self.crowded.push(number);
        }
    }

    /// When there is something to do.
    #[inline]
    pub(crate) fn next(&self) -> Option<Time> {
        self.next
    }

    /// Whether there is something to do at `now`, or to [sweep](Self::sweep).
    #[inline]
    pub(crate) fn are_due(&self, now: Time) -> bool {
        self.next.is_some_and(|next| next <= now) || self.is_crowded()
    }

    fn find_next(&mut self) {
        let near = self.near.peek().map(|entry| entry.0.0);
        let later = self.later.first_key_value().map(|(number, _)| Time(number << TICK_BITS));
        self.next = [near, later].into_iter().flatten().min();
    }

    /// To be called before [`Self::pop`], when something [is due](Self::are_due). Entries of a
    /// beginning tick that do not [matter](Self::sweep) are forgotten.
    pub(crate) fn begin(&mut self, now: Time, mut matters: impl FnMut(Due) -> bool) {
        let mut room = TAKEN;
        while room > 0
            && let Some(mut first) = self.later.first_entry()
            && *first.key() <= tick_of(now)
        {
            self.begun = self.begun.max(first.key() + 1);
            let entries = &mut first.get_mut().entries;
            let taken = entries.drain(entries.len().saturating_sub(room)..);
            room -= taken.len();
            self.near.extend(taken.filter(|(_, due)| matters(*due)).map(Reverse));
            if entries.is_empty() {
                first.remove();
            }
        }
        self.find_next();
    }

    /// Whether there is something to [sweep](Self::sweep).
    #[inline]
    pub(crate) fn is_crowded(&self) -> bool {
        !self.crowded.is_empty()
    }

    /// Looks through the ticks that have become large, and forgets the entries that do not matter:
    /// what their timer was for is gone.
    pub(crate) fn sweep(&mut self, mut matters: impl FnMut(Due) -> bool) {
        for number in self.crowded.drain(..) {
            // The tick may have begun meanwhile.
            let Some(tick) = self.later.get_mut(&number) else { continue };
            tick.entries.retain(|(_, due)| matters(*due));
            tick.look_at = (2 * tick.entries.len()).max(FIRST_LOOK);
            tick.entries.shrink_to(tick.look_at);
        }
    }

    /// The next entry that is due at `now`.
    pub(crate) fn pop(&mut self, now: Time) -> Option<Due> {
        self.near.peek().filter(|entry| entry.0.0 <= now)?;
        let due = self.near.pop().map(|entry| entry.0.1);
        self.find_next();
        due
    }

    /// How many entries there are.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.near.len() + self.later.values().map(|tick| tick.entries.len()).sum::<usize>()
    }

    /// The earliest entry's time.
    #[cfg(test)]
    pub(crate) fn earliest(&self) -> Option<Time> {
        let later = self.later.values().flat_map(|tick| &tick.entries).map(|entry| entry.0);
        self.near.iter().map(|entry| entry.0.0).chain(later).min()
    }

    /// The next entry that is due at `now`, if all entries matter.
    #[cfg(test)]
    pub(crate) fn take(&mut self, now: Time) -> Option<Due> {
        self.begin(now, |_| true);
        self.pop(now)
    }
}

fn tick_of(at: Time) -> u64 {
    at.0 >> TICK_BITS
}

#[cfg(test)]
mod tests {
    use super::*;

    const TICK: u64 = 1 << TICK_BITS;

    fn hop(slot: u32) -> Due {
        Due::Hop { slot, generation: 1 }
    }

    #[test]
    fn entries_fire_in_order_and_not_early() {
        for begin in [0, 5 * TICK - 15] {
            let at = |micros: u64| Time(begin + micros);
            let mut timers = Timers::default();
            timers.arm(at(20), Due::Drain);
            timers.arm(at(10), hop(1));
            assert!(timers.next().is_some_and(|next| next <= at(10)));
            assert_eq!(timers.take(at(9)), None);
            assert_eq!(timers.take(at(30)), Some(hop(1)));
            timers.arm(at(25), hop(2));
            assert_eq!(timers.take(at(30)), Some(Due::Drain));
            assert_eq!((timers.take(at(30)), timers.take(at(30))), (Some(hop(2)), None));
            assert_eq!((timers.next(), timers.len()), (None, 0));
        }
    }

    /// The core sleeps until the tick begins, and then until the entry is due.
    #[test]
    fn what_is_due_later_wakes_once_for_its_tick_and_once_for_itself() {
        let mut timers = Timers::default();
        let at = Time(7 * TICK + 1234);
        timers.arm(at, hop(1));
        assert_eq!(timers.next(), Some(Time(7 * TICK)));
        timers.begin(Time(7 * TICK), |_| true);
        assert_eq!((timers.next(), timers.pop(Time(7 * TICK))), (Some(at), None));
        assert_eq!(timers.pop(at), Some(hop(1)));
    }

    #[test]
    fn what_is_gone_before_its_tick_wakes_nobody() {
        let mut timers = Timers::default();
        (0..20).for_each(|slot| timers.arm(Time(3 * TICK + u64::from(slot)), hop(slot)));
        timers.begin(Time(3 * TICK), |due| due == hop(11));
        assert_eq!(timers.next(), Some(Time(3 * TICK + 11)));
        assert_eq!((timers.take(Time(4 * TICK)), timers.next()), (Some(hop(11)), None));
    }

    /// For thirty seconds sessions begin that live for a moment and leave four timers behind.
    #[test]
    fn what_is_gone_leaves_little_behind() {
        const EACH_SECOND: u32 = 5_000;
        const LIVE: u32 = 64;
        const DELAYS: [u64; 4] = [10, 20, 30, 60];
        let mut timers = Timers::default();
        let (mut wakes, mut most, mut swept) = (0, 0, 0);
        for begun in 0..30 * EACH_SECOND {
            let now = Time(u64::from(begun) * 1_000_000 / u64::from(EACH_SECOND));
            let lives = |due: Due| matches!(due, Due::Hop { slot, .. } if slot + LIVE > begun);
            DELAYS
                .iter()
                .for_each(|seconds| timers.arm(Time(now.0 + seconds * 1_000_000), hop(begun)));
            if timers.is_crowded() {
                timers.sweep(|due| {
                    swept += 1;
                    lives(due)
                });
            }
            if timers.next().is_some_and(|at| at <= now) {
                wakes += 1;
                timers.begin(now, lives);
                assert_eq!(timers.pop(now), None, "none of them lives so long");
            }
            most = most.max(timers.len());
        }
        let ticks = (60_000_000 / TICK) as usize;
        assert!(most <= (ticks + 1) * 2 * LIVE as usize, "{most} entries");
        assert!(wakes <= 30_000_000 / TICK + 1, "{wakes} wakes");
        let armed = 30 * EACH_SECOND * DELAYS.len() as u32;
        assert!(swept <= 4 * armed, "each is looked at a few times: {swept} of {armed}");
    }

    #[test]
    fn what_lives_is_looked_through_seldom() {
        let mut timers = Timers::default();
        let mut looked = 0;
        for slot in 0..10_000 {
            timers.arm(Time(9 * TICK), hop(slot));
            if timers.is_crowded() {
                timers.sweep(|_| {
                    looked += 1;
                    true
                });
            }
        }
        assert_eq!(timers.len(), 10_000);
        assert!(looked <= 2 * 10_000, "{looked}");
    }

    #[test]
    fn a_turn_takes_no_more_than_it_may_out_of_a_tick() {
        let mut timers = Timers::default();
        let slots = 2 * TAKEN as u32 + 10;
        (0..slots).for_each(|slot| timers.arm(Time(TICK + u64::from(slot)), hop(slot)));
        let now = Time(3 * TICK);
        for turn in 1..4 {
            assert!(timers.next().is_some_and(|next| next <= now), "it goes on at once");
            timers.begin(now, |_| true);
            assert_eq!(timers.near.len(), (turn * TAKEN).min(slots as usize));
        }
        let mut fired: Vec<Due> = std::iter::from_fn(|| timers.take(now)).collect();
        fired.sort_unstable();
        assert_eq!(fired, (0..slots).map(hop).collect::<Vec<_>>());
    }
}
