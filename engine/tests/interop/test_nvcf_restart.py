"""A crowd at few slots, and a gateway in `nvcf` mode that is killed in the middle of it and started
again: the slots go on with clients who are there, not with work that nobody waits for any more."""

import collections
import os
import socket
import threading
import time

import pytest

import grpcserver
from echo import PATH, message
from gateway import VERSION, grpc_head, until
from nvcf_bed import A
from rawh2 import DATA, Closed, Peer, Silence

CLIENTS, SLOTS = 120, 20
# Of the slots' time, what at least belongs to live clients: those who have had an answer of their
# worker, and have neither ended their stream nor lost their connection.
LEAST_HELD = 0.95
# The slots' time counts from so many seconds after the gateway answers again, for so many.
SETTLING, MEASURED = 2, 20
# CONNECTs for dead work: one a slot that had work when the gateway died, and this share of those
# that were accepted.
SPOILT = 0.05
# After the last client has gone, there is no work in the stream within so many seconds.
CLEARED = 5
# Where a session takes longer, all of so many seconds count, and the gateway dies in the middle.
LONG_HOLD, LONG_MEASURED = 12, 120
# A client whose connection was refused or lost, or who was refused with anything but E12, comes
# again after so many seconds, else at once.
PAUSE = 0.1
# No client of these tests is left without an answer for so long.
PATIENCE = 150
E12 = "4"

takes_long = pytest.mark.skipif(not os.environ.get("RINGWAY_TEST_LONG_RESTARTS"),
                                reason="takes long: tools/soak.sh")


class Crowd:
    """Clients who come, open a stream, hold it for a while once its server has answered, end it,
    and come again. Raw ones in threads: they cost next to nothing while they wait."""

    def __init__(self, address, hold):
        self.address, self.hold = address, hold
        self.lock = threading.Lock()
        self.leaving = False
        self.waiting, self.holding = set(), {}
        # What they have seen: (begin, end) of each stay, longest wait for one; statuses; stays that
        # were cut short; when one of them reached the gateway first after it was away.
        self.stays, self.longest_wait = [], 0
        self.refused, self.lost = collections.Counter(), 0
        self.away_since = self.answered = None
        self.faults = []
        self.threads = [threading.Thread(target=self.comes_and_goes, daemon=True)
                        for _ in range(CLIENTS)]
        for thread in self.threads:
            thread.start()

    def comes_and_goes(self):
        try:
            while not self.leaving:
                if not self.visit() and not self.leaving:
                    time.sleep(PAUSE)
        except Exception as fault:
            self.faults.append(fault)

    def visit(self):
        """One session; whether the next one may follow at once."""
        try:
            with Peer(socket.create_connection(self.address, 30), client=True) as peer:
                peer.ack_of_settings()
                self.is_there()
                return self.stay(peer)
        except (OSError, Closed):
            return False

    def is_there(self):
        with self.lock:
            if self.away_since and not self.answered:
                self.answered = time.monotonic()

    def stay(self, peer):
        came = time.monotonic()
        stream = peer.open(grpc_head(PATH["BidiStream"], key=A))
        peer.data(stream, message(b"here"))
        with self.lock:
            if self.leaving:
                return False
            self.waiting.add(peer.sock)
        try:
            head = peer.head(stream, PATIENCE)
        finally:
            with self.lock:
                self.waiting.discard(peer.sock)
        if head.grpc_status:
            with self.lock:
                self.refused[head.grpc_status] += 1
            return head.grpc_status == E12
        peer.wait(DATA, stream)
        self.holds(peer, came)
        peer.data(stream, end_stream=True)
        trailers = peer.head(stream)
        assert trailers.grpc_status == "0", str(trailers)
        return True

    def holds(self, peer, came):
        begun = time.monotonic()
        with self.lock:
            self.holding[peer] = begun
            self.longest_wait = max(self.longest_wait, begun - came)
        try:
            while True:
                peer.pump(begun + self.hold)
        except Silence:
            pass
        except Closed:
            with self.lock:
                self.lost += 1
            raise
        finally:
            with self.lock:
                self.stays.append((begun, time.monotonic()))
                del self.holding[peer]

    def held(self, begin, end):
        """Which part of the slots' time was a live client's."""
        with self.lock:
            stays = [*self.stays, *((begun, end) for begun in self.holding.values())]
        return sum(max(0, min(end, ended) - max(begin, begun))
                   for begun, ended in stays) / (SLOTS * (end - begin))

    def fills_the_slots(self, turns=0):
        """Waits until every slot is held by one of them, and each was so many times before."""
        until(lambda: len(self.stays) >= turns * SLOTS and len(self.holding) == SLOTS,
              what="every slot taken")

    def gateway_is_gone(self):
        with self.lock:
            self.away_since = time.monotonic()

    def leave(self, patient=False):
        """Nobody comes any more. Who has a stream ends it as ever; who waits for one goes, or if
        they are `patient` has it first."""
        with self.lock:
            self.leaving = True
            for sock in () if patient else self.waiting:
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self.threads:
            thread.join(PATIENCE)
            assert not thread.is_alive(), "a client does not come to its end"
        assert not self.faults, self.faults

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if not self.leaving:
            self.leave()


