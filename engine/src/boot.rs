//! Starts a gateway from its configuration, runs it and ends it: limits of the process, ports,
//! cores, the control thread (this one), signals, drain.

mod balance;
mod control_loop;
mod core;
mod cpus;
mod files;
mod handed;
mod io;
mod manager;
mod port;
mod reload;
mod runtime;
mod tell;
#[cfg(test)]
mod tests;

use std::fmt;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use ringway_proto::id::Node;
use ringway_stdio::Trouble;
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, watch};

pub(crate) use files::Files;
use handed::Handed;

use crate::config::{Config, Source};
use crate::control::local::Policy;
use crate::control::port::Plane;
use crate::demo::{Serve, WorkerOptions};
use crate::keys::Keys;
use crate::message::ControlMessage;
use crate::net::Listener;
use crate::remote::{Among, Relay, Remote};
use crate::shard::ShardSettings;

/// Most messages from cores that wait for the control thread.
const CONTROL_MESSAGES: usize = 1024;
/// Octets kept of a client until its first request is routed. If another gateway owns the session,
/// they are sent there (design 3.22).
const KEPT_OF_CLIENTS: usize = 64 * 1024;
/// Sessions the demo's worker takes at once.
const DEMO_SLOTS: usize = 1024;

/// What `ringway dev` serves.
#[derive(Clone, Debug)]
pub enum Demo {
    /// The built-in echo function.
    Echo,
    /// A server at this address.
    Target(String),
}

/// Why a gateway did not start, or was ended by force.
#[derive(Debug)]
pub struct BootError {
    /// Exit code of the process.
    pub code: u8,
    /// What happened, why, and what to do. For people.
    pub trouble: Trouble,
}

impl BootError {
    /// Exit code for a port or io_uring that could not be had (EX_OSERR).
    const OS: u8 = 71;
    /// Exit code for a wrong configuration (EX_CONFIG).
    const CONFIG: u8 = 78;

    /// The system refuses something.
    fn os(what: impl Into<String>, why: impl fmt::Display, fix: &str) -> Self {
        Trouble::new(what, why, fix).into()
    }

    /// The configuration cannot work.
    fn config(trouble: Trouble) -> Self {
        Self { code: Self::CONFIG, trouble }
    }
}

impl From<Trouble> for BootError {
    /// A refusal of the system.
    fn from(trouble: Trouble) -> Self {
        Self { code: Self::OS, trouble }
    }
}

impl fmt::Display for BootError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.trouble.fmt(f)
    }
}

impl std::error::Error for BootError {}

/// What to do if there is no thread or no descriptor left.
const MORE_THREADS: &str =
    "raise this process's limit on threads (ulimit -u, TasksMax=, the container's limit on pids)";
const MORE_FILES: &str = "raise this process's limit on open files (ulimit -n, LimitNOFILE=)";
/// What to do about a failure that should be impossible.
const REPORT: &str = "this is a fault of Ringway's: report it, with its log";

/// Where the listeners are, with the ports the kernel picked.
#[derive(Clone, Copy, Debug)]
struct Addresses {
    client: SocketAddr,
    worker: SocketAddr,
    admin: SocketAddr,
    /// None if there is no cluster.
    cluster: Option<SocketAddr>,
}

