//! What one core owns, in six components: [`relay`] (connections, exchanges and their routes),
//! [`sessions`] (attachments, pins, parked tunnels, the directory), [`workers`] (the worker
//! listener and the work), [`nodes`] (connections to and from other gateways), [`cores`] (messages
//! between cores), [`edges`] (what metrics, log and timeline read). The shard is pure. Bytes and
//! events come in through [`Core`]; segments and rare wishes go out through the [`Net`].
//!
//! Components own their tables and know nothing of each other. What a component cannot do itself it
//! leaves as a [`Fact`]. The loop here ([`Shard::settle`]) gives each fact to its component, and
//! all consequences of one fact before the next one, until none is left.

mod bucket;
mod cause;
mod cores;
mod edges;
mod facts;
mod nodes;
mod plane;
mod relay;
mod sessions;
mod settings;
mod table;
mod timer;
mod turn;
mod workers;

use std::net::SocketAddr;
use std::sync::Arc;

use ringway_proto::time::Time;

use self::cores::{Cores, Heard};
use self::edges::{Edges, Readers};
use self::facts::{Answer, Ask, AskTicket, Fact, ForNodes, ForSessions, ForWorkers, Topic};
use self::handover::Handover;
use self::nodes::Nodes;
use self::plane::PlaneQueue;
use self::relay::{Relay, Step};
use self::sessions::Sessions;
pub use self::settings::ShardSettings;
use self::snapshot::Survey;
use self::table::Key;
use self::timer::Timers;
use self::turn::{Draining, Left, Turn};
use self::workers::Workers;
use crate::control::local::Policy;
use crate::log::Lines;
use crate::message::{ControlMessage, CoreMessage, ShardMessage};
use crate::metrics::{Limit, ShardMetrics};
use crate::net::{Close, ConnId, Core, Detached, End, Listener, Net};
use crate::pool::Segment;

/// One core's state.
#[derive(Debug)]
pub struct Shard {
    settings: ShardSettings,
    policy: Arc<Policy>,
    now: Time,
    relay: Relay,
    sessions: Sessions,
    workers: Workers,
    nodes: Nodes,
    cores: Cores,
    edges: Edges,
    handover: Handover,
    plane_queue: PlaneQueue,
    timers: Timers,
    metrics: ShardMetrics,
    /// Facts that components have left, and those that wait for the next turn.
    left: Left,
    draining: Option<Draining>,
    /// While this is set, a drain ends only at its limit.
    stays: bool,
    finished: bool,
    /// A look at all connections, for the counters.
    survey: Survey,
    /// Messages for the control thread.
    messages: Vec<ControlMessage>,
}

/// Builds the [`Turn`] that a component is given with each call.
macro_rules! turn {
    ($shard:expr, $net:expr) => {
        &mut Turn {
            now: $net.now,
            net: $net,
            settings: &$shard.settings,
            metrics: &mut $shard.metrics,
            timers: &mut $shard.timers,
            draining: $shard.draining,
            left: &mut $shard.left,
        }
    };
}

// These modules use the macro above, so they are declared behind it.
mod fire;
mod handover;
mod others;
mod snapshot;

impl Shard {
    /// A core's state with no connection.
    #[must_use]
    pub fn new(settings: ShardSettings, policy: Arc<Policy>) -> Self {
        Self {
            relay: Relay::new(&settings),
            sessions: Sessions::new(&settings, policy.clone()),
            workers: Workers::new(&settings, policy.clone()),
            nodes: Nodes::new(&settings),
            cores: Cores::new(settings.node),
            edges: Edges::new(settings.config.limits.trace_records),
            handover: Handover::new(settings.unanswered),
            settings,
            policy,
            now: Time::ZERO,
            plane_queue: PlaneQueue::default(),
            timers: Timers::default(),
            metrics: ShardMetrics::default(),
            left: Left::default(),
            draining: None,
            stays: false,
            finished: false,
            survey: Survey::default(),
            messages: Vec::new(),
        }
    }

