//! CPU per call of gateways against the bare relay, in one interleaved run.
//!
//! For each shape and round every peer runs once, A B C A B C, each time freshly started on its
//! own CPU with the load and the endpoint on another. [`shape`] says what is run, [`peer`] who,
//! [`stand`] starts and ends them, [`machine`] prepares and describes the machine, [`report`]
//! turns the runs into the table.

pub mod machine;
pub mod peer;
pub mod report;
pub mod shape;
pub mod stand;

use std::fmt;
use std::fs;
use std::io;
use std::path::PathBuf;

use serde::Serialize;

use crate::load::Outcome;
use crate::sys;
use peer::{Behind, Class, Peer};
use shape::Shape;
use stand::Stand;

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
    /// The gateway's binary; the one beside this program when absent.
    pub ringway: Option<PathBuf>,
    /// Names of shapes; empty means all.
    pub shapes: Vec<String>,
    /// Names of peers, in order; empty means all that can start.
    pub peers: Vec<String>,
    /// Folder of the peers.
    pub peers_dir: PathBuf,
    /// Where the figures go besides the output folder.
    pub json: Option<PathBuf>,
    /// Output folder.
    pub out: Option<PathBuf>,
    /// Congestion control for the time of the run; `keep` leaves it as it is.
    pub congestion: String,
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
    /// Why the run does not count.
    pub fault: Option<String>,
}

impl Run {
    /// CPU time of the proxy per call in microseconds, of a run that counts.
    pub fn cpu_us(&self) -> Option<f64> {
        let outcome = self.counted()?;
        let ns = *outcome.cpu_ns.get("proxy")?;
        Some(ns as f64 / 1e3 / outcome.calls as f64)
    }

    /// The outcome, if the run counts.
    pub fn counted(&self) -> Option<&Outcome> {
        self.outcome.as_ref().filter(|o| self.fault.is_none() && o.calls > 0)
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
    runs: &'a [Run],
}

/// Runs the comparison and prints its table.
pub fn run(request: &Request) -> Result<(), CompareFault> {
    sys::catch_stop()?;
    let cpus = sys::allowed_cpus()?;
    if !cpus.contains(&request.proxy_cpu) || !cpus.contains(&request.load_cpu) {
        return Err(CompareFault::Cpus(cpus));
    }
    let shapes = shape::choose(&request.shapes)?;
    let out = match &request.out {
        Some(dir) => dir.clone(),
        None => std::env::temp_dir().join(format!("ringway-bench-{}", std::process::id())),
    };
    fs::create_dir_all(&out)?;
    let stand = Stand::new(request, &out)?;
    let (peers, skipped) = peer::choose(request, &stand)?;
    let congestion = machine::Congestion::settle(&request.congestion);
    let facts = machine::Facts::gather(&congestion, request);
    println!("{facts}");
    for (name, why) in &skipped {
        println!("skipped: {name}: {why}");
    }
    let runs = interleave(request, &shapes, &peers, &stand);
    drop(congestion);
    println!("\n{}", report::Report::new(&shapes, &peers, &runs));
    let (shapes, peers, skipped, machine) = (&shapes[..], &peers[..], &skipped[..], &facts);
    let record = Record { machine, request, shapes, peers, skipped, runs: &runs };
    let text = serde_json::to_string_pretty(&record).map_err(io::Error::other)?;
    fs::write(out.join("figures.json"), &text)?;
    if let Some(path) = &request.json {
        fs::write(path, &text)?;
    }
    println!("configurations, logs and raw figures: {}", out.display());
    Ok(())
}

/// Every peer once a round, so that what the machine does meanwhile meets all of them.
fn interleave(request: &Request, shapes: &[Shape], peers: &[Peer], stand: &Stand) -> Vec<Run> {
    let mut runs = vec![];
    for shape in shapes {
        for round in 1..=request.rounds {
            for peer in peers {
                if sys::stop_asked() {
                    return runs;
                }
                let result = stand.run(peer, shape);
                let (outcome, fault) = match result {
                    Ok(outcome) if outcome.failed > 0 => {
                        let fault = format!("{} failed: {:?}", outcome.failed, outcome.failures);
                        (Some(outcome), Some(fault))
                    }
                    Ok(outcome) => (Some(outcome), None),
                    Err(fault) => (None, Some(fault)),
                };
                let (shape, peer) = (shape.name.to_owned(), peer.name.clone());
                let run = Run { shape, peer, round, outcome, fault };
                eprintln!("{}", progress(&run));
                runs.push(run);
            }
        }
    }
    runs
}

fn progress(run: &Run) -> String {
    let head = format!("{} round {} {}", run.shape, run.round, run.peer);
    match (&run.fault, run.counted()) {
        (Some(fault), _) => format!("{head}: not counted: {fault}"),
        (None, Some(o)) => {
            let cpu =
                run.cpu_us().map_or(String::new(), |us| format!(", {us:.3} us of CPU a call"));
            format!("{head}: {:.0} calls/s{cpu}", o.calls_per_s)
        }
        (None, None) => format!("{head}: not counted: no call completed"),
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
