"""Hosts with two cables each: one to a switch where this host is too, and one to a switch where only
they are, so that what lies between them can be lost alone. Each is a network namespace. Needs root."""

import os
import re
import subprocess

from cable import inside, ip, next_place

# How many addresses there are: 30 for hosts, and 30 between them.
MOST = 29


def sweep():
    """Takes away what tests left that were killed: names say whose they were."""
    found = subprocess.run(["ip", "-o", "link", "show", "type", "bridge"], capture_output=True,
                           text=True).stdout
    found += subprocess.run(["ip", "netns", "list"], capture_output=True, text=True).stdout
    for name, owner in set(re.findall(r"\b(rl(\d+)[a-z]\d+[fb]?)\b", found)):
        if not os.path.exists(f"/proc/{owner}"):
            kind = ["link", "del"] if name[-1] in "fb" else ["netns", "del"]
            subprocess.run(["ip", *kind, name], capture_output=True)


class Host:
    """`front` is its address for everybody, `between` the one that only the others reach."""

    def __init__(self, name, front, between):
        self.name, self.front, self.between = name, front, between
        self.launcher = ("ip", "netns", "exec", name)

    def inside(self, act):
        return inside(self.name, act)

    def plug(self, *cables):
        self.set("up", cables)

    def pull(self, *cables):
        """Nothing passes any more, and nobody is told. Without a name all cables are meant."""
        self.set("down", cables)

    def set(self, state, cables):
        for cable in cables or ("front", "between"):
            ip("link", "set", f"{self.name}{cable[0]}", state)


class Lan:
    """`hub` is this host's address on the first switch."""

    def __init__(self, count):
        assert count <= MOST, count
        sweep()
        # Of the range for carriers' own networks (RFC 6598), 64 addresses each.
        place = next_place()
        self.net = f"100.{64 + (place >> 10)}.{place >> 2 & 255}"
        self.base, self.stem = (place & 3) * 64, f"rl{os.getpid()}"
        self.number = place & 15
        self.hub = self.address(1)
        self.bridges = [f"{self.stem}s{self.number}{kind}" for kind in "fb"]
        self.hosts = []
        try:
            for bridge in self.bridges:
                ip("link", "add", bridge, "type", "bridge")
                ip("link", "set", bridge, "up")
            ip("addr", "add", f"{self.hub}/27", "dev", self.bridges[0])
            for number in range(count):
                self.add(number)
        except BaseException:
            self.close()
            raise

    def address(self, number):
        return f"{self.net}.{self.base + number}"

    def add(self, number):
        name = f"{self.stem}{chr(ord('g') + self.number)}{number}"
        host = Host(name, self.address(number + 2), self.address(number + 34))
        ip("netns", "add", name)
        self.hosts.append(host)
        ip("-n", name, "link", "set", "lo", "up")
        for kind, device, address, bridge in (("f", "eth0", host.front, self.bridges[0]),
                                              ("b", "eth1", host.between, self.bridges[1])):
            ip("link", "add", f"{name}{kind}", "type", "veth", "peer", "name", device,
               "netns", name)
            ip("link", "set", f"{name}{kind}", "master", bridge, "up")
            ip("-n", name, "addr", "add", f"{address}/27", "dev", device)
            ip("-n", name, "link", "set", device, "up")

    def close(self):
        for host in self.hosts:
            # A namespace takes its time to go; its cables are away at once.
            for kind in "fb":
                subprocess.run(["ip", "link", "del", f"{host.name}{kind}"], capture_output=True)
            subprocess.run(["ip", "netns", "del", host.name], capture_output=True)
        for bridge in self.bridges:
            subprocess.run(["ip", "link", "del", bridge], capture_output=True)
