//! What the reactor asks of the kernel, by way of io_uring, epoll, or a simulated world.
//!
//! All three work like a ring: operations go in, completions come out, and everything happens in
//! [`Ring::enter`]. The choice costs one branch per operation, always the same one. It costs
//! nothing per byte, and allocates nothing.

use std::collections::VecDeque;
use std::net::TcpStream;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use ringway_proto::time::Time;
use socket2::SockAddr;

use super::buffer::{self, BlockRing};
use super::epoll::Epoll;
use super::fault::SetupError;
use super::kernel::{Simulated, front};
use super::options::{BusyPoll, Options};
use super::stream::Stream;
use super::tag::{Completion, Tag};
use super::uring::{Accepts, Report, Share, Uring, Wait};
use crate::metrics::Backend;
use crate::pool::{Pool, Segment};

/// One core's way into the kernel.
pub(super) enum Ring {
    /// The ring is the first field, so it is dropped first: after that the kernel uses the blocks
    /// no more.
    Uring(Uring, BlockRing),
    Epoll(Epoll),
    /// Never in production: see [`Simulation`](super::Simulation).
    Simulated(Simulated),
}

/// Passes a call on to the backend in use.
macro_rules! either {
    ($ring:expr, $own:pat => $call:expr) => {
        match $ring {
            Self::Uring($own, _) => $call,
            Self::Epoll($own) => $call,
            Self::Simulated(world) => {
                let $own = &mut *world.kernel.borrow_mut();
                $call
            }
        }
    };
}

impl Ring {
    /// Sets the backend up for the pool's blocks. Also returns the bounds of a receive that this
    /// kernel knows.
    pub(super) fn new(options: &Options, pool: &mut Pool) -> Result<(Self, Share), SetupError> {
        let share = Share::of(options);
        if options.backend == Backend::Epoll {
            return Ok((Self::Epoll(Epoll::new(options.lent, options.send_bytes)?), share));
        }
        let spins = options.busy_poll != BusyPoll::Never;
        let mut ring = Uring::new(options.entries, options.send_bytes, spins)?;
        let mut blocks = BlockRing::register(&ring, pool, options.lent)?;
        blocks.lend(pool);
        let share = buffer::probe(&mut ring, pool, share)?;
        Ok((Self::Uring(ring, blocks), share))
    }

    /// See [`Uring::accept`].
    pub(super) fn accept(&mut self, listener: RawFd, often: Accepts, tag: Tag) {
        either!(self, ring => ring.accept(listener, often, tag));
    }

    /// The socket of a completed accept. It belongs to the caller.
    pub(super) fn accepted(&mut self, result: RawFd) -> Stream {
        match self {
            Self::Uring(..) | Self::Epoll(_) => {
                // SAFETY: the kernel has just given us this descriptor; nobody else owns it.
                Stream::Kernel(TcpStream::from(unsafe { OwnedFd::from_raw_fd(result) }))
            }
            Self::Simulated(world) => Stream::Simulated(world.kernel.borrow_mut().accepted(result)),
        }
    }

    /// Whether this is a simulated world's backend.
    pub(super) fn is_simulated(&self) -> bool {
        matches!(self, Self::Simulated(_))
    }

    /// A socket of the simulated world, to be connected. None with a real kernel, whose sockets
    /// anybody can make.
    pub(super) fn socket(&self) -> Option<Stream> {
        match self {
            Self::Uring(..) | Self::Epoll(_) => None,
            Self::Simulated(world) => Some(Stream::Simulated(world.kernel.borrow_mut().socket())),
        }
    }

    /// See [`Uring::receive`].
    pub(super) fn receive(&mut self, socket: RawFd, share: Share, tag: Tag) {
        either!(self, ring => ring.receive(socket, share, tag));
    }

    /// See [`Uring::send`]. With epoll the send is made at once, and its end is always reported.
    pub(super) fn send(
        &mut self,
        socket: RawFd,
        queue: &VecDeque<Segment>,
        pool: &Pool,
        report: Report,
        tag: Tag,
    ) -> usize {
        match self {
            Self::Uring(ring, _) => ring.send(socket, queue, pool, report, tag),
            Self::Epoll(ring) => ring.send(socket, queue, pool, tag),
            Self::Simulated(world) => {
                let parts = front(queue, world.send_bytes);
                let offered = parts.iter().map(|part| part.len as usize).sum();
                world.kernel.borrow_mut().send(socket, parts, report, tag);
                offered
            }
        }
    }

    /// See [`Uring::writable`].
    pub(super) fn writable(&mut self, socket: RawFd, tag: Tag) {
        either!(self, ring => ring.writable(socket, tag));
    }

