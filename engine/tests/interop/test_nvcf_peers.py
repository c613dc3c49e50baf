"""The parts that the tests of the gateway's `nvcf` mode stand on, without a gateway: a
`ringway-worker` that takes work by NATS is held against what NVIDIA's worker does (contract 4.6,
6.4, 11), `ringway-stand-in` against what NVIDIA's API, token endpoint and limiter say."""

import base64
import json
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid

import grpc
import nats.errors
import pytest

import nvcf_messages as messages
from gateway import FUNCTION, ROOT, VERSION, until
from nats_rig import PASSWORD, USER, Cluster, Inbox, Nats, NatsServer, NoResponders, users
from nvcf_bed import (Callback, Parrot, StandIn, make_nkey, make_streams, program, stand_in)
from workerprogram import WorkerProgram

STREAM = f"rq_ncp_{VERSION}"
LOOKUPS = "stateful_session_lookup_ncp"


class Rig:
    """A NATS server with the streams of one version, a proxy that the test plays, and a server for
    workers."""

    def __init__(self, directory, lookups=True):
        self.directory, self.workers = directory, []
        self.server = NatsServer(directory, more=users())
        self.nats = Nats(self.server.url())
        make_streams(self.server.url(), VERSION)
        if lookups:
            self.nats.make_lookups()
        self.proxy, self.parrot = Callback(), Parrot()

    def worker(self, **options):
        self.workers.append(WorkerProgram.by_nats(
            self.server.url(), self.parrot.target, self.directory, f"worker{len(self.workers)}",
            **options))
        return self.workers[-1]

    def work(self, request_id=None, token="token-1", nca="nca-a"):
        request_id = request_id or str(uuid.uuid4())
        return request_id, messages.work(request_id, self.proxy.uri, token, nca)

    def submit(self, **options):
        """Work into the request stream; its request id."""
        request_id, payload = self.work(**options)
        self.nats.publish(f"rq.ncp.{VERSION}.{request_id}", payload)
        return request_id

    def record(self, request_id):
        """The record of a session, or None."""
        found = self.nats.last(LOOKUPS, f"stateful_session.lookup.ncp.{VERSION}.{request_id}")
        return found and messages.Record.FromString(found.data)

    def call_back(self, request_id, token="token-2"):
        """A reconnect message that can be answered; whether somebody listened."""
        _, payload = self.work(request_id, token)
        try:
            self.nats.request(f"stateful_session.reconnect.{request_id}", payload)
        except NoResponders:
            return False
        return True

    def queue(self):
        return self.nats.queued(VERSION)

    def close(self):
        for worker in self.workers:
            worker.kill()
        self.nats.close()
        self.server.kill()
        self.proxy.close()
        self.parrot.close()
        for worker in self.workers:
            log = worker.log_text()
            assert "panicked" not in log and "token-" not in log, log


@pytest.fixture
def rig(tmp_path):
    made = Rig(tmp_path)
    yield made
    made.close()


@pytest.fixture
def rig_without_lookups(tmp_path):
    made = Rig(tmp_path, lookups=False)
    yield made
    made.close()


# --- the worker -------------------------------------------------------------------------------

def test_a_session_from_its_work_to_its_end(rig):
    """WK-1, contract 4.6, 6.3, 6.4: CONNECT as NVIDIA's, a record while the session
    lasts, the message in the stream for all of that time, and nothing left behind it."""
    rig.worker()
    request_id = rig.submit()
    tunnel = rig.proxy.next()
    assert tunnel.line == "CONNECT /v1/proxy HTTP/1.1"
    assert tunnel.fields["authorization"] == "Bearer token-1"
    assert tunnel.fields["x-request-id"] == request_id
    record = until(lambda: rig.record(request_id), what="the record")
    assert (record.functionId, record.functionVersionId, record.invokerNcaId) == (
        FUNCTION, VERSION, "nca-a")
    assert tunnel.accept().says(b"hello") == b"hello"
    assert rig.queue() == (1, 1)
    tunnel.close()
    until(lambda: rig.queue() == (0, 0), what="the acknowledgement")
    until(lambda: rig.record(request_id) is None, what="the record's end")


