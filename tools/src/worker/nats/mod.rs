//! A worker as NVIDIA's own are: work comes by NATS (contract 6), the tunnels are the same.
//!
//! NATS is spoken by a thread of its own, with the library's runtime; the tunnels stay on the one
//! that moves bytes. [`mod@handoff`] is the boundary between the two: NATS' side asks for a tunnel
//! and is told when it is open and when it has ended. [`crew`] is what NATS' side shares, [`pull`]
//! and [`requests`] are the two ways in which work comes, [`session`] does one, [`record`]
//! registers it, [`times`] is how long all that took.

mod crew;
mod handoff;
mod pull;
mod reconnect_window;
mod record;
mod requests;
mod session;
mod times;

use std::io;
use std::rc::Rc;
use std::time::Duration;

use ringway_work::Endpoint;
use uuid::Uuid;

use super::manager;
use super::net::{self, Io};
use super::stop::{self, Stop};
use crate::nats::Credentials;

/// What the worker needs to run.
#[derive(Clone, Debug)]
pub struct Options {
    /// The server, or several with commas.
    pub url: String,
    /// How the worker logs in to the server.
    pub credentials: Credentials,
    /// Part of the subjects.
    pub region: String,
    /// The function it serves.
    pub function: Uuid,
    /// The version it serves.
    pub version: Uuid,
    /// The server that tunnels are joined to.
    pub target: Endpoint,
    /// Most sessions at once.
    pub slots: usize,
    /// How long sessions may go on once the worker stops.
    pub drain_max: Duration,
    /// What moves the bytes.
    pub io: Io,
    /// The function is of type STREAMING.
    pub streaming: Option<Streaming>,
    /// Whether a reconnect message that can be answered is.
    pub answers: bool,
    /// How often it says how long things took; at its end only, if it is not said.
    pub report: Option<Duration>,
}

/// Work comes by requests (contract CP-12), and sessions outlive their last tunnel.
#[derive(Clone, Debug)]
pub struct Streaming {
    /// Part of the requests' subject: a name of another kind than [`Options::region`], of which
    /// the registrations are (contract CP-13).
    pub region: String,
    /// How long a session waits for another tunnel, unless its client's request says otherwise
    /// (contract 11).
    pub window: Duration,
}

/// Works until a signal; then the sessions may end.
///
/// # Errors
/// When neither io_uring nor epoll can be used, no signal can be listened to, or the credentials
/// cannot be read.
pub fn run(options: Options) -> io::Result<()> {
    let (mut runtime, ring) = net::runtime(options.io)?;
    runtime.block_on(async move {
        let io = if ring { "io_uring" } else { "epoll" };
        tracing::info!(
            slots = options.slots,
            target = options.target.authority,
            io,
            commit = ringway_cli::COMMIT,
            "ringway-worker {}",
            ringway_cli::VERSION
        );
        let stop = Rc::new(Stop::default());
        stop::listen(&stop)?;
        monoio::spawn(super::look_at_target(options.target.clone()));
        let target = options.target.clone();
        let streaming = options.streaming.is_some();
        let (opener, asker) = handoff::TunnelOpener::new(target, streaming)?;
        let (told, stopping) = tokio::sync::watch::channel(false);
        // NATS' side says how it goes when that changes.
        monoio::spawn(manager::beat(|| None));
        let drain_max = options.drain_max;
        let thread = std::thread::Builder::new().name("nats".into());
        let nats = thread.spawn(move || crew::run(options, asker, stopping))?;
        monoio::spawn(async move {
            stop.asked().await;
            manager::stopping(drain_max);
            // An error means that the receiver has ended already.
            let _ = told.send(true);
        });
        opener.work().await?;
        nats.join().unwrap_or_else(|_| Err(io::Error::other("the thread of NATS has panicked")))
    })
}
