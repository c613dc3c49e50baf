//! What a component is given with each call: the network interface, the instant, and where to leave
//! what it cannot do itself.

use ringway_proto::date::HttpDate;
use ringway_proto::time::Time;

use super::facts::{Edge, Fact, ForRelay, ForSessions, ForWorkers};
use super::settings::ShardSettings;
use super::table::Key;
use super::timer::{Due, Timers};
use crate::log::{Line, Lines};
use crate::message::CoreMessage;
use crate::metrics::{Limit, ShardMetrics};
use crate::net::{ConnId, Net};

/// The longest chain of facts that may follow from one. A fact of rank `n` leaves facts of rank
/// `n - 1`. A fact of rank 0 is a fault of ours: it waits for the next turn and is counted.
const RANKS: u8 = 48;

/// How far the whole core is on its way out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Draining {
    /// Open streams may finish.
    Open,
    /// The limit has passed, or all was over before it.
    Over,
}

/// Facts that components have left and that were not given to anyone yet.
#[derive(Debug)]
pub(crate) struct Left {
    /// Each fact with its rank: the longest chain that may follow from it. From index `new` on they
    /// are those of the call under way, in order. Before that index are those that wait for it, the
    /// next one last.
    facts: Vec<(u8, Fact)>,
    new: usize,
    /// The rank that a fact gets which is left now.
    rank: u8,
    /// Facts that wait for the next turn, in order.
    put_off: Vec<Fact>,
    pub(crate) edges: Vec<Edge>,
    /// Lines for the log, except those of edges, which `edges` writes.
    pub(crate) lines: Lines,
}

impl Default for Left {
    fn default() -> Self {
        Self {
            facts: Vec::new(),
            new: 0,
            rank: RANKS,
            put_off: Vec::new(),
            edges: Vec::new(),
            lines: Lines::default(),
        }
    }
}

impl Left {
    /// Whether no fact has to be given to anyone before the next turn.
    #[inline]
    pub(crate) fn is_quiet(&self) -> bool {
        self.facts.is_empty() && self.edges.is_empty()
    }

    pub(crate) fn has_facts(&self) -> bool {
        !self.facts.is_empty()
    }

    /// Whether a fact waits for the next turn.
    #[inline]
    pub(crate) fn waits(&self) -> bool {
        !self.put_off.is_empty()
    }

    #[inline]
    pub(crate) fn leave(&mut self, fact: Fact) {
        self.facts.push((self.rank, fact));
    }

    /// The next fact. Facts left since the last call come before earlier ones. None: all were given
    /// to somebody, or the rest was put off.
    pub(crate) fn next(&mut self, metrics: &mut ShardMetrics) -> Option<Fact> {
        if self.facts.len() > self.new + 1 {
            self.facts[self.new..].reverse();
        }
        let next = self.facts.pop();
        self.new = self.facts.len();
        match next {
            Some((0, fact)) => self.put_off(fact, metrics),
            Some((rank, fact)) => {
                self.rank = rank - 1;
                return Some(fact);
            }
            None => {}
        }
        self.rank = RANKS;
        None
    }

    /// Ranks make every fact's consequences end. If a chain is too long, the core sees to its
    /// connections before it goes on with the rest.
    #[cold]
    fn put_off(&mut self, fact: Fact, metrics: &mut ShardMetrics) {
        let before = self.put_off.len();
        self.put_off.push(fact);
        self.put_off.extend(self.facts.drain(..).rev().map(|(_, fact)| fact));
        self.new = 0;
        metrics.facts_put_off += (self.put_off.len() - before) as u64;
    }

    /// For tests: no fact may follow any more.
    #[cfg(test)]
    pub(crate) fn exhaust(&mut self) {
        self.rank = 0;
    }

    /// Leaves the facts anew that were put off.
    #[cold]
    pub(crate) fn take_up(&mut self) {
        for fact in std::mem::take(&mut self.put_off) {
            self.leave(fact);
        }
    }
}

/// One call of a component.
pub(crate) struct Turn<'a> {
    pub(crate) net: &'a mut Net,
    pub(crate) now: Time,
    pub(crate) settings: &'a ShardSettings,
    pub(crate) metrics: &'a mut ShardMetrics,
    pub(crate) timers: &'a mut Timers,
    /// How far the core is on its way out, if it is.
    pub(crate) draining: Option<Draining>,
    pub(crate) left: &'a mut Left,
}

