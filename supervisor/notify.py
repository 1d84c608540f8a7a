"""systemd's notify socket (sd_notify(3)): what the service manager is told of us. Without one, nobody is told."""

import os
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass

# Of the watchdog's time, so that two words may be late.
WATCHDOG_SHARE = 3
# systemd shows one line; what comes after is for the log.
STATUS_CHARACTERS = 400


@dataclass(frozen=True, slots=True)
class Notifier:
    """Sends words to the service manager. `address` None: there is none that wants them."""

    address: str | None
    watchdog_s: float | None = None

    def say(self, **words: str | int) -> bool:
        """Send NAME=VALUE lines as one datagram; say whether they were taken (True where nobody listens).

        Never waits: a service manager that is busy is told again at the next beat. Raises nothing.
        """
        if self.address is None:
            return True
        text = "\n".join(f"{name}={value}" for name, value in words.items())
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC) as sock:
                sock.sendto(text.encode(), self._at())
        except OSError:
            return False
        return True

    def _at(self) -> str:
        assert self.address is not None  # noqa: S101 - only asked for where there is one
        return f"\0{self.address[1:]}" if self.address.startswith("@") else self.address


def notifier_of(environ: Mapping[str, str]) -> Notifier:
    """Return who speaks to the service manager of this environment: NOTIFY_SOCKET, WATCHDOG_USEC, WATCHDOG_PID."""
    address = environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return Notifier(None)
    every, pid = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID", "")
    ours = not pid or pid == str(os.getpid())
    return Notifier(address, int(every) / 1e6 if ours and every.isdecimal() and int(every) else None)


def one_line(text: str) -> str:
    """Return a text as STATUS= may have it."""
    line = " ".join(text.split())
    return line if len(line) <= STATUS_CHARACTERS else f"{line[: STATUS_CHARACTERS - 1]}…"


def now_usec() -> int:
    """Return CLOCK_MONOTONIC as MONOTONIC_USEC has it, which goes with RELOADING=1."""
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
