"""The connections of a worker of known speed, on one epoll loop. Standard library only, as worker.py."""

import selectors
import socket
from abc import ABC, abstractmethod
from collections.abc import Callable

from scripts.bench.jobs import Client, Job
from scripts.bench.worker_http import Request, take_request

# What may wait in memory for a client that does not read, as the pipe of a real one; then the answer stands still.
MOST_UNSENT_BYTES = 64 * 1024
_READ_BYTES = 64 * 1024


class Connections(ABC):
    """A listener and the clients that have come; who answers them is a subclass's matter."""

    def __init__(self, host: str, port: int) -> None:
        """Listen. Raises OSError."""
        self.selector = selectors.DefaultSelector()
        self.listener = socket.create_server((host, port), backlog=4096)
        self.listener.setblocking(False)
        self.selector.register(self.listener, selectors.EVENT_READ, self._accept)

    @abstractmethod
    def answer(self, client: Client, request: Request) -> None:
        """Answer a request, or begin to."""

    @abstractmethod
    def ended(self, client: Client) -> None:
        """Take note that a client's answer has ended, or that the client has gone."""

    @abstractmethod
    def put(self, job: Job) -> None:
        """Have the next chunk of a job go out at its time."""

    def _accept(self, _: int) -> None:
        for _ in range(64):
            try:
                sock, _address = self.listener.accept()
            except BlockingIOError:
                return
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            client = Client(sock)
            self.selector.register(sock, selectors.EVENT_READ, self._ready(client))

    def _ready(self, client: Client) -> Callable[[int], None]:
        def ready(mask: int) -> None:
            if mask & selectors.EVENT_WRITE:
                self._flush(client)
            if mask & selectors.EVENT_READ and not client.gone:
                self._read(client)

        return ready

    def _read(self, client: Client) -> None:
        try:
            data = client.sock.recv(_READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._close(client)
            return
        client.came += data
        self.answer_next(client)

    def answer_next(self, client: Client) -> None:
        """Answer what has come whole; a request behind one that is being answered waits."""
        while client.job is None and not client.gone:
            try:
                request = take_request(client.came)
            except ValueError:
                self._close(client)
                return
            if request is None:
                return
            self.answer(client, request)

    def _close(self, client: Client) -> None:
        client.gone = True
        self.selector.unregister(client.sock)
        client.sock.close()
        if client.job is not None:
            self.ended(client)

    def send(self, client: Client, data: bytes) -> None:
        """Send it, or keep what cannot be sent yet."""
        if client.gone:
            return
        if not client.unsent:
            try:
                sent = client.sock.send(data)
            except BlockingIOError:
                sent = 0
            except OSError:
                self._close(client)
                return
            if sent == len(data):
                return
            data = data[sent:]
            self.selector.modify(client.sock, selectors.EVENT_READ | selectors.EVENT_WRITE, self._ready(client))
        client.unsent += data

    def _flush(self, client: Client) -> None:
        try:
            sent = client.sock.send(client.unsent)
        except BlockingIOError:
            return
        except OSError:
            self._close(client)
            return
        del client.unsent[:sent]
        if not client.unsent:
            self.selector.modify(client.sock, selectors.EVENT_READ, self._ready(client))
        if client.held is not None and len(client.unsent) < MOST_UNSENT_BYTES:
            job, client.held = client.held, None
            self.put(job)
