"""The access line: one line of a log for each request that has ended, with its phases. Pure.

It has what happened and how long it took, never what was said: no prompt, no answer, no query, no credential. What is
of a client's choosing (path, model) is cut and written as printable ASCII, so that no line is of its making.

The line is written here rather than by structlog, in the same form as its lines: a line a request must cost
microseconds, and nobody's pen may hold up the loop (docs/performance.md has both).
"""

from collections.abc import Callable
from datetime import datetime
from typing import Final, Literal

import msgspec
from msgspec.structs import asdict

from gateway.phases import Phases, clean
from gateway.stamps import utc_us_text

PATH_CHARACTERS = 200
MODEL_CHARACTERS = 120
CLIENT_CHARACTERS = 120

Which = Literal["on", "errors", "off"]

# A client that left is no error of anybody's here; neither is what went well.
_NO_ERRORS: Final = ("ok", "client_left")

_encoder = msgspec.json.Encoder()


class Fields(msgspec.Struct):
    """What is told of a request, in the order in which it is told. Times in whole milliseconds since it arrived, but
    `queue_ms`, which it spent waiting for a slot. None: it never came to that, or nobody knows.
    """

    request: str
    client: str
    method: str
    path: str
    model: str | None
    status: int
    outcome: str
    worker: str | None
    attempts: int
    read_ms: int | None
    queue_ms: int
    first_byte_ms: int | None
    total_ms: int | None
    bytes_in: int
    bytes_out: int
    prompt_tokens: int | None
    answer_tokens: int | None


def wanted(which: Which, outcome: str) -> bool:
    """Say whether a request that ended so gets a line."""
    return which == "on" or (which == "errors" and outcome not in _NO_ERRORS)


def fields_of(
    *, request_id: str, client: str, method: str, path: str, worker_id: str | None, attempts: int,
    arrived_at: float, waited_s: float, phases: Phases,
) -> Fields:  # fmt: skip
    """Return what is told of a request that has ended."""
    ended_at = phases.ended_at if phases.ended_at is not None else arrived_at
    if not phases.tries and phases.queued_at is not None:  # it never got a slot
        waited_s = ended_at - phases.queued_at
    return Fields(
        request_id,
        clean(client, CLIENT_CHARACTERS),
        clean(method, 20),
        clean(path, PATH_CHARACTERS),
        None if phases.model is None else clean(phases.model, MODEL_CHARACTERS),
        phases.status,
        phases.outcome,
        worker_id,
        attempts,
        _ms(phases.read_at, arrived_at),
        round(waited_s * 1000),
        _ms(phases.answered_at, arrived_at),
        _ms(ended_at, arrived_at),
        phases.bytes_in,
        phases.bytes_out,
        phases.prompt_tokens,
        phases.answer_tokens,
    )


def _ms(at: float | None, since: float) -> int | None:
    return None if at is None else round((at - since) * 1000)


def json_line(fields: Fields, at_s: float) -> str:
    """Return the line as the other lines of a JSON log are; `at_s` is the clock on the wall, seconds since 1970."""
    told, at = _encoder.encode(fields).decode(), utc_us_text(int(at_s * 1_000_000))
    return f'{told[:-1]},"event":"request","logger":"access","level":"info","timestamp":"{at}"}}'


def sentence(fields: Fields) -> str:
    """Return what became of a request, in one line for people; printable ASCII is all it can be."""
    worker, model = fields.worker, fields.model
    whom = "".join((f", worker {worker}" if worker else "", f", model {model}" if model else ""))
    became = f"{fields.status or 'no answer'} {fields.outcome} after {fields.total_ms} ms"
    return f"{fields.method} {fields.path}: {became} (request {fields.request}{whom})"


def local_line(fields: Fields, at_s: float) -> str:
    """Return the line as the other lines on a terminal are: people read their own clock."""
    return console_line(fields, datetime.fromtimestamp(at_s))


def console_line(fields: Fields, at: datetime) -> str:
    """Return the line as the other lines on a terminal are, without what is None."""
    told = " ".join(f"{key}={_word(value)}" for key, value in asdict(fields).items() if value is not None)
    return f"{at:%H:%M:%S} [info     ] {'request':<28} [access] {told}"


def _word(value: str | float) -> str:
    """Return a value as one word; printable ASCII is all it can be."""
    text = str(value)
    return repr(text) if text == "" or any(sign in text for sign in " ='\"") else text


class AccessLog:
    """Gives each request that has ended its line, if it is to have one."""

    def __init__(
        self, write: Callable[[str], None], which: Which, *, form: Callable[[Fields, float], str],
        now: Callable[[], float],
    ) -> None:  # fmt: skip
        """`write` takes a line without its end and must not block; `now`: seconds since 1970, which `form` is given."""
        self._write = write
        self._which: Which = which
        self._form = form
        self._now = now

    def wants(self, outcome: str) -> bool:
        """Say whether a request that ended so gets a line."""
        return wanted(self._which, outcome)

    def tell(self, fields: Fields) -> None:
        """Write a request's line."""
        self._write(self._form(fields, self._now()))
