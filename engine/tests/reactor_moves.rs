//! Connections that change cores: no byte is lost, doubled or overtaken, whatever else happens.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod reactor_rig;

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::thread;
use std::time::Duration;

use reactor_rig::{Noise, Probe, Running, SOON, Watched, start, until};
use ringway::mailbox::{Full, Sender};
use ringway::net::{Carried, Close, ConnId, Core, Detached, End, Listener, Net, SimulatedSocket};
use ringway::pool::Segment;
use ringway::reactor::{KeepAlive, Options};
use ringway_proto::time::Time;

fn probe() -> Running<Probe> {
    start(Options::default(), Probe::default())
}

fn connect<C: Core>(to: &Running<C>) -> TcpStream {
    let stream = TcpStream::connect(to.address).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream
}

/// RST instead of FIN when the stream is dropped.
fn abort(stream: TcpStream) {
    socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
    drop(stream);
}

fn detach(probe: &Running<Probe>, conn: ConnId) {
    probe.ask(move |_, net| net.detach(conn));
}

fn adopt(probe: &Running<Probe>, detached: Detached) -> ConnId {
    probe.ask(move |_, net| net.adopt(detached))
}

fn bytes(probe: &Running<Probe>, conn: ConnId) -> Vec<u8> {
    probe.ask(move |probe, _| probe.bytes.get(&conn).cloned().unwrap_or_default())
}

fn gets(probe: &Running<Probe>, conn: ConnId, want: &[u8]) {
    until("bytes", || (bytes(probe, conn).len() >= want.len()).then_some(()));
    assert_eq!(bytes(probe, conn), want);
}

fn end(probe: &Running<Probe>, conn: ConnId) -> End {
    until("an end", || probe.ask(move |probe, _| probe.ends(conn)).first().copied())
}

fn is_closed(probe: Running<Probe>) {
    until("all sockets closed", || probe.ask(|_, net| (net.tally.sockets == 0).then_some(())));
    let (live, chunks) = probe.ask(|_, net| (net.connections(), net.pool.chunks_live()));
    assert_eq!((live, chunks), (0, 0));
    probe.finish();
}

/// What no kernel knows.
#[derive(Debug)]
struct Odd;

impl SimulatedSocket for Odd {
    fn number(&self) -> i32 {
        7
    }

    fn peer(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], 7))
    }

    fn set_resets(&self, _resets: bool) {}

    fn unacknowledged(&self) -> usize {
        0
    }

    fn end_writing(&self) {}
}

#[test]
fn what_came_before_is_the_first_ones_and_what_comes_later_the_seconds() {
    let (first, second) = (probe(), probe());
    let mut client = connect(&first);
    let old = first.accepted(0);
    client.write_all(b"before").unwrap();
    gets(&first, old, b"before");
    detach(&first, old);
    let detached = first.detached(old);
    assert!(detached.unsent.is_empty());
    client.write_all(b"between").unwrap();
    let new = adopt(&second, detached);
    gets(&second, new, b"between");
    second.ask(move |_, net| net.put(new, b"answer"));
    let mut answer = [0; 6];
    client.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"answer");
    second.ask(move |_, net| net.close(new, Close::Flush));
    drop(client);
    is_closed(first);
    is_closed(second);
}

/// Detaches the connection before it was ever read from.
#[derive(Default)]
struct Doorman {
    probe: Probe,
}

impl Core for Doorman {
    type Message = <Probe as Core>::Message;

    fn accepted(&mut self, net: &mut Net, conn: ConnId, by: Listener, peer: SocketAddr) {
        self.probe.accepted(net, conn, by, peer);
        net.detach(conn);
    }
    fn dialled(&mut self, _: &mut Net, _: ConnId, _: Result<(), i32>) {}
    fn received(&mut self, _: &mut Net, _: ConnId, _: Segment) {
        panic!("it was read from");
    }
    fn ended(&mut self, net: &mut Net, conn: ConnId, end: End) {
        self.probe.ended(net, conn, end);
    }
    fn detached(&mut self, net: &mut Net, conn: ConnId, detached: Detached) {
        self.probe.detached(net, conn, detached);
    }
    fn written(&mut self, _: &mut Net, _: ConnId, _: usize) {}
    fn message_received(&mut self, net: &mut Net, message: Self::Message) {
        message(&mut self.probe, net);
    }
    fn turn(&mut self, _: &mut Net) {}
    fn relieve(&mut self, _: &mut Net) {}
    fn deadline(&self) -> Option<Time> {
        None
    }
    fn finished(&self) -> bool {
        self.probe.stopped
    }
}

