//! How fast a client connection may cause sessions (L12).
//!
//! A *dispatch* asks a worker for a new session. Each is charged to its client's bucket. Not
//! charged are: functions with `dial`, whose server is connected to and no worker asked; and a
//! tunnel for a session that is there already. What is charged comes back when the function's side
//! ends the tunnel in order: a server that closes after each response makes no client a flood.

use ringway_proto::fault::Fault;
use ringway_proto::time::Time;

use super::Shard;
use super::attach::Attachment;
use super::close::Cause;
use super::conn::{Client, Hop};
use super::table::Key;
use crate::border::ConnId;
use crate::config::Limits;
use crate::control::local::{Owner, WorkKind};
use crate::metrics::{CloseReason, Limit};

impl Shard {
    /// Whether no worker is asked for the sessions of a function.
    pub(super) fn is_dialled(&self, owner: &Owner) -> bool {
        self.policy.dial(&owner.function, &owner.version).is_some()
    }

    /// A worker is to be asked for a new session.
    pub(super) fn charge_dispatch(&mut self, client: ConnId, now: Time) -> Result<(), Box<Fault>> {
        self.admit_return(client, now)?;
        if let Some(client) = self.conns.hop_mut(client).and_then(Hop::client_mut) {
            client.dispatches.charge();
        }
        Ok(())
    }

    /// A tunnel is to be had for a session that is there already: nothing is charged, but a client
    /// that has used up what it may cause waits with it.
    pub(super) fn admit_return(&mut self, client: ConnId, now: Time) -> Result<(), Box<Fault>> {
        let limits = &self.settings.config.limits;
        let (burst, rate) = (limits.dispatch_burst, limits.dispatch_rate);
        let Some(client) = self.conns.hop_mut(client).and_then(Hop::client_mut) else {
            return Err(Box::new(Fault::TunnelLost));
        };
        if client.dispatches.has(burst, rate, now) {
            return Ok(());
        }
        let retry_after = client.dispatches.seconds_left(burst, rate, now);
        self.metrics.limit_hit(Limit::Dispatches);
        Err(Box::new(Fault::TooManyDispatches { retry_after }))
    }

    /// A client asked for a session in vain: there is none for it, or it did not wait.
    pub(super) fn charge_in_vain(&mut self, client: Option<ConnId>) {
        let client = client.and_then(|client| self.conns.hop_mut(client)?.client_mut());
        if let Some(client) = client {
            client.dispatches.charge();
        }
    }

    /// Nobody waits for an attachment any more that a worker was asked for.
    pub(super) fn charge_abandoned(&mut self, key: Key) {
        let Some(attachment) = self.attachments.get(key) else { return };
        if attachment.kind() == Some(WorkKind::Reconnect) && !self.is_dialled(&attachment.owner) {
            self.charge_in_vain(attachment.client);
        }
    }

    /// A tunnel has ended that had answered and on which nothing ran. If it was the function's side
    /// that ended it, the next session of its client is charged in its place.
    pub(super) fn give_back_dispatch(&mut self, attachment: &Attachment, cause: Cause) {
        if !attachment.charged || cause.reason != CloseReason::WorkerClosed {
            return;
        }
        let client = attachment.client.and_then(|client| self.conns.hop_mut(client)?.client_mut());
        if let Some(Client { dispatches, .. }) = client {
            dispatches.give_back();
        }
    }
}

impl Hop {
    /// Whether the client has made more sessions in its time than a worker would be asked for.
    pub(super) fn is_hasty(&self, limits: &Limits, now: Time) -> bool {
        let seconds = now.since(self.opened).as_secs();
        let most = u64::from(limits.dispatch_burst) + seconds * u64::from(limits.dispatch_rate);
        self.client().is_some_and(|client| u64::from(client.tunnels_seen) >= most)
    }
}
