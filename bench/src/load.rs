//! The load generator: connections with calls or streams on them, in a closed loop, or begun at a
//! fixed rate whatever the answers do ([`Plan::rate`]); then a latency counts from the instant at
//! which the call should have begun, so that a stall is felt by all that it held up.
//!
//! The generator's threads run monoio; the calling thread only keeps time and samples the CPU
//! time of the processes it was told to watch, at the same two instants that bound the count.
//! Neighbours: [`crate::caller`] is one connection, [`crate::compare`] starts this as a process.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use monoio::net::TcpStream;
use serde::{Deserialize, Serialize};

use crate::caller::{Caller, Pace as CallPace, Work};
use crate::cpu;
use crate::drive::{self, Link, Machine, drive_linked};
use crate::fields::CallFields;
use crate::memory::{Held, Memory};
use crate::pace::Pace;
use crate::streamer::{Streamer, Talk};
use crate::tally::{Failures, Phase, Stage, Tally};

/// All connections must have had an answer within this time.
const SET_UP_LIMIT: Duration = Duration::from_secs(30);
/// Calls open at the end get this long; the connections end with the next answer.
const END_LIMIT: Duration = Duration::from_secs(5);
/// How often set-up is looked at.
const LOOK: Duration = Duration::from_millis(2);
/// Connections of one generator thread that are being set up at once.
const SET_UP_AT_ONCE: usize = 128;
/// Share of its CPU above which the generator's side may be what limits a run.
const BUSY: f64 = 0.9;

/// What the connections do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Calls, each answered once.
    Unary,
    /// Streams on which messages come without end; each is a unit.
    ServerStream,
    /// Streams on which messages go back and forth; each answered one is a unit.
    PingPong {
        /// Messages of a stream on their way at once.
        in_flight: usize,
    },
    /// Connections that are made, call once and are closed; each is a unit.
    NewConnection,
}

impl Kind {
    /// What is counted.
    pub fn unit(self) -> &'static str {
        match self {
            Self::Unary => "call",
            Self::ServerStream | Self::PingPong { .. } => "message",
            Self::NewConnection => "connection",
        }
    }
}

/// A process whose CPU time is wanted.
#[derive(Debug, Clone)]
pub struct Watch {
    /// Name in the outcome.
    pub name: String,
    /// Its id; children are included.
    pub pid: u32,
}

/// What to run.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Where to connect.
    pub target: SocketAddr,
    /// Connections.
    pub connections: usize,
    /// Calls open on each.
    pub streams: usize,
    /// Generator threads; connections are dealt out among them.
    pub threads: usize,
    /// What they do.
    pub kind: Kind,
    /// Starts a second over all connections; a closed loop when absent.
    pub rate: Option<f64>,
    /// Connections that go on after their first call; all when absent. The others rest.
    pub active: Option<usize>,
    /// Each call or message.
    pub work: Work,
    /// Header fields of each call.
    pub fields: CallFields,
    /// Not counted.
    pub warm_up: Duration,
    /// Counted.
    pub counted: Duration,
    /// Processes to account for.
    pub watch: Vec<Watch>,
    /// Where the latencies go as an HDR log.
    pub hdr: Option<std::path::PathBuf>,
}

/// What came of it.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Outcome {
    /// Why the peer cannot do what was asked of it at all.
    #[serde(default)]
    pub not_built: Option<String>,
    /// Latency of what a unit is made of.
    #[serde(default)]
    pub parts: std::collections::BTreeMap<String, Latency>,
    /// By how much the proxy's own samples changed.
    #[serde(default)]
    pub metrics: std::collections::BTreeMap<String, f64>,
    /// What is counted as a call: a call, a message, a connection.
    #[serde(default)]
    pub unit: String,
    /// Calls completed while counting.
    pub calls: u64,
    /// Length of the count.
    pub elapsed_ns: u64,
    /// Completed calls a second.
    pub calls_per_s: f64,
    /// Payload bytes a second, both directions.
    pub bytes_per_s: f64,
    /// Latency of the counted calls in microseconds.
    pub latency_us: Latency,
    /// Time from the first connect until every connection had an answer, in milliseconds.
    pub set_up_ms: f64,
    /// Calls that went wrong, in any phase, by cause.
    pub failures: std::collections::BTreeMap<String, u64>,
    /// All of them.
    pub failed: u64,
    /// CPU time of the watched processes while counting, in nanoseconds.
    pub cpu_ns: std::collections::BTreeMap<String, u64>,
    /// The generator's own.
    pub own_cpu_ns: u64,
    /// CPUs that anything else on the machine kept busy meanwhile.
    pub other_cpus: f64,
    /// What drove the generator's sockets.
    pub driver: String,
    /// How late paced starts were, in microseconds: the generator's own error. It is part of the
    /// latencies.
    #[serde(default)]
    pub late_us: Option<Latency>,
    /// The generator and what it watches beside the proxy were busier than [`BUSY`] of a CPU
    /// each thread, and the proxy was not: the figure is theirs, not the proxy's.
    #[serde(default)]
    pub limited: bool,
    /// Memory before and after the connections were made.
    #[serde(default)]
    pub memory: Memory,
}

