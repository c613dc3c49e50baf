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
    /// Look at a connection: handshake, PING, stall, idle.
    Conn { slot: u32, generation: u32 },
    /// A session waited long enough for its worker.
    Wait(Key),
    /// Requests waited long enough for a tunnel in place of one that takes no more streams.
    Replace(Key),
    /// One side of a stream of bytes has ended; the other one had its time to show why.
    Finish(Key),
    /// A worker that ended its tunnel had its time to take this spare up.
    Recall(Key),
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
    pub(crate) fn conn(conn: ConnId) -> Self {
        Self::Conn { slot: conn.slot, generation: conn.generation }
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
        timers.arm(Time(10), Due::Conn { slot: 1, generation: 1 });
        assert_eq!(timers.next(), Some(Time(10)));
        assert_eq!(timers.pop(Time(9)), None);
        assert_eq!(timers.pop(Time(30)), Some(Due::Conn { slot: 1, generation: 1 }));
        assert_eq!(timers.pop(Time(30)), Some(Due::Drain));
        assert_eq!(timers.pop(Time(30)), None);
    }
}
