"""Which logs are set aside or removed, as a table of folders."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.rotation import FILE_BYTES, GONE_KEPT, LogFile, Orders, file_bound_bytes, is_ours, orders

MIB = 1024**2


def files(**sizes_mib: float) -> list[LogFile]:
    """Files by name (`_` for `.`), the first changed first."""
    return [
        LogFile(name.replace("_", "."), int(size * MIB), float(at)) for at, (name, size) in enumerate(sizes_mib.items())
    ]


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("w1.log", True),
        ("w12.log.1", True),
        ("w12.log.1.new", True),
        ("primary.log", True),
        ("chimera.log.1", True),
        ("w1.log.2", False),
        ("w1.log.new", False),
        ("xw1.log", False),
        ("w1.logs", False),
        ("syslog", False),
        ("wtmp.log", False),
        ("chimera.db", False),
    ],
)
def test_only_chimeras_own_logs_are_touched(name: str, ours: bool) -> None:
    assert is_ours(name) is ours
    removed = orders([LogFile(name, 10**12, 0.0)], [], 100 * MIB).remove
    assert bool(removed) is (ours and name != "primary.log")


def test_a_log_that_grew_is_set_aside_whoever_writes_it() -> None:
    grown = files(w1_log=65, w1_log_1=64, w2_log=63, primary_log=65, chimera_log=65)
    assert orders(grown, ["w1", "w2"], 2048 * MIB) == Orders(("w1.log", "primary.log", "chimera.log"), ())


def test_many_logs_share_the_bound() -> None:
    assert file_bound_bytes(4, 2048 * MIB) == FILE_BYTES
    assert file_bound_bytes(258, 2048 * MIB) < 4 * MIB
    assert orders(files(w1_log=2), ["w1"], 16 * MIB).set_aside == ()
    assert orders(files(w1_log=2), ["w1", "w2"], 16 * MIB).set_aside == ("w1.log",)


def test_of_workers_that_are_gone_the_newest_logs_are_kept() -> None:
    gone = [LogFile(f"w{n}.log{end}", 10, float(n)) for n in range(30) for end in ("", ".1")]
    removed = orders(gone, ["w0"], 100 * MIB).remove
    assert set(removed) == {f"w{n}.log{end}" for n in range(1, 30 - GONE_KEPT) for end in ("", ".1")}


def test_what_is_too_much_together_goes_the_oldest_first_those_of_the_gone_before_others() -> None:
    there = files(w1_log_1=30, w2_log_1=30, w8_log=30, w9_log=30, w1_log=1)
    assert orders(there, ["w1", "w2"], 121 * MIB).remove == ()
    assert orders(there, ["w1", "w2"], 120 * MIB).remove == ("w8.log",)
    assert orders(there, ["w1", "w2"], 31 * MIB).remove == ("w8.log", "w9.log", "w1.log.1")
    assert orders(there, ["w1", "w2"], 16 * MIB).remove == ("w8.log", "w9.log", "w1.log.1", "w2.log.1")


def test_a_copy_that_was_not_finished_is_removed() -> None:
    assert orders(files(w1_log=1, w1_log_1_new=1), ["w1"], 100 * MIB) == Orders((), ("w1.log.1.new",))


@given(
    st.lists(
        st.tuples(
            st.integers(0, 40), st.sampled_from(["", ".1", ".1.new"]), st.integers(0, 100 * MIB), st.floats(0, 1e9)
        ),
        unique_by=lambda row: row[:2],
    ),
    st.sets(st.integers(0, 40)),
    st.integers(16 * MIB, 2048 * MIB),
)
def test_done_twice_what_is_left_is_within_the_bound(
    rows: list[tuple[int, str, int, float]], here: set[int], most_bytes: int
) -> None:
    workers = [f"w{number}" for number in here]
    folder = {
        f"w{number}.log{ending}": LogFile(f"w{number}.log{ending}", size, at) for number, ending, size, at in rows
    }
    for now in (1e9 + 1, 1e9 + 2):
        todo = orders(folder.values(), workers, most_bytes)
        for name in todo.remove:
            del folder[name]
        for name in todo.set_aside:
            folder[f"{name}.1"] = LogFile(f"{name}.1", folder[name].size_bytes, now)
            folder[name] = LogFile(name, 0, now)
    left = orders(folder.values(), workers, most_bytes).remove
    kept = [file for name, file in folder.items() if name not in left]
    assert sum(file.size_bytes for file in kept) <= most_bytes
    assert len({file.name.split(".")[0] for file in kept} - set(workers)) <= GONE_KEPT
