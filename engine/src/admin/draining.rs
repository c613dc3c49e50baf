//! `GET /drain`: what a drain waits for, and for how long at most.

use axum::body::Body;
use axum::extract::State;
use axum::http::Response;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::{Admin, Shared, reply};

/// When a drain goes on, and when it is over at the latest.
#[derive(Clone, Copy, Debug)]
pub struct DrainLimits {
    /// New clients are still taken until then, so that balancers notice first.
    pub open_until: Instant,
    /// Whatever is open then is ended.
    pub until: Instant,
}

/// What the drain still waits for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StillOpen {
    /// Connections of clients.
    pub clients: u64,
    /// Sessions that are not over.
    pub sessions: u64,
    /// Their open streams.
    pub streams: u64,
    /// Connections of other gateways' sessions that pass through this one.
    pub relays: u64,
}

impl StillOpen {
    /// The sum over the cores that answer in time.
    pub async fn of(admin: &Admin) -> Self {
        let (listed, scrape) = tokio::join!(admin.scraper.ask_rows(None), admin.scraper.ask());
        let sum = scrape.sum();
        let open = listed.rows.iter().filter(|row| row.close_reason.is_none());
        let none = Self {
            clients: sum.active_connections,
            relays: sum.relays.active.iter().sum(),
            ..Self::default()
        };
        open.fold(none, |left, row| Self {
            sessions: left.sessions + 1,
            streams: left.streams + u64::from(row.streams),
            ..left
        })
    }
}

/// The answer of `GET /drain`; `ringway drain` reads it too.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct DrainReport {
    /// Whether the drain has begun.
    pub draining: bool,
    /// Names this process: another process may have its port right after it.
    pub node: String,
    /// For how long new clients are still taken, milliseconds.
    pub open_ms: u64,
    /// For how long the drain goes on at most, milliseconds; null if it has not begun.
    pub at_most_ms: Option<u64>,
    /// As in [`StillOpen`].
    pub clients: u64,
    /// As in [`StillOpen`].
    pub sessions: u64,
    /// As in [`StillOpen`].
    pub streams: u64,
    /// As in [`StillOpen`].
    pub relays: u64,
}

/// `GET /drain`.
pub(super) async fn shown(State(admin): Shared) -> Response<Body> {
    let StillOpen { clients, sessions, streams, relays } = StillOpen::of(&admin).await;
    let limits = admin.drain_limits.get();
    let until = |at: Instant| {
        at.saturating_duration_since(Instant::now()).as_millis().try_into().unwrap_or(u64::MAX)
    };
    reply::json(&DrainReport {
        draining: limits.is_some(),
        node: admin.node.to_string(),
        open_ms: limits.map_or(0, |limits| until(limits.open_until)),
        at_most_ms: limits.map(|limits| until(limits.until)),
        clients,
        sessions,
        streams,
        relays,
    })
}
