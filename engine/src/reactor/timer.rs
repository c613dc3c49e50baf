//! The reactor's own deadlines. Each kind has one duration, so its queue is sorted by itself.

use std::collections::VecDeque;
use std::time::Duration;

use ringway_proto::time::Time;

use crate::net::{ConnId, LINGER};

/// How long a dial may take.
pub const DIAL_TIMEOUT: Duration = Duration::from_secs(3);

/// How long a connection that is being flushed may make no progress. Looked at once per period,
/// so a stall is noticed after one to two of them.
pub const FLUSH_STALL: Duration = Duration::from_secs(10);

/// What a deadline is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Due {
    /// The dial was not answered.
    Dial,
    /// The flush may have made no progress.
    Stall,
    /// The peer sent no FIN.
    Linger,
    /// The connection did not get through its listener's entrance.
    Entrance,
}

/// The period of an entrance is the reactor's option.
const KINDS: [(Due, Duration); 4] = [
    (Due::Dial, DIAL_TIMEOUT),
    (Due::Stall, FLUSH_STALL),
    (Due::Linger, LINGER),
    (Due::Entrance, Duration::ZERO),
];

/// The deadlines, each kind's in order. An entry whose reason is gone stays until it is due or
/// first in its queue. The caller says which entries still have a reason.
#[derive(Debug, Default)]
pub(super) struct Timers {
    queues: [VecDeque<(Time, ConnId)>; KINDS.len()],
}

impl Timers {
    /// Sets a deadline, one period of its kind from now.
    pub(super) fn set(&mut self, due: Due, now: Time, conn: ConnId) {
        let (_, period) = KINDS[due as usize];
        self.set_after(due, now, period, conn);
    }

    /// As [`Self::set`], for a kind whose one period is an option.
    pub(super) fn set_after(&mut self, due: Due, now: Time, period: Duration, conn: ConnId) {
        self.queues[due as usize].push_back((now + period, conn));
    }

    /// The earliest deadline that still matters. Earlier ones that do not are forgotten.
    pub(super) fn next(&mut self, matters: impl Fn(Due, ConnId) -> bool) -> Option<Time> {
        let mut next: Option<Time> = None;
        for (kind, queue) in KINDS.iter().zip(&mut self.queues) {
            while let Some(&(time, conn)) = queue.front() {
                if matters(kind.0, conn) {
                    next = Some(next.map_or(time, |next| next.min(time)));
                    break;
                }
                queue.pop_front();
            }
        }
        next
    }

    /// Takes out one deadline that has come.
    pub(super) fn pop(&mut self, now: Time) -> Option<(Due, ConnId)> {
        KINDS.iter().zip(&mut self.queues).find_map(|(kind, queue)| {
            let (_, conn) = queue.pop_front_if(|(time, _)| *time <= now)?;
            Some((kind.0, conn))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conn(slot: u32) -> ConnId {
        ConnId { slot, generation: 0 }
    }

    #[test]
    fn the_earliest_deadline_that_matters_is_next() {
        let mut timers = Timers::default();
        timers.set(Due::Linger, Time(0), conn(1));
        timers.set(Due::Linger, Time(5), conn(2));
        timers.set(Due::Dial, Time(0), conn(3));
        let all = timers.next(|_, _| true);
        assert_eq!(all, Some(Time::ZERO + LINGER));
        let without_first = timers.next(|_, c| c != conn(1));
        assert_eq!(without_first, Some(Time(5) + LINGER));
        assert_eq!(timers.pop(Time(4) + LINGER), None, "the first one was forgotten");
        assert_eq!(timers.pop(Time(5) + LINGER), Some((Due::Linger, conn(2))));
        assert_eq!(timers.next(|_, c| c != conn(3)), None);
    }
}
