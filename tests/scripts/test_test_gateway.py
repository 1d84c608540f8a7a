"""make test-gateway: what it makes of streams and shares, and one run of it against a stub of a gateway."""

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scripts.test_gateway import (
    Outcome,
    Share,
    Stream,
    balance,
    error_text,
    is_token,
    judge,
    passed_over,
    retry_after_s,
)

SCRIPT = Path(__file__).parents[2] / "scripts" / "test_gateway.py"
TOKEN = '{"response":"a","done":false}'
END = '{"response":"","done":true,"eval_count":7}'


# --- Pure


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([TOKEN, TOKEN, END], Stream(7, None)),
        ([TOKEN, "", '{"response":"","done":true}'], Stream(1, None)),
        ([TOKEN, TOKEN], Stream(2, "the stream ended before it was done")),
        ([], Stream(0, "the stream ended before it was done")),
        ([TOKEN, '{"error":"worker lost"}'], Stream(1, "worker lost")),
        ([TOKEN, '{"response":"a","do'], Stream(1, 'a line that is not JSON: \'{"response":"a","do\'')),
        (["[1]"], Stream(0, "a line that is not a JSON object: '[1]'")),
        ([END, TOKEN], Stream(7, "a line after the end")),
    ],
)
def test_a_stream_is_complete_only_with_done_as_its_last_line(lines: list[str], expected: Stream) -> None:
    assert judge(lines) == expected


@given(st.integers(min_value=0, max_value=8))
def test_no_cut_of_a_complete_stream_is_complete(kept: int) -> None:
    whole = [*[TOKEN] * 8, END]
    assert judge(whole[:kept]).fault is not None
    assert judge(whole).fault is None


@pytest.mark.parametrize(
    ("line", "expected"),
    [(TOKEN, True), ('{"thinking":"hm"}', True), (END, False), ("", False), ("no", False), ("[]", False)],
)
def test_the_first_token_is_the_first_text(line: str, expected: bool) -> None:
    assert is_token(line) is expected


@pytest.mark.parametrize(
    ("header", "expected"), [("3", 3.0), ("0", 0.1), ("Mon, 01 Jan 2026 00:00:00 GMT", 1.0), (None, 1.0)]
)
def test_a_503_is_sent_again_when_it_says(header: str | None, expected: float) -> None:
    assert retry_after_s({} if header is None else {"retry-after": header}) == expected


@pytest.mark.parametrize(
    ("body", "expected"),
    [('{"error":"no worker"}', "500: no worker"), ('{"error":{"message":"no"}}', "500: no"), ("<html>", "500: <html>")],
)
def test_an_error_keeps_the_servers_words(body: str, expected: str) -> None:
    assert error_text(500, body) == expected


def test_the_balance_counts_answers_and_keeps_workers_without_any() -> None:
    outcomes = [Outcome(1, "a"), Outcome(2, "a"), Outcome(3, "b"), Outcome(4, "b", fault="lost"), Outcome(5)]
    assert balance(outcomes, ["a", "c"]) == [Share("a", 2, 2 / 3), Share("b", 1, 1 / 3), Share("c", 0, 0.0)]


@given(st.lists(st.sampled_from("abc")))
def test_the_shares_add_up_to_all_answers(workers: list[str]) -> None:
    shares = balance([Outcome(number, worker) for number, worker in enumerate(workers)], ["a", "b", "c"])
    assert sum(share.count for share in shares) == len(workers)
    assert sum(share.part for share in shares) == pytest.approx(1.0 if workers else 0.0)


@pytest.mark.parametrize(("at_once", "expected"), [(4, []), (5, ["b"]), (24, ["b"])])
def test_a_worker_is_passed_over_only_if_the_others_slots_were_too_few(at_once: int, expected: list[str]) -> None:
    shares = [Share("a", 9, 1.0), Share("b", 0, 0.0)]
    assert passed_over(shares, {"a": 4, "b": 4}, at_once) == expected


# --- A whole run


