"""What makespan, kills and memory reckon of their turns."""

import pytest

from scripts.bench import kills, makespan, memory
from scripts.bench.answers import read_answer
from scripts.bench.load import Result


def took(makespan_s: float, failed: int = 0) -> makespan.Sample:
    return makespan.Sample(makespan_s, makespan_s / 2, 3, failed, ("closed",) if failed else ())


ROUNDS = [
    {"HAProxy": took(10.0), "nginx": took(40.0), "Chimera": took(4.0)},
    {"HAProxy": took(20.0), "nginx": took(10.0), "Chimera": took(12.0)},
    {"HAProxy": took(10.0), "nginx": took(20.0), "Chimera": took(5.0)},
]


def test_a_sides_makespan_is_the_median_and_its_ratio_that_of_each_round() -> None:
    rows = {row.side: row for row in makespan.rows_of("unequal", ROUNDS)}
    assert (rows["Chimera"].makespan_s, rows["Chimera"].times_haproxy) == (5.0, 0.5)
    assert rows["nginx"].rounds_makespan_s == (40.0, 10.0, 20.0)


def test_the_criteria_are_against_haproxy_and_against_the_peer_that_looks_best() -> None:
    rows = makespan.rows_of("two models", ROUNDS) + makespan.rows_of("unequal", ROUNDS)
    assert makespan.criteria_of(rows) == {"makespan_two_models": 0.5, "makespan_unequal": 0.5}


def test_a_side_that_lost_requests_proves_nothing() -> None:
    lost = [turn | {"Chimera": took(1.0, failed=1)} for turn in ROUNDS]
    assert makespan.criteria_of(makespan.rows_of("unequal", lost)) == {}
    worse = [turn | {"HAProxy": took(1.0, failed=1)} for turn in ROUNDS]
    assert makespan.criteria_of(makespan.rows_of("unequal", worse)) == {"makespan_unequal": 0.25}


def test_every_side_is_asked_the_same_batch_and_each_round_another() -> None:
    one, same, other = (makespan.batch(seed, 50, ("a", "b"), 4.0) for seed in (1, 1, 2))
    assert one == same != other
    assert {model for model, _, _ in one} == {"a", "b"}
    assert all(read_answer(prompt).rate == makespan.TOKENS_PER_S * 4 for _, prompt, _ in one)
    assert all((most is None) is (read_answer(prompt).chunks > 60) for _, prompt, most in one)


def answered(count: int, failed: int, broken: int) -> Result:
    return Result([2.0] * count, [0.1] * count, [], 0, 0.0, 0.0, 40.0, failed, ["closed"] * bool(failed), broken)


def test_what_was_lost_is_told_by_whether_anything_had_come() -> None:
    sample = kills.sample_of(answered(100, failed=9, broken=6), kills=4)
    assert (sample.kills, sample.answered, sample.lost_unanswered, sample.lost_midway) == (4, 100, 3, 6)
    assert (sample.first_byte_p50_ms, sample.answer_p99_s) == (100.0, 2.0)


def test_losses_add_up_over_the_rounds() -> None:
    turns = [{"Chimera": kills.sample_of(answered(100, failed, failed), kills=4)} for failed in (2, 0, 1)]
    (row,) = kills.rows_of(turns)
    assert (row.kills, row.answered, row.lost_unanswered, row.lost_midway) == (12, 300, 0, 3)
    assert (row.rounds_lost, row.faults) == ((2, 0, 1), ("closed",))


def test_each_side_is_asked_for_the_same_while_workers_die() -> None:
    assert kills.prompts(1) == kills.prompts(1) != kills.prompts(2)


@pytest.mark.parametrize(("held", "each"), [(100, 1000.0), (50, 2000.0), (0, 100_000.0)])
def test_memory_is_shared_among_those_that_are_really_held(held: int, each: float) -> None:
    assert memory.Sample(idle_bytes=500_000, full_bytes=600_000, held=held).each_bytes == each


def test_memory_has_a_row_for_idle_and_one_for_each_phase() -> None:
    idle, waiting = memory.PHASES[0], memory.PHASES[1]
    found = {
        ("Chimera", idle): [memory.Sample(1000, 3000, 10), memory.Sample(1200, 2200, 10)],
        ("Chimera", waiting): [memory.Sample(1100, 5100, 8)],
    }
    rows = [(row.what, row.body_bytes, row.bytes_each, row.held) for row in memory.rows_of(found)]
    assert rows == [
        ("idle", 0, 1100.0, 0), ("idle connection", 0, 150.0, 10), ("waiting request", waiting.body_bytes, 500.0, 8),
    ]  # fmt: skip
