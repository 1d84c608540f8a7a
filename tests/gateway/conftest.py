"""Gateways that listen, for the tests that speak to one over a socket."""

from collections.abc import AsyncIterator

import pytest
import trio

from tests.fakes.door import EXPRESS, HYPERCORN, Client, Connect, House, front_of, serve
from tests.fakes.hall import Hall


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    """Makes clients, and closes them at the end."""
    streams: list[trio.SocketStream] = []

    async def connected(port: int, host: str = "127.0.0.1") -> Client:
        streams.append(await trio.open_tcp_stream(host, port))
        return Client(streams[-1])

    yield connected
    for stream in streams:
        await trio.aclose_forcefully(stream)


@pytest.fixture(params=[EXPRESS, HYPERCORN])
def lane(request: pytest.FixtureRequest) -> str:
    """Each test that speaks to a gateway by a socket goes through both lanes."""
    return str(request.param)


@pytest.fixture
async def house(nursery: trio.Nursery, connect: Connect, lane: str) -> AsyncIterator[House]:
    hall = Hall(nursery)
    served = await serve(nursery, front_of(hall), stall_timeout_s=0.3, lane=lane)
    yield House(hall, served, connect)
    served.life.cancel()
    await served.ended.wait()
    hall.upstream.close()
