//! How connections begin, pause and end, seen from the core and from the peer.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

#[macro_use]
mod reactor_rig;

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use reactor_rig::{Fact, Noise, Probe, Running, SOON, start, start_by, start_on, until};
use ringway::net::{Close, ConnId, End, LINGER, Listener};
use ringway::reactor::{DROP_BUDGET, KeepAlive, Options};

fn connect<C: ringway::net::Core>(to: &Running<C>) -> TcpStream {
    let stream = TcpStream::connect(to.address).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream
}

fn probe() -> Running<Probe> {
    start(Options::default(), Probe::default())
}

/// RST instead of FIN when the stream is dropped.
fn abort(stream: TcpStream) {
    socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
    drop(stream);
}

fn ends(probe: &Running<Probe>, conn: ConnId) -> Vec<End> {
    probe.ask(move |probe, _| probe.ends(conn))
}

fn end(probe: &Running<Probe>, conn: ConnId) -> End {
    until("an end", || ends(probe, conn).first().copied())
}

fn received(probe: &Running<Probe>, conn: ConnId) -> usize {
    probe.ask(move |probe, _| probe.bytes.get(&conn).map_or(0, Vec::len))
}

/// A few turns later: what was asked for (a receive armed, one cancelled) has taken effect.
fn settled(probe: &Running<Probe>) {
    for _ in 0..5 {
        thread::sleep(Duration::from_millis(4));
        probe.ask(|_, _| ());
    }
}

fn all_closed(probe: &Running<Probe>) {
    until("all sockets closed", || probe.ask(|_, net| (net.tally.sockets == 0).then_some(())));
}

fn accepted_and_dialled_sockets_have_no_nagle_delay_and_keep_alive() {
    let second = Duration::from_secs(1);
    let usual = KeepAlive {
        idle: 15 * second,
        interval: 15 * second,
        probes: 9,
        user_timeout: 150 * second,
    };
    assert_eq!(Options::default().keep_alive, usual);
    sockets_are_tuned(usual);
    let user_timeout = 20 * second;
    sockets_are_tuned(KeepAlive {
        idle: 7 * second,
        interval: 3 * second,
        probes: 4,
        user_timeout,
    });
}

fn sockets_are_tuned(keep_alive: KeepAlive) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let target = listener.local_addr().unwrap();
    let client_timeout = Duration::from_secs(40);
    let options = Options { keep_alive, client_timeout, ..Options::default() };
    let probe = start(options, Probe::default());
    let _client = connect(&probe);
    probe.accepted(0);
    probe.ask(move |_, net| net.dial(target));
    let _dialled = listener.accept().unwrap();
    // Only the kernel can tell: both sockets are the reactor's, found by their descriptors.
    let mut seen = 0;
    for fd in 0..1024 {
        // SAFETY: the descriptor is only asked for options, and a wrong one answers with an error.
        let fd = unsafe { std::os::fd::BorrowedFd::borrow_raw(fd) };
        let socket = socket2::SockRef::from(&fd);
        let ours = [probe.address, target].map(Some);
        let local = socket.local_addr().ok().and_then(|a| a.as_socket());
        let peer = socket.peer_addr().ok().and_then(|a| a.as_socket());
        let accepted = local == ours[0] && peer.is_some();
        if accepted || (peer == ours[1] && peer.is_some()) {
            assert!(socket.tcp_nodelay().unwrap(), "{local:?} to {peer:?}");
            assert!(socket.keepalive().unwrap(), "{local:?} to {peer:?}");
            assert_eq!(socket.tcp_keepalive_time().unwrap(), keep_alive.idle);
            assert_eq!(socket.tcp_keepalive_interval().unwrap(), keep_alive.interval);
            assert_eq!(socket.tcp_keepalive_retries().unwrap(), keep_alive.probes);
            // A client that vanished is waited for otherwise than a worker.
            let patience = if accepted { client_timeout } else { keep_alive.user_timeout };
            assert_eq!(socket.tcp_user_timeout().unwrap(), Some(patience));
            seen += 1;
        }
    }
    assert_eq!(seen, 2);
    probe.finish();
}

