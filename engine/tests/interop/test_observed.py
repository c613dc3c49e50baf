"""What operators see: metrics, the log, /sessions, the admin port
(contract 8.1, 8.3; design 4.4, 4.5)."""

import json
import re
import socket
import time
import uuid

import pytest

from fakeworker import FakeWorker, connect_head
from gateway import FUNCTION, KEY, METRIC, VERSION, WORKER_KEY, grpc_head, until
from test_worker_leg import attempt

RESULTS = ["rejected_not_hijackable", "rejected_missing_auth", "rejected_missing_requestid",
           "rejected_invalid_requestid", "rejected_requestid_mismatch", "rejected_token_expired",
           "rejected_token_unknown", "accepted", "rejected_hijack_failed"]
REASONS = ["client_closed", "worker_closed", "shutdown", "ttl_expired", "capacity_reached",
           "deleted", "unknown"]
CODES = ["none", "eof", "reset", "timeout", "closed_conn", "context_canceled",
         "quic_idle_timeout", "quic_application", "quic_transport", "quic_stream_reset",
         "quic_handshake_timeout", "quic_stateless_reset", "h2_goaway", "h2_stream",
         "h2_connection", "unknown"]


# --- metrics --------------------------------------------------------------------------------

def test_ob_labels_are_zero_from_the_first_scrape(bare):
    for name, label, values in (("worker_connect_total", "result", RESULTS),
                                ("worker_connection_closed_total", "reason", REASONS),
                                ("worker_connection_close_code_total", "code", CODES)):
        for value in values:
            assert bare.metric(name, **{label: value}) == 0
    for name in ("active_http_requests_total", "active_connections_total",
                 "client_connection_opened_total", "worker_token_issued_total",
                 "worker_connections_active", "worker_connection_opened_total"):
        assert bare.metric(METRIC + name) == 0


HISTOGRAMS = {
    "client_connection_duration_seconds": "1,5,8,10,15,30,45,60,120,300,600,1800,3600",
    "client_connection_worker_tunnels_at_close": "0,1,2,3,5,10,25,50,100",
    "worker_connect_token_age_seconds": ".1,.25,.5,1,2,5,10,15,20,25,30,45,60,120,300",
    "worker_connection_duration_seconds": "1,5,8,10,15,30,45,60,120,300,600,1800,3600",
    "session_init_seconds_total": ".005,.01,.025,.05,.1,.25,.5,1,2.5,5,10",
}


@pytest.mark.parametrize("name", HISTOGRAMS)
def test_histogram_buckets(bare, worker, attach, name):
    session = attach(bare, worker)
    session.client.close()
    session.tunnel.ends()
    until(lambda: bare.metric("worker_connections_active") == 0, what="session gone")
    bounds = {float(bound) for series in bare.metrics()
              if series.startswith(f"{METRIC}{name}_bucket")
              for bound in re.findall(r'le="([^"]+)"', series)}
    assert bounds == {float(bound) for bound in HISTOGRAMS[name].split(",")} | {float("inf")}


def test_metrics_of_a_session(bare, worker, attach):
    session = attach(bare, worker)
    assert bare.metric("client_connection_opened_total") == 1
    assert bare.metric("active_connections_total") == 1
    assert bare.metric("active_http_requests_total") == 1
    assert bare.metric("worker_connections_active") == 1
    assert bare.metric("worker_token_issued_total") == 1
    assert bare.metric("worker_connection_opened_total") == 1
    assert bare.metric("worker_connect_total", result="accepted") == 1
    assert bare.metric("worker_connect_token_age_seconds_count", result="accepted") == 1
    assert bare.metric("session_init_seconds_total_count", is_reconnect="false") == 1
    assert bare.metric("function_request_total", function_id=FUNCTION,
                       function_version_id=VERSION) == 1
    session.answer(end_stream=True)
    session.client.head(session.stream)
    session.client.data(session.stream, b"", end_stream=True)
    until(lambda: bare.metric("active_http_requests_total") == 0, what="request over")
    session.client.close()
    session.tunnel.ends()
    until(lambda: bare.metric("worker_connections_active") == 0, what="entry gone")
    assert bare.metric("worker_connection_closed_total", reason="client_closed") == 1
    assert bare.metric("worker_connection_closed_total") == 1
    assert bare.metric("worker_connection_close_code_total") == 1
    assert bare.metric("active_connections_total") == 0
    assert bare.metric("client_connection_duration_seconds_count") == 1
    assert bare.metric("worker_connection_duration_seconds_count") == 1
    assert bare.metric("client_connection_worker_tunnels_at_close_sum") == 1


