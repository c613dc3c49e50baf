//! Sessions of one core: which client may have which session, what the control plane, workers and
//! other cores are asked for it, and what is kept when its clients have gone.
//!
//! A request's way: [`place`] finds or makes the attachment that serves it, [`roster`] keeps the
//! attachments and ends them, [`park`] keeps tunnels whose clients have gone, [`spare`] replaces
//! those that are used up, [`cores`] speaks with the other cores, among them as the home of
//! sessions ([`directory`]). A session's home hears everything by messages, also if that home is
//! this core.

mod attachment;
mod called;
mod carry;
mod client;
mod cores;
mod dial;
mod directory;
mod mint;
mod park;
mod parked_index;
mod pending;
mod place;
mod question;
mod roster;
mod rows;
mod rules;
mod spare;
#[cfg(test)]
mod tests;
mod wait;

use std::sync::Arc;

use ringway_proto::fault::Fault;
use ringway_proto::id::WorkerToken;
use ringway_proto::time::Time;
use uuid::Uuid;

use self::attachment::{Asked, Attachment, Stage, State};
use self::dial::Dialling;
use self::directory::Directory;
use self::mint::Mint;
use self::question::{Questions, Waiting};
use self::roster::Roster;
use self::rules::Rules;
use super::cause::{Cause, Gone};
use super::facts::{
    Edge, Elsewhere, Fact, ForRelay, ForSessions, ForWorkers, NewTunnel, Parted, Topic, key_of,
    number_of,
};
use super::settings::ShardSettings;
use super::table::Key;
use super::timer::{Due, SETTLES};
use super::turn::Turn;
use crate::carry::Unreadable;
use crate::control::local::{Policy, Ticket, Work, WorkKind};
use crate::control::port::Plane;
use crate::keys::Keys;
use crate::message::{Bookmark, Speaks};
use crate::metrics::{AskOutcome, Limit, ResumeWay, ShardMetrics};
use crate::net::ConnId;
use crate::timeline::{Ask as Wish, Event, IdBegin};

/// gRPC code UNAVAILABLE: the client may try again.
const UNAVAILABLE: u8 = 14;

/// Attachments that hear of other rules in one turn.
const RENEWED: u32 = 512;

/// The attachment that serves a request, or why none does.
type Placed = Result<Key, Box<Fault>>;

/// Sessions, and all that leads to them.
#[derive(Debug)]
pub(super) struct Sessions {
    roster: Roster,
    directory: Directory,
    questions: Questions,
    mint: Mint,
    /// After a change of rules: attachments from this slot on have not heard of the new ones.
    renews_at: Option<u32>,
}

/// The numbers that a snapshot shows of sessions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Gauges {
    /// Attachments of all states but asking.
    pub(super) attachments: usize,
    /// Attachments that wait for another core's answer.
    pub(super) asking: usize,
    /// Attachments of clients that wait for their worker.
    pub(super) pending: usize,
    pub(super) parked: usize,
    /// The number of parked attachments of the tenant that has most.
    pub(super) fullest: usize,
    /// The most attachments that one client's connection has.
    pub(super) widest: usize,
}

impl Sessions {
    /// The sessions of a core that has none yet.
    pub(super) fn new(settings: &ShardSettings, policy: Arc<Policy>) -> Self {
        Self {
            roster: Roster::new(settings, Rules::new(policy)),
            directory: Directory::default(),
            questions: Questions::new(settings),
            mint: Mint::new(settings),
            renews_at: None,
        }
    }

