//! One line an edge of a session's life, in the words that operators search for (contract 8.3).
//!
//! A shard leaves [`Line`]s, which are values, and knows no log. At the end of its core's turn they
//! are put into a bounded queue ([`write()`]). A thread looks into the queue every 20 ms and makes
//! text of them. So a data core formats nothing and wakes nobody. A full queue loses records, and
//! the log says how many. Credentials and tokens never get here.

mod json;
mod line;
mod lines;
mod meter;
mod stamp;
mod zap;

use std::fmt::Write as _;
use std::io::{IsTerminal, Write};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use crossbeam::queue::ArrayQueue;
use ringway_stdio::{Escaping, Form, LastLines};
use tracing::Level;
use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder};
use tracing_subscriber::field::MakeExt;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::format::{FormatFields, debug_fn};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Registry, reload};

pub use self::line::{AccessLine, Closed, Line, Lines, Named, Refused};
use self::meter::Meter;
pub use stamp::rfc3339;

/// What can be logged, from little to much.
pub const LEVELS: [&str; 5] = ["error", "warn", "info", "debug", "trace"];

/// How often the queue is looked into.
const PAUSE: Duration = Duration::from_millis(20);
/// Records that wait for their lines.
const RECORDS: usize = line::MOST;
/// Lines, or batches of them, that wait for stderr.
const LINES: usize = 16 * 1024;
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

/// What is logged, which can be changed, and what was logged at the start.
static FILTER: OnceLock<(reload::Handle<Targets, Registry>, LevelFilter)> = OnceLock::new();
/// Characters of a filter.
const MAX_FILTER: usize = 1024;

/// How often the log says that records were lost, or that lines were left out.
const TOLD_EVERY: Duration = Duration::from_secs(1);

/// The names of what every JSON line has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Keys {
    /// `timestamp`, `level`, `message`.
    #[default]
    Ringway,
    /// The names of NVIDIA's proxy, whose log library is zap: `level`, `ts`, `logger`, `caller`,
    /// `msg`, with times as seconds of Unix time (contract 8.3).
    Zap,
}

/// A line to be written.
#[derive(Debug)]
struct Record {
    at: SystemTime,
    shard: u16,
    /// Records like it that were left out before it.
    left_out: u64,
    line: Line,
}

/// Gives the lines of a core's turn to the log; none is left. Now is when they happened.
pub fn write(core: u16, lines: &mut Lines) {
    if lines.is_empty() {
        return;
    }
    let mut lost = lines.take_lost();
    // Without a reader (tests, a program that has begun no log) nothing is kept.
    if let Some(queue) = QUEUE.get() {
        let (at, clock) = (SystemTime::now(), meter::clock());
        let told = tracing::enabled!(Level::INFO);
        for line in lines.drain().filter(|line| told || !line.is_of_session()) {
            lost += u64::from(!put(queue, (core, at), clock, line));
        }
        LOST.fetch_add(lost, Ordering::Relaxed);
    }
    lines.clear();
}

