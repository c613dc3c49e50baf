//! What a hostile peer can do to a connection, and what an honest one that looks like it may:
//! every flood ends in exactly the reaction of the limit table, every honest twin lives.

mod h2_script;

use std::time::Duration;

use h2_script::*;
use ringway_proto::h2::frame::setting;
use ringway_proto::h2::{ErrorCode, LimitId, Limits, Role};

/// Feeds the same bytes until the connection has had enough; how often it took them.
fn until_fault(side: &mut Side, mut bytes: impl FnMut(u32) -> Vec<u8>) -> u32 {
    for n in 0..100_000 {
        side.feed(&bytes(n));
        side.out.clear();
        side.seen.clear();
        if side.fault.is_some() {
            return n;
        }
    }
    panic!("no reaction");
}

#[track_caller]
fn expect_limit(side: &Side, limit: LimitId, code: ErrorCode) {
    side.expect_fault(code);
    assert_eq!(side.fault.and_then(|fault| fault.limit), Some(limit));
    assert_eq!(side.conn.limit_hit(), Some(limit));
}

// ---- L1 ----

#[test]
fn l1_ten_thousand_streams_are_served_and_the_next_is_refused() {
    let mut side = Side::server(Limits::default());
    for n in 0..10_000 {
        side.feed(&post(2 * n + 1));
    }
    assert_eq!((side.conn.streams(), side.seen.len()), (10_000, 10_000));
    assert!(side.out.is_empty());
    side.feed(&post(20_001));
    side.expect_reset(20_001, ErrorCode::RefusedStream);
    side.feed(&reset(1, ErrorCode::Cancel));
    side.feed(&post(20_003));
    assert_eq!(side.conn.streams(), 10_000);
}

#[test]
fn l1_refused_streams_are_glitches() {
    let limits = Limits { max_concurrent_streams: 1, ..Limits::default() };
    let mut side = Side::server(limits);
    side.feed(&post(1));
    let taken = until_fault(&mut side, |n| get(2 * n + 3));
    assert_eq!(taken, 1000);
    expect_limit(&side, LimitId::L5, CALM);
}

#[test]
fn l1_a_client_that_does_not_know_the_limit_yet_is_refused_without_blame() {
    let limits = Limits { max_concurrent_streams: 1, ..Limits::default() };
    let mut side = Side::fresh(Role::Server, limits);
    side.conn.start(&mut side.out);
    side.feed(MAGIC);
    side.feed(&settings(&[]));
    for n in 0..3000 {
        side.feed(&post(2 * n + 1));
    }
    side.expect_no_fault();
    assert_eq!(side.conn.streams(), 1);
    assert!(!side.conn.glitches_high());
}

#[test]
fn l1_a_client_that_never_acknowledges_the_limit_is_excused_for_what_was_on_its_way() {
    let limits = Limits { max_concurrent_streams: 1, ..Limits::default() };
    let mut side = Side::fresh(Role::Server, limits);
    side.conn.start(&mut side.out);
    side.feed(MAGIC);
    side.feed(&settings(&[]));
    side.feed(&post(1));
    let taken = until_fault(&mut side, |n| get(2 * n + 3));
    assert_eq!(taken, 10_000 + 1000);
    expect_limit(&side, LimitId::L5, CALM);
}

// ---- L2, L3, L4 ----

#[test]
fn l2_an_hpack_bomb_ends_the_connection() {
    // One entry of 3 900 octets, then one octet a reference.
    let mut side = Side::server(Limits::default());
    let mut bomb = block(GET);
    bomb.extend([0x40, 1, b'x', 0x7f]);
    let len = 3900 - 127;
    bomb.extend([(len % 128) as u8 | 128, (len / 128) as u8]);
    bomb.extend([b'v'; 3900]);
    bomb.extend([0xbe; 300]);
    side.feed(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &bomb));
    expect_limit(&side, LimitId::L2, CALM);
    // Tiny entries: it is their number that counts.
    let mut side = Side::server(Limits::default());
    let bomb = [block(GET), vec![0x82; 4100]].concat();
    side.feed(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &bomb));
    expect_limit(&side, LimitId::L2, CALM);
}

#[test]
fn l2_a_large_honest_head_passes() {
    let mut side = Side::server(Limits::default());
    let value = "v".repeat(200);
    let fields = [GET, &[("x-name", &value[..]); 240]].concat();
    let bytes = block(&fields);
    let (first, rest) = bytes.split_at(16_384);
    side.feed(&frame(HEADERS, END_STREAM, 1, first));
    let parts: Vec<_> = rest.chunks(16_384).collect();
    for (n, part) in parts.iter().enumerate() {
        let last = if n + 1 == parts.len() { END_HEADERS } else { 0 };
        side.feed(&frame(CONTINUATION, last, 1, part));
    }
    side.expect_no_fault();
    assert!(matches!(&side.seen[..], [Seen::Head { fields, .. }] if fields.len() == 244));
}

