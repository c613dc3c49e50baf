"""The worker's side as its authors meet it: /v1/work, the CONNECT and its answers, tokens
(contract 4.1-4.4, design 4.3)."""

import json
import re
import subprocess
import threading
import time
import uuid
from pathlib import Path

import pytest

from fakeworker import FakeWorker, Line, Work, connect_head
from gateway import (FUNCTION, PRIVATE_WORKER_KEY, SECOND_VERSION, TWO_VERSIONS, VERSION, grpc_head,
                     until)
from rawh2 import ACK, HEADERS, PING, SETTINGS, Peer, ping, rst_stream, settings

HERE = Path(__file__).parent
DENIED = "HTTP CONNECT request is missing valid auth"


@pytest.fixture
def pending(bare, worker):
    """A client that waits and the work item made for it; no CONNECT yet."""
    client = bare.h2()
    stream = client.open(grpc_head(), end_stream=True)
    work = worker.poll()
    assert isinstance(work, Work), work
    yield client, stream, work
    client.close()


def attempt(gateway, head, body=True):
    """One CONNECT on a connection of its own; its answer."""
    with Line(gateway.worker) as line:
        line.send(head)
        return line.answer(body=body)


def refused(answer, status, text):
    """WK-4: text, newline, content type, nosniff."""
    assert answer.status == status, answer
    assert answer.body == text.encode() + b"\n", answer
    assert answer.get("content-type") == "text/plain; charset=utf-8", answer
    assert answer.get("x-content-type-options") == "nosniff", answer


def served(worker, work, client, stream):
    """The token still works: a session from CONNECT to answer."""
    tunnel = worker.connect(work)
    request = tunnel.wait(HEADERS)
    tunnel.headers(request.stream, [(":status", "200"), ("grpc-status", "0")], end_stream=True)
    assert client.head(stream).grpc_status == "0"
    return tunnel


# --- work -----------------------------------------------------------------------------------

def test_work_item(bare, worker, pending):
    _, _, work = pending
    raw = work.raw
    assert raw["kind"] == "new" and raw["ncaId"], raw
    assert (raw["functionId"], raw["functionVersionId"]) == (FUNCTION, VERSION), raw
    assert str(uuid.UUID(work.request_id)) == work.request_id, raw
    assert re.fullmatch(r"[A-Za-z0-9]{64}", work.token), "worker token"
    assert work.uri.path == "/v1/proxy" and work.uri.scheme == "http", raw
    assert (work.uri.hostname, work.uri.port) == bare.worker, raw


def test_work_waits_for_a_poll(bare, worker):
    """Work that came before any worker is kept for the first poll."""
    with bare.h2() as client:
        stream = client.open(grpc_head(), end_stream=True)
        until(lambda: bare.metric("worker_token_issued_total") == 1, what="token issued")
        served(worker, worker.poll(), client, stream)


def test_poll_waits_for_work(bare, worker):
    worker.ask()
    with bare.h2() as client:
        stream = client.open(grpc_head(), end_stream=True)
        served(worker, worker.answer(), client, stream)


def test_work_goes_to_the_function_and_version_asked_for(bare):
    """Three workers wait; each gets only its own work."""
    with (FakeWorker(bare) as one, FakeWorker(bare, function=TWO_VERSIONS) as two,
          FakeWorker(bare, function=TWO_VERSIONS, version=SECOND_VERSION) as three,
          bare.h2() as client):
        for fake in (one, two, three):
            fake.ask()
        for function, version, fake in ((TWO_VERSIONS, SECOND_VERSION, three),
                                        (FUNCTION, None, one), (TWO_VERSIONS, VERSION, two)):
            client.open(grpc_head(function=function, version=version), end_stream=True)
            work = fake.answer()
            assert work.raw["functionId"] == function, work.raw
            assert work.raw["functionVersionId"] == fake.version, work.raw


def test_either_version_is_picked(bare):
    """CP-3: at random, when the request names none."""
    with (FakeWorker(bare, function=TWO_VERSIONS) as one,
          FakeWorker(bare, function=TWO_VERSIONS, version=SECOND_VERSION) as two):
        clients = [bare.h2() for _ in range(40)]
        for client in clients:
            client.open(grpc_head(function=TWO_VERSIONS), end_stream=True)
        until(lambda: bare.metric("worker_token_issued_total") == 40, what="tokens issued")
        got = 0
        for fake in (one, two):
            # A session of each at least; all forty would be one in a million million otherwise.
            assert isinstance(fake.poll(), Work)
            got += 1
        assert got == 2
        for client in clients:
            client.close()


