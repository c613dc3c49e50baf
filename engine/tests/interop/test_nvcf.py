"""The gateway in the place of NVIDIA's proxy: `ringway` without an argument in the reference's
environment, between a real NATS server, the stand-in for NVIDIA's API and workers that take their
work by NATS. Rule ids are the wire contract's."""

import contextlib
import json
import os
import uuid
from urllib.parse import unquote

import grpc
import pytest
from google.protobuf import timestamp_pb2
from websockets.sync.client import connect

import grpcserver
import nvcf_messages as messages
from crew import Speaker
from echo import EchoMessage, Stub
from gateway import (FUNCTION, METRIC, SECOND_VERSION, TWO_VERSIONS, VERSION, ask, credentials,
                     grpc_head, plain_head, until)
from nats_rig import Cluster, NatsServer
from nvcf_bed import LIMITER_TOKEN, PROXY_TOKEN, SCRIPT, A, B, Bed, make_nkey

OPENING = "failed to open stateful work request: "
NOBODY = "99999999-9999-4999-8999-999999999999"
LOOKUPS = "stateful_session_lookup_ncp"


def numbered(number):
    return f"{number:08d}-aaaa-4aaa-8aaa-aaaaaaaaaaaa"


# Each is a function, and its version has the same id, unless its own lines below say otherwise.
TALKS, IDLE, NO_STREAM, EMPTY, LIMITED, LATER, STREAMS, FEW, SMALL = map(numbered, range(1, 10))
# HTTP statuses of codes (CL-11).
MAPPED = {2: 500, 5: 404, 7: 403, 8: 429, 9: 500, 11: 500, 14: 503, 16: 401}


def function(id, *versions):
    return {"id": id, "version": list(versions) or [{"id": id}]}


def key(token, *trouble):
    return {"token": token, "subject": f"subject-{token}", "nca": f"nca-{token}",
            "trouble": list(trouble)}


PLAY = {
    "api": SCRIPT["api"],
    "key": SCRIPT["key"] + [
        key("once"), key("limited"), key("unheard"),
        key("flaky", {"status": 14, "message": "not now", "times": 2}),
        key("raw", {"raw": "ff"}),
        *(key(f"status-{code}", {"status": code, "message": f"because {code}"})
          for code in MAPPED)],
    "function": SCRIPT["function"] + [
        function(TWO_VERSIONS, {"id": VERSION}, {"id": SECOND_VERSION}),
        function(TALKS), function(IDLE), function(NO_STREAM), {"id": EMPTY}, function(FEW),
        function(SMALL),
        function(LIMITED, {"id": VERSION, "rate_limit": True, "sync_check": True}),
        function(LATER, {"id": IDLE, "rate_limit": True}),
        function(STREAMS, {"id": STREAMS, "type": "STREAMING"})],
    "limiter": {**SCRIPT["limiter"], "rule": [
        {"nca": "nca-limited", "disallow": True},
        {"nca": "nca-unheard", "trouble": [{"delay_ms": 3_600_000}]}]},
}


class Rig:
    """A bed with a worker for each version, and gateways: two that share the sessions, and one
    whose clients do not wait long."""

    def __init__(self, directory):
        self.bed = bed = Bed(directory, PLAY)
        self.servers = {VERSION: grpcserver.Server(name="one"),
                        SECOND_VERSION: grpcserver.Server(name="two"),
                        STREAMS: grpcserver.Server(name="streams")}
        self.speaker = Speaker("speaker")
        for version in (VERSION, SECOND_VERSION, TALKS, IDLE):
            bed.make_streams(version)
        bed.make_streams(FEW, "--messages", "3")
        bed.make_streams(SMALL, "--bytes", "1024")
        self.stand_in, self.nats = bed.stand_in, bed.client()
        target = {version: f"127.0.0.1:{server.port}" for version, server in self.servers.items()}
        target[TALKS] = f"127.0.0.1:{self.speaker.port}"
        # Who comes back is held against the function that its worker says it serves.
        for function, version in ((FUNCTION, VERSION), (TWO_VERSIONS, SECOND_VERSION),
                                  (TALKS, TALKS)):
            bed.worker(target[version], f"worker-{version[:8]}", version=version, slots=128,
                       function=function)
        bed.worker(target[STREAMS], "worker-streams", function=STREAMS, version=STREAMS, slots=8,
                   more=["--streaming", "--reconnect-window", "0"])
        self.first, self.second = bed.ready_gateway(), bed.ready_gateway()
        self.hasty = bed.ready_gateway(RINGWAY__SESSION__WAIT="500ms")
        self.gateways = {"first": self.first, "second": self.second, "hasty": self.hasty}

    def api_calls(self, key):
        """The calls of the API with a client's key, in their order."""
        return [call for call in self.stand_in.counts("api")["recent"] if call.get("key") == key]

    def record(self, request_id, version=VERSION):
        found = self.nats.last(LOOKUPS, f"stateful_session.lookup.ncp.{version}.{request_id}")
        return found and messages.Record.FromString(found.data)

    def close(self):
        self.bed.close()
        for server in self.servers.values():
            server.grpc.stop(0)
        self.speaker.close()


