"""Structured logs: for people on a terminal, as JSON elsewhere. No prompt, no answer and no secret is ever logged."""

import logging
import sys

import structlog


def for_people(form: str) -> bool:
    """Say whether `form` (console, json, auto) means text for people: auto does on a terminal."""
    return form == "console" or (form == "auto" and sys.stderr.isatty())


def configure(level: str, form: str) -> None:
    """Send every log line, other libraries' too, to standard error.

    `form` is console, json, or auto: console on a terminal.
    """
    console = for_people(form)
    shared: list[structlog.typing.Processor] = [
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="%H:%M:%S" if console else "iso", utc=not console),
    ]
    ending: list[structlog.typing.Processor] = (
        # plain: the default tracebacks print the values of variables, prompts and tokens among them
        [
            structlog.dev.ConsoleRenderer(
                colors=sys.stderr.isatty(), pad_event_to=28, exception_formatter=structlog.dev.plain_traceback
            )
        ]
        if console
        else [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    )
    structlog.configure(
        processors=[structlog.stdlib.filter_by_level, *shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared, processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *ending]
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for chatty in ("httpx", "httpcore", "hpack", "quart", "alembic", "sqlalchemy"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
