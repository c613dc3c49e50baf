//! Contract 3.3 to 3.5, LN-4 and OB-4: what the gateway says in its own name.

use ringway_proto::answer::{self, HealthReport, Info, TEXT_MAX};
use ringway_proto::fault::Fault;
use ringway_proto::fields::{Field, Fields, name_is_valid, value_is_valid};
use ringway_proto::h1::{reason_of, write_answer, write_response};
use ringway_proto::route::{Preflight, ReplyStyle};
use uuid::Uuid;

const ID: Uuid = Uuid::from_u128(0x550e8400_e29b_41d4_a716_446655440000);
const PREFIX: &str = "failed to open stateful work request: ";
const ORIGIN: &[u8] = b"https://a.example";

/// An answer as text: its fields but for `:status`, and its body.
#[derive(Debug, PartialEq)]
struct Answer {
    status: String,
    fields: Vec<(String, String)>,
    body: String,
}

impl Answer {
    /// Starts from buffers that hold something else, as a shard's do.
    fn of(fill: impl FnOnce(&mut Fields, &mut Vec<u8>)) -> Self {
        let (mut fields, mut body) = (Fields::new(), b"left over".to_vec());
        fields.push(Field::new(b"left", b"over"));
        fill(&mut fields, &mut body);
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("answers are text");
        let mut lines = fields.iter().map(|field| {
            assert!(name_is_valid(field.name) && value_is_valid(field.value), "{field:?}");
            (text(field.name), text(field.value))
        });
        let (name, status) = lines.next().expect("an answer has a status");
        assert_eq!(name, ":status");
        Self { status, fields: lines.collect(), body: text(&body) }
    }

    fn of_fault(fault: &Fault, style: ReplyStyle<'_>) -> Self {
        Self::of(|fields, body| answer::render(fault, &style, fields, body))
    }

    fn all(&self, name: &str) -> Vec<&str> {
        self.fields.iter().filter(|(n, _)| n == name).map(|(_, v)| v.as_str()).collect()
    }

    fn one(&self, name: &str) -> &str {
        match self.all(name)[..] {
            [value] => value,
            ref other => panic!("{name}: {other:?}"),
        }
    }
}

const PLAIN: ReplyStyle<'static> = ReplyStyle { grpc: false, head: false, origin: None };
const GRPC: ReplyStyle<'static> = ReplyStyle { grpc: true, ..PLAIN };

const NOT_BEARER: &str = "no authorization was passed in the metadata: the field is there, but \
                          does not read `Bearer KEY`";

/// A fault with its code, HTTP status and text (without the prefix of E3 to E11), and whether it
/// has that prefix.
type Row = (Fault, u8, u16, String, bool);

fn row(fault: Fault, code: u8, status: u16, text: &str, prefixed: bool) -> Row {
    (fault, code, status, text.into(), prefixed)
}

fn table() -> Vec<Row> {
    [contract_faults(), own_faults()].concat()
}

/// E1 to E12.
fn contract_faults() -> Vec<Row> {
    let about = |text: &str| format!("{text} for request id {ID}");
    let request_id = ID;
    vec![
        row(
            Fault::MissingAuthorization,
            16,
            401,
            "no authorization was passed in the metadata",
            false,
        ),
        row(Fault::NotBearer, 16, 401, NOT_BEARER, false),
        row(Fault::MissingFunctionId, 3, 400, "no function-id was passed in the metadata", false),
        row(Fault::Api { code: 7, text: "not yours".into() }, 7, 403, "not yours", true),
        row(Fault::Api { code: 5, text: "unknown".into() }, 5, 404, "unknown", true),
        row(Fault::Api { code: 2, text: "odd".into() }, 2, 500, "odd", true),
        row(Fault::Api { code: 0, text: "odd".into() }, 13, 500, "odd", true),
        row(Fault::NoVersions, 13, 500, "missing function versions from nvcf api response", true),
        row(Fault::RateLimited, 8, 429, "exceeded rate limit", true),
        row(
            Fault::PublishFailed,
            13,
            500,
            "failed to publish function invocation request to nats",
            true,
        ),
        row(
            Fault::SessionNotFound { request_id },
            5,
            404,
            &about("no existing session found"),
            true,
        ),
        row(
            Fault::FunctionMismatch { request_id },
            13,
            500,
            &about("existing session function ID mismatch"),
            true,
        ),
        row(
            Fault::VersionMismatch { request_id },
            13,
            500,
            &about("existing session function version ID mismatch"),
            true,
        ),
        row(
            Fault::TenantMismatch { request_id },
            13,
            500,
            &about("existing session invoker NCA ID mismatch"),
            true,
        ),
        row(Fault::LookupFailed { text: "nats: timeout".into() }, 13, 500, "nats: timeout", true),
        row(Fault::NoWorker, 4, 504, "failed to establish link to worker", false),
    ]
}

