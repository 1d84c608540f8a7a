"""A try at a worker, told to those who want to know."""

import pytest
import trio
from trio.testing import MockClock

from gateway.errors import Dialect, WorkerLost
from gateway.metrics import Metrics
from gateway.noted import Noted
from gateway.request import Request


class Notes:
    """What a worker's log is told."""

    def __init__(self) -> None:
        self.told: list[tuple[object, ...]] = []

    def begins(self, worker_id: str, request_id: str, model: str | None) -> None:
        self.told.append((worker_id, request_id, model))

    def ends(self, worker_id: str, request_id: str, status: int, outcome: str, after_s: float) -> None:
        self.told.append((worker_id, request_id, status, outcome, after_s))


def a_request() -> Request:
    request = Request("POST", "/api/chat", b"/api/chat", [], Dialect.OLLAMA, "req-1")
    request.phases.model = "m"
    return request


async def test_a_try_is_told_of_from_its_beginning_to_its_end(autojump_clock: MockClock) -> None:
    request, notes, metrics = a_request(), Notes(), Metrics()
    with Noted(request, "w1", trio.current_time(), notes, metrics) as tried:
        assert notes.told == [("w1", "req-1", "m")]
        tried.status = 200
        await trio.sleep(2)
    assert notes.told[1:] == [("w1", "req-1", 200, "ok", 2.0)]
    assert request.phases.tries == [tried]
    assert b'chimera_worker_requests_total{outcome="ok",worker="w1"} 1.0' in metrics.render(0, [row("w1")], [])


async def test_a_try_that_fails_says_how_and_the_fault_goes_on(autojump_clock: MockClock) -> None:
    request, notes = a_request(), Notes()
    with pytest.raises(WorkerLost), Noted(request, "primary", trio.current_time(), notes, None):
        raise WorkerLost("gone")
    assert notes.told[1:] == [("primary", "req-1", 0, "lost", 0.0)]


def row(worker_id: str) -> dict[str, object]:
    return {"id": worker_id, "placement": "cpu", "state": "IDLE", "inflight": 0, "restarts": 0}
