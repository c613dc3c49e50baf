//! RFC 9113 §6: what each frame asks, and the arithmetic of windows.

mod h2_script;

use h2_script::*;
use ringway_proto::h2::frame::setting;
use ringway_proto::h2::{Blocked, ErrorCode, HeadKind, Limits, Role};

/// Small windows of ours.
fn small(stream: u32, connection: u32) -> Limits {
    Limits {
        stream_window: stream,
        stream_window_max: stream,
        connection_window: connection,
        ..Limits::default()
    }
}

#[test]
fn s6_1_data_needs_a_stream() {
    server(|side| {
        side.feed(&data(0, b"x"));
        side.expect_fault(PROTOCOL);
    });
}

#[test]
fn s6_1_payload_passes_as_it_is() {
    server(|side| {
        side.feed(&post(1));
        side.feed(&data(1, b"one"));
        side.feed(&data_end(1, b"two"));
        assert_eq!(side.seen[1], Seen::Data { id: 1, bytes: b"onetwo".to_vec(), end: true });
    });
}

#[test]
fn s6_1_an_empty_last_frame_ends_the_stream() {
    server(|side| {
        side.feed(&post(1));
        side.feed(&data_end(1, b""));
        assert_eq!(side.seen[1], Seen::Data { id: 1, bytes: Vec::new(), end: true });
        side.feed(&post(3));
        side.feed(&padded_data(3, END_STREAM, b"", 7));
        assert_eq!(side.seen[3], Seen::Data { id: 3, bytes: Vec::new(), end: true });
        side.feed(&get(5));
        side.expect_no_fault();
    });
}

#[test]
fn s6_1_padding_is_removed() {
    server(|side| {
        side.feed(&post(1));
        side.feed(&padded_data(1, 0, b"abc", 0));
        side.feed(&padded_data(1, 0, b"def", 255));
        side.feed(&padded_data(1, END_STREAM, b"g", 1));
        side.feed(&get(3));
        side.expect_no_fault();
        assert_eq!(side.seen[1], Seen::Data { id: 1, bytes: b"abcdefg".to_vec(), end: true });
    });
}

#[test]
fn s6_1_padding_as_long_as_the_payload_is_a_protocol_error() {
    for (kind, flags) in [(DATA, PADDED), (HEADERS, PADDED | END_HEADERS)] {
        let mut side = Side::server(Limits::default());
        side.feed(&post(1));
        side.feed(&frame(kind, flags, if kind == DATA { 1 } else { 3 }, &[3, 0, 0]));
        side.expect_fault(PROTOCOL);
    }
    server(|side| {
        side.feed(&post(1));
        side.feed(&frame(DATA, PADDED, 1, &[]));
        side.expect_fault(SIZE);
    });
}

#[test]
fn s6_1_padding_costs_window_and_comes_back() {
    let mut side = Side::server(small(1000, 65_535));
    side.feed(&post(1));
    let key = side.last_key();
    // Only padding: nobody drains anything, yet it goes on and on.
    for n in 0..100 {
        side.feed(&padded_data(1, 0, &[b'x'; 2], 255));
        side.expect_no_fault();
        side.drained(key, 2);
        assert!(n < 2 || side.sent().iter().all(|f| f.kind == WINDOW_UPDATE));
    }
}

#[test]
fn s6_1_stream_credit_is_conserved_to_the_octet() {
    let mut side = Side::server(small(500, 65_535));
    side.feed(&post(1));
    let key = side.last_key();
    let mut window: i64 = 500;
    let mut random = 7u32;
    for _ in 0..3000 {
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let (len, padding) = ((random >> 8) % 90, (random >> 20) as u8 % 60);
        let total = i64::from(len) + i64::from(padding) + 1;
        if total > window {
            side.drained(key, 0);
        } else if len > 0 {
            side.feed(&padded_data(1, 0, &vec![0; len as usize], padding));
            window -= total;
            side.drained(key, len as usize);
        }
        side.expect_no_fault();
        for update in side.sent().iter().filter(|frame| frame.stream == 1) {
            assert_eq!(update.kind, WINDOW_UPDATE);
            window += i64::from(update.word());
        }
        assert!((250..=500).contains(&window), "{window}");
    }
}