/// The same of those that the contract does not have.
fn own_faults() -> Vec<Row> {
    vec![
        row(Fault::WorkQueueFull, 8, 429, "work queue of this function is full", false),
        row(Fault::TooManySessions, 8, 429, "too many sessions on this connection", false),
        row(
            Fault::TooManyDispatches { retry_after: 7 },
            8,
            429,
            "too many sessions on this connection",
            false,
        ),
        row(Fault::Overloaded, 8, 429, "gateway holds as much as it may, try again later", false),
        row(Fault::HeadTooLarge, 8, 431, "request headers are too large", false),
        row(Fault::AnswerTooLarge, 8, 502, "response headers are too large", false),
        row(Fault::Draining, 14, 503, "gateway is draining, try again on a new connection", false),
        row(Fault::MailboxFull, 14, 503, "gateway is overloaded, try again", false),
    ]
}

#[test]
fn e1_to_e12_have_their_codes_and_texts() {
    for (fault, code, status, text, prefixed) in table() {
        assert_eq!((fault.code(), fault.http_status()), (code, status), "{fault:?}");
        let prefix = if prefixed { PREFIX } else { "" };
        assert_eq!(fault.to_string(), format!("{prefix}{text}"));
    }
}

#[test]
fn cl_9_every_fault_in_grpc_style() {
    for (fault, code, _, text, prefixed) in table() {
        for origin in [None, Some(ORIGIN)] {
            let answer = Answer::of_fault(&fault, ReplyStyle { origin, ..GRPC });
            assert_eq!(answer.status, "200", "{fault:?}");
            assert_eq!(answer.one("content-type"), "application/grpc");
            assert_eq!(answer.one("content-length"), "0");
            assert_eq!(answer.one("grpc-status"), code.to_string());
            let prefix = if prefixed { PREFIX } else { "" };
            assert_eq!(answer.one("grpc-message"), format!("{prefix}{text}"));
            assert_eq!(answer.body, "");
            check_cors(&answer, origin.is_some());
            check_common(&answer, &fault);
        }
    }
}

#[test]
fn cl_10_every_fault_in_plain_style() {
    for (fault, _, status, ..) in table() {
        for origin in [None, Some(ORIGIN)] {
            for head in [false, true] {
                let answer = Answer::of_fault(&fault, ReplyStyle { grpc: false, head, origin });
                assert_eq!(answer.status, status.to_string(), "{fault:?}");
                assert_eq!(answer.one("content-type"), "text/plain; charset=utf-8");
                assert_eq!(answer.one("content-length"), fault.to_string().len().to_string());
                assert_eq!(answer.body, if head { String::new() } else { fault.to_string() });
                assert!(answer.all("grpc-status").is_empty());
                check_cors(&answer, origin.is_some());
                check_common(&answer, &fault);
            }
        }
    }
}

/// CL-14.
fn check_cors(answer: &Answer, allowed: bool) {
    assert_eq!(answer.all("vary"), ["Origin"]);
    let (origin, credentials): (&[&str], &[&str]) =
        if allowed { (&["https://a.example"], &["true"]) } else { (&[], &[]) };
    assert_eq!(answer.all("access-control-allow-origin"), origin);
    assert_eq!(answer.all("access-control-allow-credentials"), credentials);
}

/// CL-6 and CL-7.
fn check_common(answer: &Answer, fault: &Fault) {
    let cookies: &[&str] = match fault {
        Fault::SessionNotFound { .. } => &["nvcf-request-id=; Max-Age=0"],
        _ => &[],
    };
    assert_eq!(answer.all("set-cookie"), cookies, "{fault:?}");
    assert_eq!(fault.clears_cookie(), !cookies.is_empty());
    assert!(answer.all("nvcf-reqid").is_empty());
    // What is refused for its rate alone says when to come back; who drains sends elsewhere at once.
    let later: &[&str] = match fault {
        Fault::TooManyDispatches { .. } => &["7"],
        Fault::RateLimited => &["1"],
        Fault::Draining => &["0"],
        _ => &[],
    };
    assert_eq!(answer.all("retry-after"), later, "{fault:?}");
}

