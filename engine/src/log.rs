//! One line an edge of a session's life, in the words that operators search for (contract 8.3).
//!
//! A data core formats nothing and wakes nobody: it puts a record into a bounded queue, and a
//! thread that looks into the queue every 20 ms writes the lines. A full queue loses records
//! and says how many. Credentials and tokens never get here.

mod json;
mod lines;
mod meter;
mod stamp;

use std::fmt::Write as _;
use std::io::{IsTerminal, Write};
use std::net::{IpAddr, SocketAddr};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use crossbeam::queue::ArrayQueue;
use ringway_proto::fault::Fault;
use ringway_proto::h2::ConnFault;
use ringway_stdio::{Escaping, Form, LastLines};
use tracing::Level;
use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder};
use tracing_subscriber::field::MakeExt;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::format::{FormatFields, debug_fn};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use self::meter::{Kind, Meter};
pub use stamp::rfc3339;

/// How often the queue is looked into.
const PAUSE: Duration = Duration::from_millis(20);
/// Records that wait for their lines.
const RECORDS: usize = 16 * 1024;
/// Lines, or batches of them, that wait for stderr.
const LINES: usize = 16 * 1024;
/// Lines of a session's end at most.
const CLOSED_LINES: u64 = 3;
/// Bytes of lines that are written together.
const BATCH_BYTES: usize = 16 * 1024;

static QUEUE: OnceLock<ArrayQueue<Record>> = OnceLock::new();
/// Records lost since the log last said so.
static LOST: AtomicU64 = AtomicU64::new(0);
/// Records lost before that.
static LOST_EVER: AtomicU64 = AtomicU64::new(0);
/// Lines that found no room on their way to stderr.
static CROWDED_OUT: OnceLock<ErrorCounter> = OnceLock::new();
static ENDED: AtomicBool = AtomicBool::new(false);
static METER: Meter = Meter::new();

/// How often the log says that records were lost, or that lines were left out.
const TOLD_EVERY: Duration = Duration::from_secs(1);

/// What is known of a session at one of its edges. Fields that do not apply keep their default.
#[derive(Clone, Copy, Debug, Default)]
pub struct SessionEdge<'a> {
    /// The session.
    pub request_id: &'a str,
    /// Its function.
    pub function_id: &'a str,
    /// Its version.
    pub function_version_id: &'a str,
    /// Why it ended: a label of `CloseReason`.
    pub eviction_reason: &'static str,
    /// What the transport said: a label of `CloseCode`.
    pub close_code: &'static str,
    /// More of that; printable, bounded, may come from a peer.
    pub close_detail: &'a str,
    /// The worker ended it.
    pub closed_by_peer: bool,
    /// The timer of ours that ended it: empty, `worker_cache_ttl`, `transport_idle`, `quic_idle`.
    pub local_timeout: &'static str,
    /// How long it lasted.
    pub held_for: Duration,
    /// Core.
    pub shard: u16,
    /// Its lines are counted as this address's, and left out if there are too many: it got no
    /// worker, or its client makes more sessions than admission would allow.
    pub counted_for: Option<IpAddr>,
}

/// One request, for the access log.
#[derive(Clone, Copy, Debug)]
#[expect(missing_docs, reason = "each field is what its name says of the request")]
pub struct Access<'a> {
    pub method: &'a str,
    /// A query is cut off: it may carry anything.
    pub path: &'a str,
    pub status: u16,
    pub latency: Duration,
    pub client: SocketAddr,
    /// Body bytes of the response.
    pub size: u64,
    pub shard: u16,
}

/// A request that got no session.
#[derive(Clone, Copy, Debug)]
pub struct Refusal<'a> {
    /// What the client is told.
    pub fault: &'a Fault,
    /// The client.
    pub client: SocketAddr,
    /// The function as the client named it.
    pub function_id: &'a [u8],
    /// The version likewise; empty if it named none.
    pub function_version_id: &'a [u8],
    /// Whose credential it is; empty if nobody's.
    pub tenant: &'a str,
    /// Core.
    pub shard: u16,
}

/// Octets of an id of a client's that are logged: a UUID has 36.
const ID_SHOWN: usize = 64;

/// A line to be written.
#[derive(Debug)]
struct Record {
    at: SystemTime,
    shard: u16,
    /// Records like it that were left out before it.
    left_out: u64,
    what: What,
}

