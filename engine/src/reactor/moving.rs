//! Connections that change cores.
//!
//! A connection is detached when no operation is under way on it. Its receive and its poll for room
//! are cancelled (`pump.rs`), its sends have ended with the enter that took them, and the core has
//! seen all bytes received until then. So no byte is lost, and none overtakes another. If the core
//! is told of the connection's end meanwhile, the connection stays.

use std::net::TcpStream;

use super::socket::{Phase, Socket};
use super::stream::Stream;
use super::tag::{Kind, Tag};
use super::timer::Due;
use super::{News, Reactor};
use crate::net::{Carried, ConnId, Core, Detached, End, Listener, Output};

impl<C: Core> Reactor<C> {
    /// Hands a connection over that the core detaches, unless something began on it meanwhile.
    pub(super) fn hand_over(&mut self, conn: ConnId) {
        let wished = self.net.output(conn).is_some_and(Output::is_detaching);
        let still = self.sockets.get(conn).is_some_and(Socket::is_still);
        if !wished || !still || !self.net.is_open(conn) {
            return;
        }
        let Some(mut socket) = self.sockets.remove(conn) else { return };
        let transport = socket.transport.take();
        self.ring.forget(Tag::of(Kind::Receive, conn));
        self.net.tally.sockets = self.sockets.live() as u64;
        let unsent = self.net.take_unsent(conn);
        self.net.free(conn);
        let socket = match (socket.stream, transport) {
            (Stream::Kernel(stream), Some(mut transport)) => {
                transport.pack(&mut self.net.pool);
                Carried::Transport(stream.into(), transport)
            }
            (stream, _) => stream.into(),
        };
        let detached = Detached { socket, unsent };
        self.call(|core, net| core.detached(net, conn, detached));
    }

    /// The core is told of the peer's end on a connection that was to be detached. The connection
    /// stays as if the core had never wished to detach it. The core may wish so again.
    pub(super) fn keep(&mut self, conn: ConnId) {
        if self.net.keep(conn) {
            self.looks.push(conn);
            self.dirty.push(conn);
        }
    }

    /// Takes up a connection that another core has detached.
    pub(super) fn adopt(&mut self, conn: ConnId, socket: Carried, listener: Option<Listener>) {
        let refused = self.room(listener) == 0;
        let (stream, transport) = match socket {
            Carried::Descriptor(descriptor) if !refused => {
                (Stream::Kernel(TcpStream::from(descriptor)), None)
            }
            Carried::Transport(descriptor, mut transport) if !refused => {
                let sealed = transport.unpack(&mut self.net.pool);
                self.net.owe(conn, sealed);
                (Stream::Kernel(TcpStream::from(descriptor)), Some(transport))
            }
            Carried::Simulated(socket) if !refused && self.ring.is_simulated() => {
                self.ring.adopted(socket.number());
                (Stream::Simulated(socket), None)
            }
            // There are too many sockets, or this is a simulated world's. The core is told at the
            // next turn's start.
            Carried::Descriptor(_) | Carried::Transport(..) | Carried::Simulated(_) => {
                self.net.tally.refused += 1;
                return self.news.push(News::Refused(conn));
            }
        };
        if transport.as_deref().is_some_and(|transport| !transport.is_open()) {
            self.timers.set_after(Due::Entrance, self.net.now, self.options.entrance_time, conn);
        }
        // A connection from another core was greeted there.
        let greeted = match transport.as_deref() {
            Some(transport) => transport.is_greeted(),
            None => listener.is_some_and(|listener| self.greeting(listener).is_some()),
        };
        if greeted {
            self.set_greeted(conn);
        }
        let socket = Socket::new(stream, conn, Phase::Open);
        self.add(Socket { transport, listener, ..socket });
        self.net.tally.adopts += 1;
        self.looks.push(conn);
        self.dirty.push(conn);
    }

    /// Tells the core that a connection could not be taken up.
    pub(super) fn refuse(&mut self, conn: ConnId) {
        let open = self.net.is_open(conn);
        self.net.kill(conn);
        if open {
            self.call(|core, net| core.ended(net, conn, End::Failed));
        }
        self.net.free(conn);
    }
}
