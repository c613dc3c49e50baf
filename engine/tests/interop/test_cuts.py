"""Clients that are lost again and again, by the hundred: each comes back to its own worker, none
to another's, and in the end nothing is left of them. The rate is what the machine makes of it;
nothing here depends on time."""

import json
import os
import queue
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import rawh2
from cable import Cable
from comeback import KEPT, count, dispatched, nothing_is_left, parked, resumes
from gateway import grpc_head, until
from rawh2 import goaway, rst_stream

pytestmark = pytest.mark.alone
HERE = Path(__file__).parent
ROOM = "[limits]\nparked_tunnels = 10000\nparked_per_tenant = 10000"
EVERY = 0.01  # a cut each, if the machine keeps up
MINUTE = 60
# How long it is cut in the suite, and by `tools/soak.sh cuts`.
LASTS = MINUTE if os.environ.get("RINGWAY_TEST_LONG_CUTS") else 10


class Fleet:
    """`fleet.py` as a process."""

    def __init__(self, gateway, size, address=None):
        self.run = subprocess.Popen(
            [sys.executable, str(HERE / "fleet.py"), *map(str, address or gateway.worker),
             str(size)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        line = self.run.stdout.readline()
        assert line == "ready\n", f"{line!r} {self.run.stderr.read()}"

    def report(self):
        out, err = self.run.communicate(timeout=100)
        assert self.run.returncode == 0, err
        return json.loads(out)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.run.poll() is None:
            self.run.kill()
        self.run.wait()


class Guest:
    """A client with a session, wherever it is just now."""

    def __init__(self, number):
        self.number = number
        self.session = self.worker = self.tunnel = self.peer = self.held = None
        self.back = Counter()

    def arrive(self, sock):
        """Connects, by its id if it has one, asks whose worker it is on, and opens a stream that
        stays open."""
        peer = rawh2.Peer(sock, client=True)
        tag = [("x-guest", str(self.number))]
        stream = peer.open(grpc_head(reqid=self.session, extra=tag), end_stream=True)
        head = peer.head(stream, timeout=200)
        seen = head.get("nvcf-reqid"), head.get("x-worker")
        assert seen[0] and head.get("x-given") == seen[0], f"{self}: {head}\n{peer.transcript()}"
        if self.session:
            assert seen == (self.session, self.worker), f"{self} was given {seen}"
            self.back["same tunnel" if self.tunnel == head.get("x-tunnel") else "another"] += 1
        (self.session, self.worker), self.tunnel = seen, head.get("x-tunnel")
        stream = peer.open(grpc_head(extra=[*tag, ("x-hold", "1")]))
        head = peer.head(stream, timeout=200)
        assert head.get("x-worker") == self.worker and not head.end_stream, f"{self}: {head}"
        self.peer, self.held = peer, stream

    def cut(self, how):
        """Lost with a stream open."""
        if how == "rst":
            self.peer.abort()
        else:
            self.peer.close()

    def leave(self):
        """For good, and saying so."""
        self.peer.send(rst_stream(self.held), goaway())
        self.peer.close()

    def __str__(self):
        return f"guest {self.number} of session {self.session}, {self.worker}"


class Ward:
    """Cuts guests off and lets them come back, some at once and some later, and keeps what went
    wrong."""

    def __init__(self, gateway, guests, hands=8):
        self.gateway, self.there = gateway, guests
        self.lock, self.due, self.failures = threading.Lock(), queue.PriorityQueue(), []
        self.cuts, self.away, self.dice = 0, 0, random.Random(5)
        self.hands = [threading.Thread(target=self.fetch_back) for _ in range(hands)]
        for hand in self.hands:
            hand.start()

    def cut_one(self):
        with self.lock:
            if not self.there:
                return False
            at = self.dice.randrange(len(self.there))
            self.there[at], self.there[-1] = self.there[-1], self.there[at]
            guest = self.there.pop()
            self.away += 1
        guest.cut(self.dice.choice(("rst", "fin")))
        self.cuts += 1
        # At once, which may be before the gateway has noticed; soon; or late.
        pause = self.dice.choice((0, 0, self.dice.random() / 10, self.dice.random() * 5))
        self.due.put((time.monotonic() + pause, self.cuts, guest))
        return True

    def fetch_back(self):
        while True:
            at, _, guest = self.due.get()
            if guest is None:
                return
            time.sleep(max(0, at - time.monotonic()))
            try:
                guest.arrive(self.gateway.client_socket(60))
            except BaseException as error:
                self.failures.append(f"{guest}: {error!r}"[:4_000])
                with self.lock:
                    self.away -= 1
                continue
            with self.lock:
                self.there.append(guest)
                self.away -= 1

    def all_back(self):
        until(lambda: not self.away or self.failures, timeout=200, what="everybody back")
        for n, _ in enumerate(self.hands):
            self.due.put((float("inf"), self.cuts + 1 + n, None))
        for hand in self.hands:
            hand.join(200)
        assert not self.failures, f"{len(self.failures)} of {self.cuts}, e.g. {self.failures[0]}"


def settle(gateway, guests):
    """Everybody's first session."""
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda guest: guest.arrive(gateway.client_socket(60)), guests))
    assert len({guest.worker for guest in guests}) == len(guests), "two are on one worker"
    assert len({guest.session for guest in guests}) == len(guests)


