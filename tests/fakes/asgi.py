"""A client of an ASGI application: sends a request part by part, records the answer, and may leave."""

from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import trio

Message = dict[str, Any]
App = Callable[[Message, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]]


class AsgiClient:
    """One request. `run` is the application's task; `send_body` and `leave` may be called beside it."""

    def __init__(
        self, app: App, method: str, target: str, headers: Iterable[tuple[str, str]] = (), *, path: str | None = None
    ) -> None:
        raw_path, _, query = target.partition("?")
        self.scope: Message = {
            "type": "http",
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": raw_path if path is None else path,
            "raw_path": raw_path.encode(),
            "query_string": query.encode(),
            "headers": [(name.lower().encode(), value.encode()) for name, value in headers],
            "client": ("127.0.0.1", 40000),
            "server": ("127.0.0.1", 8000),
        }
        self._app = app
        self._to_app, self._from_client = trio.open_memory_channel[Message](1000)
        self.started = trio.Event()
        self.first_write = trio.Event()
        self.complete = False
        self.status = 0
        self.headers: dict[str, str] = {}
        self.body = b""
        self.read_parts = 0

    def send_body(self, part: bytes, *, more: bool = False) -> None:
        """Send a part of the request body."""
        self._to_app.send_nowait({"type": "http.request", "body": part, "more_body": more})

    def leave(self) -> None:
        """Close the connection."""
        self._to_app.send_nowait({"type": "http.disconnect"})

    async def run(self) -> None:
        """Have the application answer."""
        await self._app(self.scope, self._receive, self._send)

    async def ask(self, body: bytes = b"") -> "AsgiClient":
        """Send a whole body and have it answered."""
        self.send_body(body)
        await self.run()
        return self

    async def _receive(self) -> Message:
        message = await self._from_client.receive()
        self.read_parts += 1
        return message

    async def _send(self, message: Message) -> None:
        await trio.lowlevel.checkpoint()
        if message["type"] == "http.response.start":
            assert not self.started.is_set()
            self.status = message["status"]
            self.headers = {name.decode(): value.decode() for name, value in message["headers"]}
            self.started.set()
            return
        assert self.started.is_set()
        assert not self.complete
        self.body += message["body"]
        self.complete = not message["more_body"]
        if message["body"]:
            self.first_write.set()
