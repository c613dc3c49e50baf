//! Functions with `dial`: the gateway connects to their server itself.

use std::net::SocketAddr;
use std::time::Duration;

use ringway::net::{End, Listener};
use ringway_proto::h2::ErrorCode;

use crate::peer::{Peer, poll_request};
use crate::world::{FUNCTION, World};

const DIAL: &str = "dial = \"127.0.0.1:50051\"";
/// The same, and a client's end is its tunnel's.
const UNKEPT: &str = "dial = \"127.0.0.1:50051\"\n[session]\npark = \"never\"";
const REFUSED: i32 = 111;
const TIMED_OUT: i32 = 110;

/// A client and the server dialled for it, after a first call; and the session's id.
fn dialled(world: &mut World) -> (Peer, Peer, String) {
    let mut client = Peer::client(world);
    client.request(world, &[], true);
    let mut server = Peer::server(world);
    let key = server.key(0);
    server.head(world, key, &[(":status", "200"), ("grpc-status", "0")], true);
    client.sync(world);
    let id = client.field(0, "nvcf-reqid").expect("an id").to_owned();
    (client, server, id)
}

fn message(client: &Peer, n: usize) -> String {
    client.field(n, "grpc-message").unwrap_or_default().replace("%20", " ")
}

#[test]
fn one_connection_serves_all_streams_of_an_attachment() {
    let mut world = World::with(UNKEPT);
    let mut client = Peer::client(&mut world);
    for _ in 0..3 {
        client.request(&mut world, &[], true);
    }
    assert_eq!(world.dials.len(), 1);
    assert_eq!(world.dials[0].1, SocketAddr::from(([127, 0, 0, 1], 50051)));
    let mut server = Peer::server(&mut world);
    assert_eq!(server.heads().len(), 3, "those who waited");
    client.request(&mut world, &[], true);
    server.sync(&mut world);
    assert_eq!(server.heads().len(), 4);
    assert!(world.dials.is_empty());
    assert_eq!(server.field(0, "authorization"), Some("Bearer dev-key"));
    let key = server.key(1);
    server.head(&mut world, key, &[(":status", "200"), ("x-of", "server")], true);
    client.sync(&mut world);
    let id = client.field(0, "nvcf-reqid").expect("an id").to_owned();
    assert_eq!(server.field(0, "nvcf-reqid"), Some(&*id));
    assert_eq!(client.field(0, "set-cookie"), Some(&*format!("nvcf-request-id={id}")));
    assert_eq!(client.field(0, "x-of"), Some("server"));
    // No token was given out and no CONNECT came.
    let metrics = world.shard.metrics();
    assert_eq!((metrics.tokens_issued, metrics.worker_connections_opened), (0, 1));
    assert_eq!(metrics.connects.iter().sum::<u64>(), 0);
    world.end(client.conn, End::Fin);
    assert!(world.is_closed(server.conn));
    assert!(world.shard.is_empty());
}

#[test]
fn a_server_that_cannot_be_reached_is_said_at_once_and_tried_again() {
    let mut world = World::with(UNKEPT);
    let mut client = Peer::client(&mut world);
    for (n, errno) in [REFUSED, TIMED_OUT, 5].into_iter().enumerate() {
        client.request(&mut world, &[], true);
        world.dialled(Err(errno));
        client.sync(&mut world);
        assert_eq!(client.field(n, "grpc-status"), Some("14"));
        let text = format!("the server of function {FUNCTION} cannot be reached");
        assert!(message(&client, n).ends_with(&text), "{}", message(&client, n));
    }
    client.request(&mut world, &[("content-type", "text/plain")], true);
    world.dialled(Err(REFUSED));
    client.sync(&mut world);
    assert_eq!(client.field(3, ":status"), Some("503"));
    client.request(&mut world, &[], true);
    assert_eq!(Peer::server(&mut world).heads().len(), 1);
    let metrics = world.shard.metrics();
    let closed: u64 = metrics.worker_connections_closed.iter().sum();
    assert_eq!((metrics.worker_connections_opened, closed), (5, 4));
    world.end(client.conn, End::Fin);
    assert!(world.shard.is_empty());
}

#[test]
fn each_address_of_a_name_is_tried_once() {
    let three: Vec<SocketAddr> =
        (1..4).map(|n| SocketAddr::from(([127, 0, 0, n], 50051))).collect();
    let addresses = three.clone();
    let mut world = World::with_changed("dial = \"three.test:50051\"", |config| {
        config.functions[0].dial.as_mut().expect("it is dialled").addresses = addresses;
    });
    let mut client = Peer::client(&mut world);
    client.request(&mut world, &[], true);
    let mut tried: Vec<SocketAddr> = (0..3).map(|_| world.dialled(Err(REFUSED)).1).collect();
    assert!(world.dials.is_empty());
    client.sync(&mut world);
    assert_eq!(client.field(0, "grpc-status"), Some("14"));
    tried.sort();
    assert_eq!(tried, three);
    client.request(&mut world, &[], true);
    world.dialled(Err(TIMED_OUT));
    assert_eq!(Peer::server(&mut world).heads().len(), 1);
}

