"""What can go wrong around a gateway in `nvcf` mode, one thing after the other at one gateway under
load: a function for each, that brings it about, looks at what a client is told, how soon, what the
metrics and the log say of it, and mends it again. What it returns is what new sessions may have
been told meanwhile. `Stage.passes` runs one."""

import contextlib
import json
import os
import signal
import time
import uuid
from urllib.parse import unquote

from fakeworker import FakeWorker
from gateway import VERSION, until
from nats_rig import REGION
from nvcf_bed import PROXY_TOKEN, SCRIPT
from nvcf_stage import (AT_ONCE, DENIED, FEW, HASTY_WAIT, IDLE, LIMITED, LINES_APART,
                        LOOKUPS, MUTE, NO_STREAM,
                        PLAYED, REFUSALS, REGISTRATIONS, Watch, total)
from rawh2 import HEADERS

OPENING = "failed to open stateful work request: "
UNPUBLISHED = OPENING + "failed to publish function invocation request to nats"
NO_LINK = "failed to establish link to worker"


# --- NVIDIA's API and its limiter -----------------------------------------------------------------

def api_slow(stage):
    watch = Watch(stage.gateway)
    told = stage.ask(key="slow")
    assert told.code == "0" and 1.5 <= told.took < 1.5 + AT_ONCE, told
    assert watch.moved("rpc_client_duration_milliseconds_sum", rpc_service="nvcf.Proxy") >= 1500
    # Who waited for whom.
    assert watch.moved("ringway_session_start_seconds_sum", part="queue") >= 1.5
    for part in ("queue", "dial", "first_byte"):
        assert watch.moved("ringway_session_start_seconds_count", part=part) >= 1, part
    watch.says("registering new worker connection")


def api_silent(stage):
    watch = Watch(stage.hasty)
    told = stage.ask(stage.hasty, key="silent")
    assert told.code == "14" and HASTY_WAIT <= told.took < HASTY_WAIT + AT_ONCE, told
    assert OPENING in told.text and "did not answer in time" in told.text, told
    assert watch.moved("ringway_control_asks_total", outcome="expired") == 1
    watch.says("failed to open stateful work request", "did not answer in time")


def api_down(stage):
    watch = Watch(stage.gateway)
    stage.bed.stand_in.kill()
    told = stage.ask()
    assert told.code == "14" and OPENING in told.text and told.took < AT_ONCE, told
    # Three attempts each (contract CP-2).
    watch.counts(3, "rpc_client_duration_milliseconds_count", rpc_service="nvcf.Proxy",
                 rpc_grpc_status_code="14")
    watch.says("NVIDIA's API fails", '"level":"warn"')
    assert stage.gateway.get("/live")[0] == 200 and stage.gateway.is_ready()
    stage.bed.stand_in.start()
    stage.serves()
    watch.says("NVIDIA's API answers again")
    return {"14"}


def api_refuses(stage, code):
    watch = Watch(stage.gateway)
    told = stage.ask(key=f"status-{code}")
    assert told.code == str(code) and told.text.startswith(OPENING), told
    assert f"because {code}" in told.text, told
    assert told.took < AT_ONCE, told
    attempts = 3 if code == 14 else 1
    assert watch.moved("rpc_client_duration_milliseconds_count", rpc_service="nvcf.Proxy",
                       rpc_grpc_status_code=str(code)) == attempts
    watch.says("failed to open stateful work request", f"because {code}", '"level":"warn"')


def limiter_down(stage):
    """CP-11: it allows, and is loud."""
    stage.serves(function=LIMITED)
    watch = Watch(stage.gateway)
    stage.limiter.cut()
    told = stage.ask(function=LIMITED)
    assert told.code == "0" and told.took < AT_ONCE, told
    assert watch.moved("ringway_rate_limiter_checks_total", outcome="failed") == 1
    assert total(stage.gateway.metrics(), "ringway_rate_limiter_answers", {}) == 0
    watch.says("the rate limiter does not answer: new sessions are not limited")
    stage.limiter.mend()
    stage.serves(function=LIMITED)
    until(lambda: stage.ask(function=LIMITED) and
          total(stage.gateway.metrics(), "ringway_rate_limiter_answers", {}) == 1,
          what="a limiter that answers", every=0.2)
    watch.says("the rate limiter answers")


