//! Both HTTP/2 sides against the `h2` crate over loopback, and the relay's integrity.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

mod support;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use ringway_bench::caller::Work;
use ringway_bench::compare::{CLIENT_KEY, FUNCTION, VERSION, WORKER_KEY};
use ringway_bench::load::{self, LoadFault, Outcome};
use ringway_bench::worker;
use ringway_work::Secret;
use support::{LOOPBACK, block_on, plan, start_backend, start_relay};

fn run(target: SocketAddr, connections: usize, streams: usize, work: Work) -> Outcome {
    load::run(&plan(target, connections, streams, work)).unwrap()
}

/// A gRPC message of `size` payload bytes that asks for `answer` bytes.
fn message(size: usize, answer: u32) -> Bytes {
    let mut message = vec![0];
    message.extend_from_slice(&(size as u32).to_be_bytes());
    message.extend_from_slice(&answer.to_be_bytes());
    message.resize(size + 5, 1);
    message.into()
}

/// How the `h2` client sets itself up.
#[derive(Clone, Copy)]
struct ClientSetting {
    window: u32,
    connection_window: u32,
    table: u32,
}

/// One call of an `h2` client; returns the answer's length and what its message prefix says.
async fn call(
    mut client: h2::client::SendRequest<Bytes>,
    request: Bytes,
) -> (usize, u32, http::HeaderMap) {
    let head = http::Request::post("http://h/s/m").body(()).unwrap();
    let (response, mut body) = client.send_request(head, false).unwrap();
    body.send_data(request, true).unwrap();
    let response = response.await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["content-type"], "application/grpc");
    let (mut body, mut bytes) = (response.into_body(), vec![]);
    while let Some(piece) = body.data().await {
        let piece = piece.unwrap();
        body.flow_control().release_capacity(piece.len()).unwrap();
        bytes.extend_from_slice(&piece);
    }
    let trailers = body.trailers().await.unwrap().unwrap();
    let size = u32::from_be_bytes(bytes[1..5].try_into().unwrap());
    assert_eq!(bytes[0], 0);
    (bytes.len(), size, trailers)
}

fn h2_calls(setting: ClientSetting, calls: Vec<(usize, u32)>) {
    let address = start_backend();
    block_on(async move {
        let stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let (client, connection) = h2::client::Builder::new()
            .initial_window_size(setting.window)
            .initial_connection_window_size(setting.connection_window)
            .header_table_size(setting.table)
            .handshake(stream)
            .await
            .unwrap();
        tokio::spawn(connection);
        // The first alone, so that the peer's settings are known; then all at once.
        let client = client.ready().await.unwrap();
        for batch in [&calls[..1], &calls[..], &calls[..]] {
            let tasks: Vec<_> = batch
                .iter()
                .map(|&(size, answer)| tokio::spawn(call(client.clone(), message(size, answer))))
                .collect();
            for (task, &(_, answer)) in tasks.into_iter().zip(batch) {
                let (length, said, trailers) = task.await.unwrap();
                assert_eq!((length, said), (answer as usize + 5, answer));
                assert_eq!(trailers["grpc-status"], "0");
            }
        }
    });
}

#[test]
fn h2_client_gets_what_it_asked_the_endpoint_for() {
    let setting = ClientSetting { window: 65_535, connection_window: 65_535, table: 4096 };
    h2_calls(setting, vec![(4, 0), (100, 100), (9, 300_000), (300_000, 4), (1 << 20, 1 << 20)]);
}

#[test]
fn endpoint_keeps_to_tiny_windows_and_to_no_header_table() {
    let setting = ClientSetting { window: 3, connection_window: 65_535, table: 0 };
    h2_calls(setting, vec![(4, 10), (100, 1000), (2000, 77)]);
}

/// How the `h2` server sets itself up and answers.
#[derive(Clone, Copy)]
struct ServerSetting {
    window: u32,
    streams: u32,
    /// Every n-th call is answered wrongly, if not 0.
    wrong: usize,
    how: &'static str,
}

fn start_h2_server(setting: ServerSetting, received: Arc<AtomicUsize>) -> SocketAddr {
    let listener = TcpListener::bind(SocketAddr::from(LOOPBACK)).unwrap();
    let address = listener.local_addr().unwrap();
    listener.set_nonblocking(true).unwrap();
    thread::spawn(move || {
        block_on(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(h2_serve(stream, setting, received.clone()));
            }
        });
    });
    address
}

