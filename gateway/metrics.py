"""Prometheus metrics of the gateway. Counting is a few attribute updates; everything else happens at /metrics."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, Gauge, ProcessCollector, generate_latest

from gateway.fleet_metrics import FleetCollector
from gateway.labels import ModelLabels, door_reason, status_label
from gateway.tally import Moment, Spread, Tally

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_SPEEDS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


class Metrics:
    """Every metric, on a registry of its own: two gateways in one process (tests) do not meet.

    No label is of a client's own choosing: see `gateway.labels`.
    """

    def __init__(
        self, models: ModelLabels | None = None, certificate_ends_at_s: Callable[[], float | None] = lambda: None
    ) -> None:
        """`models`: which names of models are labels; without it all are "other".

        `certificate_ends_at_s` says when the certificate in use ends, in seconds since 1970; None: there is none.
        """
        self.registry = CollectorRegistry()
        self._models = models or ModelLabels()
        self._fleet = FleetCollector()

        self._requests = self._tally(
            "chimera_requests_total", "Requests that have ended; status 0: without an answer",
            "route", "status", "outcome",
        )  # fmt: skip
        self._by_model = self._tally(
            "chimera_model_requests_total", "Requests that have ended and named a model", "model", "outcome"
        )
        self._by_worker = self._tally(
            "chimera_worker_requests_total", "Tries that have ended at a worker", "worker", "outcome"
        )
        self._duration = self._spread(
            "chimera_request_duration_seconds", "From a request's arrival to its end, whole answers only", "route"
        )
        self._ttft = self._spread("chimera_ttft_seconds", "From a request's arrival to its answer's first byte")
        self._wait = self._spread("chimera_queue_wait_seconds", "Time spent waiting for a slot")
        self._speed = self._spread(
            "chimera_answer_tokens_per_second", "How fast the tokens of a whole stream came", bounds=_SPEEDS
        )
        self._turned_away = self._tally(
            "chimera_refused_at_door_total", "Requests refused before they were understood, and connections without a "
            "place", "reason",
        )  # fmt: skip
        self._refusals = self._tally("chimera_queue_refusals_total", "Requests that got no slot", "cause")
        self._left = self._tally(
            "chimera_clients_left_total", "Clients that left before their answer was whole", "phase"
        )
        self._retries = self._tally("chimera_retries_total", "Requests tried again before their client saw anything")
        self._broken = self._tally(
            "chimera_broken_answers_total", "Answers that began and did not come to their end", "cause"
        )
        self._tokens = self._tally("chimera_tokens_total", "Tokens that the workers counted", "kind", "model")
        self._queue = Gauge("chimera_queue_depth", "Tickets waiting for a slot", registry=self.registry)
        self._queue_bytes = Gauge(
            "chimera_queue_bytes", "Bytes of the bodies of requests that wait for a slot", registry=self.registry
        )
        self._queue_size = Gauge("chimera_queue_size", "How many tickets may wait (QUEUE_SIZE)", registry=self.registry)
        self._queue_limit_bytes = Gauge(
            "chimera_queue_limit_bytes", "How much their bodies may take (QUEUE_BYTES)", registry=self.registry
        )
        self._queue_oldest = Gauge(
            "chimera_queue_oldest_seconds", "How long the oldest ticket has waited", registry=self.registry
        )
        self.registry.register(self._fleet)
        self.registry.register(Moment(
            "chimera_tls_certificate_expires_timestamp_seconds",
            "When the TLS certificate in use ends, in seconds since 1970", certificate_ends_at_s,
        ))  # fmt: skip
        ProcessCollector(registry=self.registry)  # the usual process_* of this process: its start, memory, descriptors

    def _tally(self, name: str, text: str, *labels: str) -> Tally:
        made = Tally(name, text, *labels)
        self.registry.register(made)
        return made

    def _spread(self, name: str, text: str, *labels: str, bounds: Sequence[float] = _SECONDS) -> Spread:
        made = Spread(name, text, bounds, *labels)
        self.registry.register(made)
        return made

    def ended(self, route: str, status: int, outcome: str, model: str | None, took_s: float) -> None:
        """Count a request that has ended; `route` and `outcome` are of fixed sets, never a client's words."""
        self._requests.add(route, status_label(status), outcome)
        if model is not None:
            self._by_model.add(self._models.of(model), outcome)
        if outcome == "ok":
            self._duration.observe(took_s, route)

    def tried(self, worker_id: str, outcome: str) -> None:
        """A try at a worker has ended."""
        self._by_worker.add(worker_id, outcome)

    def refused(self, cause: str) -> None:
        """A request got no slot; `cause` is one of gateway.phases.REFUSALS."""
        self._refusals.add(cause)

    def refused_at_door(self, status: int) -> None:
        """A request, or a connection, was refused with this status before anything of it was done."""
        self._turned_away.add(door_reason(status))

    def left(self, phase: str) -> None:
        """A client left; `phase` is one of gateway.phases.LEFT_IN."""
        self._left.add(phase)

    def speed(self, tokens_per_s: float) -> None:
        """A stream has come to its end."""
        self._speed.observe(tokens_per_s)

    def leased(self, waited_s: float) -> None:
        """A request got its slot."""
        self._wait.observe(waited_s)

    def first_byte(self, seconds: float) -> None:
        """An answer began."""
        self._ttft.observe(seconds)

    def tokens(self, prompt: int, answer: int, model: str | None = None) -> None:
        """Count the tokens of one answer."""
        label = self._models.of(model) if model is not None else "other"
        self._tokens.add("prompt", label, amount=prompt)
        self._tokens.add("answer", label, amount=answer)

    def retried(self) -> None:
        """A request is tried again, nearly always by another worker."""
        self._retries.add()

    def broken(self, cause: str) -> None:
        """An answer ended before it was whole; `cause` is one of gateway.phases.BREAKS."""
        self._broken.add(cause)

    def render(
        self, queue_depth: float, instances: Iterable[dict[str, Any]], gpus: Iterable[dict[str, Any]], *,
        queue_bytes: float = 0.0, queue_size: float = 0.0, queue_limit_bytes: float = 0.0, queue_oldest_s: float = 0.0,
    ) -> bytes:  # fmt: skip
        """Return the text for Prometheus. Workers and GPUs are shown as they are now; gone ones are not."""
        self._queue.set(queue_depth)
        self._queue_size.set(queue_size)
        self._queue_bytes.set(queue_bytes)
        self._queue_limit_bytes.set(queue_limit_bytes)
        self._queue_oldest.set(queue_oldest_s)
        self._fleet.instances, self._fleet.gpus = list(instances), list(gpus)
        there = {str(row["id"]) for row in self._fleet.instances}
        for worker_id, outcome in [series for series in self._by_worker.counts if series[0] not in there]:
            self._by_worker.remove(worker_id, outcome)
        return generate_latest(self.registry)
