//! Memory: what an idle connection owns, that the steady state allocates nothing, and that a burst
//! gives back what it took.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod h2_script;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;
use std::time::Duration;

use h2_script::*;
use ringway_proto::fields::{Field, Fields};
use ringway_proto::h2::{Conn, ErrorCode, Event, Limits, Role};
use ringway_proto::time::Time;

struct Counting;

thread_local! {
    static CALLS: Cell<usize> = const { Cell::new(0) };
    static LIVE: Cell<isize> = const { Cell::new(0) };
}

fn count(calls: usize, bytes: isize) {
    // A thread that is ending counts nothing.
    let _ = CALLS.try_with(|count| count.set(count.get() + calls));
    let _ = LIVE.try_with(|live| live.set(live.get() + bytes));
}

// SAFETY: all memory comes from and returns to the system's allocator, unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(1, layout.size() as isize);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(0, -(layout.size() as isize));
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(1, size as isize - layout.size() as isize);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn calls() -> usize {
    CALLS.with(Cell::get)
}

fn live() -> isize {
    LIVE.with(Cell::get)
}

/// A connection and the buffers its caller reuses.
struct Rig {
    conn: Conn,
    fields: Fields,
    scratch: Vec<u8>,
    out: Vec<u8>,
    now: Time,
    events: usize,
}

impl Rig {
    fn new(role: Role) -> Self {
        let mut rig = Self {
            conn: Conn::new(role, Limits::default(), Time::ZERO),
            fields: Fields::new(),
            scratch: Vec::with_capacity(4096),
            out: Vec::with_capacity(1 << 20),
            now: Time::ZERO,
            events: 0,
        };
        rig.conn.start(&mut rig.out);
        if role == Role::Server {
            rig.feed(MAGIC);
        }
        rig.feed(&settings(&[]));
        rig.feed(&settings_ack());
        rig
    }

    /// Answers every request as a relay would: head, a message, trailers.
    fn feed(&mut self, input: &[u8]) {
        self.out.clear();
        self.conn.set_answers_backlog(0);
        let mut pos = 0;
        loop {
            let (fields, out) = (&mut self.fields, &mut self.out);
            match self.conn.next(input, &mut pos, fields, out, self.now).unwrap() {
                Event::More => return,
                Event::Data { key, len, end_stream, .. } => {
                    self.events += 1;
                    self.conn.drained(key, len, false, out);
                    if end_stream && self.conn.sends(key) {
                        let head = [
                            Field::new(b":status", b"200"),
                            Field::new(b"content-type", b"application/grpc"),
                            Field::new(b"x-request-id", b"8b9cad0e"),
                        ];
                        self.conn.head(key, head.into_iter(), false, &mut self.scratch, out);
                        let frame = self.conn.data_head(key, 5, false);
                        out.extend(frame);
                        out.extend(b"hello");
                        let trailers = [Field::new(b"grpc-status", b"0")];
                        self.conn.head(key, trailers.into_iter(), true, &mut self.scratch, out);
                    }
                }
                _ => self.events += 1,
            }
        }
    }
}

const CALL: &[(&str, &str)] = &[
    (":method", "POST"),
    (":scheme", "http"),
    (":path", "/ringway.echo.v1.Echo/Unary"),
    (":authority", "gateway"),
    ("content-type", "application/grpc"),
    ("authorization", "Bearer dev-key"),
    ("function-id", "11111111-1111-4111-8111-111111111111"),
    ("te", "trailers"),
];

fn call(id: u32) -> Vec<u8> {
    let head = headers(id, 0, CALL);
    let pay = window_update(0, 5);
    [head, data(id, b"\0\0\0\0\x05"), pay, frame(PING, 0, 0, &[0; 8]), data_end(id, b"hello")]
        .concat()
}

