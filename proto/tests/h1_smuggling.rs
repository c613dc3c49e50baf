//! Requests and responses that two parsers would read in two ways: none gets through, and what
//! does get through is written so that there is one way to read it.

#[expect(dead_code, reason = "each test file uses its part")]
mod h1_script;

#[expect(dead_code, unreachable_pub, reason = "another crate has it as its root")]
#[path = "../fuzz/src/lib.rs"]
mod checks;

use h1_script::{Seen, answer, conn, fault_of, feed_cut, fields, list_of, read};
use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore, SeedableRng};
use ringway_proto::fields::{Fields, Token};
use ringway_proto::h1::{Conn, Event, Fault, Limits, Role, connection_names};

fn server() -> Conn {
    conn(Role::Server)
}

fn client() -> Conn {
    conn(Role::Client)
}

/// Each a field line or more of a POST whose body is `5\r\nhello\r\n0\r\n\r\n`.
const AMBIGUOUS: [(&str, &str); 47] = [
    ("cl.te", "Content-Length: 15\r\nTransfer-Encoding: chunked\r\n"),
    ("te.cl", "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n"),
    ("cl.0 with te", "Content-Length: 0\r\nTransfer-Encoding: chunked\r\n"),
    ("te.te", "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n"),
    ("te.te identity", "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n"),
    ("te list", "Transfer-Encoding: chunked, identity\r\n"),
    ("te list twice", "Transfer-Encoding: chunked, chunked\r\n"),
    ("te gzip", "Transfer-Encoding: gzip, chunked\r\n"),
    ("te not last", "Transfer-Encoding: chunked, gzip\r\n"),
    ("te spelt", "Transfer-Encoding: xchunked\r\n"),
    ("te quoted", "Transfer-Encoding: \"chunked\"\r\n"),
    ("te parameter", "Transfer-Encoding: chunked;q=1\r\n"),
    ("te comma", "Transfer-Encoding: chunked,\r\n"),
    ("te first comma", "Transfer-Encoding: ,chunked\r\n"),
    ("te empty", "Transfer-Encoding:\r\n"),
    ("te vt", "Transfer-Encoding: \x0bchunked\r\n"),
    ("te ff", "Transfer-Encoding: chunked\x0c\r\n"),
    ("te nul", "Transfer-Encoding: chunked\0\r\n"),
    ("te del", "Transfer-Encoding: chunked\x7f\r\n"),
    ("te nbsp", "Transfer-Encoding: \u{a0}chunked\r\n"),
    ("te space before colon", "Transfer-Encoding : chunked\r\n"),
    ("te tab before colon", "Transfer-Encoding\t: chunked\r\n"),
    ("te folded", "Transfer-Encoding:\r\n chunked\r\n"),
    ("te hidden by a fold", "X: y\r\n Transfer-Encoding: chunked\r\n"),
    ("te hidden by a tab", "X: y\r\n\tTransfer-Encoding: chunked\r\n"),
    ("te bare cr", "X: y\rTransfer-Encoding: chunked\r\n"),
    ("te bare lf", "X: y\nTransfer-Encoding: chunked\r\n"),
    ("te leading space", " Transfer-Encoding: chunked\r\n"),
    ("cr cr lf", "X: y\r\r\nTransfer-Encoding: chunked\r\n"),
    ("lf cr", "X: y\n\rTransfer-Encoding: chunked\r\n"),
    ("cl.cl", "Content-Length: 15\r\nContent-Length: 0\r\n"),
    ("cl.cl same", "Content-Length: 15\r\nContent-Length: 15\r\n"),
    ("cl list", "Content-Length: 15, 15\r\n"),
    ("cl plus", "Content-Length: +15\r\n"),
    ("cl minus", "Content-Length: -15\r\n"),
    ("cl hex", "Content-Length: 0xf\r\n"),
    ("cl space", "Content-Length: 1 5\r\n"),
    ("cl empty", "Content-Length:\r\n"),
    ("cl dot", "Content-Length: 15.0\r\n"),
    ("cl underscore", "Content-Length: 1_5\r\n"),
    ("cl over 64 bits", "Content-Length: 18446744073709551616\r\n"),
    ("cl far over", "Content-Length: 99999999999999999999999999\r\n"),
    ("cl space before colon", "Content-Length : 15\r\n"),
    ("cl folded", "Content-Length:\r\n 15\r\n"),
    ("no colon", "Content-Length 15\r\n"),
    ("no name", ": 15\r\n"),
    ("name with a slash", "Content/Length: 15\r\n"),
];

