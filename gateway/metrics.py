"""Prometheus metrics of the gateway. Counting is a few attribute updates; everything else happens at /metrics."""

from collections.abc import Iterable
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """Every metric, on a registry of its own: two gateways in one process (tests) do not meet."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        common: dict[str, Any] = {"registry": self.registry}
        self._requests = Counter(
            "chimera_requests_total", "Requests answered", ["route", "status"], **common
        )  # fmt: skip
        self._ttft = Histogram(
            "chimera_ttft_seconds", "From a request's arrival to its answer's first byte", buckets=_SECONDS, **common
        )
        self._wait = Histogram(
            "chimera_queue_wait_seconds", "Time spent waiting for a slot", buckets=_SECONDS, **common
        )
        self._retries = Counter(
            "chimera_retries_total", "Requests tried again before their client saw anything", **common
        )
        self._broken = Counter("chimera_broken_answers_total", "Answers that ended before they were complete", **common)
        self._tokens = Counter("chimera_tokens_total", "Tokens that the workers counted", ["kind"], **common)
        self._queue = Gauge("chimera_queue_depth", "Tickets waiting for a slot", **common)
        self._up = Gauge(
            "chimera_worker_up", "1 while the worker may be given leases", ["worker", "placement"], **common
        )
        self._inflight = Gauge("chimera_worker_inflight", "Leases of the worker", ["worker"], **common)
        self._restarts = Gauge(
            "chimera_worker_restarts_total", "Restarts of the worker since it was added", ["worker"], **common
        )
        self._degraded = Gauge(
            "chimera_worker_degraded", "1 while the worker serves, but not as it should", ["worker"], **common
        )
        self._quarantined = Gauge(
            "chimera_gpu_quarantined", "1 while the GPU takes no worker", ["gpu", "uuid"], **common
        )
        self._gpu = {
            key: Gauge(f"chimera_gpu_{key}", text, ["gpu", "uuid"], **common)
            for key, text in (
                ("memory_used_bytes", "GPU memory in use"),
                ("memory_total_bytes", "GPU memory"),
                ("utilisation_percent", "Share of time in which the GPU computed"),
                ("temperature_c", "GPU temperature"),
                ("power_w", "GPU power draw"),
            )
        }

    def answered(self, route: str, status: int) -> None:
        """Count an answer; `route` is one of a few fixed words, never a client's path."""
        self._requests.labels(route, str(status)).inc()

    def leased(self, waited_s: float) -> None:
        """A request got its slot."""
        self._wait.observe(waited_s)

    def first_byte(self, seconds: float) -> None:
        """An answer began."""
        self._ttft.observe(seconds)

    def tokens(self, prompt: int, answer: int) -> None:
        """Count the tokens of one answer."""
        self._tokens.labels("prompt").inc(prompt)
        self._tokens.labels("answer").inc(answer)

    def retried(self) -> None:
        """A request is tried again, nearly always by another worker."""
        self._retries.inc()

    def broken(self) -> None:
        """An answer ended before it was complete."""
        self._broken.inc()

    def render(self, queue_depth: float, instances: Iterable[dict[str, Any]], gpus: Iterable[dict[str, Any]]) -> bytes:
        """Return the text for Prometheus. Workers and GPUs are shown as they are now; gone ones are not."""
        self._queue.set(queue_depth)
        for gauge in (
            self._up, self._inflight, self._restarts, self._degraded, self._quarantined, *self._gpu.values()
        ):  # fmt: skip
            gauge.clear()
        for row in instances:
            self._up.labels(row["id"], row["placement"]).set(row["state"] in ("IDLE", "BUSY"))
            self._inflight.labels(row["id"]).set(row["inflight"])
            self._restarts.labels(row["id"]).set(row["restarts"])
            self._degraded.labels(row["id"]).set(bool(row.get("degraded")))
        for row in gpus:
            self._quarantined.labels(str(row["index"]), row["uuid"]).set(row.get("verdict") == "quarantined")
            for key, gauge in self._gpu.items():
                if row.get(key) is not None:
                    gauge.labels(str(row["index"]), row["uuid"]).set(row[key])
        return generate_latest(self.registry)