/// What the load calls a connection that the server ends in this way.
const GOAWAY: &str = "connection: GOAWAY ENHANCE_YOUR_CALM";

async fn h2_serve(
    stream: tokio::net::TcpStream,
    setting: ServerSetting,
    received: Arc<AtomicUsize>,
) {
    let mut server = h2::server::Builder::new()
        .initial_window_size(setting.window)
        .initial_connection_window_size(setting.window.max(65_535))
        .max_concurrent_streams(setting.streams)
        .handshake::<_, Bytes>(stream)
        .await
        .unwrap();
    let mut accepted = 0;
    while let Some(Ok((request, respond))) = server.accept().await {
        accepted += 1;
        if setting.how == GOAWAY && accepted == setting.wrong {
            server.abrupt_shutdown(h2::Reason::ENHANCE_YOUR_CALM);
        }
        tokio::spawn(h2_answer(request, respond, setting, received.clone()));
    }
}

async fn h2_answer(
    request: http::Request<h2::RecvStream>,
    mut respond: h2::server::SendResponse<Bytes>,
    setting: ServerSetting,
    received: Arc<AtomicUsize>,
) {
    assert_eq!(request.method(), "POST");
    assert_eq!(request.uri().path(), "/ringway.bench.v1.Bench/Call");
    assert_eq!(request.headers()["authorization"], format!("Bearer {CLIENT_KEY}"));
    assert_eq!(request.headers()["function-id"], FUNCTION);
    assert_eq!(request.headers()["function-version-id"], VERSION);
    assert_eq!(request.headers()["te"], "trailers");
    let (mut body, mut bytes) = (request.into_body(), vec![]);
    while let Some(piece) = body.data().await {
        let Ok(piece) = piece else { return };
        let _ = body.flow_control().release_capacity(piece.len());
        bytes.extend_from_slice(&piece);
    }
    let size = u32::from_be_bytes(bytes[1..5].try_into().unwrap()) as usize;
    assert_eq!(bytes.len(), size + 5);
    let mut answer = u32::from_be_bytes(bytes[5..9].try_into().unwrap());
    let count = received.fetch_add(1, Ordering::Relaxed) + 1;
    let (mut status, mut grpc) = (200, "0");
    if setting.wrong > 0 && count.is_multiple_of(setting.wrong) {
        match setting.how {
            "status" => status = 503,
            "grpc" => grpc = "14",
            "length" => answer += 1,
            _ => return respond.send_reset(h2::Reason::INTERNAL_ERROR),
        }
    }
    let head = http::Response::builder()
        .status(status)
        .header("content-type", "application/grpc")
        .body(())
        .unwrap();
    // The load ends when it likes; what fails then is not this test's.
    let Ok(mut stream) = respond.send_response(head, false) else { return };
    let _ = stream.send_data(message(answer as usize, 0).slice(..answer as usize + 5), false);
    let mut trailers = http::HeaderMap::new();
    trailers.insert("grpc-status", grpc.parse().unwrap());
    let _ = stream.send_trailers(trailers);
}

#[test]
fn load_speaks_to_an_h2_server_with_every_field_and_every_byte() {
    for (window, streams, size) in [(65_535, 100, 100), (1000, 2, 9_000), (1 << 20, 100, 1 << 20)] {
        let received = Arc::new(AtomicUsize::new(0));
        let setting = ServerSetting { window, streams, wrong: 0, how: "" };
        let address = start_h2_server(setting, received.clone());
        let mut plan = plan(address, 2, 4, Work { message: size, answer: size });
        // A debug build of the other side needs a while for the largest.
        plan.counted = Duration::from_millis(800);
        let outcome = load::run(&plan).unwrap();
        assert_eq!(outcome.failed, 0, "{outcome}");
        assert!(outcome.calls > 0, "{outcome}");
        assert!(received.load(Ordering::Relaxed) as u64 >= outcome.calls);
    }
}

#[test]
fn load_counts_every_kind_of_wrong_answer() {
    for how in ["status", "grpc", "length", "reset", GOAWAY] {
        let setting = ServerSetting { window: 65_535, streams: 100, wrong: 50, how };
        let address = start_h2_server(setting, Arc::default());
        match load::run(&plan(address, 1, 4, Work { message: 100, answer: 100 })) {
            Ok(outcome) => {
                assert!(outcome.failures[how] > 0, "{how}: {outcome}");
            }
            // Slow to start: the failures used the connection up before it was measured.
            Err(LoadFault::SetUp { broken, .. }) => assert_eq!(broken, 1),
            Err(other) => panic!("{how}: {other}"),
        }
    }
}

