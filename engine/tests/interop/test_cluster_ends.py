"""Gateways of a cluster that end, as they are told or by SIGKILL, under load: who has nothing to do with
them notices nothing, and who has is told at once."""

import re
import subprocess
import time

import pytest

import grpcserver
from cluster_acts import Survivors, kill, replace, start_apart
from cluster_bed import Bed, within
from cluster_load import Users
from gateway import VERSION, binary, until
from nvcf_bed import SCRIPT
from nvcf_load import (DATA, END_STREAM, HEADERS, PATIENCE, RST_STREAM, Line, Load, Lost, block,
                       frame)
from nvcf_stage import IDLE

pytestmark = pytest.mark.alone
# SIGKILLs of one gateway, one after the other.
KILLS = 50
# After one the others take new sessions as ever when so many seconds are over. What belonged to the dead
# one is told at once: how soon is measured, and never is later than this.
BACK_WITHIN, TOLD_WITHIN = 2, 30
PARKS = {"RINGWAY__SESSION__PARK": "auto"}


@pytest.fixture(scope="module")
def rig(tmp_path_factory):
    script = {**SCRIPT, "function": SCRIPT["function"] + [{"id": IDLE, "version": [{"id": IDLE}]}]}
    with grpcserver.Server(name="one") as server, \
            Bed(tmp_path_factory.mktemp("ends"), script=script) as bed:
        bed.server = "127.0.0.1", server.port
        for version in (VERSION, IDLE):
            bed.make_streams(version)
        bed.crew = bed.worker(f"127.0.0.1:{server.port}", slots=512)
        bed.nats = bed.client()
        yield bed


@pytest.fixture
def three(rig):
    """Three gateways whose callbacks go anywhere. Whoever goes by FIN leaves nothing behind."""
    for node in rig.running():
        node.stop()
    rig.start_all(**PARKS)
    return rig


def test_gateways_are_replaced_one_after_another(rig, measure):
    """Every session is relayed, and no call fails: who is told to leave leaves."""
    start_apart(rig)
    watch = rig.watch()
    users = Users(rig.front, callers=20, rate=100, streams=20)
    try:
        until(lambda: sum(users.told.streams.values()) >= 20, what="streams")
        relayed, let_in = watch.callbacks()
        assert relayed == let_in > 0, (relayed, let_in)
        took = [replace(rig, number) for number in range(3)]
    finally:
        users.close()
    told = users.mark()
    measure(f"{sum(told.calls.values())} calls, {sum(told.streams.values())} streams, asked once "
            f"more {dict(told.repeated)}; a gateway took {max(took):.1f} s to leave")
    assert not told.failures, told.failures[:5]
    assert set(told.calls) == set(told.streams) == {"0"}, (told.calls, told.streams)


