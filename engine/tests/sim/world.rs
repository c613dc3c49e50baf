//! The world of one run: a clock that jumps from event to event, cores, wires and far ends.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ringway::config::Config;
use ringway::control::port::{Answer, AskTicket, Plane};
use ringway::keys::Keys;
use ringway::log::Lines;
use ringway::mailbox::{Full, Mailbox, Sender, mailbox};
use ringway::message::ShardMessage;
use ringway::metrics::ShardMetrics;
use ringway::net::{End, Listener};
use ringway::reactor::Wait;
use ringway::shard::{Shard, ShardSettings};
use ringway_proto::time::Time;

use super::Clients;
use super::client::Client;
use super::client1::Client1;
use super::core::{Core, CoreRuntime};
use super::journal::{self, note};
use super::kernel::{Kernel, Manner};
use super::ledger::{Ledger, Work, Worker};
use super::nodes::{Between, Fate, Gateway, enrol};
use super::peer::{Act, Comeback, Peer, Stage, Trick};
use super::plan::{FUNCTIONS, Plan};
use super::plane::Authority;
use super::poll::Poll;
use super::seed::Seed;
use super::tunnel::Tunnel;
use super::wire::{Link, Packet, Toward, Wiring};

/// When trouble stops, and how long what was begun may take after that: the longest wait of the
/// gateway (a worker's, 30 s) several times over.
const TROUBLE: usize = 6_000_000;
const PATIENCE: Duration = Duration::from_secs(150);

/// When what a core has to be told is tried again that had no room for it, in microseconds.
const POST_PAUSE: usize = 2_000;

/// When somebody tries again to connect to a gateway that is down.
const KNOCK_PAUSE: usize = 100_000;

/// Octets that are kept of a client until its first request is answered, as in the product.
const KEPT_OF_CLIENTS: usize = 64 * 1024;

/// Turns of a core that did nothing and were followed by another at once.
const IDLE_TURNS: u32 = 300;
const TURNS: u64 = 400_000;

/// Somebody who will come to the port.
#[derive(Debug)]
pub(super) enum Guest {
    Client(Option<Comeback>),
    /// A worker has one of its polls at each gateway.
    Poll {
        worker: usize,
        node: usize,
    },
    Dial {
        worker: usize,
        work: Box<Work>,
        trick: Trick,
    },
}

#[derive(Debug)]
pub(super) enum Event {
    Turn(usize),
    Arrival(Toward, usize),
    Tick(usize),
    /// A core is told something from outside.
    Message(usize, Box<ShardMessage>),
    Knock(Guest),
    Drain,
    Crash(usize),
    /// An operator ends a session.
    Delete,
    /// The control plane answers.
    Answer(Box<(AskTicket, Answer)>),
    /// A connection between gateways was dialled, and has come there; its end of it is known here.
    Dialled(usize, SocketAddr),
    Connected(usize, i32),
    /// Something becomes of whole gateways.
    Fate(Fate),
    Calm,
}

/// An event at its time; of those at one time the first planned comes first.
#[derive(Debug)]
struct Planned {
    at: Time,
    number: u64,
    event: Event,
}

impl Ord for Planned {
    fn cmp(&self, other: &Self) -> Ordering {
        // The heap gives the greatest first.
        (other.at.0, other.number).cmp(&(self.at.0, self.number))
    }
}

impl PartialOrd for Planned {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Planned {
    fn eq(&self, other: &Self) -> bool {
        self.number == other.number
    }
}

impl Eq for Planned {}

/// A far end and its side of the wire.
pub(super) struct Actor {
    peer: Box<dyn Peer>,
    reading: bool,
    /// Arrived while it does not read.
    pub(super) kept: VecDeque<Packet>,
    tick_at: Option<Time>,
}

impl Actor {
    pub(super) fn new(peer: Box<dyn Peer>) -> Self {
        Self { peer, reading: true, kept: VecDeque::new(), tick_at: None }
    }
}

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
    /// First generation of the latest shard that took another's place.
    generations: u32,
    /// Of each core's shard, its first generation.
    pub(super) lives: Vec<u32>,
    /// The control plane, if it takes time.
    pub(crate) authority: Option<Authority>,
    manner: Manner,
    pub(super) wiring: Wiring,
    pub(super) mails: Vec<Sender<ShardMessage>>,
    pub(super) actors: Vec<Actor>,
    pub(crate) ledger: Ledger,
    clients_to_come: usize,
    /// Callbacks that are to be made, where they are tried again.
    dials_to_come: usize,
    pub(super) calm: bool,
    pub(super) closing: bool,
    /// What cores had counted that panicked.
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

