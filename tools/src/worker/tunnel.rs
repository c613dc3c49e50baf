//! The bytes of one tunnel, to the target and back.

use std::cell::RefCell;
use std::io;
use std::time::Duration;

use monoio::io::{
    AsyncReadRent, AsyncWriteRent, AsyncWriteRentExt, OwnedReadHalf, OwnedWriteHalf, Splitable,
};
use monoio::net::TcpStream;
use monoio::time::timeout;

use super::connect::Tunnel;
use super::net;
use super::place::Place;

/// One buffer of a direction.
const BUFFER: usize = 64 * 1024;
/// Buffers kept for the tunnels to come.
const SPARE_BUFFERS: usize = 64;
/// How long the other direction may go on once one has ended: enough for what is on its way. A
/// socket closed over unread bytes answers with a reset, which can overtake what was sent.
const LINGER: Duration = Duration::from_secs(1);

/// How a tunnel ended.
#[derive(Debug)]
pub(super) enum Ended {
    /// The gateway closed it before a byte had come.
    Unused,
    /// The target does not answer.
    NoTarget(io::Error),
    /// One of the two closed its end or lost it.
    Closed {
        by: Side,
        /// To the target, and to the gateway.
        bytes: (u64, u64),
        error: Option<io::Error>,
    },
}

/// Who ended a tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Gateway,
    Target,
}

/// Buffers between their uses.
#[derive(Debug, Default)]
pub(super) struct Buffers(RefCell<Vec<Vec<u8>>>);

impl Buffers {
    fn take(&self) -> Vec<u8> {
        self.0.borrow_mut().pop().unwrap_or_else(|| Vec::with_capacity(BUFFER))
    }

    fn give(&self, buffer: Vec<u8>) {
        let mut spare = self.0.borrow_mut();
        if spare.len() < SPARE_BUFFERS && buffer.capacity() >= BUFFER {
            spare.push(buffer);
        }
    }
}

/// One direction: what it has moved, and why it ended.
struct Moved {
    bytes: u64,
    error: Option<io::Error>,
}

/// Joins a tunnel to the target until one of them ends it.
pub(super) async fn bridge(tunnel: Tunnel, target: &Place, buffers: &Buffers) -> Ended {
    let Tunnel { mut stream, early: mut first } = tunnel;
    // A worker stays silent until the gateway has spoken (contract WK-12), but an HTTP/2 server
    // speaks at once: so it is dialled when the first bytes have come.
    while first.is_empty() {
        let (read, buffer) = stream.read(buffers.take()).await;
        match read {
            Ok(0) | Err(_) => return Ended::Unused,
            Ok(_) => first = buffer,
        }
    }
    let server = match net::dial(target).await {
        Ok(server) => server,
        Err(error) => return Ended::NoTarget(error),
    };
    let (from_gateway, to_gateway) = stream.into_split();
    let (from_target, mut to_target) = server.into_split();
    let early = first.len() as u64;
    let (sent, buffer) = to_target.write_all(first).await;
    buffers.give(buffer);
    if let Err(error) = sent {
        return Ended::Closed { by: Side::Target, bytes: (0, 0), error: Some(error) };
    }
    let mut up = Box::pin(pump(from_gateway, to_target, buffers));
    let mut down = Box::pin(pump(from_target, to_gateway, buffers));
    let (by, first, other) = monoio::select! {
        moved = &mut up => (Side::Gateway, moved, linger(down).await),
        moved = &mut down => (Side::Target, moved, linger(up).await),
    };
    let bytes = match by {
        Side::Gateway => (early + first.bytes, other),
        Side::Target => (early + other, first.bytes),
    };
    Ended::Closed { by, bytes, error: first.error }
}

/// Lets a direction finish what is on its way; what it has moved, if that is known.
async fn linger(pump: impl Future<Output = Moved>) -> u64 {
    timeout(LINGER, pump).await.map_or(0, |moved| moved.bytes)
}

/// Moves bytes until the source ends, all of them are delivered, and the sink is told.
async fn pump(
    mut from: OwnedReadHalf<TcpStream>,
    mut to: OwnedWriteHalf<TcpStream>,
    buffers: &Buffers,
) -> Moved {
    let mut buffer = buffers.take();
    let mut bytes = 0;
    let error = loop {
        let (read, full) = from.read(buffer).await;
        buffer = full;
        match read {
            Ok(0) => break None,
            Ok(read) => bytes += read as u64,
            Err(error) => break Some(error),
        }
        let (written, empty) = to.write_all(buffer).await;
        buffer = empty;
        if let Err(error) = written {
            break Some(error);
        }
    };
    buffers.give(buffer);
    // It may be closed already, by the other side.
    let _ = to.shutdown().await;
    Moved { bytes, error }
}
