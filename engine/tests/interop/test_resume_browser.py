"""WebSockets come back: Python's `websockets` and Chromium, by their cookie, to the worker they
were on, although a WebSocket uses its tunnel up (design 5)."""

import socket
import struct
from collections import Counter

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from comeback import KEPT, count, gone, nothing_is_left, parked, resumes
from crew import Crew, Speaker
from gateway import FUNCTION, KEY, OTHER_KEY, credentials, plain_head, until
from test_browser import visit


@pytest.fixture
def stand(serve, tmp_path):
    """A gateway and three workers with WebSocket servers behind them."""
    crews = []

    def make(session=KEPT, **settings):
        running = serve(session=session, **settings)
        crews.append(Crew(running, Speaker, tmp_path))
        return running, crews[-1]

    yield make
    for crew in crews:
        crew.__exit__()


GOING_AWAY = b"\x88\x82\0\0\0\0\x03\xe9"  # a masked Close with code 1001


class Caller:
    """A WebSocket client that has heard whose it is."""

    def __init__(self, gateway, cookie=None, key=KEY, sock=None):
        headers = credentials(key=key) + ([("cookie", cookie)] if cookie else [])
        host, port = gateway.client
        self.socket = connect(f"ws://{host}:{port}/ws", max_size=None, compression=None,
                              additional_headers=headers, open_timeout=100, sock=sock,
                              legacy=True)
        answer = self.socket.response.headers
        self.session, self.cookie = answer["nvcf-reqid"], answer["set-cookie"]
        self.worker = self.socket.recv(timeout=100)
        assert self.talks()

    def talks(self):
        self.socket.send("are you there?")
        return self.socket.recv(timeout=100) == f"{self.worker}: are you there?"

    def lose(self, how):
        """The connection ends, without a word, or as a browser that loads its page again ends it:
        with a Close, and the end right behind it."""
        if how == "close":
            # In one piece: nobody may read the answer in between.
            self.socket.socket.send(GOING_AWAY, socket.MSG_MORE)
            self.socket.socket.shutdown(socket.SHUT_RDWR)
        if how == "rst":
            self.socket.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER,
                                          struct.pack("ii", 1, 0))
            # Closed while the library's thread still reads, it would stay open.
            self.socket.socket.shutdown(socket.SHUT_RD)
        self.socket.socket.shutdown(socket.SHUT_RDWR) if how == "fin" else None
        self.socket.socket.close()


def spares_came(gateway, number):
    """Waits for so many spares. A tunnel that ends before its spare was even asked for is a
    session's end: the worker holds nothing of it any more."""
    until(lambda: count(gateway, "ringway_spares_total", outcome="came") >= number, timeout=100,
          what=f"{number} spares", every=0.02)


@pytest.mark.parametrize("cores", [1, 2])
@pytest.mark.parametrize("how", ["fin", "rst", "close"])
def test_a_websocket_client_comes_back_by_its_cookie(stand, how, cores):
    """Again and again; each time the tunnel was used up, and a spare replaces it."""
    running, crew = stand(cores=cores)
    first = visit = Caller(running)
    assert visit.cookie == f"nvcf-request-id={visit.session}"
    for turn in range(4):
        spares_came(running, turn + 1)
        visit.lose(how)
        if turn % 2:  # now and then before the gateway has noticed
            parked(running, first.session)
        visit = Caller(running, first.cookie)
        assert (visit.session, visit.worker) == (first.session, first.worker)
        assert visit.cookie == first.cookie
    assert [server.visits for server in crew.servers if server.visits] == [5], "another server"
    assert resumes(running, "spare") > 0
    visit.lose("rst")
    parked(running, first.session)
    assert running.get(f"/sessions/{first.session}", "DELETE")[0] == 204
    nothing_is_left(running)
    until(lambda: crew.said("session ended") == 1, what="the worker to be free")