@pytest.fixture(scope="module")
def rig(tmp_path_factory):
    made = Rig(tmp_path_factory.mktemp("rig"))
    yield made
    died = [name for name, gateway in made.gateways.items() if not gateway.alive()]
    logs = {name: gateway.log_text() for name, gateway in made.gateways.items()}
    made.close()
    assert not died, died
    for name, log in logs.items():
        for secret in (PROXY_TOKEN, LIMITER_TOKEN, A, "status-7", made.bed.seed):
            assert secret not in log, f"{name}'s log tells a secret"


class Caller:
    """A gRPC channel: a connection of its own, and who is on it."""

    def __init__(self, gateway, key=A, function=FUNCTION, version=None, reqid=None):
        host, port = gateway.client
        self.channel = grpc.insecure_channel(f"{host}:{port}", options=[
            *grpcserver.UNLIMITED, ("grpc.use_local_subchannel_pool", 1),
            ("grpc.enable_retries", 0)])
        self.stub = Stub(self.channel)
        self.who = tuple(credentials(key, function, version, reqid))
        self.head = {}

    def says(self, text=b"hello", timeout=60):
        """A unary call; the name of whose worker it was."""
        answer, call = self.stub.Unary.with_call(EchoMessage(payload=text), timeout=timeout,
                                                 metadata=self.who)
        assert answer.payload == text
        self.head = dict(call.initial_metadata())
        return self.head["x-worker"]

    def is_refused(self):
        """(code, text)"""
        with pytest.raises(grpc.RpcError) as caught:
            self.says()
        return caught.value.code().value[0], caught.value.details()

    @property
    def session(self):
        return self.head["nvcf-reqid"]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.channel.close()


# --- what is said before there is a tunnel (3.3, 3.4) -------------------------------------------

SOME_ID = "12345678-1234-4234-8234-123456789abc"
TABLE = {
    "E1": (dict(key=None), 16, 401, "no authorization was passed in the metadata"),
    "E2": (dict(key=A, function=None), 3, 400, "no function-id was passed in the metadata"),
    **{f"E3 {code}": (dict(key=f"status-{code}"), code, status, f"because {code}")
       for code, status in MAPPED.items()},
    "E3 no such key": (dict(key="nobody"), 16, 401, OPENING),
    "E3 no such function": (dict(key=A, function=NOBODY), 5, 404, OPENING),
    "E3 no UUID": (dict(key=A, function="no-uuid"), 2, 500, OPENING),
    "E3 no message": (dict(key="raw"), 13, 500, OPENING),
    "E4": (dict(key=A, function=EMPTY), 13, 500,
           OPENING + "missing function versions from nvcf api response"),
    "E5": (dict(key="limited", function=LIMITED), 8, 429, OPENING + "exceeded rate limit"),
    "E6": (dict(key=A, function=NO_STREAM), 13, 500,
           OPENING + "failed to publish function invocation request to nats"),
    "E7": (dict(key=A, reqid=SOME_ID), 5, 404,
           OPENING + f"no existing session found for request id {SOME_ID}"),
    "E12": (dict(key=A, function=IDLE), 4, 504, "failed to establish link to worker"),
}


def asked(rig, name):
    """The gateway that a row of the table is about: E6 takes longer than the hasty one waits."""
    return rig.first if name == "E6" else rig.hasty


@pytest.mark.parametrize("name", TABLE)
def test_errors_in_grpc_style(rig, name):
    who, code, _, text = TABLE[name]
    head, body = ask(asked(rig, name), grpc_head(**who))
    assert (head.status, head.get("content-type"), body) == ("200", "application/grpc", b"")
    assert head.end_stream and head.grpc_status == str(code), str(head)
    assert text in unquote(head.get("grpc-message")), str(head)
    cookies = ["nvcf-request-id=; Max-Age=0"] if name == "E7" else []
    assert head.values("set-cookie") == cookies and not head.values("nvcf-reqid"), str(head)


@pytest.mark.parametrize("name", TABLE)
def test_errors_in_plain_style(rig, name):
    who, _, status, text = TABLE[name]
    head, body = ask(asked(rig, name), plain_head(**who))
    assert head.status == str(status) and text in body.decode(), (str(head), body)
    assert head.get("content-type") == "text/plain; charset=utf-8", str(head)


def test_cp2_three_attempts_on_what_may_heal_and_one_on_what_may_not(rig):
    with Caller(rig.first, key="flaky") as caller:
        assert caller.says() == "one"
    assert [call["retry"] for call in rig.api_calls("flaky")] == ["", "1", "2"]
    for code, calls in ((14, 3), (7, 1)):
        before = len(rig.api_calls(f"status-{code}"))
        ask(rig.first, plain_head(key=f"status-{code}"))
        assert len(rig.api_calls(f"status-{code}")) - before == calls, code