#[test]
fn what_tcp_was_told_stays_with_the_socket() {
    let second = Duration::from_secs(1);
    let keep_alive =
        KeepAlive { idle: 7 * second, interval: 3 * second, probes: 4, user_timeout: 20 * second };
    let client_timeout = 11 * second;
    let options = Options { keep_alive, client_timeout, ..Options::default() };
    let first = start(options, Probe::default());
    let client = connect(&first);
    let old = first.accepted(0);
    detach(&first, old);
    let detached = first.detached(old);
    let Carried::Descriptor(fd) = &detached.socket else { panic!("a plain socket") };
    let watched = fd.try_clone().unwrap();
    let second = probe();
    let new = adopt(&second, detached);
    second.ask(move |_, net| net.put(new, b"here"));
    (&client).read_exact(&mut [0; 4]).unwrap();
    let socket = socket2::SockRef::from(&watched);
    assert!(socket.tcp_nodelay().unwrap() && socket.keepalive().unwrap());
    assert_eq!(socket.tcp_keepalive_time().unwrap(), keep_alive.idle);
    assert_eq!(socket.tcp_keepalive_interval().unwrap(), keep_alive.interval);
    assert_eq!(socket.tcp_keepalive_retries().unwrap(), keep_alive.probes);
    assert_eq!(socket.tcp_user_timeout().unwrap(), Some(client_timeout));
    drop((client, watched));
    first.finish();
    second.ask(move |_, net| net.close(new, Close::Flush));
    is_closed(second);
}

#[test]
fn a_connection_can_go_before_its_first_read() {
    let (listener, second) = (start(Options::default(), Doorman::default()), probe());
    for round in 0_u8..50 {
        let mut client = TcpStream::connect(listener.address).unwrap();
        client.write_all(&[round; 100]).unwrap();
        let (send, sent) = std::sync::mpsc::channel();
        let detached = until("it goes", || {
            let send = send.clone();
            let ask = Box::new(move |probe: &mut Probe, _: &mut Net| {
                let _ = send.send(probe.detached_ones.pop());
            });
            assert!(listener.sender.send(ask).is_ok());
            sent.recv_timeout(SOON).unwrap().map(|(_, detached)| detached)
        });
        let new = adopt(&second, detached);
        gets(&second, new, &[round; 100]);
        second.ask(move |_, net| net.close(new, Close::Now));
    }
    let adopts = second.ask(|_, net| net.tally.adopts);
    assert_eq!(adopts, 50);
    is_closed(second);
    listener.stop(Box::new(|probe, _| probe.stopped = true));
}

#[test]
fn output_that_waits_for_a_slow_peer_goes_along() {
    const LEN: usize = 24 << 20;
    let (first, second) = (probe(), probe());
    let mut client = connect(&first);
    let old = first.accepted(0);
    first.ask(move |_, net| net.put(old, &Noise::new(5).bytes(LEN)));
    until("a blocked send", || first.ask(|_, net| (net.tally.blocked_sends > 0).then_some(())));
    // A send waits for room: that poll is cancelled, the rest is carried.
    first.ask(move |_, net| {
        net.detach(old);
        net.put(old, b"the end");
    });
    let detached = first.detached(old);
    let sent = first.ask(move |probe, _| probe.written.get(&old).copied().unwrap_or(0));
    assert_eq!(sent + detached.unsent.len(), LEN + 7);
    assert!(sent > 0 && !detached.unsent.is_empty());
    is_closed(first);
    let new = adopt(&second, detached);
    second.ask(move |_, net| {
        net.put(new, b", really");
        net.close(new, Close::Flush);
    });
    let mut got = Vec::new();
    client.read_to_end(&mut got).unwrap();
    let mut want = Noise::new(5).bytes(LEN);
    want.extend_from_slice(b"the end, really");
    assert!(got == want, "{} bytes of {}, or others", got.len(), want.len());
    drop(client);
    is_closed(second);
}

