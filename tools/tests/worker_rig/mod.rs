//! A gateway and a target played by the test, and the worker program between them.

#![allow(dead_code, reason = "each test program uses its part")]
#![allow(clippy::allow_attributes, reason = "expect would be unfulfilled in some programs")]
#![expect(unreachable_pub, reason = "each test program has this module of its own")]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

pub const KEY: &str = "secret-worker-key";
pub const TOKEN: &str = "secret-token";
pub const FUNCTION: &str = "11111111-1111-4111-8111-111111111111";
pub const VERSION: &str = "22222222-2222-4222-8222-222222222222";
const NOTHING: &str = "HTTP/1.1 204 No Content\r\n\r\n";
/// Longer than anything a test waits for in good order.
const PATIENCE: Duration = Duration::from_secs(60);

/// The `n`th session's id.
pub fn id(n: u8) -> String {
    format!("d3f7f2{n:02x}-e42f-8000-8001-c0009dcbb288")
}

/// A listener that the test accepts from, with a deadline.
pub struct Listener(pub TcpListener);

impl Listener {
    pub fn new() -> Self {
        Self(TcpListener::bind("127.0.0.1:0").unwrap())
    }

    pub fn address(&self) -> SocketAddr {
        self.0.local_addr().unwrap()
    }

    pub fn accept(&self) -> Line {
        let stream = self.accept_within(PATIENCE).expect("nobody connected");
        Line::new(stream)
    }

    /// Whoever connects within this time.
    pub fn accept_within(&self, time: Duration) -> Option<TcpStream> {
        let until = Instant::now() + time;
        self.0.set_nonblocking(true).unwrap();
        while Instant::now() < until {
            if let Ok((stream, _)) = self.0.accept() {
                stream.set_nonblocking(false).unwrap();
                return Some(stream);
            }
            thread::sleep(Duration::from_millis(1));
        }
        None
    }
}

/// One connection, read by lines.
pub struct Line {
    pub stream: BufReader<TcpStream>,
    /// A poll waits for its answer.
    open: bool,
}

impl Line {
    pub fn new(stream: TcpStream) -> Self {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream: BufReader::new(stream), open: false }
    }

    /// A request's head, with its empty line.
    pub fn head(&mut self) -> String {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            assert!(self.stream.read_line(&mut head).unwrap() > 0, "closed; so far {head:?}");
        }
        head
    }

    /// The next poll: its head and what it says. The one before it, if it still waits, is
    /// answered with nothing, as by a gateway.
    pub fn poll(&mut self) -> (String, Value) {
        let poll = self.second_poll();
        if std::mem::replace(&mut self.open, true) {
            self.send(NOTHING);
        }
        poll
    }

    /// The next poll; the one before it is still to be answered.
    pub fn second_poll(&mut self) -> (String, Value) {
        let head = self.head();
        assert!(head.starts_with("POST /v1/work HTTP/1.1\r\n"), "{head}");
        let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: ")).unwrap();
        let mut body = vec![0; length.parse().unwrap()];
        self.stream.read_exact(&mut body).unwrap();
        (head, serde_json::from_slice(&body).unwrap())
    }

    /// Waits for a poll that says this.
    pub fn poll_says(&mut self, slots: usize, held: &[String]) {
        let mut seen = Vec::new();
        let until = Instant::now() + PATIENCE;
        loop {
            let (_, said) = self.poll();
            let mut ids: Vec<String> = serde_json::from_value(said["requestIds"].clone()).unwrap();
            ids.sort();
            if said["slots"] == slots && ids == held {
                return;
            }
            seen.push(said);
            assert!(Instant::now() < until, "{seen:?}");
        }
    }

    /// Fails if a request comes: for so long as a machine under load needs to send one.
    pub fn is_quiet(&mut self) {
        let stream = self.stream.get_ref();
        stream.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        let read = self.stream.fill_buf().map(<[u8]>::len);
        self.stream.get_ref().set_read_timeout(Some(PATIENCE)).unwrap();
        assert!(read.is_err(), "{read:?} bytes came");
    }

    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.get_mut().write_all(bytes.as_ref()).unwrap();
    }

    pub fn nothing(&mut self) {
        self.open = false;
        self.send(NOTHING);
    }

    pub fn refuse(&mut self, status: u16, text: &str) {
        self.open = false;
        let length = text.len();
        self.send(format!("HTTP/1.1 {status} No\r\nContent-Length: {length}\r\n\r\n{text}"));
    }

    /// Work for the `n`th session, to be dialled back to these addresses.
    pub fn work(&mut self, kind: &str, n: u8, addresses: &[SocketAddr]) {
        let connection = |address: &SocketAddr| {
            json!({"http1": {"proxyUri": format!("http://{address}/v1/proxy"),
                             "proxyAuthorizationToken": TOKEN}})
        };
        let connections: Vec<Value> = addresses.iter().map(connection).collect();
        let body = json!({"kind": kind, "requestId": id(n), "ncaId": "dev",
                          "functionId": FUNCTION, "functionVersionId": VERSION,
                          "connections": connections});
        self.open = false;
        let body = body.to_string();
        let length = body.len();
        self.send(format!(
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n\
             {body}"
        ));
    }

    /// Reads exactly so many bytes.
    pub fn take(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.stream.read_exact(&mut bytes).unwrap();
        bytes
    }

    /// All bytes until the other end closes.
    pub fn rest(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        if let Err(error) = self.stream.read_to_end(&mut bytes) {
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{error}");
        }
        bytes
    }
}

