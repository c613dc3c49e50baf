//! Attachments: a client connection, a function key, a session and, once the worker has dialled
//! back, its tunnel. One dispatch each, however many streams wait for it.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;

use ringway_proto::fault::Fault;
use ringway_proto::h2::OpenError;
use ringway_proto::id::WorkerToken;
use ringway_proto::route::RoutingHead;
use ringway_proto::time::Time;
use uuid::Uuid;

use super::Shard;
use super::conn::{Pin, Said};
use super::dial::Dialling;
use super::exchange::{At, Way};
use super::home::Question;
use super::park::Place;
use super::session::{Session, check};
use super::table::Key;
use super::timer::Due;
use crate::border::{Border, ConnId};
use crate::config::{HonourId, Scope};
use crate::control::local::{Owner, Policy, SessionFacts, Ticket, Work, WorkKind};
use crate::log::SessionEdge;
use crate::metrics::Limit;
use crate::post::{Join, Stand};
use crate::trail::Event;

/// One attachment.
#[derive(Debug)]
pub(crate) struct Attachment {
    /// None while it is parked.
    pub(crate) client: Option<ConnId>,
    /// Of the client, or of the last one.
    pub(crate) client_address: SocketAddr,
    pub(crate) session: Uuid,
    /// The session's id as text, for every head.
    pub(crate) id_text: [u8; 36],
    pub(crate) owner: Arc<Owner>,
    /// When the session began.
    pub(crate) session_opened: Time,
    pub(crate) state: State,
    /// Exchanges whose head waits for the tunnel or for a stream on it.
    pub(crate) waiters: VecDeque<Key>,
    /// How many of them still do: the others are gone and are skipped.
    pub(crate) waiting: u32,
    /// The attachment whose tunnel is to stand in for this one's.
    pub(crate) spare: Option<Key>,
    /// The attachment for whose tunnel this one's stands in.
    pub(crate) parent: Option<Key>,
    /// It was asked for as a spare, and nothing tells yet what has come of that.
    pub(crate) stands_by: bool,
    /// Its client was charged a dispatch for it, and may get that back.
    pub(crate) charged: bool,
    /// Its client makes sessions faster than admission allows where it is asked: its log lines are
    /// counted.
    pub(crate) counted: bool,
    pub(crate) opened: Time,
    pub(crate) streams: u32,
    pub(crate) bytes_up: u64,
    pub(crate) bytes_down: u64,
}

/// Where an attachment is on its way.
#[derive(Debug)]
pub(crate) enum State {
    /// The session's home, another core, is asked whether the client may have it.
    Asking { question: Box<Question> },
    /// Nothing is asked yet: that waits for the end of the turn, so that a request which is taken
    /// back in the same breath costs no worker anything.
    Fresh { kind: WorkKind },
    /// Work is queued; the worker's CONNECT must bring this token.
    Waiting { token: Box<WorkerToken>, kind: WorkKind, issued: Time, wrong: u32 },
    /// The function's server is dialled: it needs no worker.
    Dialling(Dialling),
    /// The tunnel is there.
    Attached { tunnel: ConnId },
    /// The client is gone, and the tunnel is kept for when it comes back.
    Parked { tunnel: ConnId, place: Place },
    /// The tunnel goes to another core, where its client is now.
    Moving { tunnel: ConnId, to: Ticket },
}

impl Attachment {
    /// The value of the session's cookie (contract CL-37).
    pub(crate) fn cookie(&self) -> [u8; 52] {
        let mut value = *b"nvcf-request-id=------------------------------------";
        value[16..].copy_from_slice(&self.id_text);
        value
    }

