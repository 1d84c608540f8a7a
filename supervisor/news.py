"""Word that something is to be looked at again, from plain calls to one task that waits for it."""

import trio


class News:
    """What is told before it is waited for is not lost, and told twice it is one piece of news."""

    def __init__(self) -> None:
        self._told = trio.Event()

    def tell(self) -> None:
        """There is news."""
        self._told.set()

    async def wait(self) -> None:
        """Return when there is news, and take it. Cancellation leaves it for the next who waits."""
        await self._told.wait()
        self._told = trio.Event()
