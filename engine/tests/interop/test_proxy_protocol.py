"""The PROXY protocol, version 2: by hand, and from HAProxy."""

import os
import socket
import struct
import subprocess
import time

import pytest

import grpcserver
import rawh2
from behind import Authority, Bridge, proxied, serve_with, tls
from echo import message, messages
from gateway import free_port, grpc_head, until

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
HERE = "127.0.0.0/8"


def header(source="192.0.2.7", port=4242, command=1, more=b""):
    address = socket.inet_aton(source) + socket.inet_aton("10.0.0.1") + struct.pack(">HH", port, 10081)
    body = (address if command else b"") + more
    family = 0x11 if command else 0
    return SIGNATURE + bytes([0x20 | command, family]) + struct.pack(">H", len(body)) + body


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def function():
    with grpcserver.Server() as server:
        yield server


@pytest.fixture(scope="module")
def behind(tmp_path_factory, function):
    """A gateway that believes this machine, and a worker."""
    running, _ = serve_with(tmp_path_factory.mktemp("behind"), client=proxied(HERE))
    with running, Bridge(running, function.port):
        yield running
        assert running.alive(), running.log_tail()


def call(sock):
    """One call over a connection; the connection."""
    peer = rawh2.Peer(sock, client=True)
    stream = peer.open(grpc_head())
    peer.send_body(stream, message(b"hello"))
    assert peer.head(stream).status == "200"
    body, _ = peer.body(stream)
    assert messages(body) == [b"hello"]
    return peer


def seen(gateway):
    return {session["clientAddress"] for session in gateway.open_sessions()}


def count(gateway, outcome, listener="client"):
    return gateway.metric("ringway_proxy_protocol_total", listener=listener, outcome=outcome)


def is_closed(sock):
    sock.settimeout(30)
    try:
        while sock.recv(1000):
            pass
    except ConnectionResetError:
        pass
    return True


@pytest.mark.parametrize("more", [b"", b"\x04\0\3abc" + b"\x05\0\x04uniq"], ids=["bare", "tlv"])
def test_the_header_names_the_client(behind, more):
    sock = behind.client_socket()
    sock.sendall(header(more=more))
    with call(sock):
        assert "192.0.2.7:4242" in seen(behind)


def test_the_header_may_come_byte_by_byte(behind):
    sock = behind.client_socket()
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for byte in header("198.51.100.9", 999):
        sock.sendall(bytes([byte]))
        time.sleep(0.002)
    with call(sock):
        assert "198.51.100.9:999" in seen(behind)


def test_ipv6_addresses(behind):
    body = socket.inet_pton(socket.AF_INET6, "2001:db8::7") + bytes(16) + struct.pack(">HH", 77, 1)
    sock = behind.client_socket()
    sock.sendall(SIGNATURE + b"\x21\x21" + struct.pack(">H", len(body)) + body)
    with call(sock):
        assert "[2001:db8::7]:77" in seen(behind)


def test_a_local_connection_keeps_its_own_address(behind):
    sock = behind.client_socket()
    sock.sendall(header(command=0))
    own = "{}:{}".format(*sock.getsockname())
    with call(sock):
        assert own in seen(behind)


@pytest.mark.parametrize("octets", [
    rawh2.PREFACE, b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n", os.urandom(64 * 1024),
    b"PROXY TCP4 192.0.2.7 10.0.0.1 4242 10081\r\n", SIGNATURE + b"\x21\x11\xff\xff",
    SIGNATURE + b"\x21\x11\0\x04abcd", SIGNATURE + b"\x31\x11\0\x0c" + bytes(12)],
    ids=["h2", "h1", "garbage", "v1", "long", "short", "version"])
def test_what_is_no_header_ends(behind, octets):
    before = count(behind, "malformed")
    with behind.client_socket() as sock:
        try:
            sock.sendall(octets)
        except OSError:
            pass
        assert is_closed(sock)
    until(lambda: count(behind, "malformed") == before + 1)


def test_strangers_are_closed(tmp_path):
    running, _ = serve_with(tmp_path, client=proxied("10.0.0.0/8"), worker=proxied("192.0.2.1"))
    with running:
        for listener, address in (("client", running.client), ("worker", running.worker)):
            with socket.create_connection(address) as sock:
                try:
                    sock.sendall(header())
                except OSError:
                    pass
                assert is_closed(sock)
            until(lambda: count(running, "untrusted", listener) == 1)
        assert running.metric("client_connection_opened_total") == 0


def test_who_never_sends_its_header_is_closed(tmp_path):
    running, _ = serve_with(tmp_path, client=proxied(HERE), worker=proxied(HERE),
                            more='[limits]\nhandshake = "1s"')
    with running:
        begun = time.monotonic()
        for address in (running.client, running.worker):
            with socket.create_connection(address) as sock:
                sock.sendall(SIGNATURE[:5])
                assert is_closed(sock)
        # Sooner than by the ten seconds that are usual.
        assert 1.6 < time.monotonic() - begun < 18


# --- HAProxy --------------------------------------------------------------------------------


@pytest.fixture
def haproxy(tmp_path):
    """HAProxy as a TCP balancer that sends the header; where it listens."""
    runs = []

    def start(target):
        port = free_port()
        path = tmp_path / "haproxy.cfg"
        path.write_text(f"""
defaults
    mode tcp
    timeout connect 5s
    timeout client 30s
    timeout server 30s
frontend in
    bind 127.0.0.1:{port}
    default_backend out
backend out
    server gateway {target[0]}:{target[1]} send-proxy-v2 check check-send-proxy inter 200ms
""")
        log = open(tmp_path / "haproxy.log", "wb")
        runs.append(subprocess.Popen(["haproxy", "-db", "-f", str(path)], stdout=log, stderr=log))

        def open_port():
            assert runs[-1].poll() is None, (tmp_path / "haproxy.log").read_text()
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", port)) == 0

        until(open_port)
        return "127.0.0.1", port

    yield start
    for run in runs:
        run.terminate()
        run.wait(30)


def test_behind_haproxy(behind, haproxy):
    address = haproxy(behind.client)
    sock = socket.create_connection(address)
    own = "{}:{}".format(*sock.getsockname())
    with call(sock):
        assert own in seen(behind)


def test_behind_haproxy_with_tls(tmp_path, authority, function, haproxy):
    pair = tls(*authority.issue("proxied"))
    running, _ = serve_with(tmp_path, client=f"{pair}, {proxied(HERE)}")
    with running, Bridge(running, function.port):
        sock = socket.create_connection(haproxy(running.client))
        own = "{}:{}".format(*sock.getsockname())
        secure = authority.context("h2").wrap_socket(sock, server_hostname="localhost")
        assert secure.selected_alpn_protocol() == "h2"
        with call(secure):
            assert own in seen(running)
        # The balancer's own checks are headers too, of connections that say nothing more.
        until(lambda: count(running, "ok") > 2)
        assert count(running, "malformed") == 0
        assert running.metric("ringway_tls_handshakes_total", listener="client", outcome="ok") == 1