#[test]
fn l3_continuation_floods_end_the_connection() {
    let mut side = Side::server(Limits::default());
    side.feed(&frame(HEADERS, 0, 1, &block(GET)));
    let taken = until_fault(&mut side, |_| frame(CONTINUATION, 0, 1, b"\0\x01x\0"));
    assert_eq!(taken, 68, "four times what one message may take");
    expect_limit(&side, LimitId::L3, CALM);

    let mut side = Side::server(Limits::default());
    side.feed(&frame(HEADERS, 0, 1, &block(GET)));
    let taken = until_fault(&mut side, |_| frame(CONTINUATION, 0, 1, &[0; 16_000]));
    assert_eq!(taken, 65, "1 MiB");
    expect_limit(&side, LimitId::L3, CALM);

    let mut side = Side::server(Limits::default());
    side.feed(&frame(HEADERS, 0, 1, b""));
    side.expect_no_fault();
    side.feed(&frame(CONTINUATION, 0, 1, b""));
    expect_limit(&side, LimitId::L3, CALM);
}

#[test]
fn l3_a_block_is_judged_by_its_declared_length() {
    let mut side = Side::server(Limits { block_bytes: 100, ..Limits::default() });
    side.feed(&frame(HEADERS, END_HEADERS, 1, &[0; 101])[..9]);
    expect_limit(&side, LimitId::L3, CALM);
}

#[test]
fn l3_seventeen_continuations_and_one_empty_fragment_pass() {
    let mut side = Side::server(Limits::default());
    let bytes = block(&[GET, &[("x-long", "not in any table, and of some length")]].concat());
    side.feed(&in_pieces(1, &bytes, 17));
    side.expect_no_fault();
    assert!(matches!(&side.take_seen()[..], [Seen::Head { fields, .. }] if fields.len() == 5));
    // One more costs the message alone, and its block is decoded.
    side.feed(&in_pieces(3, &bytes, 18));
    side.expect_no_fault();
    assert_eq!(side.take_seen(), [Seen::TooLarge { id: 3, end: true }]);
    assert_eq!(side.fields.get(4).unwrap().name, b"x-long");
    side.feed(&in_pieces(5, &bytes, 68));
    side.expect_no_fault();
    assert_eq!(side.take_seen(), [Seen::TooLarge { id: 5, end: true }]);
    side.feed(&in_pieces(7, &bytes, 69));
    expect_limit(&side, LimitId::L3, CALM);
}

/// A block in an empty HEADERS frame and this many CONTINUATIONs, most of them of one octet.
fn in_pieces(stream: u32, block: &[u8], count: usize) -> Vec<u8> {
    // More pieces than octets: the block is told again what it says already.
    let padded = [block, &vec![0x82; count.saturating_sub(block.len())]].concat();
    let mut bytes = frame(HEADERS, END_STREAM, stream, b"");
    for n in 0..count - 1 {
        bytes.extend(frame(CONTINUATION, 0, stream, &padded[n..=n]));
    }
    bytes.extend(frame(CONTINUATION, END_HEADERS, stream, &padded[count - 1..]));
    bytes
}

/// A field section whose list has this size as L2 counts, of so many fields behind `first`.
fn section<'a>(
    first: &[(&'a str, &'a str)],
    value: &'a str,
    size: usize,
    count: usize,
) -> Vec<(&'a str, &'a str)> {
    let used: usize = first.iter().map(|(n, v)| n.len() + v.len() + 32).sum();
    let each = (size - used) / count;
    let mut list = first.to_vec();
    list.extend((1..count).map(|_| ("x", &value[..each - 33])));
    let rest = size - used - each * (count - 1);
    list.push(("x", &value[..rest - 33]));
    list
}

/// HEADERS and as many CONTINUATIONs as frames of 16 KiB make necessary.
fn in_frames(stream: u32, flags: u8, block: &[u8]) -> Vec<u8> {
    let parts: Vec<_> = block.chunks(16_384).collect();
    let mut bytes = Vec::new();
    for (n, part) in parts.iter().enumerate() {
        let last = if n + 1 == parts.len() { END_HEADERS } else { 0 };
        let (kind, flags) = if n == 0 { (HEADERS, flags) } else { (CONTINUATION, 0) };
        bytes.extend(frame(kind, flags | last, stream, part));
    }
    bytes
}

