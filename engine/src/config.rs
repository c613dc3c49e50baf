//! The configuration, a file and the environment: read once, checked as a whole, handed on as
//! typed values.
//!
//! Every problem is reported with its place and the fix; nobody else reads the file or the
//! environment.

mod cluster;
mod control;
mod credentials;
mod dial;
mod effective;
mod environment;
mod find;
mod listen;
mod manual;
mod migrate;
mod nats;
mod node;
mod parties;
mod problems;
mod read;
mod reference;
mod remote;
mod rules;
mod setting;
mod settings;
mod source;
mod syntax;
mod timers;
mod units;
mod yaml;

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use uuid::Uuid;

pub use cluster::Cluster;
pub use dial::Dial;
pub use effective::Effective;
pub use environment::Environment;
pub use manual::settings_as_markdown;
pub use migrate::{environment_of, migrated};
pub use problems::Problems;
pub use remote::{Api, Endpoint, Mode, Nats, NkeySource, Remote};
pub use source::Source;
pub(crate) use units::duration;

use crate::log::Keys;
use crate::tls::{Files, Pair};

/// Most data cores of one process.
pub const MAX_CORES: usize = 256;

/// Everything that was configured.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "each field is the table of its name, see `settings`")]
pub struct Config {
    pub listen: Listen,
    /// What the listeners demand of connections.
    pub fronts: Fronts,
    pub cores: Cores,
    pub control: Control,
    pub cluster: Cluster,
    pub tenants: Vec<Tenant>,
    pub functions: Vec<Function>,
    pub session: SessionSettings,
    pub drain: Drain,
    pub limits: Limits,
    pub keepalive: Keepalive,
    pub admin: Admin,
    pub log: Log,
    /// The version to report, if it is not the program's own.
    pub version: Option<Arc<str>>,
    /// Notes for the operator about things that are no fault.
    pub notes: Vec<String>,
    /// Warnings: things that the operator should change soon.
    pub warnings: Vec<String>,
    /// Settings that need a new start to change, as they are written.
    pub written: BTreeMap<String, Secret>,
}

/// Addresses of the listeners.
#[derive(Clone, Copy, Debug)]
#[expect(missing_docs, reason = "each field is the setting of its name, see `settings`")]
pub struct Listen {
    pub client: SocketAddr,
    pub worker: SocketAddr,
    pub admin: SocketAddr,
}

/// What the listeners demand of connections.
#[derive(Clone, Debug, Default)]
#[expect(missing_docs, reason = "each field is the listener of its name")]
pub struct Fronts {
    pub client: Front,
    pub worker: Front,
}

/// What one listener demands of connections.
#[derive(Clone, Debug, Default)]
#[expect(missing_docs, reason = "each field is the setting of its name, see `settings`")]
pub struct Front {
    pub tls: Option<FrontTls>,
    pub proxy_protocol: bool,
    pub trusted: Vec<IpNet>,
    /// `protocol = "h2"`: clients are sent HTTP/2's preface at once.
    pub http2: bool,
}

/// A listener's certificate.
#[derive(Clone, Debug)]
pub struct FrontTls {
    /// The paths of certificate and key.
    pub files: Files,
    /// The certificate and key as they were read.
    pub pair: Pair,
}

/// The data cores.
#[derive(Clone, Copy, Debug)]
#[expect(missing_docs, reason = "each field is the setting of its name, see `settings`")]
pub struct Cores {
    /// The number of cores; none: as many as there is CPU time for.
    pub count: Option<usize>,
    pub pin: bool,
    pub busy_poll: BusyPoll,
    pub receive_memory: usize,
    pub io: Io,
}

/// What drives the cores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Io {
    /// io_uring where the host allows it, else epoll.
    Auto,
    /// io_uring or nothing.
    Ring,
    /// epoll.
    Epoll,
}

/// How long a core spins before it sleeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BusyPoll {
    /// The core spins for this long. Zero means not at all.
    For(Duration),
    /// The core spins as long as the traffic makes that worth while.
    Auto,
    /// The core never sleeps.
    Always,
}

/// The control plane.
#[derive(Clone, Debug)]
pub struct Control {
    /// The mode.
    pub mode: Mode,
    /// Why the mode was chosen, for people.
    pub why: String,
    /// What workers dial back to; without it the worker listener's address (`local` mode).
    pub advertise: Option<String>,
    /// The remote control plane. None in `local` mode.
    pub remote: Option<Remote>,
}

/// A key. Never shown.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Secret(Box<[u8]>);

impl Secret {
    /// The key itself.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl From<&str> for Secret {
    fn from(key: &str) -> Self {
        Self(key.as_bytes().into())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// A tenant: an account whose clients call functions.
#[derive(Clone, Debug)]
pub struct Tenant {
    /// NCA id.
    pub name: String,
    /// Keys of its clients.
    pub client_keys: Vec<Secret>,
}

/// One version of a function.
#[derive(Clone, Debug)]
pub struct Function {
    /// The function.
    pub id: Uuid,
    /// The version.
    pub version: Uuid,
    /// Names of the tenants that may call it.
    pub tenants: Vec<String>,
    /// Keys of the workers that may serve it.
    pub worker_keys: Vec<Secret>,
    /// Whether the function is of the streaming kind.
    pub streaming: bool,
    /// The server that the gateway dials in place of a worker.
    pub dial: Option<Dial>,
}

/// Rules of sessions.
#[derive(Clone, Copy, Debug)]
#[expect(missing_docs, reason = "each field is the setting of its name, see `settings`")]
pub struct SessionSettings {
    pub wait: Duration,
    pub idle: Duration,
    pub scope: Scope,
    pub honour_id: HonourId,
    pub park: Park,
    pub park_window: Duration,
    pub park_yield: Duration,
    pub tell_cause: bool,
}

/// When a tunnel is kept after its client has gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Park {
    /// No tunnel is kept.
    Never,
    /// A tunnel is kept after an unclean end. For streaming functions it is kept after any end but
    /// GOAWAY.
    Auto,
    /// After any end but GOAWAY.
    Unclean,
    /// After any end.
    Always,
}

/// Which requests share a session on one client connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Whoever uses the connection.
    Connection,
    /// Credentials of one tenant.
    Tenant,
    /// One credential.
    Credential,
}

