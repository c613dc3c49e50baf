//! Log lines that anybody can cause without end. One a second is written, and it says how many were
//! left out.

use std::time::Duration;

use ringway_proto::time::Time;

/// The pause between two lines.
const PAUSE: Duration = Duration::from_secs(1);

/// The lines of one kind.
#[derive(Debug, Default)]
pub(super) struct Line {
    quiet_until: Time,
    left_out: u64,
}

impl Line {
    /// If a line may be written now: how many were left out since the last one.
    pub(super) fn may_say(&mut self, now: Time) -> Option<u64> {
        if now < self.quiet_until {
            self.left_out += 1;
            return None;
        }
        self.quiet_until = now + PAUSE;
        Some(std::mem::take(&mut self.left_out))
    }
}

/// All kinds of such lines.
#[derive(Debug, Default)]
pub(super) struct Hush {
    /// A connection was not relayed.
    pub(super) unrelayed: Line,
    /// A prelude was refused.
    pub(super) refused: Line,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_said_once_a_second_with_what_was_left_out() {
        let mut line = Line::default();
        let second = PAUSE.as_micros() as u64;
        assert_eq!(line.may_say(Time(1)), Some(0));
        assert_eq!((line.may_say(Time(2)), line.may_say(Time(second))), (None, None));
        assert_eq!(line.may_say(Time(second + 1)), Some(2));
        assert_eq!(line.may_say(Time(3 * second)), Some(0));
    }
}
