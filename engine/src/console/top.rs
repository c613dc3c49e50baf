//! `ringway top`: live sessions, busiest first, and the gateway's totals.

use std::collections::HashMap;
use std::time::Duration;

use ringway_stdio::Trouble;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, sleep_until};

use super::port::Port;
use super::screen::{Key, Screen};
use super::table::{age, bytes, printable, short};
use super::view::View;
use super::{Row, refused};

/// The metric that counts calls that are over. Its labels do not matter here.
const CALLS: &str = "http_server_request_duration_seconds_count";
const RESUMES: &str = "ringway_resumes_total";

/// The gateway at one instant.
#[derive(Debug, Default)]
struct Look {
    rows: Vec<Row>,
    cores: usize,
    calls: f64,
    resumes: f64,
}

/// Shows the sessions again and again. Ends after `frames` looks, with `q`, or with a signal.
pub(super) async fn run(
    port: &Port,
    interval: Duration,
    frames: Option<u64>,
) -> Result<(), Trouble> {
    let heard = |kind| signal(kind).map_err(refused("signals cannot be listened to"));
    let mut interrupt = heard(SignalKind::interrupt())?;
    let mut terminate = heard(SignalKind::terminate())?;
    // A gateway that cannot be reached is reported before the terminal is taken.
    let mut now = (Instant::now(), look(port).await?);
    let mut before: Option<(Instant, Look)> = None;
    let mut screen = Screen::open()?;
    let mut keys = screen.keys();
    let mut told = String::new();
    for shown in 1.. {
        let since = before.as_ref().map(|(at, look)| (now.0 - *at, look));
        let mut view = view(port.address(), &now.1, since);
        view.told.clone_from(&told);
        if !screen.show(&view)? {
            return Ok(());
        }
        if frames.is_some_and(|frames| shown >= frames) {
            break;
        }
        let next = Instant::now() + interval;
        loop {
            tokio::select! {
                () = sleep_until(next) => break,
                Some(key) = keys.recv() => match key {
                    Key::Quit => return Ok(()),
                    Key::Draw => {
                        screen.show(&view)?;
                    }
                },
                _ = interrupt.recv() => return Ok(()),
                _ = terminate.recv() => return Ok(()),
            }
        }
        match look(port).await {
            Ok(seen) => {
                told.clear();
                before = Some(std::mem::replace(&mut now, (Instant::now(), seen)));
            }
            // The gateway may come back.
            Err(failure) if screen.is_terminal() => told = printable(&failure.to_string()),
            Err(failure) => return Err(failure),
        }
    }
    Ok(())
}

async fn look(port: &Port) -> Result<Look, Trouble> {
    let info = port.json("/info").await?;
    let rows: Vec<Row> = port.read(port.json("/sessions").await?)?;
    let metrics = port.text("/metrics").await?;
    Ok(Look {
        rows: rows.into_iter().filter(|row| row.state != "closed").collect(),
        cores: info["cores"].as_u64().unwrap_or(0) as usize,
        calls: sum(&metrics, CALLS, ""),
        resumes: sum(&metrics, RESUMES, "outcome=\"ok\""),
    })
}

/// The sum of a metric's series that have a label.
fn sum(metrics: &str, name: &str, label: &str) -> f64 {
    let value = |line: &str| {
        let (series, value) = line.rsplit_once(' ')?;
        let labels = series.strip_prefix(name)?;
        let own = labels.is_empty() || labels.starts_with('{');
        (own && labels.contains(label)).then(|| value.parse::<f64>().ok())?
    };
    // A sum of nothing is -0.
    metrics.lines().filter_map(value).fold(0.0, |sum, value| sum + value)
}

fn view(address: &str, now: &Look, before: Option<(Duration, &Look)>) -> View {
    let mut flows = flows(now, before);
    flows.sort_by(|a, b| {
        let busy = (b.bytes_in + b.bytes_out).total_cmp(&(a.bytes_in + a.bytes_out));
        busy.then(a.row.age_ms.cmp(&b.row.age_ms))
    });
    let mut cells = vec![HEAD.map(String::from).to_vec()];
    cells.extend(flows.iter().map(Flow::cells));
    View { told: String::new(), head: head(address, now, before, &flows), cells }
}

const HEAD: [&str; 11] = [
    "REQUEST", "STATE", "CORE", "TENANT", "FUNCTION", "CLIENT", "WORKER", "STREAMS", "IN/s",
    "OUT/s", "AGE",
];

fn head(
    address: &str,
    now: &Look,
    before: Option<(Duration, &Look)>,
    flows: &[Flow<'_>],
) -> [String; 2] {
    let of = |state: &str| now.rows.iter().filter(|row| row.state == state).count();
    let calls = match before {
        Some((time, before)) => format!("{:.0}", rate(now.calls - before.calls, time)),
        None => "-".into(),
    };
    let (ins, outs) = flows
        .iter()
        .fold((0.0, 0.0), |(ins, outs), flow| (ins + flow.bytes_in, outs + flow.bytes_out));
    let gateway = format!(
        "ringway {}  cores {}  sessions {} (waiting {}, attached {}, active {}, parked {})",
        printable(address),
        now.cores,
        now.rows.len(),
        of("waiting"),
        of("attached"),
        of("active"),
        of("parked"),
    );
    let traffic = format!(
        "calls/s {calls}  in {}/s  out {}/s  resumes {}",
        bytes(ins),
        bytes(outs),
        now.resumes,
    );
    [gateway, traffic]
}

/// A session, and its bytes a second.
struct Flow<'a> {
    row: &'a Row,
    bytes_in: f64,
    bytes_out: f64,
}

