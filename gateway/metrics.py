"""Prometheus metrics of the gateway. Counting is a few attribute updates; everything else happens at /metrics."""

from collections.abc import Iterable, Sequence
from typing import Any, Generic, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest

from gateway.fleet_metrics import FleetCollector
from gateway.labels import ModelLabels, status_label

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_SPEEDS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)

# When each counter was made says nothing that the process's start does not; it would double the series.
disable_created_metrics()  # type: ignore[no-untyped-call]  # the library has no types for it


Counted = TypeVar("Counted", Counter, Histogram)


class Labelled(Generic[Counted]):
    """A metric with labels. To have the library find a series costs several times as much as to count in it."""

    def __init__(self, metric: Counted) -> None:
        self._metric: Counted = metric
        self.series: dict[tuple[str, ...], Counted] = {}

    def of(self, *labels: str) -> Counted:
        """Return the series with these labels."""
        found = self.series.get(labels)
        if found is None:
            found = self.series[labels] = self._metric.labels(*labels)
        return found

    def remove(self, *labels: str) -> None:
        """Show the series no more."""
        self.series.pop(labels, None)
        self._metric.remove(*labels)


class Metrics:
    """Every metric, on a registry of its own: two gateways in one process (tests) do not meet.

    No label is of a client's own choosing: see `gateway.labels`.
    """

    def __init__(self, models: ModelLabels | None = None) -> None:
        """`models`: which names of models are labels; without it all are "other"."""
        self.registry = CollectorRegistry()
        self._models = models or ModelLabels()
        self._fleet = FleetCollector()
        self._workers_counted: set[tuple[str, str]] = set()

        def counter(name: str, text: str, *labels: str) -> Labelled[Counter]:
            return Labelled(Counter(name, text, labels, registry=self.registry))

        def histogram(name: str, text: str, buckets: Sequence[float] = _SECONDS) -> Histogram:
            return Histogram(name, text, buckets=buckets, registry=self.registry)

        self._requests = counter(
            "chimera_requests_total", "Requests that have ended; status 0: without an answer",
            "route", "status", "outcome",
        )  # fmt: skip
        self._by_model = counter(
            "chimera_model_requests_total", "Requests that have ended and named a model", "model", "outcome"
        )
        self._by_worker = counter(
            "chimera_worker_requests_total", "Tries that have ended at a worker", "worker", "outcome"
        )
        self._duration = Labelled(
            Histogram(
                "chimera_request_duration_seconds", "From a request's arrival to its end, whole answers only",
                ("route",), buckets=_SECONDS, registry=self.registry,
            )
        )  # fmt: skip
        self._ttft = histogram("chimera_ttft_seconds", "From a request's arrival to its answer's first byte")
        self._wait = histogram("chimera_queue_wait_seconds", "Time spent waiting for a slot")
        self._speed = histogram(
            "chimera_answer_tokens_per_second", "How fast the tokens of a whole stream came", buckets=_SPEEDS
        )
        self._refusals = counter("chimera_queue_refusals_total", "Requests that got no slot", "cause")
        self._left = counter("chimera_clients_left_total", "Clients that left before their answer was whole", "phase")
        self._retries = Counter(
            "chimera_retries_total", "Requests tried again before their client saw anything", registry=self.registry
        )
        self._broken = counter(
            "chimera_broken_answers_total", "Answers that began and did not come to their end", "cause"
        )
        self._tokens = counter("chimera_tokens_total", "Tokens that the workers counted", "kind", "model")
        self._queue = Gauge("chimera_queue_depth", "Tickets waiting for a slot", registry=self.registry)
        self._queue_bytes = Gauge(
            "chimera_queue_bytes", "Bytes of the bodies of requests that wait for a slot", registry=self.registry
        )
        self.registry.register(self._fleet)

    def ended(self, route: str, status: int, outcome: str, model: str | None, took_s: float) -> None:
        """Count a request that has ended; `route` and `outcome` are of fixed sets, never a client's words."""
        self._requests.of(route, status_label(status), outcome).inc()
        if model is not None:
            self._by_model.of(self._models.of(model), outcome).inc()
        if outcome == "ok":
            self._duration.of(route).observe(took_s)

    def tried(self, worker_id: str, outcome: str) -> None:
        """A try at a worker has ended."""
        self._workers_counted.add((worker_id, outcome))
        self._by_worker.of(worker_id, outcome).inc()

    def refused(self, cause: str) -> None:
        """A request got no slot; `cause` is one of gateway.phases.REFUSALS."""
        self._refusals.of(cause).inc()

    def left(self, phase: str) -> None:
        """A client left; `phase` is one of gateway.phases.LEFT_IN."""
        self._left.of(phase).inc()

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
        self._tokens.of("prompt", label).inc(prompt)
        self._tokens.of("answer", label).inc(answer)

    def retried(self) -> None:
        """A request is tried again, nearly always by another worker."""
        self._retries.inc()

    def broken(self, cause: str) -> None:
        """An answer ended before it was whole; `cause` is one of gateway.phases.BREAKS."""
        self._broken.of(cause).inc()

    def render(
        self, queue_depth: float, instances: Iterable[dict[str, Any]], gpus: Iterable[dict[str, Any]], *,
        queue_bytes: float = 0.0,
    ) -> bytes:  # fmt: skip
        """Return the text for Prometheus. Workers and GPUs are shown as they are now; gone ones are not."""
        self._queue.set(queue_depth)
        self._queue_bytes.set(queue_bytes)
        self._fleet.instances, self._fleet.gpus = list(instances), list(gpus)
        there = {str(row["id"]) for row in self._fleet.instances}
        for worker_id, outcome in [pair for pair in self._workers_counted if pair[0] not in there]:
            self._workers_counted.discard((worker_id, outcome))
            self._by_worker.remove(worker_id, outcome)
        return generate_latest(self.registry)
