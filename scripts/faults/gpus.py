"""Faults of GPUs and of their driver, played by a fake driver to the unmodified nvidia-ml-py."""

from typing import Any

from scripts.faults.driver import GPU_A, RET, XID
from scripts.faults.scenario import Scenario
from scripts.faults.trial import Trial

LOST, MISMATCH = 15, 18  # NVML_ERROR_GPU_IS_LOST, NVML_ERROR_LIB_RM_VERSION_MISMATCH
NVML_HANG_S = 60.0
# A GPU that answers again is looked at for a while before it is trusted.
GPU_BACK_S = 60.0
SLOWEST_ADMIN_S = 2.0


def _gpu(trial: Trial, uuid: str) -> dict[str, Any]:
    return next(row for row in trial.chimera.gpus() if row["uuid"] == uuid)


def _worker_on(trial: Trial, uuid: str) -> str:
    return next(str(row["id"]) for row in trial.chimera.instances() if row["placement"] == uuid)


def _xid(trial: Trial, code: int) -> str:
    """Deliver an Xid for the first GPU; return its worker's id."""
    worker = _worker_on(trial, GPU_A)
    trial.inject()
    trial.driver.set(GPU_A, XID, code)
    trial.detect("gpu_xid", gpu=GPU_A, code=code, within_s=5.0)
    return worker


def xid_of_an_application(trial: Trial, code: int) -> None:
    """Xids that NVIDIA answers with a restart of the program: on the same GPU."""
    worker = _xid(trial, code)
    started = trial.expect(f"{worker} restarted", lambda: trial.events("worker_starting", worker=worker))
    trial.good_again(worker, from_s=started[0][0] if started else 0.0)
    if _gpu(trial, GPU_A)["verdict"] == "quarantined":
        trial.broken("the GPU was quarantined")


def xid_79(trial: Trial) -> None:
    """A GPU has fallen off the bus: its workers leave, and it takes none until somebody releases it."""
    worker = _xid(trial, 79)
    trial.expect("the GPU in quarantine", lambda: _gpu(trial, GPU_A)["verdict"] == "quarantined")
    gone = lambda: all(row["state"] not in ("IDLE", "BUSY") for row in _rows_on(trial, GPU_A))  # noqa: E731
    trial.expect("no ready worker on it", gone)
    trial.told("the GPU", _gpu(trial, GPU_A))
    trial.good_again(ready=1)
    trial.driver.set(GPU_A, XID, 0)
    trial.chimera.client.post(f"/admin/gpus/{GPU_A}/release").raise_for_status()
    trial.good_again(worker, from_s=trial.since_s())


def _rows_on(trial: Trial, uuid: str) -> list[dict[str, Any]]:
    return [row for row in trial.chimera.instances() if row["placement"] == uuid]


def gpu_lost_and_back(trial: Trial) -> None:
    """NVML says that a GPU is lost; after ten seconds it answers again, and its worker must come back by itself."""
    worker = _worker_on(trial, GPU_A)
    trial.inject()
    trial.driver.set(GPU_A, RET, LOST)
    unwell = lambda: _gpu(trial, GPU_A)["verdict"] in ("faulty", "quarantined")  # noqa: E731
    trial.detect_state("the GPU's verdict", unwell, 5.0)
    gone = lambda: all(row["state"] not in ("IDLE", "BUSY") for row in _rows_on(trial, GPU_A))  # noqa: E731
    trial.expect("no ready worker on it", gone, 15.0)
    trial.good_again(ready=1)
    trial.driver.set(GPU_A, RET, 0)
    trial.good_again(worker, within_s=GPU_BACK_S, from_s=trial.since_s())
    if _gpu(trial, GPU_A)["verdict"] != "well":
        trial.broken(f"it answers again, and its verdict is {_gpu(trial, GPU_A)['verdict']}")


