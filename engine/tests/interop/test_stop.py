"""Stopping: not ready at once, GOAWAY in two steps, open streams finish, exit 0; a second
signal ends at once (contract 10, design 4.2, 4.5)."""

import queue
import signal
import socket
import threading
import time

import grpc
import pytest

from echo import PATH, EchoMessage, Stub, message
from fakeworker import FakeWorker
from gateway import credentials, grpc_head, until
from rawh2 import DATA, GOAWAY, HEADERS, NO_ERROR, REFUSED_STREAM, RST_STREAM
from test_grpcio import channel_to

WHO = tuple(credentials())


def held(gateway):
    """A raw client with a bidirectional stream in mid-conversation."""
    peer = gateway.h2()
    stream = peer.open(grpc_head(PATH["BidiStream"]))
    peer.data(stream, message(b"one"))
    assert peer.head(stream).status == "200"
    assert peer.wait(DATA, stream).data == message(b"one")
    return peer, stream


def finish(peer, stream):
    peer.data(stream, message(b"two"), end_stream=True)
    octets, trailers = peer.body(stream)
    assert octets == message(b"two") and trailers.grpc_status == "0"


def readiness(gateway):
    try:
        return gateway.get("/ready")[0]
    except OSError:
        return None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_idle_gateway_exits_at_once(own_gateway, number):
    own_gateway.signal(number)
    assert own_gateway.exit_code() == 0


def test_idle_sessions_do_not_hold_it_up(own_gateway):
    peer, stream = held(own_gateway)
    finish(peer, stream)
    own_gateway.signal()
    assert peer.wait(GOAWAY).code == NO_ERROR
    peer.ends()
    assert own_gateway.exit_code() == 0


def test_goaway_in_two_steps_and_open_streams_finish(own_gateway):
    peer, stream = held(own_gateway)
    assert readiness(own_gateway) == 200
    own_gateway.signal()
    first = peer.wait(GOAWAY)
    assert (first.last_stream, first.code) == (2**31 - 1, NO_ERROR), str(first)
    second = peer.wait(GOAWAY)
    assert (second.last_stream, second.code) == (stream, NO_ERROR), str(second)
    assert readiness(own_gateway) == 503
    assert own_gateway.alive()
    finish(peer, stream)
    assert own_gateway.exit_code() == 0
    peer.ends()


def test_a_hundred_streams_lose_nothing(own_gateway):
    """grpcio, a hundred conversations; all go on after SIGTERM and end well."""
    together, told = threading.Barrier(101, timeout=100), threading.Event()
    results = queue.Queue()

    def talk(channel, n):
        def questions():
            yield EchoMessage(payload=b"before %d" % n)
            together.wait()
            assert told.wait(100)
            for m in range(20):
                yield EchoMessage(payload=b"after %d.%d" % (n, m))
        try:
            call = Stub(channel).BidiStream(questions(), metadata=WHO, timeout=200)
            results.put([answer.payload for answer in call])
        except grpc.RpcError as error:
            results.put(error)

    channels = [channel_to(own_gateway) for _ in range(4)]
    threads = [threading.Thread(target=talk, args=(channels[n % 4], n)) for n in range(100)]
    for thread in threads:
        thread.start()
    together.wait()
    own_gateway.signal()
    until(lambda: readiness(own_gateway) == 503, what="not ready")
    told.set()
    answers = [results.get(timeout=100) for _ in threads]
    wrong = [answer for answer in answers if not isinstance(answer, list) or len(answer) != 21]
    assert not wrong, f"{len(wrong)} of 100 were lost, e.g. {wrong[0]}"
    for channel in channels:
        channel.close()
    assert own_gateway.exit_code() == 0
    for thread in threads:
        thread.join()


