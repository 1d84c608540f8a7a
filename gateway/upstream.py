"""One HTTP/1.1 exchange with a worker, over pooled connections.

A connection goes back to the pool only when its answer has been read to the end; any other way out of the block
closes it, which is how Ollama learns that nobody waits for the answer. One that died idle is found when it is
taken from the pool, or costs the request a retry.
"""

from collections.abc import AsyncIterable, Callable
from contextlib import aclosing
from typing import Any

import trio

from gateway.asking import TOGETHER_BYTES, framed, head_of_request
from gateway.errors import FirstByteTimeout, Stalled, WorkerLost
from gateway.headers import Headers
from gateway.link import Late, Link, connect
from gateway.patience import Patience
from gateway.readiness import Readiness
from gateway.response import Response, chunk_of

IDLE_PER_WORKER = 64

Body = bytes | AsyncIterable[bytes] | None


class Answer:
    """A worker's answer: its head, and its body as it comes."""

    __slots__ = ("_stall_timeout_s", "ended", "headers", "link", "response", "sent_at", "status")

    def __init__(self, link: Link, response: Response, stall_timeout_s: float, sent_at: float) -> None:
        """`sent_at`: when the worker had all of the request (trio's clock)."""
        self.sent_at = sent_at
        self.status = response.status
        self.headers = response.headers
        self.ended = False
        self.link = link
        self.response = response
        self._stall_timeout_s = stall_timeout_s

    async def read(self) -> bytes:
        """Return what has come of the body, at least one byte; none when it has ended.

        Chunks that came together are returned together: that is one write to the client instead of many. What came
        before a break still belongs to the client; the break is met at the next read.
        Raises WorkerLost and Stalled. Cancellation loses nothing but the connection.
        """
        response = self.response
        due = 0.0
        while not response.parts and not response.ended:
            if response.fault is not None:
                raise WorkerLost(f"while it answered: {response.fault}")
            due = due or trio.current_time() + self._stall_timeout_s
            try:
                response.feed(await self.link.receive(due))
            except Late:
                raise Stalled(self._stall_timeout_s) from None
            except OSError as error:
                response.fault = str(error)
        self.ended = response.ended
        return response.take()

    async def each(self, take: Callable[[bytes, bytes, float], bool]) -> None:
        """Give what comes of the body to `take` until that says True or there is something else.

        `take` gets a part, the same as the chunk that it came in (b"" where it did not come as one), and trio's time.
        Something else is the end, a fault or a stall: `read` then says which. What `take` raises is raised here; it
        must not block.
        """
        response = self.response

        def feed(data: bytes, now: float) -> bool:
            if response.between and (part := chunk_of(data)):
                return take(part, data, now)
            response.feed(data)
            stop = response.ended or response.fault is not None
            if response.parts:
                stop = take(response.take(), b"", now) or stop
            return stop

        if response.parts or response.ended or response.fault is not None:
            return
        try:
            await self.link.each(feed, self._stall_timeout_s)
        except Late:
            raise Stalled(self._stall_timeout_s) from None
        except OSError as error:
            response.fault = str(error)


class Upstream:
    """Connections to every worker and to the primary, by port."""

    def __init__(self, *, first_byte_timeout_s: float, stall_timeout_s: float) -> None:
        self._first_byte_timeout_s = first_byte_timeout_s
        self._stall_timeout_s = stall_timeout_s
        self._idle: dict[int, list[Link]] = {}
        self._patience = Patience()
        self._readiness = Readiness(stays=True)

    async def run(self) -> None:
        """Watch over both timeouts, and over the answers that stream. Cancellation ends that."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._readiness.run)
            await self._patience.run()

    def close(self) -> None:
        """Close the idle connections."""
        for port in list(self._idle):
            self.forget(port)

    def exchange(self, port: int, method: str, target: bytes, headers: Headers, body: Body) -> "_Exchange":
        """Send a request to 127.0.0.1:port; the block (`async with`) has the answer once its head is there.

        Raises ConnectFailed, WorkerLost, FirstByteTimeout, Unsendable; `Answer.read` raises WorkerLost and Stalled.
        Cancellation, and leaving the block before the end of the body, close the connection.
        """
        return _Exchange(self, port, method, target, headers, body)

    async def ask(self, port: int, method: str, target: bytes, headers: Headers, body: Body) -> Answer:
        """Send a request; return its answer once the head is there. It must be given to `end`.

        A pooled connection that breaks before the answer may have been closed by the worker just then, which
        says nothing about the worker: the request is sent once more on a new one. A body that comes in parts
        cannot be sent twice, so it gets a new connection at once.
        """
        head = head_of_request(method, target, headers)
        now = trio.current_time()
        pooled = self._take(port, now) if body is None or isinstance(body, bytes) else None
        if pooled:
            try:
                return await self._ask_on(pooled, now, method, head, headers, body)
            except WorkerLost:
                pass  # tried once more, below
        link = await connect(port, self._patience, self._readiness)
        return await self._ask_on(link, trio.current_time(), method, head, headers, body)

    def end(self, answer: Answer) -> None:
        """Be done with an answer, whole or not."""
        link, response = answer.link, answer.response
        if answer.ended and response.keeps and not response.extra:
            self._give_back(link)
        else:
            link.close()
        response.release()

    async def _ask_on(self, link: Link, now: float, method: str, head: bytes, headers: Headers, body: Body) -> Answer:
        response = Response(method)
        self._patience.join(link)
        try:
            due = now + self._first_byte_timeout_s
            if body is None or isinstance(body, bytes):
                await _send_whole(link, head, body or b"", due)
            else:
                due = await self._send_parts(link, head, headers, body)
            sent_at = trio.current_time()
            while not response.started:
                response.feed(await link.receive(due))
                if response.fault is not None and not response.started:
                    raise WorkerLost(f"before it answered: {response.fault}")
            return Answer(link, response, self._stall_timeout_s, sent_at)
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

    def _take(self, port: int, now: float) -> Link | None:
        idle = self._idle.get(port, [])
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


class _Exchange:
    """One exchange, as a block. Not written with contextlib: this is on every request's way (docs/performance.md)."""

    __slots__ = ("_answer", "_asked", "_upstream")

    def __init__(self, upstream: Upstream, *asked: Any) -> None:
        self._upstream = upstream
        self._asked = asked

    async def __aenter__(self) -> Answer:
        self._answer = await self._upstream.ask(*self._asked)
        return self._answer

    async def __aexit__(self, *_: object) -> None:
        self._upstream.end(self._answer)


async def _send_whole(link: Link, head: bytes, body: bytes, due: float) -> None:
    try:
        if len(body) <= TOGETHER_BYTES:
            await link.send(head + body, due)
        else:
            await link.send(head, due)
            await link.send(body, due)
    except (BrokenPipeError, ConnectionResetError):
        return  # as above: it may have said why
