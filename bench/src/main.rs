//! `ringway-bench`: arguments to the library's subcommands.
#![forbid(unsafe_code)]

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use ringway_bench::caller::Work;
use ringway_bench::fields::CallFields;
use ringway_bench::{backend, compare, load, relay, relay_monoio, sys, worker};

/// Measures gateways from outside.
#[derive(Debug, Parser)]
#[command(name = "ringway-bench", version)]
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
        #[arg(long)]
        listen: SocketAddr,
        #[arg(long)]
        target: SocketAddr,
    },
    /// The lean HTTP/2 endpoint, listening.
    Backend {
        #[arg(long)]
        listen: SocketAddr,
    },
    /// The same endpoint, reached by dialling back to a gateway.
    Worker(WorkerArgs),
    /// The load generator: calls in a closed loop.
    Load(Box<LoadArgs>),
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
    function: String,
    #[arg(long)]
    version: String,
    /// Sessions served at once.
    #[arg(long, default_value_t = 16_384)]
    slots: usize,
}

#[derive(Debug, Args)]
struct LoadArgs {
    #[arg(long)]
    target: SocketAddr,
    #[arg(long, default_value_t = 16)]
    connections: usize,
    /// Calls always open on each connection.
    #[arg(long, default_value_t = 16)]
    streams: usize,
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// Payload bytes of each request message (at least 4).
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(4..))]
    message: u32,
    /// Payload bytes of each answer; as many as the request when absent.
    #[arg(long)]
    answer: Option<u32>,
    /// What the connections do.
    #[arg(long, value_enum, default_value_t = KindName::Unary)]
    kind: KindName,
    /// Starts a second over all connections (an open loop); as fast as answers come when absent.
    /// Of a ping-pong, a start is one message on every stream of the next connection.
    #[arg(long)]
    rate: Option<f64>,
    /// Connections that go on after their first call; the others rest. All when absent.
    #[arg(long)]
    active: Option<usize>,
    /// Messages of a ping-pong stream on their way at once.
    #[arg(long, default_value_t = 1)]
    in_flight: usize,
    /// Where the latencies go as an HDR log.
    #[arg(long)]
    hdr: Option<PathBuf>,
    /// Seconds counted.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Seconds before, not counted.
    #[arg(long, default_value_t = 0.5)]
    warm_up: f64,
    /// Client key.
    #[arg(long, default_value = compare::CLIENT_KEY)]
    key: String,
    #[arg(long, default_value = compare::FUNCTION)]
    function: String,
    #[arg(long, default_value = compare::VERSION)]
    version: String,
    #[arg(long, default_value = "/ringway.bench.v1.Bench/Call")]
    path: String,
    /// NAME=PID of a process whose CPU time is wanted; repeatable.
    #[arg(long, value_parser = parse_watch)]
    watch: Vec<load::Watch>,
    /// Print the outcome as JSON.
    #[arg(long)]
    json: bool,
}

/// [`load::Kind`] by name.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum KindName {
    Unary,
    ServerStream,
    PingPong,
    NewConnection,
}

impl KindName {
    fn kind(self, in_flight: usize) -> load::Kind {
        match self {
            Self::Unary => load::Kind::Unary,
            Self::ServerStream => load::Kind::ServerStream,
            Self::PingPong => load::Kind::PingPong { in_flight: in_flight.max(1) },
            Self::NewConnection => load::Kind::NewConnection,
        }
    }
}

#[derive(Debug, Args)]
struct CompareArgs {
    /// All rows in about a quarter of an hour: two rounds, as many seconds as fit.
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
    /// Where configurations, logs and the raw figures go; a temporary folder when absent.
    #[arg(long)]
    out: Option<PathBuf>,
    /// TCP congestion control for the time of the run, or `keep`. The common default bbr paces
    /// loopback traffic, which doubles the cost of large messages.
    #[arg(long, default_value = "cubic")]
    congestion: String,
    #[arg(long, default_value_t = 0)]
    proxy_cpu: usize,
    #[arg(long, default_value_t = 1)]
    load_cpu: usize,
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Relay { by: By::Epoll, listen, target } => run_relay(listen, target),
        Command::Relay { by: By::Monoio, listen, target } => run_relay_monoio(listen, target),
        Command::Backend { listen } => run_backend(listen),
        Command::Worker(args) => run_worker(args),
        Command::Load(args) => run_load(*args),
        Command::Compare(args) => run_compare(args),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ringway-bench: {error}");
            ExitCode::FAILURE
        }
    }
}

type Outcome = Result<(), Box<dyn std::error::Error>>;

fn run_relay(listen: SocketAddr, target: SocketAddr) -> Outcome {
    sys::raise_file_limit()?;
    let relay = relay::Relay::bind(listen, target)?;
    println!("ready listen={}", relay.address()?);
    Ok(relay.run()?)
}

fn run_relay_monoio(listen: SocketAddr, target: SocketAddr) -> Outcome {
    sys::raise_file_limit()?;
    Ok(relay_monoio::run(listen, target, |address| println!("ready listen={address}"))?)
}

fn run_backend(listen: SocketAddr) -> Outcome {
    sys::raise_file_limit()?;
    Ok(backend::run(listen, |address| println!("ready listen={address}"))?)
}

fn run_worker(args: WorkerArgs) -> Outcome {
    sys::raise_file_limit()?;
    let WorkerArgs { gateway, key, function, version, slots } = args;
    let employer = worker::Employer { gateway, key, function, version, slots };
    Ok(worker::run(employer, || println!("ready polling"))?)
}

fn run_load(args: LoadArgs) -> Outcome {
    sys::raise_file_limit()?;
    let fields = CallFields {
        authority: args.target.to_string(),
        path: args.path,
        key: args.key,
        function: args.function,
        version: args.version,
    };
    if !fields.fit() {
        return Err("the header fields are longer than a header table".into());
    }
    let plan = load::Plan {
        target: args.target,
        connections: args.connections.max(1),
        streams: args.streams.max(1),
        threads: args.threads.clamp(1, args.connections.max(1)),
        kind: args.kind.kind(args.in_flight),
        rate: args.rate,
        active: args.active,
        hdr: args.hdr,
        work: Work { message: args.message, answer: args.answer.unwrap_or(args.message) },
        fields,
        warm_up: Duration::try_from_secs_f64(args.warm_up)?,
        counted: Duration::try_from_secs_f64(args.seconds)?,
        watch: args.watch,
    };
    let outcome = load::run(&plan)?;
    if args.json {
        println!("{}", serde_json::to_string(&outcome)?);
    } else {
        println!("{outcome}");
    }
    Ok(())
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
        proxy_cpu: args.proxy_cpu,
        load_cpu: args.load_cpu,
    };
    Ok(compare::run(&request)?)
}

fn parse_watch(text: &str) -> Result<load::Watch, String> {
    let (name, pid) = text.split_once('=').ok_or("NAME=PID expected")?;
    let pid = pid.parse().map_err(|_| format!("not a process id: {pid}"))?;
    Ok(load::Watch { name: name.to_owned(), pid })
}
