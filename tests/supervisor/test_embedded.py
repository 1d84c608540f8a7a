"""Where the embedded default lies, and when it counts as installed."""

import os
from pathlib import Path

import pytest

from supervisor import embedded


def make_whole(folder: Path) -> embedded.Embedded:
    """Lay out what the installer makes; the weights are a hole of the right size."""
    pieces = embedded.layout(folder)
    pieces.ollama_path.parent.mkdir(parents=True)
    pieces.ollama_path.write_text("#!/bin/sh\n")
    pieces.ollama_path.chmod(0o755)
    pieces.modelfile.parent.mkdir()
    pieces.modelfile.write_text("FROM ./model.gguf\n")
    pieces.gguf.touch()
    os.truncate(pieces.gguf, embedded.MODEL_BYTES)
    (folder / embedded.STAMP_NAME).write_text(embedded.STAMP_TEXT)
    return pieces


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"HOME": "/home/ann"}, "/home/ann/.local/share/chimera/embedded"),
        ({"HOME": "/home/ann", "XDG_DATA_HOME": ""}, "/home/ann/.local/share/chimera/embedded"),
        ({"HOME": "/home/ann", "XDG_DATA_HOME": "/data"}, "/data/chimera/embedded"),
        ({"HOME": "/home/ann", "XDG_DATA_HOME": "data"}, "/home/ann/.local/share/chimera/embedded"),
        ({}, str(Path.home() / ".local/share/chimera/embedded")),
    ],
)
def test_it_belongs_where_xdg_says(environ: dict[str, str], expected: str) -> None:
    assert embedded.embedded_dir(environ) == Path(expected)


def test_a_whole_folder_is_found(tmp_path: Path) -> None:
    pieces = make_whole(tmp_path / "embedded")
    assert embedded.find_embedded(tmp_path / "embedded") == pieces
    assert pieces.model == "gemma3:270m"
    assert pieces.gguf == tmp_path / "embedded" / "model" / "model.gguf"


def test_nothing_is_found_where_nothing_is(tmp_path: Path) -> None:
    assert embedded.find_embedded(tmp_path / "embedded") is None
    (tmp_path / "embedded").write_text("a file, not a folder")
    assert embedded.find_embedded(tmp_path / "embedded") is None


@pytest.mark.parametrize("missing", ["complete", "ollama/ollama", "model/model.gguf", "model/Modelfile"])
def test_a_folder_that_lacks_a_piece_does_not_count(tmp_path: Path, missing: str) -> None:
    make_whole(tmp_path)
    (tmp_path / missing).unlink()
    assert embedded.find_embedded(tmp_path) is None


def test_a_folder_of_another_recipe_does_not_count(tmp_path: Path) -> None:
    make_whole(tmp_path)
    (tmp_path / embedded.STAMP_NAME).write_text(embedded.STAMP_TEXT.replace("0.5.4", "0.5.3"))
    assert embedded.find_embedded(tmp_path) is None


def test_weights_that_were_cut_short_do_not_count(tmp_path: Path) -> None:
    os.truncate(make_whole(tmp_path).gguf, embedded.MODEL_BYTES - 1)
    assert embedded.find_embedded(tmp_path) is None


def test_a_program_that_may_not_be_run_does_not_count(tmp_path: Path) -> None:
    make_whole(tmp_path).ollama_path.chmod(0o644)
    assert embedded.find_embedded(tmp_path) is None
