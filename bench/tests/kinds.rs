//! Every kind of run over loopback, against our own endpoint and against gateways that tests play.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

mod support;

use std::collections::HashSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use ringway_bench::beside::Bulk;
use ringway_bench::caller::Work;
use ringway_bench::load::{self, Kind, Outcome, Plan};
use ringway_bench::pipe::{self, Way};
use ringway_bench::tls::{Offer, Trust};
use ringway_bench::web::Talk;
use ringway_bench::{backend, beside, capacity, check};
use support::{LOOPBACK, block_on, plan, start_backend, start_relay};

/// A run of another kind than calls, through the relay.
fn run_kind(kind: Kind, more: impl FnOnce(&mut Plan)) -> Outcome {
    let work = Work { message: 1000, answer: 3000 };
    let mut plan = plan(start_relay(start_backend()), 3, 2, work);
    plan.kind = kind;
    more(&mut plan);
    let outcome = load::run(&plan).unwrap();
    assert_eq!(outcome.failed, 0, "{:?}", outcome.failures);
    assert!(outcome.calls > 0);
    outcome
}

#[test]
fn server_streams_bring_whole_messages_without_end() {
    let outcome = run_kind(Kind::ServerStream { messages: None }, |_| {});
    assert_eq!(outcome.unit, "message");
    assert!(outcome.calls_per_s > 0.0, "{outcome}");
}

#[test]
fn server_streams_of_a_known_length_end_and_begin_anew() {
    let outcome = run_kind(Kind::ServerStream { messages: Some(7) }, |_| {});
    assert!(outcome.calls.is_multiple_of(7), "{outcome}");
    assert!(outcome.latency_us.count * 7 == outcome.calls, "{outcome}");
}

#[test]
fn messages_go_back_and_forth() {
    let lockstep = run_kind(Kind::PingPong { in_flight: 1 }, |_| {});
    assert!(lockstep.latency_us.p50 > 0.0, "{lockstep}");
    // Smaller than their order, and many at once.
    let burst = run_kind(Kind::PingPong { in_flight: 1000 }, |plan| {
        plan.work = Work { message: 5, answer: 5 };
    });
    assert!(burst.latency_us.p50 > 0.0, "{burst}");
}

#[test]
fn an_open_loop_keeps_its_rate_and_knows_its_error() {
    for kind in [Kind::Unary, Kind::PingPong { in_flight: 1 }] {
        let outcome = run_kind(kind, |plan| {
            (plan.rate, plan.streams) = (Some(500.0), 1);
            plan.counted = Duration::from_millis(600);
        });
        let due = outcome.elapsed_ns as f64 / 1e9 * 500.0;
        // A slow machine makes fewer, none makes more.
        assert!((outcome.calls as f64) < due * 1.5 + 5.0, "{outcome}");
        assert!(outcome.late_us.unwrap().max > 0.0);
    }
}

/// A backend that now and then does not answer for 200 ms: what was due meanwhile waited as long.
#[test]
fn an_open_loop_counts_what_a_stall_held_up() {
    let listener = TcpListener::bind(SocketAddr::from(LOOPBACK)).unwrap();
    let (address, backend) = (listener.local_addr().unwrap(), start_backend());
    thread::spawn(move || {
        let (client, _) = listener.accept().unwrap();
        let server = TcpStream::connect(backend).unwrap();
        let (mut from, mut to) = (server.try_clone().unwrap(), client.try_clone().unwrap());
        thread::spawn(move || std::io::copy(&mut from, &mut to));
        let (mut from, mut to, mut bytes) = (client, server, [0; 4096]);
        let mut awake = std::time::Instant::now();
        while let Ok(n @ 1..) = from.read(&mut bytes) {
            if awake.elapsed() > Duration::from_millis(300) {
                thread::sleep(Duration::from_millis(200));
                awake = std::time::Instant::now();
            }
            to.write_all(&bytes[..n]).unwrap();
        }
    });
    let mut plan = plan(address, 1, 1, Work { message: 100, answer: 100 });
    (plan.rate, plan.counted) = (Some(200.0), Duration::from_millis(1000));
    let outcome = load::run(&plan).unwrap();
    // 40 calls were due in each stall; a closed loop would have seen one slow call.
    assert!(outcome.latency_us.p90 > 20_000.0, "{outcome}");
    assert!(outcome.latency_us.max > 150_000.0, "{outcome}");
}

