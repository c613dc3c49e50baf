//! Messages between cores about sessions, also if both are the same core: the home of a session,
//! the core where its tunnel is parked, and the core where its client is.
//!
//! The session's home says who gets a parked tunnel ([`super::directory`]). If client and tunnel
//! are on one core, the tunnel changes hands there. If not, the tunnel goes to the client's core,
//! with its protocol state and all that is unsent or half read, once nothing is under way on its
//! socket.

use std::sync::Arc;

use ringway_proto::fault::Fault;
use uuid::Uuid;

use super::super::cause::Cause;
use super::super::facts::{
    Answer, Ask, Edge, Fact, ForRelay, ForWorkers, MovedHop, Question, key_of,
};
use super::super::table::Key;
use super::super::turn::Turn;
use super::attachment::{Asked, Asking, Attachment, State, UsedBy};
use super::called::Called;
use super::directory::check;
use super::roster::not_resumed;
use super::{Sessions, way_of, work};
use crate::control::local::{SessionFacts, Ticket, WorkKind};
use crate::control::port::{Owner, Plane, Registration};
use crate::message::{
    CoreMessage, Find, Found, Join, MemberState, MovedTunnel, Resumed, Speaks, Vouch, Vouched,
};
use crate::metrics::{Limit, ResumeOutcome, ResumeWay};
use crate::net::Detached;
use crate::timeline::Event;

/// A tunnel that goes from core to core: its hop, and beside it what sessions know of the tunnel.
struct Moved {
    hop: MovedHop,
    speaks: Speaks,
    spent: bool,
}

/// A tunnel that is no attachment's. It was parked on this core, or has just come to it.
struct Loose {
    from: From,
    of: Attachment,
    speaks: Speaks,
    spent: bool,
}

/// The party that said a client may have a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Whence {
    /// The session's home, which counts the attachment as its member.
    Home,
    /// The session's worker, by what it has registered. The home has to hear of the attachment.
    Registered,
}

/// The place where a loose tunnel is.
enum From {
    /// On this core, where it was parked.
    Here(Key),
    /// The tunnel has come from another core.
    Elsewhere(Detached, MovedHop),
}

impl Sessions {
    /// The work did not get into its queue.
    pub(super) fn not_submitted(
        &mut self,
        turn: &mut Turn<'_>,
        key: Key,
        (cause, fault): (Cause, Fault),
    ) {
        if let Some(State::Waiting { .. }) = self.roster.attachments.state(key) {
            self.roster.end_with(turn, key, cause, fault);
        }
    }

    /// A spare's work has left its queue.
    pub(super) fn recalled(&mut self, turn: &mut Turn<'_>, key: Key) {
        if let Some(State::Waiting { .. }) = self.roster.attachments.state(key) {
            self.roster.end(turn, key, Cause::UNTAKEN);
        }
    }

    /// The session has another tunnel: the one that this attachment keeps is not needed.
    pub(super) fn end_surplus(&mut self, turn: &mut Turn<'_>, key: Key) {
        self.roster.end_parked(turn, key, Cause::SURPLUS);
    }

    /// A new session needs the worker of this parked one.
    pub(super) fn yield_worker(&mut self, turn: &mut Turn<'_>, key: Key) {
        let session = self.roster.attachments.get(key).map(|of| of.session);
        if let Some(session) = session
            && self.roster.end_parked(turn, key, Cause::YIELDED)
        {
            turn.metrics.resumes.yields += 1;
            turn.edge(Edge::Note { session, at: None, event: Event::Yielded });
        }
    }

    // ---- at the session's home ----

