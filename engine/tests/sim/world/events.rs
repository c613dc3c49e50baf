//! What happens in a world, and when.

use std::cmp::Ordering;
use std::net::SocketAddr;

use ringway::control::port::{Answer, AskTicket};
use ringway::message::ShardMessage;
use ringway::net::Listener;
use ringway_proto::time::Time;

use super::super::ledger::Work;
use super::super::nodes::Fate;
use super::super::peer::{Comeback, Trick};
use super::super::stranger::Says;
use super::super::wire::Toward;

/// Somebody who will come to a port.
#[derive(Debug)]
pub(crate) enum Guest {
    Client(Option<Comeback>),
    /// A worker has one of its polls at each gateway.
    Poll {
        worker: usize,
        node: usize,
    },
    Dial {
        worker: usize,
        work: Box<Work>,
        trick: Trick,
    },
    /// A stranger comes to the port for other gateways.
    Stranger {
        says: Says,
        node: usize,
    },
}

impl Guest {
    /// The port to which the guest comes.
    pub(crate) fn listener(&self) -> Listener {
        match self {
            Self::Client(_) => Listener::Client,
            Self::Poll { .. } | Self::Dial { .. } => Listener::Worker,
            Self::Stranger { .. } => Listener::Cluster,
        }
    }
}

#[derive(Debug)]
pub(crate) enum Event {
    Turn(usize),
    Arrival(Toward, usize),
    Tick(usize),
    /// A core is told something from outside.
    Message(usize, Box<ShardMessage>),
    Knock(Guest),
    Drain,
    Crash(usize),
    /// An operator ends a session.
    Delete,
    /// The control plane answers.
    Answer(Box<(AskTicket, Answer)>),
    /// The dial of one gateway has come to another one, and its result has come back.
    Dialled(usize, SocketAddr),
    Connected(usize, i32),
    /// Something happens to whole gateways.
    Fate(Fate),
    Calm,
}

/// An event at its time. Of events at one time the one that was planned first comes first.
#[derive(Debug)]
pub(super) struct Planned {
    pub(super) at: Time,
    pub(super) number: u64,
    pub(super) event: Event,
}

impl Ord for Planned {
    fn cmp(&self, other: &Self) -> Ordering {
        // The heap gives the greatest first.
        (other.at.0, other.number).cmp(&(self.at.0, self.number))
    }
}

impl PartialOrd for Planned {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Planned {
    fn eq(&self, other: &Self) -> bool {
        self.number == other.number
    }
}

impl Eq for Planned {}
