//! Limits log lines about a lasting problem: one at once, and then one a minute.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// The pause before the same problem is logged again.
const AGAIN: Duration = Duration::from_secs(60);
/// The pause before another problem is logged.
const OTHER: Duration = Duration::from_secs(1);

/// The last line about one thing that can go wrong.
#[derive(Debug, Default)]
pub(super) struct Repeats(Mutex<Option<Said>>);

#[derive(Debug)]
struct Said {
    what: String,
    at: Instant,
    left_out: u64,
}

impl Repeats {
    /// If the problem is to be logged now: how many lines were left out before.
    pub(super) fn due(&self, what: &str) -> Option<u64> {
        self.due_at(what, Instant::now())
    }

    fn due_at(&self, what: &str, now: Instant) -> Option<u64> {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut left_out = 0;
        if let Some(said) = &mut *last {
            let pause = if said.what == what { AGAIN } else { OTHER };
            if now < said.at + pause {
                said.left_out += 1;
                return None;
            }
            left_out = said.left_out;
        }
        *last = Some(Said { what: what.into(), at: now, left_out: 0 });
        Some(left_out)
    }

    /// All is well again. True if a problem had been logged.
    pub(super) fn over(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take().is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_is_said_once_a_minute() {
        let repeats = Repeats::default();
        let begin = Instant::now();
        assert!(!repeats.over());
        assert_eq!(repeats.due_at("a", begin), Some(0));
        assert_eq!((repeats.due_at("a", begin), repeats.due_at("b", begin)), (None, None));
        let other = begin + OTHER;
        assert_eq!((repeats.due_at("a", other), repeats.due_at("b", other)), (None, Some(3)));
        assert_eq!(repeats.due_at("b", other + AGAIN), Some(0));
        assert!(repeats.over());
        assert!(!repeats.over());
        assert_eq!(repeats.due_at("b", other), Some(0), "it is said of what comes back");
    }
}