#[test]
fn s6_2_headers_need_a_stream_and_room_for_their_flags() {
    for (flags, payload) in [(PADDED, &[][..]), (PRIORITISED, &[0, 0, 0, 0]), (0x28, &[0; 5])] {
        let mut side = Side::server(Limits::default());
        side.feed(&frame(HEADERS, flags | END_HEADERS, 1, payload));
        side.expect_fault(SIZE);
    }
}

#[test]
fn s6_3_priority_has_five_octets() {
    server(|side| {
        side.feed(&post(1));
        side.feed(&frame(PRIORITY, 0, 1, &[0; 4]));
        side.expect_stream_fault(1, SIZE);
        side.feed(&get(3));
        side.expect_no_fault();
    });
    for stream in [0, 9] {
        let mut side = Side::server(Limits::default());
        side.feed(&frame(PRIORITY, 0, stream, &[0; 6]));
        side.expect_fault(if stream == 0 { PROTOCOL } else { SIZE });
    }
}

#[test]
fn s6_4_rst_stream_ends_a_stream_at_once() {
    server(|side| {
        side.feed(&post(1));
        side.feed(&reset(1, ErrorCode::Cancel));
        let last = side.seen.last().cloned();
        assert!(matches!(last, Some(Seen::Reset { id: 1, ours: false, .. })));
        assert_eq!(side.conn.streams(), 0);
    });
    for (bytes, code) in [
        (frame(RST_STREAM, 0, 0, &[0; 4]), PROTOCOL),
        (frame(RST_STREAM, 0, 1, &[0; 3]), SIZE),
        (frame(RST_STREAM, 0, 1, &[0; 5]), SIZE),
    ] {
        let mut side = Side::server(Limits::default());
        side.feed(&post(1));
        side.feed(&bytes);
        side.expect_fault(code);
    }
}

#[test]
fn s6_5_settings_are_acknowledged_and_told() {
    server(|side| {
        side.feed(&settings(&[(setting::MAX_HEADER_LIST_SIZE, 999), (0x4242, 1)]));
        assert_eq!(side.take_seen(), [Seen::Settings]);
        assert_eq!(side.sent(), frames(&settings_ack()));
        assert_eq!(side.conn.peer_max_header_list(), 999);
    });
}

#[test]
fn s6_5_settings_of_a_wrong_shape_end_the_connection() {
    for (bytes, code) in [
        (frame(SETTINGS, ACK, 0, &[0; 6]), SIZE),
        (frame(SETTINGS, 0, 1, &[]), PROTOCOL),
        (frame(SETTINGS, 0, 0, &[0; 5]), SIZE),
        (settings(&[(setting::ENABLE_PUSH, 2)]), PROTOCOL),
        (settings(&[(setting::INITIAL_WINDOW_SIZE, 1 << 31)]), FLOW),
        (settings(&[(setting::MAX_FRAME_SIZE, 16_383)]), PROTOCOL),
        (settings(&[(setting::MAX_FRAME_SIZE, 1 << 24)]), PROTOCOL),
    ] {
        let mut side = Side::server(Limits::default());
        side.feed(&bytes);
        side.expect_fault(code);
    }
}

#[test]
fn s6_5_2_a_server_may_not_ask_for_pushes() {
    client(|side| {
        side.feed(&settings(&[(setting::ENABLE_PUSH, 0)]));
        side.expect_no_fault();
        side.feed(&settings(&[(setting::ENABLE_PUSH, 1)]));
        side.expect_fault(PROTOCOL);
    });
}

#[test]
fn s6_5_2_a_smaller_table_is_announced_before_it_is_used() {
    let mut side = Side::client(Limits::default());
    let long = [GET, &[("x-kept", "value")]].concat();
    side.ask(&long, true);
    side.feed(&settings(&[(setting::HEADER_TABLE_SIZE, 0), (setting::HEADER_TABLE_SIZE, 100)]));
    side.sent();
    side.ask(&long, true);
    let block = side.sent().pop().unwrap().payload;
    assert_eq!(block[..2], [0x20, 0x3f], "to 0, then to 100 (RFC 7541 §4.2)");
}

