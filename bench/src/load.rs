//! The load generator: connections with calls or streams on them, in a closed loop, or begun at a
//! fixed rate whatever the answers do ([`Plan::rate`]); then a latency counts from the instant at
//! which the call should have begun, so that a stall is felt by all that it held up.
//!
//! The generator's threads run monoio; the calling thread only keeps time and samples the CPU time
//! of the processes that it watches, at the same two instants that bound the count. Neighbours:
//! [`crate::caller`] is one connection, [`crate::compare`] starts this as a process.

use std::cell::RefCell;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use crate::caller::Work;
use crate::cpu;
use crate::drive;
use crate::fields::CallFields;
use crate::line::{SET_UP_AT_ONCE, dispatch};
use crate::memory::Memory;
pub use crate::outcome::{Latency, Outcome};
use crate::outcome::{parts, write_histograms};
use crate::scrape::Samples;
use crate::socket::Route;
use crate::sys;
use crate::tally::{Phase, Stage, Tally};
use crate::tls::Trust;
use crate::web;

/// All connections must have had an answer within this time.
const SET_UP_LIMIT: Duration = Duration::from_secs(30);
/// Calls open at the end get this long; the connections end with the next answer.
const END_LIMIT: Duration = Duration::from_secs(5);
/// How often set-up is looked at.
pub(crate) const LOOK: Duration = Duration::from_millis(2);
/// How the names of the generator's threads begin.
const THREAD: &str = "load-";
/// Share of its CPU above which the generator's side may be what limits a run.
const BUSY: f64 = 0.9;

/// The part that has the small messages of [`Kind::Shared`].
pub const SMALL: &str = "small";

/// What the connections do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Calls, each answered once.
    Unary,
    /// Streams on which messages come; each is a unit.
    ServerStream {
        /// How many answer a call; without end when absent. Then there is no latency.
        messages: Option<u32>,
    },
    /// Streams on which messages go back and forth; each answered one is a unit.
    PingPong {
        /// Messages of a stream on their way at once.
        in_flight: usize,
    },
    /// Connections that are made, call once and are closed; each is a unit. Its part `first-byte`
    /// ends where the answer begins.
    NewConnection,
    /// Sessions whose client is cut off and comes back ([`crate::resume`]); each return is a unit.
    /// Its latency, and those of the parts `new` and `pinned` of the same run, end with the first
    /// octet of the answer and begin with the first octet of the connection (of the request, if
    /// pinned). `new-request` and `resume-request` begin with that of the request.
    Resume {
        /// How long the client is away.
        absence: Duration,
    },
    /// HTTP/1.1 requests, or messages on a WebSocket; those are its units.
    Web(web::Talk),
    /// All connections are made at once when the count begins, call once and stay; each is a unit.
    /// The count lasts until all have been answered.
    Storm,
    /// A stream of messages without end, which are the units, and paced messages of the request's
    /// size to and fro on the same connection: the part [`SMALL`].
    Shared,
    /// Connections with a session each, all of which rest after one call.
    Idle,
    /// As many sessions whose client was cut off and stays away: what a gateway keeps for them.
    Parked {
        /// How long a gateway has to notice.
        absence: Duration,
    },
}

impl Kind {
    /// What is counted.
    pub fn unit(self) -> &'static str {
        match self {
            Self::Unary | Self::Web(web::Talk::Get | web::Talk::Post) => "call",
            Self::ServerStream { .. } | Self::PingPong { .. } | Self::Shared | Self::Web(_) => {
                "message"
            }
            Self::NewConnection | Self::Storm => "connection",
            Self::Resume { .. } => "resume",
            Self::Idle | Self::Parked { .. } => "session",
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
    /// Where to connect, and how.
    pub route: Route,
    /// Connections; of kinds that make them all the time, how many at once.
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
    /// Memory is looked at with so many connections each; in the end with all.
    pub steps: Vec<usize>,
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
    pub hdr: Option<PathBuf>,
    /// The proxy's admin address, whose samples are compared at both ends of the count.
    pub metrics: Option<SocketAddr>,
}

impl Plan {
    /// Whether nothing happens while it is counted.
    fn rests(&self) -> bool {
        matches!(self.kind, Kind::Idle | Kind::Parked { .. })
    }

    /// Connections that go on after their first call.
    pub(crate) fn active(&self) -> usize {
        if self.rests() { 0 } else { self.active.unwrap_or(usize::MAX) }
    }

    /// Whether its threads must be able to sleep.
    pub(crate) fn needs_timers(&self) -> bool {
        self.rate.is_some()
            || self.active.is_some()
            || self.rests()
            || !self.steps.is_empty()
            || self.route.slow.is_some()
            || matches!(self.kind, Kind::Resume { .. } | Kind::Storm)
    }

