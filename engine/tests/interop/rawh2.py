"""One end of an HTTP/2 connection, frame by frame.

Tests decide every octet that leaves. What arrives is recorded as events, in order; an event
stays until a test takes it with `wait`, so the order of unrelated frames never matters.
Malformed output is easy on purpose: `frame` packs anything, `send` sends anything.
"""

import select
import socket
import struct
import time
from collections import deque
from dataclasses import dataclass, field

import hpack

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS = 0, 1, 2, 3, 4
PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 5, 6, 7, 8, 9
TYPE_NAMES = ["DATA", "HEADERS", "PRIORITY", "RST_STREAM", "SETTINGS", "PUSH_PROMISE", "PING",
              "GOAWAY", "WINDOW_UPDATE", "CONTINUATION"]

END_STREAM, ACK, END_HEADERS, PADDED, PRIORITY_FLAG = 0x1, 0x1, 0x4, 0x8, 0x20

NO_ERROR, PROTOCOL_ERROR, INTERNAL_ERROR, FLOW_CONTROL_ERROR = 0, 1, 2, 3
SETTINGS_TIMEOUT, STREAM_CLOSED, FRAME_SIZE_ERROR, REFUSED_STREAM = 4, 5, 6, 7
CANCEL, COMPRESSION_ERROR, CONNECT_ERROR, ENHANCE_YOUR_CALM = 8, 9, 10, 11
INADEQUATE_SECURITY, HTTP_1_1_REQUIRED = 12, 13
CODE_NAMES = ["NO_ERROR", "PROTOCOL_ERROR", "INTERNAL_ERROR", "FLOW_CONTROL_ERROR",
              "SETTINGS_TIMEOUT", "STREAM_CLOSED", "FRAME_SIZE_ERROR", "REFUSED_STREAM",
              "CANCEL", "COMPRESSION_ERROR", "CONNECT_ERROR", "ENHANCE_YOUR_CALM",
              "INADEQUATE_SECURITY", "HTTP_1_1_REQUIRED"]

HEADER_TABLE_SIZE, ENABLE_PUSH, MAX_CONCURRENT_STREAMS = 1, 2, 3
INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE, MAX_HEADER_LIST_SIZE = 4, 5, 6

LARGEST_WINDOW = 2**31 - 1
DEFAULT_WINDOW = 65_535


def code_name(code):
    return CODE_NAMES[code] if code < len(CODE_NAMES) else hex(code)


def frame(kind, flags, stream, payload=b""):
    """Any frame; nothing is checked."""
    head = struct.pack(">I", len(payload))[1:] + bytes([kind, flags])
    return head + struct.pack(">I", stream & 0xFFFF_FFFF) + payload


def settings(pairs=(), ack=False):
    payload = b"".join(struct.pack(">HI", key, value) for key, value in dict(pairs).items())
    return frame(SETTINGS, ACK if ack else 0, 0, payload)


def ping(opaque=b"ringway!", ack=False):
    return frame(PING, ACK if ack else 0, 0, opaque)


def window_update(stream, increment):
    return frame(WINDOW_UPDATE, 0, stream, struct.pack(">I", increment))


def rst_stream(stream, code=CANCEL):
    return frame(RST_STREAM, 0, stream, struct.pack(">I", code))


def goaway(last=0, code=NO_ERROR, debug=b""):
    return frame(GOAWAY, 0, 0, struct.pack(">II", last, code) + debug)


def priority(stream, depends=0, weight=15):
    return frame(PRIORITY, 0, stream, struct.pack(">IB", depends, weight))


def padded(payload, pad):
    """The payload of a PADDED frame."""
    return bytes([pad]) + payload + bytes(pad)


