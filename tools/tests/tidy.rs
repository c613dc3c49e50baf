//! The house rules, held against the repository's own files. Each test finds a planted violation
//! before it looks for real ones, so that a rule that has gone blind is noticed.

mod house;
mod source;

use std::collections::{BTreeMap, BTreeSet};

use source::{Source, exists, files, has_word};

/// Most lines of a file outside tests, and of any file.
const MOST_LINES: usize = 800;
const MOST_LINES_WITH_TESTS: usize = 1000;

/// What breaks a rule: the line and what is there.
type Broken = Vec<(usize, String)>;

/// Fails with `file:line: what is there (the rule)` for everything that `find` finds.
fn hold(rule: &str, sources: &[Source], find: impl Fn(&Source) -> Broken) {
    let mut told = String::new();
    for source in sources {
        for (line, what) in find(source) {
            told += &format!("\n{}:{line}: {what} ({rule})", source.path);
        }
    }
    assert!(told.is_empty(), "{told}");
}

/// Fails unless `find` finds something on exactly these lines of a planted text.
fn finds(path: &str, text: &str, lines: &[usize], find: impl Fn(&Source) -> Broken) {
    let found: BTreeSet<usize> =
        find(&Source::planted(path, text)).into_iter().map(|(line, _)| line).collect();
    let lines = lines.iter().copied().collect();
    assert_eq!(found, lines, "the rule has gone blind, or sees what is not there, in:\n{text}");
}

/// The names in a source that are one of `paths`, below one, or contain one of `words`.
fn names_of(source: &Source, paths: &[&str], words: &[&str]) -> Broken {
    let below = |name: &str| {
        paths.iter().any(|path| {
            name.strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
        })
    };
    let has = |name: &str| name.split("::").any(|part| words.contains(&part));
    let names = source.names().into_iter();
    let names = names.filter(|name| below(&name.path) || has(&name.path));
    names.map(|name| (name.line, name.path)).collect()
}

/// Names of our own modules, as `crate::` and from inside a module beside them.
fn modules(names: &[&str]) -> Vec<String> {
    names.iter().flat_map(|n| [format!("crate::{n}"), format!("super::{n}")]).collect()
}

/// Own modules are seen also at the end of `super::super::`.
fn names_modules(source: &Source, banned: &[&str]) -> Broken {
    let banned = modules(banned);
    let names = source.names().into_iter().filter(|name| {
        let path = name.path.trim_start_matches("super::");
        let path = if path == name.path { path.to_owned() } else { format!("super::{path}") };
        let own = |module: &String| path == *module || path.starts_with(&format!("{module}::"));
        banned.iter().any(own)
    });
    names.map(|name| (name.line, name.path)).collect()
}

fn shard_rule(source: &Source) -> Broken {
    let mut broken = names_of(
        source,
        &["io_uring", "std::thread", "std::sync::atomic", "libc", "rustix", "socket2"],
        &["Mutex", "Rc", "RefCell", "Instant", "SystemTime"],
    );
    let sockets = names_of(source, &["std::net"], &[]);
    broken.extend(sockets.into_iter().filter(|(_, name)| name != "std::net::SocketAddr"));
    broken.extend(names_modules(source, &["reactor", "boot", "admin"]));
    // It may use two parts of the log: lines as values, and how a time is written.
    let values = ["AccessLine", "Closed", "Line", "Lines", "Named", "Refused", "rfc3339"];
    let of_log = names_of(source, &["crate::log"], &[]).into_iter();
    broken.extend(of_log.filter(|(_, name)| {
        let item = name.split("::").nth(2);
        !item.is_some_and(|item| values.contains(&item))
    }));
    broken
}

#[test]
fn a_shard_touches_nothing() {
    let text = "use std::net::{SocketAddr, TcpStream};\nuse crate::{net, reactor::Reactor};\n\
                use std::sync::Arc;\nuse std::sync::atomic::AtomicU8;\nlet now = Instant::now();\n\
                // Mutex\nuse super::super::boot;\nuse std::cell::{Cell, RefCell};\n\
                std::thread::spawn(f);\nuse io_uring::opcode;\nuse super::admission;\n\
                use crate::log::{Line, rfc3339};\ncrate::log::write(0, lines);\nuse crate::log;\n\
                #[cfg(test)]\nmod tests {\n    use std::rc::Rc;\n}\n";
    finds("shard/x.rs", text, &[1, 2, 4, 5, 7, 8, 9, 10, 13, 14], shard_rule);
    let rule = "a shard does no I/O, has no clock and no lock, knows neither reactor, boot nor admin, \
                and writes no log: time and bytes are given to it";
    hold(rule, &files(house::SHARD, &[".rs"]), shard_rule);
}

