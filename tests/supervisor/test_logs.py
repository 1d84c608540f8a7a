"""One form of log for all lines, in a process of its own: the logging of the test run stays as it is."""

import json
import subprocess
import sys

import pytest

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
