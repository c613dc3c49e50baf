//! A scripted peer: frames written by hand, one side of a connection under test, and a transcript
//! of what it said and sent.
//!
//! A scenario is a function of a [`Side`]. [`play`] runs it with its input whole, byte by byte, and
//! cut in two at every position, and demands the same transcript each time.
#![expect(dead_code, unreachable_pub, reason = "each test file uses its part")]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use ringway_proto::fields::{Field, Fields};
use ringway_proto::h2::{
    Conn, ConnFault, ErrorCode, Event, HeadKind, Limits, NO_TAG, OpenError, Role, StreamKey,
};
use ringway_proto::time::Time;

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const PRIORITY: u8 = 2;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PUSH_PROMISE: u8 = 5;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

pub const ACK: u8 = 1;
pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;
pub const PADDED: u8 = 8;
pub const PRIORITISED: u8 = 0x20;

pub const MAGIC: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub const PROTOCOL: ErrorCode = ErrorCode::ProtocolError;
pub const FLOW: ErrorCode = ErrorCode::FlowControlError;
pub const CLOSED: ErrorCode = ErrorCode::StreamClosed;
pub const SIZE: ErrorCode = ErrorCode::FrameSizeError;
pub const CALM: ErrorCode = ErrorCode::EnhanceYourCalm;

// ---- writing ----

pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let len = (payload.len() as u32).to_be_bytes();
    let mut bytes = vec![len[1], len[2], len[3], kind, flags];
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

pub fn data(stream: u32, payload: &[u8]) -> Vec<u8> {
    frame(DATA, 0, stream, payload)
}

pub fn data_end(stream: u32, payload: &[u8]) -> Vec<u8> {
    frame(DATA, END_STREAM, stream, payload)
}

pub fn padded_data(stream: u32, flags: u8, payload: &[u8], padding: u8) -> Vec<u8> {
    frame(DATA, flags | PADDED, stream, &padded(payload, padding))
}

pub fn padded(payload: &[u8], padding: u8) -> Vec<u8> {
    [&[padding], payload, &vec![0; padding as usize][..]].concat()
}

pub fn reset(stream: u32, code: ErrorCode) -> Vec<u8> {
    frame(RST_STREAM, 0, stream, &code.number().to_be_bytes())
}

pub fn window_update(stream: u32, increment: u32) -> Vec<u8> {
    frame(WINDOW_UPDATE, 0, stream, &increment.to_be_bytes())
}

pub fn settings(parameters: &[(u16, u32)]) -> Vec<u8> {
    let mut payload = Vec::new();
    for (name, value) in parameters {
        payload.extend(name.to_be_bytes());
        payload.extend(value.to_be_bytes());
    }
    frame(SETTINGS, 0, 0, &payload)
}

pub fn settings_ack() -> Vec<u8> {
    frame(SETTINGS, ACK, 0, &[])
}

pub fn goaway(last: u32, code: ErrorCode) -> Vec<u8> {
    frame(GOAWAY, 0, 0, &[last.to_be_bytes(), code.number().to_be_bytes()].concat())
}

/// A header block of literals that touch no table.
pub fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, value) in fields {
        bytes.push(0);
        for text in [name, value] {
            length(text.len(), &mut bytes);
            bytes.extend(text.as_bytes());
        }
    }
    bytes
}

fn length(len: usize, bytes: &mut Vec<u8>) {
    if len < 127 {
        bytes.push(len as u8);
        return;
    }
    bytes.push(127);
    let mut rest = len - 127;
    while rest >= 128 {
        bytes.push(rest as u8 | 128);
        rest >>= 7;
    }
    bytes.push(rest as u8);
}

pub fn headers(stream: u32, flags: u8, fields: &[(&str, &str)]) -> Vec<u8> {
    frame(HEADERS, flags | END_HEADERS, stream, &block(fields))
}

pub const GET: &[(&str, &str)] =
    &[(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "a")];
pub const POST: &[(&str, &str)] =
    &[(":method", "POST"), (":scheme", "http"), (":path", "/"), (":authority", "a")];