/// Puts a line into the queue, unless its address has caused too many; false if there is no room.
fn put(
    queue: &ArrayQueue<Record>,
    (shard, at): (u16, SystemTime),
    clock: u64,
    mut line: Line,
) -> bool {
    let mut left_out = 0;
    if let Some((from, kind, lines)) = line.counted() {
        match METER.pass(from, kind, lines, clock) {
            Some(before) => left_out = before,
            None => return true,
        }
    }
    // Looked at first: under an attack the queue is full, and then nothing is allocated for it.
    if queue.is_full() {
        return false;
    }
    line.shorten();
    queue.push(Record { at, shard, left_out, line }).is_ok()
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

/// Begins to log to stderr: JSON lines, or readable text on a terminal. Called once in a process.
///
/// # Errors
/// When the thread cannot be started.
pub fn start(level: &str, keys: Keys) -> std::io::Result<LogGuard> {
    let readable = std::io::stderr().is_terminal();
    let form = if readable { Form::Text } else { Form::Json };
    let (log, last) = ringway_stdio::Log::new(form);
    let (lines, guard) = NonBlockingBuilder::default()
        .buffered_lines_limit(LINES)
        .lossy(true)
        .thread_name("ringway-stderr")
        .finish(log);
    // The guard is never dropped: that would panic, or wait for ever, when the queue is full and
    // stdout cannot be written.
    let _kept = std::mem::ManuallyDrop::new(guard);
    let _ = CROWDED_OUT.set(lines.error_counter());
    let ours = install(lines.clone(), level, (!readable).then_some(keys));
    let queue = lines.clone();
    let mut direct = (ours && !readable).then(|| Direct { lines, keys, batch: Vec::new() });
    QUEUE.get_or_init(|| ArrayQueue::new(RECORDS));
    let thread = std::thread::Builder::new().name("ringway-log".into()).spawn(move || {
        crate::reactor::take_long_turns();
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
    keys: Keys,
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

/// Changes what is logged from now on: a level, or parts of the program with a level each, such as
/// `ringway::remote=debug`, where the rest stays as it was at the start. None: all is as it was.
///
/// # Errors
/// What is no such filter, with what to write; or when this process has begun no log.
pub fn set_filter(filter: Option<&str>) -> Result<(), String> {
    let Some((handle, start)) = FILTER.get() else {
        return Err("this process has no log of its own".into());
    };
    let targets = match filter {
        None => targets(*start),
        Some(filter) => read_filter(filter, *start)?,
    };
    handle.reload(targets).map_err(|error| error.to_string())
}

/// What is logged at a level. Libraries speak up only when something is wrong.
fn targets(level: LevelFilter) -> Targets {
    Targets::new().with_target("ringway", level).with_default(level.min(LevelFilter::WARN))
}

fn read_filter(filter: &str, start: LevelFilter) -> Result<Targets, String> {
    const WANTED: &str = "write error, warn, info, debug or trace, or parts with a level each, such \
                          as ringway::remote=debug,ringway::admin=trace";
    if filter.len() > MAX_FILTER {
        return Err(format!("the filter is longer than {MAX_FILTER} characters: {WANTED}"));
    }
    let level = |text: &str| LEVELS.contains(&text).then(|| text.parse().ok()).flatten();
    if let Some(level) = level(filter) {
        return Ok(targets(level));
    }
    filter.split(',').try_fold(targets(start), |targets, part| {
        let (target, level) = part
            .split_once('=')
            .and_then(|(target, word)| Some((target.trim(), level(word.trim())?)))
            .filter(|(target, _)| !target.is_empty())
            .ok_or_else(|| format!("\"{filter}\" is no filter: {WANTED}"))?;
        Ok(targets.with_target(target, level))
    })
}

/// Installs this log for all lines, as JSON with these keys or as text. False if another log is
/// installed.
fn install(lines: NonBlocking, level: &str, keys: Option<Keys>) -> bool {
    let level: LevelFilter = level.parse().unwrap_or(LevelFilter::INFO);
    let (targets, handle) = reload::Layer::new(targets(level));
    let registry = tracing_subscriber::registry().with(targets);
    let layer = tracing_subscriber::fmt::layer().with_timer(stamp::Stamp).with_writer(lines);
    // This fails only if a subscriber is installed already. Then that one goes on.
    let installed: Result<(), _> = match keys {
        None => registry.with(layer.compact().fmt_fields(values()).with_target(false)).try_init(),
        Some(Keys::Ringway) => {
            registry.with(layer.json().flatten_event(true).with_target(false)).try_init()
        }
        Some(Keys::Zap) => registry.with(layer.event_format(zap::Zap)).try_init(),
    };
    if installed.is_ok() {
        let _ = FILTER.set((handle, level));
    }
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
            let made = json::write(&record, direct.keys, &mut direct.batch);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_is_a_level_or_parts_with_a_level_each() {
        let debug = read_filter("debug", LevelFilter::INFO).unwrap();
        assert!(debug.would_enable("ringway::remote", &Level::DEBUG));
        assert!(!debug.would_enable("hyper", &Level::INFO), "libraries stay quiet");
        let parts = read_filter("ringway::remote=trace, hyper=debug", LevelFilter::INFO).unwrap();
        assert!(parts.would_enable("ringway::remote::nats", &Level::TRACE));
        assert!(parts.would_enable("hyper", &Level::DEBUG));
        assert!(parts.would_enable("ringway::admin", &Level::INFO));
        assert!(!parts.would_enable("ringway::admin", &Level::DEBUG));
        for bad in ["", "loud", "ringway=", "=debug", "ringway=loud", "debug,x", &"a".repeat(2000)]
        {
            assert!(read_filter(bad, LevelFilter::INFO).unwrap_err().contains("write error"));
        }
    }
}
