//! Reads one table: checks each value against its setting, reports every fault, and fills in
//! defaults.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::node::{Node, Value};
use super::problems::{Origin, Problems, unknown};
use super::settings::{Kind, Setting};
use super::units;

/// One table of the configuration, or its absence.
#[derive(Clone, Copy)]
pub(super) struct Section<'a> {
    table: &'static str,
    node: Option<&'a Node>,
}

impl<'a> Section<'a> {
    /// The table under `name`. Reports keys that do not belong there.
    pub(super) fn of(root: &'a Node, table: &'static str, problems: &mut Problems) -> Self {
        let node = root.get(table);
        if let Some(node) = node
            && !matches!(node.value, Value::Table(_) | Value::Empty)
        {
            let write = problems.syntax().write_table(table);
            let text = format!("{table} is {}, not a table: {write}", node.kind());
            problems.add(node.place, text);
        }
        Self::new(table, node, problems)
    }

    /// The tables of a list of tables.
    pub(super) fn each(root: &'a Node, table: &'static str, problems: &mut Problems) -> Vec<Self> {
        let Some(node) = root.get(table) else { return Vec::new() };
        let Value::List(list) = &node.value else {
            let write = problems.syntax().write_tables(table);
            let text = format!("{table} is {}, not a list: {write}", node.kind());
            problems.add(node.place, text);
            return Vec::new();
        };
        list.iter().map(|item| Self::new(table, Some(item), problems)).collect()
    }

    fn new(table: &'static str, node: Option<&'a Node>, problems: &mut Problems) -> Self {
        for (key, _) in node.map(Node::entries).unwrap_or_default() {
            check_key(table, &key.name, key.place, problems);
        }
        Self { table, node }
    }

    /// The table under `name`, without a check of its keys.
    pub(super) fn quiet(root: &'a Node, table: &'static str) -> Self {
        Self { table, node: root.get(table) }
    }

    /// The place of the table's head, where there is one.
    pub(super) fn place(&self) -> Option<Origin> {
        self.node.map(|node| node.place)
    }

