"""What `chimera doctor` makes of Chimera itself: settings, ports, store, rights, unit, gateway. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from supervisor.doctor import Finding, fault, ok, size, unseen, warning

# Who has a port: nobody, our own Chimera, or somebody, in words.
OURS = "ours"


def settings(env_file: str, faults: Sequence[str], *, there: bool, hidden: bool) -> list[Finding]:
    """Judge the settings; `faults` as `chimera config` tells them."""
    if hidden:
        return [unseen("settings", f"{env_file}, and so Ollama, ports, store, disks, rights, database, gateway,")]
    if faults:
        rest = warning("settings", "all that follows is of the default settings", "mend those above, then ask again")
        return [*(fault("settings", text, f"change it in {env_file} or the environment") for text in faults), rest]
    return [ok("settings", f"{env_file}: no fault" if there else f"no {env_file}: the environment and the defaults")]


def port(name: str, number: int, holder: str | None, *, running: bool) -> Finding:
    """Judge a port that Chimera needs; `holder` None: nobody has it."""
    if holder == OURS:
        return ok("ports", f"{name} {number}: this Chimera's")
    if holder is None and running:
        return warning("ports", f"{name} {number}: free, though Chimera runs", "chimera status; were settings changed?")
    if holder is None:
        return ok("ports", f"{name} {number}: free")
    stop = "systemctl stop ollama" if name == "OLLAMA_PORT" and "ollama" in holder else "stop it"
    return fault("ports", f"{name} {number}: {holder} has it", f"{stop}, or set {name} to another port")


def worker_ports(base: int, count: int, others: Mapping[int, str], clients_from: int | None) -> Finding:
    """Judge the workers' ports; `clients_from`: where those begin that the kernel gives to clients."""
    name = f"WORKER_PORT_BASE {base} to {base + count - 1}"
    if clients_from is not None and clients_from < base + count:
        return warning(
            "ports",
            f"{name}: the kernel gives ports from {clients_from} on to clients",
            "set WORKER_PORT_BASE lower, or sysctl net.ipv4.ip_local_port_range higher",
        )
    if others:
        some = ", ".join(f"{number} ({holder})" for number, holder in sorted(others.items())[:3])
        return warning(
            "ports",
            f"{name}: others have {len(others)} of them: {some}",
            "workers pass them over; set WORKER_PORT_BASE to have a range of their own",
        )
    return ok("ports", f"{name}: no one else's")


@dataclass(frozen=True, slots=True)
class StoreFacts:
    """What is known of the model store. `bytes_of`: the required models, None for one that is not there.

    `broken`: required models with a missing or cut blob. `may_write` None: not known.
    """

    path: str
    there: bool
    may_write: bool | None
    bytes_of: Mapping[str, int | None]
    broken: Sequence[str] = ()


def store(facts: StoreFacts, user: str) -> list[Finding]:
    """Judge the model store, which `user` reads and writes."""
    if facts.may_write is False:
        return [
            fault(
                "store",
                f"{user} may not write {facts.path}",
                f"sudo chown -R {user} {facts.path}, or set OLLAMA_MODELS to another folder",
            )
        ]
    found = [
        fault("store", f"{name}: its files in {facts.path} are not whole", f"bring it in again: ollama pull {name}")
        for name in facts.broken
    ]
    missing = [name for name, count in facts.bytes_of.items() if count is None]
    if not facts.there:
        return [
            ok("store", f"{facts.path} is not there yet; Chimera makes it, with: {', '.join(missing) or 'nothing'}")
        ]
    if missing:
        found.append(
            warning(
                "store",
                f"not there yet: {', '.join(missing)}",
                "Chimera brings it in when it starts: see chimera status",
            )
        )
    if not found and facts.may_write is None:
        found.append(unseen("store", facts.path))
    elif not found:
        there = ", ".join(f"{name} ({size(count)})" for name, count in facts.bytes_of.items() if count is not None)
        found.append(ok("store", f"{facts.path}{': ' if there else ', no model is required'}{there}"))
    return found