# --- NATS -----------------------------------------------------------------------------------------

# What new sessions may be told while NATS is away: their work was not published, or it was, and
# went down with NATS before a worker had it.
AWAY = {"13", "4"}


def nats_killed(stage):
    """NATS comes back empty. A gateway that is started meanwhile lives, is not ready, and says why."""
    time.sleep(LINES_APART)
    watch = Watch(stage.gateway)
    stage.bed.nats_server.kill()
    told = until(lambda: (told := stage.ask()).code == "13" and told, what="E6")
    assert UNPUBLISHED in told.text and told.took < 6 + AT_ONCE, told
    watch.counts(1, "nats_disconnect_total")
    watch.says("NATS was lost")
    late = stage.bed.gateway()
    status, _, body = late.get("/ready")
    assert late.get("/live")[0] == 200 and status == 503 and b"nats" in body.lower(), body
    late.logs("NATS is not reached")
    assert stage.gateway.is_ready(), "it is away for less than ten seconds"
    stage.bed.nats_server.start()
    stage.make_streams()
    watch.counts(1, "nats_reconnect_total")
    stage.serves()
    until(late.is_ready, what="ready")
    stage.serves(late)
    late.kill()
    # Whoever was first has made it.
    until(lambda: stage.nats.state(LOOKUPS) is not None, what="the stream of registrations")
    return AWAY


def nats_stopped(stage):
    """NATS answers nothing: the acknowledgement is waited for 5 s (contract NT-2). Work that
    it stores when it goes on is taken back, so that no slot is lost to it."""
    watch = Watch(stage.gateway)
    stage.bed.nats_server.run.send_signal(signal.SIGSTOP)
    try:
        stopped = time.monotonic()
        told = stage.ask()
        assert told.code == "13" and UNPUBLISHED in told.text and 4 < told.took < 5 + AT_ONCE, told
        watch.says("work was not published", "no answer came within 5 s")
        time.sleep(max(0, stopped + stage.stopped - time.monotonic()))
    finally:
        stage.bed.nats_server.run.send_signal(signal.SIGCONT)
    stage.serves()
    # A worker may be quicker than who takes it back.
    until(lambda: watch.moved("pending_work_purged_total", trigger="client_departed")
          + watch.moved("pending_work_purge_skipped_total", reason="nothing_pending") >= 1,
          what="what came through late is looked for", every=0.1)
    until(lambda: total(stage.gateway.metrics(), "ringway_nats_unsettled_work", {}) < 10,
          what="work that nobody waits for is taken back", every=0.1)
    return AWAY


def nats_lame_duck(stage):
    watch = Watch(stage.gateway)
    stage.bed.nats_server.lame_duck()
    watch.counts(1, "nats_lame_duck_total")
    watch.says("the NATS server will leave, another is taken")
    # With it goes its JetStream, and there is no other server here: it ends, and another one takes
    # its place.
    stage.bed.nats_server.kill()
    stage.bed.nats_server.start()
    stage.make_streams()
    stage.serves()
    watch.counts(1, "nats_reconnect_total")
    return AWAY


