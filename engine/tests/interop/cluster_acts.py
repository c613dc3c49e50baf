"""What is done to a cluster, shortly in the suite and for long by `tools/soak.sh`: clients come back at any
gateway, gateways are replaced one after another, one is killed again and again."""

import contextlib
import time

from cluster_bed import APART, table_sizes
from gateway import grpc_head, until
from nvcf_bed import A
from nvcf_load import Load
from nvcf_stage import IDLE
from rawh2 import DATA

# What the survivors of a killed gateway may hold more than before: what is under way then.
UNDER_WAY = 12


def publishes(nats):
    """Subscriptions that hear every message to workers."""
    return [nats.listen(subject) for subject in
            ("rq.>", "llsrq.>", "stateful_session.reconnect.>")]


@contextlib.contextmanager
def nothing_is_asked(bed, nats):
    """Meanwhile no worker is told anything, and NVIDIA's API is not asked."""
    watch, calls, heard = bed.watch(), bed.stand_in.counts("api")["calls"], publishes(nats)
    yield watch
    assert watch.nothing_new() == (0, 0), watch.nothing_new()
    assert bed.stand_in.counts("api")["calls"] == calls
    assert all(inbox.messages.empty() for inbox in heard)


def parked_everywhere(bed):
    return sum(node.metric("ringway_parked_tunnels") for node in bed.running())


def returns(bed, nats, direct, sessions, count):
    """So many times a lost client comes back wherever the balancer leads it; how many were relayed."""
    load = Load(bed.front, direct)
    try:
        load.park(sessions)
        until(lambda: parked_everywhere(bed) == sessions, what="all are parked")
        with nothing_is_asked(bed, nats) as watch:
            for turn in range(count):
                load.come_back(load.parked[turn % sessions])
                until(lambda: parked_everywhere(bed) == sessions, what="it is parked again")
        assert watch.moved("ringway_resumes_total", way="memory", outcome="ok") == count
        return watch.moved("ringway_relays_total", cause="client", outcome="relayed")
    finally:
        load.close()


def apart(bed, number):
    """The workers of a gateway call back at the next one: each of its sessions is relayed."""
    return {"SELF_WORKER_FQDN": f"http://{bed.hub}:{APART + number}"}


def start_apart(bed):
    """All gateways anew, each callback at the next one."""
    for number in range(len(bed.lan.hosts)):
        if number in bed.nodes:
            bed.nodes[number].stop()
        bed.start(number, **apart(bed, number))
    bed.all_ready()


def replace(bed, number):
    """A rolling update's step: SIGTERM, and when it has ended another one takes its place. How long it
    took to end."""
    old = bed.nodes[number]
    began = time.monotonic()
    old.signal()
    assert old.exit_code(30) == 0, old.log_tail()
    took = time.monotonic() - began
    bed.again(number, **apart(bed, number))
    bed.all_ready()
    return took


def kill(bed, nats, number, **changes):
    """SIGKILL, with one client that waits for a worker there and one that is served, and another process
    in its place."""
    victim = bed.nodes[number]
    with victim.h2() as waits, victim.h2() as served:
        waits.open(grpc_head(key=A, function=IDLE), end_stream=True)
        stream = served.open(grpc_head(key=A, path="/ringway.echo.v1.Echo/BidiStream"))
        served.data(stream, b"\0\0\0\0\0")
        served.head(stream)
        served.wait(DATA, stream)
        until(lambda: nats.messages(f"rq_ncp_{IDLE}"), what="its work")
        victim.kill()
    bed.again(number, **changes)


class Survivors:
    """What gateways hold before and after others were killed."""

    def __init__(self, nodes):
        self.nodes = nodes
        self.before = [(node.rss(), table_sizes(node)) for node in nodes]

    def settle(self, nats):
        """What the dead had queued is taken back."""
        until(lambda: nats.messages(f"rq_ncp_{IDLE}") == 0, timeout=60, every=0.2,
              what="no work of the dead")

    def figures(self):
        """A line for each, and what has grown."""
        lines, grown = [], []
        for node, (rss, sizes) in zip(self.nodes, self.before):
            now = table_sizes(node)
            lines.append(f"{rss / 2**20:.1f} to {node.rss() / 2**20:.1f} MiB, descriptors "
                         f"{sizes['descriptors']} to {now['descriptors']}, entries of tables "
                         f"{sum(sizes.values()):.0f} to {sum(now.values()):.0f}")
            grown += [f"{name}: {sizes.get(name, 0)} to {value}" for name, value in now.items()
                      if value > sizes.get(name, 0) + UNDER_WAY]
        return lines, grown
