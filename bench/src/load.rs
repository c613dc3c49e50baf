//! The load generator: connections, each with a fixed number of calls always open.
//!
//! The generator's threads run monoio; the calling thread only keeps time and samples the CPU
//! time of the processes it was told to watch, at the same two instants that bound the count.
//! Neighbours: [`crate::caller`] is one connection, [`crate::compare`] starts this as a process.

use std::cell::RefCell;
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

use crate::caller::{Caller, Work};
use crate::cpu;
use crate::drive::{self, drive};
use crate::fields::CallFields;
use crate::tally::{Failures, Phase, Stage, Tally};

/// All connections must have had an answer within this time.
const SET_UP_LIMIT: Duration = Duration::from_secs(30);
/// Calls open at the end get this long; the connections end with the next answer.
const END_LIMIT: Duration = Duration::from_secs(5);
/// How often set-up is looked at.
const LOOK: Duration = Duration::from_millis(2);

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
    /// Each call.
    pub work: Work,
    /// Header fields of each call.
    pub fields: CallFields,
    /// Not counted.
    pub warm_up: Duration,
    /// Counted.
    pub counted: Duration,
    /// Processes to account for.
    pub watch: Vec<Watch>,
}

/// What came of it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Outcome {
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
}

/// Percentiles.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Latency {
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
    pub p999: f64,
    pub max: f64,
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
    Ok(outcome(plan, &tally, set_up, (&before, &after)))
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
    let outcome = drive::runtime().map(|mut runtime| {
        let tally = Rc::new(RefCell::new(Tally::new(stage)));
        let all = async {
            let fields = Rc::new(plan.fields.clone());
            let tasks: Vec<_> = (0..share)
                .map(|_| {
                    let caller =
                        Caller::new(fields.clone(), plan.work, plan.streams, tally.clone());
                    monoio::spawn(connection(plan.target, caller, tally.clone()))
                })
                .collect();
            for task in tasks {
                task.await;
            }
        };
        runtime.block_on(all);
        // Writers that still wait for a socket hold their machine; the counts are taken out.
        let stage = tally.borrow().stage.clone();
        tally.replace(Tally::new(stage))
    });
    // The receiver is gone only when the run was given up.
    let _ = sender.send(outcome);
}

/// One connection from connect to the end of the run.
async fn connection(target: SocketAddr, caller: Caller, tally: Rc<RefCell<Tally>>) {
    let caller = Rc::new(RefCell::new(caller));
    let ended = match TcpStream::connect(target).await {
        Ok(stream) => drive(stream, caller.clone(), &[]).await,
        Err(error) => Err(drive::Ended::Lost(Some(error))),
    };
    let Err(why) = ended else { return };
    let mut tally = tally.borrow_mut();
    if tally.stage.phase() == Phase::Over {
        // Whatever happens after the count is nobody's failure.
        return;
    }
    eprintln!("load: a connection ended early: {why}");
    tally.failures.connection += 1;
    tally.failures.lost += caller.borrow().open_calls();
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
    let us = |quantile| tally.latency.value_at_quantile(quantile) as f64 / 1e3;
    let spent = |(b, a): (&u64, &u64)| a.saturating_sub(*b);
    let watched: Vec<u64> = before.watched.iter().zip(&after.watched).map(spent).collect();
    let own = spent((&before.own, &after.own));
    let ours_s = (watched.iter().sum::<u64>() + own) as f64 / 1e9;
    let others_s = (after.machine_s - before.machine_s - ours_s).max(0.0);
    Outcome {
        calls: tally.calls,
        elapsed_ns: elapsed.as_nanos() as u64,
        calls_per_s: per_s,
        bytes_per_s: per_s * f64::from(plan.work.message + plan.work.answer),
        latency_us: Latency {
            p50: us(0.5),
            p90: us(0.9),
            p99: us(0.99),
            p999: us(0.999),
            max: tally.latency.max() as f64 / 1e3,
        },
        set_up_ms: set_up.as_secs_f64() * 1e3,
        failures: by_cause(&tally.failures),
        failed: tally.failures.total(),
        cpu_ns: plan.watch.iter().map(|w| w.name.clone()).zip(watched).collect(),
        own_cpu_ns: own,
        other_cpus: others_s / elapsed.as_secs_f64(),
        driver: drive::backend_name().to_owned(),
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
        writeln!(
            f,
            "{} calls in {:.2} s: {:.0} calls/s, {:.1} MB/s, {} failed {:?}",
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
            "latency us: p50 {:.0}, p90 {:.0}, p99 {:.0}, max {:.0}",
            l.p50, l.p90, l.p99, l.max
        )?;
        write!(
            f,
            "generator ({}): {:.3} us a call, {:.0} % of one CPU",
            self.driver,
            per_call(self.own_cpu_ns),
            share(self.own_cpu_ns)
        )?;
        for (name, ns) in &self.cpu_ns {
            write!(f, "\n{name}: {:.3} us a call, {:.0} % of one CPU", per_call(*ns), share(*ns))?;
        }
        Ok(())
    }
}