#[test]
fn s6_5_3_our_smaller_window_counts_from_the_acknowledgement_on() {
    let limits = small(100, 65_535);
    let begin = |side: &mut Side| {
        side.conn.start(&mut side.out);
        side.feed(MAGIC);
        side.feed(&settings(&[]));
        side.feed(&post(1));
    };
    // Before it: the RFC's first window.
    let mut side = Side::fresh(Role::Server, limits);
    begin(&mut side);
    side.feed(&data(1, &[0; 1000]));
    side.expect_no_fault();
    side.feed(&settings_ack());
    side.feed(&data(1, &[0; 1]));
    side.expect_stream_fault(1, FLOW);
    // Drained, the stream comes back to what we want it to have.
    let mut side = Side::fresh(Role::Server, limits);
    begin(&mut side);
    let key = side.last_key();
    side.feed(&data(1, &[0; 1000]));
    side.feed(&settings_ack());
    side.sent();
    side.drained(key, 1000);
    let credit: u32 = side.sent().iter().map(Frame::word).sum();
    assert_eq!(credit, 1000);
    side.feed(&data(1, &[0; 100]));
    side.expect_no_fault();
    side.feed(&data(1, &[0; 1]));
    side.expect_stream_fault(1, FLOW);
    // Streams opened after it.
    let mut side = Side::server(limits);
    side.feed(&post(1));
    side.feed(&data(1, &[0; 101]));
    side.expect_stream_fault(1, FLOW);
}

#[test]
fn s6_5_3_a_clients_settings_must_come_in_time_and_no_others() {
    let mut side = Side::fresh(Role::Server, Limits::default());
    side.conn.start(&mut side.out);
    let limit = side.conn.deadline().unwrap();
    assert_eq!(limit.since(side.now).as_secs(), 10);
    assert!(side.conn.expired(side.now).is_ok());
    assert_eq!(side.conn.expired(limit).unwrap_err().code, ErrorCode::SettingsTimeout);

    // The RFC lets a peer take "reasonable" time to acknowledge: slow ones take long.
    let mut side = Side::fresh(Role::Server, Limits::default());
    side.conn.start(&mut side.out);
    side.feed(MAGIC);
    side.feed(&settings(&[]));
    assert_eq!(side.conn.deadline(), None);

    // A server that was called may be busy: who called it knows how long to wait.
    let mut side = Side::fresh(Role::Client, Limits::default());
    side.conn.start(&mut side.out);
    assert_eq!(side.conn.deadline(), None);
    side.feed(&settings(&[]));
    assert_eq!(side.conn.deadline(), None);
}

#[test]
fn s6_6_push_promise_is_a_protocol_error() {
    let promise = frame(PUSH_PROMISE, END_HEADERS, 1, &[&[0, 0, 0, 2], &block(GET)[..]].concat());
    let mut side = Side::server(Limits::default());
    side.feed(&post(1));
    side.feed(&promise);
    side.expect_fault(PROTOCOL);
    let mut side = Side::client(Limits::default());
    side.ask(GET, true);
    side.feed(&promise);
    side.expect_fault(PROTOCOL);
}

#[test]
fn s6_7_ping_is_answered_with_its_octets() {
    server(|side| {
        side.feed(&frame(PING, 0, 0, b"whatever"));
        assert_eq!(side.sent(), frames(&frame(PING, ACK, 0, b"whatever")));
    });
    for (bytes, code) in [
        (frame(PING, 0, 1, &[0; 8]), PROTOCOL),
        (frame(PING, 0, 0, &[0; 7]), SIZE),
        (frame(PING, ACK, 0, &[0; 9]), SIZE),
    ] {
        let mut side = Side::server(Limits::default());
        side.feed(&bytes);
        side.expect_fault(code);
    }
}

#[test]
fn s6_7_the_answer_to_our_ping_is_told_and_any_other_is_not() {
    client(|side| {
        side.conn.ping(*b"are you?", &mut side.out);
        assert_eq!(side.sent(), frames(&frame(PING, 0, 0, b"are you?")));
        side.feed(&frame(PING, ACK, 0, b"are you?"));
        assert_eq!(side.take_seen(), [Seen::Pong(*b"are you?")]);
        side.feed(&frame(PING, ACK, 0, b"are you?"));
        assert!(side.seen.is_empty() && side.out.is_empty());
    });
}