#[derive(Debug)]
enum What {
    Registered(Edge),
    Closed(Edge),
    OpenFailed { refused: Box<Refused> },
    Rejected { result: String, age: Option<Duration> },
    ConnectionFailed { peer: SocketAddr, tunnel: bool, code: String, reason: &'static str },
    Access { line: Box<AccessLine> },
}

/// A [`Refusal`] that owns its texts.
#[derive(Debug)]
struct Refused {
    code: u8,
    text: String,
    client: SocketAddr,
    function_id: String,
    function_version_id: String,
    tenant: Box<str>,
}

/// A [`SessionEdge`] that owns its texts.
#[derive(Debug)]
struct Edge {
    /// Request id, function, version and detail in one piece: it is made on a data core.
    texts: Box<str>,
    /// Where the first three of them end.
    ends: [usize; 3],
    eviction_reason: &'static str,
    close_code: &'static str,
    closed_by_peer: bool,
    local_timeout: &'static str,
    held_for: Duration,
}

#[derive(Debug)]
struct AccessLine {
    method: Box<str>,
    path: Box<str>,
    status: u16,
    latency: Duration,
    client: SocketAddr,
    size: u64,
}

/// A worker's CONNECT was let in.
pub fn tunnel_registered(edge: &SessionEdge<'_>) {
    if tracing::enabled!(Level::INFO) {
        let counted = edge.counted_for.map(|from| (from, Kind::Session, 1));
        put(edge.shard, counted, || What::Registered(Edge::of(edge)));
    }
}

/// An attachment has ended.
pub fn attachment_closed(edge: &SessionEdge<'_>) {
    if tracing::enabled!(Level::INFO) {
        let counted = edge.counted_for.map(|from| (from, Kind::Session, CLOSED_LINES));
        put(edge.shard, counted, || What::Closed(Edge::of(edge)));
    }
}

/// A request got no session.
pub fn open_failed(refusal: &Refusal<'_>) {
    let id = |sent: &[u8]| {
        let shown = &sent[..sent.len().min(ID_SHOWN)];
        String::from_utf8_lossy(shown).into_owned()
    };
    let counted = Some((refusal.client.ip(), Kind::OpenFailed, 1));
    put(refusal.shard, counted, || What::OpenFailed {
        refused: Box::new(Refused {
            code: refusal.fault.code(),
            text: refusal.fault.to_string(),
            client: refusal.client,
            function_id: id(refusal.function_id),
            function_version_id: id(refusal.function_version_id),
            tenant: refusal.tenant.into(),
        }),
    });
}

/// A worker's CONNECT was refused; `result` is the metric's label.
pub fn connect_rejected(result: &str, age: Option<Duration>, worker: SocketAddr, shard: u16) {
    put(shard, Some((worker.ip(), Kind::Rejected, 1)), || What::Rejected {
        result: result.into(),
        age,
    });
}

/// A peer broke a rule of HTTP/2 that ends its connection.
pub fn connection_failed(peer: SocketAddr, tunnel: bool, fault: &ConnFault, shard: u16) {
    put(shard, Some((peer.ip(), Kind::ConnectionFailed, 1)), || What::ConnectionFailed {
        peer,
        tunnel,
        code: format!("{:?}", fault.code),
        reason: fault.reason,
    });
}

/// A request was answered. The caller looks at `log.access` first.
pub fn access(access: &Access<'_>) {
    put(access.shard, None, || What::Access {
        line: Box::new(AccessLine {
            method: access.method.into(),
            path: access.path.split('?').next().unwrap_or_default().into(),
            status: access.status,
            latency: access.latency,
            client: access.client,
            size: access.size,
        }),
    });
}

/// Puts a record into the queue; `counted` says whose lines it is, of which kind and how many, if a
/// peer can cause it without end.
fn put(shard: u16, counted: Option<(IpAddr, Kind, u64)>, what: impl FnOnce() -> What) {
    // Without a reader (tests, the simulated world) nothing is kept.
    let Some(queue) = QUEUE.get() else { return };
    let mut left_out = 0;
    if let Some((from, kind, lines)) = counted {
        match METER.pass(from, kind, lines, meter::clock()) {
            Some(before) => left_out = before,
            None => return,
        }
    }
    // Looked at first: under an attack the queue is full, and then nothing is allocated for it.
    let at = SystemTime::now();
    if queue.is_full() || queue.push(Record { at, shard, left_out, what: what() }).is_err() {
        LOST.fetch_add(1, Ordering::Relaxed);
    }
}

impl Edge {
    fn of(edge: &SessionEdge<'_>) -> Self {
        let [id, function, version] =
            [edge.request_id, edge.function_id, edge.function_version_id].map(str::len);
        let texts =
            [edge.request_id, edge.function_id, edge.function_version_id, edge.close_detail];
        Self {
            texts: texts.concat().into_boxed_str(),
            ends: [id, id + function, id + function + version],
            eviction_reason: edge.eviction_reason,
            close_code: edge.close_code,
            closed_by_peer: edge.closed_by_peer,
            local_timeout: edge.local_timeout,
            held_for: edge.held_for,
        }
    }

    fn request_id(&self) -> &str {
        &self.texts[..self.ends[0]]
    }

    fn function_id(&self) -> &str {
        &self.texts[self.ends[0]..self.ends[1]]
    }

    fn function_version_id(&self) -> &str {
        &self.texts[self.ends[1]..self.ends[2]]
    }

    fn close_detail(&self) -> &str {
        &self.texts[self.ends[2]..]
    }
}

/// Keeps the log going; when it is dropped, what waits is written, unless its reader stands still.
#[derive(Debug)]
pub struct LogGuard {
    thread: Option<JoinHandle<()>>,
    lines: NonBlocking,
    last: LastLines,
}

impl Drop for LogGuard {
    fn drop(&mut self) {
        ENDED.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            // A panic in it was printed already.
            let _ = thread.join();
        }
        self.last.wait(&mut self.lines);
    }
}

