"""Gateways that know each other by their files: what a connection goes through that reaches the wrong one,
frame by frame, and everything that may be said to a gateway's cluster port."""

import json
import os
import signal
import threading
import time
import uuid

import pytest

import grpcserver
import prelude
import rawh2
from fakeworker import FakeWorker, Line, connect_head
from gateway import VERSION, Gateway, dead_port, free_port, grpc_head, plain_head, until
from nvcf_bed import Callback
from nvcf_stage import Watch
from rawh2 import DATA, HEADERS, PING, SETTINGS
from test_nvcf import Caller

SECRET = "what these gateways have in common"
OK = [(":status", "200"), ("content-type", "application/grpc"), ("grpc-status", "0")]
KEPT = 'park = "unclean"\npark_window = "5m"\npark_yield = "1h"\nwait = "20s"'
MIB = 1 << 20
# What nobody waits longer for than this, on the slowest machine.
AT_ONCE = 5


class Pair:
    """Two gateways, `first` and `second`; each has a worker's poll of its own."""

    def __init__(self, directory, cores=None):
        self.directory, self.cores = directory, cores
        self.secret = directory / "secret"
        self.secret.write_text(f"{SECRET}\n")
        self.ports = [free_port(), free_port()]
        self.gateways = [self.start(0), self.start(1)]

    def start(self, index, secret=None):
        mine, other = self.ports[index], self.ports[1 - index]
        table = (f'[cluster]\nsecret_file = "{secret or self.secret}"\n'
                 f'listen = "127.0.0.1:{mine}"\nnode = {index + 1}\n'
                 f'nodes = [{{ node = {2 - index}, relay = "127.0.0.1:{other}" }}]')
        return Gateway.serve(self.directory, f"node{index + 1}-{time.monotonic_ns()}",
                             session=KEPT, more=table, cores=self.cores)

    @property
    def first(self):
        return self.gateways[0]

    @property
    def second(self):
        return self.gateways[1]

    def restart(self, index, **options):
        self.gateways[index].kill()
        self.gateways[index] = self.start(index, **options)
        return self.gateways[index]

    def name(self, gateway):
        return json.loads(gateway.get("/info")[2])["node"]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for gateway in self.gateways:
            gateway.stop()


@pytest.fixture(scope="module", params=[1, 2], ids=["one core", "two cores"])
def pair(request, tmp_path_factory):
    with Pair(tmp_path_factory.mktemp("pair"), request.param) as pair:
        yield pair
        for gateway in pair.gateways:
            assert gateway.alive() and "panicked" not in gateway.log_text(), gateway.log_tail()


@pytest.fixture
def own_pair(tmp_path):
    with Pair(tmp_path) as pair:
        yield pair


@pytest.fixture
def worker(pair):
    with FakeWorker(pair.first) as fake:
        yield fake


def dial(gateway, work, **options):
    """A CONNECT that reaches this gateway, whoever made its token."""
    line = Line(gateway.worker)
    line.send(connect_head(work.token, work.request_id, work.uri.path, **options))
    return line


def session(worker, owner, other, **options):
    """A session of the owner whose callback reached the other one: (client, stream, tunnel)."""
    client = owner.h2()
    stream = client.open(grpc_head(), end_stream=True)
    work = worker.poll()
    line = dial(other, work)
    answer = line.answer(body=False)
    assert answer.status == 200, answer
    return client, stream, worker.serve(line, **options), work


def answers(tunnel, client, stream):
    request = tunnel.wait(HEADERS)
    tunnel.headers(request.stream, OK, end_stream=True)
    head = client.head(stream)
    assert head.status == "200" and head.grpc_status == "0", str(head)
    return head


# --- a callback that reaches the other one --------------------------------------------------------

