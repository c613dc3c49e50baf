"""Many gateways behind balancers that know nothing: every callback and every client that comes back finds
the gateway whose it is. Three in `nvcf` mode on hosts of their own, a real NATS server, HAProxy that
leads each connection anywhere, workers by NATS; clients are grpcio, grpc-go, curl, http.client and
Chromium."""

import asyncio
import contextlib
import http.client
import http.server
import json
import os
import re
import signal
import socket
import subprocess
import threading
import types

import grpc
import pytest
from websockets.sync.client import connect

import grpcserver
from behind import Authority
from cluster_acts import nothing_is_asked, returns
from cluster_bed import BUCKET, SECRET, WORKER, Bed, within
from comeback import Wire, parked, row
from crew import Answerer, Speaker
from echo import EchoMessage, Stub, message, messages
from gateway import FUNCTION, ROOT, VERSION, binary, credentials, until
from nvcf_bed import SCRIPT, A, B
from nvcf_load import Load, block
from test_browser import visit
from test_nvcf import Caller, numbered

pytestmark = pytest.mark.alone
# Functions whose servers are WebSocket and HTTP/1.1 ones, and one whose worker keeps its sessions
# for a while when it has lost their tunnels.
TALKS, PLAIN, KEEPS = map(numbered, range(31, 34))
WORKERS = 3
# Sessions by whose callbacks the balancer is seen to lead anywhere.
SESSIONS = 120
# Returns, of which about two thirds reach another gateway than they left.
RETURNS = 60
# Seconds until whoever is relayed over a link that has gone is told.
TOLD_OF_A_LINK = 15
MIB = 1 << 20


