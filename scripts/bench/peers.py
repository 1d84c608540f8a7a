"""What stands before the workers: nothing, what people use today, and Chimera; each started the same way.

A `Peer` says its version and runs for a `with` block. `ALL` has those that every run compares; LiteLLM and Ollama Herd
(`guests.py`) come along where they are asked for.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version as version_of
from pathlib import Path

from scripts.bench import haproxy as haproxy_peer
from scripts.bench.accounts import with_children
from scripts.bench.haproxy import NotInstalled
from scripts.bench.machine import commit
from scripts.bench.peer import Peer, Running, process
from scripts.bench.workers import Spec
from tests.fakes.chimera import ROOT, chimera, free_ports

PORTS_FROM = 27_000
# Of Chimera.
MAX_CONNECTIONS = 20_000
NGINX = """\
daemon off;
pid {folder}/nginx.pid;
error_log {folder}/nginx-error.log warn;
worker_processes 1;
worker_rlimit_nofile {files};
{user}
events {{ worker_connections {connections}; }}
http {{
    access_log off;
    client_body_temp_path {folder}/nginx-body;
    proxy_temp_path {folder}/nginx-proxy;
    fastcgi_temp_path {folder}/nginx-fastcgi;
    uwsgi_temp_path {folder}/nginx-uwsgi;
    scgi_temp_path {folder}/nginx-scgi;
    keepalive_requests 1000000;
    upstream workers {{
        zone workers 2m;
        least_conn;
{servers}
        keepalive {kept};
        keepalive_requests 1000000;
    }}
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        location / {{
            proxy_pass http://workers;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_buffering off;
            {retry}
            proxy_read_timeout 600s;
        }}
    }}
}}
"""


class Direct:
    """No proxy: connections take the workers in turn."""

    name = "direct"

    def version(self) -> str:
        """Return nothing that could change."""
        return "no proxy"

    @contextmanager
    def running(self, workers: Sequence[int], slots: int, folder: Path) -> Iterator[Running]:
        """Start nothing."""
        yield Running(self.name, tuple(f"http://127.0.0.1:{port}" for port in workers), (), tuple(workers))


@dataclass(frozen=True)
class Nginx:
    """nginx `least_conn`, one worker process, not buffering, kept connections to the workers.

    `bounded`: no worker gets more than its slots, the rest is refused; else it passes on all that come, as it does
    where nobody says otherwise, and they wait in the workers. Open-source nginx has no queue of its own.
    `retry`: set up for workers that die, as its manual has it: another one for a request that got no byte, and a
    dead one is left out for a second.
    """

    bounded: bool = True
    retry: bool = False
    name: str = "nginx"

    def _program(self) -> str:
        found = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
        if found is None:
            raise NotInstalled("nginx is not installed; on Debian and Ubuntu: apt install nginx-light")
        return found

    def version(self) -> str:
        """Return what it says it is. Raises NotInstalled."""
        said = subprocess.run([self._program(), "-v"], capture_output=True, text=True, check=True).stderr
        return said.strip().rpartition(" ")[2].replace("/", " ")

    def config(self, port: int, workers: Sequence[int], slots: int, folder: Path) -> str:
        """Return a configuration for workers of so many slots each."""
        most = f" max_conns={slots}" if self.bounded else ""
        fails = "max_fails=1 fail_timeout=1s" if self.retry else "max_fails=0"
        servers = "\n".join(f"        server 127.0.0.1:{worker}{most} {fails};" for worker in workers)
        retry = "proxy_next_upstream error timeout non_idempotent;" if self.retry else ""
        user = "user root;" if os.geteuid() == 0 else ""  # else its worker process could not use our folder
        return NGINX.format(
            port=port, servers=servers, retry=retry, kept=max(64, slots * len(workers)), folder=folder, user=user,
            files=_most_files(), connections=_most_files() - 64,
        )  # fmt: skip

    @contextmanager
    def running(self, workers: Sequence[int], slots: int, folder: Path) -> Iterator[Running]:
        """Run it."""
        (port,) = free_ports(1, PORTS_FROM)
        file = folder / "nginx.conf"
        file.write_text(self.config(port, workers, slots, folder))
        argv = [self._program(), "-p", str(folder), "-e", f"{folder}/nginx-error.log", "-c", str(file)]
        with process(argv, port, folder / "nginx.log") as pid:
            yield Running(self.name, (f"http://127.0.0.1:{port}",), with_children(pid), tuple(workers))


@dataclass(frozen=True)
class HaProxy:
    """HAProxy `leastconn`, one thread; requests beyond the workers' slots wait in it.

    `retry`: set up for workers that die, as its manual has it (haproxy.py).
    """

    retry: bool = False
    name: str = "HAProxy"

    def version(self) -> str:
        """Return what it says it is. Raises NotInstalled."""
        return haproxy_peer.version().removeprefix("HAProxy version ").split(" ")[0]

    @contextmanager
    def running(self, workers: Sequence[int], slots: int, folder: Path) -> Iterator[Running]:
        """Run it."""
        (port,) = free_ports(1, PORTS_FROM)
        with haproxy_peer.haproxy_process(port, workers, slots, folder, retry=self.retry) as pid:
            yield Running(self.name, (f"http://127.0.0.1:{port}",), (pid,), tuple(workers))


class Plain:
    """A plain proxy, as people write one: Quart-Trio on Hypercorn, httpx to the workers (plain.py)."""

    name = "Quart + httpx"

    def version(self) -> str:
        """Return the versions of what it stands on."""
        return ", ".join(f"{name} {version_of(name)}" for name in ("quart-trio", "hypercorn", "httpx"))

    @contextmanager
    def running(self, workers: Sequence[int], slots: int, folder: Path) -> Iterator[Running]:
        """Run it."""
        (port,) = free_ports(1, PORTS_FROM)
        argv = [sys.executable, "-m", "scripts.bench.plain", str(port), str(slots), *map(str, workers)]
        with process(argv, port, folder / "plain.log") as pid:
            yield Running(self.name, (f"http://127.0.0.1:{port}",), (pid,), tuple(workers))


@dataclass(frozen=True)
class Chimera:
    """Chimera with everything on: keys required, metrics, affinity, watchdogs, an access log in a file.

    It starts its own workers, as it always does: as many as are asked for, made as `spec` says. What other peers are
    to be compared on, `Running.workers`, are then those. `settings` are added to its environment; `program` is what
    Python runs as `chimera`.
    """

    spec: Spec
    settings: Mapping[str, str] = field(default_factory=dict)
    name: str = "Chimera"
    program: tuple[str, ...] = ("-m", "supervisor")

    def version(self) -> str:
        """Return the commit that is measured."""
        return commit()

    @contextmanager
    def running(self, workers: Sequence[int], slots: int, folder: Path) -> Iterator[Running]:
        """Run it, with as many workers as `workers` has ports; the ports are its own."""
        worker_program = ROOT / "scripts" / "bench" / "worker.py"
        settings = {
            "OLLAMA_BIN": str(worker_program), "WORKERS": f"cpu={len(workers)}", "WORKER_SLOTS": str(slots),
            "API_KEYS_REQUIRED": "true", "ACCESS_LOG": "on", "QUEUE_SIZE": "20000", "QUEUE_TIMEOUT_S": "600",
            "MAX_CONNECTIONS": str(MAX_CONNECTIONS),
        }  # fmt: skip
        with chimera(folder / self.name, **settings) as made:
            first = made.primary_port + 1
            own = self.spec.environ(first)
            made.env |= own | dict(self.settings)
            # a worker's own variable, not one of Chimera's
            made.env["WORKER_ENV"] = f"OLLAMA_MAX_LOADED_MODELS={own['OLLAMA_MAX_LOADED_MODELS']}"
            made.program = self.program
            made.start().ready(len(workers))
            key = made.command("keys", "create", "bench").stdout.strip()
            assert made.process is not None  # noqa: S101 - for the types
            ports = tuple(int(row["port"]) for row in made.instances())
            yield Running(self.name, (made.url,), (made.process.pid,), ports, {"Authorization": f"Bearer {key}"})


def peers(spec: Spec) -> list[Peer]:
    """Return those that every run compares, Chimera last."""
    return [Direct(), Nginx(), HaProxy(), Plain(), Chimera(spec)]


def _most_files() -> int:
    """Return how many files a process may open here."""
    import resource

    return min(60_000, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
