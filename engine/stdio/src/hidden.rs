//! Characters that do something to a terminal, or to the reader's eye, instead of being read.

use std::borrow::Cow;
use std::fmt;

/// Whether a character is shown escaped: controls of ASCII and of ISO 6429 (U+0080 to U+009F, which
/// terminals take for ESC sequences), line and paragraph separators, and what changes the writing
/// direction (Unicode UAX 9).
#[must_use]
pub const fn is_hidden(c: char) -> bool {
    matches!(
        c,
        '\0'..='\x1f'
            | '\x7f'..='\u{9f}'
            | '\u{61c}'
            | '\u{200e}'
            | '\u{200f}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2066}'..='\u{2069}'
    )
}

/// A text of one line that can be shown to anybody: `\u{9b}` stands for U+009B.
#[must_use]
pub fn printable(text: &str) -> Cow<'_, str> {
    if !text.chars().any(is_hidden) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    // Into memory: it cannot fail.
    let _ = fmt::Write::write_str(&mut Escaping(&mut out), text);
    Cow::Owned(out)
}

/// Writes into another writer what is [printable] of a text that comes in pieces.
#[derive(Debug)]
pub struct Escaping<W>(pub W);

impl<W: fmt::Write> fmt::Write for Escaping<W> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut rest = text;
        while let Some(at) = rest.find(is_hidden) {
            let (before, from) = rest.split_at(at);
            self.0.write_str(before)?;
            let mut chars = from.chars();
            if let Some(c) = chars.next() {
                match c {
                    '\n' => self.0.write_str("\\n")?,
                    '\r' => self.0.write_str("\\r")?,
                    '\t' => self.0.write_str("\\t")?,
                    c => write!(self.0, "{}", c.escape_unicode())?,
                }
            }
            rest = chars.as_str();
        }
        self.0.write_str(rest)
    }
}

/// JSON text, as any writer of it leaves it, with hidden characters as `\u009b`. Between texts JSON
/// has only line feeds, which stay; whatever else is hidden stands within a text.
#[must_use]
pub fn json_line(json: &[u8]) -> Cow<'_, [u8]> {
    // Line feeds are all that JSON has of them outside of texts; a tab may indent.
    let stays = |c: char| !is_hidden(c) || matches!(c, '\n' | '\r' | '\t');
    // Nearly every line is ASCII: then only DEL is to be looked for.
    if json.is_ascii() && !json.contains(&0x7f) {
        return Cow::Borrowed(json);
    }
    // JSON is UTF-8, so nothing is replaced here.
    let text = String::from_utf8_lossy(json);
    if text.chars().all(stays) {
        return Cow::Borrowed(json);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if stays(c) {
            out.push(c);
        } else {
            let _ = fmt::Write::write_fmt(&mut out, format_args!("\\u{:04x}", u32::from(c)));
        }
    }
    Cow::Owned(out.into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What must never be shown raw, by the standards that define it.
    fn dangerous() -> impl Iterator<Item = char> {
        let ranges = [0..=0x1f, 0x7f..=0x9f, 0x2028..=0x202e, 0x2066..=0x2069];
        let single = [0x61c, 0x200e, 0x200f];
        ranges.into_iter().flatten().chain(single).filter_map(char::from_u32)
    }

    #[test]
    fn nothing_dangerous_is_left_and_nothing_else_is_touched() {
        let all: String = (0..0x3000).filter_map(char::from_u32).collect();
        let shown = printable(&all);
        assert!(!dangerous().any(|c| shown.contains(c)), "{shown:?}");
        let kept = |c: &char| !dangerous().any(|d| d == *c);
        assert!(all.chars().filter(kept).all(|c| shown.contains(c)));
        assert_eq!(printable("a\u{9b}31m\n"), "a\\u{9b}31m\\n");
        assert!(matches!(printable("zwölf 十二"), Cow::Borrowed("zwölf 十二")));
    }

    #[test]
    fn json_stays_json_and_says_the_same() {
        for c in dangerous().filter(|c| u32::from(*c) > 0x1f) {
            let line = format!("{{\"a\":\"\\\\{c}é\"}}\n");
            let shown = json_line(line.as_bytes());
            let code = format!("\\u{:04x}", u32::from(c));
            assert_eq!(*shown, *format!("{{\"a\":\"\\\\{code}é\"}}\n").as_bytes(), "{c:?}");
        }
        let plain = "{\"a\":\"zwölf\"}\n".as_bytes();
        assert!(matches!(json_line(plain), Cow::Borrowed(_)));
    }
}
