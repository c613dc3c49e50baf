//! What is counted. Each case warms up, then does the same many times; only what lies between two
//! calls of the switch is counted: the codec's or the shard's own work, never that of its peers.

use ringway_proto::fields::{Field, Fields};
use ringway_proto::h2::{Conn, Event, Limits, Role, StreamKey};
use ringway_proto::hpack::{Decoder, Encoder, HeaderLimits, TABLE_SIZE};
use ringway_proto::time::Time;

use crate::peer::Peer;
use crate::world::{FUNCTION, VERSION, World};

/// Switches counting on or off; what it returns is nobody's.
type Switch = fn() -> u64;

/// One thing to count.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    /// Does it, and says how often.
    pub(crate) run: fn(Switch) -> u64,
}

/// All of them, in the table's order.
pub(crate) const CASES: [Case; 12] = [
    Case { name: "frame walk, DATA of 100", run: |switch| frame_walk(switch, 100) },
    Case { name: "frame walk, DATA of 16384", run: |switch| frame_walk(switch, 16_384) },
    Case { name: "hpack decode, first head", run: |switch| decode(switch, false) },
    Case { name: "hpack decode, warm head", run: |switch| decode(switch, true) },
    Case { name: "hpack encode, first head", run: |switch| encode(switch, false) },
    Case { name: "hpack encode, warm head", run: |switch| encode(switch, true) },
    Case { name: "relay unary 100 B", run: |switch| unary(switch, 100, 1) },
    Case { name: "relay unary 100 B, 16 at once", run: |switch| unary(switch, 100, 16) },
    Case { name: "relay message 5 B, 64 at once", run: |switch| stream(switch, 5, (1, 64)) },
    Case { name: "relay message 1 KiB", run: |switch| stream(switch, 1029, (1, 1)) },
    Case { name: "relay message 1 KiB, 4 x 16", run: |switch| stream(switch, 1029, (4, 16)) },
    Case { name: "relay message 64 KiB", run: |switch| stream(switch, 65_541, (1, 1)) },
];

/// Repetitions before counting: tables are full, windows have grown, buffers have their size.
const WARM_UP: u64 = 200;

/// Repetitions counted.
const COUNTED: u64 = 200;

/// The head of a call as grpc-go sends it, with the three fields of the contract.
const REQUEST: [(&str, &str); 10] = [
    (":method", "POST"),
    (":scheme", "http"),
    (":path", "/ringway.echo.v1.Echo/Unary"),
    (":authority", "gateway.example:10081"),
    ("content-type", "application/grpc"),
    ("user-agent", "grpc-go/1.76.0"),
    ("te", "trailers"),
    ("authorization", "Bearer dev-key"),
    ("function-id", FUNCTION),
    ("function-version-id", VERSION),
];
const RESPONSE: [(&str, &str); 2] = [(":status", "200"), ("content-type", "application/grpc")];
const TRAILERS: [(&str, &str); 2] = [("grpc-status", "0"), ("grpc-message", "")];

fn list<'a>(pairs: &'a [(&'a str, &'a str)]) -> impl Iterator<Item = Field<'a>> + Clone {
    pairs.iter().map(|(name, value)| Field::new(name.as_bytes(), value.as_bytes()))
}

/// Does `work` with counting on.
fn counted<T>(switch: Switch, work: impl FnOnce() -> T) -> T {
    switch();
    let result = work();
    switch();
    result
}

// ---- the codec ----

