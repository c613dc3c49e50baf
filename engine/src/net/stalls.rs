//! How often and for how long a core was busy with one turn and served nobody else.

use std::time::Duration;

/// A turn that took longer than this may be a stall. Shorter ones are not looked at.
pub const STALL: Duration = Duration::from_millis(2);

/// Upper bounds of the counts, in seconds.
pub const STALL_SECONDS: &[f64; 10] = &[0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0];

/// Stalls by their length. The length is the time of the turn, without the time in which the thread
/// waited for a CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stalls {
    /// A count for each bound, and one for stalls above the last bound; not cumulative.
    pub counts: [u64; STALL_SECONDS.len() + 1],
    /// The length of all stalls together.
    pub sum: Duration,
}

impl Stalls {
    /// Counts a stall.
    pub fn count(&mut self, stall: Duration) {
        let seconds = stall.as_secs_f64();
        let bucket = STALL_SECONDS.iter().position(|&bound| seconds <= bound);
        self.counts[bucket.unwrap_or(STALL_SECONDS.len())] += 1;
        self.sum += stall;
    }

    /// Adds the counts of `other`.
    pub fn add(&mut self, other: &Self) {
        for (mine, theirs) in self.counts.iter_mut().zip(&other.counts) {
            *mine += theirs;
        }
        self.sum += other.sum;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stall_is_counted_up_to_its_bound() {
        let mut stalls = Stalls::default();
        const MICROS: [u64; 10] = [
            5_000, 10_000, 20_000, 50_000, 100_000, 200_000, 500_000, 1_000_000, 2_000_000,
            5_000_000,
        ];
        for (bound, seconds) in MICROS.into_iter().zip(STALL_SECONDS) {
            assert_eq!(Duration::from_micros(bound), Duration::from_secs_f64(*seconds));
            stalls.count(Duration::from_micros(bound));
        }
        stalls.count(Duration::from_secs(7));
        let mut sum = stalls;
        sum.add(&stalls);
        assert_eq!((stalls.counts, sum.counts), ([1; 11], [2; 11]));
        assert_eq!(sum.sum, stalls.sum * 2);
    }
}