#[test]
fn no_request_with_two_readings_gets_through() {
    for (name, line) in AMBIGUOUS {
        for at in [format!("Host: a\r\n{line}"), format!("{line}Host: a\r\n")] {
            let request = format!(
                "POST / HTTP/1.1\r\n{at}\r\n5\r\nhello\r\n0\r\n\r\nGET /admin HTTP/1.1\r\n\r\n"
            );
            let (seen, _) = read(server, &request);
            let [Seen::Fault(Fault::Broken(fault))] = seen[..] else { panic!("{name}: {seen:?}") };
            assert!(matches!(fault.status(), 400 | 501), "{name}");
        }
    }
}

#[test]
fn no_response_with_two_readings_gets_through() {
    // A worker may repeat its length; the client never sees that.
    let forgiven = ["cl.cl same", "cl list"];
    for (name, line) in AMBIGUOUS.into_iter().filter(|(name, _)| !forgiven.contains(name)) {
        let response = format!("HTTP/1.1 200 OK\r\nX-A: a\r\n{line}\r\n5\r\nhello\r\n0\r\n\r\n");
        let (seen, _) = read(client, &response);
        assert!(matches!(seen[..], [Seen::Fault(Fault::Broken(_))]), "{name}: {seen:?}");
    }
}

#[test]
fn two_faults_are_no_better_than_one() {
    for (one, first) in AMBIGUOUS {
        for (other, second) in AMBIGUOUS {
            let request = format!("POST / HTTP/1.1\r\nHost: a\r\n{first}{second}\r\n");
            let (seen, _) = feed_cut(&mut server(), request.as_bytes(), &[]);
            assert!(matches!(seen[..], [Seen::Fault(_)]), "{one} and {other}");
        }
    }
}

#[test]
fn request_lines_and_hosts_have_one_reading() {
    for head in [
        "GET  / HTTP/1.1\r\nHost: a",
        "GET / HTTP/1.1 \r\nHost: a",
        "GET /  HTTP/1.1\r\nHost: a",
        "GET\t/ HTTP/1.1\r\nHost: a",
        " GET / HTTP/1.1\r\nHost: a",
        "GET / a HTTP/1.1\r\nHost: a",
        "GET /\tHTTP/1.1\r\nHost: a",
        "GET / HTTP/1.1\nHost: a",
        "GET / HTTP/1.1\rHost: a",
        "GET /\r\nHost: a",
        "GET / HTTP/2.0\r\nHost: a",
        "GET / HTTP/0.9\r\nHost: a",
        "GET / HTTP/11\r\nHost: a",
        "GET / http/1.1\r\nHost: a",
        "GET / HTTP/1.10\r\nHost: a",
        "GET / HTTP/01.1\r\nHost: a",
        "G\0T / HTTP/1.1\r\nHost: a",
        "GET /\0 HTTP/1.1\r\nHost: a",
        "\r\n\r\n\r\n\r\n\r\nGET / HTTP/1.1\r\nHost: a",
        "\r\n\nGET / HTTP/1.1\r\nHost: a",
        "\r\n GET / HTTP/1.1\r\nHost: a",
        "GET / HTTP/1.1",
        "GET / HTTP/1.1\r\nHost: a\r\nHost: a",
        "GET / HTTP/1.1\r\nHost: a\r\nHost: b",
        "GET / HTTP/1.1\r\nHost: a b",
        "GET / HTTP/1.1\r\nHost: a, b",
        "GET / HTTP/1.1\r\nHost: u@a",
        "GET / HTTP/1.1\r\nHost: a/b",
        "GET / HTTP/1.1\r\nHost: a#",
        "GET http://b/ HTTP/1.1",
        "GET http://b/ HTTP/1.1\r\nHost: a\r\nHost: b",
        "GET http://b/ HTTP/1.1\r\nHost: u@a",
        "GET http://a@b/ HTTP/1.1\r\nHost: a",
        "GET http://a b/ HTTP/1.1\r\nHost: a",
        "GET http://a\\b/ HTTP/1.1\r\nHost: a",
        "GET / HTTP/1.1\r\nHost: a\r\nConnection: host",
        "GET / HTTP/1.1\r\nHost: a\r\nConnection: x, Authorization",
        "GET / HTTP/1.1\r\nHost: a\r\nConnection: nvcf-reqid",
    ] {
        assert!(
            matches!(fault_of(server, format!("{head}\r\n\r\n")), Some(Fault::Broken(_))),
            "{head:?}"
        );
    }
    let options = format!("GET / HTTP/1.1\r\nHost: a\r\nConnection: {}\r\n\r\n", "a,".repeat(32));
    assert!(fault_of(server, options).is_some(), "33 options");
}

