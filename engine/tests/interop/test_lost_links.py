"""A lost network, as users have it: the link of a host goes down and comes up again. grpcio,
Python's `websockets` and Chromium in network namespaces; each is back on its own worker."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cable import Cable
from comeback import KEPT, count, dispatched, gone, nothing_is_left, parked, resumes
from crew import Answerer, Crew, Speaker
from gateway import FUNCTION, KEY, until
from test_browser import visit
from test_resume_browser import Caller

pytestmark = pytest.mark.alone
HERE = Path(__file__).parent
# The gateway notices a dead peer within seconds, or never.
QUICK = '[keepalive]\nidle = "1s"\ninterval = "1s"\nprobes = 2\nuser_timeout = "3s"'
NEVER = '[keepalive]\nidle = "1h"\ninterval = "1h"\nuser_timeout = "1h"'


class Guest:
    """`grpcguest.py` at the far end of a cable."""

    def __init__(self, cable, port):
        self.run = subprocess.Popen(
            ["ip", "netns", "exec", cable.name, "setpriv", "--pdeathsig", "KILL", sys.executable,
             str(HERE / "grpcguest.py"), cable.here, str(port)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __getattr__(self, act):
        def ask(*arguments):
            print(act, *arguments, file=self.run.stdin, flush=True)
            line = self.run.stdout.readline()
            assert line, f"{act}: the guest has died"
            return json.loads(line)
        return ask

    def kill(self):
        self.run.kill()
        self.run.wait()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.kill()


@pytest.fixture
def cables():
    made = []
    try:
        made += [Cable(), Cable()]
        yield made
    finally:
        for cable in made:
            cable.close()


@pytest.fixture
def stand(serve, tmp_path):
    crews = []

    def make(kind, keepalive, **settings):
        running = serve(session=KEPT, more=keepalive, host="0.0.0.0", advertise="127.0.0.1",
                        **settings)
        crews.append(Crew(running, kind, tmp_path, address=("127.0.0.1", running.worker[1])))
        return running, crews[-1]

    yield make
    for crew in crews:
        crew.__exit__()


@pytest.mark.parametrize("cores", [1, 2])
def test_grpcio_whose_link_goes_down_and_up(stand, cables, cores):
    """The same process, the same channel: when the link is back, so is the session."""
    running, crew = stand(Answerer, QUICK, cores=cores)
    with Guest(cables[0], running.client[1]) as guest:
        first = guest.call()
        before = dispatched(running)
        for _ in range(3):
            assert guest.hold() == {"held": "first"}
            cables[0].pull()
            assert guest.lost()["lost"] in ("UNAVAILABLE", "INTERNAL")
            parked(running, first["session"])
            cables[0].plug()
            assert guest.call(first["session"]) == first
        assert dispatched(running) == before
        assert resumes(running, "memory") == 3 and crew.said("tunnel open") == 1


def test_grpcio_that_returns_from_elsewhere_while_the_old_one_looks_alive(stand, cables):
    """A pulled cable that nobody notices: the returning client has a second tunnel of the same
    worker (R9); when the old connection ends at last, only that one is left."""
    running, crew = stand(Answerer, NEVER)
    with Guest(cables[0], running.client[1]) as guest, \
            Guest(cables[1], running.client[1]) as again:
        first = guest.call()
        guest.hold()
        cables[0].pull()
        guest.kill()
        assert again.call(first["session"]) == first
        assert resumes(running, "reconnect") == 1
        assert count(running, "worker_connections_active") == 2
        cables[0].plug()  # what the kernel still had to say arrives
        until(lambda: count(running, "worker_connections_active") == 1, timeout=200,
              what="the old tunnel's end")
        assert count(running, "ringway_parked_tunnels") == 0
        assert again.call() == first
        assert crew.said("session ended") == 0


def test_grpcio_that_is_killed_and_comes_back_from_elsewhere(stand, cables):
    running, _ = stand(Answerer, QUICK, cores=2)
    with Guest(cables[0], running.client[1]) as guest, \
            Guest(cables[1], running.client[1]) as again:
        first = guest.call()
        guest.hold()
        before = dispatched(running)
        cables[0].pull()
        guest.kill()
        parked(running, first["session"])
        assert again.call(first["session"]) == first
        assert dispatched(running) == before


@pytest.mark.parametrize("cores", [1, 2])
def test_a_websocket_whose_link_goes_down_and_up(stand, cables, cores):
    running, _ = stand(Speaker, QUICK, cores=cores)
    at = cables[0].here, running.client[1]
    first = caller = Caller(running, sock=cables[0].connect(at, 60))
    for _ in range(3):
        cables[0].pull()
        parked(running, first.session)  # if need be until its spare has come
        cables[0].plug()
        caller.lose("fin")
        caller = Caller(running, first.cookie, sock=cables[0].connect(at, 60))
        assert (caller.session, caller.worker) == (first.session, first.worker)


def test_a_session_whose_network_stays_away(stand, cables):
    """The window runs out, the worker is free; nothing is left."""
    running, crew = stand(Answerer, QUICK, cores=2)
    with Guest(cables[0], running.client[1]) as guest:
        first = guest.call()
        guest.hold()
        cables[0].pull()
        parked(running, first["session"])
        assert running.get(f"/sessions/{first['session']}", "DELETE")[0] == 204
        gone(running, first["session"])
        until(lambda: crew.said("session ended") == 1, what="the worker to be free")
        nothing_is_left(running)


# A page that says something ever so often, and opens its socket again when that ends.
PAGE = """<!doctype html><title>page</title><script>
const met = [];
function open() {
  const socket = new WebSocket("ws://GATEWAY/ws", ["authorization.KEY", "function-id.FUNCTION", "chat"]);
  let worker = null;
  socket.onmessage = event => {
    if (worker !== null) return;
    worker = event.data;
    met.push([worker, document.cookie]);
    fetch("/note?" + met.length);
    if (met.length == 3) fetch("/result", {method: "POST", body: JSON.stringify(met)});
  };
  const tick = setInterval(() => { if (worker !== null) socket.send("tick"); }, 100);
  socket.onclose = () => { clearInterval(tick); setTimeout(open, 200); };
}
open();
</script>"""


def test_chromium_whose_link_goes_down_and_up(stand, cables, tmp_path):
    """A page that only opens its WebSocket again when it ends."""
    running, crew = stand(Speaker, QUICK, cores=2)
    cable, session = cables[0], []

    def noted(path):
        """The page has heard from its worker: its link goes, until that is noticed."""
        if path != "/note?3":
            session[:] = [row["requestId"] for row in running.open_sessions()]
            cable.pull()
            parked(running, session[0])
            cable.plug()

    page = (PAGE.replace("GATEWAY", f"{cable.here}:{running.client[1]}").replace("KEY", KEY)
            .replace("FUNCTION", FUNCTION))
    met = visit(page, tmp_path, host=cable.here, noted=noted,
                launcher=("ip", "netns", "exec", cable.name))
    assert len(met) == 3 and met == [met[0]] * 3, met
    assert met[0][1] == f"nvcf-request-id={session[0]}"
    assert [server.visits for server in crew.servers if server.visits] == [3]
