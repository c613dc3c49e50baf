//! HTTP/2 peers for tests: the protocol crate's connection at the other end, and what came in.

use ringway::net::{ConnId, Listener};
use ringway_proto::fields::{Field, Fields};
use ringway_proto::h2::{Conn, ErrorCode, Event, HeadKind, Limits, Role, StreamKey};

use super::world::{FUNCTION, VERSION, World};

/// One thing that a peer saw.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    Head { stream: u32, kind: HeadKind, fields: Vec<(String, String)>, end: bool },
    Data { stream: u32, bytes: Vec<u8>, end: bool },
    Reset { stream: u32, code: ErrorCode },
    Goaway { last: u32, code: ErrorCode },
    Pong([u8; 8]),
}

/// One end of an HTTP/2 connection.
pub(crate) struct Peer {
    pub(crate) conn: ConnId,
    pub(crate) h2: Conn,
    pub(crate) seen: Vec<Seen>,
    fields: Fields,
    block: Vec<u8>,
    keys: Vec<StreamKey>,
}

impl Peer {
    pub(crate) fn client(world: &mut World) -> Self {
        Self::client_with(world, |_| {})
    }

    pub(crate) fn client_with(world: &mut World, change: impl FnOnce(&mut Limits)) -> Self {
        let conn = world.connect(Listener::Client);
        let mut limits = Limits::default();
        change(&mut limits);
        let mut peer = Self::over(conn, Role::Client, limits, world);
        peer.start(world);
        peer.sync(world);
        peer
    }

    /// One end of a connection that nothing was said on.
    pub(crate) fn over(conn: ConnId, role: Role, limits: Limits, world: &World) -> Self {
        Self {
            conn,
            h2: Conn::new(role, limits, world.net.now),
            seen: Vec::new(),
            fields: Fields::new(),
            block: Vec::new(),
            keys: Vec::new(),
        }
    }

    pub(crate) fn start(&mut self, world: &mut World) {
        let mut out = Vec::new();
        self.h2.start(&mut out);
        world.send(self.conn, &out);
    }

    /// Polls for work, takes what there is and dials back; the tunnel is ready.
    pub(crate) fn worker(world: &mut World) -> Self {
        Self::worker_with(world, |_| {})
    }

    pub(crate) fn worker_with(world: &mut World, change: impl FnOnce(&mut Limits)) -> Self {
        let work = poll(world, &[]).expect("work");
        let mut limits = Limits::default();
        change(&mut limits);
        Self::dial(world, &work, limits)
    }

    pub(crate) fn dial_back_with(
        world: &mut World,
        work: &Work,
        change: impl FnOnce(&mut Limits),
    ) -> Self {
        let mut limits = Limits::default();
        change(&mut limits);
        Self::dial(world, work, limits)
    }

    pub(crate) fn dial_back(world: &mut World, work: &Work) -> Self {
        Self::dial(world, work, Limits::default())
    }

    fn dial(world: &mut World, work: &Work, limits: Limits) -> Self {
        let conn = world.connect(Listener::Worker);
        world.send(conn, work.connect().as_bytes());
        let answer = world.take(conn);
        Self::accepted(world, conn, &answer, limits)
    }

    /// The worker's end of a tunnel that was just accepted.
    pub(crate) fn accepted(world: &mut World, conn: ConnId, answer: &[u8], limits: Limits) -> Self {
        let mut peer = Self::over(conn, Role::Server, limits, world);
        let accepted = b"HTTP/1.1 200 OK\r\n\r\n";
        assert!(answer.starts_with(accepted), "{}", String::from_utf8_lossy(answer));
        peer.start(world);
        peer.read(world, &answer[accepted.len()..]);
        peer
    }

    /// The server that the shard has dialled.
    pub(crate) fn server(world: &mut World) -> Self {
        let (conn, _) = world.dialled(Ok(()));
        let mut peer = Self::over(conn, Role::Server, Limits::default(), world);
        peer.start(world);
        peer.sync(world);
        peer
    }

    /// Reads what the shard sent; answers of the connection itself go back.
    pub(crate) fn sync(&mut self, world: &mut World) {
        let bytes = world.take(self.conn);
        self.read(world, &bytes);
    }

