"""The official `ollama` command, pointed at a server, and what it leaves on a person's screen."""

import os
import pty
import re
import select
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TIMEOUT_S = 60
PROMPT = b"Send a message (/? for help)"

_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_SPINNER = re.compile(r"[\u2800-\u28ff]")
_BAR = re.compile(r"\s*\d+% ▕.*")  # progress: how often it is painted depends on time
_TIMES = re.compile(r"(Less than a|About an?|\d+) (second|minute|hour)s? (ago|from now)")


@dataclass(frozen=True)
class Shown:
    """How a command ended, and what it said, without what only moves: the lines of both outputs."""

    status: int
    out: list[str]
    err: list[str]


def _lines(text: bytes) -> list[str]:
    plain = _SPINNER.sub("", _ESCAPES.sub("", text.decode())).replace("\r", "\n")
    lines = [_TIMES.sub("TIME", _BAR.sub("", line)).strip() for line in plain.splitlines()]
    return list(dict.fromkeys(line for line in lines if line))  # what is painted again is said once


@dataclass(frozen=True)
class Command:
    """The program, and the folder that it takes for a home."""

    program: Path
    home: Path

    def __call__(self, port: int, *words: str, stdin: str = "") -> Shown:
        """Run it against the server on a port of 127.0.0.1."""
        done = subprocess.run(
            [str(self.program), *words],
            **self._place(port), input=stdin.encode(), capture_output=True, timeout=TIMEOUT_S, check=False,
        )  # fmt: skip
        return Shown(done.returncode, _lines(done.stdout), _lines(done.stderr))

    def typed(self, port: int, *words: str, says: Sequence[str]) -> Shown:
        """Run it as somebody does who sits at a terminal, and says something each time when it is ready to hear."""
        screen, its = pty.openpty()
        process = subprocess.Popen(
            [str(self.program), *words], **self._place(port), stdin=its, stdout=its, stderr=its, start_new_session=True
        )
        os.close(its)
        try:
            shown = b""
            for line in says:
                shown += _until(screen, PROMPT)
                os.write(screen, line.encode() + b"\r")
            shown += _until(screen, None)
            return Shown(process.wait(TIMEOUT_S), _lines(shown), [])
        finally:
            process.kill()
            process.wait()
            os.close(screen)

    def _place(self, port: int) -> dict[str, Any]:
        env = {"PATH": os.defpath, "HOME": str(self.home), "OLLAMA_HOST": f"127.0.0.1:{port}", "TERM": "xterm"}
        return {"cwd": self.home, "env": env}


def _until(screen: int, end: bytes | None) -> bytes:
    """Return what a terminal shows until it shows `end`, or until its program has left it."""
    shown = b""
    while end is None or end not in shown:
        assert select.select([screen], [], [], TIMEOUT_S)[0], f"nothing more after {shown!r}"
        try:
            more = os.read(screen, 65536)
        except OSError:  # EIO: nobody has it open any more
            more = b""
        if not more:
            assert end is None, f"it ended with {shown!r}"
            break
        shown += more
    return shown