def test_cp10_a_limiter_that_is_asked_behind_denies_the_next(rig):
    """Not checked at once: the first one goes through, as far as its worker."""
    first, _ = ask(rig.hasty, grpc_head(key="limited", function=LATER))
    assert first.grpc_status == "4", str(first)
    until(lambda: ask(rig.hasty, grpc_head(key="limited", function=LATER))[0].grpc_status == "8",
          what="the denial that is remembered")


def test_cp11_a_limiter_that_keeps_silent_allows(rig):
    with Caller(rig.first, key="unheard", function=LIMITED) as caller:
        assert caller.says() == "one"
    assert rig.stand_in.seen("limiter", "nca", "nca-unheard") == 1


@pytest.mark.parametrize("version, why", [(FEW, "maximum messages exceeded"),
                                          (SMALL, "maximum bytes exceeded")])
def test_nt2_a_stream_that_is_full_is_said_at_once(rig, version, why):
    """10077 is every kind of full; only a message that is there already counts as published."""
    with contextlib.ExitStack() as waiting:
        for _ in range(6):
            peer = waiting.enter_context(rig.first.h2())
            peer.open(grpc_head(key=A, function=version), end_stream=True)
        until(lambda: rig.nats.messages(f"rq_ncp_{version}") > 0, what="work that waits")
        head, _ = ask(rig.first, grpc_head(key=A, function=version))
        assert head.grpc_status == "13", str(head)
        text = unquote(head.get("grpc-message"))
        assert "failed to publish function invocation request to nats" in text, text
        with pytest.raises(Exception, match=why):
            rig.nats.publish(f"rq.ncp.{version}.x", b"x" * 1_000)


def answer(**changes):
    """An answer of the API, as bytes."""
    version = changes.pop("version", IDLE)
    message = messages.AuthResponse(**{"functionId": IDLE, "clientAuthSubject": "subject",
                                       "clientNcaId": "nca", **changes})
    message.functionVersions.add(functionVersionId=version)
    return message.SerializeToString()


# What an API could say that is of no use: nothing of it may end up in a subject.
BAD_ANSWERS = {
    "no message": b"\xff\xff", "cut off": answer()[:-3], "no version's id": answer(version=""),
    "a subject of its own": answer(version="a.b.c"), "a wildcard": answer(version=">"),
    "a space": answer(version="a b"), "a line": answer(version="a\r\nPUB x 0\r\n"),
    "too long": answer(version="x" * 100_000),
    "no UTF-8": answer(clientNcaId="nca-xx").replace(b"nca-xx", b"nca-\xff\xff"),
}


@pytest.mark.parametrize("name", BAD_ANSWERS)
def test_an_answer_of_no_use(rig, name):
    bad = key("bad", {"raw": BAD_ANSWERS[name].hex()})
    rig.stand_in.play(key=[*PLAY["key"], bad])
    asked = rig.nats.listen(">")
    head, _ = ask(rig.hasty, grpc_head(key="bad", function=IDLE))
    assert head.grpc_status == "13" and OPENING in unquote(head.get("grpc-message")), str(head)
    assert not any("rq." in message.subject for message in list(asked.messages.queue))
    assert rig.hasty.alive()


@pytest.mark.parametrize("payload", [
    b"", b"\xff\xff", messages.Record(functionId=FUNCTION).SerializeToString(),
    messages.Record(functionId="x" * 100_000).SerializeToString(), b"\x0a\x02\xff\xff"])
def test_a_record_of_no_use(rig, payload):
    request_id = str(uuid.uuid4())
    rig.nats.publish(f"stateful_session.lookup.ncp.{VERSION}.{request_id}", payload)
    head, _ = ask(rig.hasty, grpc_head(key=A, reqid=request_id))
    assert head.grpc_status == "13" and OPENING in unquote(head.get("grpc-message")), str(head)
    assert not head.values("set-cookie") and rig.hasty.alive()


# --- a session ----------------------------------------------------------------------------------

