"""Blobs of many gigabytes pass through: nothing of them is held, and they arrive while they are still being sent."""

import re

import psutil
import pytest
import trio

from tests.fakes.door import TOO_LONG_S, House
from tests.fakes.worker_server import Conversation

SIZE = 64 * 1024 * 1024
PART = bytes(range(256)) * 1024
# All of it held would be SIZE; buffers on the way, and what the allocator keeps, are a tenth of that.
HELD_BYTES = 32 * 1024 * 1024


class Memory:
    """The most memory that this process had since it was looked at first."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._before = self._most = self._process.memory_info().rss

    def look(self) -> None:
        self._most = max(self._most, self._process.memory_info().rss)

    @property
    def grown_bytes(self) -> int:
        return self._most - self._before


@pytest.mark.parametrize("framing", ["length", "chunks"])
async def test_an_upload_arrives_as_it_is_sent_and_is_not_held(patient_house: House, framing: str) -> None:
    memory = Memory()
    arrived = 0
    some_arrived = trio.Event()

    async def stores(talk: Conversation) -> None:
        nonlocal arrived
        arrived = len(talk.request.body)
        while arrived < SIZE and (data := await talk.stream.receive_some(1 << 20)):
            arrived += len(data)
            some_arrived.set()
            memory.look()
        await talk.head("content-length: 0", "connection: close", status=201)
        await talk.die()

    await patient_house.hall.primary(stores, refuses_early=True)
    client = await patient_house.client()
    how = "Transfer-Encoding: chunked" if framing == "chunks" else f"Content-Length: {SIZE}"
    await client.send(f"POST /api/blobs/sha256:1 HTTP/1.1\r\nHost: a\r\n{how}\r\n\r\n".encode())
    part = b"%x\r\n%b\r\n" % (len(PART), PART) if framing == "chunks" else PART
    await client.send(part)
    with trio.fail_after(TOO_LONG_S):
        await some_arrived.wait()  # long before the rest is sent
    with trio.fail_after(6 * TOO_LONG_S):
        for _ in range(SIZE // len(PART) - 1):
            await client.send(part)
        if framing == "chunks":
            await client.send(b"0\r\n\r\n")
    assert b" 201 " in await client.until(b"\r\n\r\n")
    assert arrived >= SIZE
    assert memory.grown_bytes < HELD_BYTES


async def test_a_download_goes_no_further_ahead_of_its_reader_than_buffers_reach(patient_house: House) -> None:
    memory = Memory()
    sent = 0

    async def sends(talk: Conversation) -> None:
        nonlocal sent
        await talk.head(f"content-length: {SIZE}", "content-type: application/octet-stream")
        for _ in range(SIZE // len(PART)):
            await talk.send(PART)
            sent += len(PART)
            memory.look()

    await patient_house.hall.primary(sends)
    client = await patient_house.client()
    await client.send(b"GET /api/blobs/sha256:1 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    head = await client.until(b"\r\n\r\n")
    assert re.search(rb"content-length: %d\r\n" % SIZE, head)
    got = len(client.got)
    furthest_ahead = 0
    with trio.fail_after(6 * TOO_LONG_S):
        while data := await client.stream.receive_some(len(PART)):
            got += len(data)
            furthest_ahead = max(furthest_ahead, sent - got)
            await trio.lowlevel.checkpoint()
    assert got == SIZE
    assert furthest_ahead < HELD_BYTES
    assert memory.grown_bytes < HELD_BYTES
