"""A client that has said all and takes nothing costs no CPU, whatever it speaks."""

import os
import socket
import time

import pytest

import grpcserver
from behind import Authority, tls
from echo import PATH, message
from gateway import FUNCTION, Gateway, configuration, serve_each
from rawh2 import DATA, HEADERS, frame, settings, window_update

PIECES, PIECE = 400, b"x" * 65536
# Of a time in which nothing happens; a core that spins takes all of it.
QUIET, MOST = 1.0, 0.2


class Server:
    """Answers each connection with more than anybody takes."""

    def __init__(self, kind):
        self.kind = kind
        self.listener = serve_each(self._serve)
        self.port = self.listener.getsockname()[1]

    def __exit__(self, *_):
        self.listener.close()

    def _serve(self, connection):
        try:
            heard = b""
            while b"\r\n\r\n" not in heard:
                heard += connection.recv(65536)
            if self.kind == "ws":
                connection.sendall(b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\n"
                                   b"connection: upgrade\r\n\r\n")
            else:
                connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 100000000\r\n\r\n")
            for _ in range(PIECES):
                connection.sendall(PIECE)
            time.sleep(60)
        except OSError:
            pass


def cpu(gateway):
    with open(f"/proc/{gateway.pid}/stat") as stat:
        fields = stat.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def asked(kind):
    """A request for a large answer that is not taken."""
    who = ("authorization: Bearer dev-key\r\n"
           "function-id: 11111111-1111-4111-8111-111111111111\r\n")
    if kind == "h2":
        # Literal fields that are not indexed (RFC 7541, 6.2.2), behind GET, http and a path.
        def field(name, value):
            return b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value

        head = (b"\x83\x86" + field(b":path", PATH["ServerStream"].encode())
                + field(b":authority", b"a") + field(b"te", b"trailers")
                + field(b"content-type", b"application/grpc")
                + field(b"authorization", b"Bearer dev-key")
                + field(b"function-id", FUNCTION.encode()))
        return (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + settings({4: 2**31 - 1})
                + window_update(0, 2**30) + frame(HEADERS, 4, 1, head)
                + frame(DATA, 1, 1, message(b"x" * 50_000, count=400)))
    if kind == "ws":
        return (f"GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
                f"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
                f"{who}\r\n").encode()
    return f"GET /x HTTP/1.1\r\nhost: a\r\n{who}\r\n".encode()


@pytest.mark.parametrize("io", ["ring", "epoll"])
@pytest.mark.parametrize("kind", ["h1", "h2", "ws", "tls"])
def test_a_client_that_sent_fin_and_takes_nothing_costs_nothing(tmp_path, kind, io):
    server = grpcserver.Server() if kind == "h2" else Server(kind)
    text = configuration(dial=f"127.0.0.1:{server.port}", io=io)
    context = None
    if kind == "tls":
        authority = Authority(tmp_path)
        context = authority.context()
        secured = f'{{ address = "127.0.0.1:0", {tls(*authority.issue("one"))} }}'
        text = text.replace('client = "127.0.0.1:0"', f"client = {secured}", 1)
    path = tmp_path / "half-closed.toml"
    path.write_text(text)
    with Gateway(["serve", "--config", str(path), "--io", io], tmp_path) as gateway:
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        client.connect(gateway.client)
        speaker = context.wrap_socket(client, server_hostname="localhost") if context else client
        speaker.sendall(asked(kind))
        time.sleep(0.7)
        speaker.shutdown(socket.SHUT_WR)
        time.sleep(0.3)
        before = cpu(gateway)
        time.sleep(QUIET)
        used = cpu(gateway) - before
        assert used < MOST, f"{used} CPU seconds in {QUIET} s"
        speaker.close()
    server.__exit__(None, None, None)
