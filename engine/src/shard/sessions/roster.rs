//! The clients and attachments of a core: how an attachment begins, and how it ends.
//!
//! An end has two steps. [`Roster::end`] takes the attachment out of all that names it, so that
//! nobody comes by it any more, and has the relay close its route. When that is done, with what the
//! route has carried, [`Roster::closed`] writes the end down, and what it means for the other
//! attachments of the session follows.

use std::ops::Range;
use std::sync::Arc;

use ringway_proto::fault::Fault;
use ringway_proto::id::RequestIds;
use ringway_proto::time::Time;
use uuid::Uuid;

use super::super::cause::Cause;
use super::super::facts::{Edge, Ended, Fact, ForRelay, ForWorkers, Refused, Tally, Wanted};
use super::super::settings::ShardSettings;
use super::super::table::Key;
use super::super::turn::Turn;
use super::attachment::{Asked, Attachment, Attachments, Owed, State, Was};
use super::client::Clients;
use super::rows::closed_row;
use super::rules::Rules;
use super::ticket;
use crate::config::Scope;
use crate::control::local::{SessionFacts, WorkKind};
use crate::message::{CoreMessage, Join, Leave, SessionRow};
use crate::metrics::{CloseReason, Limit, ResumeOutcome, ResumeWay};
use crate::net::ConnId;

/// Clients, attachments, and the rules by which the ones may have the others.
#[derive(Debug)]
pub(super) struct Roster {
    pub(super) clients: Clients,
    pub(super) attachments: Attachments,
    pub(super) rules: Rules,
    /// The ids that this gateway makes. They tell the homes of their sessions.
    ids: RequestIds,
    /// Attachments made in this turn, whose work is queued at its end.
    pub(super) deferred: Vec<Key>,
    pub(super) deferred_spares: Vec<Key>,
}

impl Roster {
    pub(super) fn new(settings: &ShardSettings, rules: Rules) -> Self {
        let &ShardSettings { node, core, generation, .. } = settings;
        Self {
            clients: Clients::default(),
            attachments: Attachments::new(generation),
            rules,
            ids: RequestIds::new(node, core),
            deferred: Vec::new(),
            deferred_spares: Vec::new(),
        }
    }

    /// The core that has the session's directory entry, if there is one at all.
    pub(super) fn home(&self, settings: &ShardSettings, id: Uuid) -> u16 {
        self.own_home(settings, id).unwrap_or(settings.core)
    }

    /// The core that has the directory entry of an id that this gateway has made.
    pub(super) fn own_home(&self, settings: &ShardSettings, id: Uuid) -> Option<u16> {
        self.ids.home_of(id).core().filter(|core| *core < settings.cores)
    }

    // ---- begins ----

    /// An attachment begins.
    pub(super) fn begin(&mut self, turn: &mut Turn<'_>, mut attachment: Attachment) -> Key {
        attachment.terms = self.rules.terms(&attachment.facts.owner, turn.settings);
        let Attachment { session, client, terms, .. } = attachment;
        let key = self.attachments.insert(attachment);
        if let Some(client) = client {
            self.clients.own(client, key);
        }
        turn.relay(ForRelay::Open { key, session, client, terms });
        key
    }

    /// More is known now of an attachment's session.
    pub(super) fn learn(&mut self, turn: &mut Turn<'_>, key: Key, facts: SessionFacts) {
        if let Some(attachment) = self.attachments.get_mut(key) {
            attachment.facts = facts;
            let terms = self.rules.terms(&attachment.facts.owner, turn.settings);
            if std::mem::replace(&mut attachment.terms, terms) != terms {
                turn.relay(ForRelay::Terms { key, terms });
            }
        }
    }

    /// Other rules hold now. The attachments in these slots go on under the rules they were made
    /// by. What was only remembered is asked for again, here and by the relay.
    pub(super) fn rules_changed(&mut self, turn: &mut Turn<'_>, slots: Range<u32>) {
        let live = self.attachments.range(slots).filter(|(_, of)| !of.is_ending());
        for key in live.map(|(key, _)| key).collect::<Vec<_>>() {
            let facts = self.attachments.get(key).map(|attachment| attachment.facts.clone());
            facts.into_iter().for_each(|facts| self.learn(turn, key, facts));
            turn.relay(ForRelay::Unlearn { key });
        }
    }

    // ---- what a client may have ----

    /// Admits one more attachment of a connection that is to wait for its tunnel. None is admitted
    /// while the core drains.
    pub(super) fn admit_session(
        &self,
        turn: &mut Turn<'_>,
        client: ConnId,
        tenant: &Arc<str>,
    ) -> Result<(), Box<Fault>> {
        self.admit_attachment(turn, client)?;
        if !self.admit_pending(turn, tenant, WorkKind::New) {
            return Err(Box::new(Fault::Overloaded));
        }
        Ok(())
    }

