//! Header blocks that repeat: a warm client sends the same octets for every call.
//!
//! A block that changed nothing in the decoder's table means the same list as long as the table
//! stays (RFC 7541 §3.2: decoding depends on octets and table alone). So the list of such a block
//! is kept under a number, and a repetition is recognised by comparing octets: nothing is decoded
//! or checked again, and the caller can keep what it made of the list under the same number.

use super::HeadKind;
use crate::fields::Fields;

/// Names a list that a connection keeps; never used again for another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ListId(u32);

/// Lists a connection keeps: a call's head, a response's head and trailers, and one to spare.
const LISTS: usize = 4;

/// The longest block worth keeping: what repeats is mostly indexed, an octet a field.
const BLOCK_BYTES: usize = 160;

/// The largest list worth keeping, as [`Fields::size`] counts.
const LIST_BYTES: usize = 1536;

#[derive(Debug)]
struct Entry {
    id: ListId,
    kind: HeadKind,
    generation: u64,
    block: Vec<u8>,
    list: Fields,
}

/// What a connection remembers of blocks; empty until one repeats.
#[derive(Debug, Default)]
pub(super) struct Memo {
    entries: Vec<Entry>,
    last: u32,
    /// The entry replaced next.
    oldest: u8,
    /// Blocks seen lately that are not kept: only what is seen again is.
    candidates: [u32; LISTS],
    newest: u8,
}

impl Memo {
    /// The list of an earlier block with the same octets, of the same kind, under the same table.
    pub(super) fn find(&self, block: &[u8], generation: u64, kind: HeadKind) -> Option<ListId> {
        let same = |entry: &&Entry| {
            entry.generation == generation && entry.kind == kind && entry.block == block
        };
        self.entries.iter().find(same).map(|entry| entry.id)
    }

    /// A block was decoded under `before` and left the table as `after`. Kept if it may repeat.
    pub(super) fn note(
        &mut self,
        block: &[u8],
        (before, after): (u64, u64),
        kind: HeadKind,
        list: &Fields,
    ) -> Option<ListId> {
        if before != after || block.len() > BLOCK_BYTES || list.size() > LIST_BYTES {
            return None;
        }
        let sign = sign_of(block, after);
        if !self.candidates.contains(&sign) {
            self.newest = (self.newest + 1) % LISTS as u8;
            self.candidates[usize::from(self.newest)] = sign;
            return None;
        }
        self.last = self.last.wrapping_add(1);
        let id = ListId(self.last);
        if self.entries.len() < LISTS {
            let (block, list) = (block.to_vec(), list.clone());
            self.entries.push(Entry { id, kind, generation: after, block, list });
            return Some(id);
        }
        let slot = usize::from(self.oldest);
        self.oldest = (self.oldest + 1) % LISTS as u8;
        let entry = self.entries.get_mut(slot)?;
        (entry.id, entry.kind, entry.generation) = (id, kind, after);
        entry.block.clear();
        entry.block.extend_from_slice(block);
        entry.list.copy_from(list);
        Some(id)
    }

    /// The list with this number, if it is still kept.
    pub(super) fn list(&self, id: ListId) -> Option<&Fields> {
        self.entries.iter().find(|entry| entry.id == id).map(|entry| &entry.list)
    }
}

/// Tells blocks apart well enough to see one twice; nothing is decided by it.
fn sign_of(block: &[u8], generation: u64) -> u32 {
    let start = generation.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ block.len() as u64;
    let sign = block.iter().fold(start, |sign, &octet| {
        (sign ^ u64::from(octet)).wrapping_mul(0x0100_0000_01b3).rotate_left(5)
    });
    (sign ^ sign >> 32) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fields::Field;

    fn list(value: &[u8]) -> Fields {
        let mut fields = Fields::new();
        fields.push(Field::new(b"x-name", value));
        fields
    }

    #[test]
    fn what_is_seen_again_is_kept_even_if_blocks_alternate() {
        let mut memo = Memo::default();
        let (head, trailers) = (HeadKind::Response, HeadKind::Trailers);
        assert_eq!(memo.note(b"head", (3, 3), head, &list(b"h")), None);
        assert_eq!(memo.note(b"trailers", (3, 3), trailers, &list(b"t")), None);
        let id = memo.note(b"head", (3, 3), head, &list(b"h")).unwrap();
        let other = memo.note(b"trailers", (3, 3), trailers, &list(b"t")).unwrap();
        assert_ne!(id, other);
        assert_eq!(memo.find(b"head", 3, head), Some(id));
        assert_eq!(memo.list(id).unwrap().get(0).unwrap().value, b"h");
        assert_eq!(memo.find(b"head", 3, trailers), None, "of another kind");
        assert_eq!(memo.find(b"head", 4, head), None, "under another table");
        assert_eq!(memo.find(b"hea", 3, head), None);
    }

    #[test]
    fn what_changed_the_table_or_is_large_is_not_kept() {
        let mut memo = Memo::default();
        for _ in 0..4 {
            assert_eq!(memo.note(b"b", (1, 2), HeadKind::Request, &list(b"v")), None);
            let long = [0; BLOCK_BYTES + 1];
            assert_eq!(memo.note(&long, (2, 2), HeadKind::Request, &list(b"v")), None);
            let large = list(&[b'v'; LIST_BYTES]);
            assert_eq!(memo.note(b"c", (2, 2), HeadKind::Request, &large), None);
        }
    }

    #[test]
    fn the_oldest_makes_room_and_numbers_are_never_used_again() {
        let mut memo = Memo::default();
        let mut ids = Vec::new();
        for n in 0..10_u8 {
            memo.note(&[n], (0, 0), HeadKind::Request, &list(&[n]));
            ids.push(memo.note(&[n], (0, 0), HeadKind::Request, &list(&[n])).unwrap());
        }
        assert!(ids[..6].iter().all(|id| memo.list(*id).is_none()));
        assert!(ids[6..].iter().all(|id| memo.list(*id).is_some()));
    }
}
