//! Connections that go to other gateways, and come from them.

use std::net::SocketAddr;

use ringway_proto::id::Node;
use ringway_proto::time::Time;

use super::{Caller, Wanted};
use crate::carry::Client;
use crate::control::port::Answer;
use crate::metrics::RelayCause;
use crate::net::ConnId;
use crate::shard::table::Key;

/// What the component of other gateways is told.
#[derive(Debug)]
pub(crate) enum ForNodes {
    /// A connection belongs elsewhere. A worker's is answered by `ForWorkers::Back` if nothing comes
    /// of it; a client's goes on here.
    Take(Box<Strayed>),
    /// The control plane's answer.
    Located { number: u64, answer: Answer },
    /// The answer to `Fact::Knock`.
    Admitted { conn: ConnId, room: bool },
}

/// A connection that belongs to another gateway.
#[derive(Debug)]
pub(crate) struct Strayed {
    pub(crate) conn: ConnId,
    pub(crate) cause: RelayCause,
    /// The gateway that it belongs to; none: the old proxy.
    pub(crate) node: Option<Node>,
    pub(crate) stray: Stray,
}

/// What was received of it.
#[derive(Debug)]
pub(crate) enum Stray {
    Worker { peer: SocketAddr, opened: Time, input: Vec<u8> },
    Client(Client),
}

impl Stray {
    pub(crate) fn received(&self) -> &[u8] {
        match self {
            Self::Worker { input, .. } => input,
            Self::Client(client) => client.said.received(),
        }
    }

    /// More has come.
    pub(crate) fn hear(&mut self, bytes: &[u8]) {
        match self {
            Self::Worker { input, .. } => input.extend_from_slice(bytes),
            Self::Client(client) => client.said.received_mut().extend_from_slice(bytes),
        }
    }
}

/// A request that names a session of another gateway.
#[derive(Debug)]
pub(crate) struct Elsewhere {
    pub(crate) exchange: Key,
    pub(crate) from: Caller,
    pub(crate) wanted: Box<Wanted>,
    pub(crate) node: Node,
}

/// A worker's connection that no other gateway has taken.
#[derive(Debug)]
pub(crate) struct Back {
    pub(crate) conn: ConnId,
    pub(crate) peer: SocketAddr,
    /// The gateway whose it is is dead: nothing will come of it.
    pub(crate) dead: bool,
}

/// A worker's connection that another gateway has brought.
#[derive(Debug)]
pub(crate) struct Arrived {
    pub(crate) conn: ConnId,
    pub(crate) peer: SocketAddr,
    pub(crate) opened: Time,
    /// The gateway that it came to.
    pub(crate) via: Node,
}
