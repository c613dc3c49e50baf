//! What the tests over loopback share.

use std::net::SocketAddr;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use ringway_bench::caller::Work;
use ringway_bench::compare::{CLIENT_KEY, FUNCTION, VERSION};
use ringway_bench::fields::CallFields;
use ringway_bench::load::{Kind, Plan};
use ringway_bench::socket::Route;
use ringway_bench::{backend, relay};

/// Any port of this machine.
pub(crate) const LOOPBACK: ([u8; 4], u16) = ([127, 0, 0, 1], 0);

/// An endpoint.
pub(crate) fn start_backend() -> SocketAddr {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        backend::run(SocketAddr::from(LOOPBACK), |address| sender.send(address).unwrap()).unwrap();
    });
    receiver.recv().unwrap()
}

/// The bare relay to `target`.
pub(crate) fn start_relay(target: SocketAddr) -> SocketAddr {
    let relay = relay::Relay::bind(SocketAddr::from(LOOPBACK), target).unwrap();
    let address = relay.address().unwrap();
    thread::spawn(move || relay.run(false));
    address
}

/// A short run of calls.
pub(crate) fn plan(target: SocketAddr, connections: usize, streams: usize, work: Work) -> Plan {
    let fields = CallFields {
        authority: target.to_string(),
        path: "/ringway.bench.v1.Bench/Call".to_owned(),
        key: CLIENT_KEY.to_owned(),
        function: FUNCTION.to_owned(),
        version: VERSION.to_owned(),
        session: None,
    };
    let (warm_up, counted) = (Duration::from_millis(20), Duration::from_millis(500));
    Plan {
        route: Route { target, trust: None, spread: false, slow: None },
        connections,
        streams,
        threads: 1,
        kind: Kind::Unary,
        rate: None,
        active: None,
        steps: vec![],
        work,
        fields,
        warm_up,
        counted,
        watch: vec![],
        hdr: None,
        metrics: None,
    }
}

/// Runs the peers of a test.
pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}
