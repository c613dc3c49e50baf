//! The repository's files, and just enough of Rust's lexing to read what they name.

use std::fs;
use std::path::Path;

/// A file of the repository.
#[derive(Debug)]
pub(crate) struct Source {
    /// From the repository's root, with slashes.
    pub(crate) path: String,
    pub(crate) text: String,
}

/// Something that a line of code names: `std::net::SocketAddr`, or a single word.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Name {
    pub(crate) line: usize,
    pub(crate) path: String,
}

impl Source {
    /// A source that is in no file.
    pub(crate) fn planted(path: &str, text: &str) -> Self {
        Self { path: path.into(), text: text.into() }
    }

    /// The lines with their numbers.
    pub(crate) fn lines(&self) -> impl Iterator<Item = (usize, &str)> {
        self.text.lines().enumerate().map(|(at, line)| (at + 1, line))
    }

    /// How many lines are outside test modules.
    pub(crate) fn lines_before_tests(&self) -> usize {
        without_test_items(&self.text).lines().filter(|line| *line != SKIPPED).count()
    }

    /// What the code outside comments, literals and test modules names; `use` trees are taken
    /// apart, and `core` and `alloc` count as `std`.
    pub(crate) fn names(&self) -> Vec<Name> {
        let code = blank(&without_test_items(&self.text));
        let mut names = Vec::new();
        let mut tree = Tree::default();
        for (at, line) in code.lines().enumerate() {
            for word in words(line) {
                tree.take(word, at + 1, &mut names);
            }
        }
        tree.end(&mut names);
        names
    }
}

/// Every file below `folder` whose name ends in one of `ends`, build products left out.
pub(crate) fn files(folder: &str, ends: &[&str]) -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(root.join(&folder)).expect("a folder of the repository") {
            let entry = entry.expect("an entry of the folder");
            let name = entry.file_name().into_string().expect("a name in UTF-8");
            let path = if folder.is_empty() { name.clone() } else { format!("{folder}/{name}") };
            let kind = entry.file_type().expect("a kind of file");
            let product = name.starts_with('.') || name == "target" || name == "__pycache__";
            if kind.is_dir() && !product {
                folders.push(path);
            } else if kind.is_file() && ends.iter().any(|end| name.ends_with(end)) {
                let text = fs::read_to_string(entry.path()).expect("a text file");
                found.push(Source { path, text });
            }
        }
    }
    assert!(!found.is_empty(), "no {ends:?} below {folder:?}: the rule would hold for nothing");
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}

/// Whether a file or folder of the repository has this path.
pub(crate) fn exists(path: &str) -> bool {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path).exists()
}

