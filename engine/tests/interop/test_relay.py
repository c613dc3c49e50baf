"""What passes between a client's stream and a worker's, frame by frame
(contract 3.7-3.9, design 3.10, 3.11)."""

import socket
import threading
import time

import pytest

from gateway import grpc_head, plain_head
from rawh2 import (CANCEL, DATA, END_HEADERS, END_STREAM, ENHANCE_YOUR_CALM, FLOW_CONTROL_ERROR,
                   GOAWAY, HEADERS, INTERNAL_ERROR, NO_ERROR, PADDED, PROTOCOL_ERROR,
                   REFUSED_STREAM, RST_STREAM, STREAM_CLOSED, Silence, code_name, frame, goaway, padded,
                   rst_stream, settings, window_update)

OK = [(":status", "200"), ("content-type", "application/grpc")]
DONE = [("grpc-status", "0"), ("grpc-message", "")]


# --- heads ----------------------------------------------------------------------------------

def test_cl26_to_cl31_request_fields(bare, worker, attach):
    """CL-26 to CL-31."""
    session = attach(bare, worker, head=plain_head("/a/b?x=1&y=%20", "PUT", extra=[
        ("cookie", "a=b"), ("x-forwarded-for", "1.2.3.4"), ("x-forwarded-host", "h"),
        ("x-forwarded-proto", "https"), ("forwarded", "for=1.2.3.4"),
        ("proxy-authorization", "Basic x"), ("traceparent", "00-" + "1" * 32 + "-" + "2" * 16
                                             + "-01"),
        ("accept-encoding", "gzip"), ("x-bin", "a,b"), ("x-bin", "c"), ("x-empty", "")]))
    request = session.request
    assert (request.get(":method"), request.get(":path")) == ("PUT", "/a/b?x=1&y=%20")
    assert request.get(":authority") == "echo.test" and request.get(":scheme") == "http"
    for gone in ("x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "forwarded", "via",
                 "proxy-authorization", "te", "user-agent"):
        assert not request.values(gone), str(request)
    assert request.get("traceparent").endswith("-01") and request.get("cookie") == "a=b"
    assert request.get("accept-encoding") == "gzip" and request.values("x-bin") == ["a,b", "c"]
    assert request.values("x-empty") == [""], str(request)


def test_cl35_cl36_response_fields(bare, worker, attach):
    session = attach(bare, worker)
    session.answer("418", [("x-one", "1"), ("x-one", "2"), ("date", "yesterday"),
                           ("server", "s"), ("x-empty", "")], end_stream=True)
    head = session.client.head(session.stream)
    assert head.status == "418" and head.values("x-one") == ["1", "2"], str(head)
    assert (head.get("date"), head.get("server"), head.get("x-empty")) == ("yesterday", "s", "")
    # CL-15: CORS is the function's job here.
    assert not head.values("access-control-allow-origin") and not head.values("vary"), str(head)


def test_never_indexed_fields_stay_so(bare, worker, attach):
    """Design 3.13: the mark is kept both ways and added to none."""
    session = attach(bare, worker)
    client, tunnel = session.client, session.tunnel
    sid = client.next_stream
    block = client.encoder.encode([*grpc_head(), ("x-plain", "1"), ("x-secret", "s3", True)])
    client.send(frame(HEADERS, END_HEADERS | END_STREAM, sid, block))
    request = tunnel.wait(HEADERS)
    tunnel.send(frame(HEADERS, END_HEADERS | END_STREAM, request.stream, tunnel.encoder.encode(
        [*OK, ("x-plain", "1"), ("x-secret", "s3", True)])))
    for event in (request, client.head(sid)):
        marks = {field[0]: field.indexable for field in event.fields}
        assert marks["x-secret"] is False, event.fields
        assert all(mark for name, mark in marks.items() if name != "x-secret"), marks


