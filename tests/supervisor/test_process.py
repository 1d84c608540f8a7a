"""A process group from start to reap, with small real processes."""

import os
import signal
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
import trio
import trio.testing

from supervisor import process
from supervisor.command import Command
from supervisor.errors import StartFailed
from supervisor.process import ExitStatus, WorkerProcess, running
from supervisor.procs import Proc
from supervisor.worker_log import last_lines
from tests.fakes.house import group_lives

# Starts a child of its own group, says both numbers, and waits.
FAMILY = """
import os, signal, subprocess, sys
{prelude}
child = subprocess.Popen([sys.executable, "-I", "-S", "-c", {child!r}])
print(child.pid, flush=True)
signal.pause()
"""
PATIENT_CHILD = "import signal; signal.alarm(60); signal.pause()"
STUBBORN = "signal.signal(signal.SIGTERM, signal.SIG_IGN)"


def python(code: str, **env: str) -> Command:
    return Command((sys.executable, "-I", "-S", "-c", code), {"PATH": os.environ["PATH"], **env})


def shell(script: str) -> Command:
    return Command(("/bin/sh", "-c", script), {"PATH": os.environ["PATH"]})


def family(*, prelude: str = "", child: str = PATIENT_CHILD) -> Command:
    return python(FAMILY.format(prelude=prelude, child=child))


async def first_line(log: Path) -> str:
    return (await wait_for(lambda: last_lines(log, 1)))[0]


async def wait_for(what: Callable[[], list[str]]) -> list[str]:
    with trio.fail_after(10):
        while not (found := what()):
            await trio.sleep(0.01)
    return found


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_a_process_that_ends_by_itself_is_seen_and_reaped(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "w1.log"
    async with running(shell("echo hello; exit 7"), log, stop_timeout_s=5) as child:
        with trio.fail_after(30):
            await child.wait()
        assert child.has_exited()
        unreaped = child.exit_status
        assert unreaped is None
    assert child.exit_status is not None
    assert (child.exit_status.code, child.exit_status.signal, child.exit_status.text) == (7, None, "exit code 7")
    assert last_lines(log, 5) == ["hello"]
    assert not group_lives(child.pid)


async def test_any_number_of_tasks_may_wait_for_the_end(tmp_path: Path) -> None:
    async with running(shell("exec sleep 60"), tmp_path / "log", stop_timeout_s=5) as child:
        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                for _ in range(3):
                    nursery.start_soon(child.wait)
                await trio.testing.wait_all_tasks_blocked()
                child.signal_group(signal.SIGKILL)


async def test_the_whole_group_is_ended_at_the_end_of_the_block(tmp_path: Path) -> None:
    async with running(family(), tmp_path / "log", stop_timeout_s=5) as child:
        grandchild = int(await first_line(tmp_path / "log"))
        assert os.getpgid(grandchild) == os.getsid(child.pid) == child.pid
    assert not group_lives(child.pid)
    assert child.exit_status is not None
    assert child.exit_status.signal == "SIGTERM"


async def test_the_end_of_the_block_waits_for_the_group_to_be_gone_but_not_for_its_zombies(tmp_path: Path) -> None:
    async with running(family(), tmp_path / "log", stop_timeout_s=5) as child:
        await first_line(tmp_path / "log")
        assert len(process.members(child.pid)) == 2
    assert process.members(child.pid) == ()
    assert not group_lives(child.pid)


async def test_a_group_that_ignores_term_is_killed(tmp_path: Path) -> None:
    stubborn_child = f"import signal; {STUBBORN}; signal.alarm(60); signal.pause()"
    async with running(family(prelude=STUBBORN, child=stubborn_child), tmp_path / "log", stop_timeout_s=0.2) as child:
        await first_line(tmp_path / "log")
    assert not group_lives(child.pid)
    assert child.exit_status is not None
    assert child.exit_status.text == "killed by SIGKILL"


async def test_a_child_that_outlives_its_leader_is_ended(tmp_path: Path) -> None:
    async with running(family(), tmp_path / "log", stop_timeout_s=5) as child:
        grandchild = int(await first_line(tmp_path / "log"))
        os.kill(child.pid, signal.SIGKILL)
        with trio.fail_after(30):
            await child.wait()
        os.kill(grandchild, 0)  # it is still there
    assert not group_lives(child.pid)


async def test_a_stopped_process_ends_by_term_all_the_same(tmp_path: Path) -> None:
    before = trio.current_time()
    async with running(family(), tmp_path / "log", stop_timeout_s=20) as child:
        await first_line(tmp_path / "log")
        child.signal_group(signal.SIGSTOP)
    assert trio.current_time() - before < 10
    assert child.exit_status is not None
    assert child.exit_status.signal == "SIGTERM"


async def test_cancellation_ends_the_group_first(tmp_path: Path) -> None:
    started: list[WorkerProcess] = []
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:

            async def own() -> None:
                async with running(family(), tmp_path / "log", stop_timeout_s=5) as child:
                    started.append(child)
                    await trio.sleep_forever()

            nursery.start_soon(own)
            await first_line(tmp_path / "log")
            nursery.cancel_scope.cancel()
    (child,) = started
    assert child.exit_status is not None
    assert not group_lives(child.pid)


async def test_an_error_in_the_block_ends_the_group_too(tmp_path: Path) -> None:
    started: list[WorkerProcess] = []

    async def fail() -> None:
        async with running(shell("exec sleep 60"), tmp_path / "log", stop_timeout_s=5) as child:
            started.append(child)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    assert started[0].exit_status is not None
    assert not group_lives(started[0].pid)


async def test_fifty_starts_and_stops_leave_no_descriptor_open(tmp_path: Path) -> None:
    async with running(shell("exit 0"), tmp_path / "log", stop_timeout_s=5) as child:
        await child.wait()
    before = open_descriptors()
    for _ in range(50):
        async with running(shell("exit 0"), tmp_path / "log", stop_timeout_s=5) as child:
            await child.wait()
    assert open_descriptors() == before


async def test_a_failed_start_leaves_no_descriptor_open(tmp_path: Path) -> None:
    before = open_descriptors()
    for _ in range(5):
        with pytest.raises(StartFailed, match=r"^/no/such/program cannot be started: No such file or directory$"):
            async with running(Command(("/no/such/program",), {}), tmp_path / "log", stop_timeout_s=5):
                pass
    assert open_descriptors() == before


@pytest.mark.parametrize("step", ["open", "pidfd_open"])
async def test_without_descriptors_a_start_fails_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    started: list[int] = []

    def exhausted(pid: object, *_more: object) -> int:
        if isinstance(pid, int):
            started.append(pid)
        raise OSError(24, "Too many open files")

    before = open_descriptors()
    with monkeypatch.context() as patched:
        patched.setattr(process.os, step, exhausted)  # type: ignore[attr-defined]
        with pytest.raises(StartFailed, match=r"^/bin/sh cannot be started: Too many open files$"):
            async with running(shell("exec sleep 60"), tmp_path / "log", stop_timeout_s=5):
                pass
    assert len(started) == (step == "pidfd_open")
    assert not any(group_lives(pid) for pid in started)
    assert open_descriptors() == before


async def test_the_end_needs_no_new_descriptor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*_args: object) -> int:
        raise OSError(24, "Too many open files")

    stubborn_child = f"import signal; {STUBBORN}; signal.alarm(60); signal.pause()"
    async with running(family(prelude=STUBBORN, child=stubborn_child), tmp_path / "log", stop_timeout_s=0.2) as child:
        await first_line(tmp_path / "log")
        monkeypatch.setattr(os, "dup", exhausted)
        monkeypatch.setattr(process, "scan", exhausted)
        monkeypatch.setattr(process, "GROUP_TIMEOUT_S", 0.1)
    with trio.fail_after(30):
        while group_lives(child.pid):  # it has been killed; nobody could look whether it was gone
            await trio.sleep(0.01)
    assert child.exit_status is not None


