//! The rows: every workload that is run, and its targets.

use super::CompareFault;
use super::shape::{Figure, NOTHING, RATE_HALF, Shape, Targets, Who, Work};

const fn at_most(most: f64) -> Targets {
    Targets { at_most: Some(most), ..NOTHING }
}

const fn targets(relay: f64, l7: f64) -> Targets {
    Targets { relay: Some(relay), l7: Some(l7), ..NOTHING }
}

const KIB: u32 = 1024;

/// Calls of one size both ways.
const UNARY: Shape = Shape {
    name: "",
    about: "a call",
    work: Work::Load,
    who: Who::All,
    connections: 16,
    streams: 16,
    message: 100,
    answer: 100,
    more: &[],
    figure: Figure::Cpu,
    targets: NOTHING,
    gateways: &["ringway"],
};

/// Calls begun at a rate, whatever the answers do.
const PACED: Shape = Shape {
    connections: 64,
    streams: 4,
    figure: Figure::AddedP50,
    targets: Targets { relay: Some(1.05), relay_spinning: Some(0.4), ..NOTHING },
    gateways: &["ringway", "ringway-spin"],
    ..UNARY
};

/// Sessions that rest.
const RESTING: Shape = Shape {
    about: "a session that rests",
    who: Who::Proxies,
    streams: 1,
    more: &["--kind", "idle"],
    figure: Figure::Memory,
    ..UNARY
};

/// Requests of HTTP/1.1, and messages on WebSockets.
const WEB: Shape =
    Shape { who: Who::Web, streams: 1, message: 4, gateways: &["ringway-dial"], ..UNARY };

/// New connections with TLS, one call each.
const HANDSHAKES: Shape = Shape {
    about: "a connection with TLS and one call",
    who: Who::Tls,
    streams: 1,
    targets: Targets { l7: Some(0.9), ..NOTHING },
    gateways: &["ringway-tls"],
    ..UNARY
};

/// A download, and small messages on its connection, over a long way.
const LONG_WAY: Shape = Shape {
    about: "a message of 64 KiB, 100 bytes going to and fro on the same connection, 40 ms and 1 Gb/s \
            away",
    connections: 1,
    streams: 2,
    answer: 64 * KIB,
    more: &["--kind", "shared", "--rate", "25", "--round-trip-ms", "40", "--gbit", "1"],
    ..UNARY
};

/// Clients that cannot follow.
const SLOW: Shape = Shape {
    about: "a call of others, beside 1 000 clients that read 16 KiB a second of a stream",
    who: Who::Proxies,
    connections: 16,
    streams: 1,
    more: &[
        "--kind",
        "beside",
        "--rate",
        "1000",
        "--bulk",
        "1000",
        "--bulk-message",
        "16384",
        "--slow-ms",
        "1000",
    ],
    ..UNARY
};

/// The round trip of a way between load and proxy, as the shapes with one say it, in microseconds.
pub(super) const ROUND_TRIP_US: f64 = 40_000.0;

/// The closed loop from which [`RATE_HALF`] knows what the slowest peer can do.
pub(super) const CAPACITY: &str = "unary-100-64x1";

