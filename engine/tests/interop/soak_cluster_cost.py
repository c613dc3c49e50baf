"""What it costs to reach the wrong gateway, side by side with the right one. Measured are the CPU of a
call on a relayed tunnel (both gateways together), the set-up of a session whose callback is relayed,
the return of a client that is relayed, and what clients pay that reached the right gateway. All kinds
take turns. Ends with 1 if the median of one is above its bound.

    soak_cluster_cost.py [--rounds 5] [--seconds 2] [--samples 400] [--flood 5]

`ringway-bench` is the one beside RINGWAY_BIN."""

import argparse
import collections
import contextlib
import json
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from statistics import median

import prelude
from comeback import KEPT, parked
from gateway import FUNCTION, KEY, VERSION, Gateway, bench, configuration, cpu, free_port
from measure_resume import REST, Client, Worker

# Owed: CPU of a relayed call to that of a direct one; what the wrong gateway adds to a set-up at the
# median, and a return there to a call on a pinned connection; CPU of a new connection where there is
# a cluster to that without one, of those that landed right.
CALL, SET_UP_MS, RESUME_MS, RIGHT = 2.0, 0.5, 0.6, 1.05
# Of a core, what so many bad preludes a second may take; and how long a good one may take meanwhile.
BAD_A_SECOND, OF_A_CORE, GOOD_MS = 10_000, 0.10, 500
# Seconds until a bad one is said, if its connection is there.
BAD_AFTER = 0.02
# Connections and calls open on each.
SHAPES = {"16 connections, 16 calls each": (16, 16), "64 connections, one call each": (64, 1)}
ROOM = ("[limits]\nparked_tunnels = 100000\nparked_per_tenant = 100000\n"
        "dispatch_burst = 100000\ndispatch_rate = 100000\n")
SECRET = "what these gateways have in common"


class Pair:
    """Two gateways on one core each. Workers of the first one call back at the gateway `through`."""

    def __init__(self, directory, name, through):
        secret = Path(directory) / "secret"
        secret.write_text(f"{SECRET}\n")
        relay, workers = [free_port(), free_port()], [free_port(), free_port()]
        self.gateways = []
        for index in range(2):
            lead = workers[through] if index == 0 else workers[1]
            table = (f'{ROOM}[cluster]\nsecret_file = "{secret}"\n'
                     f'listen = "127.0.0.1:{relay[index]}"\nnode = {index + 1}\n'
                     f'nodes = [{{ node = {2 - index}, relay = "127.0.0.1:{relay[1 - index]}" }}]')
            self.gateways.append(serve(directory, f"{name}{index}", table, workers[index], lead))
        self.first, self.second = self.gateways
        self.worker = Worker(self.first, 4096)

    def pids(self):
        return [gateway.pid for gateway in self.gateways]

    def close(self):
        self.worker.close()
        for gateway in self.gateways:
            gateway.kill()


class Alone:
    """One without a cluster."""

    def __init__(self, directory):
        self.first = serve(directory, "alone", ROOM, free_port(), None)
        self.worker = Worker(self.first, 4096)

    def pids(self):
        return [self.first.pid]

    def close(self):
        self.worker.close()
        self.first.kill()


def serve(directory, name, table, port, lead):
    """`lead`: the port that workers are told."""
    text = configuration(session=KEPT, more=table, worker_port=port, cores=1)
    if lead:
        text = text.replace(f'advertise = "http://127.0.0.1:{port}"',
                            f'advertise = "http://127.0.0.1:{lead}"')
    path = Path(directory) / f"{name}.toml"
    path.write_text(text)
    return Gateway(["serve", "--config", str(path)], directory, name)


