"""What Prometheus reads."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.fleet_metrics import STATES
from gateway.labels import MOST_MODELS, ModelLabels, route_label
from gateway.metrics import Metrics
from gateway.ollama import answerer
from gateway.phases import BREAKS, LEFT_IN, OUTCOMES, REFUSALS, TRY_OUTCOMES

ROW = {"id": "gpu0-1", "placement": "GPU-1", "state": "IDLE", "inflight": 2, "restarts": 3, "slots": 4,
       "degraded": True}  # fmt: skip
GPU = {
    "index": 0, "uuid": "GPU-1", "memory_used_bytes": 10, "memory_total_bytes": 20, "utilisation_percent": None,
    "temperature_c": 45, "power_w": 99.5, "verdict": "quarantined", "fault": None,
    "xids": [{"code": 79, "at": "2026-01-02T03:04:05.000+00:00"}],
}  # fmt: skip


def lines(text: bytes) -> list[str]:
    return [line for line in text.decode().splitlines() if not line.startswith("#")]


def test_workers_and_gpus_are_shown_as_they_are_now() -> None:
    metrics = Metrics()
    shown = lines(metrics.render(5, [ROW], [GPU]))
    assert {
        "chimera_queue_depth 5.0",
        'chimera_worker_up{placement="GPU-1",worker="gpu0-1"} 1.0',
        'chimera_worker_inflight{worker="gpu0-1"} 2.0',
        'chimera_worker_slots{worker="gpu0-1"} 4.0',
        'chimera_worker_restarts_total{worker="gpu0-1"} 3.0',
        'chimera_worker_degraded{worker="gpu0-1"} 1.0',
        'chimera_gpu_quarantined{gpu="0",uuid="GPU-1"} 1.0',
        'chimera_gpu_memory_used_bytes{gpu="0",uuid="GPU-1"} 10.0',
        'chimera_gpu_temperature_celsius{gpu="0",uuid="GPU-1"} 45.0',
        'chimera_gpu_power_watts{gpu="0",uuid="GPU-1"} 99.5',
        'chimera_gpu_fault{gpu="0",uuid="GPU-1"} 0.0',
        'chimera_gpu_last_xid_timestamp_seconds{code="79",gpu="0",uuid="GPU-1"} 1.767323045e+09',
        'chimera_worker_state{state="IDLE",worker="gpu0-1"} 1.0',
        'chimera_worker_state{state="BACKOFF",worker="gpu0-1"} 0.0',
    } <= set(shown)
    assert not any("utilisation" in line for line in shown), "what is not known is not shown"


def test_a_worker_that_is_gone_is_not_shown() -> None:
    metrics = Metrics()
    metrics.tried("gpu0-1", "ok")
    assert 'chimera_worker_requests_total{outcome="ok",worker="gpu0-1"} 1.0' in lines(metrics.render(0, [ROW], [GPU]))
    shown = lines(metrics.render(0, [], []))
    assert not any("worker=" in line or "gpu=" in line for line in shown)


def test_only_a_worker_that_may_be_given_leases_is_up() -> None:
    metrics = Metrics()
    states = ["STARTING", "WARMING", "IDLE", "BUSY", "CORDONED", "DRAINING", "STOPPING", "BACKOFF", "QUARANTINED"]
    rows = [ROW | {"id": state, "state": state} for state in states]
    text = metrics.render(0, rows, []).decode()
    assert set(re.findall(r'chimera_worker_state{state="(\w+)",worker="\1"} 1.0', text)) == set(states) == set(STATES)
    assert text.count("chimera_worker_state{") == len(states) ** 2
    assert set(re.findall(r'chimera_worker_up{.*worker="(\w+)"} 1.0', text)) == {"IDLE", "BUSY"}


def test_what_happened_is_counted() -> None:
    metrics = Metrics(ModelLabels(lambda: ["m:latest"]))
    metrics.ended("/api/chat", 200, "ok", "m", 3.5)
    metrics.ended("/api/chat", 200, "ok", "unheard-of", 1.0)
    metrics.ended("/api/chat", 0, "client_left", None, 600.0)
    metrics.leased(0.02)
    metrics.first_byte(3.0)
    metrics.retried()
    metrics.broken("no_end")
    metrics.refused("queue_full")
    metrics.left("queue")
    metrics.speed(25.0)
    metrics.tokens(132, 5, "m")
    assert {
        'chimera_requests_total{outcome="ok",route="/api/chat",status="200"} 2.0',
        'chimera_requests_total{outcome="client_left",route="/api/chat",status="0"} 1.0',
        'chimera_model_requests_total{model="m:latest",outcome="ok"} 1.0',
        'chimera_model_requests_total{model="other",outcome="ok"} 1.0',
        'chimera_request_duration_seconds_sum{route="/api/chat"} 4.5',
        'chimera_queue_wait_seconds_bucket{le="0.025"} 1.0',
        'chimera_queue_wait_seconds_bucket{le="0.01"} 0.0',
        "chimera_ttft_seconds_sum 3.0",
        "chimera_retries_total 1.0",
        'chimera_broken_answers_total{cause="no_end"} 1.0',
        'chimera_queue_refusals_total{cause="queue_full"} 1.0',
        'chimera_clients_left_total{phase="queue"} 1.0',
        'chimera_answer_tokens_per_second_bucket{le="50.0"} 1.0',
        'chimera_tokens_total{kind="prompt",model="m:latest"} 132.0',
        'chimera_tokens_total{kind="answer",model="m:latest"} 5.0',
        "chimera_queue_bytes 4096.0",
        "chimera_queue_size 512.0",
        "chimera_queue_limit_bytes 8192.0",
        "chimera_queue_oldest_seconds 2.5",
    } <= set(
        lines(metrics.render(0, [], [], queue_bytes=4096, queue_size=512, queue_limit_bytes=8192, queue_oldest_s=2.5))
    )


def test_two_gateways_in_one_process_do_not_meet() -> None:
    one, other = Metrics(), Metrics()
    one.retried()
    assert "chimera_retries_total 0.0" in lines(other.render(0, [], []))


# -- what a linter of metrics would say (promtool check metrics) -------------------------------------------------


def families() -> list[tuple[str, str, str]]:
    """Name, help and type of each metric, as they are told."""
    text = Metrics().render(1, [ROW], [GPU]).decode()
    kinds = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))
    return [(name, told, kinds[name]) for name, told in re.findall(r"^# HELP (chimera_\S+) (.*)$", text, re.MULTILINE)]


# Numbers that have no unit.
COUNTED_THINGS = {"depth", "size", "up", "state", "inflight", "slots", "degraded", "quarantined", "fault"}
UNITS = {"seconds", "bytes", "percent", "celsius", "watts", "second"}


@pytest.mark.parametrize(("name", "told", "kind"), families())
def test_a_name_ends_in_its_unit_and_a_counters_in_total(name: str, told: str, kind: str) -> None:
    assert re.fullmatch(r"chimera_[a-z][a-z0-9_]*", name)
    assert told
    assert not told.endswith(".")
    assert (kind == "counter") == name.endswith("_total")
    if kind != "counter":
        assert name.rpartition("_")[2] in UNITS | COUNTED_THINGS


def test_the_process_is_told_of_under_the_names_that_everybody_knows() -> None:
    text = Metrics().render(0, [], []).decode()
    assert {
        "process_start_time_seconds",
        "process_resident_memory_bytes",
        "process_open_fds",
        "process_max_fds",
    } <= set(re.findall(r"^# TYPE (process_\S+) ", text, re.MULTILINE))


def test_the_contracts_names_are_there() -> None:
    text = Metrics().render(0, [ROW], [GPU]).decode()
    told = set(re.findall(r"^# HELP (\S+) \S", text, re.MULTILINE))
    assert told >= {
        "chimera_requests_total", "chimera_ttft_seconds", "chimera_queue_depth", "chimera_queue_wait_seconds",
        "chimera_worker_up", "chimera_worker_inflight", "chimera_worker_restarts_total", "chimera_tokens_total",
        "chimera_gpu_memory_used_bytes",
    }  # fmt: skip
    assert told == set(re.findall(r"^# TYPE (\S+) \w", text, re.MULTILINE))
    assert "_created" not in text


# -- whatever clients send ---------------------------------------------------------------------------------------

HERE = [f"model-{number}:latest" for number in range(60)]
# Paths and models that exist, that nearly do, and anything.
PATHS = st.sampled_from(["/api/chat", "/v1/messages", "/api/ps", "/", "/api/tags"]) | st.text().map(
    lambda text: f"/api/{text}"
)
MODELS = st.none() | st.sampled_from(HERE) | st.text()


@given(st.lists(st.tuples(st.text(max_size=8), PATHS, st.integers(), MODELS), max_size=200))
def test_labels_are_few_whatever_clients_send(asked: list[tuple[str, str, int, str | None]]) -> None:
    metrics = Metrics(ModelLabels(lambda: HERE))
    for number, (method, path, status, model) in enumerate(asked):
        route = route_label(answerer(method, path), path)
        metrics.ended(route, status, OUTCOMES[number % len(OUTCOMES)], model, 1.0)
        if model is not None:
            metrics.tokens(1, 1, model)
    samples = [sample for family in metrics.registry.collect() for sample in family.samples]
    models = {sample.labels["model"] for sample in samples if "model" in sample.labels}
    assert models <= {*HERE, "other"}
    assert len(models) <= MOST_MODELS + 1
    routes = {sample.labels["route"] for sample in samples if "route" in sample.labels}
    assert all(route.startswith(("/api/", "/v1/")) or route in ("primary", "fleet", "gateway") for route in routes)
    assert len(routes) <= 13
    statuses = {sample.labels["status"] for sample in samples if "status" in sample.labels}
    assert all(status == "0" or 100 <= int(status) <= 599 for status in statuses)


def test_all_words_that_become_labels_are_of_fixed_sets() -> None:
    metrics = Metrics()
    for word in TRY_OUTCOMES:
        metrics.tried("w1", word)
    for cause in REFUSALS.values():
        metrics.refused(cause)
    for cause in BREAKS:
        metrics.broken(cause)
    for phase in LEFT_IN:
        metrics.left(phase)
    assert metrics.render(0, [ROW], []).count(b'worker="gpu0-1"') == 5 + len(STATES), "w1 is gone, its counters too"


def test_the_end_of_a_certificate_is_told_as_it_is_now_and_absent_without_one() -> None:
    name = "chimera_tls_certificate_expires_timestamp_seconds"
    ends_at_s: float | None = None
    metrics = Metrics(certificate_ends_at_s=lambda: ends_at_s)
    assert name not in metrics.render(0, [], []).decode()
    ends_at_s = 1.9e9
    assert f"{name} 1.9e+09\n" in metrics.render(0, [], []).decode()


def test_what_is_refused_at_the_door_is_counted_by_reason() -> None:
    metrics = Metrics()
    for status in (400, 400, 503):
        metrics.refused_at_door(status)
    text = metrics.render(0, [], []).decode()
    assert 'chimera_refused_at_door_total{reason="malformed"} 2.0' in text
    assert 'chimera_refused_at_door_total{reason="no_place"} 1.0' in text
