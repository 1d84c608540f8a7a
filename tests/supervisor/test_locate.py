"""Which ollama is run: OLLAMA_BIN, else PATH, else the CPU build, else a clear line."""

from pathlib import Path

import pytest

from supervisor import locate
from supervisor.config_load import load_settings
from supervisor.embedded import MODEL, STAMP_NAME, STAMP_TEXT, embedded_dir, layout
from supervisor.errors import BadConfiguration, StartRefused
from supervisor.locate import Ollama, locate_ollama, with_embedded_defaults


def program(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "bin").mkdir()
    return {"HOME": str(tmp_path), "PATH": str(tmp_path / "bin")}


def located(environ: dict[str, str], **names: str) -> Ollama:
    return locate_ollama(load_settings(environ | names, {}), environ)


def install(environ: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A CPU build that looks whole, with a model of few bytes."""
    monkeypatch.setattr("supervisor.embedded.MODEL_BYTES", 5)
    folder = embedded_dir(environ)
    found = layout(folder)
    program(found.ollama_path)
    found.modelfile.parent.mkdir()
    found.modelfile.write_text("FROM ./model.gguf\n")
    found.gguf.write_text("12345")
    (folder / STAMP_NAME).write_text(STAMP_TEXT)
    return found.ollama_path


def test_ollama_bin_wins(environ: dict[str, str], tmp_path: Path) -> None:
    program(tmp_path / "bin" / "ollama")
    mine = program(tmp_path / "mine")
    assert located(environ, OLLAMA_BIN=str(mine)) == Ollama(mine)


def test_ollama_bin_may_be_a_name_on_path(environ: dict[str, str], tmp_path: Path) -> None:
    mine = program(tmp_path / "bin" / "ollama-next")
    assert located(environ, OLLAMA_BIN="ollama-next") == Ollama(mine)


@pytest.mark.parametrize("name", ["/no/such/program", "no-such-program", "/"])
def test_an_ollama_bin_that_is_no_program_is_bad_configuration(environ: dict[str, str], name: str) -> None:
    with pytest.raises(BadConfiguration) as refused:
        located(environ, OLLAMA_BIN=name)
    assert refused.value.faults == [f"OLLAMA_BIN: {name!r} is not a program that can be run"]


def test_a_file_that_is_not_executable_is_no_program(environ: dict[str, str], tmp_path: Path) -> None:
    program(tmp_path / "mine").chmod(0o644)
    with pytest.raises(BadConfiguration):
        located(environ, OLLAMA_BIN=str(tmp_path / "mine"))


def test_an_ollama_on_path_wins_over_the_cpu_build(
    environ: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(environ, monkeypatch)
    there = program(tmp_path / "bin" / "ollama")
    assert located(environ) == Ollama(there)


def test_without_any_other_the_cpu_build_is_run_with_its_model(
    environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = install(environ, monkeypatch)
    found = located(environ)
    assert found.path == path
    settings = load_settings(environ, {})
    assert with_embedded_defaults(settings, found).required_models == (MODEL,)
    own = load_settings(environ | {"REQUIRED_MODEL": "mine"}, {})
    assert with_embedded_defaults(own, found).required_models == ("mine",)
    assert with_embedded_defaults(settings, Ollama(path)).required_models == ()


def test_without_any_ollama_the_line_says_what_to_do(environ: dict[str, str]) -> None:
    with pytest.raises(StartRefused, match=r"there is no ollama here: install it .* or set OLLAMA_BIN, or type"):
        located(environ)
    assert locate.Ollama(Path("/x")).embedded is None
