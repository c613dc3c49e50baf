"""Users who do as gRPC's clients do when they are told to leave: what was begun ends where it is, what
is new goes to a connection of its own, and a stream that was refused before anybody looked at it is
asked once more. Nothing else is tried again, so all else that fails is counted.

One thread runs all of them."""

import asyncio
import collections
import random
import threading
import time

from echo import messages
from nvcf_load import (DATA, END_STREAM, HEADERS, PATIENCE, RST_STREAM, Line, Lost, Reset, block,
                       frame)

REFUSED_STREAM = 7


class Refused(Lost):
    """A stream that nobody has looked at (RFC 9113 6.8, 8.7)."""


class Polite(Line):
    """A connection that obeys GOAWAY."""

    def __init__(self, reader, writer):
        super().__init__(reader, writer)
        self.leaving, self.answering = False, False
        self.reading = None

    def told_to_leave(self, last, payload):
        code = int.from_bytes(payload[4:8], "big")
        if code:
            raise Lost(f"GOAWAY with {code}")
        self.leaving = True
        if self.answering and self.stream > last:
            raise Refused(f"stream {self.stream} is above {last}")

    async def within(self, seconds):
        """The next frame, or None. What has begun to arrive is not lost."""
        self.reading = self.reading or asyncio.ensure_future(super().next_frame())
        done, _ = await asyncio.wait({self.reading}, timeout=seconds)
        if not done:
            return None
        read, self.reading = self.reading, None
        return read.result()

    async def next_frame(self):
        found = await self.within(PATIENCE)
        if found is None:
            raise Lost(f"no frame within {PATIENCE} s")
        kind, _, stream, payload = found
        if kind == RST_STREAM and stream == self.stream and \
                int.from_bytes(payload, "big") == REFUSED_STREAM:
            raise Refused("REFUSED_STREAM")
        return found

    async def answered(self, call):
        self.answering = True
        try:
            return await call
        finally:
            self.answering = False

    async def rest(self, seconds):
        """Nothing is asked for so long; whether it can be asked afterwards."""
        end = time.monotonic() + seconds
        try:
            while not self.leaving and (left := end - time.monotonic()) > 0:
                await self.within(left)
        except Lost:
            return False
        return not self.leaving

    async def hold(self, what, seconds):
        """A stream that its client ends after so long; (status, text)."""
        stream, fields, heard = self.ask(what, b"held", flags=0), {}, b""
        end, told = time.monotonic() + seconds, False
        while True:
            left = end - time.monotonic()
            if left <= 0 and not told:
                self.writer.write(frame(DATA, END_STREAM, stream))
                told = True
            found = await (self.next_frame() if told else self.within(left))
            if found is None:
                continue
            kind, flags, of, payload = found
            if of != stream:
                continue
            if kind == RST_STREAM:
                code = int.from_bytes(payload, "big")
                raise Refused("REFUSED_STREAM") if code == REFUSED_STREAM else Reset(code)
            if kind == DATA:
                heard += payload
            if kind == HEADERS:
                fields.update(self.decoder.decode(payload))
                self.head = self.head or dict(fields)
            if flags & END_STREAM:
                break
        if fields.get("grpc-status") == "0" and messages(heard) != [b"held"]:
            raise Lost(f"another answer: {heard[:40]!r}")
        if not told:
            raise Lost(f"it ended before its client did: {fields}")
        return fields.get("grpc-status"), fields.get("grpc-message", "")

    def close(self):
        if self.reading:
            self.reading.cancel()
        super().close()


# Calls and streams that were answered, those that failed, and how often one was asked once more.
Told = collections.namedtuple("Told", "calls streams failures repeated")


class Users:
    """At `address`: `callers` with together `rate` calls a second, and `streams` of which each lasts
    between `shortest` and `longest` seconds and is followed by another one. A caller has a
    connection, as has whoever has a stream."""

    def __init__(self, address, callers=20, rate=100, streams=20, shortest=0.2, longest=2):
        self.address = address
        self.lasts = shortest, longest
        self.pause = callers / rate
        self.lock = threading.Lock()
        self.leaving = False
        self.mark()
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        self.tasks = [asyncio.run_coroutine_threadsafe(task, self.loop) for task in
                      [self.calls_for_ever(number * self.pause / callers)
                       for number in range(callers)]
                      + [self.holds_for_ever() for _ in range(streams)]]

    def mark(self):
        with self.lock:
            told = getattr(self, "told", None)
            self.told = Told(collections.Counter(), collections.Counter(), [],
                             collections.Counter())
        return told

    async def calls_for_ever(self, delay):
        what, line = block(), None
        await asyncio.sleep(delay)
        while not self.leaving:
            began = time.monotonic()
            line = await self.once(line, self.told.calls, lambda at: at.call(what))
            # Between its calls it hears what it is told.
            left = max(0, self.pause - (time.monotonic() - began))
            if line is None:
                await asyncio.sleep(left)
            elif not await line.rest(left):
                line.close()
                line = None
        if line:
            line.close()

    async def holds_for_ever(self):
        what, line = block(path="BidiStream"), None
        await asyncio.sleep(random.uniform(0, self.lasts[1]))
        while not self.leaving:
            seconds = random.uniform(*self.lasts)
            line = await self.once(line, self.told.streams, lambda at: at.hold(what, seconds))
            if line and not await line.rest(0.01):
                line.close()
                line = None
            elif line is None:
                await asyncio.sleep(0.1)
        if line:
            line.close()

    async def once(self, line, counter, act):
        """One call, which is asked once more if nobody has looked at it; the connection, if it can be
        used again."""
        for attempt in range(2):
            failure = None
            try:
                line = line or await Polite.open(self.address)
                status, text = await line.answered(asyncio.wait_for(act(line), 3 * PATIENCE))
                with self.lock:
                    counter[status] += 1
                    if status != "0":
                        self.told.failures.append(f"{status} {text}")
                return line
            except Refused as error:
                with self.lock:
                    self.told.repeated[str(error)[:6]] += 1
                failure = f"refused twice: {error}" if attempt else None
            except (Lost, OSError, asyncio.TimeoutError) as error:
                told = line.head if line else {}
                failure = f"{error!r} at {time.time():.3f}, answered {told}"
            if line:
                line.close()
            line = None
            if failure:
                with self.lock:
                    self.told.failures.append(failure)
                return None

    def close(self):
        """All end what they have begun, and go."""
        self.leaving = True
        for task in self.tasks:
            task.result(3 * PATIENCE)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()