    /// The value under `name`.
    pub(super) fn get(&self, name: &str) -> Option<&'a Node> {
        self.node?.get(name)
    }

    /// The place of the value under `name`, or of the table.
    pub(super) fn place_of(&self, name: &str) -> Option<Origin> {
        self.get(name).map(|node| node.place).or_else(|| self.place())
    }

    /// `table.name`, for messages.
    pub(super) fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.table)
    }

    fn setting(&self, name: &str) -> &'static Setting {
        Setting::find(&self.key(name)).expect("every key that is read stands in SETTINGS")
    }

    /// Reports an invalid value.
    pub(super) fn refuse(&self, name: &str, node: &Node, want: &str, problems: &mut Problems) {
        let shown = match &node.value {
            // Any value in the place of keys may be a key, so it is not shown.
            _ if name.ends_with("_keys") => node.kind().into(),
            Value::Text(text) => format!("\"{text}\""),
            Value::Whole(number) => number.to_string(),
            _ => node.kind().into(),
        };
        problems.add(node.place, format!("{} is {shown}, but must be {want}", self.key(name)));
    }

    /// A text, where there is one.
    pub(super) fn text(&self, name: &str, problems: &mut Problems) -> Option<&'a str> {
        let node = self.get(name)?;
        match &node.value {
            Value::Text(text) => Some(text),
            _ => {
                self.refuse(name, node, "a text in quotes", problems);
                None
            }
        }
    }

    /// A text that must be there.
    pub(super) fn required(&self, name: &str, problems: &mut Problems) -> Option<&'a str> {
        if self.get(name).is_none() {
            problems.add(self.place(), format!("{} is missing: write it", self.key(name)));
        }
        self.text(name, problems)
    }

    /// A list of texts with their places; empty if there is none.
    pub(super) fn texts(&self, name: &str, problems: &mut Problems) -> Vec<(Origin, &'a str)> {
        let Some(node) = self.get(name) else { return Vec::new() };
        let Value::List(list) = &node.value else {
            self.refuse(name, node, "a list of texts: [\"...\"]", problems);
            return Vec::new();
        };
        let mut texts = Vec::new();
        for item in list {
            match &item.value {
                Value::Text(text) => texts.push((item.place, text.as_str())),
                _ => self.refuse(name, item, "a list of texts: [\"...\"]", problems),
            }
        }
        texts
    }

    /// A listener's address: a text, or a table with `address` (`listen.rs` reads the rest).
    pub(super) fn address(&self, name: &str, problems: &mut Problems) -> SocketAddr {
        let setting = self.setting(name);
        let default = setting.default.parse().expect("the default is an address");
        let Some(mut node) = self.get(name) else { return default };
        if let Value::Table(_) = &node.value {
            match node.get("address") {
                Some(address) => node = address,
                // The table was made for a variable that names one of its other keys.
                None if matches!(node.place, Origin::Variable(_)) => return default,
                None => {
                    problems
                        .add(node.place, format!("{}.address is missing: write it", setting.key));
                    return default;
                }
            }
        }
        let parsed = match &node.value {
            Value::Text(text) => text.parse().ok(),
            _ => None,
        };
        parsed.unwrap_or_else(|| {
            let want = format!("an IP address and a port, such as \"{}\"", setting.default);
            self.refuse(name, node, &want, problems);
            default
        })
    }

    /// True or false.
    pub(super) fn flag(&self, name: &str, problems: &mut Problems) -> bool {
        let default = self.setting(name).default == "true";
        match self.get(name) {
            None => default,
            Some(Node { value: Value::Flag(flag), .. }) => *flag,
            Some(node) => {
                self.refuse(name, node, flag_wanted(node.place), problems);
                default
            }
        }
    }

    /// A whole number.
    pub(super) fn count(&self, name: &str, problems: &mut Problems) -> u64 {
        let setting = self.setting(name);
        let Kind::Count(min, max) = setting.kind else { unreachable!("{name} is a count") };
        let default = setting.default.parse().expect("the default is a number");
        let Some(node) = self.get(name) else { return default };
        if let Value::Whole(number) = node.value
            && let Ok(number) = u64::try_from(number)
            && (min..=max).contains(&number)
        {
            return number;
        }
        self.refuse(name, node, &format!("a number from {min} to {max}"), problems);
        default
    }

    /// A whole number, or a word that stands for none.
    pub(super) fn count_or_word(&self, name: &str, problems: &mut Problems) -> Option<u64> {
        let setting = self.setting(name);
        let Kind::CountOr(word, min, max) = setting.kind else {
            unreachable!("{name} is a count or a word")
        };
        let node = self.get(name)?;
        match &node.value {
            Value::Text(text) if text == word => return None,
            Value::Whole(number) => {
                let number = u64::try_from(*number).ok().filter(|n| (min..=max).contains(n));
                if number.is_some() {
                    return number;
                }
            }
            _ => {}
        }
        self.refuse(name, node, &setting.kind.text(), problems);
        None
    }

    /// The path of a file. A path from the configuration file is relative to that file; one from
    /// the environment is not.
    pub(super) fn path(
        &self,
        name: &str,
        folder: &Path,
        problems: &mut Problems,
    ) -> Option<PathBuf> {
        let text = self.text(name, problems)?;
        let node = self.get(name)?;
        if text.is_empty() {
            self.refuse(name, node, "the path of a file", problems);
            return None;
        }
        Some(path_of(node.place, text, folder))
    }

    /// A duration.
    pub(super) fn time(&self, name: &str, problems: &mut Problems) -> Duration {
        let setting = self.setting(name);
        let Kind::Time(min, max) = setting.kind else { unreachable!("{name} is a duration") };
        let parse = |text: &str| {
            let time = units::duration(text)?;
            (min..=max).contains(&(time.as_micros() as u64)).then_some(time)
        };
        self.with_unit(name, setting, parse, problems)
    }

    /// A number of bytes.
    pub(super) fn bytes(&self, name: &str, problems: &mut Problems) -> usize {
        let setting = self.setting(name);
        let Kind::Bytes(min, max) = setting.kind else { unreachable!("{name} is a size") };
        let parse = |text: &str| units::bytes(text).filter(|bytes| (min..=max).contains(bytes));
        self.with_unit(name, setting, parse, problems) as usize
    }

    fn with_unit<T>(
        &self,
        name: &str,
        setting: &Setting,
        parse: impl Fn(&str) -> Option<T>,
        problems: &mut Problems,
    ) -> T {
        let default = || parse(setting.default).expect("the default is in range");
        let Some(node) = self.get(name) else { return default() };
        let value = match &node.value {
            Value::Text(text) => parse(text),
            _ => None,
        };
        value.unwrap_or_else(|| {
            let range = setting.kind.text();
            let want = format!("{range}, with its unit, such as \"{}\"", setting.default);
            self.refuse(name, node, &want, problems);
            default()
        })
    }

    /// One of the setting's words.
    pub(super) fn word(&self, name: &str, problems: &mut Problems) -> &'static str {
        let setting = self.setting(name);
        let Kind::Word(words) = setting.kind else { unreachable!("{name} is a word") };
        let Some(node) = self.get(name) else { return setting.default };
        let Value::Text(text) = &node.value else {
            self.refuse(name, node, "a text in quotes", problems);
            return setting.default;
        };
        if let Some(word) = words.iter().find(|word| *word == text) {
            return word;
        }
        let list: Vec<String> = words.iter().map(|word| format!("\"{word}\"")).collect();
        self.refuse(name, node, &format!("one of {}", list.join(", ")), problems);
        setting.default
    }
}

/// A path, resolved by where it was written.
pub(super) fn path_of(place: Origin, text: &str, folder: &Path) -> PathBuf {
    match place {
        Origin::Line(_) => folder.join(text),
        _ => text.into(),
    }
}

/// The values of a flag. In a file quotes would make a text of it.
pub(super) fn flag_wanted(place: Origin) -> &'static str {
    match place {
        Origin::Line(_) => "true or false, without quotes",
        _ => "true or false",
    }
}

/// Reports a key that is no setting, or one of a feature that is not there yet.
fn check_key(table: &str, name: &str, place: Origin, problems: &mut Problems) {
    let key = format!("{table}.{name}");
    match Setting::find(&key) {
        Some(setting) if setting.built => {}
        Some(_) => problems.add(place, format!("{key} is not supported yet: remove it")),
        None => problems.add(place, unknown(&key, name, Setting::names(table))),
    }
}