def test_work_is_taken_slot_by_slot(rig):
    """NT-1: who has a message has its session, so no more are taken than there are slots."""
    rig.worker(slots=2)
    for _ in range(4):
        rig.submit()
    first, second = rig.proxy.next(), rig.proxy.next()
    assert rig.queue() == (4, 2)
    first.accept().close()
    third = rig.proxy.next()
    until(lambda: rig.queue() == (3, 2), what="one acknowledged, one more taken")
    ids = {tunnel.fields["x-request-id"] for tunnel in (first, second, third)}
    assert len(ids) == 3


def test_a_session_ends_with_its_last_tunnel(rig):
    """contract 4.6: the answer to a reconnect message is a second tunnel, and any order of
    ends will do."""
    rig.worker()
    request_id = rig.submit()
    first = rig.proxy.next().accept()
    assert first.says(b"one") == b"one"
    until(lambda: rig.call_back(request_id), what="somebody who listens")
    second = rig.proxy.next()
    assert second.fields["authorization"] == "Bearer token-2"
    assert second.fields["x-request-id"] == request_id
    assert second.accept().says(b"two") == b"two"
    first.close()
    assert second.says(b"three") == b"three"
    assert rig.queue() == (1, 1) and rig.record(request_id)
    second.close()
    until(lambda: rig.queue() == (0, 0), what="the session's end")
    until(lambda: not rig.call_back(request_id), what="nobody listens")


def test_nobody_listens_before_the_first_tunnel(rig):
    """contract 4.6: it subscribes only after its first CONNECT."""
    rig.worker()
    request_id = rig.submit()
    tunnel = rig.proxy.next()
    until(lambda: rig.record(request_id), what="the record: registration does not wait")
    assert not rig.call_back(request_id)
    tunnel.accept()
    until(lambda: rig.call_back(request_id), what="somebody who listens")


@pytest.mark.parametrize("payload", [b"", b"\xff\xff\xff", b"another's"])
def test_a_reconnect_message_that_cannot_be_followed_is_ignored(rig, payload):
    worker = rig.worker()
    request_id = rig.submit()
    first = rig.proxy.next().accept()
    until(lambda: rig.call_back(request_id), what="somebody who listens")
    rig.proxy.next().accept()
    if payload == b"another's":
        _, payload = rig.work()
    rig.nats.do(rig.nats.client.publish(f"stateful_session.reconnect.{request_id}", payload))
    worker.says("ignored")
    assert rig.call_back(request_id)
    assert rig.proxy.next().accept().says(b"again") == b"again"
    assert first.says(b"still") == b"still"


def test_dead_work_is_acknowledged(rig):
    """contract 4.6: a session that cannot connect fails; its message is not given out again.
    WK-5: 403 is not tried again."""
    worker = rig.worker()
    request_id = rig.submit()
    rig.proxy.next().refuse()
    until(lambda: rig.queue() == (0, 0), what="the acknowledgement")
    until(lambda: rig.record(request_id) is None, what="no record")
    worker.says("the gateway refused the tunnel")
    rig.submit()
    assert rig.proxy.next().accept().says(b"next") == b"next"


def test_a_passing_refusal_is_tried_again(rig):
    """WK-5: anything but 200, 401, 403."""
    rig.worker()
    rig.submit()
    for _ in range(2):
        rig.proxy.next().refuse(503)
    assert rig.proxy.next().accept().says(b"hello") == b"hello"


@pytest.mark.parametrize("payload", [b"", b"\xff\xff\xff"])
def test_work_that_cannot_be_read_is_acknowledged(rig, payload):
    worker = rig.worker()
    rig.nats.publish(f"rq.ncp.{VERSION}.x", payload)
    worker.says("work that cannot be read")
    until(lambda: rig.queue() == (0, 0), what="the acknowledgement")


