//! The admin port: metrics, health, sessions, drain. It runs on the control thread and asks the
//! cores by message. No request passes it.

mod changes;
mod draining;
mod level;
mod owner;
mod proc;
mod reply;
mod scrape;
mod sessions;
mod site;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::{ConnectInfo, Path, Request, State};
use axum::http::{HeaderMap, Response, StatusCode, Uri};
use axum::middleware::{Next, from_fn_with_state};
use axum::routing::{any, get, post};
use hyper::service::Service;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use ringway_proto::id::Node;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};

use crate::config::Mode;
use crate::message::ShardMessage;
use crate::metrics::{Backend, single};
use crate::remote::Remote;
use crate::timeline::IdBegin;

pub use changes::{Change, Changes};
pub use draining::{DrainLimits, DrainReport, StillOpen};
pub use level::Changed;
pub use scrape::{Beats, Scraper};

/// Time for a request's head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// Time from a request's arrival until the peer has taken its answer and sent the next request.
const REQUEST_TIME: Duration = Duration::from_secs(10);
/// The same time while another peer waits for a place. After twice this time the connection is cut
/// off. A probe waits a second as a rule.
const CROWDED_TIME: Duration = Duration::from_millis(300);
/// Pause after an accept that failed for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// The pause before the log tells of such a failure again.
const SAY_AGAIN: Duration = Duration::from_secs(60);
/// The answer's text when a core does not answer.
const BUSY: &str = "a core is too busy, try again\n";
/// Letters of a shortened request id.
const SHORT_ID: usize = IdBegin::DIGITS;

/// Where the process is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Not all cores are ready.
    Starting,
    /// New sessions are taken.
    Serving,
    /// The process leaves.
    Draining,
}

/// What the admin port knows and may do.
#[derive(Debug)]
pub struct Admin {
    /// Asks the cores.
    pub scraper: Scraper,
    /// Where the process is.
    pub phase: watch::Receiver<Phase>,
    /// Set to begin the drain.
    pub drain: watch::Sender<bool>,
    /// Whether calls that change something may come from other machines.
    pub allow_remote: bool,
    /// Names that lead here, besides addresses and `localhost`.
    pub hosts: Box<[Box<str>]>,
    /// The version to report, if it is not the program's own.
    pub version: Option<Arc<str>>,
    /// The mode: which control plane says who may call.
    pub mode: Mode,
    /// Which node of a cluster this is.
    pub node: Node,
    /// How many nodes the configuration knows, this one included; 0: there is no cluster.
    pub nodes: u64,
    /// The other nodes of the configuration, and where each takes relays.
    pub others: Box<[(u16, SocketAddr)]>,
    /// The limits of the drain, once it has begun.
    pub drain_limits: OnceLock<DrainLimits>,
    /// Whether io_uring or epoll drives the cores.
    pub backend: Backend,
    /// Panics of cores so far: counted here because a shard's own counters die with it.
    pub panics: AtomicU64,
    /// What was replaced while the gateway ran.
    pub changes: Arc<Changes>,
    /// The control plane elsewhere, if there is one.
    pub remote: Option<Remote>,
    /// The level of the log that replaces the configured one for a while.
    pub level: watch::Sender<Changed>,
}

impl Admin {
    fn is_serving(&self) -> bool {
        *self.phase.borrow() == Phase::Serving
    }

    /// Whether there may be other gateways whose sessions are asked for here.
    fn has_others(&self) -> bool {
        self.remote.is_some() || !self.others.is_empty()
    }
}

type Shared = State<Arc<Admin>>;
type Peer = ConnectInfo<SocketAddr>;

