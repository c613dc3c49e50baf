//! The bytes of one tunnel, to the target and back.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use monoio::io::{
    AsyncReadRent, AsyncWriteRent, AsyncWriteRentExt, OwnedReadHalf, OwnedWriteHalf, Splitable,
};
use monoio::net::TcpStream;
use monoio::time::timeout;
use ringway_work::Endpoint;

use super::connect::Tunnel;
use super::cut::{cut, set_resets};
use super::net;

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
        /// The side whose connection broke, if one did. Then both were cut.
        error: Option<(Side, io::Error)>,
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

/// One direction: what it has moved, and what broke.
struct Moved {
    bytes: u64,
    error: Option<(Side, io::Error)>,
}

/// Joins a tunnel to the target until one of them ends it.
///
/// A FIN of one is a FIN for the other. If one is lost, the other is cut: until both have ended in
/// order, whatever closes the sockets closes them by RST.
pub(super) async fn bridge(tunnel: Tunnel, target: &Endpoint, buffers: &Buffers) -> Ended {
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
    set_resets(&stream, true);
    set_resets(&server, true);
    let (mut from_gateway, mut to_gateway) = stream.into_split();
    let (mut from_target, mut to_target) = server.into_split();
    let early = first.len() as u64;
    let (sent, buffer) = to_target.write_all(first).await;
    buffers.give(buffer);
    let (by, first, other) = if let Err(error) = sent {
        let error = Some((Side::Target, error));
        (Side::Target, Moved { bytes: 0, error }, None)
    } else {
        let mut up = Box::pin(pump((&mut from_gateway, Side::Gateway), &mut to_target, buffers));
        let mut down = Box::pin(pump((&mut from_target, Side::Target), &mut to_gateway, buffers));
        monoio::select! {
            moved = &mut up => {
                drop(up);
                let other = finish((Side::Gateway, &moved), &mut to_target, down).await;
                (Side::Gateway, moved, other)
            }
            moved = &mut down => {
                drop(down);
                let other = finish((Side::Target, &moved), &mut to_gateway, up).await;
                (Side::Target, moved, other)
            }
        }
    };
    let other_bytes = other.as_ref().map_or(0, |moved| moved.bytes);
    let bytes = match by {
        Side::Gateway => (early + first.bytes, other_bytes),
        Side::Target => (early + other_bytes, first.bytes),
    };
    let error = first.error.or(other.and_then(|moved| moved.error));
    // Whole again: a half would say FIN by being dropped.
    if let Ok(stream) = from_gateway.reunite(to_gateway) {
        end(stream, error.as_ref().map(|(side, _)| *side == Side::Gateway)).await;
    }
    if let Ok(server) = from_target.reunite(to_target) {
        end(server, error.as_ref().map(|(side, _)| *side == Side::Target)).await;
    }
    Ended::Closed { by, bytes, error }
}

/// One direction has ended: tells the sink, if that was in order, and lets the other direction
/// finish what is on its way; what it has moved, if that is known.
async fn finish(
    (source, first): (Side, &Moved),
    sink: &mut OwnedWriteHalf<TcpStream>,
    mut other: Pin<Box<impl Future<Output = Moved>>>,
) -> Option<Moved> {
    // The end of what a peer sent may be that of its connection: then a send was told.
    let now = poll_fn(|cx| Poll::Ready(other.as_mut().poll(cx))).await;
    let broken = |moved: &Moved| moved.error.is_some();
    let lost = broken(first) || matches!(&now, Poll::Ready(moved) if broken(moved));
    if !lost {
        // The sink may be closed already, by the other side.
        let _ = sink.shutdown().await;
    }
    match now {
        Poll::Ready(moved) => Some(moved),
        // A peer that is lost takes nothing any more.
        Poll::Pending if first.error.as_ref().is_some_and(|(side, _)| *side == source) => None,
        Poll::Pending => timeout(LINGER, other).await.ok(),
    }
}

/// Closes one of the two; `lost`: whether it was this one that broke, if one did.
async fn end(stream: TcpStream, lost: Option<bool>) {
    match lost {
        None => set_resets(&stream, false),
        // Nothing that was written to it arrives any more.
        Some(true) => {}
        Some(false) => cut(stream).await,
    }
}

/// Moves bytes until the source ends and all of them are delivered.
async fn pump(
    (from, source): (&mut OwnedReadHalf<TcpStream>, Side),
    to: &mut OwnedWriteHalf<TcpStream>,
    buffers: &Buffers,
) -> Moved {
    let sink = if source == Side::Gateway { Side::Target } else { Side::Gateway };
    let mut buffer = buffers.take();
    let mut bytes = 0;
    let error = loop {
        let (read, full) = from.read(buffer).await;
        buffer = full;
        match read {
            Ok(0) => break None,
            Ok(read) => bytes += read as u64,
            Err(error) => break Some((source, error)),
        }
        let (written, empty) = to.write_all(buffer).await;
        buffer = empty;
        if let Err(error) = written {
            break Some((sink, error));
        }
    };
    buffers.give(buffer);
    Moved { bytes, error }
}