@dataclass(frozen=True, slots=True)
class FileFacts:
    """A file or folder that matters. `mode`: its permission bits, None: it is not there, or cannot be seen."""

    path: str
    mode: int | None
    secret: bool
    may: bool | None


def rights(files: Sequence[FileFacts], user: str) -> list[Finding]:
    """Judge who may read and write; `may`: whether `user` may do what the service does with it."""
    found: list[Finding] = []
    for file in files:
        if file.mode is None:
            continue
        if file.mode & 0o002:
            found.append(fault("rights", f"anybody may write {file.path}", f"chmod o-w {file.path}"))
        if file.secret and file.mode & 0o004:
            found.append(fault("rights", f"anybody may read {file.path}, which has secrets", f"chmod o= {file.path}"))
        if file.may is False:
            found.append(
                fault(
                    "rights",
                    f"{user} may not use {file.path}",
                    f"sudo chown {user} {file.path}; for settings: sudo chgrp {user}, and g+r",
                )
            )
    seen = [file.path for file in files if file.mode is not None]
    return found or [
        ok("rights", f"{', '.join(seen) or 'nothing is there yet'}{': as they should be' if seen else ''}")
    ]


def certificate(path: Path | None, told: Sequence[str]) -> list[Finding]:
    """Judge the certificate; `told`: what clients will find wrong with it, or its key's file."""
    if path is None:
        return [ok("certificate", "none: the gateway speaks plain HTTP (TLS_CERT)")]
    found = [warning("certificate", text, "mend it; chimera reload takes it at once") for text in told]
    return found or [ok("certificate", f"{path}: nothing is wrong with it")]


def unit(shown: Mapping[str, str], *, stale: Sequence[str], shipped: bool | None) -> list[Finding]:
    """Judge the service. `shown`: properties as `systemctl show` has them, none: there is no unit.

    `stale`: drop-ins that do not follow from the settings any more; `shipped`: whether the unit is this version's,
    None: not known.
    """
    if shown.get("LoadState") != "loaded":
        return [ok("service", "not installed as a service (sudo make install does it)")]
    found: list[Finding] = []
    said = shown.get("StatusText", "")
    state = f"{shown.get('ActiveState')} ({shown.get('SubState')})"
    if shown.get("ActiveState") == "failed":
        found.append(fault("service", f"{state}: {said or shown.get('Result')}", "journalctl -u chimera -n 50"))
    if shown.get("UnitFileState") not in ("enabled", "enabled-runtime"):
        found.append(warning("service", "it does not start with the machine", "sudo systemctl enable chimera"))
    if shown.get("NeedDaemonReload") == "yes":
        found.append(
            warning("service", "its files have changed since systemd read them", "sudo systemctl daemon-reload")
        )
    if shipped is False:
        found.append(warning("service", "its unit is not this version's", "sudo make install"))
    if stale:
        found.append(
            warning("service", f"does not follow from the settings: {', '.join(stale)}", "sudo chimera units --write")
        )
    if shown.get("Delegate") == "no":
        found.append(
            warning("service", "workers have no cgroups of their own", "Delegate=yes in the unit: sudo make install")
        )
    user = shown.get("User") or "root"
    return found or [ok("service", f"{state} as {user}{f': {said}' if said else ''}")]


def gateway(url: str, health: int | None, ready: Mapping[str, Any] | None, *, running: bool) -> list[Finding]:
    """Judge what answers; `health`: the status of /healthz, None: no answer, `ready`: what /readyz says."""
    if health is None and not running:
        return [ok("gateway", "no Chimera runs")]
    if health is None:
        return [fault("gateway", f"Chimera runs, but nobody answers at {url}", "chimera status; its log says why")]
    if health != 200:
        return [fault("gateway", f"{url}/healthz answers {health}", "is another program listening there?")]
    workers = None if ready is None else ready.get("ready_workers")
    if not workers:
        return [warning("gateway", f"{url} answers, but no worker is ready", "chimera status says why")]
    return [ok("gateway", f"{url} answers, workers ready: {workers}")]
