"""Options that a model is loaded with: a request that changes one makes Ollama load the model anew. Pure.

Two clients that ask for one model with a different `num_ctx` would reload it with every request (ollama#8903). By
LOAD_OPTIONS such options are passed on, and requests with the same ones kept together (gateway.dispatch), or they are
taken out, so that every model has what its Modelfile and OLLAMA_CONTEXT_LENGTH say.
"""

import json

import msgspec
from msgspec.structs import asdict

# Ollama's `Runner` options (api/types.go); all others hold for one request alone.
LOAD_OPTIONS = frozenset(
    {
        "num_ctx", "num_batch", "num_gpu", "main_gpu", "num_thread", "use_mmap", "use_mlock", "low_vram", "f16_kv",
        "logits_all", "vocab_only",
    }
)  # fmt: skip

# Integers as floats: Python refuses very long ones, and no value is looked at.
_whole = json.JSONDecoder(parse_int=float)
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
    if not options or options == b"null":  # nearly always
        return ""
    try:
        found = {name: bytes(value) for name, value in asdict(_known.decode(options)).items()}
    except _NOT_READ:
        return ""
    given = sorted((name, value) for name, value in found.items() if value != b"null")
    return " ".join(f"{name}={value[:32].decode('utf-8', 'replace')}" for name, value in given)


def names_of(load_options: str) -> str:
    """Return the names alone of what `load_options_of` found: `num_ctx, num_gpu`."""
    return ", ".join(name for name in sorted(LOAD_OPTIONS) if f" {name}=" in f" {load_options}")


def without_load_options(body: bytes) -> bytes:
    """Return a request's body without them; all other fields stay as they were written, and in their order.

    Of a body that only Go can read, its first JSON value in good UTF-8 is what is left.
    """
    fields = _read(body) or _read(_first_value(body))
    for name, value in fields.items():
        if name.casefold() == "options":  # Go takes any case
            kept = {key: part for key, part in _read(bytes(value)).items() if key not in LOAD_OPTIONS}
            fields[name] = msgspec.Raw(msgspec.json.encode(kept))
    return msgspec.json.encode(fields) if fields else body


def _first_value(body: bytes) -> bytes:
    """Return what Go reads of a body: no more than the first value, what is no UTF-8 replaced. Empty: there is none."""
    text = body.decode("utf-8", "replace").lstrip(" \t\r\n\ufeff")
    try:
        _, end = _whole.raw_decode(text)
    except (ValueError, RecursionError):
        return b""
    return text[:end].encode()


def _read(text: bytes) -> _Object:
    try:
        return _object.decode(text)
    except _NOT_READ:
        return {}
