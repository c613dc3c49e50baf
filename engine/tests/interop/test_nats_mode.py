"""`mode = "nats"`: keys and functions from the gateways' own file, work over a real NATS server,
whose streams the gateways make and keep (contract NT-1)."""

import contextlib
import json
import signal
import subprocess
import time

import pytest

import grpcserver
from echo import EchoMessage
from gateway import (FUNCTION, SECOND_FUNCTION, SECOND_VERSION, VERSION, ask, binary, free_port,
                     grpc_head, until)
from nats_bed import A, B, DEFAULT, STREAMING, Bed, configuration, function
from nats_logins import LOGINS
from nats_rig import Nats, NatsServer
from test_nvcf import Caller

LOOKUPS = "stateful_session_lookup_ncp"
STREAM = f"rq_ncp_{VERSION}"
THIRD, THIRD_VERSION = (f"0000000{n}-aaaa-4aaa-8aaa-aaaaaaaaaaaa" for n in (1, 2))


class Rig:
    """Two gateways, and a worker of each kind."""

    def __init__(self, directory):
        self.bed = bed = Bed(directory)
        self.servers = [grpcserver.Server(name=name) for name in ("one", "streams")]
        one, streams = (f"127.0.0.1:{server.port}" for server in self.servers)
        self.nats = bed.client()
        self.gateways = [bed.ready_gateway(functions=DEFAULT + STREAMING) for _ in range(2)]
        self.first, self.second = self.gateways
        bed.worker(one, slots=64)
        bed.worker(streams, function=SECOND_FUNCTION, version=SECOND_VERSION, slots=8,
                   more=["--streaming", "--reconnect-window", "0"])

    def close(self):
        self.bed.close()
        for server in self.servers:
            server.grpc.stop(0)


@pytest.fixture(scope="module")
def rig(tmp_path_factory):
    made = Rig(tmp_path_factory.mktemp("rig"))
    yield made
    died = [gateway.log_tail() for gateway in made.gateways if not gateway.alive()]
    made.close()
    assert not died, died


@pytest.fixture
def bed(tmp_path):
    with Bed(tmp_path) as made:
        yield made


@pytest.fixture
def server():
    running = grpcserver.Server(name="one")
    yield running
    running.grpc.stop(0)


def target(server):
    return f"127.0.0.1:{server.port}"


# --- it serves as in nvcf mode ------------------------------------------------------------------

def test_calls_reach_one_worker_by_either_gateway(rig):
    for gateway in rig.gateways:
        for key in (A, B):
            with Caller(gateway, key=key) as caller:
                assert caller.says() == "one" and caller.says() == "one"


def test_nt1_the_stream_is_made_as_the_control_plane_makes_it(rig):
    made = rig.nats.js(f"STREAM.INFO.{STREAM}")["config"]
    wanted = {"subjects": [f"rq.ncp.{VERSION}.*"], "retention": "workqueue", "discard": "new",
              "discard_new_per_subject": True, "max_msgs": 100_000, "max_msgs_per_subject": 1,
              "duplicate_window": 5_000_000_000, "storage": "memory", "allow_direct": True,
              "max_age": 0, "num_replicas": 1}
    assert {key: made[key] for key in wanted} == wanted
    consumer = rig.nats.js(f"CONSUMER.INFO.{STREAM}.{STREAM}_workers")["config"]
    wanted = {"durable_name": f"{STREAM}_workers", "ack_policy": "explicit",
              "ack_wait": 30_000_000_000, "max_ack_pending": 100_000, "max_deliver": -1}
    assert {key: consumer[key] for key in wanted} == wanted
    assert rig.nats.state(f"rq_ncp_{SECOND_VERSION}") is None, "streaming workers are asked"
    logs = "".join(gateway.log_text() for gateway in rig.gateways)
    assert logs.count("a request stream has one") == 1, "one of both has made it"


def test_a_streaming_function(rig):
    with Caller(rig.first, function=SECOND_FUNCTION) as caller:
        assert caller.says() == "streams"


