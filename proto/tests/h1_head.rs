//! RFC 9112 and design 6: request heads, read whole, in pieces, and refused.

use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore, SeedableRng};
use ringway_proto::date::HttpDate;
use ringway_proto::fields::{Fields, Token};
use ringway_proto::h1::head::{
    Body, HeadFault, HeadLimits, RequestHead, Scan, Version, keeps_alive, parse_request,
};
use ringway_proto::h1::write_fault;

const WORKER: HeadLimits = HeadLimits::WORKER;

fn parse(input: &[u8]) -> Result<Option<(RequestHead, Fields)>, HeadFault> {
    let mut fields = Fields::new();
    Ok(parse_request(input, &mut fields, &WORKER)?.map(|head| (head, fields)))
}

fn whole(input: &str) -> (RequestHead, Fields) {
    parse(input.as_bytes()).expect(input).unwrap_or_else(|| panic!("not whole: {input:?}"))
}

/// The status of a head with these field lines, each with its CRLF, behind a good start.
fn status_of(lines: &str) -> u16 {
    let input = format!("POST /v1/work HTTP/1.1\r\nHost: h\r\n{lines}\r\n");
    match parse(input.as_bytes()) {
        Ok(Some(_)) => 200,
        Ok(None) => panic!("not whole: {input:?}"),
        Err(fault) => fault.status(),
    }
}

const CONNECT: &str = "CONNECT /v1/proxy HTTP/1.1\r\n\
    Host: gateway:10086\r\n\
    User-Agent: Go-http-client/1.1\r\n\
    Authorization: Bearer abc\r\n\
    X-Request-Id: 6f2c0c55-3d6e-4a41-9a3c-0d3a5b6f7a10\r\n\
    \r\n";

#[test]
fn wk_1_connect_in_origin_form_is_a_request() {
    let input = format!("{CONNECT}PRI * HTTP/2.0\r\n\r\n");
    let (head, fields) = whole(&input);
    assert_eq!(head.head_len, CONNECT.len(), "bytes behind the head are left alone");
    assert_eq!((head.version, head.body), (Version::Http11, Body::None));
    assert_eq!((head.method(&fields), head.target(&fields)), (&b"CONNECT"[..], &b"/v1/proxy"[..]));
    assert_eq!(fields.first(Token::Host), Some(&b"gateway:10086"[..]));
    assert_eq!(fields.first(Token::Authorization), Some(&b"Bearer abc"[..]));
    assert_eq!(fields.first(Token::XRequestId), Some(&b"6f2c0c55-3d6e-4a41-9a3c-0d3a5b6f7a10"[..]));
    let names: Vec<_> = fields.iter().map(|field| field.name.to_vec()).collect();
    assert_eq!(names[2..], ["host", "user-agent", "authorization", "x-request-id"].map(Vec::from));
}

#[test]
fn rfc_9112_5_values_lose_only_the_blanks_around_them() {
    let (_, fields) = whole(
        "GET / HTTP/1.1\r\nHOST:h\r\nX-A: \t a \t b\t \r\nX-Empty:\r\nx-blank: \t\r\nx-a:\u{e9}\r\n\r\n",
    );
    let values: Vec<_> = fields.iter().skip(2).map(|field| field.value).collect();
    assert_eq!(values, [&b"h"[..], b"a \t b", b"", b"", "\u{e9}".as_bytes()]);
}

#[test]
fn long_names_are_lower_cased_too() {
    for length in [63, 64, 65, 500] {
        let name = "Ab".repeat(length).split_off(length);
        let (_, fields) = whole(&format!("GET / HTTP/1.1\r\nHost: h\r\n{name}: v\r\n\r\n"));
        assert_eq!(fields.get(3).unwrap().name, name.to_lowercase().as_bytes());
    }
}

#[test]
fn rfc_9112_2_2_a_few_empty_lines_before_a_request_are_skipped() {
    for lines in 0..=4 {
        let input = "\r\n".repeat(lines) + "GET /health HTTP/1.1\r\nHost: h\r\n\r\n";
        let (head, fields) = whole(&input);
        assert_eq!((head.head_len, head.target(&fields)), (input.len(), &b"/health"[..]));
    }
    assert!(matches!(parse(&b"\r\n".repeat(4)), Ok(None)));
    assert_eq!(parse(&b"\r\n".repeat(5)).unwrap_err().status(), 400);
}

