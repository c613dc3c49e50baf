"""One fault of the table a minute (`nvcf_faults.FAULTS`), in an order drawn from a seed, at a gateway in `nvcf`
mode under load. Nobody who has nothing to do with them notices one, and nothing grows: memory,
descriptors, tables and latencies are looked at once a minute, and the lines through what was seen
are flat. Ends with 1 if not.

    soak_nvcf_faults.py [SECONDS] [SEED]     an hour, and a seed of its own"""

import collections
import random
import statistics
import sys
import tempfile
import time
import traceback

from nvcf_faults import FAULTS
from nvcf_stage import PARKED, Stage, total

MINUTE = 60
# What is seen before this does not count: the timelines keep what has ended for five minutes,
# and allocators take their time.
WARM_UP = 420
# How long NATS is stopped.
STOPPED = 20
# More faults that somebody noticed end it.
MOST_FAILED = 3
# Looks at the end of each minute, whose middle one counts.
LOOKS, BETWEEN = 10, 1
# By how much a line through all minutes may rise from its begin to its end: so much of the middle
# value, or so much at all, whichever is more.
SHARE = 0.15
AT_ALL = {"resident memory, MiB": 6, "descriptors": 10, "call, median ms": 3, "call, 99th ms": 60,
          "new session, median ms": 10}
TABLE_AT_ALL = 12
TABLES = ("ringway_nats_unsettled_work", "ringway_api_calls", "ringway_parked_tunnels",
          "nvcf_grpc_proxy_service_worker_connections_active",
          "nvcf_grpc_proxy_service_active_connections_total")


def look(stage):
    """What there is now."""
    gateway, samples = stage.gateway, stage.gateway.metrics()
    seen = {"resident memory, MiB": gateway.rss() / 2**20, "descriptors": gateway.open_files()}
    for name in TABLES:
        seen[name] = total(samples, name, {})
    for series, value in samples.items():
        if series.startswith("ringway_limit_used{"):
            seen[series.split('"')[1]] = value
    return seen


def middle_and_99th(seconds):
    """In milliseconds."""
    values = sorted(seconds)
    return values[len(values) // 2] * 1e3, values[len(values) * 99 // 100] * 1e3


def minute(stage):
    """The row of a minute, at its end. Times are what the gateway adds to those of a call without it,
    so that they say nothing of what else the machine does."""
    stage.load.mark()
    looks = []
    for _ in range(LOOKS):
        looks.append(look(stage))
        time.sleep(BETWEEN)
    seen = stage.load.mark()
    row = {name: statistics.median(each[name] for each in looks) for name in looks[0]}
    (call, call_99), (opening, _) = map(middle_and_99th, (seen.latencies, seen.openings))
    direct, direct_99 = middle_and_99th(seen.direct)
    row["call, median ms"], row["call, 99th ms"] = call - direct, call_99 - direct_99
    row["new session, median ms"] = opening - direct
    return row, direct


def slope(points):
    """The slope of the line of least squares."""
    return statistics.linear_regression(*zip(*points)).slope


def judge(rows):
    """A line for each thing that was looked at; whether all are flat."""
    flat = True
    for name in rows[-1][1]:
        points = [(at, row[name]) for at, row in rows if name in row]
        middle = statistics.median(value for _, value in points)
        rise = slope(points) * (points[-1][0] - points[0][0])
        most = max(AT_ALL.get(name, TABLE_AT_ALL), SHARE * middle)
        rises = rise > most
        flat = flat and not rises
        if rises or name in AT_ALL or name in TABLES:
            print(f"{name}: middle {middle:.1f}, the line rises by {rise:+.2f} of {most:.1f} allowed"
                  f"{' - TOO MUCH' if rises else ''}")
    return flat


def faults(seed):
    """All of them in one order, then in another one, without an end."""
    draw = random.Random(seed)
    while True:
        yield from draw.sample(list(FAULTS), len(FAULTS))


def run(stage, seconds, seed):
    rows, told = [], collections.Counter()
    begin = time.monotonic()
    failed = 0
    for number, name in enumerate(faults(seed), 1):
        end = begin + number * MINUTE
        outcome = "nobody noticed"
        try:
            told.update(stage.passes(FAULTS[name]).fresh)
        except Exception:
            failed += 1
            outcome = "FAILED\n" + traceback.format_exc()
        time.sleep(max(0, end - LOOKS * (BETWEEN + 1) - time.monotonic()))
        row, direct = minute(stage)
        rows.append((number, row))
        print(f"minute {number}: {name}: {outcome}; "
              f"{row['resident memory, MiB']:.1f} MiB, {row['descriptors']:.0f} descriptors, "
              f"call {row['call, median ms']:+.1f} / {row['call, 99th ms']:+.1f} ms, "
              f"new session {row['new session, median ms']:+.1f} ms over a direct call's "
              f"{direct:.1f} ms", flush=True)
        if failed > MOST_FAILED or time.monotonic() - begin >= seconds:
            break
    stage.everybody_comes_back()
    print(f"seed {seed}: {number} faults, {failed} noticed by somebody; new sessions by status "
          f"{dict(told)}; all {PARKED} parked sessions came back")
    counted = [(at, row) for at, row in rows if at * MINUTE >= WARM_UP]
    if len(counted) < 3:
        print("too short to say what grows: three minutes behind the warm-up are needed")
        return not failed
    return judge(counted) and not failed


def main():
    seconds = int(sys.argv[1]) if len(sys.argv) > 1 else 3600
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else random.randrange(2**32)
    print(f"{seconds} s with seed {seed}", flush=True)
    with tempfile.TemporaryDirectory() as directory:
        stage = Stage(directory, stopped=STOPPED)
        try:
            return run(stage, seconds, seed)
        finally:
            stage.close()


if __name__ == "__main__":
    sys.exit(0 if main() else 1)
