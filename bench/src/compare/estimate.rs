//! Estimates how long a comparison takes, before it begins, and how long a quick run may count.

use std::fmt;

use super::peer::Peer;
use super::shape::{Shape, Work};
use super::test_bed::CHECK;
use super::{Request, is_direct};

/// The seconds that a quick run of everything may take.
pub const QUICK_SECONDS: f64 = 25.0 * 60.0;
/// Seconds to start and end a peer, its endpoint and its load.
const START: f64 = 0.4;
/// Seconds to set a connection up, its session included.
const CONNECTION: f64 = 0.000_25;
/// Seconds that some kinds of work need besides. A stream beside bulk is measured alone first, a
/// resume rests, and a held connection settles.
const EXTRA: f64 = 0.5;
/// Seconds to set up clients that do not read.
const SLOW: f64 = 3.0;
/// From so many connections on a shape takes long to set up, and more rounds say little more.
const MANY: usize = 1000;
/// Rounds of such a shape.
const FEW: usize = 2;
/// Bounds of the seconds that a quick run counts.
const QUICK: (f64, f64) = (0.3, 2.0);

/// Rounds that a shape gets.
pub fn rounds(request: &Request, shape: &Shape) -> usize {
    let many = shape.connections >= MANY || shape.more.contains(&"--slow-ms");
    match (many, request.budget) {
        (true, Some(_)) => 1,
        (true, None) => request.rounds.min(FEW),
        (false, _) => request.rounds,
    }
}

/// What a comparison takes.
#[derive(Debug, Clone, Copy, PartialEq)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Estimate {
    pub seconds: f64,
    pub runs: usize,
}

impl Estimate {
    /// An estimate for everything that is to run.
    pub fn of(request: &Request, shapes: &[Shape], peers: &[Peer]) -> Self {
        // The generator is checked first, in three runs of its own.
        let check = 3.0 * (request.warm_up + request.seconds.min(CHECK));
        let mut sum = Self { seconds: check, runs: 0 };
        for shape in shapes {
            for peer in peers.iter().filter(|peer| shape.is_for(peer)) {
                let start = if is_direct(peer) { START / 2.0 } else { START };
                let counted = match shape.work {
                    Work::Load => request.warm_up + request.seconds,
                    Work::Hold => EXTRA,
                };
                let is = |kinds: &[&str]| shape.more.iter().any(|m| kinds.contains(m));
                let mut extra = 0.0;
                if is(&["beside", "resume", "shared"]) {
                    extra += EXTRA + request.seconds;
                }
                if is(&["--slow-ms"]) {
                    extra += SLOW;
                }
                if is(&["capacity"]) {
                    extra += 8.0 * (request.warm_up + request.seconds / 4.0);
                }
                let set_up = shape.connections as f64 * CONNECTION;
                let rounds = rounds(request, shape);
                sum.runs += rounds;
                sum.seconds += rounds as f64 * (start + set_up + counted + extra);
            }
        }
        sum
    }
}

impl fmt::Display for Estimate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seconds, runs } = *self;
        if seconds < 90.0 {
            return write!(f, "{runs} runs, about {seconds:.0} seconds");
        }
        write!(f, "{runs} runs, about {:.0} minutes", (seconds / 60.0).round())
    }
}

/// Chooses the counted seconds of a request that has a budget. Other requests stay as they are.
pub fn settle(request: &Request, shapes: &[Shape], peers: &[Peer]) -> Request {
    let mut settled = request.clone();
    let Some(budget) = request.budget else { return settled };
    let at = |seconds| {
        let tried = Request { seconds, ..request.clone() };
        Estimate::of(&tried, shapes, peers).seconds
    };
    // The estimate grows with the counted seconds as a straight line.
    let (low, high) = (at(0.0), at(1.0));
    settled.seconds = ((budget - low) / (high - low).max(1e-9)).clamp(QUICK.0, QUICK.1);
    settled
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::peer::Class;
    use crate::compare::rows::ALL;
    use crate::compare::testing::{peer, request};

    #[test]
    fn a_quick_run_uses_its_budget_and_says_so_before() {
        let peers: Vec<Peer> = (0..15).map(|i| peer(&format!("p{i}"), Class::L7)).collect();
        let quick = Request { rounds: 2, budget: Some(1500.0), ..request() };
        let settled = settle(&quick, &ALL, &peers);
        assert!(settled.seconds > QUICK.0 && settled.seconds < QUICK.1, "{}", settled.seconds);
        let estimate = Estimate::of(&settled, &ALL, &peers);
        assert!((estimate.seconds - 1500.0).abs() < 1.0, "{estimate:?}");
        assert!(estimate.to_string().ends_with("about 25 minutes"), "{estimate}");
        assert_eq!(settle(&request(), &ALL, &peers).seconds, request().seconds);
    }
}
