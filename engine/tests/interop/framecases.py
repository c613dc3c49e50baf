"""The cases of h2spec (and more of their kind) as raw frames, for a connection that carries a
live session: once from the client's side, once from the worker's.

A case acts on a session and returns the stream it is about; its verdict says what the gateway
must do. `session.stream` is open from the client's side and has reached the worker.
"""

import struct
from dataclasses import dataclass

import hpack

from gateway import grpc_head
from rawh2 import (COMPRESSION_ERROR, CONTINUATION, DATA, END_HEADERS, END_STREAM,
                   FLOW_CONTROL_ERROR, FRAME_SIZE_ERROR, GOAWAY, HEADERS, INTERNAL_ERROR,
                   LARGEST_WINDOW, PADDED, PING, PRIORITY, PRIORITY_FLAG, PROTOCOL_ERROR,
                   PUSH_PROMISE, RST_STREAM, SETTINGS, STREAM_CLOSED, WINDOW_UPDATE, frame, ping,
                   priority, rst_stream, settings, window_update)


@dataclass
class Verdict:
    """`scope`: "connection" (GOAWAY and close), "stream" (RST_STREAM, the rest lives), "either"
    (RFC 9113 leaves the choice), "lives" (nothing happens)."""

    scope: str
    codes: tuple = ()


def connection(*codes):
    return Verdict("connection", codes)


def stream(*codes):
    return Verdict("stream", codes)


def either(*codes):
    return Verdict("either", codes)


LIVES = Verdict("lives")


@dataclass
class Case:
    name: str
    act: object
    verdict: Verdict
    after_head: bool = False


# --- what both ends can get wrong -----------------------------------------------------------
# Each takes (peer, stream): the misbehaving end and its open stream.

