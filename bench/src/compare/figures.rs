//! Figures and ratios out of the runs that count.

use std::fmt;

use serde::Serialize;

use super::peer::{Class, Peer};
use super::shape::{Figure, Shape};
use super::{Run, is_direct};

/// What a gateway's metrics call messages from core to core.
const MESSAGES: &str = "ringway_cross_core_messages_total";
/// What a run's other phases are called: a stream beside nothing, a call on a live session.
const ALONE: &str = "alone";
const PINNED: &str = "pinned";

/// Median with its range.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Spread {
    pub median: f64,
    pub min: f64,
    pub max: f64,
}

impl Spread {
    /// Of at least one value.
    pub fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let (low, high) = (values[(values.len() - 1) / 2], values[values.len() / 2]);
        Some(Self { median: f64::midpoint(low, high), min, max })
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { median, min, max } = *self;
        // Three significant digits, whatever the size.
        let digits = match median.abs() {
            m if m >= 100.0 => 0,
            m if m >= 10.0 => 1,
            m if m >= 1.0 => 2,
            _ => 3,
        };
        write!(f, "{median:.digits$} ({min:.digits$}-{max:.digits$})")
    }
}

/// The runs, asked by shape and peer.
#[derive(Debug, Clone, Copy)]
pub struct Figures<'a> {
    /// In the order they ran.
    pub shapes: &'a [Shape],
    /// In the order they ran.
    pub peers: &'a [Peer],
    runs: &'a [Run],
}

impl<'a> Figures<'a> {
    /// Of these runs.
    pub fn new(shapes: &'a [Shape], peers: &'a [Peer], runs: &'a [Run]) -> Self {
        Self { shapes, peers, runs }
    }

