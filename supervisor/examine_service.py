"""What `chimera doctor` reads of Chimera itself: ports, store, rights, unit, gateway. All of it blocks."""

import json
import os
import ssl
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import psutil

from supervisor import doctor_service
from supervisor.activation import addresses_of
from supervisor.config import SECRETS, WORKER_PORTS, Settings
from supervisor.doctor import Finding, fault, unseen
from supervisor.doctor_service import OURS, FileFacts, StoreFacts
from supervisor.errors import BadConfiguration
from supervisor.examine import PROGRAM_TIMEOUT_S, Subject, may
from supervisor.ports import port_is_free
from supervisor.store import full_name
from supervisor.tls import trusting, warnings_of
from supervisor.unit_files import SYSTEM_UNITS, drop_ins

# Beside the package where it runs from a checkout; an installed one has no units with it.
SHIPPED = Path(__file__).resolve().parents[1] / "systemd"
CLIENT_PORTS = Path("/proc/sys/net/ipv4/ip_local_port_range")
NOT_SEEN = "another process"
REGISTRY = "registry.ollama.ai"


def settings(subject: Subject) -> Sequence[Finding]:
    """The settings' file, and every fault in what it says."""
    there = subject.hidden or subject.env_file.exists()
    return doctor_service.settings(str(subject.env_file), subject.faults, there=there, hidden=subject.hidden)


# -- ports -----------------------------------------------------------------------------------------------------------


def ports(subject: Subject) -> Sequence[Finding]:
    """The gateway's port, the primary's and the workers', and who has them."""
    settings, running = subject.settings, subject.pid is not None
    holders = listeners(_our_pids(subject), running=running)
    found: list[Finding] = []
    for name, number, host in (
        ("GATEWAY_PORT", settings.gateway_port, settings.gateway_host),
        ("OLLAMA_PORT", settings.ollama_port, "127.0.0.1"),
    ):
        holder = holders.get(number)
        if holder == NOT_SEEN and name == "GATEWAY_PORT" and subject.unit:
            holder = OURS  # systemd holds it
        if holder is None and not port_is_free(number, host):
            holder = OURS if running else NOT_SEEN
        found.append(doctor_service.port(name, number, holder, running=running))
    base = settings.worker_port_base
    others = {n: who for n, who in holders.items() if base <= n < base + WORKER_PORTS and who != OURS}
    return [*found, doctor_service.worker_ports(base, WORKER_PORTS, others, _clients_from())]


def listeners(ours: frozenset[int], *, running: bool) -> dict[int, str]:
    """Return who listens on which port, OURS for one of `ours`; whose it is only root sees of other users' processes.

    Where Chimera runs as somebody else, what nobody can see is taken for its own.
    """
    found: dict[int, str] = {}
    for connection in psutil.net_connections("tcp"):
        if connection.status != psutil.CONN_LISTEN or not connection.laddr:
            continue
        port, pid = connection.laddr.port, connection.pid
        if pid in ours or (pid is None and running):
            found[port] = OURS
        elif found.get(port) != OURS:
            found[port] = _named(pid)
    return found


def _named(pid: int | None) -> str:
    try:
        return NOT_SEEN if pid is None else f"process {pid} ({psutil.Process(pid).name()})"
    except psutil.Error:
        return f"process {pid}"


def _our_pids(subject: Subject) -> frozenset[int]:
    """Return the processes that hold ports for us: Chimera, its workers, and systemd for the service's socket."""
    if subject.pid is None:
        return frozenset({1} if subject.unit.get("LoadState") == "loaded" else ())
    try:
        below = psutil.Process(subject.pid).children(recursive=True)
    except psutil.Error:
        below = []
    return frozenset({subject.pid, *(child.pid for child in below), *({1} if subject.unit else ())})


def _clients_from() -> int | None:
    try:
        return int(CLIENT_PORTS.read_text(encoding="ascii").split()[0])
    except (OSError, ValueError, IndexError):
        return None


# -- the model store -------------------------------------------------------------------------------------------------


def store_of(subject: Subject) -> Path:
    """Return where the models are: OLLAMA_MODELS, else Ollama's own default for the account."""
    return subject.settings.ollama_models or subject.account.home / ".ollama" / "models"


def store(subject: Subject) -> Sequence[Finding]:
    """The model store, and the required models in it."""
    return doctor_service.store(required(subject), subject.account.name)


def required(subject: Subject) -> StoreFacts:
    """Return what is known of the required models, from their manifests."""
    folder = store_of(subject)
    there = folder.is_dir()
    sizes: dict[str, int | None] = {}
    broken: list[str] = []
    for model in map(full_name, subject.settings.required_models):
        blobs = _blobs_of(folder, model)
        sizes[model] = None if blobs is None else sum(blobs.values())
        if blobs is not None and not all(_is_whole(folder, digest, count) for digest, count in blobs.items()):
            broken.append(model)
    # where it is not there yet, it is made in the first folder that is
    place = next(path for path in (folder, *folder.parents) if path.is_dir())
    return StoreFacts(str(folder), there, may(subject.account, place, "rwx" if there else "wx"), sizes, broken)


