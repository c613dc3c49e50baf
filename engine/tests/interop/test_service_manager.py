"""Under a service manager: the manager gets the gateway's status (sd_notify(3)), it sees that every core turns,
and the sockets it opened (sd_listen_fds(3)) are served by all cores and outlive a restart."""

import ctypes
import os
import signal
import socket
import threading
import time
from pathlib import Path

import pytest

from fakeworker import FakeWorker
from gateway import Gateway, configuration, free_port, grpc_head, until
from rawh2 import HEADERS, Peer, rst_stream

WATCHDOG = 1.5  # seconds
CORES = 2
CROWD = 300


class Manager:
    """The other end of NOTIFY_SOCKET."""

    def __init__(self, directory):
        self.path = str(Path(directory) / "notify")
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(self.path)
        self.told = []  # (when, {name: value})
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self):
        while True:
            lines = self.socket.recv(4096).decode().splitlines()
            self.told.append((time.monotonic(), dict(line.split("=", 1) for line in lines)))

    def has(self, name, value=None, since=0.0):
        """The first message since then that says so."""
        said = (told for when, told in list(self.told) if when >= since and name in told)
        return next((told for told in said if value in (None, told[name])), None)

    def waits_for(self, name, value=None, since=0.0):
        return until(lambda: self.has(name, value, since), what=f"{name}={value}")


@pytest.fixture
def manager(tmp_path):
    return Manager(tmp_path)


class Managed(Gateway):
    """`serve` as a service manager starts it: `sockets` become its descriptors from 3 on."""

    def __init__(self, directory, manager=None, sockets=(), names=(), watchdog=None, name="managed",
                 **settings):
        path = Path(directory) / "ringway.toml"
        text = configuration(**settings)
        # Sockets without a name are known by their ports.
        if sockets and not names:
            text = text.replace('"127.0.0.1:0"', f'"127.0.0.1:{port_of(sockets[0])}"', 1)
        path.write_text(text)
        env = dict(os.environ)
        if manager:
            env["NOTIFY_SOCKET"] = manager.path
        if watchdog:
            env["WATCHDOG_USEC"] = str(round(watchdog * 1e6))
        held = [own.fileno() for own in sockets]
        # LISTEN_PID is the shell's, which becomes the program. None of these takes the place of
        # another that is still to be moved.
        moves = [f"exec {200 + at}>&{fd}" for at, fd in enumerate(held)]
        moves += [f"exec {3 + at}>&{200 + at} {200 + at}>&-" for at in range(len(held))]
        says = f"export LISTEN_PID=$$ LISTEN_FDS={len(held)} LISTEN_FDNAMES={':'.join(names)}"
        says += "" if names else "; unset LISTEN_FDNAMES"
        launcher = ["bash", "-c", "; ".join([*moves, says, 'exec "$@"']), "bash"] if held else []
        super().__init__(["serve", "--config", str(path)], directory, name, launcher, env, held)


def port_of(listener):
    return listener.getsockname()[1]


def listener(port=0, reuse=False):
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if reuse:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    made.bind(("127.0.0.1", port))
    made.listen(4096)
    return made


@pytest.fixture
def listening():
    with listener() as made:
        yield made


# --- its messages --------------------------------------------------------------------------


def test_readiness_reload_and_end_are_told(tmp_path, manager):
    with Managed(tmp_path, manager, cores=1) as gateway:
        assert manager.waits_for("READY", "1")["STATUS"] == "serving on 1 core"
        begun = time.monotonic()
        gateway.signal(signal.SIGHUP)
        reload = manager.waits_for("RELOADING", "1", begun)
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC) / 1_000
        assert now - 30e6 < int(reload["MONOTONIC_USEC"]) <= now, reload
        manager.waits_for("READY", "1", begun)
        until(lambda: "the configuration was read again" in gateway.log_text(), what="the log")
        gateway.signal()
        assert gateway.exit_code() == 0
        end = manager.waits_for("STOPPING", "1")
        # drain.max is 60 s if nothing else is said, and a core that does not end has 10 s more.
        assert end["EXTEND_TIMEOUT_USEC"] == "70000000", end
        assert end["STATUS"] == "draining, for 70 s at most", end


def test_a_refused_configuration_is_never_ready(tmp_path, manager):
    with pytest.raises(AssertionError, match="exit code 78"):
        Managed(tmp_path, manager, session='nonsense = "1s"')
    assert not manager.told


def test_a_gateway_goes_on_without_a_manager_that_listens(tmp_path, manager):
    manager.path += ".gone"
    with Managed(tmp_path, manager, watchdog=WATCHDOG) as gateway:
        until(lambda: "could not be notified" in gateway.log_text(), what="the log")
        gateway.h2().close()


# --- the watchdog ---------------------------------------------------------------------------


class Halted:
    """One thread of a program, held still as a debugger does it (ptrace(2)); the others run on."""

    DETACH, SEIZE, INTERRUPT, ANY_THREAD = 17, 0x4206, 0x4207, 0x40000000

    def __init__(self, gateway, name):
        threads = Path(f"/proc/{gateway.pid}/task").iterdir()
        self.thread = next(int(own.name) for own in threads
                           if (own / "comm").read_text().strip() == name)
        self.libc = ctypes.CDLL(None, use_errno=True)

    def _ptrace(self, request):
        zero = ctypes.c_void_p(0)
        result = self.libc.ptrace(ctypes.c_long(request), self.thread, zero, zero)
        assert result == 0, os.strerror(ctypes.get_errno())

    def __enter__(self):
        self._ptrace(self.SEIZE)
        self._ptrace(self.INTERRUPT)
        assert os.waitpid(self.thread, self.ANY_THREAD)[0] == self.thread

    def __exit__(self, *_):
        self._ptrace(self.DETACH)


