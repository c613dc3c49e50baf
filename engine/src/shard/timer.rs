//! Deadlines, earliest first. An entry whose cause is gone is found out when it fires: nothing is
//! searched or removed, and a moved deadline is armed again only when the old one comes.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use ringway_proto::time::Time;

use super::table::Key;
use crate::border::ConnId;

/// What is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Due {
    /// Look at a connection of the relay: handshake, PING, stall, idle.
    Hop { slot: u32, generation: u32 },
    /// Look at a worker's connection: handshake, idle, a poll that waits too long.
    Door { slot: u32, generation: u32 },
    /// An attachment waited long enough for its worker, or for another core.
    Wait(Key),
    /// Requests waited long enough for a tunnel in place of one that takes no more streams.
    Replace(Key),
    /// A worker that ended its tunnel had its time to take this spare up.
    Recall(Key),
    /// New work has waited for long at a plane that knows no parked tunnels.
    Patience(Key),
    /// The control plane has had its time to answer.
    Ask(Key),
    /// One side of a stream of bytes has ended; the other one had its time to show why.
    Finish(Key),
    /// Bulk waits although a crumb of its window is left.
    Crumb(Key),
    /// An answered request whose body did not end.
    Answered(Key),
    /// New work may have waited so long that a parked session gives way.
    Yield,
    /// Memory is short: look for streams that do not move.
    Sweep,
    /// The drain's limit.
    Drain,
}

impl Due {
    pub(crate) fn hop(conn: ConnId) -> Self {
        Self::Hop { slot: conn.slot, generation: conn.generation }
    }

    pub(crate) fn door(conn: ConnId) -> Self {
        Self::Door { slot: conn.slot, generation: conn.generation }
    }
}

#[derive(Debug, Default)]
pub(crate) struct Timers {
    heap: BinaryHeap<Reverse<(Time, Due)>>,
}

impl Timers {
    pub(crate) fn arm(&mut self, at: Time, due: Due) {
        self.heap.push(Reverse((at, due)));
    }

    pub(crate) fn next(&self) -> Option<Time> {
        self.heap.peek().map(|entry| entry.0.0)
    }

    /// The next entry that is due at `now`.
    pub(crate) fn pop(&mut self, now: Time) -> Option<Due> {
        if self.next()? > now {
            return None;
        }
        self.heap.pop().map(|entry| entry.0.1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_fire_in_order_and_not_early() {
        let mut timers = Timers::default();
        timers.arm(Time(20), Due::Drain);
        timers.arm(Time(10), Due::Hop { slot: 1, generation: 1 });
        assert_eq!(timers.next(), Some(Time(10)));
        assert_eq!(timers.pop(Time(9)), None);
        assert_eq!(timers.pop(Time(30)), Some(Due::Hop { slot: 1, generation: 1 }));
        assert_eq!(timers.pop(Time(30)), Some(Due::Drain));
        assert_eq!(timers.pop(Time(30)), None);
    }
}
