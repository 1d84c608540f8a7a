"""Starts fake Ollamas for tests."""

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx

from tests.fakes.fake_ollama import add_model, write_control

FAKE_OLLAMA = Path(__file__).with_name("fake_ollama.py")


def free_port() -> int:
    """A port on 127.0.0.1 that nothing listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True)
class Fake:
    """One running fake Ollama."""

    url: str
    client: httpx.Client
    process: subprocess.Popen[bytes]
    control: Path

    def behaves(self, **keys: object) -> None:
        """From the next request on; the keys are those of fake_ollama.py's docstring."""
        write_control(self.control, **keys)


@contextlib.contextmanager
def serving(directory: Path, *, model: str = "tiny", log: int = subprocess.DEVNULL, **env: str) -> Iterator[Fake]:
    """A fake Ollama that listens, with `model` in its store. At the end its whole process group is killed.

    `log` is the descriptor to which it logs.
    """
    port = free_port()
    add_model(directory / "models", model)
    control = directory / "control.json"
    settings = {
        "OLLAMA_HOST": f"127.0.0.1:{port}",
        "OLLAMA_MODELS": str(directory / "models"),
        "FAKE_OLLAMA_CONTROL": str(control),
    }
    process = subprocess.Popen(
        [FAKE_OLLAMA, "serve"], env={**os.environ, **settings, **env}, stderr=log, start_new_session=True
    )
    try:
        wait_until_listens(port, process)
        url = f"http://127.0.0.1:{port}"
        # Without the certificates, which take longer to read than a whole test takes.
        with httpx.Client(base_url=url, verify=False, trust_env=False) as client:
            yield Fake(url, client, process, control)
    finally:
        with contextlib.suppress(ProcessLookupError):  # the whole group has ended by itself
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait_until_listens(port: int, process: subprocess.Popen[bytes], deadline_s: float = 10.0) -> None:
    """Return as soon as `port` takes a connection. Raises TimeoutError when it does not in time."""
    end = time.monotonic() + deadline_s
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1.0).close()
        except ConnectionRefusedError:
            if process.poll() is not None or time.monotonic() > end:
                raise TimeoutError(f"no fake ollama on port {port}, exit status {process.poll()}") from None
            with contextlib.suppress(subprocess.TimeoutExpired):  # a pause that an early end cuts short
                process.wait(0.005)
        else:
            return