def test_large_heads_both_ways(bare, worker, attach):
    """40 KiB of fields: split into CONTINUATIONs of at most 16 KiB, in one run."""
    many = [(f"x-field-{n}", "abcdefgh" * 40) for n in range(100)]
    session = attach(bare, worker, head=[*grpc_head(), *many])
    assert [f for f in session.request.fields if f[0].startswith("x-field")] == many
    session.answer(fields=many, end_stream=True)
    head = session.client.head(session.stream)
    assert [f for f in head.fields if f[0].startswith("x-field")] == many


def test_cl39_trailers_only_stays_one_frame(bare, worker, attach):
    """CL-39."""
    session = attach(bare, worker)
    session.answer(fields=[*OK[1:], ("grpc-status", "9"), ("grpc-message", "no%20way")],
                   end_stream=True)
    head = session.client.head(session.stream)
    assert head.end_stream and head.grpc_status == "9", str(head)
    assert head.get("grpc-message") == "no%20way", str(head)


def test_cl38_head_is_not_held_back(bare, worker, attach):
    """CL-38: a response head without DATA goes out at once, and so does every frame."""
    session = attach(bare, worker)
    session.answer(fields=OK[1:])
    assert session.client.head(session.stream).status == "200"
    for part in (b"a", b"bc"):
        session.tunnel.data(session.request.stream, part)
        assert session.client.wait(DATA, session.stream).data == part
    session.client.data(session.stream, b"up")
    assert session.tunnel.wait(DATA).data == b"up"
    session.tunnel.headers(session.request.stream, DONE, end_stream=True)
    assert session.client.head(session.stream).grpc_status == "0"


def test_cl40_trailers_both_ways(bare, worker, attach):
    """CL-40: also without announcement."""
    session = attach(bare, worker)
    session.client.data(session.stream, b"body")
    session.client.headers(session.stream, [("x-sum", "7"), ("x-sum", "8")], end_stream=True)
    body, trailers = session.tunnel.body(session.request.stream)
    assert body == b"body" and trailers.values("x-sum") == ["7", "8"]
    session.answer(fields=OK[1:])
    session.tunnel.data(session.request.stream, b"answer")
    session.tunnel.headers(session.request.stream, [*DONE, ("x-end", "1")], end_stream=True)
    session.client.head(session.stream)
    body, trailers = session.client.body(session.stream)
    assert body == b"answer" and trailers.get("x-end") == "1"


LATE = ["nvcf-reqid", "forwarded", "x-forwarded-for", "x-forwarded-port", "authorization",
        "proxy-authorization", "cookie", "set-cookie", "function-id", "function-version-id",
        "sec-websocket-protocol", "content-type", "content-encoding", "content-range", "trailer"]


def test_cl29_cl30_cl36_trailers_carry_nothing_that_the_head_may_not(bare, worker, attach):
    """RFC 9110 6.5.1; what is left of them passes."""
    session = attach(bare, worker)
    late = [(name, "evil") for name in LATE] + [("te", "trailers")]
    session.client.data(session.stream, b"body")
    session.client.headers(session.stream, [("x-sum", "7"), *late, ("x-sum", "8")],
                           end_stream=True)
    trailers = session.tunnel.body(session.request.stream)[1]
    assert trailers.fields == [("x-sum", "7"), ("x-sum", "8")]
    session.answer(fields=OK[1:])
    session.tunnel.data(session.request.stream, b"answer")
    session.tunnel.headers(session.request.stream, [*late, *DONE, ("grpc-status-details-bin", "AA")],
                           end_stream=True)
    session.client.head(session.stream)
    trailers = session.client.body(session.stream)[1]
    assert trailers.fields == [*DONE, ("grpc-status-details-bin", "AA")]


