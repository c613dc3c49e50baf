//! Gateways and a bucket, one seed, one clock: NATS goes and comes back empty, answers are late, lost
//! and in another order, gateways come, go and crash, clocks jump, secrets are replaced, strangers
//! write what they like. [`Claims`] decides as it does in a gateway; the part of `Nodes` is played here.

mod promises;
mod runs;
mod trouble;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use ringway_proto::id::{NODE_LIMIT, Node};
use ringway_proto::time::Time;
use serde_json::{Value, json};

use super::super::super::withdraw::Trouble;
use super::super::claims::{Ask, Claims, Heard, Next, Told};
use super::super::known::{Liveness, Look};
use super::super::record::{Addresses, Pace, Record};
use super::model::{Asker, Model, REFRESH, SECOND, Seed, TTL};
use crate::config::Secret;
use crate::keys::Keys;

/// How long a request may take (`API_LIMIT`).
const LIMIT: u64 = 5 * SECOND;
/// Where the gateways' clocks stand at first: they may jump back as well.
const NOON: u64 = 100 * 3600 * SECOND;
/// All live gateways see each other so long after the last disturbance, or after the last of them has
/// kept its name. An answer that is lost is waited for, then a refresh, then what was read before is
/// believed; and a second is for all requests.
const SEEN_WITHIN: u64 = LIMIT + REFRESH + 5 * SECOND + SECOND;
/// The same if another run's record lies in the place of a gateway's own: that must not be refreshed for
/// as long as a record lives.
const PUT_BACK_WITHIN: u64 = SEEN_WITHIN + TTL;

/// A request's name: which process, and which of its requests.
type Name = (usize, u64);

#[derive(Debug)]
enum Event {
    /// A request reaches the bucket.
    Reaches(Name, Ask),
    /// The answer that the bucket gave at that time is back.
    Answers(Name, Heard, u64),
    /// A request has taken too long.
    Late(Name),
    /// A gateway has rested; so many times before.
    Wakes(usize, u64),
    /// A gateway does not wait any longer until it is entered.
    Settles(usize),
    /// NATS is there again for one, or for all.
    Returns(Option<usize>),
    Starts(usize),
    /// The gateway of a host reads these secrets.
    Reloads(usize, Vec<usize>),
    Question,
    Disturbance,
    Calm,
    End,
}

/// A gateway's process.
struct Process {
    claims: Claims,
    run: u64,
    host: usize,
    addresses: Addresses,
    /// How far its clock is off, and when it has jumped.
    clock: i64,
    jumps: Vec<u64>,
    /// NATS is there for it.
    up: bool,
    connection: u64,
    /// Its pair, once it stays.
    kept: Option<Node>,
    /// The request about its own record, and those about others.
    own: Option<u64>,
    looks: BTreeMap<u64, Look>,
    rests: u64,
    secrets: Vec<usize>,
    /// Its record is to be signed anew.
    replaced: bool,
    /// The pair that it was told is somebody else's.
    refused: Option<Node>,
    leaves: bool,
    taken: bool,
    /// The latest request about each node that was answered.
    newest: BTreeMap<Node, u64>,
    /// Who was found dead, and during which stay of its own record.
    buried: BTreeMap<Node, u64>,
    /// Nodes whose records were not there at the first of some looks, at the latest, and at all between:
    /// when these two were.
    vain: BTreeMap<Node, (u64, u64)>,
}

/// What happened in a run, so that no run is of nothing.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    entered: u64,
    dead: u64,
    live: u64,
    taken: u64,
    shared: u64,
    unreadable: u64,
    checked: u64,
}

impl std::ops::AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.entered += other.entered;
        self.dead += other.dead;
        self.live += other.live;
        self.taken += other.taken;
        self.shared += other.shared;
        self.unreadable += other.unreadable;
        self.checked += other.checked;
    }
}

struct World {
    seed: Seed,
    at: u64,
    order: u64,
    queue: BTreeMap<(u64, u64), Event>,
    bucket: Model,
    /// NATS is there.
    up: bool,
    processes: Vec<Option<Process>>,
    hosts: Vec<Option<usize>>,
    /// Pairs that are drawn of; any if there are none.
    pool: Vec<Node>,
    /// What gateways start with; none: a cluster without a secret.
    secrets: Vec<usize>,
    /// What MACs were made with.
    signed: BTreeMap<String, usize>,
    requests: u64,
    calm: bool,
    /// When all must see each other.
    end: u64,
    /// All pairs that were kept.
    names: Vec<Node>,
    /// Pairs that were free in the bucket although somebody had them.
    excused: Vec<Node>,
    tally: Tally,
    /// Whether what happens is printed.
    shows: bool,
}

