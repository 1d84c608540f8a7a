"""Requests as the grammar of HTTP/1.1 and HTTP/2 has them, or nearly (hypothesis strategies of bytes)."""

import h2.config
import h2.connection
import h2.exceptions
from hypothesis import strategies as st

from gateway.ollama import FORWARDED
from scripts.fuzz import inputs
from scripts.fuzz.corpus import TOKENS, mutated

# Of the Chimera that these are sent to: it lives for minutes, on loopback.
ADMIN_TOKEN = "fuzz-token"  # noqa: S105

_METHODS = [
    b"GET", b"POST", b"POST", b"POST", b"HEAD", b"DELETE", b"OPTIONS", b"PUT", b"PATCH", b"CONNECT", b"TRACE", b"P",
]  # fmt: skip
_HOSTS = [
    *[b"localhost"] * 12, b"127.0.0.1:80", b"[::1]", b"[::1", b"a" * 64, b"a..b", b".", b"", b"a:b", b"a:99999", b"%41",
]  # fmt: skip
_PATHS = [
    *(path.encode() for path in sorted(FORWARDED)), b"/", b"/api/ps", b"/api/tags", b"/api/version", b"/api/show",
    b"/api/pull", b"/api/blobs/sha256:0", b"/v1/models", b"/v1/models/tiny", b"/api/new", b"/healthz", b"/readyz",
    b"/metrics", b"/openapi.json", b"/admin/instances", b"/admin/queue", b"/admin/gpus", b"/admin/events",
    b"/admin/events?follow=1", b"/admin/instances/w1/logs?follow=1", b"/admin/instances/w1/logs?n=5",
    b"/admin/instances/nobody", b"/admin/instances/spawn?count=0", b"/admin/instances/prune?ids=nobody",
    b"/admin/keys", b"/admin/keys/nobody", b"/admin/keys?name=a&priority=3", b"*", b"http://localhost/api/version",
    b"//api/chat", b"/api/../admin/instances", b"/api/chat?x=%00", b"/%61pi/chat",
]  # fmt: skip
_GOOD_BODIES = [
    b'{"model":"tiny","prompt":"hi","stream":false}', b'{"model":"tiny","messages":[{"role":"user","content":"hi"}]}',
    b'{"model":"tiny"}', b'{"model":"tiny","keep_alive":0}', b'{"model":"nobody","prompt":"hi"}', b"{}", b"",
    b'{"model":"tiny","input":["a","b"]}', b'{"model":"tiny","prompt":"hi","options":{"num_ctx":512}}',
]  # fmt: skip
_EXTRA = [
    b"", b"", b"Expect: 100-continue\r\n", b"Connection: close\r\n", b"X-Chimera-Queue: 1\r\n",
    b"X-Request-Id: a\r\n", b"Accept-Encoding: gzip\r\n",
    b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n",
    b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    b"Sec-WebSocket-Version: 13\r\n",
]  # fmt: skip


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """One request as the grammar has it (RFC 9112), or nearly."""
    method, target = draw(st.sampled_from(_METHODS)), draw(st.sampled_from(_PATHS))
    version = draw(st.sampled_from([b"HTTP/1.1"] * 8 + [b"HTTP/1.0", b"HTTP/1.2", b"HTTP/2.0", b"HTTP/0.9", b""]))
    body: bytes = draw(st.one_of(st.sampled_from(_GOOD_BODIES), inputs.BODIES))
    framing = draw(st.sampled_from(["length"] * 4 + ["chunked", "chunked", "none", "both", "short", "long"]))
    head = [b"Host: " + draw(st.sampled_from(_HOSTS)) + b"\r\n"] if draw(st.integers(0, 9)) else []
    if draw(st.booleans()):
        head.append(b"Authorization: Bearer " + ADMIN_TOKEN.encode() + b"\r\n")
    head += draw(st.lists(st.one_of(st.sampled_from(_EXTRA), inputs.HEADER.map(lambda one: one + b"\r\n")), max_size=3))
    if framing in ("chunked", "both"):
        head.append(b"Transfer-Encoding: chunked\r\n")
    if framing in ("length", "both", "short", "long"):
        off = {"short": -3, "long": 5}.get(framing, 0)
        head.append(b"Content-Length: %d\r\n" % max(0, len(body) + off))
    if framing == "chunked":
        body = _chunked(body, draw(st.integers(1, 3)), draw(st.sampled_from([b"", b"", b";a=b", b" ", b"\t;"])))
    return method + b" " + target + b" " + version + b"\r\n" + b"".join(head) + b"\r\n" + body


def _chunked(body: bytes, parts: int, extension: bytes) -> bytes:
    step = max(1, -(-len(body) // parts))
    cut = [body[at : at + step] for at in range(0, len(body), step)]
    return b"".join(b"%x%s\r\n%s\r\n" % (len(part), extension, part) for part in cut) + b"0\r\n\r\n"


_PSEUDO = st.sampled_from([(b":path", path) for path in _PATHS] + [(b":path", b"/api/chat x"), (b":path", b"")])
_H2_NAMES = [
    b"content-length", b"transfer-encoding", b"host", b"connection", b"x-a", b"te", b"X-Upper", b"", b"x b", b"cookie",
    b"x-chimera-queue", b"accept", b":authority", b":path",
]  # fmt: skip
_H2_VALUES = [b"5", b"1_0", b"+5", b" 5", b"chunked", b"a\r\nb", b"a\x00", b"\xff", b""]
_H2_HEADER = st.tuples(
    st.one_of(st.sampled_from(_H2_NAMES), st.binary(max_size=6)),
    st.one_of(st.sampled_from(_H2_VALUES), st.binary(max_size=8)),
)


@st.composite
def http2(draw: st.DrawFn) -> bytes:
    """An HTTP/2 connection by prior knowledge (RFC 9113), with headers that no good client would send."""
    config = h2.config.H2Configuration(
        client_side=True, validate_outbound_headers=False, normalize_outbound_headers=False, header_encoding=None
    )
    connection = h2.connection.H2Connection(config)
    connection.initiate_connection()
    for number in range(draw(st.integers(1, 3))):
        stream, method = 1 + 2 * number, draw(st.sampled_from(_METHODS))
        headers = [(b":method", method), (b":scheme", b"http"), (b":authority", b"localhost"), draw(_PSEUDO)]
        headers += draw(st.lists(_H2_HEADER, max_size=3))
        body = draw(st.one_of(st.just(b""), st.sampled_from(_GOOD_BODIES)))
        try:
            connection.send_headers(stream, headers, end_stream=not body)
            if body:
                connection.send_data(stream, body, end_stream=draw(st.integers(0, 4)) > 0)
        except h2.exceptions.ProtocolError:
            break  # h2 itself will not send that
        if draw(st.integers(0, 5)) == 0:
            connection.reset_stream(stream)
    sent: bytes = connection.data_to_send()
    return sent


def _spoilt(data: bytes, at: int, token: bytes) -> bytes:
    at %= len(data) + 1
    return data[:at] + token + data[at + (1 if len(token) == 1 else 0) :]


PIPELINED = st.lists(requests(), min_size=1, max_size=3).map(b"".join)
SPOILT = st.builds(_spoilt, PIPELINED, st.integers(0, 2**16), st.sampled_from(TOKENS))


def streams(samples: list[bytes]) -> st.SearchStrategy[bytes]:
    """What one connection sends."""
    return st.one_of(PIPELINED, PIPELINED, SPOILT, http2(), mutated(samples))
