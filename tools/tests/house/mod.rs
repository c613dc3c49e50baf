//! The form of the engine's code: which way its files name each other, what components show, and how
//! large things get.

mod cites;
mod counts;
mod fronts;
mod graph;
mod rust;
pub(crate) mod said;
mod tree;

use crate::source::{Source, exists, files};

/// The shard's folder.
pub(crate) const SHARD: &str = "engine/src/shard";

/// Its components: folders with tables that nobody else sees.
const COMPONENTS: [&str; 6] = ["relay", "sessions", "workers", "nodes", "cores", "edges"];

/// This file, whose planted texts cite what no page has.
const SELF: &str = "tools/tests/house/mod.rs";

/// Per cent of the shard's lines that may be one component's.
const MOST_SHARE: usize = 45;

fn sources(folder: &str) -> Vec<Source> {
    files(folder, &[".rs"])
}

/// The components that exist.
fn components() -> Vec<&'static str> {
    let there = |name: &&str| exists(&format!("{SHARD}/{name}/mod.rs"));
    let there: Vec<&str> = COMPONENTS.into_iter().filter(there).collect();
    assert!(!there.is_empty(), "no component: the rules would hold for nothing");
    there
}

fn hold(rule: &str, told: &[String]) {
    assert!(told.is_empty(), "{rule}:\n{}", told.join("\n"));
}

#[test]
fn files_name_each_other_one_way() {
    for root in ["engine/src", "proto/src"] {
        let sources = sources(root);
        let back = tree::running_back(tree::Tree::new(root, &sources).arrows());
        let told: Vec<String> =
            back.into_iter().map(|a| format!("{}:{} names {}", a.from, a.line, a.to)).collect();
        hold("no circle of files: move what both need into a file of its own", &told);
    }
}

#[test]
fn components_do_not_know_each_other() {
    let sources = sources("engine/src");
    let tree = tree::Tree::new("engine/src", &sources);
    let rule = "components share plain modules only, and none of these names a component";
    hold(rule, &fronts::reach(&tree, SHARD, &components()));
}

#[test]
fn fronts_give_values() {
    let sources = sources(SHARD);
    let told: Vec<String> =
        components().iter().flat_map(|name| fronts::lent(&sources, SHARD, name)).collect();
    hold("a component's front lends nothing of its tables and runs nobody's code", &told);
}

#[test]
fn no_component_is_most_of_the_shard() {
    let sources = sources(SHARD);
    for name in components() {
        let share = fronts::share(&sources, SHARD, name);
        assert!(share <= MOST_SHARE, "{name} is {share} % of the shard, {MOST_SHARE} at most");
    }
}

#[test]
fn the_types_of_the_shard_are_small() {
    let sources = sources(SHARD);
    hold("split it by what owns what", &counts::too_large(&sources));
    let guards: usize = sources.iter().map(counts::guards).sum();
    let most = counts::MOST_GUARDS;
    assert!(guards <= most, "{guards} times `else {{ return }}`, {most} at most: filter once");
}

#[test]
fn functions_and_files_of_the_engine_are_short() {
    let mut told = Vec::new();
    for source in sources("engine/src") {
        let long = counts::too_long(&source).into_iter();
        told.extend(long.map(|(line, what)| format!("{}:{line}: {what}", source.path)));
    }
    let (function, file) = (counts::MOST_FUNCTION_LINES, counts::MOST_FILE_LINES);
    hold(&format!("at most {function} lines of a function and {file} of a file"), &told);
}

#[test]
fn every_rule_that_is_cited_exists() {
    let planted = |path: &str, text: &str| Source::planted(path, text);
    let page = "## 4 Worker\n### 4.2 Checks\n- **CL-3** x\n| E7 | x |\n| 5a | x |\ntext CL-9\n";
    let rules = cites::defined(&[planted("docs/wire-contract.md", page)]);
    let wanted = ["CL-3", "E7", "contract 4", "contract 4.2"];
    assert!(rules.iter().eq(wanted), "{rules:?}");
    let text = "// a (contract CL-3, 4.2) 7.7\n/// b (design\n/// 3.27).\n# Contract 5 and 6: E7, 2.5 s\n\
                // contract 6.3 to 6.5, L5; RFC 9113 6.2\nthe contract has 3 rules, a design is 9 tall\n\
                \"\"\"(contract 3.7-3.9, design 3.1)\"\"\"\nlet contract = 4.5;\n";
    let found: Vec<(usize, String)> = cites::cited(&planted("x.rs", text));
    let found: Vec<(usize, &str)> = found.iter().map(|(at, rule)| (*at, rule.as_str())).collect();
    let wanted = [
        (1, "CL-3"),
        (1, "contract 4.2"),
        (3, "design 3.27"),
        (4, "contract 5"),
        (4, "contract 6"),
        (4, "E7"),
        (5, "contract 6.3"),
        (5, "contract 6.5"),
        (5, "L5"),
        (7, "contract 3.7"),
        (7, "contract 3.9"),
        (7, "design 3.1"),
    ];
    assert_eq!(found, wanted);

    let rules = cites::defined(&cites::pages());
    assert!(rules.len() > 200, "the pages have lost their rules: {}", rules.len());
    let mut told = Vec::new();
    // The benchmark's L4 and L7 are layers of the network.
    let others = files("", &[".rs", ".py", ".sh", ".proto", ".md", ".go", ".toml"]);
    let others = others.iter().filter(|s| !s.path.starts_with("bench/") && s.path != SELF);
    for source in others {
        let missing = cites::cited(source).into_iter().filter(|(_, rule)| !rules.contains(rule));
        told.extend(missing.map(|(line, rule)| format!("{}:{line}: {rule}", source.path)));
    }
    hold("a rule that is cited stands in docs/wire-contract.md, design.md or limits.md", &told);
}