def test_a_callback_is_relayed_to_its_owner(pair, worker):
    watch, owners = Watch(pair.second), Watch(pair.first)
    client, stream, tunnel, work = session(worker, pair.first, pair.second)
    with client:
        head = answers(tunnel, client, stream)
        assert head.get("nvcf-reqid") == work.request_id
        # Both ways, more than any window holds.
        stream = client.open(grpc_head())
        request = tunnel.wait(HEADERS)
        payload = os.urandom(2 * MIB)
        sending = threading.Thread(target=client.send_body, args=(stream, payload))
        sending.start()
        assert tunnel.body(request.stream)[0] == payload
        sending.join()
        tunnel.headers(request.stream, [(":status", "200")])
        sending = threading.Thread(target=tunnel.send_body, args=(request.stream, payload))
        sending.start()
        client.head(stream)
        assert client.body(stream)[0] == payload
        sending.join()
    assert watch.moved("ringway_relays_total", cause="callback", outcome="relayed") == 1
    assert owners.moved("ringway_relays_taken_total", cause="callback", outcome="taken") == 1
    assert owners.moved("worker_connect_total", result="accepted") == 1
    assert watch.moved("worker_connect_total") == 0
    tunnel.close()
    until(lambda: pair.second.metric("ringway_relays_active", cause="callback") == 0,
          what="the relay's end")


def test_a_callback_that_names_another_session_is_its_owners_to_refuse(pair, worker):
    """The owner's answer comes back as it is: 401, 403 and the texts of contract 4.2."""
    with pair.first.h2() as client:
        client.open(grpc_head(), end_stream=True)
        work = worker.poll()
        line = Line(pair.second.worker)
        line.send(connect_head(work.token, str(uuid.uuid4()), work.uri.path))
        direct = Line(pair.first.worker)
        direct.send(connect_head(work.token, str(uuid.uuid4()), work.uri.path))
        relayed, own = line.answer(), direct.answer()
        assert (relayed.status, relayed.body) == (own.status, own.body)
        assert relayed.status >= 400
        # The token is still good for whom it was made.
        again = dial(pair.second, work)
        assert again.answer(body=False).status == 200
        for each in (line, direct, again):
            each.close()


@pytest.mark.parametrize("token", ["A" * 64, "z" * 64, "short"])
def test_a_token_that_nobody_made_is_refused_where_it_comes(pair, token):
    watch = Watch(pair.second)
    with Line(pair.second.worker) as line:
        line.send(connect_head(token, str(uuid.uuid4())))
        assert line.answer().status == 403
    assert watch.moved("ringway_relays_total", outcome="relayed") == 0


# --- a client that comes back to the other one ----------------------------------------------------

def parked_session(pair, worker):
    """(id, tunnel)"""
    client, stream, tunnel, work = session(worker, pair.first, pair.first)
    answers(tunnel, client, stream)
    client.abort()
    until(lambda: any(row["requestId"] == work.request_id and row["state"] == "parked"
                      for row in pair.first.sessions()), what="it is parked")
    return work.request_id, tunnel


def test_a_client_gets_its_tunnel_through_the_other_gateway(pair, worker):
    """The client was greeted by one gateway and is served by the other, and is told nothing twice; what it has
    asked of the one holds at the other: its windows, its frames' size, its PING."""
    request_id, tunnel = parked_session(pair, worker)
    watch = Watch(pair.second)
    small = {rawh2.INITIAL_WINDOW_SIZE: 1_000}
    client = rawh2.Peer(pair.second.client_socket(), client=True, first_settings=small,
                        auto=("settings", "ping"))
    with client:
        client.ack_of_settings()
        client.send(rawh2.ping(b"01234567"))
        client.wait(PING)
        client.events.clear()
        stream = client.open(grpc_head(reqid=request_id), end_stream=True)
        request = tunnel.wait(HEADERS)
        tunnel.headers(request.stream, [(":status", "200")])
        tunnel.data(request.stream, b"x" * 3_000, end_stream=True)
        head = client.head(stream)
        assert head.get("nvcf-reqid") == request_id
        # No more than the window it has told the other gateway of.
        client.round_trip()
        got = sum(len(event.data) for event in client.events if event.kind == DATA)
        assert got == 1_000, got
        client.send(rawh2.window_update(stream, 2_000))
        assert len(client.body(stream)[0]) == 3_000
        told = [event for event in client.events if event.kind in (SETTINGS, PING)]
        assert not told, [str(event) for event in told]
        # Pinned from now on.
        stream = client.open(grpc_head(), end_stream=True)
        answers(tunnel, client, stream)
    assert watch.moved("ringway_relays_total", cause="client", outcome="relayed") == 1
    until(lambda: pair.second.metric("ringway_relays_active", cause="client") == 0,
          what="the relay's end")
    tunnel.close()


