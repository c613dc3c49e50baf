//! Sessions whose home is another core: the question, the answer, and what the home is told of
//! their attachments here. The home keeps the directory entry for the session's life.

use std::collections::VecDeque;
use std::sync::Arc;

use ringway_proto::fault::Fault;
use ringway_proto::time::Time;
use uuid::Uuid;

use super::Shard;
use super::attach::{Attachment, State, key_of};
use super::close::Cause;
use super::conn::{Hop, Pin};
use super::session::check;
use super::table::Key;
use super::timer::Due;
use crate::border::{Border, ConnId};
use crate::control::local::{Grant, SessionFacts, Ticket, WorkKind};
use crate::log::Refusal;
use crate::metrics::Limit;
use crate::post::{CorePost, Find, Found, Join, Leave, SessionRow, Speaks, Stand};
use crate::trail::Event;

/// What a request asked another core, so that it is asked once.
#[derive(Debug)]
pub(crate) struct Question {
    pub(super) function: Box<[u8]>,
    pub(super) version: Box<[u8]>,
    pub(super) since: Time,
    /// The session was ended meanwhile: if its tunnel comes, that ends too.
    pub(super) ended: bool,
}

impl Shard {
    /// Towards other cores, and the dispatch.
    pub(super) fn ticket(&self, key: Key) -> Ticket {
        Ticket { core: self.settings.core, number: super::attach::number_of(key) }
    }

    /// The core that has the session's directory entry, if there is one at all.
    pub(super) fn session_home(&self, id: Uuid) -> u16 {
        let named = self.request_ids.home_of(id).core();
        named.filter(|core| *core < self.settings.cores).unwrap_or(self.settings.core)
    }

    /// The attachment of a connection that waits for the answer to the same question.
    pub(super) fn asked_before(&self, client: ConnId, pin: usize, id: Uuid) -> Option<Key> {
        let hop = self.conns.hop(client)?.client()?;
        let pin = hop.pins.get(pin)?;
        let asks = |key: &&Key| self.attachments.get(**key).is_some_and(|a| a.asks(id, pin));
        hop.attachments.iter().find(asks).copied()
    }

    /// Asks the session's home for it. The attachment waits for the answer, and so do all requests
    /// with the same question.
    pub(super) fn ask_home(
        &mut self,
        client: ConnId,
        pin: usize,
        id: Uuid,
        now: Time,
    ) -> Result<Key, Box<Fault>> {
        let hop = self.conns.hop(client).and_then(Hop::client);
        let Some(pin) = hop.and_then(|hop| hop.pins.get(pin)) else {
            return Err(Box::new(Fault::TunnelLost));
        };
        let (question, grant) = (Question::new(pin, now), pin.grant.clone());
        self.admit_session(client, &grant.owner.tenant)?;
        self.admit_return(client, now)?;
        let home = self.session_home(id);
        if self.mail_waits(home) {
            self.metrics.limit_hit(Limit::Mailbox);
            return Err(Box::new(Fault::MailboxFull));
        }
        let find = Box::new(Find {
            id,
            ticket: Ticket { core: self.settings.core, number: 0 },
            function: question.function.clone(),
            version: question.version.clone(),
            tenant: grant.owner.tenant.clone(),
            speaks: self.speaks(client),
        });
        let key = self.insert_asking(client, id, (grant, question))?;
        let ticket = self.ticket(key);
        if self.ask(home, CorePost::Find(Box::new(Find { ticket, ..*find }))).is_err() {
            return Err(Box::new(Fault::MailboxFull));
        }
        self.timers.arm(now + self.settings.config.session.wait, Due::Wait(key));
        Ok(key)
    }

    pub(super) fn insert_asking(
        &mut self,
        client: ConnId,
        id: Uuid,
        (grant, question): (Grant, Question),
    ) -> Result<Key, Box<Fault>> {
        let Some(hop) = self.conns.hop_mut(client) else {
            return Err(Box::new(Fault::TunnelLost));
        };
        let now = question.since;
        let facts = grant_facts(grant, now);
        let mut attachment = Attachment::new((Some(client), hop.peer), id, &facts, now);
        attachment.state = State::Asking { question: Box::new(question) };
        let key = self.attachments.insert(attachment);
        if let Some(owner) = hop.client_mut() {
            owner.attachments.push(key);
        }
        self.asking += 1;
        Ok(key)
    }

