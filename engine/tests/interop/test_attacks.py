"""Peers that waste the gateway's time and memory: the reaction of the limits table
(docs/limits.md), honest traffic of the same shape lives, and a bystander on the same
core is answered all the while."""

import collections
import contextlib
import socket
import threading
import time

import hpack
import pytest

from echo import PATH, message, messages
from fakeworker import FakeWorker
from framecases import told
from gateway import Gateway, grpc_head, plain_head, until
from rawh2 import (CONTINUATION, DATA, END_HEADERS, END_STREAM, ENHANCE_YOUR_CALM,
                   FLOW_CONTROL_ERROR, GOAWAY, HEADERS, NO_ERROR, REFUSED_STREAM, RST_STREAM, Peer,
                   Silence, code_name, frame, ping, priority, rst_stream, settings, window_update)

pytestmark = pytest.mark.alone
MIB = 1 << 20


@contextlib.contextmanager
def attacked(running):
    """All of this file's attacks together leave few lines: the first ones, then one a second. The
    lines of sessions that had a tunnel are not theirs: admission bounds those."""
    start, before = time.monotonic(), len(running.log_lines())
    yield running
    assert running.alive(), f"the gateway died:\n{running.log_tail()}"
    lines = running.log_lines()[before:]
    served = {line["request_id"] for line in lines
              if line["message"] == "registering new worker connection"}
    caused = [line for line in lines if line.get("request_id") not in served]
    seconds = time.monotonic() - start
    kinds = collections.Counter(line["message"] for line in caused)
    assert len(caused) <= 20 + seconds, f"{len(caused)} lines in {seconds:.0f} s: {kinds}"


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    with Gateway.dev(tmp_path_factory.mktemp("attacks")) as running, attacked(running):
        yield running


@pytest.fixture(scope="module")
def bare_target(tmp_path_factory):
    with Gateway.serve(tmp_path_factory.mktemp("attacks")) as running, attacked(running):
        yield running


@pytest.fixture
def tenant(bare_target):
    with FakeWorker(bare_target) as worker:
        yield worker


def call(peer, body=b"hello"):
    """One call of the echo function, start to end."""
    stream = peer.open(grpc_head())
    peer.data(stream, message(body), end_stream=True)
    assert peer.head(stream).status == "200"
    octets, trailers = peer.body(stream)
    assert octets == message(body) and trailers.grpc_status == "0"


def authorised(gateway, **options):
    """A connection with a live session."""
    peer = gateway.h2(**options)
    call(peer)
    return peer


def blocks(peer, fields):
    """A header block that can be sent again and again without changing the table."""
    for _ in range(3):
        block = peer.block_of(fields)
    assert peer.block_of(fields) == block
    return block


# --- floods from a client -------------------------------------------------------------------

def pairs(peer, then, count, flags=END_HEADERS, each=50, fields=None):
    """Streams that are opened and then spoilt; first a call warms the table."""
    fields = fields or grpc_head()
    peer.send(b"".join(frame(HEADERS, END_HEADERS | END_STREAM, peer.next_stream + 2 * n,
                             peer.block_of(fields)) for n in range(2)))
    peer.next_stream += 4
    block = blocks(peer, fields)
    for _ in range(0, count, each):
        parts = []
        for _ in range(each):
            parts += [frame(HEADERS, flags, peer.next_stream, block), then(peer.next_stream)]
            peer.next_stream += 2
        yield b"".join(parts)


