//! HTTP/2 connections of both roles: the same events however the frames are cut.

use super::{pairs, take, ways};
use ringway_proto::detect::PREFACE;
use ringway_proto::fields::{Field, Fields, name_is_valid, value_is_valid};
use ringway_proto::h2::{Conn, Event, HeadKind, Limits, Role, StreamKey};
use ringway_proto::time::Time;

/// A client's frames to us.
pub fn h2_server(input: &[u8]) {
    alike(Role::Server, input);
}

/// A worker's frames to us.
pub fn h2_client(input: &[u8]) {
    alike(Role::Client, input);
}

fn alike(role: Role, mut input: &[u8]) {
    let said = [take(&mut input), take(&mut input)];
    let bytes = if said[0] & 1 == 0 { framed(input) } else { input.to_vec() };
    let preface = [&PREFACE[..], &[0, 0, 0, 4, 0, 0, 0, 0, 0]].concat();
    let start = if role == Role::Server { 0 } else { PREFACE.len() };
    let input = [&preface[start..], &bytes].concat();
    let mut ways = ways(input.len(), said).into_iter();
    let whole = play(role, &input, &ways.next().unwrap_or_default());
    for cuts in ways {
        assert_eq!(play(role, &input, &cuts), whole, "cut at {cuts:?}");
    }
}

/// Frames whose lengths are always right: kind, flags, stream and length are a byte each.
fn framed(mut input: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    while !input.is_empty() {
        let (kind, flags, stream) = (take(&mut input), take(&mut input), take(&mut input));
        let len = (take(&mut input) as usize).min(input.len());
        let (payload, rest) = input.split_at(len);
        input = rest;
        bytes.extend([0, 0, len as u8, kind, flags, 0, 0, 0, stream]);
        bytes.extend(payload);
    }
    bytes
}

const REQUEST: [(&[u8], &[u8]); 4] =
    [(b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/"), (b":authority", b"a")];
const RESPONSE: [(&[u8], &[u8]); 2] = [(b":status", b"200"), (b"a", b"b")];

fn put_head(
    conn: &mut Conn,
    key: StreamKey,
    head: &[(&[u8], &[u8])],
    end: bool,
    out: &mut Vec<u8>,
) {
    let fields = head.iter().map(|(name, value)| Field::new(name, value));
    conn.head(key, fields, end, &mut Vec::new(), out);
}

/// All that was said and sent, with pieces of payload joined wherever they were cut.
fn play(role: Role, input: &[u8], cuts: &[usize]) -> (Vec<String>, Vec<u8>) {
    let limits = Limits { max_concurrent_streams: 20, ..Limits::default() };
    let now = Time(1_000_000);
    let mut conn = Conn::new(role, limits, now);
    let (mut list, mut out, mut log) = (Fields::new(), Vec::new(), Vec::new());
    conn.start(&mut out);
    if role == Role::Client {
        for _ in 0..3 {
            let key = conn.open().expect("a fresh connection");
            put_head(&mut conn, key, &REQUEST, false, &mut out);
        }
    }
    let mut data: Option<(u32, Vec<u8>, bool)> = None;
    let mut start = 0;
    for &end in cuts.iter().chain([&input.len()]) {
        let piece = &input[start..end];
        start = end;
        let mut pos = 0;
        loop {
            let before = pos;
            let event = match conn.next(piece, &mut pos, &mut list, &mut out, now) {
                Ok(event) => event,
                Err(fault) => {
                    push_data(&mut data, &mut log);
                    log.push(format!("{fault:?}"));
                    check_frames(role, &out);
                    return (log, out);
                }
            };
            assert!(before <= pos && pos <= piece.len());
            match event {
                Event::More => break,
                Event::Data { key, start, len, end_stream, .. } => {
                    assert!(start + len == pos && (len > 0 || end_stream));
                    let id = conn.id(key);
                    match &mut data {
                        Some((of, bytes, end)) if *of == id && !*end => {
                            bytes.extend(&piece[start..pos]);
                            *end = end_stream;
                        }
                        _ => {
                            push_data(&mut data, &mut log);
                            data = Some((id, piece[start..pos].to_vec(), end_stream));
                        }
                    }
                }
                event => {
                    push_data(&mut data, &mut log);
                    log.push(told(&mut conn, event, &mut list, &mut out));
                }
            }
            assert!(conn.streams() <= 20);
        }
    }
    push_data(&mut data, &mut log);
    check_frames(role, &out);
    (log, out)
}

fn push_data(data: &mut Option<(u32, Vec<u8>, bool)>, log: &mut Vec<String>) {
    log.extend(data.take().map(|data| format!("{data:?}")));
}

/// What an event says, and what a relay may do at once.
fn told(conn: &mut Conn, event: Event, list: &mut Fields, out: &mut Vec<u8>) -> String {
    let Event::Head { key, kind, end_stream, list: known, repeated } = event else {
        return format!("{event:?}");
    };
    if repeated {
        assert!(known.is_some_and(|known| conn.recall(known, list)));
    }
    assert!(list.iter().all(|f| name_is_valid(f.name) && value_is_valid(f.value)));
    if kind == HeadKind::Request {
        put_head(conn, key, &RESPONSE, end_stream, out);
    }
    format!("{} {kind:?} {end_stream} {:?}", conn.id(key), pairs(list))
}

/// What is sent are whole frames of legal size.
fn check_frames(role: Role, mut out: &[u8]) {
    if role == Role::Client {
        out = out.strip_prefix(PREFACE).expect("the magic comes first");
    }
    while let Some((head, rest)) = out.split_first_chunk::<9>() {
        let len = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        assert!(head[3] <= 9 && len <= 16_384);
        out = &rest[len..];
    }
    assert!(out.is_empty());
}
