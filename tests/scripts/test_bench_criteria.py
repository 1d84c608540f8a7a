"""What Chimera has set itself, and what is said of a run that shows it or does not."""

import pytest

from scripts.bench.criteria import CRITERIA, Criterion, Verdict, found_in, verdicts
from tests.fakes.bench import a_record

AT_MOST_3 = Criterion("chunk", "CPU per chunk", " times", most=3)
AT_LEAST_12_000 = Criterion("rate", "chunks a second", least=12_000)


@pytest.mark.parametrize(("value", "word"), [(2.9, "holds"), (3.0, "holds"), (3.1, "does not hold")])
def test_what_is_asked_at_most(value: float, word: str) -> None:
    assert Verdict(AT_MOST_3, value).word == word


@pytest.mark.parametrize(("value", "word"), [(12_001, "holds"), (12_000, "holds"), (11_999, "does not hold")])
def test_what_is_asked_at_least(value: float, word: str) -> None:
    assert Verdict(AT_LEAST_12_000, value).word == word


def test_a_figure_that_is_none_does_not_hold() -> None:
    assert Verdict(AT_MOST_3, float("nan")).word == "does not hold"


def test_a_verdict_says_what_was_asked_and_what_was_found() -> None:
    assert Verdict(AT_MOST_3, 9.324).text == "does not hold  CPU per chunk: 9.32 times (at most 3 times)"
    assert Verdict(AT_LEAST_12_000, 51_224.2).text == "holds          chunks a second: 51,224 (at least 12,000)"
    assert Verdict(AT_LEAST_12_000, None).text == "not measured   chunks a second: at least 12,000"


def test_every_criterion_has_one_bound_and_a_verdict() -> None:
    assert all((one.most is None) != (one.least is None) for one in CRITERIA)
    assert [verdict.word for verdict in verdicts({})] == ["not measured"] * len(CRITERIA)
    assert {one.name for one in CRITERIA} >= {"chunk_times_haproxy", "request_times_haproxy", "chunks_per_s"}


def test_a_later_record_has_the_last_word() -> None:
    first = a_record("cost", {"criteria": {"a": 1.0, "b": 2.0}})
    assert found_in([first, a_record("growth", {}), a_record("other", {"criteria": {"b": 3.0}})]) == {
        "a": 1.0,
        "b": 3.0,
    }
