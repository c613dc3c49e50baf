"""stdout, stderr and signals: what cannot be written, who no longer reads and what others signal
ends no server and makes no program panic; and nothing that a peer or a file says reaches a
terminal as a control."""

import fcntl
import http.client
import http.server
import json
import os
import pty
import re
import resource
import signal
import socket
import subprocess
import termios
import threading
import time
from pathlib import Path

import pytest

import workerprogram
from gateway import (FUNCTION, KEY, VERSION, WORKER_KEY, Gateway, binary, configuration, dead_port,
                     free_port, until)

# --- streams that are in a bad way ----------------------------------------------------------

FILE_LIMIT = 4096


def gone():
    """A pipe that nobody reads any more."""
    reader, writer = os.pipe()
    os.close(reader)
    return writer


def full():
    return os.open("/dev/full", os.O_WRONLY)


def limited(tmp_path):
    """A file that has reached RLIMIT_FSIZE."""
    path = tmp_path / "limited"
    path.write_bytes(b"x" * FILE_LIMIT)
    return os.open(path, os.O_WRONLY | os.O_APPEND)


STREAMS = ["gone", "full", "limited", "closed"]


def open_stream(kind, tmp_path):
    opened = {"gone": gone, "full": full, "limited": lambda: limited(tmp_path),
              "closed": lambda: os.open("/dev/null", os.O_WRONLY)}[kind]
    return opened()


def before_exec(kind, number):
    """In the child: the file limit, or the descriptor closed."""
    def prepare():
        if kind == "limited":
            resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_LIMIT, FILE_LIMIT))
        if kind == "closed":
            os.close(number)
    return prepare


def run(command, kind, tmp_path, number=1):
    """(exit code, what the other stream said)"""
    stream = open_stream(kind, tmp_path)
    ends = {1: dict(stdout=stream, stderr=subprocess.PIPE),
            2: dict(stdout=subprocess.PIPE, stderr=stream)}[number]
    done = subprocess.run(command, timeout=60, preexec_fn=before_exec(kind, number), **ends)
    os.close(stream)
    return done.returncode, (done.stderr if number == 1 else done.stdout).decode()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    place = tmp_path_factory.mktemp("files")
    (place / "good.toml").write_text(configuration())
    (place / "bad.toml").write_text(configuration(more="[nonsense]\nx = 1\n"))
    return place


# The command, its exit code where it can print (or nobody wants to read), and where it cannot.
ANSWERS = {
    "help": (["--help"], 0, 0),
    "version": (["--version"], 0, 0),
    "check": (["check", "--config", "{files}/good.toml"], 0, 74),
    "check of a bad file": (["check", "--config", "{files}/bad.toml"], 78, 74),
    "doctor": (["doctor", "--config", "{files}/good.toml"], None, 74),
    "doctor as JSON": (["doctor", "--json"], None, 74),
    "sessions": (["sessions", "--admin", "{admin}"], 0, 1),
    "sessions as JSON": (["sessions", "--json", "--admin", "{admin}"], 0, 1),
    "top": (["top", "--interval", "100ms", "--frames", "3", "--admin", "{admin}"], 0, 1),
}


@pytest.mark.parametrize("name", ANSWERS)
@pytest.mark.parametrize("kind", STREAMS)
def test_an_answer_that_cannot_be_printed(name, kind, gateway, files, tmp_path):
    words, read, unread = ANSWERS[name]
    admin = "{}:{}".format(*gateway.admin)
    words = [word.format(files=files, admin=admin) for word in words]
    code, said = run([*binary(), *words], kind, tmp_path)
    # What a closed pipe hides is no error: the exit code is that of the answer.
    wanted = {"gone": read, "closed": read}.get(kind, unread)
    assert "panicked" not in said, said
    assert code == wanted or (wanted is None and code in (0, 1)), (code, said)
    if code in (1, 74) and kind in ("full", "limited"):
        assert "No space left" in said or "File too large" in said, said


@pytest.mark.parametrize("kind", STREAMS)
def test_a_complaint_that_cannot_be_written(kind, files, tmp_path):
    for words, code in [(["serve", "--config", f"{files}/bad.toml"], 78),
                        (["serve", "--cores", "99999", "--config", f"{files}/good.toml"], 2),
                        (["sessions", "--admin", f"127.0.0.1:{dead_port()}"], 1),
                        (["nonsense"], 2)]:
        assert run([*binary(), *words], kind, tmp_path, number=2)[0] == code, words
    worker = [*workerprogram.binary(), "--gateway", "http://127.0.0.1:1", "--key-file", "/none",
              "--function", FUNCTION, "--version", VERSION, "--target", "127.0.0.1:1"]
    assert run(worker, kind, tmp_path, number=2)[0] == 2


