"""The worker of known speed: what a prompt asks for, who is answered when, and how an answer looks."""

import http.client
import json
import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scripts.bench.answers import (
    STAMP_BYTES,
    Answer,
    around,
    end_of_stream,
    frame,
    full_name,
    head,
    read_answer,
    speed_of,
    whole,
)
from scripts.bench.jobs import Client, Job, Scheduler
from scripts.bench.load import Load
from scripts.bench.load_run import Run
from scripts.bench.worker_http import MODEL_BYTES, take_request
from scripts.bench.workers import PROGRAM, Spec, worker
from tests.fakes.chimera import free_ports

PATHS = ("/api/generate", "/api/chat", "/v1/chat/completions")


@given(
    st.builds(
        Answer,
        chunks=st.integers(1, 10_000),
        rate=st.sampled_from([0.0, 0.5, 50.0, 1000.0]),
        size=st.integers(STAMP_BYTES, 5000),
        first_s=st.sampled_from([0.0, 0.1, 2.5]),
    )
)
def test_a_prompt_asks_for_the_answer_that_made_it(answer: Answer) -> None:
    assert read_answer(answer.prompt("n17 and other words=yes")) == answer


@pytest.mark.parametrize(
    ("prompt", "answer"),
    [
        ("", Answer()),
        ("why is the sky blue?", Answer()),
        ("rate=10 chunks=5", Answer(5, 10.0)),
        ("chunks=0 size=1 rate=-5", Answer()),
        ("chunks=many", Answer()),
    ],
)
def test_a_prompt_that_says_little_gets_the_least(prompt: str, answer: Answer) -> None:
    assert read_answer(prompt) == answer


def test_how_long_an_answer_takes() -> None:
    assert Answer(101, 50.0, first_s=0.5).seconds == 2.5
    assert Answer(101, 0.0, first_s=0.5).seconds == 0.5


@pytest.mark.parametrize(("port", "speed"), [(100, 1.0), (101, 0.25), (102, 1.0), (103, 0.25)])
def test_speeds_are_given_in_turn(port: int, speed: float) -> None:
    assert speed_of(port, "1,0.25", 100) == speed
    assert speed_of(port, "", 100) == 1.0


def test_a_name_has_its_tag() -> None:
    assert [full_name(name) for name in ("bench", "bench:1b")] == ["bench:latest", "bench:1b"]


# -- who is answered now ----------------------------------------------------------------------------------------------


def a_job(model: str = "a") -> Job:
    return Job(Client(socket.socket()), model, Answer(), stream=False, path=PATHS[0])


@pytest.fixture
def jobs() -> list[Job]:
    made = [a_job() for _ in range(4)]
    for job in made:
        job.client.sock.close()
    return made


def test_no_more_than_its_slots_are_answered_at_once(jobs: list[Job]) -> None:
    desk = Scheduler(slots=2)
    desk.load("a")
    desk.line.extend(jobs)
    assert desk.advance(0.0) == jobs[:2]
    assert desk.advance(1.0) == []
    desk.ended(jobs[0], 1.0)
    assert desk.advance(1.0) == jobs[2:3]


def test_a_model_that_is_not_loaded_is_loaded_first(jobs: list[Job]) -> None:
    desk = Scheduler(slots=2, load_s=3.0)
    desk.line.extend(jobs[:1])
    assert (desk.advance(0.0), desk.wake_s(0.0), desk.loads) == ([], 3.0, 1)
    assert desk.advance(2.9) == []
    assert (desk.advance(3.0), desk.wake_s(3.0)) == (jobs[:1], None)


def test_while_the_other_model_is_busy_the_head_waits_and_with_it_the_line(jobs: list[Job]) -> None:
    desk = Scheduler(slots=4, most_loaded=1)
    desk.load("a")
    jobs[1].model = "b"
    desk.line.extend(jobs)
    assert desk.advance(0.0) == jobs[:1], "those for the loaded model stand behind"
    desk.ended(jobs[0], 1.0)
    assert desk.advance(1.0) == [jobs[1]]
    assert (list(desk.runners), desk.loads) == (["b"], 1)


def test_the_idle_model_that_was_used_longest_ago_goes(jobs: list[Job]) -> None:
    desk = Scheduler(slots=4, most_loaded=2)
    for model, job in zip("ab", jobs, strict=False):
        desk.load(model)
        job.model = model
    desk.line.extend([jobs[1], jobs[0]])
    desk.advance(0.0)
    desk.ended(jobs[0], 1.0)
    desk.ended(jobs[1], 2.0)
    jobs[2].model = "c"
    desk.line.append(jobs[2])
    desk.advance(3.0)
    assert set(desk.runners) == {"b", "c"}


def test_who_leaves_is_taken_out_wherever_it_stands(jobs: list[Job]) -> None:
    desk = Scheduler(slots=1, most_loaded=1)
    desk.load("a")
    jobs[2].model = "b"
    desk.line.extend(jobs[:3])
    assert (desk.advance(0.0), desk.under_way) == (jobs[:1], 3)
    for job in (jobs[1], jobs[2], jobs[3], jobs[0]):
        desk.ended(job, 1.0)
    assert (desk.advance(1.0), desk.under_way, desk.runners["a"].idle(1.0)) == ([], 0, True)


def test_only_an_idle_model_is_unloaded(jobs: list[Job]) -> None:
    desk = Scheduler(slots=1)
    desk.load("a")
    desk.line.append(jobs[0])
    desk.advance(0.0)
    desk.unload("a", 0.0)
    assert "a" in desk.runners
    desk.ended(jobs[0], 1.0)
    desk.unload("a", 1.0)
    desk.unload("never there", 1.0)
    assert desk.runners == {}


