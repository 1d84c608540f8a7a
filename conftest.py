"""Makes the repository's own packages, `tests.fakes` and `scripts` importable from every test."""

import sys
from pathlib import Path

import structlog
from hypothesis import settings

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

# `make check` tries fewer examples of each property than `make test`: it is run after every change.
settings.register_profile("quick", max_examples=20)
