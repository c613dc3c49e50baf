//! RFC 9113 §5: stream states and ids, concurrency, flow control, errors.

mod h2_script;

use h2_script::*;
use ringway_proto::h2::{Blocked, ErrorCode, Event, HeadKind, Limits, OpenError, Role};

#[test]
fn s5_1_frames_on_an_idle_stream_are_a_protocol_error() {
    for bytes in [data(1, b"x"), reset(1, CALM), window_update(1, 1), data(2, b""), reset(4, CALM)]
    {
        let mut side = Side::server(Limits::default());
        side.feed(&bytes);
        side.expect_fault(PROTOCOL);
    }
    for bytes in [data(1, b"x"), reset(1, CALM), window_update(3, 1), headers(1, 0, OK)] {
        let mut side = Side::client(Limits::default());
        side.feed(&bytes);
        side.expect_fault(PROTOCOL);
    }
}

#[test]
fn s5_1_priority_on_an_idle_stream_is_no_fault() {
    server(|side| {
        side.feed(&frame(PRIORITY, 0, 7, &[0, 0, 0, 1, 9]));
        side.feed(&get(7));
        side.expect_no_fault();
        assert_eq!(side.seen.len(), 1);
    });
}

#[test]
fn s5_1_half_closed_remote_takes_no_data() {
    server(|side| {
        side.feed(&get(1));
        side.feed(&data(1, b"late"));
        side.expect_stream_fault(1, CLOSED);
        assert_eq!(side.conn.streams(), 0);
    });
}

#[test]
fn s5_1_half_closed_remote_takes_no_headers() {
    server(|side| {
        side.feed(&get(1));
        side.feed(&headers(1, END_STREAM, GRPC_OK));
        side.expect_stream_fault(1, CLOSED);
    });
}

#[test]
fn s5_1_half_closed_remote_takes_window_update_priority_and_reset() {
    server(|side| {
        side.feed(&get(1));
        side.feed(&window_update(1, 5));
        side.feed(&frame(PRIORITY, 0, 1, &[0, 0, 0, 3, 9]));
        side.feed(&reset(1, ErrorCode::Cancel));
        side.expect_no_fault();
        let [_, Seen::Window(Some(1)), Seen::Reset { id: 1, ours: false, code, .. }] =
            side.seen[..]
        else {
            panic!("{:?}", side.seen)
        };
        assert_eq!(code, ErrorCode::Cancel);
        assert!(side.sent().is_empty());
    });
}

#[test]
fn s5_1_half_closed_local_still_receives() {
    server(|side| {
        side.feed(&post(1));
        let key = side.last_key();
        side.head(key, OK, true);
        side.feed(&window_update(1, 5));
        side.feed(&data(1, b"more"));
        side.expect_no_fault();
        assert!(side.conn.is_open(key) && !side.conn.sends(key) && side.conn.receives(key));
        assert_eq!(side.conn.blocked(key), Some(Blocked::Ended));
        side.feed(&data_end(1, b""));
        let end = Seen::Data { id: 1, bytes: b"more".to_vec(), end: true };
        assert_eq!(side.seen.last(), Some(&end));
        assert_eq!(side.conn.streams(), 0);
    });
}

#[test]
fn s5_1_data_after_the_peers_reset_is_stream_closed() {
    server(|side| {
        side.feed(&post(1));
        side.feed(&reset(1, ErrorCode::Cancel));
        side.feed(&data(1, b"late"));
        side.expect_reset(1, CLOSED);
    });
}

#[test]
fn s5_1_headers_after_the_peers_reset_are_stream_closed() {
    server(|side| {
        side.feed(&post(1));
        side.feed(&reset(1, ErrorCode::Cancel));
        side.feed(&headers(1, END_STREAM, GRPC_OK));
        side.expect_fault(CLOSED);
    });
}

#[test]
fn s5_1_frames_after_both_ends_are_stream_closed() {
    let closed = || {
        let mut side = Side::server(Limits::default());
        side.feed(&get(1));
        let key = side.last_key();
        side.head(key, OK, true);
        assert!(!side.conn.is_open(key));
        side
    };
    let mut side = closed();
    side.feed(&data(1, b"late"));
    side.expect_reset(1, CLOSED);
    let mut side = closed();
    side.feed(&headers(1, END_STREAM, GRPC_OK));
    side.expect_fault(CLOSED);
    let mut side = closed();
    side.feed(&frame(CONTINUATION, END_HEADERS, 1, b""));
    side.expect_fault(PROTOCOL);
    // These may have been sent before our END_STREAM was seen.
    let mut side = closed();
    side.feed(&[window_update(1, 1), reset(1, CALM), frame(PRIORITY, 0, 1, &[0; 5])].concat());
    side.expect_no_fault();
    assert!(side.seen.len() == 1 && frames(&side.out).iter().all(|f| f.kind != RST_STREAM));
}

