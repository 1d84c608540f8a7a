"""The runner of a worker's model: its loss is noticed, told once, and made up for where nobody else does."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import trio.testing

from supervisor.house import WorkerSpec
from supervisor.oom import mark
from supervisor.placement import CPU
from supervisor.runner import Runner
from supervisor.watched import Watched
from tests.fakes.world import HERE, Process, World

Made = Callable[..., Runner]


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
async def made(world: World, tmp_path: Path) -> Made:
    """The runner of a ready worker, which holds what `held` collects."""
    world.process = Process(101)

    def make(held: list[frozenset[str]] | None = None, *, required: str = "here", serving: bool = True) -> Runner:
        kept: list[frozenset[str]] = [] if held is None else held
        return Runner(
            Watched(
                WorkerSpec("w1", CPU, 2), world.house(tmp_path, REQUIRED_MODEL=required), cast("Any", world.process),
                11500, mark(), serving=lambda: serving, recycle=lambda _: None, holds=kept.append,
            )
        )  # fmt: skip

    return make


async def test_it_has_gone_once_it_was_there(world: World, made: Made) -> None:
    runner, looks = made(), []
    for there in (False, True, True, False, False, True, False):
        world.runner = there
        looks.append(runner.has_gone())
    assert looks == [False, False, False, True, False, False, True]


async def test_one_that_has_never_been_there_has_not_lost_its_model(world: World, made: Made) -> None:
    runner = made()
    world.runner = False
    assert not runner.has_gone()
    assert runner.holds_what_is_listed(), "its load may be under way"
    world.runner = True
    runner.has_gone()
    world.runner = False
    runner.has_gone()
    assert not runner.holds_what_is_listed()


async def test_as_many_answers_as_were_under_way_say_that_it_died_and_it_is_told_once(world: World, made: Made) -> None:
    runner = made()
    runner.has_gone()
    for _ in range(3):
        runner.died()
    assert world.names() == ["runner_lost"]


@pytest.mark.parametrize(
    ("change", "told", "held"),
    [
        ({}, ["runner_lost", "model_reloaded"], [frozenset(), frozenset({HERE})]),
        ({"loads": False}, ["runner_lost", "model_not_reloaded"], [frozenset()]),
        ({"model": "other:latest"}, ["runner_lost"], [frozenset()]),  # its next request loads it
        ({"answers": False}, [], []),  # /api/ps does not say
        ({"runner": True}, [], []),  # there is another one already
    ],
)
async def test_the_required_model_is_loaded_again(
    autojump_clock: trio.testing.MockClock, world: World, made: Made,
    change: dict[str, Any], told: list[str], held: list[frozenset[str]],
) -> None:  # fmt: skip
    holds: list[frozenset[str]] = []
    runner = made(holds)
    runner.has_gone()
    world.runner = False
    for name, value in change.items():
        setattr(world, name, value)
    await runner.make_up_for_loss(lambda: holds.append(frozenset()))
    assert (world.names(), holds) == (told, held)


async def test_while_requests_are_under_way_the_next_one_loads_it(world: World, made: Made) -> None:
    runner = made()
    world.leases.worker_ready("w1", port=11500, slots=2, models=frozenset(), cordoned=False)
    world.leases.hold("w1")
    world.runner = False
    await runner.make_up_for_loss(lambda: None)
    assert (world.names(), world.loads_asked) == (["runner_lost"], 0)
