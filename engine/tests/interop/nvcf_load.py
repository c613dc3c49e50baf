"""Clients that stay, clients that come and go, and clients whose sessions are parked, all at one
gateway for as long as a test needs them: what goes wrong for them meanwhile is what a fault costs
those who have nothing to do with it.

One thread runs all of them, and each says the same octets in every call: so they cost little beside
what is looked at."""

import asyncio
import collections
import contextlib
import math
import socket
import struct
import threading
import time

import hpack

from echo import PATH, message
from gateway import FUNCTION, grpc_head
from nvcf_bed import A

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_STREAM, ACK, END_HEADERS = 1, 1, 4
# Octets that are taken in before their credit goes back.
CREDIT = 16_384
# A call that takes longer than this has failed: nothing that a fault does to others takes so long.
PATIENCE = 20
# Each end of the sessions that stay is parted from the next by so many seconds.
SPREAD = 0.02
PAYLOAD = b"x" * 100


def frame(kind, flags, stream, payload=b""):
    return (len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big")
            + payload)


def head_block(fields):
    """A header block that means the same in every connection and at every place of it."""
    never = [hpack.NeverIndexedHeaderTuple(name, value) for name, value in fields]
    return hpack.Encoder().encode(never)


# What was seen: calls and those of them that failed; new sessions by status and what those were told
# that are not served; seconds that calls took, new sessions, and calls without a gateway.
Seen = collections.namedtuple("Seen", "calls failures fresh strange latencies openings direct")


class Lost(Exception):
    """A connection or a stream ended before its answer did."""


class Reset(Lost):
    """A stream did."""

    def __init__(self, code):
        super().__init__(f"reset with {code}")
        self.code = code


class Line:
    """A client's connection. One call at a time."""

    def __init__(self, reader, writer):
        self.reader, self.writer = reader, writer
        self.decoder = hpack.Decoder()
        self.next_stream, self.stream, self.taken = 1, 0, 0
        self.head = {}

    @classmethod
    async def open(cls, address):
        line = cls(*await asyncio.open_connection(*address))
        line.writer.write(PREFACE + frame(SETTINGS, 0, 0))
        return line

    def ask(self, block, payload=PAYLOAD, flags=END_STREAM):
        """A request's head and its first message; its stream."""
        self.stream, self.next_stream = self.next_stream, self.next_stream + 2
        self.writer.write(frame(HEADERS, END_HEADERS, self.stream, block)
                          + frame(DATA, flags, self.stream, message(payload)))
        return self.stream

    async def call(self, block, payload=PAYLOAD):
        """(status, text) of a unary call; what its answer began with is `head` then."""
        stream = self.ask(block, payload)
        fields, octets, first = {}, b"", True
        while True:
            kind, flags, of, payload_in = await self.next_frame()
            if of != stream:
                continue
            if kind == RST_STREAM:
                raise Reset(int.from_bytes(payload_in, "big"))
            if kind == DATA:
                octets += payload_in
            if kind == HEADERS:
                told = dict(self.decoder.decode(payload_in))
                if first:
                    self.head, first = told, False
                fields.update(told)
            if flags & END_STREAM and kind in (DATA, HEADERS):
                break
        if fields.get(":status") != "200":
            raise Lost(f"status {fields.get(':status')} {fields.get('x-ringway-cause', '')}")
        if fields.get("grpc-status") == "0" and octets != message(payload):
            raise Lost(f"another answer: {octets[:40]!r}")
        return fields.get("grpc-status"), fields.get("grpc-message", "")

    async def next_frame(self):
        try:
            head = await self.reader.readexactly(9)
            size, kind, flags = int.from_bytes(head[:3], "big"), head[3], head[4]
            stream = int.from_bytes(head[5:], "big")
            payload = await self.reader.readexactly(size) if size else b""
        except (OSError, EOFError) as error:
            raise Lost(repr(error)) from None
        if kind == SETTINGS and not flags & ACK:
            self.writer.write(frame(SETTINGS, ACK, 0))
        elif kind == PING and not flags & ACK:
            self.writer.write(frame(PING, ACK, 0, payload))
        elif kind == GOAWAY:
            self.told_to_leave(int.from_bytes(payload[:4], "big"), payload)
        elif kind == DATA:
            self.taken += size
            if self.taken >= CREDIT:
                self.writer.write(frame(WINDOW_UPDATE, 0, 0, self.taken.to_bytes(4, "big")))
                self.taken = 0
        return kind, flags, stream, payload

    def told_to_leave(self, last, payload):
        """Nobody here expects it. `last`: the last stream that is served."""
        raise Lost(f"GOAWAY {payload!r}")

    def lose(self):
        """As if its network had gone: RST."""
        sock = self.writer.get_extra_info("socket")
        if sock is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    def close(self):
        self.writer.close()


def block(key=A, function=FUNCTION, version=None, reqid=None, path="Unary"):
    return head_block(grpc_head(PATH[path], key=key, function=function, version=version,
                                reqid=reqid))