@dataclass
class Event:
    """One thing that arrived; a header block and its CONTINUATIONs are one."""

    kind: int
    flags: int
    stream: int
    payload: bytes
    fields: list = field(default_factory=list)
    frames: int = 1

    @property
    def end_stream(self):
        return self.kind in (DATA, HEADERS) and bool(self.flags & END_STREAM)

    @property
    def code(self):
        """The error code of RST_STREAM or GOAWAY."""
        offset = 4 if self.kind == GOAWAY else 0
        return struct.unpack_from(">I", self.payload, offset)[0]

    @property
    def last_stream(self):
        return struct.unpack_from(">I", self.payload)[0] & LARGEST_WINDOW

    @property
    def increment(self):
        return struct.unpack(">I", self.payload)[0] & LARGEST_WINDOW

    @property
    def data(self):
        """DATA without its padding."""
        if self.flags & PADDED:
            return self.payload[1:len(self.payload) - self.payload[0]]
        return self.payload

    def values(self, name):
        return [value for key, value in self.fields if key == name]

    def get(self, name, default=None):
        return next(iter(self.values(name)), default)

    @property
    def status(self):
        return self.get(":status")

    @property
    def grpc_status(self):
        return self.get("grpc-status")

    def __str__(self):
        name = TYPE_NAMES[self.kind] if self.kind < len(TYPE_NAMES) else f"type {self.kind}"
        text = f"{name} stream={self.stream} flags={self.flags:#x} len={len(self.payload)}"
        if self.kind == HEADERS:
            text += f" frames={self.frames} {self.fields}"
        elif self.kind in (RST_STREAM, GOAWAY) and len(self.payload) >= 4:
            text += f" {code_name(self.code)}"
            if self.kind == GOAWAY:
                text += f" last={self.last_stream} {self.payload[8:]!r}"
        elif self.kind == WINDOW_UPDATE:
            text += f" +{self.increment}"
        elif self.kind == SETTINGS:
            text += f" {parse_settings(self.payload)}"
        return text


def parse_settings(payload):
    return dict(struct.unpack_from(">HI", payload, at) for at in range(0, len(payload) - 5, 6))


class Closed(AssertionError):
    """The other end closed while a test still waited."""


class Silence(AssertionError):
    """Nothing matching arrived in time."""


