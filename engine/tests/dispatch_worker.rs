//! The demo worker against a small gateway made of the real dispatch and plain sockets: what it
//! sends, what it serves, when it ends a session.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, its parts too")]

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use hyper_util::rt::TokioIo;
use ringway::control::local::{
    Dispatch, DispatchLimits, PollAnswer, PollId, PollRequest, Ticket, Work, WorkKind,
};
use ringway::control::port::Owner;
use ringway::demo::pb::EchoMessage;
use ringway::demo::pb::echo_client::EchoClient;
use ringway::demo::{Serve, Worker, WorkerOptions, routes};
use ringway::net::ConnId;
use ringway_proto::id::Node;
use ringway_proto::time::Time;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tokio_stream::StreamExt;
use tonic::metadata::MetadataValue;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request};
use uuid::Uuid;

const NODE: Node = Node::new(1, 1).unwrap();

const F: &str = "11111111-1111-4111-8111-111111111111";
const V: &str = "22222222-2222-4222-8222-222222222222";
const SECOND: Duration = Duration::from_secs(1);

struct State {
    dispatch: Dispatch,
    polls: HashMap<u32, mpsc::UnboundedSender<PollAnswer>>,
    /// What CONNECTs are answered, last first; then 200.
    statuses: Vec<u16>,
    connects: Vec<String>,
    /// How often the worker has asked for a new session.
    asked: usize,
    /// Sent right behind a 200, in the same write.
    behind: Vec<u8>,
}

struct Gateway {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    tunnels: mpsc::UnboundedReceiver<TcpStream>,
}

impl Gateway {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (tunnels_in, tunnels) = mpsc::unbounded_channel();
        let state = Arc::new(Mutex::new(State {
            dispatch: Dispatch::new(DispatchLimits { queue: 100, polls: 100 }),
            polls: HashMap::new(),
            statuses: Vec::new(),
            connects: Vec::new(),
            asked: 0,
            behind: Vec::new(),
        }));
        let shared = state.clone();
        tokio::spawn(async move {
            for slot in 0.. {
                let (stream, _) = listener.accept().await.unwrap();
                tokio::spawn(connection(shared.clone(), slot, stream, address, tunnels_in.clone()));
            }
        });
        Self { address, state, tunnels }
    }

    async fn with_worker(slots: usize, serve: Serve) -> Self {
        let gateway = Self::start().await;
        tokio::spawn(Worker::run(WorkerOptions {
            gateway: gateway.address,
            key: "k".into(),
            function: F.parse().unwrap(),
            version: V.parse().unwrap(),
            slots,
            serve,
        }));
        gateway
    }

    fn submit(&self, kind: WorkKind, id: u128) {
        let mut state = self.state.lock().unwrap();
        let work = Work {
            ticket: Ticket {
                node: NODE,
                core: 0,
                number: state.dispatch.fullest() as u64 + 1000 * id as u64 + kind as u64,
            },
            kind,
            request_id: Uuid::from_u128(id),
            owner: Arc::new(Owner::new("dev".into(), F.into(), V.into())),
            token: [b't'; 64],
        };
        state.dispatch.submit(work, Time::ZERO).unwrap();
        state.hand_out();
    }

    async fn tunnel(&mut self) -> TcpStream {
        timeout(30 * SECOND, self.tunnels.recv()).await.expect("a CONNECT in time").unwrap()
    }

    async fn no_tunnel(&mut self) {
        assert!(timeout(SECOND / 4, self.tunnels.recv()).await.is_err(), "no CONNECT was expected");
    }

    async fn until(&self, what: &str, seen: impl Fn(&State) -> bool) {
        let seen = async {
            while !seen(&self.state.lock().unwrap()) {
                sleep(SECOND / 100).await;
            }
        };
        timeout(30 * SECOND, seen).await.unwrap_or_else(|_| panic!("waited in vain: {what}"));
    }

    async fn new_session(&mut self, id: u128) -> TcpStream {
        self.submit(WorkKind::New, id);
        self.tunnel().await
    }
}

impl State {
    fn hand_out(&mut self) {
        let mut answers = Vec::new();
        self.dispatch.take_answers(&mut answers);
        for (poll, answer) in answers {
            if let Some(sender) = self.polls.get(&poll.conn.slot) {
                let _ = sender.send(answer);
            }
        }
    }
}

