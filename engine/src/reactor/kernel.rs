//! A kernel that a test makes up. It drives a reactor in a simulated world as io_uring and epoll do
//! in the real one. Its time is that world's, so that a run can be played again event for event.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fmt::Debug;
use std::io;
use std::net::SocketAddr;
use std::os::fd::RawFd;
use std::rc::Rc;

use ringway_proto::time::Time;

use super::tag::{Completion, Tag};
use super::uring::{Accepts, Report, SEND_SEGMENTS, Share};
use crate::net::SimulatedSocket;
use crate::pool::{Pool, Segment};

/// One core's kernel in a simulated world. Operations go in and completions come out, as with
/// io_uring: a later [`Self::take_batch`] has an operation's result under its tag.
///
/// Results are an operation's own number, or a negative `errno`.
pub trait Kernel {
    /// The time of the world.
    fn now(&self) -> Time;

    /// Accepts connections at a listener. The results are numbers of sockets.
    fn accept(&mut self, listener: RawFd, often: Accepts, tag: Tag);

    /// The socket of a completed accept.
    fn accepted(&mut self, socket: RawFd) -> Box<dyn SimulatedSocket>;

    /// A socket of this core that is not connected yet.
    fn socket(&mut self) -> Box<dyn SimulatedSocket>;

    /// Connects such a socket. The result is 0 if it is.
    fn connect(&mut self, socket: RawFd, address: SocketAddr, tag: Tag);

    /// A socket that another core has detached is this core's from now on.
    fn adopted(&mut self, socket: RawFd);

    /// Receives into lent blocks until it is cancelled, ends, or has had its share. The results are
    /// numbers of bytes, 0 for the peer's FIN, `ENOBUFS` if no block was there for what has come.
    fn receive(&mut self, socket: RawFd, share: Share, tag: Tag);

    /// Sends these bytes, or as many of them as there is room for. The send has ended when the next
    /// [`Self::enter`] returns; until then the bytes must stay.
    fn send(&mut self, socket: RawFd, parts: Vec<Segment>, report: Report, tag: Tag);

    /// Completes when the socket takes bytes again or is broken, once or, with
    /// [`more`](Completion::one_of), until it is cancelled.
    fn writable(&mut self, socket: RawFd, tag: Tag);

    /// Cancels the operation that bears `target`, whose own completion still comes. A result below 0
    /// says that there was nothing to cancel.
    fn cancel(&mut self, target: Tag, tag: Tag);

    /// Takes receive blocks to be filled from the pool.
    fn lend(&mut self, pool: &mut Pool);

    /// The core has nothing more to do: takes what was submitted. The world goes on.
    fn enter(&mut self, pool: &Pool);

    /// The core wakes up: makes the completions of what has happened since, and fills blocks.
    fn leave(&mut self, pool: &mut Pool);

    /// The completions since the last call.
    fn take_batch(&mut self) -> Vec<Completion>;

    /// Whether a core that enters is woken at once.
    fn has_work(&self) -> bool;
}

/// A listener of a simulated world. Dropping it says nothing to those who have connected.
pub trait SimulatedListener: Debug {
    /// What stands for the descriptor.
    fn number(&self) -> RawFd;

    /// Lets nobody connect any more. Returns the sockets that have connected and were not accepted.
    fn end(&self) -> Vec<Box<dyn SimulatedSocket>>;

    /// Lets nobody connect from these addresses, but everybody from all others.
    ///
    /// # Errors
    /// The simulated kernel has no filters.
    fn keep_out(&self, addresses: &[SocketAddr]) -> io::Result<()>;
}

/// The front of a queue, as much of it as one send takes.
pub(super) fn front(queue: &VecDeque<Segment>, most: usize) -> Vec<Segment> {
    let mut room = most;
    let parts = queue.iter().take(SEND_SEGMENTS).map_while(|segment| {
        let len = room.min(segment.len as usize);
        room -= len;
        (len > 0).then(|| segment.part(0, len))
    });
    parts.collect()
}

/// The reactor's side of a simulated kernel.
pub(super) struct Simulated {
    pub(super) kernel: Rc<RefCell<dyn Kernel>>,
    /// Bytes of one send at most.
    pub(super) send_bytes: usize,
}
