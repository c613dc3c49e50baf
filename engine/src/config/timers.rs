//! Timers that contradict each other: one of the two has no effect, and that shows only when it
//! matters.

use std::time::Duration;

use super::{Mode, Park, SessionSettings};

/// How long NATS may take to acknowledge queued work (contract NT-2).
const ACKNOWLEDGED_WITHIN: Duration = Duration::from_secs(5);

/// A warning for each pair, as `docs/kit-and-lls.md` lists them.
pub(super) fn contradictions(session: &SessionSettings, mode: Mode) -> Vec<String> {
    let mut found = Vec::new();
    let (wait, park_yield) = (session.wait, session.park_yield);
    if session.park != Park::Never && park_yield >= wait {
        found.push(format!(
            "session.park_yield ({park_yield:?}) is not below session.wait ({wait:?}): a new session \
             is refused before a parked one yields its worker. Lower park_yield, or raise wait"
        ));
    }
    if mode != Mode::Local && wait <= ACKNOWLEDGED_WITHIN {
        found.push(format!(
            "session.wait ({wait:?}) is not above the {ACKNOWLEDGED_WITHIN:?} that NATS may take to \
             acknowledge work: a slow NATS looks like a lack of workers. Raise wait"
        ));
    }
    found
}
