"""What is wrong with a worker, told for people: what, since when, what was tried, what happens next."""

from datetime import UTC, datetime, timedelta

import trio

from supervisor.health import Finding
from supervisor.lifecycle import State
from supervisor.standing import SERVING, Goal, Standing
from supervisor.words import Trouble


def trouble_of(worker: Standing) -> Trouble | None:
    """Return what is wrong with a worker now, None when nothing is."""
    if worker.state is State.QUARANTINED or worker.goal is Goal.QUARANTINE:
        return _quarantined(worker)
    if worker.failing_since is not None:
        return _failing(worker, worker.failing_since)
    if worker.watch is not None and worker.watch.finding is not None:
        return _suspected(worker.watch.finding, put_off=worker.watch.put_off)
    if worker.placed.fault is not None and worker.state in SERVING:
        return Trouble(
            worker.placed.fault, _ago(worker.placed.since), "it was restarted once, with the same result",
            f"it takes a request only when no other worker can; after a repair: chimera restart {worker.spec.id}",
        )  # fmt: skip
    if worker.process is not None and worker.process.log_problem is not None:
        return Trouble(
            worker.process.log_problem, worker.process.started_at, "it runs without a log",
            "its log is tried again at its next start",
        )  # fmt: skip
    return None


def problem_of(worker: Standing) -> str | None:
    """Return the same in one line."""
    trouble = trouble_of(worker)
    return f"{trouble.what}; {trouble.tried}" if trouble is not None else None


def _quarantined(worker: Standing) -> Trouble:
    since = worker.last_exit.at if worker.last_exit is not None else datetime.now(UTC)
    return Trouble(
        worker.cause or "its GPU is quarantined", since, "its process was ended",
        f"it starts again when {worker.spec.placement} is released, by itself or by the operator",
    )  # fmt: skip


def _failing(worker: Standing, since: datetime) -> Trouble:
    tried = f"failed {worker.back_off.failures} times in a row"
    if worker.next_start_at is not None:
        left_s = max(0.0, (worker.next_start_at - datetime.now(UTC)).total_seconds())
        return Trouble(worker.failure, since, tried, f"it is started again in {left_s:.0f} s")
    return Trouble(worker.failure, since, tried, "it is being started now")


def _suspected(finding: Finding, *, put_off: bool) -> Trouble:
    tried = "it takes a request only when no other worker can"
    when = "as soon as others that were are ready again" if put_off else "if that does not end by itself"
    return Trouble(finding.what, _ago(finding.since), tried, f"it is restarted {when}")


def _ago(moment: float) -> datetime:
    """Return when a moment of trio's clock was, for people."""
    return datetime.now(UTC) - timedelta(seconds=max(0.0, trio.current_time() - moment))
