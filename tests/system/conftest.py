"""Fixtures of the system tests: a Chimera with fake workers for faults, one with real ones for everything else."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from supervisor.embedded import Embedded, embedded_dir, find_embedded
from tests.fakes.chimera import Chimera, chimera, path_without_ollama
from tests.fakes.fake_ollama import add_model

# The files that take longest, of those that `make test` gives to two processes: begun first, none is left alone.
LONGEST = ("test_systemd", "test_real_ollama", "test_clients", "test_faults", "test_keys", "test_gpus", "test_seen")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything below this folder is a system test. They come after all others, the longest files first."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.system)
    items.sort(key=lambda item: (here in item.path.parents, _turn(item.path.stem)))


def _turn(file: str) -> int:
    return LONGEST.index(file) if file in LONGEST else len(LONGEST)


@pytest.fixture
def faked(tmp_path: Path) -> Iterator[Chimera]:
    """A Chimera on fake workers, not yet started; the model `tiny` is in its store."""
    with chimera(tmp_path, WORKERS="cpu=2", REQUIRED_MODEL="tiny") as made:
        Path(made.env["OLLAMA_MODELS"]).mkdir()
        add_model(Path(made.env["OLLAMA_MODELS"]), "tiny")
        yield made


@pytest.fixture(scope="session")
def embedded() -> Embedded:
    """The real Ollama and the real model that `make test` installs."""
    found = find_embedded(embedded_dir(os.environ))
    assert found is not None, "the CPU build of Ollama is not installed; `make test` installs it"
    return found


@pytest.fixture(scope="session")
def real_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One model store for all tests with the real Ollama."""
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def real(embedded: Embedded, real_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chimera]:
    """A running Chimera with two real workers of two slots each, and a queue of four."""
    with chimera(
        tmp_path_factory.mktemp("real"),
        OLLAMA_MODELS=str(real_models), OLLAMA_BIN="", WORKERS="cpu=2", WORKER_SLOTS="2", QUEUE_SIZE="4",
        PATH=path_without_ollama(),
    ) as made:  # fmt: skip
        yield made.start().ready(2)
