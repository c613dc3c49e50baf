//! A connection that is carried elsewhere before its first answer goes on as if it had stayed: for
//! hundreds of made-up clients, cut anywhere.

mod h2_script;

use std::sync::Arc;

use h2_script::*;
use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore, SeedableRng};
use ringway_proto::fields::{Field, Fields};
use ringway_proto::h2::{Conn, Event, Limits, NotRestored, Role};
use ringway_proto::time::Time;

const NOW: Time = Time(1_000_000);

struct Dice(ChaCha8Rng);

impl Dice {
    fn below(&mut self, end: usize) -> usize {
        (self.0.next_u32() as usize) % end.max(1)
    }
}

/// A head whose fields enter the table, or come from it.
fn indexed(dice: &mut Dice) -> Vec<u8> {
    // `:method POST`, `:scheme http`, `:path /`.
    let mut bytes = vec![0x83, 0x86, 0x84];
    for _ in 0..dice.below(4) {
        let (name, value) = (dice.below(5) as u8, dice.below(3) as u8);
        bytes.extend([0x40, 3, b'x', b'-', b'a' + name, 1, b'0' + value]);
    }
    if bytes.len() > 3 && dice.below(3) == 0 {
        // The newest entry.
        bytes.push(0xbe);
    }
    bytes
}

/// What a client sends in its first moments, mostly as it should.
fn client(dice: &mut Dice) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    bytes.extend(settings(&[(4, 1 << (10 + dice.below(12))), (1, 100 * dice.below(60) as u32)]));
    let mut next = 1;
    for _ in 0..3 + dice.below(25) {
        let old = 1 + 2 * dice.below(next as usize / 2) as u32;
        // Most clients begin with a request, and few break a rule.
        let what = if next == 1 { 15 } else { dice.below(40) };
        bytes.extend(match what {
            0 | 16 => settings_ack(),
            1 => settings(&[(4, dice.below(100_000) as u32), (3, 5)]),
            2 | 17..=20 => frame(PING, 0, 0, &[dice.below(256) as u8; 8]),
            3 | 21..=24 => window_update(0, 1 + dice.below(5000) as u32),
            4 | 25..=28 => window_update(old, 1 + dice.below(5000) as u32),
            5 => reset(old, CALM),
            6 | 7 => data(old, &vec![b'd'; dice.below(2000)]),
            8 => padded_data(old, 0, &vec![b'p'; dice.below(50)], dice.below(200) as u8),
            9 => data_end(old, &vec![b'e'; dice.below(100)]),
            10 => frame(PRIORITY, 0, old, &[0, 0, 0, 0, 1]),
            11 => frame(0xee, 0, old, &vec![0; dice.below(30)]),
            12 => headers(old, END_STREAM, GRPC_OK),
            _ => {
                let (block, end) = (indexed(dice), (dice.below(2) as u8) * END_STREAM);
                let id = next;
                next += 2;
                let at = dice.below(block.len() + 1);
                match dice.below(3) {
                    0 => {
                        let rest = frame(CONTINUATION, END_HEADERS, id, &block[at..]);
                        [frame(HEADERS, end, id, &block[..at]), rest].concat()
                    }
                    _ => frame(HEADERS, end | END_HEADERS, id, &block),
                }
            }
        });
    }
    bytes
}

/// A connection, and all that it told and wrote.
struct Played {
    conn: Conn,
    fields: Fields,
    out: Vec<u8>,
    seen: Vec<String>,
}

impl Played {
    fn new(conn: Conn) -> Self {
        let (out, seen) = (Vec::new(), Vec::new());
        Self { conn, fields: Fields::new(), out, seen }
    }

    fn feed(&mut self, input: &[u8]) {
        let mut pos = 0;
        loop {
            let event = self.conn.next(input, &mut pos, &mut self.fields, &mut self.out, NOW);
            if event == Ok(Event::More) {
                return;
            }
            if let Ok(Event::Head { key, list: Some(list), repeated: true, .. }) = event {
                assert!(self.conn.recall(list, &mut self.fields), "{key:?}");
            }
            self.seen.push(format!("{event:?} {:?}", self.fields));
            if event.is_err() {
                return;
            }
        }
    }

    /// Answers whatever is open, and tells what can be told.
    fn finish(&mut self) {
        let mut keys: Vec<_> = self.conn.keys().collect();
        keys.sort_by_key(|key| key.id());
        let list = [Field::new(b":status", b"200"), Field::new(b"x-answer", b"yes")];
        for key in keys {
            let mut scratch = Vec::new();
            self.conn.head(key, list.into_iter(), true, &mut scratch, &mut self.out);
        }
        let conn = &self.conn;
        let told = (conn.deadline(), conn.streams(), conn.partial(), conn.glitches_high());
        let more = (conn.highest_peer_stream(), conn.wants_pause(), conn.peer_max_streams());
        self.seen.push(format!("{told:?} {more:?} {}", conn.encoder_generation()));
    }
}

fn fed_in_pieces(dice: &mut Dice, side: &mut Played, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        let most = [1, 9, 40, 10_000][dice.below(4)];
        let (now, later) = bytes.split_at(1 + dice.below(bytes.len().min(most)));
        side.feed(now);
        bytes = later;
    }
}