    // ---- for who drives it ----

    /// The messages for the control thread since the last call.
    pub fn take_messages(&mut self, into: &mut Vec<ControlMessage>) {
        into.append(&mut self.messages);
    }

    /// The lines for the log since the last call.
    pub fn take_lines(&mut self, into: &mut Lines) {
        into.append(&mut self.left.lines);
    }

    /// The messages for other cores since the last call, each with the core it is for. When one
    /// finds no room, it and all later ones of this call for the same core come back through
    /// [`Self::undelivered`]: the order between two cores has to be kept.
    pub fn take_core_messages(&mut self, into: &mut Vec<(u16, CoreMessage)>) {
        self.cores.take_messages(into);
    }

    /// A message found its core's mailbox full.
    pub fn undelivered(&mut self, net: &mut Net, to: u16, message: CoreMessage) {
        let attachments = self.sessions.len();
        self.cores.undelivered(turn!(self, net), attachments, to, message);
        self.settle(net);
    }

    /// The questions for a remote control plane since the last call. To be called after each turn.
    /// Answers come back through [`Self::answered`].
    pub fn take_asks(&mut self, into: &mut Vec<Ask>) {
        self.plane_queue.take(into);
    }

    /// The control plane's answer. A turn has to follow.
    pub fn answered(&mut self, net: &mut Net, ticket: AskTicket, answer: Answer) {
        self.leave(match ticket.about {
            Topic::Node => Fact::Nodes(ForNodes::Located { number: ticket.number, answer }),
            Topic::Call | Topic::Tunnel => Fact::Sessions(ForSessions::Answered { ticket, answer }),
        });
        self.settle(net);
    }

    /// Sets whether a drain goes on although this core has no client any more: other cores may need
    /// it.
    pub fn stay(&mut self, stays: bool) {
        self.stays = stays;
    }

    /// Connections of clients.
    #[must_use]
    pub fn clients(&self) -> usize {
        self.relay.clients()
    }

    /// Lets the stream ids of new tunnels run out early, for tests.
    pub fn end_stream_ids_at(&mut self, last: u32) {
        self.relay.end_stream_ids_at(last);
    }

    /// The core's counters, for tests and the simulated world.
    #[must_use]
    pub fn metrics(&self) -> &ShardMetrics {
        &self.metrics
    }