    /// What every log line about the attachment says.
    pub(crate) fn edge(&self, core: u16) -> SessionEdge<'_> {
        SessionEdge {
            // Hyphens and hexadecimal digits only.
            request_id: std::str::from_utf8(&self.id_text).unwrap_or_default(),
            function_id: &self.owner.function,
            function_version_id: &self.owner.version,
            shard: core,
            counted_for: self.counted.then(|| self.client_address.ip()),
            ..SessionEdge::default()
        }
    }

    /// What is asked of a worker for it.
    pub(crate) fn kind(&self) -> Option<WorkKind> {
        match &self.state {
            State::Fresh { kind } | State::Waiting { kind, .. } => Some(*kind),
            State::Dialling(dialling) => Some(dialling.kind),
            State::Asking { .. }
            | State::Attached { .. }
            | State::Parked { .. }
            | State::Moving { .. } => None,
        }
    }

    pub(crate) fn tunnel(&self) -> Option<ConnId> {
        match self.state {
            State::Attached { tunnel }
            | State::Parked { tunnel, .. }
            | State::Moving { tunnel, .. } => Some(tunnel),
            State::Asking { .. }
            | State::Fresh { .. }
            | State::Waiting { .. }
            | State::Dialling(_) => None,
        }
    }
}

impl Shard {
    /// The connection's pin for a request's credential and function key; authorised the first
    /// time it is seen.
    pub(super) fn pin(
        &mut self,
        client: ConnId,
        head: &RoutingHead<'_>,
    ) -> Result<usize, Box<Fault>> {
        let hash = self.pin_hash(head);
        let hop = self.conns.hop(client).and_then(|hop| hop.client());
        let pins = hop.map(|client| &client.pins[..]).unwrap_or_default();
        let any_credential = self.settings.config.session.scope == Scope::Connection;
        let found = pins.iter().position(|pin| {
            pin.hash == hash
                && (any_credential || pin.said.credential() == head.credential)
                && pin.function() == head.function
                && pin.version() == head.version
        });
        if let Some(found) = found {
            return self.still_granted(client, found, head).map(|()| found);
        }
        let most = self.settings.config.limits.attachments;
        if pins.len() >= most {
            self.forget_idle_pins(client);
        }
        let draw = self.random_u64();
        let grant = self
            .policy
            .authorise(head.credential, head.function, head.version, draw)
            .map_err(|denied| Box::new(Fault::Api { code: denied.code, text: denied.text }))?;
        let Some(hop) = self.conns.hop_mut(client).and_then(|hop| hop.client_mut()) else {
            return Err(Box::new(Fault::TunnelLost));
        };
        if hop.pins.len() >= most {
            self.metrics.limit_hit(Limit::Attachments);
            return Err(Box::new(Fault::TooManySessions));
        }
        if hop.pins.is_empty() {
            // Most connections are one user of one function.
            hop.pins.reserve_exact(1);
        }
        hop.pins.push(Pin {
            hash,
            said: Said::new(head, &grant.owner),
            grant,
            granted_at: self.now,
            rules: self.rules,
            attachment: None,
        });
        Ok(hop.pins.len() - 1)
    }

    /// A pin of earlier rules serves the session it has; for anything else it is granted anew.
    fn still_granted(
        &mut self,
        client: ConnId,
        pin: usize,
        head: &RoutingHead<'_>,
    ) -> Result<(), Box<Fault>> {
        let hop = self.conns.hop(client).and_then(|hop| hop.client());
        let Some(found) = hop.and_then(|hop| hop.pins.get(pin)) else { return Ok(()) };
        if found.rules == self.rules {
            return Ok(());
        }
        let own = found.attachment.and_then(|key| self.attachments.get(key));
        if own.is_some_and(|own| head.request_id.is_none_or(|id| id == own.session)) {
            return Ok(());
        }
        let draw = self.random_u64();
        let grant = self
            .policy
            .authorise(head.credential, head.function, head.version, draw)
            .map_err(|denied| Box::new(Fault::Api { code: denied.code, text: denied.text }))?;
        let rules = self.rules;
        let hop = self.conns.hop_mut(client).and_then(|hop| hop.client_mut());
        if let Some(found) = hop.and_then(|hop| hop.pins.get_mut(pin)) {
            found.grant = grant;
            found.rules = rules;
        }
        Ok(())
    }