#[test]
fn s5_1_frames_on_a_stream_we_reset_are_ignored() {
    server(|side| {
        side.feed(&post(1));
        let key = side.last_key();
        side.reset(key, ErrorCode::Cancel);
        side.expect_reset(1, ErrorCode::Cancel);
        assert!(!side.conn.is_open(key));
        side.take_seen();
        side.feed(&data(1, b"on its way"));
        side.feed(&window_update(1, 0));
        side.feed(&headers(1, END_STREAM, GRPC_OK));
        side.feed(&reset(1, ErrorCode::Cancel));
        side.expect_no_fault();
        assert!(side.seen.is_empty() && side.out.is_empty());
    });
}

#[test]
fn s5_1_a_mass_of_resets_is_remembered_for_a_while() {
    let mut side = Side::client(Limits::default());
    side.feed(&settings(&[]));
    let streams: Vec<_> = (0..5000).map(|_| side.ask(POST, true)).collect();
    for key in streams {
        side.reset(key, ErrorCode::Cancel);
    }
    side.out.clear();
    side.take_seen();
    for id in 0..5000 {
        side.feed(&headers(2 * id + 1, 0, OK));
        side.feed(&data(2 * id + 1, b"x"));
        side.feed(&headers(2 * id + 1, END_STREAM, GRPC_OK));
    }
    side.expect_no_fault();
    assert!(side.seen.is_empty() && side.out.is_empty());
    let later = side.conn.deadline().expect("the memory of them is given back in time");
    side.conn.expired(later).unwrap();
    assert_eq!(side.conn.deadline(), None);
    side.feed(&headers(9999, END_STREAM, GRPC_OK));
    side.expect_no_fault();
    side.feed(&headers(1, END_STREAM, GRPC_OK));
    side.expect_fault(CLOSED);
}

#[test]
fn s5_1_a_key_finds_nothing_after_its_stream_is_gone() {
    let mut side = Side::server(Limits::default());
    side.feed(&post(1));
    let one = side.last_key();
    side.conn.set_tag(one, 77);
    side.feed(&reset(1, ErrorCode::Cancel));
    assert_eq!(
        side.take_seen()[1],
        Seen::Reset { id: 1, tag: 77, code: ErrorCode::Cancel, ours: false }
    );
    side.feed(&post(3));
    side.sent();
    side.head(one, OK, true);
    side.reset(one, CALM);
    side.drained(one, 0);
    side.conn.set_tag(one, 1);
    assert_eq!(side.conn.data_room(one), 0);
    assert_eq!(side.conn.tag(side.last_key()), ringway_proto::h2::NO_TAG);
    assert!(side.out.is_empty());
    assert_eq!(side.conn.streams(), 1);
}

#[test]
fn s5_1_the_last_event_of_a_stream_still_finds_it() {
    let mut side = Side::client(Limits::default());
    let key = side.ask(GET, true);
    side.conn.set_tag(key, 5);
    let (input, mut pos) = (headers(1, END_STREAM, OK), 0);
    let event = side.conn.next(&input, &mut pos, &mut side.fields, &mut side.out, side.now);
    assert!(matches!(event, Ok(Event::Head { end_stream: true, .. })));
    assert_eq!((side.conn.tag(key), side.conn.streams()), (5, 0), "closed, but not buried");
    assert_eq!(side.conn.keys().count(), 0);
    side.sent();
    side.reset(key, CALM);
    assert!(side.out.is_empty(), "a closed stream needs no reset");
    side.feed(&data(1, b"x"));
    side.expect_no_fault();
}

#[test]
fn s5_1_1_ids_are_odd_and_rise() {
    server(|side| {
        side.feed(&get(5));
        side.feed(&get(3));
        side.expect_fault(PROTOCOL);
    });
    server(|side| {
        side.feed(&get(2));
        side.expect_fault(PROTOCOL);
    });
    server(|side| {
        side.feed(&frame(HEADERS, END_HEADERS, 0, &block(GET)));
        side.expect_fault(PROTOCOL);
    });
    client(|side| {
        side.ask(GET, true);
        side.feed(&headers(2, END_STREAM, OK));
        side.expect_fault(PROTOCOL);
    });
}

#[test]
fn s5_1_1_ids_may_be_passed_over() {
    server(|side| {
        side.feed(&get(5));
        side.feed(&get(0x7fff_ffff));
        side.expect_no_fault();
        assert_eq!(side.conn.streams(), 2);
        assert_eq!(side.conn.highest_peer_stream(), 0x7fff_ffff);
    });
}

#[test]
fn s5_1_1_our_ids_are_odd_and_rise() {
    let mut side = Side::client(Limits::default());
    for n in 0..1000 {
        let key = side.ask(GET, true);
        assert_eq!(side.conn.id(key), 2 * n + 1);
        side.feed(&headers(2 * n + 1, END_STREAM, OK));
    }
    assert!(side.conn.can_open());
    assert_eq!(side.conn.highest_peer_stream(), 0);
}

