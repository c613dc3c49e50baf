//! h2spec against a server made of [`Conn`] and blocking sockets.
//!
//! Needs the `h2spec` binary: `H2SPEC=/path/to/h2spec cargo test --test h2_spec -- --ignored`, as
//! `tools/test.sh` does.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use ringway_proto::fields::{Field, Fields};
use ringway_proto::h2::{Conn, Event, Limits, Role, StreamKey};
use ringway_proto::time::Time;

const BODY: &[u8] = b"An answer of a few octets.";

struct Server {
    conn: Conn,
    started: Instant,
    socket: TcpStream,
    out: Vec<u8>,
    fields: Fields,
    scratch: Vec<u8>,
    /// Bodies not sent to their end yet.
    bodies: HashMap<StreamKey, usize>,
}

impl Server {
    fn new(socket: TcpStream) -> Self {
        Self {
            conn: Conn::new(Role::Server, Limits::default(), Time::ZERO),
            started: Instant::now(),
            socket,
            out: Vec::new(),
            fields: Fields::new(),
            scratch: Vec::new(),
            bodies: HashMap::new(),
        }
    }

    fn run(mut self) -> std::io::Result<()> {
        self.conn.start(&mut self.out);
        let mut buffer = [0; 20_000];
        loop {
            self.socket.write_all(&self.out)?;
            self.out.clear();
            self.conn.set_answers_backlog(0);
            let got = self.socket.read(&mut buffer)?;
            if got == 0 {
                return Ok(());
            }
            if !self.received(&buffer[..got]) {
                self.socket.write_all(&self.out)?;
                self.socket.shutdown(Shutdown::Write)?;
                while self.socket.read(&mut buffer)? > 0 {}
                return Ok(());
            }
        }
    }

    fn received(&mut self, input: &[u8]) -> bool {
        let (mut pos, now) = (0, Time(self.started.elapsed().as_micros() as u64));
        loop {
            match self.conn.next(input, &mut pos, &mut self.fields, &mut self.out, now) {
                Ok(Event::More) => return true,
                Ok(event) => self.react(event),
                Err(fault) => {
                    let last = self.conn.highest_peer_stream();
                    self.conn.goaway(last, fault.code, fault.reason.as_bytes(), &mut self.out);
                    return false;
                }
            }
        }
    }

    fn react(&mut self, event: Event) {
        match event {
            Event::Head { key, end_stream, .. } if end_stream => self.answer(key, b"200"),
            Event::HeadTooLarge { key, .. } => self.answer(key, b"431"),
            Event::Data { key, len, end_stream, .. } => {
                self.conn.drained(key, len, false, &mut self.out);
                if end_stream {
                    self.answer(key, b"200");
                }
            }
            Event::Reset { key, .. } => {
                self.bodies.remove(&key);
            }
            Event::Window(Some(key)) => self.pump(key),
            Event::Window(None) => {
                for key in self.bodies.keys().copied().collect::<Vec<_>>() {
                    self.pump(key);
                }
            }
            _ => {}
        }
    }

    fn answer(&mut self, key: StreamKey, status: &[u8]) {
        let length = BODY.len().to_string();
        let fields =
            [Field::new(b":status", status), Field::new(b"content-length", length.as_bytes())];
        let (scratch, out) = (&mut self.scratch, &mut self.out);
        self.conn.head(key, fields.into_iter(), false, scratch, out);
        self.bodies.insert(key, 0);
        self.pump(key);
    }

    fn pump(&mut self, key: StreamKey) {
        let Some(sent) = self.bodies.get_mut(&key) else { return };
        while *sent < BODY.len() {
            let len = self.conn.data_room(key).min(BODY.len() - *sent);
            if len == 0 {
                return;
            }
            let end = *sent + len == BODY.len();
            self.out.extend(self.conn.data_head(key, len, end));
            self.out.extend(&BODY[*sent..*sent + len]);
            *sent += len;
        }
        self.bodies.remove(&key);
    }
}

fn serve(listener: TcpListener) {
    for socket in listener.incoming().flatten() {
        std::thread::spawn(move || {
            socket.set_nodelay(true).unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            // The peer hangs up as it likes: an error here is the end of the connection.
            let _ = Server::new(socket).run();
        });
    }
}

#[test]
#[ignore = "needs the h2spec binary, named by H2SPEC"]
fn h2spec_strict_finds_no_fault() {
    let binary = std::env::var("H2SPEC").expect("H2SPEC names the h2spec binary");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    std::thread::spawn(move || serve(listener));
    let output = Command::new(binary)
        .args(["-h", "127.0.0.1", "-p", &port, "-o", "2", "--strict", "-P", "/x"])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    println!("{text}");
    assert!(output.status.success(), "h2spec found faults");
    assert!(text.contains(" 0 skipped, 0 failed"), "every case ran");
}