def test_everything_at_once(pair, worker):
    """Preface, SETTINGS, and a request whose body comes with it, in one segment, and before the
    gateway has said a word."""
    request_id, tunnel = parked_session(pair, worker)
    client = rawh2.Peer(pair.second.client_socket(), client=True, start=False)
    with client:
        client.next_stream = 3
        client.send(rawh2.PREFACE, rawh2.settings(),
                    rawh2.frame(HEADERS, rawh2.END_HEADERS, 1,
                                client.block_of(grpc_head(reqid=request_id))),
                    rawh2.frame(DATA, rawh2.END_STREAM, 1, b"y" * 10_000))
        request = tunnel.wait(HEADERS)
        assert tunnel.body(request.stream)[0] == b"y" * 10_000
        tunnel.headers(request.stream, OK, end_stream=True)
        assert client.head(1).get("nvcf-reqid") == request_id
    tunnel.close()


def test_http1_behind_a_preflight(pair, worker):
    request_id, tunnel = parked_session(pair, worker)
    watch = Watch(pair.second)
    with Line(pair.second.client) as line:
        line.send("OPTIONS /echo HTTP/1.1\r\nHost: a\r\nOrigin: http://b\r\n"
                  "Access-Control-Request-Method: POST\r\n\r\n")
        assert line.answer().status == 200
        head = dict(plain_head(reqid=request_id))
        fields = "".join(f"{name}: {value}\r\n" for name, value in head.items()
                         if not name.startswith(":"))
        line.send(f"POST /echo HTTP/1.1\r\nHost: a\r\n{fields}Content-Length: 2\r\n\r\nhi")
        # Its tunnel speaks HTTP/2, so the owner asks the worker for another one.
        work = worker.poll(slots=0, holds=[request_id])
        assert work.kind == "reconnect" and work.request_id == request_id
    assert watch.moved("ringway_relays_total", cause="client", outcome="relayed") == 1
    tunnel.close()


def test_requests_without_credentials_are_answered_where_they_come(pair, worker):
    """E1 and E2 need no owner."""
    request_id, tunnel = parked_session(pair, worker)
    watch = Watch(pair.second)
    for who, code in ((dict(key=None), "16"), (dict(function=None), "3")):
        with pair.second.h2() as client:
            stream = client.open(grpc_head(reqid=request_id, **who), end_stream=True)
            assert client.head(stream).grpc_status == code
    assert watch.moved("ringway_relays_total", cause="client") == 0
    tunnel.close()


def test_ids_that_name_nodes_at_random(pair):
    """Whoever makes up ids gets E7, and nobody is bothered with them."""
    owners = Watch(pair.first)
    for _ in range(50):
        made_up = uuid.UUID(int=uuid.uuid4().int & ~(0xf << 76) | 8 << 76)
        with pair.second.h2() as client:
            stream = client.open(grpc_head(reqid=str(made_up)), end_stream=True)
            head = client.head(stream, timeout=AT_ONCE)
            assert head.grpc_status == "5", str(head)
    assert owners.moved("ringway_relays_taken_total", cause="client", outcome="taken") == 0


# --- the owner is not there -----------------------------------------------------------------------

def test_an_owner_that_has_gone_and_one_that_has_come_again(own_pair):
    """A peer that cannot be brought to its owner is told at once, and never that a token is bad while it may be
    good: 503, and 403 when another process has taken the owner's place."""
    with FakeWorker(own_pair.first) as worker, own_pair.first.h2() as client:
        request_id, _ = parked_session(own_pair, worker)
        client.open(grpc_head(), end_stream=True)
        work = worker.poll()
        own_pair.first.kill()
        for _ in range(2):
            with dial(own_pair.second, work) as line:
                assert line.answer(timeout=AT_ONCE).status == 503
        with own_pair.second.h2() as other:
            stream = other.open(grpc_head(reqid=request_id), end_stream=True)
            assert other.head(stream, timeout=AT_ONCE).grpc_status == "5"
        own_pair.restart(0)
        until(lambda: connect_status(own_pair.second, work) == 403, what="403", every=0.2)