def test_the_message_is_kept_in_progress(rig):
    """contract 4.6: every 10 s."""
    heard = rig.nats.listen(f"$JS.ACK.{STREAM}.>")
    rig.worker()
    rig.submit()
    rig.proxy.next().accept()
    begun = time.monotonic()
    assert heard.next().data == b"+WPI"
    assert time.monotonic() - begun > 8
    rig.proxy.dialled[0].close()
    assert heard.next().data in (b"", b"+ACK"), "acknowledged"


def test_registration_is_tried_until_there_is_a_stream(rig_without_lookups):
    rig = rig_without_lookups
    worker = rig.worker()
    request_id = rig.submit()
    tunnel = rig.proxy.next().accept()
    assert tunnel.says(b"hello") == b"hello", "the session does not wait for its record"
    worker.says("not registered; trying again")
    rig.nats.make_lookups()
    until(lambda: rig.record(request_id), what="the record")


def test_a_server_that_comes_back_empty(rig):
    """The worker is there before the streams are, and asks again once they are."""
    rig.worker()
    rig.submit()
    assert rig.proxy.next().accept().says(b"before") == b"before"
    rig.proxy.dialled[0].close()
    until(lambda: rig.queue() == (0, 0), what="the session's end")
    rig.server.kill()
    rig.server.start()
    until(lambda: rig.nats.state(STREAM) is None and
          "error" not in rig.nats.js("STREAM.NAMES"), what="an empty server")
    make_streams(rig.server.url(), VERSION)
    rig.nats.make_lookups()
    rig.submit()
    assert rig.proxy.next().accept().says(b"after") == b"after"


def test_a_worker_that_starts_before_the_server(tmp_path):
    server = NatsServer(tmp_path, more=users(), wait=False)
    with WorkerProgram.by_nats(server.url(), "127.0.0.1:1", tmp_path) as worker:
        worker.says("cannot connect to NATS")
        server.start()
        worker.says("no consumer to take work from")
        make_streams(server.url(), VERSION)
        worker.says("taking work")
        worker.signal()
        assert worker.exit_code() == 0
    server.kill()


def test_a_stopped_worker_ends_its_sessions_and_says_how_long_things_took(rig):
    worker = rig.worker(slots=2)
    rig.submit()
    tunnel = rig.proxy.next().accept()
    assert tunnel.says(b"hello") == b"hello"
    worker.signal()
    worker.says("no more work is taken")
    rig.submit()
    assert tunnel.says(b"still") == b"still"
    tunnel.close()
    assert worker.exit_code() == 0
    assert rig.queue()[0] == 1, "what came later is for another worker"
    told = next(line for line in worker.log_text().splitlines() if "times so far" in line)
    told = json.loads(told)
    assert told["sessions"] == 1 and told["claim_p50_us"] > 0 and told["dial_p50_us"] > 0, told


# --- streaming functions ----------------------------------------------------------------------

SUBJECT = f"llsrq.default.{VERSION}"  # CP-13: these regions have names of their own
HEAD = b"GET /sign_in HTTP/1.1\r\nHost: x\r\nX-NVCF-RECONNECT-WINDOW-SECS: 2\r\n\r\n"


def ask(rig, **options):
    """Work for a streaming function: accepted by any reply (CP-12)."""
    request_id, payload = rig.work(**options)
    rig.nats.request(f"{SUBJECT}.{request_id}", payload)
    return request_id


def listening(rig):
    """Waits until a worker listens; the request id of the session that this made."""
    def accepted():
        try:
            return ask(rig)
        except NoResponders:
            return None
    return until(accepted, what="a worker that listens")


