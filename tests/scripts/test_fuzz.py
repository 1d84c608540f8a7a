"""make fuzz: the corpus, tried anew, and that it finds what is planted."""

import io
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from rich.console import Console

from scripts.fuzz import parsers
from scripts.fuzz.__main__ import report
from scripts.fuzz.corpus import CORPUS, UNDER_WAY, Notebook, kept, mutated
from scripts.fuzz.inputs import NOISE
from scripts.fuzz.parsers import TARGETS, Failed, Parsers, Target, grown, tried, tried_grown, tried_traced
from scripts.fuzz.requests import http2, requests, streams
from scripts.fuzz.stage import _is_bug
from scripts.fuzz.tally import Clock, Tally
from scripts.fuzz.targets_framing import taken
from scripts.fuzz.wire import TARGET, own_500

FILES = [(name, file) for name in TARGETS for file, _ in kept(name)]
MOST_BYTES = 300_000


@pytest.mark.parametrize(("name", "file"), FILES, ids=[f"{name}/{file}" for name, file in FILES])
def test_the_corpus_holds(name: str, file: str) -> None:
    tried(TARGETS[name], (CORPUS / name / file).read_bytes())


def test_the_corpus_is_small_and_each_of_its_folders_has_a_target() -> None:
    assert {path.name for path in CORPUS.iterdir()} == {*TARGETS, TARGET}
    assert sum(path.stat().st_size for path in CORPUS.rglob("*") if path.is_file()) < MOST_BYTES


def test_a_head_without_end_is_no_answer() -> None:
    """Too long for a file of the corpus."""
    tried(TARGETS["answer"], b"HTTP/1.1 200 OK\r\nx: " + b"a" * 300_000)


# -- what it finds -----------------------------------------------------------------------------------------------------


def no_zeros(data: bytes) -> None:
    assert b"\0" not in data, "there is a nought"


def test_a_planted_fault_is_found_kept_and_can_be_had_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        parsers, "TARGETS", {"planted": Target(no_zeros, NOISE, 100), "good": Target(lambda _: None, NOISE, 100)}
    )
    notebook = Notebook(tmp_path)
    runner = Parsers(notebook, random.Random(1))
    clock = Clock.of(30)

    runner._slice("planted", parsers.TARGETS["planted"], clock)
    runner._slice("good", parsers.TARGETS["good"], clock)
    notebook.close()
    (finding,) = runner.tally.findings
    assert finding.target == "planted"
    assert finding.what.startswith("AssertionError: there is a nought")
    (file,) = (tmp_path / "planted").iterdir()
    assert file.read_bytes() == b"\0", "the shortest there is"
    assert str(file) in finding.reproduction
    assert not (tmp_path / UNDER_WAY).exists()
    assert runner.tally.tries["good"] >= 100


def test_a_try_that_does_not_come_back_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parsers, "HANG_S", 0.05)

    def hangs(data: bytes) -> None:
        while True:
            try:
                data += b""
            except Exception:  # a broad handler of the target's own does not swallow it
                continue

    with pytest.raises(Failed, match="did not come back"):
        tried(Target(hangs, NOISE), b"x")


def test_work_out_of_proportion_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parsers, "AT_LEAST_S", 0.0)
    monkeypatch.setattr(parsers, "LINEAR_S", 1e-9)

    def works(data: bytes) -> None:
        assert sum(range(10**6)) > len(data)

    with pytest.raises(Failed, match="CPU time for 1000 bytes"):
        tried_grown(Target(works, NOISE), b"a" * 1000)


def test_memory_out_of_proportion_is_found() -> None:
    held: list[bytes] = []
    with pytest.raises(Failed, match=r"\d\d MiB of memory for 4 bytes"):
        tried_traced(Target(lambda data: held.extend(data * 1000 for _ in range(15000)), NOISE), b"abcd")


def test_a_long_input_is_a_sample_with_much_in_its_middle() -> None:
    assert grown(b"ab", b"<>", 8) == b"<ababab>"
    assert grown(b"", b"<>", 8) == b"<>"


@given(mutated([b"GET / HTTP/1.1\r\n\r\n", b""]))
@settings(max_examples=50)
def test_a_changed_sample_stays_small(data: bytes) -> None:
    assert len(data) <= 16384


# -- the wire ----------------------------------------------------------------------------------------------------------


@given(requests())
@settings(max_examples=50)
def test_made_requests_are_bytes_that_the_framing_takes_or_refuses(data: bytes) -> None:
    assert taken([data]).refused in (0, 400, 414, 431, 501, 505)


@given(http2())
@settings(max_examples=20)
def test_made_http_2_begins_as_it_must(data: bytes) -> None:
    assert data.startswith(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")


@given(streams([b"GET /"]))
@settings(max_examples=20)
def test_what_a_connection_sends_is_bounded(data: bytes) -> None:
    assert len(data) < 200_000


@pytest.mark.parametrize(
    ("answer", "ours"),
    [
        (b"HTTP/1.1 500 \r\ncontent-length: 0\r\n\r\n", True),
        (b"HTTP/1.1 200 \r\ncontent-length: 0\r\n\r\nHTTP/1.1 502 \r\ncontent-length: 0\r\n\r\n", True),
        (b"HTTP/1.1 500 \r\nx-chimera-worker: w1\r\ncontent-length: 0\r\n\r\n", False),
        (b"HTTP/1.1 503 \r\ncontent-length: 0\r\n\r\n", False),
        (b"", False),
    ],
)
def test_an_error_of_the_gateways_own_is_told_from_a_workers(answer: bytes, ours: bool) -> None:
    assert (own_500(answer) is not None) is ours


@pytest.mark.parametrize(
    ("line", "bug"),
    [
        (b'{"event":"request","level":"info"}\n', False),
        (b'{"event":"worker stopping","level":"warning"}\n', False),
        (b'{"event":"a connection failed; this is a bug in Chimera","level":"error"}\n', True),
        (b'{"event":"x","level":"error","exception":"Traceback (most recent call last)"}\n', True),
        (b"Fatal Python error\n", True),
    ],
)
def test_what_no_log_should_say(line: bytes, bug: bool) -> None:
    assert _is_bug(line) is bug


# -- the report --------------------------------------------------------------------------------------------------------


def test_the_report_has_tries_findings_and_how_to_have_them_again() -> None:
    console = Console(record=True, width=200, file=io.StringIO())
    tally = Tally("parsers")
    tally.tried("ask", 1234)
    assert report(console, [tally])
    tally.found("ask", "AssertionError: so", "python -m scripts.fuzz --try x")
    tally.found("ask", "AssertionError: so", "the same again")
    assert len(tally.findings) == 1
    assert not report(console, [tally])
    text = console.export_text()
    assert "1,234" in text
    assert "python -m scripts.fuzz --try x" in text
