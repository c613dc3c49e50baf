//! Texts and keys of the lines: those of the contract, and `shard`.

use super::{Edge, Record, What};

/// Writes the line (or, at a session's end, the lines) of a record.
pub(super) fn write(record: &Record) {
    let shard = record.shard;
    let left_out = Some(record.left_out).filter(|left_out| *left_out > 0);
    match &record.what {
        What::Registered(edge) => tracing::info!(
            request_id = %edge.request_id(),
            function_id = %edge.function_id(),
            function_version_id = %edge.function_version_id(),
            shard,
            left_out,
            "registering new worker connection"
        ),
        What::Closed(edge) => closed(record, edge),
        What::OpenFailed { refused } => tracing::warn!(
            grpc_status = refused.code,
            error = %refused.text,
            client = %refused.client,
            function_id = %refused.function_id,
            function_version_id = %refused.function_version_id,
            tenant = %refused.tenant,
            shard,
            left_out,
            "failed to open stateful work request"
        ),
        What::Rejected { result, age } => tracing::info!(
            connect_result = %result,
            token_age = age.map(|age| age.as_secs_f64()),
            shard,
            left_out,
            "rejecting worker CONNECT"
        ),
        What::ConnectionFailed { peer, tunnel, code, reason } => tracing::info!(
            peer = %peer,
            hop = if *tunnel { "worker" } else { "client" },
            code = %code,
            reason,
            shard,
            left_out,
            "closing connection for a protocol fault"
        ),
        What::Access { line } => tracing::info!(
            status = line.status,
            latency = line.latency.as_secs_f64(),
            client_ip = %line.client.ip(),
            method = %line.method,
            path = %line.path,
            size = line.size,
            shard,
            "http request"
        ),
    }
}

/// A session's end: the cause in the reference's words, then the one line with everything.
fn closed(record: &Record, edge: &Edge) {
    let request_id = edge.request_id();
    let shard = record.shard;
    match edge.eviction_reason {
        "client_closed" => tracing::info!(
            request_id,
            shard,
            "triggering worker connection shutdown from client close"
        ),
        "worker_closed" => {
            tracing::info!(request_id, shard, "connection going inactive, removing from cache")
        }
        _ => {}
    }
    tracing::info!(request_id, shard, "closing worker connection");
    let opened_at = record.at - edge.held_for;
    tracing::info!(
        request_id,
        eviction_reason = edge.eviction_reason,
        held_for = edge.held_for.as_secs_f64(),
        opened_at = super::stamp::of(opened_at),
        closed_at = super::stamp::of(record.at),
        close_code = edge.close_code,
        close_detail = %edge.close_detail(),
        closed_by_peer = edge.closed_by_peer,
        local_timeout = edge.local_timeout,
        function_id = %edge.function_id(),
        function_version_id = %edge.function_version_id(),
        shard,
        left_out = Some(record.left_out).filter(|left_out| *left_out > 0),
        "worker connection cache eviction triggered"
    );
}
