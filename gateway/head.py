"""The head of a client's HTTP/1.1 request: what is understood of it, and which shapes are refused. Pure.

Strict where two servers could read two different requests (RFC 9112, 11.2): that is how a request is smuggled past
one of them. What can be understood in one way only is handed on as it came; three things are written anew.
"""

import re
from dataclasses import dataclass, field

from gateway.headers import Headers

# Request line and headers: four times what nginx takes (large_client_header_buffers); a browser's cookies and a
# proxy's tokens fit with room to spare.
HEAD_BYTES = 64 * 1024
# RFC 9112, 3: at least 8000 bytes of request line are to be expected.
TARGET_BYTES = 8 * 1024
# As Apache's LimitRequestFields.
HEADERS = 100
# Beyond it (an exabyte) the next server's integer may be another one.
_LENGTH_DIGITS = 18

TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]"
_REQUEST_LINE = re.compile(rb"(" + TOKEN + rb"{1,32}) ([!-~]+) HTTP/([0-9])\.([0-9])")
# RFC 9110, 5.5: no control characters but the tab. A leading blank would be a folded line. Nothing here is tried twice
# (the possessive +): a line of 60,000 blanks must not cost their square.
_HEADER = rb"(" + TOKEN + rb"++):[ \t]*+([\t -~\x80-\xff]*+)"
HEADER_LINE = re.compile(_HEADER)
_HEADER_LINES = re.compile(rb"(?:" + _HEADER + rb"\r\n)*+")
_HEADERS = re.compile(_HEADER + rb"\r\n")
_HOST = re.compile(rb"(?:\[[0-9A-Za-z:.%_~-]+\]|[0-9A-Za-z._~%!$&'()*+;=-]*)(?::[0-9]{0,5})?")
_ABSOLUTE = re.compile(rb"https?://([^/?#@]+)([/?][!-~]*)?", re.IGNORECASE)
_LENGTH = re.compile(rb"[0-9]{1,%d}" % _LENGTH_DIGITS)