def nats_denied(stage):
    """The account may neither purge nor publish to one function's subject."""
    watch, path = Watch(stage.gateway), stage.bed.nats_server.path
    before = path.read_text()
    deny = f'["$JS.API.STREAM.PURGE.rq_{REGION}_{IDLE}", "rq.{REGION}.{DENIED}.>"]'
    path.write_text(before.replace(
        f"nkey: {stage.bed.nkey} ",
        f"nkey: {stage.bed.nkey}, permissions: {{ publish: {{ deny: {deny} }} }} "))
    assert path.read_text() != before
    stage.bed.nats_server.run.send_signal(signal.SIGHUP)
    try:
        told = until(lambda: (told := stage.ask(function=DENIED)).code == "13" and told, what="E6")
        assert UNPUBLISHED in told.text and told.took < AT_ONCE, told
        watch.counts(1, "nats_error_total")
        stage.ask_until_said(watch, "work was not published", "Permissions Violation", DENIED,
                             function=DENIED)
        with stage.waiting(IDLE):
            until(lambda: stage.nats.messages(f"rq_{REGION}_{IDLE}") == 1, what="its work")
        watch.counts(1, "pending_work_purge_skipped_total", reason="invoker_unsupported")
        assert total(stage.gateway.metrics(), "ringway_nats_right_missing", {"right": "purge"}) == 1
    finally:
        path.write_text(before)
        stage.bed.nats_server.run.send_signal(signal.SIGHUP)
    stage.nats.js(f"STREAM.PURGE.rq_{REGION}_{IDLE}")
    stage.serves()
    return AWAY


def nats_slow_consumer(stage):
    """The server drops a client that takes nothing: what was out is asked again."""
    time.sleep(LINES_APART)
    watch, log = Watch(stage.gateway), stage.bed.nats_server.log_path
    before = log.read_text().count("Slow Consumer")
    heard = stage.nats.listen(f"rq.{REGION}.{VERSION}.*")
    inbox = heard.next().reply.rsplit(".", 1)[0]
    stage.wire.hold_up()
    try:
        for _ in range(24):
            stage.nats.do(stage.nats.client.publish(f"{inbox}.x", b"x" * 1_000_000))
        stage.nats.do(stage.nats.client.flush())
        until(lambda: log.read_text().count("Slow Consumer") > before, what="that it is slow")
    finally:
        stage.wire.let_go()
    watch.counts(1, "nats_disconnect_total")
    watch.says("NATS was lost")
    stage.serves()
    watch.counts(1, "nats_reconnect_total")
    return AWAY


def no_acknowledgement(stage):
    """The work is in the stream, and nobody says so: the client is told that it is not, and it is
    taken back."""
    watch = Watch(stage.gateway)
    told = stage.ask(function=MUTE)
    assert told.code == "13" and UNPUBLISHED in told.text and 4.5 < told.took < 5 + AT_ONCE, told
    watch.says("work was not published", "no answer came within 5 s", MUTE)
    watch.counts(1, "pending_work_purged_total", result="succeeded", trigger="client_departed")
    stage.is_empty(MUTE)


# --- streams --------------------------------------------------------------------------------------

def request_stream_missing(stage):
    watch = Watch(stage.gateway)
    for told in stage.ask_until_said(watch, "work was not published",
                                     f"there is no stream rq_{REGION}_{NO_STREAM}",
                                     function=NO_STREAM):
        assert told.code == "13" and UNPUBLISHED in told.text and told.took < AT_ONCE, told
    assert watch.moved("worker_connection_closed_total", reason="deleted") >= 1


def request_stream_full(stage):
    with stage.waiting(FEW):
        until(lambda: stage.nats.messages(f"rq_{REGION}_{FEW}") == 1, what="a stream that is full")
        watch = Watch(stage.gateway)
        for told in stage.ask_until_said(watch, "work was not published",
                                         "maximum messages exceeded", FEW, function=FEW):
            assert told.code == "13" and UNPUBLISHED in told.text and told.took < AT_ONCE, told
        assert watch.moved("worker_connection_closed_total", reason="deleted") >= 1
    stage.is_empty(FEW)


