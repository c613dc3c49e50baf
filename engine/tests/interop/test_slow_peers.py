"""Peers that take their time (limits L6, L10; contract 3.10). All of them wait at once, in
threads of one fixture, so the whole file takes as long as the slowest; each test then looks at
what one of them met.

A wait is measured from before its timer can have started, so it is never too short; a slow
machine makes it longer, so it is bounded by what only a timer that never fires exceeds."""

import select
import socket
import threading
import time
import traceback

import pytest

from fakeworker import FakeWorker, connect_head
from gateway import Gateway, grpc_head
from rawh2 import (END_STREAM, ENHANCE_YOUR_CALM, HEADERS, PING, PREFACE, SETTINGS_TIMEOUT,
                   Peer, frame, ping, settings)

STORIES = {}


def story(function):
    """Runs in a thread of its own with a gateway and a worker of its own; what it returns is
    what the test of the same name asserts on."""
    STORIES[function.__name__] = function
    return function


def seconds_until_end(sock, timeout=60, dribble=None, since=None):
    """How long until the other end closes (from `since`), and what it said."""
    start, said = since or time.monotonic(), b""
    while time.monotonic() - start < timeout:
        if dribble:
            try:
                sock.sendall(next(dribble))
            except (OSError, StopIteration):
                dribble = None
        if select.select([sock], [], [], 0.5 if dribble else 5)[0]:
            try:
                octets = sock.recv(65_536)
            except ConnectionResetError:
                octets = b""
            if not octets:
                return time.monotonic() - start, said
            said += octets
    return None, said


def octets(whole):
    return (bytes([octet]) for octet in whole)


def said_goaway(said):
    """The error code of the GOAWAY in raw octets."""
    at = 0
    while len(said) - at >= 9:
        length = int.from_bytes(said[at:at + 3], "big")
        if said[at + 3] == 7:
            code = int.from_bytes(said[at + 13:at + 17], "big")
            if code:
                return code
        at += 9 + length
    return None


# --- the client's port ----------------------------------------------------------------------

@story
def nothing_at_all(gateway, worker):
    start = time.monotonic()
    return seconds_until_end(gateway.client_socket(), since=start)


@story
def half_a_preface(gateway, worker):
    start = time.monotonic()
    sock = gateway.client_socket()
    sock.sendall(PREFACE[:10])
    return seconds_until_end(sock, since=start)


@story
def preface_octet_by_octet(gateway, worker):
    start = time.monotonic()
    return seconds_until_end(gateway.client_socket(), since=start,
                             dribble=octets(PREFACE + settings() * 9))


@story
def no_first_settings(gateway, worker):
    start = time.monotonic()
    sock = gateway.client_socket()
    sock.sendall(PREFACE)
    return seconds_until_end(sock, since=start)


@story
def http1_head_octet_by_octet(gateway, worker):
    start = time.monotonic()
    return seconds_until_end(gateway.client_socket(), since=start, dribble=octets(
        b"GET /health HTTP/1.1\r\nHost: a\r\nX-Slow: very\r\n\r\n"))


@story
def settings_never_acknowledged(gateway, worker):
    peer = gateway.h2(auto=())
    time.sleep(15)
    peer.round_trip()
    return "alive"


@story
def header_block_never_finished(gateway, worker):
    peer = gateway.h2()
    start = time.monotonic()
    peer.send(frame(1, END_STREAM, 1, peer.block_of(grpc_head())))
    return seconds_until_end(peer.sock, since=start)


@story
def header_block_frame_by_frame(gateway, worker):
    peer = gateway.h2()
    start = time.monotonic()
    peer.send(frame(1, END_STREAM, 1, peer.block_of(grpc_head())))
    return seconds_until_end(peer.sock, since=start,
                             dribble=octets(frame(9, 0, 1, b"\x00\x01x\x01y") * 5))


@story
def a_quiet_client(gateway, worker):
    """CL-45: no idle timeout after the handshake, and answers still come."""
    peer = gateway.h2()
    until = time.monotonic() + 30
    while time.monotonic() < until:
        if select.select([peer.sock], [], [], until - time.monotonic())[0]:
            peer.pump(time.monotonic() + 1)
        if peer.closed:
            return f"closed by {peer.closed}"
    peer.round_trip()
    return "alive"


@story
def one_ping_a_second(gateway, worker):
    peer = gateway.h2()
    for _ in range(40):
        peer.round_trip()
        time.sleep(1)
    return "alive"