#[test]
fn an_idle_connection_is_small() {
    // All connections share them.
    let limits = Arc::new(Limits::default());
    for role in [Role::Server, Role::Client] {
        let before = live();
        let mut conn = Conn::new(role, limits.clone(), Time::ZERO);
        let mut fields = Fields::new();
        let mut out = Vec::with_capacity(1000);
        let others = live() - before;
        conn.start(&mut out);
        let preface = if role == Role::Server { MAGIC } else { b"" };
        let input = [preface, &settings(&[(4, 1 << 20)])[..], &settings_ack()].concat();
        let with_input = live();
        let mut pos = 0;
        while conn.next(&input, &mut pos, &mut fields, &mut out, Time::ZERO) != Ok(Event::More) {}
        let heap = live() - with_input + others - 1000;
        let total = size_of::<Conn>() as isize + heap;
        println!("{role:?}: {} octets, {heap} of them on the heap", total);
        assert!(total <= 640, "{total}");
        assert_eq!(heap, 0);
    }
}

#[test]
fn calls_in_steady_state_allocate_nothing() {
    let mut rig = Rig::new(Role::Server);
    let inputs: Vec<_> = (0..4000).map(|n| call(2 * n + 1)).collect();
    for (n, input) in inputs.iter().enumerate() {
        let before = calls();
        rig.feed(input);
        if n >= 1000 {
            assert_eq!(calls(), before, "call {n}");
        }
    }
    assert_eq!(rig.conn.streams(), 0);
    assert!(rig.events > 3 * 4000);
}

#[test]
fn calls_cut_by_receives_allocate_nothing_either() {
    let mut rig = Rig::new(Role::Server);
    let inputs: Vec<_> = (0..4000).map(|n| call(2 * n + 1)).collect();
    for (n, input) in inputs.iter().enumerate() {
        let before = calls();
        let (a, b) = input.split_at(n % input.len());
        rig.feed(a);
        rig.feed(b);
        if n >= 1000 {
            assert_eq!(calls(), before, "call {n}");
        }
    }
    assert_eq!(rig.conn.streams(), 0);
}

#[test]
fn a_client_in_steady_state_allocates_nothing() {
    let mut rig = Rig::new(Role::Client);
    let answers: Vec<_> = (0..4000)
        .map(|n| {
            let id = 2 * n + 1;
            [headers(id, 0, OK), data(id, b"hello"), headers(id, END_STREAM, GRPC_OK)].concat()
        })
        .collect();
    for (n, answer) in answers.iter().enumerate() {
        let before = calls();
        rig.out.clear();
        let key = rig.conn.open().unwrap();
        let head = CALL.iter().map(|(n, v)| Field::new(n.as_bytes(), v.as_bytes()));
        rig.conn.head(key, head, false, &mut rig.scratch, &mut rig.out);
        let frame = rig.conn.data_head(key, 0, true);
        rig.out.extend(frame);
        rig.feed(answer);
        if n >= 1000 {
            assert_eq!(calls(), before, "call {n}");
        }
    }
    assert_eq!(rig.conn.streams(), 0);
}

#[test]
fn a_long_stream_allocates_nothing() {
    let mut rig = Rig::new(Role::Server);
    rig.feed(&post(1));
    let (small, large) = (data(1, b"12345"), data(1, &[0; 16_384]));
    for n in 0..2000 {
        let before = calls();
        rig.feed(&small);
        let (a, b) = large.split_at(1 + n * 8);
        rig.feed(a);
        rig.feed(b);
        assert_eq!(calls(), before, "frame {n}");
    }
}

#[test]
fn a_burst_gives_its_memory_back() {
    let before = live();
    let mut rig = Rig::new(Role::Client);
    rig.out = Vec::new();
    let start = live() - before;
    let keys: Vec<_> = (0..10_000)
        .map(|_| {
            let key = rig.conn.open().unwrap();
            let head = CALL.iter().map(|(n, v)| Field::new(n.as_bytes(), v.as_bytes()));
            rig.conn.head(key, head, false, &mut rig.scratch, &mut rig.out);
            key
        })
        .collect();
    for key in &keys {
        rig.conn.reset(*key, ErrorCode::Cancel, &mut rig.out);
    }
    drop(keys);
    rig.out = Vec::new();
    rig.conn.expired(rig.conn.deadline().unwrap() + Duration::from_secs(1)).unwrap();
    let more = live() - before - start;
    println!("{more} octets more than before the burst");
    assert!(more < 12_000, "HPACK table and a hundred ids: {more}");
}
