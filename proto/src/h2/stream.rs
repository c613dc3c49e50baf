//! The streams of one connection: their states, and the table that finds them by id.
//!
//! ```text
//!            both directions open                    local = we may send, remote = the peer may
//!          ┌──────────┴──────────┐
//!   END_STREAM sent        END_STREAM received       (half-closed, RFC 9113 §5.1)
//!          └──────────┬──────────┘
//!            gone from the table ── reset by us: the id is remembered, late frames are ignored
//!                                └─ otherwise: only the highest id is, late frames are a fault;
//!                                   of those that we answered ourselves, a late reset is counted
//! ```
//! "Idle" and "reserved" have no entry: an id above the highest is idle, nothing is ever reserved.

use std::collections::VecDeque;

use slab::Slab;

use super::window::{ReceiveWindow, SendWindow};
use crate::time::Time;

/// Names a stream of one connection: its slot, and its id, which is never used again, so that a
/// key kept too long finds nothing.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct StreamKey {
    slot: u32,
    id: u32,
}

impl StreamKey {
    /// A key that is no stream's on any connection: for callers that name by it what has none.
    #[must_use]
    pub fn outside(id: u32) -> Self {
        Self { slot: u32::MAX, id }
    }

    /// The stream's id on the wire.
    #[must_use]
    pub fn id(self) -> u32 {
        self.id
    }
}

/// How many content octets a message still has to carry (RFC 9113 §8.1.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Content {
    /// No content-length was given.
    Unknown,
    /// This many are missing.
    Left(u64),
}

/// One open stream.
#[derive(Clone, Debug)]
pub(super) struct Stream {
    /// The stream's number on the wire.
    pub(super) id: u32,
    /// The caller's number for the stream.
    pub(super) tag: u32,
    /// What we may send.
    pub(super) send: SendWindow,
    /// What the peer may send.
    pub(super) receive: ReceiveWindow,
    /// What the peer's message still owes.
    pub(super) content: Content,
    /// 1xx heads of this response so far.
    pub(super) informational: u8,
    /// We may still send.
    pub(super) local_open: bool,
    /// The peer may still send.
    pub(super) remote_open: bool,
    /// We sent our head (an informational one is none).
    pub(super) local_head: bool,
    /// The peer sent its head: what follows are trailers.
    pub(super) remote_head: bool,
    /// The request was a HEAD: its response has no content whatever it says.
    pub(super) head_request: bool,
    /// We answered it ourselves, and as soon as it came: see [`Conn::answered_by_us`].
    ///
    /// [`Conn::answered_by_us`]: super::Conn::answered_by_us
    pub(super) ours: bool,
    /// When it was opened.
    pub(super) opened: Time,
}

/// What an id means that has no stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Absent {
    /// We reset it lately: what still comes was sent before the peer knew.
    Reset,
    /// Closed some other way, long ago, or never opened.
    Unknown,
}

/// The open streams, by slot and by id.
#[derive(Debug, Default)]
pub(super) struct Table {
    slots: Slab<Stream>,
    index: Index,
}

impl Table {
    /// Open streams.
    #[must_use]
    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    /// Adds a stream. Its id is higher than all before.
    pub(super) fn insert(&mut self, stream: Stream) -> StreamKey {
        let id = stream.id;
        if self.slots.capacity() == 0 {
            // Most connections of a node have one stream at a time or rest.
            self.slots.reserve_exact(1);
        }
        let slot = self.slots.insert(stream) as u32;
        self.index.push(id, slot);
        StreamKey { slot, id }
    }

    /// The stream of a key.
    #[must_use]
    pub(super) fn get(&self, key: StreamKey) -> Option<&Stream> {
        self.slots.get(key.slot as usize).filter(|stream| stream.id == key.id)
    }

    /// The stream of a key.
    pub(super) fn get_mut(&mut self, key: StreamKey) -> Option<&mut Stream> {
        self.slots.get_mut(key.slot as usize).filter(|stream| stream.id == key.id)
    }

    /// The key of an id.
    ///
    /// # Errors
    /// If no stream with this id is open: what is known about it.
    pub(super) fn find(&self, id: u32) -> Result<StreamKey, Absent> {
        match self.index.find(id) {
            Some(RESET) => Err(Absent::Reset),
            Some(slot) if slot < RESET => Ok(StreamKey { slot, id }),
            _ => Err(Absent::Unknown),
        }
    }

