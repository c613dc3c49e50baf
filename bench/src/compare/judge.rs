//! The targets, whether they are met, and where the gateway loses.

use std::fmt;

use serde::Serialize;

use super::figures::{Figures, P50, P99, P999, Spread};
use super::peer::{Behind, Class, Peer};
use super::shape::{Figure, Shape};
use super::{Run, is_judged};

/// Differences below this are noise on the machines this was made on.
const NOISE: f64 = 0.05;

/// One target, and whether it is met.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Judgement {
    /// What it is a multiple of, or lies beyond; empty if it is a figure by itself.
    pub unit: String,
    /// The percentile of the units that is judged, if it is not the shape's figure.
    pub of: Option<&'static str>,
    /// The target is an amount beyond the unit, and no multiple of it.
    pub beyond_unit: bool,
    /// The most it may be.
    pub target: f64,
    /// What it is.
    pub has: Spread,
    /// Of several targets this one allows least.
    pub binds: bool,
}

impl Judgement {
    /// A multiple of `unit`.
    fn times(unit: &str, target: f64, has: Spread) -> Self {
        Self { unit: unit.to_owned(), of: None, beyond_unit: false, target, has, binds: false }
    }

    /// Whether the median meets the target.
    pub fn met(&self) -> bool {
        self.has.median <= self.target
    }

    /// How far the median is from the target, as a share of the target; above zero if missed.
    pub fn beyond(&self) -> Option<f64> {
        (self.target > 0.0).then(|| self.has.median / self.target - 1.0)
    }
}

impl fmt::Display for Judgement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { unit, of, beyond_unit, target, has, binds } = self;
        if let Some(percentile) = of {
            write!(f, "{percentile} ")?;
        }
        let times = match (unit.as_str(), beyond_unit) {
            ("", _) => String::new(),
            (unit, false) => format!(" x {unit}"),
            (unit, true) => format!(" over {unit}"),
        };
        let target = rounded(*target);
        write!(f, "<= {target}{times}: {has}, ")?;
        // A distance from the target means nothing if the median is below zero.
        let percent = self.beyond().filter(|_| has.median > 0.0);
        let percent = percent.map(|beyond| (beyond.abs() * 100.0).round());
        match (self.met(), percent) {
            (true, Some(percent)) => write!(f, "met, {percent} % below")?,
            (true, None) => f.write_str("met")?,
            (false, Some(percent)) => write!(f, "MISSED by {percent} %")?,
            (false, None) => f.write_str("MISSED")?,
        }
        if *binds { f.write_str(" (binds)") } else { Ok(()) }
    }
}