/// Runs a gateway until it has drained, after a signal or a call of the admin port. On SIGHUP
/// `source` is read again.
///
/// # Errors
/// When a port cannot be bound, io_uring cannot be used, a thread cannot be started, or a second
/// signal ended the drain.
pub fn serve(
    mut config: Config,
    demo: Option<Demo>,
    source: Option<Source>,
) -> Result<(), BootError> {
    // These limits hold for all threads, so they are set before there are any.
    let raised = raise_files();
    Files::of_process(&config, demo.as_ref()).lay_table();
    let handed = Handed::take(&config)?;
    let _log = crate::log::start(config.log.level, config.log.keys).map_err(unlogged)?;
    tell_start(&config, raised);
    let count = core_count(&config);
    config.cores.count = Some(count);
    let policy = policy_of(&mut config);
    let files = share_files(&mut config, demo.as_ref());
    let backend = io::choose(&config)?;
    let origin = Instant::now();
    let runtime = runtime()?;
    let keys = Keys::of(&config.cluster.secrets).map(watch::Sender::new);
    let (listeners, remote) = listen(&config, count, &runtime, (handed, keys.as_ref()))?;
    let addresses = listeners.addresses()?;
    let Listeners { client, worker, cluster, admin, inherited, shares } = listeners;
    let (messages, inbox) = mpsc::channel(CONTROL_MESSAGES);
    let config = Arc::new(config);
    let identity = Identity::new(&config, remote.as_ref(), (keys.as_ref(), addresses.cluster))?;
    let reloader = reload::Reloader::new(&config, source, (policy, keys))?;
    let (entrances, changes) = (reloader.entrances(), reloader.changes());
    let mut threads = Vec::with_capacity(count);
    let cpus = config.cores.pin.then(|| cpus::for_cores(count)).flatten();
    let (cores, inboxes) = core::mailboxes(count, config.limits.mailbox)?;
    let asks = remote.as_ref().map(|remote| {
        let _context = runtime.enter();
        remote.serve(&cores)
    });
    let sockets = client.into_iter().zip(worker).zip(cluster).map(sockets).zip(inboxes);
    for (core, (sockets, inbox)) in sockets.enumerate() {
        let settings = identity.settings(&config, (core as u16, count as u16), addresses.worker)?;
        let core_config = core::CoreConfig {
            settings,
            changes: changes.clone(),
            sockets,
            inherited: inherited.clone(),
            shares,
            messages: messages.clone(),
            asks: asks.clone(),
            cores: cores.clone(),
            origin,
            cpu: cpus.as_ref().and_then(|cpus| cpus.get(core)).copied(),
            entrances: entrances.clone(),
            backend,
            files,
        };
        threads.push(core::start(core_config, inbox)?);
    }
    drop((messages, asks));
    let run = control_loop::ControlLoop {
        runtime,
        remote,
        node: identity.node,
        config: config.clone(),
        backend,
        files,
        addresses,
        cores,
        threads,
        inbox,
        admin,
        reloader,
    };
    run.run(|| {
        if let Some(demo) = &demo {
            start_demo(demo, &config, addresses.worker)?;
        }
        announce(&config, addresses, demo.as_ref());
        Ok(())
    })
}

fn unlogged(error: std::io::Error) -> BootError {
    BootError::os("nothing can be logged", error, MORE_THREADS)
}

/// A runtime for one thread.
fn runtime() -> Result<Runtime, BootError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|error| BootError::os("the control thread cannot wait", error, MORE_FILES))
}

/// The listeners of each port, one or more for each core that uses it.
struct Listeners {
    client: Vec<Vec<TcpListener>>,
    worker: Vec<Vec<TcpListener>>,
    /// For each core its listener for other gateways; no listeners if there is no cluster.
    cluster: Vec<Vec<TcpListener>>,
    admin: TcpListener,
    /// The cores' listeners that the service manager has handed down.
    inherited: Vec<Listener>,
    /// Whether several cores accept clients from one queue.
    shares: bool,
}

impl Listeners {
    fn addresses(&self) -> Result<Addresses, BootError> {
        let address = |listener: Option<&TcpListener>| {
            let address = listener.map(TcpListener::local_addr).transpose();
            let none = || BootError::os("a port is not known", "its socket has no address", REPORT);
            address.ok().flatten().ok_or_else(none)
        };
        Ok(Addresses {
            client: address(self.client.iter().flatten().next())?,
            worker: address(self.worker.iter().flatten().next())?,
            admin: address(Some(&self.admin))?,
            cluster: self
                .cluster
                .iter()
                .flatten()
                .next()
                .map(|own| address(Some(own)))
                .transpose()?,
        })
    }
}

/// One core's listeners.
fn sockets(
    ((client, worker), cluster): ((Sockets, Sockets), Sockets),
) -> Vec<(Listener, TcpListener)> {
    let client = client.into_iter().map(|socket| (Listener::Client, socket));
    let worker = worker.into_iter().map(|socket| (Listener::Worker, socket));
    let cluster = cluster.into_iter().map(|socket| (Listener::Cluster, socket));
    client.chain(worker).chain(cluster).collect()
}

