"""GPUs as values: what stays of one that does not answer, and its place among the others."""

from dataclasses import replace

from supervisor.gpu_reading import RECOVERY_ACTIONS, RESETS, Gpu, GpuProcess, with_absent

A = Gpu(
    0, "GPU-a", "H200", 100, 40, 7, 41, 75.5, (GpuProcess(1, 9),), None,
    slowdown="too hot", remap_pending=True, recovery_action="GPU reset", ecc_uncorrected=1, mig_devices=True,
)  # fmt: skip
PART = Gpu(0, "MIG-1", "H200 MIG", 20, 5, None, None, None, (), None, mig_of="GPU-a")
B = Gpu(1, "GPU-b", "H200", 100, 0, 0, 30, 60.0, (), None)


def test_of_a_dark_gpu_stays_what_does_not_change() -> None:
    assert A.dark("lost") == Gpu(0, "GPU-a", "H200", 100, 0, None, None, None, None, "lost", mig_devices=True)
    assert PART.dark("lost") == Gpu(0, "MIG-1", "H200 MIG", 20, 0, None, None, None, None, "lost", mig_of="GPU-a")


def test_a_gpu_that_is_not_listed_keeps_its_place_and_its_mig_devices() -> None:
    gone = "the driver no longer lists the GPU"
    assert with_absent((A, PART, B), [B], {}) == (A.dark(gone), PART.dark(gone), B)
    assert with_absent((A, PART, B), [B], {0: "lost"}) == (A.dark("lost"), PART.dark("lost"), B)


def test_a_mig_device_that_is_gone_from_a_gpu_that_answers_is_forgotten() -> None:
    assert with_absent((A, PART, B), [replace(A, mig_devices=False), B], {}) == (replace(A, mig_devices=False), B)


def test_mig_devices_follow_their_gpu_whatever_the_order() -> None:
    moved = replace(B, index=0), replace(A, index=1), replace(PART, index=1)
    assert with_absent((), [moved[1], moved[2], moved[0]], {}) == moved


def test_a_gpu_that_never_told_its_uuid_has_only_an_index() -> None:
    stranger = Gpu(1, "", "unknown GPU", 0, 0, None, None, None, None, "lost")
    assert with_absent((), [A], {1: "lost"}) == (A, stranger)


def test_the_recovery_actions_that_forbid_computing() -> None:
    assert set(RECOVERY_ACTIONS.values()) - RESETS == {"drain P2P", "recover IMEX domain"}
