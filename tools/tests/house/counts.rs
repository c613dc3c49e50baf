//! How large a type may be, how far its methods may call each other, and how long things may get.

use std::collections::{BTreeMap, BTreeSet};

use super::graph::{Graph, circles};
use super::rust::{Function, Items, calls, code};
use crate::source::Source;

/// What the types of a folder are held to.
pub(crate) const MOST_FIELDS: usize = 20;
pub(crate) const MOST_METHODS: usize = 60;
pub(crate) const MOST_FILES: usize = 3;
/// Methods that call each other in a circle.
pub(crate) const MOST_IN_CIRCLE: usize = 6;
/// `else { return }`: who says nothing when something is not there hides why it may be so.
pub(crate) const MOST_GUARDS: usize = 60;

/// Between a function's head and its closing brace; lines of a file.
pub(crate) const MOST_FUNCTION_LINES: usize = 70;
pub(crate) const MOST_FILE_LINES: usize = 600;

/// One type, all files together.
#[derive(Debug, Default)]
struct Counted {
    fields: usize,
    files: BTreeSet<String>,
    methods: BTreeMap<String, Function>,
}

fn counted(sources: &[Source]) -> BTreeMap<String, Counted> {
    let mut all: BTreeMap<String, Counted> = BTreeMap::new();
    for source in sources.iter().filter(|source| !source.path.ends_with("/tests.rs")) {
        let items = Items::of(source);
        for (name, of) in items.types {
            let counted = all.entry(name).or_default();
            counted.fields = counted.fields.max(of.fields.len());
        }
        for name in items.impls {
            all.entry(name).or_default().files.insert(source.path.clone());
        }
        for function in items.functions {
            if let Some(owner) = &function.owner {
                let counted = all.entry(owner.clone()).or_default();
                counted.methods.insert(function.name.clone(), function);
            }
        }
    }
    all
}

/// A method by its type and its name.
type Method = (String, String);

/// Which function calls which: `self.name(` goes to the own type, and what else has that name to
/// the one type that has such a method.
fn call_graphs(types: &BTreeMap<String, Counted>) -> (Graph<Method>, Graph<Method>) {
    let mut owners: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (of, counted) in types {
        for method in counted.methods.keys() {
            owners.entry(method).or_default().push(of);
        }
    }
    let (mut within, mut over_all) = (Graph::new(), Graph::new());
    for (of, counted) in types {
        for (name, function) in &counted.methods {
            let (own, others) = calls(&function.body);
            let method = |of: &str, name: &str| (of.to_owned(), name.to_owned());
            let own = own.into_iter().filter(|call| counted.methods.contains_key(*call));
            let own: BTreeSet<Method> = own.map(|call| method(of, call)).collect();
            let others = others.into_iter().filter_map(|call| match owners.get(call)?.as_slice() {
                [only] => Some(method(only, call)),
                _ => None,
            });
            over_all.insert(method(of, name), own.iter().cloned().chain(others).collect());
            within.insert(method(of, name), own);
        }
    }
    (within, over_all)
}

/// What is too large among the types of a folder.
pub(crate) fn too_large(sources: &[Source]) -> Vec<String> {
    let types = counted(sources);
    let mut told = Vec::new();
    for (name, of) in &types {
        let counts = [
            (of.fields, MOST_FIELDS, "fields"),
            (of.methods.len(), MOST_METHODS, "methods"),
            (of.files.len(), MOST_FILES, "files"),
        ];
        for (count, most, what) in counts {
            if count > most {
                told.push(format!("{name} has {count} {what}, {most} at most"));
            }
        }
    }
    let (within, over_all) = call_graphs(&types);
    let mut found: BTreeSet<BTreeSet<Method>> = circles(&within).into_iter().collect();
    found.extend(circles(&over_all));
    for circle in found.into_iter().filter(|circle| circle.len() > MOST_IN_CIRCLE) {
        let names: Vec<String> = circle.iter().map(|(of, name)| format!("{of}::{name}")).collect();
        told.push(format!("{} methods call each other: {}", names.len(), names.join(", ")));
    }
    told
}

/// How many silent guards a file has.
pub(crate) fn guards(source: &Source) -> usize {
    if source.path.ends_with("/tests.rs") {
        return 0;
    }
    let text = code(source);
    let behind = text.split("else").skip(1).filter_map(|rest| rest.trim_start().strip_prefix('{'));
    behind.filter(|rest| rest.trim_start().starts_with("return")).count()
}

