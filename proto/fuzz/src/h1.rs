//! HTTP/1 connections of both roles, and what is relayed from one to the other.

use super::{Pairs, pairs, take, ways};
use ringway_proto::fields::{Field, Fields, Token, name_is_valid, value_is_valid};
use ringway_proto::h1::body::{BodyReader, Part};
use ringway_proto::h1::head::Body;
use ringway_proto::h1::{Conn, Event, Fault, HeadKind, Limits, Role};

/// An event with its list or its bytes.
#[derive(Debug, PartialEq, Eq)]
enum Seen {
    Head(HeadKind, bool, bool, Pairs),
    Data(Vec<u8>, bool),
    Trailers(Pairs),
    End,
    Fault(Fault),
    /// Bytes that were not read, and how the connection took its end.
    Rest(usize, Result<Event, Fault>),
}

/// A client's bytes to us.
pub fn h1_request(mut input: &[u8]) {
    let said = [take(&mut input), take(&mut input)];
    alike(Role::Server, 0, input, said);
    relay(Role::Server, input);
}

/// A worker's bytes to us.
pub fn h1_response(mut input: &[u8]) {
    let said = [take(&mut input), take(&mut input)];
    alike(Role::Client, said[0], input, said);
    relay(Role::Client, input);
}

fn alike(role: Role, asked: u8, input: &[u8], said: [u8; 2]) {
    let mut ways = ways(input.len(), said).into_iter();
    let whole = play(role, asked, input, &ways.next().unwrap_or_default());
    for cuts in ways {
        assert_eq!(play(role, asked, input, &cuts), whole, "cut at {cuts:?}");
    }
}

fn list_of(list: &[(&'static str, &'static str)]) -> impl Iterator<Item = Field<'static>> + Clone {
    list.iter().map(|(name, value)| Field::new(name.as_bytes(), value.as_bytes()))
}

fn ask(conn: &mut Conn, asked: u8) {
    let method = if asked & 1 == 0 { "GET" } else { "HEAD" };
    let fields =
        [(":method", method), (":path", "/"), (":authority", "a"), ("upgrade", "websocket")];
    let end = 3 + usize::from(asked >> 1 & 1);
    let ends = asked & 4 == 0;
    conn.request(list_of(&fields[..end]), ends, &mut Vec::new()).expect("the head is good");
    if asked & 8 == 0 {
        conn.finish(None, &mut Vec::new()).expect("nothing was announced");
    }
}

fn play(role: Role, asked: u8, input: &[u8], cuts: &[usize]) -> Vec<Seen> {
    let limits = Limits::default();
    let mut conn = Conn::new(role, limits);
    if role == Role::Client {
        ask(&mut conn, asked);
    }
    let (mut seen, mut list, mut pos) = (Vec::new(), Fields::new(), 0);
    for &end in cuts.iter().chain([&input.len()]) {
        loop {
            let before = pos;
            let event = match conn.next(&input[..end], &mut pos, &mut list) {
                Ok(event) => event,
                Err(fault) => {
                    assert_eq!(conn.eof(), Err(fault), "a fault stays");
                    seen.push(Seen::Fault(fault));
                    return seen;
                }
            };
            assert!(before <= pos && pos <= end && conn.held() <= limits.head.max_bytes);
            match event {
                Event::More => break,
                Event::Head { kind, end_stream, upgrade } => {
                    check_list(&list);
                    seen.push(Seen::Head(kind, end_stream, upgrade, pairs(&list)));
                    if end_stream {
                        next_exchange(&mut conn, role, asked);
                    }
                    if upgrade && kind == HeadKind::Response {
                        conn.raw();
                    }
                }
                Event::Data { start, len, end_stream } => {
                    assert!(len > 0 && before <= start && start + len == pos);
                    join(&mut seen, &input[start..pos], end_stream);
                    if end_stream {
                        next_exchange(&mut conn, role, asked);
                    }
                }
                Event::Trailers => {
                    check_list(&list);
                    seen.push(Seen::Trailers(pairs(&list)));
                    next_exchange(&mut conn, role, asked);
                }
                Event::End => {
                    seen.push(Seen::End);
                    next_exchange(&mut conn, role, asked);
                }
            }
        }
    }
    seen.push(Seen::Rest(input.len() - pos, conn.eof()));
    seen
}