#[test]
fn load_and_endpoint_agree_directly_and_through_the_relay() {
    let backend = start_backend();
    for address in [backend, start_relay(backend)] {
        for (connections, streams, message, answer) in
            [(16, 16, 100, 100), (64, 1, 100, 100), (4, 2, 65_536, 65_536), (2, 1, 8 << 20, 4)]
        {
            let outcome = run(address, connections, streams, Work { message, answer });
            assert_eq!(outcome.failed, 0, "{outcome}");
            assert!(outcome.calls > 0, "{outcome}");
        }
    }
}

#[test]
fn load_reports_a_target_that_is_not_there() {
    let gone = TcpListener::bind(SocketAddr::from(LOOPBACK)).unwrap().local_addr().unwrap();
    let fault = load::run(&plan(gone, 1, 1, Work { message: 4, answer: 4 })).unwrap_err();
    assert!(matches!(fault, LoadFault::SetUp { live: 0, broken: 1, wanted: 1, .. }), "{fault}");
}

/// Bytes that show a loss, a repetition or an exchange of connections.
fn pattern(seed: u64, length: usize) -> Vec<u8> {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        bytes.extend_from_slice(&x.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// Answers a stream only after its end: it must pass the half-close on and keep the other half.
fn start_echo_after_end() -> SocketAddr {
    let listener = TcpListener::bind(SocketAddr::from(LOOPBACK)).unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            thread::spawn(move || {
                let mut bytes = vec![];
                stream.read_to_end(&mut bytes).unwrap();
                stream.write_all(&bytes).unwrap();
            });
        }
    });
    address
}

#[test]
fn relay_keeps_every_byte_and_half_closes() {
    let relay = start_relay(start_echo_after_end());
    let clients: Vec<_> = (0..8)
        .map(|seed| {
            thread::spawn(move || {
                // Large enough that socket buffers fill and sends fall short, both ways.
                let sent = pattern(seed, 3_000_000 + seed as usize * 65_537);
                let mut stream = TcpStream::connect(relay).unwrap();
                for piece in sent.chunks(1_000 + seed as usize * 9_999) {
                    stream.write_all(piece).unwrap();
                }
                stream.shutdown(Shutdown::Write).unwrap();
                let mut got = vec![];
                // Read late, so that the answer waits in the relay.
                thread::sleep(Duration::from_millis(50));
                stream.read_to_end(&mut got).unwrap();
                assert_eq!(got.len(), sent.len());
                assert!(got == sent, "connection {seed} was changed");
            })
        })
        .collect();
    clients.into_iter().for_each(|c| c.join().unwrap());
}

