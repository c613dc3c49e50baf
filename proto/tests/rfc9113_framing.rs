//! RFC 9113 §3.4 and §4: the preface, frames, header compression.

mod h2_script;

use h2_script::*;
use ringway_proto::h2::frame::setting;
use ringway_proto::h2::{ConnFault, Event, HeadKind, Limits, Role};

fn fresh(role: Role, scenario: fn(&mut Side)) {
    play_fresh(role, Limits::default(), scenario);
}

#[test]
fn s3_4_server_sends_settings_first_and_widens_its_window() {
    let mut side = Side::fresh(Role::Server, Limits::default());
    side.conn.start(&mut side.out);
    let sent = side.sent();
    assert_eq!((sent[0].kind, sent[0].flags, sent[0].stream), (SETTINGS, 0, 0));
    let told: Vec<_> = sent[0]
        .payload
        .chunks(6)
        .map(|p| (u16::from_be_bytes([p[0], p[1]]), u32::from_be_bytes(p[2..].try_into().unwrap())))
        .collect();
    assert_eq!(
        told,
        [
            (setting::MAX_CONCURRENT_STREAMS, 10_000),
            (setting::INITIAL_WINDOW_SIZE, 65_536),
            (setting::MAX_HEADER_LIST_SIZE, 262_144)
        ]
    );
    assert_eq!((sent[1].kind, sent[1].stream), (WINDOW_UPDATE, 0));
    assert_eq!(sent[1].word(), (16 << 20) - 65_535);
    assert_eq!(sent.len(), 2);
}

#[test]
fn s3_4_client_sends_magic_then_settings_without_push() {
    let mut side = Side::fresh(Role::Client, Limits::default());
    side.conn.start(&mut side.out);
    let sent = frames(side.out.strip_prefix(MAGIC).unwrap());
    assert_eq!(sent[0].kind, SETTINGS);
    assert!(sent[0].payload.chunks(6).any(|p| p == [0, 2, 0, 0, 0, 0]), "ENABLE_PUSH 0");
    assert!(!sent[0].payload.chunks(6).any(|p| p[1] == 3), "a server opens nothing anyway");
    assert_eq!(sent[1].kind, WINDOW_UPDATE);
}

#[test]
fn s3_4_preface_is_magic_and_settings() {
    fresh(Role::Server, |side| {
        side.feed(MAGIC);
        side.feed(&settings(&[]));
        side.expect_no_fault();
        assert_eq!(side.take_seen(), [Seen::Settings]);
        assert_eq!(side.sent(), frames(&settings_ack()));
    });
}

#[test]
fn s3_4_any_other_beginning_is_a_protocol_error() {
    for at in 0..MAGIC.len() {
        let mut bytes = MAGIC.to_vec();
        bytes[at] ^= 1;
        let mut side = Side::fresh(Role::Server, Limits::default());
        side.feed(&bytes[..at]);
        side.expect_no_fault();
        side.feed(&bytes[at..]);
        side.expect_fault(PROTOCOL);
    }
}

#[test]
fn s3_4_first_frame_must_be_settings() {
    fresh(Role::Server, |side| {
        side.feed(MAGIC);
        side.feed(&get(1));
        side.expect_fault(PROTOCOL);
    });
    fresh(Role::Client, |side| {
        side.feed(&frame(PING, 0, 0, &[0; 8]));
        side.expect_fault(PROTOCOL);
    });
    fresh(Role::Server, |side| {
        side.feed(MAGIC);
        side.feed(&settings_ack());
        side.expect_fault(PROTOCOL);
    });
    fresh(Role::Server, |side| {
        side.feed(MAGIC);
        side.feed(&frame(0x77, 0, 0, b"greased"));
        side.expect_fault(PROTOCOL);
    });
}

#[test]
fn s3_2_an_upgraded_connection_begins_with_stream_1() {
    let mut side = Side::fresh(Role::Server, Limits::default());
    side.conn.start(&mut side.out);
    let told = settings(&[(setting::INITIAL_WINDOW_SIZE, 3)]);
    let key = side.conn.upgraded(&told[9..], false).unwrap();
    side.out.clear();
    side.head(key, OK, false);
    assert_eq!(side.send(key, b"hello", true), 3, "the settings of the upgrade are in force");
    side.feed(MAGIC);
    side.feed(&settings(&[(setting::INITIAL_WINDOW_SIZE, 5)]));
    assert_eq!(side.take_seen(), [Seen::Settings, Seen::Window(None)]);
    assert_eq!(side.send(key, b"lo", true), 2);
    assert!(!side.conn.is_open(key), "its request had ended with the upgrade");
    side.feed(&get(3));
    side.expect_no_fault();
    let broken = Side::fresh(Role::Server, Limits::default()).conn.upgraded(&[0; 5], false);
    assert_eq!(broken.unwrap_err().code, SIZE);
}

