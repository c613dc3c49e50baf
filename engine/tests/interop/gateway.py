"""A running `ringway`: started, watched and stopped from outside, as its users do."""

import contextlib
import http.client
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path

import rawh2

ROOT = Path(__file__).resolve().parents[3]

FUNCTION = "11111111-1111-4111-8111-111111111111"
VERSION = "22222222-2222-4222-8222-222222222222"
KEY, OTHER_KEY, WORKER_KEY = "dev-key", "other-key", "dev-worker-key"

# What the tests' own configurations add to the function of `dev`.
SECOND_FUNCTION = "33333333-3333-4333-8333-333333333333"
SECOND_VERSION = "44444444-4444-4444-8444-444444444444"
TWO_VERSIONS = "66666666-6666-4666-8666-666666666666"  # a request that names none gets either
PRIVATE_FUNCTION = "55555555-5555-4555-8555-555555555555"
PRIVATE_WORKER_KEY = "private-worker-key"

METRIC = "nvcf_grpc_proxy_service_"


def binary():
    """The program under test: RINGWAY_BIN, else the release build."""
    named = os.environ.get("RINGWAY_BIN")
    return named.split() if named else [str(ROOT / "target/release/ringway")]


def bench():
    """`ringway-bench`: RINGWAY_BENCH_BIN, else the one beside the program under test."""
    return os.environ.get("RINGWAY_BENCH_BIN") or str(Path(binary()[0]).with_name("ringway-bench"))


def cpu(pid):
    """Seconds of processor time so far, of all a process' threads."""
    return sum(int(task.read_text().split()[0])
               for task in Path(f"/proc/{pid}/task").glob("*/schedstat")) / 1e9


# How a configuration begins of a gateway with one core that is asked for as many sessions as it can.
UNLIMITED_CORE = """
[listen]
client = "127.0.0.1:0"
worker = "127.0.0.1:0"
admin = "127.0.0.1:0"
[cores]
count = 1
[limits]
dispatch_burst = 100000
dispatch_rate = 100000
"""


def default_cores():
    """Data cores of every gateway that a test does not give a number: RINGWAY_TEST_CORES, else 1."""
    return int(os.environ.get("RINGWAY_TEST_CORES", "1"))


def driven(arguments):
    """The arguments, with what drives the cores as RINGWAY_TEST_IO says (ring, epoll)."""
    chosen = os.environ.get("RINGWAY_TEST_IO")
    if chosen and arguments[:1] in (["dev"], ["serve"]) and "--io" not in arguments:
        return [*arguments, "--io", chosen]
    return arguments