# --- servers ---------------------------------------------------------------------------------

class Server:
    """`ringway serve` on ports that are known beforehand, with a stream in a bad way."""

    def __init__(self, tmp_path, kind, number):
        self.ports = {name: free_port() for name in ("client", "worker", "admin")}
        text = configuration(worker_port=self.ports["worker"])
        for name in ("client", "admin"):
            text = text.replace(f'{name} = "127.0.0.1:0"',
                                f'{name} = "127.0.0.1:{self.ports[name]}"')
        path = tmp_path / "serve.toml"
        path.write_text(text)
        stream = open_stream(kind, tmp_path)
        ends = {1: dict(stdout=stream, stderr=subprocess.DEVNULL),
                2: dict(stdout=subprocess.DEVNULL, stderr=stream)}[number]
        self.run = subprocess.Popen([*binary(), "serve", "--config", str(path)], **ends,
                                    preexec_fn=before_exec(kind, number), start_new_session=True)
        os.close(stream)

    def get(self, port, path="/", **fields):
        connection = http.client.HTTPConnection("127.0.0.1", self.ports[port], timeout=30)
        connection.request("GET", path, headers=fields)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()

    def live(self):
        try:
            return self.get("admin", "/ready")[0] == 200
        except OSError:
            assert self.run.poll() is None, self.run.returncode
            return False


@pytest.mark.parametrize("number, kind", [(1, kind) for kind in STREAMS]
                         + [(2, kind) for kind in STREAMS])
def test_a_server_serves_on_and_counts_what_it_could_not_say(number, kind, tmp_path):
    server = Server(tmp_path, kind, number)
    try:
        until(server.live, what="ready")
        for _ in range(20):  # each leaves a line
            assert server.get("client", "/x", authorization=f"Bearer {KEY}",
                              **{"function-id": "none"})[0] == 404

        def lost():
            found = re.search(r'^ringway_log_lines_lost_total\{why="write"\} (\d+)$',
                              server.get("admin", "/metrics")[1], re.M)
            return int(found.group(1))

        if number == 2 and kind != "closed":
            until(lambda: lost() >= 5, what="lines that were lost are counted")
        else:
            assert lost() == 0
        server.run.send_signal(signal.SIGTERM)
        assert server.run.wait(30) == 0
    finally:
        server.run.kill()
        server.run.wait()


