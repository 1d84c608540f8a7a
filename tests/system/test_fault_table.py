"""The quick ones of `make test-faults`, so that the harness itself does not rot; the whole table takes minutes."""

import pytest

from scripts.faults.row import Row
from scripts.faults.run import SCENARIOS, carry_out

QUICK = [scenario for scenario in SCENARIOS if scenario.quick]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Row]:
    """What became of each, two at a time."""
    return {row.fault: row for row in carry_out(QUICK, tmp_path_factory.mktemp("faults"))}


@pytest.mark.parametrize("fault", [scenario.name for scenario in QUICK])
def test_a_fault_is_noticed_costs_no_request_and_leaves_nothing(rows: dict[str, Row], fault: str) -> None:
    row = rows[fault]
    assert row.broken == []
    assert (row.lost, row.left) == (0, 0)
    assert row.detect_s is not None