    /// A client of another core asks for a session of ours. It joins in the same step: the session
    /// cannot end between the answer and its attachment.
    pub(super) fn find(&mut self, border: &mut Border, find: Find) {
        let Find { id, ticket, function, version, tenant, speaks } = find;
        let outcome = match self.found_here(id, (&function, &version), &tenant, speaks) {
            Err(fault) => Err(fault),
            Ok((_, Some(parked))) => {
                // The tunnel itself is the answer.
                self.sessions.claim(id, parked, ticket);
                return self.hand_out(border, parked, ticket);
            }
            Ok((facts, None)) => {
                let stand = Stand::Wanted;
                // Who only waits takes nobody's place.
                let _ = self.sessions.join(Join { id, ticket, facts: facts.clone(), stand });
                Ok(facts)
            }
        };
        self.tell(ticket.core, CorePost::Found(Box::new(Found { ticket, outcome })));
    }

    /// A session of ours for a client that may have it, with the tunnel that waits for it if one
    /// does that the client can use.
    pub(super) fn found_here(
        &self,
        id: Uuid,
        wanted: (&[u8], &[u8]),
        tenant: &Arc<str>,
        speaks: Speaks,
    ) -> Result<(SessionFacts, Option<Ticket>), Fault> {
        let session = self.sessions.get(id).filter(|session| session.has_tunnel());
        let session = session.ok_or(Fault::SessionNotFound { request_id: id })?;
        check(&session.facts, id, wanted, tenant)?;
        Ok((session.facts.clone(), session.parked(speaks)))
    }

    /// The answer of a session's home. If its attachment has gone meanwhile, the home has been told.
    pub(super) fn found(&mut self, border: &mut Border, found: Found) {
        let key = key_of(found.ticket);
        let Some(attachment) = self.attachments.get(key) else { return };
        let State::Asking { question } = &attachment.state else { return };
        let id = attachment.session;
        if question.ended {
            let fault = Fault::SessionNotFound { request_id: id };
            return self.give_up_with(border, key, Cause::DELETED, &fault);
        }
        let facts = match found.outcome {
            Ok(facts) => facts,
            Err(fault) => {
                self.charge_in_vain(attachment.client);
                self.not_resumed(&fault);
                return self.end_asking(border, key, &fault);
            }
        };
        let Some(client) = attachment.client.filter(|_| attachment.waiting > 0) else {
            // Nobody waits any more.
            return self.give_up(border, key, Cause::ABANDONED);
        };
        // Another question of this connection may have led to the same session before.
        if let Some(there) = self.own_attachment(client, id) {
            return self.join_attachment(border, key, there);
        }
        let (function, version) = (question.function.clone(), question.version.clone());
        let took = self.now.since(question.since);
        self.note(id, Event::Found { home: self.session_home(id), took });
        self.asking -= 1;
        self.fresh.push(key);
        if let Some(hop) = self.conns.hop_mut(client).and_then(Hop::client_mut) {
            hop.tunnels_seen += 1;
            hop.pin_asked((&function, &version), &facts.owner.tenant, key);
        }
        if let Some(attachment) = self.attachments.get_mut(key) {
            attachment.state = State::Fresh { kind: WorkKind::Reconnect };
            attachment.owner = facts.owner;
            attachment.session_opened = facts.opened;
        }
    }

    /// The requests of one attachment go on with another one of the same session.
    fn join_attachment(&mut self, border: &mut Border, key: Key, there: Key) {
        let Some(attachment) = self.attachments.get_mut(key) else { return };
        let waiters = std::mem::take(&mut attachment.waiters);
        attachment.waiting = 0;
        for waiter in waiters {
            let Some(exchange) = self.exchanges.get_mut(waiter) else { continue };
            exchange.attachment = Some(there);
            if let Some(attachment) = self.attachments.get_mut(there) {
                attachment.waiters.push_back(waiter);
                attachment.waiting += 1;
            }
        }
        self.give_up(border, key, Cause::ABANDONED);
        self.serve_waiters(border, there);
    }

    /// Nothing came of a question: everybody who waits for the answer is told why.
    pub(super) fn end_asking(&mut self, border: &mut Border, key: Key, fault: &Fault) {
        let asks = |a: &Attachment| matches!(a.state, State::Asking { .. });
        if !self.attachments.get(key).is_some_and(asks) {
            return;
        }
        let Some(attachment) = self.attachments.remove(key) else { return };
        self.asking -= 1;
        if let Some(hop) = attachment.client.and_then(|client| self.conns.hop_mut(client)) {
            let client = hop.peer;
            if let Some(client) = hop.client_mut() {
                client.attachments.retain(|other| *other != key);
            }
            let owner = &attachment.owner;
            crate::log::open_failed(&Refusal {
                fault,
                client,
                function_id: owner.function.as_bytes(),
                function_version_id: owner.version.as_bytes(),
                tenant: &owner.tenant,
                shard: self.settings.core,
            });
        }
        for waiter in attachment.waiters {
            if self.exchanges.get(waiter).is_some() {
                self.refuse_exchange(border, waiter.slot, fault);
            }
        }
    }

