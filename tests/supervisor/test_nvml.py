"""NVML's answers as values: the unmodified nvidia-ml-py on a driver that is a text file."""

from collections.abc import Iterator
from pathlib import Path

import pynvml
import pytest

from supervisor.gpu_reading import RECOVERY_ACTIONS, Gpu, GpuProcess
from supervisor.nvml import EXTRAS_EVERY_S, LET_GO_S, Nvml, persistence_modes
from tests.fakes.nvml import GPU_A, GPU_B, FakeGpu, FakeNvml, build_fake_nvml, fake_mig_device

MIB = 1 << 20
LOST, RESET_REQUIRED = 15, 16
MIG_1, MIG_2 = "MIG-11111111-aaaa", "MIG-22222222-aaaa"


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_fake_nvml(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def fake(library: Path, tmp_path: Path) -> Iterator[FakeNvml]:
    driver = FakeNvml(library, tmp_path / "nvml.state")
    with driver.loaded():
        yield driver


@pytest.fixture
def split(fake: FakeNvml) -> FakeNvml:
    """GPU 0 has two MIG devices."""
    fake.gpus = [
        FakeGpu(GPU_A, utilisation_percent=None, mig="1"), FakeGpu(GPU_B, mig="0"),
        fake_mig_device(MIG_1, GPU_A), fake_mig_device(MIG_2, GPU_A),
    ]  # fmt: skip
    fake.write()
    return fake


def asks_to_let_go(nvml: Nvml) -> bool:
    return nvml.letting_go


def first(nvml: Nvml, now: float) -> Gpu:
    return nvml.read(now).gpus[0]


@pytest.mark.parametrize(
    ("throttle", "words"),
    [
        (None, None),
        (0, None),
        (0x1 | 0x4, None),  # idle, and at its power limit: a GPU's ordinary days
        (0x20, None),
        (0x8, "hardware slowdown"),
        (0x8 | 0x40, "too hot, hardware slowdown"),
        (0x80 | 0x4, "power brake"),
    ],
)
def test_only_a_slowdown_of_the_hardware_is_one(fake: FakeNvml, throttle: int | None, words: str | None) -> None:
    fake.gpus[0].throttle = throttle
    fake.write()
    assert first(Nvml(30), 0).slowdown == words


def test_a_driver_before_535_is_asked_for_the_slowdown_by_its_old_name(
    fake: FakeNvml, monkeypatch: pytest.MonkeyPatch
) -> None:
    class OldLibrary:
        def __getattr__(self, symbol: str) -> object:
            if symbol == "nvmlDeviceGetCurrentClocksEventReasons":
                raise AttributeError(symbol)
            if symbol == "nvmlDeviceGetCurrentClocksThrottleReasons":
                return whole.nvmlDeviceGetCurrentClocksEventReasons
            return getattr(whole, symbol)

    whole = pynvml.nvmlLib
    monkeypatch.setattr(pynvml, "nvmlLib", OldLibrary())
    fake.gpus[0].throttle = 0x40
    fake.write()
    assert first(Nvml(30), 0).slowdown == "too hot"


def test_what_the_driver_says_of_repairs_is_read(fake: FakeNvml) -> None:
    fake.gpus[0].remap_pending, fake.gpus[0].recovery, fake.gpus[0].ecc = 1, 4, 3
    fake.gpus[1].remap_pending, fake.gpus[1].recovery, fake.gpus[1].ecc = 0, 0, 0
    fake.write()
    gpus = Nvml(30).read(0).gpus
    assert [(gpu.remap_pending, gpu.recovery_action, gpu.ecc_uncorrected) for gpu in gpus] == [
        (True, "drain and reset", 3),
        (False, None, 0),
    ]


def test_the_numbers_of_the_recovery_actions_are_those_of_nvml() -> None:
    names = {code: name.removeprefix("NVML_GPU_RECOVERY_ACTION_").lower().replace("_", " ")
             for name, code in vars(pynvml).items() if name.startswith("NVML_GPU_RECOVERY_ACTION_")}  # fmt: skip
    assert names == {0: "none"} | {code: words.lower() for code, words in RECOVERY_ACTIONS.items()}


def test_a_recovery_action_of_a_newer_driver_is_told_by_its_number(fake: FakeNvml) -> None:
    fake.gpus[0].recovery = 12
    fake.write()
    assert first(Nvml(30), 0).recovery_action == "recovery action 12"


def test_what_changes_seldom_is_asked_seldom_and_at_once_of_a_gpu_that_was_away(fake: FakeNvml) -> None:
    nvml = Nvml(30)
    fake.gpus[0].ecc = 0
    fake.write()
    assert first(nvml, 100).ecc_uncorrected == 0
    fake.gpus[0].ecc = 1
    fake.write()
    assert first(nvml, 100 + EXTRAS_EVERY_S - 1).ecc_uncorrected == 0
    assert first(nvml, 100 + EXTRAS_EVERY_S).ecc_uncorrected == 1

    fake.gpus[0].ecc, fake.gpus[0].ret = 0, LOST
    fake.write()
    assert first(nvml, 111).ecc_uncorrected is None
    fake.gpus[0].ret = 0
    fake.write()
    assert first(nvml, 112).ecc_uncorrected == 0


def test_a_card_that_knows_none_of_it_has_no_fault(fake: FakeNvml) -> None:
    gpu = first(Nvml(30), 0)
    assert (gpu.fault, gpu.slowdown, gpu.remap_pending, gpu.recovery_action) == (None, None, False, None)
    assert (gpu.ecc_uncorrected, gpu.mig_of, gpu.mig_devices) == (None, None, False)


@pytest.mark.parametrize("question", ["nvmlDeviceGetMigMode", "nvmlDeviceGetTotalEccErrors"])
@pytest.mark.parametrize(
    ("error", "faulty"), [(pynvml.NVML_ERROR_UNKNOWN, False), (LOST, True), (RESET_REQUIRED, True)]
)
def test_a_strange_answer_to_a_question_few_cards_know_is_no_fault_but_a_lost_gpu_is(
    fake: FakeNvml, monkeypatch: pytest.MonkeyPatch, question: str, error: int, faulty: bool
) -> None:
    def refuse(*_: object) -> None:
        raise pynvml.NVMLError(error)

    monkeypatch.setattr(pynvml, question, refuse)
    assert (first(Nvml(30), 0).fault is not None) is faulty


def test_mig_devices_are_rows_of_their_own_behind_their_gpu(split: FakeNvml) -> None:
    split.gpus[3].processes[4711] = 300
    split.write()
    gpus = Nvml(30).read(0).gpus
    assert [(gpu.index, gpu.uuid, gpu.mig_of, gpu.mig_devices) for gpu in gpus] == [
        (0, GPU_A, None, True),
        (0, MIG_1, GPU_A, False),
        (0, MIG_2, GPU_A, False),
        (1, GPU_B, None, False),
    ]
    assert gpus[2] == Gpu(
        0, MIG_2, "Fake H200 MIG 1g.18gb", 20_000 * MIB, 100 * MIB, None, None, None, (GpuProcess(4711, 300 * MIB),),
        None, mig_of=GPU_A,
    )  # fmt: skip


def test_mig_devices_are_lost_and_found_with_their_gpu(split: FakeNvml) -> None:
    nvml = Nvml(30)
    healthy = nvml.read(0)
    split.gpus[0].ret = LOST
    split.write()
    lost = "the GPU is lost: the driver cannot reach it"
    assert nvml.read(1).gpus == (*(gpu.dark(lost) for gpu in healthy.gpus[:3]), healthy.gpus[3])
    split.gpus[0].ret = 0
    split.write()
    assert nvml.read(2) == healthy


def test_a_mig_device_alone_can_be_faulty(split: FakeNvml) -> None:
    nvml = Nvml(30)
    healthy = nvml.read(0)
    split.gpus[2].ret = RESET_REQUIRED
    split.write()
    assert [(gpu.uuid, gpu.fault) for gpu in nvml.read(1).gpus] == [
        (GPU_A, None), (MIG_1, "the GPU needs a reset"), (MIG_2, None), (GPU_B, None),
    ]  # fmt: skip
    split.gpus[2].ret = 0
    split.write()
    assert nvml.read(2) == healthy


def test_a_gpu_that_is_split_anew_has_its_new_devices(split: FakeNvml) -> None:
    nvml = Nvml(30)
    nvml.read(0)
    split.gpus[2:] = [fake_mig_device("MIG-33333333-aaaa", GPU_A)]
    split.write()
    assert [gpu.uuid for gpu in nvml.read(1).gpus] == [GPU_A, "MIG-33333333-aaaa", GPU_B]
    split.gpus[0].mig, split.gpus[2:] = "0", []
    split.write()
    assert [(gpu.uuid, gpu.mig_devices) for gpu in nvml.read(EXTRAS_EVERY_S).gpus] == [(GPU_A, False), (GPU_B, False)]


def test_before_nvml_is_opened_anew_others_are_asked_to_let_go(fake: FakeNvml) -> None:
    nvml = Nvml(30)
    healthy = nvml.read(0)
    fake.gpus[0].ret = LOST
    fake.write()
    nvml.read(1)
    nvml.read(29)
    assert not asks_to_let_go(nvml)
    nvml.read(30)
    assert asks_to_let_go(nvml)
    pynvml.nvmlInit()  # somebody who does not let go: NVML stays open, and that is all
    nvml.read(30 + LET_GO_S)
    assert not asks_to_let_go(nvml)
    pynvml.nvmlShutdown()

    nvml.read(61 + LET_GO_S)
    assert asks_to_let_go(nvml)
    fake.gpus[0].ret = 0
    fake.write()
    assert nvml.read(62 + LET_GO_S) == healthy
    nvml.read(63 + LET_GO_S)
    assert not asks_to_let_go(nvml), "the GPU came back by itself"


def test_persistence_mode_is_told_by_those_that_know_it(fake: FakeNvml, monkeypatch: pytest.MonkeyPatch) -> None:
    def mode(handle: object) -> int:
        if pynvml.nvmlDeviceGetUUID(handle) == GPU_A:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return 1

    nvml = Nvml(retry_s=0.0)
    nvml.read(1.0)
    assert persistence_modes() == {}  # a library that does not have it
    monkeypatch.setattr(pynvml, "nvmlDeviceGetPersistenceMode", mode)
    assert persistence_modes() == {1: True}
    nvml.close()
