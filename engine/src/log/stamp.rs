//! When a line's fact happened: not when the line is written.

use std::cell::Cell;
use std::fmt;
use std::ops::Deref;
use std::time::{SystemTime, UNIX_EPOCH};

use ringway_proto::date::{civil, put};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime;

thread_local! {
    static AT: Cell<Option<SystemTime>> = const { Cell::new(None) };
}

/// Lines written by `write` bear this time.
pub(super) fn at(time: SystemTime, write: impl FnOnce()) {
    AT.set(Some(time));
    write();
    AT.set(None);
}

/// The time of the fact if there is one, else now.
pub(super) fn now() -> SystemTime {
    AT.get().unwrap_or_else(SystemTime::now)
}

/// A time as text, in no memory of its own.
#[derive(Clone, Copy)]
pub(super) struct Text([u8; FORM.len()]);

/// What every time looks like.
const FORM: [u8; 27] = *b"0000-00-00T00:00:00.000000Z";

impl fmt::Display for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self)
    }
}

impl Deref for Text {
    type Target = str;

    fn deref(&self) -> &str {
        // There are digits where the form has zeros.
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

/// Writes [`now`].
#[derive(Clone, Copy, Debug)]
pub(super) struct Stamp;

impl FormatTime for Stamp {
    fn format_time(&self, w: &mut Writer<'_>) -> fmt::Result {
        w.write_str(&of(now()))
    }
}

/// A time in seconds of Unix time; what lies before 1970 is 1970.
pub(super) fn seconds(time: SystemTime) -> f64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

/// A time as text; what lies before 1970 is 1970.
pub(super) fn of(time: SystemTime) -> Text {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    text(u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
}

/// Unix time in microseconds as RFC 3339, in UTC.
#[must_use]
pub fn rfc3339(unix_micros: u64) -> String {
    text(unix_micros).to_string()
}

fn text(unix_micros: u64) -> Text {
    let (seconds, micros) = (unix_micros / 1_000_000, unix_micros % 1_000_000);
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    let mut text = FORM;
    // From 10000 on the form has no room for a year.
    put(&mut text[..4], year.min(9999));
    put(&mut text[5..7], month);
    put(&mut text[8..10], day);
    put(&mut text[11..13], hour);
    put(&mut text[14..16], minute);
    put(&mut text[17..19], second);
    put(&mut text[20..26], micros);
    Text(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_right_around_leap_days_and_centuries() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00.000000Z"),
            (951_782_400, "2000-02-29T00:00:00.000000Z"),
            (951_868_800, "2000-03-01T00:00:00.000000Z"),
            (1_709_164_800, "2024-02-29T00:00:00.000000Z"),
            (1_735_689_599, "2024-12-31T23:59:59.000000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000000Z"),
        ] {
            assert_eq!(rfc3339(seconds * 1_000_000), text);
        }
        assert_eq!(rfc3339(1_234_567), "1970-01-01T00:00:01.234567Z");
    }
}