fn secret_keys(of: &[usize]) -> Option<Arc<Keys>> {
    let secret = |number: &usize| Secret::from(&*format!("secret number {number} of the cluster"));
    Keys::of(&of.iter().map(secret).collect::<Vec<_>>())
}

impl World {
    fn new(number: u64) -> Self {
        let mut seed = Seed(number ^ 0x5851_f42d_4c95_7f2d);
        let hosts = 2 + seed.below(5) as usize;
        let crowded = seed.chance(40);
        let mut world = Self {
            at: 0,
            order: 0,
            queue: BTreeMap::new(),
            bucket: Model::default(),
            up: true,
            processes: Vec::new(),
            hosts: vec![None; hosts],
            pool: Vec::new(),
            secrets: if seed.chance(85) { vec![0] } else { Vec::new() },
            signed: BTreeMap::new(),
            requests: 0,
            calm: false,
            end: 0,
            names: Vec::new(),
            excused: Vec::new(),
            tally: Tally::default(),
            shows: runs::number("RINGWAY_SIM_SEED").is_some(),
            seed,
        };
        if crowded {
            world.pool = (0..hosts + 2).map(|_| world.any_node()).collect();
        }
        for host in 0..hosts {
            world.start(host);
        }
        let lasts = (20 + world.seed.below(80)) * SECOND;
        let disturbances = 2 + world.seed.below(14);
        for _ in 0..disturbances {
            let at = world.seed.below(lasts);
            world.after(at, Event::Disturbance);
        }
        world.after(lasts, Event::Calm);
        world
    }

    fn any_node(&mut self) -> Node {
        let (number, incarnation) = (self.seed.next() as u16 % NODE_LIMIT, self.seed.next() as u16);
        Node::new(number, incarnation).unwrap()
    }

    fn draw(&mut self) -> Node {
        let pool = std::mem::take(&mut self.pool);
        let drawn = self.seed.pick(&pool);
        self.pool = pool;
        drawn.unwrap_or_else(|| self.any_node())
    }

    fn after(&mut self, micros: u64, event: Event) {
        self.order += 1;
        self.queue.insert((self.at + micros, self.order), event);
    }

    fn process(&mut self, id: usize) -> Option<&mut Process> {
        self.processes[id].as_mut()
    }

    fn live(&self) -> Vec<usize> {
        self.hosts.iter().flatten().copied().collect()
    }

    fn now(&self, id: usize) -> Time {
        let clock = self.processes[id].as_ref().map_or(0, |process| process.clock);
        Time((NOON + self.at).saturating_add_signed(clock))
    }

    fn lives(&self, run: u64) -> bool {
        self.processes.iter().flatten().any(|process| process.run == run && !process.leaves)
    }

    // ---- gateways ----

    fn start(&mut self, host: usize) {
        let (node, run) = (self.draw(), self.seed.next());
        let address = |port: u16| Some(SocketAddr::from(([10, 0, 0, host as u8 + 1], port)));
        let secrets = self.secrets.clone();
        let record = Record::of(format!("10.0.0.{}:10086", host + 1), run);
        let process = Process {
            claims: Claims::new(node, record, secret_keys(&secrets), Pace::default()),
            run,
            host,
            addresses: Addresses { relay: address(10087), admin: address(10083) },
            clock: 0,
            jumps: Vec::new(),
            up: self.up,
            connection: 1,
            kept: None,
            own: None,
            looks: BTreeMap::new(),
            rests: 0,
            secrets,
            replaced: false,
            refused: None,
            leaves: false,
            taken: false,
            newest: BTreeMap::new(),
            buried: BTreeMap::new(),
            vain: BTreeMap::new(),
        };
        let id = self.processes.len();
        self.processes.push(Some(process));
        self.hosts[host] = Some(id);
        let limit = if self.seed.chance(30) { 0 } else { 10 * SECOND };
        let limit = self.seed.below(limit + 1);
        self.after(limit, Event::Settles(id));
        self.drive(id);
    }

