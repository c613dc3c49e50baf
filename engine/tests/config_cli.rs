//! The program as it is started: exit codes, the ready line, ports, signals, the way out.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, its parts too")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::time::{Duration, Instant};

const SECOND: Duration = Duration::from_secs(1);

fn ringway(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringway"));
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn run(arguments: &[&str]) -> (i32, String, String) {
    let Output { status, stdout, stderr } = ringway(arguments).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code().unwrap(), text(stdout), text(stderr))
}

/// A file of this test's own.
fn file(name: &str, text: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("ringway-{}-{name}", std::process::id()));
    std::fs::write(&path, text).unwrap();
    path
}

const CONFIG: &str = r#"
[listen]
client = "127.0.0.1:0"
worker = "127.0.0.1:0"
admin = "127.0.0.1:0"
[cores]
count = 2
pin = false
[drain]
max = "10s"
[[tenant]]
name = "t"
client_keys = ["c"]
[[function]]
id = "11111111-1111-4111-8111-111111111111"
version = "22222222-2222-4222-8222-222222222222"
tenants = ["t"]
worker_keys = ["w"]
"#;

/// A gateway that is ended with the test, whatever happens.
struct Gateway {
    child: Child,
    stdout: BufReader<ChildStdout>,
    client: SocketAddr,
    worker: SocketAddr,
    admin: SocketAddr,
}

impl Drop for Gateway {
    fn drop(&mut self) {
        // The process has ended already in most tests.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Gateway {
    fn start(mut command: Command) -> Self {
        let mut child = command.spawn().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        if line.is_empty() {
            let mut why = String::new();
            child.stderr.take().unwrap().read_to_string(&mut why).unwrap();
            panic!("it did not start: {why}");
        }
        let address = |key: &str| {
            let word = line.split_whitespace().find_map(|word| word.strip_prefix(key)).unwrap();
            word.parse().unwrap()
        };
        assert!(line.starts_with("ready client="), "{line}");
        let (client, worker, admin) = (address("client="), address("worker="), address("admin="));
        Self { child, stdout, client, worker, admin }
    }

    fn serve(name: &str, config: &str) -> Self {
        let path = file(name, config);
        Self::start(ringway(&["serve", "--config", path.to_str().unwrap()]))
    }

    fn signal(&self, name: &str) {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args([name, &id]).status().unwrap().success());
    }

