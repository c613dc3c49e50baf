"""What a gateway looks at nothing else for: what closed sessions leave behind, scrapes beside many
sessions, tables of ten thousand functions, and everybody who comes back at once. Run by tools/soak.sh.

    soak_stalls.py PART [NUMBER]

All figures are of one gateway core beside whatever else the machine does: CPU is the process' own, and
a stall is what the gateway counts as one (docs/operating.md, "Stalls")."""

import contextlib
import json
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from statistics import median

from gateway import (FUNCTION, UNLIMITED_CORE, VERSION, WORKER_KEY, Gateway, bench, cpu, free_port,
                     until)

KEY = "bench-key"
# Descriptors of the gateway and of the load: 20 000 sessions have two each.
FILES = 100_000
# A core may look at nothing else for so long, in seconds; it is a bound of the histogram.
MOST_STALL = "0.005"

BASE = UNLIMITED_CORE + """pending_sessions = 50000
parked_tunnels = 50000
parked_per_tenant = 50000
[session]
idle = "24h"
[keepalive]
tunnel_ping = "24h"
"""
TENANT = """
[[tenant]]
name = "{name}"
client_keys = ["{key}"]
"""
FUNCTIONS = """
[[function]]
id = "{id}"
version = "{version}"
tenants = [{tenants}]
worker_keys = ["{worker}"]
"""


def uuid_of(number):
    return f"{number:08x}-0000-4000-8000-000000000000"


def settings(functions=1, tenants=1, dial=None, level="warn"):
    """The bench's function and tenant stand last, and what is between is nobody's. The function is
    called by all tenants, the others by every tenth."""
    names = [f"tenant-{number}" for number in range(tenants - 1)] + ["bench"]
    text = BASE + f'[log]\nlevel = "{level}"\n' + "".join(TENANT.format(name=name, key=KEY if name == "bench" else f"key-of-{name}")
                          for name in names)
    some = ", ".join(f'"{name}"' for name in names[::10])
    everyone = ", ".join(f'"{name}"' for name in names)
    for number in range(functions - 1):
        text += FUNCTIONS.format(id=uuid_of(number), version=VERSION, tenants=some,
                                 worker="worker-key-of-another")
    text += FUNCTIONS.format(id=FUNCTION, version=VERSION, tenants=everyone, worker=WORKER_KEY)
    return text + (f'dial = "{dial}"\n' if dial else "")


class Stage:
    """A gateway on CPU 0, and what serves behind it on the last one."""

    def __init__(self, directory, name="stalls", **tables):
        self.directory = Path(directory)
        self.running = []
        dial = None
        if tables.pop("dialled", False):
            port = free_port()
            self.start("backend", "--listen", f"127.0.0.1:{port}")
            dial = f"127.0.0.1:{port}"
        self.path = self.directory / f"{name}.toml"
        self.path.write_text(settings(dial=dial, **tables))
        self.gateway = Gateway(["serve", "--config", str(self.path)], directory, name,
                               launcher=["taskset", "-c", "0"])
        if dial is None:
            self.start("worker", "--gateway", "http://%s:%d" % self.gateway.worker, "--key", WORKER_KEY,
                       "--function", FUNCTION, "--version", VERSION, "--slots", "50000")

    def start(self, *words):
        run = subprocess.Popen(["taskset", "-c", str(os.cpu_count() - 1), bench(), *words],
                               stdout=subprocess.PIPE, text=True)
        self.running.append(run)
        return run

    def load(self, *words, seconds=5, warm_up=1):
        """Starts the generator."""
        return self.start("load", "--json", "--target", "%s:%d" % self.gateway.client, "--key", KEY,
                          "--seconds", str(seconds), "--warm-up", str(warm_up), *words)

    def cpu(self):
        """Seconds of CPU of the gateway so far."""
        return cpu(self.gateway.pid)

    def stalls(self):
        """How many stalls there were, and how many of them were too long."""
        found = self.gateway.metrics()
        of = lambda name, rest="": sum(value for series, value in found.items()
                                       if series.startswith(f"ringway_core_stall_seconds_{name}")
                                       and rest in series)
        count = of("count")
        return count, count - of("bucket", f'le="{MOST_STALL}"'), found

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for run in self.running:
            run.send_signal(signal.SIGKILL)
            run.wait()
        self.gateway.kill()


