"""What is tried before anything is started, and refused then: the gateway's port, the primary's port, the database.

Part of the root (`__main__`), so it imports both packages: what the gateway finds at fault with a port or a database,
the supervisor's commands and its start tell in their own way.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from gateway.connections import bound_by_descriptors
from gateway.database import Damaged, DatabaseFault
from gateway.database_look import look_at
from gateway.door import PortTaken, listen
from gateway.rescue import Opened, open_keys
from supervisor import doctor
from supervisor.activation import check_handed, handed_sockets
from supervisor.config import Settings
from supervisor.doctor import Finding
from supervisor.errors import StartRefused
from supervisor.ports import port_holder, port_is_free
from supervisor.state_file import set_aside

__all__ = [
    "bound_by_descriptors",
    "database_for",
    "examine_database",
    "opened_keys",
    "refuse_taken_primary_port",
    "sockets_of",
]


def sockets_of(settings: Settings, environ: Mapping[str, str]) -> list[Any]:
    """Return the sockets that the gateway listens on: systemd's, where it hands us some, else our own.

    Raises StartRefused when the port is taken; BadConfiguration when systemd's is not where the settings say.
    """
    if handed := handed_sockets(environ):
        check_handed(handed, settings.gateway_host, settings.gateway_port)
        return handed
    try:
        return listen(settings.gateway_host, settings.gateway_port)
    except PortTaken as error:
        where = f"{settings.gateway_host}:{settings.gateway_port}"
        holder = f" ({port_holder(settings.gateway_port)} has it)" if "in use" in str(error) else ""
        raise StartRefused(
            f"cannot listen on {where}: {error}{holder}; set GATEWAY_PORT (or GATEWAY_HOST) to another"
        ) from error


def refuse_taken_primary_port(settings: Settings) -> None:
    """Raise StartRefused when somebody listens where the primary is to listen."""
    if not port_is_free(settings.ollama_port):
        raise StartRefused(
            f"port {settings.ollama_port} is in use by {port_holder(settings.ollama_port)}, and Chimera's primary "
            "needs it: stop that one (systemctl stop ollama), or set OLLAMA_PORT to another port"
        )


def opened_keys(settings: Settings) -> Opened:
    """Open the database and read the keys. It blocks. Raises StartRefused: without keys nobody's limits would hold."""
    try:
        return open_keys(_url(settings), settings.state_dir, set_aside)
    except DatabaseFault as fault:
        raise StartRefused(str(fault)) from fault


def database_for(settings: Settings) -> str:
    """Say how the database stands for this version. Raises StartRefused when it cannot be used. Changes nothing.

    A damaged file is no reason: a start puts it back from a copy.
    """
    try:
        return look_at(_url(settings), settings.state_dir)
    except Damaged as fault:
        return str(fault)
    except DatabaseFault as fault:
        raise StartRefused(str(fault)) from fault


def examine_database(settings: Settings) -> Sequence[Finding]:
    """Say for `chimera doctor` how the database stands. It blocks, and changes nothing."""
    try:
        return [doctor.ok("database", look_at(_url(settings), settings.state_dir))]
    except DatabaseFault as problem:
        advice = "chimera config shows DATABASE_URL's place; keys are kept there"
        return [doctor.fault("database", str(problem), advice)]


def _url(settings: Settings) -> str | None:
    return settings.database_url.get_secret_value() if settings.database_url else None
