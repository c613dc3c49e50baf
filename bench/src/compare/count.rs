//! Allocations of a gateway's cores, counted from outside.
//!
//! A small library of ours stands between the process and its allocator (`LD_PRELOAD`) and keeps
//! the number in a file that is mapped into it; here the file is looked at while the load runs.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// How often.
const LOOK: Duration = Duration::from_millis(10);
/// The part of the counted time that is looked at, from its end: neither the beginning nor what
/// comes after it.
const WINDOW: (f64, f64) = (0.75, 0.25);

/// A file that is looked at until [`Counter::rate`].
pub(super) struct Counter {
    looks: JoinHandle<Vec<(Instant, u64)>>,
    over: Sender<()>,
}

impl Counter {
    /// Begins to look at `file`.
    pub(super) fn watch(file: PathBuf) -> Self {
        let (over, is_over) = channel();
        let looks = thread::spawn(move || {
            let mut looks = vec![];
            while is_over.recv_timeout(LOOK) == Err(RecvTimeoutError::Timeout) {
                looks.extend(read(&file).map(|count| (Instant::now(), count)));
            }
            looks
        });
        Self { looks, over }
    }

    /// Allocations a second in the middle of a count of so many seconds that has just ended.
    pub(super) fn rate(self, seconds: f64) -> io::Result<f64> {
        let end = Instant::now();
        let looks = self.looks()?;
        middle(&looks, end, seconds).ok_or_else(|| io::Error::other("allocations were not counted"))
    }

    fn looks(self) -> io::Result<Vec<(Instant, u64)>> {
        drop(self.over);
        self.looks.join().map_err(|_| io::Error::other("a look failed"))
    }
}

/// What was added a second in the [`WINDOW`] of a count of so many seconds; none if nobody looked
/// before it.
fn middle(looks: &[(Instant, u64)], end: Instant, seconds: f64) -> Option<f64> {
    let at = |share: f64| {
        let instant = end.checked_sub(Duration::from_secs_f64(seconds * share))?;
        looks.iter().rfind(|(at, _)| *at <= instant)
    };
    let (first, last) = (at(WINDOW.0)?, at(WINDOW.1)?);
    let elapsed = (last.0 - first.0).as_secs_f64();
    Some((last.1 - first.1) as f64 / elapsed.max(LOOK.as_secs_f64()))
}

/// The number is there once the library has mapped the file.
fn read(file: &PathBuf) -> Option<u64> {
    let bytes = fs::read(file).ok()?;
    Some(u64::from_ne_bytes(bytes.get(..8)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_grows_evenly_has_its_rate() {
        let begun = Instant::now();
        let at = |ms: u64| begun + Duration::from_millis(ms);
        let looks: Vec<_> = (0..40).map(|n| (at(n * 10), n * 70)).collect();
        assert_eq!(middle(&looks, at(400), 0.4), Some(7_000.0));
        // A program that was not looked at before the window began has no figure, nor has one that
        // never was.
        assert_eq!(middle(&looks[20..], at(400), 0.4), None);
        assert_eq!(middle(&[], at(400), 0.4), None);
    }

    #[test]
    fn a_file_is_looked_at_while_it_is_there() {
        let file = std::env::temp_dir().join(format!("ringway-count-{}", std::process::id()));
        fs::write(&file, 7_u64.to_ne_bytes()).unwrap();
        let seen = |file: &PathBuf, time| {
            let counter = Counter::watch(file.clone());
            thread::sleep(time);
            counter.looks().unwrap()
        };
        // However busy the machine is: a longer time sees it.
        let looks =
            (1..12).map(|n| seen(&file, LOOK * 2_u32.pow(n))).find(|looks| !looks.is_empty());
        assert_eq!(looks.unwrap()[0].1, 7);
        assert!(seen(&file.with_extension("gone"), LOOK * 3).is_empty());
        fs::remove_file(file).unwrap();
    }
}