#[test]
fn connections_come_call_and_go() {
    let outcome = run_kind(Kind::NewConnection, |plan| plan.streams = 1);
    assert_eq!(outcome.unit, "connection");
}

#[test]
fn resting_connections_stay_and_their_memory_is_told() {
    let outcome = run_kind(Kind::Unary, |plan| {
        (plan.connections, plan.active) = (300, Some(2));
        plan.watch = vec![load::Watch { name: "proxy".to_owned(), pid: std::process::id() }];
    });
    // The other tests of this program come and go in the same memory.
    assert!(outcome.memory.per_connection("proxy").unwrap().is_finite(), "{outcome}");
}

#[test]
fn latencies_are_kept_as_an_hdr_log() {
    let path = std::env::temp_dir().join(format!("ringway-hdr-{}", std::process::id()));
    let outcome = run_kind(Kind::Unary, |plan| plan.hdr = Some(path.clone()));
    let text = std::fs::read(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    let mut log = hdrhistogram::serialization::interval_log::IntervalLogIterator::new(&text);
    let found = log.find_map(|entry| match entry.unwrap() {
        hdrhistogram::serialization::interval_log::LogEntry::Interval(interval) => {
            Some(interval.encoded_histogram().to_owned())
        }
        _ => None,
    });
    assert!(found.unwrap().len() > 40, "{outcome}");
}

#[test]
fn a_new_connection_tells_its_first_byte_and_may_come_from_many_addresses() {
    let outcome = run_kind(Kind::NewConnection, |plan| plan.route.spread = true);
    let first = outcome.parts["first-byte"];
    assert_eq!(first.count, outcome.calls);
    assert!(first.p50 > 0.0 && first.p50 <= outcome.latency_us.p50, "{outcome}");
}

/// The endpoint as a process of its own; it ends with the value.
struct Apart {
    child: Child,
    address: SocketAddr,
}

impl Apart {
    fn start() -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_ringway-bench"))
            .args(["backend", "--listen", "127.0.0.1:0"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim().strip_prefix("ready listen=").unwrap().parse().unwrap();
        Self { child, address }
    }
}

impl Drop for Apart {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

#[test]
fn sessions_rest_in_steps_and_memory_is_looked_at_with_each() {
    let backend = Apart::start();
    let mut plan = plan(backend.address, 200, 1, Work { message: 100, answer: 100 });
    (plan.kind, plan.steps) = (Kind::Idle, vec![1, 50]);
    plan.watch = vec![load::Watch { name: "endpoint".to_owned(), pid: backend.child.id() }];
    let outcome = load::run(&plan).unwrap();
    assert_eq!((outcome.unit.as_str(), outcome.calls), ("session", 200));
    assert_eq!(outcome.failed, 0, "{outcome}");
    let steps: Vec<_> = outcome.memory.steps.iter().map(|step| step.connections).collect();
    assert_eq!(steps, [0, 1, 50, 200]);
    let sockets = |step: usize| outcome.memory.steps[step].held["endpoint"].sockets;
    let grown: Vec<_> = (1..4).map(|step| sockets(step) - sockets(0)).collect();
    assert_eq!(grown, [1, 50, 200]);
    assert!(outcome.memory.per_connection("endpoint").unwrap().is_finite(), "{outcome}");
}

#[test]
fn a_slow_stream_is_measured_alone_and_beside_bulk() {
    let mut plan = plan(start_relay(start_backend()), 4, 1, Work { message: 1024, answer: 1024 });
    plan.counted = Duration::from_millis(500);
    let path = scratch("beside.hlog");
    plan.hdr = Some(path.clone());
    let bulk = Bulk { connections: 1, message: 65_536, slow: None };
    let outcome = beside::run(&plan, bulk).unwrap();
    assert_eq!(outcome.failed, 0, "{outcome}");
    for part in ["alone", "beside"] {
        // 4 connections at 60 a second for half a second.
        let count = outcome.parts[part].count;
        // A slow machine makes fewer, none makes more.
        assert!((1..=2_000).contains(&count), "{part}: {outcome}");
    }
    assert!(outcome.bulk_bytes_per_s.unwrap() > 0.0, "{outcome}");
    assert_eq!(tags(&path), [Some("alone".to_owned()), Some("beside".to_owned())]);
}

#[test]
fn the_generator_knows_its_ceiling_its_floor_and_its_error() {
    let mut plan = plan(SocketAddr::from(LOOPBACK), 4, 4, Work { message: 100, answer: 100 });
    plan.rate = Some(1000.0);
    let outcome = check::run(&plan).unwrap();
    assert_eq!(outcome.failed, 0, "{outcome}");
    assert!(outcome.calls_per_s > 0.0, "{outcome}");
    assert!(outcome.per_unit["generator"] > 0.0 && outcome.generator_busy > 0.0, "{outcome}");
    assert!(outcome.parts["floor"].p50 > 0.0, "{outcome}");
    let paced = outcome.parts["paced"].count;
    // A slow machine makes fewer, none makes more.
    assert!((1..=5_000).contains(&paced), "{outcome}");
    assert!(outcome.late_us.unwrap().count > 0);
}

#[test]
fn requests_of_http_1_and_messages_on_web_sockets_are_answered() {
    for (talk, message, answer, unit) in [
        (Talk::Get, 4, 100, "call"),
        (Talk::Get, 4, 1 << 20, "call"),
        (Talk::Post, 1 << 20, 4, "call"),
        (Talk::PingPong, 100, 100, "message"),
        (Talk::Stream, 4, 65_536, "message"),
    ] {
        let outcome = run_kind(Kind::Web(talk), |plan| {
            plan.streams = 1;
            plan.work = Work { message, answer };
        });
        assert_eq!(outcome.unit, unit);
        assert!(outcome.bytes_per_s > 0.0, "{outcome}");
    }
    for talk in [Talk::Get, Talk::PingPong] {
        let outcome = run_kind(Kind::Web(talk), |plan| {
            (plan.streams, plan.rate) = (1, Some(500.0));
            plan.work = Work { message: 100, answer: 100 };
        });
        let due = outcome.elapsed_ns as f64 / 1e9 * 500.0;
        assert!((outcome.calls as f64) < due * 1.5 + 5.0, "{outcome}");
    }
}

#[test]
fn a_storm_is_over_when_all_have_their_answer_and_counts_who_has_none() {
    let outcome = run_kind(Kind::Storm, |plan| (plan.connections, plan.streams) = (300, 1));
    assert_eq!((outcome.calls, outcome.parts["first-byte"].count), (300, 300), "{outcome}");
    // Every second connection is closed at once.
    let listener = TcpListener::bind(SocketAddr::from(LOOPBACK)).unwrap();
    let (address, backend) = (listener.local_addr().unwrap(), start_backend());
    thread::spawn(move || {
        for (number, client) in listener.incoming().flatten().enumerate() {
            if number % 2 == 0 {
                continue;
            }
            let server = TcpStream::connect(backend).unwrap();
            let (mut from, mut to) = (server.try_clone().unwrap(), client.try_clone().unwrap());
            thread::spawn(move || std::io::copy(&mut from, &mut to));
            let (mut from, mut to) = (client, server);
            thread::spawn(move || std::io::copy(&mut from, &mut to));
        }
    });
    let mut plan = plan(address, 10, 1, Work { message: 100, answer: 100 });
    plan.kind = Kind::Storm;
    let outcome = load::run(&plan).unwrap();
    assert_eq!((outcome.calls, outcome.failed >= 5), (5, true), "{outcome}");
}

#[test]
fn a_rate_within_the_bound_is_found_and_none_is_said_so() {
    let mut plan = plan(start_backend(), 4, 2, Work { message: 100, answer: 100 });
    plan.counted = Duration::from_millis(800);
    let found = capacity::run(&plan, Duration::from_secs(1)).unwrap();
    assert_eq!(found.failed, 0, "{found}");
    assert!(found.calls_per_s > 0.0 && found.latency_us.p99 <= 1e6, "{found}");
    let none = capacity::run(&plan, Duration::ZERO).unwrap();
    assert!(none.not_built.unwrap().contains("p99"));
}

#[test]
fn small_messages_are_measured_alone_and_beside_a_stream_of_their_connection() {
    let round_trip = Duration::from_millis(20);
    let way = Way { round_trip, rate: 125e6 };
    let target = pipe::open(start_backend(), way).unwrap();
    let plan = plan(target, 1, 2, Work { message: 100, answer: 65_536 });
    let outcome = beside::shared(&plan).unwrap();
    assert_eq!(outcome.failed, 0, "{outcome}");
    assert!(outcome.calls > 0, "{outcome}");
    for part in ["alone", "beside"] {
        // Through the way nothing is faster than it is long.
        assert!(outcome.parts[part].p50 >= 20_000.0, "{part}: {outcome}");
    }
}

#[test]
fn others_are_measured_beside_clients_that_do_not_read_and_memory_after_them() {
    let mut plan = plan(start_relay(start_backend()), 2, 1, Work { message: 100, answer: 100 });
    plan.watch = vec![load::Watch { name: "proxy".to_owned(), pid: std::process::id() }];
    let slow = Some(Duration::from_millis(300));
    let outcome = beside::run(&plan, Bulk { connections: 20, message: 65_536, slow }).unwrap();
    assert_eq!(outcome.failed, 0, "{outcome}");
    let last = outcome.memory.steps.last().unwrap();
    // What is not read waits in sockets.
    assert_eq!((last.connections, last.held["proxy"].queued > 100_000), (20, true), "{last:?}");
    assert!(outcome.bulk_bytes_per_s.unwrap() < 20.0 * 16_384.0 * 8.0, "{outcome}");
}

/// A file of this process's own.
fn scratch(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("ringway-kinds-{}-{name}", std::process::id()))
}

/// The tags of an HDR log's intervals; the file is removed.
fn tags(path: &PathBuf) -> Vec<Option<String>> {
    use hdrhistogram::serialization::interval_log::{IntervalLogIterator, LogEntry};
    let text = std::fs::read(path).unwrap();
    std::fs::remove_file(path).unwrap();
    let entries = IntervalLogIterator::new(&text).filter_map(|entry| match entry.unwrap() {
        LogEntry::Interval(interval) => Some(interval.tag().map(|tag| tag.as_str().to_owned())),
        _ => None,
    });
    entries.collect()
}

/// An endpoint in TLS, and the file with its certificate.
fn start_tls_backend(names: &[&str], file: &str) -> (SocketAddr, PathBuf) {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let made = rcgen::generate_simple_self_signed(names).unwrap();
    let (chain, key) = (scratch(file), scratch(&format!("{file}.key")));
    std::fs::write(&chain, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    let offer = Offer::read(&chain, &key).unwrap();
    std::fs::remove_file(&key).unwrap();
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let ready = |address| sender.send(address).unwrap();
        backend::run_with(SocketAddr::from(LOOPBACK), Some(offer), ready).unwrap();
    });
    (receiver.recv().unwrap(), chain)
}

#[test]
fn calls_streams_and_new_connections_go_through_tls() {
    let (backend, chain) = start_tls_backend(&["127.0.0.1"], "tls.pem");
    let trust = Trust::read(&chain, "127.0.0.1").unwrap();
    std::fs::remove_file(&chain).unwrap();
    for (kind, message, answer) in [
        (Kind::Unary, 100, 100),
        // Many records a message, and windows that fill.
        (Kind::Unary, 1 << 20, 1 << 20),
        (Kind::ServerStream { messages: None }, 100, 65_536),
        (Kind::PingPong { in_flight: 4 }, 5, 5),
        (Kind::NewConnection, 100, 100),
    ] {
        let mut plan = plan(start_relay(backend), 2, 2, Work { message, answer });
        (plan.kind, plan.route.trust) = (kind, Some(trust.clone()));
        let outcome = load::run(&plan).unwrap();
        assert_eq!(outcome.failed, 0, "{kind:?}: {outcome}");
        assert!(outcome.calls > 0, "{kind:?}: {outcome}");
    }
}

#[test]
fn a_client_with_tickets_takes_its_sessions_up_again() {
    let (backend, chain) = start_tls_backend(&["127.0.0.1"], "tickets.pem");
    let trust = Trust::read(&chain, "127.0.0.1").unwrap();
    std::fs::remove_file(&chain).unwrap();
    for (trust, resumes) in [(trust.clone(), false), (trust.resuming(), true)] {
        let mut plan = plan(backend, 1, 1, Work { message: 100, answer: 100 });
        (plan.kind, plan.route.trust) = (Kind::NewConnection, Some(trust));
        let outcome = load::run(&plan).unwrap();
        assert_eq!(outcome.failed, 0, "{outcome}");
        assert_eq!(outcome.resumed.is_some_and(|share| share > 0.5), resumes, "{outcome}");
    }
}

#[test]
fn a_stranger_is_not_called() {
    let (backend, _) = start_tls_backend(&["127.0.0.1"], "one.pem");
    let (_, other) = start_tls_backend(&["127.0.0.1"], "other.pem");
    let mut plan = plan(backend, 1, 1, Work { message: 4, answer: 4 });
    plan.route.trust = Some(Trust::read(&other, "127.0.0.1").unwrap());
    let fault = load::run(&plan).unwrap_err();
    assert!(matches!(fault, load::LoadFault::SetUp { live: 0, broken: 1, .. }), "{fault}");
    std::fs::remove_file(&other).unwrap();
    std::fs::remove_file(scratch("one.pem")).unwrap();
}

/// How a gateway that a test plays treats a client that comes back.
#[derive(Clone, Copy, PartialEq)]
enum Returning {
    Welcome,
    Unknown,
    /// The client gets another session without being told.
    Mixed,
}

/// A gateway with the endpoint built in, which gives every connection a session.
fn start_gateway(returning: Returning) -> SocketAddr {
    let listener = TcpListener::bind(SocketAddr::from(LOOPBACK)).unwrap();
    let address = listener.local_addr().unwrap();
    listener.set_nonblocking(true).unwrap();
    let known = Arc::new(Mutex::new(HashSet::new()));
    thread::spawn(move || {
        block_on(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            let mut next = 0;
            while let Ok((stream, _)) = listener.accept().await {
                next += 1;
                // Else an answer waits for the client's acknowledgement, 40 ms at times, beside which
                // no part of a resume shows.
                stream.set_nodelay(true).unwrap();
                tokio::spawn(serve_session(stream, returning, format!("s{next}"), known.clone()));
            }
        });
    });
    address
}