    /// Something has happened that is for sessions. A fact of an attachment, a question or a client
    /// that is not there any more finds nobody here, and is void.
    pub(super) fn on(&mut self, turn: &mut Turn<'_>, fact: ForSessions) {
        let roster = &mut self.roster;
        match fact {
            ForSessions::Place { exchange, from, wanted } => match self.owner(turn, *from, &wanted)
            {
                Some(node) => {
                    let elsewhere = Elsewhere { exchange, from: *from, wanted, node };
                    turn.fact(Fact::Elsewhere(Box::new(elsewhere)));
                }
                None => self.place(turn, exchange, *from, wanted),
            },
            ForSessions::PlaceHere(here) => {
                let Elsewhere { exchange, from, wanted, .. } = *here;
                self.place(turn, exchange, from, wanted);
            }
            ForSessions::GoOn { exchange, from, wanted } => {
                let since = turn.now;
                self.go_on_anew(turn, from, Waiting { exchange, wanted, since });
            }
            ForSessions::ClientGone { conn, how, routes } => {
                self.client_gone(turn, (conn, how), &routes);
            }
            ForSessions::Abandoned { key } => roster.abandoned(turn, key),
            ForSessions::Attached { key, unspoken } => self.attached(turn, key, unspoken),
            ForSessions::Parked { key, speaks } => roster.parked(turn, key, speaks),
            ForSessions::UsedUp { key } => roster.used_up(turn, key),
            ForSessions::Spent { key, goaway } => roster.spent(turn, key, goaway),
            ForSessions::WantsSpare { key } => roster.wants_spare(turn, key),
            ForSessions::LastChance { key } => roster.last_chance(turn, key),
            ForSessions::Lost(lost) => roster.lost(turn, lost),
            ForSessions::Closed { key, cause, tally } => roster.closed(turn, key, (cause, tally)),
            ForSessions::TunnelDetached { key, detached, hop } => {
                self.tunnel_detached(turn, key, *detached, hop);
            }
            ForSessions::Token { conn, text, id } => self.token(turn, conn, (&text, id)),
            ForSessions::Answered { ticket, answer } => match ticket.about {
                Topic::Call => self.call_answered(turn, ticket, answer),
                Topic::Tunnel => self.tunnel_answered(turn, ticket, answer),
                // Questions about nodes are not asked here.
                Topic::Node => {}
            },
            ForSessions::Dialling { key, conn } => self.dialling(turn, key, conn),
            ForSessions::NotDialled { key } => self.not_dialled(turn, key),
            ForSessions::NotSubmitted { ticket, fault } => {
                let cause = match *fault {
                    Fault::WorkQueueFull => Cause::QUEUE_FULL,
                    _ => Cause::NO_ROOM,
                };
                self.not_submitted(turn, key_of(ticket), (cause, *fault));
            }
            ForSessions::Recalled(ticket) => self.recalled(turn, key_of(ticket)),
            ForSessions::YieldWorker(ticket) => self.yield_worker(turn, key_of(ticket)),
            ForSessions::EndSurplus(ticket) => self.end_surplus(turn, key_of(ticket)),
            ForSessions::Find(find) => self.find(turn, *find),
            ForSessions::Found(found) => self.found(turn, *found),
            ForSessions::Vouch(vouch) => self.vouch_for(turn, *vouch),
            ForSessions::Vouched(vouched) => self.vouched(turn, *vouched),
            ForSessions::NotFound(find) => self.not_found(turn, key_of(find.ticket)),
            ForSessions::Join(join) => self.joined(turn, *join),
            ForSessions::MemberState(id, ticket, member_state) => {
                self.member_changed(turn, id, (ticket, member_state))
            }
            ForSessions::Leave(leave) => self.directory.leave(*leave),
            ForSessions::Claim { parked, to } => self.claimed(turn, key_of(parked), to),
            ForSessions::Resumed { resumed, room } => self.resumed(turn, *resumed, room),
        }
    }

    // ---- what the loop calls ----

    /// Requests have waited long enough for a tunnel in place of one that takes no more streams.
    pub(super) fn replace_overdue(&mut self, turn: &mut Turn<'_>, key: Key) {
        self.roster.replace_overdue(turn, key);
    }