def outcome(run, timeout=300):
    out, _ = run.communicate(timeout=timeout)
    return json.loads(out)


def told(stage, before, what):
    count, long, found = stage.stalls()
    long -= before[1]
    bounds = {re.search(r'le="([^"]+)"', series).group(1): value for series, value in found.items()
              if series.startswith("ringway_core_stall_seconds_bucket")}
    print(f"{what}: {count - before[0]:.0f} stalls, {long:.0f} over 5 ms; all so far {bounds}", flush=True)
    return long


def aside():
    """Lets this thread have what the load leaves of its CPU: who scrapes is on another machine, and takes
    none of the gateway's time nor of the clients'."""
    os.sched_setaffinity(0, {os.cpu_count() - 1})
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


def closed_sessions(directory, seconds=90):
    """Connections with session, worker and one call, as many as the core can: the last tenth costs as
    much as the first, and what is gone is forgotten."""
    with Stage(directory) as stage:
        run = stage.load("--kind", "new-connection", "--connections", "32", "--streams", "1",
                         seconds=seconds + 5, warm_up=0.5)
        time.sleep(2)
        rows, step = [], max(seconds // 9, 1)
        last = (stage.cpu(), stage.gateway.metric("client_connection_opened_total"))
        for _ in range(9):
            time.sleep(step)
            now = (stage.cpu(), stage.gateway.metric("client_connection_opened_total"))
            rows.append(((now[0] - last[0]) / (now[1] - last[1]) * 1e6, stage.gateway.rss() / 2**20,
                         (now[1] - last[1]) / step))
            print("%.1f us of CPU each, %.1f MiB, %.0f a second" % rows[-1], flush=True)
            last = now
        run.kill()
        ratio, grown = rows[-1][0] / rows[0][0], rows[-1][1] - rows[0][1]
        print(f"the last costs {ratio:.3f} of the first; {grown:.1f} MiB more")
        told(stage, (0, 0), "closed sessions")
        assert ratio <= 1.05 and grown <= 1


def scrapes(directory, sessions=8000):
    """1 000 calls a second on 16 connections beside many that rest; in turns with nobody who looks,
    and with a scrape and a list of all sessions each second."""
    with Stage(directory, dialled=True) as stage:
        resting = stage.load("--kind", "idle", "--connections", str(sessions), "--streams", "1",
                             seconds=3600)
        until(lambda: stage.gateway.metric("active_connections_total") >= sessions, timeout=180,
              what="all sessions")
        paths, long, tails = ["/metrics", "/sessions"], 0, {}
        for number in range(8):
            looks = [None, *paths, None][number % 4]
            before, stop = stage.stalls(), threading.Event()

            def look():
                aside()
                while not stop.wait(1):
                    begun = time.monotonic()
                    status, _, body = stage.gateway.get(looks)
                    assert status == 200
                    took.append((time.monotonic() - begun, len(body)))
            took = []
            looking = threading.Thread(target=look)
            if looks:
                looking.start()
            found = outcome(stage.load("--connections", "16", "--streams", "4", "--rate", "1000",
                                       seconds=8))
            stop.set()
            if looks:
                looking.join()
            tails.setdefault(looks, []).append(found["latency_us"]["p999"])
            shown = ", ".join(f"{seconds * 1e3:.0f} ms" for seconds, _ in took[:4])
            long += told(stage, before, f"{looks or 'nobody'}: p99.9 {tails[looks][-1]:.0f} us; {shown}")
        assert stage.gateway.metric("active_connections_total") >= sessions, "sessions have ended"
        resting.kill()
        alone = median(tails[None])
        ratios = {path: median(tails[path]) / alone for path in paths}
        hits = stage.gateway.metric("ringway_limit_hits_total", limit="mailbox")
        print(f"p99.9 beside {ratios}, mailbox full {hits:.0f} times")
        assert long == 0 and hits == 0 and max(ratios.values()) <= 1.2


def tables(directory, sessions=8000):
    """Ten thousand functions and a thousand tenants against four and one: what a new session costs;
    then such a configuration is read again while many sessions are there."""
    costs = {}
    with contextlib.ExitStack() as stack:
        few, many = (stack.enter_context(Stage(directory, name=name, functions=functions,
                                               tenants=tenants, dialled=True))
                     for name, functions, tenants in (("few", 4, 1), ("many", 10_000, 1000)))
        for _ in range(5):
            for stage in (few, many):
                before = (stage.cpu(), stage.gateway.metric("client_connection_opened_total"))
                outcome(stage.load("--kind", "new-connection", "--connections", "16", "--streams", "1",
                                   seconds=3, warm_up=0.2))
                after = (stage.cpu(), stage.gateway.metric("client_connection_opened_total"))
                costs.setdefault(stage, []).append((after[0] - before[0]) / (after[1] - before[1]))
        ratio = median(many_ / few_ for few_, many_ in zip(costs[few], costs[many]))
        print(f"a new session costs {ratio:.3f} of what it costs with four functions")
        resting = many.load("--kind", "idle", "--connections", str(sessions), "--streams", "1",
                            seconds=3600)
        until(lambda: many.gateway.metric("active_connections_total") >= sessions, timeout=180,
              what="all sessions")
        before = many.stalls()
        reloads = lambda: many.gateway.metric("ringway_reloads_total", what="configuration", outcome="ok")
        for wanted in range(1, 4):
            many.gateway.signal(signal.SIGHUP)
            until(lambda: reloads() >= wanted, timeout=60, what="the reload")
            time.sleep(1)
        long = told(many, before, "three reloads")
        resting.kill()
        assert ratio <= 1.1 and long == 0


def comeback(directory, clients=5000):
    """So many clients are cut at once and come back within a second: each finds its session."""
    with Stage(directory) as stage:
        before = stage.stalls()
        found = outcome(stage.load("--kind", "resume", "--connections", str(clients), "--streams", "1",
                                   "--absence-ms", "500", seconds=10, warm_up=5))
        resumes = lambda outcome: stage.gateway.metric("ringway_resumes_total", outcome=outcome)
        long = told(stage, before, f"{clients} back, {resumes('ok'):.0f} returns; failed {found['failures']}")
        print(f"not found {resumes('not_found'):.0f}, gave way {stage.gateway.metric('ringway_yields_total'):.0f}")
        assert long == 0 and found["failed"] == 0 and found["not_built"] is None


def storm(directory, clients=5000):
    """So many clients come at once, each with a session and a call."""
    with Stage(directory) as stage:
        before = stage.stalls()
        found = outcome(stage.load("--kind", "storm", "--connections", str(clients), "--streams", "1",
                                   seconds=10))
        long = told(stage, before, f"{clients} at once; failed {found['failures']}")
        assert long == 0 and found["failed"] == 0


def blocked_log(directory, seconds=10):
    """New sessions at full speed, of which each is logged, with a log that is written to a file and
    with one whose reader has stopped reading: no core waits for it."""
    rates = {}
    for name in ("written", "blocked"):
        if name == "blocked":
            pipe = Path(directory) / f"{name}.stderr"
            os.mkfifo(pipe)
            os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
        with Stage(directory, name=name, level="info", dialled=True) as stage:
            before = stage.stalls()
            found = outcome(stage.load("--kind", "new-connection", "--connections", "16", "--streams",
                                       "1", seconds=seconds))
            long = told(stage, before, f"log {name}: {found['calls_per_s']:.0f} sessions a second")
            rates[name] = found["calls_per_s"]
            assert long == 0 and found["failed"] == 0
    assert rates["blocked"] >= 0.9 * rates["written"], rates


if __name__ == "__main__":
    part, *number = sys.argv[1:]
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    with contextlib.suppress(ValueError, OSError):
        hard = max(hard, FILES)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with tempfile.TemporaryDirectory() as folder:
        globals()[part.replace("-", "_")](folder, *map(int, number))