    /// The runs of a peer in a shape.
    pub fn of(&self, shape: &Shape, peer: &Peer) -> impl Iterator<Item = &'a Run> {
        let (shape, peer, runs) = (shape.name, peer.name.clone(), self.runs);
        runs.iter().filter(move |r| r.shape == shape && r.peer == peer)
    }

    /// Any value over the rounds.
    pub fn spread(
        &self,
        shape: &Shape,
        peer: &Peer,
        value: impl Fn(&Run) -> Option<f64>,
    ) -> Option<Spread> {
        Spread::of(self.of(shape, peer).filter_map(value).collect())
    }

    /// What the shape is judged by, of one run.
    fn of_run(&self, shape: &Shape, run: &Run) -> Option<f64> {
        match shape.figure {
            Figure::Cpu => run.cpu_us(),
            Figure::Memory if run.outcome.is_none() => run.figure.filter(|_| run.counts()),
            Figure::Memory => run.counted()?.memory.per_connection("proxy"),
            Figure::AddedP50 => self.added(shape, run, |l| l.p50),
            Figure::Allocations => run.counted().and(run.figure),
            Figure::Beside => {
                let outcome = run.counted()?;
                Some(outcome.latency_us.p99 / outcome.parts.get(ALONE)?.p99)
            }
            Figure::Resume => {
                let outcome = run.counted()?;
                Some(outcome.latency_us.p50 - outcome.parts.get(PINNED)?.p50)
            }
            Figure::Messages => {
                let outcome = run.counted()?;
                // A sample that has not changed is not told.
                let sent = outcome.metrics.get(MESSAGES).copied().unwrap_or(0.0);
                Some(sent / outcome.calls as f64)
            }
        }
    }

    /// A percentile beyond that of the direct peer in the same round.
    pub fn added(
        &self,
        shape: &Shape,
        run: &Run,
        percentile: fn(&crate::load::Latency) -> f64,
    ) -> Option<f64> {
        let direct = self.peers.iter().find(|p| is_direct(p))?;
        let direct = self.of(shape, direct).find(|r| r.round == run.round)?;
        let of = |run: &Run| Some(percentile(&run.counted()?.latency_us));
        Some(of(run)? - of(direct)?)
    }

    /// What the shape is judged by.
    pub fn figure(&self, shape: &Shape, peer: &Peer) -> Option<Spread> {
        self.spread(shape, peer, |run| self.of_run(shape, run))
    }

    /// The figure of `peer` as a multiple of `base`'s, round by round.
    pub fn ratio(&self, shape: &Shape, peer: &Peer, base: &Peer) -> Option<Spread> {
        self.ratio_between((shape, peer), (shape, base))
    }

    /// One figure as a multiple of another, round by round.
    pub fn ratio_between(
        &self,
        (shape, peer): (&Shape, &Peer),
        (base_shape, base): (&Shape, &Peer),
    ) -> Option<Spread> {
        let of_base = |round| {
            let run = self.of(base_shape, base).find(|r| r.round == round)?;
            // What costs nothing is no measure.
            self.of_run(base_shape, run).filter(|value| *value > 0.0)
        };
        self.spread(shape, peer, |run| Some(self.of_run(shape, run)? / of_base(run.round)?))
    }

    /// The bare relay.
    pub fn baseline(&self) -> Option<&'a Peer> {
        self.peers.iter().find(|p| p.class == Class::Baseline)
    }

    /// The layer-7 peer with the lowest figure.
    pub fn best_l7(&self, shape: &Shape) -> Option<&'a Peer> {
        self.peers
            .iter()
            .filter(|p| p.class == Class::L7)
            .filter_map(|p| Some((self.figure(shape, p)?.median, p)))
            .min_by(|a, b| a.0.total_cmp(&b.0))
            .map(|(_, p)| p)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::shape::{ALL, choose};
    use crate::compare::testing::{peer, run, slow};

    fn shape(name: &str) -> Shape {
        choose(&[name.to_owned()]).unwrap().remove(0)
    }

    #[test]
    fn a_spread_is_the_median_with_its_range() {
        let s = Spread::of(vec![3.0, 1.0, 2.0, 10.0]).unwrap();
        assert_eq!(s.to_string(), "2.50 (1.00-10.00)");
        assert_eq!(Spread::of(vec![]), None);
    }

    #[test]
    fn ratios_are_paired_by_round_and_failed_runs_do_not_count() {
        let name = ALL[1].name;
        let peers = [peer("relay", Class::Baseline), peer("ringway", Class::Gateway)];
        let mut runs = vec![
            run(name, "relay", 1, 1.0),
            run(name, "ringway", 1, 5.0),
            run(name, "relay", 2, 2.0),
            run(name, "ringway", 2, 10.0),
            run(name, "relay", 3, 1.0),
            run(name, "ringway", 3, 1.0),
        ];
        runs[5].fault = Some("failed".to_owned());
        let figures = Figures::new(&ALL, &peers, &runs);
        let ratio = figures.ratio(&ALL[1], &peers[1], &peers[0]).unwrap();
        assert_eq!(ratio, Spread { median: 5.0, min: 5.0, max: 5.0 });
    }

    #[test]
    fn added_latency_is_beyond_the_direct_run_of_the_same_round() {
        let rate = shape("rate-10k-64x4");
        let peers = [peer("direct", Class::Direct), peer("relay", Class::Baseline)];
        let runs = [
            slow(run(rate.name, "direct", 1, 0.0), 40.0, 90.0),
            slow(run(rate.name, "relay", 1, 0.0), 100.0, 190.0),
            slow(run(rate.name, "relay", 2, 0.0), 100.0, 190.0),
        ];
        let figures = Figures::new(&ALL, &peers, &runs);
        let added = figures.figure(&rate, &peers[1]).unwrap();
        assert_eq!((added.median, added.max), (60.0, 60.0));
        let p99 = figures.spread(&rate, &peers[1], |r| figures.added(&rate, r, |l| l.p99));
        assert_eq!(p99.unwrap().median, 100.0);
    }

    #[test]
    fn a_held_connection_needs_no_outcome() {
        let held = shape("client-9000");
        let peers = [peer("ringway", Class::Gateway)];
        let mut only = run(held.name, "ringway", 1, 0.0);
        only.outcome = None;
        only.figure = Some(1234.0);
        let runs = [only];
        let figures = Figures::new(&ALL, &peers, &runs);
        assert_eq!(figures.figure(&held, &peers[0]).unwrap().median, 1234.0);
    }
}
