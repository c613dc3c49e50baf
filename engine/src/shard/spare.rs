//! Tunnels that stand in for others (design 5). A WebSocket uses its tunnel up, and so does a
//! client that is lost in the middle of an HTTP/1 exchange; a worker that says GOAWAY, and stream
//! ids that run out, end one that is in use. A worker ends a session with its last tunnel: so
//! another one is asked of it, in time, by the way that clients come back.
//!
//! A spare is an attachment without a client. Its parent, the attachment whose tunnel it stands in
//! for, names it and is named by it. Nothing is said on a spare's tunnel until a client has it, so
//! it serves any. It has no way to ask functions that are dialled: nobody there knows the session.

use std::time::Duration;

use ringway_proto::h2::NO_TAG;

use super::Shard;
use super::attach::{Attachment, State, key_of};
use super::close::Cause;
use super::conn::{Held, Hop};
use super::link::Link;
use super::moving::MOVED_BYTES;
use super::park::Manner;
use super::table::Key;
use super::timer::Due;
use crate::border::{Border, Close, ConnId, End};
use crate::config::Park;
use crate::control::local::{Ticket, WorkKind};
use crate::metrics::{CloseReason, SpareOutcome};
use crate::pool::Segment;
use crate::post::{CorePost, Join, Stand};
use crate::trail::Event;

/// How long requests wait for a tunnel in place of one whose worker said GOAWAY.
pub(crate) const REPLACE_WAIT: Duration = Duration::from_secs(5);

/// A spare that was lost sooner is not asked for again: the worker will not have it.
const LASTING: Duration = Duration::from_secs(5);

/// How long a used-up tunnel that its worker has ended is kept for a spare which no worker has been
/// told of. As long as we do not close it, a worker may count it as the session's.
const LAST_CHANCE: Duration = Duration::from_secs(1);

/// What a lost client's tunnel may still say; then it is not read any more.
const LAST_WORDS: usize = 1 << 20;

impl Shard {
    /// Asks the worker for a tunnel to stand in for this attachment's. Whether one is to be
    /// expected.
    pub(super) fn ask_spare(&mut self, key: Key) -> bool {
        let Some(attachment) = self.attachments.get(key) else { return false };
        if attachment.spare.is_some() {
            return true;
        }
        if !matches!(attachment.state, State::Attached { .. } | State::Parked { .. }) {
            return false;
        }
        let never = self.settings.config.session.park == Park::Never;
        let (function, version) = (&attachment.owner.function, &attachment.owner.version);
        if never || self.draining.is_some() || self.policy.dial(function, version).is_some() {
            return false;
        }
        let (id, facts, address) =
            (attachment.session, attachment.facts(), attachment.client_address);
        if !self.admit_pending(&facts.owner.tenant, WorkKind::Spare) {
            return false;
        }
        let mut spare = Attachment::new((None, address), id, &facts, self.now);
        spare.state = State::Fresh { kind: WorkKind::Spare };
        spare.parent = Some(key);
        spare.stands_by = true;
        spare.session_opened = facts.opened;
        let spare = self.attachments.insert(spare);
        if let Some(attachment) = self.attachments.get_mut(key) {
            attachment.spare = Some(spare);
        }
        self.fresh_spares.push(spare);
        let join = Join { id, ticket: self.ticket(spare), facts, stand: Stand::Wanted };
        let home = self.session_home(id);
        if home == self.settings.core {
            // Who only waits takes nobody's place.
            let _ = self.sessions.join(join);
        } else {
            self.tell(home, CorePost::Join(Box::new(join)));
        }
        self.metrics.spares[SpareOutcome::Asked.index()] += 1;
        self.note(id, Event::SpareAsked);
        true
    }

    /// An attachment without a client has got its tunnel.
    pub(super) fn spare_came(&mut self, border: &mut Border, key: Key) {
        let Some(spare) = self.attachments.get(key) else { return };
        let parent = spare.parent;
        self.metrics.spares[SpareOutcome::Came.index()] += 1;
        self.note_of(key, Event::SpareAttached);
        let Some((of, parent)) = parent.and_then(|of| Some((of, self.attachments.get(of)?))) else {
            return self.park_spare(border, key);
        };
        let Some(tunnel) = parent.tunnel() else { return };
        let Some(owner) = self.conns.hop(tunnel).and_then(Hop::tunnel) else { return };
        if let Some(held) = owner.held {
            self.separate(of, key);
            self.end_used(border, tunnel, held.cause());
            self.park_spare(border, key);
        } else if owner.going {
            self.replace(border, of, key);
        }
    }

