"""The small print of HTTP/1: what of a request's form is accepted and how it is passed on, and that
a connection goes on behind each of the gateway's own answers. Rule ids are the wire contract's."""

import email.utils
import http.client
import json
import socket
import socketserver
import threading
import time

import pytest

from gateway import (FUNCTION, KEY, SECOND_FUNCTION, Gateway, configuration, dead_port, grpc_head,
                     plain_head, until)


NOBODY = "99999999-9999-4999-8999-999999999999"


class Server(socketserver.ThreadingTCPServer):
    """An HTTP/1 server that keeps the heads it was sent. `/999` is answered with that status,
    `/hang-up` by closing, `/trailer` with a trailer that was announced, all else with 200."""

    allow_reuse_address = daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.heads = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def at(self):
        return "127.0.0.1:{}".format(self.server_address[1])


class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        while line := self.rfile.readline():
            fields = http.client.parse_headers(self.rfile)
            self.server.heads.append((line.decode().strip(), fields))
            self.rfile.read(int(fields.get("content-length", 0)))
            if fields.get("transfer-encoding"):
                while (size := int(self.rfile.readline(), 16)) > 0:
                    self.rfile.read(size + 2)
                while self.rfile.readline() != b"\r\n":
                    pass
            if b"/hang-up" in line:
                return
            if b"/trailer" in line:
                self.wfile.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n"
                                 b"trailer: x-sum\r\n\r\n2\r\nok\r\n0\r\nx-sum: 7\r\n\r\n")
                continue
            status = b"999 Odd" if b"/999" in line else b"200 OK"
            self.wfile.write(b"HTTP/1.1 " + status + b"\r\ncontent-length: 2\r\n\r\nok")


@pytest.fixture(scope="module")
def server():
    with Server() as running:
        yield running
        running.shutdown()


@pytest.fixture(scope="module")
def gateway(server, tmp_path_factory):
    """One function is dialled, one dials where nobody listens, the others have no worker."""
    place = tmp_path_factory.mktemp("small-print")
    text = configuration(session='wait = "300ms"', dial=server.at)
    dead = f'id = "{SECOND_FUNCTION}"\nversion'
    assert dead in text
    text = text.replace(dead, f'id = "{SECOND_FUNCTION}"\ndial = "127.0.0.1:{dead_port()}"\nversion')
    (place / "serve.toml").write_text(text)
    with Gateway(["serve", "--config", str(place / "serve.toml")], place) as running:
        yield running


class Talk:
    """A client connection, octet by octet."""

    def __init__(self, gateway):
        self.socket = socket.create_connection(gateway.client, 30)
        self.file = self.socket.makefile("rb")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def send(self, text):
        self.socket.sendall(text if isinstance(text, bytes) else text.encode("latin-1"))

    def answer(self, method="GET"):
        """The next response: (status, fields, body). None if the connection has ended."""
        while (line := self.file.readline()).startswith(b"HTTP/1.1 1"):
            http.client.parse_headers(self.file)
        if not line:
            return None
        fields = http.client.parse_headers(self.file)
        body = b""
        if fields.get("transfer-encoding"):
            while (size := int(self.file.readline(), 16)) > 0:
                body += self.file.read(size + 2)[:-2]
            fields.trailers = http.client.parse_headers(self.file)
        elif method != "HEAD":
            body = self.file.read(int(fields.get("content-length", 0)))
        return int(line.split()[1]), fields, body

    def ended(self):
        return self.file.read() == b""


def lines(key=KEY, function=FUNCTION, more=""):
    who = f"authorization: Bearer {key}\r\n" if key else ""
    what = f"function-id: {function}\r\n" if function else ""
    return f"{who}{what}{more}\r\n"


# --- what is accepted, and what the server is told -------------------------------------------

FORMS = {
    "TE, a list": ("GET /x HTTP/1.1", "Host: a\r\nTE: trailers, deflate;q=0.5\r\nConnection: TE\r\n",
                   200, {"te": "trailers"}),
    "TE, no trailers": ("GET /x HTTP/1.1", "Host: a\r\nTE: deflate\r\nConnection: TE\r\n",
                        200, {"te": None}),
    "absolute, Host the same": ("GET http://b.test:80/x HTTP/1.1", "Host: b.test\r\n",
                                200, {"host": "b.test:80"}),
    "absolute, Host another": ("GET http://b.test/x HTTP/1.1", "Host: a.test\r\n",
                               200, {"host": "b.test"}),
    "absolute, no Host": ("GET http://b.test/x HTTP/1.1", "", 400, None),
    "absolute, two Hosts": ("GET http://b.test/x HTTP/1.1", "Host: b.test\r\nHost: b.test\r\n",
                            400, None),
    "absolute, 1.0": ("GET http://b.test/x HTTP/1.0", "", 200, {"host": "b.test"}),
    "a status over 599": ("GET /999 HTTP/1.1", "Host: a\r\n", 999, {}),
    "one empty line": ("\r\nGET /x HTTP/1.1", "Host: a\r\n", 200, {}),
    "four empty lines": ("\r\n\r\n\r\n\r\nGET /x HTTP/1.1", "Host: a\r\n", 200, {}),
    "five empty lines": ("\r\n\r\n\r\n\r\n\r\nGET /x HTTP/1.1", "Host: a\r\n", 400, None),
    "HTTP/1.2": ("GET /x HTTP/1.2", "Host: a\r\n", 200, {}),
    "HTTP/2.0": ("GET /x HTTP/2.0", "Host: a\r\n", 505, None),
    "HTTP/0.9": ("GET /x HTTP/0.9", "Host: a\r\n", 505, None),
}