#[test]
fn a_fin_that_was_told_is_told_again_by_the_next() {
    let (first, second) = (probe(), probe());
    let mut client = connect(&first);
    let old = first.accepted(0);
    client.write_all(b"all").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(end(&first, old), End::Fin);
    gets(&first, old, b"all");
    detach(&first, old);
    let new = adopt(&second, first.detached(old));
    assert_eq!(end(&second, new), End::Fin);
    second.ask(move |_, net| {
        net.put(new, b"answer");
        net.close(new, Close::Flush);
    });
    let mut got = Vec::new();
    client.read_to_end(&mut got).unwrap();
    assert_eq!(got, b"answer");
    is_closed(first);
    is_closed(second);
}

#[test]
fn a_fin_nobody_has_read_arrives_at_the_next_after_the_bytes() {
    let (first, second) = (probe(), probe());
    let mut client = connect(&first);
    let old = first.accepted(0);
    first.ask(move |_, net| net.pause(old, true));
    client.write_all(b"last words").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    detach(&first, old);
    let detached = first.detached(old);
    assert_eq!(bytes(&first, old), b"");
    let new = adopt(&second, detached);
    assert_eq!(end(&second, new), End::Fin);
    gets(&second, new, b"last words");
    second.ask(move |_, net| net.close(new, Close::Flush));
    is_closed(first);
    is_closed(second);
}

/// Detaches a connection unless its end was told already.
fn detach_living(probe: &Running<Probe>, conn: ConnId) {
    probe.ask(move |probe, net| {
        if probe.ends(conn).is_empty() {
            net.detach(conn);
        }
    });
}

/// What became of a connection that was to be detached while its peer ended it.
fn outcome(first: &Running<Probe>, conn: ConnId) -> Result<Detached, End> {
    until("an end, or that it goes", || {
        first.ask(move |probe, _| {
            let at = probe.detached_ones.iter().position(|(of, _)| *of == conn);
            let detached = at.map(|at| probe.detached_ones.swap_remove(at).1);
            let end = probe.ends(conn).first().copied();
            let both = detached.is_some() && end.is_some();
            assert!(!both, "told of an end after the wish, and handed over");
            detached.map(Ok).or(end.map(Err))
        })
    })
}

#[test]
fn a_connection_whose_fin_was_told_meanwhile_stays_and_goes_on() {
    let (first, second) = (probe(), probe());
    let (mut stayed, mut went) = (0, 0);
    for round in 0..300 {
        let mut client = connect(&first);
        let old = first.accepted(round);
        client.write_all(b"x").unwrap();
        if round % 2 == 0 {
            gets(&first, old, b"x");
        }
        client.shutdown(Shutdown::Write).unwrap();
        detach_living(&first, old);
        let (owner, conn, mut seen) = match outcome(&first, old) {
            Ok(detached) => {
                went += 1;
                (&second, adopt(&second, detached), bytes(&first, old))
            }
            Err(end) => {
                assert_eq!(end, End::Fin);
                stayed += 1;
                (&first, old, Vec::new())
            }
        };
        assert_eq!(end(owner, conn), End::Fin);
        seen.extend(bytes(owner, conn));
        assert_eq!(seen, b"x");
        owner.ask(move |_, net| {
            net.put(conn, b"y");
            net.close(conn, Close::Flush);
        });
        let mut got = Vec::new();
        client.read_to_end(&mut got).unwrap();
        assert_eq!(got, b"y");
    }
    assert_eq!(stayed + went, 300);
    is_closed(first);
    is_closed(second);
}

#[test]
fn a_reset_is_told_by_the_one_or_by_the_other() {
    let (first, second) = (probe(), probe());
    for round in 0..200 {
        let client = connect(&first);
        let old = first.accepted(round);
        if round % 2 == 0 {
            abort(client);
            detach_living(&first, old);
        } else {
            detach(&first, old);
            abort(client);
        }
        match outcome(&first, old) {
            Ok(detached) => {
                let new = adopt(&second, detached);
                assert_eq!(end(&second, new), End::Reset);
            }
            Err(end) => assert_eq!(end, End::Reset),
        }
    }
    is_closed(first);
    is_closed(second);
}

