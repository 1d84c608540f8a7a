"""New settings while Chimera runs: taken as a difference, or refused whole."""

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio

from supervisor import reload as reload_module
from supervisor.change import Plan
from supervisor.comeback import Comeback
from supervisor.config import Settings
from supervisor.config_load import load_settings
from supervisor.errors import NoRoom, StartRefused
from supervisor.news import News
from supervisor.notify import Notifier
from supervisor.reload import NAME, Outcome, Reload, ask_for_reload, outcome_directory
from supervisor.service import Service
from supervisor.state_file import write_json
from tests.fakes.house import fake_house

# A Chimera that answers a SIGHUP with the outcome that it was given.
ANSWERS = """
import os, signal, sys
from pathlib import Path
from supervisor.reload import NAME, Outcome
from supervisor.state_file import write_json
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGHUP])
print("there", flush=True)
signal.sigwait([signal.SIGHUP])
write_json(Path(sys.argv[1]) / NAME, Outcome(os.getpid(), 1, ["in force: QUEUE_SIZE"], []))
"""


@dataclass
class Stand:
    """A reload whose file a test writes."""

    asked: News = field(default_factory=News)
    said: list[str] = field(default_factory=list)
    file: dict[str, str] = field(default_factory=dict)
    plans: list[Plan] = field(default_factory=list)
    directory: Path = Path()

    async def outcome(self) -> Outcome:
        """Ask, and return what comes of it."""
        before = reload_module._read(self.directory / NAME)
        self.asked.tell()
        with trio.fail_after(30):
            while (now := reload_module._read(self.directory / NAME)) is None or now == before:
                await trio.sleep(0.01)
        return now


class Notes(Service):
    """A service that writes its notes down."""

    def __init__(self, said: list[str]) -> None:
        super().__init__(Notifier(None), Comeback(None))
        self.said = said

    def note(self, text: str) -> None:
        self.said.append(text)

    def reloading(self) -> None:
        self.said.append("reloading")

    def reloaded(self) -> None:
        self.said.append("reloaded")


@asynccontextmanager
async def stand(directory: Path) -> AsyncIterator[Stand]:
    async with fake_house(directory) as fake:
        it = Stand(directory=directory)
        settings = fake.house.settings
        base = {"STATE_DIR": str(settings.state_dir), "LOG_DIR": str(settings.log_dir),
                "OLLAMA_MODELS": str(settings.ollama_models), "WORKER_PORT_BASE": str(settings.worker_port_base),
                "STOP_TIMEOUT_S": "5", "DRAIN_TIMEOUT_S": "5"}  # fmt: skip

        def reread() -> Settings:
            return load_settings(base | it.file, {})

        def apply(change: Plan) -> None:
            if change.settings.worker_slots == 1024:
                raise NoRoom("too many workers")
            it.plans.append(change)
            fake.house.settings = change.settings

        renewal = Reload(reread, fake.house, apply, Notes(it.said), fake.house.events, directory)
        fake.nursery.start_soon(renewal.run, it.asked)
        yield it


async def test_a_good_file_is_applied_as_a_difference(tmp_path: Path) -> None:
    async with stand(tmp_path) as it:
        it.file = {"QUEUE_SIZE": "7"}
        assert await it.outcome() == Outcome(os.getpid(), 1, ["in force: QUEUE_SIZE"], [])
        assert await it.outcome() == Outcome(os.getpid(), 2, ["nothing has changed"], [])
        assert it.plans[0].settings.queue_size == 7
        assert it.said == ["reloading", "", "reloaded"] * 2


async def test_a_bad_file_is_refused_whole_with_every_fault(tmp_path: Path) -> None:
    async with stand(tmp_path) as it:
        it.file = {"QUEUE_SIZE": "many", "DRAIN_TIMEOUT_S": "0", "QUEUE_TIMEOUT_S": "7"}
        outcome = await it.outcome()
        assert [fault.partition(":")[0] for fault in outcome.faults] == ["QUEUE_SIZE", "DRAIN_TIMEOUT_S"]
        assert (outcome.lines, it.plans) == ([], [])
        assert it.said[1].startswith("new settings refused: QUEUE_SIZE: ")
        assert it.said[1].endswith("(and 1 more: journalctl -u chimera)")
        assert it.said[2] == "reloaded"
        it.file = {}
        assert (await it.outcome()).faults == []
        assert it.said[4] == ""  # nothing is refused any more


async def test_what_cannot_be_applied_is_a_refusal_too(tmp_path: Path) -> None:
    async with stand(tmp_path) as it:
        it.file = {"WORKER_SLOTS": "1024"}
        assert (await it.outcome()).faults == ["too many workers"]
        assert it.plans == []


def asides(folder: Path) -> list[Path]:
    return list(folder.glob(f"{NAME}.corrupt-*"))


@pytest.mark.parametrize("put", [os.mkdir, os.mkfifo, lambda path: path.write_bytes(b'{"pid": "half')])
async def test_a_damaged_outcome_is_set_aside_before_the_next_is_written(
    tmp_path: Path, put: Callable[[Path], object]
) -> None:
    put(tmp_path / NAME)
    async with stand(tmp_path) as it:
        assert await it.outcome() == Outcome(os.getpid(), 1, ["nothing has changed"], [])
    assert len(asides(tmp_path)) == 1


def test_where_outcomes_are_written() -> None:
    assert outcome_directory({"RUNTIME_DIRECTORY": "/run/chimera:/run/b"}, Path("/state")) == Path("/run/chimera")
    assert outcome_directory({}, Path("/state")) == Path("/state")


def test_asking_waits_for_the_answer_of_that_very_process(tmp_path: Path) -> None:
    write_json(tmp_path / NAME, Outcome(1, 7, [], ["an older Chimera's"]))
    with subprocess.Popen(
        [sys.executable, "-c", ANSWERS, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as chimera:  # fmt: skip
        assert chimera.stdout is not None
        assert chimera.stdout.readline() == "there\n"
        assert ask_for_reload(chimera.pid, tmp_path) == Outcome(chimera.pid, 1, ["in force: QUEUE_SIZE"], [])


def test_one_that_is_not_there_or_does_not_answer_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reload_module, "ANSWER_TIMEOUT_S", 0.1)
    monkeypatch.setattr(os, "kill", lambda _pid, number: None if number == signal.SIGHUP else 1 / 0)
    with pytest.raises(StartRefused, match=r"\(process 4711\) did not say within 0.1 s"):
        ask_for_reload(4711, tmp_path)
    for error, text in ((ProcessLookupError, "is not running"), (PermissionError, "is another user's")):

        def refuse(_pid: int, _number: int, error: type[OSError] = error) -> None:
            raise error

        monkeypatch.setattr(os, "kill", refuse)
        with pytest.raises(StartRefused, match=text):
            ask_for_reload(4711, tmp_path)