    /// Does what is to be done about a gateway's own record, as `Nodes` does.
    fn drive(&mut self, id: usize) {
        loop {
            let Some(process) = &mut self.processes[id] else { return };
            if process.own.is_some() {
                return;
            }
            let next = process.claims.next(&process.addresses);
            if next == Next::Draw {
                // Of 2^28 nobody draws the same twice.
                let refused = process.refused;
                let node =
                    std::iter::repeat_with(|| self.draw()).find(|node| Some(*node) != refused);
                self.process(id).unwrap().claims.drawn(node.unwrap());
                continue;
            }
            let process = self.process(id).unwrap();
            let leaves = process.leaves;
            if !process.up && !leaves {
                return;
            }
            match next {
                Next::Ask(ask) => {
                    if let Some(name) = self.send(id, ask) {
                        self.process(id).unwrap().own = Some(name);
                    }
                    return;
                }
                Next::Pause => return self.rest(id, SECOND / 20),
                Next::Rest if leaves => return self.gone(id),
                Next::Rest => {
                    if self.settle(id) {
                        continue;
                    }
                    for node in self.processes[id].as_ref().unwrap().claims.missed() {
                        self.look(id, node);
                    }
                    let process = self.process(id).unwrap();
                    if std::mem::take(&mut process.replaced) {
                        process.claims.due(Some(process.connection));
                        continue;
                    }
                    return self.rest(id, REFRESH);
                }
                Next::Draw => unreachable!("it was drawn"),
            }
        }
    }

    fn rest(&mut self, id: usize, micros: u64) {
        let process = self.process(id).unwrap();
        process.rests += 1;
        let rests = process.rests;
        self.after(micros, Event::Wakes(id, rests));
    }

    fn wake(&mut self, id: usize) {
        let free = |process: &&mut Process| process.own.is_none() && process.up;
        if let Some(process) = self.process(id).filter(free) {
            process.rests += 1;
            process.claims.again();
            process.claims.due(Some(process.connection));
            self.drive(id);
        }
    }

    /// Its pair stays from now on; whether it did not before. Then its record is refreshed at once.
    fn settle(&mut self, id: usize) -> bool {
        let Some(process) = self.process(id).filter(|process| process.kept.is_none()) else {
            return false;
        };
        process.own = None;
        process.claims.settle();
        process.claims.due(Some(process.connection));
        let (node, run) = (process.claims.me(), process.run);
        let entered = process.claims.was_entered();
        process.kept = Some(node);
        assert!(process.refused != Some(node), "{node} was somebody else's, and is kept");
        self.names.push(node);
        self.tally.entered += u64::from(entered);
        // The record may be gone before its gateway hears that it was entered.
        if !entered || self.bucket.run_at(node) != Some(run) {
            self.excuse(node, id);
        }
        if self.calm {
            self.end = self.end.max(self.at + self.seen_within());
        }
        true
    }

    /// Who has this pair beside `id` without a record cannot be known to it.
    fn excuse(&mut self, node: Node, id: usize) {
        let there = self.bucket.run_at(node);
        let others = self.processes.iter().enumerate().filter(|(other, _)| *other != id);
        let mut others = others.filter_map(|(_, process)| process.as_ref());
        let known = self.processes[id].as_ref().is_some_and(|process| there == Some(process.run));
        if others.any(|other| other.kept == Some(node) && (known || there != Some(other.run)))
            || (!known && there.is_some_and(|run| self.lives(run)))
        {
            self.excused.push(node);
        }
    }

    fn gone(&mut self, id: usize) {
        if let Some(process) = self.processes[id].take()
            && self.hosts[process.host] == Some(id)
        {
            self.hosts[process.host] = None;
        }
    }

    // ---- requests ----

    /// A time that a way takes.
    fn way(&mut self) -> u64 {
        let most = match self.seed.below(100) {
            _ if self.calm => 5,
            0..85 => 20,
            85..96 => 2_000,
            _ => 9_000,
        };
        1 + self.seed.below(most * 1_000)
    }

    fn send(&mut self, id: usize, ask: Ask) -> Option<u64> {
        self.requests += 1;
        let name = (id, self.requests);
        if let Ask::Put { bytes, .. } = &ask {
            let process = self.processes[id].as_ref().unwrap();
            let value: Value = serde_json::from_slice(bytes).unwrap();
            if let (Some(mac), Some(first)) = (value["mac"].as_str(), process.secrets.first()) {
                self.signed.insert(mac.to_owned(), *first);
            }
        }
        let lost = !self.calm && self.seed.chance(3);
        if !lost {
            let way = self.way();
            self.after(way, Event::Reaches(name, ask));
        }
        self.after(LIMIT, Event::Late(name));
        Some(name.1)
    }

    fn look(&mut self, id: usize, node: Node) {
        let now = self.now(id);
        let Some(process) = self.process(id).filter(|process| process.up) else { return };
        let look = process.claims.look(node, now);
        if let Some(name) = self.send(id, Ask::Read(node)) {
            self.process(id).unwrap().looks.insert(name, look);
        }
    }

