"""A Chimera whose every inference is late by 5 ms of sleep: what the benchmarks have to see. Run as `chimera` is."""

import trio

from gateway.exchange import Exchange
from gateway.ollama import Ask
from gateway.request import Reply, Request
from supervisor.cli import main

LATE_S = 0.005
_infer = Exchange.infer


async def late(self: Exchange, request: Request, ask: Ask, body: bytes, reply: Reply) -> None:
    """Sleep, then do what it does."""
    await trio.sleep(LATE_S)
    await _infer(self, request, ask, body, reply)


Exchange.infer = late  # type: ignore[method-assign]

if __name__ == "__main__":
    main()
