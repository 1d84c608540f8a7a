"""One process as those see it who look after it: what was measured of another process is not taken for its own."""

from pathlib import Path
from typing import Any, cast

import pytest

from supervisor.house import WorkerSpec
from supervisor.oom import mark
from supervisor.placement import CPU
from supervisor.watched import Watched
from tests.fakes.world import Process, World


async def watched(world: World, folder: Path, **names: str) -> Watched:
    world.process = Process(101)
    return Watched(
        WorkerSpec("w1", CPU, 2), world.house(folder, **names), cast("Any", world.process), 11500,
        mark(), serving=lambda: True, recycle=lambda _: None, holds=lambda _: None,
    )  # fmt: skip


async def test_only_what_is_of_this_very_process_counts(tmp_path: Path) -> None:
    world = World()
    it = await watched(world, tmp_path)
    usage = it.usage()
    assert usage is not None
    assert usage.leader == 101
    world.process = Process(111)  # the worker has been started again
    assert it.usage() is None
    world.process = None
    assert it.usage() is None


@pytest.mark.parametrize(("names", "required"), [("a,b:c", "a:latest"), ("b:c", "b:c"), ("", None)])
async def test_the_first_required_model_is_to_be_loaded(tmp_path: Path, names: str, required: str | None) -> None:
    assert (await watched(World(), tmp_path, REQUIRED_MODEL=names)).required() == required


async def test_what_happens_is_told_of_its_worker(tmp_path: Path) -> None:
    world = World()
    (await watched(world, tmp_path)).record("worker_stalled", silent_s=3.0)
    (event,) = world.events.newest()
    assert (event["event"], event["worker"], event["silent_s"]) == ("worker_stalled", "w1", 3.0)
