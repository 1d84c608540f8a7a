"""What of the gateway reads bytes, and what must hold of each, for any input: `check` raises AssertionError if not.

Every input is one `bytes`, so that the corpus can be plain files; a check cuts it into what its function takes.
"""

import contextlib
import json
from typing import Any
from zlib import crc32

import h11

from gateway.admin_asks import NotUnderstood, PruneAsk, SpawnAsk, understood
from gateway.affinity import BLOCK_BYTES, MOST_BLOCKS, prefix_of
from gateway.auth import is_local_name, is_local_origin, refusal
from gateway.errors import QueueFull, dialect_of, error_body, error_event, told
from gateway.fleetwide import merged_ps, models_of
from gateway.forwarded import Origin, TrustedProxies, is_loopback
from gateway.headers import (
    HOP_BY_HOP,
    Headers,
    first_values,
    framing_of,
    request_headers,
    request_id_of,
    response_headers,
    value_of,
)
from gateway.load_options import LENIENT_BYTES, LOAD_OPTIONS, load_options_of, names_of, without_load_options
from gateway.ollama import FORWARDED, Ask, Kind, full_name, load_failed, read_ask, read_pull, runner_died, tokens_of

PATHS = sorted(FORWARDED)
GOOD = "a-token"
STRANGER = "203.0.113.1"
PROXIES = TrustedProxies(["127.0.0.1", "10.0.0.0/8"])


def _chosen(data: bytes, among: list[str]) -> str:
    return among[crc32(data) % len(among)]


class _TwoNames(Exception):
    """An object has a name twice, or in two cases: which one counts is another question."""


def _plain(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len({name.casefold() for name, _ in pairs}) != len(pairs):
        raise _TwoNames
    return made


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is not JSON, but Python's")


def plain_object(data: bytes) -> dict[str, Any] | None:
    """Return the JSON object that a body plainly is, None for what leaves anything open.

    Strict UTF-8: given bytes, json.loads takes other encodings too. No halves of characters, written out or escaped.
    """
    try:
        value = json.loads(data.decode(), object_pairs_hook=_plain, parse_constant=_no_number)
        json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError, _TwoNames):
        return None
    return value if isinstance(value, dict) and all(name == name.casefold() for name in value) else None


def check_ask(body: bytes) -> None:
    """read_ask never raises, and agrees with json.loads on the model of a plain JSON object."""
    known = plain_object(body) if len(body) <= LENIENT_BYTES else None
    for path in {"/api/chat", "/api/generate", _chosen(body, PATHS)}:
        ask = read_ask(path, "application/json", body)
        assert isinstance(ask, Ask)
        assert read_ask(path, "multipart/form-data; boundary=x", body) == Ask(Kind.INFERENCE, None)
        assert (ask.kind is Kind.HOPELESS) <= (ask.model is None)
        if known is None:
            continue
        model = known.get("model")
        named = isinstance(model, str) and model != ""
        assert ask.model == (model if named else None), (path, ask)
        if path not in ("/api/chat", "/api/generate"):
            assert ask.kind is (Kind.INFERENCE if named else Kind.HOPELESS)


def check_pull(body: bytes) -> None:
    """read_pull never raises, and reads nothing that json.loads does not."""
    found = read_pull(body)
    if found is not None:
        value = json.loads(body)
        ask, stream = found
        assert ask.model == full_name(value.get("model") or value["name"])
        assert stream is value.get("stream", True)


def check_options(body: bytes) -> None:
    """What is left of a body without its load options is the same body without them."""
    text = load_options_of(body)
    assert set(filter(None, names_of(text).split(", "))) <= LOAD_OPTIONS
    left = without_load_options(body)
    for path in ("/api/chat", "/api/generate"):
        if read_ask(path, "", body).load_options:
            assert read_ask(path, "", left).load_options == "", (path, left)
    known = plain_object(body)
    if known is None:
        return
    options = known.get("options")
    if isinstance(options, dict):
        known["options"] = {name: value for name, value in options.items() if name not in LOAD_OPTIONS}
        assert plain_object(left) == known
        assert load_options_of(json.dumps(known["options"]).encode()) == ""


def check_said(said: bytes) -> None:
    """What is searched in answers never raises, and finds no more than there is."""
    prompt, answer = tokens_of(said)
    assert 0 <= prompt < 10**9
    assert 0 <= answer < 10**9
    runner_died(said[:8192])
    load_failed(said[:8192])
    name = full_name(said.decode("utf-8", "replace"))
    assert full_name(name) == name


def headers_in(head: bytes) -> Headers:
    """Return the headers in lines `name: value`, as ASGI has them; no check of what they hold."""
    pairs = (line.partition(b":") for line in head.split(b"\n") if b":" in line)
    return [(name.strip().lower(), value.strip()) for name, _, value in pairs]