#[test]
fn a_reset_between_two_cores_is_told_by_the_next() {
    let (first, second) = (probe(), probe());
    let client = connect(&first);
    let old = first.accepted(0);
    first.ask(move |_, net| net.put(old, &vec![0; 16 << 20]));
    until("a blocked send", || first.ask(|_, net| (net.tally.blocked_sends > 0).then_some(())));
    detach(&first, old);
    let detached = first.detached(old);
    abort(client);
    let new = adopt(&second, detached);
    assert_eq!(end(&second, new), End::Reset);
    is_closed(first);
    is_closed(second);
}

#[test]
fn a_connection_that_is_closed_after_all_is_not_handed_over() {
    for how in [Close::Flush, Close::Now] {
        let first = probe();
        let mut client = connect(&first);
        let old = first.accepted(0);
        first.ask(move |_, net| {
            net.put(old, b"good bye");
            net.detach(old);
            net.close(old, how);
        });
        let mut got = Vec::new();
        client.read_to_end(&mut got).unwrap();
        let want: &[u8] = if how == Close::Flush { b"good bye" } else { b"" };
        assert_eq!(got, want);
        drop(client);
        assert!(first.ask(|probe, _| probe.detached_ones.is_empty()));
        is_closed(first);
    }
}

#[test]
fn closing_while_the_poll_is_being_cancelled_sends_the_rest() {
    const LEN: usize = 12 << 20;
    let first = probe();
    let mut client = connect(&first);
    let old = first.accepted(0);
    first.ask(move |_, net| net.put(old, &Noise::new(6).bytes(LEN)));
    until("a blocked send", || first.ask(|_, net| (net.tally.blocked_sends > 0).then_some(())));
    // Both wishes are heeded in one turn, so the cancel is on its way when the close is seen.
    first.ask(move |_, net| {
        net.detach(old);
        net.pause(old, true);
        net.close(old, Close::Flush);
    });
    let mut got = Vec::new();
    client.read_to_end(&mut got).unwrap();
    assert!(got == Noise::new(6).bytes(LEN), "{} bytes of {LEN}, or others", got.len());
    drop(client);
    is_closed(first);
}

#[test]
fn what_cannot_be_taken_up_is_told_as_ended() {
    let options = Options { connections: 1, ..Options::default() };
    let (first, second) = (probe(), start(options, Probe::default()));
    let _full = connect(&second);
    second.accepted(0);
    let mut client = connect(&first);
    let old = first.accepted(0);
    detach(&first, old);
    let detached = first.detached(old);
    let new = adopt(&second, detached);
    assert_eq!(end(&second, new), End::Failed);
    assert_eq!(client.read(&mut [0; 1]).unwrap(), 0, "it is closed");
    let odd = Detached { socket: Carried::Simulated(Box::new(Odd)), unsent: b"x".to_vec() };
    let odd = adopt(&first, odd);
    assert_eq!(end(&first, odd), End::Failed);
    is_closed(first);
    let refused = second.ask(|_, net| (net.tally.refused, net.connections()));
    assert_eq!(refused, (1, 1));
    second.finish();
}

#[test]
fn a_detached_connection_that_is_dropped_closes() {
    let first = probe();
    let mut client = connect(&first);
    let old = first.accepted(0);
    detach(&first, old);
    drop(first.detached(old));
    assert_eq!(client.read(&mut [0; 1]).unwrap(), 0);
    is_closed(first);
}

// ---- two cores that throw a busy connection to each other ----

enum Throw {
    Partner(Sender<Self>),
    Catch(Detached, u32),
    Stop,
}

/// Echoes what it receives, and throws the connection to its partner after each receive.
#[derive(Default)]
struct Juggler {
    partner: Option<Sender<Throw>>,
    /// The connection and how often it may still be thrown.
    held: Option<(ConnId, u32)>,
    throws: u32,
    stopped: bool,
}

const THROWS: u32 = 1000;
/// Echo that waits, above which reading stops.
const FULL: usize = 256 * 1024;

