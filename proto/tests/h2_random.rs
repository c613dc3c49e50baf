//! Random peers: whatever the bytes and whatever the relay does in between, a connection does not
//! panic, sends only whole legal frames, and keeps its tables bounded. And two of ours, joined by
//! a pipe that cuts at random, understand each other to the last octet.

mod h2_script;

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use h2_script::*;
use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore, SeedableRng};
use ringway_proto::fields::{Field, Fields};
use ringway_proto::h2::{Conn, ErrorCode, Event, HeadKind, Limits, Role, StreamKey};
use ringway_proto::time::Time;

struct Dice(ChaCha8Rng);

impl Dice {
    fn new(seed: u64) -> Self {
        Self(ChaCha8Rng::seed_from_u64(seed))
    }

    fn below(&mut self, end: usize) -> usize {
        (self.0.next_u32() as usize) % end.max(1)
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    fn octets(&mut self, most: usize) -> Vec<u8> {
        let mut octets = vec![0; self.below(most + 1)];
        self.0.fill_bytes(&mut octets);
        octets
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }
}

fn tight() -> Limits {
    Limits {
        max_concurrent_streams: 20,
        stream_window: 3000,
        stream_window_max: 10_000,
        connection_window: 100_000,
        remembered_resets: 5,
        glitch_burst: 300,
        ..Limits::default()
    }
}

/// A stream for the next frame: mostly one that is open, now and then one that was, or a new one.
fn likely_id(dice: &mut Dice, side: &Side, fresh: u32) -> u32 {
    let open: Vec<_> = side.conn.keys().map(|key| side.conn.id(key)).collect();
    match dice.below(3000) {
        0 => 2 * dice.below(400) as u32 + 1,
        1..=90 if fresh > 1 => 2 * dice.below(fresh as usize / 2) as u32 + 1,
        _ if open.is_empty() => fresh.saturating_sub(2).max(1),
        _ => dice.pick(&open),
    }
}

/// A frame that is likely to get past the first checks.
fn likely_frame(dice: &mut Dice, role: Role, side: &Side, fresh: &mut u32) -> Vec<u8> {
    let id = likely_id(dice, side, *fresh);
    let end = dice.pick(&[0, 0, 0, END_STREAM]);
    let sized: &[(&str, &str)] = &[(":status", "200"), ("content-length", "900")];
    let heads: [&[(&str, &str)]; 4] = [OK, &[(":status", "103")], sized, GRPC_OK];
    if fresh == &1 && role == Role::Client {
        return frame(PRIORITY, 0, id, &[0, 0, 0, 0, 1]);
    }
    match if fresh == &1 { 0 } else { dice.below(600) } {
        0..=149 if role == Role::Server => {
            *fresh += 2;
            let sized = [POST, &[("content-length", "900")]].concat();
            let heads = [GET, POST, POST, &sized, &[("X", "y")]];
            let pairs = dice.pick(&heads);
            if dice.one_in(3) {
                let block = block(pairs);
                let (a, b) = block.split_at(dice.below(block.len()));
                let rest = frame(CONTINUATION, END_HEADERS, *fresh - 2, b);
                return [frame(HEADERS, end, *fresh - 2, a), rest].concat();
            }
            headers(*fresh - 2, end, pairs)
        }
        0..=149 => headers(id, end, dice.pick(&heads)),
        150..=169 => headers(id, END_STREAM, GRPC_OK),
        170..=399 => frame(DATA, end, id, &dice.octets(1000)),
        400..=449 => padded_data(id, end, &dice.octets(100), dice.below(256) as u8),
        450..=459 => reset(id, ErrorCode::of(dice.below(16) as u32)),
        460..=529 => window_update(dice.pick(&[0, id, id]), dice.pick(&[1, 100, 10_000])),
        530..=539 => settings(&[(4, dice.pick(&[0, 1, 100, 16_384, 70_000]))]),
        540..=544 => settings(&[(1, dice.pick(&[0, 100, 4096])), (3, dice.below(30) as u32)]),
        545..=559 => frame(PING, dice.pick(&[0, ACK]), 0, &[1; 8]),
        560..=579 => frame(PRIORITY, 0, id, &[0, 0, 0, dice.below(100) as u8, 1]),
        580..=584 => frame(0x40 + dice.below(100) as u8, 0xff, id, &dice.octets(20)),
        585..=589 => settings_ack(),
        590..=593 => goaway(id, CALM),
        594 => frame(dice.below(16) as u8, dice.below(256) as u8, id, &dice.octets(20)),
        595 => frame(HEADERS, END_HEADERS | end, id, &dice.octets(60)),
        596 => settings(&[(dice.below(8) as u16, dice.below(100_000) as u32)]),
        597 => dice.octets(30),
        _ => window_update(id, 0),
    }
}

/// What the relay might do at any time.
fn meddle(side: &mut Side, dice: &mut Dice, undrained: &mut HashMap<u32, usize>) {
    let key = match side.keys.len() {
        0 => return,
        n => side.keys[dice.below(n)],
    };
    match dice.below(8) {
        0 => side.head(key, dice.pick(&[OK, GRPC_OK, &[(":status", "103")]]), dice.one_in(3)),
        1 if side.conn.sends(key) => {
            let payload = dice.octets(3000);
            side.send(key, &payload, dice.one_in(4));
        }
        2 => side.reset(key, ErrorCode::of(dice.below(15) as u32)),
        3..=5 => {
            let id = side.conn.id(key);
            let bytes = undrained.remove(&id).unwrap_or(0);
            side.conn.drained(key, bytes, dice.one_in(2), &mut side.out);
        }
        6 => side.conn.hold_connection_credit(dice.one_in(2), &mut side.out),
        _ => {
            side.now += Duration::from_millis(dice.below(3000) as u64);
            if side.conn.deadline().is_some_and(|at| at <= side.now) {
                side.fault = side.conn.expired(side.now).err();
            }
        }
    }
}

fn check_output(side: &mut Side, seen: &[Seen]) {
    for frame in side.sent() {
        assert!(frame.kind <= 9 && frame.payload.len() <= 16_384);
        match frame.kind {
            WINDOW_UPDATE => assert!((1..1 << 31).contains(&frame.word())),
            RST_STREAM => assert!(frame.stream > 0 && frame.payload.len() == 4),
            _ => {}
        }
    }
    for event in seen {
        if let Seen::Head { fields, .. } = event {
            assert!(fields.iter().all(|(name, _)| !name.is_empty()));
        }
    }
}

/// How many frames the peer got through with.
fn random_peer(role: Role, seed: u64) -> usize {
    let mut dice = Dice::new(seed);
    let mut side = match role {
        Role::Server => Side::server(tight()),
        Role::Client => Side::client(tight()),
    };
    let (mut undrained, mut fresh) = (HashMap::new(), 1);
    for step in 0..500 {
        if role == Role::Client && dice.one_in(3) && side.conn.can_open() {
            let end = dice.one_in(2);
            let key = side.ask(dice.pick(&[GET, POST]), end);
            fresh = side.conn.id(key) + 2;
        }
        let mut bytes = likely_frame(&mut dice, role, &side, &mut fresh);
        if dice.one_in(1000) {
            let at = dice.below(bytes.len());
            if let Some(octet) = bytes.get_mut(at) {
                *octet ^= 1 << dice.below(8);
            }
        }
        let cut = dice.below(bytes.len() + 1);
        side.feed(&bytes[..cut]);
        if dice.one_in(2) {
            meddle(&mut side, &mut dice, &mut undrained);
        }
        side.feed(&bytes[cut..]);
        let seen = side.take_seen();
        for event in &seen {
            if let Seen::Data { id, bytes, .. } = event {
                *undrained.entry(*id).or_default() += bytes.len();
            }
        }
        check_output(&mut side, &seen);
        assert!(side.conn.streams() <= 20);
        assert_eq!(side.conn.keys().count(), side.conn.streams());
        if side.fault.is_some() {
            return step;
        }
        meddle(&mut side, &mut dice, &mut undrained);
        side.keys.retain(|key| side.conn.is_open(*key));
        assert!(side.keys.len() >= side.conn.streams());
    }
    500
}

#[test]
fn random_frames_never_panic_a_server() {
    let frames: usize = (0..1000).map(|seed| random_peer(Role::Server, seed)).sum();
    assert!(frames > 50_000, "they got past the first checks: {frames}");
}

#[test]
fn random_frames_never_panic_a_client() {
    let frames: usize = (0..1000).map(|seed| random_peer(Role::Client, seed)).sum();
    assert!(frames > 50_000, "they got past the first checks: {frames}");
}

#[test]
fn random_bytes_never_panic() {
    for seed in 0..3000 {
        let mut dice = Dice::new(seed);
        let role = dice.pick(&[Role::Server, Role::Client]);
        let mut side = Side::fresh(role, Limits::default());
        side.conn.start(&mut side.out);
        side.out.clear();
        if dice.one_in(2) {
            if role == Role::Server {
                side.feed(MAGIC);
            }
            side.feed(&settings(&[]));
        }
        for _ in 0..20 {
            side.feed(&dice.octets(200));
        }
        check_output(&mut side, &[]);
    }
}

// ---- two of ours ----

/// One end of the pipe: a relay that echoes (server) or asks (client).
struct End {
    role: Role,
    conn: Conn,
    fields: Fields,
    scratch: Vec<u8>,
    out: Vec<u8>,
    bodies: HashMap<StreamKey, Body>,
    finished: HashSet<u32>,
    cancelled: usize,
    now: Time,
}

#[derive(Default)]
struct Body {
    id: u32,
    send: Vec<u8>,
    sent: usize,
    end: bool,
    received: Vec<u8>,
    undrained: usize,
}

impl End {
    fn new(role: Role, limits: Limits) -> Self {
        let mut end = Self {
            role,
            conn: Conn::new(role, limits, Time::ZERO),
            fields: Fields::new(),
            scratch: Vec::new(),
            out: Vec::new(),
            bodies: HashMap::new(),
            finished: HashSet::new(),
            cancelled: 0,
            now: Time::ZERO,
        };
        end.conn.start(&mut end.out);
        end
    }

