"""The quick ones of `make test-faults`, so that the harness itself does not rot; the whole table takes minutes."""

from pathlib import Path

import pytest

from scripts.faults.run import PORTS_FROM, SCENARIOS
from scripts.faults.scenario import Scenario
from scripts.faults.trial import Trial

QUICK = [scenario for scenario in SCENARIOS if scenario.quick]


@pytest.mark.parametrize("scenario", QUICK, ids=lambda scenario: scenario.name.replace(" ", "-"))
def test_a_fault_costs_no_request_and_leaves_nothing(scenario: Scenario, tmp_path: Path) -> None:
    row = Trial(scenario, tmp_path / "trial", PORTS_FROM, tmp_path / "models").carry_out()
    assert row.broken == []
    assert row.lost == row.left == 0
