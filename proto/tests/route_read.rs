//! Contract 3.1, 3.2 and 3.5: which request goes where, and by what fields.

use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore, SeedableRng};
use ringway_proto::fault::Fault;
use ringway_proto::fields::{Field, Fields};
use ringway_proto::h1::head::{HeadLimits, parse_request};
use ringway_proto::route::{
    Preflight, ReplyStyle, Routed, RoutingHead, parse_request_id, read, reply_style,
};
use uuid::Uuid;

const ID: &str = "550e8400-e29b-41d4-a716-446655440000";
const OTHER: &str = "0f230d58-275f-444e-b30e-9c363a076702";
const WS: &str = "sec-websocket-protocol";

type Lines<'a> = &'a [(&'a str, &'a str)];

fn list(method: &str, path: &str, lines: Lines<'_>) -> Fields {
    let mut fields = Fields::new();
    fields.push(Field::new(b":method", method.as_bytes()));
    fields.push(Field::new(b":scheme", b"http"));
    fields.push(Field::new(b":path", path.as_bytes()));
    fields.push(Field::new(b":authority", b"gateway"));
    for (name, value) in lines {
        fields.push(Field::new(name.as_bytes(), value.as_bytes()));
    }
    fields
}

fn post(lines: Lines<'_>) -> Fields {
    list("POST", "/echo.Echo/Unary", lines)
}

fn invoked(fields: &Fields) -> RoutingHead<'_> {
    match read(fields) {
        Routed::Invoke(head) => head,
        other => panic!("{other:?}"),
    }
}

fn refused(fields: &Fields) -> Fault {
    match read(fields) {
        Routed::Refused(fault) => fault,
        other => panic!("{other:?}"),
    }
}

/// The request id that a call with these lines carries, sent by HTTP/2 and by HTTP/1.
fn request_id(lines: Lines<'_>) -> Option<Uuid> {
    let call = [&[("authorization", "Bearer k"), ("function-id", "f")], lines].concat();
    let by_h2 = invoked(&post(&call)).request_id;
    let mut head = "POST /echo HTTP/1.1\r\nHost: h\r\n".to_owned();
    for (name, value) in call {
        head += &format!("{}: {value}\r\n", name.to_uppercase());
    }
    let mut fields = Fields::new();
    parse_request(format!("{head}\r\n").as_bytes(), &mut fields, &HeadLimits::CLIENT)
        .expect("a good head")
        .expect("a whole head");
    let by_h1 = invoked(&fields).request_id;
    // Blanks at the ends of a value are HTTP/1's to remove, and malformed in HTTP/2.
    if lines.iter().all(|(_, value)| value.trim() == *value) {
        assert_eq!(by_h1, by_h2, "{lines:?}");
    }
    by_h1
}

#[test]
fn a_call_is_read() {
    let fields = post(&[
        ("content-type", "application/grpc"),
        ("authorization", "Bearer key"),
        ("function-id", "F"),
        ("function-version-id", "V"),
        ("nvcf-reqid", ID),
    ]);
    let head = invoked(&fields);
    assert_eq!((head.credential, head.function, head.version), (&b"key"[..], &b"F"[..], &b"V"[..]));
    assert_eq!(head.request_id, Some(ID.parse().unwrap()));
    assert_eq!(head.style, ReplyStyle { grpc: true, head: false, origin: None });
    assert_eq!(head.style, reply_style(&fields));
}

#[test]
fn an_empty_version_equals_none() {
    let fields =
        post(&[("authorization", "Bearer k"), ("function-id", "f"), ("function-version-id", "")]);
    assert_eq!(invoked(&fields).version, b"");
    assert_eq!(invoked(&post(&[("authorization", "Bearer k"), ("function-id", "f")])).version, b"");
}

#[test]
fn e1_comes_before_e2() {
    assert_eq!(refused(&post(&[])), Fault::MissingAuthorization);
    assert_eq!(refused(&post(&[("function-id", "f")])), Fault::MissingAuthorization);
    assert_eq!(refused(&post(&[("authorization", "Bearer k")])), Fault::MissingFunctionId);
    let empty = [("authorization", "Bearer k"), ("function-id", "")];
    assert_eq!(refused(&post(&empty)), Fault::MissingFunctionId);
}

