"""Sessions: pinning, ids and cookies, coming back, whose session it is
(contract 3.6-3.8, 7.2; design 3.12)."""

import uuid

import pytest

from fakeworker import FakeWorker, Work
from gateway import (OTHER_KEY, SECOND_FUNCTION, SECOND_VERSION, TWO_VERSIONS, VERSION, grpc_head,
                     plain_head, until)
from rawh2 import HEADERS

OK = [(":status", "200"), ("content-type", "application/grpc"), ("grpc-status", "0")]


def exchange(client, tunnel, fields, response=OK):
    """A request through an attached tunnel: (request as the worker saw it, answer)."""
    tag = str(uuid.uuid4())
    stream = client.open([*fields, ("x-tag", tag)], end_stream=True)
    request = tunnel.wait(HEADERS, where=lambda e: e.get("x-tag") == tag)
    tunnel.headers(request.stream, response, end_stream=True)
    return request, client.head(stream)


def message_of(head):
    return (head.get("grpc-message") or "").replace("%20", " ")


def test_cl30_cl36_cl37_id_goes_both_ways_and_the_cookie_once(bare, worker, attach):
    session = attach(bare, worker)
    reqid = session.work.request_id
    assert session.request.values("nvcf-reqid") == [reqid]
    session.answer(fields=[("nvcf-reqid", "the worker's own"), ("set-cookie", "a=1"),
                           ("set-cookie", "b=2")], end_stream=True)
    head = session.client.head(session.stream)
    # CL-36: ours replaces the worker's. CL-37: the worker's cookies first, ours appended.
    assert head.values("nvcf-reqid") == [reqid], str(head)
    assert head.values("set-cookie") == ["a=1", "b=2", f"nvcf-request-id={reqid}"], str(head)
    for given in (None, reqid, "not-a-uuid"):
        request, head = exchange(session.client, session.tunnel, grpc_head(reqid=given))
        assert request.values("nvcf-reqid") == [reqid], str(request)
        assert head.values("nvcf-reqid") == [reqid], str(head)
        assert not head.values("set-cookie"), str(head)


def test_cl37_cookie_goes_to_the_first_that_returns(bare, worker, attach):
    session = attach(bare, worker)
    request, head = exchange(session.client, session.tunnel, grpc_head())
    assert head.values("set-cookie") == [f"nvcf-request-id={session.work.request_id}"]
    session.answer(end_stream=True)
    assert not session.client.head(session.stream).values("set-cookie")


def test_cl16_waiting_requests_share_one_session(bare, worker):
    """CL-16: one token, one work item, every waiter on the tunnel that results."""
    with bare.h2() as client:
        streams = [client.open(grpc_head(), end_stream=True) for _ in range(100)]
        _, tunnel = worker.take()
        for _ in streams:
            tunnel.headers(tunnel.wait(HEADERS).stream, OK, end_stream=True)
        ids = {client.head(stream).get("nvcf-reqid") for stream in streams}
        assert len(ids) == 1 and None not in ids
        assert bare.metric("worker_token_issued_total") == 1


def test_cl18_keys_on_one_connection_are_sessions_apart(bare):
    """CL-18: (F, ""), (F, V) and another function are three."""
    with (FakeWorker(bare) as first, FakeWorker(bare, function=SECOND_FUNCTION) as second,
          bare.h2() as client):
        seen = set()
        for fake, who in ((first, dict(version=VERSION)), (second, dict(function=SECOND_FUNCTION)),
                          (second, dict(function=SECOND_FUNCTION, version=VERSION))):
            stream = client.open(grpc_head(**who), end_stream=True)
            work, tunnel = fake.take()
            tunnel.headers(tunnel.wait(HEADERS).stream, OK, end_stream=True)
            assert client.head(stream).get("nvcf-reqid") == work.request_id
            seen.add(work.request_id)
        assert len(seen) == 3
        assert len(bare.open_sessions()) == 3


def test_cl21_connections_are_sessions_apart(bare, worker, attach):
    one, two = attach(bare, worker), attach(bare, worker)
    assert one.work.request_id != two.work.request_id
    one.client.close()
    one.tunnel.ends()
    two.another()


