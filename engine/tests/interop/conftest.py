"""Fixtures: running gateways, workers and a bystander who must not notice anything."""

import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from fakeworker import FakeWorker
from gateway import Gateway, grpc_head
from rawh2 import HEADERS

HERE = Path(__file__).parent
TRAILERS_ONLY = [(":status", "200"), ("content-type", "application/grpc"), ("grpc-status", "0")]
measured = []


@pytest.fixture(scope="session")
def gateway(tmp_path_factory):
    """`ringway dev` with its echo function, shared by tests that leave no trace."""
    with Gateway.dev(tmp_path_factory.mktemp("gateway")) as running:
        yield running
        assert running.alive(), f"the gateway died:\n{running.log_tail()}"


@pytest.fixture
def own_gateway(tmp_path):
    """`ringway dev` for one test alone."""
    with Gateway.dev(tmp_path) as running:
        yield running


@pytest.fixture
def serve(tmp_path):
    """Starts `ringway serve` with the tests' configuration, as often as asked."""
    started = []

    def start(**settings):
        started.append(Gateway.serve(tmp_path, name=f"serve{len(started)}", **settings))
        return started[-1]

    yield start
    for running in started:
        died = running.run.poll()
        running.stop()
        assert died is None or died >= 0, f"died of signal {-died}:\n{running.log_tail()}"


@pytest.fixture
def bare(serve):
    """`ringway serve` with no worker: the test brings one. What a client leaves behind goes at
    once: parking has tests of its own."""
    return serve(session='park = "never"')


@pytest.fixture
def worker(bare):
    with FakeWorker(bare) as fake:
        yield fake


class Session:
    """A client and a worker with one stream between them, both raw."""

    def __init__(self, gateway, worker, client, stream, work, tunnel, request):
        self.gateway, self.worker, self.client, self.stream = gateway, worker, client, stream
        self.work, self.tunnel, self.request = work, tunnel, request

    def answer(self, status="200", fields=(), end_stream=False):
        """The worker's response head on the first stream."""
        self.tunnel.headers(self.request.stream, [(":status", status), *fields], end_stream)

    def another(self, fields=()):
        """One more request on the same connection and tunnel goes through and back."""
        tag = f"{self.client.next_stream}"
        stream = self.client.open([*grpc_head(), ("x-tag", tag), *fields], end_stream=True)
        request = self.tunnel.wait(HEADERS, where=lambda e: e.get("x-tag") == tag)
        self.tunnel.headers(request.stream, TRAILERS_ONLY, end_stream=True)
        head = self.client.head(stream)
        assert head.status == "200" and head.grpc_status == "0" and head.end_stream, str(head)
        return request

    def close(self):
        self.client.close()
        self.tunnel.close()


@pytest.fixture
def attach():
    """Makes a session: a raw client's request has reached a raw worker."""
    made = []

    def make(gateway, worker, client=None, head=None, end_stream=False, **tunnel):
        client = client or gateway.h2()
        stream = client.open(head or grpc_head(), end_stream)
        work, served = worker.take(**tunnel)
        request = served.wait(HEADERS)
        made.append(Session(gateway, worker, client, stream, work, served, request))
        return made[-1]

    yield make
    for session in made:
        session.close()


@pytest.fixture
def nvcf_bed(tmp_path):
    """Makes what a gateway in `nvcf` mode stands between; the arguments are those of `Bed`."""
    # Who runs other tests needs no client of NATS.
    from nvcf_bed import Bed
    made = []

    def make(*arguments, **options):
        made.append(Bed(tmp_path, *arguments, **options))
        return made[-1]

    yield make
    for bed in made:
        bed.close()


class Bystander:
    def __init__(self, gateway, name, kind):
        self.name = name
        self.run = subprocess.Popen(
            [sys.executable, str(HERE / "bystander.py"), *map(str, gateway.client), kind,
             str(gateway.pid)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        line = self.run.stdout.readline()
        assert line == "running\n", f"bystander: {line!r} {self.run.stderr.read()}"
        self.answered, self.report = threading.Event(), ""
        self.reading = threading.Thread(target=self._read, daemon=True)
        self.reading.start()

    def _read(self):
        for line in self.run.stdout:
            if line == "answered\n":
                self.answered.set()
            else:
                self.report += line
        self.answered.set()  # it ended: nobody needs to wait for it

    def waits(self):
        """Ends it; (milliseconds waited, of which the machine was busy with others)."""
        self.run.stdin.close()
        self.reading.join(100)
        assert self.run.wait(10) == 0, f"the bystander's call failed:\n{self.run.stderr.read()}"
        return json.loads(self.report)

    def was_served(self):
        """Every call of it was answered, and rightly; half of them within a second of the
        gateway's time, on the slowest machine. How long they took is measured, not judged."""
        waits = self.waits()
        net = sorted(took - queued for took, queued in waits)
        assert net, "the bystander was not there"
        p50, p99 = net[len(net) // 2], net[int(len(net) * 0.99)]
        most = max(took for took, _ in waits)
        measured.append(f"{self.name}: {len(net)} calls, p50 {p50:.1f} ms, p99 {p99:.1f} ms, max "
                        f"{net[-1]:.1f} ms (with the machine's other work {most:.1f} ms)")
        assert p50 < 1_000, f"a bystander waited: {sorted(waits)[-10:]}"


@pytest.fixture
def bystander(request):
    """Starts an honest client beside an attack: one that calls the echo function, or, where
    there is none, one that sends PINGs."""
    started = []

    def start(gateway, kind="call"):
        started.append(Bystander(gateway, request.node.name, kind))
        return started[-1]

    yield start
    for running in started:
        running.run.kill()
        running.run.wait()


@pytest.fixture
def measure(request):
    """Adds a line to the figures printed at the end."""
    return lambda text: measured.append(f"{request.node.name}: {text}")


def pytest_terminal_summary(terminalreporter):
    if measured:
        terminalreporter.section("measured")
        for line in measured:
            terminalreporter.write_line(line)