    /// A client of another core asks for a session of ours. Its attachment joins in the same step,
    /// so that the session cannot end between the answer and the attachment.
    pub(super) fn find(&mut self, turn: &mut Turn<'_>, find: Find) {
        let Find { id, ticket, function, version, tenant, speaks } = find;
        let called = Called { function: &function, version: &version };
        let outcome = match self.directory.find(id, called, &tenant, speaks) {
            Err(fault) => Err(fault),
            Ok((_, Some(parked))) => {
                // The tunnel itself is the answer.
                self.directory.claim(id, parked, ticket);
                return turn.send(parked.core, CoreMessage::Claim { parked, to: ticket });
            }
            Ok((facts, None)) => {
                let member_state = MemberState::Wanted;
                self.joined(turn, Join { id, ticket, facts: facts.clone(), member_state });
                Ok(facts)
            }
        };
        turn.send(ticket.core, CoreMessage::Found(Box::new(Found { ticket, outcome })));
    }

    /// A client of another core asks for a session of ours before anybody has said that it may call
    /// anything.
    pub(super) fn vouch_for(&self, turn: &mut Turn<'_>, vouch: Vouch) {
        let Vouch { id, ticket, function, version, seal, speaks } = vouch;
        let called = Called { function: &function, version: &version };
        let owner = self.directory.vouch(id, called, seal, speaks);
        turn.send(ticket.core, CoreMessage::Vouched(Box::new(Vouched { ticket, owner })));
    }

    /// An attachment joins a session of ours. This core may have forgotten the session.
    pub(super) fn joined(&mut self, turn: &mut Turn<'_>, join: Join) {
        let surplus = self.directory.join(join);
        tell_surplus(turn, surplus);
    }

    /// An attachment of a session of ours is in another state now.
    pub(super) fn member_changed(
        &mut self,
        turn: &mut Turn<'_>,
        id: Uuid,
        (ticket, member_state): (Ticket, MemberState),
    ) {
        let surplus = self.directory.set_member_state(id, ticket, member_state);
        tell_surplus(turn, surplus);
    }

    // ---- where the tunnel is parked ----

    /// A parked tunnel becomes another attachment's. The attachment that had it is no member of the
    /// session any more.
    pub(super) fn claimed(&mut self, turn: &mut Turn<'_>, key: Key, to: Ticket) {
        let roster = &mut self.roster;
        let parked = roster.attachments.get(key).and_then(|of| match *of.state() {
            State::Parked { speaks, spent, .. } => Some((of, speaks, spent)),
            _ => None,
        });
        let Some((of, speaks, spent)) = parked else {
            return turn.send(to.core, CoreMessage::not_resumed(to));
        };
        turn.workers(ForWorkers::Unparks(of.of_version(key, turn.settings)));
        if to.core != turn.settings.core {
            roster.attachments.set(key, State::Moving { to, speaks, spent });
            turn.relay(ForRelay::Replaced { key, yes: true });
            roster.end_spare_of(turn, key);
            turn.relay(ForRelay::Detach { key });
        } else if let Some(of) = roster.attachments.remove(key) {
            self.give_tunnel(turn, key_of(to), Loose { from: From::Here(key), of, speaks, spent });
        }
    }

    /// Nothing is under way any more on a tunnel that another core wants: the tunnel leaves this
    /// core.
    pub(super) fn tunnel_detached(
        &mut self,
        turn: &mut Turn<'_>,
        key: Key,
        detached: Detached,
        hop: MovedHop,
    ) {
        if let Some(State::Moving { to, speaks, spent }) = self.roster.attachments.state(key) {
            let (to, moved) = (*to, Moved { hop, speaks: *speaks, spent: *spent });
            if let Some(of) = self.roster.attachments.remove(key) {
                let tunnel = MovedTunnel {
                    detached,
                    hop: Box::new(moved),
                    session: of.session,
                    facts: of.facts,
                    opened: of.opened,
                    client_address: of.address,
                    from: turn.settings.core,
                };
                let event = Event::TunnelLeft { to: to.core };
                turn.edge(Edge::Note { session: of.session, at: None, event });
                let resumed = Resumed { ticket: to, tunnel: Some(tunnel) };
                turn.send(to.core, CoreMessage::Resumed(Box::new(resumed)));
            }
        }
    }