def test_work_is_given_once(bare, worker):
    """Two workers poll, two clients come: one session each."""
    with FakeWorker(bare) as second, bare.h2() as client, bare.h2() as other:
        worker.ask()
        second.ask()
        client.open(grpc_head(), end_stream=True)
        other.open(grpc_head(), end_stream=True)
        works = [worker.answer(), second.answer()]
        assert works[0].request_id != works[1].request_id
        assert works[0].token != works[1].token


def test_no_slots_gets_no_new_work(bare, worker):
    worker.ask(slots=0)
    with FakeWorker(bare) as second, bare.h2() as client:
        client.open(grpc_head(), end_stream=True)
        assert second.poll().kind == "new"
        assert worker.line.is_open() and worker.line.inbox == b""


def test_newer_poll_replaces_the_older(bare, worker):
    worker.ask()
    worker.ask()
    assert worker.answer() is None  # 204 for the older
    with bare.h2() as client:
        stream = client.open(grpc_head(), end_stream=True)
        served(worker, worker.answer(), client, stream)


def test_closed_poll_loses_nothing(bare, worker):
    """Work made when the only poll's connection has closed goes to the next poll."""
    for ending in ("close", "reset"):
        gone = FakeWorker(bare)
        gone.ask()
        # The poll has been taken in once a later exchange with the same port was answered.
        attempt(bare, connect_head(None, None))
        if ending == "close":
            gone.close()
        else:
            Peer.abort(gone.line)
        # What is handed out before the gateway has seen the end may be lost with it.
        until(lambda: bare.metric("ringway_limit_used", limit="polls") == 0, what="no poll waits")
        with bare.h2() as client:
            stream = client.open(grpc_head(), end_stream=True)
            served(worker, worker.poll(), client, stream)


def test_client_gone_withdraws_its_work(bare, worker):
    with bare.h2() as client:
        client.open(grpc_head(), end_stream=True)
        until(lambda: bare.metric("worker_token_issued_total") == 1, what="token issued")
    until(lambda: bare.metric("worker_connections_active") == 0, what="entry gone")
    worker.ask()
    with bare.h2() as client:
        stream = client.open(grpc_head(reqid=None), end_stream=True)
        # What the worker gets is the second client's.
        served(worker, worker.answer(), client, stream)


@pytest.mark.parametrize("change, status", [
    (dict(key=None), 401), (dict(key="nobody"), 401), (dict(key="dev-key"), 401),
    (dict(key=PRIVATE_WORKER_KEY), 403),
    (dict(version="99999999-9999-4999-8999-999999999999"), 403)],
    ids=["no-key", "unknown-key", "client-key", "key-of-another-function", "unknown-version"])
def test_polls_refused_by_key(bare, change, status):
    with FakeWorker(bare, **change) as fake:
        answer = fake.poll()
        assert answer.status == status, answer


@pytest.mark.parametrize("body", [
    "", "{", "[]", "null", '"x"', "{}", '{"functionId": 7}',
    f'{{"functionId":"{FUNCTION}"}}',
    f'{{"functionId":"{FUNCTION}","functionVersionId":"{VERSION}","slots":-1}}',
    f'{{"functionId":"{FUNCTION}","functionVersionId":"{VERSION}","slots":"many"}}',
    f'{{"functionId":"{FUNCTION}","functionVersionId":"{VERSION}","requestIds":["x"]}}',
    f'{{"functionId":"{FUNCTION}","functionVersionId":"{VERSION}","requestIds":"x"}}',
    "[" * 20_000], ids=range(13))
def test_bad_polls_get_400_with_the_reason(bare, worker, body):
    answer = worker.poll(body=body)
    assert answer is not None and not isinstance(answer, Work), answer
    assert answer.status == 400 and len(answer.body.strip()) > 3, answer


def test_slots_and_request_ids_have_defaults(bare, worker):
    worker.ask(body=json.dumps({"functionId": FUNCTION, "functionVersionId": VERSION}))
    with bare.h2() as client:
        client.open(grpc_head(), end_stream=True)
        assert worker.answer().kind == "new"


# --- CONNECT: every row of contract 4.2 -----------------------------------------------------

