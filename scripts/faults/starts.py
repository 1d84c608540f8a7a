"""Faults around the start of workers: ports, slowness, crash loops, disks, the model store, the clock."""

import signal
import socket
from contextlib import closing
from functools import partial

from scripts.faults.load import wait_until
from scripts.faults.machine import ShiftedClock, cpu_s, fill, full_disk, signalled
from scripts.faults.row import MIB
from scripts.faults.scenario import LATE_S, NOTICED_S, SLACK, START_S, Scenario
from scripts.faults.stage import Stuck
from scripts.faults.trial import Trial

HOUR_S = 3600
CRASHES = 50
CRASHING_S = 60.0
LOOP_LOG_BYTES = 1 * MIB
LOOP_CPU_SHARE = 0.5


def taken(port: int) -> socket.socket:
    """Hold a port, as somebody else's server would; tries for as long as its last holder is still going."""
    holder = socket.socket()
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)

    def bound() -> bool:
        try:
            holder.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True

    if not wait_until(bound, 5.0, 0.001):
        raise Stuck(f"port {port} did not become free")
    holder.listen()
    return holder


def port_taken_before_start(trial: Trial) -> None:
    """Somebody else has the first worker's port already."""
    port = trial.port_of("w1")
    with closing(taken(port)):
        trial.chimera.start()
        trial.inject()
        moved = lambda: trial.ready_count() == 2 and trial.port_of("w1") != port  # noqa: E731
        trial.detect_state("w1 ready on another port", moved, 30.0)
        trial.begin_load()
        trial.good_again("w1")


def port_taken_at_restart(trial: Trial) -> None:
    """A worker dies, and somebody else takes its port before it is back."""
    port, serve = trial.port_of("w1"), trial.serve("w1")
    trial.inject(trial.group("w1"))
    signalled(serve, signal.SIGKILL)
    with closing(taken(port)):
        trial.detect("worker_stopping", worker="w1", within_s=NOTICED_S * SLACK)
        trial.good_again("w1")
        if trial.port_of("w1") == port:
            trial.broken("it kept a port that somebody else had")


def slow_start(trial: Trial) -> None:
    """A worker does not answer within START_TIMEOUT_S of its start."""
    trial.only("w1", start_s=60)
    trial.order("w1", "restart")
    trial.must("w1 starts", lambda: trial.chimera.instance("w1")["state"] == "STARTING", pause_s=0.005)
    trial.inject(trial.group("w1"))
    # the harness sees the start some milliseconds after it
    event = trial.detect(
        "worker_stopping", worker="w1", was="STARTING", within_s=START_S + 2 + LATE_S, not_before_s=START_S - 0.5
    )
    if event and "did not answer" not in event.get("cause", ""):
        trial.broken(f"its cause does not say so: {event.get('cause')}")
    trial.behave()
    trial.good_again("w1")


def crash_loop(trial: Trial) -> None:
    """Fifty failed starts in a row; the operator cuts the waits short. What does it cost Chimera?"""
    pid, serve = trial.chimera_pid(), trial.serve("w1")
    logs = trial.chimera.state_dir / "logs" / "w1.log"
    trial.only("w1", exit_at_start=7)
    cpu_before_s, log_before = cpu_s(pid), logs.stat().st_size
    trial.inject(trial.group("w1"))
    signalled(serve, signal.SIGKILL)
    trial.detect("worker_stopping", worker="w1", within_s=NOTICED_S * SLACK)

    def crashed() -> bool:
        row = trial.chimera.instance("w1")
        if row["state"] == "BACKOFF" and row["restarts"] < CRASHES:
            trial.order("w1", "restart")
        return bool(row["restarts"] >= CRASHES and row["state"] == "BACKOFF")

    took = trial.expect(f"{CRASHES} starts", crashed, CRASHING_S)
    row = trial.chimera.instance("w1")
    looped_s = max(1.0, trial.since_s())
    share, grown = (cpu_s(pid) - cpu_before_s) / looped_s, logs.stat().st_size - log_before
    trial.note(f"{row['restarts']} starts in {looped_s:.0f} s: CPU {share:.0%} of a core, log {grown // 1024} KiB")
    trial.told("w1", row)
    if took and row["last_exit"]["code"] != 7:
        trial.broken(f"last_exit says {row['last_exit']['code']}, not 7")
    if grown > LOOP_LOG_BYTES or share > LOOP_CPU_SHARE:
        trial.broken("the loop cost too much")
    trial.behave()
    trial.order("w1", "restart")
    trial.good_again("w1")


