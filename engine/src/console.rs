//! `ringway sessions` and `ringway top`: what the admin port shows, for people at a terminal.

mod bundle;
mod drain;
mod level;
mod port;
mod screen;
mod table;
mod timeline;
mod top;
mod view;

use std::io;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use ringway_stdio::Trouble;
use serde::Deserialize;
use serde_json::Value;

use self::port::Port;
use crate::config;
pub use bundle::{SupportBundle, support_bundle};
pub use drain::{Drain, drain};
pub use level::{LogLevel, log_level};

/// `ringway sessions`.
#[derive(Debug, Args)]
pub struct Sessions {
    #[command(flatten)]
    admin: Admin,
    /// Only sessions in this state.
    #[arg(long, value_enum)]
    state: Option<State>,
    /// Only sessions of this tenant.
    #[arg(long, value_name = "NAME")]
    tenant: Option<String>,
    /// Only sessions whose function or version has an id that begins with this.
    #[arg(long, value_name = "ID")]
    function: Option<String>,
    /// Print JSON, as the admin port gives it.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    what: Option<What>,
}

/// What to do with one session.
#[derive(Debug, Subcommand)]
enum What {
    /// Show what happened to a session, with a verdict.
    Timeline {
        /// Its request id, or at least the first eight digits.
        #[arg(value_parser = request_id)]
        id: String,
    },
    /// End a session: its tunnels close, its worker is free.
    End {
        /// Its request id, or at least the first eight digits.
        #[arg(value_parser = request_id)]
        id: String,
    },
}

/// `ringway top`.
#[derive(Debug, Args)]
pub struct Top {
    #[command(flatten)]
    admin: Admin,
    /// Time between two looks.
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = interval)]
    interval: Duration,
    /// End after this many looks.
    #[arg(long, value_name = "N")]
    frames: Option<u64>,
}

#[derive(Debug, Args)]
struct Admin {
    /// The gateway's admin port.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:10083", global = true)]
    admin: String,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum State {
    Waiting,
    Attached,
    Active,
    Parked,
    Closed,
}

/// The system refuses what a command needs, whatever it is asked for.
fn refused(what: &'static str) -> impl Fn(io::Error) -> Trouble {
    move |error| {
        let fix = "see what this process may have (`ulimit -a`), and raise what is used up";
        Trouble::new(what, error, fix)
    }
}

/// A session as the admin port tells of it. Keys that are missing are empty.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Row {
    request_id: String,
    function_id: String,
    function_version_id: String,
    tenant: String,
    state: String,
    node: String,
    core: u16,
    client_address: String,
    tunnel: String,
    streams: u32,
    bytes_in: u64,
    bytes_out: u64,
    age_ms: u64,
    close_reason: Option<String>,
    ended_at: Option<String>,
}

/// Runs `ringway sessions`.
///
/// # Errors
/// When the admin port does not answer, or knows no such session.
pub fn sessions(arguments: &Sessions) -> Result<(), Trouble> {
    let port = Port::new(&arguments.admin.admin);
    let text = blocking(async {
        match &arguments.what {
            None => list(&port, arguments).await,
            Some(What::Timeline { id }) => show(&port, id, arguments.json).await,
            Some(What::End { id }) => port.end(id).await,
        }
    })??;
    // JSON has its own escapes, so it is printed as it is.
    let print = if arguments.json { ringway_stdio::print_json } else { ringway_stdio::print };
    print(&text).map_err(ringway_cli::unprinted)
}

/// Runs `ringway top` until it is told to end.
///
/// # Errors
/// When the admin port does not answer.
pub fn top(arguments: &Top) -> Result<(), Trouble> {
    let port = Port::new(&arguments.admin.admin);
    blocking(top::run(&port, arguments.interval, arguments.frames))?
}

async fn list(port: &Port, arguments: &Sessions) -> Result<String, Trouble> {
    let mut query = form_urlencoded::Serializer::new(String::new());
    let state = arguments.state.and_then(|state| state.to_possible_value());
    if let Some(state) = &state {
        query.append_pair("state", state.get_name());
    }
    for (name, value) in [("tenant", &arguments.tenant), ("function", &arguments.function)] {
        if let Some(value) = value {
            query.append_pair(name, value);
        }
    }
    let query = query.finish();
    let mark = if query.is_empty() { "" } else { "?" };
    let sessions = port.json(&format!("/sessions{mark}{query}")).await?;
    if arguments.json {
        return Ok(pretty(&sessions));
    }
    let rows: Vec<Row> = port.read(sessions)?;
    Ok(table::of(&rows))
}

async fn show(port: &Port, id: &str, json: bool) -> Result<String, Trouble> {
    let session = port.session(id).await?;
    if json {
        return Ok(pretty(&session));
    }
    Ok(timeline::of(&port.read(session)?))
}

fn pretty(value: &Value) -> String {
    // This fails only for a map whose keys are no texts, and there is none.
    serde_json::to_string_pretty(value).unwrap_or_default() + "\n"
}

fn blocking<T>(work: impl Future<Output = T>) -> Result<T, Trouble> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(refused("connections cannot be made"))?;
    Ok(runtime.block_on(work))
}

fn request_id(text: &str) -> Result<String, String> {
    match crate::timeline::IdBegin::parse(text) {
        Some(_) => Ok(text.to_owned()),
        None => {
            Err("not a request id: write it, or at least its first eight hexadecimal digits".into())
        }
    }
}

fn a_while(text: &str) -> Result<Duration, String> {
    let second = Duration::from_secs(1);
    match config::duration(text) {
        Some(time) if (second..=86_400 * second).contains(&time) => Ok(time),
        _ => Err("not a time from 1s to 24h: write it with its unit, as in 5m".into()),
    }
}

fn interval(text: &str) -> Result<Duration, String> {
    let least = Duration::from_millis(100);
    match config::duration(text) {
        Some(time) if time >= least => Ok(time),
        _ => Err("not a time of 100ms or more: write it with its unit, as in 1s".into()),
    }
}
