//! The same operations and completions by epoll, for hosts that forbid io_uring.
//!
//! Every socket is watched edge-triggered from its first operation to its end, and an armed
//! operation is a note in a table. So pausing and going on costs no system call. A readable socket
//! counts as readable until a receive has found it empty. Sends are done at once and reported with
//! the next enter. The calls never block (`MSG_DONTWAIT`), whatever mode a socket is in.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::os::fd::{BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};

use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags, Shutdown, SocketFlags};
use socket2::{SockAddr, SockRef};

use super::fault::SetupError;
use super::tag::{Completion, Kind, Tag};
use super::uring::{Accepts, SEND_SEGMENTS, Share, Wait};
use crate::pool::{Pool, Segment};

/// Events taken from the kernel per enter; the others stay in its queue, in their order.
const EVENTS_PER_ENTER: usize = 256;

/// Connections taken from one listener per enter.
const ACCEPTS_PER_ENTER: usize = 64;

/// Receives of one socket per enter where no limit in bytes is set: as many as io_uring allows.
const RECEIVES_PER_ENTER: usize = 32;

/// A receive block being filled.
#[derive(Clone, Copy, Debug)]
struct Lent {
    block: u16,
    filled: usize,
}

/// A socket's state, and the operations armed on it.
#[derive(Clone, Copy, Debug, Default)]
struct Watch {
    /// The socket's connection, by the tag of its receive. `None` while the slot is free.
    owner: Option<Tag>,
    socket: RawFd,
    /// A receive may find bytes.
    readable: bool,
    /// A receive that brings less than it asked for has not emptied the socket. It ends at the mark
    /// of urgent data, or the end of the stream or an error comes after the bytes. No edge will
    /// report these.
    more_behind: bool,
    /// A send may find room.
    writable: bool,
    receive: Option<Share>,
    /// The operation that waits for room to send: a poll, or a connect.
    out: Option<Kind>,
    /// The socket is in the list of those to be received from.
    listed: bool,
}

/// One core's epoll. See [`Uring`](super::uring::Uring) for what the operations promise.
pub(super) struct Epoll {
    epoll: OwnedFd,
    /// Events that were found and not yet looked at.
    events: Vec<epoll::Event>,
    watches: Vec<Watch>,
    /// Listeners with an accept armed.
    listen_sockets: Vec<(Tag, RawFd, Accepts)>,
    /// Sockets with bytes and a receive armed, longest waiting first.
    ready: VecDeque<Tag>,
    lent: VecDeque<Lent>,
    /// Blocks lent at a time.
    share: usize,
    /// Completions that were not reported yet.
    batch: Vec<Completion>,
    send_bytes: usize,
}

