"""Several gateways in `nvcf` mode, each on a host of its own, behind balancers that know nothing; on this
host are NATS, the stand-in for NVIDIA's API, the balancers, workers and clients."""

import time

import nvcf_bed
from balancer import Balancer
from gateway import until
from lan import Lan
from nats_rig import REGION, NatsServer
from nvcf_bed import SCRIPT, NvcfGateway
from nvcf_stage import Watch, total

SECRET = "the first secret of the cluster"
# Every host has its gateway at the same ports.
CLIENT, WORKER, ADMIN, RELAY = 10081, 10086, 10083, 10087
# Where the balancer leads the callbacks of node 0, 1, ... to the next one; others stand in for it.
APART = 11_000
BUCKET = f"ringway_nodes_{REGION}"
# What a gateway has to keep, in this bed, for longer than a test takes.
KEPT = {"RINGWAY__SESSION__PARK": "unclean", "RINGWAY__SESSION__PARK_WINDOW": "5m",
        "RINGWAY__SESSION__PARK_YIELD": "1h", "RINGWAY__SESSION__WAIT": "20s",
        "RINGWAY__DRAIN__DELAY": "1s", "RINGWAY__DRAIN__MAX": "10s",
        "RINGWAY__SESSION__TELL_CAUSE": "true"}


class Node(NvcfGateway):
    """A gateway on a host. Its admin port is asked from there, as whoever may know all."""

    def __init__(self, host, environment, directory, name):
        self.host = host
        super().__init__(environment, directory, name, launcher=host.launcher)

    def get(self, *arguments, **options):
        ask = super().get
        return self.host.inside(lambda: ask(*arguments, **options))

    def alive_nodes(self):
        return self.metric("ringway_nodes_alive")


class Bed(nvcf_bed.Bed):
    """`hosts`: how many there are; gateways run on them as they are asked for, in `nodes` by the
    host's number."""

    def __init__(self, directory, hosts=3, script=SCRIPT):
        self.lan = Lan(hosts)
        hub = self.hub = self.lan.hub
        self.nodes = {}
        try:
            listen = {part: f"{hub}:0" for part in ("api", "token", "limiter", "admin")}
            super().__init__(directory, {**script, "listen": listen}, nats=lambda where, more:
                             NatsServer(where, more=more, host=hub))
            self.secret = self.directory / "cluster-secret"
            self.share_secrets(SECRET)
            self.balancer = self.add(Balancer(directory, self.ways(), ADMIN))
        except BaseException:
            self.lan.close()
            raise

    def ways(self):
        fronts = [host.front for host in self.lan.hosts]
        ways = {"clients": ((self.hub, CLIENT), [(front, CLIENT) for front in fronts]),
                "callbacks": ((self.hub, WORKER), [(front, WORKER) for front in fronts])}
        for number in range(len(fronts)):
            others = fronts[number + 1:] + fronts[:number + 1]
            ways[f"apart{number}"] = (
                (self.hub, APART + number),
                [(others[0], WORKER), *((front, WORKER, "backup") for front in others[1:])])
        return ways

    def share_secrets(self, *secrets):
        """What the file says that all of them read."""
        self.secret.write_text("".join(f"{secret}\n" for secret in secrets))

    @property
    def front(self):
        """Where clients go who know of no node."""
        return self.hub, CLIENT

    def settings(self, host):
        """The environment of a gateway on the host."""
        environment = self.environment(WORKER)
        for name, port in (("CLIENT", CLIENT), ("WORKER", WORKER)):
            environment[f"RINGWAY__LISTEN__{name}"] = f"{host.front}:{port}"
        return {**environment, **KEPT,
                "SELF_WORKER_FQDN": f"http://{self.hub}:{WORKER}",
                "RINGWAY__LISTEN__ADMIN": f"0.0.0.0:{ADMIN}",
                "RINGWAY__CLUSTER__SECRET_FILE": str(self.secret),
                "RINGWAY__CLUSTER__LISTEN": f"0.0.0.0:{RELAY}",
                "RINGWAY__CLUSTER__ADDRESS": host.between}

    def start(self, number, **changes):
        """A gateway on that host; it is there, and perhaps not ready. `changes` are laid over its
        environment, None takes a variable away."""
        host = self.lan.hosts[number]
        environment = {**self.settings(host), **changes}
        environment = {k: v for k, v in environment.items() if v is not None}
        node = Node(host, environment, self.directory, f"node{number}-{len(self.started)}")
        self.nodes[number] = self.add(node)
        return node

    def start_all(self, *numbers, **changes):
        """On these hosts, or on all; each is ready, and the balancers know."""
        numbers = numbers or range(len(self.lan.hosts))
        started = [self.start(number, **changes) for number in numbers]
        self.all_ready()
        return started

    def running(self):
        return [node for node in self.nodes.values() if node.alive()]

    def all_ready(self):
        """Waits until all that run are ready and get connections."""
        for node in self.running():
            until(node.is_ready, what=f"ready: {node.log_tail()}", every=0.05)
        numbers = [number for number, node in self.nodes.items() if node.alive()]
        for way in ("clients", "callbacks"):
            self.balancer.knows(way, *numbers)

    def all_known(self, timeout=30):
        """Waits until each of those that run knows how many they are. They look every few seconds, and
        who has left counts for as long as its record would have lived."""
        for node in self.running():
            until(lambda: node.alive_nodes() == len(self.running()), timeout, every=0.1,
                  what=f"{len(self.running())} nodes known to {node.host.name}")

    def again(self, number, **changes):
        """Another process where one was."""
        node = self.start(number, **changes)
        until(node.is_ready, what=f"ready: {node.log_tail()}", every=0.02)
        return node

    def records(self, nats):
        """The keys of the bucket: the pairs of number and incarnation."""
        subjects = nats.js(f"STREAM.INFO.KV_{BUCKET}", subjects_filter=">")
        state = subjects.get("state", {})
        return sorted(subject.rsplit(".", 1)[1] for subject in state.get("subjects") or {})

    def watch(self):
        return WatchAll(self.running())

    def close(self):
        try:
            super().close()
        finally:
            self.lan.close()


