"""TLS on the listeners: programs nobody here wrote, certificates that change, peers that misbehave."""

import os
import shutil
import signal
import socket
import ssl
import subprocess
import threading
import time

import grpc
import pytest

import grpcserver
import rawh2
from behind import Authority, Bridge, SecureWorker, raw_client, serve_with, tls
from echo import EchoMessage, Stub, message
from gateway import KEY, OTHER_KEY, binary, configuration, credentials, grpc_head, until

WHO = tuple(credentials())
MIB = 1 << 20


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def function():
    with grpcserver.Server() as server:
        yield server


@pytest.fixture(scope="module")
def secure(tmp_path_factory, authority, function):
    """A gateway with TLS for clients, and a worker behind it."""
    running, _ = serve_with(tmp_path_factory.mktemp("secure"), client=tls(*authority.issue("one")))
    with running, Bridge(running, function.port):
        yield running
        assert running.alive(), running.log_tail()


@pytest.fixture
def started(tmp_path, authority, function):
    """Starts gateways of one test's own, with a worker behind each."""
    ends = []

    def start(client, bridge=True, **options):
        running, path = serve_with(tmp_path, client=client, **options)
        ends.append(running)
        if bridge:
            worker = Bridge(running, function.port)
            ends.insert(0, worker)
        return running, path

    yield start
    for end in ends:
        end.__exit__()


def channel_to(gateway, authority, **options):
    host, port = gateway.client
    chosen = [*grpcserver.UNLIMITED, ("grpc.use_local_subchannel_pool", 1),
              ("grpc.enable_retries", 0), ("grpc.ssl_target_name_override", "localhost")]
    return grpc.secure_channel(f"{host}:{port}",
                               grpc.ssl_channel_credentials(authority.cert.read_bytes()), chosen,
                               **options)


def shake(gateway, context, session=None, port=None):
    plain = socket.create_connection(port or gateway.client, 10)
    return context.wrap_socket(plain, server_hostname="localhost", session=session)


def serial(gateway, authority):
    """Which certificate a new handshake is shown."""
    with shake(gateway, authority.context()) as sock:
        return sock.getpeercert()["serialNumber"]


def serial_of(cert):
    shown = subprocess.run(["openssl", "x509", "-in", str(cert), "-noout", "-serial"], check=True,
                           capture_output=True, text=True).stdout
    return shown.strip().removeprefix("serial=")


# --- programs -------------------------------------------------------------------------------


def test_grpcio_makes_every_kind_of_call(secure, authority):
    with channel_to(secure, authority) as channel:
        echo = Stub(channel)
        assert echo.Unary(EchoMessage(payload=b"hi"), metadata=WHO, timeout=60).payload == b"hi"
        parts = [EchoMessage(payload=bytes([n]) * 1000) for n in range(50)]
        whole = echo.ClientStream(iter(parts), metadata=WHO, timeout=60).payload
        assert whole == b"".join(part.payload for part in parts)
        many = echo.ServerStream(EchoMessage(payload=b"x" * 5000, count=200), metadata=WHO,
                                 timeout=60)
        assert [len(one.payload) for one in many] == [5000] * 200
        both = echo.BidiStream(iter(parts), metadata=WHO, timeout=60)
        assert [one.payload for one in both] == [part.payload for part in parts]


@pytest.mark.alone
def test_64_mib_each_way_in_constant_memory(secure, authority):
    piece = os.urandom(MIB)
    with channel_to(secure, authority) as channel:
        echo = Stub(channel)
        echo.Unary(EchoMessage(payload=b"warm"), metadata=WHO, timeout=60)
        before, most, done = secure.rss(), 0, threading.Event()

        def watch():
            nonlocal most
            while not done.wait(0.02):
                most = max(most, secure.rss())

        threading.Thread(target=watch, daemon=True).start()
        sent = (EchoMessage(payload=piece) for _ in range(64))
        back = 0
        for one in echo.BidiStream(sent, metadata=WHO, timeout=150):
            assert one.payload == piece
            back += 1
        done.set()
    assert back == 64
    assert most - before < 60 * MIB, (before, most)


@pytest.mark.parametrize("options, version", [
    (["--http2"], "2"), (["--http1.1"], "1.1"), (["--http2", "--tls-max", "1.2"], "2"),
    (["--http1.1", "--tlsv1.3"], "1.1"), (["--no-alpn"], "1.1")])
def test_curl(secure, authority, options, version):
    host, port = secure.client
    answer = subprocess.run(
        ["curl", "-sS", "--cacert", str(authority.cert), *options, "-w", "\n%{http_version} %{http_code}",
         f"https://{host}:{port}/health"], capture_output=True, text=True, timeout=60)
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.splitlines()[-1] == f"{version} 200"
    assert '"status":"OK"' in answer.stdout


