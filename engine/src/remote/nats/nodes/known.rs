//! What is known of other nodes: what their records said, whose is missing, and who is dead.
//!
//! A clock may jump. So no node is *dead* by a clock alone. What counts is how often its record was looked
//! for in vain, and each of those looks counts for two refreshes' time at most. A record that came and
//! was taken away again between two looks is not noticed; one that lived its whole life there is.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use ringway_proto::id::Node;
use ringway_proto::time::Time;

use super::record::{Pace, Record};

/// How long a record that was read is believed.
const BELIEVED_FOR: Duration = Duration::from_secs(5);
/// Nodes of which something is remembered, of each kind.
const MOST_KNOWN: usize = 4096;
/// Nodes whose missing records are looked for at each refresh.
const MOST_MISSED: usize = 64;

/// Whether a node is alive, as far as that is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in super::super) enum Liveness {
    /// The node is alive; this is its record.
    Live(Record),
    /// The node is dead: nothing will ever come of what it began.
    Dead,
    /// Not known: the node may be alive or dead.
    Unknown,
}

/// A look at a node's record, begun and not answered.
#[derive(Clone, Copy, Debug)]
pub(super) struct Look {
    pub(super) node: Node,
    /// The looks are numbered, because answers may come in another order.
    number: u64,
    asked: Time,
}

/// What a look has found.
#[derive(Debug)]
pub(super) enum Found {
    Record(Record),
    /// Something that is no record of this cluster.
    Unreadable,
    Nothing,
    /// There was no answer.
    Unsaid,
}

/// Who looks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Looker<'a> {
    /// The number of its own record's stay in the bucket; none if the record may be gone.
    pub(super) spell: Option<u64>,
    /// Where workers dial in to this very process.
    pub(super) worker: &'a str,
    pub(super) pace: Pace,
}

/// What is known of others.
#[derive(Debug, Default)]
pub(super) struct Known {
    looks: u64,
    believed: HashMap<Node, Belief>,
    missed: BTreeMap<Node, Missed>,
    dead: HashMap<Node, Proof>,
}

/// Why a node is dead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Proof {
    /// The address is ours now. This proof is for good.
    Address,
    /// The record was missing for long during this stay of our own. This proof lasts as long as the stay.
    Missing(u64),
}

/// What a look has told.
#[derive(Debug)]
struct Belief {
    number: u64,
    asked: Time,
    liveness: Liveness,
}

/// A record that is not there.
#[derive(Clone, Copy, Debug)]
struct Missed {
    /// How long the record was not there, at least.
    gone: Duration,
    /// When the record was looked for last, and when the answer came.
    asked: Time,
    last: Time,
    /// The stay of our own record during which all this was.
    spell: u64,
}

/// Whether `then` is less than `limit` ago. A time to come is not: the clock has jumped.
pub(super) fn is_within(then: Time, now: Time, limit: Duration) -> bool {
    then <= now && now - then < limit
}

impl Known {
    /// What is believed of a node, if it was looked for a moment ago.
    pub(super) fn believed(&self, node: Node, now: Time, pace: Pace) -> Option<&Liveness> {
        let belief = self.believed.get(&node)?;
        let fresh = is_within(belief.asked, now, BELIEVED_FOR.min(pace.refresh));
        fresh.then_some(&belief.liveness)
    }

    /// Begins a look at a node's record.
    pub(super) fn look(&mut self, node: Node, now: Time) -> Look {
        self.looks += 1;
        Look { node, number: self.looks, asked: now }
    }

    /// The nodes whose records are missing.
    pub(super) fn missed(&self) -> Vec<Node> {
        self.missed.keys().copied().collect()
    }

    /// Nothing that was read is believed any more.
    pub(super) fn doubt(&mut self) {
        self.believed.clear();
    }

    /// Draws the conclusions of a look.
    pub(super) fn looked(
        &mut self,
        look: Look,
        found: Found,
        looker: Looker<'_>,
        now: Time,
    ) -> Liveness {
        // The clock may have jumped back meanwhile. What was asked in a time to come would be believed
        // then.
        let look = Look { asked: look.asked.min(now), ..look };
        let later = self.believed.get(&look.node).filter(|belief| belief.number > look.number);
        if let Some(later) = later {
            return later.liveness.clone();
        }
        let liveness = self.conclude(look, found, looker, now);
        if self.believed.len() >= MOST_KNOWN {
            self.believed.retain(|_, belief| is_within(belief.asked, now, BELIEVED_FOR));
        }
        if self.believed.len() < MOST_KNOWN {
            let Look { node, number, asked } = look;
            self.believed.insert(node, Belief { number, asked, liveness: liveness.clone() });
        }
        liveness
    }

    fn conclude(&mut self, look: Look, found: Found, looker: Looker<'_>, now: Time) -> Liveness {
        let node = look.node;
        match (found, looker.spell) {
            (Found::Record(record), _) if record.worker != looker.worker => {
                self.missed.remove(&node);
                self.dead.remove(&node);
                Liveness::Live(record)
            }
            // A node whose record cannot be read may well live.
            (Found::Unreadable, _) => {
                self.missed.remove(&node);
                Liveness::Unknown
            }
            // Without a record of our own, we may be the one who has no connection.
            (Found::Unsaid, _) | (_, None) => Liveness::Unknown,
            // The node's address is ours now.
            (Found::Record(_), Some(_)) => self.bury(node, Proof::Address),
            (Found::Nothing, Some(spell)) if self.is_buried(node, spell) => Liveness::Dead,
            (Found::Nothing, Some(spell)) => {
                let gone = self.miss(look, spell, looker.pace, now);
                let long = gone.is_some_and(|gone| gone >= looker.pace.dead_after());
                if long { self.bury(node, Proof::Missing(spell)) } else { Liveness::Unknown }
            }
        }
    }

    fn is_buried(&self, node: Node, spell: u64) -> bool {
        let proof = self.dead.get(&node);
        proof.is_some_and(|proof| [Proof::Address, Proof::Missing(spell)].contains(proof))
    }

    fn bury(&mut self, node: Node, proof: Proof) -> Liveness {
        self.missed.remove(&node);
        if self.dead.len() >= MOST_KNOWN {
            // A node that is asked about again is found dead again.
            self.dead.clear();
        }
        self.dead.insert(node, proof);
        Liveness::Dead
    }

    /// Notes that a record is not there, and says for how long it was not. None if no more can be
    /// missed.
    fn miss(&mut self, look: Look, spell: u64, pace: Pace, now: Time) -> Option<Duration> {
        let room = self.missed.len() < MOST_MISSED || self.missed.contains_key(&look.node);
        if !room {
            return None;
        }
        let fresh = Missed { gone: Duration::ZERO, asked: look.asked, last: now, spell };
        let missed = self.missed.entry(look.node).or_insert(fresh);
        // Between two looks that are a life apart, from the question of the first to the answer of the
        // second, a record may have lived its whole life. And while our own record was gone, nobody
        // knows what was there.
        let unbroken = missed.spell == spell && is_within(missed.asked, now, pace.ttl);
        let more = look.asked.since(missed.last).min(2 * pace.refresh);
        let gone = if unbroken { missed.gone + more } else { Duration::ZERO };
        *missed = Missed { gone, ..fresh };
        Some(gone)
    }

    /// The records that are believed.
    #[cfg(test)]
    pub(super) fn table(&self) -> impl Iterator<Item = (Node, &Record)> {
        self.believed.iter().filter_map(|(node, belief)| match &belief.liveness {
            Liveness::Live(record) => Some((*node, record)),
            Liveness::Dead | Liveness::Unknown => None,
        })
    }
}
