//! Every state a socket can be in, on both backends: what the core is told, and that nothing spins.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

#[macro_use]
mod reactor_rig;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::thread;
use std::time::Duration;

use reactor_rig::{Noise, Probe, Running, start, until};
use ringway::net::{Close, ConnId, End};
use ringway::reactor::Options;
use socket2::{Domain, SockRef, Socket, Type};

/// How long nothing happens while turns are counted.
const QUIET: Duration = Duration::from_millis(100);
/// Fewest turns in that time that mean spinning: two are the counting's own.
const SPINS: u64 = 10;
/// Ticks of CPU time in it that mean the same: half of it, at a hundred a second.
const MOST_TICKS: u64 = 5;
/// More than the kernel keeps for a connection whose peer takes nothing.
const LOTS: usize = 16 << 20;
/// What the peer of a connection can keep that it has not read.
const PEER_KEEPS: usize = 16 * 1024;
/// What the peer says, where it says something.
const WORDS: &[u8] = b"before";

/// How a connection got where it is.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// The peer sends a few bytes.
    Says,
    /// The peer sends a byte out of band.
    Urgent,
    /// The peer sends FIN.
    Fin,
    /// The peer sends RST.
    Reset,
    /// The core sends more than the kernel takes: the peer's window is zero, the send buffer full.
    Fills,
    /// The peer reads a little.
    Reads,
    /// The core wants no bytes.
    Pauses,
    /// The core wants bytes again.
    Resumes,
    /// The core closes: everything is still sent.
    Flushes,
    /// What was done until here takes effect first.
    Settles,
}

use Step::{Fills, Fin, Flushes, Pauses, Reads, Reset, Resumes, Says, Settles, Urgent};

/// A state: the way into it, the bytes that the core is told of, and the ends it is told of.
type State = (&'static str, &'static [Step], &'static [u8], &'static [End]);

const STATES: &[State] = &[
    ("fresh", &[], b"", &[]),
    ("with bytes", &[Says], WORDS, &[]),
    ("half closed by the peer", &[Fin], b"", &[End::Fin]),
    ("half closed by the peer behind bytes", &[Says, Fin], WORDS, &[End::Fin]),
    ("half closed while paused", &[Pauses, Settles, Says, Fin], b"", &[]),
    (
        "half closed while paused, resumed",
        &[Pauses, Settles, Says, Fin, Settles, Resumes],
        WORDS,
        &[End::Fin],
    ),
    ("half closed by us", &[Flushes], b"", &[]),
    ("half closed by us, bytes come", &[Flushes, Settles, Says], b"", &[]),
    ("half closed by both", &[Fin, Settles, Flushes], b"", &[End::Fin]),
    ("reset", &[Reset], b"", &[End::Reset]),
    ("reset behind bytes", &[Says, Settles, Reset], WORDS, &[End::Reset]),
    ("reset with bytes unread", &[Pauses, Settles, Says, Reset], b"", &[]),
    (
        "reset with bytes unread, resumed",
        &[Pauses, Settles, Says, Reset, Settles, Resumes],
        WORDS,
        &[End::Reset],
    ),
    ("reset behind FIN", &[Fills, Settles, Fin, Settles, Reset], b"", &[End::Fin, End::Reset]),
    ("urgent data alone", &[Urgent], b"!", &[]),
    ("urgent data behind bytes", &[Says, Urgent], b"before!", &[]),
    ("urgent data between bytes", &[Says, Urgent, Says], b"before!before", &[]),
    ("urgent data twice", &[Urgent, Says, Urgent, Says], b"!before!before", &[]),
    ("urgent data while paused", &[Pauses, Settles, Says, Urgent, Says], b"", &[]),
    (
        "urgent data while paused, resumed",
        &[Pauses, Settles, Says, Urgent, Says, Settles, Resumes],
        b"before!before",
        &[],
    ),
    ("urgent data before FIN", &[Says, Urgent, Says, Fin], b"before!before", &[End::Fin]),
    ("urgent data as the last byte before FIN", &[Says, Urgent, Fin], b"before!", &[End::Fin]),
    ("full", &[Fills], b"", &[]),
    ("full, bytes come", &[Fills, Settles, Says], WORDS, &[]),
    ("full, a little was read", &[Fills, Settles, Reads], b"", &[]),
    ("full, half closed by the peer", &[Fills, Settles, Fin], b"", &[End::Fin]),
    ("full, half closed by the peer before", &[Fin, Settles, Fills], b"", &[End::Fin]),
    (
        "full, half closed by the peer, read",
        &[Fills, Settles, Fin, Settles, Reads],
        b"",
        &[End::Fin],
    ),
    ("full, half closed while paused", &[Pauses, Fills, Settles, Fin], b"", &[]),
    ("full, urgent data", &[Fills, Settles, Says, Urgent, Says], b"before!before", &[]),
    ("full, reset", &[Fills, Settles, Says, Settles, Reset], WORDS, &[End::Reset]),
    ("full and flushed", &[Fills, Settles, Flushes], b"", &[]),
    (
        "full and flushed, half closed by the peer",
        &[Fills, Settles, Flushes, Settles, Fin],
        b"",
        &[],
    ),
    (
        "full, half closed by the peer, flushed",
        &[Fills, Settles, Fin, Settles, Flushes],
        b"",
        &[End::Fin],
    ),
    (
        "full and flushed, half closed, read",
        &[Fills, Flushes, Settles, Fin, Settles, Reads],
        b"",
        &[],
    ),
];