def test_a_streaming_session_outlives_its_last_tunnel(rig):
    """12.0: as long as its request says. Who comes back meanwhile finds it."""
    rig.worker(more=["--streaming"])
    request_id = listening(rig)
    tunnel = rig.proxy.next().accept()
    assert tunnel.says(HEAD) == HEAD
    until(lambda: rig.record(request_id), what="the record")
    tunnel.close()
    begun = time.monotonic()
    until(lambda: rig.call_back(request_id), what="the session that waits")
    again = rig.proxy.next().accept()
    assert again.says(HEAD) == HEAD
    assert time.monotonic() - begun < 2
    again.close()
    begun = time.monotonic()
    until(lambda: rig.record(request_id) is None, what="the session's end")
    assert time.monotonic() - begun > 1.5


def test_a_streaming_worker_without_a_free_slot_does_not_listen(rig):
    """So that the work is another's, or nobody's: CP-13 goes on to the next region."""
    rig.worker(more=["--streaming", "--reconnect-window", "0"])
    listening(rig)
    tunnel = rig.proxy.next().accept()
    with pytest.raises(NoResponders):
        ask(rig)
    assert tunnel.says(HEAD.replace(b"X-NVCF", b"Y")) and rig.nats.state(STREAM)["messages"] == 0
    tunnel.close()
    listening(rig)
    rig.proxy.next()


# --- a cluster --------------------------------------------------------------------------------

def test_streams_of_three_servers_are_placed_by_their_tag(tmp_path):
    """NT-1, NT-3: three replicas where the tag is; a tag that too few have is refused."""
    cluster = Cluster(tmp_path, users())
    proxy, parrot = Callback(), Parrot()
    try:
        make_streams(cluster.url(), VERSION, "--placement", "dc:ncp", replicas=3)
        refused = subprocess.run(
            [*program(), "make-streams", "--nats", cluster.url(), "--version", FUNCTION,
             "--placement", "node:1"], capture_output=True, text=True, timeout=60)
        assert refused.returncode == 1 and "no suitable peers" in refused.stderr, refused
        with Nats(cluster.url()) as client, WorkerProgram.by_nats(
                cluster.url(), parrot.target, tmp_path) as worker:
            config = client.js(f"STREAM.INFO.{STREAM}")["config"]
            assert config["num_replicas"] == 3 and config["placement"]["tags"] == ["dc:ncp"]
            client.make_lookups(replicas=3)
            request_id = str(uuid.uuid4())
            client.publish(f"rq.ncp.{VERSION}.{request_id}",
                           messages.work(request_id, proxy.uri, "token-1"))
            tunnel = proxy.next().accept()
            assert tunnel.says(b"hello") == b"hello"
            # Whatever the lost one led, another leads it soon. An acknowledgement sent before that
            # would be lost, as NVIDIA's are: nobody answers it.
            assert client.queued(VERSION) == (1, 1)
            cluster.servers[0].kill()
            assert tunnel.says(b"still") == b"still"
            until(lambda: client.queued(VERSION) == (1, 1), what="leaders")
            tunnel.close()
            until(lambda: client.queued(VERSION) == (0, 0), what="the acknowledgement")
            assert worker.run.poll() is None
    finally:
        cluster.kill()
        proxy.close()
        parrot.close()


def test_the_request_stream_is_nvidias(rig):
    """NT-1, each setting; and what it refuses (NT-2)."""
    config = rig.nats.js(f"STREAM.INFO.{STREAM}")["config"]
    wanted = {"subjects": [f"rq.ncp.{VERSION}.*"], "retention": "workqueue", "discard": "new",
              "max_msgs_per_subject": 1, "discard_new_per_subject": True, "max_msgs": 100_000,
              "duplicate_window": 5_000_000_000, "storage": "memory", "allow_direct": True,
              "max_age": 0, "max_bytes": -1}
    assert {key: config[key] for key in wanted} == wanted
    config = rig.nats.js(f"CONSUMER.INFO.{STREAM}.{STREAM}_workers")["config"]
    wanted = {"ack_wait": 30_000_000_000, "max_ack_pending": 100_000, "ack_policy": "explicit",
              "max_deliver": -1}
    assert {key: config[key] for key in wanted} == wanted
    request_id = rig.submit()
    with pytest.raises(Exception, match="maximum messages per subject exceeded"):
        rig.submit(request_id=request_id)


