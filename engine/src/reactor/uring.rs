//! The ring: set-up, one function per operation, one enter per loop turn.
//!
//! The kernel works for us only inside [`Uring::enter`]. `DEFER_TASKRUN` runs receives there and
//! nowhere else. A send is `MSG_DONTWAIT`, so it has ended when the enter that submitted it
//! returns. So between turns operations hold no payload memory except the receive blocks that were
//! lent (`buffer.rs`).

use std::collections::VecDeque;
use std::os::fd::{AsRawFd, RawFd};
use std::time::Duration;

use io_uring::types::{CancelBuilder, Fd, SubmitArgs, Timespec};
use io_uring::{CompletionQueue, EnterFlags, IoUring, SubmissionQueue, Submitter, opcode, squeue};
use socket2::SockAddr;

use super::fault::SetupError;
use super::options::Options;
use super::tag::{Completion, Tag};
use crate::pool::{Pool, Segment};

/// Segments of one send: the kernel keeps few more in its fast path.
pub(super) const SEND_SEGMENTS: usize = 64;

/// I/O vectors for the sends of one enter; when they are spent, the enter comes early.
const VECTORS: usize = 8 * 1024;

/// How many times as many completions as submissions fit: one submission (accept, receive) can
/// complete many times.
const COMPLETIONS_PER_ENTRY: u32 = 8;

/// How often the kernel may refuse to take submissions for want of memory before we give up.
const SUBMIT_TRIES: u32 = 100_000;

/// How long a dropped ring waits for its last operations.
const CANCEL_WAIT: Duration = Duration::from_secs(1);

/// The only buffer group.
pub(super) const GROUP: u16 = 0;

/// The bounds of a receive; 0 is no bound. Only newer kernels know them: see `buffer::probe`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// Bytes at a time.
    pub cap: u32,
    /// Bytes in all; then the receive ends and has to be armed again.
    pub limit: u32,
}

impl Share {
    /// The bounds in the options.
    pub(super) fn of(options: &Options) -> Self {
        Self { cap: options.receive_cap as u32, limit: options.receive_limit as u32 }
    }
}

/// How long an enter may sleep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// The enter does not sleep.
    No,
    /// It sleeps for so long at most.
    AtMost(Duration),
    /// It sleeps until something happens.
    Forever,
}

/// How many connections an accept takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accepts {
    /// All that come, until it is cancelled or fails.
    Many,
    /// One; then it has ended.
    One,
}

/// What the kernel reports of a send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Report {
    /// The kernel reports how the send ended.
    Always,
    /// The kernel reports only a send that took less than everything, so that success ends no
    /// sleep.
    Failure,
}

/// Owns the ring that [`Uring`]'s parts borrow; dropped after them.
struct OwnedRing(*mut IoUring);

impl Drop for OwnedRing {
    fn drop(&mut self) {
        // SAFETY: the pointer came from `Box::leak` in `Uring::new`, this is its only owner, and
        // the borrows made of it there are fields declared before this one, so dropped before it.
        drop(unsafe { Box::from_raw(self.0) });
    }
}

/// One core's ring. It stays on the thread that made it (`SINGLE_ISSUER`): its raw pointers make it
/// neither `Send` nor `Sync`.
pub(super) struct Uring {
    /// The ring's descriptor, by which other rings ring it.
    fd: RawFd,
    submitter: Submitter<'static>,
    sq: SubmissionQueue<'static>,
    cq: CompletionQueue<'static>,
    _owned_ring: OwnedRing,
    /// Completions that were taken out of the ring and not reported yet.
    batch: Vec<Completion>,
    /// I/O vectors that the kernel reads while it takes submissions. They are reused when it has
    /// taken them all.
    vectors: Box<[libc::iovec]>,
    vectors_used: usize,
    heads: Box<[libc::msghdr]>,
    heads_used: usize,
    send_bytes: usize,
}

