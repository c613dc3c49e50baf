//! Machines that vanish: nobody says that their connections have ended. A peer that sends to such a
//! machine hears nothing until its own TCP gives up, or until the machine is there again and knows of
//! no connection.

use std::os::fd::RawFd;
use std::time::Duration;

use ringway::net::End;
use ringway::reactor::KeepAlive;
use ringway_proto::time::Time;

use super::super::journal::note;
use super::super::ledger::maker;
use super::super::wire::{Link, Packet};
use super::super::world::{Event, World};
use super::{FELT, Fate};

/// Connections to a gateway that has vanished end within this time (docs/many-gateways.md).
const NOTICED: Duration = Duration::from_secs(15);
/// Those who used them are told within so much more time.
const TOLD: Duration = Duration::from_secs(1);

/// A gateway may try for so long to reach one that does not answer: the half second of a relay, and
/// the time that its core needs.
const DIALS: Duration = Duration::from_millis(700);

/// A client or a worker that hears nothing gives up within these times, in microseconds.
const PEERS_GIVE_UP: (usize, usize) = (1_000_000, 20_000_000);

/// How long the machine is away, at most.
const AWAY: [usize; 3] = [200_000, 4_000_000, 30_000_000];

impl World {
    /// The machine is gone without a word. Another process is there sooner or later.
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
        let ends = |link: &Link| link.home == node && !link.closed;
        for (number, link) in wires.links.iter_mut().enumerate().filter(|(_, link)| ends(link)) {
            link.vanished = Some(at);
            lost.push((number, link.other, link.from));
        }
        drop(wires);
        for (number, other, from) in lost {
            // Packets for which nobody had room are lost with the machine that sent them.
            self.between.stuck.remove(&number);
            let tcp = KeepAlive::BETWEEN_GATEWAYS.user_timeout.as_micros() as usize;
            match (other, from) {
                (Some(other), _) => {
                    let lost = self.actors[number].kept.drain(..).count();
                    if lost > 0 {
                        // Whatever was sent behind lost packets never becomes readable.
                        self.wiring.lock().links[number].lose_sent();
                    }
                    let after = self.seed.range(tcp, NOTICED.as_micros() as usize);
                    self.after(after, Event::Fate(Fate::GivesUp(other)));
                }
                (None, None) => {
                    let after = self.seed.range(PEERS_GIVE_UP.0, PEERS_GIVE_UP.1);
                    self.after(after, Event::Fate(Fate::GivesUp(number)));
                }
                // The machine was still dialling this one.
                (None, Some(_)) => {}
            }
        }
        let down = self.seed.range(0, most);
        self.begin_again(node, down);
        let noticed = (NOTICED + TOLD).as_micros() as usize;
        self.after(noticed, Event::Fate(Fate::Noticed(node, at)));
    }

    /// Whether packets to this gateway are lost, since its machine is away.
    pub(super) fn is_away(&self, node: usize) -> bool {
        self.between.vanished > 0 && !self.is_up(node)
    }

    /// A peer that has heard nothing for so long ends its connection by itself. `link` is the end of a
    /// gateway that lives, or the end of the machine that vanished, if a client or a worker had come
    /// to it.
    pub(super) fn give_up(&mut self, link: usize, end: End) {
        let mut wires = self.wiring.lock();
        let of = &mut wires.links[link];
        if of.vanished.is_some() {
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

    /// A packet has come to an end of a connection that vanished with its machine. The next process
    /// answers that it does not know the connection. Nobody answers before that process is there.
    pub(crate) fn came_for_nobody(&mut self, link: usize) {
        let wires = self.wiring.lock();
        let (home, other) = (wires.links[link].home, wires.links[link].other);
        drop(wires);
        if self.is_up(home) {
            self.give_up(other.unwrap_or(link), End::Reset);
        }
    }

    /// Checks that a gateway does not try for long to reach one that does not answer.
    pub(super) fn dials_in_vain(&mut self, link: usize) {
        let since = *self.between.dials.entry(link).or_insert(self.now);
        let fine = self.plan.pauses > 0 || self.now < since + DIALS;
        assert!(fine, "link {link}: a gateway that does not answer is dialled without end");
    }

    /// Checks that everybody knows of a machine that has vanished so long ago.
    pub(super) fn check_noticed(&self, node: usize, at: Time) {
        if self.plan.pauses > 0 {
            return;
        }
        let wires = self.wiring.lock();
        // The same machine may have vanished once more since then.
        let gone = |link: &Link| link.home == node && link.vanished.is_some_and(|then| then <= at);
        for (number, link) in wires.links.iter().enumerate() {
            let other = link.other.map(|other| &wires.links[other]);
            // An HTTP/2 tunnel that is used up is not read while its spare is on its way, and ends with
            // that wait.
            let reads =
                |core: usize| self.cores[core].simulation.kernel().receives(number as RawFd);
            let read = link.core.is_none_or(reads);
            let kept = other.is_some_and(gone) && link.vanished.is_none() && !link.closed && read;
            assert!(!kept, "link {number}: node {node} is gone, and it is kept");
        }
        // A peer that does not read, or is behind a cut, has not seen the end of its request.
        let many = self.plan.many.expect("there are several");
        if self.plan.stalls > 0 || self.plan.sluggish > 0 || many.cuts > 0 {
            return;
        }
        for (number, exchange) in self.ledger.exchanges.iter().enumerate() {
            let lost = exchange.tunnel.filter(|tunnel| gone(&wires.links[*tunnel]));
            let Some(id) = lost.and_then(|tunnel| self.ledger.tunnels.get(&tunnel)) else {
                continue;
            };
            let owner = maker(id).map(|owner| usize::from(owner.number()));
            let client = &wires.links[exchange.client];
            // A gateway that has vanished too tells its clients nothing.
            let lives =
                owner == Some(client.home) && owner != Some(node) && client.vanished.is_none();
            let waits = exchange.outcome.is_none() && !exchange.quit && exchange.began < at;
            assert!(!waits || !lives, "exchange {number}: its tunnel is gone, and nobody tells it");
        }
    }
}
