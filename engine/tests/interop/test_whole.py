"""A message that was cut does not look whole (contract CL-42, RFC 9113 8.1, RFC 9112 8). A server's
FIN ends a body that lasts until the close. Its RST does not, whatever is between. The same holds for
streams of bytes, for TLS without close_notify, and for programs that die."""

import queue
import signal
import socket
import ssl
import struct
import subprocess
import threading

import pytest

import rawh2
from behind import Authority, serve_with, tls
from gateway import FUNCTION, KEY, Gateway, plain_head
from rawh2 import HEADERS, rst_stream
from workerprogram import WorkerProgram

FIELDS = (f"Host: g\r\nAuthorization: Bearer {KEY}\r\nFunction-Id: {FUNCTION}\r\n")
OK = b"HTTP/1.1 200 OK\r\n"
BODIES = {"until-close": b"\r\nhalf", "length": b"content-length: 9\r\n\r\nhalf",
          "chunked": b"transfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n"}
# curl: data outstanding, nothing came, failure to receive; HTTP/2 stream not closed cleanly.
CUT, STREAM = (18, 52, 56), 92


def abort(sock):
    """RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def rest(sock):
    """(all that comes, how it ends)"""
    got = b""
    while True:
        try:
            more = sock.recv(65536)
        except (ConnectionResetError, ssl.SSLEOFError) as error:
            return got, "rst" if isinstance(error, ConnectionResetError) else "cut"
        if not more:
            return got, "fin"
        got += more


class Server:
    """Does what the path says: /FRAMING/END answers half a body and ends, /ws/END changes
    protocols, says "bye" and ends; an end `wait` waits for the other side's and notes it."""

    def __init__(self):
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = self.listener.getsockname()[1]
        self.ends = queue.Queue()
        threading.Thread(target=self.run, daemon=True).start()

    def run(self):
        while True:
            threading.Thread(target=self.serve, args=self.listener.accept()[:1],
                             daemon=True).start()

    def serve(self, sock):
        sock.settimeout(60)
        head = b""
        while b"\r\n\r\n" not in head:
            more = sock.recv(65536)
            if not more:
                return sock.close()
            head += more
        _, what, end = head.split()[1].decode().split("/")
        if what == "ws":
            sock.sendall(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n"
                         b"Upgrade: x\r\n\r\nbye")
        else:
            sock.sendall(OK + BODIES[what])
        if end == "wait":
            self.ends.put(rest(sock))
            return sock.close()
        return sock.close() if end == "fin" else abort(sock)


@pytest.fixture(scope="module")
def server():
    return Server()


@pytest.fixture(scope="module", params=["dial", "ringway-worker", "dev"])
def gateway(request, tmp_path_factory, server):
    folder, target = tmp_path_factory.mktemp(request.param), f"127.0.0.1:{server.port}"
    never = 'park = "never"'
    if request.param == "dial":
        with Gateway.serve(folder, session=never, dial=target) as running:
            yield running
    elif request.param == "dev":
        with Gateway.dev(folder, "--target", target) as running:
            yield running
    else:
        with Gateway.serve(folder, session=never) as running, \
                WorkerProgram([running.worker], target, folder, slots=16):
            yield running


def curl(running, path, *more):
    host, port = running.client
    done = subprocess.run(
        ["curl", "-s", "-m", "60", *more, "-H", f"authorization: Bearer {KEY}", "-H",
         f"function-id: {FUNCTION}", f"http://{host}:{port}{path}"], capture_output=True)
    return done.returncode, done.stdout


@pytest.mark.parametrize("version", ["--http1.1", "--http1.0"])
@pytest.mark.parametrize("framing", list(BODIES))
@pytest.mark.parametrize("end", ["fin", "rst"])
def test_cl42_a_body_is_whole_only_if_it_is(gateway, framing, end, version):
    code, body = curl(gateway, f"/{framing}/{end}", version)
    if framing == "until-close" and end == "fin":
        assert (code, body) == (0, b"half")
    else:
        assert code in CUT, (code, body)


def upgraded(running, path, wrap=lambda sock: sock):
    sock = wrap(running.client_socket(60))
    sock.sendall(f"GET {path} HTTP/1.1\r\n{FIELDS}Connection: Upgrade\r\nUpgrade: x\r\n\r\n"
                 .encode())
    return sock


def until_bye(sock):
    got = b""
    while not got.endswith(b"\r\n\r\nbye"):
        more = sock.recv(65536)
        assert more, got
        got += more
    return sock


@pytest.mark.parametrize("end", ["fin", "rst"])
def test_cl47_a_stream_of_bytes_ends_at_the_client_as_at_the_server(gateway, end):
    got, how = rest(upgraded(gateway, f"/ws/{end}"))
    assert got.startswith(b"HTTP/1.1 101") and got.endswith(b"\r\n\r\nbye")
    assert how == end


@pytest.mark.parametrize("end", ["fin", "rst"])
def test_cl47_a_stream_of_bytes_ends_at_the_server_as_at_the_client(gateway, server, end):
    sock = until_bye(upgraded(gateway, "/ws/wait"))
    sock.sendall(b"last")
    sock.close() if end == "fin" else abort(sock)
    got, how = server.ends.get(timeout=60)
    assert how == end and (got == b"last" or end == "rst")