    /// Whether one more attachment may wait for a worker.
    pub(super) fn admit_pending(
        &self,
        turn: &mut Turn<'_>,
        tenant: &Arc<str>,
        kind: WorkKind,
    ) -> bool {
        let spares = if kind == WorkKind::Spare { self.deferred_spares.len() } else { 0 };
        let more = self.attachments.asking() + self.deferred.len() + spares;
        let limits = &turn.settings.config.limits;
        let full = self.attachments.pending().full((tenant, kind), more, limits);
        full.into_iter().for_each(|limit| turn.limit_hit(limit));
        full.is_none()
    }

    /// Admits one more attachment of a connection, up to the limit, and none while the core drains.
    /// For functions with `dial` the limit is also the most that are dialled at once for one
    /// client.
    pub(super) fn admit_attachment(
        &self,
        turn: &mut Turn<'_>,
        client: ConnId,
    ) -> Result<(), Box<Fault>> {
        if turn.draining.is_some() {
            return Err(Box::new(Fault::Draining));
        }
        let most = turn.settings.config.limits.attachments;
        if self.clients.get(client).is_some_and(|client| client.attachments.len() >= most) {
            turn.limit_hit(Limit::Attachments);
            return Err(Box::new(Fault::TooManySessions));
        }
        Ok(())
    }

    /// A tunnel is to be had for a session that is there already. Nothing is charged, but a client
    /// that has used up what it may cause has to wait here too.
    pub(super) fn admit_return(
        &mut self,
        turn: &mut Turn<'_>,
        client: ConnId,
    ) -> Result<(), Box<Fault>> {
        let limits = &turn.settings.config.limits;
        self.clients.may_dispatch(client, limits, turn.now).map_err(|retry_after| {
            turn.metrics.limit_hit(Limit::Dispatches);
            Box::new(Fault::TooManyDispatches { retry_after })
        })
    }

    /// The pin by which a request goes without being authorised again. A pin of earlier rules
    /// serves the session it has, and nothing else.
    pub(super) fn granted(
        &self,
        conn: ConnId,
        (wanted, hash): (&Wanted, u64),
        scope: Scope,
    ) -> Option<usize> {
        let client = self.clients.get(conn)?;
        let at = client.pin(wanted, hash, scope)?;
        let pin = client.pins.get(at)?;
        let own = pin.attachment.and_then(|key| self.attachments.live(key));
        let serves = own.is_some_and(|own| wanted.id.is_none_or(|id| id == own.session));
        (pin.rules == self.rules.number() || serves).then_some(at)
    }

    /// The connection's attachment to a session, if it may take new streams.
    pub(super) fn own_attachment(&self, client: ConnId, id: Uuid) -> Option<Key> {
        let serves = |key: &&Key| self.attachments.get(**key).is_some_and(|of| of.serves(id));
        self.clients.get(client)?.attachments.iter().find(serves).copied()
    }

    /// The attachment of a connection that waits for the answer to the same question. It is wanted
    /// again from now on.
    pub(super) fn asked_before(
        &mut self,
        client: ConnId,
        (id, wanted): (Uuid, &Wanted),
        tenant: &Arc<str>,
    ) -> Option<Key> {
        let asks =
            |key: &&Key| self.attachments.get(**key).is_some_and(|of| of.asks(id, wanted, tenant));
        let key = self.clients.get(client)?.attachments.iter().find(asks).copied()?;
        if let Some(State::Asking(asking)) =
            self.attachments.get_mut(key).map(Attachment::state_mut)
            && asking.asked == Asked::Forsaken
        {
            asking.asked = Asked::Wanted;
        }
        Some(key)
    }

    /// The attachment that a connection's pin uses already, if it is this session's.
    pub(super) fn is_of(&self, key: Key, id: Uuid) -> bool {
        self.attachments.live(key).is_some_and(|attachment| attachment.session == id)
    }

    /// A parked attachment has a client again. Returns the way by which the client came back; none
    /// if the attachment is not parked.
    pub(super) fn unpark(
        &mut self,
        turn: &mut Turn<'_>,
        key: Key,
        (client, peer): (ConnId, std::net::SocketAddr),
    ) -> Option<ResumeWay> {
        let attachment = self.attachments.get_mut(key)?;
        let &State::Parked { speaks, spent, .. } = attachment.state() else { return None };
        attachment.client = Some(client);
        attachment.address = peer;
        turn.workers(ForWorkers::Unparks(attachment.of_version(key, turn.settings)));
        self.attachments.set(key, State::Attached { spent, settles: None });
        self.clients.own(client, key);
        turn.relay(ForRelay::Unpark { key, client });
        Some(super::way_of(speaks))
    }

