//! Dialling back and the bytes of a tunnel, against a gateway played by the test.

mod worker_rig;

use std::io::Read;
use std::net::Shutdown;
use std::thread;
use std::time::{Duration, Instant};

use worker_rig::{Line, Listener, Worker, id};

/// Gateway, place to dial back to, target, and a worker that has polled.
struct World {
    gateway: Listener,
    polls: Line,
    listener: Listener,
    target: Listener,
    worker: Worker,
}

fn world(more: &[&str]) -> World {
    let (gateway, listener, target) = (Listener::new(), Listener::new(), Listener::new());
    let worker = Worker::start(&[&gateway], &target, more);
    let mut polls = gateway.accept();
    polls.poll_says(1, &[]);
    World { gateway, polls, listener, target, worker }
}

impl World {
    /// A tunnel of the first session, accepted.
    fn tunnel(&mut self) -> Line {
        self.polls.work("new", 1, &[self.listener.address()]);
        let mut tunnel = self.listener.accept();
        tunnel.head();
        tunnel.send("HTTP/1.1 200 OK\r\n\r\n");
        tunnel
    }
}

#[test]
fn wk_1_the_connect_is_in_origin_form() {
    let mut w = world(&[]);
    w.polls.work("new", 1, &[w.listener.address()]);
    let head = w.listener.accept().head();
    let expected = format!(
        "CONNECT /v1/proxy HTTP/1.1\r\nHost: {}\r\nUser-Agent: ringway-worker/{}\r\n\
         Authorization: Bearer secret-token\r\nX-Request-Id: {}\r\n\r\n",
        w.listener.address(),
        env!("CARGO_PKG_VERSION"),
        id(1)
    );
    assert_eq!(head, expected);
}

#[test]
fn a_round_is_tried_six_times_with_growing_pauses_and_then_the_slot_is_free() {
    let mut w = world(&[]);
    let begun = Instant::now();
    w.polls.work("new", 1, &[w.listener.address()]);
    let mut at = Vec::new();
    for _ in 0..6 {
        let mut line = w.listener.accept();
        line.head();
        at.push(begun.elapsed());
        line.refuse(500, "not now");
    }
    for (pause, least) in at.windows(2).map(|w| w[1] - w[0]).zip([10, 15, 22, 33, 50]) {
        assert!(pause >= Duration::from_millis(least), "{at:?}");
    }
    w.polls.poll_says(1, &[]);
    assert!(w.listener.accept_within(Duration::from_millis(300)).is_none(), "a seventh try");
    w.worker.says("CONNECT was answered 500 not now");
}

#[test]
fn wk_5_only_200_is_success_and_401_and_403_are_final() {
    for status in [401, 403] {
        let mut w = world(&[]);
        w.polls.work("new", 1, &[w.listener.address()]);
        let mut line = w.listener.accept();
        line.head();
        line.refuse(status, "no");
        w.polls.poll_says(1, &[]);
        assert!(w.listener.accept_within(Duration::from_millis(300)).is_none(), "{status}");
    }
    for status in [201, 204, 404] {
        let mut w = world(&[]);
        w.polls.work("new", 1, &[w.listener.address()]);
        w.listener.accept().refuse(status, "");
        let mut line = w.listener.accept();
        line.head();
        line.send("HTTP/1.1 200 OK\r\n\r\n");
        line.send("x");
        assert_eq!(w.target.accept().take(1), b"x", "{status}");
    }
}

#[test]
fn addresses_are_tried_in_order_and_one_that_refused_for_good_is_left_out() {
    let mut w = world(&[]);
    let closed = Listener::new().address();
    let other = Listener::new();
    w.polls.work("new", 1, &[closed, w.listener.address(), other.address()]);
    let mut line = w.listener.accept();
    line.head();
    assert!(other.accept_within(Duration::from_millis(100)).is_none(), "before the answer");
    line.refuse(403, "");
    other.accept().refuse(503, "");
    let mut line = other.accept();
    line.head();
    line.send("HTTP/1.1 200 OK\r\n\r\nx");
    assert_eq!(w.target.accept().take(1), b"x");
    assert!(w.listener.accept_within(Duration::from_millis(100)).is_none(), "403 was asked again");
}

#[test]
fn a_gateway_that_does_not_answer_a_connect_costs_ten_seconds() {
    let mut w = world(&[]);
    let begun = Instant::now();
    w.polls.work("new", 1, &[w.listener.address()]);
    let mut silent = w.listener.accept();
    silent.head();
    let mut line = w.listener.accept();
    assert!(begun.elapsed() >= Duration::from_secs(10), "{:?}", begun.elapsed());
    line.head();
    line.send("HTTP/1.1 200 OK\r\n\r\nx");
    assert_eq!(w.target.accept().take(1), b"x");
}

#[test]
fn wk_11_behind_the_answer_the_stream_is_raw() {
    let mut w = world(&[]);
    w.polls.work("new", 1, &[w.listener.address()]);
    let mut tunnel = w.listener.accept();
    tunnel.head();
    tunnel.send("HTTP/1.1 200 OK\r\nDate: x\r\nTransfer-Encoding: chunked\r\n\r\nPRI * early");
    let mut server = w.target.accept();
    assert_eq!(server.take(11), b"PRI * early");
    server.send("answer");
    assert_eq!(tunnel.take(6), b"answer");
}

#[test]
fn wk_12_the_target_is_left_alone_until_the_gateway_speaks() {
    let mut w = world(&[]);
    let mut tunnel = w.tunnel();
    w.worker.says("tunnel open");
    assert!(w.target.accept_within(Duration::from_millis(200)).is_none());
    tunnel.send("hello");
    assert_eq!(w.target.accept().take(5), b"hello");
}

