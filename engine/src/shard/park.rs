//! Tunnels whose client is gone (design 5). A worker ends a session with its last tunnel, so that
//! one is kept for a while: it stays on the core where it was, with its attachment, which has no
//! client. What brings a client back to it is in [`super::resume`].

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use ringway_proto::h2::ErrorCode;
use uuid::Uuid;

use super::Shard;
use super::attach::{Attachment, State, key_of};
use super::close::Cause;
use super::conn::Hop;
use super::table::Key;
use crate::border::{Border, ConnId, End};
use crate::config::Park;
use crate::control::local::Ticket;
use crate::metrics::Limit;
use crate::post::{CorePost, Join, Speaks, Stand};
use crate::trail::Event;

/// How a client connection came to its end.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Gone {
    /// The client's bytes ended.
    Ended(End),
    /// The client had said that its last request was the last (HTTP/1).
    Done,
    /// We ended it.
    ByUs(Cause),
    /// We ended it because it wasted what it was given (ENHANCE_YOUR_CALM, or the GOAWAY before
    /// it). What its sessions are to it is not known: they are kept as if it had been lost.
    ToldOff,
    /// The function's side ended the stream of bytes that the connection had become.
    Function(End),
}

/// The same as the rules for parking see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Manner {
    /// It was lost: RST, a timeout, or FIN with streams open. Or it was told off.
    Unclean,
    /// FIN, and nothing that tells whether that was meant: balancers turn lost clients into it.
    Silent,
    /// It said that it leaves.
    Clean,
    /// It was sent away.
    Ours,
    /// The function's side finished what it had with the client. A WebSocket's Close handshake
    /// looks so too: the server is the first to close (RFC 6455, section 7.1.1).
    Finished,
}

impl Gone {
    pub(crate) fn cause(self) -> Cause {
        match self {
            Self::Ended(end) => Cause::client_ended(end),
            Self::Done | Self::Function(_) => Cause::CLIENT_GONE,
            Self::ByUs(cause) => cause,
            Self::ToldOff => Cause::WASTEFUL,
        }
    }

    pub(crate) fn manner(self, hop: &Hop) -> Manner {
        match self {
            Self::ByUs(_) => Manner::Ours,
            Self::Function(End::Fin) => Manner::Finished,
            Self::Function(_) => Manner::Unclean,
            Self::Done => Manner::Clean,
            // It leaves because it was told to, and may come back at once.
            Self::Ended(_) if hop.is_leaving() => Manner::Unclean,
            Self::ToldOff => Manner::Unclean,
            Self::Ended(_) if hop.client().is_some_and(|client| client.said_goaway) => {
                Manner::Clean
            }
            // Many clients never say `close_notify`.
            Self::Ended(end) if end.is_half() && hop.link.streams() == 0 => Manner::Silent,
            Self::Ended(_) => Manner::Unclean,
        }
    }
}

impl Park {
    /// Whether the tunnel of a client that ended so is kept.
    pub(super) fn keeps(self, manner: Manner, streaming: bool) -> bool {
        match (self, manner) {
            (_, Manner::Ours) | (Self::Never, _) => false,
            (Self::Always, _) => true,
            (_, Manner::Clean) => false,
            (Self::Auto | Self::Unclean, Manner::Finished) => streaming,
            (Self::Auto, Manner::Silent) => streaming,
            (Self::Auto | Self::Unclean, _) => true,
        }
    }
}

/// Where an attachment stands among the parked ones of its core: the oldest first.
pub(crate) type Place = u64;

/// The parked attachments of one core.
#[derive(Debug, Default)]
pub(crate) struct Lot {
    places: BTreeMap<Place, Key>,
    by_tenant: HashMap<Arc<str>, BTreeSet<Place>>,
    next: Place,
}

impl Lot {
    fn enter(&mut self, key: Key, tenant: &Arc<str>) -> Place {
        self.next += 1;
        self.places.insert(self.next, key);
        self.by_tenant.entry(tenant.clone()).or_default().insert(self.next);
        self.next
    }