/// A target as text, with no more digits than it was set with.
fn rounded(target: f64) -> String {
    let text = format!("{target:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Whether the targets of `shape` hold for `peer`.
pub fn has_targets(shape: &Shape, peer: &Peer) -> bool {
    !shape.targets.is_nothing() && is_judged(peer) && shape.gateways.contains(&peer.name.as_str())
}

/// All targets of `peer` in `shape`, as far as its runs and those of the others show them.
pub fn judge(figures: &Figures<'_>, shape: &Shape, peer: &Peer) -> Vec<Judgement> {
    if !has_targets(shape, peer) {
        return vec![];
    }
    let targets = shape.targets;
    let against = |base: Option<&Peer>, most: Option<f64>, unit: &str| {
        let (base, target) = (base?, most?);
        let has = figures.ratio(shape, peer, base)?;
        let allowed = figures.figure(shape, base)?.median * target;
        Some((Judgement::times(unit, target, has), allowed))
    };
    let special = match (peer.behind, peer.spins) {
        (_, true) => targets.relay_spinning,
        (Behind::Worker | Behind::Program, false) => targets.relay_by_worker,
        _ => None,
    };
    let l7 = figures.best_l7(shape);
    let name = l7.map_or("", |p| p.name.as_str());
    let ratios = [
        against(figures.baseline(), special.or(targets.relay), "relay"),
        against(l7, targets.l7, name),
    ];
    let mut ratios: Vec<_> = ratios.into_iter().flatten().collect();
    if ratios.len() > 1 {
        let least = ratios.iter_mut().min_by(|a, b| a.1.total_cmp(&b.1));
        if let Some((judgement, _)) = least {
            judgement.binds = true;
        }
    }
    let mut all: Vec<Judgement> = ratios.into_iter().map(|(judgement, _)| judgement).collect();
    all.extend(latencies(figures, shape, peer, special.or(targets.relay)));
    all.extend(named(figures, shape, peer));
    all.extend(own(figures, shape, peer));
    all
}

/// A proxy that saves CPU by letting calls wait has won nothing. So its median and 99th percentile
/// are judged as well, by the same multiple of the relay's. In a closed loop they follow the CPU.
fn latencies(
    figures: &Figures<'_>,
    shape: &Shape,
    peer: &Peer,
    target: Option<f64>,
) -> Vec<Judgement> {
    let (Figure::Cpu, Some(target), Some(base)) = (shape.figure, target, figures.baseline()) else {
        return vec![];
    };
    let told = [P50, P99].into_iter().filter_map(|percentile| {
        let has = figures.latency_ratio(shape, (peer, base), percentile)?;
        Some(Judgement { of: Some(percentile.name), ..Judgement::times("relay", target, has) })
    });
    told.collect()
}

/// The targets relative to one peer by name.
fn named(figures: &Figures<'_>, shape: &Shape, peer: &Peer) -> Vec<Judgement> {
    let base = |name: &str| figures.peers.iter().find(|p| p.name == name);
    let times = || {
        let (name, target) = shape.targets.of_peer?;
        Some(Judgement::times(name, target, figures.ratio(shape, peer, base(name)?)?))
    };
    let over = || {
        let (name, target) = shape.targets.over_peer?;
        let has = figures.difference(shape, peer, base(name)?)?;
        Some(Judgement { beyond_unit: true, ..Judgement::times(name, target, has) })
    };
    times().into_iter().chain(over()).collect()
}

/// What is no multiple of another peer's.
fn own(figures: &Figures<'_>, shape: &Shape, peer: &Peer) -> Vec<Judgement> {
    let plain = || {
        let (target, has) = (shape.targets.at_most?, figures.figure(shape, peer)?);
        Some(Judgement::times("", target, has))
    };
    let beside = || {
        let (name, target) = shape.targets.of_shape?;
        let base = figures.shapes.iter().find(|s| s.name == name)?;
        let has = figures.ratio_between((shape, peer), (base, peer))?;
        Some(Judgement::times(name, target, has))
    };
    plain().into_iter().chain(beside()).collect()
}

/// A row in which the gateway is not the best of its class, or misses a target.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Loss {
    /// Where.
    pub shape: String,
    /// Which gateway.
    pub gateway: String,
    /// To whom, the best first; nobody if it is missed by itself.
    pub rivals: Vec<String>,
    /// At what.
    pub what: String,
    /// How many times worse it is than the best, if both can be compared.
    pub factor: Option<f64>,
    /// The figures.
    pub text: String,
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.shape, self.gateway, self.text)?;
        // Rivals have their factors beside them.
        let alone = self.factor.filter(|_| self.rivals.is_empty());
        alone.map_or(Ok(()), |factor| write!(f, ", {factor:.2} x"))
    }
}

/// A value over the runs that count: its name, a peer's median, and whether more of it is better.
type Value<'a> = (&'static str, Box<dyn Fn(&Peer) -> Option<Spread> + 'a>, bool);

/// All targets that gateways miss, and everything that a layer-7 peer does better. Gateways with
/// targets in a shape come first, and of these the worst.
pub fn losses(figures: &Figures<'_>) -> Vec<Loss> {
    let mut all = vec![];
    for shape in figures.shapes {
        let gateways = figures.peers.iter().filter(|p| is_judged(p) && shape.is_for(p));
        for gateway in gateways {
            missed(figures, shape, gateway, &mut all);
            beaten(figures, shape, gateway, &mut all);
        }
    }
    let has_target = |loss: &Loss| {
        let shape = figures.shapes.iter().find(|s| s.name == loss.shape);
        shape.is_some_and(|shape| shape.gateways.contains(&loss.gateway.as_str()))
    };
    let rank = |loss: &Loss| (!has_target(loss), !loss.rivals.is_empty());
    all.sort_by(|a, b| {
        let factor = |loss: &Loss| loss.factor.unwrap_or(f64::MAX);
        rank(a).cmp(&rank(b)).then(factor(b).total_cmp(&factor(a)))
    });
    all
}

