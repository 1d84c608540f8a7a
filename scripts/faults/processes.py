"""Faults of a running worker's processes: killed, stopped, deaf, hung, short of memory."""

import signal
from functools import partial
from typing import Any

from scripts.faults.machine import alive, oom_kill, short_of_memory, signalled
from scripts.faults.row import first_good, seconds
from scripts.faults.scenario import (
    CANARY_S,
    FIRST_BYTE_S,
    HANG_S,
    LATE_S,
    NOTICED_S,
    REPLACED_S,
    SLACK,
    STALL_S,
    STOP_S,
    WATCHDOG_GRACE_S,
    Scenario,
)
from scripts.faults.trial import Trial

MIB = 1024**2
HANG_BY_S = HANG_S + WATCHDOG_GRACE_S + LATE_S
STALL_BY_S = STALL_S + WATCHDOG_GRACE_S + LATE_S
STUCK_BY_S = 90.0  # a model's end may be a minute past before it is called stuck
CANARY_BY_S = CANARY_S + FIRST_BYTE_S + WATCHDOG_GRACE_S + LATE_S
INVENTORY_S = 12.0  # which models a worker holds is asked every ten seconds
OOM_LIMIT_BYTES = 24 * MIB


def serve_killed(trial: Trial) -> None:
    """SIGKILL of serve alone; its runner, left alone, is a leftover in its group."""
    victims = trial.group("w1")
    trial.stream_on("w1")
    trial.inject(victims)
    signalled(victims[0], signal.SIGKILL)
    trial.detect("worker_stopping", worker="w1", within_s=NOTICED_S * SLACK)
    trial.replaced("w1", within_s=REPLACED_S * SLACK)
    trial.expect("its runner gone", lambda: not any(map(alive, victims)))
    trial.good_again("w1")


def runner_killed_idle(trial: Trial) -> None:
    """SIGKILL of the runner while nobody asks: the next request loads the model again."""
    with trial.idle():
        runner = trial.runner("w1")
        trial.inject([runner])
        signalled(runner, signal.SIGKILL)
        trial.detect("runner_lost", "worker_stopping", worker="w1", within_s=5.0)
    trial.good_again("w1")


def runner_killed_mid_stream(trial: Trial) -> None:
    """SIGKILL of the runner while it answers."""
    runner = trial.runner("w1")
    trial.stream_on("w1")
    trial.inject([runner])
    signalled(runner, signal.SIGKILL)
    trial.detect("runner_lost", "worker_stopping", worker="w1", within_s=5.0)
    trial.good_again("w1")


def serve_stopped(trial: Trial) -> None:
    """SIGSTOP of serve: connections are taken, nothing is answered."""
    victims = trial.group("w1")
    trial.inject(victims)
    signalled(victims[0], signal.SIGSTOP)
    trial.detect("worker_hung", "worker_stalled", worker="w1", within_s=HANG_BY_S, not_before_s=HANG_S)
    trial.good_again("w1")


def runner_stopped_idle(trial: Trial) -> None:
    """SIGSTOP of the runner while nobody asks."""
    with trial.idle():
        victims = trial.group("w1")
        trial.inject(victims)
        signalled(trial.runner("w1"), signal.SIGSTOP)
        trial.detect("worker_hung", worker="w1", within_s=HANG_BY_S, not_before_s=HANG_S)
    trial.good_again("w1")


def runner_stopped_mid_stream(trial: Trial) -> None:
    """SIGSTOP of the runner while it answers: probes stay green, only the answer's silence tells."""
    victims, runner = trial.group("w1"), trial.runner("w1")
    trial.stream_on("w1")
    trial.inject(victims)
    signalled(runner, signal.SIGSTOP)
    trial.detect("worker_hung", "worker_stalled", worker="w1", within_s=HANG_BY_S, not_before_s=HANG_S)
    trial.good_again("w1")


def term_ignored(trial: Trial) -> None:
    """The operator restarts a worker that does not heed TERM: KILL after STOP_TIMEOUT_S, and not before."""
    victims = trial.group("w1")
    trial.only("w1", ignore_term=True)
    trial.inject(victims)
    trial.order("w1", "restart")
    trial.expect("its processes gone", lambda: not any(map(alive, victims)))
    trial.detect("worker_starting", worker="w1", within_s=STOP_S + 5 + LATE_S, not_before_s=STOP_S)
    last = trial.chimera.instance("w1")["last_exit"]
    if last["signal"] != "SIGKILL":
        trial.broken(f"last_exit says {last['signal']}, not SIGKILL")
    trial.behave()
    trial.good_again("w1")


def serve_gone_runner_alive(trial: Trial) -> None:
    """serve dies, its runner ignores TERM and would hold its memory for ever."""
    trial.only("w1", leave_runner=True)
    trial.order("w1", "restart")  # a runner takes its stubbornness at its start
    trial.must("w1 is back", lambda: trial.chimera.instance("w1")["restarts"] == 1 and trial.ready_count() == 2)
    victims = trial.group("w1")
    trial.inject(victims)
    signalled(victims[0], signal.SIGKILL)
    trial.detect("worker_stopping", worker="w1", within_s=NOTICED_S * SLACK)
    trial.expect("its runner gone", lambda: not any(map(alive, victims)))
    trial.behave()
    trial.replaced("w1", within_s=REPLACED_S * SLACK)
    trial.good_again("w1")


