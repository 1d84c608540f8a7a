"""What `chimera doctor` finds: a verdict in one line, and what to do about it. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


class Verdict(StrEnum):
    """How something is. A warning works, or may not be known; a fault does not work."""

    OK = "ok"
    WARNING = "warning"
    FAULT = "fault"


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found of one thing; `advice` says what to do, and is empty where nothing is to be done."""

    check: str
    verdict: Verdict
    text: str
    advice: str = ""


def ok(check: str, text: str) -> Finding:
    """It is well."""
    return Finding(check, Verdict.OK, text)


def warning(check: str, text: str, advice: str) -> Finding:
    """It works, but not as well as it could, or may stop working."""
    return Finding(check, Verdict.WARNING, text, advice)


def fault(check: str, text: str, advice: str) -> Finding:
    """It does not work."""
    return Finding(check, Verdict.FAULT, text, advice)


def unseen(check: str, what: str) -> Finding:
    """It cannot be looked at with the rights of who asks."""
    return warning(check, f"{what} cannot be looked at by this user", "sudo chimera doctor")


def overdue(check: str, timeout_s: float) -> Finding:
    """No answer came in time: what hangs is a finding itself."""
    return fault(
        check,
        f"gave no answer within {timeout_s:g} s",
        "something below it hangs: a driver, a network file system, a database; look at dmesg",
    )


def failed(check: str, cause: str) -> Finding:
    """The check itself did not get to its end."""
    return fault(check, f"could not be looked at: {cause}", "look at it by hand")


def worst(findings: Iterable[Finding]) -> Verdict:
    """Return the worst verdict, ok where there is none."""
    order = list(Verdict)
    return max((finding.verdict for finding in findings), key=order.index, default=Verdict.OK)


def lines(findings: Iterable[Finding]) -> list[str]:
    """Return the findings for people: a line each, and one below it that says what to do."""
    told: list[str] = []
    for finding in findings:
        told.append(f"{finding.verdict:<8} {finding.check:<12} {finding.text}")
        if finding.advice:
            told.append(f"{'':21} -> {finding.advice}")
    return told


def size(count: float) -> str:
    """Return bytes for people."""
    for unit, factor in (("TiB", 1024**4), ("GiB", 1024**3), ("MiB", 1024**2)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count / 1024:.0f} KiB"