def test_r1_r9_coming_back_by_id_while_the_first_lives(bare, worker, attach):
    """R1, R9: a reconnect item, a second tunnel, the same id, the cookie again."""
    first = attach(bare, worker)
    reqid = first.work.request_id
    with bare.h2() as client:
        stream = client.open(grpc_head(reqid=reqid), end_stream=True)
        work = worker.poll(holds=[reqid], slots=0)
        assert (work.kind, work.request_id) == ("reconnect", reqid), work.raw
        assert work.token != first.work.token
        tunnel = worker.connect(work)
        request = tunnel.wait(HEADERS)
        assert request.get("nvcf-reqid") == reqid
        tunnel.headers(request.stream, OK, end_stream=True)
        head = client.head(stream)
        assert head.get("nvcf-reqid") == reqid
        assert head.values("set-cookie") == [f"nvcf-request-id={reqid}"], str(head)
        # Neither takes from the other.
        first.another()
        exchange(client, tunnel, grpc_head())
    tunnel.ends()
    first.another()


def test_r1_coming_back_by_cookie(bare, worker, attach):
    first = attach(bare, worker)
    reqid = first.work.request_id
    with bare.h2() as client:
        client.open(plain_head(extra=[("cookie", "a=b"),
                                      ("cookie", f"nvcf-request-id={reqid}")]), end_stream=True)
        work = worker.poll(holds=[reqid])
        assert (work.kind, work.request_id) == ("reconnect", reqid), work.raw
        request = worker.connect(work).wait(HEADERS)
        # The cookie is the function's too; crumbs may be joined, nothing may be lost.
        assert "; ".join(request.values("cookie")) == f"a=b; nvcf-request-id={reqid}"


def test_reconnect_goes_only_to_the_worker_that_holds_it(bare, attach):
    with FakeWorker(bare) as holder, FakeWorker(bare) as stranger, bare.h2() as client:
        first = attach(bare, holder)
        reqid = first.work.request_id
        stranger.ask(slots=1)
        stranger_two = FakeWorker(bare)
        stranger_two.ask(slots=0, holds=[str(uuid.uuid4())])
        client.open(grpc_head(reqid=reqid), end_stream=True)
        work = holder.poll(holds=[reqid], slots=0)
        assert (work.kind, work.request_id) == ("reconnect", reqid)
        for other in (stranger, stranger_two):
            assert other.line.is_open() and other.line.inbox == b""
        stranger_two.close()


def test_r3_session_ends_with_its_last_tunnel(bare, worker, attach):
    """R3: then its id is unknown, the cookie is cleared, and the next try without it starts
    anew."""
    first = attach(bare, worker)
    reqid = first.work.request_id
    first.answer(end_stream=True)
    first.client.head(first.stream)
    first.client.close()
    first.tunnel.ends()
    until(lambda: not bare.open_sessions(), what="session gone")
    with bare.h2() as client:
        head = client.head(client.open(grpc_head(reqid=reqid), end_stream=True))
        assert head.grpc_status == "5", str(head)
        assert f"no existing session found for request id {reqid}" in message_of(head), str(head)
        assert head.values("set-cookie") == ["nvcf-request-id=; Max-Age=0"], str(head)
        client.open(grpc_head(), end_stream=True)
        work = worker.poll()
        assert work.kind == "new" and work.request_id != reqid


def refused(gateway, reqid, code, text, **who):
    with gateway.h2() as client:
        head = client.head(client.open(grpc_head(reqid=reqid, **who), end_stream=True))
        assert head.grpc_status == code and text in message_of(head), str(head)
        assert not head.values("set-cookie") and not head.values("nvcf-reqid"), str(head)


def test_r4_e8_id_of_another_function(bare, worker, attach):
    reqid = attach(bare, worker).work.request_id
    refused(bare, reqid, "13", "failed to open stateful work request: existing session function "
            f"ID mismatch for request id {reqid}", function=SECOND_FUNCTION)


@pytest.fixture
def versioned(bare, attach):
    """The id of a session on one of two versions."""
    with FakeWorker(bare, function=TWO_VERSIONS) as fake:
        head = grpc_head(function=TWO_VERSIONS, version=VERSION)
        yield attach(bare, fake, head=head).work.request_id


def test_r5_e9_id_of_another_version(bare, versioned):
    refused(bare, versioned, "13", "failed to open stateful work request: existing session "
            f"function version ID mismatch for request id {versioned}",
            function=TWO_VERSIONS, version=SECOND_VERSION)


def test_r7_e10_id_of_another_tenant(bare, worker, attach):
    reqid = attach(bare, worker).work.request_id
    refused(bare, reqid, "13", "failed to open stateful work request: existing session invoker "
            f"NCA ID mismatch for request id {reqid}", key=OTHER_KEY)


def test_mismatches_are_named_in_order(bare, versioned):
    """E8 before E9 before E10."""
    refused(bare, versioned, "13", "function ID mismatch", key=OTHER_KEY,
            function=SECOND_FUNCTION)
    refused(bare, versioned, "13", "version ID mismatch", key=OTHER_KEY, function=TWO_VERSIONS,
            version=SECOND_VERSION)