impl Flow<'_> {
    fn cells(&self) -> Vec<String> {
        let row = self.row;
        vec![
            short(&row.request_id),
            printable(&row.state),
            row.core.to_string(),
            printable(&row.tenant),
            short(&row.function_id),
            printable(&row.client_address),
            printable(&row.tunnel),
            row.streams.to_string(),
            bytes(self.bytes_in),
            bytes(self.bytes_out),
            age(row.age_ms),
        ]
    }
}

fn flows<'a>(now: &'a Look, before: Option<(Duration, &Look)>) -> Vec<Flow<'a>> {
    let (time, rows) = before.map_or((Duration::ZERO, &[][..]), |(time, look)| (time, &look.rows));
    let earlier: HashMap<&str, &Row> =
        rows.iter().map(|row| (row.request_id.as_str(), row)).collect();
    let flow = |row: &'a Row| {
        let was = earlier.get(row.request_id.as_str()).map(|row| (row.bytes_in, row.bytes_out));
        // A session older than the last look existed then, but was not listed. So its bytes since
        // then are not known.
        let young = u128::from(row.age_ms) <= time.as_millis();
        let (ins, outs) = was.unwrap_or(if young { (0, 0) } else { (row.bytes_in, row.bytes_out) });
        Flow {
            row,
            bytes_in: rate(row.bytes_in.saturating_sub(ins) as f64, time),
            bytes_out: rate(row.bytes_out.saturating_sub(outs) as f64, time),
        }
    };
    now.rows.iter().map(flow).collect()
}

fn rate(amount: f64, time: Duration) -> f64 {
    if time.is_zero() { 0.0 } else { amount / time.as_secs_f64() }
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::*;

    fn look(rows: &[(&str, u64)], calls: f64) -> Look {
        let row = |(id, bytes): &(&str, u64)| Row {
            request_id: (*id).into(),
            state: "active".into(),
            bytes_in: *bytes,
            bytes_out: 10 * bytes,
            age_ms: 60_000,
            ..Row::default()
        };
        Look { rows: rows.iter().map(row).collect(), cores: 2, calls, resumes: 3.0 }
    }

    #[test]
    fn the_busiest_come_first_with_what_flows_a_second() {
        let before = look(&[("aaaaaaaa", 100), ("bbbbbbbb", 100)], 10.0);
        let now = look(&[("aaaaaaaa", 300), ("bbbbbbbb", 900), ("cccccccc", 5_000)], 30.0);
        let text = view("here", &now, Some((Duration::from_secs(2), &before))).text();
        let lines: Vec<&str> = text.lines().collect();
        assert!(
            lines[0].contains("cores 2  sessions 3 (waiting 0, attached 0, active 3"),
            "{text}"
        );
        assert_eq!(lines[1], "calls/s 10  in 500 B/s  out 5.0 kB/s  resumes 3");
        let order: Vec<&str> = lines[4..].iter().map(|line| &line[..8]).collect();
        assert_eq!(order, ["bbbbbbbb", "aaaaaaaa", "cccccccc"], "{text}");
        assert!(lines[4].contains("400 B") && lines[4].contains("4.0 kB"), "{text}");
        assert!(lines[6].contains("  0 B"), "nobody knows since when: {text}");
    }

    #[test]
    fn a_terminal_shows_as_much_as_has_room() {
        let rows: Vec<(String, u64)> = (0..50).map(|n| (format!("{n:08}"), 1)).collect();
        let rows: Vec<(&str, u64)> = rows.iter().map(|(id, bytes)| (&**id, *bytes)).collect();
        let mut view = view("here", &look(&rows, 0.0), None);
        let mut terminal = Terminal::new(TestBackend::new(60, 10)).unwrap();
        let mut lines = |view: &View| {
            terminal.draw(|frame| view.draw(frame)).unwrap();
            let buffer = terminal.backend().buffer().clone();
            let line = |y| (0..60).map(|x| buffer[(x, y)].symbol()).collect::<String>();
            (0..10).map(line).collect::<Vec<String>>()
        };
        let shown = lines(&view);
        assert!(shown[0].starts_with("ringway here  cores 2  sessions 50"), "{shown:?}");
        assert!(shown[1].starts_with("calls/s -") && shown[3].starts_with("REQUEST"), "{shown:?}");
        assert!(shown[9].starts_with("000000"), "{shown:?}");
        // A column that does not fit is left out.
        assert!(shown[3].trim_end().ends_with("WORKER"), "{shown:?}");
        view.told = "it does not answer".into();
        assert!(lines(&view)[0].starts_with("it does not answer"));
    }

    #[test]
    fn metrics_are_summed_over_their_series() {
        let metrics = "# TYPE a counter\na 1\na_total 4\na{x=\"1\",outcome=\"ok\"} 2\n\
                       a{outcome=\"no\"} 8\n";
        assert_eq!((sum(metrics, "a", ""), sum(metrics, "a", "outcome=\"ok\"")), (11.0, 2.0));
    }
}