class PlainServer(http.server.ThreadingHTTPServer):
    """An HTTP/1.1 server that says its name and what it was told."""

    daemon_threads = True

    class Answer(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            body = self.rfile.read(int(self.headers["content-length"]))
            self.send_response(200)
            self.send_header("x-worker", self.server.name)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    def __init__(self, name):
        self.name = name
        super().__init__(("127.0.0.1", 0), self.Answer)
        self.port = self.server_address[1]
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def close(self):
        self.shutdown()
        self.server_close()


class Rig:
    """Three gateways, and for each kind of function workers whose servers say who they are."""

    def __init__(self, directory):
        script = {**SCRIPT, "function": SCRIPT["function"] + [
            *({"id": id, "version": [{"id": id}]} for id in (TALKS, PLAIN)),
            {"id": KEEPS, "version": [{"id": KEEPS, "type": "STREAMING"}]}]}
        self.bed = bed = Bed(directory, hosts=4, script=script)
        self.servers = []
        try:
            for function, version, kind, more in (
                    (FUNCTION, VERSION, Answerer, []), (TALKS, TALKS, Speaker, []),
                    (PLAIN, PLAIN, PlainServer, []),
                    (KEEPS, KEEPS, Answerer, ["--streaming", "--reconnect-window", "60"])):
                if function != KEEPS:
                    bed.make_streams(version)
                for number in range(WORKERS):
                    server = kind(f"worker-{number}")
                    self.servers.append(server)
                    bed.worker(f"127.0.0.1:{server.port}", f"worker-{version[:8]}-{number}",
                               function=function, version=version, slots=100, more=more)
            self.nats = bed.client()
            self.nodes = bed.start_all(0, 1, 2)
        except BaseException:
            self.close()
            raise

    @contextlib.contextmanager
    def callbacks_at(self, *numbers):
        """Workers reach these gateways meanwhile."""
        self.bed.balancer.leads("callbacks", *numbers)
        try:
            yield
        finally:
            self.bed.balancer.leads("callbacks")
            self.bed.balancer.knows("callbacks", *(
                number for number, node in self.bed.nodes.items() if node.alive()))

    @contextlib.contextmanager
    def fourth(self, **changes):
        """One more gateway, for a test alone."""
        node = self.bed.start(3, **changes)
        try:
            self.bed.all_ready()
            yield node
        finally:
            node.stop()

    def close(self):
        self.bed.close()
        for server in self.servers:
            server.close()


@pytest.fixture(scope="module")
def rig(tmp_path_factory):
    made = Rig(tmp_path_factory.mktemp("cluster"))
    yield made
    died = [node.host.name for node in made.nodes if not node.alive()]
    logs = "".join(node.log_text() for node in made.nodes)
    made.close()
    assert not died, died
    for secret in (SECRET, A, made.bed.seed):
        assert secret not in logs, "a log tells a secret"


def node_of(gateway):
    return json.loads(gateway.get("/info")[2])["node"]


def at(address):
    """Something that clients of the tests take for a gateway."""
    return types.SimpleNamespace(client=address)


# --- nodes find each other ------------------------------------------------------------------------

def test_nodes_are_entered_once_each(rig):
    pairs = rig.bed.records(rig.nats)
    assert len(pairs) == len(set(pairs)) == 3, pairs
    assert all(re.fullmatch("[0-9a-f]{3}-[0-9a-f]{4}", pair) for pair in pairs), pairs
    assert {node_of(node) for node in rig.nodes} == set(pairs)
    rig.bed.all_known()


# --- callbacks ------------------------------------------------------------------------------------

def test_callbacks_find_their_gateway_wherever_they_arrive(rig, measure):
    """Nobody notices that the balancer leads both sides anywhere; half of the callbacks at least
    were at the wrong gateway, or it has not been tried."""
    watch = rig.bed.watch()
    load = Load(rig.bed.front, ("127.0.0.1", rig.servers[0].port), fresh=1)
    try:
        load.do(all_of(load, SESSIONS))
        seen = load.mark()
    finally:
        load.close()
    assert dict(seen.fresh) == {"0": SESSIONS}, (seen.fresh, seen.strange[:5])
    relayed, let_in = watch.callbacks()
    measure(f"{relayed:.0f} of {let_in:.0f} callbacks relayed")
    assert let_in == SESSIONS and relayed >= let_in / 2, (relayed, let_in)
    assert watch.moved("ringway_relays_taken_total", cause="callback", outcome="taken") == relayed
    assert watch.moved("worker_connect_total") == SESSIONS, "none was refused"


async def all_of(load, count):
    """So many new sessions, eight at a time."""
    what = block()
    for _ in range(count // 8):
        await asyncio.gather(*(load.visit(what) for _ in range(8)))


def test_what_is_relayed_is_whole(rig):
    """All kinds of calls on a tunnel that came by another gateway, and how it ends."""
    owner, other = rig.nodes[:2]
    watch = rig.bed.watch()
    before = other.metric("ringway_relays_active", cause="callback")
    with rig.callbacks_at(1), Caller(owner) as caller:
        worker = caller.says()
        assert watch.moved("ringway_relays_total", other, cause="callback",
                           outcome="relayed") == 1
        payload = os.urandom(4 * MIB)
        assert caller.says(payload) == worker
        sent = [EchoMessage(payload=os.urandom(size)) for size in (1, 100_000, MIB)]
        back = caller.stub.BidiStream(iter(sent), metadata=caller.who, timeout=60)
        assert [each.payload for each in back] == [each.payload for each in sent]
        with pytest.raises(grpc.RpcError) as caught:
            caller.stub.Unary(EchoMessage(), metadata=[*caller.who, ("x-do", "fail"),
                                                       ("x-code", "9")], timeout=60)
        assert caught.value.code() == grpc.StatusCode.FAILED_PRECONDITION
        assert dict(caught.value.trailing_metadata())["x-trailing-bin"] == b"\0\xff\x01"
        assert other.metric("ringway_relays_active", cause="callback") == before + 1
        session = caller.session
        assert owner.get(f"/sessions/{session}", method="DELETE")[0] == 204
    until(lambda: other.metric("ringway_relays_active", cause="callback") == before,
          what="the relay's end")


def test_a_websocket_over_a_relayed_tunnel(rig):
    with rig.callbacks_at(2), websocket(rig.nodes[0].client) as socket_:
        name = socket_.recv(timeout=60)
        text = "x" * MIB
        socket_.send(text)
        assert socket_.recv(timeout=60) == f"{name}: {text}"


def websocket(address, cookie=None, **options):
    host, port = address
    headers = dict(credentials(key=A, function=TALKS))
    if cookie:
        headers["cookie"] = cookie
    return connect(f"ws://{host}:{port}/ws", compression=None, open_timeout=60, max_size=None,
                   additional_headers=headers, **options)


def test_with_direct_addresses_nothing_is_relayed(rig):
    """Workers are told the gateway's own address first (contract 4.6)."""
    own = {"RINGWAY__CLUSTER__DIRECT": "true",
           "RINGWAY__CLUSTER__ADDRESS": rig.bed.lan.hosts[3].front}
    with rig.fourth(**own) as node:
        watch = rig.bed.watch()
        with rig.callbacks_at(0), Caller(node) as caller:
            caller.says()
        assert watch.callbacks() == (0, 1)
        assert watch.moved("worker_connect_total", node, result="accepted") == 1


# --- clients that come back -----------------------------------------------------------------------

def session_at(node, function=FUNCTION):
    """A session whose client was lost; (id, worker)."""
    with Wire(node.client) as wire, Caller(at(("127.0.0.1", wire.port)),
                                           function=function) as caller:
        worker = caller.says()
        wire.cut("rst")
        parked(node, caller.session)
        return caller.session, worker


def back_with_grpcio(address, session):
    with Caller(at(address), reqid=session) as caller:
        worker = caller.says(b"back")
        assert caller.says(b"and again") == worker
        return caller.session, worker


def back_with_grpc_go(address, session):
    """grpcurl asks the server itself for what it serves, then calls, on one connection."""
    fields = [part for name, value in credentials(key=A, reqid=session)
              for part in ("-H", f"{name}: {value}")]
    done = subprocess.run(
        [str(ROOT / ".tools/bin/grpcurl"), "-plaintext", "-v", "-max-time", "60", *fields, "-d",
         '{"payload": "YmFjaw=="}', "%s:%d" % address, "ringway.echo.v1.Echo/Unary"],
        capture_output=True, text=True, timeout=90)
    assert done.returncode == 0 and "YmFjaw==" in done.stdout, done
    return tuple(re.search(rf"^{name}: (\S+)$", done.stdout, re.M).group(1)
                 for name in ("nvcf-reqid", "x-worker"))


def back_with_curl(address, session):
    """HTTP/2 without an upgrade, as grpc."""
    fields = [part for name, value in [*credentials(key=A, reqid=session), ("te", "trailers"),
                                       ("content-type", "application/grpc")]
              for part in ("-H", f"{name}: {value}")]
    done = subprocess.run(
        ["curl", "-sS", "-i", "--http2-prior-knowledge", "-m", "60", *fields, "--data-binary", "@-",
         "http://%s:%d/ringway.echo.v1.Echo/Unary" % address],
        capture_output=True, timeout=90, input=message(b"back"))
    head, _, body = done.stdout.partition(b"\r\n\r\n")
    assert done.returncode == 0 and head.startswith(b"HTTP/2 200"), done
    # Trailers are shown behind the body.
    assert messages(body[:len(message(b"back"))]) == [b"back"], body
    return tuple(re.search(rf"^{name}: (\S+)\r?$", head.decode(), re.M).group(1)
                 for name in ("nvcf-reqid", "x-worker"))


KINDS = {"grpcio": back_with_grpcio, "grpc-go": back_with_grpc_go, "curl": back_with_curl}


@pytest.mark.parametrize("kind", KINDS)
def test_a_client_comes_back_at_another_gateway(rig, kind):
    """Its session is where it was, in that gateway's memory."""
    owner, _, other = rig.nodes
    session, worker = session_at(owner)
    with nothing_is_asked(rig.bed, rig.nats) as watch:
        assert KINDS[kind](other.client, session) == (session, worker)
    assert watch.moved("ringway_relays_total", other, cause="client", outcome="relayed") == 1
    assert watch.moved("ringway_relays_taken_total", owner, cause="client", outcome="taken") == 1
    assert watch.moved("ringway_resumes_total", owner, way="memory", outcome="ok") == 1
    assert watch.moved("ringway_resumes_total") == 1, "the other one has none"


def test_a_client_that_landed_right_is_not_relayed(rig):
    owner = rig.nodes[0]
    session, worker = session_at(owner)
    with nothing_is_asked(rig.bed, rig.nats) as watch:
        assert back_with_grpcio(owner.client, session) == (session, worker)
    assert watch.moved("ringway_relays_total") == 0


def test_the_owner_shows_where_its_client_is(rig):
    """Only the owner knows a session's tenant and its client's address."""
    owner, other, _ = rig.nodes
    session, _ = session_at(owner)
    with Caller(other, reqid=session) as caller:
        caller.says()
        found = row(owner, session)
        assert found["node"] == node_of(owner), found
        assert found["clientAddress"].startswith(rig.bed.hub), found
        assert row(other, session) is None


@pytest.mark.parametrize("how", ["rst", "fin"])
def test_a_relayed_client_is_lost_again(rig, how):
    """FIN stays FIN and RST stays RST, so its tunnel parks as if nobody had been between."""
    owner, other, _ = rig.nodes
    session, worker = session_at(owner)
    told = {"rst": "connection reset", "fin": "FIN"}
    for _ in range(2):
        with Wire(other.client) as wire, Caller(at(("127.0.0.1", wire.port)),
                                                reqid=session) as caller:
            assert caller.says() == worker
            wire.cut(how)
            parked(owner, session)
        ends = [event for event in json.loads(owner.get(f"/sessions/{session}")[2])["events"]
                if event["event"] == "client_ended"]
        assert told[how].lower() in json.dumps(ends[-1]).lower(), ends


def plain_session(address, session=None, preflight=False):
    """A POST by http.client, behind a preflight and a look at /health on the same connection;
    (id, worker), and the connection."""
    client = http.client.HTTPConnection(*address, timeout=60)
    if preflight:
        client.request("OPTIONS", "/echo", headers={
            "origin": "http://page.test", "access-control-request-method": "POST"})
        assert client.getresponse().read() == b""
        client.request("GET", "/health")
        assert client.getresponse().read()
    client.request("POST", "/echo", b"hello", dict(credentials(key=A, function=PLAIN,
                                                               reqid=session)))
    answer = client.getresponse()
    assert (answer.status, answer.read()) == (200, b"hello"), answer.headers
    return (answer.headers["nvcf-reqid"], answer.headers["x-worker"]), client


@pytest.mark.parametrize("preflight", [False, True])
def test_an_http1_client_comes_back_at_another_gateway(rig, preflight):
    owner, other, _ = rig.nodes
    first, client = plain_session(owner.client)
    client.close()
    parked(owner, first[0])
    with nothing_is_asked(rig.bed, rig.nats) as watch:
        again, client = plain_session(other.client, first[0], preflight)
        assert again == first
        client.close()
    assert watch.moved("ringway_relays_total", other, cause="client", outcome="relayed") == 1


def test_a_client_over_tls_is_relayed_if_that_is_allowed(rig, tmp_path):
    """Else its worker is asked for one more tunnel, at the gateway that it reached."""
    authority = Authority(tmp_path)
    cert, key = authority.issue("localhost")
    tls = {"RINGWAY__LISTEN__CLIENT__TLS__CERT": str(cert),
           "RINGWAY__LISTEN__CLIENT__TLS__KEY": str(key)}
    for plaintext, relays, tunnels in (("true", 1, 0), ("false", 0, 1)):
        with rig.fourth(RINGWAY__CLUSTER__PLAINTEXT=plaintext, **tls) as node:
            session, worker = session_at(rig.nodes[0])
            watch = rig.bed.watch()
            channel = grpc.secure_channel(
                "%s:%d" % node.client,
                grpc.ssl_channel_credentials(authority.cert.read_bytes()),
                options=[("grpc.ssl_target_name_override", "localhost"),
                         *grpcserver.UNLIMITED, ("grpc.use_local_subchannel_pool", 1)])
            with channel:
                _, call = Stub(channel).Unary.with_call(
                    EchoMessage(payload=b"x"), metadata=credentials(key=A, reqid=session),
                    timeout=60)
                fields = dict(call.initial_metadata())
                assert (fields["nvcf-reqid"], fields["x-worker"]) == (session, worker)
            assert watch.moved("ringway_relays_total", node, cause="client",
                               outcome="relayed") == relays
            assert watch.moved("worker_connect_total", result="accepted") == tunnels


def test_another_tenant_gets_no_session_of_others_through_a_relay(rig):
    """E10 is its owner's answer."""
    owner, other, _ = rig.nodes
    session, _ = session_at(owner)
    with Caller(other, key=B, reqid=session) as caller:
        code, text = caller.is_refused()
    assert code == 13 and "existing session invoker NCA ID mismatch" in text


def test_returns_through_the_balancer(rig, measure):
    """Wherever they left, wherever they land."""
    for node in rig.nodes:
        for session in node.open_sessions():
            node.get(f"/sessions/{session['requestId']}", method="DELETE")
    until(lambda: not any(node.open_sessions() for node in rig.nodes), what="nobody is left")
    relayed = returns(rig.bed, rig.nats, ("127.0.0.1", rig.servers[0].port), 12, RETURNS)
    measure(f"{relayed:.0f} of {RETURNS} returns were relayed")
    assert relayed >= RETURNS / 2


PAGE = """<!doctype html><title>page</title><script>
const met = JSON.parse(sessionStorage.getItem("met") || "[]");
const socket = new WebSocket("ws://GATEWAY/ws", ["authorization.KEY", "function-id.FUNCTION", "chat"]);
socket.onmessage = async event => {
  met.push([event.data, document.cookie]);
  sessionStorage.setItem("met", JSON.stringify(met));
  if (met.length == 3) {
    await fetch("/result", {method: "POST", body: JSON.stringify(met)});
  } else {
    await fetch("/wait?" + met.length);
    location.reload();
  }
};
</script>"""


def test_chromium_loads_its_page_again_at_other_gateways(rig, tmp_path):
    """A WebSocket by its cookie; the balancer leads each load to another gateway."""
    spares = rig.bed.watch()

    def noted(path):
        loaded = int(path.partition("?")[2])
        spares.counts(loaded, "ringway_spares_total", outcome="came")
        rig.bed.balancer.leads("clients", loaded)

    rig.bed.balancer.leads("clients", 0)
    try:
        page = (PAGE.replace("GATEWAY", "%s:%d" % rig.bed.front).replace("KEY", A)
                .replace("FUNCTION", TALKS))
        watch = rig.bed.watch()
        met = visit(page, tmp_path, host=rig.bed.hub, noted=noted)
    finally:
        rig.bed.balancer.leads("clients")
    assert len(met) == 3 and met == [met[0]] * 3, met
    assert watch.moved("ringway_relays_total", cause="client", outcome="relayed") == 2


# --- the owner is gone ----------------------------------------------------------------------------

def test_a_session_whose_gateway_has_gone(rig):
    """A worker that keeps its sessions has it again by NATS; where nobody has it any more E7 comes
    at once."""
    with rig.fourth() as owner:
        kept, worker = session_at(owner, KEEPS)
        lost, _ = session_at(owner)
        owner.kill()
        with Caller(rig.nodes[0], function=KEEPS, reqid=kept) as caller:
            took = within(10, lambda: caller.says() == worker, "the session")
            assert caller.session == kept
        with Caller(rig.nodes[1], reqid=lost) as caller:
            def refused():
                code, _ = caller.is_refused()
                return code == 5
            took += within(10, refused, "E7")
    assert took < 20


# --- secrets, and a NATS that comes back empty ----------------------------------------------------

def test_secrets_are_replaced_one_by_one(rig):
    """Relays never stop: first all accept both, then all sign with the new one, then the old one
    is taken away."""
    owner, other, _ = rig.nodes
    new = "another secret of the cluster"
    try:
        for secrets in ((SECRET, new), (new, SECRET), (new,)):
            rig.bed.share_secrets(*secrets)
            for node in rig.nodes:
                lines = node.log_text().count("the cluster's secrets were read again")
                node.signal(signal.SIGHUP)
                until(lambda: node.log_text().count("the cluster's secrets were read again")
                      > lines, what="the secrets are read")
                session, worker = session_at(owner)
                assert back_with_grpcio(other.client, session) == (session, worker)
                with rig.callbacks_at(2), Caller(owner) as caller:
                    caller.says()
    finally:
        rig.bed.share_secrets(SECRET)
        for node in rig.nodes:
            lines = node.log_text().count("the cluster's secrets were read again")
            node.signal(signal.SIGHUP)
            until(lambda: node.log_text().count("the cluster's secrets were read again") > lines,
                  what="the first secret again")


def test_a_gateway_with_another_secret_is_a_stranger(rig, tmp_path):
    """Nobody is relayed to it or by it; a client that comes there is served by the control path."""
    (tmp_path / "other").write_text("the secret of somebody else\n")
    node = rig.bed.start(3, RINGWAY__CLUSTER__SECRET_FILE=str(tmp_path / "other"),
                           SELF_WORKER_FQDN=f"http://{rig.bed.lan.hosts[3].front}:{WORKER}")
    try:
        until(node.is_ready, what="ready")
        # What others' workers bring to it is refused for good.
        with rig.callbacks_at(0, 1, 2):
            session, worker = session_at(rig.nodes[0])
        watch = rig.bed.watch()
        assert back_with_grpcio(node.client, session) == (session, worker)
        assert watch.moved("ringway_relays_total", outcome="relayed") == 0
        assert watch.moved("ringway_resumes_total", node, way="reconnect", outcome="ok") == 1
    finally:
        node.stop()


def test_nats_comes_back_empty(rig):
    """What runs goes on, and so do relays as soon as the nodes have entered themselves again, with
    the names they had."""
    names = sorted(map(node_of, rig.nodes))
    with Caller(rig.nodes[0]) as direct, rig.callbacks_at(1), \
            Caller(rig.nodes[2]) as relayed:
        callers = (direct, relayed)
        for caller in callers:
            caller.says()
        rig.bed.nats_server.kill()
        for caller in callers:
            caller.says(b"without NATS")
        rig.bed.nats_server.start()
        for version in (VERSION, TALKS, PLAIN):
            rig.bed.make_streams(version)
        until(lambda: rig.bed.records(rig.nats) == names, what="the same records", every=0.2)
        for caller in callers:
            caller.says(b"with NATS again")
    session, worker = session_at(rig.nodes[0])
    assert back_with_grpcio(rig.nodes[1].client, session) == (session, worker)


BAD_RECORDS = {
    "a foreign address": lambda record, trap: json.dumps({**record, "relay": trap}).encode(),
    "nonsense": lambda record, trap: b"\xff\xfe" * 100,
}


def says_again(rig, subject, record):
    """Whether a node's record says where it is, as it did."""
    found = rig.nats.last(f"KV_{BUCKET}", subject)
    with contextlib.suppress(AttributeError, ValueError, TypeError, KeyError):
        return json.loads(found.data)["relay"] == record["relay"]
    return False


@pytest.mark.parametrize("name", BAD_RECORDS)
def test_a_record_that_its_node_has_not_written(rig, name):
    """Whoever may write into the bucket, and has not the secret, leads nobody anywhere; its node puts
    things right."""
    owner, other, _ = rig.nodes
    me = node_of(owner)
    subject = f"$KV.{BUCKET}.{me}"
    record = json.loads(rig.nats.last(f"KV_{BUCKET}", subject).data)
    with socket.create_server((rig.bed.hub, 0)) as trap:
        trap.setblocking(False)
        address = "%s:%d" % trap.getsockname()
        rig.nats.publish(subject, BAD_RECORDS[name](record, address))
        until(lambda: says_again(rig, subject, record), what="its own record again", every=0.2)
        session, worker = session_at(owner)
        assert back_with_grpcio(other.client, session) == (session, worker)
        with pytest.raises(BlockingIOError):
            trap.accept()


# --- links ----------------------------------------------------------------------------------------

def test_a_link_between_gateways_goes_down(rig):
    """Whoever is relayed over it is told within 15 s, nobody waits for ever, and who comes then is
    served without it: a CONNECT that cannot be relayed is tried again by its worker, a client goes
    by the control path."""
    owner, other, third = rig.nodes
    with rig.callbacks_at(0):
        session, worker = session_at(owner)
    with rig.callbacks_at(1), Caller(owner) as relayed, Caller(third) as untouched:
        relayed.says()
        with rig.callbacks_at(2):
            untouched.says()
        calls = relayed.stub.BidiStream(opened(), metadata=relayed.who, timeout=TOLD_OF_A_LINK)
        assert next(calls).payload == b"held"
        other.host.pull("between")
        try:
            with pytest.raises(grpc.RpcError) as caught:
                next(calls)
            assert caught.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL)
            untouched.says()
            watch = rig.bed.watch()
            assert back_with_grpcio(other.client, session) == (session, worker)
            # One that was not reached a moment ago is not tried again.
            assert sum(watch.moved("ringway_relays_total", other, cause="client", outcome=outcome)
                       for outcome in ("late", "unreachable")) == 1
            assert watch.moved("ringway_resumes_total", other, way="reconnect",
                               outcome="ok") == 1
        finally:
            other.host.plug("between")


def opened():
    """A stream's first message; it stays open until its call ends."""
    yield EchoMessage(payload=b"held")
    threading.Event().wait(60)


def test_the_admin_port_of_any_gateway_leads_to_a_sessions_owner(rig):
    """`ringway sessions timeline` at the wrong gateway asks the one whose it is; nobody is passed on
    twice, and what cannot be asked is named."""
    owner, other, _ = rig.nodes
    session, _ = session_at(owner)

    def ringway(*arguments):
        return subprocess.run([*other.host.launcher, *binary(), *arguments],
                              capture_output=True, text=True, timeout=60)

    asked = ringway("sessions", "timeline", session)
    assert asked.returncode == 0, asked
    assert session in asked.stdout and f"node {node_of(owner)}" in asked.stdout, asked
    assert "first byte to the worker" in asked.stdout, asked
    asked = ringway("sessions", "timeline", "--json", session)
    assert json.loads(asked.stdout)["node"] == node_of(owner), asked
    # It is ended where it is.
    asked = ringway("sessions", "end", session)
    assert asked.returncode == 1 and f"gateway {node_of(owner)}'s" in asked.stderr, asked
    assert any(row["requestId"] == session for row in owner.sessions())
    # What nobody has made is looked for once.
    unknown = session[:-1] + ("0" if session[-1] != "0" else "1")
    asked = ringway("sessions", "timeline", unknown)
    assert asked.returncode == 1 and node_of(owner) in asked.stderr, asked
    assert "ended too long ago" in asked.stderr, asked


def test_doctor_looks_at_the_other_gateways(rig, tmp_path):
    """Gateways without the secret or not reached, and relays without TLS: each has its fix."""
    host = rig.bed.lan.hosts[0]

    def doctor(**changes):
        environment = {**os.environ, **rig.bed.settings(host), **changes}
        environment = {k: v for k, v in environment.items() if v is not None}
        done = subprocess.run([*host.launcher, *binary(), "doctor", "--json"], env=environment,
                              capture_output=True, text=True, timeout=90)
        return [check for check in json.loads(done.stdout) if check["check"].startswith("cluster")]

    def of(checks, name):
        return [(check["status"], f"{check['seen']}; {check['fix']}") for check in checks
                if check["check"] == name]

    well = doctor()
    assert {check["status"] for check in well} == {"OK"}, well
    assert "2 more gateway(s)" in of(well, "cluster")[0][1], well
    assert len(of(well, "cluster_peer")) == 2, well
    alone = {f"RINGWAY__CLUSTER__{name}": None for name in ("SECRET_FILE", "LISTEN", "ADDRESS")}
    [(status, text)] = of(doctor(**alone), "cluster")
    assert status == "WARN" and "cluster.secret_file" in text, text
    (tmp_path / "other").write_text("the secret of somebody else\n")
    [(status, text)] = of(doctor(RINGWAY__CLUSTER__SECRET_FILE=str(tmp_path / "other")), "cluster")
    assert status == "WARN" and "another secret" in text, text
    [(status, text)] = of(doctor(RINGWAY__CLUSTER__ADDRESS="127.0.0.1"), "cluster_address")
    assert status == "WARN" and "cluster.address" in text, text
