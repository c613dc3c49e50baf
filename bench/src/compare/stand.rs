//! Starts one peer with the endpoint behind it, runs the load, and ends all of it.

use std::fs::{self, File};
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::peer::{Behind, Names, Peer};
use super::shape::Shape;
use super::{CLIENT_KEY, FUNCTION, Request, VERSION, WORKER_KEY, is_direct};
use crate::load::Outcome;
use crate::sys;

/// How long a peer may take to be ready.
const START_LIMIT: Duration = Duration::from_secs(10);
/// How long a run may take beyond its seconds: set-up, end, and a margin.
const RUN_MARGIN: Duration = Duration::from_secs(45);
/// How often a start or an end is looked for.
const LOOK: Duration = Duration::from_millis(5);

/// Every name a template or a start line may use.
pub const NAMES: [&str; 17] = [
    "bench",
    "ringway",
    "dir",
    "client",
    "client_host",
    "client_port",
    "backend",
    "backend_host",
    "backend_port",
    "worker",
    "admin",
    "client_key",
    "worker_key",
    "function",
    "version",
    "streams",
    "cpu",
];

/// What all runs share.
#[derive(Debug)]
pub struct Stand {
    bench: PathBuf,
    ringway: PathBuf,
    out: PathBuf,
    seconds: f64,
    warm_up: f64,
    proxy_cpu: usize,
    load_cpu: usize,
}

/// A child process with its group; dropping it ends them.
struct Running {
    child: Child,
    log: PathBuf,
}

impl Drop for Running {
    fn drop(&mut self) {
        sys::end_group(self.child.id());
        // It was killed: there is nothing to learn from how it ended.
        let _ = self.child.wait();
    }
}

impl Stand {
    /// Finds the programs; `out` gets a folder for each run's files.
    pub fn new(request: &Request, out: &Path) -> io::Result<Self> {
        let bench = std::env::current_exe()?;
        let beside = bench.with_file_name("ringway");
        Ok(Self {
            ringway: request.ringway.clone().unwrap_or(beside),
            bench,
            out: out.canonicalize()?,
            seconds: request.seconds,
            warm_up: request.warm_up,
            proxy_cpu: request.proxy_cpu,
            load_cpu: request.load_cpu,
        })
    }

    /// The names known before a run.
    pub fn programs(&self) -> Names {
        let text = |path: &Path| path.display().to_string();
        [("bench", text(&self.bench)), ("ringway", text(&self.ringway))].into()
    }

    /// One run of `peer` with `shape`. The text of an error says why it does not count.
    pub fn run(&self, peer: &Peer, shape: &Shape) -> Result<Outcome, String> {
        let dir = self.out.join(shape.name).join(&peer.name);
        fs::create_dir_all(&dir).map_err(|e| format!("{}: {e}", dir.display()))?;
        self.run_in(&dir, peer, shape).map_err(|e| e.to_string())
    }

    fn run_in(&self, dir: &Path, peer: &Peer, shape: &Shape) -> io::Result<Outcome> {
        let [client, backend, worker, admin] = free_addresses()?;
        let mut names = self.programs();
        names.extend([
            ("dir", dir.display().to_string()),
            ("client", client.to_string()),
            ("client_host", client.ip().to_string()),
            ("client_port", client.port().to_string()),
            ("backend", backend.to_string()),
            ("backend_host", backend.ip().to_string()),
            ("backend_port", backend.port().to_string()),
            ("worker", worker.to_string()),
            ("admin", admin.to_string()),
            ("client_key", CLIENT_KEY.to_owned()),
            ("worker_key", WORKER_KEY.to_owned()),
            ("function", FUNCTION.to_owned()),
            ("version", VERSION.to_owned()),
            ("streams", shape.streams.to_string()),
            ("cpu", self.proxy_cpu.to_string()),
        ]);
        let start = peer.render(dir, &names)?;
        let bench = self.bench.display().to_string();
        let listening = [bench.clone(), "backend".into(), "--listen".into(), backend.to_string()];
        let polling = [
            ["--gateway", &format!("http://{worker}")],
            ["--key", WORKER_KEY],
            ["--function", FUNCTION],
            ["--version", VERSION],
        ];
        let mut polling: Vec<String> = polling.concat().into_iter().map(str::to_owned).collect();
        polling.splice(0..0, [bench, "worker".to_owned()]);
        // A backend is there before the peer, a worker comes after it.
        let (mut proxy, mut end) = (None, None);
        if peer.behind == Behind::Backend {
            end = Some(self.start(dir, "endpoint", &listening, self.load_cpu)?.by_line("ready ")?);
        }
        if !is_direct(peer) {
            let running = self.start(dir, "proxy", &start, self.proxy_cpu)?;
            proxy = Some(match &peer.ready {
                Some(line) => running.by_line(line)?,
                None => running.by_port(client)?,
            });
        }
        if peer.behind == Behind::Worker {
            end = Some(self.start(dir, "endpoint", &polling, self.load_cpu)?.by_line("ready ")?);
        }
        let target = if is_direct(peer) { backend } else { client };
        self.load(dir, shape, target, &[("proxy", &proxy), ("endpoint", &end)])
    }

