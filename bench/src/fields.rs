//! The header blocks both sides send, encoded once (RFC 7541).
//!
//! The fields are those of warm grpc-go peers: the first block puts its fields into the receiver's
//! dynamic table, every later one is one indexed byte a field. Strings are not Huffman coded; that
//! touches only the first block of a connection. A receiver that allows less than the default table
//! gets literals without indexing. Neighbour: [`crate::verify`], which reads blocks.

/// The table size every HTTP/2 connection starts with (RFC 9113 §6.5.2).
const DEFAULT_TABLE: u32 = 4096;
/// First index behind the static table (RFC 7541 §2.3.3).
const DYNAMIC: usize = 62;
/// Bookkeeping octets of a dynamic entry (RFC 7541 §4.1).
const ENTRY_OVERHEAD: usize = 32;
/// Ends every use of the dynamic table: a size update to 0 (RFC 7541 §6.3).
const TABLE_OFF: u8 = 0x20;

/// What every call of a run says about itself.
#[derive(Debug, Clone)]
pub struct CallFields {
    /// `:authority`.
    pub authority: String,
    /// `:path`.
    pub path: String,
    /// Client key, sent as bearer token.
    pub key: String,
    /// `function-id`.
    pub function: String,
    /// `function-version-id`.
    pub version: String,
    /// `nvcf-reqid`: the session to come back to.
    pub session: Option<String>,
}

impl CallFields {
    /// The fields in grpc-go's order, after `:method` and `:scheme`.
    fn list(&self) -> Vec<(&'static str, String)> {
        let mut list = vec![
            (":path", self.path.clone()),
            (":authority", self.authority.clone()),
            ("content-type", "application/grpc".to_owned()),
            ("user-agent", "grpc-go/1.76.0".to_owned()),
            ("te", "trailers".to_owned()),
            ("authorization", format!("Bearer {}", self.key)),
            ("function-id", self.function.clone()),
            ("function-version-id", self.version.clone()),
        ];
        list.extend(self.session.iter().map(|id| ("nvcf-reqid", id.clone())));
        list
    }

    /// Whether the fields' entries fit into the default table together.
    pub fn fit(&self) -> bool {
        let size: usize = self.list().iter().map(|(n, v)| n.len() + v.len() + ENTRY_OVERHEAD).sum();
        size <= DEFAULT_TABLE as usize
    }
}

/// The block of a connection's first use and the one of all later uses.
#[derive(Debug, Clone)]
pub struct Blocks {
    /// Inserts the fields (or switches the table off).
    pub first: Vec<u8>,
    /// Refers to them (or repeats them).
    pub later: Vec<u8>,
}

impl Blocks {
    /// Request heads for a receiver whose table holds `table` bytes.
    pub fn request(fields: &CallFields, table: u32) -> Self {
        // `:method: POST` and `:scheme: http` are static entries 3 and 6.
        let mut first = vec![0x83, 0x86];
        let mut later = first.clone();
        let list = fields.list();
        if table < DEFAULT_TABLE {
            list.iter().for_each(|(n, v)| literal(&mut later, 0x00, n, v));
            return Self::without_table(later);
        }
        for (place, (name, value)) in list.iter().enumerate() {
            literal(&mut first, 0x40, name, value);
            // The newest entry has the lowest index.
            later.push(0x80 | (DYNAMIC + list.len() - 1 - place) as u8);
        }
        Self { first, later }
    }

    fn without_table(later: Vec<u8>) -> Self {
        let mut first = vec![TABLE_OFF];
        first.extend_from_slice(&later);
        Self { first, later }
    }
}

/// The heads and trailers of the endpoint's answers. Two entries reach the peer's table in the
/// order in which the connection's first head and first trailers are sent.
#[derive(Debug, Default)]
pub struct AnswerFields {
    off: bool,
    announced: bool,
    /// How many insertions had happened when each entry went in; `None` before.
    head: Option<usize>,
    trailers: Option<usize>,
    inserted: usize,
}

impl AnswerFields {
    /// The peer's HEADER_TABLE_SIZE became known, before any answer.
    pub fn table(&mut self, size: u32) {
        self.off = size < DEFAULT_TABLE;
    }

