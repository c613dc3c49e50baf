//! Figures and ratios out of the runs that count.

use std::fmt;

use serde::Serialize;

use super::peer::{Class, Peer};
use super::rows::ROUND_TRIP_US;
use super::shape::{Figure, Shape};
use super::{Run, is_direct};
use crate::load::Latency;

/// What a gateway's metrics call messages from core to core.
const MESSAGES: &str = "ringway_cross_core_messages_total";
/// What a run's other phases are called: a stream beside nothing, a call on a live session.
const ALONE: &str = "alone";
const BESIDE: &str = "beside";
const PINNED: &str = "pinned";
/// What a new connection's part until its answer begins is called.
const FIRST: &str = "first-byte";

/// Samples that must lie beyond a percentile, over all rounds: of fewer it tells little but chance.
pub const BEYOND: f64 = 10.0;

/// A percentile that is shown.
#[derive(Debug, Clone, Copy)]
pub struct Percentile {
    /// Its name.
    pub name: &'static str,
    /// Share of the samples beyond it.
    beyond: f64,
    /// How it is read.
    pub of: fn(&Latency) -> f64,
}

/// Half of the samples are below it.
pub const P50: Percentile = Percentile { name: "p50", beyond: 0.5, of: |l| l.p50 };
/// One in a hundred is beyond it.
pub const P99: Percentile = Percentile { name: "p99", beyond: 0.01, of: |l| l.p99 };
/// One in a thousand is beyond it.
pub const P999: Percentile = Percentile { name: "p99.9", beyond: 0.001, of: |l| l.p999 };

/// Median with its range.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Spread {
    pub median: f64,
    pub min: f64,
    pub max: f64,
}

impl Spread {
    /// The median and range of at least one value.
    pub fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let (low, high) = (values[(values.len() - 1) / 2], values[values.len() / 2]);
        Some(Self { median: f64::midpoint(low, high), min, max })
    }
}

/// A value with three digits that say something.
pub fn brief(value: f64) -> String {
    let text = Spread { median: value, min: value, max: value }.to_string();
    text.split(' ').next().unwrap_or_default().to_owned()
}

/// Where the values of some rounds lie together.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Mode {
    /// Their median.
    pub median: f64,
    /// How many there are.
    pub rounds: usize,
}

/// Least rounds on each side of a gap between two modes.
const MODE_ROUNDS: usize = 2;
/// Least width of such a gap, as a share of what lies below it.
const MODE_GAP: f64 = 0.25;

