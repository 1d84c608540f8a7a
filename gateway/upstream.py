"""One HTTP/1.1 exchange with a worker, over pooled connections.

A connection goes back to the pool only when its answer has been read to the end; any other way out of the block
closes it, which is how Ollama learns that nobody waits for the answer. One that died idle is found when it is
taken from the pool, or costs the request a retry.
"""

from collections.abc import AsyncIterable, AsyncIterator
from contextlib import aclosing, asynccontextmanager

import trio

from gateway.asking import TOGETHER_BYTES, framed, head_of_request
from gateway.errors import FirstByteTimeout, Stalled, WorkerLost
from gateway.headers import Headers
from gateway.link import Late, Link, Patience, connect
from gateway.response import Response

IDLE_PER_WORKER = 64

Body = bytes | AsyncIterable[bytes] | None


class Answer:
    """A worker's answer: its head, and its body as it comes."""

    __slots__ = ("_link", "_response", "_stall_timeout_s", "ended", "headers", "sent_at", "status")

    def __init__(self, link: Link, response: Response, stall_timeout_s: float, sent_at: float) -> None:
        """`sent_at`: when the worker had all of the request (trio's clock)."""
        self.sent_at = sent_at
        self.status = response.status
        self.headers = response.headers
        self.ended = False
        self._link = link
        self._response = response
        self._stall_timeout_s = stall_timeout_s

    async def read(self) -> bytes:
        """Return what has come of the body, at least one byte; none when it has ended.

        Chunks that came together are returned together: that is one write to the client instead of many. What came
        before a break still belongs to the client; the break is met at the next read.
        Raises WorkerLost and Stalled. Cancellation loses nothing but the connection.
        """
        response = self._response
        parts = response.parts
        due = 0.0
        while not parts and not response.ended:
            if response.fault is not None:
                raise WorkerLost(f"while it answered: {response.fault}")
            due = due or trio.current_time() + self._stall_timeout_s
            try:
                response.feed(await self._link.receive(due))
            except Late:
                raise Stalled(self._stall_timeout_s) from None
            except OSError as error:
                response.fault = str(error)
        self.ended = response.ended
        body = parts[0] if len(parts) == 1 else b"".join(parts)
        parts.clear()
        return body


class Upstream:
    """Connections to every worker and to the primary, by port."""

    def __init__(self, *, first_byte_timeout_s: float, stall_timeout_s: float) -> None:
        self._first_byte_timeout_s = first_byte_timeout_s
        self._stall_timeout_s = stall_timeout_s
        self._idle: dict[int, list[Link]] = {}
        self._patience = Patience()

    async def run(self) -> None:
        """Watch over both timeouts: without it nobody is ever late. Cancellation ends that."""
        await self._patience.run()

    def close(self) -> None:
        """Close the idle connections."""
        for port in list(self._idle):
            self.forget(port)

    @asynccontextmanager
    async def exchange(
        self, port: int, method: str, target: bytes, headers: Headers, body: Body
    ) -> AsyncIterator[Answer]:
        """Send a request to 127.0.0.1:port; the block has the answer once its head is there.

        Raises ConnectFailed, WorkerLost, FirstByteTimeout, Unsendable; `Answer.read` raises WorkerLost and Stalled.
        Cancellation, and leaving the block before the end of the body, close the connection.
        """
        head = head_of_request(method, target, headers)
        link, response, sent_at = await self._ask(port, head, headers, body, method)
        answer = Answer(link, response, self._stall_timeout_s, sent_at)
        try:
            yield answer
        finally:
            if answer.ended and response.keeps and not response.extra:
                self._give_back(link)
            else:
                link.close()
            response.release()

    async def _ask(
        self, port: int, head: bytes, headers: Headers, body: Body, method: str
    ) -> tuple[Link, Response, float]:
        """Send the request; return once the answer's head is there, with when all of the request had been sent.

        A pooled connection that breaks before the answer may have been closed by the worker just then, which
        says nothing about the worker: the request is sent once more on a new one. A body that comes in parts
        cannot be sent twice, so it gets a new connection at once.
        """
        pooled = self._take(port) if body is None or isinstance(body, bytes) else None
        if pooled:
            try:
                return await self._ask_on(pooled, head, headers, body, method)
            except WorkerLost:
                pass  # tried once more, below
        return await self._ask_on(await connect(port, self._patience), head, headers, body, method)

    async def _ask_on(
        self, link: Link, head: bytes, headers: Headers, body: Body, method: str
    ) -> tuple[Link, Response, float]:
        response = Response(method)
        self._patience.join(link)
        try:
            due = trio.current_time() + self._first_byte_timeout_s
            if body is None or isinstance(body, bytes):
                await _send_whole(link, head, body or b"", due)
            else:
                due = await self._send_parts(link, head, headers, body)
            sent_at = trio.current_time()
            while not response.started:
                response.feed(await link.receive(due))
                if response.fault is not None and not response.started:
                    raise WorkerLost(f"before it answered: {response.fault}")
            return link, response, sent_at
        except Late:
            link.close()
            raise FirstByteTimeout(self._first_byte_timeout_s) from None
        except OSError as error:
            link.close()
            raise WorkerLost(f"before it answered: {error}") from error
        except BaseException:
            link.close()
            raise

    async def _send_parts(self, link: Link, head: bytes, headers: Headers, body: AsyncIterable[bytes]) -> float:
        """Send a body as it comes; return until when the answer may take.

        While a body of many gigabytes goes up, its own progress is what counts.
        """
        async with aclosing(framed(body, headers)) as parts:
            try:
                await link.send(head, trio.current_time() + self._first_byte_timeout_s)
                async for part in parts:
                    await link.send(part, trio.current_time() + self._first_byte_timeout_s)
            except (BrokenPipeError, ConnectionResetError):
                pass  # a server may refuse a body before its end, and say why: the answer is what counts
        return trio.current_time() + self._first_byte_timeout_s

    def _take(self, port: int) -> Link | None:
        idle = self._idle.get(port, [])
        now = trio.current_time()
        while idle:
            link = idle.pop()  # the one used last is the one most likely alive
            if link.reusable(now):
                return link
            link.close()
        return None

    def _give_back(self, link: Link) -> None:
        self._patience.leave(link)
        idle = self._idle.setdefault(link.port, [])
        if len(idle) < IDLE_PER_WORKER:
            link.idle_since = trio.current_time()
            idle.append(link)
        else:
            link.close()

    def forget(self, port: int) -> None:
        """Close the idle connections to a worker that is gone."""
        for link in self._idle.pop(port, []):
            link.close()


async def _send_whole(link: Link, head: bytes, body: bytes, due: float) -> None:
    try:
        if len(body) <= TOGETHER_BYTES:
            await link.send(head + body, due)
        else:
            await link.send(head, due)
            await link.send(body, due)
    except (BrokenPipeError, ConnectionResetError):
        return  # as above: it may have said why
