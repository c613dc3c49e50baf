//! Several gateways: the connections between them, and what becomes of whole gateways. One may die
//! at once, leave in good order or be cut off from another one, and one connection may break.

mod secrets;
mod strangers;
mod vanish;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ringway::config::Config;
use ringway::mailbox::mailbox;
use ringway::message::ShardMessage;
use ringway::metrics::{RelayCause, RelayOutcome, ShardMetrics, TakenCause, TakenOutcome};
use ringway::net::{Core as _, End, Listener};
use ringway::reactor::END_WAIT;
use ringway_proto::id::Node;
use ringway_proto::time::Time;

use self::secrets::Secrets;
use super::core::Core;
use super::journal::note;
use super::peer::{Peer, Stage};
use super::plan::Many;
use super::wire::Packet;
use super::world::{Event, Guest, World};

/// The port of the listener for other gateways.
const PORT: u16 = 10_087;

/// The secret that all gateways share.
pub(crate) const SECRET: &str = "what the simulated gateways share";

/// How long TCP tries to reach a gateway behind a cut.
const TCP_GIVES_UP: usize = 15_000_000;

/// A gateway waits ten seconds for the head of a request, and for a client that another gateway brings.
/// A cut that is nearly as long may end that wait.
const HEAD_WAITS: usize = 9_000_000;

/// A fault may be felt for so long after it has ended.
const FELT: Duration = Duration::from_secs(3);

/// A gateway that leaves gives its clients so much time, which is more than they need: nobody is cut
/// off.
const DRAIN_MAX: Duration = Duration::from_secs(600);

/// The world tries or looks at something again after so many microseconds.
const AGAIN: usize = 50_000;

/// One of several gateways.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Gateway {
    pub(crate) node: Node,
    /// The process is there from then on.
    up_at: Time,
    pub(crate) leaves: bool,
    secrets: Secrets,
    /// All cores had finished by then. The kernel may send for a while what is left.
    finished_at: Option<Time>,
}

/// What becomes of whole gateways.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fate {
    /// The process ends at once, and its kernel says so.
    Dies(usize),
    /// The machine is gone at once, and nobody says so.
    Vanishes(usize),
    /// The far end of this link has heard nothing for too long.
    GivesUp(usize),
    /// Everybody has to know by now that this gateway vanished at that time.
    Noticed(usize, Time),
    Leaves(usize),
    /// The world looks whether the gateway has left.
    Left(usize, Node),
    /// Two gateways are cut off from each other for so many microseconds.
    Cut(usize, usize, usize),
    Mended(usize, usize, usize),
    /// One connection between two breaks.
    Breaks,
    /// A gateway has other secrets from then on.
    Secrets(usize, Secrets),
}

/// A connection between gateways has no peer of the world at its far end.
struct Nobody;

impl Peer for Nobody {
    fn received(&mut self, _bytes: &[u8], _stage: &mut Stage<'_>) {}
    fn ended(&mut self, _reset: bool, _stage: &mut Stage<'_>) {}
    fn tick(&mut self, _stage: &mut Stage<'_>) {}
}

/// What lies between the gateways.
#[derive(Debug, Default)]
pub(crate) struct Between {
    /// Pairs that are cut off from each other.
    dark: BTreeSet<(usize, usize)>,
    /// Links whose packets wait for room at the other end, or for a cut to be mended.
    stuck: BTreeSet<usize>,
    /// Gateways that died, were cut off, or lost a connection.
    pub(crate) struck: usize,
    /// The gateways among them of which nobody was told.
    pub(crate) vanished: usize,
    /// Callbacks that came while all gateways drained. Their owners may have ended by then.
    pub(crate) late_callbacks: u64,
    /// Gateways that sign with a new secret.
    pub(crate) rotated: usize,
    /// Links that are being dialled to a gateway which does not answer, and since when.
    dials: BTreeMap<usize, Time>,
}

impl Gateway {
    pub(crate) fn first(number: usize) -> Self {
        let node = Node::new(number as u16, 7).expect("a small number");
        let secrets = Secrets::default();
        Self { node, up_at: Time::ZERO, leaves: false, secrets, finished_at: None }
    }
}

/// The address at which a gateway takes connections of the others.
fn address(node: usize) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, 1 + node as u8], PORT))
}