impl Uring {
    pub(super) fn new(entries: u32, send_bytes: usize, flagged: bool) -> Result<Self, SetupError> {
        let mut builder = IoUring::builder();
        builder
            .setup_cqsize(entries * COMPLETIONS_PER_ENTRY)
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_submit_all();
        if flagged {
            // A spinning core sees in memory that there is work, without asking the kernel.
            builder.setup_taskrun_flag();
        }
        let step = "io_uring_setup";
        let needs = ("SINGLE_ISSUER and DEFER_TASKRUN rings", "6.1");
        let ring = builder.build(entries).map_err(|e| SetupError::of(step, needs, e))?;
        let fd = ring.as_raw_fd();
        let home = OwnedRing(Box::into_raw(Box::new(ring)));
        // SAFETY: just made by `Box::into_raw`, nobody else has it; `OwnedRing` frees it last.
        let ring: &'static mut IoUring = unsafe { &mut *home.0 };
        let (mut submitter, sq, cq) = ring.split();
        // A seccomp profile may allow one call and forbid the other.
        // SAFETY: no argument is passed, and nothing is submitted.
        unsafe { submitter.enter::<libc::sigset_t>(0, 0, EnterFlags::GETEVENTS.bits(), None) }
            .map_err(|e| SetupError::of("io_uring_enter", needs, e))?;
        // This spares a table look-up per enter; without it everything works the same.
        let _ = submitter.register_ring_fd();
        let vector = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
        // SAFETY: msghdr is plain data of integers and pointers, for which zero is a valid value.
        let head: libc::msghdr = unsafe { std::mem::zeroed() };
        Ok(Self {
            fd,
            submitter,
            batch: Vec::with_capacity(cq.capacity()),
            heads: vec![head; sq.capacity()].into_boxed_slice(),
            sq,
            cq,
            _owned_ring: home,
            vectors: vec![vector; VECTORS].into_boxed_slice(),
            vectors_used: 0,
            heads_used: 0,
            send_bytes,
        })
    }