    /// Everybody who waits for an attachment is refused; it stays.
    pub(super) fn refuse_waiters(&mut self, border: &mut Border, key: Key, fault: &Fault) {
        let Some(attachment) = self.attachments.get_mut(key) else { return };
        for waiter in std::mem::take(&mut attachment.waiters) {
            if self.exchanges.get(waiter).is_some() {
                self.refuse_exchange(border, waiter.slot, fault);
            }
        }
    }

    /// An attachment has waited for as long as one may: for its worker, or for another core.
    pub(super) fn waited(&mut self, border: &mut Border, key: Key) {
        let wait = self.settings.config.session.wait;
        let Some(attachment) = self.attachments.get(key) else { return };
        match &attachment.state {
            State::Waiting { issued, .. } if *issued + wait <= border.now => {
                self.give_up(border, key, Cause::NO_WORKER);
            }
            State::Asking { .. } => {
                self.leave_home(attachment.session, key, None);
                self.end_asking(border, key, &Fault::NoWorker);
            }
            _ => {}
        }
    }

    /// An attachment stands otherwise in its session: its home is told.
    pub(super) fn tell_stand(&mut self, border: &mut Border, id: Uuid, key: Key, stand: Stand) {
        let (home, ticket) = (self.session_home(id), self.ticket(key));
        if home == self.settings.core {
            self.stands(border, id, ticket, stand);
        } else {
            self.tell(home, CorePost::Stand(id, ticket, stand));
        }
    }

    /// An attachment is one of its session's: its home may not know it.
    pub(super) fn tell_join(&mut self, border: &mut Border, join: Join) {
        let home = self.session_home(join.id);
        if home == self.settings.core {
            self.joined(border, join);
        } else {
            self.tell(home, CorePost::Join(Box::new(join)));
        }
    }

    /// An attachment less, that never was more than a wish.
    pub(super) fn session_forgotten(&mut self, id: Uuid, key: Key) {
        self.leave_home(id, key, None);
    }

    /// An attachment less; if it was the last one, `row` is what remains of the session.
    pub(super) fn session_left(&mut self, key: Key, attachment: &Attachment, row: SessionRow) {
        self.leave_home(attachment.session, key, Some(row));
    }

    pub(super) fn leave_home(&mut self, id: Uuid, key: Key, row: Option<SessionRow>) {
        let leave = Leave { id, ticket: self.ticket(key), row };
        let home = self.session_home(id);
        if home == self.settings.core {
            self.sessions.leave(leave);
        } else {
            self.tell(home, CorePost::Leave(Box::new(leave)));
        }
    }
}

impl Question {
    pub(super) fn new(pin: &Pin, since: Time) -> Self {
        let (function, version) = (pin.function().into(), pin.version().into());
        Self { function, version, since, ended: false }
    }
}

impl Attachment {
    /// One that waits for nothing yet.
    pub(super) fn new(
        (client, client_address): (Option<ConnId>, std::net::SocketAddr),
        session: Uuid,
        facts: &SessionFacts,
        now: Time,
    ) -> Self {
        let mut id_text = [0; 36];
        session.hyphenated().encode_lower(&mut id_text);
        Self {
            client,
            client_address,
            session,
            id_text,
            owner: facts.owner.clone(),
            session_opened: facts.opened,
            state: State::Fresh { kind: WorkKind::New },
            waiters: VecDeque::new(),
            waiting: 0,
            spare: None,
            parent: None,
            stands_by: false,
            charged: false,
            counted: false,
            opened: now,
            streams: 0,
            bytes_up: 0,
            bytes_down: 0,
        }
    }

    /// What its session is.
    pub(super) fn facts(&self) -> SessionFacts {
        SessionFacts { owner: self.owner.clone(), opened: self.session_opened }
    }

    /// Whether its answer would be this pin's answer too.
    fn asks(&self, id: Uuid, pin: &Pin) -> bool {
        let State::Asking { question } = &self.state else { return false };
        self.session == id
            && *question.function == *pin.function()
            && *question.version == *pin.version()
            && self.owner.tenant == pin.grant.owner.tenant
    }
}

/// As long as nothing else is known: what the client may call.
fn grant_facts(grant: Grant, opened: Time) -> SessionFacts {
    SessionFacts { owner: grant.owner, opened }
}
