//! Plots as inline SVG: bars with their spread, and percentile curves.
//!
//! Colours come from the page's style sheet, by class, so that they fit light and dark.

use std::fmt::Write;

use super::curve::{Curve, NINES};
use super::figures::Spread;
use super::page::escaped;

/// Width of every plot.
const WIDTH: f64 = 860.0;
/// Room for names at the left of bars, and for values at their right.
const NAMES: f64 = 150.0;
const VALUES: f64 = 150.0;
/// Height of a bar with its gap.
const BAR: f64 = 22.0;
/// Largest value as a multiple of the smallest above which bars are logarithmic.
const WIDE: f64 = 40.0;
/// Height of the curves and the room around them.
const HEIGHT: f64 = 300.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 170.0;
const BELOW: f64 = 30.0;
const ABOVE: f64 = 10.0;
/// Colours of curves in the style sheet: those of Ringway's variants, which are one family, and of
/// the others.
const OURS: usize = 5;
const COLOURS: usize = 10;
/// Height of a line of the legend.
const LEGEND: f64 = 16.0;

/// One bar.
#[derive(Debug)]
pub struct Bar<'a> {
    /// Who.
    pub name: &'a str,
    /// Its class, for the style sheet.
    pub class: &'a str,
    /// How much.
    pub value: Spread,
}

/// One curve.
#[derive(Debug)]
pub struct Stroke<'a> {
    /// Who.
    pub name: &'a str,
    /// Its number among those of its family, which decides its colour.
    pub place: usize,
    /// Whether it is one of Ringway's, to be seen first.
    pub strong: bool,
    /// Where it goes.
    pub curve: Curve,
}

impl Stroke<'_> {
    fn classes(&self) -> String {
        let (family, colours, weight) =
            if self.strong { ('g', OURS, " strong") } else { ('c', COLOURS, "") };
        // The same colour comes again with another pattern.
        let dashed = if self.place >= colours { " dashed" } else { "" };
        format!("curve {family}{}{weight}{dashed}", self.place % colours)
    }
}

/// Where a value stands between the ends of an axis.
struct Axis {
    low: f64,
    high: f64,
    log: bool,
}

impl Axis {
    fn of(values: impl Iterator<Item = f64> + Clone, log: bool) -> Self {
        let high = values.clone().fold(f64::MIN, f64::max);
        let low = values.filter(|v| !log || *v > 0.0).fold(f64::MAX, f64::min);
        let (low, high) =
            if log { (low.max(1e-6), high.max(1e-6)) } else { (low.min(0.0), high.max(0.0)) };
        // Something to divide by, whatever the values.
        let high = if high > low { high } else { low + 1.0 };
        Self { low, high, log }
    }

    /// From 0 to 1.
    fn at(&self, value: f64) -> f64 {
        let share = if self.log {
            (value.max(self.low) / self.low).ln() / (self.high / self.low).ln()
        } else {
            (value - self.low) / (self.high - self.low)
        };
        share.clamp(0.0, 1.0)
    }

    /// Round values to draw lines at.
    fn marks(&self) -> Vec<f64> {
        if self.log {
            let (from, to) = (self.low.log10().ceil() as i32, self.high.log10().floor() as i32);
            return (from..=to).map(|power| 10_f64.powi(power)).collect();
        }
        let step = 10_f64.powf((self.high - self.low).log10().floor());
        (0..=10).map(|i| f64::from(i) * step).filter(|v| *v <= self.high).collect()
    }
}

/// Horizontal bars, the best first.
pub fn bars(mut bars: Vec<Bar<'_>>) -> String {
    bars.sort_by(|a, b| a.value.median.total_cmp(&b.value.median));
    let values = bars.iter().flat_map(|b| [b.value.min, b.value.median, b.value.max]);
    let plain = Axis::of(values.clone(), false);
    let least = values.clone().fold(f64::MAX, f64::min);
    let log = least > 0.0 && plain.high / least > WIDE;
    let mut axis = Axis::of(values, log);
    if log {
        // The smallest bar is to be seen too.
        axis.low /= 2.0;
    }
    let height = bars.len() as f64 * BAR + 4.0;
    let mut svg = open(height, if log { "bars, logarithmic" } else { "bars" });
    let x = |value: f64| NAMES + axis.at(value) * (WIDTH - NAMES - VALUES);
    let zero = if log { NAMES } else { x(0.0) };
    for (i, bar) in bars.iter().enumerate() {
        let (top, Spread { median, min, max }) = (i as f64 * BAR + 2.0, bar.value);
        let middle = top + BAR / 2.0 - 1.0;
        let (from, to) = (zero.min(x(median)), zero.max(x(median)));
        let name = escaped(bar.name);
        let _ = write!(
            svg,
            "<text class=name x={:.1} y={:.1}>{name}</text>\
             <rect class=\"{}\" x={from:.1} y={:.1} width={:.1} height={:.1}><title>{name}: {}</title></rect>\
             <path class=spread d=\"M{:.1} {middle:.1}H{:.1}\"/>\
             <text class=value x={:.1} y={:.1}>{}</text>",
            NAMES - 8.0,
            middle + 4.0,
            bar.class,
            top + 2.0,
            (to - from).max(1.0),
            BAR - 6.0,
            bar.value,
            x(min),
            x(max),
            x(max).max(to) + 6.0,
            middle + 4.0,
            bar.value,
        );
    }
    svg + "</svg>"
}

