//! A connection that another gateway brings, or somebody who pretends to be one. Its prelude is
//! cheap to judge, and a peer that cannot prove it has cost a few hundred octets.

use std::net::SocketAddr;

use ringway_proto::h2::Carried;
use ringway_proto::prelude::{
    CHALLENGE_LENGTH, HEAD_LENGTH, MAC_LENGTH, MOST_REST, Matter, Prelude, PreludeFault, Verdict,
};
use ringway_proto::time::Time;

use super::super::facts::{Arrived, Fact, ForWorkers};
use super::super::table::Key;
use super::super::timer::Due;
use super::super::turn::Turn;
use super::{ConnRole, MOST_CARRIED, Nodes, PATIENCE, Ready};
use crate::carry::{Client, Said};
use crate::control::port::Plane;
use crate::keys::Keys;
use crate::log::Line;
use crate::metrics::{TakenCause, TakenOutcome};
use crate::net::{Close, ConnId, End};
use crate::pool::Segment;

/// Octets that may come before the verdict.
const MOST_SAID: usize = HEAD_LENGTH + MOST_REST + MAC_LENGTH;

/// A connection that another gateway has made.
pub(super) struct Arrival {
    pub(super) conn: ConnId,
    peer: SocketAddr,
    challenge: [u8; CHALLENGE_LENGTH],
    /// The octets that have come and are not read yet.
    bytes: Vec<u8>,
    /// The deadline of the present step.
    until: Time,
    pub(super) step: Coming,
}

/// How far the connection has come.
pub(super) enum Coming {
    /// The prelude is not whole.
    Listening,
    /// The prelude is proved. Whether there is room is being asked.
    Knocking(Prelude),
    /// The connection is taken. What its client has said so far is coming.
    Reading(Prelude),
    /// All that the client has said so far is here.
    Ready { prelude: Prelude, ended: Option<End> },
}

impl std::fmt::Debug for Arrival {
    // The received bytes may hold credentials, and the challenge is a secret until it is answered.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Arrival").field("peer", &self.peer).finish_non_exhaustive()
    }
}

/// Why a prelude is refused.
struct Refusal {
    cause: TakenCause,
    outcome: TakenOutcome,
    verdict: Option<Verdict>,
}

impl Refusal {
    fn of_nobody(outcome: TakenOutcome, verdict: Verdict) -> Self {
        Self { cause: TakenCause::None, outcome, verdict: Some(verdict) }
    }
}

impl Arrival {
    /// Whether the gateway that has brought it was told that the connection goes on here.
    pub(super) fn is_taken(&self) -> bool {
        matches!(self.step, Coming::Reading(_) | Coming::Ready { .. })
    }

    /// The prelude that has come, if all of it is here and a gateway of this cluster has signed it.
    fn judged(&self, keys: &Keys) -> Result<Option<Prelude>, Refusal> {
        let length = Prelude::length(&self.bytes).map_err(Refusal::of)?;
        match length.filter(|length| self.bytes.len() >= length + MAC_LENGTH) {
            None => Ok(None),
            Some(length) => {
                let (prelude, mac) = self.bytes.split_at(length);
                if keys.proves_prelude(&self.challenge, prelude, mac) {
                    Prelude::from_bytes(prelude).map(Some).map_err(Refusal::of)
                } else {
                    Err(Refusal::of_nobody(TakenOutcome::Forged, Verdict::Forged))
                }
            }
        }
    }
}

impl Nodes {
    /// A peer has connected: it is sent its challenge.
    pub(super) fn arrive(
        &mut self,
        turn: &mut Turn<'_>,
        conn: ConnId,
        (peer, challenge): (SocketAddr, [u8; CHALLENGE_LENGTH]),
    ) {
        let (bytes, until, step) = (Vec::new(), turn.now + PATIENCE, Coming::Listening);
        let key = self.arrivals.insert(Arrival { conn, peer, challenge, bytes, until, step });
        self.roles.insert(conn, ConnRole::Arriving(key));
        turn.put(conn, &challenge);
        turn.arm(until, Due::Arrival(key));
    }

