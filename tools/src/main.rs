//! `ringway-worker`: arguments in, exit code out.
// The macros of std panic when nobody reads; those of `ringway-stdio` do not.
#![deny(clippy::print_stdout, clippy::print_stderr)]

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Read};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{ArgAction, ArgGroup, Args, CommandFactory, FromArgMatches, Parser, ValueEnum};
use ringway_cli::{Completions, Man};
use ringway_stdio::{Escaping, Form, LastLines, Trouble};
use ringway_tools::nats::Credentials;
use ringway_tools::worker::{self, Endpoint, Io, MAX_SLOTS, Options, Outcome, Secret, nats};
use tracing::Level;
use tracing_appender::non_blocking::NonBlocking;
use tracing_subscriber::field::MakeExt;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::format::debug_fn;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use uuid::Uuid;

/// The C library's own takes one lock for all threads.
#[cfg(target_env = "musl")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Exit code for wrong arguments; clap's own.
const USAGE: u8 = 2;
/// Exit code when the system refuses what is needed (EX_OSERR).
const SYSTEM: u8 = 71;
/// Exit code for an answer that could not be printed (EX_IOERR).
const OUTPUT: u8 = 74;
/// Exit code when a gateway refuses the key, or the credentials for NATS are none (EX_CONFIG).
const CONFIG: u8 = 78;
/// Longest key file.
const MAX_KEY_FILE: u64 = 64 * 1024;

/// Serves a function: takes sessions from a Ringway gateway, or from NATS as NVIDIA's workers do,
/// and joins them to your server.
#[derive(Debug, Parser)]
#[command(
    name = "ringway-worker",
    disable_version_flag = true,
    after_help = "`ringway-worker --version` alone says which build this is; \
                  `ringway-worker completions SHELL` and `ringway-worker man [DIR]` print \
                  completions and the man page.",
    group(ArgGroup::new("source").required(true).args(["gateway", "nats"])),
    group(ArgGroup::new("credential").required(true).args(["key", "key_file", "nats"])),
)]
struct Arguments {
    /// The gateway's worker listener, like http://gateway:10086. May be given more than once.
    #[arg(long, value_name = "URL", value_parser = gateway)]
    gateway: Vec<Endpoint>,
    /// Worker key of the function. Others on this machine can see it: prefer --key-file.
    #[arg(long)]
    key: Option<String>,
    /// A file with the key.
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
    #[command(flatten)]
    by_nats: ByNats,
    /// The function it serves.
    #[arg(long, value_name = "ID", value_parser = id)]
    function: Uuid,
    /// The version it serves.
    #[arg(long, value_name = "ID", value_parser = id)]
    version: Uuid,
    /// The server behind it (h2c, gRPC or HTTP/1.1). Each tunnel is one connection.
    #[arg(long, value_name = "HOST:PORT", value_parser = target)]
    target: Endpoint,
    /// Most sessions at once.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = slots)]
    slots: usize,
    /// How many seconds sessions may go on after SIGTERM or SIGINT.
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    drain_max: u64,
    /// What moves the bytes.
    #[arg(long, value_enum, default_value_t = IoChoice::Auto)]
    io: IoChoice,
    /// What is logged, to stderr.
    #[arg(long, value_name = "LEVEL", default_value_t = Level::INFO)]
    log: Level,
    /// Print which build this is.
    #[arg(short = 'V', action = ArgAction::Version)]
    build: (),
}

/// What is asked for in place of work.
#[derive(Debug, Parser)]
#[command(name = "ringway-worker", disable_version_flag = true)]
enum Page {
    /// Print completions for a shell.
    Completions(Completions),
    /// Print the man page, or write it into a folder.
    Man(Man),
}

impl Page {
    fn print(self) -> ExitCode {
        let command = Arguments::command();
        let printed = match self {
            Self::Completions(asked) => ringway_cli::complete(command, asked),
            Self::Man(asked) => ringway_cli::manual(command, &asked),
        };
        match printed {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                ringway_cli::unprinted(error).complain();
                ExitCode::from(OUTPUT)
            }
        }
    }
}