impl Epoll {
    pub(super) fn new(share: usize, send_bytes: usize) -> Result<Self, SetupError> {
        let step = "epoll_create1";
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)
            .map_err(|error| SetupError::of(step, ("epoll", "2.6"), error.into()))?;
        Ok(Self {
            epoll,
            events: Vec::with_capacity(EVENTS_PER_ENTER),
            watches: Vec::new(),
            listen_sockets: Vec::new(),
            ready: VecDeque::new(),
            lent: VecDeque::new(),
            share,
            batch: Vec::new(),
            send_bytes,
        })
    }

    /// Takes receive blocks that came back, the latest first: they are still in the cache.
    pub(super) fn lend(&mut self, pool: &mut Pool) {
        while pool.ring_lent() < self.share {
            let Some(block) = pool.lend() else { break };
            self.lent.push_back(Lent { block, filled: 0 });
        }
    }

    // ---- operations ----

    pub(super) fn accept(&mut self, listener: RawFd, often: Accepts, tag: Tag) {
        // Listeners are level-triggered: connections left after a turn are found in the next one.
        let added = rustix::io::ioctl_fionbio(borrow(listener), true)
            .and_then(|()| self.add(listener, tag, epoll::EventFlags::IN));
        match added {
            Ok(()) => self.listen_sockets.push((tag, listener, often)),
            Err(error) => self.complete(tag, error_result(error)),
        }
    }

    pub(super) fn receive(&mut self, socket: RawFd, share: Share, tag: Tag) {
        match self.watch(socket, tag) {
            Ok(watch) => {
                watch.receive = Some(share);
                if watch.readable && !std::mem::replace(&mut watch.listed, true) {
                    self.ready.push_back(tag);
                }
            }
            Err(error) => self.complete(tag, error_result(error)),
        }
    }

    pub(super) fn send(
        &mut self,
        socket: RawFd,
        queue: &VecDeque<Segment>,
        pool: &Pool,
        tag: Tag,
    ) -> usize {
        let mut slices = [IoSlice::new(&[]); SEND_SEGMENTS];
        let (mut count, mut offered) = (0, 0);
        for (slice, segment) in slices.iter_mut().zip(queue) {
            let len = (segment.len as usize).min(self.send_bytes - offered);
            *slice = IoSlice::new(pool.bytes(segment.part(0, len)));
            count += 1;
            offered += len;
            if offered == self.send_bytes {
                break;
            }
        }
        let (socket, flags) = (borrow(socket), SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
        let sent = match &slices[..count] {
            [only] => rustix::net::send(socket, only, flags),
            many => {
                let mut nothing = SendAncillaryBuffer::default();
                rustix::net::sendmsg(socket, many, &mut nothing, flags)
            }
        };
        let blocked = sent.map_or_else(|error| error == Errno::AGAIN, |bytes| bytes < offered);
        if blocked && let Some(watch) = self.watch_of(tag) {
            // The next edge comes when there is room again.
            watch.writable = false;
        }
        self.complete(tag, sent.map_or_else(error_result, |bytes| bytes as i32));
        offered
    }

    pub(super) fn writable(&mut self, socket: RawFd, tag: Tag) {
        match self.watch(socket, tag) {
            Ok(watch) if watch.writable => self.complete(tag, 0),
            Ok(watch) => watch.out = Some(Kind::Writable),
            Err(error) => {
                // No event would ever report room. So the next send must fail: it ends the
                // connection, which may be broken already.
                let _ = rustix::net::shutdown(borrow(socket), Shutdown::Both);
                self.complete(tag, error_result(error));
            }
        }
    }

    pub(super) fn bell(&mut self, eventfd: RawFd, tag: Tag) {
        let edges = epoll::EventFlags::IN | epoll::EventFlags::ET;
        if let Err(error) = self.add(eventfd, tag, edges) {
            self.complete(tag, error_result(error));
        }
    }

    pub(super) fn connect(&mut self, socket: RawFd, address: &SockAddr, tag: Tag) {
        let started = match rustix::io::ioctl_fionbio(borrow(socket), true) {
            Ok(()) => SockRef::from(&borrow(socket)).connect(address),
            Err(error) => Err(error.into()),
        };
        let result = match started {
            Ok(()) => 0,
            Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => {
                match self.watch(socket, tag) {
                    Ok(watch) => {
                        watch.out = Some(Kind::Connect);
                        return;
                    }
                    Err(error) => error_result(error),
                }
            }
            Err(error) => -error.raw_os_error().unwrap_or(libc::EIO),
        };
        self.complete(tag, result);
    }

    pub(super) fn cancel(&mut self, target: Tag, tag: Tag) {
        let kind = target.kind();
        let found = match kind {
            Kind::Accept => self.shut(target),
            Kind::Receive => {
                self.watch_of(target).is_some_and(|watch| watch.receive.take().is_some())
            }
            Kind::Writable | Kind::Connect => self
                .watch_of(target)
                .is_some_and(|watch| watch.out.take_if(|out| *out == kind).is_some()),
            _ => false,
        };
        if found {
            self.complete(target, -libc::ECANCELED);
        }
        self.complete(tag, if found { 0 } else { -libc::ENOENT });
    }

    /// Ends the watch of a socket. If the socket lives on elsewhere, its edges are not for this
    /// core any more.
    pub(super) fn forget(&mut self, tag: Tag) {
        if let Some(watch) = self.watch_of(tag) {
            let Watch { socket, .. } = std::mem::take(watch);
            // The call can only fail if the socket is not watched.
            let _ = epoll::delete(&self.epoll, borrow(socket));
        }
    }

    // ---- the table ----

    fn add(&self, fd: RawFd, tag: Tag, flags: epoll::EventFlags) -> Result<(), Errno> {
        epoll::add(&self.epoll, borrow(fd), epoll::EventData::new_u64(tag.0), flags)
    }

    /// The socket's entry; with its first operation the socket is watched.
    fn watch(&mut self, socket: RawFd, tag: Tag) -> Result<&mut Watch, Errno> {
        use epoll::EventFlags;
        let slot = tag.slot() as usize;
        if slot >= self.watches.len() {
            self.watches.resize_with(slot + 1, Watch::default);
        }
        let owner = tag.sibling(Kind::Receive);
        if self.watches[slot].owner != Some(owner) {
            let inward = EventFlags::IN | EventFlags::PRI | EventFlags::RDHUP;
            self.add(socket, owner, inward | EventFlags::OUT | EventFlags::ET)?;
            self.watches[slot] = Watch { owner: Some(owner), socket, ..Watch::default() };
        }
        Ok(&mut self.watches[slot])
    }

    fn watch_of(&mut self, tag: Tag) -> Option<&mut Watch> {
        let watch = self.watches.get_mut(tag.slot() as usize)?;
        (watch.owner == Some(tag.sibling(Kind::Receive))).then_some(watch)
    }

    /// Stops accepting; `false` if that has ended already.
    fn shut(&mut self, tag: Tag) -> bool {
        let Some(at) =
            self.listen_sockets.iter().position(|(listen_socket, ..)| *listen_socket == tag)
        else {
            return false;
        };
        let (_, listener, _) = self.listen_sockets.swap_remove(at);
        // The call can only fail if the listener is not watched.
        let _ = epoll::delete(&self.epoll, borrow(listener));
        true
    }

    fn complete(&mut self, tag: Tag, result: i32) {
        self.batch.push(Completion::last(tag, result));
    }

    // ---- enter ----

    /// Sleeps until an operation can go on or the time is over, and carries out what it can.
    /// Completions are then in the batch.
    pub(super) fn enter(&mut self, wait: Wait, pool: &mut Pool) {
        if self.events.is_empty() {
            let idle = self.batch.is_empty() && self.ready.is_empty();
            self.wait(if idle { wait } else { Wait::No });
        }
        let mut events = std::mem::take(&mut self.events);
        for event in events.drain(..) {
            self.noticed(Tag(event.data.u64()), event.flags);
        }
        self.events = events;
        for _ in 0..self.ready.len() {
            let Some(tag) = self.ready.pop_front() else { break };
            self.fill(tag, pool);
        }
    }

    fn wait(&mut self, wait: Wait) {
        let time = match wait {
            Wait::No => Some(Timespec::default()),
            // A time too long for the kernel is as good as for ever.
            Wait::AtMost(time) => Timespec::try_from(time).ok(),
            Wait::Forever => None,
        };
        match epoll::wait(&self.epoll, spare_capacity(&mut self.events), time.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => panic!("epoll_wait failed: {error}"),
        }
    }

    fn noticed(&mut self, tag: Tag, flags: epoll::EventFlags) {
        use epoll::EventFlags;
        match tag.kind() {
            Kind::Accept => return self.let_in(tag),
            Kind::Bell => return self.batch.push(Completion::one_of(tag, 0)),
            _ => {}
        }
        let Some(watch) = self.watch_of(tag) else { return };
        let broken = EventFlags::HUP | EventFlags::ERR;
        watch.more_behind |= flags.intersects(broken | EventFlags::RDHUP | EventFlags::PRI);
        watch.readable |= watch.more_behind || flags.contains(EventFlags::IN);
        let room = flags.intersects(broken | EventFlags::OUT);
        watch.writable |= room;
        let out = if room { watch.out.take() } else { None };
        let list = watch.readable && watch.receive.is_some() && !watch.listed;
        watch.listed |= list;
        if list {
            self.ready.push_back(tag);
        }
        match out {
            Some(Kind::Connect) => self.connected(tag),
            Some(kind) => self.complete(tag.sibling(kind), 0),
            None => {}
        }
    }

    /// A connect has ended, one way or the other.
    fn connected(&mut self, tag: Tag) {
        let Some(watch) = self.watch_of(tag) else { return };
        let result = match SockRef::from(&borrow(watch.socket)).take_error() {
            Ok(None) => 0,
            Ok(Some(error)) | Err(error) => -error.raw_os_error().unwrap_or(libc::EIO),
        };
        self.complete(tag.sibling(Kind::Connect), result);
    }

    /// Takes what waits at a listener.
    fn let_in(&mut self, tag: Tag) {
        let Some((_, listener, often)) =
            self.listen_sockets.iter().find(|(listen_socket, ..)| *listen_socket == tag)
        else {
            return;
        };
        let (listener, often) = (borrow(*listener), *often);
        for _ in 0..ACCEPTS_PER_ENTER {
            match rustix::net::accept_with(listener, SocketFlags::CLOEXEC) {
                Ok(socket) if often == Accepts::One => {
                    self.shut(tag);
                    return self.complete(tag, socket.into_raw_fd());
                }
                Ok(socket) => {
                    let completion = Completion::one_of(tag, socket.into_raw_fd());
                    self.batch.push(completion);
                }
                Err(Errno::AGAIN) => return,
                Err(error) => {
                    self.shut(tag);
                    return self.complete(tag, error_result(error));
                }
            }
        }
    }

    /// Receives from one socket until it is empty or has had its share of this turn.
    fn fill(&mut self, tag: Tag, pool: &mut Pool) {
        let Some(watch) = self.watches.get_mut(tag.slot() as usize) else { return };
        if watch.owner != Some(tag) {
            return;
        }
        watch.listed = false;
        let Some(share) = watch.receive.filter(|_| watch.readable) else { return };
        let mut taken = 0;
        for _ in 0..RECEIVES_PER_ENTER {
            let most = share.most(taken);
            let Some(lent) = self.lent.front_mut() else {
                watch.receive = None;
                return self.batch.push(Completion::last(tag, -libc::ENOBUFS));
            };
            let (room, asked) = lent.room(pool, most);
            let result = rustix::net::recv(borrow(watch.socket), room, RecvFlags::DONTWAIT);
            let len = match result {
                Ok((len @ 1.., _)) => len,
                Err(Errno::AGAIN) => {
                    (watch.readable, watch.more_behind) = (false, false);
                    return;
                }
                Err(Errno::INTR) => continue,
                end => {
                    watch.receive = None;
                    let result = end.map_or_else(error_result, |_| 0);
                    return self.batch.push(Completion::last(tag, result));
                }
            };
            taken += len;
            let over = share.limit != 0 && taken >= share.limit as usize;
            let completion = if over { Completion::last } else { Completion::one_of };
            lent.filled += len;
            let (block, full) = (lent.block, lent.filled == pool.block_bytes());
            self.batch.push(completion(tag, len as i32).in_block(block, full));
            if full {
                self.lent.pop_front();
            }
            // The receive brought less than asked for: the socket is empty, and the next bytes will
            // be an edge.
            watch.readable = len == asked || watch.more_behind;
            if over {
                return watch.receive = None;
            }
            if !watch.readable {
                return;
            }
        }
        watch.listed = true;
        self.ready.push_back(tag);
    }

    /// The completions since the last call; give the list back with [`Self::give_back`].
    pub(super) fn take_batch(&mut self) -> Vec<Completion> {
        std::mem::take(&mut self.batch)
    }

    /// Returns an emptied list. Completions that came meanwhile stay in order.
    pub(super) fn give_back(&mut self, mut list: Vec<Completion>) {
        list.clear();
        list.append(&mut self.batch);
        self.batch = list;
    }

    /// Whether an enter would do something at once. For spinning; it asks the kernel.
    pub(super) fn has_work(&mut self) -> bool {
        if self.events.is_empty() && self.batch.is_empty() && self.ready.is_empty() {
            self.wait(Wait::No);
        }
        !(self.events.is_empty() && self.batch.is_empty() && self.ready.is_empty())
    }
}

