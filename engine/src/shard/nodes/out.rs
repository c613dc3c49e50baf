//! A connection on its way to the gateway that owns it.
//!
//! ```text
//! Locating ──▶ Dialling ──▶ Greeted ──▶ Asked ──▶ Flowing
//!     │            │           │          │
//!     └────────────┴───────────┴──────────┴──▶ a worker is answered, a client goes Back
//! ```
//!
//! Until the owner has taken the connection, nothing is sent to the peer, and the peer's bytes are
//! kept.

use std::net::SocketAddr;

use ringway_proto::h2::Carried;
use ringway_proto::id::Node;
use ringway_proto::prelude::{CHALLENGE_LENGTH, Heard, Matter, Opening, Prelude, Verdict};
use ringway_proto::time::Time;

use super::super::facts::{Answer, Ask, AskTicket, Back, Fact, ForWorkers, Question, Topic};
use super::super::facts::{Stray, Strayed, number_of};
use super::super::settings::ShardSettings;
use super::super::table::Key;
use super::super::timer::Due;
use super::super::turn::Turn;
use super::farewell::tell_owner;
use super::{ConnRole, MOST_CARRIED, Nodes, PATIENCE, Ready};
use crate::carry::Said;
use crate::control::port::{Located, Plane};
use crate::log::Line;
use crate::metrics::{Limit, RelayCause, RelayOutcome};
use crate::net::{Close, ConnId, End};
use crate::pool::Segment;

/// A connection that belongs elsewhere.
#[derive(Debug)]
pub(super) struct Out {
    /// The connection to the peer.
    pub(super) near: ConnId,
    /// The connection to the owner.
    pub(super) far: Option<ConnId>,
    pub(super) cause: RelayCause,
    /// The owner; none: the old proxy.
    node: Option<Node>,
    /// The owner's address.
    address: Option<SocketAddr>,
    /// The bytes received from the peer, until they go to the owner.
    pub(super) stray: Option<Stray>,
    pub(super) step: Step,
    /// Whether reading is stopped until the other side's output has drained: of the owner, of the
    /// peer.
    pub(super) held: [bool; 2],
    /// The end of the peer's bytes, if it came before the owner took the connection.
    ended: Option<End>,
}

/// How far the relay has come.
#[derive(Debug)]
pub(super) enum Step {
    /// The owner's record is being read.
    Locating,
    /// The owner is being dialled.
    Dialling,
    /// The owner is reached. These octets of its challenge have come.
    Greeted(Vec<u8>),
    /// The prelude is sent.
    Asked,
    /// The owner has taken the connection, and bytes pass through.
    Flowing,
    /// The owner did not take it: the client goes on here.
    Back,
}

impl Out {
    /// The gateway that owns the connection, and its address.
    pub(super) fn owner(&self) -> Option<(Node, SocketAddr)> {
        self.node.zip(self.address)
    }

    /// The same, if it has taken the connection.
    pub(super) fn owner_served(&self) -> Option<(Node, SocketAddr)> {
        self.owner().filter(|_| matches!(self.step, Step::Flowing))
    }

    /// The connection, and the one to its owner while there is one.
    pub(super) fn conns(&self) -> impl Iterator<Item = ConnId> + use<> {
        std::iter::once(self.near).chain(self.far)
    }

    /// Whether reading of one side waits for the other side's output.
    pub(super) fn is_held(&self) -> bool {
        self.held != [false; 2]
    }
}

impl Nodes {
    /// Whether a client's connection may go to this node now. A refusal is counted.
    pub(crate) fn may_go(&mut self, turn: &mut Turn<'_>, node: Node, peer: SocketAddr) -> bool {
        let cause = RelayCause::Client;
        let fronts = &turn.settings.config.fronts.client;
        // Behind a balancer that does not name its clients all of them have the same address.
        let source = Some(peer).filter(|_| fronts.proxy_protocol);
        let may = self.check(turn, (cause, Some(node)), source);
        if let Err(outcome) = may {
            self.count(turn, (cause, Some(node)), outcome);
        }
        may.is_ok()
    }