    pub(super) fn submitter(&self) -> &Submitter<'static> {
        &self.submitter
    }

    // ---- operations ----

    /// Accepts connections, until it is cancelled or fails.
    pub(super) fn accept(&mut self, listener: RawFd, often: Accepts, tag: Tag) {
        let (listener, flags) = (Fd(listener), libc::SOCK_CLOEXEC);
        let entry = match often {
            Accepts::Many => opcode::AcceptMulti::new(listener).flags(flags).build(),
            Accepts::One => {
                let nobody = std::ptr::null_mut();
                opcode::Accept::new(listener, nobody, nobody.cast()).flags(flags).build()
            }
        };
        self.push(entry, tag);
    }

    /// Receives into lent blocks until it is cancelled, ends, or has had its limit.
    pub(super) fn receive(&mut self, socket: RawFd, share: Share, tag: Tag) {
        let entry = opcode::RecvMulti::new(Fd(socket), GROUP).len(share.cap).build();
        self.push(with_optlen(entry, share.limit), tag);
    }

    /// Sends from the front of a queue as much as one send may; returns how many bytes it offered.
    ///
    /// The segments must stay claimed and unchanged until the next enter has returned.
    pub(super) fn send(
        &mut self,
        socket: RawFd,
        queue: &VecDeque<Segment>,
        pool: &Pool,
        report: Report,
        tag: Tag,
    ) -> usize {
        // Room is made here and not at the push, because an early enter frees the vectors too.
        if self.sq.is_full() || self.vectors_used + SEND_SEGMENTS > self.vectors.len() {
            self.submit_all();
        }
        let first = self.vectors_used;
        let mut offered = 0;
        for segment in queue.iter().take(SEND_SEGMENTS) {
            let len = (segment.len as usize).min(self.send_bytes - offered);
            let bytes = pool.bytes(segment.part(0, len));
            let base = bytes.as_ptr().cast_mut().cast();
            self.vectors[self.vectors_used] = libc::iovec { iov_base: base, iov_len: len };
            self.vectors_used += 1;
            offered += len;
            if offered == self.send_bytes {
                break;
            }
        }
        // With `MSG_WAITALL` a send that took only a part counts as failed, though it does not
        // wait.
        let (whole, skip) = match report {
            Report::Always => (0, squeue::Flags::empty()),
            Report::Failure => (libc::MSG_WAITALL, squeue::Flags::SKIP_SUCCESS),
        };
        let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT | whole;
        let vectors = &mut self.vectors[first..self.vectors_used];
        let entry = if let [only] = vectors {
            let base = only.iov_base.cast_const().cast();
            self.vectors_used = first;
            opcode::Send::new(Fd(socket), base, offered as u32).flags(flags).build()
        } else {
            let head = &mut self.heads[self.heads_used];
            self.heads_used += 1;
            head.msg_iov = vectors.as_mut_ptr();
            #[cfg(not(target_env = "musl"))]
            {
                head.msg_iovlen = vectors.len();
            }
            // The field is an int, and a send has few segments.
            #[cfg(target_env = "musl")]
            {
                head.msg_iovlen = vectors.len() as libc::c_int;
            }
            opcode::SendMsg::new(Fd(socket), head).flags(flags as u32).build()
        };
        self.push(entry.flags(skip), tag);
        offered
    }

    /// Completes whenever the socket takes bytes again or is broken, until it is cancelled.
    ///
    /// The kernel also reports the peer's FIN, which it is not asked for (`IO_POLL_UNMASK`). For a
    /// peer that has sent its FIN and takes nothing, a poll that ends with its first report would
    /// end at once, each time it is made. This poll reports only changes: after a send that finds
    /// no room the kernel reports the next room.
    pub(super) fn writable(&mut self, socket: RawFd, tag: Tag) {
        let entry = opcode::PollAdd::new(Fd(socket), libc::POLLOUT as u32).multi(true).build();
        self.push(entry, tag);
    }

    /// Completes whenever an eventfd is written. The counter is never read: only edges count.
    pub(super) fn bell(&mut self, eventfd: RawFd, tag: Tag) {
        let entry = opcode::PollAdd::new(Fd(eventfd), libc::POLLIN as u32).multi(true).build();
        self.push(entry, tag);
    }

    /// The descriptor that [`Self::ring`] of another ring takes.
    pub(super) fn fd(&self) -> RawFd {
        self.fd
    }

    /// Completes in another ring, under `theirs`; here, under `ours`, only if that failed.
    pub(super) fn ring(&mut self, ring: RawFd, theirs: Tag, ours: Tag) {
        let entry = opcode::MsgRingData::new(Fd(ring), 0, theirs.0, None).build();
        self.push(entry.flags(squeue::Flags::SKIP_SUCCESS), ours);
    }

    /// Connects. The address must stay where it is until the next enter has returned.
    pub(super) fn connect(&mut self, socket: RawFd, address: &SockAddr, tag: Tag) {
        let name = address.as_ptr().cast();
        self.push(opcode::Connect::new(Fd(socket), name, address.len()).build(), tag);
    }

    /// Cancels the operation that bears `target`. That one's own completion still comes.
    pub(super) fn cancel(&mut self, target: Tag, tag: Tag) {
        self.push(opcode::AsyncCancel::new(target.0).build(), tag);
    }

    fn push(&mut self, entry: squeue::Entry, tag: Tag) {
        if self.sq.is_full() {
            self.submit_all();
        }
        let entry = entry.user_data(tag.0);
        // SAFETY: what the entry points to (addresses, vectors and message heads, payload) stays
        // valid until the kernel has taken it, as the methods above demand or see to themselves;
        // receives point to nothing, their blocks outlive the ring (`buffer.rs`).
        let pushed = unsafe { self.sq.push(&entry) };
        assert!(pushed.is_ok(), "the submission queue was just emptied");
    }

    // ---- enter ----

    /// Submits everything, runs what the kernel put off, and sleeps until there is a completion or
    /// the time is over. Completions are then in the batch.
    pub(super) fn enter(&mut self, wait: Wait) {
        self.sq.sync();
        let result = match wait {
            Wait::No => self.enter_now(),
            Wait::Forever => self.submitter.submit_and_wait(1),
            Wait::AtMost(time) => {
                let time = Timespec::from(time);
                self.submitter.submit_with_args(1, &SubmitArgs::new().timespec(&time))
            }
        };
        let refused = check(result);
        self.sq.sync();
        self.reap();
        if refused || !self.sq.is_empty() {
            self.submit_all();
        }
        // Completions that found the queue full wait in the kernel. The batch must be complete,
        // because every send has to be known as ended now.
        while self.sq.cq_overflow() {
            check(self.enter_now());
            self.reap();
        }
        self.forget_vectors();
    }

    /// Hands all submissions to the kernel without waiting.
    fn submit_all(&mut self) {
        for _ in 0..SUBMIT_TRIES {
            self.sq.sync();
            let refused = check(self.enter_now());
            self.sq.sync();
            // A full completion queue is one reason to refuse.
            self.reap();
            if self.sq.is_empty() {
                return self.forget_vectors();
            }
            if refused {
                std::thread::yield_now();
            }
        }
        panic!("the kernel takes no submissions (out of memory?)");
    }

    fn enter_now(&self) -> std::io::Result<usize> {
        let flags = EnterFlags::GETEVENTS.bits();
        // SAFETY: no argument is passed, and the number of submissions is the queue's own.
        unsafe { self.submitter.enter::<libc::sigset_t>(self.sq.len() as u32, 0, flags, None) }
    }

    fn forget_vectors(&mut self) {
        self.vectors_used = 0;
        self.heads_used = 0;
    }

    fn reap(&mut self) {
        self.cq.sync();
        self.batch.extend((&mut self.cq).map(|entry| Completion {
            tag: Tag(entry.user_data()),
            result: entry.result(),
            flags: entry.flags(),
        }));
        self.cq.sync();
    }

    /// The completions since the last call; give the list back with [`Self::give_back`].
    pub(super) fn take_batch(&mut self) -> Vec<Completion> {
        std::mem::take(&mut self.batch)
    }

    /// Returns an emptied list. Completions that came meanwhile (of an early enter) stay in order.
    pub(super) fn give_back(&mut self, mut list: Vec<Completion>) {
        list.clear();
        list.append(&mut self.batch);
        self.batch = list;
    }

    /// Whether an enter would do something at once. For spinning; needs a flagged ring.
    pub(super) fn has_work(&mut self) -> bool {
        self.cq.sync();
        !self.batch.is_empty()
            || !self.sq.is_empty()
            || !self.cq.is_empty()
            || self.sq.taskrun()
            || self.sq.cq_overflow()
    }
}