/// Curves over the number of nines.
pub fn curves(curves: &[Stroke<'_>]) -> String {
    let values = curves.iter().flat_map(|stroke| stroke.curve.iter().map(|point| point.1));
    let axis = Axis::of(values, true);
    let height = HEIGHT.max(curves.len() as f64 * LEGEND + ABOVE);
    let mut svg = open(height, "latency by percentile, logarithmic");
    let x = |nines: f64| LEFT + nines / NINES * (WIDTH - LEFT - RIGHT);
    let y = |us: f64| ABOVE + (1.0 - axis.at(us)) * (HEIGHT - ABOVE - BELOW);
    for mark in axis.marks() {
        let label = if mark >= 1e6 {
            format!("{:.0} s", mark / 1e6)
        } else if mark >= 1e3 {
            format!("{:.0} ms", mark / 1e3)
        } else {
            format!("{mark} us")
        };
        let _ = write!(
            svg,
            "<path class=mark d=\"M{LEFT} {at:.1}H{:.1}\"/><text class=name x={:.1} y={:.1}>{label}</text>",
            WIDTH - RIGHT,
            LEFT - 6.0,
            y(mark) + 4.0,
            at = y(mark),
        );
    }
    for (nines, label) in [
        (0.0, "min"),
        (0.301, "p50"),
        (1.0, "p90"),
        (2.0, "p99"),
        (3.0, "p99.9"),
        (NINES, "p99.99"),
    ] {
        let _ = write!(
            svg,
            "<path class=mark d=\"M{at:.1} {ABOVE}V{:.1}\"/><text class=below x={at:.1} y={:.1}>{label}</text>",
            HEIGHT - BELOW,
            HEIGHT - BELOW + 16.0,
            at = x(nines),
        );
    }
    for (i, stroke) in curves.iter().enumerate() {
        let mut path = String::new();
        for (at, (nines, us)) in stroke.curve.iter().enumerate() {
            let step = if at == 0 { 'M' } else { 'L' };
            let _ = write!(path, "{step}{:.1} {:.1}", x(*nines), y(*us));
        }
        let (name, classes) = (escaped(stroke.name), stroke.classes());
        let line = i as f64 * LEGEND + ABOVE + LEGEND / 2.0;
        let from = WIDTH - RIGHT + 14.0;
        let _ = write!(
            svg,
            "<path class=\"{classes}\" d=\"{path}\"><title>{name}</title></path>\
             <path class=\"{classes}\" d=\"M{from} {line}h18\"/>\
             <text class=value x={} y={}>{name}</text>",
            from + 24.0,
            line + 4.0,
        );
    }
    svg + "</svg>"
}

fn open(height: f64, about: &str) -> String {
    format!("<svg viewBox=\"0 0 {WIDTH} {height}\" role=img aria-label=\"{about}\">")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spread(median: f64) -> Spread {
        Spread { median, min: median * 0.9, max: median * 1.1 }
    }

    #[test]
    fn bars_are_sorted_and_their_lengths_follow_the_values() {
        let bar = |name, value| Bar { name, class: "l7", value: spread(value) };
        let svg = bars(vec![bar("b<", 20.0), bar("a", 10.0)]);
        assert!(svg.find(">a<").unwrap() < svg.find(">b&lt;<").unwrap(), "{svg}");
        let widths: Vec<f64> = svg
            .split("width=")
            .skip(1)
            .map(|rest| rest.split(' ').next().unwrap().parse().unwrap())
            .collect();
        assert!((widths[1] / widths[0] - 2.0).abs() < 0.01, "{svg}");
        // Far apart they are logarithmic, and none is lost.
        let svg = bars(vec![bar("a", 0.01), bar("b", 100.0), bar("c", -1.0)]);
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
    }

    #[test]
    fn a_curve_rises_to_the_right() {
        let stroke = |name, place| {
            let curve = vec![(0.0, 10.0), (1.0, 100.0), (4.0, 2000.0)];
            Stroke { name, place, strong: place == 0, curve }
        };
        let svg = curves(&[stroke("x", 0), stroke("y", COLOURS)]);
        assert!(svg.contains("curve g0 strong\"") && svg.contains("1 ms"), "{svg}");
        assert!(svg.contains("curve c0 dashed\""), "{svg}");
        assert!(!svg.contains("NaN"), "{svg}");
        let empty = curves(&[]);
        assert!(empty.ends_with("</svg>") && !empty.contains("NaN"), "{empty}");
    }
}
