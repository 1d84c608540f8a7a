"""A Reply that records what the client would have got."""

from dataclasses import dataclass, field

import trio


@dataclass
class RecordingReply:
    """What was told, and how it ended."""

    direct = None

    started: bool = False
    status: int = 0
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    body: bytes = b""
    ended: bool = False
    aborted: bool = False
    first_write: trio.Event = field(default_factory=trio.Event)

    def header(self, name: str) -> str | None:
        """The first value of a header."""
        return next((value.decode() for key, value in self.headers if key == name.encode()), None)

    async def start(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        """Send the head: once, and before anything else."""
        assert not self.started
        self.started, self.status, self.headers = True, status, headers
        await trio.lowlevel.checkpoint()

    async def write(self, data: bytes) -> None:
        """Send a part of the body."""
        assert self.started
        assert (self.ended, self.aborted) == (False, False)
        assert data
        self.body += data
        self.first_write.set()
        await trio.lowlevel.checkpoint()

    async def end(self) -> None:
        """Complete the body."""
        assert self.started
        assert (self.ended, self.aborted) == (False, False)
        self.ended = True
        await trio.lowlevel.checkpoint()

    async def abort(self) -> None:
        """Cut the connection."""
        assert (self.ended, self.aborted) == (False, False)
        self.aborted = True
        await trio.lowlevel.checkpoint()
