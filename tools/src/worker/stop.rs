//! SIGTERM, SIGINT and, where it was not to be ignored from the start, SIGHUP: its terminal has
//! gone, and there is no file to read again.

use std::cell::Cell;
use std::io;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::rc::Rc;
use std::time::{Duration, Instant};

use monoio::io::AsyncReadRent;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::low_level::pipe;

use super::bell::Bell;
use super::net;

/// A second signal within this of the first is the same one, sent twice: GNU `timeout` signals a
/// process and its group.
const SAME: Duration = Duration::from_millis(50);

/// Whether a worker is to stop.
#[derive(Debug, Default)]
pub(super) struct Stop {
    bell: Bell,
    signalled: Cell<Option<Instant>>,
}

impl Stop {
    pub(super) fn is_asked(&self) -> bool {
        self.bell.rings() > 0
    }

    pub(super) fn ask(&self) {
        self.bell.ring();
    }

    /// Returns once it is asked.
    pub(super) async fn asked(&self) {
        while !self.is_asked() {
            self.bell.after(0).await;
        }
    }
}

/// Stops the worker at the first signal and ends the process at the second.
pub(super) fn listen(stop: &Rc<Stop>) -> io::Result<()> {
    let hangup = (!ringway_stdio::hangup_was_ignored()).then_some(SIGHUP);
    for signal in [SIGTERM, SIGINT].into_iter().chain(hangup) {
        let (mut heard, told) =
            StdUnixStream::pair().and_then(|(a, b)| Ok((net::from_std(a)?, b)))?;
        pipe::register(signal, told)?;
        let stop = stop.clone();
        monoio::spawn(async move {
            let mut first: Option<Instant> = None;
            // The other end lives as long as the process.
            while let (Ok(1..), _) = heard.read(Vec::with_capacity(16)).await {
                let begun = stop.signalled.get().or(first);
                match begun {
                    Some(at) if at.elapsed() >= SAME => {
                        tracing::warn!("ended by a second signal");
                        std::process::exit(128 + signal);
                    }
                    Some(_) => {}
                    None => {
                        first = Some(Instant::now());
                        stop.signalled.set(first);
                        tracing::info!(signal, "stopping; a second signal ends at once");
                        stop.ask();
                    }
                }
            }
        });
    }
    ringway_stdio::listen_for_hangup();
    Ok(())
}