    /// The exit code, if it ends within the time.
    fn ends_within(&mut self, time: Duration) -> Option<i32> {
        let until = Instant::now() + time;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            if Instant::now() > until {
                return None;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn has_a_waiting_call(&self) {
        let until = Instant::now() + 30 * SECOND;
        while !self.get("/sessions").contains("\"waiting\"") {
            assert!(Instant::now() < until, "the call does not wait");
            std::thread::sleep(SECOND / 50);
        }
    }

    fn get(&self, path: &str) -> String {
        http(self.admin, "GET", path)
    }

    fn stderr(&mut self) -> String {
        let mut text = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut text).unwrap();
        text
    }
}

fn http(address: SocketAddr, method: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(30 * SECOND)).unwrap();
    let head = format!("{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// An HTTP/2 connection whose first stream waits for a worker that never comes.
fn waiting_call(address: SocketAddr) -> TcpStream {
    let mut stream = TcpStream::connect(address).unwrap();
    let mut block = vec![0x83, 0x86, 0x41, 1, b'x', 0x44, 2, b'/', b'x'];
    for (name, value) in [
        ("authorization", "Bearer c"),
        ("function-id", "11111111-1111-4111-8111-111111111111"),
        ("content-type", "application/grpc"),
    ] {
        block.push(0);
        for text in [name, value] {
            block.push(text.len() as u8);
            block.extend_from_slice(text.as_bytes());
        }
    }
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec();
    bytes.extend_from_slice(&[0, 0, block.len() as u8, 1, 5, 0, 0, 0, 1]);
    bytes.extend_from_slice(&block);
    stream.write_all(&bytes).unwrap();
    stream
}

#[test]
fn wrong_arguments_end_with_2() {
    for arguments in [
        &["--nonsense"][..],
        &["--cores", "1", "check"],
        &["--cores", "0"],
        &["serve", "--config"],
        &["dev", "--cores", "257"],
        &["dev", "--cores", "0"],
        &["dev", "--io", "kqueue"],
        &["dev", "--client", "nowhere"],
    ] {
        let (code, _, stderr) = run(arguments);
        assert_eq!(code, 2, "{arguments:?}: {stderr}");
    }
    assert!(run(&["dev", "--cores", "257"]).2.contains("from 1 to 256"));
}

#[test]
fn version_and_help_end_with_0() {
    for asked in [&["--version"][..], &["-V"], &["serve", "--version"]] {
        let (code, stdout, _) = run(asked);
        let lines: Vec<&str> = stdout.lines().collect();
        assert_eq!((code, lines.len()), (0, 3), "{stdout}");
        let version = concat!(env!("CARGO_PKG_VERSION"), " (commit ");
        assert!(lines[0].starts_with("ringway") && lines[0].contains(version), "{stdout}");
        assert!(lines[1].starts_with("kernel Linux "), "{stdout}");
        assert!(lines[2].starts_with("io io_uring") || lines[2].starts_with("io epoll ("));
    }
    assert_eq!(run(&["serve", "--help"]).0, 0);
}

#[test]
fn completions_and_pages_are_made_from_the_arguments() {
    for shell in ["bash", "zsh", "fish"] {
        let (code, script, stderr) = run(&["completions", shell]);
        assert_eq!((code, stderr.as_str()), (0, ""), "{shell}");
        for word in ["doctor", "timeline", "config"] {
            assert!(script.contains(word), "{shell}: {word}");
        }
    }
    assert_eq!(run(&["completions", "none"]).0, 2);
    let (code, page, _) = run(&["man"]);
    assert_eq!(code, 0);
    assert!(page.contains(".TH ringway 1") && page.contains("ringway\\-doctor"), "{page}");
    let folder = file("man", "").with_extension("d");
    assert_eq!(run(&["man", folder.to_str().unwrap()]).0, 0);
    let page = std::fs::read_to_string(folder.join("ringway-sessions-end.1")).unwrap();
    assert!(page.contains("its worker is free"), "{page}");
    assert_eq!(run(&["man", "/proc/none"]).0, 74);
}

#[test]
fn check_prints_every_problem_and_ends_with_78() {
    let good = file("good.toml", &CONFIG.replace("worker = \"127.0.0.1:0\"", ""));
    let good_text = std::fs::read_to_string(&good).unwrap();
    std::fs::write(&good, good_text + "[control]\nadvertise = \"http://h:1\"\n").unwrap();
    assert_eq!(run(&["check", "--config", good.to_str().unwrap()]).0, 0);
    let bad = file("bad.toml", &CONFIG.replace("max =", "maxx =").replace("name =", "nam ="));
    let (code, stdout, _) = run(&["check", "--config", bad.to_str().unwrap()]);
    assert_eq!(code, 78);
    assert!(stdout.contains(".toml:10: drain.maxx is not a setting"), "{stdout}");
    assert!(stdout.contains("did you mean `name`?") && stdout.contains("tenant.name is missing"));
    let (code, _, stderr) = run(&["serve", "--config", bad.to_str().unwrap()]);
    assert_eq!((code, stderr.contains("drain.maxx")), (78, true));
    assert_eq!(run(&["check", "--config", "/nowhere/x.toml"]).0, 78);
}

/// As [`run`], with nothing but these variables.
fn run_with(variables: &[(&str, &str)], arguments: &[&str]) -> (i32, String, String) {
    let mut command = ringway(arguments);
    command.env_clear().envs(variables.iter().copied()).current_dir("/");
    let Output { status, stdout, stderr } = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code().unwrap(), text(stdout), text(stderr))
}

/// What NVIDIA's chart sets, as far as it is looked at.
const CHART: [(&str, &str); 9] = [
    ("NVCF_FQDN_GRPC", "http://api.nvcf.svc:9090"),
    ("NATS_FQDN", "nats://nats.nats-system.svc:4222"),
    ("SECRETS_PATH", "/vault/secrets/secrets.json"),
    ("SELF_WORKER_FQDN", "http://grpc.nvcf.svc:10086"),
    ("POD_IP", "10.0.0.7"),
    ("ENABLE_HTTP1_CONNECT", "true"),
    ("ENABLE_HTTP3_CONNECT", "false"),
    ("GEO_DISABLED", "true"),
    ("TRACING", "none"),
];

#[test]
fn without_a_command_it_serves_and_without_anything_it_says_what_to_set() {
    for arguments in [&[][..], &["serve"], &["--cores", "1"]] {
        let (code, stdout, stderr) = run_with(&[], arguments);
        assert_eq!((code, stdout.as_str(), stderr.lines().count()), (78, "", 1), "{stderr}");
        assert!(stderr.contains("--config FILE") && stderr.contains("NVCF_FQDN_GRPC"), "{stderr}");
        let (code, checked, _) = run_with(&[], &["check"]);
        assert_eq!((code, checked), (78, stderr));
    }
    let bad = file("no-command.toml", &CONFIG.replace("max =", "maxx ="));
    let (code, _, stderr) = run_with(&[], &["--config", bad.to_str().unwrap()]);
    assert_eq!((code, stderr.contains("drain.maxx")), (78, true), "{stderr}");
}

#[test]
fn the_environment_of_the_proxy_is_checked_as_it_would_be_served() {
    let (code, stdout, _) = run_with(&CHART, &["check"]);
    assert_eq!(code, 0, "{stdout}");
    assert!(stdout.contains("mode nvcf: NVCF_FQDN_GRPC is set"), "{stdout}");
    // The gateway ends before it listens, after the log's first line.
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().to_string();
    let more = [("RINGWAY__LISTEN__CLIENT", &port[..])];
    let variables: Vec<_> = CHART.iter().copied().chain(more).collect();
    let (code, _, stderr) = run_with(&variables, &[]);
    assert_eq!(code, 71, "{stderr}");
    let start = stderr.lines().find(|line| line.contains("\"msg\":\"starting\"")).unwrap();
    let start: serde_json::Value = serde_json::from_str(start).unwrap();
    assert_eq!((&start["mode"], &start["level"]), (&"nvcf".into(), &"info".into()));
    assert_eq!(start["why"], "NVCF_FQDN_GRPC is set");
    for (name, value, said) in [
        ("GEO_DISABLED", "", "set GEO_DISABLED=true"),
        ("ENABLE_HTTP3_CONNECT", "true", "set ENABLE_HTTP3_CONNECT=false"),
        ("RINGWAY__SESION__WAIT", "1s", "did you mean RINGWAY__SESSION__WAIT?"),
        ("NATS_PRIVATE_NKEY", "SUNOTASEED", "which begins with SU"),
    ] {
        let changed = CHART.iter().copied().filter(|(other, _)| *other != name);
        let variables: Vec<_> = changed.chain([(name, value)]).collect();
        let (code, _, stderr) = run_with(&variables, &[]);
        assert_eq!((code, stderr.lines().count()), (78, 1), "{stderr}");
        assert!(stderr.starts_with(&format!("{name}: ")) && stderr.contains(said), "{stderr}");
        assert!(!stderr.contains("SUNOTASEED"), "{stderr}");
        assert_eq!(run_with(&variables, &["check"]).1, stderr);
    }
}

#[test]
fn the_environment_stands_over_the_file_also_when_it_is_read_again() {
    let path = file("over.toml", &CONFIG.replace("\"10s\"", "\"1h\""));
    let mut command = ringway(&["--config", path.to_str().unwrap()]);
    let (client, worker) = ("RINGWAY__LISTEN__CLIENT", "RINGWAY__LISTEN__WORKER__PROXY_PROTOCOL");
    command.env("RINGWAY__DRAIN__MAX", "1s").env(worker, "false").env(client, "127.0.0.2:0");
    command.env("RINGWAY__LOG__KEYS", "zap");
    let mut gateway = Gateway::start(command);
    assert_eq!(gateway.client.ip().to_string(), "127.0.0.2");
    let text = std::fs::read_to_string(&path).unwrap();
    let text = text.replace("client = \"127.0.0.1:0\"", "client = \"127.0.0.1:1\"");
    std::fs::write(&path, text.replace("count = 2", "count = 1")).unwrap();
    gateway.signal("-HUP");
    let until = Instant::now() + 30 * SECOND;
    while !gateway
        .get("/metrics")
        .contains("ringway_reloads_total{what=\"configuration\",outcome=\"ok\"} 1")
    {
        assert!(Instant::now() < until, "{}", gateway.get("/metrics"));
        std::thread::sleep(SECOND / 20);
    }
    let _call = waiting_call(gateway.client);
    gateway.has_a_waiting_call();
    gateway.signal("-TERM");
    assert_eq!(gateway.ends_within(30 * SECOND), Some(0), "drain.max is that of the environment");
    let log = gateway.stderr();
    let lines: Vec<serde_json::Value> =
        log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(lines.iter().all(|line| line["ts"].is_f64() && line["msg"].is_string()), "{log}");
    let changed = lines.iter().find(|line| line["msg"].as_str().unwrap().contains("restart"));
    assert_eq!(changed.unwrap()["keys"], "cores.count", "{log}");
}

#[test]
fn check_reads_yaml_too() {
    let text = r#"
listen: { client: "127.0.0.1:0", worker: "127.0.0.1:0", admin: "127.0.0.1:0" }
control: { advertise: "http://h:1" }
drain:
  max: 10s
tenant:
  - { name: t, client_keys: [c] }
function:
  - id: 11111111-1111-4111-8111-111111111111
    version: 22222222-2222-4222-8222-222222222222
    tenants: [t]
    worker_keys: [w]
"#;
    let good = file("good.yaml", text);
    assert_eq!(run(&["check", "--config", good.to_str().unwrap()]).0, 0);
    let bad = text.replace("max:", "maxx:").replace("[w]", "w").replace("[t]", "[u]");
    let bad = file("bad.yml", &bad);
    let (code, stdout, _) = run(&["check", "--config", bad.to_str().unwrap()]);
    assert_eq!(code, 78);
    for told in [":5: drain.maxx is not", ":11: there is no tenant \"u\"", ":12: function.worker"] {
        assert!(stdout.contains(&format!(".yml{told}")), "{told}: {stdout}");
    }
    let broken = file("broken.yaml", &text.replace("[w]", "[w"));
    let (code, stdout, _) = run(&["check", "--config", broken.to_str().unwrap()]);
    assert_eq!((code, stdout.contains("not YAML: ")), (78, true), "{stdout}");
}

#[test]
fn a_taken_port_ends_with_71_and_names_its_owner() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let free = "127.0.0.1:0";
    let (code, stdout, stderr) =
        run(&["dev", "--client", free, "--worker", &address, "--admin", free]);
    assert_eq!((code, stdout.as_str()), (71, ""));
    assert!(stderr.contains(&format!("worker address {address}")), "{stderr}");
    assert!(stderr.contains(&format!("(process {})", std::process::id())), "{stderr}");
}

