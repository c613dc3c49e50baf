//! RFC 9112 in both roles of a connection: what is read, what is written, and the state between
//! messages.

mod h1_script;

use h1_script::{GET, Seen, answer, ask, conn, data, fault_of, feed_cut, fields, head, read};
use ringway_proto::fields::Fields;
use ringway_proto::h1::head::HeadFault;
use ringway_proto::h1::{Conn, Event, Fault, H2C_ACCEPTED, HeadKind, Limits, Role, h2c_settings};

fn server() -> Conn {
    conn(Role::Server)
}

fn client() -> Conn {
    conn(Role::Client)
}

/// Everything that is written after a head: payloads with their framing, then the end.
fn body(conn: &mut Conn, pieces: &[&str], trailers: Option<&Fields>) -> Result<String, Fault> {
    let mut out = Vec::new();
    for piece in pieces {
        out.extend_from_slice(conn.data_head(piece.len(), false)?.as_bytes());
        out.extend_from_slice(piece.as_bytes());
    }
    conn.finish(trailers, &mut out)?;
    Ok(String::from_utf8_lossy(&out).into_owned())
}

const REQUEST: HeadKind = HeadKind::Request;
const RESPONSE: HeadKind = HeadKind::Response;

#[test]
fn s3_a_request_becomes_a_list() {
    let (seen, left) =
        read(server, "\r\nGET /a?b HTTP/1.1\r\nX-A: 1\r\nHost: H:1\r\nTE: x\r\n\r\nnext");
    let list =
        [(":method", "GET"), (":path", "/a?b"), (":authority", "H:1"), ("x-a", "1"), ("te", "x")];
    assert_eq!((seen, left), (vec![head(REQUEST, true, &list)], 4), "the next one waits");
}

#[test]
fn s3_2_all_forms_of_a_target_become_a_path() {
    for (line, path) in [
        ("GET http://h/a?b", "/a?b"),
        ("GET HTTP://H/", "/"),
        ("GET https://h", "/"),
        ("GET http://h?q", "/?q"),
        ("OPTIONS *", "*"),
        ("OPTIONS http://h", "*"),
        ("OPTIONS http://h/", "/"),
    ] {
        let (seen, _) = read(server, format!("{line} HTTP/1.1\r\nHost: h\r\n\r\n"));
        let [Seen::Head { list, .. }] = &seen[..] else { panic!("{line}: {seen:?}") };
        assert_eq!(list[1], (":path".to_owned(), path.to_owned()), "{line}");
        let authority = if line.contains("//H") { "H" } else { "h" };
        assert_eq!(list[2], (":authority".to_owned(), authority.to_owned()), "{line}");
    }
    // RFC 9112 §3.2.2: the target's authority is meant, and nothing is left of the other one.
    for (target, authority) in
        [("http://b.test/x", "b.test"), ("http://B:80/x", "B:80"), ("https://[::1]:8/x", "[::1]:8")]
    {
        for host in ["a.test", "b.test", ""] {
            let request = format!("GET {target} HTTP/1.1\r\nX: 1\r\nHost: {host}\r\nY: 2\r\n\r\n");
            let (seen, _) = read(server, request);
            let list = [
                (":method", "GET"),
                (":path", "/x"),
                (":authority", authority),
                ("x", "1"),
                ("y", "2"),
            ];
            assert_eq!(seen, [head(REQUEST, true, &list)], "{target} {host}");
        }
    }
    let (seen, _) = read(server, "GET http://h/ HTTP/1.0\r\n\r\n");
    let list = [(":method", "GET"), (":path", "/"), (":authority", "h")];
    assert_eq!(seen, [head(REQUEST, true, &list)], "HTTP/1.0 may leave out Host");
    for line in [
        "CONNECT h:1",
        "CONNECT /v1/proxy",
        "GET http:///a",
        "GET http://u@h/",
        "GET ftp://h/",
        "GET *",
        "GET a",
        "GET h/a",
        "GET http:/h/",
    ] {
        let fault = fault_of(server, format!("{line} HTTP/1.1\r\nHost: h\r\n\r\n"));
        assert_eq!(fault.map(|fault| fault.status(Role::Server)), Some(400), "{line}");
    }
}

