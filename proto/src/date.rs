//! The time of an answer, as HTTP writes it (RFC 9110 §5.6.7). Whoever answers has the clock.

/// An HTTP date, like `Sun, 06 Nov 1994 08:49:37 GMT`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HttpDate([u8; 29]);

impl HttpDate {
    /// Seconds since 1970; what lies behind the year 9999 has no room for its year.
    #[must_use]
    pub fn from_unix(seconds: u64) -> Self {
        // The first day was a Thursday.
        const DAYS: [&[u8; 3]; 7] = [b"Thu", b"Fri", b"Sat", b"Sun", b"Mon", b"Tue", b"Wed"];
        const MONTHS: &[u8; 36] = b"JanFebMarAprMayJunJulAugSepOctNovDec";
        let (days, second) = (seconds / 86_400, seconds % 86_400);
        let (year, month, day) = civil(days);
        let mut text = *b"Thu, 01 Jan 1970 00:00:00 GMT";
        text[..3].copy_from_slice(DAYS[(days % 7) as usize]);
        put(&mut text[5..7], day);
        let name = 3 * (month as usize - 1);
        text[8..11].copy_from_slice(&MONTHS[name..name + 3]);
        put(&mut text[12..16], year.min(9999));
        put(&mut text[17..19], second / 3600);
        put(&mut text[20..22], second / 60 % 60);
        put(&mut text[23..25], second % 60);
        Self(text)
    }

    /// The value of a `date` field.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// A number's last digits, as many as there is room for.
pub fn put(text: &mut [u8], mut number: u64) {
    for digit in text.iter_mut().rev() {
        *digit = b'0' + (number % 10) as u8;
        number /= 10;
    }
}

/// The Gregorian date (year, month, day) so many days after 1970-01-01. Counted in years that begin
/// in March, so that the leap day is a year's last.
#[must_use]
pub fn civil(days: u64) -> (u64, u64, u64) {
    // Days since 0000-03-01; an era is 400 years.
    let days = days.saturating_add(719_468);
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (year, month) = if month < 10 { (year, month + 3) } else { (year + 1, month - 9) };
    (era * 400 + year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_rfc_and_of_the_calendar() {
        for (seconds, text) in [
            (0, "Thu, 01 Jan 1970 00:00:00 GMT"),
            (784_111_777, "Sun, 06 Nov 1994 08:49:37 GMT"),
            (951_782_400, "Tue, 29 Feb 2000 00:00:00 GMT"),
            (1_735_689_599, "Tue, 31 Dec 2024 23:59:59 GMT"),
            (4_107_542_400, "Mon, 01 Mar 2100 00:00:00 GMT"),
        ] {
            assert_eq!(HttpDate::from_unix(seconds).as_bytes(), text.as_bytes(), "{seconds}");
        }
        // The conversion must not panic, whatever a clock says.
        let _ = HttpDate::from_unix(u64::MAX);
    }
}