fn reactor_rule(source: &Source) -> Broken {
    let protocol = ["FrameHead", "ErrorCode", "GoAway", "RstStream", "WindowUpdate"];
    let paths = ["ringway_proto::h1", "ringway_proto::h2", "ringway_proto::hpack"];
    let mut broken = names_of(source, &paths, &protocol);
    broken.extend(names_modules(source, &["shard", "control"]));
    broken
}

#[test]
fn the_reactor_decides_nothing() {
    let text = "use ringway_proto::{h2::Conn, time::Time};\nuse crate::shard::Shard;\n\
                fn f(head: FrameHead) {}\nuse super::super::control;\nuse crate::net::ConnId;\n\
                // FrameHead\n";
    finds("reactor/x.rs", text, &[1, 2, 3, 4], reactor_rule);
    let rule = "the reactor moves bytes: it knows no frame, no shard and no control plane";
    hold(rule, &files("engine/src/reactor", &[".rs"]), reactor_rule);
}

fn proto_rule(source: &Source) -> Broken {
    let paths = ["std::thread", "std::sync", "std::time::Instant"];
    let mut broken = names_of(source, &paths, &["SystemTime", "Instant"]);
    let sockets = names_of(source, &["std::net"], &[]);
    broken.extend(sockets.into_iter().filter(|(_, name)| name != "std::net::SocketAddr"));
    // What does not change may be shared: a core's connections have one set of limits.
    broken.retain(|(_, name)| name != "std::sync::Arc");
    broken
}

#[test]
fn the_protocol_crate_has_no_world() {
    let text = "//! use std::net;\nuse std::{fmt, sync::Mutex, sync::Arc};\nuse std::time::{Duration, Instant};\n\
                use core::net::IpAddr;\nlet x = std::thread::current();\nuse std::time::Duration;\n\
                #[cfg(test)]\nmod tests {\n    use std::sync::Arc;\n}\n";
    finds("proto/src/x.rs", text, &[2, 3, 4, 5], proto_rule);
    let rule = "proto is bytes in, values out: no sockets, threads, clocks or shared state";
    hold(rule, &files("proto/src", &[".rs"]), proto_rule);
}

/// Which modules at a crate's top name which others, each with one place where it does.
fn imports(crate_root: &str, sources: &[Source]) -> BTreeMap<String, BTreeMap<String, String>> {
    let module = |source: &Source| {
        let path = source.path.strip_prefix(crate_root)?.trim_start_matches('/');
        let first = path.split(['/', '.']).next()?;
        (!matches!(first, "lib" | "main")).then(|| first.to_owned())
    };
    let mut graph: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
    for source in sources.iter().filter(|source| !source.path.ends_with("/tests.rs")) {
        let Some(from) = module(source) else { continue };
        graph.entry(from.clone()).or_default();
        for name in source.names() {
            let mut parts = name.path.split("::");
            let (Some("crate"), Some(to)) = (parts.next(), parts.next()) else { continue };
            if to != from {
                let place = format!("{}:{} names crate::{to}", source.path, name.line);
                graph.entry(from.clone()).or_default().insert(to.to_owned(), place);
            }
        }
    }
    // Macros and constants of the root are nobody's module.
    let modules: BTreeSet<String> = graph.keys().cloned().collect();
    graph.values_mut().for_each(|named| named.retain(|to, _| modules.contains(to)));
    graph
}

/// The places that make a circle of modules; empty if imports run one way.
fn circle(graph: &BTreeMap<String, BTreeMap<String, String>>) -> Vec<String> {
    let mut left: BTreeSet<&String> = graph.keys().collect();
    loop {
        // A module that names none of those left, or that none of them names, is in no circle.
        let names = |module: &String| graph[module].keys().any(|to| left.contains(to));
        let named = |module: &String| left.iter().any(|other| graph[*other].contains_key(module));
        let inner: BTreeSet<&String> =
            left.iter().copied().filter(|module| names(module) && named(module)).collect();
        if inner.len() == left.len() {
            break;
        }
        left = inner;
    }
    let places = left.iter().flat_map(|module| &graph[*module]);
    places.filter(|(to, _)| left.contains(to)).map(|(_, place)| place.clone()).collect()
}