def test_a_program_that_dies_leaves_nothing_that_looks_whole(tmp_path, server):
    """A worker program, then a gateway, killed in the middle of a body until close."""
    target = f"127.0.0.1:{server.port}"
    with Gateway.serve(tmp_path, session='park = "never"') as running:
        for dies in ("worker", "gateway"):
            with WorkerProgram([running.worker], target, tmp_path, name=dies) as program:
                sock = running.client_socket(60)
                sock.sendall(f"GET /until-close/wait HTTP/1.0\r\n{FIELDS}\r\n".encode())
                got = b""
                while not got.endswith(b"half"):
                    got += sock.recv(65536)
                if dies == "worker":
                    program.kill()
                else:
                    running.signal(signal.SIGKILL)
                assert rest(sock) == (b"", "rst"), dies
                server.ends.get(timeout=60)


class Half(threading.Thread):
    """An HTTP/2 server: half a response, or a whole one, then RST_STREAM with this code."""

    def __init__(self, whole, code):
        super().__init__(daemon=True)
        self.whole, self.code = whole, code
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.start()

    def run(self):
        while True:
            peer = rawh2.Peer(self.listener.accept()[0], client=False)
            request = peer.wait(HEADERS, timeout=60)
            peer.headers(request.stream, [(":status", "200")])
            peer.data(request.stream, b"half of it", end_stream=self.whole)
            peer.send(rst_stream(request.stream, self.code))


@pytest.mark.parametrize("code", [0, 2, 8])
def test_cl42_a_cut_response_is_an_error_whatever_its_code(tmp_path, code):
    with Gateway.serve(tmp_path, dial=f"127.0.0.1:{Half(False, code).port}") as running:
        assert curl(running, "/x", "--http2-prior-knowledge")[0] == STREAM
        assert curl(running, "/x", "--http2-prior-knowledge", "-T", "/dev/zero")[0] == STREAM


@pytest.mark.parametrize("code", [0, 2, 8])
def test_cl42_a_whole_response_ends_although_its_client_still_uploads(tmp_path, code):
    with Gateway.serve(tmp_path, dial=f"127.0.0.1:{Half(True, code).port}") as running:
        assert curl(running, "/x", "--http2-prior-knowledge") == (0, b"half of it")
        client = running.h2()
        stream = client.open(plain_head())
        client.data(stream, b"some of it")
        assert client.head(stream).status == "200"
        assert client.body(stream)[0] == b"half of it"
        assert client.reset(stream) == 0


# --- TLS --------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def secure(tmp_path_factory, server):
    authority = Authority(tmp_path_factory.mktemp("authority"))
    running, _ = serve_with(tmp_path_factory.mktemp("secure"), session='park = "never"',
                            client=tls(*authority.issue("one")), dial=f"127.0.0.1:{server.port}")
    with running:
        running.wrap = lambda sock: authority.context().wrap_socket(
            sock, server_hostname="localhost", suppress_ragged_eofs=False)
        running.authority = authority
        yield running


@pytest.mark.parametrize("end", ["fin", "rst"])
def test_over_tls_a_body_until_close_ends_with_close_notify_if_it_is_whole(secure, end):
    sock = secure.wrap(secure.client_socket(60))
    sock.sendall(f"GET /until-close/{end} HTTP/1.0\r\n{FIELDS}\r\n".encode())
    got, how = rest(sock)
    if end == "fin":
        assert got.endswith(b"\r\n\r\nhalf") and how == "fin"
    else:
        assert how in ("rst", "cut")


@pytest.mark.parametrize("notified", [True, False])
def test_over_tls_a_stream_of_bytes_without_close_notify_was_cut(secure, server, notified):
    sock = until_bye(upgraded(secure, "/ws/wait", secure.wrap))
    sock.sendall(b"last")
    if notified:
        sock.unwrap().close()
    else:
        sock.close()
    got, how = server.ends.get(timeout=60)
    assert how == ("fin" if notified else "rst")
    assert got == b"last" or not notified


def test_over_tls_half_a_record_is_cut(secure, server):
    sock = secure.client_socket(60)
    read, written = ssl.MemoryBIO(), ssl.MemoryBIO()
    session = secure.authority.context().wrap_bio(read, written, server_hostname="localhost")

    def say(act):
        while True:
            try:
                return act()
            except ssl.SSLWantReadError:
                sock.sendall(written.read())
                read.write(sock.recv(65536))

    say(session.do_handshake)
    head = f"GET /ws/wait HTTP/1.1\r\n{FIELDS}Connection: Upgrade\r\nUpgrade: x\r\n\r\n"
    session.write(head.encode())
    sock.sendall(written.read())
    got = b""
    while not got.endswith(b"bye"):
        got += say(lambda: session.read(65536))
    session.write(b"whole")
    sock.sendall(written.read())
    session.write(b"not whole")
    record = written.read()
    sock.sendall(record[:len(record) // 2])
    sock.close()
    got, how = server.ends.get(timeout=60)
    assert how == "rst" and got in (b"", b"whole")
