//! The parked attachments of a core, the oldest first.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::super::table::Key;

/// The place of an attachment among the parked ones of its core. The oldest one is first.
pub(super) type ParkedOrder = u64;

/// The parked attachments of one core.
#[derive(Debug, Default)]
pub(super) struct ParkedIndex {
    places: BTreeMap<ParkedOrder, Key>,
    by_tenant: HashMap<Arc<str>, BTreeSet<ParkedOrder>>,
    next: ParkedOrder,
}

impl ParkedIndex {
    pub(super) fn enter(&mut self, key: Key, tenant: &Arc<str>) -> ParkedOrder {
        self.next += 1;
        self.places.insert(self.next, key);
        self.by_tenant.entry(tenant.clone()).or_default().insert(self.next);
        self.next
    }

    pub(super) fn leave(&mut self, place: ParkedOrder, tenant: &Arc<str>) {
        self.places.remove(&place);
        if let Some(places) = self.by_tenant.get_mut(tenant) {
            places.remove(&place);
            if places.is_empty() {
                self.by_tenant.remove(tenant);
            }
        }
    }

    pub(super) fn len(&self) -> usize {
        self.places.len()
    }

    /// The number of parked attachments of the tenant that has most.
    pub(super) fn fullest(&self) -> usize {
        self.by_tenant.values().map(BTreeSet::len).max().unwrap_or(0)
    }

    pub(super) fn of_tenant(&self, tenant: &Arc<str>) -> usize {
        self.by_tenant.get(tenant).map_or(0, BTreeSet::len)
    }

    pub(super) fn oldest(&self) -> Option<Key> {
        self.places.first_key_value().map(|(_, key)| *key)
    }

    pub(super) fn oldest_of(&self, tenant: &Arc<str>) -> Option<Key> {
        let place = self.by_tenant.get(tenant)?.first()?;
        self.places.get(place).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_left_in_any_order() {
        let key = |slot| Key { slot, generation: 1 };
        let (one, two): (Arc<str>, Arc<str>) = ("one".into(), "two".into());
        let mut parked_index = ParkedIndex::default();
        let first = parked_index.enter(key(1), &one);
        parked_index.enter(key(2), &two);
        let third = parked_index.enter(key(3), &one);
        assert_eq!(
            (parked_index.len(), parked_index.fullest(), parked_index.of_tenant(&two)),
            (3, 2, 1)
        );
        parked_index.leave(first, &one);
        assert_eq!(
            (parked_index.oldest(), parked_index.oldest_of(&one)),
            (Some(key(2)), Some(key(3)))
        );
        parked_index.leave(third, &one);
        assert_eq!((parked_index.oldest_of(&one), parked_index.of_tenant(&one)), (None, 0));
    }
}
