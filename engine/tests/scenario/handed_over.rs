//! A client's connection whose first request is not answered goes to another core, whatever it has
//! said by then, and has its one answer there.

use std::time::Duration;

use ringway::carry::{Client, Released, Unreadable};
use ringway::net::{ConnId, End, Listener};
use ringway_proto::h2::{Limits, Role};

use crate::machine::Machine;
use crate::peer::{Peer, undated};
use crate::world::{FUNCTION, VERSION, World};

const KEPT: usize = 64 * 1024;
/// Unix time of a world's zero.
const ZERO: u64 = 1_000_000;

fn machine() -> Machine {
    Machine::keeping(2, "", KEPT)
}

/// Releases a connection, or says that it stays.
fn release(world: &mut World, conn: ConnId) -> Option<Released> {
    let leaves = world.shard.release(&mut world.net, conn);
    world.settle();
    let mut released = Vec::new();
    world.shard.take_released(&mut released);
    assert_eq!(released.len(), usize::from(leaves && !world.hold));
    released.pop()
}

/// Takes a connection up, which has been bytes on its way.
fn take_up(world: &mut World, released: Released) -> ConnId {
    let Released { detached, client } = released;
    let again = Client::from_bytes(&client.to_bytes(ZERO), ZERO);
    assert_eq!(again, Ok(client));
    let released = Released { detached, client: again.expect("it is the same") };
    let conn = world.shard.take_up(&mut world.net, released).expect("there is room");
    world.settle();
    conn
}

