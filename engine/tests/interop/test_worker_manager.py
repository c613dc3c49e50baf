"""`ringway-worker` under a service manager (sd_notify(3)): the manager is told when work is asked for, how it
goes, and that the thread of the tunnels turns."""

import os
import signal
import time

import pytest

from gateway import WORKER_KEY, dead_port, free_port
from test_service_manager import Manager
from workerprogram import WorkerProgram

WATCHDOG = 1.5  # seconds


@pytest.fixture
def manager(tmp_path):
    return Manager(tmp_path)


def environment(manager, watchdog=None):
    more = {"WATCHDOG_USEC": str(round(watchdog * 1e6))} if watchdog else {}
    return {**os.environ, "NOTIFY_SOCKET": manager.path, **more}


def test_it_is_ready_once_a_gateway_lets_it_wait_and_says_how_it_goes(serve, tmp_path, manager):
    gateway = serve()
    with WorkerProgram([gateway.worker], f"127.0.0.1:{dead_port()}", tmp_path, slots=4,
                       more=["--drain-max", "7"], env=environment(manager, WATCHDOG)) as worker:
        assert manager.waits_for("READY", "1")["STATUS"] == "serving 0 sessions of 4 at most"
        begun = time.monotonic()
        time.sleep(2 * WATCHDOG)
        fed = [when for when, told in manager.told if when >= begun and told.get("WATCHDOG") == "1"]
        gaps = [after - before for before, after in zip([begun, *fed], fed)]
        assert gaps and max(gaps) < WATCHDOG, gaps
        worker.signal()
        assert worker.exit_code() == 0
    end = manager.waits_for("STOPPING", "1")
    assert end["STATUS"] == "draining, for 7 s at most", end
    # 20 s more for answers on their way and last words.
    assert end["EXTEND_TIMEOUT_USEC"] == "27000000", end


def test_a_worker_that_stands_still_feeds_no_watchdog(serve, tmp_path, manager):
    gateway = serve()
    with WorkerProgram([gateway.worker], f"127.0.0.1:{dead_port()}", tmp_path,
                       env=environment(manager, WATCHDOG)) as worker:
        manager.waits_for("READY", "1")
        manager.waits_for("WATCHDOG", "1")
        worker.signal(signal.SIGSTOP)
        since = time.monotonic() + 0.1
        time.sleep(2 * WATCHDOG)
        assert not manager.has("WATCHDOG", since=since)
        worker.signal(signal.SIGCONT)
        manager.waits_for("WATCHDOG", "1", since)


def test_a_gateway_that_is_away_keeps_no_start_waiting(serve, tmp_path, manager):
    port = free_port()
    with WorkerProgram([("127.0.0.1", port)], f"127.0.0.1:{dead_port()}", tmp_path,
                       env=environment(manager, WATCHDOG)) as worker:
        told = manager.waits_for("READY", "1")
        assert told["STATUS"] == "1 of 1 gateways cannot be polled, 0 sessions", told
        serve(worker_port=port)
        worker.says("polling: the gateway knows")
        manager.waits_for("STATUS", "serving 0 sessions of 1 at most")


def test_a_refused_key_is_never_ready(serve, tmp_path, manager):
    gateway = serve()
    with WorkerProgram([gateway.worker], "127.0.0.1:1", tmp_path, key="nobody's",
                       env=environment(manager)) as worker:
        assert worker.exit_code() == 78
        assert WORKER_KEY not in worker.log_text()
    assert not manager.has("READY")


def test_by_nats_too(tmp_path, manager):
    url = f"nats://127.0.0.1:{dead_port()}"
    with WorkerProgram.by_nats(url, "127.0.0.1:1", tmp_path, env=environment(manager)) as worker:
        told = manager.waits_for("READY", "1")
        assert told["STATUS"] == "cannot connect to NATS; trying again", told
        worker.signal()
        assert worker.exit_code() == 0
    assert manager.waits_for("STOPPING", "1")
