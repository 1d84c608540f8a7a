"""What is held against one GPU, and until when; the whole of it stands in test_gpu_health.py."""

from datetime import UTC, datetime

from supervisor.gpu_reading import Gpu
from supervisor.gpu_state import FAULTY_READINGS, RELEASE_AFTER_S, XIDS_KEPT, GpuState, Moment
from supervisor.xid import Action, xid

WELL = Gpu(0, "GPU-a", "H200", 100, 0, 0, 30, 60.0, (), None)


def moment(now: float) -> Moment:
    return Moment(now, datetime(2026, 1, 2, tzinfo=UTC))


def test_a_fault_counts_from_its_first_reading() -> None:
    state = GpuState("GPU-a")
    for second in range(FAULTY_READINGS):
        assert state.cause is None
        state.silent("lost", moment(second))
    assert state.cause is not None
    assert (state.cause.reason, state.cause.since, state.cause.drain) == ("lost", moment(0), False)


def test_the_clock_of_a_release_starts_anew_with_each_fault() -> None:
    state = GpuState("GPU-a")
    state.lost("lost", moment(0))
    state.answers(WELL, moment(1))
    state.xid(xid(31), moment(20))  # a fault, though none that would be quarantined
    state.answers(WELL, moment(21))
    state.answers(WELL, moment(20 + RELEASE_AFTER_S))
    assert state.cause is not None
    state.answers(WELL, moment(21 + RELEASE_AFTER_S))
    assert state.cause is None


def test_silence_of_nvml_as_a_whole_neither_accuses_nor_clears() -> None:
    state = GpuState("GPU-a")
    state.silent("lost", moment(0))
    state.unknown()
    state.silent("lost", moment(1))
    assert state.cause is None
    state.silent("lost", moment(2))
    state.answers(WELL, moment(3))
    state.unknown()
    state.answers(WELL, moment(4 + RELEASE_AFTER_S))
    assert state.cause is not None, "it has not been seen well for so long"


def test_a_second_grave_xid_needs_a_second_reset() -> None:
    state = GpuState("GPU-a")
    state.xid(xid(48), moment(0))
    state.silent("lost", moment(1))
    state.silent("lost", moment(2))
    state.answers(WELL, moment(3))
    state.xid(xid(95), moment(4))
    state.answers(WELL, moment(5))
    state.answers(WELL, moment(100))
    assert state.cause is not None
    assert (state.cause.reason, state.cause.waits_for_reset) == ("Xid 95: uncontained memory error", True)


def test_only_the_newest_xids_are_kept_and_repeats_are_one() -> None:
    state = GpuState("GPU-a")
    for code in (31, 31, *range(1000, 1000 + XIDS_KEPT - 1)):
        state.xid(xid(code), moment(code))
    assert [(seen.code, seen.count) for seen in state.xids][:2] == [(31, 2), (1000, 1)]
    assert state.xid(xid(94), moment(5000)) is Action.RESTART
    assert len(state.xids) == XIDS_KEPT
    assert state.xids[0].code == 1000
