//! What the components of the shard show of themselves. They show nothing to each other, and only
//! values to the loop around them.

use std::collections::{BTreeMap, BTreeSet};

use super::rust::{Function, Items, words};
use super::tree::Tree;
use crate::source::Source;

/// Whether a file is in the folder of a component.
fn is_in(source: &str, shard: &str, component: &str) -> bool {
    let rest = source.strip_prefix(shard).and_then(|rest| rest.strip_prefix('/'));
    rest.and_then(|rest| rest.strip_prefix(component)).is_some_and(|rest| rest.starts_with('/'))
}

/// Where a component names another one or the loop, and where a plain module names a component.
/// Each of these would let one module reach into the tables of another.
pub(crate) fn reach(tree: &Tree<'_>, shard: &str, components: &[&str]) -> Vec<String> {
    let of = |path: &str| components.iter().find(|component| is_in(path, shard, component));
    // The files of the loop itself.
    let of_loop = |path: &str| {
        ["mod", "handover", "others", "snapshot"]
            .iter()
            .any(|name| path == format!("{shard}/{name}.rs"))
    };
    let mut told = Vec::new();
    for arrow in tree.arrows() {
        let within = arrow.from.starts_with(&format!("{shard}/")) && !of_loop(&arrow.from);
        let (from, to) = (of(&arrow.from), of(&arrow.to));
        if within && ((to.is_some() && from != to) || (from.is_some() && of_loop(&arrow.to))) {
            told.push(format!("{}:{} names {}", arrow.from, arrow.line, arrow.to));
        }
    }
    told
}

/// One component's files.
struct Component<'a> {
    files: Vec<(&'a Source, Items)>,
    front: String,
}

impl<'a> Component<'a> {
    fn new(sources: &'a [Source], shard: &str, name: &str) -> Self {
        let own = sources.iter().filter(|source| is_in(&source.path, shard, name));
        let own = own.filter(|source| !source.path.ends_with("/tests.rs"));
        Self {
            files: own.map(|source| (source, Items::of(source))).collect(),
            front: format!("{shard}/{name}/mod.rs"),
        }
    }

    /// Whether an item with this visibility can be seen outside the component.
    fn leaves(&self, source: &Source, seen_by: &str) -> bool {
        match seen_by {
            "" | "pub(self)" => false,
            "pub(super)" => source.path == self.front,
            _ => true,
        }
    }

    /// The types whose values or names get out of the component. These are the types that its front
    /// has or exports, and the types that one of them shows.
    fn shown(&self) -> BTreeSet<&str> {
        let mut all: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for (source, items) in &self.files {
            for (name, of) in &items.types {
                let fields = of.fields.values().filter(|(by, _)| self.leaves(source, by));
                all.entry(name).or_default().extend(fields.flat_map(|(_, of)| words(of)));
            }
            for function in items.functions.iter().filter(|f| self.is_open(source, f)) {
                if let Some(owner) = &function.owner {
                    all.entry(owner).or_default().extend(words(&function.head));
                }
            }
        }
        let mut shown = BTreeSet::new();
        let mut left: Vec<&str> = Vec::new();
        for (source, items) in self.files.iter().filter(|(source, _)| source.path == self.front) {
            let types = items.types.iter().filter(|(_, of)| self.leaves(source, &of.seen_by));
            left.extend(types.map(|(name, _)| name.as_str()));
            // A `pub(super) use` may have several lines.
            let exports = source.text.split("\npub").skip(1);
            let exports = exports.filter_map(|text| text.split_once("use ")?.1.split_once(';'));
            left.extend(exports.flat_map(|(text, _)| words(text)));
            let free = items.functions.iter().filter(|f| f.owner.is_none());
            left.extend(free.filter(|f| self.is_open(source, f)).flat_map(|f| words(&f.head)));
        }
        while let Some(name) = left.pop() {
            if let Some((name, shows)) = all.get_key_value(name)
                && shown.insert(*name)
            {
                left.extend(shows);
            }
        }
        shown
    }

    fn is_open(&self, source: &Source, function: &Function) -> bool {
        function.of_trait || self.leaves(source, &function.seen_by)
    }
}