#[test]
fn a_tunnel_that_is_closed_unused_frees_its_slot() {
    let mut w = world(&[]);
    let tunnel = w.tunnel();
    w.gateway.accept().poll_says(0, &[id(1)]);
    drop(tunnel);
    w.polls.poll_says(1, &[]);
    assert!(w.target.accept_within(Duration::from_millis(50)).is_none());
}

#[test]
fn a_target_that_refuses_closes_the_tunnel() {
    let (gateway, listener) = (Listener::new(), Listener::new());
    let target = Listener::new();
    let mut worker = Worker::start(&[&gateway], &target, &[]);
    drop(target);
    let mut polls = gateway.accept();
    polls.poll_says(1, &[]);
    polls.work("new", 1, &[listener.address()]);
    let mut tunnel = listener.accept();
    tunnel.head();
    tunnel.send("HTTP/1.1 200 OK\r\n\r\nx");
    assert_eq!(tunnel.rest(), b"");
    worker.says("the target does not answer");
    polls.poll_says(1, &[]);
}

#[test]
fn what_the_target_said_before_it_closed_arrives() {
    let mut w = world(&[]);
    let mut tunnel = w.tunnel();
    tunnel.send("x");
    let mut server = w.target.accept();
    let body = vec![b'b'; 8 << 20];
    let sent = body.clone();
    let sending = thread::spawn(move || {
        server.take(1);
        server.send(&sent);
        server.stream.get_ref().shutdown(Shutdown::Write).unwrap();
        server.rest()
    });
    assert!(tunnel.take(body.len() - 1) == body[1..], "not all of it");
    // The gateway still speaks when the target has closed: no reset may overtake the answer.
    for _ in 0..5 {
        thread::sleep(Duration::from_millis(20));
        tunnel.send("more");
    }
    assert_eq!(tunnel.rest(), b"b");
    drop(tunnel);
    assert_eq!(sending.join().unwrap(), b"moremoremoremoremore");
    w.polls.poll_says(1, &[]);
}

#[test]
fn what_the_gateway_said_before_it_closed_arrives() {
    let mut w = world(&[]);
    let mut tunnel = w.tunnel();
    let body = vec![b'b'; 8 << 20];
    let sent = body.clone();
    let sending = thread::spawn(move || {
        tunnel.send(&sent);
        tunnel.stream.get_ref().shutdown(Shutdown::Write).unwrap();
        tunnel.rest()
    });
    let mut server = w.target.accept();
    assert!(server.rest() == body, "not all of it");
    server.send("bye");
    // The target keeps its end open, and the slot is free all the same.
    w.polls.poll_says(1, &[]);
    assert_eq!(sending.join().unwrap(), b"bye");
}

/// All bytes up to the end, and whether that is a FIN.
fn end_of(line: &mut Line) -> (Vec<u8>, bool) {
    let mut bytes = Vec::new();
    let end = line.stream.read_to_end(&mut bytes);
    (bytes, end.is_ok())
}

/// Contract CL-42: a body until close ends with a FIN, so that nothing else may look like one.
#[test]
fn each_side_ends_as_the_other_did_behind_what_was_said() {
    for io in ["ring", "epoll"] {
        let mut w = world(&["--io", io]);
        for (by_target, by_fin) in [(true, true), (true, false), (false, true), (false, false)] {
            let mut tunnel = w.tunnel();
            tunnel.send("x");
            let mut server = w.target.accept();
            assert_eq!(server.take(1), b"x");
            let (mut from, mut to) = if by_target { (server, tunnel) } else { (tunnel, server) };
            // One that is lost may have bytes to read.
            to.send("unread");
            thread::sleep(Duration::from_millis(20));
            from.send("last");
            if by_fin {
                from.take(6);
            } else {
                let socket = socket2::SockRef::from(from.stream.get_ref());
                socket.set_linger(Some(Duration::ZERO)).unwrap();
            }
            drop(from);
            let what = format!("{io}, by target: {by_target}, by FIN: {by_fin}");
            assert_eq!(end_of(&mut to), (b"last".to_vec(), by_fin), "{what}");
            drop(to);
            w.polls.poll_says(1, &[]);
        }
    }
}

#[test]
fn a_worker_that_is_killed_leaves_resets() {
    let mut w = world(&[]);
    let mut tunnel = w.tunnel();
    tunnel.send("x");
    let mut server = w.target.accept();
    assert_eq!(server.take(1), b"x");
    server.send("half");
    assert_eq!(tunnel.take(4), b"half");
    w.worker.signal("-KILL");
    assert_eq!(end_of(&mut tunnel), (Vec::new(), false));
    assert_eq!(end_of(&mut server), (Vec::new(), false));
}

#[test]
fn bytes_arrive_in_order_both_ways_on_both_backends() {
    for io in ["ring", "epoll"] {
        let mut w = world(&["--io", io]);
        let mut tunnel = w.tunnel();
        let body: Vec<u8> = (0..4_000_000_u32).map(|n| (n % 251) as u8).collect();
        let up = body.clone();
        let mut sender = Line::new(tunnel.stream.get_ref().try_clone().unwrap());
        let sending = thread::spawn(move || sender.send(&up));
        let mut server = w.target.accept();
        let mut echo = Line::new(server.stream.get_ref().try_clone().unwrap());
        let length = body.len();
        let echoing = thread::spawn(move || echo.send(server.take(length)));
        assert!(tunnel.take(length) == body, "{io}");
        sending.join().unwrap();
        echoing.join().unwrap();
        w.worker.says(if io == "ring" { "\"io\":\"io_uring\"" } else { "\"io\":\"epoll\"" });
    }
}