def test_curl_without_tls_is_told_to_go(secure):
    host, port = secure.client
    failed = secure.metric("ringway_tls_handshakes_total", listener="client", outcome="failed")
    answer = subprocess.run(["curl", "-sS", "--http1.1", f"http://{host}:{port}/health"],
                            capture_output=True, text=True, timeout=60)
    assert answer.returncode != 0 or "status" not in answer.stdout
    until(lambda: secure.metric("ringway_tls_handshakes_total", listener="client",
                                outcome="failed") > failed)


@pytest.mark.parametrize("offered, chosen", [
    (["h2", "http/1.1"], "h2"), (["http/1.1", "h2"], "h2"), (["http/1.1"], "http/1.1"),
    (["h2"], "h2"), ([], None)])
def test_alpn(secure, authority, offered, chosen):
    with shake(secure, authority.context(*offered)) as sock:
        assert sock.selected_alpn_protocol() == chosen


def test_no_common_protocol_is_refused(secure, authority):
    with pytest.raises(ssl.SSLError):
        shake(secure, authority.context("smtp"))


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_sessions_are_resumed(secure, authority, version):
    context = authority.context("http/1.1", version=version)
    ask = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
    with shake(secure, context) as first:
        assert not first.session_reused
        first.sendall(ask)
        assert first.recv(100).startswith(b"HTTP/1.1 200")  # and with it the tickets
        session = first.session
    with shake(secure, context, session=session) as second:
        assert second.session_reused
        second.sendall(ask)
        assert second.recv(100).startswith(b"HTTP/1.1 200")


def test_tls_1_1_is_refused(secure, authority):
    host, port = secure.client
    answer = subprocess.run(["openssl", "s_client", "-connect", f"{host}:{port}", "-tls1_1",
                             "-cipher", "ALL:@SECLEVEL=0"], input="", capture_output=True,
                            text=True, timeout=60)
    assert "Cipher is (NONE)" in answer.stdout or answer.returncode != 0


def test_the_end_is_announced(secure, authority):
    """`close_notify` comes before the FIN: without it Python calls the end a violation."""
    context = authority.context("http/1.1")
    with shake(secure, context) as sock:
        sock.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        sock.settimeout(30)
        octets = b""
        while more := sock.recv(65_536):
            octets += more
        assert octets.startswith(b"HTTP/1.1 200")


# --- workers --------------------------------------------------------------------------------


def test_a_worker_over_tls(tmp_path, authority, function):
    pair = tls(*authority.issue("both"))
    running, _ = serve_with(tmp_path, client=pair, worker=pair,
                            change=lambda text: text.replace('"http://127', '"https://127'))
    with running:
        context = authority.context("http/1.1")
        with shake(running, authority.context("h2", "http/1.1"), port=running.worker) as sock:
            assert sock.selected_alpn_protocol() == "http/1.1"
        worker = SecureWorker(running, context)
        with Bridge(running, function.port, worker), channel_to(running, authority) as channel:
            answer = Stub(channel).Unary(EchoMessage(payload=b"x" * 100_000), metadata=WHO,
                                         timeout=60)
            assert len(answer.payload) == 100_000
            assert worker.tokens
        assert running.metric("ringway_tls_handshakes_total", listener="worker", outcome="ok") >= 3


# --- certificates that change ---------------------------------------------------------------


class LongStream:
    """A stream that runs while something else happens."""

    def __init__(self, channel):
        self.go = threading.Event()
        self.pieces = threading.Semaphore(0)
        self.ended = False
        self.answers = Stub(channel).BidiStream(self.requests(), metadata=WHO, timeout=100)

    def requests(self):
        number = 0
        while True:
            self.pieces.acquire()
            if self.ended:
                return
            number += 1
            yield EchoMessage(payload=str(number).encode())

    def turn(self):
        self.pieces.release()
        return next(self.answers).payload

    def end(self):
        self.ended = True
        self.pieces.release()
        assert list(self.answers) == []


def replace_and_signal(folder, cert, key, running):
    shutil.copy(cert, folder / "live.pem")
    shutil.copy(key, folder / "live.key")
    running.signal(signal.SIGHUP)


def replace_by_writing(folder, cert, key, _running):
    (folder / "live.pem").write_bytes(cert.read_bytes())
    (folder / "live.key").write_bytes(key.read_bytes())


def replace_by_renaming(folder, cert, key, _running):
    for source, name in ((cert, "live.pem"), (key, "live.key")):
        shutil.copy(source, folder / "next")
        os.rename(folder / "next", folder / name)


