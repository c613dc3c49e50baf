//! The world of one run: a clock that jumps from event to event, cores, wires and far ends.

mod cores;
mod events;
mod peers;

use std::collections::BinaryHeap;
use std::sync::Arc;
use std::time::Duration;

use ringway::config::Config;
use ringway::control::port::Plane;
use ringway::keys::Keys;
use ringway::mailbox::{Mailbox, Sender, mailbox};
use ringway::message::ShardMessage;
use ringway::metrics::ShardMetrics;
use ringway::reactor::Wait;
use ringway::shard::{Shard, ShardSettings};
use ringway_proto::time::Time;

use self::events::Planned;
pub(crate) use self::events::{Event, Guest};
pub(crate) use self::peers::Actor;
use super::Clients;
use super::core::{Core, CoreRuntime};
use super::journal::{self, note};
use super::kernel::{Kernel, Manner};
use super::ledger::{Ledger, Worker};
use super::nodes::{Between, Gateway, enrol};
use super::peer::Peer;
use super::plan::{FUNCTIONS, Plan};
use super::plane::Authority;
use super::seed::Seed;
use super::wire::{Toward, Wiring};

/// Trouble stops within so many microseconds.
const TROUBLE: usize = 6_000_000;
/// Everything that was begun ends within this time after trouble has stopped: several times the longest
/// wait of the gateway, which is 30 s for a worker.
const PATIENCE: Duration = Duration::from_secs(150);

/// Octets that are kept of a client until its first request is answered, as in the product.
const KEPT_OF_CLIENTS: usize = 64 * 1024;

pub(crate) struct World {
    pub(crate) seed: Seed,
    pub(crate) plan: Plan,
    pub(crate) now: Time,
    events: BinaryHeap<Planned>,
    next: u64,
    pub(crate) cores: Vec<Core>,
    pub(super) turns_at: Vec<Option<Time>>,
    pub(super) paused: Vec<Time>,
    idle: u32,
    turns: u64,
    /// Messages between cores.
    pub(crate) crossings: usize,
    /// The first generation of the latest shard that took another one's place.
    generations: u32,
    /// The first generation of each core's shard.
    pub(super) lives: Vec<u32>,
    /// The control plane, if it takes time.
    pub(crate) authority: Option<Authority>,
    manner: Manner,
    pub(super) wiring: Wiring,
    pub(super) mails: Vec<Sender<ShardMessage>>,
    pub(super) actors: Vec<Actor>,
    pub(crate) ledger: Ledger,
    clients_to_come: usize,
    /// Callbacks that workers still have to make, counted in runs with several gateways.
    dials_to_come: usize,
    pub(super) calm: bool,
    pub(super) closing: bool,
    /// What cores had counted before they panicked.
    pub(crate) dead: ShardMetrics,
    pub(super) panics: usize,
    /// Tunnels that went to their client's core.
    pub(crate) moved: usize,
    /// Cores that were asked for their numbers and have not answered.
    pub(super) asked_cores: usize,
    pub(super) gateways: Vec<Gateway>,
    pub(super) between: Between,
    /// Gateways that have left in good order.
    pub(super) left: usize,
}

impl World {
    pub(crate) fn new(number: u64, clients: Clients) -> Self {
        let mut seed = Seed::new(number);
        let mut plan = Plan::new(&mut seed).with_http1(number).with_keeping(number);
        plan = match clients {
            Clients::Leave => plan.with_plane(number),
            Clients::ComeBack => plan.with_returns(number).with_plane(number),
            Clients::Stray => plan.with_nodes(number),
        };
        let cores = plan.nodes() * plan.cores;
        let now = Time(1_000_000);
        let wiring = Wiring::new(now, Seed::new(seed.next()));
        wiring.lock().filters = plan.many.is_some_and(|many| many.filters);
        wiring.lock().pattern = (plan.delay.0, plan.delay.1, plan.capacity.max(10_000));
        let made = (0..cores).map(|_| mailbox(plan.mailbox).expect("a descriptor"));
        let (mails, inboxes): (Vec<_>, Vec<_>) = made.unzip();
        let mut world = Self {
            plan,
            now,
            events: BinaryHeap::new(),
            next: 0,
            cores: Vec::new(),
            turns_at: vec![None; cores],
            paused: vec![Time::ZERO; cores],
            idle: 0,
            turns: 0,
            crossings: 0,
            generations: 0,
            lives: vec![0; cores],
            authority: plan.plane.map(|manners| Authority::new(number, manners)),
            manner: Manner::of(number),
            wiring,
            mails,
            actors: Vec::new(),
            ledger: Ledger::default(),
            clients_to_come: plan.clients,
            dials_to_come: 0,
            calm: false,
            closing: false,
            dead: ShardMetrics::default(),
            panics: 0,
            moved: 0,
            asked_cores: 0,
            gateways: (0..plan.nodes()).map(Gateway::first).collect(),
            between: Between::default(),
            left: 0,
            seed,
        };
        for (core, inbox) in inboxes.into_iter().enumerate() {
            let core = world.core(core, 0, inbox);
            world.cores.push(core);
        }
        world.expect_all();
        world
    }