@story
def pings_while_nothing_is_read(gateway, worker):
    """L6: answers queue up behind data that the client does not take: closed after 10 s
    without progress. (The windows are open, the worker sends without end.)"""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16_384)
    sock.settimeout(60)
    sock.connect(gateway.client)
    client = Peer(sock, client=True, first_settings={4: 2**31 - 1}, connection_credit=1 << 30)
    client.ack_of_settings()
    stream = client.open(grpc_head())
    _, tunnel = worker.take()
    sid = tunnel.wait(HEADERS).stream
    tunnel.headers(sid, [(":status", "200")])
    client.head(stream)
    start = idle_since = time.monotonic()
    sent = 0
    while time.monotonic() - idle_since < 1:
        room = min(tunnel.room(sid), 16_384)
        if room > 0:
            tunnel.spend(sid, room)
            tunnel.data(sid, bytes(room))
            idle_since, sent = time.monotonic(), sent + room
            assert sent < 64 << 20, "taken without end from the worker"
        tunnel.drain_now()
        time.sleep(0 if room > 0 else 0.05)
    client.send(ping() * 200)
    # The client's end of its session is seen by the worker, for the client itself reads nothing.
    tunnel.ends(timeout=100)
    return time.monotonic() - start


# --- the worker's port ----------------------------------------------------------------------

@story
def connect_head_never_finished(gateway, worker):
    start = time.monotonic()
    sock = gateway.worker_socket()
    sock.sendall(connect_head("nobody", "nothing")[:-2])
    return seconds_until_end(sock, since=start)


@story
def connect_head_octet_by_octet(gateway, worker):
    start = time.monotonic()
    return seconds_until_end(gateway.worker_socket(), since=start,
                             dribble=octets(connect_head("nobody", "nothing")))


@story
def nothing_on_the_workers_port(gateway, worker):
    start = time.monotonic()
    return seconds_until_end(gateway.worker_socket(), timeout=150, since=start)


@story
def poll_without_work(gateway, worker):
    start = time.monotonic()
    answer = worker.poll(timeout=100)
    first = time.monotonic() - start
    worker.ask()
    client = gateway.h2()
    client.open(grpc_head(), end_stream=True)
    return answer, first, worker.answer().kind


@story
def wait_of_thirty_seconds(gateway, worker):
    with gateway.h2() as client:
        start = time.monotonic()
        head = client.head(client.open(grpc_head(), end_stream=True), timeout=100)
        return head.grpc_status, time.monotonic() - start


def quiet_tunnel(gateway, worker, acknowledges):
    """A stream is open and nobody says a word."""
    client = gateway.h2()
    start = time.monotonic()
    client.open(grpc_head())
    _, tunnel = worker.take(auto=("settings", "ping") if acknowledges else ("settings",))
    tunnel.wait(HEADERS)
    pings, most = [], 60 if acknowledges else 150
    while time.monotonic() - start < most and not tunnel.closed:
        if select.select([tunnel.sock], [], [], 0.5)[0]:
            tunnel.pump(time.monotonic() + 1)
        while any(event.kind == PING for event in tunnel.events):
            tunnel.wait(PING)
            pings.append(time.monotonic() - start)
    return pings, tunnel.closed, time.monotonic() - start


@story
def quiet_tunnel_that_acknowledges(gateway, worker):
    return quiet_tunnel(gateway, worker, True)


@story
def quiet_tunnel_that_is_dead(gateway, worker):
    return quiet_tunnel(gateway, worker, False)


@story
def worker_never_speaks_http2(gateway, worker):
    """CONNECT, and then no SETTINGS."""
    with gateway.h2() as client:
        stream = client.open(grpc_head(), end_stream=True)
        start = time.monotonic()
        line = worker.dial(worker.poll())
        assert line.answer(body=False).status == 200
        took, said = seconds_until_end(line.sock, timeout=150, since=start)
        return took, said, client.head(stream)


@story
def worker_begins_late(gateway, worker):
    """Its process is busy when the tunnel comes: it loads a model, or holds a lock."""
    with gateway.h2() as client:
        stream = client.open(grpc_head(), end_stream=True)
        line = worker.dial(worker.poll())
        time.sleep(14)
        assert line.answer(body=False).status == 200
        tunnel = worker.serve(line)
        tunnel.headers(tunnel.wait(HEADERS).stream, [(":status", "200")], end_stream=True)
        return client.head(stream).status


@story
def worker_never_acknowledges_settings(gateway, worker):
    client = gateway.h2()
    stream = client.open(grpc_head(), end_stream=True)
    _, tunnel = worker.take(auto=("ping",))
    sid = tunnel.wait(HEADERS).stream
    time.sleep(15)
    tunnel.headers(sid, [(":status", "200")], end_stream=True)
    return client.head(stream).status


# --- the tests ------------------------------------------------------------------------------

