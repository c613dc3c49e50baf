//! How many calls a second a proxy answers while their 99th percentile stays within a bound: what
//! can be compared is the rate at an equal tail, not the tail at an equal rate.

use std::time::Duration;

use crate::load::{Crew, LoadFault, Outcome, Plan, measure};
use crate::outcome::write_histograms;
use crate::tally::Tally;

/// Rates that are tried, each half of the way to what is known.
const STEPS: u32 = 7;
/// The highest rate tried, as a multiple of what a closed loop does.
const BEYOND: f64 = 2.0;
/// Share of the plan's seconds that each rate is tried for, and the least.
const SHARE: u32 = 4;
const LEAST: Duration = Duration::from_millis(200);
/// Share of the calls that were due which must have been answered in the count.
const KEPT: f64 = 0.98;

/// Finds the rate. The outcome is that of the highest rate at which the 99th percentile was at most
/// `bound`.
///
/// # Errors
/// As [`crate::load::run`].
pub fn run(plan: &Plan, bound: Duration) -> Result<Outcome, LoadFault> {
    let counted = (plan.counted / SHARE).max(LEAST);
    let tried = |rate| {
        let plan = Plan { rate, counted, ..plan.clone() };
        measure(&[Crew { plan: &plan, urgent: false }])
    };
    let most = bound.as_secs_f64() * 1e6;
    let closed = tried(None)?.outcome;
    let (mut low, mut high) = (0.0, closed.calls_per_s * BEYOND);
    let mut best: Option<(Outcome, Tally)> = None;
    let (mut failed, mut failures) = (closed.failed, closed.failures);
    for _ in 0..STEPS {
        let rate = f64::midpoint(low, high);
        let mut measured = tried(Some(rate))?;
        let outcome = measured.outcome;
        failed += outcome.failed;
        for (cause, count) in &outcome.failures {
            *failures.entry(cause.clone()).or_default() += count;
        }
        let kept = outcome.calls_per_s >= rate * KEPT;
        if kept && outcome.latency_us.p99 <= most {
            low = rate;
            best = Some((outcome, measured.tallies.swap_remove(0)));
        } else {
            high = rate;
        }
    }
    let Some((mut outcome, tally)) = best else {
        let why = format!("at no rate that was tried was p99 at most {most:.0} us");
        return Ok(Outcome { not_built: Some(why), ..Outcome::default() });
    };
    (outcome.failed, outcome.failures) = (failed, failures);
    if let Some(path) = &plan.hdr {
        write_histograms(path, counted, &tally.histograms().collect::<Vec<_>>())?;
        outcome.hdr = Some(path.clone());
    }
    Ok(outcome)
}