/// Tells a gateway who it is, and who the others are.
pub(crate) fn enrol(config: &mut Arc<Config>, node: usize, gateways: &[Gateway]) {
    let cluster = &mut Arc::make_mut(config).cluster;
    cluster.secrets = gateways[node].secrets.all();
    cluster.node = Some(node as u16);
    let others = (0..gateways.len()).filter(|other| *other != node);
    cluster.nodes = others.map(|other| (other as u16, address(other))).collect();
}

impl World {
    /// Plans what becomes of gateways in this run.
    pub(super) fn plan_fates(&mut self, many: Many, trouble: usize) {
        let nodes = self.gateways.len();
        for _ in 0..many.deaths {
            let (at, node) = (self.seed.range(0, trouble), self.seed.below(nodes));
            self.after(at, Event::Fate(Fate::Dies(node)));
        }
        for _ in 0..many.leaves {
            let (at, node) = (self.seed.range(0, trouble), self.seed.below(nodes));
            self.after(at, Event::Fate(Fate::Leaves(node)));
        }
        for _ in 0..many.cuts {
            let (at, one) = (self.seed.range(0, trouble), self.seed.below(nodes));
            let other = (one + 1 + self.seed.below(nodes - 1)) % nodes;
            let most = self.seed.pick(&[100_000, 700_000, 3_000_000, 20_000_000]);
            let time = self.seed.range(1_000, most);
            self.after(at, Event::Fate(Fate::Cut(one.min(other), one.max(other), time)));
        }
        for _ in 0..many.breaks {
            let at = self.seed.range(0, trouble);
            self.after(at, Event::Fate(Fate::Breaks));
        }
        self.expect_strangers(many, trouble);
        if many.rotates {
            self.plan_secrets(nodes, trouble);
        }
        for _ in 0..many.vanish {
            let (at, node) = (self.seed.range(0, trouble), self.seed.below(nodes));
            self.after(at, Event::Fate(Fate::Vanishes(node)));
        }
    }

    pub(super) fn node_of(&self, core: usize) -> usize {
        core / self.plan.cores
    }

    fn cores_of(&self, node: usize) -> std::ops::Range<usize> {
        node * self.plan.cores..(node + 1) * self.plan.cores
    }

    /// Whether somebody who connects to a gateway is heard.
    pub(super) fn is_up(&self, node: usize) -> bool {
        self.gateways[node].up_at <= self.now
    }

    /// A core that may accept this guest, drawn from all of them.
    pub(super) fn core_for(&mut self, guest: &Guest, listener: Listener) -> Option<usize> {
        let may = |core: &usize| {
            let node = self.node_of(*core);
            let wanted = match guest {
                Guest::Client(_) => !self.gateways[node].leaves,
                Guest::Poll { node: of, .. } => *of == node,
                Guest::Stranger { node: of, .. } => *of == node && !self.gateways[node].leaves,
                Guest::Dial { .. } => true,
            };
            wanted && self.is_up(node) && !self.wiring.lock().is_shut(*core, listener)
        };
        let cores: Vec<usize> = (0..self.cores.len()).filter(may).collect();
        (!cores.is_empty()).then(|| self.seed.pick(&cores))
    }

    // ---- what flows between them ----

    /// A core has had its turn: the connections that it dials are on their way, and packets that waited
    /// for room may go on.
    pub(super) fn carry(&mut self) {
        let (links, dials) = {
            let mut wires = self.wiring.lock();
            (wires.links.len(), std::mem::take(&mut wires.dials))
        };
        while self.actors.len() < links {
            self.actors.push(super::world::Actor::new(Box::new(Nobody)));
        }
        for (link, address) in dials {
            let after = self.flight();
            self.after(after, Event::Dialled(link, address));
        }
        for link in self.between.stuck.clone() {
            self.cross(link);
        }
    }

    fn flight(&mut self) -> usize {
        let (low, high) = self.plan.delay;
        self.seed.range(low, high) + 1
    }

    fn is_dark(&self, one: usize, other: usize) -> bool {
        self.between.dark.contains(&(one.min(other), one.max(other)))
    }

