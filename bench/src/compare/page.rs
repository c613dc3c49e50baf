//! `report.html`: one page with everything in it. No other file is needed to read it.

use std::fmt::Write;
use std::path::Path;

use super::curve;
use super::figures::{self, Spread};
use super::judge::Loss;
use super::peer::{Class, Peer};
use super::plot::{self, Bar};
use super::report;
use super::shape::Figure;
use super::table::{Line, Row};
use super::{Record, is_judged};

const STYLE: &str = include_str!("page.css");
/// The row that is shown first if it ran.
const HEADLINE: &str = "unary-100-16x16";
/// The text before the table of targets, and the table's head.
const TARGETS: &str = "<h2>Targets</h2><p>The most that a gateway may cost in a row, set before it was \
    measured. A multiple of the bare relay says how near the gateway comes to the least that any \
    process between two sockets costs. A multiple of the best HTTP proxy here says what an operator \
    saves who would run that proxy instead. A figure by itself is what a user does not notice yet. \
    If there are both multiples, the one that allows less binds. If the target for CPU is a multiple \
    of the relay's, median and 99th percentile are judged by the same multiple, so that CPU is not \
    saved by waiting. A target that is missed stays as it is.\
    <table><tr><th>row<th>peer<th>target and figure";

/// The page of a comparison whose runs left their files in `out`.
pub(super) fn page(record: &Record<'_>, out: &Path) -> String {
    let mut html = format!(
        "<!doctype html><html lang=en><meta charset=utf-8>\
         <meta name=viewport content=\"width=device-width\"><title>Ringway: comparison</title>\
         <style>{STYLE}</style><h1>Ringway beside other proxies</h1>"
    );
    html += &beginning(record);
    html += &targets(record.table);
    html += &lost(record);
    html += "<h2>Rows</h2><p>Median (min-max) over the rounds; ratios are formed within a round, \
             those of added latency of the medians. A run counts only if nothing in it failed; a \
             percentile is told if ten samples lie beyond it.";
    for row in record.table {
        html += &shape(record, row, out);
    }
    html += &peers(record);
    html += &machine(record);
    html + "</html>"
}

/// The text with its markup characters escaped.
pub(super) fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// The page's beginning: the most important figure, and a picture of it.
fn beginning(record: &Record<'_>) -> String {
    let mut html = String::new();
    if let Some((row, line)) = headline(record.table) {
        let of = |spread: Option<Spread>| spread.map(|spread| figures::brief(spread.median));
        let cost = of(line.figure).unwrap_or_default();
        let _ = write!(
            html,
            "<p class=headline>{0} takes {cost} us of CPU for {1} (<a href=\"#{2}\">{2}</a>)",
            escaped(&line.peer),
            escaped(&row.about),
            escaped(&row.name),
        );
        if let Some(times) = of(line.x_relay) {
            let _ = write!(html, ": {times} times what a bare TCP relay does");
        }
        if let (Some(times), Some(best)) = (of(line.x_l7), &row.best_l7) {
            let _ = write!(
                html,
                ", and {times} times what {} does, the best HTTP proxy here",
                escaped(best)
            );
        }
        html += ".</p>";
        html += &drawn_bars(row);
    }
    let lines = || record.table.iter().flat_map(|row| &row.lines).filter(|line| line.has_targets);
    let judged = || lines().flat_map(|line| &line.judgements);
    let met = judged().filter(|judgement| judgement.met()).count();
    let request = record.request;
    let _ = write!(
        html,
        "<p>{met} of {} targets are met; those that are missed are <a href=#lost>below</a>. \
         {} rounds of {:.2} s, {} peers, {} runs, interleaved A B C A B C.",
        judged().count(),
        request.rounds,
        request.seconds,
        record.peers.len(),
        record.runs.len()
    );
    let versions = record.machine.versions();
    if !versions.is_empty() {
        let told = versions.iter().map(|(name, said)| escaped(&format!("{name}: {said}")));
        let _ = write!(html, "<p>{}.", told.collect::<Vec<_>>().join("; "));
    }
    html
}

/// The row and the gateway for the page's headline: a row by CPU in which a gateway has a target
/// and a relay to compare with.
fn headline(table: &[Row]) -> Option<(&Row, &Line)> {
    let line = |row: &'_ Row| {
        row.lines
            .iter()
            .position(|line| line.has_targets && line.figure.is_some() && line.x_relay.is_some())
    };
    let of_cpu = |row: &&Row| row.head == Figure::Cpu.head() && line(row).is_some();
    let calls = table.iter().filter(of_cpu);
    // Calls in parallel are what a gateway is mostly asked for.
    let row = calls.clone().find(|row| row.name == HEADLINE).or_else(|| calls.clone().next())?;
    Some((row, &row.lines[line(row)?]))
}