fn a_close_with_a_receive_armed_sends_fin_at_once() {
    for how in [Close::Now, Close::Flush] {
        // Not when the lingering is over; a machine that is busy for so long is so now and then.
        let quick = (0..10).any(|_| time_to_fin(how) < LINGER / 2);
        assert!(quick, "{how:?}");
    }
}

fn time_to_fin(how: Close) -> Duration {
    let probe = probe();
    let mut client = connect(&probe);
    let conn = probe.accepted(0);
    settled(&probe);
    let begun = Instant::now();
    probe.ask(move |_, net| net.close(conn, how));
    assert_eq!(client.read(&mut [0; 8]).unwrap(), 0);
    let took = begun.elapsed();
    drop(client);
    all_closed(&probe);
    assert!(ends(&probe, conn).is_empty(), "a dead id was told of an end");
    probe.finish();
    took
}

fn a_flushed_connection_delivers_its_last_bytes_to_a_peer_that_keeps_sending() {
    const LEN: usize = 3 << 20;
    let probe = probe();
    let mut client = connect(&probe);
    let conn = probe.accepted(0);
    let stop = Arc::new(AtomicBool::new(false));
    let (mut writer, stopped) = (client.try_clone().unwrap(), Arc::clone(&stop));
    let chatter = thread::spawn(move || {
        let mut sent = 0;
        let done = |sent| sent > DROP_BUDGET / 2 || stopped.load(Ordering::Relaxed);
        while !done(sent) && writer.write(&[1; 512]).is_ok() {
            sent += 512;
            thread::sleep(Duration::from_micros(500));
        }
        sent
    });
    thread::sleep(Duration::from_millis(20));
    probe.ask(move |_, net| {
        net.put(conn, &Noise::new(5).bytes(LEN));
        net.close(conn, Close::Flush);
    });
    thread::sleep(Duration::from_millis(50));
    let mut got = Vec::new();
    client.read_to_end(&mut got).unwrap();
    assert!(got == Noise::new(5).bytes(LEN), "{} bytes of {LEN}, or others", got.len());
    stop.store(true, Ordering::Relaxed);
    let sent = chatter.join().unwrap();
    assert!(sent > 0 && sent < DROP_BUDGET);
    drop(client);
    all_closed(&probe);
    probe.finish();
}

fn a_peer_that_never_stops_sending_is_cut_off_after_the_budget() {
    let probe = probe();
    let mut client = connect(&probe);
    let conn = probe.accepted(0);
    probe.ask(move |_, net| net.close(conn, Close::Flush));
    let begun = Instant::now();
    let mut sent = 0;
    let error = loop {
        match client.write(&[0; 64 * 1024]) {
            Ok(n) => sent += n,
            Err(error) => break error,
        }
        assert!(begun.elapsed() < SOON);
    };
    assert!(matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe), "{error}");
    assert!(sent >= DROP_BUDGET);
    all_closed(&probe);
    probe.finish();
}

fn a_lingering_connection_ends_without_a_fin_from_its_peer() {
    let probe = probe();
    let client = connect(&probe);
    let conn = probe.accepted(0);
    let begun = Instant::now();
    probe.ask(move |_, net| net.close(conn, Close::Flush));
    all_closed(&probe);
    assert!(begun.elapsed() > LINGER - Duration::from_millis(100), "{:?}", begun.elapsed());
    drop(client);
    probe.finish();
}

/// Bytes the peer gets, and the error that ends them, if it is no FIN.
fn got(mut client: TcpStream) -> (usize, Option<ErrorKind>) {
    let mut bytes = Vec::new();
    let error = client.read_to_end(&mut bytes).err();
    (bytes.len(), error.map(|error| error.kind()))
}

