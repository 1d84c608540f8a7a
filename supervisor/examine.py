"""Who and what `chimera doctor` looks at, and how: each check in a thread with a deadline, all at once.

Nothing is changed. What hangs (a driver, a network file system) is left alone when its time is over.
"""

import os
import pwd
import shlex
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import trio

from supervisor.config import Settings
from supervisor.doctor import Finding, failed, overdue, unseen

# Without persistence mode a driver takes seconds for each GPU to begin.
CHECK_TIMEOUT_S = 30.0
# Within a check: what one program that is asked may take.
PROGRAM_TIMEOUT_S = 5.0
UNIT = "chimera.service"
# There only on a machine that was booted with systemd: sd_booted(3).
BOOTED = Path("/run/systemd/system")
# What of the unit is looked at: systemctl(1), show.
PROPERTIES = ("LoadState", "ActiveState", "SubState", "UnitFileState", "StatusText", "Result", "User", "MainPID",
              "NeedDaemonReload", "Delegate", "ExecStart", "FragmentPath", "LimitNOFILE", "TasksMax")  # fmt: skip

Check = Callable[[], Sequence[Finding]]


@dataclass(frozen=True, slots=True)
class Account:
    """Whose rights count: the service's user, else who asks."""

    uid: int
    gid: int
    name: str
    home: Path

    @property
    def is_me(self) -> bool:
        """Whether it is who asks."""
        return self.uid == os.geteuid()


@dataclass(frozen=True, slots=True)
class Subject:
    """What is looked at. `pid`: of the Chimera that runs, `unit`: what systemd shows of the service, if it is ours.

    `hidden`: who asks may not read the settings' file, so that nothing is known of what depends on it.
    """

    env_file: Path
    environ: Mapping[str, str]
    settings: Settings
    faults: tuple[str, ...]
    hidden: bool
    account: Account
    pid: int | None = None
    unit: Mapping[str, str] = field(default_factory=dict)


def account_of(user: str | None) -> Account:
    """Return the account of a name, of who asks for None or an unknown one."""
    try:
        entry = pwd.getpwnam(user) if user else pwd.getpwuid(os.geteuid())
    except KeyError:
        return Account(os.geteuid(), os.getegid(), f"user {os.geteuid()}", Path(os.environ.get("HOME", "/")))
    own_home = os.environ.get("HOME") if entry.pw_uid == os.geteuid() else None
    return Account(entry.pw_uid, entry.pw_gid, entry.pw_name, Path(own_home or entry.pw_dir))


def asked(argv: Sequence[str], account: Account | None = None, environ: Mapping[str, str] | None = None) -> str | None:
    """Return what a program prints, as another user if root asks; None if it cannot be run or fails. Blocks."""
    done = run_as(argv, account, environ)
    return done.stdout if done is not None and done.returncode == 0 else None


def run_as(
    argv: Sequence[str], account: Account | None = None, environ: Mapping[str, str] | None = None
) -> "subprocess.CompletedProcess[str] | None":
    """Run a program with an account's rights where root asks, else with one's own; None if that cannot be. Blocks."""
    other = account if account is not None and os.geteuid() == 0 and not account.is_me else None
    try:
        return subprocess.run(
            argv, capture_output=True, text=True, errors="replace", timeout=PROGRAM_TIMEOUT_S, check=False,
            stdin=subprocess.DEVNULL, cwd="/", env=None if environ is None else dict(environ),
            user=None if other is None else other.uid, group=None if other is None else other.gid,
            extra_groups=None if other is None else os.getgrouplist(other.name, other.gid),
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None


def may(account: Account, path: Path, access: str) -> bool | None:
    """Say whether an account may do `access` (letters of r, w, x) there; None where that cannot be known. Blocks.

    The kernel is asked, by a program of that user: access lists and file systems have rules of their own.
    """
    if account.is_me:
        modes = {"r": os.R_OK, "w": os.W_OK, "x": os.X_OK}
        return os.access(path, sum(modes[letter] for letter in access))
    if os.geteuid() != 0:
        return None
    done = [run_as(["test", f"-{letter}", str(path)], account) for letter in access]
    return None if None in done else all(one is not None and one.returncode == 0 for one in done)


def unit_shown(env_file: Path) -> dict[str, str]:
    """Return what systemd shows of the service, if it is of these settings; nothing where there is none. Blocks."""
    if not BOOTED.is_dir():
        return {}
    said = asked(["systemctl", "show", UNIT, *(f"--property={name}" for name in PROPERTIES)])
    shown = dict(line.split("=", 1) for line in (said or "").splitlines() if "=" in line)
    return shown if str(env_file.absolute()) in shlex.split(shown.get("ExecStart", "").replace(";", " ")) else {}


async def examine(checks: Mapping[str, Check], timeout_s: float = CHECK_TIMEOUT_S) -> list[Finding]:
    """Carry out every check, each within `timeout_s`; return what they found, in their order.

    Cancellation leaves the threads alone that hang.
    """
    found: dict[str, Sequence[Finding]] = {}

    async def one(name: str, check: Check) -> None:
        found[name] = [overdue(name, timeout_s)]
        with trio.move_on_after(timeout_s):
            found[name] = await trio.to_thread.run_sync(_told, name, check, abandon_on_cancel=True)

    async with trio.open_nursery() as nursery:
        for name, check in checks.items():
            nursery.start_soon(one, name, check)
    return [finding for name in checks for finding in found[name]]


def _told(name: str, check: Check) -> Sequence[Finding]:
    """A check that fails is a finding, and no reason not to hear of the others."""
    try:
        return check()
    except PermissionError as error:
        return [unseen(name, str(error.filename or "it"))]
    except Exception as error:
        return [failed(name, f"{type(error).__name__}: {' '.join(str(error).split())}")]