@dataclass
class StubGateway:
    """Two workers and what is spawned; requests go round. `first_503` answers the first of them with 503.

    Answers wait until the queue has been looked at twice: the script is to have seen it, however slow the machine.
    """

    url: str = ""
    first_503: bool = True
    cut: bool = False
    hang: bool = False
    workers: list[str] = field(default_factory=lambda: ["w1", "w2"])
    pruned: list[str] = field(default_factory=list)
    generated: Any = field(default_factory=itertools.count)
    reached: threading.Event = field(default_factory=threading.Event)
    looks: Any = field(default_factory=lambda: itertools.count(1))
    watched: threading.Event = field(default_factory=threading.Event)
    ended: threading.Event = field(default_factory=threading.Event)


def handler_of(stub: StubGateway) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def send(self, status: int, body: bytes, **headers: str) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            self.wfile.write(body)

        def generate(self) -> None:
            number = next(stub.generated)
            if number == 0 and stub.first_503:
                self.send(503, b'{"error":"server busy"}', Retry_After="0")
                return
            stub.reached.set()
            if stub.hang:
                stub.ended.wait(20)
            else:
                stub.watched.wait(20)
            body = f"{TOKEN}\n" if stub.cut else f"{TOKEN}\n{END}\n"
            worker = stub.workers[number % len(stub.workers)]
            marks = {"X_Chimera_Worker": worker, "X_Chimera_Queue_Ms": "12", "X_Chimera_Attempts": "1"}
            self.send(200, body.encode(), **marks)

        def answer(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers.get("Content-Length", "0"))) or b"{}")
            if self.path == "/api/generate":
                self.generate()
                return
            if self.path == "/admin/instances/spawn":
                stub.workers += [f"new{number}" for number in range(asked["count"])]
            if self.path == "/admin/instances/prune":
                stub.pruned += asked["ids"]
            if self.path == "/admin/instances" and stub.reached.is_set() and next(stub.looks) == 2:
                stub.watched.set()
            rows = [{"id": worker, "state": "IDLE", "slots": 2} for worker in stub.workers]
            spawned = [row for row in rows if str(row["id"]).startswith("new")]
            answers: dict[str, object] = {
                "/admin/instances": {"instances": rows, "queue": {"depth": 3, "size": 9, "oldest_s": 0}},
                "/admin/instances/spawn": {"instances": spawned},
                "/admin/instances/prune": {"pruned": stub.pruned},
                "/api/tags": {"models": [{"name": "tiny:latest"}]},
            }
            self.send(200, json.dumps(answers[self.path]).encode())

        def log_message(self, *_args: object) -> None:
            pass  # a test prints what went wrong itself

        do_GET = do_POST = answer  # noqa: N815 - the names that http.server calls

    return Handler


class StubServer(ThreadingHTTPServer):
    request_queue_size = 128  # with the usual five, some of 24 connections at once are reset


@pytest.fixture
def stub() -> Iterator[StubGateway]:
    gateway = StubGateway()
    with StubServer(("127.0.0.1", 0), handler_of(gateway)) as server:
        gateway.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield gateway
        gateway.ended.set()
        server.shutdown()
        thread.join()


def start(stub: StubGateway, *words: str) -> subprocess.Popen[str]:
    argv = [sys.executable, str(SCRIPT), *words]
    env = {**os.environ, "CHIMERA_URL": stub.url}
    return subprocess.Popen(argv, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_good_run_shows_everything_and_prunes_only_what_it_spawned(stub: StubGateway) -> None:
    with start(stub) as script:
        out, err = script.communicate(timeout=30)
    assert (script.returncode, err) == (0, ""), out
    assert "24 requests, 24 at once, 4 workers" in out
    assert "queue: at most 3 waiting; retried after 503: 1; lost: 0" in out
    assert "ok, retried after 503: 1" in out
    assert "new1" in out
    assert stub.pruned == ["new0", "new1"]


def test_a_lost_request_fails_the_run(stub: StubGateway) -> None:
    stub.cut = True
    with start(stub, "--workers", "0", "--requests", "3") as script:
        out, _ = script.communicate(timeout=30)
    assert script.returncode == 1
    assert "lost: the stream ended before it was done" in out
    assert "lost: 3" in out
    assert stub.pruned == []


def test_an_interrupted_run_prunes_what_it_spawned(stub: StubGateway) -> None:
    stub.hang = True
    with start(stub, "--workers", "1") as script:
        assert stub.reached.wait(20)
        script.send_signal(signal.SIGINT)
        _, err = script.communicate(timeout=30)
    assert (script.returncode, err) == (1, "test_gateway.py: interrupted\n")
    assert stub.pruned == ["new0"]