@pytest.mark.parametrize("name", FORMS)
def test_forms_of_a_request(gateway, server, name):
    line, more, status, seen = FORMS[name]
    server.heads.clear()
    with Talk(gateway) as talk:
        talk.send(f"{line}\r\n{more}{lines()}")
        assert talk.answer()[0] == status
        if seen is None:
            assert not server.heads
            return
        asked, fields = server.heads[0]
        assert asked.split()[1].startswith("/") and asked.endswith("HTTP/1.1"), asked
        for name, value in seen.items():
            assert fields.get_all(name, [None]) == [value], fields.items()
        if "1.0" not in line:
            talk.send("GET /next HTTP/1.1\r\nHost: a\r\n" + lines())
            assert talk.answer()[0] == 200, "the connection goes on, and its tunnel"
            assert server.heads[-1][0].startswith("GET /next")


def test_an_empty_line_behind_a_body_has_no_deadline(gateway):
    """Old clients send one; it is no begin of a request that would have to be finished."""
    with Talk(gateway) as talk:
        talk.send("POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n" + lines() + "ab\r\n")
        assert talk.answer()[0] == 200
        talk.send("GET /x HTTP/1.1\r\nHost: a\r\n" + lines())
        assert talk.answer()[0] == 200


def test_announced_trailers_are_announced(gateway):
    with Talk(gateway) as talk:
        talk.send("GET /trailer HTTP/1.1\r\nHost: a\r\nTE: trailers\r\n" + lines())
        status, fields, body = talk.answer()
        assert (status, fields.get("trailer"), body) == (200, "x-sum", b"ok"), fields.items()
        assert fields.trailers.get("x-sum") == "7"


# --- answers of our own ----------------------------------------------------------------------

# Line and fields of the request, and the status of the answer.
ANSWERS = {
    "health": ("GET /health", "Host: a\r\n\r\n", 200),
    "info": ("GET /info", "Host: a\r\n\r\n", 200),
    "info, POST": ("POST /info", "Host: a\r\n\r\n", 405),
    "HEAD": ("HEAD /health", "Host: a\r\n\r\n", 200),
    "preflight": ("OPTIONS /x", "Host: a\r\nOrigin: http://p\r\n"
                  "Access-Control-Request-Method: GET\r\n\r\n", 200),
    "E1": ("POST /x", "Host: a\r\n" + lines(key=None), 401),
    "E2": ("POST /x", "Host: a\r\n" + lines(function=None), 400),
    "E3": ("POST /x", "Host: a\r\n" + lines(key="nobody"), 401),
    "E3, gRPC": ("POST /x", "Host: a\r\ncontent-type: application/grpc\r\n" + lines(key="nobody"),
                 200),
    "E3, no such function": ("POST /x", "Host: a\r\n" + lines(function=NOBODY), 404),
    "E7": ("POST /x", f"Host: a\r\nnvcf-reqid: {NOBODY}\r\n" + lines(), 404),
    "E12": ("POST /x", "Host: a\r\n" + lines(
        function="55555555-5555-4555-8555-555555555555"), 504),
    "nobody listens": ("POST /x", "Host: a\r\n" + lines(function=SECOND_FUNCTION), 503),
    "the server hangs up": ("GET /hang-up", "Host: a\r\n" + lines(), 502),
}
KIB = 1024
# Fields and body, and whether so much is read over.
BODIES = {
    "no body": ("", b"", True),
    "a short one": (f"Content-Length: {KIB}\r\n", b"x" * KIB, True),
    "one of 60 KiB": (f"Content-Length: {60 * KIB}\r\n", b"x" * 60 * KIB, True),
    "chunks": ("Transfer-Encoding: chunked\r\n", b"3\r\nabc\r\n0\r\nx: 1\r\n\r\n", True),
    "too much": (f"Content-Length: {1024 * KIB}\r\n", b"x" * 8 * KIB, False),
}


