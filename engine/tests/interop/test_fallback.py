"""Hosts that forbid io_uring: epoll serves, says so once and loudly; `--io ring` refuses."""

import json
import subprocess
import sys
from pathlib import Path

import grpc
import pytest

from echo import EchoMessage, Stub
from gateway import Gateway, binary, configuration, credentials, free_port, until

ALL = "io_uring_setup,io_uring_enter,io_uring_register"
ZERO = "127.0.0.1:0"


def forbidding(error, calls=ALL):
    return [sys.executable, str(Path(__file__).parent / "noring.py"), error, calls]


def warnings(gateway):
    return [line for line in gateway.log_lines() if line["level"] in ("WARN", "ERROR")]


def drivers(gateway):
    """What drives the cores, all of them; /info says the same."""
    cores = gateway.metric("ringway_cores", state="answered")
    found = {name: gateway.metric("ringway_io_backend", backend=name) / cores
             for name in ("io_uring", "epoll")}
    assert found[json.loads(gateway.get("/info")[2])["backend"]] > 0
    return found


def echoes(gateway, payload=b"hello"):
    """A call goes to the demo's worker and back."""
    with grpc.insecure_channel("{}:{}".format(*gateway.client)) as channel:
        call = Stub(channel).Unary
        answer = call(EchoMessage(payload=payload), metadata=credentials(), timeout=60)
        assert answer.payload == payload


# What refuses, and words of the reason and of the fix.
REFUSALS = {
    "seccomp": (forbidding("EPERM"), ["EPERM", "seccomp", "io_uring_setup"]),
    "hidden": (forbidding("ENOSYS"), ["ENOSYS", "6.12", "seccomp"]),
    "module": (forbidding("EACCES"), ["EPERM", "security module"]),
    "enter": (forbidding("EPERM", "io_uring_enter"), ["EPERM", "io_uring_enter"]),
    "register": (forbidding("EPERM", "io_uring_register"), ["EPERM", "io_uring_register"]),
    "old": (forbidding("EINVAL", "io_uring_setup"), ["kernel lacks", "6.1"]),
    "memory": (forbidding("ENOMEM"), ["ENOMEM", "ulimit -l"]),
}


@pytest.mark.parametrize("refusal", REFUSALS)
def test_auto_serves_with_epoll_and_says_why_once(tmp_path, refusal):
    launcher, words = REFUSALS[refusal]
    with Gateway.dev(tmp_path, "--io", "auto", launcher=launcher) as gateway:
        said = until(lambda: warnings(gateway), what="a warning")
        assert len(said) == 1, said
        assert all(word in said[0]["message"] for word in ["epoll", *words]), said
        assert drivers(gateway) == {"io_uring": 0, "epoll": 1}
        echoes(gateway)
        assert warnings(gateway) == said


@pytest.mark.parametrize("refusal", REFUSALS)
def test_ring_refuses_with_71_and_the_fix(refusal):
    launcher, words = REFUSALS[refusal]
    run = subprocess.run([*launcher, *binary(), "dev", "--client", ZERO, "--worker", ZERO,
                          "--admin", ZERO, "--io", "ring"],
                         capture_output=True, text=True, timeout=60)
    assert run.returncode == 71, run
    assert "ready" not in run.stdout
    assert all(word in run.stderr for word in ["--io auto", *words]), run.stderr


def test_without_locked_memory_auto_still_serves(tmp_path):
    launcher = ["setpriv", "--bounding-set=-ipc_lock", "--inh-caps=-ipc_lock",
                "prlimit", "--memlock=0"]
    with Gateway.dev(tmp_path, "--io", "auto", launcher=launcher) as gateway:
        # Kernels before 6.14 do not count it: then the ring serves, and nothing is said.
        if drivers(gateway)["epoll"]:
            until(lambda: [w for w in warnings(gateway) if "ulimit -l" in w["message"]])
        echoes(gateway)


def test_epoll_by_choice_is_no_warning(tmp_path):
    with Gateway.dev(tmp_path, "--io", "epoll") as gateway:
        assert drivers(gateway) == {"io_uring": 0, "epoll": 1}
        assert warnings(gateway) == []
        echoes(gateway, bytes(100_000))


def test_the_configuration_chooses_and_the_argument_wins(tmp_path, monkeypatch):
    monkeypatch.delenv("RINGWAY_TEST_IO", raising=False)
    with Gateway.serve(tmp_path, name="epoll", io="epoll") as running:
        assert drivers(running) == {"io_uring": 0, "epoll": 1}
    path = max(tmp_path.glob("epoll-*.toml"))
    with Gateway(["serve", "--config", str(path), "--io", "ring"], tmp_path, "won") as running:
        assert drivers(running) == {"io_uring": 1, "epoll": 0}


def test_on_a_free_host_auto_takes_io_uring(tmp_path):
    with Gateway.dev(tmp_path, "--io", "auto") as gateway:
        assert drivers(gateway) == {"io_uring": 1, "epoll": 0}
        assert warnings(gateway) == []


def doctor(launcher, *arguments):
    """(exit code, {check: [its lines]}) of `ringway doctor`."""
    run = subprocess.run([*launcher, *binary(), "doctor", "--json", *arguments],
                         capture_output=True, text=True, timeout=60)
    found = {}
    for line in json.loads(run.stdout):
        assert sorted(line) == ["check", "fix", "seen", "status"], line
        found.setdefault(line["check"], []).append(line)
    return run.returncode, found


def minimal(tmp_path, io):
    path = tmp_path / f"{io}.toml"
    path.write_text(configuration(worker_port=free_port(), io=io))
    return ["--config", str(path)]


@pytest.mark.parametrize("refusal", REFUSALS)
def test_doctor_names_what_forbids_io_uring(tmp_path, refusal):
    launcher, words = REFUSALS[refusal]
    for io, status, code in (("auto", "WARN", 0), ("ring", "FAIL", 1), ("epoll", "OK", 0)):
        ended, found = doctor(launcher, *minimal(tmp_path, io))
        assert ended == code, found
        worst = next(line for line in found["io_uring"]
                     if line["status"] == status and "tried out, fine" not in line["seen"])
        assert status == "OK" or all(word in f"{worst['seen']} {worst['fix']}" for word in words)
        assert found["seccomp"][0]["status"] == status


def test_doctor_on_a_free_host(tmp_path):
    ended, found = doctor([], *minimal(tmp_path, "ring"))
    assert ended == 0, found
    assert len(found["io_uring"]) == 6
    assert {line["status"] for line in found["io_uring"]} == {"OK"}


def test_doctor_beside_the_gateway_it_is_about(tmp_path):
    with Gateway.serve(tmp_path, name="beside") as running:
        path = tmp_path / "same.toml"
        path.write_text(configuration(worker_port=running.worker[1]))
        ended, found = doctor([], "--config", str(path))
        # A second one could not start: that is so whoever holds the port.
        assert ended == 1, found
        line = found["port_worker"][0]
        assert line["status"] == "FAIL" and f"(process {running.pid})" in line["seen"], line
