"""HTTP/1.0 and 1.1 through the gateway: curl and Python's http.client against the echo function,
raw octets against a raw worker. Rule ids are the wire contract's."""

import contextlib
import http.client
import os
import re
import subprocess
import threading
import time

import pytest

from fakeworker import FakeWorker, Line
from gateway import FUNCTION, KEY, Gateway, credentials, until
from rawh2 import Silence
from test_programs import HEADERS_OF_A_CALL, curl, run, url

MIB = 1 << 20
H11 = ("--http1.1",)
CALL = dict(credentials())
LINES = "".join(f"{name}: {value}\r\n" for name, value in CALL.items())


def request(line, more="", body=""):
    return f"{line}\r\nHost: echo.test\r\n{LINES}{more}\r\n{body}"


# --- curl -----------------------------------------------------------------------------------

def test_curl_echo(gateway):
    head, body = curl(gateway, "/echo", *HEADERS_OF_A_CALL, "-d", "hello", http=H11)
    assert head.startswith("HTTP/1.1 200 OK") and body == b"hello", (head, body)
    assert "nvcf-reqid: " in head and "set-cookie: nvcf-request-id=" in head, head


def test_curl_http_1_0(gateway):
    head, body = curl(gateway, "/echo", *HEADERS_OF_A_CALL, "-d", "hello", http=("--http1.0",))
    assert head.startswith("HTTP/1.1 200 OK") and body == b"hello", (head, body)
    assert "transfer-encoding" not in head.lower(), head


def test_curl_uploads_in_chunks(gateway):
    payload = os.urandom(3 * MIB)
    head, body = curl(gateway, "/echo", *HEADERS_OF_A_CALL, "-T", "-", "-H", "Expect:",
                      data=payload, http=H11)
    assert head.startswith("HTTP/1.1 200") and unchunked(head, body) == payload, head


def unchunked(head, body):
    assert "transfer-encoding: chunked" in head.lower(), head
    return body                                                  # curl has decoded it


def test_curl_waits_for_100_continue(bare):
    """The worker's 100 lets the body go, not the gateway's."""
    command = ["curl", "-sS", "-v", *H11, *HEADERS_OF_A_CALL, "-H", "Expect: 100-continue",
               "--expect100-timeout", "50", "--data-binary", "the body", url(bare, "/p")]
    with FakeWorker(bare) as worker, \
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        tunnel = Tunnel(worker)
        assert "expect: 100-continue" in tunnel.head() and tunnel.line.inbox == b""
        tunnel.line.send("HTTP/1.1 100 Continue\r\n\r\n")
        until(lambda: tunnel.more() == b"the body", what="the body")
        tunnel.line.send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ndone")
        out, err = running.communicate(timeout=60)
    assert out == b"done" and b"< HTTP/1.1 100 Continue" in err, err


def test_curl_is_answered_before_its_upload(gateway):
    """The echo function's head comes before it has read anything: no 100, and both bodies run."""
    payload = os.urandom(2 * MIB)
    done = run("curl", "-sS", *H11, *HEADERS_OF_A_CALL, "-H", "Expect: 100-continue",
               "--data-binary", "@-", url(gateway, "/echo"), data=payload)
    assert done.returncode == 0 and done.stdout == payload, done.stderr[-2000:]


def test_curl_is_refused_instead_of_100(gateway):
    done = run("curl", "-sS", "-v", *H11, "-H", "Expect: 100-continue", "--expect100-timeout",
               "20", "--data-binary", "@-", url(gateway, "/echo"), data=b"x" * MIB)
    assert b"< HTTP/1.1 401" in done.stderr and b"100 Continue" not in done.stderr, done.stderr


def test_curl_head(gateway):
    done = run("curl", "-sS", "-I", *H11, *HEADERS_OF_A_CALL, url(gateway, "/echo"))
    assert done.stdout.startswith(b"HTTP/1.1 200"), done
    assert b"nvcf-reqid: " in done.stdout


def test_curl_keeps_its_connection_and_session(gateway):
    """Two transfers of one process: one connection, one session, one cookie (CL-17, CL-37)."""
    done = run("curl", "-sS", "-i", *H11, *HEADERS_OF_A_CALL, "-d", "x", url(gateway, "/echo"),
               url(gateway, "/echo"))
    ids = re.findall(rb"nvcf-reqid: (\S+)", done.stdout)
    assert len(ids) == 2 and ids[0] == ids[1], done.stdout
    assert done.stdout.count(b"set-cookie") == 1, done.stdout


@pytest.mark.parametrize("given, status, text", [
    ([], 401, "no authorization was passed in the metadata"),
    (HEADERS_OF_A_CALL[:2], 400, "no function-id was passed in the metadata"),
    ([*HEADERS_OF_A_CALL, "-H", "nvcf-reqid: 12345678-1234-4234-8234-123456789abc"], 404,
     "no existing session found for request id 12345678-1234-4234-8234-123456789abc")])