fn an_open_end_is_a_reset_unless_the_message_became_whole_and_is_sent() {
    for (how, whole, expected) in [
        (Close::Flush, true, (9, None)),
        (Close::Flush, false, (9, Some(ErrorKind::ConnectionReset))),
        (Close::Now, true, (4, Some(ErrorKind::ConnectionReset))),
        (Close::Now, false, (4, Some(ErrorKind::ConnectionReset))),
    ] {
        let probe = probe();
        let client = connect(&probe);
        let conn = probe.accepted(0);
        probe.ask(move |_, net| {
            net.put(conn, b"half");
            net.set_open_ended(conn, true);
        });
        settled(&probe);
        probe.ask(move |_, net| {
            net.put(conn, b" more");
            net.set_open_ended(conn, !whole);
            net.close(conn, how);
        });
        assert_eq!(got(client), expected, "{how:?}, whole: {whole}");
        all_closed(&probe);
        probe.finish();
    }
}

fn an_open_end_is_a_reset_when_the_reactor_ends() {
    let probe = probe();
    let (open_ended, other) = (connect(&probe), connect(&probe));
    let (conn, _) = (probe.accepted(0), probe.accepted(1));
    probe.ask(move |_, net| {
        net.put(conn, b"half");
        net.set_open_ended(conn, true);
    });
    settled(&probe);
    probe.finish();
    let both = [got(open_ended), got(other)];
    assert!(both.contains(&(4, Some(ErrorKind::ConnectionReset))), "{both:?}");
    assert!(both.contains(&(0, None)), "{both:?}");
}

fn a_reset_is_told_once_and_after_the_bytes_before_it() {
    let probe = probe();
    let mut client = connect(&probe);
    let conn = probe.accepted(0);
    client.write_all(b"before").unwrap();
    until("the bytes", || (received(&probe, conn) == 6).then_some(()));
    abort(client);
    assert_eq!(end(&probe, conn), End::Reset);
    all_closed(&probe);
    assert_eq!(ends(&probe, conn), [End::Reset]);
    probe.finish();
}

fn a_reset_found_by_a_send_is_told_once() {
    let probe = probe();
    let client = connect(&probe);
    let conn = probe.accepted(0);
    // Paused: no receive is under way that would see the reset.
    probe.ask(move |_, net| net.pause(conn, true));
    settled(&probe);
    abort(client);
    thread::sleep(Duration::from_millis(20));
    assert!(ends(&probe, conn).is_empty());
    probe.ask(move |_, net| net.put(conn, b"are you there?"));
    assert_eq!(end(&probe, conn), End::Reset);
    all_closed(&probe);
    assert_eq!(ends(&probe, conn), [End::Reset]);
    probe.finish();
}

fn bytes_before_a_reset_that_a_send_finds_are_not_lost() {
    const LEN: usize = 50_000;
    let probe = start(Options { receive_limit: 3000, ..Options::default() }, Probe::default());
    let mut client = connect(&probe);
    let conn = probe.accepted(0);
    probe.ask(move |_, net| net.pause(conn, true));
    settled(&probe);
    client.write_all(&Noise::new(4).bytes(LEN)).unwrap();
    thread::sleep(Duration::from_millis(20));
    abort(client);
    thread::sleep(Duration::from_millis(20));
    probe.ask(move |_, net| {
        net.put(conn, b"are you there?");
        net.pause(conn, false);
    });
    assert_eq!(end(&probe, conn), End::Reset);
    let got = probe.ask(move |probe, _| probe.bytes.remove(&conn).unwrap_or_default());
    assert!(got == Noise::new(4).bytes(LEN), "{} bytes of {LEN}, or others", got.len());
    all_closed(&probe);
    assert_eq!(ends(&probe, conn), [End::Reset]);
    probe.finish();
}