/// A few turns later.
fn settled(probe: &Running<Probe>) {
    for _ in 0..4 {
        thread::sleep(Duration::from_millis(3));
        probe.ask(|_, _| ());
    }
}

/// A peer that keeps little of what it has not read.
fn connect(probe: &Running<Probe>) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(PEER_KEEPS).unwrap();
    socket.connect(&probe.address.into()).unwrap();
    socket.set_tcp_nodelay(true).unwrap();
    socket.into()
}

fn take(probe: &Running<Probe>, conn: ConnId, peer: &mut Option<TcpStream>, step: Step) {
    let with = || peer.as_ref().unwrap();
    match step {
        Says => with().write_all(WORDS).unwrap(),
        Urgent => assert_eq!(SockRef::from(with()).send_out_of_band(b"!").unwrap(), 1),
        Fin => with().shutdown(Shutdown::Write).unwrap(),
        Reset => {
            let gone = peer.take().unwrap();
            SockRef::from(&gone).set_linger(Some(Duration::ZERO)).unwrap();
        }
        Fills => {
            probe.ask(move |_, net| net.put(conn, &vec![0; LOTS]));
            until("a send that is blocked", || {
                probe.ask(|_, net| (net.tally.blocked_sends > 0).then_some(()))
            });
        }
        Reads => assert!(with().read(&mut [0; PEER_KEEPS]).unwrap() > 0),
        Pauses => probe.ask(move |_, net| net.pause(conn, true)),
        Resumes => probe.ask(move |_, net| net.pause(conn, false)),
        Flushes => probe.ask(move |_, net| net.close(conn, Close::Flush)),
        Settles => settled(probe),
    }
}

/// Turns of the core in a time in which nothing happens.
fn turns(probe: &Running<Probe>) -> u64 {
    let before = probe.ask(|_, net| net.tally.turns);
    thread::sleep(QUIET);
    probe.ask(|_, net| net.tally.turns) - before
}

/// CPU time of the process, in the kernel's ticks: what the kernel does for it in vain counts too.
fn cpu_ticks() -> u64 {
    let text = std::fs::read_to_string("/proc/self/stat").unwrap();
    let (_, fields) = text.rsplit_once(')').unwrap();
    // utime and stime (proc_pid_stat(5)).
    fields
        .split_ascii_whitespace()
        .skip(11)
        .take(2)
        .map(|ticks| ticks.parse::<u64>().unwrap())
        .sum()
}