    /// Somebody asks a gateway about a node.
    fn question(&mut self, id: usize, node: Node) {
        let now = self.now(id);
        // Before its name is settled, a gateway knows of no other.
        if self.process(id).is_none_or(|process| process.kept.is_none()) {
            return;
        }
        let known = self.process(id).and_then(|process| process.claims.known(node, now));
        match known {
            Some(liveness) => self.judge_live(id, node, &liveness),
            None => self.look(id, node),
        }
    }

    fn reaches(&mut self, name: Name, ask: &Ask) {
        if !self.up {
            return;
        }
        // What a process has sent before it was gone is nobody's any more.
        let asker = self.processes[name.0].as_ref();
        let by = asker.map_or(Asker { run: 0, jumps: &[] }, |process| Asker {
            run: process.run,
            jumps: &process.jumps,
        });
        let live = self.processes.iter().flatten().filter(|process| !process.leaves);
        let live: Vec<u64> = live.map(|process| process.run).collect();
        let heard = self.bucket.ask(self.at, by, ask, |run| live.contains(&run));
        let (Ask::Put { node, .. } | Ask::Read(node) | Ask::Delete { node, .. }) = *ask;
        if let (Ask::Put { .. }, Heard::Done(_)) = (ask, &heard) {
            self.excuse(node, name.0);
        }
        if self.calm || !self.seed.chance(3) {
            let way = self.way();
            self.after(way, Event::Answers(name, heard, self.at));
        }
    }

    fn answers(&mut self, (id, name): Name, heard: Heard, given: u64) {
        let now = self.now(id);
        let Some(process) = &mut self.processes[id] else { return };
        if process.own == Some(name) {
            process.own = None;
            if matches!(heard, Heard::Refused) {
                process.refused = Some(process.claims.me());
            }
            process.claims.heard(heard, now);
            self.listen(id);
            return self.drive(id);
        }
        let Some(look) = process.looks.remove(&name) else { return };
        let worker = format!("10.0.0.{}:10086", process.host + 1);
        let nothing = matches!(heard, Heard::Found(None));
        let said = nothing || matches!(heard, Heard::Found(_));
        let (found, own) = match heard {
            Heard::Found(found) => {
                let own = found.as_ref().is_some_and(|(bytes, _)| {
                    String::from_utf8_lossy(bytes).contains(&*format!("\"{worker}\""))
                });
                (Ok(found.map(|(bytes, _)| bytes)), own)
            }
            Heard::Failed(trouble) => (Err(trouble), false),
            Heard::Done(_) | Heard::Refused => unreachable!("it was read"),
        };
        let before = process.claims.known(look.node, now);
        let liveness = process.claims.looked(look, found, now);
        let newest = process.newest.entry(look.node).or_default();
        let overtaken = name < *newest;
        *newest = name.max(*newest);
        if said && !overtaken {
            let before = process.vain.remove(&look.node).filter(|(_, last)| {
                let jumps = process.jumps.iter().any(|at| at >= last);
                jumps || !self.bucket.lived_between(look.node, *last, given)
            });
            if nothing {
                let since = before.map_or(given, |(since, _)| since);
                process.vain.insert(look.node, (since, given));
            }
        }
        let spell = process.claims.spell(now).unwrap_or_default();
        let again = process.buried.get(&look.node) == Some(&spell);
        match liveness {
            _ if overtaken => {}
            Liveness::Live(_) => drop(process.buried.remove(&look.node)),
            Liveness::Dead if own => drop(process.buried.insert(look.node, 0)),
            Liveness::Dead if process.buried.get(&look.node) == Some(&0) || again => {}
            Liveness::Dead if before.as_ref() != Some(&liveness) => {
                process.buried.insert(look.node, spell);
                self.judge_dead(id, look.node);
            }
            Liveness::Dead | Liveness::Unknown => {}
        }
        self.listen(id);
        self.judge_live(id, look.node, &liveness);
    }

    /// All that a gateway waits for fails at once.
    fn fails(&mut self, id: usize) {
        let now = self.now(id);
        let Some(process) = self.process(id) else { return };
        process.up = false;
        for (_, look) in std::mem::take(&mut process.looks) {
            process.claims.looked(look, Err(Trouble::Down), now);
        }
        if process.own.take().is_some() {
            process.claims.heard(Heard::Failed(Trouble::Down), now);
        }
        self.listen(id);
        if self.process(id).is_some_and(|process| process.leaves) {
            self.gone(id);
        }
    }

    fn listen(&mut self, id: usize) {
        let Some(process) = self.process(id) else { return };
        let told = process.claims.told();
        let taken = told.contains(&Told::Taken);
        process.taken |= taken;
        self.tally.taken += u64::from(taken);
        let unreadable = told.iter().filter(|told| matches!(told, Told::Unreadable(..)));
        self.tally.unreadable += unreadable.count() as u64;
    }
}
