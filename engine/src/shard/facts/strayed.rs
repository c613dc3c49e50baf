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

/// Facts for the component of other gateways.
#[derive(Debug)]
pub(crate) enum ForNodes {
    /// A connection belongs to another gateway. If that gateway does not take it, a worker's comes
    /// back with `ForWorkers::Back`, and a client's goes on here.
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
    /// The gateway that owns the connection; none: the old proxy.
    pub(crate) node: Option<Node>,
    pub(crate) stray: Stray,
}

/// The bytes that were received on it.
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
    /// The gateway that owns the connection is dead, so no other try will succeed.
    pub(crate) dead: bool,
}

/// A worker's connection that another gateway has brought.
#[derive(Debug)]
pub(crate) struct Arrived {
    pub(crate) conn: ConnId,
    pub(crate) peer: SocketAddr,
    pub(crate) opened: Time,
    /// The gateway that the worker dialled.
    pub(crate) via: Node,
}
