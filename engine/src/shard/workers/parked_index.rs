//! The parked tunnels of each function version, on all cores. When new work has waited for too long,
//! the oldest of them is closed, so that its worker can take that work.

use std::collections::{BTreeMap, HashMap};

use ringway_proto::time::Time;

use crate::control::local::{FunctionVersion, Ticket};

/// The parked tunnels of the function versions whose dispatch home a core is.
#[derive(Debug, Default)]
pub(super) struct ParkedIndex {
    versions: HashMap<FunctionVersion, BTreeMap<u64, Ticket>>,
    places: HashMap<Ticket, (FunctionVersion, u64)>,
    next: u64,
    /// When the queues are looked at next.
    due: Option<Time>,
}

impl ParkedIndex {
    pub(super) fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// Notes that a tunnel is parked. A tunnel that is noted again becomes the youngest.
    pub(super) fn enter(&mut self, ticket: Ticket, version: FunctionVersion) {
        self.leave(ticket);
        self.next += 1;
        self.versions.entry(version.clone()).or_default().insert(self.next, ticket);
        self.places.insert(ticket, (version, self.next));
    }

    /// Notes that a tunnel is not parked any more. Nothing happens if it was not.
    pub(super) fn leave(&mut self, ticket: Ticket) {
        if let Some((version, place)) = self.places.remove(&ticket)
            && let Some(of_version) = self.versions.get_mut(&version)
        {
            of_version.remove(&place);
            if of_version.is_empty() {
                self.versions.remove(&version);
            }
        }
    }

    pub(super) fn oldest(&self, version: &FunctionVersion) -> Option<Ticket> {
        self.versions.get(version)?.first_key_value().map(|(_, ticket)| *ticket)
    }

    /// All function versions of which a tunnel is parked, in an order that is the same each time.
    pub(super) fn versions(&self) -> Vec<FunctionVersion> {
        let mut versions: Vec<FunctionVersion> = self.versions.keys().cloned().collect();
        // The table has no order.
        versions.sort_unstable();
        versions
    }

    /// Plans a look at the queues. True if it is the earliest one planned: then a timer is needed.
    #[must_use]
    pub(super) fn arm(&mut self, due: Time) -> bool {
        let earlier = self.due.is_none_or(|armed| due < armed);
        if earlier {
            self.due = Some(due);
        }
        earlier
    }

    /// Whether the planned look at the queues is due. If so, none is planned any more.
    #[must_use]
    pub(super) fn take_due(&mut self, now: Time) -> bool {
        let due = self.due.is_some_and(|due| due <= now);
        if due {
            self.due = None;
        }
        due
    }

    /// Forgets what was parked on a core that has begun anew: its tunnels are gone.
    pub(super) fn forget_core(&mut self, core: u16) {
        let gone: Vec<Ticket> =
            self.places.keys().filter(|ticket| ticket.core == core).copied().collect();
        for ticket in gone {
            self.leave(ticket);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::shard::turn::rig::NODE;

    #[test]
    fn the_one_parked_first_is_the_oldest_on_whatever_core_it_is() {
        let version = |name: &str| -> FunctionVersion { ("f".into(), Arc::from(name)) };
        let ticket = |core, number| Ticket { node: NODE, core, number };
        let (one, two) = (version("1"), version("2"));
        let mut parked_index = ParkedIndex::default();
        parked_index.enter(ticket(1, 1), one.clone());
        parked_index.enter(ticket(0, 1), one.clone());
        parked_index.enter(ticket(0, 2), two.clone());
        assert_eq!(parked_index.oldest(&one), Some(ticket(1, 1)));
        // A tunnel that is noted once more is the youngest.
        parked_index.enter(ticket(1, 1), one.clone());
        assert_eq!(parked_index.oldest(&one), Some(ticket(0, 1)));
        parked_index.forget_core(0);
        assert_eq!(
            (parked_index.oldest(&one), parked_index.oldest(&two)),
            (Some(ticket(1, 1)), None)
        );
        parked_index.leave(ticket(1, 1));
        parked_index.leave(ticket(1, 1));
        assert!(parked_index.is_empty() && parked_index.versions.is_empty());
    }

    #[test]
    fn only_an_earlier_look_is_armed_and_it_comes_once() {
        let mut parked_index = ParkedIndex::default();
        assert!(
            parked_index.arm(Time(20)) && !parked_index.arm(Time(30)) && parked_index.arm(Time(10))
        );
        assert!(
            !parked_index.take_due(Time(9))
                && parked_index.take_due(Time(10))
                && !parked_index.take_due(Time(40))
        );
    }
}
