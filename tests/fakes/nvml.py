"""GPUs for machines that have none: writes the state of fakenvml.c and lets the real nvidia-ml-py read it.

fake = FakeNvml(build_fake_nvml(directory), directory / "nvml.state")
fake.gpus[0].ret = 15                       # lost
fake.write()                                # the next NVML call sees it, in any process
with fake.loaded(): ...                     # in this process
subprocess.run(argv, env=os.environ | fake.environ())   # in another
"""

import ctypes
import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pynvml

SOURCE = Path(__file__).with_name("fakenvml.c")
LIBRARY_NAME = "libnvidia-ml.so.1"
GPU_A = "GPU-aaaaaaaa-1111-2222-3333-444444444444"
GPU_B = "GPU-bbbbbbbb-1111-2222-3333-444444444444"


def build_fake_nvml(directory: Path) -> Path:
    """Compile the fake into `directory` under the name nvidia-ml-py loads; CalledProcessError if cc fails.

    A library that is there already is replaced in one step: a process that has it loaded keeps its own.
    """
    library, fresh = directory / LIBRARY_NAME, directory / f"{LIBRARY_NAME}.{os.getpid()}"
    flags = ("-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", "-pthread")
    subprocess.run(["cc", *flags, "-o", fresh, SOURCE], check=True)
    return fresh.replace(library)


@dataclass(slots=True)
class FakeGpu:
    """One line of the state. None is "not supported"; `ret` is what NVML returns for this GPU (15: lost).

    `throttle`: clock event reasons. `recovery`: field 230. `ecc`: uncorrected errors. `mig`: "1" in MIG mode, or, of
    a MIG device, the UUID of its GPU.
    """

    uuid: str
    name: str = "Fake H200"
    total_mib: int | None = 143_771
    used_mib: int = 600
    utilisation_percent: int | None = 0
    temperature_c: int | None = 35
    milliwatt: int | None = 75_000
    ret: int = 0
    processes: dict[int, int | None] = field(default_factory=dict)  # pid -> MiB
    xid: int = 0
    throttle: int | None = None
    remap_pending: int | None = None
    recovery: int | None = None
    ecc: int | None = None
    mig: str = ""

    def line(self) -> str:
        processes = ",".join(f"{pid}:{_number(mib)}" for pid, mib in self.processes.items())
        head = (self.total_mib, self.used_mib, self.utilisation_percent, self.temperature_c, self.milliwatt)
        tail = (self.throttle, self.remap_pending, self.recovery, self.ecc)
        fields = (*map(_number, head), str(self.ret), processes, str(self.xid), *map(_number, tail), self.mig)
        return "|".join((self.uuid, self.name, *fields))


def fake_mig_device(uuid: str, parent: str, total_mib: int = 20_000) -> FakeGpu:
    """A MIG device as drivers show it: memory and processes, nothing that belongs to the whole GPU."""
    return FakeGpu(uuid, "Fake H200 MIG 1g.18gb", total_mib, 100, None, None, None, mig=parent)


@dataclass(slots=True)
class FakeNvml:
    """The fake driver of a machine: change it, then `write()`.

    `init`: what nvmlInitWithFlags returns (18: versions differ). `call`: what all other calls return.
    `hang_ms`: how long each call takes; a hung call ends early once 0 has been written.
    """

    library: Path
    state: Path
    gpus: list[FakeGpu] = field(default_factory=lambda: [FakeGpu(GPU_A), FakeGpu(GPU_B)])
    driver: str = "570.86.15"
    init: int = 0
    call: int = 0
    hang_ms: int = 0

    def __post_init__(self) -> None:
        self.write()

    def write(self) -> None:
        directives = {"driver": self.driver, "init": self.init, "call": self.call, "hang": self.hang_ms}
        lines = [f"!{name} {value}" for name, value in directives.items() if value]
        fresh = self.state.with_name(f"{self.state.name}.{os.getpid()}")
        fresh.write_text("\n".join([*lines, *(gpu.line() for gpu in self.gpus), ""]))
        fresh.replace(self.state)

    def environ(self) -> dict[str, str]:
        """The variables with which a child process meets this driver, whatever the machine's own is."""
        path = [str(self.library.parent), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
        return {"LD_LIBRARY_PATH": ":".join(path), "FAKE_NVML_STATE": str(self.state)}

    def outlast(self, thread_name: str) -> None:
        """Wait for a test's threads in NVML: an abandoned one would go on into the next test's driver."""
        self.hang_ms = 0
        self.write()
        while any(thread.name == thread_name for thread in threading.enumerate()):
            threading.Event().wait(0.01)

    @contextmanager
    def loaded(self) -> Iterator[None]:
        """Within the block this process's nvidia-ml-py talks to this driver; at its end NVML is shut down.

        nvidia-ml-py keeps the library and the functions it looked up in two module variables: we fill the
        first and empty the second, so that neither outlives the block. A thread must not outlive it either.
        """
        outside, before = pynvml.nvmlLib, os.environ.get("FAKE_NVML_STATE")
        os.environ["FAKE_NVML_STATE"] = str(self.state)
        pynvml.nvmlLib = library = ctypes.CDLL(str(self.library))
        pynvml._nvmlGetFunctionPointer_cache.clear()
        try:
            yield
        finally:
            while library.nvmlShutdown() == pynvml.NVML_SUCCESS:
                pass  # once for each nvmlInit that a test left open
            pynvml.nvmlLib = outside
            pynvml._nvmlGetFunctionPointer_cache.clear()
            if before is None:
                del os.environ["FAKE_NVML_STATE"]
            else:
                os.environ["FAKE_NVML_STATE"] = before


def _number(value: int | None) -> str:
    return "" if value is None else str(value)
