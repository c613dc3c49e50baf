//! Sockets as the reactor uses them outside its ring: the kernel's, or those of a simulated world.

use std::io;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, RawFd};
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};

use super::filter::keep_out;
use super::kernel::SimulatedListener;
use super::options::KeepAlive;
use super::outq::unacknowledged;
use crate::net::{Carried, SimulatedSocket};

/// Most connections let in from the queue of a listener that is being closed.
pub(super) const LAST_ACCEPTS: usize = 4096;

/// Most octets that the kernel takes from a connection before it can send them. It asks for more
/// when less than half of them are left. Nothing can overtake octets that lie there: without the
/// bound an answer to a client that reads a download slowly would wait behind up to `tcp_wmem[2]`
/// (4 MiB). Octets on their way are not counted, so a long path is still filled.
pub(super) const UNSENT: u32 = 128 * 1024;

/// Sets the options of every connection, accepted or dialled: no Nagle delay, little output that
/// waits in the kernel, keep-alive (LN-9), and a bound of the wait for a peer that has vanished
/// while data was on its way. The socket keeps them on whatever core it is.
///
/// Urgent data is received in its place like any other (RFC 6093, section 6): taken apart, its byte
/// would be lost, and a receive would be called for it again and again without finding it.
pub(super) fn tune(socket: &SockRef<'_>, keep_alive: KeepAlive) -> io::Result<()> {
    socket.set_tcp_nodelay(true)?;
    socket.set_out_of_band_inline(true)?;
    socket.set_tcp_notsent_lowat(UNSENT)?;
    socket.set_tcp_user_timeout(Some(keep_alive.user_timeout))?;
    let keep_alive = TcpKeepalive::new()
        .with_time(keep_alive.idle)
        .with_interval(keep_alive.interval)
        .with_retries(keep_alive.probes);
    socket.set_tcp_keepalive(&keep_alive)
}

/// A connection's socket. Dropping it closes the connection.
#[derive(Debug)]
pub(super) enum Stream {
    Kernel(TcpStream),
    Simulated(Box<dyn SimulatedSocket>),
}

impl Stream {
    /// The descriptor by which operations of the ring name the socket.
    pub(super) fn fd(&self) -> RawFd {
        match self {
            Self::Kernel(stream) => stream.as_raw_fd(),
            Self::Simulated(socket) => socket.number(),
        }
    }

    /// The address of the other end; it fails if the peer has reset the connection already.
    pub(super) fn peer(&self) -> io::Result<SocketAddr> {
        match self {
            Self::Kernel(stream) => stream.peer_addr(),
            Self::Simulated(socket) => Ok(socket.peer()),
        }
    }

    /// See [`tune`]. A simulated peer vanishes only when its world says so.
    pub(super) fn tune(&self, keep_alive: KeepAlive) -> io::Result<()> {
        match self {
            Self::Kernel(stream) => tune(&SockRef::from(stream), keep_alive),
            Self::Simulated(_) => Ok(()),
        }
    }

    /// Takes off the filter that the socket has inherited from its listener.
    pub(super) fn detach_filter(&self) -> io::Result<()> {
        match self {
            Self::Kernel(stream) => SockRef::from(stream).detach_filter(),
            Self::Simulated(_) => Ok(()),
        }
    }

    /// Sets whether closing the socket sends a RST, even if all is sent (`SO_LINGER` of no time),
    /// or a FIN.
    pub(super) fn set_resets(&self, resets: bool) -> io::Result<()> {
        match self {
            Self::Kernel(stream) => {
                SockRef::from(stream).set_linger(resets.then_some(Duration::ZERO))
            }
            Self::Simulated(socket) => {
                socket.set_resets(resets);
                Ok(())
            }
        }
    }

    /// Bytes that the peer has not acknowledged. After a RST: those that were unacknowledged when
    /// it came.
    pub(super) fn unacknowledged(&self) -> io::Result<usize> {
        match self {
            Self::Kernel(stream) => unacknowledged(stream),
            Self::Simulated(socket) => Ok(socket.unacknowledged()),
        }
    }

    /// Sends our FIN; it fails if the peer is gone already.
    pub(super) fn end_writing(&self) -> io::Result<()> {
        match self {
            Self::Kernel(stream) => stream.shutdown(Shutdown::Write),
            Self::Simulated(socket) => {
                socket.end_writing();
                Ok(())
            }
        }
    }
}

impl From<Stream> for Carried {
    fn from(stream: Stream) -> Self {
        match stream {
            Stream::Kernel(stream) => Self::Descriptor(stream.into()),
            Stream::Simulated(socket) => Self::Simulated(socket),
        }
    }
}

/// A listening socket.
#[derive(Debug)]
pub(super) enum Listening {
    Kernel(TcpListener),
    Simulated(Box<dyn SimulatedListener>),
}

impl Listening {
    /// The descriptor by which an accept names the listener.
    pub(super) fn fd(&self) -> RawFd {
        match self {
            Self::Kernel(listener) => listener.as_raw_fd(),
            Self::Simulated(listener) => listener.number(),
        }
    }

    /// Lets nobody connect from these addresses, but everybody from all others; see [`keep_out`].
    /// Fails on a kernel without filters.
    pub(super) fn keep_out(&self, addresses: &[SocketAddr]) -> io::Result<()> {
        match self {
            Self::Kernel(listener) => keep_out(&SockRef::from(listener), addresses),
            Self::Simulated(listener) => listener.keep_out(addresses),
        }
    }

    /// Lets nobody connect any more, and takes those who have connected already: they would be reset
    /// with the listener.
    pub(super) fn end(&self) -> Vec<Stream> {
        match self {
            Self::Kernel(listener) => {
                // The call fails for want of descriptors, or when nobody is left.
                let waits = listener.set_nonblocking(true).is_ok();
                let queue = std::iter::from_fn(|| listener.accept().ok());
                let last = queue.take(if waits { LAST_ACCEPTS } else { 0 });
                let last = last.map(|(stream, _)| Stream::Kernel(stream)).collect();
                // The listener may be open elsewhere in the process too: this ends it everywhere,
                // so that nobody is let into a queue that no one serves. It fails only if it has
                // ended already.
                let _ = SockRef::from(listener).shutdown(Shutdown::Both);
                last
            }
            Self::Simulated(listener) => {
                listener.end().into_iter().map(Stream::Simulated).collect()
            }
        }
    }
}
