//! `ringway-bench`: arguments to the library's subcommands.
#![forbid(unsafe_code)]
// The macros of std panic when nobody reads; those of `ringway-stdio` do not.
#![deny(clippy::print_stdout, clippy::print_stderr)]

mod load_args;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use ringway_bench::tls::Offer;
use ringway_bench::{backend, compare, relay, relay_monoio, sys, worker};
use ringway_work::Secret;
use uuid::Uuid;

/// Measures gateways from outside.
#[derive(Debug, Parser)]
#[command(name = "ringway-bench")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// The baseline: a bare TCP relay, one thread.
    Relay {
        /// What moves the bytes: the baseline is epoll, monoio is the control.
        #[arg(long, value_enum, default_value_t = By::Epoll)]
        by: By,
        /// Never sleep: look for events without end (epoll only).
        #[arg(long)]
        spin: bool,
        #[arg(long)]
        listen: SocketAddr,
        #[arg(long)]
        target: SocketAddr,
    },
    /// The lean HTTP/2 endpoint, listening.
    Backend {
        #[arg(long)]
        listen: SocketAddr,
        /// Speak TLS with this certificate chain, a PEM file.
        #[arg(long, value_name = "FILE", requires = "tls_key")]
        tls_cert: Option<PathBuf>,
        /// Its key, a PEM file.
        #[arg(long, value_name = "FILE", requires = "tls_cert")]
        tls_key: Option<PathBuf>,
    },
    /// The same endpoint, reached by dialling back to a gateway.
    Worker(WorkerArgs),
    /// The load generator: calls, streams or connections in a closed loop or at a rate.
    Load(Box<load_args::LoadArgs>),
    /// CPU per call of gateways against the bare relay, interleaved.
    Compare(CompareArgs),
}

/// What a relay is made of.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum By {
    Epoll,
    Monoio,
}

#[derive(Debug, Args)]
struct WorkerArgs {
    /// The gateway's worker listener, http://HOST:PORT.
    #[arg(long)]
    gateway: String,
    #[arg(long)]
    key: String,
    #[arg(long)]
    function: Uuid,
    #[arg(long)]
    version: Uuid,
    /// Sessions served at once.
    #[arg(long, default_value_t = 16_384)]
    slots: usize,
}

#[derive(Debug, Args)]
struct CompareArgs {
    /// All rows in about 25 minutes: two rounds, as many seconds as fit.
    #[arg(long)]
    quick: bool,
    /// Runs of each peer for each shape: 5, or 2 if quick.
    #[arg(long)]
    rounds: Option<usize>,
    /// Seconds counted in each run: 2, or what fits if quick.
    #[arg(long)]
    seconds: Option<f64>,
    /// Seconds before each count: 0.5, or 0.2 if quick.
    #[arg(long)]
    warm_up: Option<f64>,
    /// Do not install what is missing.
    #[arg(long)]
    no_install: bool,
    /// The gateway's binary; the one beside this program when absent.
    #[arg(long)]
    ringway: Option<PathBuf>,
    /// Shapes to run, by name; all of them when absent.
    #[arg(long, value_delimiter = ',')]
    shapes: Vec<String>,
    /// Peers to run, by folder name, in this order; all that are installed when absent.
    #[arg(long, value_delimiter = ',')]
    peers: Vec<String>,
    /// Folder of the peers.
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/peers"))]
    peers_dir: PathBuf,
    /// Where to write every figure.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Where the page, configurations, logs and the raw figures go.
    #[arg(long, default_value = "comparison")]
    out: PathBuf,
    /// Start line of NVIDIA's proxy with all it needs, for `sh`: clients come to {client}, calls
    /// end at {backend}; see `bench/peers/nvidia`. Without it that peer is left out.
    #[arg(long, value_name = "LINE")]
    nvidia: Option<String>,
    /// TCP congestion control for the time of the run, or `keep`. The common default bbr paces
    /// loopback traffic, which doubles the cost of large messages.
    #[arg(long, default_value = "cubic")]
    congestion: String,
    /// `tcp_rmem` and `tcp_wmem` for the time of the run: the kernel's defaults, or `keep`.
    #[arg(long, default_value = "default", value_parser = ["default", "keep"])]
    tcp_memory: String,
    #[arg(long, default_value_t = 0)]
    proxy_cpu: usize,
    #[arg(long, default_value_t = 1)]
    load_cpu: usize,
}

