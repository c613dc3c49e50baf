//! Contract 4.1 and 4.2: what a worker's CONNECT must carry and what it is answered.

use ringway_proto::date::HttpDate;
use ringway_proto::fields::Fields;
use ringway_proto::h1::connect::{
    ACCEPTED, Connect, ConnectFault, ConnectResult, Endpoint, endpoint, read,
};
use ringway_proto::h1::head::{HeadLimits, parse_request};

const ID: &str = "6f2c0c55-3d6e-4a41-9a3c-0d3a5b6f7a10";

fn fields(line: &str, headers: &[(&str, &str)]) -> Fields {
    let mut head = format!("{line} HTTP/1.1\r\nHost: h\r\n");
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    head += "\r\n";
    let mut fields = Fields::new();
    parse_request(head.as_bytes(), &mut fields, &HeadLimits::WORKER)
        .expect("a good head")
        .expect("a whole head");
    fields
}

fn fault(line: &str, headers: &[(&str, &str)]) -> Option<ConnectFault> {
    read(&fields(line, headers)).err()
}

const GOOD: [(&str, &str); 2] = [("Authorization", "Bearer tok"), ("X-Request-Id", ID)];

fn date() -> HttpDate {
    HttpDate::from_unix(784_111_777)
}

#[test]
fn wk_1_the_workers_request_is_read() {
    let fields = fields("CONNECT /v1/proxy", &GOOD);
    let expected = Connect { token: b"tok", request_id: ID.parse().unwrap() };
    assert_eq!(read(&fields), Ok(expected));
}

#[test]
fn wk_2_any_method_by_path_alone() {
    for method in ["CONNECT", "POST", "GET", "PUT", "BREW"] {
        assert_eq!(fault(&format!("{method} /v1/proxy"), &GOOD), None, "{method}");
        assert_eq!(fault(&format!("{method} /v1/proxy?a=b"), &GOOD), None, "{method}");
        for path in ["/", "/v1/proxy/", "/v1/prox", "/custom/v1/proxy", "/V1/proxy", "//v1/proxy"] {
            let line = format!("{method} {path}");
            assert_eq!(fault(&line, &GOOD), Some(ConnectFault::NotFound), "{line}");
        }
    }
    for target in ["gateway:10086", "http://gateway:10086/v1/proxy", "v1/proxy"] {
        let line = format!("CONNECT {target}");
        assert_eq!(fault(&line, &GOOD), Some(ConnectFault::NotFound), "{line}");
    }
    assert_eq!(ConnectFault::NotFound.result(), None, "no request to /v1/proxy, not counted");
}

#[test]
fn the_worker_listener_serves_three_paths() {
    let endpoint = |line: &str| endpoint(&fields(line, &[]));
    assert_eq!(endpoint("CONNECT /v1/proxy"), Endpoint::Connect);
    assert_eq!(endpoint("POST /v1/work"), Endpoint::Work);
    assert_eq!(endpoint("GET /health?full"), Endpoint::Health);
    assert_eq!(endpoint("GET /info"), Endpoint::Unknown);
    assert_eq!(endpoint("OPTIONS *"), Endpoint::Unknown);
}

#[test]
fn rows_2_to_4_are_checked_in_their_order() {
    for (headers, expected) in [
        (&[][..], Some(ConnectFault::MissingAuth)),
        (&[("X-Request-Id", "bad")], Some(ConnectFault::MissingAuth)),
        (&[("Authorization", "")], Some(ConnectFault::MissingAuth)),
        (&[("Authorization", "Bearer tok")], Some(ConnectFault::MissingRequestId)),
        (&[("Authorization", "tok"), ("X-Request-Id", "")], Some(ConnectFault::MissingRequestId)),
        (
            &[("Authorization", "tok"), ("X-Request-Id", "bad")],
            Some(ConnectFault::InvalidRequestId),
        ),
        (&[("authorization", "tok"), ("x-request-id", ID)], None),
    ] {
        assert_eq!(fault("CONNECT /v1/proxy", headers), expected, "{headers:?}");
    }
}

#[test]
fn bearer_is_optional_and_exact() {
    for (value, token) in
        [("Bearer a b", "a b"), ("tok", "tok"), ("bearer tok", "bearer tok"), ("Bearer", "Bearer")]
    {
        let fields = fields("POST /v1/proxy", &[("Authorization", value), ("X-Request-Id", ID)]);
        assert_eq!(read(&fields).unwrap().token, token.as_bytes());
    }
}

