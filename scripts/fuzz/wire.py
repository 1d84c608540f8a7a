"""The third part: bytes on the gateway's port, HTTP/1.1 and HTTP/2, good ones spoilt in every way.

A batch of connections at once; each sends its bytes in a few pieces and then says that it has no more. The gateway
must end every one of them within HANG_S, answer none with a 500 of its own, and be at rest afterwards.
"""

import random
import re
from collections.abc import Sequence
from functools import partial

import trio
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from scripts.fuzz.corpus import Notebook, kept
from scripts.fuzz.requests import streams
from scripts.fuzz.stage import MIB, Stage, Trouble
from scripts.fuzz.tally import Clock, Tally

TARGET = "wire"
BATCH = 12
BATCHES = 25
HANG_S = 30.0
# The allocator goes on growing for some thousand requests, ever more slowly, until it has what it needs.
WARM_UP_BATCHES = 300
# A client that sends half a request and waits is no fault; how long one of ours does before it says that it is done.
PATIENCE_S = 0.05
_STATUS = re.compile(rb"(?:\A|(?<=\n))HTTP/1\.1 (\d{3}) [^\n]*\r\n(.*?)\r\n\r\n", re.DOTALL)


async def one(port: int, data: bytes, pieces: int) -> bytes:
    """Send bytes in pieces, say that there are no more, return what came back. Raises Trouble when that has no end."""
    got = bytearray()
    with trio.move_on_after(HANG_S) as hang:
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        async with stream:
            try:
                step = max(1, -(-len(data) // pieces))
                for start in range(0, len(data), step):
                    await stream.send_all(data[start : start + step])
                    await trio.lowlevel.checkpoint()
                with trio.move_on_after(PATIENCE_S):
                    while part := await stream.receive_some(65536):
                        got += part
                    return bytes(got)
                await stream.send_eof()
                while part := await stream.receive_some(65536):
                    got += part
            except trio.BrokenResourceError:
                pass  # refused and closed before all of it was sent
            return bytes(got)
    if hang.cancelled_caught:
        raise Trouble(f"the connection was not ended within {HANG_S:g} s; it answered {bytes(got[:200])!r}")
    return bytes(got)


def own_500(answer: bytes) -> bytes | None:
    """Return the head of an answer with status 500 (or 502) that came from no worker and no primary."""
    for found in _STATUS.finditer(answer):
        if found[1] in (b"500", b"502") and b"x-chimera-worker" not in found[2]:
            return found[0][:400]
    return None


async def batch(port: int, sent: Sequence[bytes], pieces: int) -> list[bytes]:
    """Have so many connections at once; return their answers, in their order. Raises Trouble."""
    answers = [b""] * len(sent)
    faults: list[Trouble] = []

    async def carry_out(number: int, data: bytes) -> None:
        try:
            answers[number] = await one(port, data, pieces)
        except Trouble as trouble:
            faults.append(trouble)

    async with trio.open_nursery() as nursery:
        for number, data in enumerate(sent):
            nursery.start_soon(carry_out, number, data)
    if faults:
        raise faults[0]
    return answers


def tried(stage: Stage, sent: Sequence[bytes], pieces: int = 1) -> None:
    """Try a batch and look at what it left. Raises Trouble."""
    for answer in trio.run(partial(batch, stage.made.port, sent, pieces)):
        if (head := own_500(answer)) is not None:
            raise Trouble(f"it answered {head!r}")
    stage.look()


class Wire:
    """The part: batch after batch until the time is spent."""

    def __init__(self, stage: Stage, notebook: Notebook, chance: random.Random) -> None:
        self.tally = Tally("wire")
        self._stage = stage
        self._notebook = notebook
        self._chance = chance
        self._batches = 0

    def run(self, clock: Clock) -> None:
        """Try until the clock is over, or something was found: what follows a leak would be found with it."""
        samples = [data for _, data in kept(TARGET)]
        self._stage.refill()
        for data in samples:
            self._carry_out([data], 1)
        while clock.left_s > 0 and not self.tally.findings:
            self._stage.refill()
            self._slice(samples or [b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"], clock)
        if self._batches >= WARM_UP_BATCHES:
            self.tally.tried(f"memory grew by {self._stage.growth_bytes / MIB:.1f} MiB after the warm-up", 0)

    def _slice(self, samples: list[bytes], clock: Clock) -> None:
        @seed(self._chance.getrandbits(64))
        @settings(max_examples=BATCHES, deadline=None, database=None, suppress_health_check=list(HealthCheck),
                  phases=[Phase.generate], print_blob=False)  # fmt: skip
        @given(st.lists(streams(samples), min_size=BATCH, max_size=BATCH), st.integers(1, 4))
        def attempt(sent: list[bytes], pieces: int) -> None:
            if clock.left_s > 0 and not self.tally.findings:
                self._carry_out(sent, pieces)

        attempt()

    def _carry_out(self, sent: list[bytes], pieces: int) -> None:
        self._notebook.trying(TARGET, b"\n=====\n".join(sent))
        self.tally.tried(TARGET, len(sent))
        try:
            tried(self._stage, sent, pieces)
        except Trouble as trouble:
            self._blame(sent, pieces, trouble)
        self._batches += 1
        if self._batches == WARM_UP_BATCHES:
            self._stage.baseline()

    def _blame(self, sent: list[bytes], pieces: int, trouble: Trouble) -> None:
        """Find the one of a batch that does it, by trying each alone; else it is the batch as a whole."""
        for data in sent if len(sent) > 1 else []:
            try:
                tried(self._stage, [data], pieces)
            except Trouble as again:
                sent, trouble = [data], again
                break
        paths = [self._notebook.found(TARGET, data) for data in sent]
        shown = repr(sent[0][:600]) if len(sent) == 1 else f"{len(sent)} connections at once"
        self.tally.found(TARGET, str(trouble), f"{shown}\n{' '.join(map(str, paths))}")
