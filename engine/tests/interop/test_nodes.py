"""Several gateways that know each other by their files: what comes to the wrong one goes to its owner
(design 3.22)."""

import signal
import socket
import time

import pytest

from comeback import parked
from conftest import TRAILERS_ONLY
from fakeworker import FakeWorker, Line, connect_head
from gateway import Gateway, free_port, grpc_head, until
from rawh2 import HEADERS

SECRET = "a secret that the gateways have in common\n"


class Nodes:
    """Two gateways of one cluster, in `local` mode."""

    def __init__(self, directory, secrets=(SECRET, SECRET), more=""):
        self.directory = directory
        self.ports = [free_port(), free_port()]
        self.files = [directory / "secret0", directory / "secret1"]
        for file, secret in zip(self.files, secrets):
            file.write_text(secret)
        self.all = [self.start(number, more) for number in range(2)]

    def start(self, number, more=""):
        other = 1 - number
        return Gateway.serve(self.directory, name=f"node{number}", more=f"""
[cluster]
secret_file = "{self.files[number]}"
listen = "127.0.0.1:{self.ports[number]}"
node = {number + 1}
nodes = [{{ node = {other + 1}, relay = "127.0.0.1:{self.ports[other]}" }}]
{more}""")

    def stop(self):
        for node in self.all:
            assert node.alive(), node.log_tail()
            node.stop()


@pytest.fixture
def nodes(tmp_path):
    made = []

    def make(**options):
        made.append(Nodes(tmp_path, **options))
        return made[-1]

    yield make
    for each in made:
        each.stop()


def callback(node, work):
    """A worker dials back at `node`; the Line with the request sent."""
    line = Line(node.worker)
    line.send(connect_head(work.token, work.request_id, work.uri.path))
    return line


def relays(node, cause, outcome):
    return node.metric("ringway_relays_total", cause=cause, outcome=outcome)


def test_a_callback_at_the_wrong_node_becomes_its_owners_tunnel(nodes):
    cluster = nodes()
    wrong, owner = cluster.all
    with FakeWorker(owner) as worker, owner.h2() as client:
        stream = client.open(grpc_head())
        work = worker.poll()
        line = callback(wrong, work)
        answer = line.answer(body=False)
        assert answer.status == 200, answer
        tunnel = worker.serve(line)
        request = tunnel.wait(HEADERS)
        assert request.get("nvcf-reqid") == work.request_id
        client.data(stream, b"x" * 10_000, end_stream=True)
        assert len(tunnel.body(request.stream)[0]) == 10_000
        tunnel.headers(request.stream, TRAILERS_ONLY, end_stream=True)
        assert client.head(stream).grpc_status == "0"
        assert relays(wrong, "callback", "relayed") == 1
        assert owner.metric("ringway_relays_taken_total", cause="callback", outcome="taken") == 1
        assert wrong.metric("ringway_relays_active", cause="callback") == 1
        row = owner.open_sessions()[0]
        assert row["node"].startswith("002-") and row["requestId"] == work.request_id
        # The node that relays dies: the owner's client is told at once, and nothing hangs.
        second = client.open(grpc_head())
        tunnel.wait(HEADERS, where=lambda event: event.stream != request.stream)
        began = time.monotonic()
        wrong.kill()
        cluster.all.remove(wrong)
        assert client.head(second).grpc_status == "14"
        assert time.monotonic() - began < 1
        client.close()


def test_a_callback_whose_owner_is_not_there_is_told_to_try_again(nodes):
    both = nodes()
    wrong, owner = both.all
    with FakeWorker(owner) as worker, owner.h2() as client:
        client.open(grpc_head())
        work = worker.poll()
        owner.signal(signal.SIGSTOP)
        began = time.monotonic()
        assert callback(wrong, work).answer().status == 503
        assert 0.4 < time.monotonic() - began < 2
        owner.signal(signal.SIGCONT)
        until(lambda: relays(wrong, "callback", "late") == 1)
        owner.kill()
        time.sleep(1.1)
        assert callback(wrong, work).answer().status == 503
        # Another run of its process is another node: nothing will come of what it began.
        both.all[1] = both.start(1)
        time.sleep(1.1)
        assert callback(wrong, work).answer().status == 403
    assert relays(wrong, "callback", "unreachable") == 1
    assert relays(wrong, "callback", "dead") == 1


