//! Listeners with TLS and the PROXY protocol under a real reactor, with real sockets.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, its parts too")]

mod reactor_rig;

use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use reactor_rig::{Noise, Running, SOON, Sight, Watched, start, until};
use ringway::net::{Close, ConnId, Core, Detached, End, Listener, Net};
use ringway::pool::Segment;
use ringway::reactor::Options;
use ringway::tls::{CertStore, Files, Pair};
use ringway::transport::{Entrance, Entrances, Outcome, Proxied, SEAL_LIMIT};
use ringway_proto::time::Time;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

/// A certificate for `localhost`, as files, and who trusts it.
struct Issued {
    folder: PathBuf,
    files: Files,
    client: Arc<ClientConfig>,
}

impl Issued {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("ringway-reactor-transport-{}-{number}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&folder).unwrap();
        let made = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
        let files = Files { cert: folder.join("cert.pem"), key: folder.join("key.pem") };
        std::fs::write(&files.cert, made.cert.pem()).unwrap();
        std::fs::write(&files.key, made.signing_key.serialize_pem()).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(made.cert.der().clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let client = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        Self { folder, files, client: Arc::new(client) }
    }

    fn cert_store(&self) -> Arc<CertStore> {
        let pair = Pair::load(&self.files).unwrap();
        Arc::new(CertStore::new(pair.server_config(Listener::Client).unwrap()))
    }

    fn options(&self) -> Options {
        let entrance = Entrance { tls: Some(self.cert_store()), ..Entrance::default() };
        options(entrance)
    }

    fn connect(&self, address: SocketAddr) -> StreamOwned<ClientConnection, TcpStream> {
        self.over(TcpStream::connect(address).unwrap())
    }

    fn over(&self, socket: TcpStream) -> StreamOwned<ClientConnection, TcpStream> {
        socket.set_read_timeout(Some(SOON)).unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        StreamOwned::new(ClientConnection::new(self.client.clone(), name).unwrap(), socket)
    }
}

impl Drop for Issued {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn options(entrance: Entrance) -> Options {
    let entrances = Entrances { client: Arc::new(entrance), worker: Arc::default() };
    Options { blocks: 32, entrances, ..Options::default() }
}

enum Order {
    Stop,
    /// Detach the only connection, and send it there.
    Detach(mpsc::Sender<Detached>),
    TakeUp(Detached),
}

/// Sends back what it receives, and stops reading while too much of that waits.
#[derive(Default)]
struct Echo {
    open: HashMap<ConnId, bool>,
    ends: Vec<End>,
    peers: Vec<SocketAddr>,
    to: Option<mpsc::Sender<Detached>>,
    most_queued: usize,
    stopped: bool,
}

const HIGH: usize = 256 * 1024;

impl Core for Echo {
    type Message = Order;

