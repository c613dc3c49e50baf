//! The admin port over cores that are played: what it answers, to whom, and what a silent core does.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, its parts too")]

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use axum::body::{Body, to_bytes};
use axum::extract::ConnectInfo;
use axum::http::{Request, Response, StatusCode};
use ringway::admin::{Admin, Changes, Phase, Scraper, routes, serve};
use ringway::config::Mode;
use ringway::control::local::SessionFacts;
use ringway::control::port::Owner;
use ringway::mailbox::{Mailbox, mailbox};
use ringway::message::{Bookmark, Page, SessionRow, ShardMessage, Snapshot};
use ringway::metrics::{Backend, CloseCode, CloseReason};
use ringway::timeline::{Ask, Entry, Event, IdBegin, Part, Party, Timer};
use ringway_proto::time::Time;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tower::ServiceExt;

const HERE: &str = "127.0.0.1:5000";
const ELSEWHERE: &str = "192.0.2.7:5000";
const ID: &str = "6370809d-e385-8000-8069-c00135678634";
const FORGOTTEN: &str = "0123abcd-e385-8000-8069-c00135678634";

struct World {
    admin: Arc<Admin>,
    phase: watch::Sender<Phase>,
    drain: watch::Receiver<bool>,
    silent: Option<Mailbox<ShardMessage>>,
    /// How often a core was told to end the session.
    ended: Arc<AtomicU64>,
    player: JoinHandle<()>,
}