    fn pin_hash(&self, head: &RoutingHead<'_>) -> u64 {
        use std::hash::{BuildHasher, Hasher};
        let mut hasher = self.hasher.build_hasher();
        if self.settings.config.session.scope != Scope::Connection {
            hasher.write(head.credential);
        }
        hasher.write(head.function);
        hasher.write_u8(0xff);
        hasher.write(head.version);
        hasher.finish()
    }

    /// Other rules from now on. Attachments go on under those they were made by; what was only
    /// remembered is asked for again.
    pub(super) fn replace_policy(&mut self, policy: Arc<Policy>) {
        self.policy = policy;
        self.rules = self.rules.wrapping_add(1);
        for hop in self.conns.hops_mut() {
            if let Some(client) = hop.client_mut() {
                client.pins.retain(|pin| pin.attachment.is_some());
            }
        }
    }

    /// Makes room on a connection whose users change: pins without an attachment go.
    fn forget_idle_pins(&mut self, client: ConnId) {
        if let Some(hop) = self.conns.hop_mut(client).and_then(|hop| hop.client_mut()) {
            hop.pins.retain(|pin| pin.attachment.is_some());
        }
    }

    /// The attachment that serves a request, made if there is none.
    pub(super) fn attachment_for(
        &mut self,
        client: ConnId,
        pin: usize,
        named: Option<Uuid>,
        now: Time,
    ) -> Result<Key, Box<Fault>> {
        let pinned = self.pinned(client, pin);
        let named = named.filter(|_| match self.settings.config.session.honour_id {
            HonourId::Always => true,
            HonourId::Unpinned => pinned.is_none(),
        });
        match (named, pinned) {
            (None, Some(key)) => Ok(key),
            (None, None) => self.new_session(client, pin, now),
            (Some(id), pinned) => {
                if let Some(key) = pinned
                    && self.attachments.get(key).is_some_and(|a| a.session == id)
                {
                    return Ok(key);
                }
                self.come_back(client, pin, id, now)
            }
        }
    }

    /// The live attachment that this pin's requests use, by design 3.12's scope.
    fn pinned(&mut self, client: ConnId, pin: usize) -> Option<Key> {
        let scope = self.settings.config.session.scope;
        let hop = self.conns.hop_mut(client)?.client_mut()?;
        let mine = hop.pins.get(pin)?;
        if mine.attachment.is_some() || scope != Scope::Tenant {
            return mine.attachment;
        }
        let same_owner = |other: &&Pin| {
            other.function() == mine.function()
                && other.version() == mine.version()
                && other.grant.owner.tenant == mine.grant.owner.tenant
                && other.attachment.is_some()
        };
        let shared = hop.pins.iter().find(same_owner)?.attachment;
        hop.pins[pin].attachment = shared;
        shared
    }

    /// A session of its own for this pin (contract 3.6, CL-21).
    fn new_session(&mut self, client: ConnId, pin: usize, now: Time) -> Result<Key, Box<Fault>> {
        let hop = self.conns.hop(client).and_then(|hop| hop.client());
        let grant = hop.and_then(|hop| hop.pins.get(pin)).map(|pin| pin.grant.clone());
        let Some(grant) = grant else { return Err(Box::new(Fault::TunnelLost)) };
        self.admit_session(client, &grant.owner.tenant)?;
        let asks = !self.is_dialled(&grant.owner);
        if asks {
            self.charge_dispatch(client, now)?;
        }
        let random = self.random_bytes();
        let id = self.request_ids.mint(random);
        let facts = SessionFacts { owner: grant.owner, opened: now };
        self.sessions.insert(Session::new(id, facts));
        let key = self.dispatch(client, pin, id, (WorkKind::New, now))?;
        if let Some(attachment) = self.attachments.get_mut(key) {
            attachment.charged = asks;
        }
        Ok(key)
    }

