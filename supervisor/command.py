"""What to run for a worker: argv and environment. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from supervisor.config import CLIENT_NAMES, NAMES, RESERVED, Settings
from supervisor.placement import CPU, Placement

# The mark that every process of a worker carries in its environment, runners included: it is how leftovers of a
# former run are told from other people's processes.
MARK = "CHIMERA_WORKER"
PRIMARY = "primary"

# systemd's words to Chimera, which a worker must neither hear nor answer (sd_notify(3), sd_listen_fds(3)).
_SYSTEMD = frozenset(
    [
        "NOTIFY_SOCKET",
        "WATCHDOG_USEC",
        "WATCHDOG_PID",
        "LISTEN_FDS",
        "LISTEN_PID",
        "LISTEN_FDNAMES",
        "INVOCATION_ID",
        "STATE_DIRECTORY",
        "LOGS_DIRECTORY",
    ]
)


@dataclass(frozen=True, slots=True)
class Command:
    """A process to start: its argument vector and its whole environment."""

    argv: tuple[str, ...]
    environ: dict[str, str]


def instance_of(state_dir: Path) -> str:
    """Return the name of this Chimera among others on the machine: one per state directory."""
    return sha256(str(state_dir).encode()).hexdigest()[:12]


def mark_of(state_dir: Path, worker_id: str) -> str:
    """Return the value of MARK for one worker of the Chimera that owns `state_dir`."""
    return f"{instance_of(state_dir)}/{worker_id}"


def worker_command(
    settings: Settings,
    ollama: Path,
    environ: Mapping[str, str],
    *,
    worker_id: str,
    placement: Placement,
    port: int,
    slots: int,
    pdeathsig: bool = True,
) -> Command:
    """Return how to run `ollama serve` for one worker, or for the primary (`worker_id` PRIMARY, placement CPU).

    `pdeathsig` starts it through setpriv(1) so that it gets SIGTERM, and ends its runner, when Chimera dies
    without a word. TERM and not KILL: a killed serve leaves its runner and the memory that holds.
    """
    env = {name: text for name, text in environ.items() if name not in _HIDDEN}
    env["HOME"] = env.get("HOME") or "/"  # ollama serve refuses to start without one
    if settings.required_models:
        # ready means that the first model is loaded: after Ollama's five idle minutes it would not be
        env.setdefault("OLLAMA_KEEP_ALIVE", "-1")
    if worker_id != PRIMARY:
        # Else a prompt takes the first idle slot of those that begin as it does, which all do by a few tokens of the
        # template: it pushes out a conversation's cache beside an empty slot (llama/runner/cache.go).
        env.setdefault("OLLAMA_MULTIUSER_CACHE", "1")
        env |= dict(settings.worker_env)
        env["OLLAMA_NOPRUNE"] = "1"  # each serve that starts prunes the store; with a shared one only the primary may
    env |= {
        MARK: mark_of(settings.state_dir, worker_id),
        "OLLAMA_HOST": f"127.0.0.1:{port}",
        "OLLAMA_NUM_PARALLEL": str(slots),
        **_placed(placement),
    }
    if settings.ollama_models:
        env["OLLAMA_MODELS"] = str(settings.ollama_models)
    serve = (str(ollama), "serve")
    return Command(("setpriv", "--pdeathsig", "TERM", "--", *serve) if pdeathsig else serve, env)


def start_key(settings: Settings, slots: int) -> object:
    """Return what a worker's process has from its start, of all that may change while Chimera runs.

    A process that was started with another key runs with settings that count no more.
    """
    return (slots, settings.required_models, settings.worker_env)


def _placed(placement: Placement) -> dict[str, str]:
    """Return what makes CUDA, and nothing else, see exactly the placement.

    By UUID: indices change between boots and differ from CUDA's (ollama#17832). Vulkan and ROCm would see GPUs
    that CUDA_VISIBLE_DEVICES hides (ollama#16508). -1 is an invalid index, which hides every GPU.
    """
    return {
        "CUDA_VISIBLE_DEVICES": "-1" if placement == CPU else str(placement),
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "OLLAMA_VULKAN": "0",
        "ROCR_VISIBLE_DEVICES": "-1",
        "HIP_VISIBLE_DEVICES": "-1",
    }


# OLLAMA_MODELS is Ollama's own name too: it stays where the environment has it.
_HIDDEN = (NAMES | RESERVED | CLIENT_NAMES | _SYSTEMD) - {"OLLAMA_MODELS"}
