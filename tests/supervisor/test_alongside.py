"""A task runs as long as its block, and has ended when the block has."""

import pytest
import trio

from supervisor.alongside import alongside


async def test_it_is_cancelled_and_has_ended_after_the_block() -> None:
    said: list[str] = []

    async def task(name: str) -> None:
        said.append(f"{name} runs")
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.lowlevel.checkpoint()
            said.append(f"{name} has ended")

    async with alongside(task, "it") as value:
        await trio.testing.wait_all_tasks_blocked()
        assert (value, said) == (None, ["it runs"])
    assert said == ["it runs", "it has ended"]


async def test_what_it_starts_with_is_waited_for() -> None:
    async def task(*, task_status: trio.TaskStatus[int]) -> None:
        await trio.lowlevel.checkpoint()
        task_status.started(7)
        await trio.sleep_forever()

    async with alongside(task, started=True) as value:
        assert value == 7


async def test_a_task_that_fails_ends_the_block() -> None:
    async def task() -> None:
        await trio.lowlevel.checkpoint()
        raise OSError("gone")

    with pytest.RaisesGroup(OSError):
        async with alongside(task):
            await trio.sleep_forever()