class WatchAll:
    """What the metrics of gateways say from now on, all of them together."""

    def __init__(self, nodes):
        self.watches = {node: Watch(node) for node in nodes}

    def moved(self, name, at=None, **labels):
        watches = [self.watches[at]] if at else self.watches.values()
        return sum(watch.moved(name, **labels) for watch in watches)

    def counts(self, least, name, at=None, timeout=20, **labels):
        until(lambda: self.moved(name, at, **labels) >= least, timeout, every=0.05,
              what=f"{name} {labels} by {least}")

    def callbacks(self):
        """(those that were relayed, all that were let in)"""
        return (self.moved("ringway_relays_total", cause="callback", outcome="relayed"),
                self.moved("worker_connect_total", result="accepted"))

    def nothing_new(self):
        """What a session costs that is new, or that its worker is asked for again: tokens, and
        CONNECTs that were let in."""
        return (self.moved("worker_token_issued_total"),
                self.moved("worker_connect_total", result="accepted"))


def table_sizes(node):
    """What a gateway holds: descriptors, and its tables by their names."""
    samples = node.metrics()
    sizes = {"descriptors": node.open_files()}
    for name in ("ringway_parked_tunnels", "ringway_nats_unsettled_work", "ringway_relays_active",
                 "worker_connections_active", "active_connections_total"):
        sizes[name] = total(samples, name, {})
    for series, value in samples.items():
        # The timelines keep what has ended for five minutes.
        if series.startswith("ringway_limit_used{") and "trace_records" not in series:
            sizes[series.split('"')[1]] = value
    return sizes


def within(seconds, condition, what):
    """Waits for it; how long it took, which is for the record and judged by nobody but `seconds`."""
    began = time.monotonic()
    until(condition, seconds, what=what)
    return time.monotonic() - began


__all__ = ["ADMIN", "APART", "BUCKET", "Bed", "CLIENT", "Node", "RELAY", "SECRET", "WORKER",
           "table_sizes", "within"]
