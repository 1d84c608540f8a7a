"""Structured logs: for people on a terminal, in the journal's own fields, as JSON elsewhere.

No prompt, no answer and no secret is ever logged.
"""

import logging
import os
import sys
from typing import Literal

import structlog

from supervisor import journal

Form = Literal["console", "json", "journal"]


def form_of(setting: str) -> Form:
    """Return the form of log lines that LOG_FORMAT means here.

    auto is console on a terminal, journal where standard error is the journal's stream, else json. journal is json
    where there is no journald.
    """
    if setting == "console" or (setting == "auto" and sys.stderr.isatty()):
        return "console"
    if setting == "journal" or (setting == "auto" and journal.leads_to_journal(os.environ)):
        return "journal" if journal.SOCKET.is_socket() else "json"
    return "json"


def configure(level: str, setting: str) -> None:
    """Send every log line, other libraries' too, to standard error, or to the journal. `setting` is LOG_FORMAT."""
    form = form_of(setting)
    console = form == "console"
    shared: list[structlog.typing.Processor] = [structlog.stdlib.add_logger_name, structlog.stdlib.add_log_level]
    if form != "journal":  # which has its own clock
        shared.append(structlog.processors.TimeStamper(fmt="%H:%M:%S" if console else "iso", utc=not console))
    structlog.configure(
        processors=[structlog.stdlib.filter_by_level, *shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler: logging.Handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_formatter(shared, "json" if form == "journal" else form))
    if form == "journal":
        handler = journal.JournalHandler(journal.Journal(), instead=handler)
        handler.setFormatter(_formatter(shared, form))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for chatty in ("httpx", "httpcore", "hpack", "quart", "alembic", "sqlalchemy"):
        logging.getLogger(chatty).setLevel(logging.WARNING)


def _formatter(shared: list[structlog.typing.Processor], form: Form) -> structlog.stdlib.ProcessorFormatter:
    last: structlog.typing.Processor
    if form == "console":
        # plain: the default tracebacks print the values of variables, prompts and tokens among them
        plain = structlog.dev.plain_traceback
        last = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), pad_event_to=28, exception_formatter=plain)
    else:
        last = journal.rendered if form == "journal" else structlog.processors.JSONRenderer()
    ending = [last] if form == "console" else [structlog.processors.format_exc_info, last]
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared, processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *ending]
    )