/// Percentiles.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Latency {
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
    pub p999: f64,
    pub max: f64,
}

impl Latency {
    fn of(histogram: &hdrhistogram::Histogram<u64>) -> Self {
        let us = |quantile| histogram.value_at_quantile(quantile) as f64 / 1e3;
        let max = histogram.max() as f64 / 1e3;
        Self { p50: us(0.5), p90: us(0.9), p99: us(0.99), p999: us(0.999), max }
    }
}

/// Why there is no outcome.
#[derive(Debug)]
pub enum LoadFault {
    /// A thread or its runtime could not be made.
    Io(io::Error),
    /// Not every connection had an answer in time.
    #[expect(missing_docs, reason = "the names say it")]
    SetUp { live: usize, broken: usize, wanted: usize },
    /// A stop signal came.
    Stopped,
}

impl fmt::Display for LoadFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(error) => write!(f, "{error}"),
            Self::SetUp { live, broken, wanted } => write!(
                f,
                "set-up: {live} of {wanted} connections had an answer, {broken} had ended, \
                 within {} s",
                SET_UP_LIMIT.as_secs()
            ),
            Self::Stopped => f.write_str("stopped"),
        }
    }
}

impl std::error::Error for LoadFault {}

impl From<io::Error> for LoadFault {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// The CPU time so far of all that is watched.
struct Sample {
    at: Instant,
    watched: Vec<u64>,
    own: u64,
    machine_s: f64,
}

impl Sample {
    /// `groups` are the processes of each watch, found beforehand so that this is quick.
    fn take(groups: &[Vec<u32>]) -> Self {
        let spent = |pids: &Vec<u32>| pids.iter().map(|pid| cpu::spent_ns(*pid)).sum();
        Self {
            at: Instant::now(),
            watched: groups.iter().map(spent).collect(),
            own: cpu::spent_ns(std::process::id()),
            machine_s: cpu::machine_busy_s(),
        }
    }
}

/// Runs the plan.
pub fn run(plan: &Plan) -> Result<Outcome, LoadFault> {
    let stage = Arc::new(Stage::default());
    let held_before = held(plan);
    let began = Instant::now();
    let (sender, receiver) = channel();
    for index in 0..plan.threads {
        // The first threads take one of what does not divide evenly.
        let share = plan.connections / plan.threads;
        let share = share + usize::from(index < plan.connections % plan.threads);
        let (plan, stage, sender) = (plan.clone(), stage.clone(), sender.clone());
        thread::Builder::new()
            .name(format!("load-{index}"))
            .spawn(move || generate(&plan, share, stage, &sender))?;
    }
    drop(sender);
    await_set_up(plan, &stage)?;
    let set_up = began.elapsed();
    let held_after = held(plan);
    thread::sleep(plan.warm_up);
    let groups: Vec<_> = plan.watch.iter().map(|w| cpu::tree(w.pid)).collect();
    // Each sample follows its edge by the same short time, so that the lags cancel out.
    stage.enter(Phase::Counted);
    let before = Sample::take(&groups);
    thread::sleep(plan.counted);
    stage.enter(Phase::Trailing);
    let after = Sample::take(&groups);
    stage.enter(Phase::Over);
    let tally = collect(&receiver, plan.threads, &stage)?;
    let mut outcome = outcome(plan, &tally, set_up, (&before, &after));
    let names = plan.watch.iter().map(|watch| watch.name.clone());
    outcome.memory = Memory {
        connections: plan.connections,
        held: names.zip(held_before.into_iter().zip(held_after)).collect(),
    };
    if let Some(path) = &plan.hdr {
        write_histogram(path, &tally)?;
    }
    Ok(outcome)
}

fn held(plan: &Plan) -> Vec<Held> {
    plan.watch.iter().map(|watch| Held::sample(&cpu::tree(watch.pid))).collect()
}

/// The latencies as an HDR interval log with one interval.
fn write_histogram(path: &std::path::Path, tally: &Tally) -> io::Result<()> {
    use hdrhistogram::serialization::V2DeflateSerializer;
    use hdrhistogram::serialization::interval_log::IntervalLogWriterBuilder;
    let mut file = std::fs::File::create(path)?;
    let mut serializer = V2DeflateSerializer::new();
    let begun = std::time::SystemTime::now();
    let fault = |error: &dyn fmt::Debug| io::Error::other(format!("{error:?}"));
    let mut log = IntervalLogWriterBuilder::new()
        .with_start_time(begun)
        .begin_log_with(&mut file, &mut serializer)
        .map_err(|error| fault(&error))?;
    log.write_histogram(&tally.latency, Duration::ZERO, Duration::from_secs(1), None)
        .map_err(|error| fault(&error))
}

fn await_set_up(plan: &Plan, stage: &Stage) -> Result<(), LoadFault> {
    let until = Instant::now() + SET_UP_LIMIT;
    while stage.live() < plan.connections {
        let (live, broken) = (stage.live(), stage.broken());
        if broken > 0 || Instant::now() > until {
            stage.enter(Phase::Over);
            return Err(LoadFault::SetUp { live, broken, wanted: plan.connections });
        }
        if crate::sys::stop_asked() {
            return Err(LoadFault::Stopped);
        }
        thread::sleep(LOOK);
    }
    Ok(())
}

/// One generator thread.
fn generate(plan: &Plan, share: usize, stage: Arc<Stage>, sender: &Sender<io::Result<Tally>>) {
    let tally = Rc::new(RefCell::new(Tally::new(stage.clone())));
    let all = dispatch(plan.clone(), share, tally.clone());
    let paced = plan.rate.is_some() || plan.active.is_some() || share > SET_UP_AT_ONCE;
    // Timers cost a little in every turn of the runtime.
    let outcome = if paced {
        drive::timed_runtime().and_then(|mut runtime| runtime.block_on(all))
    } else {
        drive::runtime().and_then(|mut runtime| runtime.block_on(all))
    };
    // Writers that still wait for a socket hold their machine; the counts are taken out.
    let counts = outcome.map(|()| tally.replace(Tally::new(stage)));
    // The receiver is gone only when the run was given up.
    let _ = sender.send(counts);
}

/// Makes a thread's share of the connections and waits for their end.
async fn dispatch(plan: Plan, share: usize, tally: Rc<RefCell<Tally>>) -> io::Result<()> {
    let plan = Rc::new(plan);
    let fields = Rc::new(plan.fields.clone());
    let live_before = Rc::new(Cell::new(0_usize));
    let mut tasks = Vec::with_capacity(share);
    let mut lines = Vec::new();
    for number in 0..share {
        while number >= live_before.get() + SET_UP_AT_ONCE {
            monoio::time::sleep(LOOK / 2).await;
            live_before.set(tally.borrow().stage.live());
        }
        if plan.kind == Kind::NewConnection {
            tasks.push(monoio::spawn(come_and_go(plan.clone(), fields.clone(), tally.clone())));
            continue;
        }
        let line = Line::new(&plan, number, fields.clone(), tally.clone());
        lines.push(line.clone());
        tasks.push(monoio::spawn(line.run(plan.target, tally.clone())));
    }
    if let Some(rate) = plan.rate {
        let every = Duration::from_secs_f64(plan.threads as f64 / rate.max(0.001));
        let stage = tally.borrow().stage.clone();
        monoio::spawn(set_pace(Pace::start(every, stage)?, lines, tally.clone()));
    }
    if plan.rate.is_some() || plan.active.is_some() {
        // A connection that rests sees the end only with its next answer.
        let stage = tally.borrow().stage.clone();
        while stage.phase() != Phase::Over {
            monoio::time::sleep(LOOK).await;
        }
        return Ok(());
    }
    for task in tasks {
        task.await;
    }
    Ok(())
}

/// Begins a call, or a message on each stream, on one connection after the other.
async fn set_pace(mut pace: Pace, lines: Vec<Line>, tally: Rc<RefCell<Tally>>) {
    let mut turn = 0;
    while let Some(mut due) = pace.due().await {
        while let Some(at) = due.next() {
            let late = due.late(at);
            tally.borrow_mut().started_late(late);
            lines[turn % lines.len()].begin(at);
            turn += 1;
        }
    }
}

/// One connection and the way to give it work from outside.
#[derive(Clone)]
struct Line {
    side: Side,
    link: Rc<RefCell<Link>>,
}

#[derive(Clone)]
enum Side {
    Calls(Rc<RefCell<Caller>>),
    Streams(Rc<RefCell<Streamer>>),
}

impl Line {
    fn new(plan: &Plan, number: usize, fields: Rc<CallFields>, tally: Rc<RefCell<Tally>>) -> Self {
        let rests = plan.active.is_some_and(|active| number >= active);
        let talk = match plan.kind {
            Kind::ServerStream => Some(Talk::Listen),
            Kind::PingPong { .. } if plan.rate.is_some() => Some(Talk::Paced),
            Kind::PingPong { in_flight } => Some(Talk::PingPong { in_flight }),
            Kind::Unary | Kind::NewConnection => None,
        };
        let side = if let Some(talk) = talk {
            let streamer = Streamer::new(fields, (plan.work, talk), plan.streams, tally);
            Side::Streams(Rc::new(RefCell::new(streamer)))
        } else {
            let caller = Caller::new(fields, plan.work, plan.streams, tally);
            let pace = if plan.rate.is_some() || rests {
                CallPace::Given(VecDeque::new())
            } else {
                CallPace::Closed
            };
            Side::Calls(Rc::new(RefCell::new(caller.paced(pace))))
        };
        Self { side, link: Rc::default() }
    }

