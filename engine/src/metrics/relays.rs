//! What a core counts of connections that go to other gateways, and come from them.

use std::fmt::Write;

use super::labels::{RelayCause, RelayOutcome, TakenCause, TakenOutcome};
use super::{family, single};

/// Counters of relays between gateways.
#[derive(Clone, Debug)]
pub struct Relays {
    /// Relays of this core that last now, by [`RelayCause`].
    pub active: [u64; RelayCause::COUNT],
    /// Connections of clients that went where their first request belonged, and carried others' calls
    /// later.
    pub shared: u64,
    begun: [[u64; RelayOutcome::COUNT]; RelayCause::COUNT],
    taken: [[u64; TakenOutcome::COUNT]; TakenCause::COUNT],
}

impl Default for Relays {
    fn default() -> Self {
        Self {
            active: [0; RelayCause::COUNT],
            shared: 0,
            begun: [[0; RelayOutcome::COUNT]; RelayCause::COUNT],
            taken: [[0; TakenOutcome::COUNT]; TakenCause::COUNT],
        }
    }
}

impl Relays {
    /// Counts a connection that belonged elsewhere.
    pub fn count(&mut self, cause: RelayCause, outcome: RelayOutcome) {
        self.begun[cause.index()][outcome.index()] += 1;
    }

    /// Counts one that another gateway brought.
    pub fn count_taken(&mut self, cause: TakenCause, outcome: TakenOutcome) {
        self.taken[cause.index()][outcome.index()] += 1;
    }

    /// How often that was counted.
    #[must_use]
    pub fn of(&self, cause: RelayCause, outcome: RelayOutcome) -> u64 {
        self.begun[cause.index()][outcome.index()]
    }

    /// The same for connections that others brought.
    #[must_use]
    pub fn taken(&self, cause: TakenCause, outcome: TakenOutcome) -> u64 {
        self.taken[cause.index()][outcome.index()]
    }

    pub(super) fn add(&mut self, other: &Self) {
        super::add_counts(&mut self.active, &other.active);
        self.shared += other.shared;
        for (mine, theirs) in self.begun.iter_mut().zip(&other.begun) {
            super::add_counts(mine, theirs);
        }
        for (mine, theirs) in self.taken.iter_mut().zip(&other.taken) {
            super::add_counts(mine, theirs);
        }
    }

    pub(super) fn render(&self, out: &mut String) {
        let name = "ringway_relays_total";
        family(out, name, "counter", "Connections that belonged to another gateway.");
        for cause in RelayCause::ALL {
            for outcome in RelayOutcome::ALL {
                series(out, name, (cause.label(), outcome.label()), self.of(*cause, *outcome));
            }
        }
        let name = "ringway_relays_taken_total";
        family(out, name, "counter", "Connections that other gateways brought.");
        for cause in TakenCause::ALL {
            for outcome in TakenOutcome::ALL {
                series(out, name, (cause.label(), outcome.label()), self.taken(*cause, *outcome));
            }
        }
        let name = "ringway_relays_active";
        family(out, name, "gauge", "Connections that are relayed to other gateways now.");
        let labels = RelayCause::ALL.iter().map(|cause| cause.label());
        super::each(out, name, "cause", labels.zip(self.active));
        single(
            out,
            ("ringway_relays_shared_total", "counter"),
            "Client connections that followed their first user's session and carried another user's calls.",
            self.shared,
        );
    }
}

fn series(out: &mut String, name: &str, (cause, outcome): (&str, &str), count: u64) {
    // Writing to a String cannot fail.
    let _ = writeln!(out, "{name}{{cause=\"{cause}\",outcome=\"{outcome}\"}} {count}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_counted_is_shown_and_added() {
        let mut one = Relays::default();
        one.count(RelayCause::Callback, RelayOutcome::Relayed);
        one.count_taken(TakenCause::None, TakenOutcome::Forged);
        one.active[RelayCause::Client.index()] = 2;
        one.shared = 3;
        let mut sum = Relays::default();
        sum.add(&one);
        sum.add(&one);
        let mut text = String::new();
        sum.render(&mut text);
        for line in [
            "ringway_relays_total{cause=\"callback\",outcome=\"relayed\"} 2",
            "ringway_relays_total{cause=\"fallback\",outcome=\"unreachable\"} 0",
            "ringway_relays_taken_total{cause=\"none\",outcome=\"forged\"} 2",
            "ringway_relays_active{cause=\"client\"} 4",
            "ringway_relays_shared_total 6",
        ] {
            assert!(text.lines().any(|told| told == line), "{line} is missing: {text}");
        }
    }
}
