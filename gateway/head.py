"""The head of a client's HTTP/1.1 request: what is understood of it, and which shapes are refused. Pure.

Strict where two servers could read two different requests (RFC 9112, 11.2): that is how a request is smuggled past
one of them. What can be understood in one way only is handed on as it came; three things are written anew.
"""

import re

import msgspec

from gateway.headers import Headers, Named, first_values

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
_VALUE = rb"[\t -~\x80-\xff]*+"
HEADER_LINE = re.compile(rb"(" + TOKEN + rb"++):[ \t]*+(" + _VALUE + rb")")
# Only where a line begins: else each byte of a line that is no header would be tried as the beginning of one.
_HEADERS = re.compile(rb"^(" + TOKEN + rb"++):(" + _VALUE + rb")\r\n", re.MULTILINE)
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


class Head(msgspec.Struct, frozen=True):
    """A head that was understood: the bytes to hand on, how the body is framed, and what it says.

    `headers` have lower-case names and no blanks around their values, as they came; `named` has the first value of
    each. `plain`: HTTP/1.1, and handed on as it came, for nothing in it had to be written anew.
    """

    handed_on: bytes
    chunked: bool
    length: int  # of a body that is not chunked
    method: bytes = b""
    target: bytes = b""
    headers: Headers = msgspec.field(default_factory=list)
    named: Named = msgspec.field(default_factory=dict)
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
        headers = _headers(lines)
        named = first_values(headers)
        _check_host(headers, named, needed=minor == b"1")
        chunked, length = _framed(headers, named, old=minor == b"0")
        as_it_came = target.startswith(b"/") and b"upgrade" not in named
        handed_on = head + b"\r\n\r\n" if as_it_came else _rewritten(method, target, b"1." + minor, lines)
        plain = as_it_came and minor == b"1"
        return Head(handed_on, chunked, length, method, target, headers, named, plain)
    except Refused as refused:
        refused.method, refused.target = method, target
        raise


def _headers(lines: bytes) -> Headers:
    """Return the headers that whole lines are, in their order. Raises Refused where a line is none, or for too many."""
    if lines.count(b"\r\n") > HEADERS:
        raise Refused(431, f"the request has more than {HEADERS} headers")
    headers, understood = [], 0
    for name, value in _HEADERS.findall(lines):
        understood += len(name) + len(value) + 3  # the colon, and the line's end
        headers.append((name.lower(), value.strip(b" \t")))
    if understood < len(lines):  # something between or within them was passed over
        _refuse_line(lines)
    return headers


def _refuse_line(lines: bytes) -> None:
    """Raise Refused for the first line that is no header."""
    for number, line in enumerate(lines.split(b"\r\n"), start=1):
        if not HEADER_LINE.fullmatch(line):
            why = "is folded" if line[:1] in (b" ", b"\t") else "is not of the form Name: value"
            raise Refused(400, f"header line {number} {why}")


def _check_host(headers: Headers, named: Named, *, needed: bool) -> None:
    """RFC 9112, 3.2: exactly one, and a valid one."""
    host = named.get(b"host")
    if host is None:
        if needed:
            raise Refused(400, "a request has exactly one Host")
        return
    if _again(b"host", headers, named):
        raise Refused(400, "a request has exactly one Host")
    if not _HOST.fullmatch(host):
        raise Refused(400, "Host is no host name or address")


def _framed(headers: Headers, named: Named, *, old: bool) -> tuple[bool, int]:
    """Return whether the body is chunked, and its length if not (RFC 9112, 6.3). Raises Refused."""
    coding, length = named.get(b"transfer-encoding"), named.get(b"content-length")
    if coding is not None:
        if length is not None:
            raise Refused(400, "a request must not have both Content-Length and Transfer-Encoding")
        _check_coding(coding, again=_again(b"transfer-encoding", headers, named), old=old)
        return True, 0
    if length is None:
        return False, 0
    if _again(b"content-length", headers, named):
        raise Refused(400, "Content-Length is there more than once")
    if not _LENGTH.fullmatch(length):
        raise Refused(400, f"Content-Length is not a number of at most {_LENGTH_DIGITS} digits")
    return False, int(length)


def _again(name: bytes, headers: Headers, named: Named) -> bool:
    """Say whether a header is there more than once."""
    return len(named) < len(headers) and sum(other == name for other, _ in headers) > 1


def _check_coding(coding: bytes, *, again: bool, old: bool) -> None:
    """RFC 9112, 6.1 and 6.3: chunked, once, last, and nothing else that we would have to undo."""
    if old:
        raise Refused(400, "HTTP/1.0 has no Transfer-Encoding")
    if again:
        raise Refused(400, "Transfer-Encoding is there more than once")
    named = [one.strip(b" \t").lower() for one in coding.split(b",")]
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
