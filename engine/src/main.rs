//! Arguments in, exit code out.
// The macros of std panic when nobody reads; those of `ringway-stdio` do not.
#![deny(clippy::print_stdout, clippy::print_stderr)]

use std::io::Read;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};
use ringway::boot::{self, Demo};
use ringway::config::{self, Config, Environment, MAX_CORES, Source};
use ringway::console;
use ringway::doctor;
use ringway::log::LEVELS;
use ringway_cli::{Completions, Man};
use ringway_stdio::Trouble;

/// The C library's own takes one lock for all threads.
#[cfg(target_env = "musl")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Exit code for wrong arguments; clap's own.
const USAGE: u8 = 2;
/// Exit code for an answer that could not be printed (EX_IOERR).
const OUTPUT: u8 = 74;
/// Bytes of an environment's file.
const MAX_ENVIRONMENT: u64 = 1 << 20;
/// Exit code for a wrong configuration (EX_CONFIG).
const CONFIG: u8 = 78;

/// Gateway for NVIDIA Cloud Functions sessions.
#[derive(Debug, Parser)]
#[command(name = "ringway", propagate_version = true, args_conflicts_with_subcommands = true)]
struct Arguments {
    /// Without one: `serve`.
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    serve: Serve,
}

#[derive(Clone, Debug, Args)]
struct Serve {
    /// The configuration file (TOML or YAML); environment variables override it.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    engine: Engine,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the gateway (the same as no command).
    Serve(Serve),
    /// Run a gateway on this machine, with a function and a worker: for trying it out.
    Dev {
        /// Serve this server instead of the built-in echo function.
        #[arg(long, value_name = "HOST:PORT", value_parser = ringway_cli::host_and_port)]
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
        /// What is logged, to stderr.
        #[arg(long, value_parser = level(), default_value = "info")]
        log: &'static str,
        #[command(flatten)]
        engine: Engine,
    },
    /// Check what this machine lacks, and say how to mend it; exit code 1 if it cannot serve.
    Doctor {
        /// The configuration file (TOML or YAML) that the gateway will serve.
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// Print JSON: a list of {check, status, seen, fix}.
        #[arg(long)]
        json: bool,
        /// The same as for `serve`.
        #[command(flatten)]
        engine: Engine,
    },
    /// List a running gateway's sessions, show what happened to one, or end one.
    Sessions(console::Sessions),
    /// Show a running gateway's sessions live, busiest first.
    Top(console::Top),
    /// Read the configuration, as `serve` would, and print everything that is wrong with it.
    Check {
        /// The configuration file (TOML or YAML); environment variables override it.
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
    /// Show every setting with its value and where that comes from; secrets are not shown.
    Config {
        /// The configuration file (TOML or YAML); environment variables override it.
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// Also show the settings that are not written, with their defaults.
        #[arg(long)]
        effective: bool,
        /// Print JSON: a list of {key, value, origin}.
        #[arg(long)]
        json: bool,
    },
    /// Make a configuration file of the environment of NVIDIA's gRPC proxy, and print it.
    Migrate {
        /// A file with that environment, a NAME=VALUE on each line.
        #[arg(long, value_name = "FILE")]
        from_env: PathBuf,
    },
    /// Drain a running gateway: it takes no new clients, and lets open streams finish.
    Drain(console::Drain),
    /// Change what a running gateway logs, for a while.
    LogLevel(console::LogLevel),
    /// Write one file with everything that a helper needs to know; it holds no secrets.
    SupportBundle(console::SupportBundle),
    /// Print completions for a shell.
    Completions(Completions),
    /// Print the man page, or write those of all commands into a folder.
    Man(Man),
}

#[derive(Clone, Copy, Debug, Args)]
struct Engine {
    /// Data cores; without it the configuration's, or as many as there is CPU time for.
    #[arg(long, value_name = "N", value_parser = cores)]
    cores: Option<usize>,
    /// What drives a core; without it the configuration's cores.io.
    #[arg(long, value_enum)]
    io: Option<Io>,
}

/// Reads a number of cores.
fn cores(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(cores) if (1..=MAX_CORES).contains(&cores) => Ok(cores),
        _ => Err(format!("not a number of cores: write one from 1 to {MAX_CORES}")),
    }
}

