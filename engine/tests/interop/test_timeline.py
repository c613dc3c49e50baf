"""What became of a session: `/sessions/ID`, `ringway sessions`, `ringway top`."""

import json
import os
import pty
import re
import select
import signal
import socket
import subprocess
import time

import pytest

from gateway import (FUNCTION, OTHER_KEY, VERSION, Gateway, binary, dead_port, grpc_head,
                     until)

ANSWERED = ["accepted", "authorised", "asked", "handed_out", "connected", "request_sent",
            "answer_begun"]


def ringway(*arguments, admin=None):
    """(exit code, stdout, stderr)"""
    where = ["--admin", "%s:%d" % tuple(admin)] if admin else []
    run = subprocess.run([*binary(), *arguments, *where], capture_output=True, text=True,
                         timeout=100, check=False)
    return run.returncode, run.stdout, run.stderr


def told(gateway, reqid):
    status, _, body = gateway.get(f"/sessions/{reqid}")
    assert status == 200, (status, body)
    return json.loads(body)


def names(session):
    """Without those that come between the cores of a gateway."""
    return [event["event"] for event in session["events"]
            if event["event"] not in ("connect_moved", "pings")]


def called(client, **who):
    """A call is answered; the session's id."""
    return client.head(client.open(grpc_head(**who), end_stream=True)).get("nvcf-reqid")


