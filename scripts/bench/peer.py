"""What stands between clients and workers: what all peers have in common."""

import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from scripts.bench.haproxy import NotInstalled
from scripts.bench.workers import answers, wait_until
from tests.fakes.chimera import ROOT


@dataclass(frozen=True, slots=True)
class Running:
    """A peer that runs.

    `urls`: where to ask, one but where clients spread over the workers by themselves. `pids`: the processes that are
    the proxy, whose CPU and memory count, without workers. `workers`: their ports. `headers` go with every request.
    `path`, `model`: how inference is asked for.
    """

    name: str
    urls: tuple[str, ...]
    pids: tuple[int, ...]
    workers: tuple[int, ...]
    headers: Mapping[str, str] = field(default_factory=dict)
    path: str = "/api/generate"
    model: str = "bench"

    @property
    def url(self) -> str:
        """Where to ask, where there is one place."""
        return self.urls[0]


class Peer(Protocol):
    """One side of a comparison."""

    @property
    def name(self) -> str:
        """What it is called in tables."""
        ...

    def version(self) -> str:
        """Return what is installed. Raises NotInstalled, whose text says what to do."""
        ...

    def running(self, workers: Sequence[int], slots: int, folder: Path) -> AbstractContextManager[Running]:
        """Run it for the block before the workers on these ports; ended by its pid afterwards.

        `folder` is for its files. Raises NotInstalled, RuntimeError when it does not start.
        """
        ...


@contextmanager
def process(argv: Sequence[str], url_port: int, log: Path, path: str = "/api/version", **env: str) -> Iterator[int]:
    """Run a program for the block, its output in a file; yields its pid once it answers on its port.

    Raises RuntimeError, with the end of its output, when it does not.
    """
    with log.open("ab") as out:
        running = subprocess.Popen(
            list(argv), stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=os.environ | env, cwd=ROOT
        )
    try:
        try:
            wait_until(lambda: answers(url_port, path), running)
        except RuntimeError as error:
            raise RuntimeError(f"{error}; it said: {log.read_text(errors='replace').strip()[-500:]}") from error
        yield running.pid
    finally:
        running.terminate()
        try:
            running.wait(10)
        except subprocess.TimeoutExpired:
            running.kill()
            running.wait()


def installed(wanted: Sequence[Peer]) -> tuple[list[Peer], list[str]]:
    """Return the peers that are there, and a line for each that is not, which says what to do."""
    found: list[Peer] = []
    lines: list[str] = []
    for peer in wanted:
        try:
            peer.version()
        except NotInstalled as missing:
            lines.append(f"{peer.name} is left out: {missing}")
        else:
            found.append(peer)
    return found, lines
