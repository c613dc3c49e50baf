//! The table, what is owed, and where the gateway loses.

use std::fmt;

use super::peer::{Behind, Class, Peer};
use super::shape::{Figure, Shape};
use super::{Run, is_direct, is_judged};

/// Differences below this are noise on the machines this was made on.
const NOISE: f64 = 0.05;
/// Share of a CPU above which it counts as used up.
const FULL: f64 = 0.9;

/// CPUs kept busy by others above which a row says so.
const OTHERS: f64 = 0.12;

/// A value of a run that counts.
type Value = fn(&Run) -> Option<f64>;

/// Median with its range.
#[derive(Debug, Clone, Copy, PartialEq)]
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
        let digits = match median {
            m if m >= 100.0 => 0,
            m if m >= 10.0 => 1,
            m if m >= 1.0 => 2,
            _ => 3,
        };
        write!(f, "{median:.digits$} ({min:.digits$}-{max:.digits$})")
    }
}

/// Everything the terminal shows about the runs.
#[derive(Debug)]
pub struct Report<'a> {
    shapes: &'a [Shape],
    peers: &'a [Peer],
    runs: &'a [Run],
}

impl<'a> Report<'a> {
    /// About these runs.
    pub fn new(shapes: &'a [Shape], peers: &'a [Peer], runs: &'a [Run]) -> Self {
        Self { shapes, peers, runs }
    }