/// What a reader needs to judge the figures: notes and the machine. It comes at the end.
fn machine(record: &Record<'_>) -> String {
    let mut html = "<h2>The machine</h2>".to_owned();
    for note in record.notes {
        let _ = write!(html, "<p>{}</p>", escaped(note));
    }
    html += "<table class=facts>";
    for (name, value) in record.machine.lines() {
        let _ = write!(html, "<tr><th>{}<td>{}", escaped(&name), escaped(&value));
    }
    for (name, why) in record.skipped {
        let _ = write!(html, "<tr><th>not here: {}<td>{}", escaped(name), escaped(why));
    }
    html + "</table>"
}

fn targets(table: &[Row]) -> String {
    let mut html = TARGETS.to_owned();
    for row in table {
        for line in row.lines.iter().filter(|line| line.has_targets) {
            for judgement in &line.judgements {
                let head = if judgement.of.is_some() { "" } else { &row.head };
                let word = if judgement.met() { "met" } else { "missed" };
                let _ = write!(
                    html,
                    "<tr class={word}><td><a href=\"#{0}\">{0}</a><td>{1}<td>{2}",
                    row.name,
                    escaped(&line.peer),
                    escaped(format!("{head} {judgement}").trim_start())
                );
            }
            if line.judgements.is_empty() {
                let _ = write!(
                    html,
                    "<tr class=open><td><a href=\"#{0}\">{0}</a><td>{1}<td>not judged: {2}",
                    row.name,
                    escaped(&line.peer),
                    unjudged(row, line)
                );
            }
        }
    }
    html + "</table>"
}

/// Why a line with targets is not judged.
fn unjudged(row: &Row, line: &Line) -> &'static str {
    match (line.figure, line.rate) {
        (Some(_), _) if row.added => "nothing to compare with that adds anything over direct",
        (Some(_), _) => "nothing to compare with",
        (None, Some(_)) => "too few samples",
        (None, None) => "nothing counted",
    }
}

fn lost(record: &Record<'_>) -> String {
    let mut html = "<h2 id=lost>Where we lose</h2>".to_owned();
    if record.losses.is_empty() {
        return html + "<p>Nowhere, against what ran here.";
    }
    html += "<p>Every row in which a gateway misses a target, or another layer-7 proxy is \
             better by more than noise (5 %). Gateways without a target in a row are last.\
             <table><tr><th>row<th>gateway<th>figures<th>times worse";
    for Loss { shape, gateway, text, factor, .. } in record.losses {
        let factor = factor.map_or(String::new(), |factor| format!("{factor:.2}"));
        let _ = write!(
            html,
            "<tr><td><a href=\"#{shape}\">{shape}</a><td>{}<td>{}<td>{factor}",
            escaped(gateway),
            escaped(text)
        );
    }
    html + "</table>"
}

fn shape(record: &Record<'_>, row: &Row, out: &Path) -> String {
    let mut html = format!(
        "<section id=\"{0}\"><h3>{0}</h3><p>A unit is {1}.",
        escaped(&row.name),
        escaped(&row.about)
    );
    html += &numbers(row);
    html += &drawn_bars(row);
    let curves: Vec<_> =
        row.lines.iter().filter_map(|line| drawn_curve(record, row, line, out)).collect();
    if !curves.is_empty() {
        let _ = write!(html, "<h4>latency by percentile, all rounds</h4>{}", plot::curves(&curves));
    }
    html + "</section>"
}

/// The row's figures. Targets and remarks of a line are below it, because beside the figures there
/// is no room.
fn numbers(row: &Row) -> String {
    let mut html = "<div class=wide><table><tr>".to_owned();
    let (heads, lines) = report::figures(row);
    let columns = heads.len();
    for head in heads {
        let _ = write!(html, "<th>{}", escaped(&head));
    }
    for (line, cells) in row.lines.iter().zip(lines) {
        let told = report::told(line);
        let plain = if told.is_empty() { "" } else { " figures" };
        let _ = write!(html, "<tr class=\"{}{plain}\">", class(line.class));
        for cell in cells {
            let _ = write!(html, "<td>{}", escaped(&cell));
        }
        if !told.is_empty() {
            let class = class(line.class);
            let _ =
                write!(html, "<tr class=\"{class} told\"><td colspan={columns}>{}", escaped(&told));
        }
    }
    html + "</table></div>"
}