    /// Reads bytes that were taken from its connection.
    pub(crate) fn read(&mut self, world: &mut World, bytes: &[u8]) {
        let (mut pos, mut out) = (0, Vec::new());
        loop {
            let now = world.net.now;
            let event = self.h2.next(bytes, &mut pos, &mut self.fields, &mut out, now);
            match event.expect("the gateway keeps the rules") {
                Event::More => break,
                event => self.note(event, bytes, &mut out),
            }
        }
        if !out.is_empty() {
            world.send(self.conn, &out);
        }
    }

    fn note(&mut self, event: Event, bytes: &[u8], out: &mut Vec<u8>) {
        match event {
            Event::Head { key, kind, end_stream, list, repeated } => {
                if let (true, Some(list)) = (repeated, list) {
                    assert!(self.h2.recall(list, &mut self.fields));
                }
                let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
                let fields = self.fields.iter().map(|f| (text(f.name), text(f.value))).collect();
                if kind == HeadKind::Request {
                    self.keys.push(key);
                }
                self.seen.push(Seen::Head { stream: key.id(), kind, fields, end: end_stream });
            }
            Event::Data { key, start, len, end_stream, .. } => {
                self.h2.drained(key, len, false, out);
                let stream = key.id();
                let bytes = bytes[start..start + len].to_vec();
                if let Some(Seen::Data { stream: last, bytes: so_far, end }) = self.seen.last_mut()
                    && *last == stream
                {
                    so_far.extend(bytes);
                    *end = end_stream;
                } else {
                    self.seen.push(Seen::Data { stream, bytes, end: end_stream });
                }
            }
            Event::Reset { key, code, .. } => {
                self.seen.push(Seen::Reset { stream: key.id(), code });
            }
            Event::Goaway { last, code } => self.seen.push(Seen::Goaway { last, code }),
            Event::Pong(payload) => self.seen.push(Seen::Pong(payload)),
            Event::HeadTooLarge { .. } => panic!("the gateway sent too large a head"),
            Event::Window(_) | Event::Settings | Event::More => {}
        }
    }

    /// Opens a stream with a request head.
    pub(crate) fn request(
        &mut self,
        world: &mut World,
        more: &[(&str, &str)],
        end: bool,
    ) -> StreamKey {
        let key = self.h2.open().expect("a stream");
        let mut fields = vec![
            (":method", "POST"),
            (":scheme", "http"),
            (":path", "/ringway.echo.v1.Echo/Unary"),
            (":authority", "gateway"),
            ("content-type", "application/grpc"),
            ("te", "trailers"),
            ("authorization", "Bearer dev-key"),
            ("function-id", FUNCTION),
            ("function-version-id", VERSION),
        ];
        for (name, value) in more {
            match fields.iter_mut().find(|(known, _)| known == name) {
                Some(known) => known.1 = value,
                None => fields.push((name, value)),
            }
        }
        fields.retain(|(_, value)| !value.is_empty());
        self.keys.push(key);
        self.head(world, key, &fields, end);
        key
    }

    pub(crate) fn head(
        &mut self,
        world: &mut World,
        key: StreamKey,
        fields: &[(&str, &str)],
        end: bool,
    ) {
        let mut out = Vec::new();
        let fields = fields.iter().map(|(n, v)| Field::new(n.as_bytes(), v.as_bytes()));
        self.h2.head(key, fields, end, &mut self.block, &mut out);
        world.send(self.conn, &out);
    }

    /// Sends DATA, as much as the windows allow at a time.
    pub(crate) fn data(&mut self, world: &mut World, key: StreamKey, mut bytes: &[u8], end: bool) {
        for _ in 0..1_000_000 {
            let n = self.h2.data_room(key).min(bytes.len());
            if n > 0 || bytes.is_empty() {
                let last = end && n == bytes.len();
                if n > 0 || last {
                    let mut out = self.h2.data_head(key, n, last).to_vec();
                    out.extend_from_slice(&bytes[..n]);
                    world.send(self.conn, &out);
                }
                bytes = &bytes[n..];
                if bytes.is_empty() {
                    return;
                }
            } else {
                self.sync(world);
                assert!(self.h2.data_room(key) > 0, "no credit for {} bytes", bytes.len());
            }
        }
        panic!("the transfer does not end");
    }