    /// Plans what is known from the beginning to happen.
    fn expect_all(&mut self) {
        let (plan, world) = (self.plan, self);
        for worker in 0..plan.workers {
            let (function, version, _) = FUNCTIONS[worker % FUNCTIONS.len()];
            world.ledger.workers.push(Worker { function, version, sessions: Default::default() });
            for node in (0..plan.nodes()).cycle().take(plan.nodes() * plan.polls) {
                world.expect(Guest::Poll { worker, node }, 30_000);
            }
        }
        for _ in 0..plan.clients {
            world.expect(Guest::Client(None), plan.within);
        }
        world.ledger.parking.terms = plan.terms();
        let trouble = world.seed.range(10_000, TROUBLE);
        world.after(trouble, Event::Calm);
        for _ in 0..plan.crashes {
            let (at, core) = (world.seed.range(0, trouble), world.seed.below(plan.cores));
            world.after(at, Event::Crash(core));
        }
        for _ in 0..plan.parking.map_or(0, |parking| parking.deletes) {
            let at = world.seed.range(0, trouble);
            world.after(at, Event::Delete);
        }
        if let Some(many) = plan.many {
            world.plan_fates(many, trouble);
        }
        if plan.drain == Some(true) {
            let at = world.seed.range(0, trouble);
            world.after(at, Event::Drain);
        }
    }

    pub(super) fn core(
        &mut self,
        number: usize,
        generation: u32,
        inbox: Mailbox<ShardMessage>,
    ) -> Core {
        let (node, own) = (self.node_of(number), number % self.plan.cores);
        let rules = self.plan.rules();
        let mut seed = [0; 32];
        seed[..8].copy_from_slice(&self.seed.next().to_le_bytes());
        let mut config = rules.config.clone();
        if let Some((asks, of_tenant)) = self.plan.plane.and_then(|manners| manners.asks) {
            let config: &mut Config = Arc::make_mut(&mut config);
            (config.limits.asks, config.limits.asks_per_tenant) = (asks, of_tenant);
        }
        if self.plan.many.is_some() {
            enrol(&mut config, node, &self.gateways);
        }
        let keys = Keys::of(&config.cluster.secrets);
        let plane = if self.plan.plane.is_some() { Plane::Remote } else { Plane::Local };
        self.lives[number] = generation;
        let settings = ShardSettings {
            config,
            plane,
            dispatch: Plane::Local,
            core: own as u16,
            cores: self.plan.cores as u16,
            node: self.gateways[node].node,
            secret: [3; 16],
            unanswered: if keys.is_some() { KEPT_OF_CLIENTS } else { 0 },
            keys,
            seed,
            generation,
            advertise: "http://127.0.0.1:10086".into(),
            unix_micros_at_zero: 1_000_000,
            version: "test",
            commit: "test",
        };
        let mut shard = Shard::new(settings, rules.policy.clone());
        if let Some(last) = self.plan.last_id {
            shard.end_stream_ids_at(last);
        }
        let first = number - own;
        let mails = &self.mails[first..first + self.plan.cores];
        let runtime = CoreRuntime::new((number, own), shard, &self.wiring, mails, generation > 0);
        let manner = (self.manner, self.plan.short_writes);
        let kernel = Kernel::new((number, node), &self.wiring, manner, Seed::new(self.seed.next()));
        let options = self.manner.options(own, self.plan.blocks, self.plan.block_bytes);
        Core::new(options, runtime, kernel, inbox)
    }

