//! Bounded mailboxes between threads and their doorbells.
//!
//! The queue carries the message; a bell only ends a core's sleep. A core that is awake looks into
//! its queue once per loop turn and is never rung. `presence.rs` has the protocol by which no
//! message is slept through.
//!
//! A mailbox has two bells. Any thread can ring its eventfd. A core with an io_uring of its own
//! sends a message into the sleeper's io_uring instead (`MSG_RING`). That spares the sender a
//! write, and the sleeper a poll. It is safe, because a bell is good for one sleep only, and the
//! sleeper's io_uring exists while that sleep lasts. If the io_uring is gone, or its descriptor has
//! another owner by now, the sleep is over: its core has looked into the queue since.
//!
//! A mailbox outlives its receiving end, so senders need not hear of a core's panic. The next
//! receiver [takes the place](Sender::reopen) of the dead one, and the messages that waited for
//! that one are dropped.
#![expect(unsafe_code, reason = "the eventfd has no safe constructor in std")]

use std::fmt;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicU8, AtomicU64, Ordering};

use crossbeam::queue::ArrayQueue;
use crossbeam::utils::CachePadded;

use presence::{Duty, Presence};

mod presence;

/// A message that found its mailbox full or without a receiver. The sender gets it back.
#[derive(Debug, PartialEq, Eq)]
pub struct Full<T>(pub T);

impl<T> fmt::Display for Full<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the mailbox is full")
    }
}

impl<T: fmt::Debug> std::error::Error for Full<T> {}

struct Shared<T> {
    queue: ArrayQueue<T>,
    /// On a cache line apart from the queue's counters: every sender reads it, and the receiver
    /// writes it.
    presence: CachePadded<Presence<AtomicU8>>,
    shown: CachePadded<AtomicU64>,
    doorbell: Arc<Doorbell>,
}

impl<T> Shared<T> {
    /// Drops the messages that wait; senders may go on sending meanwhile.
    fn empty(&self) {
        for _ in 0..self.queue.capacity() {
            if self.queue.pop().is_none() {
                break;
            }
        }
    }
}

/// The receiving end; one core owns it.
pub struct Mailbox<T> {
    shared: Arc<Shared<T>>,
}

/// What can wake one core.
pub struct Doorbell {
    eventfd: File,
    /// The io_uring in which the core sleeps, or [`NO_RING`].
    ring: AtomicI32,
}

const NO_RING: RawFd = -1;

impl Doorbell {
    /// Rings by the eventfd, which wakes the core whatever it sleeps in.
    pub fn ring(&self) {
        // The write fails only when the counter is at its end. Then the bell has been rung already.
        let _ = (&self.eventfd).write(&1_u64.to_ne_bytes());
    }
}

impl fmt::Debug for Doorbell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Doorbell").field("eventfd", &self.eventfd.as_raw_fd()).finish()
    }
}

/// The duty to wake a core, which no other sender has. Dropping it rings the eventfd, so that even
/// a sender that panics leaves no core asleep.
#[derive(Debug)]
#[must_use = "dropped, it rings by the eventfd"]
pub struct Bell(Option<Arc<Doorbell>>);

impl Bell {
    /// The io_uring in which the core sleeps, if it has one. It may be gone by the time it is used.
    /// Then the core does not sleep any more, or the eventfd has to be rung.
    #[must_use]
    pub fn sleeps_in(&self) -> Option<RawFd> {
        let ring = self.0.as_ref()?.ring.load(Ordering::Relaxed);
        (ring != NO_RING).then_some(ring)
    }

    /// The doorbell that has to be rung.
    #[must_use]
    pub fn doorbell(&self) -> Option<&Arc<Doorbell>> {
        self.0.as_ref()
    }

    /// The core was woken in another way.
    pub fn rung(mut self) {
        self.0 = None;
    }
}

impl Drop for Bell {
    fn drop(&mut self) {
        if let Some(doorbell) = self.0.take() {
            doorbell.ring();
        }
    }
}

/// Senders may ring a core's io_uring for as long as this value lives.
#[derive(Debug)]
pub struct Published(Arc<Doorbell>);

impl Drop for Published {
    fn drop(&mut self) {
        self.0.ring.store(NO_RING, Ordering::Relaxed);
    }
}

/// A sending end; any thread may have one.
pub struct Sender<T> {
    shared: Arc<Shared<T>>,
}

