"""make test-systemd: how it counts what becomes of requests, and what it says where no container can be booted."""

import os
import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import httpx
import pytest
import trio

from scripts.booted import machine, traffic
from scripts.booted.machine import Machine, NoMachine, passed_on, why_not
from scripts.booted.traffic import Fate, Traffic, whole
from tests.fakes.chimera import ROOT
from tests.fakes.serving import free_port

GOOD = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}"
BUSY = b"HTTP/1.1 503 Busy\r\nRetry-After: 1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
ODD = b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
STREAM = b'HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{"done":false}\n'


def _complete(asked: bytes) -> bool:
    head, end, body = asked.partition(b"\r\n\r\n")
    length = re.search(rb"(?i)content-length: (\d+)", head)
    return bool(end) and len(body) >= (int(length[1]) if length else 0)


async def fates(*answers: bytes | None, streams: bool = False) -> Traffic:
    """What is counted of a server that gives these answers, one a connection; None: it hangs up."""
    rest = list(answers)

    async def serve(stream: trio.SocketStream) -> None:
        async with stream:
            asked = b""
            while not _complete(asked):  # closed with bytes unread, a connection is reset, and its answer with it
                asked += await stream.receive_some(65536)
            if (answer := rest.pop(0)) is not None:
                await stream.send_all(answer)

    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
        seen = Traffic(f"http://127.0.0.1:{listener.socket.getsockname()[1]}", "m")
        for _ in answers:
            if streams:
                await seen.stream(3, trio.Event())
            else:
                async with httpx.AsyncClient(base_url=seen.url, trust_env=False) as client:
                    await seen._ask(client, 1)
        nursery.cancel_scope.cancel()
    return seen


async def test_each_request_is_counted_by_what_became_of_it() -> None:
    seen = await fates(GOOD, BUSY, ODD, None)
    assert seen.text == "1 answered, 1 503 with Retry-After, 1 cut, 1 another answer"
    assert seen.why[0].startswith("503: ")


async def test_a_stream_without_its_last_line_is_cut_whatever_its_status() -> None:
    seen = await fates(STREAM + b'{"done":true}\n', STREAM, STREAM + b'{"error":"lost"}\n', streams=True)
    assert seen.fates == {Fate.ANSWERED: 1, Fate.CUT: 2}


async def test_a_door_that_nobody_holds_open_refuses() -> None:
    seen = Traffic(f"http://127.0.0.1:{free_port()}", "m")
    over = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(seen.run, 50.0, over)
        with trio.fail_after(30):
            while seen.fates[Fate.REFUSED] < 2:
                await trio.sleep(0.01)
        over.set()
    assert set(seen.fates) == {Fate.REFUSED}


async def test_the_traffic_ends_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traffic, "AT_MOST_S", 0.2)
    seen = Traffic(f"http://127.0.0.1:{free_port()}", "m")
    with trio.fail_after(30):
        await seen.run(10.0, trio.Event())


def test_nothing_was_asked() -> None:
    assert Traffic("http://127.0.0.1:1", "m").text == "nothing was asked"


@pytest.mark.parametrize(
    ("line", "good"), [(b'{"done":true}', True), (b'{"done":false}', False), (b"", False), (b"[1]", False)]
)
def test_the_last_line_tells_a_whole_stream(line: bytes, good: bool) -> None:
    assert whole(line) is good


def test_why_there_is_no_container_is_said_with_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert why_not() == "root is needed to boot a container: sudo make test-systemd"
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(shutil, "which", lambda tool: None if tool == "systemd-nspawn" else f"/bin/{tool}")
    assert why_not() == "systemd-nspawn not found: apt-get install systemd-container util-linux"
    monkeypatch.setattr(shutil, "which", lambda tool: f"/bin/{tool}")
    assert why_not() is None


def test_where_it_cannot_run_it_says_so_and_ends_with_a_status_of_its_own(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "test_systemd.py")],
        env={"PATH": str(tmp_path), "HOME": str(tmp_path)}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 77
    assert done.stderr.startswith("test-systemd: not here: ")


def test_a_container_that_does_not_boot_is_told_with_its_last_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "unshare"
    program.write_text("#!/bin/sh\necho unshare: not permitted >&2; exit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(machine, "BOOT_TIMEOUT_S", 30.0)
    made = Machine(tmp_path / "layers", ROOT, {})
    try:
        with pytest.raises(NoMachine, match="unshare: not permitted"):
            made.boot()
    finally:
        made.close()


def test_a_pip_in_the_container_asks_the_same_index() -> None:
    environ = {"PIP_INDEX_URL": "a", "https_proxy": "b", "ADMIN_TOKEN": "c", "HOME": "d"}
    assert passed_on(environ) == {"PIP_INDEX_URL": "a", "https_proxy": "b"}