    fn of(&self, shape: &Shape, peer: &Peer) -> impl Iterator<Item = &'a Run> {
        let (shape, peer, runs) = (shape.name, peer.name.clone(), self.runs);
        runs.iter().filter(move |r| r.shape == shape && r.peer == peer)
    }

    fn spread(
        &self,
        shape: &Shape,
        peer: &Peer,
        value: impl Fn(&Run) -> Option<f64>,
    ) -> Option<Spread> {
        Spread::of(self.of(shape, peer).filter_map(value).collect())
    }

    /// What the shape is judged by, of one run.
    fn figure(&self, shape: &Shape, run: &Run) -> Option<f64> {
        match shape.figure {
            Figure::Cpu => run.cpu_us(),
            Figure::Memory => run.counted()?.memory.per_connection("proxy"),
            Figure::AddedP50 => {
                let direct = self.peers.iter().find(|p| is_direct(p))?;
                let direct = self.of(shape, direct).find(|r| r.round == run.round)?;
                let p50 = |run: &Run| Some(run.counted()?.latency_us.p50);
                Some(p50(run)? - p50(direct)?)
            }
        }
    }

    /// The figure of `peer` as a multiple of `base`'s, round by round.
    fn ratio(&self, shape: &Shape, peer: &Peer, base: &Peer) -> Option<Spread> {
        let of_base = |round| self.figure(shape, self.of(shape, base).find(|r| r.round == round)?);
        self.spread(shape, peer, |run| Some(self.figure(shape, run)? / of_base(run.round)?))
    }

    fn baseline(&self) -> Option<&'a Peer> {
        self.peers.iter().find(|p| p.class == Class::Baseline)
    }

    fn cheapest_l7(&self, shape: &Shape) -> Option<&'a Peer> {
        let median = |p: &&Peer| Some(self.spread(shape, p, |r| self.figure(shape, r))?.median);
        self.peers
            .iter()
            .filter(|p| p.class == Class::L7)
            .filter_map(|p| Some((median(&p)?, p)))
            .min_by(|a, b| a.0.total_cmp(&b.0))
            .map(|(_, p)| p)
    }

    /// "met" or "missed" for each ratio owed, of the gateway only.
    fn verdict(&self, shape: &Shape, peer: &Peer) -> String {
        if !is_judged(peer) {
            return String::new();
        }
        let word = |has: f64, owed: f64| if has <= owed { "met" } else { "MISSED" };
        let judge = |base: Option<&Peer>, owed: Option<f64>, unit: &str| {
            let (ratio, owed) = (self.ratio(shape, peer, base?)?.median, owed?);
            Some(format!("<= {owed} x {unit}: {ratio:.2}, {}", word(ratio, owed)))
        };
        let owed = shape.owed;
        let special = match (peer.behind, peer.spins) {
            (Behind::Worker, _) if owed.relay_by_worker.is_some() => owed.relay_by_worker,
            (_, true) => owed.relay_spinning,
            _ => None,
        };
        let l7 = self.cheapest_l7(shape);
        let unit = l7.map_or("", |p| p.name.as_str());
        let plain = || {
            let has = self.spread(shape, peer, |run| self.figure(shape, run))?.median;
            let most = owed.at_most?;
            Some(format!("<= {most}: {has:.0}, {}", word(has, most)))
        };
        let all = [
            judge(self.baseline(), special.or(owed.relay), "relay"),
            judge(l7, owed.l7, unit),
            plain(),
        ];
        all.into_iter().flatten().collect::<Vec<_>>().join("; ")
    }

    /// What a reader must know about a row.
    fn remark(&self, shape: &Shape, peer: &Peer) -> String {
        let (good, all) = (
            self.of(shape, peer).filter(|r| r.counted().is_some()).count(),
            self.of(shape, peer).count(),
        );
        let mut remarks = vec![];
        if good < all {
            remarks.push(format!("{} of {all} runs not counted", all - good));
        }
        if !is_direct(peer) && self.generator_bound(shape, peer) {
            remarks.push("rate limited by the load's CPU".to_owned());
        }
        let others = self.spread(shape, peer, |r| Some(r.counted()?.other_cpus));
        if let Some(others) = others.filter(|o| o.median > OTHERS) {
            remarks.push(format!("other programs kept {:.2} CPUs busy", others.median));
        }
        remarks.join("; ")
    }

    /// Whether load and endpoint used up their CPU while the peer's had time left.
    fn generator_bound(&self, shape: &Shape, peer: &Peer) -> bool {
        let share = |of: fn(&crate::load::Outcome) -> u64| {
            self.spread(shape, peer, |r| {
                let o = r.counted()?;
                Some(of(o) as f64 / o.elapsed_ns as f64)
            })
        };
        let load = share(|o| o.own_cpu_ns + o.cpu_ns.get("endpoint").copied().unwrap_or(0));
        let proxy = share(|o| o.cpu_ns.get("proxy").copied().unwrap_or(0));
        load.zip(proxy).is_some_and(|(l, p)| l.median > FULL && p.median < FULL)
    }

    fn rows(&self, shape: &Shape) -> Vec<[String; 7]> {
        let text = |s: Option<Spread>| s.map_or_else(|| "-".to_owned(), |s| s.to_string());
        let mut rows = vec![];
        for peer in self.peers {
            if self.of(shape, peer).next().is_none() {
                continue;
            }
            let ratio = self.baseline().and_then(|b| self.ratio(shape, peer, b));
            let rate = self.spread(shape, peer, |r| Some(r.counted()?.calls_per_s / 1e3));
            let p50 = self.spread(shape, peer, |r| Some(r.counted()?.latency_us.p50));
            let p99 = self.spread(shape, peer, |r| Some(r.counted()?.latency_us.p99));
            let notes = [self.verdict(shape, peer), self.remark(shape, peer)];
            let notes: Vec<_> = notes.into_iter().filter(|n| !n.is_empty()).collect();
            rows.push([
                peer.name.clone(),
                text(self.spread(shape, peer, |r| self.figure(shape, r))),
                text(ratio),
                text(rate),
                text(p50),
                text(p99),
                notes.join("; "),
            ]);
        }
        rows
    }

    /// One line for everything the gateway owes and misses, or another peer does better.
    fn losses(&self) -> Vec<String> {
        let mut lines = vec![];
        for shape in self.shapes {
            for gateway in self.peers.iter().filter(|p| is_judged(p)) {
                lines.extend(self.losses_of(shape, gateway));
            }
        }
        lines
    }

    fn losses_of(&self, shape: &Shape, gateway: &Peer) -> Vec<String> {
        let mut lines = vec![];
        let verdict = self.verdict(shape, gateway);
        for part in verdict.split("; ").filter(|p| p.ends_with("MISSED")) {
            let what = shape.figure.head();
            lines.push(format!("{}: {} owes {what} {part}", shape.name, gateway.name));
        }
        let bad = self.of(shape, gateway).filter(|r| r.counted().is_none()).count();
        if bad > 0 {
            lines.push(format!("{}: {bad} runs of {} did not count", shape.name, gateway.name));
        }
        let figures: [(&str, Value, bool); 3] = [
            ("CPU us a unit", Run::cpu_us, false),
            ("units/s", |r| Some(r.counted()?.calls_per_s), true),
            ("p99 us", |r| Some(r.counted()?.latency_us.p99), false),
        ];
        for rival in self.peers.iter().filter(|p| p.class == Class::L7) {
            for (name, value, more_is_better) in figures {
                let median = |p: &Peer| Some(self.spread(shape, p, value)?.median);
                let (Some(ours), Some(theirs)) = (median(gateway), median(rival)) else { continue };
                let worse = if more_is_better { theirs / ours } else { ours / theirs };
                if worse > 1.0 + NOISE {
                    lines.push(format!(
                        "{}: {name}: {} {ours:.1}, {} {theirs:.1}",
                        shape.name, gateway.name, rival.name
                    ));
                }
            }
        }
        lines
    }
}