/// One connection of a worker: polls, or a CONNECT.
async fn connection(
    state: Arc<Mutex<State>>,
    slot: u32,
    mut stream: TcpStream,
    address: SocketAddr,
    tunnels: mpsc::UnboundedSender<TcpStream>,
) {
    let poll = PollId { node: NODE, core: 0, conn: ConnId { slot, generation: 0 }, round: 1 };
    let (sender, mut answers) = mpsc::unbounded_channel();
    state.lock().unwrap().polls.insert(slot, sender);
    let mut read = Vec::new();
    loop {
        while let Some((head, body)) = take_request(&mut read) {
            if head.starts_with("CONNECT ") {
                let (status, behind) = {
                    let mut state = state.lock().unwrap();
                    state.connects.push(head);
                    (state.statuses.pop().unwrap_or(200), state.behind.clone())
                };
                let mut answer = format!("HTTP/1.1 {status} X\r\n\r\n").into_bytes();
                answer.extend_from_slice(&behind);
                stream.write_all(&answer).await.unwrap();
                if status == 200 {
                    tunnels.send(stream).unwrap();
                }
                return;
            }
            assert!(head.starts_with("POST /v1/work HTTP/1.1\r\n"), "{head}");
            assert!(head.contains("Authorization: Bearer k\r\n"), "{head}");
            let request = PollRequest::parse(&body, 5000).unwrap();
            let mut state = state.lock().unwrap();
            state.asked += usize::from(request.slots > 0);
            state.dispatch.poll(poll, request, Time::ZERO).unwrap();
            state.hand_out();
        }
        tokio::select! {
            n = stream.read_buf(&mut read) => if !matches!(n, Ok(1..)) {
                let mut state = state.lock().unwrap();
                state.polls.remove(&slot);
                state.dispatch.gone(poll);
                state.hand_out();
                return;
            },
            answer = answers.recv() => {
                let answer = match answer.unwrap() {
                    PollAnswer::Nothing => b"HTTP/1.1 204 No Content\r\n\r\n".to_vec(),
                    PollAnswer::Work(work) => {
                        let body = work.to_json([&*format!("http://{address}")]);
                        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
                        [head.into_bytes(), body].concat()
                    }
                };
                stream.write_all(&answer).await.unwrap();
                let mut state = state.lock().unwrap();
                state.dispatch.delivered(poll);
                state.hand_out();
            }
        }
    }
}

fn take_request(read: &mut Vec<u8>) -> Option<(String, Vec<u8>)> {
    let end = read.windows(4).position(|four| four == b"\r\n\r\n")? + 4;
    let head = String::from_utf8(read[..end].to_vec()).unwrap();
    let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: "));
    let length: usize = length.map_or(0, |length| length.parse().unwrap());
    if read.len() < end + length {
        return None;
    }
    let body = read[end..end + length].to_vec();
    read.drain(..end + length);
    Some((head, body))
}

async fn channel(tunnel: TcpStream) -> Channel {
    let mut tunnel = Some(tunnel);
    let connector = tower::service_fn(move |_| {
        let tunnel = tunnel.take();
        async move {
            tunnel
                .map(TokioIo::new)
                .ok_or_else(|| std::io::Error::from(std::io::ErrorKind::NotConnected))
        }
    });
    Endpoint::from_static("http://function").connect_with_connector(connector).await.unwrap()
}

async fn echo() -> (Gateway, EchoClient<Channel>) {
    let mut gateway = Gateway::with_worker(8, Serve::Routes(routes().await)).await;
    let tunnel = gateway.new_session(1).await;
    let client = EchoClient::new(channel(tunnel).await).max_decoding_message_size(usize::MAX);
    (gateway, client)
}

fn message(payload: &'static str, count: u32) -> EchoMessage {
    EchoMessage { payload: Bytes::from_static(payload.as_bytes()), count }
}

#[tokio::test]
async fn the_four_kinds_of_calls_echo() {
    let (_gateway, mut client) = echo().await;
    let back = client.unary(message("one", 5)).await.unwrap().into_inner();
    assert_eq!(back, message("one", 5));
    let three = tokio_stream::iter(["a", "b", "c"].map(|text| message(text, 9)));
    let back = client.client_stream(three).await.unwrap().into_inner();
    assert_eq!(back, message("abc", 3));
    for (count, times) in [(0, 1), (3, 3)] {
        let copies = client.server_stream(message("x", count)).await.unwrap().into_inner();
        let copies: Vec<_> = copies.collect::<Result<_, _>>().await.unwrap();
        assert_eq!(copies, vec![message("x", count); times]);
    }
    let (sender, receiver) = mpsc::channel(1);
    let outbound = tokio_stream::wrappers::ReceiverStream::new(receiver);
    let mut inbound = client.bidi_stream(outbound).await.unwrap().into_inner();
    for text in ["ping", "pong"] {
        sender.send(message(text, 0)).await.unwrap();
        assert_eq!(inbound.message().await.unwrap(), Some(message(text, 0)));
    }
    drop(sender);
    assert_eq!(inbound.message().await.unwrap(), None);
}

