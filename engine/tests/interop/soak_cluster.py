"""Long runs over three gateways behind balancers that know nothing. Ends with 1 if something was lost.

    soak_cluster.py returns [COUNT] SERVER    clients that come back at any gateway: 1000
    soak_cluster.py restarts [COUNT] SERVER   gateways replaced one after another, every session
                                              relayed, under 500 calls a second and 200 streams: 100
    soak_cluster.py kills [COUNT] SERVER      SIGKILL of one of them under load: 1000

SERVER is the program of `gogrpc/`."""

import collections
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time

from cluster_acts import Survivors, kill, replace, returns, start_apart
from cluster_bed import Bed
from cluster_load import Users
from gateway import VERSION, address, until
from nvcf_bed import SCRIPT
from nvcf_load import Load
from nvcf_stage import IDLE

COUNTS = {"returns": 1000, "restarts": 100, "kills": 1000}
CALLS_A_SECOND, CALLERS, STREAMS = 500, 100, 200
SESSIONS = 40
# New sessions are at their usual number again so many seconds after a kill.
BACK_WITHIN = 2


def soak_returns(bed, count):
    bed.start_all()
    relayed = returns(bed, bed.nats, bed.server, SESSIONS, count)
    print(f"{count} returns of {SESSIONS} sessions, {relayed:.0f} of them relayed; no CONNECT, "
          f"nothing published, no call of the API")
    return relayed >= count / 2


def tell_what_became_of(bed, failure):
    """The timeline of the session that a failure names, of whichever gateway still knows it."""
    session = re.search(r"'nvcf-reqid': '([0-9a-f-]+)'", failure)
    for node in bed.running() if session else ():
        status, _, told = node.get(f"/sessions/{session[1]}")
        if status == 200:
            told = json.loads(told)
            print(f"    at {node.host.name}: {told['verdict']}")
            for event in told["events"]:
                print(f"        {event['at']} core {event['core']} {event['text']}", flush=True)
            return


def soak_restarts(bed, count):
    start_apart(bed)
    users = Users(bed.front, callers=CALLERS, rate=CALLS_A_SECOND, streams=STREAMS)
    took, failures, asked_again = [], [], collections.Counter()
    calls = streams = 0
    began = time.monotonic()
    try:
        until(lambda: sum(users.told.streams.values()) >= STREAMS, what="streams")
        for number in range(count):
            took.append(replace(bed, number % 3))
            told = users.mark()
            failures += told.failures
            asked_again += told.repeated
            calls += sum(told.calls.values())
            streams += sum(told.streams.values())
            print(f"restart {number + 1}: {took[-1]:.1f} s, {len(told.failures)} failed"
                  + "".join(f"\n    {failure}" for failure in told.failures[:3]), flush=True)
            for failure in told.failures[:3]:
                tell_what_became_of(bed, failure)
    finally:
        users.close()
    seconds = time.monotonic() - began
    print(f"{count} restarts in {seconds:.0f} s: {calls} calls ({calls / seconds:.0f} a second), "
          f"{streams} streams, {len(failures)} failed, asked once more {dict(asked_again)}; a "
          f"gateway took {statistics.median(took):.1f} s to leave, at most {max(took):.1f} s")
    return not failures


def soak_kills(bed, count):
    # Whoever goes by FIN leaves nothing behind.
    parks = {"RINGWAY__SESSION__PARK": "auto"}
    bed.start_all(**parks)
    load = Load(bed.nodes[0].client, bed.server, running=20, calls=80, fresh=10)
    bed.balancer.leads("callbacks", 0, 1)
    load.begin()
    bed.balancer.leads("callbacks")
    bed.all_ready()
    failed, late, fresh = 0, 0, collections.Counter()
    try:
        survivors = Survivors([bed.nodes[0], bed.nodes[1]])
        for number in range(count):
            kill(bed, bed.nats, 2, **parks)
            time.sleep(BACK_WITHIN)
            load.do(load.all_ended())
            seen = load.mark()
            failed += len(seen.failures)
            fresh.update(seen.fresh)
            until(lambda: load.fresh.total() >= 5, what="new sessions")
            late += sum(count for status, count in load.mark().fresh.items() if status != "0")
            if (number + 1) % 50 == 0:
                lines, _ = survivors.figures()
                print(f"{number + 1} kills: " + "; ".join(lines), flush=True)
        survivors.settle(bed.nats)
        lines, grown = survivors.figures()
    finally:
        load.close()
    print(f"{count} kills: {failed} calls of others failed; new sessions in the {BACK_WITHIN} s "
          f"behind each {dict(fresh)}, later {late} refused")
    for line in lines:
        print(f"a survivor: {line}")
    for line in grown:
        print(f"GROWN: {line}")
    return not failed and not late and not grown


ACTS = {"returns": soak_returns, "restarts": soak_restarts, "kills": soak_kills}


def main():
    name, *count, server = sys.argv[1:]
    count = int(count[0]) if count else COUNTS[name]
    running = subprocess.Popen([server], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    script = {**SCRIPT, "function": SCRIPT["function"] + [{"id": IDLE, "version": [{"id": IDLE}]}]}
    try:
        target = running.stdout.readline().strip()
        with tempfile.TemporaryDirectory() as directory, Bed(directory, script=script) as bed:
            for version in (VERSION, IDLE):
                bed.make_streams(version)
            bed.server = address(target)
            bed.worker(target, slots=1024)
            bed.nats = bed.client()
            return ACTS[name](bed, count)
    finally:
        running.kill()
        running.wait()


if __name__ == "__main__":
    sys.exit(0 if main() else 1)