/// The listeners of one port that a core has.
type Sockets = Vec<TcpListener>;

/// Opens the ports that were not handed down, and starts the connection to a remote control plane
/// if there is one. The worker port comes last: before that the work of an earlier process at this
/// port is taken back.
fn listen(
    config: &Config,
    count: usize,
    runtime: &Runtime,
    (handed, keys): (Handed, Option<&watch::Sender<Arc<Keys>>>),
) -> Result<(Listeners, Option<Remote>), BootError> {
    let listen = |handed: Vec<TcpListener>, name, address, count| match handed.is_empty() {
        true => port::listen(name, address, count).map_err(|error| error.trouble()),
        false => Ok(handed),
    };
    if handed.count() > 0 {
        let Handed { client, worker, admin } = &handed;
        let (client, worker, admin) = (client.len(), worker.len(), admin.len());
        tracing::info!(client, worker, admin, "listening on sockets that were handed down");
    }
    let shares = (1..count).contains(&handed.client.len());
    let own = [(Listener::Client, &handed.client), (Listener::Worker, &handed.worker)];
    let own = own.into_iter().filter(|(_, sockets)| !sockets.is_empty());
    let inherited: Vec<Listener> = own.map(|(listener, _)| listener).collect();
    let client =
        handed::deal(listen(handed.client, "client", config.listen.client, count)?, count)?;
    let admin = listen(handed.admin, "admin", config.listen.admin, 1)?.into_iter().next();
    let admin =
        admin.ok_or_else(|| BootError::os("there is no admin port", "it has no socket", REPORT))?;
    let told = admin
        .local_addr()
        .map_err(|error| BootError::os("the admin port is not known", error, REPORT))?;
    let (cluster, among) = listen_to_others(config, count, (told, keys))?;
    let opens = !inherited.contains(&Listener::Worker);
    let remote = start_remote(config, runtime, (opens, among))?;
    let worker =
        handed::deal(listen(handed.worker, "worker", config.listen.worker, count)?, count)?;
    Ok((Listeners { client, worker, cluster, admin, inherited, shares }, remote))
}

/// The listeners for other gateways, if there is a cluster, and what those gateways learn of them.
fn listen_to_others(
    config: &Config,
    count: usize,
    (admin, keys): (SocketAddr, Option<&watch::Sender<Arc<Keys>>>),
) -> Result<(Vec<Vec<TcpListener>>, Option<Among>), BootError> {
    let none = || (0..count).map(|_| Vec::new()).collect();
    let Some(keys) = keys else { return Ok((none(), None)) };
    let cluster = &config.cluster;
    let sockets =
        port::listen("cluster", cluster.listen, count).map_err(|error| error.trouble())?;
    // A socket that listens has an address.
    let port = sockets.first().and_then(|socket| socket.local_addr().ok());
    let own = Some(cluster.listen.ip()).filter(|ip| !ip.is_unspecified());
    let relay = Relay {
        address: cluster.address.or(own),
        port: cluster.port.or(port.map(|address| address.port())).unwrap_or_default(),
    };
    let dealt = handed::deal(sockets, count)?;
    let admin = told_to_others(admin, relay);
    Ok((dealt, Some(Among { relay, admin, keys: keys.subscribe() })))
}

/// Where other gateways reach the admin port, unless it is only for this machine.
fn told_to_others(admin: SocketAddr, relay: Relay) -> Option<Relay> {
    let own = Some(admin.ip()).filter(|ip| !ip.is_unspecified());
    // Several gateways on one machine may try a cluster out.
    let near = relay.address.is_some_and(|address| address.is_loopback());
    let address = own.or(relay.address);
    (near || !admin.ip().is_loopback()).then_some(Relay { address, port: admin.port() })
}

/// Logs which node of a cluster this is.
fn tell_node(node: Node, config: &Config, listens: Option<SocketAddr>) {
    if let Some(listens) = listens {
        let secrets = config.cluster.secrets.len();
        tracing::info!(%node, %listens, secrets, "this gateway is a node");
    }
}

