"""What Prometheus reads."""

import re

from gateway.metrics import Metrics

ROW = {"id": "gpu0-1", "placement": "GPU-1", "state": "IDLE", "inflight": 2, "restarts": 3,
       "degraded": True}  # fmt: skip
GPU = {
    "index": 0, "uuid": "GPU-1", "memory_used_bytes": 10, "memory_total_bytes": 20, "utilisation_percent": None,
    "temperature_c": 45, "power_w": 99.5, "verdict": "quarantined",
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
        'chimera_worker_restarts_total{worker="gpu0-1"} 3.0',
        'chimera_worker_degraded{worker="gpu0-1"} 1.0',
        'chimera_gpu_quarantined{gpu="0",uuid="GPU-1"} 1.0',
        'chimera_gpu_memory_used_bytes{gpu="0",uuid="GPU-1"} 10.0',
        'chimera_gpu_temperature_c{gpu="0",uuid="GPU-1"} 45.0',
    } <= set(shown)
    assert not any("utilisation" in line for line in shown), "what is not known is not shown"


def test_a_worker_that_is_gone_is_not_shown() -> None:
    metrics = Metrics()
    metrics.render(0, [ROW], [GPU])
    shown = lines(metrics.render(0, [], []))
    assert not any("worker=" in line or "gpu=" in line for line in shown)


def test_only_a_worker_that_may_be_given_leases_is_up() -> None:
    metrics = Metrics()
    states = ["STARTING", "WARMING", "IDLE", "BUSY", "CORDONED", "DRAINING", "STOPPING", "BACKOFF", "QUARANTINED"]
    rows = [ROW | {"id": state, "state": state} for state in states]
    text = metrics.render(0, rows, []).decode()
    assert set(re.findall(r'chimera_worker_up{.*worker="(\w+)"} 1.0', text)) == {"IDLE", "BUSY"}


def test_what_happened_is_counted() -> None:
    metrics = Metrics()
    metrics.answered("/api/chat", 200)
    metrics.answered("/api/chat", 200)
    metrics.leased(0.02)
    metrics.first_byte(3.0)
    metrics.retried()
    metrics.broken()
    metrics.tokens(132, 5)
    assert {
        'chimera_requests_total{route="/api/chat",status="200"} 2.0',
        'chimera_queue_wait_seconds_bucket{le="0.025"} 1.0',
        'chimera_queue_wait_seconds_bucket{le="0.01"} 0.0',
        "chimera_ttft_seconds_sum 3.0",
        "chimera_retries_total 1.0",
        "chimera_broken_answers_total 1.0",
        'chimera_tokens_total{kind="prompt"} 132.0',
        'chimera_tokens_total{kind="answer"} 5.0',
    } <= set(lines(metrics.render(0, [], [])))


def test_two_gateways_in_one_process_do_not_meet() -> None:
    one, other = Metrics(), Metrics()
    one.retried()
    assert "chimera_retries_total 0.0" in lines(other.render(0, [], []))
