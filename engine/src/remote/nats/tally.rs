//! What is counted of withdrawals (contract 8.1).

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crate::metrics::{each, family, single};

const PURGED: &str = "nvcf_grpc_proxy_service_pending_work_purged_total";
const SKIPPED: &str = "nvcf_grpc_proxy_service_pending_work_purge_skipped_total";

/// Why work is withdrawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trigger {
    /// The gateway ends.
    Shutdown,
    /// Nobody waits for it any more.
    ClientDeparted,
}

impl Trigger {
    const LABELS: [&str; 2] = ["shutdown", "client_departed"];
}

/// Why work was not withdrawn though somebody wanted it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Skipped {
    /// The account may not.
    Unsupported,
    /// A worker has it, or it is not queued at all.
    NothingPending,
    /// The time that a shutdown may take was over.
    BudgetExhausted,
}

impl Skipped {
    /// The reference's third reason is none of ours: what a client leaves during a shutdown is
    /// withdrawn with all the rest.
    const LABELS: [&str; 4] =
        ["invoker_unsupported", "nothing_pending", "budget_exhausted", "shutting_down"];
}

/// The counters, one set per process.
#[derive(Debug, Default)]
pub(super) struct WithdrawMeters {
    /// By trigger.
    succeeded: [AtomicU64; 2],
    failed: [AtomicU64; 2],
    skipped: [AtomicU64; Skipped::LABELS.len()],
    kept: AtomicUsize,
}

impl WithdrawMeters {
    pub(super) fn purged(&self, trigger: Trigger) {
        self.succeeded[trigger as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn failed(&self, trigger: Trigger) {
        self.failed[trigger as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn skipped(&self, reason: Skipped, count: usize) {
        self.skipped[reason as usize].fetch_add(count as u64, Ordering::Relaxed);
    }

    /// How many pieces of work the ledger holds now.
    pub(super) fn keeps(&self, kept: usize) {
        self.kept.store(kept, Ordering::Relaxed);
    }

    /// Pieces of work that were withdrawn for that reason.
    pub(super) fn withdrawn(&self, trigger: Trigger) -> u64 {
        self.succeeded[trigger as usize].load(Ordering::Relaxed)
    }

    /// As Prometheus reads it. `most`: the ledger's limit.
    pub(super) fn render(&self, out: &mut String, most: usize) {
        family(out, PURGED, "counter", "Queued work that was withdrawn.");
        for (result, counts) in [("succeeded", &self.succeeded), ("failed", &self.failed)] {
            for (trigger, count) in Trigger::LABELS.iter().zip(counts) {
                let count = count.load(Ordering::Relaxed);
                // Writing to a String cannot fail.
                let _ =
                    writeln!(out, "{PURGED}{{result=\"{result}\",trigger=\"{trigger}\"}} {count}");
            }
        }
        family(out, SKIPPED, "counter", "Queued work that was not withdrawn, and why.");
        let counts = self.skipped.iter().map(|count| count.load(Ordering::Relaxed));
        each(out, SKIPPED, "reason", Skipped::LABELS.into_iter().zip(counts));
        let kept = self.kept.load(Ordering::Relaxed) as u64;
        let name = ("ringway_nats_unsettled_work", "gauge");
        single(out, name, "Work that was published and whose worker has not come yet.", kept);
        let name = ("ringway_nats_unsettled_work_limit", "gauge");
        single(out, name, "Most of it that may be.", most as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_series_is_there_from_the_first_scrape() {
        let meters = WithdrawMeters::default();
        let mut out = String::new();
        meters.render(&mut out, 7);
        for result in ["succeeded", "failed"] {
            for trigger in ["shutdown", "client_departed"] {
                let line = format!("{PURGED}{{result=\"{result}\",trigger=\"{trigger}\"}} 0\n");
                assert!(out.contains(&line), "{out}");
            }
        }
        for reason in
            ["invoker_unsupported", "nothing_pending", "shutting_down", "budget_exhausted"]
        {
            assert!(out.contains(&format!("{SKIPPED}{{reason=\"{reason}\"}} 0\n")), "{out}");
        }
        meters.purged(Trigger::ClientDeparted);
        meters.failed(Trigger::Shutdown);
        meters.skipped(Skipped::BudgetExhausted, 3);
        out.clear();
        meters.render(&mut out, 7);
        for line in [
            "{result=\"succeeded\",trigger=\"client_departed\"} 1\n",
            "{result=\"failed\",trigger=\"shutdown\"} 1\n",
            "{reason=\"budget_exhausted\"} 3\n",
        ] {
            assert!(out.contains(line), "{out}");
        }
    }
}
