//! A long way made by hand: what comes in goes out later and no faster than a line would let it.
//!
//! The pipe is between load and proxy and ends TCP on both sides, so that it shows how many times a
//! protocol goes to and fro and how it fills the way, not what TCP does about it. NETEM, which
//! could delay the packets themselves, is missing in many kernels and wants root.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

/// Octets taken at once.
const PIECE: usize = 64 * 1024;
/// What may wait for the line before its sender must, as time.
const QUEUE: Duration = Duration::from_millis(10);
/// Pieces under way at once in one direction: far more than a line of some Gb/s holds.
const UNDER_WAY: usize = 16_384;

/// A way.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Way {
    /// To and fro.
    pub round_trip: Duration,
    /// Octets a second, in each direction of each connection.
    pub rate: f64,
}

/// Opens a way to `target` and returns where it begins; it ends with the process.
///
/// # Errors
/// No port or no thread.
pub fn open(target: SocketAddr, way: Way) -> io::Result<SocketAddr> {
    let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0)))?;
    let address = listener.local_addr()?;
    thread::Builder::new().name("way".into()).spawn(move || {
        for client in listener.incoming().flatten() {
            if let Err(error) = join(client, target, way) {
                ringway_stdio::complain!("load: way to {target}: {error}");
            }
        }
    })?;
    Ok(address)
}

/// Both directions of one connection.
fn join(client: TcpStream, target: SocketAddr, way: Way) -> io::Result<()> {
    let server = TcpStream::connect(target)?;
    for (from, to) in [(&client, &server), (&server, &client)] {
        let (from, to) = (from.try_clone()?, to.try_clone()?);
        to.set_nodelay(true)?;
        let (sender, receiver) = sync_channel(UNDER_WAY);
        thread::Builder::new().name("way-in".into()).spawn(move || take(from, &sender, way))?;
        thread::Builder::new().name("way-out".into()).spawn(move || give(to, &receiver))?;
    }
    Ok(())
}

type Piece = (Instant, Vec<u8>);

/// Reads until the end; each piece gets the instant at which it has arrived at the other end.
fn take(mut from: TcpStream, to: &SyncSender<Piece>, way: Way) {
    let mut free = Instant::now();
    loop {
        let mut piece = vec![0; PIECE];
        let Ok(n @ 1..) = from.read(&mut piece) else { return };
        piece.truncate(n);
        let now = Instant::now();
        free = free.max(now) + Duration::from_secs_f64(n as f64 / way.rate);
        if to.send((free + way.round_trip / 2, piece)).is_err() {
            return;
        }
        let waits = free.saturating_duration_since(now);
        thread::sleep(waits.saturating_sub(QUEUE));
    }
}

/// Writes each piece when it is due; then passes the end on.
fn give(mut to: TcpStream, pieces: &Receiver<Piece>) {
    crate::sys::sharp_sleeps();
    for (due, piece) in pieces {
        thread::sleep(due.saturating_duration_since(Instant::now()));
        if to.write_all(&piece).is_err() {
            break;
        }
    }
    // A peer that is gone already needs no farewell.
    let _ = to.shutdown(Shutdown::Write);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_passes_is_late_by_half_a_round_trip_and_no_faster_than_the_line() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let round_trip = Duration::from_millis(60);
        let way = Way { round_trip, rate: 10e6 };
        let near = open(listener.local_addr().unwrap(), way).unwrap();
        let mut client = TcpStream::connect(near).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        let begun = Instant::now();
        client.write_all(&[1]).unwrap();
        server.read_exact(&mut [0]).unwrap();
        assert!(begun.elapsed() >= round_trip / 2, "{:?}", begun.elapsed());
        server.write_all(&[2]).unwrap();
        client.read_exact(&mut [0]).unwrap();
        assert!(begun.elapsed() >= round_trip, "{:?}", begun.elapsed());
        // 2 MB at 10 MB/s.
        let begun = Instant::now();
        let sending = thread::spawn(move || {
            client.write_all(&vec![3; 2_000_000]).unwrap();
            drop(client);
        });
        let mut all = vec![];
        server.read_to_end(&mut all).unwrap();
        sending.join().unwrap();
        assert_eq!(all.len(), 2_000_000);
        assert!(begun.elapsed() >= Duration::from_millis(200), "{:?}", begun.elapsed());
    }
}
