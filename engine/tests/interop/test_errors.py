"""Errors of the command line and of the start say what does not work, why, and what to do: one line,
`error: WHAT: WHY; FIX`. The type that makes them has no place for less; here they are provoked."""

import os
import re
import socket
import subprocess

import pytest

import workerprogram
from gateway import FUNCTION, KEY, ROOT, VERSION, binary, configuration, dead_port
from test_fallback import forbidding

PARTS = re.compile(r"error: (?P<what>[^;]+?): (?P<why>.+?); (?P<fix>.+)")
# What clap says: what is wrong with which argument, and why with what to write.
ARGUMENT = re.compile(r"error: invalid value '.*' for '.*': (?P<why>.+?)(: | \().+")


def run(program, *arguments, **more):
    return subprocess.run([*program, *map(str, arguments)], capture_output=True, text=True,
                          timeout=60, check=False, **more)


def ringway(*arguments, **more):
    return run(binary(), *arguments, **more)


def worker(*more):
    return run(workerprogram.binary(), "--function", FUNCTION, "--version", VERSION, "--target",
               "127.0.0.1:1", *more)


def error_of(done):
    """The one line that is an error; others are of the log."""
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, done.stderr
    return lines[0]


def has_three_parts(done, code, what, fix):
    line = error_of(done)
    parts = PARTS.fullmatch(line)
    assert parts, line
    assert done.returncode == code, (done.returncode, line)
    assert what in parts["what"] and fix in parts["fix"], line


@pytest.fixture
def closed():
    return f"127.0.0.1:{dead_port()}"


def test_commands_at_an_admin_port_that_is_not_there(closed):
    for command in (["sessions"], ["top"], ["log-level"], ["log-level", "debug"],
                    ["sessions", "end", "12345678"], ["sessions", "timeline", "12345678"]):
        has_three_parts(ringway(*command, "--admin", closed), 1, "no admin port at", "--admin")


def test_commands_at_another_port(own_gateway):
    other = "%s:%d" % tuple(own_gateway.client)
    own = "%s:%d" % tuple(own_gateway.admin)
    for command in (["sessions"], ["top"], ["log-level", "debug"]):
        has_three_parts(ringway(*command, "--admin", other), 1, "is not the admin port", "--admin")
    for command in ["timeline", "end"]:
        has_three_parts(ringway("sessions", command, "12345678", "--admin", own), 1,
                        "knows no session", "`ringway sessions`")
    has_three_parts(ringway("log-level", "loud", "--admin", own), 1, "changed nothing",
                    "write error, warn, info")


def test_a_mute_admin_port():
    with socket.create_server(("127.0.0.1", 0)) as mute:
        where = "127.0.0.1:%d" % mute.getsockname()[1]
        has_three_parts(ringway("sessions", "--admin", where), 1, "gives no answer", "--admin")


def test_files_that_cannot_be_read_or_written(tmp_path, closed):
    has_three_parts(ringway("migrate", "--from-env", tmp_path / "gone"), 2, "gone", "NAME=VALUE")
    there = tmp_path / "there"
    there.write_text("x")
    for out, fix in [(there, "another name with --out"), ("/proc/none", "--out")]:
        has_three_parts(ringway("support-bundle", "--admin", closed, "--out", out), 1,
                        "cannot be written", fix)
    has_three_parts(ringway("man", "/proc/none"), 74, "cannot be printed", "elsewhere")
    with open("/dev/full", "w") as full:
        done = subprocess.run([*binary(), "completions", "bash"], stdout=full,
                              stderr=subprocess.PIPE, text=True, timeout=60)
    has_three_parts(done, 74, "cannot be printed", "make room")


def started(tmp_path, text, **more):
    path = tmp_path / "ringway.toml"
    path.write_text(text, encoding="utf-8")
    return ringway("serve", "--config", path, **more)


