//! The settings for people: the values they take, and the tables of `docs/reference/settings.md`.

use std::fmt::Write;

use super::settings::{GIB, KIB, Kind, MIB, MS, S, SETTINGS, Setting, tables};
use super::syntax::variable;

/// The settings as Markdown tables.
#[must_use]
pub fn settings_as_markdown() -> String {
    let mut out = String::new();
    for table in tables() {
        let many = matches!(table, "tenant" | "function");
        let (open, close) = if many { ("[[", "]]") } else { ("[", "]") };
        let of_table = |s: &&Setting| s.key.split('.').next() == Some(table);
        // Writing to a String cannot fail.
        let _ = writeln!(out, "### `{open}{table}{close}`\n");
        let in_files = !SETTINGS.iter().filter(of_table).any(Setting::has_variable);
        let (head, line) = if in_files { ("", "") } else { (" Environment |", "---|") };
        let _ = writeln!(out, "| Setting | Values | Default |{head} Meaning |");
        let _ = writeln!(out, "|---|---|---|{line}---|");
        for setting in SETTINGS.iter().filter(of_table) {
            let name = &setting.key[table.len() + 1..];
            let values =
                if setting.built { setting.kind.text() } else { "not supported yet".into() };
            let variable = match setting {
                _ if in_files => String::new(),
                setting if setting.has_variable() => format!(" `{}` |", variable(setting.key)),
                _ => " none |".into(),
            };
            let (default, what) = (setting.default_text(), setting.what);
            let _ = writeln!(out, "| `{name}` | {values} | {default} |{variable} {what} |");
        }
        out.push('\n');
    }
    out
}

impl Setting {
    fn default_text(&self) -> String {
        match (self.default, self.default_in_nvcf) {
            ("", _) => String::new(),
            (default, None) => format!("`{default}`"),
            (default, Some(other)) => format!("`{default}`; `nvcf`: `{other}`"),
        }
    }
}

impl Kind {
    /// The values, for people.
    pub(super) fn text(self) -> String {
        match self {
            Self::Address => "address and port".into(),
            Self::Count(min, max) => format!("{min} to {max}"),
            Self::Time(min, max) => format!("{} to {}", time_text(min), time_text(max)),
            Self::Bytes(min, max) => format!("{} to {}", bytes_text(min), bytes_text(max)),
            Self::CountOr(word, min, max) => format!("\"{word}\" or a number from {min} to {max}"),
            Self::Flag => "true, false".into(),
            Self::Word(words) => words.join(", "),
            Self::List(text) | Self::Own(text) => text.into(),
        }
    }
}

fn time_text(micros: u64) -> String {
    match micros {
        0 => "0s".into(),
        m if m % (3600 * S) == 0 => format!("{}h", m / (3600 * S)),
        m if m % S == 0 => format!("{}s", m / S),
        m if m % MS == 0 => format!("{}ms", m / MS),
        m => format!("{m}us"),
    }
}

fn bytes_text(bytes: u64) -> String {
    match bytes {
        0 => "0B".into(),
        b if b % GIB == 0 => format!("{}GiB", b / GIB),
        b if b % MIB == 0 => format!("{}MiB", b / MIB),
        b if b % KIB == 0 => format!("{}KiB", b / KIB),
        b => format!("{b}B"),
    }
}
