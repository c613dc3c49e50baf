//! `ringway-stand-in`: NVIDIA's API, token endpoint and rate limiter for tests, and what NVIDIA's
//! control plane makes in NATS.
// The macros of std panic when nobody reads; those of `ringway-stdio` do not.
#![deny(clippy::print_stdout, clippy::print_stderr)]

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};
use nkeys::KeyPair;
use ringway_tools::nats::Credentials;
use ringway_tools::stand_in::streams::Shape;
use ringway_tools::stand_in::{self, Addresses};

/// Plays what NVIDIA does not publish as a server, for tests.
#[derive(Debug, Parser)]
#[command(name = "ringway-stand-in")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// API, token endpoint, rate limiter and the responder of NATS, as a TOML file says.
    Serve {
        /// The file; it is read again when it has changed.
        script: PathBuf,
    },
    /// The request stream of a version and its consumer, as the control plane makes them.
    MakeStreams(Box<Streams>),
    /// A new key: prints its seed and its public key.
    MakeNkey {
        /// Whom the key is for.
        kind: KeyKind,
    },
}

#[derive(Debug, Args)]
struct Streams {
    /// The server, like nats://127.0.0.1:4222; several with commas.
    #[arg(long, value_name = "URL")]
    nats: String,
    #[command(flatten)]
    credentials: Credentials,
    /// The region.
    #[arg(long, default_value = "ncp")]
    region: String,
    /// The function's version.
    #[arg(long, value_name = "ID")]
    version: String,
    /// Most messages in the stream.
    #[arg(long, value_name = "N", default_value_t = 100_000)]
    messages: i64,
    /// Most bytes in the stream; -1: no limit.
    #[arg(long, value_name = "N", default_value_t = -1, allow_negative_numbers = true)]
    bytes: i64,
    /// Copies; a single server takes 1 only.
    #[arg(long, value_name = "N", default_value_t = 3)]
    replicas: usize,
    /// A tag of the servers that may have it, like dc:ncp. May be given more than once.
    #[arg(long, value_name = "TAG")]
    placement: Vec<String>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum KeyKind {
    /// Who connects.
    User,
    /// Who signs for whom.
    Account,
}

fn main() -> ExitCode {
    let command = ringway_cli::with_version(Arguments::command(), None);
    let read = Arguments::from_arg_matches(&command.get_matches());
    let arguments = read.unwrap_or_else(|error| error.exit());
    ringway_stdio::shield();
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let done =
        runtime.map_err(Into::into).and_then(|runtime| runtime.block_on(run(arguments.command)));
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            ringway_stdio::complain(&format!("error: {error}"));
            ExitCode::FAILURE
        }
    }
}

async fn run(command: Command) -> Result<(), async_nats::Error> {
    match command {
        Command::Serve { script } => stand_in::play(script, say).await,
        Command::MakeStreams(streams) => {
            let servers = ringway_tools::nats::servers(&streams.nats)?;
            let options = streams.credentials.options(&servers).await?;
            let client = options.name("ringway-stand-in").connect(servers).await?;
            let shape = Shape {
                region: streams.region,
                version: streams.version,
                messages: streams.messages,
                bytes: streams.bytes,
                replicas: streams.replicas,
                placement: streams.placement,
            };
            stand_in::streams::make(client, shape).await
        }
        Command::MakeNkey { kind } => {
            let pair = match kind {
                KeyKind::User => KeyPair::new_user(),
                KeyKind::Account => KeyPair::new_account(),
            };
            ringway_stdio::show(&format!("{}\n{}\n", pair.seed()?, pair.public_key()))?;
            Ok(())
        }
    }
}

/// The line that tests wait for.
fn say(at: Addresses) -> std::io::Result<()> {
    let Addresses { api, token, limiter, admin } = at;
    ringway_stdio::show(&format!(
        "ready api={api} token={token} limiter={limiter} admin={admin}\n"
    ))?;
    Ok(())
}
