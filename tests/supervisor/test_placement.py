"""Which GPU the next worker gets."""

from collections import Counter
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.errors import NoRoom, UnknownGpu
from supervisor.placement import CPU, Placement, find_gpu, place, wanted_fleet


@dataclass(frozen=True)
class Card:
    index: int
    uuid: str
    name: str = "H200"
    memory_total_bytes: int = 100
    memory_used_bytes: int = 0
    fault: str | None = None
    mig_of: str | None = None
    mig_devices: bool = False


A, B, C = Card(0, "GPU-aaaa-1"), Card(1, "GPU-aabb-2"), Card(2, "GPU-cccc-3")
CARDS = [A, B, C]


@pytest.mark.parametrize(
    ("wanted", "found"),
    [(0, A), ("1", B), (" 2 ", C), ("GPU-aaaa-1", A), ("gpu-AABB-2", B), ("GPU-c", C), ("GPU-aab", B)],
)
def test_a_gpu_is_found_by_index_uuid_or_beginning(wanted: str | int, found: Card) -> None:
    assert find_gpu(wanted, CARDS) is found


@pytest.mark.parametrize(
    ("wanted", "sentence"),
    [
        (3, "there is no GPU '3'"),
        ("", "there is no GPU ''"),
        ("-1", "there is no GPU '-1'"),
        ("GPU-aa", "'GPU-aa' is the beginning of 2 GPUs"),
        ("GPU-x", "there is no GPU 'GPU-x'"),
    ],
)
def test_a_gpu_that_is_not_there_is_refused_with_those_that_are(wanted: str | int, sentence: str) -> None:
    with pytest.raises(UnknownGpu) as refused:
        find_gpu(wanted, CARDS)
    assert str(refused.value).startswith(sentence)
    assert "0 (GPU-aaaa-1, H200), 1 (GPU-aabb-2, H200)" in str(refused.value)


def test_without_a_gpu_only_the_cpu_can_be_named() -> None:
    with pytest.raises(UnknownGpu, match="none; only cpu"):
        find_gpu(0, [])
    assert place("cpu", 2, [], []) == [CPU, CPU]
    assert place(None, 2, [], []) == [CPU, CPU]


def test_an_exact_uuid_wins_over_a_longer_one() -> None:
    mig = Card(3, "GPU-cccc-3-mig")
    assert find_gpu("GPU-cccc-3", [mig, C]) is C


def test_an_index_is_the_gpu_that_answers_to_it_now() -> None:
    gone = Card(0, "GPU-gone", fault="the driver no longer lists the GPU")
    assert find_gpu(0, [A, gone]) is A
    assert find_gpu("GPU-gone", [A, gone]) is gone


def test_a_gpu_that_never_told_its_uuid_is_found_by_its_index_alone_and_gets_no_worker() -> None:
    silent = Card(3, "", "unknown GPU", fault="the GPU is lost: the driver cannot reach it")
    assert find_gpu(3, [A, silent]) is silent
    with pytest.raises(UnknownGpu):
        find_gpu("", [A, silent])
    assert set(place(None, 4, [A, silent], [])) == {A.uuid}
    with pytest.raises(NoRoom, match="GPU 3 cannot be used: the GPU is lost"):
        place(3, 1, [A, silent], [])
    placements, faults = wanted_fleet(None, [A, silent], 1)
    assert placements == [A.uuid]
    assert faults == ["WORKERS: GPU 3 cannot be used: the GPU is lost: the driver cannot reach it"]
    assert wanted_fleet(None, [silent], 1)[0] == []  # a machine with GPUs, though none answers: not a CPU one


def test_workers_are_spread_over_the_least_loaded_gpus_then_the_most_free_memory() -> None:
    full = Card(1, "GPU-b", memory_used_bytes=90)
    roomy = Card(0, "GPU-a", memory_used_bytes=10)
    assert place(None, 3, [full, roomy], []) == ["GPU-a", "GPU-b", "GPU-a"]
    assert place(None, 1, [full, roomy], [Placement("GPU-a")]) == ["GPU-b"]


def test_a_faulty_gpu_is_the_last_choice() -> None:
    broken = Card(0, "GPU-x", fault="the GPU needs a reset")
    assert place(None, 2, [broken, B], [Placement(B.uuid)] * 5) == [B.uuid, B.uuid]
    assert place(None, 1, [broken], []) == ["GPU-x"]  # it may come back; its worker waits and says why
    assert place(0, 1, [broken, B], []) == ["GPU-x"]


def test_a_quarantined_gpu_takes_no_worker() -> None:
    quarantined = frozenset({A.uuid})
    assert place(None, 2, [A, B], [], quarantined) == [B.uuid, B.uuid]
    with pytest.raises(NoRoom, match=r"GPU 0 \(GPU-aaaa-1\) is quarantined; release it first"):
        place(0, 1, [A, B], [], quarantined)
    with pytest.raises(NoRoom, match="every GPU is quarantined"):
        place(None, 1, [A], [], quarantined)
    assert place("CPU", 1, [A], [], quarantined) == [CPU]