def test_a_websocket_comes_back_as_a_call(stand):
    """Nothing was said on the spare: it fits whoever comes."""
    running, crew = stand()
    visit = Caller(running)
    visit.lose("rst")
    # The session is parked from the loss on, but only its used-up tunnel may be there yet.
    until(lambda: count(running, "ringway_parked_tunnels") == 1, what="the spare to be parked")
    with running.h2() as client:
        stream = client.open(plain_head(reqid=visit.session), end_stream=True)
        # Its server speaks HTTP/1.1 only; what matters is whose answer it is, if any.
        head = client.head(stream)
        assert head.status in ("200", "502"), str(head)
    assert crew.said("tunnel open") == 2


def test_nobody_else_gets_it(stand):
    running, _ = stand(cores=2)
    visit = Caller(running)
    visit.lose("fin")
    parked(running, visit.session)
    with pytest.raises(InvalidStatus) as failure:
        Caller(running, visit.cookie, key=OTHER_KEY)
    answer = failure.value.response
    assert answer.status_code == 500 and b"NCA ID mismatch" in answer.body, answer
    assert Caller(running, visit.cookie).worker == visit.worker


def test_the_window_runs_out(stand):
    running, crew = stand(session='park_window = "1s"\nidle = "1h"')
    visit = Caller(running)
    visit.lose("rst")
    gone(running, visit.session)
    with pytest.raises(InvalidStatus) as failure:
        Caller(running, visit.cookie)
    answer = failure.value.response
    assert answer.status_code == 404 and b"no existing session found" in answer.body, answer
    assert answer.headers["set-cookie"] == "nvcf-request-id=; Max-Age=0"
    until(lambda: crew.said("session ended") == 1, what="the worker to be free")
    nothing_is_left(running)


def test_nothing_is_kept_and_no_spare_asked_if_so_configured(stand):
    running, crew = stand(session='park = "never"\nidle = "1h"')
    visit = Caller(running)
    visit.lose("rst")
    gone(running, visit.session)
    until(lambda: crew.said("session ended") == 1, what="the worker to be free")
    assert crew.said("tunnel open") == 1


@pytest.mark.parametrize("by", ["server", "handshake"])
def test_a_default_functions_server_ends_and_the_worker_is_free(stand, by):
    """The function has finished with its client: neither tunnel nor spare stays."""
    running, crew = stand()
    visit = Caller(running)
    spares_came(running, 1)
    if by == "server":
        visit.socket.send("end this")
        with pytest.raises(ConnectionClosed):
            visit.socket.recv(timeout=100)
    else:
        visit.socket.close()
    gone(running, visit.session)
    until(lambda: crew.said("session ended") == 1, what="the worker to be free")
    assert count(running, "ringway_spares_total", outcome="unused") == 1
    nothing_is_left(running)


@pytest.mark.parametrize("early", [False, True])
def test_a_streaming_functions_server_ends_and_the_session_goes_on(stand, early):
    """The used tunnel ends first; the spare keeps the session for who comes back, also one that
    the worker is only then told of."""
    running, _ = stand(kind="streaming")
    visit = Caller(running)
    if not early:
        spares_came(running, 1)
    visit.socket.send("end this")
    with pytest.raises(ConnectionClosed):
        visit.socket.recv(timeout=100)
    spares_came(running, 1)
    parked(running, visit.session)
    assert Caller(running, visit.cookie).worker == visit.worker


def test_a_hundred_visits_of_twelve_sessions(stand, measure):
    """Whoever is lost, however: each is back where it was."""
    running, _ = stand(cores=2)
    visits = [Caller(running) for _ in range(12)]
    assert set(Counter(visit.worker for visit in visits).values()) == {4}
    for turn in range(96):
        old = visits[turn % 12]
        spares_came(running, 12 + turn)
        old.lose(("fin", "rst", "close")[turn % 3])
        visits[turn % 12] = new = Caller(running, old.cookie)
        assert (new.session, new.worker) == (old.session, old.worker)
    ways = {way: int(resumes(running, way)) for way in ("memory", "spare", "reconnect")}
    measure(f"96 WebSockets back by {ways}")
    for caller in visits:
        assert caller.talks()
        caller.lose("rst")
    for caller in visits:
        parked(running, caller.session)
        assert running.get(f"/sessions/{caller.session}", "DELETE")[0] == 204
    nothing_is_left(running)