    /// Whether no connection, session, exchange, question or queued work is left.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.relay.is_empty()
            && self.sessions.is_empty()
            && self.workers.is_empty()
            && self.nodes.is_empty()
            && self.cores.is_empty()
            && self.left.is_quiet()
            && !self.left.waits()
            && self.handover.is_empty()
            && self.plane_queue.is_empty()
    }

    // ---- the loop ----

    /// Gives the facts that components have left to those they are for, until none is left. Most
    /// calls leave none.
    #[inline(always)]
    fn settle(&mut self, net: &mut Net) {
        if !self.left.is_quiet() || self.relay.has_tail() {
            self.settle_all(net);
        }
    }

    #[inline(never)]
    fn settle_all(&mut self, net: &mut Net) {
        self.now = net.now;
        loop {
            // The consequences of one fact come before the next fact.
            while let Some(fact) = self.left.next(&mut self.metrics) {
                self.give(net, fact);
            }
            if !self.relay.has_tail() {
                break;
            }
            self.relay.read_tail(turn!(self, net));
        }
        if !self.left.edges.is_empty() {
            self.read_edges();
        }
        self.metrics.active_connections = self.relay.clients() as u64;
    }

    fn leave(&mut self, fact: Fact) {
        self.left.leave(fact);
    }

    fn read_edges(&mut self) {
        for edge in self.left.edges.drain(..) {
            let (metrics, lines) = (&mut self.metrics, &mut self.left.lines);
            self.edges.read(edge, &mut Readers { now: self.now, metrics, lines });
        }
    }

    /// Gives a fact to the component it is for.
    fn give(&mut self, net: &mut Net, fact: Fact) {
        match fact {
            Fact::Relay(fact) => self.relay.on(turn!(self, net), fact),
            Fact::Sessions(fact) => self.sessions.on(turn!(self, net), fact),
            Fact::Workers(ForWorkers::SendHome { conn, core }) if self.cores.mail_waits(core) => {
                self.workers.on(turn!(self, net), ForWorkers::NoWayHome { conn });
            }
            Fact::Workers(fact) => self.workers.on(turn!(self, net), fact),
            Fact::Nodes(fact) => self.nodes.on(turn!(self, net), fact),
            Fact::Elsewhere(elsewhere) => handover::elsewhere(self, net, elsewhere),
            Fact::Knock { conn, client } => handover::knock(self, conn, client),
            Fact::NodeLeaves { node } => handover::node_leaves(self, node),
            Fact::Send { to, message } => {
                let attachments = self.sessions.len();
                if let Some(heard) = self.cores.send(turn!(self, net), attachments, to, message) {
                    self.hear(net, heard);
                }
            }
            Fact::Renewed { core } => {
                let attachments = self.sessions.len();
                self.cores.renew(turn!(self, net), attachments, core);
            }
            Fact::Ask(ask) => {
                let local = (&*self.policy, || self.sessions.draw());
                self.plane_queue.ask(turn!(self, net), local, ask);
            }
            Fact::Dial { key, address } => self.dial(net, key, address),
            Fact::Undial { conn } => net.close(conn, Close::Now),
        }
    }

    /// Does what a core's message asks for.
    fn hear(&mut self, net: &mut Net, heard: Heard) {
        match heard {
            Heard::Fact(fact) => self.leave(fact),
            Heard::Connect(moved) => {
                let room = self.admits(Listener::Worker).is_ok();
                let fact = if room {
                    ForWorkers::Connect(moved)
                } else {
                    self.metrics.limit_hit(Limit::WorkerConnections);
                    ForWorkers::TurnAway(moved.detached)
                };
                self.leave(Fact::Workers(fact));
            }
            Heard::Resumed(resumed) => {
                let room = self.admits(Listener::Worker).is_ok();
                self.leave(Fact::Sessions(ForSessions::Resumed { resumed, room }));
            }
            Heard::Void { core } => self.void(net, core),
        }
    }

    fn dial(&mut self, net: &mut Net, key: Key, address: SocketAddr) {
        let fact = match self.admits(Listener::Worker) {
            Ok(()) => ForSessions::Dialling { key, conn: net.dial(address) },
            Err(_) => ForSessions::NotDialled { key },
        };
        self.leave(Fact::Sessions(fact));
    }

    // ---- limits of connections ----

    /// Whether one more connection of a kind is allowed. If not, the limit that is reached.
    fn admits(&self, kind: Listener) -> Result<(), Limit> {
        let limits = &self.settings.config.limits;
        let (used, most, limit) = match kind {
            Listener::Client => {
                let clients = self.relay.clients() + self.nodes.clients();
                (clients, limits.client_connections, Limit::ClientConnections)
            }
            Listener::Worker | Listener::Cluster => {
                (self.functions_side(), limits.worker_connections, Limit::WorkerConnections)
            }
        };
        if used < most { Ok(()) } else { Err(limit) }
    }

    /// Connections of the functions' side, with those that are being dialled.
    fn functions_side(&self) -> usize {
        self.relay.tunnels() + self.workers.len() + self.sessions.dials() + self.nodes.others()
    }

    /// Reads the bytes that waited in this turn, and hands over clients that have left.
    #[cold]
    fn read_on(&mut self, net: &mut Net) {
        while self.relay.read_kept(turn!(self, net)) == Step::More {
            self.settle(net);
        }
        self.relay.part_clients(turn!(self, net));
        self.settle(net);
    }

    #[inline(never)]
    fn turn_workers(&mut self, net: &mut Net) {
        self.workers.turn(turn!(self, net));
        self.settle(net);
    }

    /// Asks for the tunnels of the attachments made in this turn. If there is no room for one's
    /// work, its requests may move to another attachment of this turn.
    #[inline(never)]
    fn launch(&mut self, net: &mut Net) {
        while self.sessions.has_deferred() {
            self.sessions.launch(turn!(self, net));
            self.settle(net);
        }
    }

    /// Bytes of a connection that goes to another gateway, or comes from one.
    #[inline(never)]
    fn received_by_nodes(&mut self, net: &mut Net, conn: ConnId, segment: Segment) {
        self.nodes.received(turn!(self, net), conn, segment);
        self.settle(net);
    }

    /// Bytes of a worker's connection, which is not the relay's.
    #[inline(never)]
    fn received_by_workers(&mut self, net: &mut Net, conn: ConnId, segment: Segment) {
        self.workers.received(turn!(self, net), conn, segment);
        self.settle(net);
    }
}

