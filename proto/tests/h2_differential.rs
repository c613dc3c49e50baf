//! Our connection, in both roles, against the `h2` crate over a pipe in memory: requests with
//! bodies and trailers, large heads, resets, tiny windows, tiny pipes.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use ringway_proto::fields::{Field, Fields, Token};
use ringway_proto::h2::{Conn, ErrorCode, Event, HeadKind, Limits, Role, StreamKey};
use ringway_proto::time::Time;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

/// How a run is made difficult.
#[derive(Clone, Copy, Debug)]
struct Course {
    /// Octets the pipe holds: below a frame's head, every frame is cut.
    pipe: usize,
    /// Our windows.
    stream: u32,
    stream_max: u32,
    connection: u32,
    /// The other side's windows.
    peer_stream: u32,
    peer_connection: u32,
}

const COURSES: [Course; 6] = [
    Course {
        pipe: 1 << 16,
        stream: 65_536,
        stream_max: 2 << 20,
        connection: 16 << 20,
        peer_stream: 65_535,
        peer_connection: 65_535,
    },
    Course {
        pipe: 7,
        stream: 1000,
        stream_max: 5000,
        connection: 65_535,
        peer_stream: 900,
        peer_connection: 70_000,
    },
    Course {
        pipe: 1000,
        stream: 300,
        stream_max: 300,
        connection: 65_535,
        peer_stream: 70_000,
        peer_connection: 65_535,
    },
    Course {
        pipe: 4096,
        stream: 100_000,
        stream_max: 100_000,
        connection: 65_535,
        peer_stream: 500,
        peer_connection: 65_535,
    },
    Course {
        pipe: 64,
        stream: 20_000,
        stream_max: 1 << 20,
        connection: 1 << 20,
        peer_stream: 1 << 20,
        peer_connection: 4 << 20,
    },
    Course {
        pipe: 1 << 20,
        stream: 1 << 20,
        stream_max: 1 << 20,
        connection: 4 << 20,
        peer_stream: 1 << 20,
        peer_connection: 4 << 20,
    },
];

impl Course {
    fn limits(&self) -> Limits {
        Limits {
            stream_window: self.stream,
            stream_window_max: self.stream_max,
            connection_window: self.connection,
            ..Limits::default()
        }
    }
}

/// One call: what is sent and comes back.
#[derive(Clone, Copy, Debug)]
struct Call {
    path: &'static str,
    body: usize,
    header: usize,
}

const CALLS: [Call; 12] = [
    Call { path: "/echo", body: 0, header: 1 },
    Call { path: "/echo", body: 1, header: 10 },
    Call { path: "/echo", body: 16_384, header: 100 },
    Call { path: "/echo", body: 100_000, header: 0 },
    Call { path: "/reset", body: 50_000, header: 5 },
    Call { path: "/echo", body: 5, header: 20_000 },
    Call { path: "/echo", body: 0, header: 40_000 },
    Call { path: "/reset", body: 0, header: 1 },
    Call { path: "/echo", body: 3000, header: 16_300 },
    Call { path: "/cancel", body: 30_000, header: 1 },
    Call { path: "/echo", body: 65_536, header: 1 },
    Call { path: "/echo", body: 17, header: 2 },
];

fn body(call: &Call) -> Vec<u8> {
    (0..call.body).map(|n| (n * 31 + call.header) as u8).collect()
}

fn header(call: &Call) -> String {
    (0..call.header).map(|n| char::from(b'a' + ((n * 7 + call.body) % 26) as u8)).collect()
}

/// What our side keeps of a stream.
#[derive(Default)]
struct Exchange {
    call: Option<usize>,
    /// To be sent; `sent` of it is.
    payload: Vec<u8>,
    sent: usize,
    /// Nothing will be added to the payload.
    complete: bool,
    trailers: bool,
    received: Vec<u8>,
    echo: String,
}

/// Our side of a run, reactive: it acts on what it reads.
struct Ours {
    conn: Conn,
    pipe: Option<DuplexStream>,
    /// The peer's SETTINGS came: it would refuse what is over its limit.
    told: bool,
    fields: Fields,
    scratch: Vec<u8>,
    out: Vec<u8>,
    exchanges: HashMap<StreamKey, Exchange>,
    waiting: Vec<usize>,
    /// Call, and what came of it.
    done: Vec<(usize, Outcome)>,
    started: std::time::Instant,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Outcome {
    Answered { body: Vec<u8>, echo: String, trailers: bool },
    Reset(u32),
}

impl Ours {
    fn new(role: Role, course: &Course, pipe: DuplexStream) -> Self {
        Self {
            conn: Conn::new(role, course.limits(), Time::ZERO),
            pipe: Some(pipe),
            told: false,
            fields: Fields::new(),
            scratch: Vec::new(),
            out: Vec::new(),
            exchanges: HashMap::new(),
            waiting: Vec::new(),
            done: Vec::new(),
            started: std::time::Instant::now(),
        }
    }