fn a_reset_of_a_blocked_peer_is_told_and_its_output_dropped() {
    let probe = probe();
    let client = connect(&probe);
    let conn = probe.accepted(0);
    probe.ask(move |_, net| net.put(conn, &vec![0; 16 << 20]));
    until("a blocked send", || probe.ask(|_, net| (net.tally.blocked_sends > 0).then_some(())));
    abort(client);
    assert_eq!(end(&probe, conn), End::Reset);
    all_closed(&probe);
    assert_eq!(probe.ask(|_, net| net.pool.chunks_live()), 0);
    assert_eq!(ends(&probe, conn), [End::Reset]);
    probe.finish();
}

/// A core that does not wait for it is told later that the kernel took a small send, but at once
/// that it did not take it all.
fn a_small_send_is_told_with_the_next_fact_and_what_was_not_taken_is_sent_later() {
    const PIECE: usize = 10_000;
    let probe = start(Options::default(), Probe { patient: true, ..Probe::default() });
    let mut client = connect(&probe);
    let conn = probe.accepted(0);
    let put = |piece: Vec<u8>| {
        probe.ask(move |probe, net| {
            net.put(conn, &piece);
            (net.queued(conn), probe.written.get(&conn).copied().unwrap_or(0))
        })
    };
    let mut noise = Noise::new(5);
    for nth in 0..50 {
        let (piece, mut got) = (noise.bytes(PIECE), vec![0; PIECE]);
        // What the peer has read was sent before this was asked.
        assert_eq!(put(piece.clone()), (PIECE, nth * PIECE));
        client.read_exact(&mut got).unwrap();
        assert!(got == piece);
    }
    let read = 50 * PIECE;
    let mut sent = vec![];
    while !probe.ask(|_, net| net.tally.blocked_sends > 0) {
        let piece = noise.bytes(PIECE);
        sent.extend_from_slice(&piece);
        put(piece);
    }
    let mut got = vec![0; sent.len()];
    client.read_exact(&mut got).unwrap();
    assert!(got == sent);
    let all = read + sent.len();
    until("everything told", || {
        probe.ask(move |probe, _| (probe.written[&conn] == all).then_some(()))
    });
    // An end comes behind it.
    probe.ask(move |_, net| net.put(conn, b"last"));
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(end(&probe, conn), End::Fin);
    assert_eq!(probe.ask(move |probe, net| (probe.written[&conn], net.queued(conn))), (all + 4, 0));
    probe.finish();
}

fn closing_now_drops_what_a_blocked_peer_held() {
    let probe = probe();
    let client = connect(&probe);
    let conn = probe.accepted(0);
    probe.ask(move |_, net| net.put(conn, &vec![0; 16 << 20]));
    thread::sleep(Duration::from_millis(50));
    probe.ask(move |_, net| net.close(conn, Close::Now));
    all_closed(&probe);
    assert_eq!(probe.ask(|_, net| net.pool.chunks_live()), 0);
    drop(client);
    probe.finish();
}

fn after_a_fin_the_connection_still_sends() {
    let probe = probe();
    let mut client = connect(&probe);
    let conn = probe.accepted(0);
    client.write_all(b"question").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(end(&probe, conn), End::Fin);
    assert_eq!(received(&probe, conn), 8);
    probe.ask(move |_, net| {
        net.put(conn, b"answer");
        net.close(conn, Close::Flush);
    });
    let mut answer = Vec::new();
    client.read_to_end(&mut answer).unwrap();
    assert_eq!(answer, b"answer");
    all_closed(&probe);
    assert_eq!(ends(&probe, conn), [End::Fin]);
    probe.finish();
}

fn a_connection_that_breaks_after_its_fin_is_told_of_both() {
    let probe = probe();
    let client = connect(&probe);
    let conn = probe.accepted(0);
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(end(&probe, conn), End::Fin);
    drop(client);
    // The first bytes draw a reset, the next find it.
    until("the second end", || {
        probe.ask(move |_, net| net.put(conn, b"?"));
        (ends(&probe, conn).len() > 1).then_some(())
    });
    all_closed(&probe);
    assert_eq!(ends(&probe, conn), [End::Fin, End::Reset]);
    probe.finish();
}