#[test]
fn s4_1_the_reserved_bit_is_ignored() {
    server(|side| {
        let mut bytes = get(1);
        bytes[5] |= 0x80;
        side.feed(&bytes);
        assert!(matches!(side.seen[..], [Seen::Head { id: 1, .. }]));
    });
}

#[test]
fn s4_1_unknown_flags_are_ignored() {
    server(|side| {
        side.feed(&frame(HEADERS, END_HEADERS | 0x42, 1, &block(POST)));
        side.feed(&frame(DATA, 0xf6, 1, b"x"));
        side.feed(&frame(PING, 0xfe, 0, &[0; 8]));
        side.expect_no_fault();
        let data = Seen::Data { id: 1, bytes: b"x".to_vec(), end: false };
        assert_eq!(side.seen.last(), Some(&data));
    });
}

#[test]
fn s4_1_unknown_frames_are_dropped() {
    server(|side| {
        side.feed(&frame(0xbe, 0xff, 0, &[1; 100]));
        side.feed(&frame(0xbf, 0xff, 7, &[]));
        side.feed(&get(1));
        side.expect_no_fault();
        assert!(matches!(side.seen[..], [Seen::Head { id: 1, .. }]));
    });
}

#[test]
fn s4_2_frames_of_16384_octets_pass_and_one_more_does_not() {
    let mut side = Side::server(Limits::default());
    side.feed(&post(1));
    side.feed(&data(1, &[0; 16_384]));
    side.expect_no_fault();
    side.feed(&frame(DATA, 0, 1, &[0; 16_385]));
    side.expect_fault(SIZE);
    for (kind, stream) in [(HEADERS, 1), (SETTINGS, 0), (0x66, 0), (CONTINUATION, 1), (PRIORITY, 1)]
    {
        let mut side = Side::server(Limits::default());
        side.feed(&frame(kind, 0, stream, &[0; 16_385])[..9]);
        side.expect_fault(SIZE);
    }
}

#[test]
fn s4_2_our_frames_keep_to_the_peers_size() {
    let mut side = Side::client(Limits::default());
    let long = "~".repeat(35_000);
    side.feed(&settings(&[(setting::MAX_FRAME_SIZE, 20_000), (4, 1 << 20)]));
    side.feed(&window_update(0, 1 << 20));
    side.out.clear();
    let key = side.ask(&[GET, &[("x-long", &long)]].concat(), false);
    let sent = side.sent();
    assert!(sent.iter().all(|frame| frame.payload.len() <= 20_000 && frame.stream == 1));
    let flags: Vec<_> = sent.iter().map(|frame| (frame.kind, frame.flags)).collect();
    assert_eq!(flags, [(HEADERS, 0), (CONTINUATION, END_HEADERS)]);
    assert_eq!(side.conn.data_room(key), 20_000);
    side.send(key, &[7; 50_000], true);
    let sizes: Vec<_> = side.sent().iter().map(|f| (f.payload.len(), f.flags)).collect();
    assert_eq!(sizes, [(20_000, 0), (20_000, 0), (10_000, END_STREAM)]);
}

#[test]
fn s4_2_a_block_that_fills_its_frame_exactly_needs_no_continuation() {
    // A value that Huffman code makes no shorter: its length sweeps over the frame size.
    for len in 16_200..16_400 {
        let mut side = Side::client(Limits::default());
        let value = "~".repeat(len);
        let _ = side.ask(&[GET, &[("x-long", &value)]].concat(), true);
        let sent = side.sent();
        assert!(sent.iter().all(|frame| !frame.payload.is_empty()), "no empty fragment");
        let ends = sent.iter().filter(|frame| frame.flags & END_HEADERS != 0).count();
        assert_eq!((ends, sent.last().unwrap().flags & END_HEADERS), (1, END_HEADERS));
    }
}

