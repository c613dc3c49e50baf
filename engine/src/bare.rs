//! A relay of bytes without any protocol. Every client connection gets a connection to one fixed
//! address, and bytes pass both ways unchanged.
//!
//! The relay shows what the reactor costs by itself. The benchmark uses it as its floor, and the
//! reactor's tests use it too.

use std::net::SocketAddr;

use ringway_proto::time::Time;

use crate::net::{Close, ConnId, Core, End, Listener, Net};
use crate::pool::Segment;

/// Queued for one connection above which its other side is no longer read.
pub const HIGH_WATER: usize = 1 << 20;

/// Queued for one connection below which its other side is read again.
pub const LOW_WATER: usize = HIGH_WATER / 2;

/// A message of another thread to the relay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BareMessage {
    /// Close everything and end.
    Stop,
}

/// The relay.
#[derive(Debug)]
pub struct Bare {
    target: SocketAddr,
    /// The other side of each connection, by slot.
    peers: Vec<Option<(ConnId, ConnId)>>,
    stopped: bool,
}

impl Bare {
    /// A relay to `target`.
    #[must_use]
    pub fn new(target: SocketAddr) -> Self {
        Self { target, peers: Vec::new(), stopped: false }
    }

    fn peer(&self, conn: ConnId) -> Option<ConnId> {
        let (own, peer) = self.peers.get(conn.slot as usize).copied().flatten()?;
        (own == conn).then_some(peer)
    }

    fn pair(&mut self, conn: ConnId, peer: ConnId) {
        let slot = conn.slot as usize;
        if slot >= self.peers.len() {
            self.peers.resize(slot + 1, None);
        }
        self.peers[slot] = Some((conn, peer));
    }

    /// Forgets a connection and its other side, and flushes the other side's last bytes.
    fn part(&mut self, net: &mut Net, conn: ConnId) {
        if let Some(peer) = self.peer(conn) {
            self.peers[conn.slot as usize] = None;
            self.peers[peer.slot as usize] = None;
            net.close(peer, Close::Flush);
        }
    }
}

impl Core for Bare {
    type Message = BareMessage;

    fn accepted(&mut self, net: &mut Net, conn: ConnId, _: Listener, _: SocketAddr) {
        let peer = net.dial(self.target);
        self.pair(conn, peer);
        self.pair(peer, conn);
    }

    fn dialled(&mut self, net: &mut Net, conn: ConnId, result: Result<(), i32>) {
        if result.is_err() {
            self.part(net, conn);
        }
    }

    fn received(&mut self, net: &mut Net, conn: ConnId, segment: Segment) {
        let Some(peer) = self.peer(conn) else { return };
        net.push(peer, segment);
        if net.queued(peer) > HIGH_WATER {
            net.pause(conn, true);
        }
    }

    /// A FIN ends both ways, after the queued bytes of both ways are sent. (The network interface
    /// knows no half-closed connections, and this relay's users need none.)
    fn ended(&mut self, net: &mut Net, conn: ConnId, end: End) {
        self.part(net, conn);
        if end.is_half() {
            net.close(conn, Close::Flush);
        }
    }

    fn written(&mut self, net: &mut Net, conn: ConnId, _: usize) {
        if net.queued(conn) < LOW_WATER
            && let Some(peer) = self.peer(conn)
        {
            net.pause(peer, false);
        }
    }

    fn message_received(&mut self, _: &mut Net, message: BareMessage) {
        match message {
            BareMessage::Stop => self.stopped = true,
        }
    }

    fn turn(&mut self, _: &mut Net) {}

    /// The relay retains nothing itself.
    fn relieve(&mut self, _: &mut Net) {}

    fn deadline(&self) -> Option<Time> {
        None
    }

    fn finished(&self) -> bool {
        self.stopped
    }
}