def test_missing_auth(bare, pending):
    _, _, work = pending
    for head in (connect_head(None, work.request_id), connect_head(None, None),
                 connect_head(None, work.request_id, extra="Authorization:\r\n")):
        refused(attempt(bare, head), 401, "HTTP CONNECT request is missing auth")
    assert bare.metric("worker_connect_total", result="rejected_missing_auth") == 3


def test_missing_request_id(bare, pending):
    _, _, work = pending
    for head in (connect_head(work.token, None), connect_head(work.token, ""),
                 connect_head("nobody", None)):
        refused(attempt(bare, head), 400, "HTTP CONNECT request is missing request id")
    assert bare.metric("worker_connect_total", result="rejected_missing_requestid") == 3


def test_invalid_request_id(bare, pending):
    _, _, work = pending
    for text in ("x", work.request_id[:-1], work.request_id.replace("-", "_")):
        refused(attempt(bare, connect_head(work.token, text)), 400,
                "HTTP CONNECT request has an invalid request id")
    assert bare.metric("worker_connect_total", result="rejected_invalid_requestid") == 3


def test_unknown_token(bare, worker, pending):
    client, stream, work = pending
    changed = [("A" if work.token[at] != "A" else "B", at) for at in (0, 20, 40, 63)]
    tokens = ["nobody", "x" * 64, *(work.token[:at] + letter + work.token[at + 1:]
                                   for letter, at in changed)]
    for token in tokens:
        refused(attempt(bare, connect_head(token, work.request_id)), 403, DENIED)
    assert bare.metric("worker_connect_total", result="rejected_token_unknown") >= 2
    served(worker, work, client, stream)


def test_wk8_wrong_request_id_does_not_burn_the_token(bare, worker, pending):
    client, stream, work = pending
    for _ in range(4):
        refused(attempt(bare, connect_head(work.token, str(uuid.uuid4()))), 403, DENIED)
    assert bare.metric("worker_connect_total", result="rejected_requestid_mismatch") == 4
    served(worker, work, client, stream)


def test_five_wrong_tries_revoke_the_token(bare, pending):
    _, _, work = pending
    for _ in range(5):
        refused(attempt(bare, connect_head(work.token, str(uuid.uuid4()))), 403, DENIED)
    refused(attempt(bare, connect_head(work.token, work.request_id)), 403, DENIED)


def test_wk8_token_is_used_once(bare, worker, pending):
    client, stream, work = pending
    served(worker, work, client, stream)
    refused(attempt(bare, connect_head(work.token, work.request_id)), 403, DENIED)
    assert bare.metric("worker_connect_total", result="rejected_token_expired") == 1
    assert bare.metric("worker_connect_total", result="accepted") == 1


def test_wk8_racing_connects_get_exactly_one_200(bare, worker, pending):
    _, _, work = pending
    lines = [Line(bare.worker) for _ in range(16)]
    head = connect_head(work.token, work.request_id)
    gate, answers = threading.Barrier(16), []

    def race(line):
        gate.wait()
        line.send(head)
        answers.append(line.answer(body=False).status)

    threads = [threading.Thread(target=race, args=(line,)) for line in lines]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(100)
    for line in lines:
        line.close()
    assert sorted(answers) == [200] + [403] * 15, answers


def test_token_dies_with_its_client(bare, pending):
    client, _, work = pending
    client.close()
    until(lambda: bare.metric("worker_connections_active") == 0, what="entry gone")
    refused(attempt(bare, connect_head(work.token, work.request_id)), 403, DENIED)
    assert bare.metric("worker_connect_total", result="rejected_token_expired") == 1


def test_token_dies_when_its_client_gives_up(serve):
    running = serve(session='wait = "500ms"')
    with FakeWorker(running) as worker, running.h2() as client:
        stream = client.open(grpc_head(), end_stream=True)
        work = worker.poll()
        assert client.head(stream).grpc_status == "4"
        refused(attempt(running, connect_head(work.token, work.request_id)), 403, DENIED)


def test_token_lives_while_somebody_waits(bare, worker):
    """The stream that started it is cancelled; another on the connection still waits."""
    with bare.h2() as client:
        first = client.open(grpc_head(), end_stream=True)
        stream = client.open(grpc_head(), end_stream=True)
        work = worker.poll()
        client.send(rst_stream(first))
        client.round_trip()
        served(worker, work, client, stream)