/// The arguments, unless they ask for help or the version, or are wrong: then the process ends.
fn read_arguments() -> Arguments {
    // With a value it is the version of the function.
    let given: Vec<_> = std::env::args_os().collect();
    let given = match &given[..] {
        [name, version] if version == "--version" => vec![name.clone(), "-V".into()],
        _ => given,
    };
    let io = ringway_cli::is_version_asked().then(worker::io_here);
    let command = ringway_cli::with_version(Arguments::command(), io);
    let read = Arguments::from_arg_matches(&command.get_matches_from(given));
    read.unwrap_or_else(|error| error.exit())
}

/// Work of NATS, in place of a gateway's.
#[derive(Debug, Args)]
#[group(skip)]
struct ByNats {
    /// The NATS server that work comes from, like nats://nats:4222; several with commas.
    #[arg(long, value_name = "URL")]
    nats: Option<String>,
    #[command(flatten)]
    credentials: Credentials,
    /// The region, as it stands in NATS' subjects.
    #[arg(long, value_name = "NAME", default_value = "ncp", requires = "nats")]
    region: String,
    /// The function is of type STREAMING: work comes by requests, and sessions outlive their last
    /// tunnel.
    #[arg(long, requires = "nats")]
    streaming: bool,
    /// The region of streaming functions: it has names of its own.
    #[arg(long, value_name = "NAME", default_value = "default", requires = "streaming")]
    streaming_region: String,
    /// How many seconds a session of a streaming function waits for its client, unless the client
    /// says it in X-NVCF-RECONNECT-WINDOW-SECS.
    #[arg(long, value_name = "SECONDS", default_value_t = 300, requires = "streaming")]
    reconnect_window: u64,
    /// Reconnect messages are never answered, only followed.
    #[arg(long, requires = "nats")]
    never_answer: bool,
    /// Every so many seconds it is logged how long sessions took to claim and to dial; else at the
    /// end only.
    #[arg(long, value_name = "SECONDS", requires = "nats")]
    report: Option<u64>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum IoChoice {
    /// io_uring, or epoll where that is refused.
    Auto,
    /// io_uring.
    Ring,
    /// epoll.
    Epoll,
}

impl From<IoChoice> for Io {
    fn from(choice: IoChoice) -> Self {
        match choice {
            IoChoice::Auto => Self::Auto,
            IoChoice::Ring => Self::Ring,
            IoChoice::Epoll => Self::Epoll,
        }
    }
}

fn gateway(url: &str) -> Result<Endpoint, String> {
    if url.starts_with("https:") {
        return Err("a worker speaks no TLS to its gateway: write http://".into());
    }
    Endpoint::parse(url).map_err(|fault| fault.to_string())
}

fn id(text: &str) -> Result<Uuid, String> {
    Uuid::try_parse(text).map_err(|_| {
        "not a UUID like 11111111-1111-4111-8111-111111111111: take it from the gateway's \
         configuration ([[function]])"
            .into()
    })
}

fn target(text: &str) -> Result<Endpoint, String> {
    ringway_cli::host_and_port(text)?;
    Endpoint::host_and_port(text).map_err(|fault| fault.to_string())
}

fn slots(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(slots @ 1..=MAX_SLOTS) => Ok(slots),
        _ => Err(format!("not a number of slots: write one from 1 to {MAX_SLOTS}")),
    }
}

fn main() -> ExitCode {
    // The command line has no other words without a dash.
    if std::env::args_os().nth(1).is_some_and(|word| word == "completions" || word == "man") {
        ringway_stdio::shield();
        return Page::parse().print();
    }
    let arguments = read_arguments();
    ringway_stdio::shield_server();
    ringway_stdio::hold_hangup();
    if let Some(url) = arguments.by_nats.nats.clone() {
        let _guard = start_log(arguments.log);
        return match nats::run(by_nats(url, arguments)) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                let fix = "correct --nats, or the file of --nats-nkey-file, --nats-creds-file, \
                           --nats-ca-file, --nats-cert-file or --nats-key-file that it names";
                tracing::error!(%error, fix, "work cannot be taken from NATS");
                ExitCode::from(CONFIG)
            }
        };
    }
    let key = match read_key(&arguments) {
        Ok(key) => key,
        Err(trouble) => {
            trouble.complain();
            return ExitCode::from(USAGE);
        }
    };
    let _guard = start_log(arguments.log);
    match worker::run(by_gateways(key, arguments)) {
        Ok(Outcome::Stopped) => ExitCode::SUCCESS,
        Ok(Outcome::Refused) => ExitCode::from(CONFIG),
        Err(error) => {
            let fix = "try --io epoll, and see what this process may have (`ulimit -a`)";
            tracing::error!(%error, fix, "cannot set up io_uring, epoll or signals");
            ExitCode::from(SYSTEM)
        }
    }
}