fn check_list(list: &Fields) {
    assert!(list.iter().all(|f| name_is_valid(f.name) && value_is_valid(f.value)));
    assert!(list.iter().all(|f| f.token == Token::of(f.name)));
}

fn join(seen: &mut Vec<Seen>, new: &[u8], ends: bool) {
    match seen.last_mut() {
        Some(Seen::Data(bytes, end)) if !*end => {
            bytes.extend_from_slice(new);
            *end = ends;
        }
        _ => seen.push(Seen::Data(new.to_vec(), ends)),
    }
}

/// Answers at once, or asks again.
fn next_exchange(conn: &mut Conn, role: Role, asked: u8) {
    assert!(conn.has_read_all());
    if role == Role::Server {
        let answer = [(":status", "200")];
        conn.response(list_of(&answer), true, &mut Vec::new()).expect("the head is good");
        assert_eq!(conn.next_message(), conn.keeps_alive());
    } else if conn.keeps_alive() && conn.is_between() {
        ask(conn, asked);
    }
}

/// A message apart from how it is framed and of what concerns one hop.
#[derive(Debug, PartialEq, Eq)]
struct Meant {
    kind: HeadKind,
    list: Pairs,
    body: Vec<u8>,
    trailers: Pairs,
}

/// A message that gets through is written on the other hop so that it reads as it was meant there;
/// whether this one did.
pub fn relay(role: Role, input: &[u8]) -> bool {
    let (mut from, mut to) = hops(role);
    let Some((meant, out, framed)) = pass(&mut from, &mut to, input) else { return false };
    let (mut again, mut sink) = hops(role);
    let Some((read, _, _)) = pass(&mut again, &mut sink, &out) else {
        panic!("{} became {}", input.escape_ascii(), out.escape_ascii());
    };
    assert_eq!(read.len(), meant.len());
    for (mut read, mut meant) in read.into_iter().zip(meant) {
        if role == Role::Server && !meant.list.iter().any(|(name, _)| name == b":authority") {
            // A worker gets a Host in any case.
            meant.list.push((b":authority".to_vec(), Vec::new()));
        }
        if !framed {
            // Only chunks have a place for trailers.
            meant.trailers.clear();
        }
        read.list.sort();
        meant.list.sort();
        assert_eq!(read, meant, "{} became {}", input.escape_ascii(), out.escape_ascii());
    }
    true
}

/// Two hops before a message of the first one's peer: a request, or the response to a GET.
fn hops(role: Role) -> (Conn, Conn) {
    let mut server = Conn::new(Role::Server, Limits::default());
    let mut client = Conn::new(Role::Client, Limits::default());
    if role == Role::Server {
        return (server, client);
    }
    let get = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    server.next(get, &mut 0, &mut Fields::new()).expect("the request is good");
    ask(&mut client, 0);
    (client, server)
}

fn meant_list(list: &Fields) -> Pairs {
    let of_a_hop = |token| {
        matches!(
            token,
            Token::Connection
                | Token::ContentLength
                | Token::Http2Settings
                | Token::KeepAlive
                | Token::ProxyConnection
                | Token::Te
                | Token::TransferEncoding
                | Token::Upgrade
        )
    };
    let mut meant = list.clone();
    meant.retain(|field| !of_a_hop(field.token));
    pairs(&meant)
}