def both_ends():
    bad_settings = [
        ("5.1 SETTINGS ACK with payload", settings({3: 1}, ack=True), FRAME_SIZE_ERROR),
        ("6.5 SETTINGS on a stream", frame(SETTINGS, 0, 1, b""), PROTOCOL_ERROR),
        ("6.5 SETTINGS of 3 octets", frame(SETTINGS, 0, 0, b"\0\3\0"), FRAME_SIZE_ERROR),
        ("6.5.2 ENABLE_PUSH 2", settings({2: 2}), PROTOCOL_ERROR),
        ("6.5.2 INITIAL_WINDOW_SIZE 2^31", settings({4: 2**31}), FLOW_CONTROL_ERROR),
        ("6.5.2 MAX_FRAME_SIZE 16383", settings({5: 16_383}), PROTOCOL_ERROR),
        ("6.5.2 MAX_FRAME_SIZE 2^24", settings({5: 2**24}), PROTOCOL_ERROR),
        ("6.1 DATA on stream 0", frame(DATA, 0, 0, b"x"), PROTOCOL_ERROR),
        ("6.2 HEADERS on stream 0", frame(HEADERS, END_HEADERS, 0, b"\x82"), PROTOCOL_ERROR),
        ("6.3 PRIORITY on stream 0", priority(0, 1), PROTOCOL_ERROR),
        ("6.4 RST_STREAM on stream 0", rst_stream(0), PROTOCOL_ERROR),
        ("6.7 PING on a stream", frame(PING, 0, 1, bytes(8)), PROTOCOL_ERROR),
        ("6.7 PING of 6 octets", frame(PING, 0, 0, bytes(6)), FRAME_SIZE_ERROR),
        ("6.8 GOAWAY on a stream", frame(GOAWAY, 0, 1, bytes(8)), PROTOCOL_ERROR),
        ("6.8 GOAWAY of 4 octets", frame(GOAWAY, 0, 0, bytes(4)), FRAME_SIZE_ERROR),
        ("6.9 WINDOW_UPDATE 0 on the connection", window_update(0, 0), PROTOCOL_ERROR),
        ("6.9 WINDOW_UPDATE of 3 octets", frame(WINDOW_UPDATE, 0, 0, bytes(3)), FRAME_SIZE_ERROR),
        ("6.9.1 connection window over 2^31-1",
         window_update(0, LARGEST_WINDOW) * 2, FLOW_CONTROL_ERROR),
        ("6.10 CONTINUATION on stream 0",
         frame(CONTINUATION, END_HEADERS, 0, b"\x82"), PROTOCOL_ERROR),
    ]
    for name, octets, code in bad_settings:
        yield Case(name, lambda peer, sid, octets=octets: peer.send(octets), connection(code))

    def on_stream(octets):
        return lambda peer, sid: peer.send(octets(sid))

    yield Case("6.1 DATA padded beyond its length",
               on_stream(lambda sid: frame(DATA, PADDED, sid, b"\x09data")),
               connection(PROTOCOL_ERROR))
    yield Case("6.1 DATA padded with no room for the length",
               on_stream(lambda sid: frame(DATA, PADDED, sid, b"")),
               connection(FRAME_SIZE_ERROR, PROTOCOL_ERROR))
    yield Case("6.4 RST_STREAM of 3 octets",
               on_stream(lambda sid: frame(RST_STREAM, 0, sid, bytes(3))),
               connection(FRAME_SIZE_ERROR))
    yield Case("6.9 WINDOW_UPDATE 0 on a stream",
               on_stream(lambda sid: window_update(sid, 0)), either(PROTOCOL_ERROR))
    yield Case("6.9.1 stream window over 2^31-1",
               on_stream(lambda sid: window_update(sid, LARGEST_WINDOW) * 2),
               either(FLOW_CONTROL_ERROR))
    yield Case("6.9.2 SETTINGS make a stream window overflow",
               on_stream(lambda sid: window_update(sid, LARGEST_WINDOW - 65_535)
                         + settings({4: 65_536})), connection(FLOW_CONTROL_ERROR))
    yield Case("6.3 PRIORITY of 4 octets",
               on_stream(lambda sid: frame(PRIORITY, 0, sid, bytes(4))), either(FRAME_SIZE_ERROR))
    yield Case("5.3.1 PRIORITY on itself",
               on_stream(lambda sid: priority(sid, sid)), either(PROTOCOL_ERROR))
    yield Case("4.2 DATA over MAX_FRAME_SIZE",
               lambda peer, sid: peer.send(frame(DATA, 0, sid, bytes(largest_frame(peer) + 1))),
               either(FRAME_SIZE_ERROR))
    yield Case("4.2 HEADERS over MAX_FRAME_SIZE",
               lambda peer, sid: peer.send(frame(HEADERS, END_HEADERS | END_STREAM, sid,
                                                 bytes(largest_frame(peer) + 1))),
               connection(FRAME_SIZE_ERROR))
    yield Case("6.10 CONTINUATION without HEADERS",
               on_stream(lambda sid: frame(CONTINUATION, END_HEADERS, sid, b"\x82")),
               connection(PROTOCOL_ERROR))
    yield Case("6.10 CONTINUATION after DATA",
               on_stream(lambda sid: frame(DATA, 0, sid, b"x")
                         + frame(CONTINUATION, END_HEADERS, sid, b"\x82")),
               connection(PROTOCOL_ERROR))

    # Nothing wrong at all, or nothing that may be punished.
    yield Case("4.1 frame of an unknown type",
               on_stream(lambda sid: frame(0x16, 0xFF, sid, b"?") + frame(0xEE, 0, 0, b"")),
               LIVES)
    yield Case("4.1 flags nobody defined", on_stream(lambda sid: frame(PING, 0x16, 0, bytes(8))),
               LIVES)
    yield Case("4.1 reserved bit set",
               on_stream(lambda sid: frame(PING, 0, 1 << 31, bytes(8))
                         + frame(DATA, 0, sid | 1 << 31, b"")), LIVES)
    yield Case("6.1 DATA with 255 octets of padding",
               on_stream(lambda sid: frame(DATA, PADDED, sid, b"\xff" + bytes(255)) * 3), LIVES)
    yield Case("6.3 PRIORITY on an open and on an idle stream",
               on_stream(lambda sid: priority(sid) + priority(sid + 100)), LIVES)
    yield Case("6.5 SETTINGS with an unknown identifier",
               on_stream(lambda sid: settings({0xFF: 1, 0x1234: 2**32 - 1})), LIVES)
    yield Case("6.7 PING ACK nobody asked for", on_stream(lambda sid: ping(ack=True)), LIVES)
    yield Case("6.9 WINDOW_UPDATE on connection and stream",
               on_stream(lambda sid: window_update(0, 1) + window_update(sid, 1)), LIVES)
    yield Case("6.9.2 window made smaller, then larger",
               on_stream(lambda sid: settings({4: 0}) + settings({4: 65_535})), LIVES)