    /// Back to the session that a request names: R1, R3-R9 of the contract.
    fn come_back(
        &mut self,
        client: ConnId,
        pin: usize,
        id: Uuid,
        now: Time,
    ) -> Result<Key, Box<Fault>> {
        let hop = self.conns.hop(client).and_then(|hop| hop.client());
        let Some(pinned) = hop.and_then(|hop| hop.pins.get(pin)) else {
            return Err(Box::new(Fault::TunnelLost));
        };
        let wanted = (pinned.function(), pinned.version());
        let tenant = pinned.grant.owner.tenant.clone();
        // It may wait for its first tunnel still, which nobody else would be told to exist.
        let own = self.own_attachment(client, id);
        if let Some((key, own)) = own.and_then(|key| Some((key, self.attachments.get(key)?))) {
            check(&own.facts(), id, wanted, &tenant).map_err(Box::new)?;
            return Ok(key);
        }
        if let Some(key) = self.asked_before(client, pin, id) {
            return Ok(key);
        }
        if self.session_home(id) != self.settings.core {
            return self.ask_home(client, pin, id, now);
        }
        let found = self.found_here(id, wanted, &tenant, self.speaks(client));
        let (_, parked) = found.map_err(|fault| {
            self.not_resumed(&fault);
            Box::new(fault)
        })?;
        if let Some(parked) = parked {
            return self.come_back_to_parked(client, pin, id, parked);
        }
        self.admit_session(client, &tenant)?;
        self.admit_return(client, now)?;
        self.dispatch(client, pin, id, (WorkKind::Reconnect, now))
    }

    /// This connection's attachment to a session, if it may take new streams.
    pub(super) fn own_attachment(&self, client: ConnId, id: Uuid) -> Option<Key> {
        let hop = self.conns.hop(client)?.client()?;
        let serves = |key: &&Key| {
            self.attachments.get(**key).is_some_and(|a| {
                a.session == id && !self.is_going(a) && !matches!(a.state, State::Asking { .. })
            })
        };
        hop.attachments.iter().find(serves).copied()
    }

    fn is_going(&self, attachment: &Attachment) -> bool {
        let tunnel = attachment.tunnel().and_then(|conn| self.conns.hop(conn));
        // One in whose place another comes takes requests all the same.
        attachment.spare.is_none()
            && tunnel.and_then(|hop| hop.tunnel()).is_some_and(|tunnel| tunnel.going)
    }

    /// One more attachment of a connection that waits for its tunnel, and none while draining.
    pub(super) fn admit_session(
        &mut self,
        client: ConnId,
        tenant: &Arc<str>,
    ) -> Result<(), Box<Fault>> {
        self.admit_attachment(client)?;
        if !self.admit_pending(tenant, WorkKind::New) {
            return Err(Box::new(Fault::Overloaded));
        }
        Ok(())
    }

    /// No more attachments that wait for a worker than there may be.
    pub(super) fn admit_pending(&mut self, tenant: &Arc<str>, kind: WorkKind) -> bool {
        let spares = if kind == WorkKind::Spare { self.fresh_spares.len() } else { 0 };
        let more = self.asking + self.fresh.len() + spares;
        let full = self.pending.full((tenant, kind), more, &self.settings.config.limits);
        full.into_iter().for_each(|limit| self.metrics.limit_hit(limit));
        full.is_none()
    }

    /// No more attachments of one connection than it may have, and none while draining. For
    /// functions with `dial` it is also the most that are dialled at once for one client.
    pub(super) fn admit_attachment(&mut self, client: ConnId) -> Result<(), Box<Fault>> {
        if self.draining.is_some() {
            return Err(Box::new(Fault::Draining));
        }
        let Some(hop) = self.conns.hop(client).and_then(|hop| hop.client()) else {
            return Err(Box::new(Fault::TunnelLost));
        };
        if hop.attachments.len() >= self.settings.config.limits.attachments {
            self.metrics.limit_hit(Limit::Attachments);
            return Err(Box::new(Fault::TooManySessions));
        }
        Ok(())
    }

    /// No new requests while this core holds as much as it may (L9).
    pub(super) fn admit_buffer(&mut self) -> Result<(), Box<Fault>> {
        if self.held < self.settings.config.limits.core_buffer {
            return Ok(());
        }
        self.metrics.limit_hit(Limit::CoreBuffer);
        Err(Box::new(Fault::Overloaded))
    }