#[test]
fn authorization_is_bearer_to_the_letter() {
    for value in ["k", "Bearer", "bearer k", "BEARER k", "Bearer\tk", "Basic k", "Bearerk"] {
        let fields = post(&[("authorization", value), ("function-id", "f")]);
        assert_eq!(refused(&fields), Fault::NotBearer, "{value:?}");
    }
    let empty = post(&[("authorization", ""), ("function-id", "f")]);
    assert_eq!(refused(&empty), Fault::MissingAuthorization);
    for (value, credential) in [
        ("Bearer k", "k"),
        ("Bearer  k", " k"),
        ("Bearer Bearer k", "Bearer k"),
        ("Bearer a b", "a b"),
    ] {
        let fields = post(&[("authorization", value), ("function-id", "f")]);
        assert_eq!(invoked(&fields).credential, credential.as_bytes());
    }
}

#[test]
fn a_bare_credential_will_do_beside_any_websocket_protocol() {
    for protocol in ["chat", "", "a.b"] {
        let fields = post(&[("authorization", "k"), ("function-id", "f"), (WS, protocol)]);
        assert_eq!(invoked(&fields).credential, b"k", "{protocol:?}");
    }
    let fields = post(&[("authorization", "Bearer "), ("function-id", "f"), (WS, "chat")]);
    assert_eq!(refused(&fields), Fault::NotBearer);
    let fields = post(&[("function-id", "f"), (WS, "authorization.Bearer k")]);
    assert_eq!(invoked(&fields).credential, b"k");
}

/// Credential, function and version.
type Named = (String, String, String);

/// What a request with these protocol lines and nothing else names, if it can be routed.
fn by_websocket(lines: &[&str]) -> Option<Named> {
    let lines: Vec<_> = lines.iter().map(|&line| (WS, line)).collect();
    let text = |value: &[u8]| String::from_utf8_lossy(value).into_owned();
    match read(&list("GET", "/ws", &lines)) {
        Routed::Invoke(head) => {
            Some((text(head.credential), text(head.function), text(head.version)))
        }
        Routed::Refused(_) => None,
        other => panic!("{other:?}"),
    }
}

#[test]
fn cl_1_websocket_protocol_pairs() {
    let all = |a: &str, f: &str, v: &str| Some((a.to_owned(), f.to_owned(), v.to_owned()));
    let cases: &[(&[&str], Option<Named>)] = &[
        (&[], None),
        (&["authorization.k"], None),
        (&["function-id.f"], None),
        (&["authorization.k,function-id.f"], all("k", "f", "")),
        (&["authorization.k", "function-id.f", "function-version-id.v1.0"], all("k", "f", "v1.0")),
        (&["authorization.k, function-id.f,function-version-id.v"], all("k", "f", "v")),
        (&[" authorization.k,function-id.f"], all("k", "f", "")),
        (&["authorization.k,no-dot-here,function-id.f"], all("k", "f", "")),
        (&["authorization.k,,function-id.f"], all("k", "f", "")),
        (&["authorization.k,.x,y.,function-id.f"], all("k", "f", "")),
        (&["authorization.a.b.c,function-id.f"], all("a.b.c", "f", "")),
        (&["Authorization.K,FUNCTION-id.F"], all("K", "F", "")),
        (&["authorization.k1,authorization.k2,function-id.f"], all("k1", "f", "")),
        (&["authorization.k1,function-id.f1", "function-id.f2"], all("k1", "f1", "")),
        // The first pair wins even if its value is empty.
        (&["authorization.,authorization.k,function-id.f"], None),
        // One space is taken off, not two, and none off the value or behind the name.
        (&["authorization.k,  function-id.f"], None),
        (&["authorization.k,function-id .f"], None),
        (&["authorization.k, function-id. f"], all("k", " f", "")),
        (&["authorization.k ,function-id.f"], all("k ", "f", "")),
        (&["authorization.k,\tfunction-id.f"], None),
        (&["authorization.a%20b,function-id.f"], all("a%20b", "f", "")),
        (&["xauthorization.k,function-id.f"], None),
    ];
    for (lines, expected) in cases {
        assert_eq!(by_websocket(lines), *expected, "{lines:?}");
    }
}

#[test]
fn headers_come_before_websocket_pairs_and_empty_ones_fall_through() {
    let pairs = (WS, "authorization.wk,function-id.wf,function-version-id.wv");
    let fields = post(&[
        ("authorization", "Bearer k"),
        ("function-id", "f"),
        ("function-version-id", "v"),
        pairs,
    ]);
    let head = invoked(&fields);
    assert_eq!((head.credential, head.function, head.version), (&b"k"[..], &b"f"[..], &b"v"[..]));
    let fields = post(&[
        ("authorization", ""),
        ("function-id", ""),
        ("function-version-id", ""),
        // If there are duplicates the first counts, here an empty one.
        ("function-id", "second"),
        pairs,
    ]);
    let head = invoked(&fields);
    assert_eq!(
        (head.credential, head.function, head.version),
        (&b"wk"[..], &b"wf"[..], &b"wv"[..])
    );
}

