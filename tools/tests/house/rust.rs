//! As much of Rust's form as the formatter guarantees: which types a file has and which functions.
//! It reads text and not meaning, so it can miss a call, or see one that is none.

use std::collections::BTreeMap;

use crate::source::Source;

/// A function with a body.
#[derive(Clone, Debug, Default)]
pub(crate) struct Function {
    pub(crate) name: String,
    /// The type whose it is.
    pub(crate) owner: Option<String>,
    /// A trait has it so: it is as visible as the trait and the type.
    pub(crate) of_trait: bool,
    /// `pub(super)` and the like; empty if it is private.
    pub(crate) seen_by: String,
    pub(crate) line: usize,
    pub(crate) lines: usize,
    /// All before the body.
    pub(crate) head: String,
    pub(crate) body: String,
}

/// A struct or an enum.
#[derive(Clone, Debug, Default)]
pub(crate) struct Type {
    pub(crate) seen_by: String,
    /// Fields by their names, if it is a struct with names: who sees them, and of what type.
    pub(crate) fields: BTreeMap<String, (String, String)>,
}

/// What is in a file, its tests left out.
#[derive(Debug, Default)]
pub(crate) struct Items {
    pub(crate) functions: Vec<Function>,
    pub(crate) types: BTreeMap<String, Type>,
    /// Types that it has methods of.
    pub(crate) impls: Vec<String>,
}

/// The text before the tests.
pub(crate) fn own_text(source: &Source) -> &str {
    let ends = ["\n#[cfg(test", "\n#[cfg(all(test"];
    let end = ends.iter().filter_map(|end| source.text.find(end)).min();
    &source.text[..end.map_or(source.text.len(), |end| end + 1)]
}

/// The same without comments.
pub(crate) fn code(source: &Source) -> String {
    uncommented(own_text(source))
}

fn uncommented(text: &str) -> String {
    let lines = text.lines().map(|line| line.split("//").next().unwrap_or_default());
    lines.flat_map(|line| [line, "\n"]).collect()
}

/// Takes a visibility off a line.
fn visibility(line: &str) -> (&str, &str) {
    let Some(rest) = line.strip_prefix("pub") else { return ("", line) };
    let len = match rest.strip_prefix('(').and_then(|rest| rest.find(')')) {
        Some(end) => "pub()".len() + end,
        None => "pub".len(),
    };
    match line[len..].strip_prefix(' ') {
        Some(rest) => (&line[..len], rest),
        None => ("", line),
    }
}

/// The word that a text begins with.
pub(crate) fn word(text: &str) -> &str {
    let end = text.find(|c: char| !(c.is_alphanumeric() || c == '_'));
    &text[..end.unwrap_or(text.len())]
}

/// All its words.
pub(crate) fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !(c.is_alphanumeric() || c == '_')).filter(|word| !word.is_empty())
}

/// The type that an `impl` at the margin is for, and whether a trait is behind it.
fn implemented(line: &str) -> Option<(String, bool)> {
    let mut rest = line.strip_prefix("impl")?;
    if rest.starts_with('<') {
        let mut depth = 0;
        let end = rest.char_indices().find(|(_, c)| {
            depth += i32::from(*c == '<') - i32::from(*c == '>');
            depth == 0
        })?;
        rest = &rest[end.0 + 1..];
    }
    let rest = rest.strip_prefix(' ')?;
    let (of_trait, rest) = rest.split_once(" for ").map_or((false, rest), |(_, of)| (true, of));
    let path = rest.find(|c: char| !(c.is_alphanumeric() || "_:".contains(c)));
    let name = rest[..path.unwrap_or(rest.len())].rsplit("::").next()?;
    Some((name.to_owned(), of_trait))
}

/// The name of the function that begins in a line.
fn begun(line: &str) -> Option<(String, &str)> {
    let (seen_by, mut rest) = visibility(line.trim_start());
    while let Some(more) = ["const ", "async ", "unsafe "].iter().find_map(|w| rest.strip_prefix(w))
    {
        rest = more;
    }
    let name = word(rest.strip_prefix("fn ")?);
    (!name.is_empty() && !line.trim_end().ends_with(';')).then(|| (name.to_owned(), seen_by))
}

/// In which line a function ends that begins in this one.
fn end_of(lines: &[&str], at: usize) -> usize {
    let count = |c| lines[at].matches(c).count();
    if count('{') > 0 && count('{') == count('}') {
        return at;
    }
    let margin = lines[at].len() - lines[at].trim_start().len();
    let end = format!("{}}}", &lines[at][..margin]);
    (at..lines.len()).find(|line| lines[*line] == end).unwrap_or(lines.len() - 1)
}