    /// The spare is on its own now: it is kept for a client that comes back.
    fn park_spare(&mut self, border: &mut Border, key: Key) {
        if self.draining.is_some() {
            return self.give_up(border, key, Cause::SHUTDOWN);
        }
        self.outcome(key, SpareOutcome::Parked);
        self.park(border, key);
    }

    /// What has become of a spare, which comes to one end.
    fn outcome(&mut self, key: Key, outcome: SpareOutcome) {
        if let Some(attachment) = self.attachments.get_mut(key)
            && std::mem::take(&mut attachment.stands_by)
        {
            self.metrics.spares[outcome.index()] += 1;
        }
    }

    /// Parent and spare have nothing to do with each other any more.
    fn separate(&mut self, parent: Key, spare: Key) {
        if let Some(attachment) = self.attachments.get_mut(parent) {
            attachment.spare = None;
        }
        if let Some(attachment) = self.attachments.get_mut(spare) {
            attachment.parent = None;
        }
    }

    // ---- tunnels that are used up ----

    /// The attachments of a lost client are kept: a tunnel that it used up is not closed with its
    /// last exchange.
    pub(super) fn keep_used(&mut self, kept: &[Key], manner: Manner) {
        let held = match manner {
            Manner::Finished => Held::Finished,
            _ => Held::Lost { dropped: 0 },
        };
        for key in kept {
            let tunnel = self.attachments.get(*key).and_then(Attachment::tunnel);
            let Some(hop) = tunnel.and_then(|tunnel| self.conns.hop_mut(tunnel)) else { continue };
            let used = matches!(&hop.link, Link::H1(h1) if h1.slot != NO_TAG);
            if let Some(tunnel) = hop.tunnel_mut() {
                tunnel.held = (used || tunnel.going).then_some(held);
            }
        }
    }

    /// The attachment's client is lost and its tunnel can carry no other one's requests: a spare
    /// takes its place. Until that is there the tunnel is kept.
    pub(super) fn used_up(&mut self, border: &mut Border, key: Key, tunnel: ConnId) {
        let owner = self.conns.hop(tunnel).and_then(Hop::tunnel);
        let held = owner.and_then(|owner| owner.held).unwrap_or(Held::Lost { dropped: 0 });
        let spare = self.attachments.get(key).and_then(|attachment| attachment.spare);
        let there = spare.filter(|spare| {
            self.attachments.get(*spare).is_some_and(|spare| spare.tunnel().is_some())
        });
        if let Some(spare) = there {
            self.separate(key, spare);
            self.end_used(border, tunnel, held.cause());
            return self.park_spare(border, spare);
        }
        if !self.ask_spare(key) {
            return self.end_used(border, tunnel, held.cause());
        }
        if let Some(attachment) = self.attachments.get_mut(key) {
            attachment.client = None;
        }
        let Some(hop) = self.conns.hop_mut(tunnel) else { return };
        if matches!(hop.link, Link::H2(_)) {
            // It would have to be answered as one in use.
            hop.waits += 1;
            border.pause(tunnel, true);
        }
        if let Some(owner) = hop.tunnel_mut() {
            owner.held = Some(held);
            owner.idle_since = None;
            owner.answers = Vec::new();
        }
        if held == Held::Finished {
            self.last_chance(key);
        }
    }

    /// The worker has ended a tunnel that is held: whether it is kept for a while longer, because
    /// its spare may still come.
    pub(super) fn last_chance(&mut self, key: Key) -> bool {
        let spare = self.attachments.get(key).and_then(|attachment| attachment.spare);
        let Some(spare) = spare else { return false };
        self.timers.arm(self.now + LAST_CHANCE, Due::Recall(spare));
        true
    }

    /// The worker has ended the tunnel that this spare was asked for. If no worker knows of the
    /// spare by now, none ever will: the session ended with that tunnel.
    pub(super) fn recall(&mut self, border: &mut Border, spare: Key) {
        let Some(attachment) = self.attachments.get(spare) else { return };
        match attachment.state {
            State::Fresh { .. } => self.give_up(border, spare, Cause::UNTAKEN),
            State::Waiting { .. } => {
                let owner = attachment.owner.clone();
                let home = self.dispatch_home(&owner.function, &owner.version);
                let ticket = self.ticket(spare);
                if home != self.settings.core {
                    self.tell(home, CorePost::Recall(ticket));
                } else if self.local.recall(ticket) {
                    self.recalled(border, ticket);
                }
            }
            _ => {}
        }
    }