def largest_frame(peer):
    return peer.their_settings.get(5, 16_384)


# --- header blocks that HPACK forbids -------------------------------------------------------

BAD_BLOCKS = {
    "2.3.3 index of no entry": b"\xff\x80\x01",
    "2.3.3 name index of no entry": b"\x7f\x80\x01\x01x",
    "4.2 table size update at the end": b"\x82\x20",
    "5.2 Huffman padding longer than 7 bits": b"\x40\x01x\x82\x1f\xff",
    "5.2 Huffman padding of zeros": b"\x40\x01x\x81\x18",
    "5.2 Huffman with EOS": b"\x40\x01x\x84\xff\xff\xff\xff",
    "6.1 index 0": b"\x80",
    "6.3 table size update over the setting": b"\x3f\xe1\xff\xff\x03",
    "4.3 truncated string": b"\x40\x7f\x80",
    "4.3 truncated integer": b"\x82\xff",
    "5.1 integer without end": b"\x7f" + b"\xff" * 20,
    "4.2 three table size updates": b"\x20\x20\x20",
}


# --- from the client ------------------------------------------------------------------------

def new_stream(fields=None, flags=END_HEADERS, payload=None, before=b""):
    """HEADERS that open a stream; `payload` replaces the encoded `fields`."""
    def act(session):
        peer = session.client
        sid = peer.next_stream
        peer.next_stream += 2
        block = payload if payload is not None else peer.block_of(fields or grpc_head())
        peer.send(before + frame(HEADERS, flags, sid, block))
        return sid
    return act


def without(*names):
    return [field for field in grpc_head() if field[0] not in names]


def first(*fields):
    """A request with pseudo-headers put before the others."""
    return [*fields, *grpc_head()]