/// Why a function lends what its component has, if it does. `head` is the function's signature.
fn lends(head: &str) -> Option<&'static str> {
    let takes_code = |head: &str| {
        let mut all = words(head).filter(|word| ["Fn", "FnMut", "FnOnce", "fn"].contains(word));
        // The function's own `fn` is the first one.
        all.nth(1).is_some()
    };
    if takes_code(head) {
        return Some("takes a closure");
    }
    let returned = &head[returns_at(head)?..];
    let returned = returned.split("where").next().unwrap_or_default();
    let returned = returned.replace("&'static ", "").replace("'static", "");
    if returned.contains(['&', '\'']) {
        return Some("returns a reference");
    }
    let iterates = words(&returned).any(|word| word.ends_with("Iterator"));
    iterates.then_some("returns an iterator")
}

/// Where in a function's signature its result begins: behind the arrow that is in no brackets.
fn returns_at(head: &str) -> Option<usize> {
    let mut depth = 0;
    head.char_indices().find_map(|(at, c)| {
        depth += i32::from(matches!(c, '(' | '[')) - i32::from(matches!(c, ')' | ']'));
        (depth == 0 && head[at..].starts_with("->")).then_some(at + 2)
    })
}

/// The functions by which a component lends what it has.
pub(crate) fn lent(sources: &[Source], shard: &str, name: &str) -> Vec<String> {
    let component = Component::new(sources, shard, name);
    let shown = component.shown();
    let mut told = Vec::new();
    for (source, items) in &component.files {
        for function in items.functions.iter().filter(|f| component.is_open(source, f)) {
            let out = match &function.owner {
                Some(owner) => shown.contains(owner.as_str()),
                None => source.path == component.front || shown.contains(function.name.as_str()),
            };
            if let Some(how) = lends(&function.head).filter(|_| out) {
                let (path, line, name) = (&source.path, function.line, &function.name);
                told.push(format!("{path}:{line}: {name} {how}"));
            }
        }
    }
    told
}

