"""The peers: their configurations, and that one which is not there is a line and not the end."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from scripts.bench import guests, peers
from scripts.bench.guests import HERD, LITELLM, LiteLlm
from scripts.bench.haproxy import NotInstalled, most_connections
from scripts.bench.peer import installed
from scripts.bench.peers import Chimera, Direct, HaProxy, Nginx, Plain
from scripts.bench.plain import HOP_BY_HOP, least_busy, make_app
from scripts.bench.workers import Spec

WORKERS = (11500, 11501)


@pytest.fixture
def nothing_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)


def test_what_is_not_installed_is_left_out_with_a_line(nothing_installed: None) -> None:
    found, lines = installed(peers.peers(Spec(4)))
    assert [peer.name for peer in found] == ["direct", "Quart + httpx", "Chimera"]
    assert lines == [
        "nginx is left out: nginx is not installed; on Debian and Ubuntu: apt install nginx-light",
        "HAProxy is left out: haproxy is not installed; on Debian and Ubuntu: apt install haproxy",
    ]


def test_chimera_is_the_last_of_all_peers() -> None:
    assert [peer.name for peer in peers.peers(Spec(4))] == ["direct", "nginx", "HAProxy", "Quart + httpx", "Chimera"]
    assert isinstance(peers.peers(Spec(4))[-1], Chimera)


def test_without_a_proxy_clients_go_to_all_workers(tmp_path: Path) -> None:
    with Direct().running(WORKERS, 4, tmp_path) as side:
        assert side.urls == ("http://127.0.0.1:11500", "http://127.0.0.1:11501")
        assert (side.url, side.pids, side.workers) == (side.urls[0], (), WORKERS)


def test_nginx_passes_streams_on_as_they_come_over_kept_connections(tmp_path: Path) -> None:
    text = Nginx().config(8080, WORKERS, 4, tmp_path)
    lines = [line.strip() for line in text.splitlines()]
    assert {"least_conn;", "proxy_buffering off;", "proxy_http_version 1.1;", "worker_processes 1;"} <= set(lines)
    assert 'proxy_set_header Connection "";' in lines, "else no connection is kept"
    assert [line for line in lines if line.startswith("server 1")] == [
        "server 127.0.0.1:11500 max_conns=4 max_fails=0;", "server 127.0.0.1:11501 max_conns=4 max_fails=0;",
    ]  # fmt: skip
    assert f"pid {tmp_path}/nginx.pid;" in lines, "it writes nowhere else"


@pytest.mark.parametrize(("root", "line"), [(0, True), (1000, False)])
def test_nginx_stays_root_only_if_it_is(monkeypatch: pytest.MonkeyPatch, root: int, line: bool, tmp_path: Path) -> None:
    monkeypatch.setattr("os.geteuid", lambda: root)
    assert ("user root;" in Nginx().config(8080, WORKERS, 4, tmp_path)) is line


def test_there_are_files_enough_for_what_haproxy_may_have() -> None:
    assert 0 < most_connections() <= 20_000


def said(stdout: str = "", stderr: str = "") -> object:
    def run(argv: Sequence[str], **_: object) -> "subprocess.CompletedProcess[str]":
        return subprocess.CompletedProcess(argv, 0, stdout, stderr)

    return run


def test_versions_as_the_programs_say_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name, **_: f"/usr/sbin/{name}")
    monkeypatch.setattr("subprocess.run", said(stderr="nginx version: nginx/1.22.1\n"))
    assert Nginx().version() == "nginx 1.22.1"
    monkeypatch.setattr("subprocess.run", said("HAProxy version 2.6.12-1 2026/10/17 - https://x\nStatus: y\n"))
    assert HaProxy().version() == "2.6.12-1"
    assert [part.split(" ")[0] for part in Plain().version().split(", ")] == ["quart-trio", "hypercorn", "httpx"]


def test_a_plain_proxy_gives_a_request_to_the_worker_with_the_fewest() -> None:
    assert least_busy({1: 2, 2: 1, 3: 1}) == 2
    assert {"host", "transfer-encoding"} <= HOP_BY_HOP
    assert {rule.rule for rule in make_app(WORKERS, 4).url_map.iter_rules()} >= {"/<path:path>"}


def test_workers_are_made_as_the_spec_says() -> None:
    spec = Spec(4, ("a", "b"), loaded=(), most_loaded=1, load_s=0.5, speeds=(1.0, 0.25))
    assert spec.environ(11500) == {
        "BENCH_MODELS": "a,b", "BENCH_LOADED": "", "BENCH_LOAD_S": "0.5", "BENCH_SPEEDS": "1,0.25",
        "BENCH_PORT_BASE": "11500", "OLLAMA_MAX_LOADED_MODELS": "1",
    }  # fmt: skip


# -- guests ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "chimera-bench"


def test_guests_are_kept_in_the_users_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert guests.cache_folder() == cache
    monkeypatch.setenv("XDG_CACHE_HOME", "not/absolute")
    assert guests.cache_folder() == Path.home() / ".cache" / "chimera-bench"


def test_an_install_that_is_refused_is_a_line(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(argv: Sequence[str], **_: object) -> "subprocess.CompletedProcess[str]":
        return subprocess.CompletedProcess(
            argv, 1 if "pip" in argv else 0, "", "warning: old\nERROR: No matching one\n"
        )

    heard: list[str] = []
    monkeypatch.setattr("subprocess.run", refused)
    found, lines = guests.guests(["litellm", "herd"], heard.append)
    assert found == []
    assert lines == [
        f"LiteLLM is left out: pip install {LITELLM} failed: ERROR: No matching one",
        f"Ollama Herd is left out: pip install {HERD} failed: ERROR: No matching one",
    ]
    assert str(cache) in heard[0]


def test_an_install_that_never_ends_is_a_line(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def hangs(argv: Sequence[str], timeout: float, **_: object) -> None:
        raise subprocess.TimeoutExpired(argv, timeout)

    monkeypatch.setattr("subprocess.run", hangs)
    assert guests.guests(["herd"], print)[1] == [f"Ollama Herd is left out: pip install {HERD} took more than 900 s"]


def put_there(cache: Path, folder: str, name: str) -> None:
    (cache / folder / "bin").mkdir(parents=True)
    (cache / folder / "bin" / name).touch()


def test_what_is_installed_is_not_installed_again(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[Sequence[str]] = []

    def run(argv: Sequence[str], **_: object) -> "subprocess.CompletedProcess[str]":
        ran.append(argv)
        return subprocess.CompletedProcess(argv, 0, "", "")

    monkeypatch.setattr("subprocess.run", run)
    put_there(cache, "litellm", "litellm")
    for _ in range(2):
        assert [peer.name for peer in guests.guests(["litellm"], print)[0]] == ["LiteLLM"]
    assert [argv[:3] for argv in ran] == [
        [sys.executable, "-m", "venv"], [str(cache / "litellm" / "bin" / "python"), "-m", "pip"],
    ]  # fmt: skip
    assert ran[1][-1] == LITELLM, "pinned"
    assert LiteLlm().version() == LITELLM.rpartition("=")[2]


def test_a_guest_that_is_not_there_says_so(cache: Path) -> None:
    with pytest.raises(NotInstalled, match="--with installs it"):
        guests.Herd().version()


def test_litellm_knows_every_worker_and_tells_nobody() -> None:
    text = LiteLlm().config(WORKERS, 4)
    assert [line.strip() for line in text.splitlines() if "api_base" in line] == [
        "api_base: http://127.0.0.1:11500", "api_base: http://127.0.0.1:11501",
    ]  # fmt: skip
    assert text.count("max_parallel_requests: 4") == 2
    assert {"  routing_strategy: least-busy", "  telemetry: false"} <= set(text.splitlines())
