"""Several cores: a CONNECT, a poll or a returning client lands anywhere and is served all the
same; pooled users stay apart."""

import random
import re
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from conftest import TRAILERS_ONLY
from fakeworker import FakeWorker, Work
from gateway import FUNCTION, KEY, OTHER_KEY, grpc_head, until
from rawh2 import HEADERS, Closed, Silence

CORES = 2
TARGET = "/ringway.echo.v1.Echo/Unary"


@pytest.fixture
def two_cores(serve):
    return serve(cores=CORES, session='idle = "1h"')  # however long it takes to make them all


def sum_of(gateway, name):
    return sum(value for series, value in gateway.metrics().items()
               if re.split(r"[{ ]", series)[0] == name)


@pytest.mark.alone
def test_a_thousand_sessions_on_random_cores(two_cores, measure):
    """The kernel puts each worker's CONNECT on a core of its own choice; the token's home takes
    it from there. All are served, all stay apart, all serve again."""
    begun = time.monotonic()
    held = []
    with FakeWorker(two_cores) as worker:
        for _ in range(20):
            clients = [two_cores.h2() for _ in range(50)]
            streams = [client.open(grpc_head(extra=[("x-client", f"{len(held) + n}")]), True)
                       for n, client in enumerate(clients)]
            tunnels = {}
            for _ in clients:
                work, tunnel = worker.take(slots=50)
                request = tunnel.wait(HEADERS)
                assert request.get("nvcf-reqid") == work.request_id
                tunnels[request.get("x-client")] = tunnel, work.request_id
                tunnel.headers(request.stream, [*TRAILERS_ONLY, ("x-of", work.request_id)], True)
            for client, stream in zip(clients, streams):
                tunnel, session = tunnels[f"{len(held)}"]
                head = client.head(stream)
                assert head.get("x-of") == head.get("nvcf-reqid") == session, str(head)
                held.append((client, tunnel, session))
        took = time.monotonic() - begun
        rows = Counter(row["core"] for row in two_cores.open_sessions())
        assert sum(rows.values()) == len(held) == 1_000 and len(rows) == CORES, rows
        moved = sum_of(two_cores, "ringway_core_moves_total")
        assert 200 < moved, "hardly any CONNECT came to another core"
        random.shuffle(held)
        for client, tunnel, session in held:
            stream = client.open(grpc_head(), True)
            request = tunnel.wait(HEADERS, where=lambda e: e.stream > 1)
            assert request.get("nvcf-reqid") == session
            tunnel.headers(request.stream, TRAILERS_ONLY, True)
            assert client.head(stream).get("nvcf-reqid") == session
        measure(f"1 000 sessions in {took:.1f} s, {moved:.0f} connections changed cores, "
                f"sessions per core {dict(rows)}")
        for client, tunnel, _ in held:
            client.close()
    until(lambda: not two_cores.open_sessions(), what="no session is left")
    assert two_cores.metric("worker_connections_active") == 0


class Fleet:
    """Workers with one session each; every answer says whose it is."""

    def __init__(self, gateway, size):
        self.gateway, self.stopping = gateway, False
        self.sessions = {}
        self.crossed = []
        self.threads = [threading.Thread(target=self.work, args=(n,), daemon=True)
                        for n in range(size)]
        for thread in self.threads:
            thread.start()

    def work(self, number):
        with FakeWorker(self.gateway) as worker:
            holds = []
            while not self.stopping:
                try:
                    work = worker.poll(timeout=3, slots=0 if holds else 1, holds=holds)
                except Silence:
                    continue
                except (Closed, OSError):
                    return
                if not isinstance(work, Work):
                    continue
                holds = holds or [work.request_id]
                if work.request_id != holds[0]:
                    self.crossed.append((number, work.request_id))
                self.sessions[work.request_id] = f"worker-{number}"
                tunnel = worker.connect(work)
                threading.Thread(target=self.serve, args=(tunnel, number, holds[0]),
                                 daemon=True).start()

    def serve(self, tunnel, number, session):
        while not self.stopping:
            try:
                request = tunnel.wait(HEADERS, timeout=1)
            except Silence:
                continue
            except (Closed, OSError):
                return
            if request.get("nvcf-reqid") != session:
                self.crossed.append((number, str(request)))
            tunnel.headers(request.stream, [
                *TRAILERS_ONLY, ("x-worker", f"worker-{number}"),
                ("x-user-seen", request.get("x-user", ""))], True)


def unary(channel, user, key, session=None):
    """One call; (status code, its fields by name)."""
    call = channel.unary_unary(TARGET)
    metadata = [("authorization", f"Bearer {key}"), ("function-id", FUNCTION), ("x-user", user)]
    if session:
        metadata.append(("nvcf-reqid", session))
    try:
        # A trailers-only answer without a message is an error to a unary caller.
        _, done = call.with_call(b"", metadata=metadata, timeout=60)
    except grpc.RpcError as error:
        done = error
    fields = {**dict(done.initial_metadata() or ()), **dict(done.trailing_metadata() or ())}
    return done.code(), fields, done.details()


@pytest.mark.alone
def test_users_pooled_on_one_connection_stay_apart(two_cores):
    """Twenty users of two tenants share an intermediary's only connection; each names a session
    of its own, and nobody ever reaches another's."""
    fleet = Fleet(two_cores, 20)
    target = "{}:{}".format(*two_cores.client)
    users = [(f"user-{n}", (KEY, OTHER_KEY)[n % 2]) for n in range(20)]
    own, sessions = [], {}
    for user, key in users:
        own.append(grpc.insecure_channel(target, [("grpc.use_local_subchannel_pool", 1)]))
        _, fields, details = unary(own[-1], user, key)
        assert "nvcf-reqid" in fields, details
        sessions[user] = fields["nvcf-reqid"]
    assert len(set(sessions.values())) == 20
    pooled = grpc.insecure_channel(target, [("grpc.use_local_subchannel_pool", 1)])

    def ask(turn):
        user, key = turn
        _, fields, details = unary(pooled, user, key, sessions[user])
        assert fields.get("nvcf-reqid") == sessions[user], (user, fields, details)
        assert fields.get("x-worker") == fleet.sessions[sessions[user]], (user, fields)
        assert fields.get("x-user-seen") == user, (user, fields)

    turns = users * 40
    random.shuffle(turns)
    with ThreadPoolExecutor(20) as threads:
        list(threads.map(ask, turns))
    # Another tenant's session is nobody's business, on the same connection neither.
    code, fields, details = unary(pooled, "user-0", KEY, sessions["user-1"])
    assert code == grpc.StatusCode.INTERNAL and "NCA ID mismatch" in details, (code, fields)
    assert not fleet.crossed, fleet.crossed[:5]
    assert two_cores.metric("active_connections_total") == 21, "the pool is one connection"
    assert two_cores.metric("worker_connections_active") == 40
    fleet.stopping = True
    for channel in [*own, pooled]:
        channel.close()


def test_clients_are_spread_over_the_cores(two_cores, attach):
    """Whatever the kernel's hash says, no core is left without clients."""
    seen = set()
    with FakeWorker(two_cores) as worker:
        for _ in range(40):
            session = attach(two_cores, worker)
            session.answer(end_stream=True)
            seen |= {row["core"] for row in two_cores.open_sessions()}
            if len(seen) == CORES:
                return
    raise AssertionError(f"forty clients came to {seen} only")