    fn accepted(&mut self, _: &mut Net, conn: ConnId, _: Listener, _: SocketAddr) {
        self.open.insert(conn, false);
    }
    fn addressed(&mut self, _: &mut Net, _: ConnId, peer: SocketAddr) {
        self.peers.push(peer);
    }
    fn dialled(&mut self, _: &mut Net, _: ConnId, _: Result<(), i32>) {}
    fn received(&mut self, net: &mut Net, conn: ConnId, segment: Segment) {
        net.push(conn, segment);
        self.most_queued = self.most_queued.max(net.queued(conn));
        if net.queued(conn) > HIGH {
            net.pause(conn, true);
        }
    }
    fn ended(&mut self, net: &mut Net, conn: ConnId, end: End) {
        self.ends.push(end);
        self.open.remove(&conn);
        net.close(conn, Close::Flush);
    }
    fn detached(&mut self, _: &mut Net, conn: ConnId, detached: Detached) {
        self.open.remove(&conn);
        self.to.take().unwrap().send(detached).unwrap();
    }
    fn written(&mut self, net: &mut Net, conn: ConnId, _: usize) {
        if net.queued(conn) < HIGH / 2 {
            net.pause(conn, false);
        }
    }
    fn message_received(&mut self, net: &mut Net, order: Order) {
        match order {
            Order::Stop => self.stopped = true,
            Order::Detach(to) => {
                self.to = Some(to);
                let conn = *self.open.keys().next().unwrap();
                net.detach(conn);
            }
            Order::TakeUp(detached) => {
                let conn = net.adopt(detached);
                self.open.insert(conn, false);
            }
        }
    }
    fn turn(&mut self, _: &mut Net) {}
    fn relieve(&mut self, _: &mut Net) {}
    fn deadline(&self) -> Option<Time> {
        None
    }
    fn finished(&self) -> bool {
        self.stopped
    }
}

fn echo(options: Options) -> (Running<Watched<Echo>>, Arc<Mutex<Sight>>) {
    let (core, sight) = Watched::new(Echo::default());
    (start(options, core), sight)
}

fn handshakes(sight: &Mutex<Sight>, outcome: Outcome) -> u64 {
    sight.lock().unwrap().tally.transport.handshakes[0][outcome as usize]
}

fn proxied(sight: &Mutex<Sight>, proxied: Proxied) -> u64 {
    sight.lock().unwrap().tally.transport.proxied[0][proxied as usize]
}

#[test]
fn much_goes_both_ways_and_memory_stays_small() {
    let issued = Issued::new();
    let (running, sight) = echo(issued.options());
    let bytes = Noise::new(1).bytes(24 << 20);
    let mut stream = issued.connect(running.address);
    stream.write_all(b"!").unwrap();
    let mut first = [0];
    stream.read_exact(&mut first).unwrap();
    // rustls' client cannot be split: the two ways take turns in pieces.
    for piece in bytes.chunks(96 * 1024) {
        stream.write_all(piece).unwrap();
        let mut back = vec![0; piece.len()];
        stream.read_exact(&mut back).unwrap();
        assert!(back == piece);
    }
    stream.conn.send_close_notify();
    stream.flush().unwrap();
    let mut rest = Vec::new();
    // A clean end: without `close_notify` this would be an error.
    assert_eq!(stream.read_to_end(&mut rest).unwrap(), 0);
    until("the end of the connection", || (sight.lock().unwrap().tally.sockets == 0).then_some(()));
    assert_eq!(handshakes(&sight, Outcome::Ok), 1);
    assert!(sight.lock().unwrap().chunks_most < 64, "{:?}", sight.lock().unwrap());
    // The one where plaintext is put.
    until("the memory back", || (sight.lock().unwrap().chunks_live <= 1).then_some(()));
    let core = running.stop(Order::Stop).core;
    assert_eq!(core.ends, [End::Fin]);
}

#[test]
fn an_end_without_close_notify_is_told_as_such() {
    let issued = Issued::new();
    let (running, sight) = echo(issued.options());
    let mut stream = issued.connect(running.address);
    stream.write_all(b"!").unwrap();
    stream.read_exact(&mut [0]).unwrap();
    stream.sock.shutdown(std::net::Shutdown::Write).unwrap();
    let _ = stream.read_to_end(&mut Vec::new());
    until("the end of the connection", || (sight.lock().unwrap().tally.sockets == 0).then_some(()));
    assert_eq!(running.stop(Order::Stop).core.ends, [End::Truncated]);
}

#[test]
fn a_reader_that_is_slow_stops_the_writer() {
    let issued = Issued::new();
    let (running, sight) = echo(issued.options());
    let mut stream = issued.connect(running.address);
    stream.write_all(b"!").unwrap();
    stream.read_exact(&mut [0]).unwrap();
    // Nobody reads: sooner or later nothing can be written any more.
    stream.sock.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
    let piece = vec![7; 64 * 1024];
    let mut written = 0;
    let stuck = loop {
        match stream.write(&piece) {
            Ok(bytes) => written += bytes,
            Err(error) => break error,
        }
        assert!(written < 256 << 20, "nothing stops the writer");
    };
    assert!(matches!(stuck.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut), "{stuck}");
    let seen = *sight.lock().unwrap();
    // What waits: up to the high water and one receive in plaintext, and what is sealed.
    let most = (HIGH + (128 << 10) + SEAL_LIMIT) / (16 * 1024) + 16;
    assert!(seen.chunks_most < most, "{} chunks, at most {most}", seen.chunks_most);
    drop(stream);
    until("the end of the connection", || (sight.lock().unwrap().tally.sockets == 0).then_some(()));
    until("the memory back", || (sight.lock().unwrap().chunks_live <= 1).then_some(()));
    let core = running.stop(Order::Stop).core;
    assert!(core.most_queued < HIGH + (256 << 10), "{}", core.most_queued);
}

#[test]
fn a_connection_goes_to_another_core_in_mid_stream() {
    let issued = Issued::new();
    let (first, _) = echo(issued.options());
    let (second, sight) = echo(issued.options());
    let mut stream = issued.connect(first.address);
    let bytes = Noise::new(2).bytes(2 << 20);
    for (at, piece) in bytes.chunks(64 * 1024).enumerate() {
        stream.write_all(piece).unwrap();
        if at == 8 {
            let (sender, detached) = mpsc::channel();
            assert!(first.sender.send(Order::Detach(sender)).is_ok());
            let detached = detached.recv_timeout(SOON).expect("the connection was not detached");
            assert!(second.sender.send(Order::TakeUp(detached)).is_ok());
        }
        let mut back = vec![0; piece.len()];
        stream.read_exact(&mut back).unwrap();
        assert!(back == piece, "piece {at}");
    }
    assert_eq!(
        sight.lock().unwrap().tally.transport.handshakes,
        [[0; 3]; 2],
        "it was not shaken again"
    );
    drop(stream);
    let ends = first.stop(Order::Stop).core.ends;
    assert!(ends.is_empty(), "{ends:?}");
    until("the end of the connection", || (sight.lock().unwrap().tally.sockets == 0).then_some(()));
    assert_eq!(second.stop(Order::Stop).core.ends.len(), 1);
}

#[test]
fn who_does_not_finish_the_handshake_is_closed() {
    let issued = Issued::new();
    let time = Duration::from_secs(2);
    let (running, sight) = echo(Options { entrance_time: time, ..issued.options() });
    let name = ServerName::try_from("localhost").unwrap();
    let mut hello = Vec::new();
    ClientConnection::new(issued.client.clone(), name).unwrap().write_tls(&mut hello).unwrap();
    let begun = Instant::now();
    let mut half = TcpStream::connect(running.address).unwrap();
    half.write_all(&hello[..hello.len() / 2]).unwrap();
    let mut silent = TcpStream::connect(running.address).unwrap();
    let mut stalled = TcpStream::connect(running.address).unwrap();
    stalled.write_all(&hello).unwrap();
    for socket in [&mut half, &mut silent, &mut stalled] {
        socket.set_read_timeout(Some(SOON)).unwrap();
        // An end or a reset, after what it had to say.
        let _ = socket.read_to_end(&mut Vec::new());
    }
    assert!(begun.elapsed() >= time, "{:?}", begun.elapsed());
    until("the counts", || (handshakes(&sight, Outcome::Abandoned) == 2).then_some(()));
    let core = running.stop(Order::Stop).core;
    assert_eq!(core.ends, [End::Failed; 3]);
}

#[test]
fn garbage_gets_an_alert_and_an_end() {
    let issued = Issued::new();
    let (running, sight) = echo(issued.options());
    let mut socket = TcpStream::connect(running.address).unwrap();
    socket.set_read_timeout(Some(SOON)).unwrap();
    socket.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    socket.read_to_end(&mut answer).unwrap();
    // RFC 8446 §6: type alert, fatal.
    assert_eq!((answer.len(), answer[0], answer[5]), (7, 21, 2), "{answer:?}");
    until("the counts", || (handshakes(&sight, Outcome::Failed) == 1).then_some(()));
    let core = running.stop(Order::Stop).core;
    assert_eq!(core.ends, [End::Failed]);
}

#[test]
fn a_new_certificate_serves_new_handshakes() {
    let (old, new) = (Issued::new(), Issued::new());
    let cert_store = old.cert_store();
    let (running, _) =
        echo(options(Entrance { tls: Some(cert_store.clone()), ..Entrance::default() }));
    let mut before = old.connect(running.address);
    before.write_all(b"a").unwrap();
    before.read_exact(&mut [0]).unwrap();
    cert_store.replace(Pair::load(&new.files).unwrap().server_config(Listener::Client).unwrap());
    let mut after = new.connect(running.address);
    after.write_all(b"b").unwrap();
    after.read_exact(&mut [0]).unwrap();
    // A ticket of before is not taken, so that the old certificate is not trusted on.
    let mut again = old.connect(running.address);
    assert!(again.write_all(b"c").and_then(|()| again.read_exact(&mut [0])).is_err());
    before.write_all(b"d").unwrap();
    before.read_exact(&mut [0]).unwrap();
    drop((before, after, again));
    running.stop(Order::Stop);
}

fn header(source: [u8; 4]) -> Vec<u8> {
    let mut header = ringway_proto::proxy::SIGNATURE.to_vec();
    header.extend([0x21, 0x11, 0, 12]);
    header.extend(source);
    header.extend([10, 0, 0, 1, 0x10, 0x92, 0x27, 0x61]);
    header
}

#[test]
fn a_proxy_header_names_the_peer() {
    let issued = Issued::new();
    let trusted = vec!["127.0.0.0/8".parse().unwrap()];
    for tls in [None, Some(issued.cert_store())] {
        let secure = tls.is_some();
        let entrance = Entrance { tls, proxy: Some(trusted.clone()), ..Entrance::default() };
        let (running, sight) = echo(options(entrance));
        let mut socket = TcpStream::connect(running.address).unwrap();
        socket.set_nodelay(true).unwrap();
        for byte in header([192, 0, 2, 7]) {
            socket.write_all(&[byte]).unwrap();
        }
        let mut back = [0; 5];
        if secure {
            let mut stream = issued.over(socket);
            stream.write_all(b"hello").unwrap();
            stream.read_exact(&mut back).unwrap();
        } else {
            socket.write_all(b"hello").unwrap();
            socket.read_exact(&mut back).unwrap();
        }
        assert_eq!(&back, b"hello");
        until("the counts", || (proxied(&sight, Proxied::Ok) == 1).then_some(()));
        let core = running.stop(Order::Stop).core;
        assert_eq!(core.peers, ["192.0.2.7:4242".parse().unwrap()]);
    }
}

#[test]
fn strangers_and_garbage_do_not_get_past_the_proxy_protocol() {
    let strangers =
        Entrance { proxy: Some(vec!["10.0.0.0/8".parse().unwrap()]), ..Entrance::default() };
    let (running, sight) = echo(options(strangers));
    let mut socket = TcpStream::connect(running.address).unwrap();
    socket.set_read_timeout(Some(SOON)).unwrap();
    let _ = socket.write_all(&header([192, 0, 2, 7]));
    // An end or a reset: the header was not read.
    assert!(matches!(socket.read(&mut [0]), Ok(0) | Err(_)));
    until("the counts", || (proxied(&sight, Proxied::Untrusted) == 1).then_some(()));
    let core = running.stop(Order::Stop).core;
    assert!(core.ends.is_empty() && core.peers.is_empty(), "the core never heard of it");

    let here =
        Entrance { proxy: Some(vec!["127.0.0.0/8".parse().unwrap()]), ..Entrance::default() };
    let (running, sight) = echo(options(here));
    let mut socket = TcpStream::connect(running.address).unwrap();
    socket.set_read_timeout(Some(SOON)).unwrap();
    let _ = socket.write_all(&Noise::new(3).bytes(64 * 1024));
    assert!(matches!(socket.read(&mut [0]), Ok(0) | Err(_)));
    until("the counts", || (proxied(&sight, Proxied::Malformed) == 1).then_some(()));
    let core = running.stop(Order::Stop).core;
    assert_eq!(core.ends, [End::Failed]);
}