def dated(fields):
    (date,) = fields.get_all("date")
    age = time.time() - email.utils.parsedate_to_datetime(date).timestamp()
    assert date.endswith(" GMT") and len(date) == 29 and -2 < age < 60, date


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("name", ANSWERS)
def test_a_connection_goes_on_behind_our_answer(gateway, name, body):
    line, fields, status = ANSWERS[name]
    more, octets, goes_on = BODIES[body]
    if name == "the server hangs up" and body != "no body":
        pytest.skip("the body is the server's to read")
    asked = f"{line} HTTP/1.1\r\n{more}{fields}".encode()
    next_one = b"GET /info HTTP/1.1\r\nHost: a\r\n\r\n"
    # The next request in the same piece, the body behind the answer, and in small pieces.
    for cut in ("at once", "body later", "crumbs"):
        with Talk(gateway) as talk:
            if cut == "at once":
                talk.send(asked + octets + (next_one if goes_on else b""))
            elif cut == "body later":
                talk.send(asked)
            else:
                for at in range(0, len(asked), 40):
                    talk.send(asked[at:at + 40])
                talk.send(octets)
            got, head, _ = talk.answer(line.split()[0])
            assert got == status, (cut, head.items())
            dated(head)
            assert (head.get("connection") != "close") == goes_on, (cut, head.items())
            if not goes_on:
                assert talk.ended(), "what was announced is not waited for"
                continue
            if cut == "body later":
                talk.send(octets)
            if cut != "at once":
                talk.send(next_one)
            again = talk.answer()
            assert again and again[0] == 200, cut
            dated(again[1])


def test_a_body_in_chunks_without_end_is_not_read_for_ever(gateway):
    with Talk(gateway) as talk:
        talk.send("POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n" + lines(key=None))
        assert talk.answer()[0] == 401
        with pytest.raises(OSError):
            for _ in range(1000):
                talk.send(b"2000\r\n" + b"x" * 0x2000 + b"\r\n")
                time.sleep(0.001)


def test_a_client_that_waits_to_send_its_body_is_told_to_close(gateway):
    with Talk(gateway) as talk:
        talk.send("POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\nExpect: 100-continue\r\n"
                  + lines(key=None))
        status, fields, _ = talk.answer()
        assert status == 401 and fields.get("connection") == "close"
        assert talk.ended()


def test_answers_that_end_a_connection_have_a_date(gateway):
    coding = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n"
    for broken, status in [(coding, 501), ("GET / HTTP/1.1\r\n\r\n", 400),
                           ("GET / HTTP/1.1\r\nHost: a\r\nX: " + "x" * 2_000_000, 431)]:
        with Talk(gateway) as talk:
            try:
                talk.send(broken)
            except OSError:
                pass
            got, fields, _ = talk.answer()
            assert got == status
            dated(fields)


def test_the_worker_listeners_answers_have_a_date(gateway):
    for line, status in [("GET /health", 200), ("GET /nothing", 404), ("CONNECT /v1/proxy", 401),
                         ("GET /v1/work", 405)]:
        status_seen, fields, _ = (
            gateway.get("/", port=gateway.worker) if not line else one(gateway, line))
        assert status_seen == status, line
        dated(fields)


def one(gateway, line):
    with socket.create_connection(gateway.worker, 30) as peer:
        peer.sendall(f"{line} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        file = peer.makefile("rb")
        status = int(file.readline().split()[1])
        return status, http.client.parse_headers(file), b""


def test_answers_in_http_2_have_a_date(gateway):
    for fields in (plain_head(key="nobody"), grpc_head(key="nobody"), grpc_head(function=NOBODY),
                   [(":method", "GET"), (":scheme", "http"), (":path", "/health"),
                    (":authority", "a")]):
        with gateway.h2() as peer:
            head = peer.head(peer.open(fields, end_stream=True))
            (date,) = head.values("date")
            assert abs(time.time() - email.utils.parsedate_to_datetime(date).timestamp()) < 60


# --- a server that speaks HTTP/1 only ---------------------------------------------------------

def test_a_server_that_answers_http_2_in_http_1_is_named(serve):
    """As a server without HTTP/2 does: it takes the preface for a request."""
    class Refusing(socketserver.BaseRequestHandler):
        def handle(self):
            self.request.recv(65536)
            self.request.sendall(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n"
                                 b"connection: close\r\n\r\n")

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Refusing) as old:
        threading.Thread(target=old.serve_forever, daemon=True).start()
        gateway = serve(dial="127.0.0.1:{}".format(old.server_address[1]), session='park = "never"')
        with gateway.h2() as peer:
            head = peer.head(peer.open(grpc_head(), end_stream=True))
            assert (head.status, head.grpc_status) == ("502", "14"), str(head)
            assert "HTTP/1" in head.get("grpc-message"), str(head)
            stream = peer.open(plain_head(), end_stream=True)
            assert peer.head(stream).status == "502"
        closed = until(lambda: [line for line in gateway.log_lines() if line.get("close_detail")],
                       what="the session's end in the log")
        assert "speaks HTTP/1 only" in closed[0]["close_detail"], closed
        gateway.logs("the server answers HTTP/2 with HTTP/1")
        assert "larger than we allowed" not in gateway.log_text()

        row = json.loads(gateway.get("/sessions")[2])[0]
        verdict = json.loads(gateway.get("/sessions/" + row["requestId"])[2])["verdict"]
        assert "speaks HTTP/1 only" in verdict, verdict
        # The same server serves clients of HTTP/1.
        with Talk(gateway) as talk:
            talk.send("GET /x HTTP/1.1\r\nHost: a\r\n" + lines())
            assert talk.answer()[0] == 400
        old.shutdown()