/// DATA frames of one stream, 64 KiB at a time at most; an operation is a frame.
fn frame_walk(switch: Switch, len: usize) -> u64 {
    let (mut client, mut server, key) = ends();
    let frames = (64 * 1024 / (len + 9)).clamp(1, 64);
    let (mut fields, mut out, mut found) = (Fields::new(), Vec::new(), 0);
    for turn in 0..WARM_UP + COUNTED {
        let mut input = Vec::new();
        for _ in 0..frames {
            input.extend_from_slice(&client.data_head(key, len, false));
            input.resize(input.len() + len, 7);
        }
        let mut walk = || {
            let (mut pos, mut seen) = (0, 0);
            while let Ok(event) =
                server.next(&input, &mut pos, &mut fields, &mut out, Time(1_000_000))
            {
                match event {
                    Event::Data { key, len, .. } => {
                        server.drained(key, len, false, &mut out);
                        seen += 1;
                    }
                    Event::More => break,
                    _ => {}
                }
            }
            seen
        };
        if turn < WARM_UP {
            walk();
        } else {
            found += counted(switch, walk);
        }
        feed(&mut client, &out);
        out.clear();
    }
    found
}

/// Both ends of a connection with one open stream.
fn ends() -> (Conn, Conn, StreamKey) {
    let (mut client, mut server) = (
        Conn::new(Role::Client, Limits::default(), Time(1_000_000)),
        Conn::new(Role::Server, Limits::default(), Time(1_000_000)),
    );
    let (mut up, mut down) = (Vec::new(), Vec::new());
    client.start(&mut up);
    server.start(&mut down);
    down.extend(feed(&mut server, &up));
    up = feed(&mut client, &down);
    let key = client.open().expect("a first stream");
    client.head(key, list(&REQUEST), false, &mut Vec::new(), &mut up);
    feed(&mut server, &up);
    (client, server, key)
}

/// Feeds a connection and returns its answers.
fn feed(conn: &mut Conn, input: &[u8]) -> Vec<u8> {
    let (mut pos, mut fields, mut out) = (0, Fields::new(), Vec::new());
    while conn.next(input, &mut pos, &mut fields, &mut out, Time(1_000_000)) != Ok(Event::More) {
        assert!(pos <= input.len(), "a peer that keeps the rules");
    }
    out
}

fn decode(switch: Switch, warm: bool) -> u64 {
    let limits = HeaderLimits::default();
    let (mut encoder, mut decoder) = (Encoder::new(), Decoder::new(TABLE_SIZE));
    let mut fields = Fields::new();
    for turn in 0..WARM_UP + COUNTED {
        if !warm {
            (encoder, decoder) = (Encoder::new(), Decoder::new(TABLE_SIZE));
        }
        let mut block = Vec::new();
        encoder.begin(&mut block);
        list(&REQUEST).for_each(|field| encoder.field(field, &mut block));
        let mut read = || decoder.decode(&block, &mut fields, &limits);
        let verdict = if turn < WARM_UP { read() } else { counted(switch, read) };
        assert!(verdict.is_ok() && fields.len() == REQUEST.len());
    }
    COUNTED
}

fn encode(switch: Switch, warm: bool) -> u64 {
    let mut encoder = Encoder::new();
    let mut block = Vec::new();
    for turn in 0..WARM_UP + COUNTED {
        if !warm {
            encoder = Encoder::new();
        }
        block.clear();
        let mut write = || {
            encoder.begin(&mut block);
            list(&REQUEST).for_each(|field| encoder.field(field, &mut block));
        };
        if turn < WARM_UP { write() } else { counted(switch, write) }
    }
    COUNTED
}

// ---- the relay ----

/// A client and the worker of its session, both warm; the shard alone is counted.
struct Relay {
    world: World,
    client: Peer,
    worker: Peer,
    scratch: Vec<u8>,
}

impl Relay {
    fn new() -> Self {
        let mut world = World::new();
        let mut client = Peer::client(&mut world);
        client.request(&mut world, &[], true);
        let mut worker = Peer::worker(&mut world);
        worker.sync(&mut world);
        let key = worker.key(0);
        worker.head(&mut world, key, &RESPONSE, true);
        client.sync(&mut world);
        let mut relay = Self { world, client, worker, scratch: Vec::new() };
        relay.forget();
        relay
    }

