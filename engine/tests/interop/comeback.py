"""What tests of lost and returning clients share: a wire that can be cut, and how a gateway's own
figures tell a resume from a new session."""

import select
import socket
import struct
import threading

from gateway import METRIC, until

# Long enough for any machine, unless a test is about their ends.
KEPT = 'park_window = "5m"\nidle = "1h"\nwait = "2m"\npark_yield = "1h"'


class Wire:
    """A TCP relay before the gateway. Cut, it ends towards the gateway as a lost client does."""

    def __init__(self, target):
        self.target, self.pairs = target, []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            try:
                near, _ = self.listener.accept()
            except OSError:
                return
            far = socket.create_connection(self.target, 60)
            far.settimeout(None)
            for sock in (near, far):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.pairs.append((near, far))
            threading.Thread(target=self._carry, args=(near, far), daemon=True).start()

    @staticmethod
    def _carry(near, far):
        try:
            while True:
                for sock in select.select([near, far], [], [])[0]:
                    octets = sock.recv(1 << 16)
                    if not octets:
                        return
                    (far if sock is near else near).sendall(octets)
        except (OSError, ValueError):
            pass

    def cut(self, how):
        """`rst` or `fin` towards the gateway; the client sees a reset. Nobody gets through any
        more."""
        self.listener.close()
        for near, far in self.pairs:
            if how == "rst":
                far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                # Ends the carrying thread's wait, too.
                near.shutdown(socket.SHUT_RDWR)
                far.close()
            else:
                far.shutdown(socket.SHUT_WR)
                near.shutdown(socket.SHUT_RDWR)

    def close(self):
        self.listener.close()
        for pair in self.pairs:
            for sock in pair:
                sock.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def count(gateway, name, **labels):
    """The sum of a metric's series with these labels; 0 if there is none yet."""
    wanted = [f'{key}="{value}"' for key, value in labels.items()]
    return sum(value for series, value in gateway.metrics().items()
               if series.partition("{")[0] in (name, METRIC + name)
               and all(label in series for label in wanted))


def dispatched(gateway):
    """What a new tunnel costs and a resume in memory does not: (tokens issued, CONNECTs)."""
    return (count(gateway, "worker_token_issued_total"),
            count(gateway, "worker_connect_total", result="accepted"))


def resumes(gateway, way):
    return count(gateway, "ringway_resumes_total", way=way, outcome="ok")


def row(gateway, session):
    return next((row for row in gateway.open_sessions() if row["requestId"] == session), None)


def parked(gateway, session):
    """Waits until the session has lost its client and keeps its tunnel; its row."""
    def is_parked():
        found = row(gateway, session)
        return found if found and found["state"] == "parked" else None
    return until(is_parked, what=f"{session} is parked", every=0.02)


def gone(gateway, session):
    """Waits until nothing is left of the session."""
    until(lambda: row(gateway, session) is None, what=f"the end of {session}", every=0.02)


def nothing_is_left(gateway, descriptors=None):
    """All tables are empty; with `descriptors`, not one more is open than that."""
    until(lambda: not gateway.open_sessions(), timeout=100, what="no session is left", every=0.05)
    for name in ("ringway_parked_tunnels", "active_connections_total",
                 "worker_connections_active"):
        until(lambda: count(gateway, name) == 0, timeout=100, what=f"{name} is 0", every=0.05)
    if descriptors is not None:
        until(lambda: gateway.open_files() <= descriptors, timeout=100,
              what=f"at most {descriptors} descriptors", every=0.05)