def test_cl35_informational_responses(bare, worker, attach):
    """CL-35: 103 passes; 100 may be dropped; the final head is the final head."""
    session = attach(bare, worker)
    sid = session.request.stream
    session.tunnel.headers(sid, [(":status", "100")])
    session.tunnel.headers(sid, [(":status", "103"), ("link", "</a>")])
    session.tunnel.headers(sid, [(":status", "204"), ("x-final", "1")], end_stream=True)
    heads = [session.client.head(session.stream)]
    while not heads[-1].end_stream:
        heads.append(session.client.head(session.stream))
    assert [h.status for h in heads if h.status != "100"] == ["103", "204"], list(map(str, heads))
    assert heads[-2].get("link") == "</a>" and heads[-1].get("x-final") == "1"
    # What belongs to the final head is not spent on the informational one.
    assert heads[-1].get("nvcf-reqid") and heads[-1].values("set-cookie")


def test_too_many_informational_responses(bare, worker, attach):
    """At most eight (design 6)."""
    session = attach(bare, worker)
    for _ in range(9):
        session.tunnel.headers(session.request.stream, [(":status", "103")])
    assert session.tunnel.reset(session.request.stream) == PROTOCOL_ERROR
    event = session.client.wait(stream=session.stream, where=lambda e: (
        e.kind == RST_STREAM or e.status == "502"))
    assert event.kind == HEADERS or event.code == INTERNAL_ERROR, str(event)
    session.another()


def test_cl34_early_response(bare, worker, attach):
    """CL-34: delivered whole, then the upload is stopped with NO_ERROR."""
    session = attach(bare, worker)
    session.client.data(session.stream, b"first part")
    session.tunnel.headers(session.request.stream, [(":status", "413")])
    session.tunnel.data(session.request.stream, b"too much", end_stream=True)
    session.tunnel.send(rst_stream(session.request.stream, NO_ERROR))
    assert session.client.head(session.stream).status == "413"
    assert session.client.body(session.stream)[0] == b"too much"
    assert session.client.reset(session.stream) == NO_ERROR
    # What is still on its way is not punished.
    session.client.data(session.stream, b"late")
    session.another()


def test_early_response_without_a_reset_lets_the_upload_go_on(bare, worker, attach):
    session = attach(bare, worker)
    session.tunnel.headers(session.request.stream, [(":status", "200")])
    session.tunnel.data(session.request.stream, b"bye", end_stream=True)
    session.client.head(session.stream)
    assert session.client.body(session.stream)[0] == b"bye"
    # RFC 9113 8.1: either the stream goes on half-closed, or it ends with NO_ERROR.
    session.client.data(session.stream, b"more", end_stream=True)
    got = session.tunnel.wait(stream=session.request.stream,
                              where=lambda e: e.kind in (DATA, RST_STREAM))
    assert got.kind == DATA or got.code in (NO_ERROR, CANCEL), str(got)
    session.another()


# --- resets (design 3.11) -------------------------------------------------------------------

SAME = {code: code for code in (CANCEL, REFUSED_STREAM, ENHANCE_YOUR_CALM, INTERNAL_ERROR)}
# NO_ERROR is for what is whole (CL-42, RFC 9113 8.1).
OWN = {code: INTERNAL_ERROR for code in (NO_ERROR, PROTOCOL_ERROR, FLOW_CONTROL_ERROR, 9, 6,
                                         STREAM_CLOSED, 4, 10, 12, 13, 0xFF)}


@pytest.mark.parametrize("code, wanted", list({**SAME, **OWN}.items()),
                         ids=lambda code: code_name(code) if isinstance(code, int) else None)
class TestResets:
    def test_from_the_client(self, bare, worker, attach, code, wanted):
        session = attach(bare, worker)
        session.client.send(rst_stream(session.stream, code))
        assert session.tunnel.reset(session.request.stream) == wanted
        session.another()

    def test_from_the_worker(self, bare, worker, attach, code, wanted):
        session = attach(bare, worker)
        if code != REFUSED_STREAM:
            session.answer()
            session.client.head(session.stream)
        session.tunnel.send(rst_stream(session.request.stream, code))
        assert session.client.reset(session.stream) == wanted
        session.another()


