//! The rows that terminal, page and figures share.

use std::collections::BTreeSet;

use serde::Serialize;

use super::figures::{Figures, P50, P99, P999, Percentile, Spread, brief};
use super::judge::{Judgement, has_targets, judge};
use super::peer::{Class, Peer};
use super::shape::{Figure, Shape};
use super::{Run, is_direct};
use crate::load::Outcome;

/// Share of a CPU above which it counts as used up.
const FULL: f64 = 0.9;
/// CPUs kept busy by others above which a row says so.
const OTHERS: f64 = 0.12;

/// The percentiles that are shown.
pub const PERCENTILES: [Percentile; 3] = [P50, P99, P999];

/// One shape.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// Its name.
    pub name: String,
    /// What a unit is.
    pub about: String,
    /// What the figure is.
    pub head: String,
    /// The figure is a latency beyond that of the direct peer, and so are the percentiles.
    pub added: bool,
    /// The layer-7 peer with the lowest figure.
    pub best_l7: Option<String>,
    /// Its peers.
    pub lines: Vec<Line>,
}

/// One peer in one shape.
#[derive(Debug, Clone, Serialize)]
pub struct Line {
    /// Its name.
    pub peer: String,
    /// What it is compared as.
    pub class: Class,
    /// Whether the shape's targets hold for it.
    pub has_targets: bool,
    /// The figure.
    pub figure: Option<Spread>,
    /// As a multiple of the bare relay's.
    pub x_relay: Option<Spread>,
    /// As a multiple of the best layer-7 peer's.
    pub x_l7: Option<Spread>,
    /// CPU microseconds a unit.
    pub cpu: Option<Spread>,
    /// Units a second.
    pub rate: Option<Spread>,
    /// Payload bytes a second, both ways.
    pub bytes: Option<Spread>,
    /// [`PERCENTILES`] in microseconds, beyond direct if the row says so; those with enough samples.
    pub latency: [Option<Spread>; 3],
    /// Its targets, and whether they are met.
    pub judgements: Vec<Judgement>,
    /// What a reader must know.
    pub remarks: Vec<String>,
}

/// Every shape that ran.
pub fn rows(figures: &Figures<'_>) -> Vec<Row> {
    let ran = |shape: &&Shape| figures.peers.iter().any(|p| figures.of(shape, p).next().is_some());
    figures.shapes.iter().filter(ran).map(|shape| row(figures, shape)).collect()
}

fn row(figures: &Figures<'_>, shape: &Shape) -> Row {
    let added = shape.figure == Figure::AddedP50;
    let l7 = figures.best_l7(shape);
    let ran = |peer: &&Peer| figures.of(shape, peer).next().is_some();
    let line = |peer: &Peer| {
        // What rests has neither rate nor latency.
        let rests = shape.is_still();
        let spread = |value: fn(&Run) -> Option<f64>| {
            if rests { None } else { figures.spread(shape, peer, value) }
        };
        let latency = PERCENTILES.map(|percentile| match (rests, added && !is_direct(peer)) {
            (true, _) => None,
            (false, true) => figures.added(shape, peer, percentile),
            (false, false) => figures.units(shape, peer, percentile),
        });
        Line {
            peer: peer.name.clone(),
            class: peer.class,
            has_targets: has_targets(shape, peer),
            figure: figures.figure(shape, peer),
            x_relay: figures.baseline().and_then(|base| figures.ratio(shape, peer, base)),
            x_l7: l7.and_then(|base| figures.ratio(shape, peer, base)),
            cpu: spread(Run::cpu_us),
            rate: spread(|run| Some(run.counted()?.calls_per_s)),
            bytes: spread(|run| Some(run.counted()?.bytes_per_s)),
            latency,
            judgements: judge(figures, shape, peer),
            remarks: remarks(figures, shape, peer),
        }
    };
    Row {
        name: shape.name.to_owned(),
        about: shape.about.to_owned(),
        head: shape.figure.head().to_owned(),
        added,
        best_l7: l7.map(|peer| peer.name.clone()),
        lines: figures.peers.iter().filter(ran).map(line).collect(),
    }
}

