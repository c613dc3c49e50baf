//! A connection on its way between two cores.

use std::fmt::Debug;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use crate::transport::Transport;

/// A socket on its way from one core to another.
#[derive(Debug)]
pub enum Carried {
    /// A descriptor of this process.
    Descriptor(OwnedFd),
    /// A descriptor with a transport: its bytes are TLS.
    Transport(OwnedFd, Box<Transport>),
    /// A simulated world's stand-in for a descriptor.
    Simulated(Box<dyn SimulatedSocket>),
}

/// A connection that no core owns: detached by one, not yet taken up by another.
#[derive(Debug)]
pub struct Detached {
    /// The socket. Dropping it closes the connection.
    pub socket: Carried,
    /// Output the kernel has not taken yet; the next owner sends it first.
    pub unsent: Vec<u8>,
}

/// A simulated world's stand-in for a descriptor. Dropping it closes the connection.
pub trait SimulatedSocket: Debug + Send {
    /// The number in place of a descriptor: no other socket of the world has it.
    fn number(&self) -> i32;

    /// The address of the other end.
    fn peer(&self) -> SocketAddr;

    /// Sets whether closing the socket is a RST, even if all is sent.
    fn set_resets(&self, resets: bool);

    /// Bytes that were sent and that the peer has not acknowledged.
    fn unacknowledged(&self) -> usize;

    /// Sends a FIN. Reading goes on.
    fn end_writing(&self);
}

#[cfg(test)]
impl Detached {
    /// A detached connection whose socket belongs to nobody.
    pub(crate) fn of_nobody() -> Self {
        Self { socket: Carried::Simulated(Box::new(Nobody)), unsent: Vec::new() }
    }
}

#[cfg(test)]
#[derive(Debug)]
struct Nobody;

#[cfg(test)]
impl SimulatedSocket for Nobody {
    fn number(&self) -> i32 {
        1
    }

    fn peer(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], 1))
    }

    fn set_resets(&self, _resets: bool) {}

    fn unacknowledged(&self) -> usize {
        0
    }

    fn end_writing(&self) {}
}