    /// A new attachment; its work is queued when the turn ends.
    fn dispatch(
        &mut self,
        client: ConnId,
        pin: usize,
        id: Uuid,
        (kind, now): (WorkKind, Time),
    ) -> Result<Key, Box<Fault>> {
        let facts = self.sessions.get(id).expect("the caller has it").facts.clone();
        let Some(hop) = self.conns.hop_mut(client) else {
            return Err(Box::new(Fault::TunnelLost));
        };
        let mut attachment = Attachment::new((Some(client), hop.peer), id, &facts, now);
        attachment.state = State::Fresh { kind };
        attachment.counted = hop.is_hasty(&self.settings.config.limits, now);
        let key = self.attachments.insert(attachment);
        if let Some(owner) = hop.client_mut() {
            if owner.attachments.is_empty() {
                owner.attachments.reserve_exact(1);
            }
            owner.attachments.push(key);
            owner.tunnels_seen += 1;
            owner.pins[pin].attachment.get_or_insert(key);
        }
        self.fresh.push(key);
        let join = Join { id, ticket: self.ticket(key), facts, stand: Stand::Wanted };
        // Who only waits takes nobody's place.
        let _ = self.sessions.join(join);
        Ok(key)
    }

    /// Queues the work of the attachments made in this turn, if somebody still waits for them.
    pub(super) fn launch(&mut self, border: &mut Border) {
        let mut batch = std::mem::take(&mut self.fresh);
        // What finds no room may leave requests to others, which are as fresh.
        while !batch.is_empty() || !self.fresh_spares.is_empty() {
            batch.append(&mut self.fresh_spares);
            for key in batch.drain(..) {
                let Some(attachment) = self.attachments.get(key) else { continue };
                let State::Fresh { kind } = attachment.state else { continue };
                self.launch_one(border, key, kind);
            }
            std::mem::swap(&mut batch, &mut self.fresh);
        }
        self.fresh = batch;
        self.answer_polls(border);
    }

    /// Mints the token, stores it, and only then queues the work (contract: end-to-end order).
    fn launch_one(&mut self, border: &mut Border, key: Key, kind: WorkKind) {
        self.note_begin(key, kind);
        if self.dial_function(border, key, kind) {
            return;
        }
        let token = self.mint_token(key);
        let work = self.work(key, kind, &token);
        if kind == WorkKind::New {
            let (function, version) = (&work.function, &work.version);
            self.metrics.function_requests.count(function, version, &work.tenant, border.now);
        }
        self.await_worker(key, (token, kind), border.now);
        if self.attachments.get(key).is_some_and(|attachment| attachment.client.is_some()) {
            let again = usize::from(kind == WorkKind::Reconnect);
            self.metrics.session_init_seconds[again].observe(0.0);
        }
        self.submit(border, key, work);
    }

    fn await_worker(&mut self, key: Key, (token, kind): (Box<WorkerToken>, WorkKind), now: Time) {
        if let Some(attachment) = self.attachments.get_mut(key) {
            attachment.state = State::Waiting { token, kind, issued: now, wrong: 0 };
        }
        if let Some(attachment) = self.attachments.get(key) {
            self.pending.enter(&attachment.owner.tenant, kind);
        }
        self.metrics.tokens_issued += 1;
        self.metrics.worker_connections_opened += 1;
        self.timers.arm(now + self.settings.config.session.wait, Due::Wait(key));
    }

    fn mint_token(&mut self, key: Key) -> Box<WorkerToken> {
        let random = self.random_bytes();
        Box::new(self.tokens.mint(self.settings.core, key.slot, key.generation, &random))
    }

    pub(super) fn work(&self, key: Key, kind: WorkKind, token: &WorkerToken) -> Work {
        let attachment = self.attachments.get(key).expect("the caller has just made it");
        Work {
            ticket: self.ticket(key),
            kind,
            request_id: attachment.session,
            tenant: attachment.owner.tenant.clone(),
            function: attachment.owner.function.clone(),
            version: attachment.owner.version.clone(),
            token: *token.as_bytes(),
        }
    }

