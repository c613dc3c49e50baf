"""What one gateway says to another before it brings it a connection, written from its published shape
(docs/many-gateways.md): so that a test can play a gateway, an honest one or one that is not."""

import contextlib
import hashlib
import hmac
import socket
import struct

CHALLENGE, MAC = 32, 32
VERSION = 1
CALLBACK, CLIENT, CLIENT_TOLD, LEAVE = 1, 2, 3, 4
TAKEN, FORGED, OTHER_VERSION, GARBLED, ELSEWHERE, FULL, DEAD = range(1, 8)
PURPOSE = b"ringway: preludes of relays"


def node(name):
    """(number, incarnation) of a node's name."""
    return tuple(int(part, 16) for part in name.split("-"))


def opening(peer=("192.0.2.1", 4242), age=0, received=0):
    address = b"\0" * 10 + b"\xff\xff" + socket.inet_aton(peer[0])
    return address + struct.pack(">HQI", peer[1], age, received)


def prelude(to, rest=None, kind=CALLBACK, by=(4, 4), version=VERSION, magic=b"RWGY"):
    body = struct.pack(">HHHH", *by, *to) + (opening() if rest is None else rest)
    return magic + struct.pack(">BBH", version, kind, len(body)) + body


def mac(secret, challenge, octets):
    key = hmac.digest(secret.encode(), PURPOSE, hashlib.sha256)
    return hmac.digest(key, challenge + octets, hashlib.sha256)


class Sender:
    """A connection to a gateway's cluster port, from an address of this machine. The challenge is empty if
    the gateway does not hear it."""

    def __init__(self, address, source=None):
        self.sock = socket.create_connection(address, 30, source and (source, 0))
        self.challenge = self.take(CHALLENGE)

    def take(self, size):
        octets = b""
        with contextlib.suppress(ConnectionResetError):
            while len(octets) < size and (more := self.sock.recv(size - len(octets))):
                octets += more
        return octets

    def says(self, octets):
        with contextlib.suppress(OSError):
            self.sock.sendall(octets)

    def signed(self, secret, octets):
        """With its MAC."""
        return octets + mac(secret, self.challenge, octets)

    def verdict(self):
        """The octet that answers, or None if the connection ends without one."""
        with contextlib.suppress(ConnectionResetError):
            answer = self.sock.recv(1)
            return answer[0] if answer else None

    def is_over(self):
        with contextlib.suppress(ConnectionResetError):
            return self.sock.recv(1) == b""
        return True

    def close(self):
        self.sock.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
