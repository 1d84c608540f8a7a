"""One try of a request at one worker, told to all who want to know: its phases, the worker's log, the metrics."""

import trio

from gateway.metrics import Metrics
from gateway.phases import Try, WorkerNotes, try_outcome_of
from gateway.request import Request


class Noted:
    """A try, as a block: from the moment that a worker is given the request to its end, however that comes.

    Not written with contextlib: it is on every request's way (docs/performance.md).
    """

    __slots__ = ("_metrics", "_notes", "_request", "_tried")

    def __init__(
        self, request: Request, worker_id: str, now: float, notes: WorkerNotes, metrics: Metrics | None
    ) -> None:
        """`now` is trio's clock; `metrics`: where the try is counted, None for the primary's, which are none."""
        self._request = request
        self._notes = notes
        self._metrics = metrics
        self._tried = Try(worker_id, now)

    def __enter__(self) -> Try:
        phases = self._request.phases
        phases.tries.append(self._tried)
        self._notes.begins(self._tried.worker_id, self._request.id, phases.model)
        return self._tried

    def __exit__(self, _: object, fault: BaseException | None, __: object) -> None:
        tried = self._tried
        tried.ended_at = trio.current_time()
        tried.outcome = try_outcome_of(tried, fault, self._request.phases.broken)
        after_s = tried.ended_at - tried.began_at
        self._notes.ends(tried.worker_id, self._request.id, tried.status, tried.outcome, after_s)
        if self._metrics is not None:
            self._metrics.tried(tried.worker_id, tried.outcome)