    /// A spare's work has left its queue.
    pub(super) fn recalled(&mut self, border: &mut Border, ticket: Ticket) {
        let key = key_of(ticket);
        let waits = |spare: &Attachment| matches!(spare.state, State::Waiting { .. });
        if self.attachments.get(key).is_some_and(waits) {
            self.give_up(border, key, Cause::UNTAKEN);
        }
    }

    /// Closes a tunnel that was used up. What a stream of bytes left is still sent; half a message
    /// must not look whole.
    fn end_used(&mut self, border: &mut Border, tunnel: ConnId, cause: Cause) {
        let link = self.conns.hop(tunnel).map(|hop| &hop.link);
        if matches!(link, Some(Link::H1(h1)) if h1.codec.is_raw()) {
            border.close(tunnel, Close::Flush);
        }
        self.tunnel_gone(border, tunnel, cause);
    }

    /// Bytes that nobody waits for: of a tunnel that is held, or that was not spoken to.
    pub(super) fn received_unasked(
        &mut self,
        border: &mut Border,
        conn: ConnId,
        segment: Segment,
    ) -> bool {
        let Some(hop) = self.conns.hop_mut(conn) else { return false };
        if let Some(held) = hop.tunnel_mut().and_then(|tunnel| tunnel.held.as_mut()) {
            if let Held::Lost { dropped } = held {
                let before = std::mem::replace(dropped, *dropped + segment.len as usize);
                if before <= LAST_WORDS && *dropped > LAST_WORDS {
                    hop.waits += 1;
                    border.pause(conn, true);
                }
            }
            return true;
        }
        let Link::H1(h1) = &mut hop.link else { return false };
        let Some(unasked) = &mut h1.unspoken else { return false };
        unasked.extend_from_slice(border.pool.bytes(segment));
        hop.received_at = border.now;
        if unasked.len() > MOVED_BYTES {
            self.tunnel_gone(border, conn, Cause::UNASKED);
        }
        true
    }

    /// The first request for a tunnel that nothing was said on: it speaks what its client does.
    fn speak(&mut self, border: &mut Border, key: Key, tunnel: ConnId) {
        let Some(Hop { link: Link::H1(h1), .. }) = self.conns.hop_mut(tunnel) else { return };
        let Some(unasked) = h1.unspoken.take() else { return };
        let link = self.tunnel_link(border, tunnel, key);
        self.http1_replace(border, tunnel, link);
        self.receive_copy(border, tunnel, &unasked);
        self.watch(tunnel);
    }

    // ---- tunnels that take no more streams ----

    /// Requests wait although the attachment has its tunnel: that may not have been spoken to, or
    /// may take no stream any more.
    pub(super) fn unserved(&mut self, border: &mut Border, key: Key) {
        let Some(attachment) = self.attachments.get(key) else { return };
        let Some(tunnel) = attachment.tunnel().filter(|_| attachment.client.is_some()) else {
            return;
        };
        let replaced = attachment.spare.is_some();
        let Some(hop) = self.conns.hop_mut(tunnel) else { return };
        if hop.link.is_unspoken() {
            self.speak(border, key, tunnel);
            return self.serve_waiters(border, key);
        }
        let spent = hop.link.is_spent() && !replaced;
        if let Some(owner) = hop.tunnel_mut()
            && spent
        {
            owner.going = true;
            let idle = hop.link.streams() == 0;
            self.ask_replacement(border, key);
            if idle && !self.is_replaced(key) {
                self.tunnel_done(border, tunnel);
            }
        }
    }

    /// The attachment's tunnel takes no more streams. Another one takes its place, and its client
    /// notices nothing; if none is to be had, requests that wait are placed anew.
    pub(super) fn ask_replacement(&mut self, border: &mut Border, key: Key) {
        if self.ask_spare(key) {
            self.timers.arm(border.now + REPLACE_WAIT, Due::Replace(key));
        } else {
            self.move_waiters(border, key);
        }
    }

    /// Whether a tunnel is to come in the place of this attachment's, or it is for another core to
    /// ask for one.
    pub(super) fn is_replaced(&self, key: Key) -> bool {
        let moves = |attachment: &Attachment| matches!(attachment.state, State::Moving { .. });
        let attachment = self.attachments.get(key);
        attachment.is_some_and(|attachment| attachment.spare.is_some() || moves(attachment))
    }