# --- Chromium -------------------------------------------------------------------------------

PAGE = """<!doctype html><title>page</title><script>
// Loads itself again and again; each time it notes whose worker it is on, and by which session.
const loads = JSON.parse(sessionStorage.getItem("loads") || "[]");
const socket = new WebSocket("ws://GATEWAY/ws", ["authorization.KEY", "function-id.FUNCTION", "chat"]);
const load = {worker: null, echoed: null, cookie: null};
function over() {
  loads.push(load);
  sessionStorage.setItem("loads", JSON.stringify(loads));
  if (loads.length < LOADS) {
    fetch("/wait?" + loads.length).then(() => { LEAVE });
  } else {
    fetch("/result", {method: "POST", body: JSON.stringify(loads)});
  }
}
socket.onmessage = event => {
  if (load.worker === null) {
    load.worker = event.data;
    load.cookie = document.cookie;
    socket.send("hello");
  } else if (load.echoed === null) {
    load.echoed = event.data;
    over();
  }
};
socket.onclose = event => { if (load.echoed === null) { load.closed = event.code; over(); } };
</script>"""

LEAVES = {
    "reload": "location.reload();",
    "go elsewhere and back": "location.href = '/elsewhere';",
}
ELSEWHERE = "<!doctype html><script>setTimeout(() => { location.href = '/'; }, 50);</script>"


@pytest.mark.alone
@pytest.mark.parametrize("cores", [1, 2])
@pytest.mark.parametrize("leave", LEAVES, ids=[leave.replace(" ", "-") for leave in LEAVES])
def test_a_page_that_is_loaded_again_is_back_on_its_session(stand, tmp_path, leave, cores):
    """Chromium tears the WebSocket down as it does when a user reloads; the page knows nothing
    of sessions, its cookie brings it back."""
    running, crew = stand(cores=cores)
    host, port = running.client
    page = (PAGE.replace("GATEWAY", f"{host}:{port}").replace("KEY", KEY)
            .replace("FUNCTION", FUNCTION).replace("LOADS", "6").replace("LEAVE", LEAVES[leave]))
    loads = visit(page, tmp_path, elsewhere=ELSEWHERE,
                  noted=lambda path: spares_came(running, int(path.partition("?")[2])))
    worker, cookie = loads[0]["worker"], loads[0]["cookie"]
    assert worker and cookie.startswith("nvcf-request-id="), loads
    assert loads == [{"worker": worker, "echoed": f"{worker}: hello", "cookie": cookie}] * 6, loads
    session = cookie.partition("=")[2]
    # The browser was killed with the last page open: that is a lost client, too.
    spares_came(running, 6)
    parked(running, session)
    assert Caller(running, cookie).worker == worker
    assert [server.visits for server in crew.servers if server.visits] == [7]
    assert {row["requestId"] for row in running.sessions()} == {session}, "another session"


CLOSING = """<!doctype html><title>page</title><script>
const socket = new WebSocket("ws://GATEWAY/ws", ["authorization.KEY", "function-id.FUNCTION", "chat"]);
socket.onmessage = () => { fetch("/wait?0").then(() => socket.close(1000, "bye")); };
socket.onclose = event => fetch("/result", {method: "POST", body: JSON.stringify(
    [{code: event.code, clean: event.wasClean}])});
</script>"""


@pytest.mark.alone
def test_a_page_that_closes_its_websocket_frees_the_worker(stand, tmp_path):
    """Chromium waits for the server's end of a Close handshake."""
    running, crew = stand()
    host, port = running.client
    page = (CLOSING.replace("GATEWAY", f"{host}:{port}").replace("KEY", KEY)
            .replace("FUNCTION", FUNCTION))
    told = visit(page, tmp_path, noted=lambda _: spares_came(running, 1))
    assert told == [{"code": 1000, "clean": True}], told
    until(lambda: crew.said("session ended") == 1, what="the worker to be free")
    assert count(running, "ringway_spares_total", outcome="unused") == 1
    nothing_is_left(running)