impl Core for Juggler {
    type Message = Throw;

    fn accepted(&mut self, net: &mut Net, conn: ConnId, _: Listener, _: SocketAddr) {
        self.held = Some((conn, THROWS));
        net.detach(conn);
    }
    fn dialled(&mut self, _: &mut Net, _: ConnId, _: Result<(), i32>) {}
    fn received(&mut self, net: &mut Net, conn: ConnId, segment: Segment) {
        let (held, left) = self.held.expect("only one's own connection is told of");
        assert_eq!(held, conn);
        net.push(conn, segment);
        if left > 0 {
            net.detach(conn);
        } else if net.queued(conn) > FULL {
            net.pause(conn, true);
        }
    }
    fn ended(&mut self, net: &mut Net, conn: ConnId, end: End) {
        assert_eq!(end, End::Fin);
        net.close(conn, Close::Flush);
        self.held = None;
    }
    fn detached(&mut self, net: &mut Net, conn: ConnId, detached: Detached) {
        let (held, left) = self.held.take().expect("it was held");
        assert_eq!(held, conn);
        self.throws += 1;
        let partner = self.partner.as_ref().expect("the test introduces them");
        match partner.deliver(Throw::Catch(detached, left - 1)) {
            Ok(Some(bell)) => net.ring(bell),
            Ok(None) => {}
            Err(Full(_)) => panic!("nothing else is in the mailbox"),
        }
    }
    fn written(&mut self, net: &mut Net, conn: ConnId, _: usize) {
        if net.queued(conn) < FULL / 2 {
            net.pause(conn, false);
        }
    }
    fn message_received(&mut self, net: &mut Net, message: Throw) {
        match message {
            Throw::Partner(partner) => self.partner = Some(partner),
            Throw::Catch(detached, left) => self.held = Some((net.adopt(detached), left)),
            Throw::Stop => self.stopped = true,
        }
    }
    fn turn(&mut self, _: &mut Net) {}
    fn relieve(&mut self, _: &mut Net) {}
    fn deadline(&self) -> Option<Time> {
        None
    }
    fn finished(&self) -> bool {
        self.stopped
    }
}

#[test]
fn a_busy_connection_moves_a_thousand_times_without_a_scratch() {
    // More than a thousand receives.
    const LEN: usize = 24 << 20;
    let options = Options { receive_cap: 8 * 1024, receive_limit: 16 * 1024, ..Options::default() };
    let (one, _) = Watched::new(Juggler::default());
    let (two, _) = Watched::new(Juggler::default());
    let (one, two) = (start(options.clone(), one), start(options, two));
    assert!(one.sender.send(Throw::Partner(two.sender.clone())).is_ok());
    assert!(two.sender.send(Throw::Partner(one.sender.clone())).is_ok());
    let mut client = connect(&one);
    let mut writes = client.try_clone().unwrap();
    let writer = thread::spawn(move || {
        let noise = Noise::new(11).bytes(LEN);
        let mut sizes = Noise::new(12);
        let mut rest = &noise[..];
        while !rest.is_empty() {
            let size = (sizes.next() % 40_000 + 1) as usize;
            let (now, later) = rest.split_at(size.min(rest.len()));
            writes.write_all(now).unwrap();
            rest = later;
        }
        writes.shutdown(Shutdown::Write).unwrap();
    });
    let want = Noise::new(11).bytes(LEN);
    let (mut at, mut reads) = (0, 0);
    let mut buffer = vec![0; 256 * 1024];
    loop {
        let n = client.read(&mut buffer).unwrap();
        if n == 0 {
            break;
        }
        assert!(buffer[..n] == want[at..at + n], "other bytes than were sent, after {at}");
        at += n;
        reads += 1;
        if reads % 64 == 0 {
            // The echo backs up: sends wait for room when the connection goes.
            thread::sleep(Duration::from_millis(2));
        }
    }
    assert_eq!(at, LEN);
    writer.join().unwrap();
    let throws = one.stop(Throw::Stop).core.throws + two.stop(Throw::Stop).core.throws;
    assert!(throws >= THROWS, "{throws}");
}