fn every_state_is_told_alike_and_lets_the_core_sleep() {
    for (name, steps, bytes, ends) in STATES {
        let probe = start(Options::default(), Probe::default());
        let mut peer = Some(connect(&probe));
        let conn = probe.accepted(0);
        for step in *steps {
            take(&probe, conn, &mut peer, *step);
        }
        let told =
            || probe.ask(move |probe, _| (probe.bytes.get(&conn).cloned(), probe.ends(conn)));
        let wanted = (bytes.to_vec(), ends.to_vec());
        for _ in 0..2000 {
            let (got, ends) = told();
            if (got.unwrap_or_default(), ends) == wanted {
                break;
            }
            thread::sleep(Duration::from_millis(1));
        }
        settled(&probe);
        let spun = turns(&probe);
        let (got, ends) = told();
        let got = (got.unwrap_or_default(), ends);
        assert_eq!(got, wanted, "{name}");
        assert!(spun < SPINS, "{name}: {spun} turns in {QUIET:?}");
        drop(peer);
        probe.finish();
    }
}

/// What was asked for while it could not be sent comes when the peer reads, in every state in which
/// it still may.
fn what_is_queued_for_a_full_peer_comes_when_it_reads() {
    const LEN: usize = 4 << 20;
    for steps in [
        &[Settles][..],
        &[Settles, Fin],
        &[Settles, Fin, Settles, Flushes],
        &[Flushes, Settles, Fin],
        &[Settles, Says, Urgent, Says, Fin],
        &[Pauses, Settles, Fin, Settles, Flushes],
    ] {
        let probe = start(Options::default(), Probe::default());
        let mut peer = Some(connect(&probe));
        let conn = probe.accepted(0);
        probe.ask(move |_, net| net.put(conn, &Noise::new(3).bytes(LEN)));
        for step in steps {
            take(&probe, conn, &mut peer, *step);
        }
        let mut got = vec![0; LEN];
        peer.as_ref().unwrap().read_exact(&mut got).unwrap();
        assert!(got == Noise::new(3).bytes(LEN), "{steps:?}");
        settled(&probe);
        let spun = turns(&probe);
        assert!(spun < SPINS, "{steps:?}: {spun} turns in {QUIET:?}");
        drop(peer);
        probe.finish();
    }
}

/// A receive takes what it is allowed to and no more: what it leaves comes with the next.
fn a_receive_that_brings_less_than_was_asked_leaves_nothing_behind() {
    let small = |cap, limit, block_bytes| Options {
        receive_cap: cap,
        receive_limit: limit,
        block_bytes,
        ..Options::default()
    };
    for options in [small(0, 0, 64), small(7, 0, 64), small(7, 20, 64), small(1, 1, 1)] {
        let told = format!("{} {}", options.receive_cap, options.receive_limit);
        let probe = start(options, Probe::default());
        let mut peer = Some(connect(&probe));
        let conn = probe.accepted(0);
        for step in [Says, Urgent, Says, Says, Urgent, Says, Settles, Urgent, Says, Fin] {
            take(&probe, conn, &mut peer, step);
        }
        until("the end", || probe.ask(move |probe, _| probe.ends(conn).first().copied()));
        let got = probe.ask(move |probe, _| probe.bytes.remove(&conn).unwrap_or_default());
        let got = String::from_utf8(got).unwrap();
        assert_eq!(got, "before!beforebefore!before!before", "{told}");
        let spun = turns(&probe);
        assert!(spun < SPINS, "{told}: {spun} turns in {QUIET:?}");
        drop(peer);
        probe.finish();
    }
}

/// Receiving urgent data costs no CPU in the kernel either, where turns do not show it.
fn nothing_is_tried_in_vain_inside_the_kernel() {
    let probe = start(Options::default(), Probe::default());
    let mut peer = Some(connect(&probe));
    let conn = probe.accepted(0);
    for step in [Says, Urgent, Settles] {
        take(&probe, conn, &mut peer, step);
    }
    // Other tests run in this process: any one quiet time in which it slept is enough.
    let slept = (0..50).any(|_| {
        let before = cpu_ticks();
        thread::sleep(QUIET);
        cpu_ticks() - before < MOST_TICKS
    });
    assert!(slept, "urgent data keeps the kernel busy");
    drop(peer);
    probe.finish();
}

on_both_backends! {
    every_state_is_told_alike_and_lets_the_core_sleep,
    what_is_queued_for_a_full_peer_comes_when_it_reads,
    a_receive_that_brings_less_than_was_asked_leaves_nothing_behind,
    nothing_is_tried_in_vain_inside_the_kernel,
}
