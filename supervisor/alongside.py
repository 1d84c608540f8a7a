"""A task for as long as a block runs."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import trio


@asynccontextmanager
async def alongside(task: Callable[..., Awaitable[object]], *args: Any, started: bool = False) -> AsyncIterator[Any]:
    """Run a task for the block; leaving it cancels the task and waits for its end.

    Yields what the task says it has started with, if `started`: it is waited for then; None else.
    """
    async with trio.open_nursery() as nursery:
        value: Any = None
        if started:
            value = await nursery.start(task, *args)
        else:
            nursery.start_soon(task, *args)
        yield value
        nursery.cancel_scope.cancel()
