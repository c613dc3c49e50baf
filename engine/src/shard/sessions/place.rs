//! Where a request goes. The control plane is asked, the first time, what the client is granted.
//! Then the attachment that serves the request is found, or made if there is none.

use std::net::SocketAddr;
use std::sync::Arc;

use ringway_proto::fault::Fault;
use ringway_proto::id::{Node, RequestIds};
use ringway_proto::time::Time;
use uuid::Uuid;

use super::super::facts::{
    Answer, Ask, Caller, Edge, Fact, ForRelay, ForSessions, Question as About, Refused, Wanted,
    key_of,
};
use super::super::settings::ShardSettings;
use super::super::table::Key;
use super::super::timer::Due;
use super::super::turn::Turn;
use super::attachment::{Asking, Attachment, Owed, State};
use super::called::Called;
use super::client::{Pin, USED_UP};
use super::directory::{SessionEntry, check};
use super::question::{Question, Waiting};
use super::roster::not_resumed;
use super::{Placed, Sessions, UNAVAILABLE, ticket};
use crate::config::HonourId;
use crate::control::local::{SessionFacts, Ticket, WorkKind};
use crate::control::port::{AskTicket, Grant, Owner, Plane};
use crate::message::{CoreMessage, Find, Speaks, Vouch, Vouched};
use crate::metrics::{AskOutcome, Limit};
use crate::net::ConnId;

/// The most requests of one connection that may have come to wait for answers, as a multiple of the
/// streams it may have.
const GONE_WAITERS: usize = 2;

/// The client that asks for a session.
struct Asker {
    conn: ConnId,
    peer: SocketAddr,
    speaks: Speaks,
    /// When the client's request came.
    since: Time,
    /// The connection's pin by which the client asks.
    pin: usize,
    /// The owner that the pin was granted.
    owner: Arc<Owner>,
    /// The live attachment that the pin's requests use.
    pinned: Option<Key>,
    /// For how many seconds the client asks a streaming worker to wait for it.
    window: Option<u16>,
}

impl Sessions {
    /// A request is here that no route is known for.
    pub(super) fn place(
        &mut self,
        turn: &mut Turn<'_>,
        exchange: Key,
        from: Caller,
        wanted: Box<Wanted>,
    ) {
        let scope = turn.settings.config.session.scope;
        let clients = &mut self.roster.clients;
        clients.meet(from);
        let hash = clients.hash(&wanted, scope);
        let waiting = Waiting { exchange, wanted, since: turn.now };
        match self.roster.granted(from.conn, (&waiting.wanted, hash), scope) {
            Some(pin) => self.go_on(turn, (from.conn, pin), waiting),
            None => self.ask(turn, (from.conn, hash), waiting),
        }
    }

    /// The other gateway that has made the session which a connection's first request names, if
    /// there is a cluster. That is a hint only: anyone can write such an id.
    pub(super) fn owner(&self, turn: &Turn<'_>, from: Caller, wanted: &Wanted) -> Option<Node> {
        let first = self.roster.clients.get(from.conn).is_none();
        wanted.id.filter(|_| first).and_then(|id| other_maker(turn, id))
    }

    // ---- what the control plane is asked ----

    /// Asks whether a client may call what it wants, unless that is asked already.
    fn ask(&mut self, turn: &mut Turn<'_>, (from, hash): (ConnId, u64), waiting: Waiting) {
        let scope = turn.settings.config.session.scope;
        let most = turn.settings.config.limits.attachments;
        let asked = self.roster.clients.get(from).map(|client| client.questions.clone());
        let asked = asked.unwrap_or_default();
        // Requests that have left are counted too, since nobody tells `sessions` that they did.
        if self.questions.joined(&asked)
            >= GONE_WAITERS * turn.settings.config.limits.streams as usize
        {
            turn.limit_hit(Limit::Streams);
            return self.refuse(turn, from, waiting, Box::new(Fault::Overloaded));
        }
        let Some(waiting) = self.questions.join(&asked, (hash, scope), waiting) else { return };
        if asked.len() >= most {
            turn.limit_hit(Limit::Attachments);
            return self.refuse(turn, from, waiting, Box::new(Fault::TooManySessions));
        }
        let tenant = match turn.settings.plane {
            // The local control plane answers at once, so its questions count for no tenant.
            Plane::Local => None,
            Plane::Remote => self.roster.rules.known_tenant(waiting.wanted.call.credential()),
        };
        if let Some(limit) = self.questions.full(tenant.as_ref(), &turn.settings.config.limits) {
            turn.limit_hit(limit);
            return self.refuse(turn, from, waiting, Box::new(Fault::Overloaded));
        }
        let (rules, deadline) =
            (self.roster.rules.number(), turn.now + turn.settings.config.session.wait);
        let vouch = self.vouch(turn.settings, from, &waiting.wanted);
        let key =
            self.questions.begin(Question::new((from, hash), (rules, deadline), tenant, waiting));
        if let Some(client) = self.roster.clients.get_mut(from) {
            client.questions.push(key);
        }
        match vouch {
            None => self.put(turn, key),
            Some((home, vouch)) => {
                self.questions.vouching(key, home);
                let vouch = Vouch { ticket: ticket(turn.settings, key), ..vouch };
                turn.send(home, CoreMessage::Vouch(Box::new(vouch)));
            }
        }
    }