    /// Starts `line` on `cpu` with its output in `dir`.
    fn start(&self, dir: &Path, name: &str, line: &[String], cpu: usize) -> io::Result<Running> {
        let (program, arguments) = line.split_first().ok_or(io::ErrorKind::InvalidInput)?;
        let log = dir.join(format!("{name}.out"));
        // The child inherits the affinity of the thread that starts it.
        sys::pin(&[cpu])?;
        let child = Command::new(program)
            .args(arguments)
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(File::create(&log)?)
            .stderr(File::create(dir.join(format!("{name}.err")))?)
            .spawn();
        sys::pin(&[self.load_cpu])?;
        let child = child.map_err(|e| io::Error::new(e.kind(), format!("{program}: {e}")))?;
        Ok(Running { child, log })
    }

    fn load(
        &self,
        dir: &Path,
        shape: &Shape,
        target: SocketAddr,
        watched: &[(&str, &Option<Running>)],
    ) -> io::Result<Outcome> {
        let mut line = vec![self.bench.display().to_string(), "load".to_owned()];
        let arguments = [
            ("--target", target.to_string()),
            ("--connections", shape.connections.to_string()),
            ("--streams", shape.streams.to_string()),
            ("--message", shape.message.to_string()),
            ("--answer", shape.answer.to_string()),
            ("--seconds", self.seconds.to_string()),
            ("--warm-up", self.warm_up.to_string()),
        ];
        line.extend(arguments.into_iter().flat_map(|(name, value)| [name.to_owned(), value]));
        line.extend(shape.more.iter().map(|&argument| argument.to_owned()));
        line.extend(["--hdr".to_owned(), dir.join("latency.hlog").display().to_string()]);
        for (name, running) in watched {
            if let Some(running) = running {
                line.extend(["--watch".to_owned(), format!("{name}={}", running.child.id())]);
            }
        }
        line.push("--json".to_owned());
        let mut load = self.start(dir, "load", &line, self.load_cpu)?;
        let planned = Duration::from_secs_f64(self.warm_up + self.seconds);
        load.wait(planned)?;
        let text = fs::read_to_string(&load.log)?;
        serde_json::from_str(&text).map_err(io::Error::other)
    }
}

impl Running {
    /// Ready when a line of its output begins with `begin`.
    fn by_line(mut self, begin: &str) -> io::Result<Self> {
        self.await_start(|log| {
            fs::read_to_string(log).is_ok_and(|text| text.lines().any(|l| l.starts_with(begin)))
        })?;
        Ok(self)
    }

    /// Ready when `address` accepts a connection.
    fn by_port(mut self, address: SocketAddr) -> io::Result<Self> {
        self.await_start(|_| TcpStream::connect(address).is_ok())?;
        Ok(self)
    }

    fn await_start(&mut self, ready: impl Fn(&Path) -> bool) -> io::Result<()> {
        let until = Instant::now() + START_LIMIT;
        while !ready(&self.log) {
            if let Some(status) = self.child.try_wait()? {
                return Err(self.problem(&format!("ended at start with {status}")));
            }
            if Instant::now() > until || sys::stop_asked() {
                return Err(self.problem("was not ready in time"));
            }
            thread::sleep(LOOK);
        }
        Ok(())
    }

    /// Waits for a run that is planned to last `planned`.
    fn wait(&mut self, planned: Duration) -> io::Result<()> {
        let until = Instant::now() + planned + RUN_MARGIN;
        loop {
            match self.child.try_wait()? {
                Some(status) if status.success() => return Ok(()),
                Some(_) => return Err(self.problem("failed")),
                None if Instant::now() > until => return Err(self.problem("did not end")),
                None if sys::stop_asked() => return Err(self.problem("was stopped")),
                None => thread::sleep(LOOK * 4),
            }
        }
    }

    /// What happened, with the last line the program had to say about it.
    fn problem(&self, what: &str) -> io::Error {
        let errors = fs::read_to_string(self.log.with_extension("err")).unwrap_or_default();
        let said = errors.lines().rfind(|l| !l.trim().is_empty()).unwrap_or("no message");
        let name = self.log.file_stem().unwrap_or_default().to_string_lossy();
        io::Error::other(format!("{name} {what}: {said}"))
    }
}

/// Four loopback addresses nobody listens on. All are held until the last is known.
fn free_addresses() -> io::Result<[SocketAddr; 4]> {
    let hold = || TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0));
    let held = [hold()?, hold()?, hold()?, hold()?];
    let mut addresses = [SocketAddr::from(([127, 0, 0, 1], 0)); 4];
    for (address, listener) in addresses.iter_mut().zip(&held) {
        *address = listener.local_addr()?;
    }
    Ok(addresses)
}
