//! Everything that is wrong with a configuration, told at once.

use std::fmt;

use super::syntax::Syntax;

/// A list of problems, each with its line where it has one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Problems {
    file: String,
    syntax: Syntax,
    list: Vec<(Option<usize>, String)>,
    /// How many of them may pass by themselves.
    passing: usize,
}

impl Problems {
    /// No problem yet, in this file.
    pub(super) fn new(file: &str) -> Self {
        Self { file: file.into(), syntax: Syntax::of(file).unwrap_or_default(), ..Self::default() }
    }

    /// How the file is written, and so its fixes.
    pub(super) fn syntax(&self) -> Syntax {
        self.syntax
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// One more.
    pub(super) fn add(&mut self, line: impl Into<Option<usize>>, text: impl Into<String>) {
        self.list.push((line.into(), text.into()));
    }

    /// One more, that may pass by itself: a file that somebody is writing.
    pub(super) fn add_passing(&mut self, line: impl Into<Option<usize>>, text: impl Into<String>) {
        self.passing += 1;
        self.add(line, text);
    }

    /// Whether all of them may pass by themselves.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        self.passing == self.list.len()
    }

    /// Orders them by line.
    pub(super) fn sorted(mut self) -> Self {
        self.list.sort_by_key(|(line, _)| *line);
        self
    }
}

impl fmt::Display for Problems {
    /// One line each: `FILE:LINE: what, and the fix`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (line, text) in &self.list {
            if !self.file.is_empty() {
                write!(f, "{}:", self.file)?;
            }
            match line {
                Some(line) => writeln!(f, "{line}: {text}")?,
                None => writeln!(f, " {text}")?,
            }
        }
        Ok(())
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
        problems.add(7, "later");
        problems.add(None, "somewhere");
        problems.add(2, "sooner");
        assert_eq!(
            problems.sorted().to_string(),
            "x.toml: somewhere\nx.toml:2: sooner\nx.toml:7: later\n"
        );
    }
}
