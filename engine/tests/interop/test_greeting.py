"""The gateway speaks first where HTTP/2 is all that is spoken: on a port that is told so, and over TLS
when the client has chosen it by ALPN (RFC 9113 3.4 lets either side begin)."""

import subprocess

import pytest

from behind import Authority, serve_with, tls
from rawh2 import PREFACE, frame, settings

SETTINGS, GOAWAY = 4, 7


def frames(sock, until):
    """(type, flags) of the frames that come until one is of that type, without ACK."""
    octets, seen = b"", []
    while True:
        while len(octets) >= 9 and len(octets) >= 9 + int.from_bytes(octets[:3], "big"):
            seen.append((octets[3], octets[4]))
            octets = octets[9 + int.from_bytes(octets[:3], "big"):]
            if seen[-1][0] == until and not (until == SETTINGS and seen[-1][1] & 1):
                return seen
        more = sock.recv(65_536)
        assert more, f"closed after {seen}"
        octets += more


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    gateway, _ = serve_with(tmp_path_factory.mktemp("told"), client='protocol = "h2"')
    yield gateway
    gateway.kill()


@pytest.fixture(scope="module")
def secure(tmp_path_factory):
    folder = tmp_path_factory.mktemp("secure")
    authority = Authority(folder)
    gateway, _ = serve_with(folder, client=tls(*authority.issue("server")))
    yield gateway, authority
    gateway.kill()


def ask_health(gateway):
    url = "http://%s:%d/health" % gateway.client
    return subprocess.run(["curl", "-sS", "--http2-prior-knowledge", "-w", " %{http_version}", url],
                          capture_output=True, text=True, timeout=60).stdout.split()


def test_settings_come_before_the_client_has_said_anything(told):
    with told.client_socket() as sock:
        assert frames(sock, SETTINGS) == [(SETTINGS, 0)]


def test_settings_are_said_once(told):
    with told.client_socket() as sock:
        sock.sendall(PREFACE + settings() + frame(6, 0, 0, b"12345678"))
        seen = frames(sock, 6)
        assert [flags for kind, flags in seen if kind == SETTINGS and not flags & 1] == [0]
        assert (SETTINGS, 1) in seen, "its own are acknowledged"


def test_a_client_is_answered(told):
    assert ask_health(told)[-1] == "2"


def test_http1_is_told_to_go(told):
    with told.client_socket() as sock:
        sock.sendall(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n")
        frames(sock, GOAWAY)


def test_over_tls_whoever_chose_http2_hears_them_at_once(secure):
    gateway, authority = secure
    with authority.context("h2").wrap_socket(gateway.client_socket(),
                                             server_hostname="localhost") as sock:
        assert frames(sock, SETTINGS) == [(SETTINGS, 0)]
        sock.sendall(PREFACE + settings() + frame(6, 0, 0, b"12345678"))
        seen = frames(sock, 6)
        assert all(flags & 1 for kind, flags in seen if kind == SETTINGS)


def test_over_tls_whoever_chose_http1_hears_nothing(secure):
    gateway, authority = secure
    with authority.context("http/1.1").wrap_socket(gateway.client_socket(),
                                                   server_hostname="localhost") as sock:
        sock.sendall(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n")
        assert sock.recv(9) == b"HTTP/1.1 "