/// Every path of the admin port.
pub fn routes(admin: Arc<Admin>) -> Router {
    let guard = || from_fn_with_state(admin.clone(), only_from_here);
    Router::new()
        .route("/drain", get(draining::shown).merge(post(drain).layer(guard())))
        .route("/shutdown", any(drain).layer(guard()))
        .route("/log-level", get(level::shown).merge(post(level::change).layer(guard())))
        .route(
            "/sessions/{id}",
            get(sessions::one).merge(axum::routing::delete(close).layer(guard())),
        )
        .route("/sessions", get(sessions::list))
        .route("/metrics", get(metrics))
        .route("/health", get(health))
        .route("/live", get(live))
        .route("/ready", get(ready))
        .route("/info", get(info))
        .fallback(nothing)
        .with_state(admin)
}

/// Serves the admin port for ever, with `room` connections at once. The last of them waits for a
/// place, and until it gets one the others have little time. Further ones wait to be accepted.
pub async fn serve(listener: TcpListener, admin: Arc<Admin>, room: usize) {
    let routes = routes(admin);
    let places = Arc::new(Semaphore::new(room.saturating_sub(1).max(1)));
    let crowded = watch::Sender::new(false);
    let mut said: Option<Instant> = None;
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                if said.is_none_or(|at| at.elapsed() >= SAY_AGAIN) {
                    said = Some(Instant::now());
                    tracing::warn!(%error, "the admin port cannot accept for now");
                }
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        crowded.send_replace(places.available_permits() == 0);
        let Ok(place) = places.clone().acquire_owned().await else { return };
        crowded.send_replace(false);
        let routes = routes.clone().layer(axum::Extension(ConnectInfo(peer)));
        let crowded = crowded.subscribe();
        tokio::spawn(async move {
            converse(stream, routes, crowded).await;
            drop(place);
        });
    }
}

/// Answers one connection's requests until it is closed or has taken its time.
async fn converse(stream: TcpStream, routes: Router, crowded: watch::Receiver<bool>) {
    let (began, begins) = watch::channel(Instant::now());
    let routes = TowerToHyperService::new(routes);
    let service = hyper::service::service_fn(move |request| {
        began.send_replace(Instant::now());
        routes.call(request)
    });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service);
    let mut served = std::pin::pin!(served);
    tokio::select! {
        // A peer that went away needs no log line.
        _ = &mut served => return,
        () = time_is_up(begins, crowded) => {}
    }
    // A connection that waits for a request is closed at once. An answer on its way is finished
    // first.
    served.as_mut().graceful_shutdown();
    let _ = tokio::time::timeout(CROWDED_TIME, served).await;
}

/// Waits until the latest request has had its time, which is short while others wait.
async fn time_is_up(mut begins: watch::Receiver<Instant>, mut crowded: watch::Receiver<bool>) {
    loop {
        let since = tokio::time::Instant::from_std(*begins.borrow_and_update());
        let over = async {
            tokio::time::sleep_until(since + CROWDED_TIME).await;
            let waits = crowded.wait_for(|crowded| *crowded);
            // It does not matter which of the two happened.
            let _ = tokio::time::timeout_at(since + REQUEST_TIME, waits).await;
        };
        tokio::select! {
            () = over => return,
            Ok(()) = begins.changed() => {}
        }
    }
}

/// Lets a call that changes something through only from this machine, unless configured otherwise.
/// A web page of another site is never let through, though a browser on this machine would count as
/// local.
async fn only_from_here(
    State(admin): Shared,
    ConnectInfo(peer): Peer,
    request: Request,
    next: Next,
) -> Response<Body> {
    if let Some(foreign) = site::foreign(request.uri(), request.headers(), &admin.hosts) {
        return reply::text(StatusCode::FORBIDDEN, foreign.text());
    }
    if !admin.allow_remote && !is_loopback(peer) {
        let text = "only from this machine, unless [admin] allow_remote = true\n";
        return reply::text(StatusCode::FORBIDDEN, text);
    }
    next.run(request).await
}

fn is_loopback(peer: SocketAddr) -> bool {
    peer.ip().to_canonical().is_loopback()
}

/// Whether a caller may see full request ids, with which it could come back to others' sessions.
/// Only programs on this machine may.
fn may_see_ids(admin: &Admin, peer: SocketAddr, (uri, headers): (&Uri, &HeaderMap)) -> bool {
    is_loopback(peer) && site::foreign(uri, headers, &admin.hosts).is_none()
}