#[test]
fn s4_3_a_block_in_many_fragments_is_one_head() {
    server(|side| {
        let block = block(POST);
        let (a, rest) = block.split_at(5);
        let (b, c) = rest.split_at(11);
        side.feed(&frame(HEADERS, END_STREAM, 1, a));
        side.feed(&frame(CONTINUATION, 0, 1, b));
        side.feed(&frame(CONTINUATION, END_HEADERS, 1, c));
        side.expect_no_fault();
        let Some(Seen::Head { id: 1, kind: HeadKind::Request, end: true, fields }) =
            side.seen.last()
        else {
            panic!("{:?}", side.seen)
        };
        assert_eq!(fields.len(), POST.len());
    });
}

#[test]
fn s4_3_padding_and_priority_are_stripped_from_fragments() {
    server(|side| {
        let block = block(POST);
        let (a, b) = block.split_at(9);
        let payload = padded(&[&[0, 0, 0, 9, 200], a].concat(), 30);
        side.feed(&frame(HEADERS, PADDED | PRIORITISED, 1, &payload));
        side.feed(&frame(CONTINUATION, END_HEADERS, 1, b));
        side.feed(&frame(HEADERS, PADDED | END_HEADERS, 3, &padded(&block, 0)));
        side.expect_no_fault();
        assert!(matches!(side.seen[..], [Seen::Head { id: 1, .. }, Seen::Head { id: 3, .. }]));
    });
}

#[test]
fn s4_3_nothing_comes_between_fragments() {
    for between in [
        data(1, b"x"),
        get(3),
        frame(PING, 0, 0, &[0; 8]),
        frame(CONTINUATION, END_HEADERS, 3, b""),
        frame(0xcc, 0, 1, b""),
        settings(&[]),
        reset(1, CALM),
        frame(PRIORITY, 0, 1, &[0; 5]),
        window_update(0, 1),
        goaway(0, CALM),
    ] {
        let mut side = Side::server(Limits::default());
        side.feed(&frame(HEADERS, 0, 1, &block(GET)));
        side.feed(&between);
        side.expect_fault(PROTOCOL);
    }
}

#[test]
fn s4_3_what_cannot_be_decoded_ends_the_connection() {
    server(|side| {
        side.feed(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &[0x80]));
        side.expect_fault(ringway_proto::h2::ErrorCode::CompressionError);
    });
    server(|side| {
        side.feed(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &[0x3f, 0xe2, 0x1f]));
        side.expect_fault(ringway_proto::h2::ErrorCode::CompressionError);
    });
}

/// A block that adds `x-kept: value` to the decoder's table behind a request.
fn indexing(value: &str) -> Vec<u8> {
    let mut bytes = block(GET);
    bytes.push(0x40);
    bytes.push(6);
    bytes.extend(b"x-kept");
    bytes.push(value.len() as u8);
    bytes.extend(value.as_bytes());
    bytes
}

/// A request that refers to the newest table entry.
fn referring() -> Vec<u8> {
    [block(GET), vec![0x80 | 62]].concat()
}

#[track_caller]
fn expect_kept(side: &Side, value: &str) {
    side.expect_no_fault();
    let Some(Seen::Head { fields, .. }) = side.seen.last() else { panic!("{:?}", side.seen) };
    assert_eq!(fields.last(), Some(&("x-kept".to_owned(), value.to_owned())));
}

#[test]
fn s4_3_blocks_of_streams_nobody_wants_are_decoded_all_the_same() {
    let all = END_HEADERS | END_STREAM;
    // Malformed.
    let mut side = Side::server(Limits::default());
    let malformed = [indexing("a"), block(&[(":late", "x")])].concat();
    side.feed(&frame(HEADERS, all, 1, &malformed));
    side.expect_reset(1, PROTOCOL);
    side.feed(&frame(HEADERS, all, 3, &referring()));
    expect_kept(&side, "a");
    // Reset by us.
    let mut side = Side::server(Limits::default());
    side.feed(&post(1));
    side.reset(side.last_key(), CALM);
    side.feed(&frame(HEADERS, all, 1, &indexing("b")));
    side.feed(&frame(HEADERS, all, 3, &referring()));
    expect_kept(&side, "b");
    // Refused.
    let limits = Limits { max_concurrent_streams: 1, ..Limits::default() };
    let mut side = Side::server(limits);
    side.feed(&post(1));
    side.feed(&frame(HEADERS, all, 3, &indexing("c")));
    side.expect_reset(3, ringway_proto::h2::ErrorCode::RefusedStream);
    side.feed(&reset(1, CALM));
    side.feed(&frame(HEADERS, all, 5, &referring()));
    expect_kept(&side, "c");
    // After GOAWAY.
    let mut side = Side::server(limits);
    side.conn.refuse_new(true);
    side.feed(&frame(HEADERS, all, 1, &indexing("d")));
    side.conn.refuse_new(false);
    side.feed(&frame(HEADERS, all, 3, &referring()));
    expect_kept(&side, "d");
    // Too large.
    let mut side = Side::server(Limits::default());
    let large = [block(&[("x", "y"); 1100]), indexing("e")].concat();
    side.feed(&frame(HEADERS, all, 1, &large));
    assert_eq!(side.take_seen(), [Seen::TooLarge { id: 1, end: true }]);
    side.feed(&frame(HEADERS, all, 3, &referring()));
    expect_kept(&side, "e");
}

