"""What of systemd's units follows from the settings, as the text of their drop-ins. Pure.

A unit cannot read Chimera's settings: where the socket listens, which folders may be written, how long a stop may take.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

from supervisor.config import Settings

SYSTEM_UNITS = Path("/etc/systemd/system")
NAME = "50-settings.conf"
HEAD = "# Made from the settings by `sudo chimera units --write`. Your own lines belong into another file here.\n"
# What systemd makes for us and lets us write (StateDirectory=, LogsDirectory=).
OWN_FOLDERS = (Path("/var/lib/chimera"), Path("/var/log/chimera"))
# What ProtectHome=yes hides.
HOMES = (Path("/home"), Path("/root"), Path("/run/user"))
# Beyond DRAIN_TIMEOUT_S and STOP_TIMEOUT_S: the primary, the last connections, Python itself.
STOP_MARGIN_S = 30


def drop_ins(settings: Settings, addresses: Sequence[tuple[str, int]]) -> dict[str, str]:
    """Return the drop-ins by their path below /etc/systemd/system.

    `addresses` are those that GATEWAY_HOST and GATEWAY_PORT mean on this machine.
    """
    return {
        f"chimera.socket.d/{NAME}": f"{HEAD}[Socket]\nListenStream=\n{''.join(map(_listen, addresses))}",
        f"chimera.service.d/{NAME}": f"{HEAD}[Service]\n{_service(settings)}",
    }


def _listen(address: tuple[str, int]) -> str:
    host, port = address
    return f"ListenStream={f'[{host}]' if ':' in host else host}:{port}\n"


def _service(settings: Settings) -> str:
    stop_s = round(settings.drain_timeout_s + settings.stop_timeout_s + STOP_MARGIN_S)
    lines = [f"TimeoutStopSec={stop_s}"]
    written = [path for path in (settings.ollama_models, settings.state_dir, settings.log_dir) if path is not None]
    outside = [path for path in dict.fromkeys(written) if not _below(path, OWN_FOLDERS)]
    if any(_below(path, HOMES) for path in (*outside, *filter(None, [settings.ollama_bin]))):
        lines.append("ProtectHome=read-only")
    lines += [f'ReadWritePaths="-{_escaped(path)}"' for path in outside]
    return "\n".join(lines) + "\n"


def _below(path: Path, folders: Iterable[Path]) -> bool:
    return any(path.is_relative_to(folder) for folder in folders)


def _escaped(path: Path) -> str:
    """Return a path as it stands in quotes in a unit (systemd.syntax(7)); % begins a specifier there."""
    return str(path).replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