class Load:
    """All of them, at `address`, until it is closed; and one who calls the server at `direct` without
    a gateway: how busy the machine is otherwise shows there."""

    def __init__(self, address, direct, running=50, calls=100, fresh=10):
        self.address, self.direct_address, self.running = address, direct, running
        self.pause, self.gap = running / calls, 1 / fresh
        self.lock = threading.Lock()
        # What was seen since `mark`.
        self.calls, self.failures = 0, []
        self.fresh, self.strange = collections.Counter(), []
        self.latencies, self.openings, self.direct = [], [], []
        # The sessions that are parked, by id.
        self.parked = []
        # New sessions that have not come to their end.
        self.visits = set()
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        self.tasks = []

    def do(self, coroutine, timeout=60):
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(timeout)

    def begin(self):
        """The sessions that stay are there when it returns."""
        lines = self.do(self.stay())
        for number, (line, session) in enumerate(lines):
            self.tasks.append(asyncio.run_coroutine_threadsafe(
                self.keep_calling(line, session, number * SPREAD), self.loop))
        for others in (self.keep_coming(), self.keep_calling_directly()):
            self.tasks.append(asyncio.run_coroutine_threadsafe(others, self.loop))

    async def stay(self):
        return [await self.one_line() for _ in range(self.running)]

    async def keep_calling(self, line, session, delay):
        what, at = block(), time.monotonic() + delay
        try:
            while True:
                await asyncio.sleep(max(0, at - time.monotonic()))
                began = time.monotonic()
                status, text = await asyncio.wait_for(line.call(what), PATIENCE)
                took = time.monotonic() - began
                with self.lock:
                    self.calls += 1
                    self.latencies.append(took)
                    if status != "0" or line.head.get("nvcf-reqid") != session:
                        self.failures.append(f"{session}: {status} {text} {line.head}")
                # Each has its own place in the second for as long as it stays. If the next call were
                # counted from this one, all that had once waited together would come together for
                # ever, and wait for each other.
                at += self.pause * max(1, math.ceil((time.monotonic() - at) / self.pause))
        except (Lost, asyncio.TimeoutError) as error:
            with self.lock:
                self.failures.append(f"{session}: {error!r}")
        finally:
            line.close()

    async def keep_calling_directly(self):
        what, line = block(), await Line.open(self.direct_address)
        while True:
            began = time.monotonic()
            status, text = await line.call(what)
            assert status == "0", (status, text)
            with self.lock:
                self.direct.append(time.monotonic() - began)
            await asyncio.sleep(self.gap)

    async def keep_coming(self):
        what, at = block(), time.monotonic()
        while True:
            visit = asyncio.ensure_future(self.visit(what))
            self.visits.add(visit)
            visit.add_done_callback(self.visits.discard)
            at += self.gap
            await asyncio.sleep(max(0, at - time.monotonic()))

    async def visit(self, what):
        """A new session with one call."""
        began, line = time.monotonic(), None
        try:
            line = await Line.open(self.address)
            status, text = await asyncio.wait_for(line.call(what), PATIENCE)
        except (Lost, OSError, asyncio.TimeoutError) as error:
            status, text = "lost", repr(error)
        finally:
            if line:
                line.close()
        with self.lock:
            self.fresh[status] += 1
            self.openings.append(time.monotonic() - began)
            if status != "0":
                self.strange.append(f"{status} {text}")

    async def all_ended(self):
        """Waits for the new sessions that there are now."""
        await asyncio.gather(*self.visits, return_exceptions=True)

    async def ask(self, address, what):
        """(status, text) of one call on a connection of its own."""
        line = await Line.open(address)
        try:
            return await asyncio.wait_for(line.call(what), PATIENCE)
        finally:
            line.close()

    async def one_line(self):
        """One more session: its connection, and its id."""
        line = await Line.open(self.address)
        status, text = await asyncio.wait_for(line.call(block()), PATIENCE)
        assert status == "0", (status, text)
        return line, line.head["nvcf-reqid"]

    async def call(self, line):
        status, text = await asyncio.wait_for(line.call(block()), PATIENCE)
        assert status == "0", (status, text)

    async def leave(self, line):
        line.close()

    def park(self, count):
        """So many more sessions whose clients are lost."""
        self.parked += self.do(self.leave_behind(count))

    async def leave_behind(self, count):
        left = []
        for _ in range(count):
            line, session = await self.one_line()
            left.append(session)
            line.lose()
        return left

    def come_back(self, session):
        """A lost client comes back to its session, and is lost again."""
        self.do(self.visit_parked(session))

    async def visit_parked(self, session):
        line = await Line.open(self.address)
        status, text = await asyncio.wait_for(line.call(block(reqid=session)), PATIENCE)
        assert status == "0" and line.head["nvcf-reqid"] == session, (status, text, line.head)
        line.lose()

    def mark(self):
        """Looks at what comes from now on; what came before is returned."""
        with self.lock:
            seen = Seen(self.calls, self.failures, self.fresh, self.strange, self.latencies,
                        self.openings, self.direct)
            self.calls, self.failures = 0, []
            self.fresh, self.strange = collections.Counter(), []
            self.latencies, self.openings, self.direct = [], [], []
        return seen

    def close(self):
        for task in self.tasks:
            task.cancel()

        async def rest():
            others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)
        with contextlib.suppress(Exception):
            self.do(rest())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()