def lookup_stream_full(stage):
    """R16: the session works, and nobody else finds it until there is room."""
    state = stage.nats.js(f"STREAM.INFO.{LOOKUPS}")
    most = state["config"]["max_msgs"]
    filled = f"stateful_session.lookup.{REGION}.filler"
    if most > REGISTRATIONS:
        # The gateway has made it since: fill what it leaves by making it smaller.
        answer = stage.nats.js(f"STREAM.UPDATE.{LOOKUPS}",
                               **{**state["config"], "max_msgs": REGISTRATIONS})
        assert "error" not in answer, answer

    def fill():
        for number in range(REGISTRATIONS):
            stage.nats.do(stage.nats.client.publish(f"{filled}.{number}", b"x"))
        stage.nats.do(stage.nats.client.flush())
    def unregistered():
        """A session that found no room. Whoever ends makes room for one, and a new one may take
        that."""
        fill()
        line, session = stage.load.do(stage.load.one_line())
        fill()
        told = stage.ask(stage.hasty, reqid=session)
        if told.code != "0":
            return line, session, told
        stage.load.do(stage.load.leave(line))
        return None

    watch = Watch(stage.hasty)
    line, session, told = until(unregistered, what="a session without a registration")
    try:
        assert told.code == "5" and "no existing session found" in told.text, told
        assert told.took < AT_ONCE, told
        watch.says("failed to open stateful work request", "no existing session found")
        assert watch.moved("ringway_resumes_total", way="none") == 1
        stage.load.do(stage.load.call(line))
        stage.nats.js(f"STREAM.PURGE.{LOOKUPS}", filter=f"{filled}.>")
        stage.serves(stage.hasty, reqid=session)
    finally:
        stage.nats.js(f"STREAM.PURGE.{LOOKUPS}", filter=f"{filled}.>")
        stage.load.do(stage.load.leave(line))


def lookup_stream_missing(stage):
    """NT-3: whoever misses it makes it again."""
    watch = Watch(stage.hasty)
    stage.nats.js(f"STREAM.DELETE.{LOOKUPS}")
    told = stage.ask(stage.hasty, reqid=str(uuid.uuid4()))
    assert told.code == "5" and "no existing session found" in told.text, told
    assert told.took < AT_ONCE, told
    watch.says("the stream of registrations")
    assert watch.moved("ringway_resumes_total", way="none") == 1
    assert stage.nats.state(LOOKUPS) is not None


# --- workers --------------------------------------------------------------------------------------

def worker_never_dials(stage):
    watch = Watch(stage.hasty)
    with stage.waiting(PLAYED, stage.hasty) as (peer, stream):
        began = time.monotonic()
        taken = stage.take()
        head = peer.head(stream)
        took = time.monotonic() - began
    text = unquote(head.get("grpc-message"))
    assert head.grpc_status == "4" and took < HASTY_WAIT + AT_ONCE, (str(head), took)
    assert NO_LINK in text and "a worker took it" in text and "no callback came" in text, text
    watch.says("worker connection cache eviction triggered", '"ttl_expired"', taken.request_id)
    assert watch.moved("worker_connection_closed_total", reason="ttl_expired") == 1
    taken.done()
    stage.is_empty(PLAYED)


def no_worker_takes(stage):
    watch = Watch(stage.hasty)
    told = stage.ask(stage.hasty, function=IDLE)
    assert told.code == "4" and HASTY_WAIT <= told.took < HASTY_WAIT + AT_ONCE, told
    assert NO_LINK in told.text and "no worker took it" in told.text, told
    watch.says("worker connection cache eviction triggered", '"ttl_expired"', IDLE)
    watch.counts(1, "pending_work_purged_total", result="succeeded", trigger="client_departed")
    stage.is_empty(IDLE)


def worker_dials_late(stage):
    """Its client has left: it is told at once, and its slot is free."""
    watch = Watch(stage.gateway)
    with stage.waiting(PLAYED):
        taken = stage.take()
    watch.says("worker connection cache eviction triggered", taken.request_id)
    began = time.monotonic()
    status, line = taken.dial()
    assert status == 403 and time.monotonic() - began < AT_ONCE, status
    assert watch.moved("worker_connect_total", result="accepted") <= watch.moved(
        "worker_token_issued_total")
    watch.counts(1, "worker_connect_total", result="rejected_token_expired")
    watch.says("rejecting worker CONNECT")
    line.close()
    taken.done()
    stage.is_empty(PLAYED)


