"""Restarts leave nothing behind in Chimera's own process; `make soak` does two thousand of them."""

from pathlib import Path

import trio
import trio.testing
from rich.console import Console

from scripts.soak import soak
from supervisor.lifecycle import State
from supervisor.standing import Goal
from tests.fakes.fake_ollama import add_model
from tests.fakes.house import fake_house, until


def test_sixty_restarts_leave_descriptors_threads_and_memory_as_they_were(tmp_path: Path) -> None:
    assert soak(tmp_path / "soak", count=60, workers=6, console=Console(), settle_s=1.0)


async def test_restarts_leave_no_task_behind(tmp_path: Path) -> None:
    """What cannot be seen from outside: trio's tasks, counted in a process of their own workers."""
    add_model(tmp_path / "models", "tiny")
    async with fake_house(tmp_path) as here:
        workers = [here.launch(name) for name in ("w1", "w2")]
        for worker in workers:
            await until(worker, State.READY)
        await trio.testing.wait_all_tasks_blocked(0.05)  # their watches have begun
        before = trio.lowlevel.current_statistics().tasks_living
        for number in range(1, 11):
            for worker in workers:
                worker.end(Goal.RESTART)
            for worker in workers:
                with trio.fail_after(20):
                    while worker.restarts < number or worker.state is not State.READY:
                        await worker.wait_changed()
        with trio.fail_after(20):  # a probe that is under way is a task for a moment
            while trio.lowlevel.current_statistics().tasks_living > before:
                await trio.sleep(0.01)