/// When a request id in a request counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HonourId {
    /// The id counts also on a connection that has a session.
    Always,
    /// The id counts as in the reference: only until the connection has a session.
    Unpinned,
}

/// The end of the process.
#[derive(Clone, Copy, Debug)]
#[expect(missing_docs, reason = "each field is the setting of its name, see `settings`")]
pub struct Drain {
    pub delay: Duration,
    pub max: Duration,
}

/// Every limit.
#[derive(Clone, Copy, Debug)]
#[expect(missing_docs, reason = "each field is the setting of its name, see `settings`")]
pub struct Limits {
    pub client_connections: usize,
    pub worker_connections: usize,
    pub handshake: Duration,
    pub header_bytes: usize,
    pub header_fields: usize,
    pub header_block: usize,
    pub continuations: u32,
    pub streams: u32,
    pub glitch_burst: u32,
    pub glitch_refill: u32,
    pub queued_answers: usize,
    pub empty_data: u32,
    pub stream_window: u32,
    pub stream_window_max: u32,
    pub connection_buffer: usize,
    pub core_buffer: usize,
    pub http1_buffer: usize,
    pub h2c_body: usize,
    pub stalled_stream: Duration,
    pub attachments: usize,
    pub dispatch_burst: u32,
    pub dispatch_rate: u32,
    pub token_tries: u32,
    pub relays: usize,
    pub pending_sessions: usize,
    pub pending_per_tenant: usize,
    pub asks: usize,
    pub asks_per_tenant: usize,
    pub work_queue: usize,
    pub polls: usize,
    pub poll_ids: usize,
    pub poll_bytes: usize,
    pub mailbox: usize,
    pub outbox: usize,
    pub parked_tunnels: usize,
    pub parked_per_tenant: usize,
    pub trace_records: usize,
}

/// How dead peers are found.
#[derive(Clone, Copy, Debug)]
#[expect(missing_docs, reason = "each field is the setting of its name, see `settings`")]
pub struct Keepalive {
    pub idle: Duration,
    pub interval: Duration,
    pub probes: u32,
    pub user_timeout: Duration,
    pub client_timeout: Duration,
    pub client_ping: Option<Duration>,
    pub client_ping_timeout: Duration,
    pub tunnel_ping: Duration,
    pub tunnel_ping_timeout: Duration,
    pub tunnel_start: Duration,
    pub tunnel_write: Duration,
}

/// The admin port.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "each field is the setting of its name, see `settings`")]
pub struct Admin {
    pub allow_remote: bool,
    pub hosts: Box<[Box<str>]>,
}

/// What is logged.
#[derive(Clone, Copy, Debug)]
#[expect(missing_docs, reason = "each field is the setting of its name, see `settings`")]
pub struct Log {
    pub access: bool,
    pub level: &'static str,
    pub keys: Keys,
}

/// `ringway dev`'s configuration, but for its addresses.
const DEV: &str = r#"
[listen]
client = "127.0.0.1:10081"
worker = "127.0.0.1:10086"
admin = "127.0.0.1:10083"
[cores]
pin = false
[session]
tell_cause = true
[[tenant]]
name = "dev"
client_keys = ["dev-key"]
[[tenant]]
name = "other"
client_keys = ["other-key"]
[[function]]
id = "11111111-1111-4111-8111-111111111111"
version = "22222222-2222-4222-8222-222222222222"
tenants = ["dev", "other"]
worker_keys = ["dev-worker-key"]
"#;

impl Config {
    /// Reads and checks a text; `name` is its name in messages, and YAML if it ends in `.yaml` or
    /// `.yml`, else TOML; `folder` is where the files that it names are looked for. The environment
    /// is left out: see [`Source`].
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn parse(text: &str, name: &str, folder: &Path) -> Result<Self, Problems> {
        rules::checked(text, folder, &Environment::default(), Problems::new(name))
    }

    /// Looks up the names of servers that are dialled; this blocks. A name that cannot be found is
    /// no fault of the configuration: it comes back as a text for the log. Calls of such a function
    /// are answered that its server cannot be reached.
    pub fn resolve(&mut self) -> Vec<String> {
        let mut unknown = Vec::new();
        if let Some(dial) = &mut self.cluster.fallback
            && let Err(error) = dial.resolve()
        {
            unknown.push(format!("cluster.fallback = \"{}\" is not found: {error}", dial.server));
        }
        for function in &mut self.functions {
            let Some(dial) = &mut function.dial else { continue };
            if let Err(error) = dial.resolve() {
                let (id, server) = (function.id, &dial.server);
                unknown.push(format!("function {id}: dial = \"{server}\" is not found: {error}"));
            }
        }
        unknown
    }

    /// What `ringway dev` runs with.
    ///
    /// # Panics
    /// Never: the text is a constant that a test reads.
    #[must_use]
    pub fn dev() -> Self {
        let mut config =
            Self::parse(DEV, "dev", Path::new("")).expect("the built-in configuration is right");
        config.control.why = "`ringway dev` has no other".into();
        config
    }
}