def test_curl_errors_plain(gateway, given, status, text):
    """CL-10, CL-14."""
    head, body = curl(gateway, "/echo", *given, "-d", "x", "-H", "Origin: https://page.test",
                      http=H11)
    assert head.startswith(f"HTTP/1.1 {status}") and text in body.decode(), (head, body)
    assert "access-control-allow-origin: https://page.test" in head, head


def test_curl_errors_in_grpc_style(gateway):
    """CL-9 works on HTTP/1.1 too."""
    head, body = curl(gateway, "/echo", "-H", "content-type: application/grpc", "-d", "x",
                      http=H11)
    assert head.startswith("HTTP/1.1 200") and body == b"", (head, body)
    assert "grpc-status: 16" in head and "content-type: application/grpc" in head, head


def test_curl_preflight(gateway):
    """CL-12."""
    head, body = curl(gateway, "/echo", "-X", "OPTIONS", "-H", "Origin: https://page.test",
                      "-H", "Access-Control-Request-Method: POST", http=H11)
    assert head.startswith("HTTP/1.1 200") and body == b"", (head, body)
    assert "access-control-allow-methods: POST" in head, head


def test_curl_upgrades_to_h2c(gateway):
    """CL-48: curl asks with `Upgrade: h2c` and goes on in HTTP/2."""
    for arguments in (["-d", "hello"], ["-X", "GET"]):
        done = run("curl", "-sS", "-v", "--http2", *HEADERS_OF_A_CALL, *arguments,
                   url(gateway, "/echo"))
        assert done.returncode == 0, done
        assert b"< HTTP/1.1 101 Switching Protocols" in done.stderr, done.stderr
        assert b"< HTTP/2 200" in done.stderr, done.stderr
        assert done.stdout == (b"hello" if arguments[0] == "-d" else b""), done.stdout


def test_curl_h2c_body_over_its_limit(gateway):
    done = run("curl", "-sS", "-v", "--http2", *HEADERS_OF_A_CALL, "-H", "Expect:",
               "--data-binary", "@-", url(gateway, "/echo"), data=b"x" * (MIB + 1))
    assert b"< HTTP/1.1 413" in done.stderr, done.stderr[-2000:]


@pytest.mark.alone
def test_memory_is_constant_for_a_large_upload(own_gateway, measure):
    """1 GiB in chunks, to a reader that is slower than the sender."""
    curl(own_gateway, "/echo", *HEADERS_OF_A_CALL, "-d", "x", http=H11)
    before, most, done = own_gateway.rss(), [0], threading.Event()

    def watch():
        while not done.wait(0.02):
            most[0] = max(most[0], own_gateway.rss())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        shell = (f"head -c {1024 * MIB} /dev/zero | curl -sS --http1.1 -T - -H 'Expect:' "
                 + " ".join(f"'{part}'" if " " in part else part for part in HEADERS_OF_A_CALL)
                 + f" --limit-rate 400M {url(own_gateway, '/echo')} | wc -c")
        out = subprocess.run(["sh", "-c", shell], capture_output=True, timeout=280)
    finally:
        done.set()
        thread.join()
    assert int(out.stdout) == 1024 * MIB, out
    grown = (most[0] - before) / MIB
    measure(f"resident memory grew by {grown:.1f} MiB for 1 GiB")
    # The echo function runs in the same process, with windows of its own.
    assert grown < 128, f"{grown:.1f} MiB"


# --- Python's http.client -------------------------------------------------------------------

def test_a_kept_connection_serves_many(gateway):
    connection = http.client.HTTPConnection(*gateway.client, timeout=60)
    ids = set()
    for n in range(100):
        connection.request("POST", "/echo", body=f"call {n}", headers=CALL)
        answer = connection.getresponse()
        assert answer.read() == f"call {n}".encode()
        ids.add(answer.headers["nvcf-reqid"])
    assert len(ids) == 1
    connection.request("GET", "/health")
    assert connection.getresponse().read()
    connection.close()


def test_a_generator_is_sent_in_chunks(gateway):
    connection = http.client.HTTPConnection(*gateway.client, timeout=60)
    parts = [os.urandom(size) for size in (1, 10, 4096, 70_000)]
    connection.request("POST", "/echo", body=iter(parts), headers=CALL, encode_chunked=True)
    assert connection.getresponse().read() == b"".join(parts)
    connection.close()


# --- raw octets -----------------------------------------------------------------------------

def test_pipelined_requests_come_back_in_order(gateway):
    with Line(gateway.client) as line:
        bodies = [f"body {n}" for n in range(20)]
        line.send("".join(request("POST /echo HTTP/1.1", f"Content-Length: {len(body)}\r\n", body)
                          for body in bodies))
        for body in bodies:
            answer = line.answer()
            assert (answer.status, answer.body) == (200, body.encode()), answer


