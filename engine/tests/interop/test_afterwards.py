"""What is left of a session after every kind of call, by every worker program: the one built into
`ringway dev`, the same before a server of one's own (`--target`), and `ringway-worker`.

A session either is gone, and its worker free, or is parked with a tunnel; nothing else is called
parked, and when all is over every gauge is back at zero."""

import contextlib
import http.client
import json
import re
import socket
import struct
import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Response
from websockets.sync.client import connect
from websockets.sync.server import serve as serve_websockets

import grpcserver
from comeback import count, nothing_is_left
from echo import EchoMessage, Stub, message
from gateway import Gateway, credentials, grpc_head, until
from workerprogram import WorkerProgram

WHO = tuple(credentials())
# As often as a run is asked what it has: a lie that lasts a moment is one, too.
LOOK = 0.02


class WebServer:
    """WebSockets that echo, and plain requests: `/wait` is answered when the test is over."""

    def __init__(self):
        self.over = threading.Event()
        self.server = serve_websockets(self.talk, "127.0.0.1", 0, compression=None,
                                       process_request=self.plain)
        self.port = self.server.socket.getsockname()[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @staticmethod
    def talk(peer):
        with contextlib.suppress(ConnectionClosed):
            for said in peer:
                if said == "end this":
                    return
                peer.send(said)

    def plain(self, _, request):
        if request.path == "/ws":
            return None
        if request.path == "/wait":
            self.over.wait(60)
        return Response(200, "OK", Headers({"content-length": "2"}), b"ok")

    def close(self):
        self.over.set()
        self.server.shutdown()


class Program:
    """A gateway with one of the worker programs before one of the servers."""

    def __init__(self, worker, server, directory, stack, serve):
        target = None
        if worker != "built-in":
            if server == "grpc":
                running = grpcserver.Server()
                stack.callback(running.grpc.stop, 0)
            else:
                running = WebServer()
                stack.callback(running.close)
            target = f"127.0.0.1:{running.port}"
        self.built_in = worker == "built-in"
        if worker == "process":
            self.gateway = serve()
            stack.enter_context(WorkerProgram([self.gateway.worker], target, directory, slots=64))
        else:
            more = ["--target", target] if target else []
            self.gateway = stack.enter_context(Gateway.dev(directory, *more))

    # --- calls, each of which returns its session's id -------------------------------------

    def _grpc(self, call):
        host, port = self.gateway.client
        with grpc.insecure_channel(f"{host}:{port}",
                                   options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
            return dict(call(Stub(channel)).initial_metadata())["nvcf-reqid"]

    def unary(self):
        return self._grpc(lambda echo: echo.Unary.with_call(
            EchoMessage(payload=b"x"), metadata=WHO, timeout=60)[1])

    def client_stream(self):
        return self._grpc(lambda echo: echo.ClientStream.with_call(
            iter([EchoMessage(payload=b"x")] * 10), metadata=WHO, timeout=60)[1])

    def server_stream(self):
        return self._grpc(lambda echo: _drained(echo.ServerStream(
            EchoMessage(payload=b"x", count=10), metadata=WHO, timeout=60)))

    def bidi(self):
        return self._grpc(lambda echo: _drained(echo.BidiStream(
            iter([EchoMessage(payload=b"x")] * 10), metadata=WHO, timeout=60)))

    def grpc_cut(self):
        """In the middle of a stream."""
        client = self.gateway.h2()
        stream = client.open(grpc_head("/ringway.echo.v1.Echo/BidiStream"), False)
        client.data(stream, message(b"x"))
        session = client.head(stream).get("nvcf-reqid")
        _reset(client.sock)
        return session

    def http1(self):
        connection = http.client.HTTPConnection(*self.gateway.client, timeout=60)
        connection.request("POST" if self.built_in else "GET", "/echo", headers=dict(WHO))
        answer = connection.getresponse()
        answer.read()
        connection.close()
        assert answer.status == 200
        return answer.headers["nvcf-reqid"]

    def http1_cut(self):
        """Before its answer, or, where that begins at once, in the middle of it."""
        line = self.gateway.client_socket()
        fields = "".join(f"{name}: {value}\r\n" for name, value in WHO)
        line.sendall((f"POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n{fields}\r\npart"
                      if self.built_in else f"GET /wait HTTP/1.1\r\nhost: x\r\n{fields}\r\n")
                     .encode())
        [row] = until(lambda: [row for row in self.gateway.open_sessions()
                               if row["state"] == "active"], what="the request's tunnel")
        _reset(line)
        return row["requestId"]

    def _websocket(self):
        self.came = count(self.gateway, "ringway_spares_total", outcome="came")
        host, port = self.gateway.client
        peer = connect(f"ws://{host}:{port}/ws", additional_headers=credentials(),
                       compression=None, open_timeout=60, close_timeout=60, legacy=True)
        for n in range(20):
            peer.send(f"{n}")
            assert peer.recv(timeout=60) == f"{n}"
        return peer, peer.response.headers["nvcf-reqid"]

    def _spare(self):
        """Waits until the WebSocket has its spare; there is no other one."""
        until(lambda: count(self.gateway, "ringway_spares_total", outcome="came") > self.came,
              what="the spare")

    def websocket_closed(self):
        """The client closes, with a whole Close handshake: the server is the first to close."""
        peer, session = self._websocket()
        peer.close()
        assert peer.close_code == 1000
        return session

    def websocket_failed(self):
        """The server closes, because it was sent a frame of an unknown kind."""
        peer, session = self._websocket()
        peer.socket.sendall(b"\x83\x80\0\0\0\0")
        with contextlib.suppress(ConnectionClosed):
            peer.recv(timeout=60)
        return session

    def websocket_ended(self):
        """The server closes of its own accord."""
        peer, session = self._websocket()
        peer.send("end this")
        with pytest.raises(ConnectionClosed):
            peer.recv(timeout=60)
        return session

    def websocket_cut(self):
        """At once: its spare may not even have been asked for."""
        peer, session = self._websocket()
        _reset(peer.socket)
        return session

    def websocket_cut_later(self):
        peer, session = self._websocket()
        self._spare()
        _reset(peer.socket)
        return session

    def websocket_reloaded(self):
        """As a browser does when its page is loaded again: a Close, and the end behind it."""
        peer, session = self._websocket()
        self._spare()
        # In one piece: nobody may read the answer in between.
        peer.socket.send(b"\x88\x82\0\0\0\0\x03\xe9", socket.MSG_MORE)
        peer.socket.shutdown(socket.SHUT_RDWR)
        return session


def _drained(call):
    assert len(list(call)) == 10
    return call


def _reset(sock):
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    with contextlib.suppress(OSError):
        # Whoever still reads it would keep it open.
        sock.shutdown(socket.SHUT_RD)
    sock.close()


LEFT = r"ended by the client, \S+ \S+ after the first byte"
FINISHED = r"ended by the worker: it closed the tunnel, \S+ \S+ after the first byte"
KEPT = r"client (lost its network|reset its connection|left) \S+( in the middle of a call)?; its worker is kept for it.*"
# A server that closes behind its answer may be the first to go.
EITHER = r"ended by the (client|worker).*"

CALLS = {  # the server it needs, and what is said of the session then
    "unary": ("grpc", LEFT), "client_stream": ("grpc", LEFT), "server_stream": ("grpc", LEFT),
    "bidi": ("grpc", LEFT), "grpc_cut": ("grpc", KEPT), "http1": ("web", EITHER),
    "http1_cut": ("web", KEPT), "websocket_closed": ("web", FINISHED),
    "websocket_failed": ("web", FINISHED), "websocket_ended": ("web", FINISHED),
    "websocket_cut": ("web", KEPT), "websocket_cut_later": ("web", KEPT),
    "websocket_reloaded": ("web", KEPT),
}


def rows(gateway):
    """The open sessions, none of which is called parked without being it."""
    found = gateway.open_sessions()
    ghosts = [row for row in found if row["state"] == "parked" and not row["tunnel"]]
    assert not ghosts, ghosts
    return {row["requestId"]: row for row in found}


def verdict(gateway, session):
    return json.loads(gateway.get(f"/sessions/{session}")[2])["verdict"]


def all_is_over(gateway):
    nothing_is_left(gateway)
    for limit in ("work_queue", "pending_sessions", "parked_tunnels"):
        assert count(gateway, "ringway_limit_used", limit=limit) == 0, limit
    ends = sum(count(gateway, "ringway_spares_total", outcome=end)
               for end in ("parked", "replaced", "unused", "failed"))
    assert count(gateway, "ringway_spares_total", outcome="asked") == ends
    assert count(gateway, "ringway_limit_hits_total") == 0
    opened = count(gateway, "worker_connection_opened_total")
    assert count(gateway, "worker_connection_closed_total") == opened


def settled(gateway, session, expected):
    """Waits for what is to become of a session; if it is parked, it is ended then."""
    if expected is KEPT:
        until(lambda: rows(gateway).get(session, {}).get("state") == "parked", every=LOOK,
              what=f"{session} parked")
        until(lambda: count(gateway, "ringway_parked_tunnels") == 1, every=LOOK, what="its tunnel")
        said = verdict(gateway, session)
        assert gateway.get(f"/sessions/{session}", "DELETE")[0] == 204
    else:
        until(lambda: session not in rows(gateway), every=LOOK, what=f"the end of {session}")
        said = verdict(gateway, session)
    assert re.fullmatch(expected, said), said
    until(lambda: session not in rows(gateway), every=LOOK, what=f"the end of {session}")


@pytest.mark.parametrize("worker, server", [("built-in", None), ("target", "grpc"),
                                            ("target", "web"), ("process", "grpc"),
                                            ("process", "web")])
def test_what_is_left_after_every_kind_of_call(worker, server, tmp_path, serve):
    with contextlib.ExitStack() as stack:
        program = Program(worker, server, tmp_path, stack, serve)
        for name, (needs, expected) in CALLS.items():
            if server not in (None, needs) or (program.built_in and name == "websocket_ended"):
                continue
            settled(program.gateway, getattr(program, name)(), expected)
        all_is_over(program.gateway)


@pytest.mark.parametrize("worker", ["built-in", "target", "process"])
def test_twenty_users_who_say_twenty_things_and_close(worker, tmp_path, serve):
    """Nothing of them is parked, nobody is refused, and nothing waits in the queue."""
    with contextlib.ExitStack() as stack:
        program = Program(worker, "web", tmp_path, stack, serve)
        with ThreadPoolExecutor(20) as users:
            calls = [users.submit(program.websocket_closed) for _ in range(100)]
            sessions = {call.result(100) for call in calls}
        assert len(sessions) == 100
        until(lambda: not rows(program.gateway), every=LOOK, what="all of them to be over")
        assert {row["closeReason"] for row in program.gateway.sessions()} == {"worker_closed"}
        all_is_over(program.gateway)