#[test]
fn s6_8_goaway_is_told_and_forbids_new_streams() {
    client(|side| {
        let one = side.ask(GET, true);
        let three = side.ask(GET, true);
        let five = side.ask(GET, true);
        side.feed(&frame(GOAWAY, 0, 0, b"\0\0\0\x03\0\0\0\0some words"));
        let told = side.take_seen();
        assert_eq!(told, [Seen::Goaway { last: 3, code: ErrorCode::NoError }]);
        assert!(!side.conn.can_open() && side.open().is_err());
        assert_eq!(side.conn.keys_above(3).collect::<Vec<_>>(), [five]);
        side.feed(&headers(3, END_STREAM, OK));
        side.expect_no_fault();
        assert!(side.conn.is_open(one) && !side.conn.is_open(three));
        // A second one can take back only.
        side.feed(&goaway(0x7fff_ffff, ErrorCode::NoError));
        assert_eq!(side.conn.is_goaway_received(), Some(3));
        side.feed(&goaway(1, CALM));
        assert_eq!(side.conn.is_goaway_received(), Some(1));
    });
    for (bytes, code) in
        [(frame(GOAWAY, 0, 1, &[0; 8]), PROTOCOL), (frame(GOAWAY, 0, 0, &[0; 7]), SIZE)]
    {
        let mut side = Side::server(Limits::default());
        side.feed(&bytes);
        side.expect_fault(code);
    }
}

#[test]
fn s6_8_streams_after_our_goaway_are_ignored() {
    server(|side| {
        side.feed(&post(1));
        side.conn.goaway(1, ErrorCode::NoError, b"", &mut side.out);
        side.conn.refuse_new(true);
        side.sent();
        side.take_seen();
        side.feed(&post(3));
        side.feed(&data(3, b"x"));
        side.feed(&window_update(3, 1));
        side.feed(&headers(3, END_STREAM, GRPC_OK));
        side.feed(&reset(3, CALM));
        assert!(side.seen.is_empty() && side.out.is_empty());
        side.feed(&data_end(1, b"y"));
        side.expect_no_fault();
        assert_eq!(side.seen, [Seen::Data { id: 1, bytes: b"y".to_vec(), end: true }]);
        assert_eq!(side.conn.highest_peer_stream(), 1);
    });
}

#[test]
fn s6_9_a_window_update_of_nothing_is_a_fault() {
    server(|side| {
        side.feed(&window_update(0, 0));
        side.expect_fault(PROTOCOL);
    });
    server(|side| {
        side.feed(&post(1));
        side.feed(&window_update(1, 0));
        side.expect_stream_fault(1, PROTOCOL);
    });
    server(|side| {
        side.feed(&frame(WINDOW_UPDATE, 0, 0, &[0, 0, 1]));
        side.expect_fault(SIZE);
    });
}

#[test]
fn s6_9_a_peer_that_overruns_our_windows_is_at_fault() {
    let mut side = Side::server(small(1000, 65_535));
    side.feed(&post(1));
    side.feed(&data(1, &[0; 1000]));
    side.feed(&data(1, &[0; 1]));
    side.expect_stream_fault(1, FLOW);
    let mut side = Side::server(small(1 << 20, 65_535));
    side.feed(&post(1));
    side.conn.hold_connection_credit(true, &mut side.out);
    side.feed(&data(1, &[0; 16_000]).repeat(4));
    side.feed(&data(1, &[0; 1535]));
    side.expect_no_fault();
    side.feed(&data(1, &[0; 1]));
    side.expect_fault(FLOW);
}

#[test]
fn s6_9_connection_credit_comes_back_for_what_nobody_wants() {
    let mut side = Side::server(Limits { connection_window: 65_535, ..Limits::default() });
    // A stream that we reset, one that was refused, one that overran, one closed, one malformed.
    side.feed(&post(1));
    side.reset(side.last_key(), ErrorCode::Cancel);
    side.feed(&get(3));
    side.head(side.last_key(), OK, true);
    let mut given = 0u64;
    let mut sent = 0u64;
    for n in 0..200 {
        let id = if n < 100 { 1 } else { 3 };
        side.feed(&padded_data(id, 0, &[0; 3000], 100));
        sent += 3101;
        side.expect_no_fault();
        let sums = side.sent().into_iter().filter(|f| f.stream == 0 && f.kind == WINDOW_UPDATE);
        given += sums.map(|f| u64::from(f.word())).sum::<u64>();
        assert!(sent - given < 65_535);
    }
}

