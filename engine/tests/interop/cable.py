"""A host of its own at the end of a cable that can be pulled: a network namespace with one
interface. Needs root."""

import ctypes
import itertools
import os
import socket
import subprocess
import threading

CLONE_NEWNET = 0x40000000
numbers = itertools.count()
libc = ctypes.CDLL(None, use_errno=True)


def ip(*arguments):
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


def next_place():
    """A number below 2^15 by process and count, for names and addresses: tests run side by side."""
    return (os.getpid() * 16 + next(numbers)) % (1 << 15)


def inside(name, act):
    """Calls `act` in a thread that lives in the network namespace; sockets it makes stay there."""
    result = []

    def run():
        with open(f"/run/netns/{name}") as space:
            if libc.setns(space.fileno(), CLONE_NEWNET):
                return result.append(OSError(ctypes.get_errno(), "setns"))
        try:
            result.append(act())
        except Exception as error:  # raised again where it was asked for
            result.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if isinstance(result[0], Exception):
        raise result[0]
    return result[0]


class Cable:
    """`here` is this host's address on it, `there` the other's."""

    def __init__(self):
        # Of the range for benchmarks (RFC 2544).
        place = next_place()
        net = f"198.{18 + (place >> 14)}.{place >> 6 & 255}"
        base = (place & 63) * 4
        self.here, self.there = f"{net}.{base + 1}", f"{net}.{base + 2}"
        self.name = f"rw{place:05}"
        ip("netns", "add", self.name)
        try:
            ip("link", "add", f"{self.name}a", "type", "veth", "peer", "name", "eth0",
               "netns", self.name)
            ip("addr", "add", f"{self.here}/30", "dev", f"{self.name}a")
            ip("link", "set", f"{self.name}a", "up")
            ip("-n", self.name, "addr", "add", f"{self.there}/30", "dev", "eth0")
            ip("-n", self.name, "link", "set", "lo", "up")
            self.plug()
        except BaseException:
            self.close()
            raise

    def plug(self):
        ip("-n", self.name, "link", "set", "eth0", "up")

    def pull(self):
        """Nothing passes any more, and nobody is told."""
        ip("-n", self.name, "link", "set", "eth0", "down")

    def inside(self, act):
        """Calls `act` at the far end; sockets it makes stay there."""
        return inside(self.name, act)

    def connect(self, address, timeout=30):
        """A TCP connection from the far end."""
        return self.inside(lambda: socket.create_connection(address, timeout))

    def close(self):
        subprocess.run(["ip", "netns", "del", self.name], capture_output=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