fn pausing_stops_the_bytes_and_resuming_brings_all_in_order() {
    const LEN: usize = 12 << 20;
    let probe = probe();
    let client = connect(&probe);
    let conn = probe.accepted(0);
    probe.ask(move |_, net| net.pause(conn, true));
    settled(&probe);
    let mut writer = client.try_clone().unwrap();
    let writing = thread::spawn(move || writer.write_all(&Noise::new(9).bytes(LEN)).unwrap());
    thread::sleep(Duration::from_millis(100));
    let early = received(&probe, conn);
    assert!(early < LEN / 2, "{early} bytes came although it was paused");
    thread::sleep(Duration::from_millis(50));
    assert_eq!(received(&probe, conn), early, "bytes come although it is paused");
    // Every pause cancels a receive that is just delivering: late bytes must not get lost.
    let mut noise = Noise::new(1);
    while received(&probe, conn) < LEN {
        let on = !noise.next().is_multiple_of(2);
        probe.ask(move |_, net| net.pause(conn, on));
        if noise.next().is_multiple_of(3) {
            thread::sleep(Duration::from_micros(noise.next() % 400));
        }
    }
    writing.join().unwrap();
    let got = probe.ask(move |probe, _| probe.bytes.remove(&conn).unwrap());
    assert!(got == Noise::new(9).bytes(LEN), "{} bytes of {LEN}, or others", got.len());
    drop(client);
    probe.finish();
}

fn a_pause_taken_back_in_the_same_turn_changes_nothing() {
    let probe = probe();
    let mut client = connect(&probe);
    let conn = probe.accepted(0);
    for _ in 0..50 {
        probe.ask(move |_, net| {
            net.pause(conn, true);
            net.pause(conn, false);
        });
        client.write_all(b"x").unwrap();
    }
    until("the bytes", || (received(&probe, conn) == 50).then_some(()));
    drop(client);
    probe.finish();
}

fn a_connection_closed_while_bytes_come_is_told_of_none() {
    let probe = probe();
    for round in 0..50 {
        let mut client = connect(&probe);
        let conn = probe.accepted(round);
        let writing = thread::spawn(move || while client.write(&[0; 4096]).is_ok() {});
        let how = if round % 2 == 0 { Close::Now } else { Close::Flush };
        // Probe::received asserts that the id is alive.
        probe.ask(move |_, net| net.close(conn, how));
        writing.join().unwrap();
    }
    all_closed(&probe);
    let (free, chunks) = probe.ask(|_, b| (b.pool.ring_free(), b.pool.chunks_live()));
    assert_eq!((free, chunks), (Options::default().blocks, 0));
    probe.finish();
}

fn a_dial_that_is_refused_is_told_with_its_errno() {
    let target = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let probe = probe();
    let conn = probe.ask(move |_, net| net.dial(target));
    let fact = until("the dial's end", || probe.ask(|probe, _| probe.facts.first().copied()));
    assert_eq!(fact, Fact::Dialled(conn, Err(libc::ECONNREFUSED)));
    all_closed(&probe);
    probe.finish();
}

fn a_dial_that_is_not_answered_ends_in_time() {
    // A listener whose queue is full drops the SYN.
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&"127.0.0.1:0".parse::<SocketAddr>().unwrap().into()).unwrap();
    socket.listen(0).unwrap();
    let target = socket.local_addr().unwrap().as_socket().unwrap();
    let filler = TcpStream::connect(target).unwrap();
    let probe = probe();
    let (conn, closed) = probe.ask(move |_, net| (net.dial(target), net.dial(target)));
    probe.ask(move |_, net| net.close(closed, Close::Now));
    // Sooner than the kernel would give up, which takes two minutes.
    let fact = until("the dial's end", || probe.ask(|probe, _| probe.facts.first().copied()));
    assert_eq!(fact, Fact::Dialled(conn, Err(libc::ETIMEDOUT)));
    all_closed(&probe);
    assert_eq!(probe.ask(|probe, _| probe.facts.len()), 1, "a closed dial was told of");
    drop(filler);
    probe.finish();
}