/// Sets a submission's `optlen`, which for a multishot receive is the bytes it may take in all.
/// The crate offers no way to.
fn with_optlen(mut entry: squeue::Entry, optlen: u32) -> squeue::Entry {
    /// Where the field is in `struct io_uring_sqe`, the kernel's binary interface.
    const OFFSET: usize = 44;
    const { assert!(size_of::<squeue::Entry>() == 64) };
    let field = (&raw mut entry).cast::<u8>().wrapping_add(OFFSET).cast::<u32>();
    // SAFETY: an entry is the kernel's 64-byte structure of plain integers (`repr(C)`, size checked
    // above); the field lies inside, aligned, and any value is valid.
    unsafe { field.write(optlen) };
    entry
}

/// Pins the calling thread to a CPU.
pub(super) fn pin(cpu: usize) -> Result<(), SetupError> {
    let refused = |error| SetupError::Pin { cpu, error };
    if cpu >= libc::CPU_SETSIZE as usize {
        return Err(refused(std::io::ErrorKind::InvalidInput.into()));
    }
    // SAFETY: cpu_set_t is a plain bit field, for which zero is a valid value.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: the CPU's number was checked against the set's size.
    unsafe { libc::CPU_SET(cpu, &mut set) };
    // SAFETY: the set lives for the call and its own size is given.
    let result =
        unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set) };
    if result < 0 { Err(refused(std::io::Error::last_os_error())) } else { Ok(()) }
}

/// Whether the kernel refused to take submissions for now.
fn check(result: std::io::Result<usize>) -> bool {
    let Err(error) = result else { return false };
    match error.raw_os_error() {
        Some(libc::ETIME | libc::EINTR) => false,
        Some(libc::EAGAIN | libc::EBUSY) => true,
        _ => panic!("io_uring_enter failed: {error}"),
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        // Nothing may be under way when the memory it could be written to goes; a registered ring
        // would outlive its descriptor, and with it the ports its accepts hold.
        let wait = Some(Timespec::from(CANCEL_WAIT));
        // ENOENT is the usual answer: there was nothing left to cancel.
        let _ = self.submitter.register_sync_cancel(wait, CancelBuilder::any());
        // A cancelled operation releases its file only when its deferred work is run, a few at a
        // time. Entries that were never submitted stay so.
        let flags = EnterFlags::GETEVENTS.bits();
        loop {
            self.batch.clear();
            // SAFETY: no argument is passed, and nothing is submitted.
            let ran = unsafe { self.submitter.enter::<libc::sigset_t>(0, 0, flags, None) };
            self.reap();
            if ran.is_err() || self.batch.is_empty() {
                break;
            }
        }
        let _ = self.submitter.unregister_ring_fd();
    }
}
