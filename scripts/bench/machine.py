"""What a run was made on: no figure without it."""

import os
import platform
import resource
import subprocess
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# The records and reports of runs.
WRITTEN = ("docs/bench", "README.md")
# Descriptors that a run may use: ten thousand connections have two ends, and a proxy has two for each.
MOST_FILES = 65_536


@dataclass(frozen=True, slots=True)
class Machine:
    """The machine and the state of the project."""

    cpu: str
    cores: int
    memory_bytes: int
    kernel: str
    python: str
    commit: str
    load_1_min: float

    @property
    def what(self) -> str:
        """What two runs on the same machine and commit have in common, in one line."""
        return (f"{self.cpu}, {self.cores} cores, {self.memory_bytes / 2**30:.0f} GiB, Linux {self.kernel}, "
                f"Python {self.python}, commit {self.commit}")  # fmt: skip

    def text(self) -> str:
        """Return it in one line."""
        return f"{self.what}, load {self.load_1_min:.1f} at the start"


def this_machine() -> Machine:
    """Return this machine as it is now."""
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    return Machine(
        cpu=cpu_model(info),
        cores=len(os.sched_getaffinity(0)),
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        kernel=platform.release(),
        python=platform.python_version(),
        commit=commit(),
        load_1_min=os.getloadavg()[0],
    )


def cpu_model(cpuinfo: str) -> str:
    """Return the processor's name out of /proc/cpuinfo, else its architecture."""
    for line in cpuinfo.splitlines():
        name, _, text = line.partition(":")
        if name.strip() == "model name":
            return text.strip()
    return platform.machine()


def commit(root: Path = ROOT) -> str:
    """Return the commit that is checked out, with `-dirty` when files differ from it; `unknown` without git.

    What a run of the benchmarks itself writes does not count as a difference.
    """
    name = _git(root, "describe", "--always", "--abbrev=10")
    changed = _git(root, "status", "--porcelain", "--untracked-files=no", "--", ".", *(f":!{path}" for path in WRITTEN))
    return f"{name}-dirty" if name and changed else name or "unknown"


def _git(root: Path, *words: str) -> str:
    """Return what git says, nothing if it fails or is not there."""
    try:
        said = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return said.stdout.strip() if said.returncode == 0 else ""


def take_files() -> int:
    """Raise this process's limit of open files, which those that it starts inherit; return how many it may open now."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_FILES if hard == resource.RLIM_INFINITY else min(MOST_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]