/// Whether `text` has `word` with nothing of a word on either side.
pub(crate) fn has_word(text: &str, word: &str) -> bool {
    text.match_indices(word).any(|(at, _)| {
        let before = text[..at].chars().next_back();
        let after = text[at + word.len()..].chars().next();
        !before.is_some_and(is_word) && !after.is_some_and(is_word)
    })
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Stands for a line of a test item, so that the other lines keep their numbers.
const SKIPPED: &str = "\u{0}";

/// The text without what stands behind `#[cfg(test)]` at the margin. The formatter puts the end
/// of such an item at the margin too.
fn without_test_items(text: &str) -> String {
    let mut kept = String::with_capacity(text.len());
    let mut skipping = false;
    for line in text.lines() {
        let begins = line == "#[cfg(test)]";
        let ends = line == "}" || (line.ends_with(';') && !line.starts_with(' '));
        kept.push_str(if skipping || begins { SKIPPED } else { line });
        kept.push('\n');
        skipping = begins || (skipping && !ends);
    }
    kept
}

/// The text with comments and the contents of literals replaced by spaces.
fn blank(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    while at < chars.len() {
        let len = opaque(&chars[at..], at.checked_sub(1).map(|before| chars[before]));
        for c in &chars[at..at + len] {
            out.push(if *c == '\n' { '\n' } else { ' ' });
        }
        at += len;
        if len == 0 {
            out.push(chars[at]);
            at += 1;
        }
    }
    out
}

/// How long the comment or literal is that `rest` begins with; 0 if it begins with code.
fn opaque(rest: &[char], before: Option<char>) -> usize {
    let until = |end: &str, from: usize| {
        let end: Vec<char> = end.chars().collect();
        let found =
            rest.get(from..).and_then(|tail| tail.windows(end.len()).position(|w| w == end));
        found.map_or(rest.len(), |at| from + at + end.len())
    };
    match rest {
        ['/', '/', ..] => until("\n", 0) - 1,
        ['/', '*', ..] => until("*/", 2),
        ['r', '"' | '#', ..] if !before.is_some_and(|c| is_word(c) && c != 'b') => {
            let hashes = rest[1..].iter().take_while(|c| **c == '#').count();
            if rest.get(1 + hashes) != Some(&'"') {
                return 0;
            }
            until(&format!("\"{}", "#".repeat(hashes)), hashes + 2)
        }
        ['"', ..] => escaped(rest, '"'),
        ['\'', '\\', ..] => escaped(rest, '\''),
        ['\'', _, '\'', ..] => 3,
        _ => 0,
    }
}

/// The length of a literal with escapes that ends in `quote`.
fn escaped(rest: &[char], quote: char) -> usize {
    let mut at = 1;
    while at < rest.len() && rest[at] != quote {
        at += if rest[at] == '\\' { 2 } else { 1 };
    }
    (at + 1).min(rest.len())
}

/// The words of a line and the marks that matter to paths: `::`, `{`, `}`, `,`, `;`, `*`.
fn words(line: &str) -> Vec<&str> {
    let mut words = Vec::new();
    let mut rest = line.trim_start();
    while let Some(first) = rest.chars().next() {
        let len = if is_word(first) {
            rest.find(|c| !is_word(c)).unwrap_or(rest.len())
        } else if rest.starts_with("::") {
            2
        } else {
            first.len_utf8()
        };
        words.push(&rest[..len]);
        rest = rest[len..].trim_start();
    }
    words
}

/// Puts words together to paths; knows the prefixes of the `use` tree it is in.
#[derive(Default)]
struct Tree {
    in_use: bool,
    prefixes: Vec<String>,
    path: String,
    joined: bool,
    line: usize,
}

impl Tree {
    fn take(&mut self, word: &str, line: usize, names: &mut Vec<Name>) {
        match word {
            "::" => self.joined = true,
            "{" if self.in_use => {
                self.prefixes.push(std::mem::take(&mut self.path));
                self.joined = false;
            }
            word if word.starts_with(is_word) || (word == "*" && self.in_use) => {
                self.word(word, line, names);
            }
            mark => {
                self.end(names);
                if mark == "}" {
                    self.prefixes.pop();
                }
                self.in_use &= mark != ";";
            }
        }
    }

    fn word(&mut self, word: &str, line: usize, names: &mut Vec<Name>) {
        if self.joined && !self.path.is_empty() {
            self.path.push_str("::");
            self.path.push_str(word);
        } else {
            self.end(names);
            self.in_use |= word == "use";
            self.path = word.into();
        }
        self.joined = false;
        self.line = line;
    }

    fn end(&mut self, names: &mut Vec<Name>) {
        self.joined = false;
        let last = std::mem::take(&mut self.path);
        if last.is_empty() {
            return;
        }
        let mut parts: Vec<&str> =
            self.prefixes.iter().map(String::as_str).filter(|part| !part.is_empty()).collect();
        if last != "self" || parts.is_empty() {
            parts.push(&last);
        }
        let mut path = parts.join("::");
        for alias in ["core::", "alloc::"] {
            if let Some(rest) = path.strip_prefix(alias) {
                path = format!("std::{rest}");
            }
        }
        names.push(Name { line: self.line, path });
    }
}

#[test]
fn names_are_read_as_rust_reads_them() {
    let text = r##"//! use std::thread;
use std::{net::{SocketAddr, TcpStream as S}, thread::{self, sleep}};
/* Mutex */ let a = "Mutex \" Rc"; let b = '"'; // Mutex
let c = r#"Mutex" Rc"#; fn d<'a>(x: &'a core::cell::RefCell<u8>) {}
#[cfg(test)]
mod tests {
    use std::sync::Mutex;
}
fn e() { crate::boot::run() }
"##;
    let names = Source::planted("a.rs", text).names();
    let has = |line: usize, path: &str| names.iter().any(|n| n.line == line && n.path == path);
    for path in ["std::net::SocketAddr", "std::net::TcpStream", "std::thread", "std::thread::sleep"]
    {
        assert!(has(2, path), "{path}: {names:?}");
    }
    assert!(has(4, "std::cell::RefCell") && has(9, "crate::boot::run"), "{names:?}");
    let hidden = |name: &Name| name.path.contains("Mutex") || name.path == "Rc" || name.line == 1;
    assert!(!names.iter().any(hidden), "{names:?}");
    assert_eq!(Source::planted("a.rs", text).lines_before_tests(), 5);
}
