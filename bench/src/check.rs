//! The generator against an endpoint of its own, with nothing between. This shows its ceiling, its
//! floor and its error. They must be known before any other figure is believed.

use std::net::SocketAddr;
use std::sync::mpsc::channel;
use std::thread;

use crate::backend;
use crate::load::{self, Kind, LoadFault, Outcome, Plan};

/// Starts a second at which the error is measured, when no rate is given.
const RATE: f64 = 10_000.0;

/// Runs the plan's calls against an endpoint in a thread of this process.
///
/// The outcome is that of the closed loop, the ceiling. Its part `floor` is the latency of one call
/// at a time. `paced` is the latency at the plan's rate, and `late_us` is how late calls started at
/// that rate.
///
/// # Errors
/// As [`load::run`].
pub fn run(plan: &Plan) -> Result<Outcome, LoadFault> {
    let target = sink()?;
    let mut plan = Plan { kind: Kind::Unary, active: None, watch: vec![], ..plan.clone() };
    plan.route.target = target;
    plan.route.trust = None;
    let rate = plan.rate.unwrap_or(RATE);
    let hdr = plan.hdr.take();
    let floor = Plan { rate: None, connections: 1, streams: 1, threads: 1, ..plan.clone() };
    let floor = load::run(&floor)?;
    let paced = load::run(&Plan { rate: Some(rate), hdr, ..plan.clone() })?;
    let mut ceiling = load::run(&Plan { rate: None, ..plan })?;
    ceiling.parts.insert("floor".to_owned(), floor.latency_us);
    ceiling.parts.insert("paced".to_owned(), paced.latency_us);
    ceiling.late_us = paced.late_us;
    ceiling.hdr = paced.hdr;
    ceiling.failed += floor.failed + paced.failed;
    // Here only the generator is measured.
    ceiling.limited = false;
    Ok(ceiling)
}

/// Starts the endpoint. It ends with the process.
fn sink() -> Result<SocketAddr, LoadFault> {
    let (sender, receiver) = channel();
    thread::Builder::new().name("sink".into()).spawn(move || {
        let bound = backend::run(SocketAddr::from(([127, 0, 0, 1], 0)), |address| {
            // The receiver waits below.
            let _ = sender.send(address);
        });
        if let Err(error) = bound {
            ringway_stdio::complain!("load: sink: {error}");
        }
    })?;
    receiver.recv().map_err(|_| std::io::Error::other("the sink did not start").into())
}
