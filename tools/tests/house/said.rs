//! What programs say in their logs, and whether the manual knows it.

use crate::source::Source;

/// The beginnings of macros that log for operators; what is below `info` is for developers.
const MACROS: [&str; 3] = ["tracing::info!(", "tracing::warn!(", "tracing::error!("];

/// Shorter pieces of a message say nothing.
const LEAST: usize = 5;

/// The messages that a file logs, by their lines: of each the part that is the same every time, up to
/// where it begins to explain itself.
pub(crate) fn messages(source: &Source) -> Vec<(usize, String)> {
    let text = source.text.split("\n#[cfg(test)]\nmod tests").next().unwrap_or_default();
    let mut found = Vec::new();
    for (start, _) in text.match_indices("tracing::") {
        let Some(name) = MACROS.iter().find(|name| text[start..].starts_with(**name)) else {
            continue;
        };
        let line = text[..start].matches('\n').count() + 1;
        let message = last_text(&text[start + name.len()..]);
        found.push((line, message.map(|message| constant(&message)).unwrap_or_default()));
    }
    found
}

/// The last text between quotes before the parenthesis that closes the call.
fn last_text(call: &str) -> Option<String> {
    let mut depth = 1;
    let mut last = None;
    let mut open: Option<String> = None;
    let mut chars = call.chars();
    while let Some(c) = chars.next() {
        match (&mut open, c) {
            (Some(text), '\\') => match chars.next()? {
                // A text that goes on in the next line.
                '\n' => {
                    let rest = chars.as_str().trim_start();
                    chars = rest.chars();
                }
                escaped => text.push(escaped),
            },
            (Some(_), '"') => last = open.take(),
            (Some(text), c) => text.push(c),
            (None, '"') => open = Some(String::new()),
            (None, '(') => depth += 1,
            (None, ')') => depth -= 1,
            (None, _) => {}
        }
        if depth == 0 {
            break;
        }
    }
    last
}

/// A message's first piece without values, up to its first mark.
fn constant(message: &str) -> String {
    let pieces =
        message.split('{').map(|piece| piece.split_once('}').map_or(piece, |(_, rest)| rest));
    let mut heads = pieces.map(|piece| {
        let piece = piece.split(['`', '"']).next().unwrap_or_default();
        let end = [": ", "; ", ". ", ", "].iter().filter_map(|mark| piece.find(mark)).min();
        piece[..end.unwrap_or(piece.len())].trim().to_owned()
    });
    heads.find(|head| head.len() >= LEAST).unwrap_or_default()
}