#[test]
fn l2_heads_and_trailers_pass_up_to_both_limits_and_cost_themselves_beyond() {
    const OK: &[(&str, &str)] = &[(":status", "200")];
    let value = "v".repeat(256 * 1024);
    // Few large fields; as many as may be.
    for count in [1, 250, 1000] {
        let whole = |first| block(&section(first, &value, 256 * 1024, count));
        let over = |first| block(&section(first, &value, 256 * 1024 + 1, count));
        let mut side = Side::server(Limits::default());
        side.feed(&in_frames(1, END_STREAM, &whole(GET)));
        side.feed(&in_frames(3, END_STREAM, &over(GET)));
        side.feed(&in_frames(5, 0, &block(POST)));
        side.feed(&in_frames(5, END_STREAM, &whole(&[])));
        side.expect_no_fault();
        let told = side.take_seen();
        assert!(matches!(&told[0], Seen::Head { fields, .. } if fields.len() == count + 4));
        assert_eq!(told[1], Seen::TooLarge { id: 3, end: true });
        assert!(matches!(&told[3], Seen::Head { fields, .. } if fields.len() == count));

        let mut side = Side::client(Limits::default());
        for n in 0..3 {
            side.ask(GET, true);
            let head = if n == 1 { over(OK) } else { whole(OK) };
            side.feed(&in_frames(2 * n + 1, 0, &head));
        }
        side.feed(&in_frames(1, END_STREAM, &whole(&[])));
        side.feed(&in_frames(5, END_STREAM, &over(&[])));
        side.expect_no_fault();
        let told = side.take_seen();
        assert_eq!(told[1], Seen::TooLarge { id: 3, end: false });
        assert!(matches!(&told[3], Seen::Head { fields, .. } if fields.len() == count));
        assert_eq!(told[4], Seen::TooLarge { id: 5, end: true });
    }
    let mut side = Side::server(Limits::default());
    side.feed(&in_frames(1, END_STREAM, &block(&[GET, &[("x", "y"); 1020]].concat())));
    side.feed(&in_frames(3, END_STREAM, &block(&[GET, &[("x", "y"); 1021]].concat())));
    side.expect_no_fault();
    assert!(matches!(&side.seen[0], Seen::Head { fields, .. } if fields.len() == 1024));
    assert_eq!(side.seen[1], Seen::TooLarge { id: 3, end: true });
    assert_eq!(side.conn.partial(), 0, "nothing of it is kept");
}

#[test]
fn l4_a_larger_table_than_ours_ends_the_connection() {
    let mut side = Side::server(Limits::default());
    side.feed(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &[0x3f, 0xe2, 0x1f]));
    expect_limit(&side, LimitId::L4, ErrorCode::CompressionError);
}

#[test]
fn l4_we_never_use_a_larger_table_than_ours() {
    let mut side = Side::client(Limits::default());
    side.feed(&settings(&[(setting::HEADER_TABLE_SIZE, 1 << 20)]));
    side.sent();
    side.ask(GET, true);
    let block = side.sent().pop().unwrap().payload;
    assert_ne!(block[0] & 0xe0, 0x20, "no size update: 4 096 it was and is");
}

// ---- L5 ----

#[test]
fn l5_rapid_reset_ends_the_connection() {
    let mut side = Side::server(Limits::default());
    let rapid = |n| [get(2 * n + 1), reset(2 * n + 1, ErrorCode::Cancel)].concat();
    let taken = until_fault(&mut side, rapid);
    assert_eq!(taken, 1000);
    expect_limit(&side, LimitId::L5, CALM);
    assert!(side.conn.streams() <= 1);
}

#[test]
fn l5_an_informational_head_is_no_answer_yet() {
    let mut side = Side::server(Limits::default());
    for n in 0.. {
        side.feed(&get(2 * n + 1));
        side.head(side.last_key(), &[(":status", "103")], false);
        side.feed(&reset(2 * n + 1, ErrorCode::Cancel));
        if side.fault.is_some() {
            assert_eq!(n, 1000);
            break;
        }
        side.out.clear();
    }
    expect_limit(&side, LimitId::L5, CALM);
}

#[test]
fn l5_resets_after_our_head_are_honest() {
    let mut side = Side::server(Limits::default());
    for n in 0..5000 {
        side.feed(&post(2 * n + 1));
        side.head(side.last_key(), OK, false);
        side.feed(&reset(2 * n + 1, ErrorCode::Cancel));
        side.out.clear();
    }
    side.expect_no_fault();
    assert!(!side.conn.glitches_high());
}

#[test]
fn l5_calls_that_are_cancelled_together_are_honest() {
    // Deadlines of one instant, or a user who leaves.
    let mut side = Side::server(Limits::default());
    for n in 0..9_000 {
        side.feed(&get(2 * n + 1));
    }
    side.now += Duration::from_millis(100);
    for n in 0..9_000 {
        side.feed(&reset(2 * n + 1, ErrorCode::Cancel));
    }
    side.expect_no_fault();
    assert!(!side.conn.glitches_high());
    assert_eq!(side.conn.streams(), 0);
}

