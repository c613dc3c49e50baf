//! Trailers come behind a body: one rule for both versions and both directions (RFC 9110 §6.5.1).

use ringway_proto::h2::{ErrorCode, HeadKind};

use crate::http1::{Rig, request};
use crate::peer::{Peer, Seen};
use crate::world::World;

/// Names that do not pass in trailers: the gateway sets or removes them in heads, or they frame,
/// route or authorise a message or say how to read it.
const LATE: &[&str] = &[
    "nvcf-reqid",
    "forwarded",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-proto",
    "x-forwarded-port",
    "function-id",
    "function-version-id",
    "sec-websocket-protocol",
    "sec-websocket-key",
    "sec-websocket-accept",
    "authorization",
    "proxy-authorization",
    "proxy-authenticate",
    "proxy-authentication-info",
    "www-authenticate",
    "cookie",
    "set-cookie",
    "trailer",
    "http2-settings",
    "expect",
    "max-forwards",
    "range",
    "if-match",
    "cache-control",
    "pragma",
    "content-type",
    "content-encoding",
    "content-range",
];

/// In HTTP/2 they make a message malformed wherever they stand (RFC 9113 §8.1, §8.2.2); HTTP/1
/// drops them behind a body.
const MALFORMED: &[&str] = &[
    "connection",
    "keep-alive",
    "proxy-connection",
    "transfer-encoding",
    "upgrade",
    "content-length",
    "host",
];

/// Trailers that pass, in this order.
const PASSING: &[(&str, &str)] = &[
    ("grpc-status", "0"),
    ("grpc-message", "all%20well"),
    ("grpc-status-details-bin", "AAEC"),
    ("x-meta", "1"),
    ("x-meta-bin", "AAEC"),
    ("x-meta", "2"),
    ("server-timing", "a;dur=1"),
    ("date", "today"),
];

/// All that pass and all that do not, mixed; `te` has only one value that HTTP/2 takes.
fn mixed(more: &'static [&'static str]) -> Vec<(&'static str, &'static str)> {
    let mut fields = vec![("te", "trailers")];
    let mut passing = PASSING.iter();
    for late in LATE.iter().chain(more) {
        fields.push((late, "7"));
        fields.extend(passing.next());
    }
    fields.extend(passing);
    fields
}

/// The last section of a stream that a peer saw.
fn trailers(peer: &Peer, stream: u32) -> Vec<(String, String)> {
    let of = |seen: &&Seen| matches!(seen, Seen::Head { stream: id, .. } if *id == stream);
    match peer.seen.iter().rfind(of) {
        Some(Seen::Head { kind: HeadKind::Trailers, fields, end: true, .. }) => fields.clone(),
        other => panic!("no trailers: {other:?}"),
    }
}

fn owned(fields: &[(&str, &str)]) -> Vec<(String, String)> {
    fields.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect()
}

#[test]
fn over_http_2_late_names_are_left_out_both_ways_and_the_rest_passes() {
    let mut world = World::new();
    let mut client = Peer::client(&mut world);
    let mut worker = None;
    // The second and third time the block repeats; the fourth it waits behind a body.
    for n in 0..4 {
        let call = client.request(&mut world, &[], false);
        let worker = worker.get_or_insert_with(|| Peer::worker(&mut world));
        worker.sync(&mut world);
        client.data(&mut world, call, b"question", false);
        client.head(&mut world, call, &mixed(&[]), true);
        worker.sync(&mut world);
        let key = worker.key(n);
        assert_eq!(worker.body(key.id()).0, b"question");
        assert_eq!(trailers(worker, key.id()), owned(PASSING), "up, call {n}");
        worker.head(&mut world, key, &[(":status", "200")], false);
        world.block(client.conn, n == 3);
        worker.data(&mut world, key, &[7; 60_000], false);
        worker.head(&mut world, key, &mixed(&[]), true);
        world.block(client.conn, false);
        client.sync(&mut world);
        assert_eq!(client.body(call.id()).0, [7; 60_000]);
        assert_eq!(trailers(&client, call.id()), owned(PASSING), "down, call {n}");
    }
}