def nvml_hung(trial: Trial) -> None:
    """Every NVML call hangs for a minute: neither answers nor the admin API may wait for it."""
    trial.inject()
    trial.driver.says("hang", int(NVML_HANG_S * 1000))
    trial.detect("nvml_stuck", within_s=15.0)
    slowest_s = 0.0
    while trial.since_s() < NVML_HANG_S:
        trial.rest(0.5)
        before_s = trial.since_s()
        trial.chimera.instances()
        slowest_s = max(slowest_s, trial.since_s() - before_s)
    trial.note(f"slowest admin answer {slowest_s * 1000:.0f} ms in {NVML_HANG_S:.0f} s")
    if slowest_s > SLOWEST_ADMIN_S:
        trial.broken("the event loop waited for NVML")
    trial.driver.says("hang", 0)
    trial.expect("NVML answers again", lambda: trial.events("nvml_answers"), 15.0)
    trial.good_again("w1")
    if any(row["restarts"] for row in trial.chimera.instances()):
        trial.broken("a worker was restarted for it")


def driver_mismatch(trial: Trial) -> None:
    """The driver was updated under us: at the next start NVML says 18. The GPU's worker waits, the CPU serves."""
    trial.chimera.start().ready(1)
    trial.chimera.client.post("/admin/instances/spawn", json={"gpu": GPU_A, "wait": True}).raise_for_status()
    trial.chimera.ready(2).stop()
    trial.driver.says("init", MISMATCH)
    trial.chimera.start().ready(1)
    trial.inject()
    trial.begin_load()

    def said() -> bool:
        row = trial.chimera.instance("w2")
        text = f"{row.get('problem')} {row.get('trouble')} {row.get('last_exit')}"
        return row["state"] not in ("IDLE", "BUSY") and "version" in text

    trial.detect_state("the GPU's worker waits and says why", said, 10.0)
    trial.told("w2", trial.chimera.instance("w2"))
    trial.good_again("w1", ready=1)
    trial.driver.says("init", 0)  # the reboot
    trial.good_again("w2", within_s=GPU_BACK_S, from_s=trial.since_s())


def silent_cpu_fallback(trial: Trial) -> None:
    """A GPU's worker computes on the CPU without a word: restarted once, then degraded and avoided."""
    worker = _worker_on(trial, GPU_A)
    before = trial.chimera.instance(worker)["restarts"]
    trial.only(worker, size_vram=0, hide_from_nvml=True, library="cpu", tokens=6, token_s=0.03)
    trial.inject()
    trial.order(worker, "restart")
    trial.detect("worker_degraded", worker=worker, within_s=60.0)
    shown = lambda: trial.chimera.instance(worker).get("degraded") is True  # noqa: E731
    if trial.expect("it is shown as degraded", shown, 10.0):
        trial.told(worker, trial.chimera.instance(worker))
        restarts = trial.chimera.instance(worker)["restarts"] - before
        trial.note(f"{restarts} restarts, one of them ordered")
        if restarts != 2:
            trial.broken(f"{restarts - 1} restarts by the check, not 1")
    trial.good_again(ready=1)
    trial.behave()
    trial.order(worker, "restart")
    trial.expect("it is no longer degraded", lambda: not trial.chimera.instance(worker).get("degraded"))
    trial.good_again(worker, from_s=trial.since_s())


SCENARIOS = (
    Scenario("Xid 31", "fake", lambda trial: xid_of_an_application(trial, 31), gpus=True, cuts=True, quick=True),
    Scenario("Xid 94", "fake", lambda trial: xid_of_an_application(trial, 94), gpus=True, cuts=True),
    Scenario("Xid 79", "fake", xid_79, gpus=True, cuts=True),
    Scenario("GPU lost and back", "fake", gpu_lost_and_back, gpus=True, cuts=True),
    Scenario("NVML hung for 60 s", "fake", nvml_hung, gpus=True, slow=True),
    Scenario("driver mismatch", "fake", driver_mismatch, {"WORKERS": "cpu=1"}, gpus=True, begins=False),
    Scenario("silent CPU fallback", "fake", silent_cpu_fallback, gpus=True, cuts=True),
)