#[tokio::test]
async fn messages_have_no_limit_and_may_be_compressed() {
    let (_gateway, client) = echo().await;
    let mut client = client.send_compressed(tonic::codec::CompressionEncoding::Gzip);
    let payload = Bytes::from(vec![7; 9 << 20]);
    let back = client.unary(EchoMessage::from(payload.clone())).await.unwrap().into_inner();
    assert_eq!(back.payload, payload);
}

#[tokio::test]
async fn metadata_comes_back_and_status_is_as_asked() {
    let (_gateway, mut client) = echo().await;
    let mut call = Request::new(message("m", 0));
    call.metadata_mut().insert("x-echo-text", "hello".parse().unwrap());
    call.metadata_mut().insert("x-other", "no".parse().unwrap());
    let binary = MetadataValue::from_bytes(&[0, 255, 10]);
    call.metadata_mut().insert_bin("x-echo-raw-bin", binary);
    let back = client.unary(call).await.unwrap();
    assert_eq!(back.metadata().get("x-echo-text").unwrap(), "hello");
    assert!(back.metadata().get("x-other").is_none());
    let raw = back.metadata().get_bin("x-echo-raw-bin").unwrap().to_bytes().unwrap();
    assert_eq!(raw, [0, 255, 10][..]);

    let mut call = Request::new(message("m", 0));
    call.metadata_mut().insert("x-echo-status", "9".parse().unwrap());
    let details = MetadataValue::from_bytes(b"why");
    call.metadata_mut().insert_bin("x-echo-details-bin", details);
    let status = client.server_stream(call).await.unwrap_err();
    assert_eq!((status.code(), status.details()), (Code::FailedPrecondition, &b"why"[..]));
    assert!(status.message().contains('9'));

    let mut call = Request::new(message("m", 0));
    call.metadata_mut().insert("x-echo-status", "17".parse().unwrap());
    assert_eq!(client.unary(call).await.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test]
async fn health_and_reflection_are_served() {
    let mut gateway = Gateway::with_worker(8, Serve::Routes(routes().await)).await;
    let channel = channel(gateway.new_session(1).await).await;
    let mut health = tonic_health::pb::health_client::HealthClient::new(channel.clone());
    for service in ["", "ringway.echo.v1.Echo"] {
        let request = tonic_health::pb::HealthCheckRequest { service: service.into() };
        let status = health.check(request).await.unwrap().into_inner().status;
        assert_eq!(status, 1, "{service} is serving");
    }
    use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
    use tonic_reflection::pb::v1::{ServerReflectionRequest, server_reflection_request};
    let ask = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(server_reflection_request::MessageRequest::FileContainingSymbol(
            "ringway.echo.v1.Echo".into(),
        )),
    };
    let mut reflection = ServerReflectionClient::new(channel);
    let answers = reflection.server_reflection_info(tokio_stream::once(ask)).await.unwrap();
    let answer = answers.into_inner().message().await.unwrap().unwrap();
    assert!(format!("{answer:?}").contains("FileDescriptorResponse"), "{answer:?}");
}

#[tokio::test]
async fn http_echo_answers_over_http_1() {
    let mut gateway = Gateway::with_worker(8, Serve::Routes(routes().await)).await;
    let mut tunnel = gateway.new_session(1).await;
    let request =
        "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Type: a/b\r\nContent-Length: 5\r\n\r\nhello";
    tunnel.write_all(request.as_bytes()).await.unwrap();
    let mut read = Vec::new();
    while !read.ends_with(b"hello") {
        assert!(tunnel.read_buf(&mut read).await.unwrap() > 0);
    }
    let text = String::from_utf8(read).unwrap();
    assert!(text.starts_with("HTTP/1.1 200 OK\r\n") && text.contains("content-type: a/b\r\n"));
}

