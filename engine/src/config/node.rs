//! A configuration as a tree that remembers where each value was written.

use std::collections::BTreeMap;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::problems::{Origin, Problems};

/// A value and where it was written.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) place: Origin,
    pub(super) value: Value,
}

#[derive(Debug)]
pub(super) enum Value {
    /// In the order of the lines.
    Table(Vec<(Key, Node)>),
    List(Vec<Node>),
    Text(String),
    Whole(i64),
    Flag(bool),
    /// A key without a value (YAML).
    Empty,
    /// A value of a kind that no setting has, by the kind's name.
    Other(&'static str),
}

#[derive(Debug)]
pub(super) struct Key {
    pub(super) name: String,
    pub(super) place: Origin,
}

impl Node {
    /// Reads TOML. Parts that cannot be read are reported and left out. For YAML see `yaml.rs`.
    pub(super) fn from_toml(text: &str, problems: &mut Problems) -> Self {
        let lines = Lines::of(text);
        let (table, errors) = DeTable::parse_recoverable(text);
        for error in errors {
            let line = error.span().map(|span| lines.of_byte(span.start));
            problems.add(line, format!("not TOML: {}; correct this line", error.message().trim()));
        }
        lines.table(table.get_ref(), 1)
    }

    /// The kind, for messages.
    pub(super) fn kind(&self) -> &'static str {
        match &self.value {
            Value::Table(_) => "a table",
            Value::List(_) => "a list",
            Value::Text(_) => "a text",
            Value::Whole(_) => "a number",
            Value::Flag(_) => "true or false",
            Value::Empty => "empty",
            Value::Other(kind) => kind,
        }
    }

    /// The entries of a table; none for anything else.
    pub(super) fn entries(&self) -> &[(Key, Self)] {
        match &self.value {
            Value::Table(entries) => entries,
            _ => &[],
        }
    }

    /// Notes every value below with its full name.
    pub(super) fn flatten(&self, name: &str, into: &mut BTreeMap<String, String>) {
        let text = match &self.value {
            Value::Table(entries) => {
                for (key, node) in entries {
                    node.flatten(&format!("{name}.{}", key.name), into);
                }
                return;
            }
            Value::List(list) => {
                let mut items = BTreeMap::new();
                for (at, item) in list.iter().enumerate() {
                    item.flatten(&format!("{at:06}"), &mut items);
                }
                items.into_values().collect::<Vec<_>>().join(", ")
            }
            Value::Text(text) => text.clone(),
            Value::Whole(number) => number.to_string(),
            Value::Flag(flag) => flag.to_string(),
            Value::Empty => return,
            Value::Other(kind) => (*kind).into(),
        };
        into.insert(name.into(), text);
    }

    /// A table without entries.
    pub(super) fn empty(place: Origin) -> Self {
        Self { place, value: Value::Table(Vec::new()) }
    }

    /// The value under a full name, such as `listen.client.tls.cert`.
    pub(super) fn at(&self, key: &str) -> Option<&Self> {
        key.split('.').try_fold(self, |node, name| node.get(name))
    }

    /// Writes a value under a full name, over an earlier one. Missing tables on the way are made.
    /// If something on the way is no table, it stays, and is reported elsewhere.
    pub(super) fn put(&mut self, key: &str, node: Self) {
        let place = node.place;
        let (name, rest) = match key.split_once('.') {
            Some((name, rest)) => (name, Some(rest)),
            None => (key, None),
        };
        if let Value::Empty = self.value {
            self.value = Value::Table(Vec::new());
        }
        let Value::Table(entries) = &mut self.value else { return };
        let at = entries.iter().position(|(key, _)| key.name == name);
        match (rest, at) {
            (None, Some(at)) => entries[at].1 = node,
            (Some(rest), Some(at)) => entries[at].1.put(rest, node),
            (None, None) => entries.push((Key { name: name.into(), place }, node)),
            (Some(rest), None) => {
                let mut table = Self::empty(place);
                table.put(rest, node);
                entries.push((Key { name: name.into(), place }, table));
            }
        }
    }

