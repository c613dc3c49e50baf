"""A grpcio server as the function behind `ringway dev --target`: what it saw is recorded, and
what it does is chosen by the request's metadata."""

import threading
import time
from concurrent import futures

import grpc
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from grpc_status import rpc_status

from echo import METHODS, SERVICE, EchoMessage

UNLIMITED = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


class Function:
    """Echo, with requests for trouble in `x-do`."""

    def __init__(self, name=None):
        self.name = [("x-worker", name)] if name else []
        self.seen = []
        self.ended = threading.Event()
        self.started = threading.Event()

    def arrived(self, call):
        fields = dict(call.invocation_metadata())
        self.seen.append(fields)
        call.send_initial_metadata(self.name + [
            (key, value) for key, value in call.invocation_metadata()
            if key.startswith("x-echo-")])
        call.set_trailing_metadata([("x-trailing", "t"), ("x-trailing-bin", b"\0\xff\x01")])
        call.add_callback(self.ended.set)
        self.started.set()
        if "x-echo-status" in fields:
            call.abort(grpc.StatusCode(int_to_code(int(fields["x-echo-status"]))), "as was asked")
        getattr(self, f"do_{fields.get('x-do', 'nothing')}")(call, fields)

    def do_nothing(self, call, fields):
        pass

    def do_fail(self, call, fields):
        call.abort(grpc.StatusCode(int_to_code(int(fields["x-code"]))), "häßlich: 100 %\n\"x\"")

    def do_details(self, call, fields):
        detail = any_pb2.Any()
        detail.Pack(error_details_pb2.RetryInfo())
        help_ = any_pb2.Any()
        help_.Pack(error_details_pb2.ErrorInfo(reason="STOCKOUT", domain="x" * 3000))
        call.abort_with_status(rpc_status.to_status(status_pb2.Status(
            code=9, message="with details", details=[detail, help_])))

    def do_large_trailers(self, call, fields):
        call.set_trailing_metadata([("x-large", "t" * 60_000)])

    def do_hang(self, call, fields):
        while call.is_active():
            time.sleep(0.01)

    def do_compress(self, call, fields):
        call.set_compression(grpc.Compression.Gzip)

    def Unary(self, request, call):
        self.arrived(call)
        return request

    def ClientStream(self, requests, call):
        self.arrived(call)
        return EchoMessage(payload=b"".join(request.payload for request in requests))

    def ServerStream(self, request, call):
        self.arrived(call)
        for _ in range(request.count or 1):
            yield EchoMessage(payload=request.payload)

    def BidiStream(self, requests, call):
        self.arrived(call)
        yield from requests


def int_to_code(number):
    return next(code for code in grpc.StatusCode if code.value[0] == number).value


class Server:
    """Listens on the loopback address, on a free port unless one is named. With a name its
    answers carry it as `x-worker`."""

    def __init__(self, port=0, name=None, options=()):
        self.function = Function(name)
        self.grpc = grpc.server(futures.ThreadPoolExecutor(256), options=[*UNLIMITED, *options])
        handlers = {}
        for name, (many_in, many_out) in METHODS.items():
            make = getattr(grpc, f"{'stream' if many_in else 'unary'}_"
                                 f"{'stream' if many_out else 'unary'}_rpc_method_handler")
            handlers[name] = make(getattr(self.function, name), EchoMessage.FromString,
                                  EchoMessage.SerializeToString)
        self.grpc.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(SERVICE,
                                                                                 handlers)])
        servicer = health.HealthServicer()
        servicer.set(SERVICE, health_pb2.HealthCheckResponse.SERVING)
        health_pb2_grpc.add_HealthServicer_to_server(servicer, self.grpc)
        reflection.enable_server_reflection([SERVICE, reflection.SERVICE_NAME], self.grpc)
        self.port = self.grpc.add_insecure_port(f"127.0.0.1:{port}")
        self.grpc.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.grpc.stop(0).wait()