    /// Appends `:status: 200` and the content type.
    pub fn put_head(&mut self, out: &mut Vec<u8>) {
        self.announce(out);
        out.push(0x88);
        let (off, known) = (self.off, self.head);
        match known {
            Some(at) => out.push(self.index(at)),
            None if off => literal(out, 0x00, "content-type", "application/grpc"),
            None => {
                literal(out, 0x40, "content-type", "application/grpc");
                self.head = Some(self.inserted);
                self.inserted += 1;
            }
        }
    }

    /// Appends `grpc-status: 0`.
    pub fn put_trailers(&mut self, out: &mut Vec<u8>) {
        self.announce(out);
        let (off, known) = (self.off, self.trailers);
        match known {
            Some(at) => out.push(self.index(at)),
            None if off => literal(out, 0x00, "grpc-status", "0"),
            None => {
                literal(out, 0x40, "grpc-status", "0");
                self.trailers = Some(self.inserted);
                self.inserted += 1;
            }
        }
    }

    fn announce(&mut self, out: &mut Vec<u8>) {
        if self.off && !self.announced {
            self.announced = true;
            out.push(TABLE_OFF);
        }
    }

    fn index(&self, inserted_at: usize) -> u8 {
        0x80 | (DYNAMIC + self.inserted - 1 - inserted_at) as u8
    }
}

/// A literal with its name spelled out (RFC 7541 §6.2), `pattern` saying whether it is indexed.
fn literal(out: &mut Vec<u8>, pattern: u8, name: &str, value: &str) {
    out.push(pattern);
    string(out, name);
    string(out, value);
}

fn string(out: &mut Vec<u8>, text: &str) {
    integer(out, 0x00, 7, text.len());
    out.extend_from_slice(text.as_bytes());
}

/// RFC 7541 §5.1.
fn integer(out: &mut Vec<u8>, pattern: u8, prefix: u32, value: usize) {
    let most = (1usize << prefix) - 1;
    if value < most {
        out.push(pattern | value as u8);
        return;
    }
    out.push(pattern | most as u8);
    let mut rest = value - most;
    while rest >= 128 {
        out.push(0x80 | (rest & 0x7f) as u8);
        rest >>= 7;
    }
    out.push(rest as u8);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields() -> CallFields {
        CallFields {
            authority: "127.0.0.1:10081".to_owned(),
            path: "/ringway.bench.v1.Bench/Call".to_owned(),
            key: "k".repeat(300),
            function: "f".to_owned(),
            version: "v".to_owned(),
            session: None,
        }
    }

    fn decode(decoder: &mut fluke_hpack::Decoder<'_>, block: &[u8]) -> Vec<(String, String)> {
        let text = |b: Vec<u8>| String::from_utf8(b).unwrap();
        decoder.decode(block).unwrap().into_iter().map(|(n, v)| (text(n), text(v))).collect()
    }

    #[test]
    fn first_and_later_requests_say_the_same_with_and_without_a_table() {
        for table in [4096, 0] {
            let blocks = Blocks::request(&fields(), table);
            let mut decoder = fluke_hpack::Decoder::new();
            let first = decode(&mut decoder, &blocks.first);
            assert_eq!(first[0], (":method".to_owned(), "POST".to_owned()));
            assert_eq!(first[7].1, format!("Bearer {}", "k".repeat(300)));
            for _ in 0..2 {
                assert_eq!(decode(&mut decoder, &blocks.later), first);
            }
        }
        assert_eq!(Blocks::request(&fields(), 4096).later.len(), 10);
    }

    #[test]
    fn answers_decode_in_any_order_of_heads_and_trailers() {
        for table in [4096, 0] {
            for order in ["hththt", "hhtthhtt", "hhhttt"] {
                let mut answers = AnswerFields::default();
                answers.table(table);
                let mut decoder = fluke_hpack::Decoder::new();
                order.chars().for_each(|side| check(&mut answers, &mut decoder, side == 'h'));
            }
        }
    }

    fn check(answers: &mut AnswerFields, decoder: &mut fluke_hpack::Decoder<'_>, head: bool) {
        let mut block = vec![];
        let wanted: &[(&str, &str)] = if head {
            answers.put_head(&mut block);
            &[(":status", "200"), ("content-type", "application/grpc")]
        } else {
            answers.put_trailers(&mut block);
            &[("grpc-status", "0")]
        };
        let got = decode(decoder, &block);
        let got: Vec<_> = got.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        assert_eq!(got, wanted);
    }
}