    /// An attachment takes the place of another one, and that one's spare with it.
    pub(super) fn adopt_spare(&mut self, spare: Option<Key>, key: Key) {
        let Some(spare) = spare else { return };
        if let Some(attachment) = self.attachments.get_mut(key) {
            attachment.spare = Some(spare);
        }
        if let Some(attachment) = self.attachments.get_mut(spare) {
            attachment.parent = Some(key);
        }
    }

    /// The attachment's tunnel goes to another core, where another spare can be asked for.
    pub(super) fn end_spare_of(&mut self, border: &mut Border, key: Key) {
        let spare = self.attachments.get_mut(key).and_then(|attachment| attachment.spare.take());
        let Some(spare) = spare else { return };
        self.separate(key, spare);
        self.end_unneeded(border, spare, Cause::ABANDONED);
    }

    /// The attachment goes on with its spare's tunnel. What runs on the old one ends there, as the
    /// spare's.
    fn replace(&mut self, border: &mut Border, key: Key, spare: Key) {
        self.separate(key, spare);
        let tunnel_of = |key| self.attachments.get(key).and_then(Attachment::tunnel);
        let (Some(old), Some(new)) = (tunnel_of(key), tunnel_of(spare)) else { return };
        let Some((slots, cookie_sent, parked)) = self.turn_over(old, spare) else { return };
        for slot in &slots {
            if let Some(exchange) = self.exchanges.at_mut(*slot) {
                exchange.attachment = Some(spare);
            }
        }
        let streams = slots.len() as u32;
        if let Some(attachment) = self.attachments.get_mut(spare) {
            attachment.set_tunnel(old);
            attachment.streams += streams;
        }
        let now = border.now;
        let Some(attachment) = self.attachments.get_mut(key) else { return };
        attachment.set_tunnel(new);
        attachment.streams -= streams;
        let (id, client) = (attachment.session, attachment.client);
        if let Some(owner) = self.conns.hop_mut(new).and_then(Hop::tunnel_mut) {
            owner.attachment = key;
            owner.cookie_sent = cookie_sent;
            owner.parked = parked;
            owner.idle_since = parked.is_none().then_some(now);
        }
        let hop = client.and_then(|client| self.conns.hop_mut(client));
        if let Some(client) = hop.and_then(Hop::client_mut) {
            // They hold what the old tunnel's encoder made of them.
            client.calls.retain(|call| !call.is_of(key));
        }
        self.outcome(spare, SpareOutcome::Replaced);
        self.note(id, Event::Replaced);
        self.watch(new);
        if streams == 0 {
            self.tunnel_done(border, old);
        }
        if parked.is_some() {
            let stand = self.attachments.get(key).map(|attachment| self.stand_of(attachment));
            stand.into_iter().for_each(|stand| self.tell_stand(border, id, key, stand));
        }
        self.serve_waiters(border, key);
    }

    /// Gives a tunnel to another attachment: its streams, whether the cookie went out, and how
    /// long it was to be kept.
    fn turn_over(
        &mut self,
        tunnel: ConnId,
        to: Key,
    ) -> Option<(Vec<u32>, bool, Option<ringway_proto::time::Time>)> {
        let hop = self.conns.hop_mut(tunnel)?;
        let slots = hop.link.tags();
        let owner = hop.tunnel_mut()?;
        owner.attachment = to;
        Some((slots, owner.cookie_sent, owner.parked.take()))
    }

    /// A tunnel that takes no more streams has none any more.
    pub(super) fn tunnel_done(&mut self, border: &mut Border, tunnel: ConnId) {
        let Some(hop) = self.conns.hop(tunnel) else { return };
        let cause = if hop.link.is_exhausted() { Cause::EXHAUSTED } else { Cause::GOAWAY };
        self.tunnel_gone(border, tunnel, cause);
    }

    /// Requests have waited long enough for a tunnel in place of one that takes no more streams.
    pub(super) fn replace_overdue(&mut self, border: &mut Border, key: Key) {
        let Some(attachment) = self.attachments.get(key) else { return };
        if attachment.client.is_some()
            && let Some(spare) = attachment.spare
            && self.attachments.get(spare).is_some_and(|spare| spare.tunnel().is_none())
        {
            self.give_up(border, spare, Cause::NO_WORKER);
        }
    }