def test_a_session_from_its_first_call_to_its_end(rig):
    """CL-16, CL-17, CL-36, CL-37, NT-1, contract 6.3, 6.4: one question, one work item, one
    tunnel for all
    calls of a connection; the message and the record last as long as the session."""
    work = rig.nats.listen(f"rq.ncp.{VERSION}.*")
    with Caller(rig.first, key="once", version=VERSION) as caller:
        calls = [caller.stub.Unary.future(EchoMessage(payload=b"x"), metadata=caller.who)
                 for _ in range(20)]
        assert {call.result(60).payload for call in calls} == {b"x"}
        cookies = [dict(call.initial_metadata()).get("set-cookie") for call in calls]
        assert caller.says() == "one" and "set-cookie" not in caller.head
        assert list(filter(None, cookies)) == [f"nvcf-request-id={caller.session}"]
        assert len(rig.api_calls("once")) == 1
        assert work.next().subject == f"rq.ncp.{VERSION}.{caller.session}"
        stored = rig.nats.last(f"rq_ncp_{VERSION}", f"rq.ncp.{VERSION}.{caller.session}")
        assert stored, "the message stays for the whole session"
        record = until(lambda: rig.record(caller.session), what="the record")
        assert (record.functionId, record.functionVersionId, record.invokerNcaId) == (
            FUNCTION, VERSION, "nca-once")
        assert rig.first.get(f"/sessions/{caller.session}", method="DELETE")[0] == 204
    until(lambda: not rig.nats.last(f"rq_ncp_{VERSION}",
                                      f"rq.ncp.{VERSION}.{caller.session}"), what="acknowledged")
    until(lambda: not rig.record(caller.session), what="the record's end")


def test_the_work_message(rig):
    """contract 6.2, NT-5, NT-6: these fields and no others, and no header block."""
    work = rig.nats.listen(f"rq.ncp.{IDLE}.*")
    head, _ = ask(rig.hasty, grpc_head(key=B, function=IDLE))
    assert head.grpc_status == "4", str(head)
    message = work.next()
    found = messages.Work.FromString(message.data)
    now = timestamp_pb2.Timestamp()
    now.GetCurrentTime()
    assert message.headers is None
    assert message.subject == f"rq.ncp.{IDLE}.{uuid.UUID(found.requestId)}"
    assert (found.ncaId, found.subject) == ("nca-b", "subject-b")
    assert 0 <= now.seconds - found.requestTime.seconds < 300
    assert found.statefulConfig.nvcfRegionOfInvoker == "ncp"
    config, = found.statefulConfig.connectionConfigs
    host, port = rig.hasty.worker
    assert config.http1Config.proxyURI == f"http://{host}:{port}/v1/proxy"
    token = config.http1Config.proxyAuthorizationToken
    assert len(token) == 64 and token.isalnum() and not config.HasField("http3Config")
    # Written again by who knows these fields alone, it is the same: so there are no others.
    again = messages.Work.FromString(message.data)
    again.DiscardUnknownFields()
    assert again.SerializeToString() == message.data


def test_work_that_nobody_waits_for_is_withdrawn(rig):
    """Design 3.23."""
    head, _ = ask(rig.hasty, grpc_head(key=A, function=IDLE))
    assert head.grpc_status == "4", str(head)
    until(lambda: rig.nats.messages(f"rq_ncp_{IDLE}") == 0, what="an empty stream")
    with rig.first.h2() as peer:
        peer.open(grpc_head(key=A, function=IDLE), end_stream=True)
        until(lambda: rig.nats.messages(f"rq_ncp_{IDLE}") == 1, what="the work of who waits")
    until(lambda: rig.nats.messages(f"rq_ncp_{IDLE}") == 0, what="an empty stream")


def test_cp3_a_version_is_picked_or_named(rig):
    seen = set()
    for _ in range(60):
        with Caller(rig.first, function=TWO_VERSIONS) as caller:
            seen.add(caller.says())
        if len(seen) == 2:
            break
    assert seen == {"one", "two"}
    for version, name in ((VERSION, "one"), (SECOND_VERSION, "two")):
        with Caller(rig.first, function=TWO_VERSIONS, version=version) as caller:
            assert caller.says() == name


def talk(gateway, **who):
    host, port = gateway.client
    return connect(f"ws://{host}:{port}/ws", compression=None, open_timeout=60,
                   additional_headers=dict(credentials(key=A, function=TALKS, **who)))


def test_a_websocket(rig):
    """CL-36, CL-37, CL-47."""
    with talk(rig.first) as socket:
        headers = socket.response.headers
        assert headers["set-cookie"] == f"nvcf-request-id={headers['nvcf-reqid']}"
        assert socket.recv(timeout=60) == "speaker"
        socket.send("hello")
        assert socket.recv(timeout=60) == "speaker: hello"


def test_a_streaming_function(rig):
    """CP-12, CP-13: by a request, and no stream is needed for it."""
    asked = rig.nats.listen(f"llsrq.default.{STREAMS}.*")
    with Caller(rig.first, function=STREAMS) as caller:
        assert caller.says() == "streams"
        heard = asked.next()
        assert heard.reply and heard.subject == f"llsrq.default.{STREAMS}.{caller.session}"
        assert messages.Work.FromString(heard.data).requestId == caller.session


# --- coming back (7) ----------------------------------------------------------------------------

@pytest.fixture
def held(rig):
    """A session of the first gateway, of the version "two" and the tenant a."""
    with Caller(rig.first, function=TWO_VERSIONS, version=SECOND_VERSION) as caller:
        assert caller.says() == "two"
        until(lambda: rig.record(caller.session, SECOND_VERSION), what="the record")
        yield caller


