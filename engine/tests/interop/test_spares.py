"""WebSocket clients that are cut and come back with their id: a spare tunnel leads to the worker
they had. Two `ringway-worker`s, each before a server that says which one it is."""

import contextlib
import socket
import struct
import threading

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect
from websockets.sync.server import serve as serve_websockets

from gateway import credentials, until
from workerprogram import WorkerProgram

# Long enough for any machine, and one to be waited for.
WINDOW, SHORT = "5m", "2s"


def says_its_name(name):
    """A server that greets with its name and echoes."""
    def handler(peer):
        with contextlib.suppress(ConnectionClosed):
            peer.send(name)
            for message in peer:
                peer.send(message)

    server = serve_websockets(handler, "127.0.0.1", 0)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


@pytest.fixture
def two_workers(serve, tmp_path):
    """A gateway, and what its sessions can be with."""
    with contextlib.ExitStack() as stack:
        def start(cores=2, window=WINDOW):
            gateway = serve(session=f'park_window = "{window}"', cores=cores)
            for name in ("one", "two"):
                server = says_its_name(name)
                stack.callback(server.shutdown)
                host, port = server.socket.getsockname()
                stack.enter_context(WorkerProgram([gateway.worker], f"{host}:{port}", tmp_path,
                                                  name=name, slots=4))
            return gateway

        yield start


class Client:
    """A browser, as far as sessions go: it keeps its cookie."""

    def __init__(self, gateway):
        self.gateway, self.id, self.worker = gateway, None, None
        self.open()

    def open(self):
        host, port = self.gateway.client
        headers = credentials()
        if self.id:
            headers.append(("Cookie", f"nvcf-request-id={self.id}"))
        self.peer = connect(f"ws://{host}:{port}/", additional_headers=headers, compression=None,
                            legacy=True, open_timeout=100)
        # A loaded machine is no reason to think that either has gone.
        found, worker = self.peer.response.headers["nvcf-reqid"], self.peer.recv(timeout=100)
        if self.id:
            assert (found, worker) == (self.id, self.worker)
        self.id, self.worker = found, worker
        self.peer.send("there?")
        assert self.peer.recv(timeout=100) == "there?"

    def cut(self, how):
        """Ends the connection as a lost network does for the other side, or a reload."""
        sock = self.peer.socket
        if how == "rst":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            # The library's thread still reads it: this ends that too.
            sock.shutdown(socket.SHUT_RD)
            sock.close()
        elif how == "fin":
            sock.shutdown(socket.SHUT_RDWR)
        else:
            # A masked Close and the end, in one piece: nobody reads the answer.
            sock.send(b"\x88\x82\0\0\0\0\x03\xe9", socket.MSG_MORE)
            sock.shutdown(socket.SHUT_RDWR)


def spares(gateway, outcome):
    return gateway.metric("ringway_spares_total", outcome=outcome)


def all_is_over(gateway):
    """What is parked is ended; then nothing is left."""
    def ended():
        rows = gateway.open_sessions()
        for row in rows:
            if row["state"] == "parked" and spares(gateway, "parked"):
                gateway.get(f"/sessions/{row['requestId']}", "DELETE")
        return not rows
    until(ended, timeout=100, what="the sessions' end")
    asked = spares(gateway, "asked")
    ends = sum(spares(gateway, end) for end in ("parked", "replaced", "unused", "failed"))
    assert asked == ends, gateway.metrics()
    opened = gateway.metric("worker_connection_opened_total")
    closed = gateway.metric("worker_connection_closed_total")
    assert (gateway.metric("worker_connections_active"), opened) == (0, closed)


@pytest.mark.parametrize("how", ["rst", "fin", "close"])
def test_a_client_that_is_cut_finds_its_worker_again(two_workers, how):
    gateway = two_workers()
    clients = [Client(gateway) for _ in range(4)]
    for round in range(1, 6):
        until(lambda: spares(gateway, "came") >= 4 * round, what="the spares")
        for client in clients:
            client.cut(how)
        # Who is back before he is missed takes another way.
        until(lambda: gateway.metric("ringway_parked_tunnels") == 4, what="the spares to park")
        for client in clients:
            client.open()
    assert gateway.metric("ringway_resumes_total", way="spare", outcome="ok") == 20
    for client in clients:
        client.cut(how)
    all_is_over(gateway)


def test_a_client_that_is_cut_before_its_spare_has_come(two_workers):
    """At the 101 and at once: whoever returns finds the same worker, by one way or another."""
    gateway = two_workers()
    clients = [Client(gateway) for _ in range(4)]
    for _ in range(10):
        for client in clients:
            client.cut("rst")
            client.open()
    for client in clients:
        client.cut("fin")
    all_is_over(gateway)


def test_the_window_is_the_last_chance(two_workers):
    gateway = two_workers(cores=1, window=SHORT)
    client = Client(gateway)
    until(lambda: spares(gateway, "came") == 1, what="the spare")
    client.cut("rst")
    until(lambda: not gateway.open_sessions(), what="the window's end")
    all_is_over(gateway)
    with pytest.raises(InvalidStatus) as refused:
        client.open()
    assert refused.value.response.status_code == 404
    assert "Max-Age=0" in refused.value.response.headers["set-cookie"]
