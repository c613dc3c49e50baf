"""grpcio from Python as the client, through a real session; behind it the built-in echo
function or a grpcio server."""

import os
import threading
import uuid
from concurrent import futures

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_status import rpc_status

import grpcserver
from echo import SERVICE, EchoMessage, Stub, message
from gateway import OTHER_KEY, Gateway, credentials, until
from rawh2 import CANCEL, DATA, HEADERS

WHO = tuple(credentials())
MIB = 1 << 20


def channel_to(gateway, **options):
    host, port = gateway.client
    return grpc.insecure_channel(f"{host}:{port}", options=[
        *grpcserver.UNLIMITED, ("grpc.use_local_subchannel_pool", 1),
        ("grpc.enable_retries", 0)], **options)


@pytest.fixture
def channel(gateway):
    with channel_to(gateway) as opened:
        yield opened


@pytest.fixture
def echo(channel):
    return Stub(channel)


@pytest.fixture(scope="module")
def function():
    with grpcserver.Server() as server:
        yield server


@pytest.fixture(scope="module")
def bridged(tmp_path_factory, function):
    """`ringway dev --target` with a grpcio server behind it."""
    with Gateway.dev(tmp_path_factory.mktemp("bridged"), "--target",
                     f"127.0.0.1:{function.port}") as running:
        yield running


@pytest.fixture
def far(bridged, function):
    """(stub, server's record) through the bridge."""
    function.function.seen.clear()
    function.function.ended.clear()
    function.function.started.clear()
    with channel_to(bridged) as opened:
        yield Stub(opened), function.function


def say(text):
    return EchoMessage(payload=text)


# --- the built-in echo function -------------------------------------------------------------

def test_unary(echo):
    assert echo.Unary(say(b"hello"), metadata=WHO, timeout=60).payload == b"hello"
    assert echo.Unary(say(b""), metadata=WHO, timeout=60).payload == b""


def test_client_stream(echo):
    parts = [b"%d," % n for n in range(500)]
    answer = echo.ClientStream(map(say, parts), metadata=WHO, timeout=60)
    assert answer.payload == b"".join(parts)


def test_server_stream(echo):
    got = [m.payload for m in echo.ServerStream(EchoMessage(payload=b"again", count=1000),
                                                metadata=WHO, timeout=60)]
    assert got == [b"again"] * 1000
    assert len(list(echo.ServerStream(say(b"once"), metadata=WHO, timeout=60))) == 1


def test_bidi_stream_in_lockstep(echo):
    """Each message comes back before the next is sent: nothing is held back."""
    turn = threading.Semaphore(1)

    def questions():
        for n in range(200):
            assert turn.acquire(timeout=60)
            yield say(b"%d" % n)

    for n, answer in enumerate(echo.BidiStream(questions(), metadata=WHO, timeout=60)):
        assert answer.payload == b"%d" % n
        turn.release()
    assert n == 199


def test_bidi_stream_at_full_speed(echo):
    answers = echo.BidiStream((say(b"%d" % n) for n in range(20_000)), metadata=WHO, timeout=150)
    assert [int(m.payload) for m in answers] == list(range(20_000))


def test_metadata_both_ways(echo):
    fields = [("x-echo-text", "a b, c;d=%20"), ("x-echo-twice", "1"), ("x-echo-twice", "2"),
              ("x-echo-bytes-bin", bytes(range(256))), ("x-echo-empty-bin", b"")]
    answer, call = echo.Unary.with_call(say(b"m"), metadata=[*WHO, *fields], timeout=60)
    back = [(key, value) for key, value in call.initial_metadata() if key.startswith("x-echo-")]
    assert sorted(back) == sorted(fields), back


@pytest.mark.parametrize("code", range(1, 17))
def test_every_status(echo, code):
    with pytest.raises(grpc.RpcError) as failure:
        echo.Unary(say(b"x"), metadata=[*WHO, ("x-echo-status", str(code))], timeout=60)
    assert failure.value.code().value[0] == code and failure.value.details()


def test_64_mib_each_way(echo):
    payload = os.urandom(MIB) * 64
    assert echo.Unary(say(payload), metadata=WHO, timeout=150).payload == payload


def test_200_streams_on_one_channel(echo):
    """All open at once, each in the middle of its conversation."""
    together = threading.Barrier(200, timeout=60)

    def talk(n):
        def questions():
            yield say(b"first %d" % n)
            together.wait()
            yield say(b"last %d" % n)
        return [m.payload for m in echo.BidiStream(questions(), metadata=WHO, timeout=150)]

    with futures.ThreadPoolExecutor(200) as pool:
        answers = list(pool.map(talk, range(200)))
    assert answers == [[b"first %d" % n, b"last %d" % n] for n in range(200)]