# -- HTTP -------------------------------------------------------------------------------------------------------------

COUNTED = b"POST /api/chat?x=1 HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello"
CHUNKED = b"POST /api/chat HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3;x=y\r\nllo\r\n0\r\n\r\n"


@pytest.mark.parametrize("data", [COUNTED, CHUNKED])
def test_a_request_is_taken_when_it_is_whole(data: bytes) -> None:
    for end in range(len(data)):
        assert take_request(bytearray(data[:end])) is None
    came = bytearray(data + b"GET / HT")
    request = take_request(came)
    assert request is not None
    assert (request.method, request.path, request.body) == ("POST", "/api/chat", b"hello")
    assert came == b"GET / HT", "what comes behind it stays"


@pytest.mark.parametrize("data", [b"nonsense\r\n\r\n", b"GET / HTTP/1.1\r\nContent-Length: x\r\n\r\n"])
def test_what_is_no_request_is_an_error(data: bytes) -> None:
    with pytest.raises(ValueError):
        take_request(bytearray(data))


@pytest.mark.parametrize("path", PATHS)
def test_every_piece_of_an_answer_is_json(path: str) -> None:
    begin, end = around(path, 'a"b')
    piece = json.loads((begin + b"hello" + end).removeprefix(b"data: "))
    assert piece["model"] == 'a"b'
    assert "hello" in json.dumps(piece)
    assert "hello" in json.dumps(whole(path, "a", "hello", Answer()))


@pytest.mark.parametrize("path", PATHS)
def test_the_end_of_a_stream_says_that_it_is_one(path: str) -> None:
    data = end_of_stream(path, "a", Answer(7))
    assert data.endswith(b"\r\n0\r\n\r\n")
    assert b'"done":true' in data or b"data: [DONE]" in data


def test_heads_and_frames() -> None:
    assert frame(b"x" * 16) == b"10\r\n" + b"x" * 16 + b"\r\n"
    assert head(200, "text/plain", 5, 81).split(b"\r\n")[1:4] == [
        b"Content-Type: text/plain", b"X-Bench-Worker: 81", b"Content-Length: 5",
    ]  # fmt: skip
    assert b"Transfer-Encoding: chunked" in head(200, "text/plain", None, 81)
    assert MODEL_BYTES > 0


# -- the process -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """A worker of one slot, where it listens."""
    (found,) = free_ports(1, 29_000 + os.getpid() % 1000)
    with worker(found, Spec(1)):
        yield found


def said(port: int, method: str, path: str, body: str | None = None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request(method, path, body)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("stream", [False, True])
def test_it_answers_what_it_is_asked_for_to_many_at_once(port: int, path: str, stream: bool) -> None:
    asked = Answer(5, 500.0, 30).prompt("n{n}")
    result = Run(Load((f"http://127.0.0.1:{port}",), 4, asked, stream=stream, path=path)).run()
    assert (result.requests, result.failed, result.faults) == (4, 0, [])
    assert result.chunks == (20 if stream else 4)
    assert min(result.delay_s) >= 0


def test_what_it_says_of_itself(port: int) -> None:
    assert said(port, "GET", "/") == (200, b"Ollama is running")
    assert said(port, "HEAD", "/") == (200, b"")
    assert said(port, "GET", "/nowhere")[0] == 404
    for path, name in (("/api/version", "version"), ("/api/tags", "models"), ("/api/ps", "models"),
                       ("/api/show", "details"), ("/v1/models", "data"), ("/bench", "loads")):  # fmt: skip
        status, body = said(port, "GET", path)
        assert (status, name in json.loads(body)) == (200, True)


def test_what_it_cannot_answer(port: int) -> None:
    assert said(port, "POST", "/api/generate", '{"model":"other","prompt":"hi"}')[0] == 404
    assert said(port, "POST", "/api/generate", "[]") == (400, b'{"error":"what?"}')


def test_a_client_that_leaves_frees_its_slot(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port)) as client:
        body = json.dumps({"model": "bench", "prompt": Answer(1000, 1.0).prompt()})
        client.sendall(f"POST /api/generate HTTP/1.1\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())
        assert client.recv(1000).startswith(b"HTTP/1.1 200 OK")
    assert said(port, "POST", "/api/generate", '{"model":"bench","prompt":"hi","stream":false}')[0] == 200


def test_a_model_that_is_unloaded_is_loaded_again(port: int) -> None:
    said(port, "POST", "/api/generate", '{"model":"bench","keep_alive":0}')
    assert json.loads(said(port, "GET", "/api/ps")[1]) == {"models": []}
    assert said(port, "POST", "/api/generate", '{"model":"bench","prompt":"hi"}')[0] == 200
    assert len(json.loads(said(port, "GET", "/api/ps")[1])["models"]) == 1


def test_it_runs_from_anywhere_and_knows_one_command(tmp_path: Path) -> None:
    run = subprocess.run([str(PROGRAM), "list"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr) == (2, f"{PROGRAM}: only `serve`\n")


def test_a_port_that_is_taken_is_one_line(port: int, tmp_path: Path) -> None:
    env = {"OLLAMA_HOST": f"127.0.0.1:{port}", "PATH": os.environ["PATH"]}
    run = subprocess.run([str(PROGRAM), "serve"], env=env, capture_output=True, text=True, check=False)
    assert (run.returncode, f"Error: listen tcp 127.0.0.1:{port}" in run.stderr) == (1, True)