def log_disk_full(trial: Trial) -> None:
    """LOG_DIR takes not one byte more, Chimera's own log included; a worker dies and must come back."""
    folder = trial.folder / "logs"
    how = trial.stack.enter_context(full_disk(folder, [f"{name}.log" for name in ("primary", "w1", "w2", "w3")]))
    own = folder / "chimera.log"
    own.symlink_to("/dev/full") if how.startswith("links") else own.touch()
    (trial.folder / "err.txt").symlink_to(own)
    trial.chimera.env["LOG_DIR"] = str(folder)
    trial.begin()
    fill(folder)
    trial.note(f"the disk: {how}")
    trial.inject(trial.group("w1"))
    signalled(trial.serve("w1"), signal.SIGKILL)
    trial.detect("worker_stopping", worker="w1", within_s=NOTICED_S * SLACK)
    trial.good_again("w1")
    spawned = trial.chimera.client.post("/admin/instances/spawn", json={"gpu": "cpu"})
    if spawned.status_code != 202:
        trial.broken(f"a spawn was refused: {spawned.text}")
    trial.expect("a new worker ready", lambda: trial.ready_count() == 3)


def clock_jump(trial: Trial) -> None:
    """The wall clock jumps an hour on, then an hour back from where it was: nothing restarts, no answer ends."""
    clock = ShiftedClock(trial.folder)
    trial.chimera.env |= clock.environ()
    trial.begin()
    for jump_s in (HOUR_S, -HOUR_S):
        trial.stream_on("w1")
        trial.inject()
        clock.jump(jump_s)
        jumped = partial(_jumped, trial, jump_s)
        trial.order("w2", "cordon")  # an event, which must carry the new time: the clock did jump for Chimera
        trial.order("w2", "uncordon")
        trial.detect_state("events have the new time", jumped, 10.0)
        trial.rest(5.0)
        trial.good_again("w1")
    restarts = {row["id"]: row["restarts"] for row in trial.chimera.instances()}
    if any(restarts.values()):
        trial.broken(f"workers were restarted: {restarts}")


def _jumped(trial: Trial, jump_s: int) -> bool:
    """Whether the newest event's time is a jump away from the machine's clock, on which the injection was noted."""
    return abs(trial.age_of(trial.chimera.events()[-1]) - jump_s) < HOUR_S / 2


def pull_fails_twice(trial: Trial) -> None:
    """The required model is not there, and two pulls of it fail. Requests wait until it is."""
    trial.behave(pull_error="pull model manifest: 503 Service Unavailable", pull_error_for=2, pull_s=0.4)
    trial.inject()
    trial.chimera.start()
    trial.must("a gateway", trial.chimera.instances)
    trial.begin_load()
    trial.detect("model_unavailable", within_s=15.0)
    trial.expect("the model in the store", lambda: trial.events("model_present"), 20.0)
    failures = len(trial.events("model_unavailable"))
    trial.note(f"{failures} pulls failed")
    if failures != 2:
        trial.broken(f"{failures} failed pulls in the events, not 2")
    trial.good_again("w1")


def no_nvml(trial: Trial) -> None:
    """No driver at the start: the CPU serves. When the driver comes, its GPUs are seen."""
    back = trial.driver.unload()
    trial.begin()
    fault = trial.chimera.client.get("/admin/gpus").json()["fault"]
    trial.note(f"said: {fault}")
    if not fault:
        trial.broken("nothing says why there are no GPUs")
    trial.inject()
    back()
    trial.detect_state("the GPUs are seen", lambda: len(trial.chimera.gpus()) == 2, 30.0)
    trial.good_again("w1")


SCENARIOS = (
    Scenario("port taken before start", "fake", port_taken_before_start, begins=False, quick=True),
    Scenario("port taken at restart", "fake", port_taken_at_restart, cuts=True, quick=True),
    Scenario("start slower than its limit", "fake", slow_start, quick=True),
    Scenario("crash loop of 50", "fake", crash_loop, cuts=True),
    Scenario("log disk full", "fake", log_disk_full, cuts=True, begins=False),
    Scenario("clock jump", "fake", clock_jump, begins=False, tokens=40, quick=True),
    Scenario("pull fails twice", "fake", pull_fails_twice, {"REQUIRED_MODEL": "needed"}, begins=False, model="needed",
             quick=True),
    Scenario("no NVML", "fake", no_nvml, {"WORKERS": "cpu=2"}, gpus=True, begins=False),
)  # fmt: skip