def test_the_edges_of_a_life(own_gateway):
    with own_gateway.h2() as client:
        reqid = called(client)
        for _ in range(20):
            assert called(client) == reqid
        session = told(own_gateway, reqid)
        assert names(session) == ANSWERED, session
        assert session["state"] != "closed" and session["requestId"] == reqid
        assert re.fullmatch(r"runs on core \d+: the worker came after .* ms, the first byte .* ms "
                            r"later", session["verdict"]), session["verdict"]
        events = {event["event"]: event for event in session["events"]}
        assert events["accepted"]["client"] == session["clientAddress"]
        assert events["connected"]["worker"] == session["tunnel"]
        assert events["connected"]["tokenAgeMs"] > 0
        times = [event["at"] for event in session["events"]]
        assert times == sorted(times) and all(re.fullmatch(
            r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", at) for at in times), times
        now = time.time()
        stamp = time.mktime(time.strptime(times[0][:19], "%Y-%m-%dT%H:%M:%S")) - time.timezone
        assert abs(now - stamp) < 600, (times[0], now)
        assert all(event["core"] in range(64) and event["text"] for event in session["events"])
    closed = until(lambda: (seen := told(own_gateway, reqid))["state"] == "closed" and seen,
                   what="the session's end")
    assert names(closed)[-1] == "closed" and names(closed)[:7] == ANSWERED
    assert closed["verdict"].startswith("ended by the client, "), closed["verdict"]


def test_a_worker_that_resets(bare, worker, attach):
    session = attach(bare, worker)
    session.answer()
    session.client.head(session.stream)
    session.tunnel.abort()
    seen = until(lambda: (seen := told(bare, session.work.request_id))["state"] == "closed" and seen,
                 what="the session's end")
    assert re.fullmatch(r"ended by the worker: connection reset, .* after the first byte",
                        seen["verdict"]), seen["verdict"]
    end = seen["events"][-1]
    assert (end["event"], end["side"], end["reason"], end["code"], end["timer"]) == (
        "closed", "worker", "worker_closed", "reset", ""), end


def test_no_worker(serve):
    gateway = serve(session='wait = "300ms"')
    with gateway.h2() as client:
        stream = client.open(grpc_head(), end_stream=True)
        assert client.head(stream).grpc_status == "4"
    [row] = gateway.sessions()
    verdict = told(gateway, row["requestId"])["verdict"]
    assert re.fullmatch(r"no worker came within \S+ m?s", verdict), verdict


@pytest.mark.parametrize("cores", [1, 2])
def test_lost_and_back(tmp_path, cores):
    with Gateway.dev(tmp_path, "--cores", str(cores)) as gateway:
        client = gateway.h2()
        reqid = called(client)
        client.open(grpc_head(path="/ringway.echo.v1.Echo/ClientStream"))
        until(lambda: told(gateway, reqid)["streams"] == 1, what="a call that runs")
        client.abort()
        until(lambda: told(gateway, reqid)["state"] == "parked", what="the parked tunnel")
        kept = told(gateway, reqid)["verdict"]
        assert re.fullmatch(r"client (?:lost its network|reset its connection) \d\d:\d\d:\d\d; its worker is kept for it, "
                            r"for .* so far", kept), kept
        time.sleep(1)
        with gateway.h2() as again:
            assert called(again, reqid=reqid) == reqid
            session = told(gateway, reqid)
            back = session["verdict"]
            found = re.fullmatch(r"client (?:lost its network|reset its connection) \d\d:\d\d:\d\d, back after (\S+) s on "
                                 rf"core {session['core']}, same worker", back)
            assert found and float(found.group(1)) >= 1, back
            events = {event["event"]: event for event in session["events"]}
            assert events["client_ended"]["how"] == "connection reset"
            assert events["client_ended"]["streamsOpen"] is True
            assert (events["resumed"]["way"], events["resumed"]["core"]) == (
                "memory", session["core"])
            assert events["resumed"]["tookMs"] >= 0
            workers = {event["worker"] for event in session["events"] if "worker" in event}
            assert workers == {session["tunnel"]}, "it is the tunnel that was there"


def test_ended_by_an_operator(own_gateway):
    admin = own_gateway.admin
    with own_gateway.h2() as client:
        reqid = called(client)
        code, text, said = ringway("sessions", "end", reqid[:8], admin=admin)
        assert (code, text, said) == (0, f"session {reqid} has been ended\n", ""), said
        session = told(own_gateway, reqid)
        assert session["state"] == "closed" and "operator" in session["verdict"], session
    code, _, said = ringway("sessions", "end", reqid, admin=admin)
    assert code == 1 and "has ended already" in said, said


def test_without_records(serve, attach):
    from fakeworker import FakeWorker
    gateway = serve(more="[limits]\ntrace_records = 0\n")
    with FakeWorker(gateway) as fake:
        session = attach(gateway, fake)
        seen = told(gateway, session.work.request_id)
    assert (seen["events"], seen["verdict"]) == ([], "no events were kept of it")
    assert seen["state"] == "active"


def test_the_table_and_its_filters(own_gateway):
    admin = own_gateway.admin
    assert ringway("sessions", admin=admin) == (0, "no sessions\n", "")
    with own_gateway.h2() as client, own_gateway.h2() as other:
        first = called(client)
        second = called(other, key=OTHER_KEY)
        code, text, _ = ringway("sessions", admin=admin)
        head, *rows = text.splitlines()
        assert code == 0 and head.startswith("REQUEST ID") and len(rows) == 2, text
        assert {row.split()[0] for row in rows} == {first, second}, text
        for filters, found in (
                (["--tenant", "other"], [second]), (["--tenant", "nobody"], []),
                (["--state", "active"], [first, second]), (["--state", "parked"], []),
                (["--function", FUNCTION], [first, second]),
                (["--function", VERSION[:8], "--tenant", "dev"], [first])):
            code, text, said = ringway("sessions", "--json", *filters, admin=admin)
            assert code == 0, said
            rows = json.loads(text)
            assert sorted(row["requestId"] for row in rows) == sorted(found), (filters, rows)
            assert all(row["tunnel"] for row in rows)
    code, _, said = ringway("sessions", "--state", "gone", admin=admin)
    assert code == 2 and "parked" in said, said


def test_the_timeline_as_text_and_json(own_gateway):
    admin = own_gateway.admin
    with own_gateway.h2() as client:
        reqid = called(client)
        code, text, said = ringway("sessions", "timeline", reqid, admin=admin)
        assert (code, said) == (0, ""), said
        lines = text.splitlines()
        assert lines[0].split()[1] == reqid and "runs on core" in text, text
        events = [line.split() for line in lines if re.match(r"\d\d:\d\d:\d\d\.\d{6} ", line)]
        assert [event[5] for event in events if event[5] != "connect_moved"] == ANSWERED, text
        code, text, _ = ringway("sessions", "timeline", reqid[:8], "--json", admin=admin)
        assert code == 0 and json.loads(text)["requestId"] == reqid


def test_errors_name_the_fix(own_gateway):
    code, text, said = ringway("sessions", "timeline", "00000000", admin=own_gateway.admin)
    assert (code, text) == (1, "") and "knows no session 00000000" in said, said
    code, _, said = ringway("sessions", "timeline", "1234", admin=own_gateway.admin)
    assert code == 2 and "first eight" in said, said
    closed = ("127.0.0.1", dead_port())
    for command in (["sessions"], ["sessions", "timeline", "12345678"],
                    ["sessions", "end", "12345678"], ["top"]):
        code, text, said = ringway(*command, admin=closed)
        assert (code, text) == (1, "") and "is the gateway running?" in said, said
        assert "--admin" in said
        code, text, said = ringway(*command, admin=own_gateway.client)
        assert (code, text) == (1, "") and "is not the admin port of a ringway" in said, said
    with socket.create_server(("127.0.0.1", 0)) as mute:
        code, _, said = ringway("sessions", admin=mute.getsockname())
        assert code == 1 and "does not answer within 5 s" in said, said
    code, _, said = ringway("sessions", admin=("no.such.host.invalid", 1))
    assert code == 1 and "no.such.host.invalid" in said, said


def test_top_without_a_terminal(own_gateway):
    with own_gateway.h2() as client:
        reqid = called(client)
        code, text, said = ringway("top", "--interval", "200ms", "--frames", "3",
                                   admin=own_gateway.admin)
        assert (code, said) == (0, ""), said
        frames = text.strip().split("\n\nringway ")
        assert len(frames) == 3 and "\x1b" not in text, text
        for frame in frames:
            assert "sessions 1 (waiting 0, attached 0, active 1, parked 0)" in frame, frame
            assert re.search(rf"^{reqid[:8]}  active .* dev ", frame, re.M), frame
        assert "calls/s -" in frames[0] and re.search(r"calls/s \d", frames[1]), text


@pytest.mark.parametrize("way", ["q", "ctrl-c", "term"])
def test_top_on_a_terminal(own_gateway, way):
    import fcntl
    import struct
    import termios
    keyboard, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 120, 0, 0))
    where = "%s:%d" % tuple(own_gateway.admin)
    arguments = [*binary(), "top", "--admin", where, "--interval", "100ms"]

    def in_front():
        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    run = subprocess.Popen(arguments, stdin=terminal, stdout=terminal, stderr=subprocess.PIPE,
                           preexec_fn=in_front)
    try:
        seen = b""
        until_time = time.monotonic() + 60
        # Only what has changed is drawn anew: between two looks the rate of calls has.
        while not (b"calls/s" in seen and b"REQUEST" in seen) and time.monotonic() < until_time:
            if select.select([keyboard], [], [], 0.2)[0]:
                seen += os.read(keyboard, 65536)
        assert seen.startswith(b"\x1b[?1049h") and b"cores" in seen, seen
        if way == "term":
            run.send_signal(signal.SIGTERM)
        else:
            os.write(keyboard, b"q" if way == "q" else b"\x03")
        until_time = time.monotonic() + 60
        while run.poll() is None and time.monotonic() < until_time:
            if select.select([keyboard], [], [], 0.05)[0]:
                seen += os.read(keyboard, 65536)
        assert run.poll() == 0, run.stderr.read()
        while select.select([keyboard], [], [], 0.1)[0]:
            seen += os.read(keyboard, 65536)
        assert b"\x1b[?1049l" in seen, "the screen is given back"
        assert termios.tcgetattr(terminal)[3] & termios.ICANON, "the keyboard too"
    finally:
        run.kill()
        run.wait()
        os.close(keyboard)
        os.close(terminal)
