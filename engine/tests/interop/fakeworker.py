"""A worker written only from the published pages: it polls /v1/work, dials back with CONNECT
and then serves HTTP/2 on that connection. The test plays the function behind it."""

import json
import re
import socket
import time
from dataclasses import dataclass
from urllib.parse import urlsplit

import rawh2
from gateway import FUNCTION, VERSION, WORKER_KEY


@dataclass
class Answer:
    """An HTTP/1.1 response."""

    status: int
    fields: list
    body: bytes
    head: bytes

    def get(self, name):
        return next((value for key, value in self.fields if key == name), None)


class Line:
    """An HTTP/1.1 connection on which the test writes the octets itself."""

    def __init__(self, address, timeout=30):
        self.sock = socket.create_connection(address, timeout)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.inbox = b""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def send(self, octets):
        self.sock.sendall(octets.encode() if isinstance(octets, str) else octets)

    def read(self, deadline):
        left = deadline - time.monotonic()
        if left <= 0:
            raise rawh2.Silence(f"no whole answer; so far {self.inbox!r}")
        self.sock.settimeout(left)
        try:
            octets = self.sock.recv(65_536)
        except TimeoutError:
            raise rawh2.Silence(f"no whole answer; so far {self.inbox!r}") from None
        except ConnectionResetError:
            octets = b""
        if not octets:
            raise rawh2.Closed(f"closed; so far {self.inbox!r}")
        self.inbox += octets

    def answer(self, timeout=30, body=True):
        """The next response. Without `body` what follows the head stays unread."""
        deadline = time.monotonic() + timeout
        while b"\r\n\r\n" not in self.inbox:
            self.read(deadline)
        head, self.inbox = self.inbox.split(b"\r\n\r\n", 1)
        first, *lines = head.decode("latin-1").split("\r\n")
        found = re.fullmatch(r"HTTP/1\.[01] (\d{3})(?: .*)?", first)
        assert found, f"not a status line: {first!r}"
        fields = []
        for line in lines:
            name, colon, value = line.partition(":")
            assert colon, f"not a field: {line!r}"
            fields.append((name.strip().lower(), value.strip()))
        answer = Answer(int(found.group(1)), fields, b"", head)
        if body and answer.status not in (204, 304):
            answer.body = self.take_body(answer, deadline)
        return answer

    def take_body(self, answer, deadline):
        if "chunked" in (answer.get("transfer-encoding") or ""):
            return self.take_chunks(deadline)
        length = answer.get("content-length")
        if length is None:
            try:
                while True:
                    self.read(deadline)
            except rawh2.Closed:
                octets, self.inbox = self.inbox, b""
                return octets
        while len(self.inbox) < int(length):
            self.read(deadline)
        octets, self.inbox = self.inbox[:int(length)], self.inbox[int(length):]
        return octets

    def take_chunks(self, deadline):
        octets = b""
        while True:
            while b"\r\n" not in self.inbox:
                self.read(deadline)
            size, self.inbox = self.inbox.split(b"\r\n", 1)
            length = int(size.split(b";")[0], 16)
            while len(self.inbox) < length + 2:
                self.read(deadline)
            octets, self.inbox = octets + self.inbox[:length], self.inbox[length + 2:]
            if length == 0:
                return octets

    def ends(self, timeout=30):
        """The other end closes; what it still said."""
        deadline = time.monotonic() + timeout
        try:
            while True:
                self.read(deadline)
        except rawh2.Closed:
            return self.inbox

    def is_open(self):
        self.sock.setblocking(False)
        try:
            return self.sock.recv(1, socket.MSG_PEEK) != b""
        except BlockingIOError:
            return True
        except ConnectionResetError:
            return False
        finally:
            self.sock.setblocking(True)

    def close(self):
        self.sock.close()


@dataclass
class Work:
    """One work item as /v1/work gives it."""

    raw: dict

    @property
    def kind(self):
        return self.raw["kind"]

    @property
    def request_id(self):
        return self.raw["requestId"]

    @property
    def uri(self):
        return urlsplit(self.raw["connections"][0]["http1"]["proxyUri"])

    @property
    def token(self):
        return self.raw["connections"][0]["http1"]["proxyAuthorizationToken"]


def connect_head(token, request_id, path="/v1/proxy", method="CONNECT", extra=""):
    """What a worker's Go library writes (contract 4.1); None leaves a header out."""
    lines = [f"{method} {path} HTTP/1.1", "Host: gateway.test:10086",
             "User-Agent: Go-http-client/1.1"]
    if token is not None:
        lines.append(f"Authorization: Bearer {token}")
    if request_id is not None:
        lines.append(f"X-Request-Id: {request_id}")
    return ("\r\n".join(lines) + "\r\n" + extra + "\r\n").encode()


class FakeWorker:
    """Polls with one keep-alive connection; every CONNECT is a connection of its own."""

    def __init__(self, gateway, key=WORKER_KEY, function=FUNCTION, version=VERSION):
        self.gateway = gateway
        self.key, self.function, self.version = key, function, version
        self.line = None
        self.tokens = []
        self.tunnels = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def poll_octets(self, slots=1, holds=(), body=None):
        if body is None:
            body = json.dumps({"functionId": self.function, "functionVersionId": self.version,
                               "slots": slots, "requestIds": list(holds)})
        authorization = f"Authorization: Bearer {self.key}\r\n" if self.key is not None else ""
        return (f"POST /v1/work HTTP/1.1\r\nHost: gateway.test\r\n{authorization}"
                f"Content-Type: application/json\r\nContent-Length: {len(body.encode())}\r\n"
                f"\r\n{body}")

    def ask(self, **poll):
        """Send a poll and do not wait for its answer."""
        if self.line is None:
            self.line = Line(self.gateway.worker)
        self.line.send(self.poll_octets(**poll))

    def answer(self, timeout=30):
        """The answer to the oldest poll: a Work, None for 204, else the Answer itself."""
        answer = self.line.answer(timeout)
        if answer.status == 204:
            assert answer.body == b"", answer
            return None
        if answer.status != 200:
            return answer
        work = Work(json.loads(answer.body))
        self.tokens.append(work.token)
        return work

    def poll(self, timeout=30, **poll):
        self.ask(**poll)
        return self.answer(timeout)

    def dial(self, work, head=None, behind=b""):
        """CONNECT as the work item says; the Line with the request sent. `behind` follows the
        head in the same segment."""
        line = Line((work.uri.hostname, work.uri.port or 80))
        line.send((head or connect_head(work.token, work.request_id, work.uri.path)) + behind)
        return line

    def connect(self, work, **options):
        """CONNECT and serve: the tunnel as a raw HTTP/2 server."""
        line = self.dial(work)
        answer = line.answer(body=False)
        assert answer.status == 200, answer
        return self.serve(line, **options)

    def serve(self, line, **options):
        """The gateway speaks first (contract WK-12): the preface, then come our SETTINGS."""
        tunnel = rawh2.Peer(line.sock, client=False, already_read=line.inbox, **options)
        deadline = time.monotonic() + 30
        while not tunnel.preface_seen:
            tunnel.pump(deadline, "preface")
        self.tunnels.append(tunnel)
        return tunnel

    def take(self, holds=(), timeout=30, slots=1, **options):
        """The next session: (work, tunnel)."""
        work = self.poll(timeout, holds=holds, slots=slots)
        assert isinstance(work, Work), work
        return work, self.connect(work, **options)

    def close(self):
        for tunnel in self.tunnels:
            tunnel.close()
        if self.line:
            self.line.close()