#[test]
fn cl_2_forms_of_a_request_id() {
    let id = Some(ID.parse::<Uuid>().unwrap());
    let bare = ID.replace('-', "");
    for text in [
        ID.to_owned(),
        ID.to_uppercase(),
        bare.clone(),
        bare.to_uppercase(),
        format!("urn:uuid:{ID}"),
        format!("URN:UuId:{ID}"),
        format!("{{{ID}}}"),
        format!("({ID}]"),
        format!(" {ID} "),
        format!("0{ID}f"),
    ] {
        assert_eq!(parse_request_id(text.as_bytes()), id, "{text}");
    }
    assert_eq!(parse_request_id(b"\xff550e8400-e29b-41d4-a716-446655440000\0"), id);
    assert_eq!(parse_request_id(Uuid::nil().to_string().as_bytes()), Some(Uuid::nil()));
    assert_eq!(parse_request_id(&[b'f'; 32]), Some(Uuid::max()));
    for text in [
        String::new(),
        "invalid-uuid".to_owned(),
        ID[1..].to_owned(),
        format!("{ID}0"),
        format!("{{{ID}"),
        format!("uuid:urn:{ID}"),
        format!("urn:uuid:{bare}"),
        format!("{{{bare}}}"),
        format!("urn:uuid:{{{ID}}}"),
        ID.replace('-', "_"),
        ID.replace('e', "g"),
        bare.replace('e', "g"),
        // Right length, hyphens elsewhere.
        "550e84000-e29b-41d4-a716-44665544000".to_owned(),
        "550e8400-e29b-41d4-a716-44665544-000".to_owned(),
        "+50e8400-e29b-41d4-a716-446655440000".to_owned(),
    ] {
        assert_eq!(parse_request_id(text.as_bytes()), None, "{text}");
    }
}