/// Writes the log's first line: which mode, and why.
fn tell_start(config: &Config, raised: rustix::io::Result<()>) {
    let (mode, why) = (config.control.mode, &config.control.why);
    let version = config.version.as_deref().unwrap_or(crate::VERSION);
    tracing::info!(mode = mode.name(), why, version, "starting");
    config.notes.iter().for_each(|note| tracing::info!("{note}"));
    if let Err(error) = raised {
        tracing::warn!(%error, "the limit on open files cannot be raised");
    }
}

/// Starts the connection to a remote control plane, which decides who may call, or carries work.
/// `opens` says that this process opens the worker port itself. `among` is what other gateways
/// learn of this one.
fn start_remote(
    config: &Config,
    runtime: &Runtime,
    (opens, among): (bool, Option<Among>),
) -> Result<Option<Remote>, BootError> {
    let Some(settings) = &config.control.remote else { return Ok(None) };
    let worker = config.listen.worker;
    // A predecessor's work is taken back only if this port is not another gateway's.
    if opens {
        port::state("worker", worker).map_err(|error| error.trouble())?;
    }
    let started = Remote::start(settings, (worker, among), &config.functions);
    let started = runtime.block_on(started);
    started.map(Some).map_err(BootError::config)
}

/// The rules of a configuration. Its host names are looked up, which blocks. Warnings go to the log.
fn policy_of(config: &mut Config) -> Arc<Policy> {
    let unknown = config.resolve();
    for warning in unknown.iter().chain(&config.warnings) {
        tracing::warn!("{warning}");
    }
    Arc::new(Policy::new(&config.tenants, &config.functions))
}

/// How many cores this configuration gives on this machine.
pub(crate) fn core_count(config: &Config) -> usize {
    config.cores.count.unwrap_or_else(cpus::auto)
}

/// What names this run of the process in ids and tokens.
struct Identity {
    node: Node,
    secret: [u8; 16],
    keys: Option<Arc<Keys>>,
    unix_micros_at_zero: u64,
}

impl Identity {
    fn new(
        config: &Config,
        remote: Option<&Remote>,
        (keys, listens): (Option<&watch::Sender<Arc<Keys>>>, Option<SocketAddr>),
    ) -> Result<Self, BootError> {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let incarnation = u16::from_ne_bytes(random()?);
        let number = config.cluster.node.unwrap_or_default();
        let alone = || Node::new(number, incarnation).expect("the configuration checks it");
        let node = remote.map_or_else(alone, Remote::node);
        tell_node(node, config, listens);
        Ok(Self {
            node,
            secret: random()?,
            keys: keys.map(|keys| keys.borrow().clone()),
            unix_micros_at_zero: u64::try_from(since.as_micros()).unwrap_or(0),
        })
    }

    fn settings(
        &self,
        config: &Arc<Config>,
        (core, cores): (u16, u16),
        worker: SocketAddr,
    ) -> Result<ShardSettings, BootError> {
        let advertise = config.control.advertise.clone();
        // If the worker listener speaks TLS, its workers do too: no other worker could use it.
        let scheme = if config.fronts.worker.tls.is_some() { "https" } else { "http" };
        let plane = |remote| if remote { Plane::Remote } else { Plane::Local };
        let remote = config.control.remote.as_ref();
        Ok(ShardSettings {
            config: config.clone(),
            plane: plane(remote.is_some_and(|remote| remote.authority.is_some())),
            dispatch: plane(remote.is_some()),
            core,
            cores,
            node: self.node,
            secret: self.secret,
            keys: self.keys.clone(),
            seed: random()?,
            generation: 0,
            unanswered: if config.cluster.relays() { KEPT_OF_CLIENTS } else { 0 },
            advertise: advertise.unwrap_or_else(|| format!("{scheme}://{worker}")),
            unix_micros_at_zero: self.unix_micros_at_zero,
            version: crate::VERSION,
            commit: crate::COMMIT,
        })
    }
}

fn random<const N: usize>() -> Result<[u8; N], BootError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|error| {
        let fix = "allow getrandom in the container's seccomp profile";
        BootError::os("the kernel gives no random numbers", error, fix)
    })?;
    Ok(bytes)
}

/// Raises the soft limit on descriptors to the hard one (contract LN-11).
fn raise_files() -> rustix::io::Result<()> {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current == limit.maximum {
        return Ok(());
    }
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit)
}