class Refused(Exception):
    """A message that is not taken: what the client is told, and what was understood of its request line."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status
        self.sentence = sentence
        self.method = b""
        self.target = b""


@dataclass(frozen=True, slots=True)
class Head:
    """A head that was understood: the bytes to hand on, how the body is framed, and what it says.

    `headers` have lower-case names and no blanks around their values, as they came. `plain`: HTTP/1.1, and
    handed on as it came, for nothing in it had to be written anew.
    """

    handed_on: bytes
    chunked: bool
    length: int  # of a body that is not chunked
    method: bytes = b""
    target: bytes = b""
    headers: Headers = field(default_factory=list)
    plain: bool = False


def understand(head: bytes) -> Head:
    """Understand a head, without its empty line. Raises Refused."""
    first, _, rest = head.partition(b"\r\n")
    asked = _REQUEST_LINE.fullmatch(first)
    if not asked:
        raise Refused(400, "the first line is no HTTP request line")
    method, target, major, minor = asked.groups()
    try:
        if (major, minor) not in ((b"1", b"1"), (b"1", b"0")):
            raise Refused(505, "this server speaks HTTP/1.1, HTTP/1.0 and HTTP/2")
        if len(target) > TARGET_BYTES:
            raise Refused(414, f"the request target is longer than {TARGET_BYTES} bytes")
        lines = rest + b"\r\n" if rest else b""
        _check_lines(lines)
        headers = [(name.lower(), value.rstrip(b" \t")) for name, value in _HEADERS.findall(lines)]
        _check_host(headers, needed=minor == b"1")
        chunked, length = _framed(headers, old=minor == b"0")
        as_it_came = target.startswith(b"/") and not any(name == b"upgrade" for name, _ in headers)
        handed_on = head + b"\r\n\r\n" if as_it_came else _rewritten(method, target, b"1." + minor, lines)
        plain = as_it_came and minor == b"1"
        return Head(handed_on, chunked, length, method, target, headers, plain)
    except Refused as refused:
        refused.method, refused.target = method, target
        raise


def _check_lines(lines: bytes) -> None:
    """Refuse what is not so many lines, each a header."""
    if lines.count(b"\r\n") > HEADERS:
        raise Refused(431, f"the request has more than {HEADERS} headers")
    if _HEADER_LINES.fullmatch(lines):
        return
    for number, line in enumerate(lines.split(b"\r\n"), start=1):
        if not HEADER_LINE.fullmatch(line):
            why = "is folded" if line[:1] in (b" ", b"\t") else "is not of the form Name: value"
            raise Refused(400, f"header line {number} {why}")


def _check_host(headers: Headers, *, needed: bool) -> None:
    """RFC 9112, 3.2: exactly one, and a valid one."""
    hosts = [value for name, value in headers if name == b"host"]
    if len(hosts) > 1 or (needed and not hosts):
        raise Refused(400, "a request has exactly one Host")
    if hosts and not _HOST.fullmatch(hosts[0]):
        raise Refused(400, "Host is no host name or address")


def _framed(headers: Headers, *, old: bool) -> tuple[bool, int]:
    """Return whether the body is chunked, and its length if not (RFC 9112, 6.3). Raises Refused."""
    codings = [value for name, value in headers if name == b"transfer-encoding"]
    lengths = [value for name, value in headers if name == b"content-length"]
    if codings and lengths:
        raise Refused(400, "a request must not have both Content-Length and Transfer-Encoding")
    if codings:
        _check_codings(codings, old=old)
        return True, 0
    if len(lengths) > 1:
        raise Refused(400, "Content-Length is there more than once")
    if lengths and not _LENGTH.fullmatch(lengths[0]):
        raise Refused(400, f"Content-Length is not a number of at most {_LENGTH_DIGITS} digits")
    return False, int(lengths[0]) if lengths else 0


def _check_codings(codings: list[bytes], *, old: bool) -> None:
    """RFC 9112, 6.1 and 6.3: chunked, once, last, and nothing else that we would have to undo."""
    if old:
        raise Refused(400, "HTTP/1.0 has no Transfer-Encoding")
    if len(codings) > 1:
        raise Refused(400, "Transfer-Encoding is there more than once")
    named = [coding.strip(b" \t").lower() for coding in codings[0].split(b",")]
    if named[-1] != b"chunked" or named.count(b"chunked") > 1:
        raise Refused(400, "a request's last Transfer-Encoding must be chunked, once")
    if len(named) > 1:
        raise Refused(501, "the only Transfer-Encoding that this server knows is chunked")


def _rewritten(method: bytes, target: bytes, version: bytes, lines: bytes) -> bytes:
    """Return a head as it is handed on that would be taken in two ways as it came. Raises Refused."""
    parsed = [HEADER_LINE.fullmatch(line) for line in lines.split(b"\r\n")[:-1]]
    # RFC 9110, 7.8: an upgrade may be ignored; whoever is upgraded (to h2c) would speak on unchecked
    headers = [(header[1], header[2]) for header in parsed if header and header[1].lower() != b"upgrade"]
    if absolute := _ABSOLUTE.fullmatch(target):
        # RFC 9112, 3.2.2: to be taken from everybody, and Host is then what the target says
        host, path = absolute[1], absolute[2] or b"/"
        if not _HOST.fullmatch(host):
            raise Refused(400, "the request target names no host")
        target = path if path.startswith(b"/") else b"/" + path
        headers = [(b"host", host), *((name, value) for name, value in headers if name.lower() != b"host")]
    elif not (target.startswith(b"/") or (target == b"*" and method == b"OPTIONS")):
        raise Refused(400, "the request target is not a path that begins with /")
    first = b"%b %b HTTP/%b" % (method, target, version)
    return b"\r\n".join((first, *(b"%b: %b" % header for header in headers), b"", b""))