/// Reads a level of the log.
fn level() -> impl TypedValueParser<Value = &'static str> {
    let named = |text: String| LEVELS.into_iter().find(|level| *level == text);
    PossibleValuesParser::new(LEVELS).try_map(move |text| named(text).ok_or("no level of the log"))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Io {
    /// io_uring, or epoll where this machine forbids it.
    Auto,
    /// io_uring or nothing.
    Ring,
    /// epoll.
    Epoll,
}

impl Engine {
    /// An argument wins over the configuration.
    fn apply(self, config: &mut Config) {
        config.cores.count = self.cores.or(config.cores.count);
        config.cores.io = match self.io {
            None => config.cores.io,
            Some(Io::Auto) => config::Io::Auto,
            Some(Io::Ring) => config::Io::Ring,
            Some(Io::Epoll) => config::Io::Epoll,
        };
    }
}

fn main() -> ExitCode {
    ringway_stdio::shield();
    let Arguments { command, serve } = arguments();
    match command.unwrap_or(Command::Serve(serve)) {
        Command::Serve(Serve { config, engine }) => {
            let source = source(config);
            let load = || source.load_patiently().map_err(|problems| problems.to_string());
            run(engine, load, (None, Some(source.clone())))
        }
        Command::Dev { target, client, worker, admin, log, engine } => {
            let demo = target.map_or(Demo::Echo, Demo::Target);
            let config = || {
                let mut config = Config::dev();
                config.listen.client = client.unwrap_or(config.listen.client);
                config.listen.worker = worker.unwrap_or(config.listen.worker);
                config.listen.admin = admin.unwrap_or(config.listen.admin);
                config.log.level = log;
                Ok(config)
            };
            run(engine, config, (Some(demo), None))
        }
        Command::Doctor { config, json, engine } => diagnose(&source(config), json, engine),
        Command::Sessions(arguments) => ended(console::sessions(&arguments)),
        Command::Top(arguments) => ended(console::top(&arguments)),
        Command::Check { config } => check(&source(config)),
        Command::Config { config, effective, json } => {
            show_config(&source(config), effective, json)
        }
        Command::Migrate { from_env } => migrate(&from_env),
        Command::Drain(arguments) => ended(console::drain(&arguments)),
        Command::LogLevel(arguments) => ended(console::log_level(&arguments)),
        Command::SupportBundle(arguments) => ended(console::support_bundle(&arguments)),
        Command::Completions(asked) => {
            told(ringway_cli::complete(Arguments::command(), asked), ExitCode::SUCCESS)
        }
        Command::Man(asked) => {
            told(ringway_cli::manual(Arguments::command(), &asked), ExitCode::SUCCESS)
        }
    }
}

/// The arguments, unless they ask for help or the version, or are wrong: then the process ends.
fn arguments() -> Arguments {
    let io = ringway_cli::is_version_asked().then(boot::backend_here);
    let command = ringway_cli::with_version(Arguments::command(), io.as_deref());
    let read = Arguments::from_arg_matches(&command.get_matches());
    read.unwrap_or_else(|error| error.exit())
}

/// The file, if one is given, and this process's environment.
fn source(file: Option<PathBuf>) -> Source {
    Source::new(file, Environment::of_process())
}

/// Prints what is wrong with a configuration.
fn check(source: &Source) -> ExitCode {
    match source.load() {
        Ok(read) => {
            let name = source.name();
            let warning = |text: &String| format!("{name}: warning: {text}\n");
            let files = boot::files_note(&read);
            let warnings: String = read.warnings.iter().chain(&files).map(warning).collect();
            let (mode, why) = (read.control.mode.name(), &read.control.why);
            let notes: String = read.notes.iter().map(|text| format!("{name}: {text}\n")).collect();
            let text = format!("{warnings}{notes}{name}: no problem found; mode {mode}: {why}\n");
            told(ringway_stdio::print(&text), ExitCode::SUCCESS)
        }
        Err(problems) => told(ringway_stdio::print(&problems.to_string()), ExitCode::from(CONFIG)),
    }
}