    fn begin(&self, due: Instant) {
        match &self.side {
            // It fails when the stream ids are used up: the answers will be missed.
            Side::Calls(caller) => drop(caller.borrow_mut().begin(due)),
            Side::Streams(streamer) => streamer.borrow_mut().begin(due),
        }
        self.link.borrow_mut().nudge();
    }

    /// The connection from its beginning to the end of the run.
    async fn run(self, target: SocketAddr, tally: Rc<RefCell<Tally>>) {
        let link = self.link.clone();
        let (ended, open) = match self.side {
            Side::Calls(caller) => {
                let ended = connection(target, caller.clone(), link).await;
                (ended, caller.borrow().open_calls())
            }
            Side::Streams(streamer) => {
                let ended = connection(target, streamer.clone(), link).await;
                (ended, streamer.borrow().open_streams())
            }
        };
        ended_early(ended, open, &tally);
    }
}

async fn connection<M: Machine + 'static>(
    target: SocketAddr,
    machine: Rc<RefCell<M>>,
    link: Rc<RefCell<Link>>,
) -> Result<(), drive::Ended> {
    match TcpStream::connect(target).await {
        Ok(stream) => drive_linked(stream, machine, &[], link).await,
        Err(error) => Err(drive::Ended::Lost(Some(error))),
    }
}

