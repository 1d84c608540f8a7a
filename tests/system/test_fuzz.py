"""A running Chimera takes the corpus of `make fuzz` on its port, and a few tries of its own published document."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts.fuzz.corpus import Notebook, kept
from scripts.fuzz.published import Published
from scripts.fuzz.stage import Stage, Trouble, staged
from scripts.fuzz.tally import Clock
from scripts.fuzz.wire import TARGET, tried


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with staged(tmp_path_factory.mktemp("fuzz") / "stage") as made:
        yield made


@pytest.mark.parametrize("pieces", [1, 7])
def test_the_corpus_of_the_wire_leaves_nothing_behind(stage: Stage, pieces: int) -> None:
    tried(stage, [data for _, data in kept(TARGET)], pieces)


def test_every_published_operation_answers_as_the_document_says(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scripts.fuzz.published.EXAMPLES", 2)
    notebook = Notebook(tmp_path)
    part = Published(stage, notebook, random.Random(1))
    part.once(Clock.of(100))
    notebook.close()
    assert part.tally.findings == []
    assert part.tally.total >= len(part.tally.tries) >= 40


def test_a_lease_or_a_connection_that_is_left_is_trouble(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `look` is there to see."""
    monkeypatch.setattr("scripts.fuzz.stage.SETTLE_S", 0.3)
    monkeypatch.setattr(stage, "connections", lambda: ["12345 CLOSE_WAIT"])
    with pytest.raises(Trouble, match="connections left"):
        stage.look()