#[test]
fn l5_a_thousand_short_deadlines_a_second_are_honest_for_ever() {
    let mut side = Side::server(Limits::default());
    for n in 0..20_000u32 {
        side.now += Duration::from_millis(1);
        side.feed(&get(2 * n + 1));
        if let Some(old) = n.checked_sub(150) {
            side.feed(&reset(2 * old + 1, ErrorCode::Cancel));
        }
        side.seen.clear();
    }
    side.expect_no_fault();
    assert!(!side.conn.glitches_high());
    assert_eq!(side.conn.streams(), 150);
}

#[test]
fn l5_a_stream_that_lives_a_moment_too_short_is_a_glitch() {
    let mut side = Side::server(Limits::default());
    let mut taken = 0;
    while side.fault.is_none() {
        // As many as there may be at once, then all of them are taken back.
        for n in 0..100 {
            side.feed(&get(2 * (taken + n) + 1));
        }
        side.now += Duration::from_micros(99_999);
        for n in 0..100 {
            side.feed(&reset(2 * (taken + n) + 1, ErrorCode::Cancel));
        }
        taken += 100;
        assert!(taken < 2_000);
        side.seen.clear();
    }
    expect_limit(&side, LimitId::L5, CALM);
}

/// A stream that we answer ourselves as soon as it comes, whole or with a body to come.
fn refused_at_once(side: &mut Side, id: u32, whole: bool) {
    side.feed(&if whole { get(id) } else { post(id) });
    let key = side.last_key();
    side.conn.answered_by_us(key, side.now);
    side.head(key, &[(":status", "429")], true);
    side.seen.clear();
    side.keys.clear();
    side.out.clear();
}

#[test]
fn l5_an_answer_of_ours_does_not_excuse_the_reset() {
    // Whether the stream is closed by then or its body is still to come, and however much later.
    for (whole, later) in [(false, 0), (false, 300), (true, 0), (true, 300)] {
        let mut side = Side::server(Limits::default());
        let mut n = 0;
        while side.fault.is_none() {
            refused_at_once(&mut side, 2 * n + 1, whole);
            side.now += Duration::from_micros(later);
            side.feed(&reset(2 * n + 1, ErrorCode::Cancel));
            n += 1;
            assert!(n < 2_000, "{whole} {later}");
        }
        assert!(n > 1_000);
        expect_limit(&side, LimitId::L5, CALM);
        assert!(side.conn.streams() <= 1);
    }
}

#[test]
fn l5_many_are_refused_before_the_first_is_reset() {
    for whole in [false, true] {
        let mut side = Side::server(Limits::default());
        for n in 0..2_000 {
            refused_at_once(&mut side, 2 * n + 1, whole);
        }
        side.now += Duration::from_secs(1);
        let taken = until_fault(&mut side, |n| reset(2 * n + 1, ErrorCode::Cancel));
        assert_eq!(taken, 1_000);
        expect_limit(&side, LimitId::L5, CALM);
    }
}

#[test]
fn l5_to_be_refused_is_no_glitch() {
    let mut side = Side::server(Limits::default());
    for n in 0..5_000 {
        refused_at_once(&mut side, 2 * n + 1, true);
    }
    side.expect_no_fault();
    assert!(!side.conn.glitches_high());
    // The stream is forgotten after a while. Until then it costs only its mark.
    side.now = side.conn.deadline().expect("the marks go");
    side.conn.expired(side.now).unwrap();
    for n in 0..4_900 {
        side.feed(&reset(2 * n + 1, ErrorCode::Cancel));
    }
    side.expect_no_fault();
    assert!(!side.conn.glitches_high());
}

#[test]
fn l5_what_we_refuse_late_was_no_flood() {
    // Nobody came to serve them: the client's library resets what it had not ended.
    let mut side = Side::server(Limits::default());
    for n in 0..3_000 {
        side.feed(&post(2 * n + 1));
    }
    side.now += Duration::from_secs(30);
    for key in side.keys.clone() {
        side.conn.answered_by_us(key, side.now);
        side.head(key, &[(":status", "504")], true);
    }
    for n in 0..3_000 {
        side.feed(&reset(2 * n + 1, ErrorCode::NoError));
    }
    side.expect_no_fault();
    assert!(!side.conn.glitches_high());
}

#[test]
fn l5_a_refused_body_that_we_have_to_end_is_a_glitch() {
    let mut side = Side::server(Limits::default());
    for n in 0..1_000 {
        side.feed(&post(2 * n + 1));
        let key = side.last_key();
        side.conn.answered_by_us(key, side.now);
        side.head(key, &[(":status", "429")], true);
        side.conn.reset(key, ErrorCode::NoError, &mut side.out);
        side.expect_no_fault();
    }
    assert!(side.conn.glitches_high());
    side.feed(&frame(PING, 0, 0, &[0; 8]));
    side.feed(&frame(PING, 0, 0, &[0; 8]));
    expect_limit(&side, LimitId::L5, CALM);
}

