"""A real `nats-server`, one or three, and a client of it whose calls return when they are done."""

import asyncio
import contextlib
import json
import os
import queue
import shutil
import signal
import socket
import subprocess
import threading
from pathlib import Path

import nats
import nats.errors
import nats.js.errors

from gateway import ROOT, free_port, until

REGION = "ncp"
# Who is no proxy: workers, and the tests themselves.
USER, PASSWORD = "worker", "worker-password"


def program():
    """NATS_SERVER_BIN, else the one that tools/install-test-tools.sh installs."""
    return os.environ.get("NATS_SERVER_BIN", str(ROOT / ".tools/bin/nats-server"))


class NatsServer:
    """One server; `more` goes into its file. Killed and started again it keeps its port, and loses
    what was in memory."""

    def __init__(self, directory, name="nats", more="", wait=True, host="127.0.0.1"):
        self.name, self.host, self.port = name, host, free_port()
        self.log_path = Path(directory) / f"{name}.log"
        self.path = Path(directory) / f"{name}.conf"
        self.run = None
        self.path.write_text(f"""server_name: "{name}"
listen: "{host}:{self.port}"
jetstream {{ store_dir: "{Path(directory) / name}", max_mem: 512MB, max_file: 512MB }}
{more}
""")
        if wait:
            self.start()

    def url(self, user=USER, password=PASSWORD):
        who = f"{user}:{password}@" if user else ""
        return f"nats://{who}{self.host}:{self.port}"

    def start(self, wait=True):
        tether = ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []
        with open(self.log_path, "ab") as log:
            self.run = subprocess.Popen([*tether, program(), "-c", str(self.path)], stdout=log,
                                        stderr=log, start_new_session=True)
        if wait:
            until(self.answers, what=f"{self.name}: {self.log_path.read_text()}")
        return self

    def answers(self):
        """Whether it greets who connects."""
        assert self.run.poll() is None, self.log_path.read_text()
        with contextlib.suppress(OSError), \
                socket.create_connection((self.host, self.port), 1) as probe:
            return probe.recv(5) == b"INFO "
        return False

    def lame_duck(self):
        """The server tells its clients that it is about to leave."""
        self.run.send_signal(signal.SIGUSR2)

    def kill(self):
        if self.run and self.run.poll() is None:
            self.run.kill()
        if self.run:
            self.run.wait()


def users(*nkeys):
    """The part of a server's file that lets in proxies with these keys, and the tests' user."""
    known = "".join(f"{{ nkey: {nkey} }}, " for nkey in nkeys)
    return f'authorization {{ users: [ {known}{{ user: {USER}, password: {PASSWORD} }} ] }}'


class Cluster:
    """Three servers of which each has a tag of its own, and all have `dc:ncp`."""

    def __init__(self, directory, more=""):
        ports = [free_port() for _ in range(3)]
        routes = ", ".join(f'"nats://127.0.0.1:{port}"' for port in ports)
        self.servers = [NatsServer(directory, f"nats{n}", f"""{more}
server_tags: ["dc:ncp", "node:{n}"]
cluster {{ name: bed, listen: "127.0.0.1:{port}", routes: [{routes}] }}""", wait=False)
                        for n, port in enumerate(ports)]
        for server in self.servers:
            server.start(wait=False)
        for server in self.servers:
            until(server.answers, what=server.name)
        with Nats(self.url()) as client:
            # Until all three are known to their leader there is nothing on three servers.
            until(lambda: "error" not in client.js("STREAM.CREATE.probe", name="probe",
                                                   subjects=["probe"], storage="memory",
                                                   num_replicas=3), what="three servers")
            client.js("STREAM.DELETE.probe")

    def url(self, user=USER, password=PASSWORD):
        return ",".join(server.url(user, password) for server in self.servers)

    def kill(self):
        for server in self.servers:
            server.kill()


class Inbox:
    """The messages of a subscription."""

    def __init__(self):
        self.messages = queue.Queue()

    async def arrived(self, message):
        self.messages.put(message)

    def next(self, timeout=30):
        try:
            return self.messages.get(timeout=timeout)
        except queue.Empty:
            raise AssertionError(f"no message within {timeout} s") from None


class NoResponders(Exception):
    """Nobody listens to a subject that was asked."""


class Nats:
    """A client. It comes back by itself when its server does."""

    def __init__(self, url, **options):
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        options = {"max_reconnect_attempts": -1, "reconnect_time_wait": 0.1, **options}

        async def told(error):
            self.errors.append(error)

        self.errors = []
        self.client = self.do(nats.connect(url.split(","), error_cb=told, **options))

    def do(self, coroutine, timeout=30):
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(timeout)

    def js(self, call, **body):
        """JetStream's answer to an API call; one without a leader counts as an error too."""
        try:
            answer = self.do(self.client.request(f"$JS.API.{call}", json.dumps(body).encode(), 2))
        except (nats.errors.NoRespondersError, nats.errors.TimeoutError) as error:
            return {"error": {"description": repr(error)}}
        return json.loads(answer.data)

    def publish(self, subject, payload):
        """Into a stream; how it was acknowledged."""
        return self.do(self.client.jetstream().publish(subject, payload))

    def request(self, subject, payload, timeout=5):
        try:
            return self.do(self.client.request(subject, payload, timeout))
        except nats.errors.NoRespondersError:
            raise NoResponders(subject) from None

    def listen(self, subject):
        inbox = Inbox()
        self.do(self.client.subscribe(subject, cb=inbox.arrived))
        self.do(self.client.flush())
        return inbox

    def state(self, stream):
        """The stream's state, or None without such a stream."""
        return self.js(f"STREAM.INFO.{stream}").get("state")

    def messages(self, stream):
        """How many there are, or None without such a stream."""
        state = self.state(stream)
        return state and state["messages"]

    def queued(self, version, region=REGION):
        """(messages in the request stream, those that workers hold); None while nobody can tell,
        as between two leaders."""
        stream = f"rq_{region}_{version}"
        consumer = self.js(f"CONSUMER.INFO.{stream}.{stream}_workers")
        state = self.state(stream)
        if state is None or "error" in consumer:
            return None
        return state["messages"], consumer["num_ack_pending"]

    def last(self, stream, subject):
        """The last message of a subject: its payload, or None."""
        try:
            found = self.do(self.client.jetstream().get_last_msg(stream, subject))
        except nats.js.errors.NotFoundError:
            return None
        return found

    def make_lookups(self, replicas=1, region=REGION):
        """The lookup stream as a proxy makes it (contract NT-3)."""
        name = f"stateful_session_lookup_{region}"
        answer = self.js(
            f"STREAM.CREATE.{name}", name=name, storage="memory", retention="limits",
            subjects=[f"stateful_session.lookup.{region}.>"], discard="new", max_msgs=100_000,
            max_msgs_per_subject=1, max_age=3_600_000_000_000, num_replicas=replicas,
            allow_direct=True)
        assert "error" not in answer, answer
        return name

    def close(self):
        self.do(self.client.close())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
