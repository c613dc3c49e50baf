//! A gateway that leaves tells the owners of the connections it relays, so that they can replace
//! these before it ends (design 3.25). An owner that has not answered is told again for as long as
//! this gateway relays a connection of its. The limit of the drain bounds that time.

use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::time::Duration;

use ringway_proto::id::Node;
use ringway_proto::prelude::{CHALLENGE_LENGTH, Matter, Prelude, Verdict};
use ringway_proto::time::Time;

use super::super::timer::Due;
use super::super::turn::Turn;
use super::{ConnRole, Nodes};
use crate::keys::Keys;
use crate::net::{Close, ConnId};
use crate::pool::Segment;

/// The time an owner has for its answer, and the pause before it is told again.
const AGAIN: Duration = Duration::from_millis(500);

/// A gateway and its address.
type Owner = (Node, SocketAddr);

/// The owners of the connections that are relayed now, each once and in order.
pub(super) fn owners_served(nodes: &Nodes) -> BTreeSet<Owner> {
    nodes.outs.iter().filter_map(|(_, out)| out.owner_served()).collect()
}

/// Begins to tell an owner, unless it is being told already.
pub(super) fn tell_owner(nodes: &mut Nodes, turn: &mut Turn<'_>, owner: Owner) {
    if let Some(conn) = nodes.farewells.tell(turn, owner) {
        nodes.roles.insert(conn, ConnRole::Farewell);
    }
}

/// Tells the owners again that have not answered in time.
pub(super) fn tell_again(nodes: &mut Nodes, turn: &mut Turn<'_>) {
    for conn in nodes.farewells.overdue(turn.now) {
        end(nodes, turn, conn);
    }
    let unheard = std::mem::take(&mut nodes.farewells.unheard);
    for owner in owners_served(nodes).intersection(&unheard) {
        tell_owner(nodes, turn, *owner);
    }
}

/// The connection to an owner has ended, whether the owner was told or not.
pub(super) fn end(nodes: &mut Nodes, turn: &mut Turn<'_>, conn: ConnId) {
    nodes.roles.remove(&conn);
    nodes.farewells.end(turn, conn);
}

/// Connections on which an owner is told.
#[derive(Debug, Default)]
pub(super) struct Farewells {
    told: HashMap<ConnId, Farewell>,
    /// Owners that have not answered, to be told again.
    unheard: BTreeSet<Owner>,
}

#[derive(Debug)]
struct Farewell {
    to: Owner,
    /// When the owner's answer is due.
    until: Time,
    /// The part of the owner's challenge that has come.
    said: Vec<u8>,
    /// The owner was told, and its answer is waited for.
    done: bool,
    /// The owner has answered; another answer would be the same.
    heard: bool,
}

impl Farewells {
    /// Begins to tell an owner; the connection to it. None if it is being told already.
    fn tell(&mut self, turn: &mut Turn<'_>, to: Owner) -> Option<ConnId> {
        if self.told.values().any(|other| other.to == to && !other.done) {
            return None;
        }
        let conn = turn.net.dial_gateway(to.1);
        let until = turn.now + AGAIN;
        let farewell = Farewell { to, until, said: Vec::new(), done: false, heard: false };
        self.told.insert(conn, farewell);
        turn.arm(until, Due::Farewell);
        Some(conn)
    }

    /// Bytes of an owner. True if they were its whole answer.
    pub(super) fn hear(
        &mut self,
        turn: &mut Turn<'_>,
        keys: &Keys,
        (conn, segment): (ConnId, Segment),
    ) -> bool {
        let farewell = self.told.get_mut(&conn).expect("a place leaves with its entry");
        let bytes = turn.net.pool.bytes(segment);
        if farewell.done {
            let verdict = bytes.first().copied().and_then(Verdict::of);
            farewell.heard |= verdict != Some(Verdict::Full);
            return true;
        }
        farewell.said.extend_from_slice(bytes);
        if farewell.said.len() < CHALLENGE_LENGTH {
            return false;
        }
        farewell.done = true;
        let (to, matter) = (farewell.to.0, Matter::Leave);
        let prelude = Prelude { from: turn.settings.node, to, matter };
        match keys.signed_prelude(&farewell.said, prelude) {
            Some(signed) => turn.put(conn, &signed),
            None => return true,
        }
        false
    }

    /// The connection is over, for whatever reason.
    fn end(&mut self, turn: &mut Turn<'_>, conn: ConnId) {
        if let Some(farewell) = self.told.remove(&conn)
            && !farewell.heard
        {
            self.unheard.insert(farewell.to);
            turn.arm(turn.now + AGAIN, Due::Farewell);
        }
        turn.net.close(conn, Close::Flush);
    }

    /// Connections whose owners did not answer in time.
    fn overdue(&self, now: Time) -> Vec<ConnId> {
        let late = self.told.iter().filter(|(_, farewell)| farewell.until <= now);
        let mut late: Vec<ConnId> = late.map(|(conn, _)| *conn).collect();
        // The table has no order.
        late.sort_unstable_by_key(|conn| (conn.slot, conn.generation));
        late
    }

    /// Stops telling owners.
    pub(super) fn give_up(&mut self) {
        self.unheard.clear();
    }

    /// Whether no owner is being told or has to be told again.
    pub(super) fn is_empty(&self) -> bool {
        self.told.is_empty() && self.unheard.is_empty()
    }
}
