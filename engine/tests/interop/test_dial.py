"""Functions with `dial`: the gateway connects to their server itself."""

import collections
import http.client
import signal
import socket
import threading
import time
from concurrent import futures

import grpc
import pytest

import grpcserver
from echo import EchoMessage, Stub, message
from fakeworker import FakeWorker
from gateway import (credentials, dead_port, free_port, grpc_head, plain_head, revive,
                     until)
from rawh2 import DATA, HEADERS, Peer

FUNCTION = "77777777-7777-4777-8777-777777777777"
VERSION = "88888888-8888-4888-8888-888888888888"
WHO = tuple(credentials(function=FUNCTION))
WORKER_KEY = "dialled-worker-key"


def start(serve, server):
    return serve(more=f"""
[[function]]
id = "{FUNCTION}"
version = "{VERSION}"
tenants = ["dev"]
worker_keys = ["{WORKER_KEY}"]
dial = "{server}"
""")


@pytest.fixture(scope="module")
def function():
    with grpcserver.Server() as server:
        yield server


def channel_to(gateway):
    host, port = gateway.client
    return grpc.insecure_channel(f"{host}:{port}", options=[
        *grpcserver.UNLIMITED, ("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)])


def say(text):
    return EchoMessage(payload=text)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_calls_of_all_kinds(serve, function, host):
    running = start(serve, f"{host}:{function.port}")
    with channel_to(running) as channel:
        echo = Stub(channel)
        parts = [b"%d" % n for n in range(100)]
        payload = bytes(range(256)) * 65_536
        assert echo.Unary(say(payload), metadata=WHO, timeout=60).payload == payload
        assert echo.ClientStream(map(say, parts), metadata=WHO, timeout=60).payload == (
            b"".join(parts))
        assert len(list(echo.ServerStream(EchoMessage(payload=b"s", count=1000), metadata=WHO,
                                          timeout=60))) == 1000
        answers = echo.BidiStream(map(say, parts), metadata=WHO, timeout=60)
        assert [m.payload for m in answers] == parts
        (session,) = running.open_sessions()
        assert session["tunnel"].endswith(f":{function.port}"), session
        assert running.metric("worker_token_issued_total") == 0
        assert running.metric("worker_connections_active") == 1
    until(lambda: not running.open_sessions(), what="the session's end")


def test_each_client_has_a_connection_and_comes_back_by_its_id(serve, function):
    running = start(serve, f"127.0.0.1:{function.port}")

    def once(channel, **who):
        _, call = Stub(channel).Unary.with_call(
            say(b"x"), metadata=credentials(function=FUNCTION, **who), timeout=60)
        return dict(call.initial_metadata())["nvcf-reqid"]

    with channel_to(running) as one, channel_to(running) as two, channel_to(running) as three:
        first, second = once(one), once(two)
        assert first != second
        assert once(three, reqid=first) == first
        assert len(running.open_sessions()) == 2
        assert running.metric("worker_connections_active") == 3


def test_a_server_that_is_away_is_said_at_once(serve):
    port = free_port()
    running = start(serve, f"127.0.0.1:{port}")
    with channel_to(running) as channel:
        with pytest.raises(grpc.RpcError) as failure:
            Stub(channel).Unary(say(b"x"), metadata=WHO, timeout=60)
        # Not what comes at the end of the wait.
        assert failure.value.code() == grpc.StatusCode.UNAVAILABLE
        assert f"the server of function {FUNCTION} cannot be reached" in failure.value.details()
        until(lambda: "the server refused the connection" in running.log_text(), what="the log")
        with grpcserver.Server(port):
            assert Stub(channel).Unary(say(b"y"), metadata=WHO, timeout=60).payload == b"y"


def test_a_name_that_is_not_found_keeps_nothing_from_starting(serve):
    running = start(serve, "nowhere.invalid:50051")
    until(lambda: "nowhere.invalid:50051" in running.log_text(), what="the log")
    client = running.h2()
    stream = client.open(plain_head(function=FUNCTION))
    assert client.wait(HEADERS, stream=stream).get(":status") == "503"


def test_a_plain_http2_server(serve):
    """Raw frames on both sides: the preface comes first, and bodies pass both ways."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(30)
        running = start(serve, f"127.0.0.1:{listener.getsockname()[1]}")
        client = running.h2()
        stream = client.open(plain_head(function=FUNCTION), end_stream=False)
        client.data(stream, b"question", end_stream=True)
        server = Peer(listener.accept()[0], client=False)
        request = server.wait(HEADERS)
        assert request.get(":path") == "/echo" and request.get("nvcf-reqid")
        assert server.wait(DATA).payload == b"question"
        server.headers(request.stream, [(":status", "203"), ("x-of", "server")])
        server.data(request.stream, b"answer", end_stream=True)
        head = client.wait(HEADERS, stream=stream)
        assert (head.get(":status"), head.get("x-of")) == ("203", "server")
        assert client.wait(DATA, stream=stream).payload == b"answer"
        # The client leaves: its connection to the server is closed.
        client.close()
        server.ends(10)


def test_a_lost_server_is_dialled_anew(serve):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(30)
        running = start(serve, f"127.0.0.1:{listener.getsockname()[1]}")
        client = running.h2()
        lost = client.open(grpc_head(function=FUNCTION), end_stream=True)
        server = Peer(listener.accept()[0], client=False)
        server.wait(HEADERS)
        server.abort()
        assert client.wait(HEADERS, stream=lost).get("grpc-status") == "14"
        stream = client.open(grpc_head(function=FUNCTION), end_stream=True)
        server = Peer(listener.accept()[0], client=False)
        request = server.wait(HEADERS)
        server.headers(request.stream, [(":status", "200"),
                                        ("content-type", "application/grpc")])
        server.data(request.stream, message(b"hello"))
        server.headers(request.stream, [("grpc-status", "0")], end_stream=True)
        assert client.wait(DATA, stream=stream).payload == message(b"hello")
        server.close()


def closing_server():
    """A server that ends its connection with each response, as many plain ones do."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=256)

    def serve_one(sock):
        with sock:
            octets = b""
            while b"\r\n\r\n" not in octets:
                more = sock.recv(65_536)
                if not more:
                    return
                octets += more
            sock.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok")

    def serve_all():
        while True:
            try:
                sock = listener.accept()[0]
            except OSError:
                return
            threading.Thread(target=serve_one, args=(sock,), daemon=True).start()

    threading.Thread(target=serve_all, daemon=True).start()
    return listener


def plain_answers(gateway, count):
    """So many requests, one after the other on one kept connection: how often which status."""
    kept = http.client.HTTPConnection(*gateway.client, timeout=30)
    seen = collections.Counter()
    for _ in range(count):
        kept.request("GET", "/x", headers=dict(WHO))
        answer = kept.getresponse()
        answer.read()
        seen[answer.status] += 1
    kept.close()
    return seen


def test_a_server_that_closes_after_each_response_serves_one_client(serve):
    """No worker is asked: what a client may ask of workers has no part in it."""
    with closing_server() as listener:
        running = start(serve, f"127.0.0.1:{listener.getsockname()[1]}")
        assert plain_answers(running, 900) == {200: 900}


def test_a_server_that_refuses_costs_nothing_that_stays(serve):
    port = dead_port()
    running = start(serve, f"127.0.0.1:{port}")
    plain_answers(running, 1)
    files, lines = running.open_files(), len(running.log_lines())
    since = time.monotonic()
    assert plain_answers(running, 2_000) == {503: 2_000}
    # HTTP/2 too, and many at once.
    client = running.h2()
    for _ in range(20):
        streams = [client.open(grpc_head(function=FUNCTION), end_stream=True) for _ in range(50)]
        for stream in streams:
            assert client.head(stream).grpc_status == "14"
    client.close()
    until(lambda: running.open_files() <= files, what="no descriptors left open")
    assert len(running.log_lines()) - lines <= 20 + time.monotonic() - since
    with grpcserver.Server(revive(port)), channel_to(running) as channel:
        assert Stub(channel).Unary(say(b"y"), metadata=WHO, timeout=60).payload == b"y"


def test_workers_are_told_that_none_is_needed(serve, function):
    running = start(serve, f"127.0.0.1:{function.port}")
    with FakeWorker(running, key=WORKER_KEY, function=FUNCTION, version=VERSION) as worker:
        answer = worker.poll()
        assert answer.status == 403 and b"dials this function's server itself" in answer.body


def test_forty_clients_at_once(serve, function):
    running = start(serve, f"127.0.0.1:{function.port}")

    def once(n):
        with channel_to(running) as channel:
            return Stub(channel).Unary(say(b"%d" % n), metadata=WHO, timeout=60).payload

    with futures.ThreadPoolExecutor(16) as pool:
        assert list(pool.map(once, range(40))) == [b"%d" % n for n in range(40)]
    until(lambda: not running.open_sessions(), what="all sessions gone")
    until(lambda: running.metric("worker_connections_active") == 0, what="no tunnels")


def test_a_name_is_looked_up_again_on_reload(serve, function):
    running = start(serve, f"localhost:{function.port}")
    for _ in range(2):
        with channel_to(running) as channel:
            assert Stub(channel).Unary(say(b"named"), metadata=WHO, timeout=60).payload == b"named"
        before = running.metric("ringway_reloads_total", what="configuration", outcome="ok")
        running.signal(signal.SIGHUP)
        until(lambda: running.metric("ringway_reloads_total", what="configuration",
                                     outcome="ok") > before, what="the reload")