    /// A dial has come to the address to which it leads.
    pub(super) fn dialled(&mut self, link: usize, to: SocketAddr) {
        let (home, closed) = {
            let wires = self.wiring.lock();
            (wires.links[link].home, wires.links[link].closed || wires.links[link].severed)
        };
        if closed {
            return;
        }
        let node = (0..self.gateways.len()).find(|node| address(*node) == to).expect("a gateway");
        if self.is_dark(home, node) || self.is_away(node) {
            self.dials_in_vain(link);
            return self.after(AGAIN, Event::Dialled(link, to));
        }
        let open = |core: &usize| !self.wiring.lock().is_shut(*core, Listener::Cluster);
        let cores: Vec<usize> = self.cores_of(node).filter(open).collect();
        let result = if cores.is_empty() || !self.is_up(node) {
            -libc::ECONNREFUSED
        } else {
            let core = self.seed.pick(&cores);
            let mut wires = self.wiring.lock();
            let there = wires.socket(core, node);
            wires.links[there].from = Some(home);
            wires.links[there].other = Some(link);
            wires.links[link].other = Some(there);
            wires.knock(core, Listener::Cluster, there);
            drop(wires);
            note("link", there, "comes from a node, and its link", [home as u64, link as u64]);
            self.carry();
            self.wake(core);
            0
        };
        let after = self.flight();
        self.after(after, Event::Connected(link, result));
    }

    /// The core that has dialled hears how the dial has ended.
    pub(super) fn connected(&mut self, link: usize, result: i32) {
        let mut wires = self.wiring.lock();
        wires.links[link].dialled = Some(result);
        let core = wires.links[link].core;
        drop(wires);
        if let Some(core) = core {
            self.wake(core);
        }
    }

    /// Packets that have come to the far end of a link between gateways go on to the other gateway.
    pub(super) fn cross(&mut self, link: usize) {
        self.between.stuck.remove(&link);
        loop {
            let mut wires = self.wiring.lock();
            if wires.leads_nowhere(link) {
                self.actors[link].kept.clear();
                return;
            }
            let other = wires.links[link].other.expect("it leads somewhere");
            if wires.links[other].vanished.is_some() {
                drop(wires);
                self.actors[link].kept.clear();
                return self.came_for_nobody(other);
            }
            let full = wires.links[other].is_full();
            let dark = self.is_dark(wires.links[link].home, wires.links[other].home);
            let waits = match self.actors[link].kept.front() {
                None => return,
                Some(Packet::Bytes(_)) => full || dark,
                Some(Packet::Fin | Packet::Reset(_)) => dark,
            };
            if waits {
                self.between.stuck.insert(link);
                return;
            }
            let packet = self.actors[link].kept.pop_front().expect("it was looked at");
            let read = match &packet {
                Packet::Bytes(bytes) => bytes.len(),
                Packet::Fin | Packet::Reset(_) => 0,
            };
            wires.links[link].was_read(read);
            wires.peer_sends(other, packet);
            let core = wires.links[link].core;
            drop(wires);
            self.schedule();
            if let Some(core) = core {
                self.wake(core);
            }
        }
    }

    // ---- fates ----

    pub(super) fn meet(&mut self, fate: Fate) {
        match fate {
            Fate::Dies(node) => self.die(node),
            Fate::Vanishes(node) => self.vanish(node),
            Fate::GivesUp(link) => self.give_up(link, End::Timeout),
            Fate::Noticed(node, at) => self.check_noticed(node, at),
            Fate::Leaves(node) => self.leave(node),
            Fate::Left(node, process) => self.look_whether_left(node, process),
            Fate::Cut(one, other, time) => {
                note("node", one, "is cut off from node, for", [other as u64, time as u64]);
                self.between.struck += 1;
                self.between.dark.insert((one, other));
                if time >= HEAD_WAITS {
                    self.strike(one);
                    self.strike(other);
                }
                let until = Time(self.now.0 + time as u64) + FELT;
                self.feel(until);
                self.after(time, Event::Fate(Fate::Mended(one, other, time)));
            }
            Fate::Mended(one, other, time) => self.mend((one, other), time),
            Fate::Breaks => self.break_one(),
            Fate::Secrets(node, secrets) => self.replace_secrets(node, secrets),
        }
    }