fn by_gateways(key: Secret, arguments: Arguments) -> Options {
    Options {
        gateways: arguments.gateway,
        key,
        function: arguments.function,
        version: arguments.version,
        target: arguments.target,
        slots: arguments.slots,
        drain_max: Duration::from_secs(arguments.drain_max),
        io: arguments.io.into(),
    }
}

fn by_nats(url: String, arguments: Arguments) -> nats::Options {
    let of_nats = arguments.by_nats;
    nats::Options {
        url,
        credentials: of_nats.credentials,
        region: of_nats.region,
        function: arguments.function,
        version: arguments.version,
        target: arguments.target,
        slots: arguments.slots,
        drain_max: Duration::from_secs(arguments.drain_max),
        io: arguments.io.into(),
        streaming: of_nats.streaming.then(|| nats::Streaming {
            region: of_nats.streaming_region,
            window: Duration::from_secs(of_nats.reconnect_window),
        }),
        answers: !of_nats.never_answer,
        report: of_nats.report.filter(|seconds| *seconds > 0).map(Duration::from_secs),
    }
}

fn read_key(arguments: &Arguments) -> Result<Secret, Trouble> {
    if let Some(key) = &arguments.key {
        let fix = "give one of worker_keys of that function and version";
        return Secret::new(key).map_err(|why| Trouble::new("--key is no key", why, fix));
    }
    let path = arguments.key_file.as_deref().unwrap_or(Path::new(""));
    let name = path.display();
    let mut text = String::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(MAX_KEY_FILE).read_to_string(&mut text))
        .map_err(|error| {
            let fix = "name a file that this user can read";
            Trouble::new(format!("--key-file {name} cannot be read"), error, fix)
        })?;
    Secret::new(text.trim()).map_err(|why| {
        let fix = "write one of worker_keys of that function and version into it, and nothing else";
        Trouble::new(format!("--key-file {name} has no key"), why, fix)
    })
}

/// When it is dropped, lines that wait are written, unless their reader stands still.
struct LogGuard {
    lines: NonBlocking,
    last: LastLines,
}

impl Drop for LogGuard {
    fn drop(&mut self) {
        self.last.wait(&mut self.lines);
    }
}

/// JSON lines, or readable ones on a terminal, written by a thread of their own: a full pipe
/// must not stop the tunnels.
fn start_log(level: Level) -> LogGuard {
    let readable = io::stderr().is_terminal();
    let form = if readable { Form::Text } else { Form::Json };
    let (log, last) = ringway_stdio::Log::new(form);
    let (writer, guard) = tracing_appender::non_blocking(log);
    // Its drop panics, or waits for ever, when its queue is full and stdout cannot be written.
    let _kept = std::mem::ManuallyDrop::new(guard);
    let guard = LogGuard { lines: writer.clone(), last };
    let log = tracing_subscriber::fmt().with_max_level(level).with_target(false);
    // What the library of NATS says below a warning has whole ids in it.
    let shown = LevelFilter::from_level(level);
    let shown = Targets::new()
        .with_default(shown.min(LevelFilter::WARN))
        .with_targets([("ringway_tools", shown), ("ringway_worker", shown)]);
    if readable {
        // What others said is shown without what would move the cursor; in JSON the stream does it.
        let values = debug_fn(|writer, field, value| {
            if field.name() != "message" {
                write!(writer, "{field}=")?;
            }
            write!(Escaping(writer), "{value:?}")
        });
        log.fmt_fields(values.delimited(" ")).with_writer(writer).finish().with(shown).init();
    } else {
        log.json().flatten_event(true).with_writer(writer).finish().with(shown).init();
    }
    guard
}