def malformed_heads():
    """Requests that RFC 9113 section 8 calls malformed; all are PROTOCOL_ERROR."""
    yield "8.2 upper case in a name", [*grpc_head(), ("X-Test", "1")]
    yield "8.2 empty name", [*grpc_head(), ("", "1")]
    for octet in ("\0", " ", "\r", "\n", "\x7f", "\x80", ":", "A"):
        yield f"8.2.1 {octet!r} in a name", [*grpc_head(), (f"x{octet}y".encode("latin-1"), "1")]
    for octet in "\0\r\n":
        yield f"8.2.1 {octet!r} in a value", [*grpc_head(), ("x-test", f"a{octet}b")]
    for value in (" 1", "1 ", "\t1", "1\t"):
        yield f"8.2.1 value {value!r}", [*grpc_head(), ("x-test", value)]
    yield "8.2.2 connection", [*grpc_head(), ("connection", "keep-alive")]
    yield "8.2.2 keep-alive", [*grpc_head(), ("keep-alive", "1")]
    yield "8.2.2 proxy-connection", [*grpc_head(), ("proxy-connection", "close")]
    yield "8.2.2 transfer-encoding", [*grpc_head(), ("transfer-encoding", "chunked")]
    yield "8.2.2 upgrade", [*grpc_head(), ("upgrade", "websocket")]
    yield "8.2.2 te other than trailers", [*without("te"), ("te", "trailers, deflate")]
    yield "8.3 unknown pseudo-header", first((":test", "1"))
    yield "8.3 :status in a request", first((":status", "200"))
    yield "8.3 pseudo-header after a field", [*without(":path"), (":path", "/x")]
    yield "8.3.1 no :method", without(":method")
    yield "8.3.1 no :scheme", without(":scheme")
    yield "8.3.1 no :path", without(":path")
    yield "8.3.1 empty :path", [(":path", ""), *without(":path")]
    yield "8.3.1 :path without a slash", [(":path", "echo"), *without(":path")]
    yield "8.3.1 :path * without OPTIONS", [(":path", "*"), *without(":path")]
    yield "8.3.1 two :method", first((":method", "POST"))
    yield "8.3.1 two :scheme", first((":scheme", "http"))
    yield "8.3.1 two :path", first((":path", "/x"))
    yield "8.3.1 two :authority", first((":authority", "echo.test"))
    yield "8.3.1 empty :method", [(":method", ""), *without(":method")]
    yield "8.3.1 space in :method", [(":method", "PO ST"), *without(":method")]
    yield "8.3.1 space in :path", [(":path", "/a b"), *without(":path")]
    yield "RFC 8441 :protocol", first((":protocol", "websocket"))
    yield "8.1.1 content-length of no number", [*grpc_head(), ("content-length", "+5")]
    yield "8.1.1 two content-lengths", [*grpc_head(), ("content-length", "5"),
                                         ("content-length", "6")]


def from_clients():
    for case in both_ends():
        yield Case(case.name, lambda s, act=case.act: act(s.client, s.stream) or s.stream,
                   case.verdict)
    for name, block in BAD_BLOCKS.items():
        yield Case(f"HPACK {name}", new_stream(payload=block), connection(COMPRESSION_ERROR))
    for name, fields in malformed_heads():
        yield Case(name, new_stream(fields, END_HEADERS | END_STREAM), stream(PROTOCOL_ERROR))
    yield from idle_and_closed()
    yield from blocks_in_pieces()
    yield from bodies_of_requests()
    yield from good_requests()


def idle_and_closed():
    def idle(octets):
        def act(session):
            sid = session.client.next_stream + 200
            session.client.send(octets(sid))
            return sid
        return act

    def after(ending, octets):
        """Something on a stream that the client itself has ended."""
        def act(session):
            session.client.send(ending(session.stream))
            session.client.round_trip()
            session.client.send(octets(session))
            return session.stream
        return act

    def end(sid):
        return frame(DATA, END_STREAM, sid)

    def more_data(session):
        return frame(DATA, 0, session.stream, b"late")

    def more_headers(session):
        return frame(HEADERS, END_HEADERS | END_STREAM, session.stream,
                     session.client.block_of([("x-late", "1")]))

    def more_continuation(session):
        return frame(CONTINUATION, END_HEADERS, session.stream, b"\x82")

    yield Case("5.1 idle: DATA", idle(lambda sid: frame(DATA, END_STREAM, sid, b"x")),
               connection(PROTOCOL_ERROR))
    yield Case("5.1 idle: RST_STREAM", idle(rst_stream), connection(PROTOCOL_ERROR))
    yield Case("5.1 idle: WINDOW_UPDATE", idle(lambda sid: window_update(sid, 100)),
               connection(PROTOCOL_ERROR))
    yield Case("5.1 idle: CONTINUATION",
               idle(lambda sid: frame(CONTINUATION, END_HEADERS, sid, b"\x82")),
               connection(PROTOCOL_ERROR))
    yield Case("5.1 half-closed: DATA", after(end, more_data), either(STREAM_CLOSED))
    yield Case("5.1 half-closed: HEADERS", after(end, more_headers), either(STREAM_CLOSED))
    yield Case("5.1 half-closed: CONTINUATION", after(end, more_continuation),
               connection(PROTOCOL_ERROR, STREAM_CLOSED))
    yield Case("5.1 after RST_STREAM: DATA", after(rst_stream, more_data), either(STREAM_CLOSED))
    yield Case("5.1 after RST_STREAM: HEADERS", after(rst_stream, more_headers),
               either(STREAM_CLOSED, PROTOCOL_ERROR))
    yield Case("5.1 after RST_STREAM: CONTINUATION", after(rst_stream, more_continuation),
               connection(PROTOCOL_ERROR, STREAM_CLOSED))
    yield Case("5.1 half-closed: WINDOW_UPDATE, PRIORITY, RST_STREAM",
               after(end, lambda s: window_update(s.stream, 1) + priority(s.stream)
                     + rst_stream(s.stream)), LIVES)
    yield Case("5.1 closed: PRIORITY and WINDOW_UPDATE",
               after(rst_stream, lambda s: priority(s.stream) + window_update(s.stream, 1)), LIVES)
    yield Case("5.1.1 stream of even number", even_stream, connection(PROTOCOL_ERROR))
    yield Case("5.1.1 stream of a smaller number", smaller_stream,
               connection(PROTOCOL_ERROR, STREAM_CLOSED))
    yield Case("5.3.1 HEADERS that depend on themselves", self_dependent, either(PROTOCOL_ERROR))
    yield Case("8.4 PUSH_PROMISE from a client",
               lambda s: s.client.send(frame(PUSH_PROMISE, END_HEADERS, s.stream,
                                             struct.pack(">I", 2) + b"\x82")) or s.stream,
               connection(PROTOCOL_ERROR))
    yield Case("3.4 second preface",
               lambda s: s.client.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n") or s.stream,
               connection(FRAME_SIZE_ERROR, PROTOCOL_ERROR))