/// The worker program.
pub struct Worker {
    child: Child,
    log: mpsc::Receiver<String>,
    seen: String,
}

impl Worker {
    /// Starts it with one key, function and version; `more` are further arguments. It has looked
    /// whether a server is at the target.
    pub fn start(gateways: &[&Listener], server: &Listener, more: &[&str]) -> Self {
        let target = server.address().to_string();
        let mut command = Command::new(env!("CARGO_BIN_EXE_ringway-worker"));
        for gateway in gateways {
            command.arg("--gateway").arg(format!("http://{}", gateway.address()));
        }
        command.args(["--key", KEY, "--function", FUNCTION, "--version", VERSION]);
        command.args(["--target", &target, "--log", "debug"]).args(more);
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let (told, log) = mpsc::channel();
        thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                let _ = told.send(line);
            }
        });
        let mut worker = Self { child, log, seen: String::new() };
        let until = Instant::now() + PATIENCE;
        while server.accept_within(Duration::from_millis(20)).is_none() && worker.is_running() {
            assert!(Instant::now() < until, "nobody looked at the target");
        }
        worker
    }

    /// Waits for a line of the log with this in it.
    pub fn says(&mut self, text: &str) {
        while !self.seen.contains(text) {
            let line = self.log.recv_timeout(PATIENCE);
            let line = line.unwrap_or_else(|_| panic!("no {text:?} in the log:\n{}", self.seen));
            self.seen += &line;
            self.seen.push('\n');
        }
    }

    /// Everything logged so far.
    pub fn log(&mut self) -> &str {
        while let Ok(line) = self.log.recv_timeout(Duration::from_millis(50)) {
            self.seen += &line;
            self.seen.push('\n');
        }
        &self.seen
    }

    pub fn signal(&self, name: &str) {
        let status = Command::new("kill").arg(name).arg(self.child.id().to_string()).status();
        assert!(status.unwrap().success());
    }

    /// Its exit code. Whatever it did, its log has no secret in it.
    pub fn exit_code(&mut self) -> Option<i32> {
        let until = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            let log = self.log();
            assert!(Instant::now() < until, "still running:\n{log}");
        };
        let log = self.log();
        assert!(!log.contains(KEY) && !log.contains(TOKEN), "{log}");
        assert!((0..9).all(|n| !log.contains(&id(n))), "a whole id:\n{log}");
        status.code()
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // The process may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