def worker_dials_twice(stage):
    """A token is good for one tunnel: for no second one while that is there, and for none after."""
    watch = Watch(stage.gateway)
    played = FakeWorker(stage.gateway)
    with stage.waiting(PLAYED) as (peer, stream), contextlib.closing(played):
        taken = stage.take()
        status, first = taken.dial()
        assert status == 200, status
        began = time.monotonic()
        status, second = taken.dial()
        assert status == 403 and time.monotonic() - began < AT_ONCE, status
        second.close()
        tunnel = played.serve(first)
        request = tunnel.wait(HEADERS)
        tunnel.headers(request.stream, [(":status", "200"), ("content-type", "application/grpc"),
                                        ("grpc-status", "0")], end_stream=True)
        assert peer.head(stream).grpc_status == "0", "its first tunnel serves"
    watch.says("worker connection cache eviction triggered", taken.request_id)
    status, third = taken.dial()
    assert status == 403, status
    third.close()
    watch.counts(2, "worker_connect_total", result="rejected_token_expired")
    watch.says("rejecting worker CONNECT")
    taken.done()
    stage.is_empty(PLAYED)


# --- secrets --------------------------------------------------------------------------------------

def replace_secrets(stage, text):
    new = stage.bed.secrets.with_suffix(".new")
    new.write_text(text)
    new.rename(stage.bed.secrets)


def secrets_replaced(stage):
    """CP-6: the next call shows the new one."""
    watch, before = Watch(stage.gateway), stage.bed.secrets.read_text()
    fresh = f"fresh-{uuid.uuid4()}"
    both = {"from": {"bearers": [PROXY_TOKEN, fresh]}}
    stage.bed.stand_in.play(api=both)
    replace_secrets(stage, json.dumps({**json.loads(before), "nvcfApiToken": fresh}))
    watch.says("secrets were read")
    assert watch.moved("ringway_secrets_reads_total", result="usable") >= 1
    told = stage.ask()
    assert told.code == "0" and told.took < AT_ONCE, told
    assert stage.bed.stand_in.seen("api", "bearer", fresh) >= 1
    assert fresh not in watch.log()
    replace_secrets(stage, before)
    until(lambda: stage.tokens_shown() == {PROXY_TOKEN}, every=0.1, what="the former one again")
    stage.bed.stand_in.play(api=SCRIPT["api"])
    stage.serves()


def secrets_unusable(stage, text):
    """Broken, or gone: what was known stays."""
    watch, before = Watch(stage.gateway), stage.bed.secrets.read_text()
    if text is None:
        os.remove(stage.bed.secrets)
    else:
        replace_secrets(stage, text)
    watch.counts(1, "ringway_secrets_reads_total", result="unusable")
    told = stage.ask()
    assert told.code == "0" and told.took < AT_ONCE, told
    watch.says("the secrets file cannot be used: what was known stays", '"level":"warn"')
    assert PROXY_TOKEN not in watch.log() and stage.bed.seed not in watch.log()
    replace_secrets(stage, before)
    watch.says("the secrets file can be used again")
    stage.serves()


def of(fault, *arguments):
    return lambda stage: fault(stage, *arguments)


FAULTS = {
    "API slow": api_slow, "API silent": api_silent, "API down": api_down,
    **{f"API says {code}": of(api_refuses, code) for code in REFUSALS},
    "limiter down": limiter_down,
    "request stream missing": request_stream_missing, "request stream full": request_stream_full,
    "look-up stream full": lookup_stream_full, "look-up stream missing": lookup_stream_missing,
    "no worker takes the work": no_worker_takes,
    "worker takes work and never dials": worker_never_dials,
    "worker dials after its client left": worker_dials_late,
    "worker dials twice, and its token again later": worker_dials_twice,
    "an acknowledgement never comes": no_acknowledgement,
    "secrets replaced": secrets_replaced,
    "secrets broken": of(secrets_unusable, '{"nvcfApiToken": '),
    "secrets gone": of(secrets_unusable, None),
    "NATS permission denied": nats_denied, "NATS slow consumer": nats_slow_consumer,
    "NATS stopped": nats_stopped, "NATS lame duck": nats_lame_duck,
    "NATS killed, started empty": nats_killed,
}
