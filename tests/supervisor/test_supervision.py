"""The supervisor's parts together: what of new settings counts, and that a refused plan changes nothing."""

from collections.abc import Callable
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from supervisor.change import plan
from supervisor.config import Settings
from supervisor.errors import NoRoom
from supervisor.events import EventLog
from supervisor.locate import Ollama
from supervisor.supervision import Supervision
from tests.fakes.house import make_settings
from tests.fakes.leases import RecordingLeases

Make = Callable[..., Supervision]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """The parts of a supervisor in which no task runs."""

    def made(**names: str) -> Supervision:
        settings = make_settings(tmp_path, **names)
        return Supervision(settings, Ollama(Path("/ollama")), {}, RecordingLeases(), EventLog(), lambda: 0.5, None)

    return made


def changed(supervision: Supervision, **names: object) -> Settings:
    """Its settings, but for these fields."""
    return supervision.house.settings.model_copy(update=names)


async def test_new_settings_count_for_the_workers_and_for_the_primary(make: Make) -> None:
    supervision = make()
    new = changed(supervision, stop_timeout_s=77.0)
    supervision.take(plan(supervision.house.settings, new))
    assert supervision.house.settings == supervision.primary.house.settings == new


async def test_a_fleet_that_cannot_be_had_refuses_all_of_a_plan(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    supervision = make()
    before = supervision.house.settings

    def no_room(*_: object) -> None:
        raise NoRoom("too many")

    monkeypatch.setattr(supervision.fleet, "refit", no_room)
    with pytest.raises(NoRoom):
        supervision.take(plan(before, changed(supervision, workers=(("cpu", 2),), stop_timeout_s=77.0)))
    assert supervision.house.settings == supervision.primary.house.settings == before


async def test_what_of_workers_cannot_be_had_is_told_and_the_rest_is_placed(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    supervision = make()
    wanted: list[object] = []
    monkeypatch.setattr(supervision.fleet, "refit", lambda placements, text: wanted.append((placements, text)))
    with capture_logs() as told:
        supervision.take(plan(supervision.house.settings, changed(supervision, workers=(("cpu", 2), ("7", 1)))))
    assert wanted == [(["cpu", "cpu"], "cpu=2,gpu:7=1")]
    assert [line["event"] for line in told] == ["WORKERS: there is no GPU '7'; GPUs here: none; only cpu"]


async def test_models_are_here_when_they_are_required_by_the_name_that_ollama_lists(make: Make) -> None:
    supervision = make(REQUIRED_MODEL="a,b:c")
    assert supervision.models_here() == {"a:latest", "b:c"}