    fn forget(&mut self) {
        for peer in [&mut self.client, &mut self.worker] {
            peer.seen.clear();
            peer.forget_keys();
        }
    }

    /// Opens streams; their keys at the worker.
    fn open(&mut self, streams: usize, body: &[u8]) -> Vec<StreamKey> {
        let mut out = Vec::new();
        for _ in 0..streams {
            let key = self.client.h2.open().expect("a stream");
            self.client.h2.head(key, list(&REQUEST), false, &mut self.scratch, &mut out);
            if !body.is_empty() {
                put(&mut self.client.h2, key, body, true, &mut out);
            }
        }
        self.world.send(self.client.conn, &out);
        self.worker.sync(&mut self.world);
        (0..streams).map(|n| self.worker.key(n)).collect()
    }

    /// The worker sends, and both read what came of it.
    fn pass(&mut self, bytes: &[u8]) {
        self.forget();
        self.world.send(self.worker.conn, bytes);
        self.client.sync(&mut self.world);
        self.worker.sync(&mut self.world);
    }

    fn send(&mut self, key: StreamKey, body: &[u8]) {
        let mut out = Vec::new();
        put(&mut self.worker.h2, key, body, false, &mut out);
        self.pass(&out);
    }
}

/// Appends DATA frames.
fn put(conn: &mut Conn, key: StreamKey, mut bytes: &[u8], end: bool, out: &mut Vec<u8>) {
    while !bytes.is_empty() {
        let (part, rest) = bytes.split_at(bytes.len().min(16_384));
        assert!(conn.data_room(key) >= part.len(), "the window has grown by now");
        out.extend_from_slice(&conn.data_head(key, part.len(), end && rest.is_empty()));
        out.extend_from_slice(part);
        bytes = rest;
    }
}

/// Unary calls with `len` octets each way, `at_once` in one receive; an operation is a call.
fn unary(switch: Switch, len: usize, at_once: usize) -> u64 {
    let mut relay = Relay::new();
    let body = vec![7; len];
    for turn in 0..WARM_UP + COUNTED {
        if turn == WARM_UP {
            relay.world.count = switch;
        }
        let keys = relay.open(at_once, &body);
        let (mut out, worker) = (Vec::new(), &mut relay.worker.h2);
        for key in keys {
            worker.head(key, list(&RESPONSE), false, &mut relay.scratch, &mut out);
            put(worker, key, &body, false, &mut out);
            worker.head(key, list(&TRAILERS), true, &mut relay.scratch, &mut out);
        }
        relay.world.send(relay.worker.conn, &out);
        relay.client.sync(&mut relay.world);
        assert_eq!(relay.client.heads().len(), 2 * at_once);
        relay.forget();
    }
    COUNTED * at_once as u64
}

/// Messages of `len` octets from the worker on long-lived streams; `at_once` of each stream come
/// together, in turn. An operation is a message.
fn stream(switch: Switch, len: usize, (streams, at_once): (usize, usize)) -> u64 {
    let mut relay = Relay::new();
    let message = vec![7; len];
    let keys = relay.open(streams, &[]);
    let mut out = Vec::new();
    for key in &keys {
        relay.worker.h2.head(*key, list(&RESPONSE), false, &mut relay.scratch, &mut out);
    }
    relay.world.send(relay.worker.conn, &out);
    relay.client.sync(&mut relay.world);
    // The first messages make the windows grow.
    for _ in 0..WARM_UP {
        for key in &keys {
            relay.send(*key, &[7; 32 * 1024]);
        }
    }
    for turn in 0..WARM_UP + COUNTED {
        if turn == WARM_UP {
            relay.world.count = switch;
        }
        let mut out = Vec::new();
        for _ in 0..at_once {
            for key in &keys {
                put(&mut relay.worker.h2, *key, &message, false, &mut out);
            }
        }
        relay.pass(&out);
    }
    COUNTED * (streams * at_once) as u64
}