def test_cl2_request_id_in_any_form(bare, worker, pending):
    """CL-2 holds here too."""
    client, stream, work = pending
    line = worker.dial(work, connect_head(work.token, work.request_id.upper().replace("-", "")))
    assert line.answer(body=False).status == 200


def test_wk11_accepted_answer(bare, worker, pending):
    """WK-11: 200 and no framing of a body; then the gateway speaks first (WK-12)."""
    client, stream, work = pending
    line = worker.dial(work)
    answer = line.answer(body=False)
    assert answer.status == 200 and answer.head.startswith(b"HTTP/1.1 200 OK"), answer
    names = {name for name, _ in answer.fields}
    assert names <= {"date"}, answer
    tunnel = worker.serve(line)
    request = tunnel.wait(HEADERS)
    assert request.get(":method") == "POST" and request.get(":scheme") == "http"
    assert request.get(":authority") == "echo.test"  # CL-27
    assert request.get("nvcf-reqid") == work.request_id  # CL-30
    assert request.get("authorization") == "Bearer dev-key"  # CL-31
    assert request.get("function-id") == FUNCTION and request.get("te") == "trailers"


def test_wk1_token_without_bearer_and_other_spellings(bare, worker):
    """Row 2 takes the token with or without `Bearer `; names are case-insensitive."""
    with bare.h2() as client:
        for write in (lambda w: f"authorization: {w.token}\r\nx-request-id: {w.request_id}",
                      lambda w: f"AUTHORIZATION:Bearer {w.token}\r\nX-REQUEST-ID:{w.request_id}"):
            client.open(grpc_head(version=(VERSION, "")[client.next_stream > 1]),
                        end_stream=True)
            work = worker.poll()
            head = f"CONNECT /v1/proxy HTTP/1.1\r\nHost: g\r\n{write(work)}\r\n\r\n".encode()
            line = worker.dial(work, head)
            assert line.answer(body=False).status == 200
            worker.serve(line)


@pytest.mark.parametrize("method, extra", [("POST", ""), ("POST", "Content-Length: 0\r\n"),
                                           ("CONNECT", "Content-Length: 0\r\n")])
def test_wk2_post_works_as_connect(bare, worker, pending, method, extra):
    """WK-2: any method is taken on /v1/proxy, and may say that it has no body."""
    client, stream, work = pending
    line = worker.dial(work, connect_head(work.token, work.request_id, method=method, extra=extra))
    assert line.answer(body=False).status == 200
    tunnel = worker.serve(line)
    assert tunnel.wait(HEADERS).get("nvcf-reqid") == work.request_id


@pytest.mark.parametrize("target", ["/v1/proxies", "/custom/v1/proxy", "gateway.test:10086",
                                    "http://gateway.test/v1/proxy", "/"])
def test_wk2_other_targets_are_404(bare, pending, target):
    _, _, work = pending
    assert attempt(bare, connect_head(work.token, work.request_id, target)).status == 404


def test_bytes_behind_the_head_reach_the_parser(bare, worker, pending):
    """A worker may send its first frames with the CONNECT; they are not lost."""
    client, stream, work = pending
    line = worker.dial(work, behind=settings({3: 100}) + ping(b"at once!"))
    assert line.answer(body=False).status == 200
    tunnel = Peer(line.sock, client=False, already_read=line.inbox, start=False)
    tunnel.wait(SETTINGS, where=lambda e: e.flags & ACK, wanted="ACK of the early SETTINGS")
    tunnel.wait(PING, where=lambda e: e.payload == b"at once!", wanted="ACK of the early PING")
    request = tunnel.wait(HEADERS)
    tunnel.headers(request.stream, [(":status", "200"), ("grpc-status", "0")], end_stream=True)
    assert client.head(stream).grpc_status == "0"
    tunnel.close()


def test_head_octet_by_octet(bare, worker, pending):
    client, stream, work = pending
    line = Line(bare.worker)
    for octet in connect_head(work.token, work.request_id):
        line.send(bytes([octet]))
    assert line.answer(body=False).status == 200
    request = worker.serve(line).wait(HEADERS)
    assert request.get("nvcf-reqid") == work.request_id


