//! What a peer may waste before we have had enough: the glitch bucket and the counts of frames
//! that cost us more than they cost it.
//!
//! A budget here is spent by traffic that carries nothing, never by data a window admitted: small
//! messages are honest.

use std::time::Duration;

use super::{ConnFault, ErrorCode, LimitId, Limits};
use crate::time::Time;

/// A client that takes a request back after this long had a reason: a deadline, a user. A flood
/// (CVE-2023-44487) has none to wait for; one that does so all the same is held to the streams that
/// may be open (L1) in each such time, which costs us less than as many calls that finish.
pub(super) const HONEST_LIFE: Duration = Duration::from_millis(100);

/// One glitch, in the bucket's unit.
const GLITCH: u64 = 1_000_000;

/// A WINDOW_UPDATE that leaves the window it feeds below this is one of a dribble
/// (CVE-2019-9511): it makes us send frames that are mostly heads.
pub(super) const TINY_WINDOW: i64 = 256;

/// Credit that no dribble gives. A peer that credits each frame at once gives much of it, and
/// between it small change: what we sent into the last octets of a window comes back as it went.
pub(super) const LARGE_CREDIT: i64 = 1024;

/// Streams over the limit that are refused free of charge on each connection: what a client may
/// have sent before our SETTINGS reached it. It does not depend on the limit, which that client
/// does not know.
const UNTOLD_STREAMS: u32 = 10_000;

/// Small credits that a large one excuses, and how many can be saved up.
const EXCUSED: u16 = 8;
const EXCUSED_MAX: u16 = 1024;

/// WINDOW_UPDATE frames that are free on each connection.
const UPDATES_FREE: u64 = 5;

/// Octets in front of each gRPC message.
const GRPC_PREFIX: u64 = 5;

/// The counts of one connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Budget {
    /// Glitches not yet forgiven, in millionths.
    spent: u64,
    counted_at: Time,
    /// Streams opened on this connection, by either side.
    pub(super) streams: u64,
    /// DATA frames we sent, and the octets in them.
    data_sent: u64,
    octets_sent: u64,
    updates: u64,
    empty_data: u32,
    /// Streams that were refused before our SETTINGS were acknowledged.
    untold: u32,
    /// Heads of streams that were opened behind our final GOAWAY.
    behind_goaway: u32,
    /// Small credits still excused.
    excused: u16,
    /// Whether anything of a stream was sent since the last PING: see [`Budget::ping`].
    sent_since_ping: bool,
}

impl Budget {
    /// A full budget.
    #[must_use]
    pub(super) fn new(now: Time) -> Self {
        Self {
            spent: 0,
            counted_at: now,
            streams: 0,
            data_sent: 0,
            octets_sent: 0,
            updates: 0,
            empty_data: 0,
            untold: 0,
            behind_goaway: 0,
            excused: 0,
            sent_since_ping: false,
        }
    }

    /// Charges one glitch (L5).
    ///
    /// # Errors
    /// If the bucket is empty.
    pub(super) fn glitch(&mut self, limits: &Limits, now: Time) -> Result<(), ConnFault> {
        self.note(limits, now);
        if self.spent > u64::from(limits.glitch_burst) * GLITCH {
            return Err(ConnFault::limit(
                LimitId::L5,
                ErrorCode::EnhanceYourCalm,
                "too many frames that carry nothing",
            ));
        }
        Ok(())
    }

    /// Charges one glitch in a place that cannot report a fault: the next glitch reports it.
    pub(super) fn note(&mut self, limits: &Limits, now: Time) {
        // Glitches a second times microseconds is millionths of a glitch.
        let forgiven = now.since(self.counted_at).as_micros() * u128::from(limits.glitch_refill);
        self.spent = self.spent.saturating_sub(u64::try_from(forgiven).unwrap_or(u64::MAX));
        self.counted_at = now;
        self.spent = (self.spent + GLITCH).min((u64::from(limits.glitch_burst) + 1) * GLITCH);
    }

    /// A stream over the limit, from a peer that has not acknowledged our SETTINGS. No timer asks
    /// for the acknowledgement, so the excuse covers what can have been on its way and no more.
    ///
    /// # Errors
    /// As [`Self::glitch`].
    pub(super) fn untold_stream(&mut self, limits: &Limits, now: Time) -> Result<(), ConnFault> {
        if self.untold < UNTOLD_STREAMS {
            self.untold += 1;
            return Ok(());
        }
        self.glitch(limits, now)
    }

    /// A head of a stream behind our final GOAWAY. An honest client may have had as many open as
    /// it may (L1) when it was sent, and the streams that may still finish must not die of them.
    ///
    /// # Errors
    /// As [`Self::glitch`].
    pub(super) fn behind_goaway(&mut self, limits: &Limits, now: Time) -> Result<(), ConnFault> {
        if self.behind_goaway < limits.max_concurrent_streams {
            self.behind_goaway += 1;
            return Ok(());
        }
        self.glitch(limits, now)
    }

