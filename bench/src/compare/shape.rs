//! What is run, and what a gateway owes there.

use serde::Serialize;

use super::CompareFault;

/// What a shape is judged by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Figure {
    /// CPU time of the proxy for each unit, in microseconds.
    Cpu,
    /// Median latency beyond that of the direct peer, in microseconds.
    AddedP50,
    /// Memory of the proxy for each connection, in bytes.
    Memory,
}

impl Figure {
    /// Its column's head.
    #[must_use]
    pub fn head(self) -> &'static str {
        match self {
            Self::Cpu => "CPU us a unit",
            Self::AddedP50 => "added p50 us",
            Self::Memory => "bytes a session",
        }
    }
}

/// The most a gateway's figure may be.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Owed {
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
}

const fn owed(relay: f64, l7: f64) -> Owed {
    Owed {
        relay: Some(relay),
        relay_by_worker: None,
        relay_spinning: None,
        l7: Some(l7),
        at_most: None,
    }
}

/// One workload.
#[derive(Debug, Clone, Serialize)]
pub struct Shape {
    /// Its name: kind, message size, connections x calls open on each.
    pub name: &'static str,
    /// What one unit is.
    pub about: &'static str,
    /// Connections.
    pub connections: usize,
    /// Calls or streams open on each.
    pub streams: usize,
    /// Payload bytes of the request.
    pub message: u32,
    /// Payload bytes of the answer.
    pub answer: u32,
    /// Further arguments of the load generator.
    pub more: &'static [&'static str],
    /// What it is judged by.
    pub figure: Figure,
    /// What a gateway owes.
    pub owed: Owed,
}

const KIB: u32 = 1024;

/// Calls of one size both ways.
const UNARY: Shape = Shape {
    name: "",
    about: "a call",
    connections: 16,
    streams: 16,
    message: 100,
    answer: 100,
    more: &[],
    figure: Figure::Cpu,
    owed: owed(4.0, 0.35),
};

/// All shapes, in the order they run.
pub const ALL: [Shape; 14] = [
    Shape { name: "unary-100-256x1", connections: 256, streams: 1, owed: owed(1.4, 0.70), ..UNARY },
    Shape { name: "unary-100-16x16", ..UNARY },
    Shape { name: "unary-1k-16x16", message: KIB, answer: KIB, owed: owed(3.5, 0.35), ..UNARY },
    Shape {
        name: "unary-64k-8x4",
        connections: 8,
        streams: 4,
        message: 64 * KIB,
        answer: 64 * KIB,
        owed: owed(1.27, 0.65),
        ..UNARY
    },
    Shape {
        name: "unary-1m-4x2",
        connections: 4,
        streams: 2,
        message: KIB * KIB,
        answer: KIB * KIB,
        owed: owed(1.26, 0.95),
        ..UNARY
    },
    Shape {
        name: "upload-8m-4x1",
        connections: 4,
        streams: 1,
        message: 8 * KIB * KIB,
        answer: 4,
        owed: owed(1.24, 0.95),
        ..UNARY
    },
    Shape {
        name: "server-stream-1k-4x4",
        about: "a message",
        connections: 4,
        streams: 4,
        answer: KIB,
        more: &["--kind", "server-stream"],
        owed: owed(1.4, 0.90),
        ..UNARY
    },
    Shape {
        name: "server-stream-64k-4x4",
        about: "a message",
        connections: 4,
        streams: 4,
        answer: 64 * KIB,
        more: &["--kind", "server-stream"],
        owed: owed(1.2, 0.95),
        ..UNARY
    },
    Shape {
        name: "ping-pong-100-64x1",
        about: "a message there and back",
        connections: 64,
        streams: 1,
        more: &["--kind", "ping-pong"],
        owed: owed(1.25, 1.25),
        ..UNARY
    },
    Shape {
        name: "ping-pong-5-burst-4x1",
        about: "a message there and back, 20 000 of a stream on their way",
        connections: 4,
        streams: 1,
        message: 5,
        answer: 5,
        more: &["--kind", "ping-pong", "--in-flight", "20000"],
        owed: Owed { relay: None, ..owed(0.0, 0.95) },
        ..UNARY
    },
    Shape {
        name: "new-connection-16",
        about: "a connection with its session and one call",
        connections: 16,
        streams: 1,
        more: &["--kind", "new-connection"],
        owed: Owed { relay_by_worker: Some(2.2), l7: None, ..owed(1.4, 0.0) },
        ..UNARY
    },
    Shape {
        name: "rate-10k-64x1",
        about: "a call, 10 000 of them a second",
        connections: 64,
        streams: 4,
        more: &["--rate", "10000"],
        figure: Figure::AddedP50,
        owed: Owed { relay_spinning: Some(0.4), l7: None, ..owed(1.05, 0.0) },
        ..UNARY
    },
    Shape {
        name: "live-8000-active-10",
        about: "a call on one of ten connections, the others rest",
        connections: 8000,
        streams: 16,
        more: &["--active", "10"],
        owed: Owed { relay: None, l7: None, ..owed(0.0, 0.0) },
        ..UNARY
    },
    Shape {
        name: "idle-9000",
        about: "a session that rests",
        connections: 9000,
        streams: 1,
        more: &["--active", "1"],
        figure: Figure::Memory,
        owed: Owed { relay: None, at_most: Some(6.0 * 1024.0), ..owed(0.0, 0.75) },
        ..UNARY
    },
];

/// The shapes of these names, in the order given; all when there are none.
pub fn choose(names: &[String]) -> Result<Vec<Shape>, CompareFault> {
    if names.is_empty() {
        return Ok(ALL.to_vec());
    }
    let known = || ALL.iter().map(|s| s.name.to_owned()).collect();
    names
        .iter()
        .map(|name| {
            ALL.iter().find(|s| s.name == name).cloned().ok_or_else(|| CompareFault::Unknown {
                what: "shape",
                name: name.clone(),
                known: known(),
            })
        })
        .collect()
}