    /// Until the peer hangs up, or all calls are answered.
    async fn run(mut self, calls: usize) -> Self {
        self.conn.start(&mut self.out);
        let mut buffer = vec![0; 3000];
        let (mut read, mut write) = tokio::io::split(self.pipe.take().unwrap());
        loop {
            if self.told {
                self.begin_calls();
            }
            if self.out.is_empty() {
                self.conn.set_answers_backlog(0);
                if calls > 0 && self.done.len() == calls {
                    return self;
                }
            }
            // Both at once: a peer that waits for us to read does not read itself.
            tokio::select! {
                got = read.read(&mut buffer) => match got {
                    Ok(0) | Err(_) => return self,
                    Ok(got) => self.received(&buffer[..got]),
                },
                put = write.write(&self.out), if !self.out.is_empty() => match put {
                    Ok(put) => drop(self.out.drain(..put)),
                    // The peer has hung up.
                    Err(_) => return self,
                },
            }
        }
    }

    fn received(&mut self, input: &[u8]) {
        let (mut pos, now) = (0, Time(self.started.elapsed().as_micros() as u64));
        loop {
            let (fields, out) = (&mut self.fields, &mut self.out);
            match self.conn.next(input, &mut pos, fields, out, now).expect("an honest peer") {
                Event::More => return,
                event => self.react(event, input),
            }
        }
    }

    fn react(&mut self, event: Event, input: &[u8]) {
        match event {
            Event::Head { key, kind, end_stream, list, repeated } => {
                if let (true, Some(list)) = (repeated, list) {
                    assert!(self.conn.recall(list, &mut self.fields));
                }
                self.head(key, kind, end_stream);
            }
            Event::Data { key, start, len, end_stream, .. } => {
                let exchange = self.exchanges.get_mut(&key).expect("a stream we know");
                let piece = &input[start..start + len];
                if exchange.call.is_some() {
                    exchange.received.extend(piece);
                    self.conn.drained(key, len, false, &mut self.out);
                } else {
                    exchange.payload.extend(piece);
                    exchange.complete = end_stream;
                }
                if end_stream {
                    self.finished(key, false);
                }
                self.pump(key);
            }
            Event::Reset { key, code, ours, .. } => {
                assert!(!ours, "an honest peer");
                if let Some(Exchange { call: Some(call), .. }) = self.exchanges.remove(&key) {
                    self.done.push((call, Outcome::Reset(code.number())));
                }
            }
            Event::Window(Some(key)) => self.pump(key),
            Event::Settings => self.told = true,
            Event::Window(None) => {
                for key in self.exchanges.keys().copied().collect::<Vec<_>>() {
                    self.pump(key);
                }
            }
            _ => {}
        }
    }

    fn head(&mut self, key: StreamKey, kind: HeadKind, end_stream: bool) {
        let text = |value: Option<&[u8]>| String::from_utf8(value.unwrap().to_vec()).unwrap();
        match kind {
            HeadKind::Request if self.fields.first(Token::Path) == Some(b"/reset") => {
                self.conn.reset(key, ErrorCode::EnhanceYourCalm, &mut self.out);
            }
            HeadKind::Request => {
                let echo = text(self.fields.iter().find(|f| f.name == b"x-echo").map(|f| f.value));
                let fields =
                    [Field::new(b":status", b"200"), Field::new(b"x-echo", echo.as_bytes())];
                let (scratch, out) = (&mut self.scratch, &mut self.out);
                self.conn.head(key, fields.into_iter(), false, scratch, out);
                let exchange = Exchange { complete: end_stream, ..Exchange::default() };
                self.exchanges.insert(key, Exchange { trailers: true, ..exchange });
                self.pump(key);
            }
            HeadKind::Response => {
                assert_eq!(self.fields.first(Token::Status), Some(&b"200"[..]));
                let echo = self.fields.iter().find(|f| f.name == b"x-echo").map(|f| f.value);
                self.exchanges.get_mut(&key).unwrap().echo = text(echo);
                if end_stream {
                    self.finished(key, false);
                }
            }
            HeadKind::Trailers => {
                assert!(self.fields.iter().any(|f| f.name == b"x-sum"));
                if let Some(exchange) = self.exchanges.get_mut(&key) {
                    exchange.complete = true;
                }
                self.finished(key, true);
                self.pump(key);
            }
            HeadKind::Informational => panic!("the peer sends none"),
        }
    }

