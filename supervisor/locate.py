"""Which `ollama` to run."""

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from supervisor.config import Settings
from supervisor.embedded import Embedded, embedded_dir, find_embedded
from supervisor.errors import BadConfiguration, StartRefused


@dataclass(frozen=True, slots=True)
class Ollama:
    """The `ollama` that is run; `embedded` says that it is the CPU build that came with a small model."""

    path: Path
    embedded: Embedded | None = None


def locate_ollama(settings: Settings, environ: Mapping[str, str]) -> Ollama:
    """Return OLLAMA_BIN, else `ollama` on PATH, else the installed CPU build.

    Raises BadConfiguration when OLLAMA_BIN is no program, StartRefused when there is none at all.
    """
    if settings.ollama_bin:
        found = shutil.which(settings.ollama_bin, path=environ.get("PATH"))
        if not found:
            raise BadConfiguration([f"OLLAMA_BIN: {str(settings.ollama_bin)!r} is not a program that can be run"])
        return Ollama(Path(found).absolute())
    if on_path := shutil.which("ollama", path=environ.get("PATH", os.defpath)):
        return Ollama(Path(on_path).absolute())
    embedded = find_embedded(embedded_dir(environ))
    if embedded:
        return Ollama(embedded.ollama_path, embedded)
    raise StartRefused(
        "there is no ollama here: install it (https://ollama.com/download), or set OLLAMA_BIN, "
        "or type `make run` for a CPU build with a small model"
    )


def with_embedded_defaults(settings: Settings, ollama: Ollama) -> Settings:
    """Return the settings with what the embedded default brings: its model, where none was asked for."""
    if ollama.embedded is None or settings.required_models:
        return settings
    return settings.model_copy(update={"required_models": (ollama.embedded.model,)})
