"""Peers that vanish without FIN: the cable is pulled. Each is noticed by what the settings say:
not sooner, and not as late as by anything else."""

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
    return until(line, what="the attachment's end", every=0.05)


def noticed(gateway, since):
    """The gateway has taken its client for lost; how long after `since` that was. What else
    could notice it is set to an hour, so a slow machine has its time."""
    until(lambda: gateway.metric("active_connections_total") == 0, timeout=120,
          what="the loss to be noticed", every=0.05)
    return time.monotonic() - since


@pytest.mark.parametrize("settings, least", [
    # Nothing under way: probes, and what bounds them.
    ({"idle": "1s", "user_timeout": "2s"}, 1),
    # HTTP/2's own question, with TCP none the wiser.
    ({"client_ping": "10s", "client_ping_timeout": "1s"}, 10),
], ids=["probes", "pings"])
def test_an_open_stream_whose_client_vanishes(cable, serve, attach, settings, least):
    gateway = serve(session=NOT_PARKED, more=keepalive(**settings), host=cable.here)
    with FakeWorker(gateway) as worker:
        session = attach(gateway, worker, client=far_client(cable, gateway))
        begun = time.monotonic()
        session.answer()
        session.client.head(session.stream)
        cable.pull()
        took = noticed(gateway, begun)
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
        begun = time.monotonic()
        session.tunnel.data(session.request.stream, b"nobody will read this")
        assert noticed(gateway, begun) >= 1.5
        assert closed(gateway)["close_code"] == "timeout"


def test_a_short_break_is_none(cable, serve, attach):
    gateway = serve(session=NOT_PARKED, host=cable.here,
                    more=keepalive(idle="1s", probes=20, user_timeout="20s"))
    with FakeWorker(gateway) as worker:
        session = attach(gateway, worker, client=far_client(cable, gateway))
        session.answer()
        session.client.head(session.stream)
        cable.pull()
        session.tunnel.data(session.request.stream, b"late, but whole")
        time.sleep(2)  # the break itself
        cable.plug()
        session.client.wait(DATA, timeout=60)
        assert gateway.metric("active_connections_total") == 1


def test_a_websocket_client_that_vanishes_is_noticed_by_tcp(cable, serve):
    gateway = serve(session=NOT_PARKED, host=cable.here,
                    more=keepalive(idle="1s", user_timeout="2s"))
    with FakeWorker(gateway) as worker:
        sock = cable.connect(gateway.client)
        sock.sendall((f"GET /ws HTTP/1.1\r\nHost: echo.test\r\nAuthorization: Bearer {KEY}\r\n"
                      f"Function-Id: {FUNCTION}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
                      "Sec-WebSocket-Version: 13\r\n"
                      "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n").encode())
        line = worker.dial(worker.poll())
        assert line.answer(body=False).status == 200
        while b"\r\n\r\n" not in line.inbox:
            line.read(time.monotonic() + 30)
        line.send("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket"
                  "\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n")
        assert sock.recv(65_536).startswith(b"HTTP/1.1 101")
        cable.pull()
        noticed(gateway, time.monotonic())
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
        head = client.head(stream, timeout=120)
        assert head.grpc_status == "14", str(head)
        line = closed(gateway)
        assert line["eviction_reason"] == "worker_closed" and line["close_code"] == "timeout", line
