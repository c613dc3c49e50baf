//! A gateway that leaves tells the owners of what it relays, so that they have it replaced before it
//! ends (design 3.25).

use std::collections::HashMap;
use std::net::SocketAddr;

use ringway_proto::id::Node;
use ringway_proto::prelude::{CHALLENGE_LENGTH, Matter, Prelude};

use super::super::turn::Turn;
use crate::border::{Close, ConnId};
use crate::keys::Keys;
use crate::pool::Segment;

/// Connections on which an owner is told.
#[derive(Debug, Default)]
pub(super) struct Farewells {
    told: HashMap<ConnId, Farewell>,
}

#[derive(Debug)]
struct Farewell {
    to: Node,
    /// What it has said of its challenge.
    said: Vec<u8>,
    /// It was told: its answer is waited for.
    done: bool,
}

impl Farewells {
    /// Begins to tell an owner; the connection to it. None if it is being told already.
    pub(super) fn tell(
        &mut self,
        turn: &mut Turn<'_>,
        (to, address): (Node, SocketAddr),
    ) -> Option<ConnId> {
        if self.told.values().any(|other| other.to == to && !other.done) {
            return None;
        }
        let conn = turn.border.dial_gateway(address);
        self.told.insert(conn, Farewell { to, said: Vec::new(), done: false });
        Some(conn)
    }

    /// An owner speaks. Whether that was all.
    pub(super) fn hear(
        &mut self,
        turn: &mut Turn<'_>,
        keys: &Keys,
        (conn, segment): (ConnId, Segment),
    ) -> bool {
        let farewell = self.told.get_mut(&conn).expect("a place leaves with its entry");
        if farewell.done {
            return true;
        }
        farewell.said.extend_from_slice(turn.border.pool.bytes(segment));
        if farewell.said.len() < CHALLENGE_LENGTH {
            return false;
        }
        farewell.done = true;
        let prelude = Prelude { from: turn.settings.node, to: farewell.to, matter: Matter::Leave };
        match keys.signed_prelude(&farewell.said, prelude) {
            Some(signed) => turn.put(conn, &signed),
            None => return true,
        }
        false
    }

    /// It is over, one way or another.
    pub(super) fn end(&mut self, turn: &mut Turn<'_>, conn: ConnId) {
        self.told.remove(&conn);
        turn.border.close(conn, Close::Flush);
    }
}