fn heads(shape: &Shape) -> [&'static str; 7] {
    let figure = shape.figure.head();
    ["peer", figure, "x relay", "k units/s", "p50 us", "p99 us", "owed; remarks"]
}

impl fmt::Display for Report<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "median (min-max); ratios round by round")?;
        for shape in self.shapes {
            let rows = self.rows(shape);
            if rows.is_empty() {
                continue;
            }
            writeln!(f, "\n{} (a unit is {})", shape.name, shape.about)?;
            let heads = heads(shape);
            let width = |i: usize| {
                rows.iter().map(|r| r[i].len()).chain([heads[i].len()]).max().unwrap_or(0)
            };
            let widths: [usize; 7] = std::array::from_fn(width);
            let line = |cells: [&str; 7]| {
                let padded: Vec<_> =
                    cells.iter().zip(widths).map(|(c, w)| format!("{c:<w$}")).collect();
                padded.join("  ").trim_end().to_owned()
            };
            writeln!(f, "  {}", line(heads))?;
            for row in &rows {
                writeln!(f, "  {}", line(row.each_ref().map(String::as_str)))?;
            }
        }
        self.write_faults(f)?;
        if !self.peers.iter().any(is_judged) {
            return Ok(());
        }
        writeln!(f, "\nwhere we lose")?;
        let losses = self.losses();
        if losses.is_empty() {
            writeln!(f, "  nowhere, against what ran here")?;
        }
        losses.iter().try_for_each(|line| writeln!(f, "  {line}"))
    }
}

impl Report<'_> {
    fn write_faults(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bad = self.runs.iter().filter(|r| r.counted().is_none()).peekable();
        if bad.peek().is_some() {
            writeln!(f, "\nnot counted")?;
        }
        bad.try_for_each(|r| {
            let why = r.fault.as_deref().unwrap_or("no call completed");
            writeln!(f, "  {} round {} {}: {why}", r.shape, r.round, r.peer)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::shape::ALL;
    use crate::load::{Latency, Outcome};

    fn peer(name: &str, class: Class) -> Peer {
        Peer {
            name: name.to_owned(),
            about: String::new(),
            class,
            behind: Behind::Backend,
            spins: false,
            start: vec!["x".to_owned()],
            ready: None,
            templates: vec![],
        }
    }

    fn run(peer: &str, round: usize, cpu_ns: u64, failed: u64) -> Run {
        let latency_us = Latency { p50: 1.0, p90: 1.0, p99: 1.0, p999: 1.0, max: 1.0, count: 1000 };
        let outcome = Outcome {
            unit: "call".to_owned(),
            calls: 1000,
            elapsed_ns: 1_000_000_000,
            calls_per_s: 1000.0,
            latency_us,
            failed,
            cpu_ns: [("proxy".to_owned(), cpu_ns)].into(),
            ..Outcome::default()
        };
        let fault = (failed > 0).then(|| "failed".to_owned());
        let (shape, peer) = (ALL[1].name.to_owned(), peer.to_owned());
        Run { shape, peer, round, outcome: Some(outcome), fault }
    }

    #[test]
    fn a_spread_is_the_median_with_its_range() {
        let s = Spread::of(vec![3.0, 1.0, 2.0, 10.0]).unwrap();
        assert_eq!(s.to_string(), "2.50 (1.00-10.00)");
        assert_eq!(Spread::of(vec![]), None);
    }

    #[test]
    fn ratios_are_paired_by_round_and_failed_runs_do_not_count() {
        let peers = [
            peer("relay", Class::Baseline),
            peer("ringway", Class::Gateway),
            peer("nghttpx", Class::L7),
        ];
        let runs = [
            run("relay", 1, 1_000_000, 0),
            run("ringway", 1, 5_000_000, 0),
            run("nghttpx", 1, 4_000_000, 0),
            run("relay", 2, 2_000_000, 0),
            run("ringway", 2, 10_000_000, 0),
            run("relay", 3, 1_000_000, 0),
            run("ringway", 3, 1_000_000, 7),
        ];
        let shapes = &ALL[1..2];
        let report = Report::new(shapes, &peers, &runs);
        let ratio = report.ratio(&shapes[0], &peers[1], &peers[0]).unwrap();
        assert_eq!(ratio, Spread { median: 5.0, min: 5.0, max: 5.0 });
        let text = report.to_string();
        assert!(text.contains("<= 4 x relay: 5.00, MISSED"), "{text}");
        assert!(text.contains("<= 0.35 x nghttpx: 1.25, MISSED"), "{text}");
        assert!(text.contains("1 of 3 runs not counted"), "{text}");
        assert!(text.contains("CPU us a unit: ringway 7.5, nghttpx 4.0"), "{text}");
    }
}
