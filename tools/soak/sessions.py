#!/usr/bin/env python3
"""How many sessions a second reach a function: users that connect, call once and close, over four
ways to one echo server: directly, by a gateway that dials it, by `ringway dev --target`, and by
`ringway serve` with `ringway-worker`, which is what users run.

The ways take turns within a round, so that what else the machine does meets them alike. It prints
a table and ends with 1 if a call failed, or if the worker program reaches less than 0.95 times what
`dev --target` does (median of the rounds' ratios).

Usage: sessions.py K6 ECHO_SERVER [--seconds 10] [--rounds 3] [--users 1,5,50,200]
"""

import argparse
import json
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
BIN = Path(os.environ["RINGWAY_BIN"])
WORKER = Path(os.environ.get("RINGWAY_WORKER_BIN", BIN.with_name("ringway-worker")))
FUNCTION = "11111111-1111-4111-8111-111111111111"
VERSION = "22222222-2222-4222-8222-222222222222"
WAYS = ["direct", "dial", "dev --target", "worker"]
LEAST = 0.95


class Programs:
    """What runs; all of it ends with this."""

    def __init__(self, folder):
        self.folder, self.running = Path(folder), []

    def start(self, name, *line, ready=True):
        """Starts a program; the first line it prints."""
        errors = open(self.folder / f"{name}.err", "wb")
        out = subprocess.PIPE if ready else subprocess.DEVNULL
        program = subprocess.Popen(line, stdout=out, stderr=errors, text=ready)
        self.running.append(program)
        if not ready:
            return ""
        line = program.stdout.readline()
        if not line:
            raise SystemExit(f"{name} did not start: {(self.folder / f'{name}.err').read_text()}")
        return line

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for program in reversed(self.running):
            program.send_signal(signal.SIGKILL)
            program.wait()


def configuration(folder, name, reach):
    path = Path(folder) / f"{name}.toml"
    # Workers are told this port before it is bound.
    with socket.create_server(("127.0.0.1", 0)) as free:
        worker = free.getsockname()[1]
    # Not pinned, as `dev` is not: load, gateway and worker share this machine, and the ways are to
    # differ in the worker alone.
    path.write_text(f"""
[cores]
pin = false
[listen]
client = "127.0.0.1:0"
worker = "127.0.0.1:{worker}"
admin = "127.0.0.1:0"
[[tenant]]
name = "dev"
client_keys = ["dev-key"]
[[function]]
id = "{FUNCTION}"
version = "{VERSION}"
tenants = ["dev"]
{reach}
""")
    return path


def place(line, name):
    return re.search(rf"\b{name}=(\S+)", line)[1]


def start_all(programs, echo_server):
    """The address of each way."""
    echo = programs.start("echo", echo_server).split()[1]
    folder = programs.folder
    dial = programs.start("dial", BIN, "serve", "--config",
                          configuration(folder, "dial", f'dial = "{echo}"'))
    free = ["--client", "127.0.0.1:0", "--worker", "127.0.0.1:0", "--admin", "127.0.0.1:0"]
    dev = programs.start("dev", BIN, "dev", "--target", echo, *free)
    serve = programs.start("serve", BIN, "serve", "--config",
                           configuration(folder, "serve", 'worker_keys = ["worker-key"]'))
    programs.start("worker", WORKER, "--gateway", f"http://{place(serve, 'worker')}", "--key",
                   "worker-key", "--function", FUNCTION, "--version", VERSION, "--target", echo,
                   "--slots", "512", ready=False)
    return dict(zip(WAYS, [echo, *(place(line, "client") for line in (dial, dev, serve))]))


def load(k6, target, users, seconds):
    environment = {**os.environ, "TARGET": target, "USERS": str(users), "SECONDS": str(seconds),
                   "FUNCTION": FUNCTION, "PROTO_DIR": str(HERE / "../../engine/echo"),
                   "K6_NO_USAGE_REPORT": "true"}
    run = subprocess.run([k6, "run", "--quiet", "--no-color", str(HERE / "sessions.js")],
                         env=environment, capture_output=True, text=True, check=False)
    try:
        seen = json.loads(run.stdout[run.stdout.index("{"):])
    except ValueError:
        raise SystemExit(f"k6 failed:\n{run.stdout}\n{run.stderr}") from None
    if seen["bad"]:
        print(run.stderr[:1000], file=sys.stderr)
    return seen


def main():
    arguments = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    arguments.add_argument("k6")
    arguments.add_argument("echo_server")
    arguments.add_argument("--seconds", type=int, default=10)
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--users", default="1,5,50,200")
    asked = arguments.parse_args()
    failed = False
    with tempfile.TemporaryDirectory() as folder, Programs(folder) as programs:
        targets = start_all(programs, asked.echo_server)
        for way in WAYS:
            load(asked.k6, targets[way], 1, 1)
        print(f"{'users':>5}  {'way':<12} {'calls/s':>8} {'p50 ms':>7} {'p99 ms':>7} {'bad':>4}")
        for users in map(int, asked.users.split(",")):
            seen = {way: [] for way in WAYS}
            for _ in range(asked.rounds):
                for way in WAYS:
                    seen[way].append(load(asked.k6, targets[way], users, asked.seconds))
            for way, runs in seen.items():
                middle = {key: statistics.median(run[key] for run in runs)
                          for key in ("good", "p50", "p99")}
                bad = sum(run["bad"] for run in runs)
                failed |= bad > 0
                print(f"{users:>5}  {way:<12} {middle['good'] / asked.seconds:>8.0f} "
                      f"{middle['p50']:>7.1f} {middle['p99']:>7.1f} {bad:>4}")
            pairs = zip(seen["worker"], seen["dev --target"])
            ratios = [worker["good"] / max(dev["good"], 1) for worker, dev in pairs]
            ratio = statistics.median(ratios)
            failed |= ratio < LEAST
            print(f"{users:>5}  worker / dev --target: {ratio:.3f} "
                  f"({min(ratios):.3f} to {max(ratios):.3f}), at least {LEAST}", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
