//! How long a core looks for work before it sleeps. The module reads no clock: its caller gives the
//! times.
//!
//! Waking a sleeping core delays a message by some 30 us, and costs both sides CPU time. Looking
//! costs CPU time only, and pays if something comes soon. So with [`BusyPoll::Auto`] the window
//! follows the length of the core's last rests, in the manner of Linux's `haltpoll` governor:
//!
//! | A rest that was | tells | window |
//! |---|---|---|
//! | within the window | it is wide enough | stays |
//! | longer, at most [`MOST`] | looking longer would have caught it | doubles, [`START`] at first |
//! | longer than that | looking was in vain | halves, 0 below [`START`] |
//! | longer than [`RESTED`] | the traffic is over | 0 |
//!
//! The window grows only in a [`RUN`] of short rests. Any call brings its answer soon after, so one
//! short rest says nothing about the next one. With single calls now and then the core would look
//! in vain each time.
//!
//! **Bound**: the time spent in vain is at most one and a half times `MOST` for each rest that made
//! the window grow: one look that was too short, then the wider window until it is halved away.
//! When traffic ends that is less than twice `MOST` in all. Without a `RUN` of short rests it is
//! nothing.

use std::time::Duration;

use ringway_proto::time::Time;

use super::options::BusyPoll;

/// The widest window: about three times the delay that waking costs a message. A longer look would
/// cost more than the sleep.
const MOST: Duration = Duration::from_micros(100);

/// The first window: waking takes about as long.
const START: Duration = Duration::from_micros(25);

/// After a rest of this length nothing is known any more.
const RESTED: Duration = Duration::from_millis(10);

/// Dense traffic: this many short rests one after the other. A call to a worker and its answer make
/// two.
const RUN: u32 = 3;

/// For how long work is looked for.
#[derive(Debug)]
pub(super) struct SpinWindow {
    width: Duration,
    /// Whether the window follows the traffic.
    adapts: bool,
    /// Since when there has been nothing to do.
    resting: Option<Time>,
    /// Short rests since the last long one.
    run: u32,
}

impl SpinWindow {
    pub(super) fn new(busy_poll: BusyPoll) -> Self {
        let width = match busy_poll {
            BusyPoll::Never | BusyPoll::Auto => Duration::ZERO,
            BusyPoll::Micros(micros) => Duration::from_micros(micros),
            BusyPoll::Always => Duration::MAX,
        };
        Self { width, adapts: busy_poll == BusyPoll::Auto, resting: None, run: 0 }
    }

    /// Whether anything is looked for at all.
    pub(super) fn is_open(&self) -> bool {
        !self.width.is_zero()
    }

    /// There is nothing to do. Returns until when to look for work; `None`: not any more.
    ///
    /// Work that the core does for a timer, without having been called, does not begin a new rest.
    pub(super) fn rest(&mut self, now: Time) -> Option<Time> {
        let since = *self.resting.get_or_insert(now);
        let until = since + self.width;
        (until > now).then_some(until)
    }