def even_stream(session):
    session.client.headers(2, grpc_head(), end_stream=True)
    return 2


def smaller_stream(session):
    peer = session.client
    peer.headers(9, grpc_head(), end_stream=True)
    peer.headers(7, grpc_head(), end_stream=True)
    return 7


def self_dependent(session):
    peer = session.client
    sid = peer.next_stream
    peer.next_stream += 2
    peer.send(frame(HEADERS, END_HEADERS | END_STREAM | PRIORITY_FLAG, sid,
                    struct.pack(">IB", sid, 255) + peer.block_of(grpc_head())))
    return sid


def blocks_in_pieces():
    def interrupted(octets):
        """A header block that something else breaks into."""
        def act(session):
            peer = session.client
            sid = peer.next_stream
            peer.next_stream += 2
            block = peer.block_of(grpc_head())
            peer.send(frame(HEADERS, END_STREAM, sid, block[:9]) + octets(sid)
                      + frame(CONTINUATION, END_HEADERS, sid, block[9:]))
            return sid
        return act

    broken_by = {
        "PRIORITY": lambda sid: priority(sid),
        "DATA": lambda sid: frame(DATA, 0, sid, b"x"),
        "HEADERS of another stream": lambda sid: frame(HEADERS, END_HEADERS, sid + 2, b"\x82"),
        "CONTINUATION of another stream": lambda sid: frame(CONTINUATION, 0, sid + 2, b"\x82"),
        "PING": lambda sid: ping(),
        "SETTINGS": lambda sid: settings({3: 100}),
        "an unknown frame": lambda sid: frame(0x16, 0, 0, b"?"),
    }
    for name, octets in broken_by.items():
        yield Case(f"6.2 header block broken by {name}", interrupted(octets),
                   connection(PROTOCOL_ERROR))
    yield Case("6.2 HEADERS padded beyond its length",
               new_stream(flags=END_HEADERS | PADDED, payload=b"\xf0\x82"),
               connection(PROTOCOL_ERROR))
    yield Case("6.10 CONTINUATION after END_HEADERS", continued_too_long,
               connection(PROTOCOL_ERROR))


def continued_too_long(session):
    peer = session.client
    sid = peer.next_stream
    peer.next_stream += 2
    peer.send(frame(HEADERS, END_HEADERS, sid, peer.block_of(grpc_head()))
              + frame(CONTINUATION, END_HEADERS, sid, peer.block_of([("x-late", "1")])))
    return sid


