"""Log records as the journal's own entries, with a datagram socket in journald's place."""

import json
import logging
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.journal import (
    LONGEST_VALUE_BYTES,
    Journal,
    JournalHandler,
    entry,
    leads_to_journal,
    rendered,
    sentence,
)  # fmt: skip


def fields_of(datagram: bytes) -> dict[str, str]:
    """Read an entry as journald does (systemd.io/JOURNAL_NATIVE_PROTOCOL)."""
    found: dict[str, str] = {}
    while datagram:
        line, _, rest = datagram.partition(b"\n")
        name, equals, value = line.partition(b"=")
        if not equals:
            (length,) = struct.unpack_from("<Q", rest)
            value, end, rest = rest[8 : 8 + length], rest[8 + length : 9 + length], rest[9 + length :]
            assert end == b"\n"
        found[name.decode("ascii")] = value.decode()
        datagram = rest
    return found


def read(text: str) -> dict[str, str]:
    return fields_of(text.encode("utf-8", "surrogateescape"))


@pytest.fixture
def journald(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as it:
        it.bind(str(tmp_path / "socket"))
        it.settimeout(20)
        yield it


# -- an entry --------------------------------------------------------------------------------------------------------


def test_an_entry_has_a_sentence_a_priority_and_the_events_own_fields() -> None:
    event = {
        "event": "worker hung", "level": "warning", "logger": "chimera", "worker": "w1", "cause": "it is stopped",
        "for_s": 1.5, "gpu": None, "pids": [1, 2],
    }  # fmt: skip
    assert read(rendered(None, "warning", event)) == {
        "MESSAGE": "worker hung: it is stopped (worker w1, for_s 1.5, pids 1, 2)", "PRIORITY": "4",
        "SYSLOG_IDENTIFIER": "chimera", "CHIMERA_EVENT": "worker hung", "CHIMERA_LOGGER": "chimera",
        "CHIMERA_WORKER": "w1", "CHIMERA_CAUSE": "it is stopped", "CHIMERA_FOR_S": "1.5", "CHIMERA_PIDS": "[1, 2]",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("level", "priority"),
    [("critical", "2"), ("error", "3"), ("warning", "4"), ("info", "6"), ("debug", "7"), ("level 25", "5")],
)
def test_levels_are_syslogs(level: str, priority: str) -> None:
    assert read(entry(level, "", {}))["PRIORITY"] == priority


def test_names_are_such_as_journald_takes() -> None:
    names = set(read(entry("info", "", {"a-b c": 1, "_x": 2, "ä": 3, "n" * 100: 4})))
    assert names >= {"CHIMERA_A_B_C", "CHIMERA__X", "CHIMERA__", f"CHIMERA_{'N' * 56}"}


def test_a_traceback_stands_below_the_sentence() -> None:
    event = {"event": "a bug", "level": "error", "exception": "Traceback:\n  in f\nZeroDivisionError"}
    said = read(rendered(None, "error", event))
    assert said["MESSAGE"] == "a bug\nTraceback:\n  in f\nZeroDivisionError"
    assert "CHIMERA_EXCEPTION" not in said


def test_a_sentence_is_one_line_whatever_is_told() -> None:
    assert sentence("a\nb", {"cause": "c\n\nd", "path": "x\ny"}) == "a b: c d (path x y)"


def test_a_value_that_is_too_long_keeps_its_beginning_and_its_end() -> None:
    said = read(entry("info", "a" * 100_000 + "\nthe end", {"short": "b"}))
    assert len(said["MESSAGE"].encode()) <= LONGEST_VALUE_BYTES
    assert said["MESSAGE"].startswith("aaa")
    assert said["MESSAGE"].endswith("a\nthe end")
    assert " […] " in said["MESSAGE"]


@given(st.text(), st.dictionaries(st.text(), st.text() | st.none() | st.integers() | st.lists(st.text())))
def test_nothing_told_makes_a_field_of_its_own(message: str, fields: dict[str, object]) -> None:
    said = read(entry("info", message, fields))
    assert set(said) - {"MESSAGE", "PRIORITY", "SYSLOG_IDENTIFIER"} == {
        name for name in said if name.startswith("CHIMERA_")
    }
    assert said["PRIORITY"] == "6"
    assert said["MESSAGE"] == message.encode("utf-8", "replace").decode()


# -- sending ---------------------------------------------------------------------------------------------------------


class Kept(logging.Handler):
    """Keeps what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record.getMessage())


class Plain(logging.Formatter):
    """As the real one, without structlog."""

    def format(self, record: logging.LogRecord) -> str:
        return entry("info", record.getMessage(), {})


@pytest.fixture
def it(tmp_path: Path) -> Iterator[JournalHandler]:
    it = JournalHandler(Journal(tmp_path / "socket"), Kept())
    it.setFormatter(Plain())
    yield it
    it.close()


def instead(it: JournalHandler) -> list[str]:
    assert isinstance(it._instead, Kept)
    return it._instead.records


def say(it: JournalHandler, text: str) -> None:
    it.handle(logging.LogRecord("n", logging.INFO, "", 0, text, (), None))


def test_a_record_is_a_datagram(journald: socket.socket, it: JournalHandler) -> None:
    say(it, "two\nlines")
    assert fields_of(journald.recv(65536))["MESSAGE"] == "two\nlines"
    assert instead(it) == []


def test_a_journald_that_does_not_read_is_not_waited_for_and_what_it_missed_is_told(
    journald: socket.socket, it: JournalHandler
) -> None:
    said = 0
    while not it.dropped:
        say(it, str(said))
        said += 1
    say(it, "lost too")
    arrived: list[str] = []
    journald.setblocking(False)
    while len(arrived) < said - 1:
        arrived.append(fields_of(journald.recv(65536))["MESSAGE"])
    assert arrived == [str(number) for number in range(said - 1)]
    say(it, "and on")
    assert fields_of(journald.recv(65536))["CHIMERA_LINES"] == "2"
    assert fields_of(journald.recv(65536))["MESSAGE"] == "and on"
    assert (it.dropped, instead(it)) == (0, [])


def test_without_a_journald_the_record_goes_where_it_went_before(it: JournalHandler) -> None:
    say(it, "text")
    assert (instead(it), it.dropped) == (["text"], 0)


def test_a_journald_that_was_started_anew_is_found(journald: socket.socket, it: JournalHandler, tmp_path: Path) -> None:
    journald.close()
    say(it, "nobody hears")
    (tmp_path / "socket").unlink()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as again:
        again.bind(str(tmp_path / "socket"))
        say(it, "hears")
        assert fields_of(again.recv(65536))["MESSAGE"] == "hears"
    assert instead(it) == ["nobody hears"]


def test_in_a_thread_a_full_socket_is_waited_for_but_not_for_ever(journald: socket.socket, tmp_path: Path) -> None:
    patient = Journal(tmp_path / "socket", wait_s=0.05)
    patient.write(None, [entry("info", "one", {}), entry("info", "two", {})])
    assert [fields_of(journald.recv(65536))["MESSAGE"] for _ in range(2)] == ["one", "two"]
    with pytest.raises(BlockingIOError):
        patient.write(None, [entry("info", "x", {})] * 100_000)
    patient.close()


# -- whether it is the journal's stream ------------------------------------------------------------------------------


def test_a_stream_is_the_journals_if_systemd_says_so_of_this_very_file(tmp_path: Path) -> None:
    with (tmp_path / "file").open("w") as file:
        there = os.fstat(file.fileno())
        said = f"{there.st_dev}:{there.st_ino}"
        assert leads_to_journal({"JOURNAL_STREAM": said}, file.fileno())
        assert not leads_to_journal({"JOURNAL_STREAM": f"{there.st_dev}:{there.st_ino + 1}"}, file.fileno())
        assert not leads_to_journal({"JOURNAL_STREAM": "nonsense"}, file.fileno())
        assert not leads_to_journal({}, file.fileno())
    assert not leads_to_journal({"JOURNAL_STREAM": said}, 10**6)


def test_lists_of_objects_are_json() -> None:
    assert json.loads(read(entry("info", "", {"rows": [{"a": 1}]}))["CHIMERA_ROWS"]) == [{"a": 1}]
