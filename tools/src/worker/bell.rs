//! A bell that wakes every task of this thread that listens.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::task::{Poll, Waker};

/// Counts its rings, so that one between a look and a wait is not missed.
#[derive(Debug, Default)]
pub(super) struct Bell {
    rings: Cell<u64>,
    listeners: RefCell<Vec<Waker>>,
}

impl Bell {
    /// Wakes who listens.
    pub(super) fn ring(&self) {
        self.rings.set(self.rings.get() + 1);
        for waker in self.listeners.take() {
            waker.wake();
        }
    }

    /// How often it has rung.
    pub(super) fn rings(&self) -> u64 {
        self.rings.get()
    }

    /// Returns once it has rung more often than `seen`.
    pub(super) async fn after(&self, seen: u64) {
        poll_fn(|cx| {
            if self.rings.get() != seen {
                return Poll::Ready(());
            }
            let mut listeners = self.listeners.borrow_mut();
            if !listeners.iter().any(|waker| waker.will_wake(cx.waker())) {
                listeners.push(cx.waker().clone());
            }
            Poll::Pending
        })
        .await;
    }
}
