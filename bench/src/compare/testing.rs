//! Peers and runs made up for the tests beside.

use std::path::PathBuf;

use super::peer::{Behind, Class, Peer};
use super::{Request, Run};
use crate::load::{Latency, Outcome};

pub(super) fn request() -> Request {
    Request {
        rounds: 5,
        seconds: 2.0,
        warm_up: 0.2,
        budget: None,
        ringway: None,
        shapes: vec![],
        peers: vec![],
        peers_dir: PathBuf::new(),
        install: false,
        json: None,
        out: PathBuf::new(),
        congestion: "keep".to_owned(),
        tcp_memory: "keep".to_owned(),
        given: [].into(),
        proxy_cpu: 0,
        load_cpu: 1,
    }
}

pub(super) fn peer(name: &str, class: Class) -> Peer {
    let direct = class == Class::Direct;
    Peer {
        name: name.to_owned(),
        about: "made <up>".to_owned(),
        class,
        behind: Behind::Backend,
        spins: false,
        tls: false,
        speaks: vec![super::peer::Speech::Http2],
        admin: class == Class::Gateway,
        rows: vec![],
        like: None,
        given: None,
        start: if direct { vec![] } else { vec!["x".to_owned()] },
        ready: None,
        set: [].into(),
        templates: vec![],
    }
}

/// A run of 1000 calls in a second that took the proxy so much CPU time for each.
pub(super) fn run(shape: &str, peer: &str, round: usize, cpu_us: f64) -> Run {
    let latency_us = Latency { count: 1000, p50: 1.0, p90: 1.0, p99: 1.0, p999: 1.0, max: 1.0 };
    let outcome = Outcome {
        unit: "call".to_owned(),
        calls: 1000,
        elapsed_ns: 1_000_000_000,
        calls_per_s: 1000.0,
        latency_us,
        cpu_ns: [("proxy".to_owned(), (cpu_us * 1e6) as u64)].into(),
        ..Outcome::default()
    };
    let (shape, peer) = (shape.to_owned(), peer.to_owned());
    Run { shape, peer, round, outcome: Some(outcome), figure: None, fault: None }
}

/// The same run with its median and 99th percentile.
pub(super) fn slow(mut run: Run, p50: f64, p99: f64) -> Run {
    if let Some(outcome) = &mut run.outcome {
        outcome.latency_us.p50 = p50;
        outcome.latency_us.p99 = p99;
    }
    run
}
