//! How many attachments wait for their worker, in all and of each tenant.
//!
//! Spares are counted apart. A client's session is refused for other clients' sessions only,
//! because a spare may never come, and nobody waits for it. A spare is refused if sessions and
//! spares together leave no room.

use std::collections::HashMap;
use std::sync::Arc;

use crate::config::Limits;
use crate::control::local::WorkKind;
use crate::metrics::Limit;

/// Attachments that wait.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Waits {
    /// Attachments for which a client waits.
    clients: usize,
    spares: usize,
}

impl Waits {
    fn of(&mut self, kind: WorkKind) -> &mut usize {
        match kind {
            WorkKind::New | WorkKind::Reconnect => &mut self.clients,
            WorkKind::Spare => &mut self.spares,
        }
    }

    /// The number of attachments that count against the limit for one more of this kind.
    fn before(self, kind: WorkKind) -> usize {
        match kind {
            WorkKind::New | WorkKind::Reconnect => self.clients,
            WorkKind::Spare => self.clients + self.spares,
        }
    }

    fn is_empty(self) -> bool {
        self == Self::default()
    }
}

/// The waiting sessions of one core.
#[derive(Debug, Default)]
pub(super) struct Pending {
    all: Waits,
    by_tenant: HashMap<Arc<str>, Waits, foldhash::fast::RandomState>,
}

impl Pending {
    /// One more attachment waits.
    pub(super) fn enter(&mut self, tenant: &Arc<str>, kind: WorkKind) {
        *self.all.of(kind) += 1;
        *self.by_tenant.entry(tenant.clone()).or_default().of(kind) += 1;
    }

    /// The counterpart of [`Self::enter`].
    pub(super) fn leave(&mut self, tenant: &Arc<str>, kind: WorkKind) {
        *self.all.of(kind) -= 1;
        if let Some(of_tenant) = self.by_tenant.get_mut(tenant) {
            *of_tenant.of(kind) -= 1;
            if of_tenant.is_empty() {
                self.by_tenant.remove(tenant);
            }
        }
    }

    /// The limit at which no more of this kind may wait, if it is reached; `more` are about to.
    pub(super) fn full(
        &self,
        (tenant, kind): (&Arc<str>, WorkKind),
        more: usize,
        limits: &Limits,
    ) -> Option<Limit> {
        let of_tenant = self.by_tenant.get(tenant).copied().unwrap_or_default();
        if self.all.before(kind) + more >= limits.pending_sessions {
            Some(Limit::PendingSessions)
        } else if of_tenant.before(kind) >= limits.pending_per_tenant {
            Some(Limit::PendingPerTenant)
        } else {
            None
        }
    }

    /// Sessions of clients that wait.
    pub(super) fn clients(&self) -> usize {
        self.all.clients
    }

    /// Whether nothing waits at all.
    pub(super) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spares_make_room_for_clients_and_not_the_other_way_round() {
        let limits = Limits {
            pending_sessions: 3,
            pending_per_tenant: 2,
            ..crate::config::Config::dev().limits
        };
        let [one, two]: [Arc<str>; 2] = ["one".into(), "two".into()];
        let mut pending = Pending::default();
        pending.enter(&one, WorkKind::Spare);
        pending.enter(&one, WorkKind::Spare);
        let full = |pending: &Pending, tenant, kind| pending.full((tenant, kind), 0, &limits);
        assert_eq!(full(&pending, &one, WorkKind::Spare), Some(Limit::PendingPerTenant));
        assert_eq!(full(&pending, &one, WorkKind::New), None);
        assert_eq!(full(&pending, &two, WorkKind::Spare), None);
        pending.enter(&one, WorkKind::New);
        pending.enter(&two, WorkKind::Reconnect);
        assert_eq!(full(&pending, &two, WorkKind::Spare), Some(Limit::PendingSessions));
        assert_eq!(full(&pending, &two, WorkKind::New), None);
        pending.enter(&two, WorkKind::New);
        assert_eq!(full(&pending, &one, WorkKind::New), Some(Limit::PendingSessions));
        assert_eq!(pending.clients(), 3);
        for (tenant, kind) in [
            (&one, WorkKind::Spare),
            (&one, WorkKind::Spare),
            (&one, WorkKind::New),
            (&two, WorkKind::Reconnect),
            (&two, WorkKind::New),
        ] {
            assert!(!pending.is_empty());
            pending.leave(tenant, kind);
        }
        assert!(pending.is_empty() && pending.by_tenant.is_empty());
    }
}