impl Items {
    pub(crate) fn of(source: &Source) -> Self {
        let lines: Vec<&str> = own_text(source).lines().collect();
        let mut items = Self::default();
        let mut owner: Option<(String, bool)> = None;
        let mut at = 0;
        while at < lines.len() {
            let line = lines[at];
            if let Some(of) = implemented(line) {
                items.impls.push(of.0.clone());
                owner = Some(of);
            } else if line == "}" {
                owner = None;
            }
            items.take_type(&lines[at..]);
            if let Some((name, seen_by)) = begun(line) {
                let end = end_of(&lines, at);
                let text = lines[at..=end].join("\n");
                items.functions.push(Function {
                    name,
                    owner: owner.as_ref().map(|(name, _)| name.clone()),
                    of_trait: owner.as_ref().is_some_and(|(_, of_trait)| *of_trait),
                    seen_by: seen_by.to_owned(),
                    line: at + 1,
                    lines: end - at + 1,
                    head: text.split('{').next().unwrap_or_default().to_owned(),
                    body: uncommented(&lines[(at + 1).min(end)..=end].join("\n")),
                });
                at = end;
            }
            at += 1;
        }
        items
    }

    /// A type at the margin, if the first line begins one.
    fn take_type(&mut self, lines: &[&str]) {
        let (seen_by, rest) = visibility(lines[0]);
        let is_struct = rest.starts_with("struct ");
        let Some(rest) = rest.strip_prefix("struct ").or_else(|| rest.strip_prefix("enum ")) else {
            return;
        };
        let mut of = Type { seen_by: seen_by.to_owned(), fields: BTreeMap::new() };
        if is_struct && lines[0].ends_with('{') {
            for line in lines.iter().skip(1).take_while(|line| **line != "}") {
                let inner = line.strip_prefix("    ").unwrap_or_default();
                let (seen_by, field) = visibility(inner);
                let name = word(field);
                if let Some(of_type) = field[name.len()..].strip_prefix(':')
                    && !name.is_empty()
                {
                    of.fields.insert(name.to_owned(), (seen_by.to_owned(), of_type.to_owned()));
                }
            }
        }
        self.types.insert(word(rest).to_owned(), of);
    }
}

/// The methods that a body calls: those of `self`, and those of anything else.
pub(crate) fn calls(body: &str) -> (Vec<&str>, Vec<&str>) {
    let (mut own, mut others) = (Vec::new(), Vec::new());
    for (at, _) in body.match_indices('.') {
        let name = word(&body[at + 1..]);
        if name.is_empty() || !body[at + 1 + name.len()..].starts_with('(') {
            continue;
        }
        let before = body[..at].trim_end();
        let is_self = before.strip_suffix("self").is_some_and(|rest| {
            !rest.ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == '.')
        });
        if is_self { own.push(name) } else { others.push(name) }
    }
    (own, others)
}

#[test]
fn types_and_functions_are_read_as_the_formatter_writes_them() {
    let text = "\
pub(crate) struct Shelf<'a> {
    /// It has: a comment.
    #[cfg(unix)]
    pub(super) one: Vec<u8>,
    two: &'a str,
}

struct Bare(u8);

impl<T: Fn(u8) -> u8> fmt::Debug for Shelf<'_> {
    fn fmt(&self) -> u8 {
        // self.not(1)
        self.one.len(self.two())
            .last(self
                .three())
    }
}

impl x::Shelf<'_> {
    pub(super) const fn named(
        &mut self,
    ) -> Option<u8> {
        if a {
            b()
        }
    }
    fn short(&self) -> u8 { 3 }
}

pub async fn free() -> u8 {
    0
}
#[cfg(test)]
mod tests {
    fn hidden() {
    }
}
";
    let items = Items::of(&Source::planted("x.rs", text));
    let shelf = &items.types["Shelf"];
    assert_eq!(shelf.seen_by, "pub(crate)");
    let field = |seen_by: &str, of: &str| (seen_by.to_owned(), of.to_owned());
    assert_eq!(shelf.fields["one"], field("pub(super)", " Vec<u8>,"));
    assert_eq!((shelf.fields["two"].0.as_str(), shelf.fields.len()), ("", 2));
    assert!(items.types["Bare"].fields.is_empty());
    assert_eq!(items.impls, ["Shelf", "Shelf"]);
    let seen: Vec<_> = items
        .functions
        .iter()
        .map(|f| (f.name.as_str(), f.owner.as_deref(), f.of_trait, f.seen_by.as_str(), f.lines))
        .collect();
    let of = Some("Shelf");
    let told = [
        ("fmt", of, true, "", 6),
        ("named", of, false, "pub(super)", 7),
        ("short", of, false, "", 1),
        ("free", None, false, "pub", 3),
    ];
    assert_eq!(seen, told);
    assert_eq!(calls(&items.functions[0].body), (vec!["two", "three"], vec!["len", "last"]));
    let head = words(&items.functions[1].head).collect::<Vec<_>>().join(" ");
    assert_eq!(head, "pub super const fn named mut self Option u8");
}