/// All shapes, in the order they run.
pub(super) const ALL: [Shape; 53] = [
    Shape {
        name: "unary-100-256x1",
        connections: 256,
        streams: 1,
        targets: targets(1.4, 0.70),
        ..UNARY
    },
    Shape { name: "unary-100-16x16", targets: targets(4.0, 0.35), ..UNARY },
    Shape { name: "unary-100-1x1", connections: 1, streams: 1, ..UNARY },
    Shape { name: CAPACITY, connections: 64, streams: 1, ..UNARY },
    Shape { name: "unary-100-4x64", connections: 4, streams: 64, ..UNARY },
    Shape {
        name: "unary-1k-16x16",
        message: KIB,
        answer: KIB,
        targets: targets(3.5, 0.35),
        ..UNARY
    },
    Shape {
        name: "unary-64k-8x4",
        connections: 8,
        streams: 4,
        message: 64 * KIB,
        answer: 64 * KIB,
        targets: targets(1.27, 0.65),
        ..UNARY
    },
    Shape {
        name: "unary-1m-4x2",
        connections: 4,
        streams: 2,
        message: KIB * KIB,
        answer: KIB * KIB,
        targets: targets(1.26, 0.95),
        ..UNARY
    },
    Shape {
        name: "upload-8m-4x1",
        connections: 4,
        streams: 1,
        message: 8 * KIB * KIB,
        answer: 4,
        targets: targets(1.24, 0.95),
        ..UNARY
    },
    Shape {
        name: "server-stream-1k-4x4",
        about: "a message",
        connections: 4,
        streams: 4,
        answer: KIB,
        more: &["--kind", "server-stream"],
        targets: targets(1.4, 0.90),
        ..UNARY
    },
    Shape {
        name: "server-stream-64k-4x4",
        about: "a message",
        connections: 4,
        streams: 4,
        answer: 64 * KIB,
        more: &["--kind", "server-stream"],
        targets: targets(1.2, 0.95),
        ..UNARY
    },
    Shape {
        name: "ping-pong-100-64x1",
        about: "a message there and back",
        connections: 64,
        streams: 1,
        more: &["--kind", "ping-pong"],
        targets: targets(1.25, 1.25),
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
        targets: Targets { l7: Some(0.95), ..NOTHING },
        ..UNARY
    },
    Shape {
        name: "input-60hz-1k-16x1",
        about: "a message there and back, 60 a second on each stream",
        connections: 16,
        streams: 1,
        message: KIB,
        answer: KIB,
        more: &["--kind", "ping-pong", "--rate", "960"],
        figure: Figure::AddedP50,
        ..UNARY
    },
    Shape {
        name: "beside-bulk",
        about: "a message of a 60 Hz stream of 1 KiB, alone and beside bulk",
        connections: 16,
        streams: 1,
        message: KIB,
        answer: KIB,
        more: &["--kind", "beside"],
        figure: Figure::Beside,
        targets: at_most(2.0),
        ..UNARY
    },
    Shape {
        name: "new-connection-16",
        about: "a connection with its session and one call",
        connections: 16,
        streams: 1,
        more: &["--kind", "new-connection"],
        targets: Targets { relay: Some(1.4), relay_by_worker: Some(2.2), ..NOTHING },
        gateways: &["ringway", "ringway-dial", "ringway-worker"],
        ..UNARY
    },
    Shape {
        // Few, so that none waits for another.
        name: "resume-4",
        about: "a session taken up again on a new connection after a reset",
        who: Who::Gateways,
        connections: 4,
        streams: 1,
        more: &["--kind", "resume"],
        figure: Figure::Resume,
        targets: at_most(300.0),
        ..UNARY
    },
    Shape {
        name: "resume-told-4",
        about: "a session taken up again on a new connection to a listener that is told \
                `protocol = \"h2\"`",
        who: Who::Named(&["ringway-told"]),
        connections: 4,
        streams: 1,
        more: &["--kind", "resume"],
        figure: Figure::Resume,
        targets: at_most(150.0),
        gateways: &["ringway-told"],
        ..UNARY
    },
    Shape {
        name: "rate-10k-64x4",
        about: "a call, 10 000 of them a second",
        more: &["--rate", "10000"],
        ..PACED
    },
    Shape {
        name: "rate-half-64x4",
        about: "a call, at half of what the slowest peer can do",
        more: &["--rate", RATE_HALF],
        targets: NOTHING,
        ..PACED
    },
    Shape {
        name: "live-10-active-10",
        about: "a call on one of ten connections",
        connections: 10,
        more: &["--active", "10"],
        ..UNARY
    },
    Shape {
        name: "live-8000-active-10",
        about: "a call on one of ten connections, the others rest",
        connections: 8000,
        more: &["--active", "10"],
        targets: Targets { of_shape: Some(("live-10-active-10", 1.15)), ..NOTHING },
        ..UNARY
    },
    Shape { name: "idle-1", connections: 1, ..RESTING },
    Shape { name: "idle-1000", connections: 1000, ..RESTING },
    Shape {
        name: "idle-9000",
        connections: 9000,
        targets: Targets { l7: Some(0.75), at_most: Some(6.0 * 1024.0), ..NOTHING },
        ..RESTING
    },
    Shape {
        name: "parked-1000",
        about: "a session whose client was cut off and stays away",
        who: Who::Gateways,
        connections: 1000,
        more: &["--kind", "parked", "--absence-ms", "200"],
        ..RESTING
    },
    Shape {
        name: "client-9000",
        about: "a client connection without a session",
        work: Work::Hold,
        connections: 9000,
        more: &[],
        targets: at_most(2.0 * 1024.0),
        ..RESTING
    },
    Shape {
        name: "tls-unary-100-256x1",
        about: "a call, TLS towards the client",
        who: Who::Tls,
        connections: 256,
        streams: 1,
        more: &["--tls", "{ca}"],
        targets: Targets { l7: Some(0.8), ..NOTHING },
        gateways: &["ringway-tls"],
        ..UNARY
    },
    Shape {
        name: "tls-unary-100-16x16",
        about: "a call, TLS towards the client",
        who: Who::Tls,
        more: &["--tls", "{ca}"],
        gateways: &["ringway-tls"],
        ..UNARY
    },
    Shape {
        name: "tls-unary-64k-8x4",
        about: "a call, TLS towards the client",
        who: Who::Tls,
        connections: 8,
        streams: 4,
        message: 64 * KIB,
        answer: 64 * KIB,
        more: &["--tls", "{ca}"],
        gateways: &["ringway-tls"],
        ..UNARY
    },
    Shape {
        name: "messages-256x1",
        connections: 256,
        streams: 1,
        who: Who::Gateways,
        figure: Figure::Messages,
        targets: at_most(0.0),
        gateways: &["ringway", "ringway-two-cores"],
        ..UNARY
    },
    Shape {
        name: "allocations-256x1",
        connections: 256,
        streams: 1,
        who: Who::Gateways,
        figure: Figure::Allocations,
        targets: at_most(0.001),
        gateways: &["ringway", "ringway-two-cores"],
        ..UNARY
    },
    Shape {
        name: "unary-100-64x3",
        connections: 64,
        streams: 3,
        targets: Targets { relay: Some(1.15), ..NOTHING },
        ..UNARY
    },
    Shape {
        name: "capacity-1ms-64x4",
        about: "a call, at the highest rate whose p99 is at most 1 ms",
        connections: 64,
        streams: 4,
        more: &["--kind", "capacity"],
        figure: Figure::Interval,
        // 0.8 of the relay's rate, 1.5 of the best proxy's.
        targets: targets(1.0 / 0.8, 1.0 / 1.5),
        ..UNARY
    },
    Shape {
        name: "storm-5000",
        about: "one of 5 000 connections made at once, with its session and one call",
        connections: 5000,
        streams: 1,
        more: &["--kind", "storm"],
        figure: Figure::FirstAnswer,
        targets: Targets { l7: Some(1.0), ..NOTHING },
        gateways: &["ringway", "ringway-dial"],
        ..UNARY
    },
    Shape {
        name: "slow-readers-1000",
        figure: Figure::WholeMemory,
        targets: Targets { l7: Some(0.6), ..NOTHING },
        ..SLOW
    },
    Shape { name: "beside-slow-1000", figure: Figure::Beside, targets: at_most(1.2), ..SLOW },
    Shape {
        name: "idle-whole-5000",
        connections: 5000,
        figure: Figure::WholeMemory,
        targets: Targets { of_peer: Some(("haproxy", 0.6)), ..NOTHING },
        ..RESTING
    },
    Shape {
        name: "download-40ms",
        figure: Figure::Interval,
        targets: Targets { relay: Some(1.0 / 0.95), ..NOTHING },
        ..LONG_WAY
    },
    Shape {
        name: "call-in-download-40ms",
        figure: Figure::Behind,
        targets: at_most(ROUND_TRIP_US),
        ..LONG_WAY
    },
    Shape {
        name: "two-cores-100-256x1",
        connections: 256,
        streams: 1,
        who: Who::Named(&["ringway", "ringway-two-cores"]),
        targets: Targets { of_peer: Some(("ringway", 1.1)), ..NOTHING },
        gateways: &["ringway-two-cores"],
        ..UNARY
    },
    Shape {
        name: "two-cores-resume-4",
        about: "a session taken up again on a new connection after a reset",
        who: Who::Named(&["ringway", "ringway-two-cores"]),
        connections: 4,
        streams: 1,
        more: &["--kind", "resume"],
        figure: Figure::Resume,
        targets: Targets { over_peer: Some(("ringway", 100.0)), ..NOTHING },
        gateways: &["ringway-two-cores"],
        ..UNARY
    },
    Shape {
        name: "http1-get-100-256x1",
        about: "a GET over HTTP/1.1",
        connections: 256,
        more: &["--kind", "get"],
        targets: targets(1.1, 0.76),
        ..WEB
    },
    Shape {
        name: "http1-get-1m-4x1",
        about: "a GET over HTTP/1.1",
        connections: 4,
        answer: KIB * KIB,
        more: &["--kind", "get"],
        targets: targets(1.2, 0.65),
        ..WEB
    },
    Shape {
        name: "http1-post-8m-4x1",
        about: "a POST over HTTP/1.1",
        connections: 4,
        message: 8 * KIB * KIB,
        answer: 4,
        more: &["--kind", "post"],
        targets: targets(1.2, 0.65),
        ..WEB
    },
    Shape {
        name: "ws-ping-pong-100-64x1",
        about: "a message there and back on a WebSocket",
        connections: 64,
        message: 100,
        more: &["--kind", "ws-ping-pong"],
        targets: Targets { relay: Some(1.15), of_peer: Some(("haproxy-http1", 0.9)), ..NOTHING },
        ..WEB
    },
    Shape {
        name: "ws-60hz-100-256x1",
        about: "a message there and back on a WebSocket, 60 a second on each",
        connections: 256,
        message: 100,
        more: &["--kind", "ws-ping-pong", "--rate", "15360"],
        targets: Targets { relay: Some(1.15), of_peer: Some(("haproxy-http1", 0.9)), ..NOTHING },
        ..WEB
    },
    Shape {
        name: "ws-stream-64k-4x1",
        about: "a message on a WebSocket",
        connections: 4,
        answer: 64 * KIB,
        more: &["--kind", "ws-stream"],
        targets: Targets { relay: Some(1.15), of_peer: Some(("haproxy-http1", 0.9)), ..NOTHING },
        ..WEB
    },
    Shape {
        name: "tls-handshake-full-16",
        more: &["--kind", "new-connection", "--tls", "{ca}"],
        ..HANDSHAKES
    },
    Shape {
        name: "tls-handshake-resumed-16",
        more: &["--kind", "new-connection", "--tls", "{ca}", "--tls-resume"],
        ..HANDSHAKES
    },
    Shape {
        name: "tls-first-answer-40ms",
        about: "a connection with TLS and one call, 40 ms away",
        connections: 4,
        more: &["--kind", "new-connection", "--tls", "{ca}", "--round-trip-ms", "40"],
        figure: Figure::RoundTrips,
        // Two instead of three.
        targets: Targets { l7: Some(0.7), ..NOTHING },
        ..HANDSHAKES
    },
    Shape {
        name: "tls-server-stream-64k-4x4",
        about: "a message, TLS towards the client",
        who: Who::Tls,
        connections: 4,
        streams: 4,
        answer: 64 * KIB,
        more: &["--kind", "server-stream", "--tls", "{ca}"],
        targets: Targets { l7: Some(0.9), ..NOTHING },
        gateways: &["ringway-tls"],
        ..UNARY
    },
    Shape {
        name: "tls-upload-8m-4x1",
        about: "a call, TLS towards the client",
        who: Who::Tls,
        connections: 4,
        streams: 1,
        message: 8 * KIB * KIB,
        answer: 4,
        more: &["--tls", "{ca}"],
        targets: Targets { l7: Some(0.9), ..NOTHING },
        gateways: &["ringway-tls"],
        ..UNARY
    },
];

/// The shapes of these names, in the order given; all when there are none.
pub(super) fn choose(names: &[String]) -> Result<Vec<Shape>, CompareFault> {
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