#[test]
fn s5_1_2_we_keep_to_the_peers_limit() {
    let mut side = Side::fresh(Role::Client, Limits::default());
    side.conn.start(&mut side.out);
    assert_eq!(side.conn.peer_max_streams(), 100);
    for _ in 0..100 {
        side.ask(GET, true);
    }
    assert_eq!(side.open(), Err(OpenError::Full));
    side.feed(&settings(&[]));
    assert_eq!(side.conn.peer_max_streams(), u32::MAX);
    side.ask(GET, true);
    side.feed(&settings(&[(3, 2)]));
    assert_eq!(side.open(), Err(OpenError::Full));
    for id in 0..99 {
        side.feed(&headers(2 * id + 1, END_STREAM, OK));
    }
    assert_eq!((side.conn.streams(), side.open()), (2, Err(OpenError::Full)));
    side.feed(&reset(199, ErrorCode::RefusedStream));
    assert!(side.conn.can_open() && side.open().is_ok());
    side.feed(&settings(&[(3, 0)]));
    assert!(!side.conn.can_open());
}

#[test]
fn s5_1_2_streams_over_our_limit_are_refused() {
    let limits = Limits { max_concurrent_streams: 2, ..Limits::default() };
    play(Role::Server, limits, |side| {
        side.feed(&post(1));
        side.feed(&get(3));
        side.feed(&post(5));
        side.expect_reset(5, ErrorCode::RefusedStream);
        side.feed(&data_end(5, b"on its way"));
        side.expect_no_fault();
        side.feed(&reset(1, ErrorCode::Cancel));
        side.feed(&get(7));
        assert!(matches!(side.seen.last(), Some(Seen::Head { id: 7, .. })));
    });
}

#[test]
fn s5_2_a_connection_error_is_final() {
    let mut side = Side::server(Limits::default());
    side.feed(&data(0, b""));
    side.expect_fault(PROTOCOL);
    side.feed(&get(1));
    assert!(side.seen.is_empty());
    assert_eq!(side.conn.deadline(), None);
}

#[test]
fn s5_3_a_stream_cannot_depend_on_itself() {
    server(|side| {
        side.feed(&post(1));
        side.feed(&frame(PRIORITY, 0, 1, &[0x80, 0, 0, 1, 9]));
        side.expect_stream_fault(1, PROTOCOL);
    });
    server(|side| {
        let payload = [&[0, 0, 0, 1, 9], &block(GET)[..]].concat();
        side.feed(&frame(HEADERS, END_HEADERS | PRIORITISED, 1, &payload));
        side.expect_reset(1, PROTOCOL);
        assert!(side.seen.is_empty());
    });
}

#[test]
fn s5_4_1_goaway_names_the_last_stream() {
    let mut side = Side::server(Limits::default());
    side.feed(&get(1));
    side.feed(&post(7));
    let last = side.conn.highest_peer_stream();
    side.conn.goaway(last, ErrorCode::NoError, b"bye", &mut side.out);
    let sent = side.sent();
    assert_eq!(sent.last().unwrap().payload, b"\0\0\0\x07\0\0\0\0bye");
}

#[test]
fn s5_4_2_resets_carry_any_code_both_ways() {
    let mut side = Side::client(Limits::default());
    for (number, id) in [(0x0, 1), (0x8, 3), (0xd, 5), (0xdead_beef, 7)] {
        side.ask(POST, false);
        side.feed(&reset(id, ErrorCode::of(number)));
        let Some(Seen::Reset { code, .. }) = side.seen.pop() else { panic!() };
        assert_eq!(code.number(), number);
    }
    let key = side.ask(POST, false);
    side.sent();
    side.reset(key, ErrorCode::Other(0xfeed));
    assert_eq!(side.sent()[0].word(), 0xfeed);
}

#[test]
fn s6_4_a_stream_opened_and_given_up_before_its_head_is_not_reset() {
    let mut side = Side::client(Limits::default());
    let key = side.open().unwrap();
    side.reset(key, ErrorCode::Cancel);
    assert!(side.out.is_empty(), "it is idle to the peer");
    let next = side.ask(GET, true);
    assert_eq!(side.conn.id(next), 3);
}

#[test]
fn s8_1_a_response_may_end_before_its_request() {
    let mut side = Side::client(Limits::default());
    let key = side.ask(POST, false);
    side.feed(&headers(1, END_STREAM, OK));
    assert!(matches!(
        side.seen[..],
        [Seen::Head { id: 1, kind: HeadKind::Response, end: true, .. }]
    ));
    assert!(side.conn.sends(key) && side.conn.streams() == 1);
    side.feed(&reset(1, ErrorCode::NoError));
    assert_eq!(side.conn.streams(), 0);
}