async fn metrics(State(admin): Shared) -> Response<Body> {
    let scrape = admin.scraper.ask().await;
    let mut text = String::with_capacity(64 * 1024);
    let mut sum = scrape.sum();
    sum.shard_panics += admin.panics.load(Ordering::Relaxed);
    sum.render(&mut text);
    scrape.render(&mut text);
    admin.changes.render(&mut text);
    match &admin.remote {
        Some(remote) => remote.render(&mut text),
        None => {
            let head = ("ringway_nodes_alive", "gauge");
            single(&mut text, head, "Gateways of the cluster, as configured.", admin.nodes);
        }
    }
    crate::log::render(&mut text);
    proc::render(&mut text);
    reply::metrics(text)
}

async fn health(State(admin): Shared) -> Response<Body> {
    if admin.is_serving() {
        reply::text(StatusCode::OK, "OK")
    } else {
        reply::text(StatusCode::SERVICE_UNAVAILABLE, "draining")
    }
}

/// Liveness: whether the process should be let live. It depends on nothing outside the process.
async fn live() -> Response<Body> {
    reply::text(StatusCode::OK, "OK")
}

async fn ready(State(admin): Shared) -> Response<Body> {
    let phase = *admin.phase.borrow();
    let not_ready = admin.remote.as_ref().and_then(Remote::not_ready);
    match (phase, not_ready) {
        (Phase::Serving, Some(why)) => reply::text(StatusCode::SERVICE_UNAVAILABLE, why),
        (Phase::Serving, None) => reply::text(StatusCode::OK, "OK"),
        (Phase::Starting, _) => reply::text(StatusCode::SERVICE_UNAVAILABLE, "starting"),
        (Phase::Draining, _) => reply::text(StatusCode::SERVICE_UNAVAILABLE, "draining"),
    }
}

async fn info(State(admin): Shared) -> Response<Body> {
    reply::json(&serde_json::json!({
        "service": "nvcf-grpc-proxy",
        "version": admin.version.as_deref().unwrap_or(crate::VERSION),
        "commit": crate::COMMIT,
        "cores": admin.scraper.cores(),
        "backend": admin.backend.label(),
        "mode": admin.mode.name(),
        "node": admin.node.to_string(),
        "kernel": ringway_cli::kernel(),
    }))
}

/// Ends a session on all cores. Answered when all have done so: behind the order each core gets a
/// question, and its answer shows that.
async fn close(State(admin): Shared, Path(id): Path<String>) -> Response<Body> {
    let unknown = || reply::text(StatusCode::NOT_FOUND, "no such session\n");
    let Some(wanted) = IdBegin::parse(&id) else { return unknown() };
    let listed = admin.scraper.ask_rows(Some(wanted)).await;
    let live = listed.rows.iter().filter(|row| row.close_reason.is_none());
    let id = match live.collect::<Vec<_>>()[..] {
        [] if !listed.whole => return reply::text(StatusCode::SERVICE_UNAVAILABLE, BUSY),
        [] => return unknown(),
        [row] => row.request_id,
        _ => return reply::text(StatusCode::CONFLICT, "several sessions begin so\n"),
    };
    if admin.scraper.tell(|| ShardMessage::End { id }) > 0 {
        return reply::text(StatusCode::SERVICE_UNAVAILABLE, BUSY);
    }
    admin.scraper.ask_beats().await;
    reply::empty(StatusCode::NO_CONTENT)
}

async fn drain(State(admin): Shared) -> Response<Body> {
    admin.drain.send_replace(true);
    reply::text(StatusCode::ACCEPTED, "draining\n")
}

async fn nothing() -> Response<Body> {
    let text = "GET /metrics /health /live /ready /info /sessions /sessions/ID /log-level /drain; \
                POST /drain /log-level\n";
    reply::text(StatusCode::NOT_FOUND, text)
}
