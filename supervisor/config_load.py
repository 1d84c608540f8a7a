"""The settings as they are found, brought together: environment, then `.env`, then defaults; all faults at once.

Pure: the environment and the lines of `.env` are handed in. An empty value counts as not set, so that
`NAME=` in a file switches a setting back to its default.
"""

import difflib
import re
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from supervisor.config import CLIENT_NAMES, NAMES, RESERVED, SECRETS, WORKER_PORTS, Settings
from supervisor.domains import in_both
from supervisor.errors import BadConfiguration


def default_directories(environ: Mapping[str, str]) -> dict[str, str]:
    """Return STATE_DIR and LOG_DIR where nobody set them: systemd's, else the XDG state folder.

    systemd.exec(5): STATE_DIRECTORY and LOGS_DIRECTORY are colon-separated lists; the first is the unit's own.
    """
    home = environ.get("HOME") or "/root"
    xdg = environ.get("XDG_STATE_HOME", "")
    state_home = Path(xdg) if xdg.startswith("/") else Path(home) / ".local/state"  # a relative one is to be ignored
    state = environ.get("STATE_DIRECTORY", "").split(":")[0] or str(state_home / "chimera")
    logs = environ.get("LOGS_DIRECTORY", "").split(":")[0] or f"{state}/logs"
    return {"STATE_DIR": state, "LOG_DIR": logs}


def state_dir_of(environ: Mapping[str, str], dotenv: Mapping[str, str | None]) -> Path:
    """Return STATE_DIR alone, whatever else is wrong with the settings."""
    return Path(environ.get("STATE_DIR") or dotenv.get("STATE_DIR") or default_directories(environ)["STATE_DIR"])


def load_settings(
    environ: Mapping[str, str], dotenv: Mapping[str, str | None], dotenv_faults: tuple[str, ...] = ()
) -> Settings:
    """Return the settings: environment first, then `.env`, then the defaults.

    `dotenv_faults` are those found before: lines of `.env` that are none, files that settings name. Raises
    BadConfiguration with every fault there is, each naming its variable.
    """
    values, unreadable = _written(environ, dotenv)
    settings, refused = _checked(values)
    faults = [*dotenv_faults, *_unknown_names(dotenv), *_reserved_names(dotenv), *unreadable, *refused.values()]
    faults += [*_port_faults(values, refused.keys()), *_half_set(values, refused.keys())]
    if settings is not None:
        faults += in_both(settings.api_domains, settings.page_domains)
    if faults or settings is None:
        raise BadConfiguration(faults)
    return settings


def _written(environ: Mapping[str, str], dotenv: Mapping[str, str | None]) -> tuple[dict[str, str], list[str]]:
    """Return the text of each setting that has one, and a fault for each that cannot be read."""
    values, faults = default_directories(environ), []
    for name in NAMES:
        text = environ.get(name) or dotenv.get(name)
        if text and "\0" in text:
            faults.append(f"{name}: has a NUL character")
        elif text:
            values[name] = text
    own_log_dir = environ.get("LOG_DIR") or dotenv.get("LOG_DIR") or environ.get("LOGS_DIRECTORY")
    if not own_log_dir and values["STATE_DIR"].startswith("/"):
        values["LOG_DIR"] = f"{values['STATE_DIR']}/logs"
    return values, faults


def _checked(values: Mapping[str, str]) -> tuple[Settings | None, dict[str, str]]:
    """Return the settings, None if any is refused; and the first fault of each that is."""
    refused: dict[str, str] = {}
    try:
        return Settings.model_validate(values), refused
    except ValidationError as error:
        for detail in error.errors(include_url=False, include_context=False):
            name = str(detail["loc"][0])
            written = None if name in SECRETS else values.get(name)
            refused.setdefault(name, f"{name}: {_plain(detail['msg'], written)}")
    return None, refused


def _plain(message: str, written: str | None) -> str:
    """Return pydantic's message in our words, with what was written unless it is there already."""
    message = message.removeprefix("Value error, ").replace("Input should be", "must be")
    for theirs, ours in (("integer", "a whole number"), ("number", "a number"), ("boolean", "true or false")):
        message = re.sub(rf"a valid {theirs}(, .*)?$", ours, message)
    if written is None or repr(written) in message or message.startswith("'"):
        return message
    return f"{message} (it is {written!r})"


def _unknown_names(dotenv: Mapping[str, str | None]) -> list[str]:
    faults: list[str] = []
    for name in dotenv:
        if name in NAMES or name in RESERVED or name in CLIENT_NAMES:
            continue
        close = difflib.get_close_matches(name.upper(), NAMES, n=1, cutoff=0.75)
        if close:
            hint = f"did you mean {close[0]}?"
        elif name.startswith(("OLLAMA_", "CUDA_", "GGML_", "LLAMA_")):
            hint = f"for a worker's variable write WORKER_ENV={name}=…"
        else:
            hint = "see .env.example for the names there are"
        faults.append(f"{name if name.isprintable() else repr(name)}: not a setting; {hint}")
    return faults


def _reserved_names(dotenv: Mapping[str, str | None]) -> list[str]:
    """Refuse what this version cannot do. Not in the environment: other programs use such names."""
    off = {"false", "0", "no", "off"}
    return [
        f"{name}: this version of Chimera does not do that yet; remove it"
        for name in sorted(RESERVED)
        if (text := dotenv.get(name)) and text.strip().lower() not in off
    ]


def _half_set(values: Mapping[str, str], bad: AbstractSet[str]) -> list[str]:
    """Refuse a certificate without a key, and a key without a certificate: whoever sets one expects protection."""
    pair = ("TLS_CERT", "TLS_KEY")
    missing = [name for name in pair if not values.get(name)]
    if len(missing) != 1 or not bad.isdisjoint(pair):
        return []
    (there,) = set(pair).difference(missing)
    return [f"{missing[0]}: not set, but {there} is; set both for HTTPS, or neither"]


def _port_faults(values: Mapping[str, str], bad: AbstractSet[str]) -> list[str]:
    """Refuse ports of one setting that another needs too."""
    ports: dict[str, int] = {}
    for name in ("GATEWAY_PORT", "OLLAMA_PORT", "WORKER_PORT_BASE"):
        if name not in bad:
            default = next(f.default for f in Settings.model_fields.values() if f.alias == name)
            ports[name] = TypeAdapter(int).validate_python(values.get(name, default))
    faults: list[str] = []
    if ports.get("GATEWAY_PORT") is not None and ports.get("GATEWAY_PORT") == ports.get("OLLAMA_PORT"):
        faults.append(f"OLLAMA_PORT: {ports['OLLAMA_PORT']} is GATEWAY_PORT too; choose another for one of them")
    base = ports.get("WORKER_PORT_BASE")
    for name in ("GATEWAY_PORT", "OLLAMA_PORT"):
        if base is not None and base <= ports.get(name, 0) < base + WORKER_PORTS:
            faults.append(  # noqa: PERF401 - two at most
                f"{name}: {ports[name]} lies among the workers' ports "
                f"({base} to {base + WORKER_PORTS - 1}, see WORKER_PORT_BASE); choose another"
            )
    return faults