    pub(crate) fn reset(&mut self, world: &mut World, key: StreamKey, code: ErrorCode) {
        let mut out = Vec::new();
        self.h2.reset(key, code, &mut out);
        world.send(self.conn, &out);
    }

    pub(crate) fn goaway(&mut self, world: &mut World, last: u32) {
        let mut out = Vec::new();
        self.h2.goaway(last, ErrorCode::NoError, b"", &mut out);
        world.send(self.conn, &out);
    }

    pub(crate) fn forget_keys(&mut self) {
        self.keys.clear();
    }

    /// The `n`th stream that a head came on or was sent on.
    pub(crate) fn key(&self, n: usize) -> StreamKey {
        self.keys[n]
    }

    pub(crate) fn heads(&self) -> Vec<&Seen> {
        self.seen.iter().filter(|seen| matches!(seen, Seen::Head { .. })).collect()
    }

    /// The value of a field of the `n`th head seen.
    pub(crate) fn field(&self, n: usize, name: &str) -> Option<&str> {
        match self.heads().get(n)? {
            Seen::Head { fields, .. } => {
                fields.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
            }
            _ => None,
        }
    }

    /// All DATA of a stream, and whether it was ended by DATA.
    pub(crate) fn body(&self, stream: u32) -> (Vec<u8>, bool) {
        let mut body = (Vec::new(), false);
        for seen in &self.seen {
            if let Seen::Data { stream: id, bytes, end } = seen
                && *id == stream
            {
                body.0.extend_from_slice(bytes);
                body.1 |= end;
            }
        }
        body
    }
}

/// One answer to a poll.
#[derive(Clone, Debug)]
pub(crate) struct Work {
    pub(crate) kind: String,
    pub(crate) request_id: String,
    pub(crate) tenant: String,
    pub(crate) token: String,
}

impl Work {
    pub(crate) fn connect(&self) -> String {
        format!(
            "CONNECT /v1/proxy HTTP/1.1\r\nHost: 127.0.0.1:10086\r\nUser-Agent: Go-http-client/1.1\r\n\
             Authorization: Bearer {}\r\nX-Request-Id: {}\r\n\r\n",
            self.token, self.request_id
        )
    }
}

pub(crate) fn poll_request(ids: &[&str]) -> String {
    let ids: Vec<String> = ids.iter().map(|id| format!("\"{id}\"")).collect();
    let body = format!(
        r#"{{"functionId":"{FUNCTION}","functionVersionId":"{VERSION}","slots":1,"requestIds":[{}]}}"#,
        ids.join(",")
    );
    format!(
        "POST /v1/work HTTP/1.1\r\nHost: gateway\r\nAuthorization: Bearer dev-worker-key\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// One poll on a connection of its own; `None` if it is not answered at once.
pub(crate) fn poll(world: &mut World, ids: &[&str]) -> Option<Work> {
    let conn = world.connect(Listener::Worker);
    world.send(conn, poll_request(ids).as_bytes());
    let answer = world.take(conn);
    let work = read_work(&answer);
    world.end(conn, ringway::net::End::Fin);
    work
}

/// Answers of ours without their `date`.
pub(crate) fn undated(answers: &[u8]) -> Vec<u8> {
    let text = String::from_utf8_lossy(answers);
    let lines = text.split_inclusive("\r\n").filter(|line| !line.starts_with("date: "));
    lines.collect::<String>().into_bytes()
}

pub(crate) fn read_work(answer: &[u8]) -> Option<Work> {
    let text = String::from_utf8_lossy(answer);
    let (head, body) = text.split_once("\r\n\r\n")?;
    assert!(head.starts_with("HTTP/1.1 200 OK"), "{head}");
    let json: serde_json::Value = serde_json::from_str(body).expect("JSON");
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    Some(Work {
        kind: text(&json["kind"]),
        request_id: text(&json["requestId"]),
        tenant: text(&json["ncaId"]),
        token: text(&json["connections"][0]["http1"]["proxyAuthorizationToken"]),
    })
}
