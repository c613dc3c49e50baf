"""An honest client beside an attack, in a process of its own so that the attacker's Python
never delays its clock. It calls the echo function again and again (and sends a PING now and
then); an answer that is wrong or missing ends it. It prints a line when it has begun and another
when it was ANSWERS times answered, and at the end, as JSON, how long it waited each time, in
milliseconds, and how much of that it or the gateway was runnable and the machine was busy with
something else: that much is not the gateway's doing.

    python bystander.py HOST PORT call|ping GATEWAY_PID     runs until its standard input closes
"""

import json
import os
import select
import socket
import sys
import time

import echo
import rawh2
from gateway import grpc_head

ANSWERS = 5


def call(peer, body):
    stream = peer.open(grpc_head())
    peer.data(stream, body, end_stream=True)
    head = peer.head(stream)
    assert head.status == "200", head
    octets, trailers = peer.body(stream)
    assert octets == body and trailers.grpc_status == "0", (octets, trailers)


def queued(files):
    """Milliseconds that these threads were ready to run and did not."""
    total = 0
    for file in files:
        file.seek(0)
        total += int(file.read().split()[1])
    return total / 1e6


def main():
    host, port, kind, pid = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]
    threads = [f"/proc/{pid}/task/{tid}/schedstat" for tid in os.listdir(f"/proc/{pid}/task")]
    files = [open(path) for path in ("/proc/self/schedstat", *threads)]
    peer = rawh2.Peer(socket.create_connection((host, port), 10), client=True)
    peer.ack_of_settings()
    body = echo.message(b"are you still there?")
    if kind == "call":
        call(peer, body)
    print("running", flush=True)
    waits, rounds = [], 0
    # PINGs are rationed by the gateway, and rightly: 25 a second.
    while not select.select([sys.stdin], [], [], 0.004 if kind == "call" else 0.04)[0]:
        peer.events.clear()
        before, start = queued(files), time.monotonic()
        if kind == "ping" or rounds % 16 == 0:
            peer.round_trip(timeout=60)
        else:
            call(peer, body)
        took = (time.monotonic() - start) * 1000
        waits.append((took, min(took, queued(files) - before)))
        rounds += 1
        if rounds == ANSWERS:
            print("answered", flush=True)
    print(json.dumps(waits))


if __name__ == "__main__":
    main()