async def test_all_of_proc_is_read_only_to_learn_who_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scans: list[int] = []
    lingers = Proc(os.getpid(), 1, 1, "S", 0, 7, 0)
    looks = iter([lingers, lingers, lingers, None])

    def counting() -> dict[int, tuple[Proc, ...]]:
        scans.append(1)
        return {child.pid: (lingers,)} if len(scans) == 1 else {}

    monkeypatch.setattr(process, "scan", counting)
    monkeypatch.setattr(process, "stat_of", lambda _pid: next(looks))
    async with running(family(prelude=STUBBORN), tmp_path / "log", stop_timeout_s=0) as child:
        await first_line(tmp_path / "log")
        real = os.killpg

        def killpg(pgid: int, number: int) -> None:
            if number:  # the group is there as long as it is asked for
                real(pgid, number)

        monkeypatch.setattr(os, "killpg", killpg)
    assert len(scans) == 2


async def test_a_child_inherits_its_log_and_nothing_else(tmp_path: Path) -> None:
    held, other = os.pipe()
    os.set_inheritable(held, True)
    try:
        async with running(shell("ls /proc/self/fd; pwd"), tmp_path / "log", stop_timeout_s=5) as child:
            await child.wait()
    finally:
        os.close(held)
        os.close(other)
    *descriptors, directory = last_lines(tmp_path / "log", 20)
    assert len(descriptors) == 4  # 0, 1, 2, and the one by which ls reads the directory
    assert directory == "/"


@pytest.mark.parametrize("obstacle", ["logs is a file", "log is a directory"])
async def test_a_log_that_cannot_be_written_is_no_reason_not_to_run(tmp_path: Path, obstacle: str) -> None:
    log = tmp_path / "logs" / "w1.log"
    if obstacle == "logs is a file":
        log.parent.write_text("")
    else:
        log.mkdir(parents=True)
    async with running(shell("echo lost; exit 3"), log, stop_timeout_s=5) as child:
        assert child.log_problem is not None
        assert child.log_problem.startswith(f"its log {log} cannot be written: ")
        await child.wait()
    assert child.exit_status is not None
    assert child.exit_status.code == 3


async def test_an_end_of_its_own_is_told_from_one_that_was_ours(tmp_path: Path) -> None:
    async with running(shell("exit 0"), tmp_path / "own.log", stop_timeout_s=5) as own:
        await own.wait()
    async with running(shell("sleep 60"), tmp_path / "ours.log", stop_timeout_s=5) as ours:
        pass
    assert (own.killed_by_us, ours.killed_by_us) == (False, True)


def test_an_exit_status_reads_as_a_sentence() -> None:
    at = datetime.now(UTC)
    assert ExitStatus(0, None, at).text == "exit code 0"
    assert ExitStatus(None, "SIGSEGV", at).text == "killed by SIGSEGV"
    assert ExitStatus(None, None, at).text == "still there after SIGKILL"


async def test_a_worker_goes_before_its_supervisor_when_memory_runs_out_and_writes_no_core(tmp_path: Path) -> None:
    log = tmp_path / "w1.log"
    said = "cat /proc/self/oom_score_adj; ulimit -c"
    async with running(shell(f"sleep 0.2; {said}"), log, stop_timeout_s=5) as child:
        await child.wait()
    assert last_lines(log, 9) == [str(process.OOM_SCORE_ADJ), "0"]
