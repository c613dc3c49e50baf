//! A connection on its way between two cores.

use std::os::fd::OwnedFd;

use crate::inlet::Inlet;

/// A socket on its way from one core to another.
#[derive(Debug)]
pub enum Carried {
    /// A descriptor of this process.
    Descriptor(OwnedFd),
    /// One with an inlet: what came by it and what goes is TLS.
    Inlet(OwnedFd, Box<Inlet>),
    /// What a simulated world has instead of one.
    Simulated(u64),
}

/// A connection that no core owns: let go of by one, not yet taken up by another.
#[derive(Debug)]
pub struct Parcel {
    /// The socket. Dropping it closes the connection.
    pub socket: Carried,
    /// Output the kernel has not taken yet; the next owner sends it first.
    pub unsent: Vec<u8>,
}