    fn head(&mut self, key: StreamKey, fields: &[(&str, &str)], end: bool) {
        let fields = fields.iter().map(|(n, v)| Field::new(n.as_bytes(), v.as_bytes()));
        self.conn.head(key, fields, end, &mut self.scratch, &mut self.out);
    }

    fn receive(&mut self, input: &[u8], dice: &mut Dice) {
        self.conn.set_answers_backlog(0);
        let mut pos = 0;
        loop {
            let (fields, out) = (&mut self.fields, &mut self.out);
            match self.conn.next(input, &mut pos, fields, out, self.now).expect("both are ours") {
                Event::More => return,
                Event::Head { key, kind, end_stream, list, repeated } => {
                    if let (true, Some(list)) = (repeated, list) {
                        assert!(self.conn.recall(list, &mut self.fields));
                    }
                    self.headed(key, kind, end_stream);
                }
                Event::Data { key, start, len, end_stream, .. } => {
                    let echoes = self.role == Role::Server;
                    let Some(body) = self.bodies.get_mut(&key) else { continue };
                    let piece = &input[start..start + len];
                    body.undrained += len;
                    if echoes {
                        body.send.extend(piece);
                        body.end = end_stream;
                    } else {
                        body.received.extend(piece);
                    }
                    if end_stream && !echoes {
                        self.answered(key);
                    }
                }
                Event::Reset { key, ours, .. } => {
                    assert!(!ours);
                    self.bodies.remove(&key);
                }
                _ => {}
            }
            if dice.one_in(4) {
                self.work(dice);
            }
        }
    }