def test_reset_of_a_request_that_waits_for_its_tunnel(bare, worker):
    """The reset request never reaches the worker, and its neighbour does."""
    with bare.h2() as client:
        first = client.open(grpc_head(extra=[("x-n", "1")]))
        client.open(grpc_head(extra=[("x-n", "2")]), end_stream=True)
        client.send(rst_stream(first))
        client.round_trip()
        _, tunnel = worker.take()
        assert tunnel.wait(HEADERS).get("x-n") == "2"
        tunnel.round_trip()
        assert not [e for e in tunnel.events if e.kind == HEADERS], tunnel.transcript()


# --- lost tunnels ---------------------------------------------------------------------------

@pytest.mark.parametrize("ending", ["close", "abort"])
@pytest.mark.parametrize("style", [grpc_head, plain_head])
def test_cl41_tunnel_lost_before_the_head(bare, worker, attach, ending, style):
    session = attach(bare, worker, head=style())
    getattr(session.tunnel, ending)()
    head = session.client.head(session.stream)
    assert head.status == "502" and head.end_stream, str(head)
    if style is grpc_head:
        assert head.grpc_status == "14", str(head)
        assert head.get("content-type") == "application/grpc", str(head)
    else:
        assert not head.values("grpc-status"), str(head)
    assert not head.values("nvcf-reqid") and not head.values("vary"), str(head)
    session.client.round_trip()


@pytest.mark.parametrize("ending", ["close", "abort"])
@pytest.mark.parametrize("after", ["head", "data", "1xx"])
def test_cl42_tunnel_lost_in_mid_response(bare, worker, attach, ending, after):
    """CL-42, and truncation never looks like success."""
    session = attach(bare, worker)
    sid = session.request.stream
    if after == "1xx":
        session.tunnel.headers(sid, [(":status", "103")])
    else:
        session.answer(fields=OK[1:])
    session.client.head(session.stream)
    if after == "data":
        session.tunnel.data(sid, b"half of it")
        assert session.client.wait(DATA, session.stream).data == b"half of it"
    getattr(session.tunnel, ending)()
    if after == "1xx":
        head = session.client.head(session.stream)
        assert head.status == "502" and head.grpc_status == "14" and head.end_stream, str(head)
    else:
        assert session.client.reset(session.stream) == INTERNAL_ERROR
    assert not [e for e in session.client.events if e.end_stream], session.client.transcript()
    session.client.round_trip()


def test_half_close_of_a_tunnel_is_its_end(bare, worker, attach):
    """FIN with streams open: lost, although the other direction still works."""
    session = attach(bare, worker)
    session.tunnel.sock.shutdown(socket.SHUT_WR)
    assert session.client.head(session.stream).status == "502"
    session.tunnel.ends()


def test_silence_of_the_worker_on_ping_is_not_awaited_by_others(bare, worker, attach):
    """A worker that acknowledges nothing stops neither its own client nor another."""
    deaf = attach(bare, worker, auto=())
    other = attach(bare, worker)
    other.another()
    deaf.another()


# --- GOAWAY (design 3.11) -------------------------------------------------------------------

def test_cl43_goaway_of_the_worker(bare, worker, attach):
    """Streams up to the last id finish on the old tunnel, streams above are refused, the next
    request goes to another tunnel; the client hears no GOAWAY."""
    session = attach(bare, worker)
    client = session.client
    second = client.open(grpc_head())
    request = session.tunnel.wait(HEADERS)
    session.tunnel.send(goaway(session.request.stream, NO_ERROR))
    assert client.reset(second) == REFUSED_STREAM
    third = client.open(grpc_head(), end_stream=True)
    work = worker.poll(holds=[session.work.request_id])
    tunnel = worker.connect(work)
    replaced = tunnel.wait(HEADERS)
    tunnel.headers(replaced.stream, [*OK, *DONE], end_stream=True)
    assert client.head(third).grpc_status == "0"
    # The old stream is still whole, both ways.
    client.data(session.stream, b"late", end_stream=True)
    assert session.tunnel.wait(DATA, session.request.stream).data == b"late"
    session.answer(fields=DONE, end_stream=True)
    assert client.head(session.stream).grpc_status == "0"
    session.tunnel.ends()
    client.round_trip()
    assert not [e for e in client.events if e.kind == GOAWAY], client.transcript()
    assert request.stream > session.request.stream


