//! What must hold when everybody has left.

use ringway::metrics::{
    CONNECT_RESULTS, Limit, RelayCause, RelayOutcome, ResumeOutcome, ResumeWay, ShardMetrics,
    SpareOutcome,
};

use super::core::Core;
use super::world::World;

/// What happened in a run, for the sum over many runs.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tally {
    pub(crate) exchanges: usize,
    pub(crate) answered: usize,
    /// Those of the answered ones that came by HTTP/1, and those that became streams of bytes.
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
    /// Tunnels that got another client, those that had to, and last ones closed by force.
    pub(crate) resumed: usize,
    pub(crate) expected: usize,
    pub(crate) forced: usize,
    /// Of all tunnels: those given away on another core, spares that came, spares that were parked or
    /// took another one's place, tunnels made to yield, and tunnels crowded out.
    pub(crate) moved: usize,
    pub(crate) spares: usize,
    pub(crate) kept_by_spares: usize,
    pub(crate) replaced: usize,
    pub(crate) yields: usize,
    pub(crate) crowded: usize,
    /// Questions to a control plane that takes time: all of them, those that were denied, those that
    /// nobody answered in time, those that were withdrawn, and answers that came too late.
    pub(crate) asks: usize,
    pub(crate) denied: usize,
    pub(crate) expired: usize,
    pub(crate) withdrawn: usize,
    pub(crate) late: usize,
    /// Of several gateways: connections of workers and of clients that were relayed, gateways that
    /// failed, gateways that left, and tunnels that came while their worker had no other of their
    /// session any more.
    pub(crate) callbacks: usize,
    pub(crate) strays: usize,
    pub(crate) struck: usize,
    pub(crate) left: usize,
    pub(crate) crossed: usize,
    /// The gateways among those that failed of which nobody was told.
    pub(crate) vanished: usize,
    /// Strangers at the port for other gateways that proved nothing, those of them that were not heard,
    /// others that the kernel kept out, and good preludes that were served beside them.
    pub(crate) strangers: usize,
    pub(crate) unheard: usize,
    pub(crate) kept_out: usize,
    pub(crate) served: usize,
    /// Gateways that came to sign with a new secret.
    pub(crate) rotated: usize,
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
        self.expected += other.expected;
        self.forced += other.forced;
        self.moved += other.moved;
        self.spares += other.spares;
        self.yields += other.yields;
        self.crowded += other.crowded;
        self.asks += other.asks;
        self.denied += other.denied;
        self.expired += other.expired;
        self.withdrawn += other.withdrawn;
        self.late += other.late;
        self.callbacks += other.callbacks;
        self.strays += other.strays;
        self.struck += other.struck;
        self.left += other.left;
        self.crossed += other.crossed;
        self.vanished += other.vanished;
        self.strangers += other.strangers;
        self.unheard += other.unheard;
        self.kept_out += other.kept_out;
        self.served += other.served;
        self.rotated += other.rotated;
    }
}

impl Tally {
    /// Takes over what all cores have counted of sessions that went on.
    fn returns(&mut self, all: &ShardMetrics) {
        let spares = |outcome: SpareOutcome| all.spares[outcome.index()] as usize;
        self.spares = spares(SpareOutcome::Came);
        self.kept_by_spares = spares(SpareOutcome::Parked);
        self.replaced = spares(SpareOutcome::Replaced);
        self.yields = all.resumes.yields as usize;
        let crowded = [Limit::ParkedTunnels, Limit::ParkedPerTenant];
        self.crowded = crowded.iter().map(|limit| all.limit_hits[limit.index()] as usize).sum();
    }

    /// Takes over what all cores have counted of connections that were relayed.
    fn relays(&mut self, all: &ShardMetrics) {
        let relayed = |cause| all.relays.of(cause, RelayOutcome::Relayed) as usize;
        self.callbacks = relayed(RelayCause::Callback);
        self.strays = relayed(RelayCause::Client);
    }

