//! Connections that change cores.

use std::net::TcpStream;

use super::Reactor;
use super::socket::{Phase, Socket};
use super::timer::Due;
use crate::border::{Carried, ConnId, Core, End, Output, Parcel};

impl<C: Core> Reactor<C> {
    /// Hands a connection over that the core lets go of, unless something began on it meanwhile.
    pub(super) fn hand_over(&mut self, conn: ConnId) {
        let wished = self.border.output(conn).is_some_and(Output::is_detaching);
        let still = self.sockets.get(conn).is_some_and(Socket::is_still);
        if !wished || !still || !self.border.is_open(conn) {
            return;
        }
        let Some(mut socket) = self.sockets.remove(conn) else { return };
        let inlet = socket.inlet.take();
        self.border.tally.sockets = self.sockets.live() as u64;
        let unsent = self.border.take_unsent(conn);
        self.border.free(conn);
        let socket = match inlet {
            None => Carried::Descriptor(socket.stream.into()),
            Some(mut inlet) => {
                inlet.pack(&mut self.border.pool);
                Carried::Inlet(socket.stream.into(), inlet)
            }
        };
        let parcel = Parcel { socket, unsent };
        self.call(|core, border| core.detached(border, conn, parcel));
    }

    /// Takes up a connection that another core has let go of.
    pub(super) fn adopt(&mut self, conn: ConnId, socket: Carried) {
        let (descriptor, inlet) = match socket {
            Carried::Descriptor(descriptor) => (descriptor, None),
            Carried::Inlet(descriptor, mut inlet) => {
                let sealed = inlet.unpack(&mut self.border.pool);
                self.border.owe(conn, sealed);
                (descriptor, Some(inlet))
            }
            // Only a simulated world makes others.
            Carried::Simulated(_) => {
                self.border.kill(conn);
                self.call(|core, border| core.ended(border, conn, End::Failed));
                return self.border.free(conn);
            }
        };
        if inlet.as_deref().is_some_and(|inlet| !inlet.is_open()) {
            self.timers.set_after(Due::Entrance, self.border.now, self.options.entrance_time, conn);
        }
        self.add(Socket { inlet, ..Socket::new(TcpStream::from(descriptor), conn, Phase::Open) });
        self.looks.push(conn);
        self.dirty.push(conn);
    }
}
