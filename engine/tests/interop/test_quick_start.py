"""The README's commands for two gateways and NATS, as they stand there, in a network of their own."""

import os
import re
import subprocess

import pytest

from gateway import ROOT, binary
from nats_rig import program
from workerprogram import binary as worker_binary

HEADING = "## Try two, with NATS between them"


def blocks():
    """(commands that run on, commands that end)"""
    text = (ROOT / "README.md").read_text()
    section = text.split(HEADING, 1)[1].split("\n## ", 1)[0]
    servers, calls = re.findall(r"^```\n(.*?)^```$", section, re.M | re.S)
    return servers.strip().splitlines(), calls.strip().splitlines()


@pytest.fixture
def path(tmp_path):
    """A folder in which the programs have their names."""
    for name, command in (("ringway", binary()), ("ringway-worker", worker_binary()),
                          ("nats-server", [program()])):
        script = tmp_path / name
        script.write_text(f"#!/bin/sh\nexec {' '.join(command)} \"$@\"\n")
        script.chmod(0o755)
    return tmp_path


def test_the_commands_serve(path):
    servers, calls = blocks()
    assert len(servers) == 5 and len(calls) == 2
    script = ["set -u", "trap 'kill $(jobs -p)' EXIT", "ip link set lo up"]
    for number, command in enumerate(servers):
        script.append(f"{command} > {path}/{number}.log 2>&1 &")
    for command in calls:
        script += [f"for try in $(seq 60); do {command} && break; sleep 0.5; done", command,
                   'echo "answered $?"']
    environment = {"PATH": f"{path}:{os.environ['PATH']}", "HOME": str(path)}
    # The store of NATS goes where the tests' files go.
    environment["TMPDIR"] = str(path)
    done = subprocess.run(["unshare", "-rn", "bash", "-c", "\n".join(script)], cwd=ROOT,
                          env=environment, capture_output=True, text=True, timeout=120)
    logs = "\n".join(log.read_text()[-2000:] for log in sorted(path.glob("*.log")))
    assert done.stdout.count("answered 0") == 2, (done.stdout[-2000:], done.stderr[-2000:], logs)
    assert "Directory listing" in done.stdout
