//! Machines that vanish: nobody says that their connections have ended. Who sends to one hears nothing
//! until its own TCP gives up, or until the machine is there again and knows of no connection.

use std::time::Duration;

use ringway::net::End;
use ringway::reactor::KeepAlive;
use ringway_proto::time::Time;

use super::super::journal::note;
use super::super::ledger::maker;
use super::super::wire::Packet;
use super::super::world::{Event, World};
use super::{FELT, Fate};

/// When what went over a gateway that has vanished has ended (docs/many-gateways.md), and a second in
/// which that is told.
const NOTICED: Duration = Duration::from_secs(15);
const TOLD: Duration = Duration::from_secs(1);

/// How long a gateway may try to reach one that does not answer: the half second of a relay, and what
/// its core needs.
const DIALS: Duration = Duration::from_millis(700);

/// When a client or a worker gives up that hears nothing, in microseconds.
const PEERS_GIVE_UP: (usize, usize) = (1_000_000, 20_000_000);

/// How long the machine is away, at most.
const AWAY: [usize; 3] = [200_000, 4_000_000, 30_000_000];

impl World {
    /// The machine is gone without a word; another process is there sooner or later.
    pub(super) fn vanish(&mut self, node: usize) {
        if !self.is_up(node) || self.closing {
            return;
        }
        note("node", node, "vanishes", [0, 0]);
        self.between.struck += 1;
        self.between.vanished += 1;
        self.strike(node);
        self.ledger.killed = true;
        let (at, most) = (self.now, self.seed.pick(&AWAY));
        self.feel(at + NOTICED + FELT);
        let mut lost = Vec::new();
        let mut wires = self.wiring.lock();
        let ends = |link: &super::super::wire::Link| link.home == node && !link.closed;
        for (number, link) in wires.links.iter_mut().enumerate().filter(|(_, link)| ends(link)) {
            link.vanished = true;
            lost.push((number, link.other, link.from));
        }
        drop(wires);
        for (number, other, from) in lost {
            // What it had sent, and nobody had room for, is lost with it.
            self.between.stuck.remove(&number);
            let tcp = KeepAlive::BETWEEN_GATEWAYS.user_timeout.as_micros() as usize;
            match (other, from) {
                (Some(other), _) => {
                    self.actors[number].kept.clear();
                    let after = self.seed.range(tcp, NOTICED.as_micros() as usize);
                    self.after(after, Event::Fate(Fate::GivesUp(other)));
                }
                (None, None) => {
                    let after = self.seed.range(PEERS_GIVE_UP.0, PEERS_GIVE_UP.1);
                    self.after(after, Event::Fate(Fate::GivesUp(number)));
                }
                // It was being dialled from there.
                (None, Some(_)) => {}
            }
        }
        let down = self.seed.range(0, most);
        self.begin_again(node, down);
        let noticed = (NOTICED + TOLD).as_micros() as usize;
        self.after(noticed, Event::Fate(Fate::Noticed(node, at)));
    }

    /// Whether what is sent there is lost: the machine is away.
    pub(super) fn is_away(&self, node: usize) -> bool {
        self.between.vanished > 0 && !self.is_up(node)
    }

    /// Who has heard nothing for so long ends the connection by itself. `link`: the end of a gateway
    /// that lives, or that of the machine which vanished, to which a client or a worker has come.
    pub(super) fn give_up(&mut self, link: usize, end: End) {
        let mut wires = self.wiring.lock();
        let of = &mut wires.links[link];
        if of.vanished {
            if std::mem::replace(&mut of.peer_closed, true) {
                return;
            }
            drop(wires);
            note("link", link, "is given up by its peer", [0, 0]);
            self.actors[link].kept.push_back(Packet::Reset(end));
            return self.let_peer_read(link);
        }
        of.severed = true;
        if of.closed {
            return;
        }
        of.in_reset.get_or_insert(end);
        let core = of.core;
        drop(wires);
        note("link", link, "is given up", [0, 0]);
        if let Some(core) = core {
            self.wake(core);
        }
    }

    /// Something has come to an end of a connection that vanished with its machine: nobody answers,
    /// or the next process, which does not know the connection.
    pub(crate) fn came_for_nobody(&mut self, link: usize) {
        let wires = self.wiring.lock();
        let (home, other) = (wires.links[link].home, wires.links[link].other);
        drop(wires);
        if self.is_up(home) {
            self.give_up(other.unwrap_or(link), End::Reset);
        }
    }

    /// A gateway tries to reach one that does not answer: not for long.
    pub(super) fn dials_in_vain(&mut self, link: usize) {
        let since = *self.between.dials.entry(link).or_insert(self.now);
        let fine = self.plan.pauses > 0 || self.now < since + DIALS;
        assert!(fine, "link {link}: a gateway that does not answer is dialled without end");
    }

    /// A machine has vanished so long ago that everybody has to know.
    pub(super) fn check_noticed(&self, node: usize, at: Time) {
        if self.plan.pauses > 0 {
            return;
        }
        let wires = self.wiring.lock();
        for (number, link) in wires.links.iter().enumerate() {
            let other = link.other.map(|other| &wires.links[other]);
            let gone = other.is_some_and(|other| other.vanished && other.home == node);
            let kept = gone && !link.vanished && !link.closed;
            assert!(!kept, "link {number}: node {node} is gone, and it is kept");
        }
        // A peer that does not read has not seen its end, nor has one behind a way that is cut.
        let many = self.plan.many.expect("there are several");
        if self.plan.stalls > 0 || self.plan.sluggish > 0 || many.cuts > 0 {
            return;
        }
        for (number, exchange) in self.ledger.exchanges.iter().enumerate() {
            let lost = exchange.tunnel.filter(|tunnel| wires.links[*tunnel].home == node);
            let Some(id) = lost.and_then(|tunnel| self.ledger.tunnels.get(&tunnel)) else {
                continue;
            };
            let owner = maker(id).map(|owner| usize::from(owner.number()));
            let lives = owner == Some(wires.links[exchange.client].home) && owner != Some(node);
            let waits = exchange.outcome.is_none() && !exchange.quit && exchange.began < at;
            assert!(!waits || !lives, "exchange {number}: its tunnel is gone, and nobody tells it");
        }
    }
}