    /// The message to the home of a session that a request names, before the control plane is
    /// asked. A client that brings the credential which opened the session need not wait for the
    /// control plane (design 5).
    fn vouch(
        &self,
        settings: &ShardSettings,
        from: ConnId,
        wanted: &Wanted,
    ) -> Option<(u16, Vouch)> {
        let id = wanted.id.filter(|_| settings.plane == Plane::Remote)?;
        let home = self.roster.own_home(settings, id)?;
        let vouch = Vouch {
            id,
            // The question has no key of its own yet.
            ticket: ticket(settings, Key { slot: 0, generation: 0 }),
            function: wanted.call.function().into(),
            version: wanted.call.version().into(),
            seal: self.mint.seal(wanted.call.credential()),
            speaks: self.roster.clients.get(from)?.caller.speaks,
        };
        Some((home, vouch))
    }

    /// A question is put to the control plane.
    pub(super) fn put(&mut self, turn: &mut Turn<'_>, key: Key) {
        let ticket = self.questions.ticket(key);
        if let Some(question) = self.questions.put(key, turn.metrics) {
            let deadline = question.deadline;
            let what = About::Authorise(question.first.wanted.call.clone());
            turn.fact(Fact::Ask(Ask { ticket, deadline, what }));
        }
    }

    /// A session's home says whether a client opened it and its tunnel waits.
    pub(super) fn vouched(&mut self, turn: &mut Turn<'_>, vouched: Vouched) {
        let key = key_of(vouched.ticket);
        match vouched.owner {
            _ if self.questions.is_asked(key) => {}
            None => self.put(turn, key),
            Some(owner) => {
                let question = self.questions.end(key, AskOutcome::Answered, turn.metrics);
                if let Some(mut question) = question {
                    self.roster.clients.heard(question.from, key);
                    // The home's word holds for this session, and for no other.
                    question.rules = USED_UP;
                    self.granted(turn, question, Grant { owner });
                }
            }
        }
    }

    /// The control plane has answered. A second answer finds no question, nor does one that comes
    /// after the end of its time or of its client.
    pub(super) fn call_answered(&mut self, turn: &mut Turn<'_>, ticket: AskTicket, answer: Answer) {
        let outcome = match answer {
            Answer::Granted(_) => AskOutcome::Answered,
            _ => AskOutcome::Refused,
        };
        if let Some((key, question)) = self.questions.answer(ticket, outcome, turn.metrics) {
            self.roster.clients.heard(question.from, key);
            match answer {
                Answer::Granted(grant) => self.granted(turn, question, grant),
                Answer::Denied(denied) => {
                    let fault = Fault::Api { code: denied.code, text: denied.text };
                    self.refuse_all(turn, question, &fault);
                }
                // No other kind of answer belongs to this question.
                _ => self.refuse_all(turn, question, &Fault::Overloaded),
            }
        }
    }

    /// The control plane has had its time to answer.
    pub(crate) fn ask_overdue(&mut self, turn: &mut Turn<'_>, key: Key) {
        if let Some(question) = self.withdraw(turn, key, AskOutcome::Expired) {
            self.roster.clients.heard(question.from, key);
            let text = "the authorisation service did not answer in time".into();
            self.refuse_all(turn, question, &Fault::Api { code: UNAVAILABLE, text });
        }
    }

    /// A question ends without an answer, if it has not ended before. If the control plane was
    /// asked, it hears that the question is withdrawn.
    pub(super) fn withdraw(
        &mut self,
        turn: &mut Turn<'_>,
        key: Key,
        outcome: AskOutcome,
    ) -> Option<Question> {
        let asked = self.questions.is_asked(key);
        let question = self.questions.end(key, outcome, turn.metrics)?;
        if asked {
            let (ticket, deadline) = (self.questions.ticket(key), question.deadline);
            turn.fact(Fact::Ask(Ask { ticket, deadline, what: About::Withdraw }));
        }
        Some(question)
    }

