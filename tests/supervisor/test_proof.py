"""Whether a worker still gives tokens: when one is asked, of which model, and what its answer says."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest

from supervisor.health import Step
from supervisor.proof import Proof, Stall, keep_alive_until

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
AFTER_S = 300.0


@dataclass(frozen=True)
class Model:
    name: str
    context_length: int | None = 4096


def stalled(at: float = 100.0, *, times: int = 1) -> Proof:
    """A process of which so many requests stalled in a row, the last one at `at`."""
    proof = Proof()
    for number in range(times):
        proof.stalled("stall", 120.0, at - times + 1 + number, None)
    return proof


# -- when ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("now", "idle_since", "after_s", "due"),
    [
        (300.0, 0.0, AFTER_S, True),
        (299.9, 0.0, AFTER_S, False),
        (300.0, 100.0, AFTER_S, False),  # it was busy a moment ago
        (9999.0, None, AFTER_S, False),  # it is busy
        (9999.0, 0.0, 0.0, False),  # CANARY_AFTER_S=0
    ],
)
def test_a_token_is_asked_of_a_worker_that_has_been_idle_for_long(
    now: float, idle_since: float | None, after_s: float, due: bool
) -> None:
    proof = Proof()
    proof.serves(0.0)
    assert proof.due(now, None, idle_since, after_s) is due


@pytest.mark.parametrize("idle_since", [None, 0.0])
@pytest.mark.parametrize(("progress_at", "due"), [(None, True), (99.0, True), (100.1, False)])
def test_a_token_is_asked_after_a_stall_until_a_byte_comes(
    idle_since: float | None, progress_at: float | None, due: bool
) -> None:
    proof = stalled(at=100.0)
    assert proof.due(101.0, progress_at, idle_since, 0.0) is due
    assert (proof.suspicion is not None) is due


def test_an_answer_is_as_good_as_a_token_until_the_next_time() -> None:
    proof = Proof()
    proof.asked(None, 300.0, None, 301.0, None)
    assert not proof.due(600.0, None, 0.0, AFTER_S)
    assert proof.due(601.0, None, 0.0, AFTER_S)


# -- of which model --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("loaded", "required", "asked"),
    [
        ([], "a", None),
        ([Model("b"), Model("a")], "a", "a"),  # the required one first
        ([Model("b"), Model("a")], None, "b"),
        ([Model("b", None), Model("a", None)], "a", "a"),  # it was loaded with Ollama's default
        ([Model("b", None)], "a", None),  # nobody knows with which context: it would be loaded anew
        ([Model("refuses"), Model("b")], "refuses", "b"),
    ],
)
def test_the_model_is_one_that_need_not_be_loaded_anew(
    loaded: list[Model], required: str | None, asked: str | None
) -> None:
    proof = Proof()
    proof.not_chat("refuses")
    model = proof.candidate(loaded, required)
    assert (model.name if model is not None else None) == asked


@pytest.mark.parametrize(
    ("expires_at", "keep_alive"),
    [
        (NOON + timedelta(seconds=90.9), "90s"),
        (NOON - timedelta(seconds=5), "1s"),  # it is on its way out
        (NOON + timedelta(days=300 * 365), -1),
        (None, -1),
    ],
)
def test_a_model_stays_no_longer_for_being_asked(expires_at: datetime | None, keep_alive: str | int) -> None:
    assert keep_alive_until(expires_at, NOON) == keep_alive


# -- what the answer says --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stall", "fault", "progress_at", "cause"),
    [
        (None, None, None, None),
        (None, "no token came within 30 s", None, "one token, asked when idle: no token came within 30 s"),
        (
            Stall("stall", 120.0, 90.0),
            "it answered 500: x",
            None,
            "a request fell silent within its answer for 120 s, and then it answered 500: x",
        ),
        (None, "no token came within 30 s", 100.5, None),  # but a byte of a real answer
        (None, "no token came within 30 s", 99.0, "one token, asked when idle: no token came within 30 s"),
    ],
)
def test_a_token_that_does_not_come_has_the_worker_restarted(
    stall: Stall | None, fault: str | None, progress_at: float | None, cause: str | None
) -> None:
    proof = Proof(stall=stall)
    proof.asked(stall, 100.0, fault, 130.0, progress_at)
    if cause is None:
        assert (proof.unproven, proof.suspicion) == (None, None)
    else:
        assert proof.unproven is not None
        assert (proof.unproven.what, proof.unproven.since, proof.unproven.step) == (cause, 100.0, Step.RESTART)
        assert not proof.due(9999.0, None, 0.0, AFTER_S) or stall is not None


@pytest.mark.parametrize(("times", "hung"), [(1, False), (2, True)])
def test_where_no_model_can_be_asked_a_second_stall_in_a_row_is_its_fault(times: int, hung: bool) -> None:
    proof = stalled(times=times)
    proof.nothing_to_ask(proof.stall, 101.0)
    assert (proof.unproven is not None) is hung
    assert proof.suspicion is None


def test_stalls_with_an_answer_between_them_are_not_in_a_row() -> None:
    proof = stalled(at=100.0)
    proof.stalled("first byte", 600.0, 900.0, 500.0)
    proof.nothing_to_ask(proof.stall, 901.0)
    assert proof.unproven is None


@pytest.mark.parametrize(
    ("phase", "what"),
    [
        ("first byte", "a request gave no first byte for 120 s"),
        ("stall", "a request fell silent within its answer for 120 s"),
    ],
)
def test_a_stall_is_said_for_people(phase: str, what: str) -> None:
    assert Stall(phase, 120.4, 0.0).what == what
