//! Flow-control arithmetic: what one side may send, and which credit it gets back.
//!
//! Windows are signed: SETTINGS may take more than is left (RFC 9113 §6.9.2). They are 64 bits
//! wide so that no sum can wrap; the 31-bit rule is checked where credit is added.

use super::frame::MAX_31;
use crate::time::Time;

/// The window of a connection, and of a stream before any SETTINGS (RFC 9113 §6.9.2).
pub(super) const DEFAULT_WINDOW: u32 = 65_535;

/// A window that grows only if half of it was used and drained in less than this.
///
/// A window limits a peer to one window a round trip. Below this pace no round trip on earth makes
/// the window the brake, so a slow stream, however long it lives, keeps a small one.
const GROWTH_MILLIS: u32 = 200;

/// What we may send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SendWindow(i64);

/// Credit that would lift a window over 2^31 - 1 (RFC 9113 §6.9.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Overflow;

impl SendWindow {
    /// A window of this size.
    #[must_use]
    pub(super) fn new(size: u32) -> Self {
        Self(i64::from(size))
    }

    /// Bytes that may be sent now.
    #[must_use]
    pub(super) fn room(self) -> usize {
        usize::try_from(self.0).unwrap_or(0)
    }

    /// The window itself, which may be negative.
    #[must_use]
    pub(super) fn get(self) -> i64 {
        self.0
    }

    /// Takes what was sent.
    pub(super) fn charge(&mut self, bytes: usize) {
        self.0 -= bytes as i64;
        debug_assert!(self.0 >= -i64::from(MAX_31), "sent far more than the window had");
    }

    /// Adds (or, after SETTINGS, takes) credit.
    ///
    /// # Errors
    /// If the window would pass 2^31 - 1: the peer's fault.
    pub(super) fn shift(&mut self, credit: i64) -> Result<(), Overflow> {
        let next = self.0 + credit;
        if next > i64::from(MAX_31) {
            return Err(Overflow);
        }
        self.0 = next;
        Ok(())
    }
}

/// What the peer may send, and the octets that were taken and are not credited back yet (`owed`).
///
/// **Shape**: `left + held + owed == size` once our SETTINGS are acknowledged.
#[derive(Clone, Copy, Debug)]
pub(super) struct ReceiveWindow {
    left: i64,
    size: u32,
    /// Received and not taken yet.
    held: u32,
    /// Taken and not given back yet.
    owed: u32,
    /// When the last credit was given, in milliseconds (wrapping).
    paid_at: u32,
}

impl ReceiveWindow {
    /// A window of which the peer knows `known` and which is meant to be `size`.
    #[must_use]
    pub(super) fn new(known: u32, size: u32, now: Time) -> Self {
        Self { left: i64::from(known), size, held: 0, owed: 0, paid_at: millis(now) }
    }

    /// Takes a frame of this length; false if the peer may not send so much.
    #[must_use]
    pub(super) fn charge(&mut self, bytes: u32) -> bool {
        // RFC 9113 §6.9.1: an empty frame needs no room, not even in a window that our SETTINGS
        // have made negative.
        if bytes > 0 && i64::from(bytes) > self.left {
            return false;
        }
        self.left -= i64::from(bytes);
        self.held += bytes;
        true
    }

    /// What the peer may send.
    #[must_use]
    pub(super) fn room(&self) -> usize {
        usize::try_from(self.left).unwrap_or(0)
    }

    /// The bytes were taken, so the peer will get credit for them.
    pub(super) fn owe(&mut self, bytes: usize) {
        // Never more than what was charged: a caller that drains twice must not give away credit.
        debug_assert!(bytes <= self.held as usize, "more was drained than had come");
        let taken = u32::try_from(bytes).unwrap_or(u32::MAX).min(self.held);
        self.held -= taken;
        self.owed += taken;
    }

    /// Our SETTINGS were acknowledged: the window the peer starts with has changed by this much.
    pub(super) fn shift(&mut self, delta: i64) {
        self.left += delta;
    }

    /// The increment to send now, if the credit owed is at least half the window.
    pub(super) fn pay(&mut self) -> Option<u32> {
        if self.owed == 0 || self.owed < self.size / 2 {
            return None;
        }
        let credit = std::mem::take(&mut self.owed);
        self.left += i64::from(credit);
        Some(credit)
    }