    /// Notes that something goes wrong which may be felt until then.
    fn feel(&mut self, until: Time) {
        self.ledger.felt_until = self.ledger.felt_until.max(until);
        self.ledger.parking.unsettled(false, until, &mut self.ledger.exchanges);
    }

    /// Notes that whatever touches a node has a reason to fail.
    fn strike(&mut self, node: usize) {
        let homes: Vec<usize> = self.wiring.lock().links.iter().map(|link| link.home).collect();
        self.ledger.strike(node, &homes);
    }

    /// The process ends at once, and another one takes its place, soon or later.
    fn die(&mut self, node: usize) {
        if !self.is_up(node) || self.closing {
            return;
        }
        note("node", node, "dies", [0, 0]);
        self.between.struck += 1;
        self.strike(node);
        self.ledger.killed = true;
        let down = self.seed.pick(&[1_000, 200_000, 2_000_000]);
        let down = self.seed.range(0, down);
        self.begin_again(node, down);
    }

    /// A process has ended; the next one begins after so many microseconds.
    fn begin_again(&mut self, node: usize, down: usize) {
        let gateway = &mut self.gateways[node];
        self.ledger.dead.insert(gateway.node);
        let (number, next) = (gateway.node.number(), gateway.node.incarnation() + 1);
        gateway.node = Node::new(number, next).expect("the same number");
        gateway.up_at = Time(self.now.0 + down as u64);
        (gateway.leaves, gateway.finished_at) = (false, None);
        let up_at = gateway.up_at;
        self.feel(up_at + FELT);
        let cores = self.cores_of(node);
        for core in self.cores.drain(cores.clone()) {
            self.dead.add(core.shard().metrics());
        }
        let mut inboxes = Vec::new();
        for core in cores.clone() {
            let (mail, inbox) = mailbox(self.plan.mailbox).expect("a descriptor");
            self.mails[core] = mail;
            inboxes.push(inbox);
            self.wiring.lock().listen_anew(core);
            self.turns_at[core] = None;
            self.paused[core] = up_at;
        }
        for (core, inbox) in cores.zip(inboxes) {
            let made = self.core(core, 0, inbox);
            self.cores.insert(core, made);
            self.wake(core);
        }
    }

    /// A gateway is told to end in good order.
    fn leave(&mut self, node: usize) {
        if !self.is_up(node) || self.closing || self.gateways[node].leaves {
            return;
        }
        note("node", node, "leaves", [0, 0]);
        self.gateways[node].leaves = true;
        let homes: Vec<usize> = self.wiring.lock().links.iter().map(|link| link.home).collect();
        self.ledger.leave(node, &homes);
        for core in self.cores_of(node) {
            self.deliver(core, ShardMessage::Drain { max: DRAIN_MAX });
        }
        self.after(AGAIN, Event::Fate(Fate::Left(node, self.gateways[node].node)));
    }

    /// A gateway that was told to end and has not ended yet.
    pub(super) fn leaving(&self) -> Option<usize> {
        self.gateways.iter().position(|gateway| gateway.leaves)
    }

    /// What is left at a gateway, as text.
    pub(super) fn kept_by(&self, node: usize) -> String {
        let of_core = |core: usize| {
            let simulation = &self.cores[core].simulation;
            let links: Vec<i32> = simulation.sockets().map(|(link, _)| link).collect();
            let shard = &simulation.core().shard;
            let shut = self.wiring.lock().is_shut(core, Listener::Client);
            format!("core {core} (drains: {shut}): {} clients, links {links:?}\n", shard.clients())
        };
        self.cores_of(node).map(of_core).collect()
    }

    fn look_whether_left(&mut self, node: usize, process: Node) {
        if self.gateways[node].node != process {
            return;
        }
        let all = |is: fn(&Core) -> bool| self.cores_of(node).all(|core| is(&self.cores[core]));
        let finished = all(|core| core.simulation.core().finished());
        let silent = all(|core| core.simulation.sockets().next().is_none());
        let since = *self.gateways[node].finished_at.get_or_insert(self.now);
        if !finished {
            self.gateways[node].finished_at = None;
        }
        // Nobody waits for a peer that came at the very end.
        if !finished || (!silent && self.now < since + END_WAIT) {
            return self.after(AGAIN, Event::Fate(Fate::Left(node, process)));
        }
        note("node", node, "has left", [0, 0]);
        self.left += 1;
        self.gateways[node].leaves = false;
        if !self.closing {
            let down = self.seed.range(0, 500_000);
            self.begin_again(node, down);
        }
    }