def connect_status(gateway, work):
    with dial(gateway, work) as line:
        return line.answer().status


def test_an_owner_that_keeps_silent(own_pair):
    """500 ms are all it has: then the worker is told to come again, the client goes on without."""
    with FakeWorker(own_pair.first) as worker:
        request_id, _ = parked_session(own_pair, worker)
        watch = Watch(own_pair.second)
        own_pair.first.signal(signal.SIGSTOP)
        try:
            with own_pair.second.h2() as client:
                stream = client.open(grpc_head(reqid=request_id), end_stream=True)
                assert client.head(stream, timeout=AT_ONCE).grpc_status == "5"
            assert watch.moved("ringway_relays_total", cause="client", outcome="late") == 1
        finally:
            own_pair.first.signal(signal.SIGCONT)


# --- the cluster port -----------------------------------------------------------------------------

def bad_preludes(me):
    """Name, how its octets are made, the verdict, and the outcome that is counted."""
    good = prelude.prelude(me)
    other = (me[0] + 1, me[1])
    return {
        "a wrong MAC": (lambda sender: good + bytes(prelude.MAC), prelude.FORGED, "forged"),
        "another secret": (lambda sender: sender.signed("a secret of some other cluster", good),
                           prelude.FORGED, "forged"),
        "another challenge": (lambda sender: good + prelude.mac(SECRET, bytes(32), good),
                              prelude.FORGED, "forged"),
        "a version to come": (lambda sender: sender.signed(SECRET, prelude.prelude(
            me, version=99)), prelude.OTHER_VERSION, "version"),
        "an unknown kind": (lambda sender: sender.signed(SECRET, prelude.prelude(
            me, kind=77)), prelude.GARBLED, "garbled"),
        "a rest too short": (lambda sender: sender.signed(SECRET, prelude.prelude(
            me, rest=b"")), prelude.GARBLED, "garbled"),
        "a rest too long": (lambda sender: sender.signed(SECRET, prelude.prelude(
            me, rest=bytes(9_000))), prelude.GARBLED, "garbled"),
        "something else": (lambda sender: b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" * 4,
                           prelude.GARBLED, "garbled"),
        "for another node": (lambda sender: sender.signed(SECRET, prelude.prelude(other)),
                             prelude.ELSEWHERE, "elsewhere"),
        "a kind of its own, unsigned": (lambda sender: prelude.prelude(
            me, kind=prelude.LEAVE, rest=b"") + bytes(prelude.MAC), prelude.FORGED, "forged"),
    }


@pytest.mark.parametrize("name", bad_preludes((1, 1)))
def test_a_prelude_that_is_none(pair, name):
    me = prelude.node(pair.name(pair.first))
    make, verdict, outcome = bad_preludes(me)[name]
    watch = Watch(pair.first)
    with prelude.Sender(pair.first.cluster) as sender:
        assert len(sender.challenge) == prelude.CHALLENGE
        sender.says(make(sender))
        assert sender.verdict() == verdict
        assert sender.is_over()
    watch.counts(1, "ringway_relays_taken_total", outcome=outcome)


def test_the_log_says_that_preludes_are_refused(pair):
    """Once a second at most, and with how many were left out."""
    watch = Watch(pair.first)

    def told():
        with prelude.Sender(pair.first.cluster) as sender:
            sender.says(b"GET / HTTP/1.1\r\n\r\n")
            sender.verdict()
        return [line for line in watch.log().splitlines() if "a prelude was refused" in line]
    lines = until(lambda: len(said := told()) >= 2 and said, every=0.1, what="two lines")
    assert any("left_out" in line or "count" in line for line in lines), lines


