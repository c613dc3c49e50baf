//! YAML as the same tree that TOML becomes.
//!
//! Features of YAML that TOML lacks (anchors, tags, several documents, keys that are no texts) are
//! refused. People read a configuration, and the meaning of such a feature depends on other places.

use saphyr_parser::{Event, Parser, ScalarStyle, ScanError};

use super::node::{Key, Node, Value};
use super::problems::{At, Origin, Problems};

/// How deep tables and lists may be nested; settings need five levels at most.
const MAX_DEPTH: usize = 16;

/// A table or list that is being read and has not ended yet.
#[derive(Debug)]
enum Open {
    /// The key, once it is read, is the one whose value comes next.
    Table {
        line: usize,
        entries: Vec<(Key, Node)>,
        key: Option<Key>,
    },
    List {
        line: usize,
        items: Vec<Node>,
    },
}

struct Tree<'a> {
    open: Vec<Open>,
    root: Option<Node>,
    /// Whether a part of the tree was not read. A check would then report that part as missing.
    torn: bool,
    problems: &'a mut Problems,
}

impl Node {
    /// Reads YAML; `None` if a part could not be read. What is wrong is reported.
    pub(super) fn from_yaml(text: &str, problems: &mut Problems) -> Option<Self> {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let mut tree = Tree { open: Vec::new(), root: None, torn: false, problems };
        for event in Parser::new_from_str(text) {
            match event {
                Ok((event, span)) => tree.take(event, span.start.line())?,
                Err(error) => {
                    let line = line_of(&error, text);
                    tree.problems
                        .add(line, format!("not YAML: {}; correct this line", error.info()));
                    return None;
                }
            }
        }
        tree.finish()
    }
}

impl Tree<'_> {
    /// Adds one event to the tree; `None` if the rest cannot be understood.
    fn take(&mut self, event: Event<'_>, line: usize) -> Option<()> {
        match event {
            Event::DocumentStart(_) if self.root.is_some() => {
                self.problems
                    .add(line, "a second document begins here: write one, without \"---\"");
                return None;
            }
            Event::Alias(_) => {
                self.tear(line, "an alias (*) cannot be used: write the value itself");
                self.put(Node { place: line.into(), value: Value::Other("an alias") });
            }
            Event::Scalar(text, style, anchor, tag) => {
                self.check(line, anchor, tag.is_some());
                if let Some(key) = self.wanted_key() {
                    *key = Some(Key { name: text.into_owned(), place: line.into() });
                } else {
                    let plain = style == ScalarStyle::Plain;
                    let value = if plain { scalar(&text) } else { Value::Text(text.into_owned()) };
                    self.put(Node { place: line.into(), value });
                }
            }
            Event::SequenceStart(anchor, tag) => {
                self.check(line, anchor, tag.is_some());
                self.begin(line, Open::List { line, items: Vec::new() })?;
            }
            Event::MappingStart(anchor, tag) => {
                self.check(line, anchor, tag.is_some());
                self.begin(line, Open::Table { line, entries: Vec::new(), key: None })?;
            }
            Event::SequenceEnd | Event::MappingEnd => {
                let node = match self.open.pop()? {
                    Open::Table { line, entries, .. } => {
                        Node { place: line.into(), value: Value::Table(entries) }
                    }
                    Open::List { line, items } => {
                        Node { place: line.into(), value: Value::List(items) }
                    }
                };
                self.put(node);
            }
            _ => {}
        }
        Some(())
    }

    /// Refuses what no part of a configuration may have.
    fn check(&mut self, line: usize, anchor: usize, tag: bool) {
        // The parser counts anchors from 1; 0 is none.
        if anchor != 0 {
            self.problems.add(line, "an anchor (&) cannot be used: remove it");
        }
        if tag {
            self.problems.add(line, "a tag (!) cannot be used: remove it, or quote the text");
        }
    }

    fn tear(&mut self, at: impl Into<At>, text: &str) {
        self.torn = true;
        self.problems.add(at, text);
    }

    fn begin(&mut self, line: usize, open: Open) -> Option<()> {
        if self.open.len() == MAX_DEPTH {
            self.tear(line, "nested too deep: there is no setting here, remove it");
            return None;
        }
        self.open.push(open);
        Some(())
    }

    /// Where the next key goes, if a key comes next.
    fn wanted_key(&mut self) -> Option<&mut Option<Key>> {
        match self.open.last_mut() {
            Some(Open::Table { key, .. }) if key.is_none() => Some(key),
            _ => None,
        }
    }

    /// Puts a whole value where it belongs: into the open list or table, or at the root.
    fn put(&mut self, mut node: Node) {
        if let Some(key) = self.wanted_key() {
            // The value is taken for the name of the next value, so that reading can go on.
            *key = Some(Key { name: node.kind().into(), place: node.place });
            return self.tear(node.place, "a key must be a text: write \"name: value\"");
        }
        match self.open.last_mut() {
            None => self.root = Some(node),
            Some(Open::List { items, .. }) => items.push(node),
            Some(Open::Table { entries, key, .. }) => {
                let Some(key) = key.take() else { return };
                if !matches!(node.value, Value::Text(_) | Value::Whole(_) | Value::Flag(_)) {
                    // A table's place is that of its key, as in TOML. The parser gives the line of
                    // its first value instead.
                    node.place = key.place;
                }
                if let Some((first, _)) = entries.iter().find(|(other, _)| other.name == key.name) {
                    let (name, first) = (&key.name, first.place);
                    let text = format!("{name} is on {first} already: remove one of them");
                    self.problems.add(key.place, text);
                } else {
                    entries.push((key, node));
                }
            }
        }
    }

    fn finish(self) -> Option<Node> {
        let Some(mut root) = self.root else {
            return Some(Node::empty(Origin::Line(1)));
        };
        match root.value {
            Value::Table(_) => {}
            Value::Empty => root.value = Value::Table(Vec::new()),
            _ if self.torn => {}
            _ => {
                let text = format!("the file is {}: write tables such as \"listen:\"", root.kind());
                self.problems.add(root.place, text);
                return None;
            }
        }
        (!self.torn).then_some(root)
    }
}