/// How many per cent of the shard's lines are this component's. Tests are not counted.
pub(crate) fn share(sources: &[Source], shard: &str, name: &str) -> usize {
    let own = sources.iter().filter(|source| !source.path.ends_with("/tests.rs"));
    let lines = |of: &dyn Fn(&Source) -> bool| -> usize {
        own.clone().filter(|source| of(source)).map(Source::lines_before_tests).sum()
    };
    let all = lines(&|source| source.path.starts_with(&format!("{shard}/")));
    100 * lines(&|source| is_in(&source.path, shard, name)) / all.max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARTS: [&str; 2] = ["left", "right"];

    fn planted(texts: &[(&str, &str)]) -> Vec<Source> {
        texts.iter().map(|(path, text)| Source::planted(&format!("x/s/{path}"), text)).collect()
    }

    #[test]
    fn a_component_that_reaches_for_another_one_is_seen() {
        let reached = |left: &str, plain: &str| {
            let sources = planted(&[
                ("mod.rs", "mod left;\nuse self::left::Left;\n"),
                ("left/mod.rs", "mod inner;\nuse self::inner::Inner;\n"),
                ("left/inner.rs", left),
                ("right/mod.rs", "use super::plain::Plain;\n"),
                ("plain.rs", plain),
            ]);
            reach(&Tree::new("x", &sources), "x/s", &PARTS)
        };
        let good = "use super::super::plain::Plain;\nuse super::Front;\npub(super) fn a() {}\n";
        assert_eq!(reached(good, "use crate::other::X;\n"), [""; 0]);
        let to_right = ["x/s/left/inner.rs:2 names x/s/right/mod.rs"];
        assert_eq!(reached("\nuse crate::s::{right::Right, plain};\n", ""), to_right);
        assert_eq!(reached("\nfn f() { super::super::right::go() }\n", ""), to_right);
        let to_loop = ["x/s/left/inner.rs:1 names x/s/mod.rs"];
        assert_eq!(reached("use crate::s::Shard;\n", ""), to_loop);
        let from_plain = ["x/s/plain.rs:1 names x/s/left/mod.rs"];
        assert_eq!(reached("", "use super::left::Left;\n"), from_plain);
        // The same by way of the loop, which imports the type for itself.
        assert_eq!(reached("", "use super::Left;\n"), from_plain);
    }

    fn told(front: &str, inner: &str) -> Vec<String> {
        let sources = planted(&[("left/mod.rs", front), ("left/inner.rs", inner)]);
        let told = lent(&sources, "x/s", "left");
        told.into_iter().map(|told| told.trim_start_matches("x/s/left/").to_owned()).collect()
    }

    fn front(function: &str) -> String {
        format!(
            "pub(crate) struct Front {{\n    table: Table,\n}}\nimpl Front {{\n    {function}\n}}\n"
        )
    }

    #[test]
    fn a_front_that_lends_is_seen() {
        for (how, function) in [
            ("returns a reference", "pub(super) fn get(&self) -> &u8 {\n    }"),
            ("returns a reference", "pub(crate) fn get(&self) -> Option<&'_ u8> {\n    }"),
            ("returns a reference", "pub fn get(&mut self, key: Key) -> (u8, &mut u8) {\n    }"),
            (
                "returns a reference",
                "pub(super) fn get(\n        &self,\n    ) -> Ref<'_, u8> {\n    }",
            ),
            ("returns an iterator", "pub(super) fn get(self) -> impl Iterator<Item = u8> {\n    }"),
            (
                "returns an iterator",
                "pub(super) fn get(self) -> Box<dyn DoubleEndedIterator> {\n    }",
            ),
            ("takes a closure", "pub(super) fn get(&self, f: impl FnOnce(&u8) -> u8) {\n    }"),
            ("takes a closure", "pub(super) fn get(&self, f: &dyn Fn(u8)) {\n    }"),
            ("takes a closure", "pub(super) fn get<F: FnMut()>(&self, f: F) {\n    }"),
            ("takes a closure", "pub(super) fn get(&self, f: fn(u8) -> u8) {\n    }"),
            (
                "takes a closure",
                "pub(super) fn get<F>(&self, f: F)\n    where\n        F: Fn(),\n    {\n    }",
            ),
        ] {
            assert_eq!(told(&front(function), ""), [format!("mod.rs:5: get {how}")], "{function}");
        }
    }

    #[test]
    fn a_front_that_gives_values_is_not() {
        for function in [
            "fn get(&self) -> &u8 {\n    }",
            "pub(super) fn get(&self, key: &Key, out: &mut Vec<u8>) -> Option<u8> {\n    }",
            "pub(super) fn get(&self) -> &'static str {\n    }",
            "pub(super) fn get(&self, turn: &mut Turn<'_>) -> Vec<u8> {\n    }",
        ] {
            assert_eq!(told(&front(function), ""), [""; 0], "{function}");
        }
    }

    #[test]
    fn what_is_within_may_lend_until_it_gets_out() {
        let lending = |by: &str| {
            format!(
                "pub(crate) struct Table;\nimpl Table {{\n    {by} fn all(&self) -> &u8 {{\n    }}\n}}\n"
            )
        };
        let (own, open) = (lending("pub(super)"), lending("pub(crate)"));
        let seen = ["inner.rs:3: all returns a reference"];
        assert_eq!(told(&front(""), &open), [""; 0]);
        let by_value = front("pub(super) fn get(&self) -> Table {\n    }");
        assert_eq!(told(&by_value, &open), seen);
        assert_eq!(told(&by_value, &own), [""; 0]);
        let by_field = "pub(crate) struct Front {\n    pub(super) table: Table,\n}\n";
        assert_eq!(told(by_field, &open), seen);
        let by_name =
            format!("mod inner;\npub(super) use inner::{{\n    Table,\n}};\n{}", front(""));
        assert_eq!(told(&by_name, &open), seen);
        let by_trait = "pub(crate) struct Front;\nimpl Deref for Front {\n    fn deref(&self) -> &u8 {\n    }\n}\n";
        assert_eq!(told(by_trait, ""), ["mod.rs:3: deref returns a reference"]);
    }

    #[test]
    fn a_component_that_is_most_of_the_shard_is_seen() {
        let tests = "#[cfg(test)]\nmod tests {\n    x\n    x\n    x\n}\n";
        let sources = planted(&[
            ("left/mod.rs", &"x\n".repeat(30)),
            ("left/tests.rs", &"x\n".repeat(500)),
            ("leftover.rs", &"x\n".repeat(10)),
            ("mod.rs", &format!("{}{tests}", "x\n".repeat(20))),
        ]);
        assert_eq!((share(&sources, "x/s", "left"), share(&sources, "x/s", "right")), (50, 0));
    }
}
