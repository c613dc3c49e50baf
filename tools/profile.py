#!/usr/bin/env python3
"""Where a core's CPU time goes under load: samples of its thread, by what the code is for.

    tools/profile.py --connections 16 --streams 16
    tools/profile.py --connections 4 --streams 1 --message 8388608 --answer 4

Arguments are the load generator's (`ringway-bench load --help`). It needs perf (Debian: linux-perf),
root or `kernel.perf_event_paranoid` of 1 or less, two CPUs, and the release build of `ringway` and
`ringway-bench`. Hardware counters are not needed.
"""

import argparse
import collections
import contextlib
import pathlib
import re
import subprocess
import sys
import tempfile
import time

RELEASE = pathlib.Path(__file__).resolve().parent.parent / "target" / "release"
FUNCTION = "11111111-1111-4111-8111-111111111111"
VERSION = "22222222-2222-4222-8222-222222222222"
CONFIG = f"""
[listen]
client = "127.0.0.1:0"
worker = "127.0.0.1:0"
admin = "127.0.0.1:0"
[cores]
count = 1
[[tenant]]
name = "bench"
client_keys = ["bench-key"]
[[function]]
id = "{FUNCTION}"
version = "{VERSION}"
tenants = ["bench"]
worker_keys = ["bench-worker-key"]
"""

# The first that fits counts. Inlined functions are their caller's.
CLASSES = [
    ("kernel: copies to and from sockets", r"kernel.*(_copy_(to|from)_iter|copyin|copyout|rep_movs|copy_user)"),
    ("kernel: io_uring", r"kernel.*(io_|__io_|iou_|tctx_task)"),
    ("kernel: system calls, wake-ups, interrupts", r"kernel.*(syscall|entry_|sched|wake|swait|hrtimer|irq|idle|switch|ttwu|enqueue_task|dequeue_|pick_|update_curr|futex|__fget|fdget|clockevent|kvm|timer|rcu)"),
    ("kernel: TCP, IP, sockets, memory", r"kernel"),
    ("HPACK, lists of fields", r"ringway_proto::(hpack|fields|route)"),
    ("HTTP/2 frames, streams, windows", r"ringway_proto::h2"),
    ("sessions, exchanges, tables, metrics", r"ringway::(shard|metrics|timeline|control|boot|log)"),
    ("reactor, output queues, memory pool", r"ringway::(reactor|net|pool|mailbox|transport)|io_uring"),
    ("other user space: libc, allocator", r""),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], epilog="The rest goes to the load generator.")
    parser.add_argument("--seconds", type=float, default=5.0, help="sampled, after one of warm-up")
    parser.add_argument("--symbols", type=int, default=0, help="also print the first so many symbols")
    known, load = parser.parse_known_args()
    for program in ("ringway", "ringway-bench"):
        if not (RELEASE / program).exists():
            sys.exit(f"{RELEASE / program} is not built: cargo build --release --bin {program}")
    with contextlib.ExitStack() as ends:
        folder = pathlib.Path(ends.enter_context(tempfile.TemporaryDirectory()))
        print_shares(sampled(folder, known.seconds, load, ends), known.symbols)


def sampled(folder: pathlib.Path, seconds: float, load: list[str], ends: contextlib.ExitStack) -> str:
    """Runs everything and returns perf's table."""
    config = folder / "ringway.toml"
    config.write_text(CONFIG)
    gateway, ready = begin(0, ["ringway", "serve", "--config", config], folder, ends)
    places = dict(re.findall(r"(\w+)=(\S+)", ready))
    worker = ["--gateway", f"http://{places['worker']}", "--key", "bench-worker-key"]
    begin(1, ["ringway-bench", "worker", *worker, "--function", FUNCTION, "--version", VERSION], folder, ends)
    names = {task.name: (task / "comm").read_text() for task in pathlib.Path(f"/proc/{gateway.pid}/task").iterdir()}
    core = next(task for task, name in names.items() if "core" in name)
    line = [RELEASE / "ringway-bench", "load", "--target", places["client"], "--warm-up", "1", *load]
    line += ["--seconds", str(seconds + 1)]
    loading = subprocess.Popen(["taskset", "-c", "1", *line])
    time.sleep(1.5)
    data = folder / "perf.data"
    record = ["perf", "record", "--quiet", "--event", "cpu-clock", "--freq", "2000", "--tid", core]
    subprocess.run([*record, "--output", data, "--", "sleep", str(seconds)], check=True)
    loading.wait(timeout=60)
    report = ["perf", "report", "--quiet", "--input", data, "--no-children", "--stdio"]
    table = subprocess.run([*report, "--fields", "sample,dso,sym"], check=True, stdout=subprocess.PIPE, text=True)
    return table.stdout


def begin(cpu: int, line: list, folder: pathlib.Path, ends: contextlib.ExitStack) -> tuple[subprocess.Popen, str]:
    """A program on its own CPU, and the line that says that it is ready."""
    log = ends.enter_context((folder / f"{line[1]}.err").open("w"))
    program = subprocess.Popen(
        ["taskset", "-c", str(cpu), RELEASE / line[0], *line[1:]], stdout=subprocess.PIPE, stderr=log, text=True
    )
    ends.callback(program.wait)
    ends.callback(program.terminate)
    ready = next((text for text in program.stdout if text.startswith("ready")), None)
    return (program, ready) if ready else sys.exit(pathlib.Path(log.name).read_text() or "it did not start")


def print_shares(table: str, symbols: int) -> None:
    rows = [(int(count), rest) for count, rest in re.findall(r"^\s*(\d+)\s+(\S.*)$", table, re.MULTILINE)]
    samples = sum(count for count, _ in rows)
    shares = collections.Counter()
    for count, rest in rows:
        shares[next(name for name, pattern in CLASSES if re.search(pattern, rest))] += count
    print(f"{samples} samples")
    for name, _ in CLASSES:
        print(f"{100 * shares[name] / max(samples, 1):6.1f} %  {name}")
    for count, rest in sorted(rows, reverse=True)[:symbols]:
        print(f"{100 * count / max(samples, 1):6.2f} %  {' '.join(rest.split())}")


if __name__ == "__main__":
    main()
