//! Waiting: how long a core may sleep, and what keeps it awake.

use ringway_proto::time::Time;

use super::uring::Wait;
use super::{Reactor, pump};
use crate::net::Core;

/// With more sends than this the kernel makes them before the core sleeps. Their time belongs to
/// the turn, and could not be told apart from sleep otherwise.
const SENDS_BEFORE_SLEEP: usize = 64;

/// How often a spinning core looks for work between two looks at the clock.
const LOOKS_PER_CLOCK: u32 = 16;

impl<C: Core> Reactor<C> {
    /// Enters the kernel, sleeping there unless there is something to do.
    pub(super) fn rest(&mut self) {
        let wait = self.lie_down();
        self.ring.enter(wait, &mut self.net.pool);
        self.get_up(wait);
    }

    /// Prepares to enter the kernel. Returns how long the core may sleep there.
    pub(super) fn lie_down(&mut self) -> Wait {
        self.ring.lend(&mut self.net.pool);
        let until = self.deadline();
        self.wait(until)
    }

    /// Goes on after the kernel has taken the submissions and the sleep is over.
    pub(super) fn get_up(&mut self, wait: Wait) {
        self.bells.entered();
        if wait != Wait::No {
            self.mailbox.wake();
            self.net.tally.idle += self.clock().since(self.net.now);
        }
    }

    /// How long to sleep. Unless that is not at all, senders have been told to ring.
    fn wait(&mut self, until: Option<Time>) -> Wait {
        if self.is_busy(until) || self.sending > SENDS_BEFORE_SLEEP {
            return Wait::No;
        }
        // The rest is counted from here, not from the turn's beginning.
        self.net.now = self.clock();
        self.turn_ends();
        if self.spin(until) {
            return Wait::No;
        }
        let wait = match until {
            None => Wait::Forever,
            Some(until) => Wait::AtMost(until.since(self.net.now)),
        };
        if self.mailbox.fall_asleep() { wait } else { Wait::No }
    }

    /// Whether something can be done without waiting for the kernel.
    fn is_busy(&self, until: Option<Time>) -> bool {
        let quiet = self.news.is_empty() && self.dirty.is_empty() && self.looks.is_empty();
        !(quiet && self.crowd.is_empty() && self.net.is_quiet())
            || (!self.starved.is_empty()
                && (self.net.pool.ring_lent() > 0 || (self.short && !self.relieved)))
            || until.is_some_and(|until| until <= self.net.now)
            || (!self.closing && !self.mailbox.is_empty())
    }

    /// Looks for work for as long as busy polling allows. `true`: there is some, so the core must
    /// not sleep.
    fn spin(&mut self, until: Option<Time>) -> bool {
        // The next enter makes the sends, which end it at once. The rest begins after it.
        if self.sending > 0 {
            return self.window.is_open();
        }
        let begun = self.net.now;
        let Some(limit) = self.window.rest(begun) else { return false };
        let found = self.look_out(until, limit);
        self.net.tally.idle += self.net.now.since(begun);
        found
    }

    fn look_out(&mut self, until: Option<Time>, limit: Time) -> bool {
        loop {
            let found = self.look_around();
            // The sleep that may follow is counted from here.
            self.net.now = self.clock();
            if found || until.is_some_and(|until| until <= self.net.now) {
                return true;
            }
            if self.net.now >= limit {
                return false;
            }
        }
    }

    fn look_around(&mut self) -> bool {
        for _ in 0..LOOKS_PER_CLOCK {
            if self.ring.has_work() || (!self.closing && !self.mailbox.is_empty()) {
                return true;
            }
            std::hint::spin_loop();
        }
        false
    }

    fn deadline(&mut self) -> Option<Time> {
        let (sockets, mut timers) = (&self.sockets, std::mem::take(&mut self.timers));
        let ours = timers.next(|due, conn| pump::matters(sockets, due, conn));
        self.timers = timers;
        if self.closing {
            return [ours, self.end_at].into_iter().flatten().min();
        }
        let cores = self.call(|core, _| core.deadline());
        [ours, self.listen_deadline(), cores].into_iter().flatten().min()
    }

    /// The turn is over by now: the core rests, or begins the next one without a rest.
    pub(super) fn turn_ends(&mut self) {
        if let Some(stall) = self.pace.ends(self.net.now, &self.schedstat) {
            self.net.tally.stalls.count(stall);
        }
    }

    pub(super) fn clock(&self) -> Time {
        let ours = || Time(self.origin.elapsed().as_micros() as u64);
        self.ring.now().unwrap_or_else(ours)
    }
}
