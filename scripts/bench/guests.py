"""Peers from outside this project's environment: LiteLLM and Ollama Herd, each in a virtual environment of its own.

They are installed on demand only (`--with litellm --with herd`), pinned, in a cache folder of the user; an install or
a start that fails is a line, not the end of the run.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from scripts.bench.accounts import with_children
from scripts.bench.haproxy import NotInstalled
from scripts.bench.peer import Peer, Running, process
from scripts.bench.peers import PORTS_FROM
from tests.fakes.chimera import free_ports, wait_for

LITELLM = "litellm[proxy]==1.106.0"
HERD = "ollama-herd==0.11.4"
INSTALL_TIMEOUT_S = 900.0


def cache_folder() -> Path:
    """Return where they are installed."""
    root = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(root) if root.startswith("/") else Path.home() / ".cache") / "chimera-bench"


def program(package: str, name: str) -> Path:
    """Return where a program of a guest is. Raises NotInstalled."""
    found = cache_folder() / package.partition("[")[0].partition("==")[0] / "bin" / name
    if not found.exists():
        raise NotInstalled(f"{package} is not installed here; --with installs it")
    return found


def install(package: str, name: str) -> None:
    """Install a guest, pinned, into its own virtual environment, if it is not there. Raises NotInstalled."""
    folder = cache_folder() / package.partition("[")[0].partition("==")[0]
    done = folder / package.replace("/", "_")  # a mark: another version is installed anew
    if done.exists() and (folder / "bin" / name).exists():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", package]
    for argv in ([sys.executable, "-m", "venv", "--clear", str(folder)], pip):
        try:
            run = subprocess.run(argv, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S, check=False)
        except subprocess.TimeoutExpired as late:
            raise NotInstalled(f"pip install {package} took more than {INSTALL_TIMEOUT_S:g} s") from late
        if run.returncode != 0:
            last = (run.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise NotInstalled(f"pip install {package} failed: {last[:300]}")
    done.touch()


@dataclass(frozen=True)
class LiteLlm:
    """LiteLLM's proxy, `least-busy`, one process; spoken to as it is meant to be, in OpenAI's form."""

    name: str = "LiteLLM"

    def version(self) -> str:
        """Return what is pinned. Raises NotInstalled."""
        program(LITELLM, "litellm")
        return LITELLM.partition("==")[2]

    def config(self, workers: Sequence[int], slots: int) -> str:
        """Return its configuration (YAML)."""
        rows = "".join(
            f"  - model_name: bench\n    litellm_params:\n      model: ollama_chat/bench\n"
            f"      api_base: http://127.0.0.1:{port}\n      max_parallel_requests: {slots}\n"
            for port in workers
        )
        settings = "router_settings:\n  routing_strategy: least-busy\nlitellm_settings:\n  telemetry: false\n"
        return f"model_list:\n{rows}{settings}"

    @contextmanager
    def running(self, workers: Sequence[int], slots: int, folder: Path) -> Iterator[Running]:
        """Run it. Raises NotInstalled, RuntimeError."""
        (port,) = free_ports(1, PORTS_FROM)
        file = folder / "litellm.yaml"
        file.write_text(self.config(workers, slots))
        argv = [str(program(LITELLM, "litellm")), "--config", str(file), "--host", "127.0.0.1", "--port", str(port),
                "--num_workers", "1", "--telemetry", "False"]  # fmt: skip
        env = {
            "HOME": str(folder), "LITELLM_LOG": "ERROR", "LITELLM_LOCAL_MODEL_COST_MAP": "True",
            # it is asked on loopback only, and without a key, as its peers but Chimera are
            "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",
        }  # fmt: skip
        with process(argv, port, folder / "litellm.log", "/health/liveliness", **env) as pid:
            yield Running(self.name, (f"http://127.0.0.1:{port}",), with_children(pid), tuple(workers),
                          path="/v1/chat/completions")  # fmt: skip


@dataclass(frozen=True)
class Herd:
    """Ollama Herd: its router, with a node agent for each worker, whose cost is not counted. Tells nobody of itself."""

    name: str = "Ollama Herd"

    def version(self) -> str:
        """Return what is pinned. Raises NotInstalled."""
        program(HERD, "herd")
        return HERD.partition("==")[2]

    @contextmanager
    def running(self, workers: Sequence[int], slots: int, folder: Path) -> Iterator[Running]:
        """Run it. Raises NotInstalled, RuntimeError."""
        (port,) = free_ports(1, PORTS_FROM)
        url = f"http://127.0.0.1:{port}"
        env = {
            "HOME": str(folder), "FLEET_NODE_TELEMETRY": "false",
            "OLLAMA_NUM_PARALLEL": str(slots), "FLEET_AUTO_PULL": "false",
        }  # fmt: skip
        argv = [str(program(HERD, "herd")), "--host", "127.0.0.1", "--port", str(port), "--log-level", "ERROR"]
        with process(argv, port, folder / "herd.log", "/api/tags", **env) as pid, ExitStack() as nodes:
            for number, worker in enumerate(workers):
                node = [str(program(HERD, "herd-node")), "--node-id", f"w{number}", "--ollama-host",
                        f"http://127.0.0.1:{worker}", "--router-url", url]  # fmt: skip
                nodes.enter_context(process(node, worker, folder / f"herd-node-{number}.log", **env))
            wait_for(lambda: len(_nodes(url)) >= len(workers))
            yield Running(self.name, (url,), with_children(pid), tuple(workers))


def _nodes(url: str) -> list[object]:
    said = httpx.get(f"{url}/fleet/status", trust_env=False, timeout=10).json()
    return [node for node in said.get("nodes", []) if node.get("status") == "online"]


def guests(wanted: Sequence[str], say: Callable[[str], None]) -> tuple[list[Peer], list[str]]:
    """Install the guests that are asked for; return them, and a line for each that could not be."""
    known: dict[str, tuple[Peer, str, str]] = {
        "litellm": (LiteLlm(), LITELLM, "litellm"),
        "herd": (Herd(), HERD, "herd"),
    }
    found: list[Peer] = []
    lines: list[str] = []
    for name in wanted:
        peer, package, command = known[name]
        say(f"{peer.name}: {package} in {cache_folder()}")
        try:
            install(package, command)
        except NotInstalled as missing:
            lines.append(f"{peer.name} is left out: {missing}")
        else:
            found.append(peer)
    return found, lines
