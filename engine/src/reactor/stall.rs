//! How long turns took, without the time in which other threads had the CPU. That time is not the
//! core's doing, and on a crowded machine it would hide the core's own.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use ringway_proto::time::Time;

use crate::net::STALL;

/// The wait is read again if the last reading is older than this at the turn's end. So time that
/// others took before the turn may count as if they took it during the turn.
const READING: Duration = Duration::from_millis(5);

/// Longest line of `schedstat`: three numbers of 64 bits.
const LINE: usize = 64;

/// Where the kernel says how long a thread waited for a CPU.
#[derive(Debug)]
pub(super) struct Schedstat(Option<File>);

impl Schedstat {
    /// The calling thread's. On a kernel without the file waits count as the turn's own time.
    pub(super) fn of_thread() -> Self {
        Self(File::open("/proc/thread-self/schedstat").ok())
    }

    /// Reports no waits: a simulated core has its CPU to itself.
    pub(super) fn silent() -> Self {
        Self(None)
    }

    /// For how long the thread was ready to run and did not.
    fn waited(&self) -> Duration {
        let mut line = [0; LINE];
        let read = self.0.as_ref().and_then(|file| file.read_at(&mut line, 0).ok()).unwrap_or(0);
        let text = std::str::from_utf8(&line[..read]).unwrap_or_default();
        // Time on the CPU, time in the queue (both in nanoseconds), number of times on the CPU.
        let nanos = text.split_ascii_whitespace().nth(1).and_then(|word| word.parse().ok());
        Duration::from_nanos(nanos.unwrap_or(0))
    }
}

/// The turn under way.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// When the turn began. `None` while the core rests.
    began: Option<Time>,
    /// The wait, when it was last read.
    waited: Duration,
    read: Time,
}

impl Pace {
    /// A turn begins.
    pub(super) fn begins(&mut self, now: Time) {
        self.began = Some(now);
    }

    /// A turn ends, if one is under way. Returns how long the core stalled, if it did.
    pub(super) fn ends(&mut self, now: Time, schedstat: &Schedstat) -> Option<Duration> {
        self.ends_with(now, || schedstat.waited())
    }

    fn ends_with(&mut self, now: Time, waited: impl FnOnce() -> Duration) -> Option<Duration> {
        let took = now.since(self.began.take()?);
        if took <= STALL && now.since(self.read) < READING {
            return None;
        }
        let before = std::mem::replace(&mut self.waited, waited());
        self.read = now;
        let stall = took.saturating_sub(self.waited.saturating_sub(before));
        (stall > STALL).then_some(stall)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: fn(u64) -> Duration = Duration::from_millis;

    fn at(millis: u64) -> Time {
        Time::ZERO + MS(millis)
    }

    fn turn(pace: &mut Pace, (from, to): (u64, u64), waited: u64) -> Option<Duration> {
        pace.begins(at(from));
        pace.ends_with(at(to), || MS(waited))
    }

    #[test]
    fn a_long_turn_is_a_stall_less_what_others_took() {
        let mut pace = Pace::default();
        assert_eq!(turn(&mut pace, (10, 11), 3), None, "it is the first reading");
        assert_eq!(turn(&mut pace, (11, 16), 3), Some(MS(5)));
        assert_eq!(turn(&mut pace, (16, 26), 7), Some(MS(6)));
        assert_eq!(turn(&mut pace, (26, 36), 16), None, "others had nine of ten");
        assert_eq!(turn(&mut pace, (36, 38), 16), None, "two are none");
    }

    #[test]
    fn the_wait_is_read_for_long_turns_and_now_and_then() {
        let mut pace = Pace::default();
        let mut reads = 0;
        for from in 0..100 {
            pace.begins(at(from));
            let stall = pace.ends_with(at(from + 1), || {
                reads += 1;
                MS(0)
            });
            assert_eq!(stall, None);
        }
        assert_eq!(reads, 20);
    }

    #[test]
    fn what_others_took_long_before_a_turn_is_not_taken_from_it() {
        let mut pace = Pace::default();
        assert_eq!(turn(&mut pace, (0, 1), 500), None, "nothing is read yet");
        assert_eq!(turn(&mut pace, (20, 21), 900), None, "this turn is short, and reads");
        assert_eq!(turn(&mut pace, (21, 30), 900), Some(MS(9)));
    }

    #[test]
    fn a_turn_ends_once() {
        let mut pace = Pace::default();
        pace.begins(at(0));
        assert_eq!(pace.ends_with(at(9), Duration::default), Some(MS(9)));
        assert_eq!(pace.ends_with(at(99), || panic!("the core rested")), None);
    }

    #[test]
    fn this_kernel_tells_how_long_a_thread_waited() {
        let schedstat = Schedstat::of_thread();
        assert!(schedstat.0.is_some(), "no /proc/thread-self/schedstat");
        let first = schedstat.waited();
        std::thread::yield_now();
        assert!(schedstat.waited() >= first);
        assert_eq!(Schedstat(None).waited(), Duration::ZERO);
    }
}