def test_r8_credential_is_checked_before_the_id(bare, worker, attach):
    """R8: without access to the function an id tells nothing."""
    reqid = attach(bare, worker).work.request_id
    for given in (reqid, str(uuid.uuid4())):
        refused(bare, given, "16", "failed to open stateful work request", key="nobody")


def test_r6_version_left_out_keeps_the_sessions_version(bare, versioned):
    """R6."""
    with bare.h2() as client, FakeWorker(bare, function=TWO_VERSIONS) as fake:
        client.open(grpc_head(function=TWO_VERSIONS, reqid=versioned), end_stream=True)
        work = fake.poll(holds=[versioned], slots=0)
        assert work.raw["functionVersionId"] == VERSION, work.raw


def test_another_credential_of_the_tenant_keeps_the_session(bare, worker, attach):
    """Design 3.12, scope "tenant"."""
    session = attach(bare, worker)
    request, head = exchange(session.client, session.tunnel, grpc_head(key="dev-key-two"))
    assert request.get("nvcf-reqid") == session.work.request_id
    assert request.get("authorization") == "Bearer dev-key-two"


def test_another_tenant_on_the_connection_gets_its_own(bare, worker, attach):
    session = attach(bare, worker)
    stream = session.client.open(grpc_head(key=OTHER_KEY), end_stream=True)
    work, tunnel = worker.take()
    assert work.request_id != session.work.request_id
    assert work.raw["ncaId"] != session.work.raw["ncaId"]
    tunnel.headers(tunnel.wait(HEADERS).stream, OK, end_stream=True)
    assert session.client.head(stream).get("nvcf-reqid") == work.request_id
    # Each keeps its own from now on.
    exchange(session.client, tunnel, grpc_head(key=OTHER_KEY))
    exchange(session.client, session.tunnel, grpc_head())


def test_unknown_credential_on_a_pinned_connection(bare, worker, attach):
    session = attach(bare, worker)
    head = session.client.head(session.client.open(grpc_head(key="garbage"), end_stream=True))
    assert head.grpc_status == "16", str(head)
    session.another()


def test_an_id_wins_over_the_pin(bare, worker, attach):
    """Design 3.12: a request that names another session gets that one, on its own connection."""
    first, second = attach(bare, worker), attach(bare, worker)
    reqid = first.work.request_id
    stream = second.client.open(grpc_head(reqid=reqid), end_stream=True)
    work = worker.poll(holds=[reqid, second.work.request_id], slots=0)
    assert (work.kind, work.request_id) == ("reconnect", reqid)
    tunnel = worker.connect(work)
    tunnel.headers(tunnel.wait(HEADERS).stream, OK, end_stream=True)
    assert second.client.head(stream).get("nvcf-reqid") == reqid
    # Without an id the connection's own session is used, as before.
    request, _ = exchange(second.client, second.tunnel, grpc_head())
    assert request.get("nvcf-reqid") == second.work.request_id
    unknown = str(uuid.uuid4())
    head = second.client.head(second.client.open(grpc_head(reqid=unknown), end_stream=True))
    assert head.grpc_status == "5" and unknown in message_of(head), str(head)


def test_cl20_lost_tunnel_is_replaced_within_the_next_request(bare, worker, attach):
    """CL-20: no 502 window."""
    session = attach(bare, worker)
    session.answer(end_stream=True)
    session.client.head(session.stream)
    session.tunnel.close()
    until(lambda: not bare.open_sessions(), what="session gone")
    stream = session.client.open(grpc_head(), end_stream=True)
    work, tunnel = worker.take()
    assert work.kind == "new" and work.request_id != session.work.request_id
    tunnel.headers(tunnel.wait(HEADERS).stream, OK, end_stream=True)
    head = session.client.head(stream)
    assert head.get("nvcf-reqid") == work.request_id
    # A new tunnel, so the cookie is set again.
    assert head.values("set-cookie") == [f"nvcf-request-id={work.request_id}"]


def test_cl19_failed_start_is_tried_afresh(serve):
    """CL-19."""
    running = serve(session='wait = "500ms"')
    with running.h2() as client, FakeWorker(running) as worker:
        assert client.head(client.open(grpc_head(), end_stream=True)).grpc_status == "4"
        stream = client.open(grpc_head(), end_stream=True)
        work = worker.poll()
        assert isinstance(work, Work)
        tunnel = worker.connect(work)
        tunnel.headers(tunnel.wait(HEADERS).stream, OK, end_stream=True)
        assert client.head(stream).grpc_status == "0"
