//! Where the encoder's entries are once they are many: an index by hash over name and value. And what
//! was seen of late.
//!
//! Entries are known by the lower 16 bits of their number in order of insertion; the table has at
//! most 128 at a time, so these tell them apart.

use super::TABLE_SIZE;
use crate::fields::{FIELD_OVERHEAD, Token};

/// Hashes of a field's name and of the whole field.
#[derive(Clone, Copy)]
pub(super) struct Key {
    name: u64,
    field: u64,
}

impl Key {
    /// Names with a token are known by it.
    #[inline]
    pub(super) fn of(token: Token, name: &[u8], value: &[u8]) -> Self {
        let name = match token {
            Token::Other | Token::UnknownPseudo => sample(name),
            known => mix(known as u64, 1),
        };
        Self { name, field: mix(name, sample(value)) }
    }
}

/// Most slots of the index: twice the entries that a table can hold, a power of two.
const SLOTS: usize = 2 * TABLE_SIZE / FIELD_OVERHEAD;
const _: () = assert!(SLOTS <= 1 << 15, "a slot's tag begins with its home");

/// Slots of the first entries, of which there are already some when an index is made.
const FIRST_SLOTS: usize = 64;

/// Places of the filter, a power of two.
const FILTER: usize = 32;

/// Where in the table a field is.
pub(super) struct Index {
    /// Open addressing with linear probing; 0 is empty, else [`Index::slot`]. A power of two, at
    /// most half of them taken.
    slots: Box<[u32]>,
    taken: usize,
}

impl Default for Index {
    fn default() -> Self {
        let slots = vec![0; FIRST_SLOTS].into_boxed_slice();
        Self { slots, taken: 0 }
    }
}

impl Index {
    /// **Shape**: a bit that says taken, 15 bits of the hash, 16 bits of the entry's number.
    #[inline]
    fn slot(hash: u64, number: u16) -> u32 {
        1 << 31 | (hash as u32 & 0x7fff) << 16 | u32::from(number)
    }

    #[inline]
    fn same_tag(slot: u32, hash: u64) -> bool {
        slot >> 16 == Self::slot(hash, 0) >> 16
    }

    /// A place in the slots, whatever the number.
    #[inline]
    fn wrap(&self, place: usize) -> usize {
        place & (self.slots.len() - 1)
    }

    #[inline]
    fn home(&self, hash: u64) -> usize {
        self.wrap(hash as usize & 0x7fff)
    }

    fn home_of(&self, slot: u32) -> usize {
        self.wrap((slot >> 16) as usize & 0x7fff)
    }

    /// Puts a slot into the first free place from its home on.
    fn place(&mut self, slot: u32) {
        let mut at = self.home_of(slot);
        while self.slots[at] != 0 {
            at = self.wrap(at + 1);
        }
        self.slots[at] = slot;
    }

    /// Twice as many slots, and everything in its place.
    #[cold]
    fn grow(&mut self) {
        let wider = vec![0; (self.slots.len() * 2).min(SLOTS)].into_boxed_slice();
        for slot in std::mem::replace(&mut self.slots, wider) {
            if slot != 0 {
                self.place(slot);
            }
        }
    }

    /// Numbers of the entries whose fields hash like this one, to be compared with it.
    #[inline]
    pub(super) fn alike(&self, key: Key) -> impl Iterator<Item = u16> {
        // Ends at an empty slot: at most half of them are taken.
        let home = self.home(key.field);
        (0..self.slots.len())
            .map(move |step| self.slots[self.wrap(home + step)])
            .take_while(|&slot| slot != 0)
            .filter(move |&slot| Self::same_tag(slot, key.field))
            .map(|slot| slot as u16)
    }

    /// Notes the entry with this number.
    pub(super) fn add(&mut self, key: Key, number: u16) {
        if self.taken * 2 >= self.slots.len() {
            self.grow();
        }
        self.taken += 1;
        self.place(Self::slot(key.field, number));
    }

    /// Forgets the entry with this number and closes the gap, so that no probe ends too early.
    pub(super) fn remove(&mut self, key: Key, number: u16) {
        let slot = Self::slot(key.field, number);
        let mut gap = self.home(key.field);
        while self.slots[gap] != slot {
            if self.slots[gap] == 0 {
                debug_assert!(false, "every entry has a slot");
                return;
            }
            gap = self.wrap(gap + 1);
        }
        let mut at = self.wrap(gap + 1);
        while self.slots[at] != 0 {
            let from_home = self.wrap(at.wrapping_sub(self.home_of(self.slots[at])));
            if from_home >= self.wrap(at.wrapping_sub(gap)) {
                self.slots[gap] = self.slots[at];
                gap = at;
            }
            at = self.wrap(at + 1);
        }
        self.slots[gap] = 0;
        self.taken -= 1;
    }
}

/// What was seen of late of fields that get a place in the table only if they come again.
#[derive(Default)]
pub(super) struct Steady {
    /// Fields that were refused a place, by hash.
    seen: [u16; FILTER],
    /// Hashes of names met, one bit each. Full, it only makes more names wait for their second
    /// appearance.
    names: [u64; 4],
}

