//! Bounded mailboxes between threads and their doorbell.
//!
//! The queue carries the message; the bell only ends a core's sleep. A core that is awake polls its
//! queue once per loop turn and is never rung. The bell is an eventfd because the control thread
//! has no ring of its own to send from; a core that rings another core could ring by `MSG_RING`
//! instead (it spares the write), behind the same [`Sender::send`].
//!
//! # The asleep flag
//! Two writes and two reads that must not both miss each other:
//!
//! | receiver ([`Mailbox::fall_asleep`]) | sender ([`Sender::send`]) |
//! |---|---|
//! | `asleep = true` | push onto the queue |
//! | `fence(SeqCst)` | `fence(SeqCst)` |
//! | queue empty? then sleep | `asleep`? then ring |
//!
//! The two fences are in one total order. If the receiver's is first, the sender reads
//! `asleep == true` and rings; if the sender's is first, the receiver sees the message and stays
//! awake. Without the fences both could read the old value (store buffering) and a message would
//! wait for the next unrelated wake-up. The eventfd remembers a ring that comes before the sleep.
#![expect(unsafe_code, reason = "the eventfd has no safe constructor in std")]

use std::fmt;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};

use crossbeam::queue::ArrayQueue;
use crossbeam::utils::CachePadded;

/// A message that found its mailbox full: the sender has it back.
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
    /// Apart from the queue's own counters: every sender reads it, the receiver writes it.
    asleep: CachePadded<AtomicBool>,
    bell: Arc<File>,
}

/// The receiving end; one core owns it.
pub struct Mailbox<T> {
    shared: Arc<Shared<T>>,
}

/// What wakes a sleeping core.
pub struct Bell {
    bell: Arc<File>,
}

impl Bell {
    /// Rings it.
    pub fn ring(&self) {
        // It fails only when the counter is at its end: then the bell has been rung already.
        let _ = (&*self.bell).write(&1_u64.to_ne_bytes());
    }
}

impl fmt::Debug for Bell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bell").field("eventfd", &self.bell.as_raw_fd()).finish()
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
        asleep: CachePadded::new(AtomicBool::new(false)),
        bell: Arc::new(File::from(bell)),
    });
    Ok((Sender { shared: Arc::clone(&shared) }, Mailbox { shared }))
}

impl<T> Sender<T> {
    /// Puts a message into the mailbox and wakes its core if it sleeps.
    ///
    /// # Errors
    /// [`Full`] gives the message back.
    pub fn send(&self, message: T) -> Result<(), Full<T>> {
        if let Some(bell) = self.post(message)? {
            bell.ring();
        }
        Ok(())
    }

    /// Puts a message into the mailbox; if its core sleeps, the caller has to ring the bell.
    ///
    /// # Errors
    /// [`Full`] gives the message back.
    pub fn post(&self, message: T) -> Result<Option<Bell>, Full<T>> {
        self.shared.queue.push(message).map_err(Full)?;
        fence(Ordering::SeqCst);
        // The plain read first: an awake core's flag is only read, its cache line stays shared.
        // The swap lets one of several senders ring.
        let sleeps = self.shared.asleep.load(Ordering::Relaxed)
            && self.shared.asleep.swap(false, Ordering::Relaxed);
        Ok(sleeps.then(|| Bell { bell: Arc::clone(&self.shared.bell) }))
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
        // Popping an empty queue costs a full fence, looking does not.
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

    /// Asks senders to ring from now on. `false`: a message is there already, do not sleep.
    pub fn fall_asleep(&mut self) -> bool {
        self.shared.asleep.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        if self.shared.queue.is_empty() {
            return true;
        }
        self.wake();
        false
    }

    /// The core is awake: no ringing any more.
    pub fn wake(&mut self) {
        self.shared.asleep.store(false, Ordering::Relaxed);
    }

    /// The bell's descriptor: it becomes readable when it is rung.
    #[must_use]
    pub fn bell(&self) -> RawFd {
        self.shared.bell.as_raw_fd()
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
        match (&*mailbox.shared.bell).read_exact(&mut count) {
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
