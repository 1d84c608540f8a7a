"""What a client does not read at once: kept within bounds, sent when it reads, and nobody waits for ever."""

import socket
from collections.abc import Iterator

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from gateway import outgoing as module
from gateway.connections import Connections
from gateway.outgoing import BUFFER_BYTES, ROOM_BYTES, Outgoing

STALL_TIMEOUT_S = 60.0
# More than any socket here takes by itself, and less than is kept for a client.
PART = bytes(range(256)) * 1024


class Line:
    """A connection's sending half, and the client at its other end."""

    def __init__(self, nursery: trio.Nursery, connections: Connections) -> None:
        self.sock, self.client = socket.socketpair()
        for end in (self.sock, self.client):
            end.setblocking(False)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        self.connections = connections
        self.changes: list[int] = []
        self.outgoing = Outgoing(self.sock, connections, nursery, STALL_TIMEOUT_S, self._changed)

    def _changed(self) -> None:
        self.changes.append(self.outgoing.unread)

    def take(self, most: int = 1 << 30) -> bytes:
        """What has come at the client by now."""
        got = b""
        while len(got) < most:
            try:
                got += self.client.recv(most - len(got))
            except BlockingIOError:
                break
        return got

    async def read(self, length: int) -> bytes:
        """Read as a client does that keeps up."""
        got = b""
        while len(got) < length:
            got += self.take(length - len(got))
            await wait_all_tasks_blocked()
        return got

    def close(self) -> None:
        self.outgoing.end("the test is over")
        self.sock.close()
        self.client.close()


@pytest.fixture
def connections() -> Connections:
    return Connections(10)


@pytest.fixture
def line(nursery: trio.Nursery, connections: Connections) -> Iterator[Line]:
    made = Line(nursery, connections)
    yield made
    made.close()
    assert connections.unread == 0


async def test_what_the_kernel_takes_is_sent_at_once_and_nothing_is_kept(line: Line) -> None:
    assert not line.outgoing.put(b"a")
    assert not line.outgoing.put(bytearray(b"b"))
    assert not line.outgoing.put(memoryview(b"cd")[:1])
    assert (line.take(), line.outgoing.unread, line.changes) == (b"abc", 0, [])


async def test_the_rest_is_kept_in_order_and_sent_as_the_client_reads(line: Line) -> None:
    assert not line.outgoing.put(PART)
    assert not line.outgoing.put(b"the end")
    kept = line.outgoing.unread
    assert kept == line.connections.unread > len(PART) // 2
    assert await line.read(len(PART) + 7) == PART + b"the end"
    assert (line.outgoing.unread, line.connections.unread) == (0, 0)
    assert (line.changes[0] > 0, line.changes[-1]) == (True, 0)
    assert not line.outgoing.put(b"at once again")
    assert line.take() == b"at once again"


async def test_a_writer_waits_above_the_bound_until_there_is_room_again(
    line: Line, autojump_clock: trio.abc.Clock
) -> None:
    put = 0
    while not line.outgoing.put(PART):
        put += len(PART)
    put += len(PART)
    assert BUFFER_BYTES < line.outgoing.unread <= BUFFER_BYTES + len(PART)
    read = trio.Event()

    async def reads() -> None:
        await line.read(put - ROOM_BYTES + 1)
        read.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(reads)
        await line.outgoing.wait_room()
        assert line.outgoing.unread <= ROOM_BYTES
    assert not line.outgoing.put(b"x" * 1000)


async def test_where_all_leave_too_much_unread_a_writer_waits_for_its_own_client(
    line: Line, connections: Connections, monkeypatch: pytest.MonkeyPatch, nursery: trio.Nursery
) -> None:
    monkeypatch.setattr(module, "UNREAD_BYTES", len(PART))
    other = Line(nursery, connections)
    other.outgoing.put(PART)
    assert line.outgoing.put(PART)  # little, but together it is too much
    async with trio.open_nursery() as waiting:
        waiting.start_soon(line.outgoing.wait_room)
        await line.read(len(PART) // 2)
        await wait_all_tasks_blocked()
        assert waiting.child_tasks  # half would do, were it not for the other
        await line.read(len(PART) - len(PART) // 2)
    other.close()


async def test_a_client_that_reads_nothing_is_given_up_and_whoever_waits_or_writes_is_told(
    line: Line, autojump_clock: trio.abc.Clock
) -> None:
    while not line.outgoing.put(PART):
        pass
    began = trio.current_time()
    with pytest.raises(trio.BrokenResourceError, match="does not read"):
        await line.outgoing.wait_room()
    assert trio.current_time() - began == pytest.approx(STALL_TIMEOUT_S)
    assert (line.outgoing.unread, line.connections.unread) == (0, 0)
    with pytest.raises(trio.BrokenResourceError, match="does not read"):
        line.outgoing.put(b"more")


async def test_a_client_that_reads_a_little_now_and_then_is_not_given_up(
    line: Line, autojump_clock: trio.abc.Clock
) -> None:
    line.outgoing.put(PART)
    got = b""
    while len(got) < len(PART):
        await trio.sleep(STALL_TIMEOUT_S * 0.9)
        got += line.take()
    assert got == PART
    assert trio.current_time() > 2 * STALL_TIMEOUT_S


async def test_a_client_that_leaves_is_met_at_the_next_write(line: Line) -> None:
    line.outgoing.put(PART)
    line.client.close()
    await line.outgoing.wait_read()
    assert line.connections.unread == 0
    with pytest.raises(trio.BrokenResourceError):
        line.outgoing.put(b"more")
    with pytest.raises(trio.BrokenResourceError):
        await line.outgoing.wait_room()


async def test_a_client_that_has_left_is_met_at_once(line: Line) -> None:
    line.client.close()
    with pytest.raises(trio.BrokenResourceError):
        line.outgoing.put(b"x")


async def test_a_cancelled_wait_takes_nothing_back(line: Line) -> None:
    sent = b""
    while not line.outgoing.put(PART):
        sent += PART
    sent += PART
    with trio.move_on_after(0):
        await line.outgoing.wait_room()
    assert await line.read(len(sent)) == sent


async def test_a_gateway_that_goes_down_breaks_what_is_left(connections: Connections) -> None:
    async with trio.open_nursery() as nursery:
        line = Line(nursery, connections)
        line.outgoing.put(PART)
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert (line.outgoing.broken, connections.unread) == ("the gateway is going down", 0)
    line.close()