#[test]
fn modules_import_one_way() {
    let planted = |texts: &[(&str, &str)]| {
        let sources: Vec<Source> =
            texts.iter().map(|(path, text)| Source::planted(path, text)).collect();
        circle(&imports("x/src", &sources))
    };
    let (a, b, c) = ("use crate::b::B;\n", "use crate::{c::C, d};\n", "use crate::d::D;\n");
    let (d, back) = ("use std::fmt;\n", "\nuse crate::b::B;\n#[cfg(test)]\nmod tests {\n}\n");
    let straight = [("x/src/a.rs", a), ("x/src/b/mod.rs", b), ("x/src/c.rs", c), ("x/src/d.rs", d)];
    assert!(planted(&straight).is_empty());
    let mut turned = straight;
    turned[3] = ("x/src/d.rs", back);
    let told = planted(&turned);
    assert_eq!(told.len(), 4, "b, c and d, and not a: {told:?}");
    assert!(told.contains(&"x/src/d.rs:2 names crate::b".to_owned()), "{told:?}");
    for root in ["engine/src", "proto/src"] {
        let told = circle(&imports(root, &files(root, &[".rs"])));
        assert!(
            told.is_empty(),
            "modules of {root} name each other in a circle:\n{}",
            told.join("\n")
        );
    }
}

/// A crate's root has to forbid unsafe code.
fn forbids_unsafe(source: &Source) -> Broken {
    let forbids = source.lines().any(|(_, line)| line == "#![forbid(unsafe_code)]");
    if forbids { Vec::new() } else { vec![(1, "no #![forbid(unsafe_code)]".into())] }
}

fn unsafe_rule(source: &Source) -> Broken {
    let place = source.path.contains("/src/reactor/") || source.path.ends_with("/src/mailbox.rs");
    if place { Vec::new() } else { names_of(source, &[], &["unsafe"]) }
}

#[test]
fn unsafe_code_has_its_places() {
    finds("proto/src/lib.rs", "#![forbid(unsafe_code, x)]\n", &[1], forbids_unsafe);
    finds("proto/src/lib.rs", "//! Proto.\n\n#![forbid(unsafe_code)]\n", &[], forbids_unsafe);
    let text = "// unsafe\n#![deny(unsafe_op_in_unsafe_fn)]\nlet x = unsafe { f() };\n";
    finds("engine/src/shard/x.rs", text, &[3], unsafe_rule);
    finds("engine/src/reactor/x.rs", text, &[], unsafe_rule);
    let root: Vec<Source> = files("proto/src", &["lib.rs"])
        .into_iter()
        .filter(|s| s.path == "proto/src/lib.rs")
        .collect();
    assert_eq!(root.len(), 1);
    hold("proto is safe Rust", &root, forbids_unsafe);
    let rule = "unsafe code of the engine is in reactor/ and mailbox.rs only";
    hold(rule, &files("engine/src", &[".rs"]), unsafe_rule);
}

fn length_rule(source: &Source) -> Broken {
    let all = source.lines().count();
    let in_tests = source.path.contains("/tests/") || source.path.ends_with("/tests.rs");
    let own = if in_tests { 0 } else { source.lines_before_tests() };
    if own > MOST_LINES || all > MOST_LINES_WITH_TESTS {
        return vec![(all, format!("{all} lines, {own} of them outside tests"))];
    }
    Vec::new()
}

#[test]
fn no_file_is_too_long() {
    finds("proto/src/x.rs", &"x\n".repeat(801), &[801], length_rule);
    finds("proto/tests/x.rs", &"x\n".repeat(1000), &[], length_rule);
    finds("proto/tests/x.rs", &"x\n".repeat(1001), &[1001], length_rule);
    let tests = format!("{}#[cfg(test)]\nmod tests {{\n    x\n}}\n", "x\n".repeat(799));
    finds("proto/src/x.rs", &tests, &[], length_rule);
    let rule = format!("at most {MOST_LINES} lines outside tests, {MOST_LINES_WITH_TESTS} in all");
    hold(&rule, &files("", &[".rs"]), length_rule);
}

