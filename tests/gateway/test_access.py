"""The access line: what it has, and that nobody writes one of their own making."""

import json
import re
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.access import AccessLog, Fields, Which, console_line, fields_of, json_line, local_line, sentence, wanted
from gateway.phases import Phases, Try

AT = datetime(2026, 11, 24, 10, 0, 0, 123456, tzinfo=UTC)


def told(phases: Phases, **more: Any) -> Fields:
    given: dict[str, Any] = {
        "request_id": "r1", "client": "127.0.0.1", "method": "POST", "path": "/api/chat", "worker_id": "w1",
        "attempts": 1, "arrived_at": 100.0, "waited_s": 0.25,
    }  # fmt: skip
    return fields_of(**{**given, **more}, phases=phases)


WHOLE = Phases(
    read_at=100.002, queued_at=100.002, answered_at=101.5, ended_at=103.0, tries=[Try("w1", 100.25)], model="m",
    status=200, bytes_in=30, bytes_out=4000, prompt_tokens=12, answer_tokens=80, outcome="ok",
)  # fmt: skip


def test_a_line_says_what_happened_and_how_long_each_phase_took() -> None:
    assert json.loads(json_line(told(WHOLE), AT.timestamp())) == {
        "request": "r1", "client": "127.0.0.1", "method": "POST", "path": "/api/chat", "model": "m", "status": 200,
        "outcome": "ok", "worker": "w1", "attempts": 1, "read_ms": 2, "queue_ms": 250, "first_byte_ms": 1500,
        "total_ms": 3000, "bytes_in": 30, "bytes_out": 4000, "prompt_tokens": 12, "answer_tokens": 80,
        "event": "request", "logger": "access", "level": "info", "timestamp": "2026-11-24T10:00:00.123456Z",
    }  # fmt: skip


def test_on_a_terminal_it_is_text_in_the_time_of_the_place() -> None:
    here = AT.astimezone(timezone(timedelta(hours=2)))
    line = console_line(told(WHOLE, path="/a b", method=""), here)
    assert line.startswith("12:00:00 [info     ] request  ")
    assert " [access] request=r1 client=127.0.0.1 method='' path='/a b' model=m status=200 " in line
    assert line.endswith("prompt_tokens=12 answer_tokens=80")


def test_what_never_came_is_null_in_json_and_left_out_for_people() -> None:
    refused = Phases(read_at=100.0, queued_at=100.0, ended_at=130.0, status=503, outcome="refused")
    fields = told(refused, worker_id=None, attempts=1, waited_s=0.0)
    assert (fields.queue_ms, fields.worker, fields.first_byte_ms) == (30000, None, None)
    assert "worker=" not in console_line(fields, AT)


@given(st.text(), st.text(), st.text(), st.text())
def test_nothing_of_a_clients_makes_a_second_line_or_moves_a_terminals_cursor(
    path: str, model: str, method: str, client: str
) -> None:
    fields = told(Phases(model=model), path=path, method=method, client=client)
    for line in (json_line(fields, AT.timestamp()), console_line(fields, AT), sentence(fields)):
        assert line.isascii()
        assert line.isprintable()
        assert len(line) < 2000
    assert json.loads(json_line(fields, AT.timestamp()))["event"] == "request"


def test_a_client_cannot_write_a_field_for_people_to_read() -> None:
    line = console_line(told(Phases(status=404, model="m outcome=ok"), path="/x' status=200"), AT)
    assert re.findall(r" status=(\d+)", line.replace(repr("/x' status=200"), "")) == ["404"]
    assert "model='m outcome=ok'" in line


@pytest.mark.parametrize(
    ("which", "outcome", "has_one"),
    [
        ("on", "ok", True),
        ("on", "client_left", True),
        ("errors", "ok", False),
        ("errors", "client_left", False),
        ("errors", "client_error", True),
        ("errors", "refused", True),
        ("errors", "broken", True),
        ("off", "error", False),
    ],
)
def test_who_gets_a_line(which: Which, outcome: str, has_one: bool) -> None:
    assert wanted(which, outcome) is has_one


def test_a_line_goes_where_it_is_told_to_in_the_form_that_was_chosen() -> None:
    lines: list[str] = []
    log = AccessLog(lines.append, "errors", form=json_line, now=AT.timestamp)
    assert (log.wants("ok"), log.wants("error")) == (False, True)
    log.tell(told(WHOLE))
    assert lines == [json_line(told(WHOLE), AT.timestamp())]


def test_people_read_their_own_clock() -> None:
    assert local_line(told(WHOLE), AT.timestamp()) == console_line(told(WHOLE), AT.astimezone())


def test_in_a_sentence_it_is_who_asked_what_and_what_became_of_it() -> None:
    assert sentence(told(WHOLE)) == "POST /api/chat: 200 ok after 3000 ms (request r1, worker w1, model m)"
    left = Phases(ended_at=100.5, outcome="client_left")
    assert sentence(told(left, worker_id=None)) == "POST /api/chat: no answer client_left after 500 ms (request r1)"
