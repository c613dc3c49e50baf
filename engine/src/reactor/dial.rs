//! Connections that the gateway makes itself.

use std::net::SocketAddr;

use socket2::{Domain, Protocol, SockRef, Socket as RawSocket, Type};

use super::options::KeepAlive;
use super::socket::{Dial, Phase, Socket};
use super::stream::{Stream, tune};
use super::tag::{Completion, Kind, Tag};
use super::timer::Due;
use super::{News, Reactor};
use crate::net::{ConnId, Core, Output};

impl<C: Core> Reactor<C> {
    /// Starts what the core wished for with [`Net::dial`](crate::net::Net::dial).
    pub(super) fn dial(&mut self, conn: ConnId, address: SocketAddr) {
        let gateway = self.net.output(conn).is_some_and(Output::is_to_gateway);
        let keep_alive =
            if gateway { KeepAlive::BETWEEN_GATEWAYS } else { self.options.keep_alive };
        let socket = if self.room(None) == 0 {
            Err(libc::EMFILE)
        } else if let Some(socket) = self.ring.socket() {
            Ok(socket)
        } else {
            socket_for(address, keep_alive)
                .map_err(|error| error.raw_os_error().unwrap_or(libc::EIO))
        };
        let stream = match socket {
            Ok(stream) => stream,
            Err(errno) => return self.news.push(News::Undialled(conn, errno)),
        };
        let mut socket = Socket::new(stream, conn, Phase::Dialling);
        let dial = socket.dial.insert(Dial::new(address));
        self.ring.connect(socket.stream.fd(), dial.address(), Tag::of(Kind::Connect, conn));
        self.add(socket);
        self.timers.set(Due::Dial, self.net.now, conn);
    }

    pub(super) fn connected(&mut self, completion: Completion) {
        let Some(socket) = self.sockets.of(completion.tag) else { return };
        let conn = socket.conn;
        let late = socket.dial.take().is_some_and(|dial| dial.late);
        self.looks.push(conn);
        if matches!(socket.phase, Phase::Closing) {
            return;
        }
        if completion.result == 0 {
            socket.phase = Phase::Open;
            self.dirty.push(conn);
            if self.net.is_open(conn) {
                self.call(|core, net| core.dialled(net, conn, Ok(())));
            }
            return;
        }
        socket.phase = Phase::Closing;
        let errno = if late { libc::ETIMEDOUT } else { -completion.result };
        self.tell_undialled(conn, errno);
    }

    /// Tells the core that a dial failed, unless it closed the connection meanwhile.
    pub(super) fn tell_undialled(&mut self, conn: ConnId, errno: i32) {
        let open = self.net.is_open(conn);
        self.net.kill(conn);
        if open {
            self.call(|core, net| core.dialled(net, conn, Err(errno)));
        }
    }

    /// The dial took too long. It is cancelled, and its completion reports that.
    pub(super) fn dial_late(&mut self, conn: ConnId) {
        let Some(socket) = self.sockets.get_mut(conn) else { return };
        if let Some(dial) = &mut socket.dial {
            dial.late = true;
            let tag = Tag::of(Kind::Cancel, conn);
            self.ring.cancel(Tag::of(Kind::Connect, conn), tag);
        }
    }
}

fn socket_for(address: SocketAddr, keep_alive: KeepAlive) -> std::io::Result<Stream> {
    // `new` sets close-on-exec. The socket stays a blocking one, because only the ring waits for
    // it.
    let socket = RawSocket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    tune(&SockRef::from(&socket), keep_alive)?;
    Ok(Stream::Kernel(socket.into()))
}
