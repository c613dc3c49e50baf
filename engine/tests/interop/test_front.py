"""Behind a balancer: HAProxy speaks HTTP/1.1 to the gateway, WebSockets included, and sets the
credentials; the Autobahn cases run through both."""

import asyncio
import json
import logging
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import websockets
from websockets.sync.client import connect

from gateway import FUNCTION, KEY, Gateway, free_port, until
from test_programs import run

MIB = 1 << 20

HAPROXY = """
global
    maxconn 2000
defaults
    mode http
    timeout connect 5s
    timeout client 60s
    timeout server 60s
    timeout tunnel 60s
frontend front
    bind 127.0.0.1:{port}
    http-request set-header authorization "Bearer {key}"
    http-request set-header function-id {function}
    default_backend gateway
backend gateway
    server gateway {host}:{to}
"""


def start_front(gateway, directory):
    """An HAProxy before the gateway: (its port, its process)."""
    for _ in range(5):
        port = free_port()
        path = directory / "haproxy.cfg"
        host, to = gateway.client
        path.write_text(HAPROXY.format(port=port, host=host, to=to, key=KEY, function=FUNCTION))
        balancer = subprocess.Popen(["haproxy", "-db", "-f", str(path)], text=True,
                                    stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        try:
            until(lambda: balancer.poll() is not None or answers(port), what="HAProxy answers")
        except AssertionError:
            balancer.kill()
            raise
        # Losing the race for the port is no fault of anybody's.
        if balancer.poll() is None:
            return port, balancer
    raise AssertionError(balancer.stdout.read())


def answers(port):
    return run("curl", "-s", f"http://127.0.0.1:{port}/info").returncode == 0


@pytest.fixture
def front(gateway, tmp_path):
    """The port of an HAProxy before the gateway."""
    port, balancer = start_front(gateway, tmp_path)
    yield port
    balancer.kill()
    balancer.wait()


def test_haproxy_forwards_calls_over_http1(front):
    payload = os.urandom(3 * MIB)
    done = run("curl", "-sS", "-i", "--data-binary", "@-", f"http://127.0.0.1:{front}/echo",
               data=payload)
    head, body = done.stdout[:-len(payload)], done.stdout[-len(payload):]
    assert b" 200 " in head and b"nvcf-reqid: " in head, head[-800:]
    assert body == payload


def test_haproxy_keeps_one_session_on_a_connection(front):
    """curl reuses its connection, HAProxy reuses its own: the session stays."""
    url = f"http://127.0.0.1:{front}/echo"
    done = run("curl", "-sS", "-i", "-d", "a", url, "--next", "-sS", "-i", "-d", "b", url)
    ids = re.findall(rb"nvcf-reqid: (\S+)", done.stdout)
    assert len(ids) == 2 and ids[0] == ids[1], done.stdout


def test_websocket_through_haproxy(front):
    with connect(f"ws://127.0.0.1:{front}/ws", max_size=None, compression=None,
                 open_timeout=60) as socket:
        for message in ("text", b"\0binary", os.urandom(2 * MIB)):
            socket.send(message)
            assert socket.recv(timeout=60) == message
        socket.close(4001, "enough")
    assert socket.protocol.close_code == 4001


class Echo:
    """The `websockets` package's own echo, to compare with."""

    def __init__(self):
        self.port, self.ready = None, threading.Event()
        # The cases break the protocol on purpose.
        logging.getLogger("websockets").setLevel(logging.CRITICAL)
        threading.Thread(target=lambda: asyncio.run(self.serve()), daemon=True).start()
        assert self.ready.wait(30)

    async def serve(self):
        async def answer(socket):
            async for message in socket:
                await socket.send(message)

        async with websockets.serve(answer, "127.0.0.1", 0, max_size=None,
                                    compression=None) as server:
            self.port = server.sockets[0].getsockname()[1]
            self.ready.set()
            await asyncio.get_running_loop().create_future()


CHAPTERS = ("1.*", "2.*", "3.*", "4.*", "5.*", "6.*", "7.*", "10.*")


def autobahn(address, out, cases=CHAPTERS):
    """{case: behaviour} of the Autobahn cases of framing, pings, fragments, UTF-8 and closes."""
    cases = [part for case in cases for part in ("-i", case)]
    done = subprocess.run([Path(sys.executable).with_name("kosoku"), "-m", "fuzzingclient", *cases,
                           "-p", "4", "-o", str(out), address],
                          capture_output=True, text=True, timeout=140)
    index = next(out.rglob("index.json"), None)
    assert index, (done.returncode, done.stdout[-1500:], done.stderr[-1500:])
    (results,) = json.loads(index.read_text()).values()
    return {case: (seen["behavior"], seen.get("behaviorClose")) for case, seen in results.items()}


@pytest.mark.alone
def test_autobahn_cases_are_as_good_as_without_the_gateway(tmp_path, measure):
    """The same WebSocket server, asked directly and through HAProxy, gateway, tunnel and
    worker: each case behaves the same."""
    echo = Echo()
    direct = autobahn(f"ws://127.0.0.1:{echo.port}", tmp_path / "direct")
    assert len(direct) > 200, f"only {len(direct)} cases ran"
    with Gateway.dev(tmp_path, "--target", f"127.0.0.1:{echo.port}") as running:
        port, balancer = start_front(running, tmp_path)
        try:
            seen = autobahn(f"ws://127.0.0.1:{port}", tmp_path / "through")
            for again in ("second", "third"):
                # The program has time limits of its own: a slow machine exceeds some of them
                # now and then, what is wrong is wrong each time.
                if worse := worse_than(direct, seen):
                    seen |= autobahn(f"ws://127.0.0.1:{port}", tmp_path / again, sorted(worse))
        finally:
            balancer.kill()
            balancer.wait()
    measure(f"{len(good(seen))} of {len(seen)} cases good through the gateway, "
            f"{len(good(direct))} of {len(direct)} without it")
    assert not worse_than(direct, seen), worse_than(direct, seen)


def good(behaviours):
    return {case for case, behaviour in behaviours.items() if is_good(behaviour)}


def worse_than(direct, seen):
    return {case: (direct[case], seen.get(case)) for case in good(direct) - good(seen)}


def is_good(behaviour):
    return set(behaviour) <= {"OK", "INFORMATIONAL", "NON-STRICT", "UNCLEAN", None} \
        and behaviour[0] != "UNCLEAN"