def manifest_of(folder: Path, model: str) -> Path:
    """Return where the manifest of a model lies: host, namespace, name, tag, the first two of which have defaults."""
    name, _, tag = model.rpartition(":")
    parts = name.split("/")
    return folder / "manifests" / Path(*[REGISTRY, "library", ""][: max(0, 3 - len(parts))], *parts, tag)


def _blobs_of(folder: Path, model: str) -> dict[str, int] | None:
    """Return the blobs of a model with their sizes, None where its manifest is not there or is none."""
    try:
        manifest = json.loads(manifest_of(folder, model).read_text(encoding="utf-8"))
        return {str(row["digest"]): int(row["size"]) for row in (manifest["config"], *manifest["layers"])}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _is_whole(folder: Path, digest: str, count: int) -> bool:
    try:
        return (folder / "blobs" / digest.replace(":", "-")).stat().st_size == count
    except OSError:
        return False


# -- rights ----------------------------------------------------------------------------------------------------------


def rights(subject: Subject) -> Sequence[Finding]:
    """Who may read what is secret, and whether the service may use its own folders."""
    settings, account = subject.settings, subject.account
    database = settings.state_dir / "chimera.db"
    wanted = [
        (subject.env_file, _has_secrets(settings), "r"),
        (settings.state_dir, False, "rwx"),
        (database, True, "rw"),
        (settings.log_dir, False, "rwx"),
    ]
    if settings.tls_key is not None:
        wanted.append((settings.tls_key, True, "r"))
    files = [
        FileFacts(str(path), _mode(path), secret, _may_if_there(subject, path, how)) for path, secret, how in wanted
    ]
    found = doctor_service.rights(files, account.name)
    hidden = not account.is_me and os.geteuid() != 0
    return [*found, unseen("rights", f"what {account.name} may do")] if hidden else found


def _may_if_there(subject: Subject, path: Path, how: str) -> bool | None:
    return None if _mode(path) is None else may(subject.account, path, how)


def _mode(path: Path) -> int | None:
    try:
        return path.stat().st_mode & 0o7777
    except OSError:
        return None


def _has_secrets(settings: Settings) -> bool:
    return any(getattr(settings, name) for name, row in Settings.model_fields.items() if row.alias in SECRETS)


# -- the service, and what answers -----------------------------------------------------------------------------------


def unit(subject: Subject) -> Sequence[Finding]:
    """The unit, and what of it follows from the settings."""
    stale: list[str] = []
    if subject.unit and not subject.hidden:
        try:
            addresses = addresses_of(subject.settings.gateway_host, subject.settings.gateway_port)
            made = drop_ins(subject.settings, addresses)
        except OSError:
            made = {}  # a host that is no address is the settings' fault
        stale = [name for name, text in made.items() if _read(SYSTEM_UNITS / name) != text]
    shipped = None
    if (SHIPPED / "chimera.service").exists() and (installed := _read(Path(subject.unit.get("FragmentPath", "/")))):
        shipped = installed == _read(SHIPPED / "chimera.service")
    return doctor_service.unit(subject.unit, stale=stale, shipped=shipped)


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None


def certificate(subject: Subject) -> Sequence[Finding]:
    """What others will find wrong with the certificate: its end, its names."""
    try:
        told = warnings_of(subject.settings, datetime.now(UTC).timestamp())
    except BadConfiguration as error:
        return [fault("certificate", text, "mend it; chimera reload takes it") for text in error.faults]
    return doctor_service.certificate(subject.settings.tls_cert, told)


def gateway(subject: Subject) -> Sequence[Finding]:
    """What /healthz and /readyz say."""
    url = subject.settings.gateway_url
    try:
        trusted: ssl.SSLContext | bool = trusting(subject.settings.tls_cert) if subject.settings.tls_cert else True
    except BadConfiguration as error:
        return [fault("gateway", f"it cannot be asked: {text}", "see certificate") for text in error.faults]
    health, ready = _get(f"{url}/healthz", trusted), _get(f"{url}/readyz", trusted)
    return doctor_service.gateway(url, health[0], ready[1], running=subject.pid is not None)


def _get(url: str, trusted: ssl.SSLContext | bool) -> tuple[int | None, Mapping[str, Any] | None]:
    """Return the status and the JSON object of an answer."""
    try:
        answer = httpx.get(url, timeout=PROGRAM_TIMEOUT_S, trust_env=False, verify=trusted)
    except httpx.HTTPError:
        return None, None
    try:
        value = answer.json()
    except ValueError:
        value = None
    return answer.status_code, value if isinstance(value, dict) else None