def no_first_byte(trial: Trial) -> None:
    """Requests to one worker are taken and never answered, its probes stay green."""
    trial.only("w1", hang_after=0, token_s=0.03)
    trial.inject()
    trial.must("w1 is asked", lambda: trial.chimera.instance("w1")["inflight"])
    by_s = FIRST_BYTE_S + WATCHDOG_GRACE_S + LATE_S
    trial.detect("worker_hung", "worker_stalled", worker="w1", within_s=by_s, not_before_s=FIRST_BYTE_S - 0.1)
    # one token asked for does not come either
    trial.expect("w1 replaced", lambda: trial.events("worker_stopping", worker="w1"))
    trial.behave()
    trial.good_again("w1")


def stalled_answer(trial: Trial) -> None:
    """An answer falls silent after two tokens, its worker's probes stay green."""
    trial.only("w1", hang_after=2, tokens=6, token_s=0.03)
    trial.inject()
    trial.detect("worker_stalled", "worker_hung", worker="w1", within_s=STALL_BY_S, not_before_s=STALL_S)
    trial.behave()
    trial.good_again("w1")


def hung_while_idle(trial: Trial) -> None:
    """A worker that nobody asks has stopped computing, its probes stay green: only one token asked for shows it."""
    trial.rest(INVENTORY_S)
    with trial.idle():
        trial.only("w1", hang_after=0)
        trial.inject()
        trial.detect("worker_hung", worker="w1", within_s=CANARY_BY_S, not_before_s=CANARY_S)
        trial.behave()
    trial.good_again("w1")


def stuck_in_stopping(trial: Trial) -> None:
    """A model's time in /api/ps is long past and it does not go: Ollama's "Stopping..." for ever (ollama#7779)."""
    with trial.idle():
        trial.only("w1", expires_at="2020-01-01T00:00:00Z")
        trial.inject(trial.group("w1"))
        trial.detect("worker_stuck", "worker_hung", worker="w1", within_s=STUCK_BY_S)
        trial.behave()
    trial.good_again("w1")


def oom_killed(trial: Trial) -> None:
    """The kernel's OOM killer ends serve."""
    victims = trial.group("w1")
    with short_of_memory(f"chimera-faults-{victims[0].pid}", OOM_LIMIT_BYTES) as group:
        if group is None:
            trial.note("not shown: this machine allows no memory cgroup here")
            trial.row.good_s = first_good(trial.load.outcomes, 0.0)
            return
        trial.inject(victims)
        oom_kill(group, victims[0])
        trial.detect("worker_stopping", worker="w1", within_s=10.0)
        trial.good_again("w1")

        def named() -> bool:
            return "OOM" in (trial.chimera.instance("w1").get("last_exit") or {}).get("reason", "")

        trial.expect("last_exit names the OOM killer", named, 5.0)


def supervisor_killed(trial: Trial) -> None:
    """kill -9 of Chimera itself: its workers end by the parent-death signal, the next run finds a clean house."""
    left = trial.chimera.marked()
    trial.inject(left)
    trial.kill_chimera()
    trial.detect_state("its workers gone", lambda: not any(map(alive, left)), 10.0)
    _start_again(trial)


def leftovers(trial: Trial) -> None:
    """The same with workers that ignore every polite signal: the next run ends them before it starts its own."""
    trial.behave(ignore_term=True, leave_runner=True)
    for row in trial.chimera.instances():  # a runner takes its stubbornness at its start
        trial.order(row["id"], "restart")
    again = lambda: trial.ready_count() == 2 and all(row["restarts"] == 1 for row in trial.chimera.instances())  # noqa: E731
    trial.must("both are back", again)
    trial.kill_chimera()
    left = trial.chimera.marked()
    trial.inject(left)
    if not left:
        trial.broken("nothing was left: this shows nothing")
    trial.behave()
    _start_again(trial, partial(trial.detect, "leftovers_ended", within_s=STOP_S + 10))
    if any(map(alive, left)):
        trial.broken("the former run's processes live on")


def _start_again(trial: Trial, then: "partial[Any] | None" = None) -> None:
    trial.chimera.start().ready(trial.scenario.workers)
    if then is not None:
        then()
    trial.good_again("w1")
    trial.note(f"good after {seconds((trial.row.good_s or 0) - (trial.row.detect_s or 0))} s more")


SCENARIOS = (
    Scenario("serve killed", "real", serve_killed, cuts=True, tokens=12),
    Scenario("runner killed, idle", "real", runner_killed_idle, tokens=12),
    Scenario("runner killed mid-stream", "real", runner_killed_mid_stream, cuts=True, tokens=40),
    Scenario("serve stopped", "real", serve_stopped, cuts=True, tokens=12),
    Scenario("runner stopped, idle", "real", runner_stopped_idle, cuts=True, tokens=12),
    Scenario("runner stopped mid-stream", "real", runner_stopped_mid_stream, cuts=True, tokens=40),
    Scenario("worker OOM-killed", "real", oom_killed, cuts=True, tokens=12),
    Scenario("supervisor killed (-9)", "real", supervisor_killed, cuts=True, tokens=12, resend=True),
    Scenario("leftovers of a killed supervisor", "fake", leftovers, cuts=True, resend=True),
    Scenario("TERM ignored", "fake", term_ignored, cuts=False, quick=True),
    Scenario("serve gone, its runner alive", "fake", serve_gone_runner_alive, cuts=True, quick=True),
    Scenario("no first byte", "fake", no_first_byte),
    Scenario("answer stalls", "fake", stalled_answer, cuts=True, unary=False),
    Scenario("hung while idle", "fake", hung_while_idle, {"CANARY_AFTER_S": f"{CANARY_S:g}"}),
    Scenario("model stuck in stopping", "fake", stuck_in_stopping, slow=True),
)