    // ---- where the client is ----

    /// The answer of a session's home. If the attachment has gone meanwhile, the home has heard of
    /// that. A remote control plane may know a session that the home does not know.
    pub(super) fn found(&mut self, turn: &mut Turn<'_>, found: Found) {
        let key = key_of(found.ticket);
        let of = self.roster.attachments.get(key).filter(|of| of.is_asking());
        match (of.map(|of| of.session), found.outcome) {
            (None, _) => {}
            (Some(id), Err(Fault::SessionNotFound { .. }))
                if turn.settings.dispatch == Plane::Remote =>
            {
                self.ask_registration(turn, key, id);
            }
            (Some(id), outcome) => {
                self.known(turn, key, outcome.map(|facts| (Whence::Home, id, facts)));
            }
        }
    }

    /// Asks the control plane what a session's worker has registered.
    pub(super) fn ask_registration(&self, turn: &mut Turn<'_>, key: Key, id: Uuid) {
        let (ticket, what) = (self.questions.tunnel_ticket(key), Question::Lookup(id));
        let deadline = turn.now + turn.settings.config.session.wait;
        turn.fact(Fact::Ask(Ask { ticket, deadline, what }));
    }

    /// The control plane answers a question about a session that no core of this gateway knows.
    pub(super) fn looked_up(&mut self, turn: &mut Turn<'_>, key: Key, answer: Answer) {
        if let Some(of) = self.roster.attachments.get(key)
            && let State::Asking(asking) = of.state()
        {
            let (id, by) = (of.session, &of.facts.owner);
            let outcome = match answer {
                Answer::Registered(registration) => {
                    let Registration { function, version, tenant } = *registration;
                    let (subject, kind) = (by.subject.clone(), by.kind);
                    let owner = Owner { tenant, function, version, subject, kind };
                    let facts = SessionFacts { owner: Arc::new(owner), opened: turn.now };
                    let called = Called { function: &asking.function, version: &asking.version };
                    check(&facts, id, called, &by.tenant).map(|()| facts)
                }
                Answer::Unregistered => Err(Fault::SessionNotFound { request_id: id }),
                Answer::Failed(text) => Err(Fault::LookupFailed { text }),
                _ => Err(Fault::Overloaded),
            };
            self.known(turn, key, outcome.map(|facts| (Whence::Registered, id, facts)));
        }
    }

    /// The answer has come whether the client of an attachment may have the session it asks for.
    fn known(
        &mut self,
        turn: &mut Turn<'_>,
        key: Key,
        outcome: Result<(Whence, Uuid, SessionFacts), Fault>,
    ) {
        if let Some(of) = self.roster.attachments.get_mut(key)
            && let client = of.client
            && let State::Asking(asking) = of.state_mut()
        {
            let Asking { function, version, since, asked } = asking.take();
            let roster = &mut self.roster;
            let waits = client.filter(|_| asked == Asked::Wanted);
            match (outcome, waits) {
                _ if asked == Asked::Ended => {
                    let id = roster.attachments.get(key).map_or(Uuid::nil(), |of| of.session);
                    let fault = Fault::SessionNotFound { request_id: id };
                    roster.end_with(turn, key, Cause::DELETED, fault);
                }
                (Err(fault), _) => {
                    roster.clients.charge(client);
                    not_resumed(turn, &fault);
                    roster.end_asking(turn, key, fault);
                }
                // No request waits any more.
                (Ok(_), None) => roster.end(turn, key, Cause::ABANDONED),
                (Ok((whence, id, facts)), Some(client)) => {
                    // Another question of this connection may have led to the same session before.
                    if let Some(there) = roster.own_attachment(client, id) {
                        turn.relay(ForRelay::Merge { from: key, to: there });
                        return roster.end(turn, key, Cause::ABANDONED);
                    }
                    let (home, took) = (roster.home(turn.settings, id), turn.now.since(since));
                    let event = match whence {
                        Whence::Home => Event::Found { home, took },
                        Whence::Registered => Event::LookedUp { took },
                    };
                    turn.edge(Edge::Note { session: id, at: None, event });
                    let tenant = facts.owner.tenant.clone();
                    let called = Called { function: &function, version: &version };
                    roster.clients.pin_asked(client, called, &tenant, key);
                    roster.attachments.set(key, State::deferred(WorkKind::Reconnect, since));
                    roster.learn(turn, key, facts);
                    roster.deferred.push(key);
                    if whence == Whence::Registered {
                        roster.tell_join(turn, key);
                    }
                }
            }
        }
    }