#[test]
fn chunks_have_one_reading() {
    let start = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    for body in [
        "5\nhello\r\n0\r\n\r\n",
        "5\r\nhello\n0\r\n\r\n",
        "5\r\nhello\r\n0\n\r\n",
        "5\r\nhello\r\n0\r\n\n",
        "5\r\nhello\rX0\r\n\r\n",
        "5\r\nhelloX\n0\r\n\r\n",
        "5\r\nhello0\r\n\r\n",
        "5\r\nhello\r\r\n0\r\n\r\n",
        "5;a\nb\r\nhello\r\n0\r\n\r\n",
        "5;a\rb\r\nhello\r\n0\r\n\r\n",
        "5;\0\r\nhello\r\n0\r\n\r\n",
        "5\0\r\nhello\r\n0\r\n\r\n",
        "0x5\r\nhello\r\n0\r\n\r\n",
        "+5\r\nhello\r\n0\r\n\r\n",
        "-5\r\nhello\r\n0\r\n\r\n",
        " 5\r\nhello\r\n0\r\n\r\n",
        "5_\r\nhello\r\n0\r\n\r\n",
        "\r\n5\r\nhello\r\n0\r\n\r\n",
        "10000000000000005\r\nhello\r\n0\r\n\r\n",
        "00000000000000005\r\nhello\r\n0\r\n\r\n",
        "4\r\nhello\r\n0\r\n\r\n",
        "5\r\nhello\r\n0\r\nA: b\nC: d\r\n\r\n",
        "5\r\nhello\r\n0\r\n A: b\r\n\r\n",
        "5\r\nhello\r\n0\r\nA : b\r\n\r\n",
        "g\r\n",
        ";\r\n",
        "\u{ff15}\r\nhello\r\n0\r\n\r\n",
    ] {
        assert!(
            matches!(fault_of(server, format!("{start}{body}")), Some(Fault::Broken(_))),
            "{body:?}"
        );
    }
    // A chunk that says more than came: what follows is its content, never a request.
    let (seen, left) = read(
        server,
        format!("{start}ff\r\nhello\r\n0\r\n\r\nGET /admin HTTP/1.1\r\nHost: a\r\n\r\n"),
    );
    assert!(matches!(seen[..], [Seen::Head { .. }, Seen::Data { end: false, .. }]) && left == 0);
}

#[test]
fn what_a_refused_length_would_hide_is_not_read() {
    // CL.0: the body of a GET is its body, whoever thinks that a GET has none.
    let hidden = "GET /admin HTTP/1.1\r\nHost: a\r\n\r\n";
    let request =
        format!("GET / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{hidden}", hidden.len());
    let (seen, left) = read(server, request);
    let body = Seen::Data { bytes: hidden.into(), end: true };
    assert!(matches!(&seen[..], [Seen::Head { end: false, .. }, data] if *data == body));
    assert_eq!(left, 0);
    // Without a length it is the next request, and waits until this one is answered.
    let mut conn = server();
    let request = format!("GET / HTTP/1.1\r\nHost: a\r\n\r\n{hidden}");
    let (seen, left) = feed_cut(&mut conn, request.as_bytes(), &[]);
    assert_eq!((seen.len(), left), (1, hidden.as_bytes()));
    answer(&mut conn, &[(":status", "200")], true);
    assert!(conn.next_message());
    assert_eq!(feed_cut(&mut conn, left, &[]).0.len(), 1);
}

