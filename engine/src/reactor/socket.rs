//! One socket's state, and the table of them.
//!
//! ```text
//!            connected                 Close::Flush         queue empty: FIN sent
//! Dialling ───────────▶ Open ────────────────────▶ Flushing ─────────▶ Lingering
//!     │                  │ Close::Now,                │ stalled,          │ FIN, LINGER over,
//!     │ failed, closed   │ broken                     │ broken            │ too much dropped
//!     └──────────────────┴──────────▶ Closing ◀───────┴───────────────────┘
//!                                        │ last operation has ended
//!                                        ▼
//!                              closed, the slot is free
//! ```

use std::net::SocketAddr;
use std::os::fd::RawFd;

use ringway_proto::time::Time;
use socket2::SockAddr;

use super::stream::Stream;
use super::tag::Tag;
use crate::net::{ConnId, End, Listener};
use crate::transport::Transport;

/// Where a connection is in its life.
#[derive(Debug)]
pub(super) enum Phase {
    /// Connecting, for the core.
    Dialling,
    /// The core has the connection.
    Open,
    /// The core closed it; what is queued is being sent, what comes is dropped.
    Flushing,
    /// Our FIN is out; what comes is dropped until the peer's FIN.
    Lingering,
    /// Nothing is sent or wanted any more: operations are cancelled and waited for.
    Closing,
}

/// Where its receive is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Receive {
    /// Nothing is under way.
    Idle,
    /// Multishot, under way.
    Armed,
    /// A cancel is under way; bytes may still come before its last completion.
    Cancelling,
    /// The receive ended because no block was free. It is listed to be armed again.
    Starved,
}

/// Whether a poll for room to send is under way. With io_uring a poll goes on once it has begun.
/// With epoll it ends when it has found room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Room {
    /// No poll is under way.
    Unwatched,
    /// A poll is under way, and a send waits for it.
    Awaited,
    /// A poll goes on that no send waits for.
    Watched,
}

/// A connect under way.
#[derive(Debug)]
pub(super) struct Dial {
    /// Boxed, and kept until the connect has ended: the kernel reads it while this table may move.
    address: Box<SockAddr>,
    /// The connect was cancelled because it took too long.
    pub(super) late: bool,
}

impl Dial {
    pub(super) fn new(address: SocketAddr) -> Self {
        Self { address: Box::new(SockAddr::from(address)), late: false }
    }

    pub(super) fn address(&self) -> &SockAddr {
        &self.address
    }
}

/// One socket and the operations on it.
#[derive(Debug)]
pub(super) struct Socket {
    pub(super) stream: Stream,
    pub(super) conn: ConnId,
    pub(super) phase: Phase,
    pub(super) receive: Receive,
    pub(super) dial: Option<Dial>,
    /// Bytes offered by the send under way; none is under way when 0.
    pub(super) offered: usize,
    pub(super) room: Room,
    /// The poll and the connect were asked to end.
    pub(super) cancelled: bool,
    /// The peer's FIN came.
    pub(super) fin: bool,
    /// However the socket is closed, by us or by this process's end, the peer gets a RST.
    pub(super) resets: bool,
    /// A send found the connection broken. The core is told when the receive has brought the last
    /// bytes.
    pub(super) broken: Option<End>,
    /// When a flush last made progress.
    pub(super) progress: Time,
    /// Bytes dropped since the core closed it.
    pub(super) dropped: usize,
    /// The transport between the socket and the core.
    pub(super) transport: Option<Box<Transport>>,
    /// The listener that let the connection in, here or on another core; none: it was dialled here.
    pub(super) listener: Option<Listener>,
}

impl Socket {
    pub(super) fn new(stream: Stream, conn: ConnId, phase: Phase) -> Self {
        Self {
            stream,
            conn,
            phase,
            receive: Receive::Idle,
            dial: None,
            offered: 0,
            room: Room::Unwatched,
            cancelled: false,
            fin: false,
            resets: false,
            broken: None,
            progress: Time::ZERO,
            dropped: 0,
            transport: None,
            listener: None,
        }
    }

    /// Whether the socket counts as one of this listener's, which it does as long as its descriptor
    /// is open.
    fn is_of(&self, listener: Listener) -> bool {
        self.listener == Some(listener)
    }