def test_the_watchdog_is_fed_only_while_every_core_turns(tmp_path, manager):
    with Managed(tmp_path, manager, watchdog=WATCHDOG, cores=CORES) as gateway:
        peer = gateway.h2()
        manager.waits_for("STATUS", "serving 1 client on 2 cores")
        begun = time.monotonic()
        time.sleep(2 * WATCHDOG)
        fed = [when for when, told in manager.told if when >= begun and told.get("WATCHDOG") == "1"]
        gaps = [after - before for before, after in zip([begun, *fed], fed)]
        assert gaps and max(gaps) < WATCHDOG, gaps
        with Halted(gateway, "ringway-core-1"):
            # What was asked before may still be answered.
            since = time.monotonic() + WATCHDOG
            until(lambda: time.monotonic() > since + 3 * WATCHDOG, every=WATCHDOG)
            assert not manager.has("WATCHDOG", since=since), "it was fed"
            status = manager.waits_for("STATUS", since=since)["STATUS"]
            assert status.startswith("1 of 2 cores turn"), status
            assert gateway.get("/live")[0] == 200
        manager.waits_for("WATCHDOG", "1", time.monotonic())
        gateway.logs("the watchdog is not fed")
        peer.close()


# --- sockets that outlive it ----------------------------------------------------------------


def call(client, worker):
    """A call through a new session."""
    stream = client.open(grpc_head(), end_stream=True)
    _, tunnel = worker.take()
    request = tunnel.wait(HEADERS)
    tunnel.headers(request.stream, [(":status", "200"), ("content-type", "application/grpc"),
                                    ("grpc-status", "0")], end_stream=True)
    head = client.head(stream)
    assert (head.status, head.grpc_status) == ("200", "0"), str(head)
    return tunnel


def connected(listening):
    """A client that has sent its call and hopes to be served."""
    client = Peer(socket.create_connection(("127.0.0.1", port_of(listening)), 10), client=True)
    return client, client.open(grpc_head(key="nobody's"), end_stream=True)


@pytest.mark.parametrize("io", ["ring", "epoll"])
def test_clients_wait_while_it_restarts(tmp_path, io):
    """Two ports are handed down, and known by their numbers; the third it opens by itself."""
    port = free_port()
    with listener() as listening, listener(port) as work:
        settings = dict(io=io, worker_port=port, session='park = "never"')
        with Managed(tmp_path, sockets=[listening, work], **settings) as gateway:
            assert gateway.client == listening.getsockname() and gateway.worker == work.getsockname()
            with FakeWorker(gateway) as worker:
                client = gateway.h2()
                tunnel = call(client, worker)
                held = client.open(grpc_head(), end_stream=False)
                tunnel.wait(HEADERS, where=lambda head: head.stream > 1)
                gateway.signal()
                until(lambda: gateway.get("/ready")[0] == 503, what="the drain")
                until(lambda: "draining" in gateway.log_text(), what="the log")
                # The drain waits for the call that is open; whoever comes now is not refused.
                time.sleep(0.3)
                early, early_stream = connected(listening)
                assert gateway.alive()
                client.send(rst_stream(held))
                assert gateway.exit_code() == 0
        late, late_stream = connected(listening)
        with Managed(tmp_path, sockets=[listening, work], name="after", **settings) as gateway:
            for peer, stream in (early, early_stream), (late, late_stream):
                assert peer.head(stream).grpc_status == "16"
                peer.close()
            with FakeWorker(gateway) as worker:
                call(gateway.h2(), worker)


def per_core(gateway):
    return [gateway.metric("ringway_core_client_connections", core=str(core)) for core in range(CORES)]


@pytest.mark.parametrize("io", ["ring", "epoll"])
@pytest.mark.parametrize("sockets", [1, CORES])
def test_two_cores_share_what_was_handed_down(tmp_path, io, sockets, measure):
    """One socket for both cores, and one for each of them as with `ReusePort=`."""
    first = listener(reuse=sockets > 1)
    listeners = [first, *(listener(port_of(first), reuse=True) for _ in range(sockets - 1))]
    with Managed(tmp_path, sockets=listeners, names=["client"] * sockets, io=io, cores=CORES) as gateway:
        before = per_core(gateway)
        # At once: they lie in the queue before the first core looks.
        crowd = [socket.create_connection(gateway.client, 10) for _ in range(CROWD)]
        until(lambda: sum(per_core(gateway)) - sum(before) >= CROWD, what="all are let in")
        share = [now - then for now, then in zip(per_core(gateway), before)]
        measure(f"{CROWD} clients on {sockets} socket(s): {share} on the cores")
        # Of one queue the gateway makes halves, but for an eighth; else the kernel's hash does.
        assert min(share) >= CROWD * (0.44 if sockets == 1 else 0.35), share
        for client in crowd:
            client.close()
    for listening in listeners:
        listening.close()


def test_a_socket_for_nothing_is_refused(tmp_path):
    with listener() as stray:
        with pytest.raises(AssertionError, match=r"exit code 78") as refused:
            Managed(tmp_path, sockets=[stray], names=["metrics"])
        assert "descriptor 3 is of no use: it (metrics, 127.0.0.1:" in str(refused.value)
        assert "FileDescriptorName=client" in str(refused.value)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
        datagrams.bind(("127.0.0.1", 0))
        with pytest.raises(AssertionError, match=r"exit code 78.*") as refused:
            Managed(tmp_path, sockets=[datagrams], names=["client"])
        assert "is no TCP listener" in str(refused.value)