    /// Whether a connection can be relayed at all.
    fn check(
        &mut self,
        turn: &mut Turn<'_>,
        (cause, node): (RelayCause, Option<Node>),
        source: Option<SocketAddr>,
    ) -> Result<(), RelayOutcome> {
        let settings = turn.settings;
        let cluster = &settings.config.cluster;
        let fronts = &settings.config.fronts;
        let front = if cause == RelayCause::Client { &fronts.client } else { &fronts.worker };
        if node.is_some() && self.keys.is_none() {
            return Err(RelayOutcome::Unknown);
        }
        if front.tls.is_some() && !cluster.plaintext {
            return Err(RelayOutcome::Tls);
        }
        if self.outs.len() >= settings.config.limits.relays {
            turn.limit_hit(Limit::Relays);
            return Err(RelayOutcome::Full);
        }
        let reads = settings.dispatch == Plane::Remote;
        if let Some(node) = node.filter(|_| !reads)
            && self.owners.rests(configured(settings, node)?, turn.now)
        {
            return Err(RelayOutcome::Unreachable);
        }
        let by_id = node.filter(|_| cause == RelayCause::Client);
        let may = by_id.is_none_or(|node| self.owners.may_bring(node, (source, reads), turn.now));
        if may { Ok(()) } else { Err(RelayOutcome::Limited) }
    }

    /// A connection that its component has released belongs elsewhere.
    pub(super) fn take(&mut self, turn: &mut Turn<'_>, strayed: Strayed) {
        let Strayed { conn, cause, node, stray } = strayed;
        let client = cause == RelayCause::Client;
        // For a client this was checked before its connection was released.
        let may = if client { Ok(()) } else { self.check(turn, (cause, node), None) };
        let out = Out {
            near: conn,
            far: None,
            cause,
            node,
            address: None,
            stray: Some(stray),
            step: Step::Locating,
            held: [false; 2],
            ended: None,
        };
        let key = self.outs.insert(out);
        self.clients += usize::from(client);
        self.roles.insert(conn, ConnRole::Near(key));
        if let Err(outcome) = may {
            return self.fail(turn, key, outcome);
        }
        // The bytes that the owner will be given must not change any more.
        turn.net.pause(conn, true);
        turn.arm(turn.now + PATIENCE, Due::Relay(key));
        match node {
            None => self.dial_old(turn, key),
            Some(node) if turn.settings.dispatch == Plane::Local => {
                match configured(turn.settings, node) {
                    Ok(address) => self.dial_owner(turn, key, address),
                    Err(outcome) => self.fail(turn, key, outcome),
                }
            }
            Some(node) => {
                let (core, life, about) =
                    (turn.settings.core, turn.settings.generation, Topic::Node);
                let ticket = AskTicket { core, life, about, number: number_of(key) };
                let (deadline, what) = (turn.now + PATIENCE, Question::Locate(node));
                turn.fact(Fact::Ask(Ask { ticket, deadline, what }));
            }
        }
    }

    /// The owner's record was read.
    pub(super) fn located(&mut self, turn: &mut Turn<'_>, key: Key, answer: Answer) {
        let waits = self.outs.get(key).is_some_and(|out| matches!(out.step, Step::Locating));
        if !waits {
            return;
        }
        match answer {
            Answer::Located(Located::At(address)) if self.owners.rests(address, turn.now) => {
                self.fail(turn, key, RelayOutcome::Unreachable);
            }
            Answer::Located(Located::At(address)) => self.dial_owner(turn, key, address),
            Answer::Located(Located::Dead) => self.fail(turn, key, RelayOutcome::Dead),
            // There was no room for the question, or the plane knows nothing.
            _ => self.fail(turn, key, RelayOutcome::Unknown),
        }
    }

    fn dial_owner(&mut self, turn: &mut Turn<'_>, key: Key, address: SocketAddr) {
        let far = turn.net.dial_gateway(address);
        self.roles.insert(far, ConnRole::Far(key));
        let out = self.out(key);
        (out.far, out.address, out.step) = (Some(far), Some(address), Step::Dialling);
    }

    /// Dials the old proxy, which may have several addresses.
    fn dial_old(&mut self, turn: &mut Turn<'_>, key: Key) {
        let addresses = turn.settings.config.cluster.fallback.as_ref();
        let addresses = addresses.map(|dial| &*dial.addresses).unwrap_or_default();
        let at = key.generation as usize % addresses.len().max(1);
        match addresses.get(at) {
            Some(address) => self.dial_owner(turn, key, *address),
            None => self.fail(turn, key, RelayOutcome::Unknown),
        }
    }