def replace_by_symlink(folder, cert, key, _running):
    """As a mounted Kubernetes secret does: one link to a folder is swapped."""
    later = folder / "data-2"
    later.mkdir()
    shutil.copy(cert, later / "tls.pem")
    shutil.copy(key, later / "tls.key")
    os.symlink(later, folder / "data-next")
    os.rename(folder / "data-next", folder / "data")


@pytest.mark.parametrize("replace", [replace_and_signal, replace_by_writing, replace_by_renaming,
                                     replace_by_symlink])
def test_cf1_a_new_certificate_is_used_and_nothing_ends(started, tmp_path, authority, replace):
    old, new = authority.issue(f"old-{replace.__name__}"), authority.issue(f"new-{replace.__name__}")
    if replace is replace_by_symlink:
        first = tmp_path / "data-1"
        first.mkdir()
        shutil.copy(old[0], first / "tls.pem")
        shutil.copy(old[1], first / "tls.key")
        os.symlink(first, tmp_path / "data")
        for name in ("pem", "key"):
            os.symlink(tmp_path / "data" / f"tls.{name}", tmp_path / f"live.{name}")
    else:
        shutil.copy(old[0], tmp_path / "live.pem")
        shutil.copy(old[1], tmp_path / "live.key")
    running, _ = started(tls(tmp_path / "live.pem", tmp_path / "live.key"))
    assert serial(running, authority) == serial_of(old[0])
    with channel_to(running, authority) as channel:
        stream = LongStream(channel)
        assert stream.turn() == b"1"
        replace(tmp_path, *new, running)
        until(lambda: serial(running, authority) == serial_of(new[0]), what="the new certificate")
        assert stream.turn() == b"2"
        stream.end()
    assert running.metric("ringway_reloads_total", what="certificate", outcome="ok") == 1
    end = subprocess.run(["openssl", "x509", "-in", str(new[0]), "-noout", "-enddate", "-dateopt",
                          "iso_8601"], capture_output=True, text=True, check=True).stdout
    shown = running.metric("ringway_tls_certificate_not_after_seconds", listener="client")
    assert time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(shown)) in end


def test_cf1_a_bad_pair_is_not_taken(started, tmp_path, authority):
    old, new = authority.issue("kept"), authority.issue("half")
    shutil.copy(old[0], tmp_path / "live.pem")
    shutil.copy(old[1], tmp_path / "live.key")
    running, _ = started(tls(tmp_path / "live.pem", tmp_path / "live.key"), bridge=False)

    def refused():
        return running.metric("ringway_reloads_total", what="certificate", outcome="refused")

    shutil.copy(new[0], tmp_path / "live.pem")  # its key does not follow
    until(lambda: refused() == 1)
    until(lambda: "does not belong to the certificate" in running.log_text(), what="the reason")
    assert serial(running, authority) == serial_of(old[0])
    (tmp_path / "live.pem").unlink()
    until(lambda: refused() == 2)
    assert serial(running, authority) == serial_of(old[0])
    shutil.copy(new[0], tmp_path / "live.pem")
    shutil.copy(new[1], tmp_path / "live.key")
    until(lambda: serial(running, authority) == serial_of(new[0]))
    assert "PRIVATE" not in running.log_text()


def test_check_tells_what_is_wrong_with_a_pair(tmp_path, authority):
    cert, _ = authority.issue("lonely")
    _, key = authority.issue("other")
    path = tmp_path / "x.toml"
    path.write_text(configuration().replace('client = "127.0.0.1:0"',
                    f'client = {{ address = "127.0.0.1:0", {tls(cert, key)} }}'))
    run = subprocess.run([*binary(), "check", "--config", str(path)], capture_output=True,
                         text=True, timeout=60)
    assert run.returncode == 78
    assert "x.toml:2: listen.client.tls.key" in run.stdout, run.stdout
    cert, key = authority.issue("short", days=3)
    path.write_text(configuration().replace('client = "127.0.0.1:0"',
                    f'client = {{ address = "127.0.0.1:0", {tls(cert, key)} }}'))
    run = subprocess.run([*binary(), "check", "--config", str(path)], capture_output=True,
                         text=True, timeout=60)
    assert run.returncode == 0 and "warning: listen.client.tls.cert" in run.stdout, run.stdout
    assert "expires in 2 days" in run.stdout


# --- tenants and keys that change -----------------------------------------------------------


def unary(channel, key):
    return Stub(channel).Unary(EchoMessage(payload=b"x"), metadata=tuple(credentials(key)),
                               timeout=60).payload