#[test]
fn a_carried_connection_goes_on_as_if_it_had_stayed() {
    let (mut carried_ones, mut with_streams, mut ended) = (0, 0, 0);
    for seed in 0..900 {
        let mut dice = Dice(ChaCha8Rng::seed_from_u64(seed));
        let limits = Arc::new(Limits::default());
        let bytes = client(&mut dice);
        let (before, after) = bytes.split_at(MAGIC.len() + dice.below(bytes.len() - MAGIC.len()));
        let mut stays = Played::new(Conn::new(Role::Server, limits.clone(), NOW));
        stays.conn.start(&mut stays.out);
        fed_in_pieces(&mut dice, &mut stays, before);
        let Some(carried) = stays.conn.carried(before.to_vec(), 0) else {
            assert!(stays.seen.last().is_some_and(|last| last.starts_with("Err")), "{seed}");
            ended += 1;
            continue;
        };
        assert_eq!(carried.written as usize, stays.out.len(), "{seed}");
        let mut said = Vec::new();
        // The receiver may announce other limits. The connection goes on with those that its client
        // was told.
        let there =
            Limits { stream_window: 20_000, max_concurrent_streams: 7, ..Limits::default() };
        let at = if seed % 2 == 0 { limits } else { Arc::new(there) };
        let conn = Conn::restored(&at, &carried, NOW, &mut said).expect("it was carried");
        assert_eq!(said, [0; 0], "{seed}: nothing is said twice");
        let mut goes = Played::new(conn);
        assert_eq!(goes.conn.streams(), stays.conn.streams(), "{seed}");
        carried_ones += 1;
        with_streams += usize::from(goes.conn.streams() > 0);
        (stays.out, stays.seen) = (Vec::new(), Vec::new());
        stays.fields = Fields::new();
        let cuts = dice.0.clone();
        fed_in_pieces(&mut dice, &mut stays, after);
        fed_in_pieces(&mut Dice(cuts), &mut goes, after);
        stays.finish();
        goes.finish();
        assert_eq!(goes.seen, stays.seen, "{seed}");
        assert_eq!(goes.out, stays.out, "{seed}");
    }
    assert!(
        carried_ones > 500 && with_streams > 300 && ended > 0,
        "{carried_ones} {with_streams} {ended}"
    );
}

#[test]
fn what_nobody_has_answered_is_answered_where_it_comes_to() {
    let limits = Arc::new(Limits::default());
    let mut side = Played::new(Conn::new(Role::Server, limits.clone(), NOW));
    side.conn.start(&mut side.out);
    let first = [MAGIC, &settings(&[])].concat();
    side.feed(&first);
    let mut carried = side.conn.carried(first, 0).expect("nothing was answered");
    let mut whole = Vec::new();
    carried.received.extend(frame(PING, 0, 0, &[7; 8]));
    Conn::restored(&limits, &carried, NOW, &mut whole).expect("it can be read");
    assert_eq!(whole, frame(PING, ACK, 0, &[7; 8]));
    carried.written += 18;
    let more = Conn::restored(&limits, &carried, NOW, &mut whole).err();
    assert_eq!(more, Some(NotRestored::SaysLess));
    carried.written = 3;
    assert_eq!(carried.begin(&limits, NOW).err(), Some(NotRestored::SaysLess));
}

/// A client may ask for several things in one write, and a connection leaves at the first of them.
#[test]
fn what_was_not_read_before_it_was_carried_is_read_where_it_comes_to() {
    let limits = Arc::new(Limits::default());
    let mut side = Played::new(Conn::new(Role::Server, limits.clone(), NOW));
    side.conn.start(&mut side.out);
    let read = [MAGIC, &settings(&[]), &post(1)].concat();
    side.feed(&read);
    let unread = [frame(PING, 0, 0, &[7; 8]), post(3)].concat();
    let received = [&read[..], &unread].concat();
    assert_eq!(side.conn.carried(received.clone(), 0), None, "it has not read so much");
    let carried = side.conn.carried(received, unread.len()).expect("nothing was answered");
    assert_eq!(carried.written as usize, side.out.len());
    let mut said = Vec::new();
    let there = Conn::restored(&limits, &carried, NOW, &mut said).expect("it was carried");
    assert_eq!((said, there.streams()), (frame(PING, ACK, 0, &[7; 8]), 2));
    assert_eq!(side.conn.carried(read, 10_000), None, "more than there is");
}

#[test]
fn who_has_been_answered_stays() {
    let fresh = || {
        let mut side = Played::new(Conn::new(Role::Server, Limits::default(), NOW));
        side.conn.start(&mut side.out);
        let bytes = [MAGIC, &settings(&[]), &post(1)].concat();
        side.feed(&bytes);
        let key = side.conn.keys().next().expect("a stream");
        assert!(side.conn.carried(bytes.clone(), 0).is_some());
        (side.conn, key, bytes)
    };
    let speak: [fn(&mut Conn, ringway_proto::h2::StreamKey); 4] = [
        |conn, key| {
            let list = [Field::new(b":status", b"103")];
            conn.head(key, list.into_iter(), false, &mut Vec::new(), &mut Vec::new());
        },
        |conn, key| conn.reset(key, CALM, &mut Vec::new()),
        |conn, _| conn.goaway(1, CALM, b"", &mut Vec::new()),
        |conn, _| conn.ping([0; 8], &mut Vec::new()),
    ];
    for speak in speak {
        let (mut conn, key, bytes) = fresh();
        speak(&mut conn, key);
        assert_eq!(conn.carried(bytes, 0), None);
    }
    let (conn, _, bytes) = fresh();
    assert_eq!(conn.carried(bytes[..40].to_vec(), 0), None, "that is not what it has read");
    let client = Conn::new(Role::Client, Limits::default(), NOW);
    assert_eq!(client.carried(Vec::new(), 0), None);
    let told = format!("{:?}", conn.carried(bytes, 0).expect("nothing was answered"));
    assert!(!told.contains("80, 82, 73"), "what was received is for no log: {told}");
}