# --- the stand-in -----------------------------------------------------------------------------

VERSIONS = [{"id": VERSION, "type": "STREAMING", "backend": "GFN"},
            {"id": FUNCTION, "rate_limit": True, "sync_check": True}]
SCRIPT = {
    "api": {"from": {"bearers": ["proxy"], "issued": True}},
    "key": [{"token": "a", "subject": "sub-a", "nca": "nca-a"},
            {"token": "late", "trouble": [{"delay_ms": 300}]},
            {"token": "busy", "trouble": [{"status": 14, "message": "not now", "times": 2}]},
            {"token": "raw", "trouble": [{"raw": "ff"}]},
            {"token": "few", "functions": [VERSION]}],
    "function": [{"id": FUNCTION, "version": VERSIONS}],
    "limiter": {"rule": [{"nca": "nca-b", "disallow": True},
                         {"nca": "nca-s", "trouble": [{"delay_ms": 3_600_000}]}]},
    "token": {"client": [{"id": "me", "secret": "s+cret"}]},
}


@pytest.fixture(scope="module")
def played(tmp_path_factory):
    running = StandIn(tmp_path_factory.mktemp("stand-in"), SCRIPT)
    yield running
    running.kill()


@pytest.fixture
def stage(played):
    """As the script has it, whatever a test before made of it."""
    played.play(**SCRIPT)
    played.reset()
    return played


def call(stage, method, request, answer, part="api", bearer="proxy", timeout=30):
    with grpc.insecure_channel(stage.at(part)) as channel:
        return channel.unary_unary(method, type(request).SerializeToString, answer.FromString)(
            request, timeout=timeout, metadata=[("authorization", f"Bearer {bearer}")])


def authorise(stage, key="a", version=None, function=FUNCTION, **options):
    asked = messages.AuthRequest(clientAuthorizationToken=key, functionId=function)
    if version is not None:
        asked.functionVersionId = version
    return call(stage, "/nvcf.Proxy/AuthStatefulWork", asked, messages.AuthResponse, **options)


def refused(stage, **options):
    with pytest.raises(grpc.RpcError) as caught:
        authorise(stage, **options)
    return caught.value.code().value[0]


def test_the_api_answers_as_the_contract_has_it(stage):
    """contract 5.1."""
    answer = authorise(stage)
    assert (answer.functionId, answer.clientAuthSubject, answer.clientNcaId) == (
        FUNCTION, "sub-a", "nca-a")
    found = [(one.functionVersionId, one.type, one.backendType, one.hasRateLimit, one.syncCheck)
             for one in answer.functionVersions]
    assert found == [(VERSION, 1, 1, False, False), (FUNCTION, 0, 0, True, True)]
    only = authorise(stage, version=VERSION).functionVersions
    assert [one.functionVersionId for one in only] == [VERSION]
    assert stage.seen("api", "bearer", "proxy") == 2 and stage.seen("api", "key", "a") == 2


def test_the_api_refuses_as_the_contract_has_it(stage):
    """CP-4."""
    assert refused(stage, bearer="nobody") == 16
    assert refused(stage, key="nobody") == 16
    assert refused(stage, key="few") == 7
    assert refused(stage, function=VERSION) == 5
    assert refused(stage, version="99999999-9999-4999-8999-999999999999") == 5
    assert refused(stage, function="no-uuid") == 2
    assert [refused(stage, key="busy"), refused(stage, key="busy")] == [14, 14]
    assert authorise(stage, key="busy")
    begun = time.monotonic()
    assert authorise(stage, key="late") and time.monotonic() - begun > 0.25
    with pytest.raises(grpc.RpcError) as caught:
        authorise(stage, key="raw")
    assert caught.value.code() is grpc.StatusCode.INTERNAL  # what no message is


