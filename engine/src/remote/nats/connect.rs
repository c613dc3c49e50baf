//! Connects to NATS, for as long as the gateway lives, and follows what becomes of the connection
//! (contract 6.6).

use std::collections::HashMap;
use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use async_nats::jetstream::context::ContextBuilder;
use async_nats::{Client, ClientError, ConnectOptions, Event, Server, ServerAddr};
use ringway_stdio::Trouble;
use tokio::sync::watch;
use tokio::time::Instant;

use super::auth::{self, Secrets};
use super::fixes::{Login, fix};
use super::link::{API_LIMIT, Link, State};
use super::meters::{Failure, Meters};
use super::pace::Pace;
use crate::config::Nats as Settings;

/// The name of the connection at the servers: the reference's.
const NAME: &str = "gdn-nvcf-grpc-proxy-service";
const PING_EVERY: Duration = Duration::from_secs(10);
/// Pauses between attempts to connect: the first one, which doubles, and the longest.
const PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// A connection lost within this time after the last loss counts as refused.
const SHORT: Duration = Duration::from_secs(5);
/// A server that leaves is left within this time, at random (contract NT-9).
const LAME_DUCK_MS: u32 = 10_000;

/// Why there is no server before the first attempt.
pub(super) const NOT_YET: &str = "no server was reached yet";

/// The connection's events that concern this gateway's rights.
#[derive(Clone, Copy, Debug)]
pub(super) enum News<'a> {
    /// A server was reached.
    Connected,
    /// A server sent an error, as it does for a request beyond the account's rights.
    Error(&'a str),
}

/// What is called for each piece of news of the connection.
pub(super) struct Listener(pub(super) Box<dyn Fn(News<'_>) + Send + Sync>);

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Listener(..)")
    }
}

/// Follows the connection.
#[derive(Debug)]
struct Follower {
    listener: Listener,
    state: watch::Sender<State>,
    login: Login,
    meters: Arc<Meters>,
    client: OnceLock<Client>,
    seen: Mutex<Seen>,
    lost: Pace,
    unreached: Pace,
    told: Pace,
}

#[derive(Debug, Default)]
struct Seen {
    /// Connections so far.
    epoch: u64,
    /// The connection that will be given up, because its server leaves.
    leaving: Option<u64>,
    /// Attempts that failed, by server, since each was last reached.
    failed: HashMap<String, usize>,
}

/// What to do where no server can be named.
const NAME_ONE: &str = "set NATS_FQDN (nats.urls) to nats://HOST:4222";

/// Begins to connect. The link is there at once, whether a server is or not.
pub(super) async fn connect(
    settings: &Settings,
    secrets: Secrets,
    meters: Arc<Meters>,
    listener: Listener,
) -> Result<Link, Trouble> {
    let urls = urls(settings)?;
    let since = Instant::now();
    let why = NOT_YET.into();
    let (sender, state) = watch::channel(State::Down { since, why });
    let follower = Arc::new(Follower {
        listener,
        state: sender,
        login: Login::of(settings, secrets.nkey.is_some()),
        meters,
        client: OnceLock::new(),
        seen: Mutex::default(),
        lost: Pace::default(),
        unreached: Pace::default(),
        told: Pace::default(),
    });
    let options = with_tls(auth::options(settings, secrets, &urls)?, settings)?;
    let client = follow(options, &follower)
        .connect(urls.into_iter().map(bare).collect::<Vec<_>>())
        .await
        .map_err(|error| Trouble::new("NATS cannot be connected to", error, NAME_ONE))?;
    follower.meters.follow(client.statistics());
    // This is the first and only client.
    let _ = follower.client.set(client.clone());
    let jetstream = ContextBuilder::new().timeout(API_LIMIT).build(client.clone());
    Ok(Link { client, jetstream, state })
}

fn urls(settings: &Settings) -> Result<Vec<ServerAddr>, Trouble> {
    let urls: Result<Vec<ServerAddr>, _> = settings.urls.iter().map(|url| url.parse()).collect();
    match urls {
        Ok(urls) if !urls.is_empty() => Ok(urls),
        // The text is not shown, because it may hold a password.
        Ok(_) => Err(Trouble::new("no NATS server is named", "nats.urls is empty", NAME_ONE)),
        Err(error) => Err(Trouble::new("the URL of a NATS server cannot be read", error, NAME_ONE)),
    }
}

