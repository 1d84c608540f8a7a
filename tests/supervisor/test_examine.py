"""How the doctor looks: each check with a deadline, and with the rights of who is concerned."""

import os
import pwd
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from supervisor import examine as module
from supervisor.doctor import Finding, ok
from supervisor.examine import account_of, asked, examine, may, run_as, unit_shown

ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="root is needed to ask as another user")


async def test_findings_come_in_the_order_of_the_checks() -> None:
    slow = threading.Event()

    def first() -> Sequence[Finding]:
        slow.wait(20)
        return [ok("a", "1"), ok("a", "2")]

    def second() -> Sequence[Finding]:
        slow.set()
        return [ok("b", "3")]

    found = await examine({"a": first, "b": second})
    assert [finding.text for finding in found] == ["1", "2", "3"]


async def test_a_check_that_hangs_is_a_finding_and_holds_up_nobody() -> None:
    over = threading.Event()

    def hangs() -> Sequence[Finding]:
        over.wait(60)
        return []

    found = await examine({"gpu": hangs, "b": lambda: [ok("b", "well")]}, timeout_s=1.0)
    over.set()
    assert [(finding.check, finding.text) for finding in found] == [("gpu", "gave no answer within 1 s"), ("b", "well")]


async def test_a_check_that_fails_is_a_finding() -> None:
    def fails() -> Sequence[Finding]:
        raise OSError(5, "Input/output\nerror")

    (finding,) = await examine({"disk": fails})
    assert finding.text == "could not be looked at: OSError: [Errno 5] Input/output error"


async def test_what_may_not_be_looked_at_is_said_to_be_hidden() -> None:
    def shut() -> Sequence[Finding]:
        raise PermissionError(13, "Permission denied", "/var/lib/chimera")

    (finding,) = await examine({"store": shut})
    assert finding.text == "/var/lib/chimera cannot be looked at by this user"


def test_a_program_that_fails_or_is_not_there_says_nothing() -> None:
    assert asked(["sh", "-c", "echo hello"]) == "hello\n"
    assert asked(["sh", "-c", "echo hello; exit 1"]) is None
    assert asked(["/no/such/program"]) is None


def test_a_program_that_does_not_end_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PROGRAM_TIMEOUT_S", 0.05)
    assert asked(["sleep", "600"]) is None


def test_whoever_asks_counts_where_there_is_no_other() -> None:
    assert account_of(None).uid == os.geteuid()
    assert account_of("no such user").is_me


def test_my_own_rights_are_known(tmp_path: Path) -> None:
    assert may(account_of(None), tmp_path, "rwx") is True
    assert may(account_of(None), tmp_path / "none", "r") is False


@ROOT_ONLY
def test_root_asks_with_the_rights_of_the_other(tmp_path: Path) -> None:
    nobody = account_of("nobody")
    open_file, shut = Path("/etc/passwd"), tmp_path / "shut"
    shut.write_text("")
    shut.chmod(0o600)
    assert (may(nobody, open_file, "r"), may(nobody, open_file, "w"), may(nobody, shut, "r")) == (True, False, False)
    done = run_as(["id", "-u"], nobody)
    assert done is not None
    assert done.stdout.strip() == str(pwd.getpwnam("nobody").pw_uid)


def test_anothers_rights_are_not_known_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    nobody = account_of("nobody")
    monkeypatch.setattr(os, "geteuid", lambda: 4711)
    assert may(nobody, Path("/etc/passwd"), "r") is None


@pytest.mark.parametrize(("env_file", "ours"), [("/etc/chimera/chimera.env", True), ("/home/x/.env", False)])
def test_a_service_with_other_settings_is_not_ours(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, env_file: str, ours: bool
) -> None:
    said = (
        "LoadState=loaded\nUser=chimera\n"
        "ExecStart={ path=/opt/chimera ; argv[]=/opt/chimera --env-file /etc/chimera/chimera.env run ; pid=0 }\n"
    )
    monkeypatch.setattr(module, "asked", lambda _: said)
    monkeypatch.setattr(module, "BOOTED", tmp_path)
    assert unit_shown(Path(env_file)).get("User") == ("chimera" if ours else None)
    monkeypatch.setattr(module, "BOOTED", tmp_path / "none")
    assert unit_shown(Path(env_file)) == {}