class Stories:
    """Every story on one gateway, at once."""

    def __init__(self, gateways):
        self.results, self.threads = {}, []
        for (name, function), gateway in zip(STORIES.items(), gateways, strict=True):
            thread = threading.Thread(target=self.tell, args=(name, function, gateway))
            thread.start()
            self.threads.append(thread)

    def tell(self, name, function, gateway):
        try:
            with FakeWorker(gateway) as worker:
                self.results[name] = function(gateway, worker)
        except BaseException:
            self.results[name] = AssertionError(traceback.format_exc())

    def __getitem__(self, name):
        assert name in self.results, "still waiting after 200 s"
        if isinstance(self.results[name], BaseException):
            raise self.results[name]
        return self.results[name]


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """Stories that wait for work need a queue of their own; the others share one gateway."""
    shared = Gateway.serve(tmp_path_factory.mktemp("slow"))
    alone = {name: Gateway.serve(tmp_path_factory.mktemp(name[:20])) for name in (
        "poll_without_work", "wait_of_thirty_seconds", "quiet_tunnel_that_acknowledges",
        "quiet_tunnel_that_is_dead", "pings_while_nothing_is_read", "worker_never_speaks_http2",
        "worker_never_acknowledges_settings", "worker_begins_late")}
    stories = Stories([alone.get(name, shared) for name in STORIES])
    deadline = time.monotonic() + 200
    for thread in stories.threads:
        thread.join(max(deadline - time.monotonic(), 0))
    yield stories
    for running in (shared, *alone.values()):
        assert running.alive(), f"the gateway died:\n{running.log_tail()}"
        running.stop()


slow = pytest.mark.timeout(400)


@slow
@pytest.mark.parametrize("name", ["nothing_at_all", "half_a_preface", "preface_octet_by_octet",
                                  "no_first_settings", "http1_head_octet_by_octet"])
def test_handshake_has_ten_seconds(told, name):
    took, said = told[name]
    assert took and 9 < took < 50, f"closed after {took} s, said {said!r}"


@slow
def test_first_settings_are_missed_by_name(told):
    _, said = told["no_first_settings"]
    assert said_goaway(said) == SETTINGS_TIMEOUT, said


@slow
def test_settings_need_no_acknowledgement(told):
    assert told["settings_never_acknowledged"] == "alive"
    assert told["worker_never_acknowledges_settings"] == "200"


@slow
@pytest.mark.parametrize("name", ["header_block_never_finished", "header_block_frame_by_frame"])
def test_header_block_has_ten_seconds(told, name):
    took, said = told[name]
    assert took and 9 < took < 50, f"closed after {took} s"
    assert said_goaway(said) == ENHANCE_YOUR_CALM, said


@slow
@pytest.mark.parametrize("name", ["connect_head_never_finished", "connect_head_octet_by_octet"])
def test_connect_head_has_ten_seconds(told, name):
    took, said = told[name]
    assert took and 9 < took < 50, f"closed after {took} s"
    assert said.startswith(b"HTTP/1.1 408 "), said


@slow
def test_ln8_idle_worker_connection_is_closed(told):
    """LN-8 allows 60 s; the first head has ten (L10)."""
    took, _ = told["nothing_on_the_workers_port"]
    assert took and 9 < took < 140, f"closed after {took} s"


@slow
def test_cl45_quiet_client_stays(told):
    assert told["a_quiet_client"] == "alive"


@slow
def test_one_ping_a_second_is_honest(told):
    assert told["one_ping_a_second"] == "alive"


@slow
def test_answers_that_cannot_be_delivered(told):
    took = told["pings_while_nothing_is_read"]
    assert 9 < took < 100, f"closed after {took:.1f} s"


@slow
def test_poll_is_answered_204_after_thirty_seconds(told):
    answer, took, then = told["poll_without_work"]
    assert answer is None and 29 < took < 90, (answer, took)
    assert then == "new"


@slow
def test_cl22_wait_is_thirty_seconds_by_default(told):
    status, took = told["wait_of_thirty_seconds"]
    assert status == "4" and 29 < took < 90, (status, took)


@slow
def test_quiet_tunnel_is_asked_after_thirty_seconds(told):
    pings, closed, took = told["quiet_tunnel_that_acknowledges"]
    assert pings and 28 < pings[0] < 55 and not closed, (pings, closed, took)


@slow
def test_dead_tunnel_is_closed_after_forty_five_seconds(told):
    pings, closed, took = told["quiet_tunnel_that_is_dead"]
    assert pings and closed and 43 < took < 140, (pings, closed, took)


@slow
def test_worker_that_says_nothing_after_its_connect(told):
    took, said, head = told["worker_never_speaks_http2"]
    assert took and 44 < took < 140, f"closed after {took} s"
    assert b"alive?!?" not in said, "it was asked again before it had begun"
    assert (head.status, head.grpc_status) == ("502", "14"), str(head)


@slow
def test_worker_may_be_slow_to_begin(told):
    assert told["worker_begins_late"] == "200"


