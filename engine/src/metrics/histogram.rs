//! A histogram with fixed bounds: an array of counts, no allocation.

use std::fmt::Write;

/// Most bounds a histogram can have.
const MAX_BOUNDS: usize = 15;

/// Lives of connections, in seconds (contract 8.1).
pub(super) const LIFE_SECONDS: &[f64] =
    &[1.0, 5.0, 8.0, 10.0, 15.0, 30.0, 45.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0];
/// Tunnels of a client connection at its end (contract 8.1).
pub(super) const TUNNELS: &[f64] = &[0.0, 1.0, 2.0, 3.0, 5.0, 10.0, 25.0, 50.0, 100.0];
/// Age of a worker token when it was shown, in seconds (contract 8.1).
pub(super) const TOKEN_AGE_SECONDS: &[f64] =
    &[0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 15.0, 20.0, 25.0, 30.0, 45.0, 60.0, 120.0, 300.0];
/// The Prometheus client's default, in seconds.
pub(super) const DEFAULT_SECONDS: &[f64] =
    &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
/// From a returning client's request to its head on a tunnel, in seconds: memory or a worker's way.
pub(super) const RESUME_SECONDS: &[f64] = &[
    0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.05, 0.25, 1.0, 2.5, 5.0,
    10.0, 30.0,
];
/// Parts of a session's start, in seconds: from a queue in memory to a worker that is made first.
pub(super) const START_SECONDS: &[f64] =
    &[0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0];
/// OpenTelemetry's for HTTP durations, in seconds.
pub(super) const HTTP_SECONDS: &[f64] =
    &[0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0];
/// OpenTelemetry's default, in bytes.
pub(super) const HTTP_BYTES: &[f64] = &[
    0.0, 5.0, 10.0, 25.0, 50.0, 75.0, 100.0, 250.0, 500.0, 750.0, 1000.0, 2500.0, 5000.0, 7500.0,
    10000.0,
];

/// A value and its bucket: searched once, whatever number of histograms count it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Placed {
    bucket: usize,
    value: f64,
}

impl Placed {
    /// Between the bounds of the histograms that will count it.
    pub(super) fn of(value: f64, bounds: &[f64]) -> Self {
        let bucket = bounds.iter().position(|&bound| value <= bound).unwrap_or(bounds.len());
        Self { bucket, value }
    }
}

/// Counts per bucket, and the sum.
#[derive(Clone, Copy, Debug)]
pub struct Histogram {
    bounds: &'static [f64],
    /// One count a bound and one for what lies above; not cumulative.
    counts: [u64; MAX_BOUNDS + 1],
    sum: f64,
}

impl Histogram {
    /// An empty histogram.
    ///
    /// # Panics
    /// If there are more than 15 bounds: our own mistake, found by the first test.
    #[must_use]
    pub const fn new(bounds: &'static [f64]) -> Self {
        assert!(bounds.len() <= MAX_BOUNDS, "more bounds than a histogram has room for");
        Self { bounds, counts: [0; MAX_BOUNDS + 1], sum: 0.0 }
    }

    /// What was counted elsewhere, with one count a bound and one for what lies above.
    ///
    /// # Panics
    /// If there are other numbers of bounds and counts than that, as for [`Self::new`].
    #[must_use]
    pub fn counted(bounds: &'static [f64], counts: &[u64], sum: f64) -> Self {
        assert_eq!(counts.len(), bounds.len() + 1, "one count a bound, and one above");
        let mut histogram = Self { sum, ..Self::new(bounds) };
        histogram.counts[..counts.len()].copy_from_slice(counts);
        histogram
    }

    /// Counts one value.
    pub fn observe(&mut self, value: f64) {
        self.count_in(Placed::of(value, self.bounds));
    }

    /// Counts a value whose bucket is known.
    pub(super) fn count_in(&mut self, placed: Placed) {
        self.counts[placed.bucket] += 1;
        self.sum += placed.value;
    }

    /// How many values were counted.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// The sum of the values counted.
    #[must_use]
    pub fn sum(&self) -> f64 {
        self.sum
    }

    /// Adds what another histogram with the same bounds has counted.
    pub fn add(&mut self, other: &Self) {
        debug_assert_eq!(self.bounds, other.bounds, "only equal bounds can be added");
        for (mine, theirs) in self.counts.iter_mut().zip(&other.counts) {
            *mine += theirs;
        }
        self.sum += other.sum;
    }

    /// Writes the series; `labels` is empty or `a="b",c="d"`.
    pub(crate) fn render(&self, out: &mut String, name: &str, labels: &str) {
        let comma = if labels.is_empty() { "" } else { "," };
        let mut total = 0;
        for (bound, count) in self.bounds.iter().zip(&self.counts) {
            total += count;
            // Writing to a String cannot fail.
            let _ = writeln!(out, "{name}_bucket{{{labels}{comma}le=\"{bound}\"}} {total}");
        }
        total += self.counts[self.bounds.len()];
        let _ = writeln!(out, "{name}_bucket{{{labels}{comma}le=\"+Inf\"}} {total}");
        let (open, close) = if labels.is_empty() { ("", "") } else { ("{", "}") };
        let _ = writeln!(out, "{name}_sum{open}{labels}{close} {}", self.sum);
        let _ = writeln!(out, "{name}_count{open}{labels}{close} {total}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_on_a_bound_belongs_to_it_and_buckets_are_cumulative() {
        let mut histogram = Histogram::new(&[1.0, 5.0]);
        for value in [0.5, 1.0, 3.0, 9.0] {
            histogram.observe(value);
        }
        let mut text = String::new();
        histogram.render(&mut text, "x", "a=\"b\"");
        assert_eq!(
            text,
            "x_bucket{a=\"b\",le=\"1\"} 2\nx_bucket{a=\"b\",le=\"5\"} 3\n\
             x_bucket{a=\"b\",le=\"+Inf\"} 4\nx_sum{a=\"b\"} 13.5\nx_count{a=\"b\"} 4\n"
        );
        assert_eq!((histogram.count(), histogram.sum()), (4, 13.5));
    }

    #[test]
    fn without_labels_only_buckets_have_braces() {
        let mut text = String::new();
        Histogram::new(&[2.0]).render(&mut text, "y", "");
        assert_eq!(text, "y_bucket{le=\"2\"} 0\ny_bucket{le=\"+Inf\"} 0\ny_sum 0\ny_count 0\n");
    }
}