@pytest.mark.parametrize("where", ["first", "second"])
def test_r1_r6_r18_a_session_is_found_by_its_id(rig, held, where):
    """Also by a gateway that did not make it; R6: no version need be named."""
    back = rig.nats.listen(f"stateful_session.reconnect.{held.session}")
    with Caller(rig.gateways[where], function=TWO_VERSIONS, reqid=held.session) as other:
        assert other.says() == "two" and other.session == held.session
        assert held.says() == "two", "the first one has a tunnel of its own"
        if where == "second":
            again = messages.Work.FromString(back.next().data)
            config, = again.statefulConfig.connectionConfigs
            host, port = rig.second.worker
            assert again.requestId == held.session
            assert config.http1Config.proxyURI == f"http://{host}:{port}/v1/proxy"


# What comes back wrongly, and what it is told.
STRANGERS = {
    "E8 another function": (dict(key=A, function=FUNCTION), 13, 500,
                            "existing session function ID mismatch"),
    "E9 another version": (dict(key=A, function=TWO_VERSIONS, version=VERSION), 13, 500,
                           "existing session function version ID mismatch"),
    "E10 another tenant": (dict(key=B, function=TWO_VERSIONS), 13, 500,
                           "existing session invoker NCA ID mismatch"),
    "R8 who may not": (dict(key="status-7", function=TWO_VERSIONS), 7, 403, "because 7"),
}


@pytest.mark.parametrize("where", ["first", "second"])
@pytest.mark.parametrize("name", STRANGERS)
def test_r4_r5_r7_r8_a_session_is_not_anybodys(rig, held, name, where):
    who, code, status, text = STRANGERS[name]
    if code == 13:
        text = OPENING + text + f" for request id {held.session}"
    head, _ = ask(rig.gateways[where], grpc_head(reqid=held.session, **who))
    assert head.grpc_status == str(code) and text in unquote(head.get("grpc-message")), str(head)
    assert not head.values("set-cookie"), str(head)
    head, body = ask(rig.gateways[where], plain_head(reqid=held.session, **who))
    assert head.status == str(status) and text in body.decode(), (str(head), body)


def test_a_websocket_comes_back_by_its_cookie(rig):
    visits = rig.speaker.visits
    with talk(rig.first) as socket:
        assert socket.recv(timeout=60) == "speaker"
        session = socket.response.headers["nvcf-reqid"]
        until(lambda: rig.record(session, TALKS), what="the record")
        host, port = rig.second.client
        with connect(f"ws://{host}:{port}/ws", compression=None, open_timeout=60,
                     additional_headers={**dict(credentials(key=A, function=TALKS)),
                                         "cookie": f"nvcf-request-id={session}"}) as again:
            assert again.response.headers["nvcf-reqid"] == session
            assert again.recv(timeout=60) == "speaker" and rig.speaker.visits == visits + 2


# --- what is shown (8) --------------------------------------------------------------------------

RESULTS = ("accepted rejected_not_hijackable rejected_missing_auth rejected_missing_requestid "
           "rejected_invalid_requestid rejected_requestid_mismatch rejected_token_expired "
           "rejected_token_unknown rejected_hijack_failed").split()
REASONS = ("client_closed worker_closed shutdown ttl_expired capacity_reached deleted "
           "unknown").split()
CODES = ("none eof reset timeout closed_conn context_canceled quic_idle_timeout quic_application "
         "quic_transport quic_stream_reset quic_handshake_timeout quic_stateless_reset h2_goaway "
         "h2_stream h2_connection unknown").split()
FAILURES = ("certificate_expired tls_verification tls authentication timeout connection "
            "other").split()
# The series that are there with 0 from the first scrape on (8.1), under their types.
ZEROS = {
    "gauge": {"active_http_requests_total": [{}], "active_connections_total": [{}],
              "worker_connections_active": [{}]},
    "counter": {
        "client_connection_opened_total": [{}], "worker_token_issued_total": [{}],
        "worker_connection_opened_total": [{}], "nats_error_total": [{}],
        "nats_disconnect_total": [{}], "nats_reconnect_total": [{}], "nats_lame_duck_total": [{}],
        "worker_connect_total": [{"result": one} for one in RESULTS],
        "worker_connection_closed_total": [{"reason": one} for one in REASONS],
        "worker_connection_close_code_total": [{"code": one} for one in CODES],
        "nats_failure_total": [{"reason": one} for one in FAILURES],
        "pending_work_purged_total": [
            {"result": result, "trigger": trigger} for result in ("succeeded", "failed")
            for trigger in ("shutdown", "client_departed")],
        "pending_work_purge_skipped_total": [{"reason": one} for one in (
            "invoker_unsupported", "nothing_pending", "shutting_down", "budget_exhausted")]},
}
GAUGES_OF_NATS = [f"nats_{name}" for name in
                  ("out_bytes", "in_bytes", "out_msgs", "in_msgs", "reconnects")]