def test_another_script_is_played_from_the_next_call_on(stage):
    assert authorise(stage)
    stage.play(key=[{"token": "b"}])
    assert refused(stage) == 16 and authorise(stage, key="b")
    code, mistake = stage.refuses("[api]\nhealth = 'SO_SO'\n")
    assert code == 400 and "SO_SO" in mistake and "line 2" in mistake
    assert authorise(stage, key="b")


def test_its_health_can_be_turned(stage):
    """OB-4: the empty name, no credential. grpcurl knows the messages by their file."""
    def health():
        done = subprocess.run(
            [ROOT / ".tools/bin/grpcurl", "-plaintext", "-import-path", stage.path.parent, "-proto",
             "health.proto", stage.at("api"), "grpc.health.v1.Health/Check"],
            capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done
        return json.loads(done.stdout)["status"]
    (stage.path.parent / "health.proto").write_text("""syntax = "proto3"; package grpc.health.v1;
message HealthCheckRequest { string service = 1; }
message HealthCheckResponse {
  enum S { UNKNOWN = 0; SERVING = 1; NOT_SERVING = 2; } S status = 1; }
service Health { rpc Check(HealthCheckRequest) returns (HealthCheckResponse); }
""")
    assert health() == "SERVING"
    stage.play(api={"health": "NOT_SERVING"})
    assert health() == "NOT_SERVING"
    assert stage.seen("health", "bearer", "") == 2


def test_grpcurl_reads_the_gateways_own_definitions(stage):
    done = subprocess.run(
        [ROOT / ".tools/bin/grpcurl", "-plaintext", "-import-path", ROOT / "engine/nvcf", "-proto",
         "nvcf.proto", "-H", "authorization: Bearer proxy", "-d",
         json.dumps({"client_authorization_token": "a", "function_id": FUNCTION}),
         stage.at("api"), "nvcf.Proxy/AuthStatefulWork"], capture_output=True, text=True,
        timeout=60)
    assert json.loads(done.stdout)["clientNcaId"] == "nca-a", done


def limit(stage, nca, timeout=30):
    asked = messages.RateLimitRequest(ncaId=nca, functionId=FUNCTION, functionVersionId=VERSION)
    return call(stage, "/nvcfratelimiter.RateLimitService/RateLimit", asked,
                messages.RateLimitResponse, part="limiter", timeout=timeout).result


def test_the_limiter_allows_refuses_and_keeps_silent(stage):
    """contract 5.3."""
    assert limit(stage, "nca-a") == 0 and limit(stage, "nca-b") == 1
    with pytest.raises(grpc.RpcError) as caught:
        limit(stage, "nca-s", timeout=0.5)
    # Whoever of the two sees first that the call's time is over.
    assert caught.value.code() in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED)
    until(lambda: stage.seen("limiter", "status", "left") == 1, what="the call that was given up")


def token(stage, basic=False, body=False, secret="s+cret", scope="proxy:invoke_function"):
    """(status, content) of the token endpoint."""
    form = {"grant_type": "client_credentials", "scope": scope}
    fields = {}
    if basic:
        pair = f"me:{urllib.parse.quote_plus(secret)}".encode()
        fields["authorization"] = f"Basic {base64.b64encode(pair).decode()}"
    if body:
        form |= {"client_id": "me", "client_secret": secret}
    request = urllib.request.Request(stage.url("token") + "/token", headers=fields,
                                     data=urllib.parse.urlencode(form).encode())
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


@pytest.mark.parametrize("wants, basic, body", [("basic", 200, 401), ("body", 401, 200),
                                                ("any", 200, 200)])
def test_the_token_endpoint_wants_one_style(stage, wants, basic, body):
    """CP-7: Go's library tries Basic first, then the body."""
    stage.play(token={**SCRIPT["token"], "wants": wants})
    assert token(stage, basic=True)[0] == basic and token(stage, body=True)[0] == body
    assert token(stage, basic=True, body=True, secret="wrong")[0] == 401
    assert token(stage)[0] == 401


