//! Messages to a service manager (systemd's `sd_notify(3)`): readiness, reloads, the end, and a
//! status line. If it asks for that (`WatchdogSec=`), also again and again that every core turns.
//! Without a service manager (`NOTIFY_SOCKET`) nothing is sent.

use std::sync::Arc;
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::time::{MissedTickBehavior, interval};

use crate::admin::{Admin, Beats, Phase};

/// How often the status line is renewed without a watchdog.
const STATUS_EVERY: Duration = Duration::from_secs(10);
/// Beats within a watchdog's time, so that two of them may be missed.
const BEATS: u32 = 3;
/// Beats follow each other no faster, however short the watchdog's time is.
const LEAST: Duration = Duration::from_millis(50);

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "the service manager could not be notified");
    }
}

fn is_there() -> bool {
    std::env::var_os("NOTIFY_SOCKET").is_some()
}

/// The gateway is ready: everything answers.
pub(super) fn ready(cores: usize) {
    tell(&[NotifyState::Ready, NotifyState::Status(&format!("serving on {}", of(cores)))]);
}

/// The configuration and the certificates are read again.
pub(super) fn reloading() {
    // This fails only without a monotonic clock. A manager that needs the time then says so.
    let now = NotifyState::monotonic_usec_now().ok();
    let states: Vec<_> = std::iter::once(NotifyState::Reloading).chain(now).collect();
    tell(&states);
}

/// The reload is over, whether the new ones were taken or the old ones stay.
pub(super) fn reloaded() {
    tell(&[NotifyState::Ready]);
}

/// The drain has begun, and takes no longer than this.
pub(super) fn stopping(most: Duration) {
    let extend = format!("EXTEND_TIMEOUT_USEC={}", most.as_micros());
    let status = format!("draining, for {} s at most", most.as_secs());
    tell(&[NotifyState::Stopping, NotifyState::Custom(&extend), NotifyState::Status(&status)]);
}

/// Asks the cores for ever whether they turn, and tells the service manager.
pub(super) async fn beat(admin: Arc<Admin>) {
    if !is_there() {
        return;
    }
    let watched = sd_notify::watchdog_enabled();
    let every = watched.map_or(STATUS_EVERY, |time| (time / BEATS).max(LEAST));
    let mut beat = interval(every);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut said = false;
    loop {
        beat.tick().await;
        let beats = admin.scraper.ask_beats().await;
        let draining = *admin.phase.borrow() == Phase::Draining;
        let turns = all_turn(beats, draining);
        if !turns && !std::mem::replace(&mut said, true) {
            let Beats { turning, ended, cores, .. } = beats;
            tracing::error!(turning, ended, cores, "a core stands still: the watchdog is not fed");
        }
        said &= !turns;
        let status = status(beats, draining);
        let mut states = vec![NotifyState::Status(&status)];
        if turns && watched.is_some() {
            states.push(NotifyState::Watchdog);
        }
        tell(&states);
    }
}

/// Whether all cores turn that should. During a drain cores end one by one; at any other time no
/// core may have ended.
fn all_turn(beats: Beats, draining: bool) -> bool {
    beats.turning + if draining { beats.ended } else { 0 } >= beats.cores
}

fn status(beats: Beats, draining: bool) -> String {
    let Beats { turning, cores, clients, .. } = beats;
    let clients = if clients == 1 { "1 client".into() } else { format!("{clients} clients") };
    match draining {
        true => format!("draining: {clients} left"),
        false if turning < cores => format!("{turning} of {} turn, {clients}", of(cores)),
        false => format!("serving {clients} on {}", of(cores)),
    }
}

fn of(cores: usize) -> String {
    if cores == 1 { "1 core".into() } else { format!("{cores} cores") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn beats(turning: usize, ended: usize) -> Beats {
        Beats { turning, ended, cores: 2, clients: 7 }
    }

    #[test]
    fn one_core_that_does_not_turn_is_one_too_few() {
        for (turning, ended, draining, turns) in [
            (2, 0, false, true),
            (1, 0, false, false),
            (1, 1, false, false),
            (0, 0, false, false),
            (1, 1, true, true),
            (0, 2, true, true),
            (1, 0, true, false),
        ] {
            assert_eq!(all_turn(beats(turning, ended), draining), turns, "{turning} {ended}");
        }
    }

    #[test]
    fn the_line_says_what_there_is() {
        assert_eq!(status(beats(2, 0), false), "serving 7 clients on 2 cores");
        assert_eq!(status(beats(1, 0), false), "1 of 2 cores turn, 7 clients");
        assert_eq!(status(beats(1, 1), true), "draining: 7 clients left");
        let one = Beats { turning: 1, ended: 0, cores: 1, clients: 1 };
        assert_eq!(status(one, false), "serving 1 client on 1 core");
    }
}
