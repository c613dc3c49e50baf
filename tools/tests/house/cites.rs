//! Rules that comments and pages cite, and the pages that have them: `contract 4.2` and `CL-37` in
//! `docs/wire-contract.md`, `design 3.12` in `docs/design.md`, `L5` in `docs/limits.md`.

use std::collections::BTreeSet;

use crate::source::{Source, files};

const CONTRACT: &str = "docs/wire-contract.md";
const DESIGN: &str = "docs/design.md";
const LIMITS: &str = "docs/limits.md";

/// Prefixes of numbered rules, each followed by a number.
const FAMILIES: [&str; 7] = ["CL-", "WK-", "CP-", "NT-", "OB-", "LN-", "CF-"];
/// Rows of tables: outcomes, cases of resumption, limits.
const ROWS: [&str; 3] = ["E", "R", "L"];

/// What the three pages define, by the words with which it is cited.
pub(crate) fn defined(pages: &[Source]) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for page in pages {
        for (_, line) in page.lines() {
            let heading = line.trim_start_matches('#');
            let section = heading.trim_start().split(' ').next().unwrap_or_default();
            if heading.len() < line.len() && is_section(section) {
                let word = if page.path == DESIGN { "design" } else { "contract" };
                found.insert(format!("{word} {section}"));
            }
            if let Some((rule, _)) = line.strip_prefix("- **").and_then(|at| at.split_once("**")) {
                found.insert(rule.to_owned());
            }
            if let Some((row, _)) = line.strip_prefix("| ").and_then(|at| at.split_once(" |"))
                && is_row(row)
            {
                found.insert(row.to_owned());
            }
        }
    }
    found
}

/// The three pages.
pub(crate) fn pages() -> Vec<Source> {
    let all = files("docs", &[".md"]).into_iter();
    let pages: Vec<Source> =
        all.filter(|page| [CONTRACT, DESIGN, LIMITS].contains(&page.path.as_str())).collect();
    assert_eq!(pages.len(), 3, "the rules have their pages");
    pages
}

/// What a file cites: the line and the rule. A list after `contract` or `design` may go on in the
/// comment's next line.
pub(crate) fn cited(source: &Source) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    // The page that the numbers which follow are of.
    let mut page = None;
    for (at, line) in source.lines() {
        for word in line.split([' ', '\t', '(', '[', ']', '/', '#', '*', '"', '|', '`']) {
            let bare = word.trim_end_matches([')', ',', ';', ':', '.', '\'']);
            let joins = ["", "and", "to", "!", "-"].contains(&bare);
            match bare.to_ascii_lowercase().as_str() {
                "contract" | "design" => page = Some(bare.to_ascii_lowercase()),
                _ if joins => {}
                _ if is_rule(bare) => found.push((at, bare.to_owned())),
                _ => match &page {
                    Some(of) if bare.split('-').all(is_section) => {
                        let sections = bare.split('-');
                        found.extend(sections.map(|section| (at, format!("{of} {section}"))));
                        // `design 5).` ends the list, `design 3.2, 3.3` does not.
                        if word.trim_end_matches(',') != bare {
                            page = None;
                        }
                    }
                    _ => page = None,
                },
            }
        }
    }
    found
}

fn is_section(text: &str) -> bool {
    let parts = text.split('.');
    !text.is_empty() && parts.clone().count() <= 3 && parts.clone().all(is_number)
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.len() <= 2 && text.bytes().all(|b| b.is_ascii_digit())
}

fn is_row(text: &str) -> bool {
    ROWS.iter().any(|row| text.strip_prefix(row).is_some_and(is_number))
}

fn is_rule(text: &str) -> bool {
    FAMILIES.iter().any(|family| text.strip_prefix(family).is_some_and(is_number)) || is_row(text)
}
