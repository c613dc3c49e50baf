//! Signals that would end a process, or stop it, for something that is no reason to.
//!
//! The signals are blocked, not caught: a write that raises one returns its error then, and a
//! terminal lets a program write that blocks SIGTTOU, where a handler would be called again and
//! again. Threads inherit it, so it is done before there are any; what a program starts begins
//! without it.

use nix::sys::signal::{SigSet, Signal};

/// For every program: a file limit (RLIMIT_FSIZE) that is reached is an error of the write, EFBIG.
/// A closed pipe is one already, for Rust's start ignores SIGPIPE.
pub fn shield() {
    block(&[Signal::SIGXFSZ]);
}

/// For programs that serve, besides: writing to a terminal from the background (SIGTTOU) does not
/// stop them; SIGUSR1 and SIGUSR2, which mean something to others, mean nothing to them.
pub fn shield_server() {
    shield();
    block(&[Signal::SIGTTOU, Signal::SIGUSR1, Signal::SIGUSR2]);
}

/// A SIGHUP waits until [`listen_for_hangup`]: for programs that have a handler for it, but not yet.
pub fn hold_hangup() {
    block(&[Signal::SIGHUP]);
}

/// There is a handler for SIGHUP now: one that came before is heard at once. To be called on the
/// thread that called [`hold_hangup`].
pub fn listen_for_hangup() {
    let mut set = SigSet::empty();
    set.add(Signal::SIGHUP);
    // The call fails only for wrong arguments, which these are not.
    let _ = set.thread_unblock();
}

/// Whether SIGHUP was ignored when the process began, as `nohup` does it.
#[must_use]
pub fn hangup_was_ignored() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    mask & 1 << (Signal::SIGHUP as i32 - 1) != 0
}

fn block(signals: &[Signal]) {
    let mut set = SigSet::empty();
    signals.iter().for_each(|signal| set.add(*signal));
    let _ = set.thread_block();
}