def test_cl16_100_unary_and_100_bidi_make_one_session(own_gateway):
    """From the reference's own tests: one connection, one tunnel."""
    with channel_to(own_gateway) as channel:
        echo = Stub(channel)

        def unary(n):
            answer, call = echo.Unary.with_call(say(b"%d" % n), metadata=WHO, timeout=60)
            assert answer.payload == b"%d" % n
            return dict(call.initial_metadata())["nvcf-reqid"]

        def bidi(n):
            parts = [b"%d.%d" % (n, m) for m in range(10)]
            call = echo.BidiStream(map(say, parts), metadata=WHO, timeout=60)
            assert [m.payload for m in call] == parts
            return dict(call.initial_metadata())["nvcf-reqid"]

        with futures.ThreadPoolExecutor(200) as pool:
            jobs = [pool.submit(kind, n) for n in range(100) for kind in (unary, bidi)]
            assert len({job.result() for job in jobs}) == 1
        assert len(own_gateway.open_sessions()) == 1
        # A function that is dialled has no worker to give a token to.
        tokens = 0 if os.environ.get("RINGWAY_TEST_WORKER") == "dial" else 1
        assert own_gateway.metric("worker_token_issued_total") == tokens


def test_gzip_passes_through(echo):
    payload = b"compress me " * 100_000
    answer = echo.Unary(say(payload), metadata=WHO, timeout=60,
                        compression=grpc.Compression.Gzip)
    assert answer.payload == payload


def test_health_service(channel):
    stub = health_pb2_grpc.HealthStub(channel)
    answer = stub.Check(health_pb2.HealthCheckRequest(), metadata=WHO, timeout=60)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING
    watch = stub.Watch(health_pb2.HealthCheckRequest(), metadata=WHO, timeout=60)
    assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
    watch.cancel()


def test_reflection(channel):
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    asked = [reflection_pb2.ServerReflectionRequest(list_services=""),
             reflection_pb2.ServerReflectionRequest(file_containing_symbol=SERVICE)]
    try:
        answers = list(stub.ServerReflectionInfo(iter(asked), metadata=WHO, timeout=60))
    except grpc.RpcError as error:
        # The other version of the same service.
        assert error.code() == grpc.StatusCode.UNIMPLEMENTED
        call = channel.stream_stream(
            "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
            reflection_pb2.ServerReflectionRequest.SerializeToString,
            reflection_pb2.ServerReflectionResponse.FromString)
        answers = list(call(iter(asked), metadata=WHO, timeout=60))
    names = {service.name for service in answers[0].list_services_response.service}
    assert SERVICE in names, names
    assert answers[1].file_descriptor_response.file_descriptor_proto


# --- sessions as a gRPC client sees them ----------------------------------------------------

def initial(call):
    """(request id, cookies) of a call's initial metadata."""
    fields = list(call.initial_metadata())
    return ([value for key, value in fields if key == "nvcf-reqid"],
            [value for key, value in fields if key == "set-cookie"])


def test_two_channels_are_two_sessions_and_one_comes_back(own_gateway):
    with (channel_to(own_gateway) as one, channel_to(own_gateway) as two,
          channel_to(own_gateway) as three):
        _, call = Stub(one).Unary.with_call(say(b"1"), metadata=WHO, timeout=60)
        (first,), cookies = initial(call)
        assert cookies == [f"nvcf-request-id={first}"]
        _, call = Stub(one).Unary.with_call(say(b"1"), metadata=WHO, timeout=60)
        assert initial(call) == ([first], [])
        _, call = Stub(two).Unary.with_call(say(b"2"), metadata=WHO, timeout=60)
        (second,), _ = initial(call)
        assert second != first and uuid.UUID(second)
        _, call = Stub(three).Unary.with_call(
            say(b"3"), metadata=[*WHO, ("nvcf-reqid", first)], timeout=60)
        assert initial(call) == ([first], [f"nvcf-request-id={first}"])


def test_unknown_session_and_another_tenants(own_gateway):
    nobody = str(uuid.uuid4())
    with channel_to(own_gateway) as channel, channel_to(own_gateway) as other:
        with pytest.raises(grpc.RpcError) as failure:
            Stub(channel).Unary(say(b"x"), metadata=[*WHO, ("nvcf-reqid", nobody)], timeout=60)
        assert failure.value.code() == grpc.StatusCode.NOT_FOUND
        assert f"no existing session found for request id {nobody}" in failure.value.details()
        _, call = Stub(channel).Unary.with_call(say(b"x"), metadata=WHO, timeout=60)
        reqid = dict(call.initial_metadata())["nvcf-reqid"]
        with pytest.raises(grpc.RpcError) as failure:
            Stub(other).Unary(say(b"x"), timeout=60, metadata=credentials(
                key=OTHER_KEY, reqid=reqid))
        assert failure.value.code() == grpc.StatusCode.INTERNAL
        assert f"existing session invoker NCA ID mismatch for request id {reqid}" in (
            failure.value.details())


