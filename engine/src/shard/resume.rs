//! A client that comes back to a tunnel that is parked: no worker is asked, it is there.
//!
//! The session's home says who gets it (`session.rs`). If client and tunnel are on one core, the
//! attachment changes hands. If not, the tunnel goes to the client's core, with its protocol state
//! and all that is unsent or half read, once nothing is under way on its socket.

use ringway_proto::fault::Fault;
use ringway_proto::time::Time;
use uuid::Uuid;

use super::Shard;
use super::attach::{Attachment, State, key_of};
use super::close::Cause;
use super::conn::{Conn, Hop};
use super::home::Question;
use super::table::Key;
use super::timer::Due;
use crate::border::{Border, ConnId, Parcel};
use crate::control::local::Ticket;
use crate::metrics::{CloseReason, Limit, ResumeOutcome, ResumeWay};
use crate::post::{CorePost, Join, MovedTunnel, Resumed, Speaks, Stand};
use crate::trail::Event;

impl Shard {
    /// What a client connection speaks.
    pub(super) fn speaks(&self, client: ConnId) -> Speaks {
        self.conns.hop(client).map_or(Speaks::Any, |hop| hop.link.clients())
    }

    // ---- at the session's home, which is the client's core ----

    /// The client may have the session, and this tunnel of it is parked.
    pub(super) fn come_back_to_parked(
        &mut self,
        client: ConnId,
        pin: usize,
        id: Uuid,
        parked: Ticket,
    ) -> Result<Key, Box<Fault>> {
        self.admit_attachment(client)?;
        if parked.core != self.settings.core {
            return self.claim_elsewhere(client, pin, id, parked);
        }
        let key = key_of(parked);
        if !self.unpark(client, key) {
            debug_assert!(false, "the directory knows what is parked on its own core");
            return Err(Box::new(Fault::SessionNotFound { request_id: id }));
        }
        self.sessions.claim(id, parked, parked);
        let way = self.attachments.get(key).and_then(Attachment::tunnel);
        let way = way.map_or(ResumeWay::Memory, |tunnel| self.way_of(tunnel));
        self.count_resume(way, self.now);
        self.note_resume(key, way, self.now);
        if let Some(owner) = self.conns.hop_mut(client).and_then(Hop::client_mut) {
            owner.pins[pin].attachment.get_or_insert(key);
        }
        Ok(key)
    }

    /// The tunnel is on another core: the request waits until it is here.
    fn claim_elsewhere(
        &mut self,
        client: ConnId,
        pin: usize,
        id: Uuid,
        parked: Ticket,
    ) -> Result<Key, Box<Fault>> {
        if self.mail_waits(parked.core) {
            self.metrics.limit_hit(Limit::Mailbox);
            return Err(Box::new(Fault::MailboxFull));
        }
        let pinned = self.conns.hop(client).and_then(|hop| hop.client()?.pins.get(pin));
        let Some(pinned) = pinned else { return Err(Box::new(Fault::TunnelLost)) };
        let (question, grant) = (Question::new(pinned, self.now), pinned.grant.clone());
        let key = self.insert_asking(client, id, (grant, question))?;
        let to = self.ticket(key);
        self.sessions.claim(id, parked, to);
        self.tell(parked.core, CorePost::Claim { parked, to });
        self.timers.arm(self.now + self.settings.config.session.wait, Due::Wait(key));
        Ok(key)
    }

    /// The core where a tunnel is parked gives it to an attachment.
    pub(super) fn hand_out(&mut self, border: &mut Border, parked: Ticket, to: Ticket) {
        if parked.core == self.settings.core {
            self.claimed(border, parked, to);
        } else {
            self.tell(parked.core, CorePost::Claim { parked, to });
        }
    }

    // ---- where the tunnel is parked ----

    /// A parked tunnel is another attachment's from now on; its own is no member of the session
    /// any more.
    pub(super) fn claimed(&mut self, border: &mut Border, parked: Ticket, to: Ticket) {
        let key = key_of(parked);
        let Some(tunnel) = self.vacate(key) else { return self.answer_claim(border, to) };
        if to.core == self.settings.core {
            let Some(attachment) = self.attachments.remove(key) else { return };
            return self.give_tunnel(border, to, tunnel, attachment);
        }
        if let Some(attachment) = self.attachments.get_mut(key) {
            attachment.state = State::Moving { tunnel, to };
        }
        self.end_spare_of(border, key);
        border.detach(tunnel);
    }

