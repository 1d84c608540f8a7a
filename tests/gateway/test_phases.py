"""How a request ended, in one word; where it was; how fast its tokens came."""

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import (
    BodyTooLarge,
    ClientGone,
    ConnectFailed,
    FirstByteTimeout,
    NoWorkerWanted,
    PrimaryAway,
    QueueFull,
    QueueTimeout,
    RunnerDied,
    ShuttingDown,
    Stalled,
    WorkerLost,
    WorkerRefused,
    told,
)
from gateway.phases import OUTCOMES, TRY_OUTCOMES, Phases, Try, Unnoted, clean, outcome_of, try_outcome_of

CUT = trio.Cancelled._create(source="shutdown")


@pytest.mark.parametrize(
    ("fault", "outcome"),
    [
        (QueueFull(), "refused"),
        (QueueTimeout(300.0, ready_workers=1), "refused"),
        (NoWorkerWanted(), "refused"),
        (ShuttingDown(), "refused"),
        (FirstByteTimeout(600.0), "timeout"),
        (Stalled(120.0), "timeout"),
        (WorkerLost("x"), "error"),
        (PrimaryAway("x"), "error"),
        (BodyTooLarge(10), "client_error"),
    ],
)
def test_a_fault_that_the_client_was_told_of_has_its_word(fault: Exception, outcome: str) -> None:
    assert outcome_of(Phases(fault=fault, status=told(fault).status)) == outcome  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("phases", "outcome"),
    [
        (Phases(status=200), "ok"),
        (Phases(status=304), "ok"),
        (Phases(status=404), "client_error"),
        (Phases(status=503), "error"),
        (Phases(), "error"),  # no answer, and nobody knows why
        (Phases(status=200, broken="lost"), "broken"),
        (Phases(status=200, fault=WorkerLost("x")), "broken"),  # it had begun
        (Phases(status=200, fault=ClientGone()), "client_left"),
        (Phases(fault=ClientGone()), "client_left"),
        (Phases(fault=CUT), "cut"),
        (Phases(fault=KeyError("a bug")), "error"),
    ],
    ids=str,
)
def test_each_end_has_its_word(phases: Phases, outcome: str) -> None:
    assert outcome_of(phases) == outcome
    assert outcome in OUTCOMES


@pytest.mark.parametrize(
    ("status", "fault", "broken", "outcome"),
    [
        (200, None, None, "ok"),
        (400, None, None, "client_error"),
        (500, None, None, "error"),
        (200, None, "error_line", "broken"),
        (0, ConnectFailed("x"), None, "lost"),
        (0, WorkerLost("x"), None, "lost"),
        (500, RunnerDied("x"), None, "lost"),
        (503, WorkerRefused("x"), None, "refused"),
        (0, FirstByteTimeout(1.0), None, "timeout"),
        (200, ClientGone(), None, "cut"),
        (200, CUT, None, "cut"),
        (200, KeyError("a bug"), None, "error"),
    ],
)
def test_each_end_of_a_try_has_its_word(
    status: int, fault: BaseException | None, broken: str | None, outcome: str
) -> None:
    assert try_outcome_of(Try("w1", 0.0, status=status), fault, broken) == outcome
    assert outcome in TRY_OUTCOMES


@pytest.mark.parametrize(
    ("phases", "left_in"),
    [
        (Phases(), "body"),
        (Phases(read_at=1.0), "worker"),  # the primary has it
        (Phases(read_at=1.0, queued_at=1.0), "queue"),
        (Phases(read_at=1.0, queued_at=1.0, tries=[Try("w1", 2.0)]), "worker"),
        (Phases(read_at=1.0, queued_at=1.0, tries=[Try("w1", 2.0, ended_at=3.0, outcome="lost")]), "queue"),
        (Phases(read_at=1.0, queued_at=1.0, tries=[Try("w1", 2.0)], answered_at=3.0), "answer"),
        (Phases(queued_at=1.0, ended_at=3.0), "queue"),
    ],
    ids=str,
)
def test_it_is_known_where_a_request_was(phases: Phases, left_in: str) -> None:
    assert phases.left_in == left_in


def test_a_streams_tokens_count_from_its_first_byte_a_whole_answers_from_the_workers_first_sight() -> None:
    tried = Try("w1", 0.0, sent_at=1.0, first_byte_at=3.0, last_byte_at=5.0)
    assert Phases(tries=[tried], stream=True, answer_tokens=100).tokens_per_s == 50.0
    assert Phases(tries=[tried], stream=False, answer_tokens=100).tokens_per_s == 25.0
    assert Phases(tries=[tried], stream=True).tokens_per_s is None
    assert Phases(answer_tokens=100).tokens_per_s is None
    at_once = Try("w1", 0.0, sent_at=1.0, first_byte_at=1.0, last_byte_at=1.0)
    assert Phases(tries=[at_once], stream=True, answer_tokens=100).tokens_per_s is None


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("/api/chat", "/api/chat"),
        ("a\nb\r\n", "a\\nb\\r\\n"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("é\u2028\u202e\ud800", "\\xe9\\u2028\\u202e\\ud800"),
        ("x" * 30, "x" * 25 + "..."),
    ],
)
def test_what_a_client_chose_is_made_harmless(text: str, cleaned: str) -> None:
    assert clean(text, 25) == cleaned


@given(st.text(), st.integers(1, 50))
def test_a_cleaned_text_is_short_printable_ascii(text: str, limit: int) -> None:
    cleaned = clean(text, limit)
    assert cleaned.isascii()
    assert cleaned.isprintable()
    assert len(cleaned) <= limit + 3


def test_whom_nobody_notes_is_not_noted() -> None:
    nobody = Unnoted()
    nobody.begins("w1", "r", None)
    nobody.ends("w1", "r", 200, "ok", 1.0)
