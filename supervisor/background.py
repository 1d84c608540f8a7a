"""Starting Chimera in the background, and stopping it."""

import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from supervisor.config import Settings
from supervisor.errors import StartRefused
from supervisor.lock import holder
from supervisor.ports import listens

# A first start may pull a model of many gigabytes.
START_TIMEOUT_S = 3600.0
POLL_S = 0.2
# What stopping takes beyond its own two limits.
STOP_GRACE_S = 30.0

_ON_THE_WAY = ("STARTING", "WARMING")


def log_path(settings: Settings) -> Path:
    """Where a Chimera in the background writes its own log."""
    return settings.log_dir / "chimera.log"


def start(
    settings: Settings, env_file: Path, fleet: Callable[[], dict[str, Any] | None], say: Callable[[str], None]
) -> int:
    """Start `chimera run` as a session of its own and return its pid when the fleet is ready.

    Raises StartRefused when one runs already, when it ends early (with the reason it gave), or when no worker
    becomes ready. What was started is left running in the last case, so that its cause can be looked at.
    """
    if pid := holder(settings.state_dir):
        raise StartRefused(f"chimera runs already (process {pid}); see: chimera status")
    path = log_path(settings)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        log = path.open("ab")
    except OSError as error:
        raise StartRefused(f"LOG_DIR: {path} cannot be written: {error.strerror}") from error
    with log:
        begin = log.tell()
        process = subprocess.Popen(
            [sys.executable, "-m", "supervisor", "--env-file", str(env_file), "run"],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip

    def ask() -> dict[str, Any] | None:
        if process.poll() is not None:
            raise StartRefused(_last_words(path, begin) or f"it ended at once; see {path}")
        # another program, or another Chimera, may have the port: what that one answers says nothing of this one
        return fleet() if listens(process.pid, settings.gateway_port) else None

    answer = _settled(ask, say)
    if answer is None:
        raise StartRefused(f"no gateway answered within {START_TIMEOUT_S:.0f} s; see {path}")
    rows = answer["instances"]
    if rows and not any(row["state"] in ("IDLE", "BUSY") for row in rows):
        problem = next((row["problem"] for row in rows if row["problem"]), "see: chimera status")
        raise StartRefused(
            f"no worker became ready: {problem}; Chimera goes on trying (process {process.pid}, log: {path}), "
            "until: chimera stop"
        )
    return process.pid


def _settled(ask: Callable[[], dict[str, Any] | None], say: Callable[[str], None]) -> dict[str, Any] | None:
    """Ask until no worker is on its way, for START_TIMEOUT_S; return the last answer. Meanwhile say what is done."""
    pause, said, answer = threading.Event(), "", None
    for _ in range(int(START_TIMEOUT_S / POLL_S)):
        answer = ask()
        if answer is not None:
            if not any(row["state"] in _ON_THE_WAY for row in answer["instances"]):
                break
            doing = (answer.get("primary") or {}).get("store")
            if doing and doing != said:
                say(doing)
                said = doing
        pause.wait(POLL_S)
    return answer


def stop(settings: Settings) -> int | None:
    """Ask the Chimera of this state directory to stop; return its pid when it has ended, None if none runs.

    Raises StartRefused when it does not end in the time that it may take.
    """
    pid = holder(settings.state_dir)
    if pid is None:
        return None
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return pid  # it has ended since
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGTERM)
        timeout_s = settings.drain_timeout_s + settings.stop_timeout_s + STOP_GRACE_S
        ended, _, _ = select.select([pidfd], [], [], timeout_s)
    except ProcessLookupError:
        return pid
    except PermissionError as error:
        raise StartRefused(f"chimera (process {pid}) is another user's; stop it as that user, or as root") from error
    finally:
        os.close(pidfd)
    if not ended:
        raise StartRefused(f"chimera (process {pid}) has not ended within {timeout_s:.0f} s")
    return pid


def _last_words(path: Path, begin: int) -> str:
    """Return what a run that ended early said on its way out, as one line."""
    with path.open("rb") as log:
        log.seek(begin)
        lines = [line for line in log.read().decode("utf-8", "replace").splitlines() if line.startswith("chimera: ")]
    return "; ".join(line.removeprefix("chimera: ") for line in lines)
