//! Whether a mailbox's receiver is awake, asleep or gone: one byte that the receiver and its
//! senders share.
//!
//! Two writes and two reads must not both miss each other:
//!
//! | receiver ([`Presence::fall_asleep`]) | sender ([`Presence::pushed`]) |
//! |---|---|
//! | `ASLEEP` | push onto the queue |
//! | `fence(SeqCst)` | `fence(SeqCst)` |
//! | queue empty? then sleep | `ASLEEP`? then ring |
//!
//! The two fences are in one total order. If the receiver's is first, the sender reads `ASLEEP` and
//! rings; if the sender's is first, the receiver sees the message and stays awake. Without the
//! fences both could read the old value (store buffering) and a message would wait for the next
//! unrelated wake-up. `SHUT` and the emptying of the queue meet in the same way.
//!
//! The tests let a model checker (loom) go through every order there is.

use std::sync::atomic::{AtomicU8, Ordering, fence};

/// The receiver looks into its queue by itself.
const AWAKE: u8 = 0;
/// The receiver waits for its doorbell.
const ASLEEP: u8 = 1;
/// There is no receiver for now: the last one has gone, and the next one has not come.
const AWAY: u8 = 2;
/// There will never be a receiver again.
const SHUT: u8 = 3;

/// A shared byte with relaxed operations: a real atomic, or a model checker's.
pub(super) trait Word {
    fn new(value: u8) -> Self;
    fn get(&self) -> u8;
    fn set(&self, value: u8);
    /// Sets it to `to` if it is `from`.
    fn change(&self, from: u8, to: u8) -> bool;
    /// A sequentially consistent fence.
    fn fence();
}

impl Word for AtomicU8 {
    fn new(value: u8) -> Self {
        Self::new(value)
    }
    fn get(&self) -> u8 {
        self.load(Ordering::Relaxed)
    }
    fn set(&self, value: u8) {
        self.store(value, Ordering::Relaxed);
    }
    fn change(&self, from: u8, to: u8) -> bool {
        self.compare_exchange(from, to, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }
    fn fence() {
        fence(Ordering::SeqCst);
    }
}

/// What a sender has to do after its push.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Duty {
    Nothing,
    /// Ring: end the receiver's sleep. Only one of several senders has this duty.
    Ring,
    /// Empty the queue: nobody will take its messages.
    Empty,
}

/// The receiver's state.
#[derive(Debug)]
pub(super) struct Presence<W>(W);

impl<W: Word> Presence<W> {
    /// The state of a receiver that is awake.
    pub(super) fn new() -> Self {
        Self(W::new(AWAKE))
    }

    // ---- the receiver's ----

    /// Asks senders to ring from now on. `false`: a message is there already, so the receiver must
    /// not sleep.
    pub(super) fn fall_asleep(&self, is_empty: impl FnOnce() -> bool) -> bool {
        self.0.set(ASLEEP);
        W::fence();
        let sleeps = is_empty();
        if !sleeps {
            self.wake();
        }
        sleeps
    }

    pub(super) fn wake(&self) {
        self.0.set(AWAKE);
    }

    /// The receiver goes. Another one may come, unless it is shut.
    pub(super) fn leave(&self) {
        if self.0.get() != SHUT {
            self.0.set(AWAY);
        }
    }

    /// The next receiver comes. `false`: there is one, or the mailbox is shut.
    pub(super) fn come_back(&self) -> bool {
        self.0.change(AWAY, AWAKE)
    }

    /// Nobody receives any more; `empty` drops what is in the queue.
    pub(super) fn shut(&self, empty: impl FnOnce()) {
        self.0.set(SHUT);
        W::fence();
        empty();
    }

    // ---- a sender's ----

    /// Whether there is a receiver. The answer may be out of date.
    pub(super) fn is_there(&self) -> bool {
        self.0.get() < AWAY
    }

    /// A message was pushed.
    pub(super) fn pushed(&self) -> Duty {
        W::fence();
        // The plain read first: an awake receiver's byte is only read, its line stays shared. The
        // change lets one of several senders ring.
        match self.0.get() {
            ASLEEP if self.0.change(ASLEEP, AWAKE) => Duty::Ring,
            SHUT => Duty::Empty,
            _ if self.0.get() == SHUT => Duty::Empty,
            _ => Duty::Nothing,
        }
    }
}

#[cfg(test)]
mod tests {
    use loom::sync::Arc;
    use loom::sync::Notify;
    use loom::sync::atomic as model;
    use loom::thread;

    use super::*;

    struct Modelled(model::AtomicU8);

    impl Word for Modelled {
        fn new(value: u8) -> Self {
            Self(model::AtomicU8::new(value))
        }
        fn get(&self) -> u8 {
            self.0.load(Ordering::Relaxed)
        }
        fn set(&self, value: u8) {
            self.0.store(value, Ordering::Relaxed);
        }
        fn change(&self, from: u8, to: u8) -> bool {
            self.0.compare_exchange(from, to, Ordering::Relaxed, Ordering::Relaxed).is_ok()
        }
        fn fence() {
            model::fence(Ordering::SeqCst);
        }
    }

    /// As [`Modelled`], without the fence. The checker has to find that.
    struct Unfenced(Modelled);