#[test]
fn l5_streams_behind_the_final_goaway_are_glitches_beyond_what_was_on_its_way() {
    let limits = Limits { max_concurrent_streams: 500, ..Limits::default() };
    let mut side = Side::server(limits);
    side.feed(&post(1));
    side.conn.refuse_new(true);
    let rapid = |n| [get(2 * n + 3), reset(2 * n + 3, ErrorCode::Cancel)].concat();
    assert_eq!(until_fault(&mut side, rapid), 500 + 1_000);
    expect_limit(&side, LimitId::L5, CALM);
}

#[test]
fn l5_a_burst_that_crossed_the_final_goaway_leaves_the_streams_before_it_alone() {
    let mut side = Side::server(Limits::default());
    side.feed(&post(1));
    side.conn.refuse_new(true);
    for n in 1..Limits::default().max_concurrent_streams {
        side.feed(&get(2 * n + 1));
    }
    side.expect_no_fault();
    assert!(!side.conn.glitches_high());
    side.seen.clear();
    side.feed(&data_end(1, b"the end"));
    side.expect_no_fault();
    assert_eq!((side.conn.streams(), side.seen.is_empty()), (1, false));
}

#[test]
fn l5_a_few_early_resets_a_second_are_honest_for_ever() {
    let mut side = Side::server(Limits::default());
    for n in 0..20_000 {
        side.now += Duration::from_millis(40);
        side.feed(&[get(2 * n + 1), reset(2 * n + 1, ErrorCode::Cancel)].concat());
    }
    side.expect_no_fault();
}

#[test]
fn l5_a_worker_that_refuses_streams_is_honest() {
    let mut side = Side::client(Limits::default());
    for n in 0..5000 {
        side.ask(POST, false);
        side.feed(&reset(2 * n + 1, ErrorCode::RefusedStream));
        side.out.clear();
    }
    side.expect_no_fault();
}

#[test]
fn l5_made_you_reset_ends_the_connection() {
    // CVE-2025-8671: each pair makes the server reset a stream it has begun to serve.
    let provocations: [fn(u32) -> Vec<u8>; 5] = [
        |id| [post(id), window_update(id, 0)].concat(),
        |id| [post(id), window_update(id, 0x7fff_ffff)].concat(),
        |id| [get(id), data(id, b"x")].concat(),
        |id| [get(id), headers(id, END_STREAM, GRPC_OK)].concat(),
        |id| headers(id, END_STREAM, &GET[1..]),
    ];
    for provoke in provocations {
        let mut side = Side::server(Limits::default());
        let taken = until_fault(&mut side, |n| provoke(2 * n + 1));
        assert_eq!(taken, 1000);
        expect_limit(&side, LimitId::L5, CALM);
        assert!(side.conn.streams() <= 1);
    }
    // PRIORITY is a glitch by itself.
    let mut side = Side::server(Limits::default());
    let taken = until_fault(&mut side, |n| {
        [post(2 * n + 1), frame(PRIORITY, 0, 2 * n + 1, &[0; 4])].concat()
    });
    assert_eq!(taken, 500);
}

#[test]
fn l5_a_hostile_worker_is_no_better() {
    let mut side = Side::client(Limits::default());
    for n in 0.. {
        side.ask(GET, true);
        side.feed(&headers(2 * n + 1, 0, &[("no", "status")]));
        if side.fault.is_some() {
            assert_eq!(n, 1000);
            break;
        }
        side.out.clear();
        side.seen.clear();
    }
    expect_limit(&side, LimitId::L5, CALM);
}

#[test]
fn l5_floods_of_frames_that_carry_nothing_end_the_connection() {
    let floods: [Vec<u8>; 6] = [
        frame(PING, 0, 0, &[0; 8]),
        frame(PING, ACK, 0, &[0; 8]),
        settings(&[(setting::HEADER_TABLE_SIZE, 100)]),
        settings_ack(),
        frame(PRIORITY, 0, 9, &[0, 0, 0, 1, 2]),
        frame(0xee, 0, 0, b"grease"),
    ];
    for flood in floods {
        let mut side = Side::server(Limits::default());
        let taken = until_fault(&mut side, |_| flood.clone());
        assert_eq!(taken, 1000);
        expect_limit(&side, LimitId::L5, CALM);
    }
}

#[test]
fn l5_the_engine_is_warned_at_three_quarters() {
    let mut side = Side::server(Limits::default());
    for n in 1..=1000 {
        side.feed(&frame(PRIORITY, 0, 9, &[0, 0, 0, 1, 2]));
        assert_eq!(side.conn.glitches_high(), n >= 750, "{n}");
    }
    side.expect_no_fault();
    side.now += Duration::from_secs(10);
    side.feed(&frame(PRIORITY, 0, 9, &[0, 0, 0, 1, 2]));
    assert!(!side.conn.glitches_high());
}