@pytest.mark.parametrize("extra, allowed", [
    ("Content-Length: 5\r\n", {400}), ("Transfer-Encoding: chunked\r\n", {400}),
    ("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", {400}),
    ("Content-Length: 1\r\nContent-Length: 2\r\n", {400}),
    ("X-Bad : 1\r\n", {400}), (" folded\r\n", {400}), ("X-Nul: a\0b\r\n", {400}),
    ("no colon\r\n", {400}), ("X-Cr: a\rb\r\n", {400}), ("bare: lf\n", {400}),
    ("X-Large: " + "x" * 17_000 + "\r\n", {431}),
    ("".join(f"X-{n}: {n}\r\n" for n in range(2_000)), {431})],
    ids=["content-length", "chunked", "both-framings", "two-lengths", "space-before-colon",
         "folded", "nul", "no-colon", "bare-cr", "bare-lf", "too-long", "too-many"])
def test_malformed_connect(bare, worker, pending, extra, allowed):
    client, stream, work = pending
    with Line(bare.worker) as line:
        line.send(connect_head(work.token, work.request_id, extra=extra))
        answer = line.answer()
        assert answer.status in allowed, answer
        line.ends()
    served(worker, work, client, stream)


def test_ln5_health_on_the_worker_port(bare):
    with Line(bare.worker) as line:
        line.send("GET /health HTTP/1.1\r\nHost: g\r\n\r\n")
        answer = line.answer()
        assert (answer.status, answer.body) == (200, b""), answer


def test_unused_and_unknown_paths_on_the_worker_port(bare):
    with Line(bare.worker) as line:
        line.send("GET /nothing HTTP/1.1\r\nHost: g\r\n\r\n")
        assert line.answer().status == 404


# --- timers ---------------------------------------------------------------------------------

def test_cl44_idle_tunnel_is_closed(serve, attach):
    """CL-44: from the end of the last stream; the client's connection stays."""
    running = serve(session='idle = "1s"')
    with FakeWorker(running) as worker:
        session = attach(running, worker)
        # An open stream keeps it alive, however quiet.
        time.sleep(1.5)
        session.tunnel.round_trip()
        ended = time.monotonic()
        session.answer(end_stream=True)
        session.client.head(session.stream)
        session.tunnel.ends()
        # Sooner than by the thirty seconds that are usual.
        assert 0.8 < time.monotonic() - ended < 30
        session.client.round_trip()
        # The next request starts afresh, with a new session.
        stream = session.client.open(grpc_head(), end_stream=True)
        work = worker.poll()
        assert work.kind == "new" and work.request_id != session.work.request_id
        served(worker, work, session.client, stream)


def test_cl44_client_pings_do_not_keep_a_tunnel(serve, attach):
    running = serve(session='idle = "1s"')
    with FakeWorker(running) as worker:
        session = attach(running, worker)
        session.answer(end_stream=True)
        session.client.head(session.stream)
        deadline = time.monotonic() + 30
        while session.tunnel.drain_now():
            session.client.round_trip()
            time.sleep(0.1)
            assert time.monotonic() < deadline, "the tunnel was kept by PINGs"


def test_cl23_client_gone_closes_its_tunnels_at_once(bare, worker, attach):
    for ending in ("close", "abort"):
        session = attach(bare, worker)
        getattr(session.client, ending)()
        session.tunnel.ends(timeout=60)  # the idle timer takes thirty seconds


# --- a worker in another language -----------------------------------------------------------

GO_WORKER = HERE / "goworker"


def test_worker_of_gos_net_http(bare, tmp_path):
    """CONNECT with an origin-form target as Go's net/http writes it; the tunnel is then served
    by Go's HTTP/2 server."""
    program = tmp_path / "goworker"
    built = subprocess.run(["go", "build", "-o", str(program), "."], cwd=GO_WORKER,
                           capture_output=True, text=True, timeout=120)
    assert built.returncode == 0, built.stderr
    host, port = bare.worker
    run = subprocess.Popen([str(program), f"http://{host}:{port}", "dev-worker-key", FUNCTION,
                            VERSION], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        with bare.h2() as client:
            stream = client.open([*grpc_head("/reverse"), ("x-one", "1")])
            client.data(stream, b"stressed", end_stream=True)
            head = client.head(stream)
            assert head.status == "200" and head.get("x-served-by") == "go", str(head)
            body, trailers = client.body(stream)
            assert body == b"desserts" and trailers.get("x-trailer") == "8", (body, trailers)
            big = bytes(range(256)) * 8192
            stream = client.open(grpc_head("/reverse"))
            client.send_body(stream, big)
            client.head(stream)
            assert client.body(stream)[0] == big[::-1]
    finally:
        run.kill()
        output = run.communicate()[0]
    assert "worker:" not in output, output


