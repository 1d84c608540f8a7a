"""A client's connection: when it is refused, given up, closed, and who is told."""

import contextlib
import re
import socket
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from gateway.connections import Connections, Place, Standing
from gateway.framing import PREFACE
from gateway.head import HEAD_BYTES
from gateway.stream import HEAD_TIMEOUT_S, KEEP_ALIVE_S, LINGER_S, RESERVE_TIMEOUT_S, GuardedStream

STALL_TIMEOUT_S = 60.0
GET = b"GET /a HTTP/1.1\r\nHost: a\r\n\r\n"
POST = b"POST /v1/messages HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n"
MUCH = b"x" * 400_000  # more than a socket here takes by itself


@dataclass
class Call:
    """A request that is being answered."""

    begun: bool = False
    pending: bool = True

    def __hash__(self) -> int:
        return id(self)


class Line:
    """A connection, and the client at its other end."""

    def __init__(self, nursery: trio.Nursery, connections: Connections, place: Place = Place.OPEN) -> None:
        sock, self.client = socket.socketpair()
        for end in (sock, self.client):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        self.client.setblocking(False)
        self.connections = connections
        self.stream = GuardedStream(sock, connections, place, nursery, STALL_TIMEOUT_S)

    async def next(self) -> bytes:
        """What Hypercorn is given next."""
        return await self.stream.receive_some(65536)

    def take(self) -> bytes:
        """What has come at the client by now."""
        got = b""
        while True:
            try:
                data = self.client.recv(1 << 20)
            except (BlockingIOError, ConnectionResetError):
                return got
            if not data:
                return got
            got += data

    async def answer(self, data: bytes = b"HTTP/1.1 200 OK\r\n\r\n") -> None:
        """Answer the request that was handed on."""
        await self.stream.send_all(data)
        self.stream.answered()


@pytest.fixture
def line(nursery: trio.Nursery) -> Iterator[Line]:
    made = Line(nursery, Connections(10))
    yield made
    made.stream.cut()
    made.client.close()
    assert made.connections.unread == 0


def status(answer: bytes) -> int:
    found = re.match(rb"HTTP/1.1 (\d+) [A-Za-z -]+\r\n", answer)
    assert found, answer
    return int(found[1])


# -- requests ----------------------------------------------------------------------------------------------------------


async def test_requests_are_handed_on_one_by_one(line: Line) -> None:
    line.client.send(GET + POST + b"hel")
    assert await line.next() == GET
    with trio.move_on_after(0):
        pytest.fail(str(await line.next()))
    await line.answer()
    assert await line.next() == POST + b"hel"
    line.client.send(b"lo" + GET)
    assert await line.next() == b"lo"


async def test_the_answer_wakes_the_reader_for_what_has_come_ahead(line: Line) -> None:
    line.client.send(GET + GET)
    await line.next()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(line.next)
        await wait_all_tasks_blocked()
        assert nursery.child_tasks
        await line.answer()


async def test_a_client_that_has_sent_ahead_and_leaves_is_seen_to_leave(line: Line) -> None:
    line.client.send(GET + GET)
    await line.next()
    line.client.close()
    assert await line.next() == b""


async def test_of_what_comes_ahead_only_so_much_is_taken(line: Line) -> None:
    line.client.send(GET)
    await line.next()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(line.next)
        try:
            while line.client.send(GET * 100):
                await wait_all_tasks_blocked()
        except BlockingIOError:
            pass  # it is not read any more
        assert HEAD_BYTES < line.stream._framing.ahead < 3 * HEAD_BYTES
        await line.answer()


async def test_http_2_passes(line: Line) -> None:
    line.client.send(PREFACE + b"\n\n")
    assert await line.next() == PREFACE + b"\n\n"
    assert line.stream.standing is Standing.IDLE


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        (b"what?\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (POST.replace(b"5", b"+5"), 400),
        (b"GET /" + b"x" * 9000, 414),
        (GET[:-2] + b"x: " + b"y" * HEAD_BYTES, 431),
    ],
)
async def test_what_is_refused_is_answered_and_nothing_after_it_is_handed_on(
    line: Line, sent: bytes, expected: int, autojump_clock: trio.abc.Clock
) -> None:
    async def sends() -> None:
        left = sent + GET
        while left:
            await trio.lowlevel.wait_writable(line.client)
            left = left[line.client.send(left) :]

    counted: list[int] = []
    line.connections.refused = counted.append
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sends)
        with pytest.raises(trio.BrokenResourceError):
            await line.next()
        await line.stream.ended.wait()
    answer = line.take()
    assert counted == [expected]
    assert (status(answer), answer.count(b"HTTP/1.1"), b"connection: close" in answer) == (expected, 1, True)
    with pytest.raises(trio.ClosedResourceError):
        await line.next()


