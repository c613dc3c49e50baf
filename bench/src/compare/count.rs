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
        drop(self.over);
        let looks = self.looks.join().map_err(|_| io::Error::other("a look failed"))?;
        let before = |share: f64| end.checked_sub(Duration::from_secs_f64(seconds * share));
        let at = |share| {
            let instant = before(share)?;
            looks.iter().rfind(|(at, _)| *at <= instant)
        };
        let (Some(first), Some(last)) = (at(WINDOW.0), at(WINDOW.1)) else {
            return Err(io::Error::other("allocations were not counted"));
        };
        let elapsed = (last.0 - first.0).as_secs_f64();
        Ok((last.1 - first.1) as f64 / elapsed.max(LOOK.as_secs_f64()))
    }
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
    fn a_count_that_grows_has_a_rate() {
        let file = std::env::temp_dir().join(format!("ringway-count-{}", std::process::id()));
        let counter = Counter::watch(file.clone());
        let begun = Instant::now();
        for count in 0_u64.. {
            fs::write(&file, (count * 100).to_ne_bytes()).unwrap();
            if begun.elapsed() > Duration::from_millis(400) {
                break;
            }
            thread::sleep(Duration::from_millis(1));
        }
        let rate = counter.rate(0.4).unwrap();
        assert!(rate > 1000.0, "{rate}");
        let missing = Counter::watch(file.with_extension("gone"));
        assert!(missing.rate(0.1).is_err());
        fs::remove_file(file).unwrap();
    }
}
