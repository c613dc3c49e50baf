//! Starts one peer with the endpoint behind it, runs the load, and ends all of it.

use std::fs::{self, File};
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::count::Counter;
use super::hold;
use super::keys::Keys;
use super::peer::{Behind, Names, Peer, WORKER_PROGRAM, fill};
use super::programs::Programs;
use super::shape::{Figure, Shape, Work};
use super::{CLIENT_KEY, FUNCTION, Request, VERSION, WORKER_KEY, is_direct};
use crate::load::Outcome;
use crate::sys;

/// How long a peer may take to be ready.
const START_LIMIT: Duration = Duration::from_secs(10);
/// How long a run may take beyond its seconds: set-up, end, and a margin.
const RUN_MARGIN: Duration = Duration::from_secs(45);
/// Seconds that the generator's check counts at most, three times.
pub const CHECK: f64 = 1.0;
/// How often a start or an end is looked for.
const LOOK: Duration = Duration::from_millis(5);

/// Every name a template or a start line may use, besides those of programs.
pub const NAMES: [&str; 20] = [
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
    "connections",
    "streams",
    "cpu",
    "cert",
    "key",
    "pair",
    "ca",
];

/// Variable that tells the counting library where to count.
const COUNTS: &str = "RINGWAY_BENCH_COUNTS";

/// What all runs share.
#[derive(Debug)]
pub struct TestBed {
    bench: PathBuf,
    /// Names that are the same for every run.
    names: Names,
    /// The library that counts allocations, or why there is none.
    counting: Result<PathBuf, String>,
    out: PathBuf,
    seconds: f64,
    warm_up: f64,
    proxy_cpu: usize,
    load_cpu: usize,
}

/// What one run showed.
#[derive(Debug, Default)]
pub struct Seen {
    /// What the generator reported, if it ran.
    pub outcome: Option<Outcome>,
    /// The figure, where it is not the generator's to know.
    pub figure: Option<f64>,
}

/// A child process with its group; dropping it ends them.
struct Running {
    child: Child,
    log: PathBuf,
}

impl Drop for Running {
    fn drop(&mut self) {
        sys::end_group(self.child.id());
        // The process was killed, so its exit status says nothing.
        let _ = self.child.wait();
    }
}

impl TestBed {
    /// Prepares what every run needs; `out` gets a folder for each run's files.
    pub fn new(
        request: &Request,
        programs: &mut Programs,
        shapes: &[Shape],
        out: &Path,
    ) -> io::Result<Self> {
        let out = out.canonicalize()?;
        let keys = Keys::make(&out)?;
        let counts = shapes.iter().any(|shape| shape.figure == Figure::Allocations);
        let counting = if counts {
            programs.obtain("allocations")
        } else {
            Err("nothing counts allocations".to_owned())
        };
        let text = |path: &Path| path.display().to_string();
        let mut names: Names =
            programs.paths().map(|(name, path)| (name.to_owned(), text(path))).collect();
        let cpu = request.proxy_cpu.to_string();
        let known = [
            ("client_key", CLIENT_KEY.to_owned()),
            ("worker_key", WORKER_KEY.to_owned()),
            ("function", FUNCTION.to_owned()),
            ("version", VERSION.to_owned()),
            ("cpu", cpu),
            ("cert", text(&keys.cert)),
            ("ca", text(&keys.cert)),
            ("key", text(&keys.key)),
            ("pair", text(&keys.pair)),
        ];
        names.extend(known.map(|(name, value)| (name.to_owned(), value)));
        Ok(Self {
            bench: std::env::current_exe()?,
            names,
            counting,
            out,
            seconds: request.seconds,
            warm_up: request.warm_up,
            proxy_cpu: request.proxy_cpu,
            load_cpu: request.load_cpu,
        })
    }