fn unfinished_rule(source: &Source) -> Broken {
    // Put together here, so that this file does not break its own rule.
    let marks = [["TO", "DO"], ["FIX", "ME"], ["X", "XX"]].map(|parts| parts.concat());
    let macros = [["to", "do!"], ["unimple", "mented!"], ["#[ig", "nore]"]].map(|p| p.concat());
    let unfinished = |line: &str| {
        marks.iter().any(|mark| has_word(line, mark)) || macros.iter().any(|m| line.contains(m))
    };
    let lines = source.lines().filter(|(_, line)| unfinished(line));
    lines.map(|(at, line)| (at, line.trim().to_owned())).collect()
}

#[test]
fn nothing_is_left_for_later() {
    let text = [
        "mktemp XX",
        "XX\n#[ig",
        "nore]\n#[ig",
        "nore = \"needs a ring\"]\n# TO",
        "DO: x\n",
        "to",
        "do!()\nTO",
        "DOS\n",
    ];
    finds("x.sh", &text.concat(), &[2, 4, 5], unfinished_rule);
    let rule = "what is not built is refused or left out, not promised; an ignored test says why";
    hold(rule, &files("", &[".rs", ".py", ".sh"]), unfinished_rule);
}

/// Errors of the programs are made by `Trouble`, which has no place for less than three parts.
fn complaint_rule(source: &Source) -> Broken {
    let made_here = source.path == "engine/stdio/src/trouble.rs";
    let programs = ["engine/", "tools/src/main.rs", "tools/src/worker/"];
    let tests = source.path.contains("/tests/");
    if made_here || tests || !programs.iter().any(|program| source.path.starts_with(program)) {
        return Vec::new();
    }
    let lines = source.lines().filter(|(_, line)| line.contains("\"error: "));
    lines.map(|(at, line)| (at, line.trim().to_owned())).collect()
}

#[test]
fn errors_have_three_parts() {
    let text = "x\ncomplain(&format!(\"error: {why}\"));\nTrouble::new(what, why, fix)\n";
    finds("engine/src/x.rs", text, &[2], complaint_rule);
    finds("tools/src/main.rs", text, &[2], complaint_rule);
    finds("engine/tests/x.rs", text, &[], complaint_rule);
    let rule = "an error says what, why and what to do: `ringway_stdio::Trouble`";
    hold(rule, &files("", &[".rs"]), complaint_rule);
}

/// Messages of the log that a page does not have.
fn unexplained(source: &Source, page: &str) -> Broken {
    let said = house::said::messages(source).into_iter();
    said.filter(|(_, message)| message.is_empty() || !page.contains(&**message)).collect()
}

#[test]
fn every_log_line_stands_in_the_manual() {
    let page = "| `a thing failed` | mend it |\n`all is well`, `was made`\n";
    let text = "tracing::warn!(%error, \"a thing failed; trying again\");\n\
                tracing::info!(name = text(\"x\"), \"all is \\\n well\");\n\
                tracing::info!(\"{what} was made\");\n\
                tracing::error!(why, \"another thing failed\");\ntracing::debug!(\"small talk\");\n";
    finds("engine/src/x.rs", text, &[5], |source| unexplained(source, page));
    let log = files("docs/reference", &["log.md"]);
    let page = &log.first().expect("the page is there").text;
    let sources = files("", &[".rs"]).into_iter().filter(|source| {
        let programs = ["engine/src/", "tools/src/main.rs", "tools/src/worker/"];
        programs.iter().any(|program| source.path.starts_with(program))
    });
    let rule = "docs/reference/log.md says what to do about it";
    hold(rule, &sources.collect::<Vec<_>>(), |source| unexplained(source, page));
}

