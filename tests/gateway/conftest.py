"""Gateways that listen, for the tests that speak to one over a socket."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from tests.fakes.certificates import trusting
from tests.fakes.door import LANES, Client, Connect, Dial, House, Served, front_of, serve
from tests.fakes.hall import NOTHING_LEFT, Hall


@pytest.fixture
async def hall(nursery: trio.Nursery) -> AsyncIterator[Hall]:
    """One in which no lease and no ticket may be left at the end."""
    made = Hall(nursery)
    yield made
    made.upstream.close()
    assert repr(made.admission) == NOTHING_LEFT


@pytest.fixture
async def dial() -> AsyncIterator[Dial]:
    """Connects, and says nothing; closes all that at the end."""
    streams: list[trio.SocketStream] = []

    async def dialled(served: Served, host: str = "127.0.0.1") -> trio.SocketStream:
        streams.append(await trio.open_tcp_stream(host, served.port))
        return streams[-1]

    yield dialled
    for stream in streams:
        await trio.aclose_forcefully(stream)


@pytest.fixture
def connect(dial: Dial) -> Connect:
    """Makes clients, which speak TLS where the gateway does."""

    async def connected(served: Served, host: str = "127.0.0.1") -> Client:
        stream = await dial(served, host)
        if not served.tls:
            return Client(stream)
        return Client(trio.SSLStream(stream, trusting(), server_hostname="localhost", https_compatible=True))

    return connected


@pytest.fixture(params=LANES)
def lane(request: pytest.FixtureRequest) -> str:
    """Each test that speaks to a gateway by a socket goes through both lanes, without TLS and with it."""
    return str(request.param)


@pytest.fixture
async def house(nursery: trio.Nursery, connect: Connect, lane: str) -> AsyncIterator[House]:
    async with house_of(nursery, connect, lane, stall_timeout_s=0.3) as made:
        yield made


@pytest.fixture
async def patient_house(nursery: trio.Nursery, connect: Connect, lane: str) -> AsyncIterator[House]:
    """One that waits as long as it takes for a client that does not read."""
    async with house_of(nursery, connect, lane, stall_timeout_s=1e6) as made:
        yield made


@asynccontextmanager
async def house_of(
    nursery: trio.Nursery, connect: Connect, lane: str, *, stall_timeout_s: float
) -> AsyncGenerator[House, None]:
    hall = Hall(nursery)
    app = front_of(hall)
    served = await serve(nursery, app, stall_timeout_s=stall_timeout_s, lane=lane)
    yield House(hall, served, connect, app.front)
    served.life.cancel()
    await served.ended.wait()
    hall.upstream.close()