@pytest.mark.parametrize("where", ["first", "second"])
def test_a_session_is_found_by_its_id(rig, where):
    with Caller(rig.first) as held:
        held.says()
        until(lambda: rig.nats.last(
            LOOKUPS, f"stateful_session.lookup.ncp.{VERSION}.{held.session}"), what="the record")
        with Caller(getattr(rig, where), reqid=held.session) as other:
            assert other.says() == "one" and other.session == held.session
        with Caller(getattr(rig, where), key=B, reqid=held.session) as stranger:
            assert stranger.is_refused()[0] == 13


def test_a_lost_clients_tunnel_is_parked(rig):
    head, _ = ask(rig.first, grpc_head(key=A, function=SECOND_FUNCTION))
    session = head.values("nvcf-reqid")[0]
    with Caller(rig.first, function=SECOND_FUNCTION, reqid=session) as back:
        assert back.says() == "streams" and back.session == session


@pytest.mark.parametrize("key, named, code", [("nobody", FUNCTION, 16), (A, THIRD, 5)])
def test_the_file_says_who_may_call(rig, key, named, code):
    with Caller(rig.first, key=key, function=named) as caller:
        assert caller.is_refused()[0] == code


def test_each_gateway_has_a_record(rig):
    state = rig.nats.state("KV_ringway_nodes_ncp")
    assert state["messages"] == len(rig.gateways)


def test_workers_that_poll_are_not_served(rig):
    body = json.dumps({"functionId": FUNCTION, "functionVersionId": VERSION})
    import urllib.error
    import urllib.request
    host, port = rig.first.worker
    asked = urllib.request.Request(f"http://{host}:{port}/v1/work", data=body.encode(), method="POST",
                                   headers={"authorization": "Bearer dev-worker-key"})
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(asked, timeout=10)
    assert caught.value.code == 401


# --- the streams are kept -----------------------------------------------------------------------

def test_nats_comes_back_empty(bed, server):
    gateway = bed.ready_gateway()
    bed.worker(target(server), slots=8)
    with Caller(gateway) as running:
        running.says()
        bed.nats_server.kill()
        assert running.says() == "one"
        bed.nats_server.start()
        nats = bed.client()
        until(lambda: nats.queued(VERSION) == (0, 0), what="stream and consumer")
        with Caller(gateway, key=B) as fresh:
            assert fresh.says() == "one" and running.says() == "one"


def test_nats_is_down_at_the_start(bed, server):
    bed.nats_server.kill()
    gateway = bed.gateway()
    assert gateway.get("/live")[0] == 200 and not gateway.is_ready()
    bed.nats_server.start()
    until(gateway.is_ready, what="ready")
    bed.worker(target(server), slots=8)
    with Caller(gateway) as caller:
        assert caller.says() == "one"


def test_work_that_finds_no_stream_makes_it(bed, server):
    gateway, nats = bed.ready_gateway(), bed.client()
    until(lambda: nats.queued(VERSION) == (0, 0), what="stream and consumer")
    nats.js(f"STREAM.DELETE.{STREAM}")
    time.sleep(1.1)  # a stream is not asked for more often than once a second
    bed.worker(target(server), slots=8)
    with Caller(gateway) as caller:
        assert caller.says() == "one"


def test_functions_come_and_go_by_reload(bed):
    gateway, nats = bed.ready_gateway(), bed.client()
    third = function(THIRD, THIRD_VERSION)
    gateway.change(DEFAULT, third)
    until(lambda: nats.queued(THIRD_VERSION) == (0, 0), what="the new one's stream")
    assert nats.state(STREAM) is not None, "another gateway may serve the old one"
    until(lambda: "the request stream is not used here any more" in gateway.log_text(), what="a line")
    nats.js(f"STREAM.DELETE.{STREAM}")
    gateway.change(third, third + DEFAULT)
    until(lambda: nats.queued(VERSION) == (0, 0), what="the old one's stream")


def test_a_right_that_is_missing_is_named(tmp_path):
    rights = f'{{ publish: {{ deny: "$JS.API.STREAM.CREATE.{STREAM}" }} }}'
    with Bed(tmp_path) as bed:
        text = bed.nats_server.path.read_text()
        known = f"{{ nkey: {bed.nkey} }}"
        assert known in text
        bed.nats_server.kill()
        bed.nats_server.path.write_text(
            text.replace(known, f"{{ nkey: {bed.nkey}, permissions: {rights} }}"))
        bed.nats_server.start()
        gateway = bed.ready_gateway()
        until(lambda: "the NATS account lacks a right" in gateway.log_text(), what="a line")
        gateway.logs("$JS.API.STREAM.CREATE.>")
        until(lambda: gateway.metric("ringway_nats_right_missing", right="make") == 1,
              what="the gauge")


