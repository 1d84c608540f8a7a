"""What a worker of known speed is asked for, and how its answers look. Standard library only, as worker.py. Pure."""

import json
from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]

STAMP_BYTES = 19
DATE = "2026-01-01T00:00:00.000000Z"


@dataclass(frozen=True, slots=True)
class Answer:
    """What an answer is to be.

    `chunks` pieces of `size` bytes of text each (no less than a stamp), `rate` of them a second (0: as fast as they
    are taken), the first after `first_s` seconds. Not streamed, it is all of that in one piece, in the same time.
    """

    chunks: int = 1
    rate: float = 0.0
    size: int = STAMP_BYTES
    first_s: float = 0.0

    def prompt(self, tag: str = "") -> str:
        """Return a prompt that asks for this answer; `tag` comes first and tells it from others."""
        return f"{tag} chunks={self.chunks} rate={self.rate:g} size={self.size} first_s={self.first_s:g}".lstrip()

    @property
    def seconds(self) -> float:
        """How long it takes at speed 1, without waiting."""
        return self.first_s + ((self.chunks - 1) / self.rate if self.rate else 0.0)


def read_answer(prompt: str) -> Answer:
    """Return what a prompt asks for; the default where it says nothing that can be read."""
    said = dict(word.split("=", 1) for word in prompt.split() if "=" in word)
    try:
        return Answer(
            max(1, int(said.get("chunks", 1))),
            max(0.0, float(said.get("rate", 0))),
            max(STAMP_BYTES, int(said.get("size", STAMP_BYTES))),
            max(0.0, float(said.get("first_s", 0))),
        )
    except ValueError:
        return Answer()


def full_name(name: str) -> str:
    """Return a model's name with its tag."""
    return name if ":" in name else f"{name}:latest"


def speed_of(port: int, speeds: str, base: int) -> float:
    """Return how fast the worker on `port` is, of BENCH_SPEEDS and BENCH_PORT_BASE."""
    factors = [float(text) for text in speeds.split(",") if text]
    return factors[(port - base) % len(factors)] if factors else 1.0


def head(status: int, kind: str, length: int | None, port: int) -> bytes:
    """Return the head of a response; `length` None: it comes in chunks."""
    framing = "Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"
    reason = {200: "OK", 404: "Not Found"}.get(status, "Error")
    return (f"HTTP/1.1 {status} {reason}\r\nContent-Type: {kind}\r\nX-Bench-Worker: {port}\r\n"
            f"{framing}\r\n\r\n").encode()  # fmt: skip


def frame(data: bytes) -> bytes:
    """Return one chunk of a chunked body."""
    return b"%x\r\n%s\r\n" % (len(data), data)


def around(path: str, model: str) -> tuple[bytes, bytes]:
    """Return what stands before and after the text in a streamed piece."""
    name = json.dumps(model)
    if path == "/v1/chat/completions":
        begin = f'data: {{"id":"bench","object":"chat.completion.chunk","created":1,"model":{name},"choices":['
        begin += '{"index":0,"delta":{"role":"assistant","content":"'
        return begin.encode(), b'"},"finish_reason":null}]}\n\n'
    begin = f'{{"model":{name},"created_at":"{DATE}",'
    if path == "/api/chat":
        return f'{begin}"message":{{"role":"assistant","content":"'.encode(), b'"},"done":false}\n'
    return f'{begin}"response":"'.encode(), b'","done":false}\n'


def whole(path: str, model: str, text: str, answer: Answer) -> Json:
    """Return an answer that is not streamed, or, without text, the last line of one that is."""
    if path == "/v1/chat/completions":
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        usage = {"prompt_tokens": 9, "completion_tokens": answer.chunks, "total_tokens": 9 + answer.chunks}
        return {"id": "bench", "object": "chat.completion", "created": 1, "model": model, "choices": [choice],
                "usage": usage}  # fmt: skip
    said: Json = {"message": {"role": "assistant", "content": text}} if path == "/api/chat" else {"response": text}
    took = int(answer.seconds * 1e9)
    return {"model": model, "created_at": DATE, **said, "done": True, "done_reason": "stop", "total_duration": took,
            "load_duration": 0, "prompt_eval_count": 9, "prompt_eval_duration": 1, "eval_count": answer.chunks,
            "eval_duration": max(1, took)}  # fmt: skip


def end_of_stream(path: str, model: str, answer: Answer) -> bytes:
    """Return what ends a stream, framed."""
    if path == "/v1/chat/completions":
        last = {"id": "bench", "object": "chat.completion.chunk", "created": 1, "model": model,
                "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}  # fmt: skip
        data = b"data: %s\n\ndata: [DONE]\n\n" % as_json(last)
    else:
        data = as_json(whole(path, model, "", answer)) + b"\n"
    return frame(data) + b"0\r\n\r\n"


def as_json(value: object) -> bytes:
    """Return JSON as Go writes it, without spaces."""
    return json.dumps(value, separators=(",", ":")).encode()