/// The line to look at. For a tab among the spaces the parser names the line where the value began
/// that the tab seems to go on with.
fn line_of(error: &ScanError, text: &str) -> usize {
    let first = error.marker().line();
    let is_tab = |line: &str| line.trim_start_matches(' ').starts_with('\t');
    let tab = text.lines().skip(first.saturating_sub(1)).position(is_tab);
    tab.filter(|_| error.info().contains("tab")).map_or(first, |after| first + after)
}

/// What a text without quotes stands for (YAML 1.2.2 §10.3.2).
fn scalar(text: &str) -> Value {
    let number = text.strip_prefix(['-', '+']).unwrap_or(text);
    let starts_as_number = number.trim_start_matches('.').starts_with(|c: char| c.is_ascii_digit());
    let whole = |digits: &str, radix| {
        i64::from_str_radix(digits, radix).map_or(Value::Other("too large a number"), Value::Whole)
    };
    let all = |digits: &str, radix| !digits.is_empty() && digits.chars().all(|c| c.is_digit(radix));
    match text {
        "" | "~" | "null" | "Null" | "NULL" => Value::Empty,
        "true" | "True" | "TRUE" => Value::Flag(true),
        "false" | "False" | "FALSE" => Value::Flag(false),
        _ if all(number, 10) => whole(text, 10),
        _ => match (text.strip_prefix("0x"), text.strip_prefix("0o")) {
            (Some(digits), _) if all(digits, 16) => whole(digits, 16),
            (_, Some(digits)) if all(digits, 8) => whole(digits, 8),
            _ if matches!(number, ".inf" | ".Inf" | ".INF" | ".nan" | ".NaN" | ".NAN")
                || starts_as_number && text.parse::<f64>().is_ok() =>
            {
                Value::Other("a number with a fraction")
            }
            _ => Value::Text(text.into()),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> (Option<Node>, String) {
        let mut problems = Problems::default();
        let root = Node::from_yaml(text, &mut problems);
        (root, problems.sorted().to_string())
    }

    #[test]
    fn every_value_knows_its_line() {
        let text =
            "a: 1\n\nb:\n  c: x\n  d:\n    - true\n    - 2.5\ne:\n- f: 1\n- f: 2\n  g: |\n   t\n";
        let (root, told) = read(text);
        let root = root.expect(&told);
        let b = root.get("b").unwrap();
        assert_eq!((b.place, b.get("c").unwrap().place), (Origin::Line(3), Origin::Line(4)));
        let Value::List(list) = &b.get("d").unwrap().value else { panic!("a list") };
        assert_eq!((list[0].place, list[1].place), (Origin::Line(6), Origin::Line(7)));
        assert_eq!(list[1].kind(), "a number with a fraction");
        let Value::List(list) = &root.get("e").unwrap().value else { panic!("a list") };
        assert_eq!((list[0].place, list[1].place), (Origin::Line(9), Origin::Line(10)));
        assert_eq!(list[1].get("f").unwrap().place, Origin::Line(10));
    }

    #[test]
    fn texts_without_quotes_are_what_they_look_like() {
        for (text, want) in [
            ("0", Value::Whole(0)),
            ("-12", Value::Whole(-12)),
            ("0x1f", Value::Whole(31)),
            ("0o17", Value::Whole(15)),
            ("True", Value::Flag(true)),
            ("~", Value::Empty),
            ("99999999999999999999", Value::Other("too large a number")),
            ("1e3", Value::Other("a number with a fraction")),
            ("-.5", Value::Other("a number with a fraction")),
            (".inf", Value::Other("a number with a fraction")),
            ("infinity", Value::Text("infinity".into())),
            ("30s", Value::Text("30s".into())),
            ("yes", Value::Text("yes".into())),
            ("0.0.0.0:10081", Value::Text("0.0.0.0:10081".into())),
            ("0xg", Value::Text("0xg".into())),
            ("2026-11-22", Value::Text("2026-11-22".into())),
        ] {
            assert_eq!(format!("{:?}", scalar(text)), format!("{want:?}"), "{text}");
        }
        let (root, _) = read("a: \"5\"\nb: 'true'\n");
        assert!(root.unwrap().entries().iter().all(|(_, node)| node.kind() == "a text"));
    }

    #[test]
    fn what_toml_has_not_is_refused_by_its_line() {
        for (text, want, whole) in [
            ("a: 1\na: 2\n", "2: a is on line 1 already: remove one of them\n", true),
            ("a: &x 1\n", "1: an anchor (&) cannot be used: remove it\n", true),
            ("a:\n  b: !!str 5\n", "2: a tag (!) cannot be used", true),
            ("a: &x 1\nb: *x\n", "2: an alias (*) cannot be used", false),
            ("? [a]\n: 1\n", "1: a key must be a text", false),
            ("a: 1\n---\nb: 2\n", "2: a second document begins here", false),
            ("- a\n", "1: the file is a list: write tables", false),
            ("a: [1\nb: 2\n", "2: not YAML: ", false),
            ("a: 1\n\tb: 2\n", "2: not YAML: ", false),
            ("a: *none\n", "1: not YAML: ", false),
            (&format!("a: {}", "[".repeat(20)), "1: nested too deep", false),
            (&format!("a: {}", "[".repeat(100_000)), "1: not YAML: ", false),
        ] {
            let (root, told) = read(text);
            let shown = &text[..text.len().min(40)];
            assert!(told.contains(want), "{shown}: {told}");
            assert_eq!(root.is_some(), whole, "{shown}: {told}");
        }
    }

    #[test]
    fn nothing_is_an_empty_table() {
        for text in ["", "# only this\n", "---\n", "\u{feff}{}\n", "~\n"] {
            let (root, told) = read(text);
            assert!(root.unwrap().entries().is_empty() && told.is_empty(), "{text}: {told}");
        }
    }
}