fn remarks(figures: &Figures<'_>, shape: &Shape, peer: &Peer) -> Vec<String> {
    let all = figures.of(shape, peer).count();
    let good = figures.of(shape, peer).filter(|run| run.counts()).count();
    let mut remarks = vec![];
    if good < all {
        remarks.push(format!("{} of {all} runs not counted", all - good));
    }
    if !is_direct(peer) && limited(figures, shape, peer) {
        remarks.push("rate limited by the load's side".to_owned());
    }
    if shape.figure == Figure::AddedP50 && !is_direct(peer) {
        let (none, all) = figures.added_nothing(shape, peer);
        if none > 0 {
            remarks.push(format!("added nothing over direct in {none} of {all} rounds"));
        }
    }
    if shape.figure == Figure::Beside && good > 0 && figures.figure(shape, peer).is_none() {
        remarks.push("too few samples for a p99".to_owned());
    }
    if let Some([low, high]) = figures.modes(shape, peer) {
        remarks.push(format!(
            "two modes: {} in {} rounds, {} in {}",
            brief(low.median),
            low.rounds,
            brief(high.median),
            high.rounds
        ));
    }
    let resumed = figures.spread(shape, peer, |r| r.counted()?.resumed);
    remarks.extend(resumed.map(|s| format!("{:.0} % of handshakes resumed", s.median * 100.0)));
    let others = figures.spread(shape, peer, |r| Some(r.counted()?.other_cpus));
    if let Some(others) = others.filter(|o| o.median > OTHERS) {
        remarks.push(format!("other programs kept {:.2} CPUs busy", others.median));
    }
    remarks.extend(parts(figures, shape, peer));
    let late = figures.latency(shape, peer, P99, |r| r.counted()?.late_us.as_ref());
    if let Some(late) = late {
        remarks.push(format!("starts late p99 {:.0} us", late.median));
    }
    remarks
}

/// What the generator knows beyond the figure: phases, bulk, the kernel's memory.
fn parts(figures: &Figures<'_>, shape: &Shape, peer: &Peer) -> Vec<String> {
    let spread = |value: &dyn Fn(&Outcome) -> Option<f64>| {
        figures.spread(shape, peer, |run| value(run.counted()?)).map(|spread| spread.median)
    };
    let names = figures.of(shape, peer).filter_map(Run::counted);
    let names: BTreeSet<&String> = names.flat_map(|outcome| outcome.parts.keys()).collect();
    let part = |name: &&String| {
        let told = |percentile: Percentile| {
            let us = figures.latency(shape, peer, percentile, |r| r.counted()?.parts.get(*name))?;
            Some(format!("{} {:.0} us", percentile.name, us.median))
        };
        let told: Vec<String> = [P50, P99].into_iter().filter_map(told).collect();
        (!told.is_empty()).then(|| format!("{name} {}", told.join(", ")))
    };
    let mut told: Vec<String> = names.iter().filter_map(part).collect();
    let bulk = spread(&|o| o.bulk_bytes_per_s);
    told.extend(bulk.map(|bytes| format!("bulk {:.0} MB/s", bytes / 1e6)));
    if matches!(shape.figure, Figure::Memory | Figure::WholeMemory) {
        let kernel = spread(&|o| o.memory.kernel_per_connection("proxy"));
        told.extend(kernel.map(|bytes| format!("of the kernel {bytes:.0} bytes each")));
    }
    told
}

/// Whether load and endpoint used up their CPU while the peer's had time left, in most runs.
fn limited(figures: &Figures<'_>, shape: &Shape, peer: &Peer) -> bool {
    let said = figures.spread(shape, peer, |r| Some(f64::from(u8::from(r.counted()?.limited))));
    let share = |of: fn(&Outcome) -> u64| {
        figures.spread(shape, peer, |r| {
            let o = r.counted()?;
            Some(of(o) as f64 / o.elapsed_ns as f64)
        })
    };
    let load = share(|o| o.own_cpu_ns + o.cpu_ns.get("endpoint").copied().unwrap_or(0));
    let proxy = share(|o| o.cpu_ns.get("proxy").copied().unwrap_or(0));
    said.is_some_and(|said| said.median > 0.5)
        || load.zip(proxy).is_some_and(|(l, p)| l.median > FULL && p.median < FULL)
}
