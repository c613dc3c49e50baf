//! Gateways against the bare relay and against each other, in one interleaved run.
//!
//! For each shape and round every peer runs once, A B C A B C, each time freshly started on its own
//! CPU with the load and the endpoint on another. [`shape`] says what is run, [`peer`] who,
//! [`programs`] finds or installs what they are made of, [`estimate`] says how long it will take,
//! [`test_bed`] starts and ends them, [`machine`] prepares and describes the machine. Of the runs,
//! [`figures`] makes figures and ratios, [`judge`] the targets and where the gateway loses,
//! [`table`] the rows that [`report`] prints and [`page`] draws.

mod count;
pub mod curve;
pub mod estimate;
pub mod figures;
mod hold;
pub mod judge;
mod keys;
pub mod machine;
pub mod page;
pub mod peer;
pub mod plot;
pub mod programs;
pub mod report;
mod rows;
pub mod shape;
pub mod table;
pub mod test_bed;
#[cfg(test)]
mod testing;

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::Serialize;

use crate::load::Outcome;
use crate::sys;
use figures::{Figures, Spread};
use peer::{Behind, Class, Peer};
use programs::Programs;
use shape::Shape;
use test_bed::TestBed;

/// Client key of the generated configurations.
pub const CLIENT_KEY: &str = "bench-key";
/// Worker key of the generated configurations.
pub const WORKER_KEY: &str = "bench-worker-key";
/// Function called.
pub const FUNCTION: &str = "11111111-1111-4111-8111-111111111111";
/// Its version.
pub const VERSION: &str = "22222222-2222-4222-8222-222222222222";

/// What to compare, and how.
#[derive(Debug, Clone, Serialize)]
pub struct Request {
    /// Runs of each peer for each shape.
    pub rounds: usize,
    /// Seconds counted in each.
    pub seconds: f64,
    /// Seconds before.
    pub warm_up: f64,
    /// Seconds in all that the counted seconds are to be chosen for, of a quick run.
    pub budget: Option<f64>,
    /// The gateway's binary; the one beside this program when absent.
    pub ringway: Option<PathBuf>,
    /// Names of shapes; empty means all.
    pub shapes: Vec<String>,
    /// Names of peers, in order; empty means all that can start.
    pub peers: Vec<String>,
    /// Folder of the peers.
    pub peers_dir: PathBuf,
    /// Whether programs that are missing are installed.
    pub install: bool,
    /// Where the figures go besides the output folder.
    pub json: Option<PathBuf>,
    /// Output folder.
    pub out: PathBuf,
    /// Congestion control for the time of the run; `keep` leaves it as it is.
    pub congestion: String,
    /// Whether `tcp_rmem` and `tcp_wmem` are fixed too; `keep` leaves them as they are.
    pub tcp_memory: String,
    /// Start lines of peers that only a user can start, by the option's name.
    pub given: BTreeMap<String, String>,
    /// CPU of the proxy.
    pub proxy_cpu: usize,
    /// CPU of the load and of what is behind the proxy.
    pub load_cpu: usize,
}

/// One run of one peer.
#[derive(Debug, Clone, Serialize)]
pub struct Run {
    /// Name of the shape.
    pub shape: String,
    /// Name of the peer.
    pub peer: String,
    /// From 1.
    pub round: usize,
    /// What the generator reported.
    pub outcome: Option<Outcome>,
    /// The figure, where it is not from the generator.
    pub figure: Option<f64>,
    /// Why the run does not count.
    pub fault: Option<String>,
}

impl Run {
    /// CPU time of the proxy per call in microseconds, of a run that counts.
    pub fn cpu_us(&self) -> Option<f64> {
        let outcome = self.counted()?;
        let ns = *outcome.cpu_ns.get("proxy")?;
        (outcome.calls > 0).then(|| ns as f64 / 1e3 / outcome.calls as f64)
    }

    /// The outcome, if the run counts.
    pub fn counted(&self) -> Option<&Outcome> {
        self.outcome.as_ref().filter(|o| self.fault.is_none() && o.calls > 0)
    }

    /// Whether it counts.
    pub fn counts(&self) -> bool {
        self.counted().is_some() || (self.fault.is_none() && self.figure.is_some())
    }
}

/// Why nothing could be compared.
#[derive(Debug)]
pub enum CompareFault {
    /// A file or a process.
    Io(io::Error),
    /// A name that no shape or peer has, with the names there are.
    #[expect(missing_docs, reason = "the names say it")]
    Unknown { what: &'static str, name: String, known: Vec<String> },
    /// A peer's folder cannot be used.
    Peer(String),
    /// The CPUs asked for are not ours.
    Cpus(Vec<usize>),
    /// Nothing is left to run.
    Nothing,
}

impl fmt::Display for CompareFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(error) => write!(f, "{error}"),
            Self::Unknown { what, name, known } => {
                write!(f, "no {what} is called {name}; there are: {}", known.join(", "))
            }
            Self::Peer(text) => f.write_str(text),
            Self::Cpus(cpus) => write!(
                f,
                "the CPUs to use are {cpus:?}: choose two of them with --proxy-cpu and --load-cpu"
            ),
            Self::Nothing => f.write_str("no peer can be started"),
        }
    }
}