@pytest.mark.parametrize("who, code", [
    (credentials(key=None), "UNAUTHENTICATED"), (credentials(key="nobody"), "UNAUTHENTICATED"),
    (credentials(function=None), "INVALID_ARGUMENT"),
    (credentials(function="99999999-9999-4999-8999-999999999999"), "NOT_FOUND")])
def test_refusals_are_statuses(echo, who, code):
    for call in (lambda: echo.Unary(say(b"x"), metadata=who, timeout=60),
                 lambda: list(echo.BidiStream(iter([say(b"x")]), metadata=who, timeout=60))):
        with pytest.raises(grpc.RpcError) as failure:
            call()
        assert failure.value.code() == grpc.StatusCode[code], failure.value.details()


# --- a grpcio server behind the bridge ------------------------------------------------------

def test_server_sees_what_was_sent(far):
    echo, record = far
    fields = [("x-echo-text", "v"), ("x-echo-raw-bin", b"\0\xfe\xff")]
    answer, call = echo.Unary.with_call(say(b"x"), metadata=[*WHO, *fields], timeout=60)
    seen = record.seen[0]
    assert seen["x-echo-raw-bin"] == b"\0\xfe\xff" and seen["x-echo-text"] == "v"
    assert seen["authorization"] == "Bearer dev-key"
    assert seen["nvcf-reqid"] == dict(call.initial_metadata())["nvcf-reqid"]
    assert dict(call.trailing_metadata())["x-trailing-bin"] == b"\0\xff\x01"
    assert dict(call.trailing_metadata())["x-trailing"] == "t"


def test_all_four_kinds_through_the_bridge(far):
    echo, _ = far
    parts = [b"%d" % n for n in range(100)]
    assert echo.Unary(say(b"u"), metadata=WHO, timeout=60).payload == b"u"
    assert echo.ClientStream(map(say, parts), metadata=WHO, timeout=60).payload == b"".join(parts)
    assert len(list(echo.ServerStream(EchoMessage(payload=b"s", count=100), metadata=WHO,
                                      timeout=60))) == 100
    answers = echo.BidiStream(map(say, parts), metadata=WHO, timeout=60)
    assert [m.payload for m in answers] == parts


def test_error_statuses_with_text(far):
    echo, _ = far
    for code in range(1, 17):
        with pytest.raises(grpc.RpcError) as failure:
            echo.Unary(say(b"x"), timeout=60,
                       metadata=[*WHO, ("x-do", "fail"), ("x-code", str(code))])
        assert failure.value.code().value[0] == code
        assert failure.value.details() == "häßlich: 100 %\n\"x\""


def test_error_details(far):
    echo, _ = far
    with pytest.raises(grpc.RpcError) as failure:
        echo.Unary(say(b"x"), metadata=[*WHO, ("x-do", "details")], timeout=60)
    status = rpc_status.from_call(failure.value)
    assert (status.code, status.message, len(status.details)) == (9, "with details", 2)
    info = error_details_pb2.ErrorInfo()
    assert status.details[1].Unpack(info) and info.domain == "x" * 3000


def test_deadline(far):
    """The client's deadline; the server sees the call end."""
    echo, record = far
    with pytest.raises(grpc.RpcError) as failure:
        echo.Unary(say(b"x"), metadata=[*WHO, ("x-do", "hang")], timeout=3)
    assert failure.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    assert record.ended.wait(30), "the server was not told"


def test_cancellation(far):
    echo, record = far
    call = echo.Unary.future(say(b"x"), metadata=[*WHO, ("x-do", "hang")], timeout=60)
    assert record.started.wait(30)
    call.cancel()
    assert record.ended.wait(30), "the server was not told"
    stream = echo.BidiStream(iter([say(b"x")]), metadata=WHO, timeout=60)
    next(stream)
    stream.cancel()
    assert echo.Unary(say(b"after"), metadata=WHO, timeout=60).payload == b"after"


def test_64_mib_through_the_bridge(far):
    echo, _ = far
    payload = os.urandom(MIB) * 64
    assert echo.Unary(say(payload), metadata=WHO, timeout=150).payload == payload


def test_compressed_answers(far):
    echo, record = far
    payload = b"compress me " * 100_000
    answer = echo.Unary(say(payload), metadata=[*WHO, ("x-do", "compress")], timeout=60,
                        compression=grpc.Compression.Gzip)
    assert answer.payload == payload


# --- a raw worker behind a grpcio client ----------------------------------------------------