    /// See [`Uring::bell`].
    pub(super) fn bell(&mut self, eventfd: RawFd, tag: Tag) {
        match self {
            Self::Uring(ring, _) => ring.bell(eventfd, tag),
            Self::Epoll(ring) => ring.bell(eventfd, tag),
            // The simulated world wakes a core itself when another one sends to it.
            Self::Simulated(_) => {}
        }
    }

    /// The descriptor by which other cores' rings wake this one, if it has a ring.
    pub(super) fn fd(&self) -> Option<RawFd> {
        match self {
            Self::Uring(ring, _) => Some(ring.fd()),
            Self::Epoll(_) | Self::Simulated(_) => None,
        }
    }

    /// Wakes a core by its io_uring, see [`Uring::ring`]; false: this backend has none to do it
    /// with.
    pub(super) fn ring(&mut self, ring: RawFd, theirs: Tag, ours: Tag) -> bool {
        match self {
            Self::Uring(own, _) => own.ring(ring, theirs, ours),
            Self::Epoll(_) | Self::Simulated(_) => return false,
        }
        true
    }

    /// See [`Uring::connect`].
    pub(super) fn connect(&mut self, socket: RawFd, address: &SockAddr, tag: Tag) {
        match self {
            Self::Uring(ring, _) => ring.connect(socket, address, tag),
            Self::Epoll(ring) => ring.connect(socket, address, tag),
            Self::Simulated(world) => {
                // The address was made of an IP address.
                if let Some(address) = address.as_socket() {
                    world.kernel.borrow_mut().connect(socket, address, tag);
                }
            }
        }
    }

    /// See [`Uring::cancel`].
    pub(super) fn cancel(&mut self, target: Tag, tag: Tag) {
        either!(self, ring => ring.cancel(target, tag));
    }

    /// A socket of another core is this one's from now on.
    pub(super) fn adopted(&mut self, socket: RawFd) {
        if let Self::Simulated(world) = self {
            world.kernel.borrow_mut().adopted(socket);
        }
    }

    /// The time of a simulated world; none with a real kernel.
    pub(super) fn now(&self) -> Option<Time> {
        match self {
            Self::Uring(..) | Self::Epoll(_) => None,
            Self::Simulated(world) => Some(world.kernel.borrow().now()),
        }
    }

    /// No operation is under way on the connection of `tag`, and its socket is closed or given away
    /// next.
    pub(super) fn forget(&mut self, tag: Tag) {
        if let Self::Epoll(ring) = self {
            ring.forget(tag);
        }
    }

    /// Lends receive blocks that came back.
    pub(super) fn lend(&mut self, pool: &mut Pool) {
        match self {
            Self::Uring(_, blocks) => blocks.lend(pool),
            Self::Epoll(ring) => ring.lend(pool),
            Self::Simulated(world) => world.kernel.borrow_mut().lend(pool),
        }
    }

    /// See [`Uring::enter`].
    pub(super) fn enter(&mut self, wait: Wait, pool: &mut Pool) {
        match self {
            Self::Uring(ring, _) => ring.enter(wait),
            Self::Epoll(ring) => ring.enter(wait, pool),
            Self::Simulated(world) => {
                let mut kernel = world.kernel.borrow_mut();
                kernel.enter(pool);
                kernel.leave(pool);
            }
        }
    }

    /// See [`Uring::take_batch`].
    pub(super) fn take_batch(&mut self) -> Vec<Completion> {
        either!(self, ring => ring.take_batch())
    }

    /// See [`Uring::give_back`].
    pub(super) fn give_back(&mut self, list: Vec<Completion>) {
        match self {
            Self::Uring(ring, _) => ring.give_back(list),
            Self::Epoll(ring) => ring.give_back(list),
            Self::Simulated(_) => {}
        }
    }

    /// See [`Uring::has_work`].
    pub(super) fn has_work(&mut self) -> bool {
        either!(self, ring => ring.has_work())
    }
}

/// Tries out io_uring as `count` cores with these options would use it: so many rings at the same
/// time, each with its receive blocks and one receive.
///
/// # Errors
/// [`SetupError`] says what the host lacks or forbids, and the fix.
pub fn try_rings(options: &Options, count: usize) -> Result<(), SetupError> {
    options.check()?;
    let options = Options { backend: Backend::Ring, ..options.clone() };
    // A ring is dropped before its blocks' memory: each pair in this order.
    let mut rings = Vec::with_capacity(count);
    for _ in 0..count {
        let mut pool = Pool::new(options.blocks, options.block_bytes);
        let (ring, _) = Ring::new(&options, &mut pool)?;
        rings.push((ring, pool));
    }
    Ok(())
}