    /// A client is back at its session, for which it has asked since then.
    pub(super) fn resumed(&self, turn: &mut Turn<'_>, key: Key, way: ResumeWay, since: Time) {
        if let Some(attachment) = self.attachments.get(key) {
            // A client for whom a worker was asked is in the timeline already, from when it asked.
            let client = attachment.client.filter(|_| way != ResumeWay::Reconnect);
            let client = client.and_then(|conn| self.clients.met(conn, &attachment.facts.owner));
            let took = turn.now.since(since);
            turn.edge(Edge::Resumed { session: attachment.session, way, took, client });
        }
    }

    // ---- what a session's home is told ----

    /// An attachment joins its session at the session's home, which may not know the session.
    pub(super) fn tell_join(&self, turn: &mut Turn<'_>, key: Key) {
        if let Some(of) = self.attachments.get(key) {
            let (id, facts, member_state) = (of.session, of.facts.clone(), of.member_state());
            let join = Join { id, ticket: ticket(turn.settings, key), facts, member_state };
            turn.send(self.home(turn.settings, id), CoreMessage::Join(Box::new(join)));
        }
    }

    /// An attachment is in another state, of which its session's home hears.
    pub(super) fn tell_state(&self, turn: &mut Turn<'_>, key: Key) {
        if let Some(of) = self.attachments.get(key) {
            let message =
                CoreMessage::MemberState(of.session, ticket(turn.settings, key), of.member_state());
            turn.send(self.home(turn.settings, of.session), message);
        }
    }

    /// An attachment leaves its session. If it was the last one, `row` is what remains of the
    /// session.
    pub(super) fn leave(
        &self,
        turn: &mut Turn<'_>,
        (id, key): (Uuid, Key),
        row: Option<SessionRow>,
    ) {
        let leave = Leave { id, ticket: ticket(turn.settings, key), row };
        turn.send(self.home(turn.settings, id), CoreMessage::Leave(Box::new(leave)));
    }

    // ---- ends ----

    /// Ends an attachment, if it has not ended before. Requests that wait for it are answered with
    /// what the cause says.
    pub(super) fn end(&mut self, turn: &mut Turn<'_>, key: Key, cause: Cause) {
        if self.unhook(turn, key, cause) {
            turn.relay(ForRelay::Close { key, cause, fault: None });
        }
    }

    /// As [`Self::end`], with another answer for requests that wait for a worker. Requests that
    /// wait for a stream of a tunnel hear that the tunnel is lost.
    pub(super) fn end_with(&mut self, turn: &mut Turn<'_>, key: Key, cause: Cause, fault: Fault) {
        let there = self.attachments.get(key).is_some_and(Attachment::has_tunnel);
        if self.unhook(turn, key, cause) {
            let fault = (!there).then(|| Box::new(fault));
            turn.relay(ForRelay::Close { key, cause, fault });
        }
    }

    /// Ends what waits for a worker: other gateways have the same workers (design 3.25).
    pub(super) fn send_waiters_away(&mut self, turn: &mut Turn<'_>) {
        for key in self.attachments.keys() {
            match self.attachments.state(key) {
                Some(State::Asking(_)) => self.end_asking(turn, key, Fault::Draining),
                Some(State::Deferred { .. } | State::Waiting { .. }) => {
                    self.end_with(turn, key, Cause::SHUTDOWN, Fault::Draining);
                }
                _ => {}
            }
        }
    }

    /// Nothing came of a question: every request that waits for the answer gets this fault.
    pub(super) fn end_asking(&mut self, turn: &mut Turn<'_>, key: Key, fault: Fault) {
        let asking = self.attachments.get(key).filter(|attachment| attachment.is_asking());
        if let Some(attachment) = asking {
            let owner = &attachment.facts.owner;
            if attachment.client.is_some() {
                turn.edge(Edge::Refused(Box::new(Refused {
                    fault: fault.clone(),
                    client: attachment.address,
                    function: owner.function.as_bytes().into(),
                    version: owner.version.as_bytes().into(),
                    tenant: owner.tenant.clone(),
                })));
            }
            self.end_with(turn, key, Cause::ABANDONED, fault);
            self.attachments.set(key, State::Ending(Was::Refused));
        }
    }

