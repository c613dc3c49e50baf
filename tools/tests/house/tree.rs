//! Which file of a crate names which other one: `use` and paths in the code, followed through
//! re-exports to the file that has the item.

use std::collections::{BTreeMap, BTreeSet};

use super::graph::{Graph, circles};
use crate::source::Source;

/// A module by the names that lead to it from the crate's root.
type Module = Vec<String>;

/// The files of one crate.
pub(crate) struct Tree<'a> {
    files: BTreeMap<Module, &'a Source>,
    /// What each file brings into its own scope, and from where.
    brought: BTreeMap<Module, BTreeMap<String, Module>>,
}

/// One file names something of another one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Arrow {
    pub(crate) from: String,
    pub(crate) line: usize,
    pub(crate) to: String,
    /// The other one is a module around this one.
    pub(crate) up: bool,
}

/// The module that a file is, below the crate's root.
fn module_of(root: &str, path: &str) -> Option<Module> {
    let path = path.strip_prefix(root)?.trim_start_matches('/').strip_suffix(".rs")?;
    let mut module: Module = path.split('/').map(str::to_owned).collect();
    if matches!(module.last().map(String::as_str), Some("mod" | "lib" | "main")) {
        module.pop();
    }
    Some(module)
}

impl<'a> Tree<'a> {
    /// Test modules in files of their own are left out, and so is a second root: of `lib.rs` and
    /// `main.rs` the first has the crate's modules.
    pub(crate) fn new(root: &str, sources: &'a [Source]) -> Self {
        let mut tree = Self { files: BTreeMap::new(), brought: BTreeMap::new() };
        for source in sources.iter().filter(|source| !source.path.ends_with("/tests.rs")) {
            if let Some(module) = module_of(root, &source.path) {
                tree.files.entry(module).or_insert(source);
            }
        }
        for (module, source) in &tree.files {
            let mut brought = BTreeMap::new();
            for name in source.names() {
                let path: Vec<&str> = name.path.split("::").collect();
                let Some(full) = tree.full(module, &path).filter(|_| path.len() > 1) else {
                    continue;
                };
                if let Some(last) = path.last() {
                    brought.entry((*last).to_owned()).or_insert(full);
                }
            }
            tree.brought.insert(module.clone(), brought);
        }
        tree
    }

    /// A path as it reads from the crate's root; none if it leads out of the crate, or is no path.
    fn full(&self, from: &Module, path: &[&str]) -> Option<Module> {
        let mut base = from.clone();
        let mut rest = path;
        match path.first()? {
            &"crate" => base.clear(),
            &"self" => {}
            &"super" => {
                base.pop()?;
                while rest.get(1) == Some(&"super") {
                    base.pop()?;
                    rest = &rest[1..];
                }
            }
            first => {
                base.push((*first).to_owned());
                if !self.files.contains_key(&base) {
                    return None;
                }
            }
        }
        base.extend(rest[1..].iter().map(|part| (*part).to_owned()));
        Some(base)
    }

    /// The file that has what a full path leads to.
    fn file(&self, full: &Module) -> Option<&Module> {
        let mut full = full.clone();
        // A re-export of a re-export is one more round.
        for _ in 0..8 {
            let len = (0..=full.len()).rev().find(|len| self.files.contains_key(&full[..*len]))?;
            let (module, _) = self.files.get_key_value(&full[..len])?;
            let Some(item) = full.get(len) else { return Some(module) };
            match self.brought[module].get(item) {
                Some(other) if !other.starts_with(&full[..=len]) => {
                    let rest = full[len + 1..].to_vec();
                    full.clone_from(other);
                    full.extend(rest);
                }
                _ => return Some(module),
            }
        }
        None
    }

    /// Which file names which, each pair once.
    pub(crate) fn arrows(&self) -> Vec<Arrow> {
        let mut arrows = Vec::new();
        for (from, source) in &self.files {
            let mut known = BTreeSet::new();
            for name in source.names() {
                let path: Vec<&str> = name.path.split("::").collect();
                // `pub(super)` and `pub(crate)` name nothing.
                let named = self.full(from, &path).filter(|_| path.len() > 1);
                let Some(to) = named.and_then(|full| self.file(&full)) else { continue };
                if to != from && known.insert(to) {
                    arrows.push(Arrow {
                        from: source.path.clone(),
                        line: name.line,
                        to: self.files[to].path.clone(),
                        up: from.starts_with(to),
                    });
                }
            }
        }
        arrows
    }
}

/// The arrows that are part of a circle; none if all run one way. A file may name the modules around
/// it: what they have is its surroundings.
pub(crate) fn running_back(arrows: Vec<Arrow>) -> Vec<Arrow> {
    let mut graph: Graph<String> = Graph::new();
    let arrows: Vec<Arrow> = arrows.into_iter().filter(|arrow| !arrow.up).collect();
    for arrow in &arrows {
        graph.entry(arrow.from.clone()).or_default().insert(arrow.to.clone());
    }
    let circles = circles(&graph);
    let both = |arrow: &Arrow| {
        circles.iter().any(|circle| circle.contains(&arrow.from) && circle.contains(&arrow.to))
    };
    arrows.into_iter().filter(both).collect()
}

#[test]
fn a_circle_of_files_is_seen_through_re_exports() {
    let root = "x/src";
    let seen = |texts: &[(&str, &str)]| {
        let sources: Vec<Source> = texts
            .iter()
            .map(|(path, text)| Source::planted(&format!("{root}/{path}"), text))
            .collect();
        let found = running_back(Tree::new(root, &sources).arrows());
        found.into_iter().map(|a| format!("{}:{} {}", a.from, a.line, a.to)).collect::<Vec<_>>()
    };
    let (lib, a) = ("mod a;\nmod b;\n", "mod in1;\nmod in2;\npub use in2::Two;\nuse in1::One;\n");
    let straight = [
        ("lib.rs", lib),
        ("a/mod.rs", a),
        ("a/in1.rs", "use super::Two;\npub(super) struct One(Two);\n"),
        ("a/in2.rs", "use super::super::b::B;\nuse super::Around;\n// use super::in1::One;\n"),
        ("b.rs", "use std::fmt;\n#[cfg(test)]\nmod tests {\n    use crate::a::in1::One;\n}\n"),
    ];
    assert_eq!(seen(&straight), [""; 0]);
    let mut turned = straight;
    turned[3].1 = "\nuse super::One;\n";
    assert_eq!(
        seen(&turned),
        ["x/src/a/in1.rs:1 x/src/a/in2.rs", "x/src/a/in2.rs:2 x/src/a/in1.rs"]
    );
    let mut far = straight;
    far[4].1 = "\n\nfn f() { crate::a::in1::go() }\n";
    let told = [
        "x/src/a/in1.rs:1 x/src/a/in2.rs",
        "x/src/a/in2.rs:1 x/src/b.rs",
        "x/src/b.rs:3 x/src/a/in1.rs",
    ];
    assert_eq!(seen(&far), told);
}