    /// Payload bytes of a unit, both ways.
    pub(crate) fn unit_bytes(&self) -> f64 {
        let answers_only = match self.kind {
            Kind::ServerStream { .. } | Kind::Shared => true,
            Kind::Web(talk) => !talk.sends(),
            _ => false,
        };
        let sent = if answers_only { 0 } else { self.work.message };
        f64::from(sent) + f64::from(self.work.answer)
    }
}

/// Why there is no outcome.
#[derive(Debug)]
pub enum LoadFault {
    /// A thread or its runtime could not be made.
    Io(io::Error),
    /// Not every connection had an answer in time.
    #[expect(missing_docs, reason = "the names say it")]
    SetUp { live: usize, broken: usize, wanted: usize, why: Option<String> },
    /// A stop signal came.
    Stopped,
}

impl fmt::Display for LoadFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(error) => write!(f, "{error}"),
            Self::SetUp { live, broken, wanted, why } => {
                write!(
                    f,
                    "set-up: {live} of {wanted} connections had an answer, {broken} had ended, \
                     within {} s",
                    SET_UP_LIMIT.as_secs()
                )?;
                why.as_ref().map_or(Ok(()), |why| write!(f, ": {why}"))
            }
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
            own: cpu::threads_ns(THREAD),
            machine_s: cpu::machine_busy_s(),
        }
    }
}

/// Runs the plan.
///
/// # Errors
/// The connections could not be made, or a file or thread could not.
pub fn run(plan: &Plan) -> Result<Outcome, LoadFault> {
    let Measured { mut outcome, tallies } = measure(&[Crew { plan, urgent: false }])?;
    if let (Some(path), Some(tally)) = (&plan.hdr, tallies.first()) {
        let all: Vec<_> = tally.histograms().collect();
        write_histograms(path, plan.counted, &all)?;
        outcome.hdr = Some(path.clone());
    }
    Ok(outcome)
}

/// Connections of one kind among those of a run.
#[derive(Clone, Copy)]
pub(crate) struct Crew<'a> {
    pub(crate) plan: &'a Plan,
    /// Its threads go before others on their CPU.
    pub(crate) urgent: bool,
}

/// What one run brought.
pub(crate) struct Measured {
    /// The outcome of the first crew, with the CPU time of all.
    pub(crate) outcome: Outcome,
    /// Each crew's counts.
    pub(crate) tallies: Vec<Tally>,
}

