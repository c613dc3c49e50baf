"""The path of NVIDIA's portal (contract 11): it signs in by a POST with `X-NVCF-ABSORB`, keeps the
cookie and closes; comes back with a WebSocket on another connection; and signs out by a DELETE on a
third one. All three are one session of a streaming function."""

import http.client
import socket
import time
from http.cookies import SimpleCookie

import pytest
from websockets.frames import Opcode
from websockets.http11 import Request
from websockets.server import ServerProtocol
from websockets.sync.client import connect

from gateway import FUNCTION, VERSION, credentials, serve_each, until
from nvcf_bed import SCRIPT, A, Bed

PATH = "/sign_in"
STREAMING = {"function": [{"id": FUNCTION, "version": [{"id": VERSION, "type": "STREAMING"}]}]}


class PortalServer:
    """The server where the portal signs in. It answers POST and DELETE, speaks WebSocket, and keeps the heads
    of all of it as they came."""

    def __init__(self):
        self.heads = []
        self.listener = serve_each(self.serve)
        self.port = self.listener.getsockname()[1]

    def serve(self, sock):
        inbox = b""
        with sock:
            try:
                while octets := sock.recv(65_536):
                    inbox += octets
                    if b"\r\n\r\n" not in inbox:
                        continue
                    head, inbox = inbox.split(b"\r\n\r\n", 1)
                    self.heads.append(head.decode())
                    if head.startswith(b"GET"):
                        return self.talk(sock, head + b"\r\n\r\n" + inbox)
                    # None of the portal's requests has a body.
                    sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nsigned")
            except OSError:
                pass

    def talk(self, sock, octets):
        protocol = ServerProtocol(max_size=None)
        while octets:
            protocol.receive_data(octets)
            for event in protocol.events_received():
                if isinstance(event, Request):
                    protocol.send_response(protocol.accept(event))
                elif event.opcode is Opcode.TEXT:
                    protocol.send_text(event.data)
            for out in protocol.data_to_send():
                if not out:
                    return
                sock.sendall(out)
            octets = sock.recv(65_536)

    def head(self, number):
        """The fields of a request that came, names as they were sent."""
        line, *fields = self.heads[number].split("\r\n")
        return line, dict(field.split(": ", 1) for field in fields)

    def close(self):
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()


@pytest.fixture(scope="module")
def portal(tmp_path_factory):
    server = PortalServer()
    with Bed(tmp_path_factory.mktemp("portal"), {**SCRIPT, **STREAMING}) as bed:
        bed.worker(f"127.0.0.1:{server.port}", slots=4, more=["--streaming"])
        yield bed.ready_gateway(), server
    server.close()


def ask(gateway, method, window, **more):
    """One request on a connection of its own: (status, fields)."""
    connection = http.client.HTTPConnection(*gateway.client, timeout=60)
    try:
        fields = {**dict(credentials(key=A)), "X-NVCF-RECONNECT-WINDOW-SECS": str(window), **more}
        connection.request(method, PATH, headers=fields)
        answer = connection.getresponse()
        assert answer.read() == b"signed" or answer.status != 200
        return answer.status, answer.headers
    finally:
        connection.close()


def parked(gateway):
    return gateway.metric("ringway_parked_tunnels")


def test_sign_in_talk_and_sign_out(portal):
    gateway, server = portal
    begin = len(server.heads)
    kept = gateway.metric("ringway_resumes_total", way="memory", outcome="ok")
    asked = gateway.metric("ringway_spares_total", outcome="asked")
    status, fields = ask(gateway, "POST", 20, **{"X-NVCF-ABSORB": "true"})
    assert status == 200, status
    session = fields["nvcf-reqid"]
    cookie = SimpleCookie(fields["set-cookie"])["nvcf-request-id"].value
    assert cookie == session
    until(lambda: parked(gateway) == 1, what="the tunnel is kept")
    host, port = gateway.client
    back = {**dict(credentials(key=A)), "cookie": f"nvcf-request-id={cookie}",
            "X-NVCF-RECONNECT-WINDOW-SECS": "20"}
    with connect(f"ws://{host}:{port}{PATH}", compression=None, additional_headers=back,
                 open_timeout=60) as talk:
        assert talk.response.headers["nvcf-reqid"] == session
        talk.send("hello")
        assert talk.recv(timeout=60) == "hello"
        assert parked(gateway) == 0
    assert gateway.metric("ringway_resumes_total", way="memory", outcome="ok") == kept + 1
    status, fields = ask(gateway, "DELETE", 20, cookie=f"nvcf-request-id={cookie}")
    assert (status, fields["nvcf-reqid"]) == (200, session)
    # Its worker keeps a streaming function's session: no spare is asked for (design 3.26).
    assert gateway.metric("ringway_spares_total", outcome="asked") == asked
    lines = [server.head(number)[0] for number in range(begin, len(server.heads))]
    assert lines == [f"POST {PATH} HTTP/1.1", f"GET {PATH} HTTP/1.1", f"DELETE {PATH} HTTP/1.1"]
    for number in range(begin, begin + 3):
        fields = {name.lower(): value for name, value in server.head(number)[1].items()}
        assert fields["x-nvcf-reconnect-window-secs"] == "20", server.heads[number]
        assert fields.get("x-nvcf-absorb") == ("true" if number == begin else None)
        assert fields["nvcf-reqid"] == session
    assert gateway.get(f"/sessions/{session}", method="DELETE")[0] == 204


def test_it_is_kept_no_longer_than_the_portal_says(portal):
    """Design 3.26: the worker's own window begins only when the tunnel ends, so the shorter of the
    two counts; here the portal's, of a second, against 30 of the gateway."""
    gateway, _ = portal
    status, _ = ask(gateway, "POST", 1, **{"X-NVCF-ABSORB": "true"})
    assert status == 200, status
    until(lambda: parked(gateway) == 1, what="the tunnel is kept")
    began = time.monotonic()
    until(lambda: parked(gateway) == 0, timeout=10, what="it is let go")
    assert time.monotonic() - began < 5
