//! Polls, sessions and slots, against gateways played by the test.

mod worker_rig;

use std::process::Command;
use std::time::{Duration, Instant};

use worker_rig::{FUNCTION, KEY, Line, Listener, VERSION, Worker, id};

fn accept_tunnel(listener: &Listener) -> Line {
    let mut tunnel = listener.accept();
    tunnel.head();
    tunnel.send("HTTP/1.1 200 OK\r\n\r\n");
    tunnel
}

#[test]
fn a_poll_says_who_asks_for_what() {
    let (gateway, target) = (Listener::new(), Listener::new());
    let _worker = Worker::start(&[&gateway], &target, &["--slots", "3"]);
    let (head, said) = gateway.accept().poll();
    assert!(head.contains(&format!("\r\nHost: {}\r\n", gateway.address())), "{head}");
    assert!(head.contains(&format!("\r\nAuthorization: Bearer {KEY}\r\n")), "{head}");
    let expected = serde_json::json!({"functionId": FUNCTION, "functionVersionId": VERSION,
                                      "slots": 3, "requestIds": []});
    assert_eq!(said, expected);
}

#[test]
fn a_session_lasts_as_long_as_its_last_tunnel() {
    let (gateway, listener, target) = (Listener::new(), Listener::new(), Listener::new());
    let mut worker = Worker::start(&[&gateway], &target, &["--slots", "2"]);
    let mut polls = gateway.accept();
    polls.poll_says(2, &[]);
    polls.work("new", 1, &[listener.address()]);
    let first = accept_tunnel(&listener);
    polls.poll_says(1, &[]);
    // Another connection asks for reconnects.
    let mut lists = gateway.accept();
    lists.poll_says(0, &[id(1)]);
    polls.work("new", 2, &[listener.address()]);
    let other = accept_tunnel(&listener);
    lists.poll_says(0, &[id(1), id(2)]);
    lists.work("reconnect", 1, &[listener.address()]);
    let mut second = accept_tunnel(&listener);
    lists.poll_says(0, &[id(1), id(2)]);
    // With no slot free nobody asks for sessions.
    polls.is_quiet();
    drop(first);
    drop(other);
    lists.poll_says(0, &[id(1)]);
    polls.poll_says(1, &[]);
    second.send("x");
    assert_eq!(target.accept().take(1), b"x");
    drop(second);
    lists.poll_says(0, &[]);
    lists.work("reconnect", 1, &[listener.address()]);
    worker.says("a reconnect for a session that is not held");
    assert!(
        listener.accept_within(Duration::from_millis(100)).is_none(),
        "dialled for a lost session"
    );
}

#[test]
fn a_change_is_told_at_once_and_never_promises_a_slot_twice() {
    let (gateway, listener, target) = (Listener::new(), Listener::new(), Listener::new());
    let _worker = Worker::start(&[&gateway], &target, &["--slots", "2"]);
    let mut polls = gateway.accept();
    polls.poll_says(2, &[]);
    polls.work("new", 1, &[listener.address()]);
    let tunnel = accept_tunnel(&listener);
    polls.poll_says(1, &[]);
    let mut lists = gateway.accept();
    lists.poll_says(0, &[id(1)]);
    // A poll is open. The session's end brings another, which counts the open one as promised.
    drop(tunnel);
    let mut more = gateway.accept();
    more.poll_says(1, &[]);
    lists.poll_says(0, &[]);
    polls.work("new", 2, &[listener.address()]);
    more.work("new", 3, &[listener.address()]);
    let _tunnels = [accept_tunnel(&listener), accept_tunnel(&listener)];
    lists.poll_says(0, &[id(2), id(3)]);
    polls.is_quiet();
    more.is_quiet();
}

/// What one connection brings is bounded by the way there and back.
#[test]
fn more_connections_ask_while_sessions_come_quickly() {
    let (gateway, listener, target) = (Listener::new(), Listener::new(), Listener::new());
    let _worker = Worker::start(&[&gateway], &target, &["--slots", "64"]);
    let mut polls = vec![gateway.accept()];
    polls[0].poll_says(64, &[]);
    let (mut lists, mut given, mut tunnels) = (None, 0, Vec::new());
    while polls.len() < 8 {
        let last = polls.last_mut().unwrap();
        last.work("new", given, &[listener.address()]);
        given += 1;
        tunnels.push(accept_tunnel(&listener));
        // The next poll follows at once; so do those of new connections.
        last.poll();
        while lists.is_none() || polls.len() <= usize::from(given) {
            let mut line = gateway.accept();
            let (_, said) = line.poll();
            match said["slots"].as_u64() {
                Some(0) => lists = Some(line),
                _ => polls.push(line),
            }
        }
    }
    // All eight are open at the same time, and each may bring a session.
    for line in &mut polls {
        line.work("new", given, &[listener.address()]);
        given += 1;
    }
    tunnels.extend((0..8).map(|_| accept_tunnel(&listener)));
    assert!(gateway.accept_within(Duration::from_millis(200)).is_none(), "a ninth connection");
}

