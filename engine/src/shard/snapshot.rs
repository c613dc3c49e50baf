//! What the admin port shows of a core.

use super::Shard;
use super::attach::{Attachment, State};
use super::conn::Hop;
use super::link::Link;
use crate::metrics::{CopyWhy, Limit};
use crate::post::{SessionRow, Snapshot};

impl Shard {
    pub(super) fn snapshot(&self, border: &crate::border::Border) -> Snapshot {
        let mut metrics = self.metrics.clone();
        metrics.function_requests.expire(self.now);
        metrics.worker_connections_active = (self.attachments.len() - self.asking) as u64;
        metrics.payload_copied[CopyWhy::SlowPeer.index()] += border.copied_out;
        metrics.inlet = border.tally.inlet;
        metrics.resumes.parked = self.lot.len() as u64;
        let limits = &self.settings.config.limits;
        let mut gauge = |limit: Limit, used: usize, max: usize| {
            metrics.limit_used[limit.index()] = used as u64;
            metrics.limit_max[limit.index()] = max as u64;
        };
        let clients = self.metrics.active_connections as usize;
        gauge(Limit::ClientConnections, clients, limits.client_connections);
        gauge(
            Limit::WorkerConnections,
            self.conns.len().saturating_sub(clients),
            limits.worker_connections,
        );
        gauge(Limit::CoreBuffer, self.held, limits.core_buffer);
        gauge(Limit::PendingSessions, self.pending.clients(), limits.pending_sessions);
        gauge(Limit::Polls, self.local.polls(), limits.polls);
        gauge(Limit::WorkQueue, self.local.fullest(), limits.work_queue);
        gauge(Limit::Outbox, self.outbox.len(), limits.outbox);
        gauge(Limit::ParkedTunnels, self.lot.len(), limits.parked_tunnels);
        gauge(Limit::ParkedPerTenant, self.lot.fullest(), limits.parked_per_tenant);
        gauge(Limit::TraceRecords, self.trails.records(), limits.trace_records);
        let mut widest = (0, 0, 0, 0);
        for hop in self.conns.hops() {
            let attachments = hop.client().map_or(0, |client| client.attachments.len());
            widest.0 = widest.0.max(attachments);
            if hop.client().is_some() {
                widest.1 = widest.1.max(hop.link.streams());
            }
            // What waits is bounded apart from the lists that do.
            widest.2 = widest.2.max(hop.lists as usize);
            match hop.link {
                Link::H2(_) => widest.2 = widest.2.max(hop.held as usize),
                Link::H1(_) => widest.3 = widest.3.max(hop.held as usize),
            }
        }
        gauge(Limit::Attachments, widest.0, limits.attachments);
        gauge(Limit::Streams, widest.1, limits.streams as usize);
        gauge(Limit::ConnectionBuffer, widest.2, limits.connection_buffer);
        gauge(Limit::Http1Buffer, widest.3, limits.http1_buffer);
        Snapshot { metrics, sessions: self.session_rows(), ..Snapshot::default() }
    }

    fn session_rows(&self) -> Vec<SessionRow> {
        let shown = self.attachments.iter().map(|(_, attachment)| attachment);
        // Whose session a question is about is not known yet.
        let shown = shown.filter(|a| !matches!(a.state, State::Asking { .. }));
        // A spare is part of what its parent shows.
        let shown = shown.filter(|a| a.parent.is_none());
        let mut rows = SessionRow::joined(shown.map(|attachment| self.live_row(attachment)));
        rows.sort_by_key(|row| row.age_ms);
        rows.extend(self.sessions.recent().cloned());
        rows
    }

    fn live_row(&self, attachment: &Attachment) -> SessionRow {
        let hop = attachment.tunnel().and_then(|conn| self.conns.hop(conn));
        let used = hop.and_then(Hop::tunnel).is_some_and(|tunnel| tunnel.used);
        let state = match (hop.is_some(), used) {
            // A spare may have outlived what it was asked for, and not be there yet.
            (false, _) => "waiting",
            (true, _) if attachment.client.is_none() => "parked",
            (true, false) => "attached",
            (true, true) => "active",
        };
        let mut row = self.row(attachment);
        row.state = state;
        row.tunnel = hop.map(|hop| hop.peer.to_string()).unwrap_or_default();
        for slot in hop.into_iter().flat_map(|hop| hop.link.tags()) {
            if let Some(exchange) = self.exchanges.at(slot) {
                row.bytes_in += exchange.up.bytes;
                row.bytes_out += exchange.down.bytes;
            }
        }
        row
    }

    /// The row that remains of a session after its end.
    pub(super) fn closed_row(&self, attachment: &Attachment, reason: &'static str) -> SessionRow {
        SessionRow { state: "closed", close_reason: Some(reason), ..self.row(attachment) }
    }

    fn row(&self, attachment: &Attachment) -> SessionRow {
        let opened = attachment.session_opened;
        SessionRow {
            request_id: attachment.session,
            function_id: attachment.owner.function.to_string(),
            function_version_id: attachment.owner.version.to_string(),
            tenant: attachment.owner.tenant.to_string(),
            state: "waiting",
            core: self.settings.core,
            client_address: attachment.client_address.to_string(),
            tunnel: String::new(),
            streams: attachment.streams,
            bytes_in: attachment.bytes_up,
            bytes_out: attachment.bytes_down,
            age_ms: u64::try_from(self.now.since(opened).as_millis()).unwrap_or(u64::MAX),
            close_reason: None,
        }
    }
}
