//! Bytes through the bare relay over real sockets: none lost, none doubled, memory bounded.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

#[macro_use]
mod reactor_rig;

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use reactor_rig::{Noise, SOON, Watched, start, until};
use ringway::bare::{Bare, BareMessage, HIGH_WATER};
use ringway::pool::CHUNK_BYTES;
use ringway::reactor::{BusyPoll, Options};

/// Serves every connection on a thread of its own.
fn backend(serve: impl Fn(TcpStream) + Clone + Send + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (stream, serve) = (stream.unwrap(), serve.clone());
            thread::spawn(move || serve(stream));
        }
    });
    address
}

fn echo(mut stream: TcpStream) {
    let mut noise = Noise::new(stream.peer_addr().unwrap().port().into());
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let room = 1 + noise.next() as usize % buffer.len();
        match stream.read(&mut buffer[..room]) {
            Ok(0) | Err(_) => return,
            Ok(n) => {
                if stream.write_all(&buffer[..n]).is_err() {
                    return;
                }
            }
        }
    }
}

/// Sends noise in pieces of random size, each when the one before has come back, and compares. What a
/// piece is, is less than the kernel takes from a sender whose peer reads nothing yet, and the first
/// octet has come back before much is sent: so nothing waits for anybody to read, or for the dial.
fn converse(relay: SocketAddr, seed: u64, len: usize) {
    const PIECE: usize = 60_000;
    let mut stream = TcpStream::connect(relay).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    let mut noise = Noise::new(seed);
    let (mut done, mut most) = (0, 1);
    while done < len {
        let piece = noise.bytes(most.min(len - done));
        let mut got = vec![0; piece.len()];
        stream.write_all(&piece).unwrap();
        stream.read_exact(&mut got).unwrap();
        assert!(got == piece, "connection {seed} got other bytes than it sent");
        done += piece.len();
        most = 1 + noise.next() as usize % PIECE;
    }
}

/// Sends noise in chunks of random size while reading it back, and compares.
fn exchange(relay: SocketAddr, seed: u64, len: usize) {
    let mut stream = TcpStream::connect(relay).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    let mut noise = Noise::new(seed);
    let sent = noise.bytes(len);
    let mut writer = stream.try_clone().unwrap();
    let bytes = sent.clone();
    let writing = thread::spawn(move || {
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let wide = if noise.next().is_multiple_of(4) { 200_000 } else { 300 };
            let n = (1 + noise.next() as usize % wide).min(rest.len());
            writer.write_all(&rest[..n]).unwrap();
            rest = &rest[n..];
        }
    });
    let mut got = vec![0; len];
    let mut done = 0;
    while done < len {
        let n = stream.read(&mut got[done..]).unwrap();
        assert!(n > 0, "connection {seed} ended after {done} of {len} bytes");
        done += n;
    }
    writing.join().unwrap();
    assert!(got == sent, "connection {seed} got other bytes than it sent");
}

fn exchange_all(options: Options, connections: u64, len: usize) -> reactor_rig::Sight {
    on_all(options, connections, move |relay, seed| exchange(relay, seed, len))
}

/// What the core has seen when so many clients are served, each on a thread of its own.
fn on_all(
    options: Options,
    connections: u64,
    client: impl Fn(SocketAddr, u64) + Clone + Send + 'static,
) -> reactor_rig::Sight {
    let (core, sight) = Watched::new(Bare::new(backend(echo)));
    let relay = start(options, core);
    let address = relay.address;
    let served = |i| {
        let client = client.clone();
        thread::spawn(move || client(address, i + 1))
    };
    let clients: Vec<_> = (0..connections).map(served).collect();
    for client in clients {
        client.join().unwrap();
    }
    until("all sockets closed", || (sight.lock().unwrap().tally.sockets == 0).then_some(()));
    relay.stop(BareMessage::Stop);
    let sight = *sight.lock().unwrap();
    assert_eq!(sight.chunks_live, 0, "{sight:?}");
    sight
}

fn many_connections_get_their_own_bytes_in_order() {
    let sight = exchange_all(Options::default(), 48, 400_000);
    assert_eq!(sight.tally.accepts, 48);
}

/// Whether a peer is slow must not depend on when its thread runs: nobody sends what nobody reads.
fn who_reads_costs_no_copy() {
    let sight = on_all(Options::default(), 48, |relay, seed| converse(relay, seed, 400_000));
    assert_eq!(sight.tally.accepts, 48);
    // Receive memory comes back without a copy.
    assert_eq!((sight.tally.blocked_sends, sight.copied_out), (0, 0), "{sight:?}");
}

fn a_tiny_pool_starves_receives_but_loses_nothing() {
    let options = Options { blocks: 4, block_bytes: 4096, ..Options::default() };
    let sight = exchange_all(options, 32, 200_000);
    assert!(sight.tally.starved > 0, "{sight:?}");
}

fn a_single_block_is_enough() {
    let options = Options { blocks: 1, block_bytes: 512, ..Options::default() };
    let sight = exchange_all(options, 4, 50_000);
    assert!(sight.tally.starved > 0, "{sight:?}");
}

