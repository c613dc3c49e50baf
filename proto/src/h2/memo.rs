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
    /// The block last seen that is not kept: only what is seen twice is.
    candidate: u64,
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
        if std::mem::replace(&mut self.candidate, sign) != sign {
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
fn sign_of(block: &[u8], generation: u64) -> u64 {
    let start = generation.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ block.len() as u64;
    block.iter().fold(start, |sign, &octet| {
        (sign ^ u64::from(octet)).wrapping_mul(0x0100_0000_01b3).rotate_left(5)
    })
}
