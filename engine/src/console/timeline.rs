//! One session's events, one line each.

use serde::Deserialize;

use super::Row;
use super::table::{age, bytes, columns, ended, printable};

/// A session as `/sessions/ID` tells of it.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Told {
    #[serde(flatten)]
    row: Row,
    verdict: String,
    events: Vec<Happened>,
    lost_events: u64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Happened {
    at: String,
    after_ms: f64,
    core: u16,
    event: String,
    text: String,
}

/// The text of `ringway sessions timeline`.
pub(super) fn of(told: &Told) -> String {
    let row = &told.row;
    let peer = |address: &str| match address {
        "" => "-".into(),
        address => printable(address),
    };
    let state = match &row.close_reason {
        Some(reason) => match ended(row).as_str() {
            "" => format!("{} ({reason})", row.state),
            at => format!("{} ({reason}) {at}", row.state),
        },
        None => row.state.clone(),
    };
    let mut out = format!(
        "session   {}  {}\ntenant    {}\nfunction  {}  version {}\nclient    {}  worker {}  node {}  core {}\n\
         bytes     {} in, {} out  {} streams  {} old\n\n{}\n",
        printable(&row.request_id),
        printable(&state),
        printable(&row.tenant),
        printable(&row.function_id),
        printable(&row.function_version_id),
        peer(&row.client_address),
        peer(&row.tunnel),
        peer(&row.node),
        row.core,
        bytes(row.bytes_in as f64),
        bytes(row.bytes_out as f64),
        row.streams,
        age(row.age_ms),
        printable(&told.verdict),
    );
    if told.events.is_empty() {
        return out;
    }
    let day = told.events[0].at.get(..10).unwrap_or_default();
    out += &format!("\n{} (UTC)\n", printable(day));
    let cells: Vec<Vec<String>> = told.events.iter().map(line).collect();
    out += &columns(&cells, &[1]);
    if told.lost_events > 0 {
        out += &format!(
            "{} events between the first and the latest were not kept\n",
            told.lost_events
        );
    }
    out
}

fn line(happened: &Happened) -> Vec<String> {
    let time = happened.at.get(11..26).unwrap_or(&happened.at);
    vec![
        printable(time),
        after(happened.after_ms),
        format!("core {}", happened.core),
        printable(&happened.event),
        printable(&happened.text),
    ]
}

fn after(ms: f64) -> String {
    if ms < 1000.0 { format!("+{ms:.1} ms") } else { format!("+{:.3} s", ms / 1000.0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timeline_begins_with_the_verdict() {
        let told: Told = serde_json::from_str(
            r#"{"requestId": "6370809d", "state": "closed", "closeReason": "worker_closed",
                "verdict": "ended by the worker", "lostEvents": 2, "ageMs": 61000,
                "events": [{"at": "2026-11-23T14:02:07.123456Z", "afterMs": 1.5, "core": 1,
                            "event": "accepted", "text": "the client connected", "client": "x"}]}"#,
        )
        .expect("such an answer");
        let text = of(&told);
        let line = "14:02:07.123456  +1.5 ms  core 1  accepted  the client connected\n";
        assert!(text.contains(line), "{text}");
        assert!(text.contains("\n\nended by the worker\n\n2026-11-23 (UTC)\n"), "{text}");
        assert!(text.starts_with("session   6370809d  closed (worker_closed)\n"), "{text}");
        assert!(text.ends_with("2 events between the first and the latest were not kept\n"));
    }
}