fn a_tiny_submission_queue_loses_nothing() {
    let options = Options { entries: 8, send_bytes: 5000, receive_cap: 700, ..Options::default() };
    exchange_all(options, 32, 100_000);
}

fn spinning_cores_relay_the_same() {
    for busy_poll in [BusyPoll::Always, BusyPoll::Micros(50)] {
        exchange_all(Options { busy_poll, ..Options::default() }, 8, 200_000);
    }
}

fn cores_that_spin_when_it_is_worth_while_relay_the_same() {
    exchange_all(Options { busy_poll: BusyPoll::Auto, ..Options::default() }, 8, 200_000);
}

fn receives_without_a_cap_lose_nothing() {
    exchange_all(Options { receive_cap: 0, ..Options::default() }, 16, 400_000);
}

/// The function sends much, the client reads nothing for a while.
fn a_slow_reader_bounds_memory_and_gets_everything() {
    const LEN: usize = 24 << 20;
    let bytes = Arc::new(Noise::new(7).bytes(LEN));
    let sent = Arc::clone(&bytes);
    let target = backend(move |mut stream| stream.write_all(&sent).unwrap());
    let (core, sight) = Watched::new(Bare::new(target));
    let relay = start(Options::default(), core);
    let mut stream = TcpStream::connect(relay.address).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    // Sooner or later all buffers are full, and nothing can move any more.
    until("a core at rest", || {
        let (turns, begun) = (sight.lock().unwrap().tally.turns, Instant::now());
        thread::sleep(Duration::from_millis(200));
        let idle_turns = sight.lock().unwrap().tally.turns - turns;
        // The relay is looked at every 20 ms; nothing else happens.
        (idle_turns <= 5 + begun.elapsed().as_millis() as u64 / 20).then_some(())
    });
    let mut got = Vec::new();
    stream.read_to_end(&mut got).unwrap();
    assert!(got == *bytes, "{} bytes of {LEN}, or others", got.len());
    drop(stream);
    until("all sockets closed", || (sight.lock().unwrap().tally.sockets == 0).then_some(()));
    relay.stop(BareMessage::Stop);
    let sight = *sight.lock().unwrap();
    assert!(sight.tally.blocked_sends > 0, "{sight:?}");
    // What was queued may all have been copied out, plus what came before the pause took effect.
    assert!(sight.chunks_most * CHUNK_BYTES < 4 * HIGH_WATER, "{sight:?}");
}

fn blocked_peers_do_not_starve_the_others() {
    // Eight clients that never read hold more than all receive memory there is.
    const LEN: usize = 16 << 20;
    let target = backend(|mut stream| {
        let mut first = [0];
        if stream.read(&mut first).unwrap_or(0) == 1 && first[0] == b'*' {
            let _ = stream.write_all(&vec![0; LEN]);
        } else if stream.write_all(&first).is_ok() {
            echo(stream);
        }
    });
    let options = Options { blocks: 16, ..Options::default() };
    let (core, sight) = Watched::new(Bare::new(target));
    let relay = start(options, core);
    let blocked: Vec<_> = (0..8)
        .map(|_| {
            let mut stream = TcpStream::connect(relay.address).unwrap();
            stream.write_all(b"*").unwrap();
            stream
        })
        .collect();
    until("the blocked ones' bytes", || (sight.lock().unwrap().copied_out > 0).then_some(()));
    exchange(relay.address, 3, 1_000_000);
    drop(blocked);
    until("all sockets closed", || (sight.lock().unwrap().tally.sockets == 0).then_some(()));
    relay.stop(BareMessage::Stop);
}

fn last_bytes_before_a_fin_arrive_both_ways() {
    const LEN: usize = 3 << 20;
    let target = backend(|mut stream| {
        let mut got = Vec::new();
        stream.read_to_end(&mut got).unwrap();
        assert!(got == Noise::new(11).bytes(LEN), "{} bytes of {LEN}, or others", got.len());
    });
    let (core, sight) = Watched::new(Bare::new(target));
    let relay = start(Options::default(), core);
    let mut stream = TcpStream::connect(relay.address).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream.write_all(&Noise::new(11).bytes(LEN)).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).unwrap();
    assert!(rest.is_empty());
    drop(stream);
    until("all sockets closed", || (sight.lock().unwrap().tally.sockets == 0).then_some(()));
    relay.stop(BareMessage::Stop);
}

on_both_backends! {
    many_connections_get_their_own_bytes_in_order,
    who_reads_costs_no_copy,
    a_tiny_pool_starves_receives_but_loses_nothing,
    a_single_block_is_enough,
    a_tiny_submission_queue_loses_nothing,
    spinning_cores_relay_the_same,
    cores_that_spin_when_it_is_worth_while_relay_the_same,
    receives_without_a_cap_lose_nothing,
    a_slow_reader_bounds_memory_and_gets_everything,
    blocked_peers_do_not_starve_the_others,
    last_bytes_before_a_fin_arrive_both_ways,
}