#[test]
fn rfc_9110_2_5_a_later_http_1_is_read_as_1_1() {
    for version in ["1.1", "1.2", "1.9"] {
        let (head, _) = whole(&format!("GET / HTTP/{version}\r\nHost: h\r\n\r\n"));
        assert_eq!(head.version, Version::Http11, "{version}");
    }
}

#[test]
fn rfc_9112_3_2_the_four_target_forms() {
    for line in [
        "GET / HTTP/1.1",
        "GET /a?b=c&d HTTP/1.1",
        "GET //x/../y HTTP/1.1",
        "GET http://h/path HTTP/1.1",
        "CONNECT h:443 HTTP/1.1",
        "CONNECT [::1]:443 HTTP/1.1",
        "CONNECT http://h/v1/proxy HTTP/1.1",
        "OPTIONS * HTTP/1.1",
        "GET /caf\u{e9} HTTP/1.1",
        "GET / HTTP/1.0",
    ] {
        whole(&format!("{line}\r\nHost: h\r\n\r\n"));
    }
}

#[test]
fn rfc_9112_3_malformed_request_lines_are_refused() {
    for line in [
        "GET",
        "GET /",
        "GET  / HTTP/1.1",
        "GET /  HTTP/1.1",
        "GET / HTTP/1.1 ",
        "GET /\tHTTP/1.1",
        "GET /a b HTTP/1.1",
        " GET / HTTP/1.1",
        "G(T / HTTP/1.1",
        "GET path HTTP/1.1",
        "GET * HTTP/1.1",
        "OPTIONS ** HTTP/1.1",
        "GET h:443 HTTP/1.1",
        "GET / http/1.1",
        "GET / HTTP/1.10",
        "GET / HTTP/11",
        "GET / XTTP/1.1",
        "GET / ",
    ] {
        let fault = parse(format!("{line}\r\nHost: h\r\n\r\n").as_bytes()).unwrap_err();
        assert_eq!(fault.status(), 400, "{line:?}");
    }
    for version in ["0.9", "2.0", "2.1", "3.0"] {
        let input = format!("GET / HTTP/{version}\r\nHost: h\r\n\r\n");
        assert_eq!(parse(input.as_bytes()).unwrap_err().status(), 505, "{version}");
    }
    assert_eq!(parse(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").unwrap_err().status(), 400);
}

#[test]
fn what_two_parsers_read_differently_is_refused() {
    for lines in [
        "X-A: a\r\n b\r\n",
        "X-A: a\r\n\tb\r\n",
        "X-A : a\r\n",
        "X-A\t: a\r\n",
        "X A: a\r\n",
        ": a\r\n",
        ":path: /other\r\n",
        "X-A\r\n",
        "X-A: a\nX-B: b\r\n",
        "X-A: a\rX-B: b\r\n",
        "X-A: a\r\r\n",
        "X-A: a\0b\r\n",
        "X-A: a\x7f\r\n",
        "X-A: a\x08\r\n",
        "X\0A: a\r\n",
        "X-\u{e9}: a\r\n",
        "Host: other\r\n",
        "Host: h\r\n",
    ] {
        assert_eq!(status_of(lines), 400, "{lines:?}");
    }
}

#[test]
fn rfc_9112_3_2_host_is_there_once_in_http_1_1() {
    assert_eq!(parse(b"GET / HTTP/1.1\r\n\r\n").unwrap_err().status(), 400);
    assert!(parse(b"GET / HTTP/1.0\r\n\r\n").unwrap().is_some());
    assert!(parse(b"GET / HTTP/1.1\r\nHost:\r\n\r\n").unwrap().is_some());
}

#[test]
fn body_framing_has_one_meaning() {
    for (lines, status) in [
        ("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", 400),
        ("Transfer-Encoding: gzip\r\nContent-Length: 5\r\n", 400),
        ("Content-Length: 5\r\nContent-Length: 5\r\n", 400),
        ("Content-Length: 5\r\nContent-Length: 6\r\n", 400),
        ("Content-Length: 5, 5\r\n", 400),
        ("Content-Length: +5\r\n", 400),
        ("Content-Length: -5\r\n", 400),
        ("Content-Length: 0x5\r\n", 400),
        ("Content-Length: 5 5\r\n", 400),
        ("Content-Length:\r\n", 400),
        ("Content-Length: 18446744073709551616\r\n", 400),
        ("Content-Length: 99999999999999999999999999\r\n", 400),
        ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", 400),
        ("Transfer-Encoding: gzip\r\n", 501),
        ("Transfer-Encoding: gzip, chunked\r\n", 501),
        ("Transfer-Encoding: chunked, chunked\r\n", 501),
        ("Transfer-Encoding: identity\r\n", 501),
        ("Transfer-Encoding: xchunked\r\n", 501),
        ("Transfer-Encoding: \"chunked\"\r\n", 501),
        ("Transfer-Encoding: chunked;q=1\r\n", 501),
        ("Transfer-Encoding:\r\n", 501),
        ("Transfer-Encoding : chunked\r\n", 400),
    ] {
        assert_eq!(status_of(lines), status, "{lines:?}");
    }
    let body = |lines: &str| whole(&format!("POST / HTTP/1.1\r\nHost: h\r\n{lines}\r\n")).0.body;
    assert_eq!(body(""), Body::None);
    assert_eq!(body("Content-Length: 0\r\n"), Body::Length(0));
    assert_eq!(body("Content-Length: 18446744073709551615\r\n"), Body::Length(u64::MAX));
    assert_eq!(body("Transfer-Encoding: Chunked\r\n"), Body::Chunked);
    let old = b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n";
    assert_eq!(parse(old).unwrap_err().status(), 400);
}

#[test]
fn connection_cannot_remove_what_routes() {
    for name in [
        "authorization",
        "Authorization",
        "function-id",
        "function-version-id",
        "nvcf-reqid",
        "NVCF-anything",
        "host",
        "cookie",
        "content-length",
    ] {
        assert_eq!(status_of(&format!("Connection: keep-alive, {name}\r\n")), 400, "{name}");
    }
    assert_eq!(status_of("Connection: close, Upgrade, HTTP2-Settings, x-other\r\n"), 200);
}

#[test]
fn rfc_9112_9_3_who_may_send_another_request() {
    for (head, alive) in [
        ("GET / HTTP/1.1\r\nHost: h\r\n\r\n", true),
        ("GET / HTTP/1.1\r\nHost: h\r\nConnection: keep-alive\r\n\r\n", true),
        ("GET / HTTP/1.1\r\nHost: h\r\nConnection: Close\r\n\r\n", false),
        ("GET / HTTP/1.1\r\nHost: h\r\nConnection: x\r\nConnection: y ,\tclose\r\n\r\n", false),
        ("GET / HTTP/1.0\r\nHost: h\r\n\r\n", false),
        ("GET / HTTP/1.0\r\nHost: h\r\nConnection: keep-alive\r\n\r\n", false),
    ] {
        let (parsed, fields) = whole(head);
        assert_eq!(keeps_alive(parsed.version, &fields), alive, "{head:?}");
    }
}

#[test]
fn rfc_9110_10_1_1_expect_is_seen() {
    let expects = |head: &str| {
        let (head, fields) = whole(head);
        head.expects_continue(&fields)
    };
    assert!(expects("POST / HTTP/1.1\r\nHost: h\r\nExpect: 100-Continue\r\n\r\n"));
    assert!(!expects("POST / HTTP/1.0\r\nHost: h\r\nExpect: 100-continue\r\n\r\n"));
    assert!(!expects("POST / HTTP/1.1\r\nHost: h\r\n\r\n"));
}

#[test]
fn limits_hold_to_the_byte_and_the_field() {
    let limits = HeadLimits { max_bytes: CONNECT.len(), max_fields: 4 };
    let mut fields = Fields::new();
    assert!(parse_request(CONNECT.as_bytes(), &mut fields, &limits).unwrap().is_some());
    let short = HeadLimits { max_bytes: CONNECT.len() - 1, ..limits };
    let fault = parse_request(CONNECT.as_bytes(), &mut fields, &short);
    assert_eq!(fault, Err(HeadFault::TooLarge));
    let few = HeadLimits { max_fields: 3, ..limits };
    assert_eq!(parse_request(CONNECT.as_bytes(), &mut fields, &few), Err(HeadFault::TooManyFields));
    let endless = vec![b'a'; WORKER.max_bytes];
    assert_eq!(parse(&endless[1..]).unwrap().map(|_| ()), None);
    assert_eq!(parse(&endless).unwrap_err(), HeadFault::TooLarge);
    assert_eq!(HeadFault::TooLarge.status(), 431);
    assert_eq!(HeadFault::TooManyFields.status(), 431);
    assert_eq!(HeadFault::Timeout.status(), 408);
}

#[test]
fn tls_is_refused_at_its_first_byte() {
    assert_eq!(parse(b"\x16").unwrap_err().status(), 400);
}

/// Feeds `input` byte by byte; the result, and how many bytes it took to know it.
fn trickle(input: &[u8]) -> (Result<Option<RequestHead>, HeadFault>, usize) {
    let (mut scan, mut fields) = (Scan::default(), Fields::new());
    for length in 0..=input.len() {
        match scan.parse_request(&input[..length], &mut fields, &WORKER) {
            Ok(None) => {
                assert!(fields.is_empty(), "fields of half a head");
                // Started over at each byte it says the same.
                assert_eq!(parse_request(&input[..length], &mut fields, &WORKER), Ok(None));
            }
            known => return (known, length),
        }
    }
    (Ok(None), input.len())
}

#[test]
fn heads_read_alike_however_they_are_cut() {
    let bad_ends = ["\r\n x\r\n\r\n", "\rx\r\n\r\n", "\n\r\n", "\0", "\r\nbad\r\n\r\n"];
    let mut inputs: Vec<String> =
        bad_ends.iter().map(|end| CONNECT.replacen("\r\n", end, 2)).collect();
    inputs.extend([CONNECT.to_owned(), format!("\r\n{CONNECT}"), format!("{CONNECT}rest\0")]);
    inputs.push("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: x\r\n\r\n".to_owned());
    for input in inputs {
        let mut fields = Fields::new();
        let at_once = parse_request(input.as_bytes(), &mut fields, &WORKER);
        let (piecewise, known_at) = trickle(input.as_bytes());
        assert_eq!(piecewise, at_once, "{input:?}");
        if let Ok(Some(head)) = at_once {
            assert_eq!(head.head_len, known_at);
        }
        // In two pieces, cut anywhere.
        for cut in 0..known_at {
            let mut scan = Scan::default();
            assert_eq!(
                scan.parse_request(&input.as_bytes()[..cut], &mut fields, &WORKER),
                Ok(None)
            );
            assert_eq!(scan.parse_request(input.as_bytes(), &mut fields, &WORKER), at_once);
        }
    }
}

#[test]
fn a_scan_is_ready_for_the_next_head() {
    let twice = format!("{CONNECT}{CONNECT}");
    let (mut scan, mut fields) = (Scan::default(), Fields::new());
    let first = scan.parse_request(twice.as_bytes(), &mut fields, &WORKER).unwrap().unwrap();
    let rest = &twice.as_bytes()[first.head_len..];
    let second = scan.parse_request(rest, &mut fields, &WORKER).unwrap().unwrap();
    assert_eq!(first, second);
}

#[test]
fn random_bytes_never_panic_and_read_alike_in_pieces() {
    const PARTS: [&[u8]; 22] = [
        b"GET ",
        b"CONNECT ",
        b"/v1/proxy",
        b" HTTP/1.1",
        b"\r\n",
        b"\r\n\r\n",
        b"\r",
        b"\n",
        b":",
        b" ",
        b"\t",
        b"Host: h\r\n",
        b"Content-Length: ",
        b"Transfer-Encoding: chunked\r\n",
        b"5",
        b"Connection: close\r\n",
        b"\0",
        b"\xff",
        b"*",
        b"http://h",
        b",",
        b"nvcf-",
    ];
    let mut source = ChaCha8Rng::seed_from_u64(0x4831);
    let mut accepted = 0;
    for round in 0..20_000 {
        let mut input = Vec::new();
        if round % 2 == 0 {
            input.extend_from_slice(b"POST / HTTP/1.1\r\nHost: h\r\n");
        }
        for _ in 0..source.next_u32() % 12 {
            match source.next_u32() as usize % (PARTS.len() + 2) {
                at if at < PARTS.len() => input.extend_from_slice(PARTS[at]),
                _ => input.extend_from_slice(&source.next_u32().to_le_bytes()),
            }
        }
        let mut fields = Fields::new();
        let at_once = parse_request(&input, &mut fields, &WORKER);
        assert_eq!(trickle(&input).0, at_once, "{input:?}");
        accepted += usize::from(matches!(at_once, Ok(Some(_))));
    }
    assert!(accepted > 100, "the generator makes too few good heads: {accepted}");
}

#[test]
fn faults_are_answered_and_end_the_connection() {
    let mut out = Vec::new();
    write_fault(HeadFault::TooLarge, HttpDate::from_unix(0), &mut out);
    assert_eq!(
        String::from_utf8(out).unwrap(),
        "HTTP/1.1 431 Request Header Fields Too Large\r\n\
         date: Thu, 01 Jan 1970 00:00:00 GMT\r\n\
         content-type: text/plain; charset=utf-8\r\n\
         x-content-type-options: nosniff\r\n\
         content-length: 17\r\n\
         connection: close\r\n\
         \r\n\
         head is too large"
    );
}
