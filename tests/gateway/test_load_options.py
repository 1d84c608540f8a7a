"""Options that would load a model anew."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.load_options import LOAD_OPTIONS, load_options_of, names_of, without_load_options
from gateway.ollama import read_ask


@pytest.mark.parametrize(
    ("options", "found"),
    [
        (b"", ""),
        (b"null", ""),
        (b"{}", ""),
        (b'{"temperature": 0, "num_predict": 9}', ""),
        (b'{"num_ctx": 8192}', "num_ctx=8192"),
        (b'{"num_gpu":99,"seed":1,"num_ctx":8192}', "num_ctx=8192 num_gpu=99"),
        (b'{"num_ctx": null}', ""),
        (b'{"num_ctx": {"a": "' + b"x" * 100 + b'"}}', 'num_ctx={"a": "' + "x" * 25),
        (b"[1]", ""),
        (b"not JSON", ""),
    ],
)
def test_load_options_have_one_form(options: bytes, found: str) -> None:
    assert load_options_of(options) == found


def test_their_names_are_for_people() -> None:
    assert names_of(load_options_of(b'{"num_gpu": 1, "num_ctx": 8192}')) == "num_ctx, num_gpu"


def test_all_else_stays_as_it_was_written() -> None:
    body = b'{"model": "m", "options": {"num_ctx": 8192, "temperature": 0.70}, "messages": [{"role":  "user"}]}'
    assert without_load_options(body) == (
        b'{"model":"m","options":{"temperature":0.70},"messages":[{"role":  "user"}]}'
    )


BODY = b'{"model":"m","options":{"num_ctx":8192,"seed":1},"prompt":"%s"}'


@pytest.mark.parametrize(
    "body",
    [
        BODY % b"\xff",
        BODY % b"\xed\xa0\x80",
        b"\xef\xbb\xbf" + BODY % b"hi",
        BODY % b"hi" + b"{}",
        BODY % b"hi" + b"\0",
        BODY % b"\\ud800",
        BODY.replace(b'"seed"', b'"\\udc00":null,"seed"') % b"\\ud83d\\ude00 \\\\ud800",
    ],
    ids=[
        "broken UTF-8",
        "half a character",
        "a byte order mark",
        "a second value",
        "junk behind it",
        "half a pair",
        "half a pair among the options",
    ],
)
def test_what_only_go_can_read_has_them_taken_out_too(body: bytes) -> None:
    """Else whoever adds one such byte has the model loaded anew, pinned or not."""
    assert read_ask("/api/generate", "", body).load_options == "num_ctx=8192"
    left = without_load_options(body)
    assert json.loads(left.decode("utf-8", "replace"))["options"] in ({"seed": 1}, {"seed": 1, "\ufffd": None})
    assert read_ask("/api/generate", "", left).model == "m"


@pytest.mark.parametrize("body", [b"", b"no JSON", b"[1]", b'"text"'])
def test_what_is_no_object_is_passed_on_as_it_is(body: bytes) -> None:
    assert without_load_options(body) == body


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.dictionaries(st.sampled_from(["model", "messages", "x"]), JSON, max_size=3),
    st.dictionaries(st.sampled_from([*sorted(LOAD_OPTIONS), "temperature", "seed"]), JSON, max_size=5),
    st.sampled_from(["options", "Options", "OPTIONS"]),
)
def test_nothing_but_they_is_lost(fields: dict[str, Any], options: dict[str, Any], name: str) -> None:
    body = json.dumps({**fields, name: options}).encode()
    kept = {key: value for key, value in options.items() if key not in LOAD_OPTIONS}
    left = without_load_options(body)
    assert json.loads(left) == {**fields, name: kept}
    assert load_options_of(json.dumps(kept).encode()) == ""
