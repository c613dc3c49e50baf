//! Durations and sizes as people write them.

use std::time::Duration;

/// Reads a duration: a whole number and its unit, such as `"500ms"`, `"30s"`, `"2m"`.
pub(crate) fn duration(text: &str) -> Option<Duration> {
    let (number, unit) = split(text)?;
    let micros = match unit {
        "us" => 1,
        "ms" => 1_000,
        "s" => 1_000_000,
        "m" => 60_000_000,
        "h" => 3_600_000_000,
        _ => return None,
    };
    number.checked_mul(micros).map(Duration::from_micros)
}

/// Reads a size: a whole number and its unit, such as `"64KiB"`, `"16 MiB"`, `"512B"`.
pub(super) fn bytes(text: &str) -> Option<u64> {
    let (number, unit) = split(text)?;
    let scale = match unit {
        "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return None,
    };
    number.checked_mul(scale)
}

/// The number that a text begins with, and the unit behind it.
fn split(text: &str) -> Option<(u64, &str)> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    Some((number.parse().ok()?, unit.trim_start_matches(' ')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_a_unit() {
        assert_eq!(duration("0s"), Some(Duration::ZERO));
        assert_eq!(duration("250us"), Some(Duration::from_micros(250)));
        assert_eq!(duration("2m"), Some(Duration::from_secs(120)));
        assert_eq!(duration("1 h"), Some(Duration::from_secs(3600)));
        for bad in ["", "s", "30", "1.5s", "-1s", "1d", "1s ", "1s1s", "99999999999999999h"] {
            assert_eq!(duration(bad), None, "{bad}");
        }
    }

    #[test]
    fn sizes_have_a_unit() {
        assert_eq!(bytes("64KiB"), Some(65536));
        assert_eq!(bytes("2 MiB"), Some(2 << 20));
        assert_eq!(bytes("7B"), Some(7));
        for bad in ["", "64", "64kB", "64KB", "1.5MiB", "KiB", "99999999999999999GiB"] {
            assert_eq!(bytes(bad), None, "{bad}");
        }
    }
}
