"""make test-gpu: what its rows say of the reports, of NVML's lists and of the admin API's answers."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import trio

from scripts.gpus import judge
from scripts.gpus.judge import Report, newest, read_reports
from scripts.gpus.launcher import events_in, watch_both
from scripts.gpus.row import COLUMNS, GIB, MIB, Row, broken, cards, markdown
from supervisor.gpu_events import GpuEvent
from tests.fakes.chimera import ROOT
from tests.fakes.nvml import GPU_A, GPU_B

Json = dict[str, Any]
MIG = "MIG-cccccccc-1111-2222-3333-444444444444"


def worker(name: str = "w1", placement: str = GPU_A, **more: Any) -> Json:
    return {
        "id": name, "placement": placement, "state": "IDLE", "pid": 10, "restarts": 0, "degraded": False,
        "gpu_memory_bytes": 512 * MIB, **more,
    }  # fmt: skip


def gpu(uuid: str = GPU_A, processes: dict[int, int | None] | None = None, **more: Any) -> Json:
    listed = [
        {"pid": pid, "memory_bytes": None if mib is None else mib * MIB} for pid, mib in (processes or {}).items()
    ]
    return {
        "uuid": uuid, "name": "H200", "mig_of": None, "memory_total_bytes": 140 * GIB, "memory_used_bytes": 0,
        "temperature_c": 30, "power_w": 70.0, "utilisation_percent": 0, "fault": None, "processes": listed, **more,
    }  # fmt: skip


def report(name: str = "w1", *uuids: str, pid: int = 11, error: str | None = None) -> Report:
    return Report(pid, name, "…", uuids, error)


# --- Rows


def test_the_cells_of_a_row() -> None:
    assert Row("pin", "one", "two", kept=False, after_s=10.0).cells() == ("pin", "one", "two", "BROKEN")
    assert Row("pin", "one", "one", kept=True, after_s=2.04).cells() == ("pin", "one", "one (after 2.0 s)", "kept")
    assert broken([Row("a", "", "", kept=True), Row("b", "", "", kept=False)]) == ["b"]


def test_the_page_is_one_line_per_row_whatever_was_seen() -> None:
    page = markdown([Row("a", "b", "two\nlines | and a bar", kept=True)], "Looked at.").splitlines()
    assert page[2:5] == ["Looked at.", "", "| " + " | ".join(COLUMNS) + " |"]
    assert page[6] == "| a | b | two lines \\| and a bar | kept |"


def test_cards_are_counted() -> None:
    assert cards([("H200", 140 * GIB), ("H200", 140 * GIB), ("T4", 15 * GIB)]) == "2 × H200 (140 GiB), 1 × T4 (15 GiB)"


# --- Reports


def test_reports_are_whole_lines_and_the_newest_counts() -> None:
    line = '{"pid": %d, "worker": "w1", "visible": "GPU-a", "uuids": ["GPU-a"], "error": null}'
    reports = read_reports(f'{line % 7}\n{line % 8}\n{{"pid": 9, "wor')
    assert [found.pid for found in reports] == [7, 8]
    assert newest(reports) == {"w1": Report(8, "w1", "GPU-a", ("GPU-a",), None)}
    assert newest(reports, but={7, 8}) == {}


# --- Judgements


@pytest.mark.parametrize(
    ("found", "good"),
    [
        (report("w1", GPU_A), True),
        (report("w1", GPU_A.upper()), True),
        (report("w1", GPU_B), False),
        (report("w1", GPU_A, GPU_B), False),
        (report("w1"), False),
        (report("w1", GPU_A, error="cuMemAlloc_v2 returned 2"), False),
        (report("w2", GPU_A), False),
    ],
)
def test_a_pin_holds_when_one_device_is_seen_and_it_is_the_placement(found: Report, good: bool) -> None:
    assert judge.pinned([worker()], {found.worker: found}).good is good


def test_nobody_is_not_everybody() -> None:
    assert not judge.pinned([], {}).good
    assert not judge.listed([], {}, [gpu()], 0).good
    assert not judge.agreed([], {}, [gpu()]).good
    assert not judge.proven([], []).good
    assert not judge.again([], [], {}).good
    assert not judge.telemetry([]).good
    assert not judge.gone([], [], []).good
    assert not judge.returned({}, {}, [GPU_A]).good


@pytest.mark.parametrize(
    ("found", "good"), [(report("w1"), True), (report("w1", GPU_A), False), (report("w1", error="no libcuda"), False)]
)
def test_a_cpu_worker_must_see_nothing(found: Report, good: bool) -> None:
    assert judge.unseeing(worker(placement="cpu"), {"w1": found}).good is good


@pytest.mark.parametrize(
    ("gpus", "good", "said"),
    [
        ([gpu(GPU_A, {11: 512}), gpu(GPU_B)], True, "512 MiB on GPU-aaaaaaaa"),
        ([gpu(GPU_A, {11: 511}), gpu(GPU_B)], False, "511 MiB"),
        ([gpu(GPU_A, {11: None}), gpu(GPU_B)], False, "0 MiB"),
        ([gpu(GPU_A, {99: 512}), gpu(GPU_B)], False, "in a container"),
        ([gpu(GPU_A), gpu(GPU_B, {11: 512})], False, "also on GPU-bbbbbbbb"),
        ([gpu(GPU_A, {11: 512}), gpu(GPU_B, {11: 512})], False, "also on GPU-bbbbbbbb"),
        ([gpu(GPU_A, {11: 512}, mig_of=GPU_B), gpu(GPU_B, {11: 512})], True, "512 MiB"),
    ],
)
def test_nvml_must_list_a_program_on_its_gpu_alone(gpus: list[Json], good: bool, said: str) -> None:
    seen = judge.listed([worker()], {"w1": report("w1", GPU_A)}, gpus, 512 * MIB)
    assert seen.good is good
    assert said in seen.text


@pytest.mark.parametrize(("says", "nvml", "good"), [(512, 512, True), (512, 600, False), (0, 0, False)])
def test_what_the_row_says_is_what_nvml_says(says: int, nvml: int, good: bool) -> None:
    rows = [worker(gpu_memory_bytes=says * MIB)]
    assert judge.agreed(rows, {"w1": report("w1", GPU_A)}, [gpu(GPU_A, {11: nvml})]).good is good


@pytest.mark.parametrize(
    ("gpus", "missing"),
    [
        ([gpu()], ""),
        ([gpu(power_w=None)], "not told: power_w"),
        ([gpu(utilisation_percent=None)], "not told: utilisation_percent"),
        ([gpu(utilisation_percent=None), gpu(MIG, mig_of=GPU_A, temperature_c=None, power_w=None)], ""),
        ([gpu(fault="the GPU is lost")], "the GPU is lost"),
    ],
)
def test_telemetry_is_whole_or_says_what_it_lacks(gpus: list[Json], missing: str) -> None:
    seen = judge.telemetry(gpus)
    assert seen.good is (not missing)
    assert missing in seen.text


def test_memory_grows_and_returns() -> None:
    before, used = {GPU_A: 100 * MIB, GPU_B: 0}, {GPU_A: 700 * MIB, GPU_B: 40 * MIB}
    assert judge.grown(used, before, {GPU_A: 1}, 512 * MIB).good
    assert not judge.grown(used, before, {GPU_A: 2}, 512 * MIB).good
    assert not judge.grown(used, before, {GPU_A: 1, GPU_B: 1}, 512 * MIB).good
    assert judge.returned(used, before, [GPU_B]).good
    assert not judge.returned(used, before, [GPU_A, GPU_B]).good


def test_programs_are_gone_when_neither_linux_nor_nvml_knows_them() -> None:
    assert judge.gone([11], [gpu(GPU_A, {99: 5})], []).good
    assert not judge.gone([11], [gpu(GPU_A, {11: 5})], []).good
    assert not judge.gone([11], [gpu()], [11]).good


def test_a_worker_everywhere_and_nowhere_else() -> None:
    assert judge.everywhere([worker(), worker("w2", GPU_B)], [GPU_A, GPU_B]).good
    assert not judge.everywhere([worker()], [GPU_A, GPU_B]).good
    assert not judge.everywhere([worker(), worker("w2", state="STARTING")], [GPU_A]).good


@pytest.mark.parametrize(
    ("row", "events", "good"),
    [
        (worker(), [{"event": "worker_idle", "worker": "w1"}], True),
        (worker(degraded=True), [], False),
        (worker(restarts=1), [], False),
        (worker(), [{"event": "worker_misplaced", "worker": "w1", "cause": "not on the GPU"}], False),
    ],
)
def test_placement_is_proven_by_nothing_having_been_said_against_it(row: Json, events: list[Json], good: bool) -> None:
    assert judge.proven([row], events).good is good


def test_a_restarted_worker_is_ready_in_a_new_process_with_a_new_program() -> None:
    programs = {"w1": report("w1", GPU_A)}
    assert judge.again([worker(pid=20)], [10], programs).good
    assert not judge.again([worker(pid=10)], [10], programs).good
    assert not judge.again([worker(pid=20, state="WARMING")], [10], programs).good
    assert not judge.again([worker(pid=20)], [10], {}).good


def test_the_others_are_untouched_in_their_processes() -> None:
    assert judge.untouched([worker()], {"w1": 10}).good
    assert not judge.untouched([worker(pid=20)], {"w1": 10}).good
    assert not judge.untouched([], {"w1": 10}).good
    assert judge.untouched([worker()], {}).text == "there is no other GPU here"


# --- The injected events


def test_an_injected_event_is_a_whole_line() -> None:
    assert events_in("GPU-a 31\nGPU-b 79\nGPU-a 3") == [GpuEvent("GPU-a", "xid", 31), GpuEvent("GPU-b", "xid", 79)]
    assert events_in("") == []
    with pytest.raises(ValueError, match="invalid literal"):
        events_in("GPU-a XID\n")


async def test_each_injected_event_is_published_once(
    tmp_path: Path, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def no_driver(_publish: object, task_status: trio.TaskStatus[None], **_: object) -> None:
        task_status.started()
        await trio.sleep_forever()

    monkeypatch.setattr("scripts.gpus.launcher.watch_events", no_driver)
    file, heard = tmp_path / "xids", list[GpuEvent]()
    send, receive = trio.open_memory_channel[GpuEvent](10)

    def publish(event: GpuEvent) -> None:
        heard.append(event)
        send.send_nowait(event)

    async def watch(task_status: trio.TaskStatus[None]) -> None:
        await watch_both(publish, path=trio.Path(file), task_status=task_status)

    async with trio.open_nursery() as nursery:
        await nursery.start(watch)
        file.write_text("GPU-a 31\n")
        await receive.receive()
        file.write_text("GPU-a 31\nGPU-b 79\n")
        await receive.receive()
        nursery.cancel_scope.cancel()
    assert heard == [GpuEvent("GPU-a", "xid", 31), GpuEvent("GPU-b", "xid", 79)]


# --- Without a GPU


def test_without_a_gpu_one_line_says_so(tmp_path: Path) -> None:
    (tmp_path / "libnvidia-ml.so.1").write_text("no library")
    argv = [sys.executable, str(ROOT / "scripts" / "test_gpu.py")]
    env = os.environ | {"LD_LIBRARY_PATH": str(tmp_path)}
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("test_gpu.py: this needs an NVIDIA GPU: ")
    assert done.stderr.count("\n") == 1
