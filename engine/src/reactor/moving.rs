//! Connections that change cores.

use std::net::TcpStream;

use super::Reactor;
use super::socket::{Phase, Socket};
use super::tag::{Kind, Tag};
use crate::border::{Carried, ConnId, Core, End, Output, Parcel};

impl<C: Core> Reactor<C> {
    /// Hands a connection over that the core lets go of, unless something began on it meanwhile.
    pub(super) fn hand_over(&mut self, conn: ConnId) {
        let wished = self.border.output(conn).is_some_and(Output::is_detaching);
        let still = self.sockets.get(conn).is_some_and(Socket::is_still);
        if !wished || !still || !self.border.is_open(conn) {
            return;
        }
        let Some(socket) = self.sockets.remove(conn) else { return };
        self.ring.forget(Tag::of(Kind::Receive, conn));
        self.border.tally.sockets = self.sockets.live() as u64;
        let unsent = self.border.take_unsent(conn);
        self.border.free(conn);
        let parcel = Parcel { socket: Carried::Descriptor(socket.stream.into()), unsent };
        self.call(|core, border| core.detached(border, conn, parcel));
    }

    /// Takes up a connection that another core has let go of.
    pub(super) fn adopt(&mut self, conn: ConnId, socket: Carried) {
        let Carried::Descriptor(descriptor) = socket else {
            // Only a simulated world makes others.
            self.border.kill(conn);
            self.call(|core, border| core.ended(border, conn, End::Failed));
            return self.border.free(conn);
        };
        self.add(Socket::new(TcpStream::from(descriptor), conn, Phase::Open));
        self.looks.push(conn);
        self.dirty.push(conn);
    }
}