#[test]
fn values_cannot_end_a_line_of_what_is_written() {
    let list = fields(&[
        (":status", "200"),
        ("a", "b\r\nset-cookie: x"),
        ("c\r\nd", "e"),
        ("X", "y"),
        ("f", "g\0"),
        (":h", "i"),
        ("j", "k"),
    ]);
    let mut conn = server();
    feed_cut(&mut conn, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", &[]);
    let mut out = Vec::new();
    conn.response(list.iter(), true, &mut out).unwrap();
    assert_eq!(out, b"HTTP/1.1 200 OK\r\nj: k\r\ncontent-length: 0\r\n\r\n");
    let mut conn = Conn::new(Role::Client, Limits::default());
    let list = fields(&[(":method", "GET"), (":path", "/"), (":authority", "a\r\nb: c")]);
    assert_eq!(conn.request(list.iter(), true, &mut out), Err(Fault::Unwritable));
}

struct Dice(ChaCha8Rng);

impl Dice {
    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.0.next_u32() as usize % of.len()]
    }
}

const REQUESTS: [&str; 8] = [
    "GET / HTTP/1.1\r\n",
    "POST /a?b=c HTTP/1.1\r\n",
    "HEAD http://a/x HTTP/1.1\r\n",
    "PUT / HTTP/1.0\r\n",
    "OPTIONS * HTTP/1.1\r\n",
    "GET / HTTP/1.1 \r\n",
    "CONNECT a:1 HTTP/1.1\r\n",
    "\r\nGET http://b?c HTTP/1.1\r\n",
];
const RESPONSES: [&str; 8] = [
    "HTTP/1.1 200 OK\r\n",
    "HTTP/1.1 204 \r\n",
    "HTTP/1.0 200 OK\r\n",
    "HTTP/1.1 103 x\r\n\r\nHTTP/1.1 201\r\n",
    "HTTP/1.1 304 x\r\n",
    "HTTP/1.1 101 x\r\n",
    "HTTP/1.1 999 x\r\n",
    "HTTP/1.1 500 \u{e4}\r\n",
];
const FIELDS: [&str; 24] = [
    "",
    "A: b\r\n",
    "B:c\r\n",
    "C: \t d e \t\r\n",
    "Empty:\r\n",
    "Connection: close\r\n",
    "Connection: keep-alive, a\r\n",
    "TE: trailers\r\n",
    "TE: gzip\r\n",
    "Upgrade: websocket\r\nConnection: upgrade\r\n",
    "Upgrade: h2c\r\nConnection: upgrade\r\n",
    "Expect: 100-continue\r\n",
    "Trailer: x\r\n",
    "Keep-Alive: 3\r\n",
    "Cookie: a=b; c=d\r\n",
    "Proxy-Connection: x\r\n",
    "X: \u{e4}\r\n",
    "content-length: 5\r\n",
    "Transfer-Encoding: chunked\r\n",
    "Content-Length: 3\r\n",
    "bad line\r\n",
    " fold\r\n",
    "Content-Length: 0\r\n",
    "x: y\0\r\n",
];
const BODIES: [&str; 8] = [
    "",
    "hello",
    "5\r\nhello\r\n0\r\n\r\n",
    "3;x\r\nabc\r\n2\r\nde\r\n0\r\nT: v\r\nHost: x\r\n\r\n",
    "0\r\n\r\n",
    "abc",
    "5\r\nhello\r\n",
    "5\r\nhelloX\r\n",
];

/// A message of parts that are mostly right.
fn likely(dice: &mut Dice, role: Role) -> Vec<u8> {
    let mut text = dice.pick(if role == Role::Server { &REQUESTS } else { &RESPONSES }).to_owned();
    if role == Role::Server && dice.pick(&[0, 0, 0, 0, 1]) == 0 {
        text += "Host: a\r\n";
    }
    let framing = dice.pick(&["", "", "Content-Length: 5\r\n", "Transfer-Encoding: chunked\r\n"]);
    let body = match framing {
        "" => dice.pick(&BODIES),
        "Content-Length: 5\r\n" => "hello",
        _ => dice.pick(&BODIES[2..5]),
    };
    text += dice.pick(&FIELDS[..17]);
    text += dice.pick(&FIELDS);
    text += framing;
    text += "\r\n";
    text += body;
    let mut bytes = text.into_bytes();
    if dice.pick(&[0, 0, 0, 1]) == 1 {
        let at = dice.0.next_u32() as usize % bytes.len();
        bytes[at] = dice.pick(b"\r\n\0 \t:;,a5\x80");
    }
    bytes
}