impl Turn<'_> {
    pub(crate) fn fact(&mut self, fact: Fact) {
        self.left.leave(fact);
    }

    /// The exchange that is over, if that is the only fact left. The caller handles it at once, as
    /// the loop would.
    #[inline]
    pub(crate) fn take_over(&mut self) -> Option<Key> {
        match self.left.facts[..] {
            [(_, Fact::Relay(ForRelay::Over { exchange }))] => {
                self.left.facts.clear();
                Some(exchange)
            }
            _ => None,
        }
    }

    /// How many facts were left so far.
    pub(crate) fn mark(&self) -> usize {
        self.left.facts.len()
    }

    /// Leaves a fact behind the facts for the relay since `mark`, and before those for other
    /// components, which may undo it at once.
    pub(crate) fn relay_first(&mut self, mark: usize, fact: ForRelay) {
        self.relay(fact);
        // The order in each of the two parts stays.
        self.left.facts[mark..].sort_by_key(|(_, fact)| !matches!(fact, Fact::Relay(_)));
    }

    pub(crate) fn relay(&mut self, fact: ForRelay) {
        self.fact(Fact::Relay(fact));
    }

    pub(crate) fn sessions(&mut self, fact: ForSessions) {
        self.fact(Fact::Sessions(fact));
    }

    pub(crate) fn workers(&mut self, fact: ForWorkers) {
        self.fact(Fact::Workers(fact));
    }

    /// Sends a message to a core. If that is this core, it is heard within the same turn.
    pub(crate) fn send(&mut self, to: u16, message: CoreMessage) {
        self.fact(Fact::Send { to, message });
    }

    pub(crate) fn edge(&mut self, edge: Edge) {
        self.left.edges.push(edge);
    }

    /// Writes a line to the log that is no edge of a session.
    pub(crate) fn line(&mut self, line: Line) {
        self.left.lines.push(line);
    }

    pub(crate) fn limit_hit(&mut self, limit: Limit) {
        self.metrics.limit_hit(limit);
    }

    pub(crate) fn arm(&mut self, at: Time, due: Due) {
        self.timers.arm(at, due);
    }

    /// The date field of an answer.
    pub(crate) fn date(&self) -> HttpDate {
        self.settings.date(self.now)
    }

    pub(crate) fn put(&mut self, conn: ConnId, bytes: &[u8]) {
        self.net.put(conn, bytes);
    }
}

/// For unit tests of components: what a shard has around them.
#[cfg(test)]
pub(crate) mod rig {
    use std::sync::Arc;

    use ringway_proto::id::Node;

    use super::*;
    use crate::config::Config;
    use crate::control::port::Plane;
    use crate::pool::Pool;

    /// The node of every rig, and another node.
    pub(crate) const NODE: Node = Node::new(1, 1).unwrap();
    pub(crate) const OTHER_NODE: Node = Node::new(1, 2).unwrap();

    /// A component's surroundings.
    pub(crate) struct Rig {
        pub(crate) net: Net,
        pub(crate) settings: ShardSettings,
        pub(crate) metrics: ShardMetrics,
        pub(crate) timers: Timers,
        pub(crate) draining: Option<Draining>,
        pub(crate) left: Left,
    }

    impl Rig {
        /// Core `core` of `cores`.
        pub(crate) fn new(core: u16, cores: u16) -> Self {
            Self::with(core, cores, Config::dev())
        }

        pub(crate) fn with(core: u16, cores: u16, config: Config) -> Self {
            let settings = ShardSettings {
                config: Arc::new(config),
                plane: Plane::Local,
                dispatch: Plane::Local,
                core,
                cores,
                node: NODE,
                secret: [7; 16],
                keys: None,
                seed: [3; 32],
                generation: 0,
                unanswered: 0,
                advertise: "http://gateway:10086".into(),
                unix_micros_at_zero: 0,
                version: "test",
                commit: "test",
            };
            let mut net = Net::new(Pool::new(4, 4096));
            net.now = Time(1_000_000);
            Self {
                net,
                settings,
                metrics: ShardMetrics::default(),
                timers: Timers::default(),
                draining: None,
                left: Left::default(),
            }
        }

        pub(crate) fn turn(&mut self) -> Turn<'_> {
            Turn {
                now: self.net.now,
                net: &mut self.net,
                settings: &self.settings,
                metrics: &mut self.metrics,
                timers: &mut self.timers,
                draining: self.draining,
                left: &mut self.left,
            }
        }

        /// The facts left since the last call.
        pub(crate) fn facts(&mut self) -> Vec<Fact> {
            self.left.facts.drain(..).map(|(_, fact)| fact).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn undial(slot: u32) -> Fact {
        Fact::Undial { conn: ConnId { slot, generation: 0 } }
    }

    fn slot(fact: Option<Fact>) -> Option<u32> {
        match fact? {
            Fact::Undial { conn } => Some(conn.slot),
            other => panic!("{other:?} was left by nobody"),
        }
    }

    #[test]
    fn what_follows_comes_before_what_was_left_earlier() {
        let (mut left, mut metrics) = (Left::default(), ShardMetrics::default());
        left.leave(undial(1));
        left.leave(undial(2));
        assert_eq!(slot(left.next(&mut metrics)), Some(1));
        left.leave(undial(11));
        left.leave(undial(12));
        let rest: Vec<_> = std::iter::from_fn(|| slot(left.next(&mut metrics))).collect();
        assert_eq!(rest, [11, 12, 2]);
        assert!(left.is_quiet() && !left.waits());
    }

    #[test]
    fn facts_that_lead_to_each_other_without_end_wait_for_the_next_turn() {
        let (mut left, mut metrics) = (Left::default(), ShardMetrics::default());
        for turn in 1..3 {
            if turn == 1 {
                left.leave(undial(0));
                left.leave(undial(7));
            } else {
                left.take_up();
            }
            let mut given = 0;
            while let Some(fact) = left.next(&mut metrics) {
                assert_eq!(slot(Some(fact)), Some(0), "the other one waits for its end");
                left.leave(undial(0));
                given += 1;
            }
            assert_eq!(given, u32::from(RANKS));
            assert!(left.is_quiet() && left.waits());
            assert_eq!(metrics.facts_put_off, 2 * turn);
        }
        left.take_up();
        let rest: Vec<_> = std::iter::from_fn(|| slot(left.next(&mut metrics))).collect();
        assert_eq!((rest, left.waits()), (vec![0, 7], false));
    }

    /// A fact is written for most calls, so it has to fit one cache line.
    #[test]
    fn facts_are_small() {
        assert!(size_of::<(u8, Fact)>() <= 64, "{}", size_of::<(u8, Fact)>());
    }
}
