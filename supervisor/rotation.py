"""Which logs are to be set aside and which removed, so that all of them together stay within LOG_MAX_BYTES. Pure."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from supervisor.command import PRIMARY

# Chimera's own log, where `chimera start` made one.
OWN: Final = "chimera"
# A log beyond this is set aside, earlier where many share LOG_MAX_BYTES.
FILE_BYTES: Final = 64 * 1024**2
# The logs of so many workers that are gone are kept, the newest: numbers are not given twice, so they would add up.
GONE_KEPT: Final = 20

# `w1.log`, what was set aside of it, and a copy that was not finished. Other files in LOG_DIR are not ours.
_OURS: Final = re.compile(rf"(w[0-9]+|{PRIMARY}|{OWN})\.log(\.1(?:\.new)?)?")


@dataclass(frozen=True, slots=True)
class LogFile:
    """A file in LOG_DIR; `changed_at` is what its file system says, seconds."""

    name: str
    size_bytes: int
    changed_at: float


@dataclass(frozen=True, slots=True)
class Orders:
    """What is to be done, by name of file."""

    set_aside: tuple[str, ...]
    remove: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Ours:
    file: LogFile
    owner: str
    ending: str


def is_ours(name: str) -> bool:
    """Say whether a file of this name is one of Chimera's logs."""
    return _OURS.fullmatch(name) is not None


def file_bound_bytes(logs: int, most_bytes: int) -> int:
    """Return how large a log may become where `logs` are written, each with one older file, and one copy is made."""
    return min(FILE_BYTES, most_bytes // (2 * logs + 1))


def orders(files: Iterable[LogFile], workers: Iterable[str], most_bytes: int) -> Orders:
    """Return what is to be done. `workers` are those that there are, by id: only their logs are written now.

    What goes first, when it is too much: the logs of workers that are gone, the oldest of them first, then what was
    set aside of the others'.
    """
    written = {PRIMARY, OWN, *workers}
    ours = [_Ours(file, found[1], found[2] or "") for file in files if (found := _OURS.fullmatch(file.name))]
    bound = file_bound_bytes(len(written), most_bytes)
    aside = tuple(o.file.name for o in ours if o.owner in written and not o.ending and o.file.size_bytes > bound)
    kept_gone = _newest(o for o in ours if o.owner not in written)
    remove = [o for o in ours if o.ending == ".1.new" or o.owner not in written | kept_gone]
    left = [o for o in ours if o not in remove]
    total = sum(o.file.size_bytes for o in left)
    for o in sorted(left, key=lambda o: (o.owner in written, o.file.changed_at)):
        if total <= most_bytes:
            break
        if o.ending or o.owner not in written:
            remove.append(o)
            total -= o.file.size_bytes
    return Orders(aside, tuple(o.file.name for o in remove))


def _newest(gone: Iterable[_Ours]) -> set[str]:
    """Return the workers, of those that are gone, whose logs were written last."""
    changed_at: dict[str, float] = {}
    for o in gone:
        changed_at[o.owner] = max(changed_at.get(o.owner, 0.0), o.file.changed_at)
    return set(sorted(changed_at, key=lambda owner: changed_at[owner], reverse=True)[:GONE_KEPT])