    pub(super) fn arriving_says(&mut self, turn: &mut Turn<'_>, key: Key, segment: Segment) {
        let of = self.arrival(key);
        of.bytes.extend_from_slice(turn.net.pool.bytes(segment));
        let most = match of.step {
            Coming::Listening | Coming::Knocking(_) => MOST_SAID,
            Coming::Reading(_) | Coming::Ready { .. } => MOST_CARRIED + segment.len as usize,
        };
        if of.bytes.len() > most {
            let refusal = Refusal::of_nobody(TakenOutcome::Garbled, Verdict::Garbled);
            return self.refuse(turn, key, &refusal);
        }
        match of.step {
            Coming::Listening => self.judge(turn, key),
            Coming::Reading(prelude) => self.read(key, prelude),
            Coming::Knocking(_) | Coming::Ready { .. } => {}
        }
    }

    /// Judges whether the bytes are a prelude for this node, signed by a gateway of this cluster.
    fn judge(&mut self, turn: &mut Turn<'_>, key: Key) {
        let judged =
            self.keys.as_ref().zip(self.arrivals.get(key)).map(|(keys, of)| of.judged(keys));
        match judged {
            // The rest is on its way.
            None | Some(Ok(None)) => {}
            Some(Ok(Some(prelude))) => match is_for_here(turn, prelude) {
                Ok(()) => {
                    let of = self.arrivals.get_mut(key).expect("it has just been looked at");
                    self.suspects.proved(of.peer, turn.now);
                    let (conn, client) = (of.conn, matches!(prelude.matter, Matter::Client(..)));
                    of.bytes.clear();
                    of.step = Coming::Knocking(prelude);
                    turn.fact(Fact::Knock { conn, client });
                }
                Err(refusal) => self.refuse(turn, key, &refusal),
            },
            Some(Err(refusal)) => self.refuse(turn, key, &refusal),
        }
    }

    /// The answer whether there is room for the connection.
    pub(super) fn admitted(&mut self, turn: &mut Turn<'_>, key: Key, room: bool) {
        if let Coming::Knocking(prelude) = self.arrival(key).step {
            let (cause, outcome) = (cause_of(prelude.matter), TakenOutcome::Full);
            if room {
                self.take_in(turn, key, prelude);
            } else {
                let verdict = Some(Verdict::Full);
                self.refuse(turn, key, &Refusal { cause, outcome, verdict });
            }
        }
    }

    /// The connection belongs to this gateway from now on.
    fn take_in(&mut self, turn: &mut Turn<'_>, key: Key, prelude: Prelude) {
        let of = self.arrival(key);
        let (conn, cause) = (of.conn, cause_of(prelude.matter));
        turn.metrics.relays.count_taken(cause, TakenOutcome::Taken);
        turn.put(conn, &[Verdict::Taken as u8]);
        match prelude.matter {
            Matter::Callback(opening) => {
                self.remove_arrival(key);
                let opened = before(turn.now, opening.age);
                let arrived = Arrived { conn, peer: opening.peer, opened, via: prelude.from };
                turn.workers(ForWorkers::Arrived(Box::new(arrived)));
            }
            Matter::Client(..) => {
                of.step = Coming::Reading(prelude);
                of.until = turn.now + turn.settings.config.limits.handshake;
                turn.arm(of.until, Due::Arrival(key));
                self.read(key, prelude);
            }
            Matter::Leave => {
                self.remove_arrival(key);
                turn.net.close(conn, Close::Flush);
                turn.fact(Fact::NodeLeaves { node: prelude.from });
            }
        }
    }

    /// Looks whether all is here that its client had said.
    fn read(&mut self, key: Key, prelude: Prelude) {
        let of = self.arrival(key);
        if let Matter::Client(opening, _) = prelude.matter
            && of.bytes.len() >= opening.received as usize
        {
            of.step = Coming::Ready { prelude, ended: None };
            self.ready.push(ConnRole::Arriving(key));
        }
    }

    /// The deadline of an arrival has passed ([`Due::Arrival`]).
    pub(crate) fn arrival_late(&mut self, turn: &mut Turn<'_>, key: Key) {
        let of = self.arrivals.get(key).filter(|of| of.until <= turn.now);
        let cause = of.and_then(|of| match of.step {
            Coming::Listening => Some(TakenCause::None),
            Coming::Reading(_) => Some(TakenCause::Client),
            Coming::Knocking(_) | Coming::Ready { .. } => None,
        });
        if let Some(cause) = cause {
            self.refuse(turn, key, &Refusal { cause, outcome: TakenOutcome::Late, verdict: None });
        }
    }