    /// The client may have what it wants: the requests that waited for that go on.
    fn granted(&mut self, turn: &mut Turn<'_>, question: Question, grant: Grant) {
        let scope = turn.settings.config.session.scope;
        let most = turn.settings.config.limits.attachments;
        let Question { from, hash, rules, .. } = question;
        if let Some(client) = self.roster.clients.get_mut(from) {
            let wanted = &question.first.wanted;
            let at = client.pin(wanted, hash, scope);
            turn.metrics.relays.shared += u64::from(client.is_shared_by(wanted));
            if let Some(pin) = at.and_then(|at| client.pins.get_mut(at)) {
                pin.grant = grant;
                pin.rules = rules;
            } else if !client.grant(Pin::new(wanted, hash, grant, (turn.now, rules)), most) {
                turn.limit_hit(Limit::Attachments);
                return self.refuse_all(turn, question, &Fault::TooManySessions);
            }
            // A new pin is the last one.
            let pin = at.unwrap_or(client.pins.len() - 1);
            let mut waiting = question.waiting();
            if let Some(first) = waiting.next() {
                self.go_on(turn, (from, pin), first);
            }
            // The others go on one after the other, so that requests which have left meanwhile
            // leave nothing to those behind them.
            for Waiting { exchange, wanted, .. } in waiting {
                turn.sessions(ForSessions::GoOn { exchange, from, wanted });
            }
        }
    }

    /// A request goes on that has waited for the same answer as another one.
    pub(super) fn go_on_anew(&mut self, turn: &mut Turn<'_>, from: ConnId, waiting: Waiting) {
        let scope = turn.settings.config.session.scope;
        let hash = self.roster.clients.hash(&waiting.wanted, scope);
        if let Some(client) = self.roster.clients.get(from) {
            match client.pin(&waiting.wanted, hash, scope) {
                Some(pin) => self.go_on(turn, (from, pin), waiting),
                // The pin was idle and has been forgotten to make room, so the client is asked
                // about again.
                None => self.ask(turn, (from, hash), waiting),
            }
        }
    }

    fn refuse_all(&self, turn: &mut Turn<'_>, question: Question, fault: &Fault) {
        let from = question.from;
        for waiting in question.waiting() {
            self.refuse(turn, from, waiting, Box::new(fault.clone()));
        }
    }

    fn refuse(&self, turn: &mut Turn<'_>, conn: ConnId, waiting: Waiting, fault: Box<Fault>) {
        let Waiting { exchange, wanted, .. } = waiting;
        if let Some(client) = self.roster.clients.get(conn) {
            turn.edge(Edge::Refused(Box::new(Refused {
                fault: (*fault).clone(),
                client: client.caller.peer,
                tenant: self.roster.rules.tenant(wanted.call.credential()),
                function: wanted.call.function().into(),
                version: wanted.call.version().into(),
            })));
        }
        turn.relay(ForRelay::Refuse { exchange, fault });
    }

    // ---- the attachment ----

    /// A request goes on whose client may have what it wants.
    fn go_on(&mut self, turn: &mut Turn<'_>, (conn, pin): (ConnId, usize), waiting: Waiting) {
        if let Some(asker) = self.asker(turn, (conn, pin), &waiting) {
            let mark = turn.mark();
            match self.attachment_for(turn, &asker, &waiting.wanted) {
                Ok(key) => {
                    if let Some(attachment) = self.roster.attachments.get_mut(key) {
                        attachment.want();
                    }
                    let Waiting { exchange, wanted, .. } = waiting;
                    let unnamed = self.roster.clients.uses(conn, pin) == Some(key);
                    turn.relay_first(mark, ForRelay::Serve { exchange, key, wanted, unnamed });
                }
                Err(fault) => self.refuse(turn, conn, waiting, fault),
            }
        }
    }

    fn asker(
        &mut self,
        turn: &Turn<'_>,
        (conn, pin): (ConnId, usize),
        waiting: &Waiting,
    ) -> Option<Asker> {
        let client = self.roster.clients.get_mut(conn)?;
        let pinned = client.pinned(pin, turn.settings.config.session.scope);
        let owner = client.pins.get(pin)?.grant.owner.clone();
        let Caller { peer, speaks, .. } = client.caller;
        let (since, window) = (waiting.since, waiting.wanted.window);
        Some(Asker { conn, peer, speaks, since, pin, owner, pinned, window })
    }

