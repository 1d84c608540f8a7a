"""A victim of the OOM killer is named: from the kernel's log, from its counter, and never without cause."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from supervisor.oom import OomMark, killed, mark, named_in

# Recorded from kernel logs: a memory cgroup's kill, a whole machine's, and an older kernel's.
GROUP = (
    "6,817,52340112,-;oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=/,mems_allowed=0,"
    "oom_memcg=/w1,task_memcg=/w1,task=ollama,pid=4711,uid=0"
)
MACHINE = "3,818,52340200,-;Out of memory: Killed process 4712 (ollama) total-vm:90kB, anon-rss:80kB, file-rss:0kB"
INSIDE = "3,819,52340201,-;Memory cgroup out of memory: Killed process 4713 (ollama) total-vm:90kB, anon-rss:80kB"
EATER = "import time\nkept = []\nwhile True: kept.append(bytearray(1 << 20)); kept[-1][::4096] = b'x' * 256"


@pytest.mark.parametrize(
    ("record", "pid"),
    [
        (GROUP, 4711),
        (MACHINE, 4712),
        (INSIDE, 4713),
        ("6,1,2,-;eth0: link up pid=4711", None),
        ("6,1,2,-;python invoked oom-killer: gfp_mask=0xcc0, order=0, oom_score_adj=0", None),
    ],
)
def test_the_kernels_log_names_its_victim(record: str, pid: int | None) -> None:
    assert named_in([record], {4711, 4712, 4713}) == pid
    assert named_in([record], {1}) is None


@pytest.mark.parametrize(
    ("before", "after", "log", "said"),
    [
        (3, 4, GROUP, "OOM: the kernel ended process 4711"),
        (3, 4, MACHINE, "probably OOM"),  # it names another
        (3, 3, GROUP, None),  # an old kill of a reused number
        (None, None, GROUP, "OOM: the kernel ended process 4711"),
        (None, None, MACHINE, None),
    ],
)
def test_a_kill_is_named_with_as_much_certainty_as_there_is(
    tmp_path: Path, before: int | None, after: int | None, log: str, said: str | None
) -> None:
    vmstat, kmsg = tmp_path / "vmstat", tmp_path / "kmsg"
    kmsg.write_text(log + "\n")
    if after is not None:
        vmstat.write_text(f"pgfault 1\noom_kill {after}\nswap_ra 3\n")
    found = killed({4711}, OomMark(before), vmstat, kmsg)
    assert (found is None) if said is None else (found or "").startswith(said)


def test_a_machine_that_tells_nothing_is_no_error(tmp_path: Path) -> None:
    nothing = tmp_path / "nothing"
    assert mark(nothing) == OomMark(None)
    assert killed({1}, mark(nothing), nothing, nothing) is None


@contextmanager
def small_cgroup() -> Iterator[Path | None]:
    """A cgroup with little memory, v2 or v1, where this machine lets us make one; None where it does not."""
    own = {line.split(":")[1]: line.split(":", 2)[2] for line in Path("/proc/self/cgroup").read_text().splitlines()}
    candidates = [
        (Path("/sys/fs/cgroup") / own.get("", "/").lstrip("/"), ("memory.max", "memory.swap.max")),
        (Path("/sys/fs/cgroup/memory") / own.get("memory", "/").lstrip("/"),
         ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes")),
    ]  # fmt: skip
    for parent, limits in candidates:
        child = parent / f"chimera-test-{os.getpid()}"
        try:
            child.mkdir()
        except OSError:
            continue
        try:
            if (child / limits[0]).exists():
                (child / limits[0]).write_text(str(48 * 1024**2))
                if (child / limits[1]).exists():
                    (child / limits[1]).write_text("0" if limits[1] == "memory.swap.max" else str(48 * 1024**2))
                yield child
                return
        finally:
            child.rmdir()
    yield None


def test_a_real_victim_is_named() -> None:
    before = mark()
    with small_cgroup() as group:
        if group is None:
            # no cgroup may be made here: then at least nobody is called a victim who was killed by hand
            with subprocess.Popen(["sleep", "60"]) as child:
                child.kill()
            assert killed({child.pid}, before) is None
            return
        argv = [
            "/bin/sh",
            "-c",
            'echo $$ > "$0" && exec "$@"',
            str(group / "cgroup.procs"),
            sys.executable,
            "-c",
            EATER,
        ]
        victim = subprocess.Popen(argv, stdin=subprocess.DEVNULL)
        assert victim.wait(60) == -9
        assert "OOM" in (killed({victim.pid}, before) or "")
