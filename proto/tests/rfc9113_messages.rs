//! RFC 9113 §8: messages, field sections, content-length, HEAD, 1xx, trailers.

mod h2_script;

use h2_script::*;
use ringway_proto::h2::{HeadKind, Limits, Role};

type Pairs<'a> = &'a [(&'a str, &'a str)];

#[track_caller]
fn refused_request(fields: Pairs<'_>) {
    let mut side = Side::server(Limits::default());
    side.feed(&headers(1, 0, fields));
    side.expect_reset(1, PROTOCOL);
    assert!(side.seen.is_empty(), "never shown: {:?}", side.seen);
    assert_eq!(side.conn.streams(), 0);
    // Neither is what follows it, and the connection lives.
    side.feed(&data_end(1, b"x"));
    side.feed(&get(3));
    side.expect_no_fault();
    assert_eq!(side.seen.len(), 1);
}

#[track_caller]
fn refused_response(bytes: &[u8], request: Pairs<'_>) {
    let mut side = Side::client(Limits::default());
    let key = side.ask(request, true);
    side.conn.set_tag(key, 9);
    side.out.clear();
    side.feed(bytes);
    side.expect_reset(1, PROTOCOL);
    assert_eq!(side.seen.last(), Some(&Seen::Reset { id: 1, tag: 9, code: PROTOCOL, ours: true }));
    assert_eq!(side.conn.streams(), 0);
}

