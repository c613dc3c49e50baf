//! `/log-level`: what is logged, changed for a while.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::{Response, StatusCode};
use serde::Deserialize;
use tokio::time::{Instant, sleep_until};

use super::{Admin, Shared, reply};

/// For how long the level is changed by default, and for how long at most: a forgotten log at
/// `trace` fills disks.
const USUAL: Duration = Duration::from_secs(5 * 60);
const MOST: Duration = Duration::from_secs(24 * 3600);

/// The level that replaces the configured one, and until when.
pub type Changed = Option<(Arc<str>, Instant)>;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Wish {
    filter: String,
    /// Seconds.
    #[serde(rename = "for")]
    time: Option<u64>,
}

/// `POST /log-level?filter=FILTER&for=SECONDS`.
pub(super) async fn change(
    State(admin): Shared,
    wish: Result<Query<Wish>, QueryRejection>,
) -> Response<Body> {
    let possible = Duration::from_secs(1)..=MOST;
    let wish =
        wish.ok().map(|Query(wish)| (wish.filter, wish.time.map_or(USUAL, Duration::from_secs)));
    let Some((filter, time)) = wish.filter(|(_, time)| possible.contains(time)) else {
        let text = "ask for filter=FILTER and, if it is not to be 5 minutes, for=SECONDS, from 1 \
                    to 86400\n";
        return reply::text(StatusCode::BAD_REQUEST, text);
    };
    if let Err(why) = crate::log::set_filter(Some(&filter)) {
        return reply::text(StatusCode::BAD_REQUEST, why + "\n");
    }
    let until = Instant::now() + time;
    tracing::warn!(filter, seconds = time.as_secs(), "what is logged has changed, for a while");
    admin.level.send_replace(Some((filter.into(), until)));
    tokio::spawn(change_back(admin.clone(), until));
    now(&admin)
}

/// Restores the configured level, unless the level was changed once more meanwhile.
async fn change_back(admin: Arc<Admin>, until: Instant) {
    sleep_until(until).await;
    let still = |changed: &mut Changed| {
        let own = changed.as_ref().is_some_and(|(_, of)| *of == until);
        if own {
            *changed = None;
        }
        own
    };
    if admin.level.send_if_modified(still) {
        match crate::log::set_filter(None) {
            Ok(()) => tracing::info!("what is logged is as configured again"),
            Err(error) => tracing::warn!(error, "what is logged could not be changed back"),
        }
    }
}

/// `GET /log-level`.
pub(super) async fn shown(State(admin): Shared) -> Response<Body> {
    now(&admin)
}

fn now(admin: &Admin) -> Response<Body> {
    let changed = admin.level.borrow().clone();
    reply::json(&match changed {
        None => serde_json::json!({ "filter": null }),
        Some((filter, until)) => serde_json::json!({
            "filter": &*filter,
            "secondsLeft": until.saturating_duration_since(Instant::now()).as_secs_f64().round(),
        }),
    })
}