    /// Takes an attachment out of all that names it, except its session and its kin. False if that
    /// was done before.
    fn unhook(&mut self, turn: &mut Turn<'_>, key: Key, cause: Cause) -> bool {
        let Some(of) = self.attachments.live(key) else { return false };
        if of.client.is_some() && of.kind() == Some(WorkKind::Reconnect) {
            count_reconnect_lost(turn, cause);
        }
        let named = of.of_version(key, turn.settings);
        match of.state() {
            State::Waiting { .. } => turn.workers(ForWorkers::Withdraw(named)),
            State::Parked { .. } => turn.workers(ForWorkers::Unparks(named)),
            State::Dialling(dialling) => {
                dialling.conn.into_iter().for_each(|conn| turn.fact(Fact::Undial { conn }));
            }
            _ => {}
        }
        let (was, client) = (of.was(), of.client);
        self.attachments.set(key, State::Ending(was));
        client.into_iter().for_each(|client| self.clients.disown(client, key));
        true
    }

    /// Nobody waits for an attachment any more.
    pub(super) fn abandoned(&mut self, turn: &mut Turn<'_>, key: Key) {
        match self.attachments.get_mut(key).map(Attachment::state_mut) {
            Some(State::Asking(asking)) => {
                if asking.asked == Asked::Wanted {
                    asking.asked = Asked::Forsaken;
                }
                // The lane is forgotten, so that the next request for it is counted as waiting.
                turn.relay(ForRelay::Unlearn { key });
            }
            Some(State::Deferred { forsaken, .. }) => {
                *forsaken = true;
                turn.relay(ForRelay::Unlearn { key });
            }
            Some(State::Waiting { .. } | State::Dialling(_)) => self.end_abandoned(turn, key),
            _ => {}
        }
    }

    /// An attachment ends because nobody waits for it.
    pub(super) fn end_abandoned(&mut self, turn: &mut Turn<'_>, key: Key) {
        self.charge_abandoned(key);
        self.end(turn, key, Cause::ABANDONED);
    }

    /// Charges a client that does not wait, but for which a worker was asked, or is to be asked.
    fn charge_abandoned(&mut self, key: Key) {
        let asked = |of: &&Attachment| of.kind() == Some(WorkKind::Reconnect);
        if let Some(of) = self.attachments.get(key).filter(asked)
            && self.rules.dial(&of.facts.owner).is_none()
        {
            self.clients.charge(of.client);
        }
    }

    /// The route of an attachment that has ended is closed.
    pub(super) fn closed(&mut self, turn: &mut Turn<'_>, key: Key, (cause, tally): (Cause, Tally)) {
        if let Some(ended) = self.attachments.remove(key) {
            // If it was the function's side that ended the tunnel, the next session of its client
            // is charged in its place.
            let in_order = tally.answered && cause.reason == CloseReason::WorkerClosed;
            if in_order && ended.owed == Owed::Dispatch {
                self.clients.give_back(ended.client);
            }
            self.write_down(turn, (key, &ended), (cause, tally));
            self.kin_ended(turn, &ended, cause);
        }
    }

    /// The one place where an attachment's end is written down.
    fn write_down(
        &self,
        turn: &mut Turn<'_>,
        (key, ended): (Key, &Attachment),
        (cause, tally): (Cause, Tally),
    ) {
        let (was, of) = (ended.was(), (ended.session, key));
        let spare = was == Was::Sought { spare: true };
        let served = matches!(was, Was::Served | Was::Moving(_));
        match was {
            // Nobody was asked for a tunnel, so there is nothing to count and nothing to remember.
            Was::Refused => return,
            Was::Wish => return self.leave(turn, of, None),
            Was::Sought { .. } | Was::Served | Was::Moving(_) => {}
        }
        turn.edge(Edge::Closed(Box::new(Ended {
            // A client can cause as many unserved ends as it has requests: their lines are counted.
            named: ended.named(!served || ended.counted),
            cause,
            held_for: turn.now.since(ended.opened),
            spare,
        })));
        match was {
            // The session has another attachment in this one's place already, which waits for the
            // tunnel.
            Was::Moving(to) => turn.send(to.core, CoreMessage::not_resumed(to)),
            // A spare leaves no row: the session's own attachment has one.
            _ if spare => self.leave(turn, of, None),
            _ => self.leave(turn, of, Some(closed_row(turn, ended, (cause, tally)))),
        }
    }
}

/// Counts that a worker which was asked for one more tunnel did not bring it.
fn count_reconnect_lost(turn: &mut Turn<'_>, cause: Cause) {
    let outcome = match cause.reason {
        CloseReason::ClientClosed => ResumeOutcome::Abandoned,
        _ => ResumeOutcome::NoWorker,
    };
    turn.metrics.resumes.count(ResumeWay::Reconnect, outcome);
}

/// Counts that a client is refused what it came back for.
pub(super) fn not_resumed(turn: &mut Turn<'_>, fault: &Fault) {
    let outcome = match fault {
        Fault::SessionNotFound { .. } => ResumeOutcome::NotFound,
        _ => ResumeOutcome::Refused,
    };
    turn.metrics.resumes.count(ResumeWay::None, outcome);
}