# --- its end ------------------------------------------------------------------------------------

@contextlib.contextmanager
def waiting_call(bed):
    """(a gateway that drains for 5 s, who looks into NATS, a call whose work no worker takes)"""
    gateway, nats = bed.ready_gateway(more='[drain]\ndelay = "0s"\nmax = "5s"'), bed.client()
    until(lambda: nats.queued(VERSION) == (0, 0), what="the stream")
    with Caller(gateway) as caller:
        call = caller.stub.Unary.future(EchoMessage(payload=b"x"), metadata=caller.who)
        until(lambda: nats.messages(STREAM) == 1, what="queued")
        yield gateway, nats, call
        call.cancel()


def test_a_drain_takes_back_what_waits(bed):
    with waiting_call(bed) as (gateway, nats, call):
        gateway.run.send_signal(signal.SIGTERM)
        assert gateway.run.wait(30) == 0
        assert call.exception(10) is not None
    until(lambda: nats.messages(STREAM) == 0, what="taken back")
    assert nats.state("KV_ringway_nodes_ncp")["messages"] <= 1, "its record says that it has left"


def test_a_drain_says_what_it_could_not_take_back(bed):
    with waiting_call(bed) as (gateway, _, _):
        bed.nats_server.kill()
        gateway.run.send_signal(signal.SIGTERM)
        assert gateway.run.wait(30) == 0
    left = [line for line in gateway.log_lines() if line.get("left")]
    assert [(line["left"], line["level"].lower()) for line in left] == [(1, "warn")], left


# --- what is said of the file -------------------------------------------------------------------

def check(tmp_path, text, **variables):
    path = tmp_path / "check.toml"
    path.write_text(text)
    done = subprocess.run([*binary(), "check", "--config", str(path)], capture_output=True,
                          text=True, env={"PATH": "/usr/bin", **variables})
    return done.returncode, done.stdout


def test_check_says_what_is_not_used(tmp_path):
    with_keys = function(FUNCTION, VERSION, 'worker_keys = ["some-key"]')
    code, said = check(tmp_path, configuration("", free_port(), with_keys))
    assert code == 0 and "warning: function.worker_keys is not used in nats mode" in said, said
    code, said = check(tmp_path, configuration("", free_port()))
    assert code == 0 and "worker_keys" not in said, said


def test_a_secret_may_be_systemds(tmp_path):
    login = 'user = "me"\npassword_file = "credential:nats-password"'
    code, said = check(tmp_path, configuration(login, free_port()))
    assert code == 78 and "LoadCredential=nats-password" in said, said
    (tmp_path / "nats-password").write_text("secret")
    code, said = check(tmp_path, configuration(login, free_port()),
                       CREDENTIALS_DIRECTORY=str(tmp_path))
    assert code == 0, said


# --- how it logs in -----------------------------------------------------------------------------

@pytest.fixture(params=LOGINS)
def login(request, tmp_path):
    return LOGINS[request.param](tmp_path)


def url(login, server):
    return f"{login.scheme}://{login.host}:{server.port}"


def test_each_login_is_taken_and_a_wrong_one_is_told(tmp_path, login):
    with Bed(tmp_path, NatsServer(tmp_path, more=login.server)) as bed:
        where = url(login, bed.nats_server)
        urls = f'urls = ["{where}"]\n'
        gateway = bed.ready_gateway(urls + login.right)
        options = login.client or {"user": "worker", "password": "worker-password"}
        with Nats(where, **options) as nats:
            until(lambda: nats.queued(VERSION) == (0, 0), what="stream and consumer")
        for wrong, fix in login.wrong.items():
            refused = bed.gateway(urls + wrong)
            until(lambda: "NATS is not reached" in refused.log_text(), what="a line")
            line = next(line for line in refused.log_lines()
                        if "NATS is not reached" in json.dumps(line))
            assert fix in json.dumps(line), line
            status, _, text = refused.get("/ready")
            assert status == 503 and b"nats: " in text, text
            refused.kill()
        assert gateway.is_ready()
