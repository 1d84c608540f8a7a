"""The fake NVIDIA driver of a trial: its state file, changed in place while fakes write their runners into it."""

import fcntl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.fakes.fake_ollama import gpu_line, replace_file
from tests.fakes.nvml import GPU_A, FakeNvml, build_fake_nvml

USED, RET, PROCESSES, XID = 3, 7, 8, 9  # places in a GPU's line (fakenvml.c)
REAP_INTERVAL_S = 0.2


class Driver:
    """Two fake GPUs. Like a real driver it takes back the memory of processes that have ended."""

    def __init__(self, folder: Path) -> None:
        """Compile the fake library into `folder`; CalledProcessError if cc fails."""
        self.fake = FakeNvml(build_fake_nvml(folder), folder / "nvml.state")
        self.idle_mib = self.used_mib()

    def environ(self) -> dict[str, str]:
        """The variables with which a process meets this driver."""
        return self.fake.environ()

    def set(self, uuid: str, place: int, value: int) -> None:
        """Change one number in a GPU's line: RET (15: lost), XID (delivered once when it changes)."""

        def change(line: str) -> str:
            fields = line.split("|")
            if fields[0] == uuid:
                fields[place] = str(value)
            return "|".join(fields)

        self._rewrite(lambda lines: [change(line) for line in lines])

    def says(self, directive: str, value: int) -> None:
        """Set a directive of the whole driver: hang (ms a call), init (what nvmlInit returns); 0 takes it away."""

        def change(lines: list[str]) -> list[str]:
            others = [line for line in lines if not line.startswith(f"!{directive} ")]
            return [f"!{directive} {value}", *others] if value else others

        self._rewrite(change)

    def unload(self) -> Callable[[], None]:
        """Take the driver away; returns what brings it back."""
        away = self.fake.state.with_suffix(".away")
        self.fake.state.replace(away)
        return lambda: (away.replace(self.fake.state), None)[1]

    def used_mib(self) -> int:
        """The memory in use on both GPUs."""
        text = self.fake.state.read_text(encoding="utf-8") if self.fake.state.exists() else ""
        return sum(int(line.split("|")[USED]) for line in text.splitlines() if line and not line.startswith("!"))

    def taken_mib(self) -> int:
        """The memory in use beyond what idle GPUs show."""
        return max(0, self.used_mib() - self.idle_mib)

    @contextmanager
    def reaping(self) -> Iterator["Driver"]:
        """For the block, take back the memory of processes that have ended."""
        ended = threading.Event()

        def reap() -> None:
            while not ended.wait(REAP_INTERVAL_S):
                self.reap()

        thread = threading.Thread(target=reap)
        thread.start()
        try:
            yield self
        finally:
            ended.set()
            thread.join()

    def reap(self) -> None:
        """Take back the memory of processes that have ended."""
        if self.fake.state.exists():
            self._rewrite(lambda lines: [_without_ended(line) for line in lines])

    def _rewrite(self, change: Callable[[list[str]], list[str]]) -> None:
        with Path(f"{self.fake.state}.lock").open("a", encoding="utf-8") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            lines = self.fake.state.read_text(encoding="utf-8").split("\n")
            changed = change(lines)
            if changed != lines:
                replace_file(self.fake.state, "\n".join(changed))


def _without_ended(line: str) -> str:
    fields = line.split("|")
    if line.startswith("!") or len(fields) <= PROCESSES:
        return line
    for entry in fields[PROCESSES].split(","):
        pid = entry.partition(":")[0]
        if pid and _ended(pid):
            line = gpu_line(line, [fields[0]], int(pid), None)
    return line


def _ended(pid: str) -> bool:
    """Whether a process is gone or a zombie (proc(5), field 3)."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(") ")[2][:1]
    except (FileNotFoundError, ProcessLookupError):
        return True
    return state in ("Z", "X")


__all__ = ["GPU_A", "RET", "XID", "Driver"]
