//! A slow stream of small messages, alone and then beside a bulk stream through the same proxy.
//!
//! The paced threads go before the bulk's on their CPU, as far as the system allows, so that the
//! generator adds as little as it can. What remains shows with nothing between (peer `direct`).

use std::time::Duration;

use crate::caller::Work;
use crate::load::{Crew, Kind, LoadFault, Outcome, Plan, SMALL, measure};
use crate::outcome::write_histograms;
use crate::socket::Route;

/// Messages a second of each paced connection, when no rate is given.
const RATE: f64 = 60.0;
/// The parts of the outcome.
const PARTS: [&str; 2] = ["alone", "beside"];

/// The bulk.
#[derive(Debug, Clone, Copy)]
pub struct Bulk {
    /// Its connections, each with one stream.
    pub connections: usize,
    /// Payload bytes of its messages.
    pub message: u32,
    /// How long each of its reads waits for the one before, of a bulk that is not read.
    pub slow: Option<Duration>,
}

/// Runs the plan's connections as paced ping-pongs, alone and beside `bulk`. The outcome is that
/// of the second run, with the latencies of both as the parts `alone` and `beside`.
///
/// # Errors
/// As [`crate::load::run`].
pub fn run(plan: &Plan, bulk: Bulk) -> Result<Outcome, LoadFault> {
    let rate = plan.rate.unwrap_or(RATE * plan.connections as f64);
    let kind = Kind::PingPong { in_flight: 1 };
    let paced = Plan { kind, rate: Some(rate), streams: 1, ..plan.clone() };
    let stream = Plan {
        kind: Kind::ServerStream { messages: None },
        rate: None,
        active: None,
        connections: bulk.connections,
        streams: 1,
        threads: 1,
        work: Work { message: plan.work.message, answer: bulk.message },
        route: Route { slow: bulk.slow, ..plan.route.clone() },
        ..plan.clone()
    };
    let first = Plan { metrics: None, ..paced.clone() };
    let first = measure(&[Crew { plan: &first, urgent: true }])?;
    let alone = first.outcome;
    let crews = [Crew { plan: &paced, urgent: true }, Crew { plan: &stream, urgent: false }];
    let beside = measure(&crews)?;
    let mut outcome = beside.outcome;
    let latencies = [alone.latency_us, outcome.latency_us];
    outcome.parts.extend(PARTS.map(str::to_owned).into_iter().zip(latencies));
    outcome.failed += alone.failed;
    for (cause, count) in alone.failures {
        *outcome.failures.entry(cause).or_default() += count;
    }
    if let Some(bulk) = beside.tallies.get(1) {
        let elapsed = Duration::from_nanos(outcome.elapsed_ns);
        let bytes = bulk.calls as f64 * stream.unit_bytes();
        outcome.bulk_bytes_per_s = Some(bytes / elapsed.as_secs_f64());
        outcome.failed += bulk.failures.total();
        for (cause, count) in bulk.failures.by_cause() {
            *outcome.failures.entry(cause).or_default() += count;
        }
    }
    if let (Some(path), [alone, ..], [beside, ..]) =
        (&plan.hdr, &first.tallies[..], &beside.tallies[..])
    {
        let latencies = [(Some(PARTS[0]), &alone.latency), (Some(PARTS[1]), &beside.latency)];
        write_histograms(path, plan.counted, &latencies)?;
        outcome.hdr = Some(path.clone());
    }
    Ok(outcome)
}

/// Runs small messages to and fro on a connection, alone and then with a stream of the plan's answers
/// without end on the same connection. The outcome is that of the second run, whose units are the
/// stream's messages; the parts `alone` and `beside` are the small ones.
///
/// # Errors
/// As [`crate::load::run`].
pub fn shared(plan: &Plan) -> Result<Outcome, LoadFault> {
    let rate = plan.rate.unwrap_or(RATE * plan.connections as f64);
    let small = Work { message: plan.work.message, answer: plan.work.message };
    let kind = Kind::PingPong { in_flight: 1 };
    let alone = Plan { kind, rate: Some(rate), streams: 1, work: small, ..plan.clone() };
    let first = measure(&[Crew { plan: &alone, urgent: false }])?;
    let shared = Plan { kind: Kind::Shared, rate: Some(rate), streams: 2, ..plan.clone() };
    let second = measure(&[Crew { plan: &shared, urgent: false }])?;
    let mut outcome = second.outcome;
    let beside = outcome.parts.remove(SMALL).unwrap_or_default();
    let latencies = [first.outcome.latency_us, beside];
    outcome.parts.extend(PARTS.map(str::to_owned).into_iter().zip(latencies));
    outcome.failed += first.outcome.failed;
    for (cause, count) in first.outcome.failures {
        *outcome.failures.entry(cause).or_default() += count;
    }
    Ok(outcome)
}
