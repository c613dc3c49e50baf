"""A session survives its client: what breaks, who may come back, and what that costs
(design 3.2, 3.3, 5). grpcio before `ringway-worker` processes whose servers say their names, and
raw peers where the frames matter."""

import socket
import struct
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from comeback import (KEPT, Wire, count, dispatched, gone, nothing_is_left, parked, resumes, row)
from conftest import TRAILERS_ONLY
from crew import Answerer, Crew
from echo import EchoMessage, Stub
from fakeworker import FakeWorker, Line
from gateway import (OTHER_KEY, SECOND_FUNCTION, credentials, grpc_head, until)
from grpcserver import UNLIMITED
from rawh2 import CANCEL, GOAWAY, HEADERS, NO_ERROR, PING, RST_STREAM, goaway
from test_http1 import Tunnel, request
from test_sessions import message_of

CODE = grpc.StatusCode


def channel_to(port, host="127.0.0.1"):
    return grpc.insecure_channel(f"{host}:{port}", options=[
        *UNLIMITED, ("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)])


def say(text):
    return EchoMessage(payload=text)


def ask(channel, **who):
    """One call that succeeds; its fields."""
    answer, call = Stub(channel).Unary.with_call(say(b"whose?"), metadata=credentials(**who),
                                                 timeout=100)
    assert answer.payload == b"whose?"
    return dict(call.initial_metadata())


def refused(channel, **who):
    """One call that fails: (code, words, fields)."""
    with pytest.raises(grpc.RpcError) as failure:
        ask(channel, **who)
    error = failure.value
    fields = {**dict(error.initial_metadata() or ()), **dict(error.trailing_metadata() or ())}
    return error.code(), error.details(), fields


class Talk:
    """A conversation that stays open."""

    def __init__(self, channel, **who):
        self.over = threading.Event()
        self.answers = Stub(channel).BidiStream(self.questions(), metadata=credentials(**who),
                                                timeout=200)
        assert next(self.answers).payload == b"first"

    def questions(self):
        yield say(b"first")
        self.over.wait(200)

    def is_lost(self):
        with pytest.raises(grpc.RpcError):
            next(self.answers)
        self.over.set()


def lose(running, how="rst", **who):
    """A client makes a session, and is lost with a stream open: (id, worker)."""
    with Wire(running.client) as wire, channel_to(wire.port) as channel:
        fields = ask(channel, **who)
        talk = Talk(channel, **who)
        wire.cut(how)
        talk.is_lost()
        parked(running, fields["nvcf-reqid"])
        return fields["nvcf-reqid"], fields["x-worker"]


@pytest.fixture
def stand(serve, tmp_path):
    """A gateway and three workers; further settings by name."""
    crews = []

    def make(session=KEPT, slots=4, **settings):
        running = serve(session=session, **settings)
        crews.append(Crew(running, Answerer, tmp_path, slots=slots))
        return running, crews[-1]

    yield make
    for crew in crews:
        crew.__exit__()


# --- grpcio ---------------------------------------------------------------------------------

@pytest.mark.parametrize("cores", [1, 2])
@pytest.mark.parametrize("how", ["rst", "fin"])
def test_a_lost_client_comes_back_to_its_worker(stand, how, cores):
    """No dispatch, no token, no CONNECT; the id and the cookie as ever."""
    running, crew = stand(cores=cores)
    session, worker = lose(running, how)
    before = dispatched(running)
    with channel_to(running.client[1]) as channel:
        fields = ask(channel, reqid=session)
        assert (fields["nvcf-reqid"], fields["x-worker"]) == (session, worker), fields
        assert fields["set-cookie"] == f"nvcf-request-id={session}", fields
        # It is pinned like any other.
        fields = ask(channel)
        assert (fields["nvcf-reqid"], fields["x-worker"]) == (session, worker), fields
        assert "set-cookie" not in fields
        assert dispatched(running) == before
        assert resumes(running, "memory") == 1 and count(running, "ringway_parked_tunnels") == 0
        assert row(running, session)["state"] in ("attached", "active")
        talk = Talk(channel)
        talk.over.set()
    assert crew.said("tunnel open") == 1
    nothing_is_left(running)
    until(lambda: crew.said("session ended") == 1, what="the worker to be free")


def test_it_comes_back_on_any_core(stand):
    """Lost and back again and again, until it has come back both on the core where its tunnel
    was and on another."""
    running, crew = stand(cores=2)
    session, worker = lose(running)
    before, seen = dispatched(running), set()
    for turn in range(100):
        where = parked(running, session)["core"]
        with Wire(running.client) as wire, channel_to(wire.port) as channel:
            fields = ask(channel, reqid=session)
            assert (fields["nvcf-reqid"], fields["x-worker"]) == (session, worker), fields
            seen.add(row(running, session)["core"] == where)
            talk = Talk(channel)
            wire.cut(("rst", "fin")[turn % 2])
            talk.is_lost()
        if len(seen) == 2:
            break
    assert len(seen) == 2, f"always {seen} in a hundred turns"
    parked(running, session)
    assert dispatched(running) == before and resumes(running, "memory") == turn + 1
    assert crew.said("tunnel open") == 1
    assert count(running, "ringway_core_moves_total") > 0


@pytest.mark.parametrize("cores", [1, 2])
def test_another_credential_of_the_tenant_comes_back_too(stand, cores):
    running, _ = stand(cores=cores)
    session, worker = lose(running)
    before = dispatched(running)
    with channel_to(running.client[1]) as channel:
        fields = ask(channel, key="dev-key-two", reqid=session)
        assert (fields["nvcf-reqid"], fields["x-worker"]) == (session, worker), fields
        assert dispatched(running) == before


@pytest.mark.parametrize("cores", [1, 2])
def test_nobody_else_gets_it(stand, cores):
    """E8, E10; and it is still there for the one whose it is."""
    running, _ = stand(cores=cores)
    session, worker = lose(running)
    for text, who in (
            ("function ID mismatch", dict(function=SECOND_FUNCTION)),
            ("invoker NCA ID mismatch", dict(key=OTHER_KEY))):
        with channel_to(running.client[1]) as channel:
            code, words, fields = refused(channel, reqid=session, **who)
        assert code == CODE.INTERNAL and f"{text} for request id {session}" in words, words
        assert "set-cookie" not in fields and "x-worker" not in fields, fields
    with channel_to(running.client[1]) as channel:
        code, _, _ = refused(channel, key="nobody", reqid=session)
        assert code == CODE.UNAUTHENTICATED
    assert row(running, session)["state"] == "parked"
    with channel_to(running.client[1]) as channel:
        assert ask(channel, reqid=session)["x-worker"] == worker


@pytest.mark.parametrize("cores", [1, 2])
def test_the_window_runs_out(stand, cores):
    """E7 with the cookie cleared, and the worker is free."""
    running, crew = stand(session='park_window = "1s"\nidle = "1h"', cores=cores)
    with Wire(running.client) as wire, channel_to(wire.port) as channel:
        session = ask(channel)["nvcf-reqid"]
        talk = Talk(channel)
        wire.cut("rst")
        talk.is_lost()
    gone(running, session)
    with channel_to(running.client[1]) as channel:
        code, words, fields = refused(channel, reqid=session)
        assert code == CODE.NOT_FOUND, (code, words)
        assert f"no existing session found for request id {session}" in words
        assert fields["set-cookie"] == "nvcf-request-id=; Max-Age=0", fields
        # The next try is a new session.
        assert ask(channel)["nvcf-reqid"] != session
    until(lambda: crew.said("session ended") == 2, what="both sessions' ends")
    nothing_is_left(running)


def test_two_with_one_id_at_once(stand):
    """The first takes the parked tunnel, the others get one of their own, of the same worker."""
    running, crew = stand(cores=2)
    session, worker = lose(running)
    channels = [channel_to(running.client[1]) for _ in range(4)]
    together = threading.Barrier(4, timeout=60)

    def come(channel):
        together.wait()
        return ask(channel, reqid=session)

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(come, channels))
    assert {(f["nvcf-reqid"], f["x-worker"]) for f in found} == {(session, worker)}, found
    assert resumes(running, "memory") == 1 and resumes(running, "reconnect") == 3
    for channel in channels:
        channel.close()
    nothing_is_left(running)
    until(lambda: crew.said("session ended") == 1, what="the worker to be free")


def test_many_sessions_come_back_each_to_its_own_worker(stand):
    """Twelve slots, twelve sessions lost at once, twelve clients back."""
    running, _ = stand(cores=2)
    with ThreadPoolExecutor(12) as pool:
        lost = list(pool.map(lambda n: lose(running, ("rst", "fin")[n % 2]), range(12)))
        assert len({worker for _, worker in lost}) == 3
        before = dispatched(running)

        def back(one):
            session, worker = one
            with channel_to(running.client[1]) as channel:
                fields = ask(channel, reqid=session)
                assert (fields["nvcf-reqid"], fields["x-worker"]) == (session, worker), fields
        list(pool.map(back, lost))
        assert dispatched(running) == before
    nothing_is_left(running)


# --- raw peers: which ends are kept ----------------------------------------------------------

ENDS = {
    "rst": lambda client: client.abort(),
    "fin": lambda client: client.close(),
    "goaway": lambda client: (client.send(goaway()), client.close()),
}
KEEPS = [  # (park, how it ends, streams open, kept): design 5
    ("auto", "rst", False, True), ("auto", "rst", True, True), ("auto", "fin", True, True),
    ("auto", "fin", False, False), ("auto", "goaway", False, False),
    ("auto", "goaway", True, False),
    ("unclean", "fin", False, True), ("unclean", "goaway", False, False),
    ("always", "goaway", False, True), ("always", "fin", False, True),
    ("never", "rst", True, False), ("never", "fin", True, False)]


@pytest.mark.parametrize("park, how, open_stream, kept", KEEPS, ids=[
    f"{park}-{how}-{'open' if stream else 'idle'}" for park, how, stream, _ in KEEPS])
def test_which_ends_are_kept(serve, attach, park, how, open_stream, kept):
    running = serve(session=f'{KEPT}\npark = "{park}"')
    with FakeWorker(running) as worker:
        session = attach(running, worker)
        session.answer(end_stream=not open_stream)
        session.client.head(session.stream)
        if not open_stream:
            session.client.data(session.stream, b"", end_stream=True)
            session.client.round_trip()
        reqid = session.work.request_id
        ENDS[how](session.client)
        if kept:
            parked(running, reqid)
            session.tunnel.round_trip()
            if open_stream:
                assert session.tunnel.reset(session.request.stream) == CANCEL
        else:
            session.tunnel.ends()
            gone(running, reqid)
        with running.h2() as client:
            stream = client.open(grpc_head(reqid=reqid), end_stream=True)
            if kept:
                again = session.tunnel.wait(HEADERS)
                assert again.stream > session.request.stream
                assert again.get("nvcf-reqid") == reqid
                session.tunnel.headers(again.stream, TRAILERS_ONLY, end_stream=True)
                assert client.head(stream).values("nvcf-reqid") == [reqid]
            else:
                head = client.head(stream)
                assert head.grpc_status == "5", str(head)
                assert "no existing session found" in message_of(head)


def test_late_frames_of_the_lost_streams_harm_nobody(serve, attach):
    """Heads, data and trailers that cross the cancellation: decoded, credited, forgotten; the
    next client is on the same tunnel, and its tables are in step."""
    running = serve(session=KEPT)
    with FakeWorker(running) as worker:
        session = attach(running, worker)
        late = [session.request.stream]
        for _ in range(3):
            session.client.open(grpc_head())
            late.append(session.tunnel.wait(HEADERS).stream)
        session.client.abort()
        parked(running, session.work.request_id)
        tunnel = session.tunnel
        for n, stream in enumerate(late):
            tunnel.headers(stream, [(":status", "200"), ("x-late", f"number {n}")])
            for _ in range(3):
                tunnel.spend(stream, 16_000)
                tunnel.data(stream, bytes(16_000))
            tunnel.headers(stream, [("grpc-status", "0"), ("x-late", "the end")], True)
        tunnel.round_trip()
        with running.h2() as client:
            for n in range(3):
                stream = client.open(grpc_head(reqid=session.work.request_id), end_stream=True)
                again = tunnel.wait(HEADERS, where=lambda e: e.stream > max(late))
                tunnel.headers(again.stream, [(":status", "200"), ("x-late", f"number {n}")])
                tunnel.send_body(again.stream, bytes([n]) * 100_000)
                assert client.head(stream).get("x-late") == f"number {n}"
                assert client.body(stream)[0] == bytes([n]) * 100_000


def test_a_parked_tunnel_is_asked_whether_it_lives(serve, attach):
    """PINGs; a worker that is silent loses the session, one that answers keeps it."""
    running = serve(session=KEPT, more='[keepalive]\ntunnel_ping = "1s"\n'
                                       'tunnel_ping_timeout = "10s"')
    with FakeWorker(running) as worker:
        def asked(*auto):
            session = attach(running, worker, auto=auto)
            session.client.abort()
            parked(running, session.work.request_id)
            session.tunnel.wait(PING)
            return session
        answers = asked("settings", "ping", "credit")
        silent = asked("settings")
        silent.tunnel.ends()
        gone(running, silent.work.request_id)
        assert row(running, answers.work.request_id)["state"] == "parked"


@pytest.mark.parametrize("ending", ["close", "abort"])
def test_a_worker_that_leaves_while_parked(serve, attach, ending):
    running = serve(session=KEPT)
    with FakeWorker(running) as worker:
        session = attach(running, worker)
        session.client.abort()
        parked(running, session.work.request_id)
        getattr(session.tunnel, ending)()
        gone(running, session.work.request_id)
        with running.h2() as client:
            head = client.head(client.open(grpc_head(reqid=session.work.request_id), True))
            assert head.grpc_status == "5" and "no existing session" in message_of(head)
        nothing_is_left(running)


def test_goaway_on_a_parked_tunnel(serve, attach):
    """A spare is asked for and takes its place; the returning client is on it."""
    running = serve(session=KEPT)
    with FakeWorker(running) as worker:
        session = attach(running, worker)
        reqid = session.work.request_id
        session.client.abort()
        parked(running, reqid)
        session.tunnel.send(goaway(session.request.stream))
        work = worker.poll(slots=0, holds=[reqid])
        assert (work.kind, work.request_id) == ("reconnect", reqid), work.raw
        line = worker.dial(work)
        assert line.answer(body=False).status == 200
        session.tunnel.ends()
        parked(running, reqid)
        with running.h2() as client:
            stream = client.open(grpc_head(reqid=reqid), end_stream=True)
            tunnel = worker.serve(line)
            again = tunnel.wait(HEADERS)
            tunnel.headers(again.stream, TRAILERS_ONLY, end_stream=True)
            assert client.head(stream).values("nvcf-reqid") == [reqid]


def test_goaway_on_a_live_tunnel_is_not_noticed(serve, attach):
    """What is under way ends on the old tunnel, what is new goes to another of the same
    worker."""
    running = serve(session=KEPT)
    with FakeWorker(running) as worker:
        session = attach(running, worker)
        client, reqid = session.client, session.work.request_id
        session.answer()
        client.head(session.stream)
        session.tunnel.send(goaway(session.request.stream))
        work = worker.poll(slots=0, holds=[reqid])
        assert (work.kind, work.request_id) == ("reconnect", reqid), work.raw
        line = worker.dial(work)
        assert line.answer(body=False).status == 200
        stream = client.open(grpc_head(), end_stream=True)
        tunnel = worker.serve(line)
        request = tunnel.wait(HEADERS)
        assert request.get("nvcf-reqid") == reqid
        tunnel.headers(request.stream, TRAILERS_ONLY, end_stream=True)
        assert client.head(stream).values("nvcf-reqid") == [reqid]
        session.tunnel.data(session.request.stream, b"the last word", end_stream=True)
        assert client.body(session.stream)[0] == b"the last word"
        session.tunnel.ends()
        tunnel.round_trip()
        client.round_trip()
        # NO_ERROR may still say that the rest of the request is not wanted (RFC 9113 §8.1).
        assert not [e for e in client.events if e.kind == GOAWAY
                    or e.kind == RST_STREAM and e.code != NO_ERROR]


# --- giving way -------------------------------------------------------------------------------

def test_the_oldest_gives_way_to_who_waits(serve, attach):
    running = serve(session='park_window = "5m"\npark_yield = "1s"\nwait = "2m"')
    with FakeWorker(running) as first, FakeWorker(running) as second:
        old, young = attach(running, first), attach(running, second)
        for session in (old, young):
            session.client.abort()
            parked(running, session.work.request_id)
        with running.h2() as client:
            stream = client.open(grpc_head(), end_stream=True)
            old.tunnel.ends()
            gone(running, old.work.request_id)
            work, tunnel = first.take()
            assert work.kind == "new"
            tunnel.headers(tunnel.wait(HEADERS).stream, TRAILERS_ONLY, end_stream=True)
            assert client.head(stream).grpc_status == "0"
            assert count(running, "ringway_yields_total") == 1
            assert row(running, young.work.request_id)["state"] == "parked"
            young.tunnel.round_trip()


def test_bounds_the_oldest_goes(serve, attach):
    running = serve(session=KEPT, cores=1,
                    more="[limits]\nparked_tunnels = 3\nparked_per_tenant = 2")
    with FakeWorker(running) as worker:
        def park(**who):
            session = attach(running, worker, head=grpc_head(**who))
            session.client.abort()
            parked(running, session.work.request_id)
            return session

        one, two, other = park(), park(), park(key=OTHER_KEY)
        three = park()  # of the tenant's the oldest
        one.tunnel.ends()
        park(key=OTHER_KEY)  # of all the oldest
        two.tunnel.ends()
        for session in (three, other):
            assert row(running, session.work.request_id)["state"] == "parked"
        assert count(running, "ringway_parked_tunnels") == 3


@pytest.mark.parametrize("cores", [1, 2])
def test_an_operator_ends_it(serve, attach, cores):
    running = serve(session=KEPT, cores=cores)
    with FakeWorker(running) as worker:
        session = attach(running, worker)
        session.client.abort()
        parked(running, session.work.request_id)
        path = f"/sessions/{session.work.request_id}"
        assert running.get(path)[0] == 200
        assert running.get(path, "DELETE")[0] == 204
        session.tunnel.ends()
        gone(running, session.work.request_id)
        assert running.get(path, "DELETE")[0] == 404
        nothing_is_left(running)


def test_a_draining_gateway_keeps_nothing(serve, attach):
    running = serve(session=KEPT)
    with FakeWorker(running) as worker:
        session = attach(running, worker)
        session.client.abort()
        parked(running, session.work.request_id)
        running.signal()
        session.tunnel.ends()
        assert running.exit_code() == 0


# --- HTTP/1.1 ---------------------------------------------------------------------------------

def abort(line):
    line.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    line.close()


def asked(line, tunnel, more="", session=None):
    """One exchange without a body; the answer."""
    line.send(request("GET /p HTTP/1.1", more))
    head = tunnel.head()
    assert session is None or f"nvcf-reqid: {session}" in head, head
    tunnel.line.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    answer = line.answer()
    assert answer.body == b"ok", answer
    return answer


@pytest.mark.parametrize("cores", [1, 2])
def test_an_idle_http1_tunnel_parks_as_it_is(serve, cores):
    running = serve(session=KEPT, cores=cores)
    with FakeWorker(running) as worker, Line(running.client) as line:
        line.send(request("GET /p HTTP/1.1"))
        tunnel = Tunnel(worker)
        session = tunnel.work.request_id
        tunnel.head()
        tunnel.line.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        assert line.answer().body == b"ok"
        before = dispatched(running)
        for _ in range(6):
            abort(line)
            parked(running, session)
            line = Line(running.client)
            answer = asked(line, tunnel, f"nvcf-reqid: {session}\r\n", session)
            assert answer.get("nvcf-reqid") == session
            assert answer.get("set-cookie") == f"nvcf-request-id={session}"
            assert asked(line, tunnel).get("set-cookie") is None
        assert dispatched(running) == before
        line.close()


def test_an_http1_tunnel_in_mid_exchange_is_replaced(serve):
    """The used tunnel is closed when its spare has come, not before; that one is the client's."""
    running = serve(session=KEPT)
    with FakeWorker(running) as worker, Line(running.client) as line:
        line.send(request("GET /slow HTTP/1.1"))
        used = Tunnel(worker)
        used.head()
        session = used.work.request_id
        abort(line)
        work = worker.poll(slots=0, holds=[session])
        assert (work.kind, work.request_id) == ("reconnect", session), work.raw
        spare = worker.dial(work)
        assert spare.answer(body=False).status == 200
        assert used.line.ends() == b""
        parked(running, session)
        with Line(running.client) as back:
            back.send(request("GET /again HTTP/1.1", f"nvcf-reqid: {session}\r\n"))
            assert "GET /again" in head_of(spare)
            spare.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
            assert back.answer().body == b"ok"


def head_of(line):
    """The next request's head on a worker's end."""
    while b"\r\n\r\n" not in line.inbox:
        line.read(time.monotonic() + 30)
    head, line.inbox = line.inbox.split(b"\r\n\r\n", 1)
    return head.decode()


def test_another_version_of_http_gets_a_tunnel_of_its_own(serve, attach):
    """A parked HTTP/2 tunnel is no use to an HTTP/1.1 client: the reconnect path; then the
    parked one closes."""
    running = serve(session=KEPT)
    with FakeWorker(running) as worker, Line(running.client) as line:
        session = attach(running, worker)
        reqid = session.work.request_id
        session.client.abort()
        parked(running, reqid)
        line.send(request("GET /p HTTP/1.1", f"nvcf-reqid: {reqid}\r\n"))
        work = worker.poll(slots=0, holds=[reqid])
        assert (work.kind, work.request_id) == ("reconnect", reqid), work.raw
        spare = worker.dial(work)
        assert spare.answer(body=False).status == 200
        assert f"nvcf-reqid: {reqid}" in head_of(spare)
        spare.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        assert line.answer().body == b"ok"
        session.tunnel.ends()