#[test]
fn a_session_for_which_there_is_no_slot_waits_for_one() {
    let (a, b) = (Listener::new(), Listener::new());
    let (listener, target) = (Listener::new(), Listener::new());
    let _worker = Worker::start(&[&a, &b], &target, &[]);
    let (mut of_a, mut of_b) = (a.accept(), b.accept());
    of_a.poll_says(1, &[]);
    of_b.poll_says(1, &[]);
    // Both gateways give the one slot a session at the same moment.
    of_a.work("new", 1, &[listener.address()]);
    of_b.work("new", 2, &[listener.address()]);
    let first = accept_tunnel(&listener);
    assert!(
        listener.accept_within(Duration::from_millis(300)).is_none(),
        "more sessions than slots"
    );
    drop(first);
    let second = accept_tunnel(&listener);
    // Each gateway is told of its own sessions only, and of none once they are over.
    drop(second);
    of_a.poll_says(1, &[]);
    of_b.poll_says(1, &[]);
    for (gateway, other) in [(&a, 2), (&b, 1)] {
        let mut lists = gateway.accept();
        for _ in 0..2 {
            let (_, said) = lists.poll();
            let ids = said["requestIds"].as_array().unwrap();
            assert!(!ids.contains(&id(other).into()), "{said}");
            if ids.is_empty() {
                break;
            }
        }
    }
}

#[test]
fn a_slot_that_another_gateway_has_taken_is_taken_back() {
    let (a, b) = (Listener::new(), Listener::new());
    let (listener, target) = (Listener::new(), Listener::new());
    let _worker = Worker::start(&[&a, &b], &target, &[]);
    let (mut of_a, mut of_b) = (a.accept(), b.accept());
    of_a.poll_says(1, &[]);
    of_b.poll_says(1, &[]);
    of_a.work("new", 1, &[listener.address()]);
    let tunnel = accept_tunnel(&listener);
    of_b.poll_says(0, &[]);
    drop(tunnel);
    of_b.poll_says(1, &[]);
    of_a.poll_says(1, &[]);
}

#[test]
fn a_refused_key_is_the_end_and_says_so() {
    for status in [401, 403] {
        let (gateway, target) = (Listener::new(), Listener::new());
        let mut worker = Worker::start(&[&gateway], &target, &[]);
        let mut polls = gateway.accept();
        polls.poll();
        polls.refuse(status, "the key is not for this function");
        worker.says("the gateway refuses this worker's key");
        worker.says("the key is not for this function");
        assert_eq!(worker.exit_code(), Some(78));
    }
}

#[test]
fn sessions_outlive_a_refused_key() {
    let (gateway, listener, target) = (Listener::new(), Listener::new(), Listener::new());
    let mut worker = Worker::start(&[&gateway], &target, &[]);
    let mut polls = gateway.accept();
    polls.poll_says(1, &[]);
    polls.work("new", 1, &[listener.address()]);
    let mut tunnel = accept_tunnel(&listener);
    let mut lists = gateway.accept();
    lists.poll_says(0, &[id(1)]);
    lists.refuse(401, "");
    worker.says("no more work is taken");
    tunnel.send("x");
    assert_eq!(target.accept().take(1), b"x");
    drop(tunnel);
    assert_eq!(worker.exit_code(), Some(78));
}

#[test]
fn anything_else_is_tried_again_with_a_pause_that_grows() {
    let (gateway, target) = (Listener::new(), Listener::new());
    let mut worker = Worker::start(&[&gateway], &target, &[]);
    let begun = Instant::now();
    let mut polls = gateway.accept();
    polls.poll();
    polls.refuse(503, "too many polls wait");
    worker.says("503: too many polls wait");
    for junk in ["SSH-2.0-x\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", ""] {
        let mut polls = gateway.accept();
        polls.poll();
        polls.send(junk);
    }
    let mut polls = gateway.accept();
    polls.poll_says(1, &[]);
    // Four failures: at least half of 50, 100, 200 and 400 ms.
    assert!(begun.elapsed() >= Duration::from_millis(375), "{:?}", begun.elapsed());
    polls.nothing();
    worker.says("polling again");
    polls.poll_says(1, &[]);
    assert!(worker.is_running());
}