#[test]
fn a_name_without_an_address_cannot_be_reached() {
    let mut world = World::with("dial = \"nowhere.test:50051\"");
    let mut client = Peer::client(&mut world);
    client.request(&mut world, &[], true);
    assert!(world.dials.is_empty());
    client.sync(&mut world);
    assert_eq!(client.field(0, "grpc-status"), Some("14"));
    world.end(client.conn, End::Fin);
    assert!(world.shard.is_empty());
}

#[test]
fn a_dial_that_nobody_waits_for_is_given_up() {
    let mut world = World::with(DIAL);
    let mut client = Peer::client(&mut world);
    let key = client.request(&mut world, &[], true);
    let (conn, _) = world.dials[0];
    client.reset(&mut world, key, ErrorCode::Cancel);
    assert!(world.dials.is_empty() && world.is_closed(conn));
    client.request(&mut world, &[], true);
    let (conn, _) = world.dials[0];
    world.end(client.conn, End::Reset);
    assert!(world.dials.is_empty() && world.is_closed(conn));
    assert!(world.shard.is_empty());
}

#[test]
fn coming_back_by_id_is_one_more_connection() {
    let mut world = World::with(UNKEPT);
    let (client, server, id) = dialled(&mut world);
    let mut second = Peer::client(&mut world);
    second.request(&mut world, &[("nvcf-reqid", &id)], true);
    let other = Peer::server(&mut world);
    assert_ne!(other.conn, server.conn);
    assert_eq!(other.field(0, "nvcf-reqid"), Some(&*id));
    world.end(client.conn, End::Fin);
    assert!(world.is_closed(server.conn) && !world.is_closed(other.conn));
    let mut third = Peer::client(&mut world);
    third.request(&mut world, &[("nvcf-reqid", &id)], true);
    let last = Peer::server(&mut world);
    for conn in [second.conn, third.conn] {
        world.end(conn, End::Fin);
    }
    assert!(world.is_closed(other.conn) && world.is_closed(last.conn));
    // With its last tunnel the session is over.
    let mut late = Peer::client(&mut world);
    late.request(&mut world, &[("nvcf-reqid", &id)], true);
    late.sync(&mut world);
    assert_eq!(late.field(0, "grpc-status"), Some("5"));
}

#[test]
fn a_lost_or_idle_server_is_dialled_anew() {
    let mut world = World::with(DIAL);
    let (mut client, server, _) = dialled(&mut world);
    client.request(&mut world, &[], true);
    world.end(server.conn, End::Reset);
    client.sync(&mut world);
    assert_eq!(client.field(1, "grpc-status"), Some("14"));
    client.request(&mut world, &[], true);
    let mut server = Peer::server(&mut world);
    let key = server.key(0);
    server.head(&mut world, key, &[(":status", "200")], true);
    world.pass(Duration::from_secs(31));
    assert!(world.is_closed(server.conn), "idle");
    client.request(&mut world, &[], true);
    let mut server = Peer::server(&mut world);
    assert_eq!(server.heads().len(), 1);
    server.goaway(&mut world, 0);
    client.request(&mut world, &[], true);
    assert_eq!(world.dials.len(), 1, "after GOAWAY");
}

#[test]
fn such_a_function_takes_no_worker() {
    let mut world = World::with(DIAL);
    let conn = world.connect(Listener::Worker);
    world.send(conn, poll_request(&[]).as_bytes());
    let answer = String::from_utf8(world.take(conn)).expect("text");
    assert!(answer.starts_with("HTTP/1.1 403 "), "{answer}");
    assert!(answer.contains("dials this function's server itself"), "{answer}");
}

#[test]
fn dials_count_as_worker_connections() {
    let mut world = World::with(&format!("{DIAL}\n[limits]\nworker_connections = 1"));
    let mut client = Peer::client(&mut world);
    client.request(&mut world, &[], true);
    let mut second = Peer::client(&mut world);
    second.request(&mut world, &[], true);
    second.sync(&mut world);
    assert_eq!(second.field(0, "grpc-status"), Some("8"));
    assert_eq!(world.dials.len(), 1);
    assert_eq!(Peer::server(&mut world).heads().len(), 1);
}