/// The address without the part before the `@`, which the library would log.
fn bare(server: ServerAddr) -> ServerAddr {
    let mut url = server.clone().into_inner();
    let cleared = url.set_username("").is_ok() && url.set_password(None).is_ok();
    let bare = cleared.then(|| ServerAddr::from_url(url)).and_then(Result::ok);
    bare.unwrap_or(server)
}

fn with_tls(mut options: ConnectOptions, settings: &Settings) -> Result<ConnectOptions, Trouble> {
    // The library reads the files at each connection. A missing file is reported at the start.
    let readable = |path: &Path| match std::fs::File::open(path) {
        Ok(_) => Ok(()),
        Err(error) => {
            let what = format!("{}, which TLS to NATS needs, cannot be read", path.display());
            Err(Trouble::new(what, error, "name a file that the gateway can read"))
        }
    };
    if let Some(authorities) = &settings.ca {
        readable(authorities)?;
        options = options.add_root_certificates(authorities.clone());
    }
    if let Some((certificate, key)) = &settings.client_pair {
        readable(certificate)?;
        readable(key)?;
        options = options.add_client_certificate(certificate.clone(), key.clone());
    }
    Ok(options)
}

/// Tells the follower all that the library tells.
fn follow(options: ConnectOptions, follower: &Arc<Follower>) -> ConnectOptions {
    let (of_events, of_attempts) = (follower.clone(), follower.clone());
    let short = Mutex::new(Short::default());
    options
        .name(NAME)
        .ping_interval(PING_EVERY)
        .retry_on_initial_connect()
        .max_reconnects(None)
        .reconnect_delay_callback(move |attempt| {
            short.lock().unwrap_or_else(PoisonError::into_inner).pause(attempt, Instant::now())
        })
        .event_callback(move |event| {
            of_events.clone().event(event);
            std::future::ready(())
        })
        // Which server is next stays the library's choice; but only here it says why the last ones
        // were not reached.
        .reconnect_to_server_callback(move |servers, _info| {
            of_attempts.attempts(&servers);
            std::future::ready(None)
        })
}

/// How long to wait before an attempt, which is counted from 1. Some of it is chance, so that the
/// gateways of a region do not come all at once.
fn pause(attempt: usize) -> Duration {
    let Some(doublings) = attempt.checked_sub(2) else { return Duration::ZERO };
    let doublings = u32::try_from(doublings).unwrap_or(u32::MAX).min(16);
    let whole = (PAUSE * 2u32.pow(doublings)).min(LONGEST_PAUSE);
    whole - whole / 4 * (random() % 1000) / 1000
}

/// Connections that did not last. The library counts attempts anew after each connection: a server
/// that takes one and ends it at once would be tried without a pause.
#[derive(Debug, Default)]
struct Short {
    /// When a connection was lost last.
    last: Option<Instant>,
    /// How many were lost shortly after each other.
    count: usize,
}

impl Short {
    /// How long to wait before an attempt, counted from 1 after each connection.
    fn pause(&mut self, attempt: usize, now: Instant) -> Duration {
        if attempt <= 1 {
            let soon = self.last.is_some_and(|last| now.duration_since(last) < SHORT);
            self.count = if soon { self.count.saturating_add(1) } else { 0 };
            self.last = Some(now);
        }
        pause(attempt.saturating_add(self.count))
    }
}

/// Where the system has no randomness, there is none.
fn random() -> u32 {
    getrandom::u32().unwrap_or_default()
}

impl Follower {
    fn event(self: Arc<Self>, event: Event) {
        match event {
            Event::Connected => self.connected(),
            Event::Disconnected => {
                self.meters.disconnected();
                self.lost("the connection was lost");
            }
            Event::Closed => self.lost("the connection was closed"),
            Event::LameDuckMode => self.leave(),
            Event::ServerError(error) => self.error(&error.to_string()),
            Event::SlowConsumer(_) => self.error("nats: a subscription is read too slowly"),
            // All other errors are logged with the attempts, in more words. A name that does not
            // resolve is not.
            Event::ClientError(ClientError::Other(text)) if text.starts_with("DNS") => {
                self.failed(&text);
            }
            Event::ClientError(_) | Event::Draining => {}
        }
    }