    /// The question found no room on its way.
    pub(super) fn not_found(&mut self, turn: &mut Turn<'_>, key: Key) {
        self.roster.end_asking(turn, key, Fault::MailboxFull);
    }

    /// A tunnel has come for the attachment that asked for it, or will not come.
    pub(super) fn resumed(&mut self, turn: &mut Turn<'_>, resumed: Resumed, room: bool) {
        let key = key_of(resumed.ticket);
        match resumed.tunnel {
            None => self.tunnel_will_not_come(turn, key),
            Some(_) if !room => {
                turn.limit_hit(Limit::WorkerConnections);
                self.tunnel_will_not_come(turn, key);
            }
            Some(moved) => {
                let MovedTunnel { detached, hop, session, facts, opened, client_address, from } =
                    moved;
                let moved: Box<Moved> = hop.downcast().expect("only `left` makes one");
                let Moved { hop, speaks, spent } = *moved;
                turn.edge(Edge::Arrived { session, facts: facts.clone(), from });
                let state = State::Attached { spent, settles: None };
                let of = Attachment::new((None, client_address), session, facts, opened, state);
                let from = From::Elsewhere(detached, hop);
                self.give_tunnel(turn, key, Loose { from, of, speaks, spent });
            }
        }
    }

    fn tunnel_will_not_come(&mut self, turn: &mut Turn<'_>, key: Key) {
        let asking = self.roster.attachments.get(key).filter(|of| of.is_asking());
        if let Some(id) = asking.map(|of| of.session) {
            turn.metrics.resumes.count(ResumeWay::Memory, ResumeOutcome::Lost);
            self.roster.leave(turn, (id, key), None);
            let fault = Fault::SessionNotFound { request_id: id };
            self.roster.end_asking(turn, key, fault);
        }
    }

    /// Gives a tunnel that is no attachment's to the one that was promised it. If nobody waits
    /// there any more, the tunnel is parked here.
    fn give_tunnel(&mut self, turn: &mut Turn<'_>, key: Key, loose: Loose) {
        let Loose { from, of, speaks, spent } = loose;
        let asking = self.roster.attachments.get_mut(key).and_then(|asks| {
            let client = asks.client;
            match asks.state_mut() {
                State::Asking(asking) => Some((client, asking.take())),
                _ => None,
            }
        });
        let Some((client, asking)) = asking else {
            return self.park_unasked(turn, from, of, spent);
        };
        let roster = &mut self.roster;
        turn.relay(from.into_route(key));
        roster.attachments.set(key, State::Attached { spent, settles: None });
        let (spare, tenant) = (of.spare(), of.facts.owner.tenant.clone());
        if let Some(attachment) = roster.attachments.get_mut(key) {
            attachment.opened = of.opened;
        }
        roster.learn(turn, key, of.facts);
        spare.into_iter().for_each(|spare| roster.adopt_spare(turn, key, spare));
        match client {
            _ if asking.asked == Asked::Ended => roster.end(turn, key, Cause::DELETED),
            None => roster.park(turn, key, UsedBy::Client),
            Some(client) => {
                let called = Called { function: &asking.function, version: &asking.version };
                roster.clients.pin_asked(client, called, &tenant, key);
                roster.resumed(turn, key, way_of(speaks), asking.since);
                roster.tell_state(turn, key);
            }
        }
    }

