"""What each Xid means and what is done about it."""

import pytest

from supervisor.xid import XIDS, Action, xid


@pytest.mark.parametrize(
    ("action", "codes"),
    [
        (Action.RESTART, [13, 31, 32, 39, 68, 69, 94]),
        (Action.NOTE, [43, 45, 63, 74, 92, 93, 154]),
        (Action.QUARANTINE, [46, 48, 62, 64, 79, 95, 109, 110, 119, 120, 140, 143, 155, 156, 158]),
    ],
)
def test_the_xids_that_operators_meet(action: Action, codes: list[int]) -> None:
    assert {code: xid(code).action for code in codes} == dict.fromkeys(codes, action)


def test_each_row_stands_under_its_code_with_a_meaning_and_its_source() -> None:
    for code, row in XIDS.items():
        assert row.code == code
        assert row.meaning
        assert row.source.startswith("catalogue: ")


def test_only_a_quarantine_waits_for_a_reset_or_makes_answers_void() -> None:
    for row in XIDS.values():
        assert row.needs_reset == (row.action is Action.QUARANTINE)
        assert not row.void or row.action is Action.QUARANTINE
    assert {row.code for row in XIDS.values() if row.void} == {48, 79, 95, 140, 158}


def test_an_xid_that_the_table_does_not_have_is_noted_as_unknown() -> None:
    row = xid(999)
    assert (row.code, row.action, row.needs_reset) == (999, Action.NOTE, False)
    assert "unknown" in row.meaning