fn main() -> ExitCode {
    ringway_stdio::shield_server();
    let command = ringway_cli::with_version(Cli::command(), None);
    let cli = Cli::from_arg_matches(&command.get_matches()).unwrap_or_else(|error| error.exit());
    let outcome = match cli.command {
        Command::Relay { by: By::Epoll, spin, listen, target } => run_relay(listen, target, spin),
        Command::Relay { by: By::Monoio, spin: true, .. } => {
            Err("relay: --spin goes with --by epoll".into())
        }
        Command::Relay { by: By::Monoio, listen, target, .. } => run_relay_monoio(listen, target),
        Command::Backend { listen, tls_cert, tls_key } => {
            run_backend(listen, tls_cert.zip(tls_key))
        }
        Command::Worker(args) => run_worker(args),
        Command::Load(args) => args.run(),
        Command::Compare(args) => run_compare(args),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            ringway_stdio::complain!("ringway-bench: {error}");
            ExitCode::FAILURE
        }
    }
}

type Outcome = Result<(), Box<dyn std::error::Error>>;

/// The ready line. That nobody can read it is no reason not to serve.
fn ready(what: &str) {
    let _ = ringway_stdio::say!("ready {what}");
}

fn run_relay(listen: SocketAddr, target: SocketAddr, spin: bool) -> Outcome {
    sys::raise_file_limit()?;
    let relay = relay::Relay::bind(listen, target)?;
    ready(&format!("listen={}", relay.address()?));
    Ok(relay.run(spin)?)
}

fn run_relay_monoio(listen: SocketAddr, target: SocketAddr) -> Outcome {
    sys::raise_file_limit()?;
    Ok(relay_monoio::run(listen, target, |address| ready(&format!("listen={address}")))?)
}

fn run_backend(listen: SocketAddr, tls: Option<(PathBuf, PathBuf)>) -> Outcome {
    sys::raise_file_limit()?;
    let offer = tls.map(|(chain, key)| Offer::read(&chain, &key)).transpose()?;
    Ok(backend::run_with(listen, offer, |address| ready(&format!("listen={address}")))?)
}

fn run_worker(args: WorkerArgs) -> Outcome {
    sys::raise_file_limit()?;
    let WorkerArgs { gateway, key, function, version, slots } = args;
    let key = Secret::new(&key).map_err(|why| format!("--key: {why}"))?;
    let employer = worker::Employer { gateway, key, function, version, slots };
    Ok(worker::run(employer, || ready("polling"))?)
}

fn run_compare(args: CompareArgs) -> Outcome {
    let (rounds, seconds, warm_up) = if args.quick { (2, 1.0, 0.2) } else { (5, 2.0, 0.5) };
    let request = compare::Request {
        rounds: args.rounds.unwrap_or(rounds).max(1),
        seconds: args.seconds.unwrap_or(seconds),
        warm_up: args.warm_up.unwrap_or(warm_up),
        budget: (args.quick && args.seconds.is_none()).then_some(compare::estimate::QUICK_SECONDS),
        install: !args.no_install,
        ringway: args.ringway,
        shapes: args.shapes,
        peers: args.peers,
        peers_dir: args.peers_dir,
        json: args.json,
        out: args.out,
        congestion: args.congestion,
        tcp_memory: args.tcp_memory,
        given: args.nvidia.into_iter().map(|line| ("nvidia".to_owned(), line)).collect(),
        proxy_cpu: args.proxy_cpu,
        load_cpu: args.load_cpu,
    };
    Ok(compare::run(&request)?)
}
