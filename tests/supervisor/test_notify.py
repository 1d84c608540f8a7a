"""What is sent to systemd's notify socket, with a socket of the test's own in its place."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from supervisor.notify import STATUS_CHARACTERS, Notifier, notifier_of, one_line


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    """The service manager's end."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.settimeout(5)
        yield sock


def test_words_go_out_as_one_datagram(manager: socket.socket) -> None:
    assert Notifier(manager.getsockname()).say(READY=1, STATUS="two workers")
    assert manager.recv(1000) == b"READY=1\nSTATUS=two workers"


def test_an_abstract_address_begins_with_nul() -> None:
    name = f"chimera-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(f"\0{name}")
        sock.settimeout(5)
        assert notifier_of({"NOTIFY_SOCKET": f"@{name}"}).say(WATCHDOG=1)
        assert sock.recv(100) == b"WATCHDOG=1"


def test_without_a_manager_everything_is_taken() -> None:
    for environ in ({}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "relative"}):
        notifier = notifier_of(environ)
        assert (notifier.address, notifier.watchdog_s, notifier.say(READY=1)) == (None, None, True)


def test_a_manager_that_is_busy_or_gone_is_said_and_never_waited_for(tmp_path: Path, manager: socket.socket) -> None:
    assert not Notifier(str(tmp_path / "nobody")).say(READY=1)
    notifier = Notifier(manager.getsockname())
    while notifier.say(STATUS="x" * 1000):
        pass  # until its queue is full


@pytest.mark.parametrize(
    ("names", "seconds"),
    [
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),  # it is another process that is watched
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({}, None),
    ],
)
def test_how_often_the_watchdog_wants_to_hear(names: dict[str, str], seconds: float | None) -> None:
    assert notifier_of({"NOTIFY_SOCKET": "/run/notify"} | names).watchdog_s == seconds


def test_a_status_is_one_line_that_is_not_too_long() -> None:
    assert one_line("two\nlines   and more") == "two lines and more"
    assert len(one_line("x" * 10_000)) == STATUS_CHARACTERS
