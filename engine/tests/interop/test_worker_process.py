"""`ringway-worker` as a process of its own between the gateway and a grpcio server."""

import signal
import threading
from concurrent import futures

import grpc
import pytest

import grpcserver
from echo import EchoMessage, Stub
from gateway import FUNCTION, VERSION, WORKER_KEY, credentials, dead_port, free_port, until
from workerprogram import WorkerProgram

WHO = tuple(credentials())


@pytest.fixture(scope="module")
def server():
    with grpcserver.Server() as running:
        yield running


@pytest.fixture
def target(server):
    for event in (server.function.started, server.function.ended):
        event.clear()
    server.function.seen.clear()
    return f"127.0.0.1:{server.port}"


@pytest.fixture
def work(tmp_path, target):
    """Starts workers for a gateway, as often as asked."""
    started = []

    def start(*gateways, **options):
        options.setdefault("name", f"worker{len(started)}")
        addresses = [gateway.worker for gateway in gateways]
        started.append(WorkerProgram(addresses, target, tmp_path, **options))
        return started[-1]

    yield start
    for running in started:
        running.kill()
        log = running.log_text()
        assert WORKER_KEY not in log and "panicked" not in log, log


def channel_to(gateway):
    host, port = gateway.client
    return grpc.insecure_channel(f"{host}:{port}", options=[
        *grpcserver.UNLIMITED, ("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)])


def say(text):
    return EchoMessage(payload=text)


def call(stub, text, timeout=60, **who):
    """One call; (payload, request id)."""
    answer, done = stub.Unary.with_call(say(text), metadata=credentials(**who), timeout=timeout)
    return answer.payload, dict(done.initial_metadata())["nvcf-reqid"]


@pytest.mark.parametrize("io", ["ring", "epoll"])
def test_calls_of_all_kinds(bare, work, io):
    running = work(bare, slots=4, more=("--io", io))
    with channel_to(bare) as channel:
        echo = Stub(channel)
        parts = [b"%d" % n for n in range(100)]
        payload = bytes(range(256)) * 65_536
        assert echo.Unary(say(payload), metadata=WHO, timeout=60).payload == payload
        assert echo.ClientStream(map(say, parts), metadata=WHO, timeout=60).payload == (
            b"".join(parts))
        assert len(list(echo.ServerStream(EchoMessage(payload=b"s", count=1000), metadata=WHO,
                                          timeout=60))) == 1000
        answers = echo.BidiStream(map(say, parts), metadata=WHO, timeout=60)
        assert [m.payload for m in answers] == parts
    running.says("session ended")
    assert '"io":"io_uring"' in running.log_text() or io == "epoll"


def test_two_sessions_at_once(bare, work):
    running = work(bare, slots=2)
    with channel_to(bare) as one, channel_to(bare) as two:
        hold = Stub(one).BidiStream(questions(gate := threading.Event()), metadata=WHO, timeout=60)
        assert next(hold).payload == b"first"
        _, second = call(Stub(two), b"beside it")
        first = dict(hold.initial_metadata())["nvcf-reqid"]
        assert first != second
        gate.set()
        assert next(hold).payload == b"last"
    running.says("session ended", times=2)
    until(lambda: not bare.open_sessions(), what="all sessions gone")


def questions(gate):
    yield say(b"first")
    assert gate.wait(20)
    yield say(b"last")


def test_a_client_comes_back_by_its_id(bare, work):
    running = work(bare, slots=1)
    with channel_to(bare) as one, channel_to(bare) as two:
        _, reqid = call(Stub(one), b"1")
        payload, again = call(Stub(two), b"2", reqid=reqid)
        assert (payload, again) == (b"2", reqid)
        running.says("tunnel open", times=2)
        one.close()
        # The session lives as long as one of its tunnels.
        until(lambda: running.log_text().count("tunnel closed") == 1, what="one tunnel closed")
        assert call(Stub(two), b"3", reqid=reqid) == (b"3", reqid)
        assert "session ended" not in running.log_text()
    running.says("session ended")


def test_a_second_client_waits_for_the_only_slot(bare, work):
    running = work(bare, slots=1)
    with channel_to(bare) as one, channel_to(bare) as two:
        _, first = call(Stub(one), b"1")
        waiting = Stub(two).Unary.future(say(b"2"), metadata=WHO, timeout=60)
        until(lambda: any(s["state"] == "waiting" for s in bare.sessions()), what="it waits")
        with pytest.raises(grpc.FutureTimeoutError):
            waiting.result(timeout=0.5)
        assert running.log_text().count("tunnel open") == 1
        one.close()
        assert waiting.result(timeout=60).payload == b"2"
        assert dict(waiting.initial_metadata())["nvcf-reqid"] != first


def test_a_killed_worker_is_noticed_at_once_and_another_serves(bare, work, server, target):
    running = work(bare)
    with channel_to(bare) as channel:
        lost = Stub(channel).ServerStream(say(b"x"), metadata=[*WHO, ("x-do", "hang")], timeout=60)
        assert server.function.started.wait(30)
        lost.initial_metadata()
        running.kill()
        with pytest.raises(grpc.RpcError) as failure:
            next(lost)
        # In the middle of a response: the server had sent its head.
        assert failure.value.code() == grpc.StatusCode.INTERNAL
        assert server.function.ended.wait(30), "the server was not told"
        # The same channel, once there is a worker again.
        waiting = Stub(channel).Unary.future(say(b"y"), metadata=WHO, timeout=60)
        work(bare)
        assert waiting.result().payload == b"y"


def test_a_worker_that_is_stopped_ends_its_sessions_first(bare, work, server):
    running = work(bare, slots=2)
    with channel_to(bare) as one, channel_to(bare) as two:
        gate = threading.Event()
        hold = Stub(one).BidiStream(questions(gate), metadata=WHO, timeout=60)
        assert next(hold).payload == b"first"
        running.signal(signal.SIGTERM)
        running.says("no more work is taken")
        # New sessions go to another worker.
        late = Stub(two).Unary.future(say(b"2"), metadata=WHO, timeout=60)
        other = work(bare)
        assert late.result().payload == b"2"
        other.says("tunnel open")
        gate.set()
        assert next(hold).payload == b"last"
        assert running.run.poll() is None
    assert running.exit_code() == 0


def test_sessions_are_cut_off_when_their_time_is_over(bare, work, server):
    running = work(bare, more=("--drain-max", "1"))
    with channel_to(bare) as channel:
        lost = Stub(channel).ServerStream(say(b"x"), metadata=[*WHO, ("x-do", "hang")], timeout=60)
        assert server.function.started.wait(30)
        lost.initial_metadata()
        running.signal(signal.SIGINT)
        with pytest.raises(grpc.RpcError) as failure:
            next(lost)
        assert failure.value.code() == grpc.StatusCode.INTERNAL
    assert running.exit_code() == 0


def test_a_gateway_that_comes_back_is_polled_again(serve, work):
    port = free_port()
    first = serve(worker_port=port)
    running = work(first)
    with channel_to(first) as channel:
        assert call(Stub(channel), b"1")[0] == b"1"
    first.signal(signal.SIGTERM)
    assert first.exit_code() == 0
    running.says("polling failed")
    second = serve(worker_port=port)
    with channel_to(second) as channel:
        assert call(Stub(channel), b"2", timeout=60)[0] == b"2"
    running.says("polling again")


def test_two_gateways_share_a_worker(serve, work):
    one, two = serve(), serve()
    work(one, two, slots=2)
    with channel_to(one) as a, channel_to(two) as b:
        assert call(Stub(a), b"a")[0] == b"a"
        assert call(Stub(b), b"b")[0] == b"b"


def test_a_wrong_key_ends_the_worker(bare, work):
    for key, function, status in [("nobody", FUNCTION, 401), (WORKER_KEY, VERSION, 403)]:
        running = work(bare, key=key, function=function)
        assert running.exit_code() == 78, status
        running.says("the gateway refuses this worker's key")


def test_a_target_that_is_away_costs_no_slot(bare, work, tmp_path):
    with WorkerProgram([bare.worker], f"127.0.0.1:{dead_port()}", tmp_path, "nowhere") as nowhere:
        with channel_to(bare) as channel:
            for n in (1, 2):
                with pytest.raises(grpc.RpcError) as failure:
                    Stub(channel).Unary(say(b"x"), metadata=WHO, timeout=60)
                assert failure.value.code() == grpc.StatusCode.UNAVAILABLE
                nowhere.says("the target does not answer", times=n)
        nowhere.says("session ended", times=2)


def test_forty_sessions_through_eight_slots(bare, work):
    work(bare, slots=8)

    def once(n):
        with channel_to(bare) as channel:
            return call(Stub(channel), b"%d" % n, timeout=60)

    with futures.ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(once, range(40)))
    assert [payload for payload, _ in answers] == [b"%d" % n for n in range(40)]
    assert len({reqid for _, reqid in answers}) == 40
    until(lambda: not bare.open_sessions(), what="all sessions gone")
