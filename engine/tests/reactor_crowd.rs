//! More at once than one turn takes: everybody is served, and nobody holds the others up.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

#[macro_use]
mod reactor_rig;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use reactor_rig::{Probe, SOON, start, until};
use ringway::net::Close;
use ringway::reactor::{ACCEPTS_PER_TURN, Options};

/// Beyond what an epoll tells, and what a listener gives, in one turn.
const CROWD: usize = 600;

fn everybody_in_a_crowd_is_served() {
    let probe = start(Options::default(), Probe::default());
    // The core is held up, so that all of it waits at once.
    let busy = |millis| {
        probe.ask(move |_, _| std::thread::sleep(Duration::from_millis(millis)));
    };
    busy(200);
    let mut streams: Vec<_> = (0..CROWD)
        .map(|_| {
            let stream = TcpStream::connect(probe.address).unwrap();
            stream.set_read_timeout(Some(SOON)).unwrap();
            stream
        })
        .collect();
    probe.accepted(CROWD - 1);
    busy(1);
    for (number, stream) in streams.iter_mut().enumerate() {
        stream.write_all(&(number as u32).to_be_bytes()).unwrap();
    }
    let heard = until("everybody's bytes", || {
        probe.ask(|probe, _| {
            let all: Vec<_> = probe.bytes.iter().map(|(conn, b)| (*conn, b.clone())).collect();
            (all.iter().map(|(_, b)| b.len()).sum::<usize>() == CROWD * 4).then_some(all)
        })
    });
    probe.ask(move |_, net| {
        for (conn, bytes) in heard {
            net.put(conn, &bytes);
            net.close(conn, Close::Flush);
        }
    });
    for (number, stream) in streams.iter_mut().enumerate() {
        let mut got = Vec::new();
        stream.read_to_end(&mut got).unwrap();
        assert_eq!(got, (number as u32).to_be_bytes());
    }
    drop(streams);
    until("all sockets closed", || probe.ask(|_, b| (b.tally.sockets == 0).then_some(())));
    probe.finish();
}

/// However many come at once, a turn lets in so many and goes on with the others.
fn a_storm_is_let_in_piece_by_piece() {
    let probe = start(Options::default(), Probe::default());
    probe.ask(|_, _| std::thread::sleep(Duration::from_millis(200)));
    let streams: Vec<_> = (0..CROWD).map(|_| TcpStream::connect(probe.address).unwrap()).collect();
    probe.accepted(CROWD - 1);
    let most = probe.ask(|probe, _| probe.most_accepted);
    assert!((1..=ACCEPTS_PER_TURN).contains(&most), "{most} in one turn");
    drop(streams);
    probe.finish();
}

/// One socket gets a share of a turn, however much it has.
fn bulk_does_not_hold_up_the_others() {
    const BULK: usize = 32 << 20;
    let usual = Options::default();
    let lent = usual.lent * usual.block_bytes;
    for (receive_limit, share) in [(usual.receive_limit, usual.receive_limit), (0, lent)] {
        let probe = start(Options { receive_limit, ..usual.clone() }, Probe::default());
        let mut bulk = TcpStream::connect(probe.address).unwrap();
        let first = probe.accepted(0);
        let mut small = TcpStream::connect(probe.address).unwrap();
        let second = probe.accepted(1);
        let before = probe.ask(|_, net| net.tally.turns);
        let writing = std::thread::spawn(move || bulk.write_all(&vec![7; BULK]).unwrap());
        let (mut taken, mut sent) = (0, 0);
        while taken < BULK {
            small.write_all(b"x").unwrap();
            sent += 1;
            taken += until("the small one's byte", || {
                probe.ask(move |probe, _| {
                    let heard = probe.bytes.get(&second).map_or(0, Vec::len);
                    (heard == sent).then(|| probe.bytes.remove(&first).map_or(0, |all| all.len()))
                })
            });
        }
        writing.join().unwrap();
        let turns = probe.ask(|_, net| net.tally.turns) - before;
        assert!(taken <= turns as usize * share, "{taken} bytes in {turns} turns of {share}");
        probe.finish();
    }
}

/// A peer that goes on sending to a connection that is paused wakes the core no more often than
/// its receive buffer has room for, and then all of it comes.
fn a_pause_leaves_the_bytes_in_the_kernel_and_the_end_behind_them() {
    const LEN: usize = 100_000;
    let probe = start(Options::default(), Probe::default());
    let mut client = TcpStream::connect(probe.address).unwrap();
    let conn = probe.accepted(0);
    probe.ask(move |_, net| net.pause(conn, true));
    client.write_all(&vec![1; LEN]).unwrap();
    drop(client);
    std::thread::sleep(Duration::from_millis(50));
    let facts = probe.ask(move |probe, net| {
        net.pause(conn, false);
        (probe.bytes.len(), probe.ends(conn).len())
    });
    assert_eq!(facts, (0, 0));
    // The edge that told of the end came long ago.
    until("the end", || probe.ask(move |probe, _| probe.ends(conn).first().copied()));
    assert_eq!(probe.ask(move |probe, _| probe.bytes[&conn].len()), LEN);
    probe.finish();
}

on_both_backends! {
    everybody_in_a_crowd_is_served,
    a_storm_is_let_in_piece_by_piece,
    bulk_does_not_hold_up_the_others,
    a_pause_leaves_the_bytes_in_the_kernel_and_the_end_behind_them,
}
