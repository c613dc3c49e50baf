//! A message that was cut does not look whole on the other side (contract CL-42, RFC 9113 §8.1, RFC
//! 9112 §8). The tests try every way to cut a message, in both directions.

use std::time::Duration;

use ringway::message::ShardMessage;
use ringway::net::{ConnId, End, Listener};
use ringway_proto::h2::{ErrorCode, StreamKey};

use crate::http1::{Rig, request};
use crate::http1_upgrade::{ACCEPTED, websocket};
use crate::peer::{Peer, Seen};
use crate::spares::spare;
use crate::world::{SETTLES, World};

const ENDS: [End; 5] = [End::Fin, End::Truncated, End::Reset, End::Timeout, End::Failed];

/// Every code of a reset, and the one the other hop sees (design 3.11).
const CODES: [(ErrorCode, ErrorCode); 15] = {
    use ErrorCode::{
        Cancel, CompressionError, ConnectError, EnhanceYourCalm, FlowControlError, FrameSizeError,
        Http11Required, InadequateSecurity, InternalError, NoError, Other, ProtocolError,
        RefusedStream, SettingsTimeout, StreamClosed,
    };
    [
        (NoError, InternalError),
        (ProtocolError, InternalError),
        (InternalError, InternalError),
        (FlowControlError, InternalError),
        (SettingsTimeout, InternalError),
        (StreamClosed, InternalError),
        (FrameSizeError, InternalError),
        (RefusedStream, RefusedStream),
        (Cancel, Cancel),
        (CompressionError, InternalError),
        (ConnectError, InternalError),
        (EnhanceYourCalm, EnhanceYourCalm),
        (InadequateSecurity, InternalError),
        (Http11Required, InternalError),
        (Other(77), InternalError),
    ]
};

/// How far a message has come.
#[derive(Clone, Copy, Debug)]
enum Stage {
    Nothing,
    Head,
    Data,
}

// ---- HTTP/2 ----

/// A call whose two ends are at hand; neither has ended.
struct Call {
    world: World,
    client: Peer,
    worker: Peer,
    asked: StreamKey,
    served: StreamKey,
}

impl Call {
    fn new(more: &[(&str, &str)], park: &str) -> Self {
        let mut world = World::with(&format!("[session]\npark = \"{park}\""));
        let mut client = Peer::client(&mut world);
        let asked = client.request(&mut world, more, false);
        let mut worker = Peer::worker(&mut world);
        worker.sync(&mut world);
        let served = worker.key(0);
        Self { world, client, worker, asked, served }
    }

    fn answer(&mut self, stage: Stage, more: &[(&str, &str)]) {
        let Self { world, worker, served, .. } = self;
        let head = [&[(":status", "200")], more].concat();
        if matches!(stage, Stage::Head | Stage::Data) {
            worker.head(world, *served, &head, false);
        }
        if matches!(stage, Stage::Data) {
            worker.data(world, *served, b"half", false);
        }
    }

    fn sync(&mut self) {
        self.client.sync(&mut self.world);
        self.worker.sync(&mut self.world);
    }
}

/// A peer's view of its only stream: whether it ended, and the reset.
fn seen(peer: &Peer) -> (bool, Option<ErrorCode>) {
    let ended = peer
        .seen
        .iter()
        .any(|seen| matches!(seen, Seen::Head { end: true, .. } | Seen::Data { end: true, .. }));
    let reset = peer.seen.iter().find_map(|seen| match seen {
        Seen::Reset { code, .. } => Some(*code),
        _ => None,
    });
    (ended, reset)
}

#[test]
fn a_response_that_its_worker_resets_has_no_end_whatever_the_code() {
    for stage in [Stage::Nothing, Stage::Head, Stage::Data] {
        for (code, becomes) in CODES {
            let mut call = Call::new(&[], "auto");
            call.answer(stage, &[]);
            call.worker.reset(&mut call.world, call.served, code);
            call.sync();
            assert_eq!(seen(&call.client), (false, Some(becomes)), "{stage:?}, {code:?}");
        }
    }
}