def bodies_of_requests():
    def trailers(fields, flags=END_HEADERS | END_STREAM):
        def act(session):
            peer = session.client
            peer.send(frame(HEADERS, flags, session.stream, peer.block_of(fields)))
            return session.stream
        return act

    yield Case("8.1 trailers without END_STREAM", trailers([("x-t", "1")], END_HEADERS),
               either(PROTOCOL_ERROR))
    yield Case("8.1 pseudo-header in trailers", trailers([(":method", "GET")]),
               stream(PROTOCOL_ERROR))
    yield Case("8.1 upper case in trailers", trailers([("X-T", "1")]), stream(PROTOCOL_ERROR))
    yield Case("8.1 connection in trailers", trailers([("connection", "close")]),
               stream(PROTOCOL_ERROR))

    def with_length(length, *parts):
        def act(session):
            peer = session.client
            sid = peer.open([*grpc_head(), ("content-length", str(length))])
            for at, part in enumerate(parts):
                peer.data(sid, part, end_stream=at == len(parts) - 1)
            return sid
        return act

    yield Case("8.1.1 content-length larger than the body", with_length(9, b"four"),
               stream(PROTOCOL_ERROR))
    yield Case("8.1.1 content-length smaller than the body", with_length(1, b"four"),
               stream(PROTOCOL_ERROR))
    yield Case("8.1.1 content-length smaller than two frames", with_length(5, b"four", b"four"),
               stream(PROTOCOL_ERROR))
    yield Case("8.1.1 content-length and END_STREAM on HEADERS",
               new_stream([*grpc_head(), ("content-length", "1")], END_HEADERS | END_STREAM),
               stream(PROTOCOL_ERROR))


def good_requests():
    """Unusual and right: each must be answered as any request is."""
    def passes(act):
        def whole(session):
            sid = act(session)
            request = session.tunnel.wait(HEADERS, where=lambda e: e.get(":method") == "POST")
            session.tunnel.headers(request.stream, [(":status", "200"), ("x-seen", "1")], True)
            head = session.client.head(sid)
            assert head.get("x-seen") == "1", str(head)
            return sid
        return whole

    def in_pieces(sizes):
        def act(session):
            peer = session.client
            sid = peer.next_stream
            peer.next_stream += 2
            new = ("x-long", f"not yet in the table {sid}")
            block, octets, at = peer.block_of([*grpc_head(), new]), b"", 0
            for index, size in enumerate(sizes):
                part = block[at:at + size] if index < len(sizes) - 1 else block[at:]
                at += size
                flags = END_HEADERS if index == len(sizes) - 1 else 0
                octets += frame(CONTINUATION if index else HEADERS,
                                flags | (0 if index else END_STREAM), sid, part)
            peer.send(octets)
            return sid
        return act

    def with_padding(session):
        peer = session.client
        sid = peer.next_stream
        peer.next_stream += 2
        block = peer.block_of(grpc_head())
        peer.send(frame(HEADERS, END_HEADERS | PADDED | PRIORITY_FLAG, sid,
                        b"\x10" + struct.pack(">IB", 0x8000_0000, 7) + block + bytes(16))
                  + frame(DATA, END_STREAM | PADDED, sid, b"\x03abc" + bytes(3)))
        return sid

    def lower_gap(session):
        session.client.next_stream += 40
        return session.client.open(grpc_head(), end_stream=True)

    def to_the_limit(session):
        peer = session.client
        sid = peer.open(grpc_head())
        peer.send(frame(DATA, END_STREAM, sid, bytes(16_384)))
        return sid

    def trailed(session):
        peer = session.client
        sid = peer.open(grpc_head())
        peer.data(sid, b"body")
        peer.headers(sid, [("x-checksum", "1")], end_stream=True)
        return sid

    def resized(session):
        peer = session.client
        sid = peer.next_stream
        peer.next_stream += 2
        peer.encoder = hpack.Encoder()  # the table is empty from here on
        block = b"\x20\x3f\xe1\x1f" + peer.block_of(grpc_head())
        peer.send(frame(HEADERS, END_HEADERS | END_STREAM, sid, block))
        return sid

    yield Case("6.10 block in two frames", passes(in_pieces([9, 0])), LIVES)
    yield Case("6.10 block in nine frames", passes(in_pieces([3] * 8 + [0])), LIVES)
    yield Case("6.2 padding and priority", passes(with_padding), LIVES)
    yield Case("5.1.1 stream numbers left out", passes(lower_gap), LIVES)
    yield Case("6.1 DATA of 16384 octets", passes(to_the_limit), LIVES)
    yield Case("8.1 trailers in a request", passes(trailed), LIVES)
    yield Case("RFC 7541 6.3 two size updates first in a block", passes(resized), LIVES)
    yield Case("7 unknown error code in RST_STREAM",
               lambda s: s.client.send(rst_stream(s.stream, 0xFF)) or s.stream, LIVES)


