"""Workers in great number, in one process of their own. Each takes one session, answers every
request with its name and with the id of the session it was given, and takes the session's further
tunnels when it is asked for them. A request with `x-hold` is answered with a head and left open.

    python fleet.py HOST PORT COUNT     until its standard input closes; then it reports, in JSON
"""

import json
import selectors
import sys
from types import SimpleNamespace

from fakeworker import FakeWorker, Work
from rawh2 import HEADERS, Closed, Peer

HEAD = [(":status", "200"), ("content-type", "application/grpc")]
DONE = ("grpc-status", "0")


class Member:
    """One worker: its poll, and whatever tunnels it has."""

    def __init__(self, fleet, number):
        self.fleet, self.name = fleet, f"worker-{number}"
        self.line = FakeWorker(fleet.gateway)
        self.session, self.given, self.open, self.unanswered = None, [], 0, 0
        self.ask()

    def ask(self):
        fresh = self.line.line is None
        holds = [self.session] if self.session else []
        self.line.ask(slots=0 if holds else 1, holds=holds)
        self.unanswered += 1
        if fresh:
            self.fleet.watch(self.line.line.sock, self.polled)

    def polled(self):
        try:
            work = self.line.answer()
        except (Closed, OSError):
            # The gateway is about to end, and so is this.
            self.fleet.forget(self.line.line.sock)
            return
        self.unanswered -= 1
        if isinstance(work, Work):
            if work.kind == "new":
                self.session = work.request_id
                self.given.append(work.request_id)
            if work.request_id == self.session:
                Tunnel(self, work)
            else:
                self.fleet.strays.append([self.name, work.request_id, self.session])
        elif work is not None:
            self.fleet.strays.append([self.name, str(work)])
        if not self.unanswered:
            self.ask()

    def tunnel_ended(self):
        self.open -= 1
        if not self.open:
            self.session = None
            self.ask()  # replaces the poll that says otherwise


class Tunnel:
    def __init__(self, member, work):
        self.member, self.session, self.peer = member, work.request_id, None
        member.open += 1
        member.fleet.tunnels += 1
        self.number = member.fleet.tunnels
        self.line = member.line.dial(work)
        member.fleet.watch(self.line.sock, self.readable)

    def readable(self):
        try:
            octets = self.line.sock.recv(1 << 16)
        except OSError:
            octets = b""
        if not octets:
            return self.end()
        if self.peer is None:
            self.line.inbox += octets
            if b"\r\n\r\n" not in self.line.inbox:
                return None
            answer = self.line.answer(body=False)
            if answer.status != 200:
                self.member.fleet.refused.append(answer.status)
                return self.end()
            self.peer = Peer(self.line.sock, client=False, already_read=self.line.inbox)
        else:
            self.peer.inbox += octets
        try:
            self.peer.take_in()
        except OSError:
            return self.end()
        while self.peer.events:
            event = self.peer.events.popleft()
            if event.kind == HEADERS and event.get(":path"):
                self.respond(event)
        return None

    def respond(self, request):
        fields = [*HEAD, ("x-worker", self.member.name), ("x-given", self.session),
                  ("x-tunnel", str(self.number))]
        if request.get("nvcf-reqid") != self.session:
            self.member.fleet.strays.append([self.member.name, str(request), self.session])
        if request.get("x-hold"):
            self.peer.headers(request.stream, fields)
        else:
            self.peer.headers(request.stream, [*fields, DONE], end_stream=True)

    def end(self):
        self.member.fleet.forget(self.line.sock)
        self.line.close()
        self.member.tunnel_ended()


class Fleet:
    def __init__(self, address, size):
        self.gateway = SimpleNamespace(worker=address)
        self.selector = selectors.DefaultSelector()
        self.tunnels, self.strays, self.refused, self.stopped = 0, [], [], False
        self.selector.register(sys.stdin, selectors.EVENT_READ, self.stop)
        self.members = [Member(self, n) for n in range(size)]

    def stop(self):
        self.stopped = True
        self.selector.unregister(sys.stdin)

    def watch(self, sock, act):
        self.selector.register(sock, selectors.EVENT_READ, act)

    def forget(self, sock):
        self.selector.unregister(sock)

    def open(self):
        return sum(member.open for member in self.members)

    def run(self):
        """Until it is stopped, and then until the ends that have come are read."""
        while not self.stopped or self.open():
            ready = self.selector.select(30 if self.stopped else None)
            if self.stopped and not ready:
                break
            for key, _ in ready:
                key.data()
        return {"tunnels": self.tunnels, "strays": self.strays, "refused": self.refused,
                "open": self.open(),
                "given": {member.name: member.given for member in self.members}}


def main():
    host, port, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    fleet = Fleet((host, port), size)
    print("ready", flush=True)
    print(json.dumps(fleet.run()))


if __name__ == "__main__":
    main()