    /// Something came.
    pub(super) fn called(&mut self, now: Time) {
        let Some(since) = self.resting.take() else { return };
        if !self.adapts {
            return;
        }
        let rest = now.since(since);
        if rest > MOST {
            self.run = 0;
            self.width = if rest > RESTED { Duration::ZERO } else { self.width / 2 };
            if self.width < START {
                self.width = Duration::ZERO;
            }
            return;
        }
        self.run = self.run.saturating_add(1);
        if rest > self.width && self.run >= RUN {
            self.width = (self.width * 2).clamp(START, MOST);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What waking takes, in microseconds.
    const WAKE: u64 = 30;

    /// A core whose window is asked, and what it did.
    #[derive(Debug)]
    struct Sleeper {
        window: SpinWindow,
        now: Time,
        sleeps: u32,
        grown: u32,
        vain: Duration,
    }

    impl Sleeper {
        fn new(busy_poll: BusyPoll) -> Self {
            let window = SpinWindow::new(busy_poll);
            Self { window, now: Time(1_000), sleeps: 0, grown: 0, vain: Duration::ZERO }
        }

        /// Rests until something comes, `micros` microseconds later.
        fn rest(&mut self, micros: u64) {
            let comes = Time(self.now.0 + micros);
            let (before, looks) = (self.window.width, self.window.rest(self.now));
            if looks.is_some_and(|until| until >= comes) {
                self.now = comes;
            } else {
                self.vain += looks.map_or(Duration::ZERO, |until| until.since(self.now));
                self.sleeps += 1;
                self.now = Time(comes.0 + WAKE);
            }
            self.window.called(self.now);
            self.grown += u32::from(self.window.width > before);
        }

        fn rests(&mut self, micros: u64, times: u32) -> u32 {
            let before = self.sleeps;
            (0..times).for_each(|_| self.rest(micros));
            self.sleeps - before
        }
    }

    #[test]
    fn a_resting_core_does_not_look() {
        let mut core = Sleeper::new(BusyPoll::Auto);
        assert_eq!(core.rests(15_000_000, 1_000), 1_000);
        assert_eq!(core.vain, Duration::ZERO);
    }

    #[test]
    fn events_every_30_us_keep_it_awake() {
        let mut core = Sleeper::new(BusyPoll::Auto);
        assert!(core.rests(30, 10_000) <= 5, "{core:?}");
    }

    #[test]
    fn events_every_10_ms_do_not_make_it_look() {
        let mut core = Sleeper::new(BusyPoll::Auto);
        assert_eq!(core.rests(10_000, 1_000), 1_000);
        assert_eq!(core.vain, Duration::ZERO);
    }

    #[test]
    fn single_calls_and_their_answers_do_not_make_it_look() {
        let mut core = Sleeper::new(BusyPoll::Auto);
        for _ in 0..1_000 {
            core.rest(1_000);
            core.rest(50);
        }
        assert_eq!((core.sleeps, core.vain), (2_000, Duration::ZERO));
    }

    #[test]
    fn a_burst_after_rest_is_learned_in_a_few_events() {
        let mut core = Sleeper::new(BusyPoll::Auto);
        for _ in 0..10 {
            core.rest(1_000_000);
            assert!(core.rests(30, 100) <= 5, "{core:?}");
        }
    }

    #[test]
    fn a_pause_in_dense_traffic_costs_one_window() {
        let mut core = Sleeper::new(BusyPoll::Auto);
        core.rests(60, 100);
        assert_eq!(core.window.width, MOST);
        let vain = core.vain;
        core.rest(1_000);
        assert_eq!((core.vain - vain, core.window.width), (MOST, MOST / 2));
        assert_eq!(core.rests(40, 100), 0, "half a window is still wide enough");
    }

    #[test]
    fn the_end_of_traffic_costs_less_than_two_windows() {
        for pause in [101, 500, 5_000, 50_000] {
            let mut core = Sleeper::new(BusyPoll::Auto);
            core.rests(65, 100);
            let vain = core.vain;
            assert_eq!(core.rests(pause, 100), 100);
            assert!(core.vain - vain < MOST * 2, "{core:?}");
            assert!(!core.window.is_open());
        }
    }

    #[test]
    fn what_is_spent_in_vain_is_bounded_by_what_made_it_grow() {
        // Any order of rests, from a fixed sequence of random numbers.
        let mut state = 1_u64;
        let mut random = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            state >> 33
        };
        for _ in 0..200 {
            let mut core = Sleeper::new(BusyPoll::Auto);
            let (longest, short) = (100 + random() % 2_000, random() % 100);
            for _ in 0..1_000 {
                let longest = if random() % 100 < short { 100 } else { longest };
                core.rest(random() % longest);
                assert!(core.vain <= MOST * 3 / 2 * core.grown, "{core:?}");
            }
        }
    }

    #[test]
    fn a_fixed_window_never_changes_and_an_endless_one_never_ends() {
        let mut fixed = Sleeper::new(BusyPoll::Micros(50));
        assert_eq!((fixed.rests(60, 100), fixed.rests(40, 100)), (100, 0));
        assert_eq!(Sleeper::new(BusyPoll::Always).rests(3_600_000_000, 100), 0);
        assert_eq!(Sleeper::new(BusyPoll::Never).rests(1, 100), 100);
    }

    #[test]
    fn a_timer_within_a_rest_does_not_open_the_window_again() {
        let mut window = SpinWindow::new(BusyPoll::Micros(50));
        assert_eq!(window.rest(Time(1_000)), Some(Time(1_050)));
        assert_eq!(window.rest(Time(1_020)), Some(Time(1_050)));
        assert_eq!(window.rest(Time(1_050)), None);
        window.called(Time(1_060));
        assert_eq!(window.rest(Time(1_070)), Some(Time(1_120)));
    }
}