# --- from the worker ------------------------------------------------------------------------

def response(fields, flags=END_HEADERS, then=b"", payload=None):
    def act(session):
        peer, sid = session.tunnel, session.request.stream
        block = payload if payload is not None else peer.block_of(fields)
        peer.send(frame(HEADERS, flags, sid, block) + (then(sid) if callable(then) else then))
        return sid
    return act


def ok(*fields):
    return [(":status", "200"), *fields]


def malformed_responses():
    yield "8.3.2 no :status", [("content-type", "text/plain")]
    yield "8.3.2 two :status", ok((":status", "200"))
    yield "8.3.2 :status of two digits", [(":status", "20")]
    yield "8.3.2 :status of letters", [(":status", "abc")]
    yield "8.3.2 :status 101", [(":status", "101")]
    yield "8.3 :path in a response", ok((":path", "/"))
    yield "8.3 unknown pseudo-header in a response", ok((":test", "1"))
    yield "8.3 pseudo-header after a field", [("x-a", "1"), (":status", "200")]
    yield "8.2 upper case in a response", ok(("X-Test", "1"))
    yield "8.2 empty name in a response", ok(("", "1"))
    yield "8.2.1 line feed in a response", ok(("x-test", "a\nb"))
    yield "8.2.1 NUL in a response", ok(("x-test", "a\0b"))
    yield "8.2.1 space in a name of a response", ok(("x test", "1"))
    yield "8.2.2 connection in a response", ok(("connection", "close"))
    yield "8.2.2 transfer-encoding in a response", ok(("transfer-encoding", "chunked"))
    yield "8.1.1 content-length of no number", ok(("content-length", "x"))
    yield "8.1.1 two content-lengths", ok(("content-length", "1"), ("content-length", "2"))


