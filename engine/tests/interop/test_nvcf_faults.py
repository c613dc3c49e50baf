"""The table of faults, under load: 100 calls a second on 50 sessions, 50 parked ones, 10 new sessions
a second, at one gateway through all of it."""

import json

import pytest

from nvcf_bed import LIMITER_TOKEN, PROXY_TOKEN, A
from nvcf_faults import FAULTS
from nvcf_stage import Stage

pytestmark = pytest.mark.alone


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    made = Stage(tmp_path_factory.mktemp("stage"))
    yield made
    logs = made.gateway.log_text() + made.hasty.log_text()
    made.close()
    for secret in (PROXY_TOKEN, LIMITER_TOKEN, A, made.bed.seed):
        assert secret not in logs, "a log tells a secret"
    assert "panicked" not in logs


@pytest.mark.parametrize("name", FAULTS)
def test_under_load(stage, name):
    stage.passes(FAULTS[name])


def test_a_session_says_how_long_the_parts_of_its_start_took(stage):
    """By NATS nobody tells when a worker took the work: that is part of the dial.

    A worker may dial back before the gateway has heard that its work was queued, or in the same turn:
    then there is no queue part, or the dial took no time.
    """
    starts = []
    for _ in range(10):
        line, session = stage.load.do(stage.load.one_line())
        starts.append(json.loads(stage.gateway.get(f"/sessions/{session}")[2])["start"])
        stage.load.do(stage.load.leave(line))
    for start in starts:
        assert {"dialMs", "firstByteMs"} <= set(start) <= {"queueMs", "dialMs", "firstByteMs"}, start
        assert all(0 <= took < 10_000 for took in start.values()), start
        assert sum(start.values()) > start["firstByteMs"] > 0, start
    whole = [start for start in starts if len(start) == 3 and all(start.values())]
    assert whole, starts


def test_every_parked_session_is_still_there(stage):
    stage.everybody_comes_back()