/// Makes connections one after the other, each for one call.
async fn come_and_go(plan: Rc<Plan>, fields: Rc<CallFields>, tally: Rc<RefCell<Tally>>) {
    let mut lived = false;
    while tally.borrow().stage.phase() != Phase::Over {
        let caller = Caller::new(fields.clone(), plan.work, 1, tally.clone());
        // The stage counts those that make connections, not their connections.
        let caller = caller.paced(CallPace::Once(Instant::now())).unannounced(lived);
        let caller = Rc::new(RefCell::new(caller));
        let ended = connection(plan.target, caller.clone(), Rc::default()).await;
        lived |= caller.borrow().is_done();
        let hopeless = ended.is_err() && !lived;
        ended_early(ended, caller.borrow().open_calls(), &tally);
        if hopeless {
            return;
        }
    }
}

fn ended_early(ended: Result<(), drive::Ended>, open: u64, tally: &RefCell<Tally>) {
    let Err(why) = ended else { return };
    let mut tally = tally.borrow_mut();
    if tally.stage.phase() == Phase::Over {
        // Whatever happens after the count is nobody's failure.
        return;
    }
    eprintln!("load: a connection ended early: {why}");
    tally.failures.connection += 1;
    tally.failures.lost += open;
    tally.stage.connection_broke();
}

