"""A gateway in `nvcf` mode under load, with all that it stands between in reach of a test: so that
something can go wrong there, and whoever has nothing to do with it is seen to notice nothing."""

import collections
import contextlib
import re
import socket
import threading
import time
import uuid
from urllib.parse import unquote, urlsplit

import grpcserver
import nvcf_messages as messages
from fakeworker import Line, connect_head
from gateway import METRIC, VERSION, free_port, grpc_head, until
from nats_rig import REGION, NatsServer
from nvcf_bed import SCRIPT, A, Bed
from nvcf_load import Load, block

LOOKUPS = "stateful_session_lookup_ncp"
# Registrations that there is room for: few, so that it can be filled.
REGISTRATIONS = 600
RUNNING, PARKED = 50, 50
# How long clients wait for a worker: longer than an acknowledgement may take (contract NT-2).
WAIT = 7
# How long those of the second gateway do.
HASTY_WAIT = 1
# A parked session yields to a new one that has waited for so long. Here it yields to none, because
# what waits for NATS waits longer.
YIELD = 4
# Lines of a kind are a second apart at least: what is to be seen in the log begins after so long.
LINES_APART = 1.1
# What is answered at once is answered within so many seconds, on the slowest machine.
AT_ONCE = 3


def numbered(number):
    return f"{number:08d}-bbbb-4bbb-8bbb-bbbbbbbbbbbb"


# Functions, each with a version of its own id: nobody takes its work; the test plays its worker; it
# has no stream; room for one message; a stream that acknowledges nothing; the account may not
# publish to it; its sessions are limited.
IDLE, PLAYED, NO_STREAM, FEW, MUTE, DENIED, LIMITED = map(numbered, range(1, 8))
REFUSALS = (16, 7, 5, 3, 14)
PLAY = {
    "api": SCRIPT["api"],
    "key": SCRIPT["key"] + [
        {"token": f"status-{code}", "subject": "s", "nca": "n",
         "trouble": [{"status": code, "message": f"because {code}"}]} for code in REFUSALS] + [
        {"token": "slow", "subject": "s", "nca": "nca-slow", "trouble": [{"delay_ms": 1500}]},
        {"token": "silent", "subject": "s", "nca": "n", "trouble": [{"delay_ms": 3_600_000}]}],
    "function": SCRIPT["function"] + [
        *({"id": id, "version": [{"id": id}]} for id in (IDLE, PLAYED, NO_STREAM, FEW, MUTE,
                                                         DENIED)),
        {"id": LIMITED, "version": [{"id": VERSION, "rate_limit": True, "sync_check": True}]}],
    "limiter": SCRIPT["limiter"],
}

Told = collections.namedtuple("Told", "code text took")


class Wire:
    """What a TCP connection goes through to a server: it can be cut, and what the server says can
    be held up."""

    def __init__(self, target):
        self.target = target
        self.flows = threading.Event()
        self.flows.set()
        self.pairs = []
        self.listener = None
        self.port = free_port()
        self.mend()

    def mend(self):
        self.listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self.serve, args=(self.listener,), daemon=True).start()

    def serve(self, listener):
        while True:
            try:
                client, _ = listener.accept()
                server = socket.create_connection(self.target)
            except OSError:
                if self.listener is not listener:
                    return
                with contextlib.suppress(OSError, UnboundLocalError):
                    client.close()
                continue
            # What the server says is not stored on the way.
            server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
            pair = (client, server)
            self.pairs.append(pair)
            for source, sink, held in ((client, server, False), (server, client, True)):
                threading.Thread(target=self.carry, args=(source, sink, held), daemon=True).start()

    def carry(self, source, sink, held):
        with contextlib.suppress(OSError):
            while True:
                if held:
                    self.flows.wait()
                octets = source.recv(65_536)
                if not octets:
                    break
                if held:
                    self.flows.wait()
                sink.sendall(octets)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def cut(self):
        """Refuses connections from now on, and ends those there are."""
        listener, self.listener = self.listener, None
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        for pair in self.pairs:
            for end in pair:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
                end.close()
        self.pairs.clear()

    def hold_up(self):
        """What the server says goes no further."""
        self.flows.clear()

    def let_go(self):
        self.flows.set()

    def kill(self):
        self.let_go()
        if self.listener:
            self.cut()