#[test]
fn a_gateway_that_answers_at_once_is_not_asked_in_a_tight_loop() {
    let (gateway, target) = (Listener::new(), Listener::new());
    let _worker = Worker::start(&[&gateway], &target, &[]);
    let mut polls = gateway.accept();
    let begun = Instant::now();
    for _ in 0..40 {
        polls.poll();
        polls.nothing();
    }
    assert!(begun.elapsed() >= Duration::from_millis(39 * 5), "{:?}", begun.elapsed());
}

#[test]
fn a_signal_ends_polling_and_the_sessions_end_by_themselves() {
    let (gateway, listener, target) = (Listener::new(), Listener::new(), Listener::new());
    let mut worker = Worker::start(&[&gateway], &target, &["--slots", "2"]);
    let mut polls = gateway.accept();
    polls.poll_says(2, &[]);
    polls.work("new", 1, &[listener.address()]);
    let mut tunnel = accept_tunnel(&listener);
    polls.poll_says(1, &[]);
    let mut lists = gateway.accept();
    lists.poll_says(0, &[id(1)]);
    worker.signal("-TERM");
    worker.says("no more work is taken");
    // The open poll is taken back; work that was on its way is done.
    let (_, said) = polls.second_poll();
    assert_eq!((&said["slots"], &said["requestIds"]), (&0.into(), &serde_json::json!([])));
    polls.work("new", 2, &[listener.address()]);
    let mut late = accept_tunnel(&listener);
    assert_eq!(polls.rest(), b"");
    assert!(gateway.accept_within(Duration::from_millis(300)).is_none(), "polls on");
    for tunnel in [&mut tunnel, &mut late] {
        tunnel.send("x");
        assert_eq!(target.accept().take(1), b"x");
    }
    drop(tunnel);
    assert!(worker.is_running());
    drop(late);
    assert_eq!(worker.exit_code(), Some(0));
}

#[test]
fn a_worker_without_sessions_ends_at_once() {
    let (gateway, target) = (Listener::new(), Listener::new());
    let mut worker = Worker::start(&[&gateway], &target, &[]);
    let mut polls = gateway.accept();
    polls.poll_says(1, &[]);
    worker.signal("-INT");
    polls.poll_says(0, &[]);
    assert_eq!(worker.exit_code(), Some(0));
}

#[test]
fn sessions_have_their_time_and_a_second_signal_ends_it() {
    for (max, code) in [("1", Some(0)), ("60", Some(143))] {
        let (gateway, listener, target) = (Listener::new(), Listener::new(), Listener::new());
        let mut worker = Worker::start(&[&gateway], &target, &["--drain-max", max]);
        let mut polls = gateway.accept();
        polls.poll_says(1, &[]);
        polls.work("new", 1, &[listener.address()]);
        let mut tunnel = accept_tunnel(&listener);
        gateway.accept().poll_says(0, &[id(1)]);
        worker.signal("-TERM");
        worker.says("no more work is taken");
        if code == Some(143) {
            // What the worker sees right behind the first is the same signal once more.
            while worker.is_running() {
                std::thread::sleep(Duration::from_millis(100));
                worker.signal("-TERM");
            }
        }
        assert_eq!(worker.exit_code(), code);
        assert_eq!(tunnel.rest(), b"");
    }
}

#[test]
fn wrong_arguments_are_refused_with_2() {
    let good = [
        "--gateway",
        "http://h:1",
        "--key",
        "k",
        "--function",
        FUNCTION,
        "--version",
        VERSION,
        "--target",
        "h:2",
    ];
    for (from, to) in [
        ("http://h:1", "https://h:1"),
        ("http://h:1", "h:1"),
        ("h:2", "h"),
        (FUNCTION, "f"),
        ("k", ""),
        ("k", "a b"),
        ("--key", "--key-file"),
        ("--version", "--slots"),
    ] {
        let arguments = good.map(|argument| if argument == from { to } else { argument });
        let output = Command::new(env!("CARGO_BIN_EXE_ringway-worker")).args(arguments).output();
        let output = output.unwrap();
        assert_eq!(output.status.code(), Some(2), "{from} -> {to}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("error: "), "{from} -> {to}");
    }
}
