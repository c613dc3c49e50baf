//! What the admin port shows of a core.

use super::Shard;
use super::turn::Turn;
use crate::border::Border;
use crate::metrics::{CopyWhy, Limit};
use crate::post::{SessionRow, Snapshot};

/// A core at this instant.
pub(super) fn snapshot(shard: &mut Shard, border: &mut Border) -> Snapshot {
    let mut metrics = shard.metrics.clone();
    metrics.function_requests.expire(shard.now);
    metrics.payload_copied[CopyWhy::SlowPeer.index()] += border.copied_out;
    metrics.inlet = border.tally.inlet;
    shard.relay.gauge(&shard.settings, &mut metrics);
    shard.sessions.gauge(&shard.settings, &mut metrics);
    let limits = &shard.settings.config.limits;
    metrics.gauge(Limit::WorkerConnections, shard.functions_side(), limits.worker_connections);
    metrics.gauge(Limit::Polls, shard.workers.polls(), limits.polls);
    metrics.gauge(Limit::WorkQueue, shard.workers.fullest(), limits.work_queue);
    metrics.gauge(Limit::Outbox, shard.cores.len(), limits.outbox);
    metrics.gauge(Limit::TraceRecords, shard.edges.records(), limits.trace_records);
    let sessions = session_rows(shard, border);
    Snapshot { metrics, sessions, ..Snapshot::default() }
}

fn session_rows(shard: &mut Shard, border: &mut Border) -> Vec<SessionRow> {
    let rows = shard.sessions.rows(&*turn!(shard, border));
    let (live, closed): (Vec<_>, Vec<_>) =
        rows.into_iter().partition(|(_, row)| row.close_reason.is_none());
    let live =
        live.into_iter().map(|(key, row)| match key.and_then(|key| shard.relay.facts(key)) {
            Some(facts) => facts.show(row),
            None => row,
        });
    let mut rows = SessionRow::joined(live);
    rows.sort_by_key(|row| row.age_ms);
    rows.extend(closed.into_iter().map(|(_, row)| row));
    rows
}
