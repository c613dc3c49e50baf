//! A client that comes back to a tunnel that is parked: nobody is asked for it, it is there.

use ringway_proto::fault::Fault;
use uuid::Uuid;

use super::Shard;
use super::attach::{State, key_of};
use super::conn::Hop;
use super::table::Key;
use crate::border::ConnId;
use crate::control::local::Ticket;
use crate::post::Speaks;

impl Shard {
    /// What a client connection speaks.
    pub(super) fn speaks(&self, client: ConnId) -> Speaks {
        self.conns.hop(client).map_or(Speaks::Any, |hop| hop.link.clients())
    }

    /// The client may have the session, and this tunnel of it is parked.
    pub(super) fn come_back_to_parked(
        &mut self,
        client: ConnId,
        pin: usize,
        id: Uuid,
        parked: Ticket,
    ) -> Result<Key, Box<Fault>> {
        self.admit_attachment(client)?;
        let key = key_of(parked);
        if !self.unpark(client, key) {
            return Err(Box::new(Fault::SessionNotFound { request_id: id }));
        }
        self.sessions.claim(id, parked, parked);
        if let Some(owner) = self.conns.hop_mut(client).and_then(Hop::client_mut) {
            owner.pins[pin].attachment.get_or_insert(key);
        }
        Ok(key)
    }

    /// Gives a parked attachment to a client connection; false if there is none.
    fn unpark(&mut self, client: ConnId, key: Key) -> bool {
        let now = self.now;
        let Some(attachment) = self.attachments.get_mut(key) else { return false };
        let State::Parked { tunnel, place, .. } = attachment.state else { return false };
        let Some(owner) = self.conns.hop_mut(client) else { return false };
        attachment.client = Some(client);
        attachment.client_address = owner.peer;
        attachment.state = State::Attached { tunnel };
        self.lot.leave(place, &attachment.tenant);
        if let Some(owner) = owner.client_mut() {
            owner.attachments.push(key);
            owner.tunnels_seen += 1;
        }
        if let Some(hop) = self.conns.hop_mut(tunnel).and_then(Hop::tunnel_mut) {
            hop.parked = None;
            hop.idle_since = Some(now);
        }
        self.watch(tunnel);
        true
    }
}