/// Passes on one message, after its 1xx heads. Returns its meaning, its bytes and whether it has
/// chunks.
fn pass(from: &mut Conn, to: &mut Conn, input: &[u8]) -> Option<(Vec<Meant>, Vec<u8>, bool)> {
    const WHOLE: &str = "what was read can be written";
    let (mut list, mut out, mut pos, mut framed) = (Fields::new(), Vec::new(), 0, false);
    let mut meant: Vec<Meant> = Vec::new();
    loop {
        match from.next(input, &mut pos, &mut list).ok()? {
            Event::More if from.eof() == Ok(Event::End) => break,
            Event::More => return None,
            Event::Head { kind, end_stream, .. } => {
                let (body, trailers) = (Vec::new(), Vec::new());
                meant.push(Meant { kind, list: meant_list(&list), body, trailers });
                // An upgrade has no end.
                let passed = list.iter().filter(|field| field.token != Token::Upgrade);
                match kind {
                    HeadKind::Request => to.request(passed, end_stream, &mut out).expect(WHOLE),
                    _ => to.response(passed, end_stream, &mut out).expect(WHOLE),
                }
                if end_stream {
                    break;
                }
            }
            Event::Data { start, len, end_stream } => {
                let head = to.data_head(len, end_stream).expect(WHOLE);
                framed |= !head.as_bytes().is_empty();
                out.extend_from_slice(head.as_bytes());
                out.extend_from_slice(&input[start..start + len]);
                meant.last_mut()?.body.extend_from_slice(&input[start..start + len]);
                if end_stream {
                    break;
                }
            }
            Event::Trailers => {
                meant.last_mut()?.trailers = pairs(&list);
                let before = out.len();
                to.finish(Some(&list), &mut out).expect(WHOLE);
                framed |= out.len() > before;
                break;
            }
            Event::End => break,
        }
    }
    to.finish(None, &mut out).expect(WHOLE);
    assert!(to.has_written_all() && from.has_read_all());
    Some((meant, out, framed))
}

/// Chunks alone: cut anywhere, and against a reader that looks for nothing but the format.
pub fn chunked(mut input: &[u8]) {
    let said = [take(&mut input), take(&mut input)];
    let mut ways = ways(input.len(), said).into_iter();
    let whole = chunks(input, &ways.next().unwrap_or_default());
    for cuts in ways {
        assert_eq!(chunks(input, &cuts), whole, "cut at {cuts:?}");
    }
    if let Some((content, taken)) = whole {
        assert_eq!(plain_chunks(&input[..taken]), Some(content));
    }
    // And the other way round: any bytes in chunks of any size are those bytes.
    let mut conn = hops(Role::Client).1;
    conn.response(list_of(&[(":status", "200")]), false, &mut Vec::new()).expect("a good head");
    let mut out = Vec::new();
    for piece in input.chunks(1 + said[0] as usize) {
        let head = conn.data_head(piece.len(), false).expect("chunks have no length");
        out.extend_from_slice(head.as_bytes());
        out.extend_from_slice(piece);
    }
    conn.finish(None, &mut out).expect("chunks have no length");
    let len = out.len() - 2;
    assert_eq!(chunks(&out, &[]), Some((input.to_vec(), len)));
}

/// The content, and how many bytes came before the trailer section. `None` if that section did not
/// come.
fn chunks(input: &[u8], cuts: &[usize]) -> Option<(Vec<u8>, usize)> {
    let mut reader = BodyReader::new(Body::Chunked);
    let (mut content, mut at) = (Vec::new(), 0);
    for &end in cuts.iter().chain([&input.len()]) {
        loop {
            match reader.read(&input[at..end]).ok()? {
                Part::Content { start, len } => {
                    assert!(len > 0);
                    content.extend_from_slice(&input[at + start..at + start + len]);
                    at += start + len;
                }
                Part::Trailers(read) => return Some((content, at + read)),
                Part::More => break,
                Part::End => unreachable!("chunks end with trailers"),
            }
        }
        at = end;
    }
    None
}

fn plain_chunks(mut input: &[u8]) -> Option<Vec<u8>> {
    let mut content = Vec::new();
    loop {
        let feed = input.windows(2).position(|pair| pair == b"\r\n")?;
        let line =
            std::str::from_utf8(input[..feed].split(|b| b" \t;".contains(b)).next()?).ok()?;
        let size = usize::from_str_radix(line, 16).ok()?;
        input = &input[feed + 2..];
        if size == 0 {
            return input.is_empty().then_some(content);
        }
        content.extend_from_slice(input.get(..size)?);
        input = input[size..].strip_prefix(b"\r\n")?;
    }
}