class Stage:
    """A gateway, a worker with the slots, and what the gateway's death costs it."""

    def __init__(self, bed, target, **environment):
        self.bed, self.environment = bed, environment
        bed.make_streams(VERSION)
        self.nats = bed.client()
        self.worker = bed.worker(target, slots=SLOTS)
        self.gateway = bed.ready_gateway(**environment)

    def restart(self, crowd):
        """SIGKILL, and at once another one where it was."""
        old = self.gateway
        old.kill()
        crowd.gateway_is_gone()
        self.gateway = self.bed.gateway(**self.environment, **old.addresses())

    def attempts(self):
        """CONNECTs to the gateway that runs now: (accepted, rejected for whatever reason)."""
        accepted = self.gateway.metric("worker_connect_total", result="accepted")
        return accepted, self.gateway.metric("worker_connect_total") - accepted

    def is_cleared(self):
        """The request stream is empty, by what NATS says."""
        until(lambda: self.nats.queued(VERSION) == (0, 0), timeout=CLEARED,
              what=f"no work in the stream; held are {self.nats.queued(VERSION)}")

    def figures(self, crowd, held):
        accepted, rejected = self.attempts()
        away = crowd.answered - crowd.away_since
        return (f"{held:.1%} of the slots held; CONNECTs after the restart: {accepted:.0f} "
                f"accepted, {rejected:.0f} rejected; before it answered the worker gave up "
                f"{self.worker.log_text().count('could not dial back')}; it was away for "
                f"{away:.2f} s; {len(crowd.stays)} stays, {crowd.lost} lost, longest wait "
                f"{crowd.longest_wait:.1f} s, refused {dict(crowd.refused)}")


@pytest.fixture
def stage(nvcf_bed):
    with grpcserver.Server() as server:
        yield lambda **environment: Stage(nvcf_bed(), f"127.0.0.1:{server.port}", **environment)


def sleep_until(moment):
    """Time that is measured has to pass."""
    time.sleep(max(0, moment - time.monotonic()))


@pytest.mark.alone
def test_slots_go_to_the_living_after_a_kill(stage, measure):
    stage = stage()
    with Crowd(stage.gateway.client, hold=2) as crowd:
        crowd.fills_the_slots(turns=2)
        stage.restart(crowd)
        until(lambda: crowd.answered, what="an answer")
        begin = crowd.answered + SETTLING
        sleep_until(begin + MEASURED)
        crowd.leave()
    stage.is_cleared()
    held = crowd.held(begin, begin + MEASURED)
    figures = stage.figures(crowd, held)
    measure(figures)
    accepted, rejected = stage.attempts()
    assert held >= LEAST_HELD, figures
    assert rejected <= SLOTS + SPOILT * accepted, figures
    assert crowd.lost <= SLOTS and not crowd.refused, figures


@takes_long
@pytest.mark.parametrize("wait", [None, "120s"])
def test_long_stays_with_a_kill_in_the_middle(stage, measure, wait):
    """With the default wait most give up and come again; with one that is long enough all are
    served."""
    stage = stage(**({"RINGWAY__SESSION__WAIT": wait} if wait else {}))
    with Crowd(stage.gateway.client, LONG_HOLD) as crowd:
        crowd.fills_the_slots()
        begin = time.monotonic()
        sleep_until(begin + LONG_MEASURED / 2)
        stage.restart(crowd)
        sleep_until(begin + LONG_MEASURED)
        crowd.leave(patient=bool(wait))
    stage.is_cleared()
    held = crowd.held(begin, begin + LONG_MEASURED)
    figures = stage.figures(crowd, held)
    measure(figures)
    accepted, rejected = stage.attempts()
    assert held >= LEAST_HELD, figures
    assert rejected <= SLOTS + SPOILT * accepted, figures
    assert crowd.lost <= SLOTS, figures
    assert set(crowd.refused) == (set() if wait else {E12}), figures