@pytest.mark.parametrize("part", ["nothing", "half"])
def test_a_prelude_that_does_not_come(pair, part):
    """Whoever keeps silent has half a second."""
    me = prelude.node(pair.name(pair.first))
    watch = Watch(pair.first)
    with prelude.Sender(pair.first.cluster) as sender:
        began = time.monotonic()
        if part == "half":
            sender.says(prelude.prelude(me)[:20])
        assert sender.verdict() is None
        assert time.monotonic() - began >= 0.4
    watch.counts(1, "ringway_relays_taken_total", outcome="late")


def test_a_prelude_that_is_cut_off(pair):
    me = prelude.node(pair.name(pair.first))
    watch = Watch(pair.first)
    with prelude.Sender(pair.first.cluster) as sender:
        sender.says(prelude.prelude(me)[:20])
    watch.counts(1, "ringway_relays_taken_total", cause="none")


def test_a_prelude_once_said_is_not_good_again(pair):
    """What an onlooker has heard proves nothing on another connection."""
    me = prelude.node(pair.name(pair.first))
    with prelude.Sender(pair.first.cluster) as honest:
        octets = honest.signed(SECRET, prelude.prelude(me))
        honest.says(octets)
        assert honest.verdict() == prelude.TAKEN
        with prelude.Sender(pair.first.cluster) as onlooker:
            assert onlooker.challenge != honest.challenge
            onlooker.says(octets)
            assert onlooker.verdict() == prelude.FORGED