def test_goaway_with_an_error_still_finishes_its_streams(bare, worker, attach):
    session = attach(bare, worker)
    session.tunnel.send(goaway(session.request.stream, ENHANCE_YOUR_CALM, b"tired"))
    session.answer(fields=DONE, end_stream=True)
    assert session.client.head(session.stream).grpc_status == "0"
    assert not [e for e in session.client.events if e.kind == GOAWAY]


def test_goaway_in_two_steps(bare, worker, attach):
    session = attach(bare, worker)
    session.tunnel.send(goaway(2**31 - 1, NO_ERROR))
    session.tunnel.send(goaway(session.request.stream, NO_ERROR))
    session.answer(fields=DONE, end_stream=True)
    assert session.client.head(session.stream).grpc_status == "0"
    session.tunnel.ends()


def test_goaway_of_the_client_lets_its_streams_finish(bare, worker, attach):
    session = attach(bare, worker)
    session.client.send(goaway(0, NO_ERROR))
    session.client.round_trip()
    session.client.data(session.stream, b"last", end_stream=True)
    assert session.tunnel.wait(DATA, session.request.stream).data == b"last"
    session.answer(fields=DONE, end_stream=True)
    assert session.client.head(session.stream).grpc_status == "0"


# --- the worker's stream limit --------------------------------------------------------------

def test_worker_that_allows_one_stream(bare, worker, attach):
    """The others wait and are served in turn."""
    session = attach(bare, worker, first_settings={3: 1})
    client, tunnel = session.client, session.tunnel
    client.data(session.stream, b"", end_stream=True)
    streams = [client.open(grpc_head(extra=[("x-n", str(n))]), end_stream=True)
               for n in range(20)]
    sid = session.request.stream
    for n in range(20):
        tunnel.round_trip()
        waiting = [e for e in tunnel.events if e.kind == HEADERS]
        assert not waiting, f"over the limit: {list(map(str, waiting))}"
        tunnel.headers(sid, [*OK, *DONE], end_stream=True)
        event = tunnel.wait(HEADERS)
        assert event.get("x-n") == str(n), "not in order"
        sid = event.stream
    tunnel.headers(sid, [*OK, *DONE], end_stream=True)
    for stream in streams:
        assert client.head(stream).grpc_status == "0"


def test_cancelled_while_it_waits_for_a_slot(bare, worker, attach):
    session = attach(bare, worker, first_settings={3: 1})
    client, tunnel = session.client, session.tunnel
    waiting = client.open(grpc_head(extra=[("x-n", "cancelled")]), end_stream=True)
    last = client.open(grpc_head(extra=[("x-n", "last")]), end_stream=True)
    client.send(rst_stream(waiting))
    client.round_trip()
    session.answer(fields=DONE, end_stream=True)
    tunnel.send(rst_stream(session.request.stream, NO_ERROR))
    request = tunnel.wait(HEADERS)
    assert request.get("x-n") == "last"
    tunnel.headers(request.stream, [*OK, *DONE], end_stream=True)
    assert client.head(last).grpc_status == "0"


# --- bodies, windows and frame sizes --------------------------------------------------------

