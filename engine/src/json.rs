//! JSON objects of texts and numbers, written as fast as they can be copied, because every session
//! needs some. Everything larger is left to serde.

/// An object being written at the end of `out`.
#[derive(Debug)]
pub(crate) struct Object<'a> {
    out: &'a mut Vec<u8>,
    /// What goes before the next key.
    lead: &'static [u8],
}

impl<'a> Object<'a> {
    pub(crate) fn begin(out: &'a mut Vec<u8>) -> Self {
        Self { out, lead: b"{\"" }
    }

    /// Keys are ours: they need no escapes.
    pub(crate) fn key(&mut self, key: &'static str) -> &mut Vec<u8> {
        self.out.extend_from_slice(self.lead);
        self.out.extend_from_slice(key.as_bytes());
        self.out.extend_from_slice(b"\":");
        self.lead = b",\"";
        self.out
    }

    pub(crate) fn text(&mut self, key: &'static str, value: &str) -> &mut Self {
        text(value, self.key(key));
        self
    }

    pub(crate) fn flag(&mut self, key: &'static str, value: bool) -> &mut Self {
        self.key(key).extend_from_slice(if value { b"true" } else { b"false" });
        self
    }

    pub(crate) fn number(&mut self, key: &'static str, value: impl serde::Serialize) -> &mut Self {
        // Into memory: it cannot fail.
        let _ = serde_json::to_writer(self.key(key), &value);
        self
    }

    pub(crate) fn end(self) {
        self.out.extend_from_slice(if self.lead[0] == b'{' { b"{}" } else { b"}" });
    }
}

/// A text between quotes.
fn text(value: &str, out: &mut Vec<u8>) {
    // No way out of the loop before its end: it is done many octets at a time.
    let plain = |sum: bool, octet: u8| sum & (octet >= 0x20) & (octet != b'"') & (octet != b'\\');
    if value.bytes().fold(true, plain) {
        out.push(b'"');
        out.extend_from_slice(value.as_bytes());
        out.push(b'"');
    } else {
        let _ = serde_json::to_writer(out, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_reads_as_it_was_meant() {
        let all: String = (0..=0x2ff_u32).filter_map(char::from_u32).collect();
        for value in ["", "plain", "a \"b\" \\ c", "line\nend", &all] {
            let mut out = Vec::new();
            let mut object = Object::begin(&mut out);
            object.text("a", value).flag("b", true).number("c", 0.5).number("d", 7_u16);
            object.end();
            let read: serde_json::Value = serde_json::from_slice(&out).unwrap();
            assert_eq!(read, serde_json::json!({"a": value, "b": true, "c": 0.5, "d": 7}));
        }
        let mut out = Vec::new();
        Object::begin(&mut out).end();
        assert_eq!(out, b"{}");
    }
}