    /// The generator with nothing but its endpoint, both where they are in the runs.
    pub fn check(&self) -> Result<Outcome, String> {
        let line = ["load", "--check", "--json"].into_iter();
        let mut line: Vec<String> = line.map(str::to_owned).collect();
        line.insert(0, self.bench.display().to_string());
        let seconds = self.seconds.min(CHECK);
        let times = [("--seconds", seconds), ("--warm-up", self.warm_up)];
        line.extend(times.into_iter().flat_map(|(name, s)| [name.to_owned(), s.to_string()]));
        let planned = Duration::from_secs_f64(3.0 * (self.warm_up + seconds));
        let checked = || {
            let mut load = self.start(&self.out, "check", &line, self.load_cpu)?;
            load.wait(planned)?;
            let text = fs::read_to_string(&load.log)?;
            serde_json::from_str(&text).map_err(io::Error::other)
        };
        checked().map_err(|error| error.to_string())
    }

    /// From now on `name` stands for `value` in what shapes add to the generator's arguments.
    pub fn set(&mut self, name: &str, value: String) {
        self.names.insert(name.to_owned(), value);
    }

    /// The folder of a shape's runs with a peer.
    pub fn folder(&self, peer: &Peer, shape: &Shape) -> PathBuf {
        self.out.join(shape.name).join(&peer.name)
    }

    /// One run of `peer` with `shape`. The text of an error says why it does not count.
    pub fn run(&self, peer: &Peer, shape: &Shape, round: usize) -> Result<Seen, String> {
        let dir = self.folder(peer, shape);
        fs::create_dir_all(&dir).map_err(|e| format!("{}: {e}", dir.display()))?;
        self.run_in(&dir, peer, shape, round).map_err(|e| e.to_string())
    }

    fn run_in(&self, dir: &Path, peer: &Peer, shape: &Shape, round: usize) -> io::Result<Seen> {
        let places = Places::free()?;
        let mut names = self.names.clone();
        names.extend(places.names());
        let own = [
            ("dir", dir.display().to_string()),
            ("connections", shape.connections.to_string()),
            ("streams", shape.streams.to_string()),
        ];
        names.extend(own.map(|(name, value)| (name.to_owned(), value)));
        let start = peer.render(dir, &names)?;
        let bench = self.bench.display().to_string();
        let listen = places.backend.to_string();
        let listening = [bench.clone(), "backend".into(), "--listen".into(), listen];
        // A backend is there before the peer, a worker comes after it.
        let (mut proxy, mut end) = (None, None);
        if peer.behind != Behind::Worker {
            end = Some(self.start(dir, "endpoint", &listening, self.load_cpu)?.by_line("ready ")?);
        }
        let counts = dir.join("counts");
        if !is_direct(peer) {
            let mut environment = vec![];
            if shape.figure == Figure::Allocations {
                let library = self.counting.clone().map_err(io::Error::other)?;
                environment = vec![("LD_PRELOAD", library), (COUNTS, counts.clone())];
            }
            let running = self.start_in(dir, "proxy", &start, self.proxy_cpu, environment)?;
            proxy = Some(match &peer.ready {
                Some(line) => running.by_line(line)?,
                None => running.by_port(places.client)?,
            });
        }
        if peer.behind == Behind::Worker {
            let polling = polling(bench, places.worker);
            end = Some(self.start(dir, "endpoint", &polling, self.load_cpu)?.by_line("ready ")?);
        }
        // New sessions wait until it polls.
        let mut joins = None;
        if peer.behind == Behind::Program {
            let program = names.get(WORKER_PROGRAM).cloned().unwrap_or_default();
            let line = joining(program, &places);
            joins = Some(self.start(dir, "worker", &line, self.load_cpu)?);
        }
        let target = if is_direct(peer) { places.backend } else { places.client };
        if shape.work == Work::Hold {
            let pid = proxy.as_ref().map(|running| running.child.id());
            let pid = pid.ok_or_else(|| io::Error::other("nothing holds the connections"))?;
            let figure = Some(hold::run(target, shape.connections, pid)?);
            return Ok(Seen { outcome: None, figure });
        }
        let counter = (shape.figure == Figure::Allocations).then(|| Counter::watch(counts));
        let admin = peer.admin.then_some(places.admin);
        let line = self.load_line(shape, target, admin, &names);
        let hdr = dir.join(format!("latency-{round}.hlog"));
        let watched = [("proxy", &proxy), ("endpoint", &end), ("worker", &joins)];
        let outcome = self.load(dir, line, &hdr, &watched)?;
        let counted = counter.map(|counter| counter.rate(self.seconds)).transpose()?;
        let figure = counted.map(|rate| rate / outcome.calls_per_s.max(1.0));
        Ok(Seen { outcome: Some(outcome), figure })
    }

