"""WebSockets through the gateway, with Python's `websockets` (contract 3.12, 3.2.1)."""

import contextlib
import os
import struct

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from fakeworker import FakeWorker, Line
from gateway import FUNCTION, KEY, credentials, until
from test_http1 import Tunnel, request

MIB = 1 << 20
UPGRADE = ("Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
           "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n")


def open_socket(gateway, **options):
    host, port = gateway.client
    options.setdefault("additional_headers", credentials())
    options.setdefault("open_timeout", 60)
    return connect(f"ws://{host}:{port}/ws", max_size=None, compression=None, **options)


def test_messages_come_back(gateway):
    """CL-47, CL-36, CL-37."""
    with open_socket(gateway) as socket:
        headers = socket.response.headers
        assert headers["set-cookie"] == f"nvcf-request-id={headers['nvcf-reqid']}"
        for message in ("hello", b"\0\1\2", "", b"x" * 125, b"y" * 126, "z" * 65_536):
            socket.send(message)
            assert socket.recv(timeout=60) == message


@pytest.mark.alone
def test_a_large_message(gateway):
    payload = os.urandom(16 * MIB)
    with open_socket(gateway) as socket:
        socket.send(payload)
        assert socket.recv(timeout=150) == payload


def test_a_fragmented_message(gateway):
    parts = [os.urandom(size) for size in (1, 0, 1000, 100_000, 7)]
    with open_socket(gateway) as socket:
        socket.send(iter(parts))
        assert socket.recv(timeout=60) == b"".join(parts)


def test_ping_is_answered(gateway):
    with open_socket(gateway) as socket:
        assert socket.ping(b"payload").wait(30)


@pytest.mark.parametrize("code", [1000, 1001, 1003, 1007, 1011, 1013, 3000, 3999, 4000, 4999])
def test_close_codes_of_the_client_come_back(gateway, code):
    """The function answers a Close with the same code."""
    with open_socket(gateway) as socket:
        socket.close(code, "because")
    assert (socket.protocol.close_rcvd.code, socket.protocol.close_sent.code) == (code, code)


@pytest.mark.parametrize("code", [1000, 1001, 1002, 1008, 1012, 3456, 4999])
def test_close_codes_of_the_function_arrive(bare, code):
    """The worker sends Close and closes at once: the frame is not overtaken by the end."""
    line = Line(bare.client)
    line.send(request("GET /ws HTTP/1.1", UPGRADE))
    with FakeWorker(bare) as worker:
        tunnel = Tunnel(worker)
        tunnel.head()
        frame = b"\x88" + bytes([2 + 3]) + struct.pack(">H", code) + b"bye"
        tunnel.line.send(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n"
                         b"Upgrade: websocket\r\n\r\n" + frame)
        tunnel.line.close()
        assert line.answer(body=False).status == 101
        assert line.ends() == frame
    line.close()


def test_credentials_in_protocols(gateway):
    """CL-1: a browser can set no other field; the function chooses one of its own protocols."""
    protocols = ["chat", f"authorization.{KEY}", f"function-id.{FUNCTION}"]
    with open_socket(gateway, additional_headers=[], subprotocols=protocols) as socket:
        assert socket.subprotocol == "chat"
        socket.send("hello")
        assert socket.recv(timeout=60) == "hello"
    with pytest.raises(InvalidStatus) as refused:
        with open_socket(gateway, additional_headers=[],
                         subprotocols=["authorization.wrong", f"function-id.{FUNCTION}"]):
            pass
    assert refused.value.response.status_code == 401


def test_only_credentials_offered(gateway):
    protocols = [f"authorization.{KEY}", f"function-id.{FUNCTION}"]
    with open_socket(gateway, additional_headers=[], subprotocols=protocols) as socket:
        assert socket.subprotocol == protocols[0]


def test_a_function_without_websockets(gateway):
    """Not a 101: an ordinary response, here gRPC's "unimplemented"."""
    host, port = gateway.client
    with pytest.raises(InvalidStatus) as refused:
        with connect(f"ws://{host}:{port}/nowhere", additional_headers=credentials()):
            pass
    assert refused.value.response.headers["grpc-status"] == "12"


def test_a_client_that_vanishes_ends_the_worker(bare):
    """No half-close (CL-47)."""
    with FakeWorker(bare) as worker, Line(bare.client) as line:
        line.send(request("GET /ws HTTP/1.1", UPGRADE) + "early")
        tunnel = Tunnel(worker)
        assert "early" not in tunnel.head()
        assert tunnel.line.inbox == b""
        tunnel.line.send("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n"
                         "Upgrade: websocket\r\n\r\n")
        assert line.answer(body=False).status == 101
        line.send(" last words")
        line.sock.shutdown(1)
        assert tunnel.line.ends() == b"early last words"
        until(lambda: not bare.open_sessions(), what="the session's end")


def test_a_mismatching_101_is_502(bare):
    with FakeWorker(bare) as worker, Line(bare.client) as line:
        line.send(request("GET /ws HTTP/1.1", UPGRADE))
        tunnel = Tunnel(worker)
        tunnel.head()
        tunnel.line.send("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n"
                         "Upgrade: other\r\n\r\nraw")
        assert line.answer().status == 502


def test_a_websocket_is_counted(own_gateway):
    with open_socket(own_gateway) as socket:
        socket.send("hello")
        assert socket.recv(timeout=60) == "hello"
        [session] = own_gateway.open_sessions()
        assert session["streams"] == 1 and session["bytesIn"] > 0 and session["bytesOut"] > 0
    until(lambda: any("http_server" in series and '"101"' in series and value == 1
                      for series, value in own_gateway.metrics().items()), what="a 101 counted")
    until(lambda: not own_gateway.open_sessions(), what="the session's end")


def test_many_at_once(gateway):
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(open_socket(gateway)) for _ in range(20)]
        for n, socket in enumerate(sockets):
            socket.send(f"message {n}")
        for n, socket in enumerate(sockets):
            assert socket.recv(timeout=60) == f"message {n}"
        assert len({socket.response.headers["nvcf-reqid"] for socket in sockets}) == 20
    with pytest.raises(ConnectionClosed):
        sockets[0].send("too late")