/// Waits for every thread. One whose peers have fallen silent never reports: its calls are lost.
fn collect(
    receiver: &Receiver<io::Result<Tally>>,
    threads: usize,
    stage: &Arc<Stage>,
) -> Result<Tally, LoadFault> {
    let mut sum = Tally::new(stage.clone());
    let until = Instant::now() + END_LIMIT;
    for _ in 0..threads {
        match receiver.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(tally) => sum.add(&tally?),
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                sum.failures.lost += 1;
            }
        }
    }
    Ok(sum)
}

fn outcome(plan: &Plan, tally: &Tally, set_up: Duration, cpu: (&Sample, &Sample)) -> Outcome {
    let (before, after) = cpu;
    let elapsed = after.at - before.at;
    let per_s = tally.calls as f64 / elapsed.as_secs_f64();
    let spent = |(b, a): (&u64, &u64)| a.saturating_sub(*b);
    let watched: Vec<u64> = before.watched.iter().zip(&after.watched).map(spent).collect();
    let own = spent((&before.own, &after.own));
    let ours_s = (watched.iter().sum::<u64>() + own) as f64 / 1e9;
    let others_s = (after.machine_s - before.machine_s - ours_s).max(0.0);
    let proxy = plan.watch.iter().position(|watch| watch.name == "proxy");
    let proxy = proxy.map_or(0, |at| watched[at]);
    let ours = own + watched.iter().sum::<u64>() - proxy;
    let share = |ns: u64| ns as f64 / elapsed.as_nanos() as f64;
    Outcome {
        unit: plan.kind.unit().to_owned(),
        limited: share(ours) / plan.threads as f64 > BUSY && share(proxy) < BUSY,
        late_us: plan.rate.map(|_| Latency::of(&tally.late)),
        memory: Memory::default(),
        calls: tally.calls,
        elapsed_ns: elapsed.as_nanos() as u64,
        calls_per_s: per_s,
        bytes_per_s: per_s * f64::from(plan.work.message + plan.work.answer),
        latency_us: Latency::of(&tally.latency),
        set_up_ms: set_up.as_secs_f64() * 1e3,
        failures: by_cause(&tally.failures),
        failed: tally.failures.total(),
        cpu_ns: plan.watch.iter().map(|w| w.name.clone()).zip(watched).collect(),
        own_cpu_ns: own,
        other_cpus: others_s / elapsed.as_secs_f64(),
        driver: drive::backend_name().to_owned(),
        ..Outcome::default()
    }
}

fn by_cause(failures: &Failures) -> std::collections::BTreeMap<String, u64> {
    let f = failures;
    [
        ("status", f.status),
        ("grpc", f.grpc),
        ("length", f.length),
        ("reset", f.reset),
        ("lost", f.lost),
        ("connection", f.connection),
    ]
    .into_iter()
    .filter(|(_, count)| *count > 0)
    .map(|(name, count)| (name.to_owned(), count))
    .collect()
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let elapsed = self.elapsed_ns as f64;
        let share = |ns: u64| 100.0 * ns as f64 / elapsed;
        let per_call = |ns: u64| ns as f64 / 1e3 / self.calls.max(1) as f64;
        let unit = &self.unit;
        writeln!(
            f,
            "{} {unit}s in {:.2} s: {:.0} {unit}s/s, {:.1} MB/s, {} failed {:?}",
            self.calls,
            elapsed / 1e9,
            self.calls_per_s,
            self.bytes_per_s / 1e6,
            self.failed,
            self.failures
        )?;
        let l = self.latency_us;
        writeln!(
            f,
            "latency us: p50 {:.1}, p90 {:.1}, p99 {:.1}, max {:.0}",
            l.p50, l.p90, l.p99, l.max
        )?;
        write!(
            f,
            "generator ({}): {:.3} us a {unit}, {:.0} % of one CPU",
            self.driver,
            per_call(self.own_cpu_ns),
            share(self.own_cpu_ns)
        )?;
        for (name, ns) in &self.cpu_ns {
            write!(
                f,
                "\n{name}: {:.3} us a {unit}, {:.0} % of one CPU",
                per_call(*ns),
                share(*ns)
            )?;
            if let Some(bytes) = self.memory.per_connection(name) {
                write!(f, ", {bytes:.0} bytes a connection")?;
            }
        }
        if let Some(late) = self.late_us {
            write!(
                f,
                "\nstarts late us: p50 {:.1}, p99 {:.1}, max {:.0}",
                late.p50, late.p99, late.max
            )?;
        }
        if self.limited {
            write!(f, "\nlimited by the generator's side")?;
        }
        Ok(())
    }
}
