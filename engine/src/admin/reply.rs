//! The shapes of answers.

use std::net::SocketAddr;

use axum::body::Body;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use axum::http::{Response, StatusCode};
use bytes::Bytes;
use futures_util::stream;
use ringway_proto::id::Node;
use serde::Serialize;

use super::SHORT_ID;
use crate::message::SessionRow;

/// Plain text, never cached (contract LN-5).
pub(super) fn text(status: StatusCode, text: impl Into<Body>) -> Response<Body> {
    with(status, "text/plain; charset=utf-8", text.into())
}

/// No content.
pub(super) fn empty(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}

/// The Prometheus text format.
pub(super) fn metrics(text: String) -> Response<Body> {
    with(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", Body::from(text))
}

/// A value of ours as JSON.
pub(super) fn json<T: Serialize>(value: &T) -> Response<Body> {
    match serde_json::to_vec(value) {
        Ok(body) => {
            // Answers are also read at terminals, so control characters are escaped.
            let body = ringway_stdio::json_line(&body).into_owned();
            with(StatusCode::OK, "application/json", Body::from(body))
        }
        Err(_) => text(StatusCode::INTERNAL_SERVER_ERROR, "cannot be written as JSON\n"),
    }
}

fn with(status: StatusCode, kind: &'static str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}

/// Rows made into text at once. Between two batches the control thread does its other work.
const ROWS_AT_ONCE: usize = 64;
/// Roughly the octets of their text.
const ROWS_BYTES: usize = ROWS_AT_ONCE * 512;

/// A list of sessions, made into text in batches as the peer takes them.
pub(super) fn sessions(rows: Vec<SessionRow>, node: Node, whole_ids: bool) -> Response<Body> {
    let begin = Some((rows.into_iter(), b'['));
    let pieces = stream::unfold(begin, move |left| async move {
        let (mut rows, mut before) = left?;
        if before != b'[' {
            tokio::task::yield_now().await;
        }
        let mut text = Vec::with_capacity(ROWS_BYTES);
        for row in rows.by_ref().take(ROWS_AT_ONCE) {
            text.push(std::mem::replace(&mut before, b','));
            let shown = session(&row, node, whole_ids);
            if let Err(error) = serde_json::to_writer(&mut text, &shown) {
                return Some((Err(error), None));
            }
        }
        let goes_on = rows.len() > 0;
        if !goes_on {
            text.extend_from_slice(if before == b'[' { b"[]" } else { b"]" });
        }
        // Answers are also read at terminals, so control characters are escaped.
        let text = ringway_stdio::json_line(&text).into_owned();
        Some((Ok(Bytes::from(text)), goes_on.then_some((rows, before))))
    });
    with(StatusCode::OK, "application/json", Body::from_stream(pieces))
}

/// A row of `/sessions`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct SessionView<'a> {
    request_id: String,
    function_id: &'a str,
    function_version_id: &'a str,
    tenant: &'a str,
    state: &'a str,
    /// The node that owns the session: the one that answers.
    node: String,
    core: u16,
    client_address: String,
    tunnel: String,
    streams: u32,
    bytes_in: u64,
    bytes_out: u64,
    age_ms: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    close_reason: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ended_at: Option<String>,
}

/// A row for `/sessions`. With `whole_id` the id is shown in full: whoever has that can come back
/// to the session.
pub(super) fn session(row: &SessionRow, node: Node, whole_id: bool) -> SessionView<'_> {
    let mut request_id = row.request_id.to_string();
    if !whole_id {
        request_id.truncate(SHORT_ID);
    }
    SessionView {
        request_id,
        function_id: &row.function_id,
        function_version_id: &row.function_version_id,
        tenant: &row.tenant,
        state: row.state,
        node: node.to_string(),
        core: row.core,
        client_address: address(row.client_address),
        tunnel: address(row.tunnel),
        streams: row.streams,
        bytes_in: row.bytes_in,
        bytes_out: row.bytes_out,
        age_ms: row.age_ms,
        close_reason: row.close_reason,
        ended_at: row.ended_at.map(crate::log::rfc3339),
    }
}

/// An address as text; empty if it is not known, or not known yet.
fn address(of: Option<SocketAddr>) -> String {
    of.map(|address| address.to_string()).unwrap_or_default()
}
