"""Whether a stream came to its end, seen from its last bytes. Pure.

A worker whose runner dies ends its stream as if all were well: status 200, a proper last chunk (facts.md). What makes
an answer whole is its last word, and each API has its own. Nothing is parsed: the end is looked at, once an answer.
"""

import re
from enum import Enum

from gateway.headers import Headers, value_of
from gateway.ollama import ERROR_STARTS, TAIL_BYTES

# Sources: Ollama's api/types.go (`done`, and the durations, which are in the last line only), middleware/openai.go
# ("data: [DONE]" last), openai/responses.go (its last event is one of three), middleware/anthropic.go (message_stop).
_DONE = re.compile(rb'"done": ?(true|false)')
_LAST_LINE_ONLY = re.compile(rb'"total_duration": ?\d')
_RESPONSES_END = re.compile(rb'"type": ?"response\.(?:completed|incomplete|failed)"|^event: response\.(?:com|inc|fai)')
_MESSAGES_END = re.compile(rb'^event: message_stop|"type": ?"message_stop"')
_ANTHROPIC_ERROR = b'data: {"type":"error"'


class End(Enum):
    """How a stream ended."""

    WHOLE = "whole"
    ERROR = "error"  # with an error line or event of the worker's own
    MISSING = "missing"  # without the word that ends it


def is_stream(headers: Headers) -> bool:
    """Say whether an answer comes in lines or events whose end can be judged, by its headers.

    One whose length was declared is no stream; a compressed one cannot be read.
    """
    if value_of(headers, b"content-length") is not None or value_of(headers, b"content-encoding") is not None:
        return False
    return (value_of(headers, b"content-type") or b"").startswith((b"application/x-ndjson", b"text/event-stream"))


def end_of(path: str, tail: bytes) -> tuple[End, bytes]:
    """Return how a stream of a worker's ended, and its last line or event; of an error, that one.

    `tail` is its end: all of it, or at least TAIL_BYTES. A path whose last word is not known here is believed.
    """
    if path in ("/api/generate", "/api/chat"):
        return _end_of_lines(tail)
    end = tail.rstrip()
    *before, last = end.replace(b"\r\n", b"\n").rsplit(b"\n\n", 2)
    last, previous = last.lstrip(), (before[-1] if before else b"").lstrip()
    if _is_error(last):
        return End.ERROR, last
    if last == b"data: [DONE]" and _is_error(previous):
        return End.ERROR, previous
    whole = {
        "/v1/chat/completions": last == b"data: [DONE]",
        "/v1/completions": last == b"data: [DONE]",
        "/v1/responses": last == b"data: [DONE]" or _is_large(end, last) or _RESPONSES_END.search(last) is not None,
        "/v1/messages": _MESSAGES_END.search(last) is not None,
    }
    return (End.WHOLE if whole.get(path, True) else End.MISSING), last


def _end_of_lines(tail: bytes) -> tuple[End, bytes]:
    last = tail.rstrip().rpartition(b"\n")[2]
    if last.startswith(ERROR_STARTS):
        return End.ERROR, last
    # in a text of the model's every quote is escaped; in a tool's arguments one may stand bare, but before the last
    said = _DONE.findall(last)
    if said and said[-1] == b"true":
        return End.WHOLE, last
    # a last line may carry a context of a hundred thousand numbers, and its beginning be out of sight
    return (End.WHOLE if _LAST_LINE_ONLY.search(last[-TAIL_BYTES:]) and not said else End.MISSING), last


def _is_error(event: bytes) -> bool:
    return event.startswith((*ERROR_STARTS, _ANTHROPIC_ERROR)) or b"\n" + _ANTHROPIC_ERROR in event


def _is_large(end: bytes, last: bytes) -> bool:
    """Say whether the last event's beginning may be out of sight: its last event repeats the whole answer."""
    return last == end and len(end) >= TAIL_BYTES and not last.startswith((b"event:", b"data:"))
