"""What all measurements have in common: how they are asked for, and the record they leave.

A measurement is a module with a function `measure(options) -> Record`; `MEASUREMENTS` of `__main__` has its name.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import msgspec

from scripts.bench.machine import Machine, this_machine
from scripts.bench.peer import Peer


@dataclass(frozen=True, slots=True)
class Options:
    """How to measure.

    `rounds`: how often each side has its turn. `quick`: as short as it can be, to see that it works; its figures mean
    nothing. `guests`: peers that are installed for the run only, "litellm", "herd". `say` tells how far it is.
    `machine`: as it is before anything is measured, without our load.
    """

    rounds: int = 5
    quick: bool = False
    guests: tuple[str, ...] = ()
    say: Callable[[str], None] = print
    machine: Machine = field(default_factory=this_machine)


@dataclass(frozen=True, slots=True)
class Record:
    """What one measurement found, as it is kept in JSON.

    `figures` are its own: a dict of numbers, texts, lists and dicts. `versions`: of the peers, by name. `left_out`:
    lines about peers that were not there.
    """

    name: str
    command: str
    machine: Machine
    versions: dict[str, str]
    figures: dict[str, Any]
    left_out: tuple[str, ...] = field(default_factory=tuple)


class Measure(Protocol):
    """A measurement."""

    def __call__(self, options: Options) -> Record:
        """Measure. Raises RuntimeError when a side cannot be measured at all."""
        ...


def record(name: str, options: Options, sides: Sequence[Peer], figures: dict[str, Any],
           left_out: Sequence[str] = ()) -> Record:  # fmt: skip
    """Return the record of a measurement that ends now."""
    words = ["python -m scripts.bench", name, f"--rounds {options.rounds}", *(["--quick"] if options.quick else []),
             *(f"--with {guest}" for guest in options.guests)]  # fmt: skip
    versions = {peer.name: peer.version() for peer in sides}
    return Record(name, " ".join(words), options.machine, versions, figures, tuple(left_out))


def save(made: Record, file: Path) -> None:
    """Write a record as JSON."""
    file.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(asdict(made), indent=1, ensure_ascii=False)
    file.write_text(f"{text}\n", encoding="utf-8")


def load(file: Path) -> Record:
    """Read a record. Raises FileNotFoundError, ValueError when it is none or of another form."""
    try:
        made = msgspec.convert(json.loads(file.read_text(encoding="utf-8")), Record)
        msgspec.convert(made.figures.get("criteria", {}), dict[str, float])
    except msgspec.ValidationError as error:
        raise ValueError(f"it is no record of this version: {error}") from error
    return made