class Peer:
    """One end of a connection; `client` says which. With `start` it sends its SETTINGS: a client
    at once, a server when the preface has come. `auto` names what is answered unasked:
    "settings" (ACK), "ping" (ACK), "credit" (see there)."""

    def __init__(self, sock, client, first_settings=(), auto=("settings", "ping", "credit"),
                 start=True, already_read=b"", connection_credit=0):
        self.sock = sock
        self.client = client
        self.auto = set(auto)
        self.encoder = hpack.Encoder()
        self.decoder = hpack.Decoder(max_header_list_size=1 << 26)
        self.events = deque()
        self.log = deque(maxlen=60)
        self.inbox = bytearray(already_read)
        self.closed = None
        self.their_settings = {}
        self.settings_acked = 0
        self.next_stream = 1 if client else 2
        self.connection_window = DEFAULT_WINDOW
        self.stream_windows = {}
        self.data_received = {}
        self.owed = {}
        self.window = dict(first_settings).get(INITIAL_WINDOW_SIZE, DEFAULT_WINDOW)
        self.block = None
        self.went_away = False
        # What is to be sent behind the chunk under way, while a flood is sent.
        self.behind = None
        self.preface_seen = client
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.greeting = settings(first_settings)
        if connection_credit:
            self.greeting += window_update(0, connection_credit)
        if start and client:
            self.send(PREFACE + self.greeting)
        elif not start:
            self.greeting = b""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    # --- sending ---------------------------------------------------------------------------

    def send(self, *octets):
        data = b"".join(octets)
        self.log.append(f"  > {describe(data)}")
        if self.behind is not None:
            # A flood may have sent half of a frame.
            self.behind += data
            return
        self.sock.settimeout(60)
        try:
            self.sock.sendall(data)
        except (BrokenPipeError, ConnectionResetError) as error:
            # What the other end said before it closed is still to be read.
            self.log.append(f"  > failed: {error}")

    def block_of(self, fields):
        return self.encoder.encode(fields)

    def headers(self, stream, fields, end_stream=False):
        """A header block, in as many frames as the other end's MAX_FRAME_SIZE asks for."""
        block, size = self.block_of(fields), self.their_settings.get(MAX_FRAME_SIZE, 16_384)
        parts = [block[at:at + size] for at in range(0, len(block), size)] or [b""]
        octets = b""
        for at, part in enumerate(parts):
            flags = END_HEADERS if at == len(parts) - 1 else 0
            flags |= END_STREAM if end_stream and at == 0 else 0
            octets += frame(CONTINUATION if at else HEADERS, flags, stream, part)
        self.send(octets)

    def data(self, stream, payload=b"", end_stream=False):
        self.send(frame(DATA, END_STREAM if end_stream else 0, stream, payload))

    def open(self, fields, end_stream=False):
        """A new stream of ours; its id."""
        stream = self.next_stream
        self.next_stream += 2
        self.headers(stream, fields, end_stream)
        return stream

    def send_body(self, stream, payload, end_stream=True, timeout=100, chunk=16_384):
        """A whole body inside the windows and frame size the other end allows."""
        view = memoryview(payload)
        deadline = time.monotonic() + timeout
        while view:
            room = min(self.room(stream), chunk, len(view))
            if room <= 0:
                self.pump(deadline, f"credit on stream {stream}")
                continue
            last = end_stream and room == len(view)
            self.spend(stream, room)
            self.data(stream, bytes(view[:room]), last)
            view = view[room:]
        if end_stream and not payload:
            self.data(stream, b"", True)

    def room(self, stream):
        start = self.their_settings.get(INITIAL_WINDOW_SIZE, DEFAULT_WINDOW)
        return min(self.connection_window, start + self.stream_windows.get(stream, 0))

    def spend(self, stream, octets):
        self.connection_window -= octets
        self.stream_windows[stream] = self.stream_windows.get(stream, 0) - octets

    # --- receiving -------------------------------------------------------------------------

    def pump(self, deadline, wanted="anything"):
        """Read once and take in whatever whole frames have come."""
        if self.take_in():
            return
        if self.closed:
            raise Closed(f"{self.closed} while waiting for {wanted}\n{self.transcript()}")
        left = deadline - time.monotonic()
        if left <= 0:
            raise Silence(f"no {wanted} in time\n{self.transcript()}")
        self.sock.settimeout(left)
        try:
            octets = self.sock.recv(1 << 18)
        except TimeoutError:
            raise Silence(f"no {wanted} in time\n{self.transcript()}") from None
        except ConnectionResetError:
            octets, self.closed = b"", "reset"
        if not octets:
            self.closed = self.closed or "end of file"
            self.log.append(f"< {self.closed}")
            return
        self.inbox += octets
        self.take_in()

    def take_in(self):
        """Events made of what was read; how many frames."""
        taken = at = 0
        if not self.preface_seen:
            if len(self.inbox) < len(PREFACE):
                return 0
            assert self.inbox.startswith(PREFACE), f"no preface: {bytes(self.inbox[:40])!r}"
            at, self.preface_seen, taken = len(PREFACE), True, 1
            # Before anything else of ours, the answer to the SETTINGS behind the preface too.
            if self.greeting:
                self.send(self.greeting)
        while len(self.inbox) - at >= 9:
            length = int.from_bytes(self.inbox[at:at + 3], "big")
            if len(self.inbox) - at < 9 + length:
                break
            kind, flags = self.inbox[at + 3], self.inbox[at + 4]
            stream = int.from_bytes(self.inbox[at + 5:at + 9], "big")
            payload = bytes(self.inbox[at + 9:at + 9 + length])
            at += 9 + length
            taken += 1
            self.arrived(kind, flags, stream, payload)
        del self.inbox[:at]
        return taken

    def arrived(self, kind, flags, stream, payload):
        if self.block is not None or kind == HEADERS:
            event = self.join_block(kind, flags, stream, payload)
            if event is None:
                return
        else:
            event = Event(kind, flags, stream, payload)
        self.log.append(f"< {str(event)[:600]}")
        self.react(event)
        # Credit is added up, not kept: a long body brings thousands.
        if kind != WINDOW_UPDATE:
            self.events.append(event)

    def join_block(self, kind, flags, stream, payload):
        if self.block is None:
            if flags & PADDED:
                payload = payload[1:len(payload) - payload[0]]
            if flags & PRIORITY_FLAG:
                payload = payload[5:]
            self.block = Event(HEADERS, flags, stream, payload)
        else:
            assert (kind, stream) == (CONTINUATION, self.block.stream), (
                f"frame type {kind} on {stream} inside a header block\n{self.transcript()}")
            self.block.payload += payload
            self.block.flags |= flags & END_HEADERS
            self.block.frames += 1
        if not self.block.flags & END_HEADERS:
            return None
        event, self.block = self.block, None
        event.fields = self.decoder.decode(event.payload)
        return event

    def react(self, event):
        kind = event.kind
        if kind == SETTINGS and event.flags & ACK:
            self.settings_acked += 1
        elif kind == SETTINGS:
            self.their_settings.update(parse_settings(event.payload))
            if "settings" in self.auto:
                self.send(settings(ack=True))
        elif kind == PING and not event.flags & ACK and "ping" in self.auto:
            self.send(ping(event.payload, ack=True))
        elif kind == GOAWAY and event.code != NO_ERROR:
            self.went_away = True
        elif kind == WINDOW_UPDATE:
            if event.stream:
                held = self.stream_windows.get(event.stream, 0)
                self.stream_windows[event.stream] = held + event.increment
            else:
                self.connection_window += event.increment
        elif kind == DATA:
            self.data_received[event.stream] = (
                self.data_received.get(event.stream, 0) + len(event.payload))
            if event.payload:
                self.credit(event)

    def credit(self, event):
        """Give credit back: frame by frame ("credit at once"), or as libraries do, when half of
        the window is used ("credit")."""
        if "credit at once" in self.auto:
            enough = 1
        elif "credit" in self.auto:
            enough = min(16_384, max(1, self.window // 2))
        else:
            return
        for sid in (0, event.stream):
            self.owed[sid] = self.owed.get(sid, 0) + len(event.payload)
            if self.owed[sid] >= enough and not (sid and event.end_stream):
                self.send(window_update(sid, self.owed.pop(sid)))

    def wait(self, kind=None, stream=None, timeout=30, where=None, wanted=None):
        """The first event that fits; it is taken away, others stay."""
        wanted = wanted or (f"{TYPE_NAMES[kind] if kind is not None else 'event'}"
                            f" on stream {stream}")
        deadline = time.monotonic() + timeout
        while True:
            for at, event in enumerate(self.events):
                if ((kind is None or event.kind == kind)
                        and (stream is None or event.stream == stream)
                        and (where is None or where(event))):
                    del self.events[at]
                    return event
            self.pump(deadline, wanted)

    def head(self, stream, timeout=30):
        """The next header block of a stream, whatever it is (1xx, head or trailers)."""
        return self.wait(HEADERS, stream, timeout)

    def reset(self, stream, timeout=30):
        """The error code a stream was reset with."""
        return self.wait(RST_STREAM, stream, timeout).code

    def body(self, stream, timeout=100):
        """Everything up to END_STREAM: (octets, trailers or None)."""
        parts = []
        deadline = time.monotonic() + timeout
        while True:
            event = self.wait(stream=stream, timeout=deadline - time.monotonic(),
                              where=lambda e: e.kind in (DATA, HEADERS, RST_STREAM))
            if event.kind == RST_STREAM:
                raise AssertionError(f"{event} after {sum(map(len, parts))} octets of body\n"
                                     f"{self.transcript()}")
            if event.kind == HEADERS:
                assert event.end_stream, f"trailers without END_STREAM: {event}"
                return b"".join(parts), event
            parts.append(event.data)
            if event.end_stream:
                return b"".join(parts), None

    def ack_of_settings(self, timeout=30, count=1):
        """Wait until so many of the SETTINGS sent have an ACK."""
        deadline = time.monotonic() + timeout
        while self.settings_acked < count:
            self.pump(deadline, "SETTINGS ACK")

    def change_settings(self, octets):
        """Send one more SETTINGS frame and wait for its ACK."""
        count = self.settings_acked + 1
        self.send(octets)
        self.ack_of_settings(count=count)

    def round_trip(self, opaque=b"roundtrp", timeout=30):
        """A PING there and back: what was sent before has been taken in. Seconds it took."""
        start = time.monotonic()
        self.send(ping(opaque))
        self.wait(PING, 0, timeout, lambda e: e.flags & ACK and e.payload == opaque,
                  wanted="PING ACK")
        return time.monotonic() - start

    def goes_away(self, *codes, timeout=30, closes=True):
        """The GOAWAY with one of `codes` (any error if none is given), and then the close."""
        event = self.wait(GOAWAY, 0, timeout, lambda e: e.code != NO_ERROR or NO_ERROR in codes)
        allowed = " or ".join(map(code_name, codes)) or "an error"
        assert not codes or event.code in codes, (
            f"GOAWAY {code_name(event.code)}, not {allowed}\n{self.transcript()}")
        if closes:
            self.ends(timeout)
        return event

    def ends(self, timeout=30):
        """The other end closes; how."""
        deadline = time.monotonic() + timeout
        while not self.closed:
            self.pump(deadline, "close")
        return self.closed

    def drain_now(self):
        """Take in what is there without waiting; False once the other end has closed."""
        while not self.closed and select.select([self.sock], [], [], 0)[0]:
            self.pump(time.monotonic() + 1)
        return not self.closed

    # --- both ------------------------------------------------------------------------------

    def flood(self, chunks, timeout=60):
        """Send `chunks` one after the other, reading meanwhile; stops at an error GOAWAY or a
        close. What has to be answered meanwhile is answered between two chunks. How many chunks
        were sent."""
        self.log.append("  > flood")
        deadline = time.monotonic() + timeout
        self.sock.setblocking(False)
        pending, sent, chunks = memoryview(b""), 0, iter(chunks)
        self.behind = bytearray()
        try:
            while time.monotonic() < deadline and not self.closed and not self.went_away:
                if not pending:
                    chunk = next(chunks, b"")
                    # Before it comes what was answered meanwhile, and what its maker has sent.
                    pending, self.behind = memoryview(bytes(self.behind) + chunk), bytearray()
                    if not pending:
                        break
                    sent += bool(chunk)
                readable, writable, _ = select.select([self.sock], [self.sock], [], 1)
                if readable:
                    self.read_available()
                if writable and not self.closed:
                    try:
                        pending = pending[self.sock.send(pending):]
                    except BlockingIOError:
                        pass
                    except (BrokenPipeError, ConnectionResetError):
                        # Keep what it said before it closed.
                        self.read_available()
                        self.closed = self.closed or "reset"
        finally:
            self.sock.setblocking(True)
            self.behind = None
        self.log.append(f"  > {sent} chunks of the flood sent")
        return sent

    def read_available(self):
        try:
            octets = self.sock.recv(1 << 18)
        except BlockingIOError:
            return
        except ConnectionResetError:
            self.closed = "reset"
            return
        if not octets:
            self.closed = "end of file"
        self.inbox += octets
        self.sock.setblocking(True)
        self.take_in()
        self.sock.setblocking(False)

    def close(self):
        self.sock.close()

    def abort(self):
        """Close with a TCP reset."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def transcript(self):
        return "last frames (> sent, < received):\n  " + "\n  ".join(self.log)


def describe(octets):
    """Sent octets as frame names, for the transcript."""
    names, at = [], 0
    if octets.startswith(PREFACE):
        names, at = ["preface"], len(PREFACE)
    while len(octets) - at >= 9 and len(names) < 8:
        length = int.from_bytes(octets[at:at + 3], "big")
        kind, flags = octets[at + 3], octets[at + 4]
        stream = int.from_bytes(octets[at + 5:at + 9], "big")
        name = TYPE_NAMES[kind] if kind < len(TYPE_NAMES) else f"type {kind}"
        names.append(f"{name}/{stream} flags={flags:#x} len={length}")
        at += 9 + length
    if at < len(octets):
        names.append(f"... {len(octets)} octets in all" if len(names) == 8
                     else repr(octets[at:at + 40]))
    return ", ".join(names)