#[test]
fn a_request_with_a_body_is_refused() {
    for request in ["CONNECT /v1/proxy", "POST /v1/proxy"] {
        for framing in [("Content-Length", "5"), ("Transfer-Encoding", "chunked")] {
            let headers = [GOOD[0], GOOD[1], framing];
            assert_eq!(fault(request, &headers), Some(ConnectFault::HasBody));
        }
        let empty = [GOOD[0], GOOD[1], ("Content-Length", "0")];
        assert_eq!(fault(request, &empty), None, "it says that it has none");
    }
    assert_eq!(ConnectFault::HasBody.status(), 400);
    assert_eq!(ConnectFault::HasBody.result(), Some(ConnectResult::NotHijackable));
}

#[test]
fn the_nine_results_have_their_labels_in_order() {
    let labels = [
        "rejected_not_hijackable",
        "rejected_missing_auth",
        "rejected_missing_requestid",
        "rejected_invalid_requestid",
        "rejected_requestid_mismatch",
        "rejected_token_expired",
        "rejected_token_unknown",
        "accepted",
        "rejected_hijack_failed",
    ];
    assert_eq!(ConnectResult::COUNT, labels.len());
    for (at, result) in ConnectResult::ALL.into_iter().enumerate() {
        assert_eq!((result.index(), result.label()), (at, labels[at]));
    }
}

#[test]
fn wk_4_every_refusal_has_its_bytes() {
    let valid_auth = "HTTP CONNECT request is missing valid auth\n";
    for (result, line, body) in [
        (
            ConnectResult::NotHijackable,
            "500 Internal Server Error",
            "HTTP CONNECT request is not hijack-able\n",
        ),
        (ConnectResult::MissingAuth, "401 Unauthorized", "HTTP CONNECT request is missing auth\n"),
        (
            ConnectResult::MissingRequestId,
            "400 Bad Request",
            "HTTP CONNECT request is missing request id\n",
        ),
        (
            ConnectResult::InvalidRequestId,
            "400 Bad Request",
            "HTTP CONNECT request has an invalid request id\n",
        ),
        (ConnectResult::RequestIdMismatch, "403 Forbidden", valid_auth),
        (ConnectResult::TokenExpired, "403 Forbidden", valid_auth),
        (ConnectResult::TokenUnknown, "403 Forbidden", valid_auth),
        (
            ConnectResult::HijackFailed,
            "500 Internal Server Error",
            "HTTP CONNECT request could not be taken over\n",
        ),
    ] {
        let expected = format!(
            "HTTP/1.1 {line}\r\n\
             date: Sun, 06 Nov 1994 08:49:37 GMT\r\n\
             content-type: text/plain; charset=utf-8\r\n\
             x-content-type-options: nosniff\r\n\
             content-length: {}\r\n\
             \r\n{body}",
            body.len()
        );
        let mut out = Vec::new();
        result.write(true, date(), &mut out);
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }
    for fault in
        [ConnectFault::MissingAuth, ConnectFault::MissingRequestId, ConnectFault::InvalidRequestId]
    {
        let (mut ours, mut of_result) = (Vec::new(), Vec::new());
        fault.write(false, date(), &mut ours);
        fault.result().unwrap().write(false, date(), &mut of_result);
        assert_eq!(ours, of_result);
        assert!(String::from_utf8(ours).unwrap().contains("\r\nconnection: close\r\n"));
    }
}

#[test]
fn wk_11_success_is_200_and_nothing_more() {
    let mut out = Vec::new();
    ConnectResult::Accepted.write(true, date(), &mut out);
    assert_eq!(out, ACCEPTED);
    assert_eq!(ACCEPTED, b"HTTP/1.1 200 OK\r\n\r\n");
}

#[test]
fn debug_does_not_show_the_token() {
    let fields =
        fields("CONNECT /v1/proxy", &[("Authorization", "Bearer s3cret"), ("X-Request-Id", ID)]);
    let shown = format!("{:?}", read(&fields));
    assert!(shown.contains(ID) && !shown.contains("s3cret"), "{shown}");
    assert!(!shown.contains("115, 51"), "{shown}");
}