impl Steady {
    /// Whether the name is new, or the field was refused a place not long ago; notes both.
    pub(super) fn is_steady(&mut self, key: Key) -> bool {
        let (word, bit) = ((key.name >> 6) as usize % 4, 1 << (key.name % 64));
        let new_name = self.names[word] & bit == 0;
        self.names[word] |= bit;
        let tag = (key.field >> 32) as u16 | 1;
        let place = &mut self.seen[(key.field >> 16) as usize % FILTER];
        let again = *place == tag;
        *place = tag;
        new_name || again
    }
}

/// A hash of the length and of up to 48 octets: the ends and the middle.
///
/// Not all octets: a value may be long, and what collides is told apart by comparison
/// (`MAX_ALIKE` entries at most).
#[inline]
fn sample(text: &[u8]) -> u64 {
    let len = text.len();
    let seed = len as u64;
    let (Some(head), Some(tail)) = (text.first_chunk::<8>(), text.last_chunk::<8>()) else {
        return sample_short(text, seed);
    };
    let ends = mix(u64::from_le_bytes(*head) ^ seed, u64::from_le_bytes(*tail));
    if len <= 16 {
        return ends;
    }
    let inner = sample_pair(text, 8, len - 16);
    if len <= 32 {
        return mix(ends, inner);
    }
    mix(ends, inner ^ sample_pair(text, len / 2 - 8, len / 2).rotate_left(32))
}

#[inline]
fn sample_pair(text: &[u8], one: usize, two: usize) -> u64 {
    let at = |start: usize| {
        text[start..].first_chunk::<8>().map_or(0, |chunk| u64::from_le_bytes(*chunk))
    };
    mix(at(one), at(two))
}

#[inline]
fn sample_short(text: &[u8], seed: u64) -> u64 {
    if let (Some(head), Some(tail)) = (text.first_chunk::<4>(), text.last_chunk::<4>()) {
        let both =
            u64::from(u32::from_le_bytes(*head)) << 32 | u64::from(u32::from_le_bytes(*tail));
        return mix(both, seed);
    }
    mix(text.iter().fold(0, |all, &octet| all << 8 | u64::from(octet)), seed)
}

/// Folds the 128-bit product of the two, each offset so that zero does not swallow the other.
#[inline]
fn mix(one: u64, two: u64) -> u64 {
    let product = u128::from(one ^ 0x9e37_79b9_7f4a_7c15) * u128::from(two ^ 0xd1b5_4a32_d192_ed03);
    product as u64 ^ (product >> 64) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(field: u64) -> Key {
        Key { name: 0, field }
    }

    #[test]
    fn entries_that_share_a_home_are_found_until_they_are_removed() {
        // Homes at the end of the first slots, so that probes wrap; removal in every order.
        let hashes = [62u64, 62, 63, 62 | 1 << 12, 0, 63, 1, 62];
        for (turn, stride) in (0..8).flat_map(|turn| [1, 3, 5, 7].map(|stride| (turn, stride))) {
            let mut index = Index::default();
            for (number, &hash) in hashes.iter().enumerate() {
                index.add(key(hash), number as u16);
            }
            let mut left: Vec<usize> = (0..8).collect();
            let found = |index: &Index, number: usize| {
                index.alike(key(hashes[number])).any(|other| other as usize == number)
            };
            for step in 0..8 {
                assert!(left.iter().all(|&number| found(&index, number)));
                let gone = (turn + step * stride) % 8;
                index.remove(key(hashes[gone]), gone as u16);
                left.retain(|&number| number != gone);
                assert!(!found(&index, gone));
            }
            assert!(index.slots.iter().all(|&slot| slot == 0));
        }
    }

    #[test]
    fn a_full_table_of_the_smallest_entries_is_indexed() {
        let mut index = Index::default();
        let most = TABLE_SIZE / FIELD_OVERHEAD;
        for number in 0..most {
            index.add(key(number as u64 * 3), number as u16);
        }
        assert_eq!(index.slots.len(), SLOTS);
        let found =
            |number: usize| index.alike(key(number as u64 * 3)).any(|n| n as usize == number);
        assert!((0..most).all(found));
    }

    #[test]
    fn a_hash_sees_length_ends_and_middle() {
        let plain = [b'v'; 100];
        for len in 0..100 {
            assert_ne!(sample(&plain[..len]), sample(&plain[..len + 1]), "{len}");
            for place in [0, len / 2, len.saturating_sub(1)] {
                let mut other = plain;
                other[place] = b'w';
                assert!(len == 0 || sample(&plain[..len]) != sample(&other[..len]), "{len}");
            }
        }
        let mut other = plain;
        other[20] = b'w';
        assert_eq!(sample(&plain), sample(&other), "between them it does not look");
    }

    #[test]
    fn a_value_is_steady_if_its_name_is_new_or_it_came_before() {
        let mut steady = Steady::default();
        let key = |name, value| Key::of(Token::Other, name, value);
        assert!(steady.is_steady(key(b"x-a", b"1")));
        assert!(!steady.is_steady(key(b"x-a", b"2")));
        assert!(!steady.is_steady(key(b"x-a", b"3")));
        assert!(steady.is_steady(key(b"x-a", b"2")));
        assert!(steady.is_steady(key(b"x-b", b"2")));
    }
}
