"""Starting in the background and stopping, with a stand-in for Chimera's own process."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from supervisor import background
from supervisor.config import Settings
from supervisor.errors import StartRefused
from supervisor.lock import holder
from tests.fakes.house import make_settings
from tests.fakes.serving import free_port

PRELUDE = f"#!{sys.executable} -I\nimport signal, socket, sys, time\nsignal.alarm(60)\nport = int({{port}})\n"
LISTENS = "listener = socket.create_server(('127.0.0.1', port))\nsignal.pause()\n"
FAILS = "print('chimera: the port is taken', file=sys.stderr)\nprint('chimera: and so on', file=sys.stderr)\nexit(1)\n"
WAITS = "signal.pause()\n"

HOLD = """
import signal, sys
from pathlib import Path
from supervisor.lock import locked
{prelude}
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    signal.pause()
"""


def row(state: str, problem: str | None = None) -> dict[str, Any]:
    return {"state": state, "problem": problem}


def fleet(*answers: list[dict[str, Any]] | None) -> Callable[[], dict[str, Any] | None]:
    """A gateway that answers these in turn, and the last of them for ever."""
    rest = list(answers)

    def ask() -> dict[str, Any] | None:
        rows = rest.pop(0) if len(rest) > 1 else rest[0]
        return None if rows is None else {"instances": rows, "primary": {"store": f"pulling, {len(rest)} to go"}}

    return ask


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return make_settings(tmp_path, GATEWAY_PORT=str(free_port()), DRAIN_TIMEOUT_S="0.1", STOP_TIMEOUT_S="0.1")


Stand = Callable[[str], None]


@pytest.fixture
def stand_in(tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stand]:
    """Let a script of the test's run in Chimera's place; at the end what was started is killed."""
    monkeypatch.setattr(background, "POLL_S", 0.01)
    started: list[subprocess.Popen[bytes]] = []
    real = subprocess.Popen

    def popen(*args: Any, **kwargs: Any) -> "subprocess.Popen[bytes]":
        started.append(real(*args, **kwargs))
        return started[-1]

    def use(script: str) -> None:
        program = tmp_path / "stand-in"
        program.write_text(PRELUDE.format(port=settings.gateway_port) + script)
        program.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(program))
        monkeypatch.setattr(subprocess, "Popen", popen)

    yield use
    monkeypatch.undo()
    for child in started:
        child.kill()
        child.wait()


def start(settings: Settings, ask: Callable[[], dict[str, Any] | None], said: list[str] | None = None) -> int:
    heard: list[str] = [] if said is None else said
    return background.start(settings, Path(".env"), ask, heard.append)


def test_it_returns_the_pid_when_the_fleet_is_ready(settings: Settings, stand_in: Stand) -> None:
    stand_in(LISTENS)
    said: list[str] = []
    answers = (None, [row("STARTING"), row("IDLE")], [row("WARMING"), row("IDLE")], [row("IDLE"), row("BUSY")])
    pid = start(settings, fleet(*answers), said)
    assert os.getsid(pid) == pid  # it lives on when the terminal closes
    assert said == ["pulling, 2 to go", "pulling, 1 to go"]
    assert background.log_path(settings).exists()


def test_an_empty_fleet_is_a_ready_one(settings: Settings, stand_in: Stand) -> None:
    stand_in(LISTENS)
    assert start(settings, fleet([])) > 0


def test_what_ends_early_gives_its_own_reason(settings: Settings, stand_in: Stand) -> None:
    log = background.log_path(settings)
    log.parent.mkdir(parents=True)
    log.write_text("chimera: an older run's last words\n")
    stand_in(FAILS)
    with pytest.raises(StartRefused, match=r"^the port is taken; and so on$"):
        start(settings, fleet(None))


def test_what_ends_early_without_a_word_names_its_log(settings: Settings, stand_in: Stand) -> None:
    stand_in("exit(1)\n")
    with pytest.raises(StartRefused, match=f"^it ended at once; see {background.log_path(settings)}$"):
        start(settings, fleet(None))


def test_the_answer_of_another_program_on_the_port_says_nothing_of_this_one(
    settings: Settings, stand_in: Stand
) -> None:
    """Another Chimera that has the port, with a ready fleet, while the new one is about to be refused."""
    stand_in("time.sleep(0.1)\n" + FAILS)
    with pytest.raises(StartRefused, match=r"^the port is taken"):
        start(settings, fleet([row("IDLE")]))


def test_a_fleet_of_which_no_worker_becomes_ready_is_a_refusal_with_the_reason(
    settings: Settings, stand_in: Stand
) -> None:
    stand_in(LISTENS)
    rows = [row("QUARANTINED"), row("BACKOFF", "out of memory")]
    goes_on = rf"; Chimera goes on trying \(process \d+, log: {background.log_path(settings)}\), until: chimera stop$"
    with pytest.raises(StartRefused, match=f"^no worker became ready: out of memory{goes_on}"):
        start(settings, fleet(rows))


def test_the_wait_has_an_end(settings: Settings, stand_in: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(LISTENS)
    monkeypatch.setattr(background, "START_TIMEOUT_S", 0.5)
    with pytest.raises(StartRefused, match=r"^no worker became ready: see: chimera status; Chimera goes on"):
        start(settings, fleet([row("WARMING")]))


def test_a_gateway_that_never_answers_is_a_refusal(
    settings: Settings, stand_in: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(WAITS)
    monkeypatch.setattr(background, "START_TIMEOUT_S", 0.3)
    with pytest.raises(StartRefused, match=r"^no gateway answered within 0 s; see "):
        start(settings, fleet(None))


def test_a_log_that_cannot_be_written_is_a_refusal(settings: Settings) -> None:
    settings.log_dir.write_text("a file")
    with pytest.raises(StartRefused, match=f"^LOG_DIR: {background.log_path(settings)} cannot be written: "):
        start(settings, fleet(None))


# -- stopping --------------------------------------------------------------------------------------------------------


@pytest.fixture
def hold(settings: Settings) -> Iterator[Callable[[str], "subprocess.Popen[str]"]]:
    """A process that holds the state directory, as Chimera does."""
    with ExitStack() as stack:

        def begin(prelude: str = "") -> "subprocess.Popen[str]":
            child = stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", HOLD.format(prelude=prelude), settings.state_dir],
                    stdout=subprocess.PIPE, text=True,
                )
            )  # fmt: skip
            stack.callback(child.kill)
            assert child.stdout is not None
            assert child.stdout.readline() == "held\n"
            return child

        yield begin


def test_stopping_asks_and_waits_for_the_end(settings: Settings, hold: Callable[..., "subprocess.Popen[str]"]) -> None:
    child = hold()
    with pytest.raises(StartRefused, match=rf"^chimera runs already \(process {child.pid}\)"):
        start(settings, fleet(None))
    assert background.stop(settings) == child.pid
    assert child.wait(5) == -signal.SIGTERM
    assert holder(settings.state_dir) is None
    assert background.stop(settings) is None


def test_one_that_does_not_stop_is_said(
    settings: Settings, hold: Callable[..., "subprocess.Popen[str]"], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(background, "STOP_GRACE_S", 0.0)
    child = hold("signal.signal(signal.SIGTERM, signal.SIG_IGN)")
    with pytest.raises(StartRefused, match=rf"^chimera \(process {child.pid}\) has not ended within 0 s$"):
        background.stop(settings)


def test_one_that_has_just_ended_is_stopped(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    with subprocess.Popen(["true"]) as child:
        child.wait()
    monkeypatch.setattr(background, "holder", lambda _state_dir: child.pid)
    assert background.stop(settings) == child.pid


def test_another_users_is_a_refusal(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(background, "holder", lambda _state_dir: os.getpid())
    monkeypatch.setattr(signal, "pidfd_send_signal", refuse)
    with pytest.raises(StartRefused, match="is another user's"):
        background.stop(settings)