#[test]
fn cl_3_sources_of_the_request_id() {
    let id = Some(ID.parse::<Uuid>().unwrap());
    let pair = &*format!("nvcf-reqid.{ID}");
    let other_pair = &*format!("nvcf-reqid.{OTHER}");
    let cookie = &*format!("nvcf-request-id={ID}");
    let other_cookie = &*format!("nvcf-request-id={OTHER}");
    let cases: &[(Lines<'_>, Option<Uuid>)] = &[
        (&[], None),
        (&[("nvcf-reqid", ID)], id),
        (&[("cookie", cookie)], id),
        (&[(WS, pair)], id),
        (&[(WS, "chat.x"), (WS, pair), (WS, "other.y")], id),
        // 38 characters: the blanks are dropped as braces would be.
        (&[(WS, &format!("nvcf-reqid. {ID} ,x"))], id),
        (&[("nvcf-reqid", ID), (WS, other_pair)], id),
        (&[("nvcf-reqid", ID), (WS, other_pair), ("cookie", other_cookie)], id),
        (&[(WS, pair), ("cookie", other_cookie)], id),
        (&[("nvcf-reqid", ""), (WS, pair)], id),
        (&[("nvcf-reqid", ""), ("cookie", cookie)], id),
        (&[(WS, "nvcf-reqid."), ("cookie", cookie)], id),
        (&[(WS, "chat"), ("cookie", cookie)], id),
        // What is chosen and does not parse is absent; nothing below it is asked.
        (&[("nvcf-reqid", "invalid-uuid")], None),
        (&[("nvcf-reqid", "invalid-uuid"), ("cookie", cookie)], None),
        (&[("nvcf-reqid", "invalid-uuid"), (WS, pair)], None),
        (&[(WS, "nvcf-reqid.invalid-uuid")], None),
        (&[(WS, "nvcf-reqid.invalid-uuid"), ("cookie", cookie)], None),
        (&[("cookie", "nvcf-request-id=invalid-uuid")], None),
        (&[("cookie", &format!("other={ID}"))], None),
        (&[(WS, &format!("nvcf-req.{ID}"))], None),
        (&[(WS, "nvcf-reqid."), ("nvcf-reqid", ""), ("cookie", "nvcf-request-id=")], None),
        // Design 3.14: of duplicate fields the first wins.
        (&[("nvcf-reqid", ID), ("nvcf-reqid", OTHER)], id),
        (&[("nvcf-reqid", ""), ("nvcf-reqid", OTHER)], None),
    ];
    for (lines, expected) in cases {
        assert_eq!(request_id(lines), *expected, "{lines:?}");
    }
}

#[test]
fn the_cookie_is_read_as_gos_library_does() {
    let id = Some(ID.parse::<Uuid>().unwrap());
    for (cookies, expected) in [
        (&[&*format!("a=b; nvcf-request-id={ID}; c=d")][..], id),
        (&[&*format!("a=b;nvcf-request-id={ID}")], id),
        (&[&*format!(" ;; ;\tnvcf-request-id={ID}\t;")], id),
        (&[&*format!("nvcf-request-id=\"{ID}\"")], id),
        (&[&*format!("nvcf-request-id ={ID}")], id),
        // RFC 9113 §8.2.3: cut into several fields.
        (&["a=b", &*format!("nvcf-request-id={ID}"), "c=d"], id),
        (&[&*format!("nvcf-request-id={ID}"), &*format!("nvcf-request-id={OTHER}")], id),
        (&[&*format!("nvcf-request-id={ID}; nvcf-request-id={OTHER}")], id),
        // A value with octets that no cookie has is passed over, an invalid id is not.
        (&[&*format!("nvcf-request-id=a\\b; nvcf-request-id={ID}")], id),
        (&[&*format!("nvcf-request-id=\"; nvcf-request-id={ID}")], id),
        (&[&*format!("nvcf-request-id=\u{e9}; nvcf-request-id={ID}")], id),
        (&[&*format!("nvcf-request-id=x; nvcf-request-id={ID}")], None),
        (&[&*format!("nvcf-request-id; nvcf-request-id={ID}")], None),
        (&[&*format!("nvcf-request-id=; nvcf-request-id={ID}")], None),
        (&[&*format!("NVCF-Request-Id={ID}")], None),
        (&[&*format!("xnvcf-request-id={ID}")], None),
        (&[&*format!("nvcf-request-id= {ID}")], None),
        (&[&*format!("a={ID}")], None),
        (&[""], None),
    ] {
        let lines: Vec<_> = cookies.iter().map(|&value| ("cookie", value)).collect();
        assert_eq!(request_id(&lines), expected, "{cookies:?}");
    }
}

#[test]
fn ln_6_health_and_info_without_a_function() {
    for path in ["/health", "/health?x", "http://h/health", "http://h/health?/info"] {
        assert!(matches!(read(&list("GET", path, &[])), Routed::Health), "{path}");
        assert!(matches!(read(&list("POST", path, &[])), Routed::Health), "{path}");
    }
    for path in ["/info", "/info?/health"] {
        for method in ["GET", "HEAD", "POST"] {
            let fields = list(method, path, &[("function-id", "")]);
            assert!(
                matches!(read(&fields), Routed::Info { method: m } if m == method.as_bytes()),
                "{method} {path}"
            );
        }
    }
    for path in ["/health/", "/healthz", "/Health", "//health", "/x/health", "/?/health", "health"]
    {
        assert_eq!(refused(&list("GET", path, &[])), Fault::MissingAuthorization, "{path}");
    }
}

#[test]
fn design_3_9_a_named_function_may_have_these_paths() {
    for path in ["/health", "/info"] {
        let by_field = [("authorization", "Bearer k"), ("function-id", "f")];
        assert_eq!(invoked(&list("GET", path, &by_field)).function, b"f");
        let by_pair = [(WS, "authorization.k,function-id.f")];
        assert_eq!(invoked(&list("GET", path, &by_pair)).function, b"f");
        assert_eq!(refused(&list("GET", path, &by_field[1..])), Fault::MissingAuthorization);
    }
}

fn asked(method: &str, path: &str, lines: Lines<'_>) -> Option<Preflight<'static>> {
    let fields = list(method, path, lines);
    match read(&fields) {
        Routed::Preflight(preflight) => Some(Preflight {
            origin: preflight.origin.map(|origin| &*Box::leak(Box::<[u8]>::from(origin))),
            method: Box::leak(Box::from(preflight.method)),
            headers: Box::leak(Box::from(preflight.headers)),
        }),
        _ => None,
    }
}

#[test]
fn cl_12_preflights_on_every_path_without_authorization() {
    let lines = [
        ("origin", "https://a.example"),
        ("access-control-request-method", "POST"),
        ("access-control-request-headers", "x-a, x-b"),
    ];
    for path in ["/", "/health", "/info", "/echo.Echo/Unary", "*"] {
        let expected =
            Preflight { origin: Some(b"https://a.example"), method: b"POST", headers: b"x-a, x-b" };
        assert_eq!(asked("OPTIONS", path, &lines), Some(expected), "{path}");
    }
    let silent = Preflight { origin: None, method: b"POST", headers: b"" };
    assert_eq!(asked("OPTIONS", "/", &lines[1..2]), Some(silent));
    for (method, allowed) in [
        ("HEAD", true),
        ("GET", true),
        ("POST", true),
        ("PUT", true),
        ("PATCH", true),
        ("DELETE", true),
        ("OPTIONS", true),
        ("patch", true),
        ("TRACE", false),
        ("CONNECT", false),
        ("POST2", false),
    ] {
        let lines = [lines[0], ("access-control-request-method", method)];
        let origin = asked("OPTIONS", "/", &lines).unwrap().origin;
        assert_eq!(origin.is_some(), allowed, "{method}");
    }
}

#[test]
fn cl_13_other_options_requests_are_calls() {
    let origin = ("origin", "https://a.example");
    for (method, lines) in [
        ("OPTIONS", &[origin][..]),
        ("OPTIONS", &[origin, ("access-control-request-method", "")]),
        ("options", &[origin, ("access-control-request-method", "POST")]),
        ("Options", &[origin, ("access-control-request-method", "POST")]),
        ("GET", &[origin, ("access-control-request-method", "POST")]),
    ] {
        assert_eq!(asked(method, "/", lines), None, "{method} {lines:?}");
        assert_eq!(refused(&list(method, "/", lines)), Fault::MissingAuthorization);
    }
}

#[test]
fn cl_14_the_style_of_an_answer() {
    let style = |method: &str, lines: Lines<'_>| {
        let fields = list(method, "/", lines);
        let kept = reply_style(&fields).keep();
        assert_eq!(kept.style(), reply_style(&fields));
        kept
    };
    let origin = ("origin", "https://a.example");
    assert_eq!(style("POST", &[]).style(), ReplyStyle::default());
    assert!(style("HEAD", &[]).style().head);
    assert!(style("POST", &[("content-type", "Application/grpc; x=y")]).style().grpc);
    assert!(!style("POST", &[("content-type", "application/grpc+proto")]).style().grpc);
    assert_eq!(style("POST", &[origin]).style().origin, Some(&b"https://a.example"[..]));
    assert_eq!(style("BREW", &[origin]).style().origin, None);
    assert_eq!(style("POST", &[("origin", "")]).style().origin, None);
    let long = format!("https://{}", "a".repeat(1025 - "https://".len()));
    let kept = |origin: &str| reply_style(&list("POST", "/", &[("origin", origin)])).keep();
    assert_eq!(kept(&long[..1024]).style().origin, Some(&long.as_bytes()[..1024]));
    assert_eq!(kept(&long).style().origin, None, "no browser has it, and it would be held");
}

#[test]
fn random_fields_never_panic() {
    const NAMES: [&str; 12] = [
        ":method",
        ":path",
        "authorization",
        "function-id",
        "function-version-id",
        "nvcf-reqid",
        WS,
        "cookie",
        "origin",
        "content-type",
        "access-control-request-method",
        "x-other",
    ];
    const PARTS: [&str; 16] = [
        "OPTIONS",
        "/health",
        "Bearer ",
        "k",
        ".",
        ",",
        " ",
        ";",
        "=",
        "\"",
        ID,
        "nvcf-request-id",
        "nvcf-reqid",
        "function-id",
        "authorization",
        "://",
    ];
    let mut source = ChaCha8Rng::seed_from_u64(0x726f);
    let mut calls = 0;
    for _ in 0..50_000 {
        let mut fields = Fields::new();
        for _ in 0..source.next_u32() % 10 {
            let mut value = Vec::new();
            for _ in 0..source.next_u32() % 6 {
                match source.next_u32() as usize % (PARTS.len() + 1) {
                    at if at < PARTS.len() => value.extend_from_slice(PARTS[at].as_bytes()),
                    _ => value.push(source.next_u32() as u8),
                }
            }
            let name = NAMES[source.next_u32() as usize % NAMES.len()];
            fields.push(Field::new(name.as_bytes(), &value));
        }
        if let Routed::Invoke(head) = read(&fields) {
            assert!(!head.credential.is_empty() && !head.function.is_empty());
            calls += 1;
        }
    }
    assert!(calls > 100, "the generator makes too few calls: {calls}");
}

#[test]
fn debug_does_not_show_the_credential_or_the_id() {
    let lines = [("authorization", "Bearer s3cret"), ("function-id", "f"), ("nvcf-reqid", ID)];
    let fields = post(&lines);
    let shown = format!("{:?}", read(&fields));
    assert!(shown.contains("function: \"f\"") && shown.contains("has_request_id: true"), "{shown}");
    assert!(!shown.contains("s3cret") && !shown.contains(ID) && !shown.contains("115, 51"));
}