#[test]
fn l5_one_ping_a_second_lives_for_a_day() {
    let mut side = Side::server(Limits::default());
    for _ in 0..86_400 {
        side.now += Duration::from_secs(1);
        side.feed(&frame(PING, 0, 0, &[0; 8]));
        side.out.clear();
    }
    side.expect_no_fault();
    assert!(!side.conn.glitches_high());
}

#[test]
fn l5_a_ping_for_each_message_is_grpcs_way_to_measure_the_path() {
    let mut side = Side::server(Limits::default());
    side.feed(&post(1));
    let key = side.last_key();
    side.head(key, OK, false);
    for _ in 0..20_000 {
        side.send(key, b"hello", false);
        side.feed(&[window_update(0, 5), frame(PING, 0, 0, &[2; 8])].concat());
        side.feed(&window_update(1, 5));
        side.out.clear();
        side.seen.clear();
    }
    side.expect_no_fault();
    assert!(!side.conn.glitches_high());
}

#[test]
fn l5_what_we_send_pays_for_one_ping() {
    let mut side = Side::server(Limits::default());
    side.feed(&post(1));
    side.head(side.last_key(), OK, false);
    side.send(side.last_key(), &[0; 50_000], false);
    let taken = until_fault(&mut side, |_| frame(PING, 0, 0, &[0; 8]));
    assert_eq!(taken, 1001);
}

#[test]
fn l5_a_window_dribble_ends_the_connection() {
    // CVE-2019-9511: a window of one octet at a time.
    let mut side = Side::server(Limits::default());
    side.feed(&settings(&[(setting::INITIAL_WINDOW_SIZE, 0)]));
    side.feed(&get(1));
    let key = side.last_key();
    side.head(key, OK, false);
    for n in 0.. {
        side.feed(&window_update(1, 1));
        if side.fault.is_some() {
            assert_eq!(n, 999, "one for the SETTINGS");
            break;
        }
        assert_eq!(side.send(key, b"12345", false), 1);
        side.out.clear();
        side.seen.clear();
    }
    expect_limit(&side, LimitId::L5, CALM);
}

#[test]
fn l5_credit_into_a_window_that_stays_shut_is_honest() {
    // A client takes a large window away and goes on crediting what was on its way.
    let mut side = Side::server(Limits::default());
    side.feed(&settings(&[(setting::INITIAL_WINDOW_SIZE, 1 << 20)]));
    side.feed(&get(1));
    let key = side.last_key();
    side.head(key, OK, false);
    for _ in 0..3_000 {
        assert_eq!(side.send(key, &[7; 20], false), 20);
    }
    side.feed(&settings(&[(setting::INITIAL_WINDOW_SIZE, 0)]));
    for _ in 0..3_000 {
        side.feed(&window_update(1, 20));
        assert_eq!(side.fault, None);
    }
}

#[test]
fn l5_small_change_between_large_credits_is_honest() {
    // A client that credits each frame at once, whose window is always nearly used up.
    let mut side = Side::server(Limits::default());
    side.feed(&settings(&[(setting::INITIAL_WINDOW_SIZE, 0)]));
    side.feed(&get(1));
    let key = side.last_key();
    side.head(key, OK, false);
    for _ in 0..5_000 {
        side.feed(&[window_update(1, 16_000), window_update(0, 16_003)].concat());
        assert_eq!(side.send(key, &[0; 16_000], false), 16_000);
        for _ in 0..3 {
            side.feed(&window_update(1, 1));
            assert_eq!(side.send(key, b"1", false), 1);
        }
        side.out.clear();
        side.seen.clear();
    }
    assert!(side.fault.is_none(), "{:?}", side.fault);
}

#[test]
fn l5_small_window_updates_on_large_windows_are_honest() {
    let mut side = Side::server(Limits::default());
    side.feed(&get(1));
    let key = side.last_key();
    side.head(key, OK, false);
    for _ in 0..20_000 {
        assert_eq!(side.send(key, b"12345", false), 5);
        side.feed(&[window_update(1, 5), window_update(0, 5)].concat());
        side.out.clear();
        side.seen.clear();
    }
    side.expect_no_fault();
    assert!(!side.conn.glitches_high());
}

// ---- L6 ----

#[test]
fn l6_undrained_answers_stop_the_reading() {
    let mut side = Side::server(Limits::default());
    for n in 0..100 {
        assert_eq!(side.conn.wants_pause(), n > 64 - 1, "{n}");
        side.feed(&frame(PING, 0, 0, &[0; 8]));
    }
    side.conn.set_answers_backlog(0);
    assert!(!side.conn.wants_pause());
    for _ in 0..65 {
        side.feed(&settings(&[]));
    }
    assert!(side.conn.wants_pause());
    side.conn.set_answers_backlog(64);
    assert!(!side.conn.wants_pause());
    side.feed(&headers(1, END_STREAM, &[]));
    assert!(side.conn.wants_pause(), "a reset is an answer");
}