def test_a_log_whose_reader_sleeps_loses_no_half_lines(tmp_path):
    """A pipe that others made non-blocking: full for a while, then read again."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    path = tmp_path / "serve.toml"
    path.write_text(configuration())
    run = subprocess.Popen([*binary(), "serve", "--config", str(path)], text=True,
                           stdout=subprocess.PIPE, stderr=writer, start_new_session=True)
    os.close(writer)
    try:
        host, port = re.search(r"client=(\S+):(\d+)", run.stdout.readline()).groups()
        for _ in range(60):
            connection = http.client.HTTPConnection(host, int(port), timeout=30)
            connection.request("GET", "/x", headers={"authorization": f"Bearer {KEY}",
                                                     "function-id": "none"})
            assert connection.getresponse().status == 404
        text = b""
        while text.count(b'"failed to open stateful work request"') < 1:
            text += os.read(reader, 65536)
        run.send_signal(signal.SIGTERM)
        while data := os.read(reader, 65536):
            text += data
        assert run.wait(30) == 0
        for line in text.decode().splitlines():
            json.loads(line)
    finally:
        run.kill()
        run.wait()
        os.close(reader)


def standing_still():
    """A full pipe that nobody reads: (the end that would read, the end that is full)."""
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    os.write(writer, b"x" * 4096)
    return reader, writer


@pytest.mark.parametrize("stdout", ["gone", "standing still"])
def test_an_end_whose_last_lines_nobody_reads(stdout, tmp_path):
    """More lines wait for stderr than have room, and stdout is no better (`serve | head -1`)."""
    path = tmp_path / "serve.toml"
    path.write_text(configuration(more="[log]\naccess = true\n"))
    asleep, stderr = standing_still()
    run = subprocess.Popen([*binary(), "serve", "--config", str(path)], text=True,
                           stdout=subprocess.PIPE, stderr=stderr, start_new_session=True)
    os.close(stderr)
    try:
        ready = run.stdout.readline()
        host, port = re.search(r"client=(\S+):(\d+)", ready).groups()
        admin = re.search(r"admin=(\S+):(\d+)", ready).groups()
        if stdout == "gone":
            run.stdout.close()
        else:
            taken = os.open(f"/proc/{run.pid}/fd/1", os.O_WRONLY | os.O_NONBLOCK)
            try:
                while True:
                    os.write(taken, b"x" * 4096)
            except BlockingIOError:
                os.close(taken)

        def crowded_out():
            with socket.create_connection((host, int(port)), timeout=30) as peer:
                answers = peer.makefile("rb")
                for _ in range(20):
                    peer.sendall(b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n" * 100)
                    for _ in range(100):
                        status = answers.readline()
                        fields = http.client.parse_headers(answers)
                        answers.read(int(fields["content-length"]))
                        assert status.startswith(b"HTTP/1.1 4"), status
            connection = http.client.HTTPConnection(admin[0], int(admin[1]), timeout=30)
            connection.request("GET", "/metrics")
            text = connection.getresponse().read().decode()
            return re.search(r'^ringway_log_lines_lost_total\{why="queue"\} [1-9]', text, re.M)

        until(crowded_out, 60, what="lines that find no room")
        run.send_signal(signal.SIGTERM)
        assert run.wait(30) == 0
    finally:
        run.kill()
        run.wait()
        os.close(asleep)


# --- signals ---------------------------------------------------------------------------------

NO_REASON = [signal.SIGUSR1, signal.SIGUSR2, signal.SIGXFSZ, signal.SIGPIPE, signal.SIGTTOU,
             signal.SIGWINCH, signal.SIGCHLD, signal.SIGURG]


def test_signals_that_are_no_reason_to_end(own_gateway):
    for number in [*NO_REASON, signal.SIGHUP]:
        own_gateway.signal(number)
    time.sleep(0.2)
    assert own_gateway.get("/live")[0] == 200
    own_gateway.signal()
    assert own_gateway.exit_code() == 0


def worker_of(tmp_path, gateway, **more):
    return workerprogram.WorkerProgram([gateway.worker], "127.0.0.1:9", tmp_path, **more)


def test_a_workers_signals(bare, tmp_path):
    worker = worker_of(tmp_path, bare)
    try:
        worker.says("ringway-worker ")
        for number in NO_REASON:
            worker.signal(number)
        time.sleep(0.2)
        assert worker.run.poll() is None, worker.log_text()
        # Its terminal has gone: it ends in order, as after SIGTERM.
        worker.signal(signal.SIGHUP)
        assert worker.exit_code() == 0, worker.log_text()
    finally:
        worker.kill()


def test_a_worker_under_nohup_stays(bare, tmp_path):
    arguments = ["--gateway", "http://{}:{}".format(*bare.worker), "--key", WORKER_KEY,
                 "--function", FUNCTION, "--version", VERSION, "--target", "127.0.0.1:9"]
    with open(tmp_path / "log", "wb") as log:
        run = subprocess.Popen([*workerprogram.binary(), *arguments], stderr=log,
                               start_new_session=True,
                               preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    try:
        until(lambda: "ringway-worker " in (tmp_path / "log").read_text(), what="its first line")
        run.send_signal(signal.SIGHUP)
        time.sleep(0.2)
        assert run.poll() is None
        run.send_signal(signal.SIGTERM)
        assert run.wait(30) == 0
    finally:
        run.kill()
        run.wait()


def test_a_server_in_the_background_of_a_terminal_is_not_stopped(tmp_path):
    """`stty tostop`: who writes from the background is stopped, unless it blocks SIGTTOU."""
    path = tmp_path / "serve.toml"
    path.write_text(configuration())
    shell, name = os.fork(), None
    if shell == 0:  # a session of its own, whose terminal is this one
        try:
            os.setsid()
            master, slave = pty.openpty()
            fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
            modes = termios.tcgetattr(slave)
            modes[3] |= termios.TOSTOP
            termios.tcsetattr(slave, termios.TCSANOW, modes)
            threading.Thread(target=lambda: [os.read(master, 4096) for _ in iter(int, 1)],
                             daemon=True).start()
            server = subprocess.Popen([*binary(), "serve", "--config", str(path)],
                                      stdout=subprocess.PIPE, stderr=slave, process_group=0)
            ready = server.stdout.readline().decode()
            host, port = re.search(r"client=(\S+):(\d+)", ready).groups()
            statuses = []
            for _ in range(3):  # each leaves a line
                connection = http.client.HTTPConnection(host, int(port), timeout=10)
                connection.request("GET", "/x", headers={"authorization": f"Bearer {KEY}",
                                                         "function-id": "none"})
                statuses.append(connection.getresponse().status)
                time.sleep(0.1)
            state = Path(f"/proc/{server.pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
            server.kill()
            os._exit(0 if statuses == [404] * 3 and state != "T" else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(shell, 0)[1]) == 0, name


# --- what others say -------------------------------------------------------------------------

# Title, colour, 8-bit CSI, next line, direction, separators: each does something when shown.
BAD = "\u0085\u009b31m\u009d0;t\u009c\u0090q\u2028\u2029\u202e\u2066\u200f\u061c"
SHOWN = re.compile("[\x00-\x08\x0b-\x1a\x1c-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e"
                   "\u2066-\u2069]")


def terminal(command):
    """Runs a program whose stderr is a terminal: (process, what is shown so far)."""
    master, slave = pty.openpty()
    shown = []

    def read():
        while True:
            try:
                shown.append(os.read(master, 65536))
            except OSError:
                return

    threading.Thread(target=read, daemon=True).start()
    run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=slave, text=True,
                           start_new_session=True)
    os.close(slave)
    return run, lambda: b"".join(shown).decode(errors="surrogateescape")


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_path_cannot_write_to_the_terminal(form, tmp_path):
    path = tmp_path / "serve.toml"
    path.write_text(configuration(more="[log]\naccess = true\n", dial="127.0.0.1:9"))
    command = [*binary(), "serve", "--config", str(path)]
    if form == "json":
        run, log = subprocess.Popen(command, stdout=subprocess.PIPE, text=True,
                                    stderr=open(tmp_path / "log", "wb")), tmp_path / "log"
        shown = lambda: log.read_text(errors="surrogateescape")
    else:
        run, shown = terminal(command)
    try:
        host, port = re.search(r"client=(\S+):(\d+)", run.stdout.readline()).groups()
        with Gateway.client_socket(_At((host, int(port)))) as peer:
            peer.sendall(f"GET /MARK{BAD}\xff HTTP/1.1\r\nHost: a\r\nauthorization: Bearer {KEY}\r\n"
                         f"function-id: OTHER{BAD}\r\n\r\n".encode() + b"GET /RAW\xff\x9b HTTP/1.1\r\n"
                         b"Host: a\r\n\r\n")
            until(lambda: all(word in shown() for word in ("MARK", "OTHER", "RAW")), what="lines")
        text = shown().replace("\r\n", "\n")
        found = SHOWN.search(text)
        assert not found, (hex(ord(found.group())), text)
        assert "\udc9b" not in text, "an octet that is no UTF-8"
        # ESC only in colours of ours.
        assert not re.search("\x1b(?!\\[[0-9;]*m)", text), text
        lines = [line for line in text.splitlines() if "MARK" in line]
        assert len(lines) == 1, lines
        if form == "json":
            assert json.loads(lines[0])["path"].startswith("/MARK" + BAD), lines
        else:
            assert r"/MARK\u{85}\u{9b}31m\u{9d}0;t\u{9c}\u{90}q\u{2028}" in lines[0], lines
    finally:
        run.kill()
        run.wait()


class _At:
    def __init__(self, client):
        self.client = client


def test_a_file_cannot_write_to_the_terminal(tmp_path):
    """An error about a file quotes the system's own words."""
    escaped = "".join(f"\\u{ord(c):04x}" for c in BAD) + "\\u001b]0;x\\u0007"
    text = configuration().replace('mode = "local"', f'mode = "{escaped}"')
    path = tmp_path / "serve.toml"
    path.write_text(text + f'\n["table{escaped}"]\n')
    for words, code in [(["check"], 78), (["serve"], 78), (["doctor"], 1), (["doctor", "--json"], 1)]:
        done = subprocess.run([*binary(), *words, "--config", str(path)],
                              capture_output=True, timeout=60)
        shown = (done.stdout + done.stderr).decode()
        assert done.returncode == code and "table" in shown, done
        assert not SHOWN.search(shown) and "\x1b" not in shown, (words, shown)


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_gateway_cannot_write_to_a_workers_terminal(form, tmp_path):
    class Refusing(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            self.rfile.read(int(self.headers["content-length"]))
            body = f"no such key{BAD}\x1b]0;x\x07\n".encode()
            self.send_response(401)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    false = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusing)
    threading.Thread(target=false.serve_forever, daemon=True).start()
    command = [*workerprogram.binary(), "--gateway", f"http://127.0.0.1:{false.server_port}",
               "--key", WORKER_KEY, "--function", FUNCTION, "--version", VERSION,
               "--target", "127.0.0.1:9"]
    if form == "json":
        done = subprocess.run(command, capture_output=True, timeout=60)
        code, shown = done.returncode, done.stderr.decode()
        answers = [json.loads(line).get("answer", "") for line in shown.splitlines()]
        assert any("\u202e" in answer for answer in answers), shown
    else:
        run, read = terminal(command)
        code = run.wait(60)
        shown = until(lambda: "no such key" in read() and read(), what="the refusal")
        shown = shown.replace("\r\n", "\n")
    false.shutdown()
    assert code == 78 and "no such key" in shown, (code, shown)
    assert not SHOWN.search(shown) and not re.search("\x1b(?!\\[[0-9;]*m)", shown), shown
