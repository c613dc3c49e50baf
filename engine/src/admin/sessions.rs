//! `/sessions`: all sessions, and what happened to one of them.

use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{ConnectInfo, Path, Query, State};
use axum::http::header::VIA;
use axum::http::{HeaderMap, Response, StatusCode, Uri};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

use super::{Peer, Shared, may_see_ids, owner, reply};
use crate::message::SessionRow;
use crate::timeline::{IdBegin, Part, Timeline};

/// The states of a session (see [`SessionRow::state`]).
const STATES: [&str; 5] = ["waiting", "attached", "active", "parked", "closed"];

/// Which sessions are asked for. A session has to fit every value that is given.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Filter {
    state: Option<String>,
    tenant: Option<String>,
    /// The begin of the id of a function or of a version.
    function: Option<String>,
    core: Option<u16>,
}

impl Filter {
    fn fits(&self, row: &SessionRow) -> bool {
        let is = |wanted: &Option<String>, value: &str| {
            wanted.as_ref().is_none_or(|wanted| wanted.eq_ignore_ascii_case(value))
        };
        let begins = |id: &str| {
            let begin = |wanted: &String| id.starts_with(&wanted.to_lowercase());
            self.function.as_ref().is_none_or(begin)
        };
        is(&self.state, row.state)
            && is(&self.tenant, &row.tenant)
            && (begins(&row.function_id) || begins(&row.function_version_id))
            && self.core.is_none_or(|core| core == row.core)
    }
}

/// One session with all that is known of it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Told<'a> {
    #[serde(flatten)]
    session: reply::SessionView<'a>,
    verdict: String,
    /// How long the session's start took, by parts.
    start: Value,
    events: Vec<Value>,
    #[serde(skip_serializing_if = "is_zero")]
    lost_events: u32,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for a reference")]
fn is_zero(count: &u32) -> bool {
    *count == 0
}

/// `GET /sessions`.
pub(super) async fn list(
    State(admin): Shared,
    ConnectInfo(peer): Peer,
    (uri, headers): (Uri, HeaderMap),
    filter: Result<Query<Filter>, QueryRejection>,
) -> Response<Body> {
    let known = |filter: &Filter| {
        filter.state.as_ref().is_none_or(|state| STATES.contains(&state.to_lowercase().as_str()))
    };
    let Some(Query(filter)) = filter.ok().filter(|Query(filter)| known(filter)) else {
        let text = "filters are state (waiting, attached, active, parked, closed), tenant, \
                    function and core (a number)\n";
        return reply::text(StatusCode::BAD_REQUEST, text);
    };
    let whole = may_see_ids(&admin, peer, (&uri, &headers));
    let listed = admin.scraper.ask_rows(None).await;
    let mut rows = listed.rows;
    rows.retain(|row| filter.fits(row));
    reply::sessions(rows, admin.node, whole)
}

/// `GET /sessions/{id}`.
pub(super) async fn one(
    State(admin): Shared,
    ConnectInfo(peer): Peer,
    (uri, headers): (Uri, HeaderMap),
    Path(id): Path<String>,
) -> Response<Body> {
    let Some(wanted) = IdBegin::parse(&id) else {
        return reply::text(StatusCode::NOT_FOUND, "no such session\n");
    };
    let whole = may_see_ids(&admin, peer, (&uri, &headers));
    let scraper = &admin.scraper;
    let (listed, parts) =
        tokio::join!(scraper.ask_rows(Some(wanted)), scraper.ask_timelines(wanted));
    let row = listed.rows.into_iter().next();
    let Some(id) = row.as_ref().map(|row| row.request_id).or_else(|| latest(&parts)) else {
        // A question that another gateway has passed on is not passed on again.
        let asked = (!headers.contains_key(VIA)).then_some(wanted);
        return owner::answer(&admin, asked, whole).await;
    };
    let parts: Vec<Part> = parts.into_iter().filter(|part| part.id == id).collect();
    let timeline = Timeline::of(&parts);
    let row = row.unwrap_or_else(|| row_of(id, &parts, &timeline));
    reply::json(&Told {
        verdict: timeline.verdict(row.state == "closed"),
        start: timeline.start().to_json(),
        events: timeline.to_json(),
        lost_events: timeline.lost,
        session: reply::session(&row, admin.node, whole),
    })
}

/// Of several sessions the one with the latest event.
fn latest(parts: &[Part]) -> Option<Uuid> {
    let at = |part: &&Part| part.entries.iter().map(|entry| entry.at).max();
    parts.iter().max_by_key(at).map(|part| part.id)
}

/// The row of a session of which only the timelines are left.
fn row_of(id: Uuid, parts: &[Part], timeline: &Timeline) -> SessionRow {
    let known = parts.iter().find_map(|part| part.facts.as_ref().map(|facts| (part, facts)));
    let mut row = SessionRow {
        request_id: id,
        state: "closed",
        close_reason: timeline.close_reason(),
        ..SessionRow::default()
    };
    if let Some((part, facts)) = known {
        row.function_id = facts.owner.function.clone();
        row.function_version_id = facts.owner.version.clone();
        row.tenant = facts.owner.tenant.clone();
        row.core = part.core;
        row.ended_at = timeline.closed_at();
        row.age_ms = part.now.since(facts.opened).as_millis().try_into().unwrap_or(u64::MAX);
    }
    row
}
