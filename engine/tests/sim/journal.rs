//! The record of what happened: a hash over all events, and the last events (or all) for printing.
//! It lies outside the world, so it survives a panic.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fmt::Write;

use ringway_proto::time::Time;

/// Events printed after a failure.
const LAST: usize = 60;

/// One event. It is small, so that a note costs little.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Note {
    pub(crate) who: &'static str,
    pub(crate) number: u64,
    pub(crate) what: &'static str,
    pub(crate) of: [u64; 2],
}

#[derive(Debug, Default)]
struct Journal {
    now: u64,
    hash: u64,
    count: u64,
    all: bool,
    notes: VecDeque<(u64, Note)>,
}

thread_local! {
    static JOURNAL: RefCell<Journal> = RefCell::default();
}

/// Begins a run. `all` means that every event is kept.
pub(crate) fn begin(all: bool) {
    JOURNAL.with_borrow_mut(|journal| *journal = Journal { all, ..Journal::default() });
}

pub(crate) fn clock(now: Time) {
    JOURNAL.with_borrow_mut(|journal| journal.now = now.0);
}

pub(crate) fn note(who: &'static str, number: usize, what: &'static str, of: [u64; 2]) {
    JOURNAL.with_borrow_mut(|journal| {
        let number = number as u64;
        let text = [who.len() as u64, what.len() as u64 + u64::from(what.as_bytes()[0])];
        for value in [journal.now, number, of[0], of[1]].into_iter().chain(text) {
            journal.hash = (journal.hash ^ value).wrapping_mul(0x100_0000_01b3).rotate_left(23);
        }
        journal.count += 1;
        if journal.notes.len() == LAST && !journal.all {
            journal.notes.pop_front();
        }
        let now = journal.now;
        journal.notes.push_back((now, Note { who, number, what, of }));
    });
}

/// The hash over all events so far, and how many there were.
pub(crate) fn hash() -> (u64, u64) {
    JOURNAL.with_borrow(|journal| (journal.hash, journal.count))
}

/// The events kept, one a line.
pub(crate) fn text() -> String {
    JOURNAL.with_borrow(|journal| {
        let mut text = String::new();
        for (at, note) in &journal.notes {
            let Note { who, number, what, of } = note;
            let (seconds, micros) = (at / 1_000_000, at % 1_000_000);
            let _ = writeln!(
                text,
                "{seconds:5}.{micros:06} {who} {number}: {what} {} {}",
                of[0], of[1]
            );
        }
        text
    })
}
