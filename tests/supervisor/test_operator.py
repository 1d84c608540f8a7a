"""What an operator sees and may order, over a real fleet of fake ollamas."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
import trio

from supervisor import operator as operator_module
from supervisor.config_text import workers_text
from supervisor.errors import NoRoom, NotUnderstood, StartFailed, UnknownGpu, UnknownWorker
from supervisor.fleet import Fleet
from supervisor.gpu import Gpu, GpuProcess, GpuReading
from supervisor.lifecycle import State
from supervisor.operator import Operator
from supervisor.placement import CPU, Placement
from supervisor.usage import Usage, UsageMeter
from supervisor.wanted import QuarantineFile, WantedFile
from supervisor.ward import Ward
from supervisor.words import Trouble
from tests.fakes.house import FakeHouse, fake_house, until

A = "GPU-aaaa"
INSTANCE = {
    "id", "state", "placement", "gpu", "port", "pid", "url", "slots", "inflight", "models", "restarts", "started_at",
    "uptime_s", "last_exit", "problem", "trouble", "degraded", "memory", "rss_bytes", "cpu_percent", "gpu_memory_bytes",
}  # fmt: skip


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operator_module, "LOG_POLL_S", 0.01)


class Desk:
    """An operator, and what is behind it."""

    def __init__(self, fake: FakeHouse, fleet: Fleet, it: Operator, meter: UsageMeter) -> None:
        self.fake, self.fleet, self.operator, self.meter = fake, fleet, it, meter

    def log(self, worker_id: str) -> Path:
        return self.fake.house.settings.log_dir / f"{worker_id}.log"

    async def ready(self, *ids: str) -> None:
        for name in ids:
            await until(self.fleet.workers[name], State.READY)


@asynccontextmanager
async def desk(tmp_path: Path, *placements: Placement) -> AsyncIterator[Desk]:
    card = Gpu(0, A, "Fake H200", 1000, 300, 7, 41, 75.5, (GpuProcess(1, 9), GpuProcess(2, None)), None)
    reading = GpuReading((card,), "570", None)
    async with fake_house(tmp_path) as fake:
        await fake.store.keep((), lambda: 0.5)
        (tmp_path / "state").mkdir()
        file = WantedFile(fake.house.settings.state_dir, workers_text(None), fake.house.events)
        ward, meter = Ward(fake.house.events, QuarantineFile(tmp_path / "state", fake.house.events)), UsageMeter()
        fleet = Fleet(replace(fake.house, gpus=ward), fake.leases, file)
        ward.admit(fleet)
        ward.publish(reading)
        it = Operator(fleet, fake.worker("primary"), fake.store, meter, fake.house.events, ward)
        async with trio.open_nursery() as nursery:
            await nursery.start(fleet.run, placements)
            yield Desk(fake, fleet, it, meter)
            nursery.cancel_scope.cancel()


async def test_an_instance_has_everything_that_the_contract_names(tmp_path: Path) -> None:
    async with desk(tmp_path, CPU, Placement(A)) as it:
        await it.ready("w1", "w2")
        it.fake.leases.hold("w2")
        it.meter.latest = {"w2": Usage(123, 4.5, frozenset({1, 2}))}
        one, two = it.operator.instances()
        assert one.keys() == two.keys() == INSTANCE
        json.dumps([one, two, it.operator.primary(), it.operator.gpus()])  # JSON values throughout
        worker = it.fleet.workers["w1"]
        assert worker.process is not None
        assert (one["id"], one["state"], one["gpu"], one["pid"]) == ("w1", "IDLE", None, worker.process.pid)
        assert (one["url"], one["gpu_memory_bytes"]) == (f"http://127.0.0.1:{one['port']}", None)
        assert (two["state"], two["inflight"]) == ("BUSY", 1)
        assert two["gpu"] == {"index": 0, "uuid": A, "name": "Fake H200"}
        assert (two["rss_bytes"], two["cpu_percent"], two["gpu_memory_bytes"]) == (123, 4.5, 9)
        assert it.operator.instance("w1")["id"] == "w1"
        assert it.operator.instance("primary")["state"] == "STARTING"
        with pytest.raises(UnknownWorker):
            it.operator.instance("x")


async def test_a_failed_worker_shows_how_it_ended(tmp_path: Path) -> None:
    async with desk(tmp_path) as it:
        it.fake.behaves(exit_at_start=3)
        (name,) = it.operator.spawn("cpu", 1, None)
        await until(it.fleet.workers[name], State.BACKOFF)
        row = it.operator.instance(name)
        assert row["last_exit"] | {"at": ""} == {
            "reason": "its process ended by itself (exit code 3)", "code": 3, "signal": None, "at": "",
            "log": ["Error: fake ollama was asked to exit"],
        }  # fmt: skip
        assert (row["state"], row["pid"], row["uptime_s"], row["rss_bytes"]) == ("BACKOFF", None, None, 0)
        assert row["problem"] == "its process ended by itself (exit code 3); failed 1 times in a row"
        assert row["trouble"]["what"] == "its process ended by itself (exit code 3)"
        assert row["trouble"]["tried"] == "failed 1 times in a row"
        assert row["trouble"]["next"].startswith("it is started again in")
        assert row["trouble"]["since"] == row["last_exit"]["at"]


async def test_a_gpu_that_is_gone_still_has_its_uuid(tmp_path: Path) -> None:
    async with desk(tmp_path, Placement("GPU-gone")) as it:
        assert it.operator.instance("w1")["gpu"] == {"index": None, "uuid": "GPU-gone", "name": None}
        assert it.operator.instance("w1")["gpu_memory_bytes"] == 0


async def test_gpus_have_a_verdict(tmp_path: Path) -> None:
    async with desk(tmp_path, Placement(A)) as it:
        answer = it.operator.gpus()
        assert (answer["driver_version"], answer["fault"]) == ("570", None)
        (row,) = answer["gpus"]
        assert (row["verdict"], row["workers"], row["processes"][0]) == ("well", ["w1"], {"pid": 1, "memory_bytes": 9})
        assert it.operator.quarantine("0")["verdict"] == "quarantined"
        assert it.operator.release(A)["verdict"] == "well"
        with pytest.raises(UnknownGpu):
            it.operator.quarantine("5")


async def test_the_primary_says_what_the_store_is_doing(tmp_path: Path) -> None:
    async with desk(tmp_path) as it:
        assert it.operator.primary()["store"] is None
        it.fake.store.progress = "pulling m: 5 %"
        assert it.operator.primary()["store"] == "pulling m: 5 %"
        it.fake.store.progress = None
        it.fake.store.trouble = Trouble("m cannot be pulled", datetime.now(UTC), "tried once", "next try in 1 s")
        assert it.operator.primary()["store"] == "m cannot be pulled; tried once, next try in 1 s"


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (NotUnderstood("x"), "not_understood"),
        (UnknownGpu("x"), "not_found"),
        (UnknownWorker("x"), "not_found"),
        (NoRoom("x"), "no_room"),
        (StartFailed("x"), None),
        (ZeroDivisionError(), None),
    ],
)
async def test_a_refusal_is_told_from_a_bug(tmp_path: Path, error: Exception, kind: str | None) -> None:
    async with desk(tmp_path) as it:
        assert it.operator.refusal_of(error) == kind


async def test_prune_takes_the_workers_that_every_condition_names(tmp_path: Path) -> None:
    async with desk(tmp_path, CPU, CPU, Placement(A), Placement(A)) as it:
        await it.ready("w1", "w2", "w3", "w4")
        it.fake.leases.hold("w3")
        prune = it.operator.prune
        with pytest.raises(UnknownWorker):
            prune(["w1", "nobody"], None, idle=False, force=True)
        with pytest.raises(UnknownGpu):
            prune(None, "9", idle=False, force=True)
        assert prune([], None, idle=False, force=True) == []
        assert prune(["w1"], 0, idle=False, force=True) == []
        assert {row["state"] for row in it.operator.instances()} == {"IDLE", "BUSY"}
        assert prune(None, 0, idle=True, force=True) == ["w4"]
        assert prune(["w2", "w2"], None, idle=False, force=True) == ["w2"]
        assert sorted(prune(None, None, idle=False, force=True)) == sorted(it.fleet.workers)
        with trio.fail_after(30):
            await it.operator.wait_gone(["w1", "w2", "w3", "w4", "never was"])


async def test_orders_reach_the_worker(tmp_path: Path) -> None:
    async with desk(tmp_path, CPU) as it:
        await it.ready("w1")
        worker = it.fleet.workers["w1"]
        for verb, state in [("cordon", State.CORDONED), ("uncordon", State.READY), ("drain", State.CORDONED)]:
            it.operator.order("w1", verb)
            await until(worker, state)
        it.operator.order("w1", "restart")
        await until(worker, State.STARTING)
        with trio.fail_after(30):
            await it.operator.wait_settled(["w1", "never was"])
        with pytest.raises(NotUnderstood, match="'explode' is none of drain, cordon, uncordon, restart"):
            it.operator.order("w1", "explode")
        with pytest.raises(UnknownWorker):
            it.operator.order("w9", "drain")


async def test_events_are_told_and_followed(tmp_path: Path) -> None:
    async with desk(tmp_path) as it:
        it.fake.house.events.record("hello")
        assert [event["event"] for event in it.operator.events()] == ["hello"]
        following = it.operator.follow_events()
        with trio.fail_after(30):
            assert (await anext(following))["event"] == "hello"
        await following.aclose()  # type: ignore[attr-defined]  # it is a generator


async def test_log_lines_are_the_last_of_the_workers_log(tmp_path: Path) -> None:
    async with desk(tmp_path, CPU) as it:
        await it.ready("w1")
        last = (it.fake.house.settings.log_dir / "w1.log").read_text().splitlines()[-1]
        assert it.operator.log_lines("w1", 1) == [last]
        assert it.operator.log_lines("primary", 5) == []
        with pytest.raises(UnknownWorker):
            it.operator.log_lines("w9", 1)


async def test_a_followed_log_goes_on_over_a_rotation_without_losing_or_repeating(tmp_path: Path) -> None:
    async with desk(tmp_path) as it:
        log = it.log("primary")
        log.parent.mkdir()
        log.write_text("one\ntwo\nhal")
        seen: list[str] = []

        async def follow() -> None:
            async for line in it.operator.follow_log("primary", 2):
                seen.append(line)  # noqa: PERF401 - it never ends

        async def until_seen(*lines: str) -> None:
            with trio.fail_after(30):
                while seen != list(lines):
                    await trio.sleep(0.005)

        def write(text: str) -> None:
            with log.open("a") as file:
                file.write(text)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(follow)
            await until_seen("one", "two")  # the third line is not yet whole
            write("f\nthree\nfo")
            await until_seen("one", "two", "half", "three")
            write("ur\n")
            await until_seen("one", "two", "half", "three", "four")
            log.replace(log.with_suffix(".log.1"))
            log.write_text("new\n")
            await until_seen("one", "two", "half", "three", "four", "new")
            nursery.cancel_scope.cancel()


async def test_a_log_that_does_not_exist_yet_can_be_followed(tmp_path: Path) -> None:
    async with desk(tmp_path) as it:
        log = it.log("primary")
        log.parent.mkdir()
        lines = it.operator.follow_log("primary", 5)
        async with trio.open_nursery() as nursery:

            async def first() -> None:
                assert await anext(lines) == "hello"
                nursery.cancel_scope.cancel()

            nursery.start_soon(first)
            await trio.testing.wait_all_tasks_blocked()
            log.write_text("hello\n")
        await lines.aclose()  # type: ignore[attr-defined]  # it is a generator


async def test_what_of_workers_has_no_place_here_is_told_with_the_gpus(tmp_path: Path) -> None:
    async with desk(tmp_path, CPU) as it:
        assert it.operator.gpus()["unplaced"] == []
        it.fleet.unplaced = ("WORKERS: there is no GPU '7'",)
        assert it.operator.gpus()["unplaced"] == ["WORKERS: there is no GPU '7'"]