    /// A worker that ended its tunnel had its time to take this spare up.
    pub(super) fn recall(&mut self, turn: &mut Turn<'_>, key: Key) {
        self.roster.recall(turn, key);
    }

    /// Other rules hold from now on. Attachments go on under the rules they were made by.
    pub(super) fn replace_policy(&mut self, turn: &mut Turn<'_>, policy: Arc<Policy>) {
        self.roster.rules.replace(policy);
        self.roster.clients.forget_idle_pins();
        self.renews_at = Some(0);
        self.renew_terms(turn);
    }

    /// Whether [`Self::renew_terms`] has more to do.
    pub(super) fn renews(&self) -> bool {
        self.renews_at.is_some()
    }

    /// Some more attachments hear of other rules.
    pub(super) fn renew_terms(&mut self, turn: &mut Turn<'_>) {
        if let Some(at) = self.renews_at {
            let until = at.saturating_add(RENEWED);
            self.roster.rules_changed(turn, at..until);
            self.renews_at = (until < self.roster.attachments.slots()).then_some(until);
        }
    }

    /// An operator ends a session: this core's attachments of it end, and so do those that still
    /// wait for an answer, once it comes.
    pub(super) fn end_session(&mut self, turn: &mut Turn<'_>, id: Uuid) {
        for key in self.roster.attachments.keys() {
            let attachments = &mut self.roster.attachments;
            let of_session = attachments.get_mut(key).filter(|of| of.session == id);
            let fault = Fault::SessionNotFound { request_id: id };
            match of_session.map(Attachment::state_mut) {
                Some(State::Asking(asking)) => {
                    asking.asked = Asked::Ended;
                    turn.relay(ForRelay::RefuseWaiters { key, fault: Box::new(fault) });
                }
                Some(_) => self.roster.end_with(turn, key, Cause::DELETED, fault),
                None => {}
            }
        }
    }

    /// The core drains: nobody may come back any more.
    pub(super) fn drain(&mut self, turn: &mut Turn<'_>) {
        self.roster.close_parked(turn);
        self.roster.drop_spares(turn);
        if turn.settings.dispatch == Plane::Remote {
            self.roster.send_waiters_away(turn);
        }
    }

    /// Whether [`Self::launch`] has something to do.
    pub(super) fn has_deferred(&self) -> bool {
        !self.roster.deferred.is_empty() || !self.roster.deferred_spares.is_empty()
    }

    /// Queues the work of the attachments made in this turn, if somebody still waits for them. An
    /// attachment that finds no room may leave its requests to others, which are as new: then
    /// this is called again.
    pub(super) fn launch(&mut self, turn: &mut Turn<'_>) {
        let mut batch = std::mem::take(&mut self.roster.deferred);
        batch.append(&mut self.roster.deferred_spares);
        for key in batch {
            match self.roster.attachments.state(key) {
                Some(State::Deferred { forsaken: true, .. }) => {
                    self.roster.end_abandoned(turn, key)
                }
                Some(State::Deferred { kind, since, .. }) => {
                    self.launch_one(turn, key, (*kind, *since));
                }
                _ => {}
            }
        }
    }

    /// Tokens are made with these keys from now on.
    pub(super) fn share(&mut self, keys: &Keys) {
        self.mint.share(keys);
    }

    /// A random number, for whoever answers questions here.
    pub(super) fn draw(&mut self) -> u64 {
        self.mint.draw()
    }

    // ---- values for others ----

    /// One page of what `/sessions` shows.
    pub(super) fn page(
        &self,
        turn: &Turn<'_>,
        from: Bookmark,
        wanted: Option<IdBegin>,
    ) -> (rows::Rows, Option<Bookmark>) {
        rows::page((&self.roster.attachments, &self.directory), turn, from, wanted)
    }

    // ---- what a timer is for ----

    pub(super) fn holds(&self, key: Key) -> bool {
        self.roster.attachments.get(key).is_some()
    }

