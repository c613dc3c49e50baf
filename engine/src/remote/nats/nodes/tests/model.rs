//! A key-value bucket as JetStream keeps it, and what its records may never suffer.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use ringway_proto::id::Node;

use super::super::claims::{Ask, Heard};
use super::super::record::{MOST_RECORD, claimed_run};

/// Microseconds in a second.
pub(super) const SECOND: u64 = 1_000_000;
/// How long a record lives, and how often it is refreshed.
pub(super) const TTL: u64 = 15 * SECOND;
pub(super) const REFRESH: u64 = 5 * SECOND;

/// A record that is there.
#[derive(Clone, Debug)]
struct Entry {
    bytes: Bytes,
    revision: u64,
    /// When it was put, by the server's clock and in truth.
    stamped: i64,
    put: u64,
}

/// Who asks: a run, whose clock has jumped at these times.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asker<'a> {
    pub(super) run: u64,
    pub(super) jumps: &'a [u64],
}

/// The bucket.
#[derive(Debug, Default)]
pub(super) struct Model {
    entries: BTreeMap<Node, Entry>,
    /// The latest record of a node that has lived for as long as records do: when it was put, and
    /// when it was gone.
    lived: HashMap<Node, (u64, u64)>,
    revision: u64,
    /// How far the server's clock is off.
    pub(super) clock: i64,
}

impl Model {
    fn stamp(&self, at: u64) -> i64 {
        at as i64 + self.clock
    }

    /// Lets go of what has lived for as long as records do.
    pub(super) fn expire(&mut self, at: u64) {
        let over = self.stamp(at) - TTL as i64;
        let lived = &mut self.lived;
        self.entries.retain(|node, entry| {
            let lives = entry.stamped > over;
            if !lives && at - entry.put >= TTL {
                lived.insert(*node, (entry.put, at));
            }
            lives
        });
    }

    /// The server has lost all of its memory.
    pub(super) fn empty(&mut self) {
        self.entries.clear();
        self.revision = 0;
    }

    /// Whether a record of a node has lived its whole life between these two times.
    pub(super) fn lived_between(&self, node: Node, from: u64, to: u64) -> bool {
        self.lived.get(&node).is_some_and(|(put, gone)| from <= *put && *gone <= to)
    }

    /// Whose record it is, if it is one.
    pub(super) fn run_at(&self, node: Node) -> Option<u64> {
        claimed_run(&self.entries.get(&node)?.bytes)
    }

    /// Somebody who is no gateway writes what it likes.
    pub(super) fn scribble(&mut self, at: u64, node: Node, bytes: Bytes) {
        if bytes.len() <= MOST_RECORD {
            self.put(at, node, bytes);
        }
    }

    /// What is there.
    pub(super) fn bytes(&self, node: Node) -> Option<&Bytes> {
        self.entries.get(&node).map(|entry| &entry.bytes)
    }

    fn put(&mut self, at: u64, node: Node, bytes: Bytes) -> u64 {
        self.revision += 1;
        let revision = self.revision;
        let stamped = self.stamp(at);
        self.entries.insert(node, Entry { bytes, revision, stamped, put: at });
        revision
    }

    /// Does what a run asks. `lives`: whether a run is one of a gateway that lives.
    pub(super) fn ask(
        &mut self,
        at: u64,
        by: Asker<'_>,
        ask: &Ask,
        lives: impl Fn(u64) -> bool,
    ) -> Heard {
        self.expire(at);
        let (node, over) = match ask {
            Ask::Read(node) => {
                let found = self.entries.get(node);
                return Heard::Found(found.map(|entry| (entry.bytes.clone(), entry.revision)));
            }
            Ask::Put { node, over, .. } => (*node, *over),
            Ask::Delete { node, revision } => (*node, Some(*revision)),
        };
        let there = self.entries.get(&node);
        if there.map(|entry| entry.revision) != over {
            return Heard::Refused;
        }
        if let Some(Entry { bytes, put, .. }) = there
            && let Some(run) = claimed_run(bytes)
        {
            // A server whose clock is right takes away a record that nobody has refreshed for so long.
            // So nobody is robbed of that one. A gateway that watches the record may be wrong by a
            // refresh at each jump of its own clock.
            let jumps = by.jumps.iter().filter(|jump| *jump >= put).count() as u64;
            let kept = run == by.run || !lives(run) || at - put + jumps * REFRESH >= TTL;
            assert!(kept, "{} takes {run}'s record away, who lives: {ask:?}", by.run);
        }
        match ask {
            Ask::Put { bytes, .. } => Heard::Done(self.put(at, node, bytes.clone())),
            Ask::Delete { .. } | Ask::Read(_) => {
                self.entries.remove(&node);
                Heard::Done(over.unwrap_or_default())
            }
        }
    }
}

/// All chance of a run (SplitMix64).
pub(super) struct Seed(pub(super) u64);

impl Seed {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(super) fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    pub(super) fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    pub(super) fn pick<T: Copy>(&mut self, of: &[T]) -> Option<T> {
        (!of.is_empty()).then(|| of[self.below(of.len() as u64) as usize])
    }
}