    /// What is known from the beginning to happen.
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
            enrol(&mut config, node, self.gateways.len());
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
            come || world.unfinished().is_some() || world.leaving().is_some()
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

    // ---- cores ----

    /// Every core is told to drain: from now on anything may be refused or cut off.
    fn drain(&mut self) {
        note("world", 0, "drains", [0, 0]);
        self.ledger.draining = true;
        self.ledger.parking.unsettled(true, self.now, &mut self.ledger.exchanges);
        for exchange in &mut self.ledger.exchanges {
            exchange.excuse = true;
        }
        for core in 0..self.cores.len() {
            let max = Duration::from_secs(5);
            self.deliver(core, ShardMessage::Drain { max });
        }
    }

    pub(super) fn wake(&mut self, core: usize) {
        let after = self.seed.range(1, 30);
        self.turn_by(core, Time(self.now.0 + after as u64));
    }

    pub(super) fn turn_by(&mut self, core: usize, at: Time) {
        let at = at.max(self.paused[core]);
        if self.turns_at[core].is_none_or(|planned| at < planned) {
            self.turns_at[core] = Some(at);
            self.at(at, Event::Turn(core));
        }
    }

    /// A core does nothing until then.
    pub(super) fn pause(&mut self, core: usize, until: Time) {
        self.paused[core] = until;
        if self.turns_at[core].take().is_some() {
            self.turn_by(core, until);
        }
    }

    /// Tells a core something, however long its mailbox is full.
    pub(super) fn deliver(&mut self, core: usize, message: ShardMessage) {
        let answer = matches!(message, ShardMessage::Answer { .. });
        match self.mails[core].deliver(message) {
            Ok(bell) => {
                self.cores[core].answers += u64::from(answer);
                if let Some(bell) = bell {
                    bell.rung();
                    self.wake(core);
                }
            }
            Err(Full(message)) => self.after(POST_PAUSE, Event::Message(core, Box::new(message))),
        }
    }

    fn turn(&mut self, number: usize) {
        let busy = self.cores[number].turn();
        if self.plan.many.is_some() {
            self.carry();
        }
        let core = &mut self.cores[number];
        let waits = core.waits;
        let runtime = core.simulation.core_mut();
        let put_off = runtime.shard.metrics().facts_put_off;
        assert_eq!(put_off, 0, "core {number}: facts have led to each other without end");
        let mut messages = Vec::new();
        runtime.shard.take_messages(&mut messages);
        // Nobody reads the log of this world.
        runtime.shard.take_lines(&mut Lines::default());
        let sent = std::mem::take(&mut runtime.sent);
        self.watch_sessions(number, messages);
        let wires = self.wiring.lock();
        self.ledger.leaving.retain(|leaving| !wires.links[leaving.tunnel].closed);
        drop(wires);
        for sent in sent {
            self.crossings += usize::from(sent.counts);
            self.moved += usize::from(sent.carries_tunnel);
            if sent.wakes {
                self.wake(sent.to);
            }
            if sent.moves {
                self.disturb(number, sent.to);
            }
        }
        self.judge_answers(number);
        self.take_asks(number);
        self.turns += 1;
        assert!(self.turns < TURNS, "the run does not end");
        let again = waits == Wait::No;
        self.idle = if again && !busy { self.idle + 1 } else { 0 };
        assert!(self.idle < IDLE_TURNS, "core {number} turns and turns and does nothing");
        if !self.calm && self.seed.chance(self.plan.pauses) && self.seed.chance(30) {
            let pause = self.seed.range(1, 400_000);
            note("core", number, "pauses", [pause as u64, 0]);
            self.paused[number] = Time(self.now.0 + pause as u64);
        }
        match waits {
            Wait::No => self.wake(number),
            Wait::AtMost(time) => {
                let next = Time(self.now.0 + 1);
                self.turn_by(number, (self.now + time).max(next));
            }
            Wait::Forever => {}
        }
    }

