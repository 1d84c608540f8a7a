"""A bounded load: a few clients that ask one thing after the other, and check each answer to its very end."""

import itertools
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx

from scripts.faults.row import Fate, Outcome

ANSWER_TIMEOUT_S = 90.0
# Between two requests of a client; also what a client waits before it asks a gateway again that was not there.
PAUSE_S = 0.03
REFUSED_PAUSE_S = 0.2


@dataclass(slots=True)
class Asked:
    """One request under way, as its client sees it."""

    began: float = field(default_factory=time.monotonic)
    worker: str | None = None
    attempts: int = 1
    bytes_seen: int = 0

    def end(self, fate: Fate, why: str | None = None) -> Outcome:
        """Return what became of it."""
        return Outcome(self.began, time.monotonic(), fate, self.worker, self.attempts, why)


class Load:
    """Clients in threads of their own. Streamed and unary requests take turns."""

    def __init__(
        self, url: str, model: str, *, clients: int, tokens: int, resend: bool = False, unary: bool = True
    ) -> None:
        """`tokens`: how long an answer is. `resend`: a client that finds no gateway asks again, as a good one does.

        `unary`: every second request is no stream.
        """
        self.outcomes: list[Outcome] = []
        self.under_way: dict[int, Asked] = {}
        self._url, self._model, self._tokens = url, model, tokens
        self._resend, self._unary = resend, unary
        self._numbers = itertools.count(1)
        self._going, self._ended = threading.Event(), threading.Event()
        self._threads = [threading.Thread(target=self._client, args=(number,)) for number in range(clients)]

    @contextmanager
    def running(self) -> Iterator["Load"]:
        """Ask for the block's time; at its end every request under way is waited for (it has a time limit)."""
        self._going.set()
        for thread in self._threads:
            thread.start()
        try:
            yield self
        finally:
            self.end()

    def end(self) -> None:
        """Ask no more, and return when the last answer has ended."""
        self._ended.set()
        self._going.set()
        for thread in filter(threading.Thread.is_alive, self._threads):
            thread.join()

    def pause(self) -> None:
        """Ask no more for now; what is under way goes on."""
        self._going.clear()

    def go_on(self) -> None:
        """Ask again."""
        self._going.set()

    def streams_on(self, worker: str) -> bool:
        """Whether an answer of this worker is under way and has had a byte."""
        return any(asked.worker == worker and asked.bytes_seen for asked in list(self.under_way.values()))

    def _client(self, number: int) -> None:
        with httpx.Client(base_url=self._url, timeout=ANSWER_TIMEOUT_S, trust_env=False) as client:
            while not self._ended.is_set():
                self._going.wait(1.0)
                if self._going.is_set() and not self._ended.is_set():
                    outcome = self._ask(client, number)
                    self.outcomes.append(outcome)
                    self._ended.wait(PAUSE_S if outcome.fate is not Fate.RESENT else REFUSED_PAUSE_S)

    def _ask(self, client: httpx.Client, number: int) -> Outcome:
        # Prompts differ from their first word on: a shared beginning would be a reason to share a worker.
        turn = next(self._numbers)
        stream = turn % 2 == 0 or not self._unary
        body = {
            "model": self._model, "prompt": f"{turn}. Count from one to ten.", "stream": stream,
            "options": {"num_predict": self._tokens, "temperature": 0},
        }  # fmt: skip
        asked = self.under_way[number] = Asked()
        try:
            with client.stream("POST", "/api/generate", json=body) as answer:
                asked.worker = answer.headers.get("x-chimera-worker")
                asked.attempts = int(answer.headers.get("x-chimera-attempts", "1"))
                return read_answer(answer, asked)
        except httpx.TransportError as error:
            why = f"{type(error).__name__}: {error}"
            if asked.worker is None and asked.bytes_seen == 0 and self._resend:
                return asked.end(Fate.RESENT, why)
            return asked.end(Fate.CUT if asked.worker else Fate.LOST, why)
        finally:
            del self.under_way[number]


def read_answer(answer: httpx.Response, asked: Asked) -> Outcome:
    """Read an answer to its end. One that ends without `"done":true` was cut, whatever its status."""
    if answer.status_code != 200:
        return asked.end(Fate.LOST, f"{answer.status_code}: {answer.read().decode(errors='replace').strip()[:200]}")
    body = b""
    for part in answer.iter_bytes():
        body += part
        asked.bytes_seen = len(body)
    # not str.splitlines: an answer's text may hold characters that it takes for ends of lines
    last = parsed(body.strip().rpartition(b"\n")[2])
    if isinstance(last, dict) and last.get("done") is True:
        return asked.end(Fate.GOOD)
    return asked.end(Fate.CUT, str(last.get("error", "no end")) if isinstance(last, dict) else "no end")


def parsed(line: bytes) -> Any:
    """A line's JSON value, None for a line that is none: a cut one, for instance."""
    try:
        return json.loads(line)
    except ValueError:
        return None


def wait_until(what: Callable[[], Any], timeout_s: float, pause_s: float = 0.05) -> Any:
    """Return what a question finds as soon as it is true; None when it is not within the time."""
    end, pause = time.monotonic() + timeout_s, threading.Event()
    while not (found := what()):
        if time.monotonic() > end:
            return None
        pause.wait(pause_s)
    return found
