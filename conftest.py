"""Makes the repository's own packages, `tests.fakes` and `scripts` importable from every test."""

import gc
import sys
from pathlib import Path

import structlog
from hypothesis import HealthCheck, settings

ROOT = str(Path(__file__).parent)
if ROOT not in sys.path:
    sys.path.insert(0, ROOT)

# As the service does (supervisor/logs.py): by default structlog would have rich draw every traceback with all its
# variables, which takes seconds.
structlog.configure(
    processors=[
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="%Y-%m-%d %H:%M:%S", utc=False),
        structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback),
    ]
)

# No test is decided by time: neither by how long an example took, nor by how long it took to make one up.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")
# `make check` is run after every change: it tries a fifth of each property's examples (also where one says how many:
# tests/fakes/examples.py), and half of tests/gateway/test_cancel_everywhere.py. `make test`, and CI, tries them all.
settings.register_profile("quick", parent=settings.get_profile("untimed"), max_examples=20)


# What is collected stays: that the garbage collector looks at it again and again took a fifth of the time.
gc.disable()


def pytest_collection_finish() -> None:
    """Let the garbage collector look at what comes from now on."""
    gc.freeze()
    gc.enable()