#[test]
fn a_request_that_its_client_resets_has_no_end_whatever_the_code() {
    for stage in [Stage::Head, Stage::Data] {
        for (code, becomes) in CODES {
            let mut call = Call::new(&[], "auto");
            if matches!(stage, Stage::Data) {
                call.client.data(&mut call.world, call.asked, b"half", false);
            }
            call.client.reset(&mut call.world, call.asked, code);
            call.sync();
            assert_eq!(seen(&call.worker), (false, Some(becomes)), "{stage:?}, {code:?}");
        }
    }
}

/// RFC 9113 §8.1: the response is whole, and no more of the request is wanted.
#[test]
fn a_whole_response_ends_and_only_then_the_upload_is_given_up() {
    for (code, becomes) in CODES {
        // The client may end its request meanwhile, by DATA or by trailers.
        for (waits, ends) in [(false, 0), (true, 0), (true, 1), (true, 2)] {
            let mut call = Call::new(&[], "auto");
            call.client.data(&mut call.world, call.asked, b"half", false);
            call.world.block(call.client.conn, waits);
            let Call { world, worker, served, .. } = &mut call;
            worker.head(world, *served, &[(":status", "200")], false);
            worker.sync(world);
            worker.data(world, *served, &[7; 60_000], false);
            if waits {
                // More than the client's window takes.
                worker.sync(world);
                worker.data(world, *served, &[7; 30_000], false);
            }
            worker.data(world, *served, b"end", true);
            if worker.h2.is_open(*served) {
                worker.reset(world, *served, code);
            }
            if ends > 0 {
                call.client.data(&mut call.world, call.asked, b"more", false);
                if ends == 2 {
                    call.client.head(&mut call.world, call.asked, &[("te", "trailers")], true);
                } else {
                    call.client.data(&mut call.world, call.asked, b"", true);
                }
            }
            call.world.block(call.client.conn, false);
            for _ in 0..20 {
                call.sync();
            }
            let what = format!("{code:?}, waits: {waits}, ends: {ends}");
            if code == ErrorCode::NoError || !waits {
                let (ended, reset) = seen(&call.client);
                assert!(ended, "{what}");
                assert_eq!(reset, (ends == 0).then_some(ErrorCode::NoError), "{what}");
                assert!(call.client.body(1).0.ends_with(b"end"), "{what}");
            } else {
                assert_eq!(seen(&call.client), (false, Some(becomes)), "{what}");
            }
            call.world.end(call.client.conn, End::Fin);
        }
    }
}

#[test]
fn a_response_whose_tunnel_is_lost_has_no_end() {
    for stage in [Stage::Nothing, Stage::Head, Stage::Data] {
        for end in ENDS {
            let mut call = Call::new(&[], "auto");
            call.answer(stage, &[]);
            call.world.end(call.worker.conn, end);
            call.client.sync(&mut call.world);
            if matches!(stage, Stage::Nothing) {
                assert_eq!(call.client.field(0, ":status"), Some("502"), "{end:?}");
            } else {
                let cut = (false, Some(ErrorCode::InternalError));
                assert_eq!(seen(&call.client), cut, "{stage:?}, {end:?}");
            }
        }
    }
}

#[test]
fn a_request_whose_client_is_lost_has_no_end() {
    for park in ["never", "always"] {
        for end in ENDS {
            let mut call = Call::new(&[], park);
            call.client.data(&mut call.world, call.asked, b"half", false);
            call.world.end(call.client.conn, end);
            call.worker.sync(&mut call.world);
            let (ended, reset) = seen(&call.worker);
            assert!(!ended, "{park}, {end:?}");
            // A tunnel that is closed takes its streams along.
            let cut = reset == Some(ErrorCode::Cancel) || call.world.is_closed(call.worker.conn);
            assert!(cut, "{park}, {end:?}");
        }
    }
}