    /// Whether an attachment has no tunnel yet.
    pub(super) fn waits(&self, key: Key) -> bool {
        let has_none = |of: &Attachment| !of.has_tunnel() && !of.is_ending();
        self.roster.attachments.get(key).is_some_and(has_none)
    }

    /// Whether a question waits for its answer.
    pub(super) fn asks(&self, ticket: Key) -> bool {
        self.questions.holds(ticket)
    }

    pub(super) fn gauges(&self) -> Gauges {
        let attachments = &self.roster.attachments;
        Gauges {
            attachments: attachments.len() - attachments.asking(),
            asking: attachments.asking(),
            pending: attachments.pending().clients(),
            parked: attachments.parked_index().len(),
            fullest: attachments.parked_index().fullest(),
            widest: self.roster.clients.widest(),
        }
    }

    /// Sets the gauges of sessions and what leads to them.
    pub(super) fn gauge(&self, settings: &ShardSettings, metrics: &mut ShardMetrics) {
        let (gauges, limits) = (self.gauges(), &settings.config.limits);
        metrics.worker_connections_active = gauges.attachments as u64;
        metrics.resumes.parked = gauges.parked as u64;
        metrics.gauge(Limit::PendingSessions, gauges.pending, limits.pending_sessions);
        metrics.gauge(Limit::ParkedTunnels, gauges.parked, limits.parked_tunnels);
        metrics.gauge(Limit::ParkedPerTenant, gauges.fullest, limits.parked_per_tenant);
        metrics.gauge(Limit::Attachments, gauges.widest, limits.attachments);
        metrics.gauge(Limit::Asks, self.questions.len(), limits.asks);
        metrics.gauge(Limit::AsksPerTenant, self.questions.fullest(), limits.asks_per_tenant);
    }

    /// Connections to functions' servers that are not there yet.
    pub(super) fn dials(&self) -> usize {
        self.roster.attachments.dials()
    }

    /// How many attachments there are.
    pub(super) fn len(&self) -> usize {
        self.roster.attachments.len()
    }

    /// Whether nothing is left: no attachment, client, question or session.
    pub(super) fn is_empty(&self) -> bool {
        self.roster.attachments.is_empty()
            && self.roster.clients.is_empty()
            && self.questions.is_empty()
            && self.directory.len() == 0
    }

    // ---- as bytes ----

    /// A session whose home is here, as bytes.
    pub(super) fn carried(&self, settings: &ShardSettings, id: Uuid) -> Option<Vec<u8>> {
        carry::session(&self.directory, settings, id)
    }

    /// A session that was elsewhere has its home here from now on.
    pub(super) fn take_up(
        &mut self,
        settings: &ShardSettings,
        bytes: &[u8],
    ) -> Result<Uuid, Unreadable> {
        carry::take_up_session(&mut self.directory, settings, bytes)
    }

    /// The pins of a client's connection as bytes, each for itself.
    pub(super) fn carried_pins(&self, settings: &ShardSettings, conn: ConnId) -> Vec<Vec<u8>> {
        carry::pins(&self.roster.clients, settings, conn)
    }

    /// Takes up a pin on a connection that is known here, so that what its credential was granted
    /// elsewhere need not be asked for again.
    pub(super) fn take_up_pin(
        &mut self,
        settings: &ShardSettings,
        conn: ConnId,
        bytes: &[u8],
    ) -> Result<(), Unreadable> {
        carry::take_up_pin(&mut self.roster.clients, settings, conn, bytes)
    }

    // ---- clients ----

    /// A client's connection has ended.
    fn client_gone(&mut self, turn: &mut Turn<'_>, (conn, how): (ConnId, Gone), routes: &[Parted]) {
        let client = self.roster.clients.remove(conn);
        let tunnels = client.as_ref().map_or(0, |client| client.tunnels_seen);
        if let Some(client) = client {
            for key in &client.questions {
                self.withdraw(turn, *key, AskOutcome::Withdrawn);
            }
            self.roster.part(turn, (&client, how), routes);
        }
        turn.metrics.client_connection_tunnels.observe(f64::from(tunnels));
    }