/// The functions of a file that are too long, and the file itself.
pub(crate) fn too_long(source: &Source) -> Vec<(usize, String)> {
    // The head and the closing brace are two more.
    let functions = Items::of(source).functions.into_iter();
    let long = functions.filter(|function| function.lines > MOST_FUNCTION_LINES + 2);
    let mut told: Vec<(usize, String)> =
        long.map(|of| (of.line, format!("fn {} has {} lines", of.name, of.lines - 2))).collect();
    let lines = source.text.lines().count();
    if lines > MOST_FILE_LINES {
        told.push((lines, format!("{lines} lines")));
    }
    told
}

#[cfg(test)]
mod tests {
    use super::*;

    fn planted(text: &str) -> Vec<String> {
        too_large(&[Source::planted("x/a.rs", text)])
    }

    fn lines(count: usize, line: impl Fn(usize) -> String) -> String {
        (0..count).map(line).collect()
    }

    #[test]
    fn a_type_with_too_many_fields_or_methods_is_seen() {
        let fields =
            |n| format!("pub struct A {{\n{}}}\n", lines(n, |n| format!("    f{n}: u8,\n")));
        assert_eq!(planted(&fields(20)), [""; 0]);
        assert_eq!(planted(&fields(21)), ["A has 21 fields, 20 at most"]);
        let method = |n| format!("    fn m{n}(&self) {{\n        x\n    }}\n");
        let methods = |n| format!("impl A {{\n{}}}\n", lines(n, method));
        assert_eq!(planted(&methods(60)), [""; 0]);
        assert_eq!(planted(&methods(61)), ["A has 61 methods, 60 at most"]);
        let hidden = format!("{}#[cfg(test)]\nimpl A {{\n    fn t() {{}}\n}}\n", methods(60));
        assert_eq!(planted(&hidden), [""; 0]);
    }

    #[test]
    fn a_type_in_too_many_files_is_seen() {
        let files = |count| {
            let file = |n| Source::planted(&format!("x/{n}.rs"), "impl A {\n}\nimpl A {\n}\n");
            too_large(&(0..count).map(file).collect::<Vec<_>>())
        };
        assert_eq!(files(3), [""; 0]);
        assert_eq!(files(4), ["A has 4 files, 3 at most"]);
    }

    #[test]
    fn methods_that_call_each_other_are_seen_within_a_type_and_over_all() {
        let method = |n, calls: String| {
            format!("    fn m{n}(&self) {{\n        // self.m9()\n        {calls};\n    }}\n")
        };
        let within = |n| {
            let calls = |at| method(at, format!("self.m{}()", (at + 1) % n));
            format!("impl A {{\n{}}}\n", lines(n, calls))
        };
        assert_eq!(planted(&within(6)), [""; 0]);
        let told = planted(&within(7));
        assert!(told.len() == 1 && told[0].starts_with("7 methods call each other: A::m0"));
        let over_all = |first: &str| {
            let type_of = |n: usize, to: &str| {
                format!("impl T{n} {{\n{}}}\n", method(n, format!("self.x.m{to}(1)")))
            };
            let all = (1..7).map(|n| type_of(n, &((n + 1) % 7).to_string()));
            all.chain([type_of(0, first)]).collect::<String>()
        };
        let told = planted(&over_all("1"));
        assert!(told.len() == 1 && told[0].contains("T0::m0, T1::m1"), "{told:?}");
        assert_eq!(planted(&over_all("99")), [""; 0]);
        // Two types have it: nobody knows whose it is.
        let doubt = format!("{}impl B {{\n    fn m1(&self) {{\n    }}\n}}\n", over_all("1"));
        assert_eq!(planted(&doubt), [""; 0]);
    }

    #[test]
    fn guards_are_counted_however_they_are_written() {
        let text = "let Some(a) = b else { return };\nlet Some(a) = b else {\n    return 1;\n};\n\
                    // else { return }\nif a {\n} else {\n    b\n}\n#[cfg(test)]\nmod tests {\n\
                    let Some(a) = b else { return };\n}\n";
        assert_eq!(guards(&Source::planted("x/a.rs", text)), 2);
        assert_eq!(guards(&Source::planted("x/tests.rs", text)), 0);
    }

    #[test]
    fn a_long_function_and_a_long_file_are_seen() {
        let function = |n| format!("\nfn f() {{\n{}}}\n", "    x\n".repeat(n));
        let seen = |text: &str| too_long(&Source::planted("x/a.rs", text));
        assert_eq!(seen(&function(70)), []);
        assert_eq!(seen(&function(71)), [(2, "fn f has 71 lines".to_owned())]);
        assert_eq!(seen(&"x\n".repeat(600)), []);
        assert_eq!(seen(&"x\n".repeat(601)), [(601, "601 lines".to_owned())]);
    }
}