    /// The attachment that serves a request, made if there is none.
    fn attachment_for(&mut self, turn: &mut Turn<'_>, asker: &Asker, wanted: &Wanted) -> Placed {
        let named = wanted.id.filter(|_| match turn.settings.config.session.honour_id {
            HonourId::Always => true,
            HonourId::Unpinned => asker.pinned.is_none(),
        });
        match (named, asker.pinned) {
            (None, Some(key)) => Ok(key),
            (None, None) => self.new_session(turn, asker, wanted.call.credential()),
            (Some(id), Some(key)) if self.roster.is_of(key, id) => Ok(key),
            (Some(id), _) => self.come_back(turn, asker, (id, wanted)),
        }
    }

    /// A session of its own for this pin (contract 3.6, CL-21).
    fn new_session(&mut self, turn: &mut Turn<'_>, asker: &Asker, credential: &[u8]) -> Placed {
        let (roster, owner) = (&mut self.roster, asker.owner.clone());
        if owner.version.is_empty() {
            return Err(Box::new(Fault::NoVersions));
        }
        roster.admit_session(turn, asker.conn, &owner.tenant)?;
        let asks = roster.rules.dial(&owner).is_none();
        if asks {
            roster.admit_return(turn, asker.conn)?;
            roster.clients.charge(Some(asker.conn));
        }
        let id = self.mint.id();
        let facts = SessionFacts { owner, opened: turn.now };
        let seal = match turn.settings.plane {
            Plane::Local => None,
            Plane::Remote => Some(self.mint.seal(credential)),
        };
        let mut session = SessionEntry::new(id, facts.clone());
        session.seal = seal;
        self.directory.insert(session);
        let owed = if asks { Owed::Dispatch } else { Owed::Nothing };
        Ok(self.dispatch(turn, asker, (id, facts), (WorkKind::New, owed)))
    }

    /// A new attachment; its work is queued when the turn ends.
    fn dispatch(
        &mut self,
        turn: &mut Turn<'_>,
        asker: &Asker,
        (id, facts): (Uuid, SessionFacts),
        (kind, owed): (WorkKind, Owed),
    ) -> Key {
        let (roster, limits) = (&mut self.roster, &turn.settings.config.limits);
        let (client, state) = ((Some(asker.conn), asker.peer), State::deferred(kind, asker.since));
        let mut attachment = Attachment::new(client, id, facts, turn.now, state);
        attachment.counted = roster.clients.is_hasty(asker.conn, limits, turn.now);
        (attachment.owed, attachment.window) = (owed, asker.window);
        let key = roster.begin(turn, attachment);
        roster.clients.pin(asker.conn, asker.pin, key);
        roster.deferred.push(key);
        roster.tell_join(turn, key);
        key
    }

    /// Back to the session that a request names: R1, R3-R9 of the contract. A session whose home is
    /// here is looked up at once: a client that asks in vain is charged nothing, and a tunnel that is
    /// parked here is found at once.
    fn come_back(
        &mut self,
        turn: &mut Turn<'_>,
        asker: &Asker,
        (id, wanted): (Uuid, &Wanted),
    ) -> Placed {
        let called = Called { function: wanted.call.function(), version: wanted.call.version() };
        let tenant = &asker.owner.tenant;
        // The connection's own attachment is looked for first. It may still wait for its first
        // tunnel, and nobody else would find its session then.
        let own = self.roster.own_attachment(asker.conn, id);
        if let Some((key, of)) = own.and_then(|key| Some((key, self.roster.attachments.get(key)?)))
        {
            check(&of.facts, id, called, tenant).map_err(Box::new)?;
            return Ok(key);
        }
        if let Some(key) = self.roster.asked_before(asker.conn, (id, wanted), tenant) {
            return Ok(key);
        }
        // A gateway that drains brings no client to the owner any more, but one that stays does: the
        // client has to hear that it can try again, and not that its session is unknown.
        if turn.draining.is_some() && other_maker(turn, id).is_some() {
            return Err(Box::new(Fault::Draining));
        }
        let home = self.roster.home(turn.settings, id);
        if home != turn.settings.core {
            return self.ask_home(turn, asker, home, (id, wanted));
        }
        let found = self.directory.find(id, called, tenant, asker.speaks);
        if let Err(Fault::SessionNotFound { .. }) = found
            && turn.settings.dispatch == Plane::Remote
        {
            return self.look_up(turn, asker, (id, wanted));
        }
        let (facts, parked) = found.map_err(|fault| {
            not_resumed(turn, &fault);
            Box::new(fault)
        })?;
        if let Some(parked) = parked {
            self.roster.admit_attachment(turn, asker.conn)?;
            if parked.core == turn.settings.core {
                return self.take_parked(turn, asker, (id, parked));
            }
            return Ok(self.claim(turn, asker, (id, wanted), parked));
        }
        self.roster.admit_session(turn, asker.conn, tenant)?;
        self.roster.admit_return(turn, asker.conn)?;
        let again = (WorkKind::Reconnect, Owed::Nothing);
        Ok(self.dispatch(turn, asker, (id, facts), again))
    }