/// The relative links of a page, as paths from the repository's root; what is fenced is no link.
fn links(source: &Source) -> Vec<(usize, String)> {
    let folder = source.path.rsplit_once('/').map_or("", |(folder, _)| folder);
    let mut found = Vec::new();
    let mut fenced = false;
    for (at, line) in source.lines() {
        fenced ^= line.trim_start().starts_with("```");
        let targets = line.split("](").skip(1).filter(|_| !fenced);
        for target in targets.filter_map(|rest| rest.split(')').next()) {
            let target = target.split('#').next().unwrap_or_default();
            if !target.is_empty() && !target.contains("://") && !target.starts_with("mailto:") {
                found.push((at, resolve(folder, target)));
            }
        }
    }
    found
}

/// `target` as seen from `folder`. A way out of the repository keeps its `..`.
fn resolve(folder: &str, target: &str) -> String {
    let mut parts: Vec<&str> = folder.split('/').filter(|part| !part.is_empty()).collect();
    for part in target.trim_end_matches('/').split('/').filter(|part| *part != ".") {
        if part == ".." && parts.last().is_some_and(|last| *last != "..") {
            parts.pop();
        } else {
            parts.push(part);
        }
    }
    parts.join("/")
}

fn link_rule(source: &Source) -> Broken {
    links(source).into_iter().filter(|(_, to)| to.starts_with("..") || !exists(to)).collect()
}

#[test]
fn links_lead_somewhere() {
    let text = "[a](README.md#x) [b](gone.md)\n[c](https://example.com/gone) [d](#here)\n\
                ```\n[e](gone.md)\n```\n[f](../README.md) [g](decisions/)\n[h](../../x.md)\n";
    finds("docs/x.md", text, &[1, 7], link_rule);
    hold("a relative link names a file of the repository", &files("", &[".md"]), link_rule);
}

/// The pages that neither `docs/README.md` nor another page of `docs/` leads to. A link to a
/// folder leads to what is in it.
fn unlinked(pages: &[Source]) -> Vec<&str> {
    let led = |page: &Source| {
        let others = pages.iter().filter(|other| other.path != page.path);
        others.flat_map(links).any(|(_, to)| {
            page.path.strip_prefix(&to).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        })
    };
    let pages = pages.iter().filter(|page| page.path != "docs/README.md" && !led(page));
    pages.map(|page| page.path.as_str()).collect()
}

#[test]
fn every_page_is_led_to() {
    let planted = [
        Source::planted("docs/README.md", "[a](a.md) [d](decisions/)"),
        Source::planted("docs/a.md", "[c](c.md)"),
        Source::planted("docs/b.md", "[itself](b.md)"),
        Source::planted("docs/c.md", ""),
        Source::planted("docs/decisions/1.md", ""),
    ];
    assert_eq!(unlinked(&planted), ["docs/b.md"]);
    let pages = files("docs", &[""]);
    let lost: Vec<String> = unlinked(&pages).iter().map(|path| format!("\n{path}:1:")).collect();
    assert!(lost.is_empty(), "{} no page of docs/ links to it", lost.concat());
}

fn place_rule(source: &Source) -> Broken {
    const HOSTS: &[&str] = &[
        "crates.io",
        "pypi.org",
        "pythonhosted.org",
        "proxy.golang.org",
        "npmjs.org",
        "docker.io",
        "ghcr.io",
        "quay.io",
        "deb.debian.org",
        "archive.ubuntu.com",
        "artifactory",
    ];
    const FOLDERS: &[&str] = &["/work/", "/root/", "/tmp/"];
    // `/v1/work/x` is no machine's folder: a word stands before the slash.
    let path = |line: &str, folder: &str| {
        line.match_indices(folder).any(|(at, _)| {
            let before = line[..at].chars().next_back();
            !before.is_some_and(|c| c.is_alphanumeric() || "._-/}".contains(c))
        })
    };
    let mut broken = Vec::new();
    for (at, line) in source.lines() {
        let hosts = HOSTS.iter().filter(|host| line.contains(**host));
        let folders = FOLDERS.iter().filter(|folder| path(line, folder));
        broken.extend(hosts.chain(folders).map(|found| (at, (*found).to_owned())));
    }
    broken
}

#[test]
fn pages_name_no_machine() {
    let text = "see /work/x\nPOST /v1/work/\nfrom https://crates.io/x\n`/tmp/log`\n$HOME/root/\n";
    finds("docs/x.md", text, &[1, 3, 4], place_rule);
    hold("pages name neither registries nor a machine's folders", &files("", &[".md"]), place_rule);
}