/// All that an HTTP/2 client says first, its request with a body included.
fn http2_bytes(m: &mut Machine) -> Vec<u8> {
    let probe = m.at(0).connect(Listener::Client);
    let mut client = Peer::over(probe, Role::Client, Limits::default(), m.at(0));
    let mut bytes = Vec::new();
    client.h2.start(&mut bytes);
    // An early acknowledgement of SETTINGS does no harm here, nor does a PING.
    bytes.extend([0, 0, 0, 4, 1, 0, 0, 0, 0]);
    bytes.extend([0, 0, 8, 6, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8]);
    let key = client.h2.open().expect("a stream");
    let list: Vec<(&str, &str)> = vec![
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/ringway.echo.v1.Echo/Unary"),
        (":authority", "gateway"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
        ("authorization", "Bearer dev-key"),
        ("function-id", FUNCTION),
        ("function-version-id", VERSION),
    ];
    let fields = list
        .iter()
        .map(|(name, value)| ringway_proto::fields::Field::new(name.as_bytes(), value.as_bytes()));
    client.h2.head(key, fields, false, &mut Vec::new(), &mut bytes);
    bytes.extend(client.h2.data_head(key, 5, true));
    bytes.extend(b"hello");
    m.at(0).end(probe, End::Fin);
    bytes
}

/// Sends `bytes` from a client whose connection moves to another core after `at` of them. Returns
/// the connection there, and all bytes that the client got.
fn carried(m: &mut Machine, bytes: &[u8], at: usize) -> (ConnId, Vec<u8>) {
    let conn = m.at(0).connect(Listener::Client);
    m.at(0).send(conn, &bytes[..at]);
    m.deliver();
    let mut told = m.at(0).take(conn);
    let released = release(m.at(0), conn).expect("nothing was answered");
    m.deliver();
    assert_eq!(m.at(0).shard.clients(), 0);
    let conn = take_up(m.at(1), released);
    m.at(1).send(conn, &bytes[at..]);
    m.deliver();
    told.extend(m.at(1).take(conn));
    (conn, told)
}

/// The frames of what a server says, by kind and flags.
fn kinds(mut bytes: &[u8]) -> Vec<(u8, u8)> {
    let mut kinds = Vec::new();
    while !bytes.is_empty() {
        let len = u32::from_be_bytes([0, bytes[0], bytes[1], bytes[2]]) as usize;
        kinds.push((bytes[3], bytes[4]));
        bytes = &bytes[9 + len..];
    }
    kinds
}

#[test]
fn an_http2_client_goes_over_at_every_octet_of_its_request() {
    let bytes = http2_bytes(&mut machine());
    for at in 0..=bytes.len() {
        let mut m = machine();
        let (conn, told) = carried(&mut m, &bytes, at);
        // Its SETTINGS and its PING are answered once, and our SETTINGS said once.
        let (settings, update, ack, pong) = ((4, 0), (8, 0), (4, 1), (6, 1));
        assert_eq!(kinds(&told), [settings, update, ack, pong], "{at}");
        let work = m.poll(0, &[]).expect("work");
        let mut tunnel = m.dial(0, &work);
        assert_eq!(tunnel.core, 1, "the tunnel is where the client is");
        m.deliver();
        tunnel.peer.sync(m.at(1));
        assert_eq!(tunnel.peer.body(1), (b"hello".to_vec(), true), "{at}");
        let key = tunnel.peer.key(0);
        tunnel.peer.head(m.at(1), key, &[(":status", "200"), ("grpc-status", "0")], true);
        let answer = m.at(1).take(conn);
        assert_eq!(kinds(&answer).iter().filter(|(kind, _)| *kind == 1).count(), 1, "{at}");
        assert!(m.poll(0, &[]).is_none(), "{at}: one request, one session");
        m.at(1).end(conn, End::Fin);
        m.assert_empty();
    }
}

fn http1(body: &str) -> String {
    let length = if body.is_empty() { String::new() } else { "Content-Length: 5\r\n".into() };
    format!(
        "POST /x HTTP/1.1\r\nHost: gateway\r\nAuthorization: Bearer dev-key\r\n\
         Function-Id: {FUNCTION}\r\nFunction-Version-Id: {VERSION}\r\n{length}\r\n{body}"
    )
}

#[test]
fn an_http1_client_goes_over_at_every_octet_of_its_request() {
    for body in ["", "hello"] {
        let bytes = http1(body).into_bytes();
        for at in 0..=bytes.len() {
            let mut m = machine();
            let (conn, told) = carried(&mut m, &bytes, at);
            assert_eq!(told, b"", "{at}");
            let work = m.poll(1, &[]).expect("work");
            let socket = m.knock(1, &work);
            m.deliver();
            let (core, tunnel) = m.find(socket).expect("the tunnel is somewhere");
            assert_eq!(core, 1);
            let asked = String::from_utf8(m.at(1).take(tunnel)).expect("text");
            let asked = asked.strip_prefix("HTTP/1.1 200 OK\r\n\r\n").expect("an accepted CONNECT");
            assert!(asked.starts_with("POST /x HTTP/1.1\r\n") && asked.ends_with(body), "{asked}");
            m.at(1).send(tunnel, b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
            let answer = undated(&m.at(1).take(conn));
            let answer = String::from_utf8(answer).expect("text");
            assert!(
                answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("ok"),
                "{answer}"
            );
            assert!(m.poll(1, &[]).is_none(), "{at}: one request, one session");
            m.at(1).end(conn, End::Fin);
            m.assert_empty();
        }
    }
}

#[test]
fn what_comes_while_it_leaves_goes_along() {
    let bytes = http2_bytes(&mut machine());
    let mut m = machine();
    let conn = m.at(0).connect(Listener::Client);
    m.at(0).send(conn, &bytes[..40]);
    let mut told = m.at(0).take(conn);
    m.at(0).hold = true;
    assert!(release(m.at(0), conn).is_none());
    m.at(0).send(conn, &bytes[40..]);
    assert_eq!(m.at(0).take(conn), b"", "nobody answers it meanwhile");
    m.at(0).hold = false;
    m.at(0).hand_over();
    let mut released = Vec::new();
    m.at(0).shard.take_released(&mut released);
    let conn = take_up(m.at(1), released.pop().expect("it was handed over"));
    told.extend(m.at(1).take(conn));
    assert_eq!(kinds(&told), [(4, 0), (8, 0), (4, 1), (6, 1)]);
    m.deliver();
    assert!(m.poll(1, &[]).is_some());
    m.at(1).end(conn, End::Fin);
    m.assert_empty();
}

#[test]
fn who_ends_it_first_is_answered_where_he_was() {
    let work = [false, true].map(|leaves| {
        let mut m = machine();
        let conn = m.at(0).connect(Listener::Client);
        m.at(0).send(conn, http1("hello").as_bytes());
        if leaves {
            m.at(0).hold = true;
            assert!(release(m.at(0), conn).is_none());
        }
        m.at(0).end(conn, End::Fin);
        m.deliver();
        let work = m.poll(0, &[]).is_some();
        assert_eq!(m.at(0).shard.clients(), usize::from(work));
        work
    });
    assert_eq!(work[0], work[1]);
    let mut m = machine();
    m.at(0).hold = true;
    let gone = m.at(0).connect(Listener::Client);
    m.at(0).send(gone, http1("hello").as_bytes());
    assert!(release(m.at(0), gone).is_none());
    m.at(0).end(gone, End::Reset);
    m.assert_empty();
}

#[test]
fn who_was_answered_or_has_a_worker_or_has_said_too_much_stays() {
    let mut m = machine();
    // Answered by us; in HTTP/1 the next request is as good as the first.
    let health = b"GET /health HTTP/1.1\r\nHost: gateway\r\n\r\n";
    for (more, stays) in [("", false), ("GET /heal", false), ("GET /health HTTP/1.0\r\n\r\n", true)]
    {
        let told = m.at(0).connect(Listener::Client);
        m.at(0).send(told, health);
        assert!(m.at(0).take(told).starts_with(b"HTTP/1.1 200"));
        m.at(0).send(told, more.as_bytes());
        assert_eq!(release(m.at(0), told).is_none(), stays, "{more}");
        m.at(0).end(told, End::Fin);
    }
    // Its request is with a worker.
    let asked = m.at(0).connect(Listener::Client);
    m.at(0).send(asked, http1("hello").as_bytes());
    let work = m.poll(0, &[]).expect("work");
    let socket = m.knock(0, &work);
    m.deliver();
    assert!(release(m.at(0), asked).is_none());
    let (_, tunnel) = m.find(socket).expect("the tunnel is somewhere");
    m.at(0).send(tunnel, b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    assert!(release(m.at(0), asked).is_none());
    // Too much.
    let large = m.at(0).connect(Listener::Client);
    let head = http1("").replace("\r\n\r\n", "\r\nContent-Length: 70000\r\n\r\n");
    m.at(0).send(large, head.as_bytes());
    m.at(0).send(large, &[b'x'; KEPT]);
    assert!(release(m.at(0), large).is_none());
    // A worker's, and nobody's.
    let worker = m.at(0).connect(Listener::Worker);
    assert!(release(m.at(0), worker).is_none());
    for conn in [asked, large, worker] {
        m.at(0).end(conn, End::Fin);
    }
    assert!(release(m.at(0), asked).is_none());
    m.assert_empty();
    // Where nothing is kept, nobody leaves.
    let mut m = Machine::new(2);
    let fresh = m.at(0).connect(Listener::Client);
    assert!(release(m.at(0), fresh).is_none());
}

#[test]
fn a_client_that_was_taken_up_can_be_handed_on() {
    let bytes = http2_bytes(&mut machine());
    let mut m = machine();
    let (conn, mut told) = carried(&mut m, &bytes, 30);
    let released = release(m.at(1), conn).expect("nothing was answered");
    m.deliver();
    assert!(m.poll(0, &[]).is_none(), "nobody waits there any more");
    let conn = take_up(m.at(0), released);
    m.deliver();
    told.extend(m.at(0).take(conn));
    assert_eq!(kinds(&told), [(4, 0), (8, 0), (4, 1), (6, 1)]);
    assert!(m.poll(0, &[]).is_some());
    m.pass(Duration::from_secs(1));
    m.at(0).end(conn, End::Fin);
    m.assert_empty();
}

#[test]
fn a_session_and_what_its_client_was_granted_are_bytes_and_back() {
    let mut m = machine();
    let (client, mut tunnel, id) = crate::cores::attached(&mut m, 0);
    let id = id.parse().expect("an id");
    let session = m.at(0).shard.carry_session(id).expect("its home is here");
    let pins = m.at(0).shard.carry_pins(client.conn);
    assert_eq!(pins.len(), 1);
    assert_eq!(m.at(0).shard.take_up_session(&session), Err(Unreadable::Unwanted));
    assert_eq!(m.at(0).shard.take_up_pin(client.conn, &pins[0]), Err(Unreadable::Unwanted));
    // Elsewhere it is the same again.
    let mut there = Machine::new(1);
    assert_eq!(there.at(0).shard.take_up_session(&session), Ok(id));
    assert_eq!(there.at(0).shard.carry_session(id).as_ref(), Some(&session));
    assert_eq!(there.at(0).shard.take_up_pin(client.conn, &pins[0]), Err(Unreadable::Unwanted));
    let (mut other, _) =
        crate::cores::client(&mut there, 0, &[("authorization", "Bearer dev-key-2")]);
    assert_eq!(there.at(0).shard.take_up_pin(other.conn, &pins[0]), Ok(()));
    assert!(there.at(0).shard.carry_pins(other.conn).contains(&pins[0]));
    other.sync(there.at(0));
    tunnel.peer.sync(m.at(0));
    m.at(0).end(client.conn, End::Fin);
    m.assert_empty();
}