#[test]
fn a_frame_that_lies_whole_in_the_input_can_be_patched_in_place() {
    let mut side = Side::server(Limits::default());
    let mut input = [post(1), data(1, b"hello"), data_end(1, b"")].concat();
    let mut pos = 0;
    let (conn, fields) = (&mut side.conn, &mut side.fields);
    let mut next = |input: &[u8]| conn.next(input, &mut pos, fields, &mut side.out, side.now);
    assert!(matches!(next(&input), Ok(Event::Head { .. })));
    let Ok(Event::Data { start, len, head_in_place: true, end_stream: false, .. }) = next(&input)
    else {
        panic!("a piece")
    };
    assert_eq!(&input[start..start + len], b"hello");
    // What was shown is the caller's.
    input[start - 9..start + len].fill(0xff);
    assert!(matches!(
        next(&input),
        Ok(Event::Data { len: 0, head_in_place: true, end_stream: true, .. })
    ));
    assert_eq!(next(&input), Ok(Event::More));
}

#[test]
fn a_frame_cut_by_receives_has_no_head_in_place_after_its_first_piece() {
    let mut side = Side::server(Limits::default());
    side.feed(&post(1));
    let whole = data_end(1, b"0123456789");
    let mut pieces = Vec::new();
    for (from, to) in [(0, 4), (4, 9), (9, 12), (12, 12), (12, 19)] {
        let (input, mut pos) = (&whole[from..to], 0);
        while let Ok(event) =
            side.conn.next(input, &mut pos, &mut side.fields, &mut side.out, side.now)
        {
            match event {
                Event::Data { len, head_in_place, end_stream, .. } => {
                    pieces.push((len, head_in_place, end_stream));
                }
                _ => break,
            }
        }
    }
    assert_eq!(pieces, [(3, false, false), (7, false, true)]);
    // The first piece of a frame whose head came with it.
    side.feed(&post(3));
    let mut pos = 0;
    let input = &data(3, b"0123456789")[..11];
    let event = side.conn.next(input, &mut pos, &mut side.fields, &mut side.out, side.now);
    assert!(matches!(event, Ok(Event::Data { start: 9, len: 2, head_in_place: true, .. })));
}

#[test]
fn a_padded_frame_is_never_patched_in_place() {
    let mut side = Side::server(Limits::default());
    side.feed(&post(1));
    let (input, mut pos) = (padded_data(1, 0, b"abc", 2), 0);
    let event = side.conn.next(&input, &mut pos, &mut side.fields, &mut side.out, side.now);
    let Ok(Event::Data { start: 10, len: 3, head_in_place: false, .. }) = event else {
        panic!("{event:?}")
    };
}

#[test]
fn s3_4_a_server_without_http_2_is_named() {
    let answers =
        ["HTTP/1.1 400 Bad Request\r\n\r\n", "HTTP/1.0 505 x\r\n\r\n", "HTTP/1.1 101 x\r\n"];
    for answer in answers {
        for cut in 0..answer.len() {
            let mut side = Side::fresh(Role::Client, Limits::default());
            side.conn.start(&mut side.out);
            side.feed(&answer.as_bytes()[..cut]);
            side.feed(&answer.as_bytes()[cut..]);
            assert_eq!(side.fault, Some(ConnFault::SPEAKS_HTTP1), "{answer} {cut}");
        }
    }
    // Behind its SETTINGS it speaks HTTP/2, and a client is no server.
    for (role, begin) in [(Role::Client, settings(&[])), (Role::Server, MAGIC.to_vec())] {
        let mut side = Side::fresh(role, Limits::default());
        side.feed(&begin);
        side.feed(answers[0].as_bytes());
        side.expect_fault(SIZE);
    }
}