    fn headed(&mut self, key: StreamKey, kind: HeadKind, end_stream: bool) {
        match kind {
            HeadKind::Request => {
                let id = self.conn.id(key);
                self.bodies.insert(key, Body { id, end: end_stream, ..Body::default() });
                self.head(key, OK, false);
            }
            HeadKind::Trailers if self.role == Role::Server => {
                self.bodies.get_mut(&key).expect("a stream we know").end = true;
            }
            HeadKind::Trailers => self.answered(key),
            HeadKind::Response | HeadKind::Informational => assert!(!end_stream),
        }
    }

    fn answered(&mut self, key: StreamKey) {
        let body = self.bodies.remove(&key).expect("a stream we know");
        assert!(body.received == body.send, "what came back is what was sent");
        self.finished.insert(body.id);
    }

    /// Sends what can be sent, drains what may be drained.
    fn work(&mut self, dice: &mut Dice) {
        for key in self.bodies.keys().copied().collect::<Vec<_>>() {
            let Some(body) = self.bodies.get_mut(&key) else { continue };
            let some = if dice.one_in(3) { dice.below(body.undrained + 1) } else { body.undrained };
            body.undrained -= some;
            self.conn.drained(key, some, dice.one_in(5), &mut self.out);
            while body.sent < body.send.len() {
                let rest = body.send.len() - body.sent;
                let len = self.conn.data_room(key).min(rest).min(1 + dice.below(20_000));
                if len == 0 {
                    break;
                }
                self.out.extend(self.conn.data_head(key, len, false));
                self.out.extend(&body.send[body.sent..body.sent + len]);
                body.sent += len;
            }
            if body.end && body.sent == body.send.len() && self.conn.sends(key) {
                let trailers = dice.one_in(2);
                if self.role == Role::Server {
                    self.bodies.remove(&key);
                }
                if trailers {
                    self.head(key, GRPC_OK, true);
                } else {
                    self.out.extend(self.conn.data_head(key, 0, true));
                }
            }
        }
    }