async fn serve_session(
    stream: tokio::net::TcpStream,
    returning: Returning,
    new: String,
    known: Arc<Mutex<HashSet<String>>>,
) {
    let mut server = h2::server::handshake(stream).await.unwrap();
    let mut session = None;
    while let Some(Ok((request, mut respond))) = server.accept().await {
        let asked = request.headers().get("nvcf-reqid").map(|id| id.to_str().unwrap().to_owned());
        let mut answer = http::Response::builder();
        if session.is_none() {
            session = match asked {
                Some(id) => {
                    assert!(known.lock().unwrap().contains(&id), "never given out: {id}");
                    (returning == Returning::Welcome).then_some(id)
                }
                None => Some(new.clone()),
            };
            if returning == Returning::Mixed {
                session = Some(new.clone());
            }
        }
        let Some(id) = &session else {
            answer =
                answer.header("grpc-status", "5").header("grpc-message", "no existing session");
            respond.send_response(answer.body(()).unwrap(), true).unwrap();
            continue;
        };
        known.lock().unwrap().insert(id.clone());
        let answer = answer.header("nvcf-reqid", id).body(()).unwrap();
        let mut stream = respond.send_response(answer, false).unwrap();
        let mut message = vec![0, 0, 0, 0, 100];
        message.resize(105, 1);
        stream.send_data(Bytes::from(message), false).unwrap();
        let mut trailers = http::HeaderMap::new();
        trailers.insert("grpc-status", "0".parse().unwrap());
        stream.send_trailers(trailers).unwrap();
    }
}

