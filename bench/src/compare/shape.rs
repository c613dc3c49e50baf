//! What is run, and a gateway's targets there.

use serde::Serialize;

use super::peer::{Class, Peer, Speech};

/// What a shape is judged by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Figure {
    /// CPU time of the proxy for each unit, in microseconds.
    Cpu,
    /// Median latency beyond that of the direct peer, in microseconds.
    AddedP50,
    /// Memory of the proxy for each connection, in bytes.
    Memory,
    /// 99th percentile of a stream beside bulk, as a multiple of the same alone.
    Beside,
    /// Median of a call that takes a session up again beyond that of a call on a live one, in
    /// microseconds.
    Resume,
    /// Messages from core to core for each call.
    Messages,
    /// Allocations of the gateway's process for each call.
    Allocations,
    /// Microseconds from one unit to the next: less is more throughput.
    Interval,
    /// Memory of the proxy and of the kernel for its sockets, for each connection, in bytes.
    WholeMemory,
    /// 99th percentile from a connection's beginning to its first answer, in microseconds.
    FirstAnswer,
    /// Times that a new connection's messages go to and fro before its first answer.
    RoundTrips,
    /// Median of a small message beside bulk on its connection beyond that alone, in microseconds.
    Behind,
}

impl Figure {
    /// Its column's head.
    #[must_use]
    pub fn head(self) -> &'static str {
        match self {
            Self::Cpu => "CPU us a unit",
            Self::AddedP50 => "added p50 us",
            Self::Memory => "bytes each",
            Self::Beside => "p99 x alone",
            Self::Resume => "p50 us over pinned",
            Self::Messages => "messages a call",
            Self::Allocations => "allocations a call",
            Self::Interval => "us from unit to unit",
            Self::WholeMemory => "bytes each, kernel's too",
            Self::FirstAnswer => "p99 us to the first answer",
            Self::RoundTrips => "round trips to the first answer",
            Self::Behind => "p50 us over alone",
        }
    }
}

/// What is done to the peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Work {
    /// The load generator runs.
    Load,
    /// Connections are opened and say no more than their preface.
    Hold,
}

/// Which peers a shape is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Who {
    /// All peers that speak plain TCP towards the client.
    All,
    /// Peers that speak TLS towards the client.
    Tls,
    /// Proxies that hold memory for a connection, so nothing without one.
    Proxies,
    /// Gateways with an admin port.
    Gateways,
    /// Peers that speak HTTP/1.1, plain, towards the client.
    Web,
    /// The peers with these names.
    Named(&'static [&'static str]),
}

/// The targets: the most that a gateway's figure may be.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Targets {
    /// As a multiple of the bare relay's.
    pub relay: Option<f64>,
    /// The same for a gateway that has its worker dial back, where that differs.
    pub relay_by_worker: Option<f64>,
    /// The same for a gateway that never sleeps, where that differs.
    pub relay_spinning: Option<f64>,
    /// As a multiple of the best layer-7 peer's.
    pub l7: Option<f64>,
    /// In the figure's own unit.
    pub at_most: Option<f64>,
    /// As a multiple of the same peer's figure in another shape of the same round.
    pub of_shape: Option<(&'static str, f64)>,
    /// As a multiple of the figure of the peer with this name.
    pub of_peer: Option<(&'static str, f64)>,
    /// Beyond the figure of the peer with this name, in the figure's own unit.
    pub over_peer: Option<(&'static str, f64)>,
}

pub(super) const NOTHING: Targets = Targets {
    relay: None,
    relay_by_worker: None,
    relay_spinning: None,
    l7: None,
    at_most: None,
    of_shape: None,
    of_peer: None,
    over_peer: None,
};

impl Targets {
    /// Whether the shape is only looked at.
    pub fn is_nothing(&self) -> bool {
        *self == NOTHING
    }
}

/// One workload.
#[derive(Debug, Clone, Serialize)]
pub struct Shape {
    /// Its name: kind, message size, connections x calls open on each.
    pub name: &'static str,
    /// What one unit is.
    pub about: &'static str,
    /// What is done.
    pub work: Work,
    /// To whom.
    pub who: Who,
    /// Connections.
    pub connections: usize,
    /// Calls or streams open on each.
    pub streams: usize,
    /// Payload bytes of the request.
    pub message: u32,
    /// Payload bytes of the answer.
    pub answer: u32,
    /// Further arguments of the load generator; `{names}` are filled in as in a start line.
    pub more: &'static [&'static str],
    /// What it is judged by.
    pub figure: Figure,
    /// A gateway's targets.
    pub targets: Targets,
    /// The gateways that have these targets, by name.
    pub gateways: &'static [&'static str],
}

/// The argument that stands for half of what the slowest peer can do.
pub const RATE_HALF: &str = "{half}";

impl Shape {
    /// Whether `peer` is run in it.
    pub fn is_for(&self, peer: &Peer) -> bool {
        let plain = !peer.tls && peer.speaks(Speech::Http2);
        let fits = match self.who {
            Who::Tls => peer.tls,
            Who::Gateways => plain && peer.admin,
            Who::Proxies => plain && peer.class != Class::Direct,
            Who::All => plain,
            Who::Web => !peer.tls && peer.speaks(Speech::Http1),
            Who::Named(names) => return names.contains(&peer.name.as_str()),
        };
        fits && (peer.rows.is_empty() || peer.rows.iter().any(|row| row == self.name))
    }

    /// Whether nothing happens in it: what rests has neither rate nor latency.
    pub fn is_still(&self) -> bool {
        match self.figure {
            Figure::Memory => true,
            Figure::WholeMemory => self.more.contains(&"idle"),
            _ => false,
        }
    }

    /// The shape it is compared with in each round.
    pub fn partner(&self) -> Option<&'static str> {
        self.targets.of_shape.map(|(name, _)| name)
    }

    /// Whether it needs to know what the slowest peer can do.
    pub fn is_relative(&self) -> bool {
        self.more.contains(&RATE_HALF)
    }
}