@pytest.mark.parametrize("code", ["eof", "reset"])
def test_ob2_ob3_why_a_session_ended(bare, worker, attach, code):
    session = attach(bare, worker)
    if code == "eof":
        session.tunnel.sock.shutdown(socket.SHUT_WR)
    else:
        session.tunnel.abort()
    session.client.head(session.stream)
    until(lambda: bare.metric("worker_connections_active") == 0, what="entry gone")
    assert bare.metric("worker_connection_closed_total", reason="worker_closed") == 1
    assert bare.metric("worker_connection_close_code_total", code=code) == 1


def test_reconnects_are_told_apart(bare, worker, attach):
    reqid = attach(bare, worker).work.request_id
    with bare.h2() as client:
        client.open(grpc_head(reqid=reqid), end_stream=True)
        worker.take(holds=[reqid], slots=0)
        assert bare.metric("session_init_seconds_total_count", is_reconnect="true") == 1
        assert bare.metric("function_request_total", function_id=FUNCTION) == 1


def test_names_of_the_other_metrics(gateway):
    with gateway.h2() as client:
        client.head(client.open(grpc_head(), end_stream=True))
    text = gateway.get("/metrics")[2].decode()
    for name in ("http_server_request_duration_seconds", "http_server_request_body_size_bytes",
                 "http_server_response_body_size_bytes", "http_client_request_duration_seconds",
                 "process_resident_memory_bytes", "process_open_fds", "process_start_time_seconds",
                 "ringway_payload_copied_bytes_total", "ringway_io_backend",
                 "ringway_shard_panics_total", "ringway_limit_hits_total"):
        assert re.search(rf"^{name}(_bucket|_count|_sum)?[{{ ]", text, re.M), f"no {name}"
    assert "server_address" not in text
    assert re.search(r'^ringway_io_backend\{backend="(io_uring|epoll)"\} [1-9]', text, re.M), text


def test_metrics_are_well_formed(gateway):
    status, fields, body = gateway.get("/metrics")
    assert status == 200 and fields["content-type"].startswith("text/plain"), fields
    typed, seen = {}, set()
    for line in body.decode().splitlines():
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split()
            assert name not in typed, f"two TYPE lines for {name}"
            typed[name] = kind
        elif line and not line.startswith("#"):
            assert re.fullmatch(r'[a-z_:][a-zA-Z0-9_:]*(\{(\w+="(\\.|[^"\\])*",?)*\})? '
                                r'(-?[0-9.e+-]+|\+Inf|NaN)', line), line
            series = line.rsplit(" ", 1)[0]
            assert series not in seen, f"twice: {series}"
            seen.add(series)
            base = re.sub(r"_(bucket|sum|count)$", "", series.split("{")[0])
            assert base in typed or series.split("{")[0] in typed, f"no TYPE for {line}"


# --- the admin port -------------------------------------------------------------------------

def test_admin_health(gateway):
    status, fields, body = gateway.get("/health")
    assert (status, body.strip()) == (200, b"OK") and fields["cache-control"] == "no-cache"
    assert gateway.get("/live")[0] == 200
    assert gateway.get("/ready")[0] == 200
    status, _, body = gateway.get("/info")
    assert status == 200 and all(json.loads(body)[key] for key in ("service", "version", "commit"))
    assert gateway.get("/nothing")[0] == 404


def test_sessions_list(bare, worker, attach):
    assert bare.sessions() == []
    with bare.h2() as client:
        client.open(grpc_head(), end_stream=True)
        waiting = until(bare.sessions, what="a session")
        assert [session["state"] for session in waiting] == ["waiting"]
        work = worker.poll()
        assert waiting[0]["requestId"] == work.request_id
    until(lambda: not bare.open_sessions(), what="session gone")
    session = attach(bare, worker)
    session.client.data(session.stream, bytes(1_000))
    session.tunnel.wait(0)
    session.answer()
    session.tunnel.data(session.request.stream, bytes(500))
    session.client.wait(0)
    seen = next(s for s in bare.open_sessions() if s["requestId"] == session.work.request_id)
    assert set(seen) >= {"requestId", "functionId", "functionVersionId", "tenant", "state",
                         "core", "clientAddress", "tunnel", "streams", "bytesIn", "bytesOut",
                         "ageMs"}, seen
    assert (seen["functionId"], seen["functionVersionId"]) == (FUNCTION, VERSION), seen
    assert (seen["tenant"], seen["state"], seen["streams"]) == ("dev", "active", 1), seen
    port = session.client.sock.getsockname()[1]
    assert seen["clientAddress"] == f"127.0.0.1:{port}", seen
    assert seen["bytesIn"] >= 1_000 and seen["bytesOut"] >= 500 and seen["ageMs"] >= 0, seen
    session.client.close()
    session.tunnel.ends()

    def closed():
        return next((s.get("closeReason") for s in bare.sessions()
                     if s["requestId"] == session.work.request_id), None)
    assert until(closed, what="close reason") == "client_closed"