    /// A request's head goes to the tunnel at once, or waits for it, or for a stream on it.
    pub(super) fn start_exchange(
        &mut self,
        border: &mut Border,
        slot: u32,
        fields: &ringway_proto::fields::Fields,
    ) {
        let Some(key) = self.exchanges.at_mut(slot).and_then(|e| e.attachment) else { return };
        let Some(attachment) = self.attachments.get_mut(key) else { return };
        let free = attachment.waiting == 0;
        if free
            && let Some(tunnel) = attachment.tunnel()
            && self.open_stream(slot, tunnel)
        {
            return self.request_head(border, slot, fields);
        }
        let waiter = self.exchanges.key_at(slot).expect("found above");
        if let Some(exchange) = self.exchanges.at_mut(slot) {
            exchange.head = Some(Box::new(fields.clone()));
        }
        let fits = self.list_waits(border, slot, Way::Up, fields.size());
        if let Some(attachment) = self.attachments.get_mut(key) {
            attachment.waiters.push_back(waiter);
            attachment.waiting += 1;
        }
        if !fits {
            return self.list_refused(border, slot, Way::Up, fields);
        }
        self.unserved(border, key);
    }

    /// Opens the exchange's stream on its tunnel, if the worker allows one more.
    pub(super) fn open_stream(&mut self, slot: u32, tunnel: ConnId) -> bool {
        let now = self.now;
        let Some(hop) = self.conns.hop_mut(tunnel) else { return false };
        match hop.link.open() {
            Ok(stream) => {
                hop.link.set_tag(stream, slot);
                // An idle tunnel may be looked at only when its idle time is over.
                let soon = now + self.settings.config.keepalive.tunnel_ping;
                let unwatched = hop.timer.is_none_or(|at| at > soon);
                let mut first = false;
                if let Some(tunnel) = hop.tunnel_mut() {
                    first = !std::mem::replace(&mut tunnel.used, true);
                    tunnel.asked(now);
                    tunnel.idle_since = None;
                }
                if let Some(exchange) = self.exchanges.at_mut(slot) {
                    exchange.worker = Some(At { conn: tunnel, key: stream });
                    let key = exchange.attachment;
                    if let Some(attachment) = key.and_then(|key| self.attachments.get_mut(key)) {
                        attachment.streams += 1;
                    }
                    if let Some(key) = key.filter(|_| first) {
                        self.note_of(key, Event::RequestSent);
                    }
                }
                if unwatched {
                    self.watch(tunnel);
                }
                true
            }
            Err(OpenError::Full | OpenError::Exhausted | OpenError::Goaway) => false,
        }
    }

    /// Sends the heads that wait, as many as the worker has streams for.
    pub(super) fn serve_waiters(&mut self, border: &mut Border, key: Key) {
        loop {
            let Some(attachment) = self.attachments.get_mut(key) else { return };
            let Some(tunnel) = attachment.tunnel() else { return };
            let Some(&waiter) = attachment.waiters.front() else { return };
            let waits = self.exchanges.get(waiter).is_some();
            if waits && !self.open_stream(waiter.slot, tunnel) {
                return self.unserved(border, key);
            }
            let head = self.exchanges.get_mut(waiter).and_then(|exchange| exchange.head.take());
            if let Some(attachment) = self.attachments.get_mut(key) {
                attachment.waiters.pop_front();
                attachment.waiting -= u32::from(waits);
            }
            if let Some(head) = head {
                self.list_went(waiter.slot, Way::Up, head.size());
                self.request_head(border, waiter.slot, &head);
            }
        }
    }
}

/// An attachment's number in its name towards other cores.
pub(crate) fn number_of(key: Key) -> u64 {
    u64::from(key.generation) << 32 | u64::from(key.slot)
}

/// The attachment of this core with that name.
pub(crate) fn key_of(ticket: Ticket) -> Key {
    Key { slot: ticket.number as u32, generation: (ticket.number >> 32) as u32 }
}