@pytest.mark.parametrize(
    ("workers", "gpus", "placements"),
    [
        (None, CARDS, [A.uuid, B.uuid, C.uuid]),
        (None, [], [CPU, CPU]),
        ((("cpu", 1), ("1", 2)), CARDS, [CPU, B.uuid, B.uuid]),
        ((("0", 0),), CARDS, []),
        ((("GPU-c", 1),), CARDS, [C.uuid]),
    ],
)
def test_the_workers_setting_becomes_placements(
    workers: tuple[tuple[str, int], ...] | None, gpus: list[Card], placements: list[str]
) -> None:
    assert wanted_fleet(workers, gpus, 2) == (placements, [])


def test_a_gpu_that_is_missing_does_not_keep_the_others_from_working() -> None:
    placements, faults = wanted_fleet((("7", 1), ("0", 1), ("GPU-aa", 1)), CARDS, 1)
    assert placements == [A.uuid]
    assert len(faults) == 2
    assert all(fault.startswith("WORKERS: ") for fault in faults)


SPLIT = Card(0, "GPU-aaaa-1", mig_devices=True)
PART_0, PART_1 = (Card(0, f"MIG-{end}", "MIG 1g", 20, mig_of=SPLIT.uuid) for end in ("0aaa", "0bbb"))
SPLIT_CARDS = [SPLIT, PART_0, PART_1, B]


@pytest.mark.parametrize(
    ("wanted", "found"),
    [("0:0", PART_0), ("0:1", PART_1), ("MIG-0a", PART_0), ("mig-0BBB", PART_1), (0, SPLIT), ("1", B)],
)
def test_a_mig_device_is_found_by_uuid_or_number(wanted: str | int, found: Card) -> None:
    assert find_gpu(wanted, SPLIT_CARDS) is found


@pytest.mark.parametrize("wanted", ["0:2", "1:0", "0:", ":0", "0:x", "0:-1", "MIG-0"])
def test_a_mig_device_that_is_not_there_is_refused_with_those_that_are(wanted: str) -> None:
    with pytest.raises(UnknownGpu, match=r"0:0 \(MIG-0aaa, MIG 1g\), 0:1 \(MIG-0bbb, MIG 1g\), 1 \(GPU-aabb-2"):
        find_gpu(wanted, SPLIT_CARDS)


def test_mig_devices_take_workers_like_gpus_and_their_gpu_never_does() -> None:
    assert Counter(place(None, 6, SPLIT_CARDS, [])) == {PART_0.uuid: 2, PART_1.uuid: 2, B.uuid: 2}
    assert place("0:1", 1, SPLIT_CARDS, []) == [PART_1.uuid]
    assert wanted_fleet(None, SPLIT_CARDS, 1) == ([PART_0.uuid, PART_1.uuid, B.uuid], [])
    assert wanted_fleet((("0:0", 2),), SPLIT_CARDS, 1) == ([PART_0.uuid] * 2, [])
    with pytest.raises(NoRoom, match=r"split by MIG .* one of its MIG devices: 0:0 \(MIG-0aaa\), 0:1 \(MIG-0bbb\)"):
        place(0, 1, SPLIT_CARDS, [])
    with pytest.raises(NoRoom, match="there is none yet"):
        place(0, 1, [SPLIT, B], [])


@pytest.mark.parametrize("quarantined", [{SPLIT.uuid}, {PART_0.uuid, PART_1.uuid}])
def test_the_mig_devices_of_a_quarantined_gpu_take_no_worker(quarantined: set[str]) -> None:
    assert place(None, 2, SPLIT_CARDS, [], frozenset(quarantined)) == [B.uuid] * 2
    with pytest.raises(NoRoom, match=r"GPU 0:0 \(MIG-0aaa\) is quarantined"):
        place("0:0", 1, SPLIT_CARDS, [], frozenset(quarantined))


@given(
    st.lists(st.tuples(st.integers(0, 99), st.booleans()), min_size=1, max_size=6),
    st.lists(st.integers(0, 5), max_size=12),
    st.integers(1, 20),
)
def test_a_spread_is_even_and_never_on_a_quarantined_gpu(
    cards: list[tuple[int, bool]], placed: list[int], count: int
) -> None:
    gpus = [Card(i, f"GPU-{i}", memory_used_bytes=used) for i, (used, _) in enumerate(cards)]
    quarantined = frozenset(f"GPU-{i}" for i, (_, out) in enumerate(cards) if out)
    before = [Placement(f"GPU-{i}") for i in placed if i < len(gpus)]
    if len(quarantined) == len(gpus):
        with pytest.raises(NoRoom):
            place(None, count, gpus, before, quarantined)
        return
    chosen = place(None, count, gpus, before, quarantined)
    assert len(chosen) == count
    assert not set(chosen) & quarantined
    load = Counter([*before, *chosen])
    well = [gpu.uuid for gpu in gpus if gpu.uuid not in quarantined]
    for uuid in set(chosen):  # nothing was added to a GPU while another had less
        assert load[Placement(uuid)] - 1 <= min(load[Placement(other)] for other in well)
