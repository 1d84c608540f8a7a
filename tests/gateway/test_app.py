"""Health, metrics, and what there is not."""

import json

import pytest

from gateway.admission import Admission
from gateway.app import make_app
from gateway.metrics import Metrics
from tests.fakes.fleet_admin import FakeFleet


class Page:
    """The application with its admission, asked by GET."""

    def __init__(self) -> None:
        self.admission = Admission(4, 300.0, lambda: 0.5)
        self.metrics = Metrics()
        self.fleet = FakeFleet()
        self.app = make_app(self.fleet, self.admission, self.metrics, None)

    async def get(self, path: str) -> tuple[int, str]:
        answer = await self.app.test_client().get(path)
        return answer.status_code, await answer.get_data(as_text=True)


async def test_the_process_says_that_it_is_there() -> None:
    assert await Page().get("/healthz") == (200, '{"status": "ok"}\n')


async def test_it_is_ready_with_a_worker_that_may_be_given_leases() -> None:
    page = Page()
    assert (await page.get("/readyz"))[0] == 503
    page.admission.worker_ready("a", port=1, slots=1, models=frozenset(), cordoned=False)
    assert await page.get("/readyz") == (200, '{"ready_workers": 1}\n')
    page.admission.cordon("a")
    assert (await page.get("/readyz"))[0] == 503


async def test_metrics_are_text_for_prometheus() -> None:
    page = Page()
    page.metrics.ended("/api/chat", 200, "ok", None, 0.5)
    status, text = await page.get("/metrics")
    assert status == 200
    assert 'chimera_requests_total{outcome="ok",route="/api/chat",status="200"} 1.0' in text
    assert 'chimera_worker_up{placement="cpu",worker="cpu-1"} 1.0' in text


@pytest.mark.parametrize("path", ["/", "/nothing", "/api", "/favicon.ico", "/%00", "/admin"])
async def test_an_unknown_path_is_told_as_json(path: str) -> None:
    status, text = await Page().get(path)
    assert (status, json.loads(text)) == (404, {"error": "not found"})


async def test_a_wrong_method_is_told_with_the_right_ones() -> None:
    answer = await Page().app.test_client().post("/healthz")
    assert (answer.status_code, json.loads(await answer.get_data())) == (405, {"error": "method not allowed"})
    assert "GET" in answer.headers["allow"]


@pytest.mark.parametrize("host", ["a" * 64, "a..b", ".", "x." + "a" * 200])
async def test_a_host_that_is_no_name_is_refused(host: str) -> None:
    """It was an error of ours, with a stack in the log."""
    answer = await Page().app.test_client().get("/healthz", headers={"Host": host})
    assert (answer.status_code, json.loads(await answer.get_data())) == (
        400,
        {"error": "Host is no host name or address"},
    )


async def test_a_bug_is_told_as_json_without_its_details(caplog: pytest.LogCaptureFixture) -> None:
    page = Page()
    page.fleet.ids = None  # type: ignore[assignment]  # a bug
    page.app.config["PROPAGATE_EXCEPTIONS"] = False
    status, text = await page.get("/metrics")
    assert (status, json.loads(text)) == (500, {"error": "internal server error"})
    assert "TypeError" in caplog.text
