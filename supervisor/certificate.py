"""The certificate that the gateway shows, renewed while Chimera runs. `Certificate.run` is the task.

A renewal replaces the files, or what their symbolic links lead to (certbot(1)): both are looked at every few seconds.
New connections get the new certificate, open ones keep theirs. One that cannot be used changes nothing, and is said.
"""

import ssl
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import structlog
import trio

from supervisor.beat import beat
from supervisor.config import Settings
from supervisor.errors import BadConfiguration
from supervisor.events import EventLog
from supervisor.tls import ends_at_s, load_pair, warnings_of

log = structlog.get_logger("chimera")

LOOK_EVERY_S = 5.0
# A renewal that does not come is noticed by nobody until the certificate ends: said again each day.
WARN_EVERY_S = 24 * 3600.0

# What tells one file from another that has taken its place: device, inode, size, time of change in nanoseconds.
Stamp = tuple[tuple[int, int, int, int] | None, ...]


@dataclass(frozen=True, slots=True)
class Shown:
    """A certificate that was read, as TLS is to be spoken with it; `context` None: plain HTTP is.

    `ends_at_s`: when it ends, in seconds since 1970; None where nobody can tell.
    """

    context: ssl.SSLContext | None
    stamp: Stamp
    warnings: list[str]
    ends_at_s: float | None = None


class Certificate:
    """What new connections speak TLS with: `context`, None where TLS_CERT is not set."""

    def __init__(self, made: Callable[[], ssl.SSLContext], settings: Settings, events: EventLog) -> None:
        """`made` gives a context without a certificate. Raises BadConfiguration. Reads files."""
        self._made = made
        self._events = events
        self._refused: Stamp | None = None
        self._said = False
        self.show(settings, self.read(settings))

    @property
    def context(self) -> ssl.SSLContext | None:
        """What a connection that begins now speaks TLS with."""
        return self._shown.context

    @property
    def ends_at_s(self) -> float | None:
        """When the certificate that new connections get ends, in seconds since 1970; None without one."""
        return self._shown.ends_at_s

    def read(self, settings: Settings) -> Shown:
        """Read the certificate of these settings. Raises BadConfiguration. Blocks: reads files."""
        if settings.tls_cert is None or settings.tls_key is None:
            return Shown(None, (), [])
        stamp = stamp_of(settings.tls_cert, settings.tls_key)  # before the reading: what changes meanwhile is seen then
        context = self._made()
        load_pair(context, settings.tls_cert, settings.tls_key)
        return Shown(context, stamp, _warnings(settings), ends_at_s(context, settings.tls_cert))

    def show(self, settings: Settings, shown: Shown) -> None:
        """Let new connections have what was read of these settings."""
        self._settings, self._shown, self._refused = settings, shown, None
        _warn(shown.warnings)

    async def run(self) -> None:
        """Show what is renewed. Never returns, and raises nothing that a file could cause."""
        warn_at = trio.current_time() + WARN_EVERY_S
        while True:
            await beat(LOOK_EVERY_S)
            await self._look()
            if trio.current_time() >= warn_at:
                warn_at += WARN_EVERY_S
                await self._warn_again()

    async def _warn_again(self) -> None:
        try:
            _warn(await trio.to_thread.run_sync(_warnings, self._settings))
        except BadConfiguration:
            pass  # the files cannot be used now: `_look` tells

    async def _look(self) -> None:
        settings, shown = self._settings, self._shown
        if settings.tls_cert is None or settings.tls_key is None:
            return
        stamp = await trio.to_thread.run_sync(stamp_of, settings.tls_cert, settings.tls_key)
        if stamp == shown.stamp:
            self._refused = None
            return
        try:
            renewed = await trio.to_thread.run_sync(self.read, settings)
        except BadConfiguration as error:
            self._refuse(stamp, error.faults)
            return
        if self._shown is shown:  # else a reload was quicker
            self.show(settings, renewed)
            self._events.record("certificate_renewed", certificate=str(settings.tls_cert))

    def _refuse(self, stamp: Stamp, faults: list[str]) -> None:
        """Say once what is wrong with new files, when they have stayed so: they are not replaced in one step."""
        if stamp != self._refused:
            self._refused, self._said = stamp, False
        elif not self._said:
            self._said = True
            cause = "the new files cannot be used; the certificate from before stays in use"
            self._events.record("certificate_refused", level="error", faults=faults, cause=cause)


def _warn(warnings: list[str]) -> None:
    for warning in warnings:
        log.warning(warning)


def _warnings(settings: Settings) -> list[str]:
    return warnings_of(settings, datetime.now(UTC).timestamp())


def stamp_of(*paths: Path) -> Stamp:
    """Return what tells these files, symbolic links followed, from others. One that is not there has None."""
    return tuple(_stamp(path) for path in paths)


def _stamp(path: Path) -> tuple[int, int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