    /// Takes a stream out; `reset_by_us` remembers its id, and so does an answer of ours.
    pub(super) fn remove(&mut self, key: StreamKey, reset_by_us: bool) -> Option<Stream> {
        self.get(key)?;
        let stream = self.slots.remove(key.slot as usize);
        let mark = match (reset_by_us, stream.ours) {
            (true, _) => RESET,
            (false, true) => OURS,
            (false, false) => GONE,
        };
        self.index.close(key.id, mark);
        if self.slots.is_empty() && self.slots.capacity() > IDLE_SLOTS {
            self.slots = Slab::new();
        }
        Some(stream)
    }

    /// Remembers an id that never got a stream as one we reset. It is higher than all before.
    pub(super) fn push_reset(&mut self, id: u32) {
        self.index.push(id, RESET);
        self.index.resets += 1;
        self.index.trim();
    }

    /// Whether the stream of this id has ended with an answer of ours. True only once.
    pub(super) fn forget_ours(&mut self, id: u32) -> bool {
        self.index.forget_ours(id)
    }

    /// Ids remembered as reset or answered by us.
    #[must_use]
    pub(super) fn resets(&self) -> usize {
        self.index.resets as usize
    }

    /// Forgets all remembered ids but the `keep` highest.
    pub(super) fn forget_resets(&mut self, keep: usize) {
        self.index.sweep(keep as u32);
    }

    /// The keys of all open streams, in no order.
    pub(super) fn keys(&self) -> impl Iterator<Item = StreamKey> {
        self.slots.iter().map(|(slot, stream)| StreamKey { slot: slot as u32, id: stream.id })
    }

    /// All open streams.
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Stream> {
        self.slots.iter_mut().map(|(_, stream)| stream)
    }
}

/// Slots kept when the last stream has ended; a burst's memory is given back.
const IDLE_SLOTS: usize = 16;

/// In an index entry, instead of a slot: reset by us, ended with an answer of ours, and removed.
const RESET: u32 = u32::MAX - 2;
const OURS: u32 = u32::MAX - 1;
const GONE: u32 = u32::MAX;

/// Entries over those in use before the index is swept, and kept when it is empty.
const SLACK: usize = 16;

/// Ids in rising order.
///
/// Ids only ever rise, so that a new one goes to the end. No hashing: nothing to attack and no
/// seed. Peers count up by two, which makes the distance from the first id the position; where
/// entries were swept out in between, it is an upper bound for a binary search.
#[derive(Debug, Default)]
struct Index {
    entries: VecDeque<(u32, u32)>,
    gone: u32,
    resets: u32,
}

impl Index {
    fn push(&mut self, id: u32, slot: u32) {
        debug_assert!(self.entries.back().is_none_or(|(last, _)| *last < id), "ids rise");
        if self.entries.capacity() == 0 {
            // The table takes its first entry in the same way: most connections have one stream.
            self.entries.reserve_exact(1);
        }
        self.entries.push_back((id, slot));
    }

    fn position(&self, id: u32) -> Option<usize> {
        let first = self.entries.front()?.0;
        let guess = (id.checked_sub(first)? / 2) as usize;
        let guess = guess.min(self.entries.len() - 1);
        if self.entries[guess].0 == id {
            return Some(guess);
        }
        self.entries.binary_search_by_key(&id, |(id, _)| *id).ok()
    }

    fn find(&self, id: u32) -> Option<u32> {
        self.position(id).map(|position| self.entries[position].1)
    }

    fn close(&mut self, id: u32, mark: u32) {
        let Some(position) = self.position(id) else { return };
        self.entries[position].1 = mark;
        if mark == GONE {
            self.gone += 1;
        } else {
            self.resets += 1;
        }
        self.trim();
    }

    fn forget_ours(&mut self, id: u32) -> bool {
        let Some(position) = self.position(id) else { return false };
        if self.entries[position].1 != OURS {
            return false;
        }
        self.resets -= 1;
        self.close(id, GONE);
        true
    }

    /// Drops removed entries from the front, and from anywhere once they are many.
    fn trim(&mut self) {
        while let Some((_, GONE)) = self.entries.front() {
            self.entries.pop_front();
            self.gone -= 1;
        }
        if self.gone as usize > self.entries.len() / 2 + SLACK {
            self.sweep(self.resets);
        } else if self.entries.is_empty() && self.entries.capacity() > SLACK {
            self.entries = VecDeque::new();
        }
    }

