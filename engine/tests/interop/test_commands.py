"""The commands beside `serve`, and what a new user meets first: each message says what to do."""

import http.client
import io
import json
import os
import signal
import subprocess
import tarfile
import time
import urllib.error
import urllib.request

import pytest

import workerprogram
from gateway import (FUNCTION, KEY, ROOT, VERSION, WORKER_KEY, Gateway, binary, configuration,
                     dead_port, until)


def ringway(*arguments, **more):
    return subprocess.run([*binary(), *map(str, arguments)], capture_output=True, text=True,
                          timeout=60, check=False, **more)


def worker(*arguments):
    return subprocess.run([*workerprogram.binary(), *map(str, arguments)], capture_output=True,
                          text=True, timeout=60, check=False)


def address(place):
    """`HOST:PORT`, of a place or of a port of this machine."""
    host, port = place if isinstance(place, tuple) else ("127.0.0.1", place)
    return f"{host}:{port}"


def at_target(target, directory):
    zero = "127.0.0.1:0"
    return Gateway(["dev", "--client", zero, "--worker", zero, "--admin", zero,
                    "--target", target], directory)


def call(gateway):
    """A call that fails: its status and fields."""
    request = urllib.request.Request(f"http://{address(gateway.client)}/x",
                                     headers={"authorization": f"Bearer {KEY}",
                                              "function-id": FUNCTION})
    with pytest.raises(urllib.error.HTTPError) as answer:
        urllib.request.urlopen(request, timeout=30)
    return answer.value.code, answer.value.headers


@pytest.fixture
def served(tmp_path):
    """A gateway that serves a configuration of its own, and that file."""
    path = tmp_path / "ringway.toml"
    path.write_text(configuration(drain='max = "20s"'), encoding="utf-8")
    with Gateway(["serve", "--config", str(path)], tmp_path) as running:
        yield running, path


# --- the configuration ----------------------------------------------------------------------

def test_each_setting_is_shown_with_its_origin_and_no_key(tmp_path):
    path = tmp_path / "ringway.toml"
    path.write_text(configuration(), encoding="utf-8")
    environment = {**os.environ, "RINGWAY__SESSION__WAIT": "7s"}
    written = ringway("config", "--config", path, env=environment)
    assert written.returncode == 0, written.stderr
    assert WORKER_KEY not in written.stdout and KEY not in written.stdout
    lines = [line.split() for line in written.stdout.splitlines()]
    assert ["session.wait", "7s", "RINGWAY__SESSION__WAIT"] in lines
    assert ["control.mode", "local", f"{path}:11"] in lines
    assert not any(line[0] == "session.park" for line in lines)
    every = ringway("config", "--effective", "--json", "--config", path)
    every = {one["key"]: one for one in json.loads(every.stdout)}
    assert every["session.park"] == {"key": "session.park", "value": "auto", "origin": "default"}
    assert every["keepalive.client_timeout"]["value"] == "60s"


def test_the_proxys_environment_becomes_a_file_that_check_takes(tmp_path):
    made = ringway("migrate", "--from-env", ROOT / "docs/nvcf.env")
    assert made.returncode == 0, made.stderr
    path = tmp_path / "made.toml"
    path.write_text(made.stdout, encoding="utf-8")
    checked = ringway("check", "--config", path)
    assert checked.returncode == 0, checked.stdout
    assert "mode nvcf" in checked.stdout
    wrong = tmp_path / "wrong.env"
    wrong.write_text("what is this\n", encoding="utf-8")
    refused = ringway("migrate", "--from-env", wrong)
    assert refused.returncode == 2 and "line 1 is not NAME=VALUE" in refused.stderr


# --- a running gateway ----------------------------------------------------------------------

def test_the_log_says_more_for_a_while(served):
    running, _ = served
    admin = address(running.admin)
    assert ringway("log-level", "--admin", admin).stdout == "as configured\n"
    changed = ringway("log-level", "debug", "--for", "2s", "--admin", admin)
    assert (changed.returncode, changed.stdout) == (0, f"{admin} logs debug for 2 s\n")
    assert ringway("log-level", "--admin", admin).stdout.startswith("debug, for ")
    until(lambda: ringway("log-level", "--admin", admin).stdout == "as configured\n", 20)
    refused = ringway("log-level", "loud", "--admin", admin)
    assert refused.returncode == 1 and "write error, warn, info" in refused.stderr