    /// A tunnel has come for which nobody waits. It is parked, and the session's home hears of it.
    fn park_unasked(&mut self, turn: &mut Turn<'_>, from: From, of: Attachment, spent: bool) {
        let (roster, spare) = (&mut self.roster, of.spare());
        let state = State::Attached { spent, settles: None };
        let of = Attachment::new((None, of.address), of.session, of.facts, of.opened, state);
        let key = roster.begin(turn, of);
        turn.relay(from.into_route(key));
        spare.into_iter().for_each(|spare| roster.adopt_spare(turn, key, spare));
        roster.tell_join(turn, key);
        roster.park(turn, key, UsedBy::Client);
    }

    // ---- a core that begins anew ----

    /// Another core's shard panicked: all it knew is gone.
    pub(crate) fn core_restarted(&mut self, turn: &mut Turn<'_>, core: u16) {
        self.directory.forget_core(core, (turn.now, turn.settings.unix_micros(turn.now)));
        // Tunnels that were parked there are gone, so clients to whom one was promised are refused.
        for robbed in self.directory.robbed_by(core) {
            turn.send(robbed.core, CoreMessage::not_resumed(robbed));
        }
        self.renew(turn, core);
    }

    /// Another core has lost messages that were meant for this one: what that core asked of this
    /// one is void.
    pub(crate) fn core_void(&mut self, turn: &mut Turn<'_>, core: u16) {
        self.directory.forget_core(core, (turn.now, turn.settings.unix_micros(turn.now)));
        self.renew(turn, core);
    }

    /// Does again what this core asked of another one that has forgotten it.
    pub(crate) fn renew(&mut self, turn: &mut Turn<'_>, core: u16) {
        for key in self.questions.vouching_at(core) {
            self.put(turn, key);
        }
        for key in self.roster.attachments.keys() {
            self.renew_join(turn, key, core);
            self.renew_dispatch(turn, key, core);
        }
    }

    fn renew_join(&mut self, turn: &mut Turn<'_>, key: Key, core: u16) {
        let roster = &mut self.roster;
        if let Some(of) = roster.attachments.get(key)
            && let id = of.session
            && roster.home(turn.settings, id) == core
        {
            match of.state() {
                State::Asking(_) => {
                    // The home may have heard the question all the same.
                    roster.leave(turn, (id, key), None);
                    roster.end_asking(turn, key, Fault::MailboxFull);
                }
                // The core to which the attachment moves tells of it.
                State::Moving { .. } => {}
                _ => roster.tell_join(turn, key),
            }
        }
    }

    /// Queues an attachment's work again. Its token is still good, because it lives with the
    /// attachment. A parked attachment is announced again.
    fn renew_dispatch(&self, turn: &mut Turn<'_>, key: Key, core: u16) {
        if let Some(of) = self.roster.attachments.get(key) {
            let owner = &of.facts.owner;
            if turn.settings.dispatch_home(&owner.function, &owner.version) != core {
                return;
            }
            if let State::Waiting { token, kind, .. } = of.state() {
                let work = work(turn.settings, (key, of), *kind, token);
                turn.workers(ForWorkers::Submit(Box::new(work)));
            }
            self.roster.tell_parks(turn, key);
        }
    }
}

impl From {
    /// The fact by which the tunnel becomes an attachment's.
    fn into_route(self, key: Key) -> ForRelay {
        match self {
            Self::Here(from) => ForRelay::Transfer { from, to: key },
            Self::Elsewhere(detached, hop) => {
                ForRelay::Adopt { key, detached: Box::new(detached), hop }
            }
        }
    }
}

fn tell_surplus(turn: &mut Turn<'_>, tickets: Vec<Ticket>) {
    for ticket in tickets {
        turn.send(ticket.core, CoreMessage::EndSurplus(ticket));
    }
}