/// Two modes: the widest gap parts the values, each side has more than one, and the gap is wider
/// than either side.
fn modes(mut values: Vec<f64>) -> Option<[Mode; 2]> {
    values.sort_by(f64::total_cmp);
    let gap = |at: usize| values[at] - values[at - 1];
    let at = (1..values.len()).max_by(|a, b| gap(*a).total_cmp(&gap(*b)))?;
    let (low, high) = values.split_at(at);
    let width = |side: &[f64]| side.last().zip(side.first()).map_or(0.0, |(max, min)| max - min);
    let apart = low.len().min(high.len()) >= MODE_ROUNDS
        && gap(at) > MODE_GAP * low.last()?.abs()
        && gap(at) > width(low).max(width(high));
    let mode =
        |side: &[f64]| Some(Mode { median: Spread::of(side.to_vec())?.median, rounds: side.len() });
    if apart { Some([mode(low)?, mode(high)?]) } else { None }
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
        // Beside a minus a hyphen could be one too.
        let to = if min < 0.0 { " to " } else { "-" };
        write!(f, "{median:.digits$} ({min:.digits$}{to}{max:.digits$})")
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
    /// The figures of these runs.
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

    /// Any latency of a peer at a percentile over the rounds, if there are enough samples.
    pub fn latency(
        &self,
        shape: &Shape,
        peer: &Peer,
        percentile: Percentile,
        latency: impl Fn(&Run) -> Option<&Latency>,
    ) -> Option<Spread> {
        let samples: u64 = self.of(shape, peer).filter_map(&latency).map(|l| l.count).sum();
        let enough = samples as f64 * percentile.beyond >= BEYOND;
        let value = |run: &Run| latency(run).map(percentile.of);
        if enough { self.spread(shape, peer, value) } else { None }
    }

    /// The units' latency at a percentile over the rounds, if there are enough samples.
    pub fn units(&self, shape: &Shape, peer: &Peer, percentile: Percentile) -> Option<Spread> {
        self.latency(shape, peer, percentile, |run| Some(&run.counted()?.latency_us))
    }

    /// What the shape is judged by, of one run.
    fn of_run(&self, shape: &Shape, run: &Run) -> Option<f64> {
        match shape.figure {
            Figure::Cpu => run.cpu_us(),
            Figure::Interval => {
                let rate = run.counted()?.calls_per_s;
                (rate > 0.0).then(|| 1e6 / rate)
            }
            Figure::WholeMemory => {
                let memory = &run.counted()?.memory;
                Some(memory.per_connection("proxy")? + memory.kernel_per_connection("proxy")?)
            }
            Figure::FirstAnswer => Some(run.counted()?.parts.get(FIRST)?.p99),
            Figure::RoundTrips => Some(run.counted()?.parts.get(FIRST)?.p50 / ROUND_TRIP_US),
            Figure::Behind => {
                let parts = &run.counted()?.parts;
                Some(parts.get(BESIDE)?.p50 - parts.get(ALONE)?.p50)
            }
            Figure::Memory if run.outcome.is_none() => run.figure.filter(|_| run.counts()),
            Figure::Memory => run.counted()?.memory.per_connection("proxy"),
            Figure::AddedP50 => self.added_in(shape, run, P50),
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
                // A sample that has not changed is left out.
                let sent = outcome.metrics.get(MESSAGES).copied().unwrap_or(0.0);
                Some(sent / outcome.calls as f64)
            }
        }
    }

    /// A percentile beyond that of the direct peer, round by round, if there are enough samples.
    pub fn added(&self, shape: &Shape, peer: &Peer, percentile: Percentile) -> Option<Spread> {
        let direct = self.peers.iter().find(|p| is_direct(p))?;
        self.units(shape, direct, percentile).and(self.units(shape, peer, percentile))?;
        self.spread(shape, peer, |run| self.added_in(shape, run, percentile))
    }

    fn added_in(&self, shape: &Shape, run: &Run, percentile: Percentile) -> Option<f64> {
        let direct = self.peers.iter().find(|p| is_direct(p))?;
        let direct = self.of(shape, direct).find(|r| r.round == run.round)?;
        let of = |run: &Run| Some((percentile.of)(&run.counted()?.latency_us));
        Some(of(run)? - of(direct)?)
    }

    /// What the shape is judged by; nothing if it is made of percentiles with too few samples.
    pub fn figure(&self, shape: &Shape, peer: &Peer) -> Option<Spread> {
        match shape.figure {
            Figure::AddedP50 => return self.added(shape, peer, P50),
            Figure::Beside => {
                self.units(shape, peer, P99)?;
                self.latency(shape, peer, P99, |run| run.counted()?.parts.get(ALONE))?;
            }
            _ => {}
        }
        self.spread(shape, peer, |run| self.of_run(shape, run))
    }

    /// Rounds in which a latency added nothing, and all in which it is known.
    pub fn added_nothing(&self, shape: &Shape, peer: &Peer) -> (usize, usize) {
        let added = self.of(shape, peer).filter_map(|run| self.added_in(shape, run, P50));
        added.fold((0, 0), |(none, all), us| (none + usize::from(us <= 0.0), all + 1))
    }

    /// The figure of `peer` as a multiple of `base`'s.
    pub fn ratio(&self, shape: &Shape, peer: &Peer, base: &Peer) -> Option<Spread> {
        self.ratio_between((shape, peer), (shape, base))
    }

    /// One figure as a multiple of another: the median over the rounds, except for an added
    /// latency, which is the ratio of the medians.
    pub fn ratio_between(
        &self,
        (shape, peer): (&Shape, &Peer),
        (base_shape, base): (&Shape, &Peer),
    ) -> Option<Spread> {
        let pair = |run: &Run| {
            let of_base = self.of(base_shape, base).find(|r| r.round == run.round)?;
            Some((self.of_run(shape, run)?, self.of_run(base_shape, of_base)?))
        };
        let pairs: Vec<(f64, f64)> = self.of(shape, peer).filter_map(pair).collect();
        // What costs nothing is no measure.
        let measured = pairs.iter().filter(|(_, base)| *base > 0.0);
        let rounds = Spread::of(measured.map(|(value, base)| value / base).collect())?;
        if shape.figure != Figure::AddedP50 {
            return Some(rounds);
        }
        // The difference of two noisy values is a bad divisor: in one round it may be next to
        // nothing, and to leave out those below it would favour the peer with the larger base.
        let (values, bases): (Vec<_>, Vec<_>) = pairs.into_iter().unzip();
        let base = Spread::of(bases)?.median;
        let median = (base > 0.0).then_some(Spread::of(values)?.median / base)?;
        Some(Spread { median, min: rounds.min.min(median), max: rounds.max.max(median) })
    }

    /// The figure of `peer` beyond `base`'s, round by round.
    pub fn difference(&self, shape: &Shape, peer: &Peer, base: &Peer) -> Option<Spread> {
        self.spread(shape, peer, |run| {
            let of_base = self.of(shape, base).find(|r| r.round == run.round)?;
            Some(self.of_run(shape, run)? - self.of_run(shape, of_base)?)
        })
    }

    /// A percentile of the units as a multiple of another peer's, round by round, if there are
    /// enough samples of both.
    pub fn latency_ratio(
        &self,
        shape: &Shape,
        (peer, base): (&Peer, &Peer),
        percentile: Percentile,
    ) -> Option<Spread> {
        self.units(shape, base, percentile).and(self.units(shape, peer, percentile))?;
        let of = |run: &Run| Some((percentile.of)(&run.counted()?.latency_us));
        self.spread(shape, peer, |run| {
            let of_base = self.of(shape, base).find(|r| r.round == run.round)?;
            let base = of(of_base).filter(|us| *us > 0.0)?;
            Some(of(run)? / base)
        })
    }

    /// The two modes of a figure over the rounds, if it has two.
    pub fn modes(&self, shape: &Shape, peer: &Peer) -> Option<[Mode; 2]> {
        modes(self.of(shape, peer).filter_map(|run| self.of_run(shape, run)).collect())
    }

    /// The bare relay.
    pub fn baseline(&self) -> Option<&'a Peer> {
        self.peers.iter().find(|p| p.class == Class::Baseline)
    }

    /// The layer-7 peer with the lowest figure; what costs nothing is no measure.
    pub fn best_l7(&self, shape: &Shape) -> Option<&'a Peer> {
        self.peers
            .iter()
            .filter(|p| p.class == Class::L7)
            .filter_map(|p| Some((self.figure(shape, p)?.median, p)))
            .filter(|(median, _)| *median > 0.0)
            .min_by(|a, b| a.0.total_cmp(&b.0))
            .map(|(_, p)| p)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::rows::{ALL, choose};
    use crate::compare::testing::{peer, run, slow};

    fn shape(name: &str) -> Shape {
        choose(&[name.to_owned()]).unwrap().remove(0)
    }

    #[test]
    fn a_spread_is_the_median_with_its_range() {
        let s = Spread::of(vec![3.0, 1.0, 2.0, 10.0]).unwrap();
        assert_eq!(s.to_string(), "2.50 (1.00-10.00)");
        assert_eq!(Spread::of(vec![]), None);
        let s = Spread::of(vec![1.428, -0.552, -1.5]).unwrap();
        assert_eq!(s.to_string(), "-0.552 (-1.500 to 1.428)");
    }

    #[test]
    fn two_modes_are_seen_and_one_that_is_wide_is_not() {
        let found = modes(vec![22.0, 15.0, 15.4, 22.5, 15.2]).unwrap();
        assert_eq!(found.map(|mode| (mode.median, mode.rounds)), [(15.2, 3), (22.25, 2)]);
        // One that strays is no mode, and what grows evenly has none.
        assert_eq!(modes(vec![15.0, 15.4, 15.2, 15.1, 40.0]), None);
        assert_eq!(modes(vec![10.0, 13.0, 16.0, 19.0, 22.0]), None);
        assert_eq!(modes(vec![]), None);
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
        assert_eq!(figures.added(&rate, &peers[1], P99).unwrap().median, 100.0);
        // One of a thousand samples is beyond it, two in both rounds.
        assert_eq!(figures.added(&rate, &peers[1], P999), None);
    }

    #[test]
    fn a_ratio_of_added_latencies_is_that_of_the_medians() {
        let rate = shape("rate-10k-64x4");
        let peers = [
            peer("direct", Class::Direct),
            peer("relay", Class::Baseline),
            peer("ringway", Class::Gateway),
            peer("nginx", Class::L7),
        ];
        let added =
            [("relay", [10.0, 0.5, -4.0, 8.0, 6.0]), ("ringway", [5.0, 5.0, -3.0, 4.0, 3.0])];
        let mut runs = vec![];
        for (name, added) in added {
            for (round, us) in (1..).zip(added) {
                runs.push(slow(run(rate.name, name, round, 0.0), 40.0 + us, 90.0));
            }
        }
        for round in 1..=5 {
            runs.push(slow(run(rate.name, "direct", round, 0.0), 40.0, 90.0));
            runs.push(slow(run(rate.name, "nginx", round, 0.0), 39.0, 90.0));
        }
        let figures = Figures::new(std::slice::from_ref(&rate), &peers, &runs);
        let ratio = figures.ratio(&rate, &peers[2], &peers[1]).unwrap();
        assert_eq!(ratio, Spread { median: 4.0 / 6.0, min: 0.5, max: 10.0 });
        assert_eq!(figures.added_nothing(&rate, &peers[1]), (1, 5));
        // Nginx added less than nothing: it has a ratio, and nobody has one to it.
        assert_eq!(figures.ratio(&rate, &peers[3], &peers[1]).unwrap().median, -1.0 / 6.0);
        assert_eq!(figures.ratio(&rate, &peers[2], &peers[3]), None);
        assert!(figures.best_l7(&rate).is_none());
    }

    #[test]
    fn a_percentile_needs_samples_beyond_it() {
        let beside = shape("beside-bulk");
        let peers = [peer("ringway", Class::Gateway)];
        let of = |count, round| {
            let mut run = slow(run(beside.name, "ringway", round, 0.0), 40.0, 90.0);
            if let Some(outcome) = &mut run.outcome {
                outcome.latency_us.count = count;
                outcome.parts.insert(ALONE.to_owned(), outcome.latency_us);
            }
            run
        };
        let judged = |runs: &[Run]| {
            let figures = Figures::new(std::slice::from_ref(&beside), &peers, runs);
            figures.figure(&beside, &peers[0]).map(|figure| figure.median)
        };
        assert_eq!(judged(&[of(480, 1), of(480, 2)]), None);
        assert_eq!(judged(&[of(480, 1), of(480, 2), of(480, 3)]), Some(1.0));
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