fn resume(target: SocketAddr) -> Outcome {
    let mut plan = plan(target, 2, 1, Work { message: 100, answer: 100 });
    plan.kind = Kind::Resume { absence: Duration::from_millis(3) };
    plan.counted = Duration::from_millis(400);
    load::run(&plan).unwrap()
}

#[test]
fn a_client_that_is_cut_off_comes_back() {
    let outcome = resume(start_gateway(Returning::Welcome));
    assert_eq!((outcome.failed, &outcome.not_built), (0, &None), "{outcome}");
    assert!(outcome.calls > 0, "{outcome}");
    for part in ["new", "new-request", "pinned", "resume-request"] {
        assert_eq!(outcome.parts[part].count, outcome.calls, "{part}: {outcome}");
    }
    // The connection's first octet comes before the request's.
    assert!(outcome.latency_us.p50 > outcome.parts["resume-request"].p50, "{outcome}");
}

#[test]
fn a_gateway_that_keeps_no_session_is_not_measured() {
    let outcome = resume(start_gateway(Returning::Unknown));
    assert_eq!((outcome.calls, outcome.failed), (0, 0), "{outcome}");
    assert!(outcome.not_built.unwrap().contains("NOT_FOUND"));
    // An endpoint without any gateway names no session.
    let outcome = resume(start_relay(start_backend()));
    assert!(outcome.not_built.unwrap().contains("nvcf-reqid"));
}