def check_headers(head: bytes) -> None:
    """No header of one connection and no secret passes, and a worker takes whatever our own server took."""
    headers = headers_in(head)
    own = {b"host", b"x-request-id", b"content-length", b"transfer-encoding"}
    framing = framing_of(headers)
    request_id = request_id_of(first_values(headers), lambda bits: 2**bits - 1)
    asked = request_headers(headers, port=11500, request_id=request_id, framing=framing)
    names = [name for name, _ in asked]
    assert names.count(b"host") == names.count(b"x-request-id") == 1
    assert not (set(names) - own) & (HOP_BY_HOP | {b"authorization", b"cookie", b"x-api-key", b"expect"})
    assert not {name for name, _ in response_headers(headers)} & HOP_BY_HOP
    taken = _as_our_server_has_it(head)
    if taken is not None and None in (value_of(taken, b"content-length"), value_of(taken, b"transfer-encoding")):
        passed = request_headers(taken, port=11500, request_id="fresh", framing=framing_of(taken))
        h11.Connection(h11.CLIENT).send(h11.Request(method="POST", target="/api/chat", headers=passed))


def _as_our_server_has_it(head: bytes) -> Headers | None:
    """Return the headers of a request as h11 gives them to our server; None when it refuses them."""
    server = h11.Connection(h11.SERVER)
    lines = [line.rstrip(b"\r") for line in head.split(b"\n") if line.strip()]
    server.receive_data(b"\r\n".join([b"POST /api/chat HTTP/1.1", b"host: localhost", *lines, b"", b""]))
    with contextlib.suppress(h11.RemoteProtocolError):
        event = server.next_event()
        if isinstance(event, h11.Request):
            return list(event.headers)
    return None


def check_auth(head: bytes) -> None:
    """Nobody may administer but who has the token; without one, nobody but this machine."""
    headers = headers_in(head)
    given = value_of(headers, b"authorization") or b""
    here = TrustedProxies().origin("127.0.0.1", headers)
    if refusal(headers, here, GOOD) is None:
        scheme, _, secret = given.partition(b" ")
        assert (scheme.lower(), secret.strip()) == (b"bearer", GOOD.encode())
    assert refusal(headers, TrustedProxies().origin("203.0.113.1", headers), None) is not None
    refusal(headers, here, None)
    for value in (head, *(value for _, value in headers)):
        is_local_name(value)
        is_local_origin(value)
        is_loopback(value.decode("latin1"))


def check_forwarded(head: bytes) -> None:
    """Nobody who is not trusted is believed; what a client wrote is not believed because a proxy added to it."""
    headers = headers_in(head)
    assert PROXIES.origin(STRANGER, headers) == Origin(STRANGER, own=False)
    for name, added in ((b"x-forwarded-for", b"203.0.113.9"), (b"forwarded", b'for="203.0.113.9:80";proto=https')):
        lines = [line for line in headers if line[0] == name]
        joined = b", ".join([*(value for _, value in lines), added])
        for sent in ([*lines, (name, added)], [(name, joined)]):
            found = PROXIES.origin("127.0.0.1", sent)
            assert found.address in ("203.0.113.9", "127.0.0.1")
            assert name == b"forwarded" or found.address == "203.0.113.9"
            assert not found.own


def check_admin(data: bytes) -> None:
    """An operator's request is understood, or refused with a sentence of one line's length."""
    body, _, rest = data.partition(b"\0")
    pairs = [part.partition("=") for part in rest.decode("latin1").split("&") if part]
    query = {name: value for name, _, value in pairs}
    for kind in (SpawnAsk, PruneAsk):
        try:
            ask = understood(kind, query, body)
        except NotUnderstood as refused:
            assert len(str(refused)) < 2000, len(str(refused))
        else:
            json.dumps(repr(ask))


def check_prefix(text: bytes) -> None:
    """A chain has one number per block, at most so many, and a text that goes on has a chain that goes on."""
    parts = text.split(b"|")
    whole = prefix_of("m", parts, continues=False)
    assert len(whole.chain) == min(MOST_BLOCKS, (len(text) // BLOCK_BYTES))
    longer = prefix_of("m", [*parts[:-1], parts[-1] + b"x" * BLOCK_BYTES], continues=True)
    assert longer.chain[: len(whole.chain)] == whole.chain


def check_ps(body: bytes) -> None:
    """Whatever workers say of their models, an answer is made of it that is JSON."""
    models = models_of(body)
    if models is not None:
        json.dumps(
            merged_ps({"w1": models, "w2": [{**model, "size": 1, "size_vram": 0.5} for model in models], "w3": []})
        )


def check_errors(text: bytes) -> None:
    """An error has its API's form and is one line or one event, whatever its sentence holds."""
    sentence, path = text.decode("utf-8", "replace"), _chosen(text, PATHS)
    said = told(QueueFull())
    json.loads(error_body(dialect_of(path), said.status, sentence))
    event = error_event(dialect_of(path), sentence, sse=True, mid_line=True)
    assert event.count(b"\n\n") == 2
    assert error_event(dialect_of(path), sentence, sse=False, mid_line=False).count(b"\n") == 1
