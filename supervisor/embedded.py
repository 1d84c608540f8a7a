"""The embedded default: a CPU build of Ollama and a small model, for a machine that has no ``ollama``.

``scripts/embedded.py`` installs it, the supervisor uses it. This module says where it lies and whether it is
whole; it reads a few file names and starts nothing.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

OLLAMA_VERSION = "0.5.4"
MODEL = "gemma3:270m"
MODEL_SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
MODEL_BYTES = 253_113_024

STAMP_NAME = "complete"
# What a whole folder's stamp says. A folder of another recipe counts as absent, so a change here (the number
# stands for everything else, such as the Modelfile) makes the installer build it anew.
STAMP_TEXT = f"ollama {OLLAMA_VERSION}\nmodel {MODEL} sha256:{MODEL_SHA256}\nrecipe 1\n"


@dataclass(frozen=True)
class Embedded:
    """A whole embedded default: the server's program, and the model to create from the Modelfile."""

    ollama_path: Path
    model: str
    modelfile: Path

    @property
    def gguf(self) -> Path:
        """The model's weights, which the Modelfile names by a relative path."""
        return self.modelfile.with_name("model.gguf")


def layout(folder: Path) -> Embedded:
    """Say where each piece lies in `folder`, whether or not it is there."""
    return Embedded(folder / "ollama" / "ollama", MODEL, folder / "model" / "Modelfile")


def embedded_dir(environ: Mapping[str, str]) -> Path:
    """Say where the embedded default belongs: `$XDG_DATA_HOME/chimera/embedded`, else under `~/.local/share`.

    A relative XDG_DATA_HOME is ignored, as its specification asks. Without HOME the account's home directory
    counts; RuntimeError if there is none either.
    """
    data_home = Path(environ.get("XDG_DATA_HOME") or "")
    if not data_home.is_absolute():
        home = environ.get("HOME")
        data_home = (Path(home) if home else Path.home()) / ".local" / "share"
    return data_home / "chimera" / "embedded"


def find_embedded(embedded_dir: Path) -> Embedded | None:
    """Return what is installed in `embedded_dir`, or None unless it is whole and of this version's recipe."""
    found = layout(embedded_dir)
    try:
        stamp = (embedded_dir / STAMP_NAME).read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return None
    whole = (
        stamp == STAMP_TEXT
        and os.access(found.ollama_path, os.X_OK)
        and found.modelfile.is_file()
        and found.gguf.is_file()
        and found.gguf.stat().st_size == MODEL_BYTES
    )
    return found if whole else None
