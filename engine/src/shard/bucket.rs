//! How fast something may happen: a burst, then a rate.

use std::time::Duration;

use ringway_proto::time::Time;

/// A budget of permits. Each use spends one; time refills the budget.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bucket {
    spent: u32,
    since: Time,
}

impl Default for Bucket {
    fn default() -> Self {
        Self { spent: 0, since: Time::ZERO }
    }
}

impl Bucket {
    /// Whether a permit is left. There are `burst` at most, and `rate` come back a second.
    pub(crate) fn has(&mut self, burst: u32, rate: u32, now: Time) -> bool {
        let micros = now.since(self.since).as_micros() as u64;
        let back = micros.saturating_mul(u64::from(rate)) / 1_000_000;
        let back = u32::try_from(back).unwrap_or(u32::MAX);
        self.spent = self.spent.saturating_sub(back);
        if self.spent == 0 {
            self.since = now;
        } else {
            // The rest of the elapsed time counts for the next permit.
            self.since += Duration::from_micros(u64::from(back) * 1_000_000 / u64::from(rate));
        }
        self.spent < burst
    }

    /// Takes a permit if one is left. There are `burst` at most, and `rate` come back a second.
    pub(crate) fn take(&mut self, burst: u32, rate: u32, now: Time) -> bool {
        let there = self.has(burst, rate, now);
        if there {
            self.charge();
        }
        there
    }

    /// Takes a permit even if none is left.
    pub(crate) fn charge(&mut self) {
        self.spent = self.spent.saturating_add(1);
    }

    pub(crate) fn give_back(&mut self) {
        self.spent = self.spent.saturating_sub(1);
    }

    /// Whole seconds until the next permit, at least 1: the value of `retry-after`.
    pub(crate) fn seconds_left(&self, burst: u32, rate: u32, now: Time) -> u32 {
        let over = u64::from(self.spent.saturating_sub(burst)) + 1;
        let due = Duration::from_micros(over * 1_000_000 / u64::from(rate));
        let left = due.saturating_sub(now.since(self.since)).as_micros().div_ceil(1_000_000);
        u32::try_from(left).unwrap_or(u32::MAX).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Time = Time(100_000_000);

    #[test]
    fn dispatches_are_allowed_in_a_burst_and_then_at_a_rate() {
        let mut bucket = Bucket::default();
        let taken = (0..1000).filter(|_| bucket.take(256, 100, START)).count();
        assert_eq!(taken, 256);
        let later = START + Duration::from_millis(500);
        let taken = (0..1000).filter(|_| bucket.take(256, 100, later)).count();
        assert_eq!(taken, 50);
    }

    #[test]
    fn the_rate_is_reached_however_often_the_bucket_is_asked() {
        let mut bucket = Bucket::default();
        while bucket.take(256, 100, START) {}
        let mut now = START;
        // One try every 3.7 ms. A permit takes 10 ms, which is no multiple of that.
        let taken = (0..2_703).filter(|_| {
            now += Duration::from_micros(3_700);
            bucket.take(256, 100, now)
        });
        assert_eq!(taken.count(), 1_000, "in ten seconds");
    }

    #[test]
    fn the_wait_is_told_in_whole_seconds() {
        let mut bucket = Bucket::default();
        while bucket.take(3, 1, START) {}
        assert_eq!(bucket.seconds_left(3, 1, START), 1);
        for _ in 0..4 {
            bucket.charge();
        }
        assert_eq!(bucket.seconds_left(3, 1, START), 5);
        let later = START + Duration::from_millis(1_500);
        assert_eq!(bucket.seconds_left(3, 1, later), 4);
        assert!(!bucket.has(3, 1, START + Duration::from_millis(4_999)));
        assert!(bucket.has(3, 1, START + Duration::from_secs(5)));
        let mut fast = Bucket::default();
        while fast.take(256, 100, START) {}
        assert_eq!(fast.seconds_left(256, 100, START), 1);
    }
}
