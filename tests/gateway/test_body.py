"""A request's body: who sends too slowly, what may be held, and what is still read of one that is refused."""

import pytest
import trio

from gateway import body as module
from gateway.body import Body, Room
from gateway.errors import BodyTooLarge, BodyTooSlow, QueueFull


class Sender(Body):
    """A client's body: one part of `part_bytes` every `pause_s` seconds, `parts` of them."""

    def __init__(self, part_bytes: int, pause_s: float, parts: int, ahead: tuple[bytes, bool] | None = None) -> None:
        super().__init__(ahead)
        self._part = b"x" * part_bytes
        self._pause_s = pause_s
        self._left = parts

    async def receive(self) -> tuple[bytes, bool]:
        await trio.sleep(self._pause_s)
        self._left -= 1
        return self._part, self._left > 0

    async def while_there(self, reply: object, doing: object) -> None:
        raise AssertionError("nobody asks for it here")


@pytest.mark.parametrize(
    ("part_bytes", "pause_s", "parts"), [(36, 1.0, 1000), (1, 0.0, 1000), (1024, 29.9, 100), (1, 1.0, 29), (0, 29.0, 1)]
)
async def test_a_body_over_a_bad_line_is_taken_however_long_it_takes(
    part_bytes: int, pause_s: float, parts: int, autojump_clock: trio.abc.Clock
) -> None:
    body = Sender(part_bytes, pause_s, parts)
    assert len(await body.read(None, 1_000_000, Room(1_000_000))) == part_bytes * parts
    assert trio.current_time() >= pause_s * parts


@pytest.mark.parametrize(
    ("part_bytes", "pause_s", "gives_up_s"), [(1, 1.0, 30), (33, 1.0, 30), (1024, 31.0, 30), (500, 20.0, 30)]
)
async def test_a_sender_of_one_byte_a_second_is_refused(
    part_bytes: int, pause_s: float, gives_up_s: float, autojump_clock: trio.abc.Clock
) -> None:
    body = Sender(part_bytes, pause_s, 1_000_000)
    with pytest.raises(BodyTooSlow):
        await body.read(None, 1_000_000, Room(1_000_000))
    assert trio.current_time() == pytest.approx(gives_up_s)
    assert body.too_slow


async def test_the_time_in_which_nobody_asks_a_client_for_more_is_not_its_own(autojump_clock: trio.abc.Clock) -> None:
    body = Sender(1, 1.0, 20)
    parts = 0
    async for _ in body.stream():
        parts += 1
        await trio.sleep(1000)  # the primary's disk is slow
    assert parts == 20


async def test_what_came_with_the_head_is_the_first_part(autojump_clock: trio.abc.Clock) -> None:
    assert await Sender(1, 1.0, 2, ahead=(b"abc", True)).read(None, 100, Room(100)) == b"abcxx"
    assert trio.current_time() == pytest.approx(2.0)


async def test_a_body_that_is_there_is_not_waited_for() -> None:
    body = Sender(0, 1.0, 0, ahead=(b"abc", False))
    assert await body.read(b"3", 100, Room(100)) == b"abc"
    assert body.complete
    assert body.received_bytes == 3
    assert body.completed_at is not None


@pytest.mark.parametrize(("declared", "parts", "read"), [(b"101", 1000, 0), (None, 1000, 101)])
async def test_one_that_is_too_large_is_refused_as_soon_as_that_is_known(
    declared: bytes | None, parts: int, read: int
) -> None:
    body, room = Sender(1, 0.0, parts), Room(1000)
    with pytest.raises(BodyTooLarge):
        await body.read(declared, 100, room)
    assert (body.received_bytes, room.bytes) == (read, 0)


async def test_where_others_take_all_the_room_one_is_refused_and_takes_none() -> None:
    room = Room(1000, bytes=990)
    with pytest.raises(QueueFull):
        await Sender(1, 0.0, 100).read(None, 100, room)
    assert room.bytes == 990


async def test_so_much_is_read_of_a_refused_body_and_no_more(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.abc.Clock
) -> None:
    monkeypatch.setattr(module, "DISCARD_BYTES", 50)
    body = Sender(10, 0.0, 1000)
    await body.discard()
    assert (body.received_bytes, body.complete) == (50, False)
    slow = Sender(10, 3.0, 1000)
    await slow.discard()
    assert trio.current_time() == pytest.approx(module.DISCARD_TIMEOUT_S)
    assert not slow.complete
