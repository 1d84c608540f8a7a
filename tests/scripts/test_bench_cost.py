"""What cost, growth and saturation reckon out of their rounds."""

import math
import socket
from collections.abc import Mapping

import pytest

from scripts.bench import cost, growth, saturation, stage
from scripts.bench.cost import Sample
from scripts.bench.load import Load, Result
from scripts.bench.measurement import Options
from scripts.bench.peer import Running
from scripts.bench.saturation import Step
from scripts.bench.stage import Stage

SIDE = Running("Chimera", ("http://127.0.0.1:1",), (), ())


def a_sample(cpu_us: float, p50_ms: float = 1.0, failed: int = 0, *faults: str) -> Sample:
    return Sample(cpu_us, p50_ms, p50_ms * 10, 100.0, failed, faults)


ROUNDS: list[Mapping[str, Sample]] = [
    {"direct": a_sample(0.0, 1.0), "HAProxy": a_sample(10.0, 2.0), "Chimera": a_sample(20.0, 3.0)},
    {"HAProxy": a_sample(20.0, 4.0), "Chimera": a_sample(80.0, 9.0, 1, "late"), "direct": a_sample(0.0, 2.0)},
    {"Chimera": a_sample(30.0, 4.0, 2, "late", "503"), "direct": a_sample(0.0, 1.0), "HAProxy": a_sample(10.0, 2.5)},
]


def test_figures_are_medians_and_ratios_are_taken_within_a_round() -> None:
    rows = {row.side: row for row in cost.rows_of("stream", 64, ROUNDS)}
    ours = rows["Chimera"]
    assert (ours.what, ours.size, ours.cpu_us, ours.rounds_cpu_us) == ("stream", 64, 30.0, (20.0, 80.0, 30.0))
    assert ours.times_haproxy == 3.0, "the middle one of 2, 4 and 3"
    assert (ours.added_first_byte_p50_ms, ours.added_first_byte_p99_ms) == (3.0, 30.0)
    assert (ours.failed, ours.faults) == (3, ("late", "503"))
    assert (rows["HAProxy"].times_haproxy, rows["direct"].added_first_byte_p50_ms) == (1.0, 0.0)


def test_without_haproxy_and_direct_there_is_no_ratio_and_nothing_to_take_off() -> None:
    (row,) = cost.rows_of("unary", 16, [{"Chimera": a_sample(20.0, 3.0)}])
    assert (row.times_haproxy, row.added_first_byte_p50_ms) == (None, 3.0)


def test_a_round_in_which_the_other_used_nothing_says_nothing() -> None:
    turns = [{"HAProxy": a_sample(0.0), "Chimera": a_sample(20.0)}, *ROUNDS[:1]]
    assert cost.ratio(turns, "Chimera", "HAProxy") == 2.0


def a_result(**fields: object) -> Result:
    usual: dict[str, object] = {
        "took_s": [0.1] * 4, "first_byte_s": [0.001, 0.002, 0.003], "delay_s": [], "chunks": 0, "cpu_s": 0.5,
        "own_cpu_s": 0.0, "seconds": 2.0, "failed": 1, "faults": ["late"],
    }  # fmt: skip
    return Result(**(usual | fields))  # type: ignore[arg-type]


def test_what_a_turn_comes_to() -> None:
    made = cost.sample_of(a_result(), 1000)
    assert (made.cpu_us, made.per_s, made.failed, made.faults) == (500.0, 500.0, 1, ("late",))
    assert (made.first_byte_p50_ms, made.first_byte_p99_ms) == pytest.approx((2.0, 3.0))


def test_a_turn_without_an_answer_has_failed() -> None:
    """Nothing that was done at no cost would look like the best of all sides."""
    made = cost.sample_of(a_result(took_s=[], first_byte_s=[], failed=0, faults=[]), 0)
    assert (made.cpu_us, made.failed, made.faults) == (500_000, 1, ("nothing came while it was counted",))
    assert cost.sample_of(a_result(failed=7), 0).failed == 7
    assert math.isnan(made.first_byte_p50_ms)


