//! Messages to a service manager (systemd's `sd_notify(3)`): readiness, a status line, the end, and
//! at its wish (`WatchdogSec=`) again and again that the tunnels' thread turns. Without one
//! (`NOTIFY_SOCKET`) nothing is said.

use std::time::Duration;

use monoio::time::sleep;
use sd_notify::NotifyState;

/// How often the line on how it goes is renewed without a watchdog.
const STATUS_EVERY: Duration = Duration::from_secs(10);
/// Beats within a watchdog's time: two of them may be missed.
const BEATS: u32 = 3;
/// Beats follow each other no faster, however short the watchdog's time is.
const LEAST: Duration = Duration::from_millis(50);
/// What the end may take beside the sessions: answers that are on their way, and last words.
const END_SLACK: Duration = Duration::from_secs(20);

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "the service manager could not be notified");
    }
}

/// Work is asked for, and nobody has refused it for good: that who gives it is away may pass. It may
/// be said again.
pub(super) fn ready(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// How it goes.
pub(super) fn status(status: &str) {
    tell(&[NotifyState::Status(status)]);
}

/// No more work is taken; the sessions held may go on for so long.
pub(super) fn stopping(most: Duration) {
    let extend = format!("EXTEND_TIMEOUT_USEC={}", (most + END_SLACK).as_micros());
    let status = format!("draining, for {} s at most", most.as_secs());
    tell(&[NotifyState::Stopping, NotifyState::Custom(&extend), NotifyState::Status(&status)]);
}

/// Says for ever that this thread turns, and how it goes, if there is more to say than was said when
/// that changed.
pub(super) async fn beat(status: impl Fn() -> Option<String>) {
    if std::env::var_os("NOTIFY_SOCKET").is_none() {
        return;
    }
    let watched = sd_notify::watchdog_enabled();
    let every = watched.map_or(STATUS_EVERY, |time| (time / BEATS).max(LEAST));
    loop {
        sleep(every).await;
        let status = status();
        let status = status.as_deref().map(NotifyState::Status);
        let states: Vec<_> =
            watched.map(|_| NotifyState::Watchdog).into_iter().chain(status).collect();
        tell(&states);
    }
}
