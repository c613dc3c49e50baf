//! Timers that are due, and whether what they were armed for still exists. Also new rules, which
//! attachments are told a part at a time.

use super::Shard;
use super::timer::Due;
use super::turn::Turn;
use crate::net::{Close, ConnId, Net};

/// Most timers that fire in one turn: many that are due at once must not keep connections waiting.
const FIRES: usize = 256;

/// Fires the timers that are due.
pub(super) fn fire_timers(shard: &mut Shard, net: &mut Net) {
    let (relay, sessions, workers) = (&shard.relay, &shard.sessions, &shard.workers);
    let nodes = &shard.nodes;
    let matters = |due: Due| match due {
        Due::Hop { slot, generation } => relay.holds(ConnId { slot, generation }),
        Due::WorkerConn { slot, generation } => workers.holds(ConnId { slot, generation }),
        Due::Wait(key) | Due::Patience(key) | Due::Recall(key) => sessions.waits(key),
        Due::Replace(key) | Due::Settled(key) => sessions.holds(key),
        Due::Relay(key) => nodes.waits(key),
        Due::Arrival(key) => nodes.arrives(key),
        Due::Ask(ticket) => sessions.asks(ticket),
        Due::Finish(exchange) | Due::SmallSend(exchange) | Due::Answered(exchange) => {
            relay.has_exchange(exchange)
        }
        Due::Farewell => nodes.says_farewell(),
        Due::Yield | Due::Sweep | Due::KeptOut | Due::Drain => true,
    };
    if shard.timers.is_crowded() {
        shard.timers.sweep(matters);
    }
    if shard.timers.next().is_none_or(|at| at > net.now) {
        return;
    }
    shard.timers.begin(net.now, matters);
    // The rest has the next turn, which comes at once.
    for _ in 0..FIRES {
        let Some(due) = shard.timers.pop(net.now) else { break };
        fire(shard, net, due);
    }
}

/// A timer has fired.
#[inline(never)]
fn fire(shard: &mut Shard, net: &mut Net, due: Due) {
    let turn = turn!(shard, net);
    match due {
        Due::Hop { slot, generation } => {
            shard.relay.look_at(turn, ConnId { slot, generation });
        }
        Due::WorkerConn { slot, generation } => {
            shard.workers.look_at(turn, ConnId { slot, generation });
        }
        Due::Wait(key) => shard.sessions.waited(turn, key),
        Due::Patience(key) => shard.sessions.impatient(turn, key),
        Due::Replace(key) => shard.sessions.replace_overdue(turn, key),
        Due::Recall(key) => shard.sessions.recall(turn, key),
        Due::Settled(key) => shard.sessions.settled(turn, key),
        Due::Relay(key) => shard.nodes.late(turn, key),
        Due::Arrival(key) => shard.nodes.arrival_late(turn, key),
        Due::Ask(ticket) => shard.sessions.ask_overdue(turn, ticket),
        Due::Finish(exchange) => shard.relay.finish_raw(turn, exchange),
        Due::SmallSend(exchange) => shard.relay.allow_small_sends(turn, exchange),
        Due::Answered(exchange) => shard.relay.answered_too_long(turn, exchange),
        Due::Yield => shard.workers.look_at_queues(turn),
        Due::Sweep => shard.relay.sweep(turn),
        Due::Farewell => shard.nodes.leave_again(turn),
        Due::KeptOut => shard.nodes.let_in_again(turn),
        Due::Drain => shard.end_all(net, Close::Flush),
    }
    shard.settle(net);
}

/// Tells more attachments of new rules.
#[cold]
pub(super) fn renew_terms(shard: &mut Shard, net: &mut Net) {
    shard.sessions.renew_terms(turn!(shard, net));
    shard.settle(net);
}