    /// A WINDOW_UPDATE that leaves its window tiny.
    ///
    /// # Errors
    /// As [`Self::glitch`].
    pub(super) fn dribble(&mut self, limits: &Limits, now: Time) -> Result<(), ConnFault> {
        match self.excused.checked_sub(1) {
            Some(left) => {
                self.excused = left;
                Ok(())
            }
            None => self.glitch(limits, now),
        }
    }

    /// A WINDOW_UPDATE of a size that no dribble has.
    pub(super) fn large_credit(&mut self) {
        self.excused = (self.excused + EXCUSED).min(EXCUSED_MAX);
    }

    /// Whether three quarters of the bucket are spent.
    #[must_use]
    pub(super) fn is_high(&self, limits: &Limits) -> bool {
        self.spent >= u64::from(limits.glitch_burst) * (GLITCH / 4 * 3)
    }

    /// We sent a head of a stream.
    pub(super) fn head_sent(&mut self) {
        self.sent_since_ping = true;
    }

    /// We sent a DATA frame.
    pub(super) fn data_sent(&mut self, len: usize) {
        self.data_sent += 1;
        self.octets_sent += len as u64;
        self.sent_since_ping = true;
    }

    /// A PING came.
    ///
    /// One PING for each time we sent something is free: gRPC's peers measure the path with a PING
    /// for each batch of DATA they receive, thousands a second on a fast network, and it costs us
    /// less than the DATA did.
    ///
    /// # Errors
    /// As [`Self::glitch`].
    pub(super) fn ping(&mut self, limits: &Limits, now: Time) -> Result<(), ConnFault> {
        if std::mem::take(&mut self.sent_since_ping) {
            return Ok(());
        }
        self.glitch(limits, now)
    }

    /// A WINDOW_UPDATE came (L8).
    ///
    /// # Errors
    /// If there were more than what our streams and DATA frames explain.
    pub(super) fn window_update(&mut self) -> Result<(), ConnFault> {
        self.updates += 1;
        // gRPC's libraries credit each message as its user reads it, and a frame can hold a
        // thousand of them: the shortest takes five octets.
        let messages = self.octets_sent / GRPC_PREFIX;
        if self.updates > UPDATES_FREE + 2 * (self.streams + 10 * self.data_sent + messages) {
            return Err(ConnFault::limit(
                LimitId::L8,
                ErrorCode::EnhanceYourCalm,
                "too many WINDOW_UPDATE frames",
            ));
        }
        Ok(())
    }

    /// A DATA frame came that carries bytes or ends its stream.
    pub(super) fn data(&mut self) {
        self.empty_data = 0;
    }

    /// A DATA frame came that carries nothing and does not end its stream (L7, and one of L5).
    ///
    /// # Errors
    /// If too many of them came in a row, and as [`Self::glitch`].
    pub(super) fn empty_data(&mut self, limits: &Limits, now: Time) -> Result<(), ConnFault> {
        self.empty_data += 1;
        if self.empty_data > limits.empty_data {
            return Err(ConnFault::limit(
                LimitId::L7,
                ErrorCode::EnhanceYourCalm,
                "too many empty DATA frames in a row",
            ));
        }
        self.glitch(limits, now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bucket_holds_its_burst_and_refills() {
        let limits = Limits { glitch_burst: 10, glitch_refill: 5, ..Limits::default() };
        let mut now = Time(1_000_000);
        let mut budget = Budget::new(now);
        for n in 1..=10 {
            budget.glitch(&limits, now).unwrap();
            assert_eq!(budget.is_high(&limits), n >= 8, "{n}");
        }
        assert_eq!(budget.glitch(&limits, now).unwrap_err().limit, Some(LimitId::L5));
        now += Duration::from_secs(1);
        for _ in 0..4 {
            budget.glitch(&limits, now).unwrap();
        }
        budget.glitch(&limits, now).unwrap_err();
    }

    #[test]
    fn refill_is_exact_however_often_the_bucket_is_asked() {
        let limits = Limits { glitch_burst: 2, glitch_refill: 33, ..Limits::default() };
        let mut now = Time::ZERO;
        let mut budget = Budget::new(now);
        for _ in 0..10_000 {
            budget.glitch(&limits, now).unwrap();
            now += Duration::from_micros(30_304);
        }
    }

    #[test]
    fn a_clock_that_runs_backwards_forgives_nothing() {
        let limits = Limits { glitch_burst: 1, ..Limits::default() };
        let mut budget = Budget::new(Time(5_000_000));
        budget.glitch(&limits, Time(5_000_000)).unwrap();
        budget.glitch(&limits, Time::ZERO).unwrap_err();
    }

    #[test]
    fn window_updates_are_paid_for_by_streams_and_data() {
        let mut budget = Budget::new(Time::ZERO);
        for _ in 0..5 {
            budget.window_update().unwrap();
        }
        budget.streams += 1;
        budget.data_sent(3);
        for _ in 0..22 {
            budget.window_update().unwrap();
        }
        assert_eq!(budget.window_update().unwrap_err().limit, Some(LimitId::L8));
    }
}
