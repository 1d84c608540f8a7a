"""The load of the benchmarks: how it reads answers, what it counts as one, and what it says of those that are none."""

import json
import math
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace

import pytest

from scripts.bench.load import Load, quantile, read_load
from scripts.bench.load_run import Run, _Connection, cpu_of
from scripts.bench.reader import Reader

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\n"
STAMPS = (1234567890123456, 1234567890999999)
LINES = b"".join(b'{"response":"t=%016d;xxx","done":false}\n' % stamp for stamp in STAMPS) + b'{"done":true}\n'
COUNTED = HEAD + b"Content-Length: %d\r\n\r\n" % len(LINES) + LINES


def chunked(body: bytes, each: int) -> bytes:
    """Return a response that comes in chunks of `each` bytes."""
    parts = [body[at : at + each] for at in range(0, len(body), each)]
    return (
        HEAD
        + b"Transfer-Encoding: chunked\r\n\r\n"
        + b"".join(b"%x\r\n%s\r\n" % (len(p), p) for p in parts)
        + b"0\r\n\r\n"
    )


def read(data: bytes, size: int) -> tuple[Reader, list[bool]]:
    """Feed a reader piece by piece."""
    reader = Reader()
    return reader, [reader.feed(data[at : at + size]) for at in range(0, len(data), size)]


@pytest.mark.parametrize("data", [COUNTED, chunked(LINES, 9999), chunked(LINES, 7), chunked(LINES, 50)])
@pytest.mark.parametrize("size", [1, 2, 17, 100_000])
def test_an_answer_is_read_however_it_comes(data: bytes, size: int) -> None:
    reader, ends = read(data, size)
    assert ends == [False] * (len(ends) - 1) + [True], "it ends with its last byte, not before"
    assert (reader.status, reader.done, tuple(reader.stamps)) == (200, True, STAMPS)


def test_a_body_that_says_nothing_of_its_end_is_not_done() -> None:
    reader, ends = read(HEAD + b'Content-Length: 14\r\n\r\n{"done":false}', 100)
    assert (ends, reader.done) == ([True], False)


@pytest.mark.parametrize("end", [b'{"done": true}', b"data: [DONE]\n\n", b'{"finish_reason":"stop"}'])
def test_every_api_says_its_end_in_its_own_way(end: bytes) -> None:
    assert read(chunked(b"x" * 5000 + end, 100), 100)[0].done


@pytest.mark.parametrize(
    "data",
    [
        HEAD + b"Content-Length: 3\r\n\r\nfour",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabcXX",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\nmore",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        HEAD + b"\r\n",
        b"nonsense\r\n\r\n",
        b"HTTP/1.1 two OK\r\n\r\n",
    ],
)
def test_what_is_no_response_is_an_error_that_the_load_expects(data: bytes) -> None:
    with pytest.raises((ValueError, IndexError, KeyError)):
        read(data, 1000)


@pytest.mark.parametrize(
    ("values", "share", "found"),
    [
        ([5.0], 0.5, 5.0),
        ([4.0, 1.0, 3.0, 2.0], 0.5, 3.0),
        (list(range(100)), 0.99, 99),
        (list(range(100)), 0.5, 50),
        (list(range(100)), 1.0, 99),
        (list(range(100)), 0.0, 0),
    ],
)
def test_a_quantile_is_one_of_the_values(values: Sequence[float], share: float, found: float) -> None:
    assert quantile(values, share) == found


def test_of_nothing_there_is_no_quantile() -> None:
    assert math.isnan(quantile([], 0.5))


def asked(load: Load, number: int = 1) -> tuple[list[str], dict[str, object]]:
    """Return the lines of a request's head, and what is in its body."""
    head, _, body = load.request(number, "127.0.0.1:80").partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    assert f"Content-Length: {len(body)}" in lines
    return lines, json.loads(body)


def test_a_request_is_asked_as_the_api_has_it() -> None:
    load = Load(("http://127.0.0.1:80",), 1, "n{n} chunks=2", stream=True, headers={"Authorization": "Bearer k"})
    lines, body = asked(load, 7)
    assert lines[:2] == ["POST /api/generate HTTP/1.1", "Host: 127.0.0.1:80"]
    assert "Authorization: Bearer k" in lines
    assert body == {"model": "bench", "stream": True, "prompt": "n7 chunks=2"}
    _, body = asked(replace(load, path="/v1/chat/completions"))
    assert body["messages"] == [{"role": "user", "content": "n1 chunks=2"}]


def test_a_load_goes_to_its_process_and_is_the_same_there() -> None:
    load = Load(("http://127.0.0.1:1",), 3, "n{n}", pids=(1, 2), cpus=(0,), headers={"a": "b"}, limit_s=5.0)
    assert read_load(json.loads(json.dumps(asdict(load)))) == load


def test_of_no_process_there_is_no_cpu() -> None:
    assert cpu_of(()) == 0.0


# -- a whole load, against a server that says what it is told ---------------------------------------------------------


@contextmanager
def server(*answers: bytes) -> Iterator[str]:
    """Give the URL of a server that answers one request on each of its connections, and closes it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            for answer in answers:
                client, _ = listener.accept()
                with client:
                    client.recv(65536)
                    client.sendall(answer)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        thread.join(10)


def once(*answers: bytes) -> Load:
    return Load((), len(answers), "hello", limit_s=30.0)


def test_what_comes_whole_is_an_answer() -> None:
    with server(COUNTED, chunked(LINES, 30)) as url:
        result = Run(replace(once(COUNTED, COUNTED), urls=(url,))).run()
    assert (result.requests, result.chunks, result.failed, result.faults) == (2, 4, 0, [])
    assert len(result.first_byte_s) == 2
    assert len(result.delay_s) == 4


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        (b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n", "status 503"),
        (HEAD + b"Content-Length: 14\r\n\r\n" + b'{"done":false}', "an answer without its end"),
        (COUNTED[:-5], "closed in the middle of an answer"),
        (b"SSH-2.0\r\n\r\n", "not HTTP: list index out of range"),
        (b"", "closed in the middle of an answer"),
    ],
)
def test_what_is_no_answer_is_a_failure_with_its_reason(answer: bytes, fault: str) -> None:
    with server(answer) as url:
        result = Run(replace(once(answer), urls=(url,))).run()
    assert (result.requests, result.failed, result.faults) == (0, 1, [fault])


def test_nobody_there_is_a_failure() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    result = Run(replace(once(b""), urls=(url,))).run()
    assert (result.failed, result.faults[0].startswith("no connection")) == (1, True)


def test_counting_begins_when_all_have_begun_however_late_that_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """It did not: a side that accepted too slowly was counted for no time at all, and had cost nothing."""
    opened, connections = Run._open, list[_Connection]()

    def slow(run: Run, connection: _Connection) -> None:
        threading.Event().wait(0.2)
        opened(run, connection)
        connections.append(connection)

    monkeypatch.setattr(Run, "_open", slow)
    with server(*[COUNTED] * 3) as url:
        load = Load((url,), 3, "hello", seconds=0.3, spread_s=0.06, settle_s=0.01, cut=True, again_s=60.0)
        result = Run(load).run()
    for connection in connections:
        if connection.sock is not None:
            connection.sock.close()
    assert result.seconds >= 0.3