pub const OK: &[(&str, &str)] = &[(":status", "200")];
pub const GRPC_OK: &[(&str, &str)] = &[("grpc-status", "0")];

/// A request without body.
pub fn get(stream: u32) -> Vec<u8> {
    headers(stream, END_STREAM, GET)
}

/// A request whose body is to come.
pub fn post(stream: u32) -> Vec<u8> {
    headers(stream, 0, POST)
}

// ---- reading ----

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

impl Frame {
    pub fn word(&self) -> u32 {
        u32::from_be_bytes(self.payload[..4].try_into().unwrap())
    }
}

/// The frames of an output, which must end where a frame ends.
pub fn frames(mut bytes: &[u8]) -> Vec<Frame> {
    let mut frames = Vec::new();
    while !bytes.is_empty() {
        let len = u32::from_be_bytes([0, bytes[0], bytes[1], bytes[2]]) as usize;
        frames.push(Frame {
            kind: bytes[3],
            flags: bytes[4],
            stream: u32::from_be_bytes(bytes[5..9].try_into().unwrap()),
            payload: bytes[9..9 + len].to_vec(),
        });
        bytes = &bytes[9 + len..];
    }
    frames
}

/// An event with what it pointed to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    Head { id: u32, kind: HeadKind, end: bool, fields: Vec<(String, String)> },
    TooLarge { id: u32, end: bool },
    Data { id: u32, bytes: Vec<u8>, end: bool },
    Reset { id: u32, tag: u32, code: ErrorCode, ours: bool },
    Window(Option<u32>),
    Goaway { last: u32, code: ErrorCode },
    Settings,
    Pong([u8; 8]),
}

// ---- the side under test ----

/// How a scenario's input is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cut {
    Whole,
    Bytes,
    At(usize),
}

pub struct Side {
    pub conn: Conn,
    pub fields: Fields,
    pub out: Vec<u8>,
    pub now: Time,
    pub seen: Vec<Seen>,
    /// Keys by the order their streams were first seen or opened in.
    pub keys: Vec<StreamKey>,
    pub fault: Option<ConnFault>,
    /// Give stream credit back as soon as payload is seen.
    pub drains: bool,
    scratch: Vec<u8>,
    cut: Cut,
    fed: usize,
    /// What there was to see and what was sent, feed by feed, if anybody asked for it.
    log: Option<Vec<String>>,
}

impl Side {
    fn new(role: Role, limits: Limits, cut: Cut) -> Self {
        let now = Time(1_000_000);
        Self {
            conn: Conn::new(role, limits, now),
            fields: Fields::new(),
            out: Vec::new(),
            now,
            seen: Vec::new(),
            keys: Vec::new(),
            fault: None,
            drains: false,
            scratch: Vec::new(),
            cut,
            fed: 0,
            log: None,
        }
    }

    /// A server that has exchanged prefaces with its client.
    pub fn server(limits: Limits) -> Self {
        Self::new(Role::Server, limits, Cut::Whole).started()
    }

    /// A client that has exchanged prefaces with its server.
    pub fn client(limits: Limits) -> Self {
        Self::new(Role::Client, limits, Cut::Whole).started()
    }

    /// Nothing exchanged yet.
    pub fn fresh(role: Role, limits: Limits) -> Self {
        Self::new(role, limits, Cut::Whole)
    }

    fn started(mut self) -> Self {
        let cut = std::mem::replace(&mut self.cut, Cut::Whole);
        self.conn.start(&mut self.out);
        if self.conn.highest_peer_stream() == 0 && !self.out.starts_with(MAGIC) {
            self.feed(MAGIC);
        }
        self.feed(&settings(&[]));
        self.feed(&settings_ack());
        assert_eq!(self.take_seen(), [Seen::Settings]);
        self.out.clear();
        (self.cut, self.fed) = (cut, 0);
        self
    }

