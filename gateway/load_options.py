"""Options that a model is loaded with: a request that changes one makes Ollama load the model anew. Pure.

Two clients that ask for one model with a different `num_ctx` would reload it with every request (ollama#8903). By
LOAD_OPTIONS such options are passed on, and requests with the same ones kept together (gateway.dispatch), or they are
taken out, so that every model has what its Modelfile and OLLAMA_CONTEXT_LENGTH say.
"""

import json
import re
from typing import TypeVar

import msgspec
from msgspec.structs import asdict

# Ollama's `Runner` options (api/types.go); all others hold for one request alone.
LOAD_OPTIONS = frozenset(
    {
        "num_ctx", "num_batch", "num_gpu", "main_gpu", "num_thread", "use_mmap", "use_mlock", "low_vram", "f16_kv",
        "logits_all", "vocab_only",
    }
)  # fmt: skip

# Without one of these there is none among a request's options.
_MAY_BE_THERE = re.compile(rb"\\|" + b"|".join(f'"{name}"'.encode() for name in sorted(LOAD_OPTIONS)))
# An escape in a string: half of a surrogate pair without the other is the group.
_ESCAPE = re.compile(r"\\(?:u[dD][89abAB]..\\u[dD][c-fC-F]..|(u[dD][89a-fA-F][0-9a-fA-F]{2})|.)", re.DOTALL)
# A larger text is not read as Go would, which builds all of it: a megabyte of `0,0,0,…` takes 0.1 s and 30 MB, and for
# so long nobody else is served.
LENIENT_BYTES = 256 * 1024
# Integers as floats: Python refuses very long ones, and no value is looked at.
_whole = json.JSONDecoder(parse_int=float)
Read = TypeVar("Read")
_Object = dict[str, msgspec.Raw]
_object = msgspec.json.Decoder(_Object)
# Whatever else stands beside them is passed over unbuilt, a million of other names too.
_NONE = msgspec.Raw(b"null")
_known = msgspec.json.Decoder(
    msgspec.defstruct("_Known", [(name, msgspec.Raw, _NONE) for name in sorted(LOAD_OPTIONS)])
)


_NOT_READ = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def load_options_of(options: bytes) -> str:
    """Return the load options in a request's `options` (JSON) in one form: `num_ctx=8192 num_gpu=99`; "" for none."""
    if not _MAY_BE_THERE.search(options):  # nearly always
        return ""
    found = {name: bytes(value) for name, value in asdict(_decoded(_known, options) or _known.decode(b"{}")).items()}
    given = sorted((name, value) for name, value in found.items() if value != b"null")
    return " ".join(f"{name}={value[:32].decode('utf-8', 'replace')}" for name, value in given)


def names_of(load_options: str) -> str:
    """Return the names alone of what `load_options_of` found: `num_ctx, num_gpu`."""
    return ", ".join(name for name in sorted(LOAD_OPTIONS) if f" {name}=" in f" {load_options}")


def without_load_options(body: bytes) -> bytes:
    """Return a request's body without them; all other fields stay as they were written, and in their order.

    Of a body that only Go can read, its first JSON value in good UTF-8 is what is left.
    """
    fields = _decoded(_object, body) or {}
    for name, value in fields.items():
        if name.casefold() == "options":  # Go takes any case
            given = _decoded(_object, bytes(value)) or {}
            kept = {key: part for key, part in given.items() if key not in LOAD_OPTIONS}
            fields[name] = msgspec.Raw(msgspec.json.encode(kept))
    return msgspec.json.encode(fields) if fields else body


def _decoded(decoder: "msgspec.json.Decoder[Read]", text: bytes) -> Read | None:
    """Return what a decoder reads, or what it would read if the text were as Go reads it; None when that is nothing."""
    try:
        return decoder.decode(text)
    except _NOT_READ:
        pass
    try:
        return decoder.decode(_as_go_reads(text)) if len(text) <= LENIENT_BYTES else None
    except _NOT_READ:
        return None


def as_go_decodes(text: bytes) -> str:
    """Return a body's text from where its JSON begins: bad UTF-8 is replaced, a byte order mark is nothing."""
    return text.decode("utf-8", "replace").lstrip(" \t\r\n\ufeff")


def _as_go_reads(text: bytes) -> bytes:
    """Return no more than the first JSON value, with U+FFFD for what is no character. Empty: there is none."""
    whole = _ESCAPE.sub(lambda found: "\\ufffd" if found[1] else found[0], as_go_decodes(text))
    try:
        _, end = _whole.raw_decode(whole)
    except (ValueError, RecursionError):
        return b""
    return whole[:end].encode()