#[test]
fn serve_says_ready_answers_and_ends_cleanly_on_sigterm() {
    let mut gateway = Gateway::serve("serve.toml", CONFIG);
    assert!(gateway.get("/ready").starts_with("HTTP/1.1 200 "));
    assert!(http(gateway.client, "GET", "/info").contains("nvcf-grpc-proxy"));
    assert!(http(gateway.worker, "GET", "/health").starts_with("HTTP/1.1 200 "));
    let metrics = gateway.get("/metrics");
    assert!(metrics.contains("ringway_io_backend{backend=\"io_uring\"} 2\n"));
    assert!(metrics.contains("ringway_cores{state=\"answered\"} 2\n"));
    gateway.signal("-TERM");
    assert_eq!(gateway.ends_within(30 * SECOND), Some(0));
    let log = gateway.stderr();
    for line in log.lines() {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        assert!(line["timestamp"].is_string() && line["message"].is_string(), "{line}");
    }
    assert!(log.contains("draining"), "{log}");
    let mut rest = String::new();
    gateway.stdout.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "", "one line on stdout");
}

#[test]
fn a_drain_by_the_admin_port_is_not_ready_at_once_and_ends_with_0() {
    let config = CONFIG.replace("max = \"10s\"", "delay = \"5s\"");
    let mut gateway = Gateway::serve("drain.toml", &config);
    assert!(http(gateway.admin, "POST", "/drain").starts_with("HTTP/1.1 202 "));
    assert!(gateway.get("/ready").starts_with("HTTP/1.1 503 "));
    assert!(gateway.get("/live").starts_with("HTTP/1.1 200 "));
    assert!(http(gateway.client, "GET", "/info").contains("200 OK"), "the delay runs");
    assert_eq!(gateway.ends_within(60 * SECOND), Some(0));
}