    /// A core panics: its connections are closed, what waited for it is lost, a new shard takes its
    /// place with the same mailbox.
    fn crash(&mut self, number: usize) {
        note("core", number, "panics", [0, 0]);
        self.ledger.crashed = true;
        self.ledger.parking.unsettled(false, self.now, &mut self.ledger.exchanges);
        for exchange in &mut self.ledger.exchanges {
            exchange.excuse = true;
        }
        self.lose_answers(number);
        self.generations += 1 << 20;
        self.dead.add(self.cores[number].shard().metrics());
        // Its sockets are closed with it, and those that were on their way to it.
        drop(self.cores.remove(number));
        let inbox = self.mails[number].reopen().expect("nobody receives");
        let core = self.core(number, self.generations, inbox);
        self.cores.insert(number, core);
        self.wake(number);
    }

    fn arrived_at_gateway(&mut self, number: usize) {
        let mut wires = self.wiring.lock();
        let link = &mut wires.links[number];
        match link.arrived_at_gateway() {
            Some(Packet::Bytes(bytes)) if !link.closed => link.inbound.extend(bytes),
            Some(Packet::Fin) => link.in_fin = true,
            Some(Packet::Reset(end)) => link.in_reset = Some(end),
            // Who has closed hears no more, and says so.
            Some(Packet::Bytes(_)) if link.from.is_some() && !link.severed => {
                link.severed = true;
                if let Some(other) = link.other {
                    wires.peer_sends(other, Packet::Reset(End::Reset));
                }
            }
            Some(Packet::Bytes(_)) | None => {}
        }
        let core = wires.links[number].core;
        drop(wires);
        if let Some(core) = core {
            self.wake(core);
        }
    }

    // ---- far ends ----

    fn knock(&mut self, guest: Guest) {
        let client = matches!(guest, Guest::Client(_));
        let listener = if client { Listener::Client } else { Listener::Worker };
        let leaves = self.closing && !matches!(guest, Guest::Dial { .. });
        let core = match self.plan.many {
            None => Some(self.seed.below(self.cores.len())),
            Some(_) => self.door(&guest, listener),
        };
        let core = core.filter(|core| !leaves && !self.wiring.lock().is_shut(*core, listener));
        let Some(core) = core else {
            if self.plan.many.is_some() && !self.closing {
                // Where it wants to go nobody is at home: it tries again.
                return self.after(KNOCK_PAUSE, Event::Knock(guest));
            }
            self.has_come(&guest);
            return;
        };
        self.has_come(&guest);
        let number = self.actors.len();
        let Plan { delay, capacity, cut, .. } = self.plan;
        let mut link = Link::new(delay, capacity, cut);
        (link.core, link.home) = (Some(core), self.node_of(core));
        self.wiring.lock().links.push(link);
        let mut acts = Vec::new();
        let mut stage = Stage {
            seed: &mut self.seed,
            ledger: &mut self.ledger,
            plan: &self.plan,
            now: self.now,
            calm: self.calm,
            closing: self.closing,
            acts: &mut acts,
        };
        let peer: Box<dyn Peer> = match guest {
            Guest::Client(Some(to)) if to.http1 => {
                Box::new(Client1::new(number, Some(to), &mut stage))
            }
            Guest::Client(None) if stage.plan.http1 > 0 && stage.seed.chance(stage.plan.http1) => {
                Box::new(Client1::new(number, None, &mut stage))
            }
            Guest::Client(to) => Box::new(Client::new(number, to, &mut stage)),
            Guest::Poll { worker, .. } => Box::new(Poll::new(number, worker, &mut stage)),
            Guest::Dial { worker, work, trick } => {
                Box::new(Tunnel::new(number, worker, (*work, trick), &mut stage))
            }
        };
        note(
            "link",
            number,
            if client { "comes from a client to core" } else { "comes from a worker to core" },
            [core as u64, 0],
        );
        if client {
            self.ledger.parking.client_comes(number);
        }
        self.actors.push(Actor::new(peer));
        self.wiring.lock().knock(core, listener, number);
        self.wake(core);
        self.carry_out(number, acts);
        self.tick_within(number, 300);
    }