    pub(super) fn fd(&self) -> RawFd {
        self.stream.fd()
    }

    /// Sets whether closing the socket sends a RST, even if all is sent, or a FIN.
    pub(super) fn set_resets(&mut self, resets: bool) {
        if self.resets != resets && self.stream.set_resets(resets).is_ok() {
            self.resets = resets;
        }
    }

    /// Whether the kernel holds bytes that the peer has not acknowledged. After a RST: whether
    /// there were some when the RST came.
    pub(super) fn has_unacknowledged(&self) -> bool {
        self.stream.unacknowledged().is_ok_and(|bytes| bytes > 0)
    }

    pub(super) fn is_receiving(&self) -> bool {
        matches!(self.receive, Receive::Armed | Receive::Cancelling)
    }

    /// Whether the core has the socket and no operation is under way on it.
    pub(super) fn is_still(&self) -> bool {
        matches!(self.phase, Phase::Open)
            && !self.is_receiving()
            && self.offered == 0
            && self.room == Room::Unwatched
            && self.dial.is_none()
    }

    /// Whether a send may be started.
    pub(super) fn may_send(&self) -> bool {
        matches!(self.phase, Phase::Open | Phase::Flushing)
            && self.offered == 0
            && self.room != Room::Awaited
            && self.broken.is_none()
    }
}

/// The sockets, by slot of their connection.
#[derive(Debug, Default)]
pub(super) struct Sockets {
    slots: Vec<Option<Socket>>,
    live: usize,
    /// How many of them are clients'.
    clients: usize,
    /// How many of them the worker listener let in.
    workers: usize,
}

impl Sockets {
    pub(super) fn live(&self) -> usize {
        self.live
    }

    pub(super) fn clients(&self) -> usize {
        self.clients
    }

    pub(super) fn workers(&self) -> usize {
        self.workers
    }

    pub(super) fn add(&mut self, socket: Socket) {
        let slot = socket.conn.slot as usize;
        if slot >= self.slots.len() {
            self.slots.resize_with(slot + 1, || None);
        }
        debug_assert!(self.slots[slot].is_none(), "a slot was given to two sockets");
        self.clients += usize::from(socket.is_of(Listener::Client));
        self.workers += usize::from(socket.is_of(Listener::Worker));
        self.slots[slot] = Some(socket);
        self.live += 1;
    }

    pub(super) fn get(&self, conn: ConnId) -> Option<&Socket> {
        self.slots.get(conn.slot as usize)?.as_ref().filter(|socket| socket.conn == conn)
    }

    pub(super) fn get_mut(&mut self, conn: ConnId) -> Option<&mut Socket> {
        self.slots.get_mut(conn.slot as usize)?.as_mut().filter(|socket| socket.conn == conn)
    }

    /// The socket that an operation was for, unless its slot has another owner by now.
    pub(super) fn of(&mut self, tag: Tag) -> Option<&mut Socket> {
        self.slots.get_mut(tag.slot() as usize)?.as_mut().filter(|socket| tag.is_of(socket.conn))
    }

    /// Takes a socket out; dropping it closes its descriptor.
    pub(super) fn remove(&mut self, conn: ConnId) -> Option<Socket> {
        let slot = self.slots.get_mut(conn.slot as usize)?;
        let socket = slot.take_if(|socket| socket.conn == conn)?;
        self.live -= 1;
        self.clients -= usize::from(socket.is_of(Listener::Client));
        self.workers -= usize::from(socket.is_of(Listener::Worker));
        Some(socket)
    }

    /// Connections whose output does not move: the peer takes nothing, is gone, or not there yet.
    pub(super) fn stuck(&self) -> impl Iterator<Item = ConnId> {
        let stuck = |socket: &&Socket| {
            let absent = matches!(socket.phase, Phase::Dialling) || socket.broken.is_some();
            absent || socket.room == Room::Awaited
        };
        self.iter().filter(stuck).map(|socket| socket.conn)
    }

    /// All sockets in the table.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Socket> {
        self.slots.iter().flatten()
    }

    /// All connections in the table.
    pub(super) fn all(&self) -> Vec<ConnId> {
        self.iter().map(|socket| socket.conn).collect()
    }
}