    /// Takes a tunnel out of the lot; none if it is not there.
    fn vacate(&mut self, key: Key) -> Option<ConnId> {
        let attachment = self.attachments.get_mut(key)?;
        let State::Parked { tunnel, place } = attachment.state else { return None };
        attachment.state = State::Attached { tunnel };
        let (tenant, function) =
            (attachment.owner.tenant.clone(), attachment.owner.function.clone());
        let version = attachment.owner.version.clone();
        self.lot.leave(place, &tenant);
        self.tell_unparks(key, &function, &version);
        if let Some(hop) = self.conns.hop_mut(tunnel).and_then(Hop::tunnel_mut) {
            hop.parked = None;
        }
        Some(tunnel)
    }

    /// There is no tunnel for an attachment that was promised one.
    pub(super) fn answer_claim(&mut self, border: &mut Border, to: Ticket) {
        if to.core == self.settings.core {
            self.resumed(border, Resumed { ticket: to, tunnel: None });
        } else {
            self.tell(to.core, CorePost::not_resumed(to));
        }
    }

    /// Nothing is under way on a tunnel any more that another core wants: it goes.
    pub(super) fn tunnel_detached(&mut self, mut hop: Hop, parcel: Parcel) {
        self.forget_partial(&mut hop);
        let Some(key) = hop.tunnel().map(|tunnel| tunnel.attachment) else { return };
        let Some(attachment) = self.attachments.remove(key) else { return };
        let State::Moving { to, .. } = attachment.state else {
            debug_assert!(false, "nobody let go of it");
            return;
        };
        // Whoever else fed it, or waited for it, was a client's connection that is gone.
        hop.stopped.retain(|full| *full == hop.conn);
        hop.waits = hop.stopped.len() as u32;
        hop.link.read_again(self.now);
        hop.ready.clear();
        hop.timer = None;
        debug_assert_eq!((hop.held, hop.lists), (0, 0), "its streams are gone");
        let tunnel = MovedTunnel {
            parcel,
            hop: Box::new(hop),
            session: attachment.session,
            facts: attachment.facts(),
            opened: attachment.opened,
            client_address: attachment.client_address,
            from: self.settings.core,
        };
        self.note(tunnel.session, Event::TunnelLeft { to: to.core });
        let resumed = Resumed { ticket: to, tunnel: Some(tunnel) };
        self.tell(to.core, CorePost::Resumed(Box::new(resumed)));
    }

    // ---- where the client is ----

    /// The tunnel has come, or will not.
    pub(super) fn resumed(&mut self, border: &mut Border, resumed: Resumed) {
        let Resumed { ticket, tunnel } = resumed;
        let key = key_of(ticket);
        let Some(moved) = tunnel else { return self.tunnel_will_not_come(border, key) };
        let MovedTunnel { parcel, hop, session, facts, opened, client_address, from } = moved;
        let mut hop: Box<Hop> = hop.downcast().expect("only `tunnel_detached` makes one");
        let limits = &self.settings.config.limits;
        let clients = self.metrics.active_connections as usize;
        if self.conns.len().saturating_sub(clients) >= limits.worker_connections {
            self.metrics.limit_hit(Limit::WorkerConnections);
            drop(parcel);
            return self.tunnel_will_not_come(border, key);
        }
        let conn = border.adopt(parcel);
        hop.conn = conn;
        hop.stopped.fill(conn);
        if hop.waits > 0 {
            border.pause(conn, true);
        }
        self.conns.insert(conn, Conn::Hop(hop));
        self.note_arrival(session, &facts, from);
        let mut attachment = Attachment::new((None, client_address), session, &facts, opened);
        attachment.state = State::Attached { tunnel: conn };
        self.give_tunnel(border, ticket, conn, attachment);
    }

    /// Gives a tunnel of this core, whose attachment is out of the table, to the attachment that
    /// was promised it. If nobody waits there any more, it is parked here.
    fn give_tunnel(&mut self, border: &mut Border, to: Ticket, tunnel: ConnId, of: Attachment) {
        let key = key_of(to);
        let Some(State::Asking { question }) =
            self.attachments.get_mut(key).map(|attachment| &mut attachment.state)
        else {
            return self.park_unasked(border, tunnel, of);
        };
        let (since, ended) = (question.since, question.ended);
        let named = (std::mem::take(&mut question.function), std::mem::take(&mut question.version));
        self.asking -= 1;
        let Some(attachment) = self.attachments.get_mut(key) else { return };
        attachment.owner = of.owner;
        attachment.session_opened = of.session_opened;
        attachment.opened = of.opened;
        attachment.state = State::Attached { tunnel };
        let (id, client) = (attachment.session, attachment.client);
        let tenant = attachment.owner.tenant.clone();
        self.own_tunnel(tunnel, key);
        self.adopt_spare(of.spare, key);
        if ended {
            return self.tunnel_gone(border, tunnel, Cause::DELETED);
        }
        let Some(client) = client else { return self.park(border, key) };
        if let Some(owner) = self.conns.hop_mut(client).and_then(Hop::client_mut) {
            owner.tunnels_seen += 1;
            owner.pin_asked((&named.0, &named.1), &tenant, key);
        }
        let way = self.way_of(tunnel);
        self.count_resume(way, since);
        self.note_resume(key, way, since);
        self.tell_stand(border, id, key, Stand::Open);
        self.serve_waiters(border, key);
        self.watch(tunnel);
    }