#[test]
fn cl_41_a_lost_tunnel_is_502_in_both_styles() {
    for origin in [None, Some(ORIGIN)] {
        let plain = Answer::of_fault(&Fault::TunnelLost("why"), ReplyStyle { origin, ..PLAIN });
        let length = ("content-length".to_owned(), "0".to_owned());
        assert_eq!(
            plain,
            Answer { status: "502".into(), fields: vec![length], body: String::new() },
            "no body, and no CORS fields (CL-15)"
        );
        let grpc = Answer::of_fault(&Fault::TunnelLost("why"), ReplyStyle { origin, ..GRPC });
        assert_eq!(grpc.status, "502");
        assert_eq!((grpc.one("content-type"), grpc.one("grpc-status")), ("application/grpc", "14"));
        assert_eq!(grpc.body, "");
        assert!(grpc.all("vary").is_empty() && grpc.all("access-control-allow-origin").is_empty());
    }
}

#[test]
fn a_body_too_large_for_h2c_is_413() {
    assert_eq!(Answer::of_fault(&Fault::BodyTooLarge, PLAIN).status, "413");
    let grpc = Answer::of_fault(&Fault::BodyTooLarge, GRPC);
    assert_eq!((&*grpc.status, grpc.one("grpc-status")), ("200", "8"));
}

#[test]
fn texts_of_others_are_encoded_and_bounded() {
    let fault = Fault::Api { code: 3, text: "a\r\nset-cookie: x\0 100% \u{e9}".into() };
    let grpc = Answer::of_fault(&fault, GRPC);
    assert_eq!(grpc.one("grpc-message"), format!("{PREFIX}a%0D%0Aset-cookie: x%00 100%25 %C3%A9"));
    assert_eq!(Answer::of_fault(&fault, PLAIN).body, fault.to_string());
    for before in 0..4 {
        let text = "x".repeat(before) + &"\u{1f9ed}".repeat(TEXT_MAX);
        let fault = Fault::LookupFailed { text };
        let body = Answer::of_fault(&fault, PLAIN).body;
        assert!((TEXT_MAX - 3..=TEXT_MAX).contains(&body.len()), "{}", body.len());
        assert!(fault.to_string().starts_with(&body));
        assert!(Answer::of_fault(&fault, GRPC).one("grpc-message").len() <= 3 * TEXT_MAX);
    }
}

#[test]
fn debug_of_a_fault_shows_no_id_and_no_text() {
    let shown = format!("{:?}", Fault::SessionNotFound { request_id: ID });
    assert_eq!(shown, "SessionNotFound(5)");
    let shown = format!("{:?}", Fault::Api { code: 7, text: "s3cret".into() });
    assert_eq!(shown, "Api(7)");
}

fn preflight(origin: Option<&[u8]>, method: &str, headers: &str) -> Answer {
    let asked = Preflight { origin, method: method.as_bytes(), headers: headers.as_bytes() };
    Answer::of(|fields, body| answer::preflight(&asked, fields, body))
}

#[test]
fn cl_12_a_preflight_is_granted() {
    let answer = preflight(Some(ORIGIN), "patch", "x-a, content-type");
    assert_eq!((&*answer.status, &*answer.body), ("200", ""));
    assert_eq!(
        answer.all("vary"),
        ["Origin", "Access-Control-Request-Method", "Access-Control-Request-Headers"]
    );
    assert_eq!(answer.one("access-control-allow-origin"), "https://a.example");
    assert_eq!(answer.one("access-control-allow-methods"), "PATCH");
    assert_eq!(answer.one("access-control-allow-headers"), "x-a, content-type");
    assert_eq!(answer.one("access-control-allow-credentials"), "true");
    assert_eq!(answer.one("access-control-max-age"), "3600");
    for none in ["", ",", " , "] {
        let answer = preflight(Some(ORIGIN), "GET", none);
        assert!(answer.all("access-control-allow-headers").is_empty(), "{none:?}");
    }
}

#[test]
fn cl_12_a_preflight_without_origin_is_200_and_grants_nothing() {
    let answer = preflight(None, "POST", "x-a");
    assert_eq!((&*answer.status, &*answer.body), ("200", ""));
    assert_eq!(answer.all("vary").len(), 3);
    assert!(answer.fields.iter().all(|(name, _)| !name.starts_with("access-control-")));
}

