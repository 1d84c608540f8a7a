"""The gateway's parts, made by the settings, wired to each other and to the supervisor, and started in their order.

Part of the root (`__main__`), so it imports both packages: what each setting is to a part of the gateway stands here,
at the start and for a reload.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import structlog
from msgspec.structs import asdict

from gateway.access import AccessLog, Fields, Which, json_line, local_line, sentence
from gateway.admission import Admission
from gateway.app import make_app
from gateway.asgi import App, AsgiLane
from gateway.book import Book
from gateway.connections import fit_descriptors
from gateway.door import Door, run_gateway
from gateway.exchange import Exchange
from gateway.forwarded import TrustedProxies
from gateway.front import Front
from gateway.hosts import names_of
from gateway.keyring import Keyring
from gateway.labels import ModelLabels
from gateway.metrics import Metrics
from gateway.page import ByHost, no_page
from gateway.pulls import Pulls
from gateway.retune import Tunable, Tuning
from gateway.stamps import utc_ms_text
from gateway.traefik import Domains
from gateway.upstream import Upstream
from supervisor import journal
from supervisor.alongside import alongside
from supervisor.certificate import Certificate
from supervisor.config import Settings
from supervisor.lines import LineWriter
from supervisor.logfiles import append, write_own
from supervisor.logs import form_of
from supervisor.notes import WorkerLogNotes
from supervisor.supervision import Supervision

if TYPE_CHECKING:
    from gateway.tracing import Tracing

log = structlog.get_logger("chimera")

# How long the thread that writes the access lines waits for a journald that does not read; then they are dropped.
JOURNAL_WAIT_S = 1.0


class Gateway:
    """All parts. Nothing runs before `begin`, and nobody is let in before `open`."""

    def __init__(
        self, settings: Settings, admission: Admission, upstream: Upstream, keyring: Keyring,
        certificate: Certificate, supervision: Supervision,
    ) -> None:  # fmt: skip
        self._settings = settings
        self._admission = admission
        self._upstream = upstream
        self._keyring = keyring
        self._certificate = certificate
        self._worker_logs: LineWriter[Path] = LineWriter("workers' logs", append)
        self._own_log: LineWriter[None] = LineWriter("the access log", own_log_of(settings))
        self._tracing = tracing_of(settings)
        self._door: Door | None = None
        self._metrics = metrics = Metrics(ModelLabels(supervision.models_here), lambda: certificate.ends_at_s)
        now = tuning_of(settings, self._own_log)
        notes = WorkerLogNotes(lambda worker_id: settings.log_dir / f"{worker_id}.log", self._worker_logs, _now_utc)
        exchange = Exchange(admission, upstream, metrics, settings.ollama_port, supervision.fleet, notes)
        proxies = TrustedProxies(now.trusted_proxies)
        self._pages = make_app(
            supervision.operator, admission, metrics, now.admin_token, keyring, proxies, now.domains,
            lambda: self._book.access,
        )  # fmt: skip
        self._pulls = Pulls(exchange)
        self._book = Book(metrics, now.access, self._tracing)
        self._front = Front(
            exchange, self._pulls, metrics, max_body_bytes=now.max_body_bytes, pin_load_options=now.pin_load_options,
            keyring=keyring, book=self._book, proxies=proxies, page_names=names_of(now.domains.page),
        )  # fmt: skip

    async def begin(self, stack: AsyncExitStack) -> None:
        """Start what must outlive the workers: who writes lines, and the connections to them."""
        for writer in (self._worker_logs, self._own_log):
            await stack.enter_async_context(alongside(writer.run, started=True))
        if self._tracing is not None:
            stack.push_async_callback(self._tracing.aclose)
        stack.callback(self._upstream.close)
        await stack.enter_async_context(alongside(self._upstream.run))

    async def open(self, stack: AsyncExitStack, sockets: list[Any]) -> Door:
        """Let clients in; return the door that they come by."""
        settings, front, certificate = self._settings, self._front, self._certificate
        await stack.enter_async_context(alongside(self._pulls.run, started=True))
        await stack.enter_async_context(alongside(self._keyring.run, started=True))
        await stack.enter_async_context(alongside(certificate.run))
        serving = partial(
            run_gateway, ByHost(front, AsgiLane(front, cast("App", self._pages)), no_page), sockets, express=front,
            tls=lambda: certificate.context, stall_timeout_s=settings.stall_timeout_s,
            max_connections=fit_descriptors(settings.max_connections), refused=self._metrics.refused_at_door,
        )  # fmt: skip
        door: Door = await stack.enter_async_context(alongside(serving, started=True))
        self._door = door
        return door

    def retune(self, settings: Settings) -> None:
        """Let new settings count, in one step; once clients are let in."""
        door = self._door
        assert door is not None, "the gateway is not open"  # noqa: S101 - a bug of ours
        tunable = Tunable(self._admission, self._front, self._book, door.connections, self._pages, self._keyring)
        tunable.retune(tuning_of(settings, self._own_log))


def tuning_of(settings: Settings, own_log: LineWriter[None]) -> Tuning:
    """Return what of the settings the gateway looks at while it runs; `own_log` takes the access lines."""
    return Tuning(
        queue_size=settings.queue_size, queue_bytes=settings.queue_bytes, queue_timeout_s=settings.queue_timeout_s,
        max_body_bytes=settings.max_body_bytes, pin_load_options=settings.load_options == "pin",
        max_connections=settings.max_connections,
        admin_token=settings.admin_token.get_secret_value() if settings.admin_token else None,
        api_keys_required=settings.api_keys_required, trusted_proxies=settings.trusted_proxies,
        domains=Domains(settings.api_domains, settings.page_domains), access=access_log(settings, own_log),
    )  # fmt: skip


def access_log(settings: Settings, own_log: LineWriter[None]) -> AccessLog | None:
    """Return what writes the access lines; they are of level info, and go where that level goes."""
    form = form_of(settings.log_format)
    which: Which = ("errors" if form == "console" else "on") if settings.access_log == "auto" else settings.access_log
    if which == "off" or settings.log_level in ("warning", "error"):
        return None
    lines = {"console": local_line, "json": json_line, "journal": _journal_entry}
    return AccessLog(partial(own_log.put, None), which, form=lines[form], now=_wall_s)


def _journal_entry(fields: Fields, _at_s: float) -> str:
    """Return a request's line as an entry of the journal, which has its own clock."""
    return journal.entry("info", sentence(fields), {**asdict(fields), "event": "request", "logger": "access"})


def own_log_of(settings: Settings) -> Callable[[None, Sequence[str]], None]:
    """Return what writes the access lines, in a thread, to where Chimera's other lines go."""
    if form_of(settings.log_format) == "journal":
        return journal.Journal(wait_s=JOURNAL_WAIT_S).write
    return write_own


def tracing_of(settings: Settings) -> "Tracing | None":
    """Return what makes traces, None where nobody wants any: then OpenTelemetry is not even imported."""
    if settings.traces_url is None:
        return None
    try:
        from gateway.tracing import Tracing

        return Tracing(settings.traces_url)
    except (ImportError, ValueError) as error:  # a package is missing, or one of its own variables is wrong
        log.error("no traces: OpenTelemetry refused; look at its variables (OTEL_…)", cause=type(error).__name__)
        return None


def _wall_s() -> float:
    return time.time_ns() / 1_000_000_000  # for each request: a datetime takes four times as long


def _now_utc() -> str:
    return utc_ms_text(time.time_ns() // 1_000_000)