def judge(gateway, fleet, guests, descriptors):
    """Everybody leaves; every worker has had one session, and nothing is left."""
    for guest in guests:
        guest.leave()
    nothing_is_left(gateway, descriptors)
    report = fleet.report()
    assert not report["strays"], report["strays"][:5]
    assert not report["refused"] and report["open"] == 0, report
    owners = {guest.worker: [guest.session] for guest in guests}
    assert {name: ids for name, ids in report["given"].items() if ids} == owners
    return report


@pytest.mark.timeout(900)
def test_five_hundred_sessions_one_cut_every_ten_milliseconds(serve, measure):
    running = serve(session=KEPT, cores=2, more=ROOM)
    descriptors = running.open_files() + 500  # each worker's poll
    with Fleet(running, 500) as fleet:
        guests = [Guest(n) for n in range(500)]
        settle(running, guests)
        assert dispatched(running) == (500, 500)
        ward = Ward(running, list(guests))
        begun = time.monotonic()
        next_cut, most = begun, 0
        # For so long, and on until everybody could have had a turn.
        while (time.monotonic() - begun < LASTS or ward.cuts < 500) and not ward.failures:
            assert time.monotonic() - begun < 10 * MINUTE, f"only {ward.cuts} cuts"
            if ward.cut_one():
                most = max(most, ward.away)
            next_cut = max(next_cut + EVERY, time.monotonic() - 1)
            time.sleep(max(0, next_cut - time.monotonic()))
        took = time.monotonic() - begun
        ward.all_back()
        ways = {way: int(resumes(running, way)) for way in ("memory", "spare", "reconnect")}
        assert sum(ways.values()) == ward.cuts, (ways, ward.cuts)
        assert ways["memory"] > 0
        back = sum((guest.back for guest in guests), Counter())
        assert back["same tunnel"] == ways["memory"], (back, ways)
        moves = count(running, "ringway_core_moves_total")
        report = judge(running, fleet, guests, descriptors)
        measure(f"{ward.cuts} cuts in {took:.0f} s ({ward.cuts / took:.0f} a second), at most "
                f"{most} away at once; back by {ways}; {moves:.0f} connections changed cores; "
                f"{report['tunnels']} tunnels for 500 sessions")


@pytest.mark.timeout(900)
def test_eight_namespaces_of_which_every_second_loses_its_link(serve, measure):
    """The clients of four hosts are killed while nothing passes, and come back from others: half
    of them while the gateway still takes the old connection for alive, half when it has noticed.
    Then the other four hosts' turn."""
    quick = ('[keepalive]\nidle = "1s"\ninterval = "1s"\nprobes = 2\nuser_timeout = "3s"\n')
    running = serve(session=KEPT, cores=2, more=f"{ROOM}\n{quick}", host="0.0.0.0",
                    advertise="127.0.0.1")
    size, port = 5, running.client[1]
    cables = []
    try:
        cables += [Cable() for _ in range(8)]
        descriptors = running.open_files() + 8 * size  # each worker's poll
        with Fleet(running, 8 * size, ("127.0.0.1", running.worker[1])) as fleet:
            guests = {at: [Guest(at * size + n) for n in range(size)] for at in range(8)}
            everybody = [guest for some in guests.values() for guest in some]
            for at, some in guests.items():
                for guest in some:
                    guest.arrive(cables[at].connect((cables[at].here, port), 60))
            rounds, lives = 4, 0
            for turn in range(rounds):
                lost = range(turn % 2, 8, 2)
                lives += sum(len(guests[at]) for at in lost)
                for at in lost:
                    cables[at].pull()
                for at in lost:
                    for guest in guests[at]:
                        guest.cut("fin")
                # From the next host on: at once, and when it is noticed.
                for late in (False, True):
                    for at in lost:
                        other = cables[(at + 1) % 8]
                        for guest in guests[at][late::2]:
                            if late:
                                parked(running, guest.session)
                            guest.arrive(other.connect((other.here, port), 60))
                for at in lost:
                    cables[at].plug()
                    guests[(at + 1) % 8] += guests[at]
                    guests[at] = []
            ways = {way: int(resumes(running, way)) for way in ("memory", "spare", "reconnect")}
            back = sum((guest.back for guest in everybody), Counter())
            assert sum(back.values()) == sum(ways.values()) == lives, (back, ways, lives)
            assert ways["memory"] and ways["reconnect"], ways
            # The old connections are noticed in the end, and their tunnels closed.
            until(lambda: count(running, "active_connections_total") == len(everybody),
                  timeout=100, what="the dead to be noticed")
            report = judge(running, fleet, everybody, descriptors)
            measure(f"{rounds} rounds, {sum(ways.values())} back by {ways}; "
                    f"{report['tunnels']} tunnels for {len(everybody)} sessions")
    finally:
        for cable in cables:
            cable.close()


def test_what_coming_back_costs(tmp_path, measure):
    """The measuring program measures; how much is not judged here."""
    from measure_resume import measure as figures
    for line in figures(tmp_path, rounds=60, parked=50, seconds=1):
        measure(line)
