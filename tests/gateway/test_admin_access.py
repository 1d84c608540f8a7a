"""The access line of a request to the admin API, asked through Quart's test client."""

import json
from typing import Any

import pytest
import trio

from gateway.access import AccessLog, json_line
from gateway.admin_access import following
from gateway.admission import Admission
from gateway.app import make_app
from gateway.forwarded import TrustedProxies
from gateway.metrics import Metrics
from tests.fakes.fleet_admin import FakeFleet

SECRET = "hunter2"


class Log:
    """An access log that keeps its lines."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.access: AccessLog | None = AccessLog(self.lines.append, "on", form=json_line, now=lambda: 0.0)

    def told(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.lines]


async def asked(
    log: Log, method: str, path: str, headers: dict[str, str] | None = None, token: str | None = None
) -> Any:
    """Ask, and return the answer."""
    proxies = TrustedProxies(("127.0.0.1",))
    app = make_app(
        FakeFleet(), Admission(4, 300.0, lambda: 0.5), Metrics(), token, proxies=proxies, access=lambda: log.access
    )
    client = app.test_client()
    more: Any = {"scope_base": {"client": ("127.0.0.1", 40000)}, "data": SECRET if method == "POST" else None}
    return await client.open(path, method=method, headers={"host": "127.0.0.1:8000"} | (headers or {}), **more)


async def test_who_asked_for_what_and_what_became_of_it_is_one_line() -> None:
    log = Log()
    answer = await asked(log, "POST", "/admin/instances/cpu-1/cordon?x=y", {"X-Request-Id": "mine"})
    assert answer.headers["x-request-id"] == "mine"
    (line,) = log.told()
    assert (line["request"], line["client"], line["method"]) == ("mine", "127.0.0.1", "POST")
    assert (line["path"], line["status"], line["outcome"]) == ("/admin/instances/cpu-1/cordon", 202, "ok")
    assert (line["worker"], line["model"], line["attempts"]) == (None, None, 0)
    assert line["bytes_out"] == len(await answer.get_data())


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/admin/nothing", 404),
        ("POST", "/admin/instances/none/drain", 404),
        ("POST", "/admin/instances/spawn?count=x", 400),
        ("DELETE", "/admin/gpus", 405),
    ],
)
async def test_what_is_refused_has_its_line_too(method: str, path: str, status: int) -> None:
    log = Log()
    answer = await asked(log, method, path)
    assert answer.status_code == status
    (line,) = log.told()
    assert (line["status"], line["outcome"]) == (status, "client_error")
    assert line["request"] == answer.headers["x-request-id"]


async def test_who_tries_a_wrong_token_is_named_by_the_trusted_proxy_and_no_secret_is() -> None:
    log = Log()
    headers = {"Authorization": f"Bearer {SECRET}", "X-Forwarded-For": "192.0.2.7"}
    await asked(log, "POST", f"/admin/instances/prune?ids={SECRET}", headers, token="right")
    (line,) = log.told()
    assert (line["status"], line["client"]) == (401, "192.0.2.7")
    assert SECRET not in "".join(log.lines)
    assert "right" not in "".join(log.lines)


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics", "/openapi.json", "/nothing"])
async def test_other_pages_have_no_line(path: str) -> None:
    log = Log()
    await asked(log, "GET", path)
    assert log.lines == []


async def test_a_log_of_errors_has_what_was_refused_and_none_has_nothing() -> None:
    log = Log()
    log.access = AccessLog(log.lines.append, "errors", form=json_line, now=lambda: 0.0)
    await asked(log, "GET", "/admin/instances")
    await asked(log, "GET", "/admin/nothing")
    assert [line["path"] for line in log.told()] == ["/admin/nothing"]
    log.access = None
    await asked(log, "GET", "/admin/nothing")
    assert len(log.lines) == 1


async def test_who_leaves_while_it_waits_has_asked_nevertheless() -> None:
    log = Log()
    with trio.CancelScope() as life, following(lambda: log.access, TrustedProxies(), "POST", "/admin/x", "::1", []):
        life.cancel()
        await trio.sleep_forever()
    (line,) = log.told()
    assert (line["status"], line["outcome"], line["client"]) == (0, "client_left", "::1")


async def test_a_bug_is_an_error() -> None:
    log = Log()
    with pytest.raises(ZeroDivisionError), following(lambda: log.access, TrustedProxies(), "GET", "/admin/x", "", []):
        raise ZeroDivisionError
    assert [line["outcome"] for line in log.told()] == ["error"]
