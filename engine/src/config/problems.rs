//! All that is wrong with a configuration, reported at once.

use std::fmt;

use super::syntax::Syntax;

/// What to do about a file that is missing, or that the gateway may not read.
pub(super) const NAME_A_FILE: &str = "name a file that the gateway can read";

/// Where a value was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Origin {
    /// On this line of the file, counted from 1.
    Line(usize),
    /// In this variable of the environment.
    Variable(&'static str),
    /// In no place: it is the default of a mode.
    Default,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Line(line) => write!(f, "line {line}"),
            Self::Variable(name) => f.write_str(name),
            Self::Default => f.write_str("the defaults"),
        }
    }
}

impl From<usize> for Origin {
    fn from(line: usize) -> Self {
        Self::Line(line)
    }
}

/// Where a problem is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum At {
    /// In no place: something is missing.
    Nowhere,
    /// Where a value was written.
    Origin(Origin),
    /// At a variable of the environment that holds no setting.
    Unknown(String),
}

impl From<Option<Origin>> for At {
    fn from(place: Option<Origin>) -> Self {
        match place {
            None | Some(Origin::Default) => Self::Nowhere,
            Some(place) => Self::Origin(place),
        }
    }
}

impl From<Origin> for At {
    fn from(place: Origin) -> Self {
        Some(place).into()
    }
}

impl From<usize> for At {
    fn from(line: usize) -> Self {
        Origin::Line(line).into()
    }
}

impl From<Option<usize>> for At {
    fn from(line: Option<usize>) -> Self {
        line.map(Origin::Line).into()
    }
}

/// A list of problems, each with its place where it has one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Problems {
    file: String,
    syntax: Syntax,
    list: Vec<(At, String)>,
    /// How many of the problems may go away by themselves.
    passing: usize,
}

impl Problems {
    /// An empty list, for this file.
    pub(super) fn new(file: &str) -> Self {
        Self { file: file.into(), syntax: Syntax::of(file).unwrap_or_default(), ..Self::default() }
    }

    /// An empty list, for a configuration that is only in the environment.
    pub(super) fn of_environment() -> Self {
        Self { file: "environment".into(), syntax: Syntax::Environment, ..Self::default() }
    }

    /// The file's name; `environment` where there is none.
    #[must_use]
    pub fn file(&self) -> &str {
        &self.file
    }

    /// The syntax of the file; fixes are shown in the same.
    pub(super) fn syntax(&self) -> Syntax {
        self.syntax
    }

    /// Whether there is no problem.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// How many problems there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Adds a problem: what is wrong and why, and what to do.
    pub(super) fn add(&mut self, at: impl Into<At>, text: impl Into<String>) {
        let text = text.into();
        debug_assert!(says_what_to_do(&text), "it leaves its reader alone: {text}");
        self.list.push((at.into(), text));
    }

    /// Adds a problem that may go away by itself, such as a file that is still being written.
    pub(super) fn add_passing(&mut self, at: impl Into<At>, text: impl Into<String>) {
        self.passing += 1;
        self.add(at, text);
    }

    /// Whether all problems may go away by themselves.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        self.passing == self.list.len()
    }

    /// The same problems, ordered by their places.
    pub(super) fn sorted(mut self) -> Self {
        self.list.sort_by(|(one, _), (other, _)| one.cmp(other));
        self
    }
}

impl fmt::Display for Problems {
    /// One line each: `FILE:LINE: what and why, and the fix`, or `VARIABLE: ` and the same.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, text) in &self.list {
            let file = &self.file;
            match at {
                At::Origin(Origin::Variable(name)) => writeln!(f, "{name}: {text}")?,
                At::Unknown(name) => writeln!(f, "{name}: {text}")?,
                At::Origin(Origin::Line(line)) if file.is_empty() => writeln!(f, "{line}: {text}")?,
                At::Origin(Origin::Line(line)) => writeln!(f, "{file}:{line}: {text}")?,
                _ => writeln!(f, "{file}: {text}")?,
            }
        }
        Ok(())
    }
}

/// Whether a problem names a way out. Every test that provokes a problem checks this.
fn says_what_to_do(text: &str) -> bool {
    const WAYS: [&str; 16] = [
        "write",
        "remove",
        "change",
        "give",
        "set ",
        "name ",
        "must ",
        "did you mean",
        "correct",
        "put ",
        "add ",
        "leave ",
        "make ",
        "use ",
        "lower ",
        "raise ",
    ];
    WAYS.iter().any(|way| text.contains(way))
}

/// The text of the problem with a key that is no setting. It suggests the candidate that is most
/// like the key's last name.
pub(super) fn unknown<'a>(
    key: &str,
    name: &str,
    candidates: impl IntoIterator<Item = &'a str>,
) -> String {
    match nearest(name, candidates) {
        Some(near) => format!("{key} is not a setting; did you mean `{near}`?"),
        None => format!("{key} is not a setting: remove it"),
    }
}

/// The candidate most like `name`, if one is like it at all.
pub(super) fn nearest<'a>(
    name: &str,
    candidates: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    let scored = candidates.into_iter().map(|candidate| (distance(name, candidate), candidate));
    let (distance, candidate) = scored.min_by_key(|(distance, _)| *distance)?;
    (distance <= 1 + name.len() / 4).then_some(candidate)
}

/// Levenshtein's distance.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = i;
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_is_suggested_and_a_far_one_is_not() {
        let names = ["wait", "idle", "scope"];
        assert_eq!(nearest("wiat", names), Some("wait"));
        assert_eq!(nearest("park", names), None);
        assert_eq!(nearest("wai", names), Some("wait"));
        assert_eq!(nearest("scop", names), Some("scope"));
        assert_eq!(nearest("transport", names), None);
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("", "abc"), 3);
    }

    #[test]
    fn problems_are_told_by_file_and_line() {
        let mut problems = Problems::new("x.toml");
        problems.add(7, "later: remove it");
        problems.add(Origin::Variable("RINGWAY__X"), "elsewhere: remove it");
        problems.add(None::<Origin>, "somewhere: remove it");
        problems.add(2, "sooner: remove it");
        assert_eq!(
            problems.sorted().to_string(),
            "x.toml: somewhere: remove it\nx.toml:2: sooner: remove it\nx.toml:7: later: remove it\n\
             RINGWAY__X: elsewhere: remove it\n"
        );
    }
}
