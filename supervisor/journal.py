"""The journal's native form of a log record: fields, sent to journald as one datagram that nobody waits for.

Protocol: systemd.io/JOURNAL_NATIVE_PROTOCOL. Names of fields: systemd.journal-fields(7). It is ours because those there
are do not fit: systemd-python is C and needs libsystemd's headers, logging-journald is pure Python and well kept, but
waits for a journald that does not read, in the loop that answers every request; and it names fields as anybody likes.
"""

import errno
import json
import logging
import os
import re
import socket
import struct
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

SOCKET: Final = Path("/run/systemd/journal/socket")
IDENTIFIER: Final = "chimera"
STDERR: Final = 2
# A longer value keeps its beginning and its end. So no entry is too large for a datagram, and none needs a memfd.
LONGEST_VALUE_BYTES: Final = 32 * 1024
# journald refuses a longer name, and one of other signs.
LONGEST_NAME: Final = 64
# The protocol's page: a larger buffer puts off the moment at which it is full. The kernel gives what it may.
SEND_BUFFER_BYTES: Final = 8 * 1024**2

# syslog(3); anything else is "notice".
_PRIORITIES: Final = {"critical": 2, "error": 3, "warning": 4, "info": 6, "debug": 7}
_NOTICE: Final = 5
_CUT: Final = " […] ".encode()
_SIGNS: Final = re.compile(r"[^A-Z0-9_]")
# What the sentence tells in another way, or journald itself.
_UNTOLD: Final = frozenset({"cause", "event", "logger", "level", "exception", "stack"})


def leads_to_journal(environ: Mapping[str, str], descriptor: int = STDERR) -> bool:
    """Say whether an open file is the journal's stream that systemd made for us: JOURNAL_STREAM (systemd.exec(5))."""
    try:
        there = os.fstat(descriptor)
    except OSError:
        return False
    return environ.get("JOURNAL_STREAM") == f"{there.st_dev}:{there.st_ino}"


def entry(level: str, message: str, fields: Mapping[str, Any]) -> str:
    """Return an entry as it is sent; `fields` get the names CHIMERA_…, and those that are None are left out.

    It is text, with surrogates in place of the bytes of a length: `Journal.send` makes bytes of it.
    """
    parts = [
        _field("MESSAGE", message),
        f"PRIORITY={_PRIORITIES.get(level, _NOTICE)}\nSYSLOG_IDENTIFIER={IDENTIFIER}\n",
        *[
            f"{_name(key)}={value}\n" if type(value) is int else _field(_name(key), _text(value))
            for key, value in fields.items()
            if value is not None
        ],
    ]
    return "".join(parts)


@lru_cache(maxsize=1024)
def _name(key: str) -> str:
    return f"CHIMERA_{_SIGNS.sub('_', key.upper())}"[:LONGEST_NAME]


def _text(value: object) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, int | float):
        return str(value)
    return json.dumps(value, ensure_ascii=False, default=str)


def _field(name: str, value: str) -> str:
    """Return one field: NAME=value, or with a length (64 bits, little-endian) where the value has more lines."""
    if value.isascii() and len(value) < LONGEST_VALUE_BYTES and "\n" not in value:
        return f"{name}={value}\n"
    data = value.encode("utf-8", "replace")  # half a character has no bytes
    if len(data) > LONGEST_VALUE_BYTES:
        half = (LONGEST_VALUE_BYTES - len(_CUT)) // 2
        data = data[:half] + _CUT + data[-half:]
    return f"{name}\n{(struct.pack('<Q', len(data)) + data).decode('utf-8', 'surrogateescape')}\n"


def sentence(event: str, fields: Mapping[str, Any]) -> str:
    """Return what happened, why, and to whom, in one line for people."""
    told = ", ".join(
        f"{key} {_listed(value)}" for key, value in fields.items() if value is not None and key not in _UNTOLD
    )
    cause = f": {fields['cause']}" if fields.get("cause") else ""
    return " ".join(f"{event}{cause}{f' ({told})' if told else ''}".split())


def _listed(value: object) -> str:
    plain = isinstance(value, Sequence) and not isinstance(value, str)
    return ", ".join(map(str, value)) if plain else str(value)  # type: ignore[call-overload]


def rendered(_logger: object, _method: str, event: Mapping[str, Any]) -> str:
    """Return a record of structlog's as an entry: a structlog processor, the last one.

    A traceback stands below the sentence, where `journalctl` shows it.
    """
    fields = {key: value for key, value in event.items() if key not in ("level", "exception", "stack")}
    traces = [str(event[key]) for key in ("exception", "stack") if event.get(key)]
    message = "\n".join((sentence(str(event["event"]), fields), *traces))
    return entry(str(event.get("level")), message, fields)


class Journal:
    """A socket to journald."""

    def __init__(self, path: Path | None = None, wait_s: float = 0.0) -> None:
        """`path` None: journald's own. `wait_s`: how long a full socket is waited for; 0, not at all."""
        kind = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | (0 if wait_s else socket.SOCK_NONBLOCK)
        self._socket = socket.socket(socket.AF_UNIX, kind)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        if wait_s:
            limit = struct.pack("@ll", int(wait_s), int(wait_s % 1 * 1e6))
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
        self._path = str(path or SOCKET)

    def send(self, text: str) -> None:
        """Send an entry. Raises BlockingIOError when the socket is full, another OSError when there is no journald.

        By name each time: journald may have been started anew.
        """
        try:
            self._socket.sendto(text.encode("utf-8", "surrogateescape"), self._path)
        except OSError as error:
            if error.errno == errno.ENOBUFS:
                raise BlockingIOError(errno.EAGAIN, "the journal's socket is full") from error
            raise

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def write(self, _: None, entries: Sequence[str]) -> None:
        """Send entries one after the other. Raises OSError; those before are sent."""
        for text in entries:
            self.send(text)


class JournalHandler(logging.Handler):
    """Sends records to journald, and never waits for it.

    What finds its socket full is dropped and counted, and the count is told with the next record that gets through.
    Where there is no journald, `instead` has the record.
    """

    def __init__(self, journal: Journal, instead: logging.Handler) -> None:
        super().__init__()
        self._journal = journal
        self._instead = instead
        self.dropped = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Send a record."""
        try:
            if self.dropped:
                self._journal.send(rendered(None, "", _dropped(self.dropped)))
                self.dropped = 0
            self._journal.send(self.format(record))
        except BlockingIOError:
            self.dropped += 1
        except OSError:
            self._instead.handle(record)
        except Exception:  # logging's own way: a record that cannot be told must not end who tells it
            self.handleError(record)

    def close(self) -> None:
        """Close the socket, and what is used instead."""
        self._journal.close()
        self._instead.close()
        super().close()


def _dropped(lines: int) -> dict[str, object]:
    return {
        "event": "lines could not be written, and were dropped", "level": "warning", "logger": "chimera",
        "to": "the journal", "lines": lines,
    }  # fmt: skip