def test_a_client_gets_its_parked_tunnel_on_another_node(nodes):
    wrong, owner = nodes().all
    with FakeWorker(owner) as worker:
        client = owner.h2()
        client.open(grpc_head())
        work, tunnel = worker.take()
        tunnel.wait(HEADERS)
        client.abort()
        parked(owner, work.request_id)
        for number in range(3):
            with wrong.h2() as back:
                stream = back.open(grpc_head(reqid=work.request_id), end_stream=True)
                request = tunnel.wait(HEADERS, where=lambda event: event.stream > 1 + 2 * number)
                assert request.get("nvcf-reqid") == work.request_id
                tunnel.headers(request.stream, TRAILERS_ONLY, end_stream=True)
                assert back.head(stream).grpc_status == "0"
                stream = back.open(grpc_head(reqid=work.request_id))
                tunnel.wait(HEADERS, where=lambda event: event.stream > request.stream)
                back.abort()
            parked(owner, work.request_id)
        assert relays(wrong, "client", "relayed") == 3
        assert owner.metric("worker_token_issued_total") == 1


def test_secrets_are_read_again_and_two_are_accepted(nodes):
    both = nodes(secrets=(SECRET, "another secret, also long enough\n"))
    wrong, owner = both.all

    def answered():
        with FakeWorker(owner) as worker, owner.h2() as client:
            client.open(grpc_head())
            return callback(wrong, worker.poll()).answer(body=False).status

    # Nothing proves the token here.
    assert answered() == 403
    both.files[0].write_text(SECRET + "another secret, also long enough\n")
    wrong.signal(signal.SIGHUP)
    until(lambda: "secrets were read again" in wrong.log_text())
    # Its token is known; but the prelude is signed with the first secret, which the owner has not.
    assert answered() == 503
    assert owner.metric("ringway_relays_taken_total", outcome="forged") == 1
    both.files[1].write_text("another secret, also long enough\n" + SECRET)
    owner.signal(signal.SIGHUP)
    until(lambda: "secrets were read again" in owner.log_text())
    assert answered() == 200


def test_who_is_no_gateway_is_refused(nodes):
    both = nodes()
    node = both.all[0]
    for said in (b"", b"GET / HTTP/1.1\r\n\r\n", b"RWGY\x01\x01\x00\x08" + bytes(40),
                 b"RWGY\xff", bytes(100)):
        with socket.create_connection(("127.0.0.1", both.ports[0]), 10) as line:
            challenge = line.recv(32, socket.MSG_WAITALL)
            assert len(challenge) == 32
            began = time.monotonic()
            line.sendall(said)
            assert len(line.recv(10)) == (1 if said else 0)
            assert time.monotonic() - began < 2
    assert node.metric("ringway_relays_taken_total", outcome="garbled") >= 2
    assert node.metric("ringway_relays_taken_total", outcome="forged") == 1
    assert node.metric("ringway_relays_taken_total", outcome="version") == 1
    assert node.metric("ringway_relays_taken_total", outcome="late") == 1
    node.logs("a prelude was refused")


def test_an_unknown_token_goes_to_the_old_proxy_once(nodes):
    with socket.create_server(("127.0.0.1", 0)) as old:
        address = f"http://127.0.0.1:{old.getsockname()[1]}"
        node = nodes(more=f'fallback = "{address}"').all[0]
        token = "A" * 36
        line = Line(node.worker)
        line.send(connect_head(token, "11111111-1111-4111-8111-111111111111"))
        there, _ = old.accept()
        head = there.recv(10_000).decode()
        assert head.endswith("Via: 1.1 ringway\r\n\r\n") and f"Bearer {token}\r\n" in head
        there.sendall(b"HTTP/1.1 200 OK\r\n\r\nraw")
        assert line.answer(body=False).status == 200
        there.close()
        assert line.ends().endswith(b"raw")
        assert relays(node, "fallback", "relayed") == 1
        marked = Line(node.worker)
        marked.send(connect_head(token, "11111111-1111-4111-8111-111111111111",
                                 extra="Via: 1.1 ringway\r\n"))
        assert marked.answer().status == 403
