//! The arguments of `ringway-bench load`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use ringway_bench::beside::Bulk;
use ringway_bench::caller::Work;
use ringway_bench::fields::CallFields;
use ringway_bench::pipe::{self, Way};
use ringway_bench::socket::Route;
use ringway_bench::tls::Trust;
use ringway_bench::web::Talk;
use ringway_bench::{beside, capacity, check, compare, load, sys};

/// Connections beyond which one source address has too few ports.
const MOST_FROM_ONE: usize = 20_000;

#[derive(Debug, Args)]
pub(crate) struct LoadArgs {
    #[arg(long, required_unless_present = "check")]
    target: Option<SocketAddr>,
    /// Measure the generator itself instead, against an endpoint in its own process.
    #[arg(long)]
    check: bool,
    /// Speak TLS and trust the certificates of this PEM file.
    /// (A server may show one of them itself only if it is not marked as an authority.)
    #[arg(long, value_name = "FILE")]
    tls: Option<PathBuf>,
    /// Keep tickets and take TLS sessions up again.
    #[arg(long, requires = "tls")]
    tls_resume: bool,
    /// Whose certificate is expected; the target's address when absent.
    #[arg(long, requires = "tls")]
    tls_name: Option<String>,
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
    #[arg(long, alias = "shape", value_enum, default_value_t = KindName::Unary)]
    kind: KindName,
    /// Starts a second over all connections (an open loop); as fast as answers come when absent.
    /// For a ping-pong a start is one message on every stream of the next connection.
    #[arg(long)]
    rate: Option<f64>,
    /// Connections that go on after their first call; the others rest. All when absent.
    #[arg(long)]
    active: Option<usize>,
    /// Messages of a server stream; without end when absent.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=i64::from(u32::MAX - 1)))]
    messages: Option<u32>,
    /// Messages of a ping-pong stream on their way at once.
    #[arg(long, default_value_t = 1)]
    in_flight: usize,
    /// Connections with which memory is looked at, before it is with all.
    #[arg(long, value_delimiter = ',')]
    steps: Vec<usize>,
    /// How long a client that is cut off stays away (`resume`), or a gateway has to notice
    /// (`parked`).
    #[arg(long, default_value_t = 20)]
    absence_ms: u64,
    /// Connections of the bulk stream (`beside`), and the size of its messages.
    #[arg(long, default_value_t = 1)]
    bulk: usize,
    #[arg(long, default_value_t = 65_536)]
    bulk_message: u32,
    /// The bulk is read so seldom (`beside`): milliseconds between two reads.
    #[arg(long)]
    slow_ms: Option<u64>,
    /// The 99th percentile up to which a rate counts, in microseconds (`capacity`).
    #[arg(long, default_value_t = 1000)]
    p99_us: u64,
    /// A way of so many milliseconds to and fro between here and the target.
    #[arg(long)]
    round_trip_ms: Option<u64>,
    /// How much that way lets through in each direction, in Gb/s.
    #[arg(long, default_value_t = 1.0, requires = "round_trip_ms")]
    gbit: f64,
    /// The proxy's admin address, to tell what its samples at /metrics changed by.
    #[arg(long, value_name = "ADDRESS")]
    metrics: Option<SocketAddr>,
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

/// [`load::Kind`] by name, and the run of two of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum KindName {
    Unary,
    ServerStream,
    PingPong,
    NewConnection,
    /// A session is cut off and comes back.
    Resume,
    /// Sessions that rest.
    Idle,
    /// Sessions whose client was cut off and stays away.
    Parked,
    /// A paced ping-pong, alone and beside a server stream.
    Beside,
    /// HTTP/1.1: GET of so many octets as an answer has.
    Get,
    /// HTTP/1.1: POST of a message.
    Post,
    /// A WebSocket: a message there and one back.
    WsPingPong,
    /// A WebSocket on which messages come without end.
    WsStream,
    /// All connections at once, each with one call.
    Storm,
    /// Calls at the highest rate whose 99th percentile stays within `--p99-us`.
    Capacity,
    /// A paced ping-pong, alone and beside a server stream on the same connection.
    Shared,
}

