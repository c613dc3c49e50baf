//! What the world does with cores: their turns, what they are told from outside, and panics.

use std::time::Duration;

use ringway::log::Lines;
use ringway::mailbox::Full;
use ringway::message::ShardMessage;
use ringway::net::End;
use ringway::reactor::Wait;
use ringway_proto::time::Time;

use super::super::journal::note;
use super::super::wire::Packet;
use super::{Event, World};

/// A message for which a core had no room is tried again after so many microseconds.
const POST_PAUSE: usize = 2_000;

/// A core may have so many turns in a row that do nothing and are followed by another one at once.
const IDLE_TURNS: u32 = 300;
const TURNS: u64 = 400_000;

impl World {
    /// Tells every core to drain. From now on anything may be refused or cut off.
    pub(super) fn drain(&mut self) {
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

    pub(crate) fn wake(&mut self, core: usize) {
        let after = self.seed.range(1, 30);
        self.turn_by(core, Time(self.now.0 + after as u64));
    }

    pub(crate) fn turn_by(&mut self, core: usize, at: Time) {
        let at = at.max(self.paused[core]);
        if self.turns_at[core].is_none_or(|planned| at < planned) {
            self.turns_at[core] = Some(at);
            self.at(at, Event::Turn(core));
        }
    }

    /// Lets a core do nothing until then.
    pub(crate) fn pause(&mut self, core: usize, until: Time) {
        self.paused[core] = until;
        if self.turns_at[core].take().is_some() {
            self.turn_by(core, until);
        }
    }

    /// Sends a core a message, however long its mailbox is full.
    pub(crate) fn deliver(&mut self, core: usize, message: ShardMessage) {
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

    pub(super) fn turn(&mut self, number: usize) {
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
    pub(super) fn crash(&mut self, number: usize) {
        note("core", number, "panics", [0, 0]);
        self.ledger.crashed = true;
        self.ledger.parking.unsettled(false, self.now, &mut self.ledger.exchanges);
        for exchange in &mut self.ledger.exchanges {
            exchange.excuse = true;
        }
        self.lose_answers(number);
        self.generations += 1 << 20;
        self.dead.add(self.cores[number].shard().metrics());
        // The core's sockets are closed with it, and so are those on their way to it.
        drop(self.cores.remove(number));
        let inbox = self.mails[number].reopen().expect("nobody receives");
        let core = self.core(number, self.generations, inbox);
        self.cores.insert(number, core);
        self.wake(number);
    }

    pub(super) fn arrived_at_gateway(&mut self, number: usize) {
        let mut wires = self.wiring.lock();
        let link = &mut wires.links[number];
        if link.vanished.is_some() {
            let _lost = link.arrived_at_gateway();
            drop(wires);
            return self.came_for_nobody(number);
        }
        match link.arrived_at_gateway() {
            Some(Packet::Bytes(bytes)) if !link.closed => link.inbound.extend(bytes),
            Some(Packet::Fin) => link.in_fin = true,
            Some(Packet::Reset(end)) => link.in_reset = Some(end),
            // A kernel answers with a RST what comes for a socket that is closed.
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
}
