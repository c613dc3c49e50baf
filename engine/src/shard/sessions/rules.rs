//! The policy's rules for attachments.

use std::sync::Arc;

use super::super::cause::Manners;
use super::super::facts::Terms;
use super::super::settings::ShardSettings;
use super::client::USED_UP;
use crate::config::{Dial, Park};
use crate::control::local::Policy;
use crate::control::port::{Owner, Plane};

/// The rules that hold now.
#[derive(Debug)]
pub(super) struct Rules {
    policy: Arc<Policy>,
    /// How often the rules were replaced.
    number: u32,
}

impl Rules {
    pub(super) fn new(policy: Arc<Policy>) -> Self {
        Self { policy, number: 0 }
    }

    /// Other rules hold from now on.
    pub(super) fn replace(&mut self, policy: Arc<Policy>) {
        self.policy = policy;
        self.number = (self.number + 1) % USED_UP;
    }

    pub(super) fn number(&self) -> u32 {
        self.number
    }

    /// The server of a function that no worker serves.
    pub(super) fn dial(&self, owner: &Owner) -> Option<Arc<Dial>> {
        self.policy.dial(&owner.function, &owner.version)
    }

    /// The terms that a route to this owner's function is held to.
    pub(super) fn terms(&self, owner: &Owner, settings: &ShardSettings) -> Terms {
        let park = settings.config.session.park;
        let streams = self.policy.streams(&owner.function, &owner.version);
        let streams = streams.unwrap_or(owner.kind.streaming);
        // Nobody knows the session at a server that is dialled: there is no way to ask for a spare.
        // A streaming worker keeps its session without a tunnel (design 3.26).
        let waits = streams && settings.dispatch == Plane::Remote;
        let spares = park != Park::Never && !waits && self.dial(owner).is_none();
        Terms { parks: Manners::kept(park, streams), spares }
    }

    /// The tenant that has this credential; empty if none has it.
    pub(super) fn tenant(&self, credential: &[u8]) -> Arc<str> {
        self.known_tenant(credential).unwrap_or_else(|| "".into())
    }

    /// The tenant that has this credential, if that is known without the control plane.
    pub(super) fn known_tenant(&self, credential: &[u8]) -> Option<Arc<str>> {
        self.policy.tenant(credential).cloned()
    }
}