def test_ports_that_cannot_be_had(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        for name in ("client", "worker", "admin"):
            text = re.sub(rf'^{name} = ".*"', f'{name} = "127.0.0.1:{taken.getsockname()[1]}"',
                          configuration(), flags=re.M)
            has_three_parts(started(tmp_path, text), 71, f"the {name} address", f"listen.{name}")
    text = configuration().replace('"127.0.0.1:0"', '"192.0.2.1:0"', 1)
    has_three_parts(started(tmp_path, text), 71, "cannot be used", "or 0.0.0.0")


def test_a_socket_that_is_for_none_of_the_ports(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        fd = listener.fileno()
        path = tmp_path / "ringway.toml"
        path.write_text(configuration(), encoding="utf-8")
        launcher = ["bash", "-c", f"exec 200>&{fd}; exec 3>&200 200>&-; "
                    'export LISTEN_PID=$$ LISTEN_FDS=1; exec "$@"', "bash"]
        done = run([*launcher, *binary()], "serve", "--config", path, pass_fds=[fd])
    has_three_parts(done, 78, "handed down as descriptor 3", "ListenStream=")


def test_io_uring_that_was_asked_for_and_is_forbidden(tmp_path):
    path = tmp_path / "ringway.toml"
    path.write_text(configuration(), encoding="utf-8")
    done = run([*forbidding("EPERM"), *binary()], "serve", "--io", "ring", "--config",
               path)
    has_three_parts(done, 71, "io_uring is not available", "--io auto")


def test_too_few_descriptors_for_the_cores(tmp_path):
    path = tmp_path / "ringway.toml"
    path.write_text(configuration(), encoding="utf-8")
    done = run(["prlimit", "--nofile=12:12", *binary()], "serve", "--cores", "64", "--config",
               path)
    assert done.returncode == 71, done
    assert PARTS.fullmatch(error_of(done)), done.stderr


def test_a_workers_key(tmp_path):
    empty = tmp_path / "empty"
    empty.write_text("\n")
    where = ["--gateway", "http://127.0.0.1:1"]
    for key, what, fix in [(["--key", "a b"], "--key", "worker_keys"),
                           (["--key-file", tmp_path / "gone"], "cannot be read", "can read"),
                           (["--key-file", empty], "has no key", "worker_keys")]:
        has_three_parts(worker(*where, *key), 2, what, fix)


@pytest.mark.parametrize("arguments", [
    ["--cores", "0"], ["--cores", "x"], ["dev", "--cores", "257"], ["dev", "--io", "kqueue"],
    ["dev", "--log", "loud"], ["dev", "--target", "http://h:1"], ["dev", "--target", "h"],
    ["sessions", "end", "12"], ["sessions", "--state", "gone"], ["top", "--interval", "1"],
    ["log-level", "debug", "--for", "1d"]])
def test_arguments(arguments):
    is_told_with_what_to_write(ringway(*arguments))


@pytest.mark.parametrize("arguments", [
    ["--gateway", "https://h:1"], ["--gateway", "h:1"], ["--gateway", "http://a@h:1"],
    ["--gateway", "http://h:1", "--slots", "0"]])
def test_arguments_of_the_worker(arguments):
    is_told_with_what_to_write(worker("--key", "k", *arguments))


def is_told_with_what_to_write(done):
    assert done.returncode == 2, done
    text = " ".join(done.stderr.split())
    assert "[possible values: " in text or ARGUMENT.match(text), done.stderr


def test_every_problem_of_a_configuration_has_a_way_out(tmp_path):
    """Each table's settings with a value that is of no kind; the texts are asserted where the gateway
    makes them, in builds for tests."""
    settings = (ROOT / "docs/reference/settings.md").read_text()
    tables = re.split(r"^### `\[", settings, flags=re.M)[1:]
    text = ""
    count = 0
    for table in tables:
        head = "[" + table.split("`", 1)[0]
        names = re.findall(r"^\| `(\w+)` \|", table, re.M)
        text += head + "\n" + "".join(f"{name} = 1979-05-27\n" for name in names)
        count += len(names)
    path = tmp_path / "ringway.toml"
    path.write_text(text, encoding="utf-8")
    done = ringway("check", "--config", path)
    lines = done.stdout.splitlines()
    assert done.returncode == 78 and len(lines) > 0.7 * count, (count, done.stdout)
    for line in lines:
        # Where, what, and how it is to be.
        assert re.match(r".+ringway\.toml(:\d+)?: .+", line), line
        assert re.search(r"must be |write |remove |did you mean|name |set |give |add ", line), line
    assert KEY not in done.stdout


def test_without_anything_it_says_what_to_set():
    done = ringway("serve", env={"PATH": os.environ["PATH"]}, cwd="/")
    assert done.returncode == 78 and "--config FILE" in done.stderr, done
