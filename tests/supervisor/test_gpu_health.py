"""Which GPUs are quarantined, and how they come back."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from supervisor.gpu_health import (
    BY_OPERATOR,
    LOST,
    RELEASE_AFTER_S,
    Decision,
    GpuKeeper,
    GpuVerdict,
    Note,
    Quarantine,
    Release,
    RestartWorkers,
)
from supervisor.gpu_reading import RECOVERY_ACTIONS, Gpu, GpuEvent, GpuReading
from supervisor.xid import XIDS, Action
from tests.fakes.examples import examples

A, B, PART = "GPU-a", "GPU-b", "MIG-1"
START = datetime(2026, 1, 2, tzinfo=UTC)
FELL_OFF = "the GPU is lost: the driver cannot reach it"
WELL_AGAIN = f"it has answered well for {RELEASE_AFTER_S:.0f} s"


def gpu(uuid: str = A, fault: str | None = None, mig_of: str | None = None) -> Gpu:
    whole = Gpu(0 if uuid != B else 1, uuid, "H200", 100, 0, 0, 30, 60.0, (), None, mig_of=mig_of)
    return whole if fault is None else whole.dark(fault)


class Machine:
    """A keeper, the GPUs it sees, and a clock: each reading is a second later."""

    def __init__(self, *gpus: Gpu) -> None:
        self.keeper = GpuKeeper()
        self.now = 1000.0
        self.gpus = {row.uuid: row for row in gpus or (gpu(A), gpu(B))}
        self.fault: str | None = None
        self.stuck_s = 0.0
        assert self.reads() == []

    @property
    def at(self) -> datetime:
        return START + timedelta(seconds=self.now)

    def reads(self, times: int = 1) -> list[Decision]:
        decisions: list[Decision] = []
        for _ in range(times):
            self.now += 1
            reading = GpuReading(tuple(self.gpus.values()), "570", self.fault, self.stuck_s)
            decisions += self.keeper.observe(reading, self.now, self.at)
        return decisions

    def becomes(self, uuid: str, fault: str | None) -> None:
        self.gpus[uuid] = gpu(uuid, fault, self.gpus[uuid].mig_of)

    def has(self, uuid: str = A, **values: Any) -> None:
        self.gpus[uuid] = replace(self.gpus[uuid], **values)

    def xid(self, code: int, uuid: str = A) -> list[Decision]:
        return self.keeper.event(GpuEvent(uuid, "xid", code), self.now, self.at)

    def sees(self, uuid: str = A) -> GpuVerdict:
        return self.keeper.verdict(uuid, self.now)


def test_a_gpu_that_fails_twice_is_quarantined_without_waiting_and_comes_back_by_itself() -> None:
    machine = Machine()
    machine.becomes(A, FELL_OFF)
    assert machine.reads() == []
    assert (machine.sees().verdict, machine.sees().reason) == ("faulty", FELL_OFF)
    assert machine.reads() == [Quarantine(A, FELL_OFF, drain=False)]
    assert machine.keeper.quarantined == {A}
    seen = machine.sees()
    assert (seen.verdict, seen.since, seen.since_at) == ("quarantined", 1002.0, START + timedelta(seconds=1002))
    assert seen.next == "it is released by itself when it has answered well for 30 s"
    assert machine.reads(100) == []

    machine.becomes(A, None)
    assert machine.reads(11) == []
    assert machine.sees().next == "it is released by itself in 20 s if it stays well"
    assert machine.reads(19) == []
    assert machine.reads() == [Release(A, WELL_AGAIN)]
    assert machine.keeper.quarantined == frozenset()
    assert machine.sees() == GpuVerdict(A, "well", "", None, None, "", ())


def test_a_single_bad_reading_is_nothing() -> None:
    machine = Machine()
    for _ in range(5):
        machine.becomes(A, "NVML: Unknown Error (code 999)")
        assert machine.reads() == []
        machine.becomes(A, None)
        assert machine.reads() == []


def test_a_gpu_that_comes_and_goes_stays_quarantined() -> None:
    machine = Machine()
    machine.becomes(A, FELL_OFF)
    machine.reads(2)
    for _ in range(5):
        machine.becomes(A, None)
        assert machine.reads(29) == []
        machine.becomes(A, FELL_OFF)
        assert machine.reads() == []
    assert machine.keeper.quarantined == {A}


@pytest.mark.parametrize("stuck_s", [0.0, 7.0])
def test_trouble_of_nvml_as_a_whole_stops_nothing_and_is_said_once(stuck_s: float) -> None:
    machine = Machine()
    for second in range(100):
        machine.fault = f"NVML has not answered for {5 + second} s" if stuck_s else "versions differ"
        machine.stuck_s = stuck_s and stuck_s + second
        if not stuck_s:
            machine.becomes(A, machine.fault)
            machine.becomes(B, machine.fault)
        said = machine.reads()
        if second == 0:
            text = f"{machine.fault}; nothing is stopped: workers that run go on"
            assert said == [Note("", text, "warning")]
        else:
            assert said == []
    seen = machine.sees()
    assert (seen.verdict, seen.reason, seen.since) == ("faulty", machine.fault, 1002.0)
    assert seen.next == "nothing is stopped; NVML is asked again each second"

    machine.fault, machine.stuck_s = None, 0.0
    machine.becomes(A, None)
    machine.becomes(B, None)
    assert machine.reads() == [Note("", "NVML answers again", "info")]
    assert machine.sees().verdict == "well"


def test_a_machine_without_gpus_has_no_trouble() -> None:
    keeper = GpuKeeper()
    assert keeper.observe(GpuReading((), None, "NVML library not found"), 1, START) == []
    assert keeper.verdict("GPU-x", 1).verdict == "well"


@pytest.mark.parametrize("code", [31, 94, 13, 68])
def test_an_xid_of_the_program_restarts_its_workers_once(code: int) -> None:
    machine = Machine()
    text = f"Xid {code}: {XIDS[code].meaning}"
    assert machine.xid(code) == [RestartWorkers(A, text)]
    assert machine.xid(43) == [Note(A, "Xid 43: GPU stopped processing for one program", "warning")]
    assert machine.xid(code) == [], "one fault comes as several Xids"
    machine.now += 10
    assert machine.xid(code) == [RestartWorkers(A, text)]
    assert machine.keeper.quarantined == frozenset()
    assert machine.sees().verdict == "well"
    assert [(x.code, x.action, x.count) for x in machine.sees().xids] == [
        (code, Action.RESTART, 1), (43, Action.NOTE, 1), (code, Action.RESTART, 2),
    ]  # fmt: skip


def test_a_noted_xid_is_said_once_a_minute_and_always_counted() -> None:
    machine = Machine()
    said = [machine.xid(92) for _ in range(50)]
    assert said[0] == [Note(A, "Xid 92: high rate of single-bit ECC errors", "warning")]
    assert not any(said[1:])
    assert machine.sees().xids[-1].count == 50
    machine.now += 60
    assert len(machine.xid(92)) == 1
    assert machine.xid(999, B) == [Note(B, "Xid 999: unknown to Chimera; see NVIDIA's Xid catalogue", "warning")]


@pytest.mark.parametrize("code", [code for code, row in XIDS.items() if row.action is Action.QUARANTINE])
def test_a_grave_xid_quarantines_until_there_is_a_sign_of_a_reset(code: int) -> None:
    machine = Machine()
    assert machine.xid(code) == [Quarantine(A, f"Xid {code}: {XIDS[code].meaning}", drain=not XIDS[code].void)]
    assert machine.reads(1000) == []
    assert machine.sees().next.startswith("reset the GPU (nvidia-smi --gpu-reset;")

    machine.becomes(A, FELL_OFF)  # somebody resets it
    assert machine.reads(2) == []
    machine.becomes(A, None)
    assert machine.reads(30) == []
    assert machine.reads() == [Release(A, WELL_AGAIN)]


def test_a_reading_missed_is_no_sign_of_a_reset() -> None:
    machine = Machine()
    machine.xid(62)
    machine.becomes(A, FELL_OFF)
    machine.reads(1)
    machine.becomes(A, None)
    assert machine.reads(1000) == []


def test_an_operator_releases_what_waits_for_a_reset() -> None:
    machine = Machine()
    machine.xid(119)
    assert machine.keeper.release(A) == [Release(A, "released by the operator")]
    assert machine.reads(100) == []
    assert machine.xid(119) == [Quarantine(A, "Xid 119: GSP RPC timeout", drain=True)]


def test_a_gpu_off_the_bus_is_not_waited_for_however_the_news_comes() -> None:
    machine = Machine()
    assert machine.xid(79) == [Quarantine(A, "Xid 79: GPU has fallen off the bus", drain=False)]
    machine.becomes(A, FELL_OFF)
    assert machine.reads(5) == []
    assert machine.keeper.event(GpuEvent(A, "lost"), machine.now, machine.at) == []
    machine.becomes(A, None)
    assert machine.reads(31) == [Release(A, WELL_AGAIN)]

    assert machine.keeper.event(GpuEvent(B, "lost"), machine.now, machine.at) == [Quarantine(B, LOST, drain=False)]
    assert machine.xid(79, B) == [Note(B, "Xid 79: GPU has fallen off the bus", "warning")]
    assert machine.reads(100) == [], "it has not been away since the Xid that needs a reset"


def test_what_the_driver_asks_for_decides_like_an_xid() -> None:
    machine = Machine()
    machine.has(recovery_action="GPU reset")
    text = "the driver asks for: GPU reset"
    assert machine.reads() == [Note(A, text, "warning"), Quarantine(A, text, drain=True)]
    assert machine.reads(100) == []
    machine.has(recovery_action=None)
    assert machine.reads(30) == [Note(A, "the driver asks for no repair any more", "info")]
    assert machine.reads() == [Release(A, WELL_AGAIN)]


def test_an_xid_is_over_when_the_driver_has_ceased_to_ask_for_a_reset() -> None:
    machine = Machine()
    machine.xid(95)
    machine.has(recovery_action="drain and reset")
    assert len(machine.reads(60)) == 1  # the note
    assert machine.keeper.quarantined == {A}
    machine.has(recovery_action=None)
    assert Release(A, WELL_AGAIN) in machine.reads(31)


def test_the_operator_may_overrule_the_driver_until_it_asks_for_something_else() -> None:
    machine = Machine()
    machine.has(recovery_action="GPU reset")
    machine.reads(3)
    assert machine.keeper.release(A) == [Release(A, "released by the operator")]
    assert machine.reads(100) == []
    assert machine.sees().verdict == "degraded"
    machine.has(recovery_action="node reboot")
    assert Quarantine(A, "the driver asks for: node reboot", drain=True) in machine.reads()


def test_a_recovery_action_that_leaves_the_gpu_working_is_only_told() -> None:
    machine = Machine()
    machine.has(recovery_action="drain P2P")
    assert machine.reads(100) == [Note(A, "the driver asks for: drain P2P", "warning")]
    assert machine.sees().verdict == "degraded"


def test_a_slowdown_of_more_than_a_minute_is_told_once_and_stops_nothing() -> None:
    machine = Machine()
    machine.has(slowdown="too hot")
    assert machine.reads(61) == []
    assert machine.reads() == [
        Note(A, "its clocks have been slowed down for 60 s (too hot): look at its cooling and power", "warning")
    ]
    assert machine.reads(1000) == []
    seen = machine.sees()
    assert (seen.verdict, seen.reason, seen.since) == ("degraded", "slowed down: too hot", 1002.0)
    machine.has(slowdown=None)
    assert machine.reads() == [Note(A, "its clocks are no longer slowed down", "info")]
    assert machine.sees().verdict == "well"


def test_rows_that_wait_to_be_remapped_are_told_with_what_to_plan() -> None:
    machine = Machine()
    machine.has(remap_pending=True)
    assert machine.reads(100) == [
        Note(A, "memory rows wait to be remapped: plan a reset of the GPU (or a reboot)", "warning")
    ]
    assert machine.sees().verdict == "degraded"
    assert "plan to reset the GPU" in machine.sees().next
    machine.has(remap_pending=False)
    assert machine.reads() == [Note(A, "no memory row waits to be remapped any more", "info")]


def test_uncorrected_errors_are_told_as_they_grow() -> None:
    machine = Machine()
    for count, said in ((5, []), (5, []), (7, [Note(A, "2 more uncorrected memory errors", "warning")]), (0, [])):
        machine.has(ecc_uncorrected=count)
        assert machine.reads() == said
    assert machine.keeper.event(GpuEvent(A, "ecc"), machine.now, machine.at) == [
        Note(A, "uncorrected memory error", "warning")
    ]


def test_what_an_operator_quarantined_only_an_operator_releases() -> None:
    machine = Machine()
    assert machine.keeper.quarantine(A, machine.now, machine.at) == [Quarantine(A, BY_OPERATOR, drain=True)]
    assert machine.keeper.quarantine(A, machine.now, machine.at) == []
    machine.becomes(A, FELL_OFF)
    assert machine.reads(10) == []
    assert machine.sees().reason == f"quarantined by the operator; {FELL_OFF}"
    machine.becomes(A, None)
    assert machine.reads(1000) == []
    assert machine.sees().next == "it stays so until the operator releases it"
    assert machine.xid(31) == [Note(A, "Xid 31: GPU memory page fault", "warning")], "it has no worker to restart"
    assert machine.keeper.release(A) == [Release(A, "released by the operator")]


def test_a_faulty_gpu_that_an_operator_releases_is_quarantined_anew_if_it_does_not_answer() -> None:
    machine = Machine()
    machine.becomes(A, FELL_OFF)
    machine.reads(2)
    machine.keeper.release(A)
    assert machine.reads() == []
    assert machine.reads() == [Quarantine(A, FELL_OFF, drain=False)]


def test_a_mig_device_shares_the_lot_of_its_gpu() -> None:
    machine = Machine(replace(gpu(A), mig_devices=True), gpu(PART, mig_of=A), gpu(B))
    assert machine.xid(94) == [RestartWorkers(uuid, "Xid 94: contained memory error") for uuid in (A, PART)]
    text = "Xid 64: memory row remapping failure"
    assert machine.xid(64) == [Quarantine(A, text, drain=True), Quarantine(PART, f"its GPU: {text}", drain=True)]
    machine.gpus["MIG-2"] = gpu("MIG-2", mig_of=A)
    assert machine.reads() == [Quarantine("MIG-2", f"its GPU: {text}", drain=True)]
    assert machine.keeper.release(PART) == [Note(PART, f"it shares the quarantine of its GPU: release {A}", "warning")]
    seen = machine.sees(PART)
    assert (seen.verdict, seen.reason, seen.xids[-1].code) == ("quarantined", f"its GPU: {text}", 64)

    del machine.gpus["MIG-2"]
    assert [type(decision) for decision in machine.reads()] == [Release]
    assert set(machine.keeper.release(A)) == {Release(uuid, "released by the operator") for uuid in (A, PART)}


def test_a_mig_device_can_be_quarantined_alone() -> None:
    machine = Machine(replace(gpu(A), mig_devices=True), gpu(PART, mig_of=A))
    assert machine.keeper.quarantine(PART, machine.now, machine.at) == [Quarantine(PART, BY_OPERATOR, drain=True)]
    assert machine.keeper.quarantined == {PART}
    assert machine.keeper.release(PART) == [Release(PART, "released by the operator")]


def test_an_event_of_an_unknown_gpu_is_told() -> None:
    machine = Machine()
    assert machine.xid(79, "") == [
        Note("", "Xid 79: GPU has fallen off the bus, of a GPU that NVML did not name", "warning")
    ]
    assert machine.keeper.quarantined == frozenset()


class Ledger(Machine):
    """A machine whose orders are checked as they come: whom they put out of use, and take back."""

    def __init__(self) -> None:
        self.out: set[str] = set()
        super().__init__(replace(gpu(A), mig_devices=True), gpu(PART, mig_of=A), gpu(B))

    def take(self, decisions: list[Decision]) -> None:
        for decision in decisions:
            match decision:
                case Quarantine(uuid):
                    assert uuid not in self.out
                    self.out.add(uuid)
                case Release(uuid):
                    assert uuid in self.out
                    self.out.remove(uuid)
                case RestartWorkers(uuid):
                    assert uuid not in self.out, "nothing runs there"
        assert self.keeper.quarantined == self.out
        for uuid in (A, B, PART):
            seen = self.sees(uuid)
            assert (seen.verdict == "quarantined") == (uuid in self.out)
            assert bool(seen.reason) == bool(seen.next) == (seen.since is not None) == (seen.verdict != "well")

    def does(self, kind: str, uuid: str, value: Any) -> None:
        match kind:
            case "xid":
                self.take(self.xid(value, uuid))
            case "event":
                self.take(self.keeper.event(GpuEvent(uuid, value), self.now, self.at))
            case "quarantine":
                self.take(self.keeper.quarantine(uuid, self.now, self.at))
            case "release":
                self.take(self.keeper.release(uuid))
            case "nvml":
                self.fault = value
            case "read":
                self.take(self.reads(value))
            case "there":
                self.gpus = {A: self.gpus[A]} | ({PART: gpu(PART, mig_of=A)} if value else {}) | {B: self.gpus[B]}
            case _ if uuid in self.gpus:
                self.has(uuid, **{kind: value})


UUIDS = st.sampled_from([A, B, PART])
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("xid"), UUIDS, st.sampled_from([*XIDS, 999])),
        st.tuples(st.just("event"), UUIDS, st.sampled_from(["ecc", "lost", "unavailable", "recovery"])),
        st.tuples(st.just("fault"), UUIDS, st.sampled_from([None, FELL_OFF, "the GPU needs a reset"])),
        st.tuples(st.just("recovery_action"), UUIDS, st.sampled_from([None, *RECOVERY_ACTIONS.values()])),
        st.tuples(st.just("slowdown"), UUIDS, st.sampled_from([None, "too hot"])),
        st.tuples(st.just("remap_pending"), UUIDS, st.booleans()),
        st.tuples(st.just("nvml"), st.just(""), st.sampled_from([None, "versions differ"])),
        st.tuples(st.just("there"), st.just(PART), st.booleans()),
        st.tuples(st.just("read"), st.just(""), st.integers(1, 40)),
        st.tuples(st.sampled_from(["quarantine", "release"]), UUIDS, st.none()),
    ),
    max_size=40,
)


@settings(max_examples=examples(300), deadline=None)
@given(STEPS, st.booleans())
def test_whatever_happens_a_gpu_that_is_well_comes_back_and_nothing_is_told_twice(
    steps: list[tuple[str, str, object]], reset: bool
) -> None:
    machine = Ledger()
    for kind, uuid, value in steps:
        machine.does(kind, uuid, value)

    machine.does("nvml", "", None)
    machine.does("there", PART, True)
    if reset:
        for uuid in machine.gpus:
            machine.becomes(uuid, FELL_OFF)
        machine.take(machine.reads(2))
    for uuid in machine.gpus:
        machine.becomes(uuid, None)
    machine.take(machine.reads(31))
    for uuid in (A, B, PART):  # after a reset the operator need not do more than take back his own orders
        if not reset or machine.sees(uuid).reason.startswith(BY_OPERATOR):
            machine.take(machine.keeper.release(uuid))
    machine.take(machine.reads(31))
    assert machine.keeper.quarantined == frozenset()
