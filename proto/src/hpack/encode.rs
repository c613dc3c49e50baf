//! Fields to header block: what is worth a place in the table, and in which form it is written.

use super::index::{Index, Key, Steady};
use super::table::{DynamicTable, Row};
use super::{TABLE_SIZE, huffman, integer, static_table};
use crate::fields::{FIELD_OVERHEAD, Field, Token};

/// Longer values are not indexed: each would push out a good part of the table.
const MAX_INDEXED_VALUE: usize = 1024;

/// Entries with the hash of a field that are compared with it.
///
/// More than one is chance, more than a few are made: a peer can choose values that hash alike,
/// and would have each of its fields compared with the whole table.
const MAX_ALIKE: usize = 8;

/// Entries, the newest first, that a name is looked for in when its value is new.
const MAX_NAMES: usize = 32;

/// Entries up to which a field is compared with all of them: most connections have no more, and an
/// index costs as much memory as their entries.
const UNINDEXED: usize = 16;

/// The writing half of a connection's HPACK state.
///
/// Names and values go to the table when they are likely to come again; what is not indexed is
/// written without Huffman code, which costs the peer and us more time than it saves bytes.
pub struct Encoder {
    table: DynamicTable,
    /// Made when there are more than [`UNINDEXED`] entries.
    index: Option<Box<Index>>,
    /// Made when there is a first field that may be [`Keep::IfSteady`].
    steady: Option<Box<Steady>>,
    /// The smallest maximum since the last block, if it changed (RFC 7541 §4.2).
    resized: Option<u16>,
}

/// Whether a field goes to the table.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Keep {
    /// The values of this name come again.
    Always,
    /// The first value of a name does, and any value that was seen before: so constant metadata is
    /// indexed at once, and what changes with each request does not flush the table.
    IfSteady,
    Never,
}

impl Keep {
    fn of(field: &Field<'_>) -> Self {
        match field.token {
            // A time left, a length, a date, a message: seldom the same twice. A cookie is set once.
            Token::ContentLength
            | Token::Date
            | Token::GrpcMessage
            | Token::GrpcTimeout
            | Token::SetCookie => Self::Never,
            Token::Other
            | Token::UnknownPseudo
            | Token::Forwarded
            | Token::SecWebsocketProtocol
            | Token::XForwardedFor
            | Token::XRequestId => Self::IfSteady,
            _ => Self::Always,
        }
    }
}

impl Default for Encoder {
    fn default() -> Self {
        Self::new()
    }
}

impl Encoder {
    /// An encoder with a table of [`TABLE_SIZE`] octets, as every peer must expect.
    #[must_use]
    pub fn new() -> Self {
        let table = DynamicTable::new(TABLE_SIZE);
        Self { table, index: None, steady: None, resized: None }
    }

    /// Obeys the peer's SETTINGS_HEADER_TABLE_SIZE, but never uses more than [`TABLE_SIZE`].
    pub fn set_max_table(&mut self, peer_setting: usize) {
        let max_size = peer_setting.min(TABLE_SIZE);
        if max_size == self.table.max_size() {
            return;
        }
        let smallest = self.resized.map_or(max_size, |before| max_size.min(before.into()));
        self.resized = Some(smallest as u16);
        self.table.set_max_size(max_size);
        self.evict_for(0);
        if max_size == 0 {
            (self.index, self.steady) = (None, None);
        }
    }

    /// Begins a header block: tells the peer of table sizes it does not know yet.
    pub fn begin(&mut self, out: &mut Vec<u8>) {
        let Some(smallest) = self.resized.take().map(usize::from) else { return };
        // RFC 7541 §4.2: the smallest maximum in between, then the final one.
        if smallest < self.table.max_size() {
            integer::write(smallest, 5, 0x20, out);
        }
        integer::write(self.table.max_size(), 5, 0x20, out);
    }

    /// Appends one field. Blocks begin with [`Self::begin`].
    pub fn field(&mut self, field: Field<'_>, out: &mut Vec<u8>) {
        debug_assert_eq!(field.token, Token::of(field.name), "a token is that of the name");
        if field.never_indexed {
            // RFC 7541 §6.2.3, §7.1.3: never as an index, not even to an entry that is there.
            return self.plain(&field, 0x10, out);
        }
        if let Some(index) = static_table::find(&field) {
            return integer::write(index, 7, 0x80, out);
        }
        let keep = self.keep(&field);
        if keep == Keep::Never {
            return self.plain(&field, 0, out);
        }
        if let Some(age) = self.find(&field) {
            return integer::write(static_table::LEN + 1 + age, 7, 0x80, out);
        }
        if keep == Keep::Always || self.is_steady(&field) {
            self.inserted(&field, out);
        } else {
            self.plain(&field, 0, out);
        }
    }