    /// Takes the value under a full name away.
    pub(super) fn remove(&mut self, key: &str) {
        let Value::Table(entries) = &mut self.value else { return };
        match key.split_once('.') {
            None => entries.retain(|(own, _)| own.name != key),
            Some((name, rest)) => {
                for (_, node) in entries.iter_mut().filter(|(own, _)| own.name == name) {
                    node.remove(rest);
                }
            }
        }
    }

    /// The table's value under `name`.
    pub(super) fn get(&self, name: &str) -> Option<&Self> {
        self.entries().iter().find(|(key, _)| key.name == name).map(|(_, node)| node)
    }
}

/// Where each line begins.
struct Lines(Vec<usize>);

impl Lines {
    fn of(text: &str) -> Self {
        let ends = text.bytes().enumerate().filter(|(_, b)| *b == b'\n').map(|(at, _)| at + 1);
        Self(std::iter::once(0).chain(ends).collect())
    }

    fn of_byte(&self, at: usize) -> usize {
        self.0.partition_point(|&start| start <= at)
    }

    fn table(&self, table: &DeTable<'_>, line: usize) -> Node {
        let mut entries: Vec<_> = table.iter().map(|(key, value)| self.entry(key, value)).collect();
        entries.sort_by_key(|(key, _)| key.place);
        Node { place: line.into(), value: Value::Table(entries) }
    }

    fn entry(
        &self,
        key: &Spanned<std::borrow::Cow<'_, str>>,
        value: &Spanned<DeValue<'_>>,
    ) -> (Key, Node) {
        let place = self.of_byte(key.span().start).into();
        (Key { name: key.get_ref().to_string(), place }, self.node(value))
    }

    fn node(&self, value: &Spanned<DeValue<'_>>) -> Node {
        let line = self.of_byte(value.span().start);
        let value = match value.get_ref() {
            DeValue::Table(table) => return self.table(table, line),
            DeValue::Array(list) => Value::List(list.iter().map(|item| self.node(item)).collect()),
            DeValue::String(text) => Value::Text(text.to_string()),
            DeValue::Boolean(flag) => Value::Flag(*flag),
            DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix())
                .map_or(Value::Other("too large a number"), Value::Whole),
            DeValue::Float(_) => Value::Other("a number with a fraction"),
            DeValue::Datetime(_) => Value::Other("a date"),
        };
        Node { place: line.into(), value }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_knows_its_line() {
        let mut problems = Problems::default();
        let text =
            "a = 1\n\n[b]\nc = \"x\"\nd = [\n  true,\n  2.5,\n]\n[[e]]\nf = 1\n[[e]]\nf = 2\n";
        let root = Node::from_toml(text, &mut problems);
        assert!(problems.is_empty());
        let b = root.get("b").unwrap();
        assert_eq!((b.place, b.get("c").unwrap().place), (Origin::Line(3), Origin::Line(4)));
        let Value::List(list) = &b.get("d").unwrap().value else { panic!("a list") };
        assert_eq!(
            (list[0].place, list[1].place, list[1].kind()),
            (Origin::Line(6), Origin::Line(7), "a number with a fraction")
        );
        let Value::List(list) = &root.get("e").unwrap().value else { panic!("a list") };
        assert_eq!((list[0].place, list[1].place), (Origin::Line(9), Origin::Line(11)));
    }

    #[test]
    fn every_fault_of_the_syntax_is_reported() {
        let mut problems = Problems::default();
        let root = Node::from_toml("a = \nb = 2\nc = [1\n", &mut problems);
        let problems = problems.sorted().to_string();
        assert!(problems.starts_with("1: not TOML: "), "{problems}");
        assert!(problems.contains("\n3: not TOML: "), "{problems}");
        assert!(root.get("b").is_some());
    }
}