// ---- L7 ----

#[test]
fn l7_empty_data_frames_end_the_connection() {
    for empty in [data(1, b""), padded_data(1, 0, b"", 0)] {
        let mut side = Side::server(Limits::default());
        side.feed(&post(1));
        let taken = until_fault(&mut side, |_| empty.clone());
        assert_eq!(taken, 10);
        expect_limit(&side, LimitId::L7, CALM);
    }
}

#[test]
fn l7_turning_from_stream_to_stream_does_not_help() {
    let mut side = Side::server(Limits::default());
    for n in 0..20 {
        side.feed(&post(2 * n + 1));
    }
    let taken = until_fault(&mut side, |n| data(2 * (n % 20) + 1, b""));
    assert_eq!(taken, 10);
}

#[test]
fn l7_now_and_then_an_empty_frame_is_honest_but_a_glitch() {
    let mut side = Side::server(Limits::default());
    side.feed(&post(1));
    for _ in 0..900 {
        side.feed(&[data(1, b""), data(1, b"x")].concat());
    }
    side.expect_no_fault();
    assert!(side.conn.glitches_high());
}

#[test]
fn small_messages_are_honest() {
    let mut side = Side::server(Limits::default());
    side.drains = true;
    side.feed(&post(1));
    for _ in 0..20_000 {
        side.feed(&data(1, b"\0\0\0\0\0"));
        side.out.clear();
    }
    side.feed(&data_end(1, b""));
    side.expect_no_fault();
    assert!(!side.conn.glitches_high());
    assert!(matches!(&side.seen[1], Seen::Data { bytes, end: true, .. } if bytes.len() == 100_000));
    // Many streams with an empty end each, as gRPC clients send.
    for n in 1..20_000 {
        side.feed(&[post(2 * n + 1), data(2 * n + 1, b"12345"), data_end(2 * n + 1, b"")].concat());
        side.head(side.last_key(), OK, true);
        side.keys.clear();
        side.out.clear();
        side.seen.clear();
    }
    side.expect_no_fault();
    assert!(!side.conn.glitches_high());
}

// ---- L8 ----

#[test]
fn l8_window_update_floods_end_the_connection() {
    let mut side = Side::server(Limits::default());
    assert_eq!(until_fault(&mut side, |_| window_update(0, 1)), 5);
    expect_limit(&side, LimitId::L8, CALM);
    let mut side = Side::server(Limits::default());
    side.feed(&get(1));
    assert_eq!(until_fault(&mut side, |_| window_update(1, 1)), 7);
    expect_limit(&side, LimitId::L8, CALM);
    // Closed streams count too.
    let mut side = Side::server(Limits::default());
    side.feed(&[post(1), reset(1, CALM)].concat());
    assert_eq!(until_fault(&mut side, |_| window_update(1, 1)), 7);
    expect_limit(&side, LimitId::L8, CALM);
}

#[test]
fn l8_updates_for_what_we_sent_are_honest() {
    let mut side = Side::server(Limits::default());
    side.feed(&get(1));
    let key = side.last_key();
    side.head(key, OK, false);
    for _ in 0..2000 {
        let sent = side.send(key, &[0; 40_000], false) as u32;
        for _ in 0..4 {
            side.feed(&[window_update(1, sent / 4), window_update(0, sent / 4)].concat());
        }
        side.out.clear();
        side.seen.clear();
    }
    side.expect_no_fault();
}

// ---- L9 ----

#[test]
fn l9_a_reader_that_stalls_holds_one_window_and_no_more() {
    let mut side = Side::server(Limits::default());
    side.feed(&post(1));
    for _ in 0..4 {
        side.feed(&data(1, &[0; 16_384]));
    }
    side.expect_no_fault();
    assert!(side.sent().iter().all(|frame| frame.stream == 0), "no stream credit undrained");
    side.feed(&data(1, b"x"));
    side.expect_stream_fault(1, FLOW);
    // Its neighbour is not starved: the connection's credit came back.
    side.feed(&post(3));
    side.feed(&data(3, &[0; 16_384]));
    side.expect_no_fault();
}

#[test]
fn l9_a_stalled_stream_never_grows_past_its_maximum() {
    let mut side = Side::server(Limits::default());
    side.feed(&post(1));
    let key = side.last_key();
    let mut window = 65_536i64;
    for _ in 0..2000 {
        let len = window.min(16_384);
        side.feed(&data(1, &vec![0; len as usize]));
        window -= len;
        side.drained(key, len as usize);
        let updates = side.sent();
        let given = updates.iter().filter(|f| f.stream == 1).map(|f| i64::from(f.word()));
        window += given.sum::<i64>();
        side.seen.clear();
    }
    side.expect_no_fault();
    assert!(window <= 2 << 20 && window > 1 << 20, "{window}");
}

// ---- L10 ----

