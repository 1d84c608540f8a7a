"""What signals ask for, on a terminal and without one."""

import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from supervisor import orders as module
from supervisor.orders import Orders, has_terminal


async def heeded(*numbers: signal.Signals, on_terminal: bool = False) -> tuple[bool, bool, bool]:
    """What has been asked for after these signals: to stop, to stop at once, to take new settings."""

    async def signals() -> AsyncIterator[int]:
        for number in numbers:
            yield number

    orders = Orders()
    await orders.heed(signals(), on_terminal)
    with trio.move_on_after(1) as none:  # of the test's clock
        await orders.reload.wait()
    return orders.stop.is_set(), orders.at_once.is_set(), not none.cancelled_caught


async def test_one_signal_asks_to_stop_and_a_second_one_to_stop_at_once(autojump_clock: MockClock) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        assert await heeded(number) == (True, False, False)
        assert await heeded(number, signal.SIGTERM) == (True, True, False)


async def test_a_hangup_asks_for_new_settings_where_there_is_no_terminal(autojump_clock: MockClock) -> None:
    assert await heeded(signal.SIGHUP, signal.SIGHUP) == (False, False, True)
    assert await heeded(signal.SIGHUP, on_terminal=True) == (True, False, False)
    assert await heeded(signal.SIGHUP, signal.SIGTERM) == (True, False, True)


def test_a_terminal_is_one_that_can_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TERMINAL", tmp_path / "tty")
    assert not has_terminal()
    (tmp_path / "tty").touch()
    assert has_terminal()