impl Core for Shard {
    type Message = ShardMessage;

    fn accepted(&mut self, net: &mut Net, conn: ConnId, listener: Listener, peer: SocketAddr) {
        if let Err(limit) = self.admits(listener) {
            self.metrics.limit_hit(limit);
            return net.close(conn, Close::Now);
        }
        match listener {
            Listener::Client => {
                self.metrics.client_connections_opened += 1;
                self.relay.accepted(turn!(self, net), conn, peer);
                self.metrics.active_connections = self.relay.clients() as u64;
                self.keep_unanswered(conn);
            }
            Listener::Worker => self.workers.accepted(turn!(self, net), conn, peer),
            Listener::Cluster => self.nodes.accepted(turn!(self, net), conn, peer),
        }
        self.settle(net);
    }

    fn dialled(&mut self, net: &mut Net, conn: ConnId, result: Result<(), i32>) {
        if self.nodes.holds(conn) {
            self.nodes.dialled(turn!(self, net), conn, result);
        } else {
            self.sessions.dial_ended(turn!(self, net), conn, result);
        }
        self.settle(net);
    }

    fn received(&mut self, net: &mut Net, conn: ConnId, segment: Segment) {
        if self.nodes.holds(conn) {
            return self.received_by_nodes(net, conn, segment);
        }
        if self.handover.keeps(conn) {
            return self.received_and_kept(net, conn, segment);
        }
        let mut pos = 0;
        loop {
            let step = self.relay.received(turn!(self, net), conn, segment, &mut pos);
            self.settle(net);
            match step {
                Step::More => {}
                Step::Done => return,
                Step::Foreign => return self.received_by_workers(net, conn, segment),
            }
        }
    }

    fn addressed(&mut self, _net: &mut Net, conn: ConnId, peer: SocketAddr) {
        self.relay.addressed(conn, peer);
        self.workers.addressed(conn, peer);
    }

    fn ended(&mut self, net: &mut Net, conn: ConnId, end: End) {
        self.stay_to_the_end(net, conn, end);
        if self.nodes.holds(conn) {
            self.nodes.ended(turn!(self, net), conn, end);
        } else if self.workers.holds(conn) {
            self.workers.ended(turn!(self, net), conn, end);
        } else {
            self.relay.ended(turn!(self, net), conn, end);
        }
        self.settle(net);
    }

    fn written(&mut self, net: &mut Net, conn: ConnId, _bytes: usize) {
        if self.nodes.holds(conn) {
            self.nodes.written(turn!(self, net), conn);
        } else {
            self.relay.written(turn!(self, net), conn);
        }
        self.settle(net);
    }

    fn awaits(&self, conn: ConnId) -> bool {
        self.relay.awaits(conn) || self.nodes.awaits(conn)
    }