    pub(super) fn arriving_ended(&mut self, turn: &mut Turn<'_>, key: Key, end: End) {
        let of = self.arrival(key);
        if let Coming::Ready { ended, .. } = &mut of.step
            && end.is_half()
        {
            *ended = Some(end);
            return;
        }
        // A peer that sends nothing at all, such as a health check, is not counted.
        if matches!(of.step, Coming::Listening) && !of.bytes.is_empty() {
            turn.metrics.relays.count_taken(TakenCause::None, TakenOutcome::Garbled);
            let peer = of.peer;
            self.suspects.failed(peer, turn.now);
        }
        let of = self.arrival(key);
        let conn = of.conn;
        self.remove_arrival(key);
        turn.net.close(conn, Close::Flush);
    }

    fn refuse(&mut self, turn: &mut Turn<'_>, key: Key, refusal: &Refusal) {
        let Arrival { conn, peer, .. } = *self.arrival(key);
        let Refusal { cause, outcome, verdict } = *refusal;
        if cause == TakenCause::None {
            self.suspects.failed(peer, turn.now);
        }
        self.remove_arrival(key);
        if let Some(verdict) = verdict {
            turn.put(conn, &[verdict as u8]);
        }
        turn.net.close(conn, Close::Flush);
        turn.metrics.relays.count_taken(cause, outcome);
        if let Some(left_out) = self.hush.refused.may_say(turn.now) {
            turn.line(Line::PreludeRefused { peer, outcome, left_out });
        }
    }

    /// A client that another gateway has brought.
    pub(super) fn take_arrived(&mut self, key: Key, now: Time) -> Option<Ready> {
        let Arrival { conn, bytes, step, .. } = self.remove_arrival(key)?;
        let (prelude, ended) = match step {
            Coming::Ready { prelude, ended } => Some((prelude, ended)),
            _ => None,
        }?;
        let (opening, heard) = match prelude.matter {
            Matter::Client(opening, heard) => Some((opening, heard)),
            Matter::Callback(_) | Matter::Leave => None,
        }?;
        let said = match heard {
            None => Said::Heard(bytes),
            Some(heard) => {
                Said::Http2(Carried { told: heard.told, received: bytes, written: heard.written })
            }
        };
        let client = Client { peer: opening.peer, opened: before(now, opening.age), said };
        Some(Ready { conn, client, via: Some(prelude.from), ended })
    }
}

impl Refusal {
    fn of(fault: PreludeFault) -> Self {
        match fault {
            PreludeFault::Version(_) => Self::of_nobody(TakenOutcome::Version, Verdict::Version),
            PreludeFault::Garbled => Self::of_nobody(TakenOutcome::Garbled, Verdict::Garbled),
        }
    }
}

fn cause_of(matter: Matter) -> TakenCause {
    match matter {
        Matter::Callback(_) => TakenCause::Callback,
        Matter::Client(..) => TakenCause::Client,
        Matter::Leave => TakenCause::Leave,
    }
}

fn is_for_here(turn: &Turn<'_>, prelude: Prelude) -> Result<(), Refusal> {
    let own = turn.settings.node;
    let cause = cause_of(prelude.matter);
    if prelude.to != own {
        // With the local plane node numbers are unique, so the prelude means an earlier run of this
        // process.
        let dead = turn.settings.dispatch == Plane::Local && prelude.to.number() == own.number();
        let verdict = Some(if dead { Verdict::Dead } else { Verdict::Elsewhere });
        return Err(Refusal { cause, outcome: TakenOutcome::Elsewhere, verdict });
    }
    let huge = match prelude.matter {
        Matter::Callback(opening) | Matter::Client(opening, _) => {
            opening.received as usize > MOST_CARRIED
        }
        Matter::Leave => false,
    };
    if huge {
        let (outcome, verdict) = (TakenOutcome::Garbled, Some(Verdict::Garbled));
        return Err(Refusal { cause, outcome, verdict });
    }
    Ok(())
}

/// `age` microseconds before `now`, but no earlier than this process's begin.
fn before(now: Time, age: u64) -> Time {
    Time(now.0.saturating_sub(age))
}
