//! Arguments in, exit code out.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};
use ringway::boot::{self, Demo};
use ringway::config::{Config, MAX_CORES};

/// Exit code for wrong arguments; clap's own.
const USAGE: u8 = 2;
/// Exit code for a wrong configuration (EX_CONFIG).
const CONFIG: u8 = 78;

/// Gateway for NVIDIA Cloud Functions sessions.
#[derive(Debug, Parser)]
#[command(version, propagate_version = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the gateway.
    Serve {
        /// The configuration file (TOML or YAML).
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        #[command(flatten)]
        engine: Engine,
    },
    /// Run a gateway on this machine, with a function and a worker: for trying it out.
    Dev {
        /// Serve this server instead of the built-in echo function.
        #[arg(long, value_name = "HOST:PORT")]
        target: Option<String>,
        /// Where clients connect; port 0 takes a free one.
        #[arg(long, value_name = "ADDR")]
        client: Option<SocketAddr>,
        /// Where workers connect.
        #[arg(long, value_name = "ADDR")]
        worker: Option<SocketAddr>,
        /// Metrics, health, sessions.
        #[arg(long, value_name = "ADDR")]
        admin: Option<SocketAddr>,
        #[command(flatten)]
        engine: Engine,
    },
    /// Read a configuration file and print everything that is wrong with it.
    Check {
        /// The configuration file (TOML or YAML).
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
}

#[derive(Clone, Copy, Debug, Args)]
struct Engine {
    /// Data cores; without it the configuration's, or as many as there is CPU time for.
    #[arg(long, value_name = "N")]
    cores: Option<usize>,
    /// What drives a core.
    #[arg(long, value_enum, default_value_t = Io::Auto)]
    io: Io,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Io {
    /// The best this machine allows.
    Auto,
    /// io_uring.
    Ring,
    /// epoll (not supported yet).
    Epoll,
}

impl Engine {
    /// Holds the arguments against what this build can do.
    fn check(self) -> Result<(), String> {
        if self.io == Io::Epoll {
            return Err("--io epoll is not supported yet: use --io ring".into());
        }
        match self.cores {
            Some(cores) if !(1..=MAX_CORES).contains(&cores) => {
                Err(format!("--cores {cores}: write a number from 1 to {MAX_CORES}"))
            }
            _ => Ok(()),
        }
    }
}

fn main() -> ExitCode {
    match Arguments::parse().command {
        Command::Serve { config, engine } => {
            let load = || Config::load_patiently(&config).map_err(|problems| problems.to_string());
            run(engine, load, (None, Some(config.clone())))
        }
        Command::Dev { target, client, worker, admin, engine } => {
            let demo = target.map_or(Demo::Echo, Demo::Target);
            let config = || {
                let mut config = Config::dev();
                config.listen.client = client.unwrap_or(config.listen.client);
                config.listen.worker = worker.unwrap_or(config.listen.worker);
                config.listen.admin = admin.unwrap_or(config.listen.admin);
                Ok(config)
            };
            run(engine, config, (Some(demo), None))
        }
        Command::Check { config } => match Config::load(&config) {
            Ok(read) => {
                for warning in &read.warnings {
                    println!("{}: warning: {warning}", config.display());
                }
                println!("{}: no problem found", config.display());
                ExitCode::SUCCESS
            }
            Err(problems) => {
                print!("{problems}");
                ExitCode::from(CONFIG)
            }
        },
    }
}

fn run(
    engine: Engine,
    config: impl FnOnce() -> Result<Config, String>,
    (demo, source): (Option<Demo>, Option<PathBuf>),
) -> ExitCode {
    if let Err(why) = engine.check() {
        eprintln!("error: {why}");
        return ExitCode::from(USAGE);
    }
    let config = match config() {
        Ok(mut config) => {
            config.cores.count = engine.cores.or(config.cores.count);
            config
        }
        Err(problems) => {
            eprint!("{problems}");
            return ExitCode::from(CONFIG);
        }
    };
    match boot::serve(config, demo, source) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(error.code)
        }
    }
}
