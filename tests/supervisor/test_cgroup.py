"""Cgroups of workers: only where they are delegated, and nothing gets out of them alive."""

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from supervisor.cgroup import Cgroups, WorkerCgroup, find_delegated, oom_kills_in, own_cgroup
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


@pytest.mark.parametrize(
    ("uid", "inside", "found"),
    [
        ("ours", "us", True),
        ("ours", "us and another", False),  # a terminal's scope: others live in it
        ("another's", "us", False),
        ("root", "us", False),  # everything is root's
    ],
)
def test_a_cgroup_that_was_given_to_our_user_alone_is_delegated(
    machine: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch, uid: str, inside: str, found: bool
) -> None:
    own, itself, mounts = machine
    owner = 1234 if uid == "ours" else 0
    monkeypatch.setattr(os, "getxattr", _no_such_attribute)
    monkeypatch.setattr(os, "geteuid", lambda: 0 if uid == "root" else 1234)
    if owner != own.stat().st_uid:
        plain = Path.stat
        monkeypatch.setattr(Path, "stat", lambda path, **more: _owned(plain(path, **more), owner))
    (own / "cgroup.procs").write_text(f"{os.getpid()}\n" + ("1\n" if inside != "us" else ""))
    assert (find_delegated(SERVICE, itself, mounts) == Cgroups(own)) is found


def _owned(status: os.stat_result, uid: int) -> os.stat_result:
    return os.stat_result((*status[:4], uid, *status[5:]))


@pytest.mark.parametrize(
    ("line", "inside", "found"),
    [
        ("42 27 0:39 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw", "/a/b", "/sys/fs/cgroup/a/b"),
        ("42 27 0:39 / /odd\\040place rw - cgroup2 cgroup2 rw", "/a", "/odd place/a"),
        ("42 27 0:39 /a /sys/fs/cgroup rw - cgroup2 cgroup2 rw", "/a/b", "/sys/fs/cgroup/b"),
        ("42 27 0:39 /a /sys/fs/cgroup rw - cgroup2 cgroup2 rw", "/ab", None),  # it is not in what is mounted
        (" - cgroup2 cgroup2 rw", "/a", None),  # a line without its fields
        ("42 27 0:39 / /sys/fs/cgroup rw - cgroup cgroup rw,memory", "/a", None),
        ("", "/a", None),
    ],
)
def test_a_cgroup_is_found_where_it_is_mounted(tmp_path: Path, line: str, inside: str, found: str | None) -> None:
    (tmp_path / "own").write_text(f"0::{inside}\n")
    (tmp_path / "mounts").write_text("22 1 0:5 / /proc rw - proc proc rw\n" + line + "\n")
    assert own_cgroup(tmp_path / "own", tmp_path / "mounts") == (Path(found) if found else None)


def test_a_cgroup_that_cannot_be_made_or_is_gone_is_no_fault(tmp_path: Path) -> None:
    assert Cgroups(tmp_path / "gone").of("w1") is None
    gone = WorkerCgroup(tmp_path / "gone")
    gone.kill()
    gone.remove()
    assert gone.pids() == []


def test_oom_kills_are_counted_by_the_kernel(tmp_path: Path) -> None:
    events = tmp_path / "memory.events"
    events.write_text("low 0\nhigh 0\nmax 12\noom 3\noom_kill 2\noom_group_kill 1\n")
    assert oom_kills_in(events) == 2
    assert oom_kills_in(tmp_path / "gone") is None


@pytest.fixture
def real_root() -> Iterator[Path | None]:
    """A cgroup v2 of our own, None where this machine does not let us make one."""
    parent = own_cgroup() or root_cgroup()
    root = parent / f"chimera-test-{os.getpid()}" if parent is not None else None
    try:
        if root is not None:
            root.mkdir()
    except OSError:
        root = None
    yield root
    if root is not None:
        root.rmdir()


def root_cgroup() -> Path | None:
    """The root of cgroup v2, where our own is that: a real service's never is, and a test may use it all the same."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        if " - cgroup2 " in line and "0::/" in Path("/proc/self/cgroup").read_text().splitlines():
            return Path(line.split()[4])
    return None


async def test_what_has_left_its_process_group_is_ended_with_its_cgroup(real_root: Path | None, tmp_path: Path) -> None:
    escapes = "setsid sleep 60 & echo $!; wait"
    group = Cgroups(real_root).of("w1") if real_root is not None else None
    assert (group is None) is (real_root is None)
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


async def test_a_worker_that_may_not_join_runs_all_the_same(tmp_path: Path) -> None:
    log, gone = tmp_path / "w1.log", WorkerCgroup(tmp_path / "gone")
    command = Command(("/bin/sh", "-c", "echo it runs"), dict(os.environ))
    async with running(command, log, stop_timeout_s=5, cgroup=gone) as child:
        with trio.fail_after(30):
            await child.wait()
    assert log.read_text().splitlines()[-1] == "it runs"
    assert child.exit_status is not None
    assert child.exit_status.code == 0


async def test_a_start_that_fails_leaves_no_cgroup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    group = Cgroups(tmp_path).of("w1")
    assert group is not None
    monkeypatch.setattr(WorkerCgroup, "joined", lambda _group, argv: argv)
    with pytest.raises(StartFailed):
        async with running(Command(("/no/such/program",), {}), tmp_path / "log", stop_timeout_s=5, cgroup=group):
            pass
    assert not group.path.exists()