def test_sighup_replaces_keys_and_leaves_sessions_alone(started, authority):
    running, path = started(tls(*authority.issue("keys")))
    with channel_to(running, authority) as channel, channel_to(running, authority) as other:
        stream = LongStream(channel)
        assert stream.turn() == b"1"
        assert unary(other, OTHER_KEY) == b"x"
        old = path.read_text()
        path.write_text(old.replace(f'"{KEY}"', '"fresh-key"').replace("[drain]", "[drain]\nmax = \"7s\""))
        running.signal(signal.SIGHUP)
        until(lambda: running.metric("ringway_reloads_total", what="configuration", outcome="ok"))
        # What runs, runs on; so does the session of the key that is gone.
        assert stream.turn() == b"2"
        assert unary(channel, KEY) == b"x"
        with channel_to(running, authority) as new:
            with pytest.raises(grpc.RpcError) as refused:
                unary(new, KEY)
            assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED
            assert unary(new, "fresh-key") == b"x"
        stream.end()
        warned = until(lambda: [line["keys"] for line in running.log_lines() if line.get("keys")],
                       what="the warning")
        assert warned == ["drain.max"]

        path.write_text(old.replace("[drain]", "[drian]").replace(f'"{KEY}"', '"worse key"'))
        running.signal(signal.SIGHUP)
        until(lambda: running.metric("ringway_reloads_total", what="configuration",
                                     outcome="refused"))
        told = until(lambda: [line["problems"] for line in running.log_lines()
                              if "problems" in line], what="the problems")
        assert len(told) == 1 and "[drian]" in told[0] and "visible ASCII" in told[0], told
        with channel_to(running, authority) as new:
            assert unary(new, "fresh-key") == b"x"
    text = running.log_text()
    assert "fresh-key" not in text and "worse key" not in text


def test_dev_has_nothing_to_read_again(own_gateway):
    own_gateway.signal(signal.SIGHUP)
    until(lambda: "SIGHUP: there is no configuration file" in own_gateway.log_text())
    assert own_gateway.get("/health")[0] == 200


# --- peers that misbehave -------------------------------------------------------------------


@pytest.mark.alone
def test_who_reads_nothing_gets_little(started, authority):
    running, _ = started(tls(*authority.issue("slow")))
    context = authority.context("h2")
    before = running.rss()
    # All the credit there is, and nobody reads: TCP must hold the gateway back, and the gateway
    # the worker.
    slow = raw_client(running, context, auto=(), connection_credit=(1 << 31) - 1 - 65_535,
                      first_settings=[(rawh2.INITIAL_WINDOW_SIZE, (1 << 31) - 1)])
    stream = slow.open(grpc_head(path="/ringway.echo.v1.Echo/ServerStream"))
    slow.send_body(stream, message(b"y" * 60_000, count=5000))
    most, since = 0, time.monotonic()
    while time.monotonic() - since < 4:
        most = max(most, running.rss())
        time.sleep(0.05)
    assert most - before < 150 * MIB, (before, most)
    assert slow.head(stream).status == "200", "something was there to be read"
    with channel_to(running, authority) as channel:
        assert unary(channel, OTHER_KEY) == b"x"
    slow.close()


def test_who_stops_in_the_handshake_is_closed_in_time(started, authority):
    running, _ = started(tls(*authority.issue("stalled")), bridge=False,
                         more='[limits]\nhandshake = "1s"')
    begun = time.monotonic()
    silent, half = running.client_socket(), running.client_socket()
    half.sendall(bytes.fromhex("1603010200010001fc0303"))
    for sock in (silent, half):
        sock.settimeout(30)
        try:
            while sock.recv(1000):
                pass
        except ConnectionResetError:
            pass
    # Sooner than by the ten seconds that are usual.
    assert 0.8 < time.monotonic() - begun < 10
    until(lambda: running.metric("ringway_tls_handshakes_total", listener="client",
                                 outcome="abandoned") == 1)


@pytest.mark.parametrize("octets", [b"\x16\x03\x01\x40\x00" + bytes(20_000), bytes(64 * 1024),
                                    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", os.urandom(64 * 1024)],
                         ids=["record", "zeros", "h2", "noise"])
def test_garbage_ends(secure, octets):
    failed = secure.metric("ringway_tls_handshakes_total", listener="client", outcome="failed")
    with secure.client_socket() as sock:
        try:
            sock.sendall(octets)
            while sock.recv(1000):
                pass
        except (ConnectionResetError, BrokenPipeError):
            pass
    until(lambda: secure.metric("ringway_tls_handshakes_total", listener="client",
                                outcome="failed") == failed + 1)