    /// Feeds bytes as they came from the peer.
    pub fn feed(&mut self, bytes: &[u8]) {
        let (from, to) = (self.fed, self.fed + bytes.len());
        self.fed = to;
        match self.cut {
            Cut::At(at) if from < at && at < to => {
                self.feed_piece(&bytes[..at - from]);
                self.feed_piece(&bytes[at - from..]);
            }
            Cut::Bytes => bytes.chunks(1).for_each(|piece| self.feed_piece(piece)),
            _ => self.feed_piece(bytes),
        }
        if let Some(log) = &mut self.log {
            log.push(format!("{:?} {:?} {:?}", self.seen, self.out, self.fault));
        }
    }

    fn feed_piece(&mut self, input: &[u8]) {
        let mut pos = 0;
        loop {
            let (conn, fields) = (&mut self.conn, &mut self.fields);
            let before = pos;
            let event = match conn.next(input, &mut pos, fields, &mut self.out, self.now) {
                Ok(Event::More) => {
                    assert_eq!(pos, input.len(), "More means that the input is used up");
                    return;
                }
                Ok(event) => event,
                Err(fault) => {
                    assert!(self.fault.is_none_or(|before| before == fault));
                    self.fault = Some(fault);
                    return;
                }
            };
            assert!(before <= pos && pos <= input.len());
            self.note(event, input, pos);
        }
    }

    fn note(&mut self, event: Event, input: &[u8], pos: usize) {
        let seen = match event {
            Event::More => return,
            Event::Head { key, kind, end_stream, list, repeated } => {
                if let (true, Some(list)) = (repeated, list) {
                    assert!(self.conn.recall(list, &mut self.fields));
                }
                self.remember(key);
                let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
                let fields = self.fields.iter().map(|f| (text(f.name), text(f.value))).collect();
                Seen::Head { id: self.conn.id(key), kind, end: end_stream, fields }
            }
            Event::HeadTooLarge { key, end_stream } => {
                self.remember(key);
                Seen::TooLarge { id: self.conn.id(key), end: end_stream }
            }
            Event::Data { key, start, len, head_in_place, end_stream } => {
                assert_eq!(start + len, pos);
                assert!(len > 0 || end_stream);
                assert!(self.conn.is_open(key), "alive while its event is dealt with");
                let id = self.conn.id(key);
                if head_in_place {
                    let head = &input[start - 9..start];
                    assert_eq!((head[3], head[4] & PADDED), (DATA, 0));
                    assert_eq!(head[5..9], id.to_be_bytes());
                    let whole = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
                    assert!(len <= whole);
                }
                let bytes = input[start..start + len].to_vec();
                self.data(key, id, bytes, end_stream);
                return;
            }
            Event::Reset { key, tag, code, ours } => {
                assert!(!self.conn.is_open(key) && self.conn.tag(key) == NO_TAG);
                Seen::Reset { id: self.conn.id(key), tag, code, ours }
            }
            Event::Window(key) => Seen::Window(key.map(|key| self.conn.id(key))),
            Event::Goaway { last, code } => Seen::Goaway { last, code },
            Event::Settings => Seen::Settings,
            Event::Pong(payload) => Seen::Pong(payload),
        };
        self.seen.push(seen);
    }

    /// Pieces of payload are joined, wherever they were cut.
    fn data(&mut self, key: StreamKey, id: u32, bytes: Vec<u8>, end: bool) {
        if self.drains {
            self.conn.drained(key, bytes.len(), false, &mut self.out);
        }
        if let Some(Seen::Data { id: last, bytes: before, end: ended }) = self.seen.last_mut()
            && *last == id
            && !*ended
        {
            before.extend(bytes);
            *ended = end;
            return;
        }
        self.seen.push(Seen::Data { id, bytes, end });
    }

    fn remember(&mut self, key: StreamKey) {
        assert!(self.conn.is_open(key), "alive while its event is dealt with");
        if !self.keys.contains(&key) {
            self.keys.push(key);
        }
    }

    // ---- what the relay would do ----

    pub fn open(&mut self) -> Result<StreamKey, OpenError> {
        let key = self.conn.open()?;
        self.keys.push(key);
        Ok(key)
    }

    pub fn head(&mut self, key: StreamKey, fields: &[(&str, &str)], end: bool) {
        let fields = fields.iter().map(|(n, v)| Field::new(n.as_bytes(), v.as_bytes()));
        self.conn.head(key, fields, end, &mut self.scratch, &mut self.out);
    }