def test_while_it_drains(own_gateway):
    """/health and /ready are 503, /live is 200; new connections and new streams are refused,
    the old stream goes on."""
    peer, stream = held(own_gateway)
    fresh = own_gateway.h2()  # connected, without a stream
    own_gateway.signal()
    until(lambda: readiness(own_gateway) == 503, what="not ready")
    assert own_gateway.get("/live")[0] == 200
    assert own_gateway.get("/metrics")[0] == 200
    for _ in range(2):
        peer.wait(GOAWAY)
    late = peer.open(grpc_head())
    peer.data(late, message(b"late"), end_stream=True)
    peer.round_trip()
    refused = [e for e in peer.events if e.stream == late]
    assert all(e.kind == RST_STREAM and e.code == REFUSED_STREAM for e in refused), refused
    assert fresh.wait(GOAWAY).code == NO_ERROR

    def refuses():
        try:
            with socket.create_connection(own_gateway.client, 5) as sock:
                sock.settimeout(5)
                return sock.recv(1) == b""
        except ConnectionError:
            return True
        except TimeoutError:
            return False
    until(refuses, what="new connections refused")
    finish(peer, stream)
    assert own_gateway.exit_code() == 0


def test_health_on_the_clients_port_while_it_drains(own_gateway):
    """A probe with a connection of old sees 503."""
    peer, stream = held(own_gateway)
    own_gateway.signal()
    first = peer.wait(GOAWAY)
    # Between the two steps new streams are still taken.
    assert first.last_stream == 2**31 - 1
    finish(peer, stream)
    assert own_gateway.exit_code() == 0


def test_tunnels_stay_open_while_their_streams_run(serve, attach):
    """The worker's port stays open too: a session that was starting comes up (contract 10)."""
    running = serve()
    with FakeWorker(running) as worker:
        session = attach(running, worker)
        starting = running.h2()
        waiting = starting.open(grpc_head(), end_stream=True)
        until(lambda: running.metric("worker_token_issued_total") == 2, what="second token")
        running.signal()
        session.client.wait(GOAWAY)
        work = worker.poll()
        tunnel = worker.connect(work)
        tunnel.headers(tunnel.wait(HEADERS).stream, [(":status", "200")], end_stream=True)
        assert starting.head(waiting).status == "200"
        session.client.data(session.stream, b"more", end_stream=True)
        assert session.tunnel.wait(DATA, session.request.stream).data == b"more"
        session.answer(end_stream=True)
        assert session.client.head(session.stream).status == "200"
        session.tunnel.ends()
        assert running.exit_code() == 0


def test_drain_has_a_limit(serve, attach):
    """After `max` the rest is reset, and it still exits 0."""
    running = serve(drain='max = "1s"')
    with FakeWorker(running) as worker:
        session = attach(running, worker)
        session.answer()
        session.client.head(session.stream)
        start = time.monotonic()
        running.signal()
        # With RST_STREAM or by the close; never with a clean end.
        session.client.ends()
        # Sooner than by the sixty seconds that are usual.
        assert 0.8 < time.monotonic() - start < 30
        assert not [e for e in session.client.events if e.end_stream]
        assert running.exit_code() == 0
        session.tunnel.ends()


@pytest.mark.parametrize("first, second, code", [
    (signal.SIGTERM, signal.SIGTERM, 143), (signal.SIGINT, signal.SIGINT, 130),
    (signal.SIGTERM, signal.SIGINT, 130)], ids=["TERM-TERM", "INT-INT", "TERM-INT"])
def test_second_signal_ends_at_once(own_gateway, first, second, code):
    peer, _ = held(own_gateway)
    own_gateway.signal(first)
    peer.wait(GOAWAY)

    def ended():
        # What comes within 50 ms of the first, as the gateway sees it, is the same signal.
        if own_gateway.alive():
            own_gateway.signal(second)
        return not own_gateway.alive()
    until(ended, every=0.2, what="the end")
    assert own_gateway.exit_code() in (code, -int(second)), "exit code"


@pytest.mark.parametrize("method, path", [("POST", "/shutdown"), ("GET", "/shutdown"),
                                          ("POST", "/drain")])
def test_the_admin_port_can_stop_it(own_gateway, method, path):
    peer, stream = held(own_gateway)
    assert own_gateway.get(path, method)[0] in ((202,) if path == "/drain" else (200, 202))
    until(lambda: readiness(own_gateway) == 503, what="not ready")
    peer.wait(GOAWAY)
    finish(peer, stream)
    if path == "/shutdown":
        assert own_gateway.exit_code() == 0


def test_closed_sessions_are_counted_as_shutdown(serve, attach):
    running = serve(drain='max = "2s"')
    with FakeWorker(running) as worker:
        attach(running, worker)
        running.signal()
        text = until(lambda: running.exit_code() == 0 and running.log_text(), what="exit")
        assert "shutdown" in text, text
