"""What new sessions cost a gateway by NATS and NVIDIA's API, and by its own control plane: CPU of the
gateway's process, all threads, at a fixed rate of connections with one call each. Both are run in
turns. Ends with 1 if the median ratio is above LIMIT.

    soak_nvcf_cost.py BENCH [--rate 200] [--seconds 10] [--rounds 5]

BENCH is `ringway-bench`, whose endpoint answers."""

import argparse
import asyncio
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import hpack

from gateway import FUNCTION, UNLIMITED_CORE, VERSION, WORKER_KEY, Gateway, cpu, free_port
from nvcf_bed import SCRIPT, Bed
from workerprogram import WorkerProgram

KEY = "bench-key"
SLOTS = 256
# Owed: CPU by NATS and API to that by polls.
LIMIT = 2.0
LOCAL = UNLIMITED_CORE + f"""[session]
park = "never"
[[tenant]]
name = "bench"
client_keys = ["{KEY}"]
[[function]]
id = "{FUNCTION}"
version = "{VERSION}"
tenants = ["bench"]
worker_keys = ["{WORKER_KEY}"]
"""


@contextlib.contextmanager
def backend(bench):
    port = free_port()
    run = subprocess.Popen([bench, "backend", "--listen", f"127.0.0.1:{port}"],
                           stdout=subprocess.DEVNULL)
    try:
        yield f"127.0.0.1:{port}"
    finally:
        run.kill()
        run.wait()


@contextlib.contextmanager
def local(directory, target):
    path = Path(directory) / "local.toml"
    path.write_text(LOCAL)
    gateway = Gateway(["serve", "--config", str(path)], directory, "local")
    worker = WorkerProgram([gateway.worker], target, directory, "polls", slots=SLOTS)
    try:
        yield gateway
    finally:
        worker.kill()
        gateway.kill()


@contextlib.contextmanager
def nvcf(directory, target):
    script = {**SCRIPT, "key": [{"token": KEY, "subject": "bench", "nca": "bench"}]}
    with Bed(directory, script) as bed:
        bed.make_streams(VERSION)
        bed.worker(target, "nats", slots=SLOTS)
        yield bed.ready_gateway(RINGWAY__CORES__COUNT="1", RINGWAY__SESSION__PARK="never",
                                RINGWAY__LIMITS__DISPATCH_BURST="100000",
                                RINGWAY__LIMITS__DISPATCH_RATE="100000")


def sums(gateway, wanted):
    """Sum and count of histograms at the admin port."""
    found = {}
    for name, value in gateway.metrics().items():
        family = name.split("{")[0]
        if family.rsplit("_", 1)[0] in wanted and family.endswith(("_sum", "_count")):
            found[family] = found.get(family, 0) + value
    return found


TIMES = {"rpc_client_duration_milliseconds": "API, ms",
         "nvcf_grpc_proxy_service_session_init_seconds_total": "request to acknowledged, s",
         "nvcf_grpc_proxy_service_worker_connect_token_age_seconds": "published to CONNECT, s"}


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
END_STREAM, HEADERS, DATA = 1, 1, 0


def frame(kind, flags, stream, payload=b""):
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def call():
    """A connection's bytes: one call whose answer has a hundred octets."""
    fields = [(":method", "POST"), (":scheme", "http"), (":path", "/ringway.bench.v1.Bench/Call"),
              (":authority", "bench"), ("content-type", "application/grpc"), ("te", "trailers"),
              ("authorization", f"Bearer {KEY}"), ("function-id", FUNCTION),
              ("function-version-id", VERSION)]
    message = (100).to_bytes(4, "big") + bytes(96)
    body = b"\0" + len(message).to_bytes(4, "big") + message
    return (PREFACE + frame(4, 0, 0) + frame(HEADERS, 4, 1, hpack.Encoder().encode(fields))
            + frame(DATA, END_STREAM, 1, body))


async def one(address, octets, taken):
    began = time.perf_counter()
    reader, writer = await asyncio.open_connection(*address)
    first = None
    try:
        writer.write(octets)
        while True:
            head = await reader.readexactly(9)
            size, kind, flags = int.from_bytes(head[:3], "big"), head[3], head[4]
            if size:
                await reader.readexactly(size)
            if kind == HEADERS and first is None:
                assert not flags & END_STREAM, "refused"
                first = time.perf_counter() - began
            if flags & END_STREAM and kind in (HEADERS, DATA):
                taken.append((first, time.perf_counter() - began))
                return
            assert kind != 3, "reset"
    finally:
        writer.close()


async def run(address, rate, seconds):
    """Sessions begun at a rate: [(seconds to the first octet of the answer, to its end)]."""
    octets, taken, tasks = call(), [], []
    began = time.perf_counter()
    for number in range(int(rate * seconds)):
        pause = began + number / rate - time.perf_counter()
        if pause > 0:
            await asyncio.sleep(pause)
        tasks.append(asyncio.create_task(one(address, octets, taken)))
    await asyncio.gather(*tasks)
    return taken


def measure(gateway, rate, seconds):
    asyncio.run(run(gateway.client, rate, 2))
    before, used = sums(gateway, TIMES), cpu(gateway.pid)
    taken = asyncio.run(run(gateway.client, rate, seconds))
    used = cpu(gateway.pid) - used
    after = sums(gateway, TIMES)
    means = {}
    for name, text in TIMES.items():
        count = after.get(f"{name}_count", 0) - before.get(f"{name}_count", 0)
        if count:
            means[text] = (after[f"{name}_sum"] - before.get(f"{name}_sum", 0)) / count
    firsts, wholes = (sorted(times) for times in zip(*taken))
    return {"cpu_us": used * 1e6 / len(taken), "p50_ms": wholes[len(wholes) // 2] * 1e3,
            "p99_ms": wholes[len(wholes) * 99 // 100] * 1e3,
            "first_p50_ms": firsts[len(firsts) // 2] * 1e3, "sessions": len(taken), "means": means}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("bench", help="the load generator, for its endpoint")
    parser.add_argument("--rate", type=int, default=200)
    parser.add_argument("--seconds", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    rows = {"local": [], "nvcf": []}
    with tempfile.TemporaryDirectory() as directory, backend(options.bench) as target:
        for number in range(options.rounds):
            for name, make in (("local", local), ("nvcf", nvcf)):
                part = Path(directory) / f"{name}{number}"
                part.mkdir()
                with make(part, target) as gateway:
                    row = measure(gateway, options.rate, options.seconds)
                rows[name].append(row)
                print(name, json.dumps(row), flush=True)
    for name, of in rows.items():
        told = [f"{what} {median(row[what] for row in of):.2f} "
                f"({min(row[what] for row in of):.2f}-{max(row[what] for row in of):.2f})"
                for what in ("cpu_us", "p50_ms", "p99_ms", "first_p50_ms")]
        print(f"{name}: {', '.join(told)}")
    ratios = [b["cpu_us"] / a["cpu_us"] for a, b in zip(rows["local"], rows["nvcf"])]
    print(f"CPU of a session by NATS and API to one by polls: {median(ratios):.2f} "
          f"({min(ratios):.2f}-{max(ratios):.2f}), owed {LIMIT}")
    return median(ratios) <= LIMIT


if __name__ == "__main__":
    sys.exit(0 if main() else 1)
