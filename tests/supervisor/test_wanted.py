"""The wanted fleet on disk outlives a restart, and no bad file ever costs a start."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from supervisor import state_file
from supervisor.events import EventLog
from supervisor.house import WorkerSpec
from supervisor.placement import CPU, Placement
from supervisor.wanted import QuarantineFile, WantedFile
from tests.fakes.examples import examples

FLEET = [WorkerSpec("w1", CPU, 4), WorkerSpec("w3", Placement("GPU-aaaa"), 1)]


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    WantedFile(tmp_path, "auto", EventLog()).save(FLEET, 3)
    assert WantedFile(tmp_path, "auto", EventLog()).load() == (FLEET, 3)
    assert names(tmp_path) == ["fleet.json"]


def test_an_empty_fleet_is_a_fleet(tmp_path: Path) -> None:
    WantedFile(tmp_path, "auto", EventLog()).save([], 7)
    assert WantedFile(tmp_path, "auto", EventLog()).load() == ([], 7)


def test_nothing_saved_is_none(tmp_path: Path) -> None:
    assert WantedFile(tmp_path, "auto", EventLog()).load() is None
    assert names(tmp_path) == []


def test_a_changed_workers_setting_is_a_newer_wish(tmp_path: Path) -> None:
    WantedFile(tmp_path, "auto", EventLog()).save(FLEET, 3)
    assert WantedFile(tmp_path, "cpu=1", EventLog()).load() is None
    assert WantedFile(tmp_path, "auto", EventLog()).load() == (FLEET, 3)


BROKEN = [
    b"",
    b"{",
    b"\xff\xfe",
    b"[]",
    b'{"a":[' * 5000,
    b'{"workers_setting": "\xff\xfe", "next_number": 1, "workers": []}',
    b'{"workers_setting": "auto", "next_number": 1}',
    b'{"workers_setting": "auto", "next_number": "x", "workers": []}',
    b'{"workers_setting": "auto", "next_number": 1, "workers": [{"id": "w1"}]}',
    b'{"workers_setting": "auto", "next_number": 1, "workers": [{"id": "w1", "placement": 5, "slots": 1}]}',
]


@pytest.mark.parametrize("content", BROKEN)
def test_a_file_that_cannot_be_read_is_set_aside_and_never_fatal(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "fleet.json").write_bytes(content)
    assert WantedFile(tmp_path, "auto", EventLog()).load() is None
    (kept,) = tmp_path.iterdir()
    assert kept.name.startswith("fleet.json.corrupt-")
    assert kept.read_bytes() == content
    WantedFile(tmp_path, "auto", EventLog()).save(FLEET, 3)
    assert WantedFile(tmp_path, "auto", EventLog()).load() == (FLEET, 3)


def test_a_directory_in_its_place_is_set_aside_too(tmp_path: Path) -> None:
    (tmp_path / "fleet.json").mkdir()
    assert WantedFile(tmp_path, "auto", EventLog()).load() is None


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def no_space(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(state_file.os, "fsync", no_space)  # type: ignore[attr-defined]  # the module's own import
        yield


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, full_disk: None) -> None:
    file = WantedFile(tmp_path, "auto", EventLog())
    (tmp_path / "fleet.json").write_text('{"workers_setting":"auto","next_number":2,"workers":[]}')
    with pytest.raises(OSError, match="No space left"):
        file.save(FLEET, 3)
    assert file.load() == ([], 2)
    assert names(tmp_path) == ["fleet.json"]


SPECS = st.builds(
    WorkerSpec, st.integers(1, 900).map("w{}".format), st.from_regex(r"[!-~]{1,20}", fullmatch=True).map(Placement),
    st.integers(1, 1024),
)  # fmt: skip


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], max_examples=examples(40))
@given(st.lists(SPECS, max_size=5, unique_by=lambda spec: spec.id), st.integers(900, 10**9 - 1), st.text(max_size=20))
def test_any_fleet_reads_back_as_it_was(tmp_path: Path, specs: list[WorkerSpec], number: int, setting: str) -> None:
    WantedFile(tmp_path, setting, EventLog()).save(specs, number)
    assert WantedFile(tmp_path, setting, EventLog()).load() == (specs, number)


def test_an_older_chimeras_file_has_no_version_and_holds(tmp_path: Path) -> None:
    (tmp_path / "fleet.json").write_text(
        '{"workers_setting": "auto", "next_number": 3, "workers": [{"id": "w1", "placement": "cpu", "slots": 4}]}'
    )
    assert WantedFile(tmp_path, "auto", EventLog()).load() == ([WorkerSpec("w1", CPU, 4)], 3)


@pytest.mark.parametrize(
    ("workers", "number", "why"),
    [
        ([("w1", "cpu", 1), ("w1", "cpu", 1)], 3, "two workers have the same id"),
        ([("../../w1", "cpu", 1)], 3, "'../../w1' is no worker's id"),
        ([("w1", "cpu", 0)], 3, "w1 has 0 slots on 'cpu'"),
        ([("w1", "GPU-\0", 1)], 3, r"w1 has 1 slots on 'GPU-\x00'"),
        ([("w4", "cpu", 1)], 3, "w4 is there, but the last number given is 3"),
        ([], -1, "0 workers, and the last number given is -1"),
        ([(f"w{n}", "cpu", 1) for n in range(1, 999)], 999, "998 workers, and the last number given is 999"),
    ],
)
def test_a_fleet_that_makes_no_sense_is_set_aside(
    tmp_path: Path, workers: list[tuple[str, str, int]], number: int, why: str
) -> None:
    specs = [WorkerSpec(worker_id, Placement(place), slots) for worker_id, place, slots in workers]
    events = EventLog()
    file = WantedFile(tmp_path, "auto", events)
    file.save(specs, number)
    assert file.load() is None
    (said,) = events.newest()
    assert (said["event"], said["cause"]) == ("state_file_set_aside", why)


def test_quarantines_are_kept_as_they_were_ordered(tmp_path: Path) -> None:
    file = QuarantineFile(tmp_path, EventLog())
    assert file.load() == frozenset()
    file.save(frozenset({"GPU-b", "GPU-a"}))
    assert QuarantineFile(tmp_path, EventLog()).load() == {"GPU-a", "GPU-b"}
    assert [path.name for path in tmp_path.iterdir()] == ["quarantined.json"]


@pytest.mark.parametrize("text", ["", "{}", "[1]", "not json", '{"version": 2, "uuids": []}'])
def test_quarantines_that_cannot_be_read_are_set_aside_and_said(tmp_path: Path, text: str) -> None:
    (tmp_path / "quarantined.json").write_text(text)
    events = EventLog()
    assert QuarantineFile(tmp_path, events).load() == frozenset()
    (aside,) = tmp_path.iterdir()
    assert aside.read_text() == text
    (said,) = events.newest()
    assert said["instead"] == "no GPU is quarantined by order; give the orders again: chimera quarantine GPU"


def test_a_disk_that_takes_nothing_does_not_undo_the_order(tmp_path: Path) -> None:
    QuarantineFile(tmp_path / "gone", EventLog()).save(frozenset({"GPU-a"}))