#[test]
fn relay_closes_the_client_when_the_target_is_gone() {
    let gone = TcpListener::bind(SocketAddr::from(LOOPBACK)).unwrap().local_addr().unwrap();
    let mut stream = TcpStream::connect(start_relay(gone)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    assert!(matches!(stream.read(&mut [0]), Ok(0) | Err(_)));
}

/// Reads an HTTP/1.1 head (lines without their ends) and the body its length announces.
fn read_request(stream: &mut BufReader<TcpStream>) -> (Vec<String>, String) {
    let mut lines = vec![];
    loop {
        let mut line = String::new();
        assert!(stream.read_line(&mut line).unwrap() > 0, "closed in a head");
        match line.trim_end() {
            "" => break,
            text => lines.push(text.to_owned()),
        }
    }
    let length = lines.iter().find_map(|l| l.strip_prefix("Content-Length: "));
    let mut body = vec![0; length.map_or(0, |l| l.parse().unwrap())];
    stream.read_exact(&mut body).unwrap();
    (lines, String::from_utf8(body).unwrap())
}

fn write_response(stream: &BufReader<TcpStream>, status: &str, body: &str) {
    let mut to = stream.get_ref();
    write!(to, "HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}", body.len()).unwrap();
}

const SESSION: &str = "d3f7f247-e42f-8000-8001-c0009dcbb288";

/// A worker of a gateway that this test plays; returns its poll line and the listener.
fn employ_worker() -> (BufReader<TcpStream>, TcpListener, SocketAddr) {
    let listener = TcpListener::bind(SocketAddr::from(LOOPBACK)).unwrap();
    let address = listener.local_addr().unwrap();
    let employer = worker::Employer {
        gateway: format!("http://{address}"),
        key: Secret::new(WORKER_KEY).unwrap(),
        function: FUNCTION.parse().unwrap(),
        version: VERSION.parse().unwrap(),
        slots: 10,
    };
    thread::spawn(move || worker::run(employer, || {}));
    let line = BufReader::new(listener.accept().unwrap().0);
    (line, listener, address)
}

fn poll_of(line: &mut BufReader<TcpStream>) -> serde_json::Value {
    let (head, body) = read_request(line);
    assert_eq!(head[0], "POST /v1/work HTTP/1.1");
    assert!(head.contains(&format!("Authorization: Bearer {WORKER_KEY}")), "{head:?}");
    assert!(head.contains(&"Content-Type: application/json".to_owned()), "{head:?}");
    serde_json::from_str(&body).unwrap()
}

#[test]
fn worker_polls_dials_back_and_serves_the_tunnel() {
    let (mut line, listener, address) = employ_worker();
    let idle = poll_of(&mut line);
    assert_eq!(
        idle,
        serde_json::json!({"functionId": FUNCTION, "functionVersionId": VERSION, "slots": 10,
            "requestIds": []})
    );
    write_response(&line, "204 No Content", "");
    poll_of(&mut line);
    let dial = serde_json::json!({"proxyUri": format!("http://{address}/v1/proxy"),
        "proxyAuthorizationToken": "token"});
    let work = serde_json::json!({"kind": "new", "requestId": SESSION, "ncaId": "n",
        "functionId": FUNCTION, "functionVersionId": VERSION, "connections": [{"http1": dial}]});
    write_response(&line, "200 OK", &work.to_string());
    // Refused once in a way that may heal, then taken.
    let mut refused = BufReader::new(listener.accept().unwrap().0);
    read_request(&mut refused);
    write_response(&refused, "503 Service Unavailable", "full");
    let mut tunnel = BufReader::new(listener.accept().unwrap().0);
    let (head, _) = read_request(&mut tunnel);
    let wanted = [
        "CONNECT /v1/proxy HTTP/1.1".to_owned(),
        format!("Host: {address}"),
        "User-Agent: Go-http-client/1.1".to_owned(),
        "Authorization: Bearer token".to_owned(),
        format!("X-Request-Id: {SESSION}"),
    ];
    assert_eq!(head, wanted);
    tunnel.get_ref().write_all(b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
    let held = poll_of(&mut line);
    assert_eq!((&held["slots"], &held["requestIds"][0]), (&9.into(), &SESSION.into()));
    let stream = tunnel.into_inner();
    stream.set_nonblocking(true).unwrap();
    block_on(async move {
        let stream = tokio::net::TcpStream::from_std(stream).unwrap();
        let (client, connection) = h2::client::handshake(stream).await.unwrap();
        let connection = tokio::spawn(connection);
        let (length, said, _) = call(client, message(50, 70_000)).await;
        assert_eq!((length, said), (70_005, 70_000));
        connection.abort();
    });
    // With its tunnel the session is gone.
    let mut says = held;
    for _ in 0..300 {
        thread::sleep(Duration::from_millis(100));
        write_response(&line, "204 No Content", "");
        says = poll_of(&mut line);
        if says["requestIds"] == serde_json::json!([]) {
            return;
        }
    }
    panic!("it still says {says}");
}

#[test]
fn worker_without_permission_ends_and_says_why() {
    let listener = TcpListener::bind(SocketAddr::from(LOOPBACK)).unwrap();
    let gateway = format!("http://{}", listener.local_addr().unwrap());
    let key = Secret::new("k").unwrap();
    let (function, version) = (FUNCTION.parse().unwrap(), VERSION.parse().unwrap());
    let employer = worker::Employer { gateway, key, function, version, slots: 1 };
    let ended = thread::spawn(move || worker::run(employer, || {}).unwrap_err().to_string());
    let mut line = BufReader::new(listener.accept().unwrap().0);
    read_request(&mut line);
    write_response(&line, "401 Unauthorized", "unknown key");
    assert_eq!(ended.join().unwrap(), "refused with 401: unknown key");
}