/// Two cores; the second may be silent.
fn world(allow_remote: bool, silent: bool) -> World {
    let (first, mut inbox) = mailbox(8).unwrap();
    let (second, other) = mailbox(8).unwrap();
    let (phase, phase_seen) = watch::channel(Phase::Serving);
    let (drain, drain_seen) = watch::channel(false);
    let admin = Arc::new(Admin {
        scraper: Scraper::new(vec![first, second]),
        phase: phase_seen,
        drain,
        allow_remote,
        hosts: ["gateway.example".into()].into(),
        version: Some("1.33.4".into()),
        mode: Mode::Nvcf,
        node: ringway_proto::id::Node::new(1, 0x4a3f).expect("a node"),
        nodes: 0,
        others: Box::default(),
        drain_limits: OnceLock::new(),
        backend: Backend::Epoll,
        panics: AtomicU64::new(3),
        remote: None,
        level: watch::Sender::new(None),
        changes: Arc::new(Changes::new(Arc::default())),
    });
    let told = admin.clone();
    let ended = Arc::new(AtomicU64::new(0));
    let ends = ended.clone();
    let mut silent_box = Some(other);
    let mut other = if silent { None } else { silent_box.take() };
    let player = std::thread::spawn(move || {
        // The routes and the world hold the others.
        while Arc::strong_count(&told) > 1 {
            let boxes = [Some(&mut inbox), other.as_mut()];
            for (core, inbox) in boxes.into_iter().enumerate() {
                let core = core as u16;
                match inbox.and_then(Mailbox::receive) {
                    Some(ShardMessage::Snapshot { ticket }) => {
                        told.scraper.answered(ticket, Box::new(snapshot(core)));
                    }
                    Some(ShardMessage::Rows { ticket, from, wanted }) => {
                        told.scraper.turned(ticket, page(core, from, wanted));
                    }
                    Some(ShardMessage::Beat { ticket }) => told.scraper.beaten(ticket, 0),
                    Some(ShardMessage::Timeline { ticket, wanted }) => {
                        told.scraper.told(ticket, recorded(core, wanted));
                    }
                    Some(ShardMessage::End { id }) => {
                        assert_eq!(id.to_string(), ID);
                        ends.fetch_add(1, Ordering::Relaxed);
                    }
                    Some(_) | None => {}
                }
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    });
    World { admin, phase, drain: drain_seen, silent: silent_box, ended, player }
}

fn snapshot(core: u16) -> Snapshot {
    let mut snapshot = Snapshot { core, ..Snapshot::default() };
    snapshot.metrics.tokens_issued = 5;
    snapshot
}

/// One page for those that live, one without any, one for those that have ended.
fn page(core: u16, from: Bookmark, wanted: Option<IdBegin>) -> Page {
    let row = SessionRow {
        request_id: ID.replace("6370", &format!("637{core}")).parse().unwrap(),
        function_id: "f".into(),
        tenant: "t 1".into(),
        state: if core == 0 { "active" } else { "closed" },
        core,
        streams: 2,
        close_reason: (core == 1).then_some("client_closed"),
        ..SessionRow::default()
    };
    let (here, next) = match from {
        Bookmark::Live(at) => (at == 256 && core == 0, Some(next_of(at))),
        Bookmark::Carried(_) => (false, Some(Bookmark::Closed)),
        Bookmark::Closed => (core == 1, None),
    };
    let here = here && wanted.is_none_or(|wanted| wanted.matches(row.request_id));
    Page { core, rows: here.then_some(row).into_iter().collect(), next }
}

fn next_of(at: u32) -> Bookmark {
    if at < 256 { Bookmark::Live(256) } else { Bookmark::Carried(0) }
}

/// Core 0 has had the session first, then core 1; core 1 also had one that nobody lists any more.
fn recorded(core: u16, wanted: IdBegin) -> Vec<Part> {
    let part = |id: &str, at: u64, event: Event| Part {
        core,
        id: id.parse().unwrap(),
        facts: Some(SessionFacts {
            owner: Arc::new(Owner::new("t".into(), "f".into(), "v".into())),
            opened: Time::ZERO,
        }),
        entries: vec![Entry { at: Time(at), event }],
        pings: None,
        lost: 3,
        now: Time(7_000_000),
        unix_micros_at_zero: 1_000_000,
    };
    let closed = Event::Closed {
        side: Party::Worker,
        reason: CloseReason::WorkerClosed,
        code: CloseCode::Reset,
        timer: Timer::named("transport_idle"),
        detail: "the worker reset the tunnel",
    };
    let parts = match core {
        0 => vec![part(ID, 20, Event::RequestSent)],
        _ => vec![part(ID, 10, Event::Asked(Ask::New)), part(FORGOTTEN, 30, closed)],
    };
    parts.into_iter().filter(|part| wanted.matches(part.id)).collect()
}

impl World {
    async fn call(&self, method: &str, path: &str, peer: &str) -> Response<Body> {
        self.send(Request::builder().method(method).uri(path), peer).await
    }

    async fn send(&self, request: http::request::Builder, peer: &str) -> Response<Body> {
        let peer: SocketAddr = peer.parse().unwrap();
        let request = request.extension(ConnectInfo(peer)).body(Body::empty()).unwrap();
        routes(self.admin.clone()).oneshot(request).await.unwrap()
    }

    async fn json(&self, path: &str, peer: &str) -> Value {
        let response = self.call("GET", path, peer).await;
        assert_eq!(response.headers()["content-type"], "application/json", "{path}");
        serde_json::from_str(&text(response).await).unwrap()
    }

    fn end(self) {
        drop(self.admin);
        self.player.join().unwrap();
    }
}

async fn text(response: Response<Body>) -> String {
    let body = to_bytes(response.into_body(), 1 << 20).await.unwrap();
    String::from_utf8(body.to_vec()).unwrap()
}

#[tokio::test]
async fn info_says_the_mode_and_the_version_that_was_configured() {
    let world = world(false, false);
    let info = world.json("/info", ELSEWHERE).await;
    assert_eq!((&info["mode"], &info["version"]), (&"nvcf".into(), &"1.33.4".into()));
    world.end();
}

#[tokio::test]
async fn health_live_and_ready_follow_the_phase() {
    let world = world(false, false);
    let response = world.call("GET", "/health", ELSEWHERE).await;
    assert_eq!(response.headers()["cache-control"], "no-cache");
    assert_eq!((response.status(), text(response).await), (StatusCode::OK, "OK".into()));
    for (phase, live, ready) in
        [(Phase::Starting, 200, 503), (Phase::Serving, 200, 200), (Phase::Draining, 200, 503)]
    {
        world.phase.send_replace(phase);
        assert_eq!(world.call("GET", "/live", ELSEWHERE).await.status(), live);
        assert_eq!(world.call("GET", "/ready", ELSEWHERE).await.status(), ready, "{phase:?}");
        assert_eq!(world.call("GET", "/health", ELSEWHERE).await.status(), ready, "{phase:?}");
    }
    world.end();
}

#[tokio::test]
async fn metrics_are_the_sum_of_the_cores_and_of_the_process() {
    let world = world(false, false);
    let response = world.call("GET", "/metrics", ELSEWHERE).await;
    let kind = response.headers()["content-type"].to_str().unwrap().to_owned();
    assert!(kind.starts_with("text/plain; version=0.0.4"), "{kind}");
    let text = text(response).await;
    for line in [
        "nvcf_grpc_proxy_service_worker_token_issued_total 10",
        "ringway_shard_panics_total 3",
        "ringway_cores{state=\"answered\"} 2",
        "ringway_cores{state=\"silent\"} 0",
    ] {
        assert!(text.lines().any(|l| l == line), "missing {line}");
    }
    assert!(text.contains("\nprocess_resident_memory_bytes "));
    world.end();
}

/// Names that only a control plane elsewhere has stand in its own sources.
const OF_REMOTE: [&str; 5] = [
    include_str!("../src/remote/health.rs"),
    include_str!("../src/remote/api/meters.rs"),
    include_str!("../src/remote/nats/meters.rs"),
    include_str!("../src/remote/nats/rights.rs"),
    include_str!("../src/remote/nats/tally.rs"),
];

#[tokio::test]
async fn every_metric_stands_in_the_manual_by_its_whole_name() {
    let manual = include_str!("../../docs/reference/metrics.md");
    let world = world(false, false);
    let text = text(world.call("GET", "/metrics", HERE).await).await;
    let shown = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next());
    let quoted = OF_REMOTE.iter().flat_map(|source| source.split('"').skip(1).step_by(2));
    let begins = ["ringway_", "nvcf_grpc_proxy_service_", "rpc_client_", "nv_client_"];
    let whole = |name: &&str| {
        let letter = |b: u8| b.is_ascii_lowercase() || b == b'_';
        begins.iter().any(|begin| name.len() > begin.len() && name.starts_with(begin))
            && name.bytes().all(letter)
    };
    let names: Vec<&str> = shown.chain(quoted.filter(whole)).collect();
    assert!(names.len() > 50, "{names:?}");
    let missing: Vec<&&str> =
        names.iter().filter(|name| !manual.contains(&format!("| `{name}` |"))).collect();
    assert!(missing.is_empty(), "not in docs/reference/metrics.md: {missing:?}");
    world.end();
}

#[tokio::test]
async fn a_silent_core_costs_a_second_and_is_counted() {
    let world = world(false, true);
    let started = Instant::now();
    let text = text(world.call("GET", "/metrics", HERE).await).await;
    let took = started.elapsed();
    assert!(took >= Duration::from_millis(900), "{took:?}");
    assert!(text.contains("nvcf_grpc_proxy_service_worker_token_issued_total 5\n"));
    assert!(text.contains("ringway_cores{state=\"silent\"} 1\n"));
    assert!(world.silent.is_some());
    world.end();
}

#[tokio::test]
async fn sessions_are_a_bare_array_with_the_keys_of_the_design() {
    let world = world(false, false);
    let mut rows = world.json("/sessions", HERE).await;
    let rows = rows.as_array_mut().unwrap();
    rows.sort_by_key(|row| row["core"].as_u64());
    assert_eq!(rows[0]["requestId"], ID);
    let keys: Vec<&str> = rows[1].as_object().unwrap().keys().map(String::as_str).collect();
    let mut wanted = [
        "requestId",
        "functionId",
        "functionVersionId",
        "tenant",
        "state",
        "node",
        "core",
        "clientAddress",
        "tunnel",
        "streams",
        "bytesIn",
        "bytesOut",
        "ageMs",
        "closeReason",
    ];
    wanted.sort_unstable();
    assert_eq!(keys, wanted);
    assert!(rows[0].get("closeReason").is_none(), "only of sessions that have ended");
    world.end();
}

#[tokio::test]
async fn a_whole_request_id_is_shown_only_to_this_machine() {
    let world = world(true, false);
    let rows = world.json("/sessions", ELSEWHERE).await;
    for row in rows.as_array().unwrap() {
        assert_eq!(row["requestId"].as_str().unwrap().len(), 8);
    }
    // A page whose name was made to lead here is on this machine too.
    for path in ["/sessions", "/sessions/6370809d"] {
        let request = Request::builder().uri(path).header("host", "evil.example");
        let shown = text(world.send(request, HERE).await).await;
        assert!(shown.contains("6370809d") && !shown.contains(ID), "{path}: {shown}");
    }
    let row = world.json("/sessions/6370809d", ELSEWHERE).await;
    assert_eq!((&row["requestId"], &row["core"]), (&"6370809d".into(), &0.into()));
    let row = world.json(&format!("/sessions/{ID}"), "[::1]:1").await;
    assert_eq!(row["requestId"], ID);
    for unknown in ["/sessions/6370", "/sessions/00000000", "/sessions/x"] {
        assert_eq!(world.call("GET", unknown, HERE).await.status(), StatusCode::NOT_FOUND);
    }
    world.end();
}

#[tokio::test]
async fn a_session_is_told_of_by_all_cores() {
    let world = world(true, false);
    let told = world.json(&format!("/sessions/{ID}"), HERE).await;
    assert_eq!((&told["requestId"], &told["state"]), (&ID.into(), &"active".into()));
    let events = told["events"].as_array().unwrap();
    let seen: Vec<_> = events.iter().map(|event| (&event["event"], &event["core"])).collect();
    assert_eq!(seen, [(&"asked".into(), &1.into()), (&"request_sent".into(), &0.into())]);
    assert_eq!(events[0]["at"], "1970-01-01T00:00:01.000010Z");
    assert_eq!(told["lostEvents"], 6);
    assert!(told["verdict"].as_str().unwrap().starts_with("waits for a worker"), "{told}");
    // One that has left the list is known by its events alone.
    let told = world.json(&format!("/sessions/{}", &FORGOTTEN[..8]), ELSEWHERE).await;
    assert_eq!(told["requestId"], FORGOTTEN[..8]);
    assert_eq!((&told["state"], &told["closeReason"]), (&"closed".into(), &"worker_closed".into()));
    assert_eq!((&told["tenant"], &told["ageMs"]), (&"t".into(), &7000.into()));
    let verdict = "ended by the worker: connection reset, before the first byte";
    assert_eq!(told["verdict"], verdict);
    assert_eq!(told["events"][0]["timer"], "transport_idle");
    // Nothing is recorded of the session of core 1.
    let told = world.json("/sessions/6371809d", HERE).await;
    assert_eq!(
        (&told["verdict"], &told["events"]),
        (&"no events were kept of it".into(), &Value::Array(Vec::new()))
    );
    assert!(told.get("lostEvents").is_none());
    world.end();
}

#[tokio::test]
async fn sessions_can_be_asked_for_by_what_they_are() {
    let world = world(false, false);
    for (query, cores) in [
        ("", &[0, 1][..]),
        ("?state=active", &[0]),
        ("?state=CLOSED&core=1", &[1]),
        ("?state=active&core=1", &[]),
        ("?function=f", &[0, 1]),
        ("?function=x", &[]),
        ("?tenant=t%201&state=active", &[0]),
        ("?tenant=t", &[]),
    ] {
        let rows = world.json(&format!("/sessions{query}"), HERE).await;
        let mut seen: Vec<u64> =
            rows.as_array().unwrap().iter().filter_map(|row| row["core"].as_u64()).collect();
        seen.sort_unstable();
        assert_eq!(seen, cores, "{query}");
    }
    for bad in ["?state=gone", "?core=x", "?tennant=t", "?state=active&state=closed"] {
        let response = world.call("GET", &format!("/sessions{bad}"), HERE).await;
        assert_eq!(response.status(), StatusCode::BAD_REQUEST, "{bad}");
        assert!(text(response).await.contains("filters are state"));
    }
    world.end();
}

#[tokio::test]
async fn what_changes_something_is_for_this_machine_only() {
    let mut world = world(false, false);
    for (method, path) in [("POST", "/drain"), ("GET", "/shutdown"), ("DELETE", "/sessions/x")] {
        assert_eq!(world.call(method, path, ELSEWHERE).await.status(), StatusCode::FORBIDDEN);
        for header in [
            ("origin", "http://evil.example"),
            ("sec-fetch-site", "cross-site"),
            ("host", "evil.example:10083"),
        ] {
            let request = Request::builder().method(method).uri(path).header(header.0, header.1);
            assert_eq!(world.send(request, HERE).await.status(), StatusCode::FORBIDDEN, "{path}");
        }
    }
    assert!(!*world.drain.borrow_and_update());
    assert_eq!(world.call("DELETE", "/sessions/x", HERE).await.status(), 404);
    for host in ["127.0.0.1:10083", "localhost:1", "[::1]", "gateway.example:10083"] {
        let request = Request::builder().method("DELETE").uri("/sessions/x").header("host", host);
        assert_eq!(world.send(request, HERE).await.status(), 404, "{host}");
    }
    let left = world.json("/drain", ELSEWHERE).await;
    assert_eq!((&left["draining"], &left["atMostMs"]), (&Value::Bool(false), &Value::Null));
    assert_eq!(world.call("POST", "/drain", "[::ffff:127.0.0.1]:9").await.status(), 202);
    assert!(*world.drain.borrow_and_update());
    world.end();
}

#[tokio::test]
async fn what_is_logged_is_changed_from_here_and_for_a_while() {
    let world = world(false, false);
    assert_eq!(world.json("/log-level", ELSEWHERE).await["filter"], Value::Null);
    for (path, peer, status) in [
        ("/log-level?filter=debug", ELSEWHERE, 403),
        ("/log-level", HERE, 400),
        ("/log-level?filter=debug&for=0", HERE, 400),
        ("/log-level?filter=debug&for=86401", HERE, 400),
        ("/log-level?filter=debug&fro=1", HERE, 400),
    ] {
        assert_eq!(world.call("POST", path, peer).await.status(), status, "{path}");
    }
    // The test has no log of its own, and a filter that is none is told before that shows.
    let told = text(world.call("POST", "/log-level?filter=debug", HERE).await).await;
    assert!(told.contains("no log of its own"), "{told}");
    world.end();
}

#[tokio::test]
async fn remote_calls_can_be_allowed_and_any_method_shuts_down() {
    let world = world(true, false);
    for method in ["GET", "POST", "PUT"] {
        assert_eq!(world.call(method, "/shutdown", ELSEWHERE).await.status(), 202);
    }
    assert!(*world.drain.borrow());
    world.end();
}

#[tokio::test]
async fn a_session_is_ended_on_every_core_if_it_lives() {
    let here = world(false, false);
    for (path, status) in [
        (format!("/sessions/{ID}"), 204),
        (format!("/sessions/{}", &ID[..8]), 204),
        (format!("/sessions/{}", ID.to_uppercase()), 204),
        // The other one is closed.
        (format!("/sessions/{}", ID.replace("6370", "6371")), 404),
        ("/sessions/6370".into(), 404),
    ] {
        assert_eq!(here.call("DELETE", &path, HERE).await.status(), status, "{path}");
    }
    assert_eq!(here.ended.load(Ordering::Relaxed), 6, "three times, two cores");
    here.end();
    // A core that does not answer may have it.
    let quiet = world(true, true);
    let unknown = "/sessions/00000000-0000-8000-8069-c00135678634";
    assert_eq!(quiet.call("DELETE", unknown, ELSEWHERE).await.status(), 503);
    drop(quiet.silent);
    drop(quiet.admin);
    quiet.player.join().unwrap();
}

/// Asks on a connection that stays open, and takes the answer.
async fn ask(stream: &mut TcpStream) -> String {
    stream.write_all(b"GET /live HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    let mut got = [0; 1024];
    let len = stream.read(&mut got).await.unwrap();
    String::from_utf8(got[..len].to_vec()).unwrap()
}

#[tokio::test]
async fn whoever_does_not_read_or_says_nothing_keeps_no_probe_waiting() {
    const ROOM: usize = 4;
    let world = world(false, false);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let served = tokio::spawn(serve(listener, world.admin.clone(), ROOM));
    // Without others a connection may rest between its requests.
    let mut alone = TcpStream::connect(address).await.unwrap();
    for _ in 0..2 {
        assert!(ask(&mut alone).await.starts_with("HTTP/1.1 200"));
        sleep(Duration::from_millis(700)).await;
    }
    drop(alone);
    let mut held = Vec::new();
    for reads in [false, true] {
        for _ in 0..ROOM {
            let socket = TcpSocket::new_v4().unwrap();
            socket.set_recv_buffer_size(4096).unwrap();
            let mut stream = socket.connect(address).await.unwrap();
            if reads {
                stream.write_all(b"GET /live HT").await.unwrap();
            } else {
                let asked = "GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n".repeat(400);
                stream.write_all(asked.as_bytes()).await.unwrap();
            }
            held.push(stream);
        }
        // Each of these connections would have ten seconds, and those that do not read would have
        // them one after the other.
        let probe = async { ask(&mut TcpStream::connect(address).await.unwrap()).await };
        let answer = timeout(Duration::from_secs(5), probe).await.expect("no answer for a probe");
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
    drop(held);
    served.abort();
    assert!(served.await.unwrap_err().is_cancelled());
    sleep(Duration::from_millis(700)).await;
    world.end();
}
