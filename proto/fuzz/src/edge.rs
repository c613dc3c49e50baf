//! The first bytes of a connection: a load balancer's header, a worker's CONNECT.

use super::{pairs, take, ways};
use ringway_proto::date::HttpDate;
use ringway_proto::fields::{Fields, Token};
use ringway_proto::h1::connect::{self, ConnectFault, ConnectResult};
use ringway_proto::h1::head::{HeadFault, HeadLimits, RequestHead, Scan, parse_request};
use ringway_proto::h1::{Conn, Event, HeadKind, Limits, Role, write_fault};
use ringway_proto::proxy::{HEADER_MAX, Header, SIGNATURE, read};
use std::net::SocketAddr;

/// PROXY protocol v2: read alike however it comes in, and addresses as they were written.
pub fn proxy(mut input: &[u8]) {
    let first = take(&mut input);
    // Without the signature before it the fuzzer would seldom get further.
    let whole = if first & 1 == 0 { [SIGNATURE, input].concat() } else { input.to_vec() };
    let last = read(&whole);
    let mut early = (0..=whole.len().min(HEADER_MAX + 1)).map(|cut| read(&whole[..cut]));
    let early = early.find(|read| *read != Ok(Header::NeedMore));
    assert_eq!(early.unwrap_or(Ok(Header::NeedMore)), last);
    if let Ok(Header::Whole { len, .. }) = last {
        assert!(len <= whole.len() && len <= HEADER_MAX);
    }
    let mut octets = [0; 18];
    let len = input.len().min(18);
    octets[..len].copy_from_slice(&input[..len]);
    let [ip @ .., high, low] = octets;
    let port = u16::from_be_bytes([high, low]);
    let (v4, v6) = (*ip.first_chunk::<4>().expect("16 are more"), ip);
    written(0x11, &v4, SocketAddr::from((v4, port)));
    written(0x21, &v6, SocketAddr::from((v6, port)));
}

fn written(family: u8, ip: &[u8], source: SocketAddr) {
    let ports = [&source.port().to_be_bytes()[..], &[0; 2]].concat();
    let body = [ip, &vec![0; ip.len()], &ports].concat();
    let header = [&SIGNATURE[..], &[0x21, family, 0, body.len() as u8], &body].concat();
    assert_eq!(read(&header), Ok(Header::Whole { source: Some(source), len: header.len() }));
}

/// A worker's request: head alike however it comes in; whatever it lacks is answered properly.
pub fn connect(mut input: &[u8]) {
    let said = [take(&mut input), take(&mut input)];
    let mut fields = Fields::new();
    let whole = parse_request(input, &mut fields, &HeadLimits::WORKER);
    for cuts in ways(input.len(), said) {
        let (cut, list) = scan(input, &cuts);
        assert_eq!(cut, whole, "cut at {cuts:?}");
        assert_eq!(list, pairs(&fields));
    }
    let mut out = Vec::new();
    match whole {
        Ok(None) => return,
        Err(fault) => write_fault(fault, HttpDate::from_unix(0), &mut out),
        Ok(Some(head)) => match connect::read(&fields) {
            Ok(asked) => {
                assert!(!asked.token.is_empty() && head.body.is_empty());
                let id = fields.first(Token::XRequestId).unwrap_or_default();
                assert_eq!(connect::read(&fields).map(|a| a.request_id), Ok(asked.request_id));
                assert!(id.len() >= 32);
                ConnectResult::TokenUnknown.write(true, HttpDate::from_unix(0), &mut out);
            }
            Err(fault) => {
                assert!(fault == ConnectFault::NotFound || fault.result().is_some());
                fault.write(true, HttpDate::from_unix(0), &mut out);
            }
        },
    }
    answered(&out);
}

fn scan(input: &[u8], cuts: &[usize]) -> (Result<Option<RequestHead>, HeadFault>, super::Pairs) {
    let (mut scan, mut fields) = (Scan::default(), Fields::new());
    for &end in cuts {
        let read = scan.parse_request(&input[..end], &mut fields, &HeadLimits::WORKER);
        if read != Ok(None) {
            return (read, pairs(&fields));
        }
    }
    (scan.parse_request(input, &mut fields, &HeadLimits::WORKER), pairs(&fields))
}

/// That these bytes are one whole response.
fn answered(out: &[u8]) {
    let mut conn = Conn::new(Role::Client, Limits::default());
    let get = [(":method", "GET"), (":path", "/")];
    let get =
        get.iter().map(|(n, v)| ringway_proto::fields::Field::new(n.as_bytes(), v.as_bytes()));
    conn.request(get, true, &mut Vec::new()).expect("a good head");
    let (mut pos, mut fields) = (0, Fields::new());
    let head = conn.next(out, &mut pos, &mut fields);
    assert!(matches!(head, Ok(Event::Head { kind: HeadKind::Response, .. })));
    assert!(matches!(
        conn.next(out, &mut pos, &mut fields),
        Ok(Event::Data { end_stream: true, .. })
    ));
    assert_eq!((pos, conn.next(out, &mut pos, &mut fields)), (out.len(), Ok(Event::More)));
}