    /// A simulator in which nothing happens finds nothing. So the fixed seeds together have to meet
    /// everything.
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
            (self.asks, 2_000),
            (self.denied, 200),
            (self.expired, 50),
            (self.withdrawn, 50),
            (self.late, 50),
        ];
        assert!(enough.iter().all(|(is, least)| is >= least), "too little happens: {self:?}");
    }

    /// The same check for runs whose clients come back.
    pub(crate) fn expect_returns(&self) {
        let enough = [(self.resumed, 1)];
        assert!(enough.iter().all(|(is, least)| is >= least), "too little happens: {self:?}");
    }

    /// The same check for runs with several gateways.
    pub(crate) fn expect_relays(&self) {
        let enough = [
            (self.answered, 500),
            (self.callbacks, 200),
            (self.strays, 50),
            (self.resumed, 20),
            (self.expected, 10),
            (self.struck, 50),
            (self.left, 20),
            (self.replaced, 5),
            (self.vanished, 20),
            (self.strangers, 500),
            (self.unheard, 200),
            (self.kept_out, 200),
            (self.served, 100),
            (self.rotated, 30),
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
        for (number, core) in self.cores.iter().enumerate() {
            check_core(number, core);
            let metrics = core.shard().metrics();
            let at = CONNECT_RESULTS.iter().position(|result| *result == "accepted");
            accepted += metrics.connects[at.expect("a result")] as usize;
            let counted = core.simulation.net().tally;
            tally.starved += counted.starved as usize;
            tally.relieved += counted.relieved as usize;
            tally.blocked += counted.blocked_sends as usize;
        }
        let all = self.all_metrics();
        // A core that has crashed takes along what it has counted of its own end.
        if !self.ledger.crashed && !self.ledger.killed {
            // A tunnel may have come to its end on another core than the one where it began.
            check_ends("all cores", &all);
            check_spares(&all);
        }
        self.check_asks(&all);
        self.check_relays(&all);
        // A 200 may be lost on its way, but none comes out of nothing.
        let at_all = self.ledger.crashed || self.ledger.killed || self.left > 0;
        let known = self.ledger.accepted <= accepted || at_all;
        assert!(known, "more tunnels than were counted");
        tally.crossings = self.crossings;
        self.check_crossings();
        tally.returns(&all);
        let parking = &self.ledger.parking;
        let resumed = |way| all.resumes.of(way, ResumeOutcome::Ok) as usize;
        tally.resumed = match self.plan.parking {
            Some(_) => parking.resumed,
            None => resumed(ResumeWay::Memory) + resumed(ResumeWay::Spare),
        };
        tally.expected = parking.expected;
        tally.forced = parking.forced as usize;
        tally.moved = self.moved;
        if self.authority.is_some() {
            let [asks, _, denied, withdrawn, expired, late] = all.asks.map(|count| count as usize);
            (tally.asks, tally.denied, tally.expired) = (asks, denied, expired);
            (tally.withdrawn, tally.late) = (withdrawn, late);
        }
        tally.relays(&all);
        (tally.struck, tally.left) = (self.between.struck, self.left);
        tally.crossed = self.ledger.crossed;
        (tally.vanished, tally.rotated) = (self.between.vanished, self.between.rotated);
        let strange = &self.ledger.strange;
        (tally.strangers, tally.unheard) = (strange.tries as usize, strange.unheard as usize);
        (tally.kept_out, tally.served) = (strange.kept_out as usize, strange.served as usize);
        tally.exchanges = self.ledger.exchanges.len();
        tally.tunnels = self.ledger.accepted;
        tally.rejected = self.ledger.rejected;
        tally.bytes = self.ledger.relayed;
        tally.reconnects = self.ledger.tokens.len().saturating_sub(self.ledger.sessions.len());
        tally
    }

    /// Cores talk when something begins or ends, never because something flows.
    fn check_crossings(&self) {
        let edges = self.ledger.asked + self.ledger.exchanges.len() + self.ledger.tokens.len();
        // Each core tells each other one of a drain, and of a core that began anew.
        let often = self.plan.parking.is_some() || self.plan.many.is_some();
        let per_edge = if often { 12 } else { 8 };
        let cores = self.cores.len();
        let nodes = self.plan.many.map_or(0, |many| 4 * many.nodes);
        let told = cores * cores * (1 + self.plan.crashes + nodes);
        let crossings = self.crossings;
        assert!(crossings <= per_edge * edges + 16 + told, "{crossings} messages, {edges} edges");
    }
}

fn check_core(number: usize, core: &Core) {
    let (shard, net) = (core.shard(), core.simulation.net());
    let metrics = shard.metrics();
    assert!(shard.is_empty(), "core {number}: something is left in a table");
    assert_eq!(core.simulation.sockets().count(), 0, "core {number}: sockets are left");
    assert_eq!(net.connections(), 0, "core {number}: connections are left");
    assert_eq!(net.pool.chunks_live(), 0, "core {number}: output chunks are left");
    let blocks = (net.pool.ring_free(), net.pool.ring_blocks());
    assert_eq!(blocks.0, blocks.1, "core {number}: receive blocks are held");
    let gauges = (metrics.active_connections, metrics.active_http_requests);
    assert_eq!(gauges, (0, 0), "core {number}: a gauge did not come back to zero");
}

fn check_ends(whose: &str, metrics: &ShardMetrics) {
    let sum = |counts: &[u64]| counts.iter().sum::<u64>();
    let opened = metrics.worker_connections_opened;
    let closed = sum(&metrics.worker_connections_closed);
    assert_eq!(closed, opened, "{whose}: not one close reason an attachment");
    assert_eq!(sum(&metrics.close_codes), opened, "{whose}: not one close code each");
}

fn check_spares(metrics: &ShardMetrics) {
    use SpareOutcome::{Asked, Failed, Parked, Replaced, Unused};
    let of = |outcome: SpareOutcome| metrics.spares[outcome.index()];
    let ends = [Parked, Replaced, Unused, Failed].map(of).iter().sum::<u64>();
    assert_eq!(of(Asked), ends, "not one end each spare");
}
