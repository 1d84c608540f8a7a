"""What of the supervisor reads text that others wrote, and what must hold of each, for any input."""

import contextlib
import tempfile
from functools import cache, partial
from pathlib import Path

import trio

from supervisor.ask import Asker
from supervisor.cgroup import oom_kills_in, own_cgroup
from supervisor.config import SECRETS
from supervisor.config_load import load_settings
from supervisor.config_text import effective
from supervisor.env_file import read_dotenv
from supervisor.errors import BadConfiguration
from supervisor.events import EventLog
from supervisor.oom import Sources, killed, mark, sources_of, victims
from supervisor.placed import computes_on_cpu
from supervisor.probe import Prober
from supervisor.procs import parse_stat, private_bytes, stat_of
from supervisor.store import PullProgress, _progress, _read
from supervisor.wanted import QuarantineFile, WantedFile
from supervisor.worker_log import last_lines


@cache
def _folder() -> Path:
    """A folder for files that a target reads; it stays until this process ends."""
    held = tempfile.TemporaryDirectory(prefix="chimera-fuzz-files-")
    _held.append(held)
    return Path(held.name)


_held: list[tempfile.TemporaryDirectory[str]] = []


def _file(name: str, data: bytes) -> Path:
    path = _folder() / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def check_settings(dotenv: bytes) -> None:
    """A `.env` is read, or refused with every fault; no fault repeats a secret, no shown setting does."""
    values, faults = read_dotenv(_file(".env", dotenv))
    secrets = [text for name in SECRETS if (text := values.get(name)) and len(text) > 12 and text not in _PLAIN]
    try:
        settings = load_settings({"HOME": "/root"}, values, faults)
    except BadConfiguration as bad:
        told = [fault.replace(name, "") for fault in bad.faults for name in SECRETS]
        assert told
        assert not any(secret in fault for secret in secrets for fault in told)
        return
    shown = effective(settings)
    assert shown["ADMIN_TOKEN"] in ("", "(set, hidden)")


_PLAIN = "WORKER_ENV ADMIN_TOKEN nothing: this version pins NVIDIA GPUs only"


def check_workers_log(log: bytes) -> None:
    """A worker's log says where it computes, and its last lines are lines."""
    computes_on_cpu(log[: 64 * 1024].decode("utf-8", "replace"))
    assert len(last_lines(_file("worker.log", log), 50)) <= 50


def check_proc(data: bytes) -> None:
    """A process may have any name: what follows it in /proc/PID/stat is read all the same."""
    name = data.replace(b"\0", b"")[:15]
    rest = b" S 1 77 77 0 -1 4194560 1 0 0 0 5 6 0 0 20 0 1 0 99 1000 3 18446744073709551615"
    found = parse_stat(b"4711 (" + name + b")" + rest)
    assert (found.pid, found.ppid, found.pgid, found.state) == (4711, 1, 77, "S")
    assert (found.cpu_ticks, found.start_ticks) == (11, 99)
    _file("proc/4711/stat", b"4711 (" + name + b")" + rest)
    assert stat_of(4711, _folder() / "proc") == found
    status = (
        b"Name:\t" + name.replace(b"\\", b"\\\\").replace(b"\n", b"\\n") + b"\nRssAnon:\t     120 kB\nVmSwap:\t 8 kB\n"
    )
    _file("proc/4711/status", status)
    assert private_bytes(4711, _folder() / "proc") == 128 * 1024


def check_cgroup(data: bytes) -> None:
    """What the kernel says of cgroups and of its killer never raises, whatever a mount or a cgroup is called."""
    path = _file("kernel.txt", data)
    with contextlib.suppress(UnicodeDecodeError):  # the kernel's own files; a name in them may be any bytes
        own_cgroup(path, path)
        sources_of(None, path)
        oom_kills_in(path)
    text = data.decode("utf-8", "replace")
    assert all(pid >= 0 for pid in victims(text.splitlines()))
    sources = Sources(vmstat=path, kmsg=path, events_v2=path)
    with contextlib.suppress(UnicodeDecodeError):
        killed([1, 2, 3], mark(sources), sources)


class _Says(Asker):
    """A worker whose every answer has the same body."""

    body: bytes = b""

    async def get(self, port: int, path: str) -> bytes | None:
        """Return that body."""
        del port, path
        return self.body


@cache
def _prober() -> tuple[Prober, _Says]:
    prober, asker = Prober(), _Says()
    prober._asker = asker  # noqa: SLF001 - no worker is asked here
    return prober, asker


def check_probe(body: bytes) -> None:
    """Whatever a worker answers a probe is understood or is no good answer."""
    prober, asker = _prober()
    asker.body = body

    async def ask() -> None:
        for question in (prober.version, prober.ps, prober.stored):
            await question(11500)

    trio.run(partial(ask))


def check_pull_line(line: bytes) -> None:
    """A line of a pull is progress, an error, or no line of Ollama's."""
    share = PullProgress()
    for text in line.decode("utf-8", "replace").splitlines():
        fields, fault = _read(text)
        assert fault is None or isinstance(fault, str)
        assert _progress("m", fields).startswith("pulling m")
        share.take(fields)


def check_saved(data: bytes) -> None:
    """A file that Chimera wrote once and that is broken now is set aside, never fatal."""
    _file("fleet.json", data)
    found = WantedFile(_folder(), "auto", EventLog()).load()
    assert found is None or isinstance(found[0], list)
    _file("quarantined.json", data)
    assert all(isinstance(uuid, str) for uuid in QuarantineFile(_folder(), EventLog()).load())