def test_a_bundle_tells_much_and_no_secret(tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("canary-of-a-file\n", encoding="utf-8")
    path = tmp_path / "ringway.toml"
    text = configuration().replace(KEY, "canary-client-key").replace(
        f'worker_keys = ["{WORKER_KEY}"]', 'worker_keys = ["canary-worker-key"]\n'
        'worker_keys_file = "keys"', 1)
    path.write_text(text, encoding="utf-8")
    with Gateway(["serve", "--config", str(path)], tmp_path) as running:
        out = tmp_path / "bundle.tar.gz"
        made = ringway("support-bundle", "--config", path, "--admin", address(running.admin),
                       "--out", out)
        assert made.returncode == 0, made.stderr
        again = ringway("support-bundle", "--config", path, "--admin", address(running.admin),
                        "--out", out)
        assert again.returncode == 1 and "exists" in again.stderr
    with tarfile.open(fileobj=io.BytesIO(out.read_bytes())) as bundle:
        parts = {name: bundle.extractfile(name).read().decode() for name in bundle.getnames()}
    assert {name.split("/")[1] for name in parts} == {
        "about.txt", "config.txt", "doctor.txt", "kernel.txt", "info.json", "ready.txt",
        "metrics.txt", "sessions.json"}
    assert "ringway_cores" in parts["ringway-support/metrics.txt"]
    assert "session.wait = 30s" in parts["ringway-support/config.txt"]
    for name, text in parts.items():
        assert "canary" not in text, name
    assert out.stat().st_mode & 0o077 in (0, 0o044)


def test_localhost_without_a_port_is_the_usual_port():
    asked = ringway("sessions", "--admin", "localhost")
    assert "no admin port at localhost:10083" in asked.stderr or asked.returncode == 0


def test_a_drain_says_what_it_waits_for(served):
    running, _ = served
    waiting = http.client.HTTPConnection(*running.client)
    waiting.request("GET", "/wait", headers={"authorization": f"Bearer {KEY}",
                                             "function-id": FUNCTION})
    until(lambda: running.sessions(), 10)
    running.signal(signal.SIGTERM)
    said = until(lambda: [line for line in running.log_lines() if line["message"].startswith(
        "draining: ")], 20)
    assert said[0]["at_most_seconds"] == 20.0
    waiting.close()
    assert running.exit_code() == 0


# --- what a new user meets ------------------------------------------------------------------

def test_a_target_that_cannot_be_is_refused_with_the_fix():
    for target, fix in [("http://localhost:1", "leave out the scheme"),
                        ("localhost", "add the port"), ("localhost:0", "from 1 to 65535")]:
        told = ringway("dev", "--target", target)
        assert told.returncode == 2 and fix in told.stderr, told.stderr
        arguments = ["--gateway", "http://127.0.0.1:1", "--key", "k", "--function", FUNCTION,
                     "--version", VERSION, "--target", target]
        told = worker(*arguments)
        assert told.returncode == 2 and fix in told.stderr, told.stderr


def test_a_target_that_does_not_answer_is_told_and_a_502_says_so(tmp_path):
    for target in [address(dead_port()), "no-such-host.invalid:5"]:
        with at_target(target, tmp_path) as running:
            said = until(lambda: [line for line in running.log_lines()
                                  if "nothing answers at --target" in line["message"]], 20)
            assert said[0]["target_server"] == target and said[0]["level"] == "WARN"
            status, fields = call(running)
            assert status == 502 and "does that server run?" in fields["x-ringway-cause"]
            ended = until(lambda: [row for row in running.sessions() if "endedAt" in row], 10)
            told = json.loads(running.get(f"/sessions/{ended[0]['requestId']}")[2])
            assert told["verdict"].endswith("before any answer; does the server behind it run?")


def test_strangers_are_not_told_why_a_call_failed(served, tmp_path):
    running, _ = served
    with workerprogram.WorkerProgram([running.worker], address(dead_port()), tmp_path):
        status, fields = call(running)
        assert status == 502 and fields["x-ringway-cause"] is None


def test_a_worker_says_that_it_polls_or_that_it_asks_the_wrong_port(served):
    running, _ = served
    common = ["--key", WORKER_KEY, "--function", FUNCTION, "--version", VERSION,
              "--target", address(dead_port())]
    for port, name in [(running.client, "client"), (running.admin, "admin")]:
        told = worker("--gateway", f"http://{address(port)}", *common)
        assert told.returncode == 78, told.stderr
        assert f"this is the gateway's {name} port" in told.stderr
    good = subprocess.Popen([*workerprogram.binary(), "--gateway",
                             f"http://{address(running.worker)}", *common],
                            stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 20
        said = ""
        while "polling: the gateway knows" not in said and time.monotonic() < deadline:
            said += good.stderr.readline()
        assert "polling: the gateway knows" in said
        assert "nothing answers at --target" in said
    finally:
        good.terminate()
        good.wait(30)
