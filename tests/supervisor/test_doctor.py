"""What a finding looks like, and what several come to."""

import pytest

from supervisor.doctor import Finding, Verdict, failed, fault, lines, ok, overdue, size, unseen, warning, worst

GOOD, DOUBTFUL, BAD = ok("clock", "synchronised"), warning("disk", "nearly full", "free some"), fault("gpu", "x", "y")


def test_a_finding_is_a_line_and_what_to_do_is_below_it() -> None:
    assert lines([GOOD, DOUBTFUL]) == [
        "ok       clock        synchronised",
        "warning  disk         nearly full",
        "                      -> free some",
    ]


@pytest.mark.parametrize(
    ("findings", "verdict"),
    [
        ([], Verdict.OK),
        ([GOOD], Verdict.OK),
        ([DOUBTFUL, GOOD], Verdict.WARNING),
        ([GOOD, BAD, DOUBTFUL], Verdict.FAULT),
    ],
)
def test_several_are_as_bad_as_the_worst(findings: list[Finding], verdict: Verdict) -> None:
    assert worst(findings) is verdict


def test_what_hangs_or_fails_is_a_fault_and_what_may_not_be_seen_a_warning() -> None:
    assert overdue("gpu", 10.0).verdict is Verdict.FAULT
    assert "within 10 s" in overdue("gpu", 10.0).text
    assert (unseen("store", "/x").verdict, unseen("store", "/x").advice) == (Verdict.WARNING, "sudo chimera doctor")
    assert failed("store", "OSError: odd").verdict is Verdict.FAULT


def test_sizes_are_for_people() -> None:
    assert [size(n) for n in (0, 2048, 3 * 1024**2, 1.5 * 1024**3, 2 * 1024**4)] == [
        "0 KiB", "2 KiB", "3.0 MiB", "1.5 GiB", "2.0 TiB",
    ]  # fmt: skip