    impl Word for Unfenced {
        fn new(value: u8) -> Self {
            Self(Modelled::new(value))
        }
        fn get(&self) -> u8 {
            self.0.get()
        }
        fn set(&self, value: u8) {
            self.0.set(value);
        }
        fn change(&self, from: u8, to: u8) -> bool {
            self.0.change(from, to)
        }
        fn fence() {}
    }

    /// A queue that orders nothing but a message and its own arrival: each sender sends once, and
    /// has a place for it. (Loom does not always let a swap read the last value: no swaps.)
    struct Queue([model::AtomicU8; 2]);

    const UNSENT: u8 = 0;
    const WAITS: u8 = 1;
    const TAKEN: u8 = 2;

    impl Queue {
        fn new() -> Self {
            Self([model::AtomicU8::new(UNSENT), model::AtomicU8::new(UNSENT)])
        }
        fn push(&self, sender: usize) {
            self.0[sender].store(WAITS, Ordering::Release);
        }
        fn is_empty(&self) -> bool {
            self.0.iter().all(|place| place.load(Ordering::Acquire) != WAITS)
        }
        /// Takes all messages out, and returns how many they were.
        fn take(&self) -> usize {
            let (read, write) = (Ordering::Relaxed, Ordering::AcqRel);
            let taken = |place: &&model::AtomicU8| {
                place.compare_exchange(WAITS, TAKEN, write, read).is_ok()
            };
            self.0.iter().filter(taken).count()
        }
    }

    /// One receiver that sleeps until it has everything, and its doorbells.
    struct World<W> {
        presence: Presence<W>,
        queue: Queue,
        /// Remembers a ring that comes before the sleep.
        eventfd: Notify,
    }

    impl<W: Word> World<W> {
        fn new() -> Arc<Self> {
            let presence = Presence::new();
            Arc::new(Self { presence, queue: Queue::new(), eventfd: Notify::new() })
        }

        fn send(&self, sender: usize) {
            self.queue.push(sender);
            match self.presence.pushed() {
                Duty::Ring => self.eventfd.notify(),
                Duty::Empty => {
                    self.queue.take();
                }
                Duty::Nothing => {}
            }
        }
    }

    fn everything_arrives<W: Word + 'static>(senders: usize)
    where
        World<W>: Send + Sync,
    {
        let world = World::<W>::new();
        let threads: Vec<_> = (0..senders)
            .map(|sender| {
                let world = world.clone();
                thread::spawn(move || world.send(sender))
            })
            .collect();
        let mut got = 0;
        loop {
            got += world.queue.take();
            if got == senders {
                break;
            }
            if world.presence.fall_asleep(|| world.queue.is_empty()) {
                // If nobody ever rings, the checker reports a deadlock.
                world.eventfd.wait();
                world.presence.wake();
            }
        }
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    }

    #[test]
    fn no_message_is_slept_through_in_any_order_of_events() {
        loom::model(|| everything_arrives::<Modelled>(1));
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(2);
        model.check(|| everything_arrives::<Modelled>(2));
    }

    #[test]
    fn the_checker_finds_that_the_fences_are_needed() {
        let found = std::panic::catch_unwind(|| {
            loom::model(|| everything_arrives::<Unfenced>(1));
        });
        assert!(found.is_err(), "the model has gone blind");
    }

    #[test]
    fn a_shut_mailbox_keeps_no_message() {
        loom::model(|| {
            let world = World::<Modelled>::new();
            let sender = {
                let world = world.clone();
                thread::spawn(move || world.presence.is_there().then(|| world.send(0)))
            };
            world.presence.shut(|| {
                world.queue.take();
            });
            sender.join().unwrap();
            assert!(world.queue.is_empty());
        });
    }

    /// A sleeper is woken by its own io_uring while that lives, and by the eventfd otherwise. The
    /// first sleeper wakes for another reason and ends. A second one with another io_uring takes
    /// its place, and the message.
    #[test]
    fn a_message_is_not_slept_through_after_a_change_of_receivers() {
        const NONE: u8 = 0;
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(3);
        model.check(|| {
            let world = World::<Modelled>::new();
            // The bells that end the sleep of the first and of the second sleeper.
            let rings = Arc::new([Notify::new(), Notify::new()]);
            let published = Arc::new(model::AtomicU8::new(1));
            let ring = {
                let (rings, published) = (rings.clone(), published.clone());
                move || match published.load(Ordering::Relaxed) {
                    // Both sleepers poll the eventfd.
                    NONE => rings.iter().for_each(Notify::notify),
                    ring => rings[usize::from(ring) - 1].notify(),
                }
            };
            let sender = {
                let world = world.clone();
                thread::spawn(move || {
                    world.queue.push(0);
                    (world.presence.pushed() == Duty::Ring).then(ring);
                })
            };
            world.presence.fall_asleep(|| world.queue.is_empty());
            published.store(NONE, Ordering::Relaxed);
            world.presence.leave();
            // Loom may let the change read an older value. Then the receiver tries again.
            if !world.presence.come_back() {
                world.presence.wake();
            }
            published.store(2, Ordering::Relaxed);
            while world.queue.take() == 0 {
                if world.presence.fall_asleep(|| world.queue.is_empty()) {
                    rings[1].wait();
                    world.presence.wake();
                }
            }
            sender.join().unwrap();
        });
    }
}
