"""What coming back costs: the time from a returning client's first octet to the first octet of its
answer's head, for a resume in memory on the core where the tunnel is and on another, beside a
call on a pinned connection and a new session; and what a parked session costs meanwhile.

    .venv/bin/python engine/tests/interop/measure_resume.py [--rounds 1000] [--parked 1000]

The TCP connection stands before the clock starts. The worker is `ringway-bench worker` if that is
built beside the gateway's program, else one of Python, which adds the same to all of them. All
kinds take turns, so that they share what else the machine does. RINGWAY_BIN as for the tests."""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import rawh2
from comeback import KEPT, count, nothing_is_left, resumes, row
from gateway import FUNCTION, VERSION, WORKER_KEY, Gateway, bench, binary, cpu, grpc_head, until
from rawh2 import DATA, END_STREAM, HEADERS, frame, goaway

HERE = Path(__file__).parent
ROOM = "[limits]\nparked_tunnels = 100000\nparked_per_tenant = 100000"
REST = 0.003  # for the gateway to accept, or to notice
MESSAGE = b"\0\0\0\0\4\0\0\0\x10"  # of four octets, which ask for sixteen


class Worker:
    def __init__(self, gateway, slots):
        host, port = gateway.worker
        if Path(bench()).exists():
            command = [bench(), "worker", "--gateway", f"http://{host}:{port}", "--key",
                       WORKER_KEY, "--function", FUNCTION, "--version", VERSION, "--slots",
                       str(slots)]
        else:
            command = [sys.executable, str(HERE / "fleet.py"), host, str(port), str(slots)]
        self.run = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def close(self):
        self.run.kill()
        self.run.wait()


class Client:
    """A connection whose next call is timed."""

    def __init__(self, gateway):
        self.gateway, self.peer = gateway, None
        self.sock = gateway.client_socket(60)

    def call(self, session=None):
        """(nanoseconds to the first octet of the answer's head, its request id). The first one
        brings the preface along, and everything goes out at once."""
        if self.peer is None:
            self.peer = rawh2.Peer(self.sock, client=True, start=False)
            opening = rawh2.PREFACE + rawh2.settings()
        else:
            opening = b""
        peer, stream = self.peer, self.peer.next_stream
        peer.next_stream += 2
        octets = opening + frame(HEADERS, rawh2.END_HEADERS, stream,
                                 peer.block_of(grpc_head(reqid=session)))
        octets += frame(DATA, END_STREAM, stream, MESSAGE)
        begun = time.perf_counter_ns()
        self.sock.sendall(octets)
        head = None
        while head is None:
            octets = self.sock.recv(1 << 16)
            now = time.perf_counter_ns()
            assert octets, peer.transcript()
            peer.inbox += octets
            peer.take_in()
            head = next((e for e in peer.events if e.kind == HEADERS), None)
        assert head.get("nvcf-reqid"), f"{head}\n{peer.transcript()}"
        while not any(e.end_stream for e in peer.events):
            peer.pump(time.monotonic() + 60)
        peer.events.clear()
        return now - begun, head.get("nvcf-reqid")

    def leave(self):
        self.peer.send(goaway())
        self.peer.close()

    def lose(self):
        self.peer.abort()


def lines(samples):
    """A line for each kind of sample, all beside the pinned call's median."""
    def at(values, share):
        return sorted(values)[min(int(len(values) * share), len(values) - 1)] / 1e6
    base = at(samples["pinned call"], 0.5)
    for name, values in samples.items():
        if values:
            p50, p99 = at(values, 0.5), at(values, 0.99)
            yield (f"{name}: p50 {p50:.3f} ms ({p50 - base:+.3f} over a pinned call), "
                   f"p99 {p99:.3f} ms, {len(values)} samples")


def latencies(gateway, rounds):
    samples = {"pinned call": [], "new session": [], "resume, same core": [],
               "resume, other core": []}
    pinned, roamer = Client(gateway), Client(gateway)
    pinned.call()
    _, session = roamer.call()
    for turn in range(rounds):
        pinned.call()  # as the others: something has passed on this core just before
        time.sleep(REST)
        samples["pinned call"].append(pinned.call()[0])
        new = Client(gateway)
        time.sleep(REST)
        samples["new session"].append(new.call()[0])
        new.leave()
        roamer.lose()
        at = until(lambda: (found := row(gateway, session)) and found["state"] == "parked"
                   and found, what="it is parked")["core"]
        before = resumes(gateway, "memory")
        # The gateway spreads its clients: others come and go, so that it lands on either core.
        others = [gateway.h2() for _ in range(turn % 4)]
        roamer = Client(gateway)
        time.sleep(REST)
        took, same = roamer.call(session)
        assert same == session and resumes(gateway, "memory") == before + 1
        where = "same" if row(gateway, session)["core"] == at else "other"
        samples[f"resume, {where} core"].append(took)
        for other in others:
            other.close()
    for client in (pinned, roamer):
        client.leave()
    nothing_is_left(gateway)
    return lines(samples)


def cost_of_a_resume(gateway, rounds):
    """The gateway's processor time for a cut, the parking, the return and a call."""
    roamer = Client(gateway)
    _, session = roamer.call()
    before, kept = cpu(gateway.pid), resumes(gateway, "memory")
    for _ in range(rounds):
        roamer.lose()
        time.sleep(REST)
        roamer = Client(gateway)
        roamer.call(session)
    spent, kept = cpu(gateway.pid) - before, resumes(gateway, "memory") - kept
    roamer.leave()
    nothing_is_left(gateway)
    yield (f"a cut, the return and a call: {spent / rounds * 1e6:.0f} us of processor time "
           f"({kept:.0f} of {rounds} in memory)")


def cost_of_parked_sessions(gateway, number, seconds):
    def rest(name, before):
        time.sleep(1)  # what was under way
        memory, spent = gateway.rss() - before, cpu(gateway.pid)
        time.sleep(seconds)
        spent = (cpu(gateway.pid) - spent) / seconds
        return (f"{number} sessions {name}: {memory / number:.0f} octets of memory each, "
                f"{spent * 1e6 / number:.1f} us of processor time a second each "
                f"(tunnels are asked every 15 s whether they live)")
    first = Client(gateway)
    first.call()
    before, clients = gateway.rss(), []
    for _ in range(number):
        clients.append(Client(gateway))
        clients[-1].call()
    yield rest("with an idle client", before)
    for client in clients:
        client.lose()
    until(lambda: count(gateway, "ringway_parked_tunnels") == number, timeout=60,
          what="all are parked")
    yield rest("parked", before)
    first.leave()


def measure(directory, rounds, parked, seconds, cores=2):
    parts = [(latencies, rounds), (cost_of_a_resume, rounds),
             (cost_of_parked_sessions, parked, seconds)]
    yield f"{cores} cores, the gateway is {binary()[0]}"
    for part, *arguments in parts:  # memory that one has freed is not the next one's
        with Gateway.serve(directory, session=KEPT, cores=cores, more=ROOM) as gateway:
            worker = Worker(gateway, parked + 8)
            try:
                yield from part(gateway, *arguments)
            finally:
                worker.close()


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--rounds", type=int, default=1_000)
    arguments.add_argument("--parked", type=int, default=1_000)
    arguments.add_argument("--seconds", type=float, default=30)
    given = arguments.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        for line in measure(directory, given.rounds, given.parked, given.seconds):
            print(line, flush=True)


if __name__ == "__main__":
    main()