def pattern(octets):
    """Bytes whose place can be told."""
    unit = b"".join(n.to_bytes(4, "big") for n in range(4096))
    return (unit * (octets // len(unit) + 1))[:octets]


@pytest.mark.parametrize("client_window, chunk", [(1, 1), (777, 100), (65_535, 16_384),
                                                  (1 << 20, 5_000)])
def test_response_larger_than_the_windows(bare, worker, attach, client_window, chunk):
    """Never more than the client's window allows; all of it in the end."""
    body = pattern(min(client_window * 40, 3_000_000))
    client = bare.h2(first_settings={4: client_window}, auto=("settings", "ping"))
    session = attach(bare, worker, client=client)
    session.answer()

    def send():
        session.tunnel.send_body(session.request.stream, body, timeout=60, chunk=chunk)

    sender = threading.Thread(target=send)
    sender.start()
    client.head(session.stream)
    got, room, room_connection = b"", client_window, 65_535
    while len(got) < len(body):
        event = client.wait(DATA, session.stream, timeout=60)
        got += event.data
        room -= len(event.payload)
        room_connection -= len(event.payload)
        assert room >= 0 and room_connection >= 0, "over the client's window"
        if room <= client_window // 2 or room_connection < 30_000:
            client.send(window_update(session.stream, client_window - room) if
                        client_window > room else b"",
                        window_update(0, 65_535 - room_connection))
            room, room_connection = client_window, 65_535
    sender.join(100)
    assert got == body


def test_messages_as_large_as_the_window(bare, worker, attach):
    """A receiver that gives credit when it has a whole message, and whose window holds just
    one: the last octets of each must come although the next message waits behind them (CL-38:
    nothing is held back that could be sent)."""
    client = bare.h2(auto=("settings", "ping"), connection_credit=1 << 20)
    session = attach(bare, worker, client=client)
    session.answer()
    size, count = 65_535, 8
    body = pattern(size * count)
    sender = threading.Thread(target=session.tunnel.send_body,
                              args=(session.request.stream, body))
    sender.start()
    client.head(session.stream)
    got = b""
    for n in range(1, count + 1):
        while len(got) < size * n:
            got += client.wait(DATA, session.stream).data
        client.send(window_update(session.stream, size))
    sender.join(100)
    assert got == body


def test_upload_larger_than_the_windows(bare, worker, attach):
    """The worker's windows bound what it is sent; slow credit only slows."""
    body = pattern(2_000_000)
    session = attach(bare, worker, first_settings={4: 10_000}, auto=("settings", "ping"))
    sender = threading.Thread(target=lambda: session.client.send_body(session.stream, body))
    sender.start()
    got, room, room_connection = b"", 10_000, 65_535
    while len(got) < len(body):
        event = session.tunnel.wait(DATA, session.request.stream, timeout=60)
        got += event.data
        room, room_connection = room - len(event.payload), room_connection - len(event.payload)
        assert room >= 0 and room_connection >= 0, "over the worker's window"
        if room < 5_000 or room_connection < 30_000:
            session.tunnel.send(window_update(session.request.stream, 10_000 - room),
                                window_update(0, 65_535 - room_connection))
            room, room_connection = 10_000, 65_535
    sender.join(100)
    assert got == body


def test_no_frame_is_larger_than_the_receiver_allows(bare, worker, attach):
    """Each hop has its own MAX_FRAME_SIZE; a frame of one may be several of the other."""
    client = bare.h2(first_settings={5: 16_384, 4: 1 << 24}, connection_credit=1 << 24)
    session = attach(bare, worker, client=client, first_settings={5: 16_384, 4: 1 << 24},
                     connection_credit=1 << 24)
    for sender, sid, receiver, other in (
            (client, session.stream, session.tunnel, session.request.stream),
            (session.tunnel, session.request.stream, client, session.stream)):
        if sender is session.tunnel:
            session.answer()
            client.head(session.stream)
        largest = min(sender.their_settings.get(5, 16_384), sender.room(sid))
        body = pattern(largest)
        sender.spend(sid, largest)
        sender.data(sid, body)
        got = b""
        while len(got) < len(body):
            event = receiver.wait(DATA, other)
            assert len(event.payload) <= 16_384, str(event)
            got += event.data
        assert got == body


def test_frames_may_be_as_large_as_the_receiver_allows_but_not_larger_after_a_change(
        bare, worker, attach):
    """SETTINGS in mid-stream: both sides keep in step (6.9.2), the window may go negative."""
    client = bare.h2(auto=("settings", "ping"))
    session = attach(bare, worker, client=client)
    session.answer()
    client.head(session.stream)
    session.tunnel.data(session.request.stream, b"x" * 10_000)
    client.wait(DATA, session.stream)
    client.change_settings(settings({4: 5_000}))  # the window is now -5 000
    session.tunnel.data(session.request.stream, b"y" * 100)
    client.send(window_update(session.stream, 5_000))  # 0
    client.round_trip()
    assert not [e for e in client.events if e.kind == DATA], client.transcript()
    client.send(window_update(session.stream, 40))
    assert client.wait(DATA, session.stream).data == b"y" * 40
    client.send(settings({4: 5_060}))
    assert client.wait(DATA, session.stream).data == b"y" * 60


def test_last_of_several_values_of_one_setting_counts(bare, worker, attach):
    """6.5.3."""
    client = bare.h2(auto=("settings", "ping"))
    session = attach(bare, worker, client=client)
    client.change_settings(frame(4, 0, 0, b"\0\4\0\0\0\x64" + b"\0\4\0\0\0\x01"))
    session.answer()
    session.tunnel.data(session.request.stream, b"abc")
    client.head(session.stream)
    assert client.wait(DATA, session.stream).data == b"a"
    client.round_trip()
    assert not [e for e in client.events if e.kind == DATA]


@pytest.mark.parametrize("pad", [0, 1, 255])
def test_padding_is_credited_and_not_relayed_as_data(bare, worker, attach, pad):
    """A million octets, most of them padding: the credit for all of it comes back."""
    session = attach(bare, worker)
    client = session.client
    total, deadline = b"", time.monotonic() + 200
    for n in range(1_500):
        part = n.to_bytes(4, "big") * 64
        octets = padded(part, pad)
        while client.room(session.stream) < len(octets):
            session.tunnel.drain_now()
            client.drain_now()
            assert time.monotonic() < deadline, f"no credit\n{client.transcript()}"
        client.spend(session.stream, len(octets))
        client.send(frame(DATA, PADDED, session.stream, octets))
        total += part
    client.send(frame(DATA, END_STREAM, session.stream, b""))
    body, _ = session.tunnel.body(session.request.stream)
    assert body == total


def test_credit_comes_back_for_data_of_a_cancelled_stream(bare, worker, attach):
    """Connection credit is not lost with its stream (design 3.10)."""
    session = attach(bare, worker)
    client = session.client
    for _ in range(40):
        stream = client.open(grpc_head())
        request = session.tunnel.wait(HEADERS)
        client.send_body(stream, bytes(30_000), end_stream=False)
        client.send(rst_stream(stream))
        session.tunnel.reset(request.stream)
    client.send_body(session.stream, bytes(60_000))
    body, _ = session.tunnel.body(session.request.stream)
    assert len(body) == 60_000


def test_credit_comes_back_for_data_that_nobody_wants(bare, worker, attach):
    """The worker has reset the stream; the client's DATA was on its way."""
    session = attach(bare, worker)
    client = session.client
    for _ in range(40):
        stream = client.open(grpc_head())
        request = session.tunnel.wait(HEADERS)
        session.tunnel.send(rst_stream(request.stream, CANCEL))
        client.send_body(stream, bytes(30_000), end_stream=False)
        client.reset(stream)
    client.send_body(session.stream, bytes(60_000))
    assert len(session.tunnel.body(session.request.stream)[0]) == 60_000


def test_a_stalled_stream_does_not_stop_its_siblings(bare, worker, attach):
    """The flow-control rule: connection credit is given back although one reader stalls."""
    session = attach(bare, worker, auto=("settings", "ping"), first_settings={4: 20_000},
                     connection_credit=1 << 24)
    client = session.client
    stalled = bytes(min(client.room(session.stream), 60_000))
    client.send_body(session.stream, stalled, end_stream=False)  # the worker gives no credit
    for _ in range(40):
        stream = client.open(grpc_head())
        request = session.tunnel.wait(HEADERS)
        client.send_body(stream, bytes(20_000))
        assert len(session.tunnel.body(request.stream)[0]) == 20_000
        session.tunnel.headers(request.stream, [*OK, *DONE], end_stream=True)
        assert client.head(stream).grpc_status == "0"


def test_an_answer_waits_behind_little_of_a_download_that_is_read_slowly(bare, worker, attach):
    """What the kernel takes in before it can send it can be overtaken by nobody: it is kept short."""
    client = bare.h2(first_settings={4: 1 << 24}, connection_credit=1 << 24, auto=())
    session = attach(bare, worker, client)
    session.answer(fields=OK[1:])
    client.head(session.stream)
    tunnel, sent = session.tunnel, 0
    try:
        while sent < 12 << 20:  # until nobody takes more
            room = min(tunnel.room(session.request.stream), 16_384)
            if not room:
                tunnel.pump(time.monotonic() + 1)
                continue
            tunnel.spend(session.request.stream, room)
            tunnel.data(session.request.stream, bytes(room))
            sent += room
    except Silence:
        pass
    session.another()
    behind = client.data_received[session.stream]
    assert sent >> 17 and behind <= 1 << 20, f"{behind} of {sent} octets"


def test_twenty_thousand_small_messages_on_one_stream(bare, worker, attach):
    """Honest and alive: five octets of DATA each, both ways at once."""
    count = 20_000
    session = attach(bare, worker)
    session.answer(fields=OK[1:])
    session.client.head(session.stream)
    for peer in (session.client, session.tunnel):
        peer.log.clear()

    def flow(peer, sid):
        deadline = time.monotonic() + 200
        for n in range(0, count, 100):
            while peer.room(sid) < 500:
                peer.pump(deadline, "credit")
            peer.spend(sid, 500)
            peer.send(*(frame(DATA, 0, sid, b"%05d" % m) for m in range(n, n + 100)))
            peer.drain_now()

    answers = []

    def converse():
        flow(session.client, session.stream)
        session.client.data(session.stream, b"", end_stream=True)
        answers.append(session.client.body(session.stream))

    other = threading.Thread(target=converse)
    other.start()
    flow(session.tunnel, session.request.stream)
    wanted = b"".join(b"%05d" % n for n in range(count))
    assert session.tunnel.body(session.request.stream)[0] == wanted
    # The answer ends last: with its end the call would be over, whatever was still to come.
    session.tunnel.data(session.request.stream, b"", end_stream=True)
    other.join(200)
    assert answers == [(wanted, None)]


def test_cl46_many_streams_on_one_connection(bare, worker, attach):
    """CL-46: thousands at once, none refused."""
    count = 5_000
    session = attach(bare, worker, first_settings={3: 2**31 - 1})
    client, tunnel = session.client, session.tunnel
    streams = [client.open(grpc_head(), end_stream=True) for _ in range(count)]
    requests = [tunnel.wait(HEADERS, timeout=60) for _ in streams]
    assert not [e for e in client.events if e.kind == RST_STREAM]
    for request in reversed(requests):
        tunnel.headers(request.stream, [*OK, *DONE], end_stream=True)
    for stream in reversed(streams):
        assert client.head(stream, timeout=60).grpc_status == "0"


def test_request_body_waits_for_the_tunnel(bare, worker):
    """What a client sends before the worker has come is not lost, and is bounded: at most the
    stream's first window is taken."""
    body = pattern(60_000)
    with bare.h2() as client:
        stream = client.open(grpc_head())
        client.send_body(stream, body[:50_000], end_stream=False)
        client.round_trip()
        _, tunnel = worker.take()
        request = tunnel.wait(HEADERS)
        client.send_body(stream, body[50_000:])
        assert tunnel.body(request.stream)[0] == body