fn missed(figures: &Figures<'_>, shape: &Shape, gateway: &Peer, losses: &mut Vec<Loss>) {
    let of = |what: &str, factor, text| Loss {
        shape: shape.name.to_owned(),
        gateway: gateway.name.clone(),
        rivals: vec![],
        what: what.to_owned(),
        factor,
        text,
    };
    for judgement in judge(figures, shape, gateway).iter().filter(|j| !j.met()) {
        let factor = judgement.beyond().map(|beyond| beyond + 1.0);
        let head = if judgement.of.is_some() { "" } else { shape.figure.head() };
        let text = format!("target {head} {judgement}").replace("  ", " ");
        losses.push(of(judgement.of.unwrap_or(shape.figure.head()), factor, text));
    }
    let bad: Vec<&Run> = figures.of(shape, gateway).filter(|r| !r.counts()).collect();
    if let Some(first) = bad.first() {
        let why = first.fault.as_deref().unwrap_or("no call completed");
        let text = format!("{} runs did not count: {why}", bad.len());
        losses.push(of("runs", None, text));
    }
}

/// What layer-7 peers do better: one loss for each value, with all who do.
fn beaten(figures: &Figures<'_>, shape: &Shape, gateway: &Peer, losses: &mut Vec<Loss>) {
    for (what, value, more_is_better) in values(figures, shape) {
        let median = |p: &Peer| Some(value(p)?.median);
        let Some(ours) = median(gateway) else { continue };
        let better = |rival: &Peer| {
            let theirs = median(rival)?;
            let factor = if more_is_better { theirs / ours } else { ours / theirs };
            let factor = (ours > 0.0 && theirs > 0.0).then_some(factor);
            // What adds nothing is better than what adds something, by no factor; how far below
            // zero two differences of noisy values are says nothing.
            let worse = factor.map_or(ours > 0.0 && theirs <= 0.0, |factor| factor > 1.0 + NOISE);
            worse.then(|| (factor, theirs, rival.name.clone()))
        };
        let rivals = figures.peers.iter().filter(|p| p.class == Class::L7);
        let mut rivals: Vec<_> = rivals.filter_map(better).collect();
        let rank = |factor: Option<f64>| factor.unwrap_or(f64::MAX);
        rivals.sort_by(|a, b| rank(b.0).total_cmp(&rank(a.0)));
        let Some((factor, ..)) = rivals.first().cloned() else { continue };
        let told = rivals.iter().map(|(factor, theirs, name)| {
            let times = factor.map_or(String::new(), |factor| format!(" ({factor:.2} x)"));
            format!("{name} {theirs:.1}{times}")
        });
        losses.push(Loss {
            shape: shape.name.to_owned(),
            gateway: gateway.name.clone(),
            what: what.to_owned(),
            factor,
            text: format!("{what}: {ours:.1}; {}", told.collect::<Vec<_>>().join(", ")),
            rivals: rivals.into_iter().map(|(.., name)| name).collect(),
        });
    }
}

