"""HAProxy `leastconn` before the same workers: what people put before several Ollama servers today."""

import resource
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx

START_TIMEOUT_S = 10.0

CONFIG = """\
global
    maxconn {most}
    nbthread 1
defaults
    mode http
    option http-no-delay
    option abortonclose
    timeout connect 5s
    timeout client 600s
    timeout server 600s
    timeout queue 600s
{retry}frontend gateway
    bind 127.0.0.1:{port}
    default_backend workers
backend workers
    balance leastconn
{servers}
"""
# For workers that die: another one for a request that got no byte, and a look at each worker once a second.
RETRY = """\
    retries 3
    option redispatch 1
    retry-on conn-failure empty-response
    option httpchk GET /api/version
    default-server check inter 1s fall 1 rise 1
"""


class NotInstalled(Exception):
    """There is no HAProxy on this machine; the text says what to do."""


def config(port: int, workers: Sequence[int], slots: int, *, retry: bool = False) -> str:
    """Return a configuration that gives each worker at most `slots` requests at once and queues the rest.

    `retry`: what a request that its worker gave no byte of is tried with another one, and dead workers are left out.
    """
    servers = "\n".join(f"    server w{number} 127.0.0.1:{worker} maxconn {slots}"
                        for number, worker in enumerate(workers, start=1))  # fmt: skip
    return CONFIG.format(port=port, servers=servers, most=most_connections(), retry=RETRY if retry else "")


def _program() -> str:
    """Return where HAProxy is; Debian puts it where only root looks. Raises NotInstalled."""
    found = shutil.which("haproxy") or shutil.which("haproxy", path="/usr/sbin:/usr/local/sbin")
    if found is None:
        raise NotInstalled("haproxy is not installed; on Debian and Ubuntu: apt install haproxy")
    return found


def version() -> str:
    """Return what HAProxy says it is. Raises NotInstalled."""
    said = subprocess.run([_program(), "-v"], capture_output=True, text=True, check=True).stdout
    return said.splitlines()[0].partition(" - ")[0]


def most_connections() -> int:
    """Return how many clients it may have: each takes two of the files that a process may open here."""
    return min(20_000, resource.getrlimit(resource.RLIMIT_NOFILE)[1] // 2 - 100)


@contextmanager
def haproxy(port: int, workers: Sequence[int], slots: int, folder: Path) -> Iterator[str]:
    """Run HAProxy for the block, in the foreground and ended by its pid; yields its URL. Raises NotInstalled."""
    with haproxy_process(port, workers, slots, folder):
        yield f"http://127.0.0.1:{port}"


@contextmanager
def haproxy_process(
    port: int, workers: Sequence[int], slots: int, folder: Path, *, retry: bool = False
) -> Iterator[int]:
    """The same; yields its pid. `retry` as `config` has it. Raises NotInstalled."""
    file = folder / "haproxy.cfg"
    file.write_text(config(port, workers, slots, retry=retry))
    process = subprocess.Popen([_program(), "-db", "-f", str(file)], stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        _wait_for(url, process)
        yield process.pid
    finally:
        process.terminate()
        process.wait()


def _wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    pause = 0.05
    while True:
        try:
            httpx.get(f"{url}/api/version", trust_env=False).raise_for_status()
            return
        except httpx.HTTPError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise
            try:
                process.wait(pause)
            except subprocess.TimeoutExpired:
                continue