def test_an_issued_token_is_good_for_its_scope_while_it_lives(stage):
    issued = token(stage, basic=True)[1]
    assert issued["token_type"] == "Bearer" and issued["expires_in"] == 3600
    assert authorise(stage, bearer=issued["access_token"])
    other = token(stage, basic=True, scope="ratelimit:check_invocation")[1]
    assert refused(stage, bearer=other["access_token"]) == 16
    stage.play(token={**SCRIPT["token"], "generation": 1})
    assert refused(stage, bearer=issued["access_token"]) == 16


def test_a_mistake_in_the_file_is_named(tmp_path):
    path = tmp_path / "bad.toml"
    path.write_text("[token]\nwants = 'basik'\n")
    done = subprocess.run([*program(), "serve", str(path)], capture_output=True, text=True,
                          timeout=60)
    assert done.returncode == 1 and str(path) in done.stderr and "line 2" in done.stderr, done


# --- who may connect --------------------------------------------------------------------------

def plugin_token(payload, account="Worker", plugin="ssa"):
    """NT-8."""
    claim = json.dumps({"account": account, "pluginName": plugin, "payload": payload},
                       separators=(",", ":"))
    return base64.urlsafe_b64encode(claim.encode()).decode().rstrip("=")


def test_the_callout_lets_in_who_has_a_token(tmp_path):
    """NT-8, against the server that asks."""
    seed, issuer = make_nkey("account")
    server = NatsServer(tmp_path, more=f"""
accounts {{ APP {{ jetstream: enabled, users: [ {{ user: {USER}, password: {PASSWORD} }} ] }}
            SYS {{ users: [ {{ user: sys, password: sys }} ] }} }}
system_account: SYS
authorization {{ auth_callout {{ issuer: {issuer}, auth_users: [ {USER} ], account: APP }} }}
""")
    script = {"callout": {"nats": server.url(), "issuer_seed": seed, "account": "APP",
                          "from": {"bearers": ["good"], "issued": True},
                          "publish": ["allowed.>", "_INBOX.>"]}}
    stage = StandIn(tmp_path, script)

    def try_in(**options):
        try:
            return Nats(server.url(user=None), allow_reconnect=False, connect_timeout=5, **options)
        except (nats.errors.Error, TimeoutError):
            return None
    try:
        first = until(lambda: try_in(token=plugin_token("good")), what="the responder")
        with first, Nats(server.url()) as other:
            heard = other.listen(">")
            assert isinstance(heard, Inbox)
            first.do(first.client.publish("refused.one", b""))
            first.do(first.client.publish("allowed.two", b""))
            assert heard.next().subject == "allowed.two"
            until(lambda: any("refused.one" in str(error) for error in first.errors),
                  what="a permissions violation")
        issued = token(stage, body=True, scope="admin:nats:Worker")[1]["access_token"]
        with until(lambda: try_in(token=plugin_token(issued)), what="an issued token"):
            pass
        for bad in (plugin_token("bad"), plugin_token("good", account="Other"),
                    plugin_token("good", plugin="other"), plugin_token(""), "garbage"):
            assert try_in(token=bad) is None, bad
        assert stage.seen("callout", "status", "in") == 2
        assert stage.seen("callout", "status", "out") >= 5
    finally:
        stage.kill()
        server.kill()


def test_a_key_is_a_seed_and_its_public_half(tmp_path):
    """A server that knows the public half lets in who has the seed."""
    import nkeys
    seed, public = make_nkey()
    assert nkeys.from_seed(seed.encode()).public_key.decode() == public
    server = NatsServer(tmp_path, more=users(public))
    with Nats(server.url(user=None), nkeys_seed_str=seed) as client:
        assert client.client.is_connected
    server.kill()
    assert stand_in("make-nkey", "account").split()[1].startswith("A")