fn health(failures: &[(&str, &str)], head: bool) -> Answer {
    let report = HealthReport { failures, timestamp: "2026-11-22T21:53:53Z", version: "1.2" };
    let style = ReplyStyle { head, ..PLAIN };
    Answer::of(|fields, body| answer::health(&report, &style, fields, body))
}

#[test]
fn ob_4_health_says_ok_or_what_failed() {
    let good = health(&[], false);
    assert_eq!((&*good.status, good.one("content-type")), ("200", "application/json"));
    let json = "{\"status\":\"OK\",\"timestamp\":\"2026-11-22T21:53:53Z\",\
                \"component\":{\"name\":\"grpc proxy\",\"version\":\"1.2\"}}";
    assert_eq!(good.body, json);
    assert_eq!(good.one("content-length"), json.len().to_string());

    let bad = health(&[("nats", "say \"no\"\n\\"), ("nvcf grpc api", "\u{e9}\u{1}")], false);
    assert_eq!(bad.status, "503");
    assert_eq!(
        bad.body,
        "{\"status\":\"Unavailable\",\"timestamp\":\"2026-11-22T21:53:53Z\",\
         \"failures\":{\"nats\":\"say \\\"no\\\"\\u000a\\\\\",\"nvcf grpc api\":\"\u{e9}\\u0001\"},\
         \"component\":{\"name\":\"grpc proxy\",\"version\":\"1.2\"}}"
    );

    let head = health(&[], true);
    assert_eq!((&*head.body, head.one("content-length")), ("", &*json.len().to_string()));
}

fn info(method: &str, version: &str, commit: &str) -> Answer {
    let facts = Info { version, commit };
    Answer::of(|fields, body| answer::info(method.as_bytes(), &facts, fields, body))
}

#[test]
fn ln_4_info_names_the_build() {
    let known = info("GET", "1.2", "abc");
    assert_eq!((&*known.status, known.one("content-type")), ("200", "application/json"));
    assert_eq!(
        known.body,
        "{\"service\":\"nvcf-grpc-proxy\",\"version\":\"1.2\",\"commit\":\"abc\"}"
    );
    assert_eq!(
        info("GET", "", "").body,
        "{\"service\":\"nvcf-grpc-proxy\",\"version\":\"unknown\",\"commit\":\"unknown\"}"
    );
    for method in ["HEAD", "POST", "get", "OPTIONS", ""] {
        let answer = info(method, "1.2", "abc");
        assert_eq!((&*answer.status, answer.one("allow"), &*answer.body), ("405", "GET", ""));
    }
}

#[test]
fn answers_are_written_for_http_1() {
    let (mut fields, mut body, mut out) = (Fields::new(), Vec::new(), Vec::new());
    answer::render(&Fault::HeadTooLarge, &PLAIN, &mut fields, &mut body);
    write_answer(&fields, &body, false, &mut out);
    assert_eq!(
        String::from_utf8(out).unwrap(),
        "HTTP/1.1 431 Request Header Fields Too Large\r\n\
         content-type: text/plain; charset=utf-8\r\n\
         content-length: 46\r\n\
         vary: Origin\r\n\
         connection: close\r\n\
         \r\n\
         request headers are too large"
            .replace("46", &body.len().to_string())
    );
}

#[test]
fn responses_are_framed_by_their_status() {
    let write = |status, fields: &Fields, body: &[u8]| {
        let mut out = Vec::new();
        write_response(status, reason_of(status), fields, body, true, &mut out);
        String::from_utf8(out).unwrap()
    };
    let none = Fields::new();
    assert_eq!(write(200, &none, b"ok"), "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
    assert_eq!(write(404, &none, b""), "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n");
    assert_eq!(write(204, &none, b""), "HTTP/1.1 204 No Content\r\n\r\n");
    assert_eq!(write(103, &none, b""), "HTTP/1.1 103 Early Hints\r\n\r\n");
    let mut split = Fields::new();
    split.push(Field::new(b"x-a", b"a\r\nx-b: b"));
    split.push(Field::new(b"x-c", b"c"));
    assert_eq!(write(204, &split, b""), "HTTP/1.1 204 No Content\r\nx-c: c\r\n\r\n");
    let (mut out, mut bad) = (Vec::new(), Fields::new());
    bad.push(Field::new(b":status", b"99999999"));
    write_answer(&bad, b"", true, &mut out);
    assert!(out.starts_with(b"HTTP/1.1 500 Internal Server Error\r\n"));
}