def test_ready_line_comes_when_it_is_ready(gateway):
    """The first call after the line works; that is what `gateway` relies on all the time."""
    with gateway.h2() as client:
        stream = client.open(grpc_head(), end_stream=True)
        assert client.head(stream).status == "200"


# --- the log --------------------------------------------------------------------------------

@pytest.mark.parametrize("keys", ["ringway", "zap"])
def test_log_lines_of_a_session(serve, attach, keys):
    running = serve(session='park = "never"',
                    more=f'[log]\nkeys = "{keys}"\nlevel = "info"\naccess = true\n')
    with FakeWorker(running) as worker:
        session = attach(running, worker)
        reqid = session.work.request_id
        denied = attempt(running, connect_head("nobody", str(uuid.uuid4())))
        assert denied.status == 403
        with running.h2() as client:
            stream = client.open(grpc_head(reqid=str(uuid.uuid4())), end_stream=True)
            client.head(stream)
        session.client.close()
        session.tunnel.ends()

    def edges():
        text = running.log_text()
        return text if "eviction" in text else None
    until(edges, what="the line of the end")
    lines = running.log_lines()

    def line(text):
        found = [entry for entry in lines if text in json.dumps(entry)]
        assert found, f"no line {text!r} in\n{running.log_text()}"
        return json.dumps(found[0])

    registered = line("registering new worker connection")
    assert reqid in registered and FUNCTION in registered and '"shard"' in registered
    assert "rejected_token_unknown" in line("rejecting worker CONNECT")
    assert "no existing session found" in line("failed to open stateful work request")
    evicted = line("worker connection cache eviction triggered")
    for part in (reqid, "client_closed", '"shard"', FUNCTION, VERSION):
        assert part in evicted, evicted
    for text in ("closing worker connection", "http request",
                 "triggering worker connection shutdown from client close"):
        line(text)
    if keys == "zap":
        for entry in lines:
            assert entry["level"] in ("info", "warn") and isinstance(entry["msg"], str), entry
            assert isinstance(entry["ts"], float) and entry["logger"] and entry["caller"], entry
            assert abs(entry["ts"] - time.time()) < 600 and "message" not in entry, entry
        whole = json.loads(evicted)
        assert whole["closed_at"] - whole["opened_at"] == pytest.approx(whole["held_for"], abs=1e-3)
        asked = json.loads(line("http request"))
        assert isinstance(asked["latency"], float) and asked["status"] in (200, 404), asked


def test_no_secret_is_ever_logged(serve, attach):
    """Client keys, worker keys and tokens, in all the ways they come in; right and wrong."""
    running = serve(session='wait = "500ms"\npark = "never"')
    with FakeWorker(running) as worker:
        session = attach(running, worker)
        session.answer(end_stream=True)
        attempt(running, connect_head(session.work.token, session.work.request_id))
        attempt(running, connect_head("secret-of-nobody", str(uuid.uuid4())))
        with FakeWorker(running, key="secret-of-a-worker") as other:
            other.poll()
        with running.h2() as client:
            for fields in (grpc_head(key="secret-of-a-client"),
                           grpc_head(key=None, extra=[("authorization", "Basic c2VjcmV0LWI2NA")]),
                           grpc_head(key=None, function=None, extra=[
                               ("sec-websocket-protocol",
                                f"authorization.secret-in-a-pair, function-id.{FUNCTION}")]),
                           grpc_head(function="99999999-9999-4999-8999-999999999999")):
                client.head(client.open(fields, end_stream=True))
            client.open(grpc_head(version=VERSION), end_stream=True)
            work = worker.poll()
            attempt(running, connect_head(work.token, str(uuid.uuid4())))
        session.client.close()
        session.tunnel.ends()
        tokens = worker.tokens
    running.signal()
    assert running.exit_code() == 0
    text = running.log_text() + "\n".join(running.stdout_lines)
    secrets = [KEY, WORKER_KEY, "secret-of", "secret-in", "c2VjcmV0LWI2NA", *tokens]
    found = [secret[:8] + "..." for secret in secrets if secret in text]
    assert not found, f"in the log: {found}"
    assert len(tokens) == 2 and running.log_lines()


def test_no_line_for_each_request(serve, attach):
    """The access log is off by default."""
    running = serve()
    with FakeWorker(running) as worker:
        session = attach(running, worker)
        before = len(running.log_lines())
        for _ in range(50):
            session.another()
        assert len(running.log_lines()) - before < 5, running.log_tail()