    fn message_received(&mut self, net: &mut Net, message: ShardMessage) {
        self.now = net.now;
        match message {
            ShardMessage::Snapshot { ticket } => {
                let begins = !self.survey.is_open();
                self.survey.ask(ticket);
                if begins {
                    snapshot::survey(self, net);
                }
            }
            ShardMessage::Rows { ticket, from, wanted } => {
                let page = Box::new(snapshot::page(self, net, from, wanted));
                self.messages.push(ControlMessage::Rows { ticket, page });
            }
            ShardMessage::Beat { ticket } => {
                self.messages.push(ControlMessage::Beat { ticket, clients: self.clients() });
            }
            ShardMessage::Timeline { ticket, wanted } => {
                let parts = self.edges.timeline(wanted, self.now, &self.settings);
                self.messages.push(ControlMessage::Timeline { ticket, parts });
            }
            ShardMessage::Policy(policy) => {
                let old = std::mem::replace(&mut self.policy, policy.clone());
                self.workers.replace_policy(policy.clone());
                self.sessions.replace_policy(turn!(self, net), policy);
                // The last owner of a policy frees it, which takes long if it is large: so the
                // control thread does that.
                self.messages.push(ControlMessage::Replaced { policy: old });
            }
            ShardMessage::Keys(keys) => {
                self.sessions.share(&keys);
                self.nodes.replace_keys(keys);
            }
            ShardMessage::Answer { ticket, answer } => self.answered(net, ticket, answer),
            ShardMessage::Unready => self.relay.set_unready(),
            ShardMessage::Health(ills) => self.relay.set_ills(ills),
            ShardMessage::Drain { max } => self.drain(net, max),
            ShardMessage::End { id } => self.sessions.end_session(turn!(self, net), id),
            ShardMessage::Stop => self.end_all(net, Close::Now),
            ShardMessage::Core(message) => {
                if let Some(heard) = self.cores.heard(message) {
                    self.hear(net, heard);
                }
            }
            ShardMessage::Restarted { core } => self.restarted(net, core),
            ShardMessage::Client { detached, peer } => {
                let conn = net.admit(detached, Listener::Client);
                self.accepted(net, conn, Listener::Client, peer);
            }
        }
        self.settle(net);
    }

    fn detached(&mut self, net: &mut Net, conn: ConnId, detached: Detached) {
        if self.workers.holds(conn) {
            self.workers.detached(turn!(self, net), conn, detached);
        } else if let Some(detached) = self.handover.hand_over(conn, detached) {
            self.relay.detached(turn!(self, net), conn, detached);
        }
        self.settle(net);
    }

    fn turn(&mut self, net: &mut Net) {
        self.now = net.now;
        if self.left.waits() {
            self.left.take_up();
            self.settle(net);
        }
        if self.cores.waits() {
            self.resend(net);
        }
        if self.timers.are_due(net.now) {
            fire::fire_timers(self, net);
        }
        if self.sessions.renews() {
            fire::renew_terms(self, net);
        }
        if self.survey.is_open() {
            snapshot::survey(self, net);
        }
        if self.relay.has_unread() {
            self.read_on(net);
        }
        if self.workers.deadline().is_some_and(|at| at <= net.now) {
            self.turn_workers(net);
        }
        if self.nodes.has_ready() {
            handover::go_on_here(self, net);
        }
        if self.sessions.has_deferred() {
            self.launch(net);
        }
        if self.relay.holds_nothing() {
            net.end_stash();
        }
        if self.draining.is_some() {
            self.drain_turn(net);
        }
    }

    fn relieve(&mut self, net: &mut Net) {
        self.relay.relieve(turn!(self, net));
    }

    fn deadline(&self) -> Option<Time> {
        let goes_on = self.survey.is_open() || self.sessions.renews() || self.nodes.has_ready();
        if goes_on || self.relay.has_unread() || self.left.waits() {
            return Some(self.now);
        }
        let due = [self.timers.next(), self.workers.deadline(), self.cores.deadline()];
        let over = self.draining == Some(Draining::Open) && self.all_are_idle();
        due.into_iter().flatten().chain(over.then_some(self.now)).min()
    }

    fn finished(&self) -> bool {
        self.finished
    }
}

#[cfg(test)]
mod tests;