def load(stage, seconds, connections=16, streams=1, kind="unary"):
    """Microseconds of CPU a unit, all gateways of the stage together."""
    watch = [part for number, pid in enumerate(stage.pids())
             for part in ("--watch", f"g{number}={pid}")]
    done = subprocess.run(
        [bench(), "load", "--target", "%s:%d" % stage.first.client, "--connections",
         str(connections), "--streams", str(streams), "--key", KEY, "--function", FUNCTION,
         "--version", VERSION, "--kind", kind, "--seconds", str(seconds), "--json", *watch],
        capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done
    told = json.loads(done.stdout)
    assert not told["failed"], told["failures"]
    return sum(cost for name, cost in told["per_unit"].items() if name != "generator")


def compare(what, owed, base, other, rounds, take):
    """Two stages in turns: the ratios of what is taken of them. Whether the median is as owed."""
    ratios, rows = [], []
    for _ in range(rounds):
        pair = take(base), take(other)
        rows.append(pair)
        ratios.append(pair[1] / pair[0])
    mine, theirs = (median(row[index] for row in rows) for index in (1, 0))
    print(f"{what}: {mine:.2f} us to {theirs:.2f} us, {median(ratios):.2f} "
          f"({min(ratios):.2f}-{max(ratios):.2f}), owed {owed}", flush=True)
    return median(ratios) <= owed


def p50(values):
    """Milliseconds."""
    return sorted(values)[len(values) // 2] / 1e6


def set_ups(direct, relayed, samples):
    """Whether a new session's first octet comes as soon as owed where its callback is relayed."""
    took = {direct: [], relayed: []}
    for _ in range(samples):
        for stage, of in took.items():
            client = Client(stage.first)
            time.sleep(REST)
            of.append(client.call()[0])
            client.leave()
    more = p50(took[relayed]) - p50(took[direct])
    print(f"set-up through the wrong gateway: p50 {p50(took[relayed]):.3f} ms, {more:+.3f} ms over "
          f"the right one, owed {SET_UP_MS}", flush=True)
    return more <= SET_UP_MS


def resumes(stage, samples):
    """Whether a return to the wrong gateway takes no longer than owed."""
    took = {"pinned": [], "right": [], "wrong": []}
    pinned, roamer = Client(stage.first), Client(stage.first)
    pinned.call()
    _, session = roamer.call()
    for turn in range(samples):
        pinned.call()
        time.sleep(REST)
        took["pinned"].append(pinned.call()[0])
        for where, gateway in (("right", stage.first), ("wrong", stage.second)):
            roamer.lose()
            parked(stage.first, session)
            roamer = Client(gateway)
            time.sleep(REST)
            took[where].append(roamer.call(session)[0])
    pinned.leave()
    roamer.leave()
    relayed = stage.second.metric("ringway_relays_total", cause="client", outcome="relayed")
    assert relayed == samples, (relayed, samples)
    base = p50(took["pinned"])
    for where in ("right", "wrong"):
        print(f"return to the {where} gateway: p50 {p50(took[where]):.3f} ms, "
              f"{p50(took[where]) - base:+.3f} ms over a pinned call", flush=True)
    print(f"owed of the wrong one: {RESUME_MS} ms", flush=True)
    return p50(took["wrong"]) - base <= RESUME_MS


def flood(stage, seconds):
    """Whether bad preludes at their rate take no more of a core than owed, and keep no good one from
    its time. They come from another address than gateways, and whoever says them waits for nothing: the
    kernel may keep them out."""
    ended, sent = threading.Event(), [0] * 4
    me = prelude.node(json.loads(stage.first.get("/info")[2])["node"])
    bad = prelude.prelude(me) + bytes(prelude.MAC)

    def send(number):
        began, tried = time.monotonic(), collections.deque()
        while not ended.is_set():
            sock = socket.socket()
            sock.setblocking(False)
            sock.bind(("127.0.0.9", 0))
            sock.connect_ex(stage.first.cluster)
            tried.append((time.monotonic() + BAD_AFTER, sock))
            while tried[0][0] < time.monotonic() or len(tried) > 1000:
                with tried.popleft()[1] as sock, contextlib.suppress(OSError):
                    sock.send(bad)
                    sock.recv(2 * prelude.CHALLENGE)
                if not tried:
                    break
            sent[number] += 1
            ahead = sent[number] / (BAD_A_SECOND / len(sent)) - (time.monotonic() - began)
            time.sleep(max(0, ahead))

    threads = [threading.Thread(target=send, args=(number,), daemon=True)
               for number in range(len(sent))]
    used, began = cpu(stage.first.pid), time.monotonic()
    for thread in threads:
        thread.start()
    slowest = 0
    while time.monotonic() - began < seconds:
        with prelude.Sender(stage.first.cluster) as good:
            asked = time.monotonic()
            good.says(good.signed(SECRET, prelude.prelude(me)))
            assert good.verdict() == prelude.TAKEN
            slowest = max(slowest, time.monotonic() - asked)
        time.sleep(0.05)
    lasted, used = time.monotonic() - began, cpu(stage.first.pid) - used
    ended.set()
    for thread in threads:
        thread.join()
    each = used / sum(sent)
    share = each * BAD_A_SECOND
    print(f"bad preludes: {sum(sent) / lasted:.0f} a second, {each * 1e6:.1f} us of CPU each, so "
          f"{share:.1%} of a core at {BAD_A_SECOND} a second, owed {OF_A_CORE:.0%}; the slowest "
          f"answer to a good one {slowest * 1e3:.0f} ms, owed {GOOD_MS}", flush=True)
    return share <= OF_A_CORE and slowest * 1e3 <= GOOD_MS


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2)
    parser.add_argument("--samples", type=int, default=400)
    parser.add_argument("--flood", type=float, default=5)
    options = parser.parse_args()
    with contextlib.ExitStack() as ends:
        directory = ends.enter_context(tempfile.TemporaryDirectory())
        made = []
        for make in (lambda: Pair(directory, "direct", 0), lambda: Pair(directory, "relayed", 1),
                     lambda: Alone(directory)):
            made.append(make())
            ends.callback(made[-1].close)
        direct, relayed, alone = made
        kept = [compare(f"a relayed call, {what}", CALL, direct, relayed, options.rounds,
                        lambda stage: load(stage, options.seconds, *shape))
                for what, shape in SHAPES.items()]
        kept.append(compare("a new connection that landed right, where there is a cluster", RIGHT,
                            alone, direct, options.rounds,
                            lambda stage: load(stage, options.seconds, kind="new-connection")))
        kept.append(set_ups(direct, relayed, options.samples))
        kept.append(resumes(direct, options.samples))
        kept.append(flood(direct, options.flood))
    return all(kept)


if __name__ == "__main__":
    sys.exit(0 if main() else 1)
