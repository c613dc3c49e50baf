//! What the admin port is shown of a core: its counters, and its sessions page by page. Neither may
//! keep the core's connections waiting, however many there are.

use super::Shard;
use super::relay::Fullest;
use super::turn::Turn;
use crate::message::{Bookmark, ControlMessage, Page, Snapshot};
use crate::metrics::{CopyWhy, Limit};
use crate::net::Net;
use crate::timeline::IdBegin;

/// Connections looked at in one turn. Some cost two cache lines that were not used for long.
const LOOKS: usize = 1024;

/// Most questions that wait for the counters. The admin port has fewer connections, so no more can
/// come at once.
const ASKERS: usize = 512;

/// A look at all connections, for counters that only they can give.
#[derive(Debug, Default)]
pub(super) struct Survey {
    /// The questions that wait for its result.
    tickets: Vec<u64>,
    /// The slot at which the look goes on.
    at: usize,
    fullest: Fullest,
}

impl Survey {
    /// Adds a question. If a look is under way, its result answers this question too.
    pub(super) fn ask(&mut self, ticket: u64) {
        // The question that has waited for longest has timed out by now.
        if self.tickets.len() == ASKERS {
            self.tickets.remove(0);
        }
        self.tickets.push(ticket);
    }

    /// Whether the look goes on in the next turn.
    pub(super) fn is_open(&self) -> bool {
        !self.tickets.is_empty()
    }
}

/// Goes on with the look at all connections, and answers at its end.
pub(super) fn survey(shard: &mut Shard, net: &Net) {
    let Survey { tickets, at, fullest } = &mut shard.survey;
    if let Some(next) = shard.relay.survey(*at, LOOKS, fullest) {
        *at = next;
        return;
    }
    let (tickets, fullest) = (std::mem::take(tickets), std::mem::take(fullest));
    *at = 0;
    for ticket in tickets {
        let snapshot = Box::new(snapshot(shard, net, &fullest));
        let core = shard.settings.core;
        shard.messages.push(ControlMessage::Snapshot { ticket, core, snapshot });
    }
}

fn snapshot(shard: &Shard, net: &Net, fullest: &Fullest) -> Snapshot {
    let mut metrics = shard.metrics.clone();
    metrics.function_requests.expire(shard.now);
    metrics.payload_copied[CopyWhy::SlowPeer.index()] += net.copied_out;
    metrics.transport = net.tally.transport;
    shard.relay.gauge(&shard.settings, fullest, &mut metrics);
    shard.sessions.gauge(&shard.settings, &mut metrics);
    shard.nodes.gauge(&shard.settings, &mut metrics);
    let limits = &shard.settings.config.limits;
    metrics.gauge(Limit::WorkerConnections, shard.functions_side(), limits.worker_connections);
    metrics.gauge(Limit::Polls, shard.workers.polls(), limits.polls);
    metrics.gauge(Limit::WorkQueue, shard.workers.fullest(), limits.work_queue);
    metrics.gauge(Limit::Outbox, shard.cores.len(), limits.outbox);
    metrics.gauge(Limit::TraceRecords, shard.edges.records(), limits.trace_records);
    Snapshot { metrics, ..Snapshot::default() }
}

/// A page of the sessions whose id begins as wanted.
pub(super) fn page(
    shard: &mut Shard,
    net: &mut Net,
    from: Bookmark,
    wanted: Option<IdBegin>,
) -> Page {
    let (rows, next) = shard.sessions.page(&*turn!(shard, net), from, wanted);
    let shown =
        rows.into_iter().map(|(key, row)| match key.and_then(|key| shard.relay.facts(key)) {
            Some(facts) => facts.show(row),
            None => row,
        });
    Page { core: shard.settings.core, rows: shown.collect(), next }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::config::Config;
    use crate::control::local::Policy;
    use crate::message::ShardMessage;
    use crate::net::{Core, Listener};
    use crate::shard::turn::rig::Rig;

    fn messages(shard: &mut Shard) -> Vec<u64> {
        let mut messages = Vec::new();
        shard.take_messages(&mut messages);
        let ticket = |message: &ControlMessage| match message {
            ControlMessage::Snapshot { ticket, .. } => *ticket,
            other => panic!("{other:?} was not asked for"),
        };
        messages.iter().map(ticket).collect()
    }

    #[test]
    fn counters_are_told_when_all_connections_were_looked_at_some_in_each_turn() {
        let mut rig = Rig::with(0, 1, Config::dev());
        let policy = Policy::new(&rig.settings.config.tenants, &rig.settings.config.functions);
        let mut shard = Shard::new(rig.settings, Arc::new(policy));
        let net = &mut rig.net;
        let peer = "192.0.2.1:5".parse().expect("an address");
        for _ in 0..2 * LOOKS + 1 {
            let conn = net.open();
            shard.accepted(net, conn, Listener::Client, peer);
        }
        shard.message_received(net, ShardMessage::Snapshot { ticket: 7 });
        for turn in 1..3 {
            assert_eq!(shard.deadline(), Some(net.now), "turn {turn}");
            assert_eq!(messages(&mut shard), [0; 0], "turn {turn}");
            if turn == 1 {
                shard.message_received(net, ShardMessage::Snapshot { ticket: 8 });
            }
            shard.turn(net);
        }
        assert_eq!(messages(&mut shard), [7, 8]);
        assert_ne!(shard.deadline(), Some(net.now));
        shard.message_received(net, ShardMessage::Snapshot { ticket: 9 });
        (0..2).for_each(|_| shard.turn(net));
        assert_eq!(messages(&mut shard), [9], "the next look begins anew");
    }
}
