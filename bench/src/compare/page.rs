//! `report.html`: one page with everything in it, no other file needed to read it.

use std::fmt::Write;
use std::path::Path;

use super::curve;
use super::judge::Loss;
use super::peer::{Class, Peer};
use super::plot::{self, Bar};
use super::report::grid;
use super::table::{Line, Row};
use super::{Record, is_judged};

const STYLE: &str = include_str!("page.css");

/// The page of a comparison whose runs left their files in `out`.
pub(super) fn page(record: &Record<'_>, out: &Path) -> String {
    let mut html = format!(
        "<!doctype html><html lang=en><meta charset=utf-8>\
         <meta name=viewport content=\"width=device-width\"><title>Ringway: comparison</title>\
         <style>{STYLE}</style><h1>Ringway beside other proxies</h1>"
    );
    html += &beginning(record);
    html += &owed(record.table);
    html += &lost(record);
    html += "<h2>Rows</h2><p>Median (min-max) over the rounds; ratios are formed within a round, \
             those of added latency of the medians. A run counts only if nothing in it failed; a \
             percentile is told if ten samples lie beyond it.";
    for row in record.table {
        html += &shape(record, row, out);
    }
    html += &peers(record);
    html + "</html>"
}

/// Text that holds no markup.
pub(super) fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

fn beginning(record: &Record<'_>) -> String {
    let request = record.request;
    let mut html = String::new();
    let _ = write!(
        html,
        "<p>{} rounds of {:.2} s, {} peers, {} runs, interleaved A B C A B C.</p>",
        request.rounds,
        request.seconds,
        record.peers.len(),
        record.runs.len()
    );
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

fn owed(table: &[Row]) -> String {
    let mut html =
        "<h2>What is owed</h2><table><tr><th>row<th>peer<th>owed and what it is".to_owned();
    for row in table {
        for line in row.lines.iter().filter(|line| line.owes) {
            for judgement in &line.judgements {
                let word = if judgement.met() { "met" } else { "missed" };
                let _ = write!(
                    html,
                    "<tr class={word}><td><a href=\"#{0}\">{0}</a><td>{1}<td>{2}",
                    row.name,
                    escaped(&line.peer),
                    escaped(&format!("{} {judgement}", row.head))
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

/// Why a line that owes something is not judged.
fn unjudged(row: &Row, line: &Line) -> &'static str {
    match (line.figure, line.rate) {
        (Some(_), _) if row.added => "nothing to compare with that adds anything over direct",
        (Some(_), _) => "nothing to compare with",
        (None, Some(_)) => "too few samples",
        (None, None) => "nothing counted",
    }
}

fn lost(record: &Record<'_>) -> String {
    let mut html = "<h2>Where we lose</h2>".to_owned();
    if record.losses.is_empty() {
        return html + "<p>Nowhere, against what ran here.";
    }
    html += "<p>Every row in which a gateway misses what it owes, or another layer-7 proxy is \
             better by more than noise (5 %). What owes nothing in a row stands last.\
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
    html += "<div class=wide><table><tr>";
    let (heads, lines) = grid(row);
    for head in heads {
        let _ = write!(html, "<th>{}", escaped(&head));
    }
    for (line, cells) in row.lines.iter().zip(lines) {
        let _ = write!(html, "<tr class={}>", class(line.class));
        for cell in cells {
            let _ = write!(html, "<td>{}", escaped(&cell));
        }
    }
    html += "</table></div>";
    let bar = |line: &Line| Some((line.peer.clone(), line.class, line.figure?));
    let drawn: Vec<_> = row.lines.iter().filter_map(bar).collect();
    if !drawn.is_empty() {
        let bars =
            drawn.iter().map(|(name, of, value)| Bar { name, class: class(*of), value: *value });
        let _ = write!(html, "<h4>{}</h4>{}", escaped(&row.head), plot::bars(bars.collect()));
    }
    let curves: Vec<_> =
        row.lines.iter().filter_map(|line| drawn_curve(record, row, line, out)).collect();
    if !curves.is_empty() {
        let _ = write!(html, "<h4>latency by percentile, all rounds</h4>{}", plot::curves(&curves));
    }
    html + "</section>"
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
    let place = record.peers.iter().position(|peer| peer.name == line.peer)?;
    let strong = line.class == Class::Gateway;
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
    use crate::compare::shape::ALL;
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
            "<td>1.25<",
        ] {
            assert!(html.contains(part), "{part} is missing in:\n{html}");
        }
        for outside in ["src=", "http://", "https://", "<script", "@import", "url("] {
            assert!(!html.contains(outside), "{outside}");
        }
        assert_eq!(html.matches("<table").count(), html.matches("</table>").count());
        assert_eq!(html.matches("<section").count(), html.matches("</section>").count());
    }
}