#[test]
fn open_streams_hold_a_drain_up_and_a_second_signal_ends_it() {
    for (name, code) in [("-INT", 130), ("-TERM", 143)] {
        let mut gateway = Gateway::serve(&format!("signal{code}.toml"), CONFIG);
        let _call = waiting_call(gateway.client);
        gateway.has_a_waiting_call();
        gateway.signal("-TERM");
        assert_eq!(gateway.ends_within(SECOND), None, "a stream is open");
        // What the gateway sees right behind the first is the same signal once more.
        let until = Instant::now() + 30 * SECOND;
        let ended = loop {
            gateway.signal(name);
            let ended = gateway.ends_within(SECOND);
            if ended.is_some() || Instant::now() > until {
                break ended;
            }
        };
        assert_eq!(ended, Some(code));
    }
}

#[test]
fn a_drain_ends_at_its_limit() {
    let mut gateway = Gateway::serve("limit.toml", &CONFIG.replace("\"10s\"", "\"1s\""));
    let _call = waiting_call(gateway.client);
    gateway.has_a_waiting_call();
    gateway.signal("-INT");
    assert_eq!(gateway.ends_within(30 * SECOND), Some(0));
}

#[test]
fn a_gateway_can_take_the_place_of_one_that_was_killed() {
    let gateway = Gateway::serve("first.toml", CONFIG);
    let address = gateway.client;
    let _open = TcpStream::connect(address).unwrap();
    drop(gateway);
    let config = CONFIG.replacen("127.0.0.1:0", &address.to_string(), 1);
    assert_eq!(Gateway::serve("second.toml", &config).client, address);
}

#[test]
fn dev_prints_something_to_paste() {
    let free = "127.0.0.1:0";
    let arguments = ["dev", "--client", free, "--worker", free, "--admin", free];
    let mut gateway = Gateway::start(ringway(&arguments));
    gateway.signal("-INT");
    assert_eq!(gateway.ends_within(30 * SECOND), Some(0));
    let mut text = String::new();
    gateway.stdout.read_to_string(&mut text).unwrap();
    assert!(text.contains("grpcurl -plaintext") && text.contains("python3 -c"), "{text}");
    assert!(text.contains(&gateway.client.to_string()));
}
