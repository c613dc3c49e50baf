//! The dynamic table (RFC 7541 §2.3.2, §4): entries in a ring, their octets in one flat buffer.

use std::collections::VecDeque;

use crate::fields::{FIELD_OVERHEAD, Token};

/// The octets' memory grows by a multiple of this.
const GRAIN: usize = 32;

/// Largest table: offsets in a buffer of twice its size have 16 bits.
const MAX_SIZE: usize = 1 << 14;

/// A table row: a field with what was found out about it when it was inserted.
#[derive(Clone, Copy)]
pub(super) struct Row<'a> {
    pub(super) token: Token,
    pub(super) name: &'a [u8],
    pub(super) value: &'a [u8],
    pub(super) name_valid: bool,
    pub(super) value_valid: bool,
}

impl Row<'_> {
    /// Octets that count against the table's size (RFC 7541 §4.1).
    pub(super) fn size(&self) -> usize {
        self.name.len() + self.value.len() + FIELD_OVERHEAD
    }
}

#[derive(Clone, Copy)]
struct Entry {
    /// Where the name begins in `octets`, unless the token tells it; the value follows it.
    start: u16,
    name_len: u16,
    value_len: u16,
    token: Token,
    name_valid: bool,
    value_valid: bool,
}

/// One direction's dynamic table. Empty, it owns no heap memory.
///
/// **Shape**: `octets` holds the strings of the entries in order of insertion, each entry whole.
/// Evicted strings stay as dead octets at the front until the room is needed; then the live ones
/// move down. The buffer is at most twice the table's size, so each octet moves at most once on
/// average.
pub(super) struct DynamicTable {
    octets: Vec<u8>,
    /// Oldest first.
    entries: VecDeque<Entry>,
    /// Both are within [`MAX_SIZE`].
    size: u16,
    max_size: u16,
    /// Entries ever inserted, wrapping.
    inserted: u32,
    generation: u64,
}

impl DynamicTable {
    pub(super) fn new(max_size: usize) -> Self {
        Self {
            octets: Vec::new(),
            entries: VecDeque::new(),
            size: 0,
            max_size: max_size.min(MAX_SIZE) as u16,
            inserted: 0,
            generation: 0,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn size(&self) -> usize {
        self.size.into()
    }

    pub(super) fn max_size(&self) -> usize {
        self.max_size.into()
    }

    /// Changes with every change of the content.
    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    /// Number that the next entry will have.
    pub(super) fn inserted(&self) -> u32 {
        self.inserted
    }

    /// The entry inserted `age` entries before the newest.
    #[inline]
    pub(super) fn get(&self, age: usize) -> Option<Row<'_>> {
        let place = self.entries.len().checked_sub(age + 1)?;
        self.entries.get(place).map(|entry| self.row(entry))
    }

    /// How many entries were inserted after the one that is exactly this field.
    #[inline]
    pub(super) fn find(&self, token: Token, name: &[u8], value: &[u8]) -> Option<usize> {
        // Few entries agree in these by chance: mostly one string is compared.
        let like = (token, name.len(), value.len());
        self.entries.iter().rev().position(|entry| {
            let found = (entry.token, usize::from(entry.name_len), usize::from(entry.value_len));
            found == like && {
                let row = self.row(entry);
                row.value == value && row.name == name
            }
        })
    }

    /// The entry to be evicted next.
    pub(super) fn oldest(&self) -> Option<Row<'_>> {
        self.entries.front().map(|entry| self.row(entry))
    }

