//! Routing fields and ids, against plainer readers of the same text.

use super::take;
use ringway_proto::fields::{Field, Fields, Token};
use ringway_proto::id::{Home, Node, RequestIds, TokenMint, parse_request_id};
use ringway_proto::route::{self, Routed};
use uuid::Uuid;

/// The names that a byte of input stands for.
const NAMES: [&str; 16] = [
    "sec-websocket-protocol",
    "cookie",
    "authorization",
    "function-id",
    "function-version-id",
    "nvcf-reqid",
    ":method",
    ":path",
    "origin",
    "access-control-request-method",
    "access-control-request-headers",
    "content-type",
    "host",
    "x-other",
    "sec-websocket-protocol",
    "cookie",
];

/// What was decided, so that it can be compared.
fn decision(fields: &Fields) -> String {
    format!("{:?} {:?}", route::read(fields), route::reply_style(fields))
}

/// A list: a byte for each name, then the value up to a line feed.
pub fn route(mut input: &[u8]) {
    let mut fields = Fields::new();
    while !input.is_empty() {
        let name = NAMES[take(&mut input) as usize % NAMES.len()];
        let end = input.iter().position(|&b| b == b'\n').unwrap_or(input.len());
        fields.push(Field::new(name.as_bytes(), &input[..end]));
        input = input.get(end + 1..).unwrap_or_default();
    }
    let decided = decision(&fields);
    let mut more = fields.clone();
    more.push(Field::new(b"x-more", b"function-id.f, nvcf-request-id=x"));
    assert_eq!(decision(&more), decided, "a field that nobody reads");
    assert_eq!(decision(&crumbled(&fields)), decided, "RFC 9113 8.2.3");
    let Routed::Invoke(head) = route::read(&fields) else { return };
    assert!(!head.credential.is_empty() && !head.function.is_empty());
    assert_eq!(head.function, plain(&fields, "function-id"));
    assert_eq!(head.version, plain(&fields, "function-version-id"));
    let authorization = plain(&fields, "authorization");
    let bare = authorization.strip_prefix(b"Bearer ").unwrap_or(authorization);
    assert_eq!(head.credential, bare);
    let asked = plain(&fields, "nvcf-reqid");
    if !asked.is_empty() {
        assert_eq!(head.request_id, parse_request_id(asked), "CL-3: no fall-through");
    }
}

/// The same list with each cookie in a field of its own.
fn crumbled(fields: &Fields) -> Fields {
    let mut crumbs = Fields::new();
    for field in fields.iter() {
        if field.token == Token::Cookie {
            field.value.split(|&b| b == b';').for_each(|c| crumbs.push(Field::new(b"cookie", c)));
        } else {
            crumbs.push(field);
        }
    }
    crumbs
}

/// The field of this name if it is not empty, else the WebSocket pair (CL-1).
fn plain<'a>(fields: &'a Fields, name: &str) -> &'a [u8] {
    let of = |wanted: &'static str| fields.iter().filter(move |f| f.name == wanted.as_bytes());
    let own = fields.iter().find(|field| field.name == name.as_bytes());
    if let Some(own) = own.filter(|own| !own.value.is_empty()) {
        return own.value;
    }
    for line in of("sec-websocket-protocol") {
        for part in line.value.split(|&b| b == b',') {
            let part = if part.first() == Some(&b' ') { &part[1..] } else { part };
            let mut halves = part.splitn(2, |&b| b == b'.');
            let (key, value) = (halves.next().unwrap_or_default(), halves.next());
            if let (true, Some(value)) = (key.eq_ignore_ascii_case(name.as_bytes()), value) {
                return value;
            }
        }
    }
    b""
}

/// Request ids as the `uuid` crate reads them, where the contract agrees with it; tokens.
pub fn id(input: &[u8]) {
    let read = parse_request_id(input);
    if matches!(input.len(), 32 | 36) {
        assert_eq!(read, Uuid::try_parse_ascii(input).ok());
    }
    match input {
        // CL-2: the two at the ends are dropped unseen.
        [_, inner @ .., _] if inner.len() == 36 => assert_eq!(read, parse_request_id(inner)),
        _ => {}
    }
    if let Some(id) = read {
        for text in [id.to_string(), id.urn().to_string(), id.simple().to_string()] {
            assert_eq!(parse_request_id(text.as_bytes()), Some(id));
        }
    }
    let mut seed = [0; 64];
    let len = input.len().min(64);
    seed[..len].copy_from_slice(&input[..len]);
    minted(&seed, input);
}

fn minted(seed: &[u8; 64], input: &[u8]) {
    let word = |at: usize| u32::from_be_bytes([seed[at], seed[at + 1], seed[at + 2], seed[at + 3]]);
    let (core, slot) = (word(0) as u16 % 1024, word(4) % (1 << 24));
    let node = Node::new(word(8) as u16 % 4096, word(12) as u16).expect("twelve bits");
    let ids = RequestIds::new(node, core);
    let id = ids.mint(*seed.first_chunk().expect("64 are more than 16"));
    assert_eq!(ids.home_of(id), Home::Core(core));
    let mint = TokenMint::new([7; 16], node);
    let token = mint.mint(core, slot, word(16), seed);
    let address = mint.read(token.as_bytes()).expect("our own token");
    assert_eq!((address.core, address.slot, address.generation), (core, slot, word(16)));
    assert!(token.matches(token.as_bytes()));
    if input != token.as_bytes() {
        assert!(!token.matches(input));
        // What is read as ours is nobody else's text: it has our alphabet and length.
        if mint.read(input).is_ok() {
            assert!(input.len() == 64 && input.iter().all(u8::is_ascii_alphanumeric));
        }
    }
    let at = word(20) as usize % 64;
    let mut other = *token.as_bytes();
    other[at] = if other[at] == b'a' { b'b' } else { b'a' };
    assert!(!token.matches(&other) && mint.read(&other) != Ok(address), "one character is another");
}