#[test]
fn a_body_of_another_length_than_announced_has_no_end() {
    for (length, body) in [("9", &b"short"[..]), ("9", b"much too long"), ("0", b"x")] {
        for trailers in [false, true] {
            let mut call = Call::new(&[("content-length", length)], "auto");
            call.client.data(&mut call.world, call.asked, body, !trailers);
            if trailers {
                call.client.head(&mut call.world, call.asked, &[("x-t", "1")], true);
            }
            call.sync();
            let cut = (false, Some(ErrorCode::InternalError));
            assert_eq!(seen(&call.worker), cut, "up, {length}, {trailers}");
            let mut call = Call::new(&[], "auto");
            call.answer(Stage::Head, &[("content-length", length)]);
            call.worker.data(&mut call.world, call.served, body, !trailers);
            if trailers {
                call.worker.head(&mut call.world, call.served, &[("grpc-status", "0")], true);
            }
            call.sync();
            assert_eq!(seen(&call.client), cut, "down, {length}, {trailers}");
        }
    }
}

// ---- HTTP/1 ----

/// The part of a response that a worker sends before it is cut, and whether a FIN ends the
/// response.
const RESPONSES: [(&str, bool); 6] = [
    ("content-length: 9\r\n\r\nhalf", false),
    ("transfer-encoding: chunked\r\n\r\n9\r\nhalf", false),
    ("transfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n", false),
    ("transfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n0\r\nx-t: 1\r\n", false),
    ("transfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n0\r", false),
    ("\r\nhalf", true),
];

#[test]
fn an_http_1_response_is_whole_only_if_its_framing_says_so_or_a_fin_ends_it() {
    for (said, until_close) in RESPONSES {
        for end in ENDS {
            for version in ["1.1", "1.0"] {
                let mut rig = Rig::unkept();
                rig.ask(&request(&format!("GET / HTTP/{version}"), "", ""));
                let tunnel = rig.attach();
                rig.at_worker();
                rig.answer(&format!("HTTP/1.1 200 OK\r\n{said}"));
                rig.world.end(tunnel, end);
                let got = rig.at_client();
                let what = format!("{said:?}, {end:?}, HTTP/{version}: {got:?}");
                assert!(got.contains("half"), "{what}");
                let whole = until_close && end == End::Fin;
                if version == "1.0" {
                    // Its end is that of the connection.
                    assert!(rig.world.is_closed(rig.client), "{what}");
                    assert_eq!(
                        !rig.world.is_reset(rig.client),
                        whole || said.contains("length"),
                        "{what}"
                    );
                } else if whole {
                    assert!(got.ends_with("\r\n0\r\n\r\n"), "{what}");
                } else {
                    assert!(!got.ends_with("0\r\n\r\n"), "{what}");
                    assert!(rig.world.is_closed(rig.client), "{what}");
                }
            }
        }
    }
}

/// The part of a request that a client sends before it is cut: its fields, and its body.
const REQUESTS: [(&str, &str); 4] = [
    ("Content-Length: 9\r\n", "half"),
    ("Transfer-Encoding: chunked\r\n", "9\r\nhalf"),
    ("Transfer-Encoding: chunked\r\n", "4\r\nhalf\r\n"),
    ("Transfer-Encoding: chunked\r\n", "4\r\nhalf\r\n0\r\nx-t: 1\r\n"),
];

#[test]
fn an_http_1_request_that_is_cut_has_no_end() {
    for (framing, body) in REQUESTS {
        for end in ENDS {
            for park in ["never", "always"] {
                let mut rig = Rig::of(World::with(&format!("[session]\npark = \"{park}\"")));
                rig.ask(&request("POST / HTTP/1.1", framing, body));
                let tunnel = rig.attach();
                let mut got = rig.at_worker();
                rig.world.end(rig.client, end);
                rig.world.pass(Duration::from_secs(60));
                got += &rig.at_worker();
                let what = format!("{framing:?} {body:?}, {end:?}, {park}: {got:?}");
                assert!(got.contains("half") && !got.ends_with("0\r\n\r\n"), "{what}");
                assert!(rig.world.is_closed(tunnel), "{what}");
            }
        }
    }
}