def from_workers():
    """`session.request.stream` is the stream the gateway opened; nothing is answered yet."""
    for case in both_ends():
        # A response may not begin with DATA, so these come after its head.
        late = "DATA" in case.name or "reserved bit" in case.name

        def act(session, act=case.act, late=late):
            if late:
                session.answer()
            act(session.tunnel, session.request.stream)
            return session.request.stream

        yield Case(case.name, act, case.verdict, after_head=late)
    for name, block in BAD_BLOCKS.items():
        yield Case(f"HPACK {name}", response(None, payload=block), connection(COMPRESSION_ERROR))
    for name, fields in malformed_responses():
        yield Case(name, response(fields, END_HEADERS | END_STREAM
                                  if "content-length" not in name else END_HEADERS),
                   stream(PROTOCOL_ERROR))

    def on_tunnel(octets):
        return lambda s: s.tunnel.send(octets(s)) or s.request.stream

    yield Case("6.5.2 ENABLE_PUSH 1 from a server", on_tunnel(lambda s: settings({2: 1})),
               connection(PROTOCOL_ERROR))
    yield Case("8.4 PUSH_PROMISE", on_tunnel(
        lambda s: frame(PUSH_PROMISE, END_HEADERS, s.request.stream,
                        struct.pack(">I", 2) + s.tunnel.block_of(grpc_head()))),
        connection(PROTOCOL_ERROR))
    yield Case("5.1 DATA on an idle stream",
               on_tunnel(lambda s: frame(DATA, 0, s.request.stream + 100, b"x")),
               connection(PROTOCOL_ERROR))
    yield Case("5.1 HEADERS on an idle stream",
               on_tunnel(lambda s: frame(HEADERS, END_HEADERS, s.request.stream + 100,
                                         s.tunnel.block_of(ok()))), connection(PROTOCOL_ERROR))
    yield Case("5.1 HEADERS on an even stream",
               on_tunnel(lambda s: frame(HEADERS, END_HEADERS, 2, s.tunnel.block_of(ok()))),
               connection(PROTOCOL_ERROR))
    yield Case("5.1 RST_STREAM on an idle stream",
               on_tunnel(lambda s: rst_stream(s.request.stream + 100)),
               connection(PROTOCOL_ERROR))
    yield Case("5.1 WINDOW_UPDATE on an idle stream",
               on_tunnel(lambda s: window_update(s.request.stream + 100, 1)),
               connection(PROTOCOL_ERROR))
    yield Case("8.1 DATA before HEADERS",
               on_tunnel(lambda s: frame(DATA, 0, s.request.stream, b"x")),
               either(PROTOCOL_ERROR))
    yield Case("8.1 trailers without END_STREAM", response(
        ok(), then=lambda sid: frame(DATA, 0, sid, b"x") + frame(HEADERS, END_HEADERS, sid,
                                                               b"\x00\x01x\x011")),
        either(PROTOCOL_ERROR))
    yield Case("8.1 pseudo-header in trailers", response(
        ok(), then=lambda sid: frame(HEADERS, END_HEADERS | END_STREAM, sid, b"\x88")),
        stream(PROTOCOL_ERROR))
    yield Case("8.1 1xx with END_STREAM", response([(":status", "103")],
                                                   END_HEADERS | END_STREAM),
               stream(PROTOCOL_ERROR))
    yield Case("8.1.1 content-length larger than the body", response(
        ok(("content-length", "9")), then=lambda sid: frame(DATA, END_STREAM, sid, b"four")),
        stream(PROTOCOL_ERROR))
    yield Case("8.1.1 content-length smaller than the body", response(
        ok(("content-length", "1")), then=lambda sid: frame(DATA, END_STREAM, sid, b"four")),
        stream(PROTOCOL_ERROR))
    yield Case("8.1.1 content-length and END_STREAM on HEADERS", response(
        ok(("content-length", "9")), END_HEADERS | END_STREAM), stream(PROTOCOL_ERROR))
    yield Case("6.2 header block broken by PING", on_tunnel(
        lambda s: frame(HEADERS, 0, s.request.stream, b"\x88") + ping()),
        connection(PROTOCOL_ERROR))
    yield Case("6.2 header block broken by another stream", on_tunnel(
        lambda s: frame(HEADERS, 0, s.request.stream, b"\x88")
        + frame(CONTINUATION, END_HEADERS, s.request.stream + 2, b"")),
        connection(PROTOCOL_ERROR))


def told(client, sid):
    """The client hears of it: 502 with status 14 in one HEADERS, or a reset with
    INTERNAL_ERROR; never a clean end."""
    while True:
        event = client.wait(stream=sid, where=lambda e: e.kind in (HEADERS, DATA, RST_STREAM))
        if event.kind == RST_STREAM:
            assert event.code == INTERNAL_ERROR, f"{event}\n{client.transcript()}"
            return
        if event.kind == HEADERS and event.status == "502":
            assert event.end_stream and event.grpc_status == "14", str(event)
            return
        assert not event.end_stream, f"a clean end: {event}\n{client.transcript()}"
