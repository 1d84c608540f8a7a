"""The W3C trace context of a request: https://www.w3.org/TR/trace-context-1/ (the header traceparent). Pure."""

import re
from dataclasses import dataclass

from gateway.headers import Headers

# Version, trace id, parent id, flags; a later version may have more behind them (section 3.2.4).
_FORM = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_SAMPLED = 1


@dataclass(frozen=True, slots=True)
class TraceParent:
    """A trace and a span in it: whose child a request is, or which span a worker's would be a child of."""

    trace_id: int
    span_id: int
    sampled: bool

    @property
    def header(self) -> bytes:
        """The value of traceparent."""
        return f"00-{self.trace_id:032x}-{self.span_id:016x}-{int(self.sampled):02x}".encode()


def parent_of(headers: Headers) -> TraceParent | None:
    """Return whose child a request says it is, or None where it does not, or not in a way that counts."""
    given = [value for name, value in headers if name == b"traceparent"]
    found = _FORM.fullmatch(given[0]) if len(given) == 1 and len(given[0]) <= 512 else None
    if found is None or found[1] == b"ff" or (found[1] == b"00" and found[5]):
        return None
    trace_id, span_id = int(found[2], 16), int(found[3], 16)
    if not trace_id or not span_id:
        return None
    return TraceParent(trace_id, span_id, bool(int(found[4], 16) & _SAMPLED))


def with_parent(headers: Headers, own: TraceParent, *, continued: bool) -> Headers:
    """Return headers that name `own` as the parent. What named another goes, and unless `continued` its tracestate."""
    dropped = (b"traceparent",) if continued else (b"traceparent", b"tracestate")
    return [*((name, value) for name, value in headers if name not in dropped), (b"traceparent", own.header)]