    // ---- events ----

    fn at(&mut self, at: Time, event: Event) {
        self.next += 1;
        self.events.push(Planned { at, number: self.next, event });
    }

    pub(super) fn after(&mut self, micros: usize, event: Event) {
        self.at(Time(self.now.0 + micros as u64), event);
    }

    fn expect(&mut self, guest: Guest, within: usize) {
        let after = self.seed.range(0, within);
        self.after(after, Event::Knock(guest));
    }

    /// Runs to the end: trouble, then calm until everybody has finished, then everybody leaves.
    pub(crate) fn run(&mut self) {
        self.run_while(|world| !world.calm, Duration::from_secs(60));
        let unfinished = |world: &Self| {
            let come = world.clients_to_come > 0 || world.dials_to_come > 0;
            let down = (0..world.gateways.len()).any(|node| !world.is_up(node));
            come || down || world.unfinished().is_some() || world.leaving().is_some()
        };
        self.run_while(unfinished, PATIENCE);
        if let Some(peer) = self.unfinished() {
            panic!("nothing goes wrong any more, but {}", peer.waits_for());
        }
        if let Some(node) = self.leaving() {
            let kept = self.kept_by(node);
            panic!("nothing goes wrong any more, but node {node} does not end: {kept}");
        }
        self.count_parked();
        self.closing = true;
        note("world", 0, "closes", [0, 0]);
        if self.plan.drain == Some(false) {
            self.drain();
        }
        for actor in 0..self.actors.len() {
            self.tick_within(actor, 2_000);
        }
        self.run_while(|world| !world.at_rest(), PATIENCE);
    }

    pub(super) fn run_while(&mut self, goes_on: impl Fn(&Self) -> bool, most: Duration) {
        let until = self.now + most;
        while goes_on(self) {
            let Some(Planned { at, event, .. }) = self.events.pop() else { break };
            if at > until {
                self.at(at, event);
                break;
            }
            self.now = self.now.max(at);
            self.wiring.lock().now = self.now;
            journal::clock(self.now);
            self.happen(event);
            self.schedule();
        }
    }

    fn unfinished(&self) -> Option<&dyn Peer> {
        let mut peers = self.actors.iter().map(|actor| &*actor.peer);
        peers.find(|peer| peer.is_unfinished())
    }

    fn at_rest(&self) -> bool {
        self.events.is_empty() && self.cores.iter().all(|core| core.waits == Wait::Forever)
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Turn(core) => {
                if self.turns_at[core] == Some(self.now) {
                    self.turns_at[core] = None;
                    self.turn(core);
                }
            }
            Event::Arrival(Toward::Gateway, link) => self.arrived_at_gateway(link),
            Event::Arrival(Toward::Peer, link) => {
                let mut wires = self.wiring.lock();
                let packet = wires.links[link].arrived_at_peer();
                let between = wires.links[link].from.is_some();
                drop(wires);
                if let Some(packet) = packet {
                    self.actors[link].kept.push_back(packet);
                    if between { self.cross(link) } else { self.let_peer_read(link) }
                }
            }
            Event::Tick(actor) => {
                if self.actors[actor].tick_at == Some(self.now) {
                    self.actors[actor].tick_at = None;
                    self.ask(actor, |peer, stage| peer.tick(stage));
                }
            }
            Event::Message(core, message) => self.deliver(core, *message),
            Event::Knock(guest) => self.knock(guest),
            Event::Drain => self.drain(),
            Event::Crash(core) => self.crash(core),
            Event::Delete => self.delete(),
            Event::Answer(said) => self.answer(said.0, said.1),
            Event::Dialled(link, to) => self.dialled(link, to),
            Event::Connected(link, result) => self.connected(link, result),
            Event::Fate(fate) => self.meet(fate),
            Event::Calm => {
                note("world", 0, "calms down", [0, 0]);
                self.calm = true;
                for actor in 0..self.actors.len() {
                    self.tick_within(actor, 2_000);
                }
            }
        }
    }

    pub(super) fn schedule(&mut self) {
        let arrivals = std::mem::take(&mut self.wiring.lock().arrivals);
        for (at, toward, link) in arrivals {
            self.at(at, Event::Arrival(toward, link));
        }
    }
}
