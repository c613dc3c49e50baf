//! What a component is given with each call: the border, the instant, and where to leave what it
//! cannot do itself.

use ringway_proto::date::HttpDate;
use ringway_proto::time::Time;

use super::facts::{Edge, Fact, ForRelay, ForSessions, ForWorkers};
use super::settings::ShardSettings;
use super::timer::{Due, Timers};
use crate::border::{Border, ConnId};
use crate::log::{Line, Lines};
use crate::metrics::{Limit, ShardMetrics};
use crate::post::CorePost;

/// How many facts one after the other may follow from one. A fact of rank n leaves facts of rank
/// n - 1; one of rank 0 that leaves more is a fault of ours.
pub(crate) const RANKS: u8 = 48;

/// How far the whole core is on its way out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Draining {
    /// Open streams may finish.
    Open,
    /// The limit has passed, or all was over before it.
    Over,
}

/// What was left by components and not yet given to anyone.
#[derive(Debug)]
pub(crate) struct Left {
    /// Each with its rank: how many may follow from it, one after the other. Those of the call under
    /// way are the last, in order.
    pub(crate) facts: Vec<(u8, Fact)>,
    /// The rank of what is left now.
    pub(crate) rank: u8,
    pub(crate) edges: Vec<Edge>,
    /// For the log: what an edge says there is said by its reader.
    pub(crate) lines: Lines,
}

impl Default for Left {
    fn default() -> Self {
        Self { facts: Vec::new(), rank: RANKS, edges: Vec::new(), lines: Lines::default() }
    }
}

/// One call of a component.
pub(crate) struct Turn<'a> {
    pub(crate) border: &'a mut Border,
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
        self.left.facts.push((self.left.rank, fact));
    }

    /// How many facts were left so far.
    pub(crate) fn mark(&self) -> usize {
        self.left.facts.len()
    }

    /// Leaves a fact behind what the relay is told since `mark`, and before what others are told:
    /// these may undo it at once.
    pub(crate) fn relay_first(&mut self, mark: usize, fact: ForRelay) {
        let since = self.left.facts.split_off(mark);
        let (relay, others): (Vec<_>, Vec<_>) =
            since.into_iter().partition(|(_, fact)| matches!(fact, Fact::Relay(_)));
        self.left.facts.extend(relay);
        self.relay(fact);
        self.left.facts.extend(others);
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

    /// Says something to a core. If that is this one, it is heard within the same turn.
    pub(crate) fn send(&mut self, to: u16, post: CorePost) {
        self.fact(Fact::Send { to, post });
    }

    pub(crate) fn edge(&mut self, edge: Edge) {
        self.left.edges.push(edge);
    }

    /// Something for the log that is no edge of a session.
    pub(crate) fn line(&mut self, line: Line) {
        self.left.lines.push(line);
    }

    pub(crate) fn limit_hit(&mut self, limit: Limit) {
        self.metrics.limit_hit(limit);
    }

    pub(crate) fn arm(&mut self, at: Time, due: Due) {
        self.timers.arm(at, due);
    }

    /// What the time is, for an answer.
    pub(crate) fn date(&self) -> HttpDate {
        self.settings.date(self.now)
    }

    pub(crate) fn put(&mut self, conn: ConnId, bytes: &[u8]) {
        self.border.put(conn, bytes);
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

    /// The node that every rig is of, and one that none is.
    pub(crate) const NODE: Node = Node::new(1, 1).unwrap();
    pub(crate) const OTHER_NODE: Node = Node::new(1, 2).unwrap();

    /// A component's surroundings.
    pub(crate) struct Rig {
        pub(crate) border: Border,
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
                seed: [3; 32],
                generation: 0,
                unanswered: 0,
                advertise: "http://gateway:10086".into(),
                unix_micros_at_zero: 0,
                version: "test",
                commit: "test",
            };
            let mut border = Border::new(Pool::new(4, 4096));
            border.now = Time(1_000_000);
            Self {
                border,
                settings,
                metrics: ShardMetrics::default(),
                timers: Timers::default(),
                draining: None,
                left: Left::default(),
            }
        }

        pub(crate) fn turn(&mut self) -> Turn<'_> {
            Turn {
                now: self.border.now,
                border: &mut self.border,
                settings: &self.settings,
                metrics: &mut self.metrics,
                timers: &mut self.timers,
                draining: self.draining,
                left: &mut self.left,
            }
        }

        /// What was left since the last call.
        pub(crate) fn facts(&mut self) -> Vec<Fact> {
            self.left.facts.drain(..).map(|(_, fact)| fact).collect()
        }
    }
}
