"""What each setting is to the gateway."""

import sys

import pytest
from structlog.testing import capture_logs

from gateway.access import Fields
from gateway.traefik import Domains
from supervisor import journal, root_gateway
from supervisor.lines import LineWriter
from supervisor.logfiles import write_own
from supervisor.root_gateway import access_log, own_log_of, tracing_of, tuning_of
from tests.fakes.settings import load

FIELDS = Fields(
    "r1", "127.0.0.1", "POST", "/api/chat", "m", 200, "ok", "w1", 1, None, 0, None, 7, 0, 0, None, None
)  # fmt: skip


class Lines(LineWriter[None]):
    """Keeps what it is given."""

    def __init__(self) -> None:
        super().__init__("a test", lambda _, __: None)
        self.lines: list[str] = []

    def put(self, place: None, line: str) -> None:
        self.lines.append(line)


@pytest.mark.parametrize(
    ("names", "which"),
    [
        ({"LOG_FORMAT": "console"}, "errors"),
        ({"LOG_FORMAT": "json"}, "on"),
        ({"LOG_FORMAT": "journal"}, "on"),
        ({"LOG_FORMAT": "console", "ACCESS_LOG": "on"}, "on"),
        ({"LOG_FORMAT": "json", "ACCESS_LOG": "errors"}, "errors"),
        ({"LOG_FORMAT": "json", "ACCESS_LOG": "off"}, "off"),
        ({"LOG_FORMAT": "json", "ACCESS_LOG": "on", "LOG_LEVEL": "debug"}, "on"),
        ({"LOG_FORMAT": "json", "ACCESS_LOG": "on", "LOG_LEVEL": "warning"}, "off"),
    ],
)
def test_requests_have_lines_where_lines_of_their_level_go(names: dict[str, str], which: str) -> None:
    access = access_log(load(**names), Lines())
    wants = (False, False) if access is None else (access.wants("ok"), access.wants("worker_lost"))
    assert wants == {"on": (True, True), "errors": (False, True), "off": (False, False)}[which]


@pytest.mark.parametrize(
    ("form", "line"),
    [
        ("json", '"path":"/api/chat"'),
        ("console", "path=/api/chat"),
        ("journal", "MESSAGE=POST /api/chat: 200 ok after 7 ms (request r1, worker w1, model m)"),
    ],
)
def test_a_line_has_the_form_of_the_other_lines(monkeypatch: pytest.MonkeyPatch, form: str, line: str) -> None:
    monkeypatch.setattr(root_gateway, "form_of", str)  # not every machine has a journal
    lines = Lines()
    access = access_log(load(LOG_FORMAT=form, ACCESS_LOG="on"), lines)
    assert access is not None
    access.tell(FIELDS)
    assert line in lines.lines[0]


def test_access_lines_go_where_the_other_lines_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(root_gateway, "form_of", str)
    monkeypatch.setattr(journal.Journal, "__init__", lambda self, wait_s: None)
    assert own_log_of(load(LOG_FORMAT="json")) is write_own
    assert own_log_of(load(LOG_FORMAT="journal")).__qualname__ == "Journal.write"


def test_what_can_be_set_anew_is_read_off_the_settings() -> None:
    settings = load(
        LOAD_OPTIONS="pin", ADMIN_TOKEN="t0ken", TRAEFIK_API_DOMAIN="a.example", TRAEFIK_FRONTEND_DOMAIN="b.example",
        TRUSTED_PROXIES="10.0.0.1", ACCESS_LOG="off", API_KEYS_REQUIRED="true",
    )  # fmt: skip
    tuning = tuning_of(settings, Lines())
    assert (tuning.pin_load_options, tuning.admin_token, tuning.api_keys_required) == (True, "t0ken", True)
    assert (tuning.domains, tuning.access) == (Domains(("a.example",), ("b.example",)), None)
    assert tuning.trusted_proxies == ("10.0.0.1",)
    assert tuning_of(load(), Lines()).admin_token is None


def test_without_an_endpoint_nothing_makes_traces() -> None:
    assert tracing_of(load()) is None


def test_opentelemetry_that_refuses_costs_its_traces_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gateway.tracing", None)  # as if a package of its own were missing
    with capture_logs() as told:
        assert tracing_of(load(OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:4318")) is None
    assert [(line["log_level"], "OTEL_" in line["event"]) for line in told] == [("error", True)]