def test_cancel_and_deadline_reach_the_worker_as_cancel(bare, worker):
    with channel_to(bare) as channel:
        echo = Stub(channel)
        call = echo.Unary.future(say(b"x"), metadata=WHO, timeout=60)
        _, tunnel = worker.take()
        request = tunnel.wait(HEADERS)
        assert request.get("grpc-timeout"), str(request)  # CL-22: forwarded
        call.cancel()
        assert tunnel.reset(request.stream) == CANCEL
        late = echo.Unary.future(say(b"x"), metadata=WHO, timeout=3)
        request = tunnel.wait(HEADERS)
        assert tunnel.reset(request.stream) == CANCEL
        with pytest.raises(grpc.RpcError) as failure:
            late.result()
        assert failure.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED


def test_trailers_only_error_of_a_worker(bare, worker):
    with channel_to(bare) as channel:
        call = Stub(channel).Unary.future(say(b"x"), metadata=WHO, timeout=60)
        _, tunnel = worker.take()
        request = tunnel.wait(HEADERS)
        tunnel.headers(request.stream, [
            (":status", "200"), ("content-type", "application/grpc"), ("grpc-status", "10"),
            ("grpc-message", "it%20was%20so"), ("x-why", "because")], end_stream=True)
        with pytest.raises(grpc.RpcError) as failure:
            call.result()
        assert failure.value.code() == grpc.StatusCode.ABORTED
        assert failure.value.details() == "it was so"
        both = [*failure.value.initial_metadata(), *failure.value.trailing_metadata()]
        assert ("x-why", "because") in [(key, value) for key, value in both]


def test_small_messages_packed_into_large_frames(bare, worker):
    """A worker's library may put a thousand messages into one DATA frame; grpcio then sends a
    WINDOW_UPDATE for each. That is no flood."""
    with channel_to(bare) as channel:
        call = Stub(channel).ServerStream(say(b"go"), metadata=WHO, timeout=60)
        _, tunnel = worker.take()
        request = tunnel.wait(HEADERS)
        tunnel.headers(request.stream, [(":status", "200"), ("content-type", "application/grpc")])
        answers = threading.Thread(target=lambda: (
            tunnel.send_body(request.stream, message(b"%04d" % 7) * 40_000, end_stream=False),
            tunnel.headers(request.stream, [("grpc-status", "0")], end_stream=True)))
        answers.start()
        assert sum(m.payload == b"0007" for m in call) == 40_000
        answers.join(100)


def test_lost_worker_is_unavailable_at_once(bare, worker):
    with channel_to(bare) as channel:
        call = Stub(channel).Unary.future(say(b"x"), metadata=WHO, timeout=60)
        _, tunnel = worker.take()
        tunnel.wait(DATA)
        tunnel.abort()
        with pytest.raises(grpc.RpcError) as failure:
            call.result()
        assert failure.value.code() == grpc.StatusCode.UNAVAILABLE


def test_answer_cut_short_is_no_success(bare, worker):
    with channel_to(bare) as channel:
        call = Stub(channel).Unary.future(say(b"x"), metadata=WHO, timeout=60)
        _, tunnel = worker.take()
        request = tunnel.wait(HEADERS)
        tunnel.headers(request.stream, [(":status", "200"), ("content-type", "application/grpc")])
        tunnel.data(request.stream, message(b"whole message"))
        tunnel.abort()
        with pytest.raises(grpc.RpcError) as failure:
            call.result()
        assert failure.value.code() in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNAVAILABLE)


def test_no_worker_within_the_wait(serve):
    running = serve(session='wait = "500ms"')
    with channel_to(running) as channel:
        with pytest.raises(grpc.RpcError) as failure:
            Stub(channel).Unary(say(b"x"), metadata=WHO, timeout=60)
        assert failure.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        assert "failed to establish link to worker" in failure.value.details()


def test_channels_come_and_go(own_gateway):
    """A session for each; afterwards nothing is left of them."""
    def once(n):
        with channel_to(own_gateway) as channel:
            return Stub(channel).Unary(say(b"%d" % n), metadata=WHO, timeout=60).payload

    # The built-in worker's polls are all there once it has served some sessions at a time.
    with futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(once, range(16)))
    until(lambda: not own_gateway.open_sessions(), what="all sessions gone")
    before = own_gateway.open_files()

    with futures.ThreadPoolExecutor(8) as pool:
        assert list(pool.map(once, range(100))) == [b"%d" % n for n in range(100)]
    until(lambda: not own_gateway.open_sessions(), what="all sessions gone")
    until(lambda: own_gateway.metric("active_connections_total") == 0, what="no connections")
    until(lambda: own_gateway.metric("worker_connections_active") == 0, what="no tunnels")
    until(lambda: own_gateway.open_files() <= before, what="no descriptors left open")