    fn finished(&mut self, key: StreamKey, trailers: bool) {
        let Some(call) = self.exchanges[&key].call else { return };
        let exchange = self.exchanges.remove(&key).unwrap();
        let Exchange { received: body, echo, .. } = exchange;
        self.done.push((call, Outcome::Answered { body, echo, trailers }));
    }

    fn pump(&mut self, key: StreamKey) {
        let Some(exchange) = self.exchanges.get_mut(&key) else { return };
        while exchange.sent < exchange.payload.len() {
            let rest = exchange.payload.len() - exchange.sent;
            let len = self.conn.data_room(key).min(rest);
            if len == 0 {
                return;
            }
            self.out.extend(self.conn.data_head(key, len, false));
            self.out.extend(&exchange.payload[exchange.sent..exchange.sent + len]);
            exchange.sent += len;
            if exchange.call.is_none() {
                let backlog = exchange.sent < exchange.payload.len();
                self.conn.drained(key, len, backlog, &mut self.out);
            }
        }
        if !exchange.complete || !self.conn.sends(key) {
            return;
        }
        if exchange.trailers {
            let fields = [Field::new(b"x-sum", b"42"), Field::new(b"grpc-status", b"0")];
            let (scratch, out) = (&mut self.scratch, &mut self.out);
            self.conn.head(key, fields.into_iter(), true, scratch, out);
        } else {
            self.out.extend(self.conn.data_head(key, 0, true));
        }
        if exchange.call.is_none() {
            self.exchanges.remove(&key);
        }
    }

