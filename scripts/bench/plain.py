"""A plain proxy, as people write one in an afternoon: Quart-Trio on Hypercorn, httpx to the workers.

    python -m scripts.bench.plain PORT SLOTS WORKER_PORT…

The reasonable way: one client with kept connections, bodies streamed both ways as they come, the worker with the
fewest requests under way, no more than its slots (the rest wait), the upstream closed when the client leaves.
"""

import sys
from collections.abc import AsyncIterator, Sequence

import httpx
import hypercorn.trio
import trio
from hypercorn.config import Config
from quart import Response, request
from quart_trio import QuartTrio

# Not passed on: they are about one connection.
HOP_BY_HOP = frozenset({"connection", "keep-alive", "transfer-encoding", "upgrade", "te", "trailer", "host"})


def least_busy(busy: dict[int, int]) -> int:
    """Return the worker with the fewest requests under way."""
    return min(busy, key=lambda port: busy[port])


def make_app(workers: Sequence[int], slots: int) -> QuartTrio:
    """Return the application."""
    app = QuartTrio("plain")
    busy = dict.fromkeys(workers, 0)
    free = trio.Semaphore(slots * len(workers))
    client = httpx.AsyncClient(timeout=600, limits=httpx.Limits(max_connections=None), trust_env=False)

    @app.route("/<path:path>", methods=["GET", "POST", "DELETE"])
    async def forward(path: str) -> Response:
        body = await request.get_data()
        headers = {name: text for name, text in request.headers.items() if name.lower() not in HOP_BY_HOP}
        await free.acquire()
        port = least_busy(busy)
        busy[port] += 1
        try:
            url = f"http://127.0.0.1:{port}/{path}"
            ask = client.build_request(request.method, url, content=body, headers=headers)
            answer = await client.send(ask, stream=True)
        except BaseException:
            busy[port] -= 1
            free.release()
            raise

        async def relay() -> AsyncIterator[bytes]:
            try:
                async for data in answer.aiter_raw():
                    yield data
            finally:
                busy[port] -= 1
                free.release()
                with trio.CancelScope(shield=True):
                    await answer.aclose()

        kept = {name: text for name, text in answer.headers.items() if name.lower() not in HOP_BY_HOP}
        response = Response(relay(), answer.status_code, kept)
        response.timeout = None
        return response

    return app


def main(argv: Sequence[str]) -> None:
    """Serve until a signal ends the process."""
    port, slots, *workers = map(int, argv)
    config = Config()
    config.bind = [f"127.0.0.1:{port}"]
    config.backlog = 4096
    trio.run(hypercorn.trio.serve, make_app(workers, slots), config)


if __name__ == "__main__":
    main(sys.argv[1:])
