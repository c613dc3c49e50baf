//! Watches sessions whose clients are lost. After each turn it looks which connections the cores
//! hold. It disturbs cores between which a tunnel moves, and checks how many tunnels are parked.

use std::time::Duration;

use ringway::message::{ControlMessage, ShardMessage};
use ringway::metrics::{Limit, ShardMetrics};
use ringway_proto::time::Time;

use super::journal::note;
use super::ledger::EndingTunnel;
use super::wire::Link;
use super::world::{Event, World};

/// The most cores that panic in one run while a tunnel moves.
const PANICS: usize = 2;

/// After this time only timers fire any more.
const QUIET: Duration = Duration::from_secs(1);

/// How long the answers to a question to all cores may take.
const ANSWERS: Duration = Duration::from_secs(5);

impl World {
    fn holds(&self, link: usize) -> bool {
        let wires = self.wiring.lock();
        let (closed, core) = (wires.links[link].closed, wires.links[link].core);
        drop(wires);
        !closed && core.is_none_or(|core| self.cores[core].holds(link))
    }

    /// Whether a core was told that this client's connection has ended.
    fn told_of(&self, link: usize) -> bool {
        self.cores.iter().any(|core| core.simulation.core().told.contains(&link))
    }

    /// Called after a core's turn. Finds connections that no core holds any more, and checks the
    /// numbers that the core has sent to the control thread.
    pub(super) fn watch_sessions(&mut self, number: usize, messages: Vec<ControlMessage>) {
        if self.plan.parking.is_none() {
            return;
        }
        let (clients, tunnels) = self.ledger.parking.watched();
        for link in clients {
            if !self.holds(link) {
                let by_gateway = !self.told_of(link);
                let ledger = &mut self.ledger;
                ledger.parking.client_lost(link, (by_gateway, self.now), &ledger.exchanges);
            }
        }
        let mut closed = 0;
        for link in tunnels {
            if !self.holds(link) {
                closed += 1;
                self.ledger.parking.tunnel_closed(link, self.now, &mut self.ledger.exchanges);
            }
        }
        self.ledger.parking.look_at_sessions(self.now);
        let forced = self.ledger.parking.forced;
        if forced > 0 {
            let all = self.all_metrics();
            let crowded = [Limit::ParkedTunnels, Limit::ParkedPerTenant];
            let crowded: u64 = crowded.iter().map(|limit| all.limit_hits[limit.index()]).sum();
            let counted = all.resumes.yields + crowded;
            assert!(
                forced <= counted,
                "{forced} last tunnels were closed, {counted} with a reason"
            );
        }
        for message in messages {
            if let ControlMessage::Snapshot { snapshot, .. } = message {
                self.check_parked(number, &snapshot.metrics, closed);
            }
        }
    }

    /// What all cores have counted, those that panicked too.
    pub(super) fn all_metrics(&self) -> ShardMetrics {
        let mut all = self.dead.clone();
        self.cores.iter().for_each(|core| all.add(core.shard().metrics()));
        all
    }

    /// Asks every core how many tunnels are parked, when nothing happens any more.
    pub(super) fn count_parked(&mut self) {
        if self.plan.parking.is_none() {
            return;
        }
        // Everything that is on its way arrives first.
        let until = self.now + QUIET;
        self.run_while(|world| world.now < until, QUIET);
        self.asked_cores = self.cores.len();
        for core in 0..self.cores.len() {
            self.deliver(core, ShardMessage::Snapshot { ticket: 1 });
        }
        self.run_while(|world| world.asked_cores > 0, ANSWERS);
        assert_eq!(self.asked_cores, 0, "a core does not answer");
    }

    /// Checks a core's number of parked tunnels. `closed` tunnels may have closed after it counted.
    fn check_parked(&mut self, number: usize, metrics: &ShardMetrics, closed: usize) {
        self.asked_cores -= 1;
        let of_core = |(link, wire): (usize, &Link)| (wire.core == Some(number)).then_some(link);
        let here: Vec<usize> =
            self.wiring.lock().links.iter().enumerate().filter_map(of_core).collect();
        let (must, may) = self.ledger.parking.parked_among(&here, &self.ledger.exchanges);
        let told = metrics.resumes.parked as usize;
        note("core", number, "has parked, and must have", [told as u64, must as u64]);
        // With several gateways a parked tunnel may have come in at another gateway.
        assert!(
            self.plan.many.is_some() || (must..=may + closed).contains(&told),
            "core {number}: {told} parked, not {must} to {may}"
        );
        for limit in [Limit::ParkedTunnels, Limit::ParkedPerTenant] {
            let (used, max) = (metrics.limit_used[limit.index()], metrics.limit_max[limit.index()]);
            assert!(used <= max, "core {number}: {used} tunnels parked, {max} may be");
        }
    }

    /// One of two cores between which a tunnel moves may panic or pause.
    pub(super) fn disturb(&mut self, from: usize, to: usize) {
        let Some(plan) = self.plan.parking.filter(|_| !self.calm) else { return };
        let core = if self.seed.chance(50) { from } else { to };
        let soon = self.seed.range(0, 60);
        if self.panics < PANICS && self.seed.chance(plan.panics) {
            self.panics += 1;
            self.after(soon, Event::Crash(core));
        }
        if self.seed.chance(plan.pauses) {
            let pause = self.seed.range(1, 400_000);
            note("core", core, "pauses", [pause as u64, 0]);
            self.pause(core, Time(self.now.0 + pause as u64));
        }
    }

    /// An operator ends a session.
    pub(super) fn delete(&mut self) {
        let met = &self.ledger.met;
        if met.is_empty() {
            return;
        }
        let id = met[self.seed.below(met.len())].0.clone();
        note("world", 0, "deletes a session", [0, 0]);
        let tenant = self.ledger.sessions[&id].tenant.clone();
        for tunnel in self.ledger.parking.deleted(&id, &mut self.ledger.exchanges) {
            if !self.wiring.lock().links[tunnel].closed {
                let (session, tenant) = (id.clone(), tenant.clone());
                self.ledger.is_leaving(EndingTunnel { tunnel, client: None, session, tenant });
            }
        }
        let uuid = id.parse().expect("an id");
        for core in 0..self.cores.len() {
            self.deliver(core, ShardMessage::End { id: uuid });
        }
    }
}
