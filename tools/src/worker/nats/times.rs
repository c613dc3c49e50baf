//! How long the worker's part of a session's set-up took.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use hdrhistogram::Histogram;

/// Digits that a figure is right to.
const DIGITS: u8 = 3;

/// Counts and times since the start.
#[derive(Debug)]
pub(super) struct Times(Mutex<Book>);

#[derive(Debug)]
struct Book {
    /// From the moment the server had the work to the moment it was here, in microseconds.
    claim: Histogram<u64>,
    /// From the first attempt to the gateway's 200, in microseconds.
    dial: Histogram<u64>,
    sessions: u64,
    reconnects: u64,
    /// Tunnels that the gateway wanted no more.
    refused: u64,
    /// Tunnels that could not be opened.
    failed: u64,
}

impl Times {
    pub(super) fn new() -> Self {
        let new = || Histogram::new(DIGITS).expect("three digits are within what it can");
        let (claim, dial) = (new(), new());
        Self(Mutex::new(Book { claim, dial, sessions: 0, reconnects: 0, refused: 0, failed: 0 }))
    }

    fn note(&self, note: impl FnOnce(&mut Book)) {
        note(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }

    pub(super) fn claimed(&self, after: Option<Duration>) {
        self.note(|book| {
            book.sessions += 1;
            if let Some(after) = after {
                book.claim.saturating_record(micros(after));
            }
        });
    }

    pub(super) fn dialled(&self, took: Duration) {
        self.note(|book| book.dial.saturating_record(micros(took)));
    }

    pub(super) fn called_back(&self) {
        self.note(|book| book.reconnects += 1);
    }

    pub(super) fn refused(&self) {
        self.note(|book| book.refused += 1);
    }

    pub(super) fn failed(&self) {
        self.note(|book| book.failed += 1);
    }

    /// Says it all.
    pub(super) fn tell(&self) {
        self.note(|book| {
            let at = |of: &Histogram<u64>, part| of.value_at_quantile(part);
            tracing::info!(
                sessions = book.sessions,
                reconnects = book.reconnects,
                refused = book.refused,
                failed = book.failed,
                claim_p50_us = at(&book.claim, 0.5),
                claim_p99_us = at(&book.claim, 0.99),
                claim_max_us = book.claim.max(),
                dial_p50_us = at(&book.dial, 0.5),
                dial_p99_us = at(&book.dial, 0.99),
                dial_max_us = book.dial.max(),
                "times so far"
            );
        });
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