#[test]
fn s6_9_credit_of_the_connection_waits_while_it_is_held() {
    let mut side = Side::server(Limits { connection_window: 65_535, ..Limits::default() });
    side.feed(&post(1));
    side.sent();
    side.conn.hold_connection_credit(true, &mut side.out);
    side.feed(&data(1, &[0; 16_000]).repeat(3));
    assert!(side.out.is_empty());
    side.conn.hold_connection_credit(false, &mut side.out);
    let sent = side.sent();
    assert_eq!((sent[0].stream, sent[0].word()), (0, 48_000));
}

#[test]
fn s6_9_no_stream_credit_after_the_peers_end() {
    let mut side = Side::server(small(1000, 65_535));
    side.feed(&post(1));
    side.feed(&data_end(1, &[0; 900]));
    side.sent();
    side.drained(side.last_key(), 900);
    assert!(side.out.is_empty());
}

#[test]
fn s6_9_windows_grow_for_fast_peers_without_backlog() {
    let limits = Limits { stream_window: 1000, stream_window_max: 3000, ..Limits::default() };
    let mut side = Side::server(limits);
    side.feed(&post(1));
    let key = side.last_key();
    let cycle = |side: &mut Side, backlog| {
        side.feed(&data(1, &[0; 900]));
        side.conn.drained(key, 900, backlog, &mut side.out);
        side.sent().iter().filter(|f| f.stream == 1).map(Frame::word).sum::<u32>()
    };
    assert_eq!(cycle(&mut side, true), 900, "backlog: no growth");
    assert_eq!(cycle(&mut side, false), 1900);
    assert_eq!(cycle(&mut side, false), 0);
    assert_eq!(cycle(&mut side, false), 2800, "up to its maximum");
    assert_eq!(cycle(&mut side, false), 0);
    assert_eq!(cycle(&mut side, false), 1800);
}

#[test]
fn s6_9_a_slow_stream_keeps_its_small_window() {
    let mut side = Side::server(Limits::default());
    side.feed(&post(1));
    let key = side.last_key();
    let mut given = 0;
    for _ in 0..5000 {
        side.now += std::time::Duration::from_millis(10);
        side.feed(&data(1, &[0; 100]));
        side.drained(key, 100);
        let updates = side.sent();
        given += updates.iter().filter(|f| f.stream == 1).map(Frame::word).sum::<u32>();
    }
    assert!(given <= 500_000, "no more than was sent: {given}");
}

#[test]
fn s6_9_1_windows_stop_at_31_bits() {
    server(|side| {
        side.feed(&window_update(0, 0x7fff_ffff - 65_535));
        side.expect_no_fault();
        side.feed(&window_update(0, 1));
        side.expect_fault(FLOW);
    });
    server(|side| {
        side.feed(&post(1));
        side.feed(&window_update(1, 0x7fff_ffff));
        side.expect_stream_fault(1, FLOW);
        side.feed(&get(3));
        side.expect_no_fault();
    });
}

#[test]
fn s6_9_1_room_is_the_smallest_of_stream_connection_and_frame() {
    let mut side = Side::client(Limits::default());
    let key = side.ask(POST, false);
    assert_eq!(side.conn.data_room(key), 16_384);
    side.feed(&settings(&[(setting::MAX_FRAME_SIZE, 1 << 20)]));
    assert_eq!(side.conn.data_room(key), 65_535);
    side.feed(&window_update(1, 1000));
    assert_eq!(side.conn.data_room(key), 65_535, "the connection's window");
    assert_eq!(side.send(key, &[0; 70_000], false), 65_535);
    assert_eq!(side.conn.blocked(key), Some(Blocked::Connection));
    side.feed(&window_update(0, 5000));
    assert_eq!(side.conn.data_room(key), 1000, "the stream's window");
    side.send(key, &[0; 1000], false);
    assert_eq!(side.conn.blocked(key), Some(Blocked::Stream));
    assert_eq!(side.send(key, b"", true), 0);
    assert_eq!(side.sent().pop().unwrap().flags, END_STREAM, "an empty end always fits");
    assert_eq!(side.conn.data_room(key), 0);
}