/// Begins to log to stderr: JSON lines, or readable text on a terminal. Once a process.
///
/// # Errors
/// When the thread cannot be started.
pub fn start(level: &str) -> std::io::Result<LogGuard> {
    let readable = std::io::stderr().is_terminal();
    let form = if readable { Form::Text } else { Form::Json };
    let (log, last) = ringway_stdio::Log::new(form);
    let (lines, guard) = NonBlockingBuilder::default()
        .buffered_lines_limit(LINES)
        .lossy(true)
        .thread_name("ringway-stderr")
        .finish(log);
    // Its drop panics, or waits for ever, when its queue is full and stdout cannot be written.
    let _kept = std::mem::ManuallyDrop::new(guard);
    let _ = CROWDED_OUT.set(lines.error_counter());
    let ours = install(lines.clone(), level, readable);
    let queue = lines.clone();
    let mut direct = (ours && !readable).then(|| Direct { lines, batch: Vec::new() });
    QUEUE.get_or_init(|| ArrayQueue::new(RECORDS));
    let thread = std::thread::Builder::new().name("ringway-log".into()).spawn(move || {
        let mut told_at = Instant::now();
        loop {
            let ended = ENDED.load(Ordering::Acquire);
            write_waiting(direct.as_mut());
            if ended || told_at.elapsed() >= TOLD_EVERY {
                told_at = Instant::now();
                tell_missing();
            }
            if ended {
                return;
            }
            std::thread::sleep(PAUSE);
        }
    })?;
    Ok(LogGuard { thread: Some(thread), lines: queue, last })
}

/// JSON lines that are made here and not by `tracing`: those of sessions, which are most of them.
struct Direct {
    lines: NonBlocking,
    /// Lines that are written together.
    batch: Vec<u8>,
}

impl Direct {
    fn write(&mut self) {
        if !self.batch.is_empty() {
            // Lines that find no room are lost, as all are.
            let _ = self.lines.write_all(&self.batch);
            self.batch.clear();
        }
    }
}

/// Whether it is this log that lines go to from now on.
fn install(lines: NonBlocking, level: &str, readable: bool) -> bool {
    let level: LevelFilter = level.parse().unwrap_or(LevelFilter::INFO);
    // Libraries speak up only when something is wrong.
    let targets =
        Targets::new().with_target("ringway", level).with_default(level.min(LevelFilter::WARN));
    let registry = tracing_subscriber::registry().with(targets);
    let layer = tracing_subscriber::fmt::layer().with_timer(stamp::Stamp).with_writer(lines);
    // It fails only when a subscriber is installed already: then that one goes on.
    let installed = if readable {
        registry.with(layer.compact().fmt_fields(values()).with_target(false)).try_init()
    } else {
        registry.with(layer.json().flatten_event(true).with_target(false)).try_init()
    };
    installed.is_ok()
}

/// The fields of a line of text: what others said is shown without what would move a terminal's
/// cursor. In JSON the stream does that.
fn values() -> impl for<'writer> FormatFields<'writer> + Send + Sync + 'static {
    debug_fn(|writer, field, value| {
        if field.name() != "message" {
            write!(writer, "{field}=")?;
        }
        write!(Escaping(writer), "{value:?}")
    })
    .delimited(" ")
}

/// Appends the log's own metric.
pub fn render(out: &mut String) {
    let crowded_out = CROWDED_OUT.get().map_or(0, ErrorCounter::dropped_lines) as u64;
    let queue = LOST_EVER.load(Ordering::Relaxed) + crowded_out;
    *out += "# HELP ringway_log_lines_lost_total Log lines that were lost: too many at once \
             (queue), or stderr could not be written (write).\n\
             # TYPE ringway_log_lines_lost_total counter\n";
    for (why, lost) in [("queue", queue), ("write", ringway_stdio::lost_lines())] {
        *out += &format!("ringway_log_lines_lost_total{{why=\"{why}\"}} {lost}\n");
    }
}

/// Writes what is in the queue.
fn write_waiting(mut direct: Option<&mut Direct>) {
    let Some(queue) = QUEUE.get() else { return };
    while let Some(record) = queue.pop() {
        if let Some(direct) = &mut direct {
            let made = json::write(&record, &mut direct.batch);
            if !made || direct.batch.len() > BATCH_BYTES {
                direct.write();
            }
            if made {
                continue;
            }
        }
        stamp::at(record.at, || lines::write(&record));
    }
    if let Some(direct) = &mut direct {
        direct.write();
    }
}

/// Says what is not in the log.
fn tell_missing() {
    let lost = LOST.swap(0, Ordering::Relaxed);
    if lost > 0 {
        LOST_EVER.fetch_add(lost, Ordering::Relaxed);
        tracing::warn!(lost, "log records were lost: the queue was full");
    }
    METER.untold(meter::clock(), |kind, left_out| {
        tracing::warn!(left_out, of = kind.name(), "log lines of one address were left out");
    });
}
