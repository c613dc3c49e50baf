"""Peers that vanish without FIN: the cable is pulled. Each is noticed within the time that the
settings say, by what they say."""

import time

import pytest

import rawh2
from cable import Cable
from fakeworker import FakeWorker, Line
from gateway import KEY, FUNCTION, grpc_head, until
from rawh2 import DATA, HEADERS

NEVER = "1h"


@pytest.fixture
def cable():
    with Cable() as made:
        yield made


def keepalive(**settings):
    every = {"idle": NEVER, "interval": "1s", "probes": 2, "user_timeout": NEVER,
             "tunnel_ping": NEVER, "tunnel_write": NEVER, **settings}
    lines = (f"{name} = {value if isinstance(value, int) else repr(value)}".replace("'", '"')
             for name, value in every.items())
    return "[keepalive]\n" + "\n".join(lines)


NOT_PARKED = 'park = "never"'


def far_client(cable, gateway):
    peer = rawh2.Peer(cable.connect(gateway.client), client=True)
    peer.ack_of_settings()
    return peer


def closed(gateway):
    """The log's words about the attachment that was closed, once there is one."""
    def line():
        return next((line for line in gateway.log_lines() if "close_code" in line
                     and line.get("eviction_reason")), None)
    return until(line, timeout=20, what="the attachment's end", every=0.05)


def noticed(gateway, within, clients=0):
    """The gateway has taken its client for lost; how long that took."""
    begun = time.monotonic()
    until(lambda: gateway.metric("active_connections_total") == clients, timeout=within + 5,
          what="the loss to be noticed", every=0.05)
    took = time.monotonic() - begun
    assert took <= within, f"noticed after {took:.1f} s\n{gateway.log_tail()}"
    return took


@pytest.mark.parametrize("settings, least, most", [
    # Nothing under way: probes, and what bounds them.
    ({"idle": "1s", "user_timeout": "2s"}, 1, 6),
    # HTTP/2's own question, with TCP none the wiser.
    ({"client_ping": "10s", "client_ping_timeout": "1s"}, 10, 14),
], ids=["probes", "pings"])
def test_an_open_stream_whose_client_vanishes(cable, serve, attach, settings, least, most):
    gateway = serve(session=NOT_PARKED, more=keepalive(**settings), host=cable.here)
    with FakeWorker(gateway) as worker:
        session = attach(gateway, worker, client=far_client(cable, gateway))
        session.answer()
        session.client.head(session.stream)
        cable.pull()
        took = noticed(gateway, most)
        assert took >= least - 0.5, f"noticed after {took:.1f} s: by something else"
        line = closed(gateway)
        assert line["eviction_reason"] == "client_closed" and line["close_code"] == "timeout", line
        session.tunnel.ends()  # and the worker is free


def test_what_is_on_its_way_to_a_client_that_vanishes(cable, serve, attach):
    """Keep-alive does not run while data waits for its acknowledgement; the user timeout does."""
    gateway = serve(session=NOT_PARKED, more=keepalive(user_timeout="2s"), host=cable.here)
    with FakeWorker(gateway) as worker:
        session = attach(gateway, worker, client=far_client(cable, gateway))
        session.answer()
        session.client.head(session.stream)
        cable.pull()
        session.tunnel.data(session.request.stream, b"nobody will read this")
        assert noticed(gateway, 8) >= 1.5
        assert closed(gateway)["close_code"] == "timeout"


def test_a_short_break_is_none(cable, serve, attach):
    gateway = serve(session=NOT_PARKED, more=keepalive(idle="1s", user_timeout="20s"), host=cable.here)
    with FakeWorker(gateway) as worker:
        session = attach(gateway, worker, client=far_client(cable, gateway))
        session.answer()
        session.client.head(session.stream)
        cable.pull()
        session.tunnel.data(session.request.stream, b"late, but whole")
        time.sleep(2)  # the break itself
        cable.plug()
        session.client.wait(DATA, timeout=20)
        assert gateway.metric("active_connections_total") == 1


def test_a_websocket_client_that_vanishes_is_noticed_by_tcp(cable, serve):
    gateway = serve(session=NOT_PARKED, more=keepalive(idle="1s", user_timeout="2s"), host=cable.here)
    with FakeWorker(gateway) as worker:
        sock = cable.connect(gateway.client)
        sock.sendall((f"GET /ws HTTP/1.1\r\nHost: echo.test\r\nAuthorization: Bearer {KEY}\r\n"
                      f"Function-Id: {FUNCTION}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
                      "Sec-WebSocket-Version: 13\r\n"
                      "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n").encode())
        line = worker.dial(worker.poll())
        assert line.answer(body=False).status == 200
        while b"\r\n\r\n" not in line.inbox:
            line.read(time.monotonic() + 10)
        line.send("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket"
                  "\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n")
        assert sock.recv(65_536).startswith(b"HTTP/1.1 101")
        cable.pull()
        noticed(gateway, 6)
        line.ends()
        assert closed(gateway)["close_code"] == "timeout"


@pytest.mark.parametrize("settings", [
    {"idle": "1s", "user_timeout": "2s"},
    {"tunnel_ping": "1s", "tunnel_ping_timeout": "1s"},
], ids=["probes", "pings"])
def test_a_worker_that_vanishes(cable, serve, settings):
    gateway = serve(session=NOT_PARKED, more=keepalive(**settings), host=cable.here)
    with FakeWorker(gateway) as worker:
        client = gateway.h2()
        stream = client.open(grpc_head(), end_stream=True)
        work = worker.poll()
        line = cable.inside(lambda: worker.dial(work))
        assert isinstance(line, Line) and line.answer(body=False).status == 200
        worker.serve(line).wait(HEADERS)
        cable.pull()
        head = client.head(stream, timeout=8)
        assert head.grpc_status == "14", str(head)
        line = closed(gateway)
        assert line["eviction_reason"] == "worker_closed" and line["close_code"] == "timeout", line
