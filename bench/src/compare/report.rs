//! The table on the terminal.

use std::fmt;

use super::Run;
use super::figures::Spread;
use super::judge::Loss;
use super::peer::Class;
use super::table::{Line, PERCENTILES, Row};

/// The figure of most rows.
const CPU: &str = "CPU us a unit";
/// Columns of a row's table.
const COLUMNS: usize = 11;

/// Everything the terminal shows about the runs.
#[derive(Debug)]
pub struct Report<'a> {
    /// The rows.
    pub table: &'a [Row],
    /// Where the gateway loses.
    pub losses: &'a [Loss],
    /// The runs. Those that did not count are listed with the reason.
    pub runs: &'a [Run],
    /// What was found out on the way.
    pub notes: &'a [String],
}

/// A spread as text, or `-` if there is none.
pub fn text(spread: Option<Spread>) -> String {
    spread.map_or_else(|| "-".to_owned(), |s| s.to_string())
}

/// The same value in another unit.
pub fn scaled(spread: Option<Spread>, by: f64) -> Option<Spread> {
    let Spread { median, min, max } = spread?;
    Some(Spread { median: median * by, min: min * by, max: max * by })
}

/// Column heads of a row.
fn heads(row: &Row) -> [String; COLUMNS] {
    let [p50, p99, p999] = PERCENTILES
        .map(|p| if row.added { format!("added {} us", p.name) } else { format!("{} us", p.name) });
    let best = row.best_l7.as_ref().map_or("x best L7".to_owned(), |name| format!("x {name}"));
    let plain = ["peer", "x relay", CPU, "k units/s", "MB/s", "target; remarks"].map(str::to_owned);
    let [peer, relay, cpu, rate, bytes, rest] = plain;
    [peer, row.head.clone(), relay, best, cpu, rate, bytes, p50, p99, p999, rest]
}

/// Cells of a line, in the order of [`heads`].
fn cells(row: &Row, line: &Line) -> [String; COLUMNS] {
    let [p50, p99, p999] = line.latency;
    // A figure that is the row's main figure is in that column already.
    let apart = |head: &str, spread| if row.head == head { String::new() } else { text(spread) };
    [
        line.peer.clone(),
        text(line.figure),
        text(line.x_relay),
        text(line.x_l7),
        apart(CPU, line.cpu),
        text(scaled(line.rate, 1e-3)),
        text(scaled(line.bytes, 1e-6)),
        apart("added p50 us", p50),
        text(p99),
        text(p999),
        told(line),
    ]
}

/// A line's targets, and its remarks.
pub fn told(line: &Line) -> String {
    let targets = line.judgements.iter().map(ToString::to_string);
    targets.chain(line.remarks.iter().cloned()).collect::<Vec<_>>().join("; ")
}

/// Heads and cells of a row, without the column of targets and remarks if it has any text.
pub fn figures(row: &Row) -> (Vec<String>, Vec<Vec<String>>) {
    let (mut heads, mut lines) = grid(row);
    if row.lines.iter().any(|line| !told(line).is_empty()) {
        heads.pop();
        for cells in &mut lines {
            cells.pop();
        }
    }
    (heads, lines)
}

/// Heads and cells of a row, without the columns that are empty.
pub fn grid(row: &Row) -> (Vec<String>, Vec<Vec<String>>) {
    let lines: Vec<_> = row.lines.iter().map(|line| cells(row, line)).collect();
    let said = |i: &usize| lines.iter().any(|cells| !matches!(cells[*i].as_str(), "" | "-"));
    let columns: Vec<usize> = (0..COLUMNS).filter(said).collect();
    let pick = |cells: &[String; COLUMNS]| columns.iter().map(|i| cells[*i].clone()).collect();
    (pick(&heads(row)), lines.iter().map(pick).collect())
}

impl fmt::Display for Report<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "median (min-max); ratios round by round, of added latency those of the medians"
        )?;
        for note in self.notes {
            writeln!(f, "{note}")?;
        }
        for row in self.table {
            writeln!(f, "\n{} (a unit is {})", row.name, row.about)?;
            write_row(f, row)?;
        }
        self.write_faults(f)?;
        let gateways = self.table.iter().flat_map(|row| &row.lines);
        if !gateways.into_iter().any(|line| line.class == Class::Gateway) {
            return Ok(());
        }
        writeln!(f, "\nwhere we lose")?;
        if self.losses.is_empty() {
            writeln!(f, "  nowhere, against what ran here")?;
        }
        self.losses.iter().try_for_each(|loss| writeln!(f, "  {loss}"))
    }
}

fn write_row(f: &mut fmt::Formatter<'_>, row: &Row) -> fmt::Result {
    let (heads, lines) = grid(row);
    let all = || [&heads].into_iter().chain(&lines);
    let width = |i: usize| all().map(|cells| cells[i].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..heads.len()).map(width).collect();
    for cells in all() {
        let cells = cells.iter().zip(&widths);
        let padded: Vec<_> = cells.map(|(cell, width)| format!("{cell:<width$}")).collect();
        writeln!(f, "  {}", padded.join("  ").trim_end())?;
    }
    Ok(())
}

impl Report<'_> {
    fn write_faults(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bad = self.runs.iter().filter(|r| !r.counts()).peekable();
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
    use crate::compare::figures::Figures;
    use crate::compare::judge::losses;
    use crate::compare::rows::ALL;
    use crate::compare::table::rows;
    use crate::compare::testing::{peer, run};

    #[test]
    fn the_table_tells_ratios_faults_and_losses() {
        let peers = [
            peer("relay", Class::Baseline),
            peer("ringway", Class::Gateway),
            peer("nghttpx", Class::L7),
        ];
        let name = ALL[1].name;
        let mut runs = vec![
            run(name, "relay", 1, 1.0),
            run(name, "ringway", 1, 5.0),
            run(name, "nghttpx", 1, 4.0),
            run(name, "ringway", 2, 1.0),
        ];
        runs[3].fault = Some("7 failed".to_owned());
        let figures = Figures::new(&ALL[1..2], &peers, &runs);
        let (table, losses) = (rows(&figures), losses(&figures));
        let notes = ["a note".to_owned()];
        let report = Report { table: &table, losses: &losses, runs: &runs, notes: &notes };
        let text = report.to_string();
        for part in [
            "a note",
            "<= 4 x relay: 5.00 (5.00-5.00), MISSED by 25 %",
            "<= 0.35 x nghttpx: 1.25 (1.25-1.25), MISSED by 257 % (binds)",
            "1 of 2 runs not counted",
            "unary-100-16x16 round 2 ringway: 7 failed",
            "where we lose",
            "CPU us a unit: 5.0; nghttpx 4.0 (1.25 x)",
        ] {
            assert!(text.contains(part), "{part} is missing in:\n{text}");
        }
    }
}