impl std::error::Error for CompareFault {}

impl From<io::Error> for CompareFault {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// Everything a run leaves behind.
#[derive(Debug, Serialize)]
struct Record<'a> {
    machine: &'a machine::Facts,
    request: &'a Request,
    shapes: &'a [Shape],
    peers: &'a [Peer],
    skipped: &'a [(String, String)],
    notes: &'a [String],
    table: &'a [table::Row],
    losses: &'a [judge::Loss],
    runs: &'a [Run],
}

/// Runs the comparison, prints its table and writes its folder.
pub fn run(request: &Request) -> Result<(), CompareFault> {
    sys::catch_stop()?;
    sys::raise_file_limit()?;
    let cpus = sys::allowed_cpus()?;
    if !cpus.contains(&request.proxy_cpu) || !cpus.contains(&request.load_cpu) {
        return Err(CompareFault::Cpus(cpus));
    }
    let shapes = rows::choose(&request.shapes)?;
    let mut programs = Programs::read(request)?;
    let (peers, skipped) = peer::choose(request, &mut programs)?;
    let out = &request.out;
    fs::create_dir_all(out)?;
    let request = &estimate::settle(request, &shapes, &peers);
    let test_bed = TestBed::new(request, &mut programs, &shapes, out)?;
    let fixed = machine::Fixed::settle(request);
    let facts = machine::Facts::gather(&fixed, request, &programs);
    ringway_stdio::say!("{facts}")?;
    for (name, why) in &skipped {
        ringway_stdio::say!("skipped: {name}: {why}")?;
    }
    ringway_stdio::say!("{}", estimate::Estimate::of(request, &shapes, &peers))?;
    let mut series = Series::new(request, &shapes, &peers, test_bed);
    series.run();
    let Series { runs, notes, .. } = series;
    drop(fixed);
    let figures = Figures::new(&shapes, &peers, &runs);
    let (table, losses) = (table::rows(&figures), judge::losses(&figures));
    ringway_stdio::say!(
        "\n{}",
        report::Report { table: &table, losses: &losses, runs: &runs, notes: &notes }
    )?;
    let record = Record {
        machine: &facts,
        request,
        shapes: &shapes,
        peers: &peers,
        skipped: &skipped,
        notes: &notes,
        table: &table,
        losses: &losses,
        runs: &runs,
    };
    write_all(&record, out)
}

fn write_all(record: &Record<'_>, out: &Path) -> Result<(), CompareFault> {
    let text = serde_json::to_string_pretty(record).map_err(io::Error::other)?;
    fs::write(out.join("figures.json"), &text)?;
    if let Some(path) = &record.request.json {
        fs::write(path, &text)?;
    }
    fs::write(out.join("report.html"), page::page(record, out))?;
    ringway_stdio::say!("report.html, figures.json, configurations and logs: {}", out.display())?;
    Ok(())
}

/// The runs as they are made.
struct Series<'a> {
    request: &'a Request,
    shapes: &'a [Shape],
    peers: &'a [Peer],
    test_bed: TestBed,
    runs: Vec<Run>,
    notes: Vec<String>,
    begun: Instant,
    estimate: f64,
}

impl<'a> Series<'a> {
    fn new(
        request: &'a Request,
        shapes: &'a [Shape],
        peers: &'a [Peer],
        test_bed: TestBed,
    ) -> Self {
        let estimate = estimate::Estimate::of(request, shapes, peers).seconds;
        let (runs, notes) = (vec![], vec![]);
        Self { request, shapes, peers, test_bed, runs, notes, begun: Instant::now(), estimate }
    }

    /// Every peer once a round, so that what the machine does meanwhile meets all of them.
    fn run(&mut self) {
        let checked = match self.test_bed.check() {
            Ok(outcome) => generator(&outcome),
            Err(why) => format!("the generator could not be checked: {why}"),
        };
        ringway_stdio::complain!("{checked}");
        self.notes.push(checked);
        for group in groups(self.shapes) {
            if group.iter().any(|shape| shape.is_relative()) {
                self.find_half();
            }
            for round in 1..=self.request.rounds {
                self.round(&group, round);
            }
        }
    }

    fn round(&mut self, group: &[&Shape], round: usize) {
        let due = |shape: &&&Shape| round <= estimate::rounds(self.request, shape);
        let group: Vec<&Shape> = group.iter().filter(due).copied().collect();
        for peer in self.peers {
            for shape in group.iter().filter(|shape| shape.is_for(peer)) {
                if sys::stop_asked() {
                    return;
                }
                let run = one(&self.test_bed, peer, shape, round);
                ringway_stdio::complain!("{} {}", self.clock(), progress(&run));
                self.runs.push(run);
            }
        }
    }