/// Runs several crews at once. The first one's plan says how long, and what to watch.
pub(crate) fn measure(crews: &[Crew<'_>]) -> Result<Measured, LoadFault> {
    let Some(Crew { plan, .. }) = crews.first() else { return Err(LoadFault::Stopped) };
    let stage = Arc::new(Stage::default());
    let began = Instant::now();
    let mut memory = Memory::before(&plan.watch);
    let wanted = crews.iter().map(|crew| crew.plan.connections).sum();
    let steps = plan.steps.iter().copied().filter(|step| *step < wanted);
    // The threads may begin before this one goes on.
    stage.allow(steps.clone().next().unwrap_or(usize::MAX));
    let receivers =
        crews.iter().map(|crew| start(*crew, &stage)).collect::<io::Result<Vec<_>>>()?;
    for step in steps {
        stage.allow(step);
        await_set_up(step, &stage)?;
        memory.step(step);
    }
    stage.allow(usize::MAX);
    // A storm is not set up: that is what is counted.
    if plan.kind != Kind::Storm {
        await_set_up(wanted, &stage)?;
    }
    let set_up = began.elapsed();
    memory.step(wanted);
    let edges = count(plan, &stage)?;
    // What a slow reader leaves waiting has gathered only now.
    if let Some(slow) = crews.iter().find(|crew| crew.plan.route.slow.is_some()) {
        memory.step(slow.plan.connections);
    }
    stage.enter(Phase::Over);
    let tallies = receivers
        .iter()
        .zip(crews)
        .map(|(receiver, crew)| collect(receiver, crew.plan.threads, &stage))
        .collect::<Result<Vec<_>, _>>()?;
    let threads = crews.iter().map(|crew| crew.plan.threads).sum();
    let mut outcome = outcome(plan, threads, &tallies[0], &edges);
    if plan.kind == Kind::Storm {
        // A connection without an answer that is not broken still waits for one.
        let waits = wanted.saturating_sub(stage.live() + stage.broken());
        outcome.miss("unanswered", waits as u64);
    }
    outcome.resumed = plan.route.trust.as_ref().and_then(Trust::resumed);
    outcome.set_up_ms = set_up.as_secs_f64() * 1e3;
    outcome.memory = memory;
    outcome.not_built = stage.gave_up().map(str::to_owned);
    Ok(Measured { outcome, tallies })
}

/// What is known of both ends of the count.
struct Edges {
    before: Sample,
    after: Sample,
    metrics: std::collections::BTreeMap<String, f64>,
}

/// The warm-up and the count.
fn count(plan: &Plan, stage: &Stage) -> Result<Edges, LoadFault> {
    let given_up = stage.gave_up().is_some();
    thread::sleep(if given_up { Duration::ZERO } else { plan.warm_up });
    let groups: Vec<_> = plan.watch.iter().map(|w| cpu::tree(w.pid)).collect();
    let metrics = plan.metrics.map(Samples::take).transpose()?;
    // Each sample follows its edge by the same short time, so that the lags cancel out.
    stage.enter(Phase::Counted);
    let before = Sample::take(&groups);
    if plan.kind == Kind::Storm {
        await_storm(plan.connections, stage)?;
    } else {
        thread::sleep(if given_up { Duration::ZERO } else { plan.counted });
    }
    stage.enter(Phase::Trailing);
    let after = Sample::take(&groups);
    let metrics = match (metrics, plan.metrics) {
        (Some(before), Some(address)) => Samples::take(address)?.since(&before),
        _ => [].into(),
    };
    Ok(Edges { before, after, metrics })
}

/// Starts a crew's threads; each sends its counts in the end.
fn start(crew: Crew<'_>, stage: &Arc<Stage>) -> io::Result<Receiver<io::Result<Tally>>> {
    let (sender, receiver) = channel();
    let plan = crew.plan;
    for index in 0..plan.threads {
        // The first threads take one of what does not divide evenly.
        let share = plan.connections / plan.threads;
        let share = share + usize::from(index < plan.connections % plan.threads);
        let (plan, stage, sender) = (plan.clone(), stage.clone(), sender.clone());
        thread::Builder::new().name(format!("{THREAD}{index}")).spawn(move || {
            if crew.urgent {
                sys::go_first();
            }
            generate(&plan, share, stage, &sender);
        })?;
    }
    Ok(receiver)
}

fn await_set_up(wanted: usize, stage: &Stage) -> Result<(), LoadFault> {
    let until = Instant::now() + SET_UP_LIMIT;
    while stage.live() < wanted && stage.gave_up().is_none() {
        let (live, broken) = (stage.live(), stage.broken());
        let fault = if broken > 0 || Instant::now() > until {
            let why = stage.why_broken().map(str::to_owned);
            LoadFault::SetUp { live, broken, wanted, why }
        } else if sys::stop_asked() {
            LoadFault::Stopped
        } else {
            thread::sleep(LOOK);
            continue;
        };
        stage.enter(Phase::Over);
        return Err(fault);
    }
    Ok(())
}

/// Until every connection of a storm has had its answer or has ended, or too long.
fn await_storm(wanted: usize, stage: &Stage) -> Result<(), LoadFault> {
    let until = Instant::now() + SET_UP_LIMIT;
    while stage.live() + stage.broken() < wanted && Instant::now() < until {
        if sys::stop_asked() {
            stage.enter(Phase::Over);
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
    let paced = plan.needs_timers() || share > SET_UP_AT_ONCE;
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

fn outcome(plan: &Plan, threads: usize, tally: &Tally, edges: &Edges) -> Outcome {
    let Edges { before, after, metrics } = edges;
    let stage = &tally.stage;
    let elapsed = after.at - before.at;
    let spent = |(b, a): (&u64, &u64)| a.saturating_sub(*b);
    let watched: Vec<u64> = before.watched.iter().zip(&after.watched).map(spent).collect();
    let own = spent((&before.own, &after.own));
    let ours_s = (watched.iter().sum::<u64>() + own) as f64 / 1e9;
    let others_s = (after.machine_s - before.machine_s - ours_s).max(0.0);
    let proxy = plan.watch.iter().position(|watch| watch.name == "proxy");
    let proxy = proxy.map_or(0, |at| watched[at]);
    let share = |ns: u64| ns as f64 / elapsed.as_nanos() as f64;
    // What is behind the proxy runs where the generator may run.
    let cpus = sys::allowed_cpus().map_or(1, |cpus| cpus.len().max(1));
    let side_busy = share(own + watched.iter().sum::<u64>() - proxy) / cpus as f64;
    let generator_busy = share(own) / threads as f64;
    let rest = if stage.gave_up().is_some() { 0 } else { plan.connections as u64 };
    let calls = if plan.rests() { rest } else { tally.calls };
    let per_s = calls as f64 / elapsed.as_secs_f64();
    let cpu_ns: std::collections::BTreeMap<String, u64> =
        plan.watch.iter().map(|w| w.name.clone()).zip(watched).collect();
    let per_unit = cpu_ns.iter().map(|(name, ns)| (name.clone(), *ns));
    let per_unit = per_unit.chain([("generator".to_owned(), own)]);
    Outcome {
        unit: plan.kind.unit().to_owned(),
        calls,
        elapsed_ns: elapsed.as_nanos() as u64,
        calls_per_s: per_s,
        bytes_per_s: tally.calls as f64 * plan.unit_bytes() / elapsed.as_secs_f64(),
        latency_us: Latency::of(&tally.latency),
        parts: parts(tally),
        failures: tally.failures.by_cause(),
        failed: tally.failures.total(),
        per_unit: per_unit
            .map(|(name, ns)| (name, ns as f64 / 1e3 / calls.max(1) as f64))
            .collect(),
        cpu_ns,
        own_cpu_ns: own,
        other_cpus: others_s / elapsed.as_secs_f64(),
        driver: drive::backend_name().to_owned(),
        late_us: plan.rate.map(|_| Latency::of(&tally.late)),
        generator_busy,
        side_busy,
        limited: generator_busy.max(side_busy) > BUSY && share(proxy) < BUSY,
        metrics: metrics.clone(),
        ..Outcome::default()
    }
}