    /// Starts `line` on `cpu` with its output in `dir`.
    fn start(&self, dir: &Path, name: &str, line: &[String], cpu: usize) -> io::Result<Running> {
        self.start_in(dir, name, line, cpu, vec![])
    }

    /// As [`TestBed::start`], with more in its environment.
    fn start_in(
        &self,
        dir: &Path,
        name: &str,
        line: &[String],
        cpu: usize,
        environment: Vec<(&str, PathBuf)>,
    ) -> io::Result<Running> {
        let (program, arguments) = line.split_first().ok_or(io::ErrorKind::InvalidInput)?;
        let log = dir.join(format!("{name}.out"));
        // The child inherits the affinity of the thread that starts it.
        sys::pin(&[cpu])?;
        let child = Command::new(program)
            .args(arguments)
            .envs(environment)
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(File::create(&log)?)
            .stderr(File::create(dir.join(format!("{name}.err")))?)
            .spawn();
        sys::pin(&[self.load_cpu])?;
        let child = child.map_err(|e| io::Error::new(e.kind(), format!("{program}: {e}")))?;
        Ok(Running { child, log })
    }

    fn load_line(
        &self,
        shape: &Shape,
        target: SocketAddr,
        admin: Option<SocketAddr>,
        names: &Names,
    ) -> Vec<String> {
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
        line.extend(shape.more.iter().map(|argument| fill(argument, names)));
        if let Some(admin) = admin.filter(|_| shape.figure == Figure::Messages) {
            line.extend(["--metrics".to_owned(), admin.to_string()]);
        }
        line
    }

    fn load(
        &self,
        dir: &Path,
        mut line: Vec<String>,
        hdr: &Path,
        watched: &[(&str, &Option<Running>)],
    ) -> io::Result<Outcome> {
        line.extend(["--hdr".to_owned(), hdr.display().to_string()]);
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

/// Arguments of the endpoint as a worker.
fn polling(bench: String, gateway: SocketAddr) -> Vec<String> {
    let gateway = format!("http://{gateway}");
    let arguments = ["--gateway", &gateway, "--key", WORKER_KEY, "--function", FUNCTION];
    let mut line = vec![bench, "worker".to_owned()];
    line.extend(arguments.into_iter().chain(["--version", VERSION]).map(str::to_owned));
    line
}

/// Arguments of the worker program, as its users have them.
fn joining(program: String, places: &Places) -> Vec<String> {
    let (gateway, target) = (format!("http://{}", places.worker), places.backend.to_string());
    let arguments = ["--gateway", &gateway, "--key", WORKER_KEY, "--function", FUNCTION];
    let more = ["--version", VERSION, "--target", &target, "--slots", "1024"];
    let arguments = arguments.into_iter().chain(more);
    std::iter::once(program).chain(arguments.map(str::to_owned)).collect()
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

/// Four loopback addresses nobody listens on.
#[derive(Debug, Clone, Copy)]
struct Places {
    client: SocketAddr,
    backend: SocketAddr,
    worker: SocketAddr,
    admin: SocketAddr,
}

impl Places {
    /// All are held until the last is known.
    fn free() -> io::Result<Self> {
        let hold = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
        let held = [hold()?, hold()?, hold()?, hold()?];
        let [client, backend, worker, admin] = held.each_ref().map(TcpListener::local_addr);
        Ok(Self { client: client?, backend: backend?, worker: worker?, admin: admin? })
    }

    fn names(&self) -> Names {
        let all = [("client", self.client), ("backend", self.backend)];
        let parts = all.into_iter().flat_map(|(name, address)| {
            [
                (name.to_owned(), address.to_string()),
                (format!("{name}_host"), address.ip().to_string()),
                (format!("{name}_port"), address.port().to_string()),
            ]
        });
        let others = [("worker", self.worker), ("admin", self.admin)];
        parts.chain(others.map(|(name, address)| (name.to_owned(), address.to_string()))).collect()
    }
}