fn a_dialled_connection_sends_what_was_queued_before_it_stood() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let target = listener.local_addr().unwrap();
    let probe = probe();
    let conn = probe.ask(move |_, net| {
        let conn = net.dial(target);
        net.put(conn, b"early");
        let closed = net.dial(target);
        net.put(closed, b"closed");
        net.close(closed, Close::Flush);
        conn
    });
    let (mut first, _) = listener.accept().unwrap();
    let (mut second, _) = listener.accept().unwrap();
    let mut early = [0; 5];
    first.read_exact(&mut early).unwrap();
    assert_eq!(&early, b"early");
    let mut flushed = Vec::new();
    second.read_to_end(&mut flushed).unwrap();
    assert_eq!(flushed, b"closed");
    assert_eq!(probe.ask(|probe, _| probe.facts.clone()), [Fact::Dialled(conn, Ok(()))]);
    probe.finish();
}

fn connections_over_the_limit_are_refused() {
    let probe = start(Options { connections: 2, ..Options::default() }, Probe::default());
    let _kept = [connect(&probe), connect(&probe)];
    probe.accepted(1);
    assert_eq!(connect(&probe).read(&mut [0; 1]).unwrap(), 0);
    let refused = probe.ask(|_, net| net.dial("127.0.0.1:9".parse().unwrap()));
    until("the dial's end", || {
        let fact = Fact::Dialled(refused, Err(libc::EMFILE));
        probe.ask(move |probe, _| probe.facts.contains(&fact).then_some(()))
    });
    assert_eq!(probe.ask(|_, net| net.tally.refused), 1);
    probe.finish();
}

/// Sockets count too that were closed and whose peers do not go.
fn whoever_comes_to_the_worker_port_leaves_dials_their_sockets() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap();
    let options = Options { connections: 9, others: 3, workers: 2, ..Options::default() };
    let probe = start_by(Listener::Worker, port, options, Probe::default());
    let mut kept = [connect(&probe), connect(&probe)];
    probe.accepted(1);
    for (number, stream) in kept.iter_mut().enumerate() {
        let conn = probe.accepted(number);
        probe.ask(move |_, net| net.close(conn, Close::Flush));
        assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0);
    }
    assert_eq!(connect(&probe).read(&mut [0; 1]).unwrap(), 0);
    assert_eq!(probe.ask(|_, net| net.tally.refused), 1, "its place is not free");
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = server.local_addr().unwrap();
    let dials = probe.ask(move |_, net| [net.dial(address), net.dial(address)]);
    for (conn, result) in dials.into_iter().zip([Ok(()), Err(libc::EMFILE)]) {
        let fact = Fact::Dialled(conn, result);
        until("the dial's end", || {
            probe.ask(move |probe, _| probe.facts.contains(&fact).then_some(()))
        });
    }
    drop(kept);
    until("their places", || probe.ask(|_, net| (net.tally.sockets == 1).then_some(())));
    let _next = connect(&probe);
    probe.accepted(2);
    probe.finish();
}

fn deadlines_fire_on_time() {
    let probe = probe();
    for delay in [Duration::from_millis(5), Duration::from_millis(60), Duration::ZERO] {
        // A busy machine is late now and then, a deadline that wakes nobody is so always.
        let in_time = |_| late_by(&probe, delay).is_some_and(|by| by < Duration::from_millis(25));
        assert!((0..20).any(in_time), "{delay:?}");
    }
    probe.finish();
}