    /// The dial has ended.
    pub(super) fn reached(&mut self, turn: &mut Turn<'_>, key: Key, result: Result<(), i32>) {
        let out = self.out(key);
        if result.is_err() {
            // The failed dial's id is dead already.
            if let Some(far) = out.far.take() {
                self.roles.remove(&far);
            }
            return self.fail(turn, key, RelayOutcome::Unreachable);
        }
        if out.node.is_some() {
            out.step = Step::Greeted(Vec::with_capacity(CHALLENGE_LENGTH));
        } else {
            out.flow(turn);
        }
    }

    // ---- what is said ----

    /// The peer's bytes.
    pub(super) fn near_says(&mut self, turn: &mut Turn<'_>, key: Key, segment: Segment) {
        let out = self.out(key);
        if let Step::Flowing = out.step {
            return out.pass(turn, segment, true);
        }
        if let Some(stray) = &mut out.stray {
            stray.hear(turn.net.pool.bytes(segment));
            if stray.received().len() > MOST_CARRIED {
                // Reading was stopped long before, so a reactor that keeps its contract never comes
                // here.
                self.forget(turn, key, Close::Now);
            }
        }
    }

    /// The owner's bytes.
    pub(super) fn far_says(&mut self, turn: &mut Turn<'_>, key: Key, segment: Segment) {
        let out = self.out(key);
        match &mut out.step {
            Step::Flowing => out.pass(turn, segment, false),
            Step::Greeted(challenge) => {
                challenge.extend_from_slice(turn.net.pool.bytes(segment));
                if challenge.len() >= CHALLENGE_LENGTH {
                    self.ask(turn, key);
                }
            }
            Step::Asked => self.answered(turn, key, segment),
            Step::Locating | Step::Dialling | Step::Back => {}
        }
    }

    /// The owner has said its challenge.
    fn ask(&mut self, turn: &mut Turn<'_>, key: Key) {
        if let Some((far, signed)) = self.prelude(turn, key) {
            let out = self.out(key);
            out.step = Step::Asked;
            if let Some(address) = out.address {
                self.owners.reached(address);
            }
            turn.put(far, &signed);
        } else {
            self.fail(turn, key, RelayOutcome::Refused);
        }
    }

    /// The prelude for an owner that has said its challenge and no more, and the connection to it.
    fn prelude(&self, turn: &Turn<'_>, key: Key) -> Option<(ConnId, Vec<u8>)> {
        let (out, keys) = (self.outs.get(key)?, self.keys.as_ref()?);
        let Step::Greeted(said) = &out.step else { return None };
        let matter = matter(out.stray.as_ref()?, turn.now);
        let prelude = Prelude { from: turn.settings.node, to: out.node?, matter };
        Some((out.far?, keys.signed_prelude(said, prelude)?))
    }

    /// The owner has answered. Bytes of the function's side may follow its answer at once.
    fn answered(&mut self, turn: &mut Turn<'_>, key: Key, segment: Segment) {
        let verdict = turn.net.pool.bytes(segment).first().copied().and_then(Verdict::of);
        match verdict {
            Some(Verdict::Taken) => {
                let out = self.out(key);
                out.flow(turn);
                let rest = segment.part(1, segment.len as usize - 1);
                if rest.len > 0 {
                    out.pass(turn, rest, false);
                }
                // This gateway drains. It told its other owners at the begin of the drain; this
                // owner is new.
                if let Some(owner) = out.owner().filter(|_| turn.draining.is_some()) {
                    tell_owner(self, turn, owner);
                }
            }
            Some(Verdict::Dead) => self.fail(turn, key, RelayOutcome::Dead),
            Some(Verdict::Full) => self.fail(turn, key, RelayOutcome::Full),
            _ => self.fail(turn, key, RelayOutcome::Refused),
        }
    }

    // ---- ends ----

    pub(super) fn near_ended(&mut self, turn: &mut Turn<'_>, key: Key, end: End) {
        let out = self.out(key);
        if let Step::Flowing = out.step {
            return self.part(turn, key, (end, true));
        }
        let back = matches!(out.step, Step::Back);
        if out.cause == RelayCause::Client && end.is_half() {
            // The client can still be answered here.
            out.ended = Some(end);
            if !back {
                self.fail(turn, key, RelayOutcome::Gone);
            }
            return;
        }
        let cause = out.cause;
        if !back {
            turn.metrics.relays.count(cause, RelayOutcome::Gone);
        }
        self.forget(turn, key, Close::Flush);
    }