def free_port():
    """A port that nobody has now: below those that the kernel gives to connections and to whoever
    asks for any, so that it is not lost to one of them before it is used."""
    while True:
        port = random.randrange(12_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


# Sockets that hold the ports of `dead_port`, by port.
HELD = {}


def dead_port():
    """A port that refuses connections, and that nobody else is given while this process runs."""
    held = socket.socket()
    held.bind(("127.0.0.1", 0))
    port = held.getsockname()[1]
    HELD[port] = held
    return port


def revive(port):
    """A server may listen on a dead port from now on."""
    HELD.pop(port).close()
    return port


def configuration(session="", drain="", more="", worker_port=None, cores=None, dial=None,
                  io="auto", host="127.0.0.1", advertise=None, kind="default"):
    """A file for `serve`: free ports, two tenants, four functions. With `dial` the first needs no
    worker; clients and workers reach it by `host`, workers by `advertise` if that is given."""
    worker_port = worker_port or free_port()
    function = """
[[function]]
id = "{}"
version = "{}"
tenants = [{}]
worker_keys = ["{}"]
kind = "{}"
"""
    dialled = f'dial = "{dial}"\n' if dial else ""
    both, dev = '"dev", "other"', '"dev"'
    return f"""[listen]
client = "{host}:0"
worker = "{host}:{worker_port}"
admin = "127.0.0.1:0"

[cores]
count = {cores or default_cores()}
io = "{io}"

[control]
mode = "local"
advertise = "http://{advertise or host}:{worker_port}"

[[tenant]]
name = "dev"
client_keys = ["{KEY}", "dev-key-two"]

[[tenant]]
name = "other"
client_keys = ["{OTHER_KEY}"]
""" + (function.format(FUNCTION, VERSION, both, WORKER_KEY, kind) + dialled
       + function.format(SECOND_FUNCTION, VERSION, both, WORKER_KEY, kind)
       + function.format(TWO_VERSIONS, VERSION, both, WORKER_KEY, kind)
       + function.format(TWO_VERSIONS, SECOND_VERSION, both, WORKER_KEY, kind)
       + function.format(PRIVATE_FUNCTION, VERSION, dev, PRIVATE_WORKER_KEY, kind)
       ) + f"\n[session]\n{session}\n\n[drain]\n{drain}\n\n{more}\n"


class Gateway:
    """One process. `arguments` follow the program's name, `launcher` stands before it; `env` is
    all of its environment, if it is not to be the tests' own. It inherits the descriptors `keep`."""

    def __init__(self, arguments, directory, name="gateway", launcher=(), env=None, keep=()):
        self.arguments = arguments = driven(arguments)
        self.log_path = Path(directory) / f"{name}.stderr"
        self.stdout_lines = []
        # Dies with the tests, however they end.
        tether = ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []
        with open(self.log_path, "wb") as log:
            self.run = subprocess.Popen([*tether, *launcher, *binary(), *arguments],
                                        stdout=subprocess.PIPE, stderr=log, text=True,
                                        start_new_session=True, env=env, pass_fds=keep)
        self.pid = self.run.pid
        self.ready = threading.Event()
        self.client = self.worker = self.admin = self.cluster = None
        threading.Thread(target=self._read_stdout, daemon=True).start()
        if not self.ready.wait(60) or self.client is None:
            try:
                code = self.run.wait(10 if self.ready.is_set() else 0)
            except subprocess.TimeoutExpired:
                code = None
            self.kill()
            raise AssertionError(f"{arguments}: no ready line (exit code {code}); stdout "
                                 f"{self.stdout_lines}; stderr:\n{self.log_tail()}")

    def _read_stdout(self):
        for line in self.run.stdout:
            self.stdout_lines.append(line.rstrip("\n"))
            found = re.fullmatch(r"ready client=(\S+) worker=(\S+) admin=(\S+)(?: cluster=(\S+))?",
                                 line.strip())
            if found and not self.ready.is_set():
                self.client, self.worker, self.admin = map(address, found.groups()[:3])
                self.cluster = found.group(4) and address(found.group(4))
                self.ready.set()
        self.ready.set()

    @classmethod
    def dev(cls, directory, *more, name="dev", launcher=()):
        """With RINGWAY_TEST_WORKER=process: the same by `serve` and a `ringway-worker`; with
        `dial`, by `serve` and a function that is dialled."""
        if os.environ.get("RINGWAY_TEST_WORKER"):
            from workerprogram import WithWorker
            return WithWorker.start(directory, *more, name=name)
        zero = "127.0.0.1:0"
        count = [] if "--cores" in more else ["--cores", str(default_cores())]
        return cls(["dev", "--client", zero, "--worker", zero, "--admin", zero, *count, *more],
                   directory, name, launcher)

    @classmethod
    def serve(cls, directory, name="serve", **settings):
        """With a configuration of the tests' own and no worker. The worker's port is picked
        beforehand, because the configuration names it twice; losing the race for it is no
        fault of the program's."""
        for attempt in range(5):
            path = Path(directory) / f"{name}-{attempt}.toml"
            path.write_text(configuration(**settings))
            try:
                return cls(["serve", "--config", str(path)], directory, name)
            except AssertionError as error:
                if "exit code 71" not in str(error) or attempt == 4:
                    raise

    # --- looking in ------------------------------------------------------------------------

    def log_text(self):
        return self.log_path.read_text(errors="replace")

    def logs(self, text, timeout=20):
        """Waits until its log has `text`: a line is written by a thread that the cores do not wait for."""
        until(lambda: text in self.log_text(), timeout, f"{text!r} in {self.log_path}")

    def log_lines(self):
        """The log as JSON objects; a line that is none fails the caller."""
        return [json.loads(line) for line in self.log_text().splitlines() if line.strip()]

    def log_tail(self, lines=30):
        return "\n".join(self.log_text().splitlines()[-lines:])

    def rss(self):
        """Resident memory in bytes."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+) kB", status).group(1)) * 1024

    def open_files(self):
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def get(self, path, method="GET", headers=None, port=None, timeout=30):
        """An HTTP/1.1 exchange with the admin port (or another): (status, headers, body)."""
        connection = http.client.HTTPConnection(*(port or self.admin), timeout=timeout)
        try:
            connection.request(method, path, headers=headers or {})
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()
        finally:
            connection.close()

    def complete(self, path):
        """The body of an answer to which every core has contributed. The gateway gives a core a
        second for that; on a busy machine one may not get to it, and is asked again."""
        deadline = time.monotonic() + 30
        while True:
            asked = time.monotonic()
            status, _, body = self.get(path)
            assert status == 200, (status, body)
            if time.monotonic() - asked < 0.9 or asked > deadline:
                return body

    def sessions(self):
        return json.loads(self.complete("/sessions"))

    def open_sessions(self):
        return [session for session in self.sessions() if session["state"] != "closed"]

    def metrics(self):
        """{'name{label="value"}': number} of one scrape."""
        samples = {}
        for line in self.complete("/metrics").decode().splitlines():
            if line and not line.startswith("#"):
                name, value = line.rsplit(" ", 1)
                samples[name] = float(value)
        return samples

    def metric(self, name, **labels):
        """The value of a series of the contract, whatever the order of its labels."""
        total, found = 0.0, False
        for series, value in self.metrics().items():
            base, _, rest = series.partition("{")
            has = dict(re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', rest))
            if base in (name, METRIC + name) and labels.items() <= has.items():
                total, found = total + value, True
        assert found, f"no series {name} {labels}"
        return total

    # --- talking ---------------------------------------------------------------------------

    def client_socket(self, timeout=30):
        return socket.create_connection(self.client, timeout)

    def worker_socket(self, timeout=30):
        return socket.create_connection(self.worker, timeout)

    def h2(self, **options):
        """A raw HTTP/2 client connection, SETTINGS exchanged."""
        peer = rawh2.Peer(self.client_socket(), client=True, **options)
        if options.get("start", True):
            peer.ack_of_settings()
        return peer

    # --- ending ----------------------------------------------------------------------------

    def alive(self):
        return self.run.poll() is None

    def signal(self, number=signal.SIGTERM):
        self.run.send_signal(number)

    def exit_code(self, timeout=30):
        try:
            return self.run.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {timeout} s\n{self.log_tail()}") from None

    def kill(self):
        if self.alive():
            self.run.kill()
        self.run.wait()

    def stop(self):
        """A test is done with it; how it exits is another test's matter."""
        if self.alive():
            self.signal()
            try:
                self.run.wait(2)
            except subprocess.TimeoutExpired:
                self.kill()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()


def address(text):
    host, _, port = text.rpartition(":")
    return host.strip("[]"), int(port)


def credentials(key=KEY, function=FUNCTION, version=None, reqid=None):
    """The headers that make a request an invocation."""
    fields = []
    if key is not None:
        fields.append(("authorization", f"Bearer {key}"))
    if function is not None:
        fields.append(("function-id", function))
    if version is not None:
        fields.append(("function-version-id", version))
    if reqid is not None:
        fields.append(("nvcf-reqid", reqid))
    return fields


def grpc_head(path="/ringway.echo.v1.Echo/Unary", extra=(), **who):
    return [(":method", "POST"), (":scheme", "http"), (":path", path),
            (":authority", "echo.test"), ("content-type", "application/grpc"),
            ("te", "trailers"), *credentials(**who), *extra]


def plain_head(path="/echo", method="POST", extra=(), **who):
    return [(":method", method), (":scheme", "http"), (":path", path),
            (":authority", "echo.test"), *credentials(**who), *extra]


def serve_each(serve):
    """A listener on a port of its own. Each connection is served in a thread of its own, until the
    listener is closed."""
    listener = socket.create_server(("127.0.0.1", 0))

    def accept():
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(sock,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    return listener


def until(condition, timeout=30, what="condition", every=0.01):
    """Poll `condition` until it is true; its value."""
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {timeout} s; last seen {value!r}")
        time.sleep(every)


def ask(gateway, fields):
    """One request without a body on a connection of its own: (head, body)."""
    with gateway.h2() as peer:
        stream = peer.open(fields, end_stream=True)
        head = peer.head(stream)
        return head, b"" if head.end_stream else peer.body(stream)[0]