    pub(crate) fn leave(&mut self, place: Place, tenant: &Arc<str>) {
        self.places.remove(&place);
        if let Some(places) = self.by_tenant.get_mut(tenant) {
            places.remove(&place);
            if places.is_empty() {
                self.by_tenant.remove(tenant);
            }
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.places.len()
    }

    /// How many the tenant has that has most.
    pub(crate) fn fullest(&self) -> usize {
        self.by_tenant.values().map(BTreeSet::len).max().unwrap_or(0)
    }

    fn of_tenant(&self, tenant: &Arc<str>) -> usize {
        self.by_tenant.get(tenant).map_or(0, BTreeSet::len)
    }

    fn oldest(&self) -> Option<Key> {
        self.places.first_key_value().map(|(_, key)| *key)
    }

    fn oldest_of(&self, tenant: &Arc<str>) -> Option<Key> {
        let place = self.by_tenant.get(tenant)?.first()?;
        self.places.get(place).copied()
    }
}

impl Shard {
    /// The client has said that it leaves.
    pub(super) fn client_goaway(&mut self, conn: ConnId, code: ErrorCode) {
        if let Some(client) = self.conns.hop_mut(conn).and_then(Hop::client_mut) {
            client.said_goaway |= code == ErrorCode::NoError;
        }
    }

    /// Those attachments of a lost client whose tunnels are kept, in order. Nobody waits for them
    /// any more.
    pub(super) fn choose_parked(&mut self, keys: &[Key], manner: Manner) -> Vec<Key> {
        let park = self.settings.config.session.park;
        if self.draining.is_some() || !park.keeps(manner, true) {
            return Vec::new();
        }
        let mut kept = Vec::new();
        for key in keys {
            let Some(attachment) = self.attachments.get_mut(*key) else { continue };
            let State::Attached { tunnel } = attachment.state else { continue };
            let (function, version) = (&attachment.owner.function, &attachment.owner.version);
            let hop = self.conns.hop(tunnel);
            let going = hop.and_then(Hop::tunnel).is_none_or(|tunnel| tunnel.going);
            let going = going && attachment.spare.is_none();
            // A function finishes what its own tunnel carries. Of the client's other sessions the
            // end says no more than any FIN.
            let manner = match manner {
                Manner::Finished if hop.is_none_or(|hop| hop.link.streams() == 0) => Manner::Silent,
                manner => manner,
            };
            if !going && park.keeps(manner, self.policy.streams(function, version)) {
                // Otherwise their requests would go out while the streams before them end.
                attachment.waiters.clear();
                kept.push(*key);
            }
        }
        kept.sort_unstable();
        kept
    }

    /// The attachment's client is gone and its streams have ended: the tunnel is kept, if it can
    /// carry another client's requests.
    pub(super) fn park(&mut self, border: &mut Border, key: Key) {
        let Some(attachment) = self.attachments.get(key) else { return };
        let State::Attached { tunnel } = attachment.state else { return };
        let tenant = attachment.owner.tenant.clone();
        if self.draining.is_some() {
            return self.tunnel_gone(border, tunnel, Cause::CLIENT_GONE);
        }
        if !self.conns.hop(tunnel).is_some_and(|hop| hop.link.is_reusable()) {
            return self.used_up(border, key, tunnel);
        }
        self.make_room(border, &tenant);
        let place = self.lot.enter(key, &tenant);
        let (now, window) = (border.now, self.settings.config.session.park_window);
        let Some(attachment) = self.attachments.get_mut(key) else { return };
        attachment.client = None;
        attachment.charged = false;
        attachment.state = State::Parked { tunnel, place };
        let id = attachment.session;
        let Some(hop) = self.conns.hop_mut(tunnel) else { return };
        let speaks = hop.link.clients();
        if let Some(tunnel) = hop.tunnel_mut() {
            tunnel.parked = Some(now + window);
            tunnel.held = None;
            tunnel.idle_since = None;
            // They belong to the old client's encoder.
            tunnel.answers = Vec::new();
            tunnel.cookie_sent = false;
        }
        self.watch(tunnel);
        self.note(id, Event::Parked);
        self.tell_stand(border, id, key, Stand::Parked(speaks));
        self.tell_parks(border, key);
    }

    /// The attachment is not parked any more.
    pub(super) fn leave_lot(&mut self, key: Key, of: &Attachment, place: Place) {
        self.lot.leave(place, &of.owner.tenant);
        self.tell_unparks(key, &of.owner.function, &of.owner.version);
    }

    /// One more is to be parked: what is too many goes, the oldest first.
    fn make_room(&mut self, border: &mut Border, tenant: &Arc<str>) {
        let limits = &self.settings.config.limits;
        let (most, of_tenant) = (limits.parked_tunnels, limits.parked_per_tenant);
        if self.lot.of_tenant(tenant) >= of_tenant
            && let Some(oldest) = self.lot.oldest_of(tenant)
        {
            self.metrics.limit_hit(Limit::ParkedPerTenant);
            self.give_up(border, oldest, Cause::CROWDED);
        }
        if self.lot.len() >= most
            && let Some(oldest) = self.lot.oldest()
        {
            self.metrics.limit_hit(Limit::ParkedTunnels);
            self.give_up(border, oldest, Cause::CROWDED);
        }
    }

