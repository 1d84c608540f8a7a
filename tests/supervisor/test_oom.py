"""A victim of the OOM killer is named: from the kernel's log, from its counter, and never without cause."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from supervisor import oom
from supervisor.cgroup import WorkerCgroup, own_cgroup
from supervisor.oom import OomMark, Sources, killed, mark, own_sources, sources_of, victims

# Recorded from kernel logs: a memory cgroup's kill, a whole machine's, and an older kernel's.
GROUP = (
    "6,817,52340112,-;oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=/,mems_allowed=0,"
    "oom_memcg=/w1,task_memcg=/w1,task=ollama,pid=4711,uid=0"
)
MACHINE = "3,818,52340200,-;Out of memory: Killed process 4712 (ollama) total-vm:90kB, anon-rss:80kB, file-rss:0kB"
INSIDE = "3,819,52340201,-;Memory cgroup out of memory: Killed process 4713 (ollama) total-vm:90kB, anon-rss:80kB"
OLD = "6,9,1,-;Killed process 4714 (ollama) total-vm:90kB, anon-rss:80kB"
INVOKED = "4,816,1,-;python invoked oom-killer: gfp_mask=0xcc0, order=0, oom_score_adj=0, pid=4711"
CERTAINLY = "OOM: the kernel ended process {} because memory ran out"
PROBABLY = "probably OOM: a process was killed, and the kernel has ended one because memory ran out"
LIMIT_BYTES = 64 * 1024**2
EATER = "import time\nkept = []\nwhile True: kept.append(bytearray(1 << 20)); kept[-1][::4096] = b'x' * 256"


@pytest.mark.parametrize(
    ("records", "named"),
    [
        ([GROUP], [4711]),
        ([MACHINE], [4712]),
        ([INSIDE], [4713]),
        ([OLD], [4714]),
        ([GROUP, INSIDE.replace("4713", "4711")], [4711]),  # one kill, told twice
        ([OLD, MACHINE, "6,1,2,-;x", GROUP], [4714, 4712, 4711]),
        (["3,1,2,-;Killed process " + "9" * 5000, "6,1,2,-;oom-kill:pid=" + "9" * 5000], []),  # no process's number
        (["6,1,2,-;eth0: link up pid=4711", INVOKED, "", "no record; at all"], []),
    ],
)
def test_the_kernels_log_names_its_victims(records: list[str], named: list[int]) -> None:
    assert victims(records) == named


@pytest.mark.parametrize(
    ("before", "after", "risen"),
    [
        (OomMark(), OomMark(), None),
        (OomMark(3), OomMark(), None),
        (OomMark(3), OomMark(5), 2),
        (OomMark(3), OomMark(3), 0),
        (OomMark(3, 0, covers=True), OomMark(5, 0, covers=True), 0),  # somebody else's
        (OomMark(3, 0, covers=True), OomMark(5, 1, covers=True), 1),
        (OomMark(3, 0), OomMark(5, 0), 2),  # v1 does not count what is below
        (OomMark(None, 0), OomMark(None, 1), 1),
    ],
)
def test_counts_that_rise_are_compared(before: OomMark, after: OomMark, risen: int | None) -> None:
    assert before.risen(after) == risen


@pytest.mark.parametrize(
    ("before", "after", "log", "said"),
    [
        (3, 4, GROUP, "OOM: the kernel ended process 4711"),
        (3, 5, GROUP + "\n" + MACHINE, "OOM: the kernel ended process 4711"),
        (3, 4, MACHINE, "probably OOM"),  # it names another
        (3, 4, GROUP + "\n" + MACHINE, "probably OOM"),  # one kill is new, and that was another's
        (3, 3, GROUP, None),  # an old kill of a reused number
        (None, None, GROUP, "OOM: the kernel ended process 4711"),
        (None, None, MACHINE, None),
    ],
)
def test_a_kill_is_named_with_as_much_certainty_as_there_is(
    tmp_path: Path, before: int | None, after: int | None, log: str, said: str | None
) -> None:
    files = Sources(tmp_path / "vmstat", tmp_path / "kmsg")
    files.kmsg.write_text(log + "\n")
    if after is not None:
        files.vmstat.write_text(f"pgfault 1\noom_kill {after}\nswap_ra 3\n")
    found = killed({4711}, OomMark(before), files)
    assert (found is None) if said is None else (found or "").startswith(said)


def test_without_the_kernels_log_the_own_cgroups_count_makes_it_probable(tmp_path: Path) -> None:
    files = Sources(tmp_path / "vmstat", tmp_path / "none", events_v2=tmp_path / "memory.events")
    files.vmstat.write_text("oom_kill 7\n")
    events = tmp_path / "memory.events"
    events.write_text("low 0\nhigh 0\nmax 9\noom 1\noom_kill 0\noom_group_kill 0\n")
    before = mark(files)
    assert before == OomMark(7, 0, covers=True)
    files.vmstat.write_text("oom_kill 8\n")
    assert killed({1}, before, files) is None
    events.write_text("low 0\nhigh 0\nmax 9\noom 2\noom_kill 1\noom_group_kill 0\n")
    assert (killed({1}, before, files) or "").startswith("probably OOM")


@pytest.mark.parametrize(
    ("own", "control"),
    [
        ("9:name=systemd:/\n4:memory:/service/x\n0::/\n", "service/x/memory.oom_control"),
        ("4:cpu,memory:/\n", "memory.oom_control"),
        ("0::/service/x\n", None),
        ("nonsense\n", None),
    ],
)
def test_the_count_of_v1_is_where_our_memory_is_accounted(tmp_path: Path, own: str, control: str | None) -> None:
    (tmp_path / "own").write_text(own)
    found = sources_of(None, tmp_path / "own", tmp_path / "v1")
    assert found.control_v1 == (tmp_path / "v1" / control if control else None)
    assert found.events_v2 is None


def test_a_machine_that_tells_nothing_is_no_error(tmp_path: Path) -> None:
    nothing = tmp_path / "nothing"
    files = Sources(nothing, nothing, nothing, nothing)
    assert mark(files) == OomMark()
    assert killed({1}, mark(files), files) is None
    assert sources_of(None, nothing) == Sources()


@contextmanager
def small_cgroup(version: int) -> Iterator[tuple[Path, Sources] | None]:
    """A cgroup with little memory below our own, and where its kills are told; None where we cannot make one."""
    own = own_sources()
    if version == 2:
        parent = own_cgroup()
        limits = (("memory.max", str(LIMIT_BYTES)), ("memory.swap.max", "0"))
    else:
        parent = own.control_v1.parent if own.control_v1 is not None else None
        limits = (("memory.limit_in_bytes", str(LIMIT_BYTES)), ("memory.memsw.limit_in_bytes", str(LIMIT_BYTES)))
    child = parent / f"chimera-test-{os.getpid()}" if parent is not None else None
    try:
        if child is not None:
            child.mkdir()
    except OSError:
        child = None
    if child is None:
        yield None
        return
    try:
        with suppress(OSError):  # v2 without the memory controller; swap that is not accounted
            for name, value in limits:
                (child / name).write_text(value)
        limited = (child / limits[0][0]).exists()
        yield (
            (child, Sources(own.vmstat, own.kmsg, child / "memory.events", child / "memory.oom_control"))
            if limited
            else None
        )
    finally:
        child.rmdir()


def eat(group: Path) -> int:
    """Run a process in a cgroup that takes memory until it is killed; return its number, reaped."""
    argv = WorkerCgroup(group).joined((sys.executable, "-c", EATER))
    victim = subprocess.Popen(argv, stdin=subprocess.DEVNULL)
    assert victim.wait(60) == -signal.SIGKILL
    return victim.pid


@pytest.mark.parametrize("version", [1, 2])
def test_a_real_victim_is_named(version: int, tmp_path: Path) -> None:
    with small_cgroup(version) as made:
        if made is None:
            # No such cgroup may be made here. Then the kernel's own words of a like kill, about a process that was.
            told = Sources(tmp_path / "none", tmp_path / "kmsg")
            with subprocess.Popen(["sleep", "60"]) as child:
                child.kill()
            told.kmsg.write_text(GROUP.replace("4711", str(child.pid)))
            assert killed({child.pid}, mark(told), told) == CERTAINLY.format(child.pid)
            return
        group, sources = made
        before, here = mark(), mark(sources)
        pid = eat(group)
        named = pid in victims(oom._kernel_log(oom.KMSG))  # it may be kept from us
        assert killed({pid}, before) == (CERTAINLY.format(pid) if named else PROBABLY)
        assert (here.cgroup, mark(sources).cgroup) == (0, 1)
        assert killed({pid}, here, replace(sources, kmsg=tmp_path / "none")) == PROBABLY
