//! How often a tunnel's peer may be asked whether it is there.
//!
//! A tunnel ends in the function's own server. gRPC's servers count the PINGs that come too early
//! and close for the third with ENHANCE_YOUR_CALM, "too_many_pings": grpc-go
//! (`keepalive.EnforcementPolicy`), C++ and Python (`min_recv_ping_interval_without_data`,
//! `max_ping_strikes`) and Java (`permitKeepAliveTime`), all with the same defaults. A server that
//! sends HEADERS or DATA forgets the early PINGs that came before. This module counts as the
//! servers do, on the safe side, so that there is never a third early PING.

use std::time::Duration;

use ringway_proto::time::Time;

/// A PING is early for these servers if it comes sooner than this after the last one.
const BETWEEN: Duration = Duration::from_secs(300);

/// A PING is early if it comes sooner than this while no stream is open, as on a parked tunnel.
const BETWEEN_AT_REST: Duration = Duration::from_secs(2 * 3600);

/// How much the two sides' clocks may differ in that time.
const MARGIN: Duration = Duration::from_secs(5);

/// Early PINGs that these servers put up with until they have sent HEADERS or DATA again. A tunnel
/// at rest uses them, so that a peer that vanished soon after its client is still noticed.
const EARLY_MOST: u8 = 2;

/// The record of our PINGs, as a tunnel's peer counts them. Most tunnels rest or are busy, and are
/// never asked: they keep no books.
#[derive(Clone, Debug, Default)]
pub(super) struct Pings(Option<Box<Books>>);

#[derive(Clone, Copy, Debug, Default)]
struct Books {
    /// When the latest PING was sent, while nothing at all came since.
    open: Option<Time>,
    /// When the latest PING was answered: the peer has counted it by then. While it has no answer:
    /// when it was sent.
    last: Option<Time>,
    /// When the PING was sent that has no answer of its own yet.
    asked: Option<Time>,
    /// The PING without an answer is early if the peer has closed its streams by the time it gets
    /// it.
    doubtful: bool,
    /// The number of early PINGs since the peer's last HEADERS or DATA.
    early: u8,
}

/// The state of a tunnel when a PING is sent or answered.
#[derive(Clone, Copy, Debug)]
pub(super) struct Found {
    pub(super) now: Time,
    /// Whether a stream is open.
    pub(super) in_use: bool,
    /// Whether HEADERS or DATA came since the last answer or question.
    pub(super) heard: bool,
}

impl Pings {
    /// From when on the peer may be asked (again).
    pub(super) fn allowed_from(&self, in_use: bool, heard: bool) -> Time {
        self.0.as_ref().map_or(Time::ZERO, |books| books.allowed_from(in_use, heard))
    }

    /// When the latest PING was sent, if nothing at all came since.
    pub(super) fn open(&self) -> Option<Time> {
        self.0.as_ref()?.open
    }

    /// Something came, or the tunnel was not read: no answer is awaited.
    pub(super) fn close(&mut self) {
        if let Some(books) = &mut self.0 {
            books.open = None;
        }
    }

    /// The peer is asked.
    pub(super) fn asks(&mut self, found: Found) {
        self.0.get_or_insert_default().asks(found);
    }

    /// The latest PING's own answer came. Returns when that PING was sent, if it was not answered
    /// before.
    pub(super) fn answered(&mut self, found: Found) -> Option<Time> {
        self.0.as_mut()?.answered(found)
    }
}

impl Books {
    fn allowed_from(&self, in_use: bool, heard: bool) -> Time {
        // HEADERS or DATA that come before the answer may have been sent before the peer got the
        // PING. They forgive only the PINGs before it.
        let forgiven = heard && self.asked.is_none();
        let Some(last) = self.last.filter(|_| !forgiven) else { return Time::ZERO };
        let between = if in_use || self.early < EARLY_MOST { BETWEEN } else { BETWEEN_AT_REST };
        last + between + MARGIN
    }

    fn asks(&mut self, found: Found) {
        let Found { now, in_use, heard } = found;
        if heard {
            self.early = 0;
        }
        let forgiven = heard && self.asked.is_none();
        let early_at_rest = !forgiven && self.last.is_some_and(|last| now < last + BETWEEN_AT_REST);
        self.early += u8::from(early_at_rest && !in_use);
        self.doubtful = early_at_rest && in_use;
        (self.last, self.asked, self.open) = (Some(now), Some(now), Some(now));
    }

    fn answered(&mut self, found: Found) -> Option<Time> {
        let Found { now, in_use, heard } = found;
        let asked = self.asked.take()?;
        if heard {
            self.early = 0;
        } else {
            self.early += u8::from(self.doubtful && !in_use);
        }
        self.last = Some(now);
        Some(asked)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Time {
        Time(seconds * 1_000_000)
    }

    fn found(seconds: u64, in_use: bool, heard: bool) -> Found {
        Found { now: at(seconds), in_use, heard }
    }

    /// A PING is sent and answered at once.
    fn round(pings: &mut Pings, seconds: u64, in_use: bool) {
        pings.asks(found(seconds, in_use, false));
        assert_eq!(pings.answered(found(seconds, in_use, false)), Some(at(seconds)));
    }

    #[test]
    fn the_answer_is_what_the_next_one_is_counted_from() {
        let mut pings = Pings::default();
        assert_eq!(pings.allowed_from(true, false), Time::ZERO);
        pings.asks(found(30, true, true));
        assert_eq!(pings.answered(found(44, true, false)), Some(at(30)));
        assert_eq!(pings.answered(found(45, true, false)), None);
        assert_eq!(pings.allowed_from(true, false), at(349));
        assert_eq!(pings.allowed_from(true, true), Time::ZERO, "all is forgiven");
    }

    #[test]
    fn what_came_before_the_answer_forgives_only_what_was_before_the_question() {
        let mut pings = Pings::default();
        round(&mut pings, 0, false);
        round(&mut pings, 305, false);
        pings.asks(found(610, false, false));
        assert_eq!(pings.allowed_from(false, true), at(610) + BETWEEN_AT_REST + MARGIN);
        pings.answered(found(611, false, true));
        assert_eq!(pings.allowed_from(false, false), at(611 + 305), "two more are borne");
    }

    #[test]
    fn at_rest_two_early_ones_are_all() {
        let mut pings = Pings::default();
        for n in 0..3 {
            round(&mut pings, 305 * n, false);
        }
        assert_eq!(pings.allowed_from(false, false), at(610 + 7200 + 5));
        // With a stream open the same PING is not early.
        assert_eq!(pings.allowed_from(true, false), at(610 + 305));
        round(&mut pings, 610 + 7205, false);
        assert_eq!(pings.allowed_from(false, false), at(610 + 2 * 7205), "and it is not early");
    }

    #[test]
    fn a_stream_that_ended_while_it_was_asked_makes_it_early() {
        let mut pings = Pings::default();
        round(&mut pings, 0, true);
        for n in 1..3 {
            pings.asks(found(305 * n, true, false));
            pings.answered(found(305 * n, false, false));
        }
        assert_eq!(pings.allowed_from(false, false), at(610 + 7205));
    }
}