#[test]
fn s6_request_bodies_by_length_and_in_chunks() {
    let list = [(":method", "POST"), (":path", "/"), (":authority", "a"), ("content-length", "5")];
    let (seen, left) =
        read(server, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhellonext");
    assert_eq!(seen, [head(REQUEST, false, &list), data("hello", true)]);
    assert_eq!(left, 4);
    let list = [
        (":method", "POST"),
        (":path", "/"),
        (":authority", "a"),
        ("transfer-encoding", "chunked"),
    ];
    let start = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    let (seen, left) = read(server, format!("{start}3\r\nhel\r\n2;x=y\r\nlo\r\n0\r\n\r\nnext"));
    assert_eq!(seen, [head(REQUEST, false, &list), data("hello", false), Seen::End]);
    assert_eq!(left, 4);
    let (seen, left) =
        read(server, format!("{start}0\r\nA: 1\r\nContent-Length: 9\r\nCookie: x\r\n\r\nnext"));
    let trailers = Seen::Trailers(vec![("a".into(), "1".into())]);
    assert_eq!(seen, [head(REQUEST, false, &list), trailers], "RFC 9110 §6.5.1");
    assert_eq!(left, 4);
    let (seen, _) = read(server, format!("{start}0\r\nHost: x\r\n\r\n"));
    assert_eq!(seen.last(), Some(&Seen::End), "nothing is left of these trailers");
}

#[test]
fn s7_1_2_trailers_have_limits() {
    let start = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n";
    let many = fault_of(server, format!("{start}{}\r\n", "a: b\r\n".repeat(1025)));
    assert_eq!(many, Some(Fault::Broken(HeadFault::TooManyFields)));
    let fresh = server;
    let mut conn = fresh();
    let long = format!("{start}a: {}\r\n\r\n", "b".repeat(263_000));
    let (seen, _) = feed_cut(&mut conn, long.as_bytes(), &[100, 9000]);
    assert_eq!(seen.last(), Some(&Seen::Fault(Fault::Broken(HeadFault::TooLarge))));
    assert!(conn.held() <= 256 * 1024);
    let most = format!("{start}{}\r\n", "a: b\r\n".repeat(1024));
    let (seen, _) = read(server, most);
    assert!(matches!(seen.last(), Some(Seen::Trailers(list)) if list.len() == 1024));
    for broken in ["a : b\r\n\r\n", "a\r\n\r\n", " a: b\r\n\r\n", "a: b\n\r\n", "a: \0\r\n\r\n"] {
        assert!(fault_of(fresh, format!("{start}{broken}")).is_some(), "{broken:?}");
    }
}

#[test]
fn s9_3_a_connection_takes_one_request_after_the_other() {
    let two = b"GET /1 HTTP/1.1\r\nHost: a\r\n\r\nGET /2 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\nrest";
    let mut conn = server();
    assert!(conn.is_between());
    let (seen, left) = feed_cut(&mut conn, two, &[]);
    assert_eq!((seen.len(), left.len()), (1, two.len() - 28));
    assert!(!conn.is_between() && !conn.next_message());
    let out = answer(&mut conn, &[(":status", "200")], true);
    assert_eq!(out, "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n");
    assert!(conn.is_between() && conn.keeps_alive() && conn.next_message() && conn.is_between());
    let (seen, left) = feed_cut(&mut conn, left, &[]);
    assert!(matches!(&seen[..], [Seen::Head { list, .. }] if list[1].1 == "/2"));
    assert_eq!(left, b"rest");
    let out = answer(&mut conn, &[(":status", "404"), ("content-length", "2")], false);
    assert_eq!(out, "HTTP/1.1 404 Not Found\r\ncontent-length: 2\r\nconnection: close\r\n\r\n");
    assert_eq!(body(&mut conn, &["x", "y"], None).unwrap(), "xy");
    assert!(!conn.keeps_alive() && !conn.next_message());
}

#[test]
fn s9_3_http_1_0_is_kept_alive_only_if_it_asks() {
    for (asks, keeps) in [
        ("", false),
        ("Connection: keep-alive\r\n", true),
        ("Connection: keep-alive, close\r\n", false),
    ] {
        let mut conn = server();
        feed_cut(&mut conn, format!("GET / HTTP/1.0\r\n{asks}\r\n").as_bytes(), &[]);
        let out = answer(&mut conn, &[(":status", "200"), ("content-length", "0")], true);
        assert_eq!(out.contains("connection: keep-alive\r\n"), keeps);
        assert_eq!(out.contains("connection: close\r\n"), !keeps);
        assert_eq!(conn.next_message(), keeps);
    }
}

#[test]
fn s6_1_http_1_0_gets_no_chunks_and_no_1xx() {
    let mut conn = server();
    feed_cut(&mut conn, b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", &[]);
    assert_eq!(answer(&mut conn, &[(":status", "103")], false), "");
    let out = answer(&mut conn, &[(":status", "200")], false);
    assert_eq!(out, "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n");
    assert!(conn.body_is_until_close() && !conn.keeps_alive());
    assert_eq!(body(&mut conn, &["a", "b"], Some(&fields(&[("t", "1")]))).unwrap(), "ab");
    assert!(!conn.next_message());
}

#[test]
fn s7_1_chunks_are_written_with_trailers() {
    let mut conn = server();
    feed_cut(&mut conn, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", &[]);
    let out = answer(
        &mut conn,
        &[(":status", "299"), ("x", "1"), ("connection", "x"), ("upgrade", "y")],
        false,
    );
    assert_eq!(out, "HTTP/1.1 299 \r\nx: 1\r\ntransfer-encoding: chunked\r\n\r\n");
    let trailers =
        fields(&[("grpc-status", "0"), ("content-length", "1"), ("bad", "a\r\nb"), (":x", "")]);
    let sixteen = "x".repeat(16);
    let out = body(&mut conn, &["a", "", &sixteen], Some(&trailers)).unwrap();
    assert_eq!(out, format!("1\r\na\r\n10\r\n{sixteen}\r\n0\r\ngrpc-status: 0\r\n\r\n"));
    assert!(conn.next_message());
}

#[test]
fn s6_3_what_has_no_content_gets_none() {
    for (method, status, out) in [
        ("HEAD", "200", "HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\n"),
        ("GET", "204", "HTTP/1.1 204 No Content\r\n\r\n"),
        ("GET", "304", "HTTP/1.1 304 Not Modified\r\ncontent-length: 7\r\n\r\n"),
    ] {
        for end in [true, false] {
            let mut conn = server();
            feed_cut(&mut conn, format!("{method} / HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes(), &[]);
            let list = [(":status", status), ("content-length", "7")];
            assert_eq!(answer(&mut conn, &list, end), out);
            assert_eq!(conn.data_head(1, false), Err(Fault::WrongLength));
            assert_eq!(body(&mut conn, &[""], None).unwrap(), "");
            assert!(conn.next_message());
        }
    }
    let mut conn = server();
    feed_cut(&mut conn, b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n", &[]);
    assert!(conn.request_method_is_head());
    assert_eq!(answer(&mut conn, &[(":status", "200")], false), "HTTP/1.1 200 OK\r\n\r\n");
}

#[test]
fn s6_2_a_length_is_kept_to_the_byte() {
    for (pieces, end, fits) in [
        (&["abc"][..], true, true),
        (&["ab"], true, false),
        (&["ab"], false, true),
        (&["abcd"], false, false),
    ] {
        let mut conn = server();
        feed_cut(&mut conn, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", &[]);
        answer(&mut conn, &[(":status", "200"), ("content-length", "3")], false);
        assert_eq!(conn.data_head(pieces[0].len(), end).is_ok(), fits, "{pieces:?}");
        let whole = pieces[0].len() == 3;
        assert_eq!(conn.finish(None, &mut Vec::new()).is_ok(), whole, "{pieces:?}");
        assert_eq!(conn.next_message(), whole);
    }
}

#[test]
fn s10_1_1_a_client_that_waits_gets_the_workers_100() {
    let post = b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n";
    let mut conn = server();
    feed_cut(&mut conn, post, &[]);
    assert!(conn.expects_continue());
    let out = answer(&mut conn, &[(":status", "100"), ("content-length", "0"), ("a", "b")], false);
    assert_eq!(out, "HTTP/1.1 100 Continue\r\na: b\r\n\r\n");
    assert!(!conn.expects_continue());
    answer(&mut conn, &[(":status", "200")], true);
    assert!(!conn.next_message(), "its body is still to come");
    assert_eq!(feed_cut(&mut conn, b"ok", &[]).0, [data("ok", true)]);
    assert!(conn.next_message());
    let mut conn = server();
    feed_cut(&mut conn, post, &[]);
    let out = answer(&mut conn, &[(":status", "413")], true);
    assert!(out.contains("connection: close\r\n"), "whether the body comes cannot be told");
}

#[test]
fn s3_requests_are_written_anew() {
    let mut conn = Conn::new(Role::Client, Limits::default());
    let list = [
        (":method", "POST"),
        (":path", "/a?b"),
        (":authority", "h:1"),
        (":scheme", "http"),
        ("x", "1"),
        ("host", "other"),
        ("connection", "x"),
        ("te", "trailers"),
        ("keep-alive", "1"),
        ("bad", "a\nb"),
        ("proxy-connection", "x"),
        ("transfer-encoding", "chunked"),
        ("http2-settings", "AAAA"),
    ];
    assert_eq!(
        ask(&mut conn, &list, false),
        "POST /a?b HTTP/1.1\r\nhost: h:1\r\nx: 1\r\nte: trailers\r\n\
         transfer-encoding: chunked\r\nconnection: te\r\n\r\n"
    );
    assert_eq!(body(&mut conn, &["abc"], None).unwrap(), "3\r\nabc\r\n0\r\n\r\n");
    let mut conn = Conn::new(Role::Client, Limits::default());
    let list = [(":method", "PUT"), (":path", "*"), ("content-length", "3")];
    let refused = conn.request(fields(&list).iter(), false, &mut Vec::new());
    assert_eq!(refused, Err(Fault::Unwritable));
    let list = [(":method", "PUT"), (":path", "/"), ("host", "h"), ("content-length", "3")];
    let out = ask(&mut conn, &list, false);
    assert_eq!(out, "PUT / HTTP/1.1\r\nhost: h\r\ncontent-length: 3\r\n\r\n");
    for (method, path) in
        [("G T", "/"), ("", "/"), ("GET", ""), ("GET", "/ HTTP/1.1"), ("GET", "a")]
    {
        let list = fields(&[(":method", method), (":path", path)]);
        let mut conn = Conn::new(Role::Client, Limits::default());
        let mut out = Vec::new();
        assert_eq!(conn.request(list.iter(), true, &mut out), Err(Fault::Unwritable), "{path}");
        assert!(out.is_empty() && conn.is_between());
    }
}

#[test]
fn s4_responses_become_lists() {
    let (seen, _) = read(client, "HTTP/1.1 200 Fine \u{e4}\r\nX: Y\r\nContent-Length: 2\r\n\r\nok");
    let list = [(":status", "200"), ("x", "Y"), ("content-length", "2")];
    assert_eq!(seen, [head(RESPONSE, false, &list), data("ok", true)]);
    for status in ["HTTP/1.1 200", "HTTP/1.1 200 ", "HTTP/1.0 200 x", "HTTP/1.2 200 x"] {
        let (seen, _) = read(client, format!("{status}\r\nContent-Length: 0\r\n\r\n"));
        assert_eq!(seen, [head(RESPONSE, true, &[(":status", "200"), ("content-length", "0")])]);
    }
    for broken in [
        "\r\nHTTP/1.1 200 OK",
        "HTTP/1.1 20 OK",
        "HTTP/1.1 2000 OK",
        "HTTP/1.1  200 OK",
        "HTTP/1.1 000 x",
        "HTTP/1.1 099 x",
        "HTTP/1.1 +20 x",
        "HTTP/2.0 200 OK",
        "http/1.1 200 OK",
        "200 OK",
        "HTTP/1.1\t200 OK",
        "HTTP/1.1",
        "GET / HTTP/1.1",
        "HTTP/1.1 200 a\0",
    ] {
        let fault = fault_of(client, format!("{broken}\r\nContent-Length: 0\r\n\r\n"));
        assert_eq!(fault.map(|fault| fault.status(Role::Client)), Some(502), "{broken}");
    }
}

#[test]
fn s15_every_status_passes() {
    for number in 102..1000 {
        let status = number.to_string();
        let (seen, _) = read(client, format!("HTTP/1.1 {status} x\r\nContent-Length: 0\r\n\r\n"));
        let kind = if number < 200 { HeadKind::Informational } else { RESPONSE };
        let end = number >= 200;
        let list = [(":status", &*status), ("content-length", "0")];
        assert_eq!(seen, [head(kind, end, &list)], "{status}");
        let mut conn = server();
        let mut out = Vec::new();
        conn.response(fields(&[(":status", &status)]).iter(), true, &mut out).unwrap();
        assert!(out.starts_with(format!("HTTP/1.1 {status} ").as_bytes()), "{status}");
    }
}

#[test]
fn s10_1_4_te_passes_as_trailers_or_not_at_all() {
    for (said, passes) in [
        (&["trailers"][..], true),
        (&["trailers, deflate;q=0.5"], true),
        (&["deflate;q=0.5 ,\tTrailers"], true),
        (&["gzip", "trailers"], true),
        (&["trailers", "trailers"], true),
        (&["deflate"], false),
        (&["trailers;q=0.5"], false),
        (&["xtrailers"], false),
        (&[""], false),
    ] {
        let mut list = vec![(":method", "GET"), (":path", "/"), ("host", "h")];
        list.extend(said.iter().map(|value| ("te", *value)));
        let out = ask(&mut Conn::new(Role::Client, Limits::default()), &list, true);
        let te = if passes { "te: trailers\r\nconnection: te\r\n" } else { "" };
        assert_eq!(out, format!("GET / HTTP/1.1\r\nhost: h\r\n{te}\r\n"), "{said:?}");
    }
}

#[test]
fn s2_2_empty_lines_before_a_request_are_no_part_of_one() {
    const ASK: &str = "GET / HTTP/1.1\r\nHost: h\r\n\r\n";
    let list = [(":method", "GET"), (":path", "/"), (":authority", "h")];
    for lines in 0..=4 {
        let input = "\r\n".repeat(lines) + ASK;
        let (seen, left) = read(server, &*input);
        assert_eq!((seen, left), (vec![head(REQUEST, true, &list)], 0), "{lines}");
    }
    assert!(fault_of(server, "\r\n".repeat(5) + ASK).is_some());
    // Old clients send empty lines behind a body. Nothing waits for more after them, however they
    // are cut.
    for input in [&b"\r\n"[..], b"\r\n\r\n", b"\r\n\r\n\r\n\r\n"] {
        let mut conn = server();
        for piece in input.chunks(1) {
            let mut pos = 0;
            assert_eq!(conn.next(piece, &mut pos, &mut Fields::new()), Ok(Event::More));
            assert_eq!(pos, 1);
        }
        assert!(conn.is_between() && conn.held() == 0, "{input:?}");
    }
}

#[test]
fn s6_3_responses_are_framed_by_the_first_rule_that_fits() {
    let framed =
        |fields: &str| read(client, format!("HTTP/1.1 200 OK\r\n{fields}\r\n2\r\nab\r\n0\r\n\r\n"));
    assert_eq!(framed("Transfer-Encoding: Chunked\r\n").0[1..], [data("ab", false), Seen::End]);
    assert_eq!(framed("Content-Length: 12\r\n").0[1..], [data("2\r\nab\r\n0\r\n\r\n", true)]);
    assert_eq!(framed("Content-Length: 12, 12\r\nContent-Length: 12\r\n").0.len(), 2);
    assert_eq!(framed("").0[1..], [data("2\r\nab\r\n0\r\n\r\n", false)]);
    for broken in [
        "Content-Length: 12\r\nTransfer-Encoding: chunked\r\n",
        "Content-Length: 12, 13\r\n",
        "Content-Length: 12\r\nContent-Length: 13\r\n",
        "Content-Length: +12\r\n",
        "Content-Length: 12,\r\n",
        "Transfer-Encoding: gzip, chunked\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked, chunked\r\n",
        "Transfer-Encoding: identity\r\n",
        "Transfer-Encoding:\r\n",
    ] {
        assert!(matches!(framed(broken).0[..], [Seen::Fault(Fault::Broken(_))]), "{broken}");
    }
}

#[test]
fn s6_3_no_body_whatever_the_fields_say() {
    let fresh = || {
        let mut conn = Conn::new(Role::Client, Limits::default());
        ask(&mut conn, &[(":method", "HEAD"), (":path", "/"), (":authority", "a")], true);
        conn
    };
    let (seen, left) = read(fresh, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
    assert!(matches!(seen[..], [Seen::Head { end: true, .. }]) && left == 0);
    for status in ["204 x", "304 x"] {
        let (seen, _) = read(client, format!("HTTP/1.1 {status}\r\nContent-Length: 5\r\n\r\n"));
        assert!(matches!(seen[..], [Seen::Head { end: true, .. }]));
        let splits = format!("HTTP/1.1 {status}\r\nContent-Length: 5\r\n\r\nhello");
        assert_eq!(fault_of(client, splits), Some(Fault::Unasked));
    }
}

#[test]
fn s6_3_until_close_ends_with_the_connection() {
    let mut conn = client();
    let (seen, _) = feed_cut(&mut conn, b"HTTP/1.1 200 OK\r\n\r\nabc", &[]);
    assert_eq!(seen, [head(RESPONSE, false, &[(":status", "200")]), data("abc", false)]);
    assert!(conn.body_is_until_close() && !conn.keeps_alive());
    assert_eq!(conn.eof(), Ok(Event::End));
    assert_eq!(conn.eof(), Ok(Event::More));
    assert!(!conn.keeps_alive());
}

#[test]
fn s8_an_end_within_a_message_is_told() {
    let whole = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\nA: b\r\n\r\n";
    for at in 0..=whole.len() {
        let mut conn = client();
        feed_cut(&mut conn, &whole.as_bytes()[..at], &[]);
        let end = if at == whole.len() { Ok(Event::More) } else { Err(Fault::Truncated) };
        assert_eq!(conn.eof(), end, "{at}");
    }
    let whole = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nab";
    for at in 0..=whole.len() {
        let mut conn = server();
        feed_cut(&mut conn, &whole.as_bytes()[..at], &[]);
        let clean = at == 0 || at == whole.len();
        assert_eq!(conn.eof().is_ok(), clean, "{at}");
        assert!(!conn.keeps_alive());
    }
}

#[test]
fn s15_2_informational_heads_come_before_the_response() {
    let hint = "HTTP/1.1 103 Early Hints\r\nLink: x\r\nContent-Length: 9\r\n\r\n";
    let last = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
    let (seen, _) = read(client, hint.repeat(16) + last);
    assert_eq!(seen.len(), 17);
    assert!(matches!(&seen[15], Seen::Head { kind: HeadKind::Informational, end: false, .. }));
    assert_eq!(fault_of(client, hint.repeat(17)), Some(Fault::TooManyInformational));
}

#[test]
fn s11_bytes_nobody_asked_for_are_a_fault() {
    let idle = || Conn::new(Role::Client, Limits::default());
    assert_eq!(fault_of(idle, "x"), Some(Fault::Unasked));
    let ok = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
    assert_eq!(read(client, ok.repeat(2)).0.pop(), Some(Seen::Fault(Fault::Unasked)));
    let mut conn = client();
    feed_cut(&mut conn, ok.as_bytes(), &[]);
    assert!(conn.is_between() && conn.keeps_alive());
    ask(&mut conn, &GET, true);
    assert_eq!(feed_cut(&mut conn, ok.as_bytes(), &[]).0.len(), 1);
    let mut conn = client();
    feed_cut(
        &mut conn,
        b"HTTP/1.1 200 OK\r\nConnection: X, Close\r\nContent-Length: 0\r\n\r\n",
        &[],
    );
    assert!(!conn.keeps_alive());
}

const ASK: [(&str, &str); 5] = [
    (":method", "GET"),
    (":path", "/"),
    (":authority", "a"),
    ("upgrade", "foo, WebSocket"),
    ("sec-websocket-protocol", "a.b"),
];

fn asking() -> Conn {
    let mut conn = Conn::new(Role::Client, Limits::default());
    ask(&mut conn, &ASK, true);
    conn
}

#[test]
fn cl_47_bytes_are_raw_only_after_the_101_that_was_asked_for() {
    let request = "GET / HTTP/1.1\r\nHost: a\r\nUpgrade: foo, WebSocket\r\nConnection: keep-alive, Upgrade\r\n\r\nab";
    let mut conn = server();
    let (seen, left) = feed_cut(&mut conn, request.as_bytes(), &[]);
    assert!(matches!(seen[..], [Seen::Head { upgrade: true, end: true, .. }]));
    let mut tunnel = Conn::new(Role::Client, Limits::default());
    assert_eq!(
        ask(&mut tunnel, &ASK, true),
        "GET / HTTP/1.1\r\nhost: a\r\nupgrade: foo, WebSocket\r\nsec-websocket-protocol: a.b\r\n\
         connection: upgrade\r\n\r\n"
    );
    let granted = "HTTP/1.1 101 x\r\nUpgrade: websocket\r\nConnection: upgrade\r\nA: b\r\n\r\ncd";
    let (heads, ahead) = feed_cut(&mut tunnel, granted.as_bytes(), &[]);
    assert!(matches!(
        heads[..],
        [Seen::Head { kind: HeadKind::Response, upgrade: true, end: false, .. }]
    ));
    assert_eq!(ahead, b"cd", "these are the stream's");
    assert!(!tunnel.is_raw() && !tunnel.is_between());
    let head =
        answer(&mut conn, &[(":status", "101"), ("upgrade", "websocket"), ("a", "b")], false);
    assert_eq!(
        head,
        "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\na: b\r\nconnection: upgrade\r\n\r\n"
    );
    for (hop, bytes) in [(&mut conn, left), (&mut tunnel, ahead)] {
        hop.raw();
        assert!(hop.is_raw() && !hop.is_between() && !hop.keeps_alive() && !hop.next_message());
        let text = std::str::from_utf8(bytes).unwrap();
        assert_eq!(feed_cut(hop, bytes, &[1]).0, [data(text, false)]);
        assert_eq!(hop.data_head(9, true).unwrap().as_bytes(), b"");
        assert_eq!(hop.eof(), Ok(Event::End));
    }
}

#[test]
fn cl_47_another_101_is_a_fault() {
    for granted in [
        "Upgrade: bar\r\nConnection: upgrade\r\n",
        "Upgrade: foo, websocket\r\nConnection: upgrade\r\n",
        "Upgrade: foo\r\nUpgrade: foo\r\nConnection: upgrade\r\n",
        "Upgrade: foo\r\n",
        "Connection: upgrade\r\n",
        "",
    ] {
        let fault = fault_of(asking, format!("HTTP/1.1 101 x\r\n{granted}\r\n"));
        assert_eq!(fault, Some(Fault::WrongUpgrade), "{granted}");
        assert_eq!(fault.map(|fault| fault.status(Role::Client)), Some(502));
    }
    let granted = "HTTP/1.1 101 x\r\nUpgrade: foo\r\nConnection: upgrade\r\n\r\n";
    assert_eq!(fault_of(client, granted), Some(Fault::WrongUpgrade), "nothing was asked");
    let sending = || {
        let mut conn = Conn::new(Role::Client, Limits::default());
        ask(&mut conn, &ASK, false);
        conn
    };
    assert_eq!(fault_of(sending, granted), Some(Fault::WrongUpgrade), "the request still runs");
    let (seen, _) = read(asking, "HTTP/1.1 400 x\r\nUpgrade: foo\r\nContent-Length: 2\r\n\r\nno");
    assert!(matches!(seen[..], [Seen::Head { upgrade: false, .. }, Seen::Data { .. }]));
}

#[test]
fn cl_47_who_asks_for_an_upgrade() {
    for (version, fields, asks) in [
        ("1.1", "Upgrade: websocket\r\nConnection: Upgrade\r\n", true),
        ("1.0", "Upgrade: websocket\r\nConnection: Upgrade\r\n", false),
        ("1.1", "Upgrade: websocket\r\n", false),
        ("1.1", "Connection: Upgrade\r\n", false),
        ("1.1", "Upgrade: , \r\nConnection: Upgrade\r\n", false),
        ("1.1", "Upgrade: websocket, H2C\r\nConnection: Upgrade\r\n", false),
    ] {
        let (seen, _) = read(server, format!("GET / HTTP/{version}\r\nHost: a\r\n{fields}\r\n"));
        assert!(matches!(seen[..], [Seen::Head { upgrade, .. }] if upgrade == asks), "{fields}");
    }
    let mut conn = Conn::new(Role::Client, Limits::default());
    let list = [&GET[..], &[("upgrade", "h2c"), ("http2-settings", "")]].concat();
    assert_eq!(ask(&mut conn, &list, true), "GET / HTTP/1.1\r\nhost: a\r\n\r\n", "never on");
}

#[test]
fn cl_48_h2c_is_recognised_by_all_of_its_fields() {
    let settings = |pairs: &[(&str, &str)]| h2c_settings(&fields(pairs));
    let both = ("connection", "Upgrade, HTTP2-Settings");
    let asked = ("upgrade", "websocket, h2c");
    let payload = ("http2-settings", "AAMAAABkAAQAAP__");
    let bytes = vec![0, 3, 0, 0, 0, 100, 0, 4, 0, 0, 0xff, 0xff];
    assert_eq!(settings(&[both, asked, payload]), Some(bytes));
    assert_eq!(settings(&[both, asked, ("http2-settings", "")]), Some(vec![]));
    for wrong in [
        &[both, asked][..],
        &[both, payload],
        &[asked, payload],
        &[both, ("upgrade", "h2"), payload],
        &[("connection", "upgrade"), asked, payload],
        &[("connection", "http2-settings"), asked, payload],
        &[both, asked, payload, payload],
        &[both, asked, ("http2-settings", "AAMAAABk=")],
        &[both, asked, ("http2-settings", "AAMAAABkAAQAAP//")],
        &[both, asked, ("http2-settings", "AAMAAABkAA")],
        &[both, asked, ("http2-settings", "AAMAAABk, AAMAAABk")],
    ] {
        assert_eq!(settings(wrong), None, "{wrong:?}");
    }
}

#[test]
fn cl_48_the_answer_is_the_101_of_its_rfc() {
    let fresh = || {
        let mut conn = Conn::new(Role::Client, Limits::default());
        ask(&mut conn, &GET, true);
        conn
    };
    let accepted = String::from_utf8_lossy(H2C_ACCEPTED);
    assert!(accepted.ends_with("connection: upgrade\r\nupgrade: h2c\r\n\r\n"), "{accepted}");
    // No worker is ever asked for h2c, so a worker that agrees to it is at fault.
    assert_eq!(fault_of(fresh, H2C_ACCEPTED), Some(Fault::WrongUpgrade));
}
