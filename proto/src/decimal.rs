//! Decimal digits without an allocation: status codes and lengths in heads.

/// Digits of the largest `u64`.
pub(crate) const DIGITS_MAX: usize = 20;

/// `number` in decimal, written into the end of `digits`.
pub(crate) fn decimal(number: u64, digits: &mut [u8; DIGITS_MAX]) -> &[u8] {
    let mut rest = number;
    let mut at = DIGITS_MAX;
    loop {
        at -= 1;
        digits[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            return &digits[at..];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_as_the_standard_library_writes_them() {
        for number in [0, 9, 10, 200, 65_536, u64::MAX] {
            assert_eq!(decimal(number, &mut [0; DIGITS_MAX]), number.to_string().as_bytes());
        }
    }
}