    /// The client may have the session, and this tunnel of it is parked here.
    fn take_parked(
        &mut self,
        turn: &mut Turn<'_>,
        asker: &Asker,
        (id, parked): (Uuid, Ticket),
    ) -> Placed {
        let key = key_of(parked);
        let way = self.roster.unpark(turn, key, (asker.conn, asker.peer));
        // The directory hears of an end a moment after the attachment.
        let way = way.ok_or(Fault::SessionNotFound { request_id: id })?;
        self.directory.claim(id, parked, parked);
        self.roster.resumed(turn, key, way, turn.now);
        self.roster.clients.pin(asker.conn, asker.pin, key);
        Ok(key)
    }

    /// The client may have the session, and this tunnel of it is parked on another core: the
    /// request waits until the tunnel is here.
    fn claim(
        &mut self,
        turn: &mut Turn<'_>,
        asker: &Asker,
        (id, wanted): (Uuid, &Wanted),
        parked: Ticket,
    ) -> Key {
        let key = self.begin_asking(turn, asker, (id, wanted));
        let to = ticket(turn.settings, key);
        self.directory.claim(id, parked, to);
        turn.send(parked.core, CoreMessage::Claim { parked, to });
        key
    }

    /// Asks the session's home for the session. The attachment waits for the answer, and so do all
    /// requests with the same question.
    fn ask_home(
        &mut self,
        turn: &mut Turn<'_>,
        asker: &Asker,
        home: u16,
        (id, wanted): (Uuid, &Wanted),
    ) -> Placed {
        let tenant = &asker.owner.tenant;
        self.roster.admit_session(turn, asker.conn, tenant)?;
        self.roster.admit_return(turn, asker.conn)?;
        let key = self.begin_asking(turn, asker, (id, wanted));
        let find = Find {
            id,
            ticket: ticket(turn.settings, key),
            function: wanted.call.function().into(),
            version: wanted.call.version().into(),
            tenant: tenant.clone(),
            speaks: asker.speaks,
        };
        turn.send(home, CoreMessage::Find(Box::new(find)));
        Ok(key)
    }

    /// Asks the control plane for a session that this gateway does not know: its worker may have
    /// registered it. The attachment waits for the answer, and so do all requests with the same
    /// question.
    fn look_up(
        &mut self,
        turn: &mut Turn<'_>,
        asker: &Asker,
        (id, wanted): (Uuid, &Wanted),
    ) -> Placed {
        self.roster.admit_session(turn, asker.conn, &asker.owner.tenant)?;
        self.roster.admit_return(turn, asker.conn)?;
        let key = self.begin_asking(turn, asker, (id, wanted));
        self.ask_registration(turn, key, id);
        Ok(key)
    }

    fn begin_asking(
        &mut self,
        turn: &mut Turn<'_>,
        asker: &Asker,
        (id, wanted): (Uuid, &Wanted),
    ) -> Key {
        // As long as nothing else is known, the facts say what the client may call.
        let facts = SessionFacts { owner: asker.owner.clone(), opened: turn.now };
        let state = State::Asking(Box::new(Asking::new(wanted, asker.since)));
        let client = (Some(asker.conn), asker.peer);
        let mut attachment = Attachment::new(client, id, facts, turn.now, state);
        attachment.window = asker.window;
        let key = self.roster.begin(turn, attachment);
        turn.arm(turn.now + turn.settings.config.session.wait, Due::Wait(key));
        key
    }
}

/// The other gateway of the cluster that has made this id. Anyone can write such an id.
fn other_maker(turn: &Turn<'_>, id: Uuid) -> Option<Node> {
    let named = turn.settings.config.cluster.relays().then_some(id);
    named.and_then(RequestIds::maker_of).filter(|maker| *maker != turn.settings.node)
}
