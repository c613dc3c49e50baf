//! The incremental buffer ring: receive blocks lent to the kernel, filled bit by bit.
//!
//! The pool knows who has which block, and how far it is filled (`pool.rs`). Here are only the ring
//! of entries shared with the kernel, and the addresses.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use io_uring::cqueue;
use io_uring::types::BufRingEntry;

use super::fault::SetupError;
use super::tag::{Completion, Kind, Tag};
use super::uring::{GROUP, Share, Uring, Wait};
use crate::pool::{Pool, Segment};

/// `IOU_PBUF_RING_INC`: a receive takes as much of a block as it needs and leaves the rest.
const INCREMENTAL: u16 = 2;

/// The kernel wants the entries at the start of a page.
const PAGE: usize = 4096;

/// How often, and how long each time, the trial receive at set-up is waited for.
pub(super) const PROBE_ENTERS: u32 = 4;
pub(super) const PROBE_WAIT: Duration = Duration::from_millis(250);

/// The entries shared with the kernel. Must be dropped after the ring it was registered with.
pub(super) struct BlockRing {
    entries: NonNull<BufRingEntry>,
    layout: Layout,
    mask: u16,
    tail: u16,
    /// Blocks lent at a time.
    share: usize,
}

impl BlockRing {
    /// Registers a ring that can hold all of the pool's receive blocks, and of which `share` are
    /// lent at a time; none is lent yet.
    pub(super) fn register(ring: &Uring, pool: &Pool, share: usize) -> Result<Self, SetupError> {
        let count = pool.ring_blocks().next_power_of_two();
        let layout = Layout::array::<BufRingEntry>(count)
            .and_then(|layout| layout.align_to(PAGE))
            .map_err(|_| SetupError::Options("too many blocks"))?;
        // SAFETY: the layout is not empty, a pool has at least one block (checked by `Options`).
        let memory = unsafe { alloc_zeroed(layout) };
        let entries = NonNull::new(memory.cast()).ok_or(SetupError::Memory)?;
        let blocks = Self { entries, layout, mask: (count - 1) as u16, tail: 0, share };
        // SAFETY: the memory is as long as `count` entries and page-aligned, and lives as long as
        // `blocks`, which the reactor drops after the ring.
        let registered = unsafe {
            let address = entries.as_ptr() as u64;
            let submitter = ring.submitter();
            submitter.register_buf_ring_with_flags(address, count as u16, GROUP, INCREMENTAL)
        };
        let needs = ("incremental buffer rings (IOU_PBUF_RING_INC)", "6.12");
        registered.map_err(|e| SetupError::of("registering receive buffers", needs, e))?;
        Ok(blocks)
    }

    /// Lends the kernel receive blocks that came back, the latest first: they are still in the
    /// cache. The kernel goes through what it has in a circle, so it is given only a share.
    pub(super) fn lend(&mut self, pool: &mut Pool) {
        let before = self.tail;
        while pool.ring_lent() < self.share {
            let Some(block) = pool.lend() else { break };
            let len = pool.block_bytes();
            let start = usize::from(block) * len;
            let address = pool.ring_memory()[start..].as_mut_ptr().expose_provenance();
            self.put(block, address as u64, len as u32);
        }
        if self.tail != before {
            self.publish();
        }
    }

    fn put(&mut self, block: u16, address: u64, len: u32) {
        let index = usize::from(self.tail & self.mask);
        // SAFETY: the index is below the number of entries allocated.
        let entry = unsafe { self.entries.as_ptr().add(index) };
        // SAFETY: the entry lies in our memory, and the kernel does not look at it before the tail
        // has passed it: at most as many blocks are lent as there are entries.
        let entry = unsafe { &mut *entry };
        entry.set_addr(address);
        entry.set_len(len);
        entry.set_bid(block);
        self.tail = self.tail.wrapping_add(1);
    }

    fn publish(&self) {
        // SAFETY: the first entry of a registered ring; its spare field is the ring's tail.
        let tail = unsafe { BufRingEntry::tail(self.entries.as_ptr()) };
        // SAFETY: aligned, in our memory, and written by nobody but us; the kernel reads it.
        let tail = unsafe { AtomicU16::from_ptr(tail.cast_mut()) };
        // The kernel must see the entries before the tail that covers them.
        tail.store(self.tail, Ordering::Release);
    }
}

/// Tries out one receive, and which bounds this kernel takes: returns those to work with.
///
/// Older kernels call a multishot receive with a cap or a limit invalid. They are used without: one
/// receive then takes what the current block has room for, and one socket at most 32 of those
/// before the next has its turn.
pub(super) fn probe(ring: &mut Uring, pool: &mut Pool, share: Share) -> Result<Share, SetupError> {
    let step = "trying out a receive";
    let other = |error| SetupError::Other { step, error };
    let (mut peer, socket) = UnixStream::pair().map_err(other)?;
    peer.write_all(b"?").map_err(other)?;
    drop(peer);
    for share in [share, Share { limit: 0, ..share }, Share { cap: 0, limit: 0 }] {
        ring.receive(socket.as_raw_fd(), share, Tag::numbered(Kind::Receive, 0));
        match first_result(ring, pool) {
            Some(1) => return Ok(share),
            Some(errno) if errno == -libc::EINVAL => {}
            Some(errno) => {
                let needs = ("multishot receives", "6.0");
                let error = std::io::Error::from_raw_os_error(-errno);
                return Err(SetupError::of(step, needs, error));
            }
            None => return Err(other(std::io::ErrorKind::TimedOut.into())),
        }
    }
    Err(SetupError::TooOld { feature: "multishot receives", needs: "6.0" })
}

/// Waits for the trial receive to end: one byte and the end of the stream, or a refusal.
fn first_result(ring: &mut Uring, pool: &mut Pool) -> Option<i32> {
    let mut first = None;
    for _ in 0..PROBE_ENTERS {
        ring.enter(Wait::AtMost(PROBE_WAIT));
        let batch = ring.take_batch();
        for completion in &batch {
            if let Some(segment) = taken(pool, *completion) {
                pool.release(segment);
            }
            first = first.or(Some(completion.result));
        }
        let over = batch.last().is_some_and(|completion| !completion.more());
        ring.give_back(batch);
        if over {
            return first;
        }
    }
    None
}

/// The segment that a receive filled. The pool has to count it even if its connection is gone.
pub(super) fn taken(pool: &mut Pool, completion: Completion) -> Option<Segment> {
    let len = usize::try_from(completion.result).ok().filter(|len| *len > 0)?;
    let block = cqueue::buffer_select(completion.flags)?;
    Some(pool.filled(block, len, cqueue::buffer_more(completion.flags)))
}

impl Drop for BlockRing {
    fn drop(&mut self) {
        // SAFETY: allocated in `register` with this layout; the ring that knew it is gone.
        unsafe { dealloc(self.entries.as_ptr().cast(), self.layout) };
    }
}
