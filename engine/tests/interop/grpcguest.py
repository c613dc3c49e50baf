"""A grpcio client as a process of its own, for a network namespace. It does what its standard
input says, line by line, and answers each line with one of JSON:

    call [ID]    one call, by the session's id if it is given: {"session", "worker"}
    hold         opens a stream that stays open: {"held"}
    lost         waits until that stream has failed: {"lost"}

    python grpcguest.py HOST PORT
"""

import json
import sys
import threading

import grpc

from echo import EchoMessage, Stub
from gateway import credentials

OPTIONS = [("grpc.keepalive_time_ms", 1_000), ("grpc.keepalive_timeout_ms", 1_000),
           ("grpc.keepalive_permit_without_calls", 1), ("grpc.http2.max_pings_without_data", 0),
           ("grpc.initial_reconnect_backoff_ms", 200), ("grpc.max_reconnect_backoff_ms", 500),
           ("grpc.enable_retries", 0)]


class Guest:
    def __init__(self, target):
        self.stub = Stub(grpc.insecure_channel(target, options=OPTIONS))
        self.held = self.over = None

    def call(self, session=None):
        _, done = self.stub.Unary.with_call(
            EchoMessage(payload=b"x"), metadata=credentials(reqid=session), timeout=200,
            wait_for_ready=True)
        fields = dict(done.initial_metadata())
        return {"session": fields["nvcf-reqid"], "worker": fields["x-worker"]}

    def hold(self):
        self.over = over = threading.Event()

        def questions():
            yield EchoMessage(payload=b"first")
            over.wait()
        self.held = self.stub.BidiStream(questions(), metadata=credentials(), timeout=600)
        return {"held": next(self.held).payload.decode()}

    def lost(self):
        try:
            next(self.held)
        except grpc.RpcError as error:
            return {"lost": error.code().name}
        finally:
            self.over.set()
        return {"lost": None}


def main():
    guest = Guest(f"{sys.argv[1]}:{sys.argv[2]}")
    for line in sys.stdin:
        act, *arguments = line.split()
        print(json.dumps(getattr(guest, act)(*arguments)), flush=True)


if __name__ == "__main__":
    main()