    /// Drops removed entries, and the lowest of the remembered ones until `keep` are left.
    fn sweep(&mut self, keep: u32) {
        let mut over = self.resets.saturating_sub(keep);
        self.resets -= over;
        self.entries.retain(|(_, slot)| match *slot {
            GONE => false,
            RESET | OURS if over > 0 => {
                over -= 1;
                false
            }
            _ => true,
        });
        self.gone = 0;
        let entries = self.entries.len();
        if self.entries.capacity() > 4 * entries + SLACK {
            self.entries.shrink_to(2 * entries);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::Time;
    use std::collections::BTreeMap;

    fn stream(id: u32) -> Stream {
        Stream {
            id,
            tag: id * 10,
            send: SendWindow::new(1),
            receive: ReceiveWindow::new(1, 1, Time::ZERO),
            content: Content::Unknown,
            informational: 0,
            local_open: true,
            remote_open: true,
            local_head: false,
            remote_head: false,
            head_request: false,
            ours: false,
            opened: Time::ZERO,
        }
    }

    #[test]
    fn a_stale_key_finds_nothing() {
        let mut table = Table::default();
        let one = table.insert(stream(1));
        assert_eq!(table.remove(one, false).unwrap().tag, 10);
        let three = table.insert(stream(3));
        assert_eq!(three.slot, one.slot);
        assert!(table.get(one).is_none() && table.get_mut(one).is_none());
        assert!(table.remove(one, false).is_none());
        assert_eq!(table.find(3), Ok(three));
        assert_eq!(table.find(1), Err(Absent::Unknown));
    }

    #[test]
    fn ids_we_reset_are_remembered_up_to_a_bound() {
        let mut table = Table::default();
        for n in 0..50 {
            let key = table.insert(stream(2 * n + 1));
            table.remove(key, n % 2 == 0);
        }
        assert_eq!(table.find(1), Err(Absent::Reset));
        assert_eq!(table.find(3), Err(Absent::Unknown));
        assert_eq!(table.resets(), 25);
        table.forget_resets(10);
        assert_eq!(table.resets(), 10);
        assert_eq!(table.find(1), Err(Absent::Unknown));
        assert_eq!(table.find(97), Err(Absent::Reset));
    }

    #[test]
    fn ids_that_we_answered_are_remembered_with_them_and_told_once() {
        let mut table = Table::default();
        for n in 0..50 {
            let ours = n % 2 == 0;
            let key = table.insert(Stream { ours, ..stream(2 * n + 1) });
            table.remove(key, n % 4 == 0);
        }
        assert_eq!(table.resets(), 25);
        assert_eq!(table.find(5), Err(Absent::Unknown), "late frames on it are a fault");
        assert!(!table.forget_ours(1), "reset by us");
        assert!(!table.forget_ours(3), "somebody else's answer");
        assert!(table.forget_ours(5) && !table.forget_ours(5));
        assert_eq!((table.resets(), table.find(1)), (24, Err(Absent::Reset)));
        table.forget_resets(3);
        assert!(!table.forget_ours(9) && table.forget_ours(97 - 4));
        assert_eq!(table.resets(), 2);
    }

    #[test]
    fn ids_that_never_got_a_stream_are_counted_too() {
        let mut table = Table::default();
        for n in 0..1000 {
            table.push_reset(2 * n + 1);
        }
        assert_eq!((table.len(), table.resets()), (0, 1000));
        table.forget_resets(100);
        assert_eq!((table.index.entries.len(), table.find(1999)), (100, Err(Absent::Reset)));
        assert_eq!(table.find(1797), Err(Absent::Unknown));
    }

    #[test]
    fn the_index_agrees_with_an_ordered_map_under_any_churn() {
        let mut table = Table::default();
        let mut model = BTreeMap::new();
        let (mut next, mut random) = (1u32, 12_345u32);
        for _ in 0..50_000 {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let dice = random >> 16;
            if dice % 2 == 0 && model.len() < 300 {
                next += 2 * (1 + dice / 2 % 3 / 2);
                model.insert(next, table.insert(stream(next)));
            } else if let Some((&id, &key)) = model.range(dice % next.max(1)..).next() {
                // Now and then the oldest ones stay for long.
                if id > 40 || dice % 64 == 1 {
                    table.remove(key, dice % 5 == 0).unwrap();
                    model.remove(&id);
                }
            }
            if dice % 97 == 0 {
                table.forget_resets(100);
            }
            let probe = dice % (next + 3);
            assert_eq!(table.find(probe).ok(), model.get(&probe).copied(), "id {probe}");
            assert!(table.index.entries.len() < 2 * (model.len() + table.resets() + 2 * SLACK));
        }
        for (id, key) in model {
            assert_eq!(table.find(id), Ok(key));
            table.remove(key, false);
        }
        table.forget_resets(0);
        assert_eq!((table.len(), table.index.entries.len()), (0, 0));
        assert!(table.slots.capacity() <= IDLE_SLOTS);
    }
}