def test_what_the_criteria_ask_of_cost() -> None:
    plain = [{"Quart + httpx": a_sample(cpu), **turn} for cpu, turn in zip((80.0, 80.0, 90.0), ROUNDS, strict=True)]
    rows = cost.rows_of("stream", 64, plain) + cost.rows_of("unary", 16, ROUNDS) + cost.rows_of("stream", 16, ROUNDS)
    assert cost.criteria_of(rows) == {
        "chunk_times_haproxy": 3.0, "chunk_times_less_than_plain": 3.0, "request_times_haproxy": 3.0,
    }  # fmt: skip
    assert cost.criteria_of(cost.rows_of("stream", 16, ROUNDS)) == {}, "it is asked at 64 streams"


class Asked:
    """Stands for a load: keeps what was asked for."""

    def __init__(self) -> None:
        self.connections = 0
        self.how: dict[str, float] = {}
        self.prompt = ""

    def __call__(self, side: Running, prompt: str, connections: int, **how: float) -> Result:
        self.connections, self.how, self.prompt = connections, how, prompt
        load = Load(side.urls, connections, prompt, **how)  # type: ignore[arg-type]
        assert load.limit_s > load.spread_s + load.settle_s + load.seconds, "it would end before it has begun"
        return a_result(chunks=500)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    made = Asked()
    for module in (cost, growth, saturation):
        monkeypatch.setattr(module, "ask", made)
    return made


def test_streams_last_until_the_counting_ends(asked: Asked) -> None:
    assert cost.streams(SIDE, 64, 1.2).cpu_us == pytest.approx(1000)
    words = dict(word.split("=") for word in asked.prompt.split() if "=" in word)
    under_way_s = asked.how["spread_s"] + asked.how["settle_s"] + asked.how["seconds"]
    assert int(words["chunks"]) / float(words["rate"]) > under_way_s
    assert asked.connections == 64


def test_unary_requests_are_counted_by_their_answers(asked: Asked) -> None:
    assert cost.unary(SIDE, 16, 1.2).cpu_us == 0.5 / 4 * 1e6


@pytest.mark.parametrize("waiting", [0, 1000, 10_000])
def test_so_many_wait_beside_those_that_are_answered(asked: Asked, waiting: int) -> None:
    growth.queued(SIDE, waiting, 2.0)
    assert asked.connections == waiting + growth.QUEUE_WORKERS * growth.QUEUE_SLOTS


def test_no_queue_is_longer_than_the_connections_that_there_may_be() -> None:
    assert growth.fitting((0, 100, 10_000), 20_000) == ([0, 100, 10_000], [])
    lengths, (line,) = growth.fitting((0, 100, 1_000, 10_000), 900)
    assert (lengths, "of 900 and not 10,000" in line) == ([0, 100, 900], True)
    assert growth.most_waiting() % 100 == 0


# -- saturation --------------------------------------------------------------------------------------------------------


def a_step(asked_per_s: float, delay_ms: float = 1.0, share: float = 1.0, failed: int = 0) -> Step:
    return Step(asked_per_s, asked_per_s * share, delay_ms / 10, delay_ms, failed)


@pytest.mark.parametrize(
    ("step", "good"),
    [
        (a_step(1000, 9.9), True),
        (a_step(1000, 10.0), False),
        (a_step(1000, share=0.95), True),
        (a_step(1000, share=0.94), False),
        (a_step(1000, failed=1), False),
        (a_step(1000, math.nan), False),
    ],
)
def test_a_rate_is_kept_up_with_if_nearly_all_of_it_comes_in_time(step: Step, good: bool) -> None:
    assert step.good is good


@pytest.mark.parametrize(
    ("tried", "rate"),
    [
        ({}, 2000.0),
        ({2000.0: True}, 3000.0),
        ({2000.0: True, 3000.0: True}, 4500.0),
        ({3000.0: False}, 2000.0),
        ({2000.0: True, 4500.0: False}, 3000.0),
        ({2000.0: True, 2100.0: False}, None),
        ({50_000.0: True}, None),
        ({90.0: False}, None),
        ({2000.0: True, 3000.0: False, 4500.0: True}, 6_000_000**0.5),
    ],
)
def test_the_next_rate(tried: dict[float, bool], rate: float | None) -> None:
    assert saturation.next_rate(tried, 2000.0) == (None if rate is None else pytest.approx(rate))