impl Lent {
    /// The memory for the next bytes, `most` at most, and its length.
    fn room(self, pool: &mut Pool, most: usize) -> (&mut [u8], usize) {
        let len = most.min(pool.block_bytes() - self.filled);
        let start = usize::from(self.block) * pool.block_bytes() + self.filled;
        (&mut pool.ring_memory()[start..start + len], len)
    }
}

impl Share {
    /// How much the next receive may take after `taken` bytes.
    fn most(self, taken: usize) -> usize {
        let bound = |bound: u32| if bound == 0 { usize::MAX } else { bound as usize };
        bound(self.cap).min(bound(self.limit).saturating_sub(taken))
    }
}

/// A descriptor of the reactor's, which stays open for as long as an operation on it is armed.
fn borrow<'a>(fd: RawFd) -> BorrowedFd<'a> {
    // SAFETY: callers use it within one call, in which the reactor's table keeps the socket.
    unsafe { BorrowedFd::borrow_raw(fd) }
}

fn error_result(error: Errno) -> i32 {
    -error.raw_os_error()
}

impl Drop for Epoll {
    fn drop(&mut self) {
        for completion in &self.batch {
            if completion.tag.kind() == Kind::Accept && completion.result >= 0 {
                // SAFETY: the kernel gave us this descriptor and nobody was told of it.
                drop(unsafe { OwnedFd::from_raw_fd(completion.result) });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::net::ConnId;

    const SHARE: Share = Share { cap: 0, limit: 0 };

    fn made() -> (Epoll, Pool, Tag) {
        let (mut epoll, mut pool) = (Epoll::new(2, 1000).unwrap(), Pool::new(2, 64));
        epoll.lend(&mut pool);
        (epoll, pool, Tag::of(Kind::Receive, ConnId { slot: 3, generation: 7 }))
    }

    fn results(epoll: &mut Epoll, pool: &mut Pool) -> Vec<(Kind, i32, bool)> {
        epoll.enter(Wait::No, pool);
        let batch = epoll.take_batch();
        batch.iter().map(|c| (c.tag.kind(), c.result, c.more())).collect()
    }

    #[test]
    fn a_socket_that_was_given_away_wakes_nobody_here() {
        let (mut epoll, mut pool, tag) = made();
        let (mut peer, socket) = UnixStream::pair().unwrap();
        epoll.receive(socket.as_raw_fd(), SHARE, tag);
        epoll.cancel(tag, tag.sibling(Kind::Cancel));
        epoll.enter(Wait::No, &mut pool);
        epoll.take_batch();
        epoll.forget(tag);
        peer.write_all(b"for its next core").unwrap();
        assert!(!epoll.has_work());
        // Another connection may have the slot now.
        let next = Tag::of(Kind::Receive, ConnId { slot: 3, generation: 8 });
        let (mut other, second) = UnixStream::pair().unwrap();
        epoll.receive(second.as_raw_fd(), SHARE, next);
        other.write_all(b"mine").unwrap();
        assert_eq!(results(&mut epoll, &mut pool), [(Kind::Receive, 4, true)]);
    }

    #[test]
    fn a_receive_fills_blocks_one_after_the_other_and_starves_without() {
        let (mut epoll, mut pool, tag) = made();
        let (mut peer, socket) = UnixStream::pair().unwrap();
        epoll.receive(socket.as_raw_fd(), SHARE, tag);
        peer.write_all(&[1; 200]).unwrap();
        let receive = |result, more| (Kind::Receive, result, more);
        let starved = receive(-libc::ENOBUFS, false);
        let wanted = [receive(64, true), receive(64, true), starved];
        assert_eq!(results(&mut epoll, &mut pool), wanted);
        assert!(!epoll.has_work(), "nothing is armed");
    }

    #[test]
    fn a_cancel_ends_what_is_armed_and_finds_nothing_else() {
        let (mut epoll, mut pool, tag) = made();
        let (_peer, socket) = UnixStream::pair().unwrap();
        let cancel = tag.sibling(Kind::Cancel);
        epoll.cancel(tag, cancel);
        epoll.receive(socket.as_raw_fd(), SHARE, tag);
        epoll.cancel(tag.sibling(Kind::Writable), cancel);
        epoll.cancel(tag, cancel);
        let missing = (Kind::Cancel, -libc::ENOENT, false);
        let ended = (Kind::Receive, -libc::ECANCELED, false);
        let wanted = [missing, missing, ended, (Kind::Cancel, 0, false)];
        assert_eq!(results(&mut epoll, &mut pool), wanted);
    }
}