#[test]
fn s6_9_1_the_connections_credit_is_news_when_somebody_may_wait_for_it() {
    let mut side = Side::client(Limits::default());
    let key = side.ask(POST, false);
    side.feed(&window_update(1, 100_000));
    side.take_seen();
    side.send(key, &[0; 40_000], false);
    side.feed(&window_update(0, 1));
    assert!(side.take_seen().is_empty(), "there was room for a whole frame");
    side.send(key, &[0; 20_000], false);
    side.feed(&window_update(0, 1));
    assert_eq!(side.take_seen(), [Seen::Window(None)]);
}

#[test]
fn s6_9_2_a_new_initial_window_moves_open_streams() {
    let mut side = Side::client(Limits::default());
    let key = side.ask(POST, false);
    side.send(key, &[0; 1000], false);
    side.feed(&settings(&[(setting::INITIAL_WINDOW_SIZE, 600)]));
    assert_eq!((side.conn.data_room(key), side.conn.blocked(key)), (0, Some(Blocked::Stream)));
    assert_eq!(side.take_seen().len(), 1, "less is no news");
    side.feed(&window_update(1, 400));
    assert_eq!(side.conn.data_room(key), 0, "it was 400 below");
    side.feed(&window_update(1, 1));
    assert_eq!(side.conn.data_room(key), 1);
    side.take_seen();
    side.feed(&settings(&[(setting::INITIAL_WINDOW_SIZE, 0)]));
    assert_eq!(side.conn.data_room(key), 0);
    side.feed(&settings(&[(setting::INITIAL_WINDOW_SIZE, 2000)]));
    assert_eq!(side.take_seen(), [Seen::Settings, Seen::Settings, Seen::Window(None)]);
    assert_eq!(side.conn.data_room(key), 1401);
    let next = side.ask(POST, false);
    assert_eq!(side.conn.data_room(next), 2000);
}

#[test]
fn s6_9_2_only_the_last_value_in_a_frame_counts() {
    let mut side = Side::client(Limits::default());
    let key = side.ask(POST, false);
    let name = setting::INITIAL_WINDOW_SIZE;
    side.feed(&settings(&[(name, 0), (name, 0x7fff_ffff), (name, 10)]));
    assert_eq!(side.conn.data_room(key), 10);
}

#[test]
fn s6_9_2_a_window_lifted_over_31_bits_ends_the_connection() {
    server(|side| {
        side.feed(&post(1));
        side.feed(&window_update(1, 0x7fff_ffff - 65_535));
        side.expect_no_fault();
        side.feed(&settings(&[(setting::INITIAL_WINDOW_SIZE, 65_536)]));
        side.expect_fault(FLOW);
    });
}

#[test]
fn s6_9_2_the_connections_window_is_not_moved_by_settings() {
    let mut side = Side::client(Limits::default());
    side.feed(&settings(&[(setting::INITIAL_WINDOW_SIZE, 1 << 20)]));
    let key = side.ask(POST, false);
    assert_eq!(side.send(key, &[0; 100_000], false), 65_535);
}

#[test]
fn s6_10_continuation_follows_headers_only() {
    server(|side| {
        side.feed(&frame(CONTINUATION, END_HEADERS, 1, &block(GET)));
        side.expect_fault(PROTOCOL);
    });
    server(|side| {
        side.feed(&get(1));
        side.feed(&frame(CONTINUATION, END_HEADERS, 1, b""));
        side.expect_fault(PROTOCOL);
    });
    server(|side| {
        side.feed(&frame(HEADERS, END_STREAM, 1, &block(GET)));
        side.feed(&frame(CONTINUATION, END_HEADERS, 3, b""));
        side.expect_fault(PROTOCOL);
    });
}

#[test]
fn s6_10_trailers_and_responses_come_in_fragments_too() {
    client(|side| {
        side.ask(GET, true);
        let (head, tail) = (block(OK), block(GRPC_OK));
        side.feed(&frame(HEADERS, 0, 1, &head[..3]));
        side.feed(&frame(CONTINUATION, END_HEADERS, 1, &head[3..]));
        side.feed(&frame(HEADERS, END_STREAM, 1, &tail[..1]));
        side.feed(&frame(CONTINUATION, END_HEADERS, 1, &tail[1..]));
        side.expect_no_fault();
        let kinds: Vec<_> = side
            .seen
            .iter()
            .map(|seen| match seen {
                Seen::Head { kind, end, .. } => (*kind, *end),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(kinds, [(HeadKind::Response, false), (HeadKind::Trailers, true)]);
    });
}