class Tunnel:
    """A worker's tunnel that speaks HTTP/1 as the test writes it."""

    def __init__(self, worker):
        self.work = worker.poll()
        self.line = worker.dial(self.work)
        assert self.line.answer(body=False).status == 200

    def head(self):
        """The next request's head."""
        deadline = time.monotonic() + 30
        while b"\r\n\r\n" not in self.line.inbox:
            self.line.read(deadline)
        head, self.line.inbox = self.line.inbox.split(b"\r\n\r\n", 1)
        return head.decode()

    def more(self):
        """What follows it so far."""
        with contextlib.suppress(Silence):
            self.line.read(time.monotonic() + 0.1)
        return self.line.inbox


@pytest.fixture
def call(bare):
    """A request that has reached a raw worker: (client line, tunnel, head)."""
    worker = FakeWorker(bare)
    client = Line(bare.client)

    def make(text=None):
        client.send(text or request("GET /p HTTP/1.1"))
        tunnel = Tunnel(worker)
        return client, tunnel, tunnel.head()

    yield make
    client.close()
    worker.close()


def test_what_the_worker_sees(call):
    """CL-25 to CL-31."""
    more = ("Connection: x-hop\r\nX-Hop: 1\r\nX-Own: 2\r\nX-Forwarded-For: 1.2.3.4\r\n"
            "Cookie: a=b\r\n")
    client, tunnel, head = call(request("GET /p?q=1;2&z=%zz HTTP/1.1", more))
    first, *lines = head.split("\r\n")
    fields = [tuple(line.split(": ", 1)) for line in lines]
    assert first == "GET /p?q=1;2&z=%zz HTTP/1.1"
    assert ("host", "echo.test") in fields and ("x-own", "2") in fields
    assert ("authorization", f"Bearer {KEY}") in fields and ("function-id", FUNCTION) in fields
    assert ("nvcf-reqid", tunnel.work.request_id) in fields and ("cookie", "a=b") in fields
    assert not {"x-hop", "x-forwarded-for", "connection"} & {name for name, _ in fields}
    tunnel.line.send("HTTP/1.1 200 OK\r\nSet-Cookie: w=1\r\nContent-Length: 2\r\n\r\nok")
    answer = client.answer()
    assert answer.body == b"ok" and answer.get("nvcf-reqid") == tunnel.work.request_id
    cookies = [value for name, value in answer.fields if name == "set-cookie"]
    assert cookies == ["w=1", f"nvcf-request-id={tunnel.work.request_id}"]         # CL-37


def test_a_lost_tunnel_is_502(call):
    """CL-41."""
    client, tunnel, _ = call()
    tunnel.line.close()
    answer = client.answer()
    assert (answer.status, answer.body) == (502, b"") and answer.get("nvcf-reqid") is None


def test_a_tunnel_lost_in_mid_response_cuts_the_client(call):
    """CL-42."""
    client, tunnel, _ = call()
    tunnel.line.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
    assert client.answer(body=False).status == 200
    tunnel.line.close()
    assert b"0\r\n\r\n" not in client.ends()


def test_a_second_response_is_not_delivered(call):
    client, tunnel, _ = call()
    one = "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n"
    tunnel.line.send(one + "a" + one + "b")
    assert client.answer().body == b"a"
    assert tunnel.line.ends() == b""
    assert client.inbox == b"" and client.is_open()


def test_a_client_that_leaves_frees_its_worker(call):
    """CL-23."""
    client, tunnel, _ = call()
    client.close()
    assert tunnel.line.ends() == b""


def test_metrics_and_sessions_know_the_version(own_gateway):
    connection = http.client.HTTPConnection(*own_gateway.client, timeout=60)
    connection.request("POST", "/echo", body=b"12345", headers=CALL)
    answer = connection.getresponse()
    answer.read()
    [session] = own_gateway.open_sessions()
    assert session["requestId"] == answer.headers["nvcf-reqid"]
    assert session["state"] == "active" and session["streams"] == 0
    assert (session["bytesIn"], session["bytesOut"]) == (5, 5)

    def counted():
        return [series for series, value in own_gateway.metrics().items()
                if "http_server" in series and '="1.1"' in series and "_count" in series
                and value == 1]
    until(counted, what="the call counted as HTTP/1.1")
    assert own_gateway.metric("active_http_requests_total") == 0
    connection.close()
    until(lambda: not own_gateway.open_sessions(), what="the session's end")


def test_a_draining_gateway_says_close(tmp_path):
    with Gateway.dev(tmp_path) as gateway, Line(gateway.client) as line, \
            Line(gateway.client) as idle:
        for one in (line, idle):
            one.send(request("POST /echo HTTP/1.1", "Content-Length: 1\r\n", "a"))
            assert one.answer().body == b"a"
        line.send(request("POST /echo HTTP/1.1", "Content-Length: 2\r\n", "a"))
        gateway.signal()
        assert idle.ends() == b""
        line.send("b")
        answer = line.answer()
        assert answer.body == b"ab"
        assert line.ends() == b""
        assert gateway.exit_code() == 0
