"""A file in STATE_DIR: after whatever befell it, it is the old one, the new one, or set aside and said."""

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from supervisor import state_file
from supervisor.events import EventLog
from supervisor.state_file import KEPT, MOST_BYTES, StateFile, Unreadable, read_bounded, set_aside, write_whole


class Form(msgspec.Struct):
    number: int
    version: int = 2


def positive(form: Form) -> None:
    if form.number < 0:
        raise ValueError("the number is below 0")


def a_file(folder: Path, events: EventLog | None = None) -> StateFile[Form]:
    return StateFile(
        folder / "it.json", Form, events or EventLog(), version=2, check=positive, instead="numbers begin at 0"
    )


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    assert a_file(tmp_path).load() is None
    a_file(tmp_path).save(Form(5))
    assert a_file(tmp_path).load() == Form(5)
    assert names(tmp_path) == ["it.json"]


def test_a_file_without_a_version_is_of_the_first(tmp_path: Path) -> None:
    (tmp_path / "it.json").write_text('{"number": 3}')
    assert a_file(tmp_path).load() == Form(3)


def test_a_mode_that_the_operator_gave_it_is_kept(tmp_path: Path) -> None:
    a_file(tmp_path).save(Form(1))
    (tmp_path / "it.json").chmod(0o640)
    a_file(tmp_path).save(Form(2))
    assert stat.S_IMODE((tmp_path / "it.json").stat().st_mode) == 0o640


# -- what may be there instead -------------------------------------------------------------------------------------

DAMAGED: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "truncated"),
    "half": (b'{"number": 3, "ver', "truncated"),
    "zeros, as after a power cut": (bytes(40), "invalid character"),
    "noise": (bytes(range(256)), ""),
    "not UTF-8": ('{"number": 1}'.encode("utf-16"), "invalid character"),
    "a list": (b"[1, 2]", "got `array`"),
    "a wrong type": (b'{"number": "one"}', "got `str`"),
    "a part is missing": (b'{"version": 2}', "number"),
    "no sense": (b'{"number": -1}', "the number is below 0"),
    "nested too deep": (b'{"a":[' * 5000, "nested too deep"),
    "a newer version": (b'{"number": 1, "version": 3}', "a newer Chimera wrote it: version 3, and 2 is known here"),
    "a newer version of another form": (b'{"version": 9, "numbers": []}', "a newer Chimera wrote it"),
    "too large": (b" " * (MOST_BYTES + 1), "larger than"),
}


@pytest.mark.parametrize("what", DAMAGED)
def test_a_damaged_file_is_set_aside_as_it_was_and_said_once(tmp_path: Path, what: str) -> None:
    content, why = DAMAGED[what]
    (tmp_path / "it.json").write_bytes(content)
    events = EventLog()
    assert a_file(tmp_path, events).load() is None
    (aside,) = tmp_path.iterdir()
    assert aside.name.startswith("it.json.corrupt-2")
    assert aside.read_bytes() == content
    (said,) = events.newest()
    assert {"event": "state_file_set_aside", "file": str(tmp_path / "it.json"), "kept_as": str(aside),
            "instead": "numbers begin at 0"}.items() <= said.items()  # fmt: skip
    assert why in said["cause"]
    assert "\n" not in said["cause"]


def a_pipe(path: Path) -> None:
    os.mkfifo(path)


def a_folder(path: Path) -> None:
    path.mkdir()
    (path / "somebodys").touch()


def a_loop(path: Path) -> None:
    path.symlink_to(path.name)


@pytest.mark.parametrize("put", [a_pipe, a_folder, a_loop])
def test_what_is_no_file_is_set_aside_too_and_nothing_waits_for_it(tmp_path: Path, put: Callable[[Path], None]) -> None:
    put(tmp_path / "it.json")
    events = EventLog()
    assert a_file(tmp_path, events).load() is None
    assert [event["event"] for event in events.newest()] == ["state_file_set_aside"]
    a_file(tmp_path).save(Form(1))
    assert a_file(tmp_path).load() == Form(1)


def test_a_file_that_may_not_be_read_is_set_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(path: Path) -> bytes:  # root, who runs some of these tests, may read anything
        raise PermissionError(13, "Permission denied", str(path))

    a_file(tmp_path).save(Form(1))
    monkeypatch.setattr(state_file, "read_bounded", denied)
    events = EventLog()
    assert a_file(tmp_path, events).load() is None
    (said,) = events.newest()
    assert (said["event"], said["cause"]) == ("state_file_set_aside", "Permission denied")


def test_where_nothing_can_be_renamed_that_is_said_and_costs_no_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_only(_self: Path, _to: Path) -> None:
        raise OSError(30, "Read-only file system")

    (tmp_path / "it.json").write_bytes(b"{")
    monkeypatch.setattr(Path, "rename", read_only)
    events = EventLog()
    assert a_file(tmp_path, events).load() is None
    (said,) = events.newest()
    assert said["event"] == "state_file_unreadable"
    assert said["set_aside"] == "failed: Read-only file system; the next change overwrites it"
    assert names(tmp_path) == ["it.json"]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.binary(max_size=300))
