//! What the world does with far ends: lets them come, hear what was sent to them, and do what they want.

use std::collections::VecDeque;

use ringway::net::{End, Listener};
use ringway_proto::time::Time;

use super::super::client::Client;
use super::super::client1::Client1;
use super::super::journal::note;
use super::super::peer::{Act, Peer, Stage};
use super::super::plan::Plan;
use super::super::poll::Poll;
use super::super::stranger::Stranger;
use super::super::tunnel::Tunnel;
use super::super::wire::{Link, Packet};
use super::{Event, Guest, World};

/// A peer tries again after so many microseconds to connect to a gateway that is down.
const KNOCK_PAUSE: usize = 100_000;

/// A far end and its side of the wire.
pub(crate) struct Actor {
    pub(super) peer: Box<dyn Peer>,
    reading: bool,
    /// Packets that have arrived and that the far end has not read.
    pub(crate) kept: VecDeque<Packet>,
    pub(super) tick_at: Option<Time>,
}

impl Actor {
    pub(crate) fn new(peer: Box<dyn Peer>) -> Self {
        Self { peer, reading: true, kept: VecDeque::new(), tick_at: None }
    }
}

impl World {
    pub(super) fn knock(&mut self, guest: Guest) {
        let client = matches!(guest, Guest::Client(_));
        let listener = guest.listener();
        let leaves = self.closing && !matches!(guest, Guest::Dial { .. });
        let core = match self.plan.many {
            None => Some(self.seed.below(self.cores.len())),
            Some(_) => self.core_for(&guest, listener),
        };
        let core = core.filter(|core| !leaves && !self.wiring.lock().is_shut(*core, listener));
        let Some(core) = core else {
            let stranger = matches!(guest, Guest::Stranger { .. });
            if self.plan.many.is_some() && !self.closing && !stranger {
                // The gateway is down, and the guest tries again.
                return self.after(KNOCK_PAUSE, Event::Knock(guest));
            }
            self.has_come(&guest);
            return;
        };
        self.has_come(&guest);
        if self.is_kept_out(&guest, core) {
            return;
        }
        let number = self.actors.len();
        let Plan { delay, capacity, cut, .. } = self.plan;
        let mut link = Link::new(delay, capacity, cut);
        let home = self.node_of(core);
        (link.core, link.home) = (Some(core), home);
        if let Guest::Stranger { says, .. } = guest {
            link.host = says.host();
        }
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
            Guest::Stranger { says, .. } => {
                Box::new(Stranger::new(number, (says, self.gateways[home].node), &mut stage))
            }
        };
        let comes = match listener {
            Listener::Client => "comes from a client to core",
            Listener::Worker => "comes from a worker to core",
            Listener::Cluster => "comes from a stranger to core",
        };
        note("link", number, comes, [core as u64, 0]);
        if client {
            self.ledger.parking.client_comes(number);
        }
        self.actors.push(Actor::new(peer));
        self.wiring.lock().knock(core, listener, number);
        self.wake(core);
        self.carry_out(number, acts);
        self.tick_within(number, 300);
    }

    /// Whether the kernel throws away what a guest sends to a core. Such a guest does not try again.
    fn is_kept_out(&mut self, guest: &Guest, core: usize) -> bool {
        let Guest::Stranger { says, .. } = guest else { return false };
        let kept_out = self.wiring.lock().keeps_out(core, Listener::Cluster, says.host());
        self.ledger.strange.kept_out += u64::from(kept_out);
        kept_out
    }

    /// Nobody waits for this guest any more.
    fn has_come(&mut self, guest: &Guest) {
        match guest {
            Guest::Client(_) => self.clients_to_come -= 1,
            Guest::Dial { .. } if self.plan.many.is_some() => {
                self.dials_to_come -= 1;
                self.between.late_callbacks += u64::from(self.ledger.draining);
            }
            Guest::Dial { .. } | Guest::Poll { .. } | Guest::Stranger { .. } => {}
        }
    }

    pub(super) fn tick_within(&mut self, actor: usize, most: usize) {
        let after = self.seed.range(1, most);
        let at = Time(self.now.0 + after as u64);
        if self.actors[actor].tick_at.is_none_or(|planned| at < planned) {
            self.actors[actor].tick_at = Some(at);
            self.at(at, Event::Tick(actor));
        }
    }

    /// Gives the peer what has arrived, as far as it reads.
    pub(crate) fn let_peer_read(&mut self, number: usize) {
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

    pub(super) fn ask(&mut self, number: usize, what: impl FnOnce(&mut dyn Peer, &mut Stage<'_>)) {
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
        // The answer to what is read now comes behind what was just said.
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