    // ---- workers and servers ----

    /// Mints the token, stores it, and only then queues the work (contract: end-to-end order).
    fn launch_one(&mut self, turn: &mut Turn<'_>, key: Key, (kind, since): (WorkKind, Time)) {
        let Some(of) = self.roster.attachments.get(key) else { return };
        let (session, facts) = (of.session, of.facts.clone());
        let met = of.client.and_then(|conn| self.roster.clients.met(conn, &facts.owner));
        let (client, owner) = (of.client.is_some(), facts.owner.clone());
        let dial = self.roster.rules.dial(&owner);
        let wish = match kind {
            _ if dial.is_some() => Wish::Dial,
            WorkKind::New => Wish::New,
            WorkKind::Reconnect => Wish::Again,
            WorkKind::Spare => Wish::Spare,
        };
        turn.edge(Edge::Began { session, facts, wish, client: met });
        if turn.settings.plane == Plane::Remote
            && let Some(client) = self.roster.attachments.get(key).and_then(|of| of.client)
        {
            // Each new tunnel is authorised anew (contract CL-17).
            self.roster.clients.spend(client, key);
        }
        if kind == WorkKind::New {
            let (function, version) = (&owner.function, &owner.version);
            turn.metrics.function_requests.count(function, version, &owner.tenant, turn.now);
        }
        turn.metrics.worker_connections_opened += 1;
        let local = turn.settings.dispatch == Plane::Local;
        if dial.is_some() || (client && local) {
            let again = usize::from(kind == WorkKind::Reconnect);
            turn.metrics.session_init_seconds[again].observe(0.0);
        }
        let attachments = &mut self.roster.attachments;
        if let Some(to) = dial {
            let dialling = Dialling::new(kind, to, self.mint.draw(), turn.now);
            attachments.set(key, State::Dialling(Box::new(dialling)));
            return self.dial_next(turn, key, Cause::NO_ADDRESS);
        }
        let token = self.mint.token(key);
        let work = attachments.get(key).map(|of| work(turn.settings, (key, of), kind, &token));
        let (issued, wrong, stage) = (turn.now, 0, Stage::Given);
        attachments.set(key, State::Waiting { token, kind, since, issued, wrong, stage });
        turn.metrics.tokens_issued += 1;
        turn.arm(turn.now + turn.settings.config.session.wait, Due::Wait(key));
        work.into_iter().for_each(|work| turn.workers(ForWorkers::Submit(Box::new(work))));
    }

    /// Dials the next address; without one the attachment ends, for the reason given.
    fn dial_next(&mut self, turn: &mut Turn<'_>, key: Key, otherwise: Cause) {
        if let Some(of) = self.roster.attachments.get_mut(key) {
            let function = of.facts.owner.function.clone();
            let next = match of.state_mut() {
                State::Dialling(dialling) => dialling.next(),
                _ => None,
            };
            if let Some(address) = next {
                return turn.fact(Fact::Dial { key, address });
            }
            let text = format!("the server of function {function} cannot be reached");
            let fault = Fault::Api { code: UNAVAILABLE, text };
            self.roster.end_with(turn, key, otherwise, fault);
        }
    }

    /// A connection to a function's server is under way.
    fn dialling(&mut self, turn: &mut Turn<'_>, key: Key, conn: ConnId) {
        if !self.roster.attachments.dialling(key, conn) {
            turn.fact(Fact::Undial { conn });
        }
    }

    /// A server is not dialled, because there may be no more connections to the functions' side.
    fn not_dialled(&mut self, turn: &mut Turn<'_>, key: Key) {
        if let Some(State::Dialling(_)) = self.roster.attachments.state(key) {
            turn.limit_hit(Limit::WorkerConnections);
            self.roster.end_with(turn, key, Cause::NO_CONNECTION, Fault::Overloaded);
        }
    }