fn drawn_bars(row: &Row) -> String {
    let bar = |line: &Line| Some((line.peer.clone(), line.class, line.figure?));
    let drawn: Vec<_> = row.lines.iter().filter_map(bar).collect();
    if drawn.is_empty() {
        return String::new();
    }
    let bars = drawn.iter().map(|(name, of, value)| Bar { name, class: class(*of), value: *value });
    format!("<h4>{}</h4>{}", escaped(&row.head), plot::bars(bars.collect()))
}

fn drawn_curve<'a>(
    record: &Record<'_>,
    row: &Row,
    line: &'a Line,
    out: &Path,
) -> Option<plot::Stroke<'a>> {
    let folder = out.join(&row.name).join(&line.peer);
    let counted = |run: &&super::Run| {
        run.shape == row.name && run.peer == line.peer && run.counted().is_some()
    };
    let files = record.runs.iter().filter(counted);
    let files = files.map(|run| folder.join(format!("latency-{}.hlog", run.round)));
    let strong = line.class == Class::Gateway;
    let mut family = record.peers.iter().filter(|peer| is_judged(peer) == strong);
    let place = family.position(|peer| peer.name == line.peer)?;
    Some(plot::Stroke { name: &line.peer, place, strong, curve: curve::read(files)? })
}

fn class(class: Class) -> &'static str {
    match class {
        Class::Direct => "direct",
        Class::Baseline => "baseline",
        Class::L4 => "l4",
        Class::L7 => "l7",
        Class::Gateway => "gateway",
    }
}

fn peers(record: &Record<'_>) -> String {
    let mut html = "<h2>Peers and their configurations</h2><p>Each with one worker thread on the \
                    same CPU, the same endpoint behind. The files as they were used are beside this \
                    page, in a folder for each row and peer."
        .to_owned();
    for peer in record.peers {
        html += &configuration(peer);
    }
    html
}

fn configuration(peer: &Peer) -> String {
    let judged = if is_judged(peer) { " (judged)" } else { "" };
    let mut html = format!(
        "<details><summary><b>{}</b>{judged}: {}</summary><pre>{}</pre>",
        escaped(&peer.name),
        escaped(&peer.about),
        escaped(&peer.start.join(" "))
    );
    for (name, value) in &peer.set {
        let _ = write!(html, "<pre>{{{name}}} = {}</pre>", escaped(value));
    }
    for (file, text) in &peer.templates {
        let _ = write!(html, "<h4>{}</h4><pre>{}</pre>", escaped(file), escaped(text));
    }
    html + "</details>"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::figures::Figures;
    use crate::compare::judge::losses;
    use crate::compare::machine::Facts;
    use crate::compare::rows::ALL;
    use crate::compare::table::rows;
    use crate::compare::testing::{peer, request, run};

    #[test]
    fn the_page_needs_no_other_file_and_shows_every_row() {
        let peers = [
            peer("relay", Class::Baseline),
            peer("ringway", Class::Gateway),
            peer("nginx", Class::L7),
        ];
        let name = ALL[1].name;
        let runs =
            [run(name, "relay", 1, 1.0), run(name, "ringway", 1, 5.0), run(name, "nginx", 1, 4.0)];
        let figures = Figures::new(&ALL[1..2], &peers, &runs);
        let (table, losses) = (rows(&figures), losses(&figures));
        let record = Record {
            machine: &Facts::default(),
            request: &request(),
            shapes: &ALL[1..2],
            peers: &peers,
            skipped: &[("envoy".to_owned(), "it is <not> here".to_owned())],
            notes: &["a & b".to_owned()],
            table: &table,
            losses: &losses,
            runs: &runs,
        };
        let html = page(&record, Path::new("nowhere"));
        for part in [
            "it is &lt;not&gt; here",
            "a &amp; b",
            "id=\"unary-100-16x16\"",
            "<tr class=missed>",
            "made &lt;up&gt;",
            "<svg",
            "<td>1.25 (1.25-1.25)<",
            "<p class=headline>ringway takes 5.00 us of CPU for a call",
            "5.00 times what a bare TCP relay does, and 1.25 times what nginx does",
        ] {
            assert!(html.contains(part), "{part} is missing in:\n{html}");
        }
        // The machine comes after the figures that were found on it.
        assert!(html.find("it is &lt;not&gt; here").unwrap() > html.find("<section").unwrap());
        for outside in ["src=", "http://", "https://", "<script", "@import", "url("] {
            assert!(!html.contains(outside), "{outside}");
        }
        assert_eq!(html.matches("<table").count(), html.matches("</table>").count());
        assert_eq!(html.matches("<section").count(), html.matches("</section>").count());
    }
}