    /// Somebody is not waited for any more.
    fn has_come(&mut self, guest: &Guest) {
        match guest {
            Guest::Client(_) => self.clients_to_come -= 1,
            Guest::Dial { .. } if self.plan.many.is_some() => self.dials_to_come -= 1,
            Guest::Dial { .. } | Guest::Poll { .. } => {}
        }
    }

    fn tick_within(&mut self, actor: usize, most: usize) {
        let after = self.seed.range(1, most);
        let at = Time(self.now.0 + after as u64);
        if self.actors[actor].tick_at.is_none_or(|planned| at < planned) {
            self.actors[actor].tick_at = Some(at);
            self.at(at, Event::Tick(actor));
        }
    }

    /// What has arrived, as far as the peer reads.
    fn let_peer_read(&mut self, number: usize) {
        while self.actors[number].reading
            && let Some(packet) = self.actors[number].kept.pop_front()
        {
            match packet {
                Packet::Bytes(bytes) => {
                    let mut wires = self.wiring.lock();
                    let link = &mut wires.links[number];
                    link.was_read(bytes.len());
                    let (core, closed) = (link.core, link.peer_closed);
                    drop(wires);
                    if let Some(core) = core {
                        self.wake(core);
                    }
                    if !closed {
                        self.ask(number, |peer, stage| peer.received(&bytes, stage));
                        self.tick_within(number, 400);
                    }
                }
                Packet::Fin => self.ask(number, |peer, stage| peer.ended(false, stage)),
                Packet::Reset(_) => self.ask(number, |peer, stage| peer.ended(true, stage)),
            }
        }
    }

    fn ask(&mut self, number: usize, what: impl FnOnce(&mut dyn Peer, &mut Stage<'_>)) {
        let mut acts = Vec::new();
        let mut stage = Stage {
            seed: &mut self.seed,
            ledger: &mut self.ledger,
            plan: &self.plan,
            now: self.now,
            calm: self.calm,
            closing: self.closing,
            acts: &mut acts,
        };
        what(&mut *self.actors[number].peer, &mut stage);
        self.carry_out(number, acts);
    }

    fn carry_out(&mut self, number: usize, acts: Vec<Act>) {
        let mut reads = None;
        for act in acts {
            match act {
                Act::Send(bytes) => self.put(number, Packet::Bytes(bytes)),
                Act::Later(bytes, after) => {
                    let until = Time(self.now.0 + after as u64);
                    self.wiring.lock().hold(number, until);
                    self.put(number, Packet::Bytes(bytes));
                }
                Act::Fin => self.put(number, Packet::Fin),
                Act::Reset => {
                    let end = self.seed.pick(&[End::Reset, End::Reset, End::Timeout]);
                    self.put(number, Packet::Reset(end));
                    self.wiring.lock().links[number].peer_closed = true;
                }
                Act::Read(reading) => reads = Some(reading),
                Act::Wait(micros) => self.tick_within(number, micros.max(2)),
                Act::Dial { worker, work, trick, after } => {
                    let work = Box::new(work);
                    self.dials_to_come += usize::from(self.plan.many.is_some());
                    self.after(after, Event::Knock(Guest::Dial { worker, work, trick }));
                }
                Act::Poll { worker, after } => {
                    let node = self.wiring.lock().links[number].home;
                    self.after(after, Event::Knock(Guest::Poll { worker, node }));
                }
                Act::Return { to, after } => {
                    self.clients_to_come += 1;
                    self.after(after, Event::Knock(Guest::Client(Some(to))));
                }
            }
        }
        // What is read now is answered behind what was just said.
        if let Some(reading) = reads {
            self.actors[number].reading = reading;
            self.let_peer_read(number);
        }
    }

    fn put(&self, link: usize, packet: Packet) {
        let mut wires = self.wiring.lock();
        if !wires.links[link].peer_closed {
            wires.peer_sends(link, packet);
        }
    }
}