def same(octets, count, each=100):
    return lambda peer: (octets * each for _ in range(count // each))


def on_open_stream(octets, count, each=100):
    def make(peer):
        stream = peer.open(grpc_head(PATH["BidiStream"]))
        return (octets(stream) * each for _ in range(count // each))
    return make


def continuations(fragment, count):
    def make(peer):
        stream = peer.next_stream
        yield frame(HEADERS, END_STREAM, stream, peer.block_of(grpc_head()))
        for _ in range(count // 10):
            yield frame(CONTINUATION, 0, stream, fragment) * 10
    return make


FIELD = b"\x00\x02xx\x02yy"

FLOODS = {
    "rapid reset": lambda peer: pairs(peer, rst_stream, 20_000),
    "rapid reset, ended": lambda peer: pairs(peer, rst_stream, 20_000, END_HEADERS | END_STREAM),
    "made you reset, window": lambda peer: pairs(peer, lambda s: window_update(s, 0), 20_000),
    "made you reset, overflow": lambda peer: pairs(
        peer, lambda s: window_update(s, 2**31 - 1) * 2, 20_000),
    "made you reset, self-dependency": lambda peer: pairs(peer, lambda s: priority(s, s), 20_000),
    "PING": same(ping(), 40_000),
    "PING ACK": same(ping(ack=True), 40_000),
    "SETTINGS": same(settings({3: 100}), 40_000),
    "empty SETTINGS": same(settings(), 40_000),
    "SETTINGS ACK": same(settings(ack=True), 40_000),
    "PRIORITY": same(priority(1), 40_000),
    "PRIORITY on ever new streams": lambda peer: (
        b"".join(priority(2 * n + 1) for n in range(at, at + 100))
        for at in range(1000, 40_000, 100)),
    "unknown frames": same(frame(0x42, 0, 0, b""), 40_000),
    "unknown frames on a stream": on_open_stream(lambda s: frame(0x42, 0, s, b"x"), 40_000),
    "WINDOW_UPDATE on the connection": same(window_update(0, 1), 40_000),
    "WINDOW_UPDATE on a stream": on_open_stream(lambda s: window_update(s, 1), 40_000),
    "empty DATA": on_open_stream(lambda s: frame(DATA, 0, s, b""), 40_000),
    "CONTINUATION": continuations(FIELD, 10_000),
    "large CONTINUATION": continuations(FIELD * 2_000, 1_000),
    "empty CONTINUATION": continuations(b"", 10_000),
    "malformed requests": lambda peer: pairs(
        peer, lambda s: frame(HEADERS, END_HEADERS, s, b"\x88"), 20_000),
}


def gives_up(peer):
    """L5: at three quarters of the budget a graceful GOAWAY, which ends a connection that has
    no open stream; else ENHANCE_YOUR_CALM when it is used up. Either way it is over."""
    peer.ends()
    codes = [e.code for e in peer.events if e.kind == GOAWAY]
    assert codes and set(codes) <= {NO_ERROR, ENHANCE_YOUR_CALM}, (codes, peer.transcript())
    return next(e for e in reversed(peer.events) if e.kind == GOAWAY)


def again_and_again(attack, beside, seconds=0.8):
    """Attackers come back; a single flood is over before anybody could notice. They go on until
    the bystander has had its first answers, however slow the machine is: one that is kept from
    them never has. What the first attack returned, and how many there were."""
    start, outcomes = time.monotonic(), []
    while not outcomes or time.monotonic() - start < seconds or not beside.answered.is_set():
        assert time.monotonic() - start < 120, "the bystander got no answer while attacked"
        outcomes.append(attack())
    return outcomes[0], len(outcomes)


@pytest.mark.parametrize("name", FLOODS)
def test_flood_from_a_client(target, bystander, measure, name):
    beside = bystander(target)

    def attack():
        peer = authorised(target)
        peer.log.clear()
        sent = peer.flood(FLOODS[name](peer))
        event = gives_up(peer)
        # A thousand and some streams may be accepted, and more from a slow attacker, whose
        # budget fills up again meanwhile; not all twenty thousand.
        assert event.code == NO_ERROR or event.last_stream < 20_000, str(event)
        peer.close()
        return sent, event

    (sent, event), count = again_and_again(attack, beside)
    measure(f"{code_name(event.code)} after {sent} chunks; {count} floods")
    beside.was_served()


def hits(gateway):
    """{limit: how often it refused something}, those that ever did."""
    series = gateway.metrics().items()
    return {name.split('"')[1]: value for name, value in series
            if name.startswith("ringway_limit_hits_total") and value}


NAMED = {"CONTINUATION": "header_block", "large CONTINUATION": "header_block",
         "empty CONTINUATION": "header_block", "empty DATA": "empty_data",
         "WINDOW_UPDATE on a stream": "window_updates"}


@pytest.mark.parametrize("name", NAMED)
def test_floods_with_a_limit_of_their_own_are_named(own_gateway, name):
    """L3, L7, L8: nothing graceful about these, and exactly one counter has moved."""
    with authorised(own_gateway) as peer:
        peer.flood(FLOODS[name](peer))
        peer.goes_away(ENHANCE_YOUR_CALM)
    assert hits(own_gateway) == {NAMED[name]: 1}


def test_flood_before_any_session(target, bystander):
    """Without credentials the same holds."""
    beside = bystander(target)

    def attack():
        for name in ("rapid reset", "PING", "CONTINUATION"):
            peer = target.h2()
            peer.flood(FLOODS[name](peer))
            gives_up(peer)
            peer.close()

    again_and_again(attack, beside)
    beside.was_served()


REFUSED = {
    "more sessions than allowed": grpc_head(),
    "no credential": grpc_head(key=None),
    "no function": grpc_head(function=None),
    "unknown key": grpc_head(key="nobody's"),
    "unknown key, plain": plain_head(key="nobody's"),
    "unknown function": grpc_head(function="99999999-1111-4111-8111-111111111111"),
    "unknown session": grpc_head(reqid="dc72d8f7-1bdb-8000-8d24-000bdc6bb9cd"),
    "health": plain_head("/health", "GET"),
    "info": plain_head("/info", "GET"),
    "preflight": plain_head(method="OPTIONS", extra=[
        ("origin", "https://a.example"), ("access-control-request-method", "POST")]),
}


@pytest.mark.parametrize("flags", [END_HEADERS, END_HEADERS | END_STREAM], ids=["open", "ended"])
@pytest.mark.parametrize("name", REFUSED)
def test_rapid_reset_of_what_is_refused(bare_target, name, flags):
    """On a fresh connection, where nothing is served: an answer of our own excuses no reset."""
    with bare_target.h2() as peer:
        peer.flood(pairs(peer, rst_stream, 8_000, flags, fields=REFUSED[name]))
        # The two calls that warmed the table may wait for a worker, as long as a session may, and a
        # connection that leaves in good order waits for them.
        peer.send(rst_stream(1), rst_stream(3))
        assert gives_up(peer).last_stream < 16_000
        assert peer.next_stream > 1_000


def test_a_flood_of_refusals_leaves_few_lines(serve):
    """And says how many it left out. Each connection stays: it resets nothing."""
    running = serve()
    before, start = len(running.log_lines()), time.monotonic()
    for _ in range(3):
        with running.h2() as peer:
            peer.flood(pairs(peer, lambda stream: b"", 2_000, END_HEADERS | END_STREAM,
                             fields=grpc_head(key="nobody's")))
            peer.round_trip()
            assert not peer.went_away
    running_for = time.monotonic() - start

    def counted():
        lines = [line for line in running.log_lines()[before:]
                 if line["message"] in ("failed to open stateful work request",
                                        "log lines of one address were left out")]
        told = sum(line["message"].startswith("failed") for line in lines)
        return told + sum(line.get("left_out", 0) for line in lines)

    assert len(running.log_lines()) - before <= 20 + running_for
    # Nothing is lost without a word.
    until(lambda: counted() == 3 * 2_002, what="a line that tells how many there were")


def test_streams_reset_in_the_same_breath_start_nothing(serve):
    """No invocation for a stream that is already gone."""
    running = serve()
    with running.h2() as peer:
        peer.send(b"".join(
            frame(HEADERS, END_HEADERS, 1 + 2 * n, peer.block_of(grpc_head())) +
            rst_stream(1 + 2 * n) for n in range(50)))
        peer.round_trip()
        assert running.metric("worker_token_issued_total") <= 1
        assert running.metric("worker_connections_active") == 0


# --- honest traffic of the same shape -------------------------------------------------------

def test_three_thousand_calls_cancelled_together_are_honest(bare_target, tenant, attach):
    """Deadlines of one instant. An unrelated call and the session go on."""
    session = attach(bare_target, tenant)
    client = session.client
    block = blocks(client, grpc_head())
    streams = [client.next_stream + 2 * n for n in range(3_000)]
    client.next_stream += 6_000
    client.flood(b"".join(frame(HEADERS, END_HEADERS, stream, block)
                          for stream in streams[at:at + 100]) for at in range(0, 3_000, 100))
    client.round_trip()
    time.sleep(0.15)
    client.send(b"".join(rst_stream(stream) for stream in streams))
    client.round_trip()
    for _ in range(3_000):
        session.tunnel.wait(RST_STREAM, timeout=60)
    assert not [e for e in client.events if e.kind == GOAWAY], client.transcript()
    session.another()
    session.answer(end_stream=True)
    assert client.head(session.stream).status == "200"


def test_short_deadlines_are_honest(bare_target, tenant, attach):
    """A thousand calls a second, each cancelled after 150 ms."""
    session = attach(bare_target, tenant)
    client, tunnel = session.client, session.tunnel
    block, waiting = blocks(client, grpc_head()), collections.deque()
    start = time.monotonic()
    for n in range(300):
        time.sleep(max(0, start + n / 100 - time.monotonic()))
        sent = b""
        while waiting and waiting[0][0] <= time.monotonic():
            sent += b"".join(rst_stream(stream) for stream in waiting.popleft()[1])
        streams = range(client.next_stream, client.next_stream + 20, 2)
        client.next_stream += 20
        client.send(sent, *(frame(HEADERS, END_HEADERS, stream, block) for stream in streams))
        waiting.append((time.monotonic() + 0.15, streams))
        tunnel.drain_now()
    client.round_trip()
    assert not [e for e in client.events if e.kind == GOAWAY], client.transcript()
    session.another()


def test_cancelling_five_hundred_calls_is_honest(target):
    with authorised(target) as peer:
        for _ in range(500):
            stream = peer.open(grpc_head(PATH["BidiStream"]))
            peer.send(rst_stream(stream))
        call(peer)
        assert not [e for e in peer.events if e.kind == GOAWAY], peer.transcript()


def test_credit_for_every_frame_is_honest(bare_target, tenant, attach):
    """A client that gives back each frame's credit at once, as simple ones do, so that the
    window is always as small as the last frame; 8 MiB come through all the same."""
    client = bare_target.h2(auto=("settings", "ping", "credit at once"))
    session = attach(bare_target, tenant, client=client)
    session.answer()
    body = bytes(8 * MIB)
    sender = threading.Thread(target=session.tunnel.send_body, args=(session.request.stream, body))
    sender.start()
    client.head(session.stream)
    assert client.body(session.stream)[0] == body
    sender.join(100)


def test_credit_for_each_message_of_a_large_frame_is_honest(bare_target, tenant, attach):
    """A worker's library packs a thousand messages into one DATA frame; grpcio as the client
    sends a WINDOW_UPDATE for each message its user reads (seen: 80 for two frames). L8 counts
    frames, so it must know how much was in them."""
    client = bare_target.h2(auto=("settings", "ping"))
    session = attach(bare_target, tenant, client=client)
    session.answer()
    client.head(session.stream)
    for _ in range(10):
        body = message(b"tiny") * 1_000
        session.tunnel.spend(session.request.stream, len(body))
        session.tunnel.data(session.request.stream, body)
        session.tunnel.drain_now()
        got = b""
        while len(got) < len(body):
            got += client.wait(DATA, session.stream).data
        each = len(message(b"tiny"))
        client.flood([(window_update(session.stream, each) * 50) for _ in range(20)])
        client.send(window_update(0, len(body)))
    client.round_trip()
    session.another()


def test_credit_for_every_message_is_honest(target):
    """The same with small messages."""
    with authorised(target, auto=("settings", "ping", "credit at once")) as peer:
        stream = peer.open(grpc_head(PATH["ServerStream"]))
        peer.data(stream, message(b"tick", count=5_000), end_stream=True)
        assert peer.head(stream).status == "200"
        octets, trailers = peer.body(stream)
        assert messages(octets) == [b"tick"] * 5_000 and trailers.grpc_status == "0"
        call(peer)


def test_five_octet_messages_are_honest(target, bystander):
    """Twenty thousand on one stream, echoed: no limit on small DATA catches them."""
    beside = bystander(target)

    def talk():
        with authorised(target) as peer:
            peer.log.clear()
            stream = peer.open(grpc_head(PATH["BidiStream"]))
            unit, sent = frame(DATA, 0, stream, b"\0\0\0\0\0"), 0
            deadline = time.monotonic() + 120
            while sent < 20_000:
                if peer.room(stream) >= 500:
                    peer.spend(stream, 500)
                    peer.send(unit * 100)
                    sent += 100
                    peer.drain_now()
                else:
                    peer.pump(deadline, "credit")
            peer.data(stream, b"", end_stream=True)
            assert peer.head(stream).status == "200"
            got, trailers = peer.body(stream)
            assert got == b"\0\0\0\0\0" * 20_000 and trailers.grpc_status == "0"

    again_and_again(talk, beside)
    beside.was_served()


def test_seventeen_continuations_and_some_pings_are_honest(target):
    with authorised(target) as peer:
        for _ in range(20):
            stream = peer.next_stream
            peer.next_stream += 2
            block = peer.block_of(grpc_head(extra=[("x-long", f"not yet in the table {stream}")]))
            octets = frame(HEADERS, 0, stream, block[:4])
            for n in range(16):
                octets += frame(CONTINUATION, 0, stream, block[4 + n:5 + n])
            octets += frame(CONTINUATION, END_HEADERS, stream, block[20:])
            peer.send(octets, frame(DATA, END_STREAM, stream, message(b"x")))
            assert peer.head(stream).status == "200"
            peer.body(stream)
            peer.round_trip()
        assert not [e for e in peer.events if e.kind == GOAWAY], peer.transcript()


def test_nine_empty_data_frames_are_honest(target):
    with authorised(target) as peer:
        stream = peer.open(grpc_head())
        for octet in message(b"slow"):
            peer.send(frame(DATA, 0, stream, b"") * 9)
            peer.data(stream, bytes([octet]))
        peer.data(stream, b"", end_stream=True)
        assert peer.head(stream).status == "200"
        assert peer.body(stream)[0] == message(b"slow")


# --- header bombs ---------------------------------------------------------------------------

def indexed(name, value):
    """Literal with incremental indexing, no Huffman."""
    def text(octets):
        if len(octets) < 127:
            return bytes([len(octets)]) + octets
        length, encoded = len(octets) - 127, b"\x7f"
        while length >= 128:
            encoded, length = encoded + bytes([length & 127 | 128]), length >> 7
        return encoded + bytes([length]) + octets
    return b"\x40" + text(name) + text(value)


def bomb(peer, name, value, references, fields=()):
    """A block that names one entry again and again; HEADERS and as few CONTINUATIONs as the
    frame size allows."""
    block = peer.block_of(fields or grpc_head()) + indexed(name, value) + b"\xbe" * references
    parts = [block[at:at + 16_384] for at in range(0, len(block), 16_384)]
    stream = peer.next_stream
    peer.next_stream += 2
    octets = b""
    for n, part in enumerate(parts):
        flags = END_HEADERS if n == len(parts) - 1 else 0
        octets += frame(CONTINUATION if n else HEADERS, flags | (0 if n else END_STREAM), stream,
                        part)
    return stream, octets


@pytest.mark.parametrize("name, value", [(b"x", b"v" * 3_900), (b"x", b"")],
                         ids=["large-entry", "tiny-entry"])
def test_hpack_bombs(target, bystander, measure, name, value):
    beside = bystander(target)

    def throw():
        peers = [target.h2() for _ in range(64)]
        for peer in peers:
            peer.flood([bomb(peer, name, value, 60_000)[1]])
        for peer in peers:
            peer.goes_away(ENHANCE_YOUR_CALM)
            peer.close()

    throw()  # what the allocator keeps is not the bombs'
    before, most = target.rss(), [0]
    done = threading.Event()

    def sample():
        while not done.wait(0.005):
            most[0] = max(most[0], target.rss())

    sampler = threading.Thread(target=sample)
    sampler.start()
    _, count = again_and_again(throw, beside)
    done.set()
    sampler.join()
    growth = max(most[0] - before, 0) / MIB
    measure(f"{count} times 64 bombs, memory + {growth:.2f} MiB")
    # Taken at their word, each throw would be 15 GB.
    assert growth < 32, f"memory grew by {growth:.2f} MiB"
    beside.was_served()


@pytest.mark.parametrize("name, value, references", [
    (b"x", b"v" * 3_900, 80), (b"x", b"", 1_100)], ids=["312-KiB", "1100-fields"])
def test_header_too_large(own_gateway, name, value, references):
    """L2: refused, and the connection lives, its table in step."""
    for style, fields in (("grpc", grpc_head()), ("plain", plain_head("/echo"))):
        with authorised(own_gateway) as peer:
            stream, octets = bomb(peer, name, value, references, fields)
            peer.send(octets)
            head = peer.head(stream)
            if style == "grpc":
                assert head.end_stream and head.grpc_status == "8", str(head)
            else:
                assert head.status == "431", str(head)
            # Our encoder does not know of the entry written by hand: it empties the table.
            peer.encoder = hpack.Encoder()
            peer.encoder.header_table_size = 0
            call(peer)
    # L2 is one limit with two measures.
    seen = hits(own_gateway)
    assert set(seen) <= {"header_bytes", "header_fields"} and sum(seen.values()) == 2, seen


def test_a_response_head_too_large(bare_target, tenant, attach):
    session = attach(bare_target, tenant)
    sid = session.request.stream
    session.tunnel.send(frame(HEADERS, END_HEADERS | END_STREAM, sid, b"\x88" + indexed(
        b"x", b"v" * 3_900) + b"\xbe" * 80))
    head = session.client.head(session.stream)
    assert head.end_stream and head.grpc_status == "8", str(head)
    # Our encoder does not know of the entry written by hand: it empties the table.
    session.tunnel.encoder = hpack.Encoder()
    session.tunnel.encoder.header_table_size = 0
    session.another()


# --- floods from a worker -------------------------------------------------------------------

def on_request(octets, count, each=100):
    return lambda session: (octets(session.request.stream) * each for _ in range(count // each))


def after_head(make):
    def chunks(session):
        session.answer()
        yield from make(session)
    return chunks


def worker_continuations(fragment, count):
    def chunks(session):
        sid = session.request.stream
        yield frame(HEADERS, 0, sid, b"\x88")
        for _ in range(count // 10):
            yield frame(CONTINUATION, 0, sid, fragment) * 10
    return chunks


def worker_bomb(session):
    block = b"\x88" + indexed(b"x", b"v" * 3_900) + b"\xbe" * 60_000
    parts = [block[at:at + 16_384] for at in range(0, len(block), 16_384)]
    sid = session.request.stream
    yield b"".join(frame(CONTINUATION if n else HEADERS,
                         END_HEADERS if n == len(parts) - 1 else 0, sid, part)
                   for n, part in enumerate(parts))


WORKER_FLOODS = {
    "PING": on_request(lambda s: ping(), 40_000),
    "PING ACK": on_request(lambda s: ping(ack=True), 40_000),
    "SETTINGS": on_request(lambda s: settings({3: 100}), 40_000),
    "PRIORITY": on_request(lambda s: priority(s), 40_000),
    "unknown frames": on_request(lambda s: frame(0x42, 0, 0, b""), 40_000),
    "WINDOW_UPDATE": on_request(lambda s: window_update(0, 1), 40_000),
    "empty DATA": after_head(on_request(lambda s: frame(DATA, 0, s, b""), 40_000)),
    "CONTINUATION": worker_continuations(FIELD, 10_000),
    "empty CONTINUATION": worker_continuations(b"", 10_000),
    "HPACK bomb": worker_bomb,
}


@pytest.mark.parametrize("name", WORKER_FLOODS)
def test_flood_from_a_worker(bare_target, tenant, attach, bystander, name):
    beside = bystander(bare_target, "ping")

    def attack():
        session = attach(bare_target, tenant)
        session.tunnel.flood(WORKER_FLOODS[name](session))
        session.tunnel.goes_away(ENHANCE_YOUR_CALM)
        told(session.client, session.stream)
        session.client.round_trip()
        session.close()

    again_and_again(attack, beside)
    beside.was_served()


# --- windows and memory ---------------------------------------------------------------------

def pour(tunnel, streams, limit, chunk=16_384, patience=1.0):
    """The worker sends on all streams for as long as it has credit; octets sent a stream."""
    sent = dict.fromkeys(streams, 0)
    last = time.monotonic()
    while sum(sent.values()) < limit:
        moved = False
        for sid in streams:
            room = min(tunnel.room(sid), chunk)
            if room > 0:
                tunnel.spend(sid, room)
                tunnel.data(sid, bytes(room))
                sent[sid] += room
                moved = True
        if moved:
            tunnel.drain_now()
            last = time.monotonic()
            continue
        if time.monotonic() - last > patience:
            break
        try:
            tunnel.pump(time.monotonic() + 0.1)
        except Silence:
            pass
    return sent


def test_streams_nobody_reads(bare_target, tenant, attach, bystander, measure):
    """Forty streams with a window of zero: each holds what its first window admits, and no
    sibling suffers."""
    beside = bystander(bare_target, "ping")
    client = bare_target.h2(first_settings={4: 0}, connection_credit=1 << 24)
    session = attach(bare_target, tenant, client=client)
    streams = [session.stream] + [client.open(grpc_head()) for _ in range(39)]
    requests = [session.request.stream] + [session.tunnel.wait(HEADERS).stream
                                           for _ in streams[1:]]
    for sid in requests:
        session.tunnel.headers(sid, [(":status", "200")])
    before = bare_target.rss()
    sent = pour(session.tunnel, requests, 64 * MIB)
    growth = (bare_target.rss() - before) / MIB
    measure(f"{sum(sent.values()) / MIB:.1f} MiB taken for 40 stalled streams, "
            f"memory + {growth:.1f} MiB")
    assert max(sent.values()) <= 128 * 1024, f"a stream that never drained got {max(sent.values())}"
    assert growth < 32, f"memory grew by {growth:.1f} MiB"
    # A sibling with a window is served as if the others were not there.
    stream = client.open(grpc_head())
    request = session.tunnel.wait(HEADERS)
    client.send(window_update(stream, 1 << 20))
    session.tunnel.headers(request.stream, [(":status", "200")])
    session.tunnel.send_body(request.stream, bytes(300_000), timeout=60)
    client.head(stream)
    assert len(client.body(stream)[0]) == 300_000
    beside.was_served()


def test_a_reader_that_stops_reading(bare_target, tenant, attach, bystander, measure):
    """The windows are wide open and the socket is not read: bounded, and nothing is lost."""
    beside = bystander(bare_target, "ping")
    small = socket.socket()
    small.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
    small.settimeout(30)
    small.connect(bare_target.client)
    client = Peer(small, client=True, first_settings={4: 2**31 - 1}, connection_credit=1 << 30)
    client.ack_of_settings()
    session = attach(bare_target, tenant, client=client)
    session.answer()
    client.head(session.stream)
    before = bare_target.rss()
    sent = pour(session.tunnel, [session.request.stream], 128 * MIB)[session.request.stream]
    growth = (bare_target.rss() - before) / MIB
    measure(f"{sent / MIB:.1f} MiB taken, memory + {growth:.1f} MiB")
    assert sent < 64 * MIB and growth < 64, f"{sent / MIB:.1f} MiB taken, + {growth:.1f} MiB"
    got = 0
    while got < sent:
        got += len(client.wait(DATA, session.stream).data)
    session.tunnel.data(session.request.stream, b"end", end_stream=True)
    assert client.body(session.stream)[0] == b"end"
    beside.was_served()


def test_client_overruns_its_window(bare_target, tenant, attach):
    """The worker gives no credit; the client sends beyond what the gateway allowed."""
    session = attach(bare_target, tenant, first_settings={4: 0}, auto=("settings", "ping"))
    client, sid = session.client, session.stream
    allowed = client.room(sid)
    client.flood(frame(DATA, 0, sid, bytes(16_384)) for _ in range(allowed // 16_384 + 80))
    event = client.wait(where=lambda e: e.kind in (RST_STREAM, GOAWAY) and e.code != NO_ERROR)
    assert event.code == FLOW_CONTROL_ERROR, f"{event}\n{client.transcript()}"


def test_ten_thousand_streams_and_one(bare_target, tenant, attach, measure):
    """L1."""
    session = attach(bare_target, tenant, first_settings={3: 2**31 - 1})
    client, tunnel = session.client, session.tunnel
    assert client.their_settings.get(3) == 10_000
    client.log.clear()
    for _ in range(9_999):
        client.open(grpc_head(), end_stream=True)
    over = client.open(grpc_head(), end_stream=True)
    assert client.reset(over, timeout=60) == REFUSED_STREAM
    assert not [e for e in client.events if e.kind == RST_STREAM]
    # One ends, one more may come.
    session.answer(end_stream=True)
    client.data(session.stream, b"", end_stream=True)
    assert client.head(session.stream).status == "200"
    client.round_trip()
    again = client.open(grpc_head(extra=[("x-again", "1")]), end_stream=True)
    request = tunnel.wait(HEADERS, where=lambda e: e.get("x-again"), timeout=60)
    tunnel.headers(request.stream, [(":status", "200")], end_stream=True)
    assert client.head(again, timeout=60).status == "200"


def test_worker_sends_beyond_the_window(bare_target, tenant, attach):
    client = bare_target.h2(first_settings={4: 0})
    session = attach(bare_target, tenant, client=client)
    session.answer()
    sid = session.request.stream
    allowed = session.tunnel.room(sid)
    session.tunnel.flood(frame(DATA, 0, sid, bytes(16_384)) for _ in range(allowed // 16_384 + 80))
    event = session.tunnel.wait(where=lambda e: e.kind in (RST_STREAM, GOAWAY))
    assert event.code == FLOW_CONTROL_ERROR, f"{event}\n{session.tunnel.transcript()}"
    told(client, session.stream)


# --- connections ----------------------------------------------------------------------------

def test_connections_that_come_and_go(target, bystander):
    """Two thousand and more, each closed in another state; nothing is left of them."""
    beside = bystander(target)
    before = target.open_files()
    # A fast machine is through in no time: the bystander needs a second to be hindered in.
    n, since = 0, time.monotonic()
    while n < 2_000 or time.monotonic() - since < 1 or not beside.answered.is_set():
        n += 1
        assert time.monotonic() - since < 120, "the bystander got no answer meanwhile"
        sock = socket.create_connection(target.client, 10)
        if n % 4 == 1:
            sock.sendall(b"PRI * HT")
        elif n % 4 == 2:
            sock.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + settings())
        elif n % 4 == 3:
            Peer.abort(type("Open", (), {"sock": sock}))
            continue
        sock.close()
    beside.was_served()
    until(lambda: target.open_files() <= before, what="no descriptors left open")


def test_many_idle_connections(target, measure):
    """A thousand that did their handshake and rest."""
    before = target.rss()
    peers = [target.h2() for _ in range(1_000)]
    growth = (target.rss() - before) / 1_000
    measure(f"{growth:.0f} octets of memory an idle connection")
    assert growth < 40_000
    with authorised(target) as peer:
        call(peer)
    for peer in peers:
        peer.close()


def test_the_memory_of_a_thousand_sessions_comes_back(own_gateway, measure):
    """Sessions come and go; the second thousand needs no more than the first."""
    def round_of(count):
        for _ in range(count // 50):
            peers = [authorised(own_gateway) for _ in range(50)]
            for peer in peers:
                peer.close()
            # However late the machine lets it notice: what has ended is gone.
            until(lambda: not own_gateway.open_sessions(), what="the sessions' end")
        return own_gateway.rss()

    first = round_of(500)
    second = round_of(500)
    measure(f"{first >> 20} MiB after 500 sessions, {second >> 20} MiB after 1 000")
    assert second - first < 8 * MIB
