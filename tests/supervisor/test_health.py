"""What the facts of a running worker add up to: busy is not dead, one sign is not enough, no clock is trusted twice."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.health import (
    PLACED_AFTER_S,
    STUCK_AFTER_S,
    Expiry,
    Finding,
    Silence,
    Step,
    computes_on_cpu,
    expiries,
    gravest,
    judge_in_kernel,
    judge_silence,
    judge_stopped,
    judge_stuck,
    misplaced,
)

HANG_S = 15.0
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


@dataclass(frozen=True)
class Model:
    name: str = "tiny:latest"
    size_bytes: int = 1000
    size_vram_bytes: int = 1000
    expires_at: datetime | None = None


@dataclass(frozen=True)
class Card:
    memory_used_bytes: int
    process_pids: frozenset[int] | None


def silence(*answers: bool) -> Silence:
    """Probes sent at 0, 2, 4, … seconds."""
    known = Silence()
    for number, answered in enumerate(answers):
        known = known.after(answered=answered, asked_at=2.0 * number)
    return known


# -- probes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answers", "progress_at", "now", "step"),
    [
        ((), None, 99, None),
        ((True, False), None, 99, None),  # one missed probe says nothing, however long ago
        ((False, False), None, 4, Step.AVOID),
        ((False, False), None, 14.9, Step.AVOID),
        ((False, False), None, 15, Step.RESTART),
        ((False, False, True), None, 99, None),
        ((False, False), 1.0, 99, None),  # bytes of an answer came after the first missed probe: it is busy
        ((True, False, False), 1.0, 17, Step.RESTART),  # those bytes were before
        ((True, False, False), None, 16.9, Step.AVOID),  # it counts from the first missed probe
    ],
)
def test_unanswered_probes(answers: tuple[bool, ...], progress_at: float | None, now: float, step: Step | None) -> None:
    found = judge_silence(silence(*answers), progress_at, now, HANG_S)
    assert (found.step if found else None) == step


@given(st.lists(st.booleans(), max_size=20), st.floats(0, 100))
def test_silence_lasts_from_the_first_probe_missed_in_a_row(answers: list[bool], now: float) -> None:
    known = silence(*answers)
    missed = 0
    for answered in reversed(answers):
        if answered:
            break
        missed += 1
    assert known.missed == missed
    if missed:
        assert known.since == 2.0 * (len(answers) - missed)
    found = judge_silence(known, None, now, HANG_S)
    if found is not None and found.step is Step.RESTART:
        assert now - known.since >= HANG_S


@pytest.mark.parametrize(
    ("pids", "since", "now", "step"),
    [((), None, 9, None), ((7,), 5, 6, Step.AVOID), ((7,), 5, 19.9, Step.AVOID), ((7, 8), 5, 20, Step.RESTART)],
)
def test_stopped_processes(pids: tuple[int, ...], since: float | None, now: float, step: Step | None) -> None:
    found = judge_stopped(pids, since, now, HANG_S)
    assert (found.step if found else None) == step
    if found is not None:
        assert "7" in found.what


def test_what_the_kernel_holds_is_avoided_and_never_restarted() -> None:
    found = judge_in_kernel({7}, 5.0)
    assert found is not None
    assert (found.step, found.since) == (Step.AVOID, 5.0)
    assert judge_in_kernel((), 5.0) is None
    assert judge_in_kernel({7}, None) is None


# -- models that do not go -------------------------------------------------------------------------------------------


def test_a_model_is_stuck_a_minute_after_its_end_if_nothing_was_under_way_since() -> None:
    found = expiries({}, [Model(expires_at=NOON + timedelta(seconds=10))], NOON, 100.0)
    assert judge_stuck(found, 100.0, 110 + STUCK_AFTER_S) is None
    assert judge_stuck(found, 100.0, 111 + STUCK_AFTER_S) is not None
    assert judge_stuck(found, 150.0, 111 + STUCK_AFTER_S) is None  # a request was there until 150
    assert judge_stuck(found, None, 999.0) is None  # one is there now


@given(st.floats(-86400, 86400), st.integers(0, 86400))
def test_a_wall_clock_that_jumps_makes_no_model_stuck(jump_s: float, left_s: int) -> None:
    model = Model(expires_at=NOON + timedelta(seconds=left_s))
    before = expiries({}, [model], NOON, 0.0)
    after = expiries(before, [model], NOON + timedelta(seconds=1 + jump_s), 1.0)
    assert after == before == {model.name: Expiry(NOON + timedelta(seconds=left_s), float(left_s))}


def test_a_model_that_was_used_again_has_a_new_end() -> None:
    before = expiries({}, [Model(expires_at=NOON)], NOON, 0.0)
    after = expiries(before, [Model(expires_at=NOON + timedelta(seconds=300))], NOON, 0.0)
    assert after["tiny:latest"].due == 300
    assert expiries(after, [Model(expires_at=None)], NOON, 5.0) == {}


# -- where it computes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("models", "gpu", "foreign", "loaded_for_s", "fault"),
    [
        ([Model()], Card(5000, frozenset({7})), (), 60, None),
        ([Model(size_vram_bytes=0)], None, (), 0, "size_vram is 0"),
        ([Model(size_vram_bytes=400)], Card(5000, frozenset({7})), (), 60, None),  # too large for the GPU: in part
        ([Model(size_bytes=0, size_vram_bytes=0)], None, (), 60, None),  # a version that does not say
        ([Model()], Card(10, frozenset()), (), 60, "NVML shows no process"),
        ([Model()], Card(10, frozenset()), (), PLACED_AFTER_S - 1, None),  # it may still be coming up
        ([Model()], Card(5000, frozenset()), (), 60, None),  # the memory is in use: its pids are another namespace's
        ([Model()], Card(10, None), (), 60, None),  # the driver does not tell
        ([Model()], None, (), 60, None),  # NVML is not to be relied on
        ([], Card(10, frozenset()), (), 60, None),
        ([Model()], Card(5000, frozenset({7})), (8,), 60, "process 8 computes on a GPU that is not its own"),
    ],
)
def test_a_gpu_worker_computes_where_it_was_placed(
    models: list[Model], gpu: Card | None, foreign: tuple[int, ...], loaded_for_s: float, fault: str | None
) -> None:
    said = misplaced(models, {7, 8}, gpu, foreign, loaded_for_s)
    assert (said is None) if fault is None else (said is not None and fault in said)


CUDA_LINE = (
    'time=2026-01-01T12:00:00.000Z level=INFO source=types.go:131 msg="inference compute" id=GPU-aa library=cuda '
    'variant=v12 compute=9.0 driver=12.8 name="NVIDIA H200" total="139.8 GiB" available="139.2 GiB"\n'
)
CPU_LINE = CUDA_LINE.replace("GPU-aa", "0").replace("library=cuda", "library=cpu")


@pytest.mark.parametrize(
    ("log", "on_cpu"),
    [
        ("", False),
        ("listening on 127.0.0.1:11500\n", False),
        (CUDA_LINE, False),
        (CPU_LINE, True),
        (CPU_LINE + CUDA_LINE, False),
        (CPU_LINE.replace("library=cpu", 'library="cpu"'), True),
        ("library=cpu inference compute\nlibrary=cpu\n", False),
        ("inference compute " * 60_000 + CPU_LINE, True),  # 64 KiB of it took 1.7 s
    ],
)
def test_ollamas_log_says_where_it_computes(log: str, on_cpu: bool) -> None:
    assert computes_on_cpu(log) is on_cpu


def test_the_gravest_finding_counts() -> None:
    avoid, restart = Finding("a", "", 1, Step.AVOID), Finding("b", "", 2, Step.RESTART)
    assert gravest([None, avoid, restart, None]) is restart
    assert gravest([avoid, Finding("c", "", 0, Step.AVOID)]) is avoid
    assert gravest([None]) is None
