"""Rows of the admin API as families of metrics."""

from gateway.fleet_metrics import FleetCollector

ROW = {"id": "w1", "placement": "cpu", "state": "BUSY", "inflight": 1, "restarts": 2}


def test_a_restart_is_counted_not_gauged() -> None:
    fleet = FleetCollector()
    fleet.instances = [ROW]
    (restarts,) = [family for family in fleet.collect() if family.name == "chimera_worker_restarts"]
    assert (restarts.type, [(s.name, s.value) for s in restarts.samples]) == (
        "counter", [("chimera_worker_restarts_total", 2)],
    )  # fmt: skip


def test_what_a_row_does_not_say_is_not_shown() -> None:
    fleet = FleetCollector()
    fleet.instances = [ROW]
    fleet.gpus = [{"index": 0, "uuid": "GPU-1", "power_w": None, "temperature_c": 0}]
    shown = {family.name for family in fleet.collect() if family.samples}
    assert "chimera_worker_slots" not in shown
    assert "chimera_gpu_power_watts" not in shown
    assert {"chimera_worker_up", "chimera_gpu_temperature_celsius", "chimera_gpu_quarantined"} <= shown


def test_of_each_xid_that_is_remembered_the_last_time_is_shown() -> None:
    fleet = FleetCollector()
    seen = [("31", "05:00"), ("79", "05:01"), ("31", "05:02")]
    xids = [{"code": code, "at": f"2026-01-02T{at}:00+00:00"} for code, at in seen]
    fleet.gpus = [{"index": 0, "uuid": "GPU-1", "xids": xids, "fault": "the GPU is lost"}]
    shown = {family.name: family.samples for family in fleet.collect()}
    times = {sample.labels["code"]: sample.value for sample in shown["chimera_gpu_last_xid_timestamp_seconds"]}
    assert (times["31"] - times["79"], len(times)) == (60, 2)
    assert [sample.value for sample in shown["chimera_gpu_fault"]] == [1]


def test_an_empty_fleet_still_says_what_each_metric_is() -> None:
    assert all(family.documentation for family in FleetCollector().collect())