def test_a_drain_can_be_watched(three):
    """`ringway drain --wait` says what is left, why and for how long at most; and how it ended."""
    for node, goes_on in ((three.nodes[0], False), (three.nodes[1], True)):
        sessions = Sessions(three, 0 if node is three.nodes[0] else 1, through=2, count=2)
        run = subprocess.Popen([*node.host.launcher, *binary(), "drain", "--wait"], text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        try:
            heard = []
            while "waits for 2 streams of 2 sessions" not in (heard or [""])[-1]:
                heard.append(run.stdout.readline())
                assert heard[-1], (heard, run.stderr.read())
            assert any("until balancers have noticed" in line for line in heard), heard
            assert re.search(r"\d+ s more at most", heard[-1]), heard
            if goes_on:
                # They were told to leave, and end what they have begun.
                sessions.go_on()
            out, err = run.communicate(timeout=60)
            assert run.returncode == (0 if goes_on else 1), (out, err)
            assert ("has ended, after" in out) == goes_on, (out, err)
            assert ("cut off 2 streams of 2 sessions" in err) != goes_on, (out, err)
        finally:
            run.kill()
            sessions.load.close()
        assert node.exit_code(30) == 0, node.log_tail()


class Sessions:
    """Some of a gateway whose callbacks were led to one; each has a stream that is open."""

    def __init__(self, bed, node, through, count=3):
        bed.balancer.leads("callbacks", through)
        self.load = Load(bed.nodes[node].client, bed.server)
        self.lines = [self.load.do(self.open()) for _ in range(count)]
        bed.balancer.leads("callbacks")

    async def open(self):
        line = await Line.open(self.load.address)
        line.ask(block(path="BidiStream"), flags=0)
        while (await line.next_frame())[0] != DATA:
            pass
        return line

    def told(self, within):
        """How each stream ends, by its gateway or as its connection does."""
        return [self.load.do(self.end(line), within) for line in self.lines]

    async def end(self, line):
        try:
            while True:
                kind, flags, _, payload = await line.next_frame()
                if kind == RST_STREAM:
                    return f"reset with {int.from_bytes(payload, 'big')}"
                if flags & END_STREAM and kind == HEADERS:
                    return "trailers"
        except Lost:
            return "its connection ended"

    def go_on(self):
        """Each stream ends as its client wants."""
        for line in self.lines:
            line_end = frame(DATA, END_STREAM, line.stream)
            self.load.loop.call_soon_threadsafe(line.writer.write, line_end)
        return self.told(PATIENCE)


def test_a_killed_gateway_takes_nothing_of_others_along(three, measure):
    untouched, relayed, owned = (Sessions(three, *of) for of in ((0, 1), (0, 2), (2, 0)))
    running = Load(three.nodes[1].client, three.server, running=10, calls=40, fresh=5)
    three.balancer.leads("callbacks", 0)
    running.begin()
    three.balancer.leads("callbacks")
    three.all_ready()
    try:
        visits = three.crew.log_text().count("session ended")
        three.nodes[2].kill()
        killed = time.monotonic()
        told = relayed.told(TOLD_WITHIN), owned.told(TOLD_WITHIN)
        told_after = time.monotonic() - killed
        within(TOLD_WITHIN, lambda: three.crew.log_text().count("session ended") >= visits + 6,
               "the slots")
        slots = time.monotonic() - killed
        time.sleep(max(0, killed + BACK_WITHIN - time.monotonic()))
        running.do(running.all_ended())
        lost = running.mark()
        assert not lost.failures, lost.failures[:5]
        until(lambda: running.fresh["0"] >= 10, what="new sessions")
        seen = running.mark()
        assert set(seen.fresh) == {"0"}, (seen.fresh, seen.strange[:5])
        assert not seen.failures, seen.failures[:5]
        assert set(untouched.go_on()) == {"trailers"}
        measure(f"all told after {told_after:.2f} s, slots free after {slots:.2f} s; who was relayed "
                f"was told {set(told[0])}, who was owned {set(told[1])}; new sessions in the "
                f"{BACK_WITHIN} s: {dict(lost.fresh)}")
    finally:
        for load in (untouched.load, relayed.load, owned.load, running):
            load.close()


def test_nothing_grows_in_the_others(three, measure):
    """One is killed again and again, with a client that waits for a worker there; what it had queued is
    taken back, and the others hold what they held."""
    load = Load(three.nodes[0].client, three.server, running=10, calls=40, fresh=5)
    three.balancer.leads("callbacks", 0, 1)
    load.begin()
    three.balancer.leads("callbacks")
    three.all_ready()
    try:
        survivors = Survivors([three.nodes[0], three.nodes[1]])
        for _ in range(KILLS):
            kill(three, three.nats, 2, **PARKS)
        seen = load.mark()
        assert not seen.failures, seen.failures[:5]
        survivors.settle(three.nats)
        lines, grown = survivors.figures()
    finally:
        load.close()
    for line in lines:
        measure(f"{KILLS} kills: {line}")
    measure(f"new sessions meanwhile {dict(seen.fresh)}")
    assert not grown, grown