#[test]
fn l10_a_header_block_has_ten_seconds() {
    let beginnings = [
        get(1)[..12].to_vec(),
        frame(HEADERS, END_STREAM, 1, &block(GET)),
        [&frame(HEADERS, END_STREAM, 1, &block(GET))[..], &frame(9, 4, 1, b"abc")[..10]].concat(),
    ];
    for beginning in beginnings {
        let mut side = Side::server(Limits::default());
        side.feed(&beginning);
        let limit = side.conn.deadline().expect("the rest is waited for");
        assert_eq!(limit.since(side.now), Duration::from_secs(10));
        // One octet a second does not buy time.
        side.now += Duration::from_secs(9);
        side.feed(b"");
        assert_eq!(side.conn.deadline(), Some(limit));
        side.conn.expired(side.now).unwrap();
        let fault = side.conn.expired(limit).unwrap_err();
        assert_eq!((fault.code, fault.limit), (CALM, Some(LimitId::L10)));
    }
}

#[test]
fn l10_every_frame_that_is_kept_in_part_has_ten_seconds() {
    let ping = frame(6, 0, 0, b"12345678");
    let update = frame(8, 0, 0, &[0, 0, 0, 1]);
    let frames = [ping, update, settings(&[(setting::HEADER_TABLE_SIZE, 4096)])];
    for whole in frames {
        let mut side = Side::server(Limits::default());
        side.feed(&whole[..10]);
        let limit = side.conn.deadline().expect("the rest is waited for");
        assert_eq!(limit.since(side.now), Duration::from_secs(10));
        side.feed(&whole[10..11]);
        assert_eq!(side.conn.deadline(), Some(limit), "an octet more buys no time");
        side.feed(&whole[11..]);
        assert_eq!(side.conn.deadline(), None, "it came");
        // The next one has a time of its own, also behind a head that is all that came.
        side.now += Duration::from_secs(5);
        side.feed(&whole[..9]);
        side.feed(&whole[9..]);
        assert_eq!(side.conn.deadline(), None, "it came");
        side.feed(&whole[..11]);
        let limit = side.conn.deadline().expect("the rest is waited for");
        assert_eq!(limit.since(side.now), Duration::from_secs(10));
        side.expect_no_fault();
        let fault = side.conn.expired(limit).unwrap_err();
        assert_eq!((fault.code, fault.limit), (CALM, Some(LimitId::L10)));
        assert_eq!(fault.reason, "frame not complete in time");
    }
    // A GOAWAY that never ends.
    let mut side = Side::server(Limits::default());
    side.feed(&frame(7, 0, 0, &[0; 16_384])[..16_392]);
    assert!(side.conn.deadline().is_some());
}

#[test]
fn l10_what_was_not_read_is_not_overdue() {
    let mut waiting = Side::fresh(Role::Server, Limits::default());
    waiting.conn.start(&mut waiting.out);
    let mut acknowledged = Side::server(Limits::default());
    acknowledged.feed(&get(1)[..12]);
    for mut side in [waiting, acknowledged] {
        let limit = side.conn.deadline().expect("something is waited for");
        let later = limit + Duration::from_secs(60);
        side.conn.read_again(later);
        let limit = side.conn.deadline().expect("it still is");
        assert_eq!(limit, later + Duration::from_secs(10));
        side.conn.expired(later).unwrap();
        assert_eq!(side.conn.expired(limit).unwrap_err().limit, Some(LimitId::L10));
    }
    let mut side = Side::server(Limits::default());
    side.conn.read_again(side.now);
    assert_eq!(side.conn.deadline(), None, "nothing is owed");
}

#[test]
fn l10_a_block_that_came_in_time_is_no_longer_waited_for() {
    let mut side = Side::server(Limits::default());
    let bytes = get(1);
    side.feed(&bytes[..20]);
    assert!(side.conn.deadline().is_some());
    side.feed(&bytes[20..]);
    assert_eq!(side.conn.deadline(), None);
    side.expect_no_fault();
    // A body may take its time.
    side.feed(&[post(3), data(3, b"abcdef")[..11].to_vec()].concat());
    assert_eq!(side.conn.deadline(), None);
}

// ---- cost ----

#[test]
fn thousands_of_parameters_in_one_frame_move_each_stream_once() {
    let mut side = Side::server(Limits::default());
    for n in 0..5000 {
        side.feed(&get(2 * n + 1));
    }
    let many: Vec<_> = (0..2700).map(|n| (setting::INITIAL_WINDOW_SIZE, n)).collect();
    let before = std::time::Instant::now();
    for _ in 0..20 {
        side.feed(&settings(&many));
    }
    side.expect_no_fault();
    // 20 x 5 000 moves take milliseconds; 2 700 times as many take minutes.
    assert!(before.elapsed() < Duration::from_secs(10));
    assert_eq!(side.conn.data_room(side.keys[0]), 2699);
}
