"""The `.env` file, and the settings of an environment with it: what every command begins with."""

import re
from collections.abc import Mapping
from pathlib import Path

from dotenv.parser import parse_stream

from supervisor.config import Settings
from supervisor.config_load import load_settings
from supervisor.tls import written_faults


def read_dotenv(path: Path) -> tuple[dict[str, str | None], tuple[str, ...]]:
    """Return the names and values of a `.env`, and a line for each line of it that is none; no file is no fault."""
    try:
        with path.open(encoding="utf-8-sig") as file:  # some editors begin a file with a byte order mark
            bindings = list(parse_stream(file))
    except FileNotFoundError:
        return {}, ()
    except (OSError, UnicodeDecodeError) as error:
        return {}, (f"{path}: cannot be read: {error}",)
    values: dict[str, str | None] = {}
    faults: list[str] = []
    for binding in bindings:
        # "NAME" alone is no setting either; blank lines and comments have neither key nor error
        if binding.error or (binding.key and binding.value is None):
            text = binding.original.string
            line = binding.original.line + len(text[: -len(text.lstrip())].splitlines())
            named = re.match(r"\s*([A-Za-z_]\w*)\s*=", text)  # never the rest: it may be a secret
            faults.append(f"{path} line {line}: {named[1] + ': ' if named else ''}this is not NAME=VALUE")
        elif binding.key:
            values[binding.key] = binding.value
    return values, tuple(faults)


def settings_from(env_file: Path, environ: Mapping[str, str]) -> Settings:
    """Return the settings of this environment. Raises BadConfiguration."""
    values, faults = read_dotenv(env_file)
    return load_settings(environ, values, faults)


def servable_settings(env_file: Path, environ: Mapping[str, str]) -> Settings:
    """Return the settings for whoever is to serve by them: the files that they name are read too, the key among them.

    Raises BadConfiguration.
    """
    values, faults = read_dotenv(env_file)
    return load_settings(environ, values, (*faults, *written_faults(environ, values)))