/// A mailbox for at most `capacity` messages.
///
/// # Errors
/// When the kernel gives no eventfd (the process is out of descriptors).
///
/// # Panics
/// If `capacity` is 0.
pub fn mailbox<T>(capacity: usize) -> io::Result<(Sender<T>, Mailbox<T>)> {
    // SAFETY: eventfd takes two integers and touches no memory of ours.
    let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given us this descriptor; nobody else owns it.
    let bell = unsafe { OwnedFd::from_raw_fd(fd) };
    let shared = Arc::new(Shared {
        queue: ArrayQueue::new(capacity),
        presence: CachePadded::new(Presence::new()),
        shown: CachePadded::new(AtomicU64::new(0)),
        doorbell: Arc::new(Doorbell { eventfd: File::from(bell), ring: AtomicI32::new(NO_RING) }),
    });
    Ok((Sender { shared: Arc::clone(&shared) }, Mailbox { shared }))
}

impl<T> Sender<T> {
    /// Puts a message into the mailbox and wakes its core if it sleeps.
    ///
    /// # Errors
    /// [`Full`] gives the message back.
    pub fn send(&self, message: T) -> Result<(), Full<T>> {
        // A bell that is dropped rings.
        self.deliver(message).map(drop)
    }

    /// Puts a message into the mailbox; if its core sleeps, the caller has to ring the bell.
    ///
    /// # Errors
    /// [`Full`] gives the message back.
    pub fn deliver(&self, message: T) -> Result<Option<Bell>, Full<T>> {
        if !self.is_open() {
            return Err(Full(message));
        }
        self.shared.queue.push(message).map_err(Full)?;
        match self.shared.presence.pushed() {
            Duty::Nothing => Ok(None),
            Duty::Ring => Ok(Some(Bell(Some(Arc::clone(&self.shared.doorbell))))),
            Duty::Empty => {
                self.shared.empty();
                Ok(None)
            }
        }
    }

    /// Whether somebody receives; between two lives of a core and after the last, nobody does.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.shared.presence.is_there()
    }

    /// How many messages wait now.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.shared.queue.len()
    }

    /// A new receiving end, after the last one was dropped. The messages that waited for that one
    /// are dropped. None if there is a receiver, or the mailbox is shut.
    #[must_use]
    pub fn reopen(&self) -> Option<Mailbox<T>> {
        if self.is_open() {
            return None;
        }
        self.shared.empty();
        self.shared.presence.come_back().then(|| Mailbox { shared: Arc::clone(&self.shared) })
    }

    /// Shuts the mailbox after its last receiver: it takes no more messages, and those that wait
    /// are dropped.
    pub fn shut(&self) {
        self.shared.presence.shut(|| self.shared.empty());
    }

    /// The number that the mailbox's owner [shows](Self::show) to its senders.
    #[must_use]
    pub fn shown(&self) -> u64 {
        self.shared.shown.load(Ordering::Relaxed)
    }

    /// Shows a number to the senders. Only the mailbox's owner should.
    pub fn show(&self, word: u64) {
        self.shared.shown.store(word, Ordering::Relaxed);
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

impl<T> Mailbox<T> {
    /// The next message.
    pub fn receive(&mut self) -> Option<T> {
        // Popping from an empty queue costs a full fence; looking does not.
        if self.shared.queue.is_empty() { None } else { self.shared.queue.pop() }
    }

    /// Whether nothing waits now.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.shared.queue.is_empty()
    }

    /// How many messages fit: also how many a core takes in one loop turn.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.shared.queue.capacity()
    }

    /// Asks senders to ring from now on. `false`: a message is there already, so the core must not
    /// sleep.
    pub fn fall_asleep(&mut self) -> bool {
        self.shared.presence.fall_asleep(|| self.shared.queue.is_empty())
    }

    /// The core is awake: senders need not ring any more.
    pub fn wake(&mut self) {
        self.shared.presence.wake();
    }

    /// The eventfd: it becomes readable when it is rung.
    #[must_use]
    pub fn bell(&self) -> RawFd {
        self.shared.doorbell.eventfd.as_raw_fd()
    }

    /// Tells senders of the ring that this core will sleep in, if it has one.
    #[must_use = "it counts for as long as it lives"]
    pub fn publish(&self, ring: Option<RawFd>) -> Published {
        self.shared.doorbell.ring.store(ring.unwrap_or(NO_RING), Ordering::Relaxed);
        Published(Arc::clone(&self.shared.doorbell))
    }
}

impl<T> Drop for Mailbox<T> {
    fn drop(&mut self) {
        self.shared.presence.leave();
    }
}

impl<T> fmt::Debug for Mailbox<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mailbox").field("waiting", &self.shared.queue.len()).finish()
    }
}

