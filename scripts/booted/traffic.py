"""Requests at a steady rate, each on a connection of its own, and what became of each. Loopback only, and bounded."""

import json
from collections import Counter
from collections.abc import Awaitable
from dataclasses import dataclass, field
from enum import Enum

import httpx
import trio

# A connection that waits in the socket is answered once Chimera has started again.
ANSWER_TIMEOUT_S = 120.0
# Of so many requests one is a stream that a worker answers; the others cost a worker nothing.
STREAM_EVERY = 5
TOKENS = 6
AT_MOST_S = 180.0


class Fate(Enum):
    """What became of a request."""

    ANSWERED = "answered"
    TURNED_AWAY = "503 with Retry-After"
    REFUSED = "connection refused"
    CUT = "cut"
    WRONG = "another answer"


@dataclass
class Traffic:
    """The requests so far, counted; `why` has the texts of those that went wrong."""

    url: str
    model: str
    fates: Counter[Fate] = field(default_factory=Counter)
    why: list[str] = field(default_factory=list)

    async def run(self, per_s: float, until: trio.Event) -> None:
        """Ask so many times a second until told to stop; then wait for the last answers."""
        with trio.move_on_after(AT_MOST_S):
            async with httpx.AsyncClient(
                base_url=self.url, timeout=ANSWER_TIMEOUT_S, trust_env=False,
                limits=httpx.Limits(max_connections=None, max_keepalive_connections=0),
            ) as client, trio.open_nursery() as nursery:  # fmt: skip
                number = 0
                began = trio.current_time()
                while not until.is_set():
                    nursery.start_soon(self._ask, client, number)
                    number += 1
                    await trio.sleep_until(began + number / per_s)

    async def stream(self, tokens: int, started: trio.Event) -> None:
        """Have one long answer; `started` is set with its first byte."""
        async with httpx.AsyncClient(base_url=self.url, timeout=ANSWER_TIMEOUT_S, trust_env=False) as client:
            await self._told(self._generate(client, f"{tokens}. Count to a thousand.", tokens, started))
        started.set()

    async def _ask(self, client: httpx.AsyncClient, number: int) -> None:
        if number % STREAM_EVERY == 0:
            await self._told(self._generate(client, f"{number}. Say a number.", TOKENS, None))
        else:
            await self._told(self._version(client))

    async def _told(self, asking: Awaitable[Fate]) -> None:
        try:
            fate = await asking
        except httpx.ConnectError as error:
            fate = Fate.REFUSED
            self.why.append(repr(error))
        except httpx.TransportError as error:
            fate = Fate.CUT
            self.why.append(repr(error))
        self.fates[fate] += 1

    async def _version(self, client: httpx.AsyncClient) -> Fate:
        answer = await client.get("/api/version")
        return Fate.ANSWERED if answer.status_code == 200 else self._other(answer)

    async def _generate(self, client: httpx.AsyncClient, prompt: str, tokens: int, started: trio.Event | None) -> Fate:
        body = {"model": self.model, "prompt": prompt, "options": {"num_predict": tokens, "temperature": 0}}
        async with client.stream("POST", "/api/generate", json=body) as answer:
            if answer.status_code != 200:
                await answer.aread()
                return self._other(answer)
            last = b""
            async for line in answer.aiter_lines():
                last = line.encode() or last
                if started is not None:
                    started.set()
        if whole(last):
            return Fate.ANSWERED
        self.why.append(f"a stream ended with {last[:120]!r}")
        return Fate.CUT

    def _other(self, answer: httpx.Response) -> Fate:
        if answer.status_code == 503 and "retry-after" in answer.headers:
            return Fate.TURNED_AWAY
        self.why.append(f"{answer.status_code}: {answer.text[:120]}")
        return Fate.WRONG

    @property
    def text(self) -> str:
        """Say what became of all of them."""
        told = [fate for fate in Fate if self.fates[fate]]
        return ", ".join(f"{self.fates[fate]} {fate.value}" for fate in told) or "nothing was asked"


def whole(last: bytes) -> bool:
    """Say whether the last line of a stream is the one that ends it."""
    try:
        value = json.loads(last)
    except ValueError:
        return False
    return isinstance(value, dict) and value.get("done") is True