LONG = [1, 5, 8, 10, 15, 30, 45, 60, 120, 300, 600, 1800, 3600]
BUCKETS = {
    "client_connection_duration_seconds": LONG, "worker_connection_duration_seconds": LONG,
    "client_connection_worker_tunnels_at_close": [0, 1, 2, 3, 5, 10, 25, 50, 100],
    "session_init_seconds_total": [.005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10],
    "worker_connect_token_age_seconds": [.1, .25, .5, 1, 2, 5, 10, 15, 20, 25, 30, 45, 60, 120,
                                         300],
}


def types(text):
    return dict(line.split()[2:4] for line in text.splitlines() if line.startswith("# TYPE "))


def test_metrics_are_there_with_zeros_from_the_start(rig):
    fresh = rig.bed.ready_gateway()
    text = fresh.complete("/metrics").decode()
    kinds = types(text)
    for kind, names in ZEROS.items():
        for name, labels in names.items():
            assert kinds.get(METRIC + name) == kind, name
            for series in labels:
                assert fresh.metric(name, **series) == 0, (name, series)
    for name in GAUGES_OF_NATS:
        assert kinds.get(METRIC + name) == "gauge", name
    assert fresh.metric("nats_out_msgs") > 0 and fresh.metric("nats_in_bytes") > 0
    fresh.kill()


def test_metrics_of_a_session_move(rig):
    before = rig.first.metric("client_connection_opened_total")
    with Caller(rig.first) as caller:
        caller.says()
    with Caller(rig.first, reqid=NOBODY) as caller:
        assert caller.is_refused()[0] == 5
    until(lambda: rig.first.metric("client_connection_opened_total") >= before + 2,
          what="the connections")
    text = rig.first.complete("/metrics").decode()
    kinds = types(text)
    for name, wanted in BUCKETS.items():
        assert kinds.get(METRIC + name) == "histogram", name
        edges = {line.split('le="')[1].split('"')[0] for line in text.splitlines()
                 if line.startswith(f"{METRIC}{name}_bucket")}
        assert sorted(map(float, edges - {"+Inf"})) == wanted, name
    assert rig.first.metric("session_init_seconds_total_count", is_reconnect="false") > 0
    assert rig.first.metric("session_init_seconds_total_sum", is_reconnect="false") > 0
    assert rig.first.metric("worker_connect_total", result="accepted") > 0
    assert rig.first.metric("worker_connect_token_age_seconds_count", result="accepted") > 0
    assert rig.first.metric("function_request_total", function_id=FUNCTION,
                              function_version_id=VERSION, nca_id="nca-a") > 0
    assert rig.first.metric("rpc_client_duration_milliseconds_count", rpc_service="nvcf.Proxy",
                              rpc_method="AuthStatefulWork", rpc_grpc_status_code="0") > 0
    assert kinds.get("http_server_request_duration_seconds") == "histogram"


def test_the_log_has_the_references_keys(rig):
    """contract 8.3."""
    ask(rig.first, plain_head(key="status-7"))
    lines = rig.first.log_lines()
    assert lines
    for line in lines:
        assert {"level", "ts", "msg"} <= line.keys(), line
        assert isinstance(line["ts"], float) and isinstance(line["msg"], str), line
        assert not {"message", "timestamp"} & line.keys(), line
    refused = [line for line in lines if "failed to open stateful work request" in line["msg"]]
    assert refused and {line["level"] for line in refused} == {"warn"}, lines[-3:]


def test_the_log_tells_a_sessions_end(rig):
    """contract 8.3: what operators search for."""
    text = "worker connection cache eviction triggered"
    with talk(rig.first) as socket:
        socket.recv(timeout=60)
        socket.send("end this")
        with contextlib.suppress(Exception):
            socket.recv(timeout=60)
    line = until(lambda: next((line for line in rig.first.log_lines() if line["msg"] == text),
                              None), what=text)
    for key in ("request_id", "eviction_reason", "held_for", "close_code", "local_timeout"):
        assert key in line, line
    assert isinstance(line["held_for"], float), line


def test_health_is_the_references(rig):
    """OB-4."""
    status, content = rig.first.health()
    assert (status, content["status"], "failures" in content) == (200, "OK", False), content
    assert content["component"]["name"] == "grpc proxy" and content["component"]["version"]
    assert content["timestamp"]
    try:
        rig.stand_in.play(api={**PLAY["api"], "health": "NOT_SERVING"})
        until(lambda: rig.first.health()[0] == 503, what="an API that is not well")
        _, content = rig.first.health()
        assert content["status"] == "Unavailable" and list(content["failures"]) == [
            "nvcf grpc api"], content
        assert rig.first.get("/live")[0] == 200
        assert rig.stand_in.seen("health", "bearer", PROXY_TOKEN) == 0, "no credential"
    finally:
        rig.stand_in.play(api=PLAY["api"])
    until(lambda: rig.first.health()[0] == 200, what="an API that is well again")