    /// A dial has ended: the connection is the tunnel, or the next address is tried.
    pub(super) fn dial_ended(
        &mut self,
        turn: &mut Turn<'_>,
        conn: ConnId,
        result: Result<(), i32>,
    ) {
        // The attachment for which the connection was dialled may have ended meanwhile.
        let Some(key) = self.roster.attachments.dialled(conn) else {
            return turn.fact(Fact::Undial { conn });
        };
        if let Err(errno) = result {
            return self.dial_next(turn, key, Cause::undialled(errno));
        }
        if let Some(of) = self.roster.attachments.get(key)
            && let State::Dialling(dialling) = of.state()
            && let Some(peer) = dialling.peer()
        {
            let kind = dialling.kind;
            let took = turn.now.since(dialling.since).into();
            let event = Event::Dialled { server: peer.into(), took };
            turn.edge(Edge::Note { session: of.session, at: None, event });
            self.roster.attachments.set(key, State::Arriving { kind });
            let (opened, timer, via, tail) = (turn.now, None, None, Vec::new());
            let tunnel = NewTunnel { key, conn, peer, opened, timer, via, tail };
            turn.relay(ForRelay::Attach(Box::new(tunnel)));
        }
    }

    /// The attachment has its tunnel.
    fn attached(&mut self, turn: &mut Turn<'_>, key: Key, unspoken: bool) {
        if let Some(of) = self.roster.attachments.get(key)
            && let State::Arriving { kind } = *of.state()
        {
            let (opened, named) = (of.opened, of.named(of.counted));
            let returns = kind == WorkKind::Reconnect && !unspoken;
            let settles = (kind != WorkKind::New).then_some(turn.now + SETTLES);
            self.roster.attachments.set(key, State::Attached { spent: false, settles });
            if returns {
                self.roster.resumed(turn, key, ResumeWay::Reconnect, opened);
                turn.arm(turn.now + SETTLES, Due::Settled(key));
            }
            self.roster.tell_state(turn, key);
            turn.edge(Edge::Registered(named));
            if unspoken {
                self.roster.spare_came(turn, key);
            }
        }
    }

    /// A new tunnel has been there for so long that its worker counts it. If a client has it,
    /// another tunnel that is parked beside it ends. If it is a spare's, the used-up tunnel ends
    /// that it has replaced.
    pub(crate) fn settled(&mut self, turn: &mut Turn<'_>, key: Key) {
        match self.roster.attachments.get_mut(key).map(Attachment::state_mut) {
            Some(State::Attached { settles, .. }) => {
                *settles = None;
                self.roster.tell_state(turn, key);
            }
            Some(State::UsedUp { by, settles: true }) => {
                let cause = by.cause();
                self.roster.end(turn, key, cause);
            }
            _ => {}
        }
    }
}

/// The work that a worker is asked to do for an attachment.
fn work(
    settings: &ShardSettings,
    (key, of): (Key, &Attachment),
    kind: WorkKind,
    token: &WorkerToken,
) -> Work {
    Work {
        ticket: ticket(settings, key),
        kind,
        request_id: of.session,
        owner: of.facts.owner.clone(),
        token: *token.as_bytes(),
    }
}

/// An attachment's name towards other cores, and the dispatch.
fn ticket(settings: &ShardSettings, key: Key) -> Ticket {
    Ticket { node: settings.node, core: settings.core, number: number_of(key) }
}

/// The way in which a parked tunnel brings its client back. A tunnel on which nothing was said was
/// a spare.
fn way_of(speaks: Speaks) -> ResumeWay {
    match speaks {
        Speaks::Any => ResumeWay::Spare,
        Speaks::Http1 | Speaks::Http2 => ResumeWay::Memory,
    }
}
