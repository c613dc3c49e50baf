"""The built-in echo function as a gRPC client sees it, written from its published interface:
service ringway.echo.v1.Echo, message EchoMessage { bytes payload = 1; uint32 count = 2; }."""

import struct

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

SERVICE = "ringway.echo.v1.Echo"
METHODS = {"Unary": (False, False), "ClientStream": (True, False),
           "ServerStream": (False, True), "BidiStream": (True, True)}
PATH = {name: f"/{SERVICE}/{name}" for name in METHODS}


def file_descriptor():
    file = descriptor_pb2.FileDescriptorProto(
        name="ringway/echo/v1/echo_under_test.proto", package="ringway.echo.v1", syntax="proto3")
    message = file.message_type.add(name="EchoMessage")
    optional = descriptor_pb2.FieldDescriptorProto.LABEL_OPTIONAL
    message.field.add(name="payload", number=1, label=optional,
                      type=descriptor_pb2.FieldDescriptorProto.TYPE_BYTES)
    message.field.add(name="count", number=2, label=optional,
                      type=descriptor_pb2.FieldDescriptorProto.TYPE_UINT32)
    service = file.service.add(name="Echo")
    for name, (many_in, many_out) in METHODS.items():
        service.method.add(name=name, input_type=".ringway.echo.v1.EchoMessage",
                           output_type=".ringway.echo.v1.EchoMessage",
                           client_streaming=many_in, server_streaming=many_out)
    return file


_pool = descriptor_pool.Default()
_pool.Add(file_descriptor())
EchoMessage = message_factory.GetMessageClass(
    _pool.FindMessageTypeByName("ringway.echo.v1.EchoMessage"))


class Stub:
    """The four calls on a channel."""

    def __init__(self, channel):
        for name, (many_in, many_out) in METHODS.items():
            make = getattr(channel, f"{'stream' if many_in else 'unary'}_"
                                    f"{'stream' if many_out else 'unary'}")
            setattr(self, name, make(PATH[name], EchoMessage.SerializeToString,
                                     EchoMessage.FromString))


def message(payload, count=0):
    """One length-prefixed gRPC message as it lies in DATA."""
    body = EchoMessage(payload=payload, count=count).SerializeToString()
    return struct.pack(">BI", 0, len(body)) + body


def messages(octets):
    """The payloads of the messages in a body."""
    found, at = [], 0
    while at < len(octets):
        compressed, length = struct.unpack_from(">BI", octets, at)
        assert not compressed, "compressed message"
        found.append(EchoMessage.FromString(octets[at + 5:at + 5 + length]).payload)
        at += 5 + length
    return found