    /// Changes whenever the dynamic table does.
    ///
    /// A block whose encoding left the generation as it was may be sent again, octet for octet, as
    /// long as the generation stays.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.table.generation()
    }

    /// Size of the dynamic table as of RFC 7541 §4.1.
    #[must_use]
    pub fn table_size(&self) -> usize {
        self.table.size()
    }

    #[inline]
    fn keep(&self, field: &Field<'_>) -> Keep {
        let size = field.name.len() + field.value.len() + FIELD_OVERHEAD;
        if field.value.len() > MAX_INDEXED_VALUE || size > self.table.max_size() / 4 * 3 {
            return Keep::Never;
        }
        Keep::of(field)
    }

    /// The age of the entry that is exactly this field.
    #[inline]
    fn find(&self, field: &Field<'_>) -> Option<usize> {
        let Some(index) = self.index.as_deref() else {
            return self.table.find(field.token, field.name, field.value);
        };
        let alike = index.alike(key_of(field)).take(MAX_ALIKE);
        alike.map(|number| self.age(number)).find(|age| {
            let row = self.table.get(*age);
            row.is_some_and(|row| same_name(&row, field) && row.value == field.value)
        })
    }

    fn is_steady(&mut self, field: &Field<'_>) -> bool {
        self.steady.get_or_insert_default().is_steady(key_of(field))
    }

    /// The index of an entry with this name.
    fn find_name(&self, field: &Field<'_>) -> Option<usize> {
        if let Some(index) = static_table::find_name(field) {
            return Some(index);
        }
        let named = |age: &usize| self.table.get(*age).is_some_and(|row| same_name(&row, field));
        let age = (0..self.table.len().min(MAX_NAMES)).find(named)?;
        Some(static_table::LEN + 1 + age)
    }

    /// How many entries were inserted after the one with this number.
    ///
    /// Numbers are kept to 16 bits, and there are at most 128 entries.
    #[inline]
    fn age(&self, number: u16) -> usize {
        (self.table.inserted() as u16).wrapping_sub(number).wrapping_sub(1) as usize
    }

    /// A literal that leaves the table alone.
    fn plain(&self, field: &Field<'_>, pattern: u8, out: &mut Vec<u8>) {
        match self.find_name(field) {
            Some(index) => integer::write(index, 4, pattern, out),
            None => {
                out.push(pattern);
                integer::write(field.name.len(), 7, 0, out);
                out.extend_from_slice(field.name);
            }
        }
        integer::write(field.value.len(), 7, 0, out);
        out.extend_from_slice(field.value);
    }

    /// A literal that both sides add to their tables.
    #[inline(never)]
    fn inserted(&mut self, field: &Field<'_>, out: &mut Vec<u8>) {
        match self.find_name(field) {
            Some(index) => integer::write(index, 6, 0x40, out),
            None => {
                out.push(0x40);
                short_string(field.name, out);
            }
        }
        short_string(field.value, out);
        let row = Row {
            token: field.token,
            name: field.name,
            value: field.value,
            name_valid: true,
            value_valid: true,
        };
        self.evict_for(row.size());
        let number = self.table.inserted() as u16;
        self.table.insert(row);
        match self.index.as_deref_mut() {
            Some(index) => index.add(key_of(field), number),
            None if self.table.len() > UNINDEXED => self.build_index(),
            None => {}
        }
    }

    #[cold]
    fn build_index(&mut self) {
        let mut index = Box::<Index>::default();
        for age in 0..self.table.len() {
            if let Some(row) = self.table.get(age) {
                let number = self.table.inserted().wrapping_sub(age as u32 + 1);
                index.add(Key::of(row.token, row.name, row.value), number as u16);
            }
        }
        self.index = Some(index);
    }

    /// Evicts until `extra` more octets fit, and forgets what was evicted.
    fn evict_for(&mut self, extra: usize) {
        while self.table.over(extra) {
            let Some(oldest) = self.table.oldest() else { return };
            if let Some(index) = self.index.as_deref_mut() {
                let number = self.table.inserted().wrapping_sub(self.table.len() as u32);
                let key = Key::of(oldest.token, oldest.name, oldest.value);
                index.remove(key, number as u16);
            }
            self.table.evict();
        }
    }
}

#[inline]
fn key_of(field: &Field<'_>) -> Key {
    Key::of(field.token, field.name, field.value)
}

#[inline]
fn same_name(row: &Row<'_>, field: &Field<'_>) -> bool {
    let known = !matches!(field.token, Token::Other | Token::UnknownPseudo);
    row.token == field.token && (known || row.name == field.name)
}

/// A string in the shorter of its two forms.
fn short_string(text: &[u8], out: &mut Vec<u8>) {
    let len = huffman::encoded_len(text);
    if len < text.len() {
        integer::write(len, 7, 0x80, out);
        huffman::encode(text, out);
    } else {
        integer::write(text.len(), 7, 0, out);
        out.extend_from_slice(text);
    }
}