    /// A tunnel that was to be replaced is lost first: who waits for the other one is placed anew.
    pub(super) fn lost_before_replaced(&mut self, border: &mut Border, tunnel: ConnId) {
        let Some(owner) = self.conns.hop(tunnel).and_then(Hop::tunnel) else { return };
        let key = owner.attachment;
        let Some(attachment) = self.attachments.get(key).filter(|_| owner.going) else { return };
        if let (Some(spare), Some(_)) = (attachment.spare, attachment.client) {
            self.separate(key, spare);
            self.end_unneeded(border, spare, Cause::ABANDONED);
            self.move_waiters(border, key);
        }
    }

    // ---- ends ----

    /// An attachment has ended: what that means for the one it stands in for, or that stands in
    /// for it.
    pub(super) fn kin_ended(&mut self, border: &mut Border, ended: &Attachment, cause: Cause) {
        if ended.stands_by {
            let outcome = match cause.reason {
                CloseReason::Shutdown | CloseReason::Deleted => SpareOutcome::Unused,
                _ => SpareOutcome::Failed,
            };
            self.metrics.spares[outcome.index()] += 1;
        }
        if let Some(spare) = ended.spare {
            self.parent_ended(border, spare, cause);
        }
        if let Some(parent) = ended.parent {
            self.spare_ended(border, parent, ended);
        }
    }

    /// A session outlives a tunnel that its worker ended, or that was lost, if there is another.
    fn parent_ended(&mut self, border: &mut Border, spare: Key, cause: Cause) {
        let Some(attachment) = self.attachments.get_mut(spare) else { return };
        attachment.parent = None;
        let there = attachment.tunnel().is_some();
        if cause.reason != CloseReason::WorkerClosed {
            self.end_unneeded(border, spare, cause);
        } else if there {
            self.park_spare(border, spare);
        } else {
            self.recall(border, spare);
        }
    }

    fn end_unneeded(&mut self, border: &mut Border, spare: Key, cause: Cause) {
        self.outcome(spare, SpareOutcome::Unused);
        self.give_up(border, spare, cause);
    }

    fn spare_ended(&mut self, border: &mut Border, parent: Key, spare: &Attachment) {
        let lasted = spare.tunnel().is_some() && spare.opened + LASTING <= self.now;
        let Some(attachment) = self.attachments.get_mut(parent) else { return };
        attachment.spare = None;
        let (client, Some(tunnel)) = (attachment.client, attachment.tunnel()) else { return };
        let Some(hop) = self.conns.hop(tunnel) else { return };
        let Some(owner) = hop.tunnel() else { return };
        let idle = hop.link.streams() == 0;
        if let Some(held) = owner.held {
            self.end_used(border, tunnel, held.cause());
        } else if owner.going {
            if client.is_some() {
                self.move_waiters(border, parent);
            }
            if idle {
                self.tunnel_done(border, tunnel);
            }
        } else if lasted {
            self.ask_spare(parent);
        }
    }

    /// Nobody may come back any more: what is only for that ends.
    pub(super) fn drop_spares(&mut self, border: &mut Border) {
        let keys: Vec<Key> = self.attachments.iter().map(|(key, _)| key).collect();
        for key in keys {
            if self.is_for_later(key) {
                self.give_up(border, key, Cause::SHUTDOWN);
            }
        }
    }

    /// Whether an attachment serves no client now and none of its streams.
    fn is_for_later(&self, key: Key) -> bool {
        let Some(attachment) = self.attachments.get(key) else { return false };
        let going = |attachment: &Attachment| {
            let hop = attachment.tunnel().and_then(|tunnel| self.conns.hop(tunnel));
            hop.and_then(Hop::tunnel).is_some_and(|tunnel| tunnel.going && tunnel.held.is_none())
        };
        let parent = attachment.parent.and_then(|parent| self.attachments.get(parent));
        let replaces = parent.is_some_and(|parent| parent.client.is_some() && going(parent));
        attachment.client.is_none() && !replaces && !going(attachment)
    }
}

impl Held {
    /// What such a tunnel ends of.
    fn cause(self) -> Cause {
        match self {
            Self::Lost { .. } => Cause::CLIENT_GONE,
            Self::Finished => Cause::ended(End::Fin),
        }
    }
}

impl Attachment {
    /// Another tunnel in the place of the one there is.
    fn set_tunnel(&mut self, new: ConnId) {
        if let State::Attached { tunnel } | State::Parked { tunnel, .. } = &mut self.state {
            *tunnel = new;
        }
    }
}