impl LoadArgs {
    fn kind(&self) -> load::Kind {
        let absence = Duration::from_millis(self.absence_ms);
        match self.kind {
            KindName::Unary | KindName::Capacity => load::Kind::Unary,
            KindName::Get => load::Kind::Web(Talk::Get),
            KindName::Post => load::Kind::Web(Talk::Post),
            KindName::WsPingPong => load::Kind::Web(Talk::PingPong),
            KindName::WsStream => load::Kind::Web(Talk::Stream),
            KindName::Storm => load::Kind::Storm,
            KindName::Shared => load::Kind::Shared,
            KindName::ServerStream => load::Kind::ServerStream { messages: self.messages },
            KindName::PingPong | KindName::Beside => {
                load::Kind::PingPong { in_flight: self.in_flight.max(1) }
            }
            KindName::NewConnection => load::Kind::NewConnection,
            KindName::Resume => load::Kind::Resume { absence },
            KindName::Parked => load::Kind::Parked { absence },
            KindName::Idle => load::Kind::Idle,
        }
    }

    fn route(&self) -> Result<Route, Box<dyn std::error::Error>> {
        // A self-check has no target.
        let target = self.target.unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 0)));
        let name = self.tls_name.clone().unwrap_or_else(|| target.ip().to_string());
        let trust = self.tls.as_ref().map(|file| Trust::read(file, &name)).transpose()?;
        let trust = trust.map(|trust| if self.tls_resume { trust.resuming() } else { trust });
        let spread =
            matches!(self.kind, KindName::NewConnection | KindName::Resume | KindName::Parked);
        let spread = spread || self.connections > MOST_FROM_ONE;
        let mut route = Route { target, trust, spread, slow: None };
        if let Some(ms) = self.round_trip_ms {
            let way = Way { round_trip: Duration::from_millis(ms), rate: self.gbit * 1e9 / 8.0 };
            route.target = pipe::open(target, way)?;
        }
        Ok(route)
    }

    fn plan(self) -> Result<load::Plan, Box<dyn std::error::Error>> {
        let route = self.route()?;
        let kind = self.kind();
        let fields = CallFields {
            authority: self.target.unwrap_or(route.target).to_string(),
            path: self.path,
            key: self.key,
            function: self.function,
            version: self.version,
            session: None,
        };
        if self.gbit <= 0.0 {
            return Err("--gbit must be more than nothing".into());
        }
        if self.messages.is_some() && self.message < 8 {
            return Err("--messages needs a --message of at least 8 bytes".into());
        }
        if !fields.fit() {
            return Err("the header fields are longer than a header table".into());
        }
        Ok(load::Plan {
            route,
            connections: self.connections.max(1),
            streams: self.streams.max(1),
            threads: self.threads.clamp(1, self.connections.max(1)),
            kind,
            rate: self.rate,
            active: self.active,
            steps: self.steps,
            hdr: self.hdr,
            work: Work { message: self.message, answer: self.answer.unwrap_or(self.message) },
            fields,
            warm_up: Duration::try_from_secs_f64(self.warm_up)?,
            counted: Duration::try_from_secs_f64(self.seconds)?,
            watch: self.watch,
            metrics: self.metrics,
        })
    }

    pub(crate) fn run(self) -> Result<(), Box<dyn std::error::Error>> {
        sys::raise_file_limit()?;
        let (json, checks, kind) = (self.json, self.check, self.kind);
        let slow = self.slow_ms.map(Duration::from_millis);
        let bulk = Bulk { connections: self.bulk.max(1), message: self.bulk_message, slow };
        let bound = Duration::from_micros(self.p99_us);
        let plan = self.plan()?;
        let outcome = match kind {
            _ if checks => check::run(&plan)?,
            KindName::Beside => beside::run(&plan, bulk)?,
            KindName::Shared => beside::shared(&plan)?,
            KindName::Capacity => capacity::run(&plan, bound)?,
            _ => load::run(&plan)?,
        };
        if json {
            ringway_stdio::print_json(&(serde_json::to_string(&outcome)? + "\n"))?;
        } else {
            ringway_stdio::say!("{outcome}")?;
        }
        Ok(())
    }
}

fn parse_watch(text: &str) -> Result<load::Watch, String> {
    let (name, pid) = text.split_once('=').ok_or("NAME=PID expected")?;
    let pid = pid.parse().map_err(|_| format!("not a process id: {pid}"))?;
    Ok(load::Watch { name: name.to_owned(), pid })
}