    /// A cut is mended. Connections that TCP has given up meanwhile are lost.
    fn mend(&mut self, (one, other): (usize, usize), time: usize) {
        note("node", one, "reaches node again", [other as u64, 0]);
        self.between.dark.remove(&(one, other));
        if time >= TCP_GIVES_UP {
            self.strike(one);
            self.strike(other);
            let of = [(one, other), (other, one)];
            let lost: Vec<usize> = self
                .bridges()
                .filter(|(_, ends)| of.contains(ends))
                .map(|(link, _)| link)
                .collect();
            lost.into_iter().for_each(|link| self.sever(link, End::Timeout));
        }
        for link in self.between.stuck.clone() {
            self.cross(link);
        }
    }

    /// The links between gateways: the end that has dialled, and the nodes of both ends.
    fn bridges(&self) -> impl Iterator<Item = (usize, (usize, usize))> + use<> {
        let wires = self.wiring.lock();
        let of = |(number, link): (usize, &super::wire::Link)| {
            let other = link.other.filter(|_| link.from == Some(link.home) && !link.severed)?;
            Some((number, (link.home, wires.links[other].home)))
        };
        let all: Vec<_> = wires.links.iter().enumerate().filter_map(of).collect();
        all.into_iter()
    }

    fn break_one(&mut self) {
        let all: Vec<_> = self.bridges().collect();
        let open = |(link, _): &(usize, (usize, usize))| !self.wiring.lock().links[*link].closed;
        let all: Vec<_> = all.into_iter().filter(open).collect();
        if all.is_empty() || self.closing {
            return;
        }
        let (link, (one, other)) = self.seed.pick(&all);
        self.between.struck += 1;
        note("link", link, "breaks", [one as u64, other as u64]);
        self.strike(one);
        self.strike(other);
        self.feel(self.now + FELT);
        self.sever(link, End::Reset);
    }

    fn sever(&mut self, link: usize, end: End) {
        let mut wires = self.wiring.lock();
        wires.sever(link, end);
        let both = [Some(link), wires.links[link].other];
        let cores: Vec<usize> =
            both.into_iter().flatten().filter_map(|link| wires.links[link].core).collect();
        drop(wires);
        cores.into_iter().for_each(|core| self.wake(core));
    }

    // ---- at rest ----

    /// Checks what the gateways have counted of each other.
    pub(super) fn check_relays(&self, all: &ShardMetrics) {
        let relays = &all.relays;
        self.check_strangers(all);
        let paused = self.plan.pauses > 0 || self.plan.parking.is_some_and(|plan| plan.pauses > 0);
        if self.between.struck > 0 || self.left > 0 || paused {
            return;
        }
        self.check_all_strangers(all);
        use RelayOutcome::{Dead, Late, Refused, Unknown, Unreachable};
        // An id that nobody made may name any node.
        let made_up = self.plan.strangers > 0;
        for outcome in [Unreachable, Late, Refused, Dead, Unknown] {
            for cause in RelayCause::ALL.iter().filter(|_| !(made_up && outcome == Unknown)) {
                let callback = *cause == RelayCause::Callback;
                let late = if callback { self.between.late_callbacks } else { 0 };
                let failed = relays.of(*cause, outcome);
                assert!(failed <= late, "{cause:?}: {failed} were {outcome:?}");
            }
        }
        let pairs = [
            (RelayCause::Callback, TakenCause::Callback),
            (RelayCause::Client, TakenCause::Client),
        ];
        for (given, taken) in pairs {
            let given_all = relays.of(given, RelayOutcome::Relayed);
            let taken_all = relays.taken(taken, TakenOutcome::Taken);
            assert!(given_all <= taken_all, "{given:?}: {given_all} given, {taken_all} taken");
        }
    }
}