#[test]
fn over_http_2_each_late_name_alone_leaves_a_plain_end() {
    let mut world = World::new();
    let mut client = Peer::client(&mut world);
    let mut worker = None;
    let names = LATE.iter().map(|name| (*name, "7")).chain([("te", "trailers")]);
    for (n, late) in names.enumerate() {
        let call = client.request(&mut world, &[], false);
        let worker = worker.get_or_insert_with(|| Peer::worker(&mut world));
        worker.sync(&mut world);
        client.head(&mut world, call, &[late], true);
        worker.sync(&mut world);
        let key = worker.key(n);
        assert_eq!(worker.body(key.id()), (Vec::new(), true), "up, {late:?}");
        worker.head(&mut world, key, &[(":status", "200")], false);
        worker.data(&mut world, key, b"answer", false);
        worker.head(&mut world, key, &[late], true);
        client.sync(&mut world);
        assert_eq!(client.body(call.id()), (b"answer".to_vec(), true), "down, {late:?}");
    }
    let worker = worker.expect("a tunnel");
    let sections = |peer: &Peer| peer.heads().len();
    assert_eq!((sections(&client), sections(&worker)), (LATE.len() + 1, LATE.len() + 1));
}

#[test]
fn over_http_2_what_is_malformed_ends_its_stream() {
    for name in MALFORMED {
        let mut world = World::new();
        let mut client = Peer::client(&mut world);
        let (one, two) =
            (client.request(&mut world, &[], false), client.request(&mut world, &[], true));
        let mut worker = Peer::worker(&mut world);
        worker.sync(&mut world);
        client.head(&mut world, one, &[("x-meta", "1"), (name, "7")], true);
        worker.sync(&mut world);
        let reset = Seen::Reset { stream: 1, code: ErrorCode::InternalError };
        assert!(worker.seen.contains(&reset), "{name}: {:?}", worker.seen);
        let key = worker.key(1);
        worker.head(&mut world, key, &[(":status", "200")], false);
        worker.head(&mut world, key, &[("x-meta", "1"), (name, "7")], true);
        client.sync(&mut world);
        let reset = Seen::Reset { stream: two.id(), code: ErrorCode::InternalError };
        assert!(client.seen.contains(&reset), "{name}: {:?}", client.seen);
    }
}

/// A body in chunks with these trailers.
fn chunked(fields: &[(&str, &str)]) -> String {
    let lines: String = fields
        .iter()
        .map(|(name, value)| format!("{}: {value}\r\n", name.to_uppercase()))
        .collect();
    format!("2\r\nab\r\n0\r\n{lines}\r\n")
}

#[test]
fn over_http_1_late_names_are_left_out_both_ways_and_the_rest_passes() {
    let passing: String =
        PASSING.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let end = format!("2\r\nab\r\n0\r\n{passing}\r\n");
    let mut rig = Rig::unkept();
    rig.warm_up();
    for _ in 0..2 {
        let body = chunked(&mixed(MALFORMED));
        rig.ask(&request("POST / HTTP/1.1", "Transfer-Encoding: chunked\r\n", &body));
        let said = rig.at_worker();
        assert!(said.ends_with(&format!("\r\n\r\n{end}")), "{said}");
        rig.answer(&format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{body}"));
        let said = rig.at_client();
        assert!(said.ends_with(&format!("\r\n\r\n{end}")), "{said}");
    }
    for late in LATE.iter().chain(MALFORMED).chain(&["te"]) {
        let body = chunked(&[(late, "7")]);
        rig.ask(&request("POST / HTTP/1.1", "Transfer-Encoding: chunked\r\n", &body));
        let said = rig.at_worker();
        assert!(said.ends_with("\r\n\r\n2\r\nab\r\n0\r\n\r\n"), "up, {late}: {said}");
        rig.answer(&format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{body}"));
        let said = rig.at_client();
        assert!(said.ends_with("\r\n\r\n2\r\nab\r\n0\r\n\r\n"), "down, {late}: {said}");
    }
    rig.end();
}
