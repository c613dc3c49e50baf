//! What the HTTP/1 tests share: a connection fed in pieces, and what it said.

#![expect(unreachable_pub, reason = "each test file uses its part")]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use ringway_proto::fields::{Field, Fields};
use ringway_proto::h1::{Conn, Event, Fault, HeadKind, Limits, Role};

/// An event, with its list and its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    Head { kind: HeadKind, end: bool, upgrade: bool, list: Vec<(String, String)> },
    Data { bytes: Vec<u8>, end: bool },
    Trailers(Vec<(String, String)>),
    End,
    Fault(Fault),
}

/// A list as text.
pub fn list_of(fields: &Fields) -> Vec<(String, String)> {
    let text = |bytes: &[u8]| bytes.iter().map(|&b| char::from(b)).collect::<String>();
    fields.iter().map(|field| (text(field.name), text(field.value))).collect()
}

/// A list from pairs.
pub fn fields(pairs: &[(&str, &str)]) -> Fields {
    let mut list = Fields::new();
    for (name, value) in pairs {
        list.push(Field::new(name.as_bytes(), value.as_bytes()));
    }
    list
}

/// A fresh connection; as a client it has asked for `GET /`.
pub fn conn(role: Role) -> Conn {
    let mut conn = Conn::new(role, Limits::default());
    if role == Role::Client {
        ask(&mut conn, &GET, true);
    }
    conn
}

pub const GET: [(&str, &str); 3] = [(":method", "GET"), (":path", "/"), (":authority", "a")];

/// Sends a request head, and gives its bytes.
pub fn ask(conn: &mut Conn, pairs: &[(&str, &str)], end: bool) -> String {
    let mut out = Vec::new();
    conn.request(fields(pairs).iter(), end, &mut out).unwrap();
    String::from_utf8(out).unwrap()
}

/// Sends a response head, and gives its bytes.
pub fn answer(conn: &mut Conn, pairs: &[(&str, &str)], end: bool) -> String {
    let mut out = Vec::new();
    conn.response(fields(pairs).iter(), end, &mut out).unwrap();
    String::from_utf8(out).unwrap()
}

/// Feeds `input` in pieces that end at `cuts`, and what is left of it.
///
/// Pieces of data that only a cut parted are joined, so that cuts make no difference.
pub fn feed_cut<'a>(conn: &mut Conn, input: &'a [u8], cuts: &[usize]) -> (Vec<Seen>, &'a [u8]) {
    let mut seen = Vec::new();
    let mut list = Fields::new();
    let (mut pos, mut shown) = (0, cuts.iter().copied().chain([input.len()]));
    let mut end = 0;
    loop {
        match conn.next(&input[..end], &mut pos, &mut list) {
            Err(fault) => {
                assert_eq!(conn.next(&input[..end], &mut pos, &mut list), Err(fault));
                seen.push(Seen::Fault(fault));
                return (seen, &input[pos.min(input.len())..]);
            }
            Ok(Event::More) => match shown.next() {
                Some(next) => end = end.max(next),
                None => return (seen, &input[pos..]),
            },
            Ok(Event::Head { kind, end_stream, upgrade }) => {
                let list = list_of(&list);
                seen.push(Seen::Head { kind, end: end_stream, upgrade, list });
            }
            Ok(Event::Data { start, len, end_stream }) => {
                assert!(len > 0 && start + len == pos && pos <= end);
                push_data(&mut seen, &input[start..start + len], end_stream);
            }
            Ok(Event::Trailers) => seen.push(Seen::Trailers(list_of(&list))),
            Ok(Event::End) => seen.push(Seen::End),
        }
    }
}

fn push_data(seen: &mut Vec<Seen>, new: &[u8], new_end: bool) {
    if let Some(Seen::Data { bytes, end }) = seen.last_mut() {
        assert!(!*end, "data behind the end");
        bytes.extend_from_slice(new);
        *end = new_end;
    } else {
        seen.push(Seen::Data { bytes: new.to_vec(), end: new_end });
    }
}

/// Feeds `input` to a fresh connection whole, in single bytes and cut in two at every place: all
/// must read alike. What was said, and how much of the input was left.
pub fn read(fresh: impl Fn() -> Conn, input: impl AsRef<[u8]>) -> (Vec<Seen>, usize) {
    let input = input.as_ref();
    let whole = feed_cut(&mut fresh(), input, &[]);
    let bytes: Vec<usize> = (1..input.len()).collect();
    let same = |cuts: &[usize]| {
        let cut = feed_cut(&mut fresh(), input, cuts);
        assert_eq!(cut.0, whole.0, "cut at {cuts:?}: {}", input.escape_ascii());
        // Behind a fault nothing is read any more.
        if !matches!(whole.0.last(), Some(Seen::Fault(_))) {
            assert_eq!(cut.1, whole.1, "cut at {cuts:?}: {}", input.escape_ascii());
        }
    };
    same(&bytes);
    for at in 0..input.len().min(4096) {
        same(&[at]);
    }
    (whole.0, whole.1.len())
}

/// The fault that reading `input` ends with.
pub fn fault_of(fresh: impl Fn() -> Conn, input: impl AsRef<[u8]>) -> Option<Fault> {
    match read(fresh, input).0.pop() {
        Some(Seen::Fault(fault)) => Some(fault),
        _ => None,
    }
}

pub fn data(bytes: &str, end: bool) -> Seen {
    Seen::Data { bytes: bytes.as_bytes().to_vec(), end }
}

pub fn head(kind: HeadKind, end: bool, pairs: &[(&str, &str)]) -> Seen {
    let list = pairs.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
    Seen::Head { kind, end, upgrade: false, list }
}