#[tokio::test]
async fn the_connect_is_in_origin_form_as_nvidias_workers_send_it() {
    let mut gateway = Gateway::with_worker(8, Serve::Routes(routes().await)).await;
    let _tunnel = gateway.new_session(7).await;
    let connects = gateway.state.lock().unwrap().connects.clone();
    let mut lines = connects[0].split("\r\n");
    assert_eq!(lines.next(), Some("CONNECT /v1/proxy HTTP/1.1"));
    let rest: Vec<&str> = lines.collect();
    assert!(rest.contains(&format!("Host: {}", gateway.address).as_str()), "{rest:?}");
    assert!(rest.contains(&format!("Authorization: Bearer {}", "t".repeat(64)).as_str()));
    assert!(rest.contains(&"X-Request-Id: 00000000-0000-0000-0000-000000000007"));
    assert!(!connects[0].contains("ontent-") && !connects[0].contains("ransfer-"));
}

#[tokio::test]
async fn a_403_is_final_and_a_503_is_tried_again() {
    let mut gateway = Gateway::with_worker(8, Serve::Routes(routes().await)).await;
    gateway.state.lock().unwrap().statuses = vec![403];
    gateway.submit(WorkKind::New, 1);
    gateway.until("a CONNECT", |state| !state.connects.is_empty()).await;
    gateway.no_tunnel().await;
    assert_eq!(gateway.state.lock().unwrap().connects.len(), 1);
    gateway.state.lock().unwrap().statuses = vec![503, 503];
    gateway.new_session(2).await;
    assert_eq!(gateway.state.lock().unwrap().connects.len(), 4);
}

#[tokio::test]
async fn bytes_right_behind_the_200_belong_to_the_tunnel() {
    let mut gateway = Gateway::with_worker(8, Serve::Routes(routes().await)).await;
    gateway.state.lock().unwrap().behind = b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n".to_vec();
    let mut tunnel = gateway.new_session(1).await;
    let mut read = [0; 12];
    tunnel.read_exact(&mut read).await.unwrap();
    assert!(read.starts_with(b"HTTP/1.1 "), "{read:?}");
}

#[tokio::test]
async fn a_session_takes_reconnects_until_its_last_tunnel_ends() {
    let mut gateway = Gateway::with_worker(1, Serve::Routes(routes().await)).await;
    let first = gateway.new_session(1).await;
    gateway.submit(WorkKind::Reconnect, 1);
    let second = gateway.tunnel().await;
    drop(first);
    sleep(SECOND / 10).await;
    gateway.submit(WorkKind::Reconnect, 1);
    let third = gateway.tunnel().await;
    let ids =
        gateway.state.lock().unwrap().connects.iter().filter(|c| c.contains("0001\r")).count();
    assert_eq!(ids, 3, "all for the same session");
    drop((second, third));
    gateway.until("its only slot is free", |state| state.asked == 2).await;
    gateway.submit(WorkKind::Reconnect, 1);
    gateway.no_tunnel().await;
}

#[tokio::test]
async fn a_worker_takes_no_more_sessions_than_it_has_slots() {
    let mut gateway = Gateway::with_worker(1, Serve::Routes(routes().await)).await;
    let first = gateway.new_session(1).await;
    gateway.submit(WorkKind::New, 2);
    gateway.no_tunnel().await;
    drop(first);
    gateway.tunnel().await;
}

#[tokio::test]
async fn a_bridge_is_silent_until_the_gateway_speaks_and_then_copies_both_ways() {
    let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = server.local_addr().unwrap().to_string();
    let mut gateway = Gateway::with_worker(8, Serve::Bridge(target)).await;
    let mut tunnel = gateway.new_session(1).await;
    let (mut served, _) = timeout(30 * SECOND, server.accept()).await.unwrap().unwrap();
    served.write_all(b"settings").await.unwrap();
    let mut read = [0; 8];
    assert!(timeout(SECOND / 5, tunnel.read_exact(&mut read)).await.is_err());
    tunnel.write_all(b"preface!").await.unwrap();
    served.read_exact(&mut read).await.unwrap();
    assert_eq!(&read, b"preface!");
    tunnel.read_exact(&mut read).await.unwrap();
    assert_eq!(&read, b"settings");
    tunnel.shutdown().await.unwrap();
    assert_eq!(served.read(&mut read).await.unwrap(), 0, "a FIN passes");
    served.write_all(b"the end.").await.unwrap();
    drop(served);
    tunnel.read_exact(&mut read).await.unwrap();
    assert_eq!((&read, tunnel.read(&mut [0; 1]).await.unwrap()), (b"the end.", 0));
}