    /// Makes a tunnel an attachment's.
    fn own_tunnel(&mut self, conn: ConnId, key: Key) {
        let now = self.now;
        if let Some(tunnel) = self.conns.hop_mut(conn).and_then(Hop::tunnel_mut) {
            tunnel.attachment = key;
            tunnel.parked = None;
            tunnel.idle_since = Some(now);
        }
    }

    /// A tunnel has come for which nobody waits: it is kept, and the session's home is told.
    fn park_unasked(&mut self, border: &mut Border, tunnel: ConnId, of: Attachment) {
        let spare = of.spare;
        let key = self.attachments.insert(Attachment { client: None, ..of });
        self.adopt_spare(spare, key);
        if let Some(attachment) = self.attachments.get_mut(key) {
            attachment.state = State::Attached { tunnel };
        }
        self.own_tunnel(tunnel, key);
        let Some(attachment) = self.attachments.get(key) else { return };
        let (id, facts) = (attachment.session, attachment.facts());
        let stand = self.stand_of(attachment);
        let join = Join { id, ticket: self.ticket(key), facts, stand };
        self.tell_join(border, join);
        self.park(border, key);
    }

    fn tunnel_will_not_come(&mut self, border: &mut Border, key: Key) {
        let Some(attachment) = self.attachments.get(key) else { return };
        if !matches!(attachment.state, State::Asking { .. }) {
            return;
        }
        let id = attachment.session;
        self.metrics.resumes.count(ResumeWay::Memory, ResumeOutcome::Lost);
        self.leave_home(id, key, None);
        self.end_asking(border, key, &Fault::SessionNotFound { request_id: id });
    }

    /// Gives a parked attachment to a client connection of its core; false if there is none.
    fn unpark(&mut self, client: ConnId, key: Key) -> bool {
        if self.conns.hop(client).is_none() {
            return false;
        }
        let Some(tunnel) = self.vacate(key) else { return false };
        self.own_tunnel(tunnel, key);
        let Some(owner) = self.conns.hop_mut(client) else { return false };
        if let Some(attachment) = self.attachments.get_mut(key) {
            attachment.client = Some(client);
            attachment.client_address = owner.peer;
        }
        if let Some(owner) = owner.client_mut() {
            owner.attachments.push(key);
            owner.tunnels_seen += 1;
        }
        self.watch(tunnel);
        true
    }

    /// Whether an attachment whose client is gone asks still: the answer may be the session's last
    /// tunnel, so it is waited for.
    pub(super) fn still_asks(&mut self, key: Key) -> bool {
        let Some(attachment) = self.attachments.get_mut(key) else { return false };
        let asks = matches!(attachment.state, State::Asking { .. });
        if asks {
            attachment.client = None;
        }
        asks
    }

    // ---- counted ----

    /// A client is back: its first request goes out now.
    pub(super) fn count_resume(&mut self, way: ResumeWay, since: Time) {
        self.metrics.resumes.observe(way, self.now.since(since).as_secs_f64());
    }

    /// The way back that leads to this tunnel: nothing was said on a spare before.
    fn way_of(&self, tunnel: ConnId) -> ResumeWay {
        match self.conns.hop(tunnel) {
            Some(hop) if hop.link.is_unspoken() => ResumeWay::Spare,
            _ => ResumeWay::Memory,
        }
    }

    /// A client is refused what it came back for.
    pub(super) fn not_resumed(&mut self, fault: &Fault) {
        let outcome = match fault {
            Fault::SessionNotFound { .. } => ResumeOutcome::NotFound,
            _ => ResumeOutcome::Refused,
        };
        self.metrics.resumes.count(ResumeWay::None, outcome);
    }

    /// A worker that was asked for one more tunnel did not bring it.
    pub(super) fn count_reconnect_lost(&mut self, cause: Cause) {
        let outcome = match cause.reason {
            CloseReason::ClientClosed => ResumeOutcome::Abandoned,
            _ => ResumeOutcome::NoWorker,
        };
        self.metrics.resumes.count(ResumeWay::Reconnect, outcome);
    }
}
