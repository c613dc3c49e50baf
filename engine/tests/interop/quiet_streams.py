"""Real gRPC servers and long silence: nobody is told off for its PINGs.

    python quiet_streams.py SECONDS GO_SERVER

Servers of grpcio (C++) and grpc-go with their defaults stand behind every way to a server: `dial`,
`ringway-worker`, `dev --target`. On each way one stream is silent for SECONDS, on another a
message goes there and back every 50 s; where a tunnel may be parked for so long, a third client is
lost and comes back in the end. One line each; exits 1 if one of them fails.
"""

import queue
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from concurrent import futures
from pathlib import Path

import grpc

from gateway import Gateway, credentials, grpc_head
from rawh2 import DATA
from workerprogram import WorkerProgram

KEPT = 'park_window = "2h"'
BETWEEN_MESSAGES = 50


class Echo(grpc.GenericRpcHandler):
    """Every method echoes its stream's messages."""

    def service(self, _):
        return grpc.stream_stream_rpc_method_handler(lambda messages, _: (m for m in messages))


def stream(address):
    """A stream to `address`: a function that sends, and what comes back."""
    host, port = address
    said = queue.Queue()
    channel = grpc.insecure_channel(f"{host}:{port}",
                                    options=[("grpc.use_local_subchannel_pool", 1)])
    echoed = channel.stream_stream("/t.Echo/All")(
        iter(said.get, None), metadata=credentials(), wait_for_ready=True)
    return said.put, echoed


def silent(gateway, seconds):
    send, echoed = stream(gateway.client)
    send(b"one")
    assert next(echoed) == b"one"
    time.sleep(seconds)
    send(b"two")
    assert next(echoed) == b"two"


def talking(gateway, seconds):
    send, echoed = stream(gateway.client)
    until, count = time.monotonic() + seconds, 0
    while time.monotonic() < until:
        send(b"%d" % count)
        assert next(echoed) == b"%d" % count
        count += 1
        time.sleep(BETWEEN_MESSAGES)


def call(client, reqid=None):
    """One message there and back on a stream that stays open; the session's id."""
    sid = client.open(grpc_head("/t.Echo/All", reqid=reqid))
    client.data(sid, b"\0\0\0\0\1x")
    head = client.head(sid)
    assert head.status == "200", str(head)
    client.wait(DATA, sid)
    return head.get("nvcf-reqid")


def parked(gateway, seconds):
    client = gateway.h2()
    session = call(client)
    # Its cable is cut: RST.
    client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.sock.close()
    time.sleep(seconds)
    back = gateway.h2()
    assert call(back, session) == session
    came = gateway.metric("ringway_resumes_total", way="memory", outcome="ok")
    assert came == 1, f"{came} came back to a parked tunnel"


def ways(directory, server, target):
    """(name, gateway, what is tried there) of each way to a server."""
    dialled = Gateway.serve(directory, f"{server}-dial", session=KEPT, dial=target)
    yield f"{server} by dial", dialled, (silent, talking, parked)
    served = Gateway.serve(directory, f"{server}-worker", session=KEPT)
    served.program = WorkerProgram([served.worker], target, directory, f"{server}-program",
                                   slots=3)
    yield f"{server} by ringway-worker", served, (silent, talking, parked)
    dev = Gateway.dev(directory, "--target", target, name=f"{server}-dev")
    yield f"{server} by dev --target", dev, (silent, talking)


def outcome(what, gateway, seconds):
    begun = time.monotonic()
    try:
        what(gateway, seconds)
        return True, f"alive after {time.monotonic() - begun:.0f} s"
    except Exception as error:  # whatever it is, the others go on
        return False, f"after {time.monotonic() - begun:.0f} s: {error!r}"


def main():
    seconds = float(sys.argv[1])
    python = grpc.server(futures.ThreadPoolExecutor(32))
    python.add_generic_rpc_handlers((Echo(),))
    port = python.add_insecure_port("127.0.0.1:0")
    python.start()
    go = subprocess.Popen([sys.argv[2]], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    servers = {"grpcio": f"127.0.0.1:{port}", "grpc-go": go.stdout.readline().strip()}
    directory = Path(tempfile.mkdtemp(prefix="quiet-streams-"))
    made = [way for name, target in servers.items() for way in ways(directory, name, target)]
    good = True
    with futures.ThreadPoolExecutor(32) as pool:
        told = [(f"{name}, {what.__name__}", pool.submit(outcome, what, gateway, seconds))
                for name, gateway, whats in made for what in whats]
        for name, future in told:
            fine, text = future.result()
            good &= fine
            print(f"{name}: {text}", flush=True)
    for _, gateway, _ in made:
        gateway.stop()
        if program := getattr(gateway, "program", None):
            program.kill()
    python.stop(0)
    go.stdin.close()
    go.wait()
    return 0 if good else 1


if __name__ == "__main__":
    # grpcio's threads wait for streams that are over with us.
    code = main()
    sys.stdout.flush()
    threading._shutdown = lambda: None
    sys.exit(code)