/// How late a deadline fires; `None` if it had not when it should have.
fn late_by(probe: &Running<Probe>, delay: Duration) -> Option<Duration> {
    let at = probe.ask(move |probe, net| {
        let at = net.now + delay;
        probe.deadline = Some(at);
        at
    });
    // Asking would wake the core: the deadline has to do that by itself.
    thread::sleep(delay + Duration::from_millis(30));
    let fired = probe.ask(|probe, _| probe.fired.take())?;
    assert!(fired >= at, "early");
    Some(fired.since(at))
}

fn a_sleeping_core_is_woken_by_a_message_and_sleeps_again() {
    let probe = probe();
    for _ in 0..20 {
        thread::sleep(Duration::from_millis(5));
        probe.ask(|_, _| ());
    }
    let before = probe.ask(|_, net| net.tally.turns);
    thread::sleep(Duration::from_millis(200));
    let turns = probe.ask(|_, net| net.tally.turns) - before;
    assert!(turns < 5, "{turns} turns without anything to do");
    probe.finish();
}

fn the_port_is_free_when_the_reactor_has_returned() {
    let mut listener = TcpListener::bind("127.0.0.1:0").unwrap();
    for _ in 0..10 {
        let address = listener.local_addr().unwrap();
        let probe = start_on(listener, Options::default(), Probe::default());
        let mut client = connect(&probe);
        probe.accepted(0);
        probe.finish();
        assert_eq!(client.read(&mut [0; 1]).unwrap(), 0, "the connection was left open");
        listener = TcpListener::bind(address).expect("the port is free");
    }
}

fn what_is_being_flushed_at_the_end_is_still_sent() {
    const LEN: usize = 8 << 20;
    let probe = probe();
    let mut client = connect(&probe);
    let conn = probe.accepted(0);
    probe.ask(move |probe, net| {
        net.put(conn, &Noise::new(3).bytes(LEN));
        net.close(conn, Close::Flush);
        probe.stopped = true;
    });
    let mut got = Vec::new();
    client.read_to_end(&mut got).unwrap();
    assert!(got == Noise::new(3).bytes(LEN), "{} bytes of {LEN}, or others", got.len());
}

on_both_backends! {
    accepted_and_dialled_sockets_have_no_nagle_delay_and_keep_alive,
    a_close_with_a_receive_armed_sends_fin_at_once,
    a_flushed_connection_delivers_its_last_bytes_to_a_peer_that_keeps_sending,
    a_peer_that_never_stops_sending_is_cut_off_after_the_budget,
    a_lingering_connection_ends_without_a_fin_from_its_peer,
    an_open_end_is_a_reset_unless_the_message_became_whole_and_is_sent,
    an_open_end_is_a_reset_when_the_reactor_ends,
    a_reset_is_told_once_and_after_the_bytes_before_it,
    a_reset_found_by_a_send_is_told_once,
    bytes_before_a_reset_that_a_send_finds_are_not_lost,
    a_reset_of_a_blocked_peer_is_told_and_its_output_dropped,
    a_small_send_is_told_with_the_next_fact_and_what_was_not_taken_is_sent_later,
    closing_now_drops_what_a_blocked_peer_held,
    after_a_fin_the_connection_still_sends,
    a_connection_that_breaks_after_its_fin_is_told_of_both,
    pausing_stops_the_bytes_and_resuming_brings_all_in_order,
    a_pause_taken_back_in_the_same_turn_changes_nothing,
    a_connection_closed_while_bytes_come_is_told_of_none,
    a_dial_that_is_refused_is_told_with_its_errno,
    a_dial_that_is_not_answered_ends_in_time,
    a_dialled_connection_sends_what_was_queued_before_it_stood,
    connections_over_the_limit_are_refused,
    whoever_comes_to_the_worker_port_leaves_dials_their_sockets,
    deadlines_fire_on_time,
    a_sleeping_core_is_woken_by_a_message_and_sleeps_again,
    the_port_is_free_when_the_reactor_has_returned,
    what_is_being_flushed_at_the_end_is_still_sent,
}
