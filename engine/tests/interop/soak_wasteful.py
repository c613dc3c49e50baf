"""What takes too long for the suite: refusals in the hundred thousands, and what an attack costs
that honest calls look like. Run by tools/soak.sh."""

import collections
import http.client
import os
import sys
import tempfile
import time
from pathlib import Path

from conftest import TRAILERS_ONLY
from fakeworker import FakeWorker
from gateway import FUNCTION, Gateway, credentials, dead_port, grpc_head, until
from rawh2 import (END_HEADERS, END_STREAM, GOAWAY, HEADERS, RST_STREAM, frame, rst_stream)


def refused_dials(directory):
    """100 000 requests to a server that refuses TCP, half of them over each HTTP version."""
    with Gateway.serve(directory, dial=f"127.0.0.1:{dead_port()}") as running:
        files, ports, start = running.open_files(), used_ports(), time.monotonic()
        seen = collections.Counter()
        kept = http.client.HTTPConnection(*running.client, timeout=30)
        for _ in range(50_000):
            kept.request("GET", "/x", headers=dict(credentials()))
            answer = kept.getresponse()
            answer.read()
            seen[answer.status] += 1
        with running.h2() as peer:
            for _ in range(50_000):
                seen[peer.head(peer.open(grpc_head(), end_stream=True)).grpc_status] += 1
        lines, seconds = len(running.log_lines()), time.monotonic() - start
        print(f"{dict(seen)} in {seconds:.0f} s, {lines} log lines, files {files} -> "
              f"{running.open_files()}, ports in use {ports} -> {used_ports()}")
        assert seen == {503: 50_000, "14": 50_000}
        assert lines <= 40 + seconds and used_ports() <= ports + 100
        kept.close()
        until(lambda: running.open_files() <= files, what="no descriptors left open")


def used_ports():
    """TCP sockets of this network namespace in any state."""
    return sum(len(Path(f"/proc/net/{table}").read_text().splitlines()) for table in ("tcp", "tcp6"))


def short_deadlines(directory):
    """A thousand calls a second, each cancelled after 150 ms, for ten seconds."""
    with Gateway.serve(directory) as running, FakeWorker(running) as worker:
        client, tunnel, block = attached(running, worker)
        waiting, start = collections.deque(), time.monotonic()
        for n in range(1_000):
            time.sleep(max(0, start + n / 100 - time.monotonic()))
            sent = b""
            while waiting and waiting[0][0] <= time.monotonic():
                sent += b"".join(map(rst_stream, waiting.popleft()[1]))
            streams = range(client.next_stream, client.next_stream + 20, 2)
            client.next_stream += 20
            client.send(sent, *(frame(HEADERS, END_HEADERS, sid, block) for sid in streams))
            waiting.append((time.monotonic() + 0.15, streams))
            tunnel.drain_now()
        client.round_trip()
        gone = [event for event in client.events if event.kind == GOAWAY]
        print(f"{10_000 - 10 * len(waiting)} calls cancelled, {len(gone)} GOAWAY")
        assert not gone


def patient_resets(directory):
    """10 000 streams that are open for 101 ms and then reset, against as many that finish."""
    with Gateway.serve(directory) as running, FakeWorker(running) as worker:
        client, tunnel, block = attached(running, worker)
        answer = [tunnel.block_of(TRAILERS_ONLY) for _ in range(4)][-1]
        spent = {"finished": [], "reset": []}
        for _ in range(5):
            for shape, times in spent.items():
                streams = range(client.next_stream, client.next_stream + 19_000, 2)
                client.next_stream += 19_000
                before = cpu(running.pid)
                for at in range(0, len(streams), 500):
                    client.send(b"".join(frame(HEADERS, END_HEADERS | END_STREAM, sid, block)
                                         for sid in streams[at:at + 500]))
                    tunnel.drain_now()
                asked = [tunnel.wait(HEADERS, timeout=60).stream for _ in streams]
                time.sleep(0.101)
                if shape == "finished":
                    for at in range(0, len(asked), 500):
                        tunnel.send(b"".join(frame(HEADERS, END_HEADERS | END_STREAM, sid, answer)
                                             for sid in asked[at:at + 500]))
                        client.drain_now()
                    for _ in streams:
                        client.wait(HEADERS, timeout=60)
                else:
                    client.send(b"".join(map(rst_stream, streams)))
                    for _ in streams:
                        tunnel.wait(RST_STREAM, timeout=60)
                client.round_trip()
                times.append(cpu(running.pid) - before)
        assert not [event for event in client.events if event.kind == GOAWAY]
        finished, reset = map(sum, spent.values())
        print(f"CPU of 5 times 9 500 calls: finished {finished:.2f} s, reset {reset:.2f} s")
        # The clock ticks in hundredths.
        assert reset <= finished * 1.1 + 0.05


def attached(gateway, worker):
    """A client and a tunnel, and a request head that can be sent again and again."""
    client = gateway.h2()
    client.open(grpc_head(function=FUNCTION))
    tunnel = worker.take()[1]
    tunnel.headers(tunnel.wait(HEADERS).stream, TRAILERS_ONLY, end_stream=True)
    block = [client.block_of(grpc_head()) for _ in range(4)][-1]
    return client, tunnel, block


def cpu(pid):
    """Seconds of CPU that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        {"refused-dials": refused_dials, "short-deadlines": short_deadlines,
         "patient-resets": patient_resets}[sys.argv[1]](scratch)