    fn ask(&mut self, dice: &mut Dice) {
        let Ok(key) = self.conn.open() else { return };
        let id = self.conn.id(key);
        let most = dice.pick(&[10, 1000, 100_000]);
        let body = Body { id, send: dice.octets(most), end: true, ..Body::default() };
        let length = body.send.len().to_string();
        let sized = [POST, &[("content-length", &length[..])]].concat();
        self.bodies.insert(key, body);
        self.head(key, if dice.one_in(2) { &sized } else { POST }, false);
    }
}

fn two_of_ours(seed: u64) {
    let mut dice = Dice::new(seed);
    let mut limits = || Limits {
        stream_window: dice.pick(&[300, 1000, 65_536]),
        stream_window_max: dice.pick(&[1000, 1 << 20]),
        connection_window: dice.pick(&[65_535, 1 << 20]),
        max_concurrent_streams: dice.pick(&[1, 10, 10_000]),
        // The smallest windows make dribbles of their own.
        glitch_burst: 1_000_000,
        ..Limits::default()
    };
    let (of_client, of_server) = (limits(), limits());
    let mut client = End::new(Role::Client, of_client);
    let mut server = End::new(Role::Server, of_server);
    let (mut asked, mut turn) = (0, 0);
    while asked < 40 || !client.bodies.is_empty() || !client.out.is_empty() {
        turn += 1;
        assert!(turn < 100_000, "seed {seed} is stuck");
        // The server's limit is known once it has our acknowledgement of it.
        if asked < 40 && server.conn.deadline().is_none() && client.conn.can_open() {
            client.ask(&mut dice);
            asked += 1;
        }
        if dice.one_in(100)
            && let Some(key) = client.bodies.keys().next().copied()
        {
            client.bodies.remove(&key);
            client.conn.reset(key, ErrorCode::Cancel, &mut client.out);
            client.cancelled += 1;
        }
        carry(&mut client, &mut server, &mut dice);
        carry(&mut server, &mut client, &mut dice);
    }
    while !server.out.is_empty() || !client.out.is_empty() {
        carry(&mut client, &mut server, &mut dice);
        carry(&mut server, &mut client, &mut dice);
    }
    assert_eq!((client.conn.streams(), server.conn.streams()), (0, 0), "seed {seed}");
    assert!(server.bodies.is_empty());
    assert_eq!(client.finished.len() + client.cancelled, 40);
}

/// Some of what one end has to say reaches the other.
fn carry(from: &mut End, to: &mut End, dice: &mut Dice) {
    from.now += Duration::from_millis(dice.below(20) as u64);
    from.work(dice);
    let len = if dice.one_in(3) { dice.below(from.out.len() + 1) } else { from.out.len() };
    let bytes: Vec<u8> = from.out.drain(..len).collect();
    for piece in bytes.chunks(1 + dice.below(5000)) {
        to.receive(piece, dice);
    }
}

#[test]
fn two_of_ours_understand_each_other() {
    (0..60).for_each(two_of_ours);
}
