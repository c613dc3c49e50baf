#!/usr/bin/env python3
"""Whether a WebSocket's end frees its worker: twenty users and twenty slots of `ringway-worker`,
each user again and again a session, twenty things said, and its end; once by gRPC and once by
WebSocket, which take turns. It prints both rates and ends with 1 if WebSockets reach less than 0.9
times the rate of gRPC (median of the rounds' ratios), if one failed or was refused, or if anything
is parked afterwards.

Usage: websockets.py K6 TALKER [--seconds 10] [--rounds 3]
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
import time
import urllib.request
from pathlib import Path

HERE = Path(__file__).resolve().parent
BIN = Path(os.environ["RINGWAY_BIN"])
WORKER = Path(os.environ.get("RINGWAY_WORKER_BIN", BIN.with_name("ringway-worker")))
FUNCTION = "11111111-1111-4111-8111-111111111111"
VERSION = "22222222-2222-4222-8222-222222222222"
USERS = SLOTS = 20
LEAST = 0.9


class Stand:
    """The server, the gateway and its worker; all of it ends with this."""

    def __init__(self, folder, talker):
        self.folder, self.running = Path(folder), []
        target = self.start("talker", talker).split()[1]
        # Workers are told this port before it is bound.
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        (self.folder / "serve.toml").write_text(f"""
[listen]
client = "127.0.0.1:0"
worker = "127.0.0.1:{port}"
admin = "127.0.0.1:0"
[[tenant]]
name = "dev"
client_keys = ["dev-key"]
[[function]]
id = "{FUNCTION}"
version = "{VERSION}"
tenants = ["dev"]
worker_keys = ["worker-key"]
""")
        ready = self.start("serve", BIN, "serve", "--config", self.folder / "serve.toml")
        self.client, self.admin = (re.search(rf"\b{name}=(\S+)", ready)[1]
                                   for name in ("client", "admin"))
        self.start("worker", WORKER, "--gateway", f"http://127.0.0.1:{port}", "--key",
                   "worker-key", "--function", FUNCTION, "--version", VERSION, "--target", target,
                   "--slots", str(SLOTS), ready=False)

    def start(self, name, *line, ready=True):
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

    def sessions(self):
        with urllib.request.urlopen(f"http://{self.admin}/sessions", timeout=30) as answer:
            return [row for row in json.load(answer) if row["state"] != "closed"]

    def kept(self):
        """How many tunnels have parked so far, and how many gave way."""
        with urllib.request.urlopen(f"http://{self.admin}/metrics", timeout=30) as answer:
            text = answer.read().decode()
        return [float(re.search(rf"^{series} (\S+)", text, re.M)[1])
                for series in ('ringway_spares_total{outcome="parked"}', "ringway_yields_total")]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for program in reversed(self.running):
            program.send_signal(signal.SIGKILL)
            program.wait()


def load(k6, by, target, seconds):
    environment = {**os.environ, "BY": by, "TARGET": target, "USERS": str(USERS),
                   "SECONDS": str(seconds), "FUNCTION": FUNCTION,
                   "PROTO_DIR": str(HERE / "../../engine/echo"), "K6_NO_USAGE_REPORT": "true", "K6_AUTO_EXTENSION_RESOLUTION": "false"}
    run = subprocess.run([k6, "run", "--quiet", "--no-color", str(HERE / "websockets.js")],
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
    arguments.add_argument("talker")
    arguments.add_argument("--seconds", type=int, default=10)
    arguments.add_argument("--rounds", type=int, default=3)
    asked = arguments.parse_args()
    kinds = ["grpc", "websocket"]
    seen, left = {kind: [] for kind in kinds}, 0
    with tempfile.TemporaryDirectory() as folder, Stand(folder, asked.talker) as stand:
        for kind in kinds:
            load(asked.k6, kind, stand.client, 1)
        for _ in range(asked.rounds):
            for kind in kinds:
                seen[kind].append(load(asked.k6, kind, stand.client, asked.seconds))
                time.sleep(2)
                left += len(stand.sessions())
        print("parked and gave way: %d, %d" % tuple(stand.kept()))
    for kind, runs in seen.items():
        middle = {key: statistics.median(run[key] for run in runs) for key in ("good", "p50", "p99")}
        print(f"{kind:<10} {middle['good'] / asked.seconds:>7.0f} sessions/s, p50 "
              f"{middle['p50']:.1f} ms, p99 {middle['p99']:.1f} ms, bad "
              f"{sum(run['bad'] for run in runs)}")
    ratios = [websocket["good"] / max(grpc["good"], 1)
              for websocket, grpc in zip(seen["websocket"], seen["grpc"])]
    ratio = statistics.median(ratios)
    print(f"websocket / grpc: {ratio:.3f} ({min(ratios):.3f} to {max(ratios):.3f}), at least "
          f"{LEAST}; sessions left two seconds after a run: {left}")
    return ratio < LEAST or left > 0 or any(run["bad"] for runs in seen.values() for run in runs)


if __name__ == "__main__":
    sys.exit(main())