    fn seen(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn connected(&self) {
        let epoch = {
            let mut seen = self.seen();
            seen.epoch += 1;
            seen.epoch
        };
        if epoch > 1 {
            self.meters.reconnected();
        }
        tracing::info!(connection = epoch, "connected to NATS");
        (self.listener.0)(News::Connected);
        self.state.send_replace(State::Up { epoch });
    }

    fn lost(&self, why: &str) {
        let (since, why) = (Instant::now(), Arc::from(why));
        self.state.send_if_modified(|state| match state {
            State::Up { .. } => {
                *state = State::Down { since, why };
                true
            }
            State::Down { .. } => false,
        });
        if let Some(left_out) = self.lost.line() {
            tracing::warn!(left_out, "NATS was lost; it is tried again for ever");
        }
    }

    /// An error that a server sent unasked.
    fn error(&self, text: &str) {
        self.meters.error();
        self.meters.failure(Failure::of(text));
        (self.listener.0)(News::Error(text));
        if let Some(left_out) = self.told.line() {
            tracing::warn!(error = text, left_out, "NATS reports an error");
        }
    }

    /// Looks at which servers were not reached since the last look.
    fn attempts(&self, servers: &[Server]) {
        let mut why = Vec::new();
        {
            let mut seen = self.seen();
            for server in servers {
                let name = server.addr.host().to_owned() + ":" + &server.addr.port().to_string();
                let before = seen.failed.get(&name).copied().unwrap_or_default();
                if let Some(error) = &server.last_error
                    && server.failed_attempts > before
                {
                    why.push(format!("{name}: {error}"));
                }
                seen.failed.insert(name, server.failed_attempts);
            }
            let known = |name: &String| {
                let of = |server: &Server| format!("{}:{}", server.addr.host(), server.addr.port());
                servers.iter().any(|server| of(server) == *name)
            };
            seen.failed.retain(|name, _| known(name));
        }
        why.iter().for_each(|why| self.failed(why));
    }

    /// An attempt to connect failed.
    fn failed(&self, text: &str) {
        self.meters.failure(Failure::of(text));
        let newest = Arc::from(text);
        self.state.send_if_modified(|state| match state {
            State::Down { why, .. } => {
                *why = newest;
                true
            }
            State::Up { .. } => false,
        });
        if let Some(left_out) = self.unreached.line() {
            let fix = fix(text, self.login);
            tracing::warn!(error = text, left_out, fix, "NATS is not reached");
        }
    }

    /// The server will leave: another one is looked for soon, but not by all clients at once.
    fn leave(self: Arc<Self>) {
        let epoch = {
            let mut seen = self.seen();
            // A server that leaves repeats that with each update.
            if seen.leaving == Some(seen.epoch) {
                return;
            }
            seen.leaving = Some(seen.epoch);
            seen.epoch
        };
        self.meters.lame_duck();
        let wait = Duration::from_millis(u64::from(random() % LAME_DUCK_MS));
        tracing::info!(wait_ms = wait.as_millis(), "the NATS server will leave, another is taken");
        tokio::spawn(async move {
            tokio::time::sleep(wait).await;
            let same = self.seen().epoch == epoch;
            if let Some(client) = self.client.get().filter(|_| same)
                && let Err(error) = client.force_reconnect().await
            {
                tracing::warn!(%error, "cannot change to another NATS server");
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_up_to_a_limit() {
        assert_eq!((pause(0), pause(1)), (Duration::ZERO, Duration::ZERO));
        for attempt in 2..100 {
            let least = pause_at_least(attempt);
            let pause = pause(usize::try_from(attempt).unwrap());
            assert!(least <= pause && pause <= least * 4 / 3, "{attempt}: {pause:?}");
        }
    }

    #[test]
    fn connections_that_do_not_last_are_no_reason_to_hurry() {
        let (mut short, mut now) = (Short::default(), Instant::now());
        assert_eq!(short.pause(1, now), Duration::ZERO);
        for lost in 1..20 {
            now += LONGEST_PAUSE;
            let least = pause_at_least(lost + 1);
            assert!(short.pause(1, now) >= least, "{lost}");
        }
        assert_eq!(short.pause(1, now + SHORT), Duration::ZERO);
    }

    fn pause_at_least(attempt: u32) -> Duration {
        (PAUSE * 2u32.pow(attempt.min(12) - 2)).min(LONGEST_PAUSE) * 3 / 4
    }

    #[test]
    fn a_password_is_for_no_log() {
        let server: ServerAddr = "nats://me:secret@n.test:4222".parse().unwrap();
        assert_eq!(bare(server).as_url_str(), "nats://n.test:4222");
    }
}