/// An HTTP/1.0 client in the middle of a body that ends with its connection.
fn until_close() -> Rig {
    let mut rig = Rig::unkept();
    rig.ask(&request("GET / HTTP/1.0", "", ""));
    rig.attach();
    rig.at_worker();
    rig.answer("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n");
    assert!(rig.at_client().ends_with("\r\n\r\nhalf"));
    rig
}

#[test]
fn a_body_until_close_that_we_cut_ourselves_is_reset() {
    let ways: [fn(&mut Rig); 4] = [
        // The client has said all, or so it seems (contract CL-23).
        |rig| rig.world.end(rig.client, End::Fin),
        |rig| {
            rig.world.deliver(ShardMessage::Drain { max: Duration::from_secs(5) });
            rig.world.pass(Duration::from_secs(6));
        },
        |rig| rig.world.deliver(ShardMessage::Stop),
        |rig| rig.answer("nonsense"),
    ];
    for (n, way) in ways.into_iter().enumerate() {
        let mut rig = until_close();
        way(&mut rig);
        assert!(rig.world.is_reset(rig.client), "way {n}");
    }
    let mut rig = until_close();
    rig.answer("0\r\n\r\n");
    assert!(rig.world.is_closed(rig.client) && !rig.world.is_reset(rig.client));
}

// ---- streams of bytes ----

fn opened(park: &str) -> Rig {
    let mut rig = Rig::of(World::with(&format!("[session]\npark = \"{park}\"")));
    rig.ask(&websocket("/ws"));
    rig.attach();
    rig.at_worker();
    rig.answer(ACCEPTED);
    rig.at_client();
    rig
}

fn ended_as(rig: &Rig, conn: ConnId, end: End, what: &str) {
    assert!(rig.world.is_closed(conn), "{what}, {end:?}");
    assert_eq!(rig.world.is_reset(conn), end != End::Fin, "{what}, {end:?}");
}

#[test]
fn a_stream_of_bytes_ends_on_the_other_side_as_it_did_on_this_one() {
    for end in ENDS {
        let mut rig = opened("never");
        let tunnel = rig.tunnel.expect("a tunnel");
        rig.answer("last");
        rig.world.end(tunnel, end);
        assert_eq!(rig.at_client(), "last");
        ended_as(&rig, rig.client, end, "by the worker");
        let mut rig = opened("never");
        let tunnel = rig.tunnel.expect("a tunnel");
        rig.ask("last");
        rig.world.end(rig.client, end);
        assert_eq!(rig.at_worker(), "last");
        ended_as(&rig, tunnel, end, "by the client");
        // The tunnel that is kept until another one is there, and has been for a moment.
        let mut rig = opened("always");
        let (tunnel, id) = (rig.tunnel.expect("a tunnel"), rig.id.clone());
        rig.ask("last");
        rig.world.end(rig.client, end);
        assert!(!rig.world.is_closed(tunnel));
        spare(&mut rig.world, &id);
        assert_eq!(rig.at_worker(), "last");
        assert!(!rig.world.is_closed(tunnel));
        rig.world.pass(SETTLES);
        ended_as(&rig, tunnel, end, "by the client, kept");
    }
}

#[test]
fn a_stream_of_bytes_that_we_end_is_reset_on_both_sides() {
    let mut rig = opened("never");
    let tunnel = rig.tunnel.expect("a tunnel");
    rig.world.deliver(ShardMessage::Drain { max: Duration::from_secs(5) });
    rig.world.pass(Duration::from_secs(6));
    assert!(rig.world.is_reset(rig.client) && rig.world.is_reset(tunnel));
}

/// Of a connection that can carry the next message the end says nothing.
#[test]
fn connections_between_messages_end_with_fin() {
    let mut rig = Rig::unkept();
    rig.warm_up();
    let tunnel = rig.tunnel.expect("a tunnel");
    rig.world.end(rig.client, End::Reset);
    assert!(rig.world.is_closed(tunnel) && !rig.world.is_reset(tunnel));
    let other = rig.world.connect(Listener::Client);
    rig.world.end(other, End::Truncated);
    assert!(rig.world.is_closed(other) && !rig.world.is_reset(other));
    rig.nothing_is_left();
}
