//! A slab whose keys carry a generation, so that a late fact finds nobody instead of a stranger.

use slab::Slab;

/// Names one entry for its whole life and none after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Key {
    /// The index in the table.
    pub slot: u32,
    /// Which of the slot's entries, one after the other.
    pub generation: u32,
}

/// Slots kept when the last entry has gone; a burst's memory is given back.
const IDLE_SLOTS: usize = 1024;

/// A table with generations.
#[derive(Debug)]
pub(crate) struct Table<T> {
    entries: Slab<(u32, T)>,
    next_generation: u32,
}

impl<T> Table<T> {
    /// An empty table whose first key has generation `base`.
    pub(crate) fn new(base: u32) -> Self {
        Self { entries: Slab::new(), next_generation: base }
    }

    pub(crate) fn insert(&mut self, entry: T) -> Key {
        self.next_generation = self.next_generation.wrapping_add(1);
        let slot = self.entries.insert((self.next_generation, entry)) as u32;
        Key { slot, generation: self.next_generation }
    }

    pub(crate) fn get(&self, key: Key) -> Option<&T> {
        self.entries.get(key.slot as usize).filter(|e| e.0 == key.generation).map(|e| &e.1)
    }

    pub(crate) fn get_mut(&mut self, key: Key) -> Option<&mut T> {
        let entry = self.entries.get_mut(key.slot as usize)?;
        (entry.0 == key.generation).then_some(&mut entry.1)
    }

    /// The entry in a slot, whatever its generation: for slots that cannot be stale.
    pub(crate) fn at_mut(&mut self, slot: u32) -> Option<&mut T> {
        self.entries.get_mut(slot as usize).map(|e| &mut e.1)
    }

    /// As [`Self::at_mut`], read-only.
    pub(crate) fn at(&self, slot: u32) -> Option<&T> {
        self.entries.get(slot as usize).map(|e| &e.1)
    }

    pub(crate) fn values_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.entries.iter_mut().map(|(_, entry)| &mut entry.1)
    }

    /// The key of the entry in a slot.
    pub(crate) fn key_at(&self, slot: u32) -> Option<Key> {
        self.entries.get(slot as usize).map(|e| Key { slot, generation: e.0 })
    }

    pub(crate) fn remove(&mut self, key: Key) -> Option<T> {
        self.get(key)?;
        let (_, entry) = self.entries.remove(key.slot as usize);
        if self.entries.is_empty() && self.entries.capacity() > IDLE_SLOTS {
            self.entries = Slab::new();
        }
        Some(entry)
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// How many slots there are, free ones included.
    pub(crate) fn slots(&self) -> u32 {
        self.entries.capacity() as u32
    }

    /// The entries in these slots.
    pub(crate) fn range(&self, slots: std::ops::Range<u32>) -> impl Iterator<Item = (Key, &T)> {
        slots.filter_map(|slot| {
            let (generation, entry) = self.entries.get(slot as usize)?;
            Some((Key { slot, generation: *generation }, entry))
        })
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (Key, &T)> {
        self.entries
            .iter()
            .map(|(slot, (generation, e))| (Key { slot: slot as u32, generation: *generation }, e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_outlives_its_entry_and_finds_nobody() {
        let mut table = Table::new(7);
        let first = table.insert("a");
        assert_eq!(table.remove(first), Some("a"));
        let second = table.insert("b");
        assert_eq!(first.slot, second.slot);
        assert!(table.get(first).is_none() && table.remove(first).is_none());
        assert_eq!((table.get(second), table.len()), (Some(&"b"), 1));
        let third = table.insert("c");
        let of = |slots| table.range(slots).map(|(key, _)| key).collect::<Vec<_>>();
        assert_eq!((of(0..table.slots()), of(1..9)), (vec![second, third], vec![third]));
    }
}
