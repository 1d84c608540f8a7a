"""Cgroups of workers: only where they are delegated, and nothing gets out of them alive."""

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from supervisor import cgroup
from supervisor.cgroup import Cgroups, WorkerCgroup, find_delegated
from supervisor.command import Command
from supervisor.errors import StartFailed
from supervisor.process import running
from supervisor.procs import DEAD, stat_of

SERVICE = {"INVOCATION_ID": "0123"}
MOUNT = "42 27 0:39 / {root} rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path, Path]:
    """A service's own cgroup directory, and the two files of /proc that lead to it; delegated."""
    root = tmp_path / "cgroup"
    own = root / "system.slice/chimera.service"
    own.mkdir(parents=True)
    (own / "cgroup.procs").touch()
    (tmp_path / "self").write_text("1:name=systemd:/\n0::/system.slice/chimera.service\n")
    (tmp_path / "mounts").write_text("22 1 0:5 / /proc rw - proc proc rw\n" + MOUNT.format(root=root))
    monkeypatch.setattr(os, "getxattr", lambda _path, name: b"1" if name == "user.delegate" else b"0")
    return own, tmp_path / "self", tmp_path / "mounts"


def test_a_delegated_cgroup_is_found(machine: tuple[Path, Path, Path]) -> None:
    own, itself, mounts = machine
    assert find_delegated(SERVICE, itself, mounts) == Cgroups(own)


@pytest.mark.parametrize("lacking", ["service", "delegation", "mount", "own", "files"])
def test_without_a_delegation_cgroups_are_left_alone(
    machine: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch, lacking: str
) -> None:
    _, itself, mounts = machine
    match lacking:
        case "delegation":
            monkeypatch.setattr(os, "getxattr", _no_such_attribute)
        case "mount":
            mounts.write_text("22 1 0:5 / /proc rw - proc proc rw\n")
        case "own":
            itself.write_text("0::/\n")
        case "files":
            mounts.unlink()
    assert find_delegated({} if lacking == "service" else SERVICE, itself, mounts) is None


def _no_such_attribute(_path: Path, _name: str) -> bytes:
    raise OSError(61, "No data available")


def test_a_cgroup_that_cannot_be_made_is_a_failed_start(tmp_path: Path) -> None:
    with pytest.raises(StartFailed, match="worker-w1 cannot be made"):
        Cgroups(tmp_path / "gone").of("w1")
    WorkerCgroup(tmp_path / "gone").kill()
    WorkerCgroup(tmp_path / "gone").remove()
    assert WorkerCgroup(tmp_path / "gone").pids() == []


@pytest.fixture
def real_root() -> Iterator[Path | None]:
    """A cgroup v2 of our own, None where this machine does not let us make one."""
    mount = cgroup._mount_point(Path("/proc/self/mountinfo").read_text())
    inside = cgroup._own_path(Path("/proc/self/cgroup").read_text())
    if mount is None or inside is None:
        yield None
        return
    root = mount / inside.lstrip("/") / f"chimera-test-{os.getpid()}"
    try:
        root.mkdir()
    except OSError:
        yield None
        return
    yield root
    root.rmdir()


async def test_what_has_left_its_process_group_is_ended_with_its_cgroup(real_root: Path | None, tmp_path: Path) -> None:
    escapes = "setsid sleep 60 & echo $!; wait"
    group = Cgroups(real_root).of("w1") if real_root is not None else None
    log = tmp_path / "w1.log"
    async with running(
        Command(("/bin/sh", "-c", escapes), dict(os.environ)), log, stop_timeout_s=5, cgroup=group
    ) as leader:
        with trio.fail_after(30):
            while not log.read_text().strip():
                await trio.sleep(0.01)
        escaped = int(log.read_text())
        if group is not None:
            assert {leader.pid, escaped} <= set(group.pids())
    if group is None:
        os.kill(escaped, signal.SIGKILL)  # without a cgroup it has got away, as the report of this design says
        return
    left = stat_of(escaped)
    assert left is None or left.state in DEAD
    assert not group.path.exists()


def test_a_command_joins_and_then_is_what_it_was(tmp_path: Path) -> None:
    (tmp_path / "cgroup.procs").touch()
    argv = WorkerCgroup(tmp_path).joined(("/bin/sh", "-c", "echo $$ $0 $1", "a b", "$c"))
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as child:
        out, _ = child.communicate(timeout=30)
    assert out == f"{child.pid} a b $c\n"
    assert (tmp_path / "cgroup.procs").read_text() == f"{child.pid}\n"