impl<T> fmt::Debug for Sender<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sender").field("waiting", &self.shared.queue.len()).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn rings(mailbox: &Mailbox<u32>) -> u64 {
        let mut count = [0; 8];
        match (&mailbox.shared.doorbell.eventfd).read_exact(&mut count) {
            Ok(()) => u64::from_ne_bytes(count),
            Err(_) => 0,
        }
    }

    #[test]
    fn an_awake_core_is_not_rung_and_a_sleeping_one_once() {
        let (sender, mut mailbox) = mailbox(8).unwrap();
        let other = sender.clone();
        sender.send(1).unwrap();
        assert_eq!((rings(&mailbox), mailbox.receive()), (0, Some(1)));
        assert!(mailbox.fall_asleep());
        sender.send(2).unwrap();
        other.send(3).unwrap();
        assert_eq!(rings(&mailbox), 1);
        assert!(!mailbox.fall_asleep(), "two messages wait");
        assert_eq!(
            (mailbox.receive(), mailbox.receive(), mailbox.receive()),
            (Some(2), Some(3), None)
        );
    }

    #[test]
    fn a_full_mailbox_gives_the_message_back() {
        let (sender, mut mailbox) = mailbox(1).unwrap();
        sender.send(1).unwrap();
        assert_eq!(sender.send(2), Err(Full(2)));
        assert_eq!(mailbox.receive(), Some(1));
        sender.send(3).unwrap();
    }

    #[test]
    fn the_next_receiver_gets_what_is_sent_after_the_last_ones_end() {
        let (sender, mut first) = mailbox(8).unwrap();
        let dropped = Arc::new(());
        assert!(sender.reopen().is_none(), "there is a receiver");
        assert!(first.fall_asleep());
        sender.send(Arc::clone(&dropped)).unwrap();
        drop(first);
        assert!(!sender.is_open() && sender.send(Arc::clone(&dropped)).is_err());
        let mut second = sender.reopen().unwrap();
        assert_eq!(Arc::strong_count(&dropped), 1, "what waited for the first is gone");
        assert!(second.receive().is_none() && sender.reopen().is_none());
        sender.send(Arc::clone(&dropped)).unwrap();
        assert!(second.receive().is_some());
        drop(second);
        sender.shut();
        assert!(sender.reopen().is_none() && sender.send(dropped).is_err());
    }

    #[test]
    fn a_shut_mailbox_drops_what_waits_and_stays_shut() {
        let (sender, inbox) = mailbox(8).unwrap();
        let waits = Arc::new(());
        sender.send(Arc::clone(&waits)).unwrap();
        sender.shut();
        assert_eq!(Arc::strong_count(&waits), 1);
        drop(inbox);
        assert!(!sender.is_open() && sender.reopen().is_none());
    }

    #[test]
    fn a_bell_tells_of_the_ring_only_while_that_is_published() {
        let (sender, mut inbox) = mailbox(8).unwrap();
        let published = inbox.publish(Some(7));
        assert!(inbox.fall_asleep());
        let bell = sender.deliver(1).unwrap().expect("it sleeps");
        assert_eq!(bell.sleeps_in(), Some(7));
        drop(published);
        assert_eq!(bell.sleeps_in(), None);
        drop(bell);
        assert_eq!((rings(&inbox), inbox.receive()), (1, Some(1)), "dropped, it rings");
        assert!(inbox.fall_asleep());
        sender.deliver(2).unwrap().expect("it sleeps").rung();
        assert_eq!(rings(&inbox), 0);
    }

    #[test]
    fn no_message_is_slept_through() {
        const COUNT: u32 = 20_000;
        let (sender, mut mailbox) = mailbox(64).unwrap();
        let thread = std::thread::spawn(move || {
            for i in 0..COUNT {
                let mut message = i;
                while let Err(Full(back)) = sender.send(message) {
                    message = back;
                    std::thread::yield_now();
                }
            }
        });
        let mut next = 0;
        while next < COUNT {
            while let Some(got) = mailbox.receive() {
                assert_eq!(got, next);
                next += 1;
            }
            if next < COUNT && mailbox.fall_asleep() {
                let mut poll =
                    libc::pollfd { fd: mailbox.bell(), events: libc::POLLIN, revents: 0 };
                // SAFETY: one pollfd that lives on this stack frame.
                let ready = unsafe { libc::poll(&raw mut poll, 1, 5_000) };
                assert_eq!(ready, 1, "slept through message {next}");
                mailbox.wake();
                rings(&mailbox);
            }
        }
        thread.join().unwrap();
    }
}
