//! Columns, and quantities for people.

use super::Row;

/// Rows of equally many cells as text, each column as wide as its widest cell. Columns named in
/// `right` are flush right.
pub(super) fn columns(rows: &[Vec<String>], right: &[usize]) -> String {
    let count = rows.first().map_or(0, Vec::len);
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max()
    };
    let widths: Vec<usize> = (0..count).map(|column| width(column).unwrap_or(0)).collect();
    let mut out = String::new();
    for row in rows {
        let mut line = String::new();
        for ((column, cell), width) in row.iter().enumerate().zip(&widths) {
            let width = *width;
            line += &if right.contains(&column) {
                format!("{cell:>width$}  ")
            } else {
                format!("{cell:width$}  ")
            };
        }
        out += line.trim_end();
        out.push('\n');
    }
    out
}

/// The table of `ringway sessions`.
pub(super) fn of(rows: &[Row]) -> String {
    if rows.is_empty() {
        return "no sessions\n".into();
    }
    let head = [
        "REQUEST ID",
        "STATE",
        "CORE",
        "TENANT",
        "FUNCTION",
        "CLIENT",
        "WORKER",
        "STREAMS",
        "IN",
        "OUT",
        "AGE",
        "ENDED",
        "",
    ];
    let mut cells = vec![head.map(String::from).to_vec()];
    cells.extend(rows.iter().map(|row| {
        vec![
            printable(&row.request_id),
            printable(&row.state),
            row.core.to_string(),
            printable(&row.tenant),
            short(&row.function_id),
            printable(&row.client_address),
            printable(&row.tunnel),
            row.streams.to_string(),
            bytes(row.bytes_in as f64),
            bytes(row.bytes_out as f64),
            age(row.age_ms),
            ended(row),
            printable(row.close_reason.as_deref().unwrap_or_default()),
        ]
    }));
    columns(&cells, &[2, 7, 8, 9, 10])
}

/// When a session ended: day and time, UTC, to the second.
pub(super) fn ended(row: &Row) -> String {
    let at = row.ended_at.as_deref().unwrap_or_default();
    match (at.get(..10), at.get(11..19)) {
        (Some(day), Some(time)) => printable(&format!("{day} {time}")),
        _ => String::new(),
    }
}

/// The begin of an id.
pub(super) fn short(id: &str) -> String {
    printable(id.get(..8).unwrap_or(id))
}

/// A text of others, without characters that would move a terminal's cursor.
pub(super) fn printable(text: &str) -> String {
    text.chars().map(|c| if ringway_stdio::is_hidden(c) { '?' } else { c }).collect()
}

/// An amount of bytes.
pub(super) fn bytes(amount: f64) -> String {
    let mut amount = amount;
    for unit in ["B", "kB", "MB", "GB"] {
        if amount < 999.5 {
            let digits = usize::from(amount < 9.95 && unit != "B");
            return format!("{amount:.digits$} {unit}");
        }
        amount /= 1000.0;
    }
    format!("{amount:.1} TB")
}

/// An age, in its two largest units.
pub(super) fn age(ms: u64) -> String {
    let s = ms / 1000;
    match s {
        0..60 => format!("{s}s"),
        60..3600 => format!("{}m{:02}s", s / 60, s % 60),
        3600..86_400 => format!("{}h{:02}m", s / 3600, s / 60 % 60),
        _ => format!("{}d{:02}h", s / 86_400, s / 3600 % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_named_moves_no_cursor_and_takes_its_place() {
        let name = "a\u{1b}[31m\u{9b}\u{2028}\u{202e}\u{7f}ö";
        assert_eq!(printable(name), "a?[31m????ö");
    }

    #[test]
    fn quantities_are_short() {
        let shown: Vec<String> =
            [0.0, 999.0, 1_000.0, 9_990.0, 1_234_567.0, 5e9, 2e12].map(bytes).to_vec();
        assert_eq!(shown, ["0 B", "999 B", "1.0 kB", "10 kB", "1.2 MB", "5.0 GB", "2.0 TB"]);
        let shown: Vec<String> = [999, 61_000, 7_260_000, 90_000_000].map(age).to_vec();
        assert_eq!(shown, ["0s", "1m01s", "2h01m", "1d01h"]);
    }

    #[test]
    fn a_table_holds_together_and_no_name_moves_the_cursor() {
        let row = Row {
            request_id: "6370809d".into(),
            tenant: "a\x1b[2Jb".into(),
            state: "active".into(),
            ..Row::default()
        };
        let gone = Row {
            state: "closed".into(),
            ended_at: Some("2026-11-23T14:02:07.123456Z".into()),
            close_reason: Some("worker_closed".into()),
            ..Row::default()
        };
        let text = of(&[row.clone(), gone]);
        assert!(text.contains("  2026-11-23 14:02:07  worker_closed\n"), "{text}");
        let text = of(&[row]);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[0].find("TENANT"), lines[1].find("a?[2Jb"));
        assert_eq!(of(&[]), "no sessions\n");
    }
}