    /// Opens a stream with a request.
    pub fn ask(&mut self, fields: &[(&str, &str)], end: bool) -> StreamKey {
        let key = self.open().unwrap();
        self.head(key, fields, end);
        key
    }

    /// Sends as much payload as fits; how much that was.
    pub fn send(&mut self, key: StreamKey, payload: &[u8], end: bool) -> usize {
        let mut sent = 0;
        loop {
            let room = self.conn.data_room(key).min(payload.len() - sent);
            let last = sent + room == payload.len();
            if room == 0 && !(last && end) {
                return sent;
            }
            let head = self.conn.data_head(key, room, last && end);
            self.out.extend(head);
            self.out.extend(&payload[sent..sent + room]);
            sent += room;
            if last {
                return sent;
            }
        }
    }

    pub fn reset(&mut self, key: StreamKey, code: ErrorCode) {
        self.conn.reset(key, code, &mut self.out);
    }

    pub fn drained(&mut self, key: StreamKey, bytes: usize) {
        self.conn.drained(key, bytes, false, &mut self.out);
    }

    // ---- what a scenario expects ----

    pub fn take_seen(&mut self) -> Vec<Seen> {
        std::mem::take(&mut self.seen)
    }

    /// The frames sent since the last call.
    pub fn sent(&mut self) -> Vec<Frame> {
        frames(&std::mem::take(&mut self.out))
    }

    pub fn last_key(&self) -> StreamKey {
        *self.keys.last().unwrap()
    }

    /// The connection ended with this code.
    #[track_caller]
    pub fn expect_fault(&self, code: ErrorCode) {
        match self.fault {
            Some(fault) => assert_eq!(fault.code, code, "{}", fault.reason),
            None => panic!("no fault; seen {:?}", self.seen),
        }
    }

    #[track_caller]
    pub fn expect_no_fault(&self) {
        if let Some(fault) = self.fault {
            panic!("{fault}");
        }
    }

    /// The last frame sent is RST_STREAM with this code.
    #[track_caller]
    pub fn expect_reset(&mut self, id: u32, code: ErrorCode) {
        self.expect_no_fault();
        let sent = self.sent();
        let last = sent.last().expect("something was sent");
        assert_eq!((last.kind, last.stream), (RST_STREAM, id), "{sent:?}");
        assert_eq!(ErrorCode::of(last.word()), code);
    }

    /// As [`Self::expect_reset`], and the relay was told.
    #[track_caller]
    pub fn expect_stream_fault(&mut self, id: u32, code: ErrorCode) {
        self.expect_reset(id, code);
        let last = self.seen.last().cloned();
        assert_eq!(last, Some(Seen::Reset { id, tag: NO_TAG, code, ours: true }));
    }
}

/// Runs a scenario with its input cut in every way.
#[track_caller]
pub fn play(role: Role, limits: Limits, scenario: fn(&mut Side)) {
    let start = |cut| Side::new(role, limits, cut).started();
    play_from(start, scenario);
}

/// As [`play`], but from the first byte on.
#[track_caller]
pub fn play_fresh(role: Role, limits: Limits, scenario: fn(&mut Side)) {
    play_from(|cut| Side::new(role, limits, cut), scenario);
}

#[track_caller]
fn play_from(start: impl Fn(Cut) -> Side, scenario: fn(&mut Side)) {
    let run = |cut| {
        let mut side = start(cut);
        side.log = Some(Vec::new());
        scenario(&mut side);
        (side.log, side.fed)
    };
    let (whole, fed) = run(Cut::Whole);
    assert_eq!(run(Cut::Bytes).0, whole, "byte by byte");
    for at in 1..fed.min(4000) {
        assert_eq!(run(Cut::At(at)).0, whole, "cut at {at}");
    }
}

pub fn server(scenario: fn(&mut Side)) {
    play(Role::Server, Limits::default(), scenario);
}

pub fn client(scenario: fn(&mut Side)) {
    play(Role::Client, Limits::default(), scenario);
}
