//! What is run, and what a gateway owes there.

use serde::Serialize;

use super::CompareFault;

/// One workload.
#[derive(Debug, Clone, Serialize)]
pub struct Shape {
    /// Its name: kind, message size, connections x calls open on each.
    pub name: &'static str,
    /// Connections.
    pub connections: usize,
    /// Calls open on each.
    pub streams: usize,
    /// Payload bytes of the request.
    pub message: u32,
    /// Payload bytes of the answer.
    pub answer: u32,
    /// Most CPU a call may cost, as a multiple of the bare relay's.
    pub owed_relay: f64,
    /// The same as a multiple of the cheapest layer-7 peer's.
    pub owed_l7: f64,
}

const KIB: u32 = 1024;

/// All shapes, in the order they run.
pub const ALL: [Shape; 5] = [
    Shape {
        name: "unary-100-256x1",
        connections: 256,
        streams: 1,
        message: 100,
        answer: 100,
        owed_relay: 1.4,
        owed_l7: 0.70,
    },
    Shape {
        name: "unary-100-16x16",
        connections: 16,
        streams: 16,
        message: 100,
        answer: 100,
        owed_relay: 4.0,
        owed_l7: 0.35,
    },
    Shape {
        name: "unary-1k-16x16",
        connections: 16,
        streams: 16,
        message: KIB,
        answer: KIB,
        owed_relay: 3.5,
        owed_l7: 0.35,
    },
    Shape {
        name: "unary-64k-8x4",
        connections: 8,
        streams: 4,
        message: 64 * KIB,
        answer: 64 * KIB,
        owed_relay: 1.27,
        owed_l7: 0.65,
    },
    Shape {
        name: "upload-8m-4x1",
        connections: 4,
        streams: 1,
        message: 8 * KIB * KIB,
        answer: 4,
        owed_relay: 1.24,
        owed_l7: 0.95,
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
