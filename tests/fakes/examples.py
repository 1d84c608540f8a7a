"""How many examples a property is tried with: the profile of conftest.py says it, for the costly ones too."""

from hypothesis import settings

FULL = 100  # hypothesis's own number, which the profile of `make test` keeps


def examples(full: int) -> int:
    """Return the share of `full` that the profile has of FULL; for a property that says how many it wants."""
    return max(1, full * settings().max_examples // FULL)


def thorough() -> bool:
    """Tell whether all is to be tried: in `make test`, not in `make check`."""
    return settings().max_examples >= FULL