/// What a shape is compared by: at a rate only the latency, of memory only that.
fn values<'a>(figures: &'a Figures<'a>, shape: &'a Shape) -> Vec<Value<'a>> {
    let of_run = |value: fn(&Run) -> Option<f64>| {
        Box::new(move |peer: &Peer| figures.spread(shape, peer, value)) as Box<_>
    };
    let added = |percentile| Box::new(move |peer: &Peer| figures.added(shape, peer, percentile));
    let units = |percentile| Box::new(move |peer: &Peer| figures.units(shape, peer, percentile));
    match shape.figure {
        Figure::AddedP50 => vec![
            ("added p50 us", added(P50), false),
            ("added p99 us", added(P99), false),
            ("added p99.9 us", added(P999), false),
            ("CPU us a unit", of_run(Run::cpu_us), false),
        ],
        Figure::Cpu => vec![
            ("CPU us a unit", of_run(Run::cpu_us), false),
            ("units/s", of_run(|run| Some(run.counted()?.calls_per_s)), true),
            ("p50 us", units(P50), false),
            ("p99 us", units(P99), false),
        ],
        Figure::Beside => vec![("p99 us", units(P99), false)],
        Figure::Interval | Figure::FirstAnswer => vec![
            ("units/s", of_run(|run| Some(run.counted()?.calls_per_s)), true),
            ("CPU us a unit", of_run(Run::cpu_us), false),
        ],
        Figure::Memory => {
            let bytes = |run: &Run| match run.counted() {
                Some(outcome) => outcome.memory.per_connection("proxy"),
                None => run.figure.filter(|_| run.counts()),
            };
            vec![("bytes each", of_run(bytes), false)]
        }
        Figure::WholeMemory => {
            let bytes = |peer: &Peer| figures.figure(shape, peer);
            vec![("bytes each, kernel's too", Box::new(bytes), false)]
        }
        Figure::Resume
        | Figure::Messages
        | Figure::Allocations
        | Figure::RoundTrips
        | Figure::Behind => vec![],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::rows::{ALL, choose};
    use crate::compare::testing::{peer, run, slow};

    fn shapes(names: &[&str]) -> Vec<Shape> {
        choose(&names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn both_columns_are_judged_and_the_stricter_binds() {
        let shapes = &ALL[1..2];
        let name = shapes[0].name;
        let peers = [
            peer("relay", Class::Baseline),
            peer("ringway", Class::Gateway),
            peer("nghttpx", Class::L7),
            peer("slow", Class::L7),
        ];
        let runs = [
            run(name, "relay", 1, 1.0),
            run(name, "ringway", 1, 3.0),
            run(name, "nghttpx", 1, 5.0),
            run(name, "slow", 1, 50.0),
        ];
        let figures = Figures::new(shapes, &peers, &runs);
        let told: Vec<String> =
            judge(&figures, &shapes[0], &peers[1]).iter().map(ToString::to_string).collect();
        assert_eq!(told[0], "<= 4 x relay: 3.00 (3.00-3.00), met, 25 % below");
        assert_eq!(told[1], "<= 0.35 x nghttpx: 0.600 (0.600-0.600), MISSED by 71 % (binds)");
        let losses = losses(&figures);
        assert_eq!(losses.len(), 1, "{losses:?}");
        assert!((losses[0].factor.unwrap() - 0.6 / 0.35).abs() < 1e-9);
    }

    #[test]
    fn who_is_better_by_more_than_noise_is_a_loss_with_its_factor() {
        let shapes = shapes(&["unary-1k-16x16"]);
        let name = shapes[0].name;
        let peers = [peer("ringway", Class::Gateway), peer("nginx", Class::L7)];
        let runs = [
            slow(run(name, "ringway", 1, 2.0), 1.0, 3.0),
            slow(run(name, "nginx", 1, 1.95), 1.0, 1.5),
        ];
        let losses = losses(&Figures::new(&shapes, &peers, &runs));
        let told: Vec<String> = losses.iter().map(ToString::to_string).collect();
        // 2.5 % more CPU is noise, twice the p99 is not; the missing ratio of 0.35 is missed.
        assert_eq!(told.len(), 2, "{told:?}");
        assert!(told[0].contains("target CPU us a unit <= 0.35 x nginx"), "{told:?}");
        assert_eq!(told[1], "unary-1k-16x16: ringway: p99 us: 3.0; nginx 1.5 (2.00 x)");
    }

    #[test]
    fn the_same_peer_in_another_shape_is_a_base_too() {
        let shapes = shapes(&["live-10-active-10", "live-8000-active-10"]);
        let peers = [peer("ringway", Class::Gateway)];
        let runs = [
            run(shapes[0].name, "ringway", 1, 2.0),
            run(shapes[1].name, "ringway", 1, 2.2),
            run(shapes[0].name, "ringway", 2, 2.0),
            run(shapes[1].name, "ringway", 2, 2.6),
        ];
        let figures = Figures::new(&shapes, &peers, &runs);
        let judged = judge(&figures, &shapes[1], &peers[0]);
        assert_eq!(judged.len(), 1);
        assert!((judged[0].has.median - 1.2).abs() < 1e-9 && !judged[0].met());
        assert!(judge(&figures, &shapes[0], &peers[0]).is_empty());
    }
}
