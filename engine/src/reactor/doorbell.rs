//! Waking other cores that sleep: by their io_uring if they have one, else by eventfd.

use std::sync::Arc;

use super::Reactor;
use super::tag::{Completion, Kind, Tag};
use crate::mailbox::{Bell, Doorbell};
use crate::net::Core;

/// Doorbells remembered at most; others are rung by eventfd. Each core has one.
const MOST: usize = 1024;

/// The doorbells that this core rings by io_uring.
#[derive(Debug, Default)]
pub(super) struct Bells {
    /// All doorbells it ever rang, by the number in the operation's tag. If an operation fails, its
    /// doorbell is rung by eventfd.
    known: Vec<Arc<Doorbell>>,
    /// Bells that the next enter rings. If that does not happen, dropping them rings.
    rung: Vec<Bell>,
}

impl Bells {
    fn number(&mut self, doorbell: &Arc<Doorbell>) -> Option<usize> {
        let known = self.known.iter().position(|known| Arc::ptr_eq(known, doorbell));
        if known.is_none() && self.known.len() < MOST {
            self.known.push(Arc::clone(doorbell));
            return Some(self.known.len() - 1);
        }
        known
    }

    /// The kernel has taken all submissions.
    pub(super) fn entered(&mut self) {
        self.rung.drain(..).for_each(Bell::rung);
    }
}

impl<C: Core> Reactor<C> {
    /// Wakes a core.
    pub(super) fn ring_bell(&mut self, bell: Bell) {
        // A dropped bell rings by eventfd. After the core's end the next enter may never come.
        let (Some(ring), false) = (bell.sleeps_in(), self.core.finished()) else { return };
        let Some(number) = bell.doorbell().and_then(|doorbell| self.bells.number(doorbell)) else {
            return;
        };
        let theirs = Tag::numbered(Kind::Rung, 0);
        if self.ring.ring(ring, theirs, Tag::numbered(Kind::Ring, number)) {
            self.bells.rung.push(bell);
            self.net.tally.rings += 1;
        }
    }

    /// An io_uring could not be rung: it had no room, or was gone, since its core is awake or
    /// another one by now.
    pub(super) fn ring_failed(&self, completion: Completion) {
        let doorbell = self.bells.known.get(completion.tag.slot() as usize);
        if let Some(doorbell) = doorbell
            && completion.result < 0
        {
            doorbell.ring();
        }
    }
}
