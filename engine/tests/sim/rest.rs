//! What must hold when everybody has left.

use ringway::metrics::{CONNECT_RESULTS, ResumeOutcome, ResumeWay, ShardMetrics, SpareOutcome};

use super::core::Core;
use super::world::World;

/// What a run came to, for the sum over many.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tally {
    pub(crate) exchanges: usize,
    pub(crate) answered: usize,
    /// Of them over HTTP/1, and streams of bytes.
    pub(crate) http1: usize,
    pub(crate) upgraded: usize,
    pub(crate) refused: usize,
    pub(crate) reset: usize,
    pub(crate) tunnels: usize,
    pub(crate) rejected: usize,
    pub(crate) reconnects: usize,
    pub(crate) bytes: usize,
    pub(crate) starved: usize,
    pub(crate) relieved: usize,
    pub(crate) blocked: usize,
    pub(crate) crossings: usize,
    /// Lost clients that came back to a tunnel that was kept, and tunnels that stood in for others.
    pub(crate) resumed: usize,
    pub(crate) kept_by_spares: usize,
    pub(crate) replaced: usize,
}

impl Tally {
    pub(crate) fn add(&mut self, other: &Self) {
        self.exchanges += other.exchanges;
        self.answered += other.answered;
        self.http1 += other.http1;
        self.upgraded += other.upgraded;
        self.refused += other.refused;
        self.reset += other.reset;
        self.tunnels += other.tunnels;
        self.rejected += other.rejected;
        self.reconnects += other.reconnects;
        self.bytes += other.bytes;
        self.starved += other.starved;
        self.relieved += other.relieved;
        self.blocked += other.blocked;
        self.crossings += other.crossings;
        self.resumed += other.resumed;
        self.kept_by_spares += other.kept_by_spares;
        self.replaced += other.replaced;
    }
}

impl Tally {
    /// A simulator in which nothing happens finds nothing: the fixed seeds together meet everything.
    pub(crate) fn expect_variety(&self) {
        let enough = [
            (self.answered, 5_000),
            (self.http1, 1_000),
            (self.upgraded, 50),
            (self.refused, 2_000),
            (self.reset, 2_000),
            (self.tunnels, 4_000),
            (self.rejected, 500),
            (self.reconnects, 100),
            (self.starved, 1_000),
            (self.relieved, 20),
            (self.blocked, 10_000),
            (self.crossings, 10_000),
            (self.resumed, 20),
            (self.kept_by_spares, 20),
            (self.replaced, 20),
        ];
        assert!(enough.iter().all(|(is, least)| is >= least), "too little happens: {self:?}");
    }
}

impl World {
    /// Fails if anything is left, or counted wrongly.
    pub(crate) fn check_rest(&self) -> Tally {
        let mut tally = Tally::default();
        for (number, exchange) in self.ledger.exchanges.iter().enumerate() {
            let outcome = exchange.outcome;
            let answered = outcome == Some("answered");
            tally.http1 += usize::from(answered && exchange.http1);
            tally.upgraded += usize::from(answered && exchange.upgrade && exchange.down.sent > 0);
            assert!(outcome.is_some(), "exchange {number} has no outcome");
            match outcome {
                Some("answered") => tally.answered += 1,
                Some("answered by the gateway") => tally.refused += 1,
                _ => tally.reset += 1,
            }
        }
        let mut accepted = 0;
        // A tunnel may end on another core than it began on.
        let of_all = |count: fn(&ShardMetrics) -> u64| {
            self.cores.iter().map(|core| count(core.shard.metrics())).sum::<u64>()
        };
        let opened = of_all(|metrics| metrics.worker_connections_opened);
        let closed = of_all(|metrics| metrics.worker_connections_closed.iter().sum());
        assert!(
            closed == opened || self.ledger.crashed,
            "not one close reason an attachment: {opened} {closed}"
        );
        for (number, core) in self.cores.iter().enumerate() {
            check_core(number, core);
            let metrics = core.shard.metrics();
            let at = CONNECT_RESULTS.iter().position(|result| *result == "accepted");
            accepted += metrics.connects[at.expect("a result")] as usize;
            let resumed = |way| metrics.resumes.of(way, ResumeOutcome::Ok) as usize;
            tally.resumed += resumed(ResumeWay::Memory) + resumed(ResumeWay::Spare);
            tally.kept_by_spares += metrics.spares[SpareOutcome::Parked.index()] as usize;
            tally.replaced += metrics.spares[SpareOutcome::Replaced.index()] as usize;
            tally.starved += core.border.tally.starved as usize;
            tally.relieved += core.border.tally.relieved as usize;
            tally.blocked += core.border.tally.blocked_sends as usize;
        }
        // A 200 may be lost on its way; none comes out of nothing.
        let known = self.ledger.accepted <= accepted || self.ledger.crashed;
        assert!(known, "more tunnels than were counted");
        tally.crossings = self.crossings;
        // Cores talk when something begins or ends, never because something flows.
        let edges = self.ledger.asked + self.ledger.exchanges.len() + self.ledger.tokens.len();
        // A drain, and a core that began anew, is told by each core to each other.
        let told = self.plan.cores * self.plan.cores * (1 + self.plan.crashes);
        assert!(
            tally.crossings <= 8 * edges + 16 + told,
            "{} messages, {edges} edges",
            tally.crossings
        );
        tally.exchanges = self.ledger.exchanges.len();
        tally.tunnels = self.ledger.accepted;
        tally.rejected = self.ledger.rejected;
        tally.bytes = self.ledger.relayed;
        tally.reconnects = self.ledger.tokens.len().saturating_sub(self.ledger.sessions.len());
        tally
    }
}

fn check_core(number: usize, core: &Core) {
    let (shard, border, metrics) = (&core.shard, &core.border, core.shard.metrics());
    assert!(shard.is_empty(), "core {number}: something is left in a table");
    assert_eq!(core.kernel.sockets().count(), 0, "core {number}: sockets are left");
    assert_eq!(border.connections(), 0, "core {number}: connections are left");
    assert_eq!(border.pool.chunks_live(), 0, "core {number}: output chunks are left");
    let blocks = (border.pool.ring_free(), border.pool.ring_blocks());
    assert_eq!(blocks.0, blocks.1, "core {number}: receive blocks are held");
    let sum = |counts: &[u64]| counts.iter().sum::<u64>();
    let closed = sum(&metrics.worker_connections_closed);
    assert_eq!(sum(&metrics.close_codes), closed, "core {number}: not one close code each");
    let gauges = (metrics.active_connections, metrics.active_http_requests);
    assert_eq!(gauges, (0, 0), "core {number}: a gauge did not come back to zero");
}
