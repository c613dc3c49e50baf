//! What a core counts of tunnels that outlive their clients.

use super::histogram::{Histogram, RESUME_SECONDS};
use super::labels::{ResumeOutcome, ResumeWay};
use super::{family, single};
use std::fmt::Write;

/// Counters of parking and coming back.
#[derive(Clone, Debug)]
pub struct Resumes {
    /// Tunnels parked now.
    pub parked: u64,
    /// Parked tunnels closed for new sessions.
    pub yields: u64,
    counts: [[u64; ResumeOutcome::COUNT]; ResumeWay::COUNT],
    seconds: [Histogram; ResumeWay::COUNT],
}

impl Default for Resumes {
    fn default() -> Self {
        Self {
            parked: 0,
            yields: 0,
            counts: [[0; ResumeOutcome::COUNT]; ResumeWay::COUNT],
            seconds: [Histogram::new(RESUME_SECONDS); ResumeWay::COUNT],
        }
    }
}

impl Resumes {
    /// Counts a client that came back.
    pub fn count(&mut self, way: ResumeWay, outcome: ResumeOutcome) {
        self.counts[way.index()][outcome.index()] += 1;
    }

    /// Counts one whose first request went out, so many seconds after it had come.
    pub fn observe(&mut self, way: ResumeWay, seconds: f64) {
        self.count(way, ResumeOutcome::Ok);
        self.seconds[way.index()].observe(seconds);
    }

    /// How often that was counted.
    #[must_use]
    pub fn of(&self, way: ResumeWay, outcome: ResumeOutcome) -> u64 {
        self.counts[way.index()][outcome.index()]
    }

    pub(super) fn add(&mut self, other: &Self) {
        self.parked += other.parked;
        self.yields += other.yields;
        for (mine, theirs) in self.counts.iter_mut().zip(&other.counts) {
            super::add_counts(mine, theirs);
        }
        super::add_histograms(&mut self.seconds, &other.seconds);
    }

    pub(super) fn render(&self, out: &mut String) {
        single(
            out,
            ("ringway_parked_tunnels", "gauge"),
            "Tunnels kept now after their clients have gone.",
            self.parked,
        );
        single(
            out,
            ("ringway_yields_total", "counter"),
            "Parked tunnels closed because a new session needed the worker.",
            self.yields,
        );
        let name = "ringway_resumes_total";
        family(out, name, "counter", "Clients that came back to a session, by way and outcome.");
        for way in ResumeWay::ALL {
            for outcome in ResumeOutcome::ALL {
                let (count, way, outcome) = (self.of(*way, *outcome), way.label(), outcome.label());
                // Writing to a String cannot fail.
                let _ = writeln!(out, "{name}{{way=\"{way}\",outcome=\"{outcome}\"}} {count}");
            }
        }
        let name = "ringway_resume_seconds";
        let help = "From a returning client's request to its head on a tunnel.";
        family(out, name, "histogram", help);
        for way in ResumeWay::ALL.iter().filter(|way| **way != ResumeWay::None) {
            let label = format!("way=\"{}\"", way.label());
            self.seconds[way.index()].render(out, name, &label);
        }
    }
}