    /// Nobody may come back any more.
    pub(super) fn close_parked(&mut self, border: &mut Border) {
        while let Some(oldest) = self.lot.oldest() {
            self.give_up(border, oldest, Cause::SHUTDOWN);
        }
    }

    /// The session has another tunnel: the one that this attachment keeps is not needed.
    pub(super) fn let_go_parked(&mut self, border: &mut Border, ticket: Ticket) {
        let key = key_of(ticket);
        if self.attachments.get(key).is_some_and(Attachment::is_parked) {
            self.give_up(border, key, Cause::SURPLUS);
        }
    }

    /// An attachment of a session of ours stands otherwise now.
    pub(super) fn stands(&mut self, border: &mut Border, id: Uuid, ticket: Ticket, stand: Stand) {
        let surplus = self.sessions.stand(id, ticket, stand);
        self.let_go_all(border, surplus);
    }

    /// An attachment of a session of ours, which this core may have forgotten.
    pub(super) fn joined(&mut self, border: &mut Border, join: Join) {
        let surplus = self.sessions.join(join);
        self.let_go_all(border, surplus);
    }

    fn let_go_all(&mut self, border: &mut Border, tickets: Vec<Ticket>) {
        for ticket in tickets {
            if ticket.core == self.settings.core {
                self.let_go_parked(border, ticket);
            } else {
                self.tell(ticket.core, CorePost::LetGo(ticket));
            }
        }
    }

    /// How an attachment stands in its session.
    pub(super) fn stand_of(&self, attachment: &Attachment) -> Stand {
        let speaks = |tunnel| self.conns.hop(tunnel).map_or(Speaks::Any, |hop| hop.link.clients());
        match attachment.state {
            State::Parked { tunnel, .. } => Stand::Parked(speaks(tunnel)),
            State::Attached { tunnel } => {
                let owner = self.conns.hop(tunnel).and_then(Hop::tunnel);
                let held = owner.is_some_and(|owner| owner.held.is_some());
                if attachment.client.is_some() || held { Stand::Open } else { Stand::Spare }
            }
            State::Moving { .. } => Stand::Open,
            State::Asking { .. }
            | State::Fresh { .. }
            | State::Waiting { .. }
            | State::Dialling(_) => Stand::Wanted,
        }
    }
}

impl Attachment {
    pub(super) fn is_parked(&self) -> bool {
        matches!(self.state, State::Parked { .. })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_after_which_end() {
        use Manner::{Clean, Finished, Ours, Silent, Unclean};
        // Default and streaming functions.
        let cases: [(Park, Manner, (bool, bool)); 20] = [
            (Park::Never, Unclean, (false, false)),
            (Park::Never, Silent, (false, false)),
            (Park::Never, Clean, (false, false)),
            (Park::Never, Ours, (false, false)),
            (Park::Never, Finished, (false, false)),
            (Park::Auto, Unclean, (true, true)),
            (Park::Auto, Silent, (false, true)),
            (Park::Auto, Clean, (false, false)),
            (Park::Auto, Ours, (false, false)),
            (Park::Auto, Finished, (false, true)),
            (Park::Unclean, Unclean, (true, true)),
            (Park::Unclean, Silent, (true, true)),
            (Park::Unclean, Clean, (false, false)),
            (Park::Unclean, Ours, (false, false)),
            (Park::Unclean, Finished, (false, true)),
            (Park::Always, Unclean, (true, true)),
            (Park::Always, Silent, (true, true)),
            (Park::Always, Clean, (true, true)),
            (Park::Always, Ours, (false, false)),
            (Park::Always, Finished, (true, true)),
        ];
        for (park, manner, kept) in cases {
            let told = (park.keeps(manner, false), park.keeps(manner, true));
            assert_eq!(told, kept, "{park:?} {manner:?}");
        }
    }

    #[test]
    fn places_are_left_in_any_order() {
        let key = |slot| Key { slot, generation: 1 };
        let (one, two): (Arc<str>, Arc<str>) = ("one".into(), "two".into());
        let mut lot = Lot::default();
        let first = lot.enter(key(1), &one);
        lot.enter(key(2), &two);
        let third = lot.enter(key(3), &one);
        assert_eq!((lot.len(), lot.fullest(), lot.of_tenant(&two)), (3, 2, 1));
        lot.leave(first, &one);
        assert_eq!((lot.oldest(), lot.oldest_of(&one)), (Some(key(2)), Some(key(3))));
        lot.leave(third, &one);
        assert_eq!((lot.oldest_of(&one), lot.of_tenant(&one)), (None, 0));
    }
}