    #[inline]
    fn row(&self, entry: &Entry) -> Row<'_> {
        let start = entry.start as usize;
        let known = entry.token.name();
        let kept = if known.is_some() { 0 } else { usize::from(entry.name_len) };
        let both = &self.octets[start..start + kept + usize::from(entry.value_len)];
        let (name, value) = both.split_at(kept);
        Row {
            token: entry.token,
            name: known.unwrap_or(name),
            value,
            name_valid: entry.name_valid,
            value_valid: entry.value_valid,
        }
    }

    /// Changes the maximum. The caller evicts while the table is [`Self::over`] it.
    pub(super) fn set_max_size(&mut self, max_size: usize) {
        self.max_size = max_size.min(MAX_SIZE) as u16;
        self.generation += 1;
    }

    /// Whether the table with `extra` more octets would exceed its maximum.
    pub(super) fn over(&self, extra: usize) -> bool {
        self.size() + extra > self.max_size()
    }

    /// Evicts the oldest entry; false if there is none.
    pub(super) fn evict(&mut self) -> bool {
        let Some(entry) = self.entries.pop_front() else { return false };
        self.size -= entry.name_len + entry.value_len + FIELD_OVERHEAD as u16;
        self.generation += 1;
        if self.entries.is_empty() {
            self.octets.clear();
            if self.max_size == 0 {
                // A peer that wants no table does not have to pay for one, nor have we.
                self.octets = Vec::new();
                self.entries = VecDeque::new();
            }
        }
        true
    }

    /// Evicts until `extra` more octets fit, or nothing is left (RFC 7541 §4.3, §4.4).
    pub(super) fn evict_for(&mut self, extra: usize) {
        while self.over(extra) && self.evict() {}
    }

    /// Inserts a row that fits: the caller has evicted.
    pub(super) fn insert(&mut self, row: Row<'_>) {
        debug_assert!(!self.over(row.size()), "the caller evicts before it inserts");
        let name = if row.token.name().is_some() { b"" } else { row.name };
        self.make_room(name.len() + row.value.len());
        let start = self.octets.len() as u16;
        if self.entries.len() == self.entries.capacity() {
            self.entries.reserve_exact((self.entries.len() / 2).max(4));
        }
        self.octets.extend_from_slice(name);
        self.octets.extend_from_slice(row.value);
        self.entries.push_back(Entry {
            start,
            name_len: row.name.len() as u16,
            value_len: row.value.len() as u16,
            token: row.token,
            name_valid: row.name_valid,
            value_valid: row.value_valid,
        });
        self.size += row.size() as u16;
        self.inserted = self.inserted.wrapping_add(1);
        self.generation += 1;
    }

    /// Makes the buffer take `need` more octets: drops the dead ones if they are the larger part,
    /// else grows.
    fn make_room(&mut self, need: usize) {
        let len = self.octets.len();
        if len + need <= self.octets.capacity() {
            return;
        }
        let dead = self.entries.front().map_or(len, |oldest| oldest.start as usize);
        if dead >= need && dead * 2 >= len {
            self.octets.copy_within(dead.., 0);
            self.octets.truncate(len - dead);
            for entry in &mut self.entries {
                entry.start -= dead as u16;
            }
            return;
        }
        // Live octets and `need` fit the table, so were `len + need` above twice its size, the
        // dead ones would have been the larger part: the buffer stays within that.
        // Most connections' heads fill some hundred octets and no more: that is not worth doubling.
        let target =
            (len + need).next_multiple_of(GRAIN).max(len + len / 4).min(2 * self.max_size());
        self.octets.reserve_exact(target.max(len + need) - len);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row<'a>(name: &'a [u8], value: &'a [u8]) -> Row<'a> {
        Row { token: Token::of(name), name, value, name_valid: true, value_valid: true }
    }

    fn add(table: &mut DynamicTable, name: &[u8], value: &[u8]) {
        let row = row(name, value);
        table.evict_for(row.size());
        if !table.over(row.size()) {
            table.insert(row);
        }
    }

    #[test]
    fn strings_survive_a_long_churn_in_bounded_memory() {
        let mut table = DynamicTable::new(512);
        for round in 0..10_000usize {
            let value = vec![(round % 251) as u8; round * 7 % 300];
            add(&mut table, b"some-name", &value);
            assert!(table.size() <= 512 && table.octets.capacity() <= 1024);
            for age in 0..table.len() {
                let expected = round - age;
                let got = table.get(age).unwrap();
                assert_eq!(got.value.len(), expected * 7 % 300);
                assert!(got.value.iter().all(|&b| b == (expected % 251) as u8));
                assert_eq!(got.name, b"some-name");
            }
        }
    }

    #[test]
    fn an_entry_larger_than_the_table_empties_it() {
        let mut table = DynamicTable::new(100);
        add(&mut table, b"a", b"1");
        add(&mut table, b"b", b"2");
        assert_eq!((table.len(), table.size()), (2, 68));
        let before = table.generation();
        add(&mut table, b"c", &[b'x'; 68]);
        assert_eq!((table.len(), table.size()), (0, 0));
        assert_ne!(table.generation(), before);
        add(&mut table, b"c", &[b'x'; 67]);
        assert_eq!((table.len(), table.size()), (1, 100));
    }

    #[test]
    fn a_table_of_size_zero_gives_its_memory_back() {
        let mut table = DynamicTable::new(4096);
        add(&mut table, b"name", b"value");
        table.set_max_size(0);
        table.evict_for(0);
        assert_eq!((table.len(), table.octets.capacity(), table.entries.capacity()), (0, 0, 0));
    }
}