/// Prints what the gateway would go by.
fn show_config(source: &Source, all: bool, json: bool) -> ExitCode {
    let shown = match source.effective() {
        Ok(shown) => shown,
        Err(problems) => {
            ringway_stdio::complain(problems.to_string().trim_end());
            return ExitCode::from(CONFIG);
        }
    };
    let written = |one: &&config::Effective| all || !one.origin.starts_with("default");
    let shown: Vec<_> = shown.iter().filter(written).collect();
    if json {
        // This fails only for a map whose keys are no texts, and there is none.
        let text = serde_json::to_string_pretty(&shown).unwrap_or_default() + "\n";
        return told(ringway_stdio::print_json(&text), ExitCode::SUCCESS);
    }
    let widest = |of: fn(&config::Effective) -> &str| {
        shown.iter().map(|one| of(one).chars().count()).max().unwrap_or(0)
    };
    let (keys, values) = (widest(|one| &one.key), widest(|one| &one.value));
    let line = |one: &&config::Effective| {
        format!("{:keys$}  {:values$}  {}\n", one.key, one.value, one.origin)
    };
    let text: String = shown.iter().map(line).collect();
    told(ringway_stdio::print(&text), ExitCode::SUCCESS)
}

/// Prints the configuration file that stands for an environment.
fn migrate(path: &Path) -> ExitCode {
    let text = std::fs::File::open(path).and_then(|file| {
        let mut text = String::new();
        file.take(MAX_ENVIRONMENT).read_to_string(&mut text)?;
        Ok(text)
    });
    let name = path.display();
    let variables =
        text.map_err(|error| error.to_string()).and_then(|text| config::environment_of(&text));
    match variables {
        Ok(variables) => {
            let (file, problems) = config::migrated(&variables, &name.to_string());
            let code = if problems == 0 { ExitCode::SUCCESS } else { ExitCode::from(CONFIG) };
            told(ringway_stdio::print(&file), code)
        }
        Err(why) => {
            let what = format!("{name} cannot be read as an environment");
            let fix = "write one NAME=VALUE on each line, as in docs/nvcf.env";
            Trouble::new(what, why, fix).complain();
            ExitCode::from(USAGE)
        }
    }
}

/// What a command came to.
fn ended(result: Result<(), Trouble>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(trouble) => {
            trouble.complain();
            ExitCode::FAILURE
        }
    }
}

/// The exit code of an answer that was to be printed: its own, unless nobody could read it.
fn told(printed: std::io::Result<()>, code: ExitCode) -> ExitCode {
    match printed {
        Ok(()) => code,
        Err(error) => {
            ringway_cli::unprinted(error).complain();
            ExitCode::from(OUTPUT)
        }
    }
}

/// Prints the doctor's report.
fn diagnose(source: &Source, json: bool, engine: Engine) -> ExitCode {
    let checks = doctor::examine(source, |config| engine.apply(config));
    let printed = if json {
        // This fails only for a map whose keys are no texts, and there is none.
        let text = serde_json::to_string_pretty(&checks).unwrap_or_default() + "\n";
        ringway_stdio::print_json(&text)
    } else {
        let text: String = checks.iter().map(|check| format!("{check}\n")).collect();
        ringway_stdio::print(&text)
    };
    let failed = checks.iter().any(|check| check.status == doctor::Status::Fail);
    told(printed, if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn run(
    engine: Engine,
    config: impl FnOnce() -> Result<Config, String>,
    (demo, source): (Option<Demo>, Option<Source>),
) -> ExitCode {
    ringway_stdio::shield_server();
    ringway_stdio::hold_hangup();
    let mut config = match config() {
        Ok(config) => config,
        Err(problems) => {
            ringway_stdio::complain(problems.trim_end());
            return ExitCode::from(CONFIG);
        }
    };
    engine.apply(&mut config);
    match boot::serve(config, demo, source) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            error.trouble.complain();
            ExitCode::from(error.code)
        }
    }
}
