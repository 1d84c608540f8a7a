"""Workers and GPUs as Prometheus sees them: as they are when it asks. What is gone is not shown."""

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

Row = dict[str, Any]

# As gateway.admin's rows have them; each worker is in one.
STATES = (
    "STARTING", "WARMING", "IDLE", "BUSY", "CORDONED", "DRAINING", "STOPPING", "BACKOFF", "QUARANTINED",
)  # fmt: skip
_GPU = (
    ("memory_used_bytes", "memory_used_bytes", "GPU memory in use"),
    ("memory_total_bytes", "memory_total_bytes", "GPU memory"),
    ("utilisation_percent", "utilisation_percent", "Share of time in which the GPU computed"),
    ("temperature_celsius", "temperature_c", "GPU temperature"),
    ("power_watts", "power_w", "GPU power draw"),
)


class FleetCollector(Collector):
    """The rows of the admin API as metrics; whoever renders them sets the rows first."""

    def __init__(self) -> None:
        self.instances: Sequence[Row] = ()
        self.gpus: Sequence[Row] = ()

    def collect(self) -> Iterator[Metric]:
        """Yield a family for each thing that is told of workers and GPUs. What is not known is left out."""
        yield from _of_workers(self.instances)
        yield from _of_gpus(self.gpus)


def _of_workers(rows: Iterable[Row]) -> Iterator[Metric]:
    up = GaugeMetricFamily(
        "chimera_worker_up", "1 while the worker may be given leases", labels=["worker", "placement"]
    )
    inflight = GaugeMetricFamily("chimera_worker_inflight", "Leases of the worker", labels=["worker"])
    slots = GaugeMetricFamily("chimera_worker_slots", "Slots of the worker", labels=["worker"])
    restarts = CounterMetricFamily(
        "chimera_worker_restarts_total", "Restarts of the worker since it was added", labels=["worker"]
    )
    degraded = GaugeMetricFamily(
        "chimera_worker_degraded", "1 while the worker serves, but not as it should", labels=["worker"]
    )
    state = GaugeMetricFamily(
        "chimera_worker_state", "1 for the state that the worker is in", labels=["worker", "state"]
    )
    for row in rows:
        worker = [str(row["id"])]
        for name in STATES:
            state.add_metric([*worker, name], name == row["state"])
        up.add_metric([*worker, str(row["placement"])], row["state"] in ("IDLE", "BUSY"))
        inflight.add_metric(worker, row["inflight"])
        restarts.add_metric(worker, row["restarts"])
        degraded.add_metric(worker, bool(row.get("degraded")))
        if row.get("slots") is not None:
            slots.add_metric(worker, row["slots"])
    yield from (up, state, inflight, slots, restarts, degraded)


def _of_gpus(rows: Sequence[Row]) -> Iterator[Metric]:
    quarantined = GaugeMetricFamily(
        "chimera_gpu_quarantined", "1 while the GPU takes no worker", labels=["gpu", "uuid"]
    )
    fault = GaugeMetricFamily("chimera_gpu_fault", "1 while the driver cannot read the GPU", labels=["gpu", "uuid"])
    xid = GaugeMetricFamily(
        "chimera_gpu_last_xid_timestamp_seconds", "When the GPU last reported an Xid, in seconds since 1970",
        labels=["gpu", "uuid", "code"],
    )  # fmt: skip
    for row in rows:
        gpu = [str(row["index"]), str(row["uuid"])]
        quarantined.add_metric(gpu, row.get("verdict") == "quarantined")
        fault.add_metric(gpu, row.get("fault") is not None)
        for code, at in _last_xids(row).items():
            xid.add_metric([*gpu, str(code)], at)
    yield from (quarantined, fault, xid)
    for name, key, text in _GPU:
        family = GaugeMetricFamily(f"chimera_gpu_{name}", text, labels=["gpu", "uuid"])
        for row in rows:
            if row.get(key) is not None:
                family.add_metric([str(row["index"]), str(row["uuid"])], row[key])
        yield family


def _last_xids(row: Row) -> dict[int, float]:
    """Return when each Xid that is remembered of a GPU was last seen; the rows have them oldest first."""
    return {int(seen["code"]): datetime.fromisoformat(seen["at"]).timestamp() for seen in row.get("xids") or ()}