/// Bounds the connections by the descriptors that the process may have.
fn share_files(config: &mut Config, demo: Option<&Demo>) -> Files {
    let files = Files::of_process(config, demo);
    if files.are_too_few() {
        tracing::warn!("{files}; {}", Files::FIX);
    } else if !files.suffice() {
        // Few hosts have as many descriptors as the limits' defaults allow for.
        tracing::info!("{files}; {}", Files::FIX);
    }
    files.bound(&mut config.limits);
    files
}

/// What `ringway check` says of this machine's limit on open files, if it is too low.
#[must_use]
pub fn files_note(config: &Config) -> Option<String> {
    let files = Files::of_process(config, None);
    (!files.suffice()).then(|| format!("{files}; {}", Files::FIX))
}

/// The demo's thread: worker and function, on a runtime of their own.
fn start_demo(demo: &Demo, config: &Config, gateway: SocketAddr) -> Result<(), BootError> {
    let function = config.functions.first();
    let Some((function, key)) = function.and_then(|f| Some((f, f.worker_keys.first()?))) else {
        let why = "its configuration has none with a worker key";
        return Err(BootError::os("the demo has no function to serve", why, REPORT));
    };
    let runtime = runtime()?;
    let (function, version) = (function.id, function.version);
    let key = String::from_utf8_lossy(key.bytes()).into_owned();
    let demo = demo.clone();
    let work = async move {
        let serve = match demo {
            Demo::Echo => Serve::Routes(crate::demo::routes().await),
            Demo::Target(target) => {
                tokio::spawn(crate::demo::look_at(target.clone()));
                Serve::Bridge(target)
            }
        };
        let slots = DEMO_SLOTS;
        let options = WorkerOptions { gateway, key, function, version, slots, serve };
        crate::demo::Worker::run(options).await;
    };
    std::thread::Builder::new()
        .name("ringway-demo".into())
        .spawn(move || runtime.block_on(work))
        .map_err(|error| BootError::os("the demo has no thread", error, MORE_THREADS))?;
    Ok(())
}

/// The ready line, and in `dev` something to paste.
fn announce(config: &Config, addresses: Addresses, demo: Option<&Demo>) {
    let Addresses { client, worker, admin, cluster } = addresses;
    let cluster = cluster.map(|cluster| format!(" cluster={cluster}")).unwrap_or_default();
    let mut text = format!("ready client={client} worker={worker} admin={admin}{cluster}\n");
    if let (Some(Demo::Echo), Some(function)) = (demo, config.functions.first()) {
        let id = function.id;
        text += &format!(
            "\n# with grpcurl:\n\
             grpcurl -plaintext -H 'authorization: Bearer dev-key' -H 'function-id: {id}' \\\n  \
             -d '{{\"payload\":\"aGVsbG8=\"}}' {client} ringway.echo.v1.Echo/Unary\n\
             \n# with Python (python3 -m venv .v && .v/bin/pip install grpcio, then \
             .v/bin/python3); b'\\n\\x05hello' is the message {{payload: \
             \"hello\"}}:\n\
             python3 -c \"import grpc; print(grpc.insecure_channel('{client}').unary_unary(\\\n  \
             '/ringway.echo.v1.Echo/Unary')(b'\\\\n\\\\x05hello', metadata=[\\\n  \
             ('authorization', 'Bearer dev-key'), ('function-id', '{id}')]))\"\n",
        );
    } else if let (Some(Demo::Target(target)), Some(function)) = (demo, config.functions.first()) {
        text += &format!(
            "\n# calls to {client} reach {target} with these two headers:\n\
             # authorization: Bearer dev-key\n# function-id: {}\n",
            function.id
        );
    }
    if let Err(error) = ringway_stdio::print(&text) {
        // The gateway can serve without the ready line.
        tracing::warn!(%error, "the ready line could not be written to stdout");
    }
}

pub use control_loop::Signal;
pub use io::backend_here;
pub(crate) use io::try_io;
pub(crate) use port::{BACKLOG, PortError, state as port_state};

/// The cores' messages.
type Inbox = mpsc::Receiver<ControlMessage>;