def test_a_flood_of_bad_preludes_keeps_no_good_one_waiting(pair, worker):
    """Good ones are answered in their time meanwhile."""
    me, ended = prelude.node(pair.name(pair.first)), threading.Event()
    sent = []
    # Where a gateway is known to be, all are heard.
    with prelude.Sender(pair.first.cluster) as good:
        good.says(good.signed(SECRET, prelude.prelude(me)))
        assert good.verdict() == prelude.TAKEN

    def flood():
        while not ended.is_set():
            with prelude.Sender(pair.first.cluster) as sender:
                sender.says(prelude.prelude(me) + bytes(prelude.MAC))
                sent.append(sender.verdict())

    threads = [threading.Thread(target=flood, daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    watch = Watch(pair.second)
    try:
        for _ in range(10):
            client, stream, tunnel, _ = session(worker, pair.first, pair.second)
            answers(tunnel, client, stream)
            client.close()
            tunnel.close()
    finally:
        ended.set()
        for thread in threads:
            thread.join()
    assert watch.moved("ringway_relays_total", cause="callback", outcome="relayed") == 10
    assert len(sent) > 100 and set(sent) == {prelude.FORGED}, len(sent)


def test_who_proves_nothing_is_soon_not_heard(pair):
    """Its connections are closed as they come; others are heard as ever."""
    me, watch = prelude.node(pair.name(pair.first)), Watch(pair.first)
    outcomes = []
    for _ in range(1000):
        with prelude.Sender(pair.first.cluster, "127.0.0.9") as sender:
            if not sender.challenge:
                break
            sender.says(prelude.prelude(me) + bytes(prelude.MAC))
            outcomes.append(sender.verdict())
    assert 64 <= len(outcomes) < 1000 and set(outcomes) == {prelude.FORGED}, len(outcomes)
    assert watch.moved("ringway_relays_taken_total", cause="none", outcome="unheard") >= 1
    for source in (None, "127.0.0.10"):
        with prelude.Sender(pair.first.cluster, source) as good:
            good.says(good.signed(SECRET, prelude.prelude(me)))
            assert good.verdict() == prelude.TAKEN


# --- secrets --------------------------------------------------------------------------------------

def test_two_clusters_are_strangers(own_pair, tmp_path):
    """A token of another cluster is one that nobody made."""
    (tmp_path / "other").write_text("the secret of somebody else\n")
    own_pair.restart(1, secret=tmp_path / "other")
    with FakeWorker(own_pair.first) as worker, own_pair.first.h2() as client:
        client.open(grpc_head(), end_stream=True)
        work = worker.poll()
        with dial(own_pair.second, work) as line:
            assert line.answer().status == 403
        with dial(own_pair.first, work) as line:
            assert line.answer(body=False).status == 200


# --- the old proxy side by side -------------------------------------------------------------------

def with_fallback(tmp_path, name, port, worker_port=None):
    return Gateway.serve(tmp_path, name, worker_port=worker_port,
                         more=f'[cluster]\nfallback = "http://127.0.0.1:{port}"')


def test_what_nobody_here_made_goes_to_the_old_proxy(tmp_path):
    """Whole, with one line more; what it says comes back, and so does its end."""
    with Callback() as old, with_fallback(
            tmp_path, "new", old.listener.getsockname()[1]) as gateway:
        token, request_id = "A" * 64, str(uuid.uuid4())
        with Line(gateway.worker) as line:
            line.send(connect_head(token, request_id) + b"and what follows")
            dialled = old.next()
            assert dialled.line == "CONNECT /v1/proxy HTTP/1.1"
            assert dialled.fields["authorization"] == f"Bearer {token}"
            assert dialled.fields["x-request-id"] == request_id
            assert dialled.fields["via"] == "1.1 ringway"
            dialled.accept()
            assert line.answer(body=False).status == 200
            assert dialled.says(b"") == b""
            got = b""
            while len(got) < 16:
                got += dialled.sock.recv(100)
            assert got == b"and what follows"
            dialled.sock.sendall(b"hello")
            until(lambda: line.read(time.monotonic() + 30) or b"hello" in line.inbox,
                  what="what it says")
            dialled.close()
            assert line.ends() == b"hello"
        with Line(gateway.worker) as line:
            line.send(connect_head(token, request_id))
            old.next().refuse(403)
            assert line.answer().status == 403
        assert gateway.metric("ringway_relays_total", cause="fallback", outcome="relayed") == 2


def test_the_old_proxy_is_not_there(tmp_path):
    with with_fallback(tmp_path, "new", dead_port()) as gateway, Line(gateway.worker) as line:
        line.send(connect_head("A" * 64, str(uuid.uuid4())))
        assert line.answer(timeout=AT_ONCE).status == 503


def test_two_that_are_each_others_fallback(tmp_path):
    """One hop, ever."""
    port = free_port()
    with with_fallback(tmp_path, "one", port) as one, \
            with_fallback(tmp_path, "two", one.worker[1], worker_port=port) as two:
        with Line(one.worker) as line:
            line.send(connect_head("A" * 64, str(uuid.uuid4())))
            assert line.answer(timeout=AT_ONCE).status == 403
        assert one.metric("ringway_relays_total", cause="fallback", outcome="relayed") == 1
        relayed = [value for series, value in two.metrics().items()
                   if series.startswith("ringway_relays_total") and "fallback" in series]
        assert sum(relayed) == 0, relayed


def test_a_proxy_that_stands_beside(nvcf_bed):
    """The workers' route leads to the new one only: sessions of the old one are served all the same.
    A gateway without a secret stands for it."""
    bed = nvcf_bed()
    bed.make_streams(VERSION)
    with grpcserver.Server(name="one") as server:
        bed.worker(f"127.0.0.1:{server.port}", slots=8)
        port = free_port()
        old = bed.ready_gateway(SELF_WORKER_FQDN=f"http://127.0.0.1:{port}")
        (bed.directory / "cluster").write_text(f"{SECRET}\n")
        new = bed.ready_gateway(
            RINGWAY__CLUSTER__SECRET_FILE=str(bed.directory / "cluster"),
            RINGWAY__CLUSTER__FALLBACK=f"http://127.0.0.1:{old.worker[1]}",
            SELF_WORKER_FQDN=f"http://127.0.0.1:{port}",
            RINGWAY__LISTEN__WORKER=f"127.0.0.1:{port}")
        for gateway in (old, new):
            with Caller(gateway) as caller:
                assert caller.says() == "one"
                with Caller(new if gateway is old else old, reqid=caller.session) as again:
                    assert again.says() == "one" and again.session == caller.session
        assert new.metric("ringway_relays_total", cause="fallback", outcome="relayed") >= 1