    /// How far it is.
    fn clock(&self) -> String {
        let minutes =
            |seconds: f64| format!("{:.0}:{:02.0}", (seconds / 60.0).floor(), seconds % 60.0);
        format!("[{} of {}]", minutes(self.begun.elapsed().as_secs_f64()), minutes(self.estimate))
    }

    /// Half of what the slowest peer can do, from the runs of [`rows::CAPACITY`].
    fn find_half(&mut self) {
        let Some(shape) = rows::ALL.iter().find(|shape| shape.name == rows::CAPACITY) else {
            return;
        };
        let judged = |peer: &&Peer| !is_direct(peer) && !peer.spins && shape.is_for(peer);
        let mut slowest: Option<(f64, &str)> = None;
        for peer in self.peers.iter().filter(judged) {
            if sys::stop_asked() {
                return;
            }
            let made = || self.runs.iter().filter(|r| r.shape == shape.name && r.peer == peer.name);
            let rate = |run: &Run| Some(run.counted()?.calls_per_s);
            let known = Spread::of(made().filter_map(rate).collect()).map(|spread| spread.median);
            // Without those runs each peer makes one that counts for nothing else.
            let known = known.or_else(|| rate(&one(&self.test_bed, peer, shape, 0)));
            if let Some(rate) = known
                && slowest.is_none_or(|(least, _)| rate < least)
            {
                slowest = Some((rate, &peer.name));
            }
        }
        if let Some((rate, name)) = slowest {
            self.test_bed.set("half", format!("{:.0}", rate / 2.0));
            self.notes.push(format!(
                "half of the slowest peer's capacity: {:.0} calls a second ({name} can do {rate:.0})",
                rate / 2.0
            ));
        }
    }
}

/// What the generator can do by itself, and how wrong it is.
fn generator(check: &Outcome) -> String {
    let part = |name: &str| check.parts.get(name).map_or(0.0, |latency| latency.p50);
    let late = check.late_us.unwrap_or_default();
    format!(
        "the generator against its own endpoint, both on one CPU: {:.0} calls a second (100 bytes, \
         16 x 16); latency of one call {:.1} us, at 10 000 a second {:.1} us; starts late p50 {:.1} \
         us, p99 {:.1} us",
        check.calls_per_s,
        part("floor"),
        part("paced"),
        late.p50,
        late.p99
    )
}

/// Shapes that are compared with each other run in the same rounds.
fn groups(shapes: &[Shape]) -> Vec<Vec<&Shape>> {
    let mut groups: Vec<Vec<&Shape>> = vec![];
    for shape in shapes {
        let with = shape.partner();
        match groups.iter_mut().find(|group| group.iter().any(|s| Some(s.name) == with)) {
            Some(group) => group.push(shape),
            None => groups.push(vec![shape]),
        }
    }
    groups
}

fn one(test_bed: &TestBed, peer: &Peer, shape: &Shape, round: usize) -> Run {
    let (outcome, figure, fault) = match test_bed.run(peer, shape, round) {
        Ok(seen) => {
            let fault = seen.outcome.as_ref().and_then(fault_of);
            (seen.outcome, seen.figure, fault)
        }
        Err(fault) => (None, None, Some(fault)),
    };
    let (shape, peer) = (shape.name.to_owned(), peer.name.clone());
    Run { shape, peer, round, outcome, figure, fault }
}

/// Least share of handshakes that must have been resumed, of a run that is about that.
const RESUMED: f64 = 0.9;

/// Why an outcome does not count.
fn fault_of(outcome: &Outcome) -> Option<String> {
    if let Some(why) = &outcome.not_built {
        return Some(format!("not built: {why}"));
    }
    if let Some(share) = outcome.resumed.filter(|share| *share < RESUMED) {
        return Some(format!("only {:.0} % of the handshakes resumed", share * 100.0));
    }
    (outcome.failed > 0).then(|| format!("{} failed: {:?}", outcome.failed, outcome.failures))
}

fn progress(run: &Run) -> String {
    let head = format!("{} round {} {}", run.shape, run.round, run.peer);
    match (&run.fault, run.counted(), run.figure) {
        (Some(fault), ..) => format!("{head}: not counted: {fault}"),
        (None, Some(o), _) => {
            let cpu =
                run.cpu_us().map_or(String::new(), |us| format!(", {us:.3} us of CPU a unit"));
            format!("{head}: {:.0} units/s{cpu}", o.calls_per_s)
        }
        (None, None, Some(figure)) => format!("{head}: {figure:.0} bytes each"),
        (None, None, None) => format!("{head}: not counted: no call completed"),
    }
}

/// Whether a peer is the thing being judged.
fn is_judged(peer: &Peer) -> bool {
    peer.class == Class::Gateway
}

/// Whether the load reaches the endpoint without anything between.
fn is_direct(peer: &Peer) -> bool {
    peer.behind == Behind::Backend && peer.start.is_empty()
}