# --- outages ------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def server():
    with grpcserver.Server(name="one") as running:
        yield f"127.0.0.1:{running.port}"


def serves(gateway, **who):
    """Waits until a call goes through; the caller, whose connection stays."""
    def called():
        caller = Caller(gateway, **who)
        with contextlib.suppress(grpc.RpcError):
            caller.says()
            return caller
        caller.channel.close()
        return None
    return until(called, what="a call that goes through", timeout=60)


def test_nt4_nats_is_down_at_the_start(nvcf_bed, server):
    """Alive, not ready, says why; then it serves."""
    bed = nvcf_bed()
    bed.nats_server.kill()
    gateway = bed.gateway()
    assert gateway.get("/live")[0] == 200
    status, _, body = gateway.get("/ready")
    assert status == 503 and "nats" in body.decode().lower(), body
    until(lambda: gateway.health()[0] == 503 and "nats" in gateway.health()[1]["failures"],
          what="health that names it")
    assert "nats" in gateway.log_text().lower()
    with Caller(gateway) as caller:
        code, text = caller.is_refused()
        assert code == 13 and "failed to publish function invocation request to nats" in text
    bed.nats_server.start()
    bed.make_streams(VERSION)
    bed.worker(server)
    until(gateway.is_ready, what="ready")
    with serves(gateway) as caller:
        nats = bed.client()
        found = until(lambda: nats.js(f"STREAM.INFO.{LOOKUPS}").get("config"), what="look-ups")
        assert found["num_replicas"] == 1  # NT-3
        gateway.logs("replica")
        assert caller.says() == "one"
    assert gateway.health()[0] == 200


def test_nt3_nats_is_lost_and_comes_back_empty(nvcf_bed, server):
    """What runs goes on; the look-up stream is made again; new sessions when there is work to be
    had."""
    bed = nvcf_bed()
    bed.make_streams(VERSION)
    bed.worker(server, slots=8)
    gateway = bed.ready_gateway(RINGWAY__CONTROL__RED_AFTER="1s")
    with serves(gateway) as caller:
        bed.nats_server.kill()
        assert caller.says() == "one"
        until(lambda: not gateway.is_ready(), what="not ready")
        with Caller(gateway, reqid=SOME_ID) as other:
            assert other.is_refused()[0] == 13  # E11
        assert caller.says() == "one" and gateway.get("/live")[0] == 200
        bed.nats_server.start()
        until(gateway.is_ready, what="ready again")
        nats = bed.client()
        until(lambda: nats.state(LOOKUPS) is not None, what="the look-up stream")
        bed.make_streams(VERSION)
        with serves(gateway, key=B):
            assert caller.says() == "one"
    assert gateway.metric("nats_disconnect_total") >= 1
    assert gateway.metric("nats_reconnect_total") >= 1
    bed.nats_server.lame_duck()  # NT-9
    until(lambda: gateway.metric("nats_lame_duck_total") == 1, what="the notice")


def test_the_api_is_lost_and_comes_back(nvcf_bed, server):
    bed = nvcf_bed()
    bed.make_streams(VERSION)
    bed.worker(server, slots=8)
    gateway = bed.ready_gateway(RINGWAY__CONTROL__RED_AFTER="1s")
    with serves(gateway) as caller:
        bed.stand_in.kill()
        with Caller(gateway) as other:
            code, text = other.is_refused()
            assert code == 14 and OPENING in text
        until(lambda: gateway.health()[0] == 503, what="health")
        assert list(gateway.health()[1]["failures"]) == ["nvcf grpc api"]
        until(lambda: not gateway.is_ready(), what="not ready")
        assert caller.says() == "one" and gateway.get("/live")[0] == 200
        bed.stand_in.start()
        until(gateway.is_ready, what="ready again")
        with serves(gateway):
            assert caller.says() == "one"


def test_nt3_a_look_up_stream_of_others_is_used_as_it_is(nvcf_bed):
    bed = nvcf_bed()
    nats = bed.client()
    made = nats.js(f"STREAM.CREATE.{LOOKUPS}", name=LOOKUPS, storage="memory",
                   subjects=["stateful_session.lookup.ncp.>"], max_msgs_per_subject=5)
    assert "error" not in made, made
    gateway = bed.ready_gateway()
    with Caller(gateway, reqid=SOME_ID) as caller:
        assert caller.is_refused()[0] == 5  # without direct access too (6.5)
    assert nats.js(f"STREAM.INFO.{LOOKUPS}")["config"] == made["config"]
    gateway.logs("max_msgs_per_subject")