    /// As [`Self::pay`], and doubles the window up to `max` if the peer is fast enough for the
    /// window to be what holds it back.
    pub(super) fn pay_and_grow(&mut self, max: Option<u32>, now: Time) -> Option<u32> {
        let credit = self.pay()?;
        let now = millis(now);
        let fast = now.wrapping_sub(self.paid_at) < GROWTH_MILLIS;
        self.paid_at = now;
        let Some(max) = max.filter(|max| fast && *max > self.size) else { return Some(credit) };
        let more = self.size.min(max - self.size);
        self.size += more;
        self.left += i64::from(more);
        Some(credit + more)
    }

    /// Keeps the credit owed, until the window is no larger than this.
    pub(super) fn shrink(&mut self, to: u32) {
        let less = self.size.saturating_sub(to).min(self.owed);
        self.size -= less;
        self.owed -= less;
    }
}

fn millis(now: Time) -> u32 {
    (now.0 / 1000) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_send_window_may_go_below_zero_and_come_back() {
        let mut window = SendWindow::new(100);
        window.charge(60);
        window.shift(-100).unwrap();
        assert_eq!((window.get(), window.room()), (-60, 0));
        window.shift(61).unwrap();
        assert_eq!(window.room(), 1);
    }

    #[test]
    fn a_send_window_stops_at_31_bits() {
        let mut window = SendWindow::new(MAX_31);
        assert_eq!(window.shift(1), Err(Overflow));
        assert_eq!(window.room(), MAX_31 as usize);
        window.charge(1);
        assert_eq!(window.shift(1), Ok(()));
    }

    #[test]
    fn credit_is_paid_when_half_the_window_is_owed() {
        let mut window = ReceiveWindow::new(100, 100, Time::ZERO);
        assert!(window.charge(49));
        window.owe(49);
        assert_eq!(window.pay(), None);
        assert!(window.charge(1));
        window.owe(1);
        assert_eq!(window.pay(), Some(50));
        assert_eq!(window.left, 100);
        assert!(!window.charge(101));
    }

    #[test]
    fn an_empty_frame_fits_into_a_negative_window() {
        let mut window = ReceiveWindow::new(65_535, 16_384, Time::ZERO);
        assert!(window.charge(40_000));
        window.shift(16_384 - 65_535);
        assert!(window.charge(0) && !window.charge(1));
    }

    #[test]
    fn a_window_grows_for_a_fast_peer_only_and_stops_at_its_maximum() {
        let mut now = Time::ZERO;
        let mut window = ReceiveWindow::new(100, 100, now);
        let turn = |window: &mut ReceiveWindow, now, max| {
            assert!(window.charge(60));
            window.owe(60);
            window.pay_and_grow(max, now)
        };
        assert_eq!(turn(&mut window, now, Some(250)), Some(160));
        assert_eq!(window.left, 200);
        assert_eq!(turn(&mut window, now, Some(250)), None, "60 of 200 is less than half");
        now += Duration::from_millis(199);
        assert_eq!(turn(&mut window, now, Some(250)), Some(170));
        assert_eq!((window.size, window.left), (250, 250));
        now += Duration::from_secs(1);
        assert_eq!(turn(&mut window, now, Some(1000)), None);
        assert!(window.charge(65));
        window.owe(65);
        assert_eq!(window.pay_and_grow(Some(1000), now), Some(125), "slow: no growth");
        assert_eq!(turn(&mut window, now, None), None);
    }

    #[test]
    fn a_window_shrinks_by_what_is_drained_and_never_below_what_it_began_with() {
        let mut window = ReceiveWindow::new(100, 400, Time::ZERO);
        window.left = 400;
        assert!(window.charge(400));
        for drained in [90, 90, 90, 90] {
            window.owe(drained);
            window.shrink(100);
        }
        assert_eq!((window.size, window.left, window.held, window.owed), (100, 0, 40, 60));
        assert_eq!(window.pay(), Some(60));
        assert_eq!(window.left + i64::from(window.held + window.owed), i64::from(window.size));
        window.shrink(100);
        assert_eq!(window.size, 100);
    }
}