def test_a_rate_beyond_one_that_was_too_much_does_not_count() -> None:
    assert saturation.best([a_step(2000), a_step(3000, 20.0), a_step(4500)]) == 2000
    assert saturation.best([a_step(2000, 20.0)]) == 0
    assert saturation.best([a_step(2000, share=0.97)]) == pytest.approx(1940), "what came, not what was asked for"


@pytest.mark.parametrize("most", [150, 2000, 12_345, 70_000])
def test_the_climb_ends_near_the_highest_rate_that_there_is(monkeypatch: pytest.MonkeyPatch, most: float) -> None:
    def one_step(side: Running, streams: int, rate: float, cores: tuple[int, ...], seconds: float) -> Step:
        return a_step(rate, 1.0 if rate <= most else 100.0)

    monkeypatch.setattr(saturation, "one_step", one_step)
    steps = saturation.climb(SIDE, 64, 2000.0, (), 1.0)
    reached = min(most, saturation.MOST_RATE)
    assert reached / 1.5 < saturation.best(steps) <= reached
    assert len(steps) < 30
    if most < saturation.MOST_RATE:
        assert saturation.best(steps) > most / saturation.NEAR * 0.999


def test_a_hiccup_of_the_machine_is_not_the_proxys(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[float] = []

    def one_step(side: Running, streams: int, rate: float, cores: tuple[int, ...], seconds: float) -> Step:
        tried.append(rate)
        return a_step(rate, 100.0 if rate > 10_000 or tried.count(rate) == 1 else 1.0)

    monkeypatch.setattr(saturation, "one_step", one_step)
    steps = saturation.climb(SIDE, 64, 2000.0, (), 1.0)
    assert 9_000 < saturation.best(steps) <= 10_000
    assert {tried.count(rate) for rate in tried} == {2}


def test_a_step_asks_for_its_rate_over_all_streams(asked: Asked) -> None:
    step = saturation.one_step(SIDE, 64, 6400.0, (1,), 1.0)
    words = dict(word.split("=") for word in asked.prompt.split() if "=" in word)
    assert float(words["rate"]) == 100
    assert (step.asked_per_s, step.per_s) == (6400.0, 250.0)


def test_the_rows_of_saturation() -> None:
    found = {"HAProxy": [10.0, 0.0, 20.0], "Chimera": [5.0, 9.0, 20.0]}
    rows = saturation.rows_of(64, found, {"HAProxy": [a_step(10)], "Chimera": []})
    assert [(row.side, row.chunks_per_s, row.times_haproxy) for row in rows] == [
        ("HAProxy", 10.0, 1.0), ("Chimera", 9.0, 0.75),
    ]  # fmt: skip
    assert saturation.criteria_of(rows) == {"chunks_per_s": 9.0}
    assert saturation.criteria_of(saturation.rows_of(256, found, {"HAProxy": [], "Chimera": []})) == {}


# -- the stage ---------------------------------------------------------------------------------------------------------


def test_another_side_is_first_in_each_round() -> None:
    on = Stage(tuple(Running(name, (), (), ()) for name in "abc"), ())
    assert [[side.name for side in on.turns(number)] for number in range(4)] == [
        ["a", "b", "c"], ["b", "c", "a"], ["c", "a", "b"], ["a", "b", "c"],
    ]  # fmt: skip


def test_a_turn_begins_when_the_workers_have_nothing_left_of_the_last_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """They had: a queue that HAProxy still held took half of the slots from Chimera's turn."""
    left = [2, 1, 0, 0]
    monkeypatch.setattr(stage, "under_way", lambda port: left.pop(0))
    (side,) = Stage((Running("a", (), (), (11500,)),), ()).turns(0)
    assert (side.name, left) == ("a", [0])


def test_a_worker_that_is_gone_has_nothing_to_answer() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    assert stage.under_way(port) == 0


def test_rows_are_shown_in_the_order_of_the_sides() -> None:
    said: list[str] = []
    on = Stage(tuple(Running(name, (), (), ()) for name in ("HAProxy", "Chimera")), ())
    options = Options(rounds=2, say=said.append)
    rows = cost._turns(on, options, "unary", 16, lambda side: a_sample(20.0 if side.name == "Chimera" else 10.0))
    assert [row.side for row in rows] == ["HAProxy", "Chimera"]
    assert "2.0 times HAProxy's" in said[1]
