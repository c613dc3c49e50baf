//! Texts and keys of the lines: those of the contract, and `shard`.

use uuid::Uuid;

use super::{Closed, Line, Record};
use crate::metrics::CloseReason;

/// Writes the line (or, at a session's end, the lines) of a record.
pub(super) fn write(record: &Record) {
    let shard = record.shard;
    let left_out = Some(record.left_out).filter(|left_out| *left_out > 0);
    match &record.line {
        Line::Registered(named) => tracing::info!(
            request_id = %named.session,
            function_id = %named.function,
            function_version_id = %named.version,
            shard,
            left_out,
            "registering new worker connection"
        ),
        Line::Closed(of) => closed(record, of),
        Line::OpenFailed(refused) => tracing::warn!(
            grpc_status = refused.fault.code(),
            error = %refused.fault,
            client = %refused.client,
            function_id = %String::from_utf8_lossy(&refused.function),
            function_version_id = %String::from_utf8_lossy(&refused.version),
            tenant = %refused.tenant,
            shard,
            left_out,
            "failed to open stateful work request"
        ),
        Line::Rejected { result, age, .. } => tracing::info!(
            connect_result = %result,
            token_age = age.map(|age| age.as_secs_f64()),
            shard,
            left_out,
            "rejecting worker CONNECT"
        ),
        Line::ConnectionFailed { peer, tunnel, fault } => tracing::info!(
            peer = %peer,
            hop = if *tunnel { "worker" } else { "client" },
            code = ?fault.code,
            reason = fault.reason,
            shard,
            left_out,
            "closing connection for a protocol fault"
        ),
        Line::Unrelayed { node, cause, outcome, left_out } => tracing::warn!(
            node = node.map(|node| node.to_string()),
            cause = cause.label(),
            why = outcome.label(),
            left_out,
            shard,
            "a connection cannot be relayed to its node"
        ),
        Line::PreludeRefused { peer, outcome, left_out } => tracing::warn!(
            %peer,
            why = outcome.label(),
            left_out,
            shard,
            "a prelude was refused"
        ),
        Line::Access(line) => tracing::info!(
            status = line.status,
            latency = line.latency.as_secs_f64(),
            client_ip = %line.client.ip(),
            method = %line.method,
            path = %String::from_utf8_lossy(line.shown()),
            size = line.size,
            shard,
            "http request"
        ),
    }
}

/// A session's end: the cause in the reference's words, then the one line with everything.
fn closed(record: &Record, of: &Closed) {
    let mut id = Uuid::encode_buffer();
    let request_id = &*of.named.session.hyphenated().encode_lower(&mut id);
    let shard = record.shard;
    match of.reason {
        CloseReason::ClientClosed => tracing::info!(
            request_id,
            shard,
            "triggering worker connection shutdown from client close"
        ),
        CloseReason::WorkerClosed => {
            tracing::info!(request_id, shard, "connection going inactive, removing from cache")
        }
        _ => {}
    }
    tracing::info!(request_id, shard, "closing worker connection");
    let opened_at = record.at - of.held_for;
    tracing::info!(
        request_id,
        eviction_reason = of.reason.label(),
        held_for = of.held_for.as_secs_f64(),
        opened_at = &*super::stamp::of(opened_at),
        closed_at = &*super::stamp::of(record.at),
        close_code = of.code.label(),
        close_detail = %of.detail,
        closed_by_peer = of.by_peer(),
        local_timeout = of.timer,
        function_id = %of.named.function,
        function_version_id = %of.named.version,
        shard,
        left_out = Some(record.left_out).filter(|left_out| *left_out > 0),
        "worker connection cache eviction triggered"
    );
}
