"""Malformed and unusual HTTP/2 on connections that carry a live session (h2spec's cases and
more of their kind): the stated reaction, and nobody else notices."""

import pytest

import framecases
from fakeworker import FakeWorker
from framecases import told
from gateway import Gateway
from rawh2 import CANCEL, GOAWAY, HEADERS, INTERNAL_ERROR, NO_ERROR, RST_STREAM, Silence


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    """One gateway for all cases, so that a case that harms others is caught by the next."""
    with Gateway.serve(tmp_path_factory.mktemp("frames")) as running:
        yield running
        assert running.alive(), f"the gateway died:\n{running.log_tail()}"


@pytest.fixture
def session(ground, attach):
    with FakeWorker(ground) as worker:
        yield attach(ground, worker)


def ids(case):
    return case.name.replace(" ", "-")


def fits(event, sid, verdict):
    if event.kind == GOAWAY:
        return verdict.scope != "stream" and event.code != NO_ERROR
    return event.kind == RST_STREAM and event.stream == sid


@pytest.mark.parametrize("case", list(framecases.from_clients()), ids=ids)
def test_from_a_client(case, session):
    client, tunnel = session.client, session.tunnel
    sid = case.act(session)
    if case.verdict.scope == "lives":
        client.round_trip()
        bad = [e for e in client.events if e.kind in (GOAWAY, RST_STREAM) and e.code]
        assert not bad, client.transcript()
        session.another()
        return
    if case.verdict.scope == "connection":
        client.goes_away(*case.verdict.codes)
        tunnel.ends()
        return
    event = client.wait(where=lambda e: fits(e, sid, case.verdict), wanted=str(case.verdict))
    assert event.code in case.verdict.codes, f"{event}\n{client.transcript()}"
    if event.kind == GOAWAY:
        client.ends()
        tunnel.ends()
        return
    # The stream is gone, on the worker's side too; the connection and the session live.
    if sid == session.stream:
        assert tunnel.reset(session.request.stream) in (CANCEL, INTERNAL_ERROR)
    session.another()
    forwarded = [e for e in tunnel.events
                 if e.kind == HEADERS and e.stream > session.request.stream]
    if "8.1.1" in case.name:
        # Found out in the body, when the head may have gone already: cancelled.
        forwarded = [e for e in forwarded if not cancelled(tunnel, e.stream)]
    assert not forwarded, f"a malformed request was forwarded: {list(map(str, forwarded))}"


def cancelled(tunnel, sid):
    try:
        return tunnel.reset(sid) in (CANCEL, INTERNAL_ERROR)
    except Silence:
        return False


@pytest.mark.parametrize("case", list(framecases.from_workers()), ids=ids)
def test_from_a_worker(case, session):
    client, tunnel = session.client, session.tunnel
    sid = case.act(session)
    if case.verdict.scope == "lives":
        tunnel.round_trip()
        if case.after_head:
            tunnel.data(sid, b"", end_stream=True)
        else:
            session.answer(end_stream=True)
        assert client.head(session.stream).status == "200"
        session.another()
        return
    event = tunnel.wait(where=lambda e: fits(e, sid, case.verdict), wanted=str(case.verdict))
    assert event.code in case.verdict.codes, f"{event}\n{tunnel.transcript()}"
    if case.verdict.scope == "connection":
        assert event.kind == GOAWAY, f"{event}\n{tunnel.transcript()}"
    if event.kind == GOAWAY:
        tunnel.ends()
    told(client, session.stream)
    # The client's connection is not to blame: it gets a new tunnel, or goes on with this one.
    client.round_trip()
    if event.kind == RST_STREAM:
        session.another()