def test_any_bytes_are_a_value_or_set_aside(tmp_path: Path, content: bytes) -> None:
    for path in tmp_path.iterdir():
        path.unlink()
    (tmp_path / "it.json").write_bytes(content)
    events = EventLog()
    found = a_file(tmp_path, events).load()
    assert (found is None) == bool(events.newest()) == (names(tmp_path) != ["it.json"])
    assert content in [path.read_bytes() for path in tmp_path.iterdir()], "never lost"


# -- what was set aside --------------------------------------------------------------------------------------------


def test_the_newest_are_kept_and_no_others(tmp_path: Path) -> None:
    others = ["it.json.corrupt-of-mine", "it.json.corrupt-", "that.json.corrupt-20260101T000000Z"]
    for name in others:
        (tmp_path / name).touch()
    for number in range(KEPT + 3):
        (tmp_path / "it.json").write_text(str(number))
        (tmp_path / "it.json-wal").write_text(str(number))
        set_aside(tmp_path / "it.json", ("-wal",))
    kept = [path for path in tmp_path.iterdir() if path.name not in others]
    assert sorted(path.read_text() for path in kept if path.name.endswith("wal")) == list("34567")
    assert sorted(path.read_text() for path in kept if not path.name.endswith("wal")) == list("34567")
    assert set(others) < set(names(tmp_path))


def test_a_folder_with_something_in_it_is_never_removed(tmp_path: Path) -> None:
    for number in range(KEPT + 2):
        (tmp_path / "it.json").mkdir()
        (tmp_path / "it.json" / str(number)).touch()
        set_aside(tmp_path / "it.json")
    assert len(names(tmp_path)) == KEPT + 2


def test_a_small_file_is_read_and_what_is_none_refused(tmp_path: Path) -> None:
    (tmp_path / "small").write_bytes(b"x")
    assert read_bounded(tmp_path / "small") == b"x"
    with pytest.raises(Unreadable, match="not a file"):
        read_bounded(tmp_path)


# -- an end in the middle of writing -------------------------------------------------------------------------------


class Killed(BaseException):
    """The process is gone: nothing after this runs."""


def fail_at(monkeypatch: pytest.MonkeyPatch, step: int, fault: BaseException) -> None:
    """Have the step-th call that changes something on the disk fail, and with it each after it."""
    calls = 0

    def instead_of(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls > step:
                raise fault
            return real(*args, **kwargs)

        return call

    for name in ("open", "fchmod", "fsync", "replace"):
        monkeypatch.setattr(state_file.os, name, instead_of(getattr(os, name)))  # type: ignore[attr-defined]


@pytest.mark.parametrize("fault", [Killed(), OSError(28, "No space left on device")], ids=["killed", "disk full"])
@pytest.mark.parametrize("step", range(6))
def test_an_end_at_any_step_leaves_the_old_file_or_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, fault: BaseException
) -> None:
    write_whole(tmp_path / "it.json", b"the old one, which is longer")
    with monkeypatch.context() as patch:
        fail_at(patch, step, fault)
        with pytest.raises(type(fault)):
            write_whole(tmp_path / "it.json", b"the new one")
    renamed = step > 3  # open, fchmod, fsync, replace; then open and fsync of the directory
    assert (tmp_path / "it.json").read_bytes() == (b"the new one" if renamed else b"the old one, which is longer")
    if isinstance(fault, OSError):
        assert names(tmp_path) == ["it.json"]
    write_whole(tmp_path / "it.json", b"the next one")
    assert (tmp_path / "it.json").read_bytes() == b"the next one"
    assert names(tmp_path) == ["it.json"], "what was half written is in nobody's way"


def test_a_write_that_breaks_off_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Breaks:
        def __init__(self, descriptor: int, _mode: str) -> None:
            self._file = open(descriptor, "wb")  # noqa: SIM115 - a descriptor

        def __enter__(self) -> "Breaks":
            return self

        def __exit__(self, *_: object) -> None:
            self._file.close()

        def fileno(self) -> int:
            return self._file.fileno()

        def write(self, data: bytes) -> None:
            self._file.write(data[: len(data) // 2])
            self._file.flush()
            raise OSError(28, "No space left on device")

    write_whole(tmp_path / "it.json", b"the old one")
    with monkeypatch.context() as patch:
        patch.setattr(state_file.os, "fdopen", Breaks)  # type: ignore[attr-defined]
        with pytest.raises(OSError, match="No space"):
            write_whole(tmp_path / "it.json", b"the new one")
    assert (tmp_path / "it.json").read_bytes() == b"the old one"
    assert names(tmp_path) == ["it.json"]