async def test_a_refusal_is_in_the_words_of_the_api_and_after_the_answers_before_it(line: Line) -> None:
    line.client.send(GET + POST.replace(b"5", b"5, 5") + GET)
    await line.next()
    await line.answer(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
    with pytest.raises(trio.BrokenResourceError):
        await line.next()
    first, second = line.take().split(b"HTTP/1.1 ")[1:]
    assert first.startswith(b"200")
    assert second.startswith(b"400")
    assert b'{"type": "error", "error"' in second


async def test_a_body_that_is_refused_ends_an_answer_that_has_begun_without_a_word(line: Line) -> None:
    line.client.send(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
    await line.next()
    line.stream.calls.add(Call(begun=True))
    await line.stream.send_all(b"HTTP/1.1 200 OK\r\n\r\n")
    line.client.send(b"0x1\r\n")
    with pytest.raises(trio.BrokenResourceError):
        await line.next()
    assert line.take() == b"HTTP/1.1 200 OK\r\n\r\n"
    assert line.stream.ended.is_set()


async def test_a_client_that_left_before_its_refusal_is_no_fault(line: Line) -> None:
    line.client.send(b"what?\n")
    line.client.close()
    with pytest.raises(trio.BrokenResourceError):
        await line.next()


# -- slow senders ------------------------------------------------------------------------------------------------------


async def slowly(line: Line, data: bytes, pause_s: float = 1.0) -> None:
    """Send one byte a second, say."""
    for byte in data:
        await trio.sleep(pause_s)
        try:
            line.client.send(bytes([byte]))
        except BrokenPipeError:
            return


async def test_a_head_that_is_not_complete_in_time_is_refused(line: Line, autojump_clock: trio.abc.Clock) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(slowly, line, GET[:-2] + b"x: " + b"y" * 1000)
        with pytest.raises(trio.BrokenResourceError):
            await line.next()
        assert trio.current_time() == pytest.approx(HEAD_TIMEOUT_S + 1)
        await line.stream.ended.wait()
        assert status(line.take()) == 408
        nursery.cancel_scope.cancel()


async def test_the_reserve_is_less_patient(nursery: trio.Nursery, autojump_clock: trio.abc.Clock) -> None:
    line = Line(nursery, Connections(10), Place.RESERVE)
    line.client.send(b"GET")
    with pytest.raises(trio.BrokenResourceError):
        await line.next()
    assert trio.current_time() == pytest.approx(RESERVE_TIMEOUT_S)
    assert status(line.take()) == 408
    line.client.close()
    await line.stream.ended.wait()


async def test_a_head_that_is_slow_but_in_time_is_taken(line: Line, autojump_clock: trio.abc.Clock) -> None:
    for _ in range(2):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(slowly, line, GET, HEAD_TIMEOUT_S / len(GET) * 0.95)
            assert await line.next() == GET
        await line.answer()
        await trio.sleep(KEEP_ALIVE_S * 0.9)  # the second one's first byte comes late, and it has all its time


async def test_a_client_that_says_nothing_is_left_without_a_word(line: Line, autojump_clock: trio.abc.Clock) -> None:
    assert await line.next() == b""
    assert trio.current_time() == pytest.approx(HEAD_TIMEOUT_S)
    assert line.take() == b""


async def test_between_two_requests_a_client_may_rest(line: Line, autojump_clock: trio.abc.Clock) -> None:
    line.client.send(GET)
    await line.next()

    async def answers() -> None:
        await trio.sleep(1000)
        await line.answer()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(answers)
        assert await line.next() == b""
    assert trio.current_time() == pytest.approx(1000 + KEEP_ALIVE_S)


@pytest.fixture
def express_line(nursery: trio.Nursery, line: Line) -> Line:
    """A connection that the express lane answers: who reads does nothing else meanwhile."""
    nursery.start_soon(line.connections.patience.run)
    line.stream.express = True
    return line


async def test_in_the_express_lane_a_client_that_says_nothing_is_left_without_a_word(
    express_line: Line, autojump_clock: trio.abc.Clock
) -> None:
    assert await express_line.next() == b""
    assert trio.current_time() == pytest.approx(HEAD_TIMEOUT_S)
    assert express_line.take() == b""


async def test_in_the_express_lane_a_client_may_rest_between_two_requests(
    express_line: Line, autojump_clock: trio.abc.Clock
) -> None:
    for _ in range(3):
        express_line.client.send(GET)
        await express_line.next()
        await trio.sleep(1000)
        await express_line.answer()
        await trio.sleep(KEEP_ALIVE_S * 0.9)
    begin = trio.current_time()
    assert await express_line.next() == b""
    assert trio.current_time() == pytest.approx(begin + KEEP_ALIVE_S * 0.1)


async def test_in_the_express_lane_a_head_that_is_not_complete_in_time_is_refused(
    express_line: Line, autojump_clock: trio.abc.Clock
) -> None:
    express_line.client.send(GET[:-2])
    with pytest.raises(trio.BrokenResourceError):
        await express_line.next()
    assert trio.current_time() == pytest.approx(HEAD_TIMEOUT_S)
    await express_line.stream.ended.wait()
    assert status(express_line.take()) == 408


async def test_in_the_express_lane_a_client_that_still_reads_its_answer_is_not_late(
    express_line: Line, autojump_clock: trio.abc.Clock
) -> None:
    express_line.client.send(GET)
    await express_line.next()
    await express_line.answer(MUCH)
    taken = 0

    async def reads_slowly() -> None:
        nonlocal taken
        while taken < len(MUCH):
            await trio.sleep(STALL_TIMEOUT_S * 0.9)
            with contextlib.suppress(BlockingIOError):
                taken += len(express_line.client.recv(40_000))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(reads_slowly)
        assert await express_line.next() == b""
    assert taken == len(MUCH)


async def test_a_connection_of_the_express_lane_that_is_cut_wakes_its_reader(express_line: Line) -> None:
    async def reads() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await express_line.next()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(reads)
        await wait_all_tasks_blocked()
        express_line.stream.cut()


async def test_a_slow_body_is_for_its_reader_to_judge(line: Line, autojump_clock: trio.abc.Clock) -> None:
    line.client.send(POST)
    await line.next()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(slowly, line, b"h", 10_000)
        assert await line.next() == b"h"


# -- idle, busy --------------------------------------------------------------------------------------------------------


async def test_from_a_requests_first_byte_to_its_answers_last_a_connection_is_not_idle(line: Line) -> None:
    seen = [line.stream.standing]

    async def see() -> None:
        await wait_all_tasks_blocked()
        seen.append(line.stream.standing)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(line.next)
        line.client.send(POST[:9])
        await see()
        line.client.send(POST[9:])
        await see()
    line.client.send(b"hello")
    await line.next()
    await see()
    call = Call()
    line.stream.calls.add(call)
    await line.answer(MUCH)
    line.stream.calls.remove(call)
    await see()
    while line.take():
        await wait_all_tasks_blocked()
    await see()
    idle, begun, busy = Standing
    assert seen == [idle, begun, begun, busy, busy, idle]
    line.stream.cut()
    await see()
    assert seen[-1] is begun


# -- the end -----------------------------------------------------------------------------------------------------------


async def test_closing_sends_what_is_unread_first_and_waits_for_nobody(line: Line) -> None:
    await line.stream.send_all(MUCH)
    await line.stream.send_eof()
    await line.stream.aclose()
    assert not line.stream.ended.is_set()
    with pytest.raises(trio.ClosedResourceError):
        await line.stream.send_all(b"more")
    got = b""
    while not line.stream.ended.is_set():
        got += line.take()
        await wait_all_tasks_blocked()
    assert got + line.take() == MUCH


async def test_closing_ends_the_wait_of_the_reader(line: Line) -> None:
    async with trio.open_nursery() as nursery:

        async def reads() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await line.next()

        nursery.start_soon(reads)
        await wait_all_tasks_blocked()
        await line.stream.aclose()
    assert line.stream.ended.is_set()


async def test_closing_before_the_end_of_a_request_lets_the_client_read_its_answer(
    line: Line, autojump_clock: trio.abc.Clock
) -> None:
    line.client.send(POST)
    await line.next()
    await line.stream.send_all(b"too large")
    await line.stream.aclose()
    for _ in range(100):
        line.client.send(b"x" * 2000)  # on and on: it is read, so that no reset overtakes the answer
        await wait_all_tasks_blocked()
    await line.stream.ended.wait()
    assert trio.current_time() == pytest.approx(LINGER_S)
    assert line.take() == b"too large"


@pytest.mark.parametrize("way", ["cut", "gives up", "leaves"])
async def test_however_a_connection_ends_the_writer_and_the_reader_are_told(
    line: Line, way: str, autojump_clock: trio.abc.Clock
) -> None:
    async def until_told(step: Callable[[], Awaitable[bytes | None]]) -> None:
        try:
            while await step() != b"":
                continue
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass

    async with trio.open_nursery() as nursery:
        nursery.start_soon(until_told, lambda: line.stream.send_all(MUCH))
        nursery.start_soon(until_told, line.next)
        await wait_all_tasks_blocked()
        if way == "cut":
            line.stream.cut()
        elif way == "leaves":
            line.client.close()
        else:
            line.client.send(GET)  # it asks on, but reads nothing
    if way == "gives up":
        await line.stream.ended.wait()
        assert trio.current_time() == pytest.approx(STALL_TIMEOUT_S)
    assert line.connections.unread == 0