def test_three_servers_of_which_one_is_lost(nvcf_bed, server):
    """NT-3: three replicas where the tag is."""
    bed = nvcf_bed(nats=Cluster)
    bed.make_streams(VERSION, "--placement", "dc:ncp", replicas=3)
    bed.worker(server, slots=8)
    gateway = bed.ready_gateway()
    nats = bed.client()
    config = nats.js(f"STREAM.INFO.{LOOKUPS}")["config"]
    assert (config["num_replicas"], config["placement"]["tags"]) == (3, ["dc:ncp"])
    with serves(gateway) as caller:
        bed.nats_server.servers[0].kill()
        assert caller.says() == "one"
        with serves(gateway, key=B):
            assert gateway.alive()


# --- credentials (5.2, 6.6) ---------------------------------------------------------------------

def test_cp6_a_new_token_is_used_without_a_restart(nvcf_bed, server):
    bed = nvcf_bed()
    bed.make_streams(VERSION)
    bed.worker(server, slots=8)
    gateway = bed.ready_gateway()
    serves(gateway).channel.close()
    bed.stand_in.play(api={"from": {"bearers": ["fresh-token"]}})
    with Caller(gateway) as caller:
        assert caller.is_refused()[0] == 16
    new = bed.secrets.with_suffix(".new")
    new.write_text(json.dumps({**json.loads(bed.secrets.read_text()),
                               "nvcfApiToken": "fresh-token"}))
    new.rename(bed.secrets)
    serves(gateway).channel.close()
    assert "fresh-token" not in gateway.log_text()


def test_cp6_secrets_that_may_not_be_read_change_nothing(nvcf_bed, server):
    """A file of mode 000: what was known stays in use, with a warning that names the fix, and the
    new token is used as soon as it may be read."""
    bed = nvcf_bed()
    bed.make_streams(VERSION)
    bed.worker(server, slots=8)
    # Root reads what it may not, unless it has lost that right.
    bound = "-dac_override,-dac_read_search"
    launcher = ["setpriv", "--bounding-set", bound] if os.geteuid() == 0 else []
    gateway = bed.ready_gateway(launcher=launcher)
    serves(gateway).channel.close()
    new = bed.secrets.with_suffix(".new")
    new.write_text(json.dumps({**json.loads(bed.secrets.read_text()),
                               "nvcfApiToken": "fresh-token"}))
    new.chmod(0)
    new.rename(bed.secrets)
    until(lambda: "it may not be read: look at its owner and mode" in gateway.log_text(),
          what="a warning")
    with Caller(gateway) as caller:
        assert caller.says() == "one"
    bed.stand_in.play(api={"from": {"bearers": ["fresh-token"]}})
    bed.secrets.chmod(0o600)
    serves(gateway).channel.close()
    gateway.logs("the secrets file can be used again")
    assert "fresh-token" not in gateway.log_text()


@pytest.mark.parametrize("wants", ["basic", "body"])
def test_cp7_nt8_tokens_of_an_issuer(nvcf_bed, server, wants):
    """OAuth2 for the API, the limiter and NATS, whose server asks who may come in."""
    seed, issuer = make_nkey("account")

    def asking(directory, more):
        return NatsServer(directory, more=f"""
accounts {{ APP {{ jetstream: enabled, users: [ {{ user: worker, password: worker-password }} ] }}
            SYS {{ users: [ {{ user: sys, password: sys }} ] }} }}
system_account: SYS
authorization {{ auth_callout {{ issuer: {issuer}, auth_users: [ worker ], account: APP }} }}
""")
    issued = {"from": {"issued": True}}
    script = {**PLAY, "api": issued, "limiter": issued,
              "token": {"wants": wants, "client": [{"id": "me", "secret": "s+cret/"}]}}
    bed = nvcf_bed(script, nats=asking)
    bed.stand_in.kill()
    bed.stand_in.script["callout"] = {"nats": bed.nats_server.url(), "issuer_seed": seed,
                                      "account": "APP", **issued}
    bed.stand_in.start()
    bed.make_streams(VERSION)
    bed.worker(server, slots=8)
    bed.tell_secrets(nvcfApiToken=None, ratelimiterToken=None, natsPrivateNKey=None, id="me",
                     secret="s+cret/")
    gateway = bed.ready_gateway(SSA_FQDN=bed.stand_in.url("token"))
    serves(gateway, function=LIMITED).channel.close()
    assert bed.stand_in.seen("callout", "status", "in") >= 1
    for scope in ("proxy:invoke_function", "ratelimit:check_invocation", "admin:nats:Worker"):
        assert bed.stand_in.seen("token", "scope", scope) >= 1, scope
    styles = bed.stand_in.counts("token")["by"]["style"]
    assert styles.get(wants, 0) >= 3, styles
    # Tokens are kept until they expire: another session asks for none.
    asked = bed.stand_in.counts("token")["calls"]
    serves(gateway, key=B).channel.close()
    assert bed.stand_in.counts("token")["calls"] == asked
