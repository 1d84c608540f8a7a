"""Whether a stream came to its end: the last words of each API, and what is missing them."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.ending import End, end_of, is_stream
from gateway.ollama import TAIL_BYTES

NDJSON = [(b"content-type", b"application/x-ndjson")]
SSE = [(b"content-type", b"text/event-stream; charset=utf-8")]

MID = b'{"model":"m","message":{"role":"assistant","content":"a"},"done":false}\n'
DONE = b'{"model":"m","message":{"content":""},"done":true,"done_reason":"stop","total_duration":17,"eval_count":3}\n'
CHUNK = b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n'
ERROR = b'{"error":"unexpected EOF"}'


def answer(content: str) -> bytes:
    return json.dumps({"message": {"content": content}, "done": False}, separators=(",", ":")).encode() + b"\n"


def responses(name: str, *, padding: int = 0) -> bytes:
    data = json.dumps({"response": {"output": "x" * padding}, "type": f"response.{name}"})
    return f"event: response.{name}\ndata: {data}\n\n".encode()


def messages(name: str) -> bytes:
    return f'event: {name}\ndata: {{"type":"{name}"}}\n\n'.encode()


LARGE_CONTEXT = b'{"done":true,"context":[' + b"1234," * 50_000 + b'1],"total_duration":17,"eval_count":3}\n'
TOOL = b'{"message":{"tool_calls":[{"function":{"name":"f","arguments":{"done":true}}}]},"done":false}\n'


@pytest.mark.parametrize(
    ("path", "tail", "end"),
    [
        ("/api/chat", MID + DONE, End.WHOLE),
        ("/api/generate", DONE.rstrip(), End.WHOLE),
        ("/api/chat", MID + b'{"done": true}\n', End.WHOLE),
        ("/api/generate", LARGE_CONTEXT, End.WHOLE),
        ("/api/generate", LARGE_CONTEXT[-TAIL_BYTES:], End.WHOLE),  # its beginning is out of sight
        ("/api/chat", MID, End.MISSING),
        ("/api/chat", MID[:-20], End.MISSING),
        ("/api/chat", b"", End.MISSING),
        ("/api/chat", answer('to end, say {"done":true}'), End.MISSING),  # the model's own words
        ("/api/chat", answer('"total_duration":17'), End.MISSING),
        ("/api/chat", TOOL, End.MISSING),
        ("/api/chat", MID + ERROR + b"\n", End.ERROR),
        ("/v1/chat/completions", CHUNK + b"data: [DONE]\n\n", End.WHOLE),
        ("/v1/completions", CHUNK + b"data: [DONE]\r\n\r\n", End.WHOLE),
        ("/v1/completions", b"data: [DONE]", End.WHOLE),
        ("/v1/chat/completions", CHUNK, End.MISSING),
        ("/v1/chat/completions", b"", End.MISSING),
        ("/v1/chat/completions", CHUNK + b"data: " + ERROR + b"\n\n", End.ERROR),
        ("/v1/chat/completions", CHUNK + b"data: " + ERROR + b"\n\ndata: [DONE]\n\n", End.ERROR),
        ("/v1/responses", responses("output_text.delta") + responses("completed"), End.WHOLE),
        ("/v1/responses", responses("incomplete"), End.WHOLE),
        ("/v1/responses", responses("completed", padding=9000)[-TAIL_BYTES:], End.WHOLE),
        ("/v1/responses", responses("output_text.delta"), End.MISSING),
        ("/v1/messages", messages("message_delta") + messages("message_stop"), End.WHOLE),
        ("/v1/messages", messages("message_delta"), End.MISSING),
        ("/v1/messages", messages("message_delta") + b'event: error\ndata: {"type":"error"}\n\n', End.ERROR),
        ("/v1/messages", b'data: {"type":"error","error":{}}\n\n', End.ERROR),
        ("/v1/audio/transcriptions", b"data: who knows\n\n", End.WHOLE),
        ("/api/pull", b'{"status":"success"}\n', End.WHOLE),
    ],
)
def test_a_stream_is_whole_when_it_has_its_last_word(path: str, tail: bytes, end: End) -> None:
    assert end_of(path, tail)[0] is end


def test_the_error_is_told_that_ended_a_stream() -> None:
    assert end_of("/api/chat", MID + ERROR + b"\n")[1] == ERROR
    told = end_of("/v1/chat/completions", CHUNK + b"data: " + ERROR + b"\n\ndata: [DONE]\n\n")[1]
    assert told == b"data: " + ERROR


@given(st.text())
def test_no_text_of_a_models_makes_a_stream_whole(content: str) -> None:
    assert end_of("/api/chat", MID + answer(content))[0] is End.MISSING


@given(st.sampled_from(["/api/chat", "/v1/chat/completions", "/v1/messages", "/v1/responses"]), st.binary())
def test_whatever_a_worker_sent_there_is_an_answer(path: str, tail: bytes) -> None:
    assert end_of(path, tail)[0] in End


@pytest.mark.parametrize(
    ("headers", "stream"),
    [
        (NDJSON, True),
        (SSE, True),
        ([*NDJSON, (b"content-length", b"7")], False),
        ([*NDJSON, (b"content-encoding", b"gzip")], False),
        ([(b"content-type", b"application/json")], False),
        ([], False),
    ],
)
def test_only_what_comes_in_lines_or_events_has_an_end_to_look_for(
    headers: list[tuple[bytes, bytes]], stream: bool
) -> None:
    assert is_stream(headers) is stream