#[test]
fn s8_1_a_request_with_body_and_trailers() {
    server(|side| {
        side.feed(&post(1));
        side.feed(&data(1, b"body"));
        side.feed(&headers(1, END_STREAM, &[("x-sum", "1")]));
        let kinds: Vec<_> = side
            .seen
            .iter()
            .map(|seen| match seen {
                Seen::Head { kind, end, .. } => (Some(*kind), *end),
                Seen::Data { end, .. } => (None, *end),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(
            kinds,
            [(Some(HeadKind::Request), false), (None, false), (Some(HeadKind::Trailers), true)]
        );
    });
}

#[test]
fn s8_1_trailers_end_the_stream() {
    server(|side| {
        side.feed(&post(1));
        side.feed(&headers(1, 0, GRPC_OK));
        side.expect_stream_fault(1, PROTOCOL);
    });
    client(|side| {
        side.ask(GET, true);
        side.feed(&headers(1, 0, OK));
        side.feed(&headers(1, 0, GRPC_OK));
        side.expect_stream_fault(1, PROTOCOL);
    });
}

#[test]
fn s8_1_trailers_have_no_pseudo_headers_and_no_framing() {
    for bad in [(":method", "GET"), (":status", "200"), ("content-length", "0"), ("host", "b")] {
        let mut side = Side::server(Limits::default());
        side.feed(&post(1));
        side.feed(&headers(1, END_STREAM, &[bad]));
        side.expect_stream_fault(1, PROTOCOL);
        refused_response(&[headers(1, 0, OK), headers(1, END_STREAM, &[bad])].concat(), GET);
    }
}

#[test]
fn s8_1_data_does_not_come_before_the_head() {
    refused_response(&data(1, b"x"), GET);
    refused_response(&[headers(1, 0, &[(":status", "103")]), data(1, b"x")].concat(), GET);
}

#[test]
fn s8_1_1_content_length_is_kept_to_in_requests() {
    let with = |length| [POST, &[("content-length", length)]].concat();
    for (length, frames) in [
        ("3", data_end(1, b"ab")),
        ("3", data(1, b"abcd")),
        ("3", [data(1, b"ab"), data(1, b"cd")].concat()),
        ("3", data_end(1, b"")),
        ("0", data(1, b"a")),
        ("3", [data(1, b"ab"), headers(1, END_STREAM, GRPC_OK)].concat()),
        ("3", padded_data(1, END_STREAM, b"ab", 1)),
    ] {
        let mut side = Side::server(Limits::default());
        side.feed(&headers(1, 0, &with(length)));
        side.feed(&frames);
        side.expect_stream_fault(1, PROTOCOL);
        let ended = side.seen.iter().any(|seen| matches!(seen, Seen::Data { end: true, .. }));
        assert!(!ended, "a short body has no end");
    }
    for frames in [
        data_end(1, b"abc"),
        [data(1, b"ab"), data_end(1, b"c")].concat(),
        [data(1, b"abc"), data_end(1, b"")].concat(),
        [padded_data(1, 0, b"ab", 9), padded_data(1, END_STREAM, b"c", 0)].concat(),
        [data(1, b"abc"), headers(1, END_STREAM, GRPC_OK)].concat(),
    ] {
        let mut side = Side::server(Limits::default());
        side.feed(&headers(1, 0, &with("3")));
        side.feed(&frames);
        side.expect_no_fault();
        assert!(side.sent().is_empty());
    }
    refused_request(&with("x"));
    let mut side = Side::server(Limits::default());
    side.feed(&headers(1, END_STREAM, &with("3")));
    side.expect_reset(1, PROTOCOL);
}

#[test]
fn s8_1_1_content_length_is_kept_to_in_responses() {
    let with: Pairs<'_> = &[(":status", "200"), ("content-length", "3")];
    refused_response(&headers(1, END_STREAM, with), GET);
    refused_response(&[headers(1, 0, with), data_end(1, b"ab")].concat(), GET);
    refused_response(&[headers(1, 0, with), data(1, b"abcd")].concat(), GET);
    let trailers = headers(1, END_STREAM, GRPC_OK);
    refused_response(&[headers(1, 0, with), data(1, b"ab"), trailers].concat(), GET);
    client(|side| {
        side.ask(GET, true);
        side.feed(&headers(1, 0, &[(":status", "200"), ("content-length", "3")]));
        side.feed(&data(1, b"abc"));
        side.feed(&headers(1, END_STREAM, GRPC_OK));
        side.expect_no_fault();
        assert_eq!(side.conn.streams(), 0);
    });
}

#[test]
fn s8_1_1_responses_without_content_may_tell_a_length() {
    let head = [&[(":method", "HEAD")], &GET[1..]].concat();
    for (request, status) in [(&head[..], "200"), (GET, "204"), (GET, "304")] {
        let told = [(":status", status), ("content-length", "3")];
        let mut side = Side::client(Limits::default());
        side.ask(request, true);
        side.feed(&headers(1, END_STREAM, &told));
        side.expect_no_fault();
        assert!(matches!(side.seen[..], [Seen::Head { end: true, .. }]));
        let mut side = Side::client(Limits::default());
        side.ask(request, true);
        side.feed(&[headers(1, 0, &told), data_end(1, b"")].concat());
        side.expect_no_fault();
        assert_eq!(side.conn.streams(), 0);
        refused_response(&[headers(1, 0, &told), data_end(1, b"abc")].concat(), request);
    }
    // The caller may know it otherwise.
    let mut side = Side::client(Limits::default());
    let key = side.ask(GET, true);
    side.conn.set_head_request(key);
    side.feed(&headers(1, END_STREAM, &[(":status", "200"), ("content-length", "3")]));
    side.expect_no_fault();
}

#[test]
fn s8_2_malformed_fields_are_refused() {
    for bad in [
        ("X-Upper", "a"),
        ("", "a"),
        ("a b", "a"),
        ("a:b", "a"),
        ("x", "a\nb"),
        ("x", "a\rb"),
        ("x", "a\0b"),
        ("x", " a"),
        ("x", "a "),
        ("x", "\ta"),
        ("x", "a\u{7f}"),
    ] {
        refused_request(&[GET, &[bad]].concat());
        refused_response(&headers(1, 0, &[OK, &[bad]].concat()), GET);
        refused_response(&[headers(1, 0, OK), headers(1, END_STREAM, &[bad])].concat(), GET);
    }
}

#[test]
fn s8_2_2_connection_specific_fields_are_refused() {
    for bad in [
        ("connection", "keep-alive"),
        ("keep-alive", "timeout=5"),
        ("proxy-connection", "close"),
        ("transfer-encoding", "chunked"),
        ("upgrade", "websocket"),
        ("te", "gzip"),
        ("te", "trailers,gzip"),
    ] {
        refused_request(&[GET, &[bad]].concat());
        refused_response(&headers(1, 0, &[OK, &[bad]].concat()), GET);
    }
    let mut side = Side::server(Limits::default());
    side.feed(&headers(1, 0, &[POST, &[("te", "trailers")]].concat()));
    assert_eq!(side.seen.len(), 1);
}

#[test]
fn s8_2_3_cookie_crumbs_pass_in_order() {
    server(|side| {
        side.feed(&headers(
            1,
            END_STREAM,
            &[GET, &[("cookie", "a=1"), ("cookie", "b=2")]].concat(),
        ));
        let Some(Seen::Head { fields, .. }) = side.seen.last() else { panic!() };
        let crumbs: Vec<_> = fields.iter().filter(|f| f.0 == "cookie").map(|f| &f.1[..]).collect();
        assert_eq!(crumbs, ["a=1", "b=2"]);
    });
}

#[test]
fn s8_3_1_requests_need_their_pseudo_headers() {
    for missing in 0..3 {
        let mut fields = GET.to_vec();
        fields.remove(missing);
        refused_request(&fields);
    }
    for twice in GET {
        refused_request(&[GET, &[*twice]].concat());
    }
    let cases: [Pairs<'_>; 5] = [
        &[(":status", "200")],
        &[(":protocol", "websocket")],
        &[(":unknown", "x")],
        &[("x", "y"), (":authority", "b")],
        &[("host", "other")],
    ];
    for extra in cases {
        refused_request(&[&GET[..3], &[(":authority", "a")], extra].concat());
    }
}

#[test]
fn s8_3_1_paths_begin_with_a_slash() {
    let with = |method, path| [(":method", method), (":scheme", "http"), (":path", path)];
    for (method, path) in [("GET", ""), ("GET", "a"), ("GET", "*"), ("GET", "http://a/")] {
        refused_request(&with(method, path));
    }
    let mut side = Side::server(Limits::default());
    side.feed(&headers(1, END_STREAM, &with("OPTIONS", "*")));
    assert_eq!(side.seen.len(), 1);
}

#[test]
fn s8_3_2_responses_have_one_status_first() {
    let bad: [Pairs<'_>; 9] = [
        &[],
        &[("x", "y")],
        &[(":status", "200"), (":status", "200")],
        &[("x", "y"), (":status", "200")],
        &[(":status", "2000")],
        &[(":status", "20")],
        &[(":status", "abc")],
        &[(":status", "101")],
        &[(":status", "200"), (":path", "/")],
    ];
    for fields in bad {
        refused_response(&headers(1, 0, fields), GET);
    }
}

#[test]
fn s8_4_connect_is_refused() {
    refused_request(&[(":method", "CONNECT"), (":authority", "a:1")]);
    refused_request(&[GET, &[(":protocol", "websocket")]].concat());
}

#[test]
fn s8_6_informational_heads_pass_up_to_eight() {
    client(|side| {
        side.ask(GET, true);
        side.feed(&headers(1, 0, &[(":status", "100")]));
        for _ in 0..7 {
            side.feed(&headers(1, 0, &[(":status", "103"), ("link", "x")]));
        }
        side.feed(&headers(1, END_STREAM, OK));
        side.expect_no_fault();
        let kinds = side.seen.iter().map(|seen| match seen {
            Seen::Head { kind, .. } => *kind,
            other => panic!("{other:?}"),
        });
        let informational = kinds.filter(|kind| *kind == HeadKind::Informational).count();
        assert_eq!((side.seen.len(), informational), (9, 8));
    });
    let flood = headers(1, 0, &[(":status", "103")]).repeat(9);
    refused_response(&flood, GET);
}

#[test]
fn s8_6_an_informational_head_does_not_end_the_stream() {
    refused_response(&headers(1, END_STREAM, &[(":status", "103")]), GET);
}

#[test]
fn we_send_informational_heads_before_the_response() {
    let mut side = Side::server(Limits::default());
    side.feed(&get(1));
    let key = side.last_key();
    side.head(key, &[(":status", "103")], false);
    side.head(key, OK, false);
    side.send(key, b"x", false);
    side.head(key, GRPC_OK, true);
    let sent: Vec<_> = side.sent().iter().map(|f| (f.kind, f.flags)).collect();
    let plain = (HEADERS, END_HEADERS);
    assert_eq!(sent, [plain, plain, (DATA, 0), (HEADERS, END_HEADERS | END_STREAM)]);
    assert!(!side.conn.is_open(key));
}

#[test]
fn l2_a_head_too_large_is_the_relays_to_answer() {
    let limits = Limits {
        headers: ringway_proto::hpack::HeaderLimits { max_size: 400, max_fields: 20 },
        ..Limits::default()
    };
    play(Role::Server, limits, |side| {
        side.feed(&headers(1, 0, &[POST, &[("x", "y"); 7]].concat()));
        side.feed(&data_end(1, b"x"));
        side.expect_no_fault();
        let told = side.take_seen();
        assert_eq!(told[0], Seen::TooLarge { id: 1, end: false });
        assert!(side.fields.len() < 11 && side.fields.len() >= 4);
        side.head(side.last_key(), &[(":status", "431")], true);
        assert_eq!(side.conn.streams(), 0);
    });
    play(Role::Client, limits, |side| {
        side.ask(GET, true);
        side.feed(&headers(1, 0, OK));
        side.feed(&headers(1, END_STREAM, &[("x", "y"); 21]));
        assert_eq!(side.seen.last(), Some(&Seen::TooLarge { id: 1, end: true }));
        assert_eq!(side.conn.streams(), 0);
    });
}