#[test]
fn what_is_relayed_is_read_as_it_was_meant() {
    let mut dice = Dice(ChaCha8Rng::seed_from_u64(0x11e1));
    let mut relayed = [0; 2];
    for round in 0..20_000 {
        let role = [Role::Server, Role::Client][round % 2];
        let input = likely(&mut dice, role);
        relayed[round % 2] += usize::from(checks::h1::relay(role, &input));
    }
    assert!(relayed.iter().all(|&n| n > 2_000), "{relayed:?} is too few to mean anything");
}

#[test]
fn random_messages_read_alike_however_they_are_cut() {
    let mut dice = Dice(ChaCha8Rng::seed_from_u64(0xc07));
    for round in 0..2_000 {
        let role = [Role::Server, Role::Client][round % 2];
        let input = likely(&mut dice, role);
        read(|| conn(role), input);
    }
}

/// What httparse makes of a head, if it is one.
fn oracle(role: Role, input: &[u8]) -> Option<(Vec<(String, String)>, usize)> {
    let mut lines = [httparse::EMPTY_HEADER; 64];
    let (read, headers) = match role {
        Role::Server => {
            let mut request = httparse::Request::new(&mut lines);
            let read = request.parse(input).ok()?;
            (read, request.headers.to_vec())
        }
        Role::Client => {
            let mut response = httparse::Response::new(&mut lines);
            let read = response.parse(input).ok()?;
            (read, response.headers.to_vec())
        }
    };
    let httparse::Status::Complete(len) = read else { return None };
    let text = |bytes: &[u8]| bytes.iter().map(|&b| char::from(b)).collect::<String>();
    let list = headers.iter().map(|h| (h.name.to_ascii_lowercase(), text(h.value)));
    let mut list: Vec<_> = list.collect();
    list.sort();
    Some((list, len))
}

#[test]
fn heads_that_get_through_are_httparses_too() {
    let mut dice = Dice(ChaCha8Rng::seed_from_u64(0x477));
    let mut agreed = 0;
    for round in 0..20_000 {
        let role = [Role::Server, Role::Client][round % 2];
        let input = likely(&mut dice, role);
        let mut conn = conn(role);
        let (mut pos, mut list) = (0, Fields::new());
        let Ok(Event::Head { .. }) = conn.next(&input, &mut pos, &mut list) else { continue };
        // httparse knows no version of HTTP/1 behind 1.1 (RFC 9110 §2.5).
        if input.windows(8).any(|text| matches!(text, [.., b'/', b'1', b'.', b'2'..=b'9'])) {
            continue;
        }
        // httparse wants targets as UTF-8; this parser passes octets over 127 on.
        if role == Role::Server && list.first(Token::Path).is_some_and(|path| !path.is_ascii()) {
            continue;
        }
        let (theirs, len) = oracle(role, &input)
            .unwrap_or_else(|| panic!("httparse refuses {}", input.escape_ascii()));
        let ours = list_of(&list)
            .into_iter()
            .filter(|(name, _)| !name.starts_with(':') || name == ":authority");
        let mut ours: Vec<_> =
            ours.map(|(name, value)| (name.replace(":authority", "host"), value)).collect();
        ours.sort();
        // If the target has the absolute form its authority counts, whatever Host says (RFC 9112
        // §3.2.2).
        let mut theirs = theirs;
        let target = input.windows(8).position(|window| window == b" http://");
        if let Some(target) = target.filter(|_| role == Role::Server) {
            let rest = input[target + 8..].iter().map(|&b| char::from(b));
            let meant: String = rest.take_while(|c| !"/?# ".contains(*c)).collect();
            let host = ours.iter().find(|(name, _)| name == "host").map(|(_, value)| &**value);
            assert_eq!(host, Some(&*meant), "{}", input.escape_ascii());
            ours.retain(|(name, _)| name != "host");
            theirs.retain(|(name, _)| name != "host");
        }
        assert_eq!((ours, pos), (theirs, len), "{}", input.escape_ascii());
        agreed += 1;
    }
    assert!(agreed > 5_000, "{agreed}");
}

#[test]
fn fields_that_connection_names_are_known() {
    let list = fields(&[("connection", "X-A, close"), ("a", "b"), ("connection", " x-b ,")]);
    for (name, named) in [("x-a", true), ("X-B", true), ("close", true), ("a", false), ("x", false)]
    {
        assert_eq!(connection_names(&list, name.as_bytes()), named, "{name}");
    }
}
