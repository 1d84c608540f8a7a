"""One form of log for all lines, in a process of its own: the logging of the test run stays as it is."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.supervisor.test_journal import fields_of

SCRIPT = """
import logging, sys
from supervisor import logs
logs.configure(sys.argv[1], sys.argv[2])
import structlog
log = structlog.get_logger("fleet")
log.debug("quiet")
log.info("worker ready", worker="w1")
logging.getLogger("hypercorn.error").warning("somebody %s", "else")
logging.getLogger("httpx").info("chatty")
def fail(prompt):
    return 1 / 0
try:
    fail("why is the " + "sky blue")
except ZeroDivisionError:
    log.exception("a bug")
"""


def lines(level: str, form: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", SCRIPT, level, form], capture_output=True, text=True, check=True)
    assert done.stdout == ""
    return done.stderr.splitlines()


@pytest.mark.parametrize("form", ["json", "auto"])
def test_elsewhere_than_on_a_terminal_each_line_is_json(form: str) -> None:
    first, second, third = (json.loads(line) for line in lines("info", form))
    assert first.pop("timestamp").endswith("Z")
    assert first == {"event": "worker ready", "worker": "w1", "logger": "fleet", "level": "info"}
    assert (second["event"], second["logger"], second["level"]) == ("somebody else", "hypercorn.error", "warning")
    assert third["event"] == "a bug"
    assert "ZeroDivisionError" in third["exception"]


def test_people_get_text() -> None:
    first, second, *rest = lines("info", "console")
    assert "worker ready" in first
    assert "worker=w1" in first
    assert "\x1b" not in first  # no colours where there is no terminal
    assert "somebody else" in second
    assert any("ZeroDivisionError" in line for line in rest)


def test_the_level_is_a_floor_for_all() -> None:
    assert [json.loads(line)["event"] for line in lines("error", "json")] == ["a bug"]
    assert json.loads(lines("debug", "json")[0])["event"] == "quiet"


@pytest.mark.parametrize("form", ["json", "console"])
def test_a_bugs_traceback_tells_no_values(form: str) -> None:
    text = "\n".join(lines("info", form))
    assert "in fail" in text
    assert "why is the sky blue" not in text


# -- the journal -----------------------------------------------------------------------------------------------------

IN_THE_JOURNAL = f"""
import os, sys
from pathlib import Path
from supervisor import journal
journal.SOCKET = Path(os.environ["JOURNAL"])
there = os.fstat(2)
if sys.argv[2] == "auto":
    os.environ["JOURNAL_STREAM"] = f"{{there.st_dev}}:{{there.st_ino}}"
{SCRIPT}
"""


@pytest.mark.parametrize("setting", ["journal", "auto"])
def test_where_standard_error_is_the_journals_each_line_is_an_entry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str
) -> None:
    monkeypatch.setenv("JOURNAL", str(tmp_path / "socket"))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journald:
        journald.bind(str(tmp_path / "socket"))
        journald.settimeout(20)
        done = subprocess.run(
            [sys.executable, "-c", IN_THE_JOURNAL, "info", setting], capture_output=True, text=True, check=True
        )
        first, second, third = (fields_of(journald.recv(65536)) for _ in range(3))
    assert done.stderr == ""
    assert first == {
        "MESSAGE": "worker ready (worker w1)", "PRIORITY": "6", "SYSLOG_IDENTIFIER": "chimera",
        "CHIMERA_EVENT": "worker ready", "CHIMERA_LOGGER": "fleet", "CHIMERA_WORKER": "w1",
    }  # fmt: skip
    assert (second["MESSAGE"], second["PRIORITY"]) == ("somebody else", "4")
    assert third["MESSAGE"].startswith("a bug\nTraceback")
    assert "why is the sky blue" not in third["MESSAGE"]


def test_without_a_journald_the_journals_form_is_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOURNAL", str(tmp_path / "none"))
    done = subprocess.run(
        [sys.executable, "-c", IN_THE_JOURNAL, "info", "journal"], capture_output=True, text=True, check=True
    )
    assert [json.loads(line)["event"] for line in done.stderr.splitlines()] == [
        "worker ready",
        "somebody else",
        "a bug",
    ]
