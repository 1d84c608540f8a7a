"""What the facts of a running worker add up to: busy is not dead, one sign is not enough, no clock is trusted twice."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.health import (
    STUCK_AFTER_S,
    Expiry,
    Finding,
    Silence,
    Step,
    expiries,
    gravest,
    judge_in_kernel,
    judge_silence,
    judge_stopped,
    judge_stuck,
)

HANG_S = 15.0
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


@dataclass(frozen=True)
class Model:
    name: str = "tiny:latest"
    expires_at: datetime | None = None


def silence(*answers: bool) -> Silence:
    """Probes sent at 0, 2, 4, … seconds."""
    known = Silence()
    for number, answered in enumerate(answers):
        known = known.after(answered=answered, asked_at=2.0 * number)
    return known


# -- probes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answers", "progress_at", "now", "step"),
    [
        ((), None, 99, None),
        ((True, False), None, 99, None),  # one missed probe says nothing, however long ago
        ((False, False), None, 4, Step.AVOID),
        ((False, False), None, 14.9, Step.AVOID),
        ((False, False), None, 15, Step.RESTART),
        ((False, False, True), None, 99, None),
        ((False, False), 1.0, 99, None),  # bytes of an answer came after the first missed probe: it is busy
        ((True, False, False), 1.0, 17, Step.RESTART),  # those bytes were before
        ((True, False, False), None, 16.9, Step.AVOID),  # it counts from the first missed probe
    ],
)
def test_unanswered_probes(answers: tuple[bool, ...], progress_at: float | None, now: float, step: Step | None) -> None:
    found = judge_silence(silence(*answers), progress_at, now, HANG_S)
    assert (found.step if found else None) == step


@given(st.lists(st.booleans(), max_size=20), st.floats(0, 100))
def test_silence_lasts_from_the_first_probe_missed_in_a_row(answers: list[bool], now: float) -> None:
    known = silence(*answers)
    missed = 0
    for answered in reversed(answers):
        if answered:
            break
        missed += 1
    assert known.missed == missed
    if missed:
        assert known.since == 2.0 * (len(answers) - missed)
    found = judge_silence(known, None, now, HANG_S)
    if found is not None and found.step is Step.RESTART:
        assert now - known.since >= HANG_S


@pytest.mark.parametrize(
    ("pids", "since", "now", "step"),
    [((), None, 9, None), ((7,), 5, 6, Step.AVOID), ((7,), 5, 19.9, Step.AVOID), ((7, 8), 5, 20, Step.RESTART)],
)
def test_stopped_processes(pids: tuple[int, ...], since: float | None, now: float, step: Step | None) -> None:
    found = judge_stopped(pids, since, now, HANG_S)
    assert (found.step if found else None) == step
    if found is not None:
        assert "7" in found.what


def test_what_the_kernel_holds_is_avoided_and_never_restarted() -> None:
    found = judge_in_kernel({7}, 5.0)
    assert found is not None
    assert (found.step, found.since) == (Step.AVOID, 5.0)
    assert judge_in_kernel((), 5.0) is None
    assert judge_in_kernel({7}, None) is None


# -- models that do not go -------------------------------------------------------------------------------------------


def test_a_model_is_stuck_a_minute_after_its_end_if_nothing_was_under_way_since() -> None:
    found = expiries({}, [Model(expires_at=NOON + timedelta(seconds=10))], NOON, 100.0)
    assert judge_stuck(found, 100.0, 110 + STUCK_AFTER_S) is None
    assert judge_stuck(found, 100.0, 111 + STUCK_AFTER_S) is not None
    assert judge_stuck(found, 150.0, 111 + STUCK_AFTER_S) is None  # a request was there until 150
    assert judge_stuck(found, None, 999.0) is None  # one is there now


@given(st.floats(-86400, 86400), st.integers(0, 86400))
def test_a_wall_clock_that_jumps_makes_no_model_stuck(jump_s: float, left_s: int) -> None:
    model = Model(expires_at=NOON + timedelta(seconds=left_s))
    before = expiries({}, [model], NOON, 0.0)
    after = expiries(before, [model], NOON + timedelta(seconds=1 + jump_s), 1.0)
    assert after == before == {model.name: Expiry(NOON + timedelta(seconds=left_s), float(left_s))}


def test_a_model_that_was_used_again_has_a_new_end() -> None:
    before = expiries({}, [Model(expires_at=NOON)], NOON, 0.0)
    after = expiries(before, [Model(expires_at=NOON + timedelta(seconds=300))], NOON, 0.0)
    assert after["tiny:latest"].due == 300
    assert expiries(after, [Model(expires_at=None)], NOON, 5.0) == {}


def test_the_gravest_finding_counts() -> None:
    avoid, restart = Finding("a", "", 1, Step.AVOID), Finding("b", "", 2, Step.RESTART)
    assert gravest([None, avoid, restart, None]) is restart
    assert gravest([avoid, Finding("c", "", 0, Step.AVOID)]) is avoid
    assert gravest([None]) is None
