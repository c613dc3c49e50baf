//! How often a kind of line may be written.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// The least time between two lines of a kind.
const PAUSE: Duration = Duration::from_secs(1);

/// Lets a kind of line be written once a second at most.
#[derive(Debug, Default)]
pub(super) struct Pace(Mutex<Written>);

#[derive(Debug, Default)]
struct Written {
    last: Option<Instant>,
    left_out: u64,
}

impl Pace {
    /// Whether a line may be written now: then how many were left out since the last one.
    pub(super) fn line(&self) -> Option<u64> {
        let mut written = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if written.last.is_some_and(|last| now.duration_since(last) < PAUSE) {
            written.left_out += 1;
            return None;
        }
        written.last = Some(now);
        Some(std::mem::take(&mut written.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_kind_of_line_is_written_once_a_second() {
        let pace = Pace::default();
        assert_eq!((pace.line(), pace.line(), pace.line()), (Some(0), None, None));
        tokio::time::advance(PAUSE).await;
        assert_eq!((pace.line(), pace.line()), (Some(2), None));
    }
}