    pub(super) fn far_ended(&mut self, turn: &mut Turn<'_>, key: Key, end: End) {
        let out = self.out(key);
        match out.step {
            Step::Flowing => self.part(turn, key, (end, false)),
            Step::Asked => self.fail(turn, key, RelayOutcome::Refused),
            _ => self.fail(turn, key, RelayOutcome::Unreachable),
        }
    }

    /// One of two ends of a relay has ended.
    fn part(&mut self, turn: &mut Turn<'_>, key: Key, how: (End, bool)) {
        if let Some(out) = self.remove(key) {
            out.part(turn, how);
        }
    }

    /// Ends both connections of a relay, also of one that is not established yet.
    pub(super) fn forget(&mut self, turn: &mut Turn<'_>, key: Key, how: Close) {
        if let Some(out) = self.remove(key) {
            out.conns().for_each(|conn| turn.net.close(conn, how));
        }
    }

    /// The owner did not answer in time ([`Due::Relay`]).
    pub(crate) fn late(&mut self, turn: &mut Turn<'_>, key: Key) {
        if self.waits(key) {
            self.fail(turn, key, RelayOutcome::Late);
        }
    }

    /// The owner does not take the connection. A worker is told; a client goes on here.
    fn fail(&mut self, turn: &mut Turn<'_>, key: Key, outcome: RelayOutcome) {
        let out = self.out(key);
        let (cause, node, near, far) = (out.cause, out.node, out.near, out.far.take());
        let silent = matches!(out.step, Step::Dialling | Step::Greeted(_));
        let address = out.address.filter(|_| silent && outcome != RelayOutcome::Gone);
        out.step = Step::Back;
        let worker = match &out.stray {
            Some(Stray::Worker { peer, .. }) => Some(*peer),
            Some(Stray::Client(_)) | None => None,
        };
        if let Some(far) = far {
            self.roles.remove(&far);
            turn.net.close(far, Close::Now);
        }
        if let Some(address) = address {
            self.owners.not_reached(address, turn.now);
        }
        self.count(turn, (cause, node), outcome);
        match worker {
            None => self.ready.push(ConnRole::Near(key)),
            Some(peer) => {
                self.remove(key);
                let dead = outcome == RelayOutcome::Dead;
                turn.workers(ForWorkers::Back(Box::new(Back { conn: near, peer, dead })));
            }
        }
    }

    fn count(
        &mut self,
        turn: &mut Turn<'_>,
        (cause, node): (RelayCause, Option<Node>),
        outcome: RelayOutcome,
    ) {
        turn.metrics.relays.count(cause, outcome);
        if outcome != RelayOutcome::Gone
            && let Some(left_out) = self.hush.unrelayed.may_say(turn.now)
        {
            turn.line(Line::Unrelayed { node, cause, outcome, left_out });
        }
    }

    /// A client that its owner did not take.
    pub(super) fn take_back(&mut self, turn: &mut Turn<'_>, key: Key) -> Option<Ready> {
        let out = self.remove(key)?;
        let conn = out.near;
        turn.net.pause(conn, false);
        match out.stray? {
            Stray::Client(client) => Some(Ready { conn, client, via: None, ended: out.ended }),
            Stray::Worker { .. } => None,
        }
    }
}

/// The address of a node, from the configuration.
fn configured(settings: &ShardSettings, node: Node) -> Result<SocketAddr, RelayOutcome> {
    let nodes = &settings.config.cluster.nodes;
    let found = nodes.iter().find(|(number, _)| *number == node.number());
    match found {
        Some((_, address)) => Ok(*address),
        // Node numbers are unique in a configuration, so this is an earlier run of this process.
        None if node.number() == settings.node.number() => Err(RelayOutcome::Dead),
        None => Err(RelayOutcome::Unknown),
    }
}

/// What the prelude says of a connection.
fn matter(stray: &Stray, now: Time) -> Matter {
    let received = stray.received().len() as u32;
    let opening = |peer, opened| {
        let age = now.since(opened).as_micros() as u64;
        Opening { peer, age, received }
    };
    match stray {
        Stray::Worker { peer, opened, .. } => Matter::Callback(opening(*peer, *opened)),
        Stray::Client(client) => {
            let heard = match &client.said {
                Said::Heard(_) => None,
                Said::Http2(Carried { told, written, .. }) => {
                    Some(Heard { told: *told, written: *written })
                }
            };
            Matter::Client(opening(client.peer, client.opened), heard)
        }
    }
}