    fn begin_calls(&mut self) {
        while self.conn.can_open()
            && let Some(number) = self.waiting.pop()
        {
            let key = self.conn.open().unwrap();
            let call = &CALLS[number % CALLS.len()];
            let echo = header(call);
            let fields = [
                Field::new(b":method", b"POST"),
                Field::new(b":scheme", b"http"),
                Field::new(b":path", call.path.as_bytes()),
                Field::new(b":authority", b"here"),
                Field::new(b"x-echo", echo.as_bytes()),
            ];
            let payload = body(call);
            let end = payload.is_empty() && number.is_multiple_of(2);
            let (scratch, out) = (&mut self.scratch, &mut self.out);
            self.conn.head(key, fields.into_iter(), end, scratch, out);
            let exchange = Exchange {
                call: Some(number),
                payload,
                complete: true,
                trailers: number.is_multiple_of(3),
                ..Exchange::default()
            };
            self.exchanges.insert(key, exchange);
            if !end {
                self.pump(key);
            }
        }
    }
}

/// Sends all of `payload` through a stream of the `h2` crate.
async fn send_all(stream: &mut h2::SendStream<Bytes>, mut payload: Bytes) -> Result<(), h2::Error> {
    while !payload.is_empty() {
        stream.reserve_capacity(payload.len());
        let room = std::future::poll_fn(|cx| stream.poll_capacity(cx)).await;
        match room {
            Some(room) => stream.send_data(payload.split_to(room?.min(payload.len())), false)?,
            None => break,
        }
    }
    Ok(())
}

async fn read_all(stream: &mut h2::RecvStream) -> Result<Vec<u8>, h2::Error> {
    let mut all = Vec::new();
    while let Some(piece) = stream.data().await {
        let piece = piece?;
        all.extend(&piece);
        stream.flow_control().release_capacity(piece.len())?;
    }
    Ok(all)
}

fn trailers() -> HeaderMap {
    HeaderMap::from_iter([("x-sum".parse().unwrap(), "1".parse().unwrap())])
}

async fn their_call(
    mut client: h2::client::SendRequest<Bytes>,
    call: &'static Call,
) -> Result<(Vec<u8>, String, bool), h2::Error> {
    client = client.ready().await?;
    let request = Request::post(format!("http://here{}", call.path))
        .header("x-echo", header(call))
        .body(())
        .unwrap();
    let payload = Bytes::from(body(call));
    let (response, mut stream) = client.send_request(request, payload.is_empty())?;
    if call.path == "/cancel" {
        stream.send_data(payload.slice(..100), false)?;
        stream.send_reset(h2::Reason::CANCEL);
        return response.await.map(|_| unreachable!("it was cancelled"));
    }
    let sending = tokio::spawn(async move {
        if !payload.is_empty() {
            // A stream that is reset meanwhile is one of the cases.
            let _ = send_all(&mut stream, payload).await;
            let _ = stream.send_trailers(trailers());
        }
    });
    let response = response.await?;
    let echo = response.headers()["x-echo"].to_str().unwrap().to_owned();
    let mut stream = response.into_body();
    let body = read_all(&mut stream).await?;
    let told = stream.trailers().await?;
    sending.await.unwrap();
    Ok((body, echo, told.is_some_and(|map| map["x-sum"] == "42")))
}

async fn our_server(course: Course) {
    let (near, far) = tokio::io::duplex(course.pipe);
    let ours = tokio::spawn(Ours::new(Role::Server, &course, near).run(0));
    let (client, connection) = h2::client::Builder::new()
        .initial_window_size(course.peer_stream)
        .initial_connection_window_size(course.peer_connection)
        .handshake::<_, Bytes>(far)
        .await
        .unwrap();
    let connection = tokio::spawn(connection);
    let mut calls = Vec::new();
    for call in CALLS.iter().chain(&CALLS) {
        calls.push((call, tokio::spawn(their_call(client.clone(), call))));
    }
    drop(client);
    for (call, task) in calls {
        match (call.path, task.await.unwrap()) {
            ("/echo", Ok((answer, echo, trailers))) => {
                let same = answer == body(call) && echo == header(call) && trailers;
                assert!(same, "{call:?} in {course:?}");
            }
            ("/reset", Err(error)) => {
                assert_eq!(error.reason(), Some(h2::Reason::ENHANCE_YOUR_CALM), "{error}");
            }
            ("/cancel", Err(error)) => assert_eq!(error.reason(), Some(h2::Reason::CANCEL)),
            (_, other) => panic!("{call:?} in {course:?}: {other:?}"),
        }
    }
    connection.await.unwrap().unwrap();
    let ours = ours.await.unwrap();
    assert_eq!((ours.conn.streams(), ours.exchanges.len()), (0, 0));
}

async fn their_answer(
    request: Request<h2::RecvStream>,
    mut respond: h2::server::SendResponse<Bytes>,
) -> Result<(), h2::Error> {
    match request.uri().path() {
        "/reset" => {
            respond.send_reset(h2::Reason::ENHANCE_YOUR_CALM);
            return Ok(());
        }
        "/cancel" => {
            respond.send_reset(h2::Reason::CANCEL);
            return Ok(());
        }
        _ => {}
    }
    let response =
        Response::builder().header("x-echo", &request.headers()["x-echo"]).body(()).unwrap();
    let mut incoming = request.into_body();
    let payload = read_all(&mut incoming).await?;
    let told = incoming.trailers().await?;
    let mut stream = respond.send_response(response, false)?;
    send_all(&mut stream, payload.into()).await?;
    if told.is_some() {
        stream.send_trailers(trailers())
    } else {
        stream.send_data(Bytes::new(), true)
    }
}

async fn our_client(course: Course) {
    let (near, far) = tokio::io::duplex(course.pipe);
    let count = 3 * CALLS.len();
    let mut ours = Ours::new(Role::Client, &course, near);
    ours.waiting = (0..count).rev().collect();
    let ours = tokio::spawn(ours.run(count));
    let mut server = h2::server::Builder::new()
        .initial_window_size(course.peer_stream)
        .initial_connection_window_size(course.peer_connection)
        .max_concurrent_streams(5)
        .handshake::<_, Bytes>(far)
        .await
        .unwrap();
    while let Some(incoming) = server.accept().await {
        // Our side hangs up when it has all its answers.
        let Ok((request, respond)) = incoming else { break };
        tokio::spawn(their_answer(request, respond));
    }
    let ours = ours.await.unwrap();
    assert_eq!(ours.done.len(), count);
    assert_eq!(ours.exchanges.len(), 0);
    for (number, outcome) in ours.done {
        let call = &CALLS[number % CALLS.len()];
        let expected = match call.path {
            "/reset" => Outcome::Reset(h2::Reason::ENHANCE_YOUR_CALM.into()),
            "/cancel" => Outcome::Reset(h2::Reason::CANCEL.into()),
            _ => Outcome::Answered {
                body: body(call),
                echo: header(call),
                trailers: number.is_multiple_of(3) && !(call.body == 0 && number.is_multiple_of(2)),
            },
        };
        assert!(outcome == expected, "{call:?} in {course:?}");
    }
}

#[tokio::test]
async fn our_server_and_the_h2_client_understand_each_other() {
    for course in COURSES {
        tokio::time::timeout(Duration::from_secs(60), our_server(course))
            .await
            .unwrap_or_else(|_| panic!("stuck in {course:?}"));
    }
}

#[tokio::test]
async fn our_client_and_the_h2_server_understand_each_other() {
    for course in COURSES {
        tokio::time::timeout(Duration::from_secs(60), our_client(course))
            .await
            .unwrap_or_else(|_| panic!("stuck in {course:?}"));
    }
}