class Watch:
    """What the metrics and the log of a gateway say from now on."""

    def __init__(self, gateway):
        self.gateway = gateway
        self.before = gateway.metrics()
        self.offset = gateway.log_path.stat().st_size

    def moved(self, name, **labels):
        """By how much the series have moved, all that have these labels together."""
        return total(self.gateway.metrics(), name, labels) - total(self.before, name, labels)

    def log(self):
        with open(self.gateway.log_path, "rb") as log:
            log.seek(self.offset)
            return log.read().decode(errors="replace")

    def says(self, *texts, timeout=20):
        """Waits until a line of the log has all these texts."""
        return until(lambda: next((line for line in self.log().splitlines()
                                   if all(text in line for text in texts)), None),
                     timeout, what=f"a line with {texts}")

    def counts(self, least, name, timeout=20, **labels):
        """Waits until the series have moved so far."""
        until(lambda: self.moved(name, **labels) >= least, timeout, every=0.05,
              what=f"{name} {labels} by {least}")


def total(samples, name, labels):
    found = 0
    for series, value in samples.items():
        base, _, rest = series.partition("{")
        if base in (name, METRIC + name):
            has = dict(re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', rest))
            if labels.items() <= has.items():
                found += value
    return found


class Taken:
    """Work that the test has taken as a worker does."""

    def __init__(self, nats, message):
        self.nats, self.acknowledges = nats, message.reply
        work = messages.Work.FromString(message.data)
        config, = work.statefulConfig.connectionConfigs
        self.request_id, self.uri = work.requestId, urlsplit(config.http1Config.proxyURI)
        self.token = config.http1Config.proxyAuthorizationToken

    def dial(self):
        """CONNECT; the answer's status, and the connection."""
        line = Line((self.uri.hostname, self.uri.port))
        line.send(connect_head(self.token, self.request_id, self.uri.path))
        return line.answer(body=False).status, line

    def done(self):
        self.nats.do(self.nats.client.publish(self.acknowledges, b"+ACK"))


class Stage:
    """A bed with two gateways: one under load, and one whose clients do not wait long. `stopped`:
    for how many seconds NATS is stopped."""

    def __init__(self, directory, stopped=6, calls=100):
        self.stopped = stopped
        self.server = grpcserver.Server(name="one")
        # A client that takes nothing for a second is slow.
        self.bed = bed = Bed(directory, PLAY, nats=lambda where, more: NatsServer(
            where, more=more + '\nwrite_deadline: "1s"'))
        self.nats = bed.client()
        self.wire = bed.add(Wire(("127.0.0.1", bed.nats_server.port)))
        limiter = urlsplit(bed.stand_in.url("limiter"))
        self.limiter = bed.add(Wire((limiter.hostname, limiter.port)))
        self.make_streams()
        bed.worker(f"127.0.0.1:{self.server.port}", slots=256)
        common = {"RATE_LIMIT_ADDR": f"http://127.0.0.1:{self.limiter.port}",
                  "RINGWAY__SESSION__PARK_WINDOW": "6h",
                  "RINGWAY__SESSION__PARK_YIELD": f"{YIELD}s"}
        self.gateway = bed.ready_gateway(**common, NATS_FQDN=f"nats://127.0.0.1:{self.wire.port}",
                                         RINGWAY__SESSION__WAIT=f"{WAIT}s")
        self.hasty = bed.ready_gateway(**common, RINGWAY__SESSION__WAIT=f"{HASTY_WAIT}s")
        self.load = Load(self.gateway.client, ("127.0.0.1", self.server.port), RUNNING, calls)
        self.load.begin()
        self.load.park(PARKED)
        self.all_parked()
        self.load.mark()
        self.next_back = 0

    def make_streams(self):
        """What NVIDIA's control plane makes, and a small stream of registrations unless there is
        one."""
        for version in (VERSION, IDLE, PLAYED, MUTE, DENIED):
            self.bed.make_streams(version)
        self.bed.make_streams(FEW, "--messages", "1")
        self.acknowledge(False)
        self.nats.js(
            f"STREAM.CREATE.{LOOKUPS}", name=LOOKUPS, storage="memory", retention="limits",
            subjects=[f"stateful_session.lookup.{REGION}.>"], discard="new",
            max_msgs=REGISTRATIONS, max_msgs_per_subject=1, max_age=3_600_000_000_000,
            num_replicas=1, allow_direct=True)

    def acknowledge(self, does):
        stream = f"rq_{REGION}_{MUTE}"
        config = self.nats.js(f"STREAM.INFO.{stream}")["config"]
        answer = self.nats.js(f"STREAM.UPDATE.{stream}", **{**config, "no_ack": not does})
        assert "error" not in answer, answer

    # --- clients, and a worker that the test plays -------------------------------------------

    def ask(self, gateway=None, **who):
        """What a call on a connection of its own comes to."""
        began = time.monotonic()
        code, text = self.load.do(self.load.ask((gateway or self.gateway).client, block(**who)))
        return Told(code, unquote(text), time.monotonic() - began)

    def serves(self, gateway=None, timeout=30, **who):
        """Waits until a call goes through."""
        return until(lambda: self.ask(gateway, **who).code == "0", timeout, every=0.1,
                     what="a call that goes through")

    def ask_until_said(self, watch, *texts, **who):
        """The same, asked as often as it takes until the log has a line about it: lines of a kind
        are a second apart at least."""
        def said():
            told.append(self.ask(**who))
            return any(all(text in line for text in texts) for line in watch.log().splitlines())
        told = []
        until(said, every=0.3, what=f"a line with {texts}")
        return told

    @contextlib.contextmanager
    def waiting(self, version, gateway=None):
        """A client that waits for a worker."""
        with (gateway or self.gateway).h2() as peer:
            stream = peer.open(grpc_head(key=A, function=version), end_stream=True)
            yield peer, stream

    def take(self, version=PLAYED):
        """Work, as soon as there is some."""
        stream, inbox = f"rq_{REGION}_{version}", f"_INBOX.played.{uuid.uuid4().hex}"
        heard = self.nats.listen(inbox)
        self.nats.do(self.nats.client.publish(
            f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{stream}_workers", b"1", inbox))
        return Taken(self.nats, heard.next())

    def is_empty(self, version, timeout=20):
        until(lambda: self.nats.messages(f"rq_{REGION}_{version}") == 0, timeout,
              what=f"no work of {version}")

    def tokens_shown(self):
        """What both gateways show to the API now."""
        self.bed.stand_in.reset()
        assert self.ask().code == self.ask(self.hasty).code == "0"
        return set(self.bed.stand_in.counts("api")["by"]["bearer"])

    # --- what others notice -------------------------------------------------------------------

    def all_parked(self):
        until(lambda: total(self.gateway.metrics(), "ringway_parked_tunnels", {}) == PARKED,
              every=0.05, what="all are parked")

    def passes(self, fault):
        """Brings a fault about and mends it: nobody notices but new sessions, as it allows."""
        self.load.mark()
        allowed = fault(self) or set()
        # What began while it was there has to come to its end.
        self.load.do(self.load.all_ended(), timeout=2 * WAIT + 20)
        until(lambda: self.load.calls >= RUNNING, what="a call of each session that runs")
        seen = self.load.mark()
        assert not seen.failures, seen.failures[:5]
        assert set(seen.fresh) <= {"0"} | allowed, (seen.fresh, seen.strange[:5])
        assert seen.fresh["0"], (seen.fresh, seen.strange[:5])
        self.one_comes_back()
        assert self.gateway.alive() and self.hasty.alive()
        return seen

    def one_comes_back(self):
        self.all_parked()
        watch = Watch(self.gateway)
        self.load.come_back(self.load.parked[self.next_back % PARKED])
        self.next_back += 1
        self.all_parked()
        moved = watch.moved("ringway_resumes_total", way="memory")
        assert moved == 1, f"{moved} came back to what was kept"

    def everybody_comes_back(self):
        for session in self.load.parked:
            self.load.come_back(session)
        self.all_parked()

    def close(self):
        self.load.close()
        self.bed.close()
        self.server.grpc.stop(0)