#[test]
fn sessions_without_their_clients_are_held_and_counted() {
    let parked = |target| {
        let mut plan = plan(target, 30, 1, Work { message: 100, answer: 100 });
        plan.kind = Kind::Parked { absence: Duration::from_millis(3) };
        plan.watch = vec![load::Watch { name: "proxy".to_owned(), pid: std::process::id() }];
        load::run(&plan).unwrap()
    };
    let outcome = parked(start_gateway(Returning::Welcome));
    assert_eq!((outcome.calls, outcome.failed, &outcome.not_built), (30, 0, &None), "{outcome}");
    assert_eq!(outcome.memory.steps.len(), 2);
    let outcome = parked(start_gateway(Returning::Unknown));
    assert_eq!(outcome.calls, 0, "{outcome}");
    assert!(outcome.not_built.unwrap().contains("NOT_FOUND"));
}

#[test]
fn another_session_than_the_one_asked_for_is_a_failure() {
    let mut plan = plan(start_gateway(Returning::Mixed), 1, 1, Work { message: 100, answer: 100 });
    plan.kind = Kind::Resume { absence: Duration::from_millis(1) };
    let fault = load::run(&plan).unwrap_err();
    assert!(matches!(fault, load::LoadFault::SetUp { live: 0, .. }), "{fault}");
}
